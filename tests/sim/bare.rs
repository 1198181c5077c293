//! Bare KCP conversations under a pacer, with as much overhead as a tunnel's packets have, and users at both ends: a game that
//! sends messages at a steady rate, and bulk without end. Shows what the pacer can do without the tunnel around it.

use std::net::SocketAddr;

use gateway::proto::kcp::{Buffers, Conversation, Settings};
use gateway::proto::tunnel::pacer::{self, Pacer};

use super::traffic::{Game, Listener, MESSAGE, Measured, Traffic};
use super::{MS, Node};

/// Of a datagram, and what a tunnel needs of it: header, tag and the kind of its frame.
const DATAGRAM: usize = 1_350;
const HEAD: usize = 29;
const ROOM: usize = DATAGRAM - HEAD;

const GAME: u32 = 1;
const BULK: u32 = 2;

pub struct Bare {
    peer: SocketAddr,
    traffic: Traffic,
    pub game: Conversation,
    pub bulk: Conversation,
    buffers: Buffers,
    pub pacer: Pacer,
    player: Game,
    listener: Listener,
    /// When slow bulk is next written.
    next_bulk: u64,
    /// When bulk may go on.
    wake_at: Option<u64>,
    /// Traffic changed, and nothing has happened since.
    is_to_start: bool,
    number: u64,
    incoming: Incoming,
    outgoing: Outgoing,
    scratch: Vec<u8>,
    delivered_bytes: u64,
}

/// Written at once of slow bulk.
const SLOW_BULK: usize = 4_000;

/// What is known of the peer's packets.
#[derive(Default)]
struct Incoming {
    highest: u64,
    received: u64,
    gaps: u64,
    since_report: u64,
    reported_at: u64,
}

/// What the peer said of ours.
#[derive(Default)]
struct Outgoing {
    highest: u64,
    received: u64,
    gaps: u64,
    loss: f64,
    burst: f64,
}

impl Bare {
    pub fn new(peer: SocketAddr, traffic: Traffic, pacer: pacer::Settings) -> Self {
        let kcp = Settings { segment_bytes: ROOM - 24, rto_first_us: 100 * MS, ..Settings::default() };
        let bulk = Settings { send_bytes: 4 << 20, ..kcp.clone() };
        Self {
            peer,
            traffic,
            game: Conversation::new(GAME, kcp),
            bulk: Conversation::new(BULK, bulk),
            buffers: Buffers::new(DATAGRAM, 16_384),
            pacer: Pacer::new(pacer),
            player: Game::default(),
            listener: Listener::default(),
            next_bulk: 0,
            wake_at: None,
            is_to_start: true,
            number: 0,
            incoming: Incoming::default(),
            outgoing: Outgoing { burst: 1.0, loss: 0.01, ..Outgoing::default() },
            scratch: vec![0; 1 << 16],
            delivered_bytes: 0,
        }
    }

    pub fn in_flight(&self) -> usize {
        self.game.in_flight() + self.bulk.in_flight()
    }

    /// Smoothed part of our packets that the peer misses.
    pub fn loss(&self) -> f64 {
        self.outgoing.loss
    }

    /// As the brief of a tunnel has it: the more is lost, the more often the unacknowledged is said again.
    fn repeats(&self) -> u32 {
        let Outgoing { loss, burst, .. } = self.outgoing;
        let wanted = match loss {
            _ if loss < 0.002 => 0,
            _ if loss < 0.02 => 1,
            _ if loss < 0.08 && burst <= 1.5 => 2,
            _ => 4,
        };
        self.traffic.repeats.unwrap_or(wanted)
    }

