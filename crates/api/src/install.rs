//! An installation: one owner's daemon and root's helper as systemd units. What it is made of has its home here, since the
//! CLI makes and removes it, the daemon and the helper go by it, and doctor compares it.
//!
//! ```text
//! /etc/banger                root   install.toml ([`Install`]), config.toml
//! /usr/local/lib/banger      root   the programs, unless a package has brought them to /usr/lib/banger
//! /var/lib/banger            root
//!   state, cache             owner  database, images, kernels, disks; what can be made again
//!   jails                    root   one folder per jailed VMM
//! /run/banger                owner  the daemon's socket, folders for VMs' sockets
//! /run/banger-helper.sock    owner  the helper's socket, listened on by systemd
//! ```
//! State and jails are below one folder, so that one mount holds both: hard links are made from one to the other.

pub mod units;

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::ids::ID_ALPHABET;

/// Root's folder of what was decided at the installation, and of the daemon's configuration.
pub const CONFIG: &str = "/etc/banger";
/// [`Install`].
pub const FILE: &str = "/etc/banger/install.toml";
/// Root's folder around the three that follow.
pub const DATA: &str = "/var/lib/banger";
pub const STATE: &str = "/var/lib/banger/state";
pub const CACHE: &str = "/var/lib/banger/cache";
pub const JAILS: &str = "/var/lib/banger/jails";
/// In the state: the installation's id, which outlives the database and `install.toml`.
pub const ID_FILE: &str = "installation";
/// Made by systemd when the daemon starts.
pub const RUN: &str = "/run/banger";
pub const HELPER_SOCKET: &str = "/run/banger-helper.sock";
/// The CLI, when no package has brought it.
pub const COMMAND: &str = "/usr/local/bin/banger";
/// Where an installation puts programs. Firecracker's are always here: no package of ours has them.
pub const PROGRAMS: &str = "/usr/local/lib/banger";
/// Where a package puts them.
pub const PACKAGED_PROGRAMS: &str = "/usr/lib/banger";
/// Which kernel modules are loaded at boot (modules-load.d(5)).
pub const MODULES_FILE: &str = "/etc/modules-load.d/banger.conf";

/// In the folder of programs.
pub const DAEMON: &str = "bangerd";
pub const HELPER: &str = "banger-helper";
pub const AGENT: &str = "guest/banger-agent";
pub const FIRECRACKER: &str = "firecracker";
pub const JAILER: &str = "jailer";

/// What a VM's uid is counted from when nobody says otherwise. Between what systemd gives to containers and what it calls
/// off limits (its documentation, UIDS-GIDS).
pub const UID_BASE: u32 = 1_900_000_000;
/// How many VMs can run at once.
pub const UID_COUNT: u32 = 10_000;

/// Below this are users of the host's (systemd's UIDS-GIDS, Debian policy 9.2.2).
const LOWEST_UID: u32 = 65_536;
/// Longer than any such file is.
const LONGEST: u64 = 64 * 1024;
/// How many characters of [`ID_ALPHABET`] an installation's id has.
pub const ID_LENGTH: usize = 4;

/// What was decided at the installation: the content of [`FILE`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Install {
    /// Of the banger that wrote this.
    pub version: String,
    /// For whom the daemon works, and as whom.
    pub owner_name: String,
    pub owner_uid: u32,
    /// The id in every mark, see `banger_host::Installation`.
    pub installation: String,
    /// The first uid for a VM of its own; the gid is the same number.
    pub uid_base: u32,
    pub uid_count: u32,
    /// The folder with [`DAEMON`], [`HELPER`] and [`AGENT`].
    pub programs: PathBuf,
    /// Need not be there: then VMs run on QEMU.
    pub firecracker: PathBuf,
    pub jailer: PathBuf,
}

/// Why [`FILE`] cannot be gone by.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// What root goes by must be root's.
    #[error("{path} is not to be trusted: {why}")]
    Distrusted { path: PathBuf, why: String },
    #[error("{path} does not say what an installation is: {why}")]
    Damaged { path: PathBuf, why: String },
}

/// The installation of this host, from [`FILE`]; `None` when there is none.
///
/// # Errors
/// When the file is there and cannot be gone by: it or its folder is not root's alone, or its content does not fit.
pub fn read() -> Result<Option<Install>, InstallError> {
    read_file(Path::new(FILE))
}

fn read_file(path: &Path) -> Result<Option<Install>, InstallError> {
    let failed = |cause| InstallError::Read { path: path.to_owned(), cause };
    let distrusted = |path: &Path, why| InstallError::Distrusted { path: path.to_owned(), why };
    let damaged = |why: String| InstallError::Damaged { path: path.to_owned(), why };
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(|e| failed(io::Error::other(e)))?;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(distrusted(path, "it is no regular file".to_owned()));
    }
    roots_alone(&found).map_err(|why| distrusted(path, why))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let around = folder.symlink_metadata().map_err(failed)?;
    roots_alone(&around).map_err(|why| distrusted(folder, why))?;
    if found.len() > LONGEST {
        return Err(damaged(format!("it is longer than {LONGEST} bytes")));
    }
    Install::parse(&text_of(file).map_err(failed)?).map(Some).map_err(damaged)
}

