//! The profile of kcptun without kcptun: two of our endpoints on a virtual clock, over links that lose, double and reorder; and
//! peers that lie. A failure names its seed. Held against the real one in `kcptun.rs`.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use common::Random;
use gateway::proto::kcp::Mode;
use gateway::proto::kcptun::{
    Cipher, Endpoint, Event, Key, LostReason, Session, SessionId, Settings, Shape, StreamId, Version,
};
use proptest::prelude::*;

const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;

#[test]
fn bytes_arrive_both_ways_over_a_bad_path_whatever_the_settings() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let (client, server) = any_settings(&mut random);
        let path = Path::any(&mut random);
        println!("{seed} {client:?} {server:?} {path:?}");
        let mut pair = Pair::new(client, server, path, seed);
        let length = 1 + random.below(60_000) as usize;
        let streams = 1 + random.below(5) as usize;
        pair.carry(streams, length, seed);
        pair.run_until(|pair| pair.streams() == (0, 0));
    }
}

#[test]
fn a_server_sends_parity_as_its_client_does_and_none_if_that_sends_none() {
    for fec in [Some(Shape { data: 4, parity: 2 }), None] {
        let client = Settings { fec, ..Settings::client() };
        let mut pair = Pair::new(client, Settings::server(), Path { lost: 5, ..Path::GOOD }, 1);
        pair.carry(2, 200_000, 1);
        let packets = pair.client().status().packets;
        assert_eq!((packets.parity > 0, packets.recovered > 0), (fec.is_some(), fec.is_some()), "{fec:?} {packets:?}");
    }
}

#[test]
fn a_thousand_streams_leave_nothing_behind() {
    for version in [Version::V1, Version::V2] {
        let mut pair = Pair::with(|settings| settings.version = version, Path { lost: 2, ..Path::GOOD });
        for round in 0..10 {
            pair.carry(100, 500, round);
            pair.run_until(|pair| pair.streams() == (0, 0));
        }
    }
}

#[test]
fn packets_come_in_batches_of_one_size_and_none_is_longer_than_the_mtu() {
    let mut pair = Pair::with(|_| (), Path::GOOD);
    pair.carry(3, 300_000, 1);
    assert!(pair.batches > 0 && pair.packets >= 3 * pair.batches, "{} in {}", pair.packets, pair.batches);
}

#[test]
fn an_idle_session_lives_for_an_hour_costs_little_and_ends_when_the_peer_is_silent() {
    let mut pair = Pair::with(|_| (), Path::GOOD);
    pair.carry(1, 1, 1);
    let (turns, packets, end) = (pair.turns, pair.packets, pair.now + 3600 * SECOND);
    pair.run_until(|pair| pair.now >= end);
    // Two signs of life in 10 s, each with its acknowledgement; now and then parity.
    assert!(pair.packets - packets <= 360 * 6, "{} packets", pair.packets - packets);
    assert!(pair.turns - turns <= 360 * 16, "{} turns", pair.turns - turns);
    assert!(!pair.is_lost());
    pair.path.lost = 100;
    let silent = pair.now;
    pair.run_until(|pair| pair.is_lost());
    let waited = pair.now - silent;
    assert!((20 * SECOND..=30 * SECOND + 20 * MS).contains(&waited), "given up after {waited} µs");
}

#[test]
fn a_reader_that_stops_for_minutes_does_not_end_the_session_and_holds_up_no_other() {
    let mut pair = Pair::with(|settings| settings.version = Version::V2, Path::GOOD);
    let stopped = pair.client().open().expect("a stream");
    pair.run_until(|pair| pair.server.is_open(stopped));
    pair.server.stopped.insert(stopped);
    let end = pair.now + 300 * SECOND;
    let mut kept = 0;
    while pair.now < end {
        kept += pair.client().write(stopped, &[1; 100_000]);
        pair.carry(1, 10_000, 1);
        let until = pair.now + SECOND;
        pair.run_until(|pair| pair.now >= until);
    }
    assert!(kept <= (256 << 10) + (256 << 10), "{kept} bytes: a window there and a buffer here");
    pair.server.stopped.clear();
    pair.run_until(|pair| pair.client().peek(stopped).len() > 100_000);
}

