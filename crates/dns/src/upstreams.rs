//! The host's nameservers, as resolv.conf has them now.
//!
//! A VPN that comes up writes another file, or has the name point to another one: so the file is looked at before each
//! query, and read when it is not the one that was read.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// As many as are asked, like the C library (resolv.conf(5)): each costs a socket.
const MOST_SERVERS: usize = 3;

/// A resolv.conf that is longer is read so far.
const MOST_BYTES: u64 = 64 * 1024;

/// A file that changed so recently may change again without looking changed: times of files are as coarse as the
/// kernel's tick, or a second on old file systems.
const SETTLED: Duration = Duration::from_secs(2);

/// For how long a nameserver that did not answer is asked last.
const SILENCE: Duration = Duration::from_secs(10);

/// What resolv.conf says, and who of those did not answer of late.
#[derive(Debug)]
pub(crate) struct Upstreams {
    path: PathBuf,
    port: u16,
    /// Our own address: who asks it gets their own question back.
    own: IpAddr,
    read: Option<Read>,
    silent: Vec<(SocketAddr, Instant)>,
}

#[derive(Debug)]
struct Read {
    /// None of a file that is not there.
    stamp: Option<Stamp>,
    /// A change after it would be seen.
    settled: bool,
    servers: Vec<SocketAddr>,
}

/// What changes when a file does.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    length: u64,
    changed: (i64, i64),
    modified: (i64, i64),
}

impl Upstreams {
    pub(crate) fn new(path: PathBuf, port: u16, own: Ipv4Addr) -> Self {
        Self { path, port, own: IpAddr::V4(own), read: None, silent: Vec::new() }
    }

    /// Whom to ask now, in this order: as in the file, those last that did not answer.
    pub(crate) fn now(&mut self) -> Vec<SocketAddr> {
        self.refresh();
        self.silent.retain(|(_, since)| since.elapsed() < SILENCE);
        let mut servers = self.known().to_vec();
        servers.sort_by_key(|server| self.silent.iter().any(|(silent, _)| silent == server));
        servers
    }

    /// `server` did not answer, or did.
    pub(crate) fn heard(&mut self, server: SocketAddr, answered: bool) {
        self.silent.retain(|(silent, _)| *silent != server);
        if !answered && self.known().contains(&server) {
            self.silent.push((server, Instant::now()));
        }
    }

    fn known(&self) -> &[SocketAddr] {
        self.read.as_ref().map_or(&[], |read| &read.servers)
    }

    fn refresh(&mut self) {
        let read = match self.reread() {
            Ok(None) => return,
            Ok(Some(read)) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A host without the file asks itself (resolv.conf(5)).
                let servers = self.usable(parse("", self.port));
                Read { stamp: None, settled: false, servers }
            }
            Err(error) => {
                // What was known is better than nothing, for as long as the file cannot be read.
                tracing::warn!(%error, path = %self.path.display(), "cannot read the nameservers");
                return;
            }
        };
        if self.read.is_none() || self.known() != read.servers {
            tracing::info!(servers = ?read.servers, "guests' names are asked of these nameservers");
            self.silent.clear();
        }
        self.read = Some(read);
    }

    /// What the file says, if that may be other than what was read.
    fn reread(&self) -> io::Result<Option<Read>> {
        let stamp = Some(stamp(&self.path)?);
        if self.read.as_ref().is_some_and(|read| read.settled && read.stamp == stamp) {
            return Ok(None);
        }
        let settled = stamp.as_ref().is_some_and(Stamp::is_settled);
        let mut text = Vec::new();
        File::open(&self.path)?.take(MOST_BYTES).read_to_end(&mut text)?;
        let servers = self.usable(parse(&String::from_utf8_lossy(&text), self.port));
        Ok(Some(Read { stamp, settled, servers }))
    }

    fn usable(&self, servers: Vec<SocketAddr>) -> Vec<SocketAddr> {
        servers.into_iter().filter(|server| server.ip() != self.own).take(MOST_SERVERS).collect()
    }
}

