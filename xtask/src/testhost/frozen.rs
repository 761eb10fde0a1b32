//! A test host that was booted once and frozen: its memory, its processor's and devices' state, its disk. Many can go on
//! from it, at the same time and each on its own: memory and disk are shared until they are written.
//!
//! It thaws only under the same QEMU, with the same arguments, on a processor whose time-stamp counter has the same rate.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::disks;
use super::image::Image;
use super::key::Key;
use super::machine::{Lease, Machine, Setup, arguments};
use super::{locked, remove, remove_others, tsc};
use crate::failure::Failure;
use crate::log::Log;
use crate::programs::Call;

#[derive(Debug)]
pub(super) struct Frozen {
    folder: PathBuf,
    image: Image,
    khz: u64,
}

/// The frozen host of this image, booted and frozen if there is none.
pub(super) fn ensure(places: &Path, image: &Image, log: &mut Log) -> Result<Frozen, Failure> {
    let _lock = locked(places)?;
    let here = tsc::measure_khz();
    let folder = places.join(format!("frozen-{}", key(places, image)?));
    let kept = fs::read_to_string(folder.join("khz")).ok();
    let kept = kept.and_then(|text| text.trim().parse::<u64>().ok());
    let khz = match kept {
        Some(kept) if tsc::agree(kept, here) => kept,
        _ => {
            log.line("booting the test host, to freeze it");
            let draft = places.join("frozen-draft");
            remove(&draft)?;
            boot_and_freeze(&draft, image, here)?;
            remove(&folder)?;
            fs::rename(&draft, &folder).map_err(|error| cannot("rename", &draft, &error))?;
            here
        }
    };
    remove_others(places, "frozen-", &folder)?;
    log.line(&format!("the frozen test host is {}", folder.display()));
    Ok(Frozen { folder, image: image.clone(), khz })
}

fn key(places: &Path, image: &Image) -> Result<String, Failure> {
    let qemu = Call::new("qemu-system-x86_64").args(["--version"]).output()?;
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    let ram = Path::new("ram");
    let setup = Setup { ram, shared: true, khz: 0, incoming: false, lease: Lease::Ours };
    let all = [&*places.to_string_lossy(), &image.key, &qemu, cpu];
    let key = all.into_iter().fold(Key::new(), Key::with);
    Ok(arguments(&setup).into_iter().fold(key, Key::with).text())
}

fn boot_and_freeze(folder: &Path, image: &Image, khz: u64) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|error| cannot("make", folder, &error))?;
    link(&image.folder, &folder.join("image"))?;
    // What comes in later has the size of these, which the host has not looked into.
    for (name, length) in
        [("programs.raw", disks::PROGRAMS_BYTES), ("cache.raw", disks::CACHE_BYTES)]
    {
        let path = folder.join(name);
        let made = File::create(&path).and_then(|file| file.set_len(length));
        made.map_err(|error| cannot("write", &path, &error))?;
    }
    overlay(folder, "disk.qcow2", "image/disk.raw", "raw")?;
    overlay(folder, "cache.qcow2", "cache.raw", "raw")?;
    let setup =
        Setup { ram: Path::new("ram"), shared: true, khz, incoming: false, lease: Lease::Ours };
    let machine = Machine::boot(folder, &setup)?;
    let state =
        machine.ssh().ask("systemctl is-system-running || systemctl --failed --no-legend")?;
    if state.trim() != "running" {
        return Err(Failure::new("the test host's units do not all start").because(state));
    }
    // What is cached would be in the memory's file, and is on the disk.
    machine.ssh().ask("sync; echo 3 > /proc/sys/vm/drop_caches")?;
    machine.freeze("state")?;
    for scrap in ["programs.raw", "cache.raw", "cache.qcow2", "ssh", "pid", "port"] {
        drop(fs::remove_file(folder.join(scrap)));
    }
    let path = folder.join("khz");
    fs::write(&path, khz.to_string()).map_err(|error| cannot("write", &path, &error))
}

impl Frozen {
    /// Goes on in a new folder, with these disks.
    pub(super) fn thaw(
        &self,
        folder: &Path,
        programs: &Path,
        cache: &Path,
        lease: Lease,
    ) -> Result<Machine, Failure> {
        fs::create_dir_all(folder).map_err(|error| cannot("make", folder, &error))?;
        for (to, name) in [
            (&*self.image.folder, "image"),
            (&*self.folder, "frozen"),
            (programs, "programs.raw"),
            (cache, "cache.raw"),
        ] {
            link(to, &folder.join(name))?;
        }
        overlay(folder, "disk.qcow2", "frozen/disk.qcow2", "qcow2")?;
        overlay(folder, "cache.qcow2", "cache.raw", "raw")?;
        let setup = Setup {
            ram: Path::new("frozen/ram"),
            shared: false,
            khz: self.khz,
            incoming: true,
            lease,
        };
        Machine::thaw(folder, &setup, "frozen/state")
    }
}

/// A disk on top of another, which stays as it is.
fn overlay(folder: &Path, name: &str, base: &str, format: &str) -> Result<(), Failure> {
    Call::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", format, "-b", base, name])
        .in_folder(folder)
        .output()
        .map(drop)
}

fn link(to: &Path, at: &Path) -> Result<(), Failure> {
    symlink(to, at).map_err(|error| cannot("make", at, &error))
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot {what} {}", path.display())).cause(error)
}
