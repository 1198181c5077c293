//! The stream of all streams, compressed: snappy's framing format, each write a chunk of its own.
//! Source: `framing_format.txt` of google/snappy.
//!
//! ```text
//! chunk: type u8 | length u24, little-endian | body
//! 0x00 compressed, 0x01 not compressed: body = checksum u32 | data, which has at most 65,536 bytes once uncompressed
//! 0xff begins the stream: body = "sNaPpY"; 0x80 to 0xfe: to be skipped; the others are reserved
//! ```

use snap::raw;

const COMPRESSED: u8 = 0x00;
const UNCOMPRESSED: u8 = 0x01;
const BEGIN: u8 = 0xff;
const SKIPPED: std::ops::RangeInclusive<u8> = 0x80..=0xfe;

const STREAM_BEGIN: [u8; 10] = *b"\xff\x06\x00\x00sNaPpY";
const HEADER_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 4;
/// Data in a chunk, uncompressed.
const DATA_BYTES_MAX: usize = 65_536;
/// Body of a chunk of data: what the block format can make of that many bytes at worst, and the checksum.
const BODY_BYTES_MAX: usize = CHECKSUM_BYTES + 32 + DATA_BYTES_MAX + DATA_BYTES_MAX / 6;

/// Bytes that are no snappy, or data that does not match its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbled;

pub struct Compressor {
    snappy: raw::Encoder,
    begun: bool,
    /// Has room for the largest chunk.
    block: Vec<u8>,
}

impl Compressor {
    #[must_use]
    pub fn new() -> Self {
        Self { snappy: raw::Encoder::new(), begun: false, block: Vec::new() }
    }

    /// Appends `data` as chunks that can be read as soon as they arrive.
    pub fn write(&mut self, data: &[u8], out: &mut Vec<u8>) {
        if !self.begun {
            self.begun = true;
            out.extend_from_slice(&STREAM_BEGIN);
        }
        data.chunks(DATA_BYTES_MAX).for_each(|piece| self.write_chunk(piece, out));
    }

    /// Data that does not get shorter by an eighth stays as it is.
    fn write_chunk(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        self.block.resize(raw::max_compress_len(piece.len()), 0);
        let compressed = self.snappy.compress(piece, &mut self.block).ok().map(|length| &self.block[..length]);
        let (kind, body) = match compressed {
            Some(compressed) if compressed.len() < piece.len() - piece.len() / 8 => (COMPRESSED, compressed),
            _ => (UNCOMPRESSED, piece),
        };
        let length = (CHECKSUM_BYTES + body.len()) as u32; // At most 65,540.
        out.push(kind);
        out.extend_from_slice(&length.to_le_bytes()[..3]);
        out.extend_from_slice(&checksum(piece));
        out.extend_from_slice(body);
    }
}

/// CRC-32C, masked as the format wants it.
fn checksum(data: &[u8]) -> [u8; CHECKSUM_BYTES] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Takes bytes as they come, and keeps one chunk at a time.
pub struct Decompressor {
    snappy: raw::Decoder,
    begun: bool,
    /// The chunk that has not arrived whole, header included.
    chunk: Vec<u8>,
    /// Bytes still to come of one that is skipped.
    skip: usize,
    /// The data of the last chunk, read up to `read`.
    data: Vec<u8>,
    read: usize,
}

impl Decompressor {
    #[must_use]
    pub fn new() -> Self {
        let snappy = raw::Decoder::new();
        Self { snappy, begun: false, chunk: Vec::new(), skip: 0, data: Vec::new(), read: 0 }
    }

    /// What can be read. As long as there is something, nothing more is taken.
    #[must_use]
    pub fn readable(&self) -> &[u8] {
        &self.data[self.read..]
    }

    /// Counts the first `bytes` of what is readable as read.
    pub fn consume(&mut self, bytes: usize) {
        self.read += bytes;
    }

