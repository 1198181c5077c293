//! HUP: a new configuration without a lost player.

mod common;

use std::io::{Read, Write};

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

        std::fs::write(gateway.directory.path().join("secret"), "the new secret\n").expect("it is written");
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
    std::fs::write(gateway.directory.path().join("secret"), "\n").expect("it is written");
    gateway.signal("HUP");
    wait_until(|| gateway.log().contains("new configuration refused"), || gateway.log());
    assert_eq!(answer(&gateway, SECRET, &backend.to_string()), "200");
    assert!(gateway.running());
}

on_both_engines! {
    fn a_new_policy_is_in_force_after_hup(engine) {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("gateway.toml");
        std::fs::write(&file, "").expect("it is written");
        let gateway = Gateway::with(&["--engine", engine, "--config", file.to_str().expect("a readable path")]);
        let backend = echo_backend().to_string();
        assert_eq!(answer(&gateway, SECRET, &backend), "200");
        std::fs::write(&file, "deny = '127.0.0.0/8'").expect("it is written");
        gateway.signal("HUP");
        wait_until(|| answer(&gateway, SECRET, &backend) == "401", || gateway.log());
    }
}
