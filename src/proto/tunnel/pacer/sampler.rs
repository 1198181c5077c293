//! How fast the path delivers: what was acknowledged from the sending of a segment to its acknowledgement, over the time in which
//! that was sent or acknowledged, whichever took longer (draft-cheng-iccrg-delivery-rate-estimation).
//!
//! Players' datagrams and repeats take their part of the path, too, and nobody acknowledges them. They are taken to have been
//! delivered when something was that was sent later: else the path would seem slower by what they take, and bulk would give way to
//! them again and again. What of them is lost counts, too: to leave it out changed nothing that could be measured.

use crate::proto::kcp::{Acked, Stamp};

/// Around the payload of a segment that has a datagram to itself, in bytes: its header of 24, the packet's 28, and the kind of
/// the frame.
const OVERHEAD_BYTES: u64 = 24 + 28 + 1;

/// Set in a stamp's first word when less was written than the path would have taken.
const IDLE: u64 = 1 << 63;
/// And when it was no bulk, which nobody holds back: it tells how fast a game is.
const SMALL: u64 = 1 << 62;

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
    rounds: u64,
    round_ends: u64,
    /// Bytes sent that nobody acknowledges, and those of them that are taken to have been delivered, modulo 2^32.
    unacknowledged: u32,
    unacknowledged_delivered: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Bytes/s.
    pub rate: u64,
    pub interval_us: u64,
    /// Less was written than the path would have taken: it may be faster.
    pub is_idle: bool,
    /// It was no bulk.
    pub is_small: bool,
    pub begins_round: bool,
}

impl Sampler {
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    pub fn count_unacknowledged(&mut self, bytes: usize) {
        self.unacknowledged = self.unacknowledged.wrapping_add(bytes as u32);
    }

    /// What is sent from now on takes another path.
    pub fn begin_path(&mut self, now: u64) {
        (self.first_sent_at, self.delivered_at, self.idle_until) = (now, now, 0);
        self.round_ends = self.delivered;
        self.unacknowledged_delivered = self.unacknowledged;
    }

    /// `is_idle`: less was written than might have been sent.
    pub fn stamp(&mut self, now: u64, in_flight: usize, is_idle: bool) -> Stamp {
        if in_flight == 0 {
            (self.first_sent_at, self.delivered_at) = (now, now);
        }
        if is_idle {
            self.idle_until = self.delivered + in_flight.max(1) as u64;
        }
        let idle = if self.idle_until > self.delivered { IDLE } else { 0 };
        // Up to 71 minutes. Who waits longer for an acknowledgement has no use for a rate.
        let since = |then: u64| u64::from(u32::try_from(now.saturating_sub(then)).unwrap_or(u32::MAX));
        let unacknowledged = u64::from(self.unacknowledged) << 32 | u64::from(self.unacknowledged_delivered);
        [self.delivered | idle, now, since(self.delivered_at) << 32 | since(self.first_sent_at), unacknowledged]
    }

    /// Marks what is no bulk.
    pub fn small(stamp: Stamp) -> Stamp {
        let [delivered, sent, since, unacknowledged] = stamp;
        [delivered | SMALL, sent, since, unacknowledged]
    }

    /// `None` when it is not sure which transmission arrived.
    pub fn on_acked(&mut self, now: u64, acked: &Acked) -> Option<Sample> {
        self.delivered += bytes_of(acked);
        self.delivered_at = now;
        let [delivered, sent, since, unacknowledged] = acked.stamp;
        let beside = self.deliver_unacknowledged(unacknowledged);
        let is_last_transmission = match acked.rtt_us {
            Some(rtt) => now.saturating_sub(rtt) == sent,
            None => acked.transmissions == 1,
        };
        if !is_last_transmission {
            return None;
        }
        self.first_sent_at = self.first_sent_at.max(sent);
        let (is_idle, is_small) = (delivered & IDLE != 0, delivered & SMALL != 0);
        let delivered = delivered & !(IDLE | SMALL);
        let (acknowledging, sending) = (now.saturating_sub(sent) + (since >> 32), since & u64::from(u32::MAX));
        let interval_us = sending.max(acknowledging).max(1);
        let bytes = self.delivered.saturating_sub(delivered).saturating_add(beside);
        let rate = bytes.saturating_mul(1_000_000) / interval_us;
        Some(Sample { rate, interval_us, is_idle, is_small, begins_round: self.begins_round(delivered) })
    }

    /// Takes all of them that were sent before the segment for delivered, and says how many have been since it was sent.
    fn deliver_unacknowledged(&mut self, stamp: u64) -> u64 {
        let (before, delivered_then) = ((stamp >> 32) as u32, stamp as u32);
        if before.wrapping_sub(self.unacknowledged_delivered).cast_signed() > 0 {
            self.unacknowledged_delivered = before;
        }
        self.unacknowledged_delivered.wrapping_sub(delivered_then).into()
    }

