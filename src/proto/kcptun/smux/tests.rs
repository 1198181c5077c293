use proptest::prelude::*;

use super::frame::{Command, Header, Update};
use super::*;

const LIMITS: Limits = Limits { streams: 100, unread_bytes: 1 << 20, stream_unread_bytes: 128 << 10 };

fn client(version: Version) -> Mux {
    Mux::new(version, true, LIMITS)
}

fn server(version: Version) -> Mux {
    Mux::new(version, false, LIMITS)
}

/// Everything that it has to send.
fn sent(mux: &mut Mux) -> Vec<u8> {
    let mut out = Vec::new();
    while mux.has_to_send() {
        mux.write_frames(10_000, &mut out);
    }
    out
}

/// Lets both say what they have to say, until neither has anything.
fn talk(one: &mut Mux, other: &mut Mux) {
    while one.has_to_send() || other.has_to_send() {
        for _ in 0..2 {
            let bytes = sent(one);
            assert_eq!(other.take(&bytes), Ok(bytes.len()));
            std::mem::swap(&mut *one, &mut *other);
        }
    }
}

fn events(mux: &mut Mux) -> Vec<Event> {
    std::iter::from_fn(|| mux.poll_event()).collect()
}

/// All that can be read.
fn read(mux: &mut Mux, stream: StreamId) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let piece @ 1.. = mux.peek(stream).len() {
        bytes.extend_from_slice(mux.peek(stream));
        mux.consume(stream, piece);
    }
    bytes
}

fn frame(version: Version, command: Command, stream: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header { version, command, length: payload.len() as u16, stream };
    [&header.encode()[..], payload].concat()
}

/// Pairs of both versions with a stream between them of which the server knows.
fn pairs() -> impl Iterator<Item = (Mux, Mux, StreamId)> {
    [Version::V1, Version::V2].into_iter().map(|version| {
        let (mut client, mut server) = (client(version), server(version));
        let stream = client.open().expect("the first stream");
        talk(&mut client, &mut server);
        assert_eq!(events(&mut server), [Event::Opened(stream)]);
        (client, server, stream)
    })
}

#[test]
fn a_stream_opens_with_its_first_bytes_and_in_the_bytes_of_smux() {
    let mut client = client(Version::V1);
    let stream = client.open().expect("the first stream");
    assert_eq!(client.write(stream, b"hi"), 2);
    client.finish(stream);
    assert_eq!(sent(&mut client), *b"\x01\x00\x00\x00\x03\0\0\0\x01\x02\x02\x00\x03\0\0\0hi\x01\x01\x00\x00\x03\0\0\0");
    assert_eq!(client.open(), Some(StreamId(5)));
}

#[test]
fn bytes_go_both_ways_and_the_stream_is_forgotten_when_both_have_closed_it_and_all_is_read() {
    for (mut client, mut server, stream) in pairs() {
        client.write(stream, b"question");
        talk(&mut client, &mut server);
        assert_eq!(events(&mut server), [Event::Readable(stream)]);
        assert_eq!(read(&mut server, stream), b"question");
        server.write(stream, b"answer");
        server.finish(stream);
        talk(&mut client, &mut server);
        assert_eq!(events(&mut client), [Event::Readable(stream), Event::Ended(stream)]);
        assert_eq!(client.write(stream, b"too late"), 0);
        assert_eq!(read(&mut client, stream), b"answer");
        talk(&mut client, &mut server);
        assert_eq!(events(&mut client), [Event::Forgotten(stream)]);
        assert_eq!(events(&mut server), [Event::Ended(stream), Event::Forgotten(stream)]);
        assert_eq!((client.streams(), server.streams()), (0, 0));
    }
}

#[test]
fn what_the_peer_had_sent_before_it_heard_that_we_close_is_still_read() {
    for (mut client, mut server, stream) in pairs() {
        server.write(stream, b"on its way");
        let on_its_way = sent(&mut server);
        client.finish(stream);
        talk(&mut client, &mut server);
        // The order is the server's: first its bytes, then its answer to the end.
        let mut client = Mux::new(client.version, true, LIMITS);
        client.open().expect("the same stream");
        client.finish(stream);
        sent(&mut client);
        client.take(&on_its_way).expect("frames");
        client.take(&frame(client.version, Command::Finish, 3, b"")).expect("a frame");
        assert_eq!(read(&mut client, stream), b"on its way");
        assert_eq!(events(&mut client), [Event::Readable(stream), Event::Ended(stream), Event::Forgotten(stream)]);
    }
}

#[test]
fn what_is_unsent_when_the_peer_closes_is_dropped_and_the_end_is_answered() {
    for (mut client, mut server, stream) in pairs() {
        server.write(stream, &[0; 100_000]);
        let version = server.version;
        server.take(&frame(version, Command::Finish, 3, b"")).expect("a frame");
        assert_eq!(sent(&mut server), frame(version, Command::Finish, 3, b""));
        assert_eq!(server.outgoing, 0);
        client.reset(stream);
        assert_eq!(client.streams(), 0);
    }
}

