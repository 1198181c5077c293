//! What every test needs: a real daemon on loopback, real backends, real clients, and patience with a limit.
#![allow(dead_code, reason = "each test file uses its own part of this module")]

pub mod meeting;
pub mod tunnel;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A test that waits longer than this has failed: it is patience with a hung program, not a figure to reach.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const SECRET: &str = "p0S8rX680*48";
pub const ENGINES: [&str; 2] = ["uring", "epoll"];

/// Writes one test for each engine: `on_both_engines!(fn name(engine) { ... })`.
#[macro_export]
macro_rules! on_both_engines {
    ($(#[$meta:meta])* fn $name:ident($engine:ident) $body:block) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            fn run($engine: &str) $body
            $(#[$meta])*
            #[test]
            fn uring() { run("uring") }
            $(#[$meta])*
            #[test]
            fn epoll() { run("epoll") }
        }
    };
}

/// The program under test, not yet started. Starts in a directory of its own, where its pid file lies.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("GATEWAY_")) {
        command.env_remove(key);
    }
    command.env_remove("CREDENTIALS_DIRECTORY").env_remove("NOTIFY_SOCKET");
    command
}

/// The program at the end of another command line, which is to start it. Its environment is that of [`program`].
pub fn program_under(wrapper: &[&str]) -> Command {
    let (program, mut command) = (program(), Command::new(wrapper[0]));
    command.args(&wrapper[1..]).arg(program.get_program());
    for (key, _) in program.get_envs() {
        command.env_remove(key);
    }
    command
}

/// The program by way of a shell that runs `first`, without a variable of the test's environment.
pub fn through_shell(first: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{first}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_gateway")]).env_clear();
    command
}

/// The program without the secret file of the harness, whose first arguments are `run --secret-file FILE`.
pub fn without_secret_file() -> Command {
    through_shell("shift 3; set -- run \"$@\"")
}

/// Runs the program to its end and gives back what it said.
pub fn output(args: &[&str]) -> Output {
    program().args(args).stdin(Stdio::null()).output().expect("the program starts")
}

/// A running daemon. Dropping it kills the supervisor and its workers.
pub struct Gateway {
    pub address: SocketAddr,
    pub directory: tempfile::TempDir,
    child: Child,
    stderr: Arc<Mutex<String>>,
    workers: Vec<u32>,
}

impl Gateway {
    /// One worker on a free loopback port, with the usual secret.
    pub fn start(engine: &str) -> Self {
        Self::with(&["--engine", engine])
    }

    /// As `start`, with these flags beside `--addr`, the secret file and the log level.
    pub fn with(flags: &[&str]) -> Self {
        Self::with_command(program(), flags)
    }

    /// As `with`, from a prepared command: environment, working directory or a wrapper are the caller's.
    pub fn with_command(command: Command, flags: &[&str]) -> Self {
        Self::try_start(command, tempfile::tempdir().expect("a temporary directory"), flags)
            .unwrap_or_else(|said| panic!("the gateway did not start: {said}"))
    }

    /// Starts in `directory`, which may be shared by several daemons. `--addr 127.0.0.1:0` unless the flags say otherwise.
    pub fn try_start(mut command: Command, directory: tempfile::TempDir, flags: &[&str]) -> Result<Self, String> {
        let secret = directory.path().join("secret");
        std::fs::write(&secret, format!("{SECRET}\n")).expect("the secret is written");
        command.arg("run").arg("--secret-file").arg(&secret);
        if !flags.contains(&"--addr") {
            command.args(["--addr", "127.0.0.1:0"]);
        }
        if !flags.contains(&"--log-level") {
            command.args(["--log-level", "debug"]);
        }
        command.args(flags).current_dir(directory.path());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let (stderr, collector) = collect(child.stderr.take().expect("stderr is piped"));
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        let address = loop {
            line.clear();
            if stdout.read_line(&mut line).unwrap_or(0) == 0 {
                let status = child.wait().expect("the child can be waited for");
                collector.join().expect("the collector does not panic");
                let said = stderr.lock().expect("not poisoned").clone();
                return Err(format!("{status}: {said}"));
            }
            if let Some(address) = line.trim().strip_prefix("listening on ") {
                break address.parse().expect("an address is printed");
            }
        };
        thread::spawn(move || io::copy(&mut stdout, &mut io::sink()));
        let workers = children_of(child.id());
        Ok(Self { address, directory, child, stderr, workers })
    }

    /// Process id of the supervisor.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process ids of the workers that live now.
    pub fn workers(&self) -> Vec<u32> {
        children_of(self.child.id())
    }

    pub fn worker(&self) -> u32 {
        *self.workers().first().expect("a worker lives")
    }

    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Everything the daemon and its workers have logged so far.
    pub fn log(&self) -> String {
        self.stderr.lock().expect("not poisoned").clone()
    }

