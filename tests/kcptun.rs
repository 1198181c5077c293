//! The profile of kcptun against the real kcptun: its client with our server and our client with its server, over a path that
//! loses packets by a seed.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::*;
use gateway::proto::kcp::Mode;
use gateway::proto::kcptun::{
    Cipher, Endpoint, Event, Key, LostReason, Session, SessionId, Settings, Shape, Status, StreamId, Version,
};

const MB: usize = 1_000_000;
const FEC: Option<Shape> = Some(Shape { data: 10, parity: 3 });

/// What both ends are told, and what the path does.
#[derive(Clone, Copy, Debug)]
struct Case {
    crypt: &'static str,
    fec: Option<Shape>,
    version: Version,
    compresses: bool,
    /// Packets of a hundred.
    lost: u64,
}

impl Case {
    fn recovers(self) -> bool {
        self.fec.is_some() && self.lost > 0
    }
}

const CASES: [Case; 6] = [
    Case { crypt: "none", fec: None, version: Version::V1, compresses: false, lost: 0 },
    Case { crypt: "aes", fec: None, version: Version::V1, compresses: true, lost: 5 },
    Case { crypt: "aes", fec: FEC, version: Version::V1, compresses: false, lost: 5 },
    Case { crypt: "aes", fec: FEC, version: Version::V2, compresses: true, lost: 5 },
    Case { crypt: "none", fec: None, version: Version::V2, compresses: false, lost: 5 },
    Case { crypt: "none", fec: FEC, version: Version::V2, compresses: true, lost: 0 },
];

const PLAIN: Case = Case { crypt: "aes", fec: None, version: Version::V1, compresses: true, lost: 0 };

#[test]
fn the_real_client_carries_20_mb_each_way_through_our_server() {
    if !kcptun_or_skip("the_real_client_carries_20_mb_each_way_through_our_server") {
        return;
    }
    let _alone = alone();
    for case in CASES {
        let (server, client) = their_client(case);
        echo(client.connect(), 20 * MB, 1);
        let status = server.stop().status();
        println!("{case:?}\n{status:?}");
        assert!(status.packets.recovered > 0 || !case.recovers(), "{case:?} {status:?}");
    }
}

#[test]
fn our_client_carries_20_mb_each_way_through_the_real_server() {
    if !kcptun_or_skip("our_client_carries_20_mb_each_way_through_the_real_server") {
        return;
    }
    let _alone = alone();
    for case in CASES {
        let (mut ours, server) = their_server(case, echo_backend());
        carry(&mut ours, 1, 20 * MB);
        let status = ours.status();
        println!("{case:?}\n{status:?}");
        assert!(status.packets.recovered > 0 || !case.recovers(), "{case:?} {status:?}");
        wait_until(
            || server.process.recovered() > 0 || !case.recovers(),
            || format!("the real server recovers nothing: {case:?}"),
        );
    }
}

#[test]
fn every_cipher_is_understood_both_ways() {
    if !kcptun_or_skip("every_cipher_is_understood_both_ways") {
        return;
    }
    // To the real one of 2021 `null` is not known yet, which then takes AES.
    for crypt in Cipher::names().filter(|name| *name != "null") {
        let case = Case { crypt, ..PLAIN };
        echo(their_client(case).1.connect(), 100_000, 1);
        carry(&mut their_server(case, echo_backend()).0, 1, 100_000);
    }
}

#[test]
fn hundreds_of_streams_share_a_session() {
    if !kcptun_or_skip("hundreds_of_streams_share_a_session") {
        return;
    }
    let _alone = alone();
    for version in [Version::V1, Version::V2] {
        let case = Case { fec: FEC, version, lost: 2, ..PLAIN };
        let (server, client) = their_client(case);
        thread::scope(|scope| {
            for seed in 0..200 {
                let client = &client;
                scope.spawn(move || echo(client.connect(), 20_000, seed));
            }
        });
        server.wait_for_the_end_after(200 * 20_000);

        let (mut ours, _server) = their_server(case, echo_backend());
        carry(&mut ours, 200, 20_000);
        ours.run_until(|ours| ours.status().streams == 0);
    }
}

