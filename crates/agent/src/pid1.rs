//! PID 1 of an image without an init: takes the ends of orphans, keeps the server running, and shuts the guest down.
//!
//! ```text
//! running ── SIGTERM, SIGINT, SIGPWR, SIGUSR1, SIGUSR2 (busybox), SIGRTMIN+4 (systemctl) ──► shutting down ──► off
//! ```

use std::convert::Infallible;
use std::io;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{console, processes, shutdown};

/// How long programs have between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Pid1Error {
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
    #[error("cannot start the agent's server")]
    Server(#[source] io::Error),
}

/// A server that lived no longer than this is not started again: it would not live longer the next time.
const TOO_SHORT: Duration = Duration::from_secs(1);

/// Starts the server when every signal that could come from it has its receiver.
pub(crate) fn run(start_server: impl Fn() -> io::Result<Child>) -> Result<Infallible, Pid1Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(Pid1Error::Signals)?;
    let server = runtime.block_on(until_shutdown(start_server))?;
    stop(server)
}

/// Serves as PID 1 until somebody wants the guest off; gives the server's pid.
async fn until_shutdown(
    start_server: impl Fn() -> io::Result<Child>,
) -> Result<Option<Pid>, Pid1Error> {
    let mut children = signal(SignalKind::child()).map_err(Pid1Error::Signals)?;
    let mut off = OffSignals::receive().map_err(Pid1Error::Signals)?;
    let start = || {
        start_server()
            .map(|child| Pid::from_raw(child.id().cast_signed()))
            .map_err(Pid1Error::Server)
    };
    let (mut server, mut started) = (start()?, Instant::now());
    loop {
        tokio::select! {
            () = off.recv() => return Ok(server),
            _ = children.recv() => {}
        }
        let mut server_ended = None;
        processes::reap(|pid, status| {
            if Some(pid) == server {
                server_ended = Some(status)
            }
        });
        if let Some(status) = server_ended {
            let again = started.elapsed() > TOO_SHORT;
            console::say(&format!(
                "the agent's server ended ({status:?}); {}",
                if again { "starting it again" } else { "it did so at once, so it stays down" }
            ));
            (server, started) = if again { (start()?, Instant::now()) } else { (None, started) };
        }
    }
}

struct OffSignals([Signal; 6]);

impl OffSignals {
    fn receive() -> io::Result<Self> {
        let kind = SignalKind::from_raw;
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::user_defined1())?,
            signal(SignalKind::user_defined2())?,
            signal(kind(rustix::process::Signal::POWER.as_raw()))?,
            signal(kind(shutdown::SYSTEMD_POWEROFF))?,
        ]))
    }

    async fn recv(&mut self) {
        let [a, b, c, d, e, f] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
            _ = d.recv() => {}
            _ = e.recv() => {}
            _ = f.recv() => {}
        }
    }
}

/// Ends all programs, the server last, since the host may still read from it; then the root is taken apart.
fn stop(server: Option<Pid>) -> Result<Infallible, Pid1Error> {
    if let Err(error) = processes::end_all(GRACE, |pid| Some(pid) == server) {
        console::say_error(&error);
    }
    if let Err(error) = shutdown::leave_root() {
        console::say_error(&error);
    }
    shutdown::finish(shutdown::End::PowerOff)
}
