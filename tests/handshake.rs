//! The line as a client meets it: what it may send, how it may arrive, and which answer comes back.

mod common;

use common::*;
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

on_both_engines! {
    fn an_end_before_the_newline_gets_400(engine) {
        let gateway = Gateway::start(engine);
        for bytes in ["", "abc", &"a".repeat(128), &token("127.0.0.1:1")] {
            let client = sent(&gateway, [bytes.as_bytes()]);
            client.shutdown(Shutdown::Write).expect("the client ends");
            assert_eq!(rest(client), "400", "{bytes:?}");
        }
    }
}

on_both_engines! {
    fn a_line_that_is_no_token_gets_401(engine) {
        let gateway = Gateway::start(engine);
        for line in ["\n", "\r\n", "abc\n", "abc\r\n"] {
            assert_eq!(rest(sent(&gateway, [line.as_bytes()])), "401", "{line:?}");
        }
    }
}

on_both_engines! {
    fn a_line_holds_1024_bytes_and_not_one_more(engine) {
        let gateway = Gateway::start(engine);
        for (bytes, end, answer) in
            [(1024, "\n", "401"), (1024, "\r\n", "401"), (1025, "\n", "400"), (1025, "\r\n", "400"), (1025, "", "400")]
        {
            let line = "a".repeat(bytes) + end;
            assert_eq!(rest(sent(&gateway, [line.as_bytes()])), answer, "{bytes} bytes and {end:?}");
        }
    }
}

on_both_engines! {
    fn an_authentic_target_that_cannot_be_reached_gets_502(engine) {
        let gateway = Gateway::start(engine);
        let (_bound, closed) = closed_port();
        for target in [&closed.to_string(), "0.0.0.0:0", "no-such-host.invalid:1"] {
            assert_eq!(rest(sent(&gateway, [line(target).as_bytes()])), "502", "{target}");
        }
    }
}

on_both_engines! {
    fn a_silent_backend_gets_504_after_every_attempt_had_its_time(engine) {
        let (_socket, _fillers, silent) = silent_backend();
        for attempts in [1, 3] {
            let gateway = Gateway::with(&["--engine", engine, "--timeout", "300ms", "--retry", &attempts.to_string()]);
            let started = Instant::now();
            assert_eq!(rest(sent(&gateway, [line(&silent.to_string()).as_bytes()])), "504");
            assert!(started.elapsed() >= attempts * Duration::from_millis(300), "{:?}", started.elapsed());
        }
    }
}

on_both_engines! {
    fn a_refused_target_is_tried_once_and_a_silent_one_as_often_as_asked(engine) {
        if !root_or_skip("a_refused_target_is_tried_once_and_a_silent_one_as_often_as_asked") {
            return;
        }
        let (_bound, closed) = closed_port();
        let (_socket, _fillers, silent) = silent_backend();
        let gateway = Gateway::with(&["--engine", engine, "--timeout", "300ms", "--retry", "3"]);
        for (target, answer, attempts) in [(closed, "502", 1), (silent, "504", 3)] {
            let sniffer = sniff(target.port());
            assert_eq!(gateway.ask(&target.to_string()).1, answer);
            assert_eq!(attempts_seen(&sniffer, target.port()), attempts, "attempts at a target that gets {answer}");
        }
    }
}

on_both_engines! {
    fn bytes_behind_the_line_reach_the_backend(engine) {
        let gateway = Gateway::start(engine);
        let backend = echo_backend().to_string();
        let many = Random::seeded("bytes_behind_the_line_reach_the_backend").bytes(100 * 1024);
        for early in [&b""[..], b"x", b"\n", &many] {
            assert_plays(sent(&gateway, [&[line(&backend).as_bytes(), early].concat()[..]]), early);
        }
    }
}