#[test]
fn our_server_learns_the_shape_of_the_clients_parity_and_follows_it() {
    if !kcptun_or_skip("our_server_learns_the_shape_of_the_clients_parity_and_follows_it") {
        return;
    }
    let case = Case { fec: Some(Shape { data: 5, parity: 2 }), lost: 5, ..PLAIN };
    for fec in [None, FEC] {
        let (server, client) = their_client_with(case, Settings { fec, ..settings(case, Settings::server()) });
        echo(client.connect(), MB, 1);
        assert!(server.stop().status().packets.recovered > 0, "ours has {fec:?}");
        wait_until(|| client.process.recovered() > 0 || fec.is_none(), || "it recovers nothing".to_owned());
    }
}

#[test]
fn closing_one_half_closes_both_as_smux_has_it() {
    if !kcptun_or_skip("closing_one_half_closes_both_as_smux_has_it") {
        return;
    }
    for version in [Version::V1, Version::V2] {
        let case = Case { version, ..PLAIN };
        let (server, client) = their_client(case);
        let mut client = client.connect();
        client.write_all(b"the last words").and_then(|()| client.shutdown(Shutdown::Write)).expect("they are sent");
        client.read_to_end(&mut Vec::new()).expect("the other half ends too");
        server.wait_for_the_end_after(14);

        let backend = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let (mut ours, _server) = their_server(case, backend.local_addr().expect("it is bound"));
        let reader = thread::spawn(move || backend.accept().map(|(mut connection, _)| read_to_end(&mut connection)));
        let stream = ours.open();
        ours.session().write(stream, b"the last words");
        ours.session().finish(stream);
        ours.run_until(|ours| ours.told(Event::Forgotten(stream)));
        assert!(ours.told(Event::Ended(stream)));
        assert_eq!(reader.join().expect("no panic").expect("a connection"), b"the last words");
    }
}

#[test]
fn a_stream_that_is_reset_or_refused_ends_at_the_other_side() {
    if !kcptun_or_skip("a_stream_that_is_reset_or_refused_ends_at_the_other_side") {
        return;
    }
    let (mut ours, _server) = their_server(PLAIN, echo_backend());
    let (stream, other) = (ours.open(), ours.open());
    ours.session().write(stream, b"x");
    ours.run_until(|ours| !ours.session().peek(stream).is_empty());
    ours.session().reset(stream);
    assert_eq!(ours.status().streams, 1);
    ours.session().write(other, b"y");
    ours.run_until(|ours| ours.session().peek(other) == b"y");

    let (_socket, nobody) = closed_port();
    let (mut ours, _server) = their_server(PLAIN, nobody);
    let stream = ours.open();
    ours.run_until(|ours| ours.told(Event::Ended(stream)));
}

#[test]
fn the_real_server_shows_that_it_lives_and_its_end_is_noticed() {
    if !kcptun_or_skip("the_real_server_shows_that_it_lives_and_its_end_is_noticed") {
        return;
    }
    let impatient =
        Settings { keep_alive_us: 1_000_000, silence_us: 10_000_000, ..settings(PLAIN, Settings::client()) };
    let (mut ours, server) = their_server_with(PLAIN, impatient, echo_backend());
    let stream = ours.open();
    ours.session().write(stream, b"x");
    ours.run_until(|ours| ours.session().peek(stream) == b"x");
    let before = ours.status().packets.received_packets;
    ours.run_until(|ours| ours.status().packets.received_packets >= before + 10);
    drop(server);
    ours.run_until(|ours| ours.told(Event::Lost(LostReason::Silent)));
}

fn kcptun_or_skip(test: &str) -> bool {
    tool_or_skip(test, "kcptun-client") && tool_or_skip(test, "kcptun-server")
}

fn settings(case: Case, base: Settings) -> Settings {
    Settings { fec: case.fec, mode: Mode::Fast3, version: case.version, compresses: case.compresses, ..base }
}

fn their_client(case: Case) -> (EchoServer, RealClient) {
    their_client_with(case, settings(case, Settings::server()))
}

/// The real client, and our server behind a lossy path, which sends everything back.
fn their_client_with(case: Case, settings: Settings) -> (EchoServer, RealClient) {
    let socket = udp_socket();
    let address = socket.local_addr().expect("it is bound");
    let endpoint = Endpoint::server(settings, key(case), seed());
    let server = EchoServer::start(Ours::new(endpoint, socket));
    (server, RealClient::start(case, Path::start(address, case.lost)))
}

