//! The sockets under the tunnels: batches in, batches out. What is in them, others know.
//!
//! A tunnel knows addresses alone; here an address becomes a [`Way`]: a socket for datagrams, a link, or the tunnel to the
//! rendezvous, which carries packets of other tunnels as its datagrams.
//!
//! What goes to a peer leaves by the socket that it was last heard on. A provider that waits on sockets of its own answers from
//! the address that was asked, too. Elsewhere the kernel chooses the address, since this host may move; a peer that was never
//! heard gets what is for it from the first socket of its family, which is opened when it is needed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::links::{Links, Sender};
use super::peers::{PeerId, Peers};
use crate::engine::{Engine, Token};
use crate::limits;
use crate::proto::tunnel::wire::{HANDSHAKE_NUMBER, Header};
use crate::proto::tunnel::{Transmit, Way, is_virtual};
use crate::sys::udp::{self, Batch, Outlet};
use crate::sys::{clock, socket};

/// Batches taken from one socket, and sent through all of them, before others have their turn: up to 1 MiB, about 0.5 ms.
const BATCHES_PER_TURN: usize = 16;

/// Peers whose way to us is remembered. When there are more, all are forgotten: whoever lives says it again.
const ORIGINS_MAX: usize = 4096;

#[derive(Debug)]
pub(super) struct Carrier {
    /// By number, which is never given twice in 2^24.
    wires: BTreeMap<u32, Wire>,
    last_number: u32,
    origins: Origins,
    pub(super) links: Links,
    /// The tunnel that carries flows.
    pub(super) via: Option<PeerId>,
    /// Those that were there from the beginning, and stay.
    chosen: Vec<u32>,
    /// That which a port of the router is for. It stays, too.
    kept: Option<u32>,
    /// Where strangers reach that one, or a chosen one.
    mapped: Option<SocketAddr>,
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
    /// Answers leave from the address that was asked.
    keep_address: bool,
    /// Its way is not learnt.
    home: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    wire: u32,
    to: Option<IpAddr>,
}

impl Carrier {
    /// For those who are waited for on sockets that are open already: whoever asks at one of their addresses knows them by that.
    pub(super) fn on(sockets: Vec<OwnedFd>, engine: &mut Engine) -> io::Result<Self> {
        let mut carrier = Self::moving(sockets, engine)?;
        carrier.origins.keep_address = true;
        Ok(carrier)
    }

    /// For those who begin, with the sockets that were chosen for them.
    pub(super) fn moving(sockets: Vec<OwnedFd>, engine: &mut Engine) -> io::Result<Self> {
        let mut carrier = Self::without_sockets();
        for socket in sockets {
            let number = carrier.add(socket, engine)?;
            carrier.chosen.push(number);
        }
        Ok(carrier)
    }

    fn without_sockets() -> Self {
        Self {
            wires: BTreeMap::new(),
            last_number: 0,
            origins: Origins::default(),
            links: Links::new(limits::LINKS_MAX),
            via: None,
            chosen: Vec::new(),
            kept: None,
            mapped: None,
            arrived: vec![0; udp::RECEIVE_BYTES].into(),
            leaving: Vec::with_capacity(udp::BATCH_BYTES_MAX),
            held: None,
            paused_until: None,
            failing: false,
        }
    }

    /// Sees to it that there is a socket that reaches `peer`.
    pub(super) fn reach(&mut self, peer: SocketAddr, engine: &mut Engine) -> io::Result<()> {
        if is_virtual(peer) || self.first_wire(peer).is_some() {
            return Ok(());
        }
        let any: IpAddr = if peer.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = udp::bind(SocketAddr::new(any, 0), false)?;
        udp::enlarge_buffers(socket.as_fd());
        self.add(socket, engine).map(drop)
    }

    /// Takes a socket, and tells the number by which it is known here.
    pub(super) fn add(&mut self, socket: OwnedFd, engine: &mut Engine) -> io::Result<u32> {
        let is_ipv4 = socket::local_address(socket.as_fd())?.is_ipv4();
        let number = self.new_number();
        let token = Token::new(super::WIRES, number, 0);
        engine.watch_arrivals(socket.as_fd(), token)?;
        self.wires.insert(number, Wire { socket, token, is_ipv4, readable: true, outlet: Outlet::default() });
        Ok(number)
    }

    fn new_number(&mut self) -> u32 {
        loop {
            self.last_number = Token::new(0, self.last_number + 1, 0).generation;
            if !self.wires.contains_key(&self.last_number) {
                return self.last_number;
            }
        }
    }

