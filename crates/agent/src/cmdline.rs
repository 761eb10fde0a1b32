//! What the daemon tells the agent on the kernel's command line:
//!
//! ```text
//! banger.root=overlay|disk       how the root is made of the drives
//! banger.name=NAME               the host name
//! banger.init=PATH|agent         what becomes PID 1
//! banger.channel=serial|vsock    how the host is reached; serial unless said
//! banger.drives=A,B              which drive is which, in the order of their devices; by their serials unless said
//! banger.off=power|restart       how this machine is turned off; by its power unless said
//! banger.net=…                   its network (banger_api::guest_net); none unless said
//! ```

use banger_api::guest_net::{self, NoGuestNet};
use banger_api::{GuestIpv6, GuestNet};

/// How the root is made of the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Root {
    /// `banger-root` read-only under `banger-disk`, joined by overlayfs.
    Overlay,
    /// `banger-root` itself, writable.
    Disk,
}

/// What carries the host's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// A virtio-serial port.
    Serial,
    /// A vsock port that we listen on.
    Vsock,
}

/// How the machine is turned off: a VMM may have no way to power off, and end only when its guest restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Off {
    Power,
    Restart,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cmdline {
    pub(crate) root: Root,
    pub(crate) name: Option<String>,
    /// A path in the image, or `agent`.
    pub(crate) init: String,
    pub(crate) channel: Channel,
    /// The names of the drives, where their devices have no serials of ours.
    pub(crate) drives: Option<Vec<String>>,
    pub(crate) off: Off,
    pub(crate) net: Option<GuestNet>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnknownValue {
    #[error("the kernel's command line says {word}={value}, which is neither {} nor {}", known[0], known[1])]
    Word { word: &'static str, value: String, known: [&'static str; 2] },
    #[error("the kernel's command line says no network")]
    Net(#[from] NoGuestNet),
}

impl Cmdline {
    pub(crate) fn parse(text: &str) -> Result<Self, UnknownValue> {
        let mut cmdline = Self {
            root: Root::Overlay,
            name: None,
            init: "/sbin/init".to_owned(),
            channel: Channel::Serial,
            drives: None,
            off: Off::Power,
            net: None,
        };
        let mut ipv6 = None;
        for word in text.split_ascii_whitespace() {
            let Some((word, value)) = word.split_once('=') else { continue };
            match word {
                "banger.root" => {
                    let known = [("overlay", Root::Overlay), ("disk", Root::Disk)];
                    cmdline.root = one_of("banger.root", value, known)?;
                }
                "banger.channel" => {
                    let known = [("serial", Channel::Serial), ("vsock", Channel::Vsock)];
                    cmdline.channel = one_of("banger.channel", value, known)?;
                }
                "banger.off" => {
                    let known = [("power", Off::Power), ("restart", Off::Restart)];
                    cmdline.off = one_of("banger.off", value, known)?;
                }
                "banger.name" if !value.is_empty() => cmdline.name = Some(value.to_owned()),
                "banger.init" if !value.is_empty() => cmdline.init = value.to_owned(),
                "banger.drives" => {
                    cmdline.drives = Some(value.split(',').map(str::to_owned).collect());
                }
                guest_net::WORD => cmdline.net = Some(GuestNet::parse(value)?),
                guest_net::IPV6_WORD => ipv6 = Some(GuestIpv6::parse(value)?),
                _ => {}
            }
        }
        cmdline.net = cmdline.net.map(|net| GuestNet { ipv6, ..net });
        Ok(cmdline)
    }
}

fn one_of<T: Copy>(
    word: &'static str,
    value: &str,
    known: [(&'static str, T); 2],
) -> Result<T, UnknownValue> {
    let found = known.iter().find(|(name, _)| *name == value).map(|&(_, means)| means);
    found.ok_or_else(|| UnknownValue::Word {
        word,
        value: value.to_owned(),
        known: known.map(|(name, _)| name),
    })
}

/// How this machine is turned off. A restart ends every VMM of ours (QEMU runs with `-no-reboot`), so it is the answer
/// where the command line cannot be read.
pub(crate) fn off() -> Off {
    let text = std::fs::read_to_string("/proc/cmdline").ok();
    text.and_then(|text| Cmdline::parse(&text).ok()).map_or(Off::Restart, |cmdline| cmdline.off)
}

/// The guest's network, if it was given one that we understand.
pub(crate) fn net() -> Option<GuestNet> {
    let text = std::fs::read_to_string("/proc/cmdline").ok()?;
    Cmdline::parse(&text).ok()?.net
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_are_found_among_the_kernels() {
        let cmdline = Cmdline::parse(
            "quiet banger.root=disk console=ttyS0 banger.name=box banger.init=agent banger.channel=vsock \
             banger.drives=banger-root,banger-disk banger.off=restart banger.net=10.0.0.2/24,10.0.0.1,1500 \
             banger.net6=fd00::2/64,fd00::1\n",
        )
        .unwrap();
        assert_eq!(
            cmdline,
            Cmdline {
                root: Root::Disk,
                name: Some("box".into()),
                init: "agent".into(),
                channel: Channel::Vsock,
                drives: Some(vec!["banger-root".into(), "banger-disk".into()]),
                off: Off::Restart,
                net: Some(GuestNet {
                    ipv6: Some(GuestIpv6::parse("fd00::2/64,fd00::1").unwrap()),
                    ..GuestNet::parse("10.0.0.2/24,10.0.0.1,1500").unwrap()
                }),
            }
        );
    }

    #[test]
    fn without_our_words_an_overlay_boots_the_images_init_and_serves_a_port() {
        let cmdline = Cmdline::parse("quiet").unwrap();
        assert_eq!(
            cmdline,
            Cmdline {
                root: Root::Overlay,
                name: None,
                init: "/sbin/init".into(),
                channel: Channel::Serial,
                drives: None,
                off: Off::Power,
                net: None,
            }
        );
    }

    #[test]
    fn a_value_nobody_knows_is_refused_by_name() {
        for (text, expected) in [
            ("banger.root=nfs", "banger.root=nfs, which is neither overlay nor disk"),
            ("banger.channel=tcp", "banger.channel=tcp, which is neither serial nor vsock"),
            ("banger.off=", "banger.off=, which is neither power nor restart"),
        ] {
            let error = Cmdline::parse(text).unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        }
        let net = Cmdline::parse("banger.net=dhcp").unwrap_err();
        assert_eq!(net, UnknownValue::Net(NoGuestNet::Ipv4("dhcp".into())));
        let net = Cmdline::parse("banger.net6=auto").unwrap_err();
        assert_eq!(net, UnknownValue::Net(NoGuestNet::Ipv6("auto".into())));
    }
}
