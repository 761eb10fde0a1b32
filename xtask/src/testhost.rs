//! `cargo xtask testhost VERB`: a Debian machine with KVM, device-mapper and systemd, emulated by QEMU, on a machine that
//! has none of these: where the supported way to run is tested.
//!
//! ```text
//! image ──boot once──► frozen ──thaw, about 1 s──► a host for a test program, and thrown away
//!                        └──────────────────────► a host for a person (up, ssh, down)
//! ```
//! All of it is in `target/testhost`; what is not there is made, what is old is removed.

mod disks;
mod evidence;
mod frozen;
mod image;
mod key;
mod machine;
mod qmp;
mod ssh;
mod suite;
mod tsc;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::build::{self, Profile};
use crate::failure::Failure;
use crate::log::Log;
use crate::programs::{Call, End};
use crate::report::Report;
use crate::sum::Sum;
use crate::test_programs::TestProgram;
use crate::{e2e, firecracker, host, packages, project, test_programs};

use machine::Lease;
use ssh::{Ssh, quoted};
pub(crate) use suite::{Extent, REASONS};

/// The host of a person, among those of test runs, which are named by our process ids.
const PERSONS: &str = "up";

fn places(target: &Path) -> PathBuf {
    target.join("testhost")
}

/// Makes the image, if there is none: what takes longest of all that needs nothing built.
pub(crate) fn ensure_image(target: &Path, log: &mut Log) -> Result<(), Failure> {
    image::ensure(&places(target), log).map(drop)
}

/// Runs the tests of the test host, of these packages or of all. The programs under test are in `built`.
pub(crate) fn run_tests(
    packages: &[&str],
    extent: Extent,
    filter: Option<&str>,
    target: &Path,
    built: &Path,
    log: &mut Log,
    sum: &mut Sum,
) -> Result<(), Failure> {
    let programs = match packages {
        ["banger-e2e"] => test_programs::build_e2e(log)?,
        _ => test_programs::build(packages, log)?,
    };
    let plans = suite::plans(programs, extent, filter)?;
    if plans.is_empty() {
        log.line("none of these tests is for the test host");
        return Ok(());
    }
    let places = places(target);
    let image = image::ensure(&places, log)?;
    let frozen = frozen::ensure(&places, &image, log)?;
    let firecracker = firecracker::ensure(target, log)?;
    if suite::need_cache(&plans) {
        e2e::ensure_cache(target, built, log)?;
    }
    let cache = disks::cache(&places, &target.join(e2e::CACHE))?;
    sweep(&places)?;
    let folder = places.join("run").join(std::process::id().to_string());
    fs::create_dir_all(&folder)
        .map_err(|error| Failure::new(format!("cannot make {}", folder.display())).cause(&error))?;
    let programs = disks::programs(&folder, built, &firecracker, &suite::programs(&plans))?;
    let ground = suite::Ground {
        frozen: &frozen,
        programs: &programs,
        cache: &cache,
        folder: &folder,
        failures: &places.join("failures"),
        target,
    };
    let outcome = suite::run(&plans, &ground, log, sum);
    remove(&folder)?;
    outcome
}

/// `testhost run`: what is run there, of these packages or of all, and whether all is well.
pub(crate) fn run(packages: &[&str], filter: Option<&str>) -> Result<bool, Failure> {
    let target = project::target()?;
    let mut log = Log::create(&target, "testhost")?;
    let log = &mut log;
    let mut report = Report::begin();
    e2e::in_test_host(&mut report, packages, filter, &target, log);
    Ok(report.close(log))
}

/// `testhost up`: a host that stays, with the tree as it is now.
pub(crate) fn up() -> Result<(), Failure> {
    let target = project::target()?;
    let mut log = Log::create(&target, "testhost")?;
    let log = &mut log;
    let ssh = stand(Profile::Dev, &[], &target, log)?;
    log.line(&format!(
        "\nThe test host is up, with sshd on port {port} of this machine. banger is in its PATH, firecracker in\n\
         /banger/firecracker; the kernels and images of the tests, if they were made, are in /cache/e2e.\n\n    \
         cargo xtask testhost ssh             a shell in it, as root\n    \
         cargo xtask testhost ssh COMMAND     one command\n    \
         cargo xtask testhost down            its end",
        port = ssh.port()
    ));
    Ok(())
}