    /// Takes bytes up to the end of the next chunk with data, and says how many.
    ///
    /// # Errors
    /// When they do not make sense. Nothing may be taken after that.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, Garbled> {
        let mut taken = 0;
        while taken < bytes.len() && self.readable().is_empty() {
            taken += self.take_some(&bytes[taken..])?;
        }
        Ok(taken)
    }

    /// Of at least one byte takes at least one.
    fn take_some(&mut self, bytes: &[u8]) -> Result<usize, Garbled> {
        if self.skip > 0 {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            return Ok(skipped);
        }
        let wanted = match self.body_bytes() {
            Some(body) => HEADER_BYTES + body,
            None => HEADER_BYTES,
        };
        let piece = &bytes[..bytes.len().min(wanted - self.chunk.len())];
        self.chunk.extend_from_slice(piece);
        if self.chunk.len() == HEADER_BYTES {
            self.judge_header()?;
        }
        if self.body_bytes().is_some_and(|body| self.chunk.len() == HEADER_BYTES + body) {
            self.open()?;
            self.chunk.clear();
        }
        Ok(piece.len())
    }

    fn body_bytes(&self) -> Option<usize> {
        let (header, _) = self.chunk.split_first_chunk::<HEADER_BYTES>()?;
        Some(u32::from_le_bytes([header[1], header[2], header[3], 0]) as usize)
    }

    /// Before room is made for a body.
    fn judge_header(&mut self) -> Result<(), Garbled> {
        let body = self.body_bytes().unwrap_or(0);
        match self.chunk[0] {
            BEGIN if body + HEADER_BYTES == STREAM_BEGIN.len() => Ok(()),
            COMPRESSED | UNCOMPRESSED if self.begun && (CHECKSUM_BYTES..=BODY_BYTES_MAX).contains(&body) => Ok(()),
            kind if self.begun && SKIPPED.contains(&kind) => {
                self.skip = body;
                self.chunk.clear();
                Ok(())
            }
            _ => Err(Garbled),
        }
    }

    /// The chunk is whole.
    fn open(&mut self) -> Result<(), Garbled> {
        let (kind, body) = (self.chunk[0], &self.chunk[HEADER_BYTES..]);
        if kind == BEGIN {
            self.begun = true;
            return if self.chunk == STREAM_BEGIN { Ok(()) } else { Err(Garbled) };
        }
        let (sum, body) = body.split_first_chunk::<CHECKSUM_BYTES>().ok_or(Garbled)?;
        let length = match kind {
            COMPRESSED => raw::decompress_len(body).map_err(|_| Garbled)?,
            _ => body.len(),
        };
        if length > DATA_BYTES_MAX {
            return Err(Garbled);
        }
        self.read = 0;
        self.data.resize(length, 0);
        if kind == COMPRESSED {
            self.snappy.decompress(body, &mut self.data).map_err(|_| Garbled)?;
        } else {
            self.data.copy_from_slice(body);
        }
        if checksum(&self.data) == *sum { Ok(()) } else { Err(Garbled) }
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor(..)")
    }
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decompressor(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use proptest::prelude::*;

    use super::*;

    fn compressed(pieces: &[&[u8]]) -> Vec<u8> {
        let (mut compressor, mut out) = (Compressor::new(), Vec::new());
        pieces.iter().for_each(|piece| compressor.write(piece, &mut out));
        out
    }

    /// In pieces of at most `step` bytes.
    fn decompressed(bytes: &[u8], step: usize) -> Result<Vec<u8>, Garbled> {
        let (mut decompressor, mut out) = (Decompressor::new(), Vec::new());
        for piece in bytes.chunks(step) {
            let mut taken = 0;
            while taken < piece.len() {
                taken += decompressor.take(&piece[taken..])?;
                let length = decompressor.readable().len();
                out.extend_from_slice(decompressor.readable());
                decompressor.consume(length);
            }
        }
        Ok(out)
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(length)
        .collect()
    }

    #[test]
    fn the_other_implementation_reads_what_we_write() {
        let pieces = [&b"hello"[..], &[7; 200_000], &noise(100_000), b"."];
        let mut read = Vec::new();
        snap::read::FrameDecoder::new(&compressed(&pieces)[..]).read_to_end(&mut read).expect("it is valid");
        assert_eq!(read, pieces.concat());
    }

    #[test]
    fn we_read_what_the_other_implementation_writes_however_it_is_cut() {
        let data = [&[7; 100_000][..], &noise(70_000)].concat();
        let mut writer = snap::write::FrameEncoder::new(Vec::new());
        writer.write_all(&data).and_then(|()| writer.flush()).expect("memory takes all");
        let bytes = writer.into_inner().expect("it is flushed");
        for step in [1, 7, 1300, usize::MAX] {
            assert!(decompressed(&bytes, step) == Ok(data.clone()), "in pieces of {step}");
        }
    }

    #[test]
    fn chunks_to_be_skipped_are_skipped_without_being_kept() {
        let mut bytes = compressed(&[b"a"]);
        bytes.extend([0xfe, 0, 0, 0x10]); // 1 MiB
        let mut decompressor = Decompressor::new();
        assert_eq!(decompressor.take(&bytes), Ok(bytes.len() - 4));
        decompressor.consume(1);
        assert_eq!(decompressor.take(&bytes[bytes.len() - 4..]), Ok(4));
        assert_eq!(decompressor.take(&vec![9; 1 << 20]), Ok(1 << 20));
        assert!(decompressor.chunk.is_empty());
        let rest = compressed(&[b"b"]);
        assert_eq!(decompressor.take(&rest), Ok(rest.len()));
        assert_eq!(decompressor.readable(), b"b");
    }

    #[test]
    fn what_is_no_snappy_is_refused() {
        let good = compressed(&[b"hello"]);
        let wrong_sum = {
            let mut bytes = good.clone();
            bytes[14] ^= 1;
            bytes
        };
        let reserved = [&STREAM_BEGIN[..], &[2, 1, 0, 0, 0]].concat();
        let too_long = [&STREAM_BEGIN[..], &[0, 0xff, 0xff, 0xff]].concat();
        // A block that says to be 1 MiB long.
        let bomb = [&STREAM_BEGIN[..], &[0, 7, 0, 0, 1, 2, 3, 4, 0x80, 0x80, 0x40]].concat();
        for bytes in [&good[10..], &wrong_sum, &reserved, &too_long, &bomb, b"\xff\x06\x00\x00sNaPpy"] {
            assert_eq!(decompressed(bytes, usize::MAX), Err(Garbled), "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_keep_more_than_a_chunk(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            kind in 0..4u8,
        ) {
            let mut decompressor = Decompressor::new();
            let start = [&STREAM_BEGIN[..], &[kind, bytes.len() as u8, 0, 0], &bytes].concat();
            if decompressor.take(&start).is_ok() {
                prop_assert!(decompressor.chunk.len() <= HEADER_BYTES + BODY_BYTES_MAX);
                prop_assert!(decompressor.data.len() <= DATA_BYTES_MAX);
            }
        }
    }
}
