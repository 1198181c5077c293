//! Round trips: the shortest, which is the path's own, and how much longer they are now, which is a queue or noise.

/// For how long the shortest round trip counts without being seen again, in µs.
const COUNTS_US: u64 = 10_000_000;

/// Round trips of a round after which their shortest says something, as in HyStart (RFC 9406).
const SAMPLES: u32 = 8;

#[derive(Debug, Default)]
pub struct Delay {
    /// The path's own, and when it was last seen.
    min_us: Option<u64>,
    min_at: u64,
    smoothed_us: u64,
    /// How far samples are from the smoothed one, on average.
    deviation_us: u64,
    /// The shortest of this round, of how many, and the shortest of the round before.
    round_us: Option<u64>,
    round_samples: u32,
    last_round_us: Option<u64>,
    /// How long a full datagram takes to be sent, by which round trips of small ones are shorter.
    datagram_us: u64,
}

impl Delay {
    pub fn min_us(&self) -> Option<u64> {
        self.min_us
    }

    pub fn sample(&mut self, now: u64, rtt: u64) {
        self.smoothed_us = if self.smoothed_us == 0 { rtt } else { (7 * self.smoothed_us + rtt) / 8 };
        self.deviation_us = (15 * self.deviation_us + self.smoothed_us.abs_diff(rtt)) / 16;
        self.round_us = Some(self.round_us.map_or(rtt, |shortest| shortest.min(rtt)));
        self.round_samples += 1;
        let min = self.min_us.map_or(rtt, |min| min.min(rtt));
        self.min_us = Some(min);
        if rtt <= min + min / 64 + 100 {
            self.min_at = now; // As good as seen: the last µs do not matter.
        }
    }

    pub fn begin_round(&mut self, datagram_us: u64) {
        self.last_round_us = self.round_us.take();
        self.round_samples = 0;
        self.datagram_us = datagram_us;
    }

    /// Whether the shortest was seen too long ago to be trusted.
    pub fn is_old(&self, now: u64) -> bool {
        now.saturating_sub(self.min_at) > COUNTS_US
    }

    /// From here on the shortest is looked for anew.
    pub fn begin_search(&mut self) {
        (self.round_us, self.last_round_us) = (None, None);
    }

    pub fn end_search(&mut self, now: u64) {
        (self.min_us, self.min_at) = (self.shortest().or(self.min_us), now);
    }

    /// What even the fastest waited in the queue, in this round and the last.
    fn queue_us(&self) -> u64 {
        self.shortest().unwrap_or(0).saturating_sub(self.min())
    }

    /// A queue that is there all the time and no noise, in percent of the shortest round trip.
    pub fn standing_percent(&self) -> u64 {
        let noise = self.min() / 32 + 1_000 + self.datagram_us + 2 * self.deviation_us;
        self.queue_us().saturating_sub(noise) * 100 / self.min().max(1)
    }

    /// A queue that none of our own probes leaves.
    pub fn is_long(&self) -> bool {
        self.queue_us() > self.min() / 2 + 10_000 + self.datagram_us
    }

    /// Whether a queue begins to grow in a startup, with the numbers of HyStart.
    pub fn is_growing(&self) -> bool {
        let queue = self.round_us.unwrap_or(0).saturating_sub(self.min());
        self.round_samples >= SAMPLES
            && queue > (self.min() / 8).clamp(4_000, 16_000) + self.datagram_us + self.deviation_us
    }

    /// How likely losses are the path's and not those of a queue of ours, from 0 to 1: round trips that are longer by a tenth and
    /// 5 ms prove us guilty, by a third of that not.
    pub fn innocence(&self) -> f64 {
        let longer = self.smoothed_us.saturating_sub(self.min()) as f64;
        let guilty = (self.min() / 10 + 5_000 + 2 * self.deviation_us) as f64;
        (1.5 - 1.5 * longer / guilty).clamp(0.0, 1.0)
    }

    fn shortest(&self) -> Option<u64> {
        self.round_us.into_iter().chain(self.last_round_us).min()
    }

    fn min(&self) -> u64 {
        self.min_us.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    #[test]
    fn the_shortest_round_trip_gets_old_unless_it_is_seen_again() {
        let mut delay = fed(&[50 * MS]);
        delay.sample(9_000 * MS, 50 * MS + 800);
        assert!(!delay.is_old(19_000 * MS), "0.8 ms more is as good as seen");
        delay.sample(15_000 * MS, 53 * MS);
        assert!(delay.is_old(19_001 * MS));
        assert_eq!(delay.min_us(), Some(50 * MS), "but it counts until a search ends");
        delay.begin_search();
        [61, 60, 62].into_iter().for_each(|ms| delay.sample(20_000 * MS, ms * MS));
        delay.end_search(20_000 * MS);
        assert_eq!(delay.min_us(), Some(60 * MS));
    }

    #[test]
    fn a_search_that_saw_nothing_changes_nothing() {
        let mut delay = fed(&[50 * MS]);
        delay.begin_search();
        delay.end_search(MS);
        assert_eq!(delay.min_us(), Some(50 * MS));
    }

    #[test]
    fn a_queue_is_what_even_the_fastest_of_two_rounds_waited() {
        let mut delay = fed(&[50 * MS]);
        delay.begin_round(0);
        (0..1_000).for_each(|_| delay.sample(0, 70 * MS));
        assert_eq!(delay.standing_percent(), 0, "the round before was fast");
        delay.begin_round(0);
        (0..1_000).for_each(|_| delay.sample(0, 70 * MS));
        assert_eq!(delay.standing_percent(), 34, "20 ms, less 3.1 % and 1 ms of noise");
        assert!(!delay.is_long());
        (0..2).for_each(|_| {
            delay.begin_round(0);
            delay.sample(0, 86 * MS);
        });
        assert!(delay.is_long());
    }

    #[test]
    fn round_trips_that_scatter_are_no_queue() {
        let mut delay = fed(&[50 * MS]);
        for round in 0..10 {
            delay.begin_round(0);
            (0..100).for_each(|at| delay.sample(round, (60 + at % 30) * MS));
        }
        assert_eq!(delay.standing_percent(), 0);
    }

    #[test]
    fn a_startup_is_told_of_a_queue_after_eight_round_trips_of_a_round() {
        let mut delay = fed(&[50 * MS]);
        delay.begin_round(0);
        (0..7).for_each(|_| delay.sample(0, 60 * MS));
        assert!(!delay.is_growing());
        delay.sample(0, 60 * MS);
        assert!(delay.is_growing());
        delay.sample(0, 56 * MS);
        assert!(!delay.is_growing(), "one that was fast says that there is none");
    }

    #[test]
    fn long_round_trips_prove_us_guilty_of_losses() {
        let innocence = |rtt| {
            let mut delay = fed(&[50 * MS]);
            (0..1_000).for_each(|_| delay.sample(0, rtt));
            delay.innocence()
        };
        assert!(innocence(53 * MS) > 0.99);
        assert!((0.4..0.9).contains(&innocence(56 * MS)));
        assert!(innocence(61 * MS) < 0.01);
    }

    fn fed(samples: &[u64]) -> Delay {
        let mut delay = Delay::default();
        samples.iter().for_each(|rtt| delay.sample(0, *rtt));
        delay
    }
}
