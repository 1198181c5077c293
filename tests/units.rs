//! The files in systemd/: understood by systemd, hardened, without a secret, and in agreement with the program.

mod common;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Duration;

use common::{SECRET, program, skip, tool_or_skip};

const SERVICE: &str = include_str!("../systemd/gateway.service");
const SOCKET: &str = include_str!("../systemd/gateway.socket");
const CONFIG: &str = include_str!("../systemd/gateway.toml");

#[test]
fn the_service_is_rated_1_5_or_better() {
    if !systemd_analyze_or_skip("the_service_is_rated_1_5_or_better") {
        return;
    }
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/gateway.service");
    // The threshold is in tenths.
    let output = systemd_analyze(&["security", "--offline=yes", "--threshold=15", "--no-pager", unit]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    if !systemd_analyze_or_skip("systemd_finds_no_fault_in_the_units") {
        return;
    }
    // A root of its own: what is installed on this machine does not matter, only that the named programs exist.
    let root = tempfile::tempdir().expect("a temporary directory");
    let write = |path: &str, text: &str, mode: u32| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("a directory is made");
        std::fs::write(&path, text).expect("a file is written");
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("its mode is set");
    };
    write("usr/bin/gateway", "", 0o755);
    write("bin/kill", "", 0o755);
    write("etc/systemd/system/gateway.service", SERVICE, 0o644);
    write("etc/systemd/system/gateway.socket", SOCKET, 0o644);
    let root_flag = format!("--root={}", root.path().display());
    let units = ["gateway.service", "gateway.socket"];
    let output = systemd_analyze(&["verify", "--man=no", "--recursive-errors=no", &root_flag, units[0], units[1]]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
}

#[test]
fn the_secret_is_a_credential_and_in_no_environment_or_command_line() {
    assert!(settings(SERVICE).any(|line| line.starts_with("LoadCredential=secret:/")));
    for line in settings(SERVICE).filter(|line| line.starts_with("Environment") || line.starts_with("Exec")) {
        assert!(!line.to_lowercase().contains("secret"), "{line}");
    }
    assert!(settings(CONFIG).all(|line| !line.starts_with("secret")));
}

#[test]
fn the_service_waits_longer_for_its_end_than_a_drain_lasts() {
    let stop = setting(SERVICE, "TimeoutStopSec=").parse().map(Duration::from_secs).expect("plain seconds");
    let drain = humantime::parse_duration(setting(CONFIG, "drain = ").trim_matches('"')).expect("a duration");
    assert!(stop > drain, "{stop:?} is not longer than {drain:?}");
}

#[test]
fn the_example_configuration_passes_the_check() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/gateway.toml");
    let output =
        program().args(["check", "--config", path]).env("GATEWAY_SECRET", SECRET).output().expect("the program starts");
    assert!(output.status.success(), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("0.0.0.0:9000"), "{}", said(&output));
}

/// Lines that set something.
fn settings(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';', '[']))
}

/// What stands behind `key` in the line that begins with it.
fn setting<'a>(text: &'a str, key: &str) -> &'a str {
    settings(text).find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no line sets {key}"))
}

/// 250 is the first version that rates a unit which is not installed.
fn systemd_analyze_or_skip(test: &str) -> bool {
    if !tool_or_skip(test, "systemd-analyze") {
        return false;
    }
    let output = systemd_analyze(&["--version"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let version: u32 = text.split_whitespace().nth(1).and_then(|version| version.parse().ok()).unwrap_or(0);
    if version < 250 {
        skip(test, "needs systemd-analyze 250");
    }
    version >= 250
}

fn systemd_analyze(args: &[&str]) -> Output {
    Command::new("systemd-analyze").args(args).output().expect("systemd-analyze starts")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
