//! Tunnel packets over TCP: where UDP is blocked, and beside it, since the end of a connection tells at once that its peer is
//! gone. A link carries what a socket for datagrams would, each as `length u16 | packet`, and like one it loses: what finds no
//! room is dropped, whole. So nothing behind it needs to know the difference.
//!
//! A packet is framed in a buffer that all links share, and leaves from there; a link keeps memory of its own only for what its
//! socket had no room for, and for a frame of which a part has arrived.
//!
//! At a rendezvous a connection may be something else: one for a player, which its first bytes tell. It is handed out.
//!
//! Deliberately absent: who is at the other end. Whoever takes the packets decides which links are worth keeping.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::strangers::Strangers;
use crate::engine::{Engine, Readiness, Token};
use crate::limits;
use crate::proto::rendezvous::data::{DataId, HELLO_BYTES, HELLO_HEAD};
use crate::proto::tunnel::LINK_BITS;
use crate::sys::socket;

/// Longest packet of a frame, in bytes: no tunnel makes longer ones.
const PACKET_BYTES_MAX: usize = 2048;

/// A frame begins with its length, network order.
const HEAD_BYTES: usize = 2;

/// What arrives in one read at most, bytes, behind a part of a frame from the read before.
const READ_BYTES: usize = 1 << 16;

/// Reads from one link before the others have their turn.
const READS_PER_TURN: usize = 4;

/// Bytes that wait for room in the socket, which has a buffer of its own: a batch always finds a place behind an empty one.
const KEPT_BYTES_MAX: usize = 128 << 10;

/// Links have numbers that fit into the generation of a token: below [`LINK_BITS`] they are counted, above stands what their host is
/// known by. There are far fewer links than can be counted.
const HOST_MASK: u32 = (1 << (24 - LINK_BITS)) - 1;
const COUNT_MASK: u32 = (1 << LINK_BITS) - 1;
const _: () = assert!(limits::RENDEZVOUS_PEERS_MAX < 1 << LINK_BITS && limits::LINKS_MAX < 1 << LINK_BITS);

#[derive(Debug)]
pub(super) struct Links {
    of: HashMap<u32, Link>,
    last_count: u32,
    /// Tells hosts apart, in a way that nobody can know.
    hosts: RandomState,
    /// Those from which something may have arrived.
    readable: VecDeque<u32>,
    arrived: Box<[u8]>,
    leaving: Vec<u8>,
    /// Accepted ones that have proved nothing yet.
    strangers: Strangers,
    news: VecDeque<News>,
    /// Those that are connections for players, to be taken.
    data: VecDeque<(u32, DataId)>,
    links_max: usize,
    /// Connections may be for players.
    pub(super) takes_data: bool,
}

#[derive(Debug)]
struct Link {
    socket: OwnedFd,
    token: Token,
    state: State,
    /// A peer is at the other end, as far as is known.
    is_proven: bool,
    /// It was.
    is_heard: bool,
    is_readable: bool,
    /// The beginning of a frame.
    part: Vec<u8>,
    /// Frames that are to leave, from a byte on.
    kept: Vec<u8>,
    left: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Open,
    /// To be let go.
    Over,
}

/// Who has sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Peer,
    /// It may be the first of a peer.
    Perhaps,
    /// The link ends, unless it was a peer's before.
    Stranger,
}

/// What has happened to a link.
#[derive(Debug)]
pub(super) enum News {
    /// It is connected.
    Up(u32),
    /// It is no more. `None`: the peer has ended it.
    Down(u32, Option<io::Error>),
}

