//! A whole VM through the helper, asked by an ordinary user: every claim that needs root, made, found and released, with
//! the helper killed between any two of them. Needs a host with device-mapper, cgroup v2 with its controllers and a /dev/kvm,
//! and Firecracker's programs in the folder that `BANGER_FIRECRACKER_DIR` names.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use banger_host::root::{DeviceSource, JailDevice, JailFile};
use banger_host::{
    Cgroup, Claim, DmSnapshot, Guard, Held, Host, Jail, JailedVmm, Loop, LoopRole, Mac, Mark, Nat,
    StateFile, Tap, VmSocket, Watched,
};
use rustix::fs::{Gid, Uid};
use rustix::process::Signal;
use support::installed::{OWNER, UID, World, network};
use support::{SOON, chain};

const DISK_BYTES: u64 = 8 << 20;
const USER: u32 = UID + 7;

/// What the guest says.
const UP: &str = "guest is up\n";

/// A kernel that says [`UP`] on the first serial port and halts: an ELF of one segment, at 16 MiB.
fn kernel() -> Vec<u8> {
    const CODE: [u8; 22] = [
        0x48, 0x8d, 0x35, 0x0f, 0, 0, 0,    // lea rsi, [message]
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x07, // jz halt
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xeb, 0xf4, // jmp next
        0xf4, // halt: hlt
        0xeb, 0xfd, // jmp halt
    ];
    const ADDRESS: u64 = 16 << 20;
    const HEADERS: u64 = 64 + 56;
    let code = [&CODE[..], UP.as_bytes(), b"\0"].concat();
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
    let long = |elf: &mut Vec<u8>, value: u64| elf.extend(value.to_le_bytes());
    // elf(5): an executable for x86-64, its entry, one program header right behind this one.
    half(&mut elf, 2);
    half(&mut elf, 62);
    word(&mut elf, 1);
    long(&mut elf, ADDRESS);
    long(&mut elf, 64);
    long(&mut elf, 0);
    word(&mut elf, 0);
    for value in [64, 56, 1, 0, 0, 0] {
        half(&mut elf, value);
    }
    // A segment to load (PT_LOAD), to be read and executed.
    word(&mut elf, 1);
    word(&mut elf, 5);
    for value in [HEADERS, ADDRESS, ADDRESS, code.len() as u64, code.len() as u64, 4096] {
        long(&mut elf, value);
    }
    elf.extend(code);
    elf
}

fn put(world: &World, name: &str, bytes: &[u8]) -> StateFile {
    let path = world.path("lib/banger/state").join(name);
    let mut folder = path.as_path();
    while let Some(parent) =
        folder.parent().filter(|parent| parent.starts_with(world.path("lib/banger/state")))
    {
        folder = parent;
        fs::create_dir_all(folder).unwrap();
        chown(folder, Some(OWNER), None).unwrap();
    }
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    chown(&path, Some(OWNER), None).unwrap();
    StateFile::parse(name).unwrap()
}

/// All that a VM claims that needs root, in the order in which it is made. Their files are there.
fn claims(world: &World, mark: &Mark) -> Vec<Claim> {
    let image = put(world, "images/0a1b.ext4", &vec![7; 4 << 20]);
    let kernel = put(world, "kernels/0a1b/vmlinux", &kernel());
    let disk = put(world, StateFile::disk(mark).as_str(), &[]);
    let cow = fs::OpenOptions::new().write(true).open(disk.below(&world.path("lib/banger/state")));
    cow.unwrap().set_len(DmSnapshot::cow_bytes(DISK_BYTES)).unwrap();
    let mark = || mark.clone();
    let (network, address) = network();
    let over = |role, file| Claim::Loop(Loop { mark: mark(), role, file });
    let devices =
        [("banger-root", DeviceSource::DmSnapshot), ("image", DeviceSource::Loop(LoopRole::Image))];
    vec![
        Claim::Cgroup(Cgroup {
            mark: mark(),
            memory_max_bytes: Some(256 << 20),
            cpu_percent: Some(200),
            pids_max: Some(10),
        }),
        over(LoopRole::Image, image),
        over(LoopRole::Disk, disk),
        Claim::DmSnapshot(DmSnapshot { mark: mark(), size_bytes: DISK_BYTES }),
        Claim::Bridge { installation: mark().installation().clone(), network },
        Claim::Guard(Guard {
            mark: mark(),
            network,
            address,
            mac: Mac::of(&mark()),
            exposed: [].into(),
        }),
        Claim::Tap(Tap { mark: mark(), uid: USER, network }),
        Claim::Nat(Nat { mark: mark(), network, address, only: None }),
        Claim::Jail(Jail {
            mark: mark(),
            uid: USER,
            files: vec![JailFile { name: "vmlinux".to_owned(), source: kernel }],
            devices: devices
                .map(|(name, source)| JailDevice { name: name.to_owned(), source })
                .to_vec(),
        }),
        Claim::JailedVmm(JailedVmm { mark: mark(), uid: USER, log_limit_bytes: 1 << 20 }),
    ]
}

