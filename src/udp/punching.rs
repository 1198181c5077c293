//! One round of punching, with its sockets: what [`Attempt`] decides is done here, and what comes of it is told back.
//!
//! A round has fresh sockets, since a NAT may hold what it has learnt of older ones against us; only a port that the operator has
//! chosen is used again and again. When it is over, what leads nowhere is closed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use super::Context;
use super::carrier::Carrier;
use super::peers::PeerId;
use super::via::Via;
use crate::engine::Token;
use crate::limits;
use crate::proto::punch::{
    self, Action, Attempt, Hosts, Message, Profile, Question, Setup, Shot, ShotKind, Socket, Verdict,
};
use crate::proto::tunnel::Way;
use crate::sys::{network, socket, udp};

#[derive(Debug)]
pub(super) struct Punching {
    attempt: Attempt,
    /// By number.
    wires: BTreeMap<Socket, u32>,
    /// Connections, by where they go to.
    links: HashMap<SocketAddr, u32>,
    /// For connections of the peer from a port that nobody could know.
    listener: Option<(OwnedFd, Token)>,
    /// What probes to an address carry, as the round names it.
    tokens: HashMap<SocketAddr, punch::Token>,
}

/// What remains of a round.
#[derive(Debug, Default)]
pub(super) struct Won {
    pub wires: Vec<u32>,
    pub links: Vec<u32>,
}

/// What is known before a round begins.
pub(super) struct Ground {
    setup: Setup,
    wires: BTreeMap<Socket, u32>,
}

impl Ground {
    /// Opens sockets, and looks around. Of what cannot be had there is nothing.
    pub(super) fn new(via: &Via, carrier: &mut Carrier, context: &mut Context) -> Self {
        let (observers, hosts) = (via.observers(), network::addresses().unwrap_or_default());
        let mut wires = BTreeMap::new();
        for (socket, any) in [(Socket::Main4, IpAddr::from([0; 4])), (Socket::Main6, IpAddr::from([0u16; 8]))] {
            let is_of_use = |ip: &IpAddr| ip.is_ipv4() == any.is_ipv4();
            if hosts.iter().any(is_of_use) {
                let wire = carrier.chosen_wire(any).or_else(|| open(any, true, carrier, context).ok());
                wires.extend(wire.map(|wire| (socket, wire)));
            }
        }
        let host = |ip: IpAddr| {
            let wire = wires.get(if ip.is_ipv4() { &Socket::Main4 } else { &Socket::Main6 })?;
            Some(SocketAddr::new(ip, carrier.port(*wire)?))
        };
        let has_socket =
            |to: &SocketAddr| wires.contains_key(if to.is_ipv4() { &Socket::Main4 } else { &Socket::Main6 });
        let setup = Setup {
            observers: observers.into_iter().filter(has_socket).collect(),
            hosts: hosts.into_iter().filter_map(host).collect(),
            mapped: carrier.mapped().filter(|_| wires.contains_key(&Socket::Main4)),
            tcp_reflexive: via.tcp_reflexive(),
            was_blocked: via.is_udp_blocked(),
            rtt_us: via.rtt_us(context),
        };
        tracing::debug!(rtt_us = setup.rtt_us, was_blocked = setup.was_blocked, "a round of punching begins");
        Self { setup, wires }
    }

    /// As the visitor.
    pub(super) fn call(self, number: u32, context: &Context) -> Punching {
        let attempt = Attempt::call(context.now_us(), number, self.setup, context.seed());
        Punching::new(attempt, self.wires)
    }

    /// As the provider, who was called.
    pub(super) fn answer(self, number: u32, caller: Profile, one_way_us: u64, context: &Context) -> Punching {
        let attempt = Attempt::answer(context.now_us(), number, caller, one_way_us, self.setup, context.seed());
        Punching::new(attempt, self.wires)
    }
}

