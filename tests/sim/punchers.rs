//! Two peers that punch through what is between them, with a rendezvous to ask: what their daemons do, on a virtual clock.
//!
//! Probes are a stand-in for those that the tunnel seals: they carry a secret which both peers know, and nobody else. What the
//! peers tell each other goes through the relay, reliably: four lines long, and longer when a packet of it is lost. TCP is so much
//! of it that two can open a connection at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use gateway::proto::punch::{Action, Attempt, Message, Setup, Shot, ShotKind, Socket, Token, Verdict};

use super::house::{House, LINE_DELAY_US, Place};
use super::internet::{Cable, HostId, Internet, PUBLIC, Packet, TTL};
use super::nat::Protocol;
use super::rng::Rng;
use super::{MS, SECOND};

/// From one peer to the other through the relay.
pub const RELAY_ONE_WAY_US: u64 = 4 * LINE_DELAY_US;

/// Until the tunnel repeats what was lost on that way: its round trip and a half.
const RELAY_REPEAT_US: u64 = 3 * RELAY_ONE_WAY_US;

const RENDEZVOUS_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const RENDEZVOUS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x53, 0, 0, 0, 0, 0x10);
const RENDEZVOUS_PORT: u16 = 4000;

/// The system repeats the first packet of a connection.
const SYN_REPEAT_US: u64 = SECOND;

/// Only the two peers know it.
const SECRET: u64 = 0x5ec2_e75e_c2e7;

/// Of the check after a round, no probe of a round.
const CHECK: Token = *b"checking";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Payload {
    Observe(Token),
    Observed(Token, SocketAddr),
    Probe { secret: u64, token: Token },
    Answer { secret: u64, token: Token },
    Syn,
    SynAck,
    Ack,
    Reset,
}

pub struct World {
    pub net: Internet<Payload>,
    pub peers: [Peer; 2],
    pub now: u64,
    rendezvous: HostId,
    rng: Rng,
    loss: f64,
    /// What is on its way through the relay: when it arrives and at whom.
    mail: Vec<(u64, usize, Vec<u8>)>,
    /// How wrong the provider is about the delay of its answer.
    pub skew_us: i64,
    /// The first time.
    called_at: Option<u64>,
}

pub struct Peer {
    pub place: Place,
    /// The rendezvous has seen that UDP is blocked, at an earlier time.
    pub was_blocked: bool,
    pub attempt: Option<Attempt>,
    sockets: BTreeMap<Socket, SocketAddr>,
    tcp_reflexive: Option<SocketAddr>,
    /// Connections that are being tried, and when the first packet is sent again.
    connecting: BTreeMap<SocketAddr, u64>,
    /// Whom the listener has let in, as far as it knows.
    accepting: BTreeSet<SocketAddr>,
    /// When the verdict became direct.
    direct_at: Option<u64>,
    pub shots: Vec<(u64, Shot)>,
    checked: BTreeSet<SocketAddr>,
}

/// What came of all rounds.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// From the first call until both sides had an answer. `None`: the relay remains.
    pub direct_us: Option<u64>,
    pub rounds: u32,
    pub verdicts: [Verdict; 2],
    pub shots: [usize; 2],
}

impl World {
    pub fn between(seed: u64, visitor: &House, provider: &House, loss: f64) -> Self {
        let mut net = Internet::seeded(seed);
        let places = [visitor.build(&mut net, 0, loss), provider.build(&mut net, 1, loss)];
        let mut world = Self::new(seed, net, places, loss);
        world.peers[0].was_blocked = visitor.is_blocked();
        world.peers[1].was_blocked = provider.is_blocked();
        world
    }

    pub fn new(seed: u64, mut net: Internet<Payload>, places: [Place; 2], loss: f64) -> Self {
        let line = Cable { delay_us: LINE_DELAY_US, loss, hops: 4 };
        let rendezvous = net.add_host(PUBLIC, &[RENDEZVOUS_V4.into(), RENDEZVOUS_V6.into()], line);
        let (peers, mail) = (places.map(Peer::new), Vec::new());
        let rng = Rng::seeded(seed ^ 0xfeed);
        let mut world = Self { net, peers, now: SECOND, rendezvous, rng, loss, mail, skew_us: 0, called_at: None };
        for peer in 0..2 {
            world.log_in(peer);
        }
        world.run_until(5 * SECOND, |world| world.peers.iter().all(|peer| peer.tcp_reflexive.is_some()));
        world
    }

