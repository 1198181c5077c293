//! One direction of a cable: a queue before a transmitter of limited rate, then losses, then a delay.
//!
//! What is lost was transmitted first, so losses cost rate. Queue and transmitter belong to all who use the link.

use super::rng::Rng;

/// Of IP and UDP around each datagram, in bytes: they take their part of the rate, and are counted nowhere else.
pub const IP_UDP_BYTES: usize = 28;

/// How long jitter takes from one value to another, in µs: the order of Wi-Fi's and of queues with cross traffic.
const JITTER_EVERY_US: u64 = 20_000;

/// What a link does to packets. The default does nothing at all, and takes no time for it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub delay_us: u64,
    /// Added to the delay, anything from 0 up to this. It changes within `JITTER_EVERY_US`, and packets stay in order.
    pub jitter_us: u64,
    /// Jitter is each packet's own, so that they overtake each other.
    pub jitter_reorders: bool,
    pub loss: Loss,
    /// Probability that a packet arrives a second time, at a delay of its own.
    pub duplicate: f64,
    /// Probability that a packet is held back for so long, while others overtake it.
    pub reorder: f64,
    pub reorder_us: u64,
    pub bottleneck: Option<Bottleneck>,
    /// Longer datagrams are lost, and nobody is told.
    pub bytes_max: Option<usize>,
    /// Everything is lost.
    pub is_cut: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Loss {
    #[default]
    None,
    /// Each packet with this probability, whatever happened to others.
    Iid(f64),
    /// As Gilbert has it: this part of all packets, in runs of this mean length.
    Bursts { loss: f64, mean_length: f64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bottleneck {
    pub bits_per_second: u64,
    pub buffer: Buffer,
}

/// What fits into the queue; what does not is dropped at its tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// As much as the transmitter sends in that many µs.
    Time(u64),
    Bytes(u64),
}

/// What became of the packets. Bytes are those of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub packets: u64,
    pub bytes: u64,
    pub delivered: u64,
    pub delivered_bytes: u64,
    pub lost: u64,
    /// At the queue's end.
    pub dropped: u64,
    pub duplicated: u64,
    /// That all packets waited for the transmitter, together, in µs, and the one that waited longest.
    pub queued_us: u64,
    pub queued_most_us: u64,
}

#[derive(Debug)]
pub struct Link {
    pub settings: Settings,
    pub stats: Stats,
    rng: Rng,
    /// Until when the transmitter has work, in ns.
    busy_until_ns: u64,
    /// Of what arrives in order: the last arrival.
    last_arrival: u64,
    /// Since when jitter changes, and from what to what.
    jitter: (u64, [u64; 2]),
    in_burst: bool,
}

impl Settings {
    pub fn delayed_ms(delay_ms: u64) -> Self {
        Self { delay_us: delay_ms * 1_000, ..Self::default() }
    }

    pub fn losing(self, loss: Loss) -> Self {
        Self { loss, ..self }
    }

    /// With a drop-tail queue of `buffer_ms`.
    pub fn limited(self, bits_per_second: u64, buffer_ms: u64) -> Self {
        let buffer = Buffer::Time(buffer_ms * 1_000);
        Self { bottleneck: Some(Bottleneck { bits_per_second, buffer }), ..self }
    }
}

impl Stats {
    pub fn mean_queue_us(&self) -> u64 {
        self.queued_us / (self.packets - self.dropped).max(1)
    }

    /// What was counted since `earlier`; the longest wait is of all time.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            packets: self.packets - earlier.packets,
            bytes: self.bytes - earlier.bytes,
            delivered: self.delivered - earlier.delivered,
            delivered_bytes: self.delivered_bytes - earlier.delivered_bytes,
            lost: self.lost - earlier.lost,
            dropped: self.dropped - earlier.dropped,
            duplicated: self.duplicated - earlier.duplicated,
            queued_us: self.queued_us - earlier.queued_us,
            queued_most_us: self.queued_most_us,
        }
    }
}

