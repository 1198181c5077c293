//! Two peers with two ways between them: straight, and through a host that passes on. Each peer has a tunnel and its [`Paths`], and
//! a visitor who wants a round of punching gets one that finds the straight way, if it works.

use std::collections::VecDeque;
use std::net::SocketAddr;

use gateway::proto::path::{KeepAlive, Mode, Output, Paths};
use gateway::proto::tunnel::{Event, Service, Settings, StreamId, Way};

use super::nat::{Filtering, Kind, Mapping, Nat, Protocol};
use super::pair::address;
use super::side::{Accepts, Side};
use super::{HostId, LinkId, MS, Net, Node, SECOND, link};

/// How long a round takes to find the straight way, and to end.
const ROUND_FINDS_US: u64 = 200 * MS;
const ROUND_ENDS_US: u64 = 2_500 * MS;

/// The only flow there is.
pub fn relayed() -> SocketAddr {
    Way::Flow { via: 0, flow: 1 }.into()
}

pub enum Host {
    Peer(Box<Peer>),
    Relay(Relay),
}

/// Passes everything on to the other one.
pub struct Relay {
    peers: [SocketAddr; 2],
    queue: VecDeque<(SocketAddr, Vec<u8>)>,
}

pub struct Peer {
    pub side: Side,
    pub paths: Option<Paths>,
    pub mode: Mode,
    decides: bool,
    /// A firewall before the straight way, which keeps our address.
    firewall: Option<Nat>,
    pub keep_alive: KeepAlive,
    /// Where we are, the other one is, and the relay.
    own: SocketAddr,
    straight: SocketAddr,
    relay: SocketAddr,
    round_began: Option<u64>,
    has_found: bool,
    outbox: VecDeque<(SocketAddr, Vec<u8>)>,
    /// When which way was chosen or followed.
    pub moves: Vec<(u64, SocketAddr)>,
}

pub struct TwoWays {
    pub net: Net<Host>,
    pub visitor: HostId,
    pub provider: HostId,
    pub relay: HostId,
    /// There and back.
    pub straight: [LinkId; 2],
    /// Between the visitor and the relay, and between that and the provider, both there and back.
    pub relayed: [[LinkId; 2]; 2],
}

impl TwoWays {
    /// Established, through the relay.
    pub fn new(seed: u64, straight: &link::Settings, relayed: &link::Settings, mode: Mode) -> Self {
        let mut net = Net::seeded(seed);
        let [visitor, provider] = [(1, 2), (2, 1)].map(|(own, other)| {
            let side = Side::new(Settings::default(), net.rng().seed());
            let peer = Peer {
                side,
                paths: None,
                mode,
                decides: own == 1,
                firewall: None,
                keep_alive: KeepAlive::default(),
                own: address(own),
                straight: address(other),
                relay: address(9),
                round_began: None,
                has_found: false,
                outbox: VecDeque::new(),
                moves: Vec::new(),
            };
            net.add_host(address(own), Host::Peer(Box::new(peer)))
        });
        let relay = net.add_host(address(9), Host::Relay(Relay { peers: [1, 2].map(address), queue: VecDeque::new() }));
        let straight = net.connect(visitor, provider, straight);
        let relayed = [net.connect(visitor, relay, relayed), net.connect(relay, provider, relayed)];
        let mut ways = Self { net, visitor, provider, relay, straight, relayed };
        let service = Service { tcp_ports: 2, udp_ports: 1, wants_addresses: true };
        ways.provider().side.serve(Accepts::Echo, service);
        ways.visitor().side.connect(0, self::relayed());
        let provider = ways.provider;
        let is_up = ways.net.run_while(30 * SECOND, |net| net.node(provider).peer().side.tunnel.is_none());
        assert!(is_up, "seed {seed}: no tunnel is established");
        ways
    }

    pub fn visitor(&mut self) -> &mut Peer {
        self.net.node_mut(self.visitor).peer_mut()
    }

    pub fn provider(&mut self) -> &mut Peer {
        self.net.node_mut(self.provider).peer_mut()
    }