    /// Rounds until one succeeds, `most` at the most, as far apart as they are in a daemon.
    pub fn punch(&mut self, most: u32) -> Outcome {
        let mut rounds = 0;
        for pause_us in [0, 2 * SECOND, 8 * SECOND, 30 * SECOND] {
            let wait_until = self.now + pause_us;
            self.run_until(wait_until, |_| false);
            self.begin(rounds);
            self.run_until(self.now + 12 * SECOND, Self::is_over);
            rounds += 1;
            if rounds == most || self.peers.iter().all(|peer| peer.direct_at.is_some()) {
                break;
            }
        }
        let verdicts = [0, 1].map(|peer| self.verdict(peer));
        let direct_at: Option<Vec<u64>> = self.peers.iter().map(|peer| peer.direct_at).collect();
        let direct_us = direct_at.and_then(|at| Some(at.into_iter().max()? - self.called_at?));
        Outcome { direct_us, rounds, verdicts, shots: [0, 1].map(|peer| self.peers[peer].shots.len()) }
    }

    /// Each side's way works in both directions, by one pair of addresses.
    pub fn both_ways_work(&mut self) -> bool {
        for peer in 0..2 {
            let Verdict::Direct { socket, remote } = self.verdict(peer) else { return false };
            if socket != Socket::Link {
                for _ in 0..if self.loss > 0.0 { 20 } else { 1 } {
                    self.send(peer, socket, remote, TTL, Payload::Probe { secret: SECRET, token: CHECK });
                }
                self.run_until(self.now + SECOND, |world| world.peers[peer].checked.contains(&remote));
                if !self.peers[peer].checked.contains(&remote) {
                    return false;
                }
            }
        }
        true
    }

    /// The visitor gathers, and everything follows.
    pub fn begin(&mut self, number: u32) {
        for peer in 0..2 {
            self.peers[peer].direct_at = None;
            self.peers[peer].attempt = None;
        }
        let (setup, seed) = (self.fresh_sockets(0), self.rng.seed());
        self.peers[0].attempt = Some(Attempt::call(self.now, number, setup, seed));
    }

    pub fn is_over(&self) -> bool {
        self.peers.iter().all(|peer| peer.attempt.as_ref().is_some_and(Attempt::is_over))
            || (self.peers[1].attempt.is_none() && self.peers[0].attempt.as_ref().is_some_and(Attempt::is_over))
    }

    pub fn verdict(&self, peer: usize) -> Verdict {
        self.peers[peer].attempt.as_ref().map_or(Verdict::Underway, |attempt| attempt.verdict(self.now))
    }

    pub fn run_until(&mut self, until: u64, is_done: impl Fn(&Self) -> bool) {
        loop {
            for peer in 0..2 {
                self.drain(peer);
            }
            if is_done(self) {
                return;
            }
            let next = self.next_event().unwrap_or(u64::MAX).max(self.now);
            if next > until {
                self.now = self.now.max(until);
                return;
            }
            self.now = next;
            self.deliver();
        }
    }

    fn next_event(&self) -> Option<u64> {
        let attempts = self.peers.iter().filter_map(|peer| peer.attempt.as_ref()?.next_timeout(self.now));
        let connecting = self.peers.iter().flat_map(|peer| peer.connecting.values().copied());
        let mail = self.mail.iter().map(|(at, ..)| *at);
        attempts.chain(connecting).chain(mail).chain(self.net.next_event()).min()
    }

    fn deliver(&mut self) {
        while let Some((host, packet)) = self.net.poll(self.now) {
            match self.peers.iter().position(|peer| peer.place.host == host) {
                Some(peer) => self.on_packet(peer, packet),
                None => self.observe(packet),
            }
        }
        let (due, rest) = std::mem::take(&mut self.mail).into_iter().partition(|(at, ..)| *at <= self.now);
        self.mail = rest;
        let due: Vec<(u64, usize, Vec<u8>)> = due;
        for (_, peer, bytes) in due {
            self.on_mail(peer, &bytes);
        }
        for peer in 0..2 {
            self.repeat_syns(peer);
        }
    }

    /// What the rendezvous does with a question.
    fn observe(&mut self, packet: Packet<Payload>) {
        let Payload::Observe(token) = packet.payload else { return };
        let payload = Payload::Observed(token, packet.from);
        let answer = Packet { from: packet.to, to: packet.from, ttl: TTL, payload, protocol: packet.protocol };
        self.net.send(self.now, self.rendezvous, answer);
    }

