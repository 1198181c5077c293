//! The pacer under bare KCP conversations: a game and bulk over one bottleneck, with losses, with others, and on paths that
//! change. Bounds are looser than what `scripts/bench-tunnel` shows, for these runs are short; all figures come from a virtual
//! clock, so they are the same everywhere.

mod sim;

use std::net::SocketAddr;

use gateway::proto::tunnel::pacer;
use sim::bare::Bare;
use sim::link::{Bottleneck, Buffer, Loss, Settings};
use sim::traffic::{Measured, Traffic};
use sim::{HostId, LinkId, MS, Net, SECOND};

const MBIT: u64 = 1_000_000;

#[test]
fn a_game_beside_bulk_waits_for_little_and_bulk_fills_the_path() {
    for (seed, rtt_ms) in [(1, 20), (2, 50), (3, 150)] {
        for (loss, later_ms, mbit) in [(0.0, 15, 17.5), (0.05, 45, 16.5)] {
            let mut path = Path::new(seed, &bottleneck(rtt_ms, 20).losing(Loss::Iid(loss)), Traffic::game_and_bulk());
            path.net.run_for(5 * SECOND);
            let seen = path.watch(15 * SECOND);
            let what = format!("seed {seed}, RTT {rtt_ms} ms, loss {loss}: {seen:?}");
            assert!(seen.p99_ms < (rtt_ms / 2 + later_ms) as f64, "{what}");
            assert!(seen.bulk_mbit > mbit && seen.queue_ms < 10.0, "{what}");
        }
    }
}

#[test]
fn bulk_makes_up_for_losses_that_are_the_paths_own() {
    for (loss, mbit) in [(0.0, 36.5), (0.01, 36.0), (0.05, 34.0), (0.1, 32.0), (0.2, 27.0)] {
        for seed in 1..=2 {
            let mut path = Path::new(seed, &bottleneck(50, 40).losing(Loss::Iid(loss)), Traffic::bulk());
            path.net.run_for(5 * SECOND);
            let seen = path.watch(5 * SECOND);
            assert!(seen.bulk_mbit > mbit, "seed {seed}, loss {loss}: {seen:?}");
            assert!(seen.queue_ms < 10.0, "seed {seed}, loss {loss}: {seen:?}");
        }
    }
}

#[test]
fn two_tunnels_share_a_path_though_one_was_there_first() {
    for (seed, loss) in [(1, 0.0), (2, 0.0), (3, 0.05)] {
        let link = bottleneck(50, 20).losing(Loss::Iid(loss));
        let mut path = Path::new(seed, &link, Traffic::game_and_bulk());
        path.net.run_for(5 * SECOND);
        let second = path.add(seed + 100, Traffic::game_and_bulk());
        path.net.run_for(15 * SECOND);
        let before = [path.ends[1], second[1]].map(|end| path.net.node(end).delivered_bytes());
        path.net.run_for(30 * SECOND);
        let [first, second] = [path.ends[1], second[1]].map(|end| path.net.node(end).delivered_bytes());
        let [first, second] = [first - before[0], second - before[1]].map(|bytes| bytes as f64);
        let share = first / (first + second);
        assert!((0.38..0.62).contains(&share), "seed {seed}, loss {loss}: {share}");
        assert!((first + second) * 8.0 / 30.0 / MBIT as f64 > 16.5, "seed {seed}, loss {loss}");
    }
}

#[test]
fn bulk_both_ways_is_not_slowed_down_by_its_acknowledgements() {
    let mut path = Path::new(1, &bottleneck(50, 20), Traffic::game_and_bulk());
    path.net.node_mut(path.ends[1]).start(Traffic::bulk());
    path.net.run_for(5 * SECOND);
    let there = path.watch(15 * SECOND);
    assert!(there.bulk_mbit > 16.5, "{there:?}");
    let back = path.net.node(path.ends[0]).delivered_bytes() * 8 / 20 / MBIT;
    assert!(back >= 16, "{back} Mbit/s");
}

#[test]
fn a_path_that_gets_slower_is_followed_at_once_and_one_that_gets_faster_soon() {
    for (seed, loss) in [(1, 0.0), (2, 0.05)] {
        let mut path = Path::new(seed, &bottleneck(50, 20).losing(Loss::Iid(loss)), Traffic::game_and_bulk());
        path.net.run_for(5 * SECOND);
        path.set_rate(5 * MBIT);
        path.net.run_for(2 * SECOND);
        let slow = path.watch(5 * SECOND);
        assert!(slow.bulk_mbit > 3.9 && slow.queue_ms < 25.0, "seed {seed}: {slow:?}");
        path.set_rate(30 * MBIT);
        path.net.run_for(4 * SECOND);
        let fast = path.watch(5 * SECOND);
        assert!(fast.bulk_mbit > 24.0 && fast.queue_ms < 10.0, "seed {seed}: {fast:?}");
    }
}

