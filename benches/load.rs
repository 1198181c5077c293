//! The load generator: clients and their backend in one process with one thread, so that one core can be set apart for it
//! while the proxy between them has another. `scripts/bench-gateway` starts it; plain `cargo bench` prints its usage.
//!
//! Every sub-command prints one JSON object. What went wrong is counted in it under `errors`, and nothing that went wrong
//! is left out. CPU of the proxy is read from schedstat of each of its threads, kernel workers included, at the begin and
//! at the end of the measured window.
//!
//! `relay` is the yardstick: the plainest relay that is correct, on epoll, `recv` and `send`.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand, ValueEnum};
use gateway::proto::token::{Digest, Keyring, Secret};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{MsgFlags, getsockopt, recv, send, sockopt};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

/// What a bulk sender writes at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// The most chunks that a bulk sender writes before others have their turn, and that all senders together do. With a few
/// at a time the proxy is fed drop by drop, and what is measured is how often it wakes up; with too many, nobody reads.
const CHUNKS_MAX: usize = 16;
const CHUNKS_A_TURN: usize = 1024;
/// The same beside round trips: their latency must not be that of the load generator's own writing.
const MIXED_CHUNKS: usize = 1;
/// The most bytes a bulk sink takes, and the most it discards, at a time; and beside round trips.
const SINK_BYTES: usize = 1024 * 1024;
const MIXED_SINK_BYTES: usize = 64 * 1024;
/// What an echo reads at a time, and the buffer of the plain relay.
const BUFFER_BYTES: usize = 64 * 1024;
/// Bytes that one direction of the plain relay moves before others have their turn.
const RELAY_BUDGET: usize = 1024 * 1024;
/// Connections that are being opened at the same time.
const OPENING_MAX: usize = 64;
/// Time in which all connections must stand, or have ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time that connections have to end after the measurement.
const FINISH_PATIENCE: Duration = Duration::from_secs(10);
/// So many errors end a measurement.
const ERRORS_MAX: u64 = 10_000;
/// Different tokens that a run seals in advance; each has a salt of its own.
const LINES: usize = 256;
const EVENTS: usize = 512;
const BACKLOG: i32 = 4096;
/// Key of the listening socket; connections have smaller ones.
const LISTENER: u64 = u64::MAX;

#[derive(Parser)]
#[command(name = "load", about = "Load generator: clients and backend of a proxy under test", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Round trips on connections that stay, each connection a closed loop
    Pingpong {
        #[command(flatten)]
        route: Route,
        #[command(flatten)]
        window: Window,
        #[command(flatten)]
        talk: Talk,
    },
    /// Lives of connect, line, one round trip, close
    Churn {
        #[command(flatten)]
        route: Route,
        #[command(flatten)]
        window: Window,
        #[command(flatten)]
        talk: Talk,
    },
    /// Streams as fast as the path takes them
    Bulk {
        #[command(flatten)]
        route: Route,
        #[command(flatten)]
        window: Window,
        #[arg(long, default_value_t = 1)]
        connections: usize,
        #[arg(long, value_enum, default_value_t = Direction::Up)]
        direction: Direction,
    },
    /// Round trips beside unpaced streams; latency is that of the round trips
    Mixed {
        #[command(flatten)]
        route: Route,
        #[command(flatten)]
        window: Window,
        #[command(flatten)]
        talk: Talk,
        #[arg(long, default_value_t = 1)]
        streams: usize,
        #[arg(long, value_enum, default_value_t = Direction::Up)]
        direction: Direction,
    },
    /// Connections that have had one round trip and then do nothing
    Idle {
        #[command(flatten)]
        route: Route,
        #[command(flatten)]
        window: Window,
        #[arg(long, default_value_t = 10_000)]
        connections: usize,
    },
    /// Opens many connections, closes them all, and again
    Cycles {
        #[command(flatten)]
        route: Route,
        #[arg(long, value_delimiter = ',')]
        watch: Vec<u32>,
        #[arg(long, default_value_t = 10)]
        cycles: usize,
        #[arg(long, default_value_t = 5_000)]
        connections: usize,
    },
    /// The plain relay: epoll, recv and send
    Relay {
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        #[arg(long)]
        backend: SocketAddr,
    },
    /// A backend of its own that sends everything back, for clients with `--no-backend`
    Backend {
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
}

/// Round trips.
#[derive(Args)]
struct Talk {
    /// At the same time
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Of each message
    #[arg(long, default_value_t = 64)]
    bytes: usize,
}

/// From the client to the backend.
#[derive(Args)]
struct Route {
    /// The proxy; without it clients connect to the backend
    #[arg(long)]
    via: Option<SocketAddr>,
    /// Clients first send a token sealed with this file's first line, and read `200`
    #[arg(long)]
    token_secret: Option<PathBuf>,
    /// Where the tokens lead; default: to the backend
    #[arg(long)]
    target: Option<SocketAddr>,
    #[arg(long, default_value = "127.0.0.1:0")]
    backend_listen: SocketAddr,
    /// The backend is another process, at the address of `--backend-listen`
    #[arg(long)]
    no_backend: bool,
}

#[derive(Args)]
struct Window {
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Processes whose CPU and memory are read
    #[arg(long, value_delimiter = ',')]
    watch: Vec<u32>,
    /// Sleep when there is nothing to do; without it the core never idles, so that its waking up costs nobody time
    #[arg(long)]
    wait: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    Up,
    Down,
    Both,
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments.len() == 1 || arguments.iter().any(|argument| argument == "--bench") {
        println!(
            "load: started by scripts/bench-gateway; usage: load pingpong|churn|bulk|mixed|idle|cycles|relay|backend --help"
        );
        return ExitCode::SUCCESS;
    }
    let outcome = raise_descriptor_limit().and_then(|()| run(Cli::parse_from(arguments).command));
    match outcome {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", json!({ "failed": error.to_string() }));
            ExitCode::FAILURE
        }
    }
}

