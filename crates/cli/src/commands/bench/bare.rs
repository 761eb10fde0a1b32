//! The VMM alone: the same program, kernel, initramfs and disk as banger's, without banger.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use banger_api::bench::BootPlan;
use banger_api::channel::{Line, LineFinder};
use banger_api::{Code, Problem};
use command_fds::{CommandFdExt, FdMapping};

use crate::programs;

/// Where the VMM finds its listening socket.
const AGENT_FD: i32 = 3;

/// Boots it once, in `folder`; the time from the VMM's start to the agent's READY.
pub(crate) fn boot(
    plan: &BootPlan,
    folder: &Path,
    deadline: Duration,
) -> Result<Duration, Problem> {
    fs::create_dir_all(folder).map_err(|e| failed("make a folder", &e))?;
    let disk = folder.join("disk");
    copy_sparse(&plan.disk, &disk, plan.disk_bytes).map_err(|e| failed("copy the disk", &e))?;
    let socket = folder.join("agent");
    drop(fs::remove_file(&socket));
    let listener = UnixListener::bind(&socket).map_err(|e| failed("listen", &e))?;
    let begun = Instant::now();
    let mut vmm = start(plan, &disk, listener, folder).map_err(|e| failed("start the VMM", &e))?;
    let ready = await_ready(&socket, begun + deadline);
    let took = begun.elapsed();
    let ended = vmm.kill().and_then(|()| vmm.wait());
    let removed = fs::remove_dir_all(folder);
    ready.map_err(|e| failed("boot the bare VMM to its agent", &e))?;
    ended.map(drop).and(removed).map_err(|e| failed("clean up", &e))?;
    Ok(took)
}

fn start(plan: &BootPlan, disk: &Path, agent: UnixListener, folder: &Path) -> io::Result<Child> {
    let disk = disk.to_string_lossy();
    let console = File::create(folder.join("console"))?;
    let program =
        ["/usr/bin", "/usr/local/bin"].iter().map(|place| Path::new(place).join(&plan.program));
    let program = program.into_iter().find(|path| path.exists()).ok_or(io::ErrorKind::NotFound)?;
    let mut command = programs::new(&program);
    for arg in &plan.args {
        let arg = arg.replace("path=AGENT", &format!("fd={AGENT_FD}"));
        command.arg(arg.replace("file.filename=DISK", &format!("file.filename={disk}")));
    }
    command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
    let mapping = FdMapping { parent_fd: agent.into(), child_fd: AGENT_FD };
    command.fd_mappings(vec![mapping]).map_err(io::Error::other)?;
    command.spawn()
}

/// The daemon's part of the handshake (`banger_api::channel`), as far as READY.
fn await_ready(socket: &Path, end: Instant) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    let nonce = banger_api::ids::random_text(16)?;
    stream.write_all(&Line::Hello { nonce: nonce.clone() }.encode())?;
    let mut finder = LineFinder::default();
    let mut byte = [0];
    loop {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        stream.read_exact(&mut byte)?;
        if matches!(finder.push(byte[0]), Some(Line::Ready { nonce: theirs, .. }) if theirs == nonce)
        {
            return Ok(());
        }
    }
}

/// Copies what is allocated and leaves the holes.
fn copy_sparse(from: &Path, to: &Path, length: u64) -> io::Result<()> {
    use std::io::{Seek, SeekFrom, copy};
    let mut source = File::open(from)?;
    let mut target = File::create(to)?;
    target.set_len(length)?;
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(start))?;
        source.seek(SeekFrom::Start(start))?;
        target.seek(SeekFrom::Start(start))?;
        copy(&mut (&mut source).take(end - start), &mut target)?;
        at = end;
    }
    Ok(())
}

fn failed(act: &str, error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::new(Code::Internal, format!("cannot {act} for the measurement")).cause(error)
}
