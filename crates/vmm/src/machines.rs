//! The machine that the tests of all VMMs plan for.

use banger_api::Egress;
use banger_api::Zone;
use banger_host::{Mac, Mark, Network, StateFile};
use banger_storage::Driver;

use crate::{Machine, NetworkDevice};

pub(crate) fn machine(driver: &dyn Driver) -> Machine {
    let file = |text| StateFile::parse(text).unwrap();
    let (mark, image) = (Mark::parse("bg0000-11111111").unwrap(), file("images/i.ext4"));
    Machine {
        cpus: 2,
        memory_mib: 512,
        state: "/state".into(),
        kernel: file("kernels/k/vmlinux"),
        initramfs: file("initramfs/k.cpio"),
        agent_words: vec!["banger.name=one".into()],
        drives: driver.drives(&mark, &image),
        storage: driver.run_claims(&mark, &image, 1 << 30),
        uid: Some(1_900_000_000),
        network: Some(NetworkDevice {
            network: Network {
                number: 0,
                gateway: [10, 213, 0, 1].into(),
                prefix: 22,
                mtu: 1500,
                peers: false,
                ipv6: None,
            },
            address: [10, 213, 0, 2].into(),
            mac: Mac::of(&mark),
            egress: Egress::All,
            exposed: [].into(),
            zone: Zone::default(),
        }),
        user_network: None,
        log_limit_bytes: 1 << 20,
        mark,
    }
}
