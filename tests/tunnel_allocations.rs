//! A tunnel that runs allocates nothing, neither for bulk, nor for games, nor for what gets lost. In a test of its own, for its
//! global allocator that counts.

mod sim;

use gateway::proto::tunnel::{Endpoint, Event, Service, Settings, StreamId, TunnelId};
use sim::pair::address;
use sim::side::{SECRET, SERVICE, key, name};

#[test]
fn a_tunnel_that_runs_allocates_nothing() {
    let one = allocation_counter::measure(|| drop(std::hint::black_box(vec![0; 9])));
    assert_eq!(one.count_total, 1, "the counter counts");

    let mut pair = Wire::new();
    (0..6_000).for_each(|_| pair.millisecond());
    let before = pair.delivered;
    let counted = allocation_counter::measure(|| (0..4_000).for_each(|_| pair.millisecond()));
    let [bulk, game, datagrams] = [0, 1, 2].map(|kind| pair.delivered[kind] - before[kind]);
    assert!(bulk > 20_000_000 && game > 40_000 && datagrams > 40_000, "{bulk}, {game} and {datagrams} bytes");
    assert_eq!(counted.count_total, 0, "allocations for {bulk} bytes of bulk");
}

/// Two ends with 1 ms between them. Every 50th packet is lost.
struct Wire {
    now: u64,
    ends: [Endpoint; 2],
    tunnels: [Option<TunnelId>; 2],
    /// Opened by the first: bulk and game.
    streams: Option<[StreamId; 2]>,
    batch: Vec<u8>,
    on_its_way: [Vec<(Vec<u8>, usize)>; 2],
    packets: u64,
    scratch: Vec<u8>,
    /// Bytes of bulk, game and datagrams.
    delivered: [usize; 3],
}

impl Wire {
    fn new() -> Self {
        let mut ends = [1, 2].map(|seed| Endpoint::new(Settings::default(), [seed; 32]));
        let service = Service { tcp_ports: 2, udp_ports: 1, wants_addresses: false };
        ends[1].serve(key(SECRET), name(SERVICE), service);
        ends[0].connect(0, address(2), key(SECRET), name(SERVICE)).expect("there is room for a tunnel");
        let on_its_way = [0, 1].map(|_| (0..512).map(|_| (Vec::with_capacity(70_000), 0)).collect());
        Self {
            now: 0,
            ends,
            tunnels: [None; 2],
            streams: None,
            batch: Vec::with_capacity(1 << 20),
            on_its_way,
            packets: 0,
            scratch: vec![7; 20_000],
            delivered: [0; 3],
        }
    }

    fn millisecond(&mut self) {
        self.now += 1_000;
        for end in 0..2 {
            self.deliver(end);
            self.ends[end].handle_timeout(self.now);
            self.hear(end);
        }
        self.use_streams();
        for end in 0..2 {
            self.send(end);
        }
    }

    fn deliver(&mut self, to: usize) {
        for (batch, segment_bytes) in &mut self.on_its_way[1 - to] {
            for packet in batch.chunks_mut((*segment_bytes).max(1)) {
                self.packets += 1;
                if !self.packets.is_multiple_of(50) {
                    self.ends[to].handle_datagram(self.now, address(2 - to as u8), packet);
                }
            }
            batch.clear();
        }
    }

    fn send(&mut self, from: usize) {
        for (batch, segment_bytes) in &mut self.on_its_way[from] {
            let Some(transmit) = self.ends[from].poll_transmit(self.now, batch) else { return };
            *segment_bytes = transmit.segment_bytes;
        }
        panic!("too much for a millisecond");
    }

    fn hear(&mut self, end: usize) {
        while let Some((tunnel, event)) = self.ends[end].poll_event() {
            match event {
                Event::Established => self.tunnels[end] = Some(tunnel),
                Event::Readable(stream) => self.read(end, tunnel, stream),
                Event::Datagrams => {
                    let Some(tunnel) = self.ends[end].tunnel(tunnel) else { continue };
                    self.batch.clear();
                    while tunnel.read_datagram(&mut self.batch).is_some() {}
                    self.delivered[2] += self.batch.len();
                }
                Event::Opened { .. } | Event::Writable(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn read(&mut self, end: usize, tunnel: TunnelId, stream: StreamId) {
        let kind = usize::from(self.streams.is_some_and(|[_, game]| game == stream));
        let Some(tunnel) = self.ends[end].tunnel(tunnel) else { return };
        loop {
            let bytes = tunnel.peek(stream).len();
            if bytes == 0 {
                return;
            }
            tunnel.consume(stream, bytes);
            self.delivered[kind] += bytes;
        }
    }

    fn use_streams(&mut self) {
        let [Some(visitor), Some(provider)] = self.tunnels else { return };
        let Some(tunnel) = self.ends[0].tunnel(visitor) else { return };
        let [bulk, game] = *self
            .streams
            .get_or_insert_with(|| [0, 1].map(|port| tunnel.open(port, None).expect("there is room for a stream")));
        tunnel.write(bulk, &self.scratch);
        if self.now.is_multiple_of(16_000) {
            tunnel.write(game, &self.scratch[..200]);
            tunnel.send_datagram(1, 0, None, &self.scratch[..100]);
            let Some(tunnel) = self.ends[1].tunnel(provider) else { return };
            tunnel.write(game, &self.scratch[..200]);
            tunnel.send_datagram(1, 0, None, &self.scratch[..100]);
        }
    }
}
