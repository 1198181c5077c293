//! Which packets leave, and what is in them.
//!
//! 1. What goes elsewhere than along the path, and probes of its MTU.
//! 2. Small packets, which nothing delays: signals, datagrams of players, acknowledgements, control, thin streams. Whatever room
//!    is left repeats what thin streams have in flight.
//! 3. Bulk, stream by stream in turn, as much as the pacer allows. Its segments are cut as long as a packet carries, so its
//!    packets are of one size and leave in batches.
//!
//! A segment that is longer than a packet, because it was cut when the path carried more, travels in pieces.

use super::frames::{Frame, SEGMENTS_HEAD, begin_segments, is_probing, is_traffic};
use super::moves::Leaving;
use super::mtu::MTU_MIN;
use super::peer::{Phase, Tunnel};
use super::streams::{Place, Turn};
use super::wire::{Header, OVERHEAD_BYTES, TAG_BYTES};
use super::{LostReason, Transmit};
use crate::proto::kcp::Stamp;
use crate::proto::kcp::segment::HEADER_BYTES;

/// Bytes of a packet around the payload of its only segment.
pub const SEGMENT_OVERHEAD: usize = OVERHEAD_BYTES + SEGMENTS_HEAD + HEADER_BYTES;

/// What one call of `sendmsg` takes with `UDP_SEGMENT`: the kernel's limits are 64 packets and 65,507 bytes.
const BATCH_PACKETS: usize = 45;
const BATCH_BYTES: usize = 64_000;

/// Streams that repeat in one packet, and bulky ones that fill one: so many fit, more or less, and no more are looked at.
const REPEATING_MAX: usize = 8;
const FILLING_MAX: usize = 8;

/// Signals in one packet: report, two challenges, response, size of a probe.
const SIGNALS_BYTES_MAX: usize = 64;
const _: () = assert!(SIGNALS_BYTES_MAX + SEGMENT_OVERHEAD < MTU_MIN);

/// Time for which a peer that does not know yet is told that the tunnel is closed, in µs.
const CLOSING_US: u64 = 3_000_000;

/// Of the segments in a packet, bytes that are acknowledgements and the like, and bytes sent again to be on the safe side.
#[derive(Clone, Copy, Debug, Default)]
struct Segments {
    news: usize,
    repeats: usize,
}

/// What the pacer has allowed and bulk has not yet used.
#[derive(Debug, Default)]
pub struct Grant {
    bytes: usize,
    next_at: Option<u64>,
}

/// Payload of a full segment.
pub fn segment_bytes(mtu: usize) -> usize {
    mtu - SEGMENT_OVERHEAD
}

impl Tunnel {
    /// Appends datagrams of one size (the last may be shorter) for one address.
    pub(super) fn poll_transmit(&mut self, now: u64, out: &mut Vec<u8>) -> Option<Transmit> {
        self.now = now;
        self.sessions.handle_timeout(now);
        match self.phase {
            Phase::Gone => None,
            Phase::Closing { .. } => self.transmit_close(now, out),
            Phase::Open => None
                .or_else(|| self.transmit_aside(now, out))
                .or_else(|| self.transmit_mtu_probe(now, out))
                .or_else(|| self.transmit_small(now, out))
                .or_else(|| self.transmit_bulk(now, out))
                .or_else(|| self.transmit_small(now, out)), // Bulk that turned out to be thin.
        }
    }

