//! The sending half: cuts the stream into segments, keeps them until they are acknowledged, and decides when one is lost.

use super::buffers::{Buffers, Use};
use super::outgoing::{Outgoing, Place, Segments};
use super::rtt::Rtt;
use super::segment::{HEADER_BYTES, Header, is_before};
use super::{Acked, Counters, Overtaken, Settings, Stamp};

/// With no more than this many segments in flight, each has its own time-out: a game's messages, a few in every round trip. On
/// bulk that would cost 10 to 25 % of its bytes.
const THIN: usize = 16;

/// The room that a peer has of which nothing was heard yet, in segments: the least that `ikcp.c` allows.
const PEER_WINDOW_FIRST: u16 = 128;

/// How long to wait before a peer without room is asked whether it has some, at first and at most. It tells by itself when it
/// has, so this only makes up for a loss. (`ikcp.c` waits 7 s and 120 s.)
const ASK_FIRST_US: u64 = 250_000;
const ASK_MAX_US: u64 = 8_000_000;

#[derive(Debug)]
pub struct Sender {
    settings: Settings,
    clock_ms: u32,
    segments: Segments,
    /// The first segment that is not acknowledged, the first that was never sent, and the first that is not written.
    first: u32,
    unsent: u32,
    end: u32,
    /// Bytes from `first` to `end`, without the acknowledged ones.
    bytes: usize,
    rtt: Rtt,
    overtaken: Overtaken,
    /// Transmissions so far, without repeats, and the latest of which is known that it arrived: its time and its count.
    transmissions: u64,
    arrived: (u64, u64),
    /// Of many in flight: when the time-out began, and how many have passed since anything was acknowledged.
    rearmed: u64,
    missed: u32,
    /// What the peer waits for, as it said, and how many segments it had room for from there on.
    peer_next: u32,
    peer_window: u16,
    ask_at: u64,
    ask_after: u64,
    /// The peer is to be asked for its window.
    pub asks: bool,
    pub counters: Counters,
}

impl Sender {
    pub fn new(first: u32, clock_ms: u32, settings: Settings) -> Self {
        Self {
            overtaken: settings.overtaken,
            settings,
            clock_ms,
            segments: Segments::new(),
            first,
            unsent: first,
            end: first,
            bytes: 0,
            rtt: Rtt::new(),
            transmissions: 0,
            arrived: (0, 0),
            rearmed: 0,
            missed: 0,
            peer_next: first,
            peer_window: PEER_WINDOW_FIRST,
            ask_at: 0,
            ask_after: ASK_FIRST_US,
            asks: false,
            counters: Counters::default(),
        }
    }

    // What is written.

    pub fn write(&mut self, bytes: &[u8], buffers: &mut Buffers) -> usize {
        let wanted = bytes.len().min(self.room());
        let segment_bytes = self.settings.segment_bytes.min(buffers.buffer_bytes());
        let mut written = 0;
        while written < wanted {
            let last = self.end.wrapping_sub(1);
            if self.unsent == self.end || self.segments[last].length >= segment_bytes {
                if self.end.wrapping_sub(self.first) >= u32::from(self.settings.send_window) {
                    break;
                }
                let Some(buffer) = buffers.take(Use::Write) else { break };
                self.segments.put(self.first, self.end, buffer);
                self.end = self.end.wrapping_add(1);
                continue;
            }
            let segment = &mut self.segments[last];
            let piece = &bytes[written..wanted.min(written + segment_bytes - segment.length)];
            segment.buffer[segment.length..][..piece.len()].copy_from_slice(piece);
            segment.length += piece.len();
            written += piece.len();
        }
        self.bytes += written;
        written
    }

    pub fn room(&self) -> usize {
        let window = usize::from(self.settings.send_window) - self.end.wrapping_sub(self.first) as usize;
        let last = if self.unsent == self.end { 0 } else { self.unfilled() };
        (window * self.settings.segment_bytes + last).min(self.settings.send_bytes.saturating_sub(self.bytes))
    }

    fn unfilled(&self) -> usize {
        self.settings.segment_bytes.saturating_sub(self.segments[self.end.wrapping_sub(1)].length)
    }

    pub fn set_segment_bytes(&mut self, bytes: usize) {
        self.settings.segment_bytes = bytes;
    }

