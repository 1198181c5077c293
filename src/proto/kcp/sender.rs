//! The sending half: cuts the stream into segments, keeps them until they are acknowledged, and decides when one is lost.

use super::buffers::Buffers;
use super::outgoing::{Outgoing, Place, Segments};
use super::rtt::Rtt;
use super::segment::{HEADER_BYTES, Header, is_before};
use super::written::Written;
use super::{Acked, Counters, Overtaken, Settings, Stamp};

/// With no more than this many segments in flight, each has its own time-out: a game's messages, a few in every round trip. On
/// bulk that would cost 10 to 25 % of its bytes.
const THIN: usize = 16;

/// After so many losses in a row that were no mistakes, the time a late segment is given is halved.
const LOSSES_PER_STEP: u32 = 8;

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
    written: Written,
    segments: Segments,
    /// The first segment that is not acknowledged, and the first that was never sent.
    first: u32,
    unsent: u32,
    rtt: Rtt,
    /// Beyond `settings.overtaken`, how much later one has to leave and arrive for a segment to be lost, in µs; and how many losses
    /// have since been no mistakes.
    patience: u64,
    losses: u32,
    /// Transmissions so far, without repeats, and the latest of which is known that it arrived: its time and its count.
    transmissions: u64,
    arrived: (u64, u64),
    /// When the path began that is in use, and how much later than on it segments may arrive that were sent before.
    path_began: u64,
    path_before_later: u64,
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

/// A packet that is being filled, and with what.
#[derive(Debug)]
pub struct Packet<'a> {
    pub now: u64,
    /// For each segment, but for what is the segment's own.
    pub header: Header,
    pub buffers: &'a Buffers,
    pub out: &'a mut Vec<u8>,
    /// How long `out` may become.
    pub end: usize,
}

impl Packet<'_> {
    fn room(&self) -> usize {
        self.end.saturating_sub(self.out.len())
    }

    fn fits(&self, length: usize) -> bool {
        self.room() >= HEADER_BYTES + length
    }
}

