//! A command in a guest: one WebSocket from the CLI (or a browser) through the daemon to the agent.
//!
//! The daemon authenticates, then splices bytes; these frames pass it untouched. Each binary message is one frame: a tag
//! byte, then its content.
//!
//! ```text
//! to the agent              from the agent
//! 00 start   (JSON Start)   11 stdout  (bytes)
//! 01 stdin   (bytes)        12 stderr  (bytes; never with a terminal)
//! 02 stdin ends             13 taken   (u32, big-endian: bytes of stdin handed to the command)
//! 03 resize  (u16 rows,     14 exit    (JSON Exit; the last frame)
//!             u16 columns)  15 refused (JSON Refused; the last frame)
//! 04 signal  (u8)
//! ```
//!
//! A client has at most [`STDIN_WINDOW`] bytes of stdin under way that were not reported as taken, so a command that
//! does not read its stdin never stands in the way of a signal or a resize.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Bytes of stdin that may be under way, not yet taken by the command.
pub const STDIN_WINDOW: usize = 256 * 1024;

/// No frame's content is longer: 1 MiB.
pub const MAX_CONTENT: usize = 1 << 20;

/// What to run and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Start {
    /// The command, word for word. Empty: the user's login shell.
    pub argv: Vec<Word>,
    /// Added to the guest's own: PATH, HOME, USER, SHELL, and TERM with a terminal.
    pub env: Vec<(Word, Word)>,
    /// The user's home if absent, `/` if that does not exist.
    pub cwd: Option<Word>,
    /// `NAME`, `UID`, `NAME:GROUP`, `UID:GID`; root when absent.
    pub user: Option<String>,
    /// With a terminal of this size; without one, stdout and stderr are pipes.
    pub tty: Option<TerminalSize>,
    /// No stdin at all: the command reads end of file at once.
    pub no_stdin: bool,
    /// After this time the command gets SIGTERM, 5 s later SIGKILL.
    pub timeout_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The command's exit status, or 128 + the signal that ended it.
    pub status: u8,
    /// It was ended because of [`Start::timeout_ms`].
    #[serde(default)]
    pub timed_out: bool,
    /// From before the fork until the exit was seen, on the guest's clock.
    pub microseconds: u64,
}

/// Why a command was not started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// What the CLI exits with: 127 not found, 126 not executable, 125 anything else.
    pub status: u8,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToAgent {
    Start(Box<Start>),
    Stdin(Bytes),
    StdinEnd,
    Resize(TerminalSize),
    Signal(u8),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromAgent {
    Stdout(Bytes),
    Stderr(Bytes),
    Taken(u32),
    Exit(Exit),
    Refused(Refused),
}

/// Why a message is not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("an empty message is no exec frame")]
    Empty,
    #[error("no exec frame begins with {0:#04x}")]
    Tag(u8),
    #[error("an exec frame {tag:#04x} of {length} bytes has the wrong length")]
    Length { tag: u8, length: usize },
    #[error("the JSON of an exec frame does not fit")]
    Json(#[from] serde_json::Error),
}

impl ToAgent {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            ToAgent::Start(start) => json(0x00, start.as_ref()),
            ToAgent::Stdin(bytes) => tagged(0x01, bytes),
            ToAgent::StdinEnd => tagged(0x02, &[]),
            ToAgent::Resize(size) => {
                let [r0, r1] = size.rows.to_be_bytes();
                let [c0, c1] = size.columns.to_be_bytes();
                tagged(0x03, &[r0, r1, c0, c1])
            }
            ToAgent::Signal(number) => tagged(0x04, &[*number]),
        }
    }

    /// # Errors
    /// When the message is not a frame of this direction.
    pub fn decode(message: &Bytes) -> Result<Self, FrameError> {
        let (tag, content) = split(message)?;
        let wrong_length = FrameError::Length { tag, length: content.len() };
        match (tag, &content[..]) {
            (0x00, json) => Ok(ToAgent::Start(serde_json::from_slice(json)?)),
            (0x01, _) => Ok(ToAgent::Stdin(content)),
            (0x02, []) => Ok(ToAgent::StdinEnd),
            (0x03, &[r0, r1, c0, c1]) => Ok(ToAgent::Resize(TerminalSize {
                rows: u16::from_be_bytes([r0, r1]),
                columns: u16::from_be_bytes([c0, c1]),
            })),
            (0x04, &[number]) => Ok(ToAgent::Signal(number)),
            (0x02..=0x04, _) => Err(wrong_length),
            _ => Err(FrameError::Tag(tag)),
        }
    }
}