#[test]
fn a_path_that_gets_longer_is_not_taken_for_a_queue_for_long() {
    let mut path = Path::new(1, &bottleneck(50, 20), Traffic::game_and_bulk());
    path.net.run_for(5 * SECOND);
    for link in path.links {
        path.net.link(link).settings.delay_us = 100 * MS;
    }
    path.net.run_for(4 * SECOND);
    let seen = path.watch(5 * SECOND);
    assert!(seen.bulk_mbit > 16.0, "{seen:?}");
}

#[test]
fn a_path_that_was_dead_for_a_while_is_used_again_as_before() {
    let mut path = Path::new(1, &bottleneck(50, 20), Traffic::game_and_bulk());
    path.net.run_for(5 * SECOND);
    path.cut(true);
    path.net.run_for(5 * SECOND);
    path.cut(false);
    path.net.run_for(3 * SECOND);
    let seen = path.watch(5 * SECOND);
    assert!(seen.bulk_mbit > 17.5 && seen.p99_ms < 40.0, "{seen:?}");
}

#[test]
fn a_shallow_buffer_is_not_flooded_although_it_shows_no_queue() {
    let mut path = Path::new(1, &Settings::delayed_ms(25).limited(20 * MBIT, 5), Traffic::game_and_bulk());
    path.net.run_for(3 * SECOND);
    let before = path.net.link(path.links[0]).stats;
    let seen = path.watch(10 * SECOND);
    let link = path.net.link(path.links[0]).stats.since(&before);
    assert!(seen.bulk_mbit > 17.5, "{seen:?}");
    assert!(link.dropped * 20 < link.packets, "{} of {} packets dropped", link.dropped, link.packets);
}

#[test]
fn a_short_path_with_little_room_at_its_end_is_not_overrun() {
    // As on loopback: the receiver takes 2 Gbit/s, and its socket holds 200 kB.
    let bottleneck = Bottleneck { bits_per_second: 2_000 * MBIT, buffer: Buffer::Bytes(200_000) };
    let link = Settings { delay_us: 50, bottleneck: Some(bottleneck), ..Settings::default() };
    let mut path = Path::new(1, &link, Traffic::bulk());
    path.net.run_for(100 * MS);
    let before = path.net.link(path.links[0]).stats;
    let seen = path.watch(200 * MS);
    let link = path.net.link(path.links[0]).stats.since(&before);
    assert!(seen.bulk_mbit > 1_500.0, "{seen:?}");
    assert!(link.dropped * 50 < link.packets, "{} of {} packets dropped", link.dropped, link.packets);
}

#[test]
fn jitter_and_acknowledgements_that_come_in_bursts_do_not_stop_bulk() {
    for (jitter_ms, loss, mbit) in [(10, 0.0, 16.5), (10, 0.05, 15.0), (30, 0.05, 8.0)] {
        for jitter_reorders in [false, true] {
            let jitter = Settings { jitter_us: jitter_ms * MS, jitter_reorders, ..bottleneck(50, 20) };
            let mut path = Path::new(1, &jitter.losing(Loss::Iid(loss)), Traffic::game_and_bulk());
            path.net.run_for(12 * SECOND);
            let seen = path.watch(10 * SECOND);
            let what = format!("{jitter_ms} ms, reorders: {jitter_reorders}, loss {loss}: {seen:?}");
            assert!(seen.bulk_mbit > mbit && seen.queue_ms < 30.0, "{what}");
            assert!(seen.p99_ms < (50 + 2 * jitter_ms) as f64, "{what}");
        }
    }
}

#[test]
fn a_game_alone_does_not_make_a_path_look_slow() {
    let mut path = Path::new(1, &bottleneck(50, 20), Traffic::game());
    path.net.run_for(30 * SECOND);
    path.net.node_mut(path.ends[0]).start(Traffic::game_and_bulk());
    path.net.run_for(2 * SECOND);
    let seen = path.watch(3 * SECOND);
    assert!(seen.bulk_mbit > 17.0, "{seen:?}");
}

