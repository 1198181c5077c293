//! An adversary between two ends of a tunnel, who sees, keeps, alters, repeats and invents datagrams. Nothing that the
//! other end did not say is ever opened, nothing is opened twice, and nothing panics.

use gateway::proto::tunnel::handshake::{ANSWER_BYTES, Initiator, NotAuthentic, OFFER_BYTES, respond};
use gateway::proto::tunnel::keys::Key;
use gateway::proto::tunnel::random::Random;
use gateway::proto::tunnel::seal::{OLD_EPOCH_US, REKEY_US, Rejected, Session};
use gateway::proto::tunnel::wire::{Answer, Cipher, Header, Id, OVERHEAD_BYTES, Offer, ServiceName};
use proptest::prelude::*;

const CIPHERS: [Cipher; 2] = [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];
const FRAMES: &[u8] = b"what one end says to the other";

#[test]
fn a_packet_with_any_bit_changed_is_rejected_and_the_packet_itself_opened_after_that() {
    for cipher in CIPHERS {
        let (mut ours, mut theirs) = Meeting::new(cipher, 1).sessions();
        let packet = seal(&mut ours);
        for bit in 0..packet.len() * 8 {
            let altered = flipped(&packet, bit);
            let Header { id, number } = Header::parse(&altered).expect("long enough");
            let expected = match number {
                _ if id != theirs.id() => Rejected::NotOurs,
                0 => Rejected::Replayed,          // the handshake's
                1..0x80_0000 => Rejected::Forged, // this epoch or the next
                _ => Rejected::OtherEpoch,
            };
            assert_eq!(open(&mut theirs, &altered), Err(expected), "{cipher:?}, bit {bit}");
        }
        assert_eq!(open(&mut theirs, &packet), Ok(1));
    }
}

#[test]
fn a_packet_cut_short_or_lengthened_is_rejected() {
    for cipher in CIPHERS {
        let (mut ours, mut theirs) = Meeting::new(cipher, 1).sessions();
        let packet = seal(&mut ours);
        for length in 0..packet.len() {
            assert!(open(&mut theirs, &packet[..length]).is_err(), "{cipher:?}, {length} bytes");
        }
        assert!(open(&mut theirs, &[&packet[..], &[0]].concat()).is_err());
        assert_eq!(open(&mut theirs, &packet), Ok(1));
    }
}

#[test]
fn an_offer_with_any_bit_changed_is_rejected() {
    let key = key();
    let (_, offer) = Meeting::new(Cipher::Aes256Gcm, 1).offer();
    assert!(respond(&key, &offer, &mut Random::new([2; 32])).is_ok());
    for bit in 0..offer.len() * 8 {
        let answered = respond(&key, &flipped(&offer, bit), &mut Random::new([2; 32]));
        assert_eq!(answered.err(), Some(NotAuthentic), "bit {bit}");
    }
    for length in 0..offer.len() {
        assert!(respond(&key, &offer[..length], &mut Random::new([2; 32])).is_err(), "{length} bytes");
    }
    assert!(respond(&key, &[&offer[..], &[0]].concat(), &mut Random::new([2; 32])).is_err());
}

#[test]
fn an_answer_with_any_bit_changed_is_rejected_and_the_answer_itself_taken_after_that() {
    let meeting = Meeting::new(Cipher::Aes256Gcm, 1);
    let (mut initiator, offer) = meeting.offer();
    let (answer, mut theirs) = meeting.answer(&offer);
    for bit in 0..answer.len() * 8 {
        assert_eq!(initiator.finish(0, &flipped(&answer, bit)).err(), Some(NotAuthentic), "bit {bit}");
    }
    for length in 0..answer.len() {
        assert!(initiator.finish(0, &answer[..length]).is_err(), "{length} bytes");
    }
    assert!(initiator.finish(0, &[&answer[..], &[0]].concat()).is_err());
    let (_, mut ours) = initiator.finish(0, &answer).expect("the answer");
    assert_eq!(open(&mut theirs, &seal(&mut ours)), Ok(1));
}

#[test]
fn an_offer_under_another_secret_is_rejected_even_when_it_names_our_key() {
    let meeting = Meeting { key: Key::from_secret(b"another secret"), ..Meeting::new(Cipher::Aes256Gcm, 1) };
    let (_, mut offer) = meeting.offer();
    assert!(respond(&key(), &offer, &mut Random::new([2; 32])).is_err());
    offer[..6].copy_from_slice(&key().id().0);
    assert!(respond(&key(), &offer, &mut Random::new([2; 32])).is_err());
}

