//! A provider and a visitor that know no address of each other meet at a rendezvous: real daemons on loopback, where no direct path
//! is looked for, so that everything goes through the rendezvous.

mod common;

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use common::meeting::{address, rendezvous};
use common::tunnel::*;
use common::{
    Random, backend, closed_port, connect, echo_backend, echoes, ends_half_by_half, output, program, read_to_end,
    wait_until,
};

/// A rendezvous, a provider of `game` and a visitor, in the order in which they end.
struct Three {
    visitor: Daemon,
    provider: Daemon,
    rendezvous: Daemon,
}

fn provide(engine: &str, via: SocketAddr, flags: &[&str]) -> Daemon {
    let via = via.to_string();
    Daemon::start(
        program(),
        &[&["provide", "game", "--engine", engine, "--via", &via, "--path", "relay"], flags].concat(),
    )
}

fn visit(engine: &str, via: SocketAddr, flags: &[&str]) -> Daemon {
    let via = via.to_string();
    Daemon::start(
        program(),
        &[&["visit", "game", "--engine", engine, "--via", &via, "--path", "relay"], flags].concat(),
    )
}

impl Three {
    fn start(engine: &str, provided: &[&str], visited: &[&str]) -> Self {
        let rendezvous = rendezvous(engine, &[]);
        let provider = provide(engine, address(&rendezvous), provided);
        provider.wait_for_log("visitors can come");
        let visitor = visit(engine, address(&rendezvous), visited);
        Self { visitor, provider, rendezvous }
    }

    /// Kills the rendezvous, and starts another on its port.
    fn restart_rendezvous(&mut self, engine: &str) {
        let at = address(&self.rendezvous).to_string();
        self.rendezvous.kill();
        self.visitor.wait_for_log("the rendezvous is lost");
        self.provider.wait_for_log("the rendezvous is lost");
        self.rendezvous = rendezvous(engine, &["--rendezvous", &at]);
    }
}

const TCP: &[&str] = &["--tcp", "127.0.0.1:0"];

on_both_engines! {
    fn games_over_tcp_and_udp_go_through_the_rendezvous(engine) {
        let (tcp, udp) = (echo_backend().to_string(), udp_echo().to_string());
        let doors = ["--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0"];
        let three = Three::start(engine, &["--tcp", &tcp, "--udp", &udp], &doors);
        ends_half_by_half(connect(three.visitor.tcp()));
        let socket = udp_socket();
        for question in [&b"short"[..], &[7; 1_200], &[8; 9_000]] {
            assert!(ask_udp(&socket, three.visitor.udp(), question) == question, "{} bytes", question.len());
        }
    }
}

on_both_engines! {
    fn a_transfer_outlives_the_rendezvous_through_which_it_goes(engine) {
        let mut random = Random::seeded("a_transfer_outlives_the_rendezvous_through_which_it_goes");
        let sent = Arc::new(random.bytes(2 << 20));
        let mut three = Three::start(engine, &["--tcp", &echo_backend().to_string()], TCP);
        let mut player = connect(three.visitor.tcp());
        assert!(echoes(&mut player));
        let (mut writer, bytes) = (player.try_clone().expect("it can be cloned"), sent.clone());
        // Slowly, so that it is under way when the rendezvous dies.
        let (half, told) = std::sync::mpsc::channel();
        let sender = std::thread::spawn(move || {
            let (before, after) = bytes.split_at(bytes.len() / 2);
            writer.write_all(before).expect("it is sent");
            half.send(()).expect("the test listens");
            writer.write_all(after).expect("it is sent");
            writer.shutdown(Shutdown::Write).expect("it ends");
        });
        let reader = std::thread::spawn(move || read_to_end(&mut player));
        told.recv_timeout(common::PATIENCE).expect("the first half has left");
        three.restart_rendezvous(engine);
        sender.join().expect("all is sent");
        assert!(reader.join().expect("all is read") == *sent, "what came back differs");
    }
}

on_both_engines! {
    fn a_provider_that_is_restarted_is_found_again(engine) {
        let tcp = echo_backend().to_string();
        let mut three = Three::start(engine, &["--tcp", &tcp], TCP);
        assert!(echoes(&mut connect(three.visitor.tcp())));
        three.provider.kill();
        three.provider = provide(engine, address(&three.rendezvous), &["--tcp", &tcp]);
        wait_until(|| try_echo(three.visitor.tcp()), || three.visitor.log());
    }
}

on_both_engines! {
    /// It has left the rendezvous by then, but not those who play with it.
    fn a_provider_that_dies_while_it_drains_is_found_again(engine) {
        let tcp = echo_backend().to_string();
        let mut three = Three::start(engine, &["--tcp", &tcp], TCP);
        let mut game = connect(three.visitor.tcp());
        assert!(echoes(&mut game));
        three.provider.signal("TERM");
        three.rendezvous.wait_for_log("service withdrawn");
        assert!(echoes(&mut game), "it goes on");
        three.provider.kill();
        three.provider = provide(engine, address(&three.rendezvous), &["--tcp", &tcp]);
        wait_until(|| try_echo(three.visitor.tcp()), || three.visitor.log());
    }
}

