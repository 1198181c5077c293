//! A visitor's way to the provider of a service: its name is looked up, its addresses are tried, the first that answers wins.
//!
//! There is always a tunnel, or somebody on the way to get one. An attempt gives each address a head start over the next, and
//! ends after a while; the pause between attempts grows. A player who comes while there is no tunnel makes it begin at once.
//! A peer that leaves what it was asked unanswered may have been restarted: a new tunnel is tried beside the old one, which
//! ends when the new one is there and the old one is still silent.
//!
//! A provider that is met at a rendezvous has one address, its flow, while the rendezvous knows it; else there is nobody to try.
//! The rendezvous leaves flows of a provider that lets in nobody new where they are; one that leaves us without an answer may be
//! gone, and then the flow is to lead to its successor.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::carrier::Carrier;
use super::peers::{Loss, PeerId};
use super::pulse::Pulse;
use super::settings::Visited;
use super::{Asker, Context};
use crate::limits;
use crate::names::alternate;
use crate::proto::target::Target;
use crate::proto::tunnel::{CloseReason, Way};

#[derive(Debug)]
pub(super) struct Reach {
    service: usize,
    holds: bool,
    /// Where the rendezvous has it.
    flow: Option<SocketAddr>,
    up: Option<Up>,
    attempt: Option<Attempt>,
    /// A new tunnel is tried beside one that does not answer, and the rendezvous does not know yet.
    doubts: bool,
    /// When the next attempt begins, if nobody asks for it before.
    retry_at: Instant,
    pause: Duration,
    /// Since when there is no tunnel.
    down_since: Instant,
    /// That nobody can be reached was logged.
    told: bool,
    /// The last look-up of its name found no address, or has not ended.
    nameless: bool,
    /// Counts attempts, so that late answers of name servers find nobody.
    attempts: u32,
}

/// The tunnel in use.
#[derive(Debug)]
struct Up {
    tunnel: PeerId,
    pulse: Pulse,
    /// Not for players now.
    is_held: bool,
}

#[derive(Debug)]
struct Attempt {
    began: Instant,
    ends: Instant,
    /// `None` while the name is looked up.
    untried: Option<VecDeque<SocketAddr>>,
    next_try: Instant,
    racers: Vec<PeerId>,
}

/// What became of the tunnel that a service had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// There is one now. `replaced`: it takes the place of another, which has ended.
    Up {
        tunnel: PeerId,
        replaced: Option<PeerId>,
    },
    /// There is none any more.
    Down,
}

impl Reach {
    /// `holds`: a tunnel may be there that players may not use yet.
    pub(super) fn new(service: usize, holds: bool, now: Instant) -> Self {
        Self {
            service,
            holds,
            flow: None,
            up: None,
            attempt: None,
            doubts: false,
            retry_at: now,
            pause: Duration::ZERO,
            down_since: now,
            told: false,
            nameless: false,
            attempts: 0,
        }
    }

    pub(super) fn tunnel(&self) -> Option<PeerId> {
        self.up.as_ref().filter(|up| !up.is_held).map(|up| up.tunnel)
    }

    /// Also one that is held back from players.
    pub(super) fn any_tunnel(&self) -> Option<PeerId> {
        self.up.as_ref().map(|up| up.tunnel)
    }

    /// Holds the tunnel back from players, or gives it to them: then it is told.
    pub(super) fn release(&mut self, is_free: impl Fn(PeerId) -> bool) -> Option<PeerId> {
        let up = self.up.as_mut().filter(|_| self.holds)?;
        let is_held = !is_free(up.tunnel);
        let was_held = std::mem::replace(&mut up.is_held, is_held);
        (was_held && !is_held).then_some(up.tunnel)
    }

