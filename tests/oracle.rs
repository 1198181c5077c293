//! An attacker who hopes to read a token through the daemon's answers: neither their bytes nor their time may differ.

mod common;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::*;
use std::io::Write;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// From a complete line to its 401.
const DELAY: Duration = Duration::from_millis(20);

on_both_engines! {
    fn no_last_byte_before_the_final_block_gets_another_answer(engine) {
        let gateway = Gateway::start(engine);
        let mut random = Random::seeded("no_last_byte_before_the_final_block_gets_another_answer");
        let captured = STANDARD.decode(token("127.0.0.1:1")).expect("base64");
        let (salted, captured) = captured.split_at(16);
        let blocks = [captured.to_vec(), random.bytes(16), random.bytes(16), random.bytes(16)];
        let mut lines = Vec::new();
        for block in &blocks {
            let before = random.bytes(15);
            // Among all 256 values, one gives the padding 01.
            lines.extend((0..=255).map(|last| line(&[salted, &before, &[last], block].concat())));
        }
        assert_all_alike(&ask(gateway.address, &lines, 32));
    }
}

on_both_engines! {
    fn every_fault_of_a_line_gets_the_same_bytes_20_ms_after_it(engine) {
        let gateway = Gateway::with(&["--engine", engine, "--deny", "127.0.0.2/32"]);
        let grammar = token("a target without a port");
        let faults = [
            "not base64!\n".into(),
            line(b"Salted__salt"),
            line(b"Salted__saltsalt"),
            line(b"Salted__saltsalt + 15 bytes...."),
            line(b"salted__saltsalt16 bytes of text"),
            wrong_padding(&grammar),
            grammar + "\n",
            token("127.0.0.2:80") + "\n",
        ];
        for fault in faults {
            println!("{fault:?}");
            assert_all_alike(&ask(gateway.address, &vec![fault; 50], 10));
        }
    }
}

on_both_engines! {
    fn time_does_not_tell_right_padding_from_wrong(engine) {
        let gateway = Gateway::start(engine);
        let mut random = Random::seeded("time_does_not_tell_right_padding_from_wrong");
        let right = token("a target without a port");
        let wrong = wrong_padding(&right);
        let right = right + "\n";
        // The control is the first class again: it shows how far chance, and the load of the machine, take the figure.
        let classes = [&right, &right, &wrong];
        let order: Vec<usize> = (0..600)
            .flat_map(|_| {
                let first = random.below(3) as usize;
                let step = 1 + random.below(2) as usize;
                [first, (first + step) % 3, (first + 2 * step) % 3]
            })
            .collect();
        let lines: Vec<String> = order.iter().map(|class| classes[*class].clone()).collect();
        let answers = ask(gateway.address, &lines, 4);
        assert_all_alike(&answers);
        let times = |wanted| -> Vec<Duration> {
            order.iter().zip(&answers).filter(|(class, _)| **class == wanted).map(|(_, (_, time))| *time).collect()
        };
        let [right, control, wrong] = [0, 1, 2].map(times);
        for (name, other) in [("the control", control), ("wrong padding", wrong)] {
            let auc = auc(&right, &other);
            assert!((auc - 0.5).abs() <= 0.1, "an observer tells right padding from {name}: AUC {auc:.3}");
        }
    }
}

fn line(raw: &[u8]) -> String {
    STANDARD.encode(raw) + "\n"
}

/// The line of a token of two blocks, changed so that its padding ends in a byte above 16.
fn wrong_padding(token: &str) -> String {
    let mut raw = STANDARD.decode(token).expect("base64");
    assert_eq!(raw.len(), 48, "head and two blocks");
    raw[31] ^= 0x80;
    line(&raw)
}

/// Sends each line on a connection of its own. Gives all that came back, and the time to its first three bytes.
fn ask(gateway: SocketAddr, lines: &[String], threads: usize) -> Vec<(Vec<u8>, Duration)> {
    let ask_one = |line: &String| {
        let mut client = connect(gateway);
        let started = Instant::now();
        client.write_all(line.as_bytes()).expect("the line is sent");
        let answer = read_answer(&mut client);
        let time = started.elapsed();
        ([answer.into_bytes(), read_to_end(&mut client)].concat(), time)
    };
    thread::scope(|scope| {
        let parts: Vec<_> = lines
            .chunks(lines.len().div_ceil(threads))
            .map(|part| scope.spawn(move || part.iter().map(ask_one).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("a client ends")).collect()
    })
}

fn assert_all_alike(answers: &[(Vec<u8>, Duration)]) {
    for (answer, time) in answers {
        assert_eq!(answer.escape_ascii().to_string(), "401");
        assert!(*time >= DELAY, "answered after {time:?}");
    }
}

/// Chance that a sample of `left` is below one of `right`; 0.5 when nobody can tell them apart.
fn auc(left: &[Duration], right: &[Duration]) -> f64 {
    let pairs = left.iter().flat_map(|a| right.iter().map(move |b| a.cmp(b)));
    let twice: u64 = pairs.map(|order| 1 - order as i64).sum::<i64>() as u64;
    twice as f64 / 2.0 / (left.len() * right.len()) as f64
}
