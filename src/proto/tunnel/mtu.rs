//! The longest datagram that the path carries, found out by trying (RFC 8899). All datagrams forbid routers to cut them.
//!
//! It begins with 1,200 bytes, which every path must carry, and tries longer ones in turn: each up to three times, a probe a
//! second. Later, when long datagrams were sent and none is known to have arrived for seconds, though others have, the path may
//! have become narrower: three probes of the present size decide, and then it is 1,200 again.

/// Bytes of UDP payload that are always taken to arrive (RFC 8899, section 5.1.2).
pub const MTU_MIN: usize = 1200;

/// What is tried: what kcptun uses; Ethernet through a tunnel or PPPoE; Ethernet with IPv6.
const SIZES: [usize; 3] = [1350, 1420, 1452];

const TRIES_MAX: u32 = 3;
const PROBE_US: u64 = 1_000_000;

/// Longer ones are tried again after this; a path that has become narrower, sooner.
const AGAIN_US: u64 = 600_000_000;
const AGAIN_AFTER_BLACK_HOLE_US: u64 = 60_000_000;

/// Long datagrams may go without news for so long: more than three time-outs of a slow path.
const PATIENCE_US: u64 = 2_000_000;

#[derive(Debug)]
pub struct Mtu {
    size: usize,
    max: usize,
    probing: Probing,
    /// By when one of the long datagrams that were sent should have arrived.
    patience: Option<u64>,
}

#[derive(Debug)]
enum Probing {
    /// Whether the path carries `size`. The next probe, or the verdict, is due at `at`.
    Trying { size: usize, tries: u32, at: u64 },
    /// Nothing; again from then on.
    Resting { until: u64 },
}

impl Mtu {
    pub fn new(now: u64, max: usize) -> Self {
        let mut mtu = Self { size: MTU_MIN, max, probing: Probing::Resting { until: now }, patience: None };
        mtu.search(now);
        mtu
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// The path is another one, on which nothing longer than `max` is tried.
    pub fn begin(&mut self, now: u64, max: usize) {
        *self = Self::new(now, max);
    }

    /// Tries the next longer size, if any.
    fn search(&mut self, now: u64) {
        let next = SIZES.into_iter().find(|size| *size > self.size && *size <= self.max);
        self.probing = match next {
            Some(size) => Probing::Trying { size, tries: 0, at: now },
            None => Probing::Resting { until: now + AGAIN_US },
        };
    }

    /// The size of a probe that is to be sent now. `heard_at` is when anything last arrived of the peer.
    pub fn probe(&mut self, now: u64, heard_at: u64) -> Option<usize> {
        if self.patience.is_some_and(|until| until <= now) {
            self.patience = None;
            self.probing = Probing::Trying { size: self.size, tries: 0, at: now };
        }
        match &mut self.probing {
            Probing::Resting { until } if *until <= now => self.search(now),
            Probing::Trying { tries: TRIES_MAX, at, .. } if *at <= now => self.give_up(now),
            _ => {}
        }
        let Probing::Trying { size, tries, at } = &mut self.probing else { return None };
        if *at > now {
            return None;
        }
        // While nothing at all arrives, the last probe says nothing about sizes.
        let is_silent = *tries > 0 && heard_at + PROBE_US < now;
        *tries += u32::from(!is_silent);
        *at = now + PROBE_US;
        Some(*size)
    }

    /// Whether the present size is in question: then the peer has to be asked for something short, too. If nothing else is sent
    /// than what is too long, nothing else comes back.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self.probing, Probing::Trying { size, .. } if size <= self.size)
    }

    fn give_up(&mut self, now: u64) {
        let Probing::Trying { size, .. } = self.probing else { return };
        let is_black_hole = size <= self.size;
        if is_black_hole {
            self.size = MTU_MIN;
        }
        let after = if is_black_hole { AGAIN_AFTER_BLACK_HOLE_US } else { AGAIN_US };
        self.probing = Probing::Resting { until: now + after };
    }

    /// The peer has got a probe of `size`.
    pub fn on_arrived(&mut self, now: u64, size: usize) {
        if let Probing::Trying { size: tried, tries: 1.., .. } = self.probing
            && tried == size
        {
            self.size = self.size.max(size);
            self.patience = None;
            self.search(now);
        }
    }

    /// A datagram of so many bytes was sent, and will be acknowledged.
    pub fn on_sent(&mut self, now: u64, bytes: usize) {
        if bytes > MTU_MIN && self.patience.is_none() && !self.is_in_doubt() {
            self.patience = Some(now + PATIENCE_US);
        }
    }

