//! Starts git, by absolute path and without a shell: the only file of this crate that starts programs.
//!
//! A repository may come from anybody, and its configuration names programs: hooks, a file watcher, filters, transports.
//! None is started. Hooks and the watcher are switched off by configuration that comes last and so wins; filters by their
//! names, where a command could run them ([`Git::without_filters`]); no transport is allowed, which also keeps a partial
//! clone from fetching what it lacks. What remains are plumbing commands that read objects and the index.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use banger_api::{Code, Problem};

const FOLDERS: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/bin"];

/// Git in one folder, with one environment.
#[derive(Debug, Clone)]
pub(crate) struct Git {
    folder: PathBuf,
    settings: Vec<(String, &'static str)>,
    environment: Vec<(&'static str, OsString)>,
}

impl Git {
    /// In `folder`, in whose repository git finds itself.
    pub(crate) fn at(folder: &Path) -> Self {
        let settings = [
            ("core.fsmonitor", "false"),
            ("core.hooksPath", "/dev/null"),
            ("core.quotePath", "false"),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
        ];
        let settings = settings.map(|(key, value)| (key.to_owned(), value)).to_vec();
        Self { folder: folder.to_owned(), settings, environment: Vec::new() }
    }

    /// With this repository, wherever it is found.
    pub(crate) fn with(mut self, key: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((key, value.as_ref().to_owned()));
        self
    }

    /// With these filters (gitattributes(5)) as if nobody had configured them.
    pub(crate) fn without_filters(mut self, names: &[String]) -> Self {
        for name in names {
            for part in ["clean", "smudge", "process"] {
                self.settings.push((format!("filter.{name}.{part}"), ""));
            }
            self.settings.push((format!("filter.{name}.required"), "false"));
        }
        self
    }

    /// Its stdout.
    ///
    /// # Errors
    /// When there is no git, or it ends with another status than 0: then what it said is the cause.
    pub(crate) fn run(&self, args: &[&OsStr], stdin: &[u8]) -> Result<Vec<u8>, Problem> {
        let failed = || {
            let words: Vec<_> = args.iter().map(|word| word.to_string_lossy()).collect();
            let place = self.folder.display();
            Problem::new(Code::Internal, format!("git {} failed in {place}", words.join(" ")))
        };
        let mut command = self.command()?;
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| failed().cause(&error))?;
        let mut input = child.stdin.take().expect("it is piped");
        let output = std::thread::scope(|scope| {
            // One that reads no more says by its status whether that is right.
            scope.spawn(move || drop(input.write_all(stdin)));
            child.wait_with_output()
        });
        let output = output.map_err(|error| failed().cause(&error))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(failed().because(if said.is_empty() { output.status.to_string() } else { said }))
    }

    /// As [`Self::run`], of words, with an empty stdin.
    pub(crate) fn ask(&self, args: &[&str]) -> Result<Vec<u8>, Problem> {
        self.run(&args.iter().map(OsStr::new).collect::<Vec<_>>(), b"")
    }

    /// As [`Self::ask`], for an answer of one line.
    pub(crate) fn line(&self, args: &[&str]) -> Result<String, Problem> {
        let answer = String::from_utf8_lossy(&self.ask(args)?).into_owned();
        Ok(answer.strip_suffix('\n').unwrap_or(&answer).to_owned())
    }

    /// As [`Self::run`], with a file as stdin.
    pub(crate) fn run_on(&self, args: &[&str], stdin: std::fs::File) -> Result<Vec<u8>, Problem> {
        let failed = || Problem::new(Code::Internal, format!("git {} failed", args.join(" ")));
        let mut command = self.command()?;
        command.args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = command.output().map_err(|error| failed().cause(&error))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(failed().because(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// `git cat-file --batch`: content after content, in the order of `oids`, to `each`.
    pub(crate) fn blobs(
        &self,
        oids: &[&str],
        mut each: impl FnMut(usize, u64, &mut dyn std::io::Read) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        use std::io::{BufRead, BufReader, Read};
        let failed = |why: String| {
            Problem::new(Code::Damaged, format!("cannot read objects of {}", self.folder.display()))
                .because(why)
        };
        let io = |error: std::io::Error| failed(error.to_string());
        let mut command = self.command()?;
        command.args(["cat-file", "--batch"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().map_err(io)?;
        let mut input = child.stdin.take().expect("it is piped");
        let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
        let asked: String = oids.iter().map(|oid| format!("{oid}\n")).collect();
        let done = std::thread::scope(|scope| {
            scope.spawn(move || drop(input.write_all(asked.as_bytes())));
            let mut read = || {
                for (index, oid) in oids.iter().enumerate() {
                    let mut line = String::new();
                    output.read_line(&mut line).map_err(io)?;
                    let size = line.trim_end().rsplit(' ').next().and_then(|n| n.parse().ok());
                    let size: u64 = size.ok_or_else(|| failed(format!("{oid}: {line:?}")))?;
                    let mut content = (&mut output).take(size);
                    each(index, size, &mut content)?;
                    std::io::copy(&mut content, &mut std::io::sink()).map_err(io)?;
                    output.read_exact(&mut [0]).map_err(io)?;
                }
                Ok(())
            };
            let done = read();
            // Its writer ends with it, read to the end or not.
            drop(output);
            done
        });
        child.wait().map_err(io)?;
        done
    }

    fn command(&self) -> Result<Command, Problem> {
        let found = FOLDERS.iter().map(|folder| Path::new(folder).join("git"));
        let program = found.into_iter().find(|path| path.is_file()).ok_or_else(|| {
            Problem::new(Code::Missing, "there is no git on this host")
                .because(format!("it is not in {}", FOLDERS.join(", ")))
                .remedy("install the package git")
        })?;
        #[expect(
            clippy::disallowed_methods,
            reason = "this file is where this crate starts programs"
        )]
        let mut command = Command::new(program);
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.as_bytes().starts_with(b"GIT_")) {
            command.env_remove(key);
        }
        command.current_dir(&self.folder).env("LC_ALL", "C");
        for (key, value) in [
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_ALLOW_PROTOCOL", "none"),
            ("GIT_LITERAL_PATHSPECS", "1"),
        ] {
            command.env(key, value);
        }
        command.env("GIT_CONFIG_COUNT", self.settings.len().to_string());
        for (index, (key, value)) in self.settings.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{index}"), key);
            command.env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        Ok(command)
    }
}
