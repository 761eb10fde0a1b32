//! What an installation will be, and what is removed with it. Pure: from what was found to lists of what to do.

use std::path::{Path, PathBuf};

use banger_api::install::{
    self, AGENT, CACHE, COMMAND, CONFIG, DAEMON, DATA, FIRECRACKER, FOLDERS, Folder, HELPER,
    Install, JAILER, JAILS, PROGRAMS, RUN, STATE, UID_BASE, UID_COUNT, Whose,
};
use banger_api::{Code, Problem, VERSION};

use super::owner::Owner;
use super::sources::Sources;

/// The daemon's configuration: the user writes it.
const CONFIG_FILE: &str = "/etc/banger/config.toml";

/// The programs that are copied when no package has brought them.
const PROGRAMS_OF_OURS: [&str; 3] = [DAEMON, HELPER, AGENT];

/// What an installation is made of, in the order of making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) install: Install,
    pub(crate) owner: Owner,
    pub(crate) folders: Vec<Folder>,
    /// From where to where.
    pub(crate) programs: Vec<(PathBuf, PathBuf)>,
    pub(crate) texts: Vec<(&'static str, String)>,
    /// What an earlier installation has put where this one has nothing.
    pub(crate) obsolete: Vec<PathBuf>,
}

/// What the user asked for and what was found.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) owner: Owner,
    pub(crate) uid_base: Option<u32>,
    pub(crate) sources: Sources,
    pub(crate) earlier: Option<Install>,
    /// The id of marks: of an earlier installation, else a new one.
    pub(crate) installation: String,
}

/// # Errors
/// What contradicts an earlier installation, or cannot be one.
pub(crate) fn plan(wanted: Wanted) -> Result<Plan, Problem> {
    let Wanted { owner, uid_base, sources, earlier, installation } = wanted;
    if let Some(earlier) = &earlier {
        unchanged(earlier, &owner, uid_base)?;
    }
    let programs: PathBuf = match sources.are_packaged() {
        true => sources.programs.clone(),
        false => PROGRAMS.into(),
    };
    let known = earlier.as_ref();
    let install = Install {
        version: VERSION.to_owned(),
        owner_name: owner.name.clone(),
        owner_uid: owner.uid,
        installation,
        uid_base: uid_base.or(known.map(|known| known.uid_base)).unwrap_or(UID_BASE),
        uid_count: known.map_or(UID_COUNT, |known| known.uid_count),
        programs,
        firecracker: Path::new(PROGRAMS).join(FIRECRACKER),
        jailer: Path::new(PROGRAMS).join(JAILER),
    };
    install.check().map_err(|why| {
        Problem::new(Code::Invalid, "cannot install for this owner or with these uids").because(why)
    })?;
    let mut copies = Vec::new();
    if !install.is_packaged() {
        let ours =
            PROGRAMS_OF_OURS.map(|name| (sources.programs.join(name), install.program(name)));
        copies.extend(ours);
        copies.push((sources.cli, COMMAND.into()));
    }
    if let Some(found) = sources.firecracker {
        copies.push((found.firecracker, install.firecracker.clone()));
        copies.push((found.jailer, install.jailer.clone()));
    }
    let was_copied = earlier.is_some_and(|earlier| !earlier.is_packaged());
    let obsolete = match was_copied && install.is_packaged() {
        true => copied_programs(),
        false => Vec::new(),
    };
    Ok(Plan {
        folders: folders(!copies.is_empty()),
        texts: install.texts(),
        programs: copies,
        install,
        owner,
        obsolete,
    })
}

/// What cannot change while VMs and files of an installation are there.
fn unchanged(earlier: &Install, owner: &Owner, uid_base: Option<u32>) -> Result<(), Problem> {
    let remedy = "`banger system uninstall` first";
    if earlier.owner_uid != owner.uid {
        return Err(Problem::new(Code::Conflict, format!("cannot install for {}", owner.name))
            .because(format!(
                "it is installed for {} (uid {}) already, and a host has one installation",
                earlier.owner_name, earlier.owner_uid
            ))
            .remedy(remedy));
    }
    if uid_base.is_some_and(|base| base != earlier.uid_base) {
        return Err(Problem::new(Code::Conflict, "cannot give VMs other uids")
            .because(format!("those from {} on are in use", earlier.uid_base))
            .remedy(remedy));
    }
    Ok(())
}

