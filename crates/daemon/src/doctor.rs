//! Doctor: what this host has, what it lacks, and what to do about it.

use std::sync::Arc;

use banger_api::daemon::{Finding, Report, Verdict};
use banger_api::{Code, Problem, Size};
use banger_host::{command, space};
use banger_vmm::qemu;

use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

/// Below this doctor warns.
const LITTLE_SPACE: Size = Size::gib(5);

impl Daemon {
    /// # Errors
    /// When the host cannot be looked at at all.
    pub async fn doctor(self: &Arc<Self>) -> Result<Report, Problem> {
        let facts = self.facts().await.clone();
        let vmm = self.vmm().await.map_or_else(|p| p.to_string(), |vmm| vmm.name());
        self.blocking(move |daemon| {
            let mut findings = vec![daemon.architecture(), kvm(&facts.kvm, &vmm)];
            findings.push(qemu_there());
            findings.extend(PROGRAMS.iter().map(program_there));
            findings.push(daemon.agent_there());
            findings.push(daemon.storage());
            findings.push(daemon.space());
            findings.push(daemon.default_image());
            findings.push(daemon.default_kernel());
            findings.push(daemon.defaults());
            findings.push(daemon.vms_in_error());
            findings.push(daemon.strays_found());
            Report { findings }
        })
        .await
    }

    /// Releases strays, then reports.
    ///
    /// # Errors
    /// When the host cannot be looked at.
    pub async fn doctor_fix(self: &Arc<Self>, operation: &Operation) -> Result<Report, Problem> {
        operation.stage("strays", "releasing what carries our mark and is in no ledger");
        for (held, released) in self.blocking(Daemon::release_strays).await?? {
            match released {
                Ok(()) => operation.note(format!("released {held}")),
                Err(problem) => operation.note(format!("{held} is still there: {problem}")),
            }
        }
        operation.stage("report", "looking again");
        self.doctor().await
    }

    fn architecture(&self) -> Finding {
        match std::env::consts::ARCH {
            "x86_64" => pass("architecture", "x86_64"),
            other => {
                fail("architecture", format!("{other} is not supported"), "use an x86-64 machine")
            }
        }
    }

    fn agent_there(&self) -> Finding {
        if self.agent.is_file() {
            return pass("agent", self.agent.display().to_string());
        }
        fail(
            "agent",
            format!("{} is missing", self.agent.display()),
            "build it with `cargo xtask build`",
        )
    }

    fn storage(&self) -> Finding {
        let image = self.store.images().ok().and_then(|images| images.into_iter().next());
        let Some(image) = image else {
            return pass(
                "storage",
                "decided when there is an image: reflink where the state's filesystem has it, else overlay",
            );
        };
        let path = self.image_path(&image.digest);
        if banger_host::reflink_works(&path, &self.places.vms) {
            pass(
                "storage",
                format!("reflink: {} shares blocks between files", self.folders.state.display()),
            )
        } else {
            let why = "cannot share blocks between files (xfs and btrfs can)";
            pass(
                "storage",
                format!("overlay: the filesystem of {} {why}", self.folders.state.display()),
            )
        }
    }

    fn space(&self) -> Finding {
        match space::free_bytes(&self.folders.state) {
            Ok(free) if free >= LITTLE_SPACE.as_bytes() => pass(
                "space",
                format!("{} free in {}", Size::bytes(free), self.folders.state.display()),
            ),
            Ok(free) => Finding {
                check: "space".into(),
                verdict: Verdict::Warn,
                text: format!(
                    "only {} free in {}",
                    Size::bytes(free),
                    self.folders.state.display()
                ),
                remedy: Some(problems::FREE_SPACE.into()),
            },
            Err(error) => fail(
                "space",
                Problem::from_error(Code::Internal, &error).to_string(),
                "make the folder readable",
            ),
        }
    }

    fn default_image(&self) -> Finding {
        let name = &self.config.image;
        match self.store.image(name) {
            Ok(Some(image)) => pass("image", format!("{name}, {}", Size::bytes(image.size_bytes))),
            Ok(None) => warn(
                "image",
                format!("the default image {name} is not there yet"),
                "the first `banger vm run` builds it",
            ),
            Err(error) => fail(
                "image",
                problems::store(error).to_string(),
                "see `banger doctor` after the cause is gone",
            ),
        }
    }

