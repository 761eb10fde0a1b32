//! The program of an image without an init: started, asked to end, and the VM's end with it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use banger_e2e::{World, busybox_layer, in_world, write_layout};
use serde_json::json;

/// An image of busybox and this configuration, from an OCI layout folder.
fn import(world: &World, name: &str, config: &serde_json::Value) {
    let folder = tempfile::tempdir().unwrap();
    write_layout(folder.path(), &[&busybox_layer()], config);
    let path = folder.path().to_str().unwrap();
    world.banger(["image", "import", path, "--name", name]).succeeds();
}

#[test]
fn the_images_program_is_asked_to_end_by_its_own_signal() {
    in_world(|world| {
        let script = "trap 'echo asked >/root/said; exit 0' QUIT; while :; do sleep 1; done";
        let config = json!({ "Cmd": ["/bin/sh", "-c", script], "StopSignal": "SIGQUIT" });
        import(world, "service", &config);
        world.start("service", "vm");
        world.banger(["vm", "exec", "vm", "--", "ps"]).succeeds().prints("trap");
        world.banger(["vm", "stop", "vm"]).succeeds();
        world.banger(["vm", "start", "vm"]).succeeds();
        world
            .banger(["vm", "exec", "vm", "--", "cat", "/root/said"])
            .succeeds()
            .prints_only("asked\n");
    });
}

#[test]
fn a_vm_stops_when_its_images_program_ends() {
    in_world(|world| {
        import(world, "once", &json!({ "Entrypoint": ["/bin/echo", "it", "ran"] }));
        world.banger(["vm", "run", "--rm", "--image", "once"]).succeeds().prints_only("it ran\n");
        world.start("once", "vm");
        world.wait_for_state("vm", "stopped", Duration::from_secs(120));
        world.banger(["vm", "logs", "vm"]).succeeds().prints("it ran").prints("status 0");
    });
}