#[test]
fn bulk_that_is_written_slowly_does_not_make_a_path_look_slow() {
    let mut path = Path::new(1, &bottleneck(50, 20), Traffic::game_and_bulk());
    path.net.run_for(5 * SECOND);
    path.net.node_mut(path.ends[0]).start(Traffic { bulk_bytes_per_second: Some(100_000), ..Traffic::game_and_bulk() });
    path.net.run_for(20 * SECOND);
    path.net.node_mut(path.ends[0]).start(Traffic::game_and_bulk());
    path.net.run_for(200 * MS);
    let seen = path.watch(2 * SECOND);
    assert!(seen.bulk_mbit > 17.0, "{seen:?}");
}

#[test]
fn a_rate_that_the_user_set_is_kept() {
    let capped = pacer::Settings { rate_max: Some(500_000), ..pacer::Settings::default() };
    let mut path = Path::with_pacer(1, &bottleneck(50, 20), Traffic::bulk(), capped);
    path.net.run_for(2 * SECOND);
    let before = path.net.link(path.links[0]).stats;
    path.net.run_for(10 * SECOND);
    let sent = path.net.link(path.links[0]).stats.since(&before).bytes;
    assert!((4_700_000..5_010_000).contains(&sent), "{sent} bytes in 10 s");
}

/// Two ends with a link each way.
struct Path {
    net: Net<Bare>,
    ends: [HostId; 2],
    links: [LinkId; 2],
}

/// What was seen from the first end to the second.
#[derive(Debug)]
#[expect(dead_code, reason = "a failure shows all of it")]
struct Seen {
    bulk_mbit: f64,
    /// One way, of the game's messages.
    p50_ms: f64,
    p99_ms: f64,
    queue_ms: f64,
}

impl Path {
    fn new(seed: u64, link: &Settings, traffic: Traffic) -> Self {
        Self::with_pacer(seed, link, traffic, pacer::Settings { seed, ..pacer::Settings::default() })
    }

    fn with_pacer(seed: u64, link: &Settings, traffic: Traffic, pacer: pacer::Settings) -> Self {
        let mut net = Net::seeded(seed);
        let ends = add_ends(&mut net, traffic, &pacer);
        let links = net.connect(ends[0], ends[1], link);
        Self { net, ends, links }
    }

    /// Another tunnel over the same links.
    fn add(&mut self, seed: u64, traffic: Traffic) -> [HostId; 2] {
        let ends = add_ends(&mut self.net, traffic, &pacer::Settings { seed, ..pacer::Settings::default() });
        self.net.set_route(ends[0], ends[1], &[self.links[0]]);
        self.net.set_route(ends[1], ends[0], &[self.links[1]]);
        ends
    }

    fn set_rate(&mut self, bits_per_second: u64) {
        for link in self.links {
            self.net.link(link).settings.bottleneck.as_mut().expect("it has one").bits_per_second = bits_per_second;
        }
    }

    fn cut(&mut self, is_cut: bool) {
        for link in self.links {
            self.net.link(link).settings.is_cut = is_cut;
        }
    }

    fn watch(&mut self, us: u64) -> Seen {
        let end = self.ends[1];
        let (bytes, messages) = (self.net.node(end).delivered_bytes(), self.net.node(end).delays().len());
        let link = self.net.link(self.links[0]).stats;
        self.net.run_for(us);
        let mut delays = self.net.node(end).delays()[messages..].to_vec();
        delays.sort_unstable();
        let percentile = |percent| delays.get(delays.len() * percent / 100).map_or(0.0, |us| f64::from(*us) / 1e3);
        Seen {
            bulk_mbit: (self.net.node(end).delivered_bytes() - bytes) as f64 * 8.0 / us as f64,
            p50_ms: percentile(50),
            p99_ms: percentile(99),
            queue_ms: self.net.link(self.links[0]).stats.since(&link).mean_queue_us() as f64 / 1e3,
        }
    }
}

fn add_ends(net: &mut Net<Bare>, traffic: Traffic, pacer: &pacer::Settings) -> [HostId; 2] {
    let [left, right] = [1, 2].map(|side| SocketAddr::from(([10, 0, pacer.seed as u8, side], 4000)));
    let back = traffic.answer();
    [
        net.add_host(left, Bare::new(right, traffic, pacer.clone())),
        net.add_host(right, Bare::new(left, back, pacer.clone())),
    ]
}

/// With a drop-tail queue of 200 ms.
fn bottleneck(rtt_ms: u64, mbit: u64) -> Settings {
    Settings::delayed_ms(rtt_ms / 2).limited(mbit * MBIT, 200)
}
