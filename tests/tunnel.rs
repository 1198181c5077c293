//! Tunnels in a virtual network: how they begin, live and end.

mod sim;

use gateway::proto::tunnel::{CloseReason, LostReason, Settings};
use sim::link::{self, Loss};
use sim::pair::{Pair, address};
use sim::{MS, Node, SECOND};

#[test]
fn a_tunnel_is_established_in_a_round_trip_and_the_first_packet_carries_a_stream() {
    let mut pair = Pair::strangers(1, &link::Settings::delayed_ms(25), &Settings::default());
    pair.connect();
    pair.run_for(50 * MS);
    assert!(pair.visitor().tunnel.is_some());
    let stream = pair.visitor().send(b"hello".to_vec(), false);
    assert!(pair.provider().tunnel.is_none(), "the provider believes nobody who has only said an offer");
    pair.run_for(25 * MS);
    assert_eq!(pair.provider().held(stream).read, b"hello");
    assert_eq!(pair.visitor().tunnel().status().rtt_us, Some(50 * MS));
}

#[test]
fn a_tunnel_is_established_over_a_path_that_loses_and_reorders() {
    let link = link::Settings { jitter_us: 20 * MS, jitter_reorders: true, duplicate: 0.2, ..Default::default() };
    for seed in 0..50 {
        let mut pair = Pair::new(seed, &link.clone().losing(Loss::Iid(0.4)));
        pair.run_for(5 * SECOND);
        assert_eq!((pair.visitor().established, pair.provider().established), (1, 1), "seed {seed}");
    }
}

#[test]
fn nobody_answers_a_wrong_secret_or_an_unknown_service_and_the_visitor_gives_up() {
    for (secret, service) in [("another", sim::side::SERVICE), (sim::side::SECRET, "another")] {
        let mut pair = Pair::strangers(1, &link::Settings::delayed_ms(25), &Settings::default());
        let (key, name) = (sim::side::key(secret), sim::side::name(service));
        assert!(pair.visitor().endpoint.connect(0, address(2), key, name).is_some());
        pair.run_for(29 * SECOND);
        assert_eq!((pair.visitor().lost.len(), pair.net.stats(pair.provider).sent), (0, 0));
        assert!((8..12).contains(&pair.net.stats(pair.provider).received), "it asks again and again");
        pair.run_for(2 * SECOND);
        assert_eq!(pair.visitor().lost, [LostReason::Unanswered]);
        assert_eq!(pair.visitor().next_timeout(), None);
    }
}

#[test]
fn a_lost_answer_is_given_again_and_makes_one_tunnel() {
    let mut pair = Pair::strangers(1, &link::Settings::delayed_ms(25), &Settings::default());
    let back = pair.links[1];
    pair.net.link(back).settings.is_cut = true;
    pair.connect();
    pair.run_for(SECOND);
    assert!(pair.visitor().tunnel.is_none());
    pair.net.link(back).settings.is_cut = false;
    pair.run_for(2 * SECOND);
    assert_eq!((pair.visitor().established, pair.provider().established), (1, 1));
}

#[test]
fn closing_is_told_and_nothing_is_left() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    let stream = pair.visitor().send(vec![1; 100_000], false);
    pair.run_for(100 * MS);
    pair.visitor().tunnel().close(CloseReason::Leaving);
    assert_eq!(pair.visitor().tunnel().write(stream, b"more"), 0);
    pair.run_for(25 * MS);
    assert_eq!(pair.provider().lost, [LostReason::Closed(CloseReason::Leaving)]);
    pair.run_for(10 * SECOND);
    assert_eq!(pair.visitor().lost, [], "whoever closes knows");
    assert_eq!([pair.visitor().next_timeout(), pair.provider().next_timeout()], [None, None]);
}

#[test]
fn closing_is_told_again_to_a_peer_that_goes_on() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    let there = pair.links[0];
    pair.visitor().send(b"x".to_vec(), false);
    pair.net.link(there).settings.is_cut = true;
    pair.visitor().tunnel().close(CloseReason::Done);
    pair.run_for(200 * MS);
    pair.net.link(there).settings.is_cut = false;
    pair.provider().tunnel().send_datagram(1, 0, None, b"are you there?");
    pair.run_for(50 * MS);
    assert_eq!(pair.provider().lost, [LostReason::Closed(CloseReason::Done)]);
}

#[test]
fn a_dead_peer_is_noticed_within_a_minute_and_not_before() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    pair.visitor().send(vec![1; 1_000], false);
    pair.run_for(SECOND);
    for link in pair.links {
        pair.net.link(link).settings.is_cut = true;
    }
    pair.visitor().send(vec![1; 1_000_000], false);
    pair.run_for(53 * SECOND);
    assert_eq!((pair.visitor().lost.len(), pair.provider().lost.len()), (0, 0));
    pair.run_for(4 * SECOND);
    assert_eq!(pair.visitor().lost, [LostReason::Silent]);
    assert_eq!(pair.provider().lost, [LostReason::Silent]);
    assert_eq!([pair.visitor().next_timeout(), pair.provider().next_timeout()], [None, None]);
}

#[test]
fn a_peer_that_was_away_for_forty_seconds_comes_back_and_nothing_is_lost() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    let bytes = pair.net.rng().bytes(2_000_000);
    let stream = pair.visitor().send(bytes.clone(), true);
    pair.run_for(50 * MS);
    for link in pair.links {
        pair.net.link(link).settings.is_cut = true;
    }
    pair.run_for(40 * SECOND);
    for link in pair.links {
        pair.net.link(link).settings.is_cut = false;
    }
    pair.run_for(20 * SECOND);
    assert!(pair.provider().held(stream).read == bytes);
}

#[test]
fn an_idle_tunnel_is_kept_alive_and_costs_little() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    pair.visitor().send(vec![1; 100], false);
    pair.run_for(30 * SECOND);
    let before = [pair.visitor, pair.provider].map(|side| pair.net.stats(side));
    let minutes = 180;
    pair.run_for(minutes * 60 * SECOND);
    let after = [pair.visitor, pair.provider].map(|side| pair.net.stats(side));
    for (before, after) in before.into_iter().zip(after) {
        let bytes_per_second = (after.sent_bytes - before.sent_bytes) / (minutes * 60);
        let packets_per_minute = (after.sent - before.sent) / minutes;
        assert!(bytes_per_second < 50, "{bytes_per_second} bytes/s");
        assert!((2..9).contains(&packets_per_minute), "{packets_per_minute} packets a minute");
    }
    assert_eq!((pair.visitor().lost.len(), pair.provider().lost.len()), (0, 0));
}

#[test]
fn keys_change_every_ten_minutes_and_sessions_every_two_hours_and_streams_do_not_notice() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25).losing(Loss::Iid(0.05)));
    let stream = pair.visitor().send(Vec::new(), false);
    let mut sent = Vec::new();
    for _ in 0..5 * 60 {
        let piece = pair.net.rng().bytes(2_000);
        sent.extend_from_slice(&piece);
        pair.visitor().send_more(stream, &piece);
        pair.run_for(60 * SECOND);
    }
    pair.run_for(5 * SECOND);
    assert!(pair.visitor().held(stream).read == sent && pair.provider().held(stream).read == sent);
    assert_eq!((pair.visitor().tunnel().status().sessions, pair.provider().tunnel().status().sessions), (3, 3));
}
