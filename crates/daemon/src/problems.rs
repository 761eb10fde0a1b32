//! Errors of the layers below, as the problems that people read: what kind of trouble, and what to do next.

use std::io::ErrorKind;

use banger_api::egress::EgressError;
use banger_api::{Code, Problem};
use banger_dns::BindError;
use banger_host::HostError;
use banger_store::StoreError;

pub(crate) fn store(error: StoreError) -> Problem {
    let code = match &error {
        StoreError::Damaged { .. } | StoreError::NotWhole { .. } | StoreError::Newer { .. } => {
            Code::Damaged
        }
        StoreError::Taken { .. } | StoreError::NoAddress | StoreError::NoNetwork => Code::Conflict,
        error if error.is_full() => Code::NoSpace,
        StoreError::Failed { .. } => Code::Internal,
    };
    let remedy = match &error {
        StoreError::Damaged { path, .. } | StoreError::NotWhole { path, .. } => Some(format!(
            "restore {0} from a backup, or move it away: the next start makes a new one; VMs that still run are then \
             shown by `banger doctor` and are not touched",
            path.display()
        )),
        StoreError::Newer { .. } => {
            Some("use the newer banger, or give this one a state folder of its own".into())
        }
        StoreError::NoNetwork => Some("repeat the command".into()),
        error if error.is_full() => Some(FREE_SPACE.into()),
        _ => None,
    };
    Problem { remedy, ..Problem::from_error(code, &error) }
}

pub(crate) const FREE_SPACE: &str =
    "free some space: `banger vm prune`, `banger image delete NAME`";

/// A DNS server that could not be had.
pub(crate) fn dns(error: &BindError) -> Problem {
    Problem::from_error(Code::Conflict, error)
}

pub(crate) fn host(error: &HostError) -> Problem {
    let problem = |code| Problem::from_error(code, error);
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            problem(Code::NoSpace).remedy(FREE_SPACE)
        }
        ErrorKind::NotFound => {
            problem(Code::Missing).remedy("see `banger doctor` for what this host lacks")
        }
        ErrorKind::TimedOut => problem(Code::Timeout),
        _ => problem(Code::Internal),
    }
}

/// What somebody wants a VM to reach, and is no policy.
pub(crate) fn egress(error: &EgressError) -> Problem {
    Problem::new(Code::Invalid, error.to_string())
}

pub(crate) fn no_vm(reference: &str) -> Problem {
    Problem::new(Code::NotFound, format!("there is no VM {reference:?}"))
        .remedy("`banger vm list` shows those there are")
}

/// Blocking work that panicked or was cancelled: a defect.
pub(crate) fn task(error: &tokio::task::JoinError) -> Problem {
    Problem::new(Code::Internal, "a task of the daemon died").because(error.to_string())
}
