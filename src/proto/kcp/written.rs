//! The bytes that are written and not acknowledged, one after the other, in buffers that they fill. What of them becomes a
//! segment is decided when it is sent, so that its size is that of the path at that moment.

use std::collections::VecDeque;
use std::ops::Range;

use super::buffers::{Buffer, Buffers, Use};

#[derive(Debug)]
pub struct Written {
    /// Those of which all is acknowledged have lost their buffer; of the first something is not.
    chunks: VecDeque<Chunk>,
    /// Number of the first chunk.
    first: u32,
    /// Bytes in the last chunk; nothing more fits in a chunk that has lost its buffer.
    filled: usize,
    /// Where the bytes begin that were never sent, and how many they are.
    unsent_at: (u32, usize),
    unsent: usize,
    /// Bytes that are not acknowledged.
    bytes: usize,
}

#[derive(Debug)]
struct Chunk {
    buffer: Option<Buffer>,
    /// Its bytes that are not acknowledged.
    live: usize,
}

/// What one segment carries: it begins in a chunk, and may go on in those that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    chunk: u32,
    offset: u32,
    pub length: u32,
}

impl Written {
    pub fn new() -> Self {
        Self { chunks: VecDeque::new(), first: 0, filled: 0, unsent_at: (0, 0), unsent: 0, bytes: 0 }
    }

    /// Bytes that are not acknowledged, sent or not.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn unsent(&self) -> usize {
        self.unsent
    }

    /// Takes all of `bytes`, or as many as there are buffers for.
    pub fn write(&mut self, bytes: &[u8], buffers: &mut Buffers) -> usize {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.chunks.is_empty() || self.filled == buffers.buffer_bytes() {
                let Some(buffer) = buffers.take(Use::Write) else { break };
                self.add(buffer);
            }
            let Some(Chunk { buffer: Some(buffer), live }) = self.chunks.back_mut() else { break };
            let space = &mut buffers.bytes_mut(buffer)[self.filled..];
            let (now, later) = rest.split_at(rest.len().min(space.len()));
            space[..now.len()].copy_from_slice(now);
            *live += now.len();
            self.filled += now.len();
            self.unsent += now.len();
            self.bytes += now.len();
            rest = later;
        }
        bytes.len() - rest.len()
    }

    fn add(&mut self, buffer: Buffer) {
        if self.unsent == 0 {
            self.unsent_at = (self.first.wrapping_add(self.chunks.len() as u32), 0);
        }
        self.chunks.push_back(Chunk { buffer: Some(buffer), live: 0 });
        self.filled = 0;
    }

    /// The next bytes to be sent, at most those that were not.
    pub fn cut(&mut self, length: usize, buffers: &Buffers) -> Piece {
        let (chunk, offset) = self.unsent_at;
        let end = offset + length;
        let chunk_bytes = buffers.buffer_bytes();
        self.unsent_at = if end < chunk_bytes {
            (chunk, end)
        } else {
            (chunk.wrapping_add((end / chunk_bytes) as u32), end % chunk_bytes)
        };
        self.unsent -= length;
        Piece { chunk, offset: offset as u32, length: length as u32 }
    }

    pub fn append(&self, piece: Piece, buffers: &Buffers, out: &mut Vec<u8>) {
        for (chunk, range) in self.parts(piece, buffers.buffer_bytes()) {
            if let Some(buffer) = &self.chunks[chunk].buffer {
                out.extend_from_slice(&buffers.bytes(buffer)[range]);
            }
        }
    }

    /// It is never asked for again.
    pub fn forget(&mut self, piece: Piece, buffers: &mut Buffers) {
        for (number, range) in self.parts(piece, buffers.buffer_bytes()) {
            let is_last = number + 1 == self.chunks.len();
            let chunk = &mut self.chunks[number];
            chunk.live -= range.len();
            if chunk.live == 0
                && let Some(buffer) = chunk.buffer.take()
            {
                buffers.give_back(buffer);
                if is_last {
                    self.filled = buffers.buffer_bytes();
                }
            }
        }
        self.bytes -= piece.length as usize;
        while self.chunks.front().is_some_and(|chunk| chunk.buffer.is_none()) {
            self.chunks.pop_front();
            self.first = self.first.wrapping_add(1);
        }
    }

    /// The chunks in which it lies, as indices, and where in them.
    fn parts(&self, piece: Piece, chunk_bytes: usize) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let mut chunk = piece.chunk.wrapping_sub(self.first) as usize;
        let mut begin = piece.offset as usize;
        let mut left = piece.length as usize;
        std::iter::from_fn(move || {
            let length = left.min(chunk_bytes - begin);
            let part = (chunk, begin..begin + length);
            (chunk, begin, left) = (chunk + 1, 0, left - length);
            (length > 0).then_some(part)
        })
    }

    pub fn release(self, buffers: &mut Buffers) {
        self.chunks.into_iter().filter_map(|chunk| chunk.buffer).for_each(|buffer| buffers.give_back(buffer));
    }
}
