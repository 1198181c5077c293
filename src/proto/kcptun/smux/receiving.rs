//! What the peer sends: frames, cut anywhere.

use std::collections::VecDeque;

use super::frame::{Command, HEADER_BYTES, Header, UPDATE_BYTES, Update};
use super::stream::{Half, Stream};
use super::{ENDINGS_MAX, EVENTS_MAX, Garbled, Mux, StreamId};
use crate::proto::kcptun::Event;

#[derive(Clone, Copy, Debug)]
pub(super) enum Expects {
    Header,
    Update { stream: u32 },
    Payload { stream: u32, left: usize },
}

impl Mux {
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
}
