//! What does a packet of a tunnel cost, sealed and opened, and what does a handshake cost each side?
//!
//! A relay that carries a gigabyte in full packets seals or opens 770,000 of them, so 1 µs a packet is 0.8 CPU s/GB. What a
//! stranger can make us do is `respond` under a wrong key; what a recorded offer can is `respond` and `answer`.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gateway::proto::tunnel::handshake::{Initiator, respond};
use gateway::proto::tunnel::keys::Key;
use gateway::proto::tunnel::random::Random;
use gateway::proto::tunnel::seal::Session;
use gateway::proto::tunnel::wire::{Answer, Cipher, Id, Offer, ServiceName, TAG_BYTES};

/// Packets in a batch, as many as one system call takes.
const BATCH: u64 = 40;
const PACKET_BYTES: usize = 1350;

fn packets(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("40 packets");
    group.throughput(Throughput::Elements(BATCH));
    for (name, has_aes) in [("AES-256-GCM", true), ("ChaCha20-Poly1305", false)] {
        let (mut ours, mut theirs) = pair(has_aes);
        let mut batch = Vec::with_capacity(64_000);
        group.bench_function(format!("seal/{name}"), |bencher| bencher.iter(|| seal(&mut ours, &mut batch)));
        group.bench_function(format!("open/{name}"), |bencher| {
            let sealed = || {
                let mut batch = Vec::with_capacity(64_000);
                seal(&mut ours, &mut batch);
                batch
            };
            bencher.iter_batched_ref(sealed, |batch| open(&mut theirs, batch), BatchSize::SmallInput);
        });
    }
}

fn handshake(criterion: &mut Criterion) {
    let (key, wrong) = (Key::from_secret(b"a secret"), Key::from_secret(b"another secret"));
    let (offer, answer) = (offer(true), answer(Cipher::Aes256Gcm));
    let mut random = Random::new([1; 32]);
    let (_, message) = Initiator::new(&key, &offer, &mut random);
    let mut forged = message;
    forged[..6].copy_from_slice(&wrong.id().0);
    let mut group = criterion.benchmark_group("handshake");
    group.bench_function("offer", |bencher| bencher.iter(|| Initiator::new(&key, &offer, &mut Random::new([1; 32])).1));
    group.bench_function("respond", |bencher| bencher.iter(|| respond(&key, black_box(&message), &mut random).is_ok()));
    group.bench_function("respond/wrong key", |bencher| {
        bencher.iter(|| respond(&wrong, black_box(&forged), &mut random).is_err());
    });
    group.bench_function("respond and answer", |bencher| {
        bencher.iter(|| {
            respond(&key, black_box(&message), &mut random).map(|(_, responder)| responder.answer(0, &answer).0)
        });
    });
}

fn seal(session: &mut Session, batch: &mut Vec<u8>) {
    batch.clear();
    for _ in 0..BATCH {
        let start = session.begin_packet(batch);
        batch.resize(start + PACKET_BYTES - TAG_BYTES, 7);
        session.finish_packet(batch, start).expect("numbers are left");
    }
}

fn open(session: &mut Session, batch: &mut [u8]) {
    for packet in batch.chunks_mut(PACKET_BYTES) {
        session.open(0, packet).expect("authentic");
    }
}

fn pair(has_aes: bool) -> (Session, Session) {
    let (key, mut random) = (Key::from_secret(b"a secret"), Random::new([1; 32]));
    let (mut initiator, message) = Initiator::new(&key, &offer(has_aes), &mut random);
    let (_, responder) = respond(&key, &message, &mut random).expect("the same key");
    let (message, theirs) = responder.answer(0, &answer(Cipher::for_both(has_aes, true)));
    let (_, ours) = initiator.finish(0, &message).expect("it is the answer");
    (ours, theirs)
}

fn offer(has_aes: bool) -> Offer {
    Offer { id: Id([1; 6]), has_aes, service: ServiceName::new("game").expect("a name") }
}

fn answer(cipher: Cipher) -> Answer {
    Answer { id: Id([2; 6]), cipher, wants_addresses: false, tcp_ports: 1, udp_ports: 1 }
}

criterion_group!(benches, packets, handshake);
criterion_main!(benches);
