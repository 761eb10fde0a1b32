//! How fast scp is with the agent's ssh server beside OpenSSH's own, in the same guest, over the same network, to and from a
//! file in the guest's memory; each of the two comes first in turns.
//!
//! ```text
//! bench-ssh [ROUNDS]      as root; BANGER_BIN_DIR and BANGER_E2E_BACKEND as for the tests; fetches Debian's openssh-server
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement may panic, and says what it found"
)]

use std::fs;
use std::path::Path;
use std::time::Instant;

use banger_e2e::{SYSTEMD, World, in_world, run};

/// What each copy carries.
const BYTES: usize = 100_000_000;

/// What OpenSSH's server needs beside the default image.
const PACKAGES: [&str; 3] = ["openssh-server", "openssh-sftp-server", "libwrap0"];

/// In a folder of its own: were it where servers are, the agent would leave it port 22.
const START: &str = "set -e
mkdir -p /opt/bench /run/sshd /root/.ssh; chmod 700 /root/.ssh; cp /run/debs/id.pub /root/.ssh/authorized_keys
for deb in /run/debs/*.deb; do dpkg -x $deb /opt/bench; done
grep -q ^sshd: /etc/passwd || echo sshd:x:998:65534::/run/sshd:/usr/sbin/nologin >> /etc/passwd
sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow
cp /run/debs/host /run/host_key; chmod 600 /run/host_key; chown -R root:root /root/.ssh /run/sshd
printf 'Port 2222\\nHostKey /run/host_key\\nUsePAM no\\nStrictModes no\\nPermitRootLogin yes\\nSubsystem sftp \
/opt/bench/usr/lib/openssh/sftp-server\\n' > /run/sshd_config
LD_LIBRARY_PATH=/opt/bench/lib/x86_64-linux-gnu:/opt/bench/usr/lib/x86_64-linux-gnu /opt/bench/usr/sbin/sshd -f /run/sshd_config";

fn main() {
    let rounds = std::env::args().nth(1).map_or(5, |rounds| rounds.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let debs = folder.path().join("debs");
    fs::create_dir(&debs).unwrap();
    let text = debs.to_str().unwrap();
    run("sh", &["-c", &format!("cd {text} && apt-get download -qq {}", PACKAGES.join(" "))]);
    in_world(|world| measure(world, &debs, rounds));
}

fn measure(world: &World, debs: &Path, rounds: usize) {
    let vm = ["vm", "run", "-d", "--name", "one", "--image", SYSTEMD, "--memory", "1G"];
    world.banger(vm).succeeds();
    // Until all is started that the first round is not to share the processor with. Its status is of what may have failed.
    let settled = "while test \"$(systemctl is-system-running)\" = offline; do :; done; systemctl is-system-running --wait; :";
    world.banger(["vm", "exec", "one", "--", "sh", "-c", settled]).succeeds();
    let at = |name: &str| debs.join(name).to_str().unwrap().to_owned();
    run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &at("host")]);
    let config = world.home().join("ssh.config");
    fs::write(&config, world.banger(["ssh-config"]).succeeds().text()).unwrap();
    let config = config.to_str().unwrap();
    fs::copy(world.home().join("state/ssh/id_ed25519.pub"), debs.join("id.pub")).unwrap();
    let address = world.vm("one")["address"].as_str().unwrap().to_owned();
    let host = format!("HostName={address}");
    let ours = ["-F", config, "-o", "ProxyCommand=none", "-o", &host, "-o", "HostKeyAlias=one.vm"];
    let theirs =
        ["-o", "Port=2222", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"];
    let theirs = [&ours[..2], &theirs, &ours[2..6]].concat();
    world.program("scp", &[&ours[..], &["-rq", &at(""), "one.vm:/run/debs"]].concat()).succeeds();
    world.program("ssh", &[&ours[..], &["one.vm", START]].concat()).succeeds();
    let file = world.home().join("file");
    fs::write(&file, vec![b'x'; BYTES]).unwrap();
    let file = file.to_str().unwrap();
    let (mut own, mut openssh) = ([vec![], vec![]], [vec![], vec![]]);
    // The first round fills what there is of caches, and does not count.
    for round in 0..=rounds {
        for turn in 0..2 {
            let is_ours = (round + turn) % 2 == 0;
            let options = if is_ours { &ours[..] } else { &theirs[..] };
            for way in 0..2 {
                let words = ["-o", "LogLevel=INFO", file, "one.vm:/dev/shm/file"];
                let back = ["-o", "LogLevel=INFO", "one.vm:/dev/shm/file", file];
                let words = if way == 0 { words } else { back };
                let begun = Instant::now();
                world.program("scp", &[options, &words].concat()).succeeds();
                let speed = BYTES as f64 / 1e6 / begun.elapsed().as_secs_f64();
                if round > 0 {
                    let of = if is_ours { &mut own } else { &mut openssh };
                    of[way].push(speed);
                }
            }
        }
    }
    for (way, name) in ["host to guest", "guest to host"].into_iter().enumerate() {
        let mut ratios: Vec<f64> =
            own[way].iter().zip(&openssh[way]).map(|(own, other)| own / other).collect();
        println!(
            "{name}: {:.1} MB/s with banger's ssh, {:.1} MB/s with OpenSSH's sshd (p50); ratio {:.3} (p50 of the rounds, n {rounds})",
            median(&mut own[way]),
            median(&mut openssh[way]),
            median(&mut ratios)
        );
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
