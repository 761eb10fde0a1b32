//! Doctor, of an installation: whether its units, folders, sockets and programs are what this version makes, and whether
//! systemd and the helper go by them. Looks only.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use banger_api::daemon::{Finding, Verdict};
use banger_api::folders::Folders;
use banger_api::install::units::{self, DAEMON_UNIT, ENABLED, HELPER_UNIT};
use banger_api::install::{
    AGENT, DAEMON, FOLDERS, HELPER, HELPER_SOCKET, Install, RUN_FOLDER, Whose,
};
use banger_api::{Code, Problem, VERSION};
use banger_host::root::trusted_program;
use banger_host::{Host, command};

/// What mends most of it: an installation can be repeated, and VMs run on.
const INSTALL_AGAIN: &str = "`sudo banger system install`";

/// Settings that VMs live by or that hold an attacker back; what systemd really goes by is compared, drop-ins included.
const EFFECTIVE: [&str; 10] = [
    "User",
    "KillMode",
    "OOMPolicy",
    "RuntimeDirectoryPreserve",
    "NoNewPrivileges",
    "CapabilityBoundingSet",
    "ProtectSystem",
    "ProtectHome",
    "RestrictNamespaces",
    "DevicePolicy",
];

/// One finding for each thing that can be wrong by itself. `host` is the daemon's, which asks the helper.
#[must_use]
pub fn findings(install: &Install, host: &dyn Host) -> Vec<Finding> {
    vec![
        version(install),
        owner(install, command::run("getent", &["passwd", "--", &install.owner_name])),
        unit_files(install, |path| fs::read_to_string(path)),
        services(command::run("systemctl", &state_arguments())),
        effective(install, |unit| command::run("systemctl", &effective_arguments(unit))),
        folders(install, |path| path.symlink_metadata()),
        sockets(install, |path| path.symlink_metadata()),
        programs(install),
        builder(&|name| command::find(name).is_some()),
        helper(host),
    ]
}

fn version(install: &Install) -> Finding {
    if install.version == VERSION {
        return pass("installation", format!("banger {VERSION}, for {}", install.owner_name));
    }
    warn(
        "installation",
        format!("it is of banger {}, and this daemon is {VERSION}", install.version),
        INSTALL_AGAIN,
    )
}

/// The helper goes by the uid, systemd by the name.
fn owner(install: &Install, line: Result<String, impl std::error::Error + 'static>) -> Finding {
    const REMEDY: &str = "`sudo banger system uninstall`, then install for the user who is meant";
    let (name, uid) = (&install.owner_name, install.owner_uid);
    match line {
        Err(error) => fail("owner", format!("there is no user {name}: {}", told(&error)), REMEDY),
        Ok(line) if line.split(':').nth(2) == Some(uid.to_string().as_str()) => {
            pass("owner", format!("{name} is uid {uid}"))
        }
        Ok(_) => fail("owner", format!("{name} is no longer uid {uid}"), REMEDY),
    }
}

/// The units on disk, line by line.
fn unit_files(install: &Install, read: impl Fn(&Path) -> std::io::Result<String>) -> Finding {
    let mut wrong = Vec::new();
    for (path, expected) in units::units(install) {
        match read(Path::new(path)) {
            Err(error) => wrong.push(format!("{path}: {error}")),
            Ok(found) => {
                let differences = differences(&expected, &found);
                wrong.extend(differences.into_iter().map(|line| format!("{path}: {line}")));
            }
        }
    }
    if wrong.is_empty() {
        return pass("units", "every line is as this version writes it");
    }
    fail("units", wrong.join("; "), INSTALL_AGAIN)
}