    fn first_wire(&self, peer: SocketAddr) -> Option<u32> {
        self.wires.iter().find(|(_, wire)| wire.is_ipv4 == peer.is_ipv4()).map(|(number, _)| *number)
    }

    /// One of those that the operator has chosen, of the family of `any`, or that which a port of the router leads to.
    pub(super) fn chosen_wire(&self, any: IpAddr) -> Option<u32> {
        let is_of_family = |number: &&u32| self.wires.get(number).is_some_and(|wire| wire.is_ipv4 == any.is_ipv4());
        let mapped = self.kept.iter().filter(|_| self.mapped.is_some());
        self.chosen.iter().chain(mapped).find(is_of_family).copied()
    }

    /// Where the router lets strangers in to the chosen wire of IPv4.
    pub(super) fn mapped(&self) -> Option<SocketAddr> {
        self.mapped
    }

    pub(super) fn set_mapped(&mut self, external: Option<SocketAddr>) {
        self.mapped = external;
    }

    /// This one is not to be closed before the end.
    pub(super) fn keep(&mut self, number: u32) {
        self.kept = Some(number);
    }

    /// The port of a socket.
    pub(super) fn port(&self, number: u32) -> Option<u16> {
        Some(socket::local_address(self.wires.get(&number)?.socket.as_fd()).ok()?.port())
    }

    /// Gives a socket the buffers of a tunnel.
    pub(super) fn enlarge(&self, number: u32) {
        if let Some(wire) = self.wires.get(&number) {
            udp::enlarge_buffers(wire.socket.as_fd());
        }
    }

    /// The socket on which a peer was last heard from there.
    pub(super) fn wire_of(&self, from: SocketAddr) -> Option<u32> {
        self.origins.of.get(&from).map(|origin| origin.wire)
    }

    /// Whether any peer was last heard on this socket.
    pub(super) fn is_heard_on(&self, number: u32) -> bool {
        self.origins.of.values().any(|origin| origin.wire == number)
    }

    /// The rendezvous answers questions on any socket, and is to be reached by the first alone.
    pub(super) fn set_home(&mut self, home: Option<SocketAddr>) {
        self.origins.home = home;
    }

    /// Closes one socket, unless it is to stay. Peers that were heard on it are answered by another.
    pub(super) fn remove(&mut self, number: u32, engine: &mut Engine) {
        if self.chosen.contains(&number) || self.kept == Some(number) {
            return;
        }
        if let Some(wire) = self.wires.remove(&number) {
            engine.forget(wire.socket, wire.token);
            self.origins.of.retain(|_, origin| origin.wire != number);
            self.origins.last.take_if(|(_, origin)| origin.wire == number);
        }
    }

    /// Closes everything for good.
    pub(super) fn close(&mut self, engine: &mut Engine) {
        for wire in std::mem::take(&mut self.wires).into_values() {
            engine.forget(wire.socket, wire.token);
        }
        self.links.close_all(engine);
    }

    pub(super) fn note_arrival(&mut self, token: Token) {
        if let Some(wire) = self.wires.get_mut(&token.generation) {
            wire.readable = true;
        }
    }

    pub(super) fn watch_again(&mut self, token: Token, engine: &mut Engine) -> io::Result<()> {
        self.note_arrival(token);
        match self.wires.get(&token.generation) {
            Some(wire) => engine.watch_arrivals(wire.socket.as_fd(), wire.token),
            None => Ok(()),
        }
    }