impl Sender {
    pub fn new(first: u32, clock_ms: u32, settings: Settings) -> Self {
        Self {
            settings,
            clock_ms,
            written: Written::new(),
            segments: Segments::new(),
            first,
            unsent: first,
            rtt: Rtt::new(),
            patience: 0,
            losses: 0,
            transmissions: 0,
            arrived: (0, 0),
            path_began: 0,
            path_before_later: 0,
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
        self.written.write(&bytes[..bytes.len().min(self.room())], buffers)
    }

    pub fn room(&self) -> usize {
        let window = self.window_left() * self.settings.segment_bytes;
        let by_window = window.saturating_sub(self.written.unsent());
        by_window.min(self.settings.send_bytes.saturating_sub(self.written.bytes()))
    }

    /// Segments that may be sent before one is acknowledged.
    fn window_left(&self) -> usize {
        usize::from(self.settings.send_window).saturating_sub(self.unsent.wrapping_sub(self.first) as usize)
    }

    pub fn set_segment_bytes(&mut self, bytes: usize) {
        self.settings.segment_bytes = bytes.max(1);
    }

    pub fn set_send_bytes(&mut self, bytes: usize) {
        self.settings.send_bytes = bytes;
    }

    pub fn unacknowledged(&self) -> usize {
        self.written.bytes()
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
        // What arrived after something sent later may be what a lost acknowledgement had said: that it waited is not the path's doing.
        if sent.is_some_and(|sent| sent >= self.arrived.0) {
            rtt_us.into_iter().for_each(|rtt| self.rtt.sample(rtt));
        }
        if segment.retransmissions == 0 || sent == Some(segment.sent) {
            self.arrived = self.arrived.max((segment.sent, segment.count));
        } else if sent.is_some_and(|sent| sent < segment.sent) {
            self.counters.spurious += 1;
            self.be_patient();
        }
        if segment.retransmissions > 0 && sent == Some(segment.sent) {
            self.be_less_patient();
        }
        (self.rearmed, self.missed) = (now, 0);
        let Outgoing { piece, transmissions, stamp, .. } = segment;
        self.written.forget(piece, buffers);
        on_acked(Acked { length: piece.length as usize, rtt_us, transmissions, stamp });
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
        if segment.sent < self.path_began && segment.sent + self.path_before_later > time {
            return false;
        }
        match self.settings.overtaken {
            Overtaken::ByTime(later) => segment.sent + later.max(self.patience) <= time,
            Overtaken::ByCount(later) => segment.count + later <= count,
        }
    }

    // Another path.

    pub fn begin_path(&mut self, now: u64, rto_first_us: u64) {
        // What is faster by more than half a round trip is a strange path.
        self.path_before_later = self.rtt.smoothed().unwrap_or(0) / 2;
        self.path_began = now;
        self.rtt = Rtt::new();
        self.settings.rto_first_us = rto_first_us;
        (self.rearmed, self.missed, self.patience) = (now, 0, 0);
        self.segments.forget_missed();
    }

    pub fn resend_before(&mut self, time: u64) {
        while let Some(number) = self.segments.flight.head
            && self.segments[number].sent < time
        {
            self.segments.move_to(Place::Lost, number);
        }
    }

    /// A segment was not lost, only late: this path reorders.
    fn be_patient(&mut self) {
        self.patience = self.patience.max(self.rtt.smoothed().unwrap_or(0) / 4);
        self.losses = 0;
    }

    /// A segment was lost, and to be patient was in vain. A path that only reorders never comes here.
    fn be_less_patient(&mut self) {
        self.losses += 1;
        if self.losses >= LOSSES_PER_STEP {
            self.losses = 0;
            self.patience /= 2;
        }
    }

    // What is sent.

    pub fn has_lost(&self) -> bool {
        self.segments.lost.length > 0
    }

    pub fn first_lost_bytes(&self) -> Option<usize> {
        self.segments.lost.head.map(|number| HEADER_BYTES + self.segments[number].piece.length as usize)
    }

    pub fn has_new(&self) -> bool {
        let is_in_peer_window = self.unsent.wrapping_sub(self.peer_next) < u32::from(self.peer_window);
        self.written.unsent() > 0 && is_in_peer_window && self.window_left() > 0
    }

    pub fn write_lost(&mut self, mut to: Packet<'_>, stamp: Stamp) {
        while let Some(number) = self.segments.lost.head
            && to.fits(self.segments[number].piece.length as usize)
        {
            self.segments[number].retransmissions += 1;
            self.send(number, &mut to, stamp);
            self.counters.retransmitted += 1;
        }
    }

    pub fn write_new(&mut self, mut to: Packet<'_>, stamp: Stamp) {
        while self.has_new()
            && let Some(length) = self.next_length(&to)
        {
            let number = self.unsent;
            let piece = self.written.cut(length, to.buffers);
            self.segments.put(self.first, number, Outgoing::new(piece, to.now));
            self.unsent = number.wrapping_add(1);
            self.send(number, &mut to, stamp);
            self.counters.sent += 1;
        }
    }

    /// What a new segment is to carry: all that is left, or as much as the path allows. Into a packet that is begun it goes with
    /// down to half of that, as the peer's window is counted in segments.
    fn next_length(&self, to: &Packet<'_>) -> Option<usize> {
        let full = self.settings.segment_bytes.min(to.buffers.buffer_bytes());
        let wanted = full.min(self.written.unsent());
        let room = to.room().checked_sub(HEADER_BYTES)?;
        (room >= wanted.min(full.div_ceil(2))).then_some(room.min(wanted))
    }

    /// Leaves the time-outs as they are: what is sent again early must not be waited for longer.
    pub fn write_repeats(&mut self, mut to: Packet<'_>, times: u32) {
        let mut following = if self.is_thin() { self.segments.flight.head } else { None };
        while let Some(number) = following {
            let segment = &self.segments[number];
            following = segment.next;
            let is_due = u32::from(segment.repeats) < times && segment.last_time() < to.now;
            if is_due && to.fits(segment.piece.length as usize) {
                let segment = &mut self.segments[number];
                segment.repeats = segment.repeats.saturating_add(1);
                self.append(number, &mut to);
                self.counters.repeated += 1;
            }
        }
    }

    /// As new or lost.
    fn send(&mut self, number: u32, to: &mut Packet<'_>, stamp: Stamp) {
        self.transmissions += 1;
        let segment = &mut self.segments[number];
        (segment.sent, segment.count, segment.repeats, segment.stamp) = (to.now, self.transmissions, 0, stamp);
        if self.segments.flight.length == 0 {
            self.rearmed = to.now;
        }
        self.append(number, to);
        self.segments.move_to(Place::Flight, number);
    }

    fn append(&mut self, number: u32, to: &mut Packet<'_>) {
        let timestamp = self.wire_clock(to.now);
        let segment = &mut self.segments[number];
        segment.note(to.now);
        let header = Header { timestamp, number, length: segment.piece.length, ..to.header };
        to.out.extend_from_slice(&header.encode());
        self.written.append(segment.piece, to.buffers, to.out);
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
            let segment = &mut self.segments[number];
            segment.missed = segment.missed.saturating_add(1);
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
            (segment.sent + self.rtt.timeout(segment.missed.into(), &self.settings), number)
        };
        numbers.map(timeout).min_by_key(|(at, _)| *at)
    }

    fn is_thin(&self) -> bool {
        self.segments.flight.length <= THIN
    }

    /// Something waits for room that the peer has not.
    fn is_shut_out(&self) -> bool {
        self.written.unsent() > 0 && self.peer_window == 0
    }

    pub fn oldest(&self) -> Option<u64> {
        (self.first != self.unsent).then(|| self.segments[self.first].first_sent)
    }

    pub fn in_flight(&self) -> usize {
        self.segments.flight.bytes
    }

    pub fn unsent(&self) -> usize {
        self.written.unsent()
    }

    pub fn rtt_us(&self) -> Option<u64> {
        self.rtt.smoothed()
    }

    pub fn release(self, buffers: &mut Buffers) {
        self.written.release(buffers);
    }
}
