//! The whole output of a verb, in a file, whatever became of the terminal.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// A new log in place of the last one of this verb.
    pub(crate) fn create(target: &Path, verb: &str) -> Result<Self, Failure> {
        let folder = target.join("xtask");
        let path = folder.join(format!("{verb}.log"));
        let made = fs::create_dir_all(&folder).and_then(|()| File::create(&path));
        let file = made.map_err(|error| {
            Failure::new(format!("cannot write {}", path.display())).cause(&error)
        })?;
        Ok(Self { path, file })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Shows a line and keeps it. A full disk must not stop what is being logged, so a line that cannot be kept is not.
    pub(crate) fn line(&mut self, text: &str) {
        println!("{text}");
        drop(writeln!(self.file, "{text}"));
    }
}