impl Links {
    /// At `links_max` no further ones begin.
    pub(super) fn new(links_max: usize) -> Self {
        Self {
            of: HashMap::new(),
            last_count: 0,
            hosts: RandomState::new(),
            readable: VecDeque::new(),
            arrived: vec![0; PACKET_BYTES_MAX + HEAD_BYTES + READ_BYTES].into(),
            leaving: Vec::new(),
            strangers: Strangers::new(limits::STRANGERS_MAX.min(links_max / 2)),
            news: VecDeque::new(),
            data: VecDeque::new(),
            links_max,
            takes_data: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.of.len()
    }

    /// Those that have proved nothing yet.
    pub(super) fn strangers(&self) -> usize {
        self.strangers.numbers().filter(|number| self.is_stranger(*number)).count()
    }

    pub(super) fn has_strangers(&self) -> bool {
        self.strangers.numbers().any(|number| self.is_stranger(number))
    }

    fn is_stranger(&self, number: u32) -> bool {
        self.of.get(&number).is_some_and(|link| !link.is_proven)
    }

    /// Begins a link. Packets may be sent at once: they wait until it is connected. With `from` it has a port that others may
    /// have, too; port 0 is a new one.
    pub(super) fn connect(&mut self, to: SocketAddr, from: Option<SocketAddr>, engine: &mut Engine) -> io::Result<u32> {
        let socket = match from {
            Some(from) => socket::connect_from(from, to),
            None => socket::connect(to),
        }?;
        self.add(socket, to, State::Connecting, engine)
    }

    /// Takes a connection of somebody who has a while to prove that he is a peer. Where all places are taken, somebody who has proved
    /// nothing makes room.
    pub(super) fn accept(&mut self, socket: OwnedFd, now: Instant, engine: &mut Engine) -> io::Result<u32> {
        while self.of.len() >= self.links_max && self.drop_stranger(engine) {}
        let from = socket::peer_address(socket.as_fd())?;
        let number = self.add(socket, from, State::Open, engine)?;
        let connection = self.of[&number].socket.as_fd();
        if let Some(number) = self.strangers.add(number, connection, now) {
            self.fail_unproven(number);
        }
        Ok(number)
    }

    fn add(&mut self, socket: OwnedFd, peer: SocketAddr, state: State, engine: &mut Engine) -> io::Result<u32> {
        if self.of.len() >= self.links_max {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        socket::prepare(socket.as_fd())?;
        socket::keep_alive(socket.as_fd(), crate::tcp::LIVENESS)?;
        let number = self.new_number(peer.ip());
        let token = Token::new(super::LINKS, number, 0);
        engine.watch(socket.as_fd(), token)?;
        let is_proven = state == State::Connecting; // whom we ask need not prove anything to be heard
        let (part, kept) = (Vec::new(), Vec::new());
        let link = Link { socket, token, state, is_proven, is_heard: false, is_readable: false, part, kept, left: 0 };
        self.of.insert(number, link);
        self.note_readable(number);
        Ok(number)
    }

    fn new_number(&mut self, host: IpAddr) -> u32 {
        let host = match host.to_canonical() {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64, // who has one address has all of them
        };
        let host = self.hosts.hash_one(host) as u32 & HOST_MASK;
        loop {
            self.last_count = (self.last_count + 1) & COUNT_MASK;
            let number = host << LINK_BITS | self.last_count;
            if !self.of.contains_key(&number) {
                return number;
            }
        }
    }

    /// The socket's own address, from which others may connect too.
    pub(super) fn local_address(&self, number: u32) -> Option<SocketAddr> {
        socket::local_address(self.of.get(&number)?.socket.as_fd()).ok()
    }

    /// A peer has been heard over it.
    pub(super) fn is_heard(&self, number: u32) -> bool {
        self.of.get(&number).is_some_and(|link| link.is_heard)
    }

    pub(super) fn remote_address(&self, number: u32) -> Option<SocketAddr> {
        socket::peer_address(self.of.get(&number)?.socket.as_fd()).ok()
    }

    pub(super) fn note(&mut self, token: Token, news: Readiness) {
        if news.readable {
            self.note_readable(token.generation);
        }
        if news.writable || news.failed {
            self.note_writable(token.generation);
        }
    }

    pub(super) fn watch_again(&mut self, token: Token, engine: &mut Engine) {
        let Some(link) = self.of.get(&token.generation) else { return };
        if let Err(error) = engine.watch(link.socket.as_fd(), token) {
            self.fail(token.generation, Some(error));
        }
        self.note_readable(token.generation);
        self.note_writable(token.generation);
    }

    fn note_readable(&mut self, number: u32) {
        let Some(link) = self.of.get_mut(&number) else { return };
        if !std::mem::replace(&mut link.is_readable, true) {
            self.readable.push_back(number);
        }
    }

    fn note_writable(&mut self, number: u32) {
        let Some(link) = self.of.get_mut(&number) else { return };
        if link.state == State::Connecting {
            match socket::take_error(link.socket.as_fd()) {
                Ok(None) if socket::peer_address(link.socket.as_fd()).is_ok() => {
                    link.state = State::Open;
                    self.news.push_back(News::Up(number));
                }
                Ok(None) => return, // an event from before it was on its way
                Ok(Some(error)) | Err(error) => return self.fail(number, Some(error)),
            }
        }
        self.flush(number);
    }

    /// Something may have arrived that was not taken yet, or has happened and was not told.
    pub(super) fn are_busy(&self) -> bool {
        !self.readable.is_empty() || !self.news.is_empty()
    }

    /// Hands out the packets that have arrived; `take` tells whose they are.
    pub(super) fn receive(&mut self, mut take: impl FnMut(u32, &mut [u8]) -> Sender) {
        for _ in 0..self.readable.len() {
            let Some(number) = self.readable.pop_front() else { return };
            match self.receive_from(number, &mut take) {
                Ok(()) => self.readable.push_back(number),
                Err(why) => {
                    if let Some(link) = self.of.get_mut(&number) {
                        link.is_readable = false;
                    }
                    match why.as_ref().map(io::Error::kind) {
                        Some(io::ErrorKind::WouldBlock) => {}
                        _ => self.fail(number, why),
                    }
                }
            }
        }
    }

    /// `Ok` when there may be more, an error when there is none now, `Err(None)` when there will be none ever.
    fn receive_from(
        &mut self,
        number: u32,
        take: &mut impl FnMut(u32, &mut [u8]) -> Sender,
    ) -> Result<(), Option<io::Error>> {
        let open = self.of.get_mut(&number).filter(|link| link.state == State::Open);
        let link = open.ok_or_else(|| io::Error::from(io::ErrorKind::WouldBlock))?;
        for _ in 0..READS_PER_TURN {
            let before = link.part.len();
            self.arrived[..before].copy_from_slice(&link.part);
            let arrived = match socket::receive(link.socket.as_fd(), &mut self.arrived[before..][..READ_BYTES])? {
                0 => return Err(None),
                arrived => arrived,
            };
            let (mut at, end) = (0, before + arrived);
            if self.takes_data && !link.is_proven && self.arrived[..end].starts_with(&HELLO_HEAD) {
                match DataId::of_hello(&self.arrived[..end]) {
                    Some(id) => {
                        link.is_proven = true; // to whoever knows the id
                        self.data.push_back((number, id));
                        return Err(Some(io::ErrorKind::WouldBlock.into())); // what follows is for whoever takes it
                    }
                    None if end < HELLO_BYTES => {
                        link.part.clear();
                        link.part.extend_from_slice(&self.arrived[..end]);
                        continue;
                    }
                    None => return Err(None),
                }
            }
            while let Some(length) = whole_packet(&self.arrived[at..end])? {
                let packet = at + HEAD_BYTES..at + HEAD_BYTES + length;
                at = packet.end;
                match take(number, &mut self.arrived[packet]) {
                    Sender::Peer => (link.is_proven, link.is_heard) = (true, true),
                    Sender::Perhaps => {}
                    Sender::Stranger if link.is_proven => {}
                    Sender::Stranger => return Err(None),
                }
            }
            link.part.clear();
            link.part.extend_from_slice(&self.arrived[at..end]);
        }
        Ok(())
    }

    /// Sends packets of one size (the last may be shorter). Those for which there is no room are lost.
    pub(super) fn send(&mut self, number: u32, packets: &[u8], packet_bytes: usize) {
        let Some(link) = self.of.get_mut(&number).filter(|link| link.state != State::Over) else { return };
        if link.state == State::Connecting || link.left < link.kept.len() {
            return link.keep(packets, packet_bytes);
        }
        self.leaving.clear();
        for packet in packets.chunks(packet_bytes.max(1)) {
            push_frame(packet, &mut self.leaving);
        }
        match socket::send(link.socket.as_fd(), &self.leaving) {
            Ok(sent) => {
                link.kept.clear();
                link.left = 0;
                link.kept.extend_from_slice(&self.leaving[sent..]);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => link.keep(packets, packet_bytes),
            Err(error) => self.fail(number, Some(error)),
        }
    }

    /// Sends what was kept, as far as there is room.
    fn flush(&mut self, number: u32) {
        let Some(link) = self.of.get_mut(&number).filter(|link| link.state == State::Open) else { return };
        while link.left < link.kept.len() {
            match socket::send(link.socket.as_fd(), &link.kept[link.left..]) {
                Ok(sent) => link.left += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.fail(number, Some(error)),
            }
        }
        (link.kept, link.left) = (Vec::new(), 0); // most links never need it again
    }

    /// Ends a link; nobody is told.
    pub(super) fn close(&mut self, number: u32, engine: &mut Engine) {
        if let Some(link) = self.of.remove(&number) {
            engine.forget(link.socket, link.token);
        }
    }

    /// The next connection for a player.
    pub(super) fn poll_data(&mut self, engine: &mut Engine) -> Option<(DataId, OwnedFd)> {
        loop {
            let (number, id) = self.data.pop_front()?;
            if let Some(link) = self.of.remove(&number) {
                engine.release(link.socket.as_fd(), link.token);
                return Some((id, link.socket));
            }
        }
    }

    pub(super) fn close_all(&mut self, engine: &mut Engine) {
        for (_, link) in self.of.drain() {
            engine.forget(link.socket, link.token);
        }
    }

    /// When somebody has had the time to prove that he is a peer.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.strangers.deadline()
    }

    /// Ends those who have proved nothing in time.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(number) = self.strangers.pop_expired(now) {
            self.fail_unproven(number);
        }
    }

