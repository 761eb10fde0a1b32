//! QEMU's `microvm` machine: the VMM for hosts whose KVM runs no guest (then by TCG, QEMU's translator), and for any host
//! without Firecracker.
//!
//! It is not jailed: it runs as the daemon's user, and opens its tap as that. So it has a network device where the daemon
//! is root; elsewhere its frames can go to a user-mode network, by an open connection.
//!
//! The agent's channel is a virtio-serial port, since a vhost-user-vsock device would make the VM impossible to snapshot.

mod qmp;

use std::os::unix::net::UnixStream;

use banger_host::{Claim, Mac, Mark, VMM_FIRST_FD, VmSocket, user_network};
use banger_storage::DriveSource;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use qmp::Qmp;

use crate::{Machine, NetworkDevice, UserNetwork, Vmm, VmmError, snapshot_device};

/// How QEMU executes the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// On the processor, through /dev/kvm.
    Kvm,
    /// Translated; `tsc_khz` is the host's, which is also the guest's.
    Tcg { tsc_khz: u64 },
}

#[derive(Debug, Clone)]
pub struct Qemu {
    pub accelerator: Accelerator,
}

/// The program's name in Debian's and Ubuntu's packages.
pub const PROGRAM: &str = "qemu-system-x86_64";

pub(crate) const AGENT_SOCKET: &str = "agent.sock";

/// Where QEMU is told what to do with its guest (QMP).
pub(crate) const CONTROL_SOCKET: &str = "qmp.sock";

/// Where it finds its connection to a user-mode network: after the sockets of the agent and of its control.
const NETWORK_FD: i32 = VMM_FIRST_FD + 2;

/// Who opens its tap.
const ROOT: u32 = 0;

impl Vmm for Qemu {
    fn name(&self) -> String {
        match self.accelerator {
            Accelerator::Kvm => "qemu (kvm)".into(),
            Accelerator::Tcg { .. } => "qemu (tcg)".into(),
        }
    }

    fn claims(&self, machine: &Machine) -> Vec<Claim> {
        let mark: Mark = machine.mark.clone();
        let mut claims = machine.storage.clone();
        claims.push(Claim::RunFolder { mark: mark.clone() });
        if let Some(device) = &machine.network {
            claims.extend(device.claims(&mark, ROOT));
        }
        if machine.user_network.is_some() {
            claims.push(Claim::UserNetwork { mark: mark.clone() });
        }
        let mut args = self.arguments(machine, &format!("fd={VMM_FIRST_FD}"));
        let control = format!("socket,id=control,fd={},server=on,wait=off", VMM_FIRST_FD + 1);
        args.extend(
            ["-chardev", &control, "-mon", "chardev=control,mode=control"].map(String::from),
        );
        claims.push(Claim::Vmm(banger_host::Vmm {
            mark,
            program: PROGRAM.into(),
            args,
            sockets: vec![AGENT_SOCKET.into(), CONTROL_SOCKET.into()],
            connects: machine.user_network.iter().map(|_| user_network::SOCKET.into()).collect(),
            makes: None,
            log_limit_bytes: machine.log_limit_bytes,
        }));
        claims
    }

    fn api(&self) -> Option<VmSocket> {
        None
    }

    fn boot<'a>(
        &'a self,
        _machine: &'a Machine,
        _api: UnixStream,
    ) -> BoxFuture<'a, Result<(), VmmError>> {
        ready(Ok(())).boxed()
    }
}

