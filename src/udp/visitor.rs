//! The visitor's end: players' sockets, and a way to the provider of each service.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::carrier::Carrier;
use super::peers::{Loss, PeerId};
use super::reach::{Change, Reach};
use super::sessions::Sessions;
use super::settings::{Paths, Visited};
use super::status::PeerStatus;
use super::stream::{Ending, Joint, State};
use super::streams::Streams;
use super::{Asker, Context, Key};
use crate::engine::{Event, Token};
use crate::limits;
use crate::names::Found;
use crate::sys::socket;
use crate::sys::udp::{self, Batch, Outlet, Received};
use crate::tcp::accept::{self, Doors};

/// Batches taken from one socket of players before others have their turn.
const BATCHES_PER_TURN: usize = 16;

#[derive(Debug)]
pub(super) struct Visitor {
    services: Vec<Visited>,
    reaches: Vec<Reach>,
    doors: Doors,
    /// Service and port of each listener.
    ports: Vec<(usize, u8)>,
    crowded: bool,
    /// Connections that wait for a tunnel, by service.
    waiting: Vec<VecDeque<Key>>,
    arenas: Vec<Arena>,
    players: Sessions<(usize, SocketAddr), Player>,
    closing: bool,
}

/// A socket to which players send datagrams.
#[derive(Debug)]
struct Arena {
    socket: OwnedFd,
    token: Token,
    service: usize,
    port: u8,
    readable: bool,
    outlet: Outlet,
}

/// To which of our addresses a player talks.
#[derive(Clone, Copy, Debug)]
struct Player {
    to: Option<IpAddr>,
}

impl Visitor {
    pub(super) fn new(
        services: Vec<Visited>,
        sockets: &mut impl Iterator<Item = OwnedFd>,
        context: &mut Context,
    ) -> io::Result<Self> {
        let (mut listeners, mut ports, mut arenas) = (Vec::new(), Vec::new(), Vec::new());
        for (service, visited) in services.iter().enumerate() {
            for (port, socket) in (0..).zip(sockets.by_ref().take(visited.tcp)) {
                listeners.push(socket);
                ports.push((service, port));
            }
            for (port, socket) in (0..).zip(sockets.by_ref().take(visited.udp)) {
                let token = Token::new(super::ARENAS, arenas.len() as u32, 0);
                context.engine.watch_arrivals(socket.as_fd(), token)?;
                arenas.push(Arena { socket, token, service, port, readable: true, outlet: Outlet::default() });
            }
        }
        let holds = context.settings.via.as_ref().is_some_and(|via| via.paths == Paths::Direct);
        let doors = Doors::new(listeners);
        doors.open(&mut context.engine)?;
        Ok(Self {
            reaches: (0..services.len()).map(|service| Reach::new(service, holds, context.now)).collect(),
            waiting: services.iter().map(|_| VecDeque::new()).collect(),
            services,
            doors,
            ports,
            crowded: false,
            arenas,
            players: Sessions::new(),
            closing: false,
        })
    }

    pub(super) fn sessions(&self) -> usize {
        self.players.len()
    }

    pub(super) fn peers(&self, context: &mut Context) -> Vec<(Option<PeerId>, PeerStatus)> {
        let mut of = |(visited, reach): (&Visited, &Reach)| {
            let tunnel = reach.any_tunnel();
            let status = tunnel.and_then(|tunnel| Some(context.peers.get(tunnel)?.report(visited.name)));
            let nobody = || PeerStatus::nobody(visited.name, "the provider has not answered yet");
            (tunnel.filter(|_| status.is_some()), status.unwrap_or_else(nobody))
        };
        self.services.iter().zip(&self.reaches).map(&mut of).collect()
    }

    /// Somebody may still be waiting at a door.
    pub(super) fn is_busy(&self) -> bool {
        self.crowded || self.arenas.iter().any(|arena| arena.readable)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let reaches = self.reaches.iter().filter_map(Reach::deadline);
        reaches.chain(self.doors.deadline()).chain(self.players.deadline()).min()
    }

    /// The same services elsewhere.
    pub(super) fn reload(&mut self, services: Vec<Visited>) {
        self.services = services;
    }

    pub(super) fn note_door(&mut self, event: Event, token: Token, context: &mut Context) {
        self.doors.note(event, token, &mut context.engine);
    }

    pub(super) fn note_arrival(&mut self, token: Token) {
        if let Some(arena) = self.arenas.get_mut(token.generation as usize) {
            arena.readable = true;
        }
    }

