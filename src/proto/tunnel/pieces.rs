//! Frames that are too long for one packet: a long datagram, or a segment that was cut when the path still carried more. They
//! travel in pieces, and when one is lost the frame is.

use super::frames::{Frame, PIECE_HEAD, Piece};
use super::mtu::MTU_MIN;
use super::wire::OVERHEAD_BYTES;

/// Pieces of a frame. At 1,164 bytes a piece, 64 carry the longest datagram.
const COUNT_MAX: usize = 64;

/// Bytes of a piece: the longest packet that is ever tried has fewer.
const PIECE_BYTES_MAX: usize = 1452;

/// The longest frame that certainly can be sent.
pub const FRAME_BYTES_MAX: usize = COUNT_MAX * (MTU_MIN - OVERHEAD_BYTES - PIECE_HEAD - 1);

/// Frames that are put together at the same time; the oldest is given up for another. Few come in pieces, and their pieces
/// together.
const MESSAGES_MAX: usize = 8;

/// A frame that is not complete by then will not be, in µs; long before the numbers of messages come round.
const PATIENCE_US: u64 = 2_000_000;

/// Cuts one frame at a time.
#[derive(Debug, Default)]
pub struct Splitter {
    frame: Vec<u8>,
    message: u16,
    piece_bytes: usize,
    next: usize,
}

impl Splitter {
    pub fn is_empty(&self) -> bool {
        self.next == self.count()
    }

    /// Takes the frame that `write` appends, for packets with room for `room` bytes of frames. What was there must have left.
    /// A frame that takes more pieces than there may be is dropped.
    pub fn begin(&mut self, room: usize, write: impl FnOnce(&mut Vec<u8>)) {
        debug_assert!(self.is_empty() && room > PIECE_HEAD + 1);
        self.frame.clear();
        write(&mut self.frame);
        self.message = self.message.wrapping_add(1);
        self.piece_bytes = (room - PIECE_HEAD - 1).min(PIECE_BYTES_MAX);
        self.next = 0;
        if self.count() > COUNT_MAX {
            self.frame.clear();
        }
    }

    fn count(&self) -> usize {
        self.frame.len().div_ceil(self.piece_bytes.max(1))
    }

    /// Appends the next piece, if there is one and it fits.
    pub fn write(&mut self, room: usize, out: &mut Vec<u8>) -> bool {
        let count = self.count();
        let from = self.next * self.piece_bytes;
        let bytes = &self.frame[from.min(self.frame.len())..self.frame.len().min(from + self.piece_bytes)];
        if self.next == count || room < 1 + PIECE_HEAD + bytes.len() {
            return false;
        }
        let (index, count) = (self.next as u8, count as u8); // At most COUNT_MAX.
        Frame::Piece(Piece { message: self.message, index, count, bytes }).emit(out);
        self.next += 1;
        true
    }
}

/// Puts frames together again.
#[derive(Debug, Default)]
pub struct Reassembly {
    messages: Vec<Message>,
}

#[derive(Debug)]
struct Message {
    message: u16,
    count: u8,
    begun: u64,
    /// One bit for each piece that is here.
    present: u64,
    lengths: [u16; COUNT_MAX],
    /// Each piece has room for the longest.
    bytes: Vec<u8>,
}

impl Reassembly {
    /// Appends to `frame` the frame that this piece completes, if it does.
    pub fn take(&mut self, now: u64, piece: &Piece<'_>, frame: &mut Vec<u8>) -> bool {
        if usize::from(piece.count) > COUNT_MAX || piece.bytes.len() > PIECE_BYTES_MAX {
            return false;
        }
        let place = self.place(now, piece);
        let message = &mut self.messages[place];
        message.put(piece);
        if !message.is_complete() {
            return false;
        }
        message.append_to(frame);
        message.present = 0;
        message.begun = 0; // Free, and the first to be used again.
        true
    }

    /// Where this piece belongs.
    fn place(&mut self, now: u64, piece: &Piece<'_>) -> usize {
        let is_same = |message: &Message| {
            let is_alive = message.present != 0 && now < message.begun + PATIENCE_US;
            is_alive && message.message == piece.message && message.count == piece.count
        };
        if let Some(place) = self.messages.iter().position(is_same) {
            return place;
        }
        let place = if self.messages.len() < MESSAGES_MAX {
            self.messages.push(Message::default());
            self.messages.len() - 1
        } else {
            let oldest = (0..MESSAGES_MAX).min_by_key(|place| self.messages[*place].begun);
            oldest.unwrap_or(0)
        };
        self.messages[place].begin(now, piece);
        place
    }
}

