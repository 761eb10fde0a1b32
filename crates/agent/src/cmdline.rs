//! What the daemon tells the agent on the kernel's command line: `banger.root`, `banger.name`, `banger.init`.

/// How the root is made of the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Root {
    /// `banger-root` read-only under `banger-disk`, joined by overlayfs.
    Overlay,
    /// `banger-root` itself, writable.
    Disk,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cmdline {
    pub(crate) root: Root,
    pub(crate) name: Option<String>,
    /// A path in the image, or `agent`.
    pub(crate) init: String,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's command line says banger.root={0}, which is neither overlay nor disk")]
pub(crate) struct UnknownRoot(String);

impl Cmdline {
    pub(crate) fn parse(text: &str) -> Result<Self, UnknownRoot> {
        let mut cmdline = Self { root: Root::Overlay, name: None, init: "/sbin/init".to_owned() };
        for word in text.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("banger.root", "overlay")) => cmdline.root = Root::Overlay,
                Some(("banger.root", "disk")) => cmdline.root = Root::Disk,
                Some(("banger.root", other)) => return Err(UnknownRoot(other.to_owned())),
                Some(("banger.name", name)) if !name.is_empty() => {
                    cmdline.name = Some(name.to_owned())
                }
                Some(("banger.init", init)) if !init.is_empty() => cmdline.init = init.to_owned(),
                _ => {}
            }
        }
        Ok(cmdline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_are_found_among_the_kernels() {
        let cmdline = Cmdline::parse(
            "quiet banger.root=disk console=ttyS0 banger.name=box banger.init=agent\n",
        )
        .unwrap();
        assert_eq!(
            cmdline,
            Cmdline { root: Root::Disk, name: Some("box".into()), init: "agent".into() }
        );
    }

    #[test]
    fn without_our_words_an_overlay_boots_the_images_init() {
        let cmdline = Cmdline::parse("quiet").unwrap();
        assert_eq!(cmdline, Cmdline { root: Root::Overlay, name: None, init: "/sbin/init".into() });
    }

    #[test]
    fn a_root_nobody_knows_is_refused_by_name() {
        assert_eq!(Cmdline::parse("banger.root=nfs"), Err(UnknownRoot("nfs".into())));
    }
}
