//! `--kcptun`: our daemons among themselves and with the real kcptun, where it is installed.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::process::{Child, Command, Stdio};

use common::tunnel::Daemon;
use common::{
    PATIENCE, Random, backend, connect, echo_backend, echoes, free_port, output, pause, program, read_to_end,
    tool_or_skip, wait_until,
};

const KEY: &str = "the password of kcptun";

/// Flags that both ends must agree on, in kcptun's words: with parity and compression, and without.
const SHAPES: [&[&str]; 2] = [&[], &["--nocomp", "--smuxver", "2", "--datashard", "0", "--parityshard", "0"]];

on_both_engines! {
    fn our_two_ends_speak_kcptun_with_each_other(engine) {
        for shape in SHAPES {
            let (provider, visitor) = pair(engine, shape);
            let mut player = connect(visitor.tcp());
            assert!(echoes(&mut player));
            assert!(echoes(&mut connect(visitor.tcp())), "a second stream");
            assert_eq!(echo_whole(&visitor, 4 << 20), 4 << 20);
            for daemon in [&provider, &visitor] {
                daemon.wait_for_log("kcptun's encryption does not authenticate");
                daemon.wait_for_log("peer reached");
            }
        }
    }
}

on_both_engines! {
    fn the_real_client_reaches_our_provider(engine) {
        if !real_or_skip("the_real_client_reaches_our_provider") {
            return;
        }
        for shape in SHAPES {
            let provider = provide(engine, &echo_backend(), shape);
            let door = free_port();
            let (local, remote) = (format!("127.0.0.1:{door}"), provider.udp().to_string());
            let _client = Real::start("kcptun-client", &["-l", &local, "-r", &remote], shape);
            let door = SocketAddr::from(([127, 0, 0, 1], door));
            wait_until(|| std::net::TcpStream::connect(door).is_ok(), || "the client does not listen".into());
            assert!(echoes(&mut connect(door)));
            assert_eq!(exchange(door, 4 << 20), 4 << 20);
        }
    }
}

on_both_engines! {
    fn our_visitor_reaches_the_real_server(engine) {
        if !real_or_skip("our_visitor_reaches_the_real_server") {
            return;
        }
        for shape in SHAPES {
            let listen = format!("127.0.0.1:{}", free_port());
            let target = echo_backend().to_string();
            let _server = Real::start("kcptun-server", &["-t", &target, "-l", &listen], shape);
            let visitor = visit(engine, &listen, shape);
            wait_until(|| echoes_soon(&visitor), || visitor.log());
            assert_eq!(echo_whole(&visitor, 4 << 20), 4 << 20);
        }
    }
}

#[test]
fn a_service_that_has_said_all_ends_the_players_connection() {
    let service = backend(|mut stream| drop(stream.write_all(b"goodbye")));
    let provider = provide("auto", &service, &[]);
    let visitor = visit("auto", &provider.udp().to_string(), &[]);
    assert_eq!(read_to_end(&mut connect(visitor.tcp())), b"goodbye");
}

#[test]
fn another_key_gets_no_answer() {
    let provider = provide("auto", &echo_backend(), &[]);
    let peer = provider.udp().to_string();
    let flags = ["visit", "game", "--tcp", "127.0.0.1:0", "--kcptun-peer", &peer, "--key", "not that key"];
    let visitor = Daemon::start(program(), &flags);
    let mut player = connect(visitor.tcp());
    player.write_all(b"hello").expect("it is sent");
    let error = player.read(&mut [0]).expect_err("nobody answers");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(!provider.log().contains("peer reached") && !visitor.log().contains("peer reached"));
}

#[test]
fn the_key_comes_from_the_environment_too_and_ps_shows_neither() {
    let mut command = program();
    command.env("GATEWAY_KCPTUN_KEY", KEY);
    let target = echo_backend().to_string();
    let provider = Daemon::start(command, &["provide", "game", "--tcp", &target, "--kcptun", "127.0.0.1:0"]);
    let visitor = visit("auto", &provider.udp().to_string(), &[]);
    assert!(echoes(&mut connect(visitor.tcp())));
    for (daemon, place) in [(&provider, "environ"), (&visitor, "cmdline")] {
        let seen = std::fs::read(format!("/proc/{}/{place}", daemon.pid())).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&seen).contains(KEY), "{place} shows the key");
    }
}