fn folders(with_programs: bool) -> Vec<Folder> {
    let programs = Folder { path: PROGRAMS, whose: Whose::Root, mode: 0o755 };
    let guest = Folder { path: GUEST, ..programs };
    FOLDERS.into_iter().chain([programs, guest].into_iter().filter(|_| with_programs)).collect()
}

/// The folder of [`AGENT`].
const GUEST: &str = "/usr/local/lib/banger/guest";

/// What is copied for an installation that no package is for.
fn copied_programs() -> Vec<PathBuf> {
    let ours = PROGRAMS_OF_OURS.map(|name| Path::new(PROGRAMS).join(name));
    ours.into_iter().chain([COMMAND.into()]).collect()
}

/// What is removed, all by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Removal {
    pub(crate) files: Vec<PathBuf>,
    /// With all that is in them.
    pub(crate) trees: Vec<PathBuf>,
    /// If nothing is left in them; inner ones first.
    pub(crate) folders: Vec<PathBuf>,
    /// What says what there was: removed last, so that a removal that broke off can be repeated.
    pub(crate) record: PathBuf,
    /// What stays on purpose.
    pub(crate) kept: Vec<PathBuf>,
}

/// `installed` is `None` when nothing says any more what there was: then all that could have been there goes.
pub(crate) fn removal(installed: Option<&Install>, purge: bool) -> Removal {
    let record = PathBuf::from(install::FILE);
    // systemd removes its links itself, unless the unit's file is gone already.
    let units = install::units::LINKS.into_iter().chain(install::units::PATHS);
    let mut files: Vec<PathBuf> = units.chain([install::MODULES_FILE]).map(PathBuf::from).collect();
    if installed.is_none_or(|installed| !installed.is_packaged()) {
        files.extend(copied_programs());
    }
    files.extend([FIRECRACKER, JAILER].map(|name| Path::new(PROGRAMS).join(name)));
    let mut trees: Vec<PathBuf> = [RUN, JAILS, CACHE].map(PathBuf::from).into();
    let mut kept = Vec::new();
    if purge {
        trees.push(STATE.into());
        files.push(CONFIG_FILE.into());
    } else {
        kept.extend([STATE, CONFIG_FILE].map(PathBuf::from));
    }
    let folders = [GUEST, PROGRAMS, DATA, CONFIG].map(PathBuf::from).into();
    Removal { files, trees, folders, record, kept }
}

#[cfg(test)]
mod tests {
    use snapbox::{assert_data_eq, str};

    use super::*;
    use crate::system::sources::Firecracker;

    fn wanted() -> Wanted {
        Wanted {
            owner: Owner {
                name: "alice".to_owned(),
                uid: 1000,
                gid: 1001,
                home: "/home/alice".into(),
            },
            uid_base: None,
            sources: Sources {
                cli: "/src/banger".into(),
                programs: "/src".into(),
                firecracker: Some(Firecracker {
                    firecracker: "/fc/firecracker".into(),
                    jailer: "/fc/jailer".into(),
                    version: "1.12.1".to_owned(),
                    untested: false,
                }),
            },
            earlier: None,
            installation: "0a1b".to_owned(),
        }
    }

    fn packaged() -> Wanted {
        let mut wanted = wanted();
        wanted.sources.cli = "/usr/bin/banger".into();
        wanted.sources.programs = install::PACKAGED_PROGRAMS.into();
        wanted
    }

    fn shown(plan: &Plan) -> String {
        let folders = plan
            .folders
            .iter()
            .map(|folder| format!("{:04o} {:?} {}\n", folder.mode, folder.whose, folder.path));
        let programs = plan
            .programs
            .iter()
            .map(|(from, to)| format!("{} -> {}\n", from.display(), to.display()));
        let texts = plan.texts.iter().map(|(path, _)| format!("{path}\n"));
        let obsolete = plan.obsolete.iter().map(|path| format!("gone {}\n", path.display()));
        folders.chain(programs).chain(texts).chain(obsolete).collect()
    }

