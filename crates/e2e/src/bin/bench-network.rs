//! How fast a VM's network is beside that of a tap and a bridge made by hand: the same guest, the same VMM, the same device; of
//! each round one half with banger's bridge and rules, one with a plain bridge and no rule at all.
//!
//! ```text
//! bench-network [ROUNDS]      as root; BANGER_BIN_DIR and BANGER_E2E_BACKEND as for the tests
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement may panic, and says what it found"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use banger_e2e::{BUSYBOX, World, in_world, run};

/// What each half of a round sends each way.
const BYTES: usize = 64 << 20;
const HAND: &str = "hand0";

fn main() {
    let rounds = std::env::args().nth(1).map_or(10, |rounds| rounds.parse().unwrap());
    in_world(|world| measure(world, rounds));
}

fn measure(world: &World, rounds: usize) {
    world
        .banger(["vm", "run", "-d", "--name", "one", "--image", BUSYBOX, "--memory", "256M"])
        .succeeds();
    let serve = "busybox nc -ll -p 9 -e busybox dd of=/dev/null bs=64k & \
                 busybox nc -ll -p 10 -e busybox dd if=/dev/zero bs=64k count=1024 & \
                 until busybox netstat -tln | grep -q :10; do :; done";
    world.banger(["vm", "exec", "one", "--", "sh", "-c", serve]).succeeds();
    let guest = Guest::of(world);
    let (mut ours, mut hand) = ([vec![], vec![]], [vec![], vec![]]);
    // The first round fills what there is of caches, for both alike, and does not count. Each of the two comes first in turns, and
    // before each the guest's device was in another bridge.
    for round in 0..=rounds {
        let (mut own, mut plain) = ([0.0; 2], [0.0; 2]);
        for turn in 0..2 {
            guest.by_hand();
            if (round + turn) % 2 == 0 {
                plain = guest.speeds();
                guest.as_it_was();
            } else {
                guest.as_it_was();
                own = guest.speeds();
            }
        }
        if round > 0 {
            for way in 0..2 {
                ours[way].push(own[way]);
                hand[way].push(plain[way]);
            }
        }
    }
    for (way, name) in ["host to guest", "guest to host"].into_iter().enumerate() {
        let mut ratios: Vec<f64> =
            ours[way].iter().zip(&hand[way]).map(|(own, plain)| own / plain).collect();
        println!(
            "{name}: {:.0} MiB/s with banger's bridge and rules, {:.0} MiB/s by hand (p50); ratio {:.3} (p50 of the rounds, n {rounds})",
            median(&mut ours[way]),
            median(&mut hand[way]),
            median(&mut ratios)
        );
    }
}

/// The guest, and what there is of its network on the host.
struct Guest {
    address: String,
    tap: String,
    bridge: String,
    mac: String,
    gateway: String,
    rules: String,
}

impl Guest {
    fn of(world: &World) -> Self {
        let vm = world.vm("one");
        let network =
            world.banger(["network", "show", "default", "--format", "json"]).succeeds().json();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let bridge = text(&network["bridge"]);
        let subnet = text(&network["subnet"]);
        let prefix = subnet.split_once('/').unwrap().1;
        let rules = world.program("nft", &["--stateless", "list", "ruleset"]);
        let link = world.program("ip", &["-json", "link", "show", &bridge]).succeeds().json();
        Self {
            address: text(&vm["address"]),
            tap: format!("{}-{}", bridge.split_once('-').unwrap().0, text(&vm["id"])),
            gateway: format!("{}/{prefix}", text(&network["gateway"])),
            mac: text(&link[0]["address"]),
            rules: rules.succeeds().text(),
            bridge,
        }
    }

    /// MiB/s to the guest and from it.
    fn speeds(&self) -> [f64; 2] {
        let speed = |begun: Instant| (BYTES >> 20) as f64 / begun.elapsed().as_secs_f64();
        let mut buffer = vec![0; 64 << 10];
        let mut to = TcpStream::connect((&*self.address, 9)).unwrap();
        let begun = Instant::now();
        for _ in 0..BYTES / buffer.len() {
            to.write_all(&buffer).unwrap();
        }
        to.shutdown(Shutdown::Write).unwrap();
        // The guest closes when it has read all.
        while to.read(&mut buffer).unwrap() > 0 {}
        let there = speed(begun);
        let mut from = TcpStream::connect((&*self.address, 10)).unwrap();
        from.shutdown(Shutdown::Write).unwrap();
        let (begun, mut read) = (Instant::now(), 0);
        loop {
            match from.read(&mut buffer).unwrap() {
                0 => break,
                length => read += length,
            }
        }
        assert_eq!(read, BYTES);
        [there, speed(begun)]
    }

    /// No rule, and a bridge of `ip link add` in the place of ours.
    fn by_hand(&self) {
        run("nft", &["flush", "ruleset"]);
        run("ip", &["link", "add", HAND, "type", "bridge"]);
        run("ip", &["link", "set", &self.tap, "nomaster"]);
        run("ip", &["address", "delete", &self.gateway, "dev", &self.bridge]);
        run("ip", &["address", "add", &self.gateway, "dev", HAND]);
        // The guest knows its gateway by this address.
        run("ip", &["link", "set", HAND, "address", &self.mac]);
        run("ip", &["link", "set", HAND, "up"]);
        run("ip", &["link", "set", &self.tap, "master", HAND]);
    }

    fn as_it_was(&self) {
        run("ip", &["link", "delete", HAND]);
        run("ip", &["address", "add", &self.gateway, "dev", &self.bridge]);
        run("ip", &["link", "set", &self.tap, "master", &self.bridge]);
        run("bridge", &["link", "set", "dev", &self.tap, "isolated", "on"]);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rules");
        std::fs::write(&file, &self.rules).unwrap();
        run("nft", &["-f", file.to_str().unwrap()]);
    }
}

fn median(all: &mut [f64]) -> f64 {
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    if all.len() % 2 == 1 { all[middle] } else { f64::midpoint(all[middle - 1], all[middle]) }
}
