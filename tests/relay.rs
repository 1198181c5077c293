//! What a game may rely on once it has heard `200`: its bytes, its ends, its resets, and a worker that stays calm.
mod common;

use common::*;
use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

on_both_engines! {
    fn one_byte_segments_wait_behind_a_stopped_reader(engine) {
        let _alone = alone();
        let gateway = Gateway::start(engine);
        let text = Text::seeded("one_byte_segments_wait_behind_a_stopped_reader");
        // A direction that is full in the middle of bulk splices, and sixteen such segments fill a pipe of 64 KiB.
        for in_bulk in [false, true] {
            let (client, backend) = game(&gateway);
            let begun = if in_bulk { stuff(&gateway, &text, &[&client], 0)[0] } else { 0 };
            wait_behind_a_stopped_reader(&gateway, &text, (&client, &backend), begun..begun + 64 * 1024, 1);
        }
    }
}

on_both_engines! {
    fn a_hundred_mebibytes_wait_behind_a_stopped_reader(engine) {
        let _alone = alone();
        let gateway = Gateway::start(engine);
        let text = Text::seeded("a_hundred_mebibytes_wait_behind_a_stopped_reader");
        for client_sends in [true, false] {
            let (sender, reader) = turned(game(&gateway), client_sends);
            let sent = wait_behind_a_stopped_reader(&gateway, &text, (&sender, &reader), 0..100 * MIB, 64 * 1024);
            assert!(sent < 100 * MIB, "the sender was never stopped");
        }
    }
}

on_both_engines! {
    fn a_thousand_clients_half_close_and_still_hear_the_reply(engine) {
        let _alone = alone();
        let gateway = Gateway::start(engine);
        let backend = backend(|stream| reply(&stream));
        let random = Mutex::new(Random::seeded("a_thousand_clients_half_close_and_still_hear_the_reply"));
        a_thousand_games(&gateway, backend, |client| assert!(asks(client, &random), "the reply is another"));
    }
}

on_both_engines! {
    fn a_thousand_backends_half_close_and_still_hear_the_reply(engine) {
        let _alone = alone();
        let gateway = Gateway::start(engine);
        let random = Mutex::new(Random::seeded("a_thousand_backends_half_close_and_still_hear_the_reply"));
        let heard = Arc::new(AtomicUsize::new(0));
        let counter = heard.clone();
        let backend = backend(move |stream| {
            counter.fetch_add(usize::from(asks(&stream, &random)), Relaxed);
        });
        a_thousand_games(&gateway, backend, reply);
        wait_until(|| heard.load(Relaxed) == 1_000, || format!("only {heard:?} of 1,000 replies were heard unchanged"));
    }
}

on_both_engines! {
    fn a_reset_arrives_as_a_reset_after_an_intact_prefix(engine) {
        let gateway = Gateway::start(engine);
        let text = Text::seeded("a_reset_arrives_as_a_reset_after_an_intact_prefix");
        for client_resets in [true, false] {
            for bulk_from in ["nobody", "the one that resets", "the other"] {
                let (breaker, victim) = turned(game(&gateway), client_resets);
                match bulk_from {
                    "the one that resets" => fill(&breaker, &text),
                    "the other" => fill(&victim, &text),
                    _ => {}
                }
                reset(breaker);
                let (_, end) = receive(&victim, &text, 0..usize::MAX);
                let end = end.map_err(|error| error.kind());
                let case = format!("client resets: {client_resets}, bulk from {bulk_from}");
                assert_eq!(end, Err(ErrorKind::ConnectionReset), "{case}");
            }
        }
    }
}

on_both_engines! {
    fn a_backend_killed_in_mid_transfer_leaves_an_intact_prefix(engine) {
        let gateway = Gateway::start(engine);
        let text = Text::seeded("a_backend_killed_in_mid_transfer_leaves_an_intact_prefix");
        let file = gateway.directory.path().join("text");
        std::fs::write(&file, &text.0).expect("the text is written");
        let (client, backend) = game(&gateway);
        // A process of its own holds the socket, so that a real death ends it. The text a hundred times is more than
        // the kernel buffers.
        let mut process = Command::new("cat")
            .args([&file; 100])
            .stdin(Stdio::null())
            .stdout(OwnedFd::from(backend))
            .spawn()
            .expect("cat starts");
        let (begun, _) = receive(&client, &text, 0..MIB);
        process.kill().expect("it lives until now");
        process.wait().expect("it is dead");
        let (got, end) = receive(&client, &text, begun..usize::MAX);
        assert!(end.is_ok(), "the kernel ends a dead process's socket in order: {end:?}");
        assert!((MIB..100 * text.0.len()).contains(&got), "{got} bytes arrived");
    }
}

