//! Reaching the backend: an address is found, connections are raced, the first one wins.
//!
//! One attempt ends after the dial time-out. Within it every address of a name gets its try, each one a head start behind the
//! one before (RFC 8305), or at once when that one has failed. An attempt whose addresses have all failed is final: `502`.
//! Only a time-out is tried again, as in the ancestor; when the last one has passed: `504`.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use super::{Context, Ending, Key, Kind, Next, Side};
use crate::engine::{Readiness, Token};
use crate::limits;
use crate::names::alternate;
use crate::proto::line::VERDICT_DELAY;
use crate::proto::status::Refusal;
use crate::proto::target::Target;
use crate::sys::socket;

/// Roles of backends in tokens: 1 to 15, taken in turn. Of a connection's races at most eight sockets live at once.
pub(super) const FIRST_ROLE: u8 = 1;
const ROLES: u8 = 15;
const _: () = assert!(limits::DIAL_ADDRESSES_MAX < ROLES as usize);

#[derive(Debug)]
pub(super) struct Dial {
    key: Key,
    port: u16,
    early: Vec<u8>,
    /// When the line was complete: a name that policy forbids is refused no sooner than any other wrong line.
    completed: Instant,
    /// `None` while the name is being looked up.
    addresses: Option<Vec<SocketAddr>>,
    /// Addresses this attempt has not tried yet.
    untried: VecDeque<SocketAddr>,
    racers: Vec<Side>,
    next_role: u8,
    attempts_left: u32,
    attempt_ends: Instant,
    /// When the next address has its try.
    next_try: Instant,
    last_error: Option<io::Error>,
}

impl Dial {
    pub(super) fn new(key: Key, target: Target, early: Vec<u8>, completed: Instant, context: &mut Context) -> Self {
        let (addresses, port) = match target {
            Target::Address(address) => (Some(vec![address]), address.port()),
            Target::Name { host, port } => {
                let within = context.settings.dial_timeout * context.settings.dial_attempts;
                context.names.ask(key, &host, within);
                (None, port)
            }
            Target::Provider(_) => (Some(Vec::new()), 0), // it is fetched, not dialled
        };
        Self {
            key,
            port,
            early,
            completed,
            untried: addresses.iter().flatten().copied().collect(),
            addresses,
            racers: Vec::new(),
            next_role: FIRST_ROLE,
            attempts_left: context.settings.dial_attempts,
            attempt_ends: context.now + context.settings.dial_timeout,
            next_try: context.now,
            last_error: None,
        }
    }

    pub(super) fn note_found(&mut self, addresses: Vec<IpAddr>) {
        let found: Vec<_> = alternate(addresses).map(|ip| SocketAddr::new(ip, self.port)).collect();
        self.untried = found.iter().copied().collect();
        self.addresses = Some(found);
    }

    pub(super) fn note(&mut self, token: Token, news: Readiness) -> bool {
        let racer = self.racers.iter_mut().find(|racer| racer.token == token);
        racer.map(|racer| racer.note(news)).is_some()
    }

