//! A worker: one process, one thread, one runtime, one data ring.
//!
//! The supervisor starts it with a control socket as its standard input. The first message is its whole configuration, with the
//! listening sockets beside it and the secrets behind it, so that nothing secret is ever in argv or in the environment. From
//! then on the worker says that it lives, and the supervisor says when to change, to drain and to stop. When the supervisor is
//! gone the worker drains: its games go on until they end, or until it gets a TERM, which then means what a second one means.
//!
//! The runtime does what is of low rate: orders, names, signals, time. The data plane, [`crate::tcp::Tcp`] or
//! [`crate::udp::Udp`], is only woken by it.

mod plane;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixDatagram;
use tokio::signal::unix::{SignalKind, signal};
use zeroize::{Zeroize, Zeroizing};

use crate::engine::Kind;
use crate::proto::token::{Keyring, Secret};
use crate::{limits, log, sys};
use plane::Plane;
pub use plane::Settings;

pub use crate::udp::PeerStatus;
pub use crate::udp::rendezvous::Figures;

/// What a supervisor says. The secrets of `Boot` and `Reload` stand behind it in the same message.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Boot {
        engine: Kind,
        log: log::Settings,
        settings: Settings,
    },
    Reload {
        settings: Settings,
    },
    /// Tell how things are.
    Status,
    /// Accept nobody any more, and end when the last game has.
    Drain,
    /// End now.
    Stop,
}

impl Order {
    /// JSON, then each secret behind its length in 16 bits.
    ///
    /// # Errors
    /// None that is known.
    pub fn encode(&self, keys: Option<&Keyring>) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut message = Zeroizing::new(Vec::with_capacity(limits::MESSAGE_BYTES_MAX)); // never moves, so leaves no copy
        serde_json::to_writer(&mut *message, self)?;
        for secret in keys.map(Keyring::secrets).unwrap_or_default() {
            let length = u16::try_from(secret.bytes().len()).map_err(io::Error::other)?;
            message.extend_from_slice(&length.to_be_bytes());
            message.extend_from_slice(secret.bytes());
        }
        Ok(message)
    }

    /// # Errors
    /// When it is not what [`Self::encode`] made.
    pub fn decode(message: &[u8]) -> io::Result<(Self, Vec<Secret>)> {
        let mut orders = serde_json::Deserializer::from_slice(message).into_iter::<Self>();
        let order = orders.next().ok_or(io::ErrorKind::UnexpectedEof)??;
        let mut rest = &message[orders.byte_offset()..];
        let mut secrets = Vec::new();
        while !rest.is_empty() {
            let (length, behind) = rest.split_first_chunk::<2>().ok_or(io::ErrorKind::UnexpectedEof)?;
            let length = usize::from(u16::from_be_bytes(*length));
            let (secret, next) = behind.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
            secrets.push(Secret::new(secret.to_vec()).map_err(io::Error::other)?);
            rest = next;
        }
        Ok((order, secrets))
    }
}

/// What a worker says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Report {
    /// Every listener accepts.
    Ready,
    /// Alive, with so many connections.
    Beat { connections: usize },
    /// The answer to [`Order::Status`].
    Status(Status),
}

/// How things are at a worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Games under way, and what is to become one.
    pub connections: usize,
    /// The first of its peers, as many as fit into a message.
    pub peers: Vec<PeerStatus>,
    /// How many there are besides.
    pub peers_left_out: usize,
    /// `None` where there is no rendezvous.
    pub rendezvous: Option<Figures>,
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
    logs: log::Logs,
}

fn boot() -> io::Result<Boot> {
    sys::process::set_name(c"gateway")?;
    sys::process::seal_memory()?;
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    let mut buffer = Zeroizing::new(vec![0; limits::MESSAGE_BYTES_MAX]);
    let (n, listeners) = sys::control::receive(control.as_fd(), &mut buffer)?;
    let Ok((Order::Boot { engine, log, settings }, secrets)) = Order::decode(&buffer[..n]) else {
        return Err(io::Error::other("workers are started by a daemon, not by hand"));
    };
    let logs = log::start(log);
    let keys = Keyring::new(secrets).map_err(io::Error::other)?;
    Ok(Boot { control, listeners, engine, settings, keys, logs })
}

