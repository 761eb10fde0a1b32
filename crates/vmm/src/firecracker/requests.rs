//! What Firecracker is told of a machine, request by request. Pure. The names are those of its API
//! (src/firecracker/swagger/firecracker.yaml); paths without a slash are in the VMM's own folder, which is its jail.

use banger_storage::{Drive, DriveSource};
use serde_json::{Value, json};

use super::{AGENT_SOCKET, Bare, INITRAMFS, KERNEL, text};
use crate::{Machine, NetworkDevice, snapshot_device};

/// A PUT.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) body: Value,
}

/// The guest's own address on its vsock: the first that is free (0 to 2 are the hypervisor, the loopback and the host).
const GUEST_CID: u32 = 3;

fn put(path: impl Into<String>, body: Value) -> Request {
    Request { path: path.into(), body }
}

/// Everything before the start, for a jailed Firecracker or a bare one.
pub(super) fn machine(machine: &Machine, bare: Option<&Bare>) -> Vec<Request> {
    let (kernel, initramfs, agent) = match bare {
        None => (KERNEL.to_owned(), INITRAMFS.to_owned(), AGENT_SOCKET.to_owned()),
        Some(bare) => (
            text(&machine.kernel.below(&machine.state)),
            text(&machine.initramfs.below(&machine.state)),
            text(&bare.socket(&machine.mark, AGENT_SOCKET)),
        ),
    };
    let size = json!({ "vcpu_count": machine.cpus, "mem_size_mib": machine.memory_mib });
    let boot = json!({
        "kernel_image_path": kernel,
        "initrd_path": initramfs,
        "boot_args": kernel_words(machine, bare).join(" "),
    });
    let mut requests = vec![put("/machine-config", size), put("/boot-source", boot)];
    requests.extend(machine.drives.iter().map(|drive| {
        put(format!("/drives/{}", drive_id(drive)), drive_body(drive, machine, bare))
    }));
    if let Some(device) = network(machine, bare) {
        let body = json!({
            "iface_id": "eth0",
            "host_dev_name": machine.mark.to_string(),
            "guest_mac": device.mac,
        });
        requests.push(put("/network-interfaces/eth0", body));
    }
    requests.push(put("/vsock", json!({ "guest_cid": GUEST_CID, "uds_path": agent })));
    requests.push(put("/entropy", json!({})));
    requests
}

pub(super) fn start() -> Request {
    put("/actions", json!({ "action_type": "InstanceStart" }))
}

/// Firecracker takes letters, digits and underscores.
fn drive_id(drive: &Drive) -> String {
    drive.serial.replace('-', "_")
}

fn drive_body(drive: &Drive, machine: &Machine, bare: Option<&Bare>) -> Value {
    let path = match (&drive.source, bare) {
        (_, None) => drive.serial.to_owned(),
        (DriveSource::File(file), Some(_)) => text(&file.below(&machine.state)),
        (DriveSource::DmSnapshot, Some(_)) => text(&snapshot_device(&machine.mark)),
    };
    json!({
        "drive_id": drive_id(drive),
        "path_on_host": path,
        // True would put a root= of Firecracker's own on the command line; the initramfs makes the root.
        "is_root_device": false,
        "is_read_only": drive.read_only,
        // With `Unsafe`, the default, a guest's flush does nothing, and a host that loses power loses what was synced.
        "cache_type": if drive.read_only { "Unsafe" } else { "Writeback" },
        "io_engine": "Sync",
    })
}

/// A bare one has no device: a tap needs root.
fn network<'a>(machine: &'a Machine, bare: Option<&Bare>) -> Option<&'a NetworkDevice> {
    machine.network.as_ref().filter(|_| bare.is_none())
}

fn kernel_words(machine: &Machine, bare: Option<&Bare>) -> Vec<String> {
    let drives: Vec<&str> = machine.drives.iter().map(|drive| drive.serial).collect();
    let mut words: Vec<String> = [
        "console=ttyS0",
        "quiet",
        // By the keyboard's controller, the one way to restart that Firecracker has, and its way to end.
        "reboot=k",
        "panic=-1",
        // There is none.
        "pci=off",
        // Firecracker's controller of the keyboard knows only that restart: nothing is to be asked of it.
        "i8042.noaux",
        "i8042.nomux",
        "i8042.dumbkbd",
        // There is one; the kernel would look for three more.
        "8250.nr_uarts=1",
        // The virtio device for randomness comes late.
        "random.trust_cpu=on",
        "banger.channel=vsock",
        "banger.off=restart",
    ]
    .map(String::from)
    .into();
    words.push(format!("banger.drives={}", drives.join(",")));
    words.extend(network(machine, bare).map(NetworkDevice::word));
    words.extend(machine.agent_words.iter().cloned());
    words
}

#[cfg(test)]
mod tests {
    use banger_storage::{DmSnapshot, Driver, Overlay, Reflink};

    use super::*;
    use crate::machines;

    fn shown(driver: &dyn Driver, bare: Option<&Bare>) -> String {
        let mut requests = machine(&machines::machine(driver), bare);
        requests.push(start());
        let lines: Vec<String> = requests
            .iter()
            .map(|put| {
                format!("PUT {}\n{}\n", put.path, serde_json::to_string_pretty(&put.body).unwrap())
            })
            .collect();
        lines.join("\n")
    }

    fn bare() -> Bare {
        Bare { program: "/opt/firecracker".into(), runs: "/run/user/1000/banger/vms".into() }
    }

    #[test]
    fn what_a_jailed_firecracker_is_told_is_this() {
        snapbox::assert_data_eq!(
            shown(&Overlay, None),
            snapbox::file!["../snapshots/jailed_requests.txt"]
        );
    }

    #[test]
    fn what_a_bare_firecracker_is_told_is_this() {
        snapbox::assert_data_eq!(
            shown(&Reflink, Some(&bare())),
            snapbox::file!["../snapshots/bare_requests.txt"]
        );
    }

    #[test]
    fn a_disk_that_is_written_is_flushed_and_an_image_is_never_written() {
        for driver in [&Overlay as &dyn Driver, &Reflink, &DmSnapshot] {
            let machine = machines::machine(driver);
            for drive in &machine.drives {
                for bare in [None, Some(&bare())] {
                    let body = drive_body(drive, &machine, bare);
                    let flushed = body["cache_type"] == "Writeback";
                    assert!(flushed != (body["is_read_only"] == true), "{body}");
                }
            }
        }
    }

    #[test]
    fn without_a_network_there_is_no_device_and_no_word_of_one() {
        let machine = Machine { network: None, ..machines::machine(&Overlay) };
        for put in super::machine(&machine, None) {
            assert!(!put.path.starts_with("/network-interfaces"), "{put:?}");
            assert!(!put.body.to_string().contains("banger.net"), "{put:?}");
        }
    }

    #[test]
    fn a_bare_one_takes_a_snapshot_device_by_the_name_of_its_vm() {
        let machine = machines::machine(&DmSnapshot);
        let body = drive_body(&machine.drives[0], &machine, Some(&bare()));
        assert_eq!(body["path_on_host"], "/dev/mapper/bg0000-11111111");
    }
}