#[test]
fn many_readers_of_version_2_that_were_promised_much_and_stop_hold_up_no_other() {
    let mut pair = Pair::with(|settings| settings.version = Version::V2, Path::GOOD);
    let stopped: Vec<_> = (0..8).map(|_| pair.client().open().expect("a stream")).collect();
    for stream in &stopped {
        pair.client().write(*stream, &[1; 1_000]);
    }
    pair.run_until(|pair| stopped.iter().all(|stream| pair.client().peek(*stream).len() == 1_000));
    pair.server.stopped.extend(&stopped);
    pair.write_for(&stopped, 20 * SECOND);
    pair.carry(1, 100_000, 1);
    assert_eq!(pair.streams().1, 8 + 1, "none is cut for it");
}

#[test]
fn readers_of_version_2_that_never_read_and_together_stop_all_are_cut_until_the_others_go_on() {
    let mut pair = Pair::with(|settings| settings.version = Version::V2, Path::GOOD);
    let stopped: Vec<_> = (0..20).map(|_| pair.client().open().expect("a stream")).collect();
    pair.run_until(|pair| pair.streams().1 == 20);
    pair.server.stopped.extend(&stopped);
    pair.write_for(&stopped, 20 * SECOND);
    pair.carry(1, 100_000, 1);
    let is_cut = |event: &&Event| matches!(event, Event::Reset(stream) if stopped.contains(stream));
    let cut = pair.server.events.iter().filter(is_cut).count();
    assert!((1..=5).contains(&cut), "{cut} are cut, of which 16 fill what there is");
}

#[test]
fn in_version_1_a_reader_that_stops_holds_up_the_others_once_4_mib_are_unread_and_no_session_ends() {
    let change = |settings: &mut Settings| (settings.version, settings.compresses) = (Version::V1, false);
    let mut pair = Pair::with(change, Path::GOOD);
    let stopped = pair.client().open().expect("a stream");
    pair.run_until(|pair| pair.server.is_open(stopped));
    pair.server.stopped.insert(stopped);
    let end = pair.now + 120 * SECOND;
    let mut written = 0;
    while pair.now < end {
        written += pair.client().write(stopped, &[1; 100_000]);
        let until = pair.now + 100 * MS;
        pair.run_until(|pair| pair.now >= until);
    }
    // What is unread there, what waits for that in its window, and what waits here.
    assert!((4 << 20..7 << 20).contains(&written), "{written} bytes");
    assert!(!pair.is_lost());
    pair.server.stopped.clear();
    pair.carry(1, 10_000, 1);
}

#[test]
fn the_other_password_is_not_heard_and_the_other_compression_ends_the_session() {
    let mut pair = Pair::with(|_| (), Path::GOOD);
    pair.client.endpoint = Endpoint::client(Settings::client(), Key::new(Cipher::Aes, b"other"), [1; 32]);
    pair.client.session = pair.client.endpoint.connect(0, SERVER);
    pair.client().open();
    pair.run_until(|pair| pair.now >= SECOND);
    assert!(pair.server.endpoint.checksum_errors() > 0);
    assert_eq!((pair.server.session, &pair.server.events), (None, &vec![]));

    let server = Settings { compresses: false, ..Settings::server() };
    let mut pair = Pair::new(Settings::client(), server, Path::GOOD, 1);
    pair.client().open();
    pair.run_until(|pair| pair.server.events.contains(&Event::Lost(LostReason::Garbled)));
}

#[test]
fn a_client_that_begins_again_from_its_address_replaces_its_session() {
    let mut pair = Pair::with(|_| (), Path::GOOD);
    pair.carry(1, 100, 1);
    let before = pair.server.session;
    pair.client.endpoint = Endpoint::client(Settings::client(), key(), [9; 32]);
    pair.client.session = pair.client.endpoint.connect(pair.now, SERVER);
    pair.client().open();
    pair.run_until(|pair| pair.server.session != before);
    assert!(pair.server.events.contains(&Event::Lost(LostReason::Replaced)));
    pair.server.events.clear();
    pair.carry(1, 100, 1);
}

#[test]
fn a_server_has_no_more_sessions_than_it_may_and_a_client_one_for_each_address() {
    let settings = Settings { sessions_max: 2, ..Settings::server() };
    let mut server = Endpoint::server(settings, key(), [1; 32]);
    for port in 1..=3 {
        let mut client = Endpoint::client(Settings::client(), key(), [port as u8; 32]);
        let id = client.connect(0, SERVER).expect("the first");
        assert_eq!(client.connect(0, SERVER), None);
        client.session(id).and_then(Session::open).expect("a stream");
        let mut packet = Vec::new();
        client.poll_transmit(0, &mut packet).expect("it begins");
        let from = SocketAddr::from(([10, 0, 0, 1], port));
        assert_eq!(server.handle_datagram(0, from, &mut packet).is_some(), port <= 2);
    }
    assert_eq!(std::iter::from_fn(|| server.poll_event()).count(), 4, "two are established and have a stream");
}

