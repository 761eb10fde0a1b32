//! Files for ssh: the block that leads to VMs, which is ours, and one line in the user's own configuration, when asked for.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use banger_api::client::Client;
use banger_api::ssh::SshAccess;
use banger_api::{Code, Problem};

use crate::context::folders;

/// What ssh is to know, and where it is kept.
#[derive(Debug)]
pub(crate) struct SshFiles {
    pub(crate) access: SshAccess,
    folder: PathBuf,
    /// What runs us: this program, and the installation that the environment names.
    program: PathBuf,
    home: Option<PathBuf>,
}

impl SshFiles {
    pub(crate) async fn of(client: &Client) -> Result<Self, Problem> {
        let access = client.get("/v1/ssh").await?;
        let program = std::env::current_exe().map_err(|error| {
            Problem::new(Code::Internal, "cannot tell where banger is").cause(&error)
        })?;
        let home = std::env::var_os("BANGER_HOME").filter(|home| !home.is_empty());
        Ok(Self { access, folder: folders()?.ssh(), program, home: home.map(PathBuf::from) })
    }

    fn path(&self) -> PathBuf {
        self.folder.join("config")
    }

    /// The block, for all VMs that there are and will be.
    pub(crate) fn text(&self) -> Result<String, Problem> {
        let SshAccess { zone, identity, known_hosts } = &self.access;
        let home = self.home.as_ref().map(|home| {
            let mut word = std::ffi::OsString::from("BANGER_HOME=");
            word.push(home);
            word
        });
        let mut command = String::new();
        let env = home.is_some().then_some(OsStr::new("/usr/bin/env"));
        let words = [env, home.as_deref(), Some(self.program.as_os_str())];
        for word in words.into_iter().flatten() {
            command.push_str(&shell_word(word)?);
            command.push(' ');
        }
        let (identity, known_hosts) = (quoted(identity)?, quoted(known_hosts)?);
        Ok(format!(
            "# VMs of banger, by name: `banger ssh-config`\n\
             Host *.{zone}\n  User root\n  IdentityFile {identity}\n  IdentitiesOnly yes\n  \
             UserKnownHostsFile {known_hosts}\n  StrictHostKeyChecking yes\n  UpdateHostKeys no\n  \
             ProxyCommand {command}vm proxy %h\n"
        ))
    }

    /// Writes the block where the line leads to, and gives that place.
    pub(crate) fn write(&self) -> Result<PathBuf, Problem> {
        let (path, text) = (self.path(), self.text()?);
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            // The daemon's user may be another than root, who may run this.
            replace(&path, text.as_bytes(), 0o644, None).map_err(|e| unwritable(&path, &e))?;
        }
        Ok(path)
    }

    pub(crate) fn include_line(&self) -> Result<String, Problem> {
        Ok(format!("Include {}", quoted(&self.path())?))
    }
}

/// The file of the user's that ssh reads.
pub(crate) fn users_config() -> Result<PathBuf, Problem> {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let home = home.ok_or_else(|| {
        Problem::new(Code::Invalid, "cannot tell where ~/.ssh is: HOME is no absolute path")
    })?;
    Ok(home.join(".ssh/config"))
}

/// Puts the line at the top; whether it was not there.
pub(crate) fn include(file: &Path, line: &str) -> Result<bool, Problem> {
    let before = read(file)?;
    if lines(&before).any(|other| other == line.as_bytes()) {
        return Ok(false);
    }
    if let Some(folder) = file.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|e| unwritable(folder, &e))?;
    }
    rewrite(file, &[line.as_bytes(), b"\n", &before].concat())?;
    Ok(true)
}

/// Takes the line away; whether it was there. All else stays, byte for byte.
pub(crate) fn exclude(file: &Path, line: &str) -> Result<bool, Problem> {
    let before = read(file)?;
    let is_ours = |other: &&[u8]| other.strip_suffix(b"\n").unwrap_or(other) == line.as_bytes();
    let after: Vec<u8> = before
        .split_inclusive(|&byte| byte == b'\n')
        .filter(|l| !is_ours(l))
        .flatten()
        .copied()
        .collect();
    if after == before {
        return Ok(false);
    }
    rewrite(file, &after)?;
    Ok(true)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n')
}