#[test]
fn an_answer_to_another_offer_is_rejected() {
    let (one, other) = (Meeting::new(Cipher::Aes256Gcm, 1), Meeting::new(Cipher::Aes256Gcm, 2));
    let (mut initiator, _) = one.offer();
    let (answer, _) = other.answer(&other.offer().1);
    assert!(initiator.finish(0, &answer).is_err());
    // Nor when it is addressed to the first.
    let mut answer = answer;
    answer[..6].copy_from_slice(&one.ids[0].0);
    assert!(initiator.finish(0, &answer).is_err());
}

#[test]
fn an_offer_sent_back_is_no_answer_and_an_answer_sent_back_no_offer() {
    let meeting = Meeting::new(Cipher::Aes256Gcm, 1);
    let (mut initiator, offer) = meeting.offer();
    let (answer, _) = meeting.answer(&offer);
    assert!(initiator.finish(0, &offer).is_err());
    assert!(respond(&key(), &answer, &mut Random::new([2; 32])).is_err());
}

#[test]
fn an_answer_is_shorter_than_its_offer() {
    let meeting = Meeting::new(Cipher::Aes256Gcm, 1);
    let (_, offer) = meeting.offer();
    let (answer, _) = meeting.answer(&offer);
    assert_eq!((offer.len(), answer.len()), (OFFER_BYTES, ANSWER_BYTES));
    assert!(answer.len() <= offer.len());
}

#[test]
fn a_packet_is_opened_once() {
    let (mut ours, mut theirs) = Meeting::new(Cipher::Aes256Gcm, 1).sessions();
    let packets: Vec<_> = (0..5_000).map(|_| seal(&mut ours)).collect();
    let opened = packets.iter().filter(|packet| open(&mut theirs, packet).is_ok()).count();
    assert_eq!(opened, packets.len());
    for packet in &packets {
        assert_eq!(open(&mut theirs, packet), Err(Rejected::Replayed));
    }
}

#[test]
fn a_packet_sent_back_to_its_sender_is_rejected() {
    let (mut ours, _) = Meeting::new(Cipher::Aes256Gcm, 1).sessions();
    let mut packet = seal(&mut ours);
    assert_eq!(open(&mut ours, &packet), Err(Rejected::NotOurs));
    packet[..6].copy_from_slice(&ours.id().0);
    assert_eq!(open(&mut ours, &packet), Err(Rejected::Forged));
}

#[test]
fn packets_of_all_epochs_gone_by_are_rejected() {
    let (mut ours, mut theirs) = Meeting::new(Cipher::Aes256Gcm, 1).sessions();
    let mut recorded = Vec::new();
    for epoch in 0..5 {
        let now = epoch * REKEY_US;
        ours.handle_timeout(now);
        theirs.handle_timeout(now);
        for _ in 0..10 {
            recorded.push(seal(&mut ours));
            assert!(open_at(&mut theirs, now, recorded.last().expect("just pushed")).is_ok());
        }
        for packet in &recorded {
            let rejected = open_at(&mut theirs, now, packet).expect_err("a replay");
            assert!(matches!(rejected, Rejected::Replayed | Rejected::OtherEpoch), "{rejected}");
            let later = open_at(&mut theirs, now + OLD_EPOCH_US, packet).expect_err("a replay");
            assert!(matches!(later, Rejected::Replayed | Rejected::OtherEpoch), "{later}");
        }
    }
}

#[test]
fn numbers_beyond_the_next_epoch_are_rejected_before_the_tag_is_looked_at() {
    let (_, mut theirs) = Meeting::new(Cipher::Aes256Gcm, 1).sessions();
    let claim =
        |number| [&Header { id: Meeting::new(Cipher::Aes256Gcm, 1).ids[1], number }.emit()[..], &[0; 20]].concat();
    for number in [1, 5_000, (1 << 22) - 1, 1 << 22, (2 << 22) - 1] {
        assert_eq!(open(&mut theirs, &claim(number)), Err(Rejected::Forged), "{number}");
    }
    for number in [2 << 22, 3 << 22, 1 << 40, (1 << 48) - 1] {
        assert_eq!(open(&mut theirs, &claim(number)), Err(Rejected::OtherEpoch), "{number}");
    }
}

