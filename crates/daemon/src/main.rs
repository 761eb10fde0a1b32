//! The daemon's process: reads its environment, picks who changes the host, serves until it is told to end.
//!
//! Three more programs live in this one, since they must be there wherever it is: the writer of a VM's log, the fence before a
//! VM's user-mode network, and the probe of /dev/kvm.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use banger_api::folders::Folders;
use banger_api::install::{self, Install};
use banger_api::{Code, Problem};
use banger_host::root::{Firecracker, Root, RootPlaces};
use banger_host::{HelperHost, LocalHost, Places, fence, kvm_probe, log_writer, ready_fd};
use bangerd::config::{Config, UidRange};
use bangerd::daemon::Hands;
use bangerd::startup::{self, Started, Startup};
use bangerd::{serve, vmms};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// The argument with which this program is the writer of a VM's log.
const WRITE_LOG: &str = "write-log";

fn main() -> ExitCode {
    // Nothing that is made here is for others to read.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    more_descriptors();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => daemon(),
        [WRITE_LOG, path, limit] => write_log(path, limit),
        [fence::ARGUMENT] => status(fence::answer()),
        [kvm_probe::ARGUMENT] => kvm_probe::answer(),
        _ => {
            let usage = b"usage: bangerd (no arguments; `banger` starts it when it is needed)\n";
            drop(std::io::stderr().write_all(usage));
            ExitCode::from(2)
        }
    }
}

/// Each VM takes some, and so does each question that a guest's DNS server has under way: as many as are allowed, and not
/// the 1024 that programs begin with for the sake of select(2).
fn more_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Fewer do for few VMs.
    let _fewer = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn daemon() -> ExitCode {
    // Whoever started us may wait for one line on this fd.
    let mut ready = Ready(ready_fd::take("BANGER_READY_FD"));
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            return refuse(
                &mut ready,
                &Problem::new(Code::Internal, "cannot start threads").cause(&error),
            );
        }
    };
    let code = runtime.block_on(async {
        match prepare() {
            Ok(Startup::AlreadyRunning) => {
                ready.tell("already running");
                ExitCode::SUCCESS
            }
            Ok(Startup::Started(started)) => run(*started, &mut ready).await,
            Err(problem) => refuse(&mut ready, &problem),
        }
    });
    // Work that has not ended goes on in the next daemon, as after a crash.
    runtime.shutdown_background();
    code
}

/// Everything up to the socket.
fn prepare() -> Result<Startup, Problem> {
    let (folders, installed) = Folders::here().map_err(|e| {
        Problem::from_error(Code::Invalid, &e).remedy("set HOME or BANGER_HOME to an absolute path")
    })?;
    let is_root = rustix::process::geteuid().is_root();
    if is_root && installed.is_some() {
        let message = "the daemon of an installation is its owner's, never root's";
        return Err(Problem::new(Code::Invalid, message).remedy("systemctl start bangerd"));
    }
    let own = std::env::current_exe().map_err(|e| {
        Problem::new(Code::Internal, "cannot tell where bangerd itself is").cause(&e)
    })?;
    let agent = match std::env::var_os("BANGER_AGENT") {
        Some(path) => PathBuf::from(path),
        None => own.with_file_name("guest").join("banger-agent"),
    };
    let jails = installed.as_ref().map(|_| PathBuf::from(install::JAILS));
    startup::start(folders, agent, jails, |places, config| {
        let log_writer = (own, vec![WRITE_LOG.to_owned()]);
        match installed {
            Some(install) => through_the_helper(places, log_writer, install),
            None => by_itself(places, log_writer, config, is_root),
        }
    })
}

/// An installation's daemon: what needs root is asked of the helper.
fn through_the_helper(
    places: &Places,
    log_writer: (PathBuf, Vec<String>),
    install: Install,
) -> Hands {
    let local = LocalHost::new(places.clone(), log_writer, None);
    Hands {
        host: Arc::new(HelperHost::new(local, install::HELPER_SOCKET.into())),
        privileged: true,
        programs: Firecracker {
            firecracker: install.firecracker.clone(),
            jailer: install.jailer.clone(),
        },
        uids: UidRange { first: install.uid_base, count: install.uid_count },
        installed: Some(install),
    }
}

/// Anybody's daemon: what needs root is made if this process is root, and not used else.
fn by_itself(
    places: &Places,
    log_writer: (PathBuf, Vec<String>),
    config: &Config,
    is_root: bool,
) -> Hands {
    let programs = vmms::programs(config);
    let root = is_root.then(|| {
        Root::new(RootPlaces {
            installation: places.installation.clone(),
            owner: 0,
            state: places.state.clone(),
            jails: places.jails.clone(),
            firecracker: programs.clone(),
        })
    });
    Hands {
        host: Arc::new(LocalHost::new(places.clone(), log_writer, root)),
        privileged: is_root,
        programs,
        uids: config.uids,
        installed: None,
    }
}

async fn run(started: Started, ready: &mut Ready) -> ExitCode {
    let Started { daemon, listener, lock } = started;
    let signals = signal(SignalKind::terminate())
        .and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
    let (mut terminate, mut interrupt) = match signals {
        Ok(signals) => signals,
        Err(error) => {
            return refuse(
                ready,
                &Problem::new(Code::Internal, "cannot handle signals").cause(&error),
            );
        }
    };
    if let Err(problem) = daemon.take_over() {
        return refuse(ready, &problem);
    }
    daemon.serve_names();
    daemon.delete_expired();
    ready.tell("ready");
    let (store, socket) = (Arc::clone(&daemon.store), daemon.folders.socket());
    tracing::info!(socket = %socket.display(), "serving");
    let served = tokio::select! {
        served = serve::serve(daemon, listener) => served,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    // Whoever comes now is to start a daemon, not to wait for this one.
    if let Err(error) = std::fs::remove_file(&socket) {
        tracing::warn!(%error, "the socket stays behind");
    }
    if let Err(error) = store.checkpoint() {
        tracing::warn!(%error, "the database keeps its log");
    }
    // Held until here: a second daemon must not touch what this one still serves.
    drop(lock);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the socket failed");
            ExitCode::FAILURE
        }
    }
}

fn write_log(path: &str, limit: &str) -> ExitCode {
    let Ok(limit_bytes) = limit.parse() else { return ExitCode::from(2) };
    status(log_writer::run(path.as_ref(), limit_bytes))
}

/// Of a program that has nobody to tell why.
fn status(ended: std::io::Result<()>) -> ExitCode {
    ended.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

fn refuse(ready: &mut Ready, problem: &Problem) -> ExitCode {
    tracing::error!(%problem, "cannot start");
    ready.tell(&serde_json::to_string(problem).expect("a problem is plain data"));
    ExitCode::FAILURE
}

/// Who waits for this daemon, if somebody does.
struct Ready(Option<File>);

impl Ready {
    fn tell(&mut self, line: &str) {
        if let Some(mut waiting) = self.0.take() {
            // Whoever has stopped waiting need not be told.
            drop(writeln!(waiting, "{line}"));
        }
    }
}
