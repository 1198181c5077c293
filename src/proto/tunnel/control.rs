//! What the two ends tell each other about streams, reliably and in order: the bytes of conversation 0.
//!
//! ```text
//! 1 finish   stream u32 | total u64: our half of the stream ends after so many bytes, preamble included
//! 2 received stream u32: all bytes of your half were read here
//! 3 reset    stream u32 | reason u8: neither half goes on; also the refusal of a stream
//! 4 renew    an offer, as in a handshake: new keys for this tunnel
//! 5 renewed  the answer to it
//! 6 tell     length u16 | bytes, 1,024 at most: what the owners of the two ends tell each other
//! ```

use std::collections::VecDeque;

use super::StreamId;
use super::events::ResetReason;
use super::handshake::{ANSWER_BYTES, OFFER_BYTES};
use super::wire::Malformed;
use crate::proto::kcp::{Acked, Buffers, Conversation, Invalid, Settings, Stamp};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Finish { stream: StreamId, total: u64 },
    Received { stream: StreamId },
    Reset { stream: StreamId, reason: ResetReason },
    Renew(Box<[u8; OFFER_BYTES]>),
    Renewed(Box<[u8; ANSWER_BYTES]>),
    Tell(Box<[u8]>),
}

const FINISH: u8 = 1;
const RECEIVED: u8 = 2;
const RESET: u8 = 3;
const RENEW: u8 = 4;
const RENEWED: u8 = 5;
const TELL: u8 = 6;

/// Bytes that the owners may tell each other at once: some thirty addresses.
pub const TELL_BYTES_MAX: usize = 1_024;

/// The longest message.
pub const MESSAGE_BYTES_MAX: usize = 3 + TELL_BYTES_MAX;

impl Message {
    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Finish { stream, total } => {
                head(FINISH, *stream, out);
                out.extend_from_slice(&total.to_be_bytes());
            }
            Self::Received { stream } => head(RECEIVED, *stream, out),
            Self::Reset { stream, reason } => {
                head(RESET, *stream, out);
                out.push(reason.to_byte());
            }
            Self::Renew(offer) => {
                out.push(RENEW);
                out.extend_from_slice(&offer[..]);
            }
            Self::Renewed(answer) => {
                out.push(RENEWED);
                out.extend_from_slice(&answer[..]);
            }
            Self::Tell(bytes) => {
                debug_assert!(bytes.len() <= TELL_BYTES_MAX);
                out.push(TELL);
                out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
                out.extend_from_slice(bytes);
            }
        }
    }
}

fn head(kind: u8, stream: StreamId, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(&stream.0.to_be_bytes());
}

/// Puts messages together of the pieces in which they arrive.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Not yet a whole message.
    bytes: Vec<u8>,
}

impl Inbox {
    /// Takes some of `piece`, at least a byte, and tells how many, and the message that they complete, if any.
    pub fn take(&mut self, piece: &[u8]) -> Result<(usize, Option<Message>), Malformed> {
        let kind = *self.bytes.first().or(piece.first()).ok_or(Malformed)?;
        let mut taken = 0;
        // Twice for a message that tells its length itself.
        while let wanted = length(kind, &self.bytes)?
            && self.bytes.len() < wanted
        {
            let rest = &piece[taken..];
            let more = rest.len().min(wanted - self.bytes.len());
            if more == 0 {
                return Ok((taken, None));
            }
            self.bytes.extend_from_slice(&rest[..more]);
            taken += more;
        }
        let message = parse(kind, &self.bytes[1..]);
        self.bytes.clear();
        message.map(|message| (taken, Some(message)))
    }
}

/// Of a message that begins with `bytes`, with its kind; or as much of it as tells its length.
fn length(kind: u8, bytes: &[u8]) -> Result<usize, Malformed> {
    if let [TELL, high, low, ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        return if length <= TELL_BYTES_MAX { Ok(3 + length) } else { Err(Malformed) };
    }
    Ok(1 + match kind {
        TELL => 2,
        FINISH => 12,
        RECEIVED => 4,
        RESET => 5,
        RENEW => OFFER_BYTES,
        RENEWED => ANSWER_BYTES,
        _ => return Err(Malformed),
    })
}

fn parse(kind: u8, body: &[u8]) -> Result<Message, Malformed> {
    Ok(match kind {
        RENEW => Message::Renew(Box::new(body.try_into().map_err(|_length| Malformed)?)),
        RENEWED => Message::Renewed(Box::new(body.try_into().map_err(|_length| Malformed)?)),
        TELL => Message::Tell(body.get(2..).ok_or(Malformed)?.into()),
        _ => {
            let (stream, rest) = body.split_first_chunk().ok_or(Malformed)?;
            let stream = StreamId(u32::from_be_bytes(*stream));
            match (kind, rest) {
                (FINISH, total) => {
                    let total = total.try_into().map_err(|_length| Malformed)?;
                    Message::Finish { stream, total: u64::from_be_bytes(total) }
                }
                (RECEIVED, []) => Message::Received { stream },
                (RESET, [reason]) => Message::Reset { stream, reason: ResetReason::from_byte(*reason) },
                _ => return Err(Malformed),
            }
        }
    })
}

/// Conversation 0 and what waits for it. It has buffers of its own, so that no stream can fill them.
#[derive(Debug)]
pub struct Control {
    pub conversation: Conversation,
    buffers: Buffers,
    /// Messages that wait for room. Bounded by whoever pushes: a few for each stream.
    outbox: VecDeque<Message>,
    inbox: Inbox,
    scratch: Vec<u8>,
}

