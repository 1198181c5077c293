//! What systemd does with a daemon: it passes sockets, and it is told how things stand.

mod common;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;

#[test]
fn systemd_is_told_of_the_start_a_reload_and_the_end() {
    let (mut gateway, systemd) = watched("400000");
    gateway.signal("HUP");
    let until = |what: &str| {
        let mut seen = systemd.next();
        while !seen.contains(what) {
            assert_eq!(seen, "WATCHDOG=1");
            seen = systemd.next();
        }
        seen
    };
    assert!(until("RELOADING=1").contains("MONOTONIC_USEC="), "both belong into one message");
    until("READY=1");
    gateway.signal("TERM");
    until("STOPPING=1");
    assert!(gateway.wait().success());
}

#[test]
fn reloads_in_a_row_do_not_starve_the_watchdog() {
    const PAUSE: Duration = Duration::from_millis(200); // half the time that systemd gives
    let (gateway, systemd) = watched("400000");
    let hangup = || {
        let since = Instant::now();
        gateway.signal("HUP");
        since
    };
    let (started, mut reloads, mut sent) = (Instant::now(), 0, hangup());
    let mut served = None; // when the HUP was sent whose reload was the last to end
    loop {
        match &*systemd.next() {
            "READY=1" => {
                reloads += 1;
                served = Some(sent);
                sent = hangup();
            }
            // Since a reload that began less than a pause ago, no whole pause has passed: this one began before it.
            "WATCHDOG=1" if served.is_some_and(|sent| sent.elapsed() < PAUSE) => return,
            _ => {}
        }
        assert!(started.elapsed() < PATIENCE, "{reloads} reloads, and no sign of life before a pause without one");
    }
}

#[test]
fn a_socket_that_systemd_has_opened_is_taken_over() {
    if !tool_or_skip("a_socket_that_systemd_has_opened_is_taken_over", "systemd-socket-activate") {
        return;
    }
    let (reserved, address) = closed_port();
    drop(reserved);
    let mut systemd = Activated::start(&address.to_string(), address);
    let backend = echo_backend().to_string();
    for _ in 0..8 {
        assert_eq!(answer(address, &backend), "200");
    }
    signal(systemd.0.id(), "TERM"); // it has become the gateway
    assert!(systemd.0.wait().expect("it ends").success());
    assert!(!exists(&systemd.1.path().join("gateway.pid")));
}

#[test]
fn a_line_never_leads_back_through_either_family_of_a_dual_stack_socket() {
    let test = "a_line_never_leads_back_through_either_family_of_a_dual_stack_socket";
    if !tool_or_skip(test, "systemd-socket-activate") {
        return;
    }
    let Ok(reserved) = TcpListener::bind("[::]:0") else { return skip(test, "needs IPv6") };
    let port = reserved.local_addr().expect("it is bound").port();
    drop(reserved);
    let (v4, v6): (SocketAddr, SocketAddr) =
        (([127, 0, 0, 1], port).into(), (std::net::Ipv6Addr::LOCALHOST, port).into());
    let _systemd = Activated::start(&format!("[::]:{port}"), v6);
    let backend = echo_backend().to_string();
    for from in [v4, v6] {
        assert_eq!(answer(from, &backend), "200", "the secret is known at {from}");
        for target in [v4, v6] {
            assert_eq!(answer(from, &target.to_string()), "401", "{from} leads to {target}");
        }
    }
}

/// A daemon whose watchdog has this many microseconds. It has told its start, and that it lives.
fn watched(microseconds: &str) -> (Gateway, Notified) {
    let directory = tempfile::tempdir().expect("a directory");
    let systemd = Notified::bind(directory.path().join("notify"));
    let mut command = program();
    command.env("NOTIFY_SOCKET", &systemd.path).env("WATCHDOG_USEC", microseconds);
    let gateway = Gateway::try_start(command, directory, &[]).unwrap_or_else(|said| panic!("it did not start: {said}"));
    assert_eq!(systemd.next(), "READY=1");
    assert_eq!(systemd.next(), "WATCHDOG=1");
    (gateway, systemd)
}

/// A daemon that has its socket from systemd. Dropping it ends it.
struct Activated(Child, tempfile::TempDir);

impl Activated {
    /// Listens at `listen` and starts the daemon by a first visit to `address`.
    fn start(listen: &str, address: SocketAddr) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let systemd = Command::new("systemd-socket-activate")
            .args(["-l", listen, "-E", &format!("GATEWAY_SECRET={SECRET}")])
            .arg(program().get_program())
            .args(["run", "--workers", "2"])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        let activated = Self(systemd, directory);
        wait_until(|| std::net::TcpStream::connect(address).is_ok(), || "nobody listens".into());
        activated
    }
}

impl Drop for Activated {
    /// Its workers have no games and end with it.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn answer(gateway: SocketAddr, target: &str) -> String {
    let mut client = connect(gateway);
    writeln!(client, "{}", token(target)).expect("the line is sent");
    read_answer(&mut client)
}