fn text_of(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// Whether only root can write it.
///
/// # Errors
/// Who else can.
pub fn roots_alone(found: &Metadata) -> Result<(), String> {
    if found.uid() != 0 {
        return Err(format!("it belongs to uid {}, not to root", found.uid()));
    }
    // A link's own mode is always 0777 and means nothing (inode(7)).
    if !found.is_symlink() && found.mode() & 0o022 != 0 {
        return Err(format!("others than root may write it (mode {:04o})", found.mode() & 0o7777));
    }
    Ok(())
}

impl Install {
    /// # Errors
    /// What does not fit, by its name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let install: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        install.check()?;
        Ok(install)
    }

    /// Whether it is one that can be gone by: as strict on what is about to be written as on what was read.
    ///
    /// # Errors
    /// What does not fit, by its name.
    pub fn check(&self) -> Result<(), String> {
        let one_word = |text: &str, others: &[u8]| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || others.contains(&b))
        };
        if !one_word(&self.version, b".+-~") {
            return Err(format!("version: {:?} is none", self.version));
        }
        // It becomes part of unit files: no blank, no `%` (systemd.unit(5), specifiers).
        if !one_word(&self.owner_name, b"._-") || self.owner_name.starts_with('-') {
            return Err(format!(
                "owner_name: {:?} is not a user name of letters, digits and . _ -",
                self.owner_name
            ));
        }
        if self.owner_uid == 0 {
            return Err("owner_uid: the daemon is never root".to_owned());
        }
        let id = self.installation.as_bytes();
        if id.len() != ID_LENGTH || !id.iter().all(|byte| ID_ALPHABET.contains(byte)) {
            return Err(format!(
                "installation: {:?} is not {ID_LENGTH} characters of 0-9a-z without i, l, o, u",
                self.installation
            ));
        }
        if self.uid_base < LOWEST_UID {
            return Err(format!("uid_base: below {LOWEST_UID} are users of the host's"));
        }
        // -1 is nobody's id: chown(2) takes it for "leave it as it is".
        let last = self.uid_base.checked_add(self.uid_count).filter(|&end| end < u32::MAX);
        let Some(end) = last.filter(|_| self.uid_count > 0) else {
            return Err(format!(
                "uid_count: {} from {} on are no range of uids",
                self.uid_count, self.uid_base
            ));
        };
        if (self.uid_base..end).contains(&self.owner_uid) {
            return Err("uid_base: the owner's uid must not be a VM's".to_owned());
        }
        for (name, path) in [
            ("programs", &self.programs),
            ("firecracker", &self.firecracker),
            ("jailer", &self.jailer),
        ] {
            let plain = path.to_str().is_some_and(|text| one_word(text, b"/._+-"));
            let below = |part| matches!(part, Component::RootDir | Component::Normal(_));
            if !plain || !path.is_absolute() || !path.components().all(below) {
                return Err(format!(
                    "{name}: {} is not an absolute path of letters, digits and . _ + -",
                    path.display()
                ));
            }
        }
        Ok(())
    }

    /// Whether a package has brought the programs.
    #[must_use]
    pub fn is_packaged(&self) -> bool {
        self.programs == Path::new(PACKAGED_PROGRAMS)
    }

    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// As [`Self::parse`] reads it. What [`Self::check`] has passed needs no escape in TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        format!(
            "# Written by `banger system install`, which also changes it: edit config.toml, not this.
version = \"{}\"

# For whom the daemon works, and as whom. The helper answers this uid and root, nobody else.
owner_name = \"{}\"
owner_uid = {}

# In the name of everything that is ours on this host.
installation = \"{}\"

# Every VM runs under a uid of its own; its gid is the same number.
uid_base = {}
uid_count = {}

programs = \"{}\"
firecracker = \"{}\"
jailer = \"{}\"
",
            self.version,
            self.owner_name,
            self.owner_uid,
            self.installation,
            self.uid_base,
            self.uid_count,
            self.programs.display(),
            self.firecracker.display(),
            self.jailer.display(),
        )
    }

    /// Every file of ours that is a text, with its content; all root's, mode 0644. `install.toml` is the first: whoever
    /// finds one of the others can read what it belongs to.
    #[must_use]
    pub fn texts(&self) -> Vec<(&'static str, String)> {
        let mut texts = vec![(FILE, self.to_toml())];
        texts.extend(units::units(self));
        texts.push((MODULES_FILE, units::MODULES.to_owned()));
        texts
    }
}

/// Whose a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    Root,
    Owner,
}