    /// A round ends when something is acknowledged that was sent after it began.
    fn begins_round(&mut self, delivered: u64) -> bool {
        let begins = delivered >= self.round_ends;
        if begins {
            self.rounds += 1;
            self.round_ends = self.delivered;
        }
        begins
    }
}

/// What its transmission took, if it had a datagram to itself.
pub fn bytes_of(acked: &Acked) -> u64 {
    acked.length as u64 + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: usize = 1_000 - OVERHEAD_BYTES as usize;

    #[test]
    fn the_rate_is_that_of_the_bottleneck_when_more_is_sent_and_that_of_the_sender_when_less() {
        for (send_every, ack_every, rate) in [(500, 1_000, 1_000_000), (2_000, 1_000, 500_000)] {
            let mut sampler = Sampler::default();
            let mut sent: Vec<(u64, Stamp)> = Vec::new();
            let mut last = None;
            let mut acked = 0;
            for now in (0..400_000).step_by(500) {
                let arrives = |sent: u64| 50_000 + if send_every < ack_every { 2 * sent } else { sent };
                while let Some((sent_at, stamp)) = sent.get(acked).copied()
                    && arrives(sent_at) <= now
                {
                    acked += 1;
                    last = sampler.on_acked(now, &acknowledged(now - sent_at, stamp));
                }
                if now % send_every == 0 {
                    sent.push((now, sampler.stamp(now, (sent.len() - acked) * LENGTH, false)));
                }
            }
            let sample = last.expect("the last transmission was the only one");
            assert!(sample.rate.abs_diff(rate) < rate / 50, "{sample:?} for {rate}");
            assert!(!sample.is_idle);
        }
    }

    #[test]
    fn a_segment_of_which_an_earlier_transmission_arrived_gives_no_sample() {
        let mut sampler = Sampler::default();
        let stamp = sampler.stamp(30_000, 0, false);
        let twice = |rtt_us| Acked { rtt_us, transmissions: 2, ..acknowledged(0, stamp) };
        assert_eq!(sampler.on_acked(50_000, &twice(Some(50_000))), None, "it is the first that arrived");
        assert_eq!(sampler.on_acked(50_000, &twice(None)), None, "nobody knows");
        assert!(sampler.on_acked(80_000, &twice(Some(50_000))).is_some(), "it is the last");
    }

    #[test]
    fn samples_are_idle_until_all_that_was_in_flight_has_arrived() {
        let mut sampler = Sampler::default();
        let first = sampler.stamp(0, 0, true);
        let second = sampler.stamp(10, LENGTH, false);
        let mut is_idle =
            |now, sent, stamp| sampler.on_acked(now, &acknowledged(now - sent, stamp)).map(|it| it.is_idle);
        assert_eq!(is_idle(50, 0, first), Some(true));
        assert_eq!(is_idle(60, 10, second), Some(true));
        let third = sampler.stamp(70, 0, false);
        assert_eq!(sampler.on_acked(120, &acknowledged(50, third)).map(|it| it.is_idle), Some(false));
    }

    #[test]
    fn a_round_is_a_round_trip() {
        let mut sampler = Sampler::default();
        let stamps: Vec<Stamp> = (0..10).map(|at| sampler.stamp(at, 1, false)).collect();
        let mut begun = Vec::new();
        for (at, stamp) in (0..).zip(stamps) {
            begun.extend(sampler.on_acked(100 + at, &acknowledged(100, stamp)).map(|it| it.begins_round));
        }
        let stamp = sampler.stamp(200, 1, false);
        begun.extend(sampler.on_acked(300, &acknowledged(100, stamp)).map(|it| it.begins_round));
        assert_eq!(begun.iter().filter(|begins| **begins).count(), 2);
        assert_eq!((begun.first(), begun.last()), (Some(&true), Some(&true)));
    }

    #[test]
    fn what_nobody_acknowledges_is_delivered_with_what_was_sent_later() {
        for begin in [0, u32::MAX - 10_000] {
            let mut sampler = Sampler { unacknowledged: begin, unacknowledged_delivered: begin, ..Sampler::default() };
            let (mut sent, mut last) = (std::collections::VecDeque::<(u64, Stamp)>::new(), None);
            for now in (0..400_000).step_by(1_000) {
                if let Some((at, stamp)) = sent.pop_front_if(|(at, _)| *at + 50_000 <= now) {
                    last = sampler.on_acked(now, &acknowledged(now - at, stamp));
                }
                sampler.count_unacknowledged(500);
                sent.push_back((now, sampler.stamp(now, sent.len() * LENGTH, false)));
            }
            let rate = last.expect("an acknowledgement").rate;
            assert!(rate.abs_diff(1_500_000) < 30_000, "{rate} bytes/s, of which a third nobody acknowledges");
        }
    }

    fn acknowledged(rtt_us: u64, stamp: Stamp) -> Acked {
        Acked { length: LENGTH, rtt_us: Some(rtt_us), transmissions: 1, stamp }
    }
}
