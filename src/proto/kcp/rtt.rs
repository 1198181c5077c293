//! How long an answer takes, and how long to wait for one (RFC 6298, with the limits that the settings give). All in µs.

use super::Settings;

#[derive(Debug)]
pub struct Rtt {
    /// Smoothed, and its variation. `None` before the first sample.
    smoothed: Option<u64>,
    variation: u64,
}

impl Rtt {
    pub fn new() -> Self {
        Self { smoothed: None, variation: 0 }
    }

    pub fn smoothed(&self) -> Option<u64> {
        self.smoothed
    }

    pub fn sample(&mut self, rtt: u64) {
        let Some(smoothed) = self.smoothed else {
            (self.smoothed, self.variation) = (Some(rtt), rtt / 2);
            return;
        };
        self.variation = (3 * self.variation + smoothed.abs_diff(rtt)) / 4;
        self.smoothed = Some((7 * smoothed + rtt) / 8);
    }

    /// How long to wait for an acknowledgement when that many in a row have not come.
    pub fn timeout(&self, missed: u32, settings: &Settings) -> u64 {
        let first = match self.smoothed {
            Some(smoothed) => smoothed + (4 * self.variation).max(settings.rto_margin_us),
            None => settings.rto_first_us,
        };
        let mut timeout = first.clamp(settings.rto_min_us, settings.rto_max_us);
        for _ in 0..missed.min(32) {
            if timeout == settings.rto_max_us {
                break;
            }
            timeout = (timeout * settings.backoff_percent / 100).min(settings.rto_max_us);
        }
        timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_is_the_round_trip_with_a_margin_and_grows_by_half_up_to_a_second() {
        let settings = Settings::default();
        let mut rtt = Rtt::new();
        assert_eq!(rtt.timeout(0, &settings), settings.rto_first_us);
        for _ in 0..100 {
            rtt.sample(50_000);
        }
        assert_eq!([0, 1, 2].map(|missed| rtt.timeout(missed, &settings)), [54_000, 81_000, 121_500]);
        assert_eq!(rtt.timeout(u32::MAX, &settings), 1_000_000);
        for _ in 0..100 {
            rtt.sample(1);
        }
        assert_eq!(rtt.timeout(0, &settings), 10_000);
    }
}
