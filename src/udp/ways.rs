//! The ways to each peer that was met at the rendezvous: they begin as a flow through it, and become better ones.
//!
//! [`Paths`] decides which way is used and when a round of punching is due, [`Punching`] is the round under way. Both ends have
//! all of this; the visitor decides, and the provider's tunnel follows.
//!
//! Peers tell each other about rounds inside their tunnel, so the rendezvous learns nothing of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Context;
use super::carrier::Carrier;
use super::links;
use super::peers::{Event, PeerId};
use super::punching::{self, Ground, Punching, Won};
use super::settings;
use super::status::PeerStatus;
use super::via::Via;
use crate::limits;
use crate::proto::path::{self, Kind, Mode, Output, Paths};
use crate::proto::punch::{Allowance, Hosts, Message, Side, Verdict, Why};
use crate::proto::tunnel::Way;

#[derive(Debug)]
pub(super) struct Ways {
    side: Side,
    mode: Mode,
    of: HashMap<PeerId, Peer>,
    /// Where peers may have us probe.
    hosts: Hosts,
}

#[derive(Debug)]
struct Peer {
    paths: Paths,
    allowance: Allowance,
    /// Rounds so far.
    rounds: u32,
    punching: Option<Punching>,
    /// Why the last one found nothing.
    why: Option<Why>,
    won: Won,
    /// When traffic was last sent.
    sent_at: Option<u64>,
    /// The silence after which its ways are probed, in µs.
    keep_alive_us: u64,
    due: Instant,
}

/// A tunnel asks by itself after so much silence, in µs: later than its ways are probed, which is enough.
const ASK_AFTER_US: u64 = path::INTERVAL_US + 3_000_000;

impl Ways {
    pub(super) fn new(side: Side, via: &settings::Via) -> Self {
        let mode = match via.paths {
            settings::Paths::Auto => Mode::Auto,
            settings::Paths::Direct => Mode::Direct,
            settings::Paths::Relay => Mode::Relay,
        };
        Self { side, mode, of: HashMap::new(), hosts: Hosts::default() }
    }

