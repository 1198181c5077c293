//! How much one key may have relayed: a bucket that fills at a rate.

/// What the bucket holds, in seconds of its rate: a game's burst passes, and nobody saves up for more.
const BURST_US: u64 = 250_000;

/// And at least, in bytes: a batch of datagrams as they arrive.
const BURST_BYTES_MIN: u64 = 64 << 10;

#[derive(Debug)]
pub struct Meter {
    /// Bytes a second.
    rate: u64,
    /// Bytes that may pass now, in millionths.
    filled: u64,
    at: u64,
}

impl Meter {
    /// Full at first. `rate` is in bytes a second.
    #[must_use]
    pub fn new(now: u64, rate: u64) -> Self {
        Self { rate, filled: capacity(rate), at: now }
    }

    /// Whether so many bytes may pass now, which are counted then.
    pub fn admit(&mut self, now: u64, bytes: usize) -> bool {
        let since = now.saturating_sub(std::mem::replace(&mut self.at, now));
        self.filled = self.filled.saturating_add(since.saturating_mul(self.rate)).min(capacity(self.rate));
        let wanted = (bytes as u64).saturating_mul(1_000_000);
        let admits = wanted <= self.filled;
        if admits {
            self.filled -= wanted;
        }
        admits
    }
}

fn capacity(rate: u64) -> u64 {
    rate.saturating_mul(BURST_US).max(BURST_BYTES_MIN * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_passes_than_the_rate_and_one_burst() {
        for rate in [8_000, 1_000_000, 125_000_000] {
            let mut meter = Meter::new(0, rate);
            let (mut passed, step) = (0, 1_200 * 1_000_000 / rate / 2 + 1);
            (0..10_000_000 / step).for_each(|at| passed += 1_200 * u64::from(meter.admit(at * step, 1_200)));
            let most = 10 * rate + capacity(rate) / 1_000_000;
            assert!((most * 95 / 100..=most).contains(&passed), "{passed} of {most} at {rate}");
        }
    }

    #[test]
    fn a_time_that_stands_still_or_an_absurd_one_is_no_harm() {
        let mut meter = Meter::new(5, 1);
        while meter.admit(5, 1_000) {}
        assert!(!meter.admit(0, 1_000));
        assert!(meter.admit(u64::MAX, 1_000));
        assert!(!meter.admit(u64::MAX, usize::MAX));
    }
}
