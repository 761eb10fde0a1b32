//! What VMs, images and kernels look like: a row in a list, or every field of one.

use banger_api::image::{Image, Kernel};
use banger_api::network::Network;
use banger_api::until::Until;
use banger_api::vm::Vm;
use banger_api::{Egress, Size, labels};
use jiff::Timestamp;
use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;
use crate::table::table;

/// A thing that lists and `show` can show.
pub(crate) trait Shown: Serialize {
    const HEADINGS: &'static [&'static str];
    fn name(&self) -> &str;
    /// One cell for each heading.
    fn row(&self, now: Timestamp) -> Vec<String>;
    /// What a person wants to know, in that order; absent fields are left out.
    fn fields(&self, now: Timestamp) -> Vec<(&'static str, String)>;
}

/// A table, or names only with `--quiet`, or a JSON array.
pub(crate) fn list<T: Shown>(context: &Context, things: &[T]) -> Result<(), Failure> {
    context.print(&things, || {
        if context.quiet {
            return things.iter().map(|thing| format!("{}\n", thing.name())).collect();
        }
        let now = Timestamp::now();
        table(T::HEADINGS, things.iter().map(|thing| thing.row(now)))
    })
}

/// One field a line, or a JSON object.
pub(crate) fn show<T: Shown>(context: &Context, thing: &T) -> Result<(), Failure> {
    context.print(thing, || {
        if context.quiet {
            return format!("{}\n", thing.name());
        }
        let fields = thing.fields(Timestamp::now());
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
        fields.iter().map(|(name, value)| format!("{name:width$}{value}\n")).collect()
    })
}

/// What became of one thing: `web: running`, or its name only with `--quiet`, or its JSON.
pub(crate) fn outcome<T: Shown>(
    context: &Context,
    thing: &T,
    what: impl std::fmt::Display,
) -> Result<(), Failure> {
    context.print(thing, || match context.quiet {
        true => format!("{}\n", thing.name()),
        false => format!("{}: {what}\n", thing.name()),
    })
}

impl Shown for Vm {
    const HEADINGS: &'static [&'static str] =
        &["NAME", "STATE", "ADDRESS", "IMAGE", "CPU", "MEM", "DISK", "WORKSPACE", "AGE"];

    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.state.to_string(),
            self.address.map_or_else(|| "-".to_owned(), |address| address.to_string()),
            self.image.to_string(),
            self.cpus.to_string(),
            self.memory_bytes.to_string(),
            self.disk_bytes.to_string(),
            workspace_name(self),
            match self.expires_at {
                None => age(self.created_at, now),
                Some(at) => format!("{} ({} left)", age(self.created_at, now), age(now, at)),
            },
        ]
    }

    fn fields(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("name", self.name.to_string()),
            ("id", self.id.to_string()),
            ("state", self.state.to_string()),
            ("image", self.image.to_string()),
            ("init", self.init.clone().unwrap_or_else(|| "banger's agent".to_owned())),
            ("kernel", self.kernel.to_string()),
            ("cpus", self.cpus.to_string()),
            ("memory", self.memory_bytes.to_string()),
            ("disk", self.disk_bytes.to_string()),
        ];
        fields.extend(self.network.as_ref().map(|network| ("network", network.to_string())));
        fields.extend(self.address.map(|address| ("address", address.to_string())));
        fields.extend(self.ipv6.map(|address| ("ipv6", address.to_string())));
        if self.address.is_some() {
            let beyond = match &self.egress {
                Egress::All => "all: it reaches what the host reaches".to_owned(),
                other => other.to_string(),
            };
            fields.push(("egress", beyond));
        }
        fields.extend(ports(self).map(|ports| ("ports", ports)));
        if !self.exposed.is_empty() {
            let all = self.exposed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            fields.push(("exposed", format!("{all} of the host, at host.banger.internal")));
        }
        if let Some(workspace) = &self.workspace {
            fields.push((
                "workspace",
                format!("{} at {}", workspace.host_path, workspace.guest_path),
            ));
            fields.push(("brought", moment(workspace.prepared_at, now)));
            if !self.state.is_up() {
                fields.push(("unexported", workspace.work.to_string()));
            }
        }
        if !self.labels.is_empty() {
            fields.push(("labels", labels::shown(&self.labels)));
        }
        if let Some(at) = self.expires_at {
            let left = age(now, at);
            fields.push(("ttl", format!("deleted with its disk at {at:.0}, {left} left")));
        }
        if self.auto_stop != Until::NEVER {
            let after = self.auto_stop;
            fields.push(("auto-stop", format!("when nothing went on in it for {after}")));
        }
        if self.ephemeral {
            fields.push(("ephemeral", "deleted when the command that made it ends".to_owned()));
        }
        fields.push(("created", moment(self.created_at, now)));
        fields.extend(self.started_at.map(|at| ("started", moment(at, now))));
        fields.extend(self.boot_id.clone().map(|id| ("boot id", id)));
        fields.extend(self.vmm.clone().map(|vmm| ("vmm", vmm)));
        if let Some(problem) = &self.problem {
            fields.push(("problem", problem.to_string()));
            fields.extend(problem.remedy.clone().map(|remedy| ("try", remedy)));
        }
        fields
    }
}

/// The folder that the repository in it came from.
fn workspace_name(vm: &Vm) -> String {
    let path = vm.workspace.as_ref().map(|workspace| workspace.host_path.trim_end_matches('/'));
    let name = path.and_then(|path| path.rsplit('/').next());
    name.unwrap_or("-").to_owned()
}

