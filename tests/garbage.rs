//! Bytes that nobody meant: the answer follows from the framing alone, and the daemon is as it was before.

mod common;

use common::*;
use std::io::Write;
use std::net::Shutdown;
use std::thread;

on_both_engines! {
    fn every_truncation_of_a_token_is_refused(engine) {
        let gateway = Gateway::start(engine);
        let mut inputs = Vec::new();
        for token in intact_tokens(&gateway) {
            for length in 0..token.len() {
                inputs.push(token.as_bytes()[..length].to_vec());
                inputs.push(format!("{}\n", &token[..length]).into_bytes());
            }
        }
        assert_refused_unharmed(&gateway, &inputs);
    }
}

on_both_engines! {
    fn every_flipped_bit_of_a_line_is_refused(engine) {
        let gateway = Gateway::start(engine);
        let mut inputs = Vec::new();
        for token in intact_tokens(&gateway) {
            let line = format!("{token}\n").into_bytes();
            for bit in 0..line.len() * 8 {
                let mut flipped = line.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                inputs.push(flipped);
            }
        }
        assert_refused_unharmed(&gateway, &inputs);
    }
}

on_both_engines! {
    fn random_bytes_are_refused(engine) {
        let gateway = Gateway::start(engine);
        let mut random = Random::seeded("random_bytes_are_refused");
        let mut inputs = Vec::new();
        for _ in 0..500 {
            let length = random.below(1100) as usize;
            let bytes = random.bytes(length);
            // The same bytes once as they are, and once as a single line.
            let mut line: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != b'\n').collect();
            line.push(b'\n');
            inputs.extend([bytes, line]);
        }
        assert_refused_unharmed(&gateway, &inputs);
    }
}

on_both_engines! {
    fn first_packets_of_other_protocols_are_refused(engine) {
        let gateway = Gateway::start(engine);
        let mut inputs = Vec::new();
        for (bytes, answer) in [
            (&[0; 64][..], "400"),
            (&[0; 2048], "400"),
            (b"\n\n\n\n", "401"),
            (b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", "401"),
            (b"SSH-2.0-OpenSSH_9.6\r\n", "401"),
            (TLS_CLIENT_HELLO, "401"), // the type of its group list holds a line feed
            (b"\x03\0\0\x13\x0e\xe0\0\0\0\0\0\x01\0\x08\0\x0b\0\0\0", "400"), // RDP
        ] {
            assert_eq!(expected(bytes), answer, "{}", bytes.escape_ascii());
            inputs.push(bytes.to_vec());
        }
        assert_refused_unharmed(&gateway, &inputs);
    }
}

/// TLS 1.2, two suites, server name `a.example`, groups and point formats.
const TLS_CLIENT_HELLO: &[u8] = b"\x16\x03\x01\0\x51\x01\0\0\x4d\x03\x03\
    0123456789abcdef0123456789abcdef\
    \0\0\x04\xc0\x2f\xc0\x30\x01\0\0\x20\
    \0\0\0\x0e\0\x0c\0\0\x09a.example\
    \0\x0a\0\x04\0\x02\0\x17\
    \0\x0b\0\x02\x01\0";

/// Tokens of one line and of two, which all open: their targets, that cannot be reached, get 502.
fn intact_tokens(gateway: &Gateway) -> [String; 4] {
    let name_of_two_lines = format!("{}.invalid:1", "a".repeat(35));
    let targets = ["0.0.0.0:0", "no-such.invalid:1", "no-such-host.invalid:65535", &name_of_two_lines];
    targets.map(|target| {
        assert_eq!(gateway.ask(target).1, "502", "{target}");
        token(target)
    })
}

/// The answer to bytes that hold no token, when the client's end follows them.
fn expected(bytes: &[u8]) -> &'static str {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return "400" };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    if line.len() <= 1024 { "401" } else { "400" }
}

/// Sends each input and the client's end behind it, many at a time. Neither the worker nor a descriptor of it is lost.
fn assert_refused_unharmed(gateway: &Gateway, inputs: &[Vec<u8>]) {
    let (address, worker, descriptors) = (gateway.address, gateway.worker(), gateway.descriptors());
    thread::scope(|scope| {
        for part in inputs.chunks(inputs.len().div_ceil(64)) {
            scope.spawn(move || {
                for bytes in part {
                    let mut client = connect(address);
                    client.write_all(bytes).expect("the bytes are sent");
                    client.shutdown(Shutdown::Write).expect("the client ends");
                    let answer = read_to_end(&mut client);
                    assert_eq!(answer.escape_ascii().to_string(), expected(bytes), "{}", bytes.escape_ascii());
                }
            });
        }
    });
    gateway.wait_for_descriptors(descriptors);
    assert_eq!(gateway.worker(), worker, "the worker was replaced");
    assert!(!gateway.log().contains("panicked"), "a worker panicked");
}
