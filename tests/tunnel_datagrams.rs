//! Datagrams of players through a tunnel: their borders, their order, and that nothing delays them.

mod sim;

use gateway::proto::tunnel::DatagramInfo;
use sim::link::{self, Loss};
use sim::pair::{Pair, address};
use sim::side::Accepts;
use sim::{MS, SECOND};

#[test]
fn datagrams_keep_their_borders_and_tell_player_and_port() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    let players = [None, "203.0.113.7:4242".parse().ok(), "[2001:db8::7]:1".parse().ok()];
    let lengths = [0, 1, 100, 1100, 1163, 1164, 1165, 1172, 1200, 1400, 1472, 5_000, 65_507, 3];
    let mut sent = Vec::new();
    for (session, length) in (0..).zip(lengths) {
        let info = DatagramInfo { session, port: session as u8, player: players[session as usize % 3] };
        let bytes = pair.net.rng().bytes(length);
        assert!(pair.visitor().tunnel().send_datagram(info.session, info.port, info.player, &bytes));
        sent.push((info, bytes));
    }
    pair.run_for(26 * MS);
    let mut arrived: Vec<_> = pair.provider().datagrams.drain(..).map(|(_, info, bytes)| (info, bytes)).collect();
    arrived.sort_by_key(|(info, _)| info.session);
    assert_eq!(arrived.len(), sent.len());
    assert!(arrived == sent);
}

#[test]
fn answers_find_their_way_back() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    pair.visitor().tunnel().send_datagram(7, 0, None, b"question");
    pair.run_for(30 * MS);
    pair.provider().tunnel().send_datagram(7, 0, None, b"answer");
    pair.run_for(30 * MS);
    let info = DatagramInfo { session: 7, port: 0, player: None };
    let [(_, came, bytes)] = &pair.visitor().datagrams[..] else { panic!("one has come") };
    assert_eq!((came, &bytes[..]), (&info, &b"answer"[..]));
}

#[test]
fn what_is_longer_than_udp_can_carry_is_refused() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    let longest = pair.visitor().tunnel().datagram_bytes_max();
    assert!(longest >= 65_507);
    assert!(!pair.visitor().tunnel().send_datagram(1, 0, None, &vec![0; longest + 1]));
    assert!(pair.visitor().tunnel().send_datagram(1, 0, None, &vec![0; longest]));
    pair.run_for(SECOND);
    assert_eq!(pair.provider().datagrams[0].2.len(), longest);
}

#[test]
fn a_lost_datagram_is_not_sent_again_and_one_that_comes_twice_is_told_once() {
    let link = link::Settings { duplicate: 0.3, ..link::Settings::delayed_ms(25).losing(Loss::Iid(0.1)) };
    let mut pair = Pair::new(5, &link);
    let before = pair.net.stats(pair.visitor).sent;
    for session in 0..10_000 {
        pair.visitor().tunnel().send_datagram(session, 0, None, &[7; 100]);
        pair.run_for(10 * MS);
    }
    pair.run_for(SECOND);
    let packets = pair.net.stats(pair.visitor).sent - before;
    assert!(packets < 11_000, "{packets} packets for 10,000 datagrams");
    let arrived = pair.provider().datagrams.len();
    assert!((8_700..9_300).contains(&arrived), "{arrived} arrived");
    let mut sessions: Vec<_> = pair.provider().datagrams.iter().map(|(_, info, _)| info.session).collect();
    sessions.dedup();
    assert_eq!(sessions.len(), arrived);
}

#[test]
fn a_bulk_stream_does_not_delay_datagrams() {
    let link = link::Settings::delayed_ms(25).limited(20_000_000, 200);
    let mut pair = Pair::new(1, &link);
    pair.provider().accepts = Accepts::Sink;
    pair.visitor().send(vec![1; 100_000_000], false);
    pair.run_for(5 * SECOND); // Beyond the search for the rate.
    pair.provider().datagrams.clear();
    for tick in 0..600 {
        let now = pair.net.now();
        pair.visitor().tunnel().send_datagram(tick, 0, None, &now.to_le_bytes());
        pair.run_for(16_667);
    }
    pair.run_for(SECOND);
    let mut delays: Vec<_> = (pair.provider().datagrams.iter())
        .map(|(at, _, bytes)| at - u64::from_le_bytes(bytes[..].try_into().expect("8 bytes")))
        .collect();
    delays.sort_unstable();
    assert_eq!(delays.len(), 600);
    let (median, p99) = (delays[delays.len() / 2], delays[delays.len() * 99 / 100]);
    assert!(median < 28 * MS && p99 < 40 * MS, "median {median} us, p99 {p99} us");
}