on_both_engines! {
    fn an_urgent_byte_right_behind_the_line_reaches_the_backend(engine) {
        let gateway = Gateway::start(engine);
        let (line, mut client) = (line(&echo_backend().to_string()) + "!", gateway.connect());
        let sent = socket2::SockRef::from(&client).send_out_of_band(line.as_bytes()).expect("the line is sent");
        assert_eq!(sent, line.len());
        assert_eq!(read_answer(&mut client), "200");
        let mut back = [0];
        client.read_exact(&mut back).expect("the urgent byte comes back");
        assert_eq!(&back, b"!");
    }
}

on_both_engines! {
    fn a_line_with_an_urgent_byte_in_its_midst_is_a_line(engine) {
        let gateway = Gateway::start(engine);
        let line = line(&echo_backend().to_string());
        let (head, tail) = line.as_bytes().split_at(20);
        // What a stopped worker finds when it goes on has come all at once, with the mark in its midst.
        signal(gateway.worker(), "STOP");
        let client = gateway.connect();
        socket2::SockRef::from(&client).send_out_of_band(head).expect("the head is sent");
        (&client).write_all(tail).expect("the tail is sent");
        signal(gateway.worker(), "CONT");
        assert_plays(client, b"");
    }
}

on_both_engines! {
    fn a_line_may_end_with_cr_lf(engine) {
        let gateway = Gateway::start(engine);
        let line = format!("{}\r\nearly", token(&echo_backend().to_string()));
        assert_plays(sent(&gateway, [line.as_bytes()]), b"early");
    }
}

on_both_engines! {
    fn a_line_may_arrive_in_any_pieces(engine) {
        let gateway = Gateway::start(engine);
        let line = line(&echo_backend().to_string()) + "early";
        assert_plays(sent(&gateway, line.as_bytes().chunks(1)), b"early");
        for offset in 1..line.len() {
            let (head, tail) = line.as_bytes().split_at(offset);
            assert_plays(sent(&gateway, [head, tail]), b"early");
        }
    }
}

on_both_engines! {
    fn twenty_clients_get_ten_thousand_random_messages_each_back_unchanged(engine) {
        let gateway = Gateway::start(engine);
        let backend = echo_backend();
        let mut seeds = Random::seeded("twenty_clients_get_ten_thousand_random_messages_each_back_unchanged");
        thread::scope(|scope| {
            for _ in 0..20 {
                let mut client = gateway.play(backend);
                let mut random = Random(seeds.next());
                scope.spawn(move || {
                    for n in 0..10_000 {
                        let length = 1 + random.below(1024) as usize;
                        let message = random.bytes(length);
                        client.write_all(&message).expect("the message is sent");
                        let mut back = vec![0; length];
                        client.read_exact(&mut back).expect("the message comes back");
                        assert!(back == message, "message {n}, of {length} bytes, came back changed");
                    }
                });
            }
        });
    }
}

on_both_engines! {
    fn an_end_right_behind_the_line_reaches_the_backend_whose_reply_still_arrives(engine) {
        let gateway = Gateway::start(engine);
        let backend = backend(|mut stream| {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).expect("the client's end arrives as an end");
            stream.write_all(&bytes).expect("the reply is sent");
        });
        let client = sent(&gateway, [(line(&backend.to_string()) + "all").as_bytes()]);
        client.shutdown(Shutdown::Write).expect("the client ends");
        assert_eq!(rest(client), "200all");
    }
}

on_both_engines! {
    fn a_token_wrapped_at_64_columns_leads_to_its_backend(engine) {
        let gateway = Gateway::start(engine);
        let Some(target) = echo_target_of_two_lines() else {
            return skip("a_token_wrapped_at_64_columns_leads_to_its_backend", "needs ::1");
        };
        for end in ["\n", "\r\n"] {
            let text = wrapped(&token(&target), end) + "early";
            let (first, others) = text.as_bytes().split_at(64 + end.len());
            assert_plays(sent(&gateway, [text.as_bytes()]), b"early");
            assert_plays(sent_at_once(&gateway, &[first, others]), b"early");
        }
    }
}