#[test]
fn a_session_begins_with_an_early_segment_only() {
    let mut server = Endpoint::server(Settings::server(), null_key(), [1; 32]);
    let segment = |command: u8, number: u32| {
        let mut bytes = vec![7, 0, 0, 0, command, 0, 0, 4, 0, 0, 0, 0];
        bytes.extend(number.to_le_bytes());
        bytes.extend([0; 8]);
        bytes
    };
    for (command, number, begins) in [(82, 0, false), (81, 1024, false), (81, 1023, true)] {
        assert_eq!(server.handle_datagram(0, CLIENT, &mut segment(command, number)).is_some(), begins);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Without a cipher every change gets through to the layers below.
    #[test]
    fn changed_packets_make_nobody_panic_or_spin(
        seed: u64,
        compresses: bool,
        version in prop::sample::select(vec![Version::V1, Version::V2]),
        has_fec: bool,
    ) {
        let change = |base: Settings| Settings {
            compresses,
            version,
            fec: base.fec.filter(|_| has_fec),
            unread_bytes: 200 << 10,
            stream_unread_bytes: 100 << 10,
            streams_max: 20,
            sessions_max: 3,
            ..base
        };
        let (client, server) = (change(Settings::client()), change(Settings::server()));
        let path = Path { changed: 20, lost: 5, doubled: 5, ..Path::GOOD };
        let mut pair = Pair::new(client, server, path, seed);
        let streams: Vec<_> = (0..10).filter_map(|_| pair.client().open()).collect();
        for turn in 0..300 {
            for stream in &streams {
                if let Some(session) = pair.client_or_none() {
                    session.write(*stream, &[turn as u8; 500]);
                }
            }
            let until = pair.now + 10 * MS;
            pair.run_until(|pair| pair.now >= until);
        }
    }

    #[test]
    fn noise_begins_no_session(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut server = Endpoint::server(Settings::server(), key(), [1; 32]);
        prop_assert_eq!(server.handle_datagram(0, CLIENT, &mut bytes.clone()), None);
        prop_assert_eq!(server.poll_transmit(0, &mut Vec::new()), None);
        prop_assert_eq!(server.next_timeout(), None);
    }
}

const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 1000);
const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)), 2000);

fn key() -> Key {
    static KEY: std::sync::LazyLock<Key> = std::sync::LazyLock::new(|| Key::new(Cipher::Aes, b"a password"));
    KEY.clone()
}

fn null_key() -> Key {
    static KEY: std::sync::LazyLock<Key> = std::sync::LazyLock::new(|| Key::new(Cipher::Null, b""));
    KEY.clone()
}

/// Of both ends; what may differ does.
fn any_settings(random: &mut Random) -> (Settings, Settings) {
    let mode = [Mode::Normal, Mode::Fast, Mode::Fast2, Mode::Fast3][random.below(4) as usize];
    let version = [Version::V1, Version::V2][random.below(2) as usize];
    let compresses = random.below(2) == 0;
    let mut end = |base: Settings| {
        let shape = Shape { data: 1 + random.below(12) as u8, parity: 1 + random.below(4) as u8 };
        Settings {
            mode,
            version,
            compresses,
            fec: (random.below(3) > 0).then_some(shape),
            mtu: 576 + random.below(925) as usize,
            send_window: 16 + random.below(500) as u16,
            receive_window: 16 + random.below(500) as u16,
            // In version 2 all streams may keep the first window unread; with less, the word that would open another window
            // can be stuck behind what nobody reads.
            unread_bytes: if version == Version::V1 { 64 << 10 } else { 5 * (256 << 10) },
            stream_unread_bytes: 64 << 10,
            ..base
        }
    };
    (end(Settings::client()), end(Settings::server()))
}

/// In percent of packets, and µs.
#[derive(Clone, Copy, Debug)]
struct Path {
    delay: u64,
    /// How much longer some take.
    jitter: u64,
    lost: u64,
    doubled: u64,
    /// In one to four bytes, or cut.
    changed: u64,
}

impl Path {
    const GOOD: Self = Self { delay: 10 * MS, jitter: 0, lost: 0, doubled: 0, changed: 0 };

