//! The receiving half: puts segments in order, owes acknowledgements, and says how much room there is.

use std::collections::VecDeque;

use super::Settings;
use super::buffers::{Buffer, Buffers, Use};
use super::ring::Ring;
use super::segment::{HEADER_BYTES, Header, is_before};

/// In how many of the next datagrams with acknowledgements one of a segment above a gap is said again. KCP says it once, and when
/// that is lost the segment travels again for nothing.
const REPEATS: u32 = 2;

/// Unread segments that a conversation may have however few buffers are left: enough for a game.
const WINDOW_MIN: usize = 16;

#[derive(Debug)]
pub struct Receiver {
    segments: Ring<Arrived>,
    /// Segments we have room for, unread ones included.
    window: u16,
    /// The first segment that the peer was never told to be welcome. It may be beyond the window, which can be made smaller.
    promised: u32,
    /// Buffers that were left for all conversations when we last looked.
    spare: usize,
    /// The first segment of which bytes are still to be read, and how many of it have been.
    read: u32,
    offset: usize,
    /// The first segment that has not arrived.
    next: u32,
    /// Segments that have arrived behind it.
    above_gap: usize,
    /// Bytes in order, not yet read.
    readable: usize,
    /// The last segment that arrived and has none missing before it: its acknowledgement speaks for all of them.
    in_order: Option<Owed>,
    /// Segments above a gap, in the order of arrival. At most a window; what is not said is asked for again.
    owed: VecDeque<Owed>,
    /// Those said in the last datagrams, each with the number of its datagram, and that number.
    said: VecDeque<(Owed, u32)>,
    datagrams: u32,
    pub acks_due: Due,
    /// How long they may wait for company, in µs: those of what arrived in its turn, and those of what had arrived before.
    pub ack_delay: u64,
    pub duplicate_ack_delay: u64,
    pub duplicates: u64,
    /// Outside the window, longer than a buffer, or when there was no buffer.
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

/// When the acknowledgements that are owed have to leave.
#[derive(Clone, Copy, Debug)]
pub enum Due {
    /// None are owed.
    Never,
    At(u64),
    /// And since when.
    Now(u64),
}

enum Arrival {
    InTurn,
    /// Above a gap, or closing one.
    OutOfTurn,
    /// It had arrived before.
    Again,
    /// It must come again: it lies outside the window, is too long, or there is no buffer for it.
    Refused,
}

impl Receiver {
    pub fn new(first: u32, settings: &Settings) -> Self {
        Self {
            segments: Ring::new(),
            window: settings.receive_window,
            promised: first,
            spare: usize::MAX,
            read: first,
            offset: 0,
            next: first,
            above_gap: 0,
            readable: 0,
            in_order: None,
            owed: VecDeque::new(),
            said: VecDeque::new(),
            datagrams: 0,
            acks_due: Due::Never,
            ack_delay: settings.ack_delay_us,
            duplicate_ack_delay: settings.duplicate_ack_delay_us,
            duplicates: 0,
            refused: 0,
            asked: false,
            shut: false,
        }
    }

    pub fn push(&mut self, now: u64, number: u32, timestamp: u32, payload: &[u8], buffers: &mut Buffers) {
        let delay = match self.arrive(number, payload, buffers) {
            Arrival::Refused => return,
            Arrival::Again => self.duplicate_ack_delay,
            Arrival::InTurn => self.ack_delay,
            Arrival::OutOfTurn => 0, // The peer may be about to send what it takes for lost.
        };
        self.acks_due = self.acks_due.or_after(now, delay);
        let owed = Owed { number, timestamp };
        if is_before(number, self.next) {
            let newer = self.in_order.filter(|known| !is_before(known.number, number));
            self.in_order = newer.or(Some(owed));
        } else if self.owed.len() < usize::from(self.window) {
            self.owed.push_back(owed);
        }
    }

    fn arrive(&mut self, number: u32, payload: &[u8], buffers: &mut Buffers) -> Arrival {
        if is_before(number, self.next) || self.segments.get(number).is_some() {
            self.duplicates += 1;
            return Arrival::Again;
        }
        let purpose = if number == self.next { Use::InOrder } else { Use::AboveGap };
        let is_welcome = self.is_welcome(number) && payload.len() <= buffers.buffer_bytes();
        let Some(buffer) = is_welcome.then(|| buffers.take(purpose)).flatten() else {
            self.refused += 1;
            return Arrival::Refused;
        };
        buffers.bytes_mut(&buffer)[..payload.len()].copy_from_slice(payload);
        self.segments.put(self.read, number, Arrived { buffer, length: payload.len() });
        let is_in_turn = number == self.next && self.above_gap == 0;
        self.above_gap += 1;
        while let Some(arrived) = self.segments.get(self.next) {
            self.readable += arrived.length;
            self.next = self.next.wrapping_add(1);
            self.above_gap -= 1;
        }
        self.consume(0, buffers); // An empty segment that is first would never be read.
        if is_in_turn { Arrival::InTurn } else { Arrival::OutOfTurn }
    }

    fn is_welcome(&self, number: u32) -> bool {
        let promised = self.promised.wrapping_sub(self.read).cast_signed().max(0).cast_unsigned();
        number.wrapping_sub(self.read) < promised.max(self.window.into())
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
        self.spare = buffers.spare();
    }

    /// What each header says of this half: the first segment that is missing, and the room from there on.
    pub fn news(&self) -> (u32, u16) {
        (self.next, self.room())
    }

    /// The peer will hear of that much room.
    pub fn tell(&mut self, room: u16) {
        self.shut = room == 0;
        let promised = self.next.wrapping_add(room.into());
        if is_before(self.promised, promised) {
            self.promised = promised;
        }
    }

    pub fn set_window(&mut self, segments: u16) {
        self.window = segments.max(1);
    }

    /// Segments that are welcome from the first missing one on. All conversations may count on the same buffers: what comes when
    /// they are gone has to come again.
    fn room(&self) -> u16 {
        let unread = self.next.wrapping_sub(self.read) as usize;
        let by_window = usize::from(self.window).saturating_sub(unread);
        let by_buffers = self.spare.saturating_add(self.above_gap).max(WINDOW_MIN.saturating_sub(unread));
        by_window.min(by_buffers) as u16 // No more than the window.
    }

    /// Whether the peer waits to be told of the room: it asked, or believes that there is none while a quarter is free again.
    pub fn owes_window(&self) -> bool {
        self.asked || self.shut && (self.room() > self.window / 4 || self.readable == 0 && self.room() > 0)
    }

    pub fn has_acks(&self) -> bool {
        matches!(self.acks_due, Due::Now(_))
    }

    pub fn next_timeout(&self) -> Option<u64> {
        let Due::At(at) = self.acks_due else { return None };
        Some(at)
    }

    pub fn handle_timeout(&mut self, now: u64) {
        self.acks_due = self.acks_due.at().map_or(Due::Never, |at| if at <= now { Due::Now(at) } else { Due::At(at) });
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
        if self.owed.is_empty() {
            self.acks_due = Due::Never;
        }
    }

    pub fn release(self, buffers: &mut Buffers) {
        self.segments.into_items().for_each(|arrived| buffers.give_back(arrived.buffer));
    }
}

impl Due {
    pub fn at(self) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::At(at) | Self::Now(at) => Some(at),
        }
    }

    /// One more is owed.
    fn or_after(self, now: u64, delay: u64) -> Self {
        let at = self.at().unwrap_or(u64::MAX).min(now.saturating_add(delay));
        if at <= now { Self::Now(at) } else { Self::At(at) }
    }
}
