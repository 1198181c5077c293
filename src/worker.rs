//! A worker: one process, one thread, one runtime, one data ring.
//!
//! The supervisor starts it with a control socket as its standard input. The first message is its whole configuration, with the
//! listening sockets beside it and the secrets behind it, so that nothing secret is ever in argv or in the environment. From
//! then on the worker says that it lives, and the supervisor says when to change, to drain and to stop. When the supervisor is
//! gone the worker drains: its games go on until they end.
//!
//! The runtime does what is of low rate: orders, names, signals, time. The data plane lives in [`Tcp`], which the runtime only
//! wakes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::net::UnixDatagram;
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use crate::engine::{Engine, Kind};
use crate::proto::token::{Keyring, Secret};
use crate::tcp::names::Names;
use crate::tcp::{Settings, Tcp};
use crate::{limits, log, sys};

/// What a supervisor says. `Boot` and `Reload` are followed by one message for each secret.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Boot {
        engine: Kind,
        log: log::Settings,
        settings: Settings,
        secrets: usize,
    },
    Reload {
        settings: Settings,
        secrets: usize,
    },
    /// Accept nobody any more, and end when the last game has.
    Drain,
    /// End now.
    Stop,
}

/// What a worker says.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Report {
    /// Every listener accepts.
    Ready,
    /// Alive, with so many connections.
    Beat { connections: usize },
}

/// The life of a worker process.
#[must_use]
pub fn main() -> ExitCode {
    match boot().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "worker ends");
            ExitCode::FAILURE
        }
    }
}

struct Boot {
    control: OwnedFd,
    listeners: Vec<OwnedFd>,
    engine: Kind,
    settings: Settings,
    keys: Keyring,
}

fn boot() -> io::Result<Boot> {
    sys::process::set_name(c"gateway")?;
    sys::process::seal_memory()?;
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    let mut buffer = vec![0; limits::MESSAGE_BYTES_MAX];
    let (n, listeners) = sys::control::receive(control.as_fd(), &mut buffer)?;
    let Ok(Order::Boot { engine, log, settings, secrets }) = serde_json::from_slice(&buffer[..n]) else {
        return Err(io::Error::other("workers are started by `gateway run`, not by hand"));
    };
    log::start(log);
    let secrets = (0..secrets).map(|_| {
        let mut buffer = Zeroizing::new([0; limits::SECRET_BYTES_MAX]);
        let (n, _) = sys::control::receive(control.as_fd(), &mut buffer[..])?;
        Secret::new(buffer[..n].to_vec()).map_err(io::Error::other)
    });
    let keys = Keyring::new(secrets.collect::<io::Result<_>>()?).map_err(io::Error::other)?;
    Ok(Boot { control, listeners, engine, settings, keys })
}

fn run(boot: Boot) -> io::Result<()> {
    if boot.engine.is_uring() {
        // Without these flags every completion interrupts the thread, at up to 1.6 times the cost.
        let mut ring = tokio_uring::uring_builder();
        ring.setup_coop_taskrun().setup_single_issuer();
        tokio_uring::builder().entries(RUNTIME_RING_ENTRIES).uring_builder(&ring).start(work(boot))
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work(boot))
    }
}

/// The runtime's own ring carries what is of low rate.
const RUNTIME_RING_ENTRIES: u32 = 64;

async fn work(boot: Boot) -> io::Result<()> {
    let mut control = Control::new(boot.control)?;
    let (names, mut found) = Names::new();
    let engine = Engine::new(boot.engine, 2 * boot.settings.connections_max)?;
    let doorbell = engine.doorbell()?;
    let mut tcp = Tcp::new(engine, boot.listeners, names, boot.keys, boot.settings)?;
    tcp.turn()?; // arms the listeners
    control.report_ready().await?;

    // A terminal's Ctrl-C reaches workers too; it is the supervisor who decides what it means.
    let (_interrupt, _hangup) = (signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut heartbeat = tokio::time::interval(limits::HEARTBEAT);
    let mut alarm = Alarm::new();
    let mut draining = false;
    loop {
        let mut busy = true;
        for _ in 0..limits::TURNS_MAX {
            busy = tcp.turn()?;
            if !busy {
                break;
            }
        }
        if draining && tcp.connections() == 0 {
            return Ok(()); // closes the listeners and the ring before the process ends
        }
        tokio::select! {
            biased;
            order = control.order() => match order? {
                Some(Order::Reload { settings, secrets }) => tcp.reload(control.secrets(secrets).await?, settings),
                Some(Order::Stop) => return Ok(()),
                Some(Order::Drain | Order::Boot { .. }) | None => {
                    draining = true;
                    tcp.drain();
                }
            },
            _ = terminate.recv() => {
                draining = true;
                tcp.drain();
            }
            _ = heartbeat.tick() => control.report(Report::Beat { connections: tcp.connections() }),
            Some(found) = found.recv() => tcp.handle_found(found),
            () = alarm.ring_at(tcp.deadline()) => {}
            () = tokio::task::yield_now(), if busy => {}
            rung = doorbell.rung(), if !busy => rung?,
        }
    }
}

/// Our end of the socket to the supervisor.
struct Control {
    socket: UnixDatagram,
    buffer: Vec<u8>,
    ended: bool,
}

impl Control {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        // Whole messages on a connected socket: for the runtime that is a datagram socket.
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        let socket = UnixDatagram::from_std(socket)?;
        Ok(Self { socket, buffer: vec![0; limits::MESSAGE_BYTES_MAX], ended: false })
    }

    /// The next order; `None`, once, when the supervisor has ended. Nothing is lost when this is cancelled.
    async fn order(&mut self) -> io::Result<Option<Order>> {
        if self.ended {
            return std::future::pending().await;
        }
        match self.socket.recv(&mut self.buffer).await {
            Ok(n @ 1..) => Ok(Some(serde_json::from_slice(&self.buffer[..n])?)),
            Ok(0) | Err(_) => {
                self.ended = true;
                Ok(None)
            }
        }
    }

    async fn secrets(&mut self, count: usize) -> io::Result<Keyring> {
        let mut secrets = Vec::new();
        for _ in 0..count.min(limits::SECRETS_MAX) {
            let mut buffer = Zeroizing::new([0; limits::SECRET_BYTES_MAX]);
            let n = self.socket.recv(&mut buffer[..]).await?;
            secrets.push(Secret::new(buffer[..n].to_vec()).map_err(io::Error::other)?);
        }
        Keyring::new(secrets).map_err(io::Error::other)
    }

    /// The one report that must not be left out. (The runtime knows of room in the socket only after its first wait.)
    async fn report_ready(&self) -> io::Result<()> {
        self.socket.send(&serde_json::to_vec(&Report::Ready)?).await.map(drop)
    }

    /// A report that finds no room is left out: the next one says the same. That the supervisor has ended, `order` tells.
    fn report(&self, report: Report) {
        let message = serde_json::to_vec(&report).unwrap_or_default();
        let _ = self.socket.try_send(&message);
    }
}

/// One timer for all deadlines. Setting it costs more than ringing early, so it is moved only to earlier times.
struct Alarm {
    sleep: Pin<Box<tokio::time::Sleep>>,
    set: Option<Instant>,
}

impl Alarm {
    fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(limits::HEARTBEAT)), set: None }
    }

    async fn ring_at(&mut self, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return std::future::pending().await };
        if self.set.is_none_or(|set| deadline < set) {
            self.sleep.as_mut().reset(deadline.into());
            self.set = Some(deadline);
        }
        self.sleep.as_mut().await;
        self.set = None;
    }
}
