//! Which modules the kernel has, loaded or to be loaded on demand. Everybody may look.

use std::fs;
use std::path::Path;

/// Whether the module is loaded, built in, or there to be loaded.
pub(super) fn is_there(name: &str) -> bool {
    if Path::new("/sys/module").join(name.replace('-', "_")).exists() {
        return true;
    }
    let release = rustix::system::uname();
    let folder = Path::new("/lib/modules").join(release.release().to_string_lossy().as_ref());
    ["modules.builtin", "modules.dep"].iter().any(|list| {
        let text = fs::read_to_string(folder.join(list)).unwrap_or_default();
        text.lines().any(|line| is_named(line, name))
    })
}

/// `kernel/drivers/md/dm-snapshot.ko.xz: …`: the two characters `-` and `_` are one in names of modules.
fn is_named(line: &str, name: &str) -> bool {
    let path = line.split(':').next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    let stem = file.split(".ko").next().unwrap_or_default();
    stem.replace('_', "-") == name.replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_found_by_its_file_whatever_compresses_it() {
        for line in [
            "kernel/drivers/md/dm-snapshot.ko: kernel/drivers/md/dm-bufio.ko",
            "kernel/drivers/md/dm_snapshot.ko.zst:",
            "kernel/drivers/md/dm-snapshot.ko.xz",
        ] {
            assert!(is_named(line, "dm-snapshot"), "{line}");
        }
        assert!(!is_named("kernel/drivers/md/dm-bufio.ko: kernel/x/dm-snapshot.ko", "dm-snapshot"));
        assert!(!is_there("no-such-module"));
    }
}