/// Fits the smallest packet.
const SEGMENT_BYTES: usize = 1100;

/// Segments on their way, each direction, and the buffers for both. One segment holds the messages of 80 streams.
const WINDOW: u16 = 128;
const BUFFERS: usize = 512;

impl Control {
    pub fn new(rto_first_us: u64) -> Self {
        let settings = Settings {
            segment_bytes: SEGMENT_BYTES,
            send_window: WINDOW,
            receive_window: WINDOW,
            rto_first_us,
            ..Settings::default()
        };
        Self {
            conversation: Conversation::new(0, settings),
            buffers: Buffers::new(SEGMENT_BYTES, BUFFERS),
            outbox: VecDeque::new(),
            inbox: Inbox::default(),
            scratch: Vec::new(),
        }
    }

    pub fn push(&mut self, message: Message) {
        self.outbox.push_back(message);
        self.write_messages();
    }

    pub fn has_segments(&self) -> bool {
        self.conversation.has_lost() || self.conversation.has_new()
    }

    /// Whether acknowledgements or windows cannot wait for company.
    pub fn has_urgent_news(&self) -> bool {
        self.conversation.has_acks() || self.conversation.has_probe()
    }

    pub fn write_segments(&mut self, now: u64, room: usize, stamp: Stamp, out: &mut Vec<u8>) {
        let end = out.len() + room;
        self.conversation.write_lost(now, room, stamp, &self.buffers, out);
        self.conversation.write_new(now, end - out.len(), stamp, &self.buffers, out);
    }

    pub fn write_repeats(&mut self, now: u64, room: usize, times: u32, out: &mut Vec<u8>) {
        self.conversation.write_repeats(now, room, times, &self.buffers, out);
    }

    /// Messages that wait for room.
    pub fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Takes the segments with which `segments` begins, see [`Conversation::input`].
    pub fn input(&mut self, now: u64, segments: &[u8], on_acked: impl FnMut(Acked)) -> Result<usize, Invalid> {
        let taken = self.conversation.input(now, segments, &mut self.buffers, on_acked);
        self.write_messages();
        taken
    }

    /// The next message that has arrived.
    pub fn pop(&mut self) -> Result<Option<Message>, Malformed> {
        loop {
            let piece = self.conversation.peek(&self.buffers);
            if piece.is_empty() {
                return Ok(None);
            }
            let (taken, message) = self.inbox.take(piece)?;
            self.conversation.consume(taken, &mut self.buffers);
            if message.is_some() {
                return Ok(message);
            }
        }
    }

    fn write_messages(&mut self) {
        while self.conversation.room() >= MESSAGE_BYTES_MAX
            && let Some(message) = self.outbox.pop_front()
        {
            self.scratch.clear();
            message.emit(&mut self.scratch);
            let written = self.conversation.write(&self.scratch, &mut self.buffers);
            assert_eq!(written, self.scratch.len(), "there are more buffers than the window takes");
        }
    }
}

const _: () = assert!(BUFFERS * 3 / 4 > WINDOW as usize + WINDOW as usize);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn messages() -> Vec<Message> {
        vec![
            Message::Finish { stream: StreamId(1), total: u64::MAX },
            Message::Received { stream: StreamId(u32::MAX) },
            Message::Reset { stream: StreamId(7), reason: ResetReason::Refused },
            Message::Reset { stream: StreamId(7), reason: ResetReason::Other(200) },
            Message::Renew(Box::new([4; OFFER_BYTES])),
            Message::Renewed(Box::new([5; ANSWER_BYTES])),
            Message::Tell(Box::new([6; TELL_BYTES_MAX])),
            Message::Tell(Box::new([])),
            Message::Tell(Box::new([7])),
        ]
    }

    fn read(inbox: &mut Inbox, mut bytes: &[u8], piece: usize) -> Result<Vec<Message>, Malformed> {
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let (taken, message) = inbox.take(&bytes[..bytes.len().min(piece)])?;
            assert!(taken > 0);
            bytes = &bytes[taken..];
            messages.extend(message);
        }
        Ok(messages)
    }

    #[test]
    fn messages_are_read_as_they_were_written_however_they_are_cut() {
        let mut bytes = Vec::new();
        messages().iter().for_each(|message| message.emit(&mut bytes));
        for piece in 1..bytes.len() + 1 {
            assert_eq!(read(&mut Inbox::default(), &bytes, piece), Ok(messages()), "in pieces of {piece}");
        }
    }

    #[test]
    fn the_longest_message_is_known() {
        let longest = messages().into_iter().map(|message| {
            let mut bytes = Vec::new();
            message.emit(&mut bytes);
            bytes.len()
        });
        assert_eq!(longest.max(), Some(MESSAGE_BYTES_MAX));
    }

    #[test]
    fn nobody_is_told_more_than_the_longest_message_has() {
        assert_eq!(read(&mut Inbox::default(), &[TELL, 4, 1], 3), Err(Malformed));
        assert_eq!(read(&mut Inbox::default(), &[TELL, 255, 255], 1), Err(Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, kind in 0..8u8, piece in 1..300usize) {
            let bytes = [&[kind][..], &bytes].concat();
            let _ = read(&mut Inbox::default(), &bytes, piece);
        }
    }
}