on_both_engines! {
    fn a_wrapped_token_may_have_as_many_lines_as_the_longest_target_needs(engine) {
        let gateway = Gateway::start(engine);
        for labels in 1..=4 {
            // The name does not exist, so 502 says that the token opened.
            let target = format!("{}invalid:1", format!("{}.", "a".repeat(60)).repeat(labels));
            let text = wrapped(&token(&target), "\n");
            assert_eq!(rest(sent(&gateway, [text.as_bytes()])), "502", "{} lines", text.lines().count());
        }
    }
}

on_both_engines! {
    fn a_wrong_token_of_64_characters_gets_401_without_a_further_line(engine) {
        let gateway = Gateway::start(engine);
        let sealed_with_another_secret = token_with("another", "a-name-of-sixteen-or-more:1");
        for wrong in ["A".repeat(64), sealed_with_another_secret] {
            assert_eq!(wrong.len(), 64);
            assert_eq!(rest(sent(&gateway, [format!("{wrong}\n").as_bytes()])), "401", "{wrong}");
        }
    }
}

on_both_engines! {
    fn the_handshake_deadline_holds_for_a_silent_client_and_for_one_that_drips(engine) {
        let gateway = Gateway::with(&["--engine", engine, "--handshake-timeout", "300ms"]);
        let descriptors = gateway.descriptors();
        let started = Instant::now();
        assert_eq!(rest(gateway.connect()), "400");
        assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());

        let mut client = gateway.connect();
        client.set_read_timeout(Some(Duration::from_millis(10))).expect("a time-out can be set");
        let dripped = (1..=1000).find(|_| {
            client.write_all(b"A").expect("a byte is sent");
            client.peek(&mut [0]).is_ok()
        });
        assert!(dripped.is_some(), "1,000 bytes, 10 ms apart, did not meet the deadline");
        client.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        assert_eq!(rest(client), "400");
        gateway.wait_for_descriptors(descriptors);
    }
}

on_both_engines! {
    fn a_refused_client_reads_its_answer_and_a_clean_end_whatever_it_had_still_sent(engine) {
        let gateway = Gateway::start(engine);
        let (_bound, closed) = closed_port();
        for (line, answer) in [("abc\n", "401"), ("", "400"), (&*line(&closed.to_string()), "502")] {
            let bytes = [line.as_bytes(), &[b'A'; 64 * 1024]].concat();
            // A reset, when there is one, is a matter of luck.
            for _ in 0..50 {
                assert_eq!(rest(sent(&gateway, [&bytes[..]])), answer);
            }
        }
    }
}

on_both_engines! {
    fn each_of_eighteen_addresses_lets_players_in(engine) {
        let mut flags = vec!["--engine", engine];
        flags.extend([["--addr", "127.0.0.1:0"]; 18].as_flattened());
        let gateway = Gateway::with(&flags);
        let running = || gateway.log().lines().find(|line| line.contains("gateway running")).map(str::to_owned);
        wait_until(|| running().is_some(), || gateway.log());
        let line = running().expect("it is there");
        let (_, list) = line.split_once("addresses=[").expect("the addresses are logged");
        let (list, _) = list.split_once(']').expect("the list ends");
        let addresses: BTreeSet<SocketAddr> = list.split(", ").map(|text| text.parse().expect("an address")).collect();
        assert_eq!(addresses.len(), 18, "{list}");
        let token = self::line(&echo_backend().to_string());
        for address in addresses {
            let mut client = connect(address);
            client.write_all(token.as_bytes()).expect("the line is sent");
            assert_plays(client, b"");
        }
    }
}

#[test]
fn more_than_thirty_two_addresses_are_a_configuration_error() {
    let start = |addresses: usize| {
        let flags = vec![["--addr", "127.0.0.1:0"]; addresses];
        Gateway::try_start(program(), tempfile::tempdir().expect("a directory"), flags.as_flattened())
    };
    start(32).map(drop).expect("so many are allowed");
    let said = start(33).err().expect("one too many");
    assert!(said.starts_with("exit status: 3: "), "{said}");
    assert!(said.contains("error: `addr`") && said.contains("hint: "), "{said}");
}