    /// Where the tunnels of both send.
    pub fn remotes(&mut self) -> [SocketAddr; 2] {
        let visitor = self.visitor().side.tunnel().status().remote;
        [visitor, self.provider().side.tunnel().status().remote]
    }

    pub fn are_straight(&mut self) -> bool {
        self.remotes() == [2, 1].map(address)
    }

    pub fn are_relayed(&mut self) -> bool {
        self.remotes() == [relayed(); 2]
    }

    pub fn cut(&mut self, links: &[LinkId], is_cut: bool) {
        for link in links {
            self.net.link(*link).settings.is_cut = is_cut;
        }
    }

    pub fn all_relayed(&self) -> [LinkId; 4] {
        let [[a, b], [c, d]] = self.relayed;
        [a, b, c, d]
    }

    /// The visitor, or the provider, gets another address, of which its tunnel to the relay knows at once.
    pub fn rebind(&mut self, visitor: bool, to: SocketAddr) {
        let (host, at) = if visitor { (self.visitor, 0) } else { (self.provider, 1) };
        self.net.rebind(host, to);
        if let Host::Relay(relay) = self.net.node_mut(self.relay) {
            relay.peers[at] = to;
        }
    }

    /// From now on there is a firewall before each end that forgets who is silent for so long. 0: none.
    pub fn build_firewalls(&mut self, forget_after_us: [u64; 2]) {
        for (host, forgets) in [self.visitor, self.provider].into_iter().zip(forget_after_us) {
            let rng = self.net.rng().fork();
            let peer = self.net.node_mut(host).peer_mut();
            let kind = Kind::new(Mapping::None, Filtering::AddressAndPort).living(forgets);
            peer.firewall = (forgets > 0).then(|| Nat::new(kind, peer.own.ip(), rng));
        }
    }

    /// What has come back of a stream of the visitor's.
    pub fn read(&self, stream: StreamId) -> usize {
        self.net.node(self.visitor).peer().side.held(stream).read.len()
    }
}

impl Host {
    pub fn peer(&self) -> &Peer {
        match self {
            Self::Peer(peer) => peer,
            Self::Relay(_) => panic!("that is the relay"),
        }
    }

    pub fn peer_mut(&mut self) -> &mut Peer {
        match self {
            Self::Peer(peer) => peer,
            Self::Relay(_) => panic!("that is the relay"),
        }
    }
}

impl Peer {
    fn pump(&mut self, now: u64) {
        self.side.hear(now);
        self.hear(now);
        self.look_at_round(now);
        let Some(paths) = self.paths.as_mut() else { return };
        if let Some(at) = self.side.tunnel.and_then(|id| self.side.endpoint.tunnel(id)?.traffic_sent_at()) {
            paths.sent(at);
        }
        while let Some(output) = paths.poll_output(now) {
            let tunnel = self.side.tunnel.and_then(|id| self.side.endpoint.tunnel(id));
            match (output, tunnel) {
                (Output::Probe { to }, Some(tunnel)) => {
                    let mut probe = Vec::new();
                    tunnel.probe(now, to, &mut probe);
                    self.outbox.push_back((to, probe));
                }
                (Output::Use { to, leaving }, Some(tunnel)) => {
                    tunnel.use_path(now, to, leaving);
                    self.moves.push((now, to));
                }
                (Output::Forgot { silence_us }, _) => {
                    self.keep_alive.forgot(silence_us);
                    paths.keep_alive(self.keep_alive.interval_us());
                }
                (Output::WantRound, _) => (self.round_began, self.has_found) = (Some(now), false),
                (_, None) => {}
            }
        }
    }

