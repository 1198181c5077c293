//! The sockets of a survey, the tunnels over them, and what goes on in them while each of its steps waits for something.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::filtering::Inquiry;
use super::link::Link;
use super::survey::{Delays, Unmet};
use crate::proto::punch::Gather;
use crate::proto::rendezvous::SERVICE;
use crate::proto::rendezvous::wire::{Inbox, Notice, Transport};
use crate::proto::tunnel::random::Random;
use crate::proto::tunnel::{Endpoint, Event, Key, ServiceName, Settings, StreamId, TunnelId, Way};
use crate::sys::clock;

/// Probes in each tunnel, and the time between two, in µs.
pub(super) const PROBES: u32 = 10;
pub(super) const PROBE_PAUSE_US: u64 = 100_000;

/// From each socket, before all else has its turn.
const READS: u32 = 64;

/// More than any datagram of a tunnel.
const DATAGRAM_BYTES: usize = 65_536;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// The tunnel's own.
    Tunnel,
    Main4,
    Main6,
    /// Main4's neighbour, for what two hosts behind one router would see.
    Neighbour,
    /// Sends to one port of the rendezvous and to nobody else.
    Filtered,
}

pub(super) struct Surveyor {
    origin: Instant,
    pub at: SocketAddr,
    pub random: Random,
    pub endpoint: Endpoint,
    epoll: Epoll,
    pub sockets: BTreeMap<Place, UdpSocket>,
    pub link: Link,
    /// In the order UDP, TCP.
    pub tunnels: [TunnelId; 2],
    pub up_since: [Option<u64>; 2],
    pub delays: [Delays; 2],
    pub probe_at: Option<u64>,
    pub gathers: Vec<(Place, Gather)>,
    /// Where it is to be found out, and the port that is asked.
    pub filtering: Option<(SocketAddr, Inquiry)>,
    stream: Option<StreamId>,
    inbox: Inbox,
    pub seen_by_tcp: Option<SocketAddr>,
    pub hairpin: [u8; 16],
    pub came_back: bool,
}

pub(super) const UDP: usize = 0;
pub(super) const TCP: usize = 1;

fn link_address() -> SocketAddr {
    Way::Link(0).into()
}

fn seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)?;
    Ok(seed)
}

impl Surveyor {
    pub fn new(at: SocketAddr, key: &Arc<Key>) -> Result<Self, Unmet> {
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
            filtering: None,
            stream: None,
            inbox: Inbox::default(),
            seen_by_tcp: None,
            came_back: false,
        };
        surveyor.open(Place::Tunnel, at.is_ipv4(), 0)?;
        Ok(surveyor)
    }

    pub fn open(&mut self, place: Place, is_v4: bool, port: u16) -> io::Result<SocketAddr> {
        let any: IpAddr = if is_v4 { [0; 4].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, port))?;
        socket.set_nonblocking(true)?;
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let address = socket.local_addr()?;
        self.sockets.insert(place, socket);
        Ok(address)
    }

    pub fn now(&self) -> u64 {
        u64::try_from((clock::now() - self.origin).as_micros()).unwrap_or(u64::MAX)
    }

    /// Until that is so, but no longer than `patience`, in µs.
    pub fn run(&mut self, patience: u64, mut is_so: impl FnMut(&Self) -> bool) -> io::Result<()> {
        let ends = self.now() + patience;
        loop {
            self.step();
            let now = self.now();
            if is_so(self) || now >= ends {
                return Ok(());
            }
            let questions = self.gathers.iter().filter(|(_, gather)| !gather.is_over(now));
            let next = questions.map(|(_, gather)| gather.next_timeout()).min();
            let filtering = self.filtering.as_ref().filter(|(_, inquiry)| !inquiry.is_over(now));
            let filtering = filtering.map(|(_, inquiry)| inquiry.next_timeout());
            let next = [next, filtering, self.probe_at, self.endpoint.next_timeout()]
                .into_iter()
                .flatten()
                .fold(ends, u64::min);
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
        self.ask_elsewhere(now);
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
                self.filtering.iter_mut().for_each(|(_, inquiry)| inquiry.on_observed(token));
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

    fn ask_elsewhere(&mut self, now: u64) {
        let Some((to, inquiry)) = &mut self.filtering else { return };
        let Some(question) = inquiry.poll(now, &mut self.random) else { return };
        let mut out = Vec::new();
        if let Some(tunnel) = self.endpoint.tunnel(self.tunnels[UDP]) {
            tunnel.observe_elsewhere(now, question.elsewhere, question.here, &mut out);
            let _ = self.sockets[&Place::Filtered].send_to(&out, *to); // or it is asked again
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

    pub fn transmit(&mut self, now: u64) {
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
