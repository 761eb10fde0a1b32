//! A repository's way into a guest and back, between the host's git (`banger_workspace`), the daemon and the guest's git.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use banger_api::captured::{self, Captured};
use banger_api::client::Client;
use banger_api::exec::Word;
use banger_api::files::{Copied, Owner, Write};
use banger_api::operation::Event;
use banger_api::vm::Vm;
use banger_api::workspace::{Repo, Work, Workspace};
use banger_api::{Code, Problem, Size};
use banger_files::Writer;
use banger_workspace::guest::{self, State};
use banger_workspace::{Choice, Plan};
use bytes::Bytes;
use http::Method;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// Where a repository is in a guest when nobody says otherwise.
pub(crate) const USUAL_PLACE: &str = "/root/repo";

/// What a short answer of the guest's git may be; lists of changed files are the longest.
const LONGEST_ANSWER: usize = 256 << 20;

/// A running VM's git, as root.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    client: &'a Client,
    pub(crate) vm: &'a Vm,
}

impl<'a> Guest<'a> {
    pub(crate) fn of(client: &'a Client, vm: &'a Vm) -> Self {
        Self { client, vm }
    }

    fn path(&self, what: &str) -> String {
        format!("/v1/vms/{}/{what}", self.vm.id)
    }

    /// Runs a command to its end, which must be a good one; `output` gets its stdout.
    pub(crate) async fn run(
        &self,
        words: &[String],
        stdin: Option<String>,
        output: impl FnMut(&[u8]) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let socket = self.client.websocket(&self.path("exec")).await?;
        let input = stdin.map(|text| {
            let (sender, receiver) = mpsc::channel(1);
            sender.try_send(Bytes::from(text)).expect("it has room for one");
            receiver
        });
        let start = captured::as_root(words, None);
        let Captured { status, stderr } = captured::run(socket, start, input, output).await?;
        if status == 0 {
            return Ok(());
        }
        // The script of a `sh -c` is ours, and long.
        let shown = words.iter().filter(|word| !word.contains('\n'));
        let shown: Vec<&str> = shown.map(String::as_str).collect();
        let message = format!("{} failed in VM {}", shown.join(" "), self.vm.name);
        let said = stderr.trim();
        let why = if said.is_empty() { format!("its status is {status}") } else { said.to_owned() };
        Err(Problem::new(Code::Guest, message).because(why))
    }

    /// As [`Self::run`], and its stdout.
    pub(crate) async fn answer(&self, words: &[String]) -> Result<Vec<u8>, Problem> {
        let mut told = Vec::new();
        self.run(words, None, |bytes| {
            told.extend_from_slice(bytes);
            match told.len() > LONGEST_ANSWER {
                true => Err(Problem::new(Code::Guest, "the guest's answer has no end")),
                false => Ok(()),
            }
        })
        .await?;
        Ok(told)
    }

    /// Where a repository of its workspace stands.
    pub(crate) async fn state(&self, top: &str, repo: &Repo) -> Result<Option<State>, Problem> {
        guest::read_state(&self.answer(&guest::ask_state(top, repo)).await?)
    }

    /// As [`Self::state`], of a guest that must have git.
    pub(crate) async fn state_by_git(&self, top: &str, repo: &Repo) -> Result<State, Problem> {
        self.state(top, repo).await?.ok_or_else(|| {
            let name = &self.vm.name;
            Problem::new(Code::Missing, format!("there is no git in VM {name}"))
                .because("what was changed there is told by the guest's own git")
                .remedy(format!("`banger vm cp {name}:{top} .` copies all of it"))
        })
    }

    /// All work in a workspace.
    pub(crate) async fn work(&self, workspace: &Workspace) -> Result<Work, Problem> {
        let mut all = Work::None;
        for repo in &workspace.repos {
            let state = self.state(&workspace.guest_path, repo).await?;
            all = all.and(state.map_or(Work::Unknown, |state| guest::work(repo, &state)));
        }
        Ok(all)
    }

    /// Has the guest's git look at what was brought. Where there is none, not even a shell, nothing is known of later work.
    async fn know(&self, at: &str, repos: &mut [Repo]) -> Result<(), Problem> {
        let folders = repos.iter().map(|repo| guest::folder(at, repo)).collect();
        self.run(&guest::refresh(folders), None, |_| Ok(())).await?;
        for repo in repos {
            repo.known_trees.extend(self.state(at, repo).await?.map(|state| state.tree));
        }
        Ok(())
    }