fn their_server(case: Case, target: SocketAddr) -> (Ours, RealServer) {
    their_server_with(case, settings(case, Settings::client()), target)
}

/// Our client, which has a session with the real server behind a lossy path.
fn their_server_with(case: Case, settings: Settings, target: SocketAddr) -> (Ours, RealServer) {
    let server = RealServer::start(case, target);
    let mut endpoint = Endpoint::client(settings, key(case), seed());
    let session = endpoint.connect(0, server.path.address);
    (Ours { session, ..Ours::new(endpoint, udp_socket()) }, server)
}

fn key(case: Case) -> Key {
    Key::new(Cipher::by_name(case.crypt).expect("a cipher that we know"), PASSWORD.as_bytes())
}

const PASSWORD: &str = "a password";

fn seed() -> [u8; 32] {
    Random::seeded("endpoint").bytes(32).try_into().expect("32 bytes")
}

/// With as much room as the kernel gives, since a whole window may come at once.
fn udp_socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let options = socket2::SockRef::from(&socket);
    options.set_recv_buffer_size(4 << 20).expect("a size can be asked for");
    options.set_send_buffer_size(4 << 20).expect("a size can be asked for");
    socket
}

/// Half of it noise, half of it something to compress.
fn bytes_to_send(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(length + 4000);
    while bytes.len() < length {
        bytes.extend(random.bytes(2000));
        bytes.extend([random.next() as u8; 2000]);
    }
    bytes.truncate(length);
    bytes
}

/// Sends so many bytes to one that sends everything back, and holds what comes against it.
fn echo(mut client: TcpStream, length: usize, seed: u64) {
    let sent = Arc::new(bytes_to_send(length, seed));
    let mut writer = client.try_clone().expect("it can be cloned");
    let to_send = sent.clone();
    let writing = thread::spawn(move || writer.write_all(&to_send));
    let mut buffer = vec![0; 64 << 10];
    let mut read = 0;
    while read < length {
        let more = client.read(&mut buffer).expect("it goes on");
        assert!(more > 0, "it ends after {read} of {length} bytes");
        assert!(buffer[..more] == sent[read..read + more], "something else than was sent, after {read} bytes");
        read += more;
    }
    writing.join().expect("no panic").expect("all is sent");
}

/// The same with streams of our own, all at once.
fn carry(ours: &mut Ours, streams: u64, length: usize) {
    let sent: Vec<_> = (0..streams).map(|seed| bytes_to_send(length, seed)).collect();
    let mut loads: Vec<_> = (0..streams).map(|_| (ours.open(), 0, 0)).collect();
    ours.run_until(|ours| {
        let mut is_progress = false;
        for ((stream, written, read), sent) in loads.iter_mut().zip(&sent) {
            let session = ours.session();
            let more = session.write(*stream, &sent[*written..]);
            *written += more;
            let piece = session.peek(*stream);
            assert!(piece == &sent[*read..*read + piece.len()], "something else than was sent, after {read} bytes");
            let piece = piece.len();
            session.consume(*stream, piece);
            *read += piece;
            if *read == length {
                session.finish(*stream);
            }
            is_progress |= more + piece > 0;
        }
        ours.is_progress |= is_progress;
        loads.iter().all(|(_, _, read)| *read == length)
    });
}

/// Our endpoint on its socket.
struct Ours {
    endpoint: Endpoint,
    socket: UdpSocket,
    started: Instant,
    session: Option<SessionId>,
    events: Vec<Event>,
    is_progress: bool,
}

