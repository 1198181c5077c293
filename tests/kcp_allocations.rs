//! A KCP stream that runs allocates nothing. In a test of its own, for its global allocator that counts.

use gateway::proto::kcp::{Buffers, Conversation, Settings, Stamp};

const ROOM: usize = 1400;

#[test]
fn a_stream_that_runs_allocates_nothing_even_when_it_loses() {
    let one = allocation_counter::measure(|| drop(std::hint::black_box(vec![0; 9])));
    assert_eq!(one.count_total, 1, "the counter counts");

    let mut pair = Pair::new();
    (0..2_000).for_each(|round| pair.carry(round));
    let before = pair.delivered;
    let counted = allocation_counter::measure(|| (2_000..4_000).for_each(|round| pair.carry(round)));
    assert!(pair.delivered - before > 20_000_000, "{} bytes", pair.delivered - before);
    assert_eq!(counted.count_total, 0, "allocations for {} bytes", pair.delivered - before);
}

struct Pair {
    ends: [Conversation; 2],
    buffers: Buffers,
    datagram: Vec<u8>,
    scratch: Vec<u8>,
    datagrams: u64,
    delivered: usize,
}

impl Pair {
    fn new() -> Self {
        Self {
            ends: [1, 1].map(|id| Conversation::new(id, Settings::default())),
            buffers: Buffers::new(1400, 4096),
            datagram: Vec::with_capacity(ROOM),
            scratch: vec![7; 30_000],
            datagrams: 0,
            delivered: 0,
        }
    }

    /// 10 ms: both write, every 50th datagram is lost, both read.
    fn carry(&mut self, round: u64) {
        for (from, to) in [(0, 1), (1, 0)] {
            let now = round * 10_000 + from as u64 * 5_000;
            self.ends[from].write(&self.scratch[..15_000], &mut self.buffers);
            loop {
                self.datagram.clear();
                if self.ends[from].flush(now, ROOM, 2, Stamp::default(), &self.buffers, &mut self.datagram) == 0 {
                    break;
                }
                self.datagrams += 1;
                if !self.datagrams.is_multiple_of(50) {
                    let taken = self.ends[to].input(now, &self.datagram, &mut self.buffers, |_| {});
                    assert_eq!(taken, Ok(self.datagram.len()));
                }
            }
            self.delivered += self.ends[to].read(&mut self.scratch, &mut self.buffers);
        }
    }
}
