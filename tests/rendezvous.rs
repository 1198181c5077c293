//! The rendezvous as a real daemon: peers of one key find each other there, others do not, and strangers hear nothing.
mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::meeting::*;
use common::*;
use gateway::proto::rendezvous::SERVICE;
use gateway::proto::rendezvous::client::Event;
use gateway::proto::rendezvous::wire::{EndReason, Flow};
use gateway::proto::tunnel::{CloseReason, Endpoint, Key, Settings};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A provider of the game and a visitor with a flow to it.
fn paired(mut peers: [Peer; 2]) -> ([Peer; 2], Flow) {
    peers[0].client.publish(name("game"));
    let flow = peers[1].client.connect(name("game")).expect("far from the limit");
    run_until(&mut peers, |[provider, visitor]| {
        provider.has_heard(Event::Registered(name("game"))) && visitor.has_heard(Event::Connected(flow))
    });
    (peers, flow)
}

/// A datagram through the rendezvous and its echo.
fn echo(peers: &mut [Peer; 2], flow: Flow, bytes: &[u8]) {
    let before = (peers[0].datagrams.len(), peers[1].datagrams.len());
    peers[1].send(flow, bytes);
    run_until(peers, |[provider, _]| provider.datagrams.len() > before.0);
    let (theirs, heard) = peers[0].datagrams[before.0].clone();
    assert_eq!(heard, bytes);
    peers[0].send(theirs, &heard);
    run_until(peers, |[_, visitor]| visitor.datagrams.len() > before.1);
    assert_eq!(peers[1].datagrams[before.1], (flow, bytes.to_vec()));
}

on_both_engines! {
    fn two_peers_reach_each_other_by_udp_and_by_tcp_with_any_number_of_workers(engine) {
        for workers in ["1", "2", "4"] {
            let rendezvous = rendezvous(engine, &["--workers", workers]);
            let at = address(&rendezvous);
            for peers in [[Peer::udp(at), Peer::udp(at)], [Peer::tcp(at), Peer::udp(at)], [Peer::tcp(at), Peer::tcp(at)]] {
                let (mut peers, flow) = paired(peers);
                for length in [0, 1, 1_200, 1_400] {
                    echo(&mut peers, flow, &vec![7; length]);
                }
            }
        }
    }
}

on_both_engines! {
    fn a_peer_is_told_its_address_as_the_rendezvous_sees_it(engine) {
        let rendezvous = rendezvous(engine, &[]);
        let at = address(&rendezvous);
        let is_told = |peer: &Peer, ours| peer.heard.iter().any(|event| matches!(event, Event::Address(_, seen) if *seen == ours));
        let mut peers = [Peer::udp(at), Peer::tcp(at)];
        let (Wire::Udp(udp), Wire::Tcp(tcp, _)) = (&peers[0].wire, &peers[1].wire) else { unreachable!() };
        let ours = [udp.local_addr(), tcp.local_addr()].map(|address| address.expect("it is bound"));
        run_until(&mut peers, |[udp, tcp]| is_told(udp, ours[0]) && is_told(tcp, ours[1]));
    }
}

on_both_engines! {
    fn both_ports_tell_a_peer_from_which_address_its_question_came(engine) {
        for workers in ["1", "2", "4"] {
            let rendezvous = rendezvous(engine, &["--workers", workers]);
            let at = address(&rendezvous);
            let next = SocketAddr::new(at.ip(), at.port() + 1);
            let (mut peers, flow) = paired([Peer::udp(at), Peer::tcp(at)]);
            for peer in &mut peers {
                let fresh = UdpSocket::bind("127.0.0.1:0").expect("a free port");
                fresh.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
                let ours = fresh.local_addr().expect("it is bound");
                for (number, to) in (1..).zip([at, next, next, at]) {
                    let now = peer.now();
                    let (mut question, mut answer) = (Vec::new(), [0; 2_048]);
                    peer.tunnel().observe(now, [number; 8], &mut question);
                    fresh.send_to(&question, to).expect("it is sent");
                    let (n, from) = fresh.recv_from(&mut answer).expect("it is answered");
                    assert!(from == to && n <= question.len(), "{n} bytes from {from}");
                    peer.take(from, &mut answer[..n]);
                    assert!(peer.observed.contains(&([number; 8], ours)), "{:?}", peer.observed);
                }
            }
            // What was asked from elsewhere has moved nobody.
            echo(&mut peers, flow, b"as before");
        }
    }
}

