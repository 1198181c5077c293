//! Backends by name, with a hosts file and a name server of the test's own, in a mount namespace of the daemon's own.

mod common;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;

use common::*;

/// A daemon that sees these two files as `/etc/hosts` and `/etc/resolv.conf`.
fn gateway_with(directory: &Path, hosts: &str, name_server: &str, flags: &[&str]) -> Gateway {
    let (hosts_file, resolv) = (directory.join("hosts"), directory.join("resolv.conf"));
    std::fs::write(&hosts_file, hosts).expect("it is written");
    std::fs::write(&resolv, format!("nameserver {name_server}\n")).expect("it is written");
    let mut command = Command::new("unshare");
    let mounts = r#"mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && shift 2 && exec "$@""#;
    command.args(["-m", "sh", "-c", mounts, "sh"]).arg(hosts_file).arg(resolv).arg(program().get_program());
    Gateway::with_command(command, flags)
}

fn can_mount(test: &str) -> bool {
    root_or_skip(test) && tool_or_skip(test, "unshare")
}

/// An echo backend on one of the loopback addresses.
fn echo_on(ip: [u8; 4], port: u16) -> SocketAddr {
    let listener = TcpListener::bind(SocketAddr::from((ip, port))).expect("the port is free on that address");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut stream.try_clone().expect("a second handle"), &mut stream));
        }
    });
    address
}

fn plays(gateway: &Gateway, target: &str) {
    let (mut client, answer) = gateway.ask(target);
    assert_eq!(answer, "200", "{target}: {}", gateway.log());
    client.write_all(b"hello").expect("it is sent");
    let mut heard = [0; 5];
    std::io::Read::read_exact(&mut client, &mut heard).expect("it comes back");
    assert_eq!(&heard, b"hello");
}

on_both_engines! {
    fn every_address_of_a_name_is_tried_within_the_time_out(engine) {
        if !can_mount("every_address_of_a_name_is_tried_within_the_time_out") {
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let hosts = "127.0.0.1 refusing.test silent.test\n127.0.0.2 refusing.test silent.test\n";
        let gateway = gateway_with(directory.path(), hosts, "127.0.0.1", &["--engine", engine]);

        let (_refusing, refused) = closed_port();
        echo_on([127, 0, 0, 2], refused.port());
        plays(&gateway, &format!("refusing.test:{}", refused.port()));

        let (_silent, _fillers, silent) = silent_backend();
        echo_on([127, 0, 0, 2], silent.port());
        plays(&gateway, &format!("silent.test:{}", silent.port()));
    }
}

on_both_engines! {
    fn a_silent_name_server_holds_up_nobody_but_who_asks(engine) {
        if !can_mount("a_silent_name_server_holds_up_nobody_but_who_asks") {
            return;
        }
        // Port 53 on an address of loopback that this test has for itself, and that no other test of this process uses.
        let ip = if engine == "uring" { "127.83.0.1" } else { "127.83.0.2" };
        let silent = UdpSocket::bind((ip, 53)).expect("nobody else serves names on that address");
        let directory = tempfile::tempdir().expect("a directory");
        let gateway = gateway_with(directory.path(), "", ip, &["--engine", engine, "--timeout", "2s"]);
        let backend = echo_backend();

        let mut waiting = gateway.connect();
        writeln!(waiting, "{}", token("slow.test:80")).expect("it is sent");
        let mut query = [0; 512];
        silent.recv_from(&mut query).expect("the question arrives");
        plays(&gateway, &backend.to_string());
        waiting.set_nonblocking(true).expect("it can be set");
        let early = std::io::Read::read(&mut waiting, &mut [0; 3]).expect_err("the one who asks still waits");
        assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
        waiting.set_nonblocking(false).expect("it can be set");
        assert_eq!(read_answer(&mut waiting), "504");
    }
}

on_both_engines! {
    fn a_changed_hosts_file_is_noticed(engine) {
        if !can_mount("a_changed_hosts_file_is_noticed") {
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let ip = if engine == "uring" { "127.83.0.3" } else { "127.83.0.4" };
        let gateway = gateway_with(directory.path(), "", ip, &["--engine", engine, "--timeout", "300ms"]);
        let backend = echo_backend();
        let target = format!("moved.test:{}", backend.port());
        assert_ne!(gateway.ask(&target).1, "200");
        let mut hosts = std::fs::OpenOptions::new().append(true).open(directory.path().join("hosts")).expect("it is there");
        writeln!(hosts, "127.0.0.1 moved.test").expect("it is written");
        wait_until(|| gateway.ask(&target).1 == "200", || "the name is still unknown".into());
    }
}

on_both_engines! {
    fn a_name_that_leads_only_to_forbidden_addresses_is_a_wrong_line(engine) {
        let gateway = Gateway::with(&["--engine", engine, "--deny", "127.0.0.0/8,::1"]);
        let backend = echo_backend();
        assert_eq!(gateway.ask(&format!("localhost:{}", backend.port())).1, "401");
    }
}
