//! Starts one jailed Firecracker with the ioctls and API calls that a VM of banger's needs, and nothing else: no ledger, no
//! helper, no checks, no undo beyond what the next round needs. `banger bench start` compares with it.
//!
//! stdin: a `StartPlan` of `banger_api::bench`. stdout, one line each, in microseconds since the first act:
//! `started N` when InstanceStart is answered, `ready N` when the guest's agent is.

mod devices;

use std::error::Error;
use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use banger_api::bench::StartPlan;
use banger_api::channel::{Line, LineFinder, VSOCK_PORT};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let plan: StartPlan = serde_json::from_reader(io::stdin())?;
    let disk = plan.state.join("vms").join(&plan.mark);
    fs::create_dir_all(&disk)?;
    let cow = fs::File::create(disk.join("disk.ext4"))?;
    cow.set_len(plan.cow_bytes)?;
    drop(cow);
    let begun = Instant::now();
    let mut bare = Bare::default();
    let outcome = bare.start(&plan, begun);
    let ended = bare.end(&plan);
    fs::remove_dir_all(&disk)?;
    outcome.and(ended)
}

#[derive(Default)]
struct Bare {
    loops: Vec<PathBuf>,
    vmm: Option<Child>,
}

impl Bare {
    fn start(&mut self, plan: &StartPlan, begun: Instant) -> Result<()> {
        let cgroup = cgroup(plan);
        let top = Path::new("/sys/fs/cgroup");
        fs::create_dir_all(top.join("banger"))?;
        for folder in [top.to_owned(), top.join("banger")] {
            fs::write(folder.join("cgroup.subtree_control"), "+memory +cpu +pids")?;
        }
        fs::create_dir(&cgroup)?;
        fs::write(cgroup.join("memory.max"), plan.memory_max_bytes.to_string())?;
        fs::write(
            cgroup.join("cpu.max"),
            format!("{} 100000", u64::from(plan.cpu_percent) * 1000),
        )?;
        fs::write(cgroup.join("pids.max"), plan.pids_max.to_string())?;

        let image = devices::attach(&plan.state.join(&plan.image), true)?;
        self.loops.push(image.clone());
        let cow = plan.state.join("vms").join(&plan.mark).join("disk.ext4");
        let written = devices::attach(&cow, false)?;
        self.loops.push(written.clone());
        let device = devices::snapshot(&plan.mark, &image, &written, plan.disk_bytes)?;
        nft(&["-j", "-f", "-"], &plan.rules.to_string())?;
        devices::bridge(&plan.bridge, plan.bridge_mac, plan.gateway, plan.prefix)?;
        devices::tap(&plan.mark, &plan.bridge, plan.uid)?;

        let jail = jail(plan);
        fs::create_dir_all(&jail)?;
        for (name, file) in &plan.files {
            fs::hard_link(plan.state.join(file), jail.join(name))?;
        }
        let node = jail.join("banger-root");
        devices::node(&node, device)?;
        chown(&node, Some(plan.uid), Some(plan.uid))?;

        let procs = fs::OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"))?;
        let uid = plan.uid.to_string();
        #[expect(
            clippy::disallowed_methods,
            reason = "this program starts the jailer and nft, and nothing else"
        )]
        let mut jailer = Command::new(&plan.jailer);
        jailer.args(["--id", &plan.mark, "--uid", &uid, "--gid", &uid, "--cgroup-version", "2"]);
        jailer.arg("--exec-file").arg(&plan.firecracker);
        jailer.arg("--chroot-base-dir").arg(&plan.jails);
        jailer.args(["--", "--api-sock", "/api.sock"]);
        jailer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        #[expect(
            unsafe_code,
            reason = "pre_exec is unsafe: only async-signal-safe calls between fork and exec"
        )]
        // SAFETY: write(2) is async-signal-safe (signal-safety(7)); the buffer is static.
        unsafe {
            jailer.pre_exec(move || {
                if libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) == 1 {
                    Ok(())
                } else {
                    Err(io::Error::last_os_error())
                }
            });
        }
        let born = devices::Births::watch(&jail)?;
        self.vmm = Some(jailer.spawn()?);
        let mut api = born.connect("api.sock")?;
        for request in &plan.requests {
            put(&mut api, &request.path, &request.body.to_string())?;
        }
        say("started", begun)?;

        let mut agent = UnixStream::connect(devices::short(&jail.join("agent.sock"))?)?;
        agent.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes())?;
        while byte(&mut agent)? != b'\n' {}
        let nonce = banger_api::ids::random_text(16)?;
        agent.write_all(&Line::Hello { nonce }.encode())?;
        let mut finder = LineFinder::default();
        while !matches!(finder.push(byte(&mut agent)?), Some(Line::Ready { .. })) {}
        say("ready", begun)?;
        Ok(())
    }

    /// Takes down what there is of it.
    fn end(&mut self, plan: &StartPlan) -> Result<()> {
        if let Some(vmm) = &mut self.vmm {
            vmm.kill()?;
            vmm.wait()?;
        }
        drop(fs::remove_dir_all(plan.jails.join("firecracker").join(&plan.mark)));
        devices::untap(&plan.mark, &plan.bridge)?;
        nft(&["-f", "-"], &plan.no_rules)?;
        devices::unsnapshot(&plan.mark)?;
        for device in &self.loops {
            devices::detach(device)?;
        }
        drop(fs::remove_dir(cgroup(plan)));
        Ok(())
    }
}

fn nft(args: &[&str], input: &str) -> Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "there is no other way to nftables as plain as this"
    )]
    let mut nft = Command::new("nft");
    let mut child = nft.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    child.stdin.take().ok_or("nft has no stdin")?.write_all(input.as_bytes())?;
    match child.wait()?.success() {
        true => Ok(()),
        false => Err(format!("nft does not take {input}").into()),
    }
}

fn cgroup(plan: &StartPlan) -> PathBuf {
    Path::new("/sys/fs/cgroup/banger").join(&plan.mark)
}

fn jail(plan: &StartPlan) -> PathBuf {
    plan.jails.join("firecracker").join(&plan.mark).join("root")
}

fn say(what: &str, begun: Instant) -> io::Result<()> {
    writeln!(io::stdout(), "{what} {}", begun.elapsed().as_micros())
}

fn byte(stream: &mut UnixStream) -> io::Result<u8> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// One request of the API; its answer is 204 without a body.
fn put(api: &mut UnixStream, path: &str, body: &str) -> Result<()> {
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    api.write_all(format!("{head}{body}").as_bytes())?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(byte(api)?);
    }
    if answer.starts_with(b"HTTP/1.1 204") {
        return Ok(());
    }
    Err(format!("{path}: {}", String::from_utf8_lossy(&answer)).into())
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}
