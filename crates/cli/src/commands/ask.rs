//! A question before something is lost, where there is a terminal to ask on; elsewhere a refusal that says how to go on.

use std::io::BufRead;

use banger_api::{Code, Problem};
use tokio::sync::oneshot;

use crate::context::Context;
use crate::failure::Failure;
use crate::{out, terminal};

/// # Errors
/// When there is nobody to ask: `what` is lost, and `flag` says it is wanted.
pub(crate) fn somebody_or(what: &str, flag: &str) -> Result<(), Failure> {
    if can_be_asked() {
        return Ok(());
    }
    let message = format!("{what}, and there is no terminal to ask on");
    Err(Problem::new(Code::Invalid, message).remedy(format!("`{flag}` asks no question")).into())
}

/// Whether there is somebody at a terminal.
pub(crate) fn can_be_asked() -> bool {
    terminal::stdin_is_terminal() && terminal::stderr_is_terminal()
}

/// As [`agreed`], while other work goes on and signals are heard.
///
/// # Errors
/// When the answer cannot be read.
pub(crate) async fn agreed_meanwhile(context: &Context, what: &str) -> Result<bool, Failure> {
    let (tell, answer) = oneshot::channel();
    context.progress.suspend(|| out::stderr(&format!("{what}\n")));
    // It may stay in read(2) until the process ends, which does not wait for it.
    let ask = move || drop(tell.send(answered()));
    std::thread::Builder::new()
        .name("question".to_owned())
        .spawn(ask)
        .map_err(|error| Problem::new(Code::Internal, "cannot start a thread").cause(&error))?;
    answer.await.unwrap_or(Ok(false))
}

/// Says what is about to happen, and asks whether it may.
///
/// # Errors
/// When the answer cannot be read.
pub(crate) fn agreed(what: &str) -> Result<bool, Failure> {
    out::stderr(&format!("{what}\n"));
    answered()
}

fn answered() -> Result<bool, Failure> {
    out::stderr("go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Problem::new(Code::Internal, "cannot read the answer").cause(&error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
