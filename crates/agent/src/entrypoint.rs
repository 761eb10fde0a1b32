//! The image's own program (its entrypoint), where no init runs it: started once a boot, its output on the console; the
//! guest goes off when it ends, and it is asked first when somebody wants the guest off.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::Duration;

use banger_api::exec::{NulInWord, Refused, Start, Word};
use banger_api::image::Config;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;

use crate::watched::watch;
use crate::{exec, spawn};

/// How long it has for an end of its own, before all programs of the guest are told to end.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(crate) enum EntrypointError {
    #[error("{}", .0.message)]
    Refused(Refused),
    #[error("the image's program cannot be started")]
    Word(#[from] NulInWord),
    #[error("the image's stop signal {0:?} is no signal")]
    StopSignal(String),
    #[error("cannot watch the image's program")]
    Watch(#[source] io::Error),
}

/// The program while it runs, for whoever ends it.
#[derive(Debug)]
pub(crate) struct Entrypoint {
    process: AsyncFd<OwnedFd>,
    stop: Signal,
}

/// Starts the image's program as the image says. Give the child to [`Entrypoint::end`].
pub(crate) fn start(config: &Config) -> Result<(Entrypoint, Child), EntrypointError> {
    let stop = stop_signal(config.stop_signal.as_deref())?;
    let argv = config.program().into_iter().map(Word::new).collect::<Result<_, NulInWord>>()?;
    let request = Start { argv, no_stdin: true, ..Start::default() };
    let program = exec::prepare(&request, config).map_err(EntrypointError::Refused)?;
    let child = spawn::start_on_console(&program)
        .map_err(|error| EntrypointError::Refused(exec::refuse_start(&error)))?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
        .map_err(io::Error::from)
        .and_then(watch)
        .map_err(EntrypointError::Watch)?;
    Ok((Entrypoint { process, stop }, child))
}

impl Entrypoint {
    /// Returns when the program has ended: how, in words.
    pub(crate) async fn end(&self, mut child: Child) -> String {
        drop(self.process.readable().await);
        match child.wait().map(|status| (status.code(), status.signal())) {
            Ok((Some(code), _)) => format!("status {code}"),
            Ok((_, Some(signal))) => format!("signal {signal}"),
            _ => "an unknown status".to_owned(),
        }
    }

    /// Asks it to end by the image's stop signal, and waits until it has, or has had its time.
    pub(crate) async fn stop(&self) {
        // One that has ended needs no signal.
        pidfd_send_signal(&self.process, self.stop).ok();
        drop(tokio::time::timeout(GRACE, self.process.readable()).await);
    }
}

/// `SIGQUIT`, `QUIT`, `SIGRTMIN+3` or a number, as an image may have it; SIGTERM when it has none.
fn stop_signal(text: Option<&str>) -> Result<Signal, EntrypointError> {
    const REALTIME: i32 = 34;
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Signal::TERM) };
    let unknown = || EntrypointError::StopSignal(text.to_owned());
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name {
        "HUP" => Some(1),
        "INT" => Some(2),
        "QUIT" => Some(3),
        "ABRT" => Some(6),
        "KILL" => Some(9),
        "USR1" => Some(10),
        "USR2" => Some(12),
        "TERM" => Some(15),
        "PWR" => Some(30),
        "WINCH" => Some(28),
        "RTMIN" => Some(REALTIME),
        _ => match name.strip_prefix("RTMIN+") {
            Some(more) => more.parse().ok().map(|more: u8| REALTIME + i32::from(more)),
            None => name.parse().ok(),
        },
    };
    spawn::signal(number.ok_or_else(unknown)?).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_read_in_every_form_that_images_use() {
        for (text, number) in [
            (None, 15),
            (Some(""), 15),
            (Some("SIGQUIT"), 3),
            (Some("winch"), 28),
            (Some("9"), 9),
            (Some("SIGRTMIN+3"), 37),
        ] {
            assert_eq!(stop_signal(text).unwrap().as_raw(), number, "{text:?}");
        }
        for text in ["SIGNAL", "99", "RTMIN+99", "-1"] {
            assert!(stop_signal(Some(text)).is_err(), "{text}");
        }
    }
}
