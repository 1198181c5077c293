//! Looks at the network from here, with the help of a rendezvous and of nobody else:
//!
//! 1. A tunnel over UDP and one over TCP: which of the two gets through.
//! 2. Fresh sockets ask how they look from outside, as before a round of punching; meanwhile probes in both tunnels are timed.
//! 3. Two sockets send to the addresses that they have outside: does the router lead that back?
//!
//! Deliberately absent: what a router lets in from those who were never asked. The rendezvous answers from where it was asked
//! only, so nobody here can tell.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::link::Link;
use crate::proto::punch::{Class, Gather, Kind, Profile, Setup};
use crate::proto::rendezvous::SERVICE;
use crate::proto::rendezvous::wire::{Inbox, Notice, Transport};
use crate::proto::tunnel::random::Random;
use crate::proto::tunnel::{CloseReason, Endpoint, Event, Key, ServiceName, Settings, StreamId, TunnelId, Way};
use crate::sys::{clock, network};

/// How long somebody may take to answer at all, in µs, and how long the other protocol may when one has been answered: four
/// handshakes fit into that.
const MEET_US: u64 = 5_000_000;
const MEET_OTHER_US: u64 = 2_000_000;

/// Probes in each tunnel, the time between two, and how long answers may take, in µs.
const PROBES: u32 = 10;
const PROBE_PAUSE_US: u64 = 100_000;
const PROBE_PATIENCE_US: u64 = 1_000_000;

/// Attempts to come back through the router, each with this time, in µs.
const HAIRPINS: u32 = 3;
const HAIRPIN_US: u64 = 250_000;

/// From each socket, before all else has its turn.
const READS: u32 = 64;

/// More than any datagram of a tunnel.
const DATAGRAM_BYTES: usize = 65_536;

/// What was found.
#[derive(Debug)]
pub(super) struct Survey {
    pub rendezvous: SocketAddr,
    /// `None`: nothing gets through.
    pub udp: Option<Delays>,
    pub tcp: Option<Delays>,
    pub seen_by_tcp: Option<SocketAddr>,
    /// Of IPv4. `None`: the rendezvous has no such address, or there is no way there.
    pub class: Option<Class>,
    pub profile: Profile,
    /// Whether a host behind the router reaches its neighbour by the public address. `None`: that was not to be found out.
    pub hairpin: Option<bool>,
    /// An address of this host that the whole Internet can have a way to.
    pub ipv6: Option<Ipv6Addr>,
    /// That of the rendezvous.
    pub rendezvous_has_ipv6: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Delays {
    pub sent: u32,
    /// Of those that were answered, in µs.
    pub rtts: Vec<u64>,
}

/// Nobody answered.
#[derive(Debug)]
pub(super) enum Unmet {
    /// Nobody takes the connection either, and what is known of that.
    Unreachable(Option<ErrorKind>),
    /// Somebody takes it, and says nothing.
    Silent,
    /// This host lacks something.
    Host(io::Error),
}

impl From<io::Error> for Unmet {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl Survey {
    /// `addresses`: those of the rendezvous. `port`: the local one to ask about over IPv4, or 0.
    pub(super) fn take(addresses: &[SocketAddr], port: u16, key: &Arc<Key>) -> Result<Self, Unmet> {
        let of_family = |is_v4| addresses.iter().copied().find(|address| address.is_ipv4() == is_v4);
        let families = [of_family(true), of_family(false)];
        let mut unmet = Unmet::Unreachable(None);
        for at in families.into_iter().flatten() {
            let mut surveyor = Surveyor::new(at, key)?;
            match surveyor.meet() {
                Ok(()) => return Ok(surveyor.survey(families, port)?),
                Err(why) => unmet = why,
            }
        }
        Err(unmet)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// The tunnel's own.
    Tunnel,
    Main4,
    Main6,
    /// Main4's neighbour, for what two hosts behind one router would see.
    Neighbour,
}

struct Surveyor {
    origin: Instant,
    at: SocketAddr,
    random: Random,
    endpoint: Endpoint,
    epoll: Epoll,
    sockets: BTreeMap<Place, UdpSocket>,
    link: Link,
    /// In the order UDP, TCP.
    tunnels: [TunnelId; 2],
    up_since: [Option<u64>; 2],
    delays: [Delays; 2],
    probe_at: Option<u64>,
    gathers: Vec<(Place, Gather)>,
    stream: Option<StreamId>,
    inbox: Inbox,
    seen_by_tcp: Option<SocketAddr>,
    hairpin: [u8; 16],
    came_back: bool,
}

const UDP: usize = 0;
const TCP: usize = 1;

fn link_address() -> SocketAddr {
    Way::Link(0).into()
}

fn seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)?;
    Ok(seed)
}

impl Surveyor {
    fn new(at: SocketAddr, key: &Arc<Key>) -> Result<Self, Unmet> {
        let (origin, epoll, mut random) =
            (clock::now(), Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC), Random::new(seed()?));
        let epoll = epoll.map_err(io::Error::from)?;
        let mut endpoint = Endpoint::new(Settings::default(), seed()?);
        let service = ServiceName::new(SERVICE).expect("it is a name");
        let tunnels = [at, link_address()]
            .map(|to| endpoint.connect(0, to, key.clone(), service).expect("far from the limit of tunnels"));
        let link = Link::connect(at, &epoll)?;
        let mut surveyor = Self {
            origin,
            at,
            hairpin: random.draw(),
            random,
            endpoint,
            epoll,
            sockets: BTreeMap::new(),
            link,
            tunnels,
            up_since: [None; 2],
            delays: [Delays::default(), Delays::default()],
            probe_at: None,
            gathers: Vec::new(),
            stream: None,
            inbox: Inbox::default(),
            seen_by_tcp: None,
            came_back: false,
        };
        surveyor.open(Place::Tunnel, at.is_ipv4(), 0)?;
        Ok(surveyor)
    }

