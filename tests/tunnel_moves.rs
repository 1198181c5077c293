//! Other ways to the peer: probes, questions for one's own address, what owners tell each other, and paths that an owner chooses.

mod sim;

use std::net::SocketAddr;

use gateway::proto::tunnel::{Event, Leaving, Settings, Way};
use sim::pair::{Pair, address};
use sim::{MS, SECOND, link};

fn pair() -> Pair {
    Pair::new(1, &link::Settings::delayed_ms(30))
}

/// What the provider makes of a datagram from `from`, and what it sends for it.
fn brought(pair: &mut Pair, from: SocketAddr, datagram: &mut [u8]) -> Vec<(SocketAddr, Vec<u8>)> {
    let now = pair.net.now();
    let provider = pair.provider();
    provider.endpoint.handle_datagram(now, from, datagram);
    let (mut sent, mut out) = (Vec::new(), Vec::new());
    while let Some(transmit) = provider.endpoint.poll_transmit(now, &mut out) {
        sent.push((transmit.to, std::mem::take(&mut out)));
    }
    sent
}

fn ways(pair: &mut Pair) -> Vec<Event> {
    let visitor = pair.visitor();
    while let Some((_, event)) = visitor.endpoint.poll_event() {
        visitor.ways.push((0, event));
    }
    visitor.ways.drain(..).map(|(_, event)| event).collect()
}

#[test]
fn a_probe_is_answered_to_where_it_came_from_in_as_many_bytes_and_moves_nothing() {
    let mut pair = pair();
    pair.run_for(5 * SECOND);
    let (now, there) = (pair.net.now(), address(2));
    let mut probe = Vec::new();
    let before = pair.visitor().tunnel().status().sent_aside;
    pair.visitor().tunnel().probe(now, there, &mut probe);
    assert_eq!(pair.visitor().tunnel().status().sent_aside, before, "the peer is there: it must answer");
    let (length, mut again) = (probe.len(), probe.clone());
    let answers = brought(&mut pair, address(77), &mut probe);
    assert_eq!(brought(&mut pair, address(78), &mut again), [], "a probe that was caught");
    let [(to, mut answer)] = <[_; 1]>::try_from(answers).expect("one answer");
    assert_eq!((to, answer.len()), (address(77), length));
    pair.run_for(60 * MS);
    let now = pair.net.now();
    pair.visitor().endpoint.handle_datagram(now, there, &mut answer);
    assert_eq!(ways(&mut pair), [Event::Answered { from: there, rtt_us: 60_000 }]);
    assert!(pair.provider().ways.iter().any(|(_, event)| *event == Event::Probed { from: address(77) }));
    pair.run_for(5 * SECOND);
    assert_eq!(
        [pair.visitor().tunnel().status().remote, pair.provider().tunnel().status().remote],
        [2, 1].map(address)
    );
}

/// By what is not answered a peer is taken for dead.
#[test]
fn what_asks_whether_other_ways_work_does_not_count_as_asking_the_peer() {
    let mut pair = pair();
    let now = pair.net.now();
    let before = pair.visitor().tunnel().status();
    pair.visitor().tunnel().probe(now, address(99), &mut Vec::new());
    pair.visitor().tunnel().observe(now, [1; 8], &mut Vec::new());
    let after = pair.visitor().tunnel().status();
    assert_eq!(after.sent.datagrams - before.sent.datagrams, 2);
    assert_eq!(after.sent_aside - before.sent_aside, 2);
}

#[test]
fn an_answer_that_somebody_brings_from_elsewhere_proves_nothing() {
    let mut pair = pair();
    let now = pair.net.now();
    let mut probe = Vec::new();
    pair.visitor().tunnel().probe(now, address(2), &mut probe);
    let (_, mut answer) = brought(&mut pair, address(1), &mut probe).remove(0);
    pair.visitor().endpoint.handle_datagram(now, address(99), &mut answer);
    assert_eq!(ways(&mut pair), []);
}

#[test]
fn only_who_is_set_to_tells_a_peer_its_address_and_never_in_more_bytes_than_were_asked_in() {
    for answers_observe in [true, false] {
        let settings = Settings { answers_observe, ..Settings::default() };
        let mut pair = Pair::with(1, &link::Settings::delayed_ms(30), &settings);
        pair.run_for(5 * SECOND);
        for seen in ["192.0.2.7:4", "[2001:db8::7]:65535"] {
            let seen: SocketAddr = seen.parse().expect("an address");
            let now = pair.net.now();
            let mut question = Vec::new();
            pair.visitor().tunnel().observe(now, *b"who am I", &mut question);
            let length = question.len();
            let mut answers = brought(&mut pair, seen, &mut question);
            assert_eq!(answers.len(), usize::from(answers_observe));
            if let Some((to, mut answer)) = answers.pop() {
                assert!(to == seen && answer.len() <= length);
                pair.visitor().endpoint.handle_datagram(now, address(2), &mut answer);
                assert_eq!(ways(&mut pair), [Event::Observed { token: *b"who am I", address: seen }]);
            }
        }
    }
}

