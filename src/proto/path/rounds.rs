//! When to punch: at once, and again the more seldom the more rounds were in vain.

/// Time before each round after the one before it found nothing, in µs. A network that lets nobody through seldom changes its mind.
const DELAYS_US: [u64; 4] = [0, 2_000_000, 8_000_000, 30_000_000];

/// And before each further one: anything from two to five minutes, so that a thousand peers do not all try together.
const LATER_US: (u64, u64) = (120_000_000, 300_000_000);

/// A way that was found this long ago was a good one: if it dies, everything begins anew.
const STOOD_US: u64 = 60_000_000;

#[derive(Debug)]
pub struct Rounds {
    /// When the next begins. `None`: not at all.
    at: Option<u64>,
    is_running: bool,
    /// In vain, one after the other.
    in_vain: usize,
    found_at: Option<u64>,
    random: u64,
}

impl Rounds {
    pub fn new(now: u64, wanted: bool, seed: u64) -> Self {
        Self { at: wanted.then_some(now), is_running: false, in_vain: 0, found_at: None, random: seed | 1 }
    }

    /// Whether one begins now.
    pub fn take(&mut self, now: u64) -> bool {
        let begins = !self.is_running && self.at.take_if(|at| *at <= now).is_some();
        self.is_running |= begins;
        begins
    }

    /// It has ended, and there is a direct way or there is none.
    pub fn over(&mut self, now: u64, is_direct: bool) {
        self.is_running = false;
        if is_direct {
            self.at = None;
            return;
        }
        self.in_vain += 1;
        let after = self.delay_us();
        self.at = Some(self.at.map_or(now + after, |at| at.min(now + after)));
    }

    fn delay_us(&mut self) -> u64 {
        if let Some(delay) = DELAYS_US.get(self.in_vain) {
            return *delay;
        }
        self.random ^= self.random << 13; // Xorshift, of Marsaglia.
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        LATER_US.0 + self.random % (LATER_US.1 - LATER_US.0)
    }

    /// A direct way is in use.
    pub fn found(&mut self, now: u64) {
        (self.at, self.found_at) = (None, Some(now));
    }

    /// It died. The next round is wanted `after` µs, or later if the way did not stand for long.
    pub fn died(&mut self, now: u64, after: u64) {
        if self.found_at.take().is_none_or(|found_at| now >= found_at + STOOD_US) {
            self.in_vain = 0;
        }
        self.at = Some(now + after.max(self.delay_us()));
        self.in_vain += 1;
    }

    pub fn begin_anew(&mut self, now: u64) {
        (self.at, self.in_vain) = (Some(now), 0);
    }

    /// One is running or about to be.
    pub fn is_searching(&self, now: u64) -> bool {
        self.is_running || self.at.is_some_and(|at| at <= now + DELAYS_US[1])
    }

    pub fn next_timeout(&self) -> u64 {
        self.at.filter(|_| !self.is_running).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// When rounds begin, each of which lasts 2.5 s and is in vain.
    fn begins(rounds: &mut Rounds, count: usize) -> Vec<u64> {
        let mut begun = Vec::new();
        while begun.len() < count {
            let now = rounds.next_timeout();
            assert!(rounds.take(now) && !rounds.take(now));
            assert_eq!(rounds.next_timeout(), u64::MAX, "while it runs");
            rounds.over(now + 5 * SECOND / 2, false);
            begun.push(now);
        }
        begun
    }

    #[test]
    fn rounds_in_vain_become_seldom_and_never_end() {
        let mut rounds = Rounds::new(0, true, 7);
        let begun = begins(&mut rounds, 50);
        let pauses: Vec<u64> = begun.windows(2).map(|pair| pair[1] - pair[0] - 5 * SECOND / 2).collect();
        assert_eq!((begun[0], &pauses[..3]), (0, &[2 * SECOND, 8 * SECOND, 30 * SECOND][..]));
        assert!(pauses[3..].iter().all(|pause| (120 * SECOND..300 * SECOND).contains(pause)));
        assert!(pauses[3..].iter().any(|pause| *pause != pauses[3]));
    }

    #[test]
    fn nobody_punches_who_has_a_direct_way_or_wants_none() {
        let mut rounds = Rounds::new(0, true, 7);
        assert!(rounds.take(0));
        rounds.found(SECOND);
        rounds.over(2 * SECOND, true);
        assert_eq!(rounds.next_timeout(), u64::MAX);
        assert_eq!(Rounds::new(0, false, 7).next_timeout(), u64::MAX);
    }

    #[test]
    fn a_way_that_stood_is_looked_for_at_once_when_it_dies_and_one_that_did_not_later_each_time() {
        let mut rounds = Rounds::new(0, true, 7);
        let mut after = Vec::new();
        let mut now = 0;
        for stood in [100, 1, 1, 1, 100] {
            assert!(rounds.take(now));
            rounds.found(now);
            rounds.over(now, true);
            now += stood * SECOND;
            rounds.died(now, SECOND / 2);
            after.push(rounds.next_timeout() - now);
            now = rounds.next_timeout();
        }
        assert_eq!(after, [SECOND / 2, 2 * SECOND, 8 * SECOND, 30 * SECOND, SECOND / 2]);
    }

    #[test]
    fn a_change_of_the_network_begins_anew_also_while_a_round_runs() {
        let mut rounds = Rounds::new(0, true, 7);
        begins(&mut rounds, 6);
        rounds.begin_anew(1_000 * SECOND);
        assert!(rounds.take(1_000 * SECOND));
        rounds.begin_anew(1_001 * SECOND);
        rounds.over(1_002 * SECOND, false);
        assert!(rounds.take(1_002 * SECOND), "what ran was about the network before");
    }
}
