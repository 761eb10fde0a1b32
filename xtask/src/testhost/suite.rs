//! The tests that run in the test host: those of banger-e2e but what needs an archive, and of the other crates those that
//! say that they need this host.
//!
//! ```text
//! for each test program     thaw a host ─► its tests ─► if the host died: thaw another ─► the tests that were not done
//!                                  └──► before its reset ─► power off, on ─► after its reset
//! ```
//! The emulation of a processor's virtualisation has a flaw that hits once in hundreds of guests: an interrupted kernel loses
//! its state, that of the host or that of a guest in it. A program whose host died is run on in another, at most twice. A
//! guest that dies so cannot be told from a test that fails, so a test that failed is run once more in another host, and
//! fails if it fails again. The output says all of it.

use std::path::Path;
use std::time::{Duration, Instant};

use super::evidence;
use super::frozen::Frozen;
use super::machine::{Lease, Machine};
use super::ssh::quoted;
use crate::failure::Failure;
use crate::log::Log;
use crate::programs::End;
use crate::sum::Sum;
use crate::test_programs::{TestProgram, verdict};

/// What a test says in its `ignore`: where it is run instead, and when.
pub(crate) const REASONS: [&str; 3] = [
    "needs the test host",
    "needs the test host, before its reset",
    "needs the test host, after its reset",
];

/// The crate whose tests run on every machine.
const EVERYWHERE: &str = "e2e";
/// Its test programs that the test host has nothing for.
const NOT_THERE: [(&str, &str); 1] =
    [("artifacts", "wants an archive, a registry, buildah, skopeo and minisign")];
/// Its test programs that are run in the test host only when somebody asks for that ([`Extent::Whole`]), since every guest there
/// boots twice emulated, and one in dozens does not get far. What the CLI says, what a command in a guest gets and what rules let
/// through is the same on every host; a VM's life, its network, and what becomes of it when its daemon dies, are shown there by
/// the tests of an installation, and at every claim by the ledger's.
const FOR_THE_WHOLE: [&str; 18] = [
    "daemon_crash",
    "egress",
    "exec",
    "files",
    "first_start",
    "image_program",
    "jobs",
    "life",
    "limits",
    "many",
    "network",
    "networks",
    "ports",
    "promoting",
    "run",
    "ssh",
    "user_network",
    "workspaces",
];
/// Its test programs that boot many guests at once: one test at a time, since the emulation bears two booting guests.
const ONE_AT_A_TIME: [&str; 1] = ["many"];
/// How long a host may say nothing: a test program says when a test is done, and when one takes more than a minute.
const MOST: Duration = Duration::from_secs(240);

/// How much of the suite is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All that can be run there.
    Whole,
    /// Without what is [`FOR_THE_WHOLE`], unless it is asked for by a filter.
    OfThisHost,
}

/// A test program with its tests of the test host.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) program: TestProgram,
    /// Run one after the other; between two of them the host loses its power.
    parts: Vec<Vec<String>>,
    /// How many of its tests are run nowhere else.
    only_here: u64,
}

/// What runs there, of these programs. Programs without a test are left out.
pub(super) fn plans(
    programs: Vec<TestProgram>,
    extent: Extent,
    filter: Option<&str>,
) -> Result<Vec<Plan>, Failure> {
    let left_out = |name: &str| {
        NOT_THERE.iter().any(|(there, _)| *there == name)
            || extent == Extent::OfThisHost && filter.is_none() && FOR_THE_WHOLE.contains(&name)
    };
    let mut plans = Vec::new();
    let mut programs = programs;
    programs.sort_by_key(TestProgram::title);
    for program in programs {
        let elsewhere = program.elsewhere(filter)?;
        let is_everywhere = program.of == EVERYWHERE && !left_out(&program.name);
        let tests = if is_everywhere { program.tests(filter)? } else { Vec::new() };
        let parts = parts(tests, &elsewhere)
            .map_err(|failure| failure.because(format!("in {}", program.title())))?;
        if !parts.is_empty() {
            plans.push(Plan { program, parts, only_here: elsewhere.len() as u64 });
        }
    }
    Ok(plans)
}

fn parts(tests: Vec<String>, elsewhere: &[(String, String)]) -> Result<Vec<Vec<String>>, Failure> {
    let foreign = elsewhere.iter().find(|(_, reason)| !REASONS.contains(&reason.as_str()));
    if let Some((name, reason)) = foreign {
        return Err(Failure::new(format!("the test {name} is run nowhere: {reason:?}")));
    }
    let which = |wanted: &str| {
        let found = elsewhere.iter().filter(move |(_, reason)| reason == wanted);
        found.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let mut first: Vec<String> =
        tests.into_iter().filter(|test| !elsewhere.iter().any(|(name, _)| name == test)).collect();
    first.extend(which(REASONS[0]));
    first.extend(which(REASONS[1]));
    let parts = [first, which(REASONS[2])];
    Ok(parts.into_iter().filter(|part| !part.is_empty()).collect())
}

/// What stands ready for every program.
#[derive(Debug)]
pub(super) struct Ground<'a> {
    pub(super) frozen: &'a Frozen,
    pub(super) programs: &'a Path,
    pub(super) cache: &'a Path,
    /// The folder of this run: one below it for each host.
    pub(super) folder: &'a Path,
    /// Where what is known of a failure is kept.
    pub(super) failures: &'a Path,
    pub(super) target: &'a Path,
}