fn raise_descriptor_limit() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

fn run(command: Command) -> io::Result<Value> {
    match command {
        Command::Pingpong { route, window, talk } => pingpong(&route, &window, &talk),
        Command::Churn { route, window, talk } => churn(&route, &window, &talk),
        Command::Bulk { route, window, connections, direction } => bulk(&route, &window, connections, direction),
        Command::Mixed { route, window, talk, streams, direction } => mixed(&route, &window, &talk, streams, direction),
        Command::Idle { route, window, connections } => idle(&route, &window, connections),
        Command::Cycles { route, watch, cycles, connections } => cycle(&route, watch, cycles, connections),
        Command::Relay { listen, backend } => Relay::new(listen, backend)?.run(),
        Command::Backend { listen } => {
            let mut load = Load::new(Some(listen), listen, Vec::new(), 0)?;
            announce(load.backend_address)?;
            loop {
                load.turn(u16::MAX)?;
            }
        }
    }
}

fn announce(address: SocketAddr) -> io::Result<()> {
    println!("listening on {address}");
    io::stdout().flush()
}

// ---------------------------------------------------------------------------------------------------------- workloads

fn pingpong(route: &Route, window: &Window, talk: &Talk) -> io::Result<Value> {
    let mut load = route.load(talk.bytes)?;
    load.set_up(Job::Ping, talk.connections)?;
    load.start();
    let measured = load.measure(window)?;
    load.finish()?;
    let parameters = json!({ "connections": talk.connections, "bytes": talk.bytes });
    Ok(report("pingpong", parameters, &measured, &load, ("round trip", measured.tally.units as f64)))
}

fn churn(route: &Route, window: &Window, talk: &Talk) -> io::Result<Value> {
    let mut load = route.load(talk.bytes)?;
    load.started = true;
    load.to_open = talk.connections;
    let measured = load.measure(window)?;
    load.finish()?;
    let parameters = json!({ "connections": talk.connections, "bytes": talk.bytes });
    Ok(report("churn", parameters, &measured, &load, ("connection", measured.tally.units as f64)))
}

fn bulk(route: &Route, window: &Window, connections: usize, direction: Direction) -> io::Result<Value> {
    let mut load = route.load(0)?;
    load.add_streams(connections, direction)?;
    load.start();
    let measured = load.measure(window)?;
    let sunk: Vec<u64> = load.conns().filter(|conn| conn.sinks).map(|conn| conn.progress).collect();
    load.finish()?;
    let parameters = json!({ "connections": connections, "direction": direction.name() });
    let mut report = report("bulk", parameters, &measured, &load, ("GB", measured.tally.bytes as f64 / 1e9));
    report["bytes_of_a_connection"] = json!({ "least": sunk.iter().min(), "most": sunk.iter().max() });
    Ok(report)
}

fn mixed(route: &Route, window: &Window, talk: &Talk, streams: usize, direction: Direction) -> io::Result<Value> {
    let mut load = route.load(talk.bytes)?;
    load.set_up(Job::Ping, talk.connections)?;
    load.add_streams(streams, direction)?;
    load.chunks = MIXED_CHUNKS;
    load.scratch.truncate(MIXED_SINK_BYTES);
    load.start();
    let measured = load.measure(window)?;
    load.finish()?;
    let parameters = json!({
        "connections": talk.connections, "bytes": talk.bytes, "streams": streams, "direction": direction.name(),
    });
    Ok(report("mixed", parameters, &measured, &load, ("round trip", measured.tally.units as f64)))
}

fn idle(route: &Route, window: &Window, connections: usize) -> io::Result<Value> {
    let watch = Watch { pids: window.watch.clone() };
    let before = watch.holdings()?;
    let mut load = route.load(64)?;
    load.set_up(Job::Once, connections)?;
    load.expect(PATIENCE, "first round trips", |load| load.trips == connections)?;
    load.settle(&watch)?;
    let after = watch.holdings()?;
    let sit = Window { wait: true, watch: window.watch.clone(), ..*window };
    let measured = load.measure(&sit)?;
    let end = watch.holdings()?;
    load.finish()?;
    let parameters = json!({ "connections": connections });
    let mut report = report("idle", parameters, &measured, &load, ("connection", connections as f64));
    let each = |after: u64, before: u64| (after as f64 - before as f64) / connections.max(1) as f64;
    report["memory"] = json!({
        "before": before.json(), "after": after.json(), "end": end.json(),
        "bytes_a_connection": each(end.resident, before.resident),
        "descriptors_a_connection": each(end.descriptors, before.descriptors),
    });
    Ok(report)
}

fn cycle(route: &Route, watch: Vec<u32>, cycles: usize, connections: usize) -> io::Result<Value> {
    let watch = Watch { pids: watch };
    let before = watch.holdings()?;
    let began = Instant::now();
    let mut load = route.load(64)?;
    let mut after = Vec::new();
    for _ in 0..cycles {
        load.trips = 0;
        load.set_up(Job::Once, connections)?;
        load.expect(PATIENCE, "round trips of a cycle", |load| load.trips == connections)?;
        let full = watch.holdings()?;
        load.finish()?;
        load.settle(&watch)?;
        after.push(json!({ "full": full.json(), "closed": watch.holdings()?.json() }));
    }
    Ok(json!({
        "workload": "cycles",
        "parameters": { "cycles": cycles, "connections": connections },
        "seconds": began.elapsed().as_secs_f64(),
        "unit": "connection",
        "units": cycles * connections,
        "before": before.json(),
        "cycles": after,
        "errors": load.mistakes.json(),
    }))
}

