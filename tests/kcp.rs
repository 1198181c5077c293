//! The KCP state machine on a virtual clock: against the `kcp` crate and against itself over links that lose, double, delay and
//! reorder; against peers that lie; and its timers, one by one. A failure names its seed.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;

use gateway::proto::kcp::segment::{Command, HEADER_BYTES, Header};
use gateway::proto::kcp::{Acked, Buffers, Conversation, Invalid, Mode, Origin, Settings, Stamp};

const ID: u32 = 0x1122_3344;
const ROOM: usize = 1400;
const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;

#[test]
fn the_kcp_crate_and_we_understand_each_other_over_a_bad_link() {
    for seed in 0..1500 {
        let mut rng = Rng(seed);
        let clock_ms = [0, i32::MAX as u32, u32::MAX][seed as usize % 3];
        let settings = Settings { receive_window: [32, 128, 1024][rng.below(3) as usize], ..any_settings(&mut rng) };
        let bytes = any_length(&settings, &mut rng);
        let ours = Ours::new(settings, Origin { clock_ms, ..Origin::default() }, rng.below(3) as u32);
        let path = Path::any(&mut rng);
        exchange(seed, Box::new(ours), Box::new(Theirs::new(&mut rng)), path, bytes);
    }
}

#[test]
fn two_of_us_understand_each_other_over_a_bad_link_wherever_numbers_and_clocks_begin() {
    const STARTS: [u32; 3] = [0, i32::MAX as u32, u32::MAX];
    for seed in 0..3000 {
        let mut rng = Rng(seed);
        let mut any = || STARTS[rng.below(3) as usize];
        let (left, right, left_clock, right_clock) = (any(), any(), any(), any());
        let settings = any_settings(&mut rng);
        let mut end = |send, receive, clock_ms| {
            Box::new(Ours::new(settings.clone(), Origin { send, receive, clock_ms }, rng.below(3) as u32))
        };
        let ends = (end(left, right, left_clock), end(right, left, right_clock));
        let path = Path::any(&mut rng);
        exchange(seed, ends.0, ends.1, path, any_length(&settings, &mut rng));
    }
}

#[test]
fn a_peer_that_is_gone_for_a_minute_costs_few_timeouts_and_loses_nothing() {
    for bytes in [100, 10_000, 200_000] {
        let (mut left, mut right) = (Ours::plain(), Ours::plain());
        let stream = Rng(7).bytes(bytes);
        left.write(&stream);
        let (mut now, mut looks) = (0, 0);
        while now < 60 * SECOND {
            left.output(now); // Nothing of it arrives.
            now = left.next_timeout(now).expect("it waits for acknowledgements");
            looks += 1;
        }
        assert!(looks <= 400, "{looks} timeouts in a minute for {bytes} bytes");
        assert!(left.conversation.waited_us(now) >= Some(60 * SECOND));
        let mut arrived = Vec::new();
        while arrived.len() < bytes {
            let datagrams = left.output(now);
            datagrams.iter().for_each(|datagram| right.input(now, datagram));
            arrived.extend(right.read(usize::MAX));
            let datagrams = right.output(now);
            datagrams.iter().for_each(|datagram| left.input(now + MS, datagram));
            now += MS;
        }
        assert_eq!(arrived, stream);
    }
}

#[test]
fn nothing_is_due_before_the_timeout_and_it_is_exact() {
    let mut left = Ours::plain();
    left.write(b"hello");
    assert_eq!(left.output(0).len(), 1);
    for (sent, rto) in [(0, 200 * MS), (200 * MS, 300 * MS), (500 * MS, 450 * MS), (950 * MS, 675 * MS)] {
        let at = left.conversation.next_timeout().expect("one segment is in flight");
        assert_eq!(at, sent + rto);
        assert_eq!(left.output(at - 1), [] as [Vec<u8>; 0]);
        assert_eq!(left.output(at).len(), 1);
    }
}

#[test]
fn what_is_lost_of_bulk_is_sent_again_after_a_round_trip() {
    let (mut left, mut right) = (Ours::plain(), Ours::plain());
    left.write(&[1; 100 * 1298]);
    // 100 datagrams, one each 0.1 ms, the 50th is lost; each arrives after 25 ms, and so does its acknowledgement.
    let mut datagrams = Vec::new();
    for at in 0..100 {
        let mut out = Vec::new();
        left.conversation.write_new(at * 100, ROOM, Stamp::default(), &left.buffers, &mut out);
        datagrams.push(out);
    }
    let mut again = Vec::new();
    for at in 0..100u64 {
        if at != 50 {
            right.input(at * 100 + 25 * MS, &datagrams[at as usize]);
            let acks = right.output(at * 100 + 25 * MS);
            left.input(at * 100 + 50 * MS, &acks[0]);
        }
        if left.conversation.has_lost() {
            let mut out = Vec::new();
            left.conversation.write_lost(at * 100 + 50 * MS, ROOM, Stamp::default(), &left.buffers, &mut out);
            again.push((at, out));
        }
    }
    let (at, out) = again.pop().expect("it is sent again");
    assert!(again.is_empty(), "and once only");
    assert_eq!(at, 60, "as soon as one that left 1 ms later is acknowledged");
    assert_eq!(header(&out).number, 50);
    right.input(90 * MS, &out);
    assert_eq!(right.conversation.readable(), 100 * 1298);
}