    fn hear(&mut self, now: u64) {
        if self.paths.is_none()
            && let Some(id) = self.side.tunnel
        {
            let tunnel = self.side.endpoint.tunnel(id).expect("it lives");
            tunnel.ask_after(18 * SECOND);
            let remote = tunnel.status().remote;
            self.paths = Some(Paths::new(now, self.mode, self.decides, remote, 7));
        }
        let Some(paths) = self.paths.as_mut() else { return };
        for (_, event) in self.side.ways.drain(..) {
            match event {
                Event::Probed { from } => paths.probed(now, from),
                Event::Answered { from, rtt_us } => paths.answered(now, from, rtt_us),
                Event::Moved { to } => {
                    paths.moved(now, to);
                    self.moves.push((now, to));
                }
                _ => {}
            }
        }
    }

    /// The firewall has forgotten it.
    fn is_shut_out(&mut self, now: u64, from: SocketAddr) -> bool {
        let (own, straight) = (self.own, self.straight);
        let firewall = self.firewall.as_mut().filter(|_| from == straight);
        firewall.is_some_and(|firewall| firewall.inbound(now, Protocol::Udp, from, own).is_none())
    }

    fn note_leaving(&mut self, now: u64, to: SocketAddr) {
        let (own, straight) = (self.own, self.straight);
        if let Some(firewall) = self.firewall.as_mut().filter(|_| to == straight) {
            firewall.outbound(now, Protocol::Udp, own, to);
        }
    }

    fn round_at(&self) -> Option<u64> {
        let after = if self.has_found { ROUND_ENDS_US } else { ROUND_FINDS_US };
        self.round_began.map(|began| began + after)
    }

    fn look_at_round(&mut self, now: u64) {
        let (Some(paths), Some(at)) = (self.paths.as_mut(), self.round_began) else { return };
        if !self.has_found && now >= at + ROUND_FINDS_US {
            paths.found(now, self.straight);
            self.has_found = true;
        }
        if now >= at + ROUND_ENDS_US {
            paths.round_over(now);
            self.round_began = None;
        }
    }
}

impl Node for Host {
    fn handle_datagram(&mut self, now: u64, from: SocketAddr, datagram: &mut [u8]) {
        match self {
            Self::Relay(relay) => {
                let [one, other] = relay.peers;
                relay.queue.push_back((if from == one { other } else { one }, datagram.to_vec()));
            }
            Self::Peer(peer) => {
                if peer.is_shut_out(now, from) {
                    return;
                }
                let from = if from == peer.relay { relayed() } else { from };
                let is_authentic = peer.side.endpoint.handle_datagram(now, from, datagram).is_some();
                if let Some(paths) = peer.paths.as_mut().filter(|_| is_authentic) {
                    paths.heard(now, from);
                }
                peer.pump(now);
            }
        }
    }

    fn poll_transmit(&mut self, now: u64, out: &mut Vec<u8>) -> Option<(SocketAddr, usize)> {
        let (to, bytes) = match self {
            Self::Relay(relay) => {
                let (to, datagram) = relay.queue.pop_front()?;
                out.extend_from_slice(&datagram);
                return Some((to, datagram.len()));
            }
            Self::Peer(peer) => {
                peer.pump(now);
                let relay = peer.relay;
                let (to, bytes) = if let Some((to, datagram)) = peer.outbox.pop_front() {
                    out.extend_from_slice(&datagram);
                    (to, datagram.len())
                } else {
                    let transmit = peer.side.endpoint.poll_transmit(now, out)?;
                    (transmit.to, transmit.segment_bytes)
                };
                peer.note_leaving(now, to);
                (if to == relayed() { relay } else { to }, bytes)
            }
        };
        Some((to, bytes))
    }

    fn next_timeout(&self) -> Option<u64> {
        match self {
            Self::Relay(relay) => (!relay.queue.is_empty()).then_some(0),
            Self::Peer(peer) => {
                let paths = peer.paths.as_ref().map(Paths::next_timeout).filter(|at| *at < u64::MAX);
                peer.side.endpoint.next_timeout().into_iter().chain(paths).chain(peer.round_at()).min()
            }
        }
    }

    fn handle_timeout(&mut self, now: u64) {
        if let Self::Peer(peer) = self {
            peer.side.endpoint.handle_timeout(now);
            peer.pump(now);
        }
    }
}