impl FromAgent {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            FromAgent::Stdout(bytes) => tagged(0x11, bytes),
            FromAgent::Stderr(bytes) => tagged(0x12, bytes),
            FromAgent::Taken(count) => tagged(0x13, &count.to_be_bytes()),
            FromAgent::Exit(exit) => json(0x14, exit),
            FromAgent::Refused(refused) => json(0x15, refused),
        }
    }

    /// # Errors
    /// When the message is not a frame of this direction.
    pub fn decode(message: &Bytes) -> Result<Self, FrameError> {
        let (tag, content) = split(message)?;
        let wrong_length = FrameError::Length { tag, length: content.len() };
        match (tag, &content[..]) {
            (0x11, _) => Ok(FromAgent::Stdout(content)),
            (0x12, _) => Ok(FromAgent::Stderr(content)),
            (0x13, &[a, b, c, d]) => Ok(FromAgent::Taken(u32::from_be_bytes([a, b, c, d]))),
            (0x13, _) => Err(wrong_length),
            (0x14, json) => Ok(FromAgent::Exit(serde_json::from_slice(json)?)),
            (0x15, json) => Ok(FromAgent::Refused(serde_json::from_slice(json)?)),
            _ => Err(FrameError::Tag(tag)),
        }
    }
}

pub(crate) fn split(message: &Bytes) -> Result<(u8, Bytes), FrameError> {
    let tag = *message.first().ok_or(FrameError::Empty)?;
    let content = message.slice(1..);
    if content.len() > MAX_CONTENT {
        return Err(FrameError::Length { tag, length: content.len() });
    }
    Ok((tag, content))
}

pub(crate) fn tagged(tag: u8, content: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(1 + content.len());
    frame.put_u8(tag);
    frame.put_slice(content);
    frame.freeze()
}

pub(crate) fn json<T: Serialize>(tag: u8, value: &T) -> Bytes {
    tagged(
        tag,
        &serde_json::to_vec(value).expect("frames are plain data, which always has a JSON form"),
    )
}

/// A word of a command, an environment or a path: bytes without NUL, as execve(2) takes them.
/// On the wire a string where it is UTF-8, else `{"bytes": [..]}`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "WordWire", into = "WordWire")]
pub struct Word(Vec<u8>);

/// A word cannot hold a NUL byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a word of a command, an environment or a path must not hold a NUL byte")]
pub struct NulInWord;

impl Word {
    /// # Errors
    /// When there is a NUL byte in it.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, NulInWord> {
        let bytes = bytes.into();
        if bytes.contains(&0) { Err(NulInWord) } else { Ok(Self(bytes)) }
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WordWire {
    Text(String),
    Bytes { bytes: Vec<u8> },
}

impl TryFrom<WordWire> for Word {
    type Error = NulInWord;

    fn try_from(wire: WordWire) -> Result<Self, NulInWord> {
        match wire {
            WordWire::Text(text) => Word::new(text),
            WordWire::Bytes { bytes } => Word::new(bytes),
        }
    }
}

impl From<Word> for WordWire {
    fn from(word: Word) -> Self {
        match String::from_utf8(word.0) {
            Ok(text) => WordWire::Text(text),
            Err(error) => WordWire::Bytes { bytes: error.into_bytes() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_comes_back_as_it_went() {
        let start = Start {
            argv: vec![Word::new("sh").unwrap(), Word::new(vec![0xff, b' ', b'\n']).unwrap()],
            tty: Some(TerminalSize { rows: 24, columns: 80 }),
            timeout_ms: Some(5),
            ..Start::default()
        };
        for frame in [
            ToAgent::Start(Box::new(start)),
            ToAgent::Stdin(Bytes::from_static(b"\0\xff")),
            ToAgent::StdinEnd,
            ToAgent::Resize(TerminalSize { rows: 1, columns: 65535 }),
            ToAgent::Signal(15),
        ] {
            assert_eq!(ToAgent::decode(&frame.encode()).unwrap(), frame);
        }
        for frame in [
            FromAgent::Stdout(Bytes::from_static(b"x")),
            FromAgent::Stderr(Bytes::new()),
            FromAgent::Taken(70_000),
            FromAgent::Exit(Exit { status: 137, timed_out: false, microseconds: 9 }),
            FromAgent::Refused(Refused { status: 127, message: "no".into() }),
        ] {
            assert_eq!(FromAgent::decode(&frame.encode()).unwrap(), frame);
        }
    }

    #[test]
    fn no_bytes_make_the_decoders_panic() {
        for tag in 0..=255_u8 {
            for length in 0..6 {
                let message = Bytes::from([vec![tag], vec![b'{'; length]].concat());
                let (_, _) =
                    (ToAgent::decode(&message).is_ok(), FromAgent::decode(&message).is_ok());
            }
        }
        assert!(ToAgent::decode(&Bytes::new()).is_err());
    }

    #[test]
    fn a_word_with_a_nul_is_refused_on_the_wire_too() {
        assert!(serde_json::from_str::<Word>("\"a\\u0000b\"").is_err());
        assert!(serde_json::from_str::<Word>("{\"bytes\":[1,0]}").is_err());
    }
}
