//! What the path is taken for: its rate and its shortest round trip, and how both are kept up to date by sending a little faster
//! and a little slower in turn. After BBR (draft-cardwell-iccrg-bbr-congestion-control), with more care for the queue: games
//! wait in it. The turns are [`Phase`]s.
//!
//! Where BBR bounds its window by the loss of packets, this does not: players' radio links lose them for nothing.

use super::bursts::Bursts;
use super::delay::Delay;
use super::filter::MaxFilter;
use super::phase::{Phase, UP_MORE};
use super::sampler::Sample;

/// What every window has beyond its share of what is on its way: two batches of ours, which wait here, and two datagrams.
const WINDOW_MORE_US: u64 = 4_000;
const WINDOW_MORE: u64 = 2;
/// Bursts of acknowledgements count up to this part of a second.
const BURST_PARTS: u64 = 10;

/// Rounds for which a rate counts: more than a cycle has.
const RATE_ROUNDS: u64 = 10;
/// Rates above are not believed: 800 Gbit/s, in bytes/s. Their products with times stay within their types.
const RATE_MAX: u64 = 100_000_000_000;

/// A startup is over when the rate has grown by less than a quarter in so many rounds.
const FULL_ROUNDS: u32 = 3;

/// How long a cruise lasts, in thousandths of the shortest round trip: at least, and how much longer it may.
const CRUISE_MILLI: u64 = 3_000;
const CRUISE_MILLI_MORE: u64 = 3_000;
/// What `Up` showed is remembered until the next, with both round trips around it.
const _: () = assert!(CRUISE_MILLI + CRUISE_MILLI_MORE + 2_000 < RATE_ROUNDS * 1_000);

/// An `Up` sends a datagram for every 10 ms of the shortest round trip more than the path takes. Of two tunnels the smaller one
/// gains as much by it as the larger, which loses more afterwards: so they become equal.
const UP_STEP_US: u64 = 10_000;
/// But it lasts at least and at most so many percent of the shortest round trip. The least is a gain of 5 %; the most is a
/// queue of an eighth.
const UP_PERCENT_MIN: u64 = 20;
const UP_PERCENT_MAX: u64 = 50;
/// Losses that are not made up for must not hide what it brings: four percent more for each, as a quarter of each is the gain.
const UP_PERCENT_FOR_LOSS: f64 = 400.0;

/// Rounds in a row with a long queue after which the rate must have been wrong, and after which the round trip must have been.
const LONG_ROUNDS_RATE: u32 = 2;
const LONG_ROUNDS_RTT: u32 = 5;

/// How long a dip lasts, at least, and how long until the next, in µs.
const DIP_US: u64 = 200_000;
const DIP_AGAIN_US: u64 = 2_000_000;

/// Losses that are made up for by a higher rate, at most.
const LOSS_MAX: f64 = 0.35;
/// The mean loss is that of about so many packets. A report speaks of some dozens.
const LOSS_PACKETS: f64 = 1_000.0;

#[derive(Debug)]
pub struct Model {
    phase: Phase,
    since: u64,
    rates: MaxFilter,
    /// Rounds that bulk has begun: only these make rates old. While bulk waits for a time-out, games go on.
    bulk_rounds: u64,
    /// The best sample of this round.
    round_rate: u64,
    pub delay: Delay,
    bursts: Bursts,
    loss: f64,
    /// The rate when it had last grown by a quarter, and rounds since then.
    full_rate: u64,
    full_rounds: u32,
    /// How long an `Up` lasts, in percent of the shortest round trip, and the rate before it until it is clear what it brought.
    up_percent: u64,
    up_from: Option<u64>,
    /// In a row, with a long queue.
    long_rounds: u32,
    dipped_at: u64,
    datagram_bytes: u64,
    random: u64,
}

impl Model {
    pub fn new(datagram_bytes: usize, seed: u64) -> Self {
        Self {
            phase: Phase::Startup,
            since: 0,
            rates: MaxFilter::new(RATE_ROUNDS),
            bulk_rounds: 0,
            round_rate: 0,
            delay: Delay::default(),
            bursts: Bursts::new(RATE_ROUNDS),
            loss: 0.0,
            full_rate: 0,
            full_rounds: 0,
            up_percent: 0,
            up_from: None,
            long_rounds: 0,
            dipped_at: 0,
            datagram_bytes: datagram_bytes as u64,
            random: seed | 1,
        }
    }

    // What follows from it.

    /// Bytes/s that the path delivers. 0 while nothing is known.
    pub fn path_rate(&self) -> u64 {
        self.rates.get()
    }

