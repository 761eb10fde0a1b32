//! Root's claims that need a kernel with device-mapper, and udev beside it: they run in the test host.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use banger_host::root::{DeviceSource, JailDevice, abilities};
use banger_host::{Claim, DmSnapshot, Held, Loop, LoopRole, Mark, StateFile, command};
use common::{SIZE, World, api, in_world, toy};

const IMAGE: u64 = 4 << 20;

/// The claims of a snapshot device: the loops below it, and itself.
struct Snapshot {
    mark: Mark,
    loops: [Claim; 2],
    device: Claim,
}

impl Snapshot {
    fn new(world: &World) -> Self {
        let image = world.put("images/i.ext4", &vec![b'i'; usize::try_from(IMAGE).unwrap()]);
        Self::over(world, image, SIZE)
    }

    fn over(world: &World, image: StateFile, size_bytes: u64) -> Self {
        let mark = world.mark();
        let disk = StateFile::disk(&mark);
        fs::create_dir_all(disk.below(world.state()).parent().unwrap()).unwrap();
        let file = File::create(disk.below(world.state())).unwrap();
        file.set_len(DmSnapshot::cow_bytes(size_bytes)).unwrap();
        let of = |role, file| Claim::Loop(Loop { mark: mark.clone(), role, file });
        Self {
            loops: [of(LoopRole::Image, image), of(LoopRole::Disk, disk)],
            device: Claim::DmSnapshot(DmSnapshot { mark: mark.clone(), size_bytes }),
            mark,
        }
    }

    fn acquire(&self, world: &World) {
        self.acquire_loops(world);
        world.root.acquire(&self.device, None).unwrap();
    }

    fn acquire_loops(&self, world: &World) {
        for claim in &self.loops {
            world.root.acquire(claim, None).unwrap();
        }
    }

    fn release(&self, world: &World) {
        for claim in [&self.device, &self.loops[1], &self.loops[0]] {
            world.root.release(&claim.held()).unwrap();
        }
    }

    /// The device's node.
    fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(self.mark.to_string())
    }

    fn origin(&self) -> String {
        format!("{}-origin", self.mark)
    }

    /// That it can be read and written as it should.
    fn check(&self) {
        let device = OpenOptions::new().read(true).write(true).open(self.path()).unwrap();
        let mut bytes = [0; 4096];
        device.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(bytes, [b'i'; 4096], "the image");
        device.read_exact_at(&mut bytes, SIZE - 4096).unwrap();
        assert_eq!(bytes, [0; 4096], "zeroes behind it");
        device.write_all_at(b"written", 0).unwrap();
        device.sync_all().unwrap();
    }
}