    fn drain(&mut self, peer: usize) {
        while let Some(action) = self.peers[peer].attempt.as_mut().and_then(|attempt| attempt.poll(self.now)) {
            match action {
                Action::Observe(question) => {
                    self.send(peer, question.from, question.to, TTL, Payload::Observe(question.token));
                }
                Action::Tell(message) => self.tell(peer, &message),
                Action::Shoot(shot) => self.shoot(peer, shot),
            }
        }
        let is_direct = matches!(self.verdict(peer), Verdict::Direct { .. });
        if is_direct {
            self.peers[peer].direct_at.get_or_insert(self.now);
        }
    }

    fn shoot(&mut self, peer: usize, shot: Shot) {
        self.peers[peer].shots.push((self.now, shot));
        match shot.kind {
            ShotKind::Udp => {
                let payload = Payload::Probe { secret: SECRET, token: shot.token };
                self.send(peer, shot.from, shot.to, shot.ttl.unwrap_or(TTL), payload);
            }
            ShotKind::Tcp if !self.peers[peer].connecting.contains_key(&shot.to) => {
                self.peers[peer].connecting.insert(shot.to, self.now + SYN_REPEAT_US);
                self.send(peer, Socket::Link, shot.to, TTL, Payload::Syn);
            }
            ShotKind::Tcp => {}
        }
    }

    fn tell(&mut self, peer: usize, message: &Message) {
        if matches!(message, Message::Call { .. }) {
            self.called_at.get_or_insert(self.now);
        }
        let mut bytes = Vec::new();
        message.emit(&mut bytes);
        let mut at = self.now + RELAY_ONE_WAY_US;
        while self.rng.chance(1.0 - (1.0 - self.loss).powi(4)) {
            at += RELAY_REPEAT_US;
        }
        self.mail.push((at, 1 - peer, bytes));
    }

    fn on_mail(&mut self, peer: usize, bytes: &[u8]) {
        let message = Message::parse(bytes).expect("what a peer has emitted");
        match message {
            Message::Call { round, profile } => {
                let (setup, seed) = (self.fresh_sockets(peer), self.rng.seed());
                let one_way_us = RELAY_ONE_WAY_US.saturating_add_signed(self.skew_us);
                let attempt = Attempt::answer(self.now, round, profile, one_way_us, setup, seed);
                self.peers[peer].attempt = Some(attempt);
            }
            Message::Answer { .. } | Message::Punched { .. } | Message::Declined { .. } | Message::Again => {
                if let Some(attempt) = &mut self.peers[peer].attempt {
                    attempt.on_told(self.now, &message);
                }
            }
        }
    }

    fn on_packet(&mut self, peer: usize, packet: Packet<Payload>) {
        let local = self.peers[peer].sockets.iter().find(|(_, address)| **address == packet.to);
        let Some((socket, _)) =
            local.filter(|(socket, _)| (**socket == Socket::Link) == (packet.protocol == Protocol::Tcp))
        else {
            return;
        };
        let (socket, from, now) = (*socket, packet.from, self.now);
        match packet.payload {
            Payload::Observed(_, address) if socket == Socket::Link => self.peers[peer].tcp_reflexive = Some(address),
            Payload::Observed(token, address) => {
                self.peers[peer].with_attempt(|attempt| attempt.on_observed(now, token, address));
            }
            Payload::Probe { secret: SECRET, token } => {
                self.send(peer, socket, from, TTL, Payload::Answer { secret: SECRET, token });
                self.peers[peer].with_attempt(|attempt| attempt.on_probed(now, socket, from));
            }
            Payload::Answer { secret: SECRET, token: CHECK } => {
                self.peers[peer].checked.insert(from);
            }
            Payload::Answer { secret: SECRET, token } => {
                self.peers[peer].with_attempt(|attempt| attempt.on_answered(now, token, socket, from));
            }
            Payload::Syn => self.on_syn(peer, from),
            Payload::SynAck => {
                self.send(peer, Socket::Link, from, TTL, Payload::Ack);
                self.peers[peer].connect(now, from);
            }
            Payload::Ack => self.peers[peer].accept(now, from),
            Payload::Reset => {
                self.peers[peer].connecting.remove(&from);
            }
            Payload::Observe(_) | Payload::Probe { .. } | Payload::Answer { .. } => {}
        }
    }

