//! Accepting: who may come in, and when not.
//!
//! A connection is taken out of the kernel's queue only when there is room for it, and nobody is for a moment when descriptors
//! or memory have run out. Whoever waits, waits in that queue, and would wait there still if this worker died. (A multishot
//! accept would empty the queue into this process, room or no room.)

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::engine::{Engine, Event, Token};
use crate::limits;
use crate::sys::socket;

/// Connections let in per turn, so that a flood of new ones leaves time for running games.
pub(crate) const PER_TURN: usize = 64;

/// The slot of listeners in tokens, which no connection has; the generation is the listener's number.
pub(crate) const SLOT: u32 = u32::MAX;

/// A shortage is logged at most so often.
const LOG_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Doors {
    listeners: Vec<Listener>,
    /// Whose turn it is.
    next: usize,
    paused_until: Option<Instant>,
    /// Failures since one was logged, and when that was.
    failures: u64,
    logged: Option<Instant>,
    /// Nobody else has been let in since this was logged.
    full: bool,
}

#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    token: Token,
    /// Somebody may be waiting: told once, true until the queue is empty.
    ready: bool,
}

impl Doors {
    pub(crate) fn new(sockets: Vec<OwnedFd>) -> Self {
        let listener = |(number, socket)| Listener { socket, token: Token::new(SLOT, number, 0), ready: true };
        let listeners = (0..).zip(sockets).map(listener).collect();
        Self { listeners, next: 0, paused_until: None, failures: 0, logged: None, full: false }
    }

    pub(crate) fn len(&self) -> usize {
        self.listeners.len()
    }

    pub(crate) fn open(&self, engine: &mut Engine) -> io::Result<()> {
        self.listeners.iter().try_for_each(|listener| engine.watch(listener.socket.as_fd(), listener.token))
    }

    pub(crate) fn note(&mut self, event: Event, token: Token, engine: &mut Engine) {
        let Some(listener) = self.listeners.iter_mut().find(|listener| listener.token == token) else { return };
        match event {
            Event::Ready(..) | Event::Runtime => listener.ready = true,
            Event::Disarmed(_) => {
                if let Err(error) = engine.watch(listener.socket.as_fd(), listener.token) {
                    tracing::error!(%error, "a listener is not watched any more");
                }
            }
        }
    }

    /// When to try again after a shortage.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.paused_until
    }

    /// The next client that may come in, and the number of the listener it came to.
    pub(crate) fn admit(&mut self, room: bool, now: Instant) -> Option<(usize, OwnedFd)> {
        if self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        self.paused_until = None;
        if !room {
            self.be_full(now);
            return None;
        }
        loop {
            let mut in_turn = (0..self.listeners.len()).map(|ahead| (self.next + ahead) % self.listeners.len());
            let at = in_turn.find(|at| self.listeners[*at].ready)?;
            self.next = at + 1;
            match socket::accept(self.listeners[at].socket.as_fd()) {
                Ok(client) => {
                    self.full = false;
                    return Some((at, client));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.listeners[at].ready = false,
                Err(error) if socket::speaks_of_one_connection(&error) => {}
                Err(error) => {
                    self.pause(&error, now);
                    return None;
                }
            }
        }
    }

    /// Told when the last place is taken and somebody may wait, not again while nobody gets in.
    fn be_full(&mut self, now: Instant) {
        let somebody_may_wait = self.listeners.iter().any(|listener| listener.ready);
        if somebody_may_wait && !self.full && self.may_log(now) {
            tracing::warn!("as many connections as there may be: others wait in the kernel's queue until one ends");
        }
        self.full |= somebody_may_wait;
    }

    fn may_log(&mut self, now: Instant) -> bool {
        let may = self.logged.is_none_or(|logged| logged + LOG_PAUSE <= now);
        if may {
            self.logged = Some(now);
        }
        may
    }

    /// All listeners pause together: what one lacks the others lack too.
    fn pause(&mut self, error: &io::Error, now: Instant) {
        self.paused_until = Some(now + limits::ACCEPT_PAUSE);
        self.failures += 1;
        if self.may_log(now) {
            let failures = std::mem::take(&mut self.failures);
            tracing::warn!(%error, failures, "no connection can be accepted for now; running games go on");
        }
    }

    /// Takes everybody who waits in the queues and closes the doors for good. A queue that is closed with connections in it
    /// resets them.
    pub(crate) fn close(&mut self, engine: &mut Engine) -> Vec<(usize, OwnedFd)> {
        let mut waiting = Vec::new();
        for (number, listener) in self.listeners.drain(..).enumerate() {
            while let Ok(client) = socket::accept(listener.socket.as_fd()) {
                waiting.push((number, client));
            }
            engine.forget(listener.socket, listener.token);
        }
        self.paused_until = None;
        waiting
    }
}
