//! One round: one shot after the other, until a probe is answered or time is over.
//!
//! ```text
//!   0 ms  probes to neighbours and over IPv6, openers to everything else
//!  30 ms  probes, again after 20 ms, 32 ms ... 500 ms
//! 100 ms  spread: openers from 256 spare sockets      if exactly one NAT draws its ports
//! 150 ms  guess: one port after the other
//! 1.5 s   TCP, one second before the end              from 0 ms where UDP is blocked
//! 2.5 s   the end                                     4 s with guesses
//! ```
//!
//! No matter what the peer has named, a round has at most [`SHOTS_MAX`] shots, one each [`SHOT_SPACING_US`]. What it shoots at,
//! `aims` knows.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use super::aims::Aims;
use super::candidates::Profile;
use super::class::Class;
use super::plan::{Method, Side};
use super::schedule::opener_ttl;
use super::verdict::{Verdict, Why};
use super::{Shot, ShotKind, Socket, Token};

/// The most shots of a round, openers and TCP included: 160 kB on the wire, since a probe has 65 bytes there.
pub const SHOTS_MAX: u32 = 2_400;

/// At least that lies between two shots, in µs, on average over a few milliseconds.
pub const SHOT_SPACING_US: u64 = 500;

/// An owner who comes late may catch up on that much, in µs: timers have milliseconds.
const CATCH_UP_US: u64 = 4_000;

/// How long a round lasts, in µs. All probes of a plain round are repeated to a gap of 500 ms within it; a birthday takes
/// 1.7 s, and as long again is for what is lost.
const ROUND_US: u64 = 2_500_000;
const BIRTHDAY_ROUND_US: u64 = 4_000_000;

/// And one in which there is nothing to shoot at, in µs: for what the peer may shoot, and an answer.
const IDLE_ROUND_US: u64 = 500_000;

/// For better ways, after the first answer, in µs: what is in the same house has answered by then.
const GRACE_US: u64 = 60_000;

#[derive(Debug)]
pub struct Round {
    number: u32,
    ours: Class,
    theirs: Class,
    ends_at: u64,
    aims: Aims,
    /// Makes the tokens of this round other than those of all others.
    salt: [u8; 32],
    shots: u32,
    /// Before that no further shot.
    next_shot_at: u64,
    last_heard: Option<(Socket, SocketAddr)>,
    answered: Option<(Socket, SocketAddr)>,
    is_stopped: bool,
}

impl Round {
    /// `number`: 0 for the first round with this peer, then counted up. `begins_at` is the same instant on both sides.
    #[must_use]
    pub fn new(side: Side, number: u32, ours: &Profile, theirs: &Profile, begins_at: u64, seed: [u8; 32]) -> Self {
        let theirs = ours.worthy(theirs);
        let method = Method::of(side, number, ours.class, theirs.class);
        let is_birthday = matches!(method, Method::Spread | Method::Guess);
        let ends_at = begins_at + if is_birthday { BIRTHDAY_ROUND_US } else { ROUND_US };
        let aims = Aims::new((side, number, method), ours, &theirs, (begins_at, ends_at), seed);
        Self {
            number,
            ours: ours.class,
            theirs: theirs.class,
            ends_at: if aims.next().is_some() { ends_at } else { begins_at + IDLE_ROUND_US },
            aims,
            salt: seed,
            shots: 0,
            next_shot_at: begins_at,
            last_heard: None,
            answered: None,
            is_stopped: false,
        }
    }

    /// The next shot that is due.
    pub fn poll(&mut self, now: u64) -> Option<Shot> {
        if self.is_over(now) || now < self.next_shot_at || self.shots == SHOTS_MAX {
            return None;
        }
        let (_, next) = self.aims.next().filter(|(due, _)| *due <= now)?;
        let (from, to, is_opener) = self.aims.shoot(now.saturating_sub(CATCH_UP_US), now, next)?;
        self.shots += 1;
        self.next_shot_at = self.next_shot_at.max(now.saturating_sub(CATCH_UP_US)) + SHOT_SPACING_US;
        let kind = if from == Socket::Link { ShotKind::Tcp } else { ShotKind::Udp };
        Some(Shot { from, to, ttl: is_opener.then(|| opener_ttl(self.number)), kind, token: self.token(to) })
    }

    /// When the next shot is due, or the end. `None` when it is over.
    #[must_use]
    pub fn next_timeout(&self, now: u64) -> Option<u64> {
        if self.is_over(now) {
            return None;
        }
        let next = self.aims.next().filter(|_| self.shots < SHOTS_MAX).map(|(due, _)| due.max(self.next_shot_at));
        Some(next.map_or(self.ends_at, |next| next.min(self.ends_at)))
    }

    /// A probe of the peer has come. Its source may be an address that nobody knew before.
    pub fn on_probed(&mut self, now: u64, socket: Socket, from: SocketAddr) {
        if self.answered.is_none() {
            self.last_heard = Some((socket, from));
            self.aims.hear(now, socket, from);
        }
    }

    /// A probe of ours was answered: this way works in both directions. An answer from another place than the probe went to is but
    /// a sign of life. Between two NATs that both give each destination a port of its own and let strangers in, every packet
    /// comes from another port than the one that was answered, and no end of it.
    pub fn on_answered(&mut self, now: u64, token: Token, socket: Socket, from: SocketAddr) {
        if token == self.token(from) {
            self.succeed(now, socket, from);
        } else {
            self.on_probed(now, socket, from);
        }
    }

    /// A TCP connection has come about.
    pub fn on_connected(&mut self, now: u64, to: SocketAddr) {
        self.succeed(now, Socket::Link, to);
    }

    /// TCP is being tried.
    #[must_use]
    pub fn listens(&self, now: u64) -> bool {
        !self.is_over(now) && self.aims.has_tried_tcp()
    }

    /// The round goes on for a moment only, and only to hosts' own addresses: what is found there is better.
    fn succeed(&mut self, now: u64, socket: Socket, remote: SocketAddr) {
        let is_host = self.aims.is_host(remote);
        if self.answered.is_some() && !is_host {
            return;
        }
        self.answered = Some((socket, remote));
        let may_improve = !is_host && self.aims.keep_hosts();
        self.ends_at = self.ends_at.min(now + if may_improve { GRACE_US } else { 0 });
    }

    /// The peer has got an answer, so the way by which its probe came to us works.
    pub fn on_punched(&mut self) {
        self.is_stopped = true;
        self.answered = self.answered.or(self.last_heard);
    }

    #[must_use]
    pub fn is_over(&self, now: u64) -> bool {
        self.is_stopped || now >= self.ends_at
    }

    #[must_use]
    pub fn verdict(&self, now: u64) -> Verdict {
        match self.answered {
            Some((socket, remote)) => Verdict::Direct { socket, remote },
            None if !self.is_over(now) => Verdict::Underway,
            None if self.shots == 0 => Verdict::Relay(Why::NoCandidates),
            None => Verdict::Relay(Why::of(self.ours, self.theirs, self.last_heard.is_some())),
        }
    }

    /// For probes to that address. Not secret: whoever answers has opened the probe.
    fn token(&self, to: SocketAddr) -> Token {
        let mut hasher = DefaultHasher::new();
        (self.salt, to).hash(&mut hasher);
        hasher.finish().to_be_bytes()
    }
}

#[cfg(test)]
mod tests;