    /// From one to whom we are connecting ourselves, or for the listener.
    fn on_syn(&mut self, peer: usize, from: SocketAddr) {
        let Peer { connecting, accepting, attempt, .. } = &mut self.peers[peer];
        let listens = attempt.as_ref().is_some_and(|attempt| attempt.listens(self.now));
        if listens && !connecting.contains_key(&from) {
            accepting.insert(from);
        }
        let is_expected = listens || connecting.contains_key(&from);
        self.send(peer, Socket::Link, from, TTL, if is_expected { Payload::SynAck } else { Payload::Reset });
    }

    fn repeat_syns(&mut self, peer: usize) {
        let due = self.peers[peer].connecting.iter().filter(|(_, at)| **at <= self.now);
        for to in due.map(|(to, _)| *to).collect::<Vec<_>>() {
            self.peers[peer].connecting.insert(to, self.now + SYN_REPEAT_US);
            self.send(peer, Socket::Link, to, TTL, Payload::Syn);
        }
    }

    /// What only somebody does who does not know the secret.
    pub fn send(&mut self, peer: usize, socket: Socket, to: SocketAddr, ttl: u8, payload: Payload) {
        let from = self.socket(peer, socket);
        let protocol = if socket == Socket::Link { Protocol::Tcp } else { Protocol::Udp };
        self.net.send(self.now, self.peers[peer].place.host, Packet { protocol, from, to, ttl, payload });
    }

    fn socket(&mut self, peer: usize, socket: Socket) -> SocketAddr {
        let place = self.peers[peer].place;
        let port = 32_768 + self.rng.below(28_000) as u16;
        let ip = if socket == Socket::Main6 { place.v6.map(IpAddr::from) } else { Some(place.v4.into()) };
        let fresh = SocketAddr::new(ip.expect("no socket without an address"), port);
        *self.peers[peer].sockets.entry(socket).or_insert(fresh)
    }

    fn log_in(&mut self, peer: usize) {
        for _ in 0..8 {
            let to = SocketAddr::from((RENDEZVOUS_V4, RENDEZVOUS_PORT));
            self.send(peer, Socket::Link, to, TTL, Payload::Observe([0; 8])); // Eight, since some may be lost.
        }
    }

    fn fresh_sockets(&mut self, peer: usize) -> Setup {
        self.peers[peer].sockets.retain(|socket, _| *socket == Socket::Link);
        self.peers[peer].connecting.clear();
        let mut hosts = vec![self.socket(peer, Socket::Main4)];
        let mut observers = vec![RENDEZVOUS_V4.into()];
        if self.peers[peer].place.v6.is_some() {
            hosts.push(self.socket(peer, Socket::Main6));
            observers.push(IpAddr::from(RENDEZVOUS_V6));
        }
        let ports = [RENDEZVOUS_PORT, RENDEZVOUS_PORT + 1];
        let observers = observers.iter().flat_map(|ip| ports.map(|port| SocketAddr::new(*ip, port))).collect();
        let Peer { tcp_reflexive, was_blocked, .. } = self.peers[peer];
        Setup { observers, hosts, mapped: None, tcp_reflexive, was_blocked, rtt_us: None }
    }
}

impl Peer {
    fn new(place: Place) -> Self {
        let (sockets, connecting, accepting, shots, checked) = Default::default();
        let (was_blocked, attempt, tcp_reflexive, direct_at) = (false, None, None, None);
        Self { place, was_blocked, attempt, sockets, tcp_reflexive, connecting, accepting, direct_at, shots, checked }
    }

    fn with_attempt(&mut self, act: impl FnOnce(&mut Attempt)) {
        if let Some(attempt) = &mut self.attempt {
            act(attempt);
        }
    }

    fn connect(&mut self, now: u64, to: SocketAddr) {
        if self.connecting.remove(&to).is_some() {
            self.with_attempt(|attempt| attempt.on_connected(now, to));
        }
    }

    fn accept(&mut self, now: u64, from: SocketAddr) {
        if self.accepting.remove(&from) {
            self.with_attempt(|attempt| attempt.on_connected(now, from));
        }
    }
}

impl Outcome {
    pub fn direct_ms(&self) -> Option<u64> {
        self.direct_us.map(|us| us / MS)
    }
}