    /// Lets the stranger go at once that has waited longest. Whether there was one.
    pub(super) fn drop_stranger(&mut self, engine: &mut Engine) -> bool {
        while let Some(number) = self.strangers.pop() {
            if self.is_stranger(number) {
                self.fail_unproven(number);
                self.close(number, engine);
                return true;
            }
        }
        false
    }

    fn fail_unproven(&mut self, number: u32) {
        if self.is_stranger(number) {
            self.fail(number, Some(io::ErrorKind::TimedOut.into()));
        }
    }

    fn fail(&mut self, number: u32, why: Option<io::Error>) {
        let Some(link) = self.of.get_mut(&number).filter(|link| link.state != State::Over) else { return };
        link.state = State::Over;
        self.news.push_back(News::Down(number, why));
    }

    /// The next that has happened. Links that are down are let go by this.
    pub(super) fn poll_news(&mut self, engine: &mut Engine) -> Option<News> {
        let news = self.news.pop_front()?;
        if let News::Down(number, _) = news {
            self.close(number, engine);
        }
        Some(news)
    }
}

impl Link {
    /// Keeps packets until there is room, as far as they may wait.
    fn keep(&mut self, packets: &[u8], packet_bytes: usize) {
        if self.left > KEPT_BYTES_MAX / 2 {
            self.kept.drain(..self.left);
            self.left = 0;
        }
        for packet in packets.chunks(packet_bytes.max(1)) {
            if self.kept.len() + HEAD_BYTES + packet.len() <= KEPT_BYTES_MAX {
                push_frame(packet, &mut self.kept);
            }
        }
    }
}