    /// When there is something to do, if nothing else happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.of.values().map(|peer| peer.due).min()
    }

    /// A tunnel has begun.
    pub(super) fn note_established(&mut self, id: PeerId, carrier: &mut Carrier, context: &mut Context) {
        let Some(remote) = context.peers.get(id).map(|peer| peer.remote()) else { return };
        let (now, decides) = (context.now_us(), self.side == Side::Visitor);
        let [a, b, c, d, e, f, g, h, ..] = context.seed();
        let paths = Paths::new(now, self.mode, decides, remote, u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
        let peer = Peer {
            paths,
            allowance: Allowance::new(now),
            rounds: 0,
            punching: None,
            why: None,
            won: Won::default(),
            sent_at: None,
            keep_alive_us: path::INTERVAL_US,
            due: context.now,
        };
        self.of.insert(id, peer);
        if let Some(tunnel) = context.peers.tunnel(id) {
            tunnel.ask_after(ASK_AFTER_US);
        }
        probe(id, remote, carrier, context); // how long it takes is soon to be known, for the first round
    }

    /// An authentic packet of the peer has come from there.
    pub(super) fn note_heard(&mut self, id: PeerId, from: SocketAddr, context: &Context) {
        if let Some(peer) = self.of.get_mut(&id) {
            peer.paths.heard(context.now_us(), from);
        }
    }

    /// The rendezvous has told how a socket of ours looks.
    pub(super) fn note_observed(&mut self, token: [u8; 8], address: SocketAddr, context: &Context) {
        for peer in self.of.values_mut() {
            if let Some(punching) = &mut peer.punching {
                punching.note_observed(token, address, context);
                peer.due = context.now;
            }
        }
    }

    /// What the peer says about ways to it.
    pub(super) fn hear(&mut self, id: PeerId, event: Event, via: &Via, carrier: &mut Carrier, context: &mut Context) {
        let rounds = self.rounds();
        let Some(peer) = self.of.get_mut(&id) else { return };
        let now = context.now_us();
        peer.due = context.now;
        match event {
            Event::Told => {
                while let Some(told) = context.peers.tunnel(id).and_then(|tunnel| tunnel.read_told()) {
                    if let Ok(message) = Message::parse(&told) {
                        peer.hear(id, self.side, message, (rounds, &mut self.hosts), via, carrier, context);
                    }
                }
            }
            Event::Probed { from } => {
                peer.paths.probed(now, from);
                if let Some(punching) = &mut peer.punching {
                    punching.note_probed(from, carrier, context);
                }
            }
            Event::Answered { from, rtt_us } => {
                if let Some(punching) = &mut peer.punching {
                    punching.note_answered(from, carrier, context);
                    if context.peers.get(id).is_some_and(|peer| peer.remote() == from) {
                        punching.note_rtt(rtt_us);
                    }
                }
                peer.paths.found(now, from);
                peer.paths.answered(now, from, rtt_us);
            }
            Event::Moved { to } => {
                peer.paths.moved(now, to);
                peer.log(id, context);
            }
            _ => {}
        }
    }

    /// Rounds under way.
    fn rounds(&self) -> usize {
        self.of.values().filter(|peer| peer.punching.is_some()).count()
    }

    pub(super) fn note_link(&mut self, news: &links::News, context: &Context) {
        let (&links::News::Up(link) | &links::News::Down(link, _)) = news;
        let now = context.now_us();
        for peer in self.of.values_mut() {
            if !peer.won.links.contains(&link)
                && !peer.punching.as_ref().is_some_and(|punching| punching.has_link(link))
            {
                continue;
            }
            peer.due = context.now;
            match news {
                links::News::Up(_) => peer.paths.found(now, Way::Link(link).into()),
                links::News::Down(..) => {
                    peer.paths.lost(now, Way::Link(link).into());
                    peer.won.links.retain(|other| *other != link);
                    if let Some(punching) = &mut peer.punching {
                        punching.note_link_down(link);
                    }
                }
            }
        }
    }

    /// Somebody has connected to a round's listener.
    pub(super) fn note_connection(&mut self, context: &Context) {
        for peer in self.of.values_mut().filter(|peer| peer.punching.is_some()) {
            peer.due = context.now;
        }
    }

    /// This host has other addresses than before.
    pub(super) fn note_network_changed(&mut self, context: &Context) {
        for peer in self.of.values_mut() {
            peer.paths.network_changed(context.now_us());
            peer.due = context.now;
        }
    }

    /// There is an address to be told that there was not before.
    pub(super) fn note_chance(&mut self, context: &mut Context) {
        let now = context.now_us();
        for (id, peer) in self.of.iter_mut().filter(|(_, peer)| peer.paths.wants_rounds()) {
            match self.side {
                Side::Visitor => peer.paths.chance_improved(now),
                Side::Provider => punching::tell(*id, &Message::Again, context),
            }
            peer.due = context.now;
        }
    }

    /// Tells by which path a peer is reached, and why by no better one.
    pub(super) fn refine(&self, id: PeerId, status: &mut PeerStatus, carrier: &Carrier, context: &Context) {
        let Some(peer) = self.of.get(&id) else { return };
        let path = peer.paths.status(context.now_us());
        let (word, remote) = match Way::of(path.remote) {
            Way::Flow { .. } => ("relay", None),
            Way::Link(link) => ("direct", carrier.links.remote_address(link)),
            Way::Udp(remote) if path.kind == Kind::Lan => ("lan", Some(remote)),
            Way::Udp(remote) => ("direct", Some(remote)),
        };
        (status.path, status.remote, status.why) = (word.to_owned(), remote, peer.why(&path));
        status.keep_alive_s = Some(context.keep_alive.interval_us() as f64 / 1e6);
    }

    /// Whether players may use the way to a peer.
    pub(super) fn carries_data(&self, id: PeerId) -> bool {
        self.of.get(&id).is_some_and(|peer| peer.paths.carries_data())
    }

    /// Does what is due.
    pub(super) fn turn(&mut self, via: &Via, carrier: &mut Carrier, context: &mut Context) {
        let mut rounds = self.rounds();
        self.of.retain(|id, peer| {
            peer.note_sent(*id, context);
            peer.keep_alive(context);
            if context.now < peer.due {
                return true;
            }
            if context.peers.get(*id).is_none() {
                peer.leave(carrier, context);
                return false;
            }
            peer.step(*id, &mut rounds, via, carrier, context);
            true
        });
    }
}