#[test]
fn of_many_in_flight_one_has_a_timeout_and_each_acknowledgement_begins_it_again() {
    let (mut left, mut right) = warm_pair();
    left.write(&[1; 60 * 1298]);
    let datagrams = left.output(SECOND);
    assert_eq!(left.conversation.next_timeout(), Some(SECOND + 54 * MS));
    right.input(SECOND + 25 * MS, &datagrams[0]);
    left.input(SECOND + 50 * MS, &right.output(SECOND + 25 * MS)[0]);
    let at = SECOND + 50 * MS + 54 * MS;
    assert_eq!(left.conversation.next_timeout(), Some(at));
    let again = left.output(at);
    assert_eq!(
        again.iter().map(|datagram| header(datagram).number).collect::<Vec<_>>(),
        [17],
        "the first that is missing"
    );
    // It was not the only one: all that left before it are lost as well, and sent again a round trip later.
    right.input(at + 25 * MS, &again[0]);
    left.input(at + 50 * MS, &right.output(at + 25 * MS)[0]);
    assert_eq!(left.output(at + 50 * MS).len(), 58);
}

#[test]
fn a_writer_is_held_back_by_its_window_and_by_its_bytes() {
    let settings = Settings { segment_bytes: 100, send_window: 3, send_bytes: 250, ..Settings::default() };
    let mut by_bytes = Ours::new(settings.clone(), Origin::default(), 0);
    assert_eq!((by_bytes.write(&[0; 999]), by_bytes.write(&[0; 999])), (250, 0));
    let mut by_window = Ours::new(Settings { send_bytes: 999, ..settings }, Origin::default(), 0);
    assert_eq!((by_window.write(&[0; 250]), by_window.write(&[0; 999]), by_window.write(&[0; 1])), (250, 50, 0));
}

#[test]
fn what_is_written_is_cut_when_it_is_sent_as_the_path_then_allows() {
    let mut left = Ours::plain();
    let mut lengths = Vec::new();
    for bytes in [500, 1000, 200] {
        left.write(&[0; 300]);
        left.conversation.set_segment_bytes(bytes);
        left.write(&[0; 900]);
        let sent = left.output(0).concat();
        lengths.push(headers(&sent).map(|header| header.length).collect::<Vec<_>>());
    }
    assert_eq!(lengths, [vec![500, 500, 200], vec![1000, 200], vec![200; 6]]);
}

#[test]
fn a_path_that_becomes_narrower_needs_longer_packets_for_what_was_sent_only() {
    const NARROW: usize = 1200;
    let (mut left, mut right) = (Ours::plain(), Ours::plain());
    let stream = Rng(5).bytes(100_000);
    assert_eq!(left.write(&stream), stream.len());
    let mut out = Vec::new();
    while out.len() < 30_000 {
        left.conversation.write_new(0, ROOM, Stamp::default(), &left.buffers, &mut out); // Nothing of it arrives.
    }
    left.conversation.set_segment_bytes(NARROW - HEADER_BYTES);
    let (mut now, mut long) = (0, 0);
    while right.conversation.readable() < stream.len() {
        left.conversation.handle_timeout(now);
        let is_long = left.conversation.first_lost_bytes().is_some_and(|bytes| bytes > NARROW);
        let mut out = Vec::new();
        if is_long {
            long += 1;
            let bytes = left.conversation.first_lost_bytes();
            left.conversation.write_lost(now, ROOM, Stamp::default(), &left.buffers, &mut out);
            assert_eq!(Some(out.len()), bytes);
        } else if left.conversation.flush(now, NARROW, 0, Stamp::default(), &left.buffers, &mut out) == 0 {
            now = left.next_timeout(now).expect("something is left");
        }
        right.input(now, &out);
        right.output(now).iter().for_each(|acks| left.input(now, acks));
        assert!(now < 60 * SECOND, "{} bytes have arrived", right.conversation.readable());
    }
    assert_eq!((right.read(usize::MAX), long), (stream, out.len() / (1298 + HEADER_BYTES)));
}

#[test]
fn a_packet_that_is_begun_takes_a_segment_cut_down_to_half_and_no_less() {
    let sent = |room: usize| {
        let mut left = Ours::plain();
        left.conversation.set_segment_bytes(1000);
        left.write(&[0; 1500]);
        let mut out = Vec::new();
        left.conversation.write_new(0, room, Stamp::default(), &left.buffers, &mut out);
        assert!(out.len() <= room);
        headers(&out).map(|header| header.length).collect::<Vec<_>>()
    };
    for (room, expected) in [
        (523, vec![]),
        (524, vec![500]),
        (1023, vec![999]),
        (1024, vec![1000]),
        (1524, vec![1000]),
        (1548, vec![1000, 500]),
    ] {
        assert_eq!(sent(room), expected, "{room}");
    }
}

#[test]
fn a_lone_lost_message_is_sent_again_by_its_timeout() {
    let (mut left, mut right) = warm_pair();
    let begin = SECOND;
    left.write(b"lost");
    assert_eq!(left.output(begin).len(), 1);
    let at = left.conversation.next_timeout().expect("it is in flight");
    assert_eq!(at, begin + 54 * MS, "a round trip of 50 ms and the margin of 4 ms");
    let again = left.output(at);
    right.input(at + 25 * MS, &again[0]);
    assert!(right.read(100).ends_with(b"lost"));
}

