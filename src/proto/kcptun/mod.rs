//! The profile of kcptun: lets its clients reach us, and us reach its servers. Sources: xtaci/kcptun, xtaci/kcp-go (5.6),
//! xtaci/smux (1.5).
//!
//! An [`Endpoint`] is what one UDP socket needs, a [`Session`] is one peer. Their owner deals with them as with a tunnel:
//! 1. hands in all that has arrived ([`Endpoint::handle_datagram`], once a datagram),
//! 2. hears what happened ([`Endpoint::poll_event`]), reads and writes streams ([`Endpoint::session`]),
//! 3. sends what is to be sent ([`Endpoint::poll_transmit`] until it has no more),
//! 4. comes back at [`Endpoint::next_timeout`] with [`Endpoint::handle_timeout`], then goes on at 2.
//!
//! The layers of a packet, from outside:
//!
//! ```text
//! crypt     nonce, checksum, cipher; one key for all
//! fec       parity for each group of packets
//! kcp       one conversation for everything, its number chosen by the client (crate::proto::kcp)
//! snappy    the stream that it carries, compressed
//! smux      the many streams in that one, opened by the client
//! ```
//!
//! Not the way to carry games where there is a choice: one conversation makes every stream wait for each lost packet of all
//! others, and see [`WARNING`]. Deliberately absent: the ciphers that nobody chooses (3DES, Blowfish, CAST5, SM4, TEA, Twofish,
//! XTEA), `mode manual`, TCP disguise, ranges of ports, `autoexpire`, and congestion control, which kcptun switches off.

mod carrier;
mod crypt;
mod endpoint;
mod fec;
mod packets;
mod session;
mod settings;
mod smux;
mod snappy;

pub use crypt::{Cipher, Key};
pub use endpoint::{Endpoint, SessionId, Transmit};
pub use fec::Shape;
pub use packets::Counters;
pub use session::{Session, Status};
pub use settings::{Settings, Unfit};
pub use smux::StreamId;
pub use smux::frame::Version;

/// What whoever switches the profile on has to know.
pub const WARNING: &str = "kcptun's encryption does not authenticate: whoever can reach this port can tamper with what is \
                           sent, replay it and end sessions; use it for peers that speak nothing else";

/// What has happened in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer has answered, or sent something first. There is no handshake: streams may begin before.
    Established,
    /// The session is gone with all its streams, about which nothing more is said.
    Lost(LostReason),
    /// Server only: the client has opened a stream.
    Opened(StreamId),
    /// There is more to read than when it was last told, or [`Session::peek`] last showed nothing.
    Readable(StreamId),
    /// [`Session::write`] took less than it was given, and there is room again.
    Writable(StreamId),
    /// The peer has closed the stream, and all that it has sent can be read. It reads nothing more: what we have not sent is
    /// dropped, and nothing more can be written.
    Ended(StreamId),
    /// The peer broke the rules of this stream, or it was long not read and held up all others. What was not read is gone, as is the stream.
    Reset(StreamId),
    /// Both ends have closed the stream and all is read: it is gone.
    Forgotten(StreamId),
}

/// Why a session is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostReason {
    /// Nothing was heard of the peer for too long.
    Silent,
    /// What it says makes no sense: another setting of compression or of smux, or an attack.
    Garbled,
    /// A new session came from its address.
    Replaced,
}