/// Length of the packet whose frame comes first. `None`: it has not arrived as a whole.
fn whole_packet(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some((head, behind)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*head));
    if length == 0 || length > PACKET_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((length <= behind.len()).then_some(length))
}

/// A packet that no frame can hold is lost.
fn push_frame(packet: &[u8], frames: &mut Vec<u8>) {
    if let Some(length) = u16::try_from(packet.len()).ok().filter(|_| packet.len() <= PACKET_BYTES_MAX) {
        frames.extend_from_slice(&length.to_be_bytes());
        frames.extend_from_slice(packet);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::{Choice, Event, probe};
    use crate::sys::clock;

    #[test]
    fn packets_cross_a_link_with_their_borders_both_ways() {
        for choice in [Choice::Auto, Choice::Epoll] {
            let mut pair = Pair::new(choice);
            pair.links.send(pair.ours, &[1; 2_500], 1_200); // before it is connected
            assert_eq!(pair.run_until(|got| got.len() == 3), [[1; 1_200].to_vec(), vec![1; 1_200], vec![1; 100]]);
            pair.links.send(pair.theirs, b"back", 4);
            assert_eq!(pair.run_until(|got| got.len() == 1), [b"back".to_vec()]);
        }
    }

    #[test]
    fn a_full_link_loses_whole_packets_and_the_others_arrive_as_they_were() {
        let mut pair = Pair::new(Choice::Auto);
        pair.run_until_up();
        let packet = |number: u32| (0..1_200u32).map(|at| (number + at) as u8).collect::<Vec<_>>();
        let sent: u32 = 40_000;
        (0..sent).for_each(|number| pair.links.send(pair.ours, &packet(number), 1_200));
        pair.links.send(pair.ours, b"last", 4);
        let mut arrived = 0;
        let mut numbers = 0..sent;
        let mut is_next = |got: &[u8]| numbers.any(|number| packet(number) == got);
        pair.run(|got| {
            arrived += got.len() as u32;
            assert!(got.iter().all(|got| got == b"last" || is_next(got)), "a packet that nobody has sent");
            got.clear();
        });
        assert!(arrived > 100 && arrived < sent, "{arrived} of {sent}");
    }

    #[test]
    fn a_link_ends_with_its_peer_and_by_what_no_peer_sends() {
        for (bytes, is_fault) in [(&b""[..], false), (b"\0\0", true), (b"\xff\xffx", true), (b"\0\x01?", false)] {
            let mut pair = Pair::new(Choice::Auto);
            pair.run_until_up();
            let theirs = pair.links.of[&pair.theirs].socket.as_fd();
            socket::send(theirs, bytes).expect("it is sent");
            socket::end(theirs).expect("it is connected");
            let why = pair.run_until_down(pair.ours);
            assert_eq!(why.is_some(), is_fault, "{bytes:?}: {why:?}");
        }
    }

    #[test]
    fn a_stranger_is_let_go_at_once_and_one_who_says_nothing_after_a_while() {
        let mut pair = Pair::new(Choice::Auto);
        pair.links.send(pair.ours, b"stranger", 8);
        assert!(pair.run_until_down(pair.theirs).is_none());
        let mut pair = Pair::new(Choice::Auto);
        assert!(pair.links.deadline().is_some());
        pair.links.expire(clock::now() + limits::HANDSHAKE_TIMEOUT);
        assert!(pair.run_until_down(pair.theirs).is_some());
    }

    #[test]
    fn links_with_one_host_have_numbers_that_say_so_and_others_seldom_do() {
        let mut links = Links::new(1);
        let mut host = |ip: &str| links.new_number(ip.parse().expect("an address")) >> LINK_BITS;
        assert_eq!(host("192.0.2.1"), host("192.0.2.1"));
        assert_eq!(host("192.0.2.1"), host("::ffff:192.0.2.1"));
        assert_eq!(host("2001:db8::1"), host("2001:db8::2"));
        let one = host("192.0.2.1");
        let alike = (2..255).filter(|other| host(&format!("192.0.2.{other}")) == one).count();
        assert!(alike < 20, "{alike} of 253");
        assert_ne!(links.new_number([1; 4].into()), links.new_number([1; 4].into()));
    }

    #[test]
    fn strangers_take_half_of_the_places_and_peers_all_of_them() {
        let mut pair = Pair::new(Choice::Auto);
        let (door, to) = door();
        let accept = |pair: &mut Pair| {
            let client = std::net::TcpStream::connect(to).expect("it listens");
            let accepted = socket::accept(door.as_fd()).expect("somebody is there");
            (client, pair.links.accept(accepted, clock::now(), &mut pair.engine))
        };
        let prove =
            |pair: &mut Pair, number: &u32| pair.links.of.get_mut(number).expect("it is there").is_proven = true;
        let mut clients = Vec::new();
        for _ in 0..20 {
            let (client, number) = accept(&mut pair);
            clients.push((client, number.expect("others make room")));
            while pair.links.poll_news(&mut pair.engine).is_some() {}
            assert!(pair.links.strangers() <= PLACES / 2 && pair.links.len() <= PLACES);
        }
        let last = clients.last().expect("there are some").1;
        assert!(pair.links.of.contains_key(&last));
        // All places are taken, half of them by those who say nothing: a peer is let in, until all are peers.
        for peers in pair.links.len() - pair.links.strangers()..PLACES {
            let (client, number) = accept(&mut pair);
            clients.push((client, number.unwrap_or_else(|error| panic!("after {peers} peers: {error}"))));
            prove(&mut pair, &clients.last().expect("it is there").1);
            while pair.links.poll_news(&mut pair.engine).is_some() {}
        }
        assert_eq!((pair.links.len(), pair.links.strangers()), (PLACES, 0));
        assert!(accept(&mut pair).1.is_err(), "there is no room");
    }

    #[test]
    fn nobody_is_there_is_told() {
        let closed = socket::listen(([127, 0, 0, 1], 0).into(), false, 1).expect("a free port");
        let to = socket::local_address(closed.as_fd()).expect("it is bound");
        drop(closed);
        let mut pair = Pair::new(Choice::Auto);
        let number = pair.links.connect(to, None, &mut pair.engine).expect("it is on its way");
        assert!(pair.run_until_down(number).is_some());
    }

    #[test]
    fn links_from_one_port_lead_to_several_hosts() {
        let mut pair = Pair::new(Choice::Auto);
        let from = pair.links.local_address(pair.ours).expect("it is bound");
        let other = socket::listen(([127, 0, 0, 1], 0).into(), false, 1).expect("a free port");
        let to = socket::local_address(other.as_fd()).expect("it is bound");
        let number = pair.links.connect(to, Some(from), &mut pair.engine).expect("the port is shared");
        assert_eq!(pair.links.local_address(number), Some(from));
    }

    const PLACES: usize = 8;

    fn door() -> (OwnedFd, SocketAddr) {
        let door = socket::listen(([127, 0, 0, 1], 0).into(), false, 64).expect("a free port");
        let to = socket::local_address(door.as_fd()).expect("it is bound");
        (door, to)
    }

    /// Both ends of a link in one table.
    struct Pair {
        engine: Engine,
        links: Links,
        ours: u32,
        theirs: u32,
        news: Vec<News>,
    }

    impl Pair {
        fn new(choice: Choice) -> Self {
            let (kind, _) = probe(choice).expect("an engine");
            let runtime = socket::listen(([127, 0, 0, 1], 0).into(), false, 1).expect("a descriptor");
            let mut engine = Engine::new(kind, 8, runtime).expect("an engine");
            let door = socket::listen(([127, 0, 0, 1], 0).into(), false, 1).expect("a free port");
            let to = socket::local_address(door.as_fd()).expect("it is bound");
            let mut links = Links::new(PLACES);
            let ours = links.connect(to, Some(([127, 0, 0, 1], 0).into()), &mut engine).expect("it is on its way");
            let mut poll = [nix::poll::PollFd::new(door.as_fd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut poll, 60_000u16).expect("it can be polled");
            let accepted = socket::accept(door.as_fd()).expect("somebody is there");
            let theirs = links.accept(accepted, clock::now(), &mut engine).expect("it is watched");
            Self { engine, links, ours, theirs, news: Vec::new() }
        }

        /// Until nothing has happened for a while.
        fn run(&mut self, mut each: impl FnMut(&mut Vec<Vec<u8>>)) {
            let mut got = Vec::new();
            while self.turn(Duration::from_millis(500), &mut got) {
                each(&mut got);
            }
        }

        fn run_until(&mut self, is_enough: impl Fn(&[Vec<u8>]) -> bool) -> Vec<Vec<u8>> {
            let mut got = Vec::new();
            while !is_enough(&got) {
                assert!(self.turn(Duration::from_secs(60), &mut got), "nothing happens");
            }
            got
        }

        fn run_until_up(&mut self) {
            while !self.news.iter().any(|news| matches!(news, News::Up(_))) {
                assert!(self.turn(Duration::from_secs(60), &mut Vec::new()), "nothing happens");
            }
        }

        fn run_until_down(&mut self, number: u32) -> Option<io::Error> {
            loop {
                for news in self.news.drain(..) {
                    if let News::Down(down, why) = news
                        && down == number
                    {
                        assert!(!self.links.of.contains_key(&number), "it is let go");
                        return why;
                    }
                }
                assert!(self.turn(Duration::from_secs(60), &mut Vec::new()), "nothing happens");
            }
        }

        /// False when nothing has happened.
        fn turn(&mut self, patience: Duration, got: &mut Vec<Vec<u8>>) -> bool {
            let mut events = Vec::new();
            let patience = if self.links.are_busy() || !self.links.news.is_empty() { Duration::ZERO } else { patience };
            self.engine.wait(patience, &mut events).expect("it runs");
            let (before, busy) = (got.len(), self.links.are_busy());
            for event in events.drain(..) {
                if let Event::Ready(token, news) = event {
                    self.links.note(token, news);
                }
            }
            self.links.receive(|_, packet| {
                got.push(packet.to_vec());
                if packet == b"stranger" { Sender::Stranger } else { Sender::Perhaps }
            });
            let news = std::iter::from_fn(|| self.links.poll_news(&mut self.engine));
            let count = self.news.len();
            self.news.extend(news);
            busy || got.len() > before || self.news.len() > count || self.links.are_busy()
        }
    }
}
