//! The host loses its power while VMs run. `before` leaves an installation; whoever runs these tests resets the host; `after`
//! finds what is left of it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use banger_e2e::{BUSYBOX, installed_before, installed_for_later};

#[test]
#[ignore = "needs the test host, before its reset"]
fn before() {
    installed_for_later(|banger| {
        for name in ["runs", "rests"] {
            banger.start(BUSYBOX, name);
            let write = format!("echo {name} > /root/file; sync");
            banger.banger(["vm", "exec", name, "--", "sh", "-c", &write]).succeeds();
        }
        banger.banger(["vm", "stop", "rests"]).succeeds();
    });
}

#[test]
#[ignore = "needs the test host, after its reset"]
fn after() {
    installed_before(|banger| {
        for name in ["runs", "rests"] {
            banger.wait_for_state(name, "stopped", Duration::from_secs(20));
        }
        assert!(banger.vmm_pids().is_empty());
        banger.no_strays();
        for name in ["runs", "rests"] {
            banger.banger(["vm", "start", name]).succeeds();
            let read = ["vm", "exec", name, "--", "cat", "/root/file"];
            banger.banger(read).succeeds().prints_only(&format!("{name}\n"));
        }
    });
}