#[test]
fn a_repeat_does_not_begin_the_timeout_again() {
    let (mut left, _) = warm_pair();
    left.write(b"lost");
    left.output(SECOND);
    for later in [0, 10 * MS, 20 * MS, 30 * MS] {
        let mut out = Vec::new();
        left.conversation.write_repeats(SECOND + later, ROOM, 2, &left.buffers, &mut out);
        assert_eq!(out.is_empty(), later == 0 || later == 30 * MS, "twice, and not in the same instant: {later}");
        assert_eq!(left.conversation.next_timeout(), Some(SECOND + 54 * MS));
    }
}

#[test]
fn the_timestamp_tells_which_transmission_arrived_to_the_microsecond() {
    let (mut left, mut right) = (Ours::plain(), Ours::plain());
    left.write(b"hello");
    left.output(123);
    let again = left.output(200 * MS + 123);
    right.input(0, &again[0]);
    let mut acked = Vec::new();
    let acks = right.output(0);
    let now = 230 * MS + 456;
    left.conversation.input(now, &acks[0], &mut left.buffers, |one| acked.push(one)).expect("it is valid");
    let expected = Acked { length: 5, rtt_us: Some(30_333), transmissions: 2, stamp: [0, 0, 0, 200 * MS + 123] };
    assert_eq!(acked, [expected]);
}

#[test]
fn a_path_that_reorders_is_given_more_time_once_it_was_mistaken_for_a_lossy_one() {
    let (mut left, mut right) = warm_pair();
    let mut mistakes = Vec::new();
    for round in 1..=20 {
        let begin = round * SECOND;
        left.write(&[1; 1298]);
        let late = left.output(begin);
        left.write(&[2; 1298]);
        let early = left.output(begin + 2 * MS);
        right.input(begin + 27 * MS, &early[0]);
        let acks = right.output(begin + 27 * MS);
        left.input(begin + 52 * MS, &acks[0]);
        right.input(begin + 28 * MS, &late[0]);
        let acks = right.output(begin + 28 * MS);
        mistakes.push(left.output(begin + 52 * MS).len());
        left.input(begin + 53 * MS, &acks[0]);
        right.read(usize::MAX);
    }
    assert_eq!((mistakes[0], mistakes.iter().sum()), (1, 1));
    assert_eq!(left.conversation.counters().spurious, 1);
}

#[test]
fn what_another_path_overtakes_is_lost_half_a_round_trip_later_and_not_before() {
    // The pair's round trip is 50 ms. The path that follows takes 10.
    for (after_ms, is_lost) in [(5, false), (24, false), (25, true)] {
        let (mut left, mut right) = warm_pair();
        left.write(&[1; 1298]);
        left.output(SECOND);
        left.conversation.begin_path(SECOND + MS, 100 * MS);
        left.write(&[2; 1298]);
        let overtaking = left.output(SECOND + after_ms * MS);
        right.input(SECOND + (after_ms + 5) * MS, &overtaking[0]);
        let acks = right.output(SECOND + (after_ms + 5) * MS);
        left.input(SECOND + (after_ms + 10) * MS, &acks[0]);
        assert_eq!(left.conversation.has_lost(), is_lost, "sent {after_ms} ms later");
    }
}

#[test]
fn what_was_sent_on_a_path_that_died_is_lost_and_what_was_sent_since_is_not() {
    let (mut left, _) = warm_pair();
    left.write(&[1; 3000]);
    let before = left.output(SECOND).len();
    left.conversation.begin_path(SECOND + MS, 100 * MS);
    left.write(&[2; 1298]);
    left.output(SECOND + 2 * MS);
    for _ in 0..2 {
        left.conversation.resend_before(SECOND + MS);
    }
    assert_eq!(
        (left.output(SECOND + 3 * MS).len(), left.conversation.counters().retransmitted),
        (before, before as u64)
    );
    left.conversation.resend_before(SECOND + MS);
    assert!(!left.conversation.has_lost(), "once is enough");
}

#[test]
fn the_time_given_to_a_path_that_reordered_shrinks_with_each_true_loss() {
    let (mut left, mut right) = warm_pair();
    // The first is late, all others are lost. The next leaves 2 ms later, and tells at once, or the time-out does.
    let mut told_at_once = Vec::new();
    right.read(usize::MAX);
    for round in 1..=40 {
        let begin = round * SECOND;
        left.write(&[1; 1298]);
        let missing = left.output(begin);
        left.write(&[2; 1298]);
        let next = left.output(begin + 2 * MS);
        right.input(begin + 27 * MS, &next[0]);
        left.input(begin + 52 * MS, &right.output(begin + 27 * MS)[0]);
        told_at_once.push(left.conversation.has_lost());
        let again_at = if told_at_once[round as usize - 1] { begin + 52 * MS } else { begin + 300 * MS };
        let again = left.output(again_at);
        if round == 1 {
            right.input(begin + 28 * MS, &missing[0]);
            left.input(begin + 53 * MS, &right.output(begin + 28 * MS)[0]);
        }
        right.input(again_at + 25 * MS, &again[0]);
        let acks = right.output(again_at + 45 * MS);
        left.input(again_at + 50 * MS, &acks[0]);
        assert_eq!((left.conversation.unacknowledged(), right.read(usize::MAX).len()), (0, 2 * 1298));
    }
    assert_eq!(left.conversation.counters().spurious, 1);
    let patient: Vec<usize> = (0..40).filter(|round| !told_at_once[*round]).collect();
    assert_eq!(
        patient,
        (1..=24).collect::<Vec<_>>(),
        "12.5 ms of patience are halved three times before 2 ms exceed them"
    );
}