on_both_engines! {
    fn the_successor_of_a_provider_that_drains_is_found_when_the_last_game_has_ended(engine) {
        let tcp = echo_backend().to_string();
        let mut three = Three::start(engine, &["--tcp", &tcp], TCP);
        let mut game = connect(three.visitor.tcp());
        assert!(echoes(&mut game));
        three.provider.signal("TERM");
        three.rendezvous.wait_for_log("service withdrawn");
        let successor = provide(engine, address(&three.rendezvous), &["--tcp", &tcp]);
        successor.wait_for_log("visitors can come");
        drop(game);
        assert!(three.provider.wait().success());
        wait_until(|| try_echo(three.visitor.tcp()), || three.visitor.log());
    }
}

on_both_engines! {
    fn a_player_waits_for_a_provider_that_comes_late(engine) {
        let rendezvous = rendezvous(engine, &[]);
        let visitor = visit(engine, address(&rendezvous), TCP);
        visitor.wait_for_log("nobody provides it with this secret now");
        let mut player = connect(visitor.tcp());
        let _provider = provide(engine, address(&rendezvous), &["--tcp", &echo_backend().to_string()]);
        assert!(echoes(&mut player));
    }
}

on_both_engines! {
    fn a_rendezvous_that_is_not_there_is_tried_until_it_is(engine) {
        let (bound, at) = closed_port();
        let provider = provide(engine, at, &["--tcp", &echo_backend().to_string()]);
        let visitor = visit(engine, at, TCP);
        for daemon in [&provider, &visitor] {
            daemon.wait_for_log("rendezvous unreachable: connection refused; trying on");
        }
        drop(bound);
        let _rendezvous = rendezvous(engine, &["--rendezvous", &at.to_string()]);
        assert!(echoes(&mut connect(visitor.tcp())));
    }
}

#[test]
fn a_wrong_secret_is_told_from_a_rendezvous_that_is_not_there_and_reaches_nobody() {
    let three = Three::start("auto", &["--tcp", &echo_backend().to_string()], TCP);
    let strange = ["--secret", "another secret, as long as the first", "--tcp", "127.0.0.1:0"];
    let stranger = visit("auto", address(&three.rendezvous), &strange);
    stranger.wait_for_log("has it this secret?");
    assert!(echoes(&mut connect(three.visitor.tcp())));
}

#[test]
fn a_friend_with_another_secret_is_told_from_one_who_is_not_there() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("of the rendezvous");
    std::fs::write(&path, "what only the rendezvous is asked for\n").expect("it is written");
    let with = |secret| ["--via-secret-file", path.to_str().expect("a path of text"), "--secret", secret];
    let rendezvous = rendezvous("auto", &["--secret", "what only the rendezvous is asked for"]);
    let tcp = echo_backend().to_string();
    let ours = with("a secret of these friends");
    let provider = provide("auto", address(&rendezvous), &[&ours[..], &["--tcp", &tcp]].concat());
    provider.wait_for_log("visitors can come");
    let visitor = visit("auto", address(&rendezvous), &[&with("a secret of those friends"), TCP].concat());
    visitor.wait_for_log("does not answer: has it this secret?");
}

#[test]
fn a_name_belongs_to_the_secret_that_had_it_first() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let [one, other] = ["one", "other"].map(|name| {
        let path = directory.path().join(name);
        std::fs::write(&path, format!("a secret named {name}, long enough\n")).expect("it is written");
        path.display().to_string()
    });
    let rendezvous = rendezvous("auto", &["--secret-file", &one, "--secret-file", &other]);
    let tcp = echo_backend().to_string();
    let owner = provide("auto", address(&rendezvous), &["--tcp", &tcp, "--secret-file", &one]);
    owner.wait_for_log("visitors can come");
    let thief = provide("auto", address(&rendezvous), &["--tcp", &tcp, "--secret-file", &other]);
    thief.wait_for_log("the name is taken by another secret");
    let visitor = visit("auto", address(&rendezvous), &[TCP, &["--secret-file", &one]].concat());
    assert!(echoes(&mut connect(visitor.tcp())));
}

#[test]
fn the_peers_secret_need_not_be_known_to_the_rendezvous() {
    let rendezvous = rendezvous("auto", &["--secret", "what only the rendezvous is asked for"]);
    let of_rendezvous = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(of_rendezvous.path(), "what only the rendezvous is asked for\n").expect("it is written");
    let own = ["--via-secret-file", of_rendezvous.path().to_str().expect("a path of text")];
    let tcp = echo_backend().to_string();
    let _provider = provide("auto", address(&rendezvous), &[&own[..], &["--tcp", &tcp]].concat());
    let visitor = visit("auto", address(&rendezvous), &[&own[..], TCP].concat());
    assert!(echoes(&mut connect(visitor.tcp())));
}