#[test]
fn what_kcptun_cannot_carry_is_refused_at_the_start() {
    let base = ["provide", "game", "--tcp", "127.0.0.1:1", "--kcptun", "127.0.0.1:0", "--key", KEY];
    for (flags, named) in [
        (&["--udp", "127.0.0.1:1"][..], "one TCP port"),
        (&["--proxy-protocol"], "one TCP port"),
        (&["--listen-udp", "127.0.0.1:0"], "listen-udp"),
        (&["--rate", "20M"], "rate"),
        (&["--crypt", "rot13"], "rot13"),
        (&["--smuxver", "3"], "smuxver"),
        (&["--mode", "game"], "mode"),
        (&["--mtu", "100"], "mtu"),
    ] {
        let output = output(&[&base[..], flags].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{flags:?}: {said}");
        assert!(said.contains(named) && said.contains("hint: ") && !said.contains(KEY), "{flags:?}: {said}");
    }
}

#[test]
fn a_visitor_is_not_given_two_peers_of_which_one_is_forgotten() {
    let flags = ["visit", "game", "--tcp", "192.0.2.1:80", "--key", KEY];
    let output = output(&[&flags[..], &["--peer", "127.0.0.1:1", "--kcptun-peer", "127.0.0.1:1"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("`kcptun-peer` and `peer`") && !said.contains(KEY), "{said}");
}

fn pair(engine: &str, shape: &[&str]) -> (Daemon, Daemon) {
    let provider = provide(engine, &echo_backend(), shape);
    let visitor = visit(engine, &provider.udp().to_string(), shape);
    (provider, visitor)
}

fn provide(engine: &str, target: &SocketAddr, shape: &[&str]) -> Daemon {
    let target = target.to_string();
    let flags = ["provide", "game", "--engine", engine, "--tcp", &target, "--kcptun", "127.0.0.1:0", "--key", KEY];
    Daemon::start(program(), &[&flags[..], shape].concat())
}

fn visit(engine: &str, peer: &str, shape: &[&str]) -> Daemon {
    let flags = ["visit", "game", "--engine", engine, "--tcp", "127.0.0.1:0", "--kcptun-peer", peer, "--key", KEY];
    Daemon::start(program(), &[&flags[..], shape].concat())
}

fn echoes_soon(visitor: &Daemon) -> bool {
    std::net::TcpStream::connect(visitor.tcp()).is_ok_and(|mut player| {
        player.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        echoes(&mut player)
    })
}

fn echo_whole(visitor: &Daemon, bytes: usize) -> usize {
    exchange(visitor.tcp(), bytes)
}

/// Sends random bytes to an echo and reads them back; says how many came as they were. The end is said when all are back: in
/// kcptun it ends both directions.
fn exchange(door: SocketAddr, bytes: usize) -> usize {
    let sent = Random::seeded("exchange").bytes(bytes);
    let mut player = connect(door);
    let mut writer = player.try_clone().expect("a second handle");
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).expect("it is sent"));
        let mut got = vec![0; bytes];
        player.read_exact(&mut got).expect("it comes back");
        player.shutdown(Shutdown::Write).expect("it ends");
        got.iter().zip(&sent).filter(|(got, sent)| got == sent).count()
    })
}

fn real_or_skip(test: &str) -> bool {
    tool_or_skip(test, "kcptun-client") && tool_or_skip(test, "kcptun-server")
}

/// kcptun itself.
struct Real(Child);

impl Real {
    fn start(program: &str, flags: &[&str], shape: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(flags).args(["--key", KEY]).args(shape);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let real = Self(child.expect("it starts"));
        pause();
        real
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
