//! One stream: a conversation, and how far its two halves have come.

use super::class::Class;
use super::streams::{Queued, Turn};
use super::window::{Window, written_max};
use crate::proto::kcp::{Buffers, Conversation, Settings};

/// One stream of a tunnel. Never given twice in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub(super) u32);

#[derive(Debug)]
pub struct Stream {
    pub id: StreamId,
    pub conversation: Conversation,
    pub class: Class,
    /// In which queues it waits for its turn.
    pub queued: Queued,
    pub ours: Ours,
    /// Bytes of our half so far, preamble included.
    pub written: u64,
    pub theirs: Theirs,
    /// The owner waits for room.
    pub wants_room: bool,
    /// The owner was told that there is something to read, and has not read all since.
    pub knows_readable: bool,
    /// The provider does not know yet to which port it leads: nothing is shown to the owner.
    pub awaits_preamble: bool,
    window: Window,
}

/// Our half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ours {
    Open,
    /// The peer is told.
    Finished,
    /// The peer has read all of it.
    Received,
}

/// The peer's half.
#[derive(Clone, Copy, Debug, Default)]
pub struct Theirs {
    /// Bytes that were read, preamble included.
    pub consumed: u64,
    /// Bytes altogether, once the peer has said so.
    pub total: Option<u64>,
    /// All of them have arrived, and the owner is told.
    pub has_ended: bool,
    /// The owner has read them, and the peer is told.
    pub is_read: bool,
}

/// The peer has sent more than it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlong;

impl Stream {
    pub fn new(id: StreamId, settings: Settings, awaits_preamble: bool) -> Self {
        let settings = Settings { receive_window: Window::FIRST, ..settings };
        Self {
            id,
            conversation: Conversation::new(id.0, settings),
            class: Class::default(),
            queued: Queued::default(),
            ours: Ours::Open,
            written: 0,
            theirs: Theirs::default(),
            wants_room: false,
            knows_readable: false,
            awaits_preamble,
            window: Window::new(),
        }
    }

    /// Bytes that can be written at least, while the buffers last. `path_bytes` is what the path carries at a time, for all
    /// streams.
    pub fn room(&self, path_bytes: usize, buffers: &Buffers) -> usize {
        if self.ours != Ours::Open {
            return 0;
        }
        let most = written_max(self.class.is_bulk(), path_bytes, buffers);
        self.conversation.room().min(most.saturating_sub(self.conversation.unacknowledged()))
    }

    pub fn write(&mut self, now: u64, bytes: &[u8], path_bytes: usize, buffers: &mut Buffers) -> usize {
        let mut written = self.write_piece(bytes, path_bytes, buffers);
        if self.look_at_class(now) {
            written += self.write_piece(&bytes[written..], path_bytes, buffers);
        }
        self.wants_room = written < bytes.len() && self.ours == Ours::Open;
        written
    }

    fn write_piece(&mut self, bytes: &[u8], path_bytes: usize, buffers: &mut Buffers) -> usize {
        let room = self.room(path_bytes, buffers);
        let written = self.conversation.write(&bytes[..bytes.len().min(room)], buffers);
        self.written += written as u64;
        self.class.on_written(written);
        written
    }

    pub fn peek<'a>(&self, buffers: &'a Buffers) -> &'a [u8] {
        if self.awaits_preamble { &[] } else { self.conversation.peek(buffers) }
    }

    pub fn consume(&mut self, now: u64, bytes: usize, rtt_us: u64, buffers: &mut Buffers) {
        self.conversation.consume(bytes, buffers);
        self.theirs.consumed += bytes as u64;
        self.knows_readable &= self.conversation.readable() > 0;
        self.window.on_read(now, bytes, rtt_us, buffers);
        self.adapt_window(now, buffers);
    }

    /// To what the reader takes and the tunnel has.
    pub fn adapt_window(&mut self, now: u64, buffers: &Buffers) {
        let segments = self.window.segments(now, self.conversation.readable(), buffers);
        self.conversation.set_receive_window(segments);
        self.conversation.set_ack_delay(self.window.ack_delay_us());
    }

    /// Whether the end of the peer's half has just been reached.
    pub fn reaches_end(&mut self) -> Result<bool, Overlong> {
        let arrived = self.theirs.consumed + self.conversation.readable() as u64;
        match self.theirs.total {
            Some(total) if arrived > total => Err(Overlong),
            Some(total) => Ok(arrived == total && !std::mem::replace(&mut self.theirs.has_ended, arrived == total)),
            None => Ok(false),
        }
    }

    /// Whether the owner has just read the last byte of the peer's half.
    pub fn reaches_rest(&mut self) -> bool {
        let is_read = self.theirs.has_ended && self.conversation.readable() == 0;
        is_read && !std::mem::replace(&mut self.theirs.is_read, true)
    }

    /// Nothing more will come of it on either side, and nothing is left to read.
    pub fn is_over(&self) -> bool {
        self.ours == Ours::Received && self.theirs.is_read
    }

    pub fn wants(&self, turn: Turn) -> bool {
        let conversation = &self.conversation;
        match turn {
            Turn::News => conversation.acks_due_at().is_some() || conversation.has_probe(),
            Turn::Thin => !self.class.is_bulk() && self.is_eager(),
            Turn::Bulk => self.class.is_bulk() && self.is_eager(),
            Turn::Repeats => !self.class.is_bulk() && conversation.in_flight() > 0,
            Turn::Room => self.wants_room,
        }
    }

    /// Whether it is bulk now.
    pub fn look_at_class(&mut self, now: u64) -> bool {
        self.class.look(now, self.conversation.unacknowledged())
    }

    /// Has segments to send.
    pub fn is_eager(&self) -> bool {
        self.conversation.has_lost() || self.conversation.has_new()
    }
}
