//! The way into a running test host: ssh, one connection for all, that of nobody's configuration and keys but ours.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::failure::Failure;
use crate::programs::Call;

/// An ssh that knows its test host. Paths are below the folder of the host's run, where the programs work: a socket's
/// path must be short (unix(7)).
#[derive(Debug, Clone)]
pub(super) struct Ssh {
    folder: PathBuf,
    port: u16,
}

impl Ssh {
    pub(super) fn new(folder: &Path, port: u16) -> Self {
        Self { folder: folder.to_owned(), port }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Opens the connection that the calls then share; answered when the host's sshd does.
    pub(super) fn open(&self) -> Result<(), Failure> {
        drop(std::fs::remove_file(self.folder.join("ssh")));
        let call = self.ssh().args(["-o", "ControlMaster=yes", "-o", "ControlPersist=yes"]);
        // It stays behind and would keep a pipe of ours open: what it says goes to a file.
        let call = call.args(["-E", "ssh.log", "-f", "-N", "root@127.0.0.1"]);
        if call.succeeds() {
            return Ok(());
        }
        let said = std::fs::read_to_string(self.folder.join("ssh.log")).unwrap_or_default();
        Err(Failure::new("the test host does not answer by ssh").because(said.trim().to_owned()))
    }

    /// A line for root's shell there.
    pub(super) fn call(&self, line: &str) -> Call {
        let title = format!("testhost: {line}");
        self.ssh().args(["-o", "ControlMaster=no", "root@127.0.0.1", line]).titled(title)
    }

    /// root's shell there, for a person.
    pub(super) fn shell(&self) -> Call {
        self.ssh().args(["-o", "ControlMaster=no", "root@127.0.0.1"])
    }

    /// What a short line for the shell says. One that hangs is ended there: here the shared connection would hold its pipe.
    pub(super) fn ask(&self, line: &str) -> Result<String, Failure> {
        self.call(&format!("timeout 120 sh -c {}", quoted(line))).output()
    }

    /// Copies one file from there.
    pub(super) fn fetch(&self, from: &str, to: &Path) -> Result<(), Failure> {
        let port = self.port.to_string();
        Call::new("scp")
            .args(self.options())
            .args(["-q", "-o", "ControlMaster=no", "-P", &port])
            .args([format!("root@127.0.0.1:{from}"), to.display().to_string()])
            .in_folder(&self.folder)
            .output()
            .map(drop)
    }

    fn ssh(&self) -> Call {
        let port = self.port.to_string();
        Call::new("ssh").args(self.options()).args(["-p", &port]).in_folder(&self.folder)
    }

    fn options(&self) -> Vec<String> {
        /// A host that says nothing for so long is dead: an emulated one on a busy machine takes seconds.
        const SILENCE: Duration = Duration::from_secs(60);
        let settings = [
            "IdentitiesOnly=yes".to_owned(),
            "IdentityAgent=none".to_owned(),
            "UserKnownHostsFile=image/known_hosts".to_owned(),
            "HostKeyAlias=testhost".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "BatchMode=yes".to_owned(),
            "LogLevel=ERROR".to_owned(),
            "ControlPath=./ssh".to_owned(),
            format!("ConnectTimeout={}", SILENCE.as_secs()),
            "ServerAliveInterval=5".to_owned(),
            format!("ServerAliveCountMax={}", SILENCE.as_secs() / 5),
        ];
        let options = ["-F", "none", "-i", "image/key"].map(str::to_owned).into_iter();
        options.chain(settings.into_iter().flat_map(|setting| ["-o".to_owned(), setting])).collect()
    }
}

/// A word as a shell takes it for one.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word_and_what_it_is() {
        for word in ["plain", "", "two words", "it's", "$HOME;`id`\n*", "a::b"] {
            let said =
                Call::new("sh").args(["-c", &format!("printf %s {}", quoted(word))]).output();
            assert_eq!(said.unwrap(), word);
        }
        assert_eq!(quoted("a::b"), "a::b");
    }
}
