//! Relaying: two pumps, one for each direction, until both have ended.
//!
//! The end of one side's stream is passed on when the other side has every byte before it, and the other direction goes on. A
//! connection that fails is passed on as a reset, never as an end: nobody may take half a message for a whole one.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use super::{Context, Ending, Next, Side};
use crate::engine::{Outcome, Pump, Readiness, Token};
use crate::limits;
use crate::sys::socket::{self, Liveness};

/// What client and backend sockets have in common.
pub const LIVENESS: Liveness = Liveness {
    keepalive_idle: limits::KEEPALIVE_IDLE,
    keepalive_interval: limits::KEEPALIVE_INTERVAL,
    keepalive_probes: limits::KEEPALIVE_PROBES,
    user_timeout: limits::USER_TIMEOUT,
};

#[derive(Debug)]
pub(super) struct Relay {
    backend: Side,
    /// The backend's socket has [`LIVENESS`]: five system calls that a short life does without.
    settled: bool,
    up: Flow,
    down: Flow,
    active: Instant,
    /// When to look whether anything has moved. Not moved with every byte: a look costs less than a timer a byte.
    look: Instant,
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    pump: Pump,
    ended: bool,
}

/// How far a direction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flown {
    Blocked,
    BudgetSpent,
    /// The source has ended; told once.
    Ended,
    Failed,
}

impl Relay {
    pub(super) fn new(client: &mut Side, mut backend: Side, early: Vec<u8>, context: &Context) -> Self {
        client.ready.writable = true;
        backend.ready.writable = true;
        Self {
            backend,
            settled: false,
            up: Flow { pump: Pump::with_first(early), ended: false },
            down: Flow::default(),
            active: context.now,
            look: context.now + context.settings.idle_timeout.min(limits::SETTLING),
        }
    }

    pub(super) fn note(&mut self, token: Token, news: Readiness) -> bool {
        let ours = token == self.backend.token;
        if ours {
            self.backend.note(news);
        }
        ours
    }

    pub(super) fn socket(&self, token: Token) -> Option<BorrowedFd<'_>> {
        (token == self.backend.token).then(|| self.backend.socket.as_fd())
    }

    pub(super) fn deadline(&self) -> Instant {
        self.look
    }

    /// Bytes moved from the client to the backend, and back.
    pub(super) fn moved(&self) -> (u64, u64) {
        (self.up.pump.moved, self.down.pump.moved)
    }

    /// Whether there is bulk to be moved now. A direction that was bulk once and rests does not hold the other one up.
    pub(super) fn is_heavy(&self, client: &Side) -> bool {
        self.up.has_bulk(client, &self.backend) || self.down.has_bulk(&self.backend, client)
    }

    pub(super) fn step(&mut self, client: &mut Side, context: &mut Context) -> Next {
        let before = self.moved();
        let mut up = self.up.run(client, &mut self.backend, context);
        let down = self.down.run(&mut self.backend, client, context);
        if down == Flown::Failed && up != Flown::Failed {
            up = self.up.run(client, &mut self.backend, context); // last words of a client that is gone
        }
        if up == Flown::Failed || down == Flown::Failed {
            self.cut(client);
            return Next::Close(Ending::Reset);
        }
        if self.up.ended && self.down.ended {
            return Next::Close(Ending::Complete);
        }
        // Passing an end on fails only when that side is gone, which its other direction finds out.
        if up == Flown::Ended {
            let _ = socket::end(self.backend.socket.as_fd());
        }
        if down == Flown::Ended {
            let _ = socket::end(client.socket.as_fd());
        }
        if self.moved() != before {
            self.active = context.now;
        }
        if !self.settled && self.look <= context.now {
            self.settled = true;
            // Fails only on a socket that has failed, which is told otherwise.
            let _ = socket::keep_alive(self.backend.socket.as_fd(), LIVENESS);
        }
        self.mind_the_clock(context);
        if self.look <= context.now {
            self.cut_short(client);
            return Next::Close(Ending::IdleTooLong);
        }
        if up == Flown::BudgetSpent || down == Flown::BudgetSpent { Next::Again } else { Next::Wait }
    }

    /// Ends a game that has not ended itself: in order when each side has every byte of the other, else with a reset.
    pub(super) fn cut_short(&self, client: &Side) {
        let held = self.up.pump.holds_bytes() || self.down.pump.holds_bytes();
        if held || client.ready.readable || self.backend.ready.readable {
            self.cut(client);
        }
    }

    fn cut(&self, client: &Side) {
        socket::reset(client.socket.as_fd());
        socket::reset(self.backend.socket.as_fd());
    }

    /// Moves the next look to where the last activity allows it.
    fn mind_the_clock(&mut self, context: &Context) {
        let half_closed = self.up.ended || self.down.ended;
        let timeout = if half_closed { context.settings.half_closed_timeout } else { context.settings.idle_timeout };
        let idle_until = self.active + timeout;
        if self.look <= context.now || idle_until < self.look {
            self.look = idle_until;
        }
    }

    pub(super) fn let_go(mut self, context: &mut Context) {
        self.up.pump.release(&mut context.shared);
        self.down.pump.release(&mut context.shared);
        context.engine.forget(self.backend.socket, self.backend.token);
    }
}

