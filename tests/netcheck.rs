//! What `gateway netcheck` finds out about a network, and how it says that it cannot.

mod common;

use std::net::UdpSocket;
use std::process::Output;

use common::meeting::{address, rendezvous};
use common::tunnel::{Daemon, SECRET};
use common::{closed_port, output, skip};
use serde_json::Value;

fn netcheck(via: &str, secret: &str, flags: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("secret");
    std::fs::write(&file, secret).expect("the secret is written");
    let file = file.to_str().expect("text");
    output(&[&["netcheck", "--via", via, "--secret-file", file], flags].concat())
}

fn at(rendezvous: &Daemon) -> String {
    address(rendezvous).to_string()
}

/// What it says on stderr, and with which code it ends.
fn refusal(output: &Output) -> (String, Option<i32>) {
    assert!(output.stdout.is_empty(), "it has results: {output:?}");
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

on_both_engines! {
    fn a_network_without_nat_is_recognized_over_udp_and_tcp(engine) {
        for workers in ["1", "2"] {
            let rendezvous = rendezvous(engine, &["--workers", workers]);
            let found = json(&netcheck(&at(&rendezvous), SECRET, &["--json"]));
            for protocol in ["udp", "tcp"] {
                let of = &found[protocol];
                assert_eq!(of["works"], true, "{found}");
                assert!(of["rtt_ms"]["median"].as_f64().is_some_and(|ms| ms > 0.0), "{found}");
                assert!(of["seen_as"][0].as_str().is_some_and(|seen| seen.starts_with("127.0.0.1:")), "{found}");
            }
            let found_of_nat = (&found["mapping"], &found["filtering"]);
            assert_eq!(found_of_nat, (&"open".into(), &"open_or_address_restricted".into()), "{found}");
            assert_eq!((&found["hairpin"], &found["advice"]), (&Value::Null, &"".into()), "{found}");
        }
    }
}

#[test]
fn the_verdict_is_told_in_words_a_line_each() {
    let rendezvous = rendezvous("epoll", &[]);
    let output = netcheck(&at(&rendezvous), SECRET, &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    let names: Vec<_> = said.lines().map(|line| line.get(..12).unwrap_or(line).trim()).collect();
    assert_eq!(
        names,
        [
            "rendezvous",
            "UDP",
            "TCP",
            "seen as",
            "mapping",
            "filtering",
            "router port",
            "hairpin",
            "IPv6",
            "verdict",
            "to do"
        ],
        "{output:?}"
    );
    assert!(
        said.contains("\nverdict     direct paths will work with everybody whose network lets UDP out\n"),
        "{said}"
    );
}

#[test]
fn a_rendezvous_that_is_met_over_ipv6_tells_nothing_of_ipv4() {
    if UdpSocket::bind("[::1]:0").is_err() {
        return skip("a_rendezvous_that_is_met_over_ipv6_tells_nothing_of_ipv4", "no IPv6 here");
    }
    let rendezvous = rendezvous("epoll", &["--rendezvous", "[::1]:0"]);
    let found = json(&netcheck(&at(&rendezvous), SECRET, &["--json"]));
    assert_eq!((&found["mapping"], &found["ipv6"]["works"]), (&"unknown".into(), &true.into()), "{found}");
    assert_eq!(found["filtering"], "unknown", "{found}");
    assert!(found["udp"]["seen_as"][0].as_str().is_some_and(|seen| seen.starts_with("[::1]:")), "{found}");
}

#[test]
fn the_name_of_a_rendezvous_is_looked_up_and_one_without_address_is_an_error() {
    let rendezvous = rendezvous("epoll", &[]);
    let found = netcheck(&format!("localhost:{}", address(&rendezvous).port()), SECRET, &["--json"]);
    assert_eq!(json(&found)["rendezvous"], at(&rendezvous));
    let (said, code) = refusal(&netcheck("nobody.invalid:4000", SECRET, &[]));
    assert!(said.contains("nobody.invalid has no address") && said.contains("hint: "), "{said}");
    assert_eq!(code, Some(1));
}

#[test]
fn a_wrong_secret_meets_silence_and_the_error_says_so() {
    let rendezvous = rendezvous("epoll", &[]);
    let (said, code) = refusal(&netcheck(&at(&rendezvous), "another secret, long enough", &[]));
    assert!(said.contains("says nothing") && said.contains("compare yours"), "{said}");
    assert_eq!(code, Some(1));
}

#[test]
fn where_nobody_listens_the_error_says_that() {
    let (_kept, closed) = closed_port();
    let (said, code) = refusal(&netcheck(&closed.to_string(), SECRET, &[]));
    assert!(said.contains(&format!("rendezvous {closed} unreachable: connection refused")), "{said}");
    assert_eq!(code, Some(1));
}

#[test]
fn the_port_to_be_looked_at_is_the_one_that_the_rendezvous_sees() {
    let rendezvous = rendezvous("epoll", &[]);
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    let (said, code) = refusal(&netcheck(&at(&rendezvous), SECRET, &["--udp-port", &port]));
    assert!(said.contains(&format!("cannot use UDP port {port}")), "{said}");
    assert_eq!(code, Some(4));
    drop(taken);
    let found = json(&netcheck(&at(&rendezvous), SECRET, &["--udp-port", &port, "--json"]));
    assert_eq!(found["udp"]["seen_as"], Value::from(vec![format!("127.0.0.1:{port}")]), "{found}");
}
