//! Daemons, workers and their signals: who drains, who ends, who takes a dead worker's place; and the pid file.
mod common;

use common::*;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

on_both_engines! {
    fn kill_by_the_pid_file_drains_all_daemons_of_a_port(engine) {
        let first = Gateway::with(&["--engine", engine, "--reuse"]);
        let second = beside(&first, &["--engine", engine, "--reuse", "--addr", &first.address.to_string()]);
        drains(vec![first, second], "kill $(cat gateway.pid)");
    }
}

on_both_engines! {
    fn kill_by_the_pid_file_drains_all_workers_of_a_daemon(engine) {
        drains(vec![Gateway::with(&["--engine", engine, "--workers", "2"])], "kill $(cat gateway.pid)");
    }
}

on_both_engines! {
    fn an_interrupt_drains_as_well(engine) {
        drains(vec![Gateway::start(engine)], "kill -s INT $(cat gateway.pid)");
    }
}

on_both_engines! {
    fn a_second_signal_ends_a_drain_at_once(engine) {
        let mut gateway = Gateway::start(engine);
        let worker = gateway.worker();
        let mut game = gateway.play(echo_backend());
        gateway.signal("TERM");
        wait_until_closed(gateway.address);
        assert!(gateway.running());
        gateway.signal("TERM");
        assert_eq!(gateway.wait().code(), Some(0));
        assert!(!echoes(&mut game));
        assert!(!exists(&gateway.pid_file()));
        wait_until(|| !lives(worker), || "the worker stays".into());
    }
}

on_both_engines! {
    fn the_drain_limit_ends_a_game_that_never_would(engine) {
        let mut gateway = Gateway::with(&["--engine", engine, "--drain", "300ms"]);
        let mut game = gateway.play(echo_backend());
        gateway.signal("TERM");
        assert_eq!(gateway.wait().code(), Some(0));
        assert!(!echoes(&mut game));
        assert!(!exists(&gateway.pid_file()));
    }
}

on_both_engines! {
    fn a_killed_worker_takes_only_its_own_games_along_and_is_replaced(engine) {
        const CALLERS: usize = 4;
        let gateway = Gateway::with(&["--engine", engine, "--workers", "2"]);
        let backend = echo_backend();
        let line = format!("{}\nhello", token(&backend.to_string()));
        let workers = gateway.workers();
        let victim = workers[0];
        let mut games = games_on_each(&gateway, &workers, backend);
        let (calls, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        let call = || {
            calls.fetch_add(1, Relaxed);
            let mut client = gateway.connect();
            let mut answer = [0; 8];
            let heard = client.write_all(line.as_bytes()).and_then(|()| client.read_exact(&mut answer));
            assert!(heard.is_err() || answer == *b"200hello");
            heard.is_err()
        };
        thread::scope(|scope| {
            let call_on = || (0..20_000).take_while(|_| !done.load(Relaxed)).filter(|_| call()).count();
            let callers = [(); CALLERS].map(|()| scope.spawn(call_on));
            wait_until(|| calls.load(Relaxed) > 200, || "nobody gets through".into());
            signal(victim, "KILL");
            let serves = |pid: u32| holders(&[gateway.play(backend)], &[pid]) == [Some(pid)];
            wait_until(
                || gateway.workers().iter().any(|pid| !workers.contains(pid) && serves(*pid)),
                || format!("no new worker serves: {:?}", gateway.workers()),
            );
            done.store(true, Relaxed);
            for caller in callers {
                let broken = caller.join().expect("every connect() succeeds");
                assert!(broken <= 1, "a caller had one connection at a time, and {broken} broke");
            }
        });
        assert_eq!(gateway.workers().len(), 2);
        for (worker, game) in &mut games {
            assert_eq!(echoes(game), *worker != victim, "a game of {worker} after the death of {victim}");
        }
    }
}

on_both_engines! {
    fn the_queue_of_a_killed_worker_survives_it(engine) {
        let gateway = Gateway::start(engine);
        let line = format!("{}\n", token(&echo_backend().to_string()));
        let worker = gateway.worker();
        // A stopped worker accepts nothing, so all of these wait in its queue.
        signal(worker, "STOP");
        let mut clients: Vec<_> = (0..64).map(|_| gateway.connect()).collect();
        for client in &mut clients {
            client.write_all(line.as_bytes()).expect("the line is sent");
        }
        signal(worker, "KILL");
        for client in &mut clients {
            assert_eq!(read_answer(client), "200");
            assert!(echoes(client));
        }
    }
}

on_both_engines! {
    fn workers_outlive_a_killed_supervisor_only_by_their_games(engine) {
        let mut gateway = Gateway::with(&["--engine", engine, "--workers", "2"]);
        let workers = gateway.workers();
        let mut games = games_on_each(&gateway, &workers, echo_backend());
        gateway.signal("KILL");
        gateway.wait();
        for _ in 0..10 {
            assert!(games.iter_mut().all(|(_, game)| echoes(game)));
        }
        drop(games);
        wait_until(|| !workers.iter().any(|worker| lives(*worker)), || "workers stay without games".into());
    }
}

on_both_engines! {
    fn a_worker_that_is_sent_a_term_goes_on_as_before(engine) {
        let gateway = Gateway::start(engine);
        let (worker, backend) = (gateway.worker(), echo_backend());
        let mut game = gateway.play(backend);
        signal(worker, "TERM");
        watch(Duration::from_millis(500));
        assert!(echoes(&mut gateway.play(backend)), "a new client is served");
        assert!(echoes(&mut game));
        drop(game);
        watch(Duration::from_millis(500));
        assert_eq!(gateway.workers(), [worker]);
    }
}

#[test]
fn signals_without_a_meaning_do_not_end_a_daemon() {
    let mut gateway = Gateway::with(&[]);
    for name in ["USR1", "USR2"] {
        let workers = gateway.workers();
        gateway.signal(name);
        workers.iter().for_each(|worker| signal(*worker, name)); // as when a whole process group is told
        watch(Duration::from_millis(500));
        assert!(gateway.running(), "{name} has ended it");
        assert_eq!(gateway.workers(), workers, "{name} has ended a worker");
        assert!(echoes(&mut gateway.play(echo_backend())));
    }
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn a_supervisor_that_was_stopped_for_long_kills_no_worker() {
    let gateway = Gateway::with(&["--workers", "2"]);
    let workers = gateway.workers();
    let mut games = games_on_each(&gateway, &workers, echo_backend());
    gateway.signal("STOP");
    watch(Duration::from_secs(12));
    assert!(games.iter_mut().all(|(_, game)| echoes(game)));
    gateway.signal("CONT");
    watch(Duration::from_secs(3));
    assert_eq!(gateway.workers(), workers);
    assert!(games.iter_mut().all(|(_, game)| echoes(game)));
}

on_both_engines! {
    fn a_stderr_that_nobody_reads_stops_no_game(engine) {
        const THREADS: usize = 30;
        const LINES: usize = 100;
        let place = temporary();
        let fifo = place.path().join("stderr");
        // The daemon itself holds the read end open, and never reads.
        let script = r#"mkfifo "$0" && exec 3<>"$0" && exec "$@" 2>"$0""#;
        let command = program_under(&["sh", "-c", script, plain(&fifo)]);
        let mut gateway = Gateway::with_command(command, &["--engine", engine, "--log-level", "debug"]);
        let mut game = gateway.play(echo_backend());
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..LINES {
                        let mut client = gateway.connect();
                        client.write_all(b"nonsense\n").expect("the line is sent");
                        assert_eq!(read_to_end(&mut client), b"401");
                    }
                });
            }
        });
        assert!(echoes(&mut game));
        gateway.signal("TERM");
        wait_until_closed(gateway.address);
        assert!(echoes(&mut game), "it goes on during the drain");
        drop(game);
        assert_eq!(gateway.wait().code(), Some(0));
    }
}

