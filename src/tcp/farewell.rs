//! Refusing: the answer, the end of our stream, and patience with what the client still sends. Closing a socket with unread
//! input would send a reset, which can overtake the answer.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::Instant;

use super::{Context, Ending, Next, Side};
use crate::limits;
use crate::proto::status::Refusal;
use crate::sys::socket;

#[derive(Debug)]
pub(super) struct Farewell {
    pub(super) refusal: Refusal,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The answer waits for its time.
    Due {
        at: Instant,
    },
    Said {
        until: Instant,
        discarded: usize,
    },
}

impl Farewell {
    pub(super) fn new(refusal: Refusal, not_before: Instant) -> Self {
        Self { refusal, state: State::Due { at: not_before } }
    }

    pub(super) fn deadline(&self) -> Instant {
        match self.state {
            State::Due { at } => at,
            State::Said { until, .. } => until,
        }
    }

    pub(super) fn step(&mut self, client: &mut Side, context: &mut Context) -> Next {
        if let State::Due { at } = self.state {
            if context.now < at {
                return Next::Wait;
            }
            // Three bytes always find room in a socket that has sent nothing; a client that is gone needs none.
            let said = socket::send(client.socket.as_fd(), self.refusal.status().bytes());
            if said.is_err() || socket::end(client.socket.as_fd()).is_err() {
                return Next::Close(Ending::Refused);
            }
            self.state = State::Said { until: context.now + limits::LINGER_TIMEOUT, discarded: 0 };
            client.ready.readable = true; // what was left unread is not told again
        }
        let State::Said { until, discarded } = &mut self.state else { return Next::Wait };
        while client.ready.readable && *discarded < limits::LINGER_BYTES_MAX {
            match socket::discard(client.socket.as_fd(), context.shared.buffer.len()) {
                Ok(0) => return Next::Close(Ending::Refused),
                Ok(n) => *discarded += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => client.ready.readable = false,
                Err(_reset) => return Next::Close(Ending::Refused),
            }
        }
        if context.now >= *until || *discarded >= limits::LINGER_BYTES_MAX {
            return Next::Close(Ending::Refused);
        }
        Next::Wait
    }
}
