//! A daemon starts: what its predecessor left is adopted if it lives, and ended if it does not.
//!
//! ```text
//! recorded as   its VMM lives                            its VMM is gone
//! Running       adopt: same boot id, same channel        release, Stopped
//! Starting      wait for ready as its start did          release, Stopped
//! Stopping      finish the stop by killing it            release, Stopped
//! Deleting      finish the delete                        finish the delete
//! ```
//! A VM whose session has ended with the old daemon (`ephemeral`) is deleted. Things that carry our mark and no row are
//! shown by `doctor`, and released only when somebody asks: the database may be the one that is wrong.

use std::collections::HashSet;
use std::sync::Arc;

use banger_api::vm::State;
use banger_api::{Code, Problem};
use banger_host::Held;
use banger_store::VmRecord;
use banger_vmm::Channel;
use banger_vmm::channel::Serial;
use tokio::time::Instant;

use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

/// A stray, and whether it is gone.
pub type ReleasedStray = (Held, Result<(), Problem>);

impl Daemon {
    /// Takes over, VM by VM, each in a task of its own: the API is served meanwhile, and waits for the VM's turn.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub fn take_over(self: &Arc<Self>) -> Result<(), Problem> {
        let at = jiff::Timestamp::now();
        let ended = Problem::new(Code::Cancelled, "the daemon ended before this was done");
        self.store.end_unfinished_operations(at, &ended).map_err(problems::store)?;
        for vm in self.store.vms().map_err(problems::store)? {
            let rests = matches!(vm.state, State::Stopped | State::Error);
            if rests && !vm.ephemeral {
                continue;
            }
            let operation = self.operations.begin("vm adopt", vm.name.as_str())?;
            let daemon = Arc::clone(self);
            drop(tokio::spawn(async move {
                let outcome = daemon.take_over_one(vm, &operation).await;
                daemon
                    .operations
                    .end(&operation, outcome.as_ref().map(|()| &serde_json::Value::Null));
            }));
        }
        Ok(())
    }

    async fn take_over_one(
        self: &Arc<Self>,
        vm: VmRecord,
        operation: &Operation,
    ) -> Result<(), Problem> {
        if vm.ephemeral || vm.state == State::Deleting {
            return self.delete(&vm.id, operation).await;
        }
        let slot = self.slots.of(&vm.id);
        let _turn = slot.lock.lock().await;
        let mark = self.mark(&vm.id);
        let watched = self.watched(&mark).await?;
        match (vm.state, watched) {
            (State::Running | State::Starting, Some(watched)) => {
                operation.stage("adopt", format!("adopting {}", vm.name));
                let vmm = self.vmm().await;
                if vm.state == State::Starting {
                    drop(watched);
                    return match self.await_ready(&vm, &mark, &slot, vmm.as_ref(), operation).await
                    {
                        Ok(_) => Ok(()),
                        Err(problem) => Err(self.failed_start(&vm, problem).await),
                    };
                }
                let socket = self.places.run_folder(&mark).join(vmm.agent_socket());
                let within = self.config.deadlines.ready(self.translated().await);
                tokio::select! {
                    found = Serial::connect(&socket, Instant::now() + within) => match found {
                        Ok((channel, ready)) => {
                            self.is_ready(&vm, &slot, watched, Channel::Serial(channel), &ready).await?;
                            Ok(())
                        }
                        Err(error) => {
                            // It lives, so it is not ended; its agent may come back.
                            self.mind(vm.id.clone(), watched);
                            Err(Problem::new(Code::Guest, format!("the agent of {} does not answer", vm.name)).cause(&error))
                        }
                    },
                    () = slot.ending() => {
                        self.mind(vm.id.clone(), watched);
                        Ok(())
                    }
                }
            }
            (State::Starting, None) => {
                let problem = Problem::new(
                    Code::Cancelled,
                    format!("the daemon ended while {} was starting", vm.name),
                );
                self.release_run(&vm.id, State::Stopped, Some(&problem)).await
            }
            (State::Running, None) => {
                let problem =
                    Problem::new(Code::Guest, format!("{} ended while no daemon ran", vm.name));
                self.release_run(&vm.id, State::Stopped, Some(&problem)).await
            }
            _ => self.release_run(&vm.id, State::Stopped, None).await,
        }
    }

    /// What carries our mark on this host and is in no ledger.
    ///
    /// # Errors
    /// When the host or the database cannot be read.
    pub fn strays(&self) -> Result<Vec<Held>, Problem> {
        // The ledger second: what is recorded is recorded before it is made.
        let held = self.host.list().map_err(|e| problems::host(&e))?;
        let recorded: HashSet<Held> = self
            .store
            .all_claims()
            .map_err(problems::store)?
            .iter()
            .map(banger_host::Claim::held)
            .collect();
        Ok(held.into_iter().filter(|held| !recorded.contains(held)).collect())
    }

    /// Releases the strays, the processes first; says which are gone and which are not.
    ///
    /// # Errors
    /// When the host or the database cannot be read.
    pub fn release_strays(&self) -> Result<Vec<ReleasedStray>, Problem> {
        let mut strays = self.strays()?;
        // The kinds are declared in the order in which they are made.
        strays.sort();
        strays.reverse();
        let release = |held: Held| {
            let released = self.host.release(&held).map_err(|e| problems::host(&e));
            (held, released)
        };
        Ok(strays.into_iter().map(release).collect())
    }
}
