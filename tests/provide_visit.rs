//! A service at one end of a tunnel, players at the other: real daemons, real sockets.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::tunnel::*;
use common::{
    PATIENCE, Random, backend, closed_port, connect, echo_backend, echoes, ends_half_by_half, program, read_to_end,
    reset, signal, wait_until, watch,
};

on_both_engines! {
    fn a_game_over_tcp_goes_through_and_each_half_ends_by_itself(engine) {
        let pair = Pair::start(engine, &["--tcp", &echo_backend().to_string()]);
        ends_half_by_half(connect(pair.visitor.tcp()));
    }
}

on_both_engines! {
    fn a_service_that_ends_its_half_still_hears_the_player(engine) {
        let (heard, hears) = std::sync::mpsc::channel();
        let service = backend(move |mut stream| {
            stream.write_all(b"goodbye").expect("it is sent");
            stream.shutdown(Shutdown::Write).expect("it ends");
            heard.send(read_to_end(&mut stream)).expect("the test listens");
        });
        let pair = Pair::start(engine, &["--tcp", &service.to_string()]);
        let mut player = connect(pair.visitor.tcp());
        assert_eq!(read_to_end(&mut player), b"goodbye");
        player.write_all(b"still here").expect("it is sent");
        drop(player);
        assert_eq!(hears.recv_timeout(PATIENCE).expect("the service ends"), b"still here");
    }
}

on_both_engines! {
    fn a_reset_passes_in_both_directions(engine) {
        let (ended, ends) = std::sync::mpsc::channel();
        let service = backend(move |mut stream| {
            let mut first = [0];
            match stream.read(&mut first) {
                Ok(1) if first == *b"r" => reset(stream),
                Ok(_) => {
                    stream.write_all(&first).expect("it is sent");
                    ended.send(stream.read(&mut first).map_err(|error| error.kind())).expect("the test listens");
                }
                Err(error) => panic!("the first byte: {error}"),
            }
        });
        let pair = Pair::start(engine, &["--tcp", &service.to_string()]);
        let mut player = connect(pair.visitor.tcp());
        player.write_all(b"r").expect("it is sent");
        let error = player.read(&mut [0]).expect_err("the service has reset it");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

        let mut player = connect(pair.visitor.tcp());
        player.write_all(b"x").expect("it is sent");
        player.read_exact(&mut [0]).expect("the service is there");
        reset(player);
        let seen = ends.recv_timeout(PATIENCE).expect("the service notices");
        assert_eq!(seen, Err(std::io::ErrorKind::ConnectionReset));
    }
}

