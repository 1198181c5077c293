//! The listening sockets: for each address one per worker, all opened here.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::Error;
use crate::sys::socket;
use crate::{limits, tcp};

pub(super) struct Listeners {
    pub(super) addresses: Vec<SocketAddr>,
    /// One socket of each address for each worker.
    pub(super) of_workers: Vec<Vec<OwnedFd>>,
}

impl Listeners {
    /// Opens the sockets, or takes those that systemd has opened.
    pub(super) fn open(addresses: &[SocketAddr], reuse: bool, workers: usize) -> Result<Self, Error> {
        let mut listeners = Self { addresses: Vec::new(), of_workers: (0..workers).map(|_| Vec::new()).collect() };
        let activated = activated();
        for socket in activated {
            let address = socket::local_address(socket.as_fd())?;
            listeners.add(address, socket)?;
        }
        if listeners.addresses.is_empty() {
            for &address in addresses {
                let socket = open(address, reuse, workers).map_err(|error| Error::Bind { address, error })?;
                let bound = socket::local_address(socket.as_fd())?;
                listeners.add(bound, socket)?;
            }
        }
        Ok(listeners)
    }

    /// Gives the first worker `socket`, and the others one of their own on the same port. A socket that was made elsewhere and
    /// does not share its port is shared itself: less even, and just as safe.
    fn add(&mut self, address: SocketAddr, socket: OwnedFd) -> Result<(), Error> {
        let own = socket::shares_port(socket.as_fd())?;
        for worker in self.of_workers.iter_mut().skip(1) {
            worker.push(if own {
                socket::listen(address, true, limits::BACKLOG).map_err(|error| Error::Bind { address, error })?
            } else {
                socket.try_clone()?
            });
        }
        self.of_workers[0].push(socket);
        for worker in &self.of_workers {
            let last = worker.last().expect("each has just got one");
            socket::prepare(last.as_fd(), tcp::LIVENESS)?;
        }
        self.addresses.push(address);
        Ok(())
    }
}

fn open(address: SocketAddr, reuse: bool, workers: usize) -> io::Result<OwnedFd> {
    let shared = reuse || workers > 1;
    if shared && !reuse && address.port() != 0 {
        // Our own sockets must share the port among themselves, and with nobody else's: see whether it is free.
        socket::try_bind(address)?;
    }
    socket::listen(address, shared, limits::BACKLOG)
}

/// Sockets that systemd has opened for us (sd_listen_fds(3)).
fn activated() -> Vec<OwnedFd> {
    let mut passed = listenfd::ListenFd::from_env();
    (0..passed.len()).filter_map(|number| passed.take_tcp_listener(number).ok().flatten()).map(OwnedFd::from).collect()
}