/// One that is not there is empty.
fn read(file: &Path) -> Result<Vec<u8>, Problem> {
    match fs::read(file) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => {
            let message = format!("cannot read {}", file.display());
            Err(Problem::new(Code::Invalid, message).cause(&error))
        }
    }
}

/// With the mode and the owner that it has; where it is a link, what that leads to.
fn rewrite(file: &Path, bytes: &[u8]) -> Result<(), Problem> {
    let target = match fs::canonicalize(file) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !file.is_symlink() => {
            file.to_owned()
        }
        Err(error) => return Err(unwritable(file, &error)),
    };
    let (mode, owner) = match fs::metadata(&target) {
        Ok(data) => (data.permissions().mode() & 0o7777, Some((data.uid(), data.gid()))),
        Err(_) => (0o600, None),
    };
    replace(&target, bytes, mode, owner).map_err(|error| unwritable(file, &error))
}

/// Whole or not at all.
fn replace(path: &Path, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    let half = path.with_extension(format!("banger-{}", std::process::id()));
    let written = (|| {
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&half)?;
        file.write_all(bytes)?;
        if let Some((uid, gid)) = owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&half, path)
    })();
    if written.is_err() {
        // It may not have come into being.
        fs::remove_file(&half).ok();
    }
    written
}

fn unwritable(path: &Path, error: &io::Error) -> Problem {
    Problem::new(Code::Internal, format!("cannot write {}", path.display())).cause(error)
}

fn unwritten(word: &OsStr, why: &str) -> Problem {
    let message = format!("ssh's configuration cannot hold {}", word.display());
    Problem::new(Code::Invalid, message).because(why.to_owned())
}

/// A path as an argument of ssh_config(5), which knows no escapes within quotes, and expands % and ${.
fn quoted(path: &Path) -> Result<String, Problem> {
    let text = path.to_str().ok_or_else(|| unwritten(path.as_os_str(), "it is not UTF-8"))?;
    if text.contains(['"', '\n', '\\', '$', '*', '?']) {
        return Err(unwritten(
            path.as_os_str(),
            "it has a quote, a $, a *, a ?, a \\ or a line's end in it",
        ));
    }
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

/// A word of the command that ssh gives to the user's shell, after it has replaced its own %.
fn shell_word(word: &OsStr) -> Result<String, Problem> {
    let text = word.to_str().ok_or_else(|| unwritten(word, "it is not UTF-8"))?;
    if text.as_bytes().contains(&b'\n') {
        return Err(unwritten(word, "it has a line's end in it"));
    }
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-=+:".contains(byte);
    if word.as_bytes().iter().all(is_plain) {
        return Ok(text.to_owned());
    }
    Ok(format!("'{}'", text.replace('\'', "'\\''").replace('%', "%%")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_comes_and_goes_and_all_else_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("dotfiles"), folder.path().join("dir/config"));
        let before = b"# mine\r\nHost a\n\tUser \xff".to_vec();
        fs::write(&real, &before).unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        fs::create_dir(folder.path().join("dir")).unwrap();
        std::os::unix::fs::symlink("../dotfiles", &link).unwrap();
        let line = "Include \"/x/ssh/config\"";
        assert!(include(&link, line).unwrap());
        assert!(!include(&link, line).unwrap());
        assert_eq!(fs::read(&real).unwrap(), [line.as_bytes(), b"\n", &before].concat());
        assert!(exclude(&link, line).unwrap());
        assert!(!exclude(&link, line).unwrap());
        assert_eq!(fs::read(&real).unwrap(), before);
        assert!(link.is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_that_is_not_there_is_made_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(".ssh/config");
        assert!(!exclude(&file, "Include x").unwrap());
        assert!(!file.exists());
        assert!(include(&file, "Include x").unwrap());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let of_folder = fs::metadata(file.parent().unwrap()).unwrap();
        assert_eq!(of_folder.permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn words_survive_ssh_and_the_shell() {
        let word = |text: &str| shell_word(OsStr::new(text)).unwrap();
        assert_eq!(word("/usr/bin/banger"), "/usr/bin/banger");
        assert_eq!(word("/a b/it's 5%"), "'/a b/it'\\''s 5%%'");
        assert_eq!(quoted(Path::new("/a b/5%")).unwrap(), "\"/a b/5%%\"");
        assert!(quoted(Path::new("/a\"b")).is_err());
    }
}