/// Firecracker's programs where only root can have put them.
fn put_firecracker(world: &World) {
    let folder =
        std::env::var_os("BANGER_FIRECRACKER_DIR").expect("BANGER_FIRECRACKER_DIR names a folder");
    for name in ["firecracker", "jailer"] {
        let to = world.path("lib/programs").join(name);
        fs::copy(Path::new(&folder).join(name), &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// As the owner, who is not root: in a thread, since that is what users belong to in Linux.
fn as_owner<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let owner = || {
        let (user, group) = (Uid::from_raw(OWNER), Gid::from_raw(OWNER));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(group, group, group).unwrap();
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(owner).join().unwrap())
}

/// One request to Firecracker's API; panics unless it is taken.
fn call(api: &mut UnixStream, method: &str, path: &str, body: &str) -> String {
    let text = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    api.write_all(text.as_bytes()).unwrap();
    let mut answer = vec![0; 65_536];
    let length = api.read(&mut answer).unwrap();
    let answer = String::from_utf8(answer[..length].to_vec()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 20"), "{path}: {answer}");
    answer
}

fn boot(host: &dyn Host, mark: &Mark) {
    let mut api = host.connect(mark, &VmSocket::Jail("api.sock".to_owned())).unwrap();
    api.set_read_timeout(Some(SOON)).unwrap();
    assert!(call(&mut api, "GET", "/", "").contains("Not started"));
    let tap = format!(
        r#"{{"iface_id":"eth0","host_dev_name":"{mark}","guest_mac":"{}"}}"#,
        Mac::of(mark)
    );
    for (path, body) in [
        ("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#),
        ("/boot-source", r#"{"kernel_image_path":"vmlinux"}"#),
        (
            "/drives/root",
            r#"{"drive_id":"root","path_on_host":"banger-root","is_root_device":true,"is_read_only":false,"cache_type":"Writeback"}"#,
        ),
        (
            "/drives/image",
            r#"{"drive_id":"image","path_on_host":"image","is_root_device":false,"is_read_only":true}"#,
        ),
        ("/network-interfaces/eth0", &tap),
        ("/vsock", r#"{"guest_cid":3,"uds_path":"agent.sock"}"#),
        ("/entropy", "{}"),
        ("/actions", r#"{"action_type":"InstanceStart"}"#),
    ] {
        call(&mut api, "PUT", path, body);
    }
    assert!(call(&mut api, "GET", "/", "").contains("Running"));
}

/// Waits until the log has this.
fn wait_for_log(world: &World, mark: &Mark, wanted: &str) {
    let folder = world.path("lib/banger/state/vms").join(mark.to_string());
    let watch = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).unwrap();
    rustix::fs::inotify::add_watch(&watch, &folder, rustix::fs::inotify::WatchFlags::MODIFY)
        .unwrap();
    let end = Instant::now() + SOON;
    loop {
        let said = fs::read_to_string(folder.join("console.log")).unwrap_or_default();
        if said.contains(wanted) {
            return;
        }
        let left = end.saturating_duration_since(Instant::now());
        assert!(left > Duration::ZERO, "{wanted:?} is not in {said:?}");
        let timeout = rustix::event::Timespec::try_from(left).unwrap();
        let mut polled = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut polled, Some(&timeout)).unwrap();
        let mut events = [0; 4096];
        let _count = rustix::io::read(&watch, &mut events);
    }
}

fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

fn watched(host: &dyn Host, mark: &Mark) -> Watched {
    host.watch(mark).unwrap().expect("the VMM runs")
}

/// What is held that needs root; the VM's folder is there for its disk, another claim's.
fn listed(host: &dyn Host) -> Vec<Held> {
    let mut found = as_owner(|| host.list()).unwrap_or_else(|error| panic!("{}", chain(&error)));
    found.retain(Held::needs_root);
    found
}

#[test]
#[ignore = "needs the test host"]
fn a_users_vm_is_made_and_released_though_the_helper_is_killed_between_any_two_claims() {
    World::new().run(|world| {
        put_firecracker(world);
        let mark = world.mark("1");
        let claims = claims(world, &mark);
        let held: Vec<Held> = claims.iter().map(Claim::held).collect();
        let host = world.host();
        for (index, claim) in claims.iter().enumerate() {
            let helper = world.start();
            for _there_and_right_the_second_time in 0..2 {
                as_owner(|| host.acquire(claim))
                    .unwrap_or_else(|error| panic!("{}", chain(&error)));
            }
            let mut wanted = held[..=index].to_vec();
            wanted.sort();
            assert_eq!(listed(&host), wanted);
            helper.kill();
        }

        let helper = world.start();
        let vmm = as_owner(|| watched(&host, &mark));
        let pid = vmm.pid();
        assert_eq!(
            status(pid, "Uid"),
            [USER.to_string(), USER.to_string(), USER.to_string(), USER.to_string()].join(" ")
        );
        as_owner(|| boot(&host, &mark));
        wait_for_log(world, &mark, UP);
        assert_eq!(status(pid, "CapEff"), "0000000000000000");
        assert_eq!(status(pid, "CapBnd"), status(helper.0.id().cast_signed(), "CapBnd"));
        assert_eq!(
            (status(pid, "NoNewPrivs"), status(pid, "Seccomp")),
            ("1".to_owned(), "2".to_owned())
        );
        // The helper's filter, and Firecracker's own.
        assert!(status(pid, "Seccomp_filters").parse::<u32>().unwrap() >= 2);
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroup.lines().any(|line| line == format!("0::/banger/{mark}")), "{cgroup}");
        as_owner(|| host.connect(&mark, &VmSocket::Jail("agent.sock".to_owned()))).unwrap();
        let theirs = fs::metadata(format!("/proc/{pid}/root/.")).unwrap();
        let jail = world.path("lib/banger/jails/firecracker").join(mark.to_string()).join("root");
        assert_eq!(theirs.ino(), fs::metadata(jail).unwrap().ino());

        helper.kill();
        assert!(vmm.wait(Duration::ZERO).is_err(), "it lives on without the helper");
        let helper = world.start();
        assert_eq!(as_owner(|| watched(&host, &mark)).pid(), pid);
        // Its owner may not signal it, the helper may.
        assert!(as_owner(|| vmm.signal(Signal::KILL)).is_err());
        as_owner(|| host.signal(&mark, Signal::TERM)).unwrap();
        vmm.wait(SOON).unwrap();
        // Once more in the same jail, where another user has been meanwhile.
        let again = claims.last().unwrap();
        as_owner(|| host.acquire(again)).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_ne!(as_owner(|| watched(&host, &mark)).pid(), pid);
        helper.kill();

        for index in (0..held.len()).rev() {
            let helper = world.start();
            for _gone_the_second_time in 0..2 {
                let released = as_owner(|| host.release(&held[index]));
                released.unwrap_or_else(|error| panic!("{}", chain(&error)));
            }
            // The bridge goes with its last tap.
            let shared = |held: &Held| held.mark().is_none();
            let mut wanted = held[..index].to_vec();
            wanted.retain(|held| !shared(held));
            wanted.sort();
            let mut left = listed(&host);
            left.retain(|held| !shared(held));
            assert_eq!(left, wanted);
            helper.kill();
        }
        let _helper = world.start();
        assert_eq!(listed(&host), []);
    });
}

#[test]
#[ignore = "needs the test host"]
fn who_makes_a_vm_while_another_undoes_it_leaves_nothing_that_cannot_be_released() {
    World::new().run(|world| {
        put_firecracker(world);
        let mark = world.mark("2");
        let claims = claims(world, &mark);
        let host = world.host();
        let _helper = world.start();
        // Many fail, since what they stand on was released a moment ago. Gives how many do not.
        let made =
            || claims.iter().filter(|claim| as_owner(|| host.acquire(claim)).is_ok()).count();
        let undone = || {
            let held = claims.iter().rev().map(Claim::held);
            held.filter(|held| as_owner(|| host.release(held)).is_ok()).count()
        };
        let count = thread::scope(|scope| {
            let makers = [scope.spawn(made), scope.spawn(made)];
            scope.spawn(undone);
            makers.map(|maker| maker.join().unwrap()).iter().sum::<usize>()
        });
        assert!(count > 0, "nothing was made at all");
        assert_eq!(undone(), claims.len());
        assert_eq!(listed(&host), []);
    });
}