/// Runs all of it; what fails does not stop the rest.
pub(super) fn run(
    plans: &[Plan],
    ground: &Ground<'_>,
    log: &mut Log,
    sum: &mut Sum,
) -> Result<(), Failure> {
    let mut failed = Vec::new();
    for plan in plans {
        let begun = Instant::now();
        if let Err(failure) = run_plan(plan, ground, log, sum) {
            log.line(&format!("{failure}: {}", failure.causes().join("; ")));
            failed.push(failure);
        }
        // Counted as ignored where they were not run.
        sum.ignored = sum.ignored.saturating_sub(plan.only_here);
        log.line(&format!("{} took {:.1} s", plan.program.title(), begun.elapsed().as_secs_f64()));
    }
    if failed.is_empty() {
        return Ok(());
    }
    let all = Failure::new(format!("{} test programs failed in the test host", failed.len()));
    Err(failed.iter().fold(all, |all, failure| {
        all.because(format!("{failure}: {}", failure.causes().join("; ")))
    }))
}

/// Hosts that one program may use up.
const MOST_HOSTS: u32 = 3;

/// How far the tests of a program came.
#[derive(Debug, Default)]
struct Progress {
    passed: Vec<String>,
    failed: Vec<String>,
    /// How many have passed: what the closing lines say, which count those whose own line was torn by other output.
    count: u64,
    output: Vec<String>,
}

/// Why a host's work ended.
#[derive(Debug)]
enum Outcome {
    Done,
    HostDied,
    Broken(Failure),
}

fn run_plan(plan: &Plan, ground: &Ground<'_>, log: &mut Log, sum: &mut Sum) -> Result<(), Failure> {
    let title = plan.program.title();
    let mut parts = plan.parts.clone();
    // Failed once: the next failure counts.
    let mut suspects: Vec<String> = Vec::new();
    for attempt in 1..=MOST_HOSTS {
        let is_last = attempt == MOST_HOSTS;
        let folder = ground.folder.join(format!("{}-{attempt}", title.replace('/', "-")));
        let begun = Instant::now();
        let mut machine =
            ground.frozen.thaw(&folder, ground.programs, ground.cache, Lease::Ours)?;
        log.line(&format!("\na host for {title}, in {:.1} s", begun.elapsed().as_secs_f64()));
        let mut progress = Progress::default();
        let outcome = match machine.prepare(ground.target) {
            Ok(()) => run_parts(&mut machine, plan, &parts, ground, &folder, log, &mut progress),
            Err(failure) if machine.is_gone(Duration::ZERO) => {
                log.line(&format!("{failure}"));
                Outcome::HostDied
            }
            Err(failure) => Outcome::Broken(failure),
        };
        let is_well = matches!(outcome, Outcome::Done) && progress.failed.is_empty();
        let kept = if is_well {
            None
        } else {
            Some(evidence::keep(
                &mut machine,
                &folder,
                &ground.failures.join(title.replace('/', "-")),
                &progress.output,
            )?)
        };
        machine.end();
        super::remove(&folder)?;
        let kept = kept.map(|kept| kept.display().to_string()).unwrap_or_default();
        let is_certain = |test: &&String| is_last || suspects.contains(test);
        let certain: Vec<String> = progress.failed.iter().filter(is_certain).cloned().collect();
        // A reset's first half is gone with its host, so the whole is repeated.
        let repeats_all = plan.parts.len() > 1 && !is_well && !is_last && certain.is_empty();
        if !repeats_all {
            sum.passed += progress.count;
            for part in &mut parts {
                part.retain(|test| !progress.passed.contains(test));
            }
        }
        let left = parts.iter().map(Vec::len).sum::<usize>();
        if !certain.is_empty() {
            sum.failed += left as u64;
            let names = certain.join(", ");
            return Err(Failure::new(title)
                .because(format!("{} failed: {names}; see {kept}", certain.len())));
        }
        suspects.append(&mut progress.failed);
        match outcome {
            Outcome::Done if is_well => return Ok(()),
            Outcome::Done => log.line(&format!(
                "a guest may have died of the emulation; {} of {title} is run once more in another host; see {kept}",
                suspects.join(", ")
            )),
            Outcome::HostDied if !is_last => log.line(&format!(
                "the emulated host died or stood still; what was not done, {left} tests of {title}, is run in another; see {kept}"
            )),
            Outcome::HostDied => {
                sum.failed += left as u64;
                return Err(Failure::new(title).because(format!(
                    "{MOST_HOSTS} emulated hosts died or stood still, with {left} tests not done; see {kept}"
                )));
            }
            Outcome::Broken(failure) => {
                sum.failed += left as u64;
                return Err(Failure::new(title)
                    .because(format!("{failure} {}; {left} tests not done; see {kept}", failure.causes().join(" "))));
            }
        }
    }
    unreachable!("the last attempt returns: what fails there is certain")
}

