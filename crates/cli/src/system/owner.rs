//! Whom the daemon works for: a user of this host, as the name service knows it (nsswitch.conf(5)).

use std::path::PathBuf;

use banger_api::{Code, Problem};

use crate::programs;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: PathBuf,
}

/// The user of that name.
///
/// # Errors
/// When there is none, or it is root.
pub(crate) fn look_up(name: &str) -> Result<Owner, Problem> {
    // getent takes a number for a uid; we want the name that the user has.
    let line = programs::run("getent", &["passwd", "--", name]).map_err(|problem| {
        let mut missing = Problem::new(Code::NotFound, format!("there is no user {name:?}"));
        // 2: the key is not there (getent(1)), and nothing more to say.
        if problem.causes.first().is_none_or(|status| status != "exit status: 2") {
            missing = missing.cause(&problem);
        }
        missing.remedy("name an ordinary user of this host with --owner")
    })?;
    let owner = parse(&line).ok_or_else(|| {
        Problem::new(Code::Internal, format!("cannot look up the user {name:?}"))
            .because(format!("getent says {:?}", line.trim_end()))
    })?;
    if owner.uid == 0 {
        return Err(Problem::new(Code::Invalid, format!("cannot install for {name}"))
            .because("that is root, and the daemon never runs as root")
            .remedy("name the user who will use banger: --owner USER"));
    }
    Ok(owner)
}

/// Refuses a host without the group that /dev/kvm belongs to (systemd's rules for devices): a unit that names a group which
/// is not there does not start.
///
/// # Errors
/// When it is not there.
pub(crate) fn kvm_group() -> Result<(), Problem> {
    programs::run("getent", &["group", "kvm"]).map(drop).map_err(|problem| {
        Problem::new(Code::Missing, "there is no group kvm, which /dev/kvm is to belong to")
            .cause(&problem)
            .remedy("`sudo groupadd --system kvm`")
    })
}

/// passwd(5): `name:password:uid:gid:comment:home:shell`.
fn parse(line: &str) -> Option<Owner> {
    let fields: Vec<&str> = line.trim_end().split(':').collect();
    let [name, _, uid, gid, _, home, _] = fields[..] else { return None };
    Some(Owner {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: home.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_line_of_passwd() {
        let owner = parse("alice:x:1000:1001:Alice,,,:/home/alice:/bin/bash\n").unwrap();
        assert_eq!((owner.name.as_str(), owner.uid, owner.gid), ("alice", 1000, 1001));
        assert_eq!(owner.home, PathBuf::from("/home/alice"));
        assert_eq!(parse("alice:x:1000"), None);
    }

    #[test]
    fn root_and_a_user_that_is_not_there_are_refused_by_name() {
        assert!(look_up("root").unwrap_err().causes[0].contains("never runs as root"));
        let problem = look_up("no-such-user").unwrap_err();
        assert_eq!(problem.message, "there is no user \"no-such-user\"");
        assert!(problem.causes.is_empty(), "{problem}");
    }
}