/// Each setting that one text has and the other has not.
fn differences(expected: &str, found: &str) -> Vec<String> {
    let mut spare: Vec<(&str, &str)> = units::settings(found).collect();
    let mut lacking = Vec::new();
    for setting in units::settings(expected) {
        match spare.iter().position(|other| *other == setting) {
            Some(index) => drop(spare.remove(index)),
            None => lacking.push(setting),
        }
    }
    let mut said = Vec::new();
    for (section, line) in lacking {
        let key = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
        let instead =
            spare.iter().position(|other| other.0 == section && key(other.1) == key(line));
        match instead {
            Some(index) => {
                said.push(format!("{} in {section} is to be {line}", spare.remove(index).1));
            }
            None => said.push(format!("{line} is missing in {section}")),
        }
    }
    said.extend(
        spare.into_iter().map(|(section, line)| format!("{line} in {section} is not ours")),
    );
    said
}

fn state_arguments() -> Vec<&'static str> {
    let shown = ["show", "--property=Id,ActiveState,UnitFileState"];
    shown.into_iter().chain(ENABLED).collect()
}

/// Whether what is to run runs, and will after a boot.
fn services(said: Result<String, impl std::error::Error + 'static>) -> Finding {
    let said = match said {
        Ok(said) => said,
        Err(error) => return fail("services", told(&error), "`systemctl status bangerd`"),
    };
    let blocks: Vec<BTreeMap<&str, &str>> = said.split("\n\n").map(values).collect();
    let mut wrong = Vec::new();
    for unit in ENABLED {
        let found = blocks.iter().find(|block| block.get("Id") == Some(&unit));
        for (key, expected) in [("ActiveState", "active"), ("UnitFileState", "enabled")] {
            let state = found.and_then(|block| block.get(key)).copied().unwrap_or("not there");
            if state != expected {
                wrong.push(format!(
                    "{unit} is {}",
                    if state.is_empty() { "not there" } else { state }
                ));
            }
        }
    }
    if wrong.is_empty() {
        return pass("services", format!("{} run, and do after a boot", ENABLED.join(" and ")));
    }
    fail(
        "services",
        wrong.join("; "),
        &format!("`sudo systemctl enable --now {}`", ENABLED.join(" ")),
    )
}

fn effective_arguments(unit: &str) -> [&str; 3] {
    const SHOWN: &str = "--property=User,KillMode,OOMPolicy,RuntimeDirectoryPreserve,NoNewPrivileges,\
                         CapabilityBoundingSet,ProtectSystem,ProtectHome,RestrictNamespaces,DevicePolicy";
    ["show", SHOWN, unit]
}

/// Whether systemd goes by what the units say: a drop-in (systemd.unit(5)) can change any setting.
fn effective<E: std::error::Error + 'static>(
    install: &Install,
    show: impl Fn(&str) -> Result<String, E>,
) -> Finding {
    let mut wrong = Vec::new();
    for (path, text) in units::units(install) {
        let unit = path.rsplit('/').next().unwrap_or(path);
        if ![DAEMON_UNIT, HELPER_UNIT].contains(&unit) {
            continue;
        }
        match show(unit) {
            Err(error) => wrong.push(format!("{unit}: {}", told(&error))),
            Ok(said) => {
                let said = values(&said);
                for (key, expected) in expected(&text) {
                    let found = normal(key, said.get(key).copied().unwrap_or_default());
                    if found != normal(key, expected) {
                        wrong.push(format!("{unit}: {key}={found} is to be {key}={expected}"));
                    }
                }
            }
        }
    }
    if wrong.is_empty() {
        return pass("hardening", "systemd goes by what the units say");
    }
    let remedy = "`systemctl cat bangerd banger-helper` shows drop-ins: remove those that say so, then \
                  `sudo systemctl daemon-reload` and `sudo banger system restart`";
    fail("hardening", wrong.join("; "), remedy)
}

/// Those of [`EFFECTIVE`] that the unit's text sets.
fn expected(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let split = |(_, line)| str::split_once(line, '=');
    units::settings(text).filter_map(split).filter(|(key, _)| EFFECTIVE.contains(key))
}

/// systemctl(1) shows capabilities and namespaces in lower case, and in its own order.
fn normal(key: &str, value: &str) -> String {
    match (key, value) {
        // systemd shows each kind of namespace that is allowed: "yes" allows none.
        ("RestrictNamespaces", "yes") => String::new(),
        ("CapabilityBoundingSet" | "RestrictNamespaces", _) => {
            let mut words: Vec<String> = value.split_whitespace().map(str::to_lowercase).collect();
            words.sort();
            words.join(" ")
        }
        _ => value.to_owned(),
    }
}

