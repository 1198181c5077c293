//! What the path is taken for: its rate and its shortest round trip, and how both are kept up to date by sending a little faster
//! and a little slower in turn.
//!
//! `Startup` doubles the rate in each round trip until that brings no more, `Drain` empties the queue that this left. Then, again
//! and again: `Up` (is there more?), `Down` (empty what that queued), `Cruise`. When the shortest round trip has not been seen
//! for long, `Dip` sends little enough for others' queues to be empty too.

use super::filter::MaxFilter;
use super::sampler::Sample;

/// Of rates and windows, in percent.
const STARTUP_GAIN: u64 = 277;
const DRAIN_GAIN: u64 = 36;
const UP_GAIN: u64 = 125;
const DOWN_GAIN: u64 = 75;
/// Below 100, so that a queue of unknown origin goes away.
const CRUISE_GAIN: u64 = 98;
const WINDOW_GAIN: u64 = 175;
const DIP_WINDOW_GAIN: u64 = 50;

/// Round trips for which a rate counts: more than one cycle has.
const RATE_ROUNDS: u64 = 10;
/// Shortest round trips that a cruise lasts, at least, and how many more it may.
const CRUISE_ROUNDS: u64 = 5;
const CRUISE_ROUNDS_SPREAD: u64 = 3;

/// Startup is over when the rate has grown by less than a quarter for so many rounds.
const FULL_ROUNDS: u32 = 3;

/// For how long the shortest round trip counts, and how long a dip is kept up.
const MIN_RTT_US: u64 = 10_000_000;
const DIP_US: u64 = 200_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Startup,
    Drain,
    Up,
    Down,
    Cruise {
        until: u64,
    },
    /// `until` is known once little is in flight.
    Dip {
        until: Option<u64>,
    },
}

#[derive(Debug)]
pub struct Model {
    phase: Phase,
    since: u64,
    rates: MaxFilter,
    min_rtt_us: Option<u64>,
    min_rtt_at: u64,
    smoothed_rtt_us: u64,
    /// The shortest round trip of this round, and of the one before.
    round_rtt_us: u64,
    last_round_rtt_us: u64,
    /// The rate when it had last grown by a quarter, and rounds since then.
    full_rate: u64,
    full_rounds: u32,
    random: u64,
}

