//! Deadlines, one per key, in a hierarchical timing wheel: setting, moving and cancelling cost the same however many there are.
//!
//! Four levels of 64 slots, with ticks of 1 ms, 64 ms, 4 s and 262 s, hold up to 4.6 hours; what lies further is looked at
//! again then. Entries sink to finer levels as their time comes. A deadline never fires early and at most one tick late.

use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(1);
const LEVELS: usize = 4;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const HORIZON: u64 = 1 << (SLOT_BITS * LEVELS as u32);
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub struct Timers {
    origin: Instant,
    /// Every tick up to this one has been looked at.
    elapsed: u64,
    /// First entry of each slot.
    heads: [[u32; SLOTS]; LEVELS],
    /// One bit per slot that has an entry.
    occupied: [u64; LEVELS],
    /// By key. Grows with the largest key.
    entries: Vec<Entry>,
    /// Keys whose time has come, not yet handed out.
    due: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    deadline: u64,
    place: Place,
    next: u32,
    previous: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Slot { level: u8, slot: u8 },
    Due,
}

impl Timers {
    #[must_use]
    pub fn new(origin: Instant) -> Self {
        Self {
            origin,
            elapsed: 0,
            heads: [[NONE; SLOTS]; LEVELS],
            occupied: [0; LEVELS],
            entries: Vec::new(),
            due: Vec::new(),
        }
    }

    /// Sets or moves the deadline of `key`. Keys are small numbers, used again: the table is as long as the largest.
    pub fn set(&mut self, key: u32, at: Instant) {
        let index = key as usize;
        if index >= self.entries.len() {
            let empty = Entry { deadline: 0, place: Place::Nowhere, next: NONE, previous: NONE };
            self.entries.resize(index + 1, empty);
        }
        let deadline = self.tick_after(at);
        if self.entries[index].deadline == deadline && matches!(self.entries[index].place, Place::Slot { .. }) {
            return;
        }
        self.cancel(key);
        self.entries[index].deadline = deadline;
        self.place(key);
    }

    pub fn cancel(&mut self, key: u32) {
        let Some(entry) = self.entries.get(key as usize).copied() else { return };
        match entry.place {
            Place::Nowhere => {}
            Place::Due => self.due.retain(|due| *due != key),
            Place::Slot { level, slot } => {
                let head = &mut self.heads[usize::from(level)][usize::from(slot)];
                if entry.previous == NONE {
                    *head = entry.next;
                    if *head == NONE {
                        self.occupied[usize::from(level)] &= !(1 << slot);
                    }
                } else {
                    self.entries[entry.previous as usize].next = entry.next;
                }
                if entry.next != NONE {
                    self.entries[entry.next as usize].previous = entry.previous;
                }
            }
        }
        self.entries[key as usize].place = Place::Nowhere;
    }

