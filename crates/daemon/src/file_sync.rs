//! Files of the owner's that every guest gets at its start: `[[file_sync]]` of the configuration.
//!
//! They are read with the owner's rights, and only below the owner's home, wherever links lead. What cannot be copied is a
//! note on the start and no reason for it to fail.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use banger_api::client::websocket_config;
use banger_api::daemon::{Finding, Verdict};
use banger_api::exec::Word;
use banger_api::files::{Owner, Write};
use banger_api::{Code, Problem};
use banger_files::Pack;
use banger_store::VmRecord;
use banger_vmm::Channel;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::daemon::Daemon;
use crate::operations::Operation;

/// How long all entries may take. A VM that its user waits for is worth more than a large tree.
const DEADLINE: Duration = Duration::from_secs(60);

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSync {
    /// Absolute, or below the home.
    from: PathBuf,
    to: PathBuf,
    /// Of a file; its own without.
    mode: Option<u32>,
    /// A user of the guest; the owner of the folder without.
    owner: Option<String>,
}

/// As it stands in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    from: String,
    to: String,
    mode: Option<String>,
    owner: Option<String>,
}

impl FileSync {
    /// # Errors
    /// What does not fit.
    pub(crate) fn parse(entry: Entry) -> Result<Self, String> {
        let Entry { from, to, mode, owner } = entry;
        let source = PathBuf::from(from.strip_prefix("~/").unwrap_or(&from));
        let goes_up =
            |path: &Path| path.components().any(|part| matches!(part, Component::ParentDir));
        if source.as_os_str().is_empty() || goes_up(&source) {
            return Err(format!("from: {from:?} is no path without `..`, such as ~/.gitconfig"));
        }
        if from.starts_with('~') && !from.starts_with("~/") || !from.starts_with(['~', '/']) {
            return Err(format!("from: {from:?} begins neither with ~/ nor with /"));
        }
        let target = PathBuf::from(&to);
        if !target.is_absolute() || goes_up(&target) || target.file_name().is_none() {
            let rule = "is no absolute path of a guest, such as /root/.gitconfig";
            return Err(format!("to: {to:?} {rule}"));
        }
        let mode = mode
            .map(|text| {
                let mode = u32::from_str_radix(&text, 8).ok().filter(|&mode| mode <= 0o777);
                mode.ok_or_else(|| format!("mode: {text:?} is not from \"0\" to \"777\", in octal"))
            })
            .transpose()?;
        Ok(Self { from: source, to: target, mode, owner })
    }

    /// Opens it, if it lies in the home, links followed.
    fn open(&self, home: &Path) -> Result<OwnedFd, Problem> {
        let given = home.join(&self.from);
        let shown = given.display();
        let cannot = |error: &std::io::Error| {
            Problem::new(Code::NotFound, format!("cannot read {shown}")).cause(error)
        };
        let home = home.canonicalize().map_err(|e| cannot(&e))?;
        let real = given.canonicalize().map_err(|e| cannot(&e))?;
        let outside = || {
            let message = format!("{shown} is not in the home {}", home.display());
            Problem::new(Code::Invalid, message)
                .because(format!("it is {}", real.display()))
                .remedy("file_sync copies what is in the owner's home, and nothing else")
        };
        let below = real.strip_prefix(&home).map_err(|_| outside())?;
        if below.as_os_str().is_empty() {
            return Err(outside());
        }
        // What was found is opened, and nothing that was put in its place meanwhile.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, &home, folder, Mode::empty())
            .and_then(|home| openat2(home, below, flags, Mode::empty(), resolve));
        opened.map_err(|error| cannot(&error.into()))
    }

    fn write(&self) -> Result<(Write, Pack), Problem> {
        let word = |name: &OsStr| {
            Word::new(name.as_bytes())
                .map_err(|error| Problem::new(Code::Invalid, "a path is not taken").cause(&error))
        };
        let (Some(folder), Some(name)) = (self.to.parent(), self.to.file_name()) else {
            return Err(Problem::new(Code::Internal, "a path without a name was taken"));
        };
        let write = Write {
            folder: word(folder.as_os_str())?,
            create: true,
            only: Some(word(name)?),
            owner: self.owner.clone().map_or(Owner::Folder, Owner::User),
            exact: false,
            resume: 0,
        };
        Ok((write, Pack { top: Some(name.as_bytes().to_vec()), from: 0, mode: self.mode }))
    }

    async fn copy(
        &self,
        home: &Path,
        channel: &Channel,
        stop: &CancellationToken,
    ) -> Result<(), Problem> {
        let source = self.open(home)?;
        let (write, pack) = self.write()?;
        let stream = channel.open().await.map_err(|error| {
            Problem::new(Code::Guest, "cannot talk to the guest's agent").cause(&error)
        })?;
        let socket =
            banger_files::connect(stream, "ws://agent/v1/files", websocket_config()).await?;
        let work = move |to: &mut banger_files::Writer| {
            banger_files::pack(source, &pack, to, &mut |_| ())
                .map_err(|error| banger_files::problem(&error))
        };
        banger_files::write(socket, write, stop, work).await.map(drop)
    }
}

