//! Others' firewalls, as their programs write them: what they stop is stopped, and told by name; what is told to do lets it
//! through; and nothing of theirs is changed by us. `ufw.rules` is what ufw 0.36.2 writes, `firewalld.nft` and
//! `firewalld_trusted.nft` what firewalld 1.3.3 does, before and after its remedy, `docker.rules` as of Docker 28.

use super::*;
use crate::root::firewalls::{self, Firewalls, Neighbour, Obstacle};

/// As long as a packet that is dropped is waited for.
const MOMENT: Duration = Duration::from_millis(300);

/// A guest with a way out, a server in the world, and the host between them.
struct Scene {
    mark: Mark,
    bridge: String,
    guest: Beside,
    server: SocketAddr,
    _world: (Beside, TcpListener),
    names: UdpSocket,
}

impl Scene {
    fn play(test: impl FnOnce(&Self) + Send) {
        on_a_host(|| {
            let mark = test_mark();
            let guest = Beside::guest(&mark, GUEST);
            nat::acquire(&nat_of(&mark, GUEST)).unwrap();
            let world = Beside::world();
            ip(&format!("route add default via {SERVER}"));
            let (listener, server) = world.listen(SERVER);
            let names = UdpSocket::bind((GATEWAY, rules::DNS_PORT)).unwrap();
            let bridge = network().bridge(mark.installation());
            let scene = Self { mark, bridge, guest, server, _world: (world, listener), names };
            assert_eq!(scene.look(), Firewalls::default(), "a host without others' rules");
            assert!(scene.gets_out(SOON) && scene.is_answered(SOON));
            test(&scene);
        });
    }

    fn look(&self) -> Firewalls {
        firewalls::look(self.mark.installation(), &network()).unwrap()
    }

    fn told(&self) -> Vec<String> {
        self.look().obstacles.iter().map(ToString::to_string).collect()
    }

    fn gets_out(&self, most: Duration) -> bool {
        self.guest.inside(|| TcpStream::connect_timeout(&self.server, most)).is_ok()
    }

    /// Whether a question for a name is heard.
    fn is_answered(&self, most: Duration) -> bool {
        let guest = self.guest.inside(|| UdpSocket::bind((GUEST, 0)).unwrap());
        guest.send_to(b"who", (GATEWAY, 53)).unwrap();
        self.names.set_read_timeout(Some(most)).unwrap();
        self.names.recv_from(&mut [0; 9]).is_ok()
    }

    /// Everybody's rules but ours, without their counters.
    fn theirs(&self) -> String {
        let all = command::run("nft", &["-s", "list", "ruleset"]).unwrap();
        let ours = rules::table(self.mark.installation());
        let tables = all.split_inclusive("\n}\n");
        tables.filter(|table| !table.contains(&format!(" {ours} {{"))).collect()
    }

    fn sh(&self, line: &str) {
        command::run("sh", &["-c", &line.replace("BRIDGE", &self.bridge)]).unwrap();
    }

    fn file(&self, text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text.replace("BRIDGE", &self.bridge)).unwrap();
        file
    }

    fn iptables(&self, rules: &str) {
        let file = self.file(rules);
        self.sh(&format!("iptables-nft-restore {}", file.path().display()));
    }

    fn nft(&self, rules: &str) {
        let file = self.file(rules);
        self.sh(&format!("nft -f {}", file.path().display()));
    }

    /// What to do, once each.
    fn remedies(&self) -> Vec<String> {
        let mut all = Vec::new();
        for remedy in self.look().obstacles.iter().flat_map(|it| it.remedies(&self.bridge)) {
            if !all.contains(&remedy) {
                all.push(remedy);
            }
        }
        all
    }

    /// Their rules stay what they are while a VM comes, goes, and is looked at.
    fn is_left_alone(&self) {
        let before = self.theirs();
        assert!(!before.is_empty());
        let other = Mark::new(self.mark.installation().clone(), test_mark().vm().clone());
        guard::acquire(&guard_of(&other, OTHER_GUEST)).unwrap();
        nat::acquire(&nat_of(&other, OTHER_GUEST)).unwrap();
        self.look();
        nat::release(&other).unwrap();
        guard::release(&other).unwrap();
        assert_eq!(self.theirs(), before);
    }

    /// That nothing stops anything, and nobody says so.
    fn is_free(&self) {
        assert_eq!(self.told(), [""; 0]);
        assert!(self.gets_out(SOON), "packets pass");
        assert!(self.is_answered(SOON), "questions pass");
    }
}

#[test]
fn a_policy_of_iptables_is_told_and_its_remedy_lets_guests_out() {
    Scene::play(|scene| {
        scene.sh("iptables-nft -P FORWARD DROP");
        assert!(!scene.gets_out(MOMENT));
        let stopped = "by chain FORWARD of table ip filter: policy drop";
        let told = [
            format!("what guests with --nat send is stopped {stopped}"),
            format!("what answers guests with --nat is stopped {stopped}"),
        ];
        assert_eq!(scene.told(), told);
        scene.is_left_alone();
        for remedy in scene.remedies() {
            assert!(remedy.starts_with("iptables -I FORWARD "), "{remedy}");
            scene.sh(&remedy);
        }
        scene.is_free();
    });
}

