//! Players who have nothing but the game, or a line, reach a provider through the public machine: real daemons, real sockets.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use common::tunnel::{Daemon, SECRET, udp_echo, udp_socket};
use common::{
    PATIENCE, Random, backend, closed_port, connect, echo_backend, echoes, ends_half_by_half, output, program,
    read_answer, read_to_end, reset, silent_backend, token_with, wait_until,
};

/// The public machine, with a gateway.
struct Hub(Daemon);

impl Hub {
    /// `exposed`: what is behind `IP:PORT=`, for a free port each.
    fn start(engine: &str, exposed: &[&str], flags: &[&str]) -> Self {
        let address = |text: &&str| match text.strip_prefix("udp://") {
            Some(service) => format!("udp://127.0.0.1:0={service}"),
            None => format!("127.0.0.1:0={text}"),
        };
        let exposed: Vec<_> = exposed.iter().map(address).collect();
        let exposed = exposed.iter().flat_map(|text| ["--expose", text.as_str()]);
        let flags = flags.iter().copied().chain(exposed);
        let base = ["run", "--engine", engine, "--addr", "127.0.0.1:0", "--rendezvous", "127.0.0.1:0"];
        Self(Daemon::start(program(), &base.into_iter().chain(flags).collect::<Vec<_>>()))
    }

    fn find(&self, start: &str, number: usize) -> SocketAddr {
        let find = || {
            let said = self.0.said();
            said.lines().filter_map(|line| line.strip_prefix(start)?.rsplit(' ').next()?.parse().ok()).nth(number)
        };
        wait_until(|| find().is_some(), || format!("{start:?} is not said: {}", self.0.said()));
        find().expect("it was there")
    }

    fn rendezvous(&self) -> SocketAddr {
        self.find("rendezvous on ", 0)
    }

    fn exposed(&self, number: usize) -> SocketAddr {
        self.find("exposing ", number)
    }

    /// Sends a line, and brings its answer.
    fn ask(&self, target: &str) -> (TcpStream, String) {
        let mut client = connect(self.find("listening on ", 0));
        client.write_all(format!("{}\n", token_with(SECRET, target)).as_bytes()).expect("it is sent");
        let answer = read_answer(&mut client);
        (client, answer)
    }

    /// The provider has said goodbye.
    fn wait_until_gone(&self) {
        let is_gone = |log: String| ["service withdrawn", "is lost"].iter().any(|words| log.contains(words));
        wait_until(|| is_gone(self.0.log()), || self.0.log());
    }

    /// Begins to provide `game` there, and waits until it is known.
    fn provide(&self, engine: &str, flags: &[&str]) -> Daemon {
        self.provide_at(self.rendezvous(), engine, flags)
    }

    fn provide_at(&self, rendezvous: SocketAddr, engine: &str, flags: &[&str]) -> Daemon {
        let via = rendezvous.to_string();
        let base = ["provide", "game", "--engine", engine, "--via", &via];
        let provider = Daemon::start(program(), &[&base[..], flags].concat());
        provider.wait_for_log("visitors can come");
        provider
    }
}

/// The usual: `game` is exposed and has an echo.
fn echo(engine: &str) -> (Hub, Daemon) {
    let hub = Hub::start(engine, &["game"], &[]);
    let provider = hub.provide(engine, &["--tcp", &echo_backend().to_string()]);
    (hub, provider)
}

/// What a client is told by the end of its connection.
fn end_of(mut client: TcpStream) -> Result<usize, ErrorKind> {
    client.read(&mut [0; 16]).map_err(|error| error.kind())
}

on_both_engines! {
    fn a_player_reaches_an_exposed_service_and_each_half_ends_by_itself(engine) {
        let (hub, _provider) = echo(engine);
        ends_half_by_half(connect(hub.exposed(0)));
    }
}