    pub(super) fn watch_again(&mut self, token: Token, context: &mut Context) {
        self.note_arrival(token);
        if let Some(arena) = self.arenas.get(token.generation as usize)
            && let Err(error) = context.engine.watch_arrivals(arena.socket.as_fd(), arena.token)
        {
            tracing::error!(%error, "a socket of players is not watched any more");
        }
    }

    pub(super) fn handle_found(&mut self, service: usize, found: Found<Asker>) {
        if let (Some(reach), Some(visited)) = (self.reaches.get_mut(service), self.services.get(service)) {
            reach.note_found(found.asker, found.addresses, visited);
        }
    }

    pub(super) fn note_heard(&mut self, tunnel: PeerId, context: &Context) {
        self.reaches.iter_mut().for_each(|reach| reach.note_heard(tunnel, context));
    }

    /// One turn: whoever waits at a door comes in, silent sessions are forgotten, and each service is on its way.
    pub(super) fn turn(&mut self, streams: &mut Streams, carrier: &mut Carrier, context: &mut Context) {
        self.crowded = self.admit(streams, context);
        self.hear_players(context);
        self.players.sweep(context.now, self.closing, |_, _| {});
        for (reach, visited) in self.reaches.iter_mut().zip(&self.services) {
            reach.step(visited, carrier, context);
        }
    }

    /// Lets in who waits, as far as there is room. True when more may be waiting.
    fn admit(&mut self, streams: &mut Streams, context: &mut Context) -> bool {
        for _ in 0..accept::PER_TURN {
            let room = streams.len() < context.settings.connections_max;
            match self.doors.admit(room, context.now) {
                Some((door, client)) => self.begin(door, client, streams, context),
                None => return false,
            }
        }
        true
    }

    fn begin(&mut self, door: usize, client: OwnedFd, streams: &mut Streams, context: &mut Context) {
        let (service, _) = self.ports[door];
        let waiting = State::Waiting { until: context.now + limits::TUNNEL_WAIT };
        let key = match streams.add(client, waiting, context) {
            Ok(key) => key,
            Err(error) => return tracing::warn!(%error, "a player cannot be watched and is let go"),
        };
        if let Some(stream) = streams.get(key) {
            stream.player = socket::peer_address(stream.side.socket.as_fd()).ok();
            stream.door = door;
        }
        match self.reaches[service].tunnel() {
            Some(tunnel) => self.open(key, tunnel, streams, context),
            None => {
                self.waiting[service].retain(|key| streams.get(*key).is_some());
                self.waiting[service].push_back(key);
                self.reaches[service].hurry(&self.services[service], context);
                streams.advance(key.slot, context); // sets its deadline
            }
        }
    }

    fn open(&mut self, key: Key, tunnel: PeerId, streams: &mut Streams, context: &mut Context) {
        let Some(stream) = streams.get(key) else { return };
        let (_, port) = self.ports[stream.door];
        let opened = context.peers.get(tunnel).and_then(|mut tunnel| tunnel.open(port, stream.player));
        match opened {
            Some(stream) => streams.join(key, Joint { peer: tunnel, stream }, context),
            None => streams.close(key.slot, Ending::NoTunnel, context),
        }
    }

    fn open_waiting(&mut self, service: usize, tunnel: PeerId, streams: &mut Streams, context: &mut Context) {
        for key in std::mem::take(&mut self.waiting[service]) {
            self.open(key, tunnel, streams, context);
        }
    }

    /// Lets players in as soon as the way to the provider is one that they may take.
    pub(super) fn release(&mut self, is_free: impl Fn(PeerId) -> bool, streams: &mut Streams, context: &mut Context) {
        for service in 0..self.services.len() {
            if let Some(tunnel) = self.reaches[service].release(&is_free) {
                self.open_waiting(service, tunnel, streams, context);
            }
        }
    }

    fn hear_players(&mut self, context: &mut Context) {
        for number in 0..self.arenas.len() {
            for _ in 0..BATCHES_PER_TURN {
                let arena = &mut self.arenas[number];
                if !arena.readable {
                    break;
                }
                match udp::receive(arena.socket.as_fd(), &mut context.scratch) {
                    Ok(received) => self.pass_on(number, &received, context),
                    Err(error) => arena.readable = error.kind() != io::ErrorKind::WouldBlock,
                }
            }
        }
    }