on_both_engines! {
    fn bulk_in_both_directions_at_once_arrives_whole(engine) {
        let gateway = Gateway::start(engine);
        let up = Text::seeded("bulk_in_both_directions_at_once_arrives_whole, up");
        let down = Text::seeded("bulk_in_both_directions_at_once_arrives_whole, down");
        let (client, backend) = game(&gateway);
        thread::scope(|scope| {
            scope.spawn(|| carry(&up, &client, &backend, 0..64 * MIB));
            scope.spawn(|| carry(&down, &backend, &client, 0..64 * MIB));
        });
        for (ends, hears) in [(&client, &backend), (&backend, &client)] {
            ends.shutdown(Shutdown::Write).expect("it ends");
            let (more, end) = receive(hears, &up, 0..1);
            assert!(more == 0 && end.is_ok(), "something follows the last byte: {end:?}");
        }
    }
}

on_both_engines! {
    fn bulk_and_small_messages_take_turns_without_harm(engine) {
        let gateway = Gateway::start(engine);
        let text = Text::seeded("bulk_and_small_messages_take_turns_without_harm");
        let games: Vec<_> = (0..4).map(|_| game(&gateway)).collect();
        thread::scope(|scope| {
            for (client, backend) in &games {
                scope.spawn(|| {
                    let mut at = 0;
                    let mut turn = |n| {
                        carry(&text, client, backend, at..at + n);
                        carry(&text, backend, client, at + n..at + 2 * n);
                        at += 2 * n;
                    };
                    for _ in 0..6 {
                        turn(8 * MIB);
                        (0..100).for_each(|_| turn(64));
                    }
                });
            }
        });
    }
}

on_both_engines! {
    fn games_that_were_bulk_keep_two_sockets_each_and_share_the_pipes(engine) {
        /// Read and write ends in a worker's pool of pipes.
        const POOL_LINKS: usize = 128;
        let _alone = alone();
        let gateway = Gateway::start(engine);
        let text = Text::seeded("games_that_were_bulk_keep_two_sockets_each_and_share_the_pipes");
        let count = |kind| links(gateway.worker()).iter().filter(|link| link.starts_with(kind)).count();
        let mut games = vec![game(&gateway)];
        let (own_sockets, own_pipes) = (count("socket:") - 2, count("pipe:"));
        games.extend((1..POOL_LINKS / 2 + 6).map(|_| game(&gateway)));
        // All of them are bulk and then stop at the same time, so more directions hold on to a pipe than the pool has.
        games.iter().for_each(|(client, backend)| carry(&text, client, backend, 0..MIB));
        let clients: Vec<_> = games.iter().map(|(client, _)| client).collect();
        let stopped = stuff(&gateway, &text, &clients, MIB);
        for ((_, backend), at) in games.iter().zip(stopped) {
            let (got, end) = receive(backend, &text, MIB..at);
            assert_eq!(got, at, "{end:?}");
        }
        assert_eq!(count("socket:"), own_sockets + 2 * games.len());
        let pipes = count("pipe:") - own_pipes;
        assert!(pipes <= POOL_LINKS, "{pipes} ends of pipes remain");
    }
}

on_both_engines! {
    fn an_idle_game_ends_on_both_sides_at_its_deadline(engine) {
        let gateway = Gateway::with(&["--engine", engine, "--idle-timeout", "300ms"]);
        let (mut client, mut backend) = game(&gateway);
        client.write_all(b"hello").expect("it is sent");
        let mut heard = [0; 5];
        backend.read_exact(&mut heard).expect("it arrives");
        // Nothing is under way any more, so nothing is cut off: both ends are clean.
        assert_eq!(read_to_end(&mut client), b"");
        assert_eq!(read_to_end(&mut backend), b"");
    }
}

