//! `gateway demo`: what it shows is true, what it tells one to type works, and it leaves nothing behind.
mod common;

use common::*;
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

#[test]
fn the_demo_shows_a_token_that_opens_its_gateway() {
    let demo = Demo::start();
    let said = demo.said();
    let token = said.split_whitespace().find(|word| word.starts_with("U2FsdGVkX1")).expect("a token is shown");
    assert!(demo.opens(token), "the token shown leads nowhere: {said}");
}

#[test]
fn the_command_the_demo_shows_makes_a_token_that_opens_its_gateway() {
    if !tool_or_skip("the_command_the_demo_shows_makes_a_token_that_opens_its_gateway", "openssl") {
        return;
    }
    let demo = Demo::start();
    let output = Command::new("sh").args(["-c", &demo.command()]).output().expect("sh runs");
    let token: String = String::from_utf8_lossy(&output.stdout).split_whitespace().collect();
    assert!(token.starts_with("U2FsdGVkX1"), "{output:?}");
    assert!(demo.opens(&token), "the token made leads nowhere: {token}");
}

#[test]
fn an_interrupt_ends_the_demo_and_nothing_of_it_stays() {
    let mut demo = Demo::start();
    let mut family = children_of(demo.child.id());
    assert!(!family.is_empty(), "the gateway runs in the demo's process tree");
    family.push(demo.child.id());
    signal(demo.child.id(), "INT");
    wait_until(|| demo.child.try_wait().is_ok_and(|status| status.is_some()), || "the demo does not end".into());
    assert_eq!(demo.child.wait().expect("it has ended").code(), Some(0));
    let lives = |pid: &u32| exists(format!("/proc/{pid}").as_ref());
    wait_until(|| !family.iter().any(lives), || format!("some of {family:?} stay"));
    let files: Vec<_> = std::fs::read_dir(demo.directory.path()).expect("it is there").flatten().collect();
    assert_eq!(files.len(), 1, "more than what it said is left: {files:?}");
}

/// A demo that has shown its command, a `200` and after that an echo. Dropping it interrupts it.
struct Demo {
    child: Child,
    directory: tempfile::TempDir,
}

impl Demo {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let output = std::fs::File::create(directory.path().join("said")).expect("a file for what it says");
        let child = program()
            .arg("demo")
            .current_dir(directory.path())
            .env("TMPDIR", directory.path())
            .stdin(Stdio::null())
            .stdout(output)
            .spawn()
            .expect("the demo starts");
        let demo = Self { child, directory };
        let complete = |said: &str| {
            let mut words = said.split_whitespace();
            said.contains("\n  printf ") && words.any(|word| word == "200") && words.any(|word| word == "echo")
        };
        wait_until(|| complete(&demo.said()), || format!("the demo said only: {}", demo.said()));
        demo
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("said")).expect("the file can be read")
    }

    /// The command it shows for people to try.
    fn command(&self) -> String {
        let said = self.said();
        said.lines().find(|line| line.starts_with("  printf ")).expect("a command is shown").trim().into()
    }

    /// True when one of the addresses shown is a gateway that answers 200 to this token.
    fn opens(&self, token: &str) -> bool {
        let said = self.said();
        let words = said.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'));
        let addresses: BTreeSet<SocketAddr> = words.filter_map(|word| word.parse().ok()).collect();
        addresses.into_iter().filter(|address| address.ip().is_loopback()).any(|address| {
            let Ok(mut client) = TcpStream::connect(address) else { return false };
            client.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
            client.write_all(format!("{token}\n").as_bytes()).is_ok() && read_answer(&mut client) == "200"
        })
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            signal(self.child.id(), "INT");
            let _ = self.child.wait();
        }
    }
}
