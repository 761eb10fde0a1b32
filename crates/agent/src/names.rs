//! The guest's name: the kernel's, `/etc/hostname`, and a line in `/etc/hosts` so that it resolves without a network.
//!
//! Runs inside the new root, so no symlink of the image leads out of it; a file is replaced, never written through.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub(crate) enum NameError {
    #[error("cannot set the hostname {name:?}")]
    Hostname {
        name: String,
        #[source]
        cause: io::Error,
    },
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

/// Marks the line that is ours, so that a renamed guest does not keep its old names.
const MARK: &str = "# banger";

pub(crate) fn set(name: Option<&str>) -> Result<(), NameError> {
    if let Some(name) = name {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|errno| NameError::Hostname { name: name.to_owned(), cause: errno.into() })?;
        make_hold(Path::new("/etc/hostname"), |_| format!("{name}\n"))?;
    }
    make_hold(Path::new("/etc/hosts"), |old| hosts(old, name))
}

/// Replaces the file unless it holds the text already. An image without the folder needs no such file.
fn make_hold(path: &Path, text: impl Fn(&str) -> String) -> Result<(), NameError> {
    let failed = |cause| NameError::Write { path: path.to_owned(), cause };
    if !path.parent().is_some_and(Path::is_dir) {
        return Ok(());
    }
    let old = std::fs::read(path).unwrap_or_default();
    let new = text(&String::from_utf8_lossy(&old));
    if new.as_bytes() == old {
        return Ok(());
    }
    let temporary = path.with_extension("banger-new");
    std::fs::write(&temporary, new).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}

fn hosts(old: &str, name: Option<&str>) -> String {
    let mut new: String =
        old.lines().filter(|line| !line.ends_with(MARK)).map(|line| format!("{line}\n")).collect();
    if !has(&new, "localhost") {
        new.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    }
    if let Some(name) = name
        && !has(&new, name)
    {
        new.push_str(&format!("127.0.1.1\t{name} {MARK}\n"));
    }
    new
}

fn has(hosts: &str, name: &str) -> bool {
    hosts.lines().any(|line| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_ascii_whitespace().skip(1).any(|word| word == name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_without_the_names_gets_them_once() {
        let first = hosts("", Some("box"));
        assert_eq!(
            first,
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tbox # banger\n"
        );
        assert_eq!(hosts(&first, Some("box")), first);
    }

    #[test]
    fn a_renamed_guest_loses_its_old_name_and_nothing_else() {
        let old = hosts("127.0.0.1 localhost\n10.0.0.1 db # mine\n", Some("old"));
        assert_eq!(
            hosts(&old, Some("new")),
            "127.0.0.1 localhost\n10.0.0.1 db # mine\n127.0.1.1\tnew # banger\n"
        );
    }

    #[test]
    fn a_name_in_a_comment_is_no_name() {
        assert!(
            hosts("127.0.0.1 localhost # box\n", Some("box"))
                .ends_with("127.0.1.1\tbox # banger\n")
        );
    }

    #[test]
    fn a_symlink_is_replaced_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (link, target) = (folder.path().join("hostname"), folder.path().join("target"));
        std::fs::write(&target, "untouched").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        make_hold(&link, |_| "box\n".to_owned()).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "untouched");
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "box\n");
    }
}
