//! Others on the way, and peers who lie: what is not authentic gets no answer and changes nothing, and what is authentic and
//! nonsense costs little.

mod sim;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use gateway::proto::tunnel::handshake::{Initiator, OFFER_BYTES};
use gateway::proto::tunnel::random::Random;
use gateway::proto::tunnel::seal::Session;
use gateway::proto::tunnel::wire::{Id, Offer};
use gateway::proto::tunnel::{Endpoint, Event, Service, Settings, Status, TunnelId};
use sim::pair::address;
use sim::rng::Rng;
use sim::side::{Accepts, SECRET, SERVICE, Side, key, name};
use sim::{MS, Node, SECOND};

/// Two sides without a network between them: their packets are in our hands.
struct Wire {
    now: u64,
    sides: [Side; 2],
    /// Everything that either has sent: which one, and what.
    seen: Vec<(usize, Vec<u8>)>,
}

impl Wire {
    fn new(seed: u8) -> Self {
        let sides = [1, 2].map(|side| Side::new(Settings::default(), [seed.wrapping_mul(16) + side; 32]));
        let mut wire = Self { now: 0, sides, seen: Vec::new() };
        wire.sides[1].serve(Accepts::Echo, Service::default());
        wire
    }

    fn established(seed: u8) -> Self {
        let mut wire = Self::new(seed);
        wire.sides[0].connect(0, address(2));
        wire.run_for(SECOND);
        assert!(wire.sides[1].tunnel.is_some());
        wire
    }

    /// What one sends now.
    fn sent(&mut self, side: usize) -> Vec<Vec<u8>> {
        let (mut batch, mut sent) = (Vec::new(), Vec::new());
        while let Some((_, bytes)) = self.sides[side].poll_transmit(self.now, &mut batch) {
            sent.extend(batch.chunks(bytes).map(<[u8]>::to_vec));
            batch.clear();
        }
        self.seen.extend(sent.iter().map(|packet| (side, packet.clone())));
        sent
    }

    fn give(&mut self, side: usize, packet: &[u8]) {
        self.sides[side].handle_datagram(self.now, address(2 - side as u8), &mut packet.to_vec());
    }

    /// Packets take 10 ms.
    fn run_for(&mut self, us: u64) {
        let end = self.now + us;
        while self.now < end {
            let sent = [self.sent(0), self.sent(1)];
            self.now += 10 * MS;
            for (side, packets) in sent.into_iter().enumerate() {
                packets.iter().for_each(|packet| self.give(1 - side, packet));
            }
            self.sides.iter_mut().for_each(|side| side.handle_timeout(self.now));
        }
    }

    fn status(&mut self, side: usize) -> Status {
        self.sides[side].tunnel().status()
    }

    /// Gives it, and makes sure that nothing comes of it but a count.
    fn is_ignored(&mut self, side: usize, packet: &[u8]) {
        assert_eq!(self.sent(side), [] as [Vec<u8>; 0]);
        let before = self.status(side);
        self.give(side, packet);
        assert_eq!(self.sent(side), [] as [Vec<u8>; 0], "it was answered");
        let after = self.status(side);
        assert_eq!(Status { refused: before.refused, ..after }, before);
    }
}

#[test]
fn a_packet_with_any_bit_flipped_is_ignored() {
    let mut wire = Wire::established(1);
    wire.sides[0].send(b"attack at dawn".to_vec(), false);
    let packets = wire.sent(0);
    assert_eq!(packets.len(), 1);
    for bit in 0..8 * packets[0].len() {
        let mut flipped = packets[0].clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        wire.is_ignored(1, &flipped);
    }
    wire.give(1, &packets[0]);
    assert_eq!(wire.sides[1].streams.len(), 1, "and the real one is still welcome");
}

#[test]
fn a_packet_that_is_cut_lengthened_or_comes_again_is_ignored() {
    let mut wire = Wire::established(1);
    wire.sides[0].send(b"attack at dawn".to_vec(), false);
    let packet = wire.sent(0).remove(0);
    for length in 0..packet.len() {
        wire.is_ignored(1, &packet[..length]);
    }
    wire.is_ignored(1, &[&packet[..], &[0]].concat());
    wire.give(1, &packet);
    wire.sent(1);
    wire.is_ignored(1, &packet);
    wire.run_for(SECOND);
    wire.is_ignored(1, &packet);
    for packet in wire.seen.clone() {
        wire.is_ignored(1, &packet.1);
    }
}

