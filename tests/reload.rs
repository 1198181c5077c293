//! HUP: a new configuration without a lost player.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use common::*;

fn answer(gateway: &Gateway, secret: &str, target: &str) -> String {
    let mut client = gateway.connect();
    writeln!(client, "{}", token_with(secret, target)).expect("the line is sent");
    read_answer(&mut client)
}

on_both_engines! {
    fn a_new_secret_is_in_force_after_hup_and_running_games_go_on(engine) {
        let gateway = Gateway::with(&["--engine", engine, "--workers", "2"]);
        let backend = echo_backend();
        let (workers, mut game) = (gateway.workers(), gateway.play(backend));
        let target = backend.to_string();
        assert_eq!(answer(&gateway, "the new secret", &target), "401");

        fs::write(gateway.directory.path().join("secret"), "the new secret\n").expect("it is written");
        gateway.signal("HUP");
        // Every worker has it: several connections in a row, spread over both, are let in.
        wait_until(
            || (0..16).all(|_| answer(&gateway, "the new secret", &target) == "200"),
            || format!("the new secret is not in force: {}", gateway.log()),
        );
        assert_eq!(answer(&gateway, SECRET, &target), "401");
        game.write_all(b"hello").expect("the game goes on");
        let mut heard = [0; 5];
        game.read_exact(&mut heard).expect("the game goes on");
        assert_eq!(gateway.workers(), workers, "no worker was replaced");
    }
}

#[test]
fn a_configuration_that_is_wrong_changes_nothing() {
    let mut gateway = Gateway::start("auto");
    let backend = echo_backend();
    fs::write(gateway.directory.path().join("secret"), "\n").expect("it is written");
    gateway.signal("HUP");
    wait_until(|| gateway.log().contains("new configuration refused"), || gateway.log());
    assert_eq!(answer(&gateway, SECRET, &backend.to_string()), "200");
    assert!(gateway.running());
}

#[test]
fn a_secret_of_the_environment_stays_in_force_after_hup() {
    const OTHER: &str = "hunter2-0123456789";
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("gateway.toml");
    fs::write(&file, "").expect("it is written");
    let mut command = without_secret_file();
    command.env("GATEWAY_SECRET", OTHER);
    let gateway = Gateway::with_command(command, &["--config", plain(&file)]);
    let (backend, forbidden) = (echo_backend().to_string(), echo_backend());
    assert_eq!(answer(&gateway, OTHER, &forbidden.to_string()), "200");

    fs::write(&file, format!("deny = '127.0.0.1/32:{}'", forbidden.port())).expect("it is written");
    gateway.signal("HUP");
    // A secret that is not in force any more would be refused as well: the other backend tells the two apart.
    wait_until(|| answer(&gateway, OTHER, &forbidden.to_string()) == "401", || gateway.log());
    assert_eq!(answer(&gateway, OTHER, &backend), "200");
    assert_eq!(answer(&gateway, &"*".repeat(OTHER.len()), &backend), "401");
}

#[test]
fn a_reload_names_the_keys_that_need_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let (file, secret) = (directory.path().join("gateway.toml"), directory.path().join("key"));
    fs::write(&secret, format!("{SECRET}\n")).expect("it is written");
    let write = |rest: &str| {
        let text = format!("secret-file = '{}'\nlog-level = 'debug'\n{rest}\n", plain(&secret));
        fs::write(&file, text).expect("it is written");
    };
    let (address, other) = ("addr = '127.0.0.1:0'", "addr = '127.0.0.1:1'");
    write(&format!("{address}\nworkers = 1"));
    // Flags would beat the file: all those of the harness up to `--log-level debug` are left out.
    let command = through_shell("shift 7; set -- run \"$@\"");
    let gateway = Gateway::with_command(command, &["--config", plain(&file)]);
    for (rest, named) in [
        (format!("{address}\nworkers = 1\nretry = 2"), &[][..]),
        (format!("{other}\nworkers = 1"), &["addr"]),
        (format!("{address}\nworkers = 2"), &["workers"]),
        (format!("{other}\nworkers = 2"), &["addr", "workers"]),
    ] {
        write(&rest);
        let before = gateway.log().len();
        gateway.signal("HUP");
        let told = || gateway.log()[before..].lines().find(|line| line.contains("restart")).map(str::to_owned);
        wait_until(|| gateway.log()[before..].contains("new configuration in force"), || gateway.log());
        if named.is_empty() {
            watch(Duration::from_millis(300));
            assert_eq!(told(), None, "{rest}");
            continue;
        }
        wait_until(|| told().is_some(), || format!("{rest}: {}", gateway.log()));
        let line = told().expect("it is there");
        for key in ["addr", "workers"] {
            assert_eq!(line.contains(key), named.contains(&key), "{key} of {named:?}: {line}");
        }
    }
}

on_both_engines! {
    fn reloads_wait_for_a_worker_that_was_stopped(engine) {
        const RELOADS: usize = 8;
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("gateway.toml");
        let rules = |last: &str| {
            let list = (0..999).map(|n| format!("'10.{}.{}.0/24:{}-65535', ", n / 256, n % 256, 1024 + n));
            fs::write(&file, format!("deny = [{}'{last}']", list.collect::<String>())).expect("it is written");
        };
        rules("10.200.0.0/16");
        let gateway = Gateway::with(&["--engine", engine, "--config", plain(&file)]);
        let worker = gateway.worker();
        let (kept, backends) = (echo_backend(), [(); RELOADS].map(|()| echo_backend()));
        let mut game = gateway.play(kept);

        signal(worker, "STOP");
        let in_force = || gateway.log().matches("new configuration in force").count();
        for (done, backend) in backends.iter().enumerate() {
            rules(&format!("127.0.0.1/32:{}", backend.port()));
            gateway.signal("HUP");
            wait_until(|| in_force() > done, || gateway.log());
        }
        watch(Duration::from_secs(2));
        signal(worker, "CONT");

        assert!(echoes(&mut game), "the game goes on");
        let [before @ .., newest] = &backends;
        wait_until(|| answer(&gateway, SECRET, &newest.to_string()) == "401", || gateway.log());
        for backend in before.iter().chain([&kept]) {
            assert_eq!(answer(&gateway, SECRET, &backend.to_string()), "200", "the newest configuration allows it");
        }
        assert!(echoes(&mut game), "the game goes on");
        assert_eq!(gateway.workers(), [worker]);
    }
}

on_both_engines! {
    fn a_new_policy_is_in_force_after_hup(engine) {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("gateway.toml");
        fs::write(&file, "").expect("it is written");
        let gateway = Gateway::with(&["--engine", engine, "--config", plain(&file)]);
        let backend = echo_backend().to_string();
        assert_eq!(answer(&gateway, SECRET, &backend), "200");
        fs::write(&file, "deny = '127.0.0.0/8'").expect("it is written");
        gateway.signal("HUP");
        wait_until(|| answer(&gateway, SECRET, &backend) == "401", || gateway.log());
    }
}

fn plain(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