on_both_engines! {
    fn either_port_answers_a_peer_from_the_other_when_it_is_asked_to(engine) {
        for workers in ["1", "2", "4"] {
            let rendezvous = rendezvous(engine, &["--workers", workers]);
            let at = address(&rendezvous);
            let next = SocketAddr::new(at.ip(), at.port() + 1);
            let (mut peers, flow) = paired([Peer::udp(at), Peer::tcp(at)]);
            for peer in &mut peers {
                for (asked, other) in [(at, next), (next, at)] {
                    let fresh = UdpSocket::bind("127.0.0.1:0").expect("a free port");
                    fresh.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
                    let now = peer.now();
                    let mut question = Vec::new();
                    peer.tunnel().observe_elsewhere(now, *b"not here", *b"but here", &mut question);
                    fresh.send_to(&question, asked).expect("it is sent");
                    let mut answers = [(); 2].map(|()| {
                        let mut answer = [0; 2_048];
                        let (n, from) = fresh.recv_from(&mut answer).expect("it is answered");
                        (from, answer[..n].to_vec())
                    });
                    let length: usize = answers.iter().map(|(_, answer)| answer.len()).sum();
                    assert!(length <= question.len(), "{length} bytes for {}", question.len());
                    answers.sort_by_key(|(from, _)| *from == other);
                    let ours = fresh.local_addr().expect("it is bound");
                    for ((from, answer), (source, token)) in answers.iter_mut().zip([(asked, b"but here"), (other, b"not here")]) {
                        assert_eq!(*from, source);
                        peer.observed.clear();
                        peer.take(*from, answer);
                        assert_eq!(peer.observed, [(*token, ours)]);
                    }
                }
            }
            echo(&mut peers, flow, b"as before");
        }
    }
}

on_both_engines! {
    fn the_same_key_takes_the_place_of_a_provider_at_once_and_the_visitor_is_led_there(engine) {
        let rendezvous = rendezvous(engine, &["--workers", "2"]);
        let at = address(&rendezvous);
        let ([first, visitor], flow) = paired([Peer::udp(at), Peer::udp(at)]);
        let mut second = Peer::tcp(at);
        second.client.publish(name("game"));
        let mut peers = [first, visitor, second];
        run_until(&mut peers, |[first, visitor, second]| {
            first.has_heard(Event::Displaced(name("game")))
                && second.has_heard(Event::Registered(name("game")))
                && visitor.heard.iter().filter(|event| **event == Event::Connected(flow)).count() == 2
        });
        let [_, visitor, second] = peers;
        echo(&mut [second, visitor], flow, b"to the second");
    }
}

on_both_engines! {
    fn another_key_can_neither_displace_nor_reach_and_hears_what_it_hears_of_unknown_names(engine) {
        let other = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(other.path().join("other"), "another secret, long enough\n").expect("it is written");
        let other = other.path().join("other");
        for workers in ["1", "2", "4"] {
            let flags = ["--workers", workers, "--secret-file", "secret", "--secret-file", other.to_str().expect("text")];
            let rendezvous = rendezvous(engine, &flags);
            let at = address(&rendezvous);
            let (peers, flow) = paired([Peer::udp(at), Peer::udp(at)]);
            let mut stranger = Peer::with(at, "another secret, long enough", udp_wire());
            stranger.client.publish(name("game"));
            let flows = ["game", "nobody"].map(|of| stranger.client.connect(name(of)).expect("far from the limit"));
            let mut all = peers.into_iter().chain([stranger]).collect::<Vec<_>>().try_into().unwrap_or_else(|_| unreachable!());
            // Names belong to the keys of one worker; in another worker the same name is another's.
            run_until(&mut all, |[_, _, stranger]: &mut [Peer; 3]| {
                let has_answer = stranger.has_heard(Event::Taken(name("game"))) || stranger.has_heard(Event::Registered(name("game")));
                has_answer && flows.iter().all(|flow| stranger.has_heard(Event::Waiting(*flow)) || stranger.has_heard(Event::Connected(*flow)))
            });
            let [provider, visitor, mut stranger] = all;
            assert!(!provider.has_heard(Event::Displaced(name("game"))));
            assert!(stranger.has_heard(Event::Waiting(flows[0])) && stranger.has_heard(Event::Waiting(flows[1])));
            stranger.send(flow, b"may I?");
            let mut peers = [provider, visitor];
            echo(&mut peers, flow, b"undisturbed");
            assert!(peers[0].datagrams.iter().all(|(_, bytes)| bytes != b"may I?"));
        }
    }
}

