//! A rendezvous as a real daemon, and peers of it that are little more than the library: a tunnel over UDP or TCP, and what they say
//! in it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use gateway::proto::rendezvous::SERVICE;
use gateway::proto::rendezvous::client::{Client, Event, Haste};
use gateway::proto::rendezvous::wire::{Flow, Inbox, Message, Notice};
use gateway::proto::tunnel::{self, Endpoint, Key, ServiceName, Settings, StreamId, TunnelId};
use nix::poll::{PollFd, PollFlags, poll};

use super::tunnel::{Daemon, SECRET};
use super::{PATIENCE, program, wait_until};

/// Starts one on a free pair of ports of loopback, or on those that the flags name.
pub fn rendezvous(engine: &str, flags: &[&str]) -> Daemon {
    let at = if flags.contains(&"--rendezvous") { &[][..] } else { &["--rendezvous", "127.0.0.1:0"] };
    Daemon::start(program(), &[&["run", "--engine", engine], at, flags].concat())
}

/// Where it is found.
pub fn address(of: &Daemon) -> SocketAddr {
    let find = || of.said().lines().find_map(|line| line.strip_prefix("rendezvous on ")?.parse().ok());
    wait_until(|| find().is_some(), || format!("it does not say where it is: {}", of.said()));
    find().expect("it was there")
}

pub fn name(text: &str) -> ServiceName {
    ServiceName::new(text).expect("a name")
}

/// What carries the tunnel.
pub enum Wire {
    Udp(UdpSocket),
    /// With what has arrived of a frame.
    Tcp(TcpStream, Vec<u8>),
}

pub struct Peer {
    pub wire: Wire,
    rendezvous: SocketAddr,
    key: Arc<Key>,
    pub endpoint: Endpoint,
    tunnel: Option<TunnelId>,
    stream: Option<StreamId>,
    inbox: Inbox,
    pub client: Client,
    origin: Instant,
    /// What it has heard so far.
    pub heard: Vec<Event>,
    pub datagrams: Vec<(Flow, Vec<u8>)>,
    /// Tunnels that it had, and those it lost.
    pub established: usize,
    pub lost: usize,
    /// Bytes of UDP payload or of TCP that came.
    pub arrived: usize,
    /// The connection is no more.
    pub wire_has_ended: bool,
    /// Answers to questions for an address.
    pub observed: Vec<([u8; 8], SocketAddr)>,
}

impl Peer {
    pub fn udp(rendezvous: SocketAddr) -> Self {
        Self::with(rendezvous, SECRET, udp_wire())
    }

    pub fn tcp(rendezvous: SocketAddr) -> Self {
        Self::with(rendezvous, SECRET, tcp_wire(rendezvous))
    }

    pub fn with(rendezvous: SocketAddr, secret: &str, wire: Wire) -> Self {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("there is randomness");
        Self {
            wire,
            rendezvous,
            key: Arc::new(Key::from_secret(secret.as_bytes())),
            endpoint: Endpoint::new(Settings::default(), seed),
            tunnel: None,
            stream: None,
            inbox: Inbox::default(),
            client: Client::new(seed),
            origin: Instant::now(),
            heard: Vec::new(),
            datagrams: Vec::new(),
            established: 0,
            lost: 0,
            arrived: 0,
            wire_has_ended: false,
            observed: Vec::new(),
        }
    }

    pub fn now(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }

    /// Sends a datagram through the rendezvous.
    pub fn send(&mut self, flow: Flow, bytes: &[u8]) {
        let tunnel = self.tunnel.expect("it is there");
        self.endpoint.tunnel(tunnel).expect("it is there").send_datagram(flow.0, 0, None, bytes);
    }

    pub fn has_heard(&self, event: Event) -> bool {
        self.heard.contains(&event)
    }

    pub fn tunnel(&mut self) -> &mut tunnel::Tunnel {
        self.endpoint.tunnel(self.tunnel.expect("it is there")).expect("it is there")
    }

