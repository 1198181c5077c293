//! How much CPU does a line cost? From the bytes of a complete line to a target and a verdict of policy, both digests tried.
//!
//! The bound to hold is 5 µs a connection; a connection's sockets cost the kernel about 29.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use gateway::proto::line::{Line, Progress};
use gateway::proto::policy::Policy;
use gateway::proto::target::Target;
use gateway::proto::token::{Digest, Keyring, Secret};

const TARGETS: [(&str, &str); 3] = [
    ("ipv4", "192.168.100.200:54321"),
    ("ipv6", "[2001:db8:1234:5678:9abc:def0:1234:5678]:54321"),
    ("name", "a-game-server-with-a-long-name.region-1.games.example.com:7777"),
];

fn keyring(secrets: usize) -> Keyring {
    let secret = |n| Secret::new(format!("a secret of a usual length, {n}").into_bytes()).expect("not empty");
    Keyring::new((0..secrets).map(secret).collect()).expect("not empty")
}

/// A token alone: base64, key derivation, decryption, padding, grammar.
fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    for secrets in [1, 2] {
        let keys = keyring(secrets);
        for (name, target) in TARGETS {
            let token = keys.seal(target.as_bytes(), *b"saltsalt", Digest::Sha256);
            group.bench_function(BenchmarkId::new(name, secrets), |bencher| {
                bencher.iter(|| keys.open(black_box(token.as_bytes())));
            });
        }
    }
    let wrong = keyring(1).seal(b"192.168.100.200:54321", *b"saltsalt", Digest::Sha256);
    let keys = Keyring::new(vec![Secret::new(b"another secret".to_vec()).expect("not empty")]).expect("not empty");
    group.bench_function("wrong", |bencher| bencher.iter(|| keys.open(black_box(wrong.as_bytes()))));
    group.finish();
}

/// The whole handshake without its socket: the line in one piece and byte by byte, with a policy of a hundred rules.
fn handshake(criterion: &mut Criterion) {
    let keys = keyring(1);
    let rule = |n: u8| format!("10.{n}.0.0/16:1024-65535").parse().expect("a rule");
    let policy =
        Policy { allow: (0..99).map(rule).chain(["192.168.0.0/16".parse().expect("a rule")]).collect(), deny: vec![] };
    let line = keys.seal(b"192.168.100.200:54321", *b"saltsalt", Digest::Sha256) + "\n";
    let now = Instant::now();
    let permitted = |target: &Target| match target {
        Target::Address(address) => policy.permits(*address),
        Target::Provider(provided) => policy.permits_service(provided.service),
        Target::Name { .. } => policy.permits(SocketAddr::from(([0; 4], 0))),
    };
    let judge = |token: &[u8]| keys.open(token).ok().filter(permitted);
    let mut group = criterion.benchmark_group("handshake");
    for piece in [line.len(), 1] {
        group.bench_function(BenchmarkId::new("piece", piece), |bencher| {
            bencher.iter(|| {
                let mut reader = Line::new(now + Duration::from_secs(10));
                let mut last = None;
                for bytes in black_box(line.as_bytes()).chunks(piece) {
                    last = Some(reader.handle_bytes(now, bytes, judge));
                }
                assert!(matches!(last, Some(Progress::Opened { .. })));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, open, handshake);
criterion_main!(benches);
