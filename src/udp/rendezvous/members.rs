//! A peer's control stream: requests in, notices out. Both are bounded: a peer that does not read what it is told is not heard
//! until it does, and one that others make too much to tell to is let go.

use std::net::SocketAddr;

use crate::proto::rendezvous::wire::{Inbox, Message, Notice, Request, Transport};
use crate::proto::tunnel::{StreamId, Tunnel};

/// Requests of one peer before others have their turn, at about a microsecond each.
const REQUESTS_PER_TURN: usize = 256;

/// Bytes taken from the stream at a time.
const PIECE_BYTES: usize = 4096;

/// Notices that wait for room in the stream, in bytes: with more, no request is heard; with as many again for each flow that a
/// key may have, the peer is let go.
const OUTBOX_BYTES_HIGH: usize = 64 << 10;
const OUTBOX_BYTES_MAX: usize = 512 << 10;

/// What a rendezvous keeps of a peer.
#[derive(Debug, Default)]
pub(super) struct Member {
    /// Its first one: there is no other.
    pub(super) stream: Option<StreamId>,
    inbox: Inbox,
    outbox: Vec<u8>,
    /// How its packets arrive, as it was told last.
    by_udp: Option<SocketAddr>,
    by_tcp: Option<SocketAddr>,
    /// The TCP connection that it came by, or has beside UDP.
    pub(super) link: Option<u32>,
    /// Datagrams passed on lately.
    pub(super) relayed: u32,
}

pub(super) enum Listening {
    Done,
    More,
    /// What it says are no messages.
    Fault,
}

impl Member {
    /// Writes what waits, and hears what the peer says, as far as that goes now.
    pub(super) fn hear(&mut self, tunnel: &mut Tunnel, mut each: impl FnMut(Request)) -> Listening {
        let Some(stream) = self.stream else { return Listening::Done };
        self.flush(tunnel);
        for _ in 0..REQUESTS_PER_TURN {
            if self.outbox.len() > OUTBOX_BYTES_HIGH {
                return Listening::Done; // until there is room to write, which is told
            }
            match self.inbox.pop() {
                Ok(Some(request)) => each(request),
                Ok(None) => {
                    let piece = tunnel.peek(stream);
                    if piece.is_empty() {
                        return Listening::Done;
                    }
                    let piece = &piece[..piece.len().min(PIECE_BYTES)];
                    let taken = piece.len();
                    self.inbox.push(piece);
                    tunnel.consume(stream, taken);
                }
                Err(_malformed) => return Listening::Fault,
            }
        }
        Listening::More
    }

    /// False when too much waits to be told.
    #[must_use]
    pub(super) fn tell(&mut self, notice: Notice, tunnel: &mut Tunnel) -> bool {
        notice.emit(&mut self.outbox);
        self.flush(tunnel);
        self.outbox.len() <= OUTBOX_BYTES_MAX
    }

    /// As [`Self::tell`], unless that was the last that was told.
    #[must_use]
    pub(super) fn tell_address(&mut self, transport: Transport, address: SocketAddr, tunnel: &mut Tunnel) -> bool {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let last = match transport {
            Transport::Udp => &mut self.by_udp,
            Transport::Tcp => &mut self.by_tcp,
        };
        last.replace(address) == Some(address) || self.tell(Notice::Address(transport, address), tunnel)
    }

    fn flush(&mut self, tunnel: &mut Tunnel) {
        if let Some(stream) = self.stream
            && !self.outbox.is_empty()
        {
            let written = tunnel.write(stream, &self.outbox);
            self.outbox.drain(..written);
        }
    }
}
