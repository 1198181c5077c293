//! KCP: a reliable stream over datagrams, wire-compatible with `ikcp.c`, made for delay and not for bandwidth.
//!
//! A [`Conversation`] carries one stream each way. Its owner
//! 1. hands in what arrives ([`Conversation::input`]) and what the user writes ([`Conversation::write`]),
//! 2. pulls what is to be sent, in the order it likes: [`Conversation::write_acks`], `write_probe`, `write_lost`, `write_new`,
//!    `write_repeats`, or all of them by [`Conversation::flush`],
//! 3. comes back at [`Conversation::next_timeout`] with [`Conversation::handle_timeout`], then pulls again.
//!
//! A segment that was sent is *in flight* until it is acknowledged or taken for *lost*, and then waits to be sent again. It is
//! lost when one that was sent later has been acknowledged, or by time: while no more than a few are in flight each has its own
//! time-out; of many, only the one that the peer waits for has, begun again by every acknowledgement.
//!
//! Segments are cut when they are first sent, as long as the path carries then. KCP numbers segments, not bytes, and what was sent
//! may have arrived: a segment keeps its length for good. When the path turns out to carry less,
//! [`Conversation::set_segment_bytes`] is all it takes for what was not sent. Of what was, all that is lost comes out of
//! `write_lost` in its turn; where [`Conversation::first_lost_bytes`] is more than a packet has, the owner has to carry that segment
//! in pieces, or in a datagram that routers may cut. There is at most a window of those, once. To have few, begin with what
//! every path carries, and cut longer ones only when the path has shown that it carries them.
//!
//! What a call costs does not depend on the window: each segment is touched when it is sent, acknowledged, lost or read, and
//! [`Conversation::next_timeout`] looks at no more than 16. Only memory does: a window that no cache holds costs its way there.
//!
//! Deliberately absent: congestion control and pacing, which belong to all conversations of a tunnel together; the opening and
//! closing of streams; the verdict that a peer is dead. Time comes in as µs from any origin.

mod buffers;
mod outgoing;
mod receiver;
mod ring;
mod rtt;
pub mod segment;
mod sender;
mod settings;
mod written;

pub use buffers::Buffers;
use receiver::Receiver;
use segment::{Command, HEADER_BYTES, Header};
use sender::{Packet, Sender};
pub use settings::{Mode, Overtaken, Settings};

/// Whoever calls brings the same [`Buffers`] each time.
#[derive(Debug)]
pub struct Conversation {
    id: u32,
    receiver: Receiver,
    sender: Sender,
}

/// The tunnel's own note on a transmission: it comes back with the acknowledgement.
pub type Stamp = [u64; 4];

/// A segment that the peer now has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acked {
    /// Bytes of payload.
    pub length: usize,
    /// From its transmission to this moment, in µs. `None` when it is not sure which of several transmissions arrived, or when
    /// only a later acknowledgement says that one did.
    pub rtt_us: Option<u64>,
    /// How often it was sent.
    pub transmissions: u32,
    /// Of its last transmission.
    pub stamp: Stamp,
}

/// The datagram holds something that is no segment. What came before has been taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// What has happened so far, in segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sent for the first time.
    pub sent: u64,
    /// Sent again because they were taken for lost.
    pub retransmitted: u64,
    /// Sent again to be on the safe side.
    pub repeated: u64,
    /// Retransmitted although an earlier transmission arrived.
    pub spurious: u64,
    /// Arrived more than once.
    pub duplicates: u64,
    /// Arrived outside the window, too long, when no buffer was left, or speaking of what was never sent.
    pub refused: u64,
}

/// Where a conversation begins: 0, 0, 0 on the wire of `ikcp.c`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Number of the first segment we send, and of the first we receive.
    pub send: u32,
    pub receive: u32,
    /// Our clock on the wire at time 0, in ms.
    pub clock_ms: u32,
}

impl Conversation {
    #[must_use]
    pub fn new(id: u32, settings: Settings) -> Self {
        Self::with_origin(id, settings, Origin::default())
    }