#[test]
fn a_pid_file_that_somebody_keeps_locked_delays_no_end_and_its_start_is_refused() {
    if !tool_or_skip("a_pid_file_that_somebody_keeps_locked_delays_no_end_and_its_start_is_refused", "flock") {
        return;
    }
    let mut gateway = Gateway::with(&[]);
    let place = gateway.directory.path().to_owned();
    let mut holder = Command::new("flock")
        .args(["gateway.pid", "sh", "-c", "echo held; cat"])
        .current_dir(&place)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("flock starts");
    let input = holder.stdin.take(); // it holds the lock until this is closed
    let mut said = String::new();
    BufReader::new(holder.stdout.take().expect("stdout is piped")).read_line(&mut said).expect("it says something");
    assert_eq!(said, "held\n");

    let refused = refusal(3, &place, &[]);
    assert!(refused.contains("gateway.pid"), "{refused}");
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(0));
    drop(input);
    assert!(holder.wait().expect("it ends").success());
}

#[test]
fn daemons_of_one_directory_each_have_a_line_in_the_pid_file() {
    let mut first = Gateway::with(&[]);
    let mut second = beside(&first, &[]);
    let file = first.pid_file();
    assert_eq!(pids(&file), BTreeSet::from([first.pid(), second.pid()]));
    first.signal("TERM");
    assert_eq!(first.wait().code(), Some(0));
    assert_eq!(pids(&file), BTreeSet::from([second.pid()]));
    second.signal("TERM");
    assert_eq!(second.wait().code(), Some(0));
    assert!(!exists(&file));
}

#[test]
fn a_dead_daemons_line_is_replaced() {
    let mut dead = Gateway::with(&[]);
    dead.signal("KILL");
    dead.wait();
    assert_eq!(pids(&dead.pid_file()), BTreeSet::from([dead.pid()]));
    let next = beside(&dead, &[]);
    assert_eq!(pids(&dead.pid_file()), BTreeSet::from([next.pid()]));
}

