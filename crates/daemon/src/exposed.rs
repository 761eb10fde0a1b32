//! Services of the host that guests reach: what comes to the gateway's port 42070, by the rules from the ports that are exposed
//! to a VM, goes on to the port that the guest asked for, on the host's loopback.
//!
//! ```text
//! guest ── gateway:5432 ── rules: is it exposed to this one? ── gateway:42070 ── is it, by its record? ── 127.0.0.1:5432
//! ```
//! The sockets are the daemon's own and end with its process; which ports it are is in the database and in the VM's guard.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_api::ports::MOST_EXPOSED;
use banger_api::vm::State;
use banger_api::{Code, Problem};
use banger_forward::MOST_CONNECTIONS;
use banger_host::Network;
use banger_host::root::{DNS_PORT, EXPOSE_PORT};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::daemon::Daemon;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How long a service of the host may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long to wait when the process has no descriptors left: a connection may end meanwhile.
const WITHOUT_DESCRIPTORS: Duration = Duration::from_secs(1);

/// Where guests come to, and who has.
#[derive(Debug, Default)]
pub struct Exposures {
    /// By the gateway's address: what ends the listener there, with all connections.
    listeners: Mutex<HashMap<Ipv4Addr, CancellationToken>>,
    guests: Mutex<HashMap<Ipv4Addr, Guest>>,
}

/// Whoever has this address now.
#[derive(Debug, Clone)]
struct Guest {
    /// What ends its connections.
    ends: CancellationToken,
    /// One for each connection.
    room: Arc<Semaphore>,
}

impl Exposures {
    /// The network is no more.
    pub(crate) fn end(&self, gateway: Ipv4Addr) {
        if let Some(stop) = locked(&self.listeners).remove(&gateway) {
            stop.cancel();
        }
    }

    /// The VM at this address has ended, and its record says so.
    pub(crate) fn end_of(&self, guest: Ipv4Addr) {
        if let Some(guest) = locked(&self.guests).remove(&guest) {
            guest.ends.cancel();
        }
    }

    fn guest(&self, address: Ipv4Addr) -> Guest {
        let new = || Guest {
            ends: CancellationToken::new(),
            room: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
        };
        locked(&self.guests).entry(address).or_insert_with(new).clone()
    }
}

// A panic elsewhere leaves a map whole: each change is made by the standard library.
fn locked<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses ports that cannot be exposed.
pub(crate) fn judge(ports: &BTreeSet<u16>) -> Result<(), Problem> {
    let count = ports.len();
    if count > MOST_EXPOSED {
        let message = format!("--expose: {count} ports are more than {MOST_EXPOSED}");
        return Err(Problem::new(Code::Invalid, message));
    }
    for port in ports {
        let why = match *port {
            0 => "no service has it",
            53 => "there the gateway answers guests' questions for names",
            EXPOSE_PORT | DNS_PORT => "it is banger's own",
            _ => continue,
        };
        let message = format!("--expose: port {port} cannot be exposed");
        return Err(Problem::new(Code::Invalid, message).because(why));
    }
    Ok(())
}

