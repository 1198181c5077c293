//! The two ends of tunnels, as real daemons on loopback.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::{PATIENCE, children_of, collect, program, signal, wait_until};

pub const SECRET: &str = "a secret of a tunnel, long enough";

/// A running daemon. Dropping it kills the supervisor and its workers.
pub struct Daemon {
    pub directory: tempfile::TempDir,
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    workers: Vec<u32>,
}

impl Daemon {
    /// Provides `game` on a free port of loopback, or on the one that the flags name.
    pub fn provide(engine: &str, flags: &[&str]) -> Self {
        let listen = if flags.contains(&"--listen-udp") { &[][..] } else { &["--listen-udp", "127.0.0.1:0"] };
        Self::start(program(), &[&["provide", "game", "--engine", engine], listen, flags].concat())
    }

    /// Visits `game` of that provider.
    pub fn visit(engine: &str, provider: SocketAddr, flags: &[&str]) -> Self {
        let peer = provider.to_string();
        Self::start(program(), &[&["visit", "game", "--engine", engine, "--peer", &peer], flags].concat())
    }

    /// Any of them, with the usual secret unless the flags bring one.
    pub fn start(mut command: Command, flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("secret"), format!("{SECRET}\n")).expect("the secret is written");
        command.args(flags).args(["--log-level", "debug"]);
        let has_secret = command.get_envs().any(|(name, _)| name == "GATEWAY_SECRET");
        if !has_secret && !flags.iter().any(|flag| flag.starts_with("--secret")) {
            command.args(["--secret-file", "secret"]);
        }
        command.current_dir(directory.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let (stdout, _) = collect(child.stdout.take().expect("stdout is piped"));
        let (stderr, _) = collect(child.stderr.take().expect("stderr is piped"));
        let mut daemon = Self { directory, child, stdout, stderr, workers: Vec::new() };
        let log = daemon.stderr.clone();
        let said = || daemon_said(&log);
        wait_until(|| said().contains("gateway running") || !daemon.running(), said);
        assert!(daemon.running(), "the daemon did not start: {}", daemon.log());
        daemon.workers = daemon.workers();
        daemon
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn workers(&self) -> Vec<u32> {
        children_of(self.child.id())
    }

    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    pub fn log(&self) -> String {
        daemon_said(&self.stderr)
    }

    /// The results it has printed.
    pub fn said(&self) -> String {
        daemon_said(&self.stdout)
    }

    pub fn wait_for_log(&self, words: &str) {
        wait_until(|| self.log().contains(words), || format!("{words:?} is not in the log:\n{}", self.log()));
    }

    /// The bound address of the `number`th door of a kind, `tcp` or `udp`.
    pub fn door(&self, kind: &str, number: usize) -> SocketAddr {
        let start = format!("listening on {kind} ");
        let find = || {
            let said = self.said();
            let line = said.lines().filter_map(|line| line.strip_prefix(&start)).nth(number)?;
            line.split_whitespace().next()?.parse().ok()
        };
        wait_until(|| find().is_some(), || format!("no {kind} door {number}: {}", self.said()));
        find().expect("it was there")
    }

    pub fn tcp(&self) -> SocketAddr {
        self.door("tcp", 0)
    }

    pub fn udp(&self) -> SocketAddr {
        self.door("udp", 0)
    }

    pub fn running(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_none()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let stderr = self.stderr.clone();
        let mut status = None;
        wait_until(
            || {
                status = child.try_wait().expect("the child can be waited for");
                status.is_some()
            },
            || format!("the daemon did not end; it said:\n{}", daemon_said(&stderr)),
        );
        status.expect("it has ended")
    }

    /// Ends all its processes, as a power cut would.
    pub fn kill(&mut self) {
        let workers = self.workers();
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in workers.into_iter().chain(self.workers.drain(..)) {
            if std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "gateway") {
                let _ = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).stderr(Stdio::null()).status(); // or it has ended
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- what the daemon said ---\n{}", self.log());
        }
    }
}

fn daemon_said(text: &Arc<Mutex<String>>) -> String {
    text.lock().expect("not poisoned").clone()
}

/// A pair that carries one service.
pub struct Pair {
    pub provider: Daemon,
    pub visitor: Daemon,
}

impl Pair {
    /// A provider with these flags, and a visitor with a TCP or UDP door for each of its ports.
    pub fn start(engine: &str, provide: &[&str]) -> Self {
        let provider = Daemon::provide(engine, provide);
        let doors: Vec<&str> = provide
            .iter()
            .filter(|flag| matches!(**flag, "--tcp" | "--udp"))
            .flat_map(|flag| [*flag, "127.0.0.1:0"])
            .collect();
        let visitor = Daemon::visit(engine, provider.udp(), &doors);
        Self { provider, visitor }
    }
}

/// A UDP socket that waits for datagrams, with patience.
pub fn udp_socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    socket
}

/// A UDP service that sends every datagram back to where it came from.
pub fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("it is bound");
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
    address
}

/// One datagram there and back. Datagrams may be lost while a tunnel is young: it is sent again now and then.
pub fn ask_udp(socket: &UdpSocket, to: SocketAddr, question: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a time-out can be set");
    for _ in 0..120 {
        socket.send_to(question, to).expect("it is sent");
        if let Ok((n, _)) = socket.recv_from(&mut buffer) {
            return buffer[..n].to_vec();
        }
    }
    panic!("no answer to {} bytes", question.len());
}

/// Path of the secret of another daemon, for those that are to share it.
pub fn secret_of(daemon: &Daemon) -> PathBuf {
    daemon.directory.path().join("secret")
}
