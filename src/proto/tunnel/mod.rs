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
//! The files, in the order in which a packet meets them:
//!
//! * on its way in: `endpoint` finds the tunnel, `greeter` is for strangers, and `tries` bounds what they cost, `sessions` and
//!   `seal` open the packet, `receive` deals with its `frames`, `life` with streams (`stream`, `streams`, `control`);
//! * on its way out: `schedule` fills packets, `pacer` says when bulk may leave, `repeats` how often games are repeated;
//! * beside that: `path`, `moves`, `liveness` and `mtu` know the way, `reports` what it loses, `way` the addresses of ways that are
//!   no UDP.
//!
//! Deliberately absent: sockets; the way by which two peers learn each other's addresses.

mod class;
mod control;
mod datagrams;
mod deadlines;
mod endpoint;
mod events;
mod frames;
mod greeter;
pub mod handshake;
pub mod keys;
mod life;
mod liveness;
mod moves;
mod mtu;
mod numbering;
pub mod pacer;
mod packet_key;
mod path;
mod peer;
mod pieces;
mod probe_tokens;
pub mod random;
mod receive;
mod repeats;
mod replay;
mod reports;
mod schedule;
pub mod seal;
mod sessions;
mod settings;
mod stream;
mod streams;
mod tries;
mod way;
mod window;
pub mod wire;

use std::net::SocketAddr;

pub use datagrams::DatagramInfo;
pub use endpoint::Endpoint;
pub use events::{CloseReason, Event, LostReason, ResetReason};
pub use frames::Token;
pub(in crate::proto) use frames::{emit_address, parse_address, parse_optional_address};
pub use keys::Key;
pub use moves::Leaving;
pub use peer::Tunnel;
pub use settings::{Repeats, Service, Settings};
pub use stream::StreamId;
pub use way::{LINK_BITS, Way, is_virtual};
pub use wire::ServiceName;

/// One tunnel of an endpoint. Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelId {
    /// Where it stands among those that there are, and which one it is of all that ever were.
    place: u32,
    serial: u64,
}

/// Datagrams to be sent, as they stand at the end of the buffer: all but the last have `segment_bytes`, the last has as many
/// or fewer. Ready for `UDP_SEGMENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    pub to: SocketAddr,
    pub segment_bytes: usize,
    /// One datagram that finds out whether the path carries so many bytes: it may be refused (EMSGSIZE), which is an answer.
    pub is_mtu_probe: bool,
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
    /// How often the segments of thin streams are repeated.
    pub repeats: u32,
    /// The silence after which the peer is asked whether it lives, in µs.
    pub ask_after_us: u64,
    /// Longest datagram that the path is known to carry, bytes of UDP payload.
    pub mtu: usize,
    /// Streams that are not forgotten.
    pub streams: usize,
    /// Buffers of streams that nobody holds.
    pub buffers_free: usize,
    /// Words about streams that wait for the peer to take earlier ones.
    pub messages_waiting: usize,
    /// Handshakes by which its keys were made, the first included.
    pub sessions: u32,
    /// Bytes of bulk that may be sent in a second, as measured.
    pub rate: u64,
    /// As it is on the wire, without IP and UDP headers.
    pub sent: Traffic,
    /// Datagrams of these that try other ways. That nobody answers them says nothing of the peer.
    pub sent_aside: u64,
    pub received: Traffic,
    /// Datagrams for this tunnel that were not authentic, or came twice.
    pub refused: u64,
    /// Players' datagrams that waited too long, here, to be sent or to be read.
    pub dropped: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub datagrams: u64,
    pub bytes: u64,
}

impl Traffic {
    fn count(&mut self, bytes: usize) {
        self.datagrams += 1;
        self.bytes += bytes as u64;
    }
}