on_both_engines! {
    fn every_secret_opens_tokens(engine) {
        let other = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(&other, "the secret before\n").expect("the secret is written");
        let other = other.path().to_str().expect("a plain path");
        let gateway = Gateway::with(&["--engine", engine, "--secret-file", other]);
        let backend = echo_backend().to_string();
        for (secret, answer) in [(SECRET, "200"), ("the secret before", "200"), ("a third one", "401")] {
            let line = token_with(secret, &backend) + "\n";
            assert_eq!(read_answer(&mut sent(&gateway, [line.as_bytes()])), answer, "{secret}");
        }
    }
}

on_both_engines! {
    fn policy_decides_by_network_and_port(engine) {
        let backend = echo_backend();
        let port = backend.port();
        let (here, mapped) = (format!("127.0.0.0/8:{port}"), format!("[::ffff:127.0.0.1]:{port}"));
        let plain = &*backend.to_string();
        for (policy, target, answer) in [
            (&["--allow", "127.0.0.0/8"][..], plain, "200"),
            (&["--allow", "127.0.0.2/32"], plain, "401"),
            (&["--allow", &here], plain, "200"),
            (&["--allow", "127.0.0.0/8:1"], plain, "401"),
            (&["--deny", "127.0.0.1/32"], plain, "401"),
            (&["--deny", "127.0.0.0/8:1"], plain, "200"),
            (&["--deny", "127.0.0.0/8"], &mapped, "401"),
            (&["--allow", "127.0.0.0/8", "--deny", "127.0.0.1/32"], plain, "401"),
        ] {
            let gateway = Gateway::with(&[&["--engine", engine][..], policy].concat());
            assert_eq!(gateway.ask(target).1, answer, "{policy:?} {target}");
        }
    }
}

on_both_engines! {
    fn the_gateway_never_leads_to_itself(engine) {
        let gateway = Gateway::start(engine);
        let port = gateway.address.port();
        for target in [gateway.address.to_string(), format!("[::ffff:127.0.0.1]:{port}")] {
            assert_eq!(rest(sent(&gateway, [line(&target).as_bytes()])), "401", "{target}");
        }
        // The kernel takes the unspecified address for loopback.
        let (_, answer) = gateway.ask(&format!("0.0.0.0:{port}"));
        assert!(["401", "502"].contains(&&*answer), "{answer}");
    }
}

on_both_engines! {
    fn the_unspecified_address_is_no_way_round_policy(engine) {
        let gateway = Gateway::with(&["--engine", engine, "--deny", "127.0.0.0/8"]);
        let (_, answer) = gateway.ask(&format!("0.0.0.0:{}", echo_backend().port()));
        assert!(["401", "502"].contains(&&*answer), "{answer}");
    }
}

on_both_engines! {
    fn a_name_leads_to_its_address(engine) {
        let gateway = Gateway::start(engine);
        let target = format!("localhost:{}", echo_backend().port());
        assert_plays(sent(&gateway, [line(&target).as_bytes()]), b"");
    }
}

on_both_engines! {
    fn a_sealed_target_outside_the_grammar_gets_401(engine) {
        let gateway = Gateway::start(engine);
        let label_of_64 = "a".repeat(64) + ".b:80";
        let name_of_254 = format!("{}{}:80", format!("{}.", "a".repeat(63)).repeat(3), "a".repeat(62));
        for target in [
            "", ":", ":80", "1.2.3.4", "1.2.3.4:", "1.2.3.4:65536", "1.2.3.4:080", "1.2.3.4:-1", "1.2.3.4:+80",
            "1.2.3.4:0x50", "1.2.3.4:80 ", "1.2.3.4:80\n", "1.2.3.4:80\0", " 1.2.3.4:80", "1.2.3.4 :80",
            "127.1:80", "0177.0.0.1:80", "01.2.3.4:80", "256.1.1.1:80", "1.2.3.4.5:80", "2130706433:80",
            "::1:80", "[::1]", "[::1]80", "[::1:80", "[]:80", "[1.2.3.4]:80", "[fe80::1%eth0]:80", "[fe80::1%1]:80",
            "a..b:80", ".a:80", "-a.b:80", "a-.b:80", "a:b:80", "a/b:80", "exa mple:80", "exämple:80", "a\0b:80",
            "http://a:80", "unix:/tmp/socket", &label_of_64, &name_of_254,
        ] {
            assert_eq!(rest(sent(&gateway, [line(target).as_bytes()])), "401", "{target:?}");
        }
    }
}

