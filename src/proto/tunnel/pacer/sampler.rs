//! How fast the path delivers: what was acknowledged between the sending of a segment and its acknowledgement, over the time in
//! which that was sent or acknowledged, whichever took longer.

use crate::proto::kcp::{Acked, Stamp};

/// Around the payload of a segment that has a datagram to itself, in bytes: its header of 24, and the packet's 28 with the kind of
/// its frame.
const OVERHEAD_BYTES: u64 = 24 + 29;

/// Set in a stamp's first word when too little was written to fill the path.
const IDLE: u64 = 1 << 63;

#[derive(Debug, Default)]
pub struct Sampler {
    /// Bytes acknowledged, overhead included, and when that was last so.
    delivered: u64,
    delivered_at: u64,
    /// When the segment was sent with which the interval of sending begins.
    first_sent_at: u64,
    /// Until so much is delivered, samples tell how fast was written, not how fast the path is.
    idle_until: u64,
    /// Round trips so far, and what has to be delivered for the next.
    pub rounds: u64,
    round_ends: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Bytes/s.
    pub rate: u64,
    pub interval_us: u64,
    /// Too little was written: the path may be faster.
    pub is_idle: bool,
    pub begins_round: bool,
}

impl Sampler {
    pub fn stamp(&mut self, now: u64, in_flight: usize) -> Stamp {
        if in_flight == 0 {
            (self.first_sent_at, self.delivered_at) = (now, now);
        }
        let idle = if self.idle_until > self.delivered { IDLE } else { 0 };
        let since = |then: u64| u64::from(u32::try_from(now.saturating_sub(then)).unwrap_or(u32::MAX));
        [self.delivered | idle, now, since(self.delivered_at) << 32 | since(self.first_sent_at)]
    }

    pub fn run_dry(&mut self, in_flight: usize) {
        self.idle_until = self.delivered + in_flight.max(1) as u64;
    }

    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// `None` when it is not sure which transmission arrived.
    pub fn on_acked(&mut self, now: u64, acked: &Acked) -> Option<Sample> {
        self.delivered += acked.length as u64 + OVERHEAD_BYTES;
        self.delivered_at = now;
        let [delivered, sent, since] = acked.stamp;
        let is_last = match acked.rtt_us {
            Some(rtt) => now.saturating_sub(rtt) == sent,
            None => acked.transmissions == 1,
        };
        if !is_last {
            return None;
        }
        let is_idle = delivered & IDLE != 0;
        let delivered = delivered & !IDLE;
        let sending = since & u64::from(u32::MAX);
        let acknowledging = now.saturating_sub(sent) + (since >> 32);
        self.first_sent_at = self.first_sent_at.max(sent);
        let begins_round = delivered >= self.round_ends;
        if begins_round {
            self.rounds += 1;
            self.round_ends = self.delivered;
        }
        let interval_us = sending.max(acknowledging).max(1);
        let rate = (self.delivered - delivered) * 1_000_000 / interval_us;
        Some(Sample { rate, interval_us, is_idle, begins_round })
    }
}
