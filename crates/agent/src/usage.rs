//! What the guest uses of what it was given.

use std::fs;
use std::io;

use banger_api::guest::GuestUsage;

#[derive(Debug, thiserror::Error)]
#[error("cannot look at {what}")]
pub(crate) struct UsageError {
    what: &'static str,
    #[source]
    cause: io::Error,
}

pub(crate) fn now() -> Result<GuestUsage, UsageError> {
    let memory = |cause| UsageError { what: "/proc/meminfo", cause };
    let meminfo = fs::read_to_string("/proc/meminfo").map_err(memory)?;
    let of = |name| field(&meminfo, name).ok_or_else(|| memory(io::ErrorKind::InvalidData.into()));
    let root = rustix::fs::statvfs("/")
        .map_err(|errno| UsageError { what: "the root filesystem", cause: errno.into() })?;
    Ok(GuestUsage {
        memory_total_bytes: of("MemTotal")?,
        memory_available_bytes: of("MemAvailable")?,
        disk_total_bytes: root.f_blocks.saturating_mul(root.f_frsize),
        disk_used_bytes: (root.f_blocks.saturating_sub(root.f_bfree)).saturating_mul(root.f_frsize),
    })
}

/// A line of /proc/meminfo, which counts in KiB.
fn field(meminfo: &str, name: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let meminfo =
            "MemTotal:         240 kB\nMemFree:           10 kB\nMemAvailable:     100 kB\n";
        assert_eq!(field(meminfo, "MemTotal"), Some(240 * 1024));
        assert_eq!(field(meminfo, "MemAvailable"), Some(100 * 1024));
        assert_eq!(field(meminfo, "Mem"), None);
    }

    #[test]
    fn this_machine_has_memory_and_a_root() {
        let usage = now().unwrap();
        assert!(usage.memory_available_bytes <= usage.memory_total_bytes);
        assert!(0 < usage.disk_used_bytes && usage.disk_used_bytes <= usage.disk_total_bytes);
    }
}
