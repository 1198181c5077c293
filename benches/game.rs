//! A game between real processes: messages of 64 bytes, 60 a second from both ends, over TCP or UDP; and the bad path that the
//! datagrams of a tunnel take. `scripts/bench-tunnel-processes` starts both; plain `cargo bench` prints the usage.
//!
//! Players and their service are one process, so that one clock times a message from its writing to its reading: one way, as on
//! the virtual network of `tunnel.rs`. Nobody waits for an answer, as nobody does in a game: what is late delays no other message
//! but those behind it in its stream. Beside them may run streams that take what they get.
//!
//! The path is two sockets and, for each direction, a thread that loses or delays what arrives and one that sends it on.
//! Not here: CPU, which the script reads, and round trips one after the other, which are those of `load.rs`.

#![expect(
    clippy::disallowed_methods,
    reason = "to wait for a moment is what a beat and a path do, on threads of their own"
)]

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Parser, ValueEnum};
use serde_json::{Value, json};

const MESSAGE_BYTES: usize = 64;
const CHUNK_BYTES: usize = 64 << 10;
/// All players must have come within that time.
const PATIENCE: Duration = Duration::from_secs(15);
/// What is under way at the end may still arrive.
const REST: Duration = Duration::from_secs(2);
/// Datagrams that wait on the path at most: a second of a fast one.
const QUEUE_MAX: usize = 1 << 16;
/// What a datagram over Ethernet has around it: IP, UDP.
const HEADERS_BYTES: usize = 28;

#[derive(Parser)]
#[command(name = "game", about = "A game, and a path that loses packets", version)]
enum Cli {
    /// Players at one end of a tunnel and their service at the other
    Play(Play),
    /// Forwards datagrams between a visitor and a provider
    Path(Path),
}

#[derive(Args)]
struct Play {
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    transport: Transport,
    /// Where players connect to
    #[arg(long)]
    via: SocketAddr,
    /// Where the service listens
    #[arg(long)]
    service: SocketAddr,
    #[arg(long, default_value_t = 1)]
    players: usize,
    /// Streams from the service that take what they get; TCP only
    #[arg(long, default_value_t = 0)]
    streams: usize,
    /// Messages a second, of each player and to each
    #[arg(long, default_value_t = 60.0)]
    hertz: f64,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    Tcp,
    Udp,
}

#[derive(Args)]
struct Path {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    to: SocketAddr,
    /// Each way
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// In percent, each way
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// Each way; what would wait longer than `--queue-ms` is lost. 0: no limit
    #[arg(long, default_value_t = 0.0)]
    mbit: f64,
    #[arg(long, default_value_t = 200)]
    queue_ms: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments.len() == 1 || arguments.iter().any(|argument| argument == "--bench") {
        println!("game: started by scripts/bench-tunnel-processes; usage: game play|path --help");
        return ExitCode::SUCCESS;
    }
    let outcome = match Cli::parse_from(arguments) {
        Cli::Play(play) => play.run(),
        Cli::Path(path) => path.run(),
    };
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

// ---------------------------------------------------------------------------------------------------------------- the game

/// What all threads note. Times are µs since `began`; what was sent before `warm` or after `end` does not count.
struct Notes {
    began: Instant,
    warm: AtomicU64,
    end: AtomicU64,
    sent: AtomicU64,
    /// From writing to reading, µs.
    delays: Mutex<Vec<u64>>,
    streamed: AtomicU64,
}

/// One end of one player's game, to write to.
enum End {
    Tcp(TcpStream),
    Udp(Arc<UdpSocket>, SocketAddr),
}

impl Play {
    fn run(&self) -> io::Result<Value> {
        let notes = Arc::new(Notes {
            began: Instant::now(),
            warm: AtomicU64::new(u64::MAX),
            end: AtomicU64::new(u64::MAX),
            sent: AtomicU64::new(0),
            delays: Mutex::default(),
            streamed: AtomicU64::new(0),
        });
        let [players, service] = match self.transport {
            Transport::Tcp => self.connect(&notes)?,
            Transport::Udp => self.greet(&notes)?,
        };
        let warm = notes.now() + (self.warm_up * 1e6) as u64;
        notes.warm.store(warm, Relaxed);
        notes.end.store(warm + (self.seconds * 1e6) as u64, Relaxed);
        let beats = [players, service].map(|ends| {
            let (notes, period) = (Arc::clone(&notes), Duration::from_secs_f64(1.0 / self.hertz));
            thread::spawn(move || notes.beat(ends, period))
        });
        for beat in beats {
            beat.join().map_err(|_| io::Error::other("a sender panicked"))??;
        }
        let streamed = notes.streamed.load(Relaxed);
        thread::sleep(REST);
        Ok(self.report(&notes, streamed))
    }