on_both_engines! {
    fn the_page_of_figures_counts_players_and_what_is_moved_for_them(engine) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let admin = format!("unix:{}", directory.path().join("page.sock").display());
        let hub = Hub::start(engine, &["game", "udp://game"], &["--workers", "2", "--admin", &admin]);
        let (tcp, udp) = (echo_backend().to_string(), udp_echo().to_string());
        let _provider = hub.provide(engine, &["--tcp", &tcp, "--udp", &udp]);
        let figures = || {
            let told = output(&["status", "--json", "--admin", &admin]).stdout;
            serde_json::from_slice::<serde_json::Value>(&told).expect("it is JSON")["rendezvous"].clone()
        };
        let is = |key: &str, expected: u64| wait_until(|| figures()[key] == expected, || format!("{key}: {}", figures()));
        let mut player = connect(hub.exposed(0));
        assert!(echoes(&mut player));
        is("hub_players_tcp", 1);
        let moved = figures()["hub_bytes"].as_u64().expect("a number");
        assert!(moved > 0, "{}", figures());
        drop(player);
        is("hub_players_tcp", 0);
        is("hub_bytes", moved);
        let player = udp_socket();
        player.send_to(b"hello", hub.exposed(1)).expect("it is sent");
        assert_eq!(player.recv(&mut [0; 16]).expect("it comes back"), 5);
        is("hub_players_udp", 1);
        is("hub_bytes", moved + 10);
    }
}

on_both_engines! {
    fn a_service_that_speaks_first_and_ends_its_half_still_hears_the_player(engine) {
        let (heard, hears) = mpsc::channel();
        let service = backend(move |mut stream| {
            stream.write_all(b"goodbye").expect("it is sent");
            stream.shutdown(Shutdown::Write).expect("it ends");
            heard.send(read_to_end(&mut stream)).expect("the test listens");
        });
        let hub = Hub::start(engine, &["game"], &[]);
        let _provider = hub.provide(engine, &["--tcp", &service.to_string()]);
        let mut player = connect(hub.exposed(0));
        assert_eq!(read_to_end(&mut player), b"goodbye");
        player.write_all(b"still here").expect("it is sent");
        drop(player);
        assert_eq!(hears.recv_timeout(PATIENCE).expect("the service ends"), b"still here");
    }
}

on_both_engines! {
    fn a_reset_passes_in_both_directions(engine) {
        let (ended, ends) = mpsc::channel();
        let service = backend(move |mut stream| {
            let mut first = [0];
            stream.read_exact(&mut first).expect("the first byte comes");
            if first == *b"r" {
                return reset(stream);
            }
            stream.write_all(&first).expect("it is sent");
            ended.send(stream.read(&mut first).map_err(|error| error.kind())).expect("the test listens");
        });
        let hub = Hub::start(engine, &["game"], &[]);
        let _provider = hub.provide(engine, &["--tcp", &service.to_string()]);
        let mut player = connect(hub.exposed(0));
        player.write_all(b"r").expect("it is sent");
        assert_eq!(end_of(player), Err(ErrorKind::ConnectionReset));
        let mut player = connect(hub.exposed(0));
        player.write_all(b"p").expect("it is sent");
        player.read_exact(&mut [0]).expect("it comes back");
        reset(player);
        assert_eq!(ends.recv_timeout(PATIENCE).expect("it ends"), Err(ErrorKind::ConnectionReset));
    }
}

on_both_engines! {
    fn a_line_reaches_the_port_of_a_provider_that_it_names(engine) {
        let hub = Hub::start(engine, &[], &[]);
        let says = |words: &'static [u8]| backend(move |mut stream| stream.write_all(words).expect("it is sent"));
        let ports = [says(b"one").to_string(), says(b"two").to_string()];
        let provider = hub.provide(engine, &["--tcp", &ports[0], "--tcp", &ports[1]]);
        for (target, words) in
            [("provider:game", &b"one"[..]), ("provider:game:1", b"one"), ("provider:game:2", b"two")]
        {
            let (mut client, answer) = hub.ask(target);
            assert_eq!((answer.as_str(), &read_to_end(&mut client)[..]), ("200", words), "{target}");
        }
        for target in ["provider:game:3", "provider:other"] {
            let (mut client, answer) = hub.ask(target);
            assert_eq!((answer.as_str(), read_to_end(&mut client).len()), ("502", 0), "{target}");
        }
        provider.signal("TERM");
        hub.wait_until_gone();
        assert_eq!(hub.ask("provider:game").1, "502");
    }
}