impl Peer {
    /// What wants to arrive at the peer shows by its silence that a way is dead.
    fn note_sent(&mut self, id: PeerId, context: &mut Context) {
        let Some(sent_at) = context.peers.tunnel(id).and_then(|tunnel| tunnel.traffic_sent_at()) else { return };
        if self.sent_at.replace(sent_at) != Some(sent_at) {
            self.paths.sent(sent_at);
            self.due = self.due.min(context.time_of(self.paths.next_timeout()));
        }
    }

    /// As often as was learnt here.
    fn keep_alive(&mut self, context: &Context) {
        let learnt_us = context.keep_alive.interval_us();
        if std::mem::replace(&mut self.keep_alive_us, learnt_us) != learnt_us {
            self.paths.keep_alive(learnt_us);
            self.due = context.now;
        }
    }

    fn step(&mut self, id: PeerId, rounds: &mut usize, via: &Via, carrier: &mut Carrier, context: &mut Context) {
        let now = context.now_us();
        if let Some(punching) = &mut self.punching {
            punching.step(id, via, carrier, context);
        }
        if self.punching.as_ref().is_some_and(Punching::is_over) {
            self.end_round(id, carrier, context);
        }
        while let Some(output) = self.paths.poll_output(now) {
            match output {
                Output::Probe { to } => probe(id, to, carrier, context),
                Output::Use { to, leaving } => {
                    if let Some(tunnel) = context.peers.tunnel(id) {
                        tunnel.use_path(now, to, leaving);
                    }
                    self.log(id, context);
                }
                Output::Forgot { silence_us } => {
                    if context.keep_alive.forgot(silence_us) {
                        let (after, every) = (silence_us, context.keep_alive.interval_us());
                        let [after, every] = [after, every].map(Duration::from_micros);
                        tracing::info!(
                            ?after,
                            ?every,
                            "a NAT forgets what is silent; direct paths are used more often"
                        );
                    }
                }
                Output::WantRound => {
                    let is_free = self.punching.is_none() && *rounds < limits::ROUNDS_MAX && via.tunnel().is_some();
                    if is_free {
                        let mut punching = Ground::new(via, carrier, context).call(self.rounds, context);
                        (self.rounds, *rounds) = (self.rounds + 1, *rounds + 1);
                        punching.step(id, via, carrier, context);
                        self.punching = Some(punching);
                    } else {
                        self.paths.round_over(now);
                    }
                }
            }
        }
        let of_round = self.punching.as_ref().map_or(u64::MAX, |punching| punching.next_timeout(now));
        self.due = context.time_of(self.paths.next_timeout().min(of_round));
    }

    fn end_round(&mut self, id: PeerId, carrier: &mut Carrier, context: &mut Context) {
        let now = context.now_us();
        let Some(punching) = self.punching.take() else { return };
        let verdict = punching.verdict(now);
        tracing::debug!(?verdict, round = punching.number(), "a round of punching is over");
        let is_won = matches!(verdict, Verdict::Direct { .. });
        let before = self.why;
        self.why = match verdict {
            Verdict::Relay(why) => Some(why),
            Verdict::Direct { .. } => None,
            Verdict::Underway => before, // it was given up for another
        };
        if let Some(why) = self.why.filter(|why| before != Some(*why)) {
            tracing::info!(%why, "no direct path; trying again now and then");
        }
        let won = punching.end(is_won, carrier, context);
        if is_won {
            self.replace(won, id, carrier, context);
        }
        self.paths.round_over(now);
    }

