//! The guest's name: the kernel's, `/etc/hostname`, and a line in `/etc/hosts` so that it resolves without anybody's help:
//! to the guest's own address if it has one, under the name that others know it by first (`hostname -f` says that).

use std::io;
use std::path::Path;

use banger_api::GuestNet;

use crate::replaced::{WriteError, make_hold};

#[derive(Debug, thiserror::Error)]
pub(crate) enum NameError {
    #[error("cannot set the hostname {name:?}")]
    Hostname {
        name: String,
        #[source]
        cause: io::Error,
    },
    #[error("the guest's name is not written down")]
    Write(#[from] WriteError),
}

/// Marks the line that is ours, so that a renamed guest does not keep its old names.
const MARK: &str = "# banger";

pub(crate) fn set(name: Option<&str>, net: Option<&GuestNet>) -> Result<(), NameError> {
    if let Some(name) = name {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|errno| NameError::Hostname { name: name.to_owned(), cause: errno.into() })?;
        make_hold(Path::new("/etc/hostname"), |_| format!("{name}\n"))?;
    }
    Ok(make_hold(Path::new("/etc/hosts"), |old| hosts(old, name, net))?)
}

fn hosts(old: &str, name: Option<&str>, net: Option<&GuestNet>) -> String {
    let mut new: String =
        old.lines().filter(|line| !line.ends_with(MARK)).map(|line| format!("{line}\n")).collect();
    if !has(&new, "localhost") {
        new.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    }
    if let Some(name) = name
        && !has(&new, name)
    {
        new.push_str(&match net {
            Some(GuestNet { address, zone, .. }) => {
                format!("{address}\t{name}.{zone} {name} {MARK}\n")
            }
            None => format!("127.0.1.1\t{name} {MARK}\n"),
        });
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
        let first = hosts("", Some("box"), None);
        assert_eq!(
            first,
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tbox # banger\n"
        );
        assert_eq!(hosts(&first, Some("box"), None), first);
    }

    #[test]
    fn a_renamed_guest_loses_its_old_name_and_nothing_else() {
        let old = hosts("127.0.0.1 localhost\n10.0.0.1 db # mine\n", Some("old"), None);
        assert_eq!(
            hosts(&old, Some("new"), None),
            "127.0.0.1 localhost\n10.0.0.1 db # mine\n127.0.1.1\tnew # banger\n"
        );
    }

    #[test]
    fn a_guest_with_an_address_is_known_by_it_and_by_the_one_it_has_now() {
        let net = |value| GuestNet::parse(value).unwrap();
        let first = hosts(
            "127.0.0.1 localhost\n",
            Some("box"),
            Some(&net("10.213.0.2/22,10.213.0.1,1500")),
        );
        assert_eq!(first, "127.0.0.1 localhost\n10.213.0.2\tbox.vm box # banger\n");
        let moved = net("10.213.0.3/22,10.213.0.1,1500,lab");
        let second = hosts(&first, Some("box"), Some(&moved));
        assert_eq!(second, "127.0.0.1 localhost\n10.213.0.3\tbox.lab box # banger\n");
        let without = hosts(&second, Some("box"), None);
        assert_eq!(without, "127.0.0.1 localhost\n127.0.1.1\tbox # banger\n");
    }

    #[test]
    fn a_name_in_a_comment_is_no_name() {
        assert!(
            hosts("127.0.0.1 localhost # box\n", Some("box"), None)
                .ends_with("127.0.1.1\tbox # banger\n")
        );
    }
}
