//! Tokens held against the real `openssl enc`, in both directions.

mod common;

use common::*;
use gateway::proto::token::{Keyring, Secret};
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

const KNOWN_TOKEN: &str = "U2FsdGVkX19KIJ9OQJKT/yHGMrS+5SsBAAjetomptQ0=";
const KNOWN_TARGET: &str = "127.0.0.1:62863";
const TARGETS: [&str; 4] = ["127.0.0.1:0", "[::1]:65535", "game-7.example.com:7000", "sixteen-bytes:80"];

#[test]
fn the_known_answer_opens() {
    assert_eq!(open(KNOWN_TOKEN).as_deref(), Some(KNOWN_TARGET));
    let file = SecretFile::new();
    assert_eq!(said(&["decrypt", KNOWN_TOKEN, "--secret-file", file.path()]), format!("{KNOWN_TARGET}\n"));
}

#[test]
fn decrypt_reads_tokens_from_standard_input() {
    let file = SecretFile::new();
    let mut decrypt = program();
    decrypt.args(["decrypt", "--secret-file", file.path()]);
    let input: String = TARGETS.iter().map(|target| token(target) + "\n").collect();
    let expected: String = TARGETS.iter().map(|target| format!("{target}\n")).collect();
    assert_eq!(piped(decrypt, input.as_bytes()), expected);
}

#[test]
fn a_token_by_openssl_opens_whatever_its_length_digest_and_wrapping() {
    if !openssl_or_skip("a_token_by_openssl_opens_whatever_its_length_digest_and_wrapping") {
        return;
    }
    let file = SecretFile::new();
    thread::scope(|scope| {
        for digest in ["md5", "sha256"] {
            for wrapping in [&["-a"][..], &["-a", "-A"]] {
                let file = &file;
                scope.spawn(move || {
                    for length in 1..=255 {
                        let target = target_of(length);
                        let flags = [&["-salt", "-md", digest], wrapping].concat();
                        let token = file.openssl(&flags, target.as_bytes()).replace('\n', "");
                        // Shorter than `a:1` there is no target.
                        let expected = (length >= 3).then_some(target);
                        assert_eq!(open(&token), expected, "{flags:?} {token}");
                    }
                });
            }
        }
    });
}

#[test]
fn openssl_reads_what_encrypt_writes() {
    if !openssl_or_skip("openssl_reads_what_encrypt_writes") {
        return;
    }
    let file = SecretFile::new();
    for target in TARGETS.into_iter().chain([&*target_of(255)]) {
        for (flags, digest) in [(&[][..], "sha256"), (&["--digest", "sha256"], "sha256"), (&["--digest", "md5"], "md5")]
        {
            let token = said(&[&["encrypt", target, "--secret-file", file.path()], flags].concat());
            assert_eq!(token.lines().count(), 1, "a token is one line");
            assert_eq!(file.openssl(&["-d", "-a", "-A", "-md", digest], token.trim().as_bytes()), target, "{flags:?}");
        }
    }
}

#[test]
fn encrypt_uses_the_first_secret_and_decrypt_all() {
    let (first, second) = (SecretFile::new(), SecretFile::holding("the secret before"));
    let both = ["--secret-file", second.path(), "--secret-file", first.path()];
    let token = said(&[&["encrypt", KNOWN_TARGET], &both[..]].concat());
    for keys in [&both[..], &["--secret-file", second.path()]] {
        assert_eq!(said(&[&["decrypt", token.trim()], keys].concat()), format!("{KNOWN_TARGET}\n"));
    }
    assert_eq!(open(token.trim()), None, "the second secret did not seal it");
    assert_eq!(said(&[&["decrypt", KNOWN_TOKEN], &both[..]].concat()), format!("{KNOWN_TARGET}\n"));
}

#[test]
fn the_script_writes_tokens_that_open() {
    if !openssl_or_skip("the_script_writes_tokens_that_open") {
        return;
    }
    let file = SecretFile::new();
    for target in TARGETS.into_iter().chain([&*target_of(255)]) {
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/encrypt-target"));
        script.args([file.path(), target]);
        let token = piped(script, b"");
        assert_eq!(open(token.strip_suffix('\n').expect("a line")).as_deref(), Some(target), "{token}");
    }
}

on_both_engines! {
    fn a_line_by_openssl_leads_to_its_backend(engine) {
        if !openssl_or_skip("a_line_by_openssl_leads_to_its_backend") {
            return;
        }
        let file = SecretFile::new();
        let gateway = Gateway::start(engine);
        let backend = echo_backend().to_string();
        // No backend has a name of 200 letters; 502 says that all lines of its token were read, and that it opened.
        let nowhere = target_of(200).replace(":1", ".invalid:1");
        for (target, answer, lines) in [(backend, "200", 1), (nowhere, "502", 5)] {
            for digest in ["md5", "sha256"] {
                let text = file.openssl(&["-salt", "-a", "-md", digest], target.as_bytes());
                assert_eq!(text.lines().count(), lines);
                let mut client = gateway.connect();
                client.write_all(text.as_bytes()).expect("the line is sent");
                assert_eq!(read_answer(&mut client), answer, "{digest}\n{text}");
            }
        }
    }
}

/// A valid target of this many bytes, for lengths of 3 to 255; shorter, the beginning of one.
fn target_of(length: usize) -> String {
    let name = length.saturating_sub(2).max(1);
    let letter = |n| if n % 50 == 49 && n + 1 < name { '.' } else { 'a' };
    let target = (0..name).map(letter).chain(":1".chars());
    target.take(length).collect()
}

fn open(token: &str) -> Option<String> {
    let secret = Secret::new(SECRET.as_bytes().to_vec()).expect("not empty");
    let keys = Keyring::new(vec![secret]).expect("one secret");
    keys.open(token.as_bytes()).ok().map(|target| target.to_string())
}

struct SecretFile(tempfile::NamedTempFile);

impl SecretFile {
    fn new() -> Self {
        Self::holding(SECRET)
    }

    fn holding(secret: &str) -> Self {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        writeln!(file, "{secret}").expect("the secret is written");
        Self(file)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().expect("a plain path")
    }

    fn openssl(&self, flags: &[&str], input: &[u8]) -> String {
        let mut openssl = Command::new("openssl");
        openssl.args(["enc", "-aes-256-cbc", "-pass", &format!("file:{}", self.path())]).args(flags);
        piped(openssl, input)
    }
}

/// What the gateway's program prints, when it succeeds.
fn said(args: &[&str]) -> String {
    let mut command = program();
    command.args(args);
    piped(command, b"")
}

/// What a command prints, given this input, when it succeeds.
fn piped(mut command: Command, input: &[u8]) -> String {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("it is piped").write_all(input).expect("the input is read");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn openssl_or_skip(test: &str) -> bool {
    tool_or_skip(test, "openssl")
}
