//! The guest's server as a process: what it needs of the machine, and where it listens.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::init::Init;
use crate::port::{self, PortError};
use crate::server::{self, Guest};
use crate::spawn::Inheritance;
use crate::vsock::{self, VsockError};
use crate::{console, modules};

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("cannot start the server")]
    Runtime(#[source] io::Error),
    #[error("cannot serve the host")]
    Port(#[from] PortError),
    #[error("cannot serve the host")]
    Vsock(#[from] VsockError),
    #[error("cannot read the guest's boot id")]
    BootId(#[source] io::Error),
    #[error("cannot listen on {path}")]
    Listen {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

/// In a guest: serves the host at the vsock port that is inherited, or at the virtio-serial port.
pub(crate) fn in_guest(init: &OsStr, inheritance: Inheritance) -> ExitCode {
    protect();
    end(run_in_guest(init, inheritance))
}

fn run_in_guest(init: &OsStr, inheritance: Inheritance) -> Result<Infallible, ServeError> {
    let Inheritance { modules, listener } = inheritance;
    let boot_id =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(ServeError::BootId)?;
    let boot_id = boot_id.trim_end().to_owned();
    let port = match listener {
        Some(listener) => Port::Vsock(listener),
        None => Port::Serial(port::open()?),
    };
    let guest = Arc::new(Guest::new(Init::of(Path::new(init))));
    runtime()?.block_on(async {
        outlive_shutdown().map_err(ServeError::Runtime)?;
        let (tell, ready) = tokio::sync::oneshot::channel();
        drop(tokio::spawn(after_ready(ready, Arc::clone(&guest), modules)));
        match port {
            Port::Vsock(listener) => Ok(vsock::serve(listener, guest, boot_id, tell).await?),
            Port::Serial(port) => Ok(port::serve(port, guest, &boot_id, tell).await?),
        }
    })
}

/// Where the host comes to.
enum Port {
    Vsock(OwnedFd),
    Serial(OwnedFd),
}

/// What can wait until the host has its answer, or until it seems that none will come.
async fn after_ready(
    ready: tokio::sync::oneshot::Receiver<()>,
    guest: Arc<Guest>,
    modules: Option<OwnedFd>,
) {
    const LONG_ENOUGH: std::time::Duration = std::time::Duration::from_secs(10);
    drop(tokio::time::timeout(LONG_ENOUGH, ready).await);
    guest.install_end().await;
    if let Some(folder) = modules {
        let load = move || {
            if let Err(error) = modules::load_late(&folder, |error| console::say_error(&error)) {
                console::say_error(&error);
            }
        };
        drop(idly(load).await);
    }
}

/// Work that nobody waits for, behind everything that somebody does: just now the guest boots, and its first command comes.
pub(crate) fn idly<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn_blocking(|| {
        // On Linux this is the thread's own (setpriority(2), BUGS). It serves only such work from now on.
        rustix::process::setpriority_process(None, 19).ok();
        work()
    })
}

/// On a unix socket, for tests and for hosts that bring their own channel.
pub(crate) fn on_socket(path: &Path) -> ExitCode {
    end(run_on_socket(path))
}

fn run_on_socket(path: &Path) -> Result<Infallible, ServeError> {
    let failed = |cause| ServeError::Listen { path: path.to_owned(), cause };
    let guest = Arc::new(Guest::new(Init::None));
    runtime()?.block_on(async {
        let listener = UnixListener::bind(path).map_err(failed)?;
        loop {
            let (stream, _) = listener.accept().await.map_err(failed)?;
            drop(tokio::spawn(server::connection(stream, Arc::clone(&guest))));
        }
    })
}

fn end(result: Result<Infallible, ServeError>) -> ExitCode {
    let Err(error) = result;
    console::say_error(&error);
    ExitCode::FAILURE
}

/// One thread: the server waits more than it works, and a guest may have one processor.
fn runtime() -> Result<Runtime, ServeError> {
    Builder::new_current_thread().enable_all().build().map_err(ServeError::Runtime)
}

/// The guest must stay reachable when its memory runs out, and commands may open as many files as services may.
fn protect() {
    const FILES: u64 = 524_288;
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        console::say(&format!("cannot protect the server when memory runs out: {error}"));
    }
    if let Err(error) = rustix::process::setpriority_process(None, -20) {
        console::say(&format!("cannot put the server before the guest's other programs: {error}"));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: Some(FILES) }).ok();
}

/// Inits and people end "all processes" with these. A handler, not SIG_IGN: what we start must not inherit it.
fn outlive_shutdown() -> io::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()] {
        // The handler stays when nobody listens any more (tokio, "caveats" of signal::unix).
        drop(signal(kind)?);
    }
    Ok(())
}