fn report(name: &str, parameters: Value, measured: &Measured, load: &Load, (unit, units): (&str, f64)) -> Value {
    let (seconds, tally) = (measured.seconds, &measured.tally);
    let gigabytes = tally.bytes as f64 / 1e9;
    let cpu = measured.cpu.values().sum::<u64>() as f64;
    let per = |amount: f64, parts: f64| if parts > 0.0 { json!(amount / parts) } else { Value::Null };
    let at =
        |share: f64| if tally.latency.count > 0 { json!(tally.latency.at(share) as f64 / 1e3) } else { Value::Null };
    json!({
        "workload": name,
        "parameters": parameters,
        "seconds": seconds,
        "unit": unit,
        "units": units,
        "units_per_second": units / seconds,
        "bytes": tally.bytes,
        "gb_per_second": gigabytes / seconds,
        "cpu_ns": cpu as u64,
        "cpu_ns_of": measured.cpu,
        "cpu_ns_per_unit": per(cpu, units),
        "cpu_s_per_gb": per(cpu / 1e9, gigabytes),
        "cpu_share": cpu / 1e9 / seconds,
        "load_cpu_ns": measured.own_cpu,
        "threads": measured.threads,
        "latency_us": { "p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": at(1.0) },
        "stalled": measured.stalled,
        "congestion_control": measured.congestion_control,
        "errors": load.mistakes.json(),
    })
}

impl Route {
    fn load(&self, bytes: usize) -> io::Result<Load> {
        let listen = (!self.no_backend).then_some(self.backend_listen);
        let mut load = Load::new(listen, self.via.unwrap_or(self.backend_listen), Vec::new(), bytes)?;
        if self.via.is_none() {
            load.via = load.backend_address;
        }
        if let Some(file) = &self.token_secret {
            load.lines = lines(file, self.target.unwrap_or(load.backend_address))?;
        }
        Ok(load)
    }
}

/// Lines that lead to `target`.
fn lines(secret: &Path, target: SocketAddr) -> io::Result<Vec<Vec<u8>>> {
    let text = fs::read_to_string(secret)?;
    let secret = Secret::new(text.lines().next().unwrap_or_default().as_bytes().to_vec()).map_err(io::Error::other)?;
    let keys = Keyring::new(vec![secret]).map_err(io::Error::other)?;
    let target = target.to_string();
    let line = |_| {
        let mut salt = [0; 8];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        Ok(format!("{}\n", keys.seal(target.as_bytes(), salt, Digest::Sha256)).into_bytes())
    };
    (0..LINES).map(line).collect()
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Both => "both",
        }
    }

    /// Whether clients send, and whether the backend does.
    fn senders(self) -> (bool, bool) {
        (self != Self::Down, self != Self::Up)
    }
}

// ---------------------------------------------------------------------------------------------------------- connections

#[derive(Clone, Copy, PartialEq, Eq)]
enum Job {
    /// A client's round trips, one after another, from `start` on.
    Ping,
    /// A client's one round trip; then it closes and another life begins.
    Life,
    /// A client's one round trip; then it stays.
    Once,
    /// The backend's answer to all of these.
    Echo,
    /// Either end of a bulk stream, from `start` on.
    Stream,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Line,
    Answer,
    /// Ready for `start`.
    Waiting,
    Playing,
    /// Has had its one round trip.
    Resting,
}

struct Conn {
    socket: Socket,
    client: bool,
    job: Job,
    stage: Stage,
    /// Which line, and what came in answer to it.
    line: usize,
    answer: [u8; 3],
    /// Bytes still to be sent of the line or message, and to be read of the answer.
    unsent: usize,
    unread: usize,
    since: Instant,
    /// What an echo could not send yet.
    kept: Vec<u8>,
    sends: bool,
    sinks: bool,
    readable: bool,
    writable: bool,
    queued: bool,
    /// Round trips or bytes within the window.
    progress: u64,
}

enum Next {
    Keep,
    /// Has more to do without waiting for an event.
    Again,
    Close,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    conn: Option<Box<Conn>>,
}

#[derive(Default)]
struct Tally {
    units: u64,
    bytes: u64,
    latency: Histogram,
}

/// Everything that went wrong, from the first connection to the last end.
#[derive(Default)]
struct Mistakes {
    count: u64,
    kinds: BTreeMap<String, u64>,
}

struct Load {
    epoll: Epoll,
    events: Vec<EpollEvent>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    again: VecDeque<u64>,
    backend: Option<Socket>,
    backend_address: SocketAddr,
    via: SocketAddr,
    lines: Vec<Vec<u8>>,
    next_line: usize,
    message: Vec<u8>,
    chunk: Vec<u8>,
    scratch: Vec<u8>,
    /// The backend's first so many connections are echoes, the later ones streams.
    echoes: usize,
    direction: Direction,
    /// Chunks that each bulk sender writes at a time.
    chunks: usize,
    accepted: usize,
    ready: usize,
    /// Round trips of those that have only one.
    trips: usize,
    /// Lives that are to begin.
    to_open: usize,
    started: bool,
    /// Nothing new begins; what lives may end.
    finishing: bool,
    /// Errors are no news.
    closing: bool,
    tally: Tally,
    mistakes: Mistakes,
}