#[test]
fn an_offer_that_was_answered_is_answered_again_only_as_it_was() {
    let recorded = Wire::established(1).seen;
    let (_, offer) = recorded.into_iter().find(|(side, _)| *side == 0).expect("the visitor spoke");
    let mut again = Wire::new(2);
    again.give(1, &offer);
    let answer = again.sent(1);
    assert_eq!(answer.len(), 1);
    for bit in 0..8 * offer.len() {
        let mut flipped = offer.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        again.give(1, &flipped);
        assert_eq!(again.sent(1), [] as [Vec<u8>; 0], "bit {bit}");
    }
    again.give(1, &offer);
    assert_eq!(again.sent(1), answer);
}

#[test]
fn an_offer_that_another_host_has_recorded_is_not_answered_while_it_waits_for_its_first_packet() {
    let mut wire = Wire::new(1);
    wire.sides[0].connect(0, address(2));
    let offer = wire.sent(0).remove(0);
    wire.give(1, &offer);
    let answer = wire.sent(1);
    assert_eq!(answer.len(), 1);
    for host in 3..200 {
        wire.sides[1].handle_datagram(wire.now, address(host), &mut offer.clone());
        assert_eq!(wire.sent(1), [] as [Vec<u8>; 0], "host {host}");
    }
    let other_port = SocketAddr::new(address(1).ip(), 9);
    wire.sides[1].handle_datagram(wire.now, other_port, &mut offer.clone());
    assert_eq!(wire.sent(1), answer, "its own host asks again, and has another port by now");
}

#[test]
fn noise_is_ignored() {
    let mut wire = Wire::established(1);
    let ids: Vec<Vec<u8>> = wire.seen.iter().map(|(_, packet)| packet[..6].to_vec()).collect();
    let mut rng = Rng::seeded(3);
    for round in 0..20_000 {
        let length = rng.below(1500) as usize;
        let mut noise = rng.bytes(length);
        if round % 2 == 0 && length >= 12 {
            noise[..6].copy_from_slice(&ids[rng.below(ids.len() as u64) as usize]);
            noise[6..11].fill(0);
        }
        wire.is_ignored(1, &noise);
    }
}

#[test]
fn what_was_recorded_is_worth_nothing_after_a_restart() {
    let mut wire = Wire::established(1);
    let stream = wire.sides[0].send(vec![7; 5_000], true);
    wire.run_for(SECOND);
    assert_eq!(wire.sides[1].held(stream).read.len(), 5_000);
    let recorded: Vec<_> = wire.seen.iter().filter(|(side, _)| *side == 0).map(|(_, packet)| packet.clone()).collect();
    let mut again = Wire::new(2); // The same secret, another life.
    let mut answers = 0;
    for packet in recorded.iter().chain(&recorded) {
        again.give(1, packet);
        let sent = again.sent(1);
        assert!(sent.iter().all(|answer| answer.len() <= packet.len()));
        answers += sent.len();
    }
    assert!(again.sides[1].tunnel.is_none() && again.sides[1].streams.is_empty());
    assert!(answers <= 2, "{answers} answers: to the offer, and to the offer again");
    again.now += 31 * SECOND;
    again.sides[1].handle_timeout(again.now);
    recorded.iter().for_each(|packet| again.give(1, packet));
    assert_eq!(again.sent(1), [] as [Vec<u8>; 0], "an offer that is known is not answered for ever");
    assert_eq!(again.sides[1].next_timeout(), None);
}

#[test]
fn no_number_of_handshakes_fills_the_memory_or_the_processor() {
    let mut wire = Wire::established(1);
    let mut random = Random::new([9; 32]);
    let (key, service) = (key(SECRET), name(SERVICE));
    let (mut answers, begin) = (0, wire.now);
    for round in 0..600 {
        let offer = Offer { id: Id(random.draw()), has_aes: true, service };
        let (_, message) = Initiator::new(&key, &offer, &mut random);
        wire.give(1, &message);
        answers += wire.sent(1).iter().filter(|packet| packet.len() < message.len()).count();
        wire.now = begin + round * 5 * MS;
        wire.sides[1].handle_timeout(wire.now);
    }
    assert!((150..=300).contains(&answers), "{answers} answers in 3 s");
    assert!(wire.sides[1].endpoint.waiting_handshakes() <= 256);
    let stream = wire.sides[0].send(b"still there?".to_vec(), true);
    wire.run_for(40 * SECOND);
    assert_eq!(wire.sides[1].held(stream).read, b"still there?");
    assert_eq!(wire.sides[1].endpoint.waiting_handshakes(), 0);
    wire.sides[0].connect(wire.now, address(2));
    wire.run_for(SECOND);
    assert_eq!(wire.sides[1].established, 2, "others are welcome again");
}

