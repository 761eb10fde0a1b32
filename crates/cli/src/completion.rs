//! Completion in the shell: scripts that ask `banger` itself for each word, and the live names it answers with.
//!
//! A key press must never start a daemon nor wait for a slow one.

use std::ffi::OsStr;
use std::time::Duration;

use banger_api::client::Client;
use banger_api::image::{Image, Kernel};
use banger_api::network::Network;
use banger_api::vm::Vm;
use clap::CommandFactory;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, EnvCompleter, Shells};

use crate::{context, daemon};

const DEADLINE: Duration = Duration::from_millis(100);

/// The variable with which a shell asks; the scripts set it.
const VARIABLE: &str = "COMPLETE";

/// When a shell asked for completions: prints them and ends the process. Else returns at once.
pub(crate) fn answer_the_shell<C: CommandFactory>() {
    CompleteEnv::with_factory(C::command).var(VARIABLE).complete();
}

/// The shells there is a script for.
pub(crate) fn shells() -> Vec<&'static str> {
    Shells::builtins().names().collect()
}

/// The script for one of [`shells`].
pub(crate) fn script(shell: &str) -> Option<Vec<u8>> {
    let shells = Shells::builtins();
    let completer: &dyn EnvCompleter = shells.completer(shell)?;
    let mut script = Vec::new();
    completer
        .write_registration(VARIABLE, "banger", "banger", "banger", &mut script)
        .expect("writing to memory does not fail");
    Some(script)
}

pub(crate) fn vm_names() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        candidates(word, async |client| {
            let vms: Vec<Vm> = client.get("/v1/vms").await.ok()?;
            Some(vms.into_iter().map(|vm| (vm.name.to_string(), vm.state.to_string())).collect())
        })
    })
}

pub(crate) fn network_names() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        candidates(word, async |client| {
            let networks: Vec<Network> = client.get("/v1/networks").await.ok()?;
            Some(networks.into_iter().map(|it| (it.name.to_string(), it.subnet)).collect())
        })
    })
}

pub(crate) fn image_names() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        candidates(word, async |client| {
            let images: Vec<Image> = client.get("/v1/images").await.ok()?;
            Some(images.into_iter().map(|image| (image.name.to_string(), image.source)).collect())
        })
    })
}

pub(crate) fn kernel_names() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        candidates(word, async |client| {
            let kernels: Vec<Kernel> = client.get("/v1/kernels").await.ok()?;
            Some(
                kernels
                    .into_iter()
                    .map(|kernel| (kernel.name.to_string(), kernel.source))
                    .collect(),
            )
        })
    })
}

/// Names that begin with `word`, each with a word of help, if a daemon runs and answers in time.
fn candidates(
    word: &OsStr,
    ask: impl AsyncFnOnce(Client) -> Option<Vec<(String, String)>>,
) -> Vec<CompletionCandidate> {
    let found = context::runtime().block_on(async {
        let asking = async {
            let client = daemon::running(&context::folders().ok()?).await.ok()??;
            ask(client).await
        };
        tokio::time::timeout(DEADLINE, asking).await.ok().flatten()
    });
    let word = word.to_string_lossy();
    found
        .unwrap_or_default()
        .into_iter()
        .filter(|(name, _)| name.starts_with(&*word))
        .map(|(name, help)| CompletionCandidate::new(name).help(Some(help.into())))
        .collect()
}
