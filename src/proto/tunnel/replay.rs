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
    /// `first` is the smallest number there is.
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
