//! The tunnel: many streams and datagrams between two peers, inside authenticated UDP datagrams.
//!
//! An [`Endpoint`] is what one UDP socket needs: it tells tunnels apart, answers handshakes and begins them. A [`Tunnel`] is one
//! peer. Their owner
//! 1. hands in all that has arrived ([`Endpoint::handle_datagram`], once a datagram),
//! 2. hears what happened ([`Endpoint::poll_event`]), reads and writes streams and datagrams ([`Endpoint::tunnel`]),
//! 3. sends what is to be sent ([`Endpoint::poll_transmit`] until it has no more),
//! 4. comes back at [`Endpoint::next_timeout`] with [`Endpoint::handle_timeout`], then goes on at 2.
//!
//! Acknowledgements are written in step 3, so whoever hands in a whole batch first sends few of them.
//!
//! A stream is a conversation of [`crate::proto::kcp`]; only the visitor, who began the tunnel, opens any. Datagrams travel
//! beside them and are never sent twice. Time comes in as µs from any origin, and never goes back.
//!
//! Deliberately absent: sockets; the way by which two peers learn each other's addresses.

mod endpoint;
mod keys;
pub mod pacer;
mod settings;
mod streams;

use std::net::SocketAddr;

pub use endpoint::Endpoint;
pub use keys::Secret;
pub use settings::{Repeats, Service, Settings};
pub use streams::StreamId;

/// One tunnel of an endpoint. Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelId(u64);

/// Datagrams to be sent, as they stand at the end of the buffer: all but the last have `segment_bytes`, the last has as many
/// or fewer. Ready for `UDP_SEGMENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    pub to: SocketAddr,
    pub segment_bytes: usize,
    /// One datagram that finds out whether the path carries so many bytes: it may be refused (EMSGSIZE), which is an answer.
    pub is_mtu_probe: bool,
}

/// What has happened in a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer has proved that it knows the secret. Streams and datagrams may begin.
    Established,
    /// The tunnel is gone with all its streams, about which nothing more is said.
    Lost(LostReason),
    /// Provider only: the visitor has opened a stream to that port of the service.
    Opened { stream: StreamId, port: u8, player: Option<SocketAddr> },
    /// There is more to read than when it was last told, or [`Tunnel::peek`] last showed nothing.
    Readable(StreamId),
    /// [`Tunnel::write`] took less than it was given, and there is room again.
    Writable(StreamId),
    /// The peer has finished its half, and all of it can be read.
    Ended(StreamId),
    /// Neither half goes on. What was not read is gone, as is the stream.
    Reset(StreamId, ResetReason),
    /// Both halves have finished and all is read, here and there: the stream is gone.
    Forgotten(StreamId),
    /// There are datagrams to read.
    Datagrams,
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
}

/// What [`Tunnel::close`] tells the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// It is no longer needed.
    Done,
    /// The process ends.
    Leaving,
    /// The peer did what the protocol forbids.
    Fault,
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
    /// Another of a later version.
    Other(u8),
}

/// From where, and to where, a datagram of a player travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramInfo {
    /// The player, as the visitor counts them; answers carry the same.
    pub session: u32,
    /// Of the service.
    pub port: u8,
    /// The player's address, where the service wants to know it.
    pub player: Option<SocketAddr>,
}

/// A tunnel at this moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Status {
    /// Where its datagrams go.
    pub remote: SocketAddr,
    /// Smoothed round trip. `None` before the first.
    pub rtt_us: Option<u64>,
    /// Share of our datagrams that did not arrive, 0 to 1, as the peer has counted lately.
    pub loss: f32,
    /// Longest datagram the path is known to carry, bytes of UDP payload.
    pub mtu: usize,
    /// Streams that are not forgotten.
    pub streams: usize,
    /// Bytes of bulk that may be sent in a second, as measured.
    pub rate: u64,
    /// Datagrams and their bytes, as they are on the wire without IP and UDP headers.
    pub sent: Traffic,
    pub received: Traffic,
    /// Datagrams for this tunnel that were not authentic, or came twice.
    pub refused: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub datagrams: u64,
    pub bytes: u64,
}

/// One peer: its streams and datagrams.
#[derive(Debug)]
pub struct Tunnel {
    status: Status,
    service: Service,
}

impl Tunnel {
    /// Opens a stream to a port of the service. `player` is told to a service that wants to know. `None` for a provider, before
    /// the tunnel is established, and while there are as many streams as there may be.
    pub fn open(&mut self, _port: u8, _player: Option<SocketAddr>) -> Option<StreamId> {
        None
    }

    /// Takes as many of `bytes` as there is room for; none for a stream that has finished or is gone. Took it less than all,
    /// [`Event::Writable`] tells when there is room again.
    pub fn write(&mut self, _stream: StreamId, _bytes: &[u8]) -> usize {
        0
    }

    /// Bytes that [`Self::write`] would take.
    #[must_use]
    pub fn room(&self, _stream: StreamId) -> usize {
        0
    }

    /// The first of the bytes that can be read, where they lie. Empty when there are none, and for a stream that is gone.
    #[must_use]
    pub fn peek(&self, _stream: StreamId) -> &[u8] {
        &[]
    }

    /// Counts the first `bytes` of what [`Self::peek`] shows as read. What is not read stops the peer's writer.
    ///
    /// # Panics
    /// When it shows fewer.
    pub fn consume(&mut self, _stream: StreamId, _bytes: usize) {}

    /// Ends our half: the peer is told after all bytes that were written.
    pub fn finish(&mut self, _stream: StreamId) {}

    /// Cuts both halves. Nothing is said of this stream from now on.
    pub fn reset(&mut self, _stream: StreamId, _reason: ResetReason) {}

    /// Queues a datagram of a player, or to one. It is sent at once and never again. Under congestion the oldest that waits is
    /// dropped for it. False, and nothing is queued, when it is longer than [`Self::datagram_bytes_max`] or the tunnel is not
    /// established.
    pub fn send_datagram(&mut self, _session: u32, _port: u8, _player: Option<SocketAddr>, _bytes: &[u8]) -> bool {
        false
    }

    /// Longest datagram that can be sent.
    #[must_use]
    pub fn datagram_bytes_max(&self) -> usize {
        0
    }

    /// Appends the next datagram that has arrived.
    pub fn read_datagram(&mut self, _out: &mut Vec<u8>) -> Option<DatagramInfo> {
        None
    }

    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The service that it leads to. A visitor knows only its name until the tunnel is established.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Tells the peer, as far as one datagram can. The tunnel is gone soon after; of it nothing is heard any more.
    pub fn close(&mut self, _reason: CloseReason) {}
}
