//! Lets bulk go at a rate, in batches.

/// The most time for which it fills up at once, in µs: far more than is ever saved up, and little enough for the product with
/// any rate to fit its type.
const FILL_US: u64 = 1_000_000;

#[derive(Debug, Default)]
pub struct Bucket {
    at: u64,
    /// Bytes that may go. Less than nothing after small packets went ahead.
    bytes: i64,
    /// What is left of the last division, in bytes / 1,000,000.
    rest: u64,
    /// Bytes that small packets may still take away from bulk.
    for_small: i64,
}

impl Bucket {
    /// What may go at `now` at `rate` bytes/s: of time that nobody used, no more than `most`.
    pub fn fill(&mut self, now: u64, rate: u64, most: i64) -> i64 {
        let gained = now.saturating_sub(self.at).min(FILL_US) * rate + self.rest;
        self.at = self.at.max(now);
        self.rest = gained % 1_000_000;
        let gained = (gained / 1_000_000) as i64;
        self.bytes = (self.bytes + gained).min(most);
        self.for_small = (self.for_small + gained / 2).min(2 * most);
        self.bytes
    }

    /// Whether nobody has asked for so long that a part of what might have gone is forfeited.
    pub fn is_full(&self, now: u64, rate: u64, most: i64) -> bool {
        let gained = now.saturating_sub(self.at).min(FILL_US) * rate / 1_000_000;
        self.bytes + gained as i64 >= most
    }

    pub fn take(&mut self, bytes: usize) {
        self.bytes -= bytes as i64;
    }

    /// Small packets go whatever it costs, but leave half of the rate to bulk.
    pub fn take_small(&mut self, bytes: usize) {
        let taken = (bytes as i64).min(self.for_small);
        self.for_small -= taken;
        self.bytes -= taken;
    }

    /// How long until there are `wanted` bytes, in µs.
    pub fn wait_us(&self, wanted: i64, rate: u64) -> u64 {
        let missing = (wanted - self.bytes).max(0) as u64;
        (missing * 1_000_000).div_ceil(rate.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 1_234_567;
    const BATCH: i64 = 2_700;
    const MOST: i64 = 2 * BATCH;

    #[test]
    fn over_time_the_rate_goes_and_not_a_byte_more() {
        let mut bucket = Bucket::default();
        let mut sent = 0;
        for now in (0..=10_000_000).step_by(7) {
            while bucket.fill(now, RATE, MOST) >= BATCH {
                bucket.take(1_350);
                sent += 1_350;
            }
        }
        assert!(sent <= 10 * RATE && sent + 2 * BATCH as u64 > 10 * RATE, "{sent} bytes in 10 s");
    }

    #[test]
    fn waiting_as_long_as_it_says_is_enough_and_no_longer_than_needed() {
        let mut bucket = Bucket::default();
        bucket.fill(1_000, RATE, MOST);
        bucket.take(2_000);
        let wait = bucket.wait_us(BATCH, RATE);
        assert!(bucket.fill(1_000 + wait - 2, RATE, MOST) < BATCH);
        assert!(bucket.fill(1_000 + wait, RATE, MOST) >= BATCH);
    }

    #[test]
    fn a_pause_saves_no_more_than_it_may() {
        let mut bucket = Bucket::default();
        assert!(!bucket.is_full(1_000, RATE, MOST));
        assert!(bucket.is_full(5_000, RATE, MOST));
        assert_eq!(bucket.fill(60_000_000, RATE, MOST), MOST);
    }

    #[test]
    fn small_packets_take_half_of_the_rate_at_most() {
        let mut bucket = Bucket::default();
        let (mut bulk, mut now) = (0, 0);
        while now < 10_000_000 {
            now += 1_000;
            bucket.take_small(5_000); // 5 MB/s, four times the rate.
            if bucket.fill(now, RATE, MOST) >= BATCH {
                bucket.take(BATCH as usize);
                bulk += BATCH as u64;
            }
        }
        assert!(bulk.abs_diff(5 * RATE) < RATE / 10, "{bulk} bytes of bulk in 10 s");
    }
}
