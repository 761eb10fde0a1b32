//! Making and undoing what the ledger says. The only code that acquires and releases claims.
//!
//! ```text
//! start: record the whole plan ─► acquire, its network beside the rest ─► (one fails: the VM's teardown is this same release)
//! stop:  release backwards, every claim, whatever fails ─► keep the failed ones with their causes
//! ```
//! After a crash the same release runs on what the database says. Blocking: callers run it where blocking is allowed.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use banger_api::vm::State;
use banger_api::{Code, Problem, VmId};
use banger_host::{Claim, Host, HostError, Life, Part};
use banger_store::{RecordedClaim, Store, StoreError};

/// Makes the claims of each part in their order, its network beside the rest, until one fails.
///
/// # Errors
/// The first that could not be made; what was made until then is in the ledger and is released by [`release`].
pub fn acquire(host: &dyn Host, claims: &[Claim]) -> Result<(), HostError> {
    let needs_all = claims.iter().position(Claim::needs_all_before).unwrap_or(claims.len());
    let (at_once, afterwards) = claims.split_at(needs_all);
    let (network, machine): (Vec<_>, Vec<_>) =
        at_once.iter().partition(|claim| claim.held().part() == Part::Network);
    let has_failed = AtomicBool::new(false);
    let make = |claims: &[&Claim]| {
        let mut left = claims.iter().take_while(|_| !has_failed.load(Ordering::Relaxed));
        let made = left.try_for_each(|claim| host.acquire(claim));
        has_failed.fetch_or(made.is_err(), Ordering::Relaxed);
        made
    };
    if network.is_empty() || machine.is_empty() {
        make(&network).and_then(|()| make(&machine))?;
    } else {
        thread::scope(|scope| {
            let beside = scope.spawn(|| make(&network));
            let made = make(&machine);
            let beside = beside.join().unwrap_or_else(|panic| resume_unwind(panic));
            made.and(beside)
        })?;
    }
    afterwards.iter().try_for_each(|claim| host.acquire(claim))
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
    let in_scope = |claim: &Claim| scope == Scope::All || claim.life() == Life::Run;
    let (released, failed) = release_each(host, &store.claims(vm)?, in_scope);
    if failed.is_empty() {
        store.end_release(vm, &released, &failed, state, outcome)?;
        return Ok(None);
    }
    let problem = leftover(&failed);
    store.end_release(vm, &released, &failed, State::Error, Some(&problem))?;
    Ok(Some(problem))
}

/// Releases what a VM that goes on no longer needs, and records the outcome.
///
/// # Errors
/// The database's. What could not be released is not an error but the returned problem; it stays in the ledger.
pub fn release_some(
    host: &dyn Host,
    store: &Store,
    vm: &VmId,
    which: impl Fn(&Claim) -> bool,
) -> Result<Option<Problem>, StoreError> {
    let (released, failed) = release_each(host, &store.claims(vm)?, which);
    store.end_partial_release(vm, &released, &failed)?;
    Ok((!failed.is_empty()).then(|| leftover(&failed)))
}

/// The numbers of those that are gone, and of those that are not, with their causes.
type Released = (Vec<i64>, Vec<(i64, String)>);

fn release_each(
    host: &dyn Host,
    claims: &[RecordedClaim],
    which: impl Fn(&Claim) -> bool,
) -> Released {
    let (mut released, mut failed) = (Vec::new(), Vec::new());
    for recorded in claims.iter().rev().filter(|row| which(&row.claim)) {
        match host.release(&recorded.claim.held()) {
            Ok(()) => released.push(recorded.sequence),
            Err(error) => failed
                .push((recorded.sequence, Problem::from_error(Code::Leftover, &error).to_string())),
        }
    }
    (released, failed)
}

fn leftover(failed: &[(i64, String)]) -> Problem {
    let mut problem =
        Problem::new(Code::Leftover, "not everything that the VM held could be released");
    problem.causes = failed.iter().map(|(_, cause)| cause.clone()).collect();
    problem.remedy(
        "remove the cause and repeat `banger vm stop` or `banger vm delete`: both try again",
    )
}
