//! The signals that ask a program to go. From the first `Signals` on they no longer end the process by themselves.

use banger_api::{Code, Problem};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
}

pub(crate) const INT: u8 = 2;
const HUP: u8 = 1;
const QUIT: u8 = 3;
const TERM: u8 = 15;

impl Signals {
    pub(crate) fn listen() -> Result<Self, Problem> {
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            quit: listen(SignalKind::quit())?,
        })
    }

    /// The number of the next one. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => INT,
            _ = self.terminate.recv() => TERM,
            _ = self.hangup.recv() => HUP,
            _ = self.quit.recv() => QUIT,
        }
    }

    /// `work`, unless a signal comes first.
    pub(crate) async fn unless<T>(
        &mut self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            result = work => result,
            number = self.next() => Err(Failure::Signal(number)),
        }
    }
}

pub(crate) fn listen(kind: SignalKind) -> Result<Signal, Problem> {
    signal(kind)
        .map_err(|error| Problem::new(Code::Internal, "cannot listen for signals").cause(&error))
}