on_both_engines! {
    fn a_game_cut_at_its_idle_deadline_with_bytes_under_way_ends_in_a_reset(engine) {
        let _alone = alone();
        let gateway = Gateway::with(&["--engine", engine, "--idle-timeout", "3s"]);
        let text = Text::seeded("a_game_cut_at_its_idle_deadline_with_bytes_under_way_ends_in_a_reset");
        for client_sends in [true, false] {
            let (mut sender, reader) = turned(game(&gateway), client_sends);
            fill_the_way(&sender, &text);
            let cut = sender.read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(cut, Err(ErrorKind::ConnectionReset), "client sends: {client_sends}");
            assert_reset(&reader, &text, &format!("client sends: {client_sends}"));
        }
    }
}

on_both_engines! {
    fn a_game_cut_at_the_end_of_a_drain_with_bytes_under_way_ends_in_a_reset(engine) {
        let _alone = alone();
        let text = Text::seeded("a_game_cut_at_the_end_of_a_drain_with_bytes_under_way_ends_in_a_reset");
        let mut gateway = Gateway::with(&["--engine", engine, "--drain", "300ms"]);
        let games = [true, false].map(|client_sends| (client_sends, turned(game(&gateway), client_sends)));
        let (mut client, mut backend) = game(&gateway);
        for (_, (sender, _)) in &games {
            fill_the_way(sender, &text);
        }
        gateway.signal("TERM");
        assert_eq!(gateway.wait().code(), Some(0));
        for (client_sends, (_, reader)) in &games {
            assert_reset(reader, &text, &format!("client sends: {client_sends}"));
        }
        // Without bytes under way the same deadline makes clean ends.
        assert_eq!(read_to_end(&mut client), b"");
        assert_eq!(read_to_end(&mut backend), b"");
    }
}

on_both_engines! {
    fn urgent_bytes_are_bytes_of_the_stream(engine) {
        let gateway = Gateway::start(engine);
        let worker = gateway.worker();
        for client_sends in [true, false] {
            for at_once in [false, true] {
                let (mut sender, mut reader) = turned(game(&gateway), client_sends);
                // What a stopped worker finds when it goes on has come all at once, with the mark in its midst.
                at_once.then(|| signal(worker, "STOP"));
                sender.write_all(&[b'A'; 100]).expect("it is sent");
                send_urgent(&sender, b'B');
                sender.write_all(&[b'C'; 100]).expect("it is sent");
                at_once.then(|| signal(worker, "CONT"));
                let mut heard = [0; 201];
                let case = format!("client sends: {client_sends}, at once: {at_once}");
                reader.read_exact(&mut heard).unwrap_or_else(|error| panic!("{case}: {error}"));
                assert!(heard == *[&[b'A'; 100][..], b"B", &[b'C'; 100]].concat(), "{case}: {heard:?}");
                reader.write_all(b"D").expect("it is sent");
                sender.read_exact(&mut [0]).unwrap_or_else(|error| panic!("{case}: {error}"));
            }
        }
    }
}

on_both_engines! {
    fn an_urgent_byte_behind_bulk_is_not_the_end(engine) {
        const BULK: usize = 8 * MIB;
        const AFTER: usize = 50_000;
        let _alone = alone();
        let gateway = Gateway::start(engine);
        let text = Text::seeded("an_urgent_byte_behind_bulk_is_not_the_end");
        for client_sends in [true, false] {
            for _ in 0..5 {
                let (sender, reader) = turned(game(&gateway), client_sends);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        send(&sender, &text, 0..BULK, 64 * 1024, &AtomicUsize::new(0));
                        send_urgent(&sender, text.part(BULK, 1)[0]);
                        send(&sender, &text, BULK + 1..BULK + 1 + AFTER, 64 * 1024, &AtomicUsize::new(0));
                        sender.shutdown(Shutdown::Write).expect("it ends");
                    });
                    let (got, end) = receive(&reader, &text, 0..usize::MAX);
                    assert_eq!(got, BULK + 1 + AFTER, "client sends: {client_sends}: {end:?}");
                    assert!(end.is_ok(), "client sends: {client_sends}: {end:?}");
                });
            }
        }
    }
}

