//! `banger vm set`

use banger_api::Egress;
use banger_api::Size;
use banger_api::ids::LabelKey;
use banger_api::labels::{self, Label};
use banger_api::ports::{HostPort, PublishedPort};
use banger_api::until::Until;
use banger_api::vm::{SetVm, Vm};
use clap::{ArgGroup, ValueEnum};
use http::Method;

use crate::commands::targets::{self, vm_path};
use crate::context::Context;
use crate::failure::Failure;
use crate::{completion, operation, render};

/// Change VMs, at once if they run
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["nat", "egress", "publish", "unpublish", "label", "unlabel", "cpus", "memory", "disk", "ttl", "auto_stop"]))]
#[command(after_help = "Examples:
  banger vm set web --nat on            it reaches the internet from now on
  banger vm set web db --nat off
  banger vm set web --egress allow:github.com,203.0.113.0/24   only that
  banger vm set web --publish 8080:80   127.0.0.1:8080 leads to its port 80 from now on
  banger vm set web --unpublish 8080
  banger vm set web --cpus 4 --memory 4G --disk 20G    from its next start on
  banger vm set web --ttl 2h            deleted two hours from now
  banger vm set web --auto-stop never
  banger vm set web db --label team=web --unlabel ci")]
pub(crate) struct Args {
    /// Names or ids, or the beginnings of some
    #[arg(value_name = "VM", required = true, add = completion::vm_names())]
    targets: Vec<String>,
    /// Whether it reaches what the host reaches, under the host's address
    #[arg(long)]
    nat: Option<OnOff>,
    /// What it may reach beyond the host: none, all, or allow: and domains, addresses and subnets. Connections that it does not
    /// allow end
    #[arg(long, value_name = "POLICY", value_parser = Egress::parse)]
    egress: Option<Egress>,
    /// Lead a port of this host to one of its own: [ADDRESS:]HOST:GUEST[/udp]
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<PublishedPort>,
    /// A port of this host, PORT[/udp], that is to lead to it no longer
    #[arg(long, value_name = "PORT")]
    unpublish: Vec<HostPort>,
    /// How many CPUs they have from their next start on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), allow_hyphen_values = true)]
    cpus: Option<u32>,
    /// Their memory from their next start on, such as 512M or 2G; a bare number is MiB
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<Size>,
    /// The size of their disks from their next start on, such as 20G; a disk only grows
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    disk: Option<Size>,
    /// Delete them, with their disks, running or not, when this time is over from now on; or `never`
    #[arg(long, value_name = "TIME", value_parser = Until::parse)]
    ttl: Option<Until>,
    /// Stop them when nothing went on in them for this time, or `never`
    #[arg(long, value_name = "TIME", value_parser = Until::parse)]
    auto_stop: Option<Until>,
    /// Write KEY=VALUE on them; what a key had before is replaced
    #[arg(long, value_name = "LABEL", value_parser = Label::parse)]
    label: Vec<Label>,
    /// The key of a label that they are to have no longer
    #[arg(long, value_name = "KEY", value_parser = LabelKey::parse)]
    unlabel: Vec<LabelKey>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnOff {
    On,
    Off,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let labels = args.label.into_iter().map(|Label { key, value }| (key, value)).collect();
    let request = SetVm {
        nat: args.nat.map(|nat| matches!(nat, OnOff::On)),
        egress: args.egress,
        publish: args.publish,
        unpublish: args.unpublish,
        cpus: args.cpus,
        memory_bytes: args.memory,
        disk_bytes: args.disk,
        ttl: args.ttl,
        auto_stop: args.auto_stop,
        label: labels,
        unlabel: args.unlabel,
    };
    let client = context.client().await?;
    targets::each(context, &args.targets, async |target, subject| {
        let path = vm_path(target)?;
        let vm: Vm =
            operation::follow(context, &client, subject, Method::PATCH, &path, Some(&request))
                .await?;
        render::outcome(context, &vm, changed(&request, &vm).join(", "))
    })
    .await
}

/// What was asked for, as it is now.
fn changed(request: &SetVm, vm: &Vm) -> Vec<String> {
    let mut changed = Vec::new();
    if request.egress.is_some() {
        changed.push(format!("egress {}", vm.egress));
    } else if request.nat.is_some() {
        changed.push(if vm.nat { "nat on" } else { "nat off" }.to_owned());
    }
    if !request.publish.is_empty() || !request.unpublish.is_empty() {
        changed.push(match render::ports(vm) {
            Some(ports) => format!("publishes {ports}"),
            None => "publishes nothing".to_owned(),
        });
    }
    changed.extend(request.cpus.map(|_| format!("cpus {}", vm.cpus)));
    changed.extend(request.memory_bytes.map(|_| format!("memory {}", vm.memory_bytes)));
    changed.extend(request.disk_bytes.map(|_| format!("disk {}", vm.disk_bytes)));
    changed.extend(request.ttl.map(|_| match vm.expires_at {
        Some(at) => format!("deleted at {at:.0}"),
        None => "never deleted by itself".to_owned(),
    }));
    changed.extend(request.auto_stop.map(|_| format!("auto-stop {}", vm.auto_stop)));
    if !request.label.is_empty() || !request.unlabel.is_empty() {
        changed.push(match labels::shown(&vm.labels).as_str() {
            "" => "no labels".to_owned(),
            labels => format!("labels {labels}"),
        });
    }
    changed
}
