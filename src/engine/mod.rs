//! Tells which sockets are ready, and moves bytes between them.
//!
//! One engine serves one thread. It is readiness-driven: each socket is watched once, edge-triggered, and then read and
//! written with plain non-blocking calls until they say that they would block. Two engines do this alike: a ring with
//! multishot polls (`uring`) and its twin on epoll (`epoll`) for hosts that refuse rings. [`probe`] chooses.
//!
//! The thread has a runtime too, which does everything of low rate, but it waits here: [`Engine::wait`] also ends when the
//! runtime has something to do. (The other way round, a doorbell of the engine in the runtime's poll set, cost a lone message
//! eight more system calls.) Deliberately absent: what a socket is for. A [`Token`] is the caller's business.

mod epoll;
mod pipes;
mod pump;
mod uring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use epoll::Epoll;
pub use pipes::Pipes;
pub use pump::{Outcome, Pump, Shared};
use uring::Uring;

/// Events enough for one turn. What is left is told in the next.
const EVENTS_PER_TURN: usize = 1024;

/// Names a watched socket in events: a slot of the caller's table, the generation of what sits there, and its role there.
/// An event of a socket that was forgotten may still be on its way: the generation tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub slot: u32,
    /// Counts up for each new tenant of a slot; 24 bits are kept.
    pub generation: u32,
    /// 4 bits are kept.
    pub role: u8,
}

impl Token {
    const GENERATION_MASK: u32 = (1 << 24) - 1;
    const ROLE_MASK: u8 = (1 << 4) - 1;

    /// The token as it comes back from the engine, with generation and role cut to what is kept.
    #[must_use]
    pub fn new(slot: u32, generation: u32, role: u8) -> Self {
        Self { slot, generation: generation & Self::GENERATION_MASK, role: role & Self::ROLE_MASK }
    }

    /// slot 32 | generation 24 | role 4 | free for the engine 4
    fn pack(self) -> u64 {
        u64::from(self.slot) << 32 | u64::from(self.generation) << 8 | u64::from(self.role) << 4
    }

    fn unpack(bits: u64) -> Self {
        Self::new((bits >> 32) as u32, (bits >> 8) as u32, (bits >> 4) as u8)
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Event {
    Ready(Token, Readiness),
    /// The watch has ended by itself and must be set again: the engine was overrun.
    Disarmed(Token),
    /// The runtime has something to do.
    Runtime,
}

/// What has changed on a socket. Edge-triggered: it is not told again before the socket has said that it would block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
    /// The peer has ended its half: reading will come to the end of the stream.
    pub ended: bool,
    /// The connection has failed; the next call on the socket tells how.
    pub failed: bool,
    /// Urgent data is about. Reads stop short at its mark, and a splice there looks like the end of the stream.
    pub urgent: bool,
    /// As far as the engine can tell, urgent data may be about. Never told of a writable socket.
    pub perhaps_urgent: bool,
}

impl Readiness {
    /// The bits of poll(2); those of epoll are the same.
    const INTEREST: u32 = (libc::POLLIN | libc::POLLPRI | libc::POLLOUT | libc::POLLRDHUP) as u32;
    const ARRIVALS: u32 = libc::POLLIN as u32;

    fn from_bits(bits: u32) -> Self {
        let any = |of: libc::c_short| bits & of as u32 != 0;
        let failed = any(libc::POLLERR);
        let ended = any(libc::POLLRDHUP | libc::POLLHUP);
        let urgent = any(libc::POLLPRI);
        let readable = any(libc::POLLIN) || urgent || ended || failed;
        Self { readable, writable: any(libc::POLLOUT) || failed, ended, failed, urgent, perhaps_urgent: false }
    }
}

/// Which engine is wanted. Default: `Auto`, the best one that this host allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    #[default]
    Auto,
    Uring,
    Epoll,
}

/// Which engine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// A ring that runs its work when we ask for it. Linux 6.1.
    UringDeferred,
    /// A ring that runs its work on our way into the kernel. Linux 5.19.
    UringCooperative,
    Epoll,
}

impl Kind {
    #[must_use]
    pub fn is_uring(self) -> bool {
        self != Self::Epoll
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::UringDeferred => "uring",
            Self::UringCooperative => "uring (cooperative)",
            Self::Epoll => "epoll",
        })
    }
}

