//! Keeps a log bounded while nobody of ours runs: copies stdin to a file and turns the file over when it is half full.
//!
//! A guest writes what it likes to its console, for as long as it likes, also while the daemon is down; so a process of
//! its own stands at the other end of the VMM's pipe. It ends when the pipe does.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Copies stdin to `path` until its end. `path` and `path.1` together never hold more than `limit_bytes`; what `path`
/// held before (the boot before this one) is turned over first.
///
/// # Errors
/// When stdin cannot be read. A log that cannot be written is skipped: the VMM must not stop for a full disk.
pub fn run(path: &Path, limit_bytes: u64) -> io::Result<()> {
    let mut log = Log { path: path.to_owned(), half: limit_bytes / 2, file: None, length: 0 };
    log.turn_over();
    let mut input = io::stdin().lock();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(got) => log.write(&buffer[..got]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

struct Log {
    path: PathBuf,
    half: u64,
    file: Option<File>,
    length: u64,
}

impl Log {
    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.length >= self.half {
                self.turn_over();
            }
            let room = usize::try_from(self.half - self.length)
                .unwrap_or(usize::MAX)
                .clamp(1, bytes.len());
            let (now, later) = bytes.split_at(room);
            if let Some(file) = &mut self.file
                && file.write_all(now).is_err()
            {
                self.file = None;
            }
            self.length += now.len() as u64;
            bytes = later;
        }
    }

    fn turn_over(&mut self) {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        // No file yet, or no way to rename it: then the new one simply begins here.
        drop(fs::rename(&self.path, older));
        self.file = File::create(&self.path).ok();
        self.length = 0;
    }
}