/// A folder of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Folder {
    pub path: &'static str,
    pub whose: Whose,
    pub mode: u32,
}

/// The folders, outer ones first. [`RUN`] is not among them: systemd makes it.
pub const FOLDERS: [Folder; 5] = [
    Folder { path: CONFIG, whose: Whose::Root, mode: 0o755 },
    Folder { path: DATA, whose: Whose::Root, mode: 0o755 },
    Folder { path: STATE, whose: Whose::Owner, mode: 0o700 },
    Folder { path: CACHE, whose: Whose::Owner, mode: 0o700 },
    Folder { path: JAILS, whose: Whose::Root, mode: 0o700 },
];

/// As systemd makes [`RUN`].
pub const RUN_FOLDER: Folder = Folder { path: RUN, whose: Whose::Owner, mode: 0o700 };

/// An installation as this version would make it.
#[cfg(test)]
pub(crate) fn example() -> Install {
    Install {
        version: "0.1.0".to_owned(),
        owner_name: "alice".to_owned(),
        owner_uid: 1000,
        installation: "0a1b".to_owned(),
        uid_base: UID_BASE,
        uid_count: UID_COUNT,
        programs: PROGRAMS.into(),
        firecracker: Path::new(PROGRAMS).join(FIRECRACKER),
        jailer: Path::new(PROGRAMS).join(JAILER),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        assert_eq!(Install::parse(&example().to_toml()), Ok(example()));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_its_name() {
        type Edit = fn(&mut Install);
        let edits: [(&str, Edit); 15] = [
            ("version", |i| i.version = "1 2".to_owned()),
            ("owner_name", |i| i.owner_name = "a b".to_owned()),
            ("owner_name", |i| i.owner_name = "-a".to_owned()),
            ("owner_name", |i| i.owner_name = "a%h".to_owned()),
            ("owner_name", |i| i.owner_name = "a\nUser=root".to_owned()),
            ("owner_name", |i| i.owner_name.clear()),
            ("owner_uid", |i| i.owner_uid = 0),
            ("installation", |i| i.installation = "0a1".to_owned()),
            ("installation", |i| i.installation = "0a1i".to_owned()),
            ("uid_base", |i| i.uid_base = 1000),
            ("uid_base", |i| i.owner_uid = UID_BASE + 5),
            ("uid_count", |i| i.uid_count = 0),
            ("uid_count", |i| i.uid_count = u32::MAX - UID_BASE),
            ("programs", |i| i.programs = "lib/banger".into()),
            ("jailer", |i| i.jailer = "/usr/lib/../tmp/jailer".into()),
        ];
        for (name, edit) in edits {
            let mut install = example();
            edit(&mut install);
            let why = Install::parse(&install.to_toml()).unwrap_err();
            let named = why.starts_with(name) || why.contains("TOML");
            assert!(named, "{name}: {why}");
            assert!(install.check().unwrap_err().starts_with(name), "{name}");
        }
    }

    #[test]
    fn an_unknown_key_and_a_missing_one_are_refused() {
        let text = example().to_toml() + "shell = \"/bin/sh\"\n";
        assert!(Install::parse(&text).unwrap_err().contains("shell"));
        let text = example().to_toml().replace("uid_base", "# uid_base");
        assert!(Install::parse(&text).unwrap_err().contains("uid_base"));
    }

    #[test]
    fn no_file_is_no_installation() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read_file(&folder.path().join("install.toml")).unwrap(), None);
    }

    #[test]
    fn a_file_that_others_could_have_written_is_not_gone_by() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("install.toml");
        std::fs::write(&path, example().to_toml()).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o664)).unwrap();
        // As an ordinary user the file is not even root's.
        let why = read_file(&path).unwrap_err().to_string();
        assert!(why.contains("not to be trusted"), "{why}");
        std::os::unix::fs::symlink("install.toml", folder.path().join("link")).unwrap();
        assert!(matches!(read_file(&folder.path().join("link")), Err(InstallError::Read { .. })));
        assert!(matches!(read_file(folder.path()), Err(InstallError::Distrusted { .. })));
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_only_the_owners_are_the_owners() {
        for (index, folder) in FOLDERS.iter().enumerate() {
            let parent = Path::new(folder.path).parent().unwrap();
            let later = FOLDERS[index..].iter().any(|other| Path::new(other.path) == parent);
            assert!(!later, "{} comes before its parent", folder.path);
            // Whoever may rename jails could lead root astray.
            assert!(folder.whose == Whose::Root || folder.mode & 0o077 == 0, "{}", folder.path);
        }
    }

    #[test]
    fn every_text_lies_where_only_root_writes() {
        for (path, text) in example().texts() {
            assert!(path.starts_with("/etc/"), "{path}");
            assert!(text.starts_with("# "), "{path} does not say what it is");
            assert!(!text.contains('{'), "{path} has a gap that nothing fills:\n{text}");
        }
    }
}