    /// Bytes/s at which to send when the path delivers `path_rate`.
    pub fn send_rate(&self, path_rate: u64) -> u64 {
        let made_up_for = self.loss.min(LOSS_MAX) * self.delay.innocence();
        ((path_rate * self.phase.gain(self.delay.standing_percent()) / 100) as f64 / (1.0 - made_up_for)) as u64
    }

    /// Bytes that may be in flight. 0 while nothing is known.
    pub fn window(&self) -> u64 {
        let window = self.product() * self.phase.window() / 100;
        if matches!(self.phase, Phase::Dip { .. }) {
            return window.max(self.datagram_bytes);
        }
        if self.path_rate() == 0 {
            return 0;
        }
        let burst = self.bursts.most().saturating_sub(self.datagram_bytes).min(self.path_rate() / BURST_PARTS);
        let more = self.path_rate() * WINDOW_MORE_US / 1_000_000 + WINDOW_MORE * self.datagram_bytes;
        window + burst + more
    }

    /// Bytes that are on their way when the path is full and no queue is.
    fn product(&self) -> u64 {
        self.path_rate() * self.min_rtt_us() / 1_000_000
    }

    /// A minute is as long as any path, and keeps products in their types.
    fn min_rtt_us(&self) -> u64 {
        self.delay.min_us().unwrap_or(0).min(60_000_000)
    }

    // What it is told.

    pub fn on_loss_report(&mut self, packets: u64, lost: u64) {
        if packets > 0 {
            let weight = (packets as f64 / LOSS_PACKETS).min(0.5);
            self.loss += weight * (lost.min(packets) as f64 / packets as f64 - self.loss);
        }
    }

    pub fn on_acked(&mut self, now: u64, round: u64, bytes: u64) {
        self.bursts.on_acked(now, round, bytes, self.path_rate());
    }

    pub fn on_sample(&mut self, now: u64, sample: Sample, in_flight: usize) {
        // Over less than a round trip it is not the path's: an acknowledgement of an earlier transmission came just after a later one.
        let is_sound = sample.interval_us >= self.min_rtt_us();
        let rate = sample.rate.min(RATE_MAX);
        let is_of_path = !sample.is_idle && !sample.is_small;
        self.bulk_rounds += u64::from(sample.begins_round && !sample.is_small);
        if is_sound && (is_of_path || rate > self.path_rate()) {
            self.rates.update(self.bulk_rounds, rate);
            self.round_rate = self.round_rate.max(rate);
        }
        if sample.begins_round {
            self.begin_round(sample.is_idle);
        }
        let in_flight = in_flight as u64;
        let is_idle = sample.is_idle && in_flight <= 4 * self.datagram_bytes;
        self.leave_phase(now, in_flight, is_idle);
        self.doubt(now);
    }

    fn begin_round(&mut self, is_idle: bool) {
        let round_rate = std::mem::take(&mut self.round_rate);
        self.long_rounds = if self.delay.is_long() && !is_idle { self.long_rounds + 1 } else { 0 };
        if self.long_rounds == LONG_ROUNDS_RATE {
            // The path has become slower or longer. What it delivers now is true in both cases.
            self.rates.restart(self.bulk_rounds, round_rate.max(self.path_rate() / 8));
        }
        self.delay.begin_round(self.datagram_bytes * 1_000_000 / self.path_rate().max(1));
        if self.path_rate() >= self.full_rate + self.full_rate / 4 {
            (self.full_rate, self.full_rounds) = (self.path_rate(), 0);
        } else if !is_idle {
            self.full_rounds += 1;
        }
    }

    // How phases follow each other.

    fn leave_phase(&mut self, now: u64, in_flight: u64, is_idle: bool) {
        let min_rtt = self.min_rtt_us();
        let lasted = now.saturating_sub(self.since);
        let is_drained = in_flight <= self.product();
        let is_full = self.full_rounds >= FULL_ROUNDS || !is_idle && self.delay.is_growing();
        match self.phase {
            Phase::Startup if is_full => self.enter(now, Phase::Drain),
            Phase::Drain if is_drained => self.cruise(now),
            Phase::Up if lasted >= min_rtt * self.up_percent / 100 => self.enter(now, Phase::Down),
            Phase::Down if is_drained || lasted >= min_rtt => self.cruise(now),
            Phase::Cruise { until } if now >= until => self.go_up(now, self.up_percent_first()),
            // By now the acknowledgements of what `Up` sent have come.
            Phase::Cruise { .. } if lasted >= min_rtt + min_rtt / 4 => self.judge_up(now),
            Phase::Dip { until: None } if in_flight <= self.window() + self.datagram_bytes => {
                self.delay.begin_search();
                self.phase = Phase::Dip { until: Some(now + DIP_US.max(min_rtt)) };
            }
            Phase::Dip { until: Some(until) } if now >= until => self.end_dip(now),
            _ => {}
        }
    }

