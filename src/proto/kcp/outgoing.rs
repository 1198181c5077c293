//! The segments that are sent and not acknowledged: each in its slot, and in the queue of those in flight or of those lost, which
//! runs through them by their numbers, so that any can leave it at once.

use std::ops::{Index, IndexMut};

use super::Stamp;
use super::ring::Ring;
use super::written::Piece;

/// Transmissions of a segment whose times are kept.
const TIMES: usize = 4;

#[derive(Debug)]
pub struct Segments {
    ring: Ring<Outgoing>,
    /// By the time at which they were last sent as new or lost.
    pub flight: Queue,
    /// By the time at which that was found.
    pub lost: Queue,
}

#[derive(Debug, Default)]
pub struct Queue {
    pub head: Option<u32>,
    tail: Option<u32>,
    pub length: usize,
    /// Of payload.
    pub bytes: usize,
}

#[derive(Debug)]
pub struct Outgoing {
    /// Its payload.
    pub piece: Piece,
    pub place: Place,
    /// Its neighbours in the list of its place.
    previous: Option<u32>,
    pub next: Option<u32>,
    /// When it was first sent, and when last as new or lost, with the count of that transmission.
    pub first_sent: u64,
    pub sent: u64,
    pub count: u64,
    /// When it was sent the last times, repeats included, in µs after it was first sent; transmission `n` at `n % TIMES`. What
    /// does not fit, after an hour, is the same as the hour, and tells nothing any more.
    times: [u32; TIMES],
    pub transmissions: u32,
    /// How often it was sent again for being lost; by its own time-out; and to be on the safe side since then.
    pub retransmissions: u32,
    pub missed: u16,
    pub repeats: u16,
    pub stamp: Stamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In no queue: it is about to be sent for the first time.
    New,
    Flight,
    Lost,
}

impl Segments {
    pub fn new() -> Self {
        Self { ring: Ring::new(), flight: Queue::default(), lost: Queue::default() }
    }

    /// Puts a segment at `number`, in a window that begins with `first`.
    pub fn put(&mut self, first: u32, number: u32, segment: Outgoing) {
        self.ring.put(first, number, segment);
    }

    pub fn has(&self, number: u32) -> bool {
        self.ring.get(number).is_some()
    }

    pub fn take(&mut self, number: u32) -> Option<Outgoing> {
        if self.has(number) {
            self.leave_queue(number);
        }
        self.ring.take(number)
    }

    /// Makes it the last of its new queue.
    pub fn move_to(&mut self, place: Place, number: u32) {
        self.leave_queue(number);
        let length = self[number].piece.length as usize;
        let Some(queue) = self.queue(place) else { return };
        let previous = queue.tail.replace(number);
        queue.head = queue.head.or(Some(number));
        queue.length += 1;
        queue.bytes += length;
        if let Some(previous) = previous {
            self[previous].next = Some(number);
        }
        let segment = &mut self[number];
        (segment.place, segment.previous, segment.next) = (place, previous, None);
    }

    /// None of them has waited in vain, as far as their time-outs go.
    pub fn forget_missed(&mut self) {
        for head in [self.flight.head, self.lost.head] {
            let mut following = head;
            while let Some(number) = following {
                self[number].missed = 0;
                following = self[number].next;
            }
        }
    }

    fn leave_queue(&mut self, number: u32) {
        let Outgoing { place, previous, next, piece, .. } = self[number];
        let Some(queue) = self.queue(place) else { return };
        if previous.is_none() {
            queue.head = next;
        }
        if next.is_none() {
            queue.tail = previous;
        }
        queue.length -= 1;
        queue.bytes -= piece.length as usize;
        if let Some(previous) = previous {
            self[previous].next = next;
        }
        if let Some(next) = next {
            self[next].previous = previous;
        }
    }

    fn queue(&mut self, place: Place) -> Option<&mut Queue> {
        match place {
            Place::New => None,
            Place::Flight => Some(&mut self.flight),
            Place::Lost => Some(&mut self.lost),
        }
    }
}

/// For numbers that are known to be there.
impl Index<u32> for Segments {
    type Output = Outgoing;

    fn index(&self, number: u32) -> &Outgoing {
        &self.ring[number]
    }
}

impl IndexMut<u32> for Segments {
    fn index_mut(&mut self, number: u32) -> &mut Outgoing {
        &mut self.ring[number]
    }
}

impl Outgoing {
    pub fn new(piece: Piece, first_sent: u64) -> Self {
        Self {
            piece,
            place: Place::New,
            previous: None,
            next: None,
            first_sent,
            sent: 0,
            count: 0,
            times: [0; TIMES],
            transmissions: 0,
            retransmissions: 0,
            missed: 0,
            repeats: 0,
            stamp: Stamp::default(),
        }
    }

    /// It is sent at that time.
    pub fn note(&mut self, now: u64) {
        let after = now.saturating_sub(self.first_sent);
        self.times[self.transmissions as usize % TIMES] = u32::try_from(after).unwrap_or(u32::MAX);
        self.transmissions = self.transmissions.wrapping_add(1);
    }

    pub fn last_time(&self) -> u64 {
        self.time(self.times[self.transmissions.wrapping_sub(1) as usize % TIMES])
    }

    /// When it was sent with that timestamp. `None` when it was not, or more than once.
    pub fn sent_at(&self, timestamp: u32, wire_clock: impl Fn(u64) -> u32) -> Option<u64> {
        let kept = &self.times[..TIMES.min(self.transmissions as usize)];
        let mut matching = kept.iter().map(|after| self.time(*after)).filter(|time| wire_clock(*time) == timestamp);
        let sent = matching.next()?;
        matching.next().is_none().then_some(sent)
    }

    fn time(&self, after: u32) -> u64 {
        self.first_sent + u64::from(after)
    }
}