/// Runs a program in a host of its own, with the programs of this tree in this profile and these beside them: what is measured.
pub(crate) fn run_there(
    profile: Profile,
    program: &TestProgram,
    beside: &[TestProgram],
    arguments: &[String],
    target: &Path,
    log: &mut Log,
) -> Result<(), Failure> {
    let programs: Vec<&TestProgram> = beside.iter().chain([program]).collect();
    let ssh = stand(profile, &programs, target, log)?;
    let words = arguments.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    let ran = ssh.call(&format!("{} {words}", suite::line(program))).run(log);
    let ended = down();
    ran.and(ended)
}

/// Where [`run_there`] has a program.
pub(crate) fn path_there(program: &TestProgram) -> PathBuf {
    Path::new("/banger").join(disks::in_host(program))
}

/// A host that stays until [`down`], with the programs of this tree.
fn stand(
    profile: Profile,
    beside: &[&TestProgram],
    target: &Path,
    log: &mut Log,
) -> Result<Ssh, Failure> {
    let places = places(target);
    let folder = places.join("run").join(PERSONS);
    if pid(&folder).is_some() {
        return Err(Failure::new("the test host is up")
            .remedy("cargo xtask testhost ssh")
            .remedy("cargo xtask testhost down, to have it anew"));
    }
    packages::ensure(&needs(), None, log)?;
    let built = build::all(profile, target, log)?;
    let image = image::ensure(&places, log)?;
    let frozen = frozen::ensure(&places, &image, log)?;
    let firecracker = firecracker::ensure(target, log)?;
    let cache = disks::cache(&places, &target.join(e2e::CACHE))?;
    remove(&folder)?;
    let disks_folder = folder.with_file_name(format!("{PERSONS}-programs"));
    remove(&disks_folder)?;
    fs::create_dir_all(&disks_folder).map_err(|error| {
        Failure::new(format!("cannot make {}", disks_folder.display())).cause(&error)
    })?;
    let programs = disks::programs(&disks_folder, &built, &firecracker, beside)?;
    let machine = frozen.thaw(&folder, &programs, &cache, Lease::Free)?;
    machine.prepare(target)?;
    let ssh = machine.ssh().clone();
    machine.leave();
    Ok(ssh)
}

/// `testhost ssh`: a shell in the host that is up, or a command; the status is the command's. One word is a line for the
/// shell there, several are a program and its arguments.
pub(crate) fn ssh(words: &[&str]) -> Result<i32, Failure> {
    let ssh = persons(&places(&project::target()?))?;
    let call = match words {
        [] => ssh.shell(),
        [line] => ssh.call(line),
        words => ssh.call(&words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")),
    };
    let end: End = call.at_our_terminal()?;
    Ok(end.code().unwrap_or(255))
}

/// `testhost down`: the end of the host that is up, and of what a killed run has left.
pub(crate) fn down() -> Result<(), Failure> {
    let places = places(&project::target()?);
    let folder = places.join("run").join(PERSONS);
    match pid(&folder) {
        None => println!("the test host is not up"),
        Some(pid) => {
            Call::new("kill").args(["-KILL", &pid]).output()?;
            println!("the test host is down");
        }
    }
    remove(&folder)?;
    remove(&folder.with_file_name(format!("{PERSONS}-programs")))?;
    sweep(&places)
}

/// `testhost status`: what there is.
pub(crate) fn status() -> Result<(), Failure> {
    let places = places(&project::target()?);
    let there = |begin: &str| {
        let found = entries(&places).into_iter().find(|path| named(path, begin));
        found.map_or_else(|| "none".to_owned(), |path| path.display().to_string())
    };
    println!("image    {}", there("image-"));
    println!("frozen   {}", there("frozen-"));
    println!("cache    {}", there("cache-"));
    for folder in entries(&places.join("run")) {
        for machine in entries(&folder).into_iter().chain([folder.clone()]) {
            if let Some(pid) = pid(&machine) {
                let port = fs::read_to_string(machine.join("port")).unwrap_or_default();
                println!("running  {}: process {pid}, sshd on port {port}", machine.display());
            }
        }
    }
    for failure in entries(&places.join("failures")) {
        println!("failure  {}", failure.display());
    }
    Ok(())
}

/// What the test host needs of this machine.
pub(crate) fn needs() -> Vec<packages::Need> {
    packages::TO_RUN.iter().chain(packages::TO_TEST).copied().collect()
}

fn persons(places: &Path) -> Result<Ssh, Failure> {
    let folder = places.join("run").join(PERSONS);
    let port = fs::read_to_string(folder.join("port")).ok().and_then(|text| text.parse().ok());
    match (pid(&folder), port) {
        (Some(_), Some(port)) => Ok(Ssh::new(&folder, port)),
        _ => Err(Failure::new("the test host is not up").remedy("cargo xtask testhost up")),
    }
}

/// The process of the machine in this folder, if it runs.
fn pid(folder: &Path) -> Option<String> {
    let pid = fs::read_to_string(folder.join("pid")).ok()?.trim().to_owned();
    let works_in = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (works_in == fs::canonicalize(folder).ok()?).then_some(pid)
}

/// Removes the folders of runs that have ended without doing it themselves; their machines ended with them.
fn sweep(places: &Path) -> Result<(), Failure> {
    for folder in entries(&places.join("run")) {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let is_of_a_run = name.bytes().all(|byte| byte.is_ascii_digit());
        if is_of_a_run && !Path::new("/proc").join(&*name).exists() {
            remove(&folder)?;
        }
    }
    Ok(())
}

/// One of us at a time makes what is kept.
fn locked(places: &Path) -> Result<File, Failure> {
    if !host::is_root() {
        return Err(Failure::new("the test host's disks hold root's files, and this is not root")
            .remedy("repeat the command as root"));
    }
    let path = places.join("lock");
    let locked = fs::create_dir_all(places).and_then(|()| File::create(&path)).and_then(|file| {
        file.lock()?;
        Ok(file)
    });
    locked.map_err(|error| Failure::new(format!("cannot lock {}", path.display())).cause(&error))
}

/// Removes a file or a tree of ours, which may not be there. Not one in which something is mounted: that is not ours.
fn remove(path: &Path) -> Result<(), Failure> {
    let failure =
        |error: &io::Error| Failure::new(format!("cannot remove {}", path.display())).cause(error);
    let real = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        real => real.map_err(|error| failure(&error))?,
    };
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(|error| failure(&error))?;
    if let Some(mount) = mount_below(&mounts, &real) {
        return Err(Failure::new(format!("cannot remove {}", path.display()))
            .because(format!("something is mounted on {mount}")));
    }
    let removed = if real.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(|error| failure(&error))
}