#[test]
fn a_question_that_is_to_be_answered_elsewhere_is_for_who_is_set_to_and_pays_for_both_answers() {
    for answers_observe in [true, false] {
        let settings = Settings { answers_observe, ..Settings::default() };
        let mut pair = Pair::with(1, &link::Settings::delayed_ms(30), &settings);
        pair.run_for(5 * SECOND);
        let is_asked = |(_, event): &(u64, Event)| matches!(event, Event::AskedElsewhere { .. });
        for seen in ["192.0.2.7:4", "[2001:db8::7]:65535"] {
            let seen: SocketAddr = seen.parse().expect("an address");
            let now = pair.net.now();
            let mut question = Vec::new();
            pair.visitor().tunnel().observe_elsewhere(now, *b"not here", *b"but here", &mut question);
            let length = question.len();
            let mut answers = brought(&mut pair, seen, &mut question);
            pair.run_for(SECOND);
            let asked: Vec<_> =
                pair.provider().ways.extract_if(.., |way| is_asked(way)).map(|(_, event)| event).collect();
            if !answers_observe {
                assert_eq!((answers.len(), asked.len()), (0, 0));
                continue;
            }
            assert_eq!(asked, [Event::AskedElsewhere { token: *b"not here", from: seen }]);
            let mut elsewhere = Vec::new();
            pair.provider().tunnel().answer_elsewhere(now, *b"not here", seen, &mut elsewhere);
            answers.push((seen, elsewhere));
            assert!(answers.iter().map(|(_, answer)| answer.len()).sum::<usize>() <= length);
            let now = pair.net.now();
            for (to, answer) in &mut answers {
                assert_eq!(*to, seen);
                pair.visitor().endpoint.handle_datagram(now, address(2), answer);
            }
            let told = [*b"but here", *b"not here"].map(|token| Event::Observed { token, address: seen });
            assert_eq!(ways(&mut pair), told);
        }
    }
}

#[test]
fn a_question_for_elsewhere_from_behind_an_address_of_ours_is_not_heard() {
    let settings = Settings { answers_observe: true, ..Settings::default() };
    let mut pair = Pair::with(1, &link::Settings::delayed_ms(30), &settings);
    let now = pair.net.now();
    let mut question = Vec::new();
    pair.visitor().tunnel().observe_elsewhere(now, [1; 8], [2; 8], &mut question);
    assert_eq!(brought(&mut pair, Way::Link(1).into(), &mut question), []);
    pair.run_for(SECOND);
    assert!(!pair.provider().ways.iter().any(|(_, event)| matches!(event, Event::AskedElsewhere { .. })));
}

#[test]
fn an_address_of_an_old_protocol_in_a_new_one_is_told_as_what_it_is() {
    let settings = Settings { answers_observe: true, ..Settings::default() };
    let mut pair = Pair::with(1, &link::Settings::delayed_ms(30), &settings);
    let now = pair.net.now();
    let mut question = Vec::new();
    pair.visitor().tunnel().observe(now, [1; 8], &mut question);
    let mapped = "[::ffff:192.0.2.7]:4".parse().expect("an address");
    let (_, mut answer) = brought(&mut pair, mapped, &mut question).remove(0);
    pair.visitor().endpoint.handle_datagram(now, address(2), &mut answer);
    let address = "192.0.2.7:4".parse().expect("an address");
    assert_eq!(ways(&mut pair), [Event::Observed { token: [1; 8], address }]);
    // Behind an address of ours there is nothing to be seen.
    let mut question = Vec::new();
    pair.visitor().tunnel().observe(now, [2; 8], &mut question);
    assert_eq!(brought(&mut pair, Way::Link(1).into(), &mut question), []);
}

#[test]
fn what_owners_tell_each_other_arrives_in_order_whatever_gets_lost() {
    let lossy = link::Settings::delayed_ms(30).losing(link::Loss::Iid(0.2));
    let mut pair = Pair::new(3, &lossy);
    assert!(!pair.visitor().tunnel().tell(&[0; 1_025]));
    let messages: Vec<Vec<u8>> = (0..20u8).map(|count| vec![count; 51 * usize::from(count) + 1]).collect();
    for message in &messages {
        assert!(pair.visitor().tunnel().tell(message));
    }
    pair.provider().tunnel().tell(b"and back");
    pair.run_for(10 * SECOND);
    let tunnel = pair.provider().tunnel();
    let told: Vec<_> = std::iter::from_fn(|| tunnel.read_told()).map(Vec::from).collect();
    assert_eq!(told, messages);
    assert_eq!(pair.visitor().tunnel().read_told().as_deref(), Some(&b"and back"[..]));
    let is_told = |ways: &[(u64, Event)]| ways.iter().filter(|(_, event)| *event == Event::Told).count();
    assert_eq!((is_told(&pair.provider().ways), is_told(&pair.visitor().ways)), (1, 1));
}

