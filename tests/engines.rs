//! Which engine runs where: io_uring when the kernel allows it, epoll or a clear refusal when it does not.
mod common;

use common::*;
use std::io::{Read, Write};
use std::process::Command;

#[test]
fn the_engine_asked_for_is_the_one_that_runs_and_is_logged() {
    for engine in ENGINES {
        let gateway = Gateway::with(&["--engine", engine, "--log-level", "info"]);
        let _game = gateway.play(echo_backend());
        let has_ring = links(gateway.worker()).iter().any(|link| link == "anon_inode:[io_uring]");
        assert_eq!(has_ring, engine == "uring");
        let said = |line: &str| line.contains("engine") && line.contains(engine);
        wait_until(|| gateway.log().lines().any(said), || format!("the log does not name {engine}: {}", gateway.log()));
    }
}

#[test]
fn without_io_uring_the_automatic_choice_is_epoll_and_told_once() {
    for errno in ["EPERM", "ENOSYS"] {
        let Some(command) = without_io_uring("without_io_uring_the_automatic_choice_is_epoll_and_told_once", errno)
        else {
            return;
        };
        let gateway = Gateway::with_command(command, &["--engine", "auto", "--log-level", "info"]);
        let mut client = gateway.play(echo_backend());
        client.write_all(b"hello").expect("it is sent");
        let mut heard = [0; 5];
        client.read_exact(&mut heard).expect("it comes back");
        assert_eq!(&heard, b"hello");
        let log = gateway.log();
        let told = log.lines().filter(|line| line.contains("io_uring") && line.contains("epoll")).count();
        assert_eq!(told, 1, "{errno}: {log}");
    }
}

#[test]
fn without_io_uring_the_ring_is_refused_and_the_cause_is_named() {
    for (errno, causes) in [("EPERM", &["kernel.io_uring_disabled", "seccomp"][..]), ("ENOSYS", &["io_uring"])] {
        let Some(command) = without_io_uring("without_io_uring_the_ring_is_refused_and_the_cause_is_named", errno)
        else {
            return;
        };
        let directory = tempfile::tempdir().expect("a temporary directory");
        let said = Gateway::try_start(command, directory, &["--engine", "uring"]).err().expect("it must not start");
        assert!(said.starts_with("exit status: 6: "), "{errno}: {said}");
        assert!(said.contains("error: ") && said.contains("hint: "), "{errno}: {said}");
        for cause in causes {
            assert!(said.contains(cause), "{errno}: {cause} is not named: {said}");
        }
    }
}

#[test]
fn a_message_costs_one_read_and_one_send() {
    const ROUND_TRIPS: usize = 200;
    if !tool_or_skip("a_message_costs_one_read_and_one_send", "strace") {
        return;
    }
    for engine in ENGINES {
        let place = tempfile::tempdir().expect("a temporary directory");
        let trace = place.path().join("trace");
        let path = trace.to_str().expect("a plain path");
        let strace = ["strace", "-D", "-f", "-q", "-o", path, "-e", "trace=recvfrom,sendto"];
        let mut gateway = Gateway::with_command(program_under(&strace), &["--engine", engine]);
        let mut game = gateway.play(echo_backend());
        for _ in 0..ROUND_TRIPS {
            assert!(echoes(&mut game));
        }
        drop(game);
        gateway.signal("TERM");
        assert_eq!(gateway.wait().code(), Some(0));
        let whole = || std::fs::read_to_string(&trace).unwrap_or_default();
        wait_until(|| whole().contains("exited with 0"), || format!("the trace has no end: {}", whole()));
        let calls = |name: &str| whole().lines().filter(|line| line.contains(name)).count();
        // Line, answer, ends and the processes' own messages are few beside them.
        for name in ["recvfrom(", "sendto("] {
            let made = calls(name);
            assert!((2 * ROUND_TRIPS..2 * ROUND_TRIPS + 40).contains(&made), "{engine}: {made} calls of {name}");
        }
    }
}

/// The program in a world where io_uring_setup fails with `errno`.
fn without_io_uring(test: &str, errno: &str) -> Option<Command> {
    if !tool_or_skip(test, "strace") {
        return None;
    }
    let inject = format!("inject=io_uring_setup:error={errno}");
    // -D: the program itself is our child, and signals and exit codes are its own.
    let strace = ["strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=io_uring_setup", "-e", &inject];
    Some(program_under(&strace))
}
