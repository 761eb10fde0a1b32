//! The only file of xtask that starts programs.
//!
//! A program that works has stdout and stderr joined in one pipe, so that the log has its lines in their order; a
//! program that is asked something has its stdout kept; with one that is talked to, lines go both ways.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

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
    most: Option<Duration>,
    title: Option<String>,
}

/// How a program that worked came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Ended(ExitStatus),
    /// It said nothing for so long, and was killed.
    Silent(Duration),
}

impl End {
    pub(crate) fn is_good(self) -> bool {
        matches!(self, End::Ended(status) if status.success())
    }

    /// As a shell would tell it: 128 and the signal's number for a program that a signal ended.
    pub(crate) fn code(self) -> Option<i32> {
        match self {
            End::Ended(status) => status.code().or(status.signal().map(|signal| 128 + signal)),
            End::Silent(_) => None,
        }
    }
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
            most: None,
            title: None,
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

    /// Kills it when it says nothing for so long. Looked at while it is watched or listened to.
    pub(crate) fn silent_for(mut self, most: Duration) -> Self {
        self.most = Some(most);
        self
    }

    /// What it is to be shown as, if not as one would type it.
    pub(crate) fn titled(mut self, title: String) -> Self {
        self.title = Some(title);
        self
    }

    /// As one would type it.
    pub(crate) fn shown(&self) -> String {
        if let Some(title) = &self.title {
            return title.clone();
        }
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
            .failed(End::Ended(output.status))
            .because(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// Runs it to its end at our own stdin, stdout and stderr.
    pub(crate) fn at_our_terminal(&self) -> Result<End, Failure> {
        self.command().status().map(End::Ended).map_err(|error| self.unstartable(&error))
    }

    /// Runs it to its end, with every line shown and kept.
    pub(crate) fn run(&self, log: &mut Log) -> Result<(), Failure> {
        self.watch(log, |_| {})
    }

    /// Runs it to its end, with every line shown, kept, and given to `see`.
    pub(crate) fn watch(&self, log: &mut Log, mut see: impl FnMut(&str)) -> Result<(), Failure> {
        let end = self.listen(log, |line| {
            see(line);
            true
        })?;
        if end.is_good() { Ok(()) } else { Err(self.failed(end)) }
    }

    /// Runs it to its end, with every line given to `see`, which says whether it is to be shown and kept.
    pub(crate) fn listen(
        &self,
        log: &mut Log,
        mut see: impl FnMut(&str) -> bool,
    ) -> Result<End, Failure> {
        log.line(&format!("$ {}", self.shown()));
        let (output, input) = io::pipe().map_err(|error| self.unstartable(&error))?;
        let mut command = self.command();
        let second = input.try_clone().map_err(|error| self.unstartable(&error))?;
        command.stdin(Stdio::null()).stdout(input).stderr(second);
        let mut child = command.spawn().map_err(|error| self.unstartable(&error))?;
        // It holds our copies of the pipe's writing end, without which the pipe would never end.
        drop(command);
        let lines = lines_of(output);
        let mut last = Instant::now();
        loop {
            match hear(&lines, self.most.map(|most| last + most)) {
                Ok(line) => {
                    last = Instant::now();
                    if see(&line) {
                        log.line(&line);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                // Whoever else has the pipe may hold it for ever: nobody waits for its end.
                Err(RecvTimeoutError::Timeout) => {
                    drop(child.kill());
                    child.wait().map_err(|error| self.unstartable(&error))?;
                    return Ok(End::Silent(last.elapsed()));
                }
            }
        }
        child.wait().map(End::Ended).map_err(|error| self.unstartable(&error))
    }

    /// Starts it to be talked to. Its stderr goes to `errors`.
    pub(crate) fn talk(&self, errors: &Path) -> Result<Talk, Failure> {
        let unstartable = |error: &io::Error| self.unstartable(error);
        let errors = File::create(errors).map_err(|error| unstartable(&error))?;
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().map_err(|error| unstartable(&error))?;
        let input = child.stdin.take().expect("it was asked for");
        let lines = lines_of(child.stdout.take().expect("it was asked for"));
        Ok(Talk { child, input, lines })
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

    pub(crate) fn failed(&self, end: End) -> Failure {
        match end {
            End::Ended(status) => Failure::new(format!("{} ended with {status}", self.shown())),
            End::Silent(most) => {
                Failure::new(format!("{} said nothing for {} s", self.shown(), most.as_secs()))
            }
        }
    }
}

/// A program that runs beside us and takes and gives lines.
#[derive(Debug)]
pub(crate) struct Talk {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Talk {
    pub(crate) fn say(&mut self, line: &str) -> io::Result<()> {
        self.input.write_all(format!("{line}\n").as_bytes())
    }

    /// Its next line. `Disconnected` when it says no more, which is when it has ended.
    pub(crate) fn hear(&self, until: Instant) -> Result<String, RecvTimeoutError> {
        hear(&self.lines, Some(until))
    }

    /// Its end, by force if it has not ended.
    pub(crate) fn end(mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn hear(lines: &Receiver<String>, until: Option<Instant>) -> Result<String, RecvTimeoutError> {
    match until {
        None => lines.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Some(until) => lines.recv_timeout(until.saturating_duration_since(Instant::now())),
    }
}

/// The lines that come, read by a thread of their own: a read cannot have a deadline.
fn lines_of(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line);
            if sender.send(text.trim_end_matches(['\n', '\r']).to_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Call {
        Call::new("sh").args(["-c", script])
    }

    fn log() -> (tempfile::TempDir, Log) {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::create(folder.path(), "test").unwrap();
        (folder, log)
    }

    #[test]
    fn a_line_that_is_not_to_be_shown_is_seen_and_not_kept() {
        let (_folder, mut log) = log();
        let mut seen = Vec::new();
        let end = sh("echo one; echo two >&2; exit 3").listen(&mut log, |line| {
            seen.push(line.to_owned());
            line != "one"
        });
        assert_eq!(end.unwrap().code(), Some(3));
        assert_eq!(seen, ["one", "two"]);
        let kept = std::fs::read_to_string(log.path()).unwrap();
        assert_eq!(kept.lines().skip(1).collect::<Vec<_>>(), ["two"]);
    }

    #[test]
    fn a_program_that_says_nothing_is_killed_even_if_another_holds_its_pipe() {
        let (_folder, mut log) = log();
        let begun = Instant::now();
        let call =
            sh("sleep 30 & echo begun; exec sleep 30").silent_for(Duration::from_millis(300));
        let mut pid = String::new();
        let failure = call.watch(&mut log, |line| pid = line.to_owned()).unwrap_err();
        assert!(failure.to_string().contains("said nothing for"), "{failure}");
        assert_eq!(pid, "begun");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_program_that_is_talked_to_answers_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let mut talk = sh("while read line; do echo got $line; done")
            .talk(&folder.path().join("errors"))
            .unwrap();
        let soon = || Instant::now() + Duration::from_secs(10);
        talk.say("this").unwrap();
        assert_eq!(talk.hear(soon()).unwrap(), "got this");
        let now = Instant::now() + Duration::from_millis(20);
        assert_eq!(talk.hear(now), Err(RecvTimeoutError::Timeout));
        talk.end();
        let mut talk = sh("echo last").talk(&folder.path().join("errors")).unwrap();
        assert_eq!(talk.hear(soon()).unwrap(), "last");
        assert_eq!(talk.hear(soon()), Err(RecvTimeoutError::Disconnected));
        drop(talk.say("nobody reads this"));
        talk.end();
    }
}
