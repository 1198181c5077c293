//! The listening sockets: for each address one per worker, all opened here.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use super::Error;
use crate::sys::socket;
use crate::{limits, sys, tcp};

// One socket of each address goes to a worker in one message.
const _: () = assert!(limits::ADDRESSES_MAX <= sys::control::DESCRIPTORS_MAX);

pub(super) struct Listeners {
    pub(super) addresses: Vec<SocketAddr>,
    /// Everything that leads here: a socket on `[::]` may take IPv4 as well.
    pub(super) own_addresses: Vec<SocketAddr>,
    /// One socket of each address for each worker.
    pub(super) of_workers: Vec<Vec<OwnedFd>>,
}

impl Listeners {
    /// Opens the sockets, or takes those that systemd has opened.
    pub(super) fn open(addresses: &[SocketAddr], reuse: bool, workers: usize) -> Result<Self, Error> {
        let mut listeners = Self {
            addresses: Vec::new(),
            own_addresses: Vec::new(),
            of_workers: (0..workers).map(|_| Vec::new()).collect(),
        };
        let activated = activated()?;
        if activated.is_empty() {
            for &address in addresses {
                let sockets = open(address, reuse, workers).map_err(|error| Error::Bind { address, error })?;
                listeners.hand_out(socket::local_address(sockets[0].as_fd())?, sockets)?;
            }
        } else {
            for (address, sockets) in activated {
                listeners.hand_out(address, sockets)?;
            }
        }
        Ok(listeners)
    }

    /// Deals the sockets of one address to the workers. Fewer sockets than workers are shared: less even, and just as safe.
    fn hand_out(&mut self, address: SocketAddr, sockets: Vec<OwnedFd>) -> io::Result<()> {
        for socket in &sockets {
            // What is accepted inherits all of this.
            socket::set_nonblocking(socket.as_fd())?;
            socket::prepare(socket.as_fd())?;
            socket::keep_alive(socket.as_fd(), tcp::LIVENESS)?;
        }
        let workers = self.of_workers.len();
        for deal in 0..workers.max(sockets.len()) {
            self.of_workers[deal % workers].push(sockets[deal % sockets.len()].try_clone()?);
        }
        self.addresses.push(address);
        self.own_addresses.push(SocketAddr::new(address.ip().to_canonical(), address.port()));
        if address.ip().is_unspecified() && socket::takes_ipv4(sockets[0].as_fd()) {
            self.own_addresses.push(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()));
        }
        Ok(())
    }
}

/// One socket for each worker on the same address.
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