/// The published ports, if there are any: `127.0.0.1:8080:80, 127.0.0.1:5353:53/udp`.
pub(crate) fn ports(vm: &Vm) -> Option<String> {
    let ports: Vec<String> = vm.published.iter().map(ToString::to_string).collect();
    (!ports.is_empty()).then(|| ports.join(", "))
}

impl Shown for Network {
    const HEADINGS: &'static [&'static str] =
        &["NAME", "SUBNET", "GATEWAY", "BRIDGE", "MTU", "PEERS", "VMS"];

    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn row(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.subnet.clone(),
            self.gateway.to_string(),
            self.bridge.clone(),
            self.mtu.to_string(),
            if self.peers { "yes" } else { "no" }.to_owned(),
            self.vms.to_string(),
        ]
    }

    fn fields(&self, _now: Timestamp) -> Vec<(&'static str, String)> {
        let peers =
            if self.peers { "its VMs reach each other" } else { "none: a VM reaches no other" };
        vec![
            ("name", self.name.to_string()),
            ("subnet", self.subnet.clone()),
            ("gateway", format!("{}, the host, where guests find their DNS server", self.gateway)),
            ("bridge", format!("{}, while a VM of it runs", self.bridge)),
            ("ipv6", self.ipv6.clone().unwrap_or_else(|| "none".to_owned())),
            ("mtu", format!("{} bytes", self.mtu)),
            ("peers", peers.to_owned()),
            ("vms", self.vms.to_string()),
        ]
    }
}

impl Shown for Image {
    const HEADINGS: &'static [&'static str] = &["NAME", "SIZE", "INIT", "USED BY", "SOURCE", "AGE"];

    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.name.to_string(),
            Size::bytes(self.size_bytes).to_string(),
            self.init.clone().unwrap_or_else(|| "-".to_owned()),
            used_by(&self.used_by),
            self.source.clone(),
            age(self.created_at, now),
        ]
    }

    fn fields(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("name", self.name.to_string()),
            ("digest", self.digest.clone()),
            ("size", Size::bytes(self.size_bytes).to_string()),
            (
                "init",
                self.init
                    .clone()
                    .unwrap_or_else(|| "none; banger's agent does its duty".to_owned()),
            ),
        ];
        let config = &self.config;
        let texts = [
            ("entrypoint", words(&config.entrypoint)),
            ("command", words(&config.cmd)),
            ("user", config.user.clone().unwrap_or_default()),
            ("folder", config.working_dir.clone().unwrap_or_default()),
            ("stop signal", config.stop_signal.clone().unwrap_or_default()),
            ("ports", config.exposed_ports.join(", ")),
        ];
        fields.extend(texts.into_iter().filter(|(_, text)| !text.is_empty()));
        fields.extend(config.env.iter().map(|line| ("env", line.clone())));
        fields.push(("source", self.source.clone()));
        fields.extend(self.manifest.clone().map(|digest| ("manifest", digest)));
        fields.push(("created", moment(self.created_at, now)));
        fields.push(("used by", used_by(&self.used_by)));
        fields
    }
}

/// Words as they could be typed.
fn words(words: &[String]) -> String {
    let plain = |word: &String| {
        !word.is_empty()
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&b))
    };
    let shown =
        words.iter().map(|word| if plain(word) { word.clone() } else { format!("{word:?}") });
    shown.collect::<Vec<_>>().join(" ")
}

impl Shown for Kernel {
    const HEADINGS: &'static [&'static str] =
        &["NAME", "DEFAULT", "RELEASE", "SIZE", "MODULES", "USED BY", "AGE"];

    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.name.to_string(),
            if self.default { "yes" } else { "-" }.to_owned(),
            self.release.clone(),
            Size::bytes(self.size_bytes).to_string(),
            self.modules.to_string(),
            used_by(&self.used_by),
            age(self.created_at, now),
        ]
    }

    fn fields(&self, now: Timestamp) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.to_string()),
            ("default", if self.default { "yes" } else { "no" }.to_owned()),
            ("release", self.release.clone()),
            ("digest", self.digest.clone()),
            ("size", Size::bytes(self.size_bytes).to_string()),
            ("modules", self.modules.to_string()),
            ("source", self.source.clone()),
            ("created", moment(self.created_at, now)),
            ("used by", used_by(&self.used_by)),
        ]
    }
}

fn used_by(names: &[String]) -> String {
    if names.is_empty() { "-".to_owned() } else { names.join(" ") }
}

/// `2026-01-31T12:00:00Z (3m ago)`
pub(crate) fn moment(at: Timestamp, now: Timestamp) -> String {
    format!("{at:.0} ({} ago)", age(at, now))
}

/// The largest whole unit; a clock that went back is no reason for a minus sign.
pub(crate) fn age(since: Timestamp, now: Timestamp) -> String {
    match now.duration_since(since).as_secs().max(0) {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_its_largest_whole_unit() {
        for (seconds, shown) in
            [(-5, "0s"), (0, "0s"), (59, "59s"), (60, "1m"), (7199, "1h"), (86400 * 9, "9d")]
        {
            let since = Timestamp::from_second(1_000_000).unwrap();
            let now = Timestamp::from_second(1_000_000 + seconds).unwrap();
            assert_eq!(age(since, now), shown);
        }
    }
}
