//! The greatest of the latest samples, in constant room.

/// The maximum over a window of rounds (after Kathleen Nichols): the greatest sample, the greatest after it, and the greatest after
/// that, each with its round.
#[derive(Clone, Debug)]
pub struct MaxFilter {
    window: u64,
    best: [(u64, u64); 3],
}

impl MaxFilter {
    /// A sample counts for `window` rounds.
    pub fn new(window: u64) -> Self {
        Self { window, best: [(0, 0); 3] }
    }

    pub fn get(&self) -> u64 {
        self.best[0].1
    }

    /// Forgets what was before.
    pub fn restart(&mut self, round: u64, value: u64) {
        self.best = [(round, value); 3];
    }

    /// Rounds never decrease.
    pub fn update(&mut self, round: u64, value: u64) {
        let [first, second, third] = self.best;
        if value >= first.1 || round - third.0 > self.window {
            return self.restart(round, value);
        }
        let new = (round, value);
        if value >= second.1 {
            self.best = [first, new, new];
        } else if value >= third.1 {
            self.best[2] = new;
        }
        self.age(new);
    }

    /// Lets the others move up when the first is too old, and sees to it that they do not get old together.
    fn age(&mut self, new: (u64, u64)) {
        let [first, second, third] = self.best;
        let passed = new.0 - first.0;
        if passed > self.window {
            self.best = [second, third, new];
            if new.0 - second.0 > self.window {
                self.best = [third, new, new];
            }
        } else if second.0 == first.0 && passed > self.window / 4 {
            self.best = [first, new, new];
        } else if third.0 == second.0 && passed > self.window / 2 {
            self.best = [first, second, new];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_counts_for_its_window_and_its_successors_after_it() {
        let mut filter = MaxFilter::new(10);
        let mut after = |round, value| {
            filter.update(round, value);
            filter.get()
        };
        assert_eq!([after(1, 50), after(2, 90), after(3, 40)], [50, 90, 90]);
        assert_eq!([after(6, 70), after(9, 60), after(12, 30)], [90, 90, 90]);
        assert_eq!([after(13, 30), after(16, 30), after(17, 30)], [70, 70, 60]);
        assert_eq!([after(50, 1), after(51, 2)], [1, 2], "after a pause nothing old counts");
    }

    #[test]
    fn it_is_never_below_the_true_maximum_nor_above_that_of_a_window_and_a_half() {
        let mut filter = MaxFilter::new(8);
        let values: Vec<u64> = (0..500u64).map(|at| at * 7_919 % 104_729 % 1_000).collect();
        for (round, value) in values.iter().enumerate() {
            filter.update(round as u64, *value);
            let most = |rounds: usize| values[round.saturating_sub(rounds)..=round].iter().max().copied();
            assert!(Some(filter.get()) <= most(8), "round {round}");
            assert!(Some(filter.get()) >= most(2), "round {round}");
        }
    }
}
