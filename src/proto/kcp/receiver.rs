//! The receiving half: puts segments in order, owes acknowledgements, and says how much room there is.

use std::collections::VecDeque;

use super::buffers::{Buffer, Buffers, Use};
use super::ring::Ring;
use super::segment::{HEADER_BYTES, Header, is_before};

/// In how many of the next datagrams with acknowledgements one of a segment above a gap is said again. KCP says it once, and when
/// that is lost the segment travels again for nothing.
const REPEATS: u32 = 2;

#[derive(Debug)]
pub struct Receiver {
    segments: Ring<Arrived>,
    /// Segments we have room for, unread ones included.
    window: u16,
    /// The first segment of which bytes are still to be read, and how many of it have been.
    read: u32,
    offset: usize,
    /// The first segment that has not arrived.
    next: u32,
    /// Bytes in order, not yet read.
    readable: usize,
    /// The last segment that arrived and has none missing before it: its acknowledgement speaks for all of them.
    in_order: Option<Owed>,
    /// Segments above a gap, in the order of arrival. At most a window; what is not said is asked for again.
    owed: VecDeque<Owed>,
    /// Those said in the last datagrams, each with the number of its datagram, and that number.
    said: VecDeque<(Owed, u32)>,
    datagrams: u32,
    pub duplicates: u64,
    /// Outside the window, or longer than a buffer.
    pub refused: u64,
    /// The peer asked how much room there is.
    pub asked: bool,
    /// The peer was last told that there is none.
    shut: bool,
}

#[derive(Debug)]
struct Arrived {
    buffer: Buffer,
    length: usize,
}

/// An acknowledgement: the number of a segment and its sender's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owed {
    number: u32,
    timestamp: u32,
}

impl Receiver {
    pub fn new(first: u32, window: u16) -> Self {
        Self {
            segments: Ring::new(),
            window,
            read: first,
            offset: 0,
            next: first,
            readable: 0,
            in_order: None,
            owed: VecDeque::new(),
            said: VecDeque::new(),
            datagrams: 0,
            duplicates: 0,
            refused: 0,
            asked: false,
            shut: false,
        }
    }

    pub fn push(&mut self, number: u32, timestamp: u32, payload: &[u8], buffers: &mut Buffers) {
        if !self.has(number, payload, buffers) {
            return;
        }
        let owed = Owed { number, timestamp };
        if is_before(number, self.next) {
            let newer = self.in_order.filter(|known| !is_before(known.number, number));
            self.in_order = newer.or(Some(owed));
        } else if self.owed.len() < usize::from(self.window) {
            self.owed.push_back(owed);
        }
    }

    /// Whether the segment has arrived, now or before. Without a buffer for it, it must come again.
    fn has(&mut self, number: u32, payload: &[u8], buffers: &mut Buffers) -> bool {
        if is_before(number, self.next) || self.segments.get(number).is_some() {
            self.duplicates += 1;
            return true;
        }
        let is_in_window = number.wrapping_sub(self.read) < u32::from(self.window);
        if !is_in_window || payload.len() > buffers.buffer_bytes() {
            self.refused += 1;
            return false;
        }
        let purpose = if number == self.next { Use::InOrder } else { Use::AboveGap };
        let Some(buffer) = buffers.take(purpose) else { return false };
        buffers.bytes_mut(&buffer)[..payload.len()].copy_from_slice(payload);
        self.segments.put(self.read, number, Arrived { buffer, length: payload.len() });
        while let Some(arrived) = self.segments.get(self.next) {
            self.readable += arrived.length;
            self.next = self.next.wrapping_add(1);
        }
        self.consume(0, buffers); // An empty segment that is first would never be read.
        true
    }

    /// Bytes in order, not yet read.
    pub fn readable(&self) -> usize {
        self.readable
    }

    /// The next bytes to be read, as far as they lie together. Empty only when nothing is readable.
    pub fn peek<'a>(&self, buffers: &'a Buffers) -> &'a [u8] {
        if self.readable == 0 {
            return &[];
        }
        let arrived = &self.segments[self.read];
        &buffers.bytes(&arrived.buffer)[self.offset..arrived.length]
    }

    /// Takes as many bytes off, at most those that [`Self::peek`] shows.
    pub fn consume(&mut self, bytes: usize, buffers: &mut Buffers) {
        self.offset += bytes;
        self.readable -= bytes;
        while self.read != self.next && self.segments[self.read].length == self.offset {
            if let Some(arrived) = self.segments.take(self.read) {
                buffers.give_back(arrived.buffer);
            }
            self.read = self.read.wrapping_add(1);
            self.offset = 0;
        }
    }

    /// What each header says of this half: the first segment that is missing, and the room from there on.
    pub fn news(&self) -> (u32, u16) {
        (self.next, self.room())
    }

    /// The peer will hear of that much room.
    pub fn tell(&mut self, room: u16) {
        self.shut = room == 0;
    }

    fn room(&self) -> u16 {
        self.window - self.next.wrapping_sub(self.read) as u16 // Never more than a window is unread.
    }

    /// Whether the peer waits to be told of the room: it asked, or believes that there is none while a quarter is free again.
    pub fn owes_window(&self) -> bool {
        self.asked || self.shut && (self.room() > self.window / 4 || self.readable == 0 && self.room() > 0)
    }

    pub fn owes_acks(&self) -> bool {
        self.in_order.is_some() || !self.owed.is_empty()
    }

    /// Appends what is owed and fits: first one acknowledgement of all that is in order, then those above a gap, then those that
    /// the last datagrams said, from the latest on. New ones take no more than half the room, so that each is said twice even
    /// when there are many: the sender makes up its mind when the next datagram arrives.
    pub fn write_acks(&mut self, mut header: Header, room: usize, out: &mut Vec<u8>) {
        self.datagrams = self.datagrams.wrapping_add(1);
        while self.said.front().is_some_and(|(_, said)| self.datagrams.wrapping_sub(*said) > REPEATS) {
            self.said.pop_front();
        }
        let mut append = |owed: Owed| {
            (header.number, header.timestamp) = (owed.number, owed.timestamp);
            out.extend_from_slice(&header.encode());
        };
        let mut slots = room / HEADER_BYTES;
        if let Some(owed) = self.in_order.take() {
            append(owed);
            slots -= 1;
        }
        let repeats = self.said.len();
        let mut for_new = slots.div_ceil(2);
        while for_new > 0
            && let Some(owed) = self.owed.pop_front()
        {
            if !is_before(owed.number, self.next) {
                append(owed);
                self.said.push_back((owed, self.datagrams));
                (for_new, slots) = (for_new - 1, slots - 1);
            }
        }
        let again = self.said.iter().take(repeats).rev().filter(|(owed, _)| !is_before(owed.number, self.next));
        again.take(slots).for_each(|(owed, _)| append(*owed));
    }

    pub fn release(self, buffers: &mut Buffers) {
        self.segments.into_items().for_each(|arrived| buffers.give_back(arrived.buffer));
    }
}
