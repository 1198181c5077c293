//! NATs and firewalls in the words of RFC 4787: how they map and whom they let in.
//!
//! A [`Nat`] translates the addresses of one packet at a time; where it stands, and what is between, `internet` knows.
//!
//! One kind is no combination of the RFC's: connection tracking of Linux (`Mapping::Tracked`) maps and filters by whole
//! connections. It keeps the port a socket has, unless the connection that would result exists already. A stranger's packet
//! makes such a connection when the router takes packets for itself instead of dropping them, and from then on our own packet to
//! that stranger gets another port.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::SECOND;
use super::rng::Rng;

/// Tries to find a free port at random; with a few thousand mappings one is enough nearly always.
const TRIES_MAX: u32 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Udp,
    Tcp,
}

/// Which external port a packet of a socket gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mapping {
    /// Its own, and the address stays too: a firewall.
    None,
    /// One for all destinations, by chance: endpoint-independent.
    Endpoint,
    /// The same, and if it is free the one that the socket has.
    Preserving,
    /// One for each address.
    Address,
    /// One for each address and port.
    Random,
    /// One for each address and port: so many above the one before. Other hosts take as many ports a second.
    Steps { delta: u16, others_per_second: u32 },
    /// By connections, as Linux has it.
    Tracked { draws: bool, takes_strangers: bool },
}

/// Whose packets are let in to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// Everybody's: endpoint-independent.
    Endpoint,
    /// Those of addresses to which a packet left by it.
    Address,
    /// Those of addresses and ports to which a packet left by it.
    AddressAndPort,
}

#[derive(Clone, Debug)]
pub struct Kind {
    pub mapping: Mapping,
    pub filtering: Filtering,
    /// Inside hosts reach each other by their outside addresses.
    pub has_hairpin: bool,
    pub drops_udp: bool,
    /// A mapping that nobody uses is forgotten after so long.
    pub lifetime_us: u64,
    pub ports: RangeInclusive<u16>,
}

#[derive(Debug)]
pub struct Nat {
    kind: Kind,
    external: IpAddr,
    rng: Rng,
    /// By who sends and, as far as the kind looks at it, to whom.
    by_inside: BTreeMap<Inside, Entry>,
    /// External port of a mapping, and of a tracked connection its other end.
    by_outside: BTreeMap<Outside, Inside>,
    /// Of strangers whose packets the router took for itself: until when it remembers them.
    strangers: BTreeMap<Outside, u64>,
    /// Of a NAT that counts: the last port, and when it was given.
    last: (u16, u64),
}

type Inside = (Protocol, SocketAddr, Option<IpAddr>, Option<u16>);
type Outside = (Protocol, u16, Option<SocketAddr>);

#[derive(Debug)]
struct Entry {
    port: u16,
    until: u64,
    /// To whom packets have left.
    permitted: Vec<SocketAddr>,
}

impl Kind {
    pub fn new(mapping: Mapping, filtering: Filtering) -> Self {
        let (has_hairpin, drops_udp) = (false, false);
        Self { mapping, filtering, has_hairpin, drops_udp, lifetime_us: 120 * SECOND, ports: 1024..=65535 }
    }

    pub fn with_hairpin(self) -> Self {
        Self { has_hairpin: true, ..self }
    }

    pub fn without_udp(self) -> Self {
        Self { drops_udp: true, ..self }
    }

    pub fn living(self, lifetime_us: u64) -> Self {
        Self { lifetime_us, ..self }
    }
}

impl Nat {
    pub fn new(kind: Kind, external: IpAddr, mut rng: Rng) -> Self {
        let (low, high) = (*kind.ports.start(), *kind.ports.end());
        // In the middle of the range, so that counting does not come to its end.
        let first = low + (high - low) / 4 + rng.below(u64::from(high - low) / 2) as u16;
        let (by_inside, by_outside, strangers) = Default::default();
        Self { kind, external, rng, by_inside, by_outside, strangers, last: (first, 0) }
    }

    pub fn has_hairpin(&self) -> bool {
        self.kind.has_hairpin
    }

    /// Whether packets to that address are for this NAT; a firewall stands before the addresses of its hosts.
    pub fn stands_before(&self, ip: IpAddr) -> bool {
        self.external == ip
    }

    /// Mappings there are, forgotten ones included.
    pub fn mappings(&self) -> usize {
        self.by_inside.len()
    }

    /// Forgets everything, as a router that was restarted.
    pub fn flush(&mut self) {
        self.by_inside.clear();
        self.by_outside.clear();
        self.strangers.clear();
    }

