//! Keeping a worker alive: a [`Keeper`] starts it, listens to its heartbeat, and replaces it when it dies or hangs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use crate::engine::Kind;
use crate::proto::token::Keyring;
use crate::sys::clock;
use crate::worker::{Order, Report};
use crate::{limits, log, sys, tcp};

/// What all workers are told.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) engine: Kind,
    pub(super) log: log::Settings,
    pub(super) settings: tcp::Settings,
    pub(super) keys: Keyring,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) life: Life,
    pub(super) plan: Arc<Plan>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Life {
    Run,
    Drain,
    Stop,
}

/// Keeps one worker: the process changes, its listening sockets stay.
pub(super) struct Keeper {
    number: usize,
    sockets: Vec<OwnedFd>,
    state: watch::Receiver<State>,
    /// Told once, how the first start went.
    started: Option<mpsc::UnboundedSender<Result<(), ExitStatus>>>,
}

impl Keeper {
    pub(super) fn new(
        number: usize,
        sockets: Vec<OwnedFd>,
        state: watch::Receiver<State>,
        started: mpsc::UnboundedSender<Result<(), ExitStatus>>,
    ) -> Self {
        Self { number, sockets, state, started: Some(started) }
    }

    /// Replaces the worker until it is to end, and then until it has.
    pub(super) async fn keep(mut self) {
        let mut pause = Duration::ZERO;
        while self.life() == Life::Run {
            let since = clock::now();
            let ended = self.live().await;
            if self.life() != Life::Run {
                return;
            }
            match (&ended, self.started.take()) {
                (Ok(status), Some(started)) => {
                    let _ = started.send(Err(*status));
                    return;
                }
                (Ok(status), None) => tracing::error!(worker = self.number, %status, "a worker ended and is replaced"),
                (Err(error), _) => {
                    tracing::error!(worker = self.number, %error, "a worker cannot be started; tried again")
                }
            }
            pause = if ended.is_ok() && clock::now() - since >= limits::WORKER_SETTLED {
                Duration::ZERO
            } else {
                (pause * 2).clamp(limits::RESTART_PAUSE_MIN, limits::RESTART_PAUSE_MAX)
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.state.wait_for(|state| state.life != Life::Run) => {}
            }
        }
    }

    fn life(&self) -> Life {
        self.state.borrow().life
    }

    /// The life of one process.
    async fn live(&mut self) -> io::Result<ExitStatus> {
        let (mut child, control) = self.start()?;
        let mut patience = clock::now() + limits::HEARTBEAT_PATIENCE;
        let mut buffer = [0; 256]; // a report is far shorter
        let mut known = self.state.borrow_and_update().clone();
        loop {
            // In this order: after a suspension of this host, heartbeats are heard before patience is found to be over.
            tokio::select! {
                biased;
                status = child.wait() => return status,
                received = control.recv(&mut buffer) => match received {
                    Ok(n @ 1..) => {
                        patience = clock::now() + limits::HEARTBEAT_PATIENCE;
                        self.hear(&buffer[..n]);
                    }
                    Ok(0) | Err(_) => return child.wait().await, // it has closed its end: it is ending
                },
                changed = self.state.changed() => {
                    changed.map_err(io::Error::other)?;
                    let now = self.state.borrow_and_update().clone();
                    if now.life != known.life {
                        self.tell_life(&control, now.life)?;
                    }
                    if now.life == Life::Stop {
                        return stop(child).await;
                    }
                    if !Arc::ptr_eq(&now.plan, &known.plan) {
                        send_secrets(&control, &Order::Reload {
                            settings: now.plan.settings.clone(),
                            secrets: now.plan.keys.secrets().len(),
                        }, &now.plan.keys, &[])?;
                    }
                    known = now;
                }
                () = tokio::time::sleep_until(patience.into()) => {
                    tracing::error!(worker = self.number, "a worker has stopped answering and is killed");
                    child.start_kill()?;
                    return child.wait().await;
                }
            }
        }
    }

    fn tell_life(&mut self, control: &UnixDatagram, life: Life) -> io::Result<()> {
        self.sockets.clear(); // the worker's are the last ones now, and it empties their queues first
        let order = if life == Life::Stop { Order::Stop } else { Order::Drain };
        sys::control::send(control.as_fd(), &serde_json::to_vec(&order)?, &[])
    }

    fn hear(&mut self, report: &[u8]) {
        match serde_json::from_slice(report) {
            Ok(Report::Ready) => {
                if let Some(started) = self.started.take() {
                    let _ = started.send(Ok(()));
                } else {
                    tracing::info!(worker = self.number, "the replacement accepts");
                }
            }
            Ok(Report::Beat { connections }) => tracing::trace!(worker = self.number, connections, "heartbeat"),
            Err(error) => tracing::error!(worker = self.number, %error, "a worker says what nobody understands"),
        }
    }

    /// Starts a process and tells it everything. Nothing of it is in argv or in the environment.
    fn start(&self) -> io::Result<(Child, UnixDatagram)> {
        let (ours, theirs) = sys::control::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg0("gateway")
            .arg("worker")
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .kill_on_drop(true) // it must not live on unheard when something fails here
            .spawn()?;
        let ours = std::os::unix::net::UnixDatagram::from(ours);
        let plan = self.state.borrow().plan.clone();
        let boot = Order::Boot {
            engine: plan.engine,
            log: plan.log,
            settings: plan.settings.clone(),
            secrets: plan.keys.secrets().len(),
        };
        send_secrets(&ours, &boot, &plan.keys, &self.sockets)?;
        ours.set_nonblocking(true)?;
        Ok((child, UnixDatagram::from_std(ours)?))
    }
}

/// Sends an order that secrets follow.
fn send_secrets(control: &impl AsFd, order: &Order, keys: &Keyring, sockets: &[OwnedFd]) -> io::Result<()> {
    let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    sys::control::send(control.as_fd(), &serde_json::to_vec(order)?, &sockets)?;
    keys.secrets().iter().try_for_each(|secret| sys::control::send(control.as_fd(), secret.bytes(), &[]))
}

/// Waits for a worker that was told to stop, and kills one that does not.
async fn stop(mut child: Child) -> io::Result<ExitStatus> {
    match tokio::time::timeout(limits::STOP_PATIENCE, child.wait()).await {
        Ok(status) => status,
        Err(_elapsed) => {
            child.start_kill()?;
            child.wait().await
        }
    }
}
