//! Sealing and opening packets allocates nothing. In a test of its own, for its global allocator that counts.

use gateway::proto::tunnel::handshake::{Initiator, respond};
use gateway::proto::tunnel::keys::Key;
use gateway::proto::tunnel::random::Random;
use gateway::proto::tunnel::seal::Session;
use gateway::proto::tunnel::wire::{Answer, Cipher, Id, OVERHEAD_BYTES, Offer, ServiceName};

const PACKETS: usize = 40;
const FRAMES: [u8; 1322] = [7; 1322];
const PACKET_BYTES: usize = FRAMES.len() + OVERHEAD_BYTES;

#[test]
fn packets_are_sealed_into_a_batch_and_opened_there_without_allocation() {
    let one = allocation_counter::measure(|| drop(std::hint::black_box(vec![0; 9])));
    assert_eq!(one.count_total, 1, "the counter counts");

    for has_aes in [true, false] {
        let (mut ours, mut theirs) = pair(has_aes);
        let mut batch = Vec::with_capacity(PACKETS * PACKET_BYTES);
        let counted = allocation_counter::measure(|| {
            for now in 0..100 {
                carry(now, &mut ours, &mut theirs, &mut batch);
                carry(now, &mut theirs, &mut ours, &mut batch);
            }
        });
        assert_eq!(counted.count_total, 0, "AES {has_aes}");
    }
}

fn carry(now: u64, from: &mut Session, to: &mut Session, batch: &mut Vec<u8>) {
    batch.clear();
    from.handle_timeout(now);
    for _ in 0..PACKETS {
        let start = from.begin_packet(batch);
        batch.extend_from_slice(&FRAMES);
        from.finish_packet(batch, start).expect("numbers are left");
    }
    for packet in batch.chunks_mut(PACKET_BYTES) {
        assert_eq!(to.open(now, packet).map(|opened| opened.plaintext.len()), Ok(FRAMES.len()));
        assert!(to.open(now, packet).is_err());
    }
}

fn pair(has_aes: bool) -> (Session, Session) {
    let (key, mut random) = (Key::from_secret(b"secret"), Random::new([1; 32]));
    let offer = Offer { id: Id([1; 6]), has_aes, service: ServiceName::new("game").expect("a name") };
    let (mut initiator, message) = Initiator::new(&key, &offer, &mut random);
    let (_, responder) = respond(&key, &message, &mut random).expect("the same key");
    let cipher = Cipher::for_both(has_aes, true);
    let answer = Answer { id: Id([2; 6]), cipher, wants_addresses: false, tcp_ports: 1, udp_ports: 1 };
    let (message, theirs) = responder.answer(0, &answer);
    let (_, ours) = initiator.finish(0, &message).expect("it is the answer");
    (ours, theirs)
}
