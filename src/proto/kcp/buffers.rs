//! Buffers of one size, of which there are only so many: what all conversations of a tunnel keep of their segments.
//!
//! The last ones are reserved, so that no use starves one that it waits for itself: writing stops first, then what arrived
//! above a gap, and only what closes the gap may take the last.

/// Filled from its start; who holds it knows how far.
pub(super) type Buffer = Box<[u8]>;

#[derive(Debug)]
pub struct Buffers {
    buffer_bytes: usize,
    most: usize,
    /// Made so far.
    made: usize,
    free: Vec<Buffer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Leaves a quarter of all to what arrives.
    Write,
    /// Leaves an eighth to what closes gaps.
    AboveGap,
    InOrder,
}

impl Buffers {
    /// `most` buffers of `buffer_bytes` each, made when they are first needed and kept from then on.
    #[must_use]
    pub fn new(buffer_bytes: usize, most: usize) -> Self {
        Self { buffer_bytes, most, made: 0, free: Vec::with_capacity(most) }
    }

    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// How many there may be.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most
    }

    /// How many nobody holds.
    #[must_use]
    pub fn left(&self) -> usize {
        self.most - self.made + self.free.len()
    }

    /// How many of those may be filled by writing.
    #[must_use]
    pub fn left_to_write(&self) -> usize {
        self.left().saturating_sub(self.reserved(Use::Write))
    }

    fn reserved(&self, purpose: Use) -> usize {
        match purpose {
            Use::Write => self.most / 4,
            Use::AboveGap => self.most / 8,
            Use::InOrder => 0,
        }
    }

    pub(super) fn take(&mut self, purpose: Use) -> Option<Buffer> {
        if self.left() <= self.reserved(purpose) {
            return None;
        }
        let buffer = self.free.pop();
        Some(buffer.unwrap_or_else(|| {
            self.made += 1;
            vec![0; self.buffer_bytes].into_boxed_slice()
        }))
    }

    pub(super) fn give_back(&mut self, buffer: Buffer) {
        self.free.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_buffers_go_to_what_arrives_and_the_very_last_to_what_closes_a_gap() {
        let mut buffers = Buffers::new(10, 16);
        let mut held = Vec::new();
        let mut exhaust = |purpose| {
            held.extend(std::iter::from_fn(|| buffers.take(purpose)));
            held.len()
        };
        assert_eq!([Use::Write, Use::AboveGap, Use::InOrder].map(&mut exhaust), [12, 14, 16]);
        assert_eq!(buffers.left(), 0);
        buffers.give_back(held.remove(0));
        assert_eq!(buffers.left(), 1);
        assert_eq!(buffers.take(Use::Write), None);
        assert!(buffers.take(Use::InOrder).is_some());
    }
}