    /// Waits for the supervisor's end.
    pub fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "the gateway did not end; it said:\n{}", self.log());
            pause();
        }
    }

    pub fn running(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_none()
    }

    /// A client that has just connected and said nothing.
    pub fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    /// A client that has sent the token for `target` and has read the answer.
    pub fn ask(&self, target: &str) -> (TcpStream, String) {
        let mut client = self.connect();
        client.write_all(format!("{}\n", token(target)).as_bytes()).expect("the line is sent");
        let answer = read_answer(&mut client);
        (client, answer)
    }

    /// A client that plays with `backend`.
    pub fn play(&self, backend: SocketAddr) -> TcpStream {
        let (client, answer) = self.ask(&backend.to_string());
        assert_eq!(answer, "200", "the gateway said:\n{}", self.log());
        client
    }

    /// Waits until every connection has ended and every worker is back to `descriptors`, as `descriptors()` counted them.
    pub fn wait_for_descriptors(&self, descriptors: usize) {
        wait_until(
            || self.descriptors() <= descriptors,
            || {
                let links: Vec<_> = self.workers().into_iter().map(links).collect();
                format!("there are more than {descriptors} descriptors: {links:?}")
            },
        );
    }

    /// Open descriptors of all workers together.
    pub fn descriptors(&self) -> usize {
        self.workers().iter().map(|pid| links(*pid).len()).sum()
    }

    pub fn pid_file(&self) -> PathBuf {
        self.directory.path().join("gateway.pid")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let workers = self.workers();
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A worker whose supervisor is gone lets its games end; the test does not wait for that.
        for pid in workers.into_iter().chain(self.workers.drain(..)) {
            if std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "gateway") {
                let _ = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).stderr(Stdio::null()).status(); // or it has ended
            }
        }
        if thread::panicking() {
            eprintln!("--- what the gateway said ---\n{}", self.log());
        }
    }
}

pub fn collect(mut from: impl Read + Send + 'static) -> (Arc<Mutex<String>>, thread::JoinHandle<()>) {
    let text = Arc::new(Mutex::new(String::new()));
    let into = text.clone();
    let collector = thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            into.lock().expect("not poisoned").push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    });
    (text, collector)
}

pub fn children_of(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// What each descriptor of a process leads to; nothing when the process is gone. A worker's may be seen by root only.
pub fn links(pid: u32) -> Vec<String> {
    let entries = match std::fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => panic!("this test needs root: {error}"),
        Err(_gone) => return Vec::new(),
    };
    entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .collect()
}

/// User and system time that all threads of a process have used.
pub fn cpu_time(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let texts = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok());
    texts
        .map(|text| text.split_whitespace().next().and_then(|field| field.parse().ok()).expect("a number"))
        .map(Duration::from_nanos)
        .sum()
}

/// The share of one core that a process uses during `span`.
pub fn cpu_share(pid: u32, span: Duration) -> f64 {
    let (before, started) = (cpu_time(pid), Instant::now());
    watch(span);
    (cpu_time(pid) - before).as_secs_f64() / started.elapsed().as_secs_f64()
}

/// Resident memory of a process, bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status can be read");
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS is there");
    line.split_whitespace().nth(1).expect("a figure").parse::<u64>().expect("a number") * 1024
}

pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status().expect("kill runs");
    assert!(status.success(), "kill -s {name} {pid}");
}

/// A port for a program that must be told one: free a moment ago, for UDP and TCP. It lies below those that the kernel gives to
/// sockets without one, for whoever connects to one of those before the other end listens may reach itself, and takes the port.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() % 10_000) as u16;
    let mut ports = std::iter::repeat_with(|| 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000);
    let is_free =
        |port: &u16| UdpSocket::bind(("127.0.0.1", *port)).is_ok() && TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.by_ref().take(100).find(is_free).expect("a hundred ports in a row are taken")
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the port is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    stream.set_write_timeout(Some(PATIENCE)).expect("a time-out can be set");
    stream.set_nodelay(true).expect("nodelay can be set");
    stream
}

/// The three bytes that answer a line, or what came instead of them.
pub fn read_answer(client: &mut TcpStream) -> String {
    let mut answer = [0; 3];
    let mut n = 0;
    while n < 3 {
        match client.read(&mut answer[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return format!("{} after {n} bytes", error.kind()),
        }
    }
    String::from_utf8_lossy(&answer[..n]).into_owned()
}

/// True when a game with an echo goes on.
pub fn echoes(game: &mut TcpStream) -> bool {
    let mut heard = [0; 5];
    game.write_all(b"hello").and_then(|()| game.read_exact(&mut heard)).is_ok_and(|()| heard == *b"hello")
}

/// A game with an echo ends at the player's side: what was said before the end still comes back.
pub fn ends_half_by_half(mut game: TcpStream) {
    assert!(echoes(&mut game));
    game.write_all(b"last words").expect("it is sent");
    game.shutdown(Shutdown::Write).expect("it ends");
    assert_eq!(read_to_end(&mut game), b"last words", "what was said before the end comes back after it");
}

/// Reads to the end of the stream.
pub fn read_to_end(client: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).expect("the stream ends cleanly");
    bytes
}

