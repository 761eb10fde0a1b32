//! Where banger keeps its files. The CLI and the daemon must agree on it, so the rules have one home.
//!
//! Decides paths from an environment lookup, the host's installation and a uid; makes, opens and checks nothing. Only
//! [`Folders::here`] looks these up.
//!
//! ```text
//!          BANGER_HOME=/x   else, for its owner    else
//!                           and root, installed
//! state    /x/state         /var/lib/banger/state  $XDG_STATE_HOME/banger    or ~/.local/state/banger
//! cache    /x/cache         /var/lib/banger/cache  $XDG_CACHE_HOME/banger    or ~/.cache/banger
//! config   /x/config        /etc/banger            $XDG_CONFIG_HOME/banger   or ~/.config/banger
//! run      /x/run           /run/banger            $XDG_RUNTIME_DIR/banger   or <state>/run
//! ```

use std::ffi::OsString;
use std::path::PathBuf;

use crate::install::{self, Install, InstallError};

/// One installation's folders; all absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// The database, images, kernels and disks: what must not be lost.
    pub state: PathBuf,
    /// What can be fetched or made again.
    pub cache: PathBuf,
    /// Sockets; may be emptied by a reboot.
    pub run: PathBuf,
    pub config: PathBuf,
}

/// Why the folders cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum FoldersError {
    #[error("BANGER_HOME is {0:?}, which is not an absolute path")]
    RelativeHome(OsString),
    #[error(
        "cannot tell where to keep the {kind} folder: neither {variable} nor HOME is an absolute path"
    )]
    NoHome { kind: &'static str, variable: &'static str },
    #[error("cannot tell whether banger is installed here, and for whom")]
    Installation(#[source] InstallError),
}

impl Folders {
    /// Those of this process, and the installation if they are its folders.
    ///
    /// # Errors
    /// When they cannot be told. An installation that cannot be gone by is an error and not ignored: the VMs of other
    /// folders would be shown for those of the installation.
    pub fn here() -> Result<(Self, Option<Install>), FoldersError> {
        let lookup = |variable: &str| std::env::var_os(variable);
        let elsewhere = given(lookup, BANGER_HOME).is_some();
        let installed =
            if elsewhere { None } else { install::read().map_err(FoldersError::Installation)? };
        let folders =
            Self::from_env(lookup, installed.as_ref(), rustix::process::getuid().as_raw())?;
        let installed = installed.filter(|_| folders == Self::installed());
        Ok((folders, installed))
    }

    /// Those of an installation.
    #[must_use]
    pub fn installed() -> Self {
        Self {
            state: install::STATE.into(),
            cache: install::CACHE.into(),
            run: install::RUN.into(),
            config: install::CONFIG.into(),
        }
    }

    /// Decides by `lookup`, which is `std::env::var_os` outside of tests, the host's installation and the caller's uid. An
    /// empty variable counts as absent; so does a relative XDG path (XDG Base Directory Specification 0.8: such paths are
    /// invalid and ignored).
    ///
    /// # Errors
    /// When `BANGER_HOME` is relative, or there is nothing to go by.
    pub fn from_env(
        lookup: impl Fn(&str) -> Option<OsString>,
        installed: Option<&Install>,
        uid: u32,
    ) -> Result<Self, FoldersError> {
        let given = |variable: &str| given(&lookup, variable);
        if let Some(home) = given(BANGER_HOME) {
            let root = PathBuf::from(&home);
            if !root.is_absolute() {
                return Err(FoldersError::RelativeHome(home));
            }
            return Ok(Self {
                state: root.join("state"),
                cache: root.join("cache"),
                run: root.join("run"),
                config: root.join("config"),
            });
        }
        if installed.is_some_and(|install| uid == 0 || uid == install.owner_uid) {
            return Ok(Self::installed());
        }
        let absolute =
            |variable: &str| given(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        let folder = |kind, variable, below_home| {
            let base = absolute(variable).or_else(|| Some(absolute("HOME")?.join(below_home)));
            Ok(base.ok_or(FoldersError::NoHome { kind, variable })?.join("banger"))
        };
        let state = folder("state", "XDG_STATE_HOME", ".local/state")?;
        Ok(Self {
            cache: folder("cache", "XDG_CACHE_HOME", ".cache")?,
            config: folder("config", "XDG_CONFIG_HOME", ".config")?,
            run: absolute("XDG_RUNTIME_DIR")
                .map_or_else(|| state.join("run"), |run| run.join("banger")),
            state,
        })
    }

    /// Where the daemon listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.join("banger.sock")
    }