    fn any(random: &mut Random) -> Self {
        Self {
            delay: 1 + random.below(60 * MS),
            jitter: random.below(2) * random.below(20 * MS),
            lost: random.below(20),
            doubled: random.below(5),
            changed: 0,
        }
    }
}

/// A client and a server that sends back what it gets.
struct Pair {
    now: u64,
    client: End,
    server: End,
    path: Path,
    random: Random,
    /// By the time of arrival, then in the order of sending: to the client?
    on_their_way: BTreeMap<(u64, u64), (bool, Vec<u8>)>,
    sent: u64,
    mtu: usize,
    packets: u64,
    batches: u64,
    turns: u64,
}

struct End {
    endpoint: Endpoint,
    session: Option<SessionId>,
    events: Vec<Event>,
    /// Streams that are not forgotten, and whether the peer has ended them.
    open: BTreeMap<StreamId, bool>,
    /// Those that are not read.
    stopped: BTreeSet<StreamId>,
}

impl Pair {
    fn with(change: impl Fn(&mut Settings), path: Path) -> Self {
        let (mut client, mut server) = (Settings::client(), Settings::server());
        change(&mut client);
        change(&mut server);
        Self::new(client, server, path, 7)
    }

    fn new(client: Settings, server: Settings, path: Path, seed: u64) -> Self {
        // Where packets are changed, every change is to get through.
        let key = if path.changed > 0 { null_key() } else { key() };
        let mtu = client.mtu.max(server.mtu);
        let mut random = Random(seed);
        let mut seeds = [(); 2].map(|()| random.bytes(32).try_into().expect("32 bytes")).into_iter();
        let mut client = End::new(Endpoint::client(client, key.clone(), seeds.next().expect("two")));
        let server = End::new(Endpoint::server(server, key, seeds.next().expect("two")));
        client.session = client.endpoint.connect(0, SERVER);
        let on_their_way = BTreeMap::new();
        Self { now: 0, client, server, path, random, on_their_way, sent: 0, mtu, packets: 0, batches: 0, turns: 0 }
    }

    fn client(&mut self) -> &mut Session {
        assert!(!self.is_lost(), "{:?} {:?}", self.client.events, self.server.events);
        self.client_or_none().expect("the session lives")
    }

    fn client_or_none(&mut self) -> Option<&mut Session> {
        self.client.endpoint.session(self.client.session?)
    }

    fn streams(&mut self) -> (usize, usize) {
        let count = |end: &mut End| {
            end.session.and_then(|id| end.endpoint.session(id)).map_or(0, |session| session.status().streams)
        };
        (count(&mut self.client), count(&mut self.server))
    }

    fn is_lost(&self) -> bool {
        [&self.client, &self.server].iter().any(|end| end.events.iter().any(|it| matches!(it, Event::Lost(_))))
    }

    /// Sends so many bytes on each of so many new streams, reads the same again, and closes.
    fn carry(&mut self, streams: usize, length: usize, seed: u64) {
        let sent: Vec<_> = (0..streams).map(|at| Random(seed + at as u64).bytes(length)).collect();
        let mut loads: Vec<_> = (0..streams).map(|_| (self.client().open().expect("a stream"), 0, 0)).collect();
        self.run_until(|pair| {
            for ((stream, written, read), sent) in loads.iter_mut().zip(&sent) {
                let session = pair.client();
                *written += session.write(*stream, &sent[*written..]);
                let piece = session.peek(*stream);
                assert!(piece == &sent[*read..*read + piece.len()], "seed {seed}: other bytes after {read}");
                let piece = piece.len();
                session.consume(*stream, piece);
                *read += piece;
                if *read == length {
                    session.finish(*stream);
                }
            }
            loads.iter().all(|(_, _, read)| *read == length)
        });
    }

    /// As much as they take.
    fn write_for(&mut self, streams: &[StreamId], us: u64) {
        let end = self.now + us;
        while self.now < end {
            for stream in streams {
                self.client().write(*stream, &[1; 100_000]);
            }
            let until = self.now + 100 * MS;
            self.run_until(|pair| pair.now >= until);
        }
    }

    fn run_until(&mut self, mut happened: impl FnMut(&mut Self) -> bool) {
        let end = self.now + 7200 * SECOND;
        loop {
            self.settle();
            if happened(self) {
                return;
            }
            self.settle();
            let arrival = self.on_their_way.first_key_value().map(|((at, _), _)| *at);
            let deadlines = [&self.client, &self.server].map(|end| end.endpoint.next_timeout());
            let next = deadlines.into_iter().flatten().chain(arrival).min().unwrap_or(end);
            // Without an event something happens at the latest in a second, for those who wait for a time.
            self.now = next.max(self.now).min(self.now + SECOND);
            assert!(self.now < end, "nothing happens any more");
            self.arrive();
            self.turns += 1;
            for end in [&mut self.client, &mut self.server] {
                end.endpoint.handle_timeout(self.now);
            }
        }
    }