    /// Hands out what has arrived, and names the peers it was for. True when there may be more.
    pub(super) fn receive(&mut self, now: u64, peers: &mut Peers, mut heard: impl FnMut(PeerId, SocketAddr)) -> bool {
        for (number, wire) in &mut self.wires {
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
                if is_virtual(received.from) {
                    continue; // a host that pretends to be one of our own ways
                }
                let mut whose = None;
                for datagram in received.datagrams(&mut self.arrived) {
                    let of = peers.handle_datagram(now, received.from, datagram);
                    if of.is_some() && of != whose {
                        whose = of;
                        of.into_iter().for_each(|peer| heard(peer, received.from));
                    }
                }
                self.origins.note(received.from, Origin { wire: *number, to: received.to }, whose.is_some());
            }
        }
        self.links.receive(|number, packet| {
            let (is_offer, from) = (is_handshake(packet), Way::Link(number).into());
            match peers.handle_datagram(now, from, packet) {
                Some(peer) => {
                    heard(peer, from);
                    Sender::Peer
                }
                None if is_offer => Sender::Perhaps,
                None => Sender::Stranger,
            }
        });
        self.links.are_busy() || self.wires.values().any(|wire| wire.readable)
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
            let left = match Way::of(transmit.to) {
                Way::Udp(_) => sent + self.send(&transmit, sent),
                Way::Link(number) => {
                    self.links.send(number, &self.leaving, transmit.segment_bytes);
                    self.leaving.len()
                }
                Way::Flow { flow, .. } => {
                    self.relay(flow, transmit.segment_bytes, peers);
                    self.leaving.len()
                }
            };
            if left < self.leaving.len() {
                self.held = Some((transmit, left));
                self.paused_until = Some(clock::now() + limits::SEND_PAUSE);
                return false;
            }
        }
        true
    }

    /// Sends one datagram beside all that is queued, by the way that leads there. It may be lost, as on its way.
    pub(super) fn send_aside(&mut self, to: SocketAddr, bytes: &[u8], peers: &mut Peers) {
        match Way::of(to) {
            Way::Udp(_) => {
                let origin = self.origins.get(to).map(|origin| origin.wire);
                if let Some(wire) = origin.or_else(|| self.first_wire(to)) {
                    self.send_from(wire, to, None, bytes);
                }
            }
            Way::Link(number) => self.links.send(number, bytes, bytes.len()),
            Way::Flow { flow, .. } => {
                if let Some(mut via) = self.via.and_then(|via| peers.get(via)) {
                    via.send_datagram(flow, 0, None, bytes);
                }
            }
        }
    }

    /// The same by a certain socket. With `ttl` it goes so many hops.
    pub(super) fn send_from(&mut self, number: u32, to: SocketAddr, ttl: Option<u8>, bytes: &[u8]) {
        let Some(wire) = self.wires.get_mut(&number).filter(|wire| wire.is_ipv4 == to.is_ipv4()) else { return };
        let origin = self.origins.get(to).filter(|origin| origin.wire == number);
        let from = origin.and_then(|origin| origin.to);
        let batch = Batch { bytes, segment_bytes: bytes.len(), to, from, whole: false };
        let outlet = &mut wire.outlet;
        let sent = match ttl {
            Some(ttl) => udp::with_ttl(wire.socket.as_fd(), ttl, to.is_ipv4(), |socket| outlet.send(socket, &batch)),
            None => outlet.send(wire.socket.as_fd(), &batch),
        };
        if let Err(error) = sent {
            tracing::trace!(%error, %to, "a datagram cannot be sent");
        }
    }

    /// The same by the socket beside the one on which `to` was last heard: of the chosen, each two with the same address are
    /// neighbours.
    pub(super) fn send_from_neighbour(&mut self, to: SocketAddr, bytes: &[u8]) {
        let Some(Origin { wire, to: from }) = self.origins.get(to) else { return };
        let Some(place) = self.chosen.iter().position(|number| *number == wire) else { return };
        let neighbour = self.chosen.get(place ^ 1).and_then(|number| self.wires.get_mut(number));
        let Some(Wire { socket, outlet, .. }) = neighbour else { return };
        let batch = Batch { bytes, segment_bytes: bytes.len(), to, from, whole: false };
        if let Err(error) = outlet.send(socket.as_fd(), &batch) {
            tracing::trace!(%error, %to, "a datagram cannot be sent");
        }
    }

    /// Gives `leaving` to the tunnel that carries flows. Without one it is lost.
    fn relay(&mut self, flow: u32, segment_bytes: usize, peers: &mut Peers) {
        if let Some(mut via) = self.via.and_then(|via| peers.get(via)) {
            for packet in self.leaving.chunks(segment_bytes.max(1)) {
                via.send_datagram(flow, 0, None, packet);
            }
        }
    }

    /// Sends `leaving` from a byte on; tells how many bytes have left, or are lost as the network might have lost them.
    fn send(&mut self, transmit: &Transmit, from: usize) -> usize {
        let bytes = &self.leaving[from..];
        let origin = self.origins.get(transmit.to);
        let number = origin.map(|origin| origin.wire).or_else(|| self.first_wire(transmit.to));
        let Some(wire) = number.and_then(|number| self.wires.get_mut(&number)) else { return bytes.len() };
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
                if self.origins.keep_address {
                    self.origins.of.remove(&transmit.to); // that address may be ours no more
                }
                self.leaving.len() - from
            }
        }
    }
}

/// Whether it may be from a peer that is not known yet.
fn is_handshake(packet: &[u8]) -> bool {
    Header::parse(packet).is_ok_and(|head| head.number == HANDSHAKE_NUMBER)
}

impl Origins {
    fn note(&mut self, from: SocketAddr, origin: Origin, is_peer: bool) {
        if self.home == Some(from) {
            return;
        }
        let to = origin.to.filter(|_| self.keep_address);
        let origin = Origin { to, ..origin };
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
