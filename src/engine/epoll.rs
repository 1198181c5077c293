//! The twin: the same events from epoll, for hosts that refuse rings (container seccomp profiles, a sysctl).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::epoll::{Epoll as Set, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{Event, Readiness, Token};
use crate::sys;

/// Events taken per turn, and connections accepted per listener and turn, so that a flood of new ones leaves time for games.
const EVENTS_PER_TURN: usize = 1024;
const ACCEPTS_PER_TURN: usize = 64;

/// In the four low bits of the event data, which a token leaves free.
const OP_ACCEPT: u64 = 1;

#[derive(Debug)]
pub(super) struct Epoll {
    set: Set,
    ready: Vec<EpollEvent>,
    /// Listeners that accept now; a handful.
    listeners: Vec<(Token, OwnedFd)>,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        let set = Set::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { set, ready: vec![EpollEvent::empty(); EVENTS_PER_TURN], listeners: Vec::new() })
    }

    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.set.0.as_fd()
    }

    pub(super) fn watch(&self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let interest = EpollFlags::from_bits_truncate(Readiness::INTEREST.cast_signed()) | EpollFlags::EPOLLET;
        Ok(self.set.add(socket, EpollEvent::new(interest, token.pack()))?)
    }

    /// Level-triggered: a queue that was not emptied in one turn is told again in the next.
    pub(super) fn accept(&mut self, listener: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let own = listener.try_clone_to_owned()?;
        self.set.add(&own, EpollEvent::new(EpollFlags::EPOLLIN, token.pack() | OP_ACCEPT))?;
        self.listeners.push((token, own));
        Ok(())
    }

    pub(super) fn stop_accepting(&mut self, token: Token) {
        if let Some(at) = self.listeners.iter().position(|(listening, _)| *listening == token) {
            let (_, listener) = self.listeners.swap_remove(at);
            // Closing our copy would not do: the watch lives as long as the socket, which has other owners.
            if let Err(error) = self.set.delete(&listener) {
                tracing::error!(%error, "a listener cannot be stopped");
            }
        }
    }

    pub(super) fn poll(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let n = match self.set.wait(&mut self.ready, EpollTimeout::ZERO) {
            Err(nix::errno::Errno::EINTR) => 0,
            other => other?,
        };
        for at in 0..n {
            let (data, flags) = (self.ready[at].data(), self.ready[at].events());
            let token = Token::unpack(data);
            if data & OP_ACCEPT == 0 {
                events.push(Event::Ready(token, Readiness::from_bits(flags.bits().cast_unsigned())));
            } else {
                self.take_connections(token, events);
            }
        }
        Ok(())
    }

    fn take_connections(&mut self, token: Token, events: &mut Vec<Event>) {
        let Some((_, listener)) = self.listeners.iter().find(|(listening, _)| *listening == token) else { return };
        for _ in 0..ACCEPTS_PER_TURN {
            match sys::socket::accept(listener.as_fd()) {
                Ok(socket) => events.push(Event::Accepted(token, socket)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if super::speaks_of_one_connection(&error) => {}
                Err(error) => {
                    self.stop_accepting(token);
                    return events.push(Event::AcceptFailed(token, error));
                }
            }
        }
    }
}
