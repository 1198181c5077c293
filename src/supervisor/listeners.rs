//! The sockets behind the doors: for each door one per worker, all opened here.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use super::{Door, Error, Settings, Transport};
use crate::sys::{socket, udp};
use crate::{limits, sys, tcp, worker};

// One socket of each door goes to a worker in one message; a rendezvous has three, and some between the workers.
const _: () = assert!(
    limits::ADDRESSES_MAX
        + limits::EXPOSED_MAX
        + 3 * limits::RENDEZVOUS_ADDRESSES_MAX
        + 1
        + limits::RENDEZVOUS_WORKERS_MAX
        <= sys::control::DESCRIPTORS_MAX
);

pub(super) struct Listeners {
    pub(super) doors: Vec<Door>,
    /// Everything that leads here: a socket on `[::]` may take IPv4 as well.
    pub(super) own_addresses: Vec<SocketAddr>,
    /// One socket of each door for each worker.
    pub(super) of_workers: Vec<Vec<OwnedFd>>,
}

impl Listeners {
    /// Opens the sockets, or takes those that systemd has opened for a gateway.
    pub(super) fn open(settings: &Settings) -> Result<Self, Error> {
        let (reuse, workers) = (settings.reuse, settings.workers);
        let mut listeners = Self {
            doors: Vec::new(),
            own_addresses: Vec::new(),
            of_workers: (0..workers).map(|_| Vec::new()).collect(),
        };
        let activated = match settings.worker {
            worker::Settings::Gateway(_) | worker::Settings::Rendezvous { gateway: Some(_), .. } => activated()?,
            // Nothing tells which service they would be for.
            worker::Settings::Tunnel(_) | worker::Settings::Rendezvous { gateway: None, .. } => BTreeMap::new(),
        };
        let is_activated = !activated.is_empty();
        for (address, sockets) in activated {
            listeners.hand_out(address, sockets)?;
            listeners.doors.push(Door::Tcp(address));
        }
        for &door in &settings.doors {
            let refused = |error| Error::Bind { door, error };
            match door {
                Door::Tcp(_) if is_activated => {}
                Door::Tcp(address) => {
                    let sockets = open(address, reuse, workers).map_err(refused)?;
                    let bound = socket::local_address(sockets[0].as_fd())?;
                    listeners.hand_out(bound, sockets)?;
                    listeners.doors.push(Door::Tcp(bound));
                }
                Door::Udp(address) => {
                    let sockets = open_udp(address, reuse, workers).map_err(refused)?;
                    listeners.doors.push(Door::Udp(socket::local_address(sockets[0].as_fd())?));
                    listeners.deal(&sockets)?;
                }
                Door::Exposed(Transport::Tcp, address, provided) => {
                    let sockets = open(address, false, workers).map_err(refused)?;
                    let bound = socket::local_address(sockets[0].as_fd())?;
                    listeners.hand_out(bound, sockets)?;
                    listeners.doors.push(Door::Exposed(Transport::Tcp, bound, provided));
                }
                Door::Exposed(Transport::Udp, address, provided) => {
                    // One for all workers: which of them has the provider is not known yet.
                    let sockets = open_udp(address, false, 1).map_err(refused)?;
                    let bound = socket::local_address(sockets[0].as_fd())?;
                    listeners.doors.push(Door::Exposed(Transport::Udp, bound, provided));
                    listeners.deal(&sockets)?;
                }
                Door::Rendezvous(address) => {
                    let [datagrams, questions, connections] = open_rendezvous(address, workers).map_err(refused)?;
                    let bound = socket::local_address(connections[0].as_fd())?;
                    listeners.deal(&datagrams)?;
                    listeners.deal(&questions)?;
                    listeners.hand_out(bound, connections)?;
                    listeners.doors.push(Door::Rendezvous(bound));
                }
            }
        }
        if settings.doors.iter().any(|door| matches!(door, Door::Rendezvous(_))) && workers > 1 {
            listeners.connect_workers()?;
        }
        Ok(listeners)
    }

    /// Gives each worker an end from which it takes what others pass to it, and one to each worker. They stay with their number,
    /// as listening sockets do. What finds no room does not wait.
    fn connect_workers(&mut self) -> io::Result<()> {
        let mut outboxes = Vec::new();
        for sockets in &mut self.of_workers {
            let (inbox, outbox) = sys::control::pair()?;
            socket::set_nonblocking(inbox.as_fd())?;
            socket::set_nonblocking(outbox.as_fd())?;
            sockets.push(inbox);
            outboxes.push(outbox);
        }
        for sockets in &mut self.of_workers {
            for outbox in &outboxes {
                sockets.push(outbox.try_clone()?);
            }
        }
        Ok(())
    }

