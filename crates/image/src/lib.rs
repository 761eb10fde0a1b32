//! Kernels and root filesystems, made from files that nobody vouches for: a kernel package becomes a vmlinux and the
//! archive of the modules that a guest needs, a tar becomes an ext4 image, a Debian release becomes such a tar.
//!
//! Everything is written under a temporary name beside its place and renamed when it is whole ([`artifact`]). Works as
//! an ordinary user. Never opens a socket, never records anything: results are returned, who called keeps them.

mod apt;
pub mod artifact;
mod bzimage;
mod compression;
mod cpio;
mod deb;
pub mod debian;
mod ext4;
mod initramfs;
mod kernel;
mod listing;
mod modules;
mod posix_acl;
mod programs;
pub mod rootfs;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod oddities;

pub use apt::AptError;
pub use artifact::ArtifactError;
pub use debian::{DebianError, build_debian};
pub use initramfs::{InitramfsError, write_initramfs};
pub use kernel::{ImportedKernel, KernelError, import_kernel, import_kernel_from_apt};
pub use programs::{MARK_VARIABLE, ProgramError, mark as mark_programs};
pub use rootfs::{ImportedRootfs, RootfsError, import_rootfs};

/// What an import tells while it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// A stage begins; the one before has ended. `name` is stable, `text` is for people.
    Stage { name: &'static str, text: &'a str },
    /// Bytes of the present stage. `total` is 0 when nobody knows.
    Bytes { done: u64, total: u64 },
    /// A line of a program that works for us.
    Line(&'a str),
}

/// Who listens to the progress; called from several threads.
pub type Watch<'a> = &'a (dyn Fn(Progress<'_>) + Sync);

/// What kind of trouble an error is, for whoever maps it to a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The input is not what it should be.
    Input,
    /// The host lacks a program, a list, a permission.
    Missing,
    NoSpace,
    Timeout,
    /// A failure of the host, or a defect.
    Host,
}