    fn use_streams(&mut self, now: u64) {
        while let Some(message) = self.player.message(now) {
            assert_eq!(self.game.write(&message, &mut self.buffers), MESSAGE, "a game never fills its stream");
        }
        if let Some(rate) = self.traffic.bulk_bytes_per_second {
            while self.next_bulk <= now {
                self.bulk.write(&self.scratch[..SLOW_BULK], &mut self.buffers);
                self.next_bulk = self.next_bulk.max(now.saturating_sub(SLOW_BULK as u64 * 1_000_000 / rate));
                self.next_bulk += SLOW_BULK as u64 * 1_000_000 / rate;
            }
            return;
        }
        while self.traffic.bulk && self.bulk.room() > 64 << 10 {
            if self.bulk.write(&self.scratch, &mut self.buffers) == 0 {
                break;
            }
        }
    }

    fn read_streams(&mut self, now: u64) {
        while self.game.readable() > 0 {
            let piece = self.game.peek(&self.buffers);
            let bytes = piece.len();
            self.listener.take(now, piece);
            self.game.consume(bytes, &mut self.buffers);
        }
        while self.bulk.readable() > 0 {
            let bytes = self.bulk.peek(&self.buffers).len();
            self.bulk.consume(bytes, &mut self.buffers);
            self.delivered_bytes += bytes as u64;
        }
    }

    /// Acknowledgements and the game's segments, as many as a datagram holds.
    fn write_small(&mut self, now: u64, out: &mut Vec<u8>) -> bool {
        if !self.has_small() {
            return false;
        }
        let begin = self.begin(now, out);
        let body = out.len();
        let left = |out: &Vec<u8>| begin + DATAGRAM - out.len();
        self.game.write_acks(left(out), out);
        self.bulk.write_acks(left(out), out);
        self.bulk.write_probe(left(out), out);
        self.game.write_probe(left(out), out);
        let acks = out.len();
        let stamp = self.pacer.stamp_small(now, self.in_flight());
        self.game.write_lost(now, left(out), stamp, &self.buffers, out);
        self.game.write_new(now, left(out), stamp, &self.buffers, out);
        if out.len() > acks {
            self.game.write_repeats(now, left(out), self.repeats(), &self.buffers, out);
        }
        if out.len() == body {
            out.truncate(begin);
            return false;
        }
        if out.len() > acks {
            self.pacer.charge_small(out.len() - acks);
        }
        self.finish(now, begin, out);
        true
    }

    fn has_small(&self) -> bool {
        let acks = self.game.has_acks() || self.bulk.has_acks();
        acks || self.game.has_lost() || self.game.has_new() || self.game.has_probe() || self.bulk.has_probe()
    }

    fn write_bulk(&mut self, now: u64, out: &mut Vec<u8>) -> bool {
        self.wake_at = None;
        if !self.bulk.has_lost() && !self.bulk.has_new() {
            return false;
        }
        let budget = self.pacer.bulk_budget(now, self.in_flight());
        self.wake_at = budget.next_at;
        let mut spent = 0;
        while spent < budget.bytes {
            let begin = self.begin(now, out);
            let body = out.len();
            let stamp = self.pacer.stamp(now, self.in_flight());
            self.bulk.write_lost(now, ROOM, stamp, &self.buffers, out);
            self.bulk.write_new(now, begin + DATAGRAM - out.len(), stamp, &self.buffers, out);
            if out.len() == body {
                out.truncate(begin);
                break;
            }
            let bytes = out.len() - begin;
            self.pacer.charge_bulk(bytes);
            spent += bytes;
            self.finish(now, begin, out);
            if bytes < DATAGRAM {
                break;
            }
        }
        spent > 0
    }

    fn begin(&mut self, _now: u64, out: &mut Vec<u8>) -> usize {
        let begin = out.len();
        out.resize(begin + HEAD, 0);
        begin
    }

