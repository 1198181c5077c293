//! Acknowledgements that come in bursts, because some hop gathers packets: what comes at once, beyond the rate, has to fit
//! into the window too, or the path runs dry between bursts.

use super::filter::MaxFilter;

#[derive(Debug)]
pub struct Bursts {
    /// Since when no less was acknowledged than the rate makes one expect, and how much.
    since: u64,
    bytes: u64,
    most: MaxFilter,
}

impl Bursts {
    pub fn new(rounds: u64) -> Self {
        Self { since: 0, bytes: 0, most: MaxFilter::new(rounds) }
    }

    /// `rate` is the path's, in bytes/s.
    pub fn on_acked(&mut self, now: u64, round: u64, bytes: u64, rate: u64) {
        // More than a second would say no more, and might not fit into its type.
        let passed = now.saturating_sub(self.since).min(1_000_000);
        let mut expected = passed * rate / 1_000_000;
        if self.bytes <= expected {
            (self.since, self.bytes, expected) = (now, 0, 0);
        }
        self.bytes += bytes;
        self.most.update(round, self.bytes - expected);
    }

    /// The largest of the latest rounds, in bytes. A single segment is one, too.
    pub fn most(&self) -> u64 {
        self.most.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_what_comes_beyond_the_rate_until_the_rate_has_caught_up() {
        let mut bursts = Bursts::new(10);
        // 1 MB/s in single segments of 1,000 bytes: nothing but the segment itself.
        (0..100).for_each(|at| bursts.on_acked(at * 1_000, 0, 1_000, 1_000_000));
        assert_eq!(bursts.most(), 1_000);
        // The same in gatherings of 20, 20 ms apart.
        for at in 0..10 {
            (0..20).for_each(|_| bursts.on_acked(200_000 + at * 20_000, 0, 1_000, 1_000_000));
        }
        assert_eq!(bursts.most(), 20_000);
    }
}