    /// A datagram of so many bytes has arrived there.
    pub fn on_acknowledged(&mut self, now: u64, bytes: usize) {
        if bytes <= MTU_MIN {
            return;
        }
        self.patience = None;
        if self.is_in_doubt() {
            self.search(now);
        }
    }

    /// When [`Self::probe`] is to be asked.
    pub fn next_timeout(&self) -> u64 {
        let (Probing::Trying { at, .. } | Probing::Resting { until: at }) = self.probing;
        at.min(self.patience.unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// Answers probes up to `limit` at once; says what was tried.
    fn run(mtu: &mut Mtu, limit: usize, from: u64, until: u64) -> Vec<usize> {
        let mut tried = Vec::new();
        loop {
            let now = mtu.next_timeout().max(from);
            if now >= until {
                return tried;
            }
            if let Some(size) = mtu.probe(now, now) {
                tried.push(size);
                if size <= limit {
                    mtu.on_arrived(now, size);
                }
            }
        }
    }

    #[test]
    fn it_finds_the_longest_size_that_arrives() {
        for (limit, found, tried) in [
            (1200, 1200, vec![1350; 3]),
            (1420, 1420, vec![1350, 1420, 1452, 1452, 1452]),
            (1500, 1452, vec![1350, 1420, 1452]),
        ] {
            let mut mtu = Mtu::new(0, 1452);
            assert_eq!(run(&mut mtu, limit, 0, 10 * SECOND), tried);
            assert_eq!(mtu.size(), found);
        }
    }

    #[test]
    fn it_does_not_try_more_than_it_was_told() {
        let mut mtu = Mtu::new(0, 1400);
        assert_eq!((run(&mut mtu, 9000, 0, SECOND), mtu.size()), (vec![1350], 1350));
    }

    #[test]
    fn longer_ones_are_tried_again_after_ten_minutes() {
        let mut mtu = Mtu::new(0, 1452);
        run(&mut mtu, 1200, 0, 10 * SECOND);
        assert!(run(&mut mtu, 1452, 10 * SECOND, 602 * SECOND).is_empty());
        run(&mut mtu, 1452, 602 * SECOND, 610 * SECOND);
        assert_eq!(mtu.size(), 1452);
    }

    #[test]
    fn a_black_hole_is_noticed_and_left_within_five_seconds() {
        let mut mtu = Mtu::new(0, 1452);
        run(&mut mtu, 1452, 0, SECOND);
        mtu.on_sent(10 * SECOND, 1452);
        assert_eq!(run(&mut mtu, 1300, 10 * SECOND, 15 * SECOND + 1), [1452; 3]);
        assert_eq!(mtu.size(), 1200);
        run(&mut mtu, 1350, 16 * SECOND, 80 * SECOND);
        assert_eq!(mtu.size(), 1350, "what it carries now is found after a minute");
    }

    #[test]
    fn long_datagrams_that_arrive_leave_no_doubt() {
        let mut mtu = Mtu::new(0, 1452);
        run(&mut mtu, 1452, 0, SECOND);
        for at in 1..100 {
            mtu.on_sent(at * SECOND, 1452);
            mtu.on_acknowledged(at * SECOND + 1000, 1452);
        }
        assert!(run(&mut mtu, 1300, 100 * SECOND, 200 * SECOND).is_empty());
        assert_eq!(mtu.size(), 1452);
    }

    #[test]
    fn silence_is_no_black_hole() {
        let mut mtu = Mtu::new(0, 1452);
        run(&mut mtu, 1452, 0, SECOND);
        mtu.on_sent(10 * SECOND, 1452);
        let mut now = 10 * SECOND;
        while now < 60 * SECOND {
            now = mtu.next_timeout().max(now + 1);
            mtu.probe(now, 10 * SECOND);
        }
        assert_eq!(mtu.size(), 1452);
        mtu.on_arrived(now, 1452);
        assert_eq!(mtu.size(), 1452);
    }

    #[test]
    fn an_answer_to_what_was_not_asked_changes_nothing() {
        let mut mtu = Mtu::new(0, 1452);
        mtu.on_arrived(0, 1350);
        mtu.on_arrived(0, 65_535);
        assert_eq!((mtu.probe(0, 0), mtu.size()), (Some(1350), 1200));
        mtu.on_arrived(0, 65_535);
        assert_eq!(mtu.size(), 1200);
    }
}