    pub fn set_send_bytes(&mut self, bytes: usize) {
        self.settings.send_bytes = bytes;
    }

    pub fn unacknowledged(&self) -> usize {
        self.bytes
    }

    // What the peer says.

    /// Whether `number` was ever sent. What came long before was.
    pub fn is_sent(&self, number: u32) -> bool {
        is_before(number, self.unsent)
    }

    /// What each header says: the peer waits for `next`, which we have sent all before of, and has room for `window` from there.
    pub fn hear(&mut self, now: u64, next: u32, window: u16) {
        if is_before(next, self.peer_next) {
            return; // Older than what we know.
        }
        if self.peer_window > 0 && window == 0 {
            self.ask_after = ASK_FIRST_US;
            self.ask_at = now + self.ask_after;
        }
        self.asks &= window == 0;
        (self.peer_next, self.peer_window) = (next, window);
    }

    /// Only one segment, of which the peer says at what time on our clock it was sent.
    pub fn acknowledge(
        &mut self,
        now: u64,
        number: u32,
        timestamp: Option<u32>,
        buffers: &mut Buffers,
        on_acked: &mut impl FnMut(Acked),
    ) {
        let Some(segment) = self.segments.take(number) else { return }; // It was acknowledged before.
        let sent = timestamp.and_then(|timestamp| segment.sent_at(timestamp, |time| self.wire_clock(time)));
        let rtt_us = sent.map(|sent| now.saturating_sub(sent).max(1));
        rtt_us.into_iter().for_each(|rtt| self.rtt.sample(rtt));
        if segment.retransmissions == 0 || sent == Some(segment.sent) {
            self.arrived = self.arrived.max((segment.sent, segment.count));
        } else if sent.is_some_and(|sent| sent < segment.sent) {
            self.counters.spurious += 1;
            self.be_patient();
        }
        (self.rearmed, self.missed) = (now, 0);
        self.bytes -= segment.length;
        let Outgoing { buffer, length, transmissions, stamp, .. } = segment;
        buffers.give_back(buffer);
        on_acked(Acked { length, rtt_us, transmissions, stamp });
        while self.first != self.unsent && !self.segments.has(self.first) {
            self.first = self.first.wrapping_add(1);
        }
    }

    /// When all that came together has been heard: now what the peer waits for speaks for all before it, and what else was sent
    /// before something that arrived is lost. Not earlier, as a header would take the word from the timestamps behind it.
    pub fn end_of_input(&mut self, now: u64, buffers: &mut Buffers, on_acked: &mut impl FnMut(Acked)) {
        while is_before(self.first, self.peer_next) {
            self.acknowledge(now, self.first, None, buffers, on_acked);
        }
        while let Some(number) = self.segments.flight.head
            && self.is_overtaken(&self.segments[number])
        {
            self.segments.move_to(Place::Lost, number);
        }
    }

    fn is_overtaken(&self, segment: &Outgoing) -> bool {
        let (time, count) = self.arrived;
        match self.overtaken {
            Overtaken::ByTime(later) => segment.sent + later <= time,
            Overtaken::ByCount(later) => segment.count + later <= count,
        }
    }

    /// A segment was not lost, only late: this path reorders.
    fn be_patient(&mut self) {
        if let (Overtaken::ByTime(later), Some(rtt)) = (self.overtaken, self.rtt.smoothed()) {
            self.overtaken = Overtaken::ByTime(later.max(rtt / 4));
        }
    }

    // What is sent.

    pub fn has_lost(&self) -> bool {
        self.segments.lost.length > 0
    }

    pub fn has_new(&self) -> bool {
        self.unsent != self.end && self.unsent.wrapping_sub(self.peer_next) < u32::from(self.peer_window)
    }

    pub fn write_lost(&mut self, now: u64, header: Header, room: usize, stamp: Stamp, out: &mut Vec<u8>) {
        let end = out.len() + room;
        while let Some(number) = self.segments.lost.head
            && self.fits(number, end, out)
        {
            self.segments[number].retransmissions += 1;
            self.send(number, now, header, stamp, out);
            self.counters.retransmitted += 1;
        }
    }

    pub fn write_new(&mut self, now: u64, header: Header, room: usize, stamp: Stamp, out: &mut Vec<u8>) {
        let end = out.len() + room;
        while self.has_new() && self.fits(self.unsent, end, out) {
            self.segments[self.unsent].first_sent = now;
            self.send(self.unsent, now, header, stamp, out);
            self.unsent = self.unsent.wrapping_add(1);
            self.counters.sent += 1;
        }
    }

