//! One peer: the layers put together.

use super::carrier::Carrier;
use super::crypt::{Key, Random};
use super::packets::{Correction, Counters, Packets};
use super::smux::{Limits, Mux};
use super::{Event, LostReason, Settings, StreamId};
use crate::proto::kcp;

/// Frames that are made at a time, in bytes.
const FRAMES_BYTES: usize = 8 << 10;

/// Of one batch: what the kernel takes with `UDP_SEGMENT`.
const BATCH_BYTES_MAX: usize = 64_000;
const BATCH_PACKETS_MAX: usize = 64;

#[derive(Debug)]
pub struct Session {
    id: u32,
    mtu: usize,
    keep_alive_us: u64,
    silence_us: u64,
    packets: Packets,
    carrier: Carrier,
    mux: Mux,
    /// Frames on their way from the streams to the carrier.
    frames: Vec<u8>,
    /// A packet that did not fit into the last batch.
    packet: Vec<u8>,
    /// The last time that was told.
    now: u64,
    heard_at: u64,
    show_life_at: u64,
    state: State,
    /// To be told before what happens to streams.
    event: Option<Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was heard of the peer.
    New,
    Established,
    Lost,
}

/// A session at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Number of the conversation.
    pub conversation: u32,
    /// Smoothed round trip. `None` before the first.
    pub rtt_us: Option<u64>,
    /// Streams that are not forgotten.
    pub streams: usize,
    pub packets: Counters,
    pub segments: kcp::Counters,
}

impl Session {
    /// The side that opens streams, with a conversation of a random number.
    ///
    /// # Panics
    /// When the settings do not pass [`Settings::check`].
    #[must_use]
    pub fn client(settings: &Settings, key: Key, seed: [u8; 32], now: u64) -> Self {
        let mut random = Random::new(seed);
        let id = random.word();
        Self::new(settings, key, random.seed(), now, id, true)
    }

    /// The side that streams are opened to, for a conversation of which a packet has come.
    ///
    /// # Panics
    /// When the settings do not pass [`Settings::check`].
    #[must_use]
    pub fn server(settings: &Settings, key: Key, seed: [u8; 32], now: u64, conversation: u32) -> Self {
        Self::new(settings, key, seed, now, conversation, false)
    }

    fn new(settings: &Settings, key: Key, seed: [u8; 32], now: u64, id: u32, opens: bool) -> Self {
        settings.check().expect("settings that were checked");
        let correction = match settings.fec {
            None => Correction::Never,
            Some(shape) if opens => Correction::Of(shape),
            Some(shape) => Correction::Following(shape),
        };
        let packets = Packets::new(key, seed, correction);
        let limits = Limits {
            streams: settings.streams_max,
            unread_bytes: settings.unread_bytes,
            stream_unread_bytes: settings.stream_unread_bytes,
        };
        Self {
            id,
            mtu: settings.mtu,
            keep_alive_us: settings.keep_alive_us,
            silence_us: settings.silence_us,
            carrier: Carrier::new(id, settings, packets.overhead()),
            packets,
            mux: Mux::new(settings.version, opens, limits),
            frames: Vec::new(),
            packet: Vec::new(),
            now,
            heard_at: now,
            show_life_at: now + settings.keep_alive_us,
            state: State::New,
            event: None,
        }
    }

    // What arrives.

    /// Takes a packet, which it deciphers where it lies.
    pub fn handle_datagram(&mut self, now: u64, datagram: &mut [u8]) {
        let bytes = datagram.len();
        if let Some(payload) = self.packets.open(datagram) {
            self.handle_payload(now, payload, bytes);
        }
    }

    /// Takes what was in a packet of so many bytes.
    pub(super) fn handle_payload(&mut self, now: u64, payload: &[u8], bytes: usize) {
        if self.state == State::Lost {
            return;
        }
        self.now = now;
        let Self { carrier, state, event, .. } = self;
        self.packets.receive(payload, bytes, |segments| {
            let is_ours = carrier.input(now, segments);
            if is_ours && *state == State::New {
                (*state, *event) = (State::Established, Some(Event::Established));
            }
            is_ours
        });
        self.read();
    }

    /// Puts before the readers what has arrived in order, as far as there is room.
    fn read(&mut self) {
        while self.state != State::Lost {
            match self.carrier.peek().map(|bytes| self.mux.take(bytes)) {
                Ok(Ok(0)) => break,
                Ok(Ok(taken)) => self.carrier.consume(taken),
                Ok(Err(_)) | Err(_) => self.lose(LostReason::Garbled),
            }
        }
        if self.mux.take_heard() {
            self.heard_at = self.now;
        }
    }

    pub(super) fn conversation(&self) -> u32 {
        self.id
    }

    pub(super) fn lose(&mut self, reason: LostReason) {
        (self.state, self.event) = (State::Lost, Some(Event::Lost(reason)));
        self.packet.clear();
    }

    pub(super) fn has_event(&self) -> bool {
        self.event.is_some() || self.state != State::Lost && self.mux.has_event()
    }

    /// What has happened. Behind [`Event::Lost`] comes nothing.
    pub fn poll_event(&mut self) -> Option<Event> {
        if self.event.is_some() || self.state == State::Lost {
            return self.event.take();
        }
        let event = self.mux.poll_event()?;
        self.read(); // Too many events may have stopped it.
        Some(event)
    }