    fn open(&mut self, place: Place, is_v4: bool, port: u16) -> io::Result<SocketAddr> {
        let any: IpAddr = if is_v4 { [0; 4].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, port))?;
        socket.set_nonblocking(true)?;
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let address = socket.local_addr()?;
        self.sockets.insert(place, socket);
        Ok(address)
    }

    fn now(&self) -> u64 {
        u64::try_from((clock::now() - self.origin).as_micros()).unwrap_or(u64::MAX)
    }

    // The three steps.

    fn meet(&mut self) -> Result<(), Unmet> {
        self.run(MEET_US, |of| {
            let now = of.now();
            let is_settled = of.up_since[UDP].is_some() && (of.up_since[TCP].is_some() || of.link.fault.is_some());
            is_settled || of.up_since.iter().flatten().any(|since| now >= since + MEET_OTHER_US)
        })?;
        match &self.link {
            _ if self.up_since.iter().any(Option::is_some) => Ok(()),
            Link { is_connected: true, .. } => Err(Unmet::Silent),
            Link { fault, .. } => Err(Unmet::Unreachable(*fault)),
        }
    }

    fn survey(mut self, families: [Option<SocketAddr>; 2], port: u16) -> io::Result<Survey> {
        let ipv6 = network::addresses()?.into_iter().find_map(|ip| match ip {
            IpAddr::V6(ip) if ip.segments()[0] & 0xe000 == 0x2000 => Some(ip), // 2000::/3: not those of one site
            _ => None,
        });
        self.gather(families, port)?;
        self.probe_at = Some(self.now());
        let patience = u64::from(PROBES) * PROBE_PAUSE_US + PROBE_PATIENCE_US;
        self.run(patience, |of| of.has_sampled() && of.gathers.iter().all(|(_, gather)| gather.is_over(of.now())))?;
        let [profile, neighbour] = [0, 1].map(|of: usize| self.gathers[of].1.profile());
        let class = self.sockets.contains_key(&Place::Main4).then_some(profile.class);
        let hairpin = self.hairpin(&profile, &neighbour)?;
        self.leave();
        let [udp, tcp] = [UDP, TCP].map(|of| self.up_since[of].map(|_| self.delays[of].clone()));
        let (rendezvous, seen_by_tcp, rendezvous_has_ipv6) = (self.at, self.seen_by_tcp, families[1].is_some());
        Ok(Survey { rendezvous, udp, tcp, seen_by_tcp, class, profile, hairpin, ipv6, rendezvous_has_ipv6 })
    }

    /// Has Main4 and Main6 ask both ports, and their neighbour one.
    fn gather(&mut self, [v4, v6]: [Option<SocketAddr>; 2], port: u16) -> io::Result<()> {
        let mut main = Setup::default();
        let mut neighbour = Setup::default();
        let mut ips = network::addresses()?;
        for (place, at, port) in [(Place::Main4, v4, port), (Place::Main6, v6, 0)] {
            let Some(at) = at else { continue };
            // To ask where there is no way leads nowhere.
            let Ok(source) = network::source_for(at) else { continue };
            let local = self.open(place, at.is_ipv4(), port)?;
            ips.extend((!ips.contains(&source)).then_some(source));
            let hosts = ips.iter().filter(|ip| ip.is_ipv4() == at.is_ipv4());
            main.hosts.extend(hosts.map(|ip| SocketAddr::new(*ip, local.port())));
            main.observers.push(at);
            main.observers.extend(at.port().checked_add(1).map(|next| SocketAddr::new(at.ip(), next)));
        }
        if let Some(at) = v4 {
            self.open(Place::Neighbour, true, 0)?;
            neighbour.observers.push(at);
        }
        let now = self.now();
        for (place, setup) in [(Place::Main4, main), (Place::Neighbour, neighbour)] {
            self.gathers.push((place, Gather::new(now, setup, &mut self.random)));
        }
        Ok(())
    }

    /// Each of two sends to where the other is seen, since a router may let in only whom it has sent to.
    fn hairpin(&mut self, main: &Profile, neighbour: &Profile) -> io::Result<Option<bool>> {
        let reflexive = |of: &Profile| of.of_kind(Kind::Reflexive).find(SocketAddr::is_ipv4);
        let (Some(first), Some(second), false) = (reflexive(main), reflexive(neighbour), main.class == Class::Open)
        else {
            return Ok(None);
        };
        for _ in 0..HAIRPINS {
            for (from, to) in [(Place::Neighbour, first), (Place::Main4, second)] {
                let _ = self.sockets[&from].send_to(&self.hairpin, to); // or it is lost
            }
            self.run(HAIRPIN_US, |of| of.came_back)?;
        }
        Ok(Some(self.came_back))
    }

    fn leave(&mut self) {
        for tunnel in self.tunnels {
            if let Some(tunnel) = self.endpoint.tunnel(tunnel) {
                tunnel.close(CloseReason::Done);
            }
        }
        self.transmit(self.now());
    }

    fn has_sampled(&self) -> bool {
        [UDP, TCP].into_iter().all(|of| {
            self.up_since[of].is_none()
                || self.delays[of].sent == PROBES && self.delays[of].rtts.len() == PROBES as usize
        })
    }

    // What goes on meanwhile.

    /// Until that is so, but no longer than `patience`, in µs.
    fn run(&mut self, patience: u64, mut is_so: impl FnMut(&Self) -> bool) -> io::Result<()> {
        let ends = self.now() + patience;
        loop {
            self.step();
            let now = self.now();
            if is_so(self) || now >= ends {
                return Ok(());
            }
            let questions = self.gathers.iter().filter(|(_, gather)| !gather.is_over(now));
            let next = questions.map(|(_, gather)| gather.next_timeout()).min();
            let next = [next, self.probe_at, self.endpoint.next_timeout()].into_iter().flatten().fold(ends, u64::min);
            // In steps of 100 ms at most, for what has no deadline here.
            let wait = next.saturating_sub(now).div_ceil(1_000).min(100) as u16;
            match self.epoll.wait(&mut [EpollEvent::empty(); 8], wait) {
                Err(nix::Error::EINTR) | Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn step(&mut self) {
        let now = self.now();
        self.receive(now);
        self.endpoint.handle_timeout(now);
        while let Some((tunnel, event)) = self.endpoint.poll_event() {
            if let Some(of) = self.tunnels.iter().position(|known| *known == tunnel) {
                self.hear(now, of, event);
            }
        }
        self.ask(now);
        self.sample(now);
        self.transmit(now);
    }

    fn receive(&mut self, now: u64) {
        let mut buffer = [0; DATAGRAM_BYTES];
        for socket in self.sockets.values() {
            for _ in 0..READS {
                match socket.recv_from(&mut buffer) {
                    Ok((n, _)) if buffer[..n] == self.hairpin => self.came_back = true,
                    Ok((n, from)) => _ = self.endpoint.handle_datagram(now, from, &mut buffer[..n]),
                    Err(_none_or_refused) => break,
                }
            }
        }
        for _ in 0..READS {
            let may_be_more = self.link.receive(&mut buffer);
            while let Some(mut packet) = self.link.pop() {
                self.endpoint.handle_datagram(now, link_address(), &mut packet);
            }
            if !may_be_more {
                break;
            }
        }
    }

    fn hear(&mut self, now: u64, of: usize, event: Event) {
        match event {
            Event::Established => {
                self.up_since[of] = Some(now);
                if of == TCP {
                    // There the rendezvous tells where the connection comes from.
                    self.stream = self.endpoint.tunnel(self.tunnels[TCP]).and_then(|tunnel| tunnel.open(0, None));
                }
            }
            Event::Readable(stream) if of == TCP && self.stream == Some(stream) => self.read(stream),
            Event::Observed { token, address } => {
                self.gathers.iter_mut().for_each(|(_, gather)| gather.on_observed(now, token, address));
            }
            Event::Answered { from, rtt_us } => {
                let delays = &mut self.delays[usize::from(from == link_address())];
                if delays.rtts.len() < delays.sent as usize {
                    delays.rtts.push(rtt_us);
                }
            }
            _ => {}
        }
    }

    fn read(&mut self, stream: StreamId) {
        let Some(tunnel) = self.endpoint.tunnel(self.tunnels[TCP]) else { return };
        while !tunnel.peek(stream).is_empty() {
            let piece = tunnel.peek(stream).to_vec();
            tunnel.consume(stream, piece.len());
            self.inbox.push(&piece);
        }
        while let Ok(Some(notice)) = self.inbox.pop::<Notice>() {
            if let Notice::Address(Transport::Tcp, address) = notice {
                self.seen_by_tcp = Some(address);
            }
        }
    }

    /// Questions may travel outside of the tunnel that seals them.
    fn ask(&mut self, now: u64) {
        let by = if self.up_since[UDP].is_some() { UDP } else { TCP };
        for (place, gather) in &mut self.gathers {
            while let Some(question) = gather.poll(now) {
                let place = if question.to.is_ipv6() { Place::Main6 } else { *place };
                let mut out = Vec::new();
                if let Some(tunnel) = self.endpoint.tunnel(self.tunnels[by]) {
                    tunnel.observe(now, question.token, &mut out);
                    let _ = self.sockets[&place].send_to(&out, question.to); // or it is asked again
                }
            }
        }
    }

    fn sample(&mut self, now: u64) {
        let Some(at) = self.probe_at.filter(|at| *at <= now) else { return };
        for (of, to) in [(UDP, self.at), (TCP, link_address())] {
            let Some(tunnel) = self.endpoint.tunnel(self.tunnels[of]).filter(|_| self.up_since[of].is_some()) else {
                continue;
            };
            let mut out = Vec::new();
            tunnel.probe(now, to, &mut out);
            self.delays[of].sent += 1;
            self.send(to, &out);
        }
        let goes_on = self.delays.iter().all(|delays| delays.sent < PROBES);
        self.probe_at = goes_on.then_some(at + PROBE_PAUSE_US);
    }

    fn transmit(&mut self, now: u64) {
        let mut out = Vec::new();
        while let Some(transmit) = self.endpoint.poll_transmit(now, &mut out) {
            out.chunks(transmit.segment_bytes).for_each(|packet| self.send(transmit.to, packet));
            out.clear();
        }
        self.link.flush();
    }

    fn send(&mut self, to: SocketAddr, packet: &[u8]) {
        if to == link_address() {
            self.link.push(packet);
        } else {
            let _ = self.sockets[&Place::Tunnel].send_to(packet, to); // or it is lost
        }
    }
}
