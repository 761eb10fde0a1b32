//! What the helper gives up is gone, and what it needs is there. In a thread: capabilities, new privileges and the filter of
//! system calls are a thread's, so that the rest of the test program keeps its own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::thread;

use banger_api::install::units::HELPER_CAPABILITIES;
use banger_helper::confine::{CAPABILITIES, confine};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::thread::CapabilitySet;

fn status(field: &str) -> String {
    let text = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

fn set(field: &str) -> u64 {
    u64::from_str_radix(&status(field), 16).unwrap()
}

#[test]
fn the_unit_gives_what_is_kept_and_nothing_else() {
    let kept: Vec<&str> = CAPABILITIES.iter().map(|(name, _, _)| *name).collect();
    assert_eq!(kept, HELPER_CAPABILITIES);
    for (name, capability, _) in CAPABILITIES {
        assert_eq!(Some(capability), CapabilitySet::from_name(&name["CAP_".len()..]), "{name}");
    }
}

fn confined<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> T {
    let inside = move || {
        confine().unwrap();
        look()
    };
    thread::spawn(inside).join().unwrap()
}

#[test]
fn no_capability_is_left_that_no_claim_needs_and_none_can_be_gained() {
    let before = set("CapPrm");
    let kept = CAPABILITIES.iter().fold(0, |all, (_, capability, _)| all | capability.bits());
    confined(move || {
        for field in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(set(field), before & kept, "{field}");
        }
        for field in ["CapInh", "CapAmb"] {
            assert_eq!(set(field), 0, "{field}");
        }
        assert_eq!(status("NoNewPrivs"), "1");
        assert_eq!(status("Seccomp"), "2");
    });
    assert_eq!(set("CapPrm"), before, "only the thread's");
}

#[test]
fn a_call_that_nobody_here_makes_is_answered_as_if_the_kernel_had_none() {
    confined(|| {
        for family in [AddressFamily::PACKET, AddressFamily::INET6, AddressFamily::VSOCK] {
            assert_eq!(socket(family, SocketType::DGRAM, None).unwrap_err(), Errno::NOSYS);
        }
        socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        let own = fs::File::open("/proc/self/ns/net").unwrap();
        let entered = rustix::thread::move_into_link_name_space(own.as_fd(), None);
        assert_eq!(entered.unwrap_err(), Errno::NOSYS, "setns(2)");
        let linked = std::os::unix::fs::symlink("/", "/nowhere/at/all");
        assert_eq!(linked.unwrap_err().raw_os_error(), Some(Errno::NOSYS.raw_os_error()));
    });
}

#[test]
fn what_the_helper_does_still_works() {
    confined(|| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, b"text").unwrap();
        fs::hard_link(&file, folder.path().join("b")).unwrap();
        fs::copy(&file, folder.path().join("c")).unwrap();
        std::os::unix::fs::chown(&file, Some(1_900_000_000), Some(1_900_000_000)).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        fs::remove_dir_all(folder.path()).unwrap();
        // Threads and pipes, the clock, the end of a thread.
        let (read_end, write_end) = io::pipe().unwrap();
        thread::spawn(move || drop(write_end)).join().unwrap();
        assert_eq!(io::read_to_string(read_end).unwrap(), "");
    });
}
