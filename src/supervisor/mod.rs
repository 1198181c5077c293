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
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::{self, Config};
use crate::engine::{self, Choice, Kind};
use crate::{limits, sys};
use listeners::Listeners;
use pid_file::PidFile;
use workers::{Keeper, Life, Plan, State};

/// Why a daemon did not start, or could not go on.
#[derive(Debug)]
pub enum Error {
    /// The address cannot be listened on.
    Bind { address: SocketAddr, error: io::Error },
    /// The pid file is not ours to write.
    PidFile { path: PathBuf, problem: String },
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

/// Runs a daemon to its end. `reload` reads the configuration again; `ready` is told the addresses once every worker accepts.
///
/// # Errors
/// When it cannot start. A daemon that has started ends without an error.
pub fn run(
    config: Config,
    reload: impl Fn() -> Result<Config, config::Error>,
    ready: impl FnOnce(&[SocketAddr]),
) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(config, reload, ready))
}

/// As [`run`], on a runtime that is there already.
///
/// # Errors
/// As [`run`].
pub async fn supervise(
    config: Config,
    reload: impl Fn() -> Result<Config, config::Error>,
    ready: impl FnOnce(&[SocketAddr]),
) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    sys::process::set_name(PROCESS_NAME)?;
    sys::process::seal_memory()?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let engine = find_engine(config.engine)?;
    let listeners = Listeners::open(&config.addresses, config.reuse, config.workers)?;
    let addresses = listeners.addresses.clone();
    let _pid_file = config.pid_file.clone().map(PidFile::register).transpose()?;

    let drain = config.drain;
    let workers = config.workers;
    let (orders, _) = watch::channel(State { life: Life::Run, plan: Arc::new(plan(config, engine, &addresses)?) });
    let (news, mut reports) = mpsc::unbounded_channel(); // bounded by the workers, who report one start each
    let mut keepers = JoinSet::new();
    for (number, sockets) in listeners.of_workers.into_iter().enumerate() {
        keepers.spawn(Keeper::new(number, sockets, orders.subscribe(), news.clone()).keep());
    }
    if let Err(error) = all_ready(&mut reports, workers).await {
        orders.send_modify(|state| state.life = Life::Stop);
        while keepers.join_next().await.is_some() {}
        return Err(error);
    }
    ready(&addresses);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        addresses = ?addresses,
        %engine,
        workers,
        pid = std::process::id(),
        "gateway running"
    );
    notify(&[sd_notify::NotifyState::Ready]);

    let watchdog = sd_notify::watchdog_enabled().map(|timeout| timeout / 2);
    let mut stop_at: Option<Instant> = None;
    loop {
        let life = orders.borrow().life;
        tokio::select! {
            joined = keepers.join_next() => if joined.is_none() { break },
            () = signals.drain() => match life {
                Life::Run => {
                    tracing::info!("draining: no new connections, running games go on");
                    notify(&[sd_notify::NotifyState::Stopping]);
                    stop_at = drain.map(|time| Instant::now() + time);
                    orders.send_modify(|state| state.life = Life::Drain);
                }
                Life::Drain | Life::Stop => {
                    tracing::info!("stopping now, as told twice");
                    orders.send_modify(|state| state.life = Life::Stop);
                }
            },
            _ = signals.quit.recv() => orders.send_modify(|state| state.life = Life::Stop),
            () = at(stop_at), if life == Life::Drain => {
                tracing::info!("the time for draining is over: stopping");
                orders.send_modify(|state| state.life = Life::Stop);
            }
            _ = signals.hangup.recv() => {
                notify(&[sd_notify::NotifyState::Reloading, sd_notify::NotifyState::monotonic_usec_now().unwrap_or(sd_notify::NotifyState::MonotonicUsec(0))]);
                match reload().map_err(|error| error.message).and_then(|config| {
                    plan(config, engine, &addresses).map_err(|error| error.to_string())
                }) {
                    Ok(plan) => {
                        orders.send_modify(|state| state.plan = Arc::new(plan));
                        tracing::info!("new configuration in force");
                    }
                    Err(error) => tracing::error!(error, "the new configuration is refused; the old one stays in force"),
                }
                notify(&[sd_notify::NotifyState::Ready]);
            }
            // Workers that hang are replaced by their keepers; this says that the keepers live.
            () = after(watchdog) => notify(&[sd_notify::NotifyState::Watchdog]),
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
fn plan(config: Config, engine: Kind, addresses: &[SocketAddr]) -> io::Result<Plan> {
    let descriptors = sys::process::raise_descriptor_limit()?;
    let room = descriptors.saturating_sub(limits::DESCRIPTORS_RESERVED) / DESCRIPTORS_PER_CONNECTION;
    let mut settings = config.settings;
    settings.connections_max = settings.connections_max.min(usize::try_from(room).unwrap_or(usize::MAX)).max(1);
    settings.own_addresses = addresses.to_vec();
    Ok(Plan { engine, log: config.log, settings, keys: config.keys })
}

/// The client's and the backend's.
const DESCRIPTORS_PER_CONNECTION: u64 = 2;

async fn all_ready(reports: &mut mpsc::UnboundedReceiver<Result<(), ExitStatus>>, workers: usize) -> Result<(), Error> {
    let all = async {
        for _ in 0..workers {
            if let Some(Err(status)) = reports.recv().await {
                return Err(Error::WorkerStart(status));
            }
        }
        Ok(())
    };
    tokio::time::timeout(limits::START_TIMEOUT, all).await.map_err(|_elapsed| Error::WorkerLate)?
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn drain(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn after(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

/// Tells systemd, if it is there.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}