#[test]
fn a_flood_of_offers_that_fail_costs_little_work_and_takes_no_other_addresses_turn() {
    let mut endpoint = Endpoint::new(Settings::default(), [5; 32]);
    let key = key(SECRET);
    endpoint.serve(key.clone(), name(SERVICE), Service::default());
    let mut random = Random::new([6; 32]);
    let mut offer = || {
        let offer = Offer { id: Id(random.draw()), has_aes: true, service: name(SERVICE) };
        Initiator::new(&key, &offer, &mut random).1
    };
    let mut is_answered = |now, from, mut offer: [u8; OFFER_BYTES]| {
        endpoint.handle_datagram(now, from, &mut offer);
        endpoint.poll_transmit(now, &mut Vec::new()).is_some()
    };
    let mut forged = offer();
    for at in 0..1_000 {
        forged[20..28].copy_from_slice(&u64::to_be_bytes(at));
        assert!(!is_answered(at * MS, address(1), forged));
    }
    let end = 999 * MS;
    assert!(!is_answered(end, address(1), offer()), "nobody looks at what that address says, however genuine");
    assert!((2..12).all(|host| is_answered(end, address(host), offer())), "others notice nothing");
    assert!(is_answered(end + SECOND, address(1), offer()), "and it does once the flood is over");
}

/// A visitor who knows the secret, and says what he likes.
struct Liar {
    session: Session,
    endpoint: Endpoint,
    now: u64,
}

impl Liar {
    fn new(settings: Settings) -> Self {
        let mut endpoint = Endpoint::new(settings, [5; 32]);
        endpoint.serve(key(SECRET), name(SERVICE), Service { tcp_ports: 1, udp_ports: 1, wants_addresses: false });
        let mut random = Random::new([6; 32]);
        let offer = Offer { id: Id(random.draw()), has_aes: true, service: name(SERVICE) };
        let (mut initiator, mut message) = Initiator::new(&key(SECRET), &offer, &mut random);
        endpoint.handle_datagram(0, address(1), &mut message);
        let mut answer = Vec::new();
        endpoint.poll_transmit(0, &mut answer).expect("an answer");
        let (_, session) = initiator.finish(0, &answer).expect("it is authentic");
        Self { session, endpoint, now: 0 }
    }

    fn say(&mut self, from: SocketAddr, frames: &[u8]) -> Option<TunnelId> {
        let mut packet = Vec::new();
        let start = self.session.begin_packet(&mut packet);
        packet.extend_from_slice(frames);
        self.session.finish_packet(&mut packet, start).expect("there are numbers left");
        self.endpoint.handle_datagram(self.now, from, &mut packet)
    }

    /// Lets it send, and tell; gives the bytes sent.
    fn drain(&mut self) -> usize {
        let (mut out, mut sent) = (Vec::new(), 0);
        while self.endpoint.poll_event().is_some() {}
        while self.endpoint.poll_transmit(self.now, &mut out).is_some() {
            sent += out.len();
            out.clear();
        }
        while self.endpoint.poll_event().is_some() {}
        sent
    }
}

