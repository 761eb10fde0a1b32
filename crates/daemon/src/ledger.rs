//! Making and undoing what the ledger says. The only code that acquires and releases claims.
//!
//! ```text
//! start: record the whole plan ─► acquire in order ─► (one fails: the VM's teardown is this same release)
//! stop:  release backwards, every claim, whatever fails ─► keep the failed ones with their causes
//! ```
//! After a crash the same release runs on what the database says. Blocking: callers run it where blocking is allowed.

use banger_api::vm::State;
use banger_api::{Code, Problem, VmId};
use banger_host::{Claim, Host, HostError, Life};
use banger_store::{Store, StoreError};

/// Makes the claims in their order, until one fails.
///
/// # Errors
/// The first that could not be made; what was made until then is in the ledger and is released by [`release`].
pub fn acquire(host: &dyn Host, claims: &[Claim]) -> Result<(), HostError> {
    claims.iter().try_for_each(|claim| host.acquire(claim))
}

/// Which claims a release is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// What stop releases.
    Run,
    /// Everything: delete.
    All,
}

/// Releases every claim of the VM in this scope, the last made first, and records the outcome: `state` with `outcome`
/// when all are gone, `Error` with the causes when some are not.
///
/// # Errors
/// The database's. What could not be released is not an error but the returned problem.
pub fn release(
    host: &dyn Host,
    store: &Store,
    vm: &VmId,
    scope: Scope,
    state: State,
    outcome: Option<&Problem>,
) -> Result<Option<Problem>, StoreError> {
    let claims = store.claims(vm)?;
    let mut released = Vec::new();
    let mut failed = Vec::new();
    for recorded in
        claims.iter().rev().filter(|row| scope == Scope::All || row.claim.life() == Life::Run)
    {
        match host.release(&recorded.claim.held()) {
            Ok(()) => released.push(recorded.sequence),
            Err(error) => failed
                .push((recorded.sequence, Problem::from_error(Code::Leftover, &error).to_string())),
        }
    }
    if failed.is_empty() {
        store.end_release(vm, &released, &failed, state, outcome)?;
        return Ok(None);
    }
    let problem = leftover(&failed);
    store.end_release(vm, &released, &failed, State::Error, Some(&problem))?;
    Ok(Some(problem))
}

fn leftover(failed: &[(i64, String)]) -> Problem {
    let mut problem =
        Problem::new(Code::Leftover, "not everything that the VM held could be released");
    problem.causes = failed.iter().map(|(_, cause)| cause.clone()).collect();
    problem.remedy(
        "remove the cause and repeat `banger vm stop` or `banger vm delete`: both try again",
    )
}