    /// Prepares the listening sockets of one address, and deals them to the workers.
    fn hand_out(&mut self, address: SocketAddr, sockets: Vec<OwnedFd>) -> io::Result<()> {
        for socket in &sockets {
            // What is accepted inherits all of this.
            socket::set_nonblocking(socket.as_fd())?;
            socket::prepare(socket.as_fd())?;
            socket::keep_alive(socket.as_fd(), tcp::LIVENESS)?;
        }
        self.deal(&sockets)?;
        self.own_addresses.push(SocketAddr::new(address.ip().to_canonical(), address.port()));
        if address.ip().is_unspecified() && socket::takes_ipv4(sockets[0].as_fd()) {
            self.own_addresses.push(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()));
        }
        Ok(())
    }

    /// Fewer sockets than workers are shared: less even, and just as safe.
    fn deal(&mut self, sockets: &[OwnedFd]) -> io::Result<()> {
        let workers = self.of_workers.len();
        for deal in 0..workers.max(sockets.len()) {
            self.of_workers[deal % workers].push(sockets[deal % sockets.len()].try_clone()?);
        }
        Ok(())
    }
}

/// One listening socket for each worker on the same address.
fn open(address: SocketAddr, reuse: bool, workers: usize) -> io::Result<Vec<OwnedFd>> {
    let shared = reuse || workers > 1;
    if shared && !reuse && address.port() != 0 {
        // Our own sockets must share the port among themselves, and with nobody else's: see whether it is free.
        socket::try_bind(address)?;
    }
    let first = socket::listen(address, shared, limits::BACKLOG)?;
    let bound = socket::local_address(first.as_fd())?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(socket::listen(bound, true, limits::BACKLOG)?);
    }
    Ok(sockets)
}

/// Sockets for datagrams, for datagrams to the next port, and for connections: of each one for each worker. Datagrams go to the
/// worker that their first byte tells.
fn open_rendezvous(address: SocketAddr, workers: usize) -> io::Result<[Vec<OwnedFd>; 3]> {
    let mut opened = open_port_pair(address, workers);
    for _ in 1..limits::PORT_PAIR_TRIES {
        // The next port was taken: another free one has another next.
        if address.port() == 0 && opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
            opened = open_port_pair(address, workers);
        }
    }
    opened
}

fn open_port_pair(address: SocketAddr, workers: usize) -> io::Result<[Vec<OwnedFd>; 3]> {
    let datagrams = open_udp(address, false, workers)?;
    let bound = socket::local_address(datagrams[0].as_fd())?;
    let next = bound.port().checked_add(1).ok_or(io::ErrorKind::AddrInUse)?;
    let questions = open_udp(SocketAddr::new(bound.ip(), next), false, workers)?;
    for sockets in [&datagrams, &questions].into_iter().filter(|sockets| sockets.len() > 1) {
        udp::steer_by_first_byte(sockets[0].as_fd(), u32::try_from(workers).unwrap_or(u32::MAX))?;
    }
    Ok([datagrams, questions, open(bound, false, workers)?])
}

/// One socket for each worker on the same address.
fn open_udp(address: SocketAddr, reuse: bool, workers: usize) -> io::Result<Vec<OwnedFd>> {
    let shared = reuse || workers > 1;
    if shared && !reuse && address.port() != 0 {
        drop(bind_when_free(address, false)?); // as for listeners: it is shared with nobody else's
    }
    let first = bind_when_free(address, shared)?;
    let bound = socket::local_address(first.as_fd())?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(udp::bind(bound, true)?);
    }
    for socket in &sockets {
        udp::enlarge_buffers(socket.as_fd());
    }
    Ok(sockets)
}

/// A daemon that has just ended leaves its port taken for some ms, since its ring closes sockets in its own time; and UDP has
/// nothing like the TIME_WAIT that would tell such a port from one that is really taken.
#[expect(clippy::disallowed_methods, reason = "nothing else runs yet")]
fn bind_when_free(address: SocketAddr, reuse: bool) -> io::Result<OwnedFd> {
    for _ in 1..limits::PORT_TRIES {
        match udp::bind(address, reuse) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => std::thread::sleep(limits::PORT_PAUSE),
            bound_or_refused => return bound_or_refused,
        }
    }
    udp::bind(address, reuse)
}

/// Sockets that systemd has opened for us (sd_listen_fds(3)), by address. We open none beside them: the port is root's, and
/// a socket of another user cannot join it.
fn activated() -> io::Result<BTreeMap<SocketAddr, Vec<OwnedFd>>> {
    let mut passed = listenfd::ListenFd::from_env();
    let mut sockets = BTreeMap::<_, Vec<_>>::new();
    for number in 0..passed.len() {
        if let Some(listener) = passed.take_tcp_listener(number)? {
            sockets.entry(listener.local_addr()?).or_default().push(listener.into());
        }
    }
    Ok(sockets)
}