    /// What was won before is let go, unless it is in use.
    fn replace(&mut self, won: Won, id: PeerId, carrier: &mut Carrier, context: &mut Context) {
        let before = std::mem::replace(&mut self.won, won);
        let remote = context.peers.get(id).map(|peer| peer.remote());
        let in_use = remote.and_then(|remote| carrier.wire_of(remote));
        for wire in before.wires {
            if Some(wire) == in_use {
                self.won.wires.push(wire);
            } else if !self.won.wires.contains(&wire) {
                carrier.remove(wire, &mut context.engine);
            }
        }
        for link in before.links {
            if remote == Some(Way::Link(link).into()) {
                self.won.links.push(link);
            } else {
                carrier.links.close(link, &mut context.engine);
            }
        }
    }

    /// A message about rounds.
    #[expect(clippy::too_many_arguments, reason = "all of it is needed once")]
    fn hear(
        &mut self,
        id: PeerId,
        side: Side,
        message: Message,
        (rounds, hosts): (usize, &mut Hosts),
        via: &Via,
        carrier: &mut Carrier,
        context: &mut Context,
    ) {
        if message == Message::Again && side == Side::Visitor && self.allowance.take(context.now_us()) {
            self.paths.chance_improved(context.now_us());
        }
        let Message::Call { round, profile } = message else {
            if let Some(punching) = &mut self.punching {
                punching.note_told(message, hosts, context);
            }
            return;
        };
        if !self.paths.wants_rounds() {
            return punching::tell(id, &Message::Declined { round }, context); // an address told is an address given away
        }
        let now = context.now_us();
        if side == Side::Visitor || rounds >= limits::ROUNDS_MAX || !self.allowance.take(now) {
            return; // he will call again
        }
        if self.punching.is_some() {
            self.end_round(id, carrier, context); // the caller has given it up
        }
        // Before anything was measured, the visitor counts as being as far from the rendezvous as we are.
        let measured = context.peers.tunnel(id).and_then(|tunnel| tunnel.status().rtt_us);
        let measured = measured.into_iter().chain(self.paths.status(now).rtt_us).min();
        let rtt_us = measured.or_else(|| Some(2 * via.rtt_us(context)?)).unwrap_or(0);
        let ground = Ground::new(via, carrier, context);
        let profile = hosts.ration(now, &profile);
        self.punching = Some(ground.answer(round, profile, rtt_us / 2, context));
    }

    /// The tunnel is gone.
    fn leave(&mut self, carrier: &mut Carrier, context: &mut Context) {
        let mut left = std::mem::take(&mut self.won);
        if let Some(punching) = self.punching.take() {
            let more = punching.end(false, carrier, context);
            left.wires.extend(more.wires);
        }
        left.wires.into_iter().for_each(|wire| carrier.remove(wire, &mut context.engine));
        left.links.into_iter().for_each(|link| carrier.links.close(link, &mut context.engine));
    }

    /// Why the path is not a better one, in words.
    fn why(&self, path: &path::Status) -> String {
        match (path.why, self.why) {
            _ if path.kind == Kind::Tcp => "over TCP: no way over UDP was found yet".to_owned(),
            (path::Why::Direct, _) => String::new(),
            (path::Why::Wanted, _) => "only the relay is wanted here".to_owned(),
            (path::Why::Searching, _) => "a direct path is being looked for".to_owned(),
            (path::Why::Died, _) => "the direct path fell silent; looking for another".to_owned(),
            (path::Why::NotFound, Some(why)) => why.to_string(),
            (path::Why::NotFound, None) => "no direct path was found yet".to_owned(),
        }
    }

    fn log(&self, id: PeerId, context: &mut Context) {
        let status = self.paths.status(context.now_us());
        let service = context.peers.get(id).and_then(|peer| peer.service());
        let service = service.map(tracing::field::display);
        let rtt = status.rtt_us.map(|rtt_us| tracing::field::debug(Duration::from_micros(rtt_us)));
        tracing::info!(service, path = status.kind.as_str(), remote = %Way::of(status.remote), rtt, "another path");
    }
}

/// Asks the peer whether it can be reached there.
fn probe(id: PeerId, to: SocketAddr, carrier: &mut Carrier, context: &mut Context) {
    let now = context.now_us();
    let Some(tunnel) = context.peers.tunnel(id) else { return };
    context.datagram.clear();
    tunnel.probe(now, to, &mut context.datagram);
    carrier.send_aside(to, &context.datagram, &mut context.peers);
}