impl Punching {
    fn new(attempt: Attempt, wires: BTreeMap<Socket, u32>) -> Self {
        Self { attempt, wires, links: HashMap::new(), listener: None, tokens: HashMap::new() }
    }

    pub(super) fn number(&self) -> u32 {
        self.attempt.number()
    }

    pub(super) fn is_over(&self) -> bool {
        self.attempt.is_over()
    }

    pub(super) fn verdict(&self, now: u64) -> Verdict {
        self.attempt.verdict(now)
    }

    pub(super) fn next_timeout(&self, now: u64) -> u64 {
        self.attempt.next_timeout(now).unwrap_or(now)
    }

    /// Does what is due.
    pub(super) fn step(&mut self, peer: PeerId, via: &Via, carrier: &mut Carrier, context: &mut Context) {
        while let Some(action) = self.attempt.poll(context.now_us()) {
            match action {
                Action::Observe(question) => self.observe(&question, via, carrier, context),
                Action::Tell(message) => tell(peer, &message, context),
                Action::Shoot(shot) => self.shoot(shot, peer, via, carrier, context),
            }
        }
        if self.attempt.listens(context.now_us()) {
            self.listen(via, carrier, context);
        }
    }

    fn observe(&mut self, question: &Question, via: &Via, carrier: &mut Carrier, context: &mut Context) {
        let now = context.now_us();
        let Some(wire) = self.wires.get(&question.from) else { return };
        context.datagram.clear();
        if let Some(rendezvous) = via.tunnel().and_then(|tunnel| context.peers.tunnel(tunnel)) {
            rendezvous.observe(now, question.token, &mut context.datagram);
            carrier.send_from(*wire, question.to, None, &context.datagram);
        }
    }

    fn shoot(&mut self, shot: Shot, peer: PeerId, via: &Via, carrier: &mut Carrier, context: &mut Context) {
        if shot.kind == ShotKind::Tcp {
            return self.connect(shot.to, via, carrier, context);
        }
        let wire = match self.wires.get(&shot.from) {
            Some(wire) => *wire,
            None => match open([0; 4].into(), false, carrier, context) {
                Ok(wire) => *self.wires.entry(shot.from).or_insert(wire),
                Err(_no_more_of_them) => return,
            },
        };
        let now = context.now_us();
        let Some(tunnel) = context.peers.tunnel(peer) else { return };
        context.datagram.clear();
        tunnel.probe(now, shot.to, &mut context.datagram);
        carrier.send_from(wire, shot.to, shot.ttl, &context.datagram);
        self.tokens.insert(shot.to, shot.token);
    }

    /// Takes connections of the peer, at the same port.
    fn listen(&mut self, via: &Via, carrier: &mut Carrier, context: &mut Context) {
        if self.listener.is_none() {
            // Its own number among those of all rounds: that of one of its sockets.
            let token = Token::new(super::PUNCHING, self.wires.values().next().copied().unwrap_or(0), 0);
            let listener =
                via.local_address(carrier).and_then(|at| socket::listen(at, true, limits::LINKS_MAX as i32).ok());
            self.listener = listener
                .filter(|listener| context.engine.watch_arrivals(listener.as_fd(), token).is_ok())
                .map(|listener| (listener, token));
        }
        let Some((listener, _)) = &self.listener else { return };
        while let Ok(connection) = socket::accept(listener.as_fd()) {
            if let Ok(from) = socket::peer_address(connection.as_fd())
                && let Ok(link) = carrier.links.accept(connection, context.now, &mut context.engine)
            {
                self.links.entry(from).or_insert(link);
            }
        }
    }

    /// From the port that the rendezvous knows, since a NAT has opened that one already.
    fn connect(&mut self, to: SocketAddr, via: &Via, carrier: &mut Carrier, context: &mut Context) {
        if self.links.contains_key(&to) {
            return;
        }
        let from = via.local_address(carrier).filter(|from| from.is_ipv4() == to.is_ipv4());
        if let Ok(link) = carrier.links.connect(to, from, &mut context.engine) {
            self.links.insert(to, link);
        }
    }