impl Qemu {
    /// QEMU's arguments. `agent_address` is where the agent's socket listens: `fd=N` or `path=FILE`.
    #[must_use]
    pub fn arguments(&self, machine: &Machine, agent_address: &str) -> Vec<String> {
        let mut args = Arguments::default();
        args.flag("-nodefaults").flag("-no-user-config").flag("-no-reboot");
        args.pair("-display", "none").pair("-monitor", "none");
        args.pair("-name", &machine.mark.to_string());
        args.pair("-machine", "microvm,acpi=on,rtc=on");
        match self.accelerator {
            Accelerator::Kvm => args.pair("-accel", "kvm").pair("-cpu", "host"),
            // Nehalem is x86-64-v2, which current distributions are built for; rdrand seeds the guest's randomness at
            // once. 128 MiB of translated code is enough for a booting systemd, and QEMU takes 1 GiB if not told.
            Accelerator::Tcg { .. } => args
                .pair("-accel", "tcg,thread=multi,tb-size=128")
                .pair("-cpu", "Nehalem,+rdrand,+rdseed"),
        };
        args.pair("-smp", &machine.cpus.to_string());
        args.pair("-m", &format!("{}M", machine.memory_mib));
        args.pair("-kernel", &machine.kernel.below(&machine.state).to_string_lossy());
        args.pair("-initrd", &machine.initramfs.below(&machine.state).to_string_lossy());
        args.pair("-append", &self.kernel_words(machine).join(" "));
        // The console goes to stdout, which the log's process reads.
        args.pair("-chardev", "file,id=console,path=/dev/stdout")
            .pair("-serial", "chardev:console");
        for (index, drive) in machine.drives.iter().enumerate() {
            // QEMU takes a comma in a value when it is doubled.
            let path = match &drive.source {
                DriveSource::File(file) => file.below(&machine.state),
                DriveSource::DmSnapshot => snapshot_device(&machine.mark),
            };
            let path = path.to_string_lossy().replace(',', ",,");
            let read_only = if drive.read_only { "on" } else { "off" };
            args.pair(
                "-blockdev",
                &format!(
                    "driver=raw,node-name=drive{index},read-only={read_only},discard=unmap,\
                     file.driver=file,file.filename={path}"
                ),
            );
            args.pair(
                "-device",
                &format!("virtio-blk-device,drive=drive{index},serial={}", drive.serial),
            );
        }
        if let Some(device) = &machine.network {
            // The tap is there and a port of its bridge: no script of QEMU's has anything to do. Without vhost-net QEMU
            // itself passes the frames, and needs no /dev/vhost-net.
            let tap = &machine.mark;
            args.pair(
                "-netdev",
                &format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost=off"),
            );
            args.pair("-device", &format!("virtio-net-device,netdev=net,mac={}", device.mac));
        }
        if machine.user_network.is_some() {
            args.pair(
                "-netdev",
                &format!("stream,id=net,server=off,addr.type=fd,addr.str={NETWORK_FD}"),
            );
            let mac = Mac::of(&machine.mark);
            args.pair("-device", &format!("virtio-net-device,netdev=net,mac={mac}"));
        }
        args.pair("-device", "virtio-serial-device");
        args.pair("-chardev", &format!("socket,id=agent,{agent_address},server=on,wait=off"));
        args.pair(
            "-device",
            &format!("virtserialport,chardev=agent,name={}", banger_api::channel::PORT_NAME),
        );
        args.pair("-device", "virtio-rng-device");
        args.0
    }

    fn kernel_words(&self, machine: &Machine) -> Vec<String> {
        // `reboot=t panic=-1` with QEMU's -no-reboot: a guest that panics ends its VMM at once, and the console's last
        // lines say why.
        let mut words: Vec<String> =
            ["console=ttyS0", "quiet", "reboot=t", "panic=-1", "random.trust_cpu=on"]
                .map(String::from)
                .into();
        if let Accelerator::Tcg { tsc_khz } = self.accelerator {
            // Without the rate the kernel calibrates against a timer that is not there and then waits for ticks that do
            // not come. `lpj` at HZ=250 is the rate divided by 250 (Documentation/admin-guide/kernel-parameters.txt).
            words.push(format!("tsc_early_khz={tsc_khz}"));
            words.push("no_timer_check".into());
            words.push(format!("lpj={}", tsc_khz * 4));
            // Mitigations cost a translated guest much and protect nothing: it shares no predictor with its host's code.
            words.push("mitigations=off".into());
        }
        words.extend(machine.network.as_ref().map(NetworkDevice::word));
        words.extend(machine.user_network.as_ref().map(UserNetwork::word));
        words.extend(machine.agent_words.iter().cloned());
        words
    }
}

pub(crate) async fn set_paused(control: UnixStream, paused: bool) -> Result<(), VmmError> {
    let command = if paused { "stop" } else { "cont" };
    Qmp::connect(control).await?.execute::<serde_json::Value>(command).await.map(drop)
}

pub(crate) async fn is_paused(control: UnixStream) -> Result<bool, VmmError> {
    #[derive(serde::Deserialize)]
    struct Status {
        running: bool,
    }
    let status: Status = Qmp::connect(control).await?.execute("query-status").await?;
    Ok(!status.running)
}

