//! Connections of providers that players wait for, and those that wait for players: their sockets. How many there are,
//! [`crate::proto::rendezvous::hub`] decides; who has come, and what is done with them, is the gateway's business.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

use super::settings::Settings;
use crate::engine::{Engine, Token};
use crate::limits;
use crate::proto::rendezvous::data::DataId;
use crate::proto::rendezvous::hub::{Arrival, Hub};
use crate::proto::tunnel::{ServiceName, TunnelId};
use crate::tcp::Key;
use crate::tcp::hub::NoConnection;

#[derive(Debug)]
pub(super) struct Desk {
    hub: Hub<TunnelId, Key>,
    /// Those that are ready.
    ready: HashMap<u32, Ready>,
    last_number: u32,
    /// Who has each of the exposed services.
    exposed: HashMap<ServiceName, Option<TunnelId>>,
    found: VecDeque<(Key, Found)>,
}

type Found = Result<OwnedFd, NoConnection>;

#[derive(Debug)]
struct Ready {
    connection: OwnedFd,
    provider: TunnelId,
}

impl Desk {
    pub(super) fn new(settings: &Settings, seed: [u8; 32]) -> Self {
        let byte = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
        Self {
            hub: Hub::new(seed, byte(settings.worker), byte(settings.workers)),
            ready: HashMap::new(),
            last_number: 0,
            exposed: settings.exposed.connections.iter().map(|service| (*service, None)).collect(),
            found: VecDeque::new(),
        }
    }

    pub(super) fn note_providers(&mut self, now: u64, provider: impl Fn(ServiceName) -> Option<TunnelId>) {
        let mut changed = Vec::new();
        for (service, known) in &mut self.exposed {
            let provider = provider(*service);
            let before = std::mem::replace(known, provider);
            changed.extend([before, provider].into_iter().flatten().filter(|_| before != provider));
        }
        for changed in changed {
            let is_exposed = self.exposed.values().any(|of| *of == Some(changed));
            self.hub.expose(now, changed, is_exposed);
        }
    }

    /// Connections that wait for players.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// There is none.
    pub(super) fn refuse(&mut self, asker: Key, why: NoConnection) {
        self.found.push_back((asker, Err(why)));
    }

    pub(super) fn want(&mut self, now: u64, asker: Key, provider: TunnelId, engine: &mut Engine) {
        match self.hub.want(now, provider, asker) {
            Ok(Some(number)) => {
                if let Some(connection) = self.remove(number, engine) {
                    self.found.push_back((asker, Ok(connection)));
                }
            }
            Ok(None) => {}
            Err(_too_many) => self.refuse(asker, NoConnection::TooMany),
        }
    }

    pub(super) fn poll_found(&mut self) -> Option<(Key, Found)> {
        self.found.pop_front()
    }

    /// A connection has come with this id. A stranger's ends without a word.
    pub(super) fn take(&mut self, now: u64, id: DataId, connection: OwnedFd, engine: &mut Engine) {
        let number = self.new_number();
        match self.hub.arrive(now, id, number) {
            Arrival::Stranger => tracing::debug!("a connection with an id that nobody has now"),
            Arrival::For(asker) => self.found.push_back((asker, Ok(connection))),
            Arrival::Ready(provider) if self.ready.len() >= limits::READY_ALL_MAX => {
                self.hub.end(now, provider, number)
            }
            Arrival::Ready(provider) => match engine.watch_arrivals(connection.as_fd(), token(number)) {
                Ok(()) => _ = self.ready.insert(number, Ready { connection, provider }),
                Err(error) => {
                    tracing::warn!(%error, "a connection for players cannot be watched and is let go");
                    self.hub.end(now, provider, number);
                }
            },
        }
    }

    fn new_number(&mut self) -> u32 {
        loop {
            self.last_number = Token::new(0, self.last_number + 1, 0).generation;
            if !self.ready.contains_key(&self.last_number) {
                return self.last_number;
            }
        }
    }

    fn remove(&mut self, number: u32, engine: &mut Engine) -> Option<OwnedFd> {
        let Ready { connection, .. } = self.ready.remove(&number)?;
        engine.release(connection.as_fd(), token(number));
        Some(connection)
    }

    /// One that was ready has ended, or says what it should not.
    pub(super) fn end(&mut self, now: u64, number: u32, engine: &mut Engine) {
        if let Some(Ready { connection, provider }) = self.ready.remove(&number) {
            engine.forget(connection, token(number));
            self.hub.end(now, provider, number);
        }
    }

    pub(super) fn leave(&mut self, provider: TunnelId) {
        for asker in self.hub.leave(provider) {
            self.found.push_back((asker, Err(NoConnection::NoProvider)));
        }
    }

    pub(super) fn next_timeout(&self) -> Option<u64> {
        self.hub.next_timeout()
    }

    pub(super) fn handle_timeout(&mut self, now: u64, engine: &mut Engine) {
        self.hub.handle_timeout(now);
        while let Some(number) = self.hub.poll_expired() {
            if let Some(Ready { connection, .. }) = self.ready.remove(&number) {
                engine.forget(connection, token(number));
            }
        }
    }

    /// The next connection to be asked for, and whom.
    pub(super) fn poll_dial(&mut self) -> Option<(TunnelId, DataId)> {
        self.hub.poll_dial()
    }

    pub(super) fn close(&mut self, engine: &mut Engine) {
        for (number, Ready { connection, .. }) in self.ready.drain() {
            engine.forget(connection, token(number));
        }
    }
}

fn token(number: u32) -> Token {
    Token::new(super::DATA, number, 0)
}