impl Link {
    pub fn new(settings: Settings, rng: Rng) -> Self {
        Self {
            settings,
            stats: Stats::default(),
            rng,
            busy_until_ns: 0,
            last_arrival: 0,
            jitter: (0, [0; 2]),
            in_burst: false,
        }
    }

    /// Takes a packet at `now`, and tells when it comes out, and when its double does. A packet that is lost never does.
    pub fn carry(&mut self, now: u64, bytes: usize) -> [Option<u64>; 2] {
        self.stats.packets += 1;
        self.stats.bytes += bytes as u64;
        let Some(sent) = self.transmit(now, bytes) else {
            self.stats.dropped += 1;
            return [None, None];
        };
        let is_too_long = self.settings.bytes_max.is_some_and(|most| bytes > most);
        if self.loses() || is_too_long {
            self.stats.lost += 1;
            return [None, None];
        }
        self.stats.delivered += 1;
        self.stats.delivered_bytes += bytes as u64;
        let arrival = self.arrival(sent);
        let double = self.rng.chance(self.settings.duplicate).then(|| self.arrival(sent));
        self.stats.duplicated += u64::from(double.is_some());
        [Some(arrival), double]
    }

    /// When the packet has left the transmitter. `None` when the queue is full.
    fn transmit(&mut self, now: u64, bytes: usize) -> Option<u64> {
        let Some(bottleneck) = self.settings.bottleneck else { return Some(now) };
        let begin_ns = self.busy_until_ns.max(now * 1_000);
        let waits_us = begin_ns / 1_000 - now;
        let is_full = match bottleneck.buffer {
            Buffer::Time(most) => waits_us > most,
            Buffer::Bytes(most) => waits_us * bottleneck.bits_per_second / 8_000_000 + bytes as u64 > most,
        };
        if is_full {
            return None;
        }
        self.stats.queued_us += waits_us;
        self.stats.queued_most_us = self.stats.queued_most_us.max(waits_us);
        let bits = (bytes + IP_UDP_BYTES) as u64 * 8;
        self.busy_until_ns = begin_ns + bits * 1_000_000_000 / bottleneck.bits_per_second;
        Some(self.busy_until_ns / 1_000)
    }

    fn loses(&mut self) -> bool {
        let lost = match self.settings.loss {
            Loss::None => false,
            Loss::Iid(loss) => self.rng.chance(loss),
            Loss::Bursts { loss, mean_length } => {
                let end = 1.0 / mean_length;
                let begin = loss * end / (1.0 - loss);
                self.in_burst = self.rng.chance(if self.in_burst { 1.0 - end } else { begin });
                self.in_burst
            }
        };
        lost || self.settings.is_cut
    }

    fn arrival(&mut self, sent: u64) -> u64 {
        let Settings { delay_us, jitter_us, jitter_reorders, reorder, reorder_us, .. } = self.settings;
        let jitter = match jitter_us {
            0 => 0,
            _ if jitter_reorders => self.rng.below(jitter_us + 1),
            _ => self.jitter(sent),
        };
        let arrival = sent + delay_us + jitter;
        if self.rng.chance(reorder) {
            return arrival + reorder_us;
        }
        if jitter_reorders {
            return arrival;
        }
        self.last_arrival = self.last_arrival.max(arrival);
        self.last_arrival
    }

    fn jitter(&mut self, at: u64) -> u64 {
        let mut draw = || self.rng.below(self.settings.jitter_us + 1);
        let (since, [_, to]) = self.jitter;
        if at >= since + 2 * JITTER_EVERY_US {
            self.jitter = (at, [draw(), draw()]);
        } else if at >= since + JITTER_EVERY_US {
            self.jitter = (since + JITTER_EVERY_US, [to, draw()]);
        }
        let (since, [from, to]) = self.jitter;
        let passed = at.saturating_sub(since);
        (from * (JITTER_EVERY_US - passed) + to * passed) / JITTER_EVERY_US
    }
}