/// A token for `target`, made by the library; `tests/openssl.rs` holds it against the real `openssl`.
pub fn token(target: &str) -> String {
    token_with(SECRET, target)
}

pub fn token_with(secret: &str, target: &str) -> String {
    use gateway::proto::token::{Digest, Keyring, Secret};
    let mut salt = [0; 8];
    getrandom(&mut salt);
    let keys = Keyring::new(vec![Secret::new(secret.as_bytes().to_vec()).expect("not empty")]).expect("one secret");
    keys.seal(target.as_bytes(), salt, Digest::Sha256)
}

fn getrandom(bytes: &mut [u8]) {
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(bytes)).expect("random bytes");
}

/// A backend: a listener on a free loopback port that hands each connection to `serve`, on a thread of its own.
pub fn backend(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = listen_deep();
    let address = listener.local_addr().expect("it is bound");
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            stream.set_nodelay(true).expect("nodelay can be set");
            let serve = serve.clone();
            thread::Builder::new().stack_size(256 * 1024).spawn(move || serve(stream)).expect("a thread starts");
        }
    });
    address
}

/// A backend that sends everything back and then ends.
pub fn echo_backend() -> SocketAddr {
    backend(|mut stream| {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
        let _ = stream.shutdown(Shutdown::Write);
    })
}

/// A listener with a queue for 4,096 connections; the standard library's holds 128.
pub fn listen_deep() -> TcpListener {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    socket.listen(4096).expect("it listens");
    socket.into()
}

/// An address on which nothing listens: bound, so that nobody else takes it, and never listening.
pub fn closed_port() -> (socket2::Socket, SocketAddr) {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    let address = socket.local_addr().expect("it is bound").as_socket().expect("an IP address");
    (socket, address)
}

/// A backend that never accepts: its queue is full, so the kernel drops every further SYN.
pub fn silent_backend() -> (socket2::Socket, Vec<TcpStream>, SocketAddr) {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    socket.listen(0).expect("it listens");
    let address = socket.local_addr().expect("it is bound").as_socket().expect("an IP address");
    let mut fillers = Vec::new();
    while let Ok(filler) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        fillers.push(filler);
        assert!(fillers.len() < 64, "the queue of a silent backend fills");
    }
    (socket, fillers, address)
}

/// Polls an event until it has happened; `what` says what is missing when patience ends.
pub fn wait_until(mut happened: impl FnMut() -> bool, what: impl FnOnce() -> String) {
    let started = Instant::now();
    while !happened() {
        if started.elapsed() >= PATIENCE {
            panic!("waited {PATIENCE:?} in vain: {}", what());
        }
        pause();
    }
}

/// Lets `span` pass: what must not happen has this long to happen.
pub fn watch(span: Duration) {
    let started = Instant::now();
    while let Some(left) = span.checked_sub(started.elapsed()) {
        thread::park_timeout(left);
    }
}

/// One test of a file at a time, of those that hold this: each needs most of what the machine has.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What systemd's end of `NOTIFY_SOCKET` hears, message by message.
pub struct Notified {
    socket: UnixDatagram,
    pub path: PathBuf,
}

impl Notified {
    pub fn bind(path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&path).expect("the socket is made");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        Self { socket, path }
    }

    pub fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let n = self.socket.recv(&mut buffer).expect("systemd is told");
        String::from_utf8_lossy(&buffer[..n]).trim().to_owned()
    }
}

/// Between two looks at something that tells nobody when it changes.
pub fn pause() {
    thread::park_timeout(Duration::from_millis(2));
}

/// Resets the connection instead of ending it.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger can be set");
    drop(stream);
}

/// True when the test may do what only root can; says so aloud when it may not.
pub fn root_or_skip(test: &str) -> bool {
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0);
    if !root {
        skip(test, "needs root");
    }
    root
}

/// True when `command` is installed; says so aloud when it is not.
pub fn tool_or_skip(test: &str, command: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {command}")])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        skip(test, &format!("needs the command `{command}`"));
    }
    found
}

/// Says that a test was skipped, where the test harness cannot swallow it. In CI nothing may be skipped.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test} may not be skipped in CI: {why}");
    let _ = std::fs::write("/dev/stderr", format!("SKIPPED {test}: {why}\n"));
}

/// Splitmix64: a seeded stream of numbers, so that a failure can be replayed.
pub struct Random(pub u64);

impl Random {
    /// Seeded by `GATEWAY_TEST_SEED`, else by the clock; prints the seed.
    pub fn seeded(test: &str) -> Self {
        let seed = std::env::var("GATEWAY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
            let mut bytes = [0; 8];
            getrandom(&mut bytes);
            u64::from_le_bytes(bytes)
        });
        println!("{test}: GATEWAY_TEST_SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(n).collect()
    }
}

pub fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}
