//! A map from the numbers of a moving window to what stands there, without search: each number has its slot.

use std::ops::{Index, IndexMut};

const SLOTS_FIRST: usize = 16;

/// All numbers in use at one time lie within a span no longer than there are slots, a power of two. It grows by doubling, so
/// that a quiet stream stays small, and never shrinks. Each item keeps its number, so that others find nothing in its slot.
#[derive(Debug)]
pub struct Ring<T> {
    slots: Vec<Option<(u32, T)>>,
}

impl<T> Ring<T> {
    pub fn new() -> Self {
        Self { slots: Self::empty(SLOTS_FIRST) }
    }

    /// Puts `item` at `number`, in a window that begins with `first`.
    #[inline]
    pub fn put(&mut self, first: u32, number: u32, item: T) {
        let span = number.wrapping_sub(first) as usize + 1;
        if span > self.slots.len() {
            let old = std::mem::replace(&mut self.slots, Self::empty(span.next_power_of_two()));
            for (number, item) in old.into_iter().flatten() {
                self.place(number, item);
            }
        }
        self.place(number, item);
    }

    #[inline]
    pub fn get(&self, number: u32) -> Option<&T> {
        self.slots[self.slot(number)].as_ref().filter(|(at, _)| *at == number).map(|(_, item)| item)
    }

    #[inline]
    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        let slot = self.slot(number);
        self.slots[slot].as_mut().filter(|(at, _)| *at == number).map(|(_, item)| item)
    }

    #[inline]
    pub fn take(&mut self, number: u32) -> Option<T> {
        let slot = self.slot(number);
        self.slots[slot].take_if(|(at, _)| *at == number).map(|(_, item)| item)
    }

    /// Everything, in no order.
    pub fn into_items(self) -> impl Iterator<Item = T> {
        self.slots.into_iter().flatten().map(|(_, item)| item)
    }

    fn place(&mut self, number: u32, item: T) {
        let slot = self.slot(number);
        self.slots[slot] = Some((number, item));
    }

    #[inline]
    fn slot(&self, number: u32) -> usize {
        number as usize & (self.slots.len() - 1)
    }

    fn empty(slots: usize) -> Vec<Option<(u32, T)>> {
        std::iter::repeat_with(|| None).take(slots).collect()
    }
}

/// For numbers that are known to be there.
impl<T> Index<u32> for Ring<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        self.get(number).expect("the caller knows that it is there")
    }
}

impl<T> IndexMut<u32> for Ring<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        self.get_mut(number).expect("the caller knows that it is there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_everything_while_it_grows_across_the_wrap() {
        let mut ring = Ring::new();
        let first = u32::MAX - 9;
        let numbers = || (0..1000).step_by(3).map(|distance| first.wrapping_add(distance));
        for number in numbers() {
            ring.put(first, number, number);
        }
        assert!(numbers().all(|number| ring[number] == number && ring.get(number.wrapping_add(1)).is_none()));
        assert_eq!(ring.get(first.wrapping_sub(1 << 10)), None); // The same slot.
        assert!(numbers().all(|number| ring.take(number) == Some(number)));
        assert_eq!(ring.into_items().count(), 0);
    }
}
