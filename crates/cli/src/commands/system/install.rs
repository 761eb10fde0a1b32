//! `banger system install`

use std::path::{Path, PathBuf};

use banger_api::daemon::{Report, Verdict};
use banger_api::ids::random_text;
use banger_api::install::{self, ID_FILE, ID_LENGTH, Install, STATE, units};
use banger_api::operation::Event;
use banger_api::{Code, Problem};
use serde::Serialize;

use super::{daemon_answers, lines, shown};
use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::system::owner::{self, Owner};
use crate::system::plan::{self, Plan, Wanted};
use crate::system::sources::Sources;
use crate::system::{self, files, is_there, systemd};

/// Install the daemon and root's helper as services, for one user of this host; again for an upgrade: VMs run on
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The programs beside this one are copied to /usr/local/lib/banger; those of a package stay where they are.
Firecracker and its jailer are taken from --firecracker and --jailer, from beside this program, or from the system's
folders. Without them, or without KVM, VMs run on QEMU.

Examples:
  sudo banger system install --owner alice
  sudo banger system install --owner alice --firecracker ./firecracker --jailer ./jailer
  sudo banger system install        a newer build, for the same owner"
)]
pub(crate) struct Args {
    /// Who will use banger: the daemon runs as this user; may be left out when it is installed already
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Firecracker 1.12 or newer
    #[arg(long, value_name = "PATH", requires = "jailer")]
    firecracker: Option<PathBuf>,
    /// The jailer of the same release
    #[arg(long, value_name = "PATH", requires = "firecracker")]
    jailer: Option<PathBuf>,
    /// The first of 10000 uids that nobody else has, one for each VM that runs [default: 1900000000]
    #[arg(long, value_name = "UID")]
    uid_base: Option<u32>,
}