on_both_engines! {
    /// Nobody says goodbye for it but its kernel, which ends its connections.
    fn a_line_to_a_provider_that_was_killed_is_told_that_there_is_none(engine) {
        let (hub, mut provider) = echo(engine);
        assert_eq!(hub.ask("provider:game").1, "200");
        provider.kill();
        assert_eq!(hub.ask("provider:game").1, "502");
    }
}

on_both_engines! {
    fn what_follows_a_line_is_for_the_service(engine) {
        let (hub, _provider) = echo(engine);
        let mut client = connect(hub.find("listening on ", 0));
        let line = format!("{}\nearly", token_with(SECRET, "provider:game"));
        client.write_all(line.as_bytes()).expect("it is sent");
        assert_eq!(read_answer(&mut client), "200");
        client.shutdown(Shutdown::Write).expect("it ends");
        assert_eq!(read_to_end(&mut client), b"early");
    }
}

on_both_engines! {
    fn a_service_that_refuses_is_502_and_one_that_says_nothing_504(engine) {
        let hub = Hub::start(engine, &["game", "game:2"], &[]);
        let (_closed, refuses) = closed_port();
        let (_queue, _fillers, silent) = silent_backend();
        let _provider = hub.provide(engine, &["--tcp", &refuses.to_string(), "--tcp", &silent.to_string()]);
        assert_eq!(hub.ask("provider:game").1, "502");
        assert_eq!(hub.ask("provider:game:2").1, "504");
        assert_eq!(end_of(connect(hub.exposed(0))), Err(ErrorKind::ConnectionReset));
        assert_eq!(end_of(connect(hub.exposed(1))), Err(ErrorKind::ConnectionReset));
    }
}

#[test]
fn policy_has_a_say_about_services_and_without_a_rendezvous_there_are_none() {
    for (flags, answer) in [
        (&["--deny", "provider:game"][..], "401"),
        (&["--allow", "127.0.0.0/8"], "401"),
        (&["--allow", "127.0.0.0/8,provider:*"], "502"),
    ] {
        assert_eq!(Hub::start("uring", &[], flags).ask("provider:game").1, answer, "{flags:?}");
    }
    let gateway = common::Gateway::start("uring");
    assert_eq!(gateway.ask("provider:game").1, "401");
}

on_both_engines! {
    fn connections_for_players_to_come_stay_ready(engine) {
        let (hub, _provider) = echo(engine);
        let (rendezvous, mut looks) = (hub.rendezvous().port(), 0);
        // The link of the tunnel, and those that wait; a connection that is let go at once is not seen so often in a row.
        let are_ready = || {
            looks = if connections_to(rendezvous) == 1 + 2 { looks + 1 } else { 0 };
            looks >= 20
        };
        wait_until(are_ready, || hub.0.log());
        assert!(echoes(&mut connect(hub.exposed(0))));
    }
}

/// Established ones to a port of the loopback address, as the kernel lists them.
fn connections_to(port: u16) -> usize {
    let listed = std::fs::read_to_string("/proc/net/tcp").expect("the kernel lists them");
    let is_one = |line: &&str| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        fields[2] == format!("0100007F:{port:04X}") && fields[3] == "01"
    };
    listed.lines().skip(1).filter(is_one).count()
}

on_both_engines! {
    fn the_service_is_told_the_players_address(engine) {
        let hub = Hub::start(engine, &["game", "udp://game"], &[]);
        let (heard, hears) = mpsc::channel();
        let service = backend(move |mut stream| {
            let mut bytes = [0; 28 + 5];
            stream.read_exact(&mut bytes).expect("a header and a word");
            heard.send(bytes.to_vec()).expect("the test listens");
        });
        let arena = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        arena.set_read_timeout(Some(PATIENCE)).expect("it can be set");
        let udp = arena.local_addr().expect("it is bound").to_string();
        let _provider = hub.provide(engine, &["--proxy-protocol", "--tcp", &service.to_string(), "--udp", &udp]);
        let header = |player: SocketAddr, transport: u8| {
            let port = player.port().to_be_bytes();
            [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x21, 0x10 | transport, 0, 12, 127, 0, 0, 1, 127, 0, 0, 1], &port].concat()
        };
        let mut player = connect(hub.exposed(0));
        player.write_all(b"hello").expect("it is sent");
        let bytes = hears.recv_timeout(PATIENCE).expect("the service is reached");
        assert_eq!(bytes[..26], header(player.local_addr().expect("connected"), 1)[..]);
        assert_eq!(&bytes[28..], b"hello");
        let player = player_by_udp(hub.exposed(1));
        let mut buffer = [0; 128];
        let n = exchange(&player, b"hello", || arena.recv(&mut buffer).ok());
        assert_eq!(buffer[..26], header(player.local_addr().expect("connected"), 2)[..]);
        assert_eq!(&buffer[28..n], b"hello");
    }
}

