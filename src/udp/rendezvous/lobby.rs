//! Connections that have to be shown to the right worker. All peers of a key meet in one worker, and which that is tells the
//! first byte of the first packet, as for datagrams it tells the kernel. A connection may come to any worker: that one looks at
//! its first bytes without taking them, and hands the descriptor on.
//!
//! Players go the same way, once it is known whom they want, when that provider is not here.
//!
//! Whoever says nothing is let go after a while, and earlier when too many wait ([`Strangers`]). A connection
//! that finds no room on its way to another worker is let go, too; its peer comes again.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::super::strangers::Strangers;
use super::settings::Settings;
use crate::engine::{Engine, Token};
use crate::sys::{control, socket};
use crate::tcp::guest::{GUEST_BYTES_MAX, Guest};

/// `length u16 | first byte of the packet`: as much as has to be seen.
const HEAD_BYTES: usize = 3;

/// Connections taken from other workers in a turn.
const TAKEN_PER_TURN: usize = 64;

#[derive(Debug)]
pub(super) struct Lobby {
    waiting: HashMap<u32, OwnedFd>,
    /// With some that have left already.
    strangers: Strangers,
    last_number: u32,
    /// Where connections from other workers arrive, and whether some may have.
    inbox: OwnedFd,
    has_mail: bool,
    /// To each worker.
    outboxes: Vec<OwnedFd>,
}

impl Lobby {
    /// At most `most` wait.
    pub(super) fn new(inbox: OwnedFd, outboxes: Vec<OwnedFd>, most: usize, engine: &mut Engine) -> io::Result<Self> {
        engine.watch_arrivals(inbox.as_fd(), Token::new(super::MAIL, 0, 0))?;
        Ok(Self {
            waiting: HashMap::new(),
            strangers: Strangers::new(most),
            last_number: 0,
            inbox,
            has_mail: true,
            outboxes,
        })
    }

    /// Connections that wait here.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Hands a player to another worker. False when there is no room.
    pub(super) fn hand_over(&self, guest: &Guest, worker: usize) -> bool {
        let mut message = vec![GUEST];
        guest.emit(&mut message);
        let Some(outbox) = self.outboxes.get(worker) else { return false };
        let sent = control::send(outbox.as_fd(), &message, &[guest.client.as_fd()]).inspect_err(|error| {
            tracing::debug!(%error, worker, "a player finds no room at the worker that may have his provider");
        });
        sent.is_ok()
    }

    /// Lets somebody wait until it has said who it is.
    pub(super) fn add(&mut self, connection: OwnedFd, now: Instant, engine: &mut Engine) -> io::Result<()> {
        let number = self.new_number();
        engine.watch(connection.as_fd(), token(number))?;
        let gone = self.strangers.add(number, connection.as_fd(), now);
        self.waiting.insert(number, connection);
        gone.into_iter().for_each(|number| self.let_go(number, engine));
        Ok(())
    }

    fn new_number(&mut self) -> u32 {
        loop {
            self.last_number = Token::new(0, self.last_number + 1, 0).generation;
            if !self.waiting.contains_key(&self.last_number) {
                return self.last_number;
            }
        }
    }

    /// Whether there was somebody to make room.
    pub(super) fn drop_first(&mut self, engine: &mut Engine) -> bool {
        let before = self.waiting.len();
        while self.waiting.len() == before
            && let Some(number) = self.strangers.pop()
        {
            self.let_go(number, engine);
        }
        self.waiting.len() < before
    }

    fn let_go(&mut self, number: u32, engine: &mut Engine) {
        if let Some(connection) = self.waiting.remove(&number) {
            engine.forget(connection, token(number));
        }
    }

    /// Something has arrived. A connection comes back when it is at home here.
    pub(super) fn note(&mut self, number: u32, settings: &Settings, engine: &mut Engine) -> Option<OwnedFd> {
        let mut head = [0; HEAD_BYTES];
        match socket::peek(self.waiting.get(&number)?.as_fd(), &mut head) {
            Ok(HEAD_BYTES) => {}
            Ok(1..) => return None,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Ok(0) | Err(_) => {
                engine.forget(self.waiting.remove(&number)?, token(number));
                return None;
            }
        }
        let connection = self.waiting.remove(&number)?;
        let home = settings.home(head[HEAD_BYTES - 1]);
        engine.release(connection.as_fd(), token(number));
        if home == settings.worker {
            return Some(connection);
        }
        let outbox = self.outboxes.get(home)?;
        if let Err(error) = control::send(outbox.as_fd(), &[PEER], &[connection.as_fd()]) {
            tracing::debug!(%error, worker = home, "a connection finds no room at the worker it belongs to");
        }
        None
    }

    pub(super) fn watch_again(&mut self, number: u32, engine: &mut Engine) {
        if let Some(connection) = self.waiting.get(&number)
            && let Err(error) = engine.watch(connection.as_fd(), token(number))
        {
            tracing::debug!(%error, "a connection is not watched any more; its deadline ends it");
        }
    }

    pub(super) fn note_mail(&mut self) {
        self.has_mail = true;
    }

    pub(super) fn watch_mail_again(&mut self, engine: &mut Engine) -> io::Result<()> {
        self.has_mail = true;
        engine.watch_arrivals(self.inbox.as_fd(), Token::new(super::MAIL, 0, 0))
    }

    /// Hands out connections from other workers. True when there may be more.
    pub(super) fn take_mail(&mut self, mut each: impl FnMut(Mail)) -> bool {
        let mut message = [0; 1 + GUEST_BYTES_MAX];
        for _ in 0..TAKEN_PER_TURN {
            if !self.has_mail {
                return false;
            }
            match control::receive(self.inbox.as_fd(), &mut message) {
                Ok((0, _)) => self.has_mail = false, // no worker is left that could send any
                Ok((length, connections)) => {
                    let mail = |connection| Mail::read(&message[..length], connection);
                    connections.into_iter().filter_map(mail).for_each(&mut each);
                }
                Err(error) => self.has_mail = error.kind() == io::ErrorKind::Interrupted,
            }
        }
        true
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.strangers.deadline()
    }

    pub(super) fn expire(&mut self, now: Instant, engine: &mut Engine) {
        while let Some(number) = self.strangers.pop_expired(now) {
            self.let_go(number, engine);
        }
    }

    /// Lets everybody go.
    pub(super) fn close(&mut self, engine: &mut Engine) {
        self.strangers.clear();
        for (number, connection) in self.waiting.drain() {
            engine.forget(connection, token(number));
        }
    }
}

/// From another worker.
#[derive(Debug)]
pub(super) enum Mail {
    /// A connection whose home is here.
    Peer(OwnedFd),
    /// A player whose provider may be here.
    Guest(Guest),
}

/// What a message begins with.
const PEER: u8 = 0;
const GUEST: u8 = 1;

impl Mail {
    fn read(message: &[u8], connection: OwnedFd) -> Option<Self> {
        match message.split_first()? {
            (&GUEST, guest) => Guest::parse(connection, guest).map(Self::Guest),
            _ => Some(Self::Peer(connection)),
        }
    }
}

fn token(number: u32) -> Token {
    Token::new(super::LOBBY, number, 0)
}
