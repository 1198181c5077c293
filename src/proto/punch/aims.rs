//! What a round shoots at: known and predicted addresses (targets), one address from many sockets (spread), many ports of one
//! address (guess), and TCP. Which of them, the method says.

use std::net::SocketAddr;

use super::birthday::{GUESSES_MAX, Guesses};
use super::candidates::{CANDIDATES_MAX, Candidate, Kind, Profile};
use super::class::Class;
use super::plan::{Method, Side};
use super::predictions::{self, PREDICTIONS_MAX};
use super::round::SHOTS_MAX;
use super::schedule::{PROBES_MAX, Target};
use super::{SPARES, Socket};

/// When spare sockets begin to open, and how far they are apart, in µs: a peer whose NAT lets us in has answered by then if it is
/// not far.
const SPREAD_AT_US: u64 = 100_000;
const SPREAD_EVERY_US: u64 = 500;

/// When guessing begins, and how far guesses are apart, in µs. Half of the openers have left by then, and they stay ahead.
const GUESS_AT_US: u64 = 150_000;
const GUESS_EVERY_US: u64 = 1_000;

/// Guesses stop for so long when a probe was heard, in µs: an answer over that way is likely to be next.
pub const GUESS_PAUSE_US: u64 = 200_000;

/// What comes behind the lock step, in µs: it would take ports out of the count.
const BEHIND_LOCK_STEP_US: u64 = 60_000;

/// How long a provider waits for the first probe of a visitor whose NAT seems to be Linux, in µs: an answer to a call that was
/// repeated once has arrived by then.
const HOLD_US: u64 = 250_000;

/// Tries of TCP, in µs; the system repeats its own packets each second, unless it was refused.
pub const TCP_TRIES_US: [u64; 3] = [0, 400_000, 900_000];

/// Before the end TCP is tried even where UDP is not blocked, in µs.
pub const TCP_BEFORE_END_US: u64 = 1_000_000;

/// Places that were not named and from which probes were heard. Further ones have to do without a probe of ours.
pub const HEARD_MAX: usize = 16;

/// Every bound on its own stays below the common one, which is therefore a second guard.
const _: () = assert!((CANDIDATES_MAX + HEARD_MAX) * (PROBES_MAX as usize + 1) + GUESSES_MAX <= SHOTS_MAX as usize);
const _: () = assert!((CANDIDATES_MAX + PREDICTIONS_MAX + HEARD_MAX) * (PROBES_MAX as usize + 1) <= SHOTS_MAX as usize);

#[derive(Debug)]
pub struct Aims {
    targets: Vec<Target>,
    /// How many of them were added because they were heard.
    heard: usize,
    spread: Option<Spread>,
    guess: Option<Guess>,
    tcp: Option<Connect>,
}

/// Openers from spare sockets to one address.
#[derive(Debug)]
struct Spread {
    to: SocketAddr,
    next: u16,
    due: u64,
}

#[derive(Debug)]
struct Guess {
    guesses: Guesses,
    due: u64,
}

#[derive(Debug)]
struct Connect {
    to: SocketAddr,
    tries: usize,
    since: u64,
}

/// What is shot next.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    /// The place in the list.
    Target(usize),
    Connect,
    Spread,
    Guess,
}

impl Aims {
    #[must_use]
    pub fn new(
        (side, number, method): (Side, u32, Method),
        ours: &Profile,
        theirs: &Profile,
        (begins_at, ends_at): (u64, u64),
        seed: [u8; 32],
    ) -> Self {
        let mut targets = known(method, ours, theirs, begins_at);
        let predicted = predicted(method, side, number, theirs);
        targets.extend(predicted.into_iter().map(|address| Target::opened(Socket::Main4, address, begins_at)));
        if holds(side, ours, theirs) {
            targets.iter_mut().for_each(|target| target.hold(HOLD_US));
        }
        Self {
            targets,
            heard: 0,
            spread: Spread::new(method, theirs, begins_at),
            guess: Guess::new(method, theirs, begins_at, seed),
            tcp: Connect::new(method, ours, theirs, (begins_at, ends_at)),
        }
    }

    /// What is due first; of several that which was named first.
    #[must_use]
    pub fn next(&self) -> Option<(u64, Next)> {
        let tcp = self.tcp.iter().filter_map(|connect| Some((connect.due()?, Next::Connect)));
        let targets = self.targets.iter().enumerate();
        let targets = targets.filter_map(|(place, target)| Some((target.due()?, Next::Target(place))));
        let spread = self.spread.iter().filter_map(|spread| Some((spread.due()?, Next::Spread)));
        let guess = self.guess.iter().filter_map(|guess| Some((guess.due()?, Next::Guess)));
        tcp.chain(targets).chain(spread).chain(guess).min_by_key(|(due, _)| *due)
    }

    /// From where, to where, and whether it is an opener. What is late is made up for from `since` on.
    pub fn shoot(&mut self, since: u64, now: u64, next: Next) -> Option<(Socket, SocketAddr, bool)> {
        Some(match next {
            Next::Target(place) => {
                let target = self.targets.get_mut(place)?;
                let is_opener = target.shoot(now);
                (target.from, target.to, is_opener)
            }
            Next::Connect => {
                let connect = self.tcp.as_mut()?;
                connect.tries += 1;
                (Socket::Link, connect.to, false)
            }
            Next::Spread => {
                let spread = self.spread.as_mut()?;
                spread.next += 1;
                spread.due += SPREAD_EVERY_US;
                (Socket::Spare(spread.next - 1), spread.to, true)
            }
            Next::Guess => {
                let guess = self.guess.as_mut()?;
                guess.due = guess.due.max(since) + GUESS_EVERY_US;
                (Socket::Main4, guess.guesses.next()?, false)
            }
        })
    }

