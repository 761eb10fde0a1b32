//! The whole output of a verb, in a file, whatever became of the terminal.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    /// Whether lines are shown, too.
    shows: bool,
}

impl Log {
    /// A new log in place of the last one of this verb.
    pub(crate) fn create(target: &Path, verb: &str) -> Result<Self, Failure> {
        let log = Self::beside(target, verb)?;
        Ok(Self { shows: true, ..log })
    }

    /// As [`Log::create`], of work beside the work that is shown.
    pub(crate) fn beside(target: &Path, work: &str) -> Result<Self, Failure> {
        let folder = target.join("xtask");
        fs::create_dir_all(&folder).map_err(|error| {
            Failure::new(format!("cannot make {}", folder.display())).cause(&error)
        })?;
        Self::at(&folder.join(format!("{work}.log")))
    }

    /// A log in this file, which is not shown.
    pub(crate) fn at(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|error| {
            Failure::new(format!("cannot write {}", path.display())).cause(&error)
        })?;
        Ok(Self { path: path.to_owned(), file, shows: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Shows a line and keeps it. A full disk must not stop what is being logged, so a line that cannot be kept is not.
    pub(crate) fn line(&mut self, text: &str) {
        if self.shows {
            println!("{text}");
        }
        drop(writeln!(self.file, "{text}"));
    }
}