impl Load {
    /// `listen` is the backend's address, if it is this process's; clients connect to `via`.
    fn new(listen: Option<SocketAddr>, via: SocketAddr, lines: Vec<Vec<u8>>, bytes: usize) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let backend = listen.map(|address| listener(&epoll, address)).transpose()?;
        let backend_address = match &backend {
            Some(backend) => address_of(backend)?,
            None => via,
        };
        Ok(Self {
            epoll,
            events: vec![EpollEvent::empty(); EVENTS],
            slots: Vec::new(),
            free: Vec::new(),
            again: VecDeque::new(),
            backend,
            backend_address,
            via,
            lines,
            next_line: 0,
            message: vec![b'm'; bytes],
            chunk: vec![b'c'; CHUNK_BYTES],
            scratch: vec![0; SINK_BYTES],
            echoes: usize::MAX,
            direction: Direction::Up,
            chunks: CHUNKS_MAX,
            accepted: 0,
            ready: 0,
            trips: 0,
            to_open: 0,
            started: false,
            finishing: false,
            closing: false,
            tally: Tally::default(),
            mistakes: Mistakes::default(),
        })
    }

    fn conns(&self) -> impl Iterator<Item = &Conn> {
        self.slots.iter().filter_map(|slot| slot.conn.as_deref())
    }

    /// Connections that had something to do and did nothing of it within the window.
    fn stalled(&self) -> usize {
        self.conns().filter(|conn| (conn.job == Job::Ping || conn.sinks) && conn.progress == 0).count()
    }

    /// Opens `count` connections, a few at a time, and waits until all of them reach the backend.
    fn set_up(&mut self, job: Job, count: usize) -> io::Result<()> {
        let (ready, accepted) = (self.ready, self.accepted);
        let deadline = Instant::now() + PATIENCE;
        let mut opened = 0;
        loop {
            let through = if self.backend.is_some() { self.accepted - accepted } else { count };
            let stand = (self.ready - ready).min(through);
            if stand >= count {
                return Ok(());
            }
            self.fail_on_errors()?;
            if Instant::now() >= deadline {
                return Err(io::Error::other(format!("only {stand} of {count} connections stand after {PATIENCE:?}")));
            }
            while opened < count && opened - stand.min(opened) < OPENING_MAX {
                self.open(job)?;
                opened += 1;
            }
            self.turn(1)?;
        }
    }

    fn add_streams(&mut self, count: usize, direction: Direction) -> io::Result<()> {
        if self.backend.is_none() {
            return Err(io::Error::other("streams need the backend in this process"));
        }
        self.echoes = self.accepted;
        self.direction = direction;
        self.chunks = (CHUNKS_A_TURN / count.max(1)).clamp(1, CHUNKS_MAX);
        self.set_up(Job::Stream, count)
    }

    /// Lets everything that waits begin.
    fn start(&mut self) {
        self.started = true;
        for index in 0..self.slots.len() {
            let key = self.key(index);
            let Some(conn) = self.slots[index].conn.as_deref_mut().filter(|conn| conn.stage == Stage::Waiting) else {
                continue;
            };
            conn.begin(self.message.len());
            conn.queued = true;
            self.again.push_back(key);
        }
    }

    /// Warms up, then measures.
    fn measure(&mut self, window: &Window) -> io::Result<Measured> {
        let watch = Watch { pids: window.watch.clone() };
        let own = Watch { pids: vec![std::process::id()] };
        let pause = u16::from(window.wait) * 5;
        self.run_for(Duration::from_secs_f64(window.warm_up), pause)?;
        self.tally = Tally::default();
        for slot in &mut self.slots {
            if let Some(conn) = &mut slot.conn {
                conn.progress = 0;
            }
        }
        let (before, own_before, began) = (watch.cpu()?, own.cpu()?, Instant::now());
        self.run_for(Duration::from_secs_f64(window.seconds), pause)?;
        let (seconds, after, own_after) = (began.elapsed().as_secs_f64(), watch.cpu()?, own.cpu()?);
        Ok(Measured {
            seconds,
            cpu: used(&before, &after),
            own_cpu: used(&own_before, &own_after).values().sum(),
            threads: after.len(),
            tally: std::mem::take(&mut self.tally),
            stalled: self.stalled(),
            congestion_control: self.congestion_control(),
        })
    }

    /// Lets lives end, then ends everything else, so that the proxy has nothing left to do for this run.
    fn finish(&mut self) -> io::Result<()> {
        self.finishing = true;
        self.to_open = 0;
        let plays = |conn: &Conn| conn.job == Job::Life || (conn.job == Job::Ping && conn.stage == Stage::Playing);
        if !self.run_until(|load| !load.conns().any(plays))? {
            self.mistakes.add("client", &io::Error::other("a round trip did not end"));
        }
        self.closing = true; // a stream that is cut ends with errors, as it should
        self.close(|conn| conn.client || conn.job == Job::Stream);
        if !self.run_until(|load| load.conns().next().is_none())? {
            self.mistakes.add("backend", &io::Error::other("did not see the end of a connection"));
        }
        self.close(|_| true);
        (self.finishing, self.closing) = (false, false);
        Ok(())
    }

    /// False when that did not come about in time.
    fn run_until(&mut self, done: impl Fn(&Self) -> bool) -> io::Result<bool> {
        let until = Instant::now() + FINISH_PATIENCE;
        while !done(self) && Instant::now() < until {
            self.turn(1)?;
        }
        Ok(done(self))
    }

    fn run_for(&mut self, time: Duration, pause: u16) -> io::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until && self.mistakes.count < ERRORS_MAX {
            self.turn(pause)?;
        }
        Ok(())
    }

    fn expect(&mut self, patience: Duration, what: &str, done: impl Fn(&Self) -> bool) -> io::Result<()> {
        let until = Instant::now() + patience;
        while !done(self) {
            self.fail_on_errors()?;
            if Instant::now() >= until {
                return Err(io::Error::other(format!("waited {patience:?} for {what}")));
            }
            self.turn(1)?;
        }
        Ok(())
    }

    /// Waits until the watched processes have closed what they close: no change for a moment.
    fn settle(&mut self, watch: &Watch) -> io::Result<()> {
        const STEADY: Duration = Duration::from_millis(300);
        let until = Instant::now() + Duration::from_secs(10);
        let (mut last, mut since) = (watch.holdings()?.descriptors, Instant::now());
        while since.elapsed() < STEADY && Instant::now() < until {
            self.run_for(Duration::from_millis(20), 5)?;
            let now = watch.holdings()?.descriptors;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    fn fail_on_errors(&self) -> io::Result<()> {
        match self.mistakes.kinds.keys().next() {
            Some(first) => Err(io::Error::other(first.clone())),
            None => Ok(()),
        }
    }

    fn close(&mut self, which: impl Fn(&Conn) -> bool) {
        for index in 0..self.slots.len() {
            if self.slots[index].conn.as_deref().is_some_and(&which) {
                self.slots[index].conn = None;
                self.vacate(index);
            }
        }
    }

    fn vacate(&mut self, index: usize) {
        self.slots[index].generation = self.slots[index].generation.wrapping_add(1);
        self.free.push(index);
    }

    /// One look at the sockets, waiting up to `pause` milliseconds for an event, and one turn for those with more to do.
    fn turn(&mut self, pause: u16) -> io::Result<()> {
        for _ in 0..std::mem::take(&mut self.to_open) {
            if let Err(error) = self.open(Job::Life) {
                self.mistakes.add("open", &error);
                self.to_open += 1;
            }
        }
        let busy = self.to_open > 0 || !self.again.is_empty();
        let mut events = std::mem::take(&mut self.events);
        let count = match self.epoll.wait(&mut events, if busy { 0 } else { pause }) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            if event.data() == LISTENER {
                self.accept()?;
            } else {
                self.advance(event.data(), event.events());
            }
        }
        self.events = events;
        for _ in 0..self.again.len() {
            if let Some(key) = self.again.pop_front() {
                self.advance(key, EpollFlags::empty());
            }
        }
        Ok(())
    }

    fn key(&self, index: usize) -> u64 {
        u64::from(self.slots[index].generation) << 32 | index as u64
    }

    fn open(&mut self, job: Job) -> io::Result<()> {
        let since = Instant::now();
        let socket = Socket::new(Domain::for_address(self.via), Type::STREAM.nonblocking(), None)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&self.via.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(error),
            _ => {}
        }
        let mut conn = Conn::new(socket, true, job, Stage::Connecting);
        conn.since = since;
        if job == Job::Stream {
            (conn.sends, conn.sinks) = self.direction.senders();
        }
        if !self.lines.is_empty() {
            conn.line = self.next_line % self.lines.len();
            self.next_line += 1;
        }
        self.insert(conn)
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let Some(backend) = &self.backend else { return Ok(()) };
            let socket = match backend.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            let job = if self.accepted < self.echoes { Job::Echo } else { Job::Stream };
            let waits = job == Job::Stream && !self.started;
            let mut conn = Conn::new(socket, false, job, if waits { Stage::Waiting } else { Stage::Playing });
            if job == Job::Stream {
                (conn.sinks, conn.sends) = self.direction.senders();
            }
            self.accepted += 1;
            self.insert(conn)?;
        }
    }

    fn insert(&mut self, conn: Conn) -> io::Result<()> {
        let index = self.free.pop().unwrap_or(self.slots.len());
        if index == self.slots.len() {
            self.slots.push(Slot::default());
        }
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll.add(&conn.socket, EpollEvent::new(flags, self.key(index)))?;
        self.slots[index].conn = Some(Box::new(conn));
        Ok(())
    }

    fn advance(&mut self, key: u64, flags: EpollFlags) {
        let index = (key & u64::from(u32::MAX)) as usize;
        if self.key(index) != key {
            return; // it has been closed since
        }
        let Some(mut conn) = self.slots[index].conn.take() else { return };
        if flags.is_empty() {
            conn.queued = false;
        }
        let next = self.step(&mut conn, flags);
        let (life, who) = (conn.job == Job::Life, if conn.client { "client" } else { "backend" });
        match next {
            Ok(Next::Keep) => self.slots[index].conn = Some(conn),
            Ok(Next::Again) => {
                if !std::mem::replace(&mut conn.queued, true) {
                    self.again.push_back(key);
                }
                self.slots[index].conn = Some(conn);
            }
            Ok(Next::Close) | Err(_) => {
                if let Err(error) = next
                    && !self.closing
                {
                    self.mistakes.add(who, &error);
                }
                drop(conn);
                self.vacate(index);
                self.to_open += usize::from(life && !self.finishing);
            }
        }
    }

    fn step(&mut self, conn: &mut Conn, flags: EpollFlags) -> io::Result<Next> {
        let ended = flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        conn.readable |= ended || flags.contains(EpollFlags::EPOLLIN);
        conn.writable |= flags.contains(EpollFlags::EPOLLOUT);
        loop {
            match conn.stage {
                Stage::Connecting => {
                    if ended && let Some(error) = conn.socket.take_error()? {
                        return Err(error);
                    }
                    if !conn.writable {
                        return Ok(Next::Keep);
                    }
                    if self.lines.is_empty() {
                        if !self.get_ready(conn) {
                            return Ok(Next::Keep);
                        }
                    } else {
                        conn.unsent = self.lines[conn.line].len();
                        conn.stage = Stage::Line;
                    }
                }
                Stage::Line => {
                    let line = &self.lines[conn.line];
                    if let Some(n) = try_send(&conn.socket, &line[line.len() - conn.unsent..])? {
                        conn.unsent -= n;
                    }
                    if conn.unsent == 0 {
                        conn.unread = conn.answer.len();
                        conn.stage = Stage::Answer;
                    }
                    return Ok(Next::Keep); // whatever comes next is an event
                }
                Stage::Answer => {
                    let from = conn.answer.len() - conn.unread;
                    match try_recv(&conn.socket, &mut conn.answer[from..])? {
                        None => return Ok(Next::Keep),
                        Some(0) => return Err(io::Error::other("ended before its answer")),
                        Some(n) => conn.unread -= n,
                    }
                    if conn.unread > 0 {
                        continue;
                    }
                    if conn.answer != *b"200" {
                        return Err(io::Error::other(format!("answered {}", conn.answer.escape_ascii())));
                    }
                    if !self.get_ready(conn) {
                        return Ok(Next::Keep);
                    }
                }
                Stage::Waiting if ended => return Err(io::Error::other("ended before the start")),
                Stage::Waiting => return Ok(Next::Keep),
                Stage::Resting if conn.readable => {
                    conn.readable = false;
                    return match try_recv(&conn.socket, &mut self.scratch[..1])? {
                        None => Ok(Next::Keep),
                        Some(0) => Err(io::Error::other("ended while it rested")),
                        Some(_) => Err(io::Error::other("received what nobody sent")),
                    };
                }
                Stage::Resting => return Ok(Next::Keep),
                Stage::Playing => {
                    return match conn.job {
                        Job::Ping | Job::Life | Job::Once => self.round_trip(conn),
                        Job::Echo => self.echo(conn, ended),
                        Job::Stream => self.stream(conn),
                    };
                }
            }
        }
    }

    /// The connection stands. True when it may begin.
    fn get_ready(&mut self, conn: &mut Conn) -> bool {
        self.ready += 1;
        let begins = self.started || matches!(conn.job, Job::Life | Job::Once);
        conn.stage = Stage::Waiting;
        if begins {
            let since = conn.since;
            conn.begin(self.message.len());
            if conn.job == Job::Life {
                conn.since = since; // a life is timed from its connect
            }
        }
        begins
    }

    fn round_trip(&mut self, conn: &mut Conn) -> io::Result<Next> {
        if conn.unsent > 0 {
            return self.send_message(conn);
        }
        while conn.unread > 0 {
            let most = conn.unread.min(BUFFER_BYTES);
            match try_recv(&conn.socket, &mut self.scratch[..most])? {
                None => return Ok(Next::Keep),
                Some(0) => return Err(io::Error::other("ended in the middle of a round trip")),
                Some(n) => conn.unread -= n,
            }
        }
        let now = Instant::now();
        self.tally.latency.record(now - conn.since);
        self.tally.units += 1;
        conn.progress += 1;
        match conn.job {
            Job::Life => Ok(Next::Close),
            Job::Ping if self.finishing => {
                conn.stage = Stage::Resting;
                Ok(Next::Keep)
            }
            Job::Once => {
                self.trips += 1;
                conn.stage = Stage::Resting;
                conn.readable = false;
                Ok(Next::Keep)
            }
            _ => {
                (conn.unsent, conn.unread, conn.since) = (self.message.len(), self.message.len(), now);
                self.send_message(conn)
            }
        }
    }

    /// The reply is an event that is still to come, so there is no look for it here.
    fn send_message(&mut self, conn: &mut Conn) -> io::Result<Next> {
        while conn.unsent > 0 {
            match try_send(&conn.socket, &self.message[self.message.len() - conn.unsent..])? {
                None => return Ok(Next::Keep),
                Some(n) => conn.unsent -= n,
            }
        }
        Ok(Next::Keep)
    }

    fn echo(&mut self, conn: &mut Conn, ended: bool) -> io::Result<Next> {
        loop {
            while !conn.kept.is_empty() {
                match try_send(&conn.socket, &conn.kept)? {
                    None => return Ok(Next::Keep),
                    Some(n) => drop(conn.kept.drain(..n)),
                }
            }
            let n = match try_recv(&conn.socket, &mut self.scratch[..BUFFER_BYTES])? {
                None => return Ok(Next::Keep),
                Some(0) => return Ok(Next::Close),
                Some(n) => n,
            };
            let sent = try_send(&conn.socket, &self.scratch[..n])?.unwrap_or(0);
            conn.kept.extend_from_slice(&self.scratch[sent..n]);
            if n < BUFFER_BYTES && sent == n && !ended {
                return Ok(Next::Keep); // a short read has emptied the socket
            }
        }
    }

    fn stream(&mut self, conn: &mut Conn) -> io::Result<Next> {
        if conn.sends && conn.writable {
            for _ in 0..self.chunks {
                if try_send(&conn.socket, &self.chunk)?.is_none() {
                    conn.writable = false;
                    break;
                }
            }
        }
        if conn.readable {
            if !conn.sinks {
                conn.readable = false; // only an end or an error can be there
                match try_recv(&conn.socket, &mut self.scratch[..1])? {
                    None => {}
                    Some(0) => return Err(io::Error::other("a stream ended")),
                    Some(_) => return Err(io::Error::other("received what nobody sent")),
                }
            } else {
                // The kernel discards: nothing is written to the buffer.
                match attempt(recv(
                    conn.socket.as_raw_fd(),
                    &mut self.scratch,
                    MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC,
                ))? {
                    None => conn.readable = false,
                    Some(0) => return Err(io::Error::other("a stream ended")),
                    Some(n) => {
                        self.tally.bytes += n as u64;
                        conn.progress += n as u64;
                    }
                }
            }
        }
        let more = (conn.sends && conn.writable) || (conn.sinks && conn.readable);
        Ok(if more { Next::Again } else { Next::Keep })
    }

    fn congestion_control(&self) -> Option<String> {
        let name = self.conns().find_map(|conn| getsockopt(&conn.socket, sockopt::TcpCongestion).ok())?;
        Some(name.to_string_lossy().trim_end_matches('\0').to_owned())
    }
}

