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
//! All streams together keep so many bytes unread; at this bound nothing more is taken, whoever it is for.

pub mod frame;
mod stream;

use std::collections::{BTreeMap, VecDeque};

use frame::{Command, HEADER_BYTES, Header, UPDATE_BYTES, Update, Version};
use stream::{Half, Stream};

pub use stream::StreamId;

use super::Event;

/// Payload of a frame, and so what a stream sends at its turn. As much as kcptun takes from its sockets at a time.
const TURN_BYTES: usize = 4 << 10;

/// Turns of streams that have just got something, before one of the others is served.
const FRESH_TURNS_MAX: u32 = 8;

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
    /// Streams with something to send: those that have just got something, and those that had their turn since.
    fresh: VecDeque<u32>,
    busy: VecDeque<u32>,
    fresh_turns: u32,
    /// Bytes written and not sent.
    outgoing: usize,
    owes_sign_of_life: bool,
    has_heard: bool,
    events: VecDeque<Event>,
}

#[derive(Clone, Copy, Debug)]
enum Expects {
    Header,
    Update { stream: u32 },
    Payload { stream: u32, left: usize },
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
            fresh: VecDeque::new(),
            busy: VecDeque::new(),
            fresh_turns: 0,
            outgoing: 0,
            owes_sign_of_life: false,
            has_heard: false,
            events: VecDeque::new(),
        }
    }

    // What the peer says.

    /// Takes bytes, and says how many: fewer than all while there is no room for what follows.
    ///
    /// # Errors
    /// When they are not understood. Nothing may be taken after that.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Garbled> {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.take_some(&bytes[taken..])? {
                0 => break,
                more => taken += more,
            }
        }
        Ok(taken)
    }

    fn take_some(&mut self, bytes: &[u8]) -> Result<usize, Garbled> {
        match self.expects {
            Expects::Header if self.is_full() => Ok(0),
            Expects::Header => {
                let (taken, header) = self.gather::<HEADER_BYTES>(bytes);
                if let Some(header) = header {
                    let header = Header::decode(header).filter(|header| header.version == self.version);
                    self.begin(header.ok_or(Garbled)?);
                }
                Ok(taken)
            }
            Expects::Update { stream } => {
                let (taken, update) = self.gather::<UPDATE_BYTES>(bytes);
                if let Some(update) = update {
                    self.expects = Expects::Header;
                    self.hear_update(stream, Update::decode(update));
                }
                Ok(taken)
            }
            Expects::Payload { stream, left } => {
                let taken = self.push(stream, &bytes[..left.min(bytes.len())]);
                let left = left - taken;
                self.expects = if left > 0 { Expects::Payload { stream, left } } else { Expects::Header };
                Ok(taken)
            }
        }
    }

    fn is_full(&self) -> bool {
        self.events.len() >= EVENTS_MAX || self.endings.len() >= ENDINGS_MAX
    }

    /// Completes `N` bytes from what was gathered and what is there, and says how many were taken of that.
    fn gather<const N: usize>(&mut self, bytes: &[u8]) -> (usize, Option<[u8; N]>) {
        let taken = bytes.len().min(N - self.gathered.len());
        self.gathered.extend_from_slice(&bytes[..taken]);
        let whole = <[u8; N]>::try_from(&self.gathered[..]).ok();
        if whole.is_some() {
            self.gathered.clear();
        }
        (taken, whole)
    }

    fn begin(&mut self, header: Header) {
        self.has_heard = true;
        let stream = header.stream;
        match header.command {
            Command::Open => self.hear_open(stream),
            Command::Finish => self.hear_finish(stream),
            Command::Push if header.length > 0 => {
                self.expects = Expects::Payload { stream, left: header.length.into() };
            }
            Command::Push | Command::Nothing => {}
            Command::Update => self.expects = Expects::Update { stream },
        }
    }

    fn hear_open(&mut self, id: u32) {
        if self.streams.contains_key(&id) {
            return;
        }
        if self.opens || self.streams.len() >= self.limits.streams {
            self.endings.push_back(id);
            return;
        }
        self.streams.insert(id, Stream::new(self.version));
        self.events.push_back(Event::Opened(StreamId(id)));
    }

    /// The peer has closed the stream: it reads nothing more either.
    fn hear_finish(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.peer_finished) else { return };
        stream.peer_finished = true;
        self.outgoing -= stream.outgoing.len();
        stream.outgoing = VecDeque::new();
        if stream.ours == Half::Open {
            stream.ours = Half::Finishing;
        }
        self.events.push_back(Event::Ended(StreamId(id)));
        self.queue(id);
        self.forget_if_over(id);
    }

    /// Keeps what there is room for, and says how much. For a stream that is gone there is room for all.
    fn push(&mut self, id: u32, bytes: &[u8]) -> usize {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.peer_finished) else {
            return bytes.len();
        };
        let taken = bytes.len().min(self.space);
        self.space -= taken;
        stream.incoming.extend(&bytes[..taken]);
        if taken > 0 && !std::mem::replace(&mut stream.is_readable_told, true) {
            self.events.push_back(Event::Readable(StreamId(id)));
        }
        taken
    }

    fn hear_update(&mut self, id: u32, update: Update) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.hear(update) {
            self.queue(id);
        } else {
            self.reset(StreamId(id));
            self.events.push_back(Event::Reset(StreamId(id)));
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

    #[must_use]
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    // What the user does.

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
            self.fresh.retain(|queued| *queued != id);
            self.busy.retain(|queued| *queued != id);
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

    // What is sent.

    /// Shows the peer that we live, even if nothing else is sent.
    pub fn show_life(&mut self) {
        self.owes_sign_of_life = true;
    }

    #[must_use]
    pub fn has_to_send(&self) -> bool {
        self.owes_sign_of_life || !self.endings.is_empty() || !self.fresh.is_empty() || !self.busy.is_empty()
    }

    /// Gives the stream a turn, if it has something to send and does not wait for one yet.
    fn queue(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.is_queued && stream.has_to_send()) {
            stream.is_queued = true;
            self.fresh.push_back(id);
        }
    }

    /// Appends frames until there are about `bytes`, or there is nothing to send.
    pub fn write_frames(&mut self, bytes: usize, out: &mut Vec<u8>) {
        let end = out.len() + bytes;
        if std::mem::take(&mut self.owes_sign_of_life) {
            self.append(Command::Nothing, 0, 0, out);
        }
        while out.len() < end
            && let Some(id) = self.endings.pop_front()
        {
            self.append(Command::Finish, id, 0, out);
        }
        while out.len() < end
            && let Some(id) = self.next_turn()
        {
            self.serve(id, out);
        }
    }

    fn next_turn(&mut self) -> Option<u32> {
        let is_for_fresh = self.fresh_turns < FRESH_TURNS_MAX || self.busy.is_empty();
        if is_for_fresh && let Some(id) = self.fresh.pop_front() {
            self.fresh_turns = (self.fresh_turns + 1).min(FRESH_TURNS_MAX);
            return Some(id);
        }
        self.fresh_turns = 0;
        self.busy.pop_front()
    }

    /// One stream's turn.
    fn serve(&mut self, id: u32, out: &mut Vec<u8>) {
        self.append_small(id, out);
        self.append_payload(id, out);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.owes_finish() {
            stream.ours = Half::Finished;
            stream.is_queued = false;
            self.append(Command::Finish, id, 0, out);
            self.forget_if_over(id);
            return;
        }
        stream.is_queued = stream.has_to_send();
        if stream.is_queued {
            self.busy.push_back(id);
        }
    }

    fn append_small(&mut self, id: u32, out: &mut Vec<u8>) {
        let window = self.window();
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let opens = std::mem::take(&mut stream.owes_open);
        let update = stream.owes_update.then(|| stream.update(window));
        if opens {
            self.append(Command::Open, id, 0, out);
        }
        if let Some(update) = update {
            self.append(Command::Update, id, UPDATE_BYTES, out);
            out.extend_from_slice(&update.encode());
        }
    }

    /// Bytes that one more stream may keep unread: never all that are left, so that a few readers that stop do not hold up the
    /// others.
    fn window(&self) -> u32 {
        let share = u32::try_from(self.space / 2).unwrap_or(u32::MAX);
        share.max(WINDOW_BYTES_MIN).min(self.limits.stream_unread_bytes)
    }

    fn append_payload(&mut self, id: u32, out: &mut Vec<u8>) {
        let length = self.streams.get(&id).map_or(0, |stream| stream.sendable().min(TURN_BYTES));
        if length == 0 {
            return;
        }
        self.append(Command::Push, id, length, out);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.send(length, out);
        self.outgoing -= length;
        let is_half_empty = stream.outgoing.len() <= OUTGOING_BYTES_MAX / 2;
        if is_half_empty && stream.ours == Half::Open && std::mem::take(&mut stream.wants_room) {
            self.events.push_back(Event::Writable(StreamId(id)));
        }
    }

    fn append(&self, command: Command, stream: u32, length: usize, out: &mut Vec<u8>) {
        let header = Header { version: self.version, command, length: length as u16, stream }; // At most a turn's bytes.
        out.extend_from_slice(&header.encode());
    }
}

#[cfg(test)]
mod tests;
