//! What the operator of a tunnel reads when it does not do what he wants: real daemons, real sockets.

mod common;

use std::io::Read;
use std::net::UdpSocket;

use common::tunnel::*;
use common::{ENGINES, backend, closed_port, connect, echo_backend, echoes, program, signal, wait_until};

#[test]
fn a_service_that_cannot_be_connected_to_is_told_of_once_and_not_for_each_player() {
    let (_bound, closed) = closed_port();
    let pair = Pair::start("auto", &["--tcp", &closed.to_string()]);
    for _player in 0..3 {
        connect(pair.visitor.tcp()).read(&mut [0]).expect_err("he is turned away");
    }
    let told = "the service cannot be connected to, and its players";
    pair.provider.wait_for_log(told);
    assert_eq!(pair.provider.log().matches(told).count(), 1, "{}", pair.provider.log());
    assert!(pair.provider.log().contains(&format!("service={closed}")), "{}", pair.provider.log());
}

#[test]
fn a_visitor_with_more_ports_than_the_provider_is_told() {
    let provider = Daemon::provide("auto", &["--tcp", &echo_backend().to_string()]);
    let fitting = Daemon::visit("auto", provider.udp(), &["--tcp", "127.0.0.1:0"]);
    let too_many = Daemon::visit("auto", provider.udp(), &["--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0"]);
    for visitor in [&fitting, &too_many] {
        assert!(echoes(&mut connect(visitor.tcp())));
    }
    too_many.wait_for_log("the provider has so few ports");
    assert!(!fitting.log().contains("the provider has so few ports"));
}

#[test]
fn a_name_without_an_address_is_told_from_a_provider_that_does_not_answer() {
    let (_bound, silent) = closed_port();
    let visit = |peer: &str| Daemon::start(program(), &["visit", "game", "--tcp", "127.0.0.1:0", "--peer", peer]);
    let (nameless, unanswered) = (visit("no-such-host.invalid:29900"), visit(&silent.to_string()));
    nameless.wait_for_log("no address is known for the provider's name");
    unanswered.wait_for_log("the provider does not answer");
    assert!(nameless.log().contains("peer=no-such-host.invalid:29900"), "{}", nameless.log());
    assert!(!nameless.log().contains("does not answer"), "{}", nameless.log());
    assert!(unanswered.log().contains(&format!("peer={silent}")), "{}", unanswered.log());
}

#[test]
fn the_log_says_in_words_why_a_peer_is_gone() {
    let pair = Pair::start("auto", &["--tcp", &echo_backend().to_string()]);
    assert!(echoes(&mut connect(pair.visitor.tcp())));
    pair.provider.signal("TERM");
    pair.visitor.wait_for_log("the peer is lost");
    assert!(pair.visitor.log().contains("it was stopped"), "{}", pair.visitor.log());
}

#[test]
fn a_worker_whose_supervisor_was_killed_kept_its_port_and_could_not_be_told_to_stop() {
    for engine in ENGINES {
        let pair = Pair::start(engine, &["--tcp", &echo_backend().to_string()]);
        let (worker, address) = (pair.provider.workers()[0], pair.provider.udp());
        let mut game = connect(pair.visitor.tcp());
        assert!(echoes(&mut game));
        pair.provider.signal("KILL");
        pair.provider.wait_for_log("the supervisor is gone");
        assert!(echoes(&mut game), "the game goes on");
        assert!(UdpSocket::bind(address).is_err(), "and has its port");
        signal(worker, "TERM");
        wait_until(|| UdpSocket::bind(address).is_ok(), || format!("{address} is still taken"));
        assert!(game.read(&mut [0]).is_err(), "it was cut");
    }
}

#[test]
fn a_tunnel_took_the_secret_of_its_file_before_that_of_the_environment() {
    let provider = Daemon::provide("auto", &["--tcp", &echo_backend().to_string()]);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = file.path().to_str().expect("a plain path");
    let peer = provider.udp().to_string();
    let wrong = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(wrong.path(), "the secret of somebody else\n").expect("it is written");
    let in_file = [format!("secret-file = {:?}", wrong.path()), "secret = 'the secret of somebody else'".into()];
    for (line, is_typed) in in_file.iter().flat_map(|line| [(line, false), (line, true)]) {
        std::fs::write(file.path(), line).expect("it is written");
        let mut command = program();
        let mut flags = vec!["visit", "game", "--tcp", "127.0.0.1:0", "--peer", &peer, "--config", path];
        if is_typed {
            flags.extend(["--secret", SECRET]);
        } else {
            command.env("GATEWAY_SECRET", SECRET);
        }
        let visitor = Daemon::start(command, &flags);
        assert!(echoes(&mut connect(visitor.tcp())), "{line}, typed: {is_typed}");
        assert_eq!(visitor.log().contains("`ps`"), is_typed, "{}", visitor.log());
    }
}

#[test]
fn the_proxy_protocol_of_the_command_line_was_forgotten_for_the_services_of_a_file() {
    let (heard, hears) = std::sync::mpsc::channel();
    let service = backend(move |mut stream| {
        let mut first = [0; 12];
        stream.read_exact(&mut first).expect("the header comes before the player's first byte");
        heard.send(first).expect("the test listens");
    });
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), format!("[[provide]]\nname = \"game\"\ntcp = \"{service}\"\n")).expect("it is written");
    let path = file.path().to_str().expect("a plain path");
    let flags = ["provide", "--config", path, "--proxy-protocol", "--listen-udp", "127.0.0.1:0"];
    let provider = Daemon::start(program(), &flags);
    let visitor = Daemon::visit("auto", provider.udp(), &["--tcp", "127.0.0.1:0"]);
    let address = visitor.tcp();
    let _player = connect(address);
    assert_eq!(&hears.recv_timeout(common::PATIENCE).expect("it is connected"), b"\r\n\r\n\0\r\nQUIT\n");
}
