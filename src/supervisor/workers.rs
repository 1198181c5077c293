//! Keeping a worker alive: a [`Keeper`] starts it, listens to its heartbeat, and replaces it when it dies or hangs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::admin::Asker;
use crate::engine::Kind;
use crate::proto::token::Keyring;
use crate::sys::clock;
use crate::worker::{self, Order, Report};
use crate::{limits, log, sys};

/// What all workers are told.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) engine: Kind,
    pub(super) log: log::Settings,
    pub(super) settings: worker::Settings,
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
    questions: mpsc::Receiver<Asker>,
    /// Who has asked and waits for the worker's answer.
    askers: Vec<Asker>,
}

impl Keeper {
    pub(super) fn new(
        number: usize,
        sockets: Vec<OwnedFd>,
        state: watch::Receiver<State>,
        started: mpsc::UnboundedSender<Result<(), ExitStatus>>,
        questions: mpsc::Receiver<Asker>,
    ) -> Self {
        Self { number, sockets, state, started: Some(started), questions, askers: Vec::new() }
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
            match &ended {
                Ok(status) => {
                    if let Some(started) = self.started.take() {
                        let _ = started.send(Err(*status));
                        return;
                    }
                    tracing::error!(worker = self.number, %status, "a worker ended and is replaced");
                }
                Err(error) => tracing::error!(worker = self.number, %error, "a worker failed and is started again"),
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
        let mut known = self.state.borrow_and_update().clone();
        let mut buffer = vec![0; limits::MESSAGE_BYTES_MAX];
        self.askers.clear(); // their questions have died with the process before
        // Counted in ticks, not in time: when this process itself was stopped for long, one tick has been missed.
        let mut silent_ticks = 0;
        let mut tick = tokio::time::interval(limits::HEARTBEAT);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                status = child.wait() => return status,
                received = control.recv(&mut buffer) => match received {
                    Ok(n @ 1..) => {
                        silent_ticks = 0;
                        self.hear(&buffer[..n]);
                    }
                    Ok(0) | Err(_) => return end(child, limits::HEARTBEAT_PATIENCE).await, // it has closed its end
                },
                changed = self.state.changed() => {
                    changed.map_err(io::Error::other)?;
                    let now = self.state.borrow_and_update().clone();
                    if now.life != known.life {
                        self.sockets.clear(); // the worker's are the last ones now, and it empties their queues first
                        tell(&control, if now.life == Life::Stop { Order::Stop } else { Order::Drain }, None).await?;
                    }
                    if now.life == Life::Stop {
                        return end(child, limits::STOP_PATIENCE).await;
                    }
                    if !Arc::ptr_eq(&now.plan, &known.plan) {
                        let order = Order::Reload { settings: now.plan.settings.of_worker(self.number) };
                        tell(&control, order, Some(&now.plan.keys)).await?;
                    }
                    known = now;
                }
                Some(asker) = self.questions.recv() => {
                    self.askers.push(asker);
                    tell(&control, Order::Status, None).await?;
                }
                _ = tick.tick() => {
                    silent_ticks += 1;
                    if limits::HEARTBEAT * silent_ticks > limits::HEARTBEAT_PATIENCE {
                        tracing::error!(worker = self.number, "a worker has stopped answering and is killed");
                        child.start_kill()?;
                        return child.wait().await;
                    }
                }
            }
        }
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
            Ok(Report::Status(status)) => {
                for asker in self.askers.drain(..) {
                    let _ = asker.send(status.clone()); // it may have gone
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
        let boot = Order::Boot { engine: plan.engine, log: plan.log, settings: plan.settings.of_worker(self.number) };
        let sockets: Vec<_> = self.sockets.iter().map(AsFd::as_fd).collect();
        sys::control::send(ours.as_fd(), &boot.encode(Some(&plan.keys))?, &sockets)?;
        ours.set_nonblocking(true)?;
        Ok((child, UnixDatagram::from_std(ours)?))
    }
}

/// Sends an order. A worker that has no room for it for so long hangs, and its life ends here.
async fn tell(control: &UnixDatagram, order: Order, keys: Option<&Keyring>) -> io::Result<()> {
    let message = order.encode(keys)?;
    tokio::time::timeout(limits::HEARTBEAT_PATIENCE, control.send(&message)).await??;
    Ok(())
}

/// Waits for a worker that is to end, and kills one that does not.
async fn end(mut child: Child, patience: Duration) -> io::Result<ExitStatus> {
    match tokio::time::timeout(patience, child.wait()).await {
        Ok(status) => status,
        Err(_elapsed) => {
            child.start_kill()?;
            child.wait().await
        }
    }
}