fn player_by_udp(to: SocketAddr) -> UdpSocket {
    let player = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    player.connect(to).expect("it is an address");
    player.set_read_timeout(Some(std::time::Duration::from_millis(300))).expect("it can be set");
    player
}

/// Says it again until there is an answer: datagrams may be lost.
fn exchange(player: &UdpSocket, words: &[u8], mut answer: impl FnMut() -> Option<usize>) -> usize {
    let mut result = None;
    wait_until(
        || {
            player.send(words).expect("it is sent");
            result = answer();
            result.is_some()
        },
        || "nobody answers".into(),
    );
    result.expect("it was there")
}

/// A service by UDP that answers with the port it hears each player from.
fn arena() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("it is bound");
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let answer = [&from.port().to_be_bytes()[..], &buffer[..n]].concat();
            let _ = socket.send_to(&answer, from);
        }
    });
    address
}

on_both_engines! {
    fn players_by_udp_are_told_apart_and_get_their_own_answers(engine) {
        let hub = Hub::start(engine, &["udp://game:2"], &[]);
        let (other, service) = (arena().to_string(), arena().to_string());
        let _provider = hub.provide(engine, &["--udp", &other, "--udp", &service]);
        let mut ports = std::collections::BTreeSet::new();
        for number in 0..20u8 {
            let player = player_by_udp(hub.exposed(0));
            let words = vec![number; 1 + 70 * usize::from(number)];
            let mut buffer = [0; 65_536];
            let n = exchange(&player, &words, || player.recv(&mut buffer).ok());
            assert_eq!(buffer[2..n], words[..]);
            ports.insert([buffer[0], buffer[1]]);
        }
        assert_eq!(ports.len(), 20, "each has a socket of his own at the service");
    }
}

on_both_engines! {
    fn while_a_provider_is_gone_players_are_reset_and_once_it_is_back_they_play(engine) {
        let hub = Hub::start(engine, &["game", "udp://game"], &[]);
        assert_eq!(end_of(connect(hub.exposed(0))), Err(ErrorKind::ConnectionReset), "there was none yet");
        let flags = ["--tcp", &echo_backend().to_string(), "--udp", &arena().to_string()];
        let mut provider = hub.provide(engine, &flags);
        let mut game = connect(hub.exposed(0));
        assert!(echoes(&mut game));
        provider.kill(); // which nobody has told the rendezvous
        assert!(matches!(end_of(game), Ok(0) | Err(ErrorKind::ConnectionReset)));
        assert_eq!(end_of(connect(hub.exposed(0))), Err(ErrorKind::ConnectionReset));
        let player = player_by_udp(hub.exposed(1));
        player.send(b"nobody hears this").expect("it is sent");
        let _provider = hub.provide(engine, &flags);
        assert!(echoes(&mut connect(hub.exposed(0))));
        let mut buffer = [0; 128];
        let n = exchange(&player, b"hello", || player.recv(&mut buffer).ok());
        assert_eq!(&buffer[2..n], b"hello", "what was said to nobody is not heard later");
    }
}

