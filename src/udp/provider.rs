//! The provider's end: whoever knows the secret is connected to the service. What can be reached is fixed here; a visitor only
//! counts ports.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::Context;
use super::peers::{Loss, PeerId};
use super::sessions::Sessions;
use super::settings::Provided;
use super::status::PeerStatus;
use super::stream::{Joint, State};
use super::streams::Streams;
use crate::engine::Token;
use crate::proto::proxy_header::{self, HEADER_BYTES_MAX, Transport};
use crate::proto::rendezvous::wire::Channel;
use crate::proto::tunnel::{CloseReason, DatagramInfo, ResetReason, Way};
use crate::sys::udp;
use crate::sys::{clock, socket};

/// Batches taken from the service for one player before others have their turn.
const BATCHES_PER_TURN: usize = 4;

#[derive(Debug)]
pub(super) struct Provider {
    services: Vec<Provided>,
    /// The service of each tunnel.
    tunnels: HashMap<PeerId, usize>,
    /// Players of datagrams who have nothing but the game come in the tunnel to the rendezvous: service and port of each of its
    /// ports.
    channels: HashMap<u8, (usize, u8)>,
    rendezvous: Option<PeerId>,
    /// Players of datagrams.
    games: Sessions<Play, Game>,
    /// Numbers of those whose service may have said something.
    readable: Vec<u32>,
    closing: bool,
}

/// A player, as a visitor names him.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Play {
    tunnel: PeerId,
    session: u32,
    port: u8,
}

/// A player's socket to the service.
#[derive(Debug)]
struct Game {
    socket: OwnedFd,
    token: Token,
    /// In the list of those.
    readable: bool,
    /// The PROXY header that goes before each datagram.
    header: Vec<u8>,
}

impl Provider {
    pub(super) fn new(services: Vec<Provided>, context: &mut Context) -> Self {
        let mut provider = Self {
            services,
            tunnels: HashMap::new(),
            channels: HashMap::new(),
            rendezvous: None,
            games: Sessions::new(),
            readable: Vec::new(),
            closing: false,
        };
        provider.publish(context);
        provider
    }

    fn publish(&mut self, context: &mut Context) {
        for key in &context.keys {
            for provided in &self.services {
                context.peers.serve(key.clone(), provided.name, provided.service());
            }
        }
    }

    fn withdraw(&mut self, context: &mut Context) {
        for provided in &self.services {
            context.peers.withdraw(&provided.name);
        }
    }

    /// The same services elsewhere, or under other keys. Tunnels go on.
    pub(super) fn reload(&mut self, services: Vec<Provided>, context: &mut Context) {
        self.withdraw(context);
        self.services = services;
        if !self.closing {
            self.publish(context);
        }
    }

    pub(super) fn sessions(&self) -> usize {
        self.games.len()
    }

    pub(super) fn peers(&self, context: &mut Context) -> Vec<(Option<PeerId>, PeerStatus)> {
        let of = |(tunnel, service): (&PeerId, &usize)| {
            let service = self.services.get(*service)?;
            Some((Some(*tunnel), context.peers.get(*tunnel)?.report(service.name)))
        };
        self.tunnels.iter().filter_map(of).collect()
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.readable.is_empty()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.games.deadline()
    }

    pub(super) fn note_established(&mut self, tunnel: PeerId, context: &mut Context) {
        let Some(of) = context.peers.get(tunnel) else { return };
        let is_asked_for = |provided: &Provided| of.service().is_none_or(|name| name == provided.name);
        let Some(service) = self.services.iter().position(is_asked_for) else { return };
        tracing::info!(service = %self.services[service].name, visitor = %Way::of(of.remote()), "peer reached");
        self.tunnels.insert(tunnel, service);
    }

    pub(super) fn note_lost(&mut self, tunnel: PeerId, reason: Loss, streams: &mut Streams, context: &mut Context) {
        if let Some(service) = self.tunnels.remove(&tunnel) {
            let service = self.services.get(service).map(|provided| tracing::field::display(provided.name));
            tracing::info!(service, %reason, "a visitor is gone");
        }
        streams.cut_all(tunnel, context);
        self.forget_games(tunnel, context);
    }

