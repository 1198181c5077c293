//! The life of a stream.
//!
//! ```text
//! visitor                                   provider
//!   open --- first bytes: the preamble --->   Opened
//!   <======== bytes, both ways =========>
//!   finish --- Finish{total} -------------->  Ended, when all of them are here
//!              <---------- Received ------
//! ```
//!
//! Each half ends by itself. A side forgets a stream when its half was received by the peer, and the peer's half was read by its
//! owner; or when either resets it. Both `Finish` and `Reset` may overtake the first bytes.
//!
//! ```text
//! preamble  port u8 | 0, or the player's address as in a datagram
//! ```

use std::net::SocketAddr;

use super::control::Message;
use super::events::{Event, ResetReason};
use super::frames::{emit_address, parse_optional_address};
use super::peer::{Phase, Role, Tunnel};
use super::stream::{Ours, Overlong, Stream, StreamId};
use super::streams::{Place, Turn};
use crate::proto::kcp;

/// Messages for the peer that may wait before no more streams are admitted: it takes streams faster than refusals.
const WAITING_MAX: usize = 16_384;

/// Of the longest preamble.
const PREAMBLE_BYTES_MAX: usize = 20;

/// Room that is worth telling a writer who waits for it, in bytes.
const ROOM_WORTH_TELLING: usize = 32 << 10;

/// Writers that are looked at after each packet.
const WRITERS_AT_ONCE: usize = 4;

impl Tunnel {
    // What our owner does.

    /// Opens a stream to a port of the service. `player` is told to a service that wants to know. `None` for a provider, and
    /// while there are as many streams as there may be.
    pub fn open(&mut self, port: u8, player: Option<SocketAddr>) -> Option<StreamId> {
        let is_allowed = self.role == Role::Visitor && self.phase == Phase::Open;
        if !is_allowed || self.streams.len() >= self.settings.streams_max {
            return None;
        }
        let mut preamble = Vec::with_capacity(PREAMBLE_BYTES_MAX);
        preamble.push(port);
        match player.filter(|_| self.service.wants_addresses) {
            Some(player) => emit_address(player, &mut preamble),
            None => preamble.push(0),
        }
        let id = StreamId(self.last_opened.checked_add(1)?);
        let mut stream = Stream::new(id, self.stream_settings(), false);
        let written = stream.write(self.now, &preamble, 0, &mut self.buffers);
        if written < preamble.len() {
            stream.conversation.release(&mut self.buffers);
            return None; // No buffers are left.
        }
        self.last_opened = id.0;
        let place = self.streams.insert(stream);
        self.streams.with(place, |_| {});
        Some(id)
    }

    /// Ends our half: the peer is told after all bytes that were written.
    pub fn finish(&mut self, stream: StreamId) {
        let Some(place) = self.streams.find(stream) else { return };
        let total = self.streams.with(place, |stream| {
            let is_first = stream.ours == Ours::Open;
            (stream.ours, stream.wants_room) = (if is_first { Ours::Finished } else { stream.ours }, false);
            is_first.then_some(stream.written)
        });
        if let Some(total) = total {
            self.control.push(Message::Finish { stream, total });
        }
    }

    /// Cuts both halves. Nothing is said of this stream from now on.
    pub fn reset(&mut self, stream: StreamId, reason: ResetReason) {
        if let Some(place) = self.streams.find(stream) {
            self.remove(place);
            self.control.push(Message::Reset { stream, reason });
        }
    }

    // What the peer does.

    /// The stream of that id, which begins if the peer may open it.
    pub(super) fn find_or_admit(&mut self, id: StreamId) -> Option<Place> {
        if let Some(place) = self.streams.find(id) {
            return Some(place);
        }
        let is_new = self.role == Role::Provider && self.numbering.is_new(id.0);
        if !is_new || self.control.waiting() > WAITING_MAX {
            return None;
        }
        self.numbering.mark(id.0);
        if self.streams.len() >= self.settings.streams_max {
            self.control.push(Message::Reset { stream: id, reason: ResetReason::TooMany });
            return None;
        }
        Some(self.streams.insert(Stream::new(id, self.stream_settings(), true)))
    }

    pub(super) fn on_message(&mut self, message: Message) {
        match message {
            Message::Finish { stream, total } => self.on_finish(stream, total),
            Message::Received { stream } => self.on_received(stream),
            Message::Reset { stream, reason } => self.on_reset(stream, reason),
            Message::Renew(offer) => self.offer = Some(offer),
            Message::Renewed(answer) => self.on_renewed(&answer),
            Message::Tell(bytes) => self.on_told(bytes),
        }
    }