on_both_engines! {
    fn the_last_words_of_a_backend_arrive_before_its_reset(engine) {
        const WORDS: usize = 1_000;
        let _alone = alone();
        let gateway = Gateway::start(engine);
        let text = Text::seeded("the_last_words_of_a_backend_arrive_before_its_reset");
        for i in 0..50 {
            // The backend reads nothing. Its last words come while the client's bytes still move.
            let (client, mut backend) = game(&gateway);
            thread::scope(|scope| {
                let sender = scope.spawn(|| send_until_refused(&client, &text));
                wait_until(|| unread_of(&backend) >= 8 * 1024 * (i % 4), || "nothing comes through".into());
                backend.write_all(text.part(0, WORDS)).expect("the last words are sent");
                reset(backend);
                let (got, end) = receive(&client, &text, 0..WORDS);
                assert_eq!(got, WORDS, "try {i}: {end:?}");
                sender.join().expect("it does not panic");
            });

            // The same when nothing moves any more: here nobody but the reader is told of the reset.
            if i % 10 == 0 {
                let (client, mut backend) = game(&gateway);
                fill_the_way(&client, &text);
                backend.write_all(text.part(0, WORDS)).expect("the last words are sent");
                reset(backend);
                let (got, end) = receive(&client, &text, 0..usize::MAX);
                let end = end.map_err(|error| error.kind());
                assert_eq!((got, end), (WORDS, Err(ErrorKind::ConnectionReset)), "try {i}, standing still");
            }
        }
    }
}

on_both_engines! {
    fn traffic_in_one_direction_puts_the_idle_deadline_off(engine) {
        let gateway = Gateway::with(&["--engine", engine, "--idle-timeout", "2s"]);
        let (mut client, mut backend) = game(&gateway);
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(4) {
            backend.write_all(b"x").expect("the game goes on");
            client.read_exact(&mut [0]).expect("the game goes on");
        }
    }
}

on_both_engines! {
    fn a_half_closed_game_ends_at_its_deadline(engine) {
        let gateway = Gateway::with(&["--engine", engine, "--half-closed-timeout", "300ms"]);
        for client_quits in [true, false] {
            let (quitter, mut other) = turned(game(&gateway), client_quits);
            quitter.shutdown(Shutdown::Write).expect("it ends");
            assert_eq!(read_to_end(&mut other), b"");
            assert_ended(&quitter);
            wait_until(|| other.write(b"x").is_err(), || "the other side is still open".into());
        }
    }
}

on_both_engines! {
    fn both_sockets_of_a_game_send_keep_alives(engine) {
        if !tool_or_skip("both_sockets_of_a_game_send_keep_alives", "ss") {
            return;
        }
        let gateway = Gateway::start(engine);
        let (client, backend) = game(&gateway);
        let ours = client.local_addr().expect("it is connected");
        let theirs = backend.peer_addr().expect("it is connected");
        for (local, peer) in [(gateway.address, ours), (theirs, backend.local_addr().expect("it is connected"))] {
            // A retransmission timer hides the other until the last bytes are acknowledged.
            let timers = || {
                let filter = ["-tnoH", "src", &local.to_string(), "dst", &peer.to_string()];
                let output = Command::new("ss").args(filter).output().expect("ss runs");
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            let missing = || format!("no keep-alive on {local} -> {peer}: {}", timers());
            wait_until(|| timers().contains("timer:(keepalive,"), missing);
        }
    }
}

/// Sends this range to a reader that has read nothing yet, looks at the worker once nothing moves any more, and then
/// lets the reader take it all. Returns how far the sender had come when it stood still.
fn wait_behind_a_stopped_reader(
    gateway: &Gateway,
    text: &Text,
    (sender, reader): (&TcpStream, &TcpStream),
    range: Range<usize>,
    piece: usize,
) -> usize {
    // The first bulk of a worker's life touches code and buffers that stay resident; they are not what is measured.
    let (client, backend) = game(gateway);
    carry(text, &client, &backend, 0..8 * MIB);
    carry(text, &backend, &client, 0..8 * MIB);

    let worker = gateway.worker();
    let resident = resident_bytes(worker);
    let sent = AtomicUsize::new(0);
    let (stopped_at, share, grown) = thread::scope(|scope| {
        scope.spawn(|| send(sender, text, range.clone(), piece, &sent));
        wait_until_still(|| sent.load(Relaxed));
        let stopped_at = sent.load(Relaxed);
        let share = cpu_share(worker, Duration::from_secs(2));
        let grown = resident_bytes(worker).saturating_sub(resident);
        let (got, end) = receive(reader, text, 0..range.end);
        assert_eq!(got, range.end, "{end:?}");
        (stopped_at, share, grown)
    });
    assert!(share < 0.05, "the worker used {:.1} % of a core while nothing moved", share * 100.0);
    assert!(grown < 256 * 1024, "the worker held {grown} bytes more");
    stopped_at
}

/// A thousand games, sixteen at a time.
fn a_thousand_games(gateway: &Gateway, backend: SocketAddr, play: impl Fn(&TcpStream) + Sync) {
    let begun = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while begun.fetch_add(1, Relaxed) < 1_000 {
                    play(&gateway.play(backend));
                }
            });
        }
    });
}

