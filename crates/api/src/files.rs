//! Files to and from a guest: one WebSocket from the CLI through the daemon to the agent, as an exec is.
//!
//! Each binary message is one frame: a tag byte, then its content. The data is a tar stream; what has failed comes as a
//! frame at any time, also in the midst of the stream.
//!
//! ```text
//! to the agent               from the agent
//! 00 start (JSON Start)      11 data   (bytes of a tar; of a read)
//! 01 data  (bytes of a tar;  12 done   (JSON Done; the last frame)
//!           of a write)      13 failed (JSON Problem; the last frame)
//! 02 end   (the tar is whole)
//! ```
//!
//! A write that is cut off before its end frame has failed: the file it was at does not appear. What is under way is
//! bounded by the connection alone, since nothing must overtake it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Problem;
use crate::exec::{FrameError, Word, json, split, tagged};

/// Bytes of a data frame, at the most: 64 KiB.
pub const CHUNK: usize = 64 * 1024;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    Look(Look),
    Read(Read),
    Write(Write),
}

/// What is at a path of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// An absolute path. Symbolic links on the way and at its end are followed.
    pub path: Word,
    /// For the SHA-256 of as many bytes of a file's beginning.
    #[serde(default)]
    pub prefix: Option<u64>,
    /// For what is left of a copy to this path that broke.
    #[serde(default)]
    pub part: bool,
}

/// A file or a tree of the guest, as a tar stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Read {
    /// An absolute path. Symbolic links on the way and at its end are followed, those within the tree are sent.
    pub path: Word,
    /// What the file or folder is called in the stream; without, a folder's content is at the stream's root, and a file has
    /// its own name.
    #[serde(default)]
    pub top: Option<Word>,
    /// Bytes of a single file that the reader has already: they are sent as a hole.
    #[serde(default)]
    pub from: u64,
}

/// A tar stream, unpacked below a folder of the guest and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Write {
    /// An absolute path. Symbolic links on the way and at its end are followed.
    pub folder: Word,
    /// The folder and those above it are made when they are not there.
    #[serde(default)]
    pub create: bool,
    /// The stream's only name at its root; other entries are refused.
    #[serde(default)]
    pub only: Option<Word>,
    #[serde(default)]
    pub owner: Owner,
    /// All bits of the modes, and the attributes of the system (capabilities, access control lists); without, permissions
    /// and the users' attributes.
    #[serde(default)]
    pub exact: bool,
    /// Bytes of the stream's only file that the guest has from a copy that broke; see [`Looked::part`].
    #[serde(default)]
    pub resume: u64,
}

/// Whose the files are that a write makes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// The owner's and group's of the folder that is copied into.
    #[default]
    Folder,
    /// As the stream says, by number.
    Stream,
    /// `NAME`, `UID`, `NAME:GROUP`, `UID:GID` of the guest.
    User(String),
}

/// How it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// Answers [`Start::Look`].
    pub looked: Option<Looked>,
    /// What was copied.
    pub copied: Copied,
}

/// What went through a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Copied {
    pub entries: u64,
    /// Of files, holes left out.
    pub bytes: u64,
    /// What was not copied, or not as it is, with the reason: the first few.
    pub left_out: Vec<String>,
    /// All of them, those that are not listed too.
    pub left_out_count: u64,
}

/// What is at a path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Looked {
    /// `None`: nothing.
    pub found: Option<Found>,
    /// Of [`Look::prefix`] bytes, in hexadecimal digits; `None` when the file is shorter, or is none.
    pub prefix_sha256: Option<String>,
    /// Of [`Look::part`].
    pub part: Option<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub kind: FoundKind,
    pub size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundKind {
    Folder,
    File,
    /// A device, a socket, a fifo.
    Other,
}

/// The beginning of a file whose copy broke.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub length: u64,
    /// In hexadecimal digits.
    pub sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToAgent {
    Start(Box<Start>),
    Data(Bytes),
    End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromAgent {
    Data(Bytes),
    Done(Box<Done>),
    Failed(Box<Problem>),
}

impl ToAgent {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            ToAgent::Start(start) => json(0x00, start.as_ref()),
            ToAgent::Data(bytes) => tagged(0x01, bytes),
            ToAgent::End => tagged(0x02, &[]),
        }
    }

    /// # Errors
    /// When the message is not a frame of this direction.
    pub fn decode(message: &Bytes) -> Result<Self, FrameError> {
        let (tag, content) = split(message)?;
        match tag {
            0x00 => Ok(ToAgent::Start(serde_json::from_slice(&content)?)),
            0x01 => Ok(ToAgent::Data(content)),
            0x02 if content.is_empty() => Ok(ToAgent::End),
            0x02 => Err(FrameError::Length { tag, length: content.len() }),
            _ => Err(FrameError::Tag(tag)),
        }
    }
}

impl FromAgent {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            FromAgent::Data(bytes) => tagged(0x11, bytes),
            FromAgent::Done(done) => json(0x12, done.as_ref()),
            FromAgent::Failed(problem) => json(0x13, problem.as_ref()),
        }
    }

    /// # Errors
    /// When the message is not a frame of this direction.
    pub fn decode(message: &Bytes) -> Result<Self, FrameError> {
        let (tag, content) = split(message)?;
        match tag {
            0x11 => Ok(FromAgent::Data(content)),
            0x12 => Ok(FromAgent::Done(serde_json::from_slice(&content)?)),
            0x13 => Ok(FromAgent::Failed(serde_json::from_slice(&content)?)),
            _ => Err(FrameError::Tag(tag)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    #[test]
    fn every_frame_comes_back_as_it_went() {
        let word = |bytes: &[u8]| Word::new(bytes).unwrap();
        let write = Write {
            folder: word(b"/root/\xff"),
            create: true,
            only: Some(word(b"x")),
            owner: Owner::User("dev".into()),
            exact: true,
            resume: 7,
        };
        for frame in [
            ToAgent::Start(Box::new(Start::Write(write))),
            ToAgent::Data(Bytes::from_static(b"\0")),
            ToAgent::End,
        ] {
            assert_eq!(ToAgent::decode(&frame.encode()).unwrap(), frame);
        }
        for frame in [
            FromAgent::Data(Bytes::new()),
            FromAgent::Done(Box::default()),
            FromAgent::Failed(Box::new(Problem::new(Code::Guest, "no"))),
        ] {
            assert_eq!(FromAgent::decode(&frame.encode()).unwrap(), frame);
        }
    }

    #[test]
    fn an_end_with_content_and_a_frame_of_the_other_side_are_refused() {
        assert!(ToAgent::decode(&Bytes::from_static(b"\x02x")).is_err());
        assert!(ToAgent::decode(&Bytes::from_static(b"\x11")).is_err());
        assert!(FromAgent::decode(&Bytes::from_static(b"\x01")).is_err());
    }
}
