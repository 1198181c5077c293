//! Streams of a tunnel: bytes, ends, resets, back-pressure, and that one does not disturb another.

mod sim;

use gateway::proto::tunnel::{ResetReason, Settings};
use sim::link::{self, Loss};
use sim::pair::Pair;
use sim::side::Accepts;
use sim::{MS, SECOND};

fn bad_link(rng: u64) -> link::Settings {
    link::Settings {
        delay_us: [MS, 20 * MS, 75 * MS][rng as usize % 3],
        jitter_us: [0, 10 * MS][rng as usize % 2],
        jitter_reorders: rng.is_multiple_of(2),
        loss: [Loss::None, Loss::Iid(0.05), Loss::Iid(0.25), Loss::Bursts { loss: 0.1, mean_length: 4.0 }]
            [rng as usize % 4],
        duplicate: [0.0, 0.1][rng as usize / 2 % 2],
        reorder: [0.0, 0.05][rng as usize / 4 % 2],
        reorder_us: 30 * MS,
        ..link::Settings::default()
    }
}

#[test]
fn streams_are_intact_whatever_the_path_does() {
    for seed in 0..60 {
        let mut pair = Pair::new(seed, &bad_link(seed));
        let count = 1 + pair.net.rng().below(8);
        let mut streams = Vec::new();
        for _ in 0..count {
            let length = [0, 10, 3_000, 300_000][pair.net.rng().below(4) as usize];
            let length = pair.net.rng().below(length + 1) as usize;
            let bytes = pair.net.rng().bytes(length);
            streams.push((pair.visitor().send(bytes.clone(), true), bytes));
            let pause = pair.net.rng().below(300 * MS);
            pair.run_for(pause);
        }
        pair.run_for(60 * SECOND);
        for (stream, bytes) in streams {
            for side in [pair.visitor, pair.provider] {
                let held = pair.net.node(side).held(stream);
                assert!(held.read == bytes, "seed {seed}: {stream:?} differs, {} of {}", held.read.len(), bytes.len());
                assert!(held.has_ended && held.is_forgotten, "seed {seed}: {stream:?} has not ended");
            }
        }
        for side in [pair.visitor, pair.provider] {
            assert_eq!(pair.net.node_mut(side).tunnel().status().streams, 0, "seed {seed}");
        }
    }
}

#[test]
fn a_writer_is_not_forgotten_before_the_reader_has_read_all() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    pair.provider().accepts = Accepts::Sink;
    let stream = pair.visitor().send(vec![7; 10_000], true);
    pair.provider().stopped.insert(stream);
    pair.run_for(SECOND);
    pair.provider().finish(stream);
    pair.run_for(SECOND);
    assert!(pair.visitor().held(stream).has_ended && !pair.visitor().held(stream).is_forgotten);
    pair.provider().resume(stream);
    pair.run_for(SECOND);
    for side in [pair.visitor, pair.provider] {
        assert!(pair.net.node(side).held(stream).is_forgotten);
        assert_eq!(pair.net.node_mut(side).endpoint.streams(), 0);
    }
}

#[test]
fn a_stream_tells_its_port_and_the_players_address() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    for (port, player) in [(0, None), (255, "203.0.113.7:4242".parse().ok()), (7, "[2001:db8::7]:1".parse().ok())] {
        let stream = pair.visitor().tunnel().open(port, player).expect("there is room");
        pair.run_for(25 * MS);
        assert_eq!(pair.provider().held(stream).opened, Some((port, player)));
    }
}

#[test]
fn only_the_visitor_opens_streams() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    assert_eq!(pair.provider().tunnel().open(0, None), None);
}