/// Says 20,000 bytes, ends, and hears the reply. True when the reply is the right one.
fn asks(mut stream: &TcpStream, random: &Mutex<Random>) -> bool {
    let mut words = random.lock().expect("not poisoned").bytes(20_000);
    let spoken = stream.write_all(&words).and_then(|()| stream.shutdown(Shutdown::Write));
    words.reverse();
    let mut heard = Vec::new();
    spoken.is_ok() && stream.read_to_end(&mut heard).is_ok() && heard == words
}

/// The other side of `asks`: backwards, so that it can begin only when it has seen the end.
fn reply(mut stream: &TcpStream) {
    let mut words = Vec::new();
    stream.read_to_end(&mut words).expect("the question ends cleanly");
    words.reverse();
    stream.write_all(&words).and_then(|()| stream.shutdown(Shutdown::Write)).expect("the reply is sent");
}

/// A game with both ends in hand: the client's and the backend's.
fn game(gateway: &Gateway) -> (TcpStream, TcpStream) {
    let listener = listen_deep();
    let client = gateway.play(listener.local_addr().expect("it is bound"));
    let (backend, _) = listener.accept().expect("the backend was connected before the answer");
    backend.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    backend.set_write_timeout(Some(PATIENCE)).expect("a time-out can be set");
    backend.set_nodelay(true).expect("nodelay can be set");
    (client, backend)
}

/// The two ends of a game, the client's first or last.
fn turned((client, backend): (TcpStream, TcpStream), client_first: bool) -> (TcpStream, TcpStream) {
    if client_first { (client, backend) } else { (backend, client) }
}

/// An endless text: a random block over and over. Its length is a prime, so whatever a buffer or a pipe
/// loses, doubles or moves shows.
struct Text(Vec<u8>);

impl Text {
    fn seeded(test: &str) -> Self {
        Self(Random::seeded(test).bytes(1_000_003))
    }

    /// What stands at `at`: `n` bytes, or fewer at the end of the block.
    fn part(&self, at: usize, n: usize) -> &[u8] {
        let rest = &self.0[at % self.0.len()..];
        &rest[..n.min(rest.len())]
    }
}

/// One end sends this range of the text and the other reads it.
fn carry(text: &Text, from: &TcpStream, to: &TcpStream, range: Range<usize>) {
    thread::scope(|scope| {
        scope.spawn(|| send(from, text, range.clone(), 64 * 1024, &AtomicUsize::new(0)));
        let (got, end) = receive(to, text, range.clone());
        assert_eq!(got, range.end, "{end:?}");
    });
}

fn send(mut to: &TcpStream, text: &Text, range: Range<usize>, piece: usize, sent: &AtomicUsize) {
    let mut at = range.start;
    while at < range.end {
        let part = text.part(at, piece.min(range.end - at));
        to.write_all(part).expect("what is sent is taken");
        at += part.len();
        sent.store(at, Relaxed);
    }
}

/// Reads this range of the text and compares. Says where it stopped, and the error if one stopped it before the end.
fn receive(mut from: &TcpStream, text: &Text, range: Range<usize>) -> (usize, io::Result<()>) {
    let mut buffer = vec![0; 64 * 1024];
    let mut at = range.start;
    while at < range.end {
        let part = text.part(at, buffer.len().min(range.end - at));
        match from.read(&mut buffer[..part.len()]) {
            Ok(0) => break,
            Ok(n) => {
                assert!(buffer[..n] == part[..n], "the bytes from {at} to {} are not those sent", at + n);
                at += n;
            }
            // A read with a time-out is not resumed after a signal.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (at, Err(error)),
        }
    }
    (at, Ok(()))
}

