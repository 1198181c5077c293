//! Deadlines, one a key, exact to the µs: a binary heap that knows where each key stands, so that moving one costs no search.

/// Keys are small numbers, used again: the table is as long as the largest.
#[derive(Debug, Default)]
pub struct Deadlines {
    heap: Vec<(u64, u32)>,
    /// Where each key stands in the heap.
    places: Vec<Option<u32>>,
}

impl Deadlines {
    /// Sets, moves or, with `None`, cancels the deadline of `key`.
    pub fn set(&mut self, key: u32, at: Option<u64>) {
        match (self.place(key), at) {
            (None, None) => {}
            (None, Some(at)) => self.insert(key, at),
            (Some(place), Some(at)) if self.heap[place].0 == at => {}
            (Some(place), Some(at)) => {
                self.heap[place].0 = at;
                self.settle(place);
            }
            (Some(place), None) => self.remove(place),
        }
    }

    /// The earliest, and whose it is.
    pub fn first(&self) -> Option<(u64, u32)> {
        self.heap.first().copied()
    }

    /// A key whose time has come. It has no deadline from then on.
    pub fn pop_due(&mut self, now: u64) -> Option<u32> {
        let (_, key) = self.first().filter(|(at, _)| *at <= now)?;
        self.remove(0);
        Some(key)
    }

    fn place(&self, key: u32) -> Option<usize> {
        self.places.get(key as usize).copied().flatten().map(|place| place as usize)
    }

    fn insert(&mut self, key: u32, at: u64) {
        if self.places.len() <= key as usize {
            self.places.resize(key as usize + 1, None);
        }
        self.heap.push((at, key));
        self.settle(self.heap.len() - 1);
    }

    fn remove(&mut self, place: usize) {
        let (_, key) = self.heap.swap_remove(place);
        self.places[key as usize] = None;
        if place < self.heap.len() {
            self.settle(place);
        }
    }

    /// Brings what stands at `place` to where it belongs.
    fn settle(&mut self, mut place: usize) {
        while place > 0 && self.heap[place] < self.heap[(place - 1) / 2] {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
        while let Some(child) = self.earlier_child(place)
            && self.heap[child] < self.heap[place]
        {
            self.swap(place, child);
            place = child;
        }
        self.note(place);
    }

    fn earlier_child(&self, place: usize) -> Option<usize> {
        let left = 2 * place + 1;
        let right = left + 1;
        if right < self.heap.len() && self.heap[right] < self.heap[left] {
            Some(right)
        } else {
            (left < self.heap.len()).then_some(left)
        }
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        self.note(one);
    }

    fn note(&mut self, place: usize) {
        let (_, key) = self.heap[place];
        self.places[key as usize] = Some(place as u32);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_behaves_like_a_sorted_map(steps in proptest::collection::vec((0..12u32, prop::option::of(0..100u64), 0..3u32), 1..300)) {
            let (mut deadlines, mut model) = (Deadlines::default(), BTreeMap::new());
            for (key, at, pops) in steps {
                deadlines.set(key, at);
                match at {
                    Some(at) => model.insert(key, at),
                    None => model.remove(&key),
                };
                for _ in 1..pops {
                    let expected = model.iter().map(|(key, at)| (*at, *key)).min();
                    prop_assert_eq!(deadlines.first(), expected);
                    let Some((at, key)) = expected else { break };
                    prop_assert_eq!(at.checked_sub(1).and_then(|before| deadlines.pop_due(before)), None);
                    prop_assert_eq!(deadlines.pop_due(at), Some(key));
                    model.remove(&key);
                }
            }
            prop_assert_eq!(deadlines.first(), model.iter().map(|(key, at)| (*at, *key)).min());
        }
    }
}