fn values(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('=')).collect()
}

/// Owners and modes of the folders.
fn folders(install: &Install, look: impl Fn(&Path) -> std::io::Result<Metadata>) -> Finding {
    let mut wrong = Vec::new();
    for folder in FOLDERS.into_iter().chain([RUN_FOLDER]) {
        let uid = match folder.whose {
            Whose::Root => 0,
            Whose::Owner => install.owner_uid,
        };
        match look(Path::new(folder.path)) {
            Err(error) => wrong.push(format!("{}: {error}", folder.path)),
            Ok(found) if !found.is_dir() => wrong.push(format!("{} is no folder", folder.path)),
            Ok(found) => wrong.extend(owned(folder.path, &found, uid, folder.mode)),
        }
    }
    match wrong.is_empty() {
        true => pass("folders", "each has its owner and its mode"),
        false => fail("folders", wrong.join("; "), INSTALL_AGAIN),
    }
}

/// Owners and modes of the sockets.
fn sockets(install: &Install, look: impl Fn(&Path) -> std::io::Result<Metadata>) -> Finding {
    let daemons = Folders::installed().socket();
    let mut wrong = Vec::new();
    for path in [daemons.as_path(), Path::new(HELPER_SOCKET)] {
        match look(path) {
            Err(error) => wrong.push(format!("{}: {error}", path.display())),
            Ok(found) if !found.file_type().is_socket() => {
                wrong.push(format!("{} is no socket", path.display()));
            }
            Ok(found) => wrong.extend(owned(path.display(), &found, install.owner_uid, 0o600)),
        }
    }
    match wrong.is_empty() {
        true => pass("sockets", format!("only {} and root can ask", install.owner_name)),
        false => fail("sockets", wrong.join("; "), "`sudo banger system restart`"),
    }
}

fn owned(path: impl Display, found: &Metadata, uid: u32, mode: u32) -> Vec<String> {
    let mut wrong = Vec::new();
    if found.uid() != uid {
        wrong.push(format!("{path} belongs to uid {}, not {uid}", found.uid()));
    }
    if found.mode() & 0o7777 != mode {
        wrong.push(format!("{path} has mode {:04o}, not {mode:04o}", found.mode() & 0o7777));
    }
    wrong
}

/// Programs that root or the owner runs must not be anybody else's to write.
fn programs(install: &Install) -> Finding {
    let all = [DAEMON, HELPER, AGENT].map(|name| install.program(name));
    let wrong: Vec<String> = all
        .iter()
        .filter_map(|path| trusted_program(path).err())
        .map(|error| told(&error))
        .collect();
    match wrong.is_empty() {
        true => {
            pass("programs", format!("{}, which only root can write", install.programs.display()))
        }
        false => fail("programs", wrong.join("; "), INSTALL_AGAIN),
    }
}

/// How the daemon builds images: no program may give it ids here (`NoNewPrivileges`), so newuidmap does not help.
fn builder(there: &dyn Fn(&str) -> bool) -> Finding {
    let missing: Vec<&str> =
        ["fakechroot", "fakeroot", "mmdebstrap"].into_iter().filter(|name| !there(name)).collect();
    if missing.is_empty() {
        return pass("image build", "mmdebstrap in fakechroot");
    }
    warn(
        "image build",
        format!("not there: {}; the installed daemon builds images with them", missing.join(", ")),
        &format!("apt-get install {}", missing.join(" ")),
    )
}

fn helper(host: &dyn Host) -> Finding {
    match host.list() {
        Ok(held) => {
            let count = held.iter().filter(|held| held.needs_root()).count();
            pass("helper", format!("answers; root holds {count} things for VMs"))
        }
        Err(error) => fail(
            "helper",
            told(&error),
            "`systemctl status banger-helper` says why it does not answer",
        ),
    }
}

/// An error with its causes, on one line.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    Problem::from_error(Code::Internal, error).to_string()
}