#[test]
fn an_ack_above_a_gap_is_repeated_in_the_next_two_datagrams_and_not_once_it_is_closed() {
    let mut left = Ours::plain();
    left.write(&[1; 6 * 1298]);
    let datagrams = left.output(0);
    let acks_after = |right: &mut Ours, segment: usize| -> Vec<u32> {
        right.input(0, &datagrams[segment]);
        let acks = right.output(0).concat();
        headers(&acks).map(|header| header.number).collect()
    };
    let mut right = Ours::plain();
    assert_eq!(acks_after(&mut right, 0), [0]);
    assert_eq!(acks_after(&mut right, 2), [2]);
    assert_eq!(acks_after(&mut right, 3), [3, 2]);
    assert_eq!(acks_after(&mut right, 4), [4, 3, 2]);
    assert_eq!(acks_after(&mut right, 5), [5, 4, 3]);
    assert_eq!(acks_after(&mut right, 1), [1], "which says that the others have arrived, too");
}

#[test]
fn an_ack_above_a_gap_is_said_twice_even_when_there_are_more_than_a_datagram_holds() {
    let (mut left, mut right) = (Ours::plain(), Ours::plain());
    left.write(&[1; 128 * 1298]);
    left.output(0).iter().skip(1).for_each(|datagram| right.input(0, datagram));
    let mut said = [0; 128];
    let mut datagrams = 0;
    while right.conversation.has_acks() {
        let mut out = Vec::new();
        right.conversation.write_acks(ROOM, &mut out);
        headers(&out).for_each(|header| said[header.number as usize] += 1);
        datagrams += 1;
    }
    let once: Vec<usize> = (1..128).filter(|number| said[*number] == 1).collect();
    assert_eq!(
        (datagrams, once),
        (5, (117..128).collect()),
        "all but those that the last datagram was the first to say"
    );
    assert!(said[1..117].iter().all(|times| [2, 3].contains(times)), "{said:?}");
}

#[test]
fn a_game_with_repeats_sends_no_more_than_its_messages_and_their_acks() {
    for (loss, most) in [(0, 121), (5, 135)] {
        let mut rng = Rng(60);
        let mut ends = [Ours::new(Settings::default(), Origin::default(), 2), Ours::plain()];
        ends[1].repeats = 2;
        let mut wire: VecDeque<(u64, usize, Vec<u8>)> = VecDeque::new();
        let mut sent = [0, 0];
        for now in (0..60 * SECOND).step_by(500) {
            while wire.front().is_some_and(|(at, ..)| *at <= now) {
                let Some((_, to, datagram)) = wire.pop_front() else { break };
                ends[to].input(now, &datagram);
                ends[to].read(usize::MAX);
            }
            for side in 0..2 {
                if (now + side as u64 * 6 * MS).is_multiple_of(16_500) {
                    ends[side].write(&[1; 64]);
                }
                for datagram in ends[side].output(now) {
                    sent[side] += 1;
                    if rng.below(100) >= loss {
                        wire.push_back((now + 25 * MS, 1 - side, datagram));
                    }
                }
            }
        }
        let in_a_second = sent.map(|sent| sent / 60);
        assert!(in_a_second.iter().all(|sent| *sent <= most), "{in_a_second:?} datagrams in a second at {loss} %");
    }
}

#[test]
fn a_duplicate_is_acknowledged_with_the_next_datagram_or_after_20_ms() {
    let (mut left, mut right) = (Ours::plain(), Ours::plain());
    left.write(b"hello");
    let datagram = &left.output(0)[0];
    right.input(0, datagram);
    assert_eq!(right.output(0).len(), 1);
    right.input(5 * MS, datagram);
    assert_eq!((right.output(5 * MS).len(), right.conversation.next_timeout()), (0, Some(25 * MS)));
    right.write(b"answer");
    let answer = right.output(9 * MS).concat();
    assert_eq!(headers(&answer).map(|header| header.command).collect::<Vec<_>>(), [Command::Ack, Command::Push]);
    assert_eq!(right.conversation.acks_due_at(), None);
    right.input(10 * MS, datagram);
    assert_eq!(right.output(30 * MS - 1).len(), 0);
    assert_eq!(header(&right.output(30 * MS)[0]).command, Command::Ack);
}

#[test]
fn only_what_arrives_in_its_turn_waits_for_the_delay_of_acks() {
    let settings = Settings { ack_delay_us: 4 * MS, ..Settings::default() };
    let (mut left, mut right) = (Ours::plain(), Ours::new(settings, Origin::default(), 0));
    left.write(&[1; 7 * 1298]);
    let datagrams = left.output(0);
    let mut due_after = |segment: usize| {
        right.input(0, &datagrams[segment]);
        let due = right.conversation.acks_due_at();
        right.output(10 * MS);
        due
    };
    let due: Vec<u64> = [0, 1, 3, 4, 2, 5, 0].into_iter().filter_map(&mut due_after).collect();
    assert_eq!(due, [4 * MS, 4 * MS, 0, 0, 0, 4 * MS, 20 * MS]);
    right.conversation.set_ack_delay(MS);
    right.input(10 * MS, &datagrams[6]);
    assert_eq!(right.conversation.acks_due_at(), Some(11 * MS));
}