    fn connect(&self, notes: &Arc<Notes>) -> io::Result<[Vec<End>; 2]> {
        let listener = TcpListener::bind(self.service)?;
        let (accepted, service) = mpsc::channel();
        let serving = Arc::clone(notes);
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (notes, accepted) = (Arc::clone(&serving), accepted.clone());
                thread::spawn(move || notes.serve(socket, &accepted));
            }
        });
        let mut players = Vec::new();
        for number in 0..self.players + self.streams {
            let mut socket = TcpStream::connect(self.via)?;
            socket.set_nodelay(true)?;
            let plays = number < self.players;
            socket.write_all(&[u8::from(plays)])?;
            let reading = socket.try_clone()?;
            let notes = Arc::clone(notes);
            thread::spawn(move || if plays { notes.read_messages(reading) } else { notes.read_stream(reading) });
            if plays {
                players.push(End::Tcp(socket));
            }
        }
        let late = |_| io::Error::other("not all players reached the service");
        let wait = |_| service.recv_timeout(PATIENCE).map(End::Tcp).map_err(late);
        Ok([players, (0..self.players).map(wait).collect::<io::Result<_>>()?])
    }

    fn greet(&self, notes: &Arc<Notes>) -> io::Result<[Vec<End>; 2]> {
        let service = Arc::new(UdpSocket::bind(self.service)?);
        let known = Arc::new(Mutex::new(BTreeSet::new()));
        let (reading, met, serving) = (Arc::clone(&service), Arc::clone(&known), Arc::clone(notes));
        thread::spawn(move || {
            serving.read_datagrams(&reading, |from| {
                met.lock().expect("not poisoned").insert(from);
            });
        });
        let mut players = Vec::new();
        for _ in 0..self.players {
            let socket = Arc::new(UdpSocket::bind((self.via.ip(), 0))?);
            let (reading, notes) = (Arc::clone(&socket), Arc::clone(notes));
            thread::spawn(move || notes.read_datagrams(&reading, |_| {}));
            players.push(End::Udp(socket, self.via));
        }
        let until = Instant::now() + PATIENCE;
        while known.lock().expect("not poisoned").len() < self.players {
            if Instant::now() >= until {
                return Err(io::Error::other("not all players reached the service"));
            }
            players.iter_mut().try_for_each(|player| player.send(&[0; MESSAGE_BYTES]))?;
            thread::sleep(Duration::from_millis(100));
        }
        let known = known.lock().expect("not poisoned");
        Ok([players, known.iter().map(|player| End::Udp(Arc::clone(&service), *player)).collect()])
    }

    fn report(&self, notes: &Notes, streamed: u64) -> Value {
        let mut delays = notes.delays.lock().expect("not poisoned").clone();
        delays.sort_unstable();
        let sent = notes.sent.load(Relaxed);
        let at = |share: f64| delays.get(((delays.len() as f64 * share).ceil() as usize).max(1) - 1);
        json!({
            "seconds": self.seconds,
            "messages": sent,
            "messages_per_second": sent as f64 / self.seconds,
            "lost": sent.saturating_sub(delays.len() as u64),
            "delay_us": { "p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": delays.last() },
            "stream_mbit": streamed as f64 * 8e-6 / self.seconds,
        })
    }
}

impl Notes {
    fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    fn counts(&self, time: u64) -> bool {
        (self.warm.load(Relaxed)..self.end.load(Relaxed)).contains(&time)
    }

    /// Sends to each end once in a period, evenly, until the end.
    fn beat(&self, mut ends: Vec<End>, period: Duration) -> io::Result<()> {
        let (count, begin) = (ends.len(), Instant::now());
        for turn in 0.. {
            let at = Duration::from_secs_f64(period.as_secs_f64() * f64::from(turn) / count as f64);
            thread::sleep((begin + at).saturating_duration_since(Instant::now()));
            let now = self.now();
            if now >= self.end.load(Relaxed) {
                break;
            }
            let mut message = [b'm'; MESSAGE_BYTES];
            message[..8].copy_from_slice(&now.to_le_bytes());
            self.sent.fetch_add(self.counts(now).into(), Relaxed);
            ends[turn as usize % count].send(&message)?;
        }
        Ok(())
    }