#[test]
fn a_reset_stream_is_closed_once_and_what_still_comes_for_it_takes_no_room() {
    for (mut client, mut server, stream) in pairs() {
        server.write(stream, &[0; 10_000]);
        talk(&mut client, &mut server);
        client.reset(stream);
        server.write(stream, &[0; 10_000]);
        talk(&mut client, &mut server);
        assert_eq!(client.space, LIMITS.unread_bytes);
        assert!(events(&mut server).contains(&Event::Ended(stream)));
        assert!(sent(&mut client).is_empty());
    }
}

#[test]
fn one_reader_that_stops_stops_all_of_version_1_only_when_the_common_room_is_used_up() {
    let (mut client, mut server) = (client(Version::V1), server(Version::V1));
    let [stopped, other] = [(); 2].map(|()| server_stream(&mut client, &mut server));
    let bytes = fill(&mut client, stopped, LIMITS.unread_bytes - 100);
    assert_eq!(server.take(&bytes), Ok(bytes.len()));
    client.write(other, &[1; 50]);
    talk(&mut client, &mut server);
    assert_eq!(read(&mut server, other).len(), 50, "there was room left");
    assert!(!server.is_stopped_by_readers());
    client.write(other, &[1; 150]);
    let rest = sent(&mut client);
    let taken = server.take(&rest).expect("frames");
    assert_eq!(taken, HEADER_BYTES + 100, "as much as there was room for");
    assert!(server.is_stopped_by_readers());
    server.consume(stopped, 1000);
    assert_eq!(server.take(&rest[taken..]), Ok(50));
    assert_eq!(read(&mut server, other).len(), 150);
}

fn server_stream(client: &mut Mux, server: &mut Mux) -> StreamId {
    let stream = client.open().expect("a stream");
    talk(client, server);
    stream
}

/// Writes that many bytes to a stream, and gives the frames.
fn fill(mux: &mut Mux, stream: StreamId, bytes: usize) -> Vec<u8> {
    let mut frames = Vec::new();
    let mut left = bytes;
    while left > 0 {
        left -= mux.write(stream, &vec![7; left]);
        frames.extend(sent(mux));
    }
    frames
}

#[test]
fn a_writer_of_version_2_stops_at_the_readers_window_and_goes_on_when_half_of_it_is_read() {
    let (mut client, mut server, stream) = pairs().nth(1).expect("version 2");
    // The first window is what every peer of version 2 must have.
    client.write(stream, &vec![1; 1 << 20]);
    talk(&mut client, &mut server);
    client.write(stream, &vec![1; 1 << 20]);
    talk(&mut client, &mut server);
    assert_eq!(server.streams[&3].incoming.len(), 256 << 10);
    assert!(!client.has_to_send());
    // The first reading tells our own window, which is smaller and thus still full.
    server.consume(stream, 1);
    talk(&mut client, &mut server);
    assert_eq!(server.streams[&3].incoming.len(), (256 << 10) - 1);
    // From there on each half of a window is told.
    server.consume(stream, (256 << 10) - (128 << 10));
    talk(&mut client, &mut server);
    assert_eq!(server.streams[&3].incoming.len(), (128 << 10) - 1 + 1);
    assert_eq!(events(&mut client), [Event::Writable(stream)]);
}

#[test]
fn a_peer_that_has_read_more_than_was_sent_loses_the_stream() {
    let (mut client, _, stream) = pairs().nth(1).expect("version 2");
    let update = Update { consumed: 1, window: 1 << 20 };
    client.take(&frame(Version::V2, Command::Update, 3, &update.encode())).expect("a frame");
    assert_eq!(events(&mut client), [Event::Reset(stream)]);
    assert_eq!(sent(&mut client), frame(Version::V2, Command::Finish, 3, b""));
}

#[test]
fn a_stream_that_has_just_got_something_does_not_wait_for_those_that_send_for_long() {
    let mut client = client(Version::V1);
    let bulk: Vec<_> = (0..10).map(|_| client.open().expect("a stream")).collect();
    let game = client.open().expect("a stream");
    sent(&mut client);
    bulk.iter().for_each(|stream| assert_eq!(client.write(*stream, &[0; 100_000]), 100_000));
    let mut out = Vec::new();
    client.write_frames(50_000, &mut out);
    client.write(game, b"move");
    out.clear();
    client.write_frames(1, &mut out);
    assert_eq!(out, frame(Version::V1, Command::Push, game.0, b"move"));
}

