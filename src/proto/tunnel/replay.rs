//! Which numbers of an epoch have been seen: the highest, and of the 2,048 up to it each one (the scheme of RFC 6479).
//! Asked before a packet is opened, told after its tag was right.

/// Numbers up to the highest that are told apart; older ones count as seen. At 1 Gbit/s of full packets it is 20 ms of
/// reordering, and 4 MB of what may wait in a queue.
pub const WINDOW: u64 = 2048;

const WORD_BITS: u64 = u64::BITS as u64;

/// One more than the window needs, since its ends may lie within words.
const WORDS: usize = (WINDOW / WORD_BITS) as usize + 1;

#[derive(Debug)]
pub(super) struct ReplayWindow {
    /// The number after the highest seen.
    next: u64,
    /// A circle of words; bit `number % 64` of word `number / 64`.
    seen: [u64; WORDS],
}

impl ReplayWindow {
    /// `first` is the smallest number that it is ever asked about.
    pub fn new(first: u64) -> Self {
        Self { next: first, seen: [0; WORDS] }
    }

    pub fn is_highest(&self, number: u64) -> bool {
        number >= self.next
    }

    /// Whether it may be opened: neither seen nor too old to tell.
    pub fn admits(&self, number: u64) -> bool {
        let (word, bit) = place(number);
        self.is_highest(number) || (self.next - number <= WINDOW && self.seen[word] & bit == 0)
    }

    /// `number` has been opened; the window admitted it.
    pub fn mark(&mut self, number: u64) {
        if self.is_highest(number) {
            self.forget_up_to(number);
            self.next = number + 1;
        }
        let (word, bit) = place(number);
        self.seen[word] |= bit;
    }

    /// Clears the words that begin to mean other numbers.
    fn forget_up_to(&mut self, number: u64) {
        let current = self.next.saturating_sub(1) / WORD_BITS;
        let steps = (number / WORD_BITS - current).min(WORDS as u64);
        for step in 1..=steps {
            self.seen[((current + step) % WORDS as u64) as usize] = 0;
        }
    }
}

fn place(number: u64) -> (usize, u64) {
    ((number / WORD_BITS % WORDS as u64) as usize, 1 << (number % WORD_BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_is_admitted_once() {
        let mut window = ReplayWindow::new(0);
        for number in [0, 1, 3, 2, 2048, 4000, 1953] {
            assert!(window.admits(number), "{number}");
            window.mark(number);
            assert!(!window.admits(number), "{number} again");
        }
    }

    #[test]
    fn the_window_is_exactly_2048_numbers_long_wherever_it_ends() {
        for highest in 5_000..5_200 {
            let mut window = ReplayWindow::new(0);
            window.mark(highest);
            assert!(window.admits(highest - WINDOW + 1), "{highest}");
            assert!(!window.admits(highest - WINDOW), "{highest}");
        }
    }

    /// Forward or back from the highest, by jumps of every order of magnitude.
    fn jumps() -> impl Strategy<Value = Vec<(bool, u64)>> {
        let jump = (any::<bool>(), 0..16_u32, any::<u64>());
        prop::collection::vec(jump.prop_map(|(forward, bits, random)| (forward, random % (1 << bits))), 1..400)
    }

    proptest! {
        #[test]
        fn it_says_what_a_list_of_all_numbers_would_say(epoch in 0..3_u64, jumps in jumps()) {
            let first = epoch << 22;
            let mut window = ReplayWindow::new(first);
            let mut seen = BTreeSet::<u64>::new();
            for (forward, jump) in jumps {
                let highest = seen.last().copied();
                let from = highest.unwrap_or(first);
                let number = if forward { from + jump } else { from.saturating_sub(jump).max(first) };
                let is_old = highest.is_some_and(|highest| number + WINDOW <= highest);
                prop_assert_eq!(window.is_highest(number), highest.is_none_or(|highest| number > highest));
                prop_assert_eq!(window.admits(number), !is_old && !seen.contains(&number), "{}", number);
                if window.admits(number) {
                    window.mark(number);
                    seen.insert(number);
                }
            }
        }
    }
}