/// Finds the best engine that `choice` and this host allow. The second value says why it is epoll, if `choice` was `Auto`
/// and the host refused a ring. A ring without either flag is never taken: it costs more than epoll.
///
/// # Errors
/// What `io_uring_setup` said, when a ring was asked for.
pub fn probe(choice: Choice) -> io::Result<(Kind, Option<io::Error>)> {
    if choice == Choice::Epoll {
        return Ok((Kind::Epoll, None));
    }
    let refusal = match Uring::probe(Kind::UringDeferred) {
        Ok(()) => return Ok((Kind::UringDeferred, None)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => match Uring::probe(Kind::UringCooperative) {
            Ok(()) => return Ok((Kind::UringCooperative, None)),
            Err(error) => error,
        },
        Err(error) => error,
    };
    if choice == Choice::Uring { Err(refusal) } else { Ok((Kind::Epoll, Some(refusal))) }
}

#[derive(Debug)]
pub struct Engine {
    twin: Twin,
    runtime: OwnedFd,
}

#[derive(Debug)]
enum Twin {
    Uring(Box<Uring>),
    Epoll(Epoll),
}

impl Engine {
    /// An engine for about `sockets` watched sockets; more are allowed and cost a little. `runtime` is what the runtime of this
    /// thread waits on, see [`crate::sys::process::poll_set`].
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`, or the refusal of a host that has changed its mind since the probe.
    pub fn new(kind: Kind, sockets: usize, runtime: OwnedFd) -> io::Result<Self> {
        let twin = match kind {
            Kind::Epoll => Twin::Epoll(Epoll::new()?),
            ring => Twin::Uring(Box::new(Uring::new(ring, sockets)?)),
        };
        let mut engine = Self { twin, runtime };
        engine.watch_runtime()?;
        Ok(engine)
    }

    /// Watches a socket from now on. What it is ready for at this moment is told too.
    ///
    /// # Errors
    /// `ENOMEM`, `ENOSPC`: the socket is not watched.
    pub fn watch(&mut self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        self.twin.watch(socket, token, Readiness::INTEREST)
    }

    /// As [`Self::watch`], for a socket of datagrams: of room for more nothing is told, since each datagram that has left would be
    /// an event.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn watch_arrivals(&mut self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        self.twin.watch(socket, token, Readiness::ARRIVALS)
    }

    /// Ends the watch and closes the socket.
    pub fn forget(&mut self, socket: OwnedFd, token: Token) {
        match &mut self.twin {
            Twin::Uring(uring) => uring.forget(socket, token),
            Twin::Epoll(_) => drop(socket), // the last descriptor takes its watch with it
        }
    }

    /// Adds what has happened to `events`. When nothing has, waits for something, at most for `patience`; zero does not wait.
    ///
    /// # Errors
    /// None that a running engine is known to meet; the worker cannot go on.
    pub fn wait(&mut self, patience: Duration, events: &mut Vec<Event>) -> io::Result<()> {
        match &mut self.twin {
            Twin::Uring(uring) => uring.wait(patience, events),
            Twin::Epoll(epoll) => epoll.wait(patience, events),
        }?;
        for event in events {
            match event {
                Event::Ready(token, _) if *token == RUNTIME => *event = Event::Runtime,
                Event::Disarmed(token) if *token == RUNTIME => {
                    *event = Event::Runtime;
                    self.watch_runtime()?;
                }
                Event::Ready(..) | Event::Disarmed(_) | Event::Runtime => {}
            }
        }
        Ok(())
    }

    fn watch_runtime(&mut self) -> io::Result<()> {
        self.twin.watch(self.runtime.as_fd(), RUNTIME, Readiness::INTEREST)
    }
}

impl Twin {
    fn watch(&mut self, socket: BorrowedFd<'_>, token: Token, interest: u32) -> io::Result<()> {
        match self {
            Self::Uring(uring) => uring.watch(socket, token, interest),
            Self::Epoll(epoll) => epoll.watch(socket, token, interest),
        }
    }
}

/// No socket has the last generation of the last slot.
const RUNTIME: Token = Token { slot: u32::MAX, generation: Token::GENERATION_MASK, role: 0 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_from_its_bits() {
        for token in [Token::new(0, 0, 0), Token::new(u32::MAX, u32::MAX, u8::MAX), Token::new(7, 1 << 23, 9)] {
            assert_eq!(Token::unpack(token.pack()), token);
            assert_eq!(token.pack() & 0xf, 0, "four bits are the engine's own");
        }
    }
}