    /// When to ask for the next key, or `None` when there is none. It may be too early for any, never too late.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if !self.due.is_empty() {
            return Some(self.origin + TICK * u32::try_from(self.elapsed).unwrap_or(0));
        }
        let (_, _, tick) = self.next_slot()?;
        Some(self.origin + Duration::from_millis(tick))
    }

    /// The next key whose deadline has come. It has no deadline from then on.
    pub fn pop_expired(&mut self, now: Instant) -> Option<u32> {
        let now = self.tick_before(now);
        loop {
            if let Some(key) = self.due.pop() {
                self.entries[key as usize].place = Place::Nowhere;
                return Some(key);
            }
            match self.next_slot() {
                Some((level, slot, tick)) if tick <= now => {
                    self.elapsed = self.elapsed.max(tick);
                    self.empty_slot(level, slot);
                }
                _ => {
                    self.elapsed = self.elapsed.max(now);
                    return None;
                }
            }
        }
    }

    /// Hands the entries of a slot down: to finer levels, or out.
    fn empty_slot(&mut self, level: usize, slot: usize) {
        let mut key = std::mem::replace(&mut self.heads[level][slot], NONE);
        self.occupied[level] &= !(1 << slot);
        while key != NONE {
            let next = self.entries[key as usize].next;
            self.place(key);
            key = next;
        }
    }

    fn place(&mut self, key: u32) {
        let deadline = self.entries[key as usize].deadline;
        if deadline <= self.elapsed {
            self.entries[key as usize].place = Place::Due;
            return self.due.push(key);
        }
        // Too far: as far as it goes, to be placed again from there.
        let tick = deadline.min(self.elapsed + HORIZON - 1);
        let highest_difference = 63 - (tick ^ self.elapsed).leading_zeros();
        let level = ((highest_difference / SLOT_BITS) as usize).min(LEVELS - 1);
        let slot = (tick >> (SLOT_BITS * level as u32)) as usize % SLOTS;
        let next = std::mem::replace(&mut self.heads[level][slot], key);
        if next != NONE {
            self.entries[next as usize].previous = key;
        }
        self.occupied[level] |= 1 << slot;
        let entry = &mut self.entries[key as usize];
        (entry.place, entry.next, entry.previous) = (Place::Slot { level: level as u8, slot: slot as u8 }, next, NONE);
    }

    /// The earliest occupied slot, and the tick at which it begins.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        (0..LEVELS).filter_map(|level| self.next_slot_of(level)).min_by_key(|(_, _, tick)| *tick)
    }

    fn next_slot_of(&self, level: usize) -> Option<(usize, usize, u64)> {
        let shift = SLOT_BITS * level as u32;
        let current = (self.elapsed >> shift) % SLOTS as u64;
        // The slot of this moment was filled for the next time round, which only the last level allows: it comes last.
        let occupied = self.occupied[level].rotate_right(current as u32);
        let ahead = match (occupied & !1, occupied & 1) {
            (0, 0) => return None,
            (0, _) => SLOTS as u64,
            (others, _) => u64::from(others.trailing_zeros()),
        };
        let tick = ((self.elapsed >> shift) + ahead) << shift;
        Some((level, ((current + ahead) % SLOTS as u64) as usize, tick))
    }

    fn tick_after(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.origin);
        u64::try_from(since.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX)
    }

    fn tick_before(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::sys::clock;

    #[test]
    fn a_deadline_fires_within_one_tick_and_never_early() {
        let origin = clock::now();
        for microseconds in [1, 999, 1_000, 63_999, 64_000, 64_001, 4_095_999, 4_096_000, 7_200_000_000, 90_000_000_000]
        {
            let mut timers = Timers::new(origin);
            let at = origin + Duration::from_micros(microseconds);
            timers.set(3, at);
            let mut looks = 0;
            let fired = loop {
                looks += 1;
                let next = timers.next_deadline().expect("it is still set");
                if timers.pop_expired(next).is_some() {
                    break next;
                }
            };
            assert!(fired >= at && fired - at <= TICK, "{microseconds} µs");
            assert!(looks <= 16, "{looks} looks for {microseconds} µs");
            assert_eq!(timers.next_deadline(), None);
        }
    }

    #[test]
    fn a_deadline_a_whole_round_away_hides_no_nearer_one() {
        let origin = clock::now();
        let mut timers = Timers::new(origin);
        let near = origin + Duration::from_millis(1 << 18);
        timers.set(0, near);
        assert_eq!(timers.pop_expired(origin + TICK), None);
        timers.set(1, origin + Duration::from_millis(1 << 24));
        assert_eq!(timers.next_deadline(), Some(near));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u64),
        Cancel(u32),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20u32, prop_oneof![0..100u64, 0..10_000u64, 0..40_000_000u64]).prop_map(|(key, ms)| Step::Set(key, ms)),
            (0..20u32).prop_map(Step::Cancel),
            prop_oneof![0..5u64, 0..5_000u64, 0..20_000_000u64].prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_sorted_map(steps in proptest::collection::vec(step(), 1..200)) {
            let origin = clock::now();
            let (mut timers, mut model, mut now) = (Timers::new(origin), BTreeMap::new(), origin);
            for step in steps {
                match step {
                    Step::Set(key, ms) => {
                        let at = now + Duration::from_millis(ms);
                        timers.set(key, at);
                        model.insert(key, at);
                    }
                    Step::Cancel(key) => {
                        timers.cancel(key);
                        model.remove(&key);
                    }
                    Step::Pass(ms) => now += Duration::from_millis(ms),
                }
                if let Some(earliest) = model.values().min() {
                    let next = timers.next_deadline().expect("something is set");
                    prop_assert!(next <= *earliest);
                }
                while let Some(key) = timers.pop_expired(now) {
                    let at = model.remove(&key).expect("it was set and had not fired");
                    prop_assert!(at <= now);
                }
                prop_assert!(model.values().all(|at| *at > now));
            }
        }
    }
}
