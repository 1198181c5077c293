//! The supervisor: owns the listening sockets, the pid file and N workers; forwards no byte.
//!
//! 1. It finds the engine, opens one listening socket per worker and address, and keeps them all: a socket that is closed
//!    resets whoever waits in its queue, so a worker that dies leaves its queue to its successor.
//! 2. It writes the pid file, starts the workers, and says that it is ready when all of them accept.
//! 3. TERM and INT drain: the sockets are let go, games go on until they end. A second one, QUIT, or the end of the time given
//!    with `--drain` stops at once. HUP puts a new configuration in force, checked first, whole or not at all.
//!
//! Deliberately absent: what a connection is. Figures and their page will live beside this, in `supervisor/admin`.

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
use tokio::task::JoinSet;
use tokio::time::Interval;

use crate::engine::{self, Choice, Kind};
use crate::proto::token::Keyring;
use crate::sys::clock;
use crate::{limits, log, sys, tcp};
use listeners::Listeners;
use pid_file::PidFile;
use workers::{Keeper, Life, Plan, State};

/// A daemon as it is wanted.
#[derive(Debug)]
pub struct Settings {
    /// Not used when systemd has opened sockets for us.
    pub addresses: Vec<SocketAddr>,
    /// Share the ports with other daemons of the same user.
    pub reuse: bool,
    pub workers: usize,
    pub engine: Choice,
    /// `None` writes none.
    pub pid_file: Option<PathBuf>,
    /// Time that games have to end after TERM. `None`: as long as they like.
    pub drain: Option<Duration>,
    pub log: log::Settings,
    pub keys: Keyring,
    /// `own_addresses` is filled in here, and `connections_max` cut to what descriptors allow.
    pub tcp: tcp::Settings,
}

impl Settings {
    /// What a running daemon cannot change, by key.
    fn standing(&self) -> [(&'static str, String); 6] {
        [
            ("addr", format!("{:?}", self.addresses)),
            ("reuse", self.reuse.to_string()),
            ("workers", self.workers.to_string()),
            ("engine", format!("{:?}", self.engine)),
            ("pid-file", format!("{:?}", self.pid_file)),
            ("log-level or log-format", format!("{:?}", self.log)),
        ]
    }
}

/// Why a daemon did not start, or could not go on.
#[derive(Debug)]
pub enum Error {
    /// The address cannot be listened on.
    Bind {
        address: SocketAddr,
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

/// Runs a daemon to its end. `reload` reads the settings again; `ready` is told the addresses once every worker accepts.
///
/// # Errors
/// When it cannot start. A daemon that has started ends without an error.
pub fn run(
    settings: Settings,
    reload: impl Fn() -> Result<Settings, String>,
    ready: impl FnOnce(&[SocketAddr]),
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
    ready: impl FnOnce(&[SocketAddr]),
) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    sys::process::set_name(PROCESS_NAME)?;
    sys::process::seal_memory()?;
    let engine = find_engine(settings.engine)?;
    let listeners = Listeners::open(&settings.addresses, settings.reuse, settings.workers)?;
    let (addresses, own_addresses) = (listeners.addresses, listeners.own_addresses);
    let _pid_file = settings.pid_file.clone().map(PidFile::register).transpose()?;

    let (mut drain, workers, standing) = (settings.drain, settings.workers, settings.standing());
    let (orders, _) =
        watch::channel(State { life: Life::Run, plan: Arc::new(plan(settings, engine, &own_addresses)?) });
    let (started, mut starts) = mpsc::unbounded_channel(); // bounded by the workers: each tells one start
    let mut keepers = JoinSet::new();
    for (number, sockets) in listeners.of_workers.into_iter().enumerate() {
        keepers.spawn(Keeper::new(number, sockets, orders.subscribe(), started.clone()).keep());
    }
    let set_life = |life: Life| orders.send_modify(|state| state.life = life);
    if let Err(error) = all_started(&mut starts, workers).await {
        set_life(Life::Stop);
        while keepers.join_next().await.is_some() {}
        return Err(error);
    }
    ready(&addresses);
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
    let room = descriptors.saturating_sub(limits::DESCRIPTORS_RESERVED) / DESCRIPTORS_PER_CONNECTION;
    let room = usize::try_from(room).unwrap_or(usize::MAX).max(1);
    let mut tcp = settings.tcp;
    let were_asked_for = tcp.connections_max < usize::MAX;
    if room < tcp.connections_max && (were_asked_for || room < limits::CONNECTIONS_FEW) {
        tracing::warn!(
            descriptors,
            connections = room,
            "open files allow few connections a worker: raise ulimit -Hn, or LimitNOFILE= of the unit"
        );
    }
    tcp.connections_max = tcp.connections_max.min(room);
    tcp.own_addresses = own_addresses.to_vec();
    Ok(Plan { engine, log: settings.log, settings: tcp, keys: settings.keys })
}

/// The client's and the backend's.
const DESCRIPTORS_PER_CONNECTION: u64 = 2;

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
