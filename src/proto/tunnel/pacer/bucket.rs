//! Lets bulk go at a rate, in batches.

#[derive(Debug, Default)]
pub struct Bucket {
    at: u64,
    /// Bytes that may go. Less than nothing after small packets that went ahead.
    bytes: i64,
    /// Part of the next byte, in bytes * 1,000,000.
    rest: u64,
    /// Bytes that small packets may still take away from bulk.
    for_small: i64,
}

impl Bucket {
    /// What may go at `now` at `rate` bytes/s. Time that nobody used gives at most two batches.
    pub fn fill(&mut self, now: u64, rate: u64, batch: i64) -> i64 {
        // A second is far more than two batches, and keeps the product in its type.
        let passed = now.saturating_sub(self.at).min(1_000_000);
        self.at = self.at.max(now);
        let gained = passed * rate + self.rest;
        self.rest = gained % 1_000_000;
        let gained = (gained / 1_000_000) as i64;
        self.bytes = (self.bytes + gained).min(2 * batch);
        self.for_small = (self.for_small + gained / 2).min(4 * batch);
        self.bytes
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
    pub fn wait(&self, wanted: i64, rate: u64) -> u64 {
        let missing = (wanted - self.bytes).max(0) as u64;
        (missing * 1_000_000).div_ceil(rate.max(1))
    }
}