#[test]
fn what_is_in_order_is_acknowledged_once_for_all() {
    let (mut left, mut right) = (Ours::plain(), Ours::plain());
    left.write(&[1; 20 * 1298]);
    let datagrams = left.output(5 * MS);
    datagrams.iter().for_each(|datagram| right.input(0, datagram));
    let acks = right.output(0).concat();
    assert_eq!(headers(&acks).map(|header| (header.number, header.unacknowledged)).collect::<Vec<_>>(), [(19, 20)]);
    left.input(55 * MS, &acks);
    assert_eq!((left.conversation.unacknowledged(), left.conversation.rtt_us()), (0, Some(50 * MS)));
    assert_eq!(left.conversation.next_timeout(), None);
}

#[test]
fn a_full_reader_is_asked_again_and_again_and_tells_when_it_has_room() {
    let settings = Settings { receive_window: 4, ..Settings::default() };
    let (mut left, mut right) = (Ours::plain(), Ours::new(settings, Origin::default(), 0));
    let mut sent = left.write(b"How much room is there?");
    let mut now = 0;
    for _ in 0..10 {
        left.output(now).iter().for_each(|datagram| right.input(now, datagram));
        right.output(now).iter().for_each(|datagram| left.input(now, datagram));
        sent += left.write(&[1; 1298]);
        now += 300 * MS;
    }
    assert_eq!(right.conversation.readable(), 23 + 3 * 1298);
    let mut asked = 0;
    while now < 60 * SECOND {
        now = left.conversation.next_timeout().expect("it asks");
        for datagram in left.output(now) {
            asked += headers(&datagram).filter(|header| header.command == Command::AskWindow).count();
        }
    }
    assert!((5..15).contains(&asked), "asked {asked} times");
    let mut read = right.read(usize::MAX).len();
    while read < sent {
        let datagrams = right.output(now);
        assert!(!datagrams.is_empty(), "it tells that there is room, or acknowledges");
        datagrams.iter().for_each(|datagram| left.input(now, datagram));
        now += MS;
        left.output(now).iter().for_each(|datagram| right.input(now, datagram));
        read += right.read(usize::MAX).len();
    }
}

#[test]
fn an_answer_to_what_was_never_sent_is_refused() {
    let mut left = Ours::plain();
    left.write(&[1; 3000]);
    left.output(0); // Segments 0, 1 and 2.
    let forged = |command, number, unacknowledged| {
        let (conversation, fragment, timestamp, length) = (ID, 0, 0, 0);
        Header { conversation, command, fragment, window: 9, timestamp, number, unacknowledged, length }.encode()
    };
    for (number, unacknowledged) in [(3, 0), (1 << 30, 0), (0, 4), (0, i32::MAX as u32)] {
        left.input(MS, &forged(Command::Ack, number, unacknowledged));
    }
    assert_eq!((left.conversation.unacknowledged(), left.conversation.counters().refused), (3000, 4));
    left.input(MS, &forged(Command::TellWindow, 0, 3));
    assert_eq!((left.conversation.unacknowledged(), left.conversation.counters().refused), (0, 4));
}

#[test]
fn no_bytes_from_the_network_make_it_panic_or_take_more_than_its_buffers() {
    for seed in 0..20_000 {
        let mut rng = Rng(seed);
        let mut end = Ours::with_buffers(Buffers::new(2000, 64));
        end.write(&[1; 9000]);
        for now in 0..20 {
            let length = rng.below(120) as usize;
            let mut bytes = rng.bytes(length);
            let real = rng.below(8) > 0 && bytes.len() >= HEADER_BYTES;
            if real {
                bytes[..4].copy_from_slice(&ID.to_le_bytes());
                bytes[4] = 81 + rng.below(4) as u8;
                let mut near = || (rng.below(40) << [0, 0, 0, 12, 27][rng.below(5) as usize]) as u32;
                bytes[12..16].copy_from_slice(&near().wrapping_sub(20).to_le_bytes());
                bytes[16..20].copy_from_slice(&near().wrapping_sub(20).to_le_bytes());
                let length = (bytes.len() - HEADER_BYTES) as u32;
                bytes[20..24].copy_from_slice(&length.wrapping_sub(u32::from(rng.below(9) == 0)).to_le_bytes());
            }
            let _ = end.conversation.input(now * 7 * MS, &bytes, &mut end.buffers, |_| {});
            end.output(now * 7 * MS);
            if rng.below(3) == 0 {
                end.read(rng.below(99) as usize);
            }
        }
        let Ours { conversation, mut buffers, .. } = end;
        conversation.release(&mut buffers);
        assert_eq!(buffers.left(), 64, "seed {seed}: a buffer has gone");
    }
}

#[test]
fn every_flipped_bit_of_a_header_is_survived() {
    for bit in 0..8 * HEADER_BYTES {
        for victim in 0..30 {
            let (mut left, mut right) = (Ours::plain(), Ours::plain());
            left.write(&[1; 6000]);
            right.write(&[2; 3000]);
            let (mut now, mut count) = (0, 0);
            for _ in 0..12 {
                now += 30 * MS;
                for turn in 0..2 {
                    let (from, to) = if turn == 0 { (&mut left, &mut right) } else { (&mut right, &mut left) };
                    for mut datagram in from.output(now) {
                        if count == victim {
                            datagram[bit / 8] ^= 1 << (bit % 8);
                        }
                        count += 1;
                        let _ = to.conversation.input(now, &datagram, &mut to.buffers, |_| {});
                    }
                    to.read(usize::MAX);
                }
            }
        }
    }
}