on_both_engines! {
    fn a_service_that_refuses_is_seen_as_a_reset(engine) {
        let (_bound, closed) = closed_port();
        let pair = Pair::start(engine, &["--tcp", &closed.to_string()]);
        let error = connect(pair.visitor.tcp()).read(&mut [0]).expect_err("nobody is there");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

on_both_engines! {
    fn each_port_leads_where_the_provider_says(engine) {
        let say = |word: &'static str| backend(move |mut stream| drop(stream.write_all(word.as_bytes()))).to_string();
        let (first, second) = (say("first"), say("second"));
        let pair = Pair::start(engine, &["--tcp", &first, "--tcp", &second]);
        assert_eq!(read_to_end(&mut connect(pair.visitor.door("tcp", 0))), b"first");
        assert_eq!(read_to_end(&mut connect(pair.visitor.door("tcp", 1))), b"second");
    }
}

on_both_engines! {
    fn a_port_that_the_provider_does_not_have_is_seen_as_a_reset(engine) {
        let provider = Daemon::provide(engine, &["--tcp", &echo_backend().to_string()]);
        let visitor = Daemon::visit(engine, provider.udp(), &["--tcp", "127.0.0.1:0", "--tcp", "127.0.0.1:0"]);
        let error = connect(visitor.door("tcp", 1)).read(&mut [0]).expect_err("nobody is there");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert!(echoes(&mut connect(visitor.tcp())));
    }
}

on_both_engines! {
    fn a_hundred_games_at_once_and_one_that_nobody_reads(engine) {
        let pair = Pair::start(engine, &["--tcp", &echo_backend().to_string()]);
        let mut stalled = connect(pair.visitor.tcp());
        stalled.set_write_timeout(Some(Duration::from_millis(300))).expect("a time-out can be set");
        while stalled.write(&[7; 1 << 16]).is_ok() {} // until every buffer on the way there and back is full
        let mut players: Vec<TcpStream> = (0..100).map(|_| connect(pair.visitor.tcp())).collect();
        for _ in 0..5 {
            assert!(players.iter_mut().all(echoes));
        }
        drop(players);
        let mut late = connect(pair.visitor.tcp());
        assert!(echoes(&mut late));
    }
}

on_both_engines! {
    fn twenty_megabytes_each_way_arrive_as_they_were(engine) {
        let mut random = Random::seeded("twenty_megabytes_each_way_arrive_as_they_were");
        let there = Arc::new(random.bytes(20 << 20));
        let back = Arc::new(random.bytes(20 << 20));
        let (heard, hears) = std::sync::mpsc::channel();
        let answer = back.clone();
        let service = backend(move |stream| heard.send(exchange(stream, &answer)).expect("the test listens"));
        let pair = Pair::start(engine, &["--tcp", &service.to_string()]);
        let got = exchange(connect(pair.visitor.tcp()), &there);
        assert!(got == *back, "what came back differs: {} bytes", got.len());
        let got = hears.recv_timeout(PATIENCE).expect("the service ends");
        assert!(got == *there, "what went there differs: {} bytes", got.len());
    }
}

on_both_engines! {
    fn datagrams_keep_their_borders_and_each_player_gets_his_own(engine) {
        let pair = Pair::start(engine, &["--udp", &udp_echo().to_string()]);
        let [one, other] = [(); 2].map(|()| udp_socket());
        assert_eq!(ask_udp(&one, pair.visitor.udp(), b"one"), b"one");
        assert_eq!(ask_udp(&other, pair.visitor.udp(), b"other"), b"other");
        let mut random = Random::seeded("datagrams_keep_their_borders_and_each_player_gets_his_own");
        for length in [0, 1, 64, 1_200, 1_472, 1_473, 9_000, 60_000] {
            for socket in [&one, &other] {
                let question = random.bytes(length);
                // An earlier answer may come late, when it was asked for twice.
                wait_until(|| ask_udp(socket, pair.visitor.udp(), &question) == question, || format!("{length} bytes"));
            }
        }
    }
}

on_both_engines! {
    fn the_service_learns_the_players_address_by_the_proxy_protocol(engine) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (tcp, service) = (listener.local_addr().expect("it is bound"), udp_socket());
        let udp = service.local_addr().expect("it is bound");
        let pair =
            Pair::start(engine, &["--tcp", &tcp.to_string(), "--udp", &udp.to_string(), "--proxy-protocol"]);

        let mut player = connect(pair.visitor.tcp());
        player.write_all(b"hello").expect("it is sent");
        let (mut at_service, _) = listener.accept().expect("it is connected to");
        let mut heard = [0; 33];
        at_service.read_exact(&mut heard).expect("header and hello arrive");
        assert_eq!(heard, *[&header(1, player.local_addr().expect("it is bound"), tcp)[..], b"hello"].concat());

        let player = udp_socket();
        for _ in 0..2 {
            player.send_to(b"hello", pair.visitor.udp()).expect("it is sent");
            let mut heard = [0; 100];
            let (n, from) = service.recv_from(&mut heard).expect("it arrives");
            let expected = [&header(2, player.local_addr().expect("it is bound"), udp)[..], b"hello"].concat();
            assert_eq!(heard[..n], *expected);
            service.send_to(b"answer", from).expect("it is sent");
            let (n, _) = player.recv_from(&mut heard).expect("it arrives");
            assert_eq!(&heard[..n], b"answer", "answers have no header");
        }
    }
}

on_both_engines! {
    fn a_visitor_with_another_secret_is_never_answered(engine) {
        let provider = Daemon::provide(engine, &["--tcp", &echo_backend().to_string()]);
        let wire = Wire::to(provider.udp());
        let visitor = Daemon::visit(engine, wire.address, &["--tcp", "127.0.0.1:0", "--secret", "not that secret at all"]);
        let mut player = connect(visitor.tcp());
        wait_until(|| wire.sent() >= 3, || format!("the visitor asked {} times", wire.sent()));
        let error = player.read(&mut [0]).expect_err("there is no tunnel");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(wire.answered(), 0);
        assert!(!provider.log().contains("peer reached") && !visitor.log().contains("peer reached"));
        let told = visitor.log().lines().filter(|line| line.contains("WARN") && line.contains("does not answer")).count();
        assert_eq!(told, 1, "{}", visitor.log());
    }
}

#[test]
fn a_stranger_is_not_answered_whatever_he_says() {
    let provider = Daemon::provide("auto", &["--tcp", &echo_backend().to_string()]);
    let wire = Wire::to(provider.udp());
    let visitor = Daemon::visit("auto", wire.address, &["--tcp", "127.0.0.1:0"]);
    assert!(echoes(&mut connect(visitor.tcp())));
    let recorded = wire.recorded();
    let (stranger, mut random) = (udp_socket(), Random::seeded("a_stranger_is_not_answered_whatever_he_says"));
    for datagram in &recorded[1..] {
        let mut bent = datagram.clone();
        bent[random.below(datagram.len() as u64) as usize] ^= 1 << random.below(8);
        for lie in [datagram, &bent, &random.bytes(datagram.len())] {
            stranger.send_to(lie, provider.udp()).expect("it is sent");
        }
    }
    stranger.set_read_timeout(Some(Duration::from_millis(500))).expect("a time-out can be set");
    let answer = stranger.recv_from(&mut [0; 2000]).map(|(n, _)| n);
    assert!(answer.is_err(), "{answer:?} bytes came back");
    assert!(echoes(&mut connect(visitor.tcp())), "those who know the secret do not notice");
}

on_both_engines! {
    fn players_who_come_before_the_provider_wait_for_it(engine) {
        let place = udp_socket();
        let address = place.local_addr().expect("it is bound");
        drop(place);
        let visitor = Daemon::visit(engine, address, &["--tcp", "127.0.0.1:0"]);
        let mut player = connect(visitor.tcp());
        player.write_all(b"early").expect("it is sent");
        let _provider =
            Daemon::provide(engine, &["--tcp", &echo_backend().to_string(), "--listen-udp", &address.to_string()]);
        let mut heard = [0; 5];
        player.read_exact(&mut heard).expect("it comes back in the end");
        assert_eq!(&heard, b"early");
    }
}

on_both_engines! {
    fn a_provider_that_was_killed_and_started_again_is_found_again(engine) {
        let service = echo_backend().to_string();
        let mut pair = Pair::start(engine, &["--tcp", &service]);
        let mut game = connect(pair.visitor.tcp());
        assert!(echoes(&mut game));
        let address = pair.provider.udp().to_string();
        pair.provider.kill();
        wait_until(|| UdpSocket::bind(&address).is_ok(), || format!("{address} is still taken"));
        pair.provider = Daemon::provide(engine, &["--tcp", &service, "--listen-udp", &address]);
        wait_until(|| plays(&pair.visitor), || pair.visitor.log());
        let error = game.read(&mut [0]).expect_err("that game is over");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

on_both_engines! {
    fn a_crashed_worker_is_replaced_at_either_end(engine) {
        let pair = Pair::start(engine, &["--tcp", &echo_backend().to_string()]);
        for daemon in [&pair.provider, &pair.visitor] {
            assert!(echoes(&mut connect(pair.visitor.tcp())));
            let crashed = daemon.workers()[0];
            signal(crashed, "KILL");
            wait_until(|| plays(&pair.visitor), || pair.visitor.log());
            assert_ne!(daemon.workers(), [crashed]);
        }
    }
}

on_both_engines! {
    fn term_lets_running_games_end_and_a_second_one_does_not(engine) {
        for side in ["visitor", "provider"] {
            let mut pair = Pair::start(engine, &["--tcp", &echo_backend().to_string()]);
            let mut game = connect(pair.visitor.tcp());
            assert!(echoes(&mut game));
            let address = pair.visitor.tcp();
            let daemon = if side == "visitor" { &mut pair.visitor } else { &mut pair.provider };
            daemon.signal("TERM");
            daemon.wait_for_log("draining");
            if side == "visitor" {
                wait_until(|| TcpStream::connect(address).is_err(), || "the door is still open".into());
            } else {
                wait_until(|| connect(address).read(&mut [0]).is_err(), || "it still lets somebody in".into());
            }
            assert!(echoes(&mut game) && daemon.running(), "{side}: the game goes on");
            drop(game);
            assert_eq!(daemon.wait().code(), Some(0), "{side}");

            let mut pair = Pair::start(engine, &["--tcp", &echo_backend().to_string()]);
            let mut game = connect(pair.visitor.tcp());
            assert!(echoes(&mut game));
            let daemon = if side == "visitor" { &mut pair.visitor } else { &mut pair.provider };
            daemon.signal("TERM");
            daemon.wait_for_log("draining");
            daemon.signal("TERM");
            assert_eq!(daemon.wait().code(), Some(0), "{side}");
            let error = game.read(&mut [0]).expect_err("it was cut");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{side}");
        }
    }
}

on_both_engines! {
    fn a_daemon_that_drains_stays_until_the_other_end_has_read_the_last_of_a_game(engine) {
        // At 8 Mbit/s two MiB are on their way for two seconds after both ends of the game are closed here.
        let last_words = Arc::new(Random::seeded("a_daemon_that_drains_stays").bytes(2 << 20));
        for side in ["visitor", "provider"] {
            let (heard, hears) = std::sync::mpsc::channel();
            let words = last_words.clone();
            let service = backend(move |mut stream| {
                if side == "visitor" {
                    stream.shutdown(Shutdown::Write).expect("it ends");
                    heard.send(read_to_end(&mut stream)).expect("the test listens");
                } else {
                    read_to_end(&mut stream);
                    stream.write_all(&words).expect("it is sent");
                }
            });
            let slow = ["--rate", "8M"];
            let provider = Daemon::provide(engine, &[&["--tcp", &service.to_string()], &slow[..]].concat());
            let visitor = Daemon::visit(engine, provider.udp(), &[&["--tcp", "127.0.0.1:0"], &slow[..]].concat());
            let mut player = connect(visitor.tcp());
            let mut daemon = if side == "visitor" { visitor } else { provider };
            let got = if side == "visitor" {
                assert_eq!(read_to_end(&mut player), b"", "the service has nothing to say");
                player.write_all(&last_words).expect("it is sent");
                daemon.signal("TERM");
                daemon.wait_for_log("draining");
                player.shutdown(Shutdown::Write).expect("it ends");
                hears.recv_timeout(PATIENCE).expect("the service hears the end")
            } else {
                player.shutdown(Shutdown::Write).expect("it ends");
                player.read_exact(&mut [0]).expect("the answer begins");
                daemon.signal("TERM");
                let rest = read_to_end(&mut player);
                [&last_words[..1], &rest].concat()
            };
            assert!(got == *last_words, "{side}: {} bytes", got.len());
            assert_eq!(daemon.wait().code(), Some(0), "{side}");
        }
    }
}

#[test]
fn a_visitor_learns_at_once_that_the_provider_leaves_and_finds_the_next_one() {
    let service = echo_backend().to_string();
    let mut pair = Pair::start("auto", &["--tcp", &service]);
    assert!(plays(&pair.visitor));
    let address = pair.provider.udp().to_string();
    pair.provider.signal("TERM");
    pair.provider.wait();
    pair.visitor.wait_for_log("the peer is lost");
    pair.provider = Daemon::provide("auto", &["--tcp", &service, "--listen-udp", &address]);
    wait_until(|| plays(&pair.visitor), || pair.visitor.log());
}

#[test]
fn several_services_stand_in_one_file() {
    let (game, chat) = (echo_backend(), udp_echo());
    let provide = format!(
        "secret-file = \"secret\"\nlisten-udp = \"127.0.0.1:0\"\n\
         [[provide]]\nname = \"game\"\ntcp = \"{game}\"\n[[provide]]\nname = \"chat\"\nudp = [\"{chat}\"]\n"
    );
    let provider = from_file("provide", &provide);
    let peer = provider.udp();
    let visit = format!(
        "secret-file = \"secret\"\npeer = \"{peer}\"\n\
         [[visit]]\nname = \"chat\"\nudp = \"127.0.0.1:0\"\n[[visit]]\nname = \"game\"\ntcp = \"127.0.0.1:0\"\npeer = \"localhost:{}\"\n",
        peer.port()
    );
    let visitor = from_file("visit", &visit);
    assert_eq!(ask_udp(&udp_socket(), visitor.udp(), b"hello"), b"hello");
    assert!(echoes(&mut connect(visitor.tcp())));
    assert!(visitor.said().contains("for chat") && provider.said().contains("providing game: tcp 127.0.0.1:"));
}

#[test]
fn a_new_secret_is_in_force_after_hup_and_running_games_go_on() {
    let service = echo_backend().to_string();
    let pair = Pair::start("auto", &["--tcp", &service]);
    let mut game = connect(pair.visitor.tcp());
    assert!(echoes(&mut game));
    std::fs::write(secret_of(&pair.provider), "another secret, as long as the first\n").expect("it is written");
    pair.provider.signal("HUP");
    pair.provider.wait_for_log("new configuration in force");
    assert!(echoes(&mut game));
    let late = Daemon::visit(
        "auto",
        pair.provider.udp(),
        &["--tcp", "127.0.0.1:0", "--secret", "another secret, as long as the first"],
    );
    assert!(plays(&late));
    let arguments = std::fs::read(format!("/proc/{}/cmdline", late.pid())).expect("it lives");
    assert!(!String::from_utf8_lossy(&arguments).contains("another secret"), "ps shows the secret");
}

#[test]
fn an_idle_pair_sleeps() {
    let pair = Pair::start("auto", &["--tcp", &echo_backend().to_string()]);
    let mut game = connect(pair.visitor.tcp());
    assert!(echoes(&mut game));
    watch(Duration::from_secs(2)); // the first seconds find out what the path carries
    for daemon in [&pair.provider, &pair.visitor] {
        let share = common::cpu_share(daemon.workers()[0], Duration::from_secs(3));
        assert!(share < 0.02, "an idle worker uses {share} of a core");
    }
}

/// A new player is connected and gets an echo.
fn plays(visitor: &Daemon) -> bool {
    TcpStream::connect(visitor.tcp()).is_ok_and(|mut player| {
        player.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        echoes(&mut player)
    })
}

/// Sends all of `bytes` and the end, and reads to the end meanwhile.
fn exchange(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut writer = stream.try_clone().expect("a second handle");
    thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(bytes).expect("it is sent");
            writer.shutdown(Shutdown::Write).expect("it ends");
        });
        read_to_end(&mut stream)
    })
}