    /// The address from which others see a packet that leaves. `None`: it does not.
    pub fn outbound(&mut self, now: u64, protocol: Protocol, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        if self.kind.drops_udp && protocol == Protocol::Udp {
            return None;
        }
        let inside = self.inside(protocol, from, to);
        self.forget_if_old(now, inside);
        if !self.by_inside.contains_key(&inside) {
            let port = self.pick(now, protocol, from, to)?;
            self.by_inside.insert(inside, Entry { port, until: 0, permitted: Vec::new() });
            self.by_outside.insert(self.outside(protocol, port, to), inside);
        }
        let entry = self.by_inside.get_mut(&inside).expect("it was there or has just been made");
        entry.until = now + self.kind.lifetime_us;
        if !entry.permitted.contains(&to) {
            entry.permitted.push(to);
        }
        let port = entry.port;
        Some(SocketAddr::new(if self.kind.mapping == Mapping::None { from.ip() } else { self.external }, port))
    }

    /// Whom a packet from outside reaches. `None`: nobody.
    pub fn inbound(&mut self, now: u64, protocol: Protocol, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        if self.kind.drops_udp && protocol == Protocol::Udp {
            return None;
        }
        let outside = self.outside(protocol, to.port(), from);
        let inside = self.by_outside.get(&outside).copied();
        let is_alive = inside.is_some_and(|inside| !self.forget_if_old(now, inside));
        let Some(inside) = inside.filter(|_| is_alive) else {
            self.meet_stranger(now, outside);
            return None;
        };
        let lets_in = match self.kind.filtering {
            Filtering::Endpoint => true,
            Filtering::Address => self.by_inside[&inside].permitted.iter().any(|other| other.ip() == from.ip()),
            Filtering::AddressAndPort => self.by_inside[&inside].permitted.contains(&from),
        };
        if !lets_in {
            return None;
        }
        self.by_inside.get_mut(&inside)?.until = now + self.kind.lifetime_us;
        Some(inside.1)
    }

    fn inside(&self, protocol: Protocol, from: SocketAddr, to: SocketAddr) -> Inside {
        match self.kind.mapping {
            Mapping::None | Mapping::Endpoint | Mapping::Preserving => (protocol, from, None, None),
            Mapping::Address => (protocol, from, Some(to.ip()), None),
            Mapping::Random | Mapping::Steps { .. } | Mapping::Tracked { .. } => {
                (protocol, from, Some(to.ip()), Some(to.port()))
            }
        }
    }

    fn outside(&self, protocol: Protocol, port: u16, other: SocketAddr) -> Outside {
        let is_tracked = matches!(self.kind.mapping, Mapping::Tracked { .. });
        (protocol, port, is_tracked.then_some(other))
    }

    /// A router that takes packets for itself remembers them, each repetition for longer.
    fn meet_stranger(&mut self, now: u64, outside: Outside) {
        if matches!(self.kind.mapping, Mapping::Tracked { takes_strangers: true, .. }) {
            self.strangers.insert(outside, now + 30 * SECOND);
        }
    }

    fn forget_if_old(&mut self, now: u64, inside: Inside) -> bool {
        let is_old = self.by_inside.get(&inside).is_some_and(|entry| entry.until <= now);
        if is_old {
            self.by_inside.remove(&inside);
            self.by_outside.retain(|_, other| *other != inside);
        }
        is_old
    }

    fn pick(&mut self, now: u64, protocol: Protocol, from: SocketAddr, to: SocketAddr) -> Option<u16> {
        match self.kind.mapping {
            Mapping::None => return Some(from.port()),
            Mapping::Preserving | Mapping::Tracked { draws: false, .. }
                if self.is_free(now, protocol, from.port(), to) =>
            {
                return Some(from.port());
            }
            Mapping::Steps { delta, others_per_second } => return Some(self.count(now, delta, others_per_second)),
            _ => {}
        }
        let (low, high) = (*self.kind.ports.start(), *self.kind.ports.end());
        for _ in 0..TRIES_MAX {
            let port = low + self.rng.below(u64::from(high - low) + 1) as u16;
            if self.is_free(now, protocol, port, to) {
                return Some(port);
            }
        }
        None
    }

    fn count(&mut self, now: u64, delta: u16, others_per_second: u32) -> u16 {
        let (last, at) = self.last;
        let expected = (now - at) * u64::from(others_per_second);
        let others = (expected + self.rng.below(SECOND)) / SECOND; // Rounded up as often as it is due.
        let steps = if at == 0 { 1 } else { 1 + others.min(1_000) as u16 };
        self.last = (last.wrapping_add(steps * delta).max(*self.kind.ports.start()), now);
        self.last.0
    }

    fn is_free(&self, now: u64, protocol: Protocol, port: u16, to: SocketAddr) -> bool {
        let outside = self.outside(protocol, port, to);
        let is_strangers = self.strangers.get(&outside).is_some_and(|until| *until > now);
        !is_strangers && !self.by_outside.contains_key(&outside)
    }
}
