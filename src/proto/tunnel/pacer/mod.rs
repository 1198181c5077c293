//! How much bulk may leave now, so that a tunnel fills its path and no queue on it: games share that queue.
//!
//! 1. Each transmission of a segment gets a [`Stamp`] ([`Pacer::stamp`]), which comes back with its acknowledgement
//!    ([`Pacer::on_acked`]): from these the [`model`] learns the path's rate and shortest round trip, as BBR does.
//! 2. Before bulk is sent [`Pacer::bulk_budget`] says how much and, when none, from when on. What was sent is told afterwards
//!    ([`Pacer::charge_bulk`]).
//! 3. Small packets ask nobody, but bulk gives way to them ([`Pacer::charge_small`]). Acknowledgements are never charged: one
//!    direction's bulk would starve the other's.
//! 4. Losses that the peer reports ([`Pacer::on_loss_report`]) raise the rate as long as there is no queue that could have
//!    caused them.
//!
//! Absent: any knowledge of streams, of losses of single segments, and of time-outs. Pure arithmetic on µs and bytes.

mod bucket;
mod filter;
mod model;
mod sampler;

use crate::proto::kcp::{Acked, Stamp};
use bucket::Bucket;
use model::Model;
pub use model::Phase;
use sampler::Sampler;

/// A batch is what the rate sends in that time.
const BATCH_US: u64 = 2_000;

/// The window never closes below so many datagrams.
const WINDOW_MIN: u64 = 4;

/// Before anything is known: so many datagrams in a round trip, which is taken to be so long.
const WINDOW_FIRST: u64 = 32;
const RTT_FIRST_US: u64 = 50_000;

/// Losses that are made up for by a higher rate, in parts of 1.
const LOSS_MAX: f32 = 0.35;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes/s of datagrams, without those of IP and UDP. `None`: as fast as the path. Default `None`.
    pub rate_max: Option<u64>,
    /// Of a full datagram, in bytes. Default 1,350.
    pub datagram_bytes: usize,
    /// Tunnels with different seeds do not probe their path at the same times.
    pub seed: u64,
}

/// What bulk may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of datagrams that may leave now.
    pub bytes: usize,
    /// When to ask again if that is 0, unless an acknowledgement comes before. `None`: only after one.
    pub next_at: Option<u64>,
}

#[derive(Debug)]
pub struct Pacer {
    settings: Settings,
    sampler: Sampler,
    model: Model,
    bucket: Bucket,
    loss: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { rate_max: None, datagram_bytes: 1_350, seed: 1 }
    }
}

impl Pacer {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let model = Model::new(settings.seed);
        Self { settings, sampler: Sampler::default(), model, bucket: Bucket::default(), loss: 0.0 }
    }

    /// For all segments that are written next, as new or lost, of small and bulky streams alike. `in_flight` is the payload in
    /// flight of the whole tunnel, before them.
    #[must_use]
    pub fn stamp(&mut self, now: u64, in_flight: usize) -> Stamp {
        self.sampler.stamp(now, in_flight)
    }

    /// `in_flight` is that of the whole tunnel, without what has been acknowledged.
    pub fn on_acked(&mut self, now: u64, acked: &Acked, in_flight: usize) {
        if let Some(rtt) = acked.rtt_us {
            self.model.on_rtt(now, rtt);
        }
        if let Some(sample) = self.sampler.on_acked(now, acked) {
            self.model.on_sample(now, self.sampler.rounds, sample, in_flight);
        }
    }

    /// A round trip that was measured otherwise, as by the handshake.
    pub fn on_rtt(&mut self, now: u64, rtt_us: u64) {
        self.model.on_rtt(now, rtt_us);
    }

    /// Of so many packets that we sent the peer got but a part: `loss` of them is missing. From each report that it sends.
    pub fn on_loss_report(&mut self, _now: u64, packets: u64, lost: u64) {
        if packets > 0 {
            // A report speaks of about 64 packets; the mean goes over some thousand.
            let weight = (packets as f32 / 1_000.0).min(0.5);
            self.loss += weight * (lost.min(packets) as f32 / packets as f32 - self.loss);
        }
    }

    pub fn bulk_budget(&mut self, now: u64, in_flight: usize) -> Budget {
        let rate = self.rate();
        let batch = self.batch(rate);
        let ready = self.bucket.fill(now, rate, batch);
        let room = self.window().saturating_sub(in_flight);
        if room < self.settings.datagram_bytes {
            return Budget { bytes: 0, next_at: None };
        }
        if ready < batch {
            return Budget { bytes: 0, next_at: Some(now + self.bucket.wait(batch, rate).max(1)) };
        }
        Budget { bytes: room.min(ready as usize), next_at: None }
    }

    /// Bulk has nothing more to send though it may: until what is in flight has arrived, the path shows less than its rate.
    pub fn on_bulk_dry(&mut self, in_flight: usize) {
        self.sampler.run_dry(in_flight);
    }

    /// A datagram of bulk was sent, of so many bytes altogether.
    pub fn charge_bulk(&mut self, bytes: usize) {
        self.bucket.take(bytes);
    }

    /// A datagram of thin streams, control or game traffic was sent, of so many bytes altogether.
    pub fn charge_small(&mut self, bytes: usize) {
        self.bucket.take_small(bytes);
    }

    /// At which bulk and small packets leave together, in bytes/s.
    #[must_use]
    pub fn rate(&self) -> u64 {
        let rate = match self.model.rate() {
            0 => self.first_rate(),
            rate => rate,
        };
        let lost = if self.model.has_short_queue() { self.loss.min(LOSS_MAX) } else { 0.0 };
        let rate = (rate * self.model.gain() / 100) as f64 / (1.0 - f64::from(lost));
        (rate as u64).min(self.settings.rate_max.unwrap_or(u64::MAX)).max(1)
    }

    /// Payload that may be in flight, in bytes.
    #[must_use]
    pub fn window(&self) -> usize {
        let datagram = self.settings.datagram_bytes as u64;
        let window = match self.model.product() {
            0 => WINDOW_FIRST * datagram,
            product => product * self.model.window_gain() / 100,
        };
        window.max(WINDOW_MIN * datagram) as usize
    }

    #[must_use]
    pub fn min_rtt_us(&self) -> Option<u64> {
        self.model.min_rtt_us()
    }

    pub fn rate_model(&self) -> u64 {
        self.model.rate()
    }
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.model.phase()
    }

    fn first_rate(&self) -> u64 {
        let rtt = self.model.min_rtt_us().unwrap_or(RTT_FIRST_US).max(1_000);
        WINDOW_FIRST * self.settings.datagram_bytes as u64 * 1_000_000 / rtt
    }

    fn batch(&self, rate: u64) -> i64 {
        let packets = 2 * self.settings.datagram_bytes as u64;
        (rate.saturating_mul(BATCH_US) / 1_000_000).max(packets) as i64
    }
}