impl Daemon {
    /// Takes guests of this network to what is exposed to them from now on, if that is not so already. In a runtime.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn serve_exposed(self: &Arc<Self>, network: &Network) -> Result<(), Problem> {
        let mut listeners = locked(&self.exposures.listeners);
        if listeners.contains_key(&network.gateway) {
            return Ok(());
        }
        let address = SocketAddrV4::new(network.gateway, EXPOSE_PORT);
        let listener = open(address).map_err(|error| {
            Problem::new(Code::Internal, format!("cannot listen on {address}")).cause(&error)
        })?;
        let stop = CancellationToken::new();
        listeners.insert(network.gateway, stop.clone());
        let daemon = Arc::clone(self);
        drop(tokio::spawn(async move {
            stop.run_until_cancelled(daemon.accept_exposed(listener)).await;
        }));
        Ok(())
    }

    async fn accept_exposed(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                // One is looked at after the other: whoever comes often waits for himself.
                Ok((connection, from)) => match self.admit(&connection, from.ip()).await {
                    Some((guest, port, permit)) => drop(connections.spawn(async move {
                        guest.ends.run_until_cancelled(carry(connection, port)).await;
                        drop(permit);
                    })),
                    None => banger_forward::reset(connection),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of a guest's");
                    // Without descriptors the next attempt would fail too, until a connection has ended.
                    drop(timeout(WITHOUT_DESCRIPTORS, next_end(&mut connections)).await);
                }
            }
        }
    }

    /// Whose connection it is and to which port, if that is exposed to it and it has not too many.
    async fn admit(
        self: &Arc<Self>,
        connection: &TcpStream,
        from: IpAddr,
    ) -> Option<(Guest, u16, OwnedSemaphorePermit)> {
        let IpAddr::V4(address) = from else { return None };
        // Nobody's who came to this port by itself.
        let port = sockopt::ip_original_dst(connection).ok()?.port();
        // Before the record is read: a VM that ends later ends this.
        let guest = self.exposures.guest(address);
        let vm = self.blocking(move |daemon| daemon.store.vm_at(address)).await.ok()?.ok()??;
        let runs = vm.state.is_up() || matches!(vm.state, State::Starting | State::Stopping);
        let room = Arc::clone(&guest.room).try_acquire_owned();
        match room {
            Ok(permit) if runs && vm.exposed.contains(&port) => Some((guest, port, permit)),
            _ => {
                tracing::debug!(vm = %vm.name, port, "it may not reach this, or has too many connections");
                None
            }
        }
    }
}

/// Takes a guest to a service of the host, to the end of both directions. It is reset where there is none.
async fn carry(connection: TcpStream, port: u16) {
    match service(port).await {
        Ok(service) => banger_forward::join(connection, service).await,
        Err(error) => {
            tracing::debug!(port, %error, "no service of the host is there");
            banger_forward::reset(connection);
        }
    }
}

/// The end of a task; never, if there is none.
async fn next_end(tasks: &mut JoinSet<()>) {
    if tasks.join_next().await.is_none() {
        std::future::pending().await
    }
}

/// A connection to whoever listens at this port of the host's loopback.
async fn service(port: u16) -> io::Result<TcpStream> {
    let connect =
        |address: IpAddr| timeout(CONNECT, TcpStream::connect(SocketAddr::new(address, port)));
    match connect(Ipv4Addr::LOCALHOST.into()).await? {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            connect(Ipv6Addr::LOCALHOST.into()).await?
        }
        connected => connected,
    }
}

/// Listens at an address that the host need not have yet (`IP_FREEBIND`, ip(7)): a bridge comes with its first VM.
fn open(address: SocketAddrV4) -> io::Result<TcpListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_ip_freebind(&socket, true)?;
    // The next daemon listens while connections of the last one are in TIME_WAIT.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::V4(address))?;
    listen(&socket, BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_no_service_can_have_are_refused_by_name() {
        judge(&[1, 52, 54, 65_535].into()).unwrap();
        judge(&(1000..1064).collect()).unwrap();
        let refused = |ports: BTreeSet<u16>| judge(&ports).unwrap_err().message;
        assert!(refused((1000..1065).collect()).contains("65 ports are more than 64"));
        for port in [0, 53, DNS_PORT, EXPOSE_PORT] {
            assert!(refused([80, port].into()).contains(&format!("port {port} cannot")), "{port}");
        }
    }

    #[tokio::test]
    async fn a_service_is_found_on_either_loopback_and_on_no_other_address() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let at = listener.local_addr().unwrap();
            let (found, accepted) = tokio::join!(service(at.port()), listener.accept());
            assert_eq!(found.unwrap().peer_addr().unwrap(), at);
            accepted.unwrap();
        }
        let listener = TcpListener::bind("127.0.0.9:0").await.unwrap();
        let error = service(listener.local_addr().unwrap().port()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn who_has_an_address_next_has_none_of_the_last_ones_connections() {
        let exposures = Exposures::default();
        let address = Ipv4Addr::new(10, 213, 0, 2);
        let (first, also_first) = (exposures.guest(address), exposures.guest(address));
        exposures.end_of(address);
        assert!(first.ends.is_cancelled() && also_first.ends.is_cancelled());
        assert!(!exposures.guest(address).ends.is_cancelled());
    }
}