#[test]
fn a_recorded_session_opens_nothing_when_it_is_played_to_a_responder_that_has_restarted() {
    let meeting = Meeting::new(Cipher::Aes256Gcm, 1);
    let (mut initiator, offer) = meeting.offer();
    let (answer, mut theirs) = meeting.answer(&offer);
    let (_, mut ours) = initiator.finish(0, &answer).expect("the answer");
    let packets: Vec<_> = (0..100).map(|_| seal(&mut ours)).collect();
    assert!(packets.iter().all(|packet| open(&mut theirs, packet).is_ok()));

    // The same key, other random bytes. Even the same id, which happens once in 2^48 times.
    for id in [meeting.ids[1], Id([9; 6])] {
        let restarted =
            Meeting { ids: [meeting.ids[0], id], responder_seed: [99; 32], ..Meeting::new(Cipher::Aes256Gcm, 1) };
        let (other_answer, mut session) = restarted.answer(&offer);
        assert_ne!(other_answer, answer);
        for packet in &packets {
            let readdressed = [&id.0[..], &packet[6..]].concat();
            assert_eq!(open(&mut session, &readdressed), Err(Rejected::Forged));
        }
        assert!(initiator.finish(0, &other_answer).is_err(), "the initiator has its session");
    }
}

#[test]
fn an_offer_played_again_to_the_same_responder_makes_a_session_in_which_nothing_opens() {
    let meeting = Meeting::new(Cipher::Aes256Gcm, 1);
    let (mut initiator, offer) = meeting.offer();
    let mut random = Random::new([2; 32]);
    let mut answer = || {
        let (_, responder) = respond(&key(), &offer, &mut random).expect("our key made it");
        responder.answer(0, &meeting.answer)
    };
    let (first, mut theirs) = answer();
    let (second, mut never_alive) = answer();
    assert_ne!(first[12..44], second[12..44], "a new ephemeral key each time");
    let (_, mut ours) = initiator.finish(0, &first).expect("the answer");
    let packet = seal(&mut ours);
    assert_eq!(open(&mut never_alive, &packet), Err(Rejected::Forged));
    assert_eq!(open(&mut theirs, &packet), Ok(1));
}

#[test]
fn packets_of_one_session_are_rejected_by_another_under_the_same_secret() {
    for cipher in CIPHERS {
        for (one, other) in [(1, 2), (2, 1), (1, 3)] {
            let (mut ours, _) = Meeting::new(cipher, one).sessions();
            let (_, mut theirs) = Meeting::new(cipher, other).sessions();
            let packet = seal(&mut ours);
            let readdressed = [&theirs.id().0[..], &packet[6..]].concat();
            assert_eq!(open(&mut theirs, &packet), Err(Rejected::NotOurs));
            assert_eq!(open(&mut theirs, &readdressed), Err(Rejected::Forged));
        }
    }
}

#[test]
fn whoever_alters_the_choice_of_the_cipher_ends_the_handshake() {
    // The choice stands encrypted in the answer; a session with the other cipher opens nothing either.
    let (mut with_aes, _) = Meeting::new(Cipher::Aes256Gcm, 1).sessions();
    let (_, mut with_chacha) = Meeting::new(Cipher::ChaCha20Poly1305, 1).sessions();
    assert_eq!(open(&mut with_chacha, &seal(&mut with_aes)), Err(Rejected::Forged));
}

