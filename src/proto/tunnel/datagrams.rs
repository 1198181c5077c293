//! Datagrams of players that wait: to be sent, or to be read.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::frames::Datagram;

/// What waits at most, in bytes and in datagrams; the oldest goes first. Half a second of 8 Mbit/s, which is far more than a game
/// sends; what waits longer is worth nothing to it.
const BYTES_MAX: usize = 512 << 10;
const COUNT_MAX: usize = 4096;

/// From where, and to where, a datagram of a player travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramInfo {
    /// The player, as the visitor counts them; answers carry the same.
    pub session: u32,
    /// Of the service.
    pub port: u8,
    /// The player's address, where the service wants to know it.
    pub player: Option<SocketAddr>,
}

/// In order, their bytes one after the other.
#[derive(Debug, Default)]
pub struct Queue {
    heads: VecDeque<(DatagramInfo, u16)>,
    bytes: VecDeque<u8>,
    pub dropped: u64,
}

impl Queue {
    /// Drops the oldest that are in its way.
    pub fn push(&mut self, info: DatagramInfo, bytes: &[u8]) {
        let Ok(length) = u16::try_from(bytes.len()) else { return };
        while self.heads.len() >= COUNT_MAX || self.bytes.len() + bytes.len() > BYTES_MAX {
            self.pop();
            self.dropped += 1;
        }
        self.heads.push_back((info, length));
        self.bytes.extend(bytes);
    }

    /// Bytes of the frame that the first would make.
    pub fn frame_bytes(&self) -> Option<usize> {
        self.heads.front().map(|(info, length)| Datagram::frame_bytes(usize::from(*length), info.player))
    }

    /// Moves the first, as a frame, to the end of `out`.
    pub fn pop_frame(&mut self, out: &mut Vec<u8>) {
        if let Some((DatagramInfo { session, port, player }, length)) = self.heads.front() {
            Datagram::emit_head(*session, *port, *player, *length, out);
            self.pop_bytes(out);
        }
    }

    /// Moves the bytes of the first to the end of `out`.
    pub fn pop_bytes(&mut self, out: &mut Vec<u8>) -> Option<DatagramInfo> {
        let (info, length) = *self.heads.front()?;
        let (head, tail) = self.bytes.as_slices();
        let in_head = head.len().min(usize::from(length));
        out.extend_from_slice(&head[..in_head]);
        out.extend_from_slice(&tail[..usize::from(length) - in_head]);
        self.pop();
        Some(info)
    }

    fn pop(&mut self) {
        if let Some((_, length)) = self.heads.pop_front() {
            self.bytes.drain(..usize::from(length));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::{Frame, Frames};
    use super::*;

    fn info(session: u32) -> DatagramInfo {
        DatagramInfo { session, port: 3, player: None }
    }

    #[test]
    fn datagrams_leave_in_their_order_and_with_their_borders() {
        let mut queue = Queue::default();
        let lengths = [0, 1, 65_535, 7, 40_000, 0];
        for (session, length) in (0..).zip(lengths) {
            queue.push(info(session), &vec![session as u8; length]);
        }
        for (session, length) in (0..).zip(lengths) {
            assert_eq!(queue.frame_bytes(), Some(8 + length));
            let mut bytes = Vec::new();
            assert_eq!(queue.pop_bytes(&mut bytes), Some(info(session)));
            assert_eq!(bytes, vec![session as u8; length]);
        }
        assert_eq!(queue.frame_bytes(), None);
    }

    #[test]
    fn of_too_many_the_oldest_go() {
        for (length, kept) in [(1000, BYTES_MAX / 1000), (0, COUNT_MAX)] {
            let mut queue = Queue::default();
            (0..10_000).for_each(|session| queue.push(info(session), &vec![1; length]));
            let mut sessions = Vec::new();
            while let Some(info) = queue.pop_bytes(&mut Vec::new()) {
                sessions.push(info.session);
            }
            assert_eq!(sessions, (10_000 - kept as u32..10_000).collect::<Vec<_>>());
            assert_eq!(queue.dropped, 10_000 - kept as u64);
        }
    }

    #[test]
    fn a_datagram_becomes_a_frame() {
        let mut queue = Queue::default();
        let player = "203.0.113.7:4242".parse().ok();
        queue.push(DatagramInfo { player, ..info(9) }, b"abc");
        let expected = queue.frame_bytes();
        let mut packet = Vec::new();
        queue.pop_frame(&mut packet);
        assert_eq!(Some(packet.len()), expected);
        let frames: Vec<_> = Frames::of(&packet).collect();
        assert_eq!(frames, [Ok(Frame::Datagram(Datagram { session: 9, port: 3, player, bytes: b"abc" }))]);
    }
}
