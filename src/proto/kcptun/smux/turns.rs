//! Whose turn it is to send: first those that have just got something, then those that have been sending for long.

use std::collections::VecDeque;

/// Turns of the first before one of the others has its own.
const FRESH_MAX: u32 = 8;

/// Streams by their numbers, each at most once.
#[derive(Debug, Default)]
pub struct Turns {
    fresh: VecDeque<u32>,
    busy: VecDeque<u32>,
    /// Turns of fresh ones since the last of a busy one.
    fresh_turns: u32,
}

impl Turns {
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.busy.is_empty()
    }

    /// It has just got something.
    pub fn begin(&mut self, stream: u32) {
        self.fresh.push_back(stream);
    }

    /// It has had a turn, and still has something.
    pub fn go_on(&mut self, stream: u32) {
        self.busy.push_back(stream);
    }

    pub fn next(&mut self) -> Option<u32> {
        let is_for_fresh = self.fresh_turns < FRESH_MAX || self.busy.is_empty();
        if is_for_fresh && let Some(stream) = self.fresh.pop_front() {
            self.fresh_turns = (self.fresh_turns + 1).min(FRESH_MAX);
            return Some(stream);
        }
        self.fresh_turns = 0;
        self.busy.pop_front()
    }

    pub fn forget(&mut self, stream: u32) {
        self.fresh.retain(|waiting| *waiting != stream);
        self.busy.retain(|waiting| *waiting != stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_streams_come_first_and_do_not_stop_the_busy_ones() {
        let mut turns = Turns::default();
        (0..3).for_each(|stream| turns.go_on(stream));
        (10..30).for_each(|stream| turns.begin(stream));
        turns.forget(1);
        let order: Vec<_> = std::iter::from_fn(|| turns.next()).collect();
        let expected = (10..18).chain([0]).chain(18..26).chain([2]).chain(26..30);
        assert_eq!(order, expected.collect::<Vec<_>>());
        assert!(turns.is_empty());
    }
}
