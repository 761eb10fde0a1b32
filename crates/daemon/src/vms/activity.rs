//! What goes on in a VM by way of the daemon: commands, jobs, and connections to its ports. One without any of it for long enough is
//! stopped, if its record says so. All of this is in memory: a new daemon begins anew.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use banger_api::VmId;
use banger_api::jobs::{Job, JobState};
use banger_api::vm::{State, StopVm};
use banger_store::VmRecord;
use http::Method;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::slot::Slot;
use crate::agent;
use crate::daemon::Daemon;

#[derive(Debug)]
pub struct Activity(watch::Sender<Now>);

#[derive(Debug, Clone, Copy)]
struct Now {
    /// How many sessions and connections there are.
    open: usize,
    /// When there was something last.
    last: Instant,
    /// How long there may be nothing.
    most: Option<Duration>,
}

impl Default for Activity {
    fn default() -> Self {
        Self(watch::channel(Now { open: 0, last: Instant::now(), most: None }).0)
    }
}

impl Activity {
    /// Something goes on, until what this returns goes.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.0.send_modify(|now| now.open += 1);
        Busy(Arc::clone(self))
    }

    /// Something went on just now.
    pub fn touch(&self) {
        self.0.send_modify(|now| now.last = Instant::now());
    }

    /// How long there may be nothing, from now on.
    pub fn allow(&self, most: Option<Duration>) {
        self.0.send_modify(|now| (now.most, now.last) = (most, Instant::now()));
    }

    fn is_open(&self) -> bool {
        self.0.borrow().open > 0
    }

    /// Returns when there was nothing for as long as there may be.
    async fn is_over(&self) {
        let mut changes = self.0.subscribe();
        loop {
            let now = *changes.borrow_and_update();
            // The sender is in this very value, so it cannot be gone.
            match now.most.filter(|_| now.open == 0).and_then(|most| now.last.checked_add(most)) {
                None => drop(changes.changed().await),
                Some(at) if timeout_at(at, changes.changed()).await.is_err() => return,
                Some(_) => {}
            }
        }
    }
}

/// While it lives, something goes on. A count in memory: nothing on the host depends on its end.
#[derive(Debug)]
pub struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.send_modify(|now| {
            now.open -= 1;
            now.last = Instant::now();
        });
    }
}

/// A stream that is something going on, for as long as there is it.
#[derive(Debug)]
pub(super) struct Counted<S> {
    stream: S,
    _busy: Busy,
}

impl<S> Counted<S> {
    pub(super) fn new(stream: S, busy: Busy) -> Self {
        Self { stream, _busy: busy }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Daemon {
    /// Stops the VM, as its user would, whenever there was nothing for as long as there may be. Never returns.
    pub(super) async fn stop_when_idle(
        self: &Arc<Self>,
        id: &VmId,
        slot: &Arc<Slot>,
    ) -> Infallible {
        loop {
            slot.activity.is_over().await;
            // In a task of its own: this one ends with the VMM.
            let (daemon, id, slot_then) = (Arc::clone(self), id.clone(), Arc::clone(slot));
            drop(tokio::spawn(async move { daemon.stop_idle(&id, &slot_then).await }));
            slot.activity.touch();
        }
    }

    /// Whether a job runs in it. The agent of an older banger has none, and one that does not answer is not waited for.
    async fn has_jobs(&self, vm: &VmRecord) -> bool {
        let Ok(channel) = self.channel(vm).await else { return false };
        let jobs: Result<Vec<Job>, _> =
            agent::ask(&channel, Method::GET, "/v1/jobs", None::<&()>).await;
        jobs.is_ok_and(|jobs| jobs.iter().any(|job| job.state == JobState::Running))
    }

    async fn stop_idle(self: &Arc<Self>, id: &VmId, slot: &Arc<Slot>) {
        let _turn = slot.lock.lock().await;
        let Ok(Some(vm)) = self.store.vm(id) else { return };
        // A paused one waits for somebody; and somebody may have come meanwhile.
        if vm.state != State::Running || slot.activity.is_open() {
            return;
        }
        if self.has_jobs(&vm).await {
            return;
        }
        match self.operations.begin("vm auto-stop", vm.name.as_str()) {
            Ok(operation) => {
                operation.note(format!("nothing went on in {} for long enough", vm.name));
                let outcome = self.stop_in_turn(&vm, slot, &StopVm::default(), &operation).await;
                let ended = outcome.as_ref().map(|_| &serde_json::Value::Null);
                self.operations.end(&operation, ended);
            }
            Err(problem) => tracing::error!(vm = %id, %problem, "it is idle, and goes on"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_millis(100);
    const SOON: Duration = Duration::from_secs(30);

    async fn is_over_within(activity: &Activity, time: Duration) -> bool {
        tokio::time::timeout(time, activity.is_over()).await.is_ok()
    }

    #[tokio::test]
    async fn nothing_for_long_enough_is_noticed_and_an_open_session_is_something() {
        let activity = Arc::new(Activity::default());
        assert!(!is_over_within(&activity, 2 * MOST).await, "it may last for ever");
        activity.allow(Some(MOST));
        let (first, second) = (activity.begin(), activity.begin());
        assert!(!is_over_within(&activity, 3 * MOST).await);
        drop(first);
        assert!(!is_over_within(&activity, 3 * MOST).await);
        let waiting = tokio::spawn({
            let activity = Arc::clone(&activity);
            async move { is_over_within(&activity, SOON).await }
        });
        drop(second);
        let ended = Instant::now();
        assert!(waiting.await.unwrap());
        assert!(ended.elapsed() >= MOST, "the time counts from the last session's end");
    }

    #[tokio::test]
    async fn what_is_allowed_changes_while_it_is_waited_for() {
        let activity = Arc::new(Activity::default());
        activity.allow(Some(SOON * 100));
        let waiting = tokio::spawn({
            let activity = Arc::clone(&activity);
            async move { is_over_within(&activity, SOON).await }
        });
        tokio::task::yield_now().await;
        activity.allow(Some(MOST));
        assert!(waiting.await.unwrap());
    }
}
