//! The supervisor: owns the listening sockets, the pid file and N workers; forwards no byte.
//!
//! 1. It finds the engine, opens one socket per worker and door, and keeps them all: a listening socket that is closed resets
//!    whoever waits in its queue, so a worker that dies leaves its queue to its successor.
//! 2. It writes the pid file, starts the workers, and says that it is ready when all of them accept.
//! 3. TERM and INT drain: the sockets are let go, games go on until they end. A second one, QUIT, or the end of the time given
//!    with `--drain` stops at once. HUP puts a new configuration in force, checked first, whole or not at all.
//!
//! Deliberately absent: what a connection or a tunnel is. Figures, and their page, are in `admin`.

mod admin;
mod listeners;
mod pid_file;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Interval;

use crate::engine::{self, Choice, Kind};
use crate::proto::target::Provided;
use crate::proto::token::Keyring;
use crate::sys::clock;
use crate::{limits, log, sys, worker};
pub use admin::Admin;
use admin::Page;
use listeners::Listeners;
use pid_file::PidFile;
use workers::{Keeper, Life, Plan, State};

/// A daemon as it is wanted.
#[derive(Debug)]
pub struct Settings {
    /// Not used when systemd has opened sockets for a gateway.
    pub doors: Vec<Door>,
    /// Share the ports with other daemons of the same user.
    pub reuse: bool,
    pub workers: usize,
    pub engine: Choice,
    /// `None` writes none.
    pub pid_file: Option<PathBuf>,
    /// `None` opens none.
    pub admin: Option<Admin>,
    /// Time that games have to end after TERM. `None`: as long as they like.
    pub drain: Option<Duration>,
    pub log: log::Settings,
    pub keys: Keyring,
    /// `own_addresses` is filled in here, and `connections_max` cut to what descriptors allow.
    pub worker: worker::Settings,
}

/// Where a daemon can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    /// TCP and UDP on this port, and UDP on the next.
    Rendezvous(SocketAddr),
    /// For players of a service who have nothing but the game.
    Exposed(Transport, SocketAddr, Provided),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Door {
    #[must_use]
    pub fn address(self) -> SocketAddr {
        match self {
            Self::Tcp(address) | Self::Udp(address) | Self::Rendezvous(address) => address,
            Self::Exposed(_, address, _) => address,
        }
    }
}

impl std::fmt::Display for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp {address}"),
            Self::Udp(address) => write!(f, "udp {address}"),
            Self::Rendezvous(address) => write!(f, "rendezvous {address}"),
            Self::Exposed(Transport::Tcp, address, _) => write!(f, "tcp {address}"),
            Self::Exposed(Transport::Udp, address, _) => write!(f, "udp {address}"),
        }
    }
}

impl Settings {
    /// What a running daemon cannot change, by key.
    fn standing(&self) -> [(&'static str, String); 8] {
        let (listening, services) = match &self.worker {
            worker::Settings::Gateway(_) => ("addr", String::new()),
            worker::Settings::Rendezvous { .. } => ("addr, rendezvous or expose", String::new()),
            worker::Settings::Tunnel(udp) => ("listening addresses", udp.outline()),
        };
        [
            (listening, format!("{:?}", self.doors)),
            ("services", services),
            ("reuse", self.reuse.to_string()),
            ("workers", self.workers.to_string()),
            ("engine", format!("{:?}", self.engine)),
            ("pid-file", format!("{:?}", self.pid_file)),
            ("admin", format!("{:?}", self.admin)),
            ("log-level or log-format", format!("{:?}", self.log)),
        ]
    }
}

/// Why a daemon did not start, or could not go on.
#[derive(Debug)]
pub enum Error {
    /// The address cannot be listened on.
    Bind {
        door: Door,
        error: io::Error,
    },
    /// The page of figures cannot be opened there.
    Admin {
        admin: Admin,
        error: io::Error,
    },
    /// The pid file is not ours to write.
    PidFile {
        path: PathBuf,
        problem: String,
    },
    /// A ring was asked for and refused.
    Engine(io::Error),
    /// A worker ended before it accepted.
    WorkerStart(ExitStatus),
    /// A worker did not accept in time.
    WorkerLate,
    Io(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Runs a daemon to its end. `reload` reads the settings again; `ready` is told the doors once every worker accepts.
///
/// # Errors
/// When it cannot start. A daemon that has started ends without an error.
pub fn run(
    settings: Settings,
    reload: impl Fn() -> Result<Settings, String>,
    ready: impl FnOnce(&[Door]),
) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(settings, reload, ready))
}

/// As [`run`], on a runtime that is there already.
///
/// # Errors
/// As [`run`].
pub async fn supervise(
    settings: Settings,
    reload: impl Fn() -> Result<Settings, String>,
    ready: impl FnOnce(&[Door]),
) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    sys::process::set_name(PROCESS_NAME)?;
    sys::process::seal_memory()?;
    let engine = find_engine(settings.engine)?;
    let listeners = Listeners::open(&settings)?;
    let (doors, own_addresses) = (listeners.doors, listeners.own_addresses);
    let _pid_file = settings.pid_file.clone().map(PidFile::register).transpose()?;
    let page = match &settings.admin {
        Some(admin) => Page::open(admin).await.map_err(|error| Error::Admin { admin: admin.clone(), error })?,
        None => None,
    };