#[test]
fn many_datagrams_share_packets() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    let before = pair.net.stats(pair.visitor);
    for session in 0..100 {
        pair.visitor().tunnel().send_datagram(session, 0, None, &[7; 50]);
    }
    pair.run_for(30 * MS);
    let after = pair.net.stats(pair.visitor);
    assert_eq!(pair.provider().datagrams.len(), 100);
    assert!(after.sent - before.sent <= 7, "{} packets", after.sent - before.sent);
}

#[test]
fn datagrams_that_fill_a_packet_each_leave_in_batches_and_arrive_with_their_borders() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    let lengths = [&[1_150; 100][..], &[1_149, 1_150, 10, 10, 600, 700, 1_150, 1_150], &[1_100; 50]].concat();
    for (session, length) in (0..).zip(&lengths) {
        pair.visitor().tunnel().send_datagram(session, 0, None, &vec![7; *length]);
    }
    let (now, mut batches) = (pair.net.now(), 0);
    let mut datagrams = Vec::new();
    while let Some(transmit) = pair.visitor().endpoint.poll_transmit(now, &mut datagrams) {
        let sizes: Vec<_> = datagrams.chunks(transmit.segment_bytes).map(<[u8]>::len).collect();
        assert!(sizes.len() <= 64 && datagrams.len() <= 65_507, "more than one call takes: {sizes:?}");
        for datagram in datagrams.chunks_mut(transmit.segment_bytes) {
            pair.provider().endpoint.handle_datagram(now, address(1), datagram);
        }
        datagrams.clear();
        batches += 1;
    }
    assert!(batches <= 12, "{batches} batches");
    let mut arrived = Vec::new();
    loop {
        let mut bytes = Vec::new();
        let Some(info) = pair.provider().tunnel().read_datagram(&mut bytes) else { break };
        arrived.push((info.session, bytes.len()));
    }
    assert_eq!(arrived, (0..).zip(lengths).collect::<Vec<_>>());
}

#[test]
fn whoever_does_not_read_loses_the_oldest() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    for session in 0..20_000 {
        pair.visitor().tunnel().send_datagram(session, 0, None, &[7; 100]);
    }
    assert!(pair.visitor().tunnel().status().dropped > 10_000);
    pair.run_for(SECOND);
    let last = pair.provider().datagrams.last().expect("some have come");
    assert_eq!(last.1.session, 19_999);
}

#[test]
fn datagrams_of_fifty_players_take_from_bulk_what_they_need_and_no_more() {
    // 2 Mbit/s with all headers. Nobody acknowledges them, and bulk gave way to them again and again.
    for (percent, bulk_mbit) in [(0, 16.0), (5, 14.5)] {
        let link = link::Settings::delayed_ms(25).losing(Loss::Iid(f64::from(percent) / 100.0));
        let mut pair = Pair::new(1, &link.limited(20_000_000, 200));
        pair.provider().accepts = Accepts::Sink;
        let bulk = pair.visitor().send(vec![1; 30_000_000], false);
        pair.run_for(2 * SECOND);
        play(&mut pair, 50, SECOND);
        let before = pair.provider().held(bulk).read.len();
        pair.provider().datagrams.clear();
        play(&mut pair, 50, 5 * SECOND);
        let mbit = (pair.provider().held(bulk).read.len() - before) as f64 * 8.0 / 5e6;
        assert!(mbit > bulk_mbit, "{percent} %: {mbit} Mbit/s of bulk");
        let mut delays: Vec<u64> = pair.provider().datagrams.iter().map(|(at, _, sent)| at - sent_at(sent)).collect();
        delays.sort_unstable();
        let p99 = delays[delays.len() * 99 / 100];
        assert!(p99 < 45 * MS, "{percent} %: {p99} µs at the 99th percentile");
    }
}

/// Each sends the time 60 times a second, in 64 bytes, a quarter of them at once.
fn play(pair: &mut Pair, players: u32, us: u64) {
    for tick in 0..us * 240 / SECOND {
        let message = [&pair.net.now().to_le_bytes()[..], &[7; 56]].concat();
        for player in (0..players).filter(|player| u64::from(*player) % 4 == tick % 4) {
            assert!(pair.visitor().tunnel().send_datagram(player, 0, None, &message));
        }
        pair.run_for(SECOND / 240);
    }
}

fn sent_at(message: &[u8]) -> u64 {
    u64::from_le_bytes(*message.first_chunk().expect("a time"))
}