fn run(boot: Boot) -> io::Result<()> {
    if boot.engine.is_uring() {
        // Without this flag every completion interrupts the thread, at up to 1.6 times the cost.
        let mut ring = tokio_uring::uring_builder();
        ring.setup_coop_taskrun();
        if boot.engine == Kind::UringDeferred {
            ring.setup_single_issuer(); // Linux 6.0
        }
        tokio_uring::builder().entries(RUNTIME_RING_ENTRIES).uring_builder(&ring).start(work(boot))
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work(boot))
    }
}

/// The runtime's own ring carries what is of low rate.
const RUNTIME_RING_ENTRIES: u32 = 64;

async fn work(boot: Boot) -> io::Result<()> {
    let _logs = boot.logs;
    let mut control = Control::new(boot.control)?;
    let runtime = sys::process::poll_set()?;
    let mut plane = Plane::new(boot.engine, runtime, boot.listeners, boot.keys, boot.settings)?;
    plane.turn(Duration::ZERO)?; // sets the watches
    control.report_ready().await?;

    // What is sent to a whole process group reaches workers too; what it means, the supervisor decides.
    let _heard =
        [SignalKind::interrupt(), SignalKind::hangup(), SignalKind::user_defined1(), SignalKind::user_defined2()]
            .map(signal);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut next_beat = sys::clock::now();
    loop {
        // The thread waits in here, and leaves for the runtime when that has something to do.
        let mut now = sys::clock::now();
        while now < next_beat && !plane.turn(next_beat - now)? && !plane.has_drained() {
            now = sys::clock::now();
        }
        if plane.has_drained() {
            plane.leave();
            return Ok(()); // closes the listeners and the ring before the process ends
        }
        if next_beat <= now {
            control.report(Report::Beat { connections: plane.connections() });
            next_beat = now + limits::HEARTBEAT;
        }
        tokio::select! {
            biased;
            order = control.order() => match order? {
                Some((Order::Reload { settings }, secrets)) => {
                    plane.reload(Keyring::new(secrets).map_err(io::Error::other)?, settings);
                }
                Some((Order::Status, _)) => control.report(Report::Status(plane.status())),
                Some((Order::Stop, _)) => {
                    plane.stop();
                    plane.leave();
                    return Ok(());
                }
                Some((Order::Drain | Order::Boot { .. }, _)) => plane.drain(),
                None => {
                    tracing::warn!(pid = std::process::id(), "the supervisor is gone: nobody new, running games go on; TERM stops them");
                    plane.drain();
                }
            },
            Some(()) = terminate.recv() => if control.ended {
                plane.stop();
                plane.leave();
                return Ok(());
            },
            () = plane.hear_names() => {}
            () = tokio::task::yield_now() => {} // the runtime looks at its poll set, and runs its tasks
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
    async fn order(&mut self) -> io::Result<Option<(Order, Vec<Secret>)>> {
        if self.ended {
            return std::future::pending().await;
        }
        match self.socket.recv(&mut self.buffer).await {
            Ok(n @ 1..) => {
                let order = Order::decode(&self.buffer[..n]);
                self.buffer[..n].zeroize();
                order.map(Some)
            }
            Ok(0) | Err(_) => {
                self.ended = true;
                Ok(None)
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_comes_back_with_its_secrets() {
        let secret = |text: &str| Secret::new(text.as_bytes().to_vec()).expect("not empty");
        let keys = Keyring::new(vec![secret("one"), secret("{\"two\"}")]).expect("not empty");
        let message = Order::Drain.encode(Some(&keys)).expect("it is encoded");
        let (order, secrets) = Order::decode(&message).expect("it is decoded");
        assert!(matches!(order, Order::Drain));
        assert_eq!(secrets.iter().map(Secret::bytes).collect::<Vec<_>>(), [&b"one"[..], b"{\"two\"}"]);
        assert!(Order::decode(&message[..message.len() - 1]).is_err());
        assert!(Order::decode(b"").is_err());
    }
}