/// On the thread that answers queries: a resolv.conf is not on a disk that sleeps.
fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = path.metadata()?;
    Ok(Stamp {
        file: (metadata.dev(), metadata.ino()),
        length: metadata.len(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

impl Stamp {
    /// It has not changed just now.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let latest = self.changed.max(self.modified).0;
        now.saturating_sub(SETTLED).as_secs() > u64::try_from(latest).unwrap_or_default()
    }
}

/// The nameservers of a resolv.conf (resolv.conf(5)), each once; this machine if there are none.
fn parse(text: &str, port: u16) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let server = words.next().and_then(|word| address(word, port));
        servers.extend(server.filter(|server| !servers.contains(server)));
    }
    if !text.lines().any(|line| line.split_ascii_whitespace().next() == Some("nameserver")) {
        servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    servers
}

/// An address, one of a link with its interface's name or number (`fe80::1%eth0`).
fn address(word: &str, port: u16) -> Option<SocketAddr> {
    if let Ok(address) = word.parse::<IpAddr>() {
        return (!address.is_unspecified()).then_some(SocketAddr::new(address, port));
    }
    let (address, interface) = word.split_once('%')?;
    let scope = interface.parse().ok().or_else(|| interface_index(interface))?;
    Some(SocketAddr::V6(SocketAddrV6::new(address.parse().ok()?, port, 0, scope)))
}

fn interface_index(name: &str) -> Option<u32> {
    if name.contains('/') || name.starts_with('.') {
        return None;
    }
    let path = Path::new("/sys/class/net").join(name).join("ifindex");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);

    fn texts(servers: &[SocketAddr]) -> Vec<String> {
        servers.iter().map(ToString::to_string).collect()
    }

    fn upstreams(text: &str) -> (tempfile::TempDir, Upstreams) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        std::fs::write(&path, text).unwrap();
        (folder, Upstreams::new(path, 53, OWN))
    }

    #[test]
    fn nameservers_are_read_as_the_c_library_does() {
        let text = "# nameserver 9.9.9.9\nsearch example.com\nnameserver\t192.0.2.1 trailing\n\
                    nameserver 2001:db8::1\nnameserver 192.0.2.1\nnameservers 192.0.2.9\n\
                    nameserver fe80::1%1\nnameserver fe80::2%lo\nnameserver fe80::3%../../x\n\
                    nameserver not-an-address\noptions ndots:5\nnameserver 0.0.0.0\n";
        assert_eq!(
            texts(&parse(text, 53)),
            ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%1]:53", "[fe80::2%1]:53"]
        );
        assert_eq!(texts(&parse("search a\n", 53)), ["127.0.0.1:53"]);
    }

    #[test]
    fn our_own_address_is_not_asked() {
        let (_folder, mut upstreams) = upstreams("nameserver 10.213.0.1\nnameserver 192.0.2.1\n");
        assert_eq!(texts(&upstreams.now()), ["192.0.2.1:53"]);
    }

    #[test]
    fn a_changed_file_is_read_again_however_it_changed() {
        let (folder, mut upstreams) = upstreams("nameserver 192.0.2.1\n");
        let path = folder.path().join("resolv.conf");
        assert_eq!(texts(&upstreams.now()), ["192.0.2.1:53"]);
        // In place, of the same length, within a tick.
        std::fs::write(&path, "nameserver 192.0.2.2\n").unwrap();
        assert_eq!(texts(&upstreams.now()), ["192.0.2.2:53"]);
        // By a link that points elsewhere.
        let other = folder.path().join("vpn");
        std::fs::write(&other, "nameserver 192.0.2.3\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(texts(&upstreams.now()), ["127.0.0.1:53"]);
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert_eq!(texts(&upstreams.now()), ["192.0.2.3:53"]);
    }

    #[test]
    fn a_file_that_did_not_change_is_not_read_again() {
        let (folder, mut upstreams) = upstreams("nameserver 192.0.2.1\n");
        let path = folder.path().join("resolv.conf");
        upstreams.now();
        // The servers tell whether the file was read. Just now it was written, and may be again.
        upstreams.read.as_mut().unwrap().servers.clear();
        assert_eq!(texts(&upstreams.now()), ["192.0.2.1:53"]);
        // As it is two seconds later.
        let read = upstreams.read.as_mut().unwrap();
        read.settled = true;
        read.servers.clear();
        assert_eq!(texts(&upstreams.now()), [""; 0]);
        std::fs::write(&path, "nameserver 192.0.2.22\n").unwrap();
        assert_eq!(texts(&upstreams.now()), ["192.0.2.22:53"]);
    }

    #[test]
    fn who_did_not_answer_is_asked_last_until_it_does() {
        let (_folder, mut upstreams) = upstreams("nameserver 192.0.2.1\nnameserver 192.0.2.2\n");
        let [first, second] = upstreams.now()[..] else { panic!("two servers") };
        upstreams.heard(first, false);
        assert_eq!(upstreams.now(), [second, first]);
        upstreams.heard(second, false);
        assert_eq!(upstreams.now(), [first, second]);
        upstreams.heard(first, true);
        assert_eq!(upstreams.now(), [first, second]);
        upstreams.heard(second, true);
        assert_eq!(upstreams.silent, []);
    }

    #[test]
    fn only_so_many_are_asked() {
        let lines: String = (1..200).map(|n| format!("nameserver 192.0.2.{n}\n")).collect();
        let (_folder, mut upstreams) = upstreams(&lines);
        assert_eq!(upstreams.now().len(), MOST_SERVERS);
    }
}