    /// How long the peer's packets take is known better by now.
    pub(super) fn note_rtt(&mut self, rtt_us: u64) {
        self.attempt.note_one_way(rtt_us / 2);
    }

    // What comes back.

    pub(super) fn note_observed(&mut self, token: punch::Token, address: SocketAddr, context: &Context) {
        self.attempt.on_observed(context.now_us(), token, address);
    }

    pub(super) fn note_told(&mut self, mut message: Message, hosts: &mut Hosts, context: &Context) {
        if self.attempt.waits_for(&message)
            && let Message::Answer { profile, .. } = &mut message
        {
            *profile = hosts.ration(context.now_us(), profile);
        }
        self.attempt.on_told(context.now_us(), &message);
    }

    pub(super) fn note_probed(&mut self, from: SocketAddr, carrier: &Carrier, context: &Context) {
        if let Some((socket, from)) = self.socket_of(from, carrier) {
            self.attempt.on_probed(context.now_us(), socket, from);
        }
    }

    pub(super) fn note_answered(&mut self, from: SocketAddr, carrier: &Carrier, context: &Context) {
        let now = context.now_us();
        match self.socket_of(from, carrier) {
            Some((Socket::Link, to)) => self.attempt.on_connected(now, to),
            Some((socket, from)) => {
                // The tunnel has seen to it that what was answered had gone there.
                if let Some(token) = self.tokens.get(&from) {
                    self.attempt.on_answered(now, *token, socket, from);
                }
            }
            None => {}
        }
    }

    /// A connection has failed or ended, and may be tried again.
    pub(super) fn note_link_down(&mut self, link: u32) {
        self.links.retain(|_, other| *other != link);
    }

    pub(super) fn has_link(&self, link: u32) -> bool {
        self.links.values().any(|other| *other == link)
    }

    /// The socket on which something came from there, and the peer's address as the round knows it.
    fn socket_of(&self, from: SocketAddr, carrier: &Carrier) -> Option<(Socket, SocketAddr)> {
        match Way::of(from) {
            Way::Udp(_) => {
                let wire = carrier.wire_of(from)?;
                let (socket, _) = self.wires.iter().find(|(_, other)| **other == wire)?;
                Some((*socket, from))
            }
            Way::Link(link) => {
                let (to, _) = self.links.iter().find(|(_, other)| **other == link)?;
                Some((Socket::Link, *to))
            }
            Way::Flow { .. } => None,
        }
    }

    /// Closes what leads nowhere. `won`: a way was found, and sockets on which the peer was heard are part of it.
    pub(super) fn end(self, won: bool, carrier: &mut Carrier, context: &mut Context) -> Won {
        let mut left = Won::default();
        if let Some((listener, token)) = self.listener {
            context.engine.forget(listener, token);
        }
        for wire in self.wires.into_values() {
            if won && carrier.is_heard_on(wire) {
                carrier.enlarge(wire);
                left.wires.push(wire);
            } else {
                carrier.remove(wire, &mut context.engine);
            }
        }
        for link in self.links.into_values() {
            if won && carrier.links.is_heard(link) {
                left.links.push(link);
            } else {
                carrier.links.close(link, &mut context.engine);
            }
        }
        left
    }
}

pub(super) fn tell(peer: PeerId, message: &Message, context: &mut Context) {
    let mut bytes = Vec::new();
    message.emit(&mut bytes);
    if let Some(tunnel) = context.peers.tunnel(peer) {
        tunnel.tell(&bytes);
    }
}

fn open(any: IpAddr, is_main: bool, carrier: &mut Carrier, context: &mut Context) -> io::Result<u32> {
    let socket = udp::bind(SocketAddr::new(any, 0), false)?;
    if is_main {
        udp::enlarge_buffers(socket.as_fd());
    }
    carrier.add(socket, &mut context.engine)
}
