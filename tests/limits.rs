//! What happens at a limit: those inside go on undisturbed, those outside wait their turn.
mod common;

use common::*;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

on_both_engines! {
    fn without_descriptors_the_newcomers_wait_and_the_games_go_on(engine) {
        if !tool_or_skip("without_descriptors_the_newcomers_wait_and_the_games_go_on", "prlimit") {
            return;
        }
        // An accept that a ring has armed knows only the limit of that time (measured); a client that it lets in waits
        // for the backend's socket instead, and must not run into the time-out.
        let gateway = Gateway::with(&["--engine", engine, "--timeout", "30s"]);
        let worker = gateway.worker();
        let backend = echo_backend();
        let mut games: Vec<_> = (0..20).map(|_| gateway.play(backend)).collect();

        let before = descriptor_limit(worker);
        limit_descriptors(worker, lowest_free_descriptor(worker));
        let mut newcomers: Vec<_> = (0..50).map(|_| knock(&gateway, backend)).collect();
        assert!(games.iter_mut().all(echoes));
        let logged = gateway.log().lines().count();
        let share = cpu_share(worker, Duration::from_secs(2));
        let lines = gateway.log().lines().count() - logged;
        assert!(lines < 200, "{lines} lines in the log within two seconds");
        assert!(share < 0.2, "the worker uses {:.0} % of a core", share * 100.0);
        assert!(newcomers.iter().all(waits));
        assert!(games.iter_mut().all(echoes));

        limit_descriptors(worker, before);
        for newcomer in &mut newcomers {
            assert_eq!(read_answer(newcomer), "200");
            assert!(echoes(newcomer));
        }
        assert!(games.iter_mut().all(echoes));
    }
}

on_both_engines! {
    fn one_connection_too_many_is_served_when_another_ends(engine) {
        let gateway = Gateway::with(&["--engine", engine, "--max-connections", "4"]);
        let backend = echo_backend();
        let mut games: Vec<_> = (0..4).map(|_| gateway.play(backend)).collect();
        let mut newcomer = knock(&gateway, backend);
        watch(Duration::from_millis(500));
        assert!(waits(&newcomer));
        assert!(games.iter_mut().all(echoes));
        assert_eq!(gateway.log().matches("as many connections as there may be").count(), 1);
        games.pop();
        assert_eq!(read_answer(&mut newcomer), "200");
        assert!(echoes(&mut newcomer));
    }
}

#[test]
fn few_open_files_are_told_at_start_with_what_they_allow() {
    if !tool_or_skip("few_open_files_are_told_at_start_with_what_they_allow", "prlimit") {
        return;
    }
    for (descriptors, flags, told) in [
        ("300", &[][..], true),
        ("5000", &["--max-connections", "3000"], true),
        ("5000", &["--max-connections", "2000"], false),
        ("5000", &[], false),
    ] {
        let command = program_under(&["prlimit", &format!("--nofile={descriptors}")]);
        let gateway = Gateway::with_command(command, flags);
        let log = gateway.log();
        assert_eq!(log.contains("open files allow few connections"), told, "{descriptors} {flags:?}: {log}");
    }
}

on_both_engines! {
    fn clients_without_room_wait_outside_the_worker_and_outlive_it(engine) {
        const ROOM: usize = 5;
        const CLIENTS: usize = 300;
        const SOME: usize = 16;
        let gateway = Gateway::with(&["--engine", engine, "--max-connections", &ROOM.to_string()]);
        let (worker, backend, own) = (gateway.worker(), echo_backend(), gateway.descriptors());
        let mut outside: Vec<_> = (0..CLIENTS).map(|_| knock(&gateway, backend)).collect();
        let mut inside = let_in(&mut outside, ROOM);
        watch(Duration::from_millis(500));
        let held = gateway.descriptors();
        assert!(held <= own + 2 * ROOM + SOME, "{held} descriptors, {own} of them without a connection");
        assert!(outside.iter().all(waits), "there is no room for more than {ROOM}");

        drop(inside.pop());
        inside.extend(let_in(&mut outside, 1));
        watch(Duration::from_millis(500));
        assert!(outside.iter().all(waits), "one has ended, and more than one came in");
        assert!(inside.iter_mut().all(echoes));

        signal(worker, "KILL");
        wait_until(|| !gateway.workers().contains(&worker), || "the worker stays".into());
        for _ in 0..CLIENTS {
            if outside.is_empty() {
                break;
            }
            let_in(&mut outside, 1);
        }
        assert!(outside.is_empty());
    }
}

/// Waits until at least `least` of those outside have been let in, and takes them out. Each of them plays.
fn let_in(outside: &mut Vec<TcpStream>, least: usize) -> Vec<TcpStream> {
    wait_until(
        || outside.iter().filter(|client| !waits(client)).count() >= least,
        || format!("{least} of {} are not let in", outside.len()),
    );
    let mut inside: Vec<_> = outside.extract_if(.., |client| !waits(client)).collect();
    for client in &mut inside {
        assert_eq!(read_answer(client), "200");
        assert!(echoes(client));
    }
    inside
}

/// A client that has said its line and not yet looked for the answer.
fn knock(gateway: &Gateway, backend: std::net::SocketAddr) -> TcpStream {
    let mut client = gateway.connect();
    client.write_all(format!("{}\n", token(&backend.to_string())).as_bytes()).expect("the line is sent");
    client
}

/// True when nothing has come for this client, neither an answer nor an end.
fn waits(client: &TcpStream) -> bool {
    client.set_nonblocking(true).expect("a socket can be non-blocking");
    let looked = client.peek(&mut [0]).map_err(|error| error.kind());
    client.set_nonblocking(false).expect("a socket can be blocking");
    looked == Err(ErrorKind::WouldBlock)
}

/// The number the next descriptor would get. As a limit it stops every new one and no old one.
fn lowest_free_descriptor(pid: u32) -> u64 {
    (0..).find(|fd| !exists(format!("/proc/{pid}/fd/{fd}").as_ref())).expect("there is always a next number")
}

fn descriptor_limit(pid: u32) -> u64 {
    let output = prlimit(pid, &["--nofile", "--output=SOFT", "--noheadings", "--raw"]);
    output.trim().parse().expect("the limit is a number")
}

fn limit_descriptors(pid: u32, soft: u64) {
    prlimit(pid, &[&format!("--nofile={soft}:")]);
}

fn prlimit(pid: u32, args: &[&str]) -> String {
    let output = Command::new("prlimit").args(["--pid", &pid.to_string()]).args(args).output().expect("prlimit runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
