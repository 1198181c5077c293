//! What systemd does with a daemon: it passes sockets, and it is told how things stand.

mod common;

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use common::*;

#[test]
fn systemd_is_told_of_the_start_a_reload_and_the_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let notify = UnixDatagram::bind(&path).expect("the socket is made");
    notify.set_read_timeout(Some(PATIENCE)).expect("it can be set");
    let mut buffer = [0; 4096];
    let mut told = || {
        let n = notify.recv(&mut buffer).expect("systemd is told");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };

    let mut command = program();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    let mut gateway = Gateway::with_command(command, &[]);
    assert_eq!(told().trim(), "READY=1");
    assert_eq!(told().trim(), "WATCHDOG=1");
    gateway.signal("HUP");
    let mut until = |what: &str| {
        let mut seen = told();
        while !seen.contains(what) {
            assert_eq!(seen.trim(), "WATCHDOG=1");
            seen = told();
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
fn a_socket_that_systemd_has_opened_is_taken_over() {
    let test = "a_socket_that_systemd_has_opened_is_taken_over";
    if !tool_or_skip(test, "systemd-socket-activate") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (reserved, address) = closed_port();
    drop(reserved);
    let backend = echo_backend();
    let mut systemd = Command::new("systemd-socket-activate")
        .args(["-l", &address.to_string(), "-E", &format!("GATEWAY_SECRET={SECRET}")])
        .arg(program().get_program())
        .args(["run", "--workers", "2"])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    wait_until(|| std::net::TcpStream::connect(address).is_ok(), || "nobody listens".into());
    for _ in 0..8 {
        let mut client = connect(address);
        std::io::Write::write_all(&mut client, format!("{}\n", token(&backend.to_string())).as_bytes())
            .expect("it is sent");
        assert_eq!(read_answer(&mut client), "200");
    }
    signal(systemd.id(), "TERM"); // it has become the gateway
    assert!(systemd.wait().expect("it ends").success());
    assert!(!directory.path().join("gateway.pid").exists());
}