on_both_engines! {
    fn a_visitor_waits_for_a_provider_and_hears_when_it_is_gone(engine) {
        let rendezvous = rendezvous(engine, &[]);
        let at = address(&rendezvous);
        let mut peers = [Peer::udp(at), Peer::udp(at)];
        let flow = peers[1].client.connect(name("game")).expect("far from the limit");
        run_until(&mut peers, |[_, visitor]| visitor.has_heard(Event::Waiting(flow)));
        peers[0].client.publish(name("game"));
        run_until(&mut peers, |[_, visitor]| visitor.has_heard(Event::Connected(flow)));
        echo(&mut peers, flow, b"hello");
        peers[0].tunnel().close(CloseReason::Leaving);
        run_until(&mut peers, |[_, visitor]| visitor.heard.last() == Some(&Event::Waiting(flow)));
        // The provider comes back and finds its place.
        let [_, visitor] = peers;
        let mut provider = Peer::udp(at);
        provider.client.publish(name("game"));
        let mut peers = [provider, visitor];
        run_until(&mut peers, |[_, visitor]| visitor.heard.last() == Some(&Event::Connected(flow)));
        echo(&mut peers, flow, b"again");
        // And the visitor hangs up.
        let theirs = peers[0].datagrams.last().expect("it has heard").0;
        peers[1].client.hang_up(flow);
        run_until(&mut peers, |[provider, _]| provider.has_heard(Event::Ended(theirs, EndReason::HungUp)));
    }
}

on_both_engines! {
    fn peers_come_back_by_themselves_to_a_rendezvous_that_was_restarted(engine) {
        let port = free_port_pair();
        let at = format!("127.0.0.1:{port}");
        for workers in ["1", "2"] {
            let flags = ["--rendezvous", &at, "--workers", workers];
            let mut first = rendezvous(engine, &flags);
            let (mut peers, flow) = paired([Peer::udp(address(&first)), Peer::udp(address(&first))]);
            first.signal("TERM");
            run_until(&mut peers, |peers| peers.iter().all(|peer| peer.lost == 1));
            first.wait();
            let _second = rendezvous(engine, &flags);
            run_until(&mut peers, |[_, visitor]| {
                visitor.heard.iter().filter(|event| **event == Event::Connected(flow)).count() == 2
            });
            echo(&mut peers, flow, b"still here");
        }
    }
}

on_both_engines! {
    fn a_rendezvous_that_drains_waits_for_the_games_that_go_through_it_and_for_nobody_else(engine) {
        let mut rendezvous = rendezvous(engine, &[]);
        let at = address(&rendezvous);
        let (mut peers, flow) = paired([Peer::udp(at), Peer::tcp(at)]);
        let play = |peers: &mut [Peer; 2]| (0..40).for_each(|_| echo(peers, flow, b"a move"));
        play(&mut peers);
        rendezvous.signal("TERM");
        rendezvous.wait_for_log("draining");
        play(&mut peers);
        assert!(rendezvous.running());
        // They keep their ways open, as peers do, and play no more.
        run_until(&mut peers, |peers| peers.iter().all(|peer| peer.lost == 1));
        assert!(rendezvous.wait().success());
    }
}

