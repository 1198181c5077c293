//! What a tunnel tells its owner, and what it tells the peer when something ends.

use std::net::SocketAddr;

use super::StreamId;
use super::frames::Token;

/// What has happened in a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer has proved that it knows the secret. Streams and datagrams may begin.
    Established,
    /// The tunnel is gone with all its streams, about which nothing more is said.
    Lost(LostReason),
    /// Provider only: the visitor has opened a stream to that port of the service.
    Opened { stream: StreamId, port: u8, player: Option<SocketAddr> },
    /// There is something to read. It is told again when all of that was read and more has come.
    Readable(StreamId),
    /// [`super::Tunnel::write`] took less than it was given, and there is room again.
    Writable(StreamId),
    /// The peer has finished its half, and all of it can be read.
    Ended(StreamId),
    /// Neither half goes on. What was not read is gone, as is the stream.
    Reset(StreamId, ResetReason),
    /// Both halves have finished and all is read, here and there: the stream is gone.
    Forgotten(StreamId),
    /// There are datagrams to read. It is told again when [`super::Tunnel::read_datagram`] had none and more have come.
    Datagrams,
    /// There is something to read with [`super::Tunnel::read_told`]. It is told again when that had nothing and more has come.
    Told,
    /// A probe of the peer came from there, which may be a way to it.
    Probed { from: SocketAddr },
    /// A probe of ours was answered from where it went to: this way works in both directions, and takes so long.
    Answered { from: SocketAddr, rtt_us: u64 },
    /// How the peer saw the source of what [`super::Tunnel::observe`] or its like made with this token.
    Observed { token: Token, address: SocketAddr },
    /// The peer asks how it is seen, and wants to hear that from a socket which it did not ask, in what
    /// [`super::Tunnel::answer_elsewhere`] makes. Only where [`super::Settings::answers_observe`] is set.
    AskedElsewhere { token: Token, from: SocketAddr },
    /// Its datagrams go somewhere else from now on, since the peer has moved.
    Moved { to: SocketAddr },
}

/// Why a tunnel is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostReason {
    /// Nobody has answered the handshake.
    Unanswered,
    /// Nothing was heard of the peer for 55 s, although it was asked.
    Silent,
    /// The peer has closed it.
    Closed(CloseReason),
    /// The peer did what the protocol forbids.
    Fault,
}

/// What [`super::Tunnel::close`] tells the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// It is no longer needed.
    Done,
    /// The process ends.
    Leaving,
    /// The peer did what the protocol forbids.
    Fault,
    /// The provider has as many peers as it bears.
    Full,
    /// Another of a later version.
    Other(u8),
}

/// Why a stream was cut, or never began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// The connection behind it was reset.
    Reset,
    /// The target refuses connections.
    Refused,
    /// The target does not answer.
    TimedOut,
    /// The service has no such port.
    NoSuchPort,
    /// The provider has as many streams as it bears.
    TooMany,
    /// The peer did with this stream what the protocol forbids.
    Fault,
    /// Another of a later version.
    Other(u8),
}

impl CloseReason {
    const KNOWN: [Self; 4] = [Self::Done, Self::Leaving, Self::Fault, Self::Full];

    pub(super) fn to_byte(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Leaving => 1,
            Self::Fault => 2,
            Self::Full => 3,
            Self::Other(byte) => byte,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Self {
        Self::KNOWN.into_iter().find(|known| known.to_byte() == byte).unwrap_or(Self::Other(byte))
    }
}

impl ResetReason {
    const KNOWN: [Self; 6] = [Self::Reset, Self::Refused, Self::TimedOut, Self::NoSuchPort, Self::TooMany, Self::Fault];

    pub(super) fn to_byte(self) -> u8 {
        match self {
            Self::Reset => 0,
            Self::Refused => 1,
            Self::TimedOut => 2,
            Self::NoSuchPort => 3,
            Self::TooMany => 4,
            Self::Fault => 5,
            Self::Other(byte) => byte,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Self {
        Self::KNOWN.into_iter().find(|known| known.to_byte() == byte).unwrap_or(Self::Other(byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_read_as_they_were_written() {
        for byte in 0..=u8::MAX {
            assert_eq!(CloseReason::from_byte(byte).to_byte(), byte);
            assert_eq!(ResetReason::from_byte(byte).to_byte(), byte);
        }
    }
}