#[test]
fn forged_acks_and_windows_never_change_what_is_delivered() {
    for seed in 0..2000 {
        let mut rng = Rng(seed);
        let (mut left, mut right) = (Ours::plain(), Ours::plain());
        let stream = rng.bytes(20_000);
        let (mut written, mut delivered) = (0, Vec::new());
        for now in (0..60).map(|step| step * 20 * MS) {
            written += left.write(&stream[written..stream.len().min(written + 2000)]);
            for datagram in left.output(now) {
                if rng.below(10) > 0 {
                    right.input(now, &datagram);
                }
            }
            let forged = Header {
                conversation: ID,
                command: [Command::Ack, Command::AskWindow, Command::TellWindow][rng.below(3) as usize],
                fragment: 255,
                window: [0, 1, 128, u16::MAX][rng.below(4) as usize],
                timestamp: rng.next() as u32,
                number: (rng.below(30) as u32).wrapping_sub(5),
                unacknowledged: (rng.below(30) as u32).wrapping_sub(5),
                length: 0,
            };
            left.input(now, &forged.encode());
            right.output(now).iter().for_each(|datagram| left.input(now, datagram));
            delivered.extend(right.read(usize::MAX));
        }
        assert!(stream.starts_with(&delivered), "seed {seed}");
    }
}

#[test]
fn lengths_that_lie_and_unknown_commands_are_invalid_and_long_segments_are_refused() {
    let mut end = Ours::plain();
    let push = |length: u32, payload: &[u8]| {
        let (conversation, command, fragment, timestamp, number, unacknowledged) = (ID, Command::Push, 255, 0, 0, 0);
        let window = u16::MAX;
        let header = Header { conversation, command, fragment, window, timestamp, number, unacknowledged, length };
        [&header.encode()[..], payload].concat()
    };
    let mut input = |datagram: &[u8]| end.conversation.input(0, datagram, &mut end.buffers, |_| {});
    assert_eq!(input(&push(2001, &[0; 2001])), Ok(2025));
    assert_eq!(input(&push(4, b"abc")), Err(Invalid));
    assert_eq!(input(&push(u32::MAX, b"abc")), Err(Invalid));
    assert_eq!(input(&[push(0, b""), vec![0; 3]].concat()), Err(Invalid));
    let mut unknown = push(0, b"");
    unknown[4] = 85;
    assert_eq!(input(&unknown), Err(Invalid));
    let mut other = push(3, b"abc");
    other[0] ^= 1;
    assert_eq!(input(&other), Ok(0), "another conversation is left to its owner");
    assert_eq!((end.conversation.readable(), end.conversation.counters().refused), (0, 1));
}

#[test]
fn empty_segments_take_no_room() {
    let settings = Settings { receive_window: 4, ..Settings::default() };
    let mut end = Ours::new(settings, Origin::default(), 0);
    for number in 0..20 {
        let (conversation, command, fragment, window, timestamp) = (ID, Command::Push, 0, 9, 0);
        let (unacknowledged, length) = (0, u32::from(number == 19));
        let header = Header { conversation, command, fragment, window, timestamp, number, unacknowledged, length };
        end.input(0, &[&header.encode()[..], &b"x"[..length as usize]].concat());
    }
    assert_eq!((end.read(9), end.buffers.left()), (b"x".to_vec(), 4096));
}

#[test]
fn a_reader_that_stops_leaves_buffers_for_the_others() {
    const ALL: usize = 256;
    let (mut left, mut right) = ([Ours::plain(), Ours::plain()], [Ours::plain(), Ours::plain()]);
    let mut buffers = Buffers::new(2000, ALL); // Both readers share these.
    let (mut now, mut written, mut read) = (0, 0, 0);
    let mut told = Vec::new();
    while now < 20 * SECOND {
        for side in 0..2 {
            std::mem::swap(&mut right[side].buffers, &mut buffers);
            written += left[side].write(&[side as u8; 5_000]) * side;
            left[side].output(now).iter().for_each(|datagram| right[side].input(now, datagram));
            if side == 1 {
                read += right[side].read(usize::MAX).len();
            }
            for datagram in right[side].output(now) {
                if side == 0 {
                    told.push(header(&datagram).window);
                }
                left[side].input(now, &datagram);
            }
            std::mem::swap(&mut right[side].buffers, &mut buffers);
        }
        now += 10 * MS;
    }
    assert!(buffers.left() >= ALL / 8 - 4, "{} buffers are left", buffers.left());
    assert!(told.is_sorted_by(|before, after| before >= after) && told.last() == Some(&0), "{told:?}");
    assert!(read > 9_000_000 && written - read < 20_000, "the other has read {read} of {written}");
}

#[test]
fn a_window_grows_as_its_owner_allows_and_what_was_promised_stays_welcome_when_it_shrinks() {
    let settings = Settings { receive_window: 20, ..Settings::default() };
    let (mut left, mut right) = (Ours::plain(), Ours::new(settings, Origin::default(), 0));
    left.write(&[1; 64 * 1298]);
    let datagrams = left.output(0);
    let told = |right: &mut Ours, segment: usize| {
        right.input(0, &datagrams[segment]);
        header(&right.output(0)[0]).window
    };
    assert_eq!(told(&mut right, 0), 19);
    right.conversation.set_receive_window(40);
    assert_eq!(told(&mut right, 1), 38);
    right.conversation.set_receive_window(10);
    assert_eq!(told(&mut right, 2), 7);
    (3..64).for_each(|segment| right.input(0, &datagrams[segment]));
    assert_eq!(right.conversation.readable(), 40 * 1298);
    assert_eq!(header(&right.output(0)[0]).window, 0);
    right.read(usize::MAX);
    assert_eq!(header(&right.output(0)[0]).window, 10);
}

