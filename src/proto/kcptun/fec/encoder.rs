//! Puts packets into groups and makes their parity.

use reed_solomon_erasure::galois_8::ReedSolomon;

use super::{DATA_HEADER_BYTES, HEADER_BYTES, Kind, Shape, header};

#[derive(Debug)]
pub struct Encoder {
    shape: Shape,
    code: ReedSolomon,
    number: u32,
    /// Shards of the group that is being filled, the first `filled` of them; all have room for a packet.
    data: Vec<Vec<u8>>,
    filled: usize,
    /// Those of parity, of which `parity_left` have to be sent.
    parity: Vec<Vec<u8>>,
    parity_left: usize,
}

impl Encoder {
    /// # Panics
    /// When the shape is not possible.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let (data, parity) = (usize::from(shape.data), usize::from(shape.parity));
        Self {
            shape,
            code: ReedSolomon::new(data, parity).expect("a possible shape"),
            number: 0,
            data: vec![Vec::new(); data],
            filled: 0,
            parity: vec![Vec::new(); parity],
            parity_left: 0,
        }
    }

    /// Writes the header of a packet of data, whose payload stands behind the room for it.
    pub fn mark(&mut self, packet: &mut [u8]) {
        let size = (packet.len() - HEADER_BYTES) as u16; // A packet has at most 1,500 bytes.
        packet[..HEADER_BYTES].copy_from_slice(&header(self.number, Kind::Data));
        packet[HEADER_BYTES..DATA_HEADER_BYTES].copy_from_slice(&size.to_le_bytes());
        self.number = self.number.wrapping_add(1);
        let shard = &mut self.data[self.filled];
        shard.clear();
        shard.extend_from_slice(&packet[HEADER_BYTES..]);
        self.filled += 1;
        if self.filled == self.data.len() {
            self.make_parity();
        }
    }

    fn make_parity(&mut self) {
        let longest = self.data.iter().map(Vec::len).max().unwrap_or(0);
        self.data.iter_mut().chain(&mut self.parity).for_each(|shard| shard.resize(longest, 0));
        self.code.encode_sep(&self.data, &mut self.parity).expect("as many shards as it was made for, of one length");
        self.filled = 0;
        self.parity_left = self.parity.len();
    }

    /// Packets of parity that have to be sent before the next of data.
    #[must_use]
    pub fn owes_parity(&self) -> bool {
        self.parity_left > 0
    }

    /// Appends the next packet of parity, and says whether there was one.
    pub fn write_parity(&mut self, out: &mut Vec<u8>) -> bool {
        if !self.owes_parity() {
            return false;
        }
        out.extend_from_slice(&header(self.number, Kind::Parity));
        out.extend_from_slice(&self.parity[self.parity.len() - self.parity_left]);
        self.parity_left -= 1;
        let numbers = u32::MAX / self.shape.packets() * self.shape.packets();
        self.number = (self.number + 1) % numbers;
        true
    }

    #[cfg(test)]
    pub fn starting_at(mut self, number: u32) -> Self {
        self.number = number;
        self
    }
}
