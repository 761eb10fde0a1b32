//! Trees of files as tar streams: packed out of a folder, unpacked below one, and the session that carries them.
//!
//! ```text
//! folder ── pack ── tar ══ session (frames of banger_api::files) ══ tar ── archive ── unpack ── folder
//! ```
//!
//! The stream is never believed: it may come from a guest. Unpacking stays below the folder it was given, by openat2(2), with
//! whatever names and links the stream or the folder has. Packing and unpacking block, and run in threads; the session is
//! asynchronous. Knows no VM and no daemon.

mod archive;
mod beneath;
mod fault;
mod look;
mod pack;
mod part;
mod pipe;
mod session;
mod times;
mod unpack;
mod xattrs;

pub use archive::ArchiveError;
pub use beneath::Target;
pub use fault::problem;
pub use look::{look, open, prefix_sha256};
pub use pack::{Pack, PackError, pack};
pub use part::part_of;
pub use pipe::{Piece, Reader, Writer, reader, writer};
pub use session::{SessionSocket, look_at, read, write};
pub use unpack::{Ids, Refusal, Unpack, UnpackError, unpack};

/// A name for people: cut where it is longer than a line can be.
pub(crate) fn shown(name: &[u8]) -> String {
    const LONGEST: usize = 300;
    let text = String::from_utf8_lossy(&name[..name.len().min(LONGEST)]).escape_debug().to_string();
    if name.len() > LONGEST { text + "..." } else { text }
}

/// The names in `path` joined by one `/` each; the other way round, see [`archive`].
pub(crate) fn joined(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}
