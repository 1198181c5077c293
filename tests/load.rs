//! Many connections: all at once, one after another through every ending there is, and thousands that stay.
mod common;

use common::*;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::thread;

/// Read and write ends in a worker's pool of pipes.
const POOL_LINKS: usize = 128;

on_both_engines! {
    fn a_thousand_simultaneous_opens_all_play(engine) {
        let _alone = alone();
        let gateway = Gateway::start(engine);
        let line = format!("{}\n", token(&echo_backend().to_string()));
        let mut clients: Vec<_> = (0..1_000).map(|_| gateway.connect()).collect();
        for client in &mut clients {
            client.write_all(line.as_bytes()).expect("the line is sent");
        }
        for client in &mut clients {
            assert_eq!(read_answer(client), "200");
            client.write_all(b"hi").expect("it is sent");
        }
        for client in &mut clients {
            assert_hears(client, b"hi");
        }
    }
}

on_both_engines! {
    fn twenty_thousand_connections_through_twelve_endings_leave_nothing_behind(engine) {
        let _alone = alone();
        let gateway = Gateway::with(&["--engine", engine, "--timeout", "200ms"]);
        let endings = Endings::new();
        let run = |times: usize| {
            let next = Mutex::new(0..times);
            let next = || next.lock().expect("not poisoned").next();
            thread::scope(|scope| {
                for _ in 0..32 {
                    scope.spawn(|| {
                        while let Some(i) = next() {
                            endings.play(&gateway, i);
                        }
                    });
                }
            });
            let ports = endings.ports(&gateway);
            wait_until(|| open_sockets(&ports).is_empty(), || format!("these stay open: {:#?}", open_sockets(&ports)));
            descriptors(gateway.worker())
        };
        let (own_pipes, _) = descriptors(gateway.worker());
        // What a worker opens once and keeps, it has opened after the first run.
        let (_, before) = run(A_TIME_OUT_IN);
        let (pipes, others) = run(20_000);
        assert_eq!(others, before);
        assert!(pipes <= own_pipes + POOL_LINKS, "{pipes} ends of pipes remain");
    }
}

on_both_engines! {
    fn three_thousand_idle_games_cost_two_sockets_each_and_no_threads(engine) {
        let _alone = alone();
        let gateway = Gateway::start(engine);
        let listener = listen_deep();
        let address = listener.local_addr().expect("it is bound");
        let game = || (gateway.play(address), listener.accept().expect("it was connected before the answer").0);
        let mut games = vec![game()];
        let before = gateway.descriptors() - 2;
        games.extend((1..3_000).map(|_| game()));

        assert_eq!(gateway.descriptors(), before + 2 * games.len());
        assert!(kernel_threads(gateway.worker()) <= 4, "{} threads", kernel_threads(gateway.worker()));
        for (client, _) in &mut games {
            client.write_all(b"hi").expect("it is sent");
        }
        for (_, backend) in &mut games {
            assert_hears(backend, b"hi");
            backend.write_all(b"ho").expect("it is sent");
        }
        for (client, _) in &mut games {
            assert_hears(client, b"ho");
        }
        assert!(kernel_threads(gateway.worker()) <= 4, "{} threads", kernel_threads(gateway.worker()));
        for (mut client, mut backend) in games {
            client.shutdown(Shutdown::Write).expect("it ends");
            assert_eq!(read_to_end(&mut backend), b"");
            drop(backend);
            assert_eq!(read_to_end(&mut client), b"");
        }
        gateway.wait_for_descriptors(before);
    }
}

/// One connection in so many goes to a backend that does not answer; the other eleven kinds come in turn.
const A_TIME_OUT_IN: usize = 96;

/// The lines that lead to each kind of ending.
struct Endings {
    echo: String,
    ends_first: String,
    resets: String,
    refuses: String,
    silent: String,
    ports: Vec<u16>,
    _held: (socket2::Socket, socket2::Socket, Vec<TcpStream>),
}

impl Endings {
    fn new() -> Self {
        let echo = echo_backend();
        let ends_first = backend(|mut stream| stream.write_all(&[b'x'; 256 * 1024]).expect("the client reads it all"));
        let resets = backend(|mut stream| {
            let _ = stream.read(&mut [0]);
            reset(stream);
        });
        let (closed, refuses) = closed_port();
        let (queue, fillers, silent) = silent_backend();
        let line = |target: std::net::SocketAddr| format!("{}\n", token(&target.to_string()));
        Self {
            echo: line(echo),
            ends_first: line(ends_first),
            resets: line(resets),
            refuses: line(refuses),
            silent: line(silent),
            ports: [echo, ends_first, resets, refuses].map(|address| address.port()).to_vec(),
            _held: (closed, queue, fillers),
        }
    }