    #[must_use]
    pub fn with_origin(id: u32, settings: Settings, origin: Origin) -> Self {
        Self {
            id,
            receiver: Receiver::new(origin.receive, &settings),
            sender: Sender::new(origin.send, origin.clock_ms, settings),
        }
    }

    /// Takes the segments with which `datagram` begins, as long as they are of this conversation, and tells their length
    /// together. `on_acked` hears of each segment that the peer has got.
    ///
    /// # Errors
    /// When what follows is no segment.
    pub fn input(
        &mut self,
        now: u64,
        datagram: &[u8],
        buffers: &mut Buffers,
        mut on_acked: impl FnMut(Acked),
    ) -> Result<usize, Invalid> {
        let mut rest = datagram;
        let mut taken = Ok(());
        while !rest.is_empty() {
            let Some((header, payload, after)) = Header::decode(rest) else {
                taken = Err(Invalid);
                break;
            };
            if header.conversation != self.id {
                break;
            }
            rest = after;
            self.take(now, &header, payload, buffers, &mut on_acked);
        }
        self.sender.end_of_input(now, buffers, &mut on_acked);
        taken.map(|()| datagram.len() - rest.len())
    }

    fn take(
        &mut self,
        now: u64,
        header: &Header,
        payload: &[u8],
        buffers: &mut Buffers,
        on_acked: &mut impl FnMut(Acked),
    ) {
        let speaks_of_the_unsent = !self.sender.is_sent(header.unacknowledged.wrapping_sub(1))
            || header.command == Command::Ack && !self.sender.is_sent(header.number);
        if speaks_of_the_unsent {
            self.sender.counters.refused += 1;
            return;
        }
        self.sender.hear(now, header.unacknowledged, header.window);
        match header.command {
            Command::Ack => {
                self.sender.acknowledge(now, header.number, Some(header.timestamp), buffers, on_acked);
            }
            Command::Push => self.receiver.push(now, header.number, header.timestamp, payload, buffers),
            Command::AskWindow => self.receiver.asked = true,
            Command::TellWindow => {}
        }
    }

    /// Takes as many of `bytes` as there is room for.
    pub fn write(&mut self, bytes: &[u8], buffers: &mut Buffers) -> usize {
        self.sender.write(bytes, buffers)
    }

    /// Bytes that [`Self::write`] would take, while the buffers last.
    #[must_use]
    pub fn room(&self) -> usize {
        self.sender.room()
    }

    /// Payload of the segments that are cut from now on, in bytes, when the path is found to carry more or less.
    pub fn set_segment_bytes(&mut self, bytes: usize) {
        self.sender.set_segment_bytes(bytes);
    }

    /// Bytes that may be written and not acknowledged, as in the settings.
    pub fn set_send_bytes(&mut self, bytes: usize) {
        self.sender.set_send_bytes(bytes);
    }

    /// Segments that may have arrived and not been read: the credit of the peer, who hears of it with all that is sent. When it
    /// is made smaller, what the peer was told before stays welcome. However large it is, the peer is told of no more room than
    /// there are buffers for, leaving an eighth, but of 16 segments in any case.
    pub fn set_receive_window(&mut self, segments: u16) {
        self.receiver.set_window(segments);
    }

