//! Published ports: sockets of the host's that lead to a VM's services while it runs, through its agent.
//!
//! They are the daemon's own and end with its process, so they are no claims: there is nothing to find and to release after
//! a crash. Which they are is in the database; the next daemon opens them again for the VMs that it adopts.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;

use banger_api::ports::{
    GuestPort, HostPort, Listening, Ports, Protocol, Published, PublishedPort,
};
use banger_api::vm::State;
use banger_api::{Code, Problem, VmId};
use banger_forward::{Listener, Transport};
use banger_store::VmRecord;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;

use super::activity::Counted;
use super::slot::Slot;
use crate::agent;
use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

/// How often another port is asked for when a free one is wanted, and the one that the kernel gives is another VM's.
const DRAWS: usize = 20;

/// A published port of a VM that runs.
#[derive(Debug)]
pub struct OpenPort {
    port: PublishedPort,
    /// The task that has the socket, or why there is none.
    serving: Result<JoinHandle<()>, Problem>,
}

/// Ports that are bound and not served yet: who comes waits in the kernel.
#[derive(Debug, Default)]
pub(super) struct Bound(Vec<(PublishedPort, Listener)>);

impl Daemon {
    /// The ports of a new VM, those that are to be free chosen. If it is to start, they are free.
    pub(super) fn ports_for_new(
        &self,
        ports: &[PublishedPort],
        starts: bool,
    ) -> Result<Vec<PublishedPort>, Problem> {
        apart(ports)?;
        let ports = self.with_numbers(ports)?;
        if starts {
            self.bind_ports(&ports)?;
        }
        Ok(ports)
    }

    /// The same, with a free port where a request names none. No VM has it, running or not.
    fn with_numbers(&self, ports: &[PublishedPort]) -> Result<Vec<PublishedPort>, Problem> {
        let vms = self.store.vms().map_err(problems::store)?;
        let mut taken: Vec<PublishedPort> = vms.into_iter().flat_map(|vm| vm.published).collect();
        taken.extend(ports);
        let mut numbered = Vec::new();
        for port in ports {
            let port = if port.host == 0 { self.free_port(*port, &taken)? } else { *port };
            taken.push(port);
            numbered.push(port);
        }
        Ok(numbered)
    }

    /// As it comes from the kernel.
    fn free_port(
        &self,
        port: PublishedPort,
        taken: &[PublishedPort],
    ) -> Result<PublishedPort, Problem> {
        // Kept, so that another one comes next.
        let mut drawn = Vec::new();
        for _ in 0..DRAWS {
            let draw = Listener::bind(port.at(), transport(port)).and_then(|listener| {
                let host = listener.address()?.port();
                Ok((listener, PublishedPort { host, ..port }))
            });
            let (listener, port) = draw.map_err(|error| self.cannot_bind(port, &error))?;
            if !taken.iter().any(|other| other.meets(port)) {
                return Ok(port);
            }
            drawn.push(listener);
        }
        Err(Problem::new(Code::Conflict, "found no free port on this host").remedy("name one"))
    }

    /// Binds all or none.
    ///
    /// # Errors
    /// Which is taken, and by whom.
    pub(super) fn bind_ports(&self, ports: &[PublishedPort]) -> Result<Bound, Problem> {
        let bind = |port: &PublishedPort| {
            let bound = Listener::bind(port.at(), transport(*port));
            bound.map(|bound| (*port, bound)).map_err(|error| self.cannot_bind(*port, &error))
        };
        ports.iter().map(bind).collect::<Result<_, _>>().map(Bound)
    }

    /// Passes on what comes to these ports from now on.
    pub(super) fn serve_ports(self: &Arc<Self>, id: &VmId, slot: &Slot, bound: Bound) {
        let serve = |(port, listener): (PublishedPort, Listener)| {
            let (daemon, id, limit) = (Arc::clone(self), id.clone(), Arc::clone(&slot.connections));
            let dial = move || {
                let (daemon, id) = (Arc::clone(&daemon), id.clone());
                async move {
                    let stream = daemon.guest_port(&id, port.to()).await;
                    stream
                        .inspect_err(|problem| tracing::debug!(vm = %id, %port, %problem, "a connection leads nowhere"))
                        .ok()
                }
            };
            let serving = tokio::spawn(async move {
                if let Err(error) = listener.serve(limit, dial).await {
                    tracing::error!(%port, %error, "the published port has failed");
                }
            });
            OpenPort { port, serving: Ok(serving) }
        };
        slot.ports().extend(bound.0.into_iter().map(serve));
    }