    /// When there is something to do, if nothing else happens before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.attempt {
            Some(attempt) if attempt.untried.as_ref().is_some_and(|untried| !untried.is_empty()) => {
                Some(attempt.ends.min(attempt.next_try))
            }
            Some(attempt) => Some(attempt.ends),
            None if self.up.is_none() => Some(self.retry_at),
            None => self.suspect_at().map(|at| at.max(self.retry_at)),
        }
    }

    fn suspect_at(&self) -> Option<Instant> {
        Some(self.up.as_ref()?.pulse.asked_at()? + limits::PEER_SUSPECT)
    }

    /// The rendezvous has found the provider, or lost it. What there is with it goes on; a tunnel there is shown to be alive, or
    /// a new one is tried: the provider may be another than before.
    pub(super) fn note_flow(&mut self, flow: Option<SocketAddr>, visited: &Visited, context: &mut Context) {
        self.flow = flow;
        match &mut self.up {
            _ if flow.is_none() => {}
            Some(up) => {
                let now = context.now_us();
                up.pulse.ask(context);
                if let Some(tunnel) = context.peers.tunnel(up.tunnel) {
                    tunnel.announce_path(now);
                }
            }
            None => {
                self.give_up(context);
                self.begin(visited, context);
            }
        }
    }

    /// A player has come and there is no tunnel: what has been under way for a while begins anew.
    pub(super) fn hurry(&mut self, visited: &Visited, context: &mut Context) {
        match &self.attempt {
            Some(attempt) if context.now < attempt.began + limits::REACH_STALE => {}
            Some(_) => {
                self.give_up(context);
                self.begin(visited, context);
            }
            None => self.begin(visited, context),
        }
    }

    pub(super) fn step(&mut self, visited: &Visited, carrier: &mut Carrier, context: &mut Context) {
        if let Some(up) = &mut self.up {
            up.pulse.look(context);
        }
        let now = context.now;
        if self.attempt.is_none() && self.deadline().is_some_and(|at| at <= now) {
            self.begin(visited, context);
        }
        self.try_addresses(visited, carrier, context);
        if self.attempt.as_ref().is_some_and(|attempt| attempt.ends <= now) {
            self.fail(context);
        }
        self.warn(visited, now);
    }

    /// Once, when nobody has answered for as long as an attempt takes.
    fn warn(&mut self, visited: &Visited, now: Instant) {
        if self.up.is_some() || self.told || now < self.down_since + limits::REACH_TIMEOUT {
            return;
        }
        let (service, wait) = (visited.name, limits::TUNNEL_WAIT.as_secs());
        let Some(peer) = &visited.peer else {
            // While there is no flow, the rendezvous tells who is not there.
            self.told = self.flow.is_some();
            if self.told {
                tracing::warn!(%service, "the provider is at the rendezvous and does not answer: has it this secret? Trying on");
            }
            return;
        };
        self.told = true;
        if self.nameless {
            tracing::warn!(%service, %peer, "no address is known for the provider's name. Trying on; players wait up to {wait} s");
        } else {
            tracing::warn!(
                %service, %peer,
                "the provider does not answer: is it there, with this service and this secret, and does a firewall let UDP \
                 through? Trying on; players wait up to {wait} s"
            );
        }
    }

    pub(super) fn take_doubt(&mut self) -> bool {
        std::mem::take(&mut self.doubts)
    }

    fn begin(&mut self, visited: &Visited, context: &Context) {
        self.doubts = self.up.is_some();
        self.attempts = self.attempts.wrapping_add(1);
        let untried = match &visited.peer {
            None => Some(self.flow.into_iter().collect()),
            Some(Target::Address(address)) => Some(VecDeque::from([*address])),
            Some(Target::Provider(_)) => Some(VecDeque::new()), // the configuration knows better
            Some(Target::Name { host, .. }) => {
                self.nameless = true;
                let asker = Asker { service: Some(self.service), attempt: self.attempts };
                context.names.ask(asker, host, limits::REACH_TIMEOUT);
                None
            }
        };
        let (began, next_try) = (context.now, context.now);
        self.attempt =
            Some(Attempt { began, ends: began + limits::REACH_TIMEOUT, untried, next_try, racers: Vec::new() });
    }

    pub(super) fn note_found(&mut self, asker: Asker, addresses: Vec<std::net::IpAddr>, visited: &Visited) {
        let Some(Target::Name { port, .. }) = visited.peer else { return };
        let Some(attempt) = self.attempt.as_mut().filter(|_| asker.attempt == self.attempts) else { return };
        self.nameless = addresses.is_empty();
        attempt.untried = Some(alternate(addresses).map(|ip| SocketAddr::new(ip, port)).collect());
    }

    fn try_addresses(&mut self, visited: &Visited, carrier: &mut Carrier, context: &mut Context) {
        let Some(attempt) = &mut self.attempt else { return };
        let Some(untried) = &mut attempt.untried else { return };
        while attempt.next_try <= context.now || attempt.racers.is_empty() {
            let Some(peer) = untried.pop_front() else { break };
            if let Err(error) = carrier.reach(peer, &mut context.engine) {
                tracing::debug!(%error, %peer, "an address cannot be tried");
                continue;
            }
            let now = context.now_us();
            if let Some(tunnel) = context.peers.connect(now, peer, context.keys.first(), visited.name) {
                attempt.racers.push(tunnel);
                attempt.next_try = context.now + limits::DIAL_STAGGER;
            }
        }
        if attempt.racers.is_empty() {
            attempt.ends = context.now; // nobody to wait for
        }
    }

    /// An attempt has come to its end.
    fn fail(&mut self, context: &mut Context) {
        self.give_up(context);
        self.pause = (self.pause * 2).clamp(limits::REACH_PAUSE_MIN, limits::REACH_PAUSE_MAX);
        self.retry_at = context.now + self.pause;
    }

    fn give_up(&mut self, context: &mut Context) {
        for racer in self.attempt.take().map(|attempt| attempt.racers).unwrap_or_default() {
            context.peers.close(racer, CloseReason::Done);
        }
    }

    /// The peer was heard in this tunnel.
    pub(super) fn note_heard(&mut self, tunnel: PeerId, context: &Context) {
        if let Some(up) = self.up.as_mut().filter(|up| up.tunnel == tunnel) {
            up.pulse.note_heard(context);
        }
    }

    pub(super) fn note_established(&mut self, tunnel: PeerId, visited: &Visited, context: &mut Context) -> Change {
        let Some(attempt) = self.attempt.take_if(|attempt| attempt.racers.contains(&tunnel)) else {
            return Change::None;
        };
        for racer in attempt.racers.into_iter().filter(|racer| *racer != tunnel) {
            context.peers.close(racer, CloseReason::Done);
        }
        if self.up.as_ref().is_some_and(|up| up.pulse.asked_at().is_none()) {
            context.peers.close(tunnel, CloseReason::Done); // the old one is alive after all
            return Change::None;
        }
        let replaced = self.up.take().map(|up| up.tunnel);
        if let Some(old) = replaced {
            context.peers.close(old, CloseReason::Done);
        }
        self.up = Some(Up { tunnel, pulse: Pulse::new(tunnel, context), is_held: self.holds });
        (self.pause, self.told) = (Duration::ZERO, false);
        let after = if replaced.is_some() { attempt.began } else { self.down_since };
        // A peer without a handshake has not answered yet.
        if let Some(peer) = context.peers.get(tunnel).filter(|peer| peer.sent().is_some()) {
            let (remote, after) = (Way::of(peer.remote()), context.now - after);
            tracing::info!(service = %visited.name, peer = %remote, ?after, "peer reached");
        }
        Change::Up { tunnel, replaced }
    }

    pub(super) fn note_lost(&mut self, tunnel: PeerId, reason: Loss, visited: &Visited, context: &Context) -> Change {
        if let Some(attempt) = &mut self.attempt {
            attempt.racers.retain(|racer| *racer != tunnel);
        }
        if self.up.take_if(|up| up.tunnel == tunnel).is_none() {
            return Change::None;
        }
        tracing::info!(service = %visited.name, %reason, "the peer is lost; its games end");
        (self.down_since, self.retry_at) = (context.now, context.now);
        Change::Down
    }

    /// Says goodbye.
    pub(super) fn leave(&mut self, context: &mut Context) {
        self.give_up(context);
        if let Some(up) = self.up.take() {
            context.peers.close(up.tunnel, CloseReason::Leaving);
        }
    }
}
