//! Tells which sockets are ready, and moves bytes between them.
//!
//! One engine serves one thread. It is readiness-driven: each socket is watched once, edge-triggered, and then read and
//! written with plain non-blocking calls until they say that they would block. Two engines do this alike: a ring with
//! multishot polls (`uring`) and its twin on epoll (`epoll`) for hosts that refuse rings. [`probe`] chooses.
//!
//! The thread has a runtime too, which does everything of low rate, but it waits here: [`Engine::wait`] also ends when the
//! runtime has something to do. (The other way round, a doorbell of the engine in the runtime's poll set, cost a lone message
//! eight more system calls.)
//!
//! An [`Engine`] is a handle. A thread with several planes, each with sockets of its own, has a handle for each: one waits for
//! all ([`Engine::wait_for_all`]), and each takes what has happened to its own sockets ([`Engine::take`]).
//!
//! Deliberately absent: what a socket is for. A [`Token`] is the caller's business.

mod epoll;
mod pipes;
mod pump;
mod uring;

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
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
    /// Whose socket it is, while the engine has it; otherwise 0.
    plane: u8,
}

impl Token {
    const GENERATION_MASK: u32 = (1 << 24) - 1;
    const ROLE_MASK: u8 = (1 << 4) - 1;

    /// The token as it comes back from the engine, with generation and role cut to what is kept.
    #[must_use]
    pub fn new(slot: u32, generation: u32, role: u8) -> Self {
        Self { slot, generation: generation & Self::GENERATION_MASK, role: role & Self::ROLE_MASK, plane: 0 }
    }

    fn of_plane(self, plane: u8) -> Self {
        Self { plane, ..self }
    }

    /// slot 32 | generation 24 | role 4 | plane 1 | free for the engine 3
    fn pack(self) -> u64 {
        let plane = u64::from(self.plane) << 3;
        u64::from(self.slot) << 32 | u64::from(self.generation) << 8 | u64::from(self.role) << 4 | plane
    }

    fn unpack(bits: u64) -> Self {
        Self::new((bits >> 32) as u32, (bits >> 8) as u32, (bits >> 4) as u8).of_plane((bits >> 3) as u8 & 1)
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

/// Cheap to clone: all clones are the same engine, and those of a plane see the same events.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Rc<RefCell<Inner>>,
    plane: u8,
}

#[derive(Debug)]
struct Inner {
    twin: Twin,
    runtime: OwnedFd,
    happened: Happened,
}

#[derive(Debug)]
enum Twin {
    Uring(Box<Uring>),
    Epoll(Epoll),
}

/// Planes that one engine can serve: a bit of the token tells them apart.
const PLANES: usize = 2;

/// What has happened and was not taken yet.
#[derive(Debug, Default)]
struct Happened {
    of_planes: [Vec<Event>; PLANES],
    to_runtime: bool,
    /// The runtime's watch has ended.
    is_runtime_unwatched: bool,
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
        let mut inner = Inner { twin, runtime, happened: Happened::default() };
        inner.watch_runtime()?;
        Ok(Self { shared: Rc::new(RefCell::new(inner)), plane: 0 })
    }

    /// The handle of the second plane: tokens of the two never meet.
    #[must_use]
    pub fn of_second_plane(&self) -> Self {
        Self { shared: self.shared.clone(), plane: 1 }
    }

    /// Watches a socket from now on. What it is ready for at this moment is told too.
    ///
    /// # Errors
    /// `ENOMEM`, `ENOSPC`: the socket is not watched.
    pub fn watch(&mut self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        self.shared.borrow_mut().twin.watch(socket, token.of_plane(self.plane), Readiness::INTEREST)
    }

    /// As [`Self::watch`], for a socket of datagrams: of room for more nothing is told, since each datagram that has left would be
    /// an event.
    ///
    /// # Errors
    /// As [`Self::watch`].
    pub fn watch_arrivals(&mut self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        self.shared.borrow_mut().twin.watch(socket, token.of_plane(self.plane), Readiness::ARRIVALS)
    }

    /// Ends the watch and closes the socket.
    pub fn forget(&mut self, socket: OwnedFd, token: Token) {
        match &mut self.shared.borrow_mut().twin {
            Twin::Uring(uring) => uring.forget(socket, token.of_plane(self.plane)),
            Twin::Epoll(_) => drop(socket), // the last descriptor takes its watch with it
        }
    }

    /// Ends the watch of a socket that lives on, here or in another process.
    pub fn release(&mut self, socket: BorrowedFd<'_>, token: Token) {
        match &mut self.shared.borrow_mut().twin {
            Twin::Uring(uring) => uring.release(token.of_plane(self.plane)),
            Twin::Epoll(epoll) => epoll.release(socket),
        }
    }

