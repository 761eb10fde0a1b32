//! Kernels and root filesystems, made from files that nobody vouches for: a kernel package becomes a vmlinux and the
//! archive of the modules that a guest needs, the layers of an image become an ext4 image, a Debian release becomes a tar,
//! which is an image of one layer.
//!
//! Everything is written under a temporary name beside its place and renamed when it is whole ([`artifact`]). Works as
//! an ordinary user. Never opens a socket, never records anything: results are returned, who called keeps them.

#![expect(unexpected_cfgs, reason = "cargo-fuzz sets `fuzzing`, and cargo does not know that")]

mod apt;
pub mod artifact;
mod assemble;
mod bzimage;
pub mod catalog;
mod compression;
mod cpio;
mod deb;
pub mod debian;
mod dockerfile;
mod export;
mod filesystem;
mod initramfs;
mod kernel;
mod kernel_build;
mod layers;
mod modules;
mod pax;
mod posix_acl;
mod programs;
mod promote;
#[cfg(any(test, fuzzing))]
pub mod property;
mod recipe;
mod register;
pub mod rootfs;
mod stream;
mod tar_writer;
mod tarball;
mod union;

#[cfg(test)]
mod claims;
#[cfg(test)]
mod exporting;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod hostile_layers;
#[cfg(test)]
mod oddities;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod samples;

pub use apt::AptError;
pub use artifact::ArtifactError;
pub use assemble::{LayerSource, assemble};
pub use debian::{DebianError, build_debian};
pub use dockerfile::{Builder, Dockerfile, DockerfileError, build_dockerfile};
pub use export::{Description, ExportError, Exported, export_image};
pub use filesystem::FileSystemError;
pub use initramfs::{InitramfsError, write_initramfs};
pub use kernel::{ImportedKernel, KernelError, import_kernel, import_kernel_from_apt};
pub use kernel_build::{DEFAULT_SOURCE, KernelBuildError, LARGEST_FRAGMENT, build_kernel};
pub use layers::Limits;
pub use programs::{MARK_VARIABLE, ProgramError, mark as mark_programs};
pub use promote::{PromoteError, Root, promote};
pub use recipe::{Recipe, RecipeError};
pub use register::{RegisterError, register_rootfs};
pub use rootfs::{ImportedRootfs, RootfsError, import_rootfs};
pub use tar_writer::ArchiveError;
pub use tarball::{Refusal, TarError};
pub use union::UnionError;

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