/// How soon they come back, the client's own tests say; here it is shown, and that nothing of it stays. A thousand handshakes in a
/// quarter of a minute are too many for a program that is not optimized: with `--release`, `PROVIDERS=1000` shows them.
#[test]
fn many_providers_come_back_after_a_power_cut_and_leave_nothing_behind() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("it can be asked for");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(4_096).max(soft), hard).expect("it can be raised");
    let at = format!("127.0.0.1:{}", free_port_pair());
    // As many as it takes: each may have 64 services.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let secrets: Vec<_> = (0..16).map(|number| format!("secret number {number} long enough")).collect();
    let files = secrets.iter().map(|secret| {
        let file = directory.path().join(secret);
        std::fs::write(&file, secret).expect("it is written");
        format!("--secret-file={}", file.display())
    });
    let files: Vec<_> = files.collect();
    let count = std::env::var("PROVIDERS").map_or(100, |text| text.parse().expect("a number"));
    let is_registered = |peer: &Peer| matches!(peer.heard.last(), Some(Event::Registered(_)));
    for workers in ["1", "2", "4"] {
        let mut flags = vec!["--rendezvous", &at, "--workers", workers];
        flags.extend(files.iter().map(String::as_str));
        let mut first = rendezvous("uring", &flags);
        let descriptors = |of: &tunnel::Daemon| of.workers().into_iter().map(|pid| links(pid).len()).sum::<usize>();
        let before = descriptors(&first);
        let mut peers = Vec::new();
        for number in 0..count {
            let wire = tcp_wire(address(&first));
            let mut peer = Peer::with(address(&first), &secrets[number % 16], wire);
            peer.client.publish(name(&format!("game{number}")));
            peers.push(peer);
            if number % 50 == 49 {
                run_crowd_until(&mut peers, |peers| peers.iter().all(is_registered));
            }
        }
        first.kill();
        run_crowd_until(&mut peers, |peers| peers.iter().all(|peer| !peer.client.is_there()));
        let second = rendezvous("uring", &flags);
        let (started, mut seconds) = (Instant::now(), Vec::new());
        run_crowd_until(&mut peers, |peers| {
            let back = peers.iter().filter(|peer| peer.client.is_there()).count();
            seconds.resize(started.elapsed().as_secs() as usize + 1, seconds.last().copied().unwrap_or(0));
            *seconds.last_mut().expect("one was added") = back;
            back == peers.len()
        });
        let in_seconds: Vec<_> =
            seconds.iter().scan(0, |last, back| Some(back - std::mem::replace(last, *back))).collect();
        println!("{workers} workers: back in each second: {in_seconds:?}");
        run_crowd_until(&mut peers, |peers| peers.iter().all(is_registered));
        drop(peers);
        wait_until(|| descriptors(&second) <= before, || format!("{} descriptors, not {before}", descriptors(&second)));
    }
}

/// Two that follow each other and were given to nobody else here.
fn free_port_pair() -> u16 {
    loop {
        let (first, second) = (free_port(), free_port());
        if second == first + 1 {
            return first;
        }
    }
}

#[test]
fn without_a_strong_secret_it_does_not_start_and_says_why() {
    for (flags, words) in [
        (&["run", "--rendezvous", "127.0.0.1:0"][..], "no secret is given"),
        (&["run", "--rendezvous", "127.0.0.1:0", "--secret", "short"], "fewer than 16 bytes"),
        (&["run", "--relay-rate", "20M", "--secret", "long enough for a secret"], "without a rendezvous"),
        (&["run", "--rendezvous", "127.0.0.1:0", "--reuse", "--secret", "long enough for a secret"], "--workers"),
    ] {
        let output = output(flags);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{flags:?}: {said}");
        assert!(said.contains(words) && said.contains("hint: "), "{flags:?}: {said}");
    }
}