/// A frame that is likely to be understood, with fields that are likely to hurt.
fn nonsense(rng: &mut Rng) -> Vec<u8> {
    let word = |rng: &mut Rng| -> u32 {
        let near = rng.below(6) as u32;
        [near, near.wrapping_neg(), 1 << 31, rng.next() as u32, 4096 + near][rng.below(5) as usize]
    };
    let kind = rng.below(13) as u8;
    let mut frame = vec![kind];
    match kind {
        1 => {
            for _ in 0..rng.below(8) {
                let length = rng.below(60) as u32;
                frame.extend(word(rng).to_le_bytes());
                frame.extend([81 + rng.below(4) as u8, rng.next() as u8]);
                frame.extend([[0, 0], [255, 255], [4, 0]][rng.below(3) as usize]);
                for _ in 0..3 {
                    frame.extend(word(rng).to_le_bytes());
                }
                let claimed = if rng.below(10) == 0 { word(rng) } else { length };
                frame.extend(claimed.to_le_bytes());
                frame.extend((0..length).map(|_| rng.below(7) as u8));
            }
        }
        4 => {
            frame.extend([rng.below(3) as u8, rng.below(3) as u8, rng.below(4) as u8, rng.below(70) as u8, 0, 9]);
            frame.extend([1, 0, 0, 0, 0, 81, 0, 9, 9]);
        }
        _ => {
            let length = rng.below(40) as usize;
            frame.extend(rng.bytes(length));
        }
    }
    frame
}

#[test]
fn a_peer_who_talks_nonsense_causes_no_panic_no_flood_and_no_leak() {
    for seed in 0..60 {
        let mut rng = Rng::seeded(seed);
        let mut liar = Liar::new(Settings { streams_max: 50, ..Settings::default() });
        let (mut said, mut answered) = (0, 0);
        for _ in 0..400 {
            let mut frames = Vec::new();
            for _ in 0..1 + rng.below(3) {
                frames.extend(nonsense(&mut rng));
            }
            frames.truncate(1400);
            if frames.windows(2).any(|pair| pair[0] == 10) && rng.below(20) > 0 {
                continue; // Seldom a close.
            }
            said += frames.len() + 28;
            liar.say(address(1 + rng.below(2) as u8), &frames);
            answered += liar.drain();
            liar.now += [0, 100, 20 * MS, 300 * MS][rng.below(4) as usize];
            liar.endpoint.handle_timeout(liar.now);
            answered += liar.drain();
            if liar.endpoint.next_timeout().is_none() {
                break;
            }
        }
        assert!(answered < 5 * said + 50_000, "seed {seed}: {answered} bytes for {said}");
        liar.now += 120 * SECOND;
        for _ in 0..10_000 {
            liar.endpoint.handle_timeout(liar.now);
            liar.drain();
            let Some(at) = liar.endpoint.next_timeout() else { break };
            liar.now = liar.now.max(at);
        }
        assert_eq!(liar.endpoint.next_timeout(), None, "seed {seed}: it is gone when its peer is silent");
    }
}

/// `stream`'s first segment, with a preamble for port 0.
fn opening(stream: u32) -> Vec<u8> {
    let mut frame = vec![1];
    frame.extend(stream.to_le_bytes());
    frame.extend([81, 0, 128, 0]);
    frame.extend([0; 12]);
    frame.extend(2u32.to_le_bytes());
    frame.extend([0, 0]);
    frame
}

#[test]
fn a_stream_that_is_gone_does_not_come_back_when_its_first_packet_comes_late() {
    let mut liar = Liar::new(Settings::default());
    let mut opened = BTreeSet::new();
    for stream in [3, 1, 3, 2, 9000, 1, 0x7fff_ffff, 4] {
        let tunnel = liar.say(address(1), &opening(stream)).expect("it is authentic");
        while let Some((_, event)) = liar.endpoint.poll_event() {
            if let Event::Opened { stream: id, .. } = event {
                assert!(opened.insert(id), "{stream} opens twice");
                let reason = gateway::proto::tunnel::ResetReason::Refused;
                liar.endpoint.tunnel(tunnel).expect("it lives").reset(id, reason);
            }
        }
    }
    assert_eq!(opened.len(), 4, "3, 1, 2 and 4: the others are too far ahead, or were there");
}

#[test]
fn streams_that_are_opened_without_end_are_refused_and_bounded() {
    let mut liar = Liar::new(Settings { streams_max: 100, ..Settings::default() });
    let tunnel = liar.say(address(1), &opening(1)).expect("it is authentic");
    for stream in 2..200_000 {
        liar.say(address(1), &opening(stream));
        if stream % 1_000 == 0 {
            liar.drain();
        }
    }
    let status = liar.endpoint.tunnel(tunnel).expect("it lives").status();
    assert_eq!(status.streams, 100);
    assert!(status.messages_waiting < 20_000, "{} messages", status.messages_waiting);
}
