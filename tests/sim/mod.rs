//! A virtual network on a virtual clock, for everything that speaks in datagrams and is told the time.
//!
//! A test makes a [`Net`] of a seed, adds hosts (each runs a [`Node`]) and links, says which links a packet takes from one host to
//! another, and lets time pass. Time jumps from one event to the next, so minutes cost milliseconds. The same seed gives the
//! same run, and a test that fails tells its seed.
//!
//! There is no bandwidth but that of links with a bottleneck, no CPU time and no socket buffer.
#![allow(dead_code, reason = "each test file uses its own part of this module")]

pub mod addresses;
pub mod bare;
pub mod busy;
pub mod figures;
pub mod house;
pub mod internet;
pub mod link;
pub mod nat;
pub mod pair;
pub mod punchers;
pub mod rng;
pub mod side;
pub mod traffic;
pub mod two_ways;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;

use addresses::Addresses;
use link::Link;
use rng::Rng;

pub const MS: u64 = 1_000;
pub const SECOND: u64 = 1_000_000;

/// What a host runs: one UDP socket's worth of something, without a clock.
pub trait Node {
    fn handle_datagram(&mut self, now: u64, from: SocketAddr, datagram: &mut [u8]);
    /// Appends datagrams of equal size (the last may be shorter) for one address, and tells the address and that size.
    fn poll_transmit(&mut self, now: u64, out: &mut Vec<u8>) -> Option<(SocketAddr, usize)>;
    fn next_timeout(&self) -> Option<u64>;
    fn handle_timeout(&mut self, now: u64);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(pub usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub usize);

/// Turns of a node in one instant, after which it is taken to be in a loop.
const TURNS_MAX: u32 = 10_000;

pub struct Net<N> {
    seed: u64,
    rng: Rng,
    now: u64,
    hosts: Vec<Host<N>>,
    links: Vec<Link>,
    routes: BTreeMap<(HostId, HostId), Vec<LinkId>>,
    addresses: Addresses,
    /// Packets that come out of a link: when, in which order they were sent, and where they are kept.
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    sequence: u64,
    packets: Vec<Packet>,
    free: Vec<usize>,
    /// Changes with everything that arrives: two runs that end with the same were the same.
    digest: u64,
    /// Datagrams for addresses at which there is nobody.
    pub lost_ways: u64,
    batch: Vec<u8>,
}

struct Host<N> {
    node: N,
    /// Something happened since it was last asked for what it sends.
    is_stirred: bool,
    timeout: Option<u64>,
    turns: (u64, u32),
    stats: HostStats,
}

/// What a node sent and got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostStats {
    pub sent: u64,
    pub sent_bytes: u64,
    pub received: u64,
    pub received_bytes: u64,
}

struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    /// Whose links it takes.
    route: (HostId, HostId),
    links_passed: usize,
    bytes: Vec<u8>,
}

impl<N: Node> Net<N> {
    pub fn seeded(seed: u64) -> Self {
        Self {
            seed,
            rng: Rng::seeded(seed),
            now: 0,
            hosts: Vec::new(),
            links: Vec::new(),
            routes: BTreeMap::new(),
            addresses: Addresses::default(),
            events: BinaryHeap::new(),
            sequence: 0,
            packets: Vec::new(),
            free: Vec::new(),
            digest: 0,
            lost_ways: 0,
            batch: Vec::new(),
        }
    }

    // What there is.

    pub fn add_host(&mut self, address: SocketAddr, node: N) -> HostId {
        let host = HostId(self.hosts.len());
        self.addresses.attach(host, address);
        let (turns, stats) = ((0, 0), HostStats::default());
        self.hosts.push(Host { node, is_stirred: true, timeout: None, turns, stats });
        host
    }

    pub fn add_link(&mut self, settings: link::Settings) -> LinkId {
        let rng = self.rng.fork();
        self.links.push(Link::new(settings, rng));
        LinkId(self.links.len() - 1)
    }

    /// Packets from one host to the other take these links. Several routes may share a link. Where there is no route, they are
    /// lost.
    pub fn set_route(&mut self, from: HostId, to: HostId, links: &[LinkId]) {
        self.routes.insert((from, to), links.to_vec());
    }

    /// A link for each direction, alike, and nobody else's.
    pub fn connect(&mut self, left: HostId, right: HostId, settings: &link::Settings) -> [LinkId; 2] {
        [(left, right), (right, left)].map(|(from, to)| {
            let link = self.add_link(settings.clone());
            self.set_route(from, to, &[link]);
            link
        })
    }

    /// From now on the host sends from `address`, as after its NAT forgot it. What is sent to the old one is lost.
    pub fn rebind(&mut self, host: HostId, address: SocketAddr) {
        self.addresses.attach(host, address);
    }

    pub fn link(&mut self, link: LinkId) -> &mut Link {
        &mut self.links[link.0]
    }

    pub fn node(&self, host: HostId) -> &N {
        &self.hosts[host.0].node
    }

    /// To do something with it. It is asked for what it sends afterwards.
    pub fn node_mut(&mut self, host: HostId) -> &mut N {
        let host = &mut self.hosts[host.0];
        host.is_stirred = true;
        &mut host.node
    }

    pub fn stats(&self, host: HostId) -> HostStats {
        self.hosts[host.0].stats
    }