impl Default for Message {
    fn default() -> Self {
        Self { message: 0, count: 0, begun: 0, present: 0, lengths: [0; COUNT_MAX], bytes: Vec::new() }
    }
}

impl Message {
    fn begin(&mut self, now: u64, piece: &Piece<'_>) {
        (self.message, self.count, self.begun, self.present) = (piece.message, piece.count, now, 0);
        let bytes = usize::from(piece.count) * PIECE_BYTES_MAX;
        if self.bytes.len() < bytes {
            self.bytes.resize(bytes, 0);
        }
    }

    fn put(&mut self, piece: &Piece<'_>) {
        let index = usize::from(piece.index);
        self.bytes[index * PIECE_BYTES_MAX..][..piece.bytes.len()].copy_from_slice(piece.bytes);
        self.lengths[index] = piece.bytes.len() as u16;
        self.present |= 1 << index;
    }

    fn is_complete(&self) -> bool {
        self.present.count_ones() == u32::from(self.count)
    }

    fn append_to(&self, frame: &mut Vec<u8>) {
        for index in 0..usize::from(self.count) {
            frame.extend_from_slice(&self.bytes[index * PIECE_BYTES_MAX..][..usize::from(self.lengths[index])]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::Frames;
    use super::*;

    const ROOM: usize = 1172;

    /// The pieces of a frame, each in a packet of its own.
    fn cut(splitter: &mut Splitter, frame: &[u8]) -> Vec<Vec<u8>> {
        splitter.begin(ROOM, |out| out.extend_from_slice(frame));
        let mut packets = Vec::new();
        loop {
            let mut packet = Vec::new();
            if !splitter.write(ROOM, &mut packet) {
                assert!(splitter.is_empty());
                return packets;
            }
            assert!(packet.len() <= ROOM);
            packets.push(packet);
        }
    }

    fn join(reassembly: &mut Reassembly, now: u64, packet: &[u8]) -> Option<Vec<u8>> {
        let Some(Ok(Frame::Piece(piece))) = Frames::of(packet).next() else { panic!("a piece") };
        let mut frame = Vec::new();
        reassembly.take(now, &piece, &mut frame).then_some(frame)
    }

    #[test]
    fn a_frame_is_put_together_of_its_pieces_in_any_order() {
        let (mut splitter, mut reassembly) = (Splitter::default(), Reassembly::default());
        for length in [1, 1163, 1164, 1165, 5000, 65_562] {
            let frame: Vec<u8> = (0..length).map(|at| (at * 7 / 3) as u8).collect();
            let mut packets = cut(&mut splitter, &frame);
            packets.reverse();
            packets.rotate_left(1);
            let last = packets.pop().expect("it has a piece");
            for packet in &packets {
                assert_eq!(join(&mut reassembly, 0, packet), None);
                assert_eq!(join(&mut reassembly, 0, packet), None, "again");
            }
            assert_eq!(join(&mut reassembly, 0, &last), Some(frame), "{length} bytes");
        }
        assert_eq!(cut(&mut splitter, &vec![0; COUNT_MAX * 1164 + 1]), [] as [Vec<u8>; 0]);
    }

    #[test]
    fn a_few_incomplete_frames_are_kept_and_none_for_long() {
        let (mut splitter, mut reassembly) = (Splitter::default(), Reassembly::default());
        let packets: Vec<_> = (0..20).map(|frame| cut(&mut splitter, &[frame; 2000])).collect();
        for (now, packet) in packets.iter().enumerate() {
            assert_eq!(join(&mut reassembly, now as u64, &packet[0]), None);
        }
        assert_eq!(reassembly.messages.len(), MESSAGES_MAX);
        assert_eq!(join(&mut reassembly, 20, &packets[19][1]), Some(vec![19; 2000]));
        assert_eq!(join(&mut reassembly, 20, &packets[0][1]), None, "its other half is forgotten");
        assert_eq!(join(&mut reassembly, 18 + PATIENCE_US, &packets[18][1]), None, "too late");
    }

    #[test]
    fn pieces_that_contradict_each_other_are_survived() {
        let mut reassembly = Reassembly::default();
        for (index, count, length) in [(0, 2, 10), (1, 3, 10), (63, 64, 1452), (64, 65, 1), (0, 64, 1453), (1, 2, 0)] {
            let bytes = vec![0; length];
            let piece = Piece { message: 1, index, count, bytes: &bytes };
            reassembly.take(0, &piece, &mut Vec::new());
        }
    }
}
