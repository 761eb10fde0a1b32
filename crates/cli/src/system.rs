//! Installs banger on this host and takes it away again: what `banger system …` needs beyond the verbs.
//!
//! ```text
//! plan      what will be there, and what will be removed: pure
//! files     makes and removes folders and files, do beside undo
//! sources   where the programs are that are installed
//! owner     whom the daemon will work for
//! systemd   units: reload, start, stop, states
//! waiting   for sockets and processes, by events with a deadline
//! leftovers what VMs still hold when nobody answers who could end them
//! ```

pub(crate) mod files;
pub(crate) mod leftovers;
pub(crate) mod owner;
pub(crate) mod plan;
pub(crate) mod sources;
pub(crate) mod systemd;
pub(crate) mod waiting;

use std::path::Path;

use banger_api::install::{self, Install};
use banger_api::{Code, Problem};

/// Refuses who may not change an installation, and hosts that cannot have one.
///
/// # Errors
/// When this is not root, or systemd does not run here.
pub(crate) fn may_change(verb: &str) -> Result<(), Problem> {
    may(verb, rustix::process::geteuid().is_root(), systemd::runs_here())
}

fn may(verb: &str, root: bool, systemd: bool) -> Result<(), Problem> {
    let refuse = |why: &str, remedy: String| {
        let message = format!("cannot {verb} banger's system services");
        Err(Problem::new(Code::Missing, message).because(why).remedy(remedy))
    };
    if !root {
        return refuse("only root may", format!("`sudo banger system {verb}`"));
    }
    if !systemd {
        let remedy = "use banger without an installation: the first command starts the daemon";
        return refuse("systemd does not run on this host", remedy.to_owned());
    }
    Ok(())
}

/// The installation of this host.
///
/// # Errors
/// When there is none, or it cannot be gone by.
pub(crate) fn installed() -> Result<Install, Problem> {
    match install::read() {
        Ok(Some(installed)) => Ok(installed),
        Ok(None) => Err(Problem::new(Code::NotFound, "banger is not installed as a service here")
            .remedy("`sudo banger system install --owner USER`")),
        Err(error) => Err(Problem::from_error(Code::Damaged, &error)
            .remedy(format!("correct {}, or remove it and install again", install::FILE))),
    }
}

/// Whether the file is there, whatever it is.
pub(crate) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_root_and_no_systemd_are_refused_by_name() {
        let why = |root, systemd| may("install", root, systemd).unwrap_err().causes.concat();
        assert_eq!(why(false, true), "only root may");
        assert_eq!(why(false, false), "only root may");
        assert_eq!(why(true, false), "systemd does not run on this host");
        may("install", true, true).unwrap();
    }
}