fn node(name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir("/sys/block").unwrap() {
        let entry = entry.unwrap();
        let named = fs::read_to_string(entry.path().join("dm/name")).unwrap_or_default();
        if named.trim_end() == name {
            return Some(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    None
}

/// As `losetup` would tell.
fn loop_of(world: &World, snapshot: &Snapshot, role: LoopRole) -> String {
    let Claim::Loop(claim) = &snapshot.loops[usize::from(role == LoopRole::Disk)] else { panic!() };
    let wanted = claim.file.below(world.state());
    for entry in fs::read_dir("/sys/block").unwrap() {
        let path = entry.unwrap().path();
        let file = fs::read_to_string(path.join("loop/backing_file")).unwrap_or_default();
        if file.trim_end() == wanted.to_str().unwrap() {
            return fs::read_to_string(path.join("dev")).unwrap().trim().to_owned();
        }
    }
    panic!("no loop over {}", wanted.display());
}

fn dmsetup(args: &[&str]) {
    command::run("dmsetup", args).unwrap();
}

#[test]
#[ignore = "needs the test host"]
fn this_machine_can_do_everything() {
    let found = abilities();
    assert_eq!(
        (found.dm_snapshot, found.loop_devices, found.cgroup, found.taps),
        (Ok(()), Ok(()), Ok(()), Ok(()))
    );
}

#[test]
#[ignore = "needs the test host"]
fn what_was_written_is_there_at_the_next_start_and_the_image_stays_as_it_was() {
    in_world(|world| {
        let snapshot = Snapshot::new(world);
        snapshot.acquire(world);
        snapshot.acquire(world);
        snapshot.check();
        let device = OpenOptions::new().write(true).open(snapshot.path()).unwrap();
        // Across the border between the image and the zeroes, and the last bytes.
        device.write_all_at(b"border", IMAGE - 3).unwrap();
        device.write_all_at(b"end", SIZE - 3).unwrap();
        device.sync_all().unwrap();
        drop(device);
        let mut wanted = vec![snapshot.loops[0].held(), snapshot.loops[1].held()];
        wanted.push(snapshot.device.held());
        assert_eq!(world.root.list().unwrap(), wanted);

        for _ in 0..2 {
            snapshot.release(world);
            assert_eq!(world.root.list().unwrap(), []);
            assert!(snapshot.path().symlink_metadata().is_err());
        }
        snapshot.acquire(world);
        let device = File::open(snapshot.path()).unwrap();
        for (text, at) in [("written", 0), ("border", IMAGE - 3), ("end", SIZE - 3)] {
            let mut bytes = vec![0; text.len()];
            device.read_exact_at(&mut bytes, at).unwrap();
            assert_eq!(bytes, text.as_bytes());
        }
        let image = fs::read(world.state().join("images/i.ext4")).unwrap();
        assert!(image.iter().all(|&byte| byte == b'i'));
    });
}

#[test]
#[ignore = "needs the test host"]
fn an_image_of_the_devices_size_and_one_of_no_whole_pages_work() {
    in_world(|world| {
        let image = world.put("images/same.ext4", &vec![b'i'; usize::try_from(SIZE).unwrap()]);
        let same = Snapshot::over(world, image, SIZE);
        same.acquire(world);
        let odd = world.put("images/odd.ext4", &vec![b'i'; 4096 * 3 + 512]);
        let odd = Snapshot::over(world, odd, SIZE);
        odd.acquire(world);
        for snapshot in [&same, &odd] {
            let bytes = fs::read(snapshot.path()).unwrap();
            assert_eq!(bytes.len() as u64, SIZE);
            let image = if snapshot.mark == odd.mark { 4096 * 3 + 512 } else { bytes.len() };
            assert!(bytes[..image].iter().all(|&byte| byte == b'i'));
            assert!(bytes[image..].iter().all(|&byte| byte == 0));
        }
        let large = world.put("images/large.ext4", &vec![b'i'; 4096]);
        let large = Snapshot::over(world, large, 2048);
        large.acquire_loops(world);
        assert!(world.root.acquire(&large.device, None).is_err(), "smaller than its image");
    });
}

#[test]
#[ignore = "needs the test host"]
fn every_half_made_device_is_listed_completed_and_released() {
    in_world(|world| {
        for complete in [true, false] {
            for step in 0..6 {
                let snapshot = Snapshot::new(world);
                snapshot.acquire_loops(world);
                make_half(world, &snapshot, step);
                let held = snapshot.device.held();
                assert!(world.root.list().unwrap().contains(&held), "step {step}");
                if complete {
                    world.root.acquire(&snapshot.device, None).unwrap();
                    snapshot.check();
                }
                snapshot.release(world);
                assert_eq!(world.root.list().unwrap(), [], "step {step}");
                assert_eq!(node(&snapshot.origin()), None);
                assert!(snapshot.path().symlink_metadata().is_err());
            }
        }
    });
}

/// Makes it by hand, up to this step of six.
fn make_half(world: &World, snapshot: &Snapshot, last: u32) {
    let (name, origin) = (snapshot.mark.to_string(), snapshot.origin());
    let (uuid, origin_uuid) = (format!("banger-{name}"), format!("banger-{origin}"));
    let image = IMAGE / 512;
    let linear = format!("0 {image} linear {} 0", loop_of(world, snapshot, LoopRole::Image));
    let zero = format!("{image} {} zero", (SIZE - IMAGE) / 512);
    let script = |step| match step {
        0 => dmsetup(&["create", &origin, "-u", &origin_uuid, "--notable"]),
        1 => dmsetup(&["load", &origin, "-r", "--table", &format!("{linear}\n{zero}")]),
        2 => dmsetup(&["resume", &origin]),
        3 => dmsetup(&["create", &name, "-u", &uuid, "--notable"]),
        4 => {
            let number = fs::metadata(node(&origin).unwrap()).unwrap().rdev();
            let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
            let disk = loop_of(world, snapshot, LoopRole::Disk);
            let table = format!("0 {} snapshot {number} {disk} P 8", SIZE / 512);
            dmsetup(&["load", &name, "--table", &table]);
        }
        _ => {
            dmsetup(&["resume", &name]);
            dmsetup(&["suspend", &name]);
        }
    };
    (0..=last).for_each(script);
}

#[test]
#[ignore = "needs the test host"]
fn a_device_that_somebody_has_open_goes_when_it_is_closed() {
    in_world(|world| {
        let snapshot = Snapshot::new(world);
        snapshot.acquire(world);
        let opened = File::open(snapshot.path()).unwrap();
        std::thread::scope(|scope| {
            let (done, ended) = mpsc::channel();
            let held = snapshot.device.held();
            scope.spawn(move || done.send(world.root.release(&held)).unwrap());
            assert!(ended.recv_timeout(Duration::from_millis(500)).is_err(), "it is in use");
            drop(opened);
            ended.recv_timeout(Duration::from_secs(5)).unwrap().unwrap();
        });
        assert!(!world.root.list().unwrap().contains(&snapshot.device.held()));
    });
}

#[test]
#[ignore = "needs the test host"]
fn a_device_that_is_held_too_long_is_an_error_and_is_released_later() {
    in_world(|world| {
        let snapshot = Snapshot::new(world);
        snapshot.acquire(world);
        let opened = File::open(snapshot.path()).unwrap();
        let begin = Instant::now();
        let error = world.root.release(&snapshot.device.held()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
        assert!((9..20).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
        drop(opened);
        snapshot.release(world);
    });
}

#[test]
#[ignore = "needs the test host"]
fn foreign_devices_of_our_names_are_errors_and_are_not_removed() {
    in_world(|world| {
        let snapshot = Snapshot::new(world);
        snapshot.acquire_loops(world);
        let name = snapshot.mark.to_string();
        dmsetup(&["create", &name, "-u", "somebody-elses", "--table", "0 8 zero"]);
        assert!(!world.root.list().unwrap().contains(&snapshot.device.held()));
        assert!(world.root.acquire(&snapshot.device, None).is_err());
        world.root.release(&snapshot.device.held()).unwrap();
        assert!(!world.root.list().unwrap().contains(&snapshot.device.held()));
        assert!(node(&name).is_some());
        assert!(snapshot.path().exists(), "udev's link to it");
        dmsetup(&["remove", "--retry", &name]);
        assert!(snapshot.path().symlink_metadata().is_err());

        let uuid = format!("banger-{name}");
        dmsetup(&["create", &name, "-u", &uuid, "--table", "0 8 zero"]);
        let error = world.root.acquire(&snapshot.device, None).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("0 8 zero"), "{cause}");
    });
}

#[test]
#[ignore = "needs the test host"]
fn a_file_of_something_else_than_what_was_written_is_an_error() {
    in_world(|world| {
        let snapshot = Snapshot::new(world);
        let disk = StateFile::disk(&snapshot.mark).below(world.state());
        OpenOptions::new().write(true).open(disk).unwrap().write_all_at(&[7; 8192], 0).unwrap();
        snapshot.acquire_loops(world);
        assert!(world.root.acquire(&snapshot.device, None).is_err());
        snapshot.release(world);
    });
}

#[test]
#[ignore = "needs the test host"]
fn a_device_without_its_loops_is_an_error() {
    in_world(|world| {
        let snapshot = Snapshot::new(world);
        assert!(world.root.acquire(&snapshot.device, None).is_err());
        assert_eq!(world.root.list().unwrap(), []);
    });
}

#[test]
#[ignore = "needs the test host"]
fn devices_of_many_vms_are_made_and_released_at_once() {
    in_world(|world| {
        let snapshots: Vec<_> = (0..8).map(|_| Snapshot::new(world)).collect();
        std::thread::scope(|scope| {
            for snapshot in &snapshots {
                scope.spawn(|| snapshot.acquire(world));
            }
        });
        assert_eq!(world.root.list().unwrap().len(), 3 * snapshots.len());
        std::thread::scope(|scope| {
            for snapshot in &snapshots {
                scope.spawn(|| {
                    snapshot.check();
                    snapshot.release(world);
                });
            }
        });
        assert_eq!(world.root.list().unwrap(), []);
    });
}

#[test]
#[ignore = "needs the test host"]
fn a_jailed_vmm_has_the_snapshot_as_a_drive() {
    in_world(|world| {
        let mut vm = world.toy_vm(1_900_000_100);
        let size_bytes = SIZE;
        let disk = StateFile::disk(&vm.mark).below(world.state());
        let file = OpenOptions::new().write(true).open(disk).unwrap();
        file.set_len(DmSnapshot::cow_bytes(size_bytes)).unwrap();
        vm.claims.insert(3, Claim::DmSnapshot(DmSnapshot { mark: vm.mark.clone(), size_bytes }));
        for claim in &mut vm.claims {
            if let Claim::Jail(jail) = claim {
                let source = DeviceSource::DmSnapshot;
                jail.devices = vec![JailDevice { name: "root".into(), source }];
            }
        }
        let mut console = vm.make(&world.root);
        for (path, body) in [
            ("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":32}"#),
            ("/boot-source", r#"{"kernel_image_path":"kernel"}"#),
            (
                "/drives/root",
                r#"{"drive_id":"root","path_on_host":"root","is_root_device":false,"is_read_only":false}"#,
            ),
            ("/actions", r#"{"action_type":"InstanceStart"}"#),
        ] {
            api::call(&world.root, &vm.mark, "PUT", path, body);
        }
        console.wait_for(toy::UP);
        let begin = Instant::now();
        world.release_all(&vm);
        assert_eq!(world.root.list().unwrap(), []);
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    });
}

#[test]
#[ignore = "needs the test host"]
fn limits_are_those_of_the_claim() {
    in_world(|world| {
        let vm = world.toy_vm(1_900_000_101);
        let _console = vm.make(&world.root);
        let group = PathBuf::from(format!("/sys/fs/cgroup/banger/{}", vm.mark));
        let read = |file: &str| fs::read_to_string(group.join(file)).unwrap();
        assert_eq!(read("memory.max"), format!("{}\n", 256 << 20));
        assert_eq!(read("cpu.max"), "100000 100000\n");
        assert_eq!(read("pids.max"), "64\n");
        assert_eq!(fs::metadata(&group).unwrap().mode() & 0o777, 0o755);
        let held = Held::Cgroup { mark: vm.mark.clone() };
        assert!(world.root.list().unwrap().contains(&held));
        // Whatever systemd does with its own, ours stays as it is.
        command::run("systemctl", &["daemon-reload"]).unwrap();
        assert_eq!(read("pids.max"), "64\n");
        assert!(!read("cgroup.procs").is_empty());
    });
}