impl Model {
    pub fn new(seed: u64) -> Self {
        Self {
            phase: Phase::Startup,
            since: 0,
            rates: MaxFilter::new(RATE_ROUNDS),
            min_rtt_us: None,
            min_rtt_at: 0,
            smoothed_rtt_us: 0,
            round_rtt_us: u64::MAX,
            last_round_rtt_us: u64::MAX,
            full_rate: 0,
            full_rounds: 0,
            random: seed | 1,
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Bytes/s that the path delivers. 0 while nothing is known.
    pub fn rate(&self) -> u64 {
        self.rates.get()
    }

    pub fn min_rtt_us(&self) -> Option<u64> {
        self.min_rtt_us
    }

    /// Rate at which to send, in percent of what the path delivers.
    pub fn gain(&self) -> u64 {
        match self.phase {
            Phase::Startup => STARTUP_GAIN,
            Phase::Drain => DRAIN_GAIN,
            Phase::Up => UP_GAIN,
            Phase::Down => DOWN_GAIN,
            Phase::Cruise { .. } | Phase::Dip { .. } => CRUISE_GAIN,
        }
    }

    /// Window in percent of what is on its way at the path's rate.
    pub fn window_gain(&self) -> u64 {
        match self.phase {
            Phase::Startup => STARTUP_GAIN,
            Phase::Dip { .. } => DIP_WINDOW_GAIN,
            Phase::Drain | Phase::Up | Phase::Down | Phase::Cruise { .. } => WINDOW_GAIN,
        }
    }

    /// What is on its way when the path is full and no queue is.
    pub fn product(&self) -> u64 {
        self.rate().saturating_mul(self.min_rtt_us.unwrap_or(0)) / 1_000_000
    }

    /// Whether round trips are as short as the path allows, nearly: then losses are not of our making.
    pub fn has_short_queue(&self) -> bool {
        self.min_rtt_us.is_some_and(|min| self.smoothed_rtt_us < min + min / 10 + 5_000)
    }

    pub fn on_rtt(&mut self, now: u64, rtt: u64) {
        self.smoothed_rtt_us = if self.smoothed_rtt_us == 0 { rtt } else { (7 * self.smoothed_rtt_us + rtt) / 8 };
        self.round_rtt_us = self.round_rtt_us.min(rtt);
        if self.min_rtt_us.is_none_or(|min| rtt <= min) {
            (self.min_rtt_us, self.min_rtt_at) = (Some(rtt), now);
        }
    }

    pub fn on_sample(&mut self, now: u64, round: u64, sample: Sample, in_flight: usize) {
        // An acknowledgement of an earlier transmission, taken for one of the last, gives several times the rate.
        let is_sound = self.min_rtt_us.is_none_or(|min| sample.interval_us >= min);
        if is_sound && (!sample.is_idle || sample.rate > self.rate()) {
            self.rates.update(round, sample.rate);
        }
        if sample.begins_round {
            self.last_round_rtt_us = std::mem::replace(&mut self.round_rtt_us, u64::MAX);
            if !sample.is_idle {
                self.look_whether_full();
            }
        }
        self.advance(now, in_flight);
    }

    fn look_whether_full(&mut self) {
        if self.rate() >= self.full_rate + self.full_rate / 4 {
            (self.full_rate, self.full_rounds) = (self.rate(), 0);
        } else {
            self.full_rounds += 1;
        }
    }

    fn advance(&mut self, now: u64, in_flight: usize) {
        let min_rtt = self.min_rtt_us.unwrap_or(0);
        let lasted = now.saturating_sub(self.since);
        let in_flight = in_flight as u64;
        match self.phase {
            Phase::Startup if self.full_rounds >= FULL_ROUNDS => self.enter(now, Phase::Drain),
            Phase::Drain if in_flight <= self.product() => self.cruise(now),
            Phase::Up if lasted >= min_rtt => self.enter(now, Phase::Down),
            Phase::Down if lasted >= min_rtt || in_flight <= self.product() => self.cruise(now),
            Phase::Cruise { until } if now >= until => self.enter(now, Phase::Up),
            Phase::Dip { until: None } if in_flight <= self.product() * DIP_WINDOW_GAIN / 100 + 4 * 1_350 => {
                let until = Some(now + DIP_US.max(min_rtt));
                self.round_rtt_us = u64::MAX;
                self.phase = Phase::Dip { until };
            }
            Phase::Dip { until: Some(until) } if now >= until => {
                self.min_rtt_us = Some(self.round_rtt_us.min(self.last_round_rtt_us));
                self.min_rtt_at = now;
                self.cruise(now);
            }
            _ => {}
        }
        let is_old = now.saturating_sub(self.min_rtt_at) > MIN_RTT_US;
        if is_old && !matches!(self.phase, Phase::Dip { .. } | Phase::Startup) {
            self.enter(now, Phase::Dip { until: None });
        }
    }

    fn enter(&mut self, now: u64, phase: Phase) {
        (self.phase, self.since) = (phase, now);
    }

    /// For a time that differs from one cycle to the next, so that tunnels on the same path do not probe together.
    fn cruise(&mut self, now: u64) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let spread = self.random % (CRUISE_ROUNDS_SPREAD * 1_000);
        let rounds_milli = CRUISE_ROUNDS * 1_000 + spread;
        let until = now + self.min_rtt_us.unwrap_or(0) * rounds_milli / 1_000;
        self.enter(now, Phase::Cruise { until });
    }
}