#[test]
fn a_hundred_games_at_once_share_the_way_through_the_rendezvous() {
    let three = Three::start("auto", &["--tcp", &echo_backend().to_string()], TCP);
    let mut players: Vec<TcpStream> = (0..100).map(|_| connect(three.visitor.tcp())).collect();
    for _ in 0..3 {
        assert!(players.iter_mut().all(echoes));
    }
}

#[test]
fn a_reset_passes_through_the_rendezvous() {
    let service = backend(|mut stream| {
        use std::io::Read;
        let _ = stream.read(&mut [0]);
        common::reset(stream);
    });
    let three = Three::start("auto", &["--tcp", &service.to_string()], TCP);
    let mut player = connect(three.visitor.tcp());
    player.write_all(b"x").expect("it is sent");
    let error = std::io::Read::read(&mut player, &mut [0]).expect_err("the service has reset it");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn status_tells_that_the_relay_is_used_and_why() {
    let mut three = Three::start("auto", &["--tcp", &echo_backend().to_string()], TCP);
    assert!(echoes(&mut connect(three.visitor.tcp())));
    for daemon in [&three.visitor, &three.provider] {
        let shown = status_of(daemon);
        assert!(shown.contains("relay") && shown.contains("only the relay is wanted here"), "{shown}");
    }
    three.provider.kill();
    wait_until(|| status_of(&three.visitor).contains("nobody provides it"), || status_of(&three.visitor));
    three.rendezvous.kill();
    wait_until(|| status_of(&three.visitor).contains("the rendezvous is not reached"), || status_of(&three.visitor));
}

#[test]
fn a_daemon_that_drains_ends_although_it_has_a_tunnel_to_the_rendezvous() {
    let mut three = Three::start("auto", &["--tcp", &echo_backend().to_string()], TCP);
    drop(connect(three.visitor.tcp()));
    three.visitor.signal("TERM");
    three.provider.signal("TERM");
    assert!(three.visitor.wait().success() && three.provider.wait().success());
}

#[test]
fn what_makes_no_sense_with_a_rendezvous_is_told_at_the_start() {
    let strong = "a secret that is long enough";
    let cases: &[(&[&str], &str)] = &[
        (
            &["visit", "game", "--tcp", "127.0.0.1:0", "--via", "127.0.0.1:4000", "--peer", "127.0.0.1:1"],
            "`peer` and `via`",
        ),
        (
            &["provide", "game", "--tcp", "127.0.0.1:1", "--via", "127.0.0.1:4000", "--listen-udp", "127.0.0.1:0"],
            "`listen-udp` and `via`",
        ),
        (
            &["visit", "game", "--tcp", "127.0.0.1:0", "--peer", "127.0.0.1:1", "--path", "relay"],
            "`path` is given without a rendezvous",
        ),
        (&["visit", "game", "--tcp", "127.0.0.1:0"], "no peer is named"),
        (&["provide", ".game", "--tcp", "127.0.0.1:1", "--via", "127.0.0.1:4000"], "begins with a dot"),
    ];
    for (flags, words) in cases {
        let said = output(&[flags, &["--secret", strong][..]].concat());
        let stderr = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(3), "{flags:?}: {stderr}");
        assert!(stderr.contains(words) && stderr.contains("hint: "), "{flags:?}: {stderr}");
    }
    let weak = output(&["provide", "game", "--tcp", "127.0.0.1:1", "--via", "127.0.0.1:4000", "--secret", "short"]);
    let stderr = String::from_utf8_lossy(&weak.stderr);
    assert!(weak.status.code() == Some(3) && stderr.contains("too weak for a rendezvous"), "{stderr}");
    let none = output(&["provide", "game", "--tcp", "127.0.0.1:1", "--via", "127.0.0.1:4000"]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("no secret is given"));
}

fn status_of(daemon: &Daemon) -> String {
    let shown = program().arg("status").current_dir(daemon.directory.path()).output().expect("it runs");
    String::from_utf8_lossy(&shown.stdout).into_owned()
}

/// Whether a game can be played now. A connection may still be led to a provider that is gone.
fn try_echo(at: SocketAddr) -> bool {
    let Ok(mut player) = TcpStream::connect(at) else { return false };
    player.set_read_timeout(Some(Duration::from_secs(1))).expect("a time-out can be set");
    let mut back = [0; 4];
    player.write_all(b"ping").is_ok() && std::io::Read::read_exact(&mut player, &mut back).is_ok() && back == *b"ping"
}
