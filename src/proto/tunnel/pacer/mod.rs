//! How much bulk may leave now, so that a tunnel fills its path and no queue on it: games wait in that queue.
//!
//! 1. Every segment that is written as new or lost, of a thin stream or bulk, carries a [`Stamp`] from [`Pacer::stamp`], which
//!    comes back with its acknowledgement, for [`Pacer::on_acked`]. From these the path's rate and its shortest round trip are
//!    learned (`model.rs`).
//! 2. Before bulk is written [`Pacer::bulk_budget`] tells how much may leave, in batches, and when to ask again; afterwards
//!    [`Pacer::charge_bulk`] is told what did. Who has bulk to send has to ask until he is refused, and to come back when told: from
//!    that, and from nothing else, is known whether the path or the writer sets the pace.
//! 3. Small packets ask nobody. Bulk gives way to them by [`Pacer::charge_small`], but for half of the rate. Acknowledgements are
//!    never charged: one direction's bulk would starve the other's.
//! 4. Losses that the peer reports ([`Pacer::on_loss_report`]) are made up for by a higher rate, as long as there is no queue
//!    that could have caused them.
//!
//! Absent: streams, the loss of single segments, time-outs. Pure arithmetic on µs and bytes, and no allocation.

mod bucket;
mod bursts;
mod delay;
mod filter;
mod model;
mod phase;
mod sampler;

use crate::proto::kcp::{Acked, Stamp};
use bucket::Bucket;
use model::Model;
use sampler::Sampler;

/// A batch is what leaves in that time at the rate, a datagram at least, and at most what one system call takes: receive buffers
/// may be as small as 200 kB.
const BATCH_US: u64 = 2_000;
const BATCH_BYTES_MAX: u64 = 64_000;

/// Who comes later than he was told may send what would have left in so many µs, at most, and no more bytes than these.
const LATE_US: u64 = 4_000;
const LATE_BYTES_MAX: u64 = 512_000;

/// Before anything is known: so many datagrams in a round trip (RFC 6928), and how long that is taken to be, in µs.
const WINDOW_FIRST: u64 = 10;
const RTT_FIRST_US: u64 = 50_000;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes/s of datagrams, without those of IP and UDP. `None`: as fast as the path. Default `None`.
    pub rate_max: Option<u64>,
    /// Of a full datagram, in bytes. Default 1,350.
    pub datagram_bytes: usize,
    /// Tunnels with different seeds do not probe their path at the same times. Default 1.
    pub seed: u64,
}

/// What bulk may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of datagrams that may leave now: none, or a full datagram at least. The last may exceed it.
    pub bytes: usize,
    /// When to ask again if that is 0. `None`: after the next acknowledgement, or time-out of a segment.
    pub next_at: Option<u64>,
}

#[derive(Debug)]
pub struct Pacer {
    settings: Settings,
    sampler: Sampler,
    model: Model,
    bucket: Bucket,
    /// Bytes/s, as of the last change of the model.
    rate: u64,
    answer: Answer,
    before: PathBefore,
}

/// What the path before this one still carries.
#[derive(Clone, Copy, Debug, Default)]
struct PathBefore {
    /// When it was left.
    left_at: u64,
    /// Payload in flight on it, and until when that is to be believed: nobody tells what of it is taken for lost.
    in_flight: usize,
    until: u64,
}

/// What bulk was told last.
#[derive(Clone, Copy, Debug)]
enum Answer {
    WindowIsFull,
    TooEarly,
    /// When, and whether it was the path that set the pace until then.
    Go {
        at: u64,
        is_path_limited: bool,
    },
}

impl PathBefore {
    fn in_flight(&self, now: u64) -> usize {
        if now < self.until { self.in_flight } else { 0 }
    }

    fn has_sent(&self, now: u64, acked: &Acked) -> bool {
        let [_, last_sent, ..] = acked.stamp;
        acked.rtt_us.map_or(last_sent, |rtt| now.saturating_sub(rtt)) < self.left_at
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self { rate_max: None, datagram_bytes: 1_350, seed: 1 }
    }
}