    /// Bytes written that the peer has not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.sender.unacknowledged()
    }

    /// Moves bytes that have arrived into `bytes`, and says how many.
    pub fn read(&mut self, bytes: &mut [u8], buffers: &mut Buffers) -> usize {
        let mut read = 0;
        while read < bytes.len() && self.readable() > 0 {
            let piece = self.peek(buffers);
            let length = piece.len().min(bytes.len() - read);
            bytes[read..read + length].copy_from_slice(&piece[..length]);
            self.consume(length, buffers);
            read += length;
        }
        read
    }

    /// Bytes that can be read.
    #[must_use]
    pub fn readable(&self) -> usize {
        self.receiver.readable()
    }

    /// The first of the bytes that can be read, where they lie.
    #[must_use]
    pub fn peek<'a>(&self, buffers: &'a Buffers) -> &'a [u8] {
        self.receiver.peek(buffers)
    }

    /// Counts the first `bytes` of what [`Self::peek`] shows as read.
    ///
    /// # Panics
    /// When it shows fewer.
    pub fn consume(&mut self, bytes: usize, buffers: &mut Buffers) {
        assert!(bytes <= self.peek(buffers).len(), "more is consumed than was there");
        self.receiver.consume(bytes, buffers);
    }

    /// Whether acknowledgements have to leave now, with something else or alone.
    #[must_use]
    pub fn has_acks(&self) -> bool {
        self.receiver.has_acks()
    }

    /// When acknowledgements have or had to leave at the latest; [`Self::handle_timeout`] makes [`Self::has_acks`] say so. `None`
    /// when none are owed. [`Self::write_acks`] writes them before, too, and should be asked to whenever a datagram leaves.
    #[must_use]
    pub fn acks_due_at(&self) -> Option<u64> {
        self.receiver.acks_due.at()
    }

    /// As in the settings, from now on: what the owner learns of a stream tells whether company is to be expected.
    pub fn set_ack_delay(&mut self, us: u64) {
        self.receiver.ack_delay = us;
    }

    /// Whether the peer is to be asked for its window, or told ours.
    #[must_use]
    pub fn has_probe(&self) -> bool {
        self.receiver.owes_window() || self.sender.asks
    }

    #[must_use]
    pub fn has_lost(&self) -> bool {
        self.sender.has_lost()
    }

    /// What the next segment that [`Self::write_lost`] appends takes, in bytes with its header. `None` when none is lost.
    #[must_use]
    pub fn first_lost_bytes(&self) -> Option<usize> {
        self.sender.first_lost_bytes()
    }

    /// Whether there is something that was never sent and that the peer's window admits.
    #[must_use]
    pub fn has_new(&self) -> bool {
        self.sender.has_new()
    }

    /// Appends the acknowledgements that are owed, due or not, up to `room` bytes; says how many bytes. The same holds for all that follow.
    pub fn write_acks(&mut self, room: usize, out: &mut Vec<u8>) -> usize {
        if self.acks_due_at().is_none() || room < HEADER_BYTES {
            return 0;
        }
        self.append(Command::Ack, out, |this, header, out| this.receiver.write_acks(header, room, out))
    }

    /// Appends a question for the peer's window, or the answer to one.
    pub fn write_probe(&mut self, room: usize, out: &mut Vec<u8>) -> usize {
        let mut written = 0;
        if self.receiver.owes_window() && room >= HEADER_BYTES {
            self.receiver.asked = false;
            written += self.append(Command::TellWindow, out, |_, header, out| out.extend_from_slice(&header.encode()));
        }
        if self.sender.asks && room >= written + HEADER_BYTES {
            self.sender.asks = false;
            written += self.append(Command::AskWindow, out, |_, header, out| out.extend_from_slice(&header.encode()));
        }
        written
    }

    /// Appends segments that were lost, the one that has waited longest first.
    pub fn write_lost(&mut self, now: u64, room: usize, stamp: Stamp, buffers: &Buffers, out: &mut Vec<u8>) -> usize {
        self.append_segments(now, room, buffers, out, |sender, packet| sender.write_lost(packet, stamp))
    }

    /// Appends segments that were never sent, cut as the path now allows.
    pub fn write_new(&mut self, now: u64, room: usize, stamp: Stamp, buffers: &Buffers, out: &mut Vec<u8>) -> usize {
        self.append_segments(now, room, buffers, out, |sender, packet| sender.write_new(packet, stamp))
    }

    /// Appends segments in flight once more, each at most `times` after it was sent as new or lost, and never in the instant in
    /// which it was last sent. Only a stream with few in flight repeats any.
    pub fn write_repeats(&mut self, now: u64, room: usize, times: u32, buffers: &Buffers, out: &mut Vec<u8>) -> usize {
        self.append_segments(now, room, buffers, out, |sender, packet| sender.write_repeats(packet, times))
    }

    fn append_segments(
        &mut self,
        now: u64,
        room: usize,
        buffers: &Buffers,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut Sender, Packet<'_>),
    ) -> usize {
        self.append(Command::Push, out, |this, header, out| {
            let end = out.len() + room;
            write(&mut this.sender, Packet { now, header, buffers, out, end });
        })
    }

    /// One datagram of at most `room` bytes with everything that is due, repeats only beside something else. Nothing is left
    /// to send when it appends nothing.
    pub fn flush(
        &mut self,
        now: u64,
        room: usize,
        times: u32,
        stamp: Stamp,
        buffers: &Buffers,
        out: &mut Vec<u8>,
    ) -> usize {
        self.handle_timeout(now);
        let end = out.len() + room;
        let before = out.len();
        if self.has_acks() || self.has_probe() || self.has_lost() || self.has_new() {
            self.write_acks(end - out.len(), out);
        }
        self.write_probe(end - out.len(), out);
        self.write_lost(now, end - out.len(), stamp, buffers, out);
        self.write_new(now, end - out.len(), stamp, buffers, out);
        if out.len() > before {
            self.write_repeats(now, end - out.len(), times, buffers, out);
        }
        out.len() - before
    }

    /// When [`Self::handle_timeout`] has something to do, if nothing else happens before. `None` when it never will.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        [self.sender.next_timeout(), self.receiver.next_timeout()].into_iter().flatten().min()
    }

    /// Takes segments whose time is up for lost, lets acknowledgements wait no longer, and decides to ask for the peer's window.
    /// What is due then has to be pulled; the next time-out is later than `now` in any case.
    pub fn handle_timeout(&mut self, now: u64) {
        self.sender.handle_timeout(now);
        self.receiver.handle_timeout(now);
    }

    /// All that is sent from now on takes another path. Round trips begin anew, with this time-out. What the old path still carries
    /// is not taken for lost when it is overtaken on the new one, by as much as the old one was slower.
    pub fn begin_path(&mut self, now: u64, rto_first_us: u64) {
        self.sender.begin_path(now, rto_first_us);
    }

    /// The path is dead on which segments went before `time`: those that are still in flight are lost.
    pub fn resend_before(&mut self, time: u64) {
        self.sender.resend_before(time);
    }

    /// How long the oldest segment in flight or lost has waited for its acknowledgement, since it was first sent.
    #[must_use]
    pub fn waited_us(&self, now: u64) -> Option<u64> {
        self.sender.oldest().map(|sent| now.saturating_sub(sent))
    }

    /// Bytes of payload in flight: sent, and neither acknowledged nor taken for lost.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.sender.in_flight()
    }

    /// Bytes written that were never sent.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.sender.unsent()
    }

    /// Smoothed round trip. `None` before the first.
    #[must_use]
    pub fn rtt_us(&self) -> Option<u64> {
        self.sender.rtt_us()
    }

    #[must_use]
    pub fn counters(&self) -> Counters {
        let Receiver { duplicates, refused, .. } = self.receiver;
        Counters { duplicates, refused: refused + self.sender.counters.refused, ..self.sender.counters }
    }

    /// Ends it, and gives back what it holds.
    pub fn release(self, buffers: &mut Buffers) {
        self.receiver.release(buffers);
        self.sender.release(buffers);
    }

    /// Lets `write` append segments behind a header that brings the peer our news, and says how many bytes that were.
    fn append(
        &mut self,
        command: Command,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut Self, Header, &mut Vec<u8>),
    ) -> usize {
        let (unacknowledged, window) = self.receiver.news();
        let (conversation, fragment, timestamp, number, length) = (self.id, 0, 0, 0, 0);
        let header = Header { conversation, command, fragment, window, timestamp, number, unacknowledged, length };
        let before = out.len();
        write(self, header, out);
        if out.len() > before {
            self.receiver.tell(window);
        }
        out.len() - before
    }
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the datagram holds something that is no segment")
    }
}

impl std::error::Error for Invalid {}
