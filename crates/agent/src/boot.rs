//! PID 1 of the initramfs, up to the moment when it becomes the image's init, or goes on as PID 1 itself.
//!
//! ```text
//! /init ── modules, disks, root, network, names ──┬── starts @banger-agent (serves the host; outlives the init's shutdown)
//!                                                 └── becomes the image's init, or pid1.rs if there is none
//! ```
//!
//! Whatever fails here is fatal: a line on the console, then the machine goes off.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::Path;
use std::{fs, io};

use banger_api::GuestNet;

use crate::cmdline::{Channel, Cmdline, UnknownValue};
use crate::loopback::{self, LoopbackError};
use crate::modules::{self, ModuleError};
use crate::mounts::{self, MountError};
use crate::names::{self, NameError};
use crate::pid1::{self, Pid1Error};
use crate::root::{self, RootError};
use crate::spawn::{self, Inheritance};
use crate::uevents::Uevents;
use crate::vsock::{self, VsockError};
use crate::{console, network, shutdown};

#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("cannot mount the kernel's file systems")]
    KernelFileSystems(#[from] MountError),
    #[error("cannot read the kernel's command line")]
    ReadCmdline(#[source] io::Error),
    #[error("the kernel's command line does not fit")]
    Cmdline(#[from] UnknownValue),
    #[error("cannot listen for devices")]
    Uevents(#[source] io::Error),
    #[error("cannot load the kernel modules that the boot needs")]
    Module(#[from] ModuleError),
    #[error("cannot build the root")]
    Root(#[from] RootError),
    #[error("the host cannot reach this guest")]
    Vsock(#[from] VsockError),
    #[error("cannot start the agent's server")]
    Server(#[source] io::Error),
    #[error("cannot run the image's init {path}")]
    Init {
        path: String,
        #[source]
        cause: io::Error,
    },
    #[error("cannot go on as PID 1")]
    Pid1(#[from] Pid1Error),
}

pub(crate) fn run() -> ! {
    let Err(error) = boot();
    console::say_error(&error);
    shutdown::off(shutdown::End::PowerOff)
}

fn boot() -> Result<Infallible, BootError> {
    mounts::kernel_file_systems()?;
    let cmdline = fs::read_to_string("/proc/cmdline").map_err(BootError::ReadCmdline)?;
    let cmdline = Cmdline::parse(&cmdline)?;
    let uevents = Uevents::listen().map_err(BootError::Uevents)?;
    let modules = modules::folder();
    if let Some(folder) = &modules {
        modules::load_boot(folder)?;
    }
    root::assemble(&cmdline, &uevents)?;
    root::enter()?;
    let listener = match cmdline.channel {
        Channel::Serial => None,
        Channel::Vsock => Some(vsock::open(modules.as_ref())?),
    };
    // After vsock, which has to do something before what is loaded here.
    let net = cmdline.net.filter(|net| network::set_up(net, modules.as_ref(), &uevents));
    name_guest(cmdline.name.as_deref(), net.as_ref());
    let inheritance = Inheritance { modules, listener };
    match image_init(&cmdline.init) {
        Some(init) => become_init(init, inheritance),
        // What the server inherits stays here too, for the next one: its listener does not miss a host meanwhile.
        None => Ok(pid1::run(|| spawn::server("agent", &inheritance))?),
    }
}

/// A guest without its name is odd but whole.
fn name_guest(name: Option<&str>, net: Option<&GuestNet>) {
    let done: [Result<(), Box<dyn std::error::Error>>; 2] = [
        names::set(name, net).map_err(|error: NameError| error.into()),
        loopback::up().map_err(|error: LoopbackError| error.into()),
    ];
    for error in done.into_iter().filter_map(Result::err) {
        console::say_error(error.as_ref());
    }
}

/// The init to run, if the image has it and is to run it. Absolute symlinks are right by now: we are in the new root.
fn image_init(wanted: &str) -> Option<&str> {
    (wanted != "agent" && Path::new(wanted).exists()).then_some(wanted)
}

fn become_init(init: &str, inheritance: Inheritance) -> Result<Infallible, BootError> {
    spawn::server(init, &inheritance).map_err(BootError::Server)?;
    drop(inheritance);
    // What the kernel did not know on its command line it gave to us; it is meant for the init.
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let cause = spawn::replace_by(Path::new(init), &arguments);
    Err(BootError::Init { path: init.to_owned(), cause })
}