impl Conn {
    fn new(socket: Socket, client: bool, job: Job, stage: Stage) -> Self {
        Self {
            socket,
            client,
            job,
            stage,
            line: 0,
            answer: [0; 3],
            unsent: 0,
            unread: 0,
            since: Instant::now(),
            kept: Vec::new(),
            sends: false,
            sinks: false,
            readable: false,
            writable: false,
            queued: false,
            progress: 0,
        }
    }

    fn begin(&mut self, message: usize) {
        self.stage = Stage::Playing;
        (self.readable, self.writable) = (true, true);
        if self.client && self.job != Job::Stream {
            (self.unsent, self.unread, self.since) = (message, message, Instant::now());
        }
    }
}

/// `None` when the socket would block.
fn attempt(outcome: nix::Result<usize>) -> io::Result<Option<usize>> {
    match outcome {
        Ok(n) => Ok(Some(n)),
        Err(Errno::EAGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn try_recv(socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    attempt(recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT))
}

fn try_send(socket: &Socket, bytes: &[u8]) -> io::Result<Option<usize>> {
    attempt(send(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL))
}

/// Accepted sockets inherit NODELAY.
fn listener(epoll: &Epoll, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    let cannot = |error: io::Error| io::Error::other(format!("cannot listen on {address}: {error}"));
    socket.bind(&address.into()).and_then(|()| socket.listen(BACKLOG)).map_err(cannot)?;
    epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, LISTENER))?;
    Ok(socket)
}