#[test]
fn a_pid_file_that_is_not_ours_is_refused_and_left_alone() {
    for (what, script) in [
        ("a symbolic link", "touch other; ln -s other gateway.pid"),
        ("a symbolic link to nothing", "ln -s other gateway.pid"),
        ("a second name of another file", "touch other; ln other gateway.pid"),
        ("a pipe", "mkfifo gateway.pid"),
        ("a directory", "mkdir gateway.pid"),
        ("somebody's text", "echo 'dear diary' > gateway.pid"),
    ] {
        let place = temporary();
        let look = || {
            sh(place.path(), "ls -dli --time-style=full-iso gateway.pid other; [ ! -f gateway.pid ] || cat gateway.pid")
        };
        sh(place.path(), script);
        let before = look();
        let said = refusal(3, place.path(), &[]);
        assert!(said.contains("gateway.pid"), "{what}: {said}");
        assert_eq!(look(), before, "{what}");
    }
}

#[test]
fn an_address_that_cannot_be_bound_is_told_and_leaves_the_pid_file_alone() {
    let plain = Gateway::with(&[]);
    let shared = Gateway::with(&["--reuse"]);
    for address in [plain.address.to_string(), shared.address.to_string(), "192.0.2.1:80".into()] {
        for before in [None, Some("4194303\n")] {
            let place = temporary();
            let file = place.path().join("gateway.pid");
            before.inspect(|stale| std::fs::write(&file, stale).expect("a stale line is written"));
            let said = refusal(4, place.path(), &["--addr", &address]);
            assert!(said.contains(&address), "{said}");
            assert_eq!(std::fs::read_to_string(&file).ok().as_deref(), before);
        }
    }
}

/// Stops daemons in the middle of games and holds them to it: nobody new comes in, every game goes on to its own end,
/// nothing stays.
fn drains(mut daemons: Vec<Gateway>, stop: &str) {
    let (address, file) = (daemons[0].address, daemons[0].pid_file());
    let workers: Vec<u32> = daemons.iter().flat_map(Gateway::workers).collect();
    let mut games = games_on_each(&daemons[0], &workers, echo_backend());
    sh(daemons[0].directory.path(), stop);
    wait_until_closed(address);
    for _ in 0..10 {
        assert!(games.iter_mut().all(|(_, game)| echoes(game)));
    }
    assert!(daemons.iter_mut().all(Gateway::running));
    for (_, mut game) in games {
        game.shutdown(Shutdown::Write).expect("it ends");
        assert_eq!(read_to_end(&mut game), b"");
    }
    for daemon in &mut daemons {
        assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    }
    assert!(!exists(&file));
    wait_until(|| !workers.iter().any(|worker| lives(*worker)), || "a worker stays".into());
}

/// Games, each with the worker that holds it; every worker holds some.
fn games_on_each(gateway: &Gateway, workers: &[u32], backend: SocketAddr) -> Vec<(u32, TcpStream)> {
    // The kernel spreads connections by a hash: all 32 on one of two workers is as good as impossible.
    let games: Vec<_> = (0..32).map(|_| gateway.play(backend)).collect();
    let holders = holders(&games, workers);
    assert!(workers.iter().all(|worker| holders.contains(&Some(*worker))), "a worker has no game: {holders:?}");
    holders.into_iter().map(|holder| holder.expect("one of the workers has answered")).zip(games).collect()
}

/// Which of `workers` holds the other end of each client's connection.
fn holders(clients: &[TcpStream], workers: &[u32]) -> Vec<Option<u32>> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the table can be read");
    let links: Vec<_> = workers.iter().map(|worker| (*worker, links(*worker))).collect();
    let holder = |client: &TcpStream| {
        let (local, peer) = (client.peer_addr().ok()?.port(), client.local_addr().ok()?.port());
        let ends = format!(": 0100007F:{local:04X} 0100007F:{peer:04X} ");
        let inode = table.lines().find(|line| line.contains(&ends))?.split_whitespace().nth(9)?;
        let link = format!("socket:[{inode}]");
        links.iter().find(|(_, links)| links.contains(&link)).map(|(worker, _)| *worker)
    };
    clients.iter().map(holder).collect()
}

/// Waits until nobody is let in any more.
fn wait_until_closed(address: SocketAddr) {
    wait_until(|| TcpStream::connect(address).is_err(), || format!("{address} still lets clients in"));
}

/// True until a process has ended, whether or not its parent has asked for its status.
fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// A daemon in the directory of another.
fn beside(first: &Gateway, flags: &[&str]) -> Gateway {
    Gateway::with_command(program_under(&["env", "-C", plain(first.directory.path())]), flags)
}

/// What a daemon in `directory` says that must end with this exit code instead of starting.
fn refusal(code: i32, directory: &Path, flags: &[&str]) -> String {
    let command = program_under(&["timeout", "-s", "KILL", "60", "env", "-C", plain(directory)]);
    let started = Gateway::try_start(command, temporary(), flags);
    let said = started.err().expect("it must not start");
    assert!(said.starts_with(&format!("exit status: {code}: ")), "not {code}: {said}");
    assert!(said.contains("error: ") && said.contains("hint: "), "{said}");
    said
}

fn plain(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn pids(file: &Path) -> BTreeSet<u32> {
    let text = std::fs::read_to_string(file).expect("the pid file can be read");
    text.lines().map(|line| line.parse().expect("a line is a process id")).collect()
}

fn sh(directory: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).current_dir(directory).output().expect("sh runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
