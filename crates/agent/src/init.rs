//! The program that is PID 1 in this guest: how far it is, and how it is asked to turn the guest off.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use banger_api::channel::InitState;
use rustix::fs::inotify;
use rustix::process::{Pid, Signal};
use tokio::io::unix::AsyncFd;

use crate::cmdline::Off;
use crate::{shutdown, spawn, watched};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Init {
    Systemd,
    /// Ourselves.
    Agent,
    Busybox,
    Other(String),
    /// Not in a guest: there is no PID 1 that we may talk to.
    None,
}

/// How PID 1 is asked for the end.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Signal(i32),
    Run(&'static str),
    None,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error("cannot wait for systemd to answer")]
    Wait(#[source] io::Error),
    #[error("cannot run {program} in the guest")]
    Run {
        program: &'static str,
        #[source]
        cause: io::Error,
    },
    #[error("cannot signal PID 1")]
    Signal(#[source] io::Error),
    #[error("this agent does not run in a guest of its own")]
    NotAGuest,
}

impl Init {
    /// `agent`, or a path in the image, most often a symlink to the program that it really is.
    pub(crate) fn of(path: &Path) -> Self {
        if path == Path::new("agent") {
            return Init::Agent;
        }
        let program = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match program.file_name().unwrap_or_default().to_string_lossy().as_ref() {
            "systemd" => Init::Systemd,
            "busybox" => Init::Busybox,
            other => Init::Other(other.to_owned()),
        }
    }

    fn name(&self) -> &str {
        match self {
            Init::Systemd => "systemd",
            Init::Agent => "agent",
            Init::Busybox => "busybox",
            Init::Other(name) => name,
            Init::None => "none",
        }
    }

    /// Returns when the init has started what it starts.
    pub(crate) async fn state(&self) -> Result<InitState, InitError> {
        let state = match self {
            Init::Systemd => {
                systemd_answers().await.map_err(InitError::Wait)?;
                let run = spawn::output("systemctl", &["is-system-running", "--wait"]).await;
                // The exit status says only that the state is not `running`.
                let said = run.map_err(|cause| InitError::Run { program: "systemctl", cause })?;
                String::from_utf8_lossy(&said).trim().to_owned()
            }
            _ => "running".to_owned(),
        };
        Ok(InitState { init: self.name().to_owned(), state })
    }

    /// Asks PID 1 to turn the guest off; returns when it is asked. Where only a restart ends the VMM, it is asked for that.
    pub(crate) async fn power_off(&self, off: Off) -> Result<(), InitError> {
        match (self.request(off), self) {
            (Request::None, _) => Err(InitError::NotAGuest),
            (Request::Signal(number), Init::Systemd) => {
                // Before that it may not have its signals in order, and PID 1 does not get what it does not handle.
                systemd_answers().await.map_err(InitError::Wait)?;
                signal_pid1(number)
            }
            (Request::Signal(number), _) => signal_pid1(number),
            (Request::Run(program), _) => {
                let run = spawn::output(program, &[]).await;
                run.map(drop).map_err(|cause| InitError::Run { program, cause })
            }
        }
    }

    fn request(&self, off: Off) -> Request {
        match (self, off) {
            (Init::Systemd, Off::Power) => Request::Signal(shutdown::SYSTEMD_POWEROFF),
            (Init::Systemd, Off::Restart) => Request::Signal(shutdown::SYSTEMD_REBOOT),
            // It knows what to do in the end (`shutdown::off`).
            (Init::Agent, _) => Request::Signal(Signal::TERM.as_raw()),
            // "Signals" in busybox's init/init.c.
            (Init::Busybox, Off::Power) => Request::Signal(Signal::USR2.as_raw()),
            (Init::Busybox, Off::Restart) => Request::Signal(Signal::TERM.as_raw()),
            (Init::Other(_), Off::Power) => Request::Run("poweroff"),
            (Init::Other(_), Off::Restart) => Request::Run("reboot"),
            (Init::None, _) => Request::None,
        }
    }
}

fn signal_pid1(number: i32) -> Result<(), InitError> {
    let sent = spawn::signal(number)
        .and_then(|signal| Ok(rustix::process::kill_process(Pid::INIT, signal)?));
    sent.map_err(InitError::Signal)
}

/// systemd listens at its private socket once it takes signals and commands.
async fn systemd_answers() -> io::Result<()> {
    for path in ["/run/systemd", "/run/systemd/private"] {
        appears(Path::new(path)).await?;
    }
    Ok(())
}

/// Returns when the path is there. Its parent must be.
async fn appears(path: &Path) -> io::Result<()> {
    let parent = path.parent().expect("the paths asked for are in a folder");
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(
        &watch,
        parent,
        inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO,
    )?;
    let watch: AsyncFd<OwnedFd> = watched::watch(watch)?;
    let mut events = [0_u8; 4096];
    while !path.exists() {
        let mut ready = watch.readable().await?;
        // Which file it was does not matter; an empty queue means waiting again.
        if ready.try_io(|watch| Ok(rustix::io::read(watch, &mut events)?)).is_err() {
            continue;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_ends_only_by_a_restart_is_never_asked_to_power_off() {
        let asked = |init: &Init| (init.request(Off::Power), init.request(Off::Restart));
        assert_eq!(asked(&Init::Systemd), (Request::Signal(38), Request::Signal(39)));
        assert_eq!(asked(&Init::Busybox), (Request::Signal(12), Request::Signal(15)));
        let other = Init::Other("runit".into());
        assert_eq!(asked(&other), (Request::Run("poweroff"), Request::Run("reboot")));
    }
}