fn address_of(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("no IP address"))
}

impl Mistakes {
    fn add(&mut self, who: &str, error: &io::Error) {
        self.count += 1;
        *self.kinds.entry(format!("{who}: {error}")).or_default() += 1;
    }

    fn json(&self) -> Value {
        json!({ "count": self.count, "kinds": self.kinds, "gave_up": self.count >= ERRORS_MAX })
    }
}

// ---------------------------------------------------------------------------------------------------------- the watched

struct Measured {
    seconds: f64,
    /// Nanoseconds on a core, of each watched process.
    cpu: BTreeMap<u32, u64>,
    own_cpu: u64,
    threads: usize,
    tally: Tally,
    stalled: usize,
    congestion_control: Option<String>,
}

/// Nanoseconds on a core, of each thread.
type Cpu = BTreeMap<(u32, u32), u64>;

struct Watch {
    pids: Vec<u32>,
}

struct Holdings {
    resident: u64,
    descriptors: u64,
}

impl Holdings {
    fn json(&self) -> Value {
        json!({ "resident_bytes": self.resident, "descriptors": self.descriptors })
    }
}

impl Watch {
    fn cpu(&self) -> io::Result<Cpu> {
        let mut cpu = Cpu::new();
        for &pid in &self.pids {
            for entry in fs::read_dir(format!("/proc/{pid}/task")).map_err(|error| gone(pid, &error))? {
                let path = entry?.path();
                let thread = path.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or_default();
                // A thread may end between the two looks.
                let Ok(text) = fs::read_to_string(path.join("schedstat")) else { continue };
                let time = text.split_whitespace().next().and_then(|field| field.parse().ok());
                cpu.insert((pid, thread), time.ok_or_else(|| io::Error::other("schedstat has an unknown form"))?);
            }
        }
        Ok(cpu)
    }