    let (mut drain, workers, standing) = (settings.drain, settings.workers, settings.standing());
    let (orders, _) =
        watch::channel(State { life: Life::Run, plan: Arc::new(plan(settings, engine, &own_addresses)?) });
    let (started, mut starts) = mpsc::unbounded_channel(); // bounded by the workers: each tells one start
    let (mut keepers, mut askers) = (JoinSet::new(), Vec::new());
    for (number, sockets) in listeners.of_workers.into_iter().enumerate() {
        let (asker, questions) = mpsc::channel(admin::QUESTIONS_MAX);
        askers.push(asker);
        keepers.spawn(Keeper::new(number, sockets, orders.subscribe(), started.clone(), questions).keep());
    }
    let _page = page.map(|page| AbortOnDrop(tokio::spawn(page.serve(askers))));
    let set_life = |life: Life| orders.send_modify(|state| state.life = life);
    if let Err(error) = all_started(&mut starts, workers).await {
        set_life(Life::Stop);
        while keepers.join_next().await.is_some() {}
        return Err(error);
    }
    ready(&doors);
    let addresses: Vec<_> = doors.iter().map(|door| door.address()).collect();
    let (version, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
    tracing::info!(version, ?addresses, %engine, workers, pid, "gateway running");
    notify(&[NotifyState::Ready]);

    // Workers that hang are replaced by their keepers; the watchdog is told that the keepers live.
    let mut watchdog = sd_notify::watchdog_enabled().map(|timeout| tokio::time::interval(timeout / 2));
    let mut stop_at: Option<Instant> = None;
    loop {
        let life = orders.borrow().life;
        tokio::select! {
            joined = keepers.join_next() => if joined.is_none() { break },
            signal = signals.next() => match (signal, life) {
                (Told::Drain, Life::Run) => {
                    tracing::info!("draining: no new connections, running games go on; a second signal stops them");
                    notify(&[NotifyState::Stopping]);
                    stop_at = drain.map(|time| clock::now() + time);
                    set_life(Life::Drain);
                }
                (Told::Drain | Told::Stop, _) => {
                    tracing::info!("stopping now");
                    set_life(Life::Stop);
                }
                (Told::Reload, _) => {
                    notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now().unwrap_or(NotifyState::MonotonicUsec(0))]);
                    let new = reload().and_then(|new| {
                        let restart: Vec<_> = std::iter::zip(&standing, new.standing())
                            .filter(|(old, new)| **old != *new)
                            .map(|((key, _), _)| *key)
                            .collect();
                        let drain = new.drain;
                        let plan = plan(new, engine, &own_addresses).map_err(|error| error.to_string())?;
                        Ok((restart, drain, Arc::new(plan)))
                    });
                    match new {
                        Ok((restart, time, plan)) => {
                            drain = time;
                            orders.send_modify(|state| state.plan = plan);
                            tracing::info!("new configuration in force");
                            if !restart.is_empty() {
                                tracing::warn!(keys = restart.join(", "), "these changes need a restart");
                            }
                        }
                        Err(error) => tracing::error!(error, "new configuration refused; the old one stays in force"),
                    }
                    notify(&[NotifyState::Ready]);
                }
            },
            () = until(stop_at), if life == Life::Drain => {
                tracing::info!("the time for draining is over: stopping now");
                set_life(Life::Stop);
            }
            () = tick(&mut watchdog) => notify(&[NotifyState::Watchdog]),
        }
    }
    tracing::info!("gateway ended");
    Ok(())
}