    /// When it is to be asked again, or [`Self::handle_timeout`], if nothing happens before.
    pub(super) fn next_timeout(&self) -> u64 {
        let bulk = if self.streams.waiting(Turn::Bulk) > 0 { self.grant.next_at } else { None };
        match self.phase {
            Phase::Gone => u64::MAX,
            Phase::Closing { until, .. } => until.unwrap_or(u64::MAX),
            Phase::Open => [
                self.streams.next_timeout(),
                self.control.conversation.next_timeout(),
                self.arrivals.due(),
                self.path.next_timeout(),
                self.repeat_at,
                self.renewal_at(),
                bulk,
                Some(self.liveness.next_timeout()),
                Some(self.mtu.next_timeout()),
                Some(self.sessions.next_timeout()),
            ]
            .into_iter()
            .flatten()
            .fold(u64::MAX, u64::min),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: u64) {
        self.now = now;
        match self.phase {
            Phase::Gone => {}
            Phase::Closing { until, .. } => {
                if until.is_some_and(|until| until <= now) {
                    self.phase = Phase::Gone;
                }
            }
            Phase::Open => {
                self.streams.handle_timeout(now);
                self.control.conversation.handle_timeout(now);
                self.tell_writers();
                if self.liveness.is_dead(now) {
                    self.lose(LostReason::Silent);
                }
            }
        }
    }

    // One packet.

    /// Appends a packet of at most `bytes` with what `write` appends, which is told where its room ends. 0 bytes: nothing.
    pub(super) fn packet(
        &mut self,
        bytes: usize,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut Self, usize, &mut Vec<u8>),
    ) -> usize {
        let start = self.sessions.current().begin_packet(out);
        write(self, start + bytes - TAG_BYTES, out);
        if out.len() == start + Header::LEN {
            out.truncate(start);
            return 0;
        }
        let frames = &out[start + Header::LEN..];
        let is_probing = is_probing(frames);
        if is_traffic(frames) {
            self.traffic_sent_at = Some(self.now);
        }
        let Ok(number) = self.sessions.current().finish_packet(out, start) else {
            self.lose(LostReason::Silent); // 2^48 packets: it cannot go on, and the peer cannot be told.
            return 0;
        };
        if is_probing {
            self.losses.leave_out(number);
        }
        let sent = out.len() - start;
        self.sent.count(sent);
        sent
    }