fn line(target: &str) -> String {
    token(target) + "\n"
}

/// A client that has sent these parts, each as a segment of its own.
fn sent<'a>(gateway: &Gateway, parts: impl IntoIterator<Item = &'a [u8]>) -> TcpStream {
    let mut client = gateway.connect();
    for part in parts {
        client.write_all(part).expect("the bytes are sent");
    }
    client
}

/// As `sent`, with so little time between the parts that the last one is there well before a 401 would be due.
fn sent_at_once(gateway: &Gateway, parts: &[&[u8]]) -> TcpStream {
    for _ in 0..100 {
        let started = Instant::now();
        let client = sent(gateway, parts.iter().copied());
        if started.elapsed() < Duration::from_millis(5) {
            return client;
        }
    }
    panic!("this machine is too busy to send two segments within 5 ms");
}

/// All that comes before the gateway's end; a reset fails the test.
fn rest(mut client: TcpStream) -> String {
    String::from_utf8_lossy(&read_to_end(&mut client)).into_owned()
}

/// The client gets 200, what it sent early comes back, and so does what it sends now.
fn assert_plays(mut client: TcpStream, early: &[u8]) {
    assert_eq!(read_answer(&mut client), "200");
    client.write_all(b"late").expect("the bytes are sent");
    let mut back = vec![0; early.len() + 4];
    client.read_exact(&mut back).expect("the bytes come back");
    assert!(back == [early, b"late"].concat(), "{} bytes came back changed", back.len());
}

fn wrapped(token: &str, end: &str) -> String {
    token.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line) + end).collect()
}

/// A backend that echoes, with an address long enough for a token of 88 characters. `None` where there is no `::1`.
fn echo_target_of_two_lines() -> Option<String> {
    let listener = TcpListener::bind("[::1]:0").ok()?;
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
    Some(format!("[0000:0000:0000:0000:0000:0000:0000:0001]:{port}"))
}

/// A socket that sees the IPv4 packets sent to `port` from now on.
fn sniff(port: u16) -> socket2::Socket {
    use socket2::{Domain, Protocol, SockFilter, Socket, Type};
    const ETH_P_IP: u16 = 0x0800;
    let protocol = Protocol::from(i32::from(ETH_P_IP.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).expect("a packet socket");
    // Load the half word at 22, which is the port of destination; keep 64 bytes when it is ours, else none.
    let filter = [(0x28, 0, 0, 22), (0x15, 0, 1, port.into()), (0x06, 0, 0, 64), (0x06, 0, 0, 0)];
    socket.attach_filter(&filter.map(|(code, jt, jf, k)| SockFilter::new(code, jt, jf, k))).expect("a filter");
    socket.set_nonblocking(true).expect("it can be non-blocking");
    socket
}

/// Attempts to connect to `port`: source ports of its SYNs, so that one repeated by the kernel counts once.
fn attempts_seen(mut sniffer: &socket2::Socket, port: u16) -> usize {
    const SYN: u8 = 2;
    let mut from = BTreeSet::new();
    let mut packet = [0; 64];
    while let Ok(40..) = sniffer.read(&mut packet) {
        if packet[22..24] == port.to_be_bytes() && packet[33] & SYN != 0 {
            from.insert([packet[20], packet[21]]);
        }
    }
    from.len()
}
