//! The way between two ends: addresses that change, and how long a datagram it carries.

mod sim;

use gateway::proto::tunnel::{LostReason, Settings};
use sim::link;
use sim::pair::{Pair, address};
use sim::side::Accepts;
use sim::{MS, SECOND};

fn link_of(bytes_max: usize) -> link::Settings {
    link::Settings { bytes_max: Some(bytes_max), ..link::Settings::delayed_ms(25) }
}

#[test]
fn streams_survive_a_new_address_of_either_side() {
    for moves_visitor in [true, false] {
        let link = link::Settings::delayed_ms(25).limited(20_000_000, 100);
        let mut pair = Pair::new(1, &link);
        let bytes = pair.net.rng().bytes(3_000_000);
        let stream = pair.visitor().send(bytes.clone(), true);
        pair.run_for(300 * MS);
        let (moves, stays) = if moves_visitor { (pair.visitor, pair.provider) } else { (pair.provider, pair.visitor) };
        pair.net.rebind(moves, address(77));
        pair.run_for(SECOND);
        assert_eq!(pair.net.node_mut(stays).tunnel().status().remote, address(77), "visitor moves: {moves_visitor}");
        pair.run_for(20 * SECOND);
        assert!(pair.provider().held(stream).read == bytes && pair.visitor().held(stream).read == bytes);
        assert_eq!((pair.visitor().lost.len(), pair.provider().lost.len()), (0, 0));
    }
}

#[test]
fn a_quiet_tunnel_survives_a_new_address() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    pair.run_for(5 * SECOND);
    let visitor = pair.visitor;
    pair.net.rebind(visitor, address(77));
    pair.run_for(60 * SECOND);
    assert_eq!(pair.provider().tunnel().status().remote, address(77));
    assert_eq!((pair.visitor().lost.len(), pair.provider().lost.len()), (0, 0));
}

#[test]
fn a_packet_that_somebody_brings_from_elsewhere_moves_nothing() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    let (there, provider) = (pair.links[0], pair.provider);
    pair.run_for(10 * SECOND); // Until the MTU is known.
    let mut caught = Vec::new();
    for session in 0..20 {
        // On its way it is caught, and comes from the wrong place instead.
        pair.net.link(there).settings.is_cut = true;
        let now = pair.net.now();
        pair.visitor().tunnel().send_datagram(session, 0, None, b"caught");
        while pair.visitor().endpoint.poll_transmit(now, &mut caught).is_some() {}
        let sent = pair.net.stats(provider);
        let length = caught.len();
        pair.provider().endpoint.handle_datagram(now, address(99), &mut caught);
        caught.clear();
        pair.net.link(there).settings.is_cut = false;
        pair.run_for(3 * SECOND);
        assert_eq!(pair.provider().tunnel().status().remote, address(1));
        let answered = pair.net.stats(provider).sent_bytes - sent.sent_bytes;
        assert!(answered < 3 * length as u64 + 200, "{answered} bytes for {length}");
    }
    assert_eq!(pair.provider().datagrams.len(), 20);
    pair.visitor().tunnel().send_datagram(7, 0, None, b"straight");
    pair.run_for(50 * MS);
    assert_eq!(pair.provider().datagrams.len(), 21);
}

#[test]
fn the_longest_datagram_that_the_path_carries_is_found() {
    for (carries, found) in [(1200, 1200), (1400, 1350), (1420, 1420), (9000, 1452)] {
        let mut pair = Pair::new(1, &link_of(carries));
        pair.run_for(10 * SECOND);
        let sides = [pair.visitor, pair.provider];
        assert_eq!(sides.map(|side| pair.net.node_mut(side).tunnel().status().mtu), [found; 2], "{carries} bytes");
    }
}

#[test]
fn nothing_longer_is_sent_than_was_allowed() {
    let settings = Settings { mtu_max: 1300, ..Settings::default() };
    let mut pair = Pair::with(1, &link_of(1300), &settings);
    pair.visitor().send(vec![1; 1_000_000], true);
    pair.run_for(10 * SECOND);
    let link = pair.links[0];
    assert_eq!(pair.net.link(link).stats.lost, 0);
}

#[test]
fn a_path_that_becomes_narrower_is_noticed_and_what_was_on_its_way_arrives() {
    let mut pair = Pair::new(1, &link_of(1500).limited(20_000_000, 100));
    pair.provider().accepts = Accepts::Sink;
    pair.run_for(3 * SECOND);
    assert_eq!(pair.visitor().tunnel().status().mtu, 1452);
    let bytes = pair.net.rng().bytes(10_000_000);
    let stream = pair.visitor().send(bytes.clone(), true);
    pair.run_for(SECOND);
    for link in pair.links {
        pair.net.link(link).settings.bytes_max = Some(1300);
    }
    let read = pair.provider().held(stream).read.len();
    pair.run_for(9 * SECOND);
    assert_eq!(pair.visitor().tunnel().status().mtu, 1200);
    assert!(pair.provider().held(stream).read.len() > read + 1_000_000);
    pair.run_for(10 * SECOND);
    assert!(pair.provider().held(stream).read == bytes);
}

#[test]
fn games_go_on_while_the_path_swallows_long_datagrams() {
    let mut pair = Pair::new(1, &link_of(1500).limited(20_000_000, 100));
    pair.provider().accepts = Accepts::Sink;
    pair.run_for(3 * SECOND);
    let game = pair.visitor().send(Vec::new(), false);
    pair.visitor().send(vec![1; 10_000_000], false);
    pair.run_for(SECOND);
    for link in pair.links {
        pair.net.link(link).settings.bytes_max = Some(1300);
    }
    for _ in 0..300 {
        pair.visitor().send_more(game, &[7; 64]);
        pair.run_for(16_667);
    }
    pair.run_for(60 * MS);
    assert_eq!(pair.provider().held(game).read.len(), 300 * 64);
}

#[test]
fn a_path_that_is_gone_is_no_narrow_one() {
    let mut pair = Pair::new(1, &link_of(1500));
    pair.provider().accepts = Accepts::Sink;
    pair.run_for(3 * SECOND);
    pair.visitor().send(vec![1; 1_000_000], false);
    for link in pair.links {
        pair.net.link(link).settings.is_cut = true;
    }
    pair.run_for(30 * SECOND);
    for link in pair.links {
        pair.net.link(link).settings.is_cut = false;
    }
    pair.run_for(10 * SECOND);
    assert_eq!(pair.visitor().tunnel().status().mtu, 1452);
    assert_eq!(pair.visitor().lost, [] as [LostReason; 0]);
}