/// Sends the text from its start until the kernel takes no more of it.
fn fill(to: &TcpStream, text: &Text) {
    fill_from(to, text, 0);
}

/// As `fill`, until nobody takes any more: the kernel is full, and so is the worker behind it.
fn fill_the_way(to: &TcpStream, text: &Text) {
    const STILL: Duration = Duration::from_millis(500);
    let (mut at, mut since) = (fill_from(to, text, 0), Instant::now());
    while since.elapsed() < STILL {
        pause();
        let now = fill_from(to, text, at);
        if now > at {
            (at, since) = (now, Instant::now());
        }
    }
}

/// Sends the text from `at` on until the kernel takes no more of it. Says how far it came.
fn fill_from(mut to: &TcpStream, text: &Text, mut at: usize) -> usize {
    to.set_nonblocking(true).expect("a socket can be non-blocking");
    loop {
        assert!(at < 256 * MIB, "nothing stops the sender");
        match to.write(text.part(at, 64 * 1024)) {
            Ok(n) => at += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("what is sent is not taken: {error}"),
        }
    }
    to.set_nonblocking(false).expect("a socket can be blocking");
    at
}

/// Sends the text until the connection is gone.
fn send_until_refused(mut to: &TcpStream, text: &Text) {
    let mut at = 0;
    while at < 256 * MIB {
        match to.write(text.part(at, 64 * 1024)) {
            Ok(n) => at += n,
            Err(_gone) => return,
        }
    }
    panic!("nothing stops the sender");
}

fn send_urgent(to: &TcpStream, byte: u8) {
    let sent = socket2::SockRef::from(to).send_out_of_band(&[byte]).expect("an urgent byte is sent");
    assert_eq!(sent, 1);
}

/// How many bytes have come for one who has read none, as far as 256 KiB.
fn unread_of(stream: &TcpStream) -> usize {
    stream.set_nonblocking(true).expect("a socket can be non-blocking");
    let unread = stream.peek(&mut vec![0; 256 * 1024]).unwrap_or(0);
    stream.set_nonblocking(false).expect("a socket can be blocking");
    unread
}

/// What this end still reads is the text, up to a reset.
fn assert_reset(stream: &TcpStream, text: &Text, case: &str) {
    let (_, end) = receive(stream, text, 0..usize::MAX);
    assert_eq!(end.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset), "{case}");
}

/// Sends the text from `at` on until the worker leaves some of it unread, because the backends' side is full.
/// Says how far each client came.
fn stuff(gateway: &Gateway, text: &Text, clients: &[&TcpStream], at: usize) -> Vec<usize> {
    const STEP: usize = 64 * 1024;
    let port = |client: &TcpStream| client.local_addr().expect("it is connected").port();
    let mut ends = vec![at; clients.len()];
    let mut full = BTreeSet::new();
    while full.len() < clients.len() {
        for (client, end) in clients.iter().zip(&mut ends).filter(|(client, _)| !full.contains(&port(client))) {
            assert!(*end < 256 * MIB, "nothing stops the sender");
            send(client, text, *end..*end + STEP, STEP, &AtomicUsize::new(0));
            *end += STEP;
        }
        let since = Instant::now();
        let mut unread = unread(gateway);
        while unread.len() > full.len() && since.elapsed() < Duration::from_millis(200) {
            pause();
            unread = self::unread(gateway);
        }
        full = unread;
    }
    ends
}

/// The ports of clients that have sent what the worker has not read.
fn unread(gateway: &Gateway) -> BTreeSet<u16> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the table can be read");
    let local = format!(": 0100007F:{:04X} ", gateway.address.port());
    let rows =
        table.lines().filter(|line| line.contains(&local)).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let unread = rows.filter(|row| !row[4].ends_with(":00000000"));
    unread.map(|row| u16::from_str_radix(&row[2]["0100007F:".len()..], 16).expect("a port")).collect()
}

fn assert_ended(mut stream: &TcpStream) {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("the connection has not ended: {other:?}"),
    }
}

/// Waits until `value` has not changed for a second.
fn wait_until_still(value: impl Fn() -> usize) {
    let (mut last, mut since) = (value(), Instant::now());
    let still = || {
        if value() != last {
            (last, since) = (value(), Instant::now());
        }
        since.elapsed() >= Duration::from_secs(1)
    };
    wait_until(still, || "it keeps moving".into());
}
