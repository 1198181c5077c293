//! How many instructions do the hot functions of handshake, tunnel and relay take, and are they still no more than that?
//!
//! Callgrind counts them, so the answer does not depend on what else the machine does. Each count has a budget; whatever
//! exceeds it ends the run with an error. A change that needs more brings its new figure along, and says what it is worth.
//!
//! The figures below were measured with rustc 1.95.0, glibc 2.36 and Valgrind 3.19 on x86-64 with AVX2. The processor that
//! Valgrind pretends to be has AES-NI but no SHA extensions: AES is counted as it runs outside, SHA-256 in portable code,
//! which takes more. Of a system call nothing is counted but the way there; the kernel's part is for `scripts/bench-gateway`.

use std::collections::VecDeque;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use gateway::engine::{Outcome, Pump, Readiness, Shared};
use gateway::limits::{BUFFER_BYTES, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT};
use gateway::proto::kcp::segment::HEADER_BYTES;
use gateway::proto::kcp::{Buffers, Conversation, Settings, Stamp};
use gateway::proto::line::{Line, Progress};
use gateway::proto::policy::Policy;
use gateway::proto::target::{BadTarget, Target};
use gateway::proto::timers::Timers;
use gateway::proto::token::{BadToken, Digest, Keyring, Secret};
use gateway::sys::pipe::PIPE_BYTES;
use gungraun::{Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};

/// The most instructions for what took `measured` of them: a tenth more. Repeated runs give the same count; the tenth is
/// room for another compiler or C library.
const fn budget(measured: u64) -> u64 {
    measured + measured / 10
}

const OPEN_SHA256: u64 = budget(21_801);
const OPEN_MD5: u64 = budget(21_865);
const LINE_IN_ONE_PIECE: u64 = budget(1_015);
const LINE_BYTE_BY_BYTE: u64 = budget(11_836);
const TARGET_IPV4: u64 = budget(711);
const TARGET_IPV6: u64 = budget(2_263);
const TARGET_NAME: u64 = budget(2_339);
const POLICY_OF_100_RULES: u64 = budget(6_101);
const TIMERS_SET: u64 = budget(2_139_589);
const TIMERS_CANCEL: u64 = budget(390_335);
const TIMERS_POP: u64 = budget(4_753_858);
const KCP_IN_ORDER: u64 = budget(29_749_293);
const KCP_LOSSY: u64 = budget(34_384_987);
const PUMP_COPY: u64 = budget(208);
const PUMP_SPLICE: u64 = budget(321);

