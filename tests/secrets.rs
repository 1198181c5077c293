//! What must not be seen: the secret, wherever it came from, and plain targets in an ordinary log.

mod common;

use common::*;
use std::fs;
use std::io::Write;
use std::process::Command;

const OTHER: &str = "hunter2-0123456789";

#[test]
fn a_secret_from_a_file_stays_there() {
    if root_or_skip("a_secret_from_a_file_stays_there") {
        assert_unseen(Gateway::with_command(program(), &TRACE), SECRET);
    }
}

#[test]
fn a_secret_from_the_environment_stays_there() {
    if root_or_skip("a_secret_from_the_environment_stays_there") {
        let mut command = without_secret_file();
        command.env("GATEWAY_SECRET", OTHER);
        assert_unseen(Gateway::with_command(command, &TRACE), OTHER);
    }
}

#[test]
fn a_secret_from_the_command_line_is_wiped_there() {
    if root_or_skip("a_secret_from_the_command_line_is_wiped_there") {
        for flags in [&["--secret", OTHER][..], &[&format!("--secret={OTHER}")]] {
            let gateway = Gateway::with_command(without_secret_file(), &[&TRACE[..], flags].concat());
            assert_unseen(gateway, OTHER);
        }
    }
}

#[test]
fn wiping_a_secret_spares_every_other_variable() {
    let directory = tempfile::tempdir().expect("a directory");
    let systemd = Notified::bind(directory.path().join("notify"));
    let mut command = without_secret_file();
    command.env("GATEWAY_SECRET", "notify").env("NOTIFY_SOCKET", &systemd.path);
    let gateway = Gateway::with_command(command, &[]);
    assert_eq!(systemd.next(), "READY=1");
    let mut client = gateway.connect();
    writeln!(client, "{}", token_with("notify", &echo_backend().to_string())).expect("the line is sent");
    assert_eq!(read_answer(&mut client), "200");
}

#[test]
fn a_secret_on_the_command_line_and_nothing_else_is_warned_of() {
    let warned = |gateway: &Gateway| {
        let log = gateway.log().replace("--secret-file", "");
        log.lines().any(|line| line.contains("WARN") && line.contains("--secret"))
    };
    let gateway = Gateway::with_command(without_secret_file(), &["--secret", OTHER]);
    wait_until(|| warned(&gateway), || "a warning of --secret".into());
    let mut gateway = Gateway::with_command(program(), &[]);
    stop(&mut gateway);
    assert!(!warned(&gateway), "{}", gateway.log());
}

#[test]
fn no_process_may_write_a_core_file_and_a_crashed_worker_writes_none() {
    const NAME: &str = "no_process_may_write_a_core_file_and_a_crashed_worker_writes_none";
    if !Command::new("sh").args(["-c", "ulimit -c unlimited"]).status().is_ok_and(|status| status.success()) {
        return skip(NAME, "core files are forbidden here anyway");
    }
    let gateway = Gateway::with_command(through_shell("ulimit -c unlimited"), &[]);
    for pid in processes(&gateway) {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits can be read");
        let limit =
            limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("the limit is there");
        assert_eq!(limit.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"], "soft and hard limit of {pid}");
    }
    let crashed = gateway.worker();
    signal(crashed, "ABRT");
    wait_until(|| gateway.workers().iter().any(|pid| *pid != crashed), || "a new worker".into());
    for entry in fs::read_dir(gateway.directory.path()).expect("the directory can be read") {
        let name = entry.expect("an entry").file_name();
        assert!(!name.to_string_lossy().starts_with("core"), "{name:?}");
    }
}

#[test]
fn a_target_is_not_in_the_log_at_info() {
    let (_bound, closed) = closed_port();
    let (backend, closed) = (echo_backend().to_string(), closed.to_string());
    for format in [&[][..], &["--log-format", "json"]] {
        let flags = [&["--log-level", "info", "--deny", "127.0.0.2/32"], format].concat();
        let mut gateway = Gateway::with_command(program(), &flags);
        let asked =
            [(&*backend, "200"), (&closed, "502"), ("no-such-host.invalid:1", "502"), ("127.0.0.2:62863", "401")];
        for (target, answer) in asked {
            assert_eq!(gateway.ask(target).1, answer, "{target}");
        }
        stop(&mut gateway);
        for (target, _) in asked {
            assert!(!gateway.log().contains(target), "{target} is in the log");
        }
    }
}

const TRACE: [&str; 2] = ["--log-level", "trace"];

fn processes(gateway: &Gateway) -> Vec<u32> {
    [vec![gateway.pid()], gateway.workers()].concat()
}

/// Stops the daemon, so that nothing is left to be logged. An empty log would prove nothing.
fn stop(gateway: &mut Gateway) {
    gateway.signal("TERM");
    gateway.wait();
    wait_until(|| !gateway.log().is_empty(), || "a log".into());
}

/// Lets the daemon open a token, refuse another and end; then looks for its secret in all that others may read.
fn assert_unseen(mut gateway: Gateway, secret: &str) {
    let backend = echo_backend().to_string();
    for (line, answer) in [(token_with(secret, &backend), "200"), (token_with("wrong", &backend), "401")] {
        let mut client = gateway.connect();
        client.write_all(format!("{line}\n").as_bytes()).expect("the line is sent");
        assert_eq!(read_answer(&mut client), answer);
    }
    let mut seen = vec![("pid file".into(), fs::read(gateway.pid_file()).expect("the pid file can be read"))];
    for pid in processes(&gateway) {
        let environment = (pid != gateway.pid()).then(|| format!("/proc/{pid}/environ"));
        for path in [Some(format!("/proc/{pid}/cmdline")), environment].into_iter().flatten() {
            let bytes = fs::read(&path).expect("root may read it");
            seen.push((path, bytes));
        }
    }
    stop(&mut gateway);
    seen.push(("log".into(), gateway.log().into_bytes()));
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{:?}", secret.as_bytes());
    for (place, bytes) in seen {
        let text = String::from_utf8_lossy(&bytes);
        for form in [secret, &hex, list.trim_matches(['[', ']'])] {
            assert!(!text.contains(form), "{place} shows the secret: {text}");
        }
    }
}