    /// Takes what has arrived, does what is due, and sends what is to be sent.
    pub fn step(&mut self) {
        let now = self.now();
        self.client.handle_timeout(now);
        if self.client.poll_attempt(now) {
            self.attempt(now);
        }
        self.receive(now);
        self.note_end_of_wire(now);
        self.endpoint.handle_timeout(now);
        while let Some((tunnel, event)) = self.endpoint.poll_event() {
            if Some(tunnel) == self.tunnel {
                self.hear(now, event);
            }
        }
        self.say();
        self.transmit(now);
    }

    fn attempt(&mut self, now: u64) {
        if self.wire_has_ended {
            let Ok(stream) = TcpStream::connect(self.rendezvous) else {
                return self.client.note_lost(now, Haste::Calm);
            };
            stream.set_nonblocking(true).expect("it can be set");
            (self.wire, self.wire_has_ended) = (Wire::Tcp(stream, Vec::new()), false);
        }
        let service = ServiceName::new(SERVICE).expect("a name");
        self.tunnel = self.endpoint.connect(now, self.rendezvous, self.key.clone(), service);
    }

    /// It tells that the rendezvous is no more.
    fn note_end_of_wire(&mut self, now: u64) {
        if self.wire_has_ended
            && let Some(tunnel) = self.tunnel.take()
        {
            self.endpoint.forget(tunnel);
            self.stream = None;
            self.lost += 1;
            self.client.note_lost(now, Haste::Calm);
        }
    }

    /// Takes a datagram that came some other way.
    pub fn take(&mut self, from: SocketAddr, datagram: &mut [u8]) {
        let now = self.now();
        self.endpoint.handle_datagram(now, from, datagram);
        self.step();
    }

