//! The sockets under the tunnels: batches in, batches out. What is in them, others know.
//!
//! A provider's answers leave by the socket, and from the address, that the peer has sent to. A visitor has one socket for each
//! family, opened when it is needed, and leaves the choice of the address to the kernel: this host may move.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::peers::{PeerId, Peers};
use crate::engine::{Engine, Token};
use crate::limits;
use crate::proto::tunnel::Transmit;
use crate::sys::udp::{self, Batch, Outlet};
use crate::sys::{clock, socket};

/// Batches taken from one socket, and sent through all of them, before others have their turn: up to 1 MiB, about 0.5 ms.
const BATCHES_PER_TURN: usize = 16;

/// Peers whose way to us is remembered. When there are more, all are forgotten: whoever lives says it again.
const ORIGINS_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct Carrier {
    wires: Vec<Wire>,
    /// Only a provider has these.
    origins: Option<Origins>,
    arrived: Box<[u8]>,
    leaving: Vec<u8>,
    /// What of `leaving` the socket had no room for, from a byte on.
    held: Option<(Transmit, usize)>,
    paused_until: Option<Instant>,
    /// A failure to send is logged once a run of failures.
    failing: bool,
}

#[derive(Debug)]
struct Wire {
    socket: OwnedFd,
    token: Token,
    is_ipv4: bool,
    /// Something may have arrived: told once, true until the socket is empty.
    readable: bool,
    outlet: Outlet,
}

/// By which socket, and to which of our addresses, peers reach us.
#[derive(Debug, Default)]
struct Origins {
    of: HashMap<SocketAddr, Origin>,
    /// The last to arrive, not yet known to be a peer. It may be a handshake, to be answered at once.
    last: Option<(SocketAddr, Origin)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    wire: usize,
    to: Option<IpAddr>,
}

impl Carrier {
    /// For a provider, on sockets that are open already.
    pub(super) fn on(sockets: Vec<OwnedFd>, engine: &mut Engine) -> io::Result<Self> {
        let mut carrier = Self::new(Some(Origins::default()));
        for socket in sockets {
            carrier.add(socket, engine)?;
        }
        Ok(carrier)
    }

    /// For a visitor.
    pub(super) fn without_sockets() -> Self {
        Self::new(None)
    }

    fn new(origins: Option<Origins>) -> Self {
        Self {
            wires: Vec::new(),
            origins,
            arrived: vec![0; udp::RECEIVE_BYTES].into(),
            leaving: Vec::with_capacity(udp::BATCH_BYTES_MAX),
            held: None,
            paused_until: None,
            failing: false,
        }
    }

    /// Sees to it that there is a socket that reaches `peer`.
    pub(super) fn reach(&mut self, peer: SocketAddr, engine: &mut Engine) -> io::Result<()> {
        if self.wires.iter().any(|wire| wire.is_ipv4 == peer.is_ipv4()) {
            return Ok(());
        }
        let any: IpAddr = if peer.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = udp::bind(SocketAddr::new(any, 0), false)?;
        udp::enlarge_buffers(socket.as_fd());
        self.add(socket, engine)
    }

    fn add(&mut self, socket: OwnedFd, engine: &mut Engine) -> io::Result<()> {
        let is_ipv4 = socket::local_address(socket.as_fd())?.is_ipv4();
        let number = u32::try_from(self.wires.len()).unwrap_or(u32::MAX);
        let token = Token::new(super::WIRES, number, 0);
        engine.watch_arrivals(socket.as_fd(), token)?;
        self.wires.push(Wire { socket, token, is_ipv4, readable: true, outlet: Outlet::default() });
        Ok(())
    }

    /// Closes the sockets for good.
    pub(super) fn close(&mut self, engine: &mut Engine) {
        for wire in self.wires.drain(..) {
            engine.forget(wire.socket, wire.token);
        }
    }

    pub(super) fn note_arrival(&mut self, token: Token) {
        if let Some(wire) = self.wires.get_mut(token.generation as usize) {
            wire.readable = true;
        }
    }

    pub(super) fn watch_again(&mut self, token: Token, engine: &mut Engine) -> io::Result<()> {
        self.note_arrival(token);
        match self.wires.get(token.generation as usize) {
            Some(wire) => engine.watch_arrivals(wire.socket.as_fd(), wire.token),
            None => Ok(()),
        }
    }