    fn note(&self, message: &[u8; MESSAGE_BYTES]) {
        let (stamp, now) = (u64::from_le_bytes(message[..8].try_into().expect("eight bytes")), self.now());
        if self.counts(stamp) {
            self.delays.lock().expect("not poisoned").push(now - stamp);
        }
    }

    fn read_messages(&self, mut socket: TcpStream) {
        let mut message = [0; MESSAGE_BYTES];
        while socket.read_exact(&mut message).is_ok() {
            self.note(&message);
        }
    }

    fn read_datagrams(&self, socket: &UdpSocket, mut met: impl FnMut(SocketAddr)) {
        let mut message = [0; MESSAGE_BYTES];
        // An error is that of one datagram: nobody listens yet.
        loop {
            if let Ok((_, from)) = socket.recv_from(&mut message) {
                met(from);
                self.note(&message);
            }
        }
    }

    fn read_stream(&self, mut socket: TcpStream) {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(read) = socket.read(&mut chunk)
            && read > 0
        {
            if self.counts(self.now()) {
                self.streamed.fetch_add(read as u64, Relaxed);
            }
        }
    }

    /// The first byte says whether this is a player or one who takes a stream.
    fn serve(&self, mut socket: TcpStream, accepted: &mpsc::Sender<TcpStream>) {
        let mut kind = [0];
        if socket.set_nodelay(true).and_then(|()| socket.read_exact(&mut kind)).is_err() {
            return;
        }
        if kind == [1] {
            let Ok(writing) = socket.try_clone() else { return };
            if accepted.send(writing).is_ok() {
                self.read_messages(socket);
            }
        } else {
            let chunk = vec![b'c'; CHUNK_BYTES];
            while socket.write_all(&chunk).is_ok() {}
        }
    }
}

impl End {
    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.write_all(message),
            Self::Udp(socket, to) => socket.send_to(message, *to).map(drop),
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------- the path

impl Path {
    fn run(&self) -> io::Result<Value> {
        let outer = Arc::new(socket(self.listen)?);
        let inner = Arc::new(socket(SocketAddr::new(self.to.ip(), 0))?);
        inner.connect(self.to)?;
        println!("listening on udp {}", outer.local_addr()?);
        io::stdout().flush()?;
        let visitor = Arc::new(Mutex::new(None));
        let back = Arc::clone(&visitor);
        let (from, to) = (Arc::clone(&outer), Arc::clone(&inner));
        let there = self.carry(1, from, Arc::clone(&visitor), move |datagram| drop(to.send(datagram)));
        self.carry(2, inner, Arc::default(), move |datagram| {
            if let Some(visitor) = *back.lock().expect("not poisoned") {
                drop(outer.send_to(datagram, visitor));
            }
        });
        drop(there.join());
        Ok(Value::Null)
    }

    /// One way. Whoever sent last is left in `sender`. A datagram that cannot be sent is lost, as any may be.
    fn carry(
        &self,
        way: u64,
        from: Arc<UdpSocket>,
        sender: Arc<Mutex<Option<SocketAddr>>>,
        send: impl Fn(&[u8]) + Send + 'static,
    ) -> thread::JoinHandle<()> {
        let (taken, due) = mpsc::sync_channel::<(Instant, Vec<u8>)>(QUEUE_MAX);
        thread::spawn(move || {
            for (at, datagram) in due {
                thread::sleep(at.saturating_duration_since(Instant::now()));
                send(&datagram);
            }
        });
        let (delay, loss) = (Duration::from_millis(self.delay_ms), self.loss / 100.0);
        let (mbit, queue) = (self.mbit, Duration::from_millis(self.queue_ms));
        let mut random = (self.seed << 2 | way).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        thread::spawn(move || {
            let mut free = Instant::now();
            let mut buffer = vec![0; 1 << 16];
            loop {
                let Ok((length, address)) = from.recv_from(&mut buffer) else { continue };
                let now = Instant::now();
                *sender.lock().expect("not poisoned") = Some(address);
                let begin = free.max(now);
                if begin - now > queue {
                    continue;
                }
                if mbit > 0.0 {
                    free = begin + Duration::from_secs_f64((length + HEADERS_BYTES) as f64 * 8e-6 / mbit);
                }
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let is_lost = (random >> 11) as f64 / (1u64 << 53) as f64 <= loss && loss > 0.0;
                if !is_lost {
                    drop(taken.try_send((free.max(now) + delay, buffer[..length].to_vec())));
                }
            }
        })
    }
}

/// The kernel's own limit would lose what a burst brings.
fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20)?;
    Ok(socket)
}