    /// Opens the ports of a VM that runs already, each by itself: one that cannot be had is shown as such.
    pub(crate) fn open_again(
        self: &Arc<Self>,
        vm: &VmRecord,
        ports: &[PublishedPort],
        slot: &Slot,
        operation: &Operation,
    ) {
        for port in ports {
            match self.bind_ports(&[*port]) {
                Ok(bound) => self.serve_ports(&vm.id, slot, bound),
                Err(problem) => {
                    operation.note(format!("{} does not publish {port}: {problem}", vm.name));
                    slot.ports().push(OpenPort { port: *port, serving: Err(problem) });
                }
            }
        }
    }

    /// Takes ports back and publishes others; all of it, or nothing.
    pub(super) async fn set_ports(
        self: &Arc<Self>,
        vm: &VmRecord,
        slot: &Slot,
        unpublish: &[HostPort],
        publish: &[PublishedPort],
        operation: &Operation,
    ) -> Result<(), Problem> {
        let mut gone = Vec::new();
        for wanted in unpublish {
            let before = gone.len();
            let is = |port: &&PublishedPort| {
                port.host == wanted.port && port.protocol == wanted.protocol
            };
            gone.extend(vm.published.iter().filter(is).copied());
            if gone.len() == before {
                let message = format!("VM {} does not publish port {wanted}", vm.name);
                return Err(Problem::new(Code::NotFound, message)
                    .remedy(format!("`banger vm show {}` shows those it does", vm.name)));
            }
        }
        let stay = vm.published.iter().filter(|port| !gone.contains(port)).copied();
        apart(&stay.chain(publish.iter().copied()).collect::<Vec<_>>())?;
        let new = self.with_numbers(publish)?;
        if !vm.state.is_up() {
            return self.store.publish(&vm.id, &gone, &new).map_err(problems::store);
        }
        slot.close_ports(|port| gone.contains(&port)).await;
        let bound = self.bind_ports(&new).and_then(|bound| {
            self.store.publish(&vm.id, &gone, &new).map_err(problems::store)?;
            Ok(bound)
        });
        match bound {
            Ok(bound) => self.serve_ports(&vm.id, slot, bound),
            Err(problem) => {
                self.open_again(vm, &gone, slot, operation);
                return Err(problem);
            }
        }
        Ok(())
    }

    /// A stream to a port of a guest's that runs.
    async fn guest_port(
        &self,
        id: &VmId,
        port: GuestPort,
    ) -> Result<Counted<TokioIo<Upgraded>>, Problem> {
        let busy = self.slots.of(id).activity.begin();
        let channel = self.channel(&self.record(id)?).await?;
        Ok(Counted::new(agent::guest_port(&channel, port).await?, busy))
    }

    /// What the guest listens on, and which of it is published.
    ///
    /// # Errors
    /// When it does not run, or its agent does not answer.
    pub(crate) async fn ports(&self, vm: &VmRecord) -> Result<Ports, Problem> {
        let channel = self.channel(vm).await?;
        let listening = agent::ports(&channel).await?;
        let addresses = self.store.running_addresses().map_err(problems::store)?;
        let address = addresses.into_iter().find(|(name, ..)| *name == vm.name);
        let address = address.map(|(_, address, _)| IpAddr::V4(address));
        let published = self.slots.of(&vm.id).published();
        let name = format!("{}.{}", vm.name, self.config.network.zone);
        let shown = |socket: Listening| {
            let reached_at = host_of(&socket, address, &published, &name);
            let url = socket.speaks.zip(reached_at.as_ref());
            let url = url.map(|(scheme, at)| format!("{scheme}://{at}"));
            Listening { reached_at, url, ..socket }
        };
        Ok(Ports { listening: listening.into_iter().map(shown).collect(), published })
    }

    fn cannot_bind(&self, port: PublishedPort, error: &std::io::Error) -> Problem {
        let at = format!("{}{}", port.at(), port.protocol.suffix());
        match error.kind() {
            ErrorKind::AddrInUse => {
                let problem = Problem::new(Code::Conflict, format!("port {at} of this host is taken"));
                let problem = match self.publisher(port) {
                    Some(name) => problem.because(format!("VM {name} publishes it")),
                    None => problem.because("another program listens there"),
                };
                problem.remedy(format!("name another, or 0 for one that is free: `-p 0:{}`", port.to()))
            }
            ErrorKind::PermissionDenied => {
                Problem::new(Code::Missing, format!("port {at} of this host may not be listened on"))
                    .because("ports below 1024 are for root, as long as the host does not say otherwise")
                    .remedy(format!(
                        "name a higher one, such as `-p 8080:{}`; or as root, for all users of this host: `sysctl \
                         net.ipv4.ip_unprivileged_port_start={}`",
                        port.to(),
                        port.host
                    ))
            }
            ErrorKind::AddrNotAvailable => {
                Problem::new(Code::Invalid, format!("cannot listen on {at}"))
                    .because(format!("this host has no address {}", port.address))
                    .remedy("name one that it has, or 0.0.0.0 for all")
            }
            _ => Problem::new(Code::Internal, format!("cannot listen on {at}")).cause(error),
        }
    }

