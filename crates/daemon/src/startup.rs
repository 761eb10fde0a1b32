//! From a process to a daemon that serves: folders, the lock, the database, the host, the socket; each step refuses by
//! name before anything later has begun.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_api::folders::Folders;
use banger_api::{Code, Problem};
use banger_host::lock::{self, Lock};
use banger_host::{Installation, Places, socket};
use banger_store::Store;
use tokio::net::UnixListener;

use crate::artifacts::remove_temporaries;
use crate::config::{self, Config, HostSize};
use crate::daemon::{Daemon, Hands};
use crate::problems;

/// A daemon that has all it needs and has begun nothing.
#[derive(Debug)]
pub struct Started {
    pub daemon: Arc<Daemon>,
    pub listener: UnixListener,
    /// Held for the daemon's life.
    pub lock: Lock,
}

/// What came of starting.
#[derive(Debug)]
pub enum Startup {
    Started(Box<Started>),
    /// Another daemon has this state folder.
    AlreadyRunning,
}

/// `make_hands` picks who changes the host. `jails` is where jails are, if not in the state.
///
/// # Errors
/// What is missing or damaged, with what to do.
pub fn start(
    folders: Folders,
    agent: PathBuf,
    jails: Option<PathBuf>,
    make_hands: impl FnOnce(&Places, &Config) -> Hands,
) -> Result<Startup, Problem> {
    for folder in [&folders.state, &folders.cache, &folders.run] {
        private_folder(folder)?;
    }
    let lock = lock::try_lock(&folders.state.join("lock")).map_err(|e| problems::host(&e))?;
    let Some(lock) = lock else { return Ok(Startup::AlreadyRunning) };
    let config = config::read(&folders.config.join("config.toml"), HostSize::here())?;
    let store = open_store(&folders.state)?;
    let mut places =
        Places::new(store.installation().clone(), &folders.state, &folders.cache, &folders.run);
    places.jails = jails.unwrap_or(places.jails);
    for folder in [&places.vms, &places.runs, &places.templates] {
        private_folder(folder)?;
    }
    // What makes images for this installation, and for nobody any more: this daemon has the lock.
    let making = format!("bg{}", places.installation);
    banger_host::end_orphans(banger_image::MARK_VARIABLE, &making)
        .map_err(|e| problems::host(&e))?;
    banger_image::mark_programs(&making);
    let hands = make_hands(&places, &config);
    let daemon = Arc::new(Daemon::new(folders, config, Arc::new(store), hands, places, agent));
    for folder in [daemon.images_folder(), daemon.kernels_folder()] {
        private_folder(&folder)?;
        remove_temporaries(&folder);
    }
    let listener = listen(&daemon.folders.run)?;
    Ok(Startup::Started(Box::new(Started { daemon, listener, lock })))
}

/// The database, and the installation's id beside it in a file, which survives the database.
fn open_store(state: &Path) -> Result<Store, Problem> {
    let file = state.join("installation");
    let known = fs::read_to_string(&file).ok().and_then(|text| Installation::parse(text.trim()));
    let store = Store::open(&state.join("banger.db"), known.clone()).map_err(problems::store)?;
    if known.as_ref() != Some(store.installation()) {
        let write = |e: std::io::Error| {
            Problem::new(Code::Internal, format!("cannot write {}", file.display())).cause(&e)
        };
        fs::write(&file, format!("{}\n", store.installation())).map_err(write)?;
    }
    Ok(store)
}

fn private_folder(path: &Path) -> Result<(), Problem> {
    let failed = |error: std::io::Error| {
        Problem::new(Code::Internal, format!("cannot make the folder {}", path.display()))
            .cause(&error)
            .remedy("make it writable for this user, or set BANGER_HOME to a folder of your own")
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)
}

fn listen(run: &Path) -> Result<UnixListener, Problem> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Problem::new(Code::Internal, format!("cannot listen in {}", run.display())).cause(error)
    };
    let name = "banger.sock";
    let listening: OwnedFd = socket::listen(run, name).map_err(|e| failed(&e))?;
    fs::set_permissions(run.join(name), fs::Permissions::from_mode(0o600))
        .map_err(|e| failed(&e))?;
    let listener = std::os::unix::net::UnixListener::from(listening);
    listener.set_nonblocking(true).map_err(|e| failed(&e))?;
    UnixListener::from_std(listener).map_err(|e| failed(&e))
}
