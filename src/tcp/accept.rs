//! Accepting: who may come in, and when not.
//!
//! Accepting pauses when there is no room for another game, and for a moment when descriptors or memory have run out. Whoever
//! waits meanwhile waits in the kernel's queue and loses nothing.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::Context;
use crate::engine::Token;
use crate::{limits, sys};

#[derive(Debug)]
pub(super) struct Doors {
    listeners: Vec<OwnedFd>,
    state: State,
    /// Accepted by the kernel and not let in yet: at most what a ring accepts between two looks, which the queues bound.
    arrived: VecDeque<OwnedFd>,
    /// Failures since one was logged, and when that was.
    failures: u64,
    logged: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Open,
    /// No room for another game.
    Full,
    /// Descriptors or memory ran out.
    Paused {
        until: Instant,
    },
    Closed,
}

/// A shortage is logged at most so often.
const LOG_PAUSE: Duration = Duration::from_secs(5);

/// The slot of listeners in tokens, which no connection has; the role is the listener's number.
const SLOT: u32 = u32::MAX;

impl Doors {
    pub(super) fn new(listeners: Vec<OwnedFd>) -> Self {
        Self { listeners, state: State::Full, arrived: VecDeque::new(), failures: 0, logged: None }
    }

    pub(super) fn open(&mut self, context: &mut Context) -> io::Result<()> {
        for (token, listener) in self.listeners.iter().enumerate().map(token_of) {
            context.engine.accept(listener.as_fd(), token)?;
        }
        self.state = State::Open;
        Ok(())
    }

    /// Stops what accepts; what has stopped already stays so.
    fn shut(&mut self, context: &mut Context) {
        for (token, _) in self.listeners.iter().enumerate().map(token_of) {
            context.engine.stop_accepting(token);
        }
    }

    pub(super) fn arrive(&mut self, client: OwnedFd) {
        self.arrived.push_back(client);
    }

    /// All listeners pause together: what one lacks the others lack too.
    pub(super) fn fail(&mut self, token: Token, error: &io::Error, context: &mut Context) {
        tracing::trace!(?token, %error, "accept");
        if self.state != State::Open {
            return;
        }
        self.failures += 1;
        if self.logged.is_none_or(|logged| logged + LOG_PAUSE <= context.now) {
            let failures = std::mem::take(&mut self.failures);
            tracing::warn!(%error, failures, "no connection can be accepted for now; running games go on");
            self.logged = Some(context.now);
        }
        self.shut(context);
        self.state = State::Paused { until: context.now + limits::ACCEPT_PAUSE };
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Paused { until } => Some(until),
            State::Open | State::Full | State::Closed => None,
        }
    }

    /// The next client that may come in while there are `connections`; opens and shuts the doors as there is room.
    pub(super) fn admit(&mut self, connections: usize, context: &mut Context) -> Option<OwnedFd> {
        let room = connections < context.settings.connections_max;
        match self.state {
            State::Open if !room => {
                self.shut(context);
                self.state = State::Full;
            }
            State::Full if room => self.reopen(context),
            State::Paused { until } if until <= context.now => self.reopen(context),
            State::Open | State::Full | State::Paused { .. } | State::Closed => {}
        }
        if room || self.state == State::Closed { self.arrived.pop_front() } else { None }
    }

    fn reopen(&mut self, context: &mut Context) {
        if let Err(error) = self.open(context) {
            tracing::error!(%error, "the listeners cannot be watched; tried again soon");
            self.shut(context);
            self.state = State::Paused { until: context.now + limits::ACCEPT_PAUSE };
        }
    }

    /// Takes everybody who waits in the queues and closes the doors for good. A queue that is closed with connections in it
    /// resets them.
    pub(super) fn close(&mut self, context: &mut Context) -> Vec<OwnedFd> {
        let mut waiting = Vec::new();
        for listener in &self.listeners {
            while let Ok(client) = sys::socket::accept(listener.as_fd()) {
                waiting.push(client);
            }
        }
        self.shut(context);
        self.state = State::Closed;
        self.listeners.clear();
        waiting
    }
}

fn token_of((number, listener): (usize, &OwnedFd)) -> (Token, &OwnedFd) {
    (Token::new(SLOT, 0, u8::try_from(number).unwrap_or(u8::MAX)), listener)
}
