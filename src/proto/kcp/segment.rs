//! A segment as it stands in a datagram: 24 bytes of header, little-endian, then its payload. Several follow each other.
//! Source: `ikcp.c` of skywind3000/kcp (`ikcp_encode_seg`, `ikcp_input`).
//!
//! ```text
//! conversation u32 | command u8 | fragment u8 | window u16 | timestamp u32 | number u32 | unacknowledged u32 | length u32
//! ```

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    Push = 81,
    Ack = 82,
    /// "How much room do you have?"
    AskWindow = 83,
    TellWindow = 84,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub conversation: u32,
    pub command: Command,
    /// Fragments of the message that follow this one. We send a stream, where it is 0, and read everything as one.
    pub fragment: u8,
    /// Segments that the sender of this one has room for.
    pub window: u16,
    /// Clock of the sender, ms; an ack brings that of the acknowledged segment back.
    pub timestamp: u32,
    pub number: u32,
    /// Every segment before this one has arrived.
    pub unacknowledged: u32,
    /// Bytes of payload.
    pub length: u32,
}

impl Header {
    #[must_use]
    #[inline]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.conversation.to_le_bytes());
        bytes[4] = self.command as u8;
        bytes[5] = self.fragment;
        bytes[6..8].copy_from_slice(&self.window.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.timestamp.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.unacknowledged.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// The first segment of `datagram` with its payload, and what follows it. `None` for what is no segment.
    #[must_use]
    #[inline]
    pub fn decode(datagram: &[u8]) -> Option<(Self, &[u8], &[u8])> {
        let (head, rest) = datagram.split_first_chunk::<HEADER_BYTES>()?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let header = Self {
            conversation: word(0),
            command: Command::from_byte(head[4])?,
            fragment: head[5],
            window: u16::from_le_bytes([head[6], head[7]]),
            timestamp: word(8),
            number: word(12),
            unacknowledged: word(16),
            length: word(20),
        };
        let (payload, rest) = rest.split_at_checked(usize::try_from(header.length).ok()?)?;
        Some((header, payload, rest))
    }
}

impl Command {
    #[inline]
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Push, Self::Ack, Self::AskWindow, Self::TellWindow].into_iter().find(|command| *command as u8 == byte)
    }
}

/// Whether `a` comes before `b` on the circle of numbers (RFC 1982).
#[must_use]
#[inline]
pub fn is_before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() < 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_stands_as_ikcp_writes_it() {
        let header = Header {
            conversation: 0x0403_0201,
            command: Command::Push,
            fragment: 5,
            window: 0x0706,
            timestamp: 0x0b0a_0908,
            number: 0x0f0e_0d0c,
            unacknowledged: 0x1312_1110,
            length: 2,
        };
        let bytes = [1, 2, 3, 4, 81, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 2, 0, 0, 0];
        assert_eq!(header.encode(), bytes);
        let datagram = [&bytes[..], b"abc"].concat();
        assert_eq!(Header::decode(&datagram), Some((header, &b"ab"[..], &b"c"[..])));
    }

    #[test]
    fn numbers_are_compared_across_the_wrap() {
        for (a, b) in [(0, 1), (u32::MAX, 0), (i32::MAX as u32, 1 << 31), (5, 5 + i32::MAX as u32)] {
            assert!(is_before(a, b) && !is_before(b, a), "{a} {b}");
        }
        assert!(!is_before(7, 7));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_what_decodes_encodes_to_the_same(bytes: Vec<u8>, command in 80..86u8) {
            let mut bytes = bytes;
            if let Some(at) = bytes.get_mut(4) {
                *at = command;
            }
            if let Some((header, payload, rest)) = Header::decode(&bytes) {
                prop_assert_eq!([&header.encode()[..], payload, rest].concat(), bytes);
            }
        }
    }
}