/// A task that ends with whoever holds this.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How the kernel shows us, and how a pid file knows us.
const PROCESS_NAME: &std::ffi::CStr = c"gateway";

fn find_engine(choice: Choice) -> Result<Kind, Error> {
    let (engine, refusal) = engine::probe(choice).map_err(Error::Engine)?;
    if let Some(error) = refusal {
        tracing::warn!(%error, "io_uring is refused here, likely by kernel.io_uring_disabled or a seccomp profile: running on epoll");
    }
    Ok(engine)
}

/// What workers are told, with as many connections as descriptors allow.
fn plan(settings: Settings, engine: Kind, own_addresses: &[SocketAddr]) -> io::Result<Plan> {
    let descriptors = sys::process::raise_descriptor_limit()?;
    let descriptors = usize::try_from(descriptors.saturating_sub(limits::DESCRIPTORS_RESERVED)).unwrap_or(usize::MAX);
    let mut worker = settings.worker;
    match &mut worker {
        worker::Settings::Gateway(tcp) => {
            tcp.connections_max = admitted(tcp.connections_max, descriptors / 2); // the client's and the backend's
            tcp.own_addresses = own_addresses.to_vec();
        }
        worker::Settings::Rendezvous { gateway: Some(tcp), rendezvous } => {
            let peers = rendezvous.peers_max.min(descriptors / 2);
            rendezvous.peers_max = admitted(rendezvous.peers_max, peers);
            tcp.connections_max = admitted(tcp.connections_max, (descriptors - peers) / 2);
            tcp.own_addresses = own_addresses.to_vec();
        }
        worker::Settings::Rendezvous { gateway: None, rendezvous } => {
            rendezvous.peers_max = admitted(rendezvous.peers_max, descriptors);
        }
        worker::Settings::Tunnel(udp) => {
            // Players who have nothing but the game come beside the tunnels' streams, and have two each.
            let share = if udp.of_players().is_some() { descriptors / 3 } else { descriptors };
            udp.connections_max = admitted(udp.connections_max, share);
        }
    }
    Ok(Plan { engine, log: settings.log, settings: worker, keys: settings.keys })
}

/// As many connections as were asked for, if there is room for them.
fn admitted(wanted: usize, room: usize) -> usize {
    let room = room.max(1);
    let were_asked_for = wanted < usize::MAX;
    if room < wanted && (were_asked_for || room < limits::CONNECTIONS_FEW) {
        tracing::warn!(
            connections = room,
            "open files allow few connections a worker: raise ulimit -Hn, or LimitNOFILE= of the unit"
        );
    }
    wanted.min(room)
}

async fn all_started(
    starts: &mut mpsc::UnboundedReceiver<Result<(), ExitStatus>>,
    workers: usize,
) -> Result<(), Error> {
    let all = async {
        for _ in 0..workers {
            if let Some(Err(status)) = starts.recv().await {
                return Err(Error::WorkerStart(status));
            }
        }
        Ok(())
    };
    tokio::time::timeout(limits::START_TIMEOUT, all).await.map_err(|_elapsed| Error::WorkerLate)?
}

/// What a signal says.
enum Told {
    Drain,
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    /// Without a meaning here; unheard they would end the process.
    _others: [Signal; 2],
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            _others: [signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?],
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Drain,
            _ = self.interrupt.recv() => Told::Drain,
            _ = self.quit.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }
}

/// Waits for a time, or for ever.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for the next tick, or for ever.
async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

/// Tells systemd, if it is there.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}