    fn receive(&mut self, now: u64) {
        let mut buffer = [0; 2_048];
        loop {
            match &mut self.wire {
                Wire::Udp(socket) => match socket.recv_from(&mut buffer) {
                    Ok((n, from)) => {
                        self.arrived += n;
                        self.endpoint.handle_datagram(now, from, &mut buffer[..n]);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                    Err(_refused) => {}
                },
                Wire::Tcp(stream, part) => match stream.read(&mut buffer) {
                    Ok(0) => return self.wire_has_ended = true,
                    Ok(n) => {
                        self.arrived += n;
                        part.extend_from_slice(&buffer[..n]);
                        while part.len() >= 2 {
                            let length = usize::from(u16::from_be_bytes([part[0], part[1]]));
                            if part.len() < 2 + length {
                                break;
                            }
                            self.endpoint.handle_datagram(now, self.rendezvous, &mut part[2..2 + length]);
                            part.drain(..2 + length);
                        }
                    }
                    Err(error) => return self.wire_has_ended = error.kind() != ErrorKind::WouldBlock,
                },
            }
        }
    }

    fn hear(&mut self, now: u64, event: tunnel::Event) {
        match event {
            tunnel::Event::Established => {
                self.established += 1;
                self.stream = self.tunnel().open(0, None);
                self.inbox = Inbox::default();
                self.client.note_established();
            }
            tunnel::Event::Lost(_) => {
                self.lost += 1;
                (self.tunnel, self.stream) = (None, None);
                self.client.note_lost(now, Haste::Calm);
            }
            tunnel::Event::Readable(stream) => {
                loop {
                    let tunnel = self.endpoint.tunnel(self.tunnel.expect("it is there")).expect("it is there");
                    let piece = tunnel.peek(stream).to_vec();
                    if piece.is_empty() {
                        break;
                    }
                    tunnel.consume(stream, piece.len());
                    self.inbox.push(&piece);
                }
                while let Some(notice) = self.inbox.pop::<Notice>().expect("the rendezvous speaks well") {
                    self.client.hear(now, notice);
                }
                self.heard.extend(std::iter::from_fn(|| self.client.poll_event()));
            }
            tunnel::Event::Datagrams => loop {
                let mut bytes = Vec::new();
                let Some(info) = self.tunnel().read_datagram(&mut bytes) else { break };
                self.datagrams.push((Flow(info.session), bytes));
            },
            tunnel::Event::Observed { token, address } => self.observed.push((token, address)),
            _ => {}
        }
    }

    fn say(&mut self) {
        let (Some(tunnel), Some(stream)) = (self.tunnel, self.stream) else { return };
        let Some(tunnel) = self.endpoint.tunnel(tunnel) else { return };
        let mut bytes = Vec::new();
        while let Some(request) = self.client.poll_request() {
            request.emit(&mut bytes);
        }
        assert_eq!(tunnel.write(stream, &bytes), bytes.len(), "a test says little");
    }

    fn transmit(&mut self, now: u64) {
        let mut out = Vec::new();
        while let Some(transmit) = self.endpoint.poll_transmit(now, &mut out) {
            for packet in out.chunks(transmit.segment_bytes) {
                match &mut self.wire {
                    Wire::Udp(socket) => _ = socket.send_to(packet, transmit.to), // or it is lost
                    Wire::Tcp(stream, _) => {
                        let frame = [&(packet.len() as u16).to_be_bytes()[..], packet].concat();
                        let _ = stream.write_all(&frame); // or the connection is gone
                    }
                }
            }
            out.clear();
        }
    }

    fn timeout_ms(&self) -> u16 {
        let next = [self.endpoint.next_timeout(), self.client.next_timeout()].into_iter().flatten().min();
        let wait = next.map_or(1_000_000, |at| at.saturating_sub(self.now()));
        wait.div_ceil(1_000).min(1_000) as u16
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.wire {
            Wire::Udp(socket) => socket.as_fd(),
            Wire::Tcp(stream, _) => stream.as_fd(),
        }
    }
}

pub fn udp_wire() -> Wire {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.set_nonblocking(true).expect("it can be set");
    Wire::Udp(socket)
}

pub fn tcp_wire(rendezvous: SocketAddr) -> Wire {
    let stream = super::connect(rendezvous);
    stream.set_nonblocking(true).expect("it can be set");
    Wire::Tcp(stream, Vec::new())
}

/// Lets the peers live until something is so.
pub fn run_until<const N: usize>(peers: &mut [Peer; N], mut is_so: impl FnMut(&mut [Peer; N]) -> bool) {
    let started = Instant::now();
    peers.iter_mut().for_each(Peer::step);
    while !is_so(peers) {
        assert!(started.elapsed() < PATIENCE, "it does not come; heard: {:?}", peers.each_ref().map(|of| &of.heard));
        turn(peers);
    }
}

/// The same for many.
pub fn run_crowd_until(peers: &mut [Peer], mut is_so: impl FnMut(&[Peer]) -> bool) {
    let started = Instant::now();
    peers.iter_mut().for_each(Peer::step);
    while !is_so(peers) {
        assert!(
            started.elapsed() < PATIENCE,
            "it does not come; tunnels had and lost, and whether the wire has ended: {:?}",
            peers.iter().map(|peer| (peer.established, peer.lost, peer.wire_has_ended)).collect::<Vec<_>>()
        );
        turn(peers);
    }
}

/// Waits, and wakes those for whom something has come or whose time has.
fn turn(peers: &mut [Peer]) {
    let timeout = peers.iter().map(Peer::timeout_ms).min().unwrap_or(1_000);
    let interest = |peer: &Peer| if peer.wire_has_ended { PollFlags::empty() } else { PollFlags::POLLIN };
    let mut fds: Vec<_> = peers.iter().map(|peer| PollFd::new(peer.fd(), interest(peer))).collect();
    poll(&mut fds, timeout).expect("they can be polled");
    let came: Vec<_> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
    for (peer, came) in peers.iter_mut().zip(came) {
        if (came && !peer.wire_has_ended) || peer.timeout_ms() == 0 {
            peer.step();
        }
    }
}

/// Lets the peers live for a while.
pub fn run_for<const N: usize>(peers: &mut [Peer; N], span: std::time::Duration) {
    let started = Instant::now();
    run_until(peers, |_| started.elapsed() >= span);
}
