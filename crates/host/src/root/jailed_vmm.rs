//! Firecracker in its jailer: in the VM's cgroup, its root the VM's jail, its user the VM's own, no capability, seccomp on.
//! Found and ended by its cgroup.
//!
//! The jailer is told of no cgroup and leaves the process in the one where it begins. It executes Firecracker in its own
//! place, so the process that is started here is the VMM.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fstat, openat};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use super::{API_SOCKET, RootPlaces, beneath, cgroup, jail, trusted_program};
use crate::Held;
use crate::awaited::{Awaited, DEADLINE};
use crate::command::Detached;
use crate::error::HostError;
use crate::mark::{Installation, Mark};
use crate::process::{Children, Watched};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailedVmm {
    pub mark: Mark,
    pub uid: u32,
    /// As [`crate::Vmm::log_limit_bytes`].
    pub log_limit_bytes: u64,
}

pub(super) fn acquire(
    vmm: &JailedVmm,
    places: &RootPlaces,
    console: Option<OwnedFd>,
    children: &Children,
) -> Result<(), HostError> {
    let failed = |e| HostError::new(format!("start Firecracker for VM {}", vmm.mark), e);
    if let Some(alive) = watch(&vmm.mark)? {
        // Its starter may have died before it served.
        let socket = jail::root(&vmm.mark, places).and_then(Awaited::in_folder);
        return socket.and_then(|socket| socket.wait(API_SOCKET, &alive, DEADLINE)).map_err(failed);
    }
    let console = console.ok_or_else(|| failed(io::Error::other("it has nowhere to write to")))?;
    let console = lasting(&console).map_err(failed)?;
    let programs = &places.firecracker;
    trusted_program(&programs.jailer)?;
    trusted_program(&programs.firecracker)?;
    if programs.firecracker.file_name().is_none_or(|name| name != jail::PROGRAM) {
        let said = format!("{} is not named {}", programs.firecracker.display(), jail::PROGRAM);
        return Err(failed(io::Error::other(said)));
    }
    let entrance = cgroup::entrance(&vmm.mark)?;
    let socket = jail::clear(&vmm.mark, places).and_then(Awaited::in_folder).map_err(failed)?;
    let jailer = Detached {
        program: &programs.jailer,
        argv0: "jailer",
        args: &arguments(vmm, places),
        stdin: Stdio::null(),
        stdout: console.try_clone().map_err(failed)?.into(),
        stderr: console.into(),
        fds: Vec::new(),
        first_fd: crate::VMM_FIRST_FD,
        confined: Some(entrance),
    };
    let mut child = jailer.spawn().map_err(failed)?;
    let served = served(&child, &socket);
    let ended = served.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::UnexpectedEof);
    // Reaped here, to tell how it has ended, or later.
    let status = if ended { child.wait().ok() } else { None };
    if status.is_none() {
        children.add(&child).map_err(failed)?;
    }
    served.map_err(|error| match status {
        Some(status) => failed(io::Error::other(format!(
            "it has ended ({status}) before it served; the VM's log has its words"
        ))),
        None => failed(error),
    })
}

/// Ends whatever runs in the VM's cgroup, which stays.
pub(super) fn release(mark: &Mark, children: &Children) -> Result<(), HostError> {
    let ended = cgroup::end_processes(mark);
    children.reap();
    ended.map_err(|e| HostError::new(format!("end Firecracker of VM {mark}"), e))
}

pub(super) fn list(installation: &Installation) -> Result<Vec<Held>, HostError> {
    let mut held = Vec::new();
    for mark in cgroup::marks(installation)? {
        let populated = cgroup::is_populated(&mark);
        if populated.map_err(|e| HostError::new(format!("look for processes of VM {mark}"), e))? {
            held.push(Held::JailedVmm { mark });
        }
    }
    Ok(held)
}

pub(super) fn watch(mark: &Mark) -> Result<Option<Watched>, HostError> {
    let found = cgroup::processes(mark)
        .map_err(|e| HostError::new(format!("look for Firecracker of VM {mark}"), e))?;
    Ok(found.into_iter().next())
}

pub(super) fn signal(mark: &Mark, signal: Signal) -> Result<(), HostError> {
    let failed = |e| HostError::new(format!("signal Firecracker of VM {mark}"), e);
    for process in cgroup::processes(mark).map_err(failed)? {
        process.signal(signal).map_err(failed)?;
    }
    Ok(())
}

/// The same pipe, opened for reading too: then it has a reader for as long as the VMM lives. Firecracker 1.12 stops
/// answering, and its guest stops, when it writes to a pipe without a reader, as after the end of its log's process. What
/// does not fit the pipe any more it drops.
fn lasting(console: &OwnedFd) -> io::Result<OwnedFd> {
    // Root could open what whoever gave it could not: so it must be a pipe that they can write to.
    if FileType::from_raw_mode(fstat(console)?.st_mode) != FileType::Fifo {
        return Err(io::Error::other("what it is to write to is no pipe"));
    }
    if !fcntl_getfl(console)?.intersects(OFlags::WRONLY | OFlags::RDWR) {
        return Err(io::Error::other("the pipe that it is to write to is not open for that"));
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    Ok(openat(CWD, beneath::by_fd(console), flags, Mode::empty())?)
}

fn arguments(vmm: &JailedVmm, places: &RootPlaces) -> Vec<String> {
    let text = |path: &std::path::Path| path.display().to_string();
    let (uid, mark) = (vmm.uid.to_string(), vmm.mark.to_string());
    let (program, jails) = (text(&places.firecracker.firecracker), text(&places.jails));
    let socket = format!("/{API_SOCKET}");
    let arguments: [&str; 15] = [
        "--id",
        &mark,
        "--exec-file",
        &program,
        "--uid",
        &uid,
        "--gid",
        &uid,
        "--chroot-base-dir",
        &jails,
        "--",
        "--api-sock",
        &socket,
        // The console of the guest is on the same stdout; at `Warning` every start says something.
        "--level",
        "Error",
    ];
    arguments.map(str::to_owned).to_vec()
}

fn served(child: &Child, socket: &Awaited) -> io::Result<()> {
    let ended = || io::Error::from(io::ErrorKind::UnexpectedEof);
    // Not reaped yet, so the number is still its own.
    let process = Watched::open(Pid::from_child(child))?.ok_or_else(ended)?;
    socket.wait(API_SOCKET, &process, DEADLINE)
}