    fn default_kernel(&self) -> Finding {
        match self.store.kernels() {
            Ok(kernels) => match kernels.first() {
                Some(kernel) => {
                    pass("kernel", format!("{} with {} modules", kernel.name, kernel.modules))
                }
                None => warn(
                    "kernel",
                    "there is no kernel yet".into(),
                    "the first `banger vm run` imports one from apt",
                ),
            },
            Err(error) => fail(
                "kernel",
                problems::store(error).to_string(),
                "see `banger doctor` after the cause is gone",
            ),
        }
    }

    fn defaults(&self) -> Finding {
        let shown: Vec<String> = self
            .config
            .provenance
            .iter()
            .map(|(name, origin)| format!("{name} {origin}"))
            .collect();
        pass("defaults", shown.join("; "))
    }

    fn vms_in_error(&self) -> Finding {
        let in_error = self.store.vms().map(|vms| {
            vms.into_iter()
                .filter(|vm| vm.state == banger_api::vm::State::Error)
                .map(|vm| vm.name.to_string())
                .collect()
        });
        match in_error {
            Ok(names) if Vec::is_empty(&names) => pass("vms", "none has leftovers"),
            Ok(names) => fail(
                "vms",
                format!("could not be released: {}", names.join(", ")),
                &format!(
                    "`banger vm show {}` says what and why; `banger vm delete` tries again",
                    names[0]
                ),
            ),
            Err(error) => fail(
                "vms",
                problems::store(error).to_string(),
                "see `banger doctor` after the cause is gone",
            ),
        }
    }

    fn strays_found(&self) -> Finding {
        match self.strays() {
            Ok(strays) if strays.is_empty() => {
                pass("strays", "nothing on this host carries our mark without a record")
            }
            Ok(strays) => {
                let shown: Vec<String> = strays.iter().map(ToString::to_string).collect();
                fail("strays", shown.join("; "), "`banger doctor --fix` releases them")
            }
            Err(problem) => {
                fail("strays", problem.to_string(), "see `banger doctor` after the cause is gone")
            }
        }
    }
}

/// A program that some verb needs, the package it is in, and what goes without it.
struct Program {
    name: &'static str,
    package: &'static str,
    purpose: &'static str,
    needed: bool,
}

const PROGRAMS: [Program; 4] = [
    Program {
        name: "mke2fs",
        package: "e2fsprogs",
        purpose: "makes disks and images",
        needed: true,
    },
    Program {
        name: "mmdebstrap",
        package: "mmdebstrap",
        purpose: "`banger image build`",
        needed: false,
    },
    Program {
        name: "fakeroot",
        package: "fakeroot",
        purpose: "images made without root",
        needed: false,
    },
    Program {
        name: "apt-get",
        package: "apt",
        purpose: "`banger kernel import --from-apt`",
        needed: false,
    },
];

fn program_there(program: &Program) -> Finding {
    match command::find(program.name) {
        Some(path) => pass(program.name, path.display().to_string()),
        None => Finding {
            check: program.name.into(),
            verdict: if program.needed { Verdict::Fail } else { Verdict::Warn },
            text: format!("not found; {} needs it", program.purpose),
            remedy: Some(format!("apt-get install {}", program.package)),
        },
    }
}

fn qemu_there() -> Finding {
    match command::run(qemu::PROGRAM, &["--version"]) {
        Ok(said) => pass("qemu", said.lines().next().unwrap_or_default()),
        Err(error) => fail(
            "qemu",
            Problem::from_error(Code::Missing, &error).to_string(),
            "apt-get install qemu-system-x86",
        ),
    }
}

fn kvm(probed: &Result<(), String>, vmm: &str) -> Finding {
    match probed {
        Ok(()) => pass("kvm", format!("runs guests; VMs start on {vmm}")),
        Err(why) => Finding {
            check: "kvm".into(),
            verdict: Verdict::Warn,
            text: format!(
                "{why}; VMs start on {vmm}, which translates and is some ten times slower"
            ),
            remedy: Some(
                "use a machine with hardware virtualisation, or enable nesting, for speed".into(),
            ),
        },
    }
}

fn pass(check: &str, text: impl Into<String>) -> Finding {
    Finding { check: check.into(), verdict: Verdict::Pass, text: text.into(), remedy: None }
}

fn warn(check: &str, text: String, remedy: &str) -> Finding {
    Finding { check: check.into(), verdict: Verdict::Warn, text, remedy: Some(remedy.into()) }
}

fn fail(check: &str, text: impl Into<String>, remedy: &str) -> Finding {
    Finding {
        check: check.into(),
        verdict: Verdict::Fail,
        text: text.into(),
        remedy: Some(remedy.into()),
    }
}
