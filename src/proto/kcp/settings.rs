//! What a conversation may cost, and how soon it loses patience.

#[derive(Clone, Debug)]
pub struct Settings {
    /// Payload of a full segment in bytes; no more than a buffer holds. Default 1,298: a datagram of 1,350 less 24 of header
    /// and 28 of encryption.
    pub segment_bytes: usize,
    /// Segments written and not acknowledged, sent or not. Default 4,096.
    pub send_window: u16,
    /// Segments arrived and not read, at first. Default 4,096.
    pub receive_window: u16,
    /// How long the acknowledgement of what arrived in its turn may wait for something to travel with, in µs. Default 0: it
    /// leaves at once. What arrives above a gap, or closes one, is always acknowledged at once.
    pub ack_delay_us: u64,
    /// The same for what had arrived before. Default 20 ms: mostly the peer repeated it to be on the safe side and knows by
    /// now; and an answer to each repeat, which brings repeats of its own, would be answered again.
    pub duplicate_ack_delay_us: u64,
    /// Bytes written and not acknowledged, at first. Default 256 KiB: one stream of many in a tunnel.
    pub send_bytes: usize,
    /// Time-out before the first round trip is known. Default 200 ms, as in `ikcp.c`; a tunnel knows better.
    pub rto_first_us: u64,
    /// What a time-out allows beyond the smoothed round trip, at least; else four times its variation. Default 4 ms.
    pub rto_margin_us: u64,
    /// Bounds of a time-out, above 0. Default 10 ms and 1 s.
    pub rto_min_us: u64,
    pub rto_max_us: u64,
    /// A time-out in percent of the one before it, which was missed. Default 150.
    pub backoff_percent: u64,
    pub overtaken: Overtaken,
}

/// When a segment is lost because a later one has been acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overtaken {
    /// The later one left this much later, in µs. Becomes a quarter of the round trip when that was wrong, and half of that
    /// after every 8 losses that were none of that kind. Default 1 ms.
    ByTime(u64),
    /// The later one left that many transmissions later.
    ByCount(u64),
}

/// The ways of kcptun, by its names: from patient to greedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Normal,
    Fast,
    Fast2,
    Fast3,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            segment_bytes: 1298,
            send_window: 4096,
            receive_window: 4096,
            ack_delay_us: 0,
            duplicate_ack_delay_us: 20_000,
            send_bytes: 256 << 10,
            rto_first_us: 200_000,
            rto_margin_us: 4_000,
            rto_min_us: 10_000,
            rto_max_us: 1_000_000,
            backoff_percent: 150,
            overtaken: Overtaken::ByTime(1_000),
        }
    }
}

impl Settings {
    /// The numbers of kcptun. Its interval, at which it looks at its timers, is what a time-out allows beyond the round trip; we
    /// look when there is something to see.
    #[must_use]
    pub fn kcptun(mode: Mode) -> Self {
        let (rto_min_ms, interval_ms, backoff_percent) = match mode {
            Mode::Normal => (100, 40, 200),
            Mode::Fast => (100, 30, 200),
            Mode::Fast2 => (30, 20, 150),
            Mode::Fast3 => (30, 10, 150),
        };
        Self {
            rto_margin_us: interval_ms * 1_000,
            rto_min_us: rto_min_ms * 1_000,
            rto_max_us: 60_000_000,
            backoff_percent,
            overtaken: Overtaken::ByCount(2),
            ..Self::default()
        }
    }
}