#[test]
fn a_server_closes_streams_beyond_its_number_and_a_client_all_that_the_peer_opens() {
    let mut server = server(Version::V1);
    for id in 0..=LIMITS.streams as u32 {
        server.take(&frame(Version::V1, Command::Open, 3 + 2 * id, b"")).expect("a frame");
    }
    assert_eq!(events(&mut server).len(), LIMITS.streams);
    assert_eq!(sent(&mut server), frame(Version::V1, Command::Finish, 203, b""));
    let mut client = client(Version::V1);
    client.take(&frame(Version::V1, Command::Open, 2, b"")).expect("a frame");
    assert_eq!(events(&mut client), []);
    assert_eq!(sent(&mut client), frame(Version::V1, Command::Finish, 2, b""));
}

#[test]
fn nothing_is_taken_while_nobody_asks_for_events_or_reads_our_answers() {
    let mut server = server(Version::V1);
    let pair = |id: u32| [frame(Version::V1, Command::Open, id, b""), frame(Version::V1, Command::Finish, id, b"")];
    let flood: Vec<u8> = (0..10_000).flat_map(pair).flatten().collect();
    let mut taken = 0;
    for _ in 0..100 {
        taken += server.take(&flood[taken..]).expect("frames");
        assert!(server.events.len() <= EVENTS_MAX + 2 && server.endings.len() <= ENDINGS_MAX);
    }
    assert!(taken < flood.len());
    for _ in 0..100_000 {
        server.poll_event();
        server.write_frames(100, &mut Vec::new());
        taken += server.take(&flood[taken..]).expect("frames");
    }
    assert_eq!(taken, flood.len());
}

#[test]
fn writers_together_keep_no_more_than_their_bound_and_each_may_still_write_a_little() {
    let mut client = client(Version::V1);
    let streams: Vec<_> = (0..LIMITS.streams).map(|_| client.open().expect("a stream")).collect();
    let written: Vec<usize> = streams.iter().map(|stream| client.write(*stream, &[0; 300_000])).collect();
    assert_eq!(written[0], OUTGOING_BYTES_MAX);
    assert_eq!(written[99], OUTGOING_BYTES_MIN);
    assert!(written.iter().sum::<usize>() <= ALL_OUTGOING_BYTES_MAX + 100 * OUTGOING_BYTES_MIN);
    sent(&mut client);
    let mut told = events(&mut client);
    told.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(told.len(), 100, "all are told that there is room again");
}

#[test]
fn the_other_version_and_what_is_no_frame_are_refused() {
    for (version, bytes) in [
        (Version::V1, frame(Version::V2, Command::Nothing, 0, b"")),
        (Version::V2, frame(Version::V1, Command::Nothing, 0, b"")),
        (Version::V1, vec![1, 9, 0, 0, 0, 0, 0, 0]),
        (Version::V1, vec![1, 0, 1, 0, 3, 0, 0, 0]),
    ] {
        assert_eq!(server(version).take(&bytes), Err(Garbled), "{bytes:?}");
    }
}

proptest! {
    #[test]
    fn no_frames_make_it_panic_or_keep_more_than_its_bounds(
        frames in prop::collection::vec((0..5u8, 1..6u32, prop::collection::vec(any::<u8>(), 0..40)), 0..200),
        is_client: bool,
        cut in 1..50usize,
        actions in prop::collection::vec((0..5u8, 0..3u32), 0..200),
    ) {
        let limits = Limits { streams: 2, unread_bytes: 200, stream_unread_bytes: 100 };
        let mut mux = Mux::new(Version::V2, is_client, limits);
        let bytes: Vec<u8> = frames.iter().flat_map(|(command, stream, payload)| match command {
            0 => frame(Version::V2, Command::Open, *stream, b""),
            1 => frame(Version::V2, Command::Finish, *stream, b""),
            2 => frame(Version::V2, Command::Push, *stream, payload),
            3 => frame(Version::V2, Command::Nothing, *stream, b""),
            _ => frame(Version::V2, Command::Update, *stream, &[payload, &[0; 8][..]].concat()[..8]),
        }).collect();
        let mut actions = actions.into_iter();
        for piece in bytes.chunks(cut) {
            let mut taken = mux.take(piece).expect("they are frames");
            while taken < piece.len() {
                prop_assert_eq!(mux.space, 0);
                for id in 0..6 {
                    read(&mut mux, StreamId(id));
                }
                taken += mux.take(&piece[taken..]).expect("they are frames");
            }
            if let Some((action, id)) = actions.next() {
                act(&mut mux, action, StreamId(2 * id + 1));
            }
            let unread: usize = mux.streams.values().map(|stream| stream.incoming.len()).sum();
            let unsent: usize = mux.streams.values().map(|stream| stream.outgoing.len()).sum();
            prop_assert_eq!((unread + mux.space, unsent), (200, mux.outgoing));
            prop_assert!(mux.streams.len() <= 2);
        }
    }
}

fn act(mux: &mut Mux, action: u8, stream: StreamId) {
    match action {
        0 => _ = mux.open(),
        1 => _ = mux.write(stream, &[1; 30]),
        2 => mux.finish(stream),
        3 => mux.reset(stream),
        _ => mux.write_frames(20, &mut Vec::new()),
    }
}
