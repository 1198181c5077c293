//! The virtual network keeps its promises, on which other tests build: links delay, lose and queue as they are told to, and a
//! seed repeats a run.

mod sim;

use std::collections::VecDeque;
use std::net::SocketAddr;

use sim::link::{Bottleneck, Buffer, IP_UDP_BYTES, Loss, Settings};
use sim::{HostId, LinkId, MS, Net, Node, SECOND};

#[test]
fn a_datagram_arrives_after_the_links_delay_with_its_senders_address() {
    let mut net = Net::seeded(1);
    let [left, right] = hosts(&mut net);
    net.connect(left, right, &Settings::delayed_ms(25));
    net.run_for(10 * MS);
    net.node_mut(left).send(b"hello");
    net.run_for(25 * MS - 1);
    assert_eq!(net.node(right).received, []);
    net.run_for(1);
    assert_eq!(net.node(right).received, [(35 * MS, address(1), b"hello".to_vec())]);
    assert_eq!((net.stats(left).sent_bytes, net.stats(right).received), (5, 1));
}

#[test]
fn a_node_hears_of_its_timeouts_in_their_instant() {
    let mut net = Net::seeded(1);
    let [left, right] = hosts(&mut net);
    net.connect(left, right, &Settings::default());
    net.node_mut(left).send_at = [3, 7, 7, 1_000_000_007].into();
    net.run_until(2_000 * SECOND);
    assert_eq!(times(&net, right), [3, 7, 7, 1_000_000_007]);
}

#[test]
fn a_bottleneck_sends_at_its_rate_and_drops_what_its_buffer_does_not_hold() {
    for buffer in [Buffer::Time(10 * MS), Buffer::Bytes(12_500)] {
        let bottleneck = Some(Bottleneck { bits_per_second: 10_000_000, buffer });
        let (mut net, [_, right], link) = cable(1, Settings { bottleneck, ..Settings::default() });
        burst(&mut net, 100, 1_000 - IP_UDP_BYTES); // 0.8 ms each.
        net.run_for(SECOND);
        let times = times(&net, right);
        assert!((12..=14).contains(&times.len()), "{} fit into 10 ms, {buffer:?}", times.len());
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 800));
        let stats = net.link(link).stats;
        assert_eq!(stats.dropped + stats.delivered, 100);
        assert!(stats.queued_most_us <= 10 * MS && stats.mean_queue_us() > 4 * MS);
    }
}

#[test]
fn two_routes_share_the_queue_of_the_link_they_share() {
    let mut net = Net::seeded(1);
    let nodes = [1, 2, 3, 4]
        .map(|host| net.add_host(address(host), Talker::to(address(if host < 3 { host + 2 } else { host - 2 }))));
    let shared = net.add_link(Settings::delayed_ms(5).limited(10_000_000, 100));
    let last_mile = net.add_link(Settings::delayed_ms(20));
    net.set_route(nodes[0], nodes[2], &[shared]);
    net.set_route(nodes[1], nodes[3], &[shared, last_mile]);
    net.node_mut(nodes[0]).send(&[0; 1_250 - IP_UDP_BYTES]); // 1 ms.
    net.node_mut(nodes[1]).send(&[0; 1_250 - IP_UDP_BYTES]);
    net.run_for(SECOND);
    assert_eq!((times(&net, nodes[2]), times(&net, nodes[3])), (vec![6 * MS], vec![27 * MS]));
}

#[test]
fn independent_losses_have_their_rate_and_bursts_their_length() {
    for (loss, mean_length) in [(Loss::Iid(0.1), 1.11), (Loss::Bursts { loss: 0.1, mean_length: 5.0 }, 5.0)] {
        for seed in 0..5 {
            let (mut net, [_, right], _) = cable(seed, Settings::default().losing(loss));
            for number in 0..100_000u32 {
                net.node_mut(HostId(0)).send(&number.to_le_bytes());
            }
            net.run_for(1);
            let arrived: Vec<u32> = net.node(right).received.iter().map(|(_, _, bytes)| number_of(bytes)).collect();
            let lost = 100_000 - arrived.len();
            assert!((9_000..11_000).contains(&lost), "seed {seed}: {lost} of 100,000 lost by {loss:?}");
            let runs = arrived.windows(2).filter(|pair| pair[1] > pair[0] + 1).count();
            let length = lost as f64 / runs as f64;
            assert!((length / mean_length - 1.0).abs() < 0.1, "seed {seed}: runs of {length}, {loss:?}");
        }
    }
}

#[test]
fn jitter_keeps_the_order_unless_it_is_told_not_to() {
    for jitter_reorders in [false, true] {
        let jitter = Settings { jitter_us: 10 * MS, jitter_reorders, ..Settings::delayed_ms(5) };
        let (mut net, [left, right], _) = cable(3, jitter);
        net.node_mut(left).send_at = (0..1_000).map(|at| at * MS).collect();
        net.run_for(2 * SECOND);
        let received = &net.node(right).received;
        let delays = received.iter().map(|(at, _, bytes)| at - u64::from(number_of(bytes)) * MS);
        assert!(delays.clone().all(|delay| (5 * MS..=15 * MS).contains(&delay)));
        assert!(delays.min() < Some(6 * MS));
        let is_in_order = received.windows(2).all(|pair| number_of(&pair[0].2) < number_of(&pair[1].2));
        assert_eq!((received.len(), is_in_order), (1_000, !jitter_reorders));
    }
}

