//! `banger system uninstall`: VMs first, then the services, then what they held, then files, all by name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_api::client::Client;
use banger_api::install::units::DAEMON_UNIT;
use banger_api::install::{self, HELPER, Install};
use banger_api::vm::{State, Vm};
use banger_api::{Code, Folders, Problem};
use http::Method;
use serde::Serialize;

use crate::commands::targets::{self, vm_path};
use crate::commands::{DONE, FAILED, ask};
use crate::context::Context;
use crate::failure::Failure;
use crate::system::plan::{self, Removal};
use crate::system::waiting::{self, Came};
use crate::system::{self, files, is_there, leftovers, systemd};
use crate::{daemon, operation, problem, programs};

/// Stop all VMs and remove the services, the programs and whatever they hold on this host
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Disks, images and settings stay unless --purge is given; a later installation for the same owner finds them.

Examples:
  sudo banger system uninstall
  sudo banger system uninstall --purge --yes"
)]
pub(crate) struct Args {
    /// Remove disks, images and settings too
    #[arg(long)]
    purge: bool,
    /// Ask no question, although VMs run or data goes
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Uninstalled {
    uninstalled: bool,
    /// What is there still, on purpose or because somebody else has put something there.
    kept: Vec<PathBuf>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    system::may_change("uninstall")?;
    // One that cannot be read is as good as none: what is removed is known by name.
    let (installed, damage) = match install::read() {
        Ok(installed) => (installed, None),
        Err(error) => (None, Some(Problem::from_error(Code::Damaged, &error))),
    };
    let removal = plan::removal(installed.as_ref(), args.purge);
    if !anything(&removal) {
        let nothing = Uninstalled { uninstalled: false, kept: removal.there() };
        context.print(&nothing, || "not installed as a service\n".to_owned())?;
        return Ok(DONE);
    }
    let client = reach_daemon(installed.is_some()).await;
    let running = running(client.as_ref(), installed.as_ref()).await?;
    if !args.yes && !agreed(&running, args.purge)? {
        context.hint("nothing was removed");
        return Ok(FAILED);
    }
    if let Some(damage) = damage {
        problem::show(context, None, &damage);
    }
    if let Some(client) = &client {
        stop_vms(context, client).await?;
    }
    stop_services(installed.as_ref())?;
    let kept = remove(&removal)?;
    systemd::forget()?;
    let done = Uninstalled { uninstalled: true, kept };
    context.print(&done, || if context.quiet { String::new() } else { human(&done) })?;
    Ok(DONE)
}

/// Whether something of an installation is there, beyond what an earlier removal has kept.
fn anything(removal: &Removal) -> bool {
    let Removal { files, trees, record, .. } = removal;
    files.iter().chain(trees).chain([record]).any(|path| is_there(path))
}

/// The daemon, started once more if it does not run: it can end VMs without loss.
async fn reach_daemon(installed: bool) -> Option<Client> {
    const STARTING: Duration = Duration::from_secs(10);
    let folders = Folders::installed();
    if let Ok(Some(client)) = daemon::running(&folders).await {
        return Some(client);
    }
    if !installed || systemd::start_again().is_err() {
        return None;
    }
    let socket = folders.socket();
    matches!(waiting::for_socket(&socket, None, STARTING), Ok(Came::Listening))
        .then(|| Client::new(socket))
}

/// The names of VMs that run; their marks when nobody knows their names.
async fn running(
    client: Option<&Client>,
    installed: Option<&Install>,
) -> Result<Vec<String>, Problem> {
    if let Some(client) = client
        && let Ok(vms) = client.get::<Vec<Vm>>("/v1/vms").await
    {
        return Ok(vms.into_iter().filter(is_up).map(|vm| vm.name.to_string()).collect());
    }
    match id(installed)? {
        Some(id) => leftovers::running(&id),
        None => Ok(Vec::new()),
    }
}

fn is_up(vm: &Vm) -> bool {
    vm.state.is_up() || matches!(vm.state, State::Starting | State::Stopping)
}

/// Asks whether to go on, if there is something to lose and somebody to ask.
fn agreed(running: &[String], purge: bool) -> Result<bool, Failure> {
    let Some(losses) = losses(running, purge) else { return Ok(true) };
    ask::somebody_or(&format!("this {losses}"), "banger system uninstall --yes")?;
    ask::agreed(&format!("this {losses}"))
}

fn losses(running: &[String], purge: bool) -> Option<String> {
    let stops = (!running.is_empty()).then(|| format!("stops VMs that run: {}", running.join(" ")));
    let deletes = purge.then(|| "deletes the disks of all VMs and all images".to_owned());
    let losses: Vec<String> = stops.into_iter().chain(deletes).collect();
    (!losses.is_empty()).then(|| losses.join(", and "))
}

/// Each guest shuts itself down. One that does not is ended with the rest.
async fn stop_vms(context: &Context, client: &Client) -> Result<(), Failure> {
    let Ok(vms) = client.get::<Vec<Vm>>("/v1/vms").await else { return Ok(()) };
    let names: Vec<String> =
        vms.iter().filter(|vm| is_up(vm)).map(|vm| vm.name.to_string()).collect();
    let stopped = targets::each(context, &names, async |target, subject| {
        let path = format!("{}/stop", vm_path(target)?);
        let request = banger_api::vm::StopVm::default();
        let vm: Vm =
            operation::follow(context, client, subject, Method::POST, &path, Some(&request))
                .await?;
        context.hint(&format!("{}: {}", vm.name, vm.state));
        Ok(())
    })
    .await;
    match stopped {
        // Said already, VM by VM.
        Ok(_) | Err(Failure::Shown) => Ok(()),
        Err(other) => Err(other),
    }
}

/// Stops the services, and releases what VMs still hold.
fn stop_services(installed: Option<&Install>) -> Result<(), Problem> {
    let states = systemd::states()?;
    systemd::stop()?;
    let daemon = states.iter().find(|unit| unit.unit == DAEMON_UNIT);
    if let Some(daemon) = daemon {
        leftovers::end_group(&daemon.control_group)?;
    }
    let helper = installed.map(|installed| installed.program(HELPER));
    if let Some(helper) = helper.filter(|helper| helper.is_file()) {
        return programs::run_at(&helper, &["release-all"]).map(drop).map_err(|problem| Problem {
            code: Code::Leftover,
            message: "not everything that VMs held could be released; the services are stopped, and nothing was removed"
                .to_owned(),
            remedy: Some("mend the cause, then `banger system uninstall` again".to_owned()),
            ..problem
        });
    }
    if let Some(id) = id(installed)?
        && leftovers::helper_is_needed(&id)?
    {
        return Err(Problem::new(
            Code::Missing,
            "VMs still hold something, and there is no helper to release it",
        )
        .remedy("`banger system install` again, then `banger system uninstall`"));
    }
    Ok(())
}

/// The id in the names of what VMs hold.
fn id(installed: Option<&Install>) -> Result<Option<String>, Problem> {
    if let Some(installed) = installed {
        return Ok(Some(installed.installation.clone()));
    }
    let kept = files::read_in(Path::new(install::STATE), install::ID_FILE)?;
    Ok(kept.map(|kept| kept.trim().to_owned()).filter(|id| !id.is_empty()))
}

/// Removes everything by name, and gives what is there still.
fn remove(removal: &Removal) -> Result<Vec<PathBuf>, Problem> {
    let mut failed = Vec::new();
    let mut note = |result: Result<(), Problem>| failed.extend(result.err());
    for path in &removal.files {
        note(files::remove_file(path));
    }
    for path in &removal.trees {
        note(files::remove_tree(path));
    }
    // While something failed, the record says what there was, and the removal can be repeated.
    if let Some(first) = failed.first().cloned() {
        let others = failed.iter().skip(1).map(ToString::to_string);
        let mut problem = Problem { code: Code::Leftover, ..first };
        problem.causes.extend(others);
        return Err(problem);
    }
    files::remove_file(&removal.record)?;
    let mut kept: Vec<PathBuf> = removal.there();
    for path in &removal.folders {
        let is_around = |kept: &PathBuf| kept.starts_with(path);
        if !files::remove_folder(path)? && !kept.iter().any(is_around) {
            kept.push(path.clone());
        }
    }
    Ok(kept)
}

impl Removal {
    /// What stays on purpose and is there.
    fn there(&self) -> Vec<PathBuf> {
        self.kept.iter().filter(|path| is_there(path)).cloned().collect()
    }
}

fn human(done: &Uninstalled) -> String {
    let mut text = "uninstalled\n".to_owned();
    for path in &done.kept {
        text += &format!("kept {}\n", path.display());
    }
    if done.kept.iter().any(|path| path == Path::new(install::STATE)) {
        text += "`banger system uninstall --purge` removes these too\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_lost_is_asked_for_by_name() {
        assert_eq!(losses(&[], false), None);
        let vms = ["web".to_owned(), "db".to_owned()];
        assert_eq!(losses(&vms, false).unwrap(), "stops VMs that run: web db");
        assert_eq!(
            losses(&vms, true).unwrap(),
            "stops VMs that run: web db, and deletes the disks of all VMs and all images"
        );
    }

    #[test]
    fn what_was_kept_is_said() {
        let done = Uninstalled { uninstalled: true, kept: vec![install::STATE.into()] };
        assert_eq!(
            human(&done),
            "uninstalled\nkept /var/lib/banger/state\n`banger system uninstall --purge` removes these too\n"
        );
    }
}
