//! Whom a command runs as: the guest's own `/etc/passwd` and `/etc/group`, read here, since a static program cannot use the
//! guest's name services and must not depend on its libraries.

use std::path::Path;

/// The identity of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// The name, or the number of one without.
    pub(crate) name: String,
    pub(crate) home: String,
    /// `None` when the passwd file does not say.
    pub(crate) shell: Option<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    #[error("no user {0:?} in the guest's /etc/passwd")]
    NoUser(String),
    #[error("no group {0:?} in the guest's /etc/group")]
    NoGroup(String),
}

/// The user that `wanted` names (`NAME`, `UID`, `NAME:GROUP`, `UID:GID`); root when it names none.
pub(crate) fn find(wanted: Option<&str>) -> Result<User, UserError> {
    let read = |path| {
        String::from_utf8_lossy(&std::fs::read(Path::new(path)).unwrap_or_default()).into_owned()
    };
    resolve(wanted.unwrap_or("0"), &read("/etc/passwd"), &read("/etc/group"))
}

fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let number: Option<u32> = if user == "root" { Some(0) } else { user.parse().ok() };
    // A name before a number: a user may be called "1000".
    let entry = passwd.lines().filter_map(Entry::parse).find(|entry| entry.name == user);
    let entry = entry.or_else(|| {
        passwd.lines().filter_map(Entry::parse).find(|entry| Some(entry.uid) == number)
    });
    let mut found = match (entry, number) {
        (Some(entry), _) => User {
            uid: entry.uid,
            gid: entry.gid,
            groups: supplementary(entry.name, group),
            name: entry.name.to_owned(),
            home: entry.home.to_owned(),
            shell: Some(entry.shell).filter(|shell| !shell.is_empty()).map(str::to_owned),
        },
        // An image without users has root all the same.
        (None, Some(0)) => User {
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            name: "root".to_owned(),
            home: "/root".to_owned(),
            shell: None,
        },
        (None, Some(uid)) => User {
            uid,
            gid: 0,
            groups: Vec::new(),
            name: uid.to_string(),
            home: "/".to_owned(),
            shell: None,
        },
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    if let Some(wanted) = wanted_group {
        found.gid = group_id(wanted, group)?;
        // Who names a group wants that one, as with `docker exec --user`.
        found.groups.clear();
    }
    Ok(found)
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl<'a> Entry<'a> {
    /// passwd(5): name:password:uid:gid:comment:home:shell
    fn parse(line: &'a str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
        Some(Self {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home,
            shell: shell.trim_end(),
        })
    }
}

/// group(5): name:password:gid:member,member
fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, members] = fields[..] else { return None };
        Some((name, gid.parse().ok()?, members.trim_end()))
    })
}

fn supplementary(name: &str, text: &str) -> Vec<u32> {
    groups(text)
        .filter(|(_, _, members)| members.split(',').any(|member| member == name))
        .map(|(_, gid, _)| gid)
        .collect()
}

fn group_id(wanted: &str, text: &str) -> Result<u32, UserError> {
    let named = groups(text).find(|(name, _, _)| *name == wanted).map(|(_, gid, _)| gid);
    named.or_else(|| wanted.parse().ok()).ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# no entry\ndev:x:1000:1001:Dev,,,:/home/dev:/bin/zsh\nold:x:7:7::/:\n";
    const GROUP: &str =
        "root:x:0:\ndev:x:1001:\ndocker:x:998:other,dev\nsudo:x:27:dev\ndevs:x:5:devil\n";

    #[test]
    fn a_name_and_its_number_are_the_same_user() {
        let dev = resolve("dev", PASSWD, GROUP).unwrap();
        assert_eq!((dev.uid, dev.gid, dev.groups.as_slice()), (1000, 1001, [998, 27].as_slice()));
        assert_eq!((dev.home.as_str(), dev.shell.as_deref()), ("/home/dev", Some("/bin/zsh")));
        assert_eq!(resolve("1000", PASSWD, GROUP).unwrap(), dev);
    }

    #[test]
    fn a_number_without_an_entry_is_a_user_all_the_same() {
        let user = resolve("4242:77", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.groups.len(), user.home.as_str()), (4242, 77, 0, "/"));
    }

    #[test]
    fn a_group_that_is_named_replaces_the_users_own() {
        let user = resolve("dev:docker", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.groups.len()), (1000, 998, 0));
    }

    #[test]
    fn names_without_an_entry_are_refused_by_name() {
        assert_eq!(resolve("nobody", PASSWD, GROUP), Err(UserError::NoUser("nobody".into())));
        assert_eq!(resolve("dev:wheel", PASSWD, GROUP), Err(UserError::NoGroup("wheel".into())));
        assert_eq!(resolve("", PASSWD, GROUP), Err(UserError::NoUser(String::new())));
    }

    #[test]
    fn root_needs_no_passwd_file_and_an_empty_shell_is_none() {
        for root in ["0", "root"] {
            assert_eq!(resolve(root, "", "").unwrap().home, "/root");
        }
        assert_eq!(resolve("old", PASSWD, GROUP).unwrap().shell, None);
    }
}