on_both_engines! {
    fn two_hundred_players_at_once_play_and_leave_nothing(engine) {
        let (hub, provider) = echo(engine);
        let address = hub.exposed(0);
        let done = Arc::new(AtomicUsize::new(0));
        let players: Vec<_> = (0..200)
            .map(|_| {
                let done = done.clone();
                thread::spawn(move || {
                    let mut player = connect(address);
                    for _ in 0..20 {
                        assert!(echoes(&mut player));
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                })
            })
            .collect();
        for player in players {
            player.join().expect("he has played");
        }
        assert_eq!(done.load(Ordering::Relaxed), 200);
        let descriptors = |daemon: &Daemon| common::links(daemon.workers()[0]).len();
        // Some connections stay in reserve.
        wait_until(|| descriptors(&hub.0) < 100 && descriptors(&provider) < 100, || {
            format!("{} and {} descriptors", descriptors(&hub.0), descriptors(&provider))
        });
    }
}

on_both_engines! {
    fn a_hundred_mebibytes_arrive_as_they_were_in_both_directions(engine) {
        let (hub, _provider) = echo(engine);
        let mut player = connect(hub.exposed(0));
        let bytes = Random(7).bytes(1 << 20);
        let mut writer = player.try_clone().expect("it can be cloned");
        let sent = bytes.clone();
        let writing = thread::spawn(move || {
            (0..100).for_each(|_| writer.write_all(&sent).expect("it is sent"));
            writer.shutdown(Shutdown::Write).expect("it ends");
        });
        let mut heard = vec![0; bytes.len()];
        for piece in 0..100 {
            player.read_exact(&mut heard).expect("it arrives");
            assert!(heard == bytes, "piece {piece} is another");
        }
        assert_eq!(player.read(&mut [0; 1]).expect("it ends"), 0);
        writing.join().expect("all was sent");
    }
}

on_both_engines! {
    fn players_find_the_provider_from_whichever_worker_they_come_to(engine) {
        for workers in ["2", "4"] {
            let hub = Hub::start(engine, &["game", "udp://game"], &["--workers", workers]);
            let flags = ["--tcp", &echo_backend().to_string(), "--udp", &arena().to_string()];
            let provider = hub.provide(engine, &flags);
            for _ in 0..30 {
                assert!(echoes(&mut connect(hub.exposed(0))));
                let mut client = connect(hub.find("listening on ", 0));
                let line = format!("{}\nearly", token_with(SECRET, "provider:game"));
                client.write_all(line.as_bytes()).expect("it is sent");
                assert_eq!(read_answer(&mut client), "200");
                client.shutdown(Shutdown::Write).expect("it ends");
                assert_eq!(read_to_end(&mut client), b"early");
                assert_eq!(hub.ask("provider:other").1, "502");
            }
            let player = player_by_udp(hub.exposed(1));
            let mut buffer = [0; 128];
            let n = exchange(&player, b"hello", || player.recv(&mut buffer).ok());
            assert_eq!(&buffer[2..n], b"hello");
            provider.signal("TERM");
            hub.wait_until_gone();
            for _ in 0..10 {
                assert_eq!(end_of(connect(hub.exposed(0))), Err(ErrorKind::ConnectionReset));
            }
        }
    }
}

#[test]
fn a_connection_with_an_id_that_nobody_has_asked_for_ends_without_a_word() {
    let (hub, _provider) = echo("uring");
    for hello in [&[0; 18][..], &[0; 19], &[0, 0, 1]] {
        let mut stranger = connect(hub.rendezvous());
        stranger.write_all(hello).expect("it is sent");
        stranger.shutdown(Shutdown::Write).expect("it ends");
        let mut heard = Vec::new();
        let _ = stranger.read_to_end(&mut heard); // perhaps by a reset
        assert_eq!(heard, b"");
    }
    assert!(echoes(&mut connect(hub.exposed(0))));
}

#[test]
fn a_rendezvous_without_the_peers_secret_lets_no_player_in() {
    let hub = Hub::start("uring", &["game"], &[]);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let secret = directory.path().join("theirs");
    std::fs::write(&secret, format!("{SECRET}\n")).expect("it is written");
    let own = directory.path().join("own");
    std::fs::write(&own, "another secret, of the peers alone").expect("it is written");
    let paths = [secret.to_str().expect("text"), own.to_str().expect("text")];
    let service = echo_backend().to_string();
    let flags = ["--tcp", &service, "--via-secret-file", paths[0], "--secret-file", paths[1]];
    let _provider = hub.provide("uring", &flags);
    assert_eq!(hub.ask("provider:game").1, "502");
    assert_eq!(end_of(connect(hub.exposed(0))), Err(ErrorKind::ConnectionReset));
}
