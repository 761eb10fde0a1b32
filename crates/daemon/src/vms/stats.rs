//! What a VM that is up uses: its VMM and its disk on the host, and what its guest says of itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_api::guest::GuestUsage;
use banger_api::stats::{Stats, Traffic};
use banger_api::vm::State;
use banger_api::{Code, Problem};
use banger_host::space;
use banger_host::usage::{self, Usage};
use banger_store::VmRecord;
use jiff::Timestamp;
use tokio::time::timeout;

use crate::agent;
use crate::daemon::Daemon;
use crate::problems;
use crate::readiness::VmmProcess;

/// How long the processors are looked at.
const SAMPLE: Duration = Duration::from_secs(1);

impl Daemon {
    /// Looks at it for a second. This is not activity.
    ///
    /// # Errors
    /// When it is not up, or ends meanwhile.
    pub(crate) async fn stats(self: &Arc<Self>, vm: &VmRecord) -> Result<Stats, Problem> {
        let mark = self.mark(&vm.id);
        let watched = self.watched(&mark).await?.filter(|_| vm.state.is_up());
        let vmm = watched.ok_or_else(|| {
            let message = format!("VM {} is {}, and uses nothing but its disk", vm.name, vm.state);
            Problem::new(Code::WrongState, message)
        })?;
        let usage = |vmm: &VmmProcess| usage::of(vmm.process()).map_err(|e| problems::host(&e));
        let (begun, before) = (Instant::now(), usage(&vmm)?);
        let sample = timeout(SAMPLE, vmm.ended());
        let (ended, guest) = tokio::join!(sample, self.guest_usage(vm));
        if ended.is_ok() {
            return Err(Problem::new(Code::WrongState, format!("VM {} has ended", vm.name)));
        }
        let (after, within) = (usage(&vmm)?, begun.elapsed());
        let traffic = usage::traffic(&mark).map_err(|e| problems::host(&e))?;
        Ok(Stats {
            name: vm.name.clone(),
            state: vm.state,
            at: Timestamp::now(),
            cpus: vm.cpus,
            cpu_percent: percent(before, after, within),
            cpu_time_us: after.cpu_time_us,
            memory_bytes: vm.memory,
            memory_host_bytes: after.memory_bytes,
            disk_bytes: vm.disk,
            disk_host_bytes: space::allocated_bytes(&self.places.disk(&mark)),
            network: traffic.map(|found| Traffic {
                received_bytes: found.received_bytes,
                sent_bytes: found.sent_bytes,
            }),
            guest,
        })
    }

    /// If the agent says it within the time of a sample.
    async fn guest_usage(&self, vm: &VmRecord) -> Option<GuestUsage> {
        let channel = self.slots.of(&vm.id).channel.borrow().clone();
        let channel = channel.filter(|_| vm.state == State::Running)?;
        timeout(SAMPLE, agent::usage(&channel)).await.ok()?.ok()
    }
}

/// 100 is one processor all the time.
fn percent(before: Usage, after: Usage, within: Duration) -> u32 {
    let used = u128::from(after.cpu_time_us.saturating_sub(before.cpu_time_us));
    u32::try_from(used * 100 / within.as_micros().max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_of_one_processor() {
        let at = |cpu_time_us| Usage { cpu_time_us, memory_bytes: 0 };
        for (us, shown) in [(0, 0), (10_000, 1), (1_000_000, 100), (3_500_000, 350)] {
            assert_eq!(percent(at(5), at(5 + us), Duration::from_secs(1)), shown);
        }
        assert_eq!(percent(at(5), at(4), Duration::ZERO), 0);
    }
}
