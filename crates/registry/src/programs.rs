//! Credential helpers, Docker's programs that keep passwords elsewhere: the only file of this crate that starts any. The
//! protocol is docker-credential-helpers': `docker-credential-NAME get`, the server on stdin, JSON on stdout.
//!
//! The program is started by its absolute path, without a shell, in a process group of its own, and killed with it when
//! its deadline passes. What it writes is kept to itself: it may be a secret.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

/// More than any answer has.
const LARGEST_OUTPUT: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    #[error("there is no {0} in PATH")]
    Absent(String),
    #[error("cannot start {program}")]
    Start {
        program: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("cannot talk with {program}")]
    Pipe {
        program: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{program} ended with {status}: {message}")]
    Failed { program: PathBuf, status: std::process::ExitStatus, message: String },
    #[error("{program} was not done after {} s and was killed", deadline.as_secs())]
    Deadline { program: PathBuf, deadline: Duration },
    #[error("{program} wrote more than {LARGEST_OUTPUT} bytes")]
    Output { program: PathBuf },
}

/// What the helper says about that server; `None` when it knows no credentials for it.
///
/// # Errors
/// When the helper cannot be started, fails, or is not done in time.
pub(crate) async fn get_credentials(
    helper: &str,
    server: &str,
    path: &OsStr,
    home: Option<&Path>,
    deadline: Duration,
) -> Result<Option<Vec<u8>>, HelperError> {
    let name = format!("docker-credential-{helper}");
    let program = find(&name, path).ok_or(HelperError::Absent(name))?;
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place of this crate that starts programs"
    )]
    let mut command = Command::new(&program);
    command.arg("get").process_group(0).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(home) = home {
        command.env("HOME", home);
    }
    command.env("PATH", path);
    let mut child =
        command.spawn().map_err(|cause| HelperError::Start { program: program.clone(), cause })?;
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Ok(answered) = tokio::time::timeout(deadline, converse(&mut child, server)).await {
        let (output, errors) =
            answered.map_err(|cause| HelperError::Pipe { program: program.clone(), cause })?;
        if output.len() as u64 > LARGEST_OUTPUT {
            return Err(HelperError::Output { program });
        }
        let status = child
            .wait()
            .await
            .map_err(|cause| HelperError::Pipe { program: program.clone(), cause })?;
        return judge(program, status, output, &errors);
    }
    if let Some(group) = group
        && let Err(errno) = kill_process_group(group, Signal::KILL)
        && errno != rustix::io::Errno::SRCH
    {
        return Err(HelperError::Pipe { program, cause: errno.into() });
    }
    child.wait().await.map_err(|cause| HelperError::Pipe { program: program.clone(), cause })?;
    Err(HelperError::Deadline { program, deadline })
}

/// Asks, and reads both answers to their ends.
async fn converse(child: &mut Child, server: &str) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let ask = async {
        if let Some(mut stdin) = stdin {
            match stdin.write_all(server.as_bytes()).await {
                // It need not read; what it says counts.
                Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => return Err(cause),
                _ => {}
            }
        }
        Ok(())
    };
    let ((), output, errors) = tokio::try_join!(ask, read(stdout), read(stderr))?;
    Ok((output, errors))
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(LARGEST_OUTPUT + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn judge(
    program: PathBuf,
    status: std::process::ExitStatus,
    output: Vec<u8>,
    errors: &[u8],
) -> Result<Option<Vec<u8>>, HelperError> {
    if status.success() {
        return Ok(Some(output));
    }
    // By the protocol a failure is told on stdout.
    let said = String::from_utf8_lossy(&output).trim().to_owned();
    if said.contains("credentials not found in native keychain") {
        return Ok(None);
    }
    let said =
        if said.is_empty() { String::from_utf8_lossy(errors).trim().to_owned() } else { said };
    // An answer with credentials is JSON; a message is not.
    let message = if said.is_empty() || said.contains('{') {
        "it did not say why".to_owned()
    } else {
        said.lines().next().unwrap_or_default().chars().take(200).collect()
    };
    Err(HelperError::Failed { program, status, message })
}

/// The program of that name, in the absolute folders of `path`.
fn find(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path).filter(|folder| folder.is_absolute()).find_map(|folder| {
        let program = folder.join(name);
        let found = program.metadata().ok()?;
        (found.is_file() && found.permissions().mode() & 0o111 != 0).then_some(program)
    })
}