    /// Adds what has happened to `events`. When nothing has, waits for something, at most for `patience`; zero does not wait.
    ///
    /// # Errors
    /// None that a running engine is known to meet; the worker cannot go on.
    pub fn wait(&mut self, patience: Duration, events: &mut Vec<Event>) -> io::Result<()> {
        if self.wait_for_all(patience)? {
            events.push(Event::Runtime);
        }
        self.take(events);
        Ok(())
    }

    /// As [`Self::wait`], for all planes, each of which is then to take its own. True when the runtime has something to do.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_for_all(&mut self, patience: Duration) -> io::Result<bool> {
        self.shared.borrow_mut().wait(patience)
    }

    /// Adds to `events` what has happened to the sockets of this plane.
    pub fn take(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.shared.borrow_mut().happened.of_planes[usize::from(self.plane)]);
    }
}

impl Inner {
    fn wait(&mut self, patience: Duration) -> io::Result<bool> {
        let patience = if self.happened.len() > 0 { Duration::ZERO } else { patience };
        match &mut self.twin {
            Twin::Uring(uring) => uring.wait(patience, &mut self.happened),
            Twin::Epoll(epoll) => epoll.wait(patience, &mut self.happened),
        }?;
        if std::mem::take(&mut self.happened.is_runtime_unwatched) {
            self.watch_runtime()?;
        }
        Ok(std::mem::take(&mut self.happened.to_runtime))
    }

    fn watch_runtime(&mut self) -> io::Result<()> {
        self.twin.watch(self.runtime.as_fd(), RUNTIME, Readiness::INTEREST)
    }
}

impl Happened {
    fn len(&self) -> usize {
        self.of_planes.iter().map(Vec::len).sum()
    }

    fn push_ready(&mut self, token: Token, news: Readiness) {
        if token == RUNTIME {
            self.to_runtime = true;
        } else {
            self.of_planes[usize::from(token.plane)].push(Event::Ready(token.of_plane(0), news));
        }
    }

    fn push_disarmed(&mut self, token: Token) {
        if token == RUNTIME {
            (self.to_runtime, self.is_runtime_unwatched) = (true, true);
        } else {
            self.of_planes[usize::from(token.plane)].push(Event::Disarmed(token.of_plane(0)));
        }
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
const RUNTIME: Token = Token { slot: u32::MAX, generation: Token::GENERATION_MASK, role: 0, plane: 0 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_from_its_bits() {
        for token in [Token::new(0, 0, 0), Token::new(u32::MAX, u32::MAX, u8::MAX), Token::new(7, 1 << 23, 9)] {
            for token in [token, token.of_plane(1)] {
                assert_eq!(Token::unpack(token.pack()), token);
                assert_eq!(token.pack() & 0x7, 0, "three bits are the engine's own");
            }
        }
    }

    #[test]
    fn each_plane_takes_what_has_happened_to_its_own_sockets() {
        for choice in [Choice::Auto, Choice::Epoll] {
            let (silent, _writer) = std::io::pipe().expect("two descriptors");
            let mut first = Engine::new(probe(choice).expect("an engine").0, 8, silent.into()).expect("an engine");
            let mut second = first.of_second_plane();
            let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().expect("two descriptors");
            let token = Token::new(7, 7, 7);
            first.watch_arrivals(ours.as_fd(), token).expect("it is watched");
            second.watch_arrivals(theirs.as_fd(), token).expect("it is watched");
            assert_eq!(turn([&mut first, &mut second], Duration::ZERO), [0, 0]);
            theirs.send(b"x").expect("it is sent");
            assert_eq!(turn([&mut first, &mut second], Duration::from_secs(60)), [1, 0], "{choice:?}");
            ours.send(b"x").expect("it is sent");
            assert_eq!(turn([&mut first, &mut second], Duration::from_secs(60)), [0, 1], "{choice:?}");
            second.release(theirs.as_fd(), token);
            turn([&mut first, &mut second], Duration::ZERO);
            ours.send(b"x").expect("it is sent");
            assert_eq!(turn([&mut first, &mut second], Duration::ZERO)[1], 0, "{choice:?}");
        }
    }

    /// Events that each plane has.
    fn turn(engines: [&mut Engine; 2], patience: Duration) -> [usize; 2] {
        let [first, second] = engines;
        assert!(!first.wait_for_all(patience).expect("it runs"));
        [first, second].map(|engine| {
            let mut events = Vec::new();
            engine.take(&mut events);
            let is_ours = |event: &Event| matches!(event, Event::Ready(token, _) if *token == Token::new(7, 7, 7));
            assert!(events.iter().all(is_ours), "{events:?}");
            events.len()
        })
    }
}
