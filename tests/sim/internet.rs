//! Houses behind routers, carriers behind carriers' NATs, and what is between: where a packet goes, hop by hop.
//!
//! A *realm* is a network in which addresses have one meaning; the first is the Internet, every other one is behind one or two
//! NATs (one for IPv4, one for IPv6). Whatever stands in a realm, host or NAT, has a cable to it with a delay, losses and a number
//! of hops. A packet without hops left is dropped, and no ICMP says so.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};

use super::link::{Link, Loss, Settings};
use super::nat::{Kind, Nat, Protocol};
use super::rng::Rng;

/// Of a packet when it is sent, unless said otherwise.
pub const TTL: u8 = 64;

/// Bytes of every packet here; no cable cares.
const BYTES: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Realm(usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(pub usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NatId(usize);

pub const PUBLIC: Realm = Realm(0);

/// Between a realm and what stands in it.
#[derive(Clone, Copy, Debug)]
pub struct Cable {
    pub delay_us: u64,
    pub loss: f64,
    pub hops: u8,
}

impl Cable {
    /// Of a house.
    pub const LAN: Self = Self { delay_us: 200, loss: 0.0, hops: 0 };
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet<P> {
    pub protocol: Protocol,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub ttl: u8,
    pub payload: P,
}

pub struct Internet<P> {
    rng: Rng,
    hosts: Vec<Host>,
    nats: Vec<Gateway>,
    realms: usize,
    events: BinaryHeap<Reverse<(u64, u64, Event<P>)>>,
    sequence: u64,
    /// Packets that hosts have sent.
    pub sent: u64,
}

struct Host {
    realm: Realm,
    addresses: Vec<IpAddr>,
    cable: [Line; 2],
}

/// A NAT with its two sides.
struct Gateway {
    nat: Nat,
    outer: Realm,
    inner: Realm,
    is_v4: bool,
    cable: [Line; 2],
}

struct Line {
    link: Link,
    hops: u8,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event<P> {
    /// Somewhere in a realm; its router knows where to go.
    In(Realm, Packet<P>),
    Leaves(NatId, Packet<P>),
    Enters(NatId, Packet<P>),
    Reaches(HostId, Packet<P>),
}

impl<P: Ord> Internet<P> {
    pub fn seeded(seed: u64) -> Self {
        let (hosts, nats, events) = Default::default();
        Self { rng: Rng::seeded(seed), hosts, nats, realms: 1, events, sequence: 0, sent: 0 }
    }

    pub fn add_host(&mut self, realm: Realm, addresses: &[IpAddr], cable: Cable) -> HostId {
        let cable = self.lines(cable);
        self.hosts.push(Host { realm, addresses: addresses.to_vec(), cable });
        HostId(self.hosts.len() - 1)
    }

    /// A realm behind nothing yet.
    pub fn add_realm(&mut self) -> Realm {
        self.realms += 1;
        Realm(self.realms - 1)
    }

    /// Packets of the family of `external` leave `inner` by this NAT.
    pub fn add_nat(&mut self, kind: Kind, external: IpAddr, inner: Realm, outer: Realm, cable: Cable) -> NatId {
        let cable = self.lines(cable);
        let nat = Nat::new(kind, external, self.rng.fork());
        self.nats.push(Gateway { nat, outer, inner, is_v4: external.is_ipv4(), cable });
        NatId(self.nats.len() - 1)
    }

    pub fn nat(&mut self, nat: NatId) -> &mut Nat {
        &mut self.nats[nat.0].nat
    }

    pub fn send(&mut self, now: u64, host: HostId, packet: Packet<P>) {
        self.sent += 1;
        let realm = self.hosts[host.0].realm;
        let line = &mut self.hosts[host.0].cable[0];
        if let Some((at, packet)) = line.carry(now, packet) {
            self.plan(at, Event::In(realm, packet));
        }
    }

    pub fn next_event(&self) -> Option<u64> {
        self.events.peek().map(|Reverse((at, ..))| *at)
    }

    /// Lets things happen up to `now`, until a packet reaches somebody.
    pub fn poll(&mut self, now: u64) -> Option<(HostId, Packet<P>)> {
        while self.next_event().is_some_and(|at| at <= now) {
            let Reverse((at, _, event)) = self.events.pop()?;
            match event {
                Event::In(realm, packet) => self.route(at, realm, packet),
                Event::Leaves(nat, packet) => self.leave(at, nat, packet),
                Event::Enters(nat, packet) => self.enter(at, nat, packet),
                Event::Reaches(host, packet) => return Some((host, packet)),
            }
        }
        None
    }

    fn route(&mut self, now: u64, realm: Realm, packet: Packet<P>) {
        let to = packet.to.ip();
        let host = self.hosts.iter().position(|host| host.realm == realm && host.addresses.contains(&to));
        if let Some(host) = host {
            if let Some((at, packet)) = self.hosts[host].cable[1].carry(now, packet) {
                self.plan(at, Event::Reaches(HostId(host), packet));
            }
            return;
        }
        let below = self.nats.iter().position(|nat| nat.outer == realm && nat.nat.stands_before(to));
        if let Some(nat) = below {
            if let Some((at, packet)) = self.nats[nat].cable[1].carry(now, packet) {
                self.plan(at, Event::Enters(NatId(nat), packet));
            }
            return;
        }
        let above = self.nats.iter().position(|nat| nat.inner == realm && nat.is_v4 == to.is_ipv4());
        if let (Some(nat), Some(packet)) = (above, hop(packet, 1)) {
            self.plan(now, Event::Leaves(NatId(nat), packet));
        }
    }

    fn leave(&mut self, now: u64, id: NatId, mut packet: Packet<P>) {
        let Gateway { nat, outer, inner, cable, .. } = &mut self.nats[id.0];
        let (outer, inner) = (*outer, *inner);
        let turns_round = nat.stands_before(packet.to.ip());
        if turns_round && !nat.has_hairpin() {
            return;
        }
        let Some(from) = nat.outbound(now, packet.protocol, packet.from, packet.to) else { return };
        packet.from = from;
        if turns_round {
            let Some(to) = nat.inbound(now, packet.protocol, packet.from, packet.to) else { return };
            packet.to = to;
            self.plan(now, Event::In(inner, packet));
        } else if let Some((at, packet)) = cable[0].carry(now, packet) {
            self.plan(at, Event::In(outer, packet));
        }
    }

    fn enter(&mut self, now: u64, id: NatId, packet: Packet<P>) {
        let Gateway { nat, inner, .. } = &mut self.nats[id.0];
        let inner = *inner;
        let Some(mut packet) = hop(packet, 1) else { return };
        if let Some(to) = nat.inbound(now, packet.protocol, packet.from, packet.to) {
            packet.to = to;
            self.plan(now, Event::In(inner, packet));
        }
    }

    fn plan(&mut self, at: u64, event: Event<P>) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }

    fn lines(&mut self, cable: Cable) -> [Line; 2] {
        let loss = if cable.loss > 0.0 { Loss::Iid(cable.loss) } else { Loss::None };
        let settings = Settings { delay_us: cable.delay_us, loss, ..Settings::default() };
        [(); 2].map(|()| Line { link: Link::new(settings.clone(), self.rng.fork()), hops: cable.hops })
    }
}

impl Line {
    /// When the packet comes out, if it does.
    fn carry<P>(&mut self, now: u64, packet: Packet<P>) -> Option<(u64, Packet<P>)> {
        let [arrival, _] = self.link.carry(now, BYTES);
        Some((arrival?, hop(packet, self.hops)?))
    }
}

/// A packet dies at the hop that takes the last of its life.
fn hop<P>(mut packet: Packet<P>, hops: u8) -> Option<Packet<P>> {
    if hops > 0 && packet.ttl <= hops {
        return None;
    }
    packet.ttl -= hops;
    Some(packet)
}
