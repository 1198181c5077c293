//! The command line as a person meets it: verbs, settings from three places, and mistakes that say how to mend them.
mod common;

use common::*;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// Nobody's address: a daemon that overlooks a mistake ends here, with another exit code, instead of staying.
const UNBINDABLE: [&str; 3] = ["run", "--addr", "192.0.2.1:80"];

#[test]
fn every_mistake_has_its_exit_code_one_error_line_and_a_hint() {
    let directory = directory();
    let foreign = token_with("another secret", "127.0.0.1:1");
    let mistakes: [(&[&str], i32, &str); 18] = [
        (&["--secret-file", "empty"], 3, "empty"),
        (&["--secret-file", "missing"], 3, "missing"),
        (&["--secret-file", "."], 3, "secret"),
        (&["--config", "misspelt.toml"], 3, "retry"),
        (&["--config", "unquoted.toml"], 3, "unquoted.toml"),
        (&["--config", "missing.toml"], 3, "missing.toml"),
        (&["--adr", "127.0.0.1:0"], 2, "--addr"),
        (&["--worker", "2"], 2, "--workers"),
        (&["--workers", "none"], 2, "--workers"),
        (&["--workers", "0"], 2, "--workers"),
        (&["--timeout", "soon"], 2, "--timeout"),
        (&["--engine", "steam"], 2, "--engine"),
        (&["--addr", "127.0.0.1"], 2, "--addr"),
        (&["--addr", "nowhere:http"], 2, "--addr"),
        (&["encrpyt", "127.0.0.1:80"], 2, "encrypt"),
        (&["encrypt", "127.0.0.1"], 2, "127.0.0.1"),
        (&["encrypt", "127.0.0.1:65536"], 2, "65536"),
        (&["decrypt", &foreign], 1, "secret"),
    ];
    for (args, code, named) in mistakes {
        let is_flag = args[0].starts_with("--");
        let mut command = in_directory(&directory);
        command.args(if is_flag { &UNBINDABLE[..] } else { &[] }).args(args);
        assert_mistake(&command.env("GATEWAY_SECRET", SECRET).output().expect("the program starts"), code, named);
    }
}

#[test]
fn a_flag_of_another_verb_is_told_from_one_that_nobody_knows() {
    for (args, named) in [
        (["provide", "--peer", "127.0.0.1:1"], "belongs to `visit`"),
        (["visit", "--workers", "2"], "belongs to `run`, `check`"),
        (["run", "--listen-udp", "127.0.0.1:1"], "belongs to `provide`"),
        (["provide", "--colour", "red"], "gateway VERB --help"),
    ] {
        assert_mistake(&program().args(args).output().expect("the program starts"), 2, named);
    }
}

#[test]
fn a_secret_file_with_windows_line_ends_was_taken_without_a_word() {
    let directory = directory();
    for (text, warned) in [("sixteen bytes and more\r\n", true), ("sixteen bytes and more\n", false)] {
        std::fs::write(directory.path().join("secret"), text).expect("it is written");
        let mut command = in_directory(&directory);
        let output = command.args(["check", "--secret-file", "secret"]).output().expect("the program starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.contains("carriage return")), (Some(0), warned), "{said}");
    }
}

#[test]
fn a_daemon_without_a_secret_does_not_start() {
    let output = in_directory(&directory()).args(UNBINDABLE).output().expect("the program starts");
    assert_mistake(&output, 3, "secret");
}

#[test]
fn flags_beat_the_environment_and_the_environment_beats_the_file() {
    let directory = directory();
    let file: &[&str] = &["--config", "good.toml"];
    for (args, variable, retry) in [
        (&[][..], None, "retry = 1"),
        (file, None, "retry = 2"),
        (file, Some("3"), "retry = 3"),
        (&["--config", "good.toml", "--retry", "4"], Some("3"), "retry = 4"),
    ] {
        let mut command = in_directory(&directory);
        command.arg("check").args(args).env("GATEWAY_SECRET", SECRET);
        command.envs(variable.map(|value| ("GATEWAY_RETRY", value)));
        let said = succeeds(&mut command);
        assert!(said.lines().any(|line| line == retry), "not {retry}: {said}");
    }
}

#[test]
fn a_secret_of_the_environment_beats_those_of_the_file_and_an_empty_one_is_none() {
    let directory = directory();
    for name in ["new", "old"] {
        std::fs::write(directory.path().join(name), format!("the {name} secret of the file\n")).expect("it is written");
    }
    std::fs::write(directory.path().join("gateway.toml"), "secret-file = ['new', 'old']\n").expect("it is written");
    for (variable, secrets) in [(None, 2), (Some(SECRET), 1), (Some(""), 2)] {
        let mut command = in_directory(&directory);
        command.args(["check", "--config", "gateway.toml"]).envs(variable.map(|value| ("GATEWAY_SECRET", value)));
        let said = succeeds(&mut command);
        let row = format!("secrets = {secrets}");
        assert!(said.lines().any(|line| line == row), "{variable:?} is not {row}: {said}");
    }
    let mut command = in_directory(&directory);
    command.args(["check", "--config", "gateway.toml", "--secret", SECRET]);
    assert!(succeeds(&mut command).lines().any(|row| row == "secrets = 1"), "what was typed was forgotten");
    let mut command = in_directory(&directory);
    let output = command.arg("check").env("GATEWAY_SECRET", "").output().expect("the program starts");
    assert_mistake(&output, 3, "no secret is given");
}

#[test]
fn a_secret_that_is_a_number_is_refused_unseen() {
    let directory = directory();
    std::fs::write(directory.path().join("gateway.toml"), "secret = 987654321012345\n").expect("it is written");
    let mut command = in_directory(&directory);
    let output = command.args(["check", "--config", "gateway.toml"]).output().expect("the program starts");
    assert_mistake(&output, 3, "secret");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("9876543") && !said.contains("012345"), "the secret is told: {said}");
}

