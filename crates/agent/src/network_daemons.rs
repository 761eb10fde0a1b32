//! What the image's own network programs are told, so that they take nothing away that the guest has by the time they
//! start. All of it is in /run: it goes with the boot, and a file of the same name in the image's /etc comes before it.

use std::path::{Path, PathBuf};

use banger_api::{GuestIpv6, GuestNet};

use crate::replaced::{WriteError, write};

/// Tells those that the image has. `mac` is the device's, `name` its name; `root` is `/`, but in tests.
pub(crate) fn tell(
    root: &Path,
    net: &GuestNet,
    name: &str,
    mac: &str,
) -> Vec<Result<(), WriteError>> {
    let files = |(programs, files): (&[&str], Vec<(PathBuf, String)>)| {
        let is_there = programs.iter().any(|program| root.join(program).exists());
        if is_there { files } else { Vec::new() }
    };
    let told = [
        (&["usr/lib/systemd/systemd", "lib/systemd/systemd"][..], systemd(net, name, mac)),
        (&["usr/sbin/NetworkManager"][..], vec![network_manager(mac)]),
        (&["usr/sbin/ifup", "sbin/ifup"][..], ifupdown(name)),
    ];
    let run = root.join("run");
    told.into_iter().flat_map(files).map(|(path, text)| write(&run.join(path), &text)).collect()
}

/// udev, networkd and resolved. networkd is told what the device has, and not to keep off it: a device that is not its own
/// lets systemd-networkd-wait-online wait for two minutes at every boot. Its file may be the first of many.
fn systemd(net: &GuestNet, name: &str, mac: &str) -> Vec<(PathBuf, String)> {
    let GuestNet { address, prefix, gateway, mtu, zone: _, ipv6 } = net;
    let found = format!("[Match]\nMACAddress={mac}\n\n");
    // systemd.link(5): without this udev renames the device, after its place in the machine.
    let link = format!("{found}[Link]\nName={name}\nMTUBytes={mtu}\n");
    // systemd.network(5).
    let mut network = format!(
        "{found}[Link]\nMTUBytes={mtu}\n\n\
         [Network]\nAddress={address}/{prefix}\nGateway={gateway}\nDNS={gateway}\nDHCP=no\nIPv6AcceptRA=no\n\
         LinkLocalAddressing=no\nKeepConfiguration=yes\n"
    );
    if let Some(GuestIpv6 { address, prefix, gateway }) = ipv6 {
        network.push_str(&format!(
            "\n[Address]\nAddress={address}/{prefix}\nDuplicateAddressDetection=none\n\n\
             [Route]\nDestination={gateway}/128\n\n[Route]\nGateway={gateway}\nGatewayOnLink=yes\n"
        ));
    }
    // resolved.conf(5). `~.` sends every name there, those of VMs too.
    let resolved = format!("[Resolve]\nDNS={gateway}\nDomains=~.\n");
    vec![
        ("systemd/network/00-banger.link".into(), link),
        ("systemd/network/00-banger.network".into(), network),
        ("systemd/resolved.conf.d/banger.conf".into(), resolved),
    ]
}

/// NetworkManager.conf(5). Nor does it write resolv.conf, which it would leave without a server.
fn network_manager(mac: &str) -> (PathBuf, String) {
    let text = format!("[main]\ndns=none\n\n[device-banger]\nmatch-device=mac:{mac}\nmanaged=0\n");
    ("NetworkManager/conf.d/00-banger.conf".into(), text)
}

/// The record that the device is up, of Debian's ifupdown, and of busybox's and ifupdown-ng: so none of them starts a DHCP
/// client, which would take the address away before it looks for a server.
fn ifupdown(name: &str) -> Vec<(PathBuf, String)> {
    vec![
        (Path::new("network").join(format!("ifstate.{name}")), format!("{name}\n")),
        ("ifstate".into(), format!("{name}={name}\n")),
    ]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MAC: &str = "02:00:00:00:00:01";

    fn told(programs: &[&str]) -> Vec<String> {
        told_of(&GuestNet::parse("10.213.0.2/22,10.213.0.1,1400").unwrap(), programs)
    }

    fn told_of(net: &GuestNet, programs: &[&str]) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("run")).unwrap();
        for program in programs {
            fs::create_dir_all(root.path().join(program)).unwrap();
        }
        for result in tell(root.path(), net, "eth0", MAC) {
            result.unwrap();
        }
        let mut found = Vec::new();
        let mut folders = vec![root.path().join("run")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(root.path()).unwrap().display().to_string();
                    found.push(format!("{name}\n{}", fs::read_to_string(&path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn an_image_without_such_programs_finds_nothing() {
        assert_eq!(told(&["usr/lib/systemd/system", "usr/sbin"]), Vec::<String>::new());
    }

    #[test]
    fn systemd_is_told_what_the_device_has_and_that_its_name_stays() {
        let expected = [
            "run/systemd/network/00-banger.link\n\
             [Match]\nMACAddress=02:00:00:00:00:01\n\n[Link]\nName=eth0\nMTUBytes=1400\n",
            "run/systemd/network/00-banger.network\n\
             [Match]\nMACAddress=02:00:00:00:00:01\n\n[Link]\nMTUBytes=1400\n\n[Network]\n\
             Address=10.213.0.2/22\nGateway=10.213.0.1\nDNS=10.213.0.1\nDHCP=no\nIPv6AcceptRA=no\n\
             LinkLocalAddressing=no\nKeepConfiguration=yes\n",
            "run/systemd/resolved.conf.d/banger.conf\n[Resolve]\nDNS=10.213.0.1\nDomains=~.\n",
        ];
        assert_eq!(told(&["usr/lib/systemd/systemd"]), expected);
        assert_eq!(told(&["lib/systemd/systemd"]), expected);
    }

    #[test]
    fn systemd_is_told_of_ipv6_where_there_is_some() {
        let net = GuestNet::parse("10.213.0.2/22,10.213.0.1,1400").unwrap();
        let ipv6 = GuestIpv6::parse("fd12::ad5:2/128,fd12::1").unwrap();
        let told = told_of(&GuestNet { ipv6: Some(ipv6), ..net }, &["lib/systemd/systemd"]);
        let expected = "KeepConfiguration=yes\n\n[Address]\nAddress=fd12::ad5:2/128\n\
             DuplicateAddressDetection=none\n\n[Route]\nDestination=fd12::1/128\n\n\
             [Route]\nGateway=fd12::1\nGatewayOnLink=yes\n";
        assert!(told[1].ends_with(expected), "{}", told[1]);
    }

    #[test]
    fn network_manager_and_ifupdown_are_kept_off_the_device() {
        assert_eq!(
            told(&["usr/sbin/NetworkManager", "sbin/ifup"]),
            [
                "run/NetworkManager/conf.d/00-banger.conf\n[main]\ndns=none\n\n\
                 [device-banger]\nmatch-device=mac:02:00:00:00:00:01\nmanaged=0\n",
                "run/ifstate\neth0=eth0\n",
                "run/network/ifstate.eth0\neth0\n",
            ]
        );
    }
}
