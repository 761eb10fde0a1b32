//! The flags that say how a command runs in a guest, for `run` and `exec`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use banger_api::exec::{Start, TerminalSize, Word};
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::terminal;

/// What a terminal has that does not say its size.
pub(crate) const USUAL_SIZE: TerminalSize = TerminalSize { rows: 24, columns: 80 };

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The command")]
pub(crate) struct Flags {
    /// Give it a terminal, even if stdin or stdout is none
    #[arg(short = 't', long, conflicts_with = "no_tty")]
    tty: bool,
    /// Give it no terminal, even if stdin and stdout are one
    #[arg(short = 'T', long)]
    no_tty: bool,
    /// Let it read an empty stdin instead of ours, as loops over lines need it
    #[arg(short = 'n', long, conflicts_with = "interactive")]
    no_stdin: bool,
    /// Taken and ignored where stdin is passed on anyhow; a job keeps its stdin open for who attaches
    #[arg(short, long, hide = true)]
    interactive: bool,
    /// A variable of its environment; KEY alone takes the value from ours
    #[arg(short, long, value_name = "KEY[=VALUE]", value_parser = OsStringValueParser::new().try_map(variable))]
    env: Vec<(Word, Word)>,
    /// The folder it starts in; the image's if it names one, else the user's home
    #[arg(short, long, value_name = "FOLDER", value_parser = OsStringValueParser::new().map(word))]
    workdir: Option<Word>,
    /// The user it runs as: NAME, UID, NAME:GROUP or UID:GID; the image's if it names one, else root
    #[arg(short, long)]
    user: Option<String>,
}

impl Flags {
    /// Has it a terminal? If nobody says, it has one when we have one in both directions.
    fn has_terminal(&self) -> bool {
        self.tty
            || (!self.no_tty
                && !self.no_stdin
                && terminal::stdin_is_terminal()
                && terminal::stdout_is_terminal())
    }

    /// For a command that nobody is there for: a terminal and stdin only if they are asked for.
    pub(crate) fn job(mut self, argv: Vec<OsString>, timeout_ms: Option<u64>) -> Start {
        self.no_tty |= !self.tty;
        let no_stdin = self.no_stdin || !(self.tty || self.interactive);
        Start { no_stdin, ..self.start(argv, timeout_ms) }
    }

    /// Begins in this folder, unless another was given, or a user who may not enter it.
    pub(crate) fn in_folder(self, folder: &str) -> Self {
        let is_open = self.workdir.is_none() && self.user.is_none();
        Self { workdir: if is_open { Word::new(folder).ok() } else { self.workdir }, ..self }
    }

    pub(crate) fn start(self, argv: Vec<OsString>, timeout_ms: Option<u64>) -> Start {
        let tty = self.has_terminal().then(|| terminal::size().unwrap_or(USUAL_SIZE));
        let mut env = Vec::new();
        // First, so that `-e TERM=…` has the last word.
        if let (Some(_), Some(term)) = (tty, std::env::var_os("TERM")) {
            env.push((word("TERM".into()), word(term)));
        }
        env.extend(self.env);
        Start {
            argv: argv.into_iter().map(word).collect(),
            env,
            cwd: self.workdir,
            user: self.user,
            tty,
            no_stdin: self.no_stdin,
            timeout_ms,
        }
    }
}

fn variable(text: OsString) -> Result<(Word, Word), String> {
    let bytes = text.into_vec();
    let (key, value) = match bytes.iter().position(|&byte| byte == b'=') {
        Some(end) => (bytes[..end].to_vec(), Some(bytes[end + 1..].to_vec())),
        None => (bytes, None),
    };
    if key.is_empty() {
        return Err("a variable has a name before the =".to_owned());
    }
    let key = OsString::from_vec(key);
    let value = match value {
        Some(value) => OsString::from_vec(value),
        None => std::env::var_os(&key)
            .ok_or_else(|| format!("{} is not set here: write {0}=VALUE", key.to_string_lossy()))?,
    };
    Ok((word(key), word(value)))
}

fn word(text: OsString) -> Word {
    Word::new(text.into_vec())
        .expect("arguments and variables are NUL-terminated, so none holds a NUL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_cut_at_its_first_equals_sign() {
        let (key, value) = variable("A=b=c".into()).unwrap();
        assert_eq!((key.as_bytes(), value.as_bytes()), (&b"A"[..], &b"b=c"[..]));
        let (_, empty) = variable("A=".into()).unwrap();
        assert_eq!(empty.as_bytes(), b"");
    }

    #[test]
    fn a_name_alone_takes_our_value_and_is_refused_when_there_is_none() {
        let (_, value) = variable("PATH".into()).unwrap();
        assert_eq!(value.as_bytes(), std::env::var_os("PATH").unwrap().into_vec());
        assert_eq!(
            variable("NO_SUCH_VARIABLE".into()).unwrap_err(),
            "NO_SUCH_VARIABLE is not set here: write NO_SUCH_VARIABLE=VALUE"
        );
        assert!(variable("=x".into()).is_err());
    }
}