    fn holdings(&self) -> io::Result<Holdings> {
        let mut holdings = Holdings { resident: 0, descriptors: 0 };
        for &pid in &self.pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|error| gone(pid, &error))?;
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kibibytes: Option<u64> = resident.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            holdings.resident += kibibytes.unwrap_or(0) * 1024;
            holdings.descriptors += fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
        }
        Ok(holdings)
    }
}

fn gone(pid: u32, error: &io::Error) -> io::Error {
    io::Error::other(format!("watched process {pid}: {error}"))
}

/// What the threads of each process have used in between; a thread that was not there before began at nothing.
fn used(before: &Cpu, after: &Cpu) -> BTreeMap<u32, u64> {
    let mut used = BTreeMap::new();
    for (thread, time) in after {
        *used.entry(thread.0).or_default() += time.saturating_sub(before.get(thread).copied().unwrap_or(0));
    }
    used
}

/// Latencies in buckets that grow with the value: 64 for each power of two, so a figure is off by at most 1.6 %.
struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

const BUCKET_BITS: u32 = 6;

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; (64 - BUCKET_BITS as usize + 1) << BUCKET_BITS], count: 0 }
    }
}

impl Histogram {
    fn record(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(nanoseconds)] += 1;
        self.count += 1;
    }

    fn bucket(value: u64) -> usize {
        let shift = (u64::BITS - value.leading_zeros()).saturating_sub(BUCKET_BITS + 1);
        ((shift as usize) << BUCKET_BITS) + (value >> shift) as usize
    }

    /// The middle of a bucket.
    fn value(bucket: usize) -> u64 {
        let shift = (bucket >> BUCKET_BITS).saturating_sub(1) as u32;
        let base = (bucket - ((shift as usize) << BUCKET_BITS)) as u64;
        (base << shift) + (1 << shift) / 2
    }

    /// The value that this share of all stays at or below, nanoseconds.
    fn at(&self, share: f64) -> u64 {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map_or(0, Self::value)
    }
}

