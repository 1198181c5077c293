//! The greatest of the latest samples.

/// The maximum over a window of rounds, in constant room (after K. Nichols): the greatest sample, the greatest since that one,
/// and the greatest since the second, each with its round.
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

    pub fn clear(&mut self) {
        self.best = [(0, 0); 3];
    }

    pub fn update(&mut self, round: u64, value: u64) {
        let new = (round, value);
        if value >= self.best[0].1 || round.saturating_sub(self.best[2].0) > self.window {
            self.best = [new; 3];
            return;
        }
        if value >= self.best[1].1 {
            (self.best[1], self.best[2]) = (new, new);
        } else if value >= self.best[2].1 {
            self.best[2] = new;
        }
        self.age(round, new);
    }

    /// Lets the successors move up, and sees to it that they are spread over the window.
    fn age(&mut self, round: u64, new: (u64, u64)) {
        let passed = round.saturating_sub(self.best[0].0);
        if passed > self.window {
            self.best = [self.best[1], self.best[2], new];
            if round.saturating_sub(self.best[0].0) > self.window {
                self.best = [self.best[1], self.best[2], new];
            }
        } else if self.best[1].0 == self.best[0].0 && passed > self.window / 4 {
            (self.best[1], self.best[2]) = (new, new);
        } else if self.best[2].0 == self.best[1].0 && passed > self.window / 2 {
            self.best[2] = new;
        }
    }
}