    /// Number and, when it is time, the report. They stand where a real packet has its header and tag.
    fn finish(&mut self, now: u64, begin: usize, out: &mut [u8]) {
        self.number += 1;
        let incoming = &mut self.incoming;
        let is_due = incoming.since_report >= 64 || now - incoming.reported_at >= 250 * MS;
        let report = if is_due && incoming.since_report > 0 {
            (incoming.since_report, incoming.reported_at) = (0, now);
            [incoming.highest, incoming.received, incoming.gaps]
        } else {
            [0; 3]
        };
        let words = [self.number, report[0], report[1], report[2]];
        for (at, word) in words.into_iter().enumerate() {
            out[begin + 7 * at..][..7].copy_from_slice(&word.to_le_bytes()[..7]);
        }
    }

    fn note_number(&mut self, number: u64) {
        let incoming = &mut self.incoming;
        incoming.received += 1;
        incoming.since_report += 1;
        if number > incoming.highest {
            incoming.gaps += u64::from(number > incoming.highest + 1);
            incoming.highest = number;
        }
    }

    fn note_report(&mut self, [highest, received, gaps]: [u64; 3]) {
        let known = &mut self.outgoing;
        if highest <= known.highest {
            return;
        }
        let packets = highest - known.highest;
        let lost = packets.saturating_sub(received - known.received);
        let new_gaps = gaps - known.gaps;
        let weight = (packets as f64 / 400.0).min(0.5);
        known.loss += weight * (lost as f64 / packets as f64 - known.loss);
        if new_gaps > 0 {
            known.burst += weight * (lost as f64 / new_gaps as f64 - known.burst);
        }
        (known.highest, known.received, known.gaps) = (highest, received, gaps);
        self.pacer.on_loss_report(packets, lost);
    }
}

impl Node for Bare {
    fn handle_datagram(&mut self, now: u64, _from: SocketAddr, datagram: &mut [u8]) {
        let word = |at: usize| {
            let mut word = [0; 8];
            word[..7].copy_from_slice(&datagram[7 * at..][..7]);
            u64::from_le_bytes(word)
        };
        let report = [word(1), word(2), word(3)];
        self.note_number(word(0));
        if report[0] > 0 {
            self.note_report(report);
        }
        let mut rest = &datagram[HEAD..];
        while rest.len() >= 4 {
            let is_game = rest[0] == GAME as u8;
            let others = if is_game { self.bulk.in_flight() } else { self.game.in_flight() };
            let (conversation, pacer) =
                if is_game { (&mut self.game, &mut self.pacer) } else { (&mut self.bulk, &mut self.pacer) };
            let mut in_flight = conversation.in_flight() + others;
            let taken = conversation.input(now, rest, &mut self.buffers, |acked| {
                in_flight = in_flight.saturating_sub(acked.length);
                pacer.on_acked(now, &acked, in_flight);
            });
            rest = &rest[taken.expect("only segments are sent")..];
        }
        self.read_streams(now);
        self.use_streams(now);
    }

    fn poll_transmit(&mut self, now: u64, out: &mut Vec<u8>) -> Option<(SocketAddr, usize)> {
        if std::mem::take(&mut self.is_to_start) {
            self.player.start(now, self.traffic.game_every_us);
            self.use_streams(now);
        }
        let is_something = self.write_small(now, out) || self.write_bulk(now, out);
        is_something.then_some((self.peer, DATAGRAM))
    }

    fn next_timeout(&self) -> Option<u64> {
        let message = self.player.next_timeout();
        let slow = self.traffic.bulk_bytes_per_second.map(|_| self.next_bulk);
        [self.game.next_timeout(), self.bulk.next_timeout(), message, slow, self.wake_at].into_iter().flatten().min()
    }

    fn handle_timeout(&mut self, now: u64) {
        self.game.handle_timeout(now);
        self.bulk.handle_timeout(now);
        self.use_streams(now);
    }
}

impl Measured for Bare {
    fn start(&mut self, traffic: Traffic) {
        self.traffic = traffic;
        self.is_to_start = true;
    }

    fn delays(&self) -> &[u32] {
        &self.listener.delays
    }

    fn delivered_bytes(&self) -> u64 {
        self.delivered_bytes
    }
}