/// The home of whoever this daemon works for.
fn home() -> Result<PathBuf, Problem> {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    home.ok_or_else(|| {
        Problem::new(Code::Missing, "HOME is not set, so nobody knows where the owner's home is")
    })
}

impl Daemon {
    /// Copies what the configuration says into a guest that is ready; notes what could not be.
    pub(crate) async fn sync_files(&self, vm: &VmRecord, channel: &Channel, operation: &Operation) {
        if self.config.file_sync.is_empty() {
            return;
        }
        operation.stage("files", "copying files of file_sync");
        let home = match home() {
            Ok(home) => home,
            Err(problem) => return operation.note(format!("file_sync: {problem}")),
        };
        let stop = CancellationToken::new();
        let copying = async {
            for entry in &self.config.file_sync {
                if let Err(problem) = entry.copy(&home, channel, &stop).await {
                    let (from, to) = (entry.from.display(), entry.to.display());
                    tracing::warn!(vm = %vm.name, %from, %problem, "file_sync");
                    operation.note(format!("file_sync: {from} was not copied to {to}: {problem}"));
                }
            }
        };
        if tokio::time::timeout(DEADLINE, copying).await.is_err() {
            let within = DEADLINE.as_secs();
            operation.note(format!("file_sync: not all was copied within {within} s"));
        }
    }

    /// Whether this daemon may read what it is to copy; nothing when that is nothing.
    pub(crate) fn file_sync_there(&self) -> Option<Finding> {
        let entries = &self.config.file_sync;
        if entries.is_empty() {
            return None;
        }
        let check = "file_sync".to_owned();
        let problems: Vec<String> = match home() {
            Err(problem) => vec![problem.to_string()],
            Ok(home) => entries
                .iter()
                .filter_map(|entry| entry.open(&home).map(File::from).err())
                .map(|problem| problem.to_string())
                .collect(),
        };
        Some(if problems.is_empty() {
            let text = format!("{} entries, all readable", entries.len());
            Finding { check, verdict: Verdict::Pass, text, remedy: None }
        } else {
            let remedy =
                Some("VMs start without it; correct [[file_sync]] in config.toml".to_owned());
            Finding { check, verdict: Verdict::Warn, text: problems.join("; "), remedy }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn parse(text: &str) -> Result<FileSync, String> {
        FileSync::parse(toml::from_str(text).map_err(|error| error.to_string())?)
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        for (text, says) in [
            ("from = \"~/a\"\nto = \"/b\"\nowner_ = \"x\"", "owner_"),
            ("from = \"~/a\"", "to"),
            ("from = \"a\"\nto = \"/b\"", "from: \"a\" begins neither"),
            ("from = \"~other/a\"\nto = \"/b\"", "from: \"~other/a\""),
            ("from = \"~/../a\"\nto = \"/b\"", "from:"),
            ("from = \"~/\"\nto = \"/b\"", "from:"),
            ("from = \"~/a\"\nto = \"b\"", "to: \"b\""),
            ("from = \"~/a\"\nto = \"/b/../c\"", "to:"),
            ("from = \"~/a\"\nto = \"/\"", "to:"),
            ("from = \"~/a\"\nto = \"/b\"\nmode = \"4755\"", "mode:"),
            ("from = \"~/a\"\nto = \"/b\"\nmode = \"rw\"", "mode:"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
        let entry = parse("from = \"~/a/b\"\nto = \"/root/b\"\nmode = \"0600\"").unwrap();
        assert_eq!((entry.from.as_path(), entry.mode), (Path::new("a/b"), Some(0o600)));
    }

    #[test]
    fn only_what_is_in_the_home_is_read_wherever_links_lead() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        fs::create_dir_all(home.join("dotfiles")).unwrap();
        fs::write(home.join("dotfiles/conf"), "mine").unwrap();
        fs::write(folder.path().join("secret"), "not mine").unwrap();
        let secret = folder.path().join("secret");
        // As people keep their dotfiles: a link with an absolute target.
        symlink(home.join("dotfiles/conf"), home.join(".conf")).unwrap();
        symlink(&secret, home.join(".absolute")).unwrap();
        symlink("../secret", home.join(".relative")).unwrap();
        symlink(folder.path(), home.join(".folder")).unwrap();
        symlink(&home, folder.path().join("other way home")).unwrap();
        let open = |from: &Path, home: &Path| {
            let to = "/root/x".into();
            FileSync { from: from.into(), to, mode: None, owner: None }.open(home)
        };
        for (from, home) in [
            (Path::new(".conf"), &home),
            (&home.join(".conf"), &home),
            (Path::new(".conf"), &folder.path().join("other way home")),
        ] {
            let mut text = String::new();
            File::from(open(from, home).unwrap()).read_to_string(&mut text).unwrap();
            assert_eq!(text, "mine");
        }
        for from in [".absolute", ".relative", ".folder/secret", ".folder/home/../secret"] {
            let problem = open(Path::new(from), &home).unwrap_err();
            assert!(problem.message.contains("is not in the home"), "{problem}");
        }
        assert!(open(&secret, &home).is_err());
        assert!(open(&home, &home).is_err());
        assert_eq!(open(Path::new("none"), &home).unwrap_err().code, Code::NotFound);
    }
}