impl Flow {
    fn can_move(&self, source: &Side, sink: &Side) -> bool {
        sink.ready.writable && (source.ready.readable || self.pump.holds_bytes())
    }

    fn has_bulk(&self, source: &Side, sink: &Side) -> bool {
        self.pump.splices() && !self.ended && self.can_move(source, sink)
    }

    fn run(&mut self, source: &mut Side, sink: &mut Side, context: &mut Context) -> Flown {
        if self.ended {
            // Nothing is read any more from a source that has ended: that it failed later is seen only here.
            return if source.ready.failed { Flown::Failed } else { Flown::Blocked };
        }
        if self.can_move(source, sink) {
            let (from, to) = (source.socket.as_fd(), sink.socket.as_fd());
            match self.pump.run(from, to, source.ready, &mut context.shared) {
                Outcome::SourceDry => {
                    source.ready.readable = false;
                    source.ready.urgent = false;
                }
                Outcome::SinkFull => sink.ready.writable = false,
                Outcome::BudgetSpent => return Flown::BudgetSpent,
                // A socket tells its failure once: whoever looks next finds an end.
                Outcome::Ended if source.broken => return Flown::Failed,
                Outcome::Ended => {
                    self.ended = true;
                    source.ready.readable = false;
                    return Flown::Ended;
                }
                Outcome::SourceFailed(_) => {
                    source.broken = true;
                    return Flown::Failed;
                }
                Outcome::SinkFailed(_) => {
                    sink.broken = true;
                    sink.ready.readable = true; // its last words may have arrived untold
                    return Flown::Failed;
                }
            }
        }
        // A source that failed while its sink is full would be noticed only when the sink has taken what it has.
        if source.ready.failed && !sink.ready.writable { Flown::Failed } else { Flown::Blocked }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::engine::Shared;

    #[test]
    fn a_direction_that_was_bulk_and_rests_does_not_make_the_game_heavy() {
        let ((mut player, mut client), (mut game, backend)) = (end(0), end(1));
        let now = Instant::now();
        let (up, down) = (Flow::default(), Flow::default());
        let mut relay = Relay { backend, settled: false, up, down, active: now, look: now };
        let mut shared = Shared::new(limits::BUFFER_BYTES);
        client.note(Readiness { readable: true, writable: true, ..Readiness::default() });
        relay.backend.note(Readiness { writable: true, ..Readiness::default() });
        while !relay.up.pump.splices() {
            player.write_all(&[0; 64 * 1024]).expect("it is sent");
            let (from, to) = (client.socket.as_fd(), relay.backend.socket.as_fd());
            relay.up.pump.run(from, to, client.ready, &mut shared);
            while matches!(game.read(&mut [0; 64 * 1024]), Ok(1..)) {}
        }
        assert!(relay.is_heavy(&client), "there may be more");
        client.ready.readable = false;
        relay.backend.note(Readiness { readable: true, ..Readiness::default() });
        assert!(!relay.is_heavy(&client), "a message of the backend's is no bulk");
        client.note(Readiness { readable: true, ..Readiness::default() });
        assert!(relay.is_heavy(&client), "it goes on");
        relay.backend.ready.writable = false;
        assert!(!relay.is_heavy(&client), "it cannot be moved now");
    }

    /// A connection: the far end, and ours.
    fn end(role: u8) -> (TcpStream, Side) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let far = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it is reached");
        let (near, _) = listener.accept().expect("it came");
        far.set_nonblocking(role != 0).expect("it is a socket");
        near.set_nonblocking(true).expect("it is a socket");
        (far, Side::new(near.into(), Token::new(0, 0, role)))
    }
}