    /// The running VM that has this port.
    fn publisher(&self, port: PublishedPort) -> Option<String> {
        let vms = self.store.vms().unwrap_or_default();
        let runs = |vm: &&VmRecord| {
            vm.state.is_up() || matches!(vm.state, State::Starting | State::Stopping)
        };
        let mut running = vms.iter().filter(runs);
        let found = running.find(|vm| vm.published.iter().any(|other| other.meets(port)));
        found.map(|vm| vm.name.to_string())
    }
}

impl Slot {
    /// What of the VM's ports is open, and what is not.
    fn published(&self) -> Vec<Published> {
        let ports = self.ports();
        let shown = |open: &OpenPort| Published {
            port: open.port,
            problem: open.serving.as_ref().err().cloned(),
        };
        ports.iter().map(shown).collect()
    }

    /// Closes those ports, with all connections that came by them; they can be bound again when this returns.
    pub(super) async fn close_ports(&self, which: impl Fn(PublishedPort) -> bool) {
        let closed: Vec<OpenPort> = self.ports().extract_if(.., |open| which(open.port)).collect();
        for serving in closed.into_iter().filter_map(|open| open.serving.ok()) {
            serving.abort();
            // It was told to end.
            drop(serving.await);
        }
    }
}

fn transport(port: PublishedPort) -> Transport {
    match port.protocol {
        Protocol::Tcp => Transport::Connections,
        Protocol::Udp => Transport::Datagrams,
    }
}

/// No two of them are one port of the host's.
fn apart(ports: &[PublishedPort]) -> Result<(), Problem> {
    for (at, port) in ports.iter().enumerate() {
        if let Some(other) = ports[..at].iter().find(|other| other.meets(*port)) {
            let message = format!("{other} and {port} need the same port of the host");
            return Err(
                Problem::new(Code::Invalid, message).remedy("publish one of them elsewhere")
            );
        }
    }
    Ok(())
}

/// Where the host finds a service, if it does: by the VM's name with its zone, else by a published port.
fn host_of(
    socket: &Listening,
    vm: Option<IpAddr>,
    published: &[Published],
    name: &str,
) -> Option<String> {
    if vm.is_some_and(|vm| socket.address == vm || socket.address.is_unspecified()) {
        return Some(format!("{name}:{}", socket.port));
    }
    let to = GuestPort { protocol: socket.protocol, port: socket.port };
    let found = published.iter().find(|open| open.problem.is_none() && open.port.to() == to)?;
    let at = found.port.at();
    Some(match at.ip() {
        ip if ip.is_unspecified() => format!("localhost:{}", at.port()),
        _ => at.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use banger_api::ports::Scheme;

    use super::*;

    fn host(address: &str, vm: Option<&str>, published: &[&str]) -> Option<String> {
        let socket = Listening {
            protocol: Protocol::Tcp,
            address: address.parse().unwrap(),
            port: 80,
            process: None,
            speaks: Some(Scheme::Http),
            reached_at: None,
            url: None,
        };
        let published = published
            .iter()
            .map(|text| Published { port: PublishedPort::parse(text).unwrap(), problem: None });
        let vm = vm.map(|address| address.parse().unwrap());
        host_of(&socket, vm, &published.collect::<Vec<_>>(), "web.vm")
    }

    #[test]
    fn a_service_is_found_by_the_vms_name_where_it_listens_there_else_where_it_is_published() {
        let vm = Some("10.213.0.2");
        assert_eq!(host("0.0.0.0", vm, &[]).as_deref(), Some("web.vm:80"));
        assert_eq!(host("::", vm, &["8080:80"]).as_deref(), Some("web.vm:80"));
        assert_eq!(host("10.213.0.2", vm, &[]).as_deref(), Some("web.vm:80"));
        assert_eq!(host("127.0.0.1", vm, &[]), None);
        assert_eq!(host("127.0.0.1", vm, &["81:81", "8080:80"]).as_deref(), Some("127.0.0.1:8080"));
        assert_eq!(host("0.0.0.0", None, &["0.0.0.0:8080:80"]).as_deref(), Some("localhost:8080"));
        assert_eq!(host("0.0.0.0", None, &["8080:80/udp"]), None);
    }

    #[test]
    fn one_port_of_the_host_leads_to_one_of_the_guests() {
        let check = |texts: &[&str]| {
            let ports = texts.iter().map(|text| PublishedPort::parse(text).unwrap());
            apart(&ports.collect::<Vec<_>>()).map_err(|problem| problem.message)
        };
        check(&["8080:80", "8081:80", "8080:80/udp", "127.0.0.2:8080:80", "0:1", "0:1"]).unwrap();
        assert_eq!(
            check(&["8080:80", "0.0.0.0:8080:81"]).unwrap_err(),
            "127.0.0.1:8080:80 and 0.0.0.0:8080:81 need the same port of the host"
        );
    }
}