impl Ours {
    fn new(endpoint: Endpoint, socket: UdpSocket) -> Self {
        Self { endpoint, socket, started: Instant::now(), session: None, events: Vec::new(), is_progress: false }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    fn session(&mut self) -> &mut Session {
        self.session.and_then(|id| self.endpoint.session(id)).expect("the session lives")
    }

    fn status(&mut self) -> Status {
        self.session().status()
    }

    fn open(&mut self) -> StreamId {
        self.session().open().expect("there may be one more stream")
    }

    fn told(&self, event: Event) -> bool {
        self.events.contains(&event)
    }

    fn run_until(&mut self, mut happened: impl FnMut(&mut Self) -> bool) {
        let mut progress = Instant::now();
        while !happened(self) {
            self.turn(Duration::from_millis(10));
            if std::mem::take(&mut self.is_progress) {
                progress = Instant::now();
            }
            assert!(progress.elapsed() < PATIENCE, "nothing happens any more; so far: {:?}", self.events);
        }
    }

    /// Sends what there is to send, waits for a packet or a deadline, and takes what has come.
    fn turn(&mut self, longest: Duration) {
        self.hear();
        self.send();
        self.hear();
        let deadline = self.endpoint.next_timeout().map(|at| Duration::from_micros(at.saturating_sub(self.now())));
        self.receive(deadline.map_or(longest, |wait| wait.min(longest)));
        let now = self.now();
        self.endpoint.handle_timeout(now);
        self.hear();
    }

    fn hear(&mut self) {
        while let Some((id, event)) = self.endpoint.poll_event() {
            self.session = Some(id);
            self.events.push(event);
        }
    }

    fn send(&mut self) {
        let (now, mut out) = (self.now(), Vec::new());
        while let Some(transmit) = self.endpoint.poll_transmit(now, &mut out) {
            for packet in out.chunks(transmit.segment_bytes) {
                let _ = self.socket.send_to(packet, transmit.to); // Refused or dropped, it is lost.
            }
            out.clear();
        }
    }

    fn receive(&mut self, wait: Duration) {
        self.socket.set_read_timeout(Some(wait.max(Duration::from_micros(1)))).expect("a time-out can be set");
        let mut buffer = [0; 2000];
        for _ in 0..64 {
            let Ok((length, from)) = self.socket.recv_from(&mut buffer) else { break };
            let now = self.now();
            self.endpoint.handle_datagram(now, from, &mut buffer[..length]);
            self.socket.set_nonblocking(true).expect("it can be set");
        }
        self.socket.set_nonblocking(false).expect("it can be set");
    }
}

/// Our server on a thread of its own. Every stream gets back what it sends.
struct EchoServer {
    stop: Arc<AtomicBool>,
    streams: Arc<AtomicUsize>,
    read: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Ours>>,
}

impl EchoServer {
    fn start(mut ours: Ours) -> Self {
        let (stop, streams, read) = <(Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (stopped, streams_now, read_so_far) = (stop.clone(), streams.clone(), read.clone());
        let thread = thread::spawn(move || {
            let mut open = BTreeMap::new();
            while !stopped.load(Ordering::Relaxed) {
                ours.turn(Duration::from_millis(10));
                for event in ours.events.drain(..) {
                    match event {
                        Event::Opened(stream) => _ = open.insert(stream, false),
                        Event::Ended(stream) => _ = open.insert(stream, true),
                        Event::Forgotten(stream) => _ = open.remove(&stream),
                        Event::Lost(reason) => panic!("the session is lost: {reason:?}"),
                        _ => {}
                    }
                }
                let Some(session) = ours.session.and_then(|id| ours.endpoint.session(id)) else { continue };
                let bytes: usize = open.iter().map(|(stream, ended)| send_back(session, *stream, *ended)).sum();
                read_so_far.fetch_add(bytes, Ordering::Relaxed);
                streams_now.store(session.status().streams, Ordering::Relaxed);
            }
            ours
        });
        Self { stop, streams, read, thread: Some(thread) }
    }

    /// Until it has read so many bytes and all streams are gone.
    fn wait_for_the_end_after(&self, bytes: usize) {
        let now = || (self.read.load(Ordering::Relaxed), self.streams.load(Ordering::Relaxed));
        wait_until(|| now() == (bytes, 0), || format!("bytes read and streams open: {:?}", now()));
    }

    fn stop(mut self) -> Ours {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it is stopped once").join().expect("no panic")
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| _ = thread.join());
    }
}

/// What there is to read; once the stream has ended nothing can be sent back.
fn send_back(session: &mut Session, stream: StreamId, ended: bool) -> usize {
    let piece = session.peek(stream).to_vec();
    let written = session.write(stream, &piece);
    let read = if ended { piece.len() } else { written };
    session.consume(stream, read);
    read
}

/// A path to one address that loses packets both ways, as the seed has it.
struct Path {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Path {
    fn start(to: SocketAddr, lost: u64) -> Self {
        let (front, back) = (udp_socket(), udp_socket());
        let address = front.local_addr().expect("it is bound");
        let client = Arc::new(Mutex::new(to)); // Nobody hears the far end before the near one has spoken.
        let stop = Arc::new(AtomicBool::new(false));
        let [forth, other] = [(); 2].map(|()| Lossy {
            from: front.try_clone().expect("it can be cloned"),
            into: back.try_clone().expect("it can be cloned"),
            lost,
            random: Random(Random::seeded("path").next()),
            stop: stop.clone(),
        });
        let back = Lossy { from: other.into, into: other.from, ..other };
        let heard = client.clone();
        let threads = vec![
            thread::spawn(move || {
                forth.run(|from| {
                    *heard.lock().expect("not poisoned") = from;
                    to
                });
            }),
            thread::spawn(move || back.run(|_| *client.lock().expect("not poisoned"))),
        ];
        Self { address, stop, threads }
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| _ = thread.join());
    }
}

/// One direction.
struct Lossy {
    from: UdpSocket,
    into: UdpSocket,
    lost: u64,
    random: Random,
    stop: Arc<AtomicBool>,
}

impl Lossy {
    fn run(mut self, mut to: impl FnMut(SocketAddr) -> SocketAddr) {
        self.from.set_read_timeout(Some(Duration::from_millis(20))).expect("a time-out can be set");
        let mut buffer = [0; 2000];
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((length, from)) = self.from.recv_from(&mut buffer) else { continue };
            let to = to(from);
            if self.random.below(100) >= self.lost {
                let _ = self.into.send_to(&buffer[..length], to); // Refused or dropped, it is lost.
            }
        }
    }
}

