//! The systemd units of an installation, and the kernel modules that it loads. The texts are the files beside this one,
//! with the reason of each setting in them; here is what fills their gaps.

use super::Install;

pub const DAEMON_UNIT: &str = "bangerd.service";
pub const HELPER_UNIT: &str = "banger-helper.service";
pub const HELPER_SOCKET_UNIT: &str = "banger-helper.socket";

/// What is enabled, started and stopped, in the order of starting. The helper's service is started by its socket.
pub const ENABLED: [&str; 2] = [HELPER_SOCKET_UNIT, DAEMON_UNIT];

/// All of them, in the order of stopping: who asks before who is asked.
pub const ALL: [&str; 3] = [DAEMON_UNIT, HELPER_SOCKET_UNIT, HELPER_UNIT];

/// What root's helper has of root's capabilities (capabilities(7)). The helper keeps the same ones, with the reason of
/// each in its `confine.rs`, and could not give up more: that would take `CAP_SETPCAP`.
pub const HELPER_CAPABILITIES: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
];

/// The text of [`super::MODULES_FILE`].
pub const MODULES: &str = include_str!("modules.conf");

/// Where the units are installed.
pub const PATHS: [&str; 3] = [
    "/etc/systemd/system/bangerd.service",
    "/etc/systemd/system/banger-helper.socket",
    "/etc/systemd/system/banger-helper.service",
];

/// The links by which systemd knows what to start at boot (`WantedBy=`), as long as they are enabled.
pub const LINKS: [&str; 2] = [
    "/etc/systemd/system/multi-user.target.wants/bangerd.service",
    "/etc/systemd/system/sockets.target.wants/banger-helper.socket",
];

const TEXTS: [&str; 3] = [
    include_str!("bangerd.service"),
    include_str!("banger-helper.socket"),
    include_str!("banger-helper.service"),
];

/// The units, each with its path of [`PATHS`].
pub fn units(install: &Install) -> impl Iterator<Item = (&'static str, String)> {
    PATHS.into_iter().zip(TEXTS.map(|text| fill(text, install)))
}

/// The modules that [`MODULES`] names.
pub fn modules() -> impl Iterator<Item = &'static str> {
    MODULES.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The settings of a unit's text, `[Section]` before each: what is not a comment nor a blank.
pub fn settings(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut section = "";
    text.lines().map(str::trim).filter_map(move |line| {
        if line.is_empty() || line.starts_with(['#', ';']) {
            return None;
        }
        if line.starts_with('[') {
            section = line;
            return None;
        }
        Some((section, line))
    })
}

fn fill(text: &str, install: &Install) -> String {
    text.replace("{OWNER}", &install.owner_name)
        .replace("{PROGRAMS}", &install.programs.to_string_lossy())
        .replace("{CAPABILITIES}", &HELPER_CAPABILITIES.join(" "))
}

#[cfg(test)]
mod tests {
    use snapbox::{assert_data_eq, file};

    use super::super::example;
    use super::*;

    fn text(unit: &str) -> String {
        let found = units(&example()).find(|(path, _)| path.ends_with(&format!("/{unit}")));
        found.expect("every unit has a path").1
    }

    fn has(unit: &str, setting: &str) -> bool {
        settings(&text(unit)).any(|(_, line)| line == setting)
    }

    #[test]
    fn the_units_as_installed() {
        assert_data_eq!(text(DAEMON_UNIT), file!["snapshots/bangerd.service"].raw());
        assert_data_eq!(text(HELPER_UNIT), file!["snapshots/banger-helper.service"].raw());
        assert_data_eq!(text(HELPER_SOCKET_UNIT), file!["snapshots/banger-helper.socket"].raw());
    }

    #[test]
    fn vms_outlive_a_restart_of_either_service() {
        for unit in [DAEMON_UNIT, HELPER_UNIT] {
            assert!(has(unit, "KillMode=process"), "{unit}");
            assert!(has(unit, "OOMPolicy=continue"), "{unit}");
        }
        assert!(has(DAEMON_UNIT, "RuntimeDirectoryPreserve=yes"));
    }

    #[test]
    fn no_setting_takes_devices_from_vms_behind_our_back() {
        // Each of these comes with a list of devices, and takes away what is not on it (systemd.exec(5),
        // systemd.resource-control(5)): /dev/kvm first.
        for unit in [DAEMON_UNIT, HELPER_UNIT] {
            for key in ["PrivateDevices=", "ProtectClock="] {
                assert!(!settings(&text(unit)).any(|(_, line)| line.starts_with(key)), "{key}");
            }
        }
    }

    #[test]
    fn nobody_takes_openat2_away() {
        // RestrictSUIDSGID cannot look at its mode, and so forbids it (ENOSYS, systemd 252). The helper opens the owner's
        // files by it, and unpacked images have setuid programs.
        for unit in [DAEMON_UNIT, HELPER_UNIT] {
            assert!(!text(unit).contains("RestrictSUIDSGID"), "{unit}");
        }
    }

    #[test]
    fn the_helper_sees_state_and_jails_through_one_mount() {
        let text = text(HELPER_UNIT);
        let writable: Vec<&str> =
            settings(&text).filter_map(|(_, line)| line.strip_prefix("ReadWritePaths=")).collect();
        // No part of either is named for itself.
        let forwarding = "-/proc/sys/net/ipv4/ip_forward -/proc/sys/net/ipv4/conf/all/accept_redirects -/proc/sys/net/ipv6/conf";
        assert_eq!(writable, [super::super::DATA, forwarding]);
    }

    #[test]
    fn the_links_are_those_that_the_units_want() {
        for (path, text) in units(&example()) {
            let wanted = settings(&text).find_map(|(_, line)| line.strip_prefix("WantedBy="));
            let name = path.rsplit('/').next().unwrap_or_default();
            let link = |target| format!("/etc/systemd/system/{target}.wants/{name}");
            assert_eq!(wanted.is_some(), ENABLED.contains(&name), "{name}");
            assert!(wanted.is_none_or(|target| LINKS.contains(&link(target).as_str())), "{name}");
        }
    }

    #[test]
    fn only_the_owner_reaches_the_helper() {
        assert!(has(HELPER_SOCKET_UNIT, "SocketUser=alice"));
        assert!(has(HELPER_SOCKET_UNIT, "SocketMode=0600"));
        assert!(has(
            HELPER_SOCKET_UNIT,
            &format!("ListenSequentialPacket={}", super::super::HELPER_SOCKET)
        ));
    }

    #[test]
    fn settings_know_their_section_and_skip_comments() {
        let text = "# a\n[Unit]\nA=1\n\n; b\n [Service] \n  B=2\n";
        let found: Vec<_> = settings(text).collect();
        assert_eq!(found, [("[Unit]", "A=1"), ("[Service]", "B=2")]);
    }

    #[test]
    fn a_modules_file_is_comments_and_modules() {
        let modules: Vec<&str> = modules().collect();
        assert_eq!(modules, ["bridge", "dm_snapshot", "dm_zero", "loop", "tun"]);
    }
}