fn pass(check: &str, text: impl Into<String>) -> Finding {
    Finding { check: check.into(), verdict: Verdict::Pass, text: text.into(), remedy: None }
}

fn warn(check: &str, text: String, remedy: &str) -> Finding {
    Finding { check: check.into(), verdict: Verdict::Warn, text, remedy: Some(remedy.into()) }
}

fn fail(check: &str, text: String, remedy: &str) -> Finding {
    Finding { check: check.into(), verdict: Verdict::Fail, text, remedy: Some(remedy.into()) }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn install() -> Install {
        Install::parse(
            "version = \"0.1.0\"\nowner_name = \"alice\"\nowner_uid = 1000\ninstallation = \"0a1b\"\n\
             uid_base = 1900000000\nuid_count = 10000\nprograms = \"/usr/local/lib/banger\"\n\
             firecracker = \"/usr/local/lib/banger/firecracker\"\njailer = \"/usr/local/lib/banger/jailer\"\n",
        )
        .unwrap()
    }

    fn written(path: &Path) -> String {
        let found = units::units(&install()).find(|(other, _)| Path::new(other) == path);
        found.expect("only units are read").1
    }

    #[test]
    fn units_as_written_pass() {
        let finding = unit_files(&install(), |path| Ok(written(path)));
        assert_eq!(finding.verdict, Verdict::Pass, "{finding:?}");
        let commented = unit_files(&install(), |path| Ok(format!("# mine\n\n{}", written(path))));
        assert_eq!(commented.verdict, Verdict::Pass, "{commented:?}");
    }

    #[test]
    fn every_line_of_every_unit_is_missed_and_named() {
        for (path, text) in units::units(&install()) {
            for (section, line) in units::settings(&text) {
                let without: String = text
                    .lines()
                    .filter(|other| *other != line)
                    .map(|line| format!("{line}\n"))
                    .collect();
                let said = differences(&text, &without);
                assert_eq!(said, [format!("{line} is missing in {section}")], "{path}");
            }
        }
    }

    #[test]
    fn a_changed_line_and_one_of_somebody_elses_are_named() {
        let finding = unit_files(&install(), |path| {
            Ok(written(path).replace("KillMode=process", "KillMode=control-group\nDelegate=yes"))
        });
        assert_eq!(finding.verdict, Verdict::Fail);
        for said in [
            "bangerd.service: KillMode=control-group in [Service] is to be KillMode=process",
            "banger-helper.service: Delegate=yes in [Service] is not ours",
        ] {
            assert!(finding.text.contains(said), "{}", finding.text);
        }
    }

    #[test]
    fn a_unit_that_is_not_there_fails_by_its_path() {
        let finding = unit_files(&install(), |_| Err(io::ErrorKind::NotFound.into()));
        assert!(finding.text.contains("/etc/systemd/system/bangerd.service: "), "{}", finding.text);
    }

    #[test]
    fn services_must_run_and_be_enabled() {
        let ok = |text: &str| services(Ok::<_, io::Error>(text.to_owned()));
        let all = "Id=banger-helper.socket\nActiveState=active\nUnitFileState=enabled\n\n\
                   Id=bangerd.service\nActiveState=active\nUnitFileState=enabled\n";
        assert_eq!(ok(all).verdict, Verdict::Pass);
        let failed = ok(&all.replacen("ActiveState=active", "ActiveState=failed", 1));
        assert_eq!(failed.text, "banger-helper.socket is failed");
        let disabled = ok(&all.replacen("=enabled", "=disabled", 2));
        assert!(disabled.text.contains("bangerd.service is disabled"), "{}", disabled.text);
        assert_eq!(ok("").verdict, Verdict::Fail);
        assert_eq!(services(Err(io::Error::other("no bus"))).text, "no bus");
    }

    /// As systemd 252 shows them.
    fn shown(unit: &str) -> String {
        if unit == DAEMON_UNIT {
            return "User=alice\nKillMode=process\nOOMPolicy=continue\nRuntimeDirectoryPreserve=yes\n\
                    NoNewPrivileges=yes\nCapabilityBoundingSet=\nProtectSystem=strict\nProtectHome=read-only\n\
                    RestrictNamespaces=\nDevicePolicy=closed\n"
                .to_owned();
        }
        "User=\nKillMode=process\nOOMPolicy=continue\nRuntimeDirectoryPreserve=no\nNoNewPrivileges=yes\n\
         CapabilityBoundingSet=cap_chown cap_dac_override cap_fowner cap_kill cap_setgid \
         cap_setuid cap_net_admin cap_sys_admin cap_mknod\nProtectSystem=strict\nProtectHome=yes\n\
         RestrictNamespaces=mnt\nDevicePolicy=auto\n"
            .to_owned()
    }

    #[test]
    fn what_systemd_goes_by_must_be_what_the_units_say() {
        let good = effective(&install(), |unit| Ok::<_, io::Error>(shown(unit)));
        assert_eq!(good.verdict, Verdict::Pass, "{}", good.text);
        for (from, to, said) in [
            ("KillMode=process", "KillMode=mixed", "KillMode=mixed is to be KillMode=process"),
            ("Preserve=yes", "Preserve=no", "RuntimeDirectoryPreserve=no is to be"),
            ("cap_kill ", "cap_kill cap_sys_module ", "cap_sys_module"),
            ("User=alice", "User=root", "User=root is to be User=alice"),
            ("RestrictNamespaces=mnt", "RestrictNamespaces=mnt net", "mnt net is to be"),
        ] {
            let bad =
                effective(&install(), |unit| Ok::<_, io::Error>(shown(unit).replace(from, to)));
            assert_eq!(bad.verdict, Verdict::Fail, "{to}");
            assert!(bad.text.contains(said), "{}", bad.text);
        }
    }

    #[test]
    fn every_setting_that_is_compared_is_asked_for() {
        let asked = effective_arguments("x")[1].strip_prefix("--property=").unwrap();
        assert_eq!(asked.split(',').collect::<Vec<_>>(), EFFECTIVE);
    }

    #[test]
    fn an_owner_who_has_another_uid_now_fails() {
        let line =
            |uid: u32| Ok::<_, io::Error>(format!("alice:x:{uid}:1000::/home/alice:/bin/sh\n"));
        assert_eq!(owner(&install(), line(1000)).verdict, Verdict::Pass);
        assert_eq!(owner(&install(), line(1001)).verdict, Verdict::Fail);
        assert_eq!(owner(&install(), Err(io::Error::other("gone"))).verdict, Verdict::Fail);
    }

    #[test]
    fn a_folder_of_the_wrong_owner_or_mode_is_named() {
        let around = tempfile::tempdir().unwrap();
        fs::set_permissions(around.path(), PermissionsExt::from_mode(0o750)).unwrap();
        let mine = around.path().metadata().unwrap();
        assert_eq!(owned("/x", &mine, mine.uid(), 0o750), [""; 0]);
        assert_eq!(owned("/x", &mine, mine.uid(), 0o700), ["/x has mode 0750, not 0700"]);
        let said = owned("/x", &mine, mine.uid() + 1, 0o750);
        assert!(said[0].starts_with("/x belongs to uid"), "{said:?}");
        let gone = folders(&install(), |_| Err(io::ErrorKind::NotFound.into()));
        assert!(gone.text.contains("/var/lib/banger/jails: "), "{}", gone.text);
    }

    #[test]
    fn a_socket_that_is_none_fails() {
        let around = tempfile::tempdir().unwrap();
        let finding = sockets(&install(), |_| around.path().symlink_metadata());
        assert!(finding.text.contains("/run/banger-helper.sock is no socket"), "{}", finding.text);
    }

    #[test]
    fn programs_that_are_missing_are_named_with_their_packages() {
        assert_eq!(builder(&|_| true).verdict, Verdict::Pass);
        let finding = builder(&|name| name == "mmdebstrap");
        assert_eq!(finding.remedy.as_deref(), Some("apt-get install fakechroot fakeroot"));
    }
}