#[test]
fn each_half_ends_by_itself() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    pair.provider().accepts = Accepts::Sink;
    let stream = pair.visitor().send(b"a question".to_vec(), true);
    pair.run_for(30 * MS);
    let held = pair.provider().held(stream);
    assert!(held.read == b"a question" && held.has_ended && !held.is_forgotten, "the end comes with the bytes");
    pair.run_for(60 * SECOND);
    let answer = pair.net.rng().bytes(1_000_000);
    pair.provider().send_more(stream, &answer);
    pair.run_for(10 * SECOND);
    let held = pair.visitor().held(stream);
    assert!(held.read == answer && !held.has_ended);
    pair.provider().finish(stream);
    pair.run_for(SECOND);
    for side in [pair.visitor, pair.provider] {
        assert!(pair.net.node(side).held(stream).is_forgotten);
    }
}

#[test]
fn nothing_can_be_written_behind_the_end() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    let stream = pair.visitor().send(b"all".to_vec(), true);
    assert_eq!((pair.visitor().tunnel().room(stream), pair.visitor().tunnel().write(stream, b"more")), (0, 0));
    pair.visitor().tunnel().finish(stream);
    pair.run_for(SECOND);
    assert_eq!(pair.provider().held(stream).read, b"all");
}

#[test]
fn a_reset_is_told_from_either_side_and_both_forget() {
    for resets_visitor in [true, false] {
        let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
        let stream = pair.visitor().send(vec![1; 1_000_000], false);
        pair.run_for(70 * MS);
        let (one, other) = if resets_visitor { (pair.visitor, pair.provider) } else { (pair.provider, pair.visitor) };
        pair.net.node_mut(one).tunnel().reset(stream, ResetReason::TimedOut);
        pair.run_for(30 * MS);
        assert_eq!(pair.net.node(other).held(stream).reset, Some(ResetReason::TimedOut));
        pair.run_for(5 * SECOND);
        for side in [one, other] {
            let side = pair.net.node_mut(side);
            assert_eq!(side.tunnel().status().streams, 0);
            assert!(side.tunnel().peek(stream).is_empty() && side.tunnel().write(stream, b"x") == 0);
        }
        assert_eq!(pair.net.node(one).held(stream).reset, None, "whoever resets knows");
    }
}

#[test]
fn a_refused_stream_is_reset() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(25));
    pair.provider().accepts = Accepts::Refuse(ResetReason::Refused);
    let stream = pair.visitor().send(b"hello".to_vec(), true);
    pair.run_for(55 * MS);
    assert_eq!(pair.visitor().held(stream).reset, Some(ResetReason::Refused));
    for side in [pair.visitor, pair.provider] {
        assert_eq!(pair.net.node_mut(side).tunnel().status().streams, 0);
    }
}

#[test]
fn a_reset_that_overtakes_the_first_bytes_leaves_nothing_behind() {
    for seed in 0..40 {
        let mut pair = Pair::new(seed, &bad_link(seed));
        for _ in 0..20 {
            let stream = pair.visitor().send(vec![1; 5_000], false);
            let pause = pair.net.rng().below(100 * MS);
            pair.run_for(pause);
            pair.visitor().tunnel().reset(stream, ResetReason::Reset);
        }
        pair.run_for(20 * SECOND);
        for side in [pair.visitor, pair.provider] {
            assert_eq!(pair.net.node_mut(side).tunnel().status().streams, 0, "seed {seed}");
        }
    }
}

#[test]
fn more_streams_than_there_may_be_are_refused_and_others_go_on() {
    let few = Settings { streams_max: 10, ..Settings::default() };
    let mut pair = Pair::with(1, &link::Settings::delayed_ms(25), &few);
    let streams: Vec<_> = (0..10).map(|_| pair.visitor().send(b"x".to_vec(), false)).collect();
    assert_eq!(pair.visitor().tunnel().open(0, None), None);
    // A visitor that bears more than its provider.
    let many = Settings::default();
    let mut other = Pair::strangers(2, &link::Settings::delayed_ms(25), &few);
    *other.visitor() = sim::side::Side::new(many, [7; 32]);
    other.connect();
    other.run_for(SECOND);
    let theirs: Vec<_> = (0..20).map(|_| other.visitor().send(b"x".to_vec(), false)).collect();
    other.run_for(SECOND);
    pair.run_for(SECOND);
    assert!(streams.iter().all(|stream| pair.net.node(pair.visitor).held(*stream).read == b"x"));
    let refused = theirs.iter().filter(|stream| other.net.node(other.visitor).held(**stream).reset.is_some()).count();
    let served = theirs.iter().filter(|stream| other.net.node(other.visitor).held(**stream).read == b"x").count();
    assert_eq!((refused, served), (10, 10));
}

