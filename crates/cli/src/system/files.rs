//! Makes and removes an installation's folders and files. A file appears whole or not at all: it is written under another
//! name, synced and renamed; a program that runs keeps the file that it was started from.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use banger_api::install::{self, Folder, Whose};
use banger_api::{Code, Problem};
use rustix::fs::OFlags;

use super::owner::Owner;

/// Makes the folder, or sees to it that the one that is there has its owner and its mode.
///
/// # Errors
/// When something else is in its place, or it belongs to a third user.
pub(crate) fn make_folder(folder: &Folder, owner: &Owner) -> Result<(), Problem> {
    let path = Path::new(folder.path);
    let failed = |error: io::Error| failed("make the folder", path, &error);
    let (uid, gid) = match folder.whose {
        Whose::Root => (0, 0),
        Whose::Owner => (owner.uid, owner.gid),
    };
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let opened = open_folder(path).map_err(failed)?;
    let found = opened.metadata().map_err(failed)?.uid();
    if found != uid && found != 0 {
        return Err(Problem::new(Code::Conflict, format!("cannot use the folder {}", path.display()))
            .because(format!("it belongs to uid {found}, and is to belong to uid {uid}"))
            .remedy("is it of an earlier installation for another owner? Install for that owner and `banger system uninstall --purge`, or move it away"));
    }
    fchown(&opened, Some(uid), Some(gid)).map_err(failed)?;
    opened.set_permissions(Permissions::from_mode(folder.mode)).map_err(failed)
}

/// Refuses a path on which others than root could put something else in a folder's place. What is not there yet is
/// fine: root makes it.
///
/// # Errors
/// Which folder it is.
pub(crate) fn roots_alone_on_the_way(path: &Path) -> Result<(), Problem> {
    for folder in path.ancestors() {
        let found = match folder.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.map_err(|error| failed("look at", folder, &error))?,
        };
        install::roots_alone(&found).map_err(|why| {
            let folder = folder.display();
            Problem::new(Code::Invalid, format!("cannot install below {folder}"))
                .because(why)
                // Debian before 12 gave these folders to the group staff (Debian policy 9.1.2).
                .remedy(format!("`chown root:root {folder}` and `chmod go-w {folder}`"))
        })?;
    }
    Ok(())
}

/// Removes the folder if nothing is in it; gives whether it is gone.
///
/// # Errors
/// When it cannot be removed for another reason.
pub(crate) fn remove_folder(path: &Path) -> Result<bool, Problem> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => Ok(true),
            ErrorKind::DirectoryNotEmpty => Ok(false),
            _ => Err(failed("remove the folder", path, &error)),
        },
    }
}

/// Removes the folder with all that is in it. Follows no link.
///
/// # Errors
/// When something is mounted in it, or it cannot be removed.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Problem> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| failed("look what is mounted below", path, &error))?;
    if let Some(mounted) = mounted_below(&mounts, path) {
        let mounted = mounted.display();
        return Err(Problem::new(Code::Leftover, format!("cannot remove {}", path.display()))
            .because(format!("{mounted} is mounted there"))
            .remedy(format!("`umount {mounted}`, then again")));
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path, &error)),
        _ => Ok(()),
    }
}

/// The first mount point at or below the path; field 5 of proc_pid_mountinfo(5).
fn mounted_below(mountinfo: &str, path: &Path) -> Option<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.into_iter().find(|point| point.starts_with(path))
}

/// Copies a program; root's, mode 0755. Nothing to do when both are one file already.
///
/// # Errors
/// When it cannot be read or written.
pub(crate) fn copy_program(from: &Path, to: &Path) -> Result<(), Problem> {
    let open = |error: io::Error| failed("read the program", from, &error);
    let mut source = File::open(from).map_err(open)?;
    let here = source.metadata().map_err(open)?;
    if to
        .symlink_metadata()
        .is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino()))
    {
        return Ok(());
    }
    replace(to, 0o755, ROOT, |file| io::copy(&mut source, file).map(drop))
        .map_err(|error| failed("write the program", to, &error))
}

/// Writes a text; root's, mode 0644. One that says the same is left as it is.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), Problem> {
    let same = path
        .symlink_metadata()
        .is_ok_and(|found| found.is_file() && (found.uid(), found.mode() & 0o7777) == (0, 0o644));
    if same && fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    replace(path, 0o644, ROOT, |file| file.write_all(text.as_bytes()))
        .map_err(|error| failed("write", path, &error))
}

/// Removes a file, and what a [`replace`] that broke off left of it.
///
/// # Errors
/// When it cannot be removed.
pub(crate) fn remove_file(path: &Path) -> Result<(), Problem> {
    for path in [draft(path).as_path(), path] {
        match fs::remove_file(path) {
            Err(error)
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Err(failed("remove", path, &error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Root's uid and gid.
const ROOT: (u32, u32) = (0, 0);

fn replace(
    path: &Path,
    mode: u32,
    (uid, gid): (u32, u32),
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let draft = draft(path);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    write(&mut file)?;
    fchown(&file, Some(uid), Some(gid))?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn draft(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".banger-new");
    path.with_file_name(name)
}

/// The text of a short file that is in a folder of somebody else's, without following a link; `None` when it is not there.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn read_in(folder: &Path, name: &str) -> Result<Option<String>, Problem> {
    let path = folder.join(name);
    let read = || -> io::Result<String> {
        let folder = open_folder(folder)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&folder, name, flags, rustix::fs::Mode::empty())?;
        let mut text = String::new();
        File::from(opened).take(4096).read_to_string(&mut text)?;
        Ok(text)
    };
    match read() {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", &path, &error)),
    }
}

/// Makes a short file of the owner's in a folder of his, unless there is one.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn write_in(
    folder: &Path,
    name: &str,
    text: &str,
    owner: &Owner,
) -> Result<(), Problem> {
    let path = folder.join(name);
    let write = || -> io::Result<()> {
        let folder = open_folder(folder)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let mut file = File::from(rustix::fs::openat(&folder, name, flags, mode)?);
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        folder.sync_all()
    };
    match write() {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(failed("write", &path, &error))
        }
        _ => Ok(()),
    }
}

fn open_folder(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?))
}