/// The real client, which listens for TCP.
struct RealClient {
    process: Process,
    _path: Path,
    address: SocketAddr,
}

impl RealClient {
    fn start(case: Case, path: Path) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let mut command = real(case, "kcptun-client");
        command.args(["--localaddr", &address.to_string(), "--remoteaddr", &path.address.to_string()]);
        Self { process: Process::start(command), _path: path, address }
    }

    /// Waits until it listens.
    fn connect(&self) -> TcpStream {
        let mut connected = None;
        wait_until(
            || {
                connected = TcpStream::connect(self.address).ok();
                connected.is_some()
            },
            || "the real client does not listen".to_owned(),
        );
        let stream = connected.expect("it is connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        stream
    }
}

/// The real server, which takes what comes to a target.
struct RealServer {
    process: Process,
    path: Path,
}

impl RealServer {
    fn start(case: Case, target: SocketAddr) -> Self {
        let address = udp_socket().local_addr().expect("it is bound");
        let mut command = real(case, "kcptun-server");
        command.args(["--listen", &address.to_string(), "--target", &target.to_string()]);
        Self { process: Process::start(command), path: Path::start(address, case.lost) }
    }
}

/// With the flags that both programs have.
fn real(case: Case, program: &str) -> Command {
    let (data, parity) = case.fec.map_or((0, 0), |shape| (shape.data, shape.parity));
    let mut command = Command::new(program);
    command.args(["--key", PASSWORD, "--crypt", case.crypt, "--mode", "fast3", "--keepalive", "1"]);
    command.args(["--snmplog", "snmp.log", "--snmpperiod", "1"]);
    command.args(["--smuxver", if case.version == Version::V1 { "1" } else { "2" }]);
    command.args(["--datashard", &data.to_string(), "--parityshard", &parity.to_string()]);
    command.args((!case.compresses).then_some("--nocomp"));
    command
}

/// Ends with the test, in a directory of its own.
struct Process {
    child: Child,
    directory: tempfile::TempDir,
}

impl Process {
    fn start(mut command: Command) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = std::fs::File::create(directory.path().join("stderr")).expect("a file is made");
        command.current_dir(directory.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self { child: command.spawn().expect("it starts"), directory }
    }

    /// Packets that it says to have brought back by parity.
    fn recovered(&self) -> u64 {
        let log = std::fs::read_to_string(self.directory.path().join("snmp.log")).unwrap_or_default();
        let rows: Vec<Vec<&str>> = log.lines().map(|line| line.split(',').collect()).collect();
        let column = rows.first().and_then(|names| names.iter().position(|name| *name == "FECRecovered"));
        let last = rows.last().and_then(|row| row.get(column?)?.parse().ok());
        last.unwrap_or(0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = std::fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default();
            eprintln!("--- what kcptun said ---\n{log}");
        }
    }
}
