//! The language in which tests of the whole program are written: first the world, then the act, then what is seen.
//!
//! ```text
//! in_world(|world| {
//!     world.banger(["vm", "run", "--rm", "--", "uname", "-r"]).succeeds().prints("cloud-amd64");
//! });
//! ```
//! A world is a banger of its own: its own folders, daemon and installation, with a kernel and images that were made
//! once. When the test's body is done, the world asserts that nothing of it is left on the host, whatever the test was
//! about; when the body panics, the world is taken down and its logs are shown.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "a failed test says where to look")]

mod backend;
mod guests;
mod installed;
mod network;
mod nobody;
mod outcome;
mod processes;
mod programs;
mod registry;
mod template;
mod terminal;
mod world;

pub use backend::{Backend, firecracker_folder};
pub use guests::{echo, echoing, told};
pub use installed::{
    Installed, as_root, as_user, installed, installed_before, installed_for_later,
};
pub use network::Outside;
pub use nobody::Nobody;
pub use outcome::Outcome;
pub use processes::{pids_named, processes_marked, wait_until};
pub use programs::{built, run};
pub use registry::{Registry, write_layout};
pub use template::{busybox_layer, busybox_tar, home as template_home};
pub use terminal::Terminal;
pub use world::{Background, Claim, World, in_world, in_world_at, in_world_with_archive};

/// Name of the image that boots to systemd: the default one.
pub const SYSTEMD: &str = "debian:bookworm";
/// Name of an image that holds busybox and no init: the agent does an init's duty.
pub const BUSYBOX: &str = "busybox";
/// Name of an image whose init ends at once, which makes its kernel panic.
pub const PANICKING: &str = "panicking";