#[test]
fn a_thousand_streams_opened_and_closed_leave_nothing() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(10).losing(Loss::Iid(0.02)));
    let free = [pair.visitor, pair.provider].map(|side| pair.net.node_mut(side).tunnel().status().buffers_free);
    for round in 0..1_000 {
        let stream = pair.visitor().send(vec![1; 2_000], round % 3 > 0);
        pair.run_for(10 * MS);
        if round % 3 == 0 {
            pair.visitor().tunnel().reset(stream, ResetReason::Reset);
        }
    }
    pair.run_for(5 * SECOND);
    for (side, free) in [pair.visitor, pair.provider].into_iter().zip(free) {
        let status = pair.net.node_mut(side).tunnel().status();
        assert_eq!((status.streams, status.buffers_free), (0, free));
    }
}

#[test]
fn a_reader_that_has_stopped_delays_no_other() {
    for stopped in [1, 40] {
        let link = link::Settings::delayed_ms(20).limited(50_000_000, 50);
        let mut pair = Pair::new(1, &link);
        pair.provider().accepts = Accepts::Sink;
        let bytes = pair.net.rng().bytes(400_000);
        let streams: Vec<_> = (0..100).map(|_| pair.visitor().send(bytes.clone(), true)).collect();
        pair.provider().stopped.extend(&streams[..stopped]);
        pair.run_for(20 * SECOND);
        for (at, stream) in streams.iter().enumerate() {
            let read = pair.provider().held(*stream).read.len();
            assert_eq!(read, if at < stopped { 0 } else { bytes.len() }, "stream {at} of {stopped} stopped");
        }
        streams[..stopped].iter().for_each(|stream| pair.provider().resume(*stream));
        pair.run_for(20 * SECOND);
        assert!(streams.iter().all(|stream| pair.net.node(pair.provider).held(*stream).read == bytes));
    }
}

#[test]
fn a_reader_that_has_stopped_costs_bounded_memory_and_stops_the_writer() {
    let mut pair = Pair::new(1, &link::Settings::delayed_ms(20));
    pair.provider().accepts = Accepts::Sink;
    let stream = pair.visitor().send(vec![1; 30_000_000], true);
    pair.provider().stopped.insert(stream);
    pair.run_for(30 * SECOND);
    let before = pair.net.stats(pair.visitor).sent_bytes;
    assert!(before < 1_000_000, "{before} bytes for a reader who reads none");
    pair.run_for(60 * SECOND);
    let after = pair.net.stats(pair.visitor).sent_bytes;
    assert!(after - before < 5_000, "{} bytes in a minute of waiting", after - before);
}

#[test]
fn bulk_is_fair_to_bulk() {
    let link = link::Settings::delayed_ms(20).limited(20_000_000, 100);
    let mut pair = Pair::new(1, &link);
    pair.provider().accepts = Accepts::Sink;
    let streams: Vec<_> = (0..10).map(|_| pair.visitor().send(vec![1; 20_000_000], false)).collect();
    pair.run_for(20 * SECOND);
    let read: Vec<_> = streams.iter().map(|stream| pair.net.node(pair.provider).held(*stream).read.len()).collect();
    let (least, most) = (read.iter().min(), read.iter().max());
    let total: usize = read.iter().sum();
    assert!(total > 40_000_000 && least.map(|least| least * 10 / 9) > most.copied(), "{read:?}");
}
