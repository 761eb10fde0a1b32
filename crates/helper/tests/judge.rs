//! What the daemon really asks passes; what it has no business with is refused, each with the field and the reason. The
//! requests are judged as they come: as text.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use banger_helper::judge::{Refusal, judge};
use banger_host::helper_wire::{Act, VmmSignal, parse_request};
use banger_host::{Claim, Held, Mac};
use serde_json::{Value, json};
use support::{POLICY_MEMORY_BYTES, mark, policy};

/// The claims of a jailed Firecracker as the driver makes them: the text that its own test compares with.
const JAILED_CLAIMS: &str = include_str!("../../vmm/src/snapshots/jailed_claims.txt");

const UID: u32 = 1_900_000_000;

/// What is asked, from the text that asks it.
fn act(request: &Value) -> Act {
    let text = json!({ "version": 1, "act": request }).to_string();
    parse_request(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn acquire(claim: &Value) -> Act {
    act(&json!({ "do": "acquire", "claim": claim }))
}

fn refused(act: &Act) -> Refusal {
    judge(act, &policy()).expect_err(&format!("{act:?}"))
}

/// One good claim of each kind that needs root.
fn good(kind: &str) -> Value {
    let mark = mark("0").to_string();
    let network = json!({ "number": 0, "gateway": "10.213.0.1", "prefix": 22, "mtu": 1500 });
    match kind {
        "cgroup" => json!({
            "kind": kind, "mark": mark, "memory_max_bytes": 1_u64 << 30, "cpu_percent": 300, "pids_max": 10
        }),
        "loop" => json!({ "kind": kind, "mark": mark, "role": "image", "file": "images/a1.ext4" }),
        "dm_snapshot" => json!({ "kind": kind, "mark": mark, "size_bytes": 8_u64 << 30 }),
        "bridge" => json!({ "kind": kind, "installation": "0000", "network": network }),
        "guard" => json!({
            "kind": kind, "mark": mark, "network": network,
            "address": "10.213.0.2", "mac": Mac::of(&self::mark("0")),
        }),
        "tap" => json!({ "kind": kind, "mark": mark, "uid": UID, "network": network }),
        "nat" => json!({ "kind": kind, "mark": mark, "network": network, "address": "10.213.0.2" }),
        "jail" => json!({
            "kind": kind, "mark": mark, "uid": UID,
            "files": [
                { "name": "vmlinux", "source": "kernels/0a1b/vmlinux" },
                { "name": "initramfs", "source": "initramfs/0a1b-1.cpio" },
            ],
            "devices": [
                { "name": "banger-root", "source": { "loop": "image" } },
                { "name": "banger-disk", "source": "dm_snapshot" },
            ],
        }),
        "jailed_vmm" => {
            json!({ "kind": kind, "mark": mark, "uid": UID, "log_limit_bytes": 4 << 20 })
        }
        other => panic!("{other}"),
    }
}

const KINDS: [&str; 9] =
    ["cgroup", "loop", "dm_snapshot", "bridge", "guard", "tap", "nat", "jail", "jailed_vmm"];

/// A good claim in which one value is another.
fn with(kind: &str, place: &str, value: Value) -> Act {
    let mut claim = good(kind);
    *claim.pointer_mut(place).unwrap_or_else(|| panic!("{kind} has no {place}")) = value;
    acquire(&claim)
}

#[test]
fn what_the_firecracker_driver_claims_is_allowed() {
    let claims = serde_json::Deserializer::from_str(JAILED_CLAIMS).into_iter::<Claim>();
    let mut count = 0;
    for claim in claims.map(Result::unwrap).filter(Claim::needs_root) {
        judge(&Act::Acquire { claim: claim.clone() }, &policy()).unwrap();
        judge(&Act::Release { held: claim.held() }, &policy()).unwrap();
        count += 1;
    }
    assert!(count >= 6, "{count} claims in the driver's snapshot");
}

#[test]
fn the_claims_of_every_kind_that_a_real_daemon_makes_are_allowed() {
    for kind in KINDS {
        judge(&acquire(&good(kind)), &policy()).unwrap();
    }
    let disk = format!("vms/{}/disk.ext4", mark("0"));
    let host = POLICY_MEMORY_BYTES;
    let more = [
        ("loop", json!({ "role": "disk", "file": disk })),
        // A VM as large as the host, with what its VMM needs beside, and the smallest.
        ("cgroup", json!({ "memory_max_bytes": host + (256 << 20), "cpu_percent": 3300 })),
        ("cgroup", json!({ "memory_max_bytes": 128 << 20, "cpu_percent": 100 })),
        ("dm_snapshot", json!({ "size_bytes": 256_u64 << 20 })),
        ("dm_snapshot", json!({ "size_bytes": 16_u64 << 40 })),
        ("jail", json!({ "files": [{ "name": "rootfs", "source": "images/a1.ext4" }] })),
        ("tap", json!({ "uid": UID + 9_999 })),
        // Every subnet that the daemon chooses from, and its first and last VM.
        ("guard", json!({ "address": "10.213.3.254" })),
        ("guard", json!({ "exposed": (1..=64).collect::<Vec<u16>>() })),
        ("guard", json!({ "exposed": [65_535] })),
        (
            "nat",
            json!({
                "network": { "number": 0, "gateway": "10.213.252.1", "prefix": 22, "mtu": 1500 },
                "address": "10.213.252.2",
            }),
        ),
        // What a user may set.
        (
            "bridge",
            json!({ "network": { "number": 63, "gateway": "192.168.255.254", "prefix": 16, "mtu": 65_521, "peers": true } }),
        ),
        (
            "bridge",
            json!({ "network": { "number": 1, "gateway": "172.31.255.249", "prefix": 29, "mtu": 576 } }),
        ),
    ];
    for (kind, changes) in more {
        let mut claim = good(kind);
        for (key, value) in changes.as_object().unwrap() {
            claim[key] = value.clone();
        }
        judge(&acquire(&claim), &policy()).unwrap();
    }
    for kind in ["cgroup", "dm_snapshot", "guard", "tap", "nat", "jail", "jailed_vmm"] {
        let held = json!({ "kind": kind, "mark": mark("0").to_string() });
        judge(&act(&json!({ "do": "release", "held": held })), &policy()).unwrap();
    }
    for signal in ["HUP", "INT", "QUIT", "KILL", "TERM"] {
        let mark = mark("0").to_string();
        judge(&act(&json!({ "do": "signal", "mark": mark, "signal": signal })), &policy()).unwrap();
    }
    for name in ["api.sock", "agent.sock"] {
        judge(&Act::Connect { mark: mark("0"), name: name.to_owned() }, &policy()).unwrap();
    }
    judge(&Act::List {}, &policy()).unwrap();
    let network = good("bridge")["network"].clone();
    judge(&act(&json!({ "do": "firewalls", "network": network })), &policy()).unwrap();
    judge(&act(&json!({ "do": "route_names", "number": 255, "zone": "vm" })), &policy()).unwrap();
}

#[test]
fn names_of_other_people_are_not_led_to_the_daemon() {
    for zone in ["com", "lab.example", "internal", "x.vm"] {
        let act = act(&json!({ "do": "route_names", "number": 0, "zone": zone }));
        let refusal = judge(&act, &policy()).unwrap_err().to_string();
        assert!(refusal.contains("resolvectl"), "{refusal}");
    }
}

#[test]
fn what_is_another_installations_is_not_touched() {
    let theirs = "bg1111-00000000";
    for kind in KINDS {
        let (place, value) =
            if kind == "bridge" { ("/installation", "1111") } else { ("/mark", theirs) };
        let refusal = refused(&with(kind, place, json!(value)));
        assert!(refusal.reason.contains("1111"), "{refusal}");
        let Act::Acquire { claim } = with(kind, place, json!(value)) else { panic!() };
        assert_eq!(refused(&Act::Release { held: claim.held() }).field, refusal.field);
    }
    let mark = banger_host::Mark::parse(theirs).unwrap();
    assert_eq!(refused(&Act::Signal { mark: mark.clone(), signal: VmmSignal::Kill }).field, "mark");
    assert_eq!(refused(&Act::Connect { mark, name: "api.sock".to_owned() }).field, "mark");
}

#[test]
fn nobody_but_the_users_of_vms_gets_a_device_or_a_process() {
    for kind in ["tap", "jail", "jailed_vmm"] {
        for uid in [0, 1, 1000, 65_534, UID - 1, UID + 10_000, u32::MAX] {
            let refusal = refused(&with(kind, "/uid", json!(uid)));
            assert_eq!(refusal.field, "claim.uid", "{kind} {uid}");
        }
    }
}

#[test]
fn a_cgroup_has_limits_and_they_are_the_hosts_at_most() {
    let host = POLICY_MEMORY_BYTES;
    for (place, values) in [
        (
            "/memory_max_bytes",
            vec![json!(null), json!(0), json!((64 << 20) - 1), json!(host * 2), json!(u64::MAX)],
        ),
        ("/cpu_percent", vec![json!(null), json!(0), json!(3301), json!(u32::MAX)]),
        ("/pids_max", vec![json!(null), json!(0), json!(7), json!(4097), json!(u32::MAX)]),
    ] {
        for value in values {
            let refusal = refused(&with("cgroup", place, value.clone()));
            assert_eq!(refusal.field, format!("claim.{}", &place[1..]), "{value}");
        }
    }
}

#[test]
fn a_loop_is_over_an_image_or_over_the_vms_own_disk() {
    let own = format!("vms/{}/disk.ext4", mark("0"));
    let other = format!("vms/{}/disk.ext4", mark("1"));
    let wrong = [
        ("image", own.as_str()),
        ("image", "kernels/0a1b/vmlinux"),
        ("image", "banger.db"),
        ("image", "images"),
        ("image", "imagesx/a1.ext4"),
        ("disk", "images/a1.ext4"),
        ("disk", other.as_str()),
        ("disk", "vms/disk.ext4"),
        ("disk", "vms/bg0000-00000000/disk.new"),
        ("disk", "vms/bg0000-00000000/console.log"),
        ("disk", "banger.db"),
    ];
    for (role, file) in wrong {
        let mut claim = good("loop");
        claim["role"] = json!(role);
        claim["file"] = json!(file);
        assert_eq!(refused(&acquire(&claim)).field, "claim.file", "{role} {file}");
    }
}

#[test]
fn no_path_leads_out_of_the_state() {
    for path in [
        "/etc/shadow",
        "../../../etc/shadow",
        "images/../banger.db",
        "images/../../../../dev/sda",
        "images//a1.ext4",
        "images/./a1.ext4",
        "images/.hidden",
        "images/a\0b",
        "images/a b",
        "images/a\nb",
        "",
    ] {
        for request in [
            json!({ "do": "acquire", "claim": { "kind": "loop", "mark": "bg0000-00000000", "role": "image", "file": path } }),
            json!({ "do": "acquire", "claim": {
                "kind": "jail", "mark": "bg0000-00000000", "uid": UID, "devices": [],
                "files": [{ "name": "vmlinux", "source": path }]
            } }),
        ] {
            let text = json!({ "version": 1, "act": request }).to_string();
            let error = parse_request(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("is no file of the state"), "{path:?}: {error}");
        }
    }
}

#[test]
fn marks_that_could_lead_elsewhere_are_not_marks() {
    for mark in [
        "",
        "..",
        "bg0000-0000000/",
        "bg0000-../../..",
        "bg0000-00000000/..",
        "eth0",
        "bg0000-0000000\0",
    ] {
        let request = json!({ "version": 1, "act": { "do": "release", "held": { "kind": "jail", "mark": mark } } });
        assert!(parse_request(request.to_string().as_bytes()).is_err(), "{mark:?}");
    }
}

#[test]
fn a_snapshot_device_has_a_sane_size() {
    for size in
        [0, 4096, (1 << 20) - 4096, (1 << 20) + 1, (1 << 20) + 512, (16 << 40) + 4096, u64::MAX]
    {
        let refusal = refused(&with("dm_snapshot", "/size_bytes", json!(size)));
        assert_eq!(refusal.field, "claim.size_bytes", "{size}");
    }
}

#[test]
fn names_in_a_jail_are_plain_and_not_the_jailers() {
    let long = "a".repeat(32);
    let wrong = [
        "",
        ".",
        "..",
        "/",
        "a/b",
        "../a",
        "-a",
        "A",
        "a.b",
        "a b",
        "a\0",
        "é",
        "firecracker",
        "dev",
        "run",
        "api.sock",
        "agent.sock",
        "firecracker.pid",
        "old_root",
        long.as_str(),
    ];
    for name in wrong {
        let refusal = refused(&with("jail", "/files/0/name", json!(name)));
        assert_eq!(refusal.field, "claim.files.name", "{name:?}");
        let refusal = refused(&with("jail", "/devices/0/name", json!(name)));
        assert_eq!(refusal.field, "claim.devices.name", "{name:?}");
    }
}

#[test]
fn a_name_in_a_jail_comes_once() {
    let refusal = refused(&with("jail", "/files/1/name", json!("vmlinux")));
    assert_eq!(
        (refusal.field, refusal.reason.as_str()),
        ("claim.files.name", "\"vmlinux\" comes twice")
    );
    let refusal = refused(&with("jail", "/devices/0/name", json!("vmlinux")));
    assert_eq!(refusal.field, "claim.devices.name");
}

#[test]
fn a_jail_shows_kernels_initramfses_and_images_and_nothing_else_of_the_state() {
    for file in ["banger.db", "kernels", "vms/bg0000-00000000/disk.ext4", "installation", "jails/x"]
    {
        let refusal = refused(&with("jail", "/files/0/source", json!(file)));
        assert_eq!(refusal.field, "claim.files.source", "{file}");
    }
}

#[test]
fn a_jail_is_not_filled_up() {
    let file = |index| json!({ "name": format!("f{index}"), "source": "images/a" });
    let device = |index| json!({ "name": format!("d{index}"), "source": "dm_snapshot" });
    for (place, field, one) in [
        ("/files", "claim.files", &file as &dyn Fn(usize) -> Value),
        ("/devices", "claim.devices", &device),
    ] {
        let most: Vec<Value> = (0..16).map(one).collect();
        judge(&with("jail", place, json!(most)), &policy()).unwrap();
        let more: Vec<Value> = (0..17).map(one).collect();
        assert_eq!(refused(&with("jail", place, json!(more))).field, field);
    }
}

const NETWORKED: [&str; 4] = ["bridge", "guard", "tap", "nat"];

#[test]
fn a_network_is_private_and_neither_huge_nor_tiny() {
    let wrong = [
        ("8.8.8.1", 24),
        ("0.0.0.1", 16),
        ("127.0.0.2", 24),
        ("100.64.0.1", 22),
        ("169.254.169.1", 24),
        ("172.15.255.1", 22),
        ("172.32.0.1", 22),
        ("192.167.255.1", 24),
        ("192.169.0.1", 24),
        ("11.0.0.1", 16),
        ("224.0.0.1", 24),
        ("255.255.255.1", 24),
    ];
    for kind in NETWORKED {
        for (gateway, prefix) in wrong {
            let network = json!({ "number": 0, "gateway": gateway, "prefix": prefix, "mtu": 1500 });
            let refusal = refused(&with(kind, "/network", network));
            assert_eq!(refusal.field, "claim.network", "{kind} {gateway}");
        }
        for prefix in [0, 8, 15, 30, 31, 32, 33, 255] {
            let refusal = refused(&with(kind, "/network/prefix", json!(prefix)));
            assert_eq!(refusal.field, "claim.network.prefix", "{kind} {prefix}");
        }
        for mtu in [0, 68, 575, 65_522, 65_535] {
            let refusal = refused(&with(kind, "/network/mtu", json!(mtu)));
            assert_eq!(refusal.field, "claim.network.mtu", "{kind} {mtu}");
        }
        for number in [64, 255] {
            let refusal = refused(&with(kind, "/network/number", json!(number)));
            assert_eq!(refusal.field, "claim.network.number", "{kind} {number}");
        }
        for gateway in ["10.213.0.0", "10.213.3.255"] {
            let refusal = refused(&with(kind, "/network/gateway", json!(gateway)));
            assert_eq!(refusal.field, "claim.network.gateway", "{kind} {gateway}");
        }
    }
}

#[test]
fn an_ipv6_prefix_is_the_networks_own_by_its_number_and_nobodys_in_the_world() {
    let of = |number: u8, mtu: u16, ipv6: &str| json!({ "number": number, "gateway": "10.213.0.1", "prefix": 22, "mtu": mtu, "ipv6": ipv6 });
    for kind in ["bridge", "guard", "tap", "nat"] {
        for good in [of(0, 1280, "fd12:3456:789a::"), of(63, 65_521, "fdff:ffff:ffff:3f::")] {
            judge(&with(kind, "/network", good), &policy()).unwrap();
        }
        for (number, wrong) in [
            (0, "2001:db8::"),
            (0, "fc00::"),
            (0, "fe80::"),
            (0, "ff02::"),
            (0, "::"),
            (0, "::ffff:10.213.0.1"),
            (0, "fd12:3456:789a::1"),
            (0, "fd12:3456:789a:0:1::"),
            (0, "fd12:3456:789a:1::"),
            (1, "fd12:3456:789a::"),
            (1, "fd12:3456:789a:101::"),
        ] {
            let refusal = refused(&with(kind, "/network", of(number, 1500, wrong)));
            assert_eq!(refusal.field, "claim.network.ipv6", "{kind} {wrong}");
        }
        let refusal = refused(&with(kind, "/network", of(0, 1279, "fd12:3456:789a::")));
        assert_eq!(refusal.field, "claim.network.mtu", "{kind}");
    }
}

#[test]
fn a_vm_has_an_address_of_its_network_that_is_nobody_elses() {
    let wrong = ["10.213.0.0", "10.213.0.1", "10.213.3.255", "10.213.4.2", "8.8.8.8", "127.0.0.1"];
    for kind in ["guard", "nat"] {
        for address in wrong.into_iter().chain(["0.0.0.0", "255.255.255.255"]) {
            let refusal = refused(&with(kind, "/address", json!(address)));
            assert_eq!(refusal.field, "claim.address", "{kind} {address}");
        }
    }
}

#[test]
fn a_list_is_bounded_and_has_nothing_of_the_hosts_own() {
    let listed = |only: Value| {
        let mut claim = good("nat");
        claim["only"] = only;
        json!({ "do": "acquire", "claim": claim })
    };
    let many = |count: u8| json!((0..count).map(|n| format!("203.0.113.{n}")).collect::<Vec<_>>());
    for good in [json!(["203.0.113.0/24", "10.0.0.0/8"]), json!([]), many(64)] {
        judge(&act(&listed(good)), &policy()).unwrap();
    }
    assert_eq!(refused(&act(&listed(many(65)))).field, "claim.only");
    for bad in ["127.0.0.1", "0.0.0.0/0", "169.254.0.0/24", "224.0.0.0/4", "10.0.0.1/8", "name"] {
        let request = json!({ "version": 1, "act": listed(json!([bad])) });
        parse_request(request.to_string().as_bytes()).expect_err(bad);
    }
}

#[test]
fn ports_that_lead_to_the_hosts_services_are_64_at_most_and_ports() {
    let exposing = |exposed: Value| {
        let mut claim = good("guard");
        claim["exposed"] = exposed;
        json!({ "do": "acquire", "claim": claim })
    };
    let many = |count: u16| json!((1..=count).collect::<Vec<_>>());
    judge(&act(&exposing(many(64))), &policy()).unwrap();
    for bad in [many(65), json!([0]), json!([5432, 0])] {
        assert_eq!(refused(&act(&exposing(bad))).field, "claim.exposed");
    }
    for bad in [json!([65_536]), json!(["80"]), json!([-1]), json!(null)] {
        let request = json!({ "version": 1, "act": exposing(bad) });
        parse_request(request.to_string().as_bytes()).unwrap_err();
    }
}

#[test]
fn a_name_opens_public_addresses_and_for_an_hour_at_most() {
    let open = |addresses: &[&str], seconds: u32| {
        let mark = mark("0").to_string();
        act(&json!({ "do": "open", "mark": mark, "addresses": addresses, "seconds": seconds }))
    };
    judge(&open(&["203.0.113.7", "8.8.8.8"], 3600), &policy()).unwrap();
    for private in [
        "10.213.0.3",
        "192.168.1.1",
        "172.16.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        let refusal = refused(&open(&["8.8.8.8", private], 60));
        assert_eq!(refusal.field, "addresses", "{private}");
    }
    assert_eq!(refused(&open(&[], 60)).field, "addresses");
    let many: Vec<String> = (0..257).map(|n| format!("8.8.{}.{}", n / 256, n % 256)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(refused(&open(&many, 60)).field, "addresses");
    for seconds in [0, 3601] {
        assert_eq!(refused(&open(&["8.8.8.8"], seconds)).field, "seconds");
    }
    for what in ["open", "denied"] {
        let mut other = json!({ "do": what, "mark": "bg1111-00000000" });
        if what == "open" {
            other["addresses"] = json!(["8.8.8.8"]);
            other["seconds"] = json!(60);
        }
        assert_eq!(refused(&act(&other)).field, "mark");
    }
}

#[test]
fn a_vm_has_the_hardware_address_of_its_mark() {
    for mac in [
        Mac::of(&mark("1")).to_string(),
        "ff:ff:ff:ff:ff:ff".to_owned(),
        "01:00:5e:00:00:01".to_owned(),
        "00:00:00:00:00:00".to_owned(),
    ] {
        assert_eq!(refused(&with("guard", "/mac", json!(mac))).field, "claim.mac", "{mac}");
    }
}

#[test]
fn what_is_no_address_and_no_number_is_no_request() {
    for (kind, place, value) in [
        ("bridge", "/network/number", json!(256)),
        ("bridge", "/network/number", json!(-1)),
        ("bridge", "/network/mtu", json!(65_536)),
        ("bridge", "/network/gateway", json!("10.213.0.1/22")),
        ("bridge", "/network/gateway", json!("10.213.0.01")),
        ("bridge", "/network/gateway", json!("fd00::1")),
        ("nat", "/address", json!("10.213.2")),
        ("nat", "/address", json!(181_207_042)),
        ("guard", "/mac", json!("02:00:00:00:00:0A")),
        ("guard", "/mac", json!("02-00-00-00-00-0a")),
        ("guard", "/mac", json!("02:00:00:00:00:00\", drop")),
    ] {
        let mut claim = good(kind);
        *claim.pointer_mut(place).unwrap() = value.clone();
        let text = json!({ "version": 1, "act": { "do": "acquire", "claim": claim } }).to_string();
        assert!(parse_request(text.as_bytes()).is_err(), "{kind}{place} {value}");
    }
}

#[test]
fn a_jails_devices_are_its_own_vms() {
    let other = json!({ "kind": "jail", "mark": "bg0000-00000000", "uid": UID, "files": [], "devices": [
        { "name": "d", "source": { "loop": "image", "mark": "bg0000-11111111" } }
    ] });
    let text = json!({ "version": 1, "act": { "do": "acquire", "claim": other } }).to_string();
    assert!(parse_request(text.as_bytes()).is_err(), "there is no way to say it");
    for source in [json!("/dev/sda"), json!({ "loop": "sda" }), json!("dm_origin"), json!(8)] {
        let mut claim = good("jail");
        claim["devices"][0]["source"] = source.clone();
        let text = json!({ "version": 1, "act": { "do": "acquire", "claim": claim } }).to_string();
        assert!(parse_request(text.as_bytes()).is_err(), "{source}");
    }
}

#[test]
fn what_needs_no_root_is_not_done_by_root() {
    let mark = mark("0");
    let text = mark.to_string();
    for claim in [
        json!({ "kind": "vm_folder", "mark": text }),
        json!({ "kind": "run_folder", "mark": text }),
        json!({ "kind": "user_network", "mark": text }),
        json!({ "kind": "disk", "mark": text, "size_bytes": 4096, "source": { "from": "hole" } }),
        json!({ "kind": "vmm", "mark": text, "program": "/bin/sh", "args": ["-c", "id"], "sockets": [], "log_limit_bytes": 0 }),
    ] {
        assert_eq!(refused(&acquire(&claim)).field, "kind");
    }
    for held in [
        Held::VmFolder { mark: mark.clone() },
        Held::RunFolder { mark: mark.clone() },
        Held::UserNetwork { mark: mark.clone() },
        Held::Disk { mark: mark.clone() },
        Held::Vmm { mark },
    ] {
        assert_eq!(refused(&Act::Release { held }).field, "kind");
    }
}

#[test]
fn a_vmm_is_sent_only_signals_that_end_it() {
    for signal in ["STOP", "CONT", "SEGV", "USR1", "9", "kill", ""] {
        let text = json!({ "version": 1, "act": { "do": "signal", "mark": "bg0000-00000000", "signal": signal } });
        assert!(parse_request(text.to_string().as_bytes()).is_err(), "{signal}");
    }
    let number =
        json!({ "version": 1, "act": { "do": "signal", "mark": "bg0000-00000000", "signal": 9 } });
    assert!(parse_request(number.to_string().as_bytes()).is_err());
}

#[test]
fn only_the_two_sockets_of_a_jail_are_connected_to() {
    for name in [
        "",
        "..",
        "firecracker",
        "dev/log",
        "../api.sock",
        "/run/dbus/system_bus_socket",
        "api.sock\0",
        "API.SOCK",
        "v.sock",
    ] {
        let refusal = refused(&Act::Connect { mark: mark("0"), name: name.to_owned() });
        assert_eq!(refusal.field, "name", "{name:?}");
    }
}

#[test]
fn a_refusal_names_the_field_and_the_reason() {
    let refusal = refused(&with("tap", "/uid", json!(1000)));
    assert_eq!(
        refusal.to_string(),
        "claim.uid: 1000 is none of the users of VMs, 1900000000 to 1900009999"
    );
}