#[test]
fn packets_are_doubled_and_held_back_with_their_probabilities() {
    let settings = Settings { duplicate: 0.2, reorder: 0.1, reorder_us: 50 * MS, ..Settings::delayed_ms(5) };
    let (mut net, [left, right], link) = cable(4, settings);
    net.node_mut(left).send_at = (0..10_000).map(|at| at * MS).collect();
    net.run_for(20 * SECOND);
    let doubled = net.link(link).stats.duplicated as usize;
    let received = &net.node(right).received;
    assert!((1_800..2_200).contains(&doubled), "{doubled} of 10,000 were doubled");
    assert_eq!(received.len(), 10_000 + doubled);
    let late = received.iter().filter(|(at, _, bytes)| at - u64::from(number_of(bytes)) * MS == 55 * MS).count();
    assert!((1_080..1_320).contains(&late), "{late} were held back");
}

#[test]
fn a_link_that_is_cut_loses_everything_until_it_is_mended() {
    let (mut net, [left, right], link) = cable(5, Settings::delayed_ms(1));
    net.node_mut(left).send_at = (0..30).map(|at| at * MS).collect();
    net.run_for(10 * MS);
    net.link(link).settings.is_cut = true;
    net.run_for(10 * MS);
    net.link(link).settings.is_cut = false;
    net.run_for(SECOND);
    assert_eq!((net.node(right).received.len(), net.link(link).stats.lost), (20, 10));
}

#[test]
fn a_host_behind_a_new_address_is_seen_there_and_reached_there_only() {
    let mut net = Net::seeded(6);
    let [left, right] = hosts(&mut net);
    net.connect(left, right, &Settings::delayed_ms(10));
    net.node_mut(right).send(b"on its way to the old address");
    net.run_for(5 * MS);
    net.rebind(left, address(9));
    net.node_mut(left).send(b"from the new one");
    net.node_mut(right).send(b"to the old one");
    net.run_for(SECOND);
    assert_eq!(net.node(right).received, [(15 * MS, address(9), b"from the new one".to_vec())]);
    assert_eq!((net.node(left).received.len(), net.lost_ways), (0, 2));
    net.node_mut(right).peer = address(9);
    net.node_mut(right).send(b"to the new one");
    net.run_for(SECOND);
    assert_eq!(net.node(left).received.len(), 1);
}

#[test]
fn a_seed_repeats_a_run_and_another_one_does_not() {
    let run = |seed| {
        let settings = Settings { jitter_us: 10 * MS, ..Settings::delayed_ms(5).losing(Loss::Iid(0.1)) };
        let (mut net, [left, _], _) = cable(seed, settings);
        net.node_mut(left).send_at = (0..1_000).map(|at| at * MS).collect();
        net.run_for(2 * SECOND);
        net.digest()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
#[should_panic(expected = "turns in a circle")]
fn a_node_that_never_waits_is_found_out() {
    let mut net = Net::seeded(1);
    let [left, _] = hosts(&mut net);
    net.node_mut(left).spins = true;
    net.run_for(SECOND);
}

/// Sends what it is told to, at once or at its times, and keeps what it gets.
struct Talker {
    peer: SocketAddr,
    to_send: VecDeque<Vec<u8>>,
    /// In order. At each a datagram goes that tells the ms.
    send_at: VecDeque<u64>,
    received: Vec<(u64, SocketAddr, Vec<u8>)>,
    /// Wants its turn again and again.
    spins: bool,
}

impl Talker {
    fn to(peer: SocketAddr) -> Self {
        Self { peer, to_send: VecDeque::new(), send_at: VecDeque::new(), received: Vec::new(), spins: false }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.to_send.push_back(bytes.to_vec());
    }
}

impl Node for Talker {
    fn handle_datagram(&mut self, now: u64, from: SocketAddr, datagram: &mut [u8]) {
        self.received.push((now, from, datagram.to_vec()));
    }

    fn poll_transmit(&mut self, _now: u64, out: &mut Vec<u8>) -> Option<(SocketAddr, usize)> {
        let datagram = self.to_send.pop_front()?;
        out.extend_from_slice(&datagram);
        Some((self.peer, datagram.len()))
    }

    fn next_timeout(&self) -> Option<u64> {
        if self.spins { Some(0) } else { self.send_at.front().copied() }
    }

    fn handle_timeout(&mut self, now: u64) {
        while self.send_at.front().is_some_and(|at| *at <= now) {
            self.send_at.pop_front();
            self.send(&((now / MS) as u32).to_le_bytes());
        }
    }
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 4000))
}

fn hosts(net: &mut Net<Talker>) -> [HostId; 2] {
    [1, 2].map(|host| net.add_host(address(host), Talker::to(address(3 - host))))
}

/// Two hosts, and the link from the first to the second.
fn cable(seed: u64, settings: Settings) -> (Net<Talker>, [HostId; 2], LinkId) {
    let mut net = Net::seeded(seed);
    let hosts = hosts(&mut net);
    let link = net.add_link(settings);
    net.set_route(hosts[0], hosts[1], &[link]);
    (net, hosts, link)
}

fn burst(net: &mut Net<Talker>, datagrams: usize, bytes: usize) {
    (0..datagrams).for_each(|_| net.node_mut(HostId(0)).send(&vec![0; bytes]));
}

fn times(net: &Net<Talker>, host: HostId) -> Vec<u64> {
    net.node(host).received.iter().map(|(at, ..)| *at).collect()
}

fn number_of(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("4 bytes"))
}