/// The 28 bytes of the PROXY protocol, version 2, for IPv4: `transport` is 1 for a stream and 2 for datagrams.
fn header(transport: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x21, 0x10 | transport, 0, 12, 127, 0, 0, 1, 127, 0, 0, 1]);
    header.extend(from.port().to_be_bytes());
    header.extend(to.port().to_be_bytes());
    header
}

fn from_file(verb: &str, text: &str) -> Daemon {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("gateway.toml");
    std::fs::write(&path, text).expect("it is written");
    Daemon::start(program(), &[verb, "--config", path.to_str().expect("a plain path")])
}

/// A wire between a visitor and a provider that counts what passes.
struct Wire {
    address: SocketAddr,
    sent: Arc<std::sync::Mutex<Vec<Vec<u8>>>>,
    answered: Arc<AtomicUsize>,
}

impl Wire {
    fn to(provider: SocketAddr) -> Self {
        let outer = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let inner = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        inner.connect(provider).expect("it has an address");
        let wire =
            Self { address: outer.local_addr().expect("it is bound"), sent: Arc::default(), answered: Arc::default() };
        let (sent, answered) = (wire.sent.clone(), wire.answered.clone());
        let visitor = Arc::new(std::sync::Mutex::new(None));
        let (outer_too, inner_too, visitor_too) =
            (outer.try_clone().expect("a second handle"), inner.try_clone().expect("a second handle"), visitor.clone());
        thread::spawn(move || {
            let mut buffer = [0; 2000];
            while let Ok((n, from)) = outer.recv_from(&mut buffer) {
                *visitor.lock().expect("not poisoned") = Some(from);
                sent.lock().expect("not poisoned").push(buffer[..n].to_vec());
                let _ = inner.send(&buffer[..n]);
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 2000];
            while let Ok(n) = inner_too.recv(&mut buffer) {
                answered.fetch_add(1, Ordering::Relaxed);
                let to = visitor_too.lock().expect("not poisoned").expect("somebody has asked");
                let _ = outer_too.send_to(&buffer[..n], to);
            }
        });
        wire
    }

    fn sent(&self) -> usize {
        self.sent.lock().expect("not poisoned").len()
    }

    fn recorded(&self) -> Vec<Vec<u8>> {
        self.sent.lock().expect("not poisoned").clone()
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }
}