    /// Hands out what has arrived, and names the peers it was for. True when there may be more.
    pub(super) fn receive(&mut self, now: u64, peers: &mut Peers, mut heard: impl FnMut(PeerId)) -> bool {
        for (number, wire) in self.wires.iter_mut().enumerate() {
            for _ in 0..BATCHES_PER_TURN {
                if !wire.readable {
                    break;
                }
                let received = match udp::receive(wire.socket.as_fd(), &mut self.arrived) {
                    Ok(received) => received,
                    Err(error) => {
                        // Anything else speaks of what was sent before, and is as good as its silence.
                        wire.readable = error.kind() != io::ErrorKind::WouldBlock;
                        continue;
                    }
                };
                let mut whose = None;
                for datagram in received.datagrams(&mut self.arrived) {
                    let of = peers.handle_datagram(now, received.from, datagram);
                    if of.is_some() && of != whose {
                        whose = of;
                        of.map(&mut heard);
                    }
                }
                if let Some(origins) = &mut self.origins {
                    origins.note(received.from, Origin { wire: number, to: received.to }, whose.is_some());
                }
            }
        }
        self.wires.iter().any(|wire| wire.readable)
    }

    /// When a socket that was full is to be asked again.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Sends what is to be sent now. True when there may be more.
    pub(super) fn transmit(&mut self, now: (Instant, u64), peers: &mut Peers) -> bool {
        if self.paused_until.is_some_and(|until| now.0 < until) {
            return false;
        }
        self.paused_until = None;
        for _ in 0..BATCHES_PER_TURN {
            let (transmit, sent) = match self.held.take() {
                Some(held) => held,
                None => {
                    self.leaving.clear();
                    let Some(transmit) = peers.poll_transmit(now.1, &mut self.leaving) else { return false };
                    (transmit, 0)
                }
            };
            let left = sent + self.send(&transmit, sent);
            if left < self.leaving.len() {
                self.held = Some((transmit, left));
                self.paused_until = Some(clock::now() + limits::SEND_PAUSE);
                return false;
            }
        }
        true
    }

    /// Sends `leaving` from a byte on; tells how many bytes have left, or are lost as the network might have lost them.
    fn send(&mut self, transmit: &Transmit, from: usize) -> usize {
        let bytes = &self.leaving[from..];
        let origin = self.origins.as_ref().and_then(|origins| origins.get(transmit.to));
        let is_ipv4 = transmit.to.is_ipv4();
        let wire = match origin {
            Some(origin) => self.wires.get_mut(origin.wire),
            None => self.wires.iter_mut().find(|wire| wire.is_ipv4 == is_ipv4),
        };
        let Some(wire) = wire else { return bytes.len() };
        let batch = Batch {
            bytes,
            segment_bytes: transmit.segment_bytes,
            to: transmit.to,
            from: origin.and_then(|origin| origin.to),
            whole: transmit.is_mtu_probe,
        };
        match wire.outlet.send(wire.socket.as_fd(), &batch) {
            Ok(sent) => {
                self.failing = false;
                sent
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_too_long) if transmit.is_mtu_probe => bytes.len(),
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::debug!(%error, to = %transmit.to, "datagrams cannot be sent");
                }
                if let Some(origins) = &mut self.origins {
                    origins.of.remove(&transmit.to); // that address may be ours no more
                }
                self.leaving.len() - from
            }
        }
    }
}

impl Origins {
    fn note(&mut self, from: SocketAddr, origin: Origin, is_peer: bool) {
        if self.last == Some((from, origin)) && self.of.contains_key(&from) == is_peer {
            return;
        }
        self.last = Some((from, origin));
        if is_peer {
            if self.of.len() >= ORIGINS_MAX {
                self.of.clear();
            }
            self.of.insert(from, origin);
        }
    }

    fn get(&self, peer: SocketAddr) -> Option<Origin> {
        let last = self.last.filter(|(from, _)| *from == peer).map(|(_, origin)| origin);
        self.of.get(&peer).copied().or(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_a_peer_is_known_and_that_of_a_stranger_until_the_next_one_comes() {
        let at = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let origin = |wire| Origin { wire, to: None };
        let mut origins = Origins::default();
        origins.note(at(1), origin(1), true);
        origins.note(at(2), origin(2), false);
        assert_eq!([1, 2, 3].map(|port| origins.get(at(port))), [Some(origin(1)), Some(origin(2)), None]);
        origins.note(at(3), origin(3), false);
        assert_eq!([1, 2, 3].map(|port| origins.get(at(port))), [Some(origin(1)), None, Some(origin(3))]);
        origins.note(at(1), origin(4), true);
        assert_eq!(origins.get(at(1)), Some(origin(4)));
    }

    #[test]
    fn more_peers_than_are_remembered_leave_the_latest() {
        let mut origins = Origins::default();
        for port in 0..=u16::try_from(ORIGINS_MAX).expect("it is small") {
            let from = SocketAddr::from(([192, 0, 2, 1], port));
            origins.note(from, Origin { wire: 0, to: None }, true);
            assert!(origins.get(from).is_some() && origins.of.len() <= ORIGINS_MAX);
        }
    }
}
