//! Fetching the backend: a service behind the rendezvous, to which nobody can connect. Its provider has opened a connection to
//! here, or is asked to; it is told who has come, connects to the service, says how that went, and from then on its connection is
//! a backend like any other.
//!
//! The provider may be at another worker, which keeps its tunnel: then the player is handed over, with what he has said so far
//! ([`Guest`]), and begins there anew.
//!
//! A connection that waited may have died unheard of. Nothing of the player's was sent over it, so he gets another one.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use super::guest::Guest;
use super::{Context, Ending, Key, Kind, Next, Side, dial};
use crate::engine::{Readiness, Token};
use crate::limits;
use crate::proto::rendezvous::data::{Outcome, Start};
use crate::proto::status::Refusal;
use crate::proto::target::Provided;
use crate::proto::tunnel::ServiceName;
use crate::sys::socket;

/// A player for whom a connection has to be found.
#[derive(Debug)]
pub(crate) struct Want {
    pub(crate) asker: Key,
    pub(crate) service: ServiceName,
    /// Workers that have none, a bit each.
    pub(crate) tried: u64,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoConnection {
    NoProvider,
    /// Too many wait for the same provider.
    TooMany,
    /// This worker may have one.
    Elsewhere(usize),
}

#[derive(Debug)]
pub(super) struct Hub {
    provided: Provided,
    early: Vec<u8>,
    /// Workers that have no provider, a bit each.
    tried: u64,
    tries: u32,
    /// By when there must be a connection, and then an answer.
    until: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The rendezvous is to be asked.
    Due,
    Asked,
    Found(OwnedFd),
    NotFound(NoConnection),
    /// The provider connects to the service.
    Started(Side),
}

impl Hub {
    pub(super) fn new(provided: Provided, early: Vec<u8>, context: &Context) -> Self {
        Self { provided, early, tried: 0, tries: limits::FETCH_TRIES, until: patience(context), state: State::Due }
    }

    pub(super) fn of_guest(guest: &mut Guest, context: &Context) -> Self {
        Self { tried: guest.tried, ..Self::new(guest.provided, std::mem::take(&mut guest.early), context) }
    }

    /// As a guest of another worker.
    pub(super) fn leave(self, client: OwnedFd, has_line: bool) -> Guest {
        Guest { client, has_line, provided: self.provided, early: self.early, tried: self.tried }
    }

    pub(super) fn note_found(&mut self, found: Result<OwnedFd, NoConnection>) {
        self.state = found.map_or_else(State::NotFound, State::Found);
    }

    pub(super) fn note(&mut self, token: Token, news: Readiness) -> bool {
        match &mut self.state {
            State::Started(backend) if backend.token == token => backend.note(news),
            _ => return false,
        }
        true
    }

    pub(super) fn socket(&self, token: Token) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Started(backend) if backend.token == token => Some(backend.socket.as_fd()),
            _ => None,
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.until
    }

    pub(super) fn step(&mut self, key: Key, kind: Kind, client: &mut Side, context: &mut Context) -> Next {
        if client.ready.failed {
            return Next::Close(Ending::ClientGone);
        }
        loop {
            match std::mem::replace(&mut self.state, State::Asked) {
                State::Due => {
                    let service = self.provided.service;
                    context.wants.push_back(Want { asker: key, service, tried: self.tried });
                }
                State::Asked => return self.wait(context),
                State::NotFound(why) => return refuse(why.error(), context),
                State::Found(connection) => {
                    let token = key.token(dial::FIRST_ROLE + self.tries as u8);
                    let player = socket::peer_address(client.socket.as_fd()).ok();
                    match self.start(connection, token, player, context) {
                        Ok(backend) => self.state = State::Started(backend),
                        Err(error) if self.tries == 0 => return refuse(error, context),
                        Err(_dead) => self.state = State::Due,
                    }
                }
                State::Started(backend) => match hear(&backend) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.state = State::Started(backend);
                        return self.wait(context);
                    }
                    Ok(Outcome::Connected) => return self.join(backend, kind, client, context),
                    heard => {
                        context.engine.forget(backend.socket, backend.token);
                        match heard {
                            Ok(outcome) => return refuse_for(outcome, context),
                            Err(error) if self.tries == 0 => return refuse(error, context),
                            Err(_dead) => self.state = State::Due,
                        }
                    }
                },
            }
        }
    }

    fn wait(&self, context: &Context) -> Next {
        if context.now < self.until {
            return Next::Wait;
        }
        Next::Refuse { refusal: Refusal::Silent, not_before: context.now }
    }

    /// Says over a connection who has come.
    fn start(
        &mut self,
        connection: OwnedFd,
        token: Token,
        player: Option<SocketAddr>,
        context: &mut Context,
    ) -> io::Result<Side> {
        self.tries -= 1;
        let Provided { service, port } = self.provided;
        let mut start = Vec::new();
        Start { service, port, player }.emit(&mut start);
        // Nothing was sent over it before: it has room.
        if socket::send(connection.as_fd(), &start)? < start.len() {
            return Err(ErrorKind::WriteZero.into());
        }
        context.engine.watch(connection.as_fd(), token)?;
        self.until = patience(context);
        Ok(Side::new(connection, token))
    }

    /// The service is connected.
    fn join(&mut self, mut backend: Side, kind: Kind, client: &mut Side, context: &mut Context) -> Next {
        if socket::send(client.socket.as_fd(), kind.welcome()).is_err() {
            context.engine.forget(backend.socket, backend.token);
            return Next::Close(Ending::ClientGone);
        }
        backend.ready.readable = true; // the service may have spoken already
        if kind == Kind::Exposed {
            client.ready.readable = true;
        }
        Next::Relay { backend, early: std::mem::take(&mut self.early) }
    }

    pub(super) fn let_go(self, context: &mut Context) {
        if let State::Started(backend) = self.state {
            context.engine.forget(backend.socket, backend.token);
        }
    }
}

impl NoConnection {
    fn error(self) -> io::Error {
        match self {
            Self::NoProvider | Self::Elsewhere(_) => {
                io::Error::new(ErrorKind::NotFound, "nobody provides this service")
            }
            Self::TooMany => io::Error::new(ErrorKind::QuotaExceeded, "too many wait for this provider"),
        }
    }
}

/// The provider takes as long as any backend may.
fn patience(context: &Context) -> Instant {
    context.now + context.settings.dial_timeout * context.settings.dial_attempts
}

/// The provider's one byte. What follows it is the game's.
fn hear(backend: &Side) -> io::Result<Outcome> {
    let mut byte = [0];
    match socket::receive(backend.socket.as_fd(), &mut byte)? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        _ => Outcome::parse(byte[0]).map_err(|_malformed| ErrorKind::InvalidData.into()),
    }
}

fn refuse(error: io::Error, context: &Context) -> Next {
    Next::Refuse { refusal: Refusal::Unreachable(error), not_before: context.now }
}

/// The provider has not connected to the service.
fn refuse_for(outcome: Outcome, context: &Context) -> Next {
    match outcome {
        Outcome::TimedOut => Next::Refuse { refusal: Refusal::Silent, not_before: context.now },
        Outcome::Refused | Outcome::Connected => refuse(ErrorKind::ConnectionRefused.into(), context),
    }
}
