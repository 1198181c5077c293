//! `gateway demo`: an echo server as the game, a gateway, and players, all on loopback and in one process tree.

use std::fs;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::failure::Failure;
use super::{crypt, secret};
use crate::config::{Config, DaemonForm, Form, LogForm, SecretForm};
use crate::engine;
use crate::proto::target::Target;
use crate::proto::token::Digest;
use crate::{log, supervisor, sys};

#[derive(clap::Args)]
pub(super) struct Demo {
    /// End after so many seconds [default: at Ctrl-C]
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Data plane: io_uring, its epoll twin, or the best this host allows
    #[arg(long, value_enum, default_value_t)]
    engine: engine::Choice,
}

/// Prints a line, or ends the demo when nobody reads any more.
macro_rules! say {
    ($($line:tt)*) => { super::print(format_args!($($line)*))? };
}

/// Players of the live figures, and the pause between two messages of one: as a game would, 30 times a second.
const PLAYERS: usize = 4;
const MESSAGE_PAUSE: Duration = Duration::from_millis(33);
const MESSAGE_BYTES: usize = 64;

impl Demo {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let room = Room::new()?;
        let form = Form {
            addr: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            daemon: DaemonForm { engine: Some(self.engine), drain: "1s".parse().ok(), ..DaemonForm::default() },
            secrets: SecretForm::of_file(room.secret.clone()),
            log: LogForm { log_level: Some(log::Level::Warn), log_format: None },
            ..Form::default()
        };
        let Config { mut daemon, .. } = Config::resolve(&form)?;
        daemon.pid_file = None;
        let _logs = log::start(daemon.log);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (ready, gateway) = oneshot::channel();
            let show = self.show(&form, &room, gateway);
            let reload = || Config::resolve(&form).map(|config| config.daemon).map_err(|error| error.message);
            let daemon = supervisor::supervise(daemon, reload, |doors| {
                let _ = ready.send(doors[0].address());
            });
            let (shown, ended) = tokio::join!(show, daemon);
            if std::io::stdout().is_terminal() {
                say!(""); // the prompt goes below the figures
            }
            shown.and(ended.map_err(Failure::from))
        })
    }

    /// What the user sees. Ends with the signal that ends the gateway too.
    async fn show(&self, form: &Form, room: &Room, gateway: oneshot::Receiver<SocketAddr>) -> Result<(), Failure> {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let Ok(gateway) = gateway.await else { return Ok(()) }; // it did not start, and says why itself
        let seconds = self.seconds.map_or(Duration::MAX, Duration::from_secs);
        let told = tokio::select! {
            told = self.tell(form, room, gateway) => told,
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            () = tokio::time::sleep(seconds) => Ok(()),
        };
        let _ = raise(Signal::SIGTERM); // ends the gateway
        told
    }

    async fn tell(&self, form: &Form, room: &Room, gateway: SocketAddr) -> Result<(), Failure> {
        let backend = start_echo().await?;
        let keys = form.secrets.keyring(&SecretForm::default(), &mut Vec::new())?;
        let token = crypt::seal(&keys, &Target::Address(backend), Digest::Sha256)?;
        let (engine, _) = engine::probe(self.engine)?;
        let secret = room.secret.display();
        say!("gateway demo: a game, a gateway and players, all on this machine. Ctrl-C ends it.\n");
        say!("backend   {backend}   an echo server plays the game");
        say!("gateway   {gateway}   engine {engine}\n");
        say!("The login server makes a line that names the backend; plain openssl will do:");
        say!("  printf %s {backend} | openssl enc -aes-256-cbc -salt -a -A -md sha256 -pass file:{secret}\n");
        let mut client = TcpStream::connect(gateway).await?;
        client.set_nodelay(true)?;
        say!("line      {token}");
        let answer = join(&mut client, &token).await?;
        say!("answer    {answer}");
        say!("sent      {GREETING}");
        client.write_all(GREETING.as_bytes()).await?;
        let mut echo = vec![0; GREETING.len()];
        client.read_exact(&mut echo).await?;
        say!("echo      {}\n", String::from_utf8_lossy(&echo));
        say!("Play yourself, from another terminal:");
        say!("  (printf '%s\\n' {token}; cat) | nc {} {}\n", gateway.ip(), gateway.port());
        say!(
            "Next: `gateway secret > secret`, `gateway run --secret-file secret --addr 0.0.0.0:9000`, and the README.\n"
        );
        say!("{PLAYERS} players, {} messages a second each, live:", 1000 / MESSAGE_PAUSE.as_millis());
        drop(client);
        live(gateway, token).await
    }
}

const GREETING: &str = "hello, game";

/// Shows what players see, every second.
async fn live(gateway: SocketAddr, token: String) -> Result<(), Failure> {
    let (samples, mut taken) = mpsc::channel(PLAYERS * 64); // a second of samples; at the bound players wait
    for _ in 0..PLAYERS {
        tokio::spawn(play(gateway, token.clone(), samples.clone()));
    }
    drop(samples);
    let mut stdout = std::io::stdout();
    let mut total = 0;
    loop {
        let mut second = Vec::new();
        let until = sys::clock::now() + Duration::from_secs(1);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => break,
                sample = taken.recv() => match sample {
                    Some(sample) => second.push(sample),
                    None => return Ok(()), // every player has left
                },
            }
        }
        second.sort_unstable();
        total += second.len();
        let at = |share: usize| second.get(second.len().saturating_sub(1) * share / 100).map_or(0, Duration::as_micros);
        let (before, after) = if stdout.is_terminal() { ("\r", "   ") } else { ("", "\n") };
        let line = format!(
            "{before}  {total} round trips, {}/s; delay: median {} µs, 99 % within {} µs{after}",
            second.len(),
            at(50),
            at(99)
        );
        // Nobody reads any more: the demo is over.
        if stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            return Ok(());
        }
    }
}

/// A player: joins, then sends and waits for the echo, again and again, until something ends.
async fn play(gateway: SocketAddr, token: String, samples: mpsc::Sender<Duration>) -> std::io::Result<()> {
    let mut client = TcpStream::connect(gateway).await?;
    client.set_nodelay(true)?;
    join(&mut client, &token).await?;
    let mut message = [b'x'; MESSAGE_BYTES];
    loop {
        let sent = sys::clock::now();
        client.write_all(&message).await?;
        client.read_exact(&mut message).await?;
        if samples.send(sys::clock::now() - sent).await.is_err() {
            return Ok(());
        }
        tokio::time::sleep(MESSAGE_PAUSE).await;
    }
}

/// Sends the line and reads the answer.
async fn join(client: &mut TcpStream, token: &str) -> std::io::Result<String> {
    client.write_all(format!("{token}\n").as_bytes()).await?;
    let mut answer = [0; 3];
    client.read_exact(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn start_echo() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    Ok(address)
}

/// A directory of our own with a secret in it, gone with the demo.
struct Room {
    directory: PathBuf,
    secret: PathBuf,
}

impl Room {
    fn new() -> Result<Self, Failure> {
        let directory = std::env::temp_dir().join(format!("gateway-demo-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&directory)?; // fails if somebody has put something there
        let room = Self { secret: directory.join("secret"), directory };
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&room.secret)?;
        writeln!(file, "{}", secret::random_secret()?)?;
        Ok(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
