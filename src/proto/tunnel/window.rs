//! How much a stream may keep: of what has arrived and is not read, and of what is written and not acknowledged. All streams of
//! a tunnel share its buffers, so each may only have a part of those that are free: readers that have stopped, even many, leave
//! some to the others.

use crate::proto::kcp::Buffers;

/// Segments that may be unread while nothing is known of the reader: a quarter of a megabyte.
const STILL: u16 = 192;

/// And of one that reads a window in a round trip: 8 MB, of which most wait behind a gap. A path of 100 Mbit/s and 150 ms that
/// loses a twentieth needs them, since a loss is mended a round trip later, or two.
const WINDOW_MAX: u16 = 6144;

/// Never less, or the stream would stop for good.
const WINDOW_MIN: u16 = 2;

/// Of the free buffers: for a reader that moves, and for one that does not.
const PART_MOVING: usize = 2;
const PART_STILL: usize = 32;

/// Bytes of bulk written and not acknowledged, at first and at most; and the part of the free buffers that a writer may have,
/// without a reserve that is left to thin streams, itself a part of all.
const BULK_BYTES_FIRST: usize = 256 << 10;
const BULK_BYTES_MAX: usize = 8 << 20;
const PART_BULK: usize = 2;
const PART_RESERVED: usize = 8;

/// What each stream may have written in any case, thin or bulk, in bytes.
const THIN_BYTES: usize = 32 << 10;
const BULK_BYTES_MIN: usize = 8 << 10;

/// A round trip is taken to be at least so long, in µs: time enough for the reader to be woken.
const ROUND_US: u64 = 20_000;

/// How long the acknowledgements of a reader that moves may wait for each other, in µs. At 100 Mbit/s it makes one packet of
/// eight, and it is little beside any round trip that is worth the window.
const ACK_DELAY_US: u64 = 1_000;

/// Of the reading side.
#[derive(Debug)]
pub struct Window {
    segments: u16,
    /// Read since the round began, in bytes.
    read: usize,
    round_ends: u64,
}

impl Window {
    pub fn new() -> Self {
        Self { segments: STILL, read: 0, round_ends: 0 }
    }

    pub const FIRST: u16 = STILL;

    /// It doubles when half of it is read within a round trip.
    pub fn on_read(&mut self, now: u64, bytes: usize, rtt_us: u64, buffers: &Buffers) {
        if now >= self.round_ends {
            (self.read, self.round_ends) = (0, now + rtt_us.max(ROUND_US));
        }
        self.read += bytes;
        if self.read > usize::from(self.segments) * buffers.buffer_bytes() / 2 {
            self.segments = (2 * self.segments).min(WINDOW_MAX);
            self.round_ends = now;
        }
    }

    /// How long acknowledgements may wait for each other, in µs.
    pub fn ack_delay_us(&self) -> u64 {
        if self.segments > STILL { ACK_DELAY_US } else { 0 }
    }

    /// Segments that may be unread now.
    pub fn segments(&mut self, now: u64, unread: usize, buffers: &Buffers) -> u16 {
        let has_stopped = unread > 0 && now > self.round_ends + 10 * ROUND_US;
        if has_stopped {
            self.segments = self.segments.min(STILL);
        }
        let part = if self.segments > STILL { PART_MOVING } else { PART_STILL };
        let share = u16::try_from(buffers.left() / part).unwrap_or(u16::MAX);
        self.segments.min(share.max(WINDOW_MIN))
    }
}

/// Bytes that a stream may have written and not acknowledged, while the path carries `path_bytes`.
pub fn written_max(is_bulk: bool, path_bytes: usize, buffers: &Buffers) -> usize {
    if !is_bulk {
        return THIN_BYTES; // Of which most use next to nothing. One that writes more is bulk.
    }
    let free = buffers.left_to_write().saturating_sub(buffers.most() / PART_RESERVED);
    let share = free / PART_BULK * buffers.buffer_bytes();
    (3 * path_bytes).clamp(BULK_BYTES_FIRST, BULK_BYTES_MAX).min(share.max(BULK_BYTES_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    #[test]
    fn it_grows_for_a_reader_that_takes_a_window_in_a_round_trip() {
        let buffers = Buffers::new(1000, 40_000);
        let mut window = Window::new();
        let mut now = 0;
        while window.segments(now, 0, &buffers) < WINDOW_MAX {
            now += MS;
            window.on_read(now, 10_000, 100 * MS, &buffers);
            assert!(now < 2_000 * MS, "10 MB/s and 100 ms make a megabyte, {} segments", window.segments);
            if window.segments >= 1536 {
                return;
            }
        }
    }

    #[test]
    fn it_stays_small_for_one_that_takes_little() {
        let buffers = Buffers::new(1000, 40_000);
        let mut window = Window::new();
        for now in 0..10_000 {
            window.on_read(now * MS, 500, 100 * MS, &buffers);
        }
        assert_eq!(window.segments(10_000 * MS, 0, &buffers), STILL);
        assert_eq!(window.ack_delay_us(), 0, "games are answered at once");
    }
}