/// What was installed.
#[derive(Debug, Serialize)]
struct Installed {
    version: String,
    owner: String,
    owner_uid: u32,
    installation: String,
    programs: PathBuf,
    /// Its version, if it is there.
    firecracker: Option<String>,
    units: [&'static str; 3],
    /// VMs that run, and ran through an upgrade.
    running: u32,
    /// What is not as it should be, and is no failure.
    warnings: Vec<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    system::may_change("install")?;
    let earlier = install::read().map_err(|error| {
        Problem::from_error(Code::Damaged, &error)
            .remedy(format!("correct {}, or remove it", install::FILE))
    })?;
    let name = args.owner.or(earlier.as_ref().map(|earlier| earlier.owner_name.clone()));
    let Some(name) = name else {
        let suggested = std::env::var("SUDO_USER").unwrap_or_else(|_| "USER".to_owned());
        return Err(Problem::new(Code::Invalid, "say whom to install for")
            .remedy(format!("`banger system install --owner {suggested}`"))
            .into());
    };
    let owner = owner::look_up(&name)?;
    owner::kvm_group()?;
    files::roots_alone_on_the_way(Path::new(install::PROGRAMS))?;
    let sources = Sources::find(args.firecracker.zip(args.jailer))?;
    let firecracker = sources.firecracker.clone();
    let installation = installation(earlier.as_ref())?;
    let uid_base = args.uid_base;
    let plan = plan::plan(Wanted { owner, uid_base, sources, earlier, installation })?;
    let mut warnings = Vec::new();
    match &firecracker {
        None => warnings.push(
            "Firecracker and its jailer are not there: VMs run on QEMU. Install again with --firecracker and --jailer"
                .to_owned(),
        ),
        Some(found) if found.untested => {
            warnings.push(format!("Firecracker {} is newer than what banger is tested with", found.version));
        }
        Some(_) => {}
    }
    if !is_there(Path::new("/dev/kvm")) {
        warnings.push("there is no /dev/kvm: VMs run on QEMU, translated".to_owned());
    }
    warnings.extend(overlap(&plan.install));
    warnings.extend(vms_of_before(&plan.owner));

    let mut line = context.progress.line(None);
    let mut stage = |name: &str, text: &str| {
        line.show(&Event::Stage { name: name.to_owned(), text: text.to_owned() });
    };
    stage("files", "writing programs and units");
    make(&plan)?;
    stage("modules", "loading kernel modules");
    let missing = systemd::load_modules(units::modules());
    if !missing.is_empty() {
        warnings.push(format!("this kernel lacks modules: {}", missing.join(", ")));
    }
    stage("units", "starting the services");
    systemd::start()?;
    stage("daemon", "waiting for the daemon");
    let answered = daemon_answers().await;
    line.end();
    let (client, info) = answered?;
    for path in &plan.obsolete {
        files::remove_file(path)?;
    }
    let report: Report = client.get("/v1/doctor").await?;
    let failed = report.findings.into_iter().filter(|finding| finding.verdict == Verdict::Fail);
    warnings.extend(failed.map(|finding| format!("doctor: {}: {}", finding.check, finding.text)));

    let installed = Installed {
        version: plan.install.version.clone(),
        owner: plan.owner.name.clone(),
        owner_uid: plan.owner.uid,
        installation: plan.install.installation.clone(),
        programs: plan.install.programs.clone(),
        firecracker: firecracker.map(|found| found.version),
        units: units::ALL,
        running: info.running,
        warnings,
    };
    context.print(&installed, || if context.quiet { String::new() } else { human(&installed) })?;
    for warning in &installed.warnings {
        context.hint(&format!("note: {warning}"));
    }
    context.hint(&format!("next, as {}: `banger doctor`, then `banger vm run`", installed.owner));
    Ok(DONE)
}

/// The id of marks: of the installation that is there, of one whose state was kept, else a new one.
fn installation(earlier: Option<&Install>) -> Result<String, Problem> {
    if let Some(earlier) = earlier {
        return Ok(earlier.installation.clone());
    }
    if let Some(kept) = files::read_in(Path::new(STATE), ID_FILE)? {
        return Ok(kept.trim().to_owned());
    }
    random_text(ID_LENGTH).map_err(|error| {
        Problem::new(Code::Internal, "cannot make up an id for the installation").cause(&error)
    })
}

/// Makes all that is to be there. Can be repeated.
fn make(plan: &Plan) -> Result<(), Problem> {
    for folder in &plan.folders {
        files::make_folder(folder, &plan.owner)?;
    }
    // Before there is a daemon: its database takes the id from here.
    let id = format!("{}\n", plan.install.installation);
    files::write_in(Path::new(STATE), ID_FILE, &id, &plan.owner)?;
    for (from, to) in &plan.programs {
        files::copy_program(from, to)?;
    }
    for (path, text) in &plan.texts {
        files::write_text(Path::new(path), text)?;
    }
    Ok(())
}

/// Uids that subuid(5) has given to somebody would be two users' at once.
fn overlap(install: &Install) -> Option<String> {
    let ranges = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
    let taken = ranges.lines().find(|line| overlaps(line, install.uid_base, install.uid_count))?;
    Some(format!("uids of VMs are also in /etc/subuid ({taken}): choose others with --uid-base"))
}

/// `NAME:FIRST:COUNT`
fn overlaps(line: &str, base: u32, count: u32) -> bool {
    let mut numbers = line.split(':').skip(1).map(|number| number.trim().parse::<u64>());
    let (Some(Ok(first)), Some(Ok(length))) = (numbers.next(), numbers.next()) else {
        return false;
    };
    let (base, end) = (u64::from(base), u64::from(base) + u64::from(count));
    first < end && base < first.saturating_add(length)
}

/// The owner may have VMs from before, with a daemon of his own; from now on the CLI shows the installation's.
fn vms_of_before(owner: &Owner) -> Option<String> {
    let state = owner.home.join(".local/state/banger");
    is_there(&state.join("banger.db")).then(|| {
        format!(
            "VMs that {} made before are in {} and are not moved; without an installation they are shown again",
            owner.name,
            state.display()
        )
    })
}

fn human(installed: &Installed) -> String {
    let firecracker = installed.firecracker.clone().unwrap_or_else(|| "none".to_owned());
    lines(&[
        ("installed", format!("banger {}", installed.version)),
        ("owner", format!("{} (uid {})", installed.owner, installed.owner_uid)),
        ("programs", shown(&installed.programs)),
        ("firecracker", firecracker),
        ("units", installed.units.join(" ")),
        ("data", install::DATA.to_owned()),
        ("running", format!("{} VMs", installed.running)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_that_somebody_has_already_are_noticed() {
        assert!(overlaps("alice:1899999999:2", 1_900_000_000, 10));
        assert!(overlaps("alice:1900000009:65536", 1_900_000_000, 10));
        assert!(!overlaps("alice:1900000010:65536", 1_900_000_000, 10));
        assert!(!overlaps("alice:100000:65536", 1_900_000_000, 10));
        assert!(!overlaps("# alice", 1_900_000_000, 10));
    }
}
