//! Where the guest's programs ask for names: the gateway. `/etc/resolv.conf` says so, in the way of whoever owns it.
//!
//! ```text
//! a link below /run      written there; systemd-resolved or resolvconf, if it starts, writes it anew and asks the gateway
//! a link elsewhere       left, if what it leads to names a server: somebody's decision
//! anything else          replaced by a file of ours, at every start: an image's own is that of where it was made
//! ```

use std::net::Ipv4Addr;
use std::path::{Component, Path, PathBuf};

use crate::replaced::{WriteError, make_hold, read, write};

/// What libc reads.
const FILE: &str = "etc/resolv.conf";

/// `root` is `/`, but in tests.
pub(crate) fn set(root: &Path, gateway: Ipv4Addr) -> Result<(), WriteError> {
    let text = format!(
        "# From banger, at every start. A symlink to a file of your own is left as it is.\nnameserver {gateway}\n"
    );
    let file = root.join(FILE);
    let Ok(link) = std::fs::read_link(&file) else { return write(&file, &text) };
    let target = target(&link);
    if let Some(file) = below_run(&target) {
        let run = root.join("run");
        if file.starts_with("resolvconf") {
            // resolvconf(8) makes the file of such records, one for each interface and program.
            write(&run.join("resolvconf/interface/eth0.banger"), &text)?;
        }
        return write(&run.join(file), &text);
    }
    if names_a_server(&root.join(target)) { Ok(()) } else { make_hold(&file, |_| text.clone()) }
}

/// What the link leads to, from the root on: it may have `..`, which ends at the root.
fn target(link: &Path) -> PathBuf {
    let mut target = PathBuf::from("etc");
    for component in link.components() {
        match component {
            Component::RootDir | Component::Prefix(_) => target.clear(),
            Component::CurDir => {}
            Component::ParentDir => drop(target.pop()),
            Component::Normal(name) => target.push(name),
        }
    }
    target
}

fn below_run(target: &Path) -> Option<&Path> {
    let file = target.strip_prefix("run").or_else(|_| target.strip_prefix("var/run")).ok()?;
    (file != Path::new("")).then_some(file)
}

fn names_a_server(path: &Path) -> bool {
    String::from_utf8_lossy(&read(path)).lines().any(|line| line.starts_with("nameserver"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in ["etc", "run", "usr"] {
            fs::create_dir(root.path().join(folder)).unwrap();
        }
        root
    }

    /// The servers that a program finds in the file.
    fn servers(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix("nameserver ").map(str::to_owned))
            .collect()
    }

    #[test]
    fn an_image_without_the_file_or_its_folder_gets_it() {
        let root = image();
        fs::remove_dir(root.path().join("etc")).unwrap();
        set(root.path(), GATEWAY).unwrap();
        assert_eq!(servers(&root.path().join(FILE)), ["10.213.0.1"]);
    }

    #[test]
    fn the_file_of_an_image_is_replaced_and_that_of_an_earlier_start_too() {
        let root = image();
        let file = root.path().join(FILE);
        fs::write(&file, "search example.org\nnameserver 192.0.2.1\n").unwrap();
        set(root.path(), Ipv4Addr::new(10, 213, 4, 1)).unwrap();
        assert_eq!(servers(&file), ["10.213.4.1"]);
        set(root.path(), GATEWAY).unwrap();
        assert_eq!(servers(&file), ["10.213.0.1"]);
        assert!(!fs::read_to_string(&file).unwrap().contains("example.org"));
    }

    #[test]
    fn a_link_below_run_stays_and_leads_to_our_server_until_its_owner_starts() {
        for link in [
            "../run/systemd/resolve/stub-resolv.conf",
            "/run/systemd/resolve/stub-resolv.conf",
            "/var/run/systemd/resolve/stub-resolv.conf",
            "../../run/./systemd/resolve/stub-resolv.conf",
        ] {
            let root = image();
            let file = root.path().join(FILE);
            symlink(link, &file).unwrap();
            set(root.path(), GATEWAY).unwrap();
            assert_eq!(fs::read_link(&file).unwrap(), Path::new(link));
            let stub = root.path().join("run/systemd/resolve/stub-resolv.conf");
            assert_eq!(servers(&stub), ["10.213.0.1"], "{link}");
        }
    }

    #[test]
    fn resolvconf_finds_a_record_of_the_server() {
        let root = image();
        symlink("/run/resolvconf/resolv.conf", root.path().join(FILE)).unwrap();
        set(root.path(), GATEWAY).unwrap();
        for name in ["resolv.conf", "interface/eth0.banger"] {
            assert_eq!(servers(&root.path().join("run/resolvconf").join(name)), ["10.213.0.1"]);
        }
    }

    #[test]
    fn a_link_to_somebodys_own_server_is_left() {
        let root = image();
        let own = root.path().join("etc/own");
        fs::write(&own, "nameserver 192.0.2.1\n").unwrap();
        for link in ["own", "/etc/own"] {
            let file = root.path().join(FILE);
            symlink(link, &file).unwrap();
            set(root.path(), GATEWAY).unwrap();
            assert_eq!(fs::read_link(&file).unwrap(), Path::new(link));
            fs::remove_file(&file).unwrap();
        }
        assert_eq!(servers(&own), ["192.0.2.1"]);
    }

    #[test]
    fn a_link_to_nothing_or_to_no_server_is_replaced_and_its_target_is_not_touched() {
        let root = image();
        fs::write(root.path().join("usr/empty"), "# none\n").unwrap();
        fs::create_dir(root.path().join("dev")).unwrap();
        symlink("/dev/zero", root.path().join("dev/zero")).unwrap();
        for link in [
            "/usr/empty",
            "../usr/empty",
            "/usr/nothing",
            "/",
            "..",
            "/run",
            "/dev/zero",
            "resolv.conf",
        ] {
            let file = root.path().join(FILE);
            symlink(link, &file).unwrap();
            set(root.path(), GATEWAY).unwrap();
            assert!(file.symlink_metadata().unwrap().is_file(), "{link}");
            assert_eq!(servers(&file), ["10.213.0.1"]);
            fs::remove_file(&file).unwrap();
        }
        assert_eq!(fs::read_to_string(root.path().join("usr/empty")).unwrap(), "# none\n");
        assert!(!root.path().join("usr/nothing").exists());
    }
}
