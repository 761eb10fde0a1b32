//! The user's terminal: its size, its raw mode, and the way back from raw mode.
//!
//! Every way out of the program passes [`restore`]: the end of `main`, a signal (which the session turns into its
//! end), and a panic (by the hook that [`raw`] installs). Nothing here relies on Drop.

use std::io;
use std::sync::{Mutex, Once};

use banger_api::exec::TerminalSize;
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// How stdin's terminal was before [`raw`]; `None` while it is so.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

pub(crate) fn stdin_is_terminal() -> bool {
    isatty(stdin())
}

pub(crate) fn stdout_is_terminal() -> bool {
    isatty(stdout())
}

pub(crate) fn stderr_is_terminal() -> bool {
    isatty(stderr())
}

/// <https://no-color.org>: any value but the empty one says no.
pub(crate) fn stderr_has_colour() -> bool {
    stderr_is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

/// The size of whichever of stdin, stdout and stderr is a terminal.
pub(crate) fn size() -> Option<TerminalSize> {
    [stdin(), stdout(), stderr()].into_iter().find_map(|fd| {
        let size = tcgetwinsize(fd).ok()?;
        // A terminal that was never told its size says 0 by 0.
        (size.ws_row > 0 && size.ws_col > 0)
            .then_some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
    })
}

/// Columns of stdout's terminal, if it is one.
pub(crate) fn stdout_columns() -> Option<u16> {
    tcgetwinsize(stdout()).ok().map(|size| size.ws_col).filter(|&columns| columns > 0)
}

/// Sets stdin's terminal to raw mode: every key goes to the guest, none is a signal here. Again is fine.
pub(crate) fn raw() -> io::Result<()> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            before(panic);
        }));
    });
    let mut before = BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let now = tcgetattr(stdin())?;
    let mut raw = before.as_ref().unwrap_or(&now).clone();
    before.get_or_insert(now);
    raw.make_raw();
    tcsetattr(stdin(), OptionalActions::Now, &raw)?;
    Ok(())
}

/// Brings stdin's terminal back to what it was before [`raw`]; nothing if it was never changed.
pub(crate) fn restore() {
    let mut before = BEFORE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(termios) = before.take() {
        // A terminal that has gone needs no restoring.
        tcsetattr(stdin(), OptionalActions::Now, &termios).ok();
    }
}
