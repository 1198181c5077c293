//! Which streams the peer has opened already: an id that was alive once must not come to life again because a packet is late.
//!
//! Ids grow by one, but the first packet of one stream may be overtaken by that of another, so ids below the highest may still
//! be new.

use std::collections::BTreeSet;

/// How far an id may be above the highest so far, and how many below it may be missing. A visitor has no more streams at a time,
/// and those that have come and gone were told of in order. Of more, the lowest count as seen.
const AHEAD_MAX: u32 = 8192;

#[derive(Debug, Default)]
pub struct Numbering {
    highest: u32,
    /// Not seen, though lower.
    missing: BTreeSet<u32>,
}

impl Numbering {
    /// Whether no stream ever had this id, and one may have it now. 0 is not a stream's.
    pub fn is_new(&self, id: u32) -> bool {
        if id > self.highest { id - self.highest <= AHEAD_MAX } else { self.missing.contains(&id) }
    }

    pub fn mark(&mut self, id: u32) {
        if !self.missing.remove(&id) && id > self.highest {
            self.missing.extend(self.highest + 1..id);
            self.highest = id;
        }
        while self.missing.len() > AHEAD_MAX as usize {
            self.missing.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_new_once_even_when_others_have_overtaken_it() {
        let mut numbering = Numbering::default();
        for id in [2, 1, 5, 3, 8000, 4, 7999] {
            assert!(numbering.is_new(id), "{id}");
            numbering.mark(id);
            assert!(!numbering.is_new(id), "{id}");
        }
        assert!(!numbering.is_new(0));
    }

    #[test]
    fn what_may_come_late_is_bounded() {
        let mut numbering = Numbering::default();
        assert!(!numbering.is_new(AHEAD_MAX + 1));
        assert!(!numbering.is_new(u32::MAX));
        for id in (1..=20).map(|step| step * AHEAD_MAX) {
            assert!(numbering.is_new(id));
            numbering.mark(id);
        }
        assert!(numbering.missing.len() <= AHEAD_MAX as usize);
        assert!(numbering.is_new(20 * AHEAD_MAX - 1) && !numbering.is_new(1));
    }
}