on_both_engines! {
    fn a_gateway_and_a_rendezvous_run_side_by_side_in_one_worker(engine) {
        let rendezvous = rendezvous(engine, &["--addr", "127.0.0.1:0"]);
        let find = || rendezvous.said().lines().find_map(|line| line.strip_prefix("listening on ")?.parse().ok());
        wait_until(|| find().is_some(), || rendezvous.said());
        let target = echo_backend().to_string();
        let secret = rendezvous.directory.path().join("secret");
        let token = output(&["encrypt", "--secret-file", secret.to_str().expect("text"), &target]).stdout;
        let (mut peers, flow) = paired([Peer::udp(address(&rendezvous)), Peer::tcp(address(&rendezvous))]);
        let mut client = connect(find().expect("it was there"));
        client.write_all(&token).expect("it is sent");
        assert_eq!(read_answer(&mut client), "200");
        for word in [b"hello", b"again"] {
            client.write_all(word).expect("it is sent");
            let mut heard = [0; 5];
            client.read_exact(&mut heard).expect("it comes back");
            assert_eq!(&heard, word);
            echo(&mut peers, flow, word);
        }
    }
}

on_both_engines! {
    fn a_worker_that_dies_leaves_its_sockets_to_its_successor(engine) {
        let rendezvous = rendezvous(engine, &["--workers", "2"]);
        let at = address(&rendezvous);
        let (mut peers, flow) = paired([Peer::tcp(at), Peer::udp(at)]);
        let before = rendezvous.workers();
        before.iter().for_each(|pid| signal(*pid, "KILL"));
        wait_until(
            || rendezvous.workers().len() == 2 && rendezvous.workers().iter().all(|pid| !before.contains(pid)),
            || format!("the workers are {:?}, and were {before:?}", rendezvous.workers()),
        );
        // The end of the connection is how a peer learns that nobody knows it any more.
        run_until(&mut peers, |[provider, _]| provider.wire_has_ended);
        let (mut peers, flow) = { let _ = (peers, flow); paired([Peer::tcp(at), Peer::udp(at)]) };
        echo(&mut peers, flow, b"as before");
    }
}

on_both_engines! {
    fn strangers_hear_nothing_and_take_no_room(engine) {
        for workers in ["1", "2"] {
            let rendezvous = rendezvous(engine, &["--workers", workers]);
            let at = address(&rendezvous);
            let (mut peers, flow) = paired([Peer::udp(at), Peer::udp(at)]);
            let recorded = recorded(at);
            let resident = || rendezvous.workers().into_iter().map(resident_bytes).max().expect("they live");
            let before = resident();
            let stranger = udp_wire();
            let Wire::Udp(stranger) = &stranger else { unreachable!() };
            let mut seed = [1; 8];
            for round in 0..20_000u32 {
                let mut bytes = vec![0; round as usize % 300];
                bytes.iter_mut().for_each(|byte| *byte = random(&mut seed));
                if round % 3 == 0 {
                    // Like an offer, or a packet, that somebody really sent, cut or spoilt.
                    bytes = recorded[round as usize / 3 % recorded.len()].clone();
                    match round % 4 {
                        0 => bytes.truncate(round as usize % bytes.len()),
                        1 => bytes[round as usize % 12] ^= 1 << (round % 8),
                        _ => *bytes.last_mut().expect("it is long") ^= 1,
                    }
                }
                let port = at.port() + u16::from(round % 5 == 0);
                let _ = stranger.send_to(&bytes, (at.ip(), port)); // or the buffer is full
                if round % 1_000 == 0 {
                    echo(&mut peers, flow, b"meanwhile");
                }
            }
            echo(&mut peers, flow, b"afterwards");
            let answer = stranger.recv_from(&mut [0; 1]).expect_err("nobody answers");
            assert_eq!(answer.kind(), std::io::ErrorKind::WouldBlock);
            let grown = resident().saturating_sub(before);
            assert!(grown < 16 << 20, "{grown} bytes more");
        }
    }
}