/// The second field of proc_mounts(5), whose blanks are written `\040`.
fn mount_below(mounts: &str, path: &Path) -> Option<String> {
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    points.map(|point| point.replace("\\040", " ")).find(|point| Path::new(point).starts_with(path))
}

/// Removes what is named so, except for the one that is kept.
fn remove_others(places: &Path, begin: &str, kept: &Path) -> Result<(), Failure> {
    entries(places)
        .iter()
        .filter(|path| named(path, begin) && *path != kept)
        .try_for_each(|path| remove(path))
}

fn named(path: &Path, begin: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_with_a_mount_in_it_is_told_from_one_beside_it() {
        let mounts = "proc /a/tree/proc proc rw 0 0\ntmpfs /a/my\\040tree tmpfs rw 0 0\n";
        assert_eq!(mount_below(mounts, Path::new("/a/tree")).as_deref(), Some("/a/tree/proc"));
        assert_eq!(mount_below(mounts, Path::new("/a/my tree")).as_deref(), Some("/a/my tree"));
        assert_eq!(mount_below(mounts, Path::new("/a/tre")), None);
    }

    #[test]
    fn what_has_another_name_or_is_kept_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("image-1")).unwrap();
        fs::write(path("image-2"), "").unwrap();
        fs::write(path("frozen-1"), "").unwrap();
        remove_others(folder.path(), "image-", &path("image-2")).unwrap();
        assert_eq!(entries(folder.path()), [path("frozen-1"), path("image-2")]);
        remove(&path("never-was")).unwrap();
    }

    #[test]
    fn a_folder_of_a_run_that_has_ended_is_swept_and_that_of_one_that_runs_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let alive = run.join(std::process::id().to_string());
        // Above the greatest pid that Linux has (proc_sys_kernel(5), pid_max).
        for path in [alive.clone(), run.join("4194305"), run.join(PERSONS)] {
            fs::create_dir_all(path).unwrap();
        }
        sweep(folder.path()).unwrap();
        assert_eq!(entries(&run), [alive, run.join(PERSONS)]);
    }

    #[test]
    fn a_pid_that_is_somebody_elses_now_is_not_the_machines() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(pid(folder.path()), None);
        fs::write(folder.path().join("pid"), std::process::id().to_string()).unwrap();
        assert_eq!(pid(folder.path()), None, "we work in another folder");
    }
}
