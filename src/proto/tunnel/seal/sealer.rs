//! The half of a session that sends: counts, changes keys, seals.

use super::super::keys::Ratchet;
use super::super::packet_key::PacketKey;
use super::super::wire::{HANDSHAKE_NUMBER, Header, Id, NUMBER_MAX, TAG_BYTES};
use super::{EPOCH_BITS, Exhausted, REKEY_US, epoch};

#[derive(Debug)]
pub(super) struct Sealer {
    key: Box<PacketKey>,
    ratchet: Ratchet,
    /// Of `key`.
    pub(super) epoch: u64,
    /// Of the next packet. It may be in the epoch after `epoch`, never further.
    pub(super) next: u64,
    /// When we leave `timed_epoch`.
    rekey_at: u64,
    timed_epoch: u64,
}

impl Sealer {
    pub fn new(now: u64, mut ratchet: Ratchet) -> Self {
        Self {
            key: ratchet.advance(),
            ratchet,
            epoch: 0,
            next: HANDSHAKE_NUMBER + 1,
            rekey_at: now + REKEY_US,
            timed_epoch: 0,
        }
    }

    /// Fills in the header, encrypts what follows it.
    pub fn seal(&mut self, to: Id, packet: &mut [u8]) -> Result<(u64, [u8; TAG_BYTES]), Exhausted> {
        let number = self.next;
        if number > NUMBER_MAX {
            return Err(Exhausted);
        }
        if epoch(number) != self.epoch {
            self.key = self.ratchet.advance();
            self.epoch += 1;
        }
        self.next += 1;
        let (head, body) = packet.split_at_mut(Header::LEN);
        let header = Header { id: to, number }.emit();
        head.copy_from_slice(&header);
        Ok((number, self.key.seal(number, &header, body)))
    }

    /// An epoch that we count to but have not used yet is not skipped: the receiver could not follow.
    pub fn handle_timeout(&mut self, now: u64) {
        let is_current = self.timed_epoch == self.epoch;
        if is_current && now < self.rekey_at {
            return;
        }
        if is_current && epoch(self.next) == self.epoch {
            self.next = (self.epoch + 1) << EPOCH_BITS;
        }
        self.timed_epoch = self.epoch;
        self.rekey_at = now + REKEY_US;
    }

    pub fn next_timeout(&self) -> u64 {
        self.rekey_at
    }
}