on_both_engines! {
    fn a_connection_of_a_stranger_ends_without_a_word(engine) {
        for workers in ["1", "2"] {
            let rendezvous = rendezvous(engine, &["--workers", workers]);
            let at = address(&rendezvous);
            let _peers = paired([Peer::tcp(at), Peer::udp(at)]);
            let frame = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
            for said in [frame(b"GET / HTTP/1.1"), frame(&[7; 200]), vec![0; 100], vec![255; 5_000], frame(b"")] {
                let mut stranger = connect(at);
                stranger.write_all(&said).expect("it is sent");
                let mut heard = Vec::new();
                let _ = stranger.read_to_end(&mut heard); // or it is reset, since not all was read
                assert_eq!(heard, b"", "{said:?}");
            }
        }
    }
}

on_both_engines! {
    fn where_there_is_little_room_those_who_say_nothing_keep_no_peer_out(engine) {
        for workers in ["1", "2"] {
            let rendezvous = rendezvous(engine, &["--workers", workers, "--max-connections", "40"]);
            let at = address(&rendezvous);
            // Peers have three quarters of the room, and the others want all of it.
            let mut crowd: Vec<_> = (0..30).map(|_| Peer::tcp(at)).collect();
            run_crowd_until(&mut crowd, |crowd| crowd.iter().all(|peer| peer.established == 1));
            let silent: Vec<_> = (0..300).map(|_| connect(at)).collect();
            let (mut peers, flow) = paired([Peer::tcp(at), Peer::tcp(at)]);
            echo(&mut peers, flow, b"here we are");
            let last = silent.last().expect("there are some");
            last.set_nonblocking(true).expect("it can be set");
            let kept = (&*last).read(&mut [0]).map_err(|error| error.kind());
            assert_eq!(kept, Err(std::io::ErrorKind::WouldBlock), "peers came in before all the others were let go");
        }
    }
}

on_both_engines! {
    fn the_page_of_figures_tells_what_is_relayed_by_each_worker_and_by_all(engine) {
        let home = |secret: &&String| Key::from_secret(secret.as_bytes()).id().0[0] % 2;
        let secrets = (0..).map(|number| format!("secret number {number} that is long enough"));
        let secrets: Vec<String> = secrets.take(64).collect();
        let of_homes = [0, 1].map(|number| secrets.iter().find(|secret| home(secret) == number).expect("one of many"));
        let directory = tempfile::tempdir().expect("a temporary directory");
        let files = of_homes.map(|secret| {
            let file = directory.path().join(secret);
            std::fs::write(&file, secret).expect("it is written");
            format!("--secret-file={}", file.display())
        });
        let admin = format!("unix:{}", directory.path().join("page.sock").display());
        let rendezvous = rendezvous(engine, &["--workers", "2", "--admin", &admin, &files[0], &files[1]]);
        let at = address(&rendezvous);
        let figures = || {
            let told = output(&["status", "--json", "--admin", &admin]).stdout;
            serde_json::from_slice::<serde_json::Value>(&told).expect("it is JSON")["rendezvous"].clone()
        };
        let mut kept = Vec::new();
        for (secret, bytes) in of_homes.into_iter().zip([100, 1_000]) {
            let peers = [Peer::with(at, secret, udp_wire()), Peer::with(at, secret, tcp_wire(at))];
            let (mut peers, flow) = paired(peers);
            echo(&mut peers, flow, &vec![7; bytes]);
            let wish = peers[1].client.connect(name("another")).expect("far from the limit");
            run_until(&mut peers, |[_, visitor]| visitor.has_heard(Event::Waiting(wish)));
            kept.push(peers);
        }
        let told = figures();
        for (worker, bytes) in told["workers"].as_array().expect("one each").iter().zip([200, 2_000]) {
            assert_eq!((&worker["peers"], &worker["relayed_bytes"]), (&2.into(), &bytes.into()), "{told}");
        }
        for (key, expected) in [
            ("peers", 4),
            ("providers", 2),
            ("visitors", 2),
            ("services", 2),
            ("flows", 4),
            ("flows_waiting", 2),
            ("relayed_datagrams", 4),
            ("relayed_bytes", 2_200),
            ("links", 2),
            ("strangers", 0),
            ("hub_players_udp", 0),
        ] {
            assert_eq!(told[key], expected, "{key}: {told}");
        }
        let _stranger = connect(at);
        wait_until(|| figures()["strangers"] == 1, || figures().to_string());
        let shown = output(&["status", "--admin", &admin]).stdout;
        let shown = String::from_utf8_lossy(&shown);
        assert!(shown.contains("4 peers (2 provide, 2 visit)") && shown.contains("2.2 kB relayed"), "{shown}");
    }
}