#[test]
fn what_docker_drops_is_told_and_its_remedy_lets_guests_out() {
    Scene::play(|scene| {
        scene.iptables(include_str!("docker.rules"));
        assert!(!scene.gets_out(MOMENT));
        let stopped = "by chain FORWARD of table ip filter: policy drop";
        let told = [
            format!("what guests with --nat send is stopped {stopped}"),
            format!("what answers guests with --nat is stopped {stopped}"),
        ];
        assert_eq!(scene.told(), told);
        scene.is_left_alone();
        let remedies = [
            "iptables -I DOCKER-USER -i BRIDGE -j ACCEPT",
            "iptables -I DOCKER-USER -o BRIDGE -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ];
        assert_eq!(scene.remedies(), remedies.map(|line| line.replace("BRIDGE", &scene.bridge)));
        // One direction alone is not enough, and that is told.
        scene.sh(remedies[0]);
        assert!(!scene.gets_out(MOMENT));
        assert_eq!(scene.told(), told[1..]);
        scene.sh(remedies[1]);
        scene.is_free();
    });
}

#[test]
fn what_ufw_drops_is_told_and_the_rules_of_its_remedy_let_guests_out() {
    Scene::play(|scene| {
        scene.iptables(include_str!("ufw.rules"));
        assert!(!scene.gets_out(MOMENT) && !scene.is_answered(MOMENT));
        let told = [
            "what guests with --nat send is stopped by chain FORWARD of table ip filter: policy drop",
            "what guests ask for names is stopped by chain INPUT of table ip filter: policy drop",
        ];
        assert_eq!(scene.told(), told);
        scene.is_left_alone();
        // What ufw makes of each command.
        let remedies = [
            ("ufw route allow in on BRIDGE", "iptables -A ufw-user-forward -i BRIDGE -j ACCEPT"),
            (
                "ufw allow in on BRIDGE to any port 42069",
                "iptables -A ufw-user-input -i BRIDGE -p tcp -m tcp --dport 42069 -j ACCEPT
                 iptables -A ufw-user-input -i BRIDGE -p udp -m udp --dport 42069 -j ACCEPT",
            ),
        ];
        let commands = remedies.map(|(command, _)| command.replace("BRIDGE", &scene.bridge));
        assert_eq!(scene.remedies(), commands);
        remedies.iter().for_each(|(_, rules)| scene.sh(rules));
        scene.is_free();
    });
}

#[test]
fn what_firewalld_rejects_is_told_and_its_trusted_zone_lets_guests_out() {
    Scene::play(|scene| {
        scene.nft(include_str!("firewalld.nft"));
        // It lets in what was redirected.
        assert!(!scene.gets_out(MOMENT) && scene.is_answered(SOON));
        let rule = "of table inet firewalld: reject with icmpx admin-prohibited";
        let told =
            [format!("what guests with --nat send is stopped by chain filter_FWD_public {rule}")];
        assert_eq!(scene.told(), told);
        scene.is_left_alone();
        let remedies = [
            "firewall-cmd --permanent --zone=trusted --add-interface=BRIDGE",
            "firewall-cmd --reload",
        ];
        assert_eq!(scene.remedies(), remedies.map(|line| line.replace("BRIDGE", &scene.bridge)));
        scene.nft(&format!(
            "delete table inet firewalld\n{}",
            include_str!("firewalld_trusted.nft")
        ));
        scene.is_free();
    });
}

#[test]
fn a_firewall_written_in_nft_is_told_and_its_remedies_let_guests_out() {
    Scene::play(|scene| {
        scene.nft(
            "table inet mine {
                set trusted { type ifname; elements = { \"lo\" }; }
                chain in { type filter hook input priority 0; policy drop;
                    ct state vmap { established : accept, related : accept, invalid : drop }
                    iifname @trusted accept
                    tcp dport 22 accept
                }
                chain through { type filter hook forward priority 0;
                    iifname { \"docker0\", \"b*\" } jump no
                }
                chain no { ip daddr 10.0.0.0/8 return; meta l4proto udp accept; log prefix \"no \" counter drop; }
            }
            table bridge mine {
                chain in { type filter hook input priority 0; ether type arp accept; iifname \"bg*\" drop; }
            }",
        );
        assert!(!scene.gets_out(MOMENT) && !scene.is_answered(MOMENT));
        let through = "by chain no of table inet mine: log prefix \"no \" drop";
        let frames = "by chain in of table bridge mine: iifname \"bg*\" drop";
        let told = [
            format!("what guests with --nat send is stopped {through}"),
            format!("what guests with --nat send is stopped {frames}"),
            "what guests ask for names is stopped by chain in of table inet mine: policy drop"
                .to_owned(),
            format!("what guests ask for names is stopped {frames}"),
        ];
        assert_eq!(scene.told(), told);
        scene.is_left_alone();
        for remedy in scene.remedies() {
            assert!(remedy.starts_with("nft insert rule "), "{remedy}");
            scene.sh(&remedy);
        }
        scene.is_free();
    });
}

#[test]
fn what_depends_on_the_packet_is_called_so_and_what_is_for_others_is_not_told() {
    Scene::play(|scene| {
        scene.nft(
            "table inet others {
                chain forward { type filter hook forward priority 0; policy accept;
                    iifname \"docker0\" drop
                    ip saddr 198.51.100.7 drop
                    ct state invalid drop
                    ip6 saddr ::/0 drop
                    udp dport 53 reject
                }
                chain input { type filter hook input priority 0; policy drop;
                    iifname != \"uplink\" accept
                }
            }",
        );
        scene.is_free();
        scene.is_left_alone();
        scene.nft(
            "table ip picky {
                chain forward { type filter hook forward priority 0; policy drop;
                    ct state established accept
                    iifname \"BRIDGE\" tcp dport { 80, 443 } accept
                }
            }",
        );
        let [Obstacle { certain: false, neighbour: Neighbour::Nftables, rule: None, .. }] =
            scene.look().obstacles[..]
        else {
            panic!("{:?}", scene.told());
        };
        let told = "what guests with --nat send may be stopped by chain forward of table ip picky: policy drop";
        assert_eq!(scene.told(), [told]);
    });
}
