//! The receiving half: puts segments in order, owes acknowledgements, and says how much room there is.

use std::collections::VecDeque;

use super::buffers::{Buffer, Buffers, Use};
use super::ring::Ring;
use super::segment::{HEADER_BYTES, Header, is_before};

/// Times that the acknowledgement of a segment is said again, in later datagrams, while an earlier one is missing. KCP says it
/// once, and when that is lost the segment travels again for nothing.
const REPEATS: u8 = 2;

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
    /// Those said already, with how often they will be said again. At most a window, the oldest goes.
    said: VecDeque<(Owed, u8)>,
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

    /// Appends what is owed and fits: first one acknowledgement of all that is in order, then those above a gap, then, with the
    /// room that is left, those that were said before.
    pub fn write_acks(&mut self, mut header: Header, room: usize, out: &mut Vec<u8>) {
        let mut left = room / HEADER_BYTES;
        let mut append = |owed: Owed| {
            (header.number, header.timestamp) = (owed.number, owed.timestamp);
            out.extend_from_slice(&header.encode());
            left -= 1;
            left > 0
        };
        let mut fits = self.in_order.take().is_none_or(&mut append);
        let repeats = self.said.len();
        while fits && let Some(owed) = self.owed.pop_front() {
            if !is_before(owed.number, self.next) {
                fits = append(owed);
                self.said.push_back((owed, REPEATS));
            }
        }
        for _ in 0..repeats {
            if !fits {
                break;
            }
            let Some((owed, times)) = self.said.pop_front() else { break };
            if !is_before(owed.number, self.next) {
                fits = append(owed);
                if times > 1 {
                    self.said.push_back((owed, times - 1));
                }
            }
        }
        let excess = self.said.len().saturating_sub(usize::from(self.window));
        self.said.drain(..excess);
    }

    pub fn release(self, buffers: &mut Buffers) {
        self.segments.into_items().for_each(|arrived| buffers.give_back(arrived.buffer));
    }
}