    // Streams.

    /// Opens a stream. `None` for a server, and while there are as many as there may be.
    pub fn open(&mut self) -> Option<StreamId> {
        if self.state == State::Lost { None } else { self.mux.open() }
    }

    /// Takes as many of `bytes` as there is room for; none for a stream that has ended or is gone. Took it less than all,
    /// [`Event::Writable`] tells when there is room again.
    pub fn write(&mut self, stream: StreamId, bytes: &[u8]) -> usize {
        self.mux.write(stream, bytes)
    }

    /// Bytes that [`Self::write`] would take.
    #[must_use]
    pub fn room(&self, stream: StreamId) -> usize {
        self.mux.room(stream)
    }

    /// The first of the bytes that can be read, where they lie. Empty when there are none, and for a stream that is gone.
    #[must_use]
    pub fn peek(&self, stream: StreamId) -> &[u8] {
        self.mux.peek(stream)
    }

    /// Counts the first `bytes` of what [`Self::peek`] shows as read. What is not read stops the peer's writer in the end, in
    /// version 1 the writers of all streams; in version 2 a stream that is not read is cut when it is needed for the others.
    ///
    /// # Panics
    /// When it shows fewer.
    pub fn consume(&mut self, stream: StreamId, bytes: usize) {
        self.mux.consume(stream, bytes);
        self.read();
    }

    /// Closes the stream after all bytes that were written: kcptun then drops what it has not sent itself. What it has sent
    /// can still be read.
    pub fn finish(&mut self, stream: StreamId) {
        self.mux.finish(stream);
    }

    /// Closes the stream at once. Nothing is said of it from now on. The peer cannot tell this from [`Self::finish`].
    pub fn reset(&mut self, stream: StreamId) {
        self.mux.reset(stream);
        self.read();
    }

    /// Streams that are not forgotten, one at least while the peer does not have all that was written.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.mux.streams().max(usize::from(!self.carrier.is_settled()))
    }

    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            conversation: self.id,
            rtt_us: self.carrier.rtt_us(),
            streams: self.mux.streams(),
            packets: self.packets.counters,
            segments: self.carrier.counters(),
        }
    }

    // What is sent.

    /// Appends packets of equal size, of which the last may be shorter, and tells that size: ready for `UDP_SEGMENT`. `None`
    /// when there is nothing to send now.
    pub fn poll_transmit(&mut self, now: u64, out: &mut Vec<u8>) -> Option<usize> {
        self.handle_timeout(now);
        let (mut size, mut room) = (None, BATCH_BYTES_MAX);
        for _ in 0..BATCH_PACKETS_MAX {
            if !self.make_packet() || self.packet.len() > size.unwrap_or(room).min(room) {
                break;
            }
            let length = self.packet.len();
            out.extend_from_slice(&self.packet);
            self.packet.clear();
            room -= length;
            if length < *size.get_or_insert(length) {
                break;
            }
        }
        self.read(); // Too many endings that had to be sent may have stopped it.
        size
    }

    /// Has the next packet ready, if there is any.
    fn make_packet(&mut self) -> bool {
        if self.packet.is_empty() && self.state != State::Lost {
            let Self { packets, packet, carrier, mux, frames, now, mtu, .. } = self;
            packets.make(packet, |packet| {
                fill(carrier, mux, frames);
                carrier.flush(*now, *mtu - packet.len(), packet)
            });
        }
        !self.packet.is_empty()
    }

    fn has_to_send(&self) -> bool {
        let has_frames = self.mux.has_to_send() && self.carrier.wants_bytes();
        !self.packet.is_empty() || self.packets.owes_parity() || self.carrier.has_to_send() || has_frames
    }

    // When time passes.

    /// When [`Self::handle_timeout`] has something to do, if nothing else happens before; now as long as something waits to be
    /// sent or told.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        if self.has_event() {
            return Some(self.now);
        }
        if self.state == State::Lost {
            return None;
        }
        if self.has_to_send() {
            return Some(self.now);
        }
        let own = self.show_life_at.min(self.heard_at + self.silence_us);
        Some(self.carrier.next_timeout().map_or(own, |at| at.min(own)))
    }

    /// Then look for events, and for what is to be sent.
    pub fn handle_timeout(&mut self, now: u64) {
        if self.state == State::Lost {
            return;
        }
        self.now = now;
        self.carrier.handle_timeout(now);
        if self.show_life_at <= now {
            self.show_life_at = now + self.keep_alive_us;
            self.mux.show_life();
        }
        if self.heard_at + self.silence_us <= now {
            self.judge_silence();
        }
    }

    /// While our own readers keep us from listening, the peer is not to blame. All that the peer says waits behind what they do
    /// not read, and they may themselves wait for what it says: this would never end.
    fn judge_silence(&mut self) {
        if self.mux.is_stopped_by_readers() {
            self.heard_at = self.now;
            self.mux.cut_one_that_stops_all();
            self.read();
        } else {
            self.lose(LostReason::Silent);
        }
    }
}

/// Gives the carrier as many frames as it can send soon.
fn fill(carrier: &mut Carrier, mux: &mut Mux, frames: &mut Vec<u8>) {
    while carrier.wants_bytes() && mux.has_to_send() {
        frames.clear();
        mux.write_frames(FRAMES_BYTES, frames);
        carrier.write(frames);
    }
}
