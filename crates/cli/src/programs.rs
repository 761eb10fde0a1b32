//! The CLI's one place that starts programs: the daemon, for `bench` what is measured, and for `system` systemd's tools.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use banger_api::{Code, Problem};

/// Where the system's programs are. The caller's PATH is not asked: what root runs must not depend on a user's shell.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

#[expect(clippy::disallowed_methods, reason = "this file is where this crate starts programs")]
pub(crate) fn new(program: &Path) -> Command {
    Command::new(program)
}

/// Runs a program of the system's to its end and gives its stdout.
///
/// # Errors
/// When it is not there, cannot be started, or ends with another status than 0 (then with its stderr).
pub(crate) fn run(name: &str, args: &[&str]) -> Result<String, Problem> {
    match find(name) {
        Some(program) => run_at(&program, args),
        None => Err(Problem::new(Code::Missing, format!("cannot run {name}"))
            .because(format!("it is not in {}", FOLDERS.join(", ")))),
    }
}

/// As [`run`], for a program whose path is known.
pub(crate) fn run_at(program: &Path, args: &[&str]) -> Result<String, Problem> {
    let failed = || {
        let line = format!("{} {}", program.display(), args.join(" "));
        Problem::new(Code::Internal, format!("cannot run {}", line.trim_end()))
    };
    // In C's words, which we may have to read.
    let output = new(program).args(args).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed().cause(&error))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = [text(&output.stdout), text(&output.stderr)].concat();
    let mut problem = failed().because(output.status.to_string());
    problem.causes.extend(Some(said.trim().to_owned()).filter(|said| !said.is_empty()));
    Err(problem)
}

pub(crate) fn find(name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// The folders where a program of ours may be: beside our own, and where a package or an installation has it, which is
/// `lib/banger` beside the `bin` that we are in.
pub(crate) fn folders_of_ours() -> io::Result<[PathBuf; 2]> {
    let own = std::env::current_exe()?;
    let beside = own.parent().ok_or(ErrorKind::InvalidFilename)?;
    let around = beside.parent().unwrap_or(beside);
    Ok([beside.to_owned(), around.join("lib/banger")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_says_its_status_and_its_words() {
        let problem = run("sh", &["-c", "echo out; echo err >&2; exit 3"]).unwrap_err();
        assert_eq!(problem.causes, ["exit status: 3", "out\nerr"]);
        assert_eq!(run("sh", &["-c", "echo out; echo err >&2"]).unwrap(), "out\n");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let problem = run("no-such-program", &[]).unwrap_err();
        assert!(problem.to_string().contains("no-such-program"), "{problem}");
    }
}