    /// What ssh clients need: the owner's key, host keys, and a configuration.
    #[must_use]
    pub fn ssh(&self) -> PathBuf {
        self.state.join("ssh")
    }

    /// What a daemon started by the CLI writes to its stdout and stderr.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.state.join("bangerd.log")
    }
}

const BANGER_HOME: &str = "BANGER_HOME";

fn given(lookup: impl Fn(&str) -> Option<OsString>, variable: &str) -> Option<OsString> {
    lookup(variable).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(env: &[(&str, &str)]) -> Result<Folders, FoldersError> {
        with_installation(env, None, 1000)
    }

    fn with_installation(
        env: &[(&str, &str)],
        installed: Option<&Install>,
        uid: u32,
    ) -> Result<Folders, FoldersError> {
        let lookup = |name: &str| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        Folders::from_env(lookup, installed, uid)
    }

    #[test]
    fn an_installation_is_its_owners_and_roots_and_nobody_elses() {
        let alices = install::example();
        let home = [("HOME", "/home/me"), ("XDG_STATE_HOME", "/s")];
        let found = |uid| with_installation(&home, Some(&alices), uid).unwrap();
        assert_eq!(found(alices.owner_uid), Folders::installed());
        assert_eq!(found(0), Folders::installed());
        assert_eq!(found(alices.owner_uid + 1).state, PathBuf::from("/s/banger"));
        assert_eq!(Folders::installed().socket(), PathBuf::from("/run/banger/banger.sock"));
    }

    #[test]
    fn banger_home_wins_over_an_installation() {
        let found = with_installation(&[("BANGER_HOME", "/x")], Some(&install::example()), 1000);
        assert_eq!(found.unwrap().state, PathBuf::from("/x/state"));
    }

    #[test]
    fn banger_home_holds_everything_and_wins_over_xdg() {
        let found =
            folders(&[("BANGER_HOME", "/x"), ("HOME", "/root"), ("XDG_STATE_HOME", "/s")]).unwrap();
        assert_eq!(found.state, PathBuf::from("/x/state"));
        assert_eq!(found.cache, PathBuf::from("/x/cache"));
        assert_eq!(found.config, PathBuf::from("/x/config"));
        assert_eq!(found.socket(), PathBuf::from("/x/run/banger.sock"));
        assert_eq!(found.daemon_log(), PathBuf::from("/x/state/bangerd.log"));
    }

    #[test]
    fn a_relative_banger_home_is_refused_because_two_programs_would_read_it_differently() {
        let error = folders(&[("BANGER_HOME", "x"), ("HOME", "/root")]).unwrap_err();
        assert_eq!(error.to_string(), "BANGER_HOME is \"x\", which is not an absolute path");
    }

    #[test]
    fn xdg_variables_move_each_folder() {
        let found = folders(&[
            ("HOME", "/home/me"),
            ("XDG_STATE_HOME", "/s"),
            ("XDG_CACHE_HOME", "/c"),
            ("XDG_CONFIG_HOME", "/f"),
            ("XDG_RUNTIME_DIR", "/run/user/1"),
        ])
        .unwrap();
        assert_eq!(found.state, PathBuf::from("/s/banger"));
        assert_eq!(found.cache, PathBuf::from("/c/banger"));
        assert_eq!(found.config, PathBuf::from("/f/banger"));
        assert_eq!(found.run, PathBuf::from("/run/user/1/banger"));
    }

    #[test]
    fn home_alone_is_enough_and_the_sockets_then_stand_below_the_state() {
        let found = folders(&[
            ("HOME", "/home/me"),
            ("BANGER_HOME", ""),
            ("XDG_CACHE_HOME", "not/absolute"),
        ])
        .unwrap();
        assert_eq!(found.state, PathBuf::from("/home/me/.local/state/banger"));
        assert_eq!(found.cache, PathBuf::from("/home/me/.cache/banger"));
        assert_eq!(found.config, PathBuf::from("/home/me/.config/banger"));
        assert_eq!(found.run, PathBuf::from("/home/me/.local/state/banger/run"));
    }

    #[test]
    fn without_any_home_the_missing_folder_is_named() {
        let error = folders(&[("XDG_STATE_HOME", "/s"), ("HOME", "here")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot tell where to keep the cache folder: neither XDG_CACHE_HOME nor HOME is an absolute path"
        );
    }
}