#[test]
fn who_does_not_read_what_he_is_told_keeps_the_latest() {
    let mut pair = pair();
    for count in 0..100u8 {
        assert!(pair.visitor().tunnel().tell(&[count]));
        pair.run_for(MS);
    }
    pair.run_for(SECOND);
    let tunnel = pair.provider().tunnel();
    let told: Vec<_> = std::iter::from_fn(|| tunnel.read_told()).map(|told| told[0]).collect();
    assert_eq!(told, (68..100).collect::<Vec<_>>());
}

#[test]
fn what_no_report_counts_is_no_loss() {
    let mut pair = pair();
    let stream = pair.visitor().send(Vec::new(), false);
    for _ in 0..300 {
        // Two thousand probes that nobody ever gets, as in a round.
        for _ in 0..7 {
            let now = pair.net.now();
            pair.visitor().tunnel().probe(now, address(99), &mut Vec::new());
        }
        pair.visitor().send_more(stream, &[7; 64]);
        pair.run_for(16_667);
    }
    assert!(pair.visitor().tunnel().status().loss < 0.01, "{:?}", pair.visitor().tunnel().status());
}

/// Catches what one end sends now, so that it does not arrive.
fn caught(pair: &mut Pair, from_visitor: bool) -> Vec<Vec<u8>> {
    let now = pair.net.now();
    let side = if from_visitor { pair.visitor() } else { pair.provider() };
    let (mut packets, mut out) = (Vec::new(), Vec::new());
    while let Some(transmit) = side.endpoint.poll_transmit(now, &mut out) {
        packets.extend(out.chunks(transmit.segment_bytes).map(<[u8]>::to_vec));
        out.clear();
    }
    packets
}

#[test]
fn a_visitor_that_has_chosen_is_moved_by_nobody() {
    let mut pair = pair();
    pair.run_for(5 * SECOND);
    let now = pair.net.now();
    pair.visitor().tunnel().use_path(now, address(2), Leaving::Alive);
    pair.provider().tunnel().send_datagram(7, 0, None, b"elsewhere");
    for mut packet in caught(&mut pair, false) {
        pair.visitor().endpoint.handle_datagram(now, address(99), &mut packet);
        pair.visitor().endpoint.handle_datagram(now, Way::Link(9).into(), &mut packet);
    }
    pair.run_for(5 * SECOND);
    assert_eq!(pair.visitor().datagrams.len(), 1, "it was authentic");
    assert_eq!(pair.visitor().tunnel().status().remote, address(2));
    assert!(!pair.visitor().ways.iter().any(|(_, event)| matches!(event, Event::Moved { .. })));
}

#[test]
fn a_provider_follows_at_once_only_to_an_address_that_has_answered_its_own_probe() {
    for is_proved in [true, false] {
        let mut pair = pair();
        pair.run_for(5 * SECOND);
        let (now, elsewhere) = (pair.net.now(), address(77));
        if is_proved {
            let mut probe = Vec::new();
            pair.provider().tunnel().probe(now, elsewhere, &mut probe);
            pair.visitor().endpoint.handle_datagram(now, address(2), &mut probe);
            for mut answer in caught(&mut pair, true) {
                pair.provider().endpoint.handle_datagram(now, elsewhere, &mut answer);
            }
        }
        assert_eq!(pair.provider().tunnel().status().remote, address(1), "an answer moves nothing");
        pair.visitor().tunnel().send_datagram(7, 0, None, b"from elsewhere");
        for mut packet in caught(&mut pair, true) {
            pair.provider().endpoint.handle_datagram(now, elsewhere, &mut packet);
        }
        let expected = if is_proved { elsewhere } else { address(1) };
        assert_eq!(pair.provider().tunnel().status().remote, expected, "proved: {is_proved}");
    }
}

#[test]
fn a_datagram_through_a_rendezvous_leaves_room_for_what_that_adds() {
    let mut pair = pair();
    pair.run_for(5 * SECOND);
    assert_eq!(pair.visitor().tunnel().status().mtu, 1_452);
    let now = pair.net.now();
    let flow = Way::Flow { via: 0, flow: 1 }.into();
    pair.visitor().tunnel().use_path(now, flow, Leaving::Alive);
    let mut longest = 0;
    for _ in 0..20 {
        let now = pair.net.now();
        for mut packet in caught(&mut pair, true) {
            longest = longest.max(packet.len());
            pair.provider().endpoint.handle_datagram(now, flow, &mut packet);
        }
        for mut packet in caught(&mut pair, false) {
            pair.visitor().endpoint.handle_datagram(now, flow, &mut packet);
        }
        pair.run_for(SECOND);
    }
    assert_eq!((pair.visitor().tunnel().status().mtu, longest), (1_350, 1_350));
}
