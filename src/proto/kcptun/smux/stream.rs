//! One stream: what has arrived and is not read, what is written and not sent, and what its two ends owe each other.

use std::collections::VecDeque;

use super::frame::{Update, Version};

/// What a peer keeps unread of a stream before it has said anything about that.
const PEER_WINDOW_FIRST: u32 = 256 << 10;

/// Memory that a queue may keep while it is empty, in bytes.
const KEPT_BYTES_MAX: usize = 16 << 10;

/// One stream of a session. The first has 3, those after it the next odd numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub(super) u32);

#[derive(Debug)]
pub struct Stream {
    version: Version,
    pub incoming: VecDeque<u8>,
    pub outgoing: VecDeque<u8>,
    /// The peer is to be told that there is a stream.
    pub owes_open: bool,
    /// The peer is to be told how much was read.
    pub owes_update: bool,
    pub ours: Half,
    pub peer_finished: bool,
    /// Whether it waits for its turn to send.
    pub is_queued: bool,
    /// The user knows that there is something to read.
    pub is_readable_told: bool,
    /// The user wrote more than there was room for.
    pub wants_room: bool,
    /// Bytes read since the beginning, and what the peer was told last.
    read: u32,
    told: Option<Update>,
    /// Bytes sent since the beginning, what the peer has read of them, and its window.
    sent: u32,
    peer_read: u32,
    peer_window: u32,
}

/// How far our half is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Open,
    /// Nothing more is written; what was written, and that this was all, is still to be sent.
    Finishing,
    /// The peer is told.
    Finished,
}

impl Stream {
    pub fn new(version: Version) -> Self {
        Self {
            version,
            incoming: VecDeque::new(),
            outgoing: VecDeque::new(),
            owes_open: false,
            owes_update: false,
            ours: Half::Open,
            peer_finished: false,
            is_queued: false,
            is_readable_told: false,
            wants_room: false,
            read: 0,
            told: None,
            sent: 0,
            peer_read: 0,
            peer_window: PEER_WINDOW_FIRST,
        }
    }

    /// Takes the first bytes off what has arrived. The peer is told at the first reading, and each time half a window was read.
    pub fn consume(&mut self, bytes: usize) {
        discard(&mut self.incoming, bytes);
        self.read = self.read.wrapping_add(bytes as u32); // Counts modulo 2^32.
        let is_due = self.told.is_none_or(|told| self.read.wrapping_sub(told.consumed) >= told.window / 2);
        self.owes_update |= self.version == Version::V2 && !self.peer_finished && is_due;
    }

    /// Bytes that it keeps unread, or that the peer was told it may.
    pub fn reserved(&self) -> usize {
        let promised = self.told.filter(|_| !self.peer_finished).map_or(0, |told| told.window as usize);
        promised.max(self.incoming.len())
    }

    /// What the peer is told when we keep so many bytes unread.
    pub fn update(&mut self, window: u32) -> Update {
        let update = Update { consumed: self.read, window };
        (self.owes_update, self.told) = (false, Some(update));
        update
    }

    /// Takes the peer's word. False when it has read what was never sent.
    pub fn hear(&mut self, update: Update) -> bool {
        (self.peer_read, self.peer_window) = (update.consumed, update.window);
        self.unread_there().cast_signed() >= 0
    }

    fn unread_there(&self) -> u32 {
        self.sent.wrapping_sub(self.peer_read)
    }

    /// Bytes that may be sent now.
    pub fn sendable(&self) -> usize {
        match self.version {
            Version::V1 => self.outgoing.len(),
            Version::V2 => self.outgoing.len().min(self.peer_window.saturating_sub(self.unread_there()) as usize),
        }
    }

    /// Moves the first bytes of what is written to `out`.
    pub fn send(&mut self, bytes: usize, out: &mut Vec<u8>) {
        let (first, second) = self.outgoing.as_slices();
        let cut = bytes.min(first.len());
        out.extend_from_slice(&first[..cut]);
        out.extend_from_slice(&second[..bytes - cut]);
        discard(&mut self.outgoing, bytes);
        self.sent = self.sent.wrapping_add(bytes as u32);
    }

    pub fn owes_finish(&self) -> bool {
        self.ours == Half::Finishing && self.outgoing.is_empty()
    }

    pub fn has_to_send(&self) -> bool {
        self.owes_open || self.owes_update || self.owes_finish() || self.sendable() > 0
    }

    /// Nothing can happen on it any more.
    pub fn is_over(&self) -> bool {
        self.ours == Half::Finished && self.peer_finished && self.incoming.is_empty()
    }
}

fn discard(queue: &mut VecDeque<u8>, bytes: usize) {
    queue.drain(..bytes);
    if queue.is_empty() && queue.capacity() > KEPT_BYTES_MAX {
        *queue = VecDeque::new();
    }
}