    /// Records what was brought or taken.
    pub(crate) async fn record(&self, workspace: &Workspace) -> Result<Vm, Problem> {
        self.client.json(Method::PUT, &self.path("workspace"), Some(workspace)).await
    }

    /// Brings a repository to `at`, where nothing is in its way, and records it.
    pub(crate) async fn bring(
        &self,
        context: &Context,
        plan: Arc<Plan>,
        at: &str,
    ) -> Result<Workspace, Problem> {
        let begun = Instant::now();
        let top = plan.repo.top().display().to_string();
        let sending = Arc::clone(&plan);
        let pack = move |writer: &mut Writer| {
            let sent = sending.send(writer)?;
            Ok(Copied { entries: sent.files, bytes: sent.bytes, ..Copied::default() })
        };
        let write = Write {
            folder: word(at)?,
            create: true,
            only: None,
            owner: Owner::Stream,
            exact: false,
            resume: 0,
        };
        let socket = self.client.websocket(&self.path("files")).await?;
        let mut line = context.progress.line(None);
        let text = format!("bringing {top} to {at}");
        line.show(&Event::Stage { name: "workspace".to_owned(), text });
        let stop = CancellationToken::new();
        let sent = banger_files::write(socket, write, &stop, pack).await;
        line.end();
        let (sent, _) = sent.map_err(|problem| {
            let mut refused =
                Problem::new(problem.code, format!("cannot bring {top} into VM {}", self.vm.name));
            refused.causes = [vec![problem.message], problem.causes].concat();
            Problem { remedy: problem.remedy, ..refused }
        })?;
        let mut repos: Vec<Repo> = plan.all().into_iter().map(recorded).collect();
        if let Err(problem) = self.know(at, &mut repos).await {
            context
                .hint(&format!("git in {} cannot be asked what is there: {problem}", self.vm.name));
        }
        let workspace = Workspace {
            host_path: top.clone(),
            host_head: plan.repo.head().to_owned(),
            guest_path: at.to_owned(),
            prepared_at: Timestamp::now(),
            repos,
            work: Work::Unknown,
        };
        self.record(&workspace).await?;
        let left = match plan.all().iter().map(|plan| plan.left_out).sum() {
            0 => String::new(),
            1 => "; 1 untracked file stays here".to_owned(),
            more => format!("; {more} untracked files stay here"),
        };
        context.hint(&format!(
            "{top} is at {at}: {} files, {} in {:.1} s{left}",
            sent.entries,
            Size::bytes(sent.bytes),
            begun.elapsed().as_secs_f64()
        ));
        Ok(workspace)
    }
}

fn recorded(plan: &Plan) -> Repo {
    Repo {
        path: String::from_utf8_lossy(&plan.path).into_owned(),
        base: plan.base.clone(),
        branch: plan.branch.clone(),
        known_commits: vec![plan.base.clone()],
        known_trees: Vec::new(),
    }
}

/// What goes into a guest of the repository that `path` is in.
pub(crate) async fn plan(path: &Path, choice: Choice) -> Result<Arc<Plan>, Problem> {
    let path = path.to_owned();
    blocking(move || Plan::of(&banger_workspace::Repo::open(&path)?, &choice)).await.map(Arc::new)
}

/// Work of the host's git, which blocks.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Problem::new(Code::Internal, "the thread that asks git has died")))
}

/// The workspace of a VM that must have one.
pub(crate) fn of(vm: &Vm) -> Result<&Workspace, Problem> {
    vm.workspace.as_ref().ok_or_else(|| {
        Problem::new(Code::NotFound, format!("VM {} has no workspace", vm.name)).remedy(format!(
            "`banger vm workspace prepare {} PATH` brings a repository there",
            vm.name
        ))
    })
}

/// Whether the host's repository is at another commit than when it was brought; `None` when it is not there any more.
pub(crate) async fn host_moved(workspace: &Workspace) -> Option<String> {
    let (path, before) = (workspace.host_path.clone(), workspace.host_head.clone());
    let opened = blocking(move || banger_workspace::Repo::open(Path::new(&path))).await.ok()?;
    (opened.head() != before).then(|| opened.head().to_owned())
}

fn word(text: &str) -> Result<Word, Problem> {
    Word::new(text).map_err(|error| Problem::from_error(Code::Invalid, &error))
}
