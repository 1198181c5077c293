//! A session: what two ends share after a handshake. Seals the packets of one direction, opens those of the other, both in
//! place and without allocation.
//!
//! * Sealing: [`Session::begin_packet`] appends the header's room to a batch, the caller appends frames, and
//!   [`Session::finish_packet`] numbers, encrypts and tags them. Several packets lie one after the other in the batch.
//! * Opening: id, epoch, replay window, tag, and only then is anything changed; see [`Session::open`].
//! * Keys change with the epoch, which is the number without its lower 22 bits. A sender comes to the next one by counting, or
//!   goes on at its first number when 10 minutes have passed. A receiver opens its own epoch, the one before it, which it
//!   forgets after three minutes, and the one after it, to which it moves with the first packet that is authentic.
//! * After the last number nothing is sealed any more.
//!
//! The tunnel must end a session whose peer is silent for so long that it may have missed a whole epoch. Absent: addresses, and
//! the question whether the peer has spoken under these keys yet: it has when something opens.

mod opener;
mod sealer;
#[cfg(test)]
mod tests;

use opener::Opener;
use sealer::Sealer;

use super::keys::Ratchet;
use super::packet_key::Forged;
use super::wire::{Header, Id, TAG_BYTES};

/// Bits of a number below its epoch: 4.2 million packets under one key, or 6 GB of full ones. RFC 9001 (section 6.6) allows
/// AES-GCM twice as many.
pub const EPOCH_BITS: u32 = 22;

/// Age at which a sender leaves a key, µs.
pub const REKEY_US: u64 = 600_000_000;

/// Time for which packets of the epoch before are taken, µs. Far longer than any packet is under way.
pub const OLD_EPOCH_US: u64 = 180_000_000;

/// The time of an old epoch is over before time brings the next change.
const _: () = assert!(REKEY_US > OLD_EPOCH_US);

#[derive(Debug)]
pub struct Session {
    /// Where we want our packets, and where the peer wants its.
    id: Id,
    peer_id: Id,
    sealer: Sealer,
    opener: Opener,
}

/// A packet that is authentic and new.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    pub number: u64,
    /// No packet with a higher number was opened before.
    pub is_highest: bool,
    /// What the peer has appended between header and tag.
    pub plaintext: &'a mut [u8],
}

/// Why a packet was not opened. Nobody but our own counters hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Shorter than header and tag, or addressed to another session.
    NotOurs,
    /// Its epoch is neither this one nor a neighbour that we (still) know.
    OtherEpoch,
    /// Seen before, or too old to tell.
    Replayed,
    Forged,
}

/// All numbers are used up. The packet has been taken back out of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Session {
    /// `ratchets` are for what we send and for what we receive; both ids are of this session.
    pub(super) fn new(now: u64, [id, peer_id]: [Id; 2], [sending, receiving]: [Ratchet; 2]) -> Self {
        Self { id, peer_id, sealer: Sealer::new(now, sending), opener: Opener::new(receiving) }
    }

    /// What datagrams for this session begin with.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    /// Of the packet that is sealed next.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.sealer.next
    }

    /// Appends the room of a header and returns where the packet starts. Frames come behind it. A packet that is not wanted
    /// after all is cut off by `out.truncate(start)`.
    #[must_use]
    pub fn begin_packet(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.extend_from_slice(&[0; Header::LEN]);
        start
    }

    /// Encrypts what was appended since `begin_packet` returned `start`, completes the packet and returns its number.
    ///
    /// # Errors
    /// When there are no numbers left.
    pub fn finish_packet(&mut self, out: &mut Vec<u8>, start: usize) -> Result<u64, Exhausted> {
        let sealed = self.sealer.seal(self.peer_id, &mut out[start..]);
        let Ok((number, tag)) = sealed else {
            out.truncate(start); // It is not encrypted.
            return Err(Exhausted);
        };
        out.extend_from_slice(&tag);
        Ok(number)
    }

    /// Opens a packet. A datagram that is rejected may have been altered, and is of no use for another session.
    ///
    /// # Errors
    /// For everything that is not an authentic packet of this session, for the first time.
    pub fn open<'a>(&mut self, now: u64, datagram: &'a mut [u8]) -> Result<Opened<'a>, Rejected> {
        if datagram.len() < Header::LEN + TAG_BYTES {
            return Err(Rejected::NotOurs);
        }
        let (head, body) = datagram.split_first_chunk_mut::<{ Header::LEN }>().ok_or(Rejected::NotOurs)?;
        match Header::parse(head) {
            Ok(Header { id, number }) if id == self.id => self.opener.open(now, number, head, body),
            _ => Err(Rejected::NotOurs),
        }
    }

    /// Changes the sender's key when it is old, and forgets the receiver's old one when its time has come. To be called before
    /// each batch, or at [`Session::next_timeout`].
    pub fn handle_timeout(&mut self, now: u64) {
        self.sealer.handle_timeout(now);
        self.opener.handle_timeout(now);
    }

    #[must_use]
    pub fn next_timeout(&self) -> u64 {
        self.sealer.next_timeout().min(self.opener.next_timeout())
    }
}

fn epoch(number: u64) -> u64 {
    number >> EPOCH_BITS
}

impl From<Forged> for Rejected {
    fn from(_: Forged) -> Self {
        Self::Forged
    }
}

impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotOurs => "not addressed to this session",
            Self::OtherEpoch => "of an epoch without a key",
            Self::Replayed => "seen before, or too old to tell",
            Self::Forged => "not authentic",
        })
    }
}

impl std::error::Error for Rejected {}

impl std::fmt::Display for Exhausted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("all numbers of the session are used up")
    }
}

impl std::error::Error for Exhausted {}
