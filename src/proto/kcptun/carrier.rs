//! One reliable stream of bytes: a conversation, and what travels in it compressed unless both ends forgo that.

use super::Settings;
use super::snappy::{Compressor, Decompressor, Garbled};
use crate::proto::kcp::{Buffers, Conversation, Counters, Stamp};

/// Segments that wait in the conversation before it is given more. The fewer, the sooner is something sent that a stream has
/// just got; with none, packets would not be full.
const WAITING_SEGMENTS: usize = 2;

#[derive(Debug)]
pub struct Carrier {
    conversation: Conversation,
    buffers: Buffers,
    compression: Option<(Compressor, Decompressor)>,
    waiting_bytes_max: usize,
    /// What was written, as it goes to the conversation, which has taken the first `taken` bytes of it.
    written: Vec<u8>,
    taken: usize,
    /// It took nothing more although it had room, for want of buffers: only an acknowledgement helps.
    is_stuck: bool,
}

impl Carrier {
    /// `overhead` is what stands before the segments of a packet.
    pub fn new(id: u32, settings: &Settings, overhead: usize) -> Self {
        let kcp = settings.kcp(overhead);
        Self {
            waiting_bytes_max: WAITING_SEGMENTS * kcp.segment_bytes,
            conversation: Conversation::new(id, kcp),
            buffers: settings.buffers(),
            compression: settings.compresses.then(|| (Compressor::new(), Decompressor::new())),
            written: Vec::new(),
            taken: 0,
            is_stuck: false,
        }
    }

    /// Takes segments, and says whether they were all of this conversation.
    pub fn input(&mut self, now: u64, segments: &[u8]) -> bool {
        self.is_stuck = false;
        !segments.is_empty() && self.conversation.input(now, segments, &mut self.buffers, |_| ()) == Ok(segments.len())
    }

    /// The next bytes that can be read, as far as they lie together. Empty only when there are none.
    ///
    /// # Errors
    /// When what arrived cannot be decompressed.
    pub fn peek(&mut self) -> Result<&[u8], Garbled> {
        let Self { conversation, buffers, compression, .. } = self;
        let Some((_, decompressor)) = compression else { return Ok(conversation.peek(buffers)) };
        while decompressor.readable().is_empty() && conversation.readable() > 0 {
            let taken = decompressor.take(conversation.peek(buffers))?;
            conversation.consume(taken, buffers);
        }
        Ok(decompressor.readable())
    }

    /// Counts the first `bytes` of what [`Self::peek`] showed as read.
    pub fn consume(&mut self, bytes: usize) {
        match &mut self.compression {
            Some((_, decompressor)) => decompressor.consume(bytes),
            None => self.conversation.consume(bytes, &mut self.buffers),
        }
    }

    /// Whether it is time to write something, if there is something to write.
    pub fn wants_bytes(&self) -> bool {
        let is_all_taken = self.taken == self.written.len();
        is_all_taken && self.conversation.unsent() < self.waiting_bytes_max && self.conversation.room() > 0
    }

    /// Takes all of it, so it must have been asked whether it wants any.
    pub fn write(&mut self, bytes: &[u8]) {
        self.written.clear();
        self.taken = 0;
        match &mut self.compression {
            Some((compressor, _)) => compressor.write(bytes, &mut self.written),
            None => self.written.extend_from_slice(bytes),
        }
        self.hand_over();
    }

    fn hand_over(&mut self) {
        if self.can_hand_over() {
            let taken = self.conversation.write(&self.written[self.taken..], &mut self.buffers);
            self.is_stuck = taken == 0;
            self.taken += taken;
        }
    }

    fn can_hand_over(&self) -> bool {
        self.taken < self.written.len() && self.conversation.room() > 0 && !self.is_stuck
    }

    /// Whether the peer has all that was written.
    pub fn is_settled(&self) -> bool {
        self.taken == self.written.len() && self.conversation.unacknowledged() == 0
    }

    pub fn has_to_send(&self) -> bool {
        let conversation = &self.conversation;
        let has_segments = conversation.has_lost() || conversation.has_new();
        has_segments || conversation.has_acks() || conversation.has_probe() || self.can_hand_over()
    }

    /// Appends segments, up to `room` bytes, and says whether there were any.
    pub fn flush(&mut self, now: u64, room: usize, out: &mut Vec<u8>) -> bool {
        self.hand_over();
        self.conversation.flush(now, room, 0, Stamp::default(), &self.buffers, out) > 0
    }

    pub fn next_timeout(&self) -> Option<u64> {
        self.conversation.next_timeout()
    }

    pub fn handle_timeout(&mut self, now: u64) {
        self.conversation.handle_timeout(now);
    }

    pub fn rtt_us(&self) -> Option<u64> {
        self.conversation.rtt_us()
    }

    pub fn counters(&self) -> Counters {
        self.conversation.counters()
    }
}