#[test]
fn keys_may_be_written_with_hyphens_or_underscores() {
    let directory = directory();
    for key in ["max-connections", "max_connections"] {
        std::fs::write(directory.path().join("gateway.toml"), format!("{key} = 4321\n")).expect("it is written");
        let said = succeeds(
            in_directory(&directory).args(["check", "--config", "gateway.toml"]).env("GATEWAY_SECRET", SECRET),
        );
        assert!(said.lines().any(|line| line.ends_with(" = 4321")), "{key}: {said}");
    }
}

#[test]
fn check_opens_nothing_and_keeps_the_secret() {
    let directory = directory();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let said = succeeds(in_directory(&directory).args(["check", "--addr", &address]).env("GATEWAY_SECRET", SECRET));
    assert!(said.contains(&address) && !said.contains(SECRET), "{said}");
    assert!(!exists(&directory.path().join("gateway.pid")));
}

#[test]
fn check_shows_a_rendezvous_and_what_is_exposed() {
    let flags = ["check", "--rendezvous", "127.0.0.1:4000", "--expose", "udp://127.0.0.1:7777-7778=game"];
    let said = succeeds(in_directory(&directory()).args(flags).env("GATEWAY_SECRET", "a secret that is long enough"));
    for line in ["addr = none", "rendezvous = 127.0.0.1:4000", "relay-rate = no limit"] {
        assert!(said.lines().any(|shown| shown == line), "not {line}: {said}");
    }
    assert!(said.contains("udp://127.0.0.1:7777=game") && said.contains("udp://127.0.0.1:7778=game:2"), "{said}");
}

#[test]
fn each_new_secret_is_long_and_another() {
    let [one, other] = [(); 2].map(|()| succeeds(program().arg("secret")));
    assert_eq!(one.lines().count(), 1);
    assert!(one.trim().len() >= 32, "{one}");
    assert_ne!(one, other);
}

#[test]
fn decrypt_undoes_encrypt_and_knows_the_tokens_of_old() {
    let directory = directory();
    let run =
        |verb: &str, text: &str| succeeds(in_directory(&directory).args([verb, text]).env("GATEWAY_SECRET", SECRET));
    for target in ["127.0.0.1:62863", "[::1]:80", "game.example.com:7777"] {
        assert_eq!(run("decrypt", run("encrypt", target).trim()).trim(), target);
    }
    assert_eq!(run("decrypt", "U2FsdGVkX19KIJ9OQJKT/yHGMrS+5SsBAAjetomptQ0=").trim(), "127.0.0.1:62863");
}

#[test]
fn help_lists_the_verbs_and_version_the_version() {
    let help = succeeds(program().arg("--help"));
    for verb in ["run", "provide", "visit", "netcheck", "encrypt", "decrypt", "secret", "check", "demo"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(verb)), "{verb} is not listed: {help}");
    }
    assert!(succeeds(program().arg("--version")).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_bare_command_line_is_a_daemon_and_hides_its_secret_from_ps() {
    let directory = directory();
    let mut child = in_directory(&directory)
        .args(["--addr", "127.0.0.1:0", "--secret", SECRET])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("stdout is piped")).read_line(&mut first).expect("it says something");
    let arguments = std::fs::read(format!("/proc/{}/cmdline", child.id())).expect("it lives");
    signal(child.id(), "TERM");
    let output = child.wait_with_output().expect("it ends");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(first.starts_with("listening on 127.0.0.1:"), "{first}{log}");
    assert!(output.status.success(), "{log}");
    assert!(!String::from_utf8_lossy(&arguments).contains(SECRET));
    assert!(log.contains("--secret") && !log.contains(SECRET), "no warning, or a leak: {log}");
}

/// The files that the tests name.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in [
        ("empty", String::new()),
        ("good.toml", "retry = 2\n".into()),
        ("misspelt.toml", format!("retri = 2\nsecret = \"{SECRET}\"\n")),
        ("unquoted.toml", format!("secret = {SECRET}\n")),
    ] {
        std::fs::write(directory.path().join(name), text).expect("it is written");
    }
    directory
}

fn in_directory(directory: &TempDir) -> Command {
    let mut command = program();
    command.current_dir(directory.path()).stdin(Stdio::null());
    command
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("it is text")
}

fn assert_mistake(output: &Output, code: i32, named: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    let lines = |start| said.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(lines("error: ") == 1 && lines("hint: ") >= 1, "{said}");
    assert!(said.contains(named), "{named} is not named: {said}");
    assert!(!said.contains(SECRET), "the secret is told: {said}");
    assert!(output.stdout.is_empty(), "a mistake has no result");
}
