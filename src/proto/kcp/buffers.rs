//! Buffers of one size, of which there are only so many: what all conversations of a tunnel keep of their streams.
//!
//! They stand in slabs, and follow each other in memory as they are taken one after the other: a window of tens of MB is then
//! written and read in order, which costs half of what going from place to place does. What was just given back is taken
//! first, so that a stream that waits for nothing stays in the cache.
//!
//! The last ones are reserved, so that no use starves one that it waits for itself: writing stops first, then what arrived
//! above a gap, and only what closes the gap may take the last.

/// As many buffers as a mask has bits.
const SLAB: usize = u64::BITS as usize;

/// The place of a buffer. Who holds it gives it back, and knows how far it is filled.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Buffer(u32);

#[derive(Debug)]
pub struct Buffers {
    buffer_bytes: usize,
    most: usize,
    held: usize,
    slabs: Vec<Slab>,
    /// The slab that is taken from, as long as it lasts.
    current: usize,
    /// The others of which some are free.
    open: Vec<usize>,
}

#[derive(Debug)]
struct Slab {
    bytes: Box<[u8]>,
    /// A bit for each buffer that nobody holds.
    free: u64,
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
    /// `most` buffers of `buffer_bytes` each, made when they are first needed, 64 at a time, and kept from then on.
    #[must_use]
    pub fn new(buffer_bytes: usize, most: usize) -> Self {
        let slabs_most = most.div_ceil(SLAB);
        let (slabs, open) = (Vec::with_capacity(slabs_most), Vec::with_capacity(slabs_most));
        Self { buffer_bytes, most, held: 0, slabs, current: 0, open }
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

    /// How many may be taken for writing.
    #[must_use]
    pub fn left_to_write(&self) -> usize {
        self.left().saturating_sub(self.most / 4)
    }

    /// How many nobody holds.
    #[must_use]
    pub fn left(&self) -> usize {
        self.most - self.held
    }

    /// How many of them may hold what arrives above a gap.
    pub(super) fn spare(&self) -> usize {
        self.left().saturating_sub(self.most / 8)
    }

    #[inline]
    pub(super) fn take(&mut self, purpose: Use) -> Option<Buffer> {
        let reserved = match purpose {
            Use::Write => self.most / 4,
            Use::AboveGap => self.most / 8,
            Use::InOrder => 0,
        };
        if self.left() <= reserved {
            return None;
        }
        self.held += 1;
        if self.slabs.get(self.current).is_none_or(|slab| slab.free == 0) {
            self.current = self.open.pop().unwrap_or_else(|| self.add_slab());
        }
        let slab = &mut self.slabs[self.current];
        let at = slab.free.trailing_zeros() as usize;
        slab.free &= slab.free - 1;
        Some(Buffer((self.current * SLAB + at) as u32))
    }

    #[inline]
    pub(super) fn give_back(&mut self, buffer: Buffer) {
        let (number, at) = (buffer.0 as usize / SLAB, buffer.0 as usize % SLAB);
        let slab = &mut self.slabs[number];
        if slab.free == 0 && number != self.current {
            self.open.push(number);
        }
        slab.free |= 1 << at;
        self.held -= 1;
    }

    #[inline]
    pub(super) fn bytes(&self, buffer: &Buffer) -> &[u8] {
        let (slab, begin) = self.place(buffer);
        &self.slabs[slab].bytes[begin..][..self.buffer_bytes]
    }

    #[inline]
    pub(super) fn bytes_mut(&mut self, buffer: &Buffer) -> &mut [u8] {
        let (slab, begin) = self.place(buffer);
        &mut self.slabs[slab].bytes[begin..][..self.buffer_bytes]
    }

    fn place(&self, buffer: &Buffer) -> (usize, usize) {
        (buffer.0 as usize / SLAB, buffer.0 as usize % SLAB * self.buffer_bytes)
    }

    fn add_slab(&mut self) -> usize {
        let bytes = vec![0; SLAB * self.buffer_bytes].into_boxed_slice();
        self.slabs.push(Slab { bytes, free: u64::MAX });
        self.slabs.len() - 1
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

    #[test]
    fn no_two_holders_share_a_byte() {
        let mut buffers = Buffers::new(3, 1000);
        let mut held = Vec::new();
        let mut seed = 1u64;
        for round in 0..20_000u32 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let gives = (seed >> 60) < if round / 2_000 % 2 == 0 { 6 } else { 10 };
            if gives && !held.is_empty() {
                let (buffer, expected) = held.swap_remove((seed >> 32) as usize % held.len());
                assert_eq!(buffers.bytes(&buffer), expected, "round {round}");
                buffers.give_back(buffer);
            } else if let Some(buffer) = buffers.take(Use::InOrder) {
                let mark = [round as u8, (round >> 8) as u8, 7];
                buffers.bytes_mut(&buffer).copy_from_slice(&mark);
                held.push((buffer, mark));
            }
            assert_eq!(buffers.left(), 1000 - held.len());
        }
    }

    #[test]
    fn what_is_taken_one_after_the_other_follows_each_other_and_what_was_given_back_is_taken_first() {
        let mut buffers = Buffers::new(3, 1000);
        let mut held: Vec<Buffer> = (0..640).filter_map(|_| buffers.take(Use::InOrder)).collect();
        assert!(held.iter().map(|buffer| buffer.0).eq(0..640));
        held.drain(128..256).for_each(|buffer| buffers.give_back(buffer));
        let again: Vec<u32> = (0..128).filter_map(|_| buffers.take(Use::InOrder)).map(|buffer| buffer.0).collect();
        assert!(again.iter().copied().eq((192..256).chain(128..192)));
        assert_eq!(buffers.slabs.len(), 10);
    }
}