    /// Leaves the time-outs as they are: what is sent again early must not be waited for longer.
    pub fn write_repeats(&mut self, now: u64, header: Header, room: usize, times: u32, out: &mut Vec<u8>) {
        let end = out.len() + room;
        let mut following = if self.is_thin() { self.segments.flight.head } else { None };
        while let Some(number) = following {
            let segment = &self.segments[number];
            following = segment.next;
            if segment.repeats < times && segment.last_time() < now && self.fits(number, end, out) {
                self.segments[number].repeats += 1;
                self.append(number, now, header, out);
                self.counters.repeated += 1;
            }
        }
    }

    fn fits(&self, number: u32, end: usize, out: &[u8]) -> bool {
        out.len() + HEADER_BYTES + self.segments[number].length <= end
    }

    /// As new or lost.
    fn send(&mut self, number: u32, now: u64, header: Header, stamp: Stamp, out: &mut Vec<u8>) {
        self.transmissions += 1;
        let segment = &mut self.segments[number];
        (segment.sent, segment.count, segment.repeats, segment.stamp) = (now, self.transmissions, 0, stamp);
        if self.segments.flight.length == 0 {
            self.rearmed = now;
        }
        self.append(number, now, header, out);
        self.segments.move_to(Place::Flight, number);
    }

    fn append(&mut self, number: u32, now: u64, mut header: Header, out: &mut Vec<u8>) {
        header.timestamp = self.wire_clock(now);
        let segment = &mut self.segments[number];
        segment.note(now);
        header.number = number;
        header.length = segment.length as u32;
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(&segment.buffer[..segment.length]);
    }

    fn wire_clock(&self, time: u64) -> u32 {
        self.clock_ms.wrapping_add((time / 1000) as u32)
    }

    // When time passes.

    pub fn next_timeout(&self) -> Option<u64> {
        let ask_at = self.is_shut_out().then_some(self.ask_at);
        [self.first_timeout().map(|(at, _)| at), ask_at].into_iter().flatten().min()
    }

    pub fn handle_timeout(&mut self, now: u64) {
        while let Some((at, number)) = self.first_timeout()
            && at <= now
        {
            if !self.is_thin() {
                self.rearmed = now;
                self.missed += 1;
            }
            self.segments[number].missed += 1;
            self.segments.move_to(Place::Lost, number);
        }
        if self.is_shut_out() && self.ask_at <= now {
            self.asks = true;
            self.ask_after = (2 * self.ask_after).min(ASK_MAX_US);
            self.ask_at = now + self.ask_after;
        }
    }

    /// Of the segments in flight, the one whose time is up first, and when. Of many it is the one that the peer waits for: it
    /// has room for that in any case, and its acknowledgement will tell what else is lost.
    fn first_timeout(&self) -> Option<(u64, u32)> {
        let head = self.segments.flight.head?;
        if !self.is_thin() {
            let number = if self.segments[self.first].place == Place::Flight { self.first } else { head };
            let begin = self.rearmed.max(self.segments[number].sent);
            return Some((begin + self.rtt.timeout(self.missed, &self.settings), number));
        }
        let numbers = std::iter::successors(Some(head), |number| self.segments[*number].next);
        let timeout = |number| {
            let segment = &self.segments[number];
            (segment.sent + self.rtt.timeout(segment.missed, &self.settings), number)
        };
        numbers.map(timeout).min_by_key(|(at, _)| *at)
    }

    fn is_thin(&self) -> bool {
        self.segments.flight.length <= THIN
    }

    /// Something waits for room that the peer has not.
    fn is_shut_out(&self) -> bool {
        self.unsent != self.end && self.peer_window == 0
    }

    pub fn oldest(&self) -> Option<u64> {
        (self.first != self.unsent).then(|| self.segments[self.first].first_sent)
    }

    pub fn in_flight(&self) -> usize {
        self.segments.flight.bytes
    }

    pub fn rtt_us(&self) -> Option<u64> {
        self.rtt.smoothed()
    }

    pub fn release(self, buffers: &mut Buffers) {
        self.segments.into_buffers().for_each(|buffer| buffers.give_back(buffer));
    }
}