    fn doubt(&mut self, now: u64) {
        let is_wrong = self.long_rounds >= LONG_ROUNDS_RTT && now > self.dipped_at + DIP_AGAIN_US;
        let is_dipped = matches!(self.phase, Phase::Dip { .. });
        if (is_wrong || self.delay.is_old(now)) && !is_dipped && self.phase != Phase::Startup {
            self.enter(now, Phase::Dip { until: None });
        }
    }

    fn end_dip(&mut self, now: u64) {
        let before = self.min_rtt_us();
        self.delay.end_search(now);
        self.dipped_at = now;
        if self.min_rtt_us() > before + before / 4 {
            // The path is another one, and its rate was measured with too small a window.
            (self.full_rate, self.full_rounds) = (0, 0);
            self.enter(now, Phase::Startup);
        } else {
            self.cruise(now);
        }
    }

    fn up_percent_first(&self) -> u64 {
        let step = self.min_rtt_us() / UP_STEP_US * self.datagram_bytes;
        (100 * 100 / UP_MORE * step / self.product().max(1)).clamp(UP_PERCENT_MIN, UP_PERCENT_MAX)
    }

    fn go_up(&mut self, now: u64, percent: u64) {
        let hidden = self.loss * (1.0 - self.delay.innocence()) * UP_PERCENT_FOR_LOSS;
        self.up_percent = (percent + hidden as u64).min(100);
        self.up_from = Some(self.path_rate());
        self.enter(now, Phase::Up);
    }

    /// Twice as long again if it brought half of what it might have, and no queue.
    fn judge_up(&mut self, now: u64) {
        let Some(from) = self.up_from.take() else { return };
        let hoped_for = from * (UP_MORE) / 100 * self.up_percent / 100;
        if self.path_rate() > from + hoped_for / 2 && self.delay.standing_percent() == 0 {
            self.go_up(now, 2 * self.up_percent);
        }
    }

    /// For a time that differs from one cycle to the next, so that tunnels on the same path do not probe together.
    fn cruise(&mut self, now: u64) {
        self.random ^= self.random << 13; // Xorshift, of Marsaglia.
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let milli = CRUISE_MILLI + self.random % CRUISE_MILLI_MORE;
        self.enter(now, Phase::Cruise { until: now + self.min_rtt_us() * milli / 1_000 });
    }

    fn enter(&mut self, now: u64, phase: Phase) {
        (self.phase, self.since) = (phase, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    #[test]
    fn a_rate_over_less_than_a_round_trip_is_not_believed() {
        let mut model = Model::new(1_350, 1);
        model.delay.sample(0, 50 * MS);
        let sample =
            |rate, interval_us| Sample { rate, interval_us, is_idle: false, is_small: false, begins_round: false };
        model.on_sample(0, sample(1_000_000, 50 * MS), 0);
        model.on_sample(0, sample(7_000_000, 40 * MS), 0);
        assert_eq!(model.path_rate(), 1_000_000);
        model.on_sample(0, sample(2_000_000, 60 * MS), 0);
        assert_eq!(model.path_rate(), 2_000_000);
    }

    #[test]
    fn a_writer_who_sets_the_pace_raises_the_rate_and_never_lowers_it() {
        let mut model = Model::new(1_350, 1);
        for round in 1..100 {
            let rate = if round == 3 { 5_000_000 } else { 1_000_000 };
            let sample = Sample { rate, interval_us: 50 * MS, is_idle: true, is_small: false, begins_round: true };
            model.on_sample(round * 50 * MS, sample, 0);
        }
        assert_eq!(model.path_rate(), 5_000_000);
    }

    #[test]
    fn phases_follow_each_other() {
        let mut model = Model::new(1_350, 1);
        let mut seen = vec![model.phase];
        for round in 1..400 {
            let now = round * 25 * MS;
            model.delay.sample(now, 50 * MS);
            let sample = Sample {
                rate: 1_000_000,
                interval_us: 50 * MS,
                is_idle: false,
                is_small: false,
                begins_round: round % 2 == 0,
            };
            model.on_sample(now, sample, 40_000);
            let is_new =
                seen.last().is_some_and(|last| std::mem::discriminant(last) != std::mem::discriminant(&model.phase));
            if is_new {
                seen.push(model.phase);
            }
        }
        let names: Vec<String> = seen.iter().map(|phase| format!("{phase:?}")).collect();
        let names: Vec<&str> = names.iter().filter_map(|name| name.split(' ').next()).collect();
        assert_eq!(names[..7], ["Startup", "Drain", "Cruise", "Up", "Down", "Cruise", "Up"]);
        assert!(names.len() > 30 && !names[7..].contains(&"Startup"));
    }
}