#[test]
fn of_those_who_connect_and_say_nothing_only_so_many_are_kept() {
    for workers in ["1", "2"] {
        let rendezvous = rendezvous("epoll", &["--workers", workers]);
        let at = address(&rendezvous);
        let mut silent: Vec<_> = (0..2_500).map(|_| connect(at)).collect();
        // The first have gone before the others' time is over, and a peer still gets in.
        let mut heard = Vec::new();
        silent[0].read_to_end(&mut heard).expect("it is ended in order");
        assert_eq!(heard, b"");
        let (mut peers, flow) = paired([Peer::tcp(at), Peer::tcp(at)]);
        echo(&mut peers, flow, b"hello");
    }
}

on_both_engines! {
    fn what_one_key_may_have_relayed_is_limited(engine) {
        let rendezvous = rendezvous(engine, &["--relay-rate", "800k"]);
        let at = address(&rendezvous);
        let (mut peers, flow) = paired([Peer::udp(at), Peer::udp(at)]);
        echo(&mut peers, flow, b"hello");
        // At once: what the bucket holds, and a little that fills it meanwhile.
        for _ in 0..50 {
            (0..10).for_each(|_| peers[1].send(flow, &[1; 1_000]));
            peers.iter_mut().for_each(Peer::step);
        }
        run_for(&mut peers, Duration::from_millis(300));
        let passed = peers[0].datagrams.len();
        assert!((50..300).contains(&passed), "{passed} of 500 datagrams");
    }
}

#[test]
fn who_registers_is_logged_by_service_and_key_and_secrets_are_not() {
    let rendezvous = rendezvous("epoll", &[]);
    let _peers = paired([Peer::udp(address(&rendezvous)), Peer::udp(address(&rendezvous))]);
    rendezvous.wait_for_log("service registered service=game key=");
    assert!(!rendezvous.log().contains(tunnel::SECRET));
}

/// What a peer sends in a tunnel that is gone by now.
fn recorded(at: SocketAddr) -> Vec<Vec<u8>> {
    let Wire::Udp(socket) = udp_wire() else { unreachable!() };
    socket.set_nonblocking(false).expect("it can be set");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    let key = Arc::new(Key::from_secret(tunnel::SECRET.as_bytes()));
    let mut endpoint = Endpoint::new(Settings::default(), [9; 32]);
    let tunnel = endpoint.connect(0, at, key, name(SERVICE)).expect("it is the first");
    let mut recorded = send_all(&mut endpoint, 0, at, &socket);
    let mut answer = [0; 2_048];
    let (n, from) = socket.recv_from(&mut answer).expect("it answers an offer");
    assert!(n <= recorded[0].len(), "the answer is longer than what it answers");
    endpoint.handle_datagram(1, from, &mut answer[..n]);
    recorded.extend(send_all(&mut endpoint, 1, at, &socket));
    endpoint.tunnel(tunnel).expect("it is established").close(CloseReason::Done);
    recorded.extend(send_all(&mut endpoint, 2, at, &socket));
    recorded
}

fn send_all(endpoint: &mut Endpoint, now: u64, to: SocketAddr, socket: &UdpSocket) -> Vec<Vec<u8>> {
    let (mut sent, mut out) = (Vec::new(), Vec::new());
    while let Some(transmit) = endpoint.poll_transmit(now, &mut out) {
        sent.extend(out.chunks(transmit.segment_bytes).map(<[u8]>::to_vec));
        out.clear();
    }
    sent.iter().for_each(|packet| _ = socket.send_to(packet, to).expect("it is sent"));
    sent
}

fn random(seed: &mut [u8; 8]) -> u8 {
    let mut x = u64::from_le_bytes(*seed);
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    *seed = x.to_le_bytes();
    seed[3]
}