    fn forget_games(&mut self, tunnel: PeerId, context: &mut Context) {
        self.games
            .remove_where(|play, _| play.tunnel == tunnel, |_, game| context.engine.forget(game.socket, game.token));
    }

    /// The rendezvous lets players in. One that has not the peers' secret cannot.
    pub(super) fn note_channel(&mut self, channel: &Channel, context: &Context) {
        let service = self.services.iter().position(|provided| provided.name == channel.service);
        let is_trusted = context.settings.via.as_ref().is_some_and(|via| !via.has_own_secret);
        if let Some(service) = service.filter(|_| is_trusted) {
            self.channels.insert(channel.number, (service, channel.port));
        }
    }

    /// The tunnel to the rendezvous, which may be another one than before.
    pub(super) fn note_rendezvous(&mut self, tunnel: Option<PeerId>, context: &mut Context) {
        let before = std::mem::replace(&mut self.rendezvous, tunnel);
        if let Some(before) = before.filter(|_| before != tunnel) {
            self.channels.clear();
            self.forget_games(before, context);
        }
    }

    /// A visitor's player wants to be connected.
    pub(super) fn note_opened(
        &mut self,
        joint: Joint,
        port: u8,
        player: Option<SocketAddr>,
        streams: &mut Streams,
        context: &mut Context,
    ) {
        let provided = self.tunnels.get(&joint.peer).and_then(|service| self.services.get(*service));
        let target = provided.and_then(|provided| provided.tcp.get(usize::from(port)));
        let (Some(provided), Some(&target)) = (provided, target) else {
            return refuse(joint, ResetReason::NoSuchPort, context);
        };
        if self.closing {
            return refuse(joint, ResetReason::Refused, context);
        }
        if streams.len() + self.games.len() >= context.settings.connections_max {
            return refuse(joint, ResetReason::TooMany, context);
        }
        let mut header = Vec::new();
        if provided.proxy_header {
            proxy_header::emit(Transport::Stream, player, target, &mut header);
        }
        let until = context.now + context.settings.dial_timeout;
        let connected = socket::connect(target).and_then(|socket| {
            socket::prepare(socket.as_fd())?;
            socket::keep_alive(socket.as_fd(), crate::tcp::LIVENESS)?;
            streams.add(socket, State::Dialing { joint, target, until, header, peer_ended: None }, context)
        });
        match connected {
            Ok(key) => {
                if let Some(stream) = streams.get(key) {
                    stream.player = player;
                }
                streams.advance(key.slot, context); // sets its deadline
            }
            Err(error) => {
                tracing::debug!(%error, %target, "the service cannot be connected to");
                refuse(joint, ResetReason::Refused, context);
            }
        }
    }

    pub(super) fn note_arrival(&mut self, token: Token) {
        self.mark_readable(token.slot);
    }

    pub(super) fn watch_again(&mut self, token: Token, context: &mut Context) {
        self.mark_readable(token.slot);
        if let Some((_, game)) = self.games.peek_number(token.slot)
            && let Err(error) = context.engine.watch_arrivals(game.socket.as_fd(), token)
        {
            tracing::error!(%error, "a game is not watched any more");
        }
    }

    fn mark_readable(&mut self, number: u32) {
        if let Some((_, game)) = self.games.peek_number(number)
            && !std::mem::replace(&mut game.readable, true)
        {
            self.readable.push(number);
        }
    }

    /// One turn: answers of services go to the players, and silent sessions are forgotten.
    pub(super) fn turn(&mut self, context: &mut Context) {
        for number in std::mem::take(&mut self.readable) {
            if self.hear_service(number, context) {
                self.readable.push(number);
            }
        }
        self.games.sweep(context.now, self.closing, |_, game| context.engine.forget(game.socket, game.token));
    }

