//! Many streams in one, by the frames of smux.
//!
//! [`Mux::take`] takes what the peer sends and puts it before the readers; [`Mux::write_frames`] takes what the writers wrote, a
//! few kilobytes of each stream in turn, as late as possible: a stream that has just got something to send is served before
//! those that have been sending for long.
//!
//! A stream is finished by both ends together: whoever says so neither reads nor writes any more, in the eyes of kcptun. So a
//! peer that finishes is answered at once, and what was not sent is dropped. If it is us, what the peer sent before it heard of
//! that is still read.
//!
//! All streams together keep so many bytes unread; at this bound nothing more is taken, whoever it is for. In version 2 windows
//! keep us from it; where they cannot, as each stream has a first one that only the peer knows, the owner says when nobody has
//! read for too long, and the stream with the most unread is cut ([`Mux::cut_one_that_stops_all`]).

pub mod frame;
mod receiving;
mod sending;
mod stream;
mod turns;

use std::collections::{BTreeMap, VecDeque};

use frame::{HEADER_BYTES, Version};
use receiving::Expects;
use stream::{Half, Stream};
use turns::Turns;

pub use stream::StreamId;

use super::Event;

/// Bytes that a stream keeps written and not sent; all streams together; and what each may keep even then.
const OUTGOING_BYTES_MAX: usize = 256 << 10;
const ALL_OUTGOING_BYTES_MAX: usize = 4 << 20;
const OUTGOING_BYTES_MIN: usize = 4 << 10;

/// The least that a stream of version 2 may keep unread, once it has been read from.
const WINDOW_BYTES_MIN: u32 = 16 << 10;

/// Events that nobody has asked for, and streams whose end the peer has to be told. At these bounds nothing more is taken.
const EVENTS_MAX: usize = 1024;
const ENDINGS_MAX: usize = 1024;

/// What the frames may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub streams: usize,
    /// Bytes unread of all streams together, and of one.
    pub unread_bytes: usize,
    pub stream_unread_bytes: u32,
}

/// The bytes are no frames, or not those of our version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbled;

#[derive(Debug)]
pub struct Mux {
    version: Version,
    limits: Limits,
    /// Streams are opened here, or there.
    opens: bool,
    /// Number of the next one. `None` when all are used up.
    next: Option<u32>,
    streams: BTreeMap<u32, Stream>,
    /// Bytes that may still be kept for readers.
    space: usize,
    expects: Expects,
    /// The first bytes of a header or an update that has not arrived whole.
    gathered: Vec<u8>,
    /// Streams that are gone, of which the peer has to be told so.
    endings: VecDeque<u32>,
    /// Streams with something to send.
    turns: Turns,
    /// Bytes written and not sent.
    outgoing: usize,
    owes_sign_of_life: bool,
    has_heard: bool,
    has_read: bool,
    events: VecDeque<Event>,
}

impl Mux {
    /// `opens` says whether streams are opened here, or there.
    #[must_use]
    pub fn new(version: Version, opens: bool, limits: Limits) -> Self {
        Self {
            version,
            limits,
            opens,
            next: Some(3),
            streams: BTreeMap::new(),
            space: limits.unread_bytes,
            expects: Expects::Header,
            gathered: Vec::with_capacity(HEADER_BYTES),
            endings: VecDeque::new(),
            turns: Turns::default(),
            outgoing: 0,
            owes_sign_of_life: false,
            has_heard: false,
            has_read: false,
            events: VecDeque::new(),
        }
    }

    /// Whether a frame has arrived since this was last asked.
    pub fn take_heard(&mut self) -> bool {
        std::mem::take(&mut self.has_heard)
    }

    /// Readers keep us from taking anything.
    #[must_use]
    pub fn is_stopped_by_readers(&self) -> bool {
        self.space == 0
    }

    /// Cuts the stream with the most unread, if it is against the rules that readers keep us from taking anything, and none has
    /// read since this was last asked. In version 1 it is not: there is no other way to stop a writer.
    pub fn cut_one_that_stops_all(&mut self) {
        let has_read = std::mem::take(&mut self.has_read);
        if has_read || self.version == Version::V1 || !self.is_stopped_by_readers() {
            return;
        }
        if let Some((&id, _)) = self.streams.iter().max_by_key(|(_, stream)| stream.incoming.len()) {
            self.reset(StreamId(id));
            self.events.push_back(Event::Reset(StreamId(id)));
        }
    }

    #[must_use]
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// `None` where the peer opens streams, and when there are too many.
    pub fn open(&mut self) -> Option<StreamId> {
        let id = self.next.filter(|_| self.opens && self.streams.len() < self.limits.streams)?;
        self.next = id.checked_add(2);
        let mut stream = Stream::new(self.version);
        stream.owes_open = true;
        self.streams.insert(id, stream);
        self.queue(id);
        Some(StreamId(id))
    }

    #[must_use]
    pub fn room(&self, id: StreamId) -> usize {
        self.streams.get(&id.0).filter(|stream| stream.ours == Half::Open).map_or(0, |stream| self.room_of(stream))
    }

    fn room_of(&self, stream: &Stream) -> usize {
        let left = |max: usize| max.saturating_sub(stream.outgoing.len());
        let left_of_all = ALL_OUTGOING_BYTES_MAX.saturating_sub(self.outgoing);
        left(OUTGOING_BYTES_MAX).min(left_of_all.max(left(OUTGOING_BYTES_MIN)))
    }

    pub fn write(&mut self, id: StreamId, bytes: &[u8]) -> usize {
        let written = bytes.len().min(self.room(id));
        let Some(stream) = self.streams.get_mut(&id.0) else { return 0 };
        stream.outgoing.extend(&bytes[..written]);
        stream.wants_room |= written < bytes.len();
        self.outgoing += written;
        self.queue(id.0);
        written
    }

    #[must_use]
    pub fn peek(&self, id: StreamId) -> &[u8] {
        self.streams.get(&id.0).map_or(&[], |stream| stream.incoming.as_slices().0)
    }

    pub fn consume(&mut self, id: StreamId, bytes: usize) {
        let Some(stream) = self.streams.get_mut(&id.0) else { return };
        stream.consume(bytes);
        stream.is_readable_told = false;
        self.has_read |= bytes > 0;
        self.space += bytes;
        self.queue(id.0);
        self.forget_if_over(id.0);
    }

    pub fn finish(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id.0).filter(|stream| stream.ours == Half::Open) {
            stream.ours = Half::Finishing;
            self.queue(id.0);
        }
    }

    pub fn reset(&mut self, id: StreamId) {
        let Some(stream) = self.remove(id.0) else { return };
        self.space += stream.incoming.len();
        self.outgoing -= stream.outgoing.len();
        if stream.ours != Half::Finished && !stream.owes_open {
            self.endings.push_back(id.0);
        }
    }

    fn remove(&mut self, id: u32) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        if stream.is_queued {
            self.turns.forget(id);
        }
        Some(stream)
    }

    fn forget_if_over(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(Stream::is_over) {
            self.remove(id);
            self.events.push_back(Event::Forgotten(StreamId(id)));
        }
    }

    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.len()
    }
}

#[cfg(test)]
mod tests;