    /// A probe has come, perhaps from where nobody expected one.
    pub fn hear(&mut self, now: u64, socket: Socket, from: SocketAddr) {
        self.targets.iter_mut().for_each(|target| target.release(now));
        if let Some(guess) = &mut self.guess {
            guess.due = guess.due.max(now + GUESS_PAUSE_US);
        }
        let known = self.targets.iter_mut().find(|target| (target.from, target.to) == (socket, from));
        if let Some(target) = known {
            target.hurry(now);
        } else if self.heard < HEARD_MAX {
            self.heard += 1;
            self.targets.push(Target::plain(socket, from, now));
        }
    }

    /// A peer's host has this address itself.
    #[must_use]
    pub fn is_host(&self, address: SocketAddr) -> bool {
        self.targets.iter().any(|target| target.is_host && target.to == address)
    }

    #[must_use]
    pub fn has_tried_tcp(&self) -> bool {
        self.tcp.as_ref().is_some_and(|connect| connect.tries > 0)
    }

    /// Everything else is given up. Whether there are any.
    pub fn keep_hosts(&mut self) -> bool {
        self.targets.retain(|target| target.is_host);
        (self.spread, self.guess, self.tcp) = (None, None, None);
        !self.targets.is_empty()
    }
}

impl Spread {
    fn new(method: Method, theirs: &Profile, begins_at: u64) -> Option<Self> {
        let to = theirs.latest().filter(|_| method == Method::Spread)?;
        Some(Self { to, next: 0, due: begins_at + SPREAD_AT_US })
    }

    fn due(&self) -> Option<u64> {
        (self.next < SPARES).then_some(self.due)
    }
}

impl Guess {
    fn new(method: Method, theirs: &Profile, begins_at: u64, seed: [u8; 32]) -> Option<Self> {
        let observed: Vec<SocketAddr> = theirs.of_kind(Kind::Reflexive).filter(SocketAddr::is_ipv4).collect();
        let guesses = Guesses::new(&observed, seed).filter(|_| method == Method::Guess)?;
        Some(Self { guesses, due: begins_at + GUESS_AT_US })
    }

    fn due(&self) -> Option<u64> {
        self.guesses.has_more().then_some(self.due)
    }
}

impl Connect {
    /// Only if both have a connection to the rendezvous whose port can be used again.
    fn new(method: Method, ours: &Profile, theirs: &Profile, (begins_at, ends_at): (u64, u64)) -> Option<Self> {
        ours.of_kind(Kind::TcpReflexive).next()?;
        let to = theirs.of_kind(Kind::TcpReflexive).next()?;
        let since = if method == Method::Tcp { begins_at } else { ends_at - TCP_BEFORE_END_US };
        Some(Self { to, tries: 0, since })
    }

    fn due(&self) -> Option<u64> {
        TCP_TRIES_US.get(self.tries).map(|after| self.since + after)
    }
}

/// Addresses that the peer has named.
fn known(method: Method, ours: &Profile, theirs: &Profile, begins_at: u64) -> Vec<Target> {
    let mut candidates = theirs.candidates.clone();
    candidates.sort_by_key(|candidate| rank(ours, candidate));
    let mut targets = Vec::new();
    let behind = if method == Method::LockStep { BEHIND_LOCK_STEP_US } else { 0 };
    for Candidate { kind, address } in candidates {
        let from = if address.is_ipv4() { Socket::Main4 } else { Socket::Main6 };
        let is_near = kind == Kind::Host && ours.is_near(address);
        let mut target = match kind {
            Kind::TcpReflexive => continue,
            _ if targets.iter().any(|target: &Target| target.to == address) => continue, // Known in two ways.
            _ if is_near || address.is_ipv6() => Target::plain(from, address, begins_at),
            _ if method == Method::Tcp => continue,
            Kind::Host => Target::plain(from, address, begins_at + behind),
            _ if theirs.class == Class::Open => Target::plain(from, address, begins_at + behind),
            Kind::Mapped | Kind::Reflexive => Target::opened(from, address, begins_at + behind),
        };
        target.is_host = kind == Kind::Host;
        targets.push(target);
    }
    targets
}

/// Whether the provider lets the visitor's probes come first. The answer to the call may be late, the visitor's openers then
/// are too, and a router of Linux with an open mind would remember our probes as a stranger's. They get through to us without
/// ours, unless our ports are drawn.
fn holds(side: Side, ours: &Profile, theirs: &Profile) -> bool {
    side == Side::Provider && theirs.keeps_ports() && (ours.class.is_fixed() || matches!(ours.class, Class::Steps(_)))
}

fn predicted(method: Method, side: Side, number: u32, theirs: &Profile) -> Vec<SocketAddr> {
    let (Class::Steps(step), Some(latest)) = (theirs.class, theirs.latest()) else { return Vec::new() };
    match method {
        Method::LockStep => predictions::lock_steps(side, latest, step),
        Method::Predict => predictions::ahead(latest, step, number),
        Method::Plain | Method::Spread | Method::Guess | Method::Tcp => Vec::new(),
    }
}

/// Neighbours first, then IPv6, which has no NAT. Then what is behind the peer's NAT: if ours counts, its next port is for
/// the first of these. Hosts in other networks last.
fn rank(ours: &Profile, candidate: &Candidate) -> (u8, Kind) {
    let place = match candidate {
        Candidate { kind: Kind::Host, address } if ours.is_near(*address) => 0,
        Candidate { address: SocketAddr::V6(_), .. } => 1,
        Candidate { kind: Kind::Host, .. } => 3,
        _ => 2,
    };
    (place, candidate.kind)
}
