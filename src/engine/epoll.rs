//! The twin: the same events from epoll, for hosts that refuse rings (container seccomp profiles, a sysctl).

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::sys::epoll::{Epoll as Set, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{EVENTS_PER_TURN, Event, Readiness, Token};

#[derive(Debug)]
pub(super) struct Epoll {
    set: Set,
    ready: Vec<EpollEvent>,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        let set = Set::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { set, ready: vec![EpollEvent::empty(); EVENTS_PER_TURN] })
    }

    pub(super) fn watch(&self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let interest = EpollFlags::from_bits_truncate(Readiness::INTEREST.cast_signed()) | EpollFlags::EPOLLET;
        Ok(self.set.add(socket, EpollEvent::new(interest, token.pack()))?)
    }

    pub(super) fn wait(&mut self, patience: Duration, events: &mut Vec<Event>) -> io::Result<()> {
        // Rounded up: a wait that ends early would be repeated until it is over.
        let milliseconds = patience.as_nanos().div_ceil(1_000_000);
        let timeout = EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::MAX);
        let n = match self.set.wait(&mut self.ready, timeout) {
            Err(nix::errno::Errno::EINTR) => 0,
            other => other?,
        };
        for event in &self.ready[..n] {
            let news = Readiness::from_bits(event.events().bits().cast_unsigned());
            events.push(Event::Ready(Token::unpack(event.data()), news));
        }
        Ok(())
    }
}