    /// Datagrams of one player. Without a tunnel they are lost, as on any bad network.
    fn pass_on(&mut self, number: usize, received: &Received, context: &mut Context) {
        let Arena { service, port, .. } = self.arenas[number];
        let (key, player) = ((number, received.from), Player { to: received.to });
        if self.closing && !self.players.knows(&key) {
            return;
        }
        let Some((session, known)) = self.players.get_or_insert(key, context.now, |_| Some(player)) else { return };
        *known = player;
        let Some(id) = self.reaches[service].tunnel() else {
            return self.reaches[service].hurry(&self.services[service], context);
        };
        let Some(mut tunnel) = context.peers.get(id) else { return };
        if received.bytes == 0 {
            tunnel.send_datagram(session, port, Some(received.from), &[]);
        }
        for datagram in received.datagrams(&mut context.scratch) {
            tunnel.send_datagram(session, port, Some(received.from), datagram);
        }
    }

    /// Hands datagrams of a tunnel to the players they are for.
    pub(super) fn deliver(&mut self, tunnel: PeerId, context: &mut Context) {
        let Some(mut tunnel) = context.peers.get(tunnel) else { return };
        loop {
            context.datagram.clear();
            let Some(info) = tunnel.read_datagram(&mut context.datagram) else { return };
            let Some(((number, to), player)) = self.players.by_number(info.session, context.now) else { continue };
            let Arena { socket, outlet, .. } = &mut self.arenas[number];
            let bytes = &context.datagram;
            let batch = Batch { bytes, segment_bytes: bytes.len(), to, from: player.to, whole: false };
            let _ = outlet.send(socket.as_fd(), &batch); // lost, as on any bad network
        }
    }

    /// The rendezvous has found the provider of a service, or lost it.
    pub(super) fn note_flow(&mut self, service: usize, flow: Option<SocketAddr>, context: &mut Context) {
        if let (Some(reach), Some(visited)) = (self.reaches.get_mut(service), self.services.get(service)) {
            reach.note_flow(flow, visited, context);
        }
    }

    /// Services whose provider has begun to be doubted.
    pub(super) fn doubted(&mut self) -> impl Iterator<Item = usize> {
        self.reaches.iter_mut().enumerate().filter_map(|(service, reach)| reach.take_doubt().then_some(service))
    }

    /// Players wait for a tunnel.
    pub(super) fn is_waited_for(&self, streams: &mut Streams) -> bool {
        self.waiting.iter().flatten().any(|key| streams.get(*key).is_some())
    }

    pub(super) fn note_established(&mut self, tunnel: PeerId, streams: &mut Streams, context: &mut Context) {
        for service in 0..self.services.len() {
            match self.reaches[service].note_established(tunnel, &self.services[service], context) {
                Change::Up { tunnel, replaced } => {
                    warn_of_missing_ports(&self.services[service], tunnel, context);
                    if let Some(old) = replaced {
                        streams.cut_all(old, context);
                    }
                    if self.reaches[service].tunnel() == Some(tunnel) {
                        self.open_waiting(service, tunnel, streams, context);
                    }
                }
                Change::Down | Change::None => {}
            }
        }
    }

    pub(super) fn note_lost(&mut self, tunnel: PeerId, reason: Loss, streams: &mut Streams, context: &mut Context) {
        for (reach, visited) in self.reaches.iter_mut().zip(&self.services) {
            if reach.note_lost(tunnel, reason, visited, context) == Change::Down {
                streams.cut_all(tunnel, context);
            }
        }
    }

    /// Takes everybody who waits, and nobody after that.
    pub(super) fn drain(&mut self, streams: &mut Streams, context: &mut Context) {
        self.closing = true;
        for (door, client) in self.doors.close(&mut context.engine) {
            self.begin(door, client, streams, context);
        }
    }

    pub(super) fn leave(&mut self, context: &mut Context) {
        self.reaches.iter_mut().for_each(|reach| reach.leave(context));
        for arena in self.arenas.drain(..) {
            context.engine.forget(arena.socket, arena.token);
        }
    }
}

/// Ports are counted: whoever comes to one that the provider has not is turned away, and would not know why.
fn warn_of_missing_ports(visited: &Visited, tunnel: PeerId, context: &mut Context) {
    let Some((tcp, udp)) = context.peers.get(tunnel).and_then(|peer| peer.ports()) else { return };
    if visited.tcp > tcp || visited.udp > udp {
        tracing::warn!(
            service = %visited.name, tcp, udp,
            "the provider has so few ports: players of those that come after them here are turned away"
        );
    }
}
