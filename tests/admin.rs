//! The page of figures and `gateway status`: what they tell, to whom, and what bad questions get.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::tunnel::*;
use common::{Gateway, PATIENCE, connect, echo_backend, echoes, free_port, program, wait_until};
use serde_json::Value;

on_both_engines! {
    fn a_visitor_tells_each_service_its_path_and_round_trip(engine) {
        let pair = Pair::start(engine, &["--tcp", &echo_backend().to_string()]);
        let mut player = connect(pair.visitor.tcp());
        assert!(echoes(&mut player));
        let socket = pair.visitor.directory.path().join("gateway.sock");
        let status = status_at(&socket);
        let peer = &status["peers"][0];
        assert_eq!((&peer["service"], &peer["path"]), (&"game".into(), &"direct".into()), "{status}");
        assert_eq!(peer["remote"], pair.provider.udp().to_string(), "{status}");
        assert!(peer["rtt_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{status}");
        assert!(peer["loss"].is_number() && peer["why"].is_string(), "{status}");
        assert_eq!(peer["keep_alive_s"], 15.0, "{status}");
        assert_eq!((&status["connections"], &status["workers_silent"]), (&1.into(), &0.into()), "{status}");
        let provider = status_at(&pair.provider.directory.path().join("gateway.sock"));
        assert_eq!(provider["peers"][0]["service"], "game", "{provider}");

        let shown = program().arg("status").current_dir(pair.visitor.directory.path()).output().expect("it runs");
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("1 worker, 1 connection\n") && shown.contains("game") && shown.contains("direct"), "{shown}");
    }
}

#[test]
fn a_service_that_nobody_provides_is_shown_with_the_reason() {
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let visitor = Daemon::visit("auto", nobody, &["--tcp", "127.0.0.1:0"]);
    let status = status_at(&visitor.directory.path().join("gateway.sock"));
    let peer = &status["peers"][0];
    assert_eq!((&peer["path"], &peer["remote"]), (&"none".into(), &Value::Null), "{status}");
    assert!(peer["why"].as_str().is_some_and(|why| why.contains("not answered")), "{status}");
}

#[test]
fn a_gateway_has_a_page_when_it_is_asked_for_and_tells_all_its_workers() {
    let port = free_port();
    let gateway = Gateway::with(&["--workers", "2", "--admin", &format!("127.0.0.1:{port}")]);
    let games: Vec<_> = (0..3).map(|_| gateway.play(echo_backend())).collect();
    let status = || json_of(&ask(&mut TcpStream::connect(("127.0.0.1", port)).expect("it listens"), "GET /status"));
    wait_until(|| status()["connections"] == games.len(), || status().to_string());
    assert_eq!((&status()["workers"], &status()["peers"]), (&2.into(), &Value::Array(Vec::new())));
}

#[test]
fn questions_that_nobody_understands_are_refused_and_the_next_one_is_answered() {
    let port = free_port();
    let _gateway = Gateway::with(&["--admin", &format!("127.0.0.1:{port}")]);
    let asked = |question: &str| ask(&mut TcpStream::connect(("127.0.0.1", port)).expect("it listens"), question);
    for (question, answer) in [
        ("GET /secrets", "HTTP/1.1 404"),
        ("GET /", "HTTP/1.1 404"),
        ("POST /status", "HTTP/1.1 405"),
        ("\u{16}\u{3}\u{1}", "HTTP/1.1 400"),
        (&"x".repeat(9000), "HTTP/1.1 400"),
    ] {
        assert!(asked(question).starts_with(answer), "{question:.20?} gets {}", asked(question));
    }
    let _silent: Vec<_> = (0..8).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("it listens")).collect();
    assert!(asked("GET /status").starts_with("HTTP/1.1 200"));
}

#[test]
fn a_strangers_page_in_a_browser_on_this_host_learns_nothing_by_letting_its_name_lead_here() {
    let port = free_port();
    let _gateway = Gateway::with(&["--admin", &format!("127.0.0.1:{port}")]);
    let asked_by = |host: &str| {
        let question = format!("GET /status HTTP/1.1\r\nHost: {host}:{port}\r\nBehind:");
        ask(&mut TcpStream::connect(("127.0.0.1", port)).expect("it listens"), &question)
    };
    let answer = asked_by("page.example");
    assert!(answer.starts_with("HTTP/1.1 421") && !answer.contains("pid"), "{answer}");
    for ours in ["127.0.0.1", "localhost", "[::1]"] {
        assert!(asked_by(ours).starts_with("HTTP/1.1 200"), "{ours}");
    }
}

#[test]
fn a_socket_that_a_killed_daemon_left_behind_is_taken_over_and_that_of_a_live_one_is_not() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("page.sock");
    let admin = format!("unix:{}", socket.display());
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a new path"));
    let gateway = Gateway::with(&["--admin", &admin]);
    assert_eq!(status_at(&socket)["pid"], gateway.pid());
    let second = Gateway::try_start(program(), tempfile::tempdir().expect("a directory"), &["--admin", &admin]);
    assert!(second.is_err_and(|error| error.contains("--admin")), "two daemons answer at one place");
    assert_eq!(status_at(&socket)["pid"], gateway.pid());
    drop(gateway);
    let file = directory.path().join("file.sock");
    std::fs::write(&file, "somebody's").expect("it is written");
    let admin = format!("unix:{}", file.display());
    let refused = Gateway::try_start(program(), tempfile::tempdir().expect("a directory"), &["--admin", &admin]);
    assert!(refused.is_err(), "a file that is no socket is left alone");
    assert_eq!(std::fs::read_to_string(&file).expect("it is still there"), "somebody's");
}

#[test]
fn the_socket_goes_with_the_daemon() {
    let mut pair = Pair::start("auto", &["--tcp", "127.0.0.1:1"]);
    let socket = pair.visitor.directory.path().join("gateway.sock");
    assert!(socket.exists());
    pair.visitor.signal("TERM");
    assert!(pair.visitor.wait().success());
    assert!(!socket.exists());
}

fn status_at(socket: &Path) -> Value {
    json_of(&ask(&mut UnixStream::connect(socket).expect("it listens"), "GET /status"))
}

fn json_of(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    serde_json::from_str(body).expect("it is JSON")
}

/// The whole answer. A refusal may come before the question was sent to its end.
fn ask(stream: &mut (impl Read + Write + Patient), question: &str) -> String {
    stream.be_patient();
    let _ = stream.write_all(format!("{question} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).expect("it is text")
}

trait Patient {
    fn be_patient(&self);
}

impl Patient for TcpStream {
    fn be_patient(&self) {
        self.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    }
}

impl Patient for UnixStream {
    fn be_patient(&self) {
        self.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    }
}