/// Ends the run with an error when a function takes more instructions than `budget`.
fn at_most(budget: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::with_args(["--cache-sim=no"]);
    callgrind.hard_limits([(EventKind::Ir, budget)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

const TARGET: &str = "192.168.100.200:54321";

// A token from base64 to target, both digests tried whichever has made it.
#[library_benchmark(setup = sealed, teardown = assert_opened)]
#[bench::sha256(args = (Digest::Sha256), config = at_most(OPEN_SHA256))]
#[bench::md5(args = (Digest::Md5), config = at_most(OPEN_MD5))]
fn open((keys, token): (Keyring, String)) -> (Keyring, String, Result<Target, BadToken>) {
    let opened = keys.open(black_box(token.as_bytes()));
    (keys, token, opened)
}

fn sealed(digest: Digest) -> (Keyring, String) {
    let secret = Secret::new(b"a secret of a usual length".to_vec()).expect("not empty");
    let keys = Keyring::new(vec![secret]).expect("not empty");
    let token = keys.seal(TARGET.as_bytes(), *b"saltsalt", digest);
    (keys, token)
}

fn assert_opened((_, _, opened): (Keyring, String, Result<Target, BadToken>)) {
    assert_eq!(opened, Ok(TARGET.parse().expect("a target")));
}

/// A line on its way, and the size of the pieces it arrives in.
struct Arrival {
    line: Line,
    now: Instant,
    text: String,
    piece_bytes: usize,
    progress: Option<Progress<usize>>,
}

// From the first byte of a line to its verdict; what opening costs is counted above.
#[library_benchmark(setup = arrival, teardown = assert_complete)]
#[bench::in_one_piece(args = (usize::MAX), config = at_most(LINE_IN_ONE_PIECE))]
#[bench::byte_by_byte(args = (1), config = at_most(LINE_BYTE_BY_BYTE))]
fn line(mut arrival: Arrival) -> Arrival {
    for bytes in black_box(arrival.text.as_bytes()).chunks(arrival.piece_bytes) {
        arrival.progress = Some(arrival.line.handle_bytes(arrival.now, bytes, |token| Some(token.len())));
    }
    arrival
}

fn arrival(piece_bytes: usize) -> Arrival {
    let (_, token) = sealed(Digest::Sha256);
    let now = Instant::now();
    Arrival { line: Line::new(now + HANDSHAKE_TIMEOUT), now, text: token + "\n", piece_bytes, progress: None }
}

fn assert_complete(arrival: Arrival) {
    assert!(matches!(arrival.progress, Some(Progress::Opened { target, .. }) if target + 1 == arrival.text.len()));
}

#[library_benchmark(teardown = assert_parsed)]
#[bench::ipv4(args = (TARGET), config = at_most(TARGET_IPV4))]
#[bench::ipv6(args = ("[2001:db8:1234:5678:9abc:def0:1234:5678]:54321"), config = at_most(TARGET_IPV6))]
#[bench::name(args = ("a-game-server-with-a-long-name.region-1.games.example.com:7777"), config = at_most(TARGET_NAME))]
fn target(text: &str) -> Result<Target, BadTarget> {
    Target::parse(black_box(text.as_bytes()))
}

fn assert_parsed(target: Result<Target, BadTarget>) {
    assert!(target.is_ok());
}

// A hundred rules of which the last one permits.
#[library_benchmark(teardown = assert_permitted)]
#[bench::last_of_100_rules(args = (), setup = hundred_rules, config = at_most(POLICY_OF_100_RULES))]
fn policy((policy, address): (Box<Policy>, SocketAddr)) -> (Box<Policy>, bool) {
    let permitted = policy.permits(black_box(address));
    (policy, permitted)
}

fn hundred_rules() -> (Box<Policy>, SocketAddr) {
    let others = (0..99).map(|n| format!("10.{n}.0.0/16:1024-65535"));
    let rules = others.chain(["192.168.0.0/16".to_owned()]);
    let allow = rules.map(|rule| rule.parse().expect("a rule")).collect();
    (Box::new(Policy { allow, deny: vec![] }), TARGET.parse().expect("an address"))
}

fn assert_permitted((_, permitted): (Box<Policy>, bool)) {
    assert!(permitted);
}

const DEADLINES: u32 = 10_000;

/// Deadlines anywhere within the longest time-out, none of them due.
struct Deadlines {
    timers: Timers,
    by_key: Vec<Instant>,
    end: Instant,
    popped: u32,
}

// As many as there are deadlines, into a table that has grown to its size before.
#[library_benchmark(teardown = assert_set)]
#[bench::of_10_000(args = (), setup = no_deadlines, config = at_most(TIMERS_SET))]
fn set(mut deadlines: Box<Deadlines>) -> Box<Deadlines> {
    for (key, at) in (0..).zip(&deadlines.by_key) {
        deadlines.timers.set(key, *at);
    }
    deadlines
}

#[library_benchmark(teardown = assert_none_set)]
#[bench::of_10_000(args = (), setup = all_deadlines, config = at_most(TIMERS_CANCEL))]
fn cancel(mut deadlines: Box<Deadlines>) -> Box<Deadlines> {
    for key in 0..DEADLINES {
        deadlines.timers.cancel(key);
    }
    deadlines
}

// Their way down through the levels included.
#[library_benchmark(teardown = assert_all_popped)]
#[bench::of_10_000(args = (), setup = all_deadlines, config = at_most(TIMERS_POP))]
fn pop(deadlines: Box<Deadlines>) -> Box<Deadlines> {
    deadlines.popped()
}

impl Deadlines {
    fn popped(mut self: Box<Self>) -> Box<Self> {
        while self.timers.pop_expired(self.end).is_some() {
            self.popped += 1;
        }
        self
    }
}

fn all_deadlines() -> Box<Deadlines> {
    let start = Instant::now();
    // A prime number of milliseconds from one key to the next scatters them.
    let range = IDLE_TIMEOUT.as_millis() as u64;
    let at = |key| start + Duration::from_millis(1 + u64::from(key) * 3_600_017 % range);
    let by_key: Vec<_> = (0..DEADLINES).map(at).collect();
    let mut timers = Timers::new(start);
    (0..).zip(&by_key).for_each(|(key, at)| timers.set(key, *at));
    Box::new(Deadlines { timers, by_key, end: start + IDLE_TIMEOUT, popped: 0 })
}

fn no_deadlines() -> Box<Deadlines> {
    let mut deadlines = all_deadlines();
    (0..DEADLINES).for_each(|key| deadlines.timers.cancel(key));
    deadlines
}

fn assert_set(deadlines: Box<Deadlines>) {
    assert_all_popped(deadlines.popped());
}

fn assert_none_set(deadlines: Box<Deadlines>) {
    assert_eq!(deadlines.timers.next_deadline(), None);
}

fn assert_all_popped(deadlines: Box<Deadlines>) {
    assert_eq!(deadlines.popped, DEADLINES);
}

/// Segments that travel while it is counted.
const SEGMENTS: usize = 10_000;

const SEGMENT_BYTES: usize = 1_298;
const DATAGRAM_BYTES: usize = SEGMENT_BYTES + HEADER_BYTES;

/// One of these is lost, when any is: no round number, so that rounds do not meet.
const LOST: u64 = 97;

/// A KCP stream over a wire that is always full: what enters pushes out what arrives. 10 µs from one to the next.
struct Stream {
    writer: Conversation,
    reader: Conversation,
    buffers: [Buffers; 2],
    wire: VecDeque<Vec<u8>>,
    now: u64,
    is_lossy: bool,
    sent: u64,
    read: usize,
    page: Vec<u8>,
}

// From `write` to `read`, its acknowledgement included. It must not depend on how many are in flight.
#[library_benchmark(teardown = assert_read)]
#[bench::in_order_100_in_flight(args = (100, false), setup = stream, config = at_most(KCP_IN_ORDER))]
#[bench::in_order_16_000_in_flight(args = (16_000, false), setup = stream, config = at_most(KCP_IN_ORDER))]
#[bench::lossy_500_in_flight(args = (500, true), setup = stream, config = at_most(KCP_LOSSY))]
#[bench::lossy_16_000_in_flight(args = (16_000, true), setup = stream, config = at_most(KCP_LOSSY))]
fn kcp(mut stream: Box<Stream>) -> Box<Stream> {
    stream.read = 0;
    (0..SEGMENTS).for_each(|_| stream.carry());
    stream
}

fn stream(in_flight: usize, is_lossy: bool) -> Box<Stream> {
    let window = 64_000;
    let settings = Settings {
        segment_bytes: SEGMENT_BYTES,
        send_window: window,
        receive_window: window,
        send_bytes: usize::from(window) * SEGMENT_BYTES,
        rto_first_us: 1_000_000,
        ..Settings::default()
    };
    let mut stream = Box::new(Stream {
        writer: Conversation::new(1, settings.clone()),
        reader: Conversation::new(1, settings),
        buffers: [1, 2].map(|_| Buffers::new(SEGMENT_BYTES, 2 * usize::from(window))),
        wire: (0..in_flight).map(|_| Vec::with_capacity(DATAGRAM_BYTES)).collect(),
        now: 0,
        is_lossy,
        sent: 0,
        read: 0,
        page: vec![7; 1 << 16],
    });
    (0..5 * in_flight + SEGMENTS).for_each(|_| stream.carry());
    stream
}

impl Stream {
    fn carry(&mut self) {
        let Self { writer, reader, buffers: [writing, reading], now, page, .. } = self;
        *now += 10;
        let mut datagram = self.wire.pop_front().expect("the wire is full");
        reader.input(*now, &datagram, reading, |_| {}).expect("it is whole");
        while reader.readable() > 0 {
            self.read += reader.read(page, reading);
        }
        datagram.clear();
        reader.write_acks(DATAGRAM_BYTES, &mut datagram);
        writer.input(*now, &datagram, writing, |_| {}).expect("it is whole");
        datagram.clear();
        if writer.next_timeout().is_some_and(|at| at <= *now) {
            writer.handle_timeout(*now);
        }
        writer.write(&page[..SEGMENT_BYTES], writing);
        if writer.write_lost(*now, DATAGRAM_BYTES, Stamp::default(), writing, &mut datagram) == 0 {
            writer.write_new(*now, DATAGRAM_BYTES, Stamp::default(), writing, &mut datagram);
        }
        self.sent += 1;
        if self.is_lossy && self.sent.is_multiple_of(LOST) {
            datagram.clear();
        }
        self.wire.push_back(datagram);
    }
}

/// All of it, but for what is in flight or behind a gap, by now as much as before.
fn assert_read(stream: Box<Stream>) {
    let expected = SEGMENTS * SEGMENT_BYTES;
    let lost = if stream.is_lossy { expected / 20 } else { 0 };
    assert!(stream.read.abs_diff(expected) <= lost, "{} bytes were read, not {expected}", stream.read);
}

const MESSAGE_BYTES: usize = 64;

/// Reads that fill the buffer before a pump splices; see `engine::pump`.
const FULL_READS: usize = 3;

/// One direction of a game, with bytes in front of the pump.
struct Game {
    player: TcpStream,
    source: TcpStream,
    sink: TcpStream,
    backend: TcpStream,
    pump: Pump,
    shared: Shared,
    waiting: usize,
    outcome: Option<Outcome>,
}

// What the pump itself does for a message of 64 bytes, and for half a pipe of bulk: fill, drain, and a fill in vain.
#[library_benchmark(teardown = assert_moved)]
#[bench::message_of_64_bytes(args = (), setup = a_message, config = at_most(PUMP_COPY))]
#[bench::splice_of_32_kib(args = (), setup = half_a_pipe, config = at_most(PUMP_SPLICE))]
fn pump(game: Box<Game>) -> Box<Game> {
    game.pumped()
}

fn a_message() -> Box<Game> {
    game().with_waiting(MESSAGE_BYTES)
}

/// All of it fits into a pipe at once because everything was sent in whole pages.
fn half_a_pipe() -> Box<Game> {
    game().with_waiting(FULL_READS * BUFFER_BYTES).pumped().received().with_waiting(PIPE_BYTES / 2)
}

fn game() -> Box<Game> {
    let (player, source) = connection();
    let (sink, backend) = connection();
    for socket in [&source, &sink] {
        socket.set_nonblocking(true).expect("a socket can be non-blocking");
        socket.set_nodelay(true).expect("a TCP socket can do without delay");
    }
    let shared = Shared::new(BUFFER_BYTES);
    Box::new(Game { player, source, sink, backend, pump: Pump::default(), shared, waiting: 0, outcome: None })
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let near = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    let (far, _) = listener.accept().expect("somebody has connected");
    (near, far)
}

impl Game {
    /// Sends `bytes` bytes and waits until all of them are there.
    fn with_waiting(mut self: Box<Self>, bytes: usize) -> Box<Self> {
        self.player.write_all(&vec![b'x'; bytes]).expect("the connection stands");
        let mut peeked = vec![0; bytes];
        let give_up = Instant::now() + Duration::from_secs(10);
        while self.source.peek(&mut peeked).unwrap_or(0) < bytes {
            assert!(Instant::now() < give_up, "{bytes} bytes do not arrive");
        }
        self.waiting = bytes;
        self
    }

    fn pumped(mut self: Box<Self>) -> Box<Self> {
        let Self { source, sink, pump, shared, .. } = &mut *self;
        let news = Readiness { readable: true, ..Readiness::default() };
        self.outcome = Some(pump.run(source.as_fd(), sink.as_fd(), black_box(news), shared));
        self
    }

    /// Takes at the backend what the pump has moved, which must be all of it.
    fn received(mut self: Box<Self>) -> Box<Self> {
        assert!(matches!(self.outcome, Some(Outcome::SourceDry)), "{:?}", self.outcome);
        self.backend.read_exact(&mut vec![0; self.waiting]).expect("the connection stands");
        self
    }
}

fn assert_moved(game: Box<Game>) {
    drop(game.received());
}

library_benchmark_group!(name = handshake, benchmarks = [open, line, target, policy]);
library_benchmark_group!(name = timers, benchmarks = [set, cancel, pop]);
library_benchmark_group!(name = tunnel, benchmarks = [kcp]);
library_benchmark_group!(name = relay, benchmarks = [pump]);
main!(library_benchmark_groups = [handshake, timers, tunnel, relay]);
