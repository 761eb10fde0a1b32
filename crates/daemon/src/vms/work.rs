//! Work in a guest's workspace that nobody has exported: asked of the guest while it runs, remembered when it is stopped, and
//! never dropped by a delete or a prune that was not told to.

use std::sync::Arc;
use std::time::Duration;

use banger_api::captured;
use banger_api::vm::State;
use banger_api::workspace::{Repo, Work, Workspace};
use banger_api::{Code, Problem};
use banger_store::VmRecord;
use banger_vmm::Channel;
use banger_workspace::guest;
use tokio::time::timeout;

use super::slot::Slot;
use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

/// How long a guest has to say whether there is work in it: its git reads every file that has changed.
const ASK_DEADLINE: Duration = Duration::from_secs(120);

/// What a guest may answer: a few lines.
const LONGEST_ANSWER: usize = 64 * 1024;

impl Daemon {
    /// # Errors
    /// `Unexported` when there is work in the VM's workspace, or nobody can say that there is none.
    pub(crate) async fn refuse_to_lose_work(
        self: &Arc<Self>,
        vm: &VmRecord,
        operation: &Operation,
    ) -> Result<(), Problem> {
        let Some(workspace) = &vm.workspace else { return Ok(()) };
        let asked = match vm.state {
            State::Running => {
                operation.stage("work", format!("looking for work in {}", vm.name));
                let ask = async { ask(&self.channel(vm).await?, workspace).await };
                timeout(ASK_DEADLINE, ask).await.unwrap_or_else(|_| Err(late(ASK_DEADLINE)))
            }
            State::Stopped => Ok(workspace.work),
            _ => Ok(Work::Unknown),
        };
        let (what, why) = match asked {
            Ok(Work::None) => return Ok(()),
            Ok(work @ Work::Some { .. }) => {
                (format!("has work that nobody has exported: {work}"), None)
            }
            Ok(Work::Unknown) => ("may have work that nobody has exported".to_owned(), None),
            Err(problem) => ("may have work that nobody has exported".to_owned(), Some(problem)),
        };
        let name = &vm.name;
        let message = format!("VM {name} {what}, in {}", workspace.guest_path);
        let mut refused = Problem::new(Code::Unexported, message);
        refused.causes.extend(why.map(|problem| problem.to_string()));
        let start = match vm.state {
            State::Running => String::new(),
            State::Paused => format!("`banger vm resume {name}`, then "),
            _ => format!("`banger vm start {name}`, then "),
        };
        Err(refused.remedy(format!(
            "{start}`banger vm workspace export {name} -o {name}.patch` saves it; `banger vm delete --force {name}` drops it"
        )))
    }

    /// Before a guest is told to go: asks what is in its workspace, within its time to go, and remembers it.
    pub(crate) async fn record_work(
        self: &Arc<Self>,
        vm: &VmRecord,
        slot: &Slot,
        within: Duration,
    ) {
        let Some(workspace) = vm.workspace.clone() else { return };
        let Some(channel) = slot.channel.borrow().clone() else { return };
        let work = match timeout(within, ask(&channel, &workspace)).await {
            Ok(Ok(work)) => work,
            Ok(Err(problem)) => {
                tracing::warn!(vm = %vm.id, %problem, "cannot ask for the work in its workspace");
                Work::Unknown
            }
            Err(_) => Work::Unknown,
        };
        let id = vm.id.clone();
        let recorded = self
            .blocking(move |daemon| daemon.store.set_work(&id, work).map_err(problems::store))
            .await
            .and_then(|recorded| recorded);
        if let Err(problem) = recorded {
            tracing::error!(vm = %vm.id, %problem, "cannot record the work in its workspace");
        }
    }
}

/// All repositories' work.
async fn ask(channel: &Channel, workspace: &Workspace) -> Result<Work, Problem> {
    let mut all = Work::None;
    for repo in &workspace.repos {
        all = all.and(ask_one(channel, &workspace.guest_path, repo).await?);
    }
    Ok(all)
}

async fn ask_one(channel: &Channel, top: &str, repo: &Repo) -> Result<Work, Problem> {
    let cannot = |problem: Problem| {
        let message = format!("cannot ask git in the guest about {}", guest::folder(top, repo));
        let mut refused = Problem::new(Code::Guest, message);
        refused.causes.push(problem.to_string());
        refused
    };
    let stream = channel.open().await.map_err(|error| {
        cannot(Problem::new(Code::Guest, "the agent does not answer").cause(&error))
    })?;
    let socket = captured::connect(stream).await.map_err(cannot)?;
    let start = captured::as_root(&guest::ask_state(top, repo), None);
    let mut told = Vec::new();
    let keep = |bytes: &[u8]| {
        told.extend_from_slice(bytes);
        match told.len() > LONGEST_ANSWER {
            true => Err(Problem::new(Code::Guest, "its answer has no end")),
            false => Ok(()),
        }
    };
    let ended = captured::run(socket, start, None, keep).await.map_err(cannot)?;
    if ended.status != 0 {
        return Err(cannot(Problem::new(Code::Guest, ended.stderr.trim())));
    }
    let state = guest::read_state(&told)?;
    Ok(state.map_or(Work::Unknown, |state| guest::work(repo, &state)))
}

fn late(deadline: Duration) -> Problem {
    let message = format!("its git did not answer within {} s", deadline.as_secs());
    Problem::new(Code::Timeout, message)
}