    fn transmit_one(
        &mut self,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut Self, usize, &mut Vec<u8>),
    ) -> Option<Transmit> {
        let segment_bytes = self.packet(self.mtu.size(), out, write);
        (segment_bytes > 0).then(|| Transmit { to: self.path.remote(), segment_bytes, is_mtu_probe: false })
    }

    fn transmit_close(&mut self, now: u64, out: &mut Vec<u8>) -> Option<Transmit> {
        let Phase::Closing { reason, is_to_be_told: true, until } = self.phase else { return None };
        let until = until.or(Some(now + CLOSING_US));
        self.phase = Phase::Closing { reason, is_to_be_told: false, until };
        self.transmit_one(out, |_, _, out| Frame::Close(reason.to_byte()).emit(out))
    }

    fn transmit_aside(&mut self, now: u64, out: &mut Vec<u8>) -> Option<Transmit> {
        const CHALLENGE_BYTES: usize = OVERHEAD_BYTES + 9;
        let (to, frame) = self.path.take_aside(now, CHALLENGE_BYTES)?;
        let transmit = self.transmit_one(out, |_, _, out| frame.emit(out))?;
        Some(Transmit { to, ..transmit })
    }

    fn transmit_mtu_probe(&mut self, now: u64, out: &mut Vec<u8>) -> Option<Transmit> {
        let before = self.mtu.size();
        let probe = self.mtu.probe(now, self.liveness.heard_at());
        if self.mtu.size() != before {
            self.adapt_segments();
        }
        let size = probe?;
        if self.mtu.is_in_doubt() {
            self.liveness.ask_soon(now);
        }
        let segment_bytes = self.packet(size, out, |_, end, out| {
            Frame::MtuProbe(size as u16).emit(out);
            out.resize(end, 0);
        });
        Some(Transmit { to: self.path.remote(), segment_bytes, is_mtu_probe: true })
    }

    // Small packets.

    fn transmit_small(&mut self, now: u64, out: &mut Vec<u8>) -> Option<Transmit> {
        let transmit = self.transmit_one(out, |this, end, out| this.write_small(now, end, out));
        if let Some(transmit) = transmit {
            self.write_like_datagrams(transmit.segment_bytes, out);
        }
        if transmit.is_some() || self.streams.waiting(Turn::Thin) == 0 {
            return transmit;
        }
        self.cut_long_segment(now, Turn::Thin);
        self.transmit_one(out, |this, end, out| this.write_small(now, end, out))
    }

    /// Appends packets like the first: of datagrams that fill one each, as packets of bulk do that travel through a rendezvous. The
    /// last may be shorter.
    fn write_like_datagrams(&mut self, packet_bytes: usize, out: &mut Vec<u8>) {
        let (room, most) = (self.frames_room(), (BATCH_BYTES / packet_bytes).min(BATCH_PACKETS));
        for _ in 1..most {
            let waiting = self.outgoing.frame_bytes().filter(|bytes| self.splitter.is_empty() && 2 * bytes > room);
            let Some(bytes) = waiting.filter(|bytes| bytes + OVERHEAD_BYTES <= packet_bytes) else { return };
            self.packet(packet_bytes, out, |this, _, out| this.outgoing.pop_frame(out));
            self.pacer.charge_small(bytes);
            if bytes + OVERHEAD_BYTES < packet_bytes {
                return;
            }
        }
    }

    fn write_small(&mut self, now: u64, end: usize, out: &mut Vec<u8>) {
        let begin = out.len();
        self.write_signals(now, out);
        let signals = out.len() - begin;
        self.write_datagrams(end, out);
        let datagrams = out.len() - begin - signals;
        if out.len() > begin || self.has_small_segments(now) {
            let Segments { news, repeats } = self.write_segments(now, end, out);
            let charged = out.len() - begin - signals - news;
            if charged > 0 {
                self.pacer.charge_small(charged);
                self.pacer.count_unacknowledged(datagrams + repeats);
            }
        }
    }

    /// Whether there are any for which a packet is to be made. Acknowledgements that are due are not, while bulk can carry them.
    fn has_small_segments(&mut self, now: u64) -> bool {
        let is_repeating = self.repeat_at.is_some_and(|at| at <= now);
        if self.control.has_segments() || self.streams.waiting(Turn::Thin) > 0 || is_repeating {
            return true;
        }
        let is_urgent = self.control.has_urgent_news() || self.streams.has_urgent_news();
        is_urgent && !self.has_grant(now)
    }

    /// What the two tunnels tell each other about the path.
    fn write_signals(&mut self, now: u64, out: &mut Vec<u8>) {
        if let Some(token) = self.path.take_response() {
            Frame::Response(token).emit(out);
        }
        let rtt_us = self.rtt_us;
        if let Some((token, leaving)) = self.path.take_announcement(now, rtt_us, || self.random.draw()) {
            Frame::Challenge(token).emit(out);
            if leaving == Leaving::Dead {
                Frame::Abandoned.emit(out);
            }
        }
        if self.liveness.is_ask_due(now) {
            let token = self.random.draw();
            self.liveness.ask(now, token);
            Frame::Challenge(token).emit(out);
        }
        if self.arrivals.due().is_some_and(|due| due <= now) {
            Frame::Report(self.arrivals.take()).emit(out);
        }
        if let Some(size) = self.mtu_arrived.take() {
            Frame::MtuArrived(size).emit(out);
        }
    }

    fn write_datagrams(&mut self, end: usize, out: &mut Vec<u8>) {
        while self.splitter.write(end - out.len(), out) {}
        let packet_room = self.frames_room();
        while self.splitter.is_empty()
            && let Some(bytes) = self.outgoing.frame_bytes()
        {
            if bytes <= end - out.len() {
                self.outgoing.pop_frame(out);
            } else if bytes <= packet_room {
                return; // The next packet's.
            } else {
                let Self { splitter, outgoing, .. } = self;
                splitter.begin(packet_room, |frame| outgoing.pop_frame(frame));
                while self.splitter.write(end - out.len(), out) {}
            }
        }
    }

    /// For frames, in a packet of their own.
    fn frames_room(&self) -> usize {
        self.mtu.size() - OVERHEAD_BYTES
    }

    fn write_segments(&mut self, now: u64, end: usize, out: &mut Vec<u8>) -> Segments {
        if end - out.len() < SEGMENTS_HEAD + HEADER_BYTES {
            return Segments::default();
        }
        let head = out.len();
        begin_segments(out);
        let first = out.len();
        self.write_news(end, out);
        let news = out.len() - first;
        self.write_control(now, end, out);
        self.write_thin(now, end, out);
        let is_new = out.len() > first + news;
        let repeats = self.write_repeats(now, end, out);
        if is_new || repeats > 0 {
            self.repeat_at = self.redundancy.alone_after_us().map(|us| now + us);
        } else {
            self.repeat_at.take_if(|at| *at <= now);
        }
        if out.len() == first {
            out.truncate(head);
        }
        Segments { news, repeats }
    }

    fn write_news(&mut self, end: usize, out: &mut Vec<u8>) {
        let control = &mut self.control.conversation;
        control.write_acks(end - out.len(), out);
        control.write_probe(end - out.len(), out);
        while end - out.len() >= HEADER_BYTES
            && let Some(place) = self.streams.next(Turn::News)
        {
            self.streams.with(place, |stream| {
                stream.conversation.write_acks(end - out.len(), out);
                stream.conversation.write_probe(end - out.len(), out);
            });
        }
    }

    fn write_control(&mut self, now: u64, end: usize, out: &mut Vec<u8>) {
        if self.control.has_segments() {
            let stamp = self.stamp(now, Turn::Thin);
            self.control.write_segments(now, end - out.len(), stamp, out);
        }
    }

    fn write_thin(&mut self, now: u64, end: usize, out: &mut Vec<u8>) {
        for _ in 0..self.streams.waiting(Turn::Thin) {
            let Some(place) = self.streams.next(Turn::Thin) else { break };
            self.write_segments_of(now, place, Turn::Thin, end, out);
            if end - out.len() <= HEADER_BYTES {
                break;
            }
        }
    }

    fn stamp(&mut self, now: u64, turn: Turn) -> Stamp {
        let in_flight = self.in_flight();
        match turn {
            Turn::Bulk => self.pacer.stamp(now, in_flight),
            Turn::News | Turn::Thin | Turn::Repeats | Turn::Room => self.pacer.stamp_small(now, in_flight),
        }
    }

    /// Unless the stream turns out to be of the other kind, and then waits for its turn as such.
    fn write_segments_of(&mut self, now: u64, place: Place, turn: Turn, end: usize, out: &mut Vec<u8>) {
        let stamp = self.stamp(now, turn);
        let Self { streams, buffers, .. } = self;
        streams.with(place, |stream| {
            if stream.look_at_class(now) == (turn == Turn::Bulk) {
                stream.conversation.write_lost(now, end - out.len(), stamp, buffers, out);
                stream.conversation.write_new(now, end - out.len(), stamp, buffers, out);
            }
        });
    }

    /// The stream whose turn it is has lost a segment that no packet carries now.
    fn cut_long_segment(&mut self, now: u64, turn: Turn) {
        let Some(place) = self.streams.next(turn) else { return };
        let (room, longest) = (self.frames_room(), self.settings.mtu_max);
        let stamp = self.stamp(now, turn);
        let Self { splitter, streams, buffers, .. } = self;
        splitter.begin(room, |frame| {
            begin_segments(frame);
            streams.with(place, |stream| stream.conversation.write_lost(now, longest, stamp, buffers, frame));
        });
    }

    /// How many bytes they are.
    fn write_repeats(&mut self, now: u64, end: usize, out: &mut Vec<u8>) -> usize {
        let times = self.redundancy.times();
        if times == 0 {
            return 0;
        }
        let end = end.min(out.len() + self.redundancy.allowance(now));
        let before = out.len();
        self.control.write_repeats(now, end - out.len(), times, out);
        let Self { streams, buffers, .. } = self;
        for _ in 0..streams.waiting(Turn::Repeats).min(REPEATING_MAX) {
            let Some(place) = streams.next(Turn::Repeats) else { break };
            streams.with(place, |stream| stream.conversation.write_repeats(now, end - out.len(), times, buffers, out));
        }
        self.redundancy.charge(out.len() - before);
        out.len() - before
    }

    // Bulk.

    fn transmit_bulk(&mut self, now: u64, out: &mut Vec<u8>) -> Option<Transmit> {
        let segment_bytes = self.write_batch(now, out);
        if segment_bytes == 0 && self.has_grant(now) {
            self.cut_long_segment(now, Turn::Bulk);
            self.charge_bulk(self.settings.mtu_max);
            return self.transmit_small(now, out);
        }
        (segment_bytes > 0).then(|| Transmit { to: self.path.remote(), segment_bytes, is_mtu_probe: false })
    }

    /// As many packets as are allowed, of one size, which it tells.
    fn write_batch(&mut self, now: u64, out: &mut Vec<u8>) -> usize {
        let begin = out.len();
        let mut segment_bytes = 0;
        for _ in 0..BATCH_PACKETS {
            let room = if segment_bytes == 0 { self.mtu.size() } else { segment_bytes };
            if out.len() - begin + room > BATCH_BYTES || !self.has_grant(now) {
                break;
            }
            let bytes = self.packet(room, out, |this, end, out| this.write_bulk(now, end, out));
            segment_bytes = segment_bytes.max(bytes);
            if bytes < room {
                break; // The last of the batch, and perhaps of all.
            }
        }
        segment_bytes
    }

    fn charge_bulk(&mut self, bytes: usize) {
        self.grant.bytes = self.grant.bytes.saturating_sub(bytes);
        self.pacer.charge_bulk(bytes);
    }

    /// Whether a packet of bulk may leave.
    fn has_grant(&mut self, now: u64) -> bool {
        if self.streams.waiting(Turn::Bulk) == 0 {
            self.grant = Grant::default();
            return false;
        }
        if self.grant.bytes == 0 {
            let budget = self.pacer.bulk_budget(now, self.in_flight());
            self.grant = Grant { bytes: budget.bytes, next_at: budget.next_at };
            let is_window_full = budget.bytes == 0 && budget.next_at.is_none();
            if self.streams.take_timed_out() && is_window_full {
                // What fills the window is lost, perhaps all of it: the answer to this one tells.
                self.grant.bytes = self.mtu.size();
            }
        }
        self.grant.bytes > 0
    }

    /// Acknowledgements come with it: the first segment is cut shorter for them.
    fn write_bulk(&mut self, now: u64, end: usize, out: &mut Vec<u8>) {
        let head = out.len();
        begin_segments(out);
        let first = out.len();
        self.write_news(end, out);
        let segments = out.len();
        for _ in 0..self.streams.waiting(Turn::Bulk).min(FILLING_MAX) {
            let Some(place) = self.streams.next(Turn::Bulk) else { break };
            let before = out.len();
            self.write_segments_of(now, place, Turn::Bulk, end, out);
            if out.len() == before {
                self.streams.give_back(Turn::Bulk, place); // It does not fit: it comes first in the next packet.
                break;
            }
            if end - out.len() <= HEADER_BYTES {
                break;
            }
        }
        if out.len() > segments {
            self.charge_bulk(out.len() - segments + SEGMENT_OVERHEAD - HEADER_BYTES);
            self.mtu.on_sent(now, self.mtu.size() + out.len() - end);
        } else if segments == first {
            out.truncate(head);
        }
    }
}
