//! What a VMM's process and its network device have used. Read from /proc, by anybody.

use std::fs;
use std::io;

use crate::Mark;
use crate::error::HostError;
use crate::process::Watched;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Of all its threads, in user and kernel, since it started, in microseconds.
    pub cpu_time_us: u64,
    /// What it has in memory (RSS).
    pub memory_bytes: u64,
}

/// What went through a tap, as its guest sees it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// Of a VMM that was found to be one.
///
/// # Errors
/// When it has ended.
pub fn of(vmm: &Watched) -> Result<Usage, HostError> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", vmm.pid()));
    let looked = || {
        let cpu_ticks = ticks(&read("stat")?)?;
        let pages = resident(&read("statm")?)?;
        Ok((cpu_ticks, pages))
    };
    let (ticks, pages) =
        looked().map_err(|e: io::Error| HostError::new("look at what the VMM uses", e))?;
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    Ok(Usage {
        cpu_time_us: ticks * 1_000_000 / rustix::param::clock_ticks_per_second(),
        memory_bytes: pages * page,
    })
}

/// Of a VM's tap; `None` when there is none.
///
/// # Errors
/// When the host's devices cannot be listed.
pub fn traffic(mark: &Mark) -> Result<Option<Traffic>, HostError> {
    let devices = fs::read_to_string("/proc/net/dev")
        .map_err(|e| HostError::new("list the network devices", e))?;
    Ok(device(&devices, &mark.to_string()))
}

/// utime and stime, the 14th and the 15th field; the 2nd is a name in parentheses, which may hold anything (`proc_pid_stat(5)`).
fn ticks(stat: &str) -> io::Result<u64> {
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace());
    let mut fields = fields.ok_or(io::ErrorKind::InvalidData)?.skip(11);
    let mut next = || fields.next().and_then(|field| field.parse::<u64>().ok());
    match (next(), next()) {
        (Some(user), Some(kernel)) => Ok(user + kernel),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The second field, in pages (`proc_pid_statm(5)`).
fn resident(statm: &str) -> io::Result<u64> {
    let field = statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What the host receives by a tap its guest has sent, and the other way round (`proc_pid_net(5)`).
fn device(devices: &str, name: &str) -> Option<Traffic> {
    let line =
        devices.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
    let fields: Vec<u64> = line?.split_ascii_whitespace().filter_map(|f| f.parse().ok()).collect();
    Some(Traffic { sent_bytes: *fields.first()?, received_bytes: *fields.get(8)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_be_called_anything() {
        let stat = "42 (a ) R 1 (b) S 1 1 1 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 1000 10";
        assert_eq!(ticks(stat).unwrap(), 300);
        for wrong in ["", "42 (a) S 1", "no parentheses"] {
            assert!(ticks(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(resident("100 25 3 1 0 2 0").unwrap(), 25);
    }

    #[test]
    fn what_the_host_receives_the_guest_has_sent() {
        let devices = "Inter-|   Receive  |  Transmit\n face |bytes    packets\n    lo: 1 2 0 0 0 0 0 0 1 2 0 0 0 0 0 0\n\
                       bg0000-11111111: 700 7 0 0 0 0 0 0 900 9 0 0 0 0 0 0\nbg0000-111111112: 1 1 0 0 0 0 0 0 1 1\n";
        let found = Traffic { sent_bytes: 700, received_bytes: 900 };
        assert_eq!(device(devices, "bg0000-11111111"), Some(found));
        assert_eq!(device(devices, "bg0000-1111111"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let this = Watched::open(rustix::process::getpid()).unwrap().unwrap();
        assert!(of(&this).unwrap().memory_bytes > 0);
    }
}