/// What an adversary sends: one of the packets there were, of any epoch, cut and altered, or bytes out of the air.
#[derive(Clone, Debug)]
enum Hostile {
    Recorded { packet: usize, changes: Vec<(usize, u8)>, length: usize },
    Numbered { number: u64, body: Vec<u8> },
    Invented(Vec<u8>),
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let changes = prop::collection::vec((0..200_usize, any::<u8>()), 0..4);
    prop_oneof![
        (any::<usize>(), changes, prop_oneof![Just(usize::MAX), 0..80_usize])
            .prop_map(|(packet, changes, length)| Hostile::Recorded { packet, changes, length }),
        (prop_oneof![0..5_000_u64, 0..(1_u64 << 24), 0..(1_u64 << 48)], prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(number, body)| Hostile::Numbered { number, body }),
        prop::collection::vec(any::<u8>(), 0..2_000).prop_map(Hostile::Invented),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The peer's packets arrive among whatever an adversary sends, copies of them too: each is opened once, nothing else is.
    #[test]
    fn every_packet_is_opened_once_and_nothing_else(
        hostile in prop::collection::vec(hostile(), 1..200),
        rekey_each in 1..50_usize,
    ) {
        let (mut ours, mut theirs) = Meeting::new(Cipher::Aes256Gcm, 1).sessions();
        let id = theirs.id();
        let (mut now, mut sent, mut opened) = (0, Vec::new(), 0);
        for (round, hostile) in hostile.into_iter().enumerate() {
            if round % rekey_each == 0 {
                now += REKEY_US;
            }
            ours.handle_timeout(now);
            theirs.handle_timeout(now);
            sent.push(seal(&mut ours));
            let datagram = hostile.datagram(&sent, id);
            if open_at(&mut theirs, now, &datagram).is_ok() {
                prop_assert_eq!(Some(&datagram), sent.last(), "only the newest packet is not opened yet");
                opened += 1;
            }
            opened += usize::from(open_at(&mut theirs, now, &sent[round]).is_ok());
            prop_assert_eq!(opened, sent.len());
        }
    }

    #[test]
    fn no_datagram_makes_a_handshake_panic_or_succeed(bytes: Vec<u8>, filler: [u8; 32]) {
        let key = key();
        let meeting = Meeting::new(Cipher::Aes256Gcm, 1);
        let (mut initiator, _) = meeting.offer();
        for (id, length) in [(key.id(), OFFER_BYTES), (meeting.ids[0], ANSWER_BYTES)] {
            let mut fitting = [&Header { id, number: 0 }.emit()[..], &bytes[..], &filler].concat();
            fitting.resize(length, filler[0]);
            for datagram in [&bytes, &fitting] {
                prop_assert!(respond(&key, datagram, &mut Random::new(filler)).is_err());
                prop_assert!(initiator.finish(0, datagram).is_err());
            }
        }
    }
}

impl Hostile {
    fn datagram(self, sent: &[Vec<u8>], id: Id) -> Vec<u8> {
        match self {
            Self::Invented(bytes) => bytes,
            Self::Numbered { number, body } => [&Header { id, number }.emit()[..], &body].concat(),
            Self::Recorded { packet, changes, length } => {
                let mut datagram = sent[packet % sent.len()].clone();
                for (at, with) in changes {
                    let at = at % datagram.len();
                    datagram[at] ^= with;
                }
                datagram.truncate(length);
                datagram
            }
        }
    }
}

/// Two ends that shake hands. All is determined by the seed.
struct Meeting {
    key: Key,
    ids: [Id; 2],
    initiator_seed: [u8; 32],
    responder_seed: [u8; 32],
    offer: Offer,
    answer: Answer,
}

impl Meeting {
    fn new(cipher: Cipher, seed: u8) -> Self {
        let ids = [Id([seed; 6]), Id([seed + 100; 6])];
        let service = ServiceName::new("game").expect("a name");
        let offer = Offer { id: ids[0], has_aes: cipher == Cipher::Aes256Gcm, service };
        let answer = Answer { id: ids[1], cipher, wants_addresses: false, tcp_ports: 1, udp_ports: 0 };
        Self { key: key(), ids, initiator_seed: [seed; 32], responder_seed: [seed + 100; 32], offer, answer }
    }

    fn offer(&self) -> (Initiator, [u8; OFFER_BYTES]) {
        Initiator::new(&self.key, &self.offer, &mut Random::new(self.initiator_seed))
    }

    fn answer(&self, offer: &[u8]) -> ([u8; ANSWER_BYTES], Session) {
        let mut random = Random::new(self.responder_seed);
        let (heard, responder) = respond(&self.key, offer, &mut random).expect("an offer under our key");
        assert_eq!(heard, self.offer);
        responder.answer(0, &Answer { id: self.ids[1], ..self.answer })
    }

    /// Of the initiator, and of the responder.
    fn sessions(&self) -> (Session, Session) {
        let (mut initiator, offer) = self.offer();
        let (answer, theirs) = self.answer(&offer);
        let (heard, ours) = initiator.finish(0, &answer).expect("the answer to our offer");
        assert_eq!(heard, self.answer);
        (ours, theirs)
    }
}

fn key() -> Key {
    Key::from_secret(b"a secret of a usual length")
}

fn seal(session: &mut Session) -> Vec<u8> {
    let mut packet = Vec::new();
    let start = session.begin_packet(&mut packet);
    packet.extend_from_slice(FRAMES);
    session.finish_packet(&mut packet, start).expect("numbers are left");
    assert_eq!(packet.len(), FRAMES.len() + OVERHEAD_BYTES);
    packet
}

fn open(session: &mut Session, packet: &[u8]) -> Result<u64, Rejected> {
    open_at(session, 0, packet)
}

/// The number of what was opened, which must be what was sealed.
fn open_at(session: &mut Session, now: u64, packet: &[u8]) -> Result<u64, Rejected> {
    let mut packet = packet.to_vec();
    let opened = session.open(now, &mut packet)?;
    assert_eq!(opened.plaintext, FRAMES);
    Ok(opened.number)
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}