#[derive(Debug, Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.to_owned());
        self
    }

    fn pair(&mut self, name: &str, value: &str) -> &mut Self {
        self.flag(name).flag(value)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use banger_host::Held;
    use banger_storage::{DmSnapshot, Overlay};

    use super::*;
    use crate::machines::machine;

    #[test]
    fn the_command_line_is_this() {
        let qemu = Qemu { accelerator: Accelerator::Tcg { tsc_khz: 2_600_000 } };
        let shown = qemu.arguments(&machine(&Overlay), "fd=3").join("\n") + "\n";
        snapbox::assert_data_eq!(shown, snapbox::file!["snapshots/qemu_arguments.txt"]);
    }

    #[test]
    fn a_comma_in_a_path_does_not_end_the_option() {
        let qemu = Qemu { accelerator: Accelerator::Kvm };
        let state = Path::new("/a,b").to_owned();
        let args = qemu.arguments(&Machine { state, ..machine(&Overlay) }, "fd=3");
        assert!(
            args.iter().any(|arg| arg.ends_with("file.filename=/a,,b/images/i.ext4")),
            "{args:?}"
        );
    }

    #[test]
    fn a_snapshot_device_is_found_by_the_name_of_its_vm() {
        let qemu = Qemu { accelerator: Accelerator::Kvm };
        let args = qemu.arguments(&machine(&DmSnapshot), "fd=3");
        assert!(
            args.iter().any(|arg| arg.ends_with("file.filename=/dev/mapper/bg0000-11111111")),
            "{args:?}"
        );
    }

    #[test]
    fn kvm_guests_calibrate_their_own_clock() {
        let qemu = Qemu { accelerator: Accelerator::Kvm };
        assert!(
            !qemu
                .arguments(&machine(&Overlay), "fd=3")
                .iter()
                .any(|arg| arg.contains("tsc_early_khz"))
        );
    }

    #[test]
    fn without_a_network_there_is_no_device_and_no_claim_for_one() {
        let qemu = Qemu { accelerator: Accelerator::Kvm };
        let machine = Machine { network: None, ..machine(&Overlay) };
        let args = qemu.arguments(&machine, "fd=3").concat();
        assert!(!args.contains("net"), "{args}");
        let kinds: Vec<_> = qemu.claims(&machine).iter().map(Claim::held).collect();
        assert!(matches!(kinds[..], [Held::RunFolder { .. }, Held::Vmm { .. }]), "{kinds:?}");
    }

    #[test]
    fn a_user_mode_network_is_there_before_the_process_that_is_connected_to_it() {
        let qemu = Qemu { accelerator: Accelerator::Kvm };
        let user_network = Some(UserNetwork { zone: banger_api::Zone::default() });
        let machine = Machine { network: None, user_network, ..machine(&Overlay) };
        let claims = qemu.claims(&machine);
        let kinds: Vec<_> = claims.iter().map(Claim::held).collect();
        assert!(
            matches!(
                kinds[..],
                [Held::RunFolder { .. }, Held::UserNetwork { .. }, Held::Vmm { .. }]
            ),
            "{kinds:?}"
        );
        let Some(Claim::Vmm(vmm)) = claims.last() else { panic!("{claims:?}") };
        assert_eq!(
            (&vmm.sockets[..], &vmm.connects[..]),
            (&["agent.sock".into(), "qmp.sock".into()][..], &["network.sock".into()][..])
        );
        let args = qemu.arguments(&machine, "fd=3").join(" ");
        assert!(
            args.contains("-netdev stream,id=net,server=off,addr.type=fd,addr.str=5 "),
            "{args}"
        );
        assert!(args.contains(" banger.net=10.212.255.2/30,10.212.255.1,65520 "), "{args}");
    }

    #[test]
    fn the_tap_is_the_daemons_and_is_there_before_the_process() {
        let qemu = Qemu { accelerator: Accelerator::Kvm };
        let claims = qemu.claims(&machine(&Overlay));
        let place = |wanted: &dyn Fn(&Claim) -> bool| claims.iter().position(wanted).unwrap();
        let tap = place(&|claim| matches!(claim, Claim::Tap(tap) if tap.uid == 0));
        let guard = place(&|claim| matches!(claim, Claim::Guard(_)));
        let process = place(&|claim| matches!(claim, Claim::Vmm(_)));
        assert!(guard < tap && tap < process);
    }

    #[test]
    fn what_a_run_holds_is_released_by_stop() {
        let qemu = Qemu { accelerator: Accelerator::Kvm };
        for claim in qemu.claims(&machine(&DmSnapshot)) {
            assert_eq!(claim.life(), banger_host::Life::Run);
        }
    }
}
