//! How many rounds a peer may cause. A peer decides where our probes go, so whoever knows the secret could point them at
//! somebody else; what we can do is to be no use for it.

/// Rounds that may follow each other at once: 0, 2 and 8 s after the beginning, and one after a change of network.
const BURST: u32 = 4;

/// Then one in so many µs, which is how far apart a visitor's own rounds are by then.
const EVERY_US: u64 = 30_000_000;

/// Rounds that one peer may still cause. One of these stands beside each peer tunnel.
#[derive(Clone, Debug)]
pub struct Allowance {
    rounds: u32,
    /// Since when the next round is saved up.
    since: u64,
}

impl Allowance {
    #[must_use]
    pub fn new(now: u64) -> Self {
        Self { rounds: BURST, since: now }
    }

    /// Whether a round may begin now; if so, it counts. A call that comes too early gets no answer.
    pub fn take(&mut self, now: u64) -> bool {
        let saved = now.saturating_sub(self.since) / EVERY_US;
        self.since += saved * EVERY_US;
        self.rounds = (u64::from(self.rounds) + saved).min(u64::from(BURST)) as u32;
        let may = self.rounds > 0;
        self.rounds -= u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_calls_without_end_causes_one_round_in_thirty_seconds() {
        let mut allowance = Allowance::new(0);
        let hour = 3_600_000_000;
        let rounds = (0..hour).step_by(100_000).filter(|now| allowance.take(*now)).count();
        assert_eq!(rounds as u64, u64::from(BURST) + hour / EVERY_US - 1);
    }

    #[test]
    fn a_quiet_peer_saves_up_no_more_than_the_burst() {
        let mut allowance = Allowance::new(0);
        let later = 1_000 * EVERY_US;
        assert_eq!((0..100).filter(|_| allowance.take(later)).count(), BURST as usize);
    }
}