#[test]
fn few_buffers_make_it_slow_and_not_stuck() {
    for seed in 0..100 {
        let end = || Box::new(Ours::with_buffers(Buffers::new(2000, 16)));
        exchange(seed, end(), end(), Path { loss: 20, double: 5, delay: 20 * MS, jitter: 30 * MS }, 50_000);
    }
}

/// One end of a stream, and time as µs.
trait End {
    fn input(&mut self, now: u64, datagram: &[u8]);
    /// All datagrams that are to be sent now.
    fn output(&mut self, now: u64) -> Vec<Vec<u8>>;
    fn write(&mut self, bytes: &[u8]) -> usize;
    fn read(&mut self, most: usize) -> Vec<u8>;
    fn next_timeout(&self, now: u64) -> Option<u64>;
}

struct Ours {
    conversation: Conversation,
    buffers: Buffers,
    repeats: u32,
}

impl Ours {
    fn new(settings: Settings, origin: Origin, repeats: u32) -> Self {
        let conversation = Conversation::with_origin(ID, settings, origin);
        Self { conversation, buffers: Buffers::new(2000, 4096), repeats }
    }

    fn plain() -> Self {
        Self::new(Settings::default(), Origin::default(), 0)
    }

    fn with_buffers(buffers: Buffers) -> Self {
        Self { buffers, ..Self::plain() }
    }
}

impl End for Ours {
    fn input(&mut self, now: u64, datagram: &[u8]) {
        let taken = self.conversation.input(now, datagram, &mut self.buffers, |_| {});
        assert_eq!(taken, Ok(datagram.len()));
    }

    fn output(&mut self, now: u64) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        loop {
            let mut out = Vec::new();
            if self.conversation.flush(now, ROOM, self.repeats, [0, 0, 0, now], &self.buffers, &mut out) == 0 {
                break;
            }
            assert!(out.len() <= ROOM);
            datagrams.push(out);
        }
        assert!(self.conversation.next_timeout().is_none_or(|at| at > now), "a timeout that was handled is due again");
        datagrams
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let room = self.conversation.room();
        let written = self.conversation.write(bytes, &mut self.buffers);
        assert!(written <= room);
        written
    }

    fn read(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.conversation.readable().min(most)];
        let read = self.conversation.read(&mut bytes, &mut self.buffers);
        assert_eq!(read, bytes.len());
        bytes
    }

    fn next_timeout(&self, _: u64) -> Option<u64> {
        self.conversation.next_timeout()
    }
}

/// The `kcp` crate as kcptun would set it up.
struct Theirs {
    kcp: kcp::Kcp<Outbox>,
    outbox: Outbox,
}

#[derive(Clone, Default)]
struct Outbox(Rc<RefCell<Vec<Vec<u8>>>>);

impl std::io::Write for Outbox {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Theirs {
    fn new(rng: &mut Rng) -> Self {
        let outbox = Outbox::default();
        let mut kcp = if rng.below(2) == 0 {
            kcp::Kcp::new_stream(ID, outbox.clone())
        } else {
            kcp::Kcp::new(ID, outbox.clone())
        };
        kcp.set_nodelay(rng.below(2) == 0, 10, 2, true);
        kcp.set_wndsize(128, [128, 1024][rng.below(2) as usize]);
        kcp.update(0).expect("it starts");
        Self { kcp, outbox }
    }
}

impl End for Theirs {
    fn input(&mut self, now: u64, datagram: &[u8]) {
        self.kcp.update((now / MS) as u32).expect("it runs");
        self.kcp.input(datagram).expect("we send what it understands");
    }

    fn output(&mut self, now: u64) -> Vec<Vec<u8>> {
        self.kcp.update((now / MS) as u32).expect("it runs");
        self.outbox.0.take()
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        if self.kcp.wait_snd() > 256 || bytes.is_empty() {
            return 0;
        }
        self.kcp.send(&bytes[..bytes.len().min(10_000)]).expect("it takes that much")
    }

    fn read(&mut self, most: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < most
            && let Ok(length) = self.kcp.peeksize()
        {
            let mut bytes = vec![0; length];
            self.kcp.recv(&mut bytes).expect("it has that much");
            all.extend(bytes);
        }
        all
    }

