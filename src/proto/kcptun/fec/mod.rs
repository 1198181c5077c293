//! Forward error correction: after so many packets of data follow so many of parity, and any that many of a group bring all
//! its data back. Source: `fec.go` of xtaci/kcp-go.
//!
//! ```text
//! number u32 | type u16 (0xf1 data, 0xf2 parity) | shard, little-endian
//! shard of data: size u16, itself included | payload
//! ```
//!
//! Numbers count packets of both types, a group begins with a multiple of its length, and they begin again at 0 after the last
//! whole group. Shards count as if filled up with zeros to the longest of their group, which is the length of its parity.

mod decoder;
mod encoder;
mod shape;

pub use decoder::Decoder;
pub use encoder::Encoder;
pub use shape::Shape;

/// In front of a shard.
const HEADER_BYTES: usize = 6;
/// In front of a shard's payload.
const SIZE_BYTES: usize = 2;
/// In front of what travels in a packet of data.
pub const DATA_HEADER_BYTES: usize = HEADER_BYTES + SIZE_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Kind {
    Data = 0xf1,
    Parity = 0xf2,
}

#[derive(Clone, Copy, Debug)]
struct Packet<'a> {
    number: u32,
    kind: Kind,
    shard: &'a [u8],
}

impl<'a> Packet<'a> {
    /// `None` for what is no packet of either type: a segment of KCP has its command where the type is.
    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (header, shard) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let kind = match u16::from_le_bytes([header[4], header[5]]) {
            0xf1 => Kind::Data,
            0xf2 => Kind::Parity,
            _ => return None,
        };
        let number = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        (shard.len() > SIZE_BYTES).then_some(Self { number, kind, shard })
    }
}

fn header(number: u32, kind: Kind) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&number.to_le_bytes());
    header[4..].copy_from_slice(&(kind as u16).to_le_bytes());
    header
}

/// What a packet carries for KCP, if it is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// It has no FEC around it.
    Plain(&'a [u8]),
    Data(&'a [u8]),
    Parity,
}

/// Looks into a packet without taking it.
#[must_use]
pub fn content(bytes: &[u8]) -> Content<'_> {
    match Packet::decode(bytes) {
        Some(Packet { kind: Kind::Data, shard, .. }) => Content::Data(&shard[SIZE_BYTES..]),
        Some(Packet { kind: Kind::Parity, .. }) => Content::Parity,
        None => Content::Plain(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_stands_as_kcp_go_writes_it() {
        let bytes = [&header(0x0403_0201, Kind::Data)[..], &[9, 9, 7]].concat();
        assert_eq!(bytes, [1, 2, 3, 4, 0xf1, 0, 9, 9, 7]);
        assert_eq!(content(&bytes), Content::Data(&[7]));
        assert_eq!(content(&[&header(1, Kind::Parity)[..], &[9, 9, 7]].concat()), Content::Parity);
        let segment = [1, 2, 3, 4, 81, 0, 0, 0, 0];
        assert_eq!(content(&segment), Content::Plain(&segment));
    }
}