fn run_parts(
    machine: &mut Machine,
    plan: &Plan,
    parts: &[Vec<String>],
    ground: &Ground<'_>,
    folder: &Path,
    log: &mut Log,
    progress: &mut Progress,
) -> Outcome {
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            log.line("the test host loses its power");
            let again = machine.reset(folder).and_then(|()| machine.prepare(ground.target));
            if let Err(failure) = again {
                return Outcome::Broken(failure);
            }
        }
        if part.is_empty() {
            continue;
        }
        match run_part(machine, plan, part, log, progress) {
            Outcome::Done => {}
            other => return other,
        }
    }
    Outcome::Done
}

fn run_part(
    machine: &mut Machine,
    plan: &Plan,
    tests: &[String],
    log: &mut Log,
    progress: &mut Progress,
) -> Outcome {
    let call = machine.ssh().call(&command(&plan.program, tests)).silent_for(MOST);
    let (mut closing, before) = (None, progress.passed.len());
    let ended = call.listen(log, |line| {
        match verdict(line) {
            Some((name, true)) => progress.passed.push(name.to_owned()),
            Some((name, false)) => progress.failed.push(name.to_owned()),
            None => {}
        }
        let mut sum = Sum::default();
        closing = closing.or(sum.add(line).then_some(sum.passed));
        progress.output.push(line.to_owned());
        true
    });
    progress.count += closing.unwrap_or((progress.passed.len() - before) as u64);
    match ended {
        Err(failure) => Outcome::Broken(failure),
        // A test that failed is told by its name; but one whose line was torn by other output is not.
        Ok(End::Ended(status))
            if closing.is_some() && (status.success() || !progress.failed.is_empty()) =>
        {
            Outcome::Done
        }
        // The connection's end can be seen a moment before QEMU's.
        Ok(_) if machine.is_gone(Duration::from_secs(5)) => Outcome::HostDied,
        // A host that lost its state may also stand still, and a guest spin for ever: the connection ends, or the time does.
        Ok(_) if closing.is_none() => Outcome::HostDied,
        Ok(end) => Outcome::Broken(call.failed(end)),
    }
}

/// The line for the host's shell that runs a program with what tests find in their environment.
pub(super) fn line(program: &TestProgram) -> String {
    let words = [
        "exec env BANGER_BIN_DIR=/banger/bin BANGER_FIRECRACKER_DIR=/banger/firecracker",
        "BANGER_E2E_CACHE=/cache/e2e BANGER_E2E_BACKEND=firecracker",
        "TMPDIR=/cache/tmp",
    ];
    let path = quoted(&super::path_there(program).display().to_string());
    format!("cd /cache/tmp && {} {path}", words.join(" "))
}

fn command(program: &TestProgram, tests: &[String]) -> String {
    let alone = program.of == EVERYWHERE && ONE_AT_A_TIME.contains(&program.name.as_str());
    let flags = [
        "--exact",
        "--include-ignored",
        if alone { "--test-threads=1" } else { "--test-threads=2" },
    ];
    let tests = tests.iter().map(|test| quoted(test));
    let words = [line(program)].into_iter().chain(flags.map(str::to_owned)).chain(tests);
    words.collect::<Vec<_>>().join(" ")
}

/// Whether some of them need the kernels and images that are made outside.
pub(super) fn need_cache(plans: &[Plan]) -> bool {
    plans.iter().any(|plan| plan.program.of == EVERYWHERE)
}

/// The programs that the plans are about.
pub(super) fn programs(plans: &[Plan]) -> Vec<&TestProgram> {
    plans.iter().map(|plan| &plan.program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn elsewhere(tests: &[(&str, &str)]) -> Vec<(String, String)> {
        tests.iter().map(|(name, reason)| ((*name).to_owned(), (*reason).to_owned())).collect()
    }

    #[test]
    fn what_goes_on_after_a_reset_is_a_part_of_its_own() {
        let [here, before, after] = REASONS;
        let found = parts(
            names(&["after", "before", "everywhere", "here"]),
            &elsewhere(&[("after", after), ("before", before), ("here", here)]),
        );
        assert_eq!(found.unwrap(), [names(&["everywhere", "here", "before"]), names(&["after"])]);
        assert_eq!(parts(Vec::new(), &[]).unwrap(), Vec::<Vec<String>>::new());
    }

    #[test]
    fn a_test_that_is_run_nowhere_is_a_failure() {
        let failure = parts(Vec::new(), &elsewhere(&[("a", "slow")])).unwrap_err();
        assert_eq!(failure.to_string(), "the test a is run nowhere: \"slow\"");
    }

    #[test]
    fn many_guests_are_not_doubled() {
        let program = |name: &str| TestProgram {
            of: "e2e".into(),
            name: name.into(),
            executable: "/x".into(),
        };
        let line = command(&program("many"), &names(&["a", "b::c"]));
        assert!(
            line.ends_with(
                "/banger/tests/e2e/many --exact --include-ignored --test-threads=1 a b::c"
            ),
            "{line}"
        );
        assert!(command(&program("exec"), &[]).ends_with("--test-threads=2"));
    }
}
