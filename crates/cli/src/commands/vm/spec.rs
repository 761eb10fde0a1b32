//! The flags that say what a VM is made of, for `run` and `create`.

use banger_api::labels::Label;
use banger_api::ports::PublishedPort;
use banger_api::until::Until;
use banger_api::vm::{CreateVm, Init};
use banger_api::{Egress, ImageName, KernelName, NetworkName, Size, VmName};

use crate::completion;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The VM")]
pub(crate) struct Spec {
    /// Its name; made up if not given
    #[arg(long, value_parser = VmName::parse)]
    name: Option<VmName>,
    /// The image it boots; fetched or built if missing
    #[arg(long, value_parser = ImageName::parse, add = completion::image_names())]
    image: Option<ImageName>,
    /// What boots it: auto (the image's init if it has one), none (banger's agent), or the path of a program in the image
    #[arg(long, value_name = "INIT", default_value = "auto", hide_default_value = true, value_parser = init)]
    init: Init,
    /// The kernel it boots, if not the image's own
    #[arg(long, value_parser = KernelName::parse, add = completion::kernel_names())]
    kernel: Option<KernelName>,
    /// How many CPUs it has
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), allow_hyphen_values = true)]
    cpus: Option<u32>,
    /// Memory, such as 512M or 2G; a bare number is MiB
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<Size>,
    /// Size of its disk, such as 8G; a bare number is MiB
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    disk: Option<Size>,
    /// The network that it is in, as `banger network list` shows them; `default` if not given
    #[arg(long, value_name = "NAME", value_parser = NetworkName::parse, add = completion::network_names())]
    network: Option<NetworkName>,
    /// Let it reach the internet, and what else the host reaches, under the host's address; without root, passt must be installed
    #[arg(long)]
    nat: bool,
    /// Lead a port of this host to one of its own while it runs: [ADDRESS:]HOST:GUEST[/udp]; 127.0.0.1 if no address is given,
    /// the same port for one number, a free one that it keeps for HOST 0
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<PublishedPort>,
    /// Let it reach a service of this host that listens on 127.0.0.1 or ::1 at this TCP port, as host.banger.internal:PORT; may be
    /// given up to 64 times: --expose 5432 --expose 11434
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    expose: Vec<u16>,
    /// What it may reach beyond the host: none, all (the same as --nat), or allow: and domains, addresses and subnets, such as
    /// allow:github.com,*.debian.org,203.0.113.0/24
    #[arg(long, value_name = "POLICY", value_parser = Egress::parse)]
    egress: Option<Egress>,
    /// Write something on it, KEY=VALUE, to find it by: `banger vm list --label KEY`
    #[arg(long, value_name = "LABEL", value_parser = Label::parse)]
    label: Vec<Label>,
    /// Delete it, with its disk, running or not, when this time is over: 90m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = Until::parse, default_value = "never", hide_default_value = true)]
    ttl: Until,
    /// Stop it when nothing went on in it for this time, or `never`: commands, and connections by its ports, count;
    /// `auto_stop_after` of config.toml if not given
    #[arg(long, value_name = "TIME", value_parser = Until::parse)]
    auto_stop: Option<Until>,
}

impl Spec {
    /// Of a VM that runs its image's program at each start, or only what it is told to.
    pub(crate) fn request(self, start: bool, ephemeral: bool, entrypoint: bool) -> CreateVm {
        let Self {
            name,
            image,
            init,
            kernel,
            cpus,
            memory,
            disk,
            network,
            nat,
            egress,
            publish,
            expose,
            label,
            ttl,
            auto_stop,
        } = self;
        CreateVm {
            name,
            image,
            kernel,
            cpus,
            memory_bytes: memory,
            disk_bytes: disk,
            init,
            entrypoint,
            network,
            nat,
            published: publish,
            exposed: expose.into_iter().collect(),
            egress,
            labels: label.into_iter().map(|Label { key, value }| (key, value)).collect(),
            ttl,
            auto_stop,
            start,
            ephemeral,
        }
    }
}

fn init(text: &str) -> Result<Init, &'static str> {
    match text {
        "auto" => Ok(Init::Auto),
        "none" => Ok(Init::None),
        path if path.starts_with('/') => Ok(Init::Path(path.to_owned())),
        _ => Err("it is auto, none, or an absolute path in the image"),
    }
}
