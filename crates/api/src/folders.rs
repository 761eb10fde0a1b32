//! Where banger keeps its files. The CLI and the daemon must agree on it, so the rules have one home.
//!
//! Pure: decides paths from an environment lookup, and makes, opens and checks nothing.
//!
//! ```text
//!          BANGER_HOME=/x   else
//! state    /x/state         $XDG_STATE_HOME/banger    or ~/.local/state/banger
//! cache    /x/cache         $XDG_CACHE_HOME/banger    or ~/.cache/banger
//! config   /x/config        $XDG_CONFIG_HOME/banger   or ~/.config/banger
//! run      /x/run           $XDG_RUNTIME_DIR/banger   or <state>/run
//! ```

use std::ffi::OsString;
use std::path::PathBuf;

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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoldersError {
    #[error("BANGER_HOME is {0:?}, which is not an absolute path")]
    RelativeHome(OsString),
    #[error(
        "cannot tell where to keep the {kind} folder: neither {variable} nor HOME is an absolute path"
    )]
    NoHome { kind: &'static str, variable: &'static str },
}

impl Folders {
    /// Decides by `lookup`, which is `std::env::var_os` outside of tests. An empty variable counts as absent; so does
    /// a relative XDG path (XDG Base Directory Specification 0.8: such paths are invalid and ignored).
    ///
    /// # Errors
    /// When `BANGER_HOME` is relative, or there is nothing to go by.
    pub fn from_env(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, FoldersError> {
        let given = |variable: &str| lookup(variable).filter(|value| !value.is_empty());
        if let Some(home) = given("BANGER_HOME") {
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

    /// What a daemon started by the CLI writes to its stdout and stderr.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.state.join("bangerd.log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(env: &[(&str, &str)]) -> Result<Folders, FoldersError> {
        Folders::from_env(|name| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
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