    /// Both say and send what they have, until the next thing to do is later.
    fn settle(&mut self) {
        for round in 0.. {
            let is_quiet = [true, false].into_iter().fold(true, |is_quiet, is_client| {
                let end = if is_client { &mut self.client } else { &mut self.server };
                end.hear(self.now);
                if !is_client {
                    end.send_back();
                }
                !self.send(is_client) && is_quiet
            });
            let is_waited_for = [&self.client, &self.server]
                .iter()
                .all(|end| end.endpoint.next_timeout().is_none_or(|at| at > self.now));
            if is_quiet && is_waited_for {
                return;
            }
            let deadlines = [&self.client, &self.server].map(|end| end.endpoint.next_timeout());
            assert!(round < 10_000, "at {} one of them never comes to rest: {deadlines:?}", self.now);
        }
    }

    fn send(&mut self, is_client: bool) -> bool {
        let end = if is_client { &mut self.client } else { &mut self.server };
        let (mut out, mut has_sent) = (Vec::new(), false);
        while let Some(transmit) = end.endpoint.poll_transmit(self.now, &mut out) {
            assert_eq!(transmit.to, if is_client { SERVER } else { CLIENT });
            assert!(transmit.segment_bytes <= self.mtu);
            for packet in out.chunks(transmit.segment_bytes) {
                self.packets += 1;
                for _ in 0..1 + u64::from(self.random.below(100) < self.path.doubled) {
                    if self.random.below(100) >= self.path.lost {
                        let at = self.now + self.path.delay + self.random.below(self.path.jitter + 1);
                        let packet = changed(packet, self.path.changed, &mut self.random);
                        self.on_their_way.insert((at, self.sent), (!is_client, packet));
                        self.sent += 1;
                    }
                }
            }
            self.batches += 1;
            out.clear();
            has_sent = true;
        }
        has_sent
    }

    fn arrive(&mut self) {
        while let Some(entry) = self.on_their_way.first_entry()
            && entry.key().0 <= self.now
        {
            let (to_client, mut packet) = entry.remove();
            let (end, from) = if to_client { (&mut self.client, SERVER) } else { (&mut self.server, CLIENT) };
            end.endpoint.handle_datagram(self.now, from, &mut packet);
        }
    }
}

fn changed(packet: &[u8], percent: u64, random: &mut Random) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if random.below(100) < percent {
        for _ in 0..1 + random.below(4) {
            let at = random.below(packet.len() as u64) as usize;
            packet[at] = random.next() as u8;
        }
        if random.below(4) == 0 {
            packet.truncate(random.below(packet.len() as u64) as usize);
        }
    }
    packet
}

impl End {
    fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, session: None, events: Vec::new(), open: BTreeMap::new(), stopped: BTreeSet::new() }
    }

    fn is_open(&self, stream: StreamId) -> bool {
        self.open.contains_key(&stream)
    }

    fn hear(&mut self, _now: u64) {
        while let Some((id, event)) = self.endpoint.poll_event() {
            match event {
                Event::Established => self.session = Some(id),
                Event::Opened(stream) => _ = self.open.insert(stream, false),
                Event::Ended(stream) => _ = self.open.insert(stream, true),
                Event::Forgotten(stream) | Event::Reset(stream) => _ = self.open.remove(&stream),
                Event::Lost(_) => self.open.clear(),
                Event::Readable(_) | Event::Writable(_) => {}
            }
            self.events.push(event);
        }
    }

    /// What has come, on the streams it came on; what has ended is only read.
    fn send_back(&mut self) {
        for (stream, ended) in self.open.iter().filter(|(stream, _)| !self.stopped.contains(stream)) {
            let Some(session) = self.session.and_then(|id| self.endpoint.session(id)) else { return };
            let mut budget = 100;
            while let piece @ 1.. = session.peek(*stream).len()
                && budget > 0
            {
                budget -= 1;
                let bytes = session.peek(*stream).to_vec();
                let written = session.write(*stream, &bytes);
                session.consume(*stream, if *ended { piece } else { written });
                if written == 0 {
                    break;
                }
            }
        }
    }
}