    pub fn now(&self) -> u64 {
        self.now
    }

    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }

    // What happens.

    pub fn run_for(&mut self, us: u64) {
        self.run_until(self.now + us);
    }

    pub fn run_until(&mut self, end: u64) {
        self.settle();
        while let Some(at) = self.next_event()
            && at <= end
        {
            self.now = self.now.max(at);
            self.step();
            self.settle();
        }
        self.now = end;
    }

    /// Until `is_reached`, at most `us`. Whether it was.
    pub fn run_while(&mut self, us: u64, mut goes_on: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now + us;
        self.settle();
        while goes_on(self) {
            match self.next_event() {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => return false,
            }
            self.step();
            self.settle();
        }
        true
    }

    fn next_event(&self) -> Option<u64> {
        let arrival = self.events.peek().map(|Reverse((at, ..))| *at);
        let timeouts = self.hosts.iter().filter_map(|host| host.timeout);
        timeouts.chain(arrival).min()
    }

    /// One packet moves, or else the nodes whose time has come hear of it.
    fn step(&mut self) {
        if let Some(&Reverse((at, _, packet))) = self.events.peek()
            && at <= self.now
        {
            self.events.pop();
            return self.move_on(packet);
        }
        let (now, seed) = (self.now, self.seed);
        for (id, host) in self.hosts.iter_mut().enumerate() {
            if host.timeout.is_some_and(|timeout| timeout <= now) {
                host.turns = if host.turns.0 == now { (now, host.turns.1 + 1) } else { (now, 0) };
                assert!(host.turns.1 < TURNS_MAX, "seed {seed}: host {id} turns in a circle at {now} us");
                host.node.handle_timeout(now);
                host.is_stirred = true;
            }
        }
    }

    /// Lets every node to which something happened say what it sends, until they are silent.
    fn settle(&mut self) {
        for id in (0..self.hosts.len()).map(HostId) {
            if !std::mem::take(&mut self.hosts[id.0].is_stirred) {
                continue;
            }
            let mut batch = std::mem::take(&mut self.batch);
            while let Some((to, datagram_bytes)) = self.hosts[id.0].node.poll_transmit(self.now, &mut batch) {
                batch.chunks(datagram_bytes.max(1)).for_each(|datagram| self.send(id, to, datagram));
                batch.clear();
            }
            self.batch = batch;
            let host = &mut self.hosts[id.0];
            host.timeout = host.node.next_timeout();
        }
    }

    fn send(&mut self, sender: HostId, to: SocketAddr, datagram: &[u8]) {
        let stats = &mut self.hosts[sender.0].stats;
        stats.sent += 1;
        stats.sent_bytes += datagram.len() as u64;
        let from = self.addresses.outbound(sender, to);
        let Some(receiver) = self.addresses.inbound(from, to) else {
            self.lost_ways += 1;
            return;
        };
        let packet = self.free.pop().unwrap_or_else(|| {
            self.packets.push(Packet { from, to, route: (sender, receiver), links_passed: 0, bytes: Vec::new() });
            self.packets.len() - 1
        });
        let kept = &mut self.packets[packet];
        (kept.from, kept.to, kept.route, kept.links_passed) = (from, to, (sender, receiver), 0);
        kept.bytes.clear();
        kept.bytes.extend_from_slice(datagram);
        self.move_on(packet);
    }

    /// Into the next link, or out of the last one.
    fn move_on(&mut self, id: usize) {
        let packet = &mut self.packets[id];
        let link = match self.routes.get(&packet.route) {
            Some(links) if packet.links_passed == links.len() => return self.arrive(id),
            Some(links) => links[packet.links_passed],
            None => {
                self.lost_ways += 1;
                return self.free.push(id);
            }
        };
        packet.links_passed += 1;
        let [once, again] = self.links[link.0].carry(self.now, packet.bytes.len());
        if let Some(at) = again {
            let Packet { from, to, route, links_passed, ref bytes } = self.packets[id];
            self.packets.push(Packet { from, to, route, links_passed, bytes: bytes.clone() });
            self.schedule(at, self.packets.len() - 1);
        }
        match once {
            Some(at) => self.schedule(at, id),
            None => self.free.push(id),
        }
    }

    fn schedule(&mut self, at: u64, packet: usize) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, packet)));
    }

    fn arrive(&mut self, id: usize) {
        let Packet { from, to, .. } = self.packets[id];
        let mut bytes = std::mem::take(&mut self.packets[id].bytes);
        match self.addresses.inbound(from, to) {
            Some(receiver) => self.hand_over(receiver, from, &mut bytes),
            None => self.lost_ways += 1,
        }
        self.packets[id].bytes = bytes;
        self.free.push(id);
    }

    fn hand_over(&mut self, receiver: HostId, from: SocketAddr, datagram: &mut [u8]) {
        let head = datagram.iter().take(32).fold(self.now ^ datagram.len() as u64, |head, byte| {
            (head.rotate_left(5) ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        self.digest = (self.digest.rotate_left(7) ^ head).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let host = &mut self.hosts[receiver.0];
        host.stats.received += 1;
        host.stats.received_bytes += datagram.len() as u64;
        host.node.handle_datagram(self.now, from, datagram);
        host.is_stirred = true;
    }
}

impl<N> Drop for Net<N> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the network was made of seed {}, and it was {} us", self.seed, self.now);
        }
    }
}