fn failed(act: &str, path: &Path, error: &io::Error) -> Problem {
    let code = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Code::NoSpace,
        _ => Code::Internal,
    };
    Problem::new(code, format!("cannot {act} {}", path.display())).cause(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Owner {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Owner { name: "me".to_owned(), uid, gid, home: "/".into() }
    }

    fn folder_at(path: &Path, mode: u32) -> Folder {
        let path: &'static str = Box::leak(path.to_str().unwrap().to_owned().into_boxed_str());
        Folder { path, whose: Whose::Owner, mode }
    }

    #[test]
    fn a_folder_gets_its_mode_and_can_be_made_again() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("state");
        for mode in [0o700, 0o755] {
            make_folder(&folder_at(&path, mode), &me()).unwrap();
            assert_eq!(path.metadata().unwrap().mode() & 0o7777, mode);
        }
        assert!(remove_folder(&path).unwrap());
        assert!(remove_folder(&path).unwrap(), "gone is gone");
    }

    #[test]
    fn a_link_in_a_folders_place_is_refused() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("state");
        std::os::unix::fs::symlink("/", &path).unwrap();
        let problem = make_folder(&folder_at(&path, 0o700), &me()).unwrap_err();
        assert!(problem.message.contains("state"), "{problem}");
        assert!(read_in(&path, "installation").is_err());
        assert!(write_in(&path, "installation", "0a1b\n", &me()).is_err());
    }

    #[test]
    fn a_folder_that_others_may_write_is_refused_as_a_way_to_programs() {
        let around = tempfile::tempdir().unwrap();
        fs::set_permissions(around.path(), Permissions::from_mode(0o775)).unwrap();
        let below = around.path().join("lib/banger");
        let problem = roots_alone_on_the_way(&below).unwrap_err();
        assert!(problem.message.contains(around.path().to_str().unwrap()), "{problem}");
        roots_alone_on_the_way(Path::new("/usr/no-such-folder/lib")).unwrap();
    }

    #[test]
    fn a_folder_that_holds_something_stays() {
        let around = tempfile::tempdir().unwrap();
        fs::write(around.path().join("config.toml"), "").unwrap();
        assert!(!remove_folder(around.path()).unwrap());
    }

    #[test]
    fn a_link_in_a_tree_is_removed_and_not_followed() {
        let around = tempfile::tempdir().unwrap();
        let (kept, tree) = (around.path().join("kept"), around.path().join("tree"));
        fs::create_dir_all(tree.join("a")).unwrap();
        fs::write(&kept, "mine").unwrap();
        std::os::unix::fs::symlink(around.path(), tree.join("a/link")).unwrap();
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        assert_eq!(fs::read_to_string(&kept).unwrap(), "mine");
    }

    #[test]
    fn what_is_mounted_below_a_tree_is_found() {
        let info = "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                    30 22 0:5 / /var/lib/banger/state/images rw - tmpfs tmpfs rw\n";
        let below = |path: &str| mounted_below(info, Path::new(path));
        let found = Some(PathBuf::from("/var/lib/banger/state/images"));
        assert_eq!(below("/var/lib/banger/state"), found);
        assert_eq!(below("/var/lib/banger/state/images"), found);
        assert_eq!(below("/var/lib/banger/cache"), None);
    }

    #[test]
    fn the_id_in_a_folder_of_the_owners_is_written_once() {
        let around = tempfile::tempdir().unwrap();
        assert_eq!(read_in(around.path(), "installation").unwrap(), None);
        write_in(around.path(), "installation", "0a1b\n", &me()).unwrap();
        write_in(around.path(), "installation", "zzzz\n", &me()).unwrap();
        assert_eq!(read_in(around.path(), "installation").unwrap().as_deref(), Some("0a1b\n"));
    }

    #[test]
    fn a_program_that_runs_keeps_the_file_it_was_started_from() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("bangerd");
        let write = |text: &'static str| {
            let whose = (me().uid, me().gid);
            replace(&path, 0o755, whose, |file| file.write_all(text.as_bytes())).unwrap();
        };
        write("old");
        let mut running = File::open(&path).unwrap();
        // What a writing that broke off leaves is in nobody's way.
        fs::write(draft(&path), "half").unwrap();
        write("new");
        let mut text = String::new();
        running.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), fs::read_to_string(&path).unwrap().as_str()), ("old", "new"));
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o755);
        assert_eq!(fs::read_dir(around.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_the_one_of_before() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("bangerd");
        fs::write(&path, "old").unwrap();
        let whose = (me().uid, me().gid);
        let full = |_: &mut File| Err(ErrorKind::StorageFull.into());
        let error = replace(&path, 0o755, whose, full).unwrap_err();
        assert_eq!(failed("write", &path, &error).code, Code::NoSpace);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }

    #[test]
    fn a_draft_of_a_broken_off_writing_goes_with_its_file() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("bangerd");
        fs::write(&path, "old").unwrap();
        fs::write(draft(&path), "ha").unwrap();
        remove_file(&path).unwrap();
        assert_eq!(fs::read_dir(around.path()).unwrap().count(), 0);
        remove_file(&path).unwrap();
    }
}