    fn on_finish(&mut self, id: StreamId, total: u64) {
        let Some(place) = self.find_or_admit(id) else { return };
        self.streams.with(place, |stream| _ = stream.theirs.total.get_or_insert(total));
        self.look_at_end(place);
    }

    fn on_received(&mut self, id: StreamId) {
        let Some(place) = self.streams.find(id) else { return };
        self.streams.with(place, |stream| {
            if stream.ours == Ours::Finished {
                stream.ours = Ours::Received;
            }
        });
        self.forget_if_over(place);
    }

    fn on_reset(&mut self, id: StreamId, reason: ResetReason) {
        let Some(place) = self.streams.find(id) else {
            if self.role == Role::Provider && self.numbering.is_new(id.0) {
                self.numbering.mark(id.0); // It has overtaken the first bytes.
            }
            return;
        };
        let is_known = !self.streams.at(place).awaits_preamble;
        self.remove(place);
        if is_known {
            self.events.push_back(Event::Reset(id, reason));
        }
    }

    /// Something of the stream has arrived, bytes or acknowledgements.
    pub(super) fn after_input(&mut self, place: Place) {
        if self.streams.at(place).awaits_preamble && !self.take_preamble(place) {
            return;
        }
        let stream = self.streams.at(place);
        if !stream.knows_readable && stream.conversation.readable() > 0 {
            let id = stream.id;
            self.streams.with(place, |stream| stream.knows_readable = true);
            self.events.push_back(Event::Readable(id));
        }
        self.look_at_end(place);
    }

    /// Whether the stream goes on.
    fn take_preamble(&mut self, place: Place) -> bool {
        let now = self.now;
        let stream = self.streams.at(place);
        let id = stream.id;
        let bytes = stream.conversation.peek(&self.buffers);
        let Some((&port, mut rest)) = bytes.split_first() else { return false };
        let Ok(player) = parse_optional_address(&mut rest) else {
            // Its opener writes it at once, so it is never cut.
            self.reset(id, ResetReason::Fault);
            return false;
        };
        let length = bytes.len() - rest.len();
        let Self { streams, buffers, .. } = self;
        streams.with(place, |stream| {
            stream.awaits_preamble = false;
            stream.consume(now, length, 0, buffers);
        });
        self.events.push_back(Event::Opened { stream: id, port, player });
        true
    }

    /// When all of the peer's half is here, both sides hear of it.
    fn look_at_end(&mut self, place: Place) {
        let stream = self.streams.at(place);
        if stream.awaits_preamble {
            return;
        }
        let id = stream.id;
        match self.streams.with(place, Stream::reaches_end) {
            Ok(false) => {}
            Ok(true) => {
                self.events.push_back(Event::Ended(id));
                self.look_at_rest(place);
            }
            Err(Overlong) => {
                self.reset(id, ResetReason::Fault);
                self.events.push_back(Event::Reset(id, ResetReason::Fault));
            }
        }
    }

    /// When the owner has read the peer's half to its end, the peer hears of it: who leaves before that takes bytes along.
    pub(super) fn look_at_rest(&mut self, place: Place) {
        let stream = self.streams.at(place);
        let id = stream.id;
        if self.streams.with(place, Stream::reaches_rest) {
            self.control.push(Message::Received { stream: id });
        }
        self.forget_if_over(place);
    }

    fn forget_if_over(&mut self, place: Place) {
        let stream = self.streams.at(place);
        if stream.is_over() {
            let id = stream.id;
            self.remove(place);
            self.events.push_back(Event::Forgotten(id));
        }
    }

    fn remove(&mut self, place: Place) {
        let stream = self.streams.remove(place);
        stream.conversation.release(&mut self.buffers);
    }

    /// Tells writers that have waited for room and now have some.
    pub(super) fn tell_writers(&mut self) {
        let path_bytes = self.pacer.window();
        for _ in 0..self.streams.waiting(Turn::Room).min(WRITERS_AT_ONCE) {
            let Some(place) = self.streams.next(Turn::Room) else { break };
            let Self { streams, buffers, .. } = self;
            let writable = streams.with(place, |stream| {
                let room = stream.room(path_bytes, buffers);
                let is_worth_telling =
                    room >= ROOM_WORTH_TELLING || room > 0 && stream.conversation.unacknowledged() == 0;
                stream.wants_room &= !is_worth_telling;
                is_worth_telling.then_some(stream.id)
            });
            self.events.extend(writable.map(Event::Writable));
        }
    }

    fn stream_settings(&self) -> kcp::Settings {
        kcp::Settings {
            segment_bytes: super::schedule::segment_bytes(self.mtu.size()),
            send_bytes: usize::MAX, // `Stream::room` says how many.
            rto_first_us: self.rto_first_us(),
            ..kcp::Settings::default()
        }
    }
}
