//! Thin or bulk: found out from what is written, since nobody tells. A game writes little and at any time, and each message
//! matters; bulk writes whatever there is room for.

/// A stream is thin that writes no more than this in the long run, in bytes/s: 256 kbit/s.
const BYTES_PER_SECOND: u64 = 32_000;

/// And no more than this at once, in bytes: half a second's worth. A map that is loaded when a game begins is bulk.
const BURST_BYTES: u64 = 16_000;

/// Bulk that has become thin must have no more than this on its way: it may only be waiting for a slow path.
const REST_BYTES: usize = 4_000;

/// A leaky bucket.
#[derive(Debug, Default)]
pub struct Class {
    level: u64,
    at: u64,
    /// Written since it was last looked at.
    written: u64,
    is_bulk: bool,
}

impl Class {
    pub fn on_written(&mut self, bytes: usize) {
        self.written += bytes as u64;
    }

    pub fn is_bulk(&self) -> bool {
        self.is_bulk
    }

    /// Looks again, and tells whether it is bulk. `unacknowledged` bytes are on their way or wait to be sent.
    pub fn look(&mut self, now: u64, unacknowledged: usize) -> bool {
        let passed = now.saturating_sub(self.at).min(10_000_000);
        let leaked = passed * BYTES_PER_SECOND / 1_000_000;
        if leaked > 0 {
            self.at = self.at.max(now);
        }
        self.level = (self.level.saturating_sub(leaked) + std::mem::take(&mut self.written)).min(2 * BURST_BYTES);
        if self.level > BURST_BYTES {
            self.is_bulk = true;
        } else if self.level == 0 && unacknowledged <= REST_BYTES {
            self.is_bulk = false;
        }
        self.is_bulk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    #[test]
    fn a_game_stays_thin() {
        let mut class = Class::default();
        for tick in 0..10_000 {
            class.on_written(500);
            assert!(!class.look(tick * 16_667, 2_000), "tick {tick}");
        }
    }

    #[test]
    fn what_writes_much_at_once_or_for_long_is_bulk() {
        let mut class = Class::default();
        class.on_written(100_000);
        assert!(class.look(0, 100_000));
        let mut class = Class::default();
        let is_bulk = (0..60).any(|tick| {
            class.on_written(2_000);
            class.look(tick * 16_667, 4_000)
        });
        assert!(is_bulk, "120 kB/s for a second");
    }

    #[test]
    fn bulk_becomes_thin_a_second_after_its_last_byte_unless_a_slow_path_still_carries_it() {
        for unacknowledged in [0, 10_000] {
            let mut class = Class::default();
            class.on_written(1_000_000);
            assert!(class.look(0, 1_000_000));
            let thin_after = (0..2_000).find(|ms| !class.look(ms * MS, unacknowledged));
            assert_eq!(thin_after, (unacknowledged == 0).then_some(1_000));
        }
    }
}