    fn next_timeout(&self, now: u64) -> Option<u64> {
        Some((now / MS + u64::from(self.kcp.check((now / MS) as u32)).max(1)) * MS)
    }
}

/// Carries `bytes` each way, in pieces, with readers that are slow at times, and compares.
fn exchange(seed: u64, left: Box<dyn End>, right: Box<dyn End>, path: Path, bytes: usize) {
    let mut rng = Rng(!seed);
    let streams = [rng.bytes(bytes), rng.bytes(bytes / 3)];
    let (mut written, mut read) = ([0, 0], [Vec::new(), Vec::new()]);
    let mut ends = [left, right];
    let mut wire: BinaryHeap<Arrival> = BinaryHeap::new();
    let (mut now, mut order, mut steps) = (0, 0, 0);
    let mut user_at = [0, 0];
    while read[0].len() < streams[1].len() || read[1].len() < streams[0].len() {
        while wire.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            let Some(Reverse((_, _, to, datagram))) = wire.pop() else { break };
            ends[to].input(now, &datagram);
        }
        for side in 0..2 {
            if user_at[side] <= now {
                let piece = 1 + rng.below(5_000) as usize;
                let rest = &streams[side][written[side]..];
                written[side] += ends[side].write(&rest[..rest.len().min(piece)]);
                read[side].extend(ends[side].read(rng.below(20_000) as usize));
                user_at[side] = now + if rng.below(50) == 0 { 300 * MS } else { rng.below(50 * MS) + 1 };
            }
            for datagram in ends[side].output(now) {
                for _ in 0..path.copies(&mut rng) {
                    order += 1;
                    wire.push(Reverse((path.arrival(now, &mut rng), order, 1 - side, datagram.clone())));
                }
            }
        }
        let timeouts = ends.iter().filter_map(|end| end.next_timeout(now));
        let arrival = wire.peek().map(|Reverse((at, _, _, _))| *at);
        let next = timeouts.chain(arrival).chain(user_at).min().unwrap_or(now);
        assert!(next > now, "seed {seed}: time stands still at {now}");
        now = next;
        steps += 1;
        assert!(now < 3_600 * SECOND && steps < 3_000_000, "seed {seed}: stuck after {steps} steps, at {now} us");
    }
    assert!(read[0] == streams[1] && read[1] == streams[0], "seed {seed}: the streams differ");
}

/// When it arrives, a number that keeps the order of those that arrive together, at which end, and the datagram.
type Arrival = Reverse<(u64, u64, usize, Vec<u8>)>;

/// Loses, doubles, delays and reorders.
#[derive(Clone, Copy)]
struct Path {
    /// In percent.
    loss: u64,
    double: u64,
    /// In µs.
    delay: u64,
    jitter: u64,
}

impl Path {
    fn any(rng: &mut Rng) -> Self {
        Self {
            loss: [0, 1, 10, 30][rng.below(4) as usize],
            double: [0, 10][rng.below(2) as usize],
            delay: [100, 10 * MS, 80 * MS][rng.below(3) as usize],
            jitter: [0, 2 * MS, 50 * MS][rng.below(3) as usize],
        }
    }

    fn copies(self, rng: &mut Rng) -> u64 {
        if rng.below(100) < self.loss { 0 } else { 1 + u64::from(rng.below(100) < self.double) }
    }

    fn arrival(self, now: u64, rng: &mut Rng) -> u64 {
        now + self.delay + rng.below(self.jitter + 1)
    }
}

fn any_settings(rng: &mut Rng) -> Settings {
    let modes = [Mode::Normal, Mode::Fast, Mode::Fast2, Mode::Fast3];
    let base = match rng.below(5) as usize {
        4 => Settings::default(),
        mode => Settings::kcptun(modes[mode]),
    };
    Settings {
        segment_bytes: [10, 500, 1298][rng.below(3) as usize],
        send_window: [1, 16, 1024][rng.below(3) as usize],
        receive_window: [1, 16, 128, 1024][rng.below(4) as usize],
        ..base
    }
}

/// A stream that takes not many round trips.
fn any_length(settings: &Settings, rng: &mut Rng) -> usize {
    let window = settings.send_window.min(settings.receive_window);
    let most = (40 * usize::from(window) * settings.segment_bytes).min(60_000);
    rng.below(most as u64) as usize
}

/// Two ends that know their round trip of 50 ms.
fn warm_pair() -> (Ours, Ours) {
    let (mut left, mut right) = (Ours::plain(), Ours::plain());
    for now in (0..16).map(|round| round * 60 * MS) {
        left.write(b"x");
        let datagrams = left.output(now);
        right.input(now + 25 * MS, &datagrams[0]);
        let acks = right.output(now + 25 * MS);
        left.input(now + 50 * MS, &acks[0]);
    }
    (left, right)
}

fn headers(mut datagram: &[u8]) -> impl Iterator<Item = Header> {
    let mut headers = VecDeque::new();
    while let Some((header, _, rest)) = Header::decode(datagram) {
        headers.push_back(header);
        datagram = rest;
    }
    headers.into_iter()
}

fn header(datagram: &[u8]) -> Header {
    headers(datagram).next().expect("a segment")
}

/// SplitMix64.
#[derive(Clone)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

#[test]
fn an_acknowledgement_that_was_lost_and_is_said_again_later_does_not_count_as_a_longer_round_trip() {
    let settings = Settings { ack_delay_us: 0, ..Settings::default() };
    let mut buffers = Buffers::new(1_500, 100);
    let [mut left, mut right] = [(); 2].map(|()| Conversation::new(1, settings.clone()));
    let mut said = Vec::new();
    for at in 0..3 {
        let (mut out, mut answer) = (Vec::new(), Vec::new());
        left.write(b"move", &mut buffers);
        left.write_new(at * 16 * MS, ROOM, Stamp::default(), &buffers, &mut out);
        if at > 0 {
            right.input(at * 16 * MS + 25 * MS, &out, &mut buffers, |_| {}).expect("segments");
            right.write_acks(ROOM, &mut answer);
        }
        said.push(answer);
    }
    // The first segment is lost, and what was said of the second; the third brings that again.
    let mut trips = Vec::new();
    left.input(82 * MS, &said[2], &mut buffers, |acked| trips.push(acked.rtt_us)).expect("acknowledgements");
    assert_eq!(trips, [Some(50 * MS), Some(66 * MS)]);
    assert_eq!(left.rtt_us(), Some(50 * MS));
}
