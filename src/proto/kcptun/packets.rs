//! From a packet to the segments in it, and back: encryption and error correction.
//!
//! A server sends parity once it is certain how its client does that, and then does it in the same way. kcp-go trusts in a shape
//! that it was told before it notices that another is used, and takes what comes of that for packets: such a session ends.

use super::crypt::{Key, Random};
use super::fec::{self, Content, DATA_HEADER_BYTES, Decoder, Encoder, Shape};

#[derive(Debug)]
pub struct Packets {
    key: Key,
    nonces: Random,
    correction: Correction,
    encoder: Option<Encoder>,
    decoder: Decoder,
    pub counters: Counters,
}

/// How we send parity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Correction {
    Never,
    Of(Shape),
    /// As the peer does, probably so.
    Following(Shape),
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets and their bytes, without headers of UDP and IP.
    pub sent_packets: u64,
    pub sent_bytes: u64,
    pub received_packets: u64,
    pub received_bytes: u64,
    /// Packets that were not sealed with our key, or damaged. An endpoint counts them for all sessions together.
    pub checksum_errors: u64,
    /// Packets, or what parity made of them, that were not of this conversation.
    pub refused: u64,
    /// Packets of parity that came.
    pub parity: u64,
    /// Packets that did not come in time, and were brought back by parity.
    pub recovered: u64,
}

impl Packets {
    pub fn new(key: Key, seed: [u8; 32], correction: Correction) -> Self {
        let (ours, theirs) = match correction {
            Correction::Never => (None, None),
            Correction::Of(shape) => (Some(shape), Some(shape)),
            Correction::Following(shape) => (None, Some(shape)),
        };
        Self {
            key,
            nonces: Random::new(seed),
            correction,
            encoder: ours.map(Encoder::new),
            decoder: Decoder::new(theirs),
            counters: Counters::default(),
        }
    }

    /// Opens a packet where it lies.
    pub fn open<'a>(&mut self, packet: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let payload = self.key.open(packet);
        self.counters.checksum_errors += u64::from(payload.is_none());
        payload
    }

    /// Hands the segments of an opened packet to `take`, and those that it brings back; `take` says whether it knew them.
    pub fn receive(&mut self, payload: &[u8], bytes: usize, mut take: impl FnMut(&[u8]) -> bool) {
        let Self { decoder, counters, .. } = self;
        counters.received_packets += 1;
        counters.received_bytes += bytes as u64;
        match fec::content(payload) {
            Content::Plain(segments) | Content::Data(segments) => counters.refused += u64::from(!take(segments)),
            Content::Parity => counters.parity += 1,
        }
        decoder.take(payload, |segments| {
            counters.recovered += 1;
            counters.refused += u64::from(!take(segments));
        });
        if let (Correction::Following(_), None) = (self.correction, &self.encoder) {
            self.encoder = self.decoder.proven_shape().map(Encoder::new);
        }
    }

    /// Bytes of a packet in front of the segments, at most.
    pub fn overhead(&self) -> usize {
        self.key.header_bytes() + if self.correction == Correction::Never { 0 } else { DATA_HEADER_BYTES }
    }

    pub fn owes_parity(&self) -> bool {
        self.encoder.as_ref().is_some_and(Encoder::owes_parity)
    }

    /// Makes the next packet in the empty `packet`: parity if some is due, else what `append` appends. False, and it is empty
    /// again, when there is nothing.
    pub fn make(&mut self, packet: &mut Vec<u8>, append: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let begin = self.key.header_bytes();
        packet.resize(begin, 0);
        if !self.encoder.as_mut().is_some_and(|encoder| encoder.write_parity(packet)) {
            packet.resize(begin + self.encoder.as_ref().map_or(0, |_| DATA_HEADER_BYTES), 0);
            if !append(packet) {
                packet.clear();
                return false;
            }
            if let Some(encoder) = &mut self.encoder {
                encoder.mark(&mut packet[begin..]);
            }
        }
        self.key.seal(self.nonces.nonce(), packet);
        self.counters.sent_packets += 1;
        self.counters.sent_bytes += packet.len() as u64;
        true
    }
}
