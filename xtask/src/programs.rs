//! The only file of xtask that starts programs.
//!
//! A program that works has stdout and stderr joined in one pipe, so that the log has its lines in their order; a
//! program that is asked something has its stdout kept.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use crate::failure::Failure;
use crate::log::Log;

/// Where Debian keeps what an ordinary user has not in PATH.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A program, its arguments and what its environment has more than ours.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
}

/// Finds a program as a shell would, and in the system's folders.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_FOLDERS.map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

impl Call {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            folder: None,
        }
    }

    /// The cargo that runs us.
    pub(crate) fn cargo() -> Self {
        Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    pub(crate) fn in_folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// As one would type it.
    pub(crate) fn shown(&self) -> String {
        let program = Path::new(&self.program);
        let name = if program.file_name() == Some(OsStr::new("cargo")) {
            OsStr::new("cargo")
        } else {
            program.as_os_str()
        };
        std::iter::once(name)
            .chain(self.arguments.iter().map(OsString::as_os_str))
            .map(|word| word.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Whether it ends well. What it says is not looked at.
    pub(crate) fn succeeds(&self) -> bool {
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// What it prints on stdout.
    pub(crate) fn output(&self) -> Result<String, Failure> {
        let output = self
            .command()
            .stdin(Stdio::null())
            .output()
            .map_err(|error| self.unstartable(&error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(self
            .failed(output.status)
            .because(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// Runs it to its end, with every line shown and kept.
    pub(crate) fn run(&self, log: &mut Log) -> Result<(), Failure> {
        self.watch(log, |_| {})
    }

    /// Runs it to its end, with every line shown, kept, and given to `see`.
    pub(crate) fn watch(&self, log: &mut Log, mut see: impl FnMut(&str)) -> Result<(), Failure> {
        log.line(&format!("$ {}", self.shown()));
        let (output, input) = io::pipe().map_err(|error| self.unstartable(&error))?;
        let mut command = self.command();
        let second = input.try_clone().map_err(|error| self.unstartable(&error))?;
        command.stdin(Stdio::null()).stdout(input).stderr(second);
        let mut child = command.spawn().map_err(|error| self.unstartable(&error))?;
        // It holds our copies of the pipe's writing end, without which the pipe would never end.
        drop(command);
        let mut lines = BufReader::new(output);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).map_err(|error| self.unstartable(&error))? > 0 {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']);
            log.line(text);
            see(text);
            line.clear();
        }
        let status = child.wait().map_err(|error| self.unstartable(&error))?;
        if status.success() { Ok(()) } else { Err(self.failed(status)) }
    }

    fn command(&self) -> Command {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place of xtask that starts programs"
        )]
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }

    fn unstartable(&self, error: &io::Error) -> Failure {
        Failure::new(format!("cannot run {}", self.shown())).cause(error)
    }

    fn failed(&self, status: ExitStatus) -> Failure {
        Failure::new(format!("{} ended with {status}", self.shown()))
    }
}
