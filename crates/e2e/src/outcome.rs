//! What a program did: its status and what it wrote. Every check names the program and shows all of it when it fails.

use std::process::Output;

/// A program that has ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub command: String,
    /// Its exit status; `None` when a signal ended it.
    pub status: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Outcome {
    pub(crate) fn new(command: String, output: Output) -> Self {
        Self { command, status: output.status.code(), stdout: output.stdout, stderr: output.stderr }
    }

    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Stdout as JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("no JSON ({error}) from {self}"),
        }
    }

    #[track_caller]
    pub fn succeeds(&self) -> &Self {
        self.exits(0)
    }

    #[track_caller]
    pub fn exits(&self, status: i32) -> &Self {
        assert_eq!(self.status, Some(status), "of {self}");
        self
    }

    /// Stdout holds this.
    #[track_caller]
    pub fn prints(&self, text: &str) -> &Self {
        assert!(self.text().contains(text), "{text:?} is not on stdout of {self}");
        self
    }

    /// Stdout is exactly this.
    #[track_caller]
    pub fn prints_only(&self, text: &str) -> &Self {
        assert_eq!(self.text(), text, "is stdout of {self}");
        self
    }

    /// Stderr holds this.
    #[track_caller]
    pub fn complains(&self, text: &str) -> &Self {
        assert!(self.errors().contains(text), "{text:?} is not on stderr of {self}");
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |bytes: &[u8]| {
            let most = 4000.min(bytes.len());
            String::from_utf8_lossy(&bytes[..most]).into_owned()
        };
        write!(
            f,
            "`{}` (status {:?})\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.status,
            shown(&self.stdout),
            shown(&self.stderr)
        )
    }
}