    /// The gateway's port and those of the backends it reaches.
    fn ports(&self, gateway: &Gateway) -> Vec<u16> {
        self.ports.iter().copied().chain([gateway.address.port()]).collect()
    }

    /// Opens the `i`th connection and takes it to its end.
    fn play(&self, gateway: &Gateway, i: usize) {
        let mut client = gateway.connect();
        let say = |client: &mut TcpStream, line: &str| client.write_all(line.as_bytes()).expect("the line is sent");
        let open = |client: &mut TcpStream, line| {
            say(client, line);
            assert_eq!(read_answer(client), "200");
        };
        let end = |client: &TcpStream| client.shutdown(Shutdown::Write).expect("it ends");
        match if (i + 1).is_multiple_of(A_TIME_OUT_IN) { 11 } else { i % 11 } {
            // The client ends first.
            0 => {
                open(&mut client, &self.echo);
                client.write_all(b"hi").expect("it is sent");
                assert_hears(&mut client, b"hi");
            }
            // The backend ends first.
            1 => {
                open(&mut client, &self.ends_first);
                assert_eq!(read_to_end(&mut client).len(), 256 * 1024);
            }
            // The client half-closes and hears the rest.
            2 => {
                open(&mut client, &self.echo);
                client.write_all(b"hi").expect("it is sent");
                end(&client);
                assert_eq!(read_to_end(&mut client), b"hi");
            }
            // The line is cut short.
            3 => {
                say(&mut client, self.echo.trim_end());
                end(&client);
                assert_eq!(read_to_end(&mut client), b"400");
            }
            // The line never ends.
            4 => {
                say(&mut client, &"x".repeat(2_000));
                assert_eq!(read_to_end(&mut client), b"400");
            }
            // The line is nonsense.
            5 => {
                say(&mut client, "nonsense\n");
                assert_eq!(read_to_end(&mut client), b"401");
            }
            // Nobody listens at the target.
            6 => {
                say(&mut client, &self.refuses);
                assert_eq!(read_to_end(&mut client), b"502");
            }
            // The client resets before it has said its line.
            7 => {
                say(&mut client, &self.echo[..10]);
                reset(client);
            }
            // The client resets in the middle of bulk.
            8 => {
                open(&mut client, &self.echo);
                client.write_all(&[b'x'; 256 * 1024]).expect("it is sent");
                reset(client);
            }
            // The backend resets.
            9 => {
                open(&mut client, &self.resets);
                client.write_all(b"x").expect("it is sent");
                let end = client.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
                assert_eq!(end, Err(ErrorKind::ConnectionReset));
            }
            // The client is gone before the answer.
            10 => say(&mut client, &self.echo),
            // The target does not answer.
            _ => {
                say(&mut client, &self.silent);
                assert_eq!(read_to_end(&mut client), b"504");
            }
        }
    }
}

/// Descriptors of a process: ends of pipes, and all others.
fn descriptors(pid: u32) -> (usize, usize) {
    let links = links(pid);
    assert!(!links.is_empty(), "the descriptors of {pid} cannot be seen");
    let (pipes, others): (Vec<_>, Vec<_>) = links.into_iter().partition(|link| link.starts_with("pipe:"));
    (pipes.len(), others.len())
}

/// The kernel's lines about connections at these ports that somebody still holds, or has not noticed the end of.
fn open_sockets(ports: &[u16]) -> Vec<String> {
    const LISTEN: &str = "0A";
    const CLOSE_WAIT: &str = "08";
    const NOBODY: &str = "0";
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the table can be read");
    let ours: Vec<_> = ports.iter().map(|port| format!(":{port:04X} ")).collect();
    let open = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (state, inode) = (fields[3], fields[9]);
        state != LISTEN && (state == CLOSE_WAIT || inode != NOBODY)
    };
    let lines = table.lines().filter(|line| ours.iter().any(|port| line.contains(port)));
    lines.filter(open).map(String::from).collect()
}

/// Threads the kernel has started for operations that would block.
fn kernel_threads(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the worker lives");
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|comm| comm.starts_with("iou-wrk"))
        .count()
}

fn assert_hears(stream: &mut TcpStream, words: &[u8]) {
    let mut heard = vec![0; words.len()];
    stream.read_exact(&mut heard).expect("something is said");
    assert_eq!(heard, words);
}