    pub(super) fn socket(&self, token: Token) -> Option<BorrowedFd<'_>> {
        self.racers.iter().find(|racer| racer.token == token).map(|racer| racer.socket.as_fd())
    }

    pub(super) fn deadline(&self) -> Instant {
        if self.untried.is_empty() { self.attempt_ends } else { self.attempt_ends.min(self.next_try) }
    }

    pub(super) fn step(&mut self, kind: Kind, client: &mut Side, context: &mut Context) -> Next {
        if client.ready.failed {
            return Next::Close(Ending::ClientGone);
        }
        if let Some(backend) = self.winner(context) {
            if socket::send(client.socket.as_fd(), kind.welcome()).is_err() {
                context.engine.forget(backend.socket, backend.token);
                return Next::Close(Ending::ClientGone);
            }
            return Next::Relay { backend, early: std::mem::take(&mut self.early) };
        }
        if self.attempt_ends <= context.now {
            self.attempts_left -= 1;
            if self.attempts_left == 0 {
                return Next::Refuse { refusal: self.timed_out(), not_before: context.now };
            }
            self.begin_attempt(context);
        }
        match &self.addresses {
            None => Next::Wait,
            Some(found) if found.is_empty() => Next::Refuse { refusal: Refusal::Unresolved, not_before: context.now },
            Some(found) if !found.iter().any(|address| context.settings.permit_address(*address)) => {
                Next::Refuse { refusal: Refusal::LineWrong, not_before: self.completed + VERDICT_DELAY }
            }
            Some(_) => self.try_addresses(context),
        }
    }

    /// The racer that has connected, taken out of the race. Racers that have failed leave it.
    fn winner(&mut self, context: &mut Context) -> Option<Side> {
        let mut at = 0;
        while at < self.racers.len() {
            let ready = self.racers[at].ready;
            if !ready.writable && !ready.ended {
                at += 1;
                continue;
            }
            let racer = self.racers.swap_remove(at);
            match connected(&racer, self.port) {
                Ok(()) => return Some(racer),
                Err(error) => {
                    self.last_error = Some(error);
                    self.next_try = context.now;
                    context.engine.forget(racer.socket, racer.token);
                }
            }
        }
        None
    }

    fn try_addresses(&mut self, context: &mut Context) -> Next {
        while self.next_try <= context.now || self.racers.is_empty() {
            let Some(address) = self.untried.pop_front() else { break };
            if !context.settings.permit_address(address) {
                continue;
            }
            match self.try_address(address, context) {
                Ok(()) => self.next_try = context.now + limits::DIAL_STAGGER,
                Err(error) if is_shortage(&error) => {
                    self.untried.push_front(address);
                    self.next_try = context.now + limits::SHORTAGE_PAUSE;
                    self.last_error = Some(error);
                    return Next::Wait;
                }
                Err(error) => self.last_error = Some(error),
            }
        }
        if !self.racers.is_empty() {
            return Next::Wait;
        }
        match self.last_error.take() {
            Some(error) if error.kind() == io::ErrorKind::TimedOut => {
                // The kernel gave up before we did: the attempt has ended early.
                self.attempt_ends = context.now;
                self.attempts_left -= 1;
                if self.attempts_left == 0 {
                    return Next::Refuse { refusal: Refusal::Silent, not_before: context.now };
                }
                self.begin_attempt(context);
                Next::Wait
            }
            error => {
                let error = error.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into());
                Next::Refuse { refusal: Refusal::Unreachable(error), not_before: context.now }
            }
        }
    }

    fn try_address(&mut self, address: SocketAddr, context: &mut Context) -> io::Result<()> {
        let socket = socket::connect(address)?;
        socket::prepare(socket.as_fd())?;
        let token = self.key.token(self.next_role);
        self.next_role = self.next_role % ROLES + FIRST_ROLE;
        context.engine.watch(socket.as_fd(), token)?;
        self.racers.push(Side::new(socket, token));
        Ok(())
    }

    fn begin_attempt(&mut self, context: &mut Context) {
        self.end_race(context);
        self.untried = self.addresses.iter().flatten().copied().collect();
        self.attempt_ends = context.now + context.settings.dial_timeout;
        self.next_try = context.now;
    }

    /// What an attempt that ran out of time says: that the backend was silent, unless it was us who lacked a socket.
    fn timed_out(&mut self) -> Refusal {
        match self.last_error.take() {
            Some(error) if self.racers.is_empty() && is_shortage(&error) => Refusal::Unreachable(error),
            _ => Refusal::Silent,
        }
    }

    fn end_race(&mut self, context: &mut Context) {
        for racer in self.racers.drain(..) {
            context.engine.forget(racer.socket, racer.token);
        }
    }

    pub(super) fn let_go(mut self, context: &mut Context) {
        self.end_race(context);
    }
}

/// Whether a socket of which something has been told is connected to a backend. One that is connected to itself is not: dialling
/// a free port of this host, a socket may draw that very port as its own, and TCP lets both ends be one.
pub(crate) fn connected(racer: &Side, port: u16) -> io::Result<()> {
    let socket = racer.socket.as_fd();
    if (racer.ready.failed || racer.ready.ended)
        && let Some(error) = socket::take_error(socket)?
    {
        return Err(error);
    }
    let own = socket::local_address(socket)?;
    if own.port() == port && own == socket::peer_address(socket)? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(())
}

/// Errors that pass: this process or this host has no socket to spare at the moment.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