impl Pacer {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let model = Model::new(settings.datagram_bytes, settings.seed);
        let (sampler, bucket) = (Sampler::default(), Bucket::default());
        let answer = Answer::Go { at: 0, is_path_limited: false };
        let before = PathBefore::default();
        let mut pacer = Self { settings, sampler, model, bucket, rate: 0, answer, before };
        pacer.update_rate();
        pacer
    }

    /// Everything takes another path from now on, of which nothing is known but perhaps a round trip. `in_flight` is the payload in
    /// flight of the whole tunnel: it does not fill the new path's window.
    pub fn begin_path(&mut self, now: u64, rtt_us: Option<u64>, in_flight: usize) {
        let rtt_before = self.min_rtt_us().unwrap_or(RTT_FIRST_US);
        self.before = PathBefore { left_at: now, in_flight, until: now + 2 * rtt_before };
        self.model = Model::new(self.settings.datagram_bytes, self.settings.seed);
        self.sampler.begin_path(now);
        (self.bucket, self.answer) = (Bucket::default(), Answer::Go { at: 0, is_path_limited: false });
        rtt_us.into_iter().for_each(|rtt| self.model.delay.sample(now, rtt));
        self.update_rate();
    }

    /// For all segments of a datagram that are written as new or lost. `in_flight` is the payload in flight of the whole tunnel,
    /// before them.
    #[must_use]
    pub fn stamp(&mut self, now: u64, in_flight: usize) -> Stamp {
        let is_forfeiting = self.bucket.is_full(now, self.rate, self.most());
        let is_idle = match self.answer {
            Answer::WindowIsFull => false,
            Answer::TooEarly => is_forfeiting,
            Answer::Go { at, is_path_limited } => !is_path_limited || at < now && is_forfeiting,
        };
        self.sampler.stamp(now, in_flight, is_idle)
    }

    /// The same for those of thin streams and control.
    #[must_use]
    pub fn stamp_small(&mut self, now: u64, in_flight: usize) -> Stamp {
        Sampler::small(self.stamp(now, in_flight))
    }

    /// For each segment that is acknowledged. `in_flight` is that of the whole tunnel, without it.
    pub fn on_acked(&mut self, now: u64, acked: &Acked, in_flight: usize) {
        if self.before.has_sent(now, acked) {
            self.before.in_flight = self.before.in_flight.saturating_sub(acked.length);
            return;
        }
        if let Some(rtt) = acked.rtt_us {
            self.model.delay.sample(now, rtt);
        }
        let sample = self.sampler.on_acked(now, acked);
        self.model.on_acked(now, self.sampler.rounds(), sampler::bytes_of(acked));
        if let Some(sample) = sample {
            self.model.on_sample(now, sample, in_flight);
        }
        self.update_rate();
    }

    /// A round trip that was measured otherwise, by the handshake for one.
    pub fn on_rtt(&mut self, now: u64, rtt_us: u64) {
        self.model.delay.sample(now, rtt_us);
        self.update_rate();
    }

    /// From each report of the peer: of so many packets that we sent since its last one, so many have not arrived.
    pub fn on_loss_report(&mut self, packets: u64, lost: u64) {
        self.model.on_loss_report(packets, lost);
        self.update_rate();
    }

    /// How much bulk may leave now. `in_flight` is the payload in flight of the whole tunnel.
    pub fn bulk_budget(&mut self, now: u64, in_flight: usize) -> Budget {
        let batch = self.batch();
        let ready = self.bucket.fill(now, self.rate, self.most());
        let room = self.window().saturating_sub(in_flight.saturating_sub(self.before.in_flight(now)));
        if room < self.settings.datagram_bytes {
            self.answer = Answer::WindowIsFull;
            return Budget { bytes: 0, next_at: None };
        }
        if ready < batch {
            self.answer = Answer::TooEarly;
            return Budget { bytes: 0, next_at: Some(now + self.bucket.wait_us(batch, self.rate).max(1)) };
        }
        let was_refused = !matches!(self.answer, Answer::Go { .. });
        self.answer = Answer::Go { at: now, is_path_limited: was_refused || ready < self.most() };
        Budget { bytes: room.min(ready as usize), next_at: None }
    }

    /// A datagram of bulk was sent, of so many bytes altogether.
    pub fn charge_bulk(&mut self, bytes: usize) {
        self.bucket.take(bytes);
    }

    /// A datagram of thin streams, control or game traffic was sent, of so many bytes without acknowledgements.
    pub fn charge_small(&mut self, bytes: usize) {
        self.bucket.take_small(bytes);
    }

    /// So many of the bytes charged are players' datagrams or repeats, which nobody acknowledges.
    pub fn count_unacknowledged(&mut self, bytes: usize) {
        self.sampler.count_unacknowledged(bytes);
    }

    /// At which bulk and small packets leave together, now, in bytes/s.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// What the path is taken to deliver, in bytes/s. 0 while nothing is known.
    #[must_use]
    pub fn path_rate(&self) -> u64 {
        self.model.path_rate()
    }

    /// Payload that may be in flight, in bytes.
    #[must_use]
    pub fn window(&self) -> usize {
        match self.model.window() {
            0 => WINDOW_FIRST as usize * self.settings.datagram_bytes,
            window => window as usize,
        }
    }

    /// The shortest round trip of late. `None` before the first.
    #[must_use]
    pub fn min_rtt_us(&self) -> Option<u64> {
        self.model.delay.min_us()
    }

    fn update_rate(&mut self) {
        let path_rate = match self.model.path_rate() {
            0 => {
                let rtt = self.min_rtt_us().unwrap_or(RTT_FIRST_US).max(1_000);
                WINDOW_FIRST * self.settings.datagram_bytes as u64 * 1_000_000 / rtt
            }
            rate => rate,
        };
        let most = self.settings.rate_max.unwrap_or(u64::MAX).max(1);
        self.rate = self.model.send_rate(path_rate).clamp(1, most);
    }

    /// Bytes that are worth a system call.
    fn batch(&self) -> i64 {
        let batch = (self.rate * BATCH_US / 1_000_000).min(BATCH_BYTES_MAX);
        batch.max(self.settings.datagram_bytes as u64) as i64
    }

    /// Bytes that leave at once when nobody could ask for a while.
    fn most(&self) -> i64 {
        let most = (self.rate * LATE_US / 1_000_000).min(LATE_BYTES_MAX);
        most.max(2 * self.settings.datagram_bytes as u64) as i64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn nothing_that_is_acknowledged_makes_it_panic_or_stop() {
        let mut random = 1u64;
        let mut any = |bits: u32| {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let bits = (random >> 58) as u32 % (bits + 1);
            (random << 6 >> 1).checked_shr(63 - bits).unwrap_or(0)
        };
        for _ in 0..200 {
            let mut pacer = Pacer::new(Settings { seed: any(60), ..Settings::default() });
            let mut now = any(60);
            for _ in 0..1_000 {
                now += any(30);
                let stamp = pacer.stamp(now, any(30) as usize);
                let length = any(11) as usize;
                // Time-stamps come back in segments, so a peer may make up any round trip.
                let rtt_us = [None, Some(1 + any(50)), Some(1)][any(6) as usize % 3];
                now += any(20);
                let acked = Acked { length, rtt_us, transmissions: 1 + any(2) as u32, stamp };
                pacer.on_acked(now, &acked, any(30) as usize);
                pacer.on_loss_report(any(48), any(48));
                pacer.charge_small(any(11) as usize);
                pacer.count_unacknowledged(any(40) as usize);
                let budget = pacer.bulk_budget(now, 0);
                assert!(budget.bytes > 0 || budget.next_at > Some(now), "{budget:?} of {pacer:?}");
                pacer.charge_bulk(budget.bytes);
            }
        }
    }

    /// A path that brings a datagram a millisecond, and the answer to it after ten.
    #[test]
    fn a_game_that_goes_on_while_lost_bulk_waits_for_its_time_out_is_not_the_path() {
        const MS: u64 = 1_000;
        const LENGTH: usize = 1_350 - 53;
        let mut pacer = Pacer::new(Settings::default());
        let mut flight = VecDeque::<Stamp>::new();
        let ask = |pacer: &mut Pacer, now, flight: &mut VecDeque<Stamp>| loop {
            let budget = pacer.bulk_budget(now, flight.len() * LENGTH);
            if budget.bytes == 0 {
                break budget.next_at;
            }
            flight.push_back(pacer.stamp(now, flight.len() * LENGTH));
            pacer.charge_bulk(1_350);
        };
        let acked = |rtt_us, length, stamp| Acked { length, rtt_us: Some(rtt_us), transmissions: 1, stamp };
        for now in (MS..3_000 * MS).step_by(1_000) {
            if flight.front().is_some_and(|stamp| stamp[1] + 10 * MS <= now) {
                let stamp = flight.pop_front().expect("there is one");
                pacer.on_acked(now, &acked(now - stamp[1], LENGTH, stamp), flight.len() * LENGTH);
            }
            ask(&mut pacer, now, &mut flight);
        }
        let before = pacer.path_rate();
        assert!(before > 1_200_000, "{before}");

        // Nothing arrives, and then all does but for what is lost.
        let mut now = 6_000 * MS;
        while ask(&mut pacer, now, &mut flight).is_some() {
            now += MS;
        }
        for _ in 0..100 {
            let stamp = pacer.stamp_small(now, flight.len() * LENGTH);
            pacer.on_acked(now + 10 * MS, &acked(10 * MS, 64, stamp), flight.len() * LENGTH);
            now += 16 * MS;
            assert_eq!(ask(&mut pacer, now, &mut flight), None, "the window is full of what is lost");
        }
        let stamp = pacer.stamp(now, flight.len() * LENGTH);
        pacer.on_acked(now + 10 * MS, &acked(10 * MS, LENGTH, stamp), 0);
        assert!(pacer.path_rate() > before / 2, "{} after {before}", pacer.path_rate());
    }

    #[test]
    fn on_another_path_nothing_counts_that_was_learnt_or_is_in_flight_on_the_one_before() {
        let mut pacer = Pacer::new(Settings::default());
        let ack = |pacer: &mut Pacer, sent: u64, rtt: u64| {
            let stamp = pacer.stamp(sent, 100_000);
            let acked = Acked { length: 1_000, rtt_us: Some(rtt), transmissions: 1, stamp };
            pacer.on_acked(sent + rtt, &acked, 100_000);
        };
        (1..100).for_each(|at| ack(&mut pacer, at * 1_000, 120_000));
        let before = pacer.stamp(200_000, 100_000);
        assert!(pacer.path_rate() > 0 && pacer.min_rtt_us() == Some(120_000));
        pacer.begin_path(230_000, Some(60_000), 100_000);
        assert_eq!((pacer.path_rate(), pacer.min_rtt_us()), (0, Some(60_000)));
        assert!(pacer.bulk_budget(230_000, 100_000).bytes > 0, "what is in flight there fills no window here");
        let late = Acked { length: 1_000, rtt_us: Some(40_000), transmissions: 1, stamp: before };
        pacer.on_acked(240_000, &late, 99_000);
        assert_eq!((pacer.path_rate(), pacer.min_rtt_us()), (0, Some(60_000)), "it went the other way");
        (1..100).for_each(|at| ack(&mut pacer, 240_000 + at * 1_000, 60_000));
        assert!(pacer.path_rate() > 0);
    }

    #[test]
    fn what_leaves_before_anything_is_known_is_ten_datagrams_in_some_batches() {
        let mut pacer = Pacer::new(Settings::default());
        let (mut now, mut in_flight) = (1_000, 0);
        loop {
            let budget = pacer.bulk_budget(now, in_flight);
            let bytes = budget.bytes.next_multiple_of(1_350);
            in_flight += bytes;
            pacer.charge_bulk(bytes);
            match budget.next_at {
                Some(at) => now = at,
                None if budget.bytes == 0 => break,
                None => {}
            }
        }
        assert_eq!(in_flight, 10 * 1_350);
        assert!((5_000..60_000).contains(&now), "after {now} us");
    }
}