// ---------------------------------------------------------------------------------------------------------- the yardstick

struct Relay {
    epoll: Epoll,
    listener: Socket,
    backend: SocketAddr,
    pairs: Vec<Option<Box<Pair>>>,
    free: Vec<usize>,
    again: VecDeque<usize>,
    buffer: Vec<u8>,
}

/// Client and backend, and what flows from each.
struct Pair {
    ends: [End; 2],
    queued: bool,
}

struct End {
    socket: Socket,
    readable: bool,
    writable: bool,
    hung_up: bool,
    /// Nothing more comes from here, and the peer has been told.
    ended: bool,
    passed_on: bool,
    /// What this end's peer could not take yet.
    kept: Vec<u8>,
}

impl Relay {
    fn new(listen: SocketAddr, backend: SocketAddr) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let listener = listener(&epoll, listen)?;
        let buffer = vec![0; BUFFER_BYTES];
        Ok(Self { epoll, listener, backend, pairs: Vec::new(), free: Vec::new(), again: VecDeque::new(), buffer })
    }

    fn run(mut self) -> io::Result<Value> {
        announce(address_of(&self.listener)?)?;
        let mut events = vec![EpollEvent::empty(); EVENTS];
        loop {
            let count = match self.epoll.wait(&mut events, if self.again.is_empty() { u16::MAX } else { 0 }) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..count] {
                if event.data() == LISTENER {
                    self.accept()?;
                    continue;
                }
                let (index, end) = ((event.data() >> 1) as usize, (event.data() & 1) as usize);
                if let Some(pair) = &mut self.pairs[index] {
                    pair.ends[end].note(event.events());
                    self.serve(index);
                }
            }
            for _ in 0..self.again.len() {
                let Some(index) = self.again.pop_front() else { break };
                if let Some(pair) = &mut self.pairs[index] {
                    pair.queued = false;
                    self.serve(index);
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let client = match self.listener.accept() {
                Ok((client, _)) => client,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            let backend = Socket::new(Domain::for_address(self.backend), Type::STREAM.nonblocking(), None)?;
            backend.set_tcp_nodelay(true)?;
            match backend.connect(&self.backend.into()) {
                Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => {
                    reset(&client);
                    continue;
                }
                _ => {}
            }
            let index = self.free.pop().unwrap_or(self.pairs.len());
            if index == self.pairs.len() {
                self.pairs.push(None);
            }
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
            self.epoll.add(&client, EpollEvent::new(flags, (index << 1) as u64))?;
            self.epoll.add(&backend, EpollEvent::new(flags, (index << 1 | 1) as u64))?;
            self.pairs[index] = Some(Box::new(Pair { ends: [End::new(client), End::new(backend)], queued: false }));
        }
    }

    fn serve(&mut self, index: usize) {
        let Some(pair) = &mut self.pairs[index] else { return };
        let [client, backend] = &mut pair.ends;
        let outcome = flow(client, backend, &mut self.buffer).and_then(|up| {
            let down = flow(backend, client, &mut self.buffer)?;
            Ok(up || down)
        });
        match outcome {
            Ok(_) if client.passed_on && backend.passed_on => {}
            Ok(more) => {
                if more && !std::mem::replace(&mut pair.queued, true) {
                    self.again.push_back(index);
                }
                return;
            }
            Err(_) => pair.ends.iter().for_each(|end| reset(&end.socket)),
        }
        self.pairs[index] = None;
        self.free.push(index);
    }
}

/// Moves what it can from one end to the other. True when the budget ended it.
fn flow(from: &mut End, to: &mut End, buffer: &mut [u8]) -> io::Result<bool> {
    if from.passed_on {
        return Ok(false);
    }
    let mut moved = 0;
    loop {
        if !from.kept.is_empty() {
            if !to.writable {
                return Ok(false);
            }
            match try_send(&to.socket, &from.kept)? {
                None => to.writable = false,
                Some(n) => drop(from.kept.drain(..n)),
            }
            continue;
        }
        if from.ended {
            to.socket.shutdown(Shutdown::Write)?;
            from.passed_on = true;
            return Ok(false);
        }
        if !from.readable {
            return Ok(false);
        }
        if moved >= RELAY_BUDGET {
            return Ok(true);
        }
        match try_recv(&from.socket, buffer)? {
            None => from.readable = false,
            Some(0) => from.ended = true,
            Some(n) => {
                moved += n;
                // A short read has emptied the socket, unless its end is behind it.
                from.readable = n == buffer.len() || from.hung_up;
                let sent = try_send(&to.socket, &buffer[..n])?.unwrap_or(0);
                if sent < n {
                    to.writable = false;
                    from.kept.extend_from_slice(&buffer[sent..n]);
                }
            }
        }
    }
}

fn reset(socket: &Socket) {
    // If this fails it is an orderly end instead of a reset.
    let _ = socket.set_linger(Some(Duration::ZERO));
}

impl End {
    fn new(socket: Socket) -> Self {
        Self {
            socket,
            readable: false,
            writable: false,
            hung_up: false,
            ended: false,
            passed_on: false,
            kept: Vec::new(),
        }
    }

    fn note(&mut self, flags: EpollFlags) {
        let hung_up = flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        self.hung_up |= hung_up;
        self.readable |= hung_up || flags.contains(EpollFlags::EPOLLIN);
        self.writable |= flags.contains(EpollFlags::EPOLLOUT);
    }
}
