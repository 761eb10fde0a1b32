//! Finds handshake lines in the bytes of the port: all of them before a connection, and in the midst of one the sign that
//! its peer is another one by now.
//!
//! A daemon that is gone and back between two of our looks leaves no hang-up behind, and its HELLO may come where the old
//! peer's frame was cut off, so that it would be swallowed as the frame's content. A HELLO alone can be such content by
//! chance (a copied file); the same HELLO twice with nothing between is a daemon that waits for its READY.

use banger_api::channel::{Line, MAX_LINE};

/// What every line of the handshake begins with.
const MAGIC: &[u8] = b"BANGER/1 ";

#[derive(Debug)]
pub(crate) struct Lines {
    /// The line so far, while it can still become one of the handshake.
    line: Vec<u8>,
    candidate: bool,
}

impl Lines {
    pub(crate) fn new() -> Self {
        Self { line: Vec::new(), candidate: true }
    }

    /// Looks through the bytes as far as the end of the first handshake line; says how many bytes that were.
    pub(crate) fn find(&mut self, bytes: &[u8]) -> (usize, Option<Line>) {
        let mut at = 0;
        while at < bytes.len() {
            if !self.candidate {
                let Some(end) = bytes[at..].iter().position(|&byte| byte == b'\n') else { break };
                at += end + 1;
                self.begin_line();
                continue;
            }
            let byte = bytes[at];
            at += 1;
            if byte == b'\n' {
                let found = Line::parse(&self.line);
                self.begin_line();
                if found.is_some() {
                    return (at, found);
                }
                continue;
            }
            self.candidate = self.line.len() < MAX_LINE
                && MAGIC.get(self.line.len()).is_none_or(|&magic| magic == byte);
            self.line.push(byte);
        }
        (bytes.len(), None)
    }

    fn begin_line(&mut self) {
        self.line.clear();
        self.candidate = true;
    }
}

/// Watches what comes in over a connection for a daemon that begins anew.
#[derive(Debug)]
pub(crate) struct Watch {
    lines: Lines,
    last: Option<Line>,
    /// Bytes since the end of `last`.
    since: usize,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self { lines: Lines::new(), last: None, since: 0 }
    }

    /// Takes bytes that came; gives the HELLO when they show that the daemon began anew.
    pub(crate) fn begins_anew(&mut self, bytes: &[u8]) -> Option<Line> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (count, line) = self.lines.find(rest);
            rest = &rest[count..];
            self.since = self.since.saturating_add(count);
            if let Some(line @ Line::Hello { .. }) = line {
                if self.last.as_ref() == Some(&line) && self.since == line.encode().len() {
                    return Some(line);
                }
                self.last = Some(line);
                self.since = 0;
            }
        }
        None
    }

    /// The lines as they stand: a connection that breaks in the midst of a HELLO must not lose its beginning.
    pub(crate) fn into_lines(self) -> Lines {
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(nonce: &str) -> Line {
        Line::Hello { nonce: nonce.into() }
    }

    #[test]
    fn all_lines_of_the_handshake_begin_with_the_magic() {
        let ready = Line::Ready { nonce: "n".into(), boot_id: "b".into(), version: "v".into() };
        for line in [hello("n"), ready, Line::Go { nonce: "n".into() }] {
            assert!(line.encode()[1..].starts_with(MAGIC));
        }
    }

    #[test]
    fn a_line_is_found_in_rubbish_however_it_is_cut_and_no_byte_behind_it_is_taken() {
        let mut bytes = vec![0, b'\n', b'B', b'x', 255];
        bytes.extend(vec![b'B'; 3 * MAX_LINE]);
        bytes.extend(hello("abc").encode());
        let end = bytes.len();
        bytes.extend(b"\0behind");
        for cut in 0..=bytes.len() {
            let mut lines = Lines::new();
            let mut found = Vec::new();
            let mut at = 0;
            for piece in [&bytes[..cut], &bytes[cut..]] {
                let mut piece = piece;
                while !piece.is_empty() {
                    let (count, line) = lines.find(piece);
                    at += count;
                    piece = &piece[count..];
                    found.extend(line.map(|line| (at, line)));
                }
            }
            assert_eq!(found, [(end, hello("abc"))], "cut at {cut}");
        }
    }

    #[test]
    fn the_same_hello_twice_is_a_daemon_that_begins_anew() {
        let twice = [hello("n").encode(), hello("n").encode()].concat();
        for cut in 0..=twice.len() {
            let mut watch = Watch::new();
            assert_eq!(watch.begins_anew(b"half a frame"), None);
            let found =
                watch.begins_anew(&twice[..cut]).or_else(|| watch.begins_anew(&twice[cut..]));
            assert_eq!(found, Some(hello("n")), "cut at {cut}");
        }
    }

    #[test]
    fn a_hello_in_a_copied_file_is_no_beginning() {
        let mut watch = Watch::new();
        let file =
            [hello("n").encode(), b"and more\n".to_vec(), hello("n").encode(), hello("m").encode()]
                .concat();
        assert_eq!(watch.begins_anew(&file), None);
    }
}