    #[test]
    fn a_build_is_copied_to_where_only_root_writes() {
        assert_data_eq!(
            shown(&plan(wanted()).unwrap()),
            str![[r#"
0755 Root /etc/banger
0755 Root /var/lib/banger
0700 Owner /var/lib/banger/state
0700 Owner /var/lib/banger/cache
0700 Root /var/lib/banger/jails
0755 Root /usr/local/lib/banger
0755 Root /usr/local/lib/banger/guest
/src/bangerd -> /usr/local/lib/banger/bangerd
/src/banger-helper -> /usr/local/lib/banger/banger-helper
/src/guest/banger-agent -> /usr/local/lib/banger/guest/banger-agent
/src/banger -> /usr/local/bin/banger
/fc/firecracker -> /usr/local/lib/banger/firecracker
/fc/jailer -> /usr/local/lib/banger/jailer
/etc/banger/install.toml
/etc/systemd/system/bangerd.service
/etc/systemd/system/banger-helper.socket
/etc/systemd/system/banger-helper.service
/etc/modules-load.d/banger.conf

"#]]
        );
    }

    #[test]
    fn what_a_package_has_brought_stays_where_it_is() {
        let mut wanted = packaged();
        wanted.sources.firecracker = None;
        let plan = plan(wanted).unwrap();
        assert_eq!(plan.programs, []);
        assert_eq!(plan.install.programs, Path::new("/usr/lib/banger"));
        assert!(plan.folders.iter().all(|folder| folder.path != PROGRAMS));
        let daemon = &plan.texts[1].1;
        assert!(daemon.contains("ExecStart=/usr/lib/banger/bangerd\n"), "{daemon}");
    }

    #[test]
    fn a_package_after_a_build_removes_the_builds_copies() {
        let earlier = plan(wanted()).unwrap().install;
        let after = plan(Wanted { earlier: Some(earlier), ..packaged() }).unwrap();
        let gone = shown(&after);
        assert!(gone.contains("gone /usr/local/bin/banger\n"), "{gone}");
        assert!(!gone.contains("gone /usr/local/lib/banger/firecracker"), "{gone}");
        let again = plan(Wanted { earlier: Some(after.install), ..packaged() }).unwrap();
        assert!(again.obsolete.is_empty());
    }

    #[test]
    fn an_installation_keeps_its_owner_and_its_uids() {
        let mut earlier = plan(wanted()).unwrap().install;
        earlier.uid_base = 1_000_000_000;
        let again = plan(Wanted { earlier: Some(earlier.clone()), ..wanted() }).unwrap();
        assert_eq!(again.install.uid_base, 1_000_000_000);
        let mut other = wanted();
        other.owner.uid = 1001;
        let refused = plan(Wanted { earlier: Some(earlier.clone()), ..other }).unwrap_err();
        assert!(refused.to_string().contains("installed for alice (uid 1000)"), "{refused}");
        let moved = Wanted { uid_base: Some(UID_BASE), earlier: Some(earlier), ..wanted() };
        assert!(plan(moved).unwrap_err().to_string().contains("1000000000"));
    }

    #[test]
    fn uids_that_cannot_be_vms_are_refused_by_name() {
        let problem = plan(Wanted { uid_base: Some(1000), ..wanted() }).unwrap_err();
        assert!(problem.to_string().contains("uid_base: below 65536"), "{problem}");
    }

    #[test]
    fn whatever_is_made_is_removed() {
        for wanted in [wanted(), packaged()] {
            let plan = plan(wanted).unwrap();
            let Removal { files, trees, folders, record, kept } =
                removal(Some(&plan.install), true);
            assert!(kept.is_empty());
            let made = plan.texts.iter().map(|(path, _)| PathBuf::from(path));
            for path in made.chain(plan.programs.into_iter().map(|(_, to)| to)) {
                assert!(files.contains(&path) || path == record, "{} stays", path.display());
            }
            for folder in plan.folders {
                let path = PathBuf::from(folder.path);
                assert!(trees.contains(&path) || folders.contains(&path), "{} stays", folder.path);
            }
        }
    }

    #[test]
    fn nothing_is_removed_with_its_content_but_data_and_sockets() {
        for tree in removal(None, true).trees {
            assert!(tree.starts_with("/var/lib/banger/") || tree == Path::new("/run/banger"));
        }
    }

    #[test]
    fn without_purge_disks_and_settings_stay() {
        let Removal { files, trees, kept, .. } = removal(None, false);
        assert_eq!(kept, [Path::new("/var/lib/banger/state"), Path::new(CONFIG_FILE)]);
        assert!(kept.iter().all(|path| !files.contains(path) && !trees.contains(path)));
    }

    #[test]
    fn a_packages_files_are_the_packages_to_remove() {
        let packaged = plan(packaged()).unwrap().install;
        let files = removal(Some(&packaged), true).files;
        assert!(
            files.iter().all(|path| !path.starts_with("/usr/lib") && path != Path::new(COMMAND))
        );
    }
}