    /// True when there may be more.
    fn hear_service(&mut self, number: u32, context: &mut Context) -> bool {
        for _ in 0..BATCHES_PER_TURN {
            let Some((play, game)) = self.games.by_number(number, context.now) else { return false };
            let Some(mut tunnel) = context.peers.get(play.tunnel) else { return false };
            match udp::receive(game.socket.as_fd(), &mut context.scratch) {
                Ok(received) => {
                    if received.bytes == 0 {
                        tunnel.send_datagram(play.session, play.port, None, &[]);
                    }
                    for datagram in received.datagrams(&mut context.scratch) {
                        tunnel.send_datagram(play.session, play.port, None, datagram);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    game.readable = false;
                    return false;
                }
                Err(_unreachable) => {} // told once; the service may come back
            }
        }
        true
    }

    /// Hands a tunnel's datagrams to the service.
    pub(super) fn deliver(&mut self, tunnel: PeerId, streams: &Streams, context: &mut Context) {
        loop {
            context.datagram.clear();
            context.datagram.resize(HEADER_BYTES_MAX, 0);
            let Some(mut of) = context.peers.get(tunnel) else { return };
            let Some(info) = of.read_datagram(&mut context.datagram) else { return };
            let service = self.tunnels.get(&tunnel).map(|service| (*service, info.port));
            self.pass_on(tunnel, &info, service, streams, context);
        }
    }

    /// The same for one that the rendezvous has sent for a player of its own.
    pub(super) fn deliver_play(
        &mut self,
        rendezvous: PeerId,
        info: &DatagramInfo,
        streams: &Streams,
        context: &mut Context,
    ) {
        let service = self.channels.get(&info.port).copied();
        self.pass_on(rendezvous, info, service, streams, context);
    }

    /// Hands the datagram that was read, behind room for a header, to a port of a service.
    fn pass_on(
        &mut self,
        tunnel: PeerId,
        info: &DatagramInfo,
        service: Option<(usize, u8)>,
        streams: &Streams,
        context: &mut Context,
    ) {
        let Some(game) = self.game(tunnel, info, service, streams, context) else { return };
        // The header stands at the end of the room that was left for it.
        let start = HEADER_BYTES_MAX - game.header.len();
        context.datagram[start..HEADER_BYTES_MAX].copy_from_slice(&game.header);
        // Lost, as on any bad network; that nobody listens is told once, to the next call.
        let sent = socket::send(game.socket.as_fd(), &context.datagram[start..]);
        if sent.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
            let _ = socket::send(game.socket.as_fd(), &context.datagram[start..]);
        }
    }

    /// The socket of a player, which is opened for the first datagram.
    fn game(
        &mut self,
        tunnel: PeerId,
        info: &DatagramInfo,
        service: Option<(usize, u8)>,
        streams: &Streams,
        context: &mut Context,
    ) -> Option<&mut Game> {
        let (service, port) = service?;
        let provided = self.services.get(service)?;
        let &target = provided.udp.get(usize::from(port))?;
        let play = Play { tunnel, session: info.session, port: info.port };
        let full = streams.len() + self.games.len() >= context.settings.connections_max;
        if (full || self.closing) && !self.games.knows(&play) {
            return None;
        }
        let open = |number| {
            let socket = udp::connect(target).ok()?;
            let token = Token::new(number, 0, super::GAME);
            context.engine.watch_arrivals(socket.as_fd(), token).ok()?;
            let mut header = Vec::new();
            if provided.proxy_header {
                proxy_header::emit(Transport::Datagram, info.player, target, &mut header);
            }
            Some(Game { socket, token, readable: false, header })
        };
        self.games.get_or_insert(play, clock::now(), open).map(|(_, game)| game)
    }

    /// Answers nobody new.
    pub(super) fn drain(&mut self, context: &mut Context) {
        self.closing = true;
        self.withdraw(context);
    }

    pub(super) fn leave(&mut self, context: &mut Context) {
        for tunnel in self.tunnels.keys() {
            context.peers.close(*tunnel, CloseReason::Leaving);
        }
    }
}

fn refuse(joint: Joint, reason: ResetReason, context: &mut Context) {
    if let Some(mut tunnel) = context.peers.get(joint.peer) {
        tunnel.reset(joint.stream, reason);
    }
}
