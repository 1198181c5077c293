//! A tunnel as its owner sees it. What arrives is dealt with in `receive`, what leaves in `schedule`, the life of streams in
//! `life`.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use super::control::Control;
use super::datagrams::{DatagramInfo, Queue};
use super::events::{CloseReason, Event, LostReason};
use super::frames::DATAGRAM_HEAD_MAX;
use super::keys::Key;
use super::liveness::Liveness;
use super::mtu::Mtu;
use super::numbering::Numbering;
use super::pacer::{self, Pacer};
use super::path::Path;
use super::pieces::{FRAME_BYTES_MAX, Reassembly, Splitter};
use super::probe_tokens::ProbeTokens;
use super::random::Random;
use super::repeats::Redundancy;
use super::reports::{Arrivals, Losses};
use super::schedule::Grant;
use super::seal::Session;
use super::sessions::Sessions;
use super::stream::StreamId;
use super::streams::Streams;
use super::wire::Id;
use super::{Service, ServiceName, Settings, Status, Traffic};
use crate::proto::kcp::Buffers;

/// One peer: its streams and datagrams.
#[derive(Debug)]
pub struct Tunnel {
    pub(super) role: Role,
    pub(super) phase: Phase,
    pub(super) name: ServiceName,
    pub(super) service: Service,
    pub(super) settings: Settings,
    pub(super) key: Arc<Key>,
    pub(super) random: Random,
    /// The time of the last call that told it.
    pub(super) now: u64,

    // Packets.
    pub(super) sessions: Sessions,
    pub(super) path: Path,
    pub(super) probe_tokens: ProbeTokens,
    pub(super) mtu: Mtu,
    pub(super) liveness: Liveness,
    pub(super) arrivals: Arrivals,
    pub(super) losses: Losses,
    pub(super) redundancy: Redundancy,
    /// When thin streams make a packet for repeats alone.
    pub(super) repeat_at: Option<u64>,
    pub(super) pacer: Pacer,
    pub(super) grant: Grant,
    pub(super) rtt_us: Option<u64>,
    /// When that was last measured.
    pub(super) rtt_at: u64,
    /// The size of a probe that has arrived, to be told.
    pub(super) mtu_arrived: Option<u16>,
    pub(super) splitter: Splitter,
    pub(super) reassembly: Reassembly,
    pub(super) sent: Traffic,
    pub(super) sent_aside: u64,
    pub(super) received: Traffic,
    pub(super) refused: u64,
    pub(super) traffic_sent_at: Option<u64>,
    /// When a packet last came that did not only probe.
    pub(super) spoke_at: u64,

    // Streams.
    pub(super) control: Control,
    pub(super) streams: Streams,
    pub(super) buffers: Buffers,
    /// Visitor: of the last stream it opened.
    pub(super) last_opened: u32,
    /// Provider: those that were opened.
    pub(super) numbering: Numbering,

    // Datagrams.
    pub(super) outgoing: Queue,
    pub(super) incoming: Queue,
    pub(super) knows_datagrams: bool,

    // What the peer's owner tells ours.
    pub(super) told: VecDeque<Box<[u8]>>,
    pub(super) knows_told: bool,

    pub(super) events: VecDeque<Event>,
    /// A frame that came in pieces.
    pub(super) scratch: Vec<u8>,
    /// The visitor's offer of a new session, to be answered by the endpoint.
    pub(super) offer: Option<Box<[u8; super::handshake::OFFER_BYTES]>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Began the tunnel, opens streams.
    Visitor,
    Provider,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// The peer is told, and told again whenever it sends something, until then.
    Closing {
        reason: CloseReason,
        is_to_be_told: bool,
        until: Option<u64>,
    },
    Gone,
}

/// What a tunnel begins with.
pub(super) struct Beginning {
    pub role: Role,
    pub remote: SocketAddr,
    pub name: ServiceName,
    pub service: Service,
    pub key: Arc<Key>,
    pub session: Session,
    pub seed: [u8; 32],
    /// The round trip of the handshake, where it is known.
    pub rtt_us: Option<u64>,
}

/// A time-out before any round trip of a stream is known, in µs: when the tunnel knows none either, and what it allows beyond.
const RTO_FIRST_US: u64 = 200_000;
const RTO_MARGIN_US: u64 = 10_000;

/// A round trip that was measured longer ago is measured again, in µs.
const RTT_AGE_US: u64 = 5_000_000;

impl Tunnel {
    pub(super) fn new(now: u64, settings: &Settings, beginning: Beginning) -> Self {
        let Beginning { role, remote, name, service, key, session, seed, rtt_us } = beginning;
        let mut random = Random::new(seed);
        let pacer_seed = u64::from_ne_bytes(random.draw());
        let probe_tokens = ProbeTokens::new(random.draw());
        let pacer = pacer::Settings { rate_max: settings.rate_max, seed: pacer_seed, ..pacer::Settings::default() };
        let buffer_bytes = settings.mtu_max.max(super::mtu::MTU_MIN);
        let mut tunnel = Self {
            role,
            phase: Phase::Open,
            name,
            service,
            settings: settings.clone(),
            key,
            random,
            now,
            sessions: Sessions::new(now, session),
            path: Path::new(remote),
            probe_tokens,
            mtu: Mtu::new(now, settings.mtu_max),
            liveness: Liveness::new(now, settings.keep_alive_us, role == Role::Visitor),
            arrivals: Arrivals::default(),
            losses: Losses::default(),
            redundancy: Redundancy::new(settings.repeats),
            repeat_at: None,
            pacer: Pacer::new(pacer),
            grant: Grant::default(),
            rtt_us: None,
            rtt_at: now,
            mtu_arrived: None,
            splitter: Splitter::default(),
            reassembly: Reassembly::default(),
            sent: Traffic::default(),
            sent_aside: 0,
            received: Traffic::default(),
            refused: 0,
            traffic_sent_at: None,
            spoke_at: now,
            control: Control::new(rtt_us.map_or(RTO_FIRST_US, |rtt| rtt + RTO_MARGIN_US)),
            streams: Streams::default(),
            buffers: Buffers::new(buffer_bytes, settings.buffer_bytes_max / buffer_bytes),
            last_opened: 0,
            numbering: Numbering::default(),
            outgoing: Queue::default(),
            incoming: Queue::default(),
            knows_datagrams: false,
            told: VecDeque::new(),
            knows_told: false,
            events: VecDeque::from([Event::Established]),
            scratch: Vec::new(),
            offer: None,
        };
        tunnel.begin_mtu(now);
        if let Some(rtt_us) = rtt_us {
            tunnel.on_rtt(now, rtt_us);
            tunnel.pacer.on_rtt(now, rtt_us);
        }
        tunnel
    }

    pub(super) fn on_rtt(&mut self, now: u64, rtt_us: u64) {
        self.rtt_us = Some(smoothed(self.rtt_us, rtt_us));
        self.rtt_at = now;
    }

    /// Who only receives learns no round trip by the way.
    pub(super) fn wants_rtt(&self, now: u64) -> bool {
        self.rtt_us.is_none() || self.rtt_at + RTT_AGE_US < now
    }

    /// For streams that have no round trip of their own yet.
    pub(super) fn rto_first_us(&self) -> u64 {
        self.rtt_us.map_or(RTO_FIRST_US, |rtt| rtt + rtt / 4 + RTO_MARGIN_US)
    }

    // Streams.

    /// Takes as many of `bytes` as there is room for; none for a stream that has finished or is gone. Took it less than all,
    /// [`Event::Writable`] tells when there is room again.
    pub fn write(&mut self, stream: StreamId, bytes: &[u8]) -> usize {
        let (now, path_bytes) = (self.now, self.pacer.window());
        let Some(place) = self.streams.find(stream) else { return 0 };
        let Self { streams, buffers, .. } = self;
        streams.with(place, |stream| stream.write(now, bytes, path_bytes, buffers))
    }

    /// Bytes that [`Self::write`] would take, at least, while the buffers last.
    #[must_use]
    pub fn room(&self, stream: StreamId) -> usize {
        self.streams.get(stream).map_or(0, |stream| stream.room(self.pacer.window(), &self.buffers))
    }

    /// The first of the bytes that can be read, where they lie. Empty when there are none, and for a stream that is gone.
    #[must_use]
    pub fn peek(&self, stream: StreamId) -> &[u8] {
        self.streams.get(stream).map_or(&[], |stream| stream.peek(&self.buffers))
    }

    /// Counts the first `bytes` of what [`Self::peek`] shows as read. What is not read stops the peer's writer.
    ///
    /// # Panics
    /// When it shows fewer.
    pub fn consume(&mut self, stream: StreamId, bytes: usize) {
        let Some(place) = self.streams.find(stream) else {
            assert_eq!(bytes, 0, "a stream that is gone shows nothing");
            return;
        };
        let (now, rtt_us) = (self.now, self.rtt_us.unwrap_or(0));
        let Self { streams, buffers, .. } = self;
        streams.with(place, |stream| stream.consume(now, bytes, rtt_us, buffers));
        self.look_at_rest(place);
    }

    // Datagrams.

    /// Queues a datagram of a player, or to one. It is sent at once and never again. Under congestion the oldest that waits is
    /// dropped for it. False, and nothing is queued, when it is longer than [`Self::datagram_bytes_max`].
    pub fn send_datagram(&mut self, session: u32, port: u8, player: Option<SocketAddr>, bytes: &[u8]) -> bool {
        let fits = bytes.len() <= self.datagram_bytes_max() && self.phase == Phase::Open;
        if fits {
            let player = player.filter(|_| self.service.wants_addresses);
            self.outgoing.push(DatagramInfo { session, port, player }, bytes);
        }
        fits
    }

    /// Longest datagram that can be sent: longer than any that UDP can bring.
    #[must_use]
    pub fn datagram_bytes_max(&self) -> usize {
        (FRAME_BYTES_MAX - DATAGRAM_HEAD_MAX).min(usize::from(u16::MAX))
    }

    /// Appends the next datagram that has arrived.
    pub fn read_datagram(&mut self, out: &mut Vec<u8>) -> Option<DatagramInfo> {
        let info = self.incoming.pop_bytes(out);
        self.knows_datagrams &= info.is_some();
        info
    }

    // The tunnel.

    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            remote: self.path.remote(),
            rtt_us: self.rtt_us,
            loss: self.redundancy.loss(),
            repeats: self.redundancy.times(),
            ask_after_us: self.liveness.ask_after_us(),
            mtu: self.mtu.size(),
            streams: self.streams.len(),
            buffers_free: self.buffers.left(),
            messages_waiting: self.control.waiting(),
            sessions: self.sessions.count(),
            rate: self.pacer.rate(),
            sent: self.sent,
            sent_aside: self.sent_aside,
            received: self.received,
            refused: self.refused,
            dropped: self.outgoing.dropped + self.incoming.dropped,
        }
    }

    /// When something of streams or datagrams was last sent, if only news of them. While there is nothing such, nobody misses a
    /// path that is dead.
    #[must_use]
    pub fn traffic_sent_at(&self) -> Option<u64> {
        self.traffic_sent_at
    }

    /// Of the key under which it was begun.
    #[must_use]
    pub fn key_id(&self) -> Id {
        self.key.id()
    }

    /// The service that it leads to.
    #[must_use]
    pub fn service(&self) -> (&ServiceName, Service) {
        (&self.name, self.service)
    }

    /// Tells the peer, as far as one packet can. Of this tunnel nothing is heard any more.
    pub fn close(&mut self, reason: CloseReason) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing { reason, is_to_be_told: true, until: None };
            self.drop_everything();
        }
    }

    pub(super) fn lose(&mut self, reason: LostReason) {
        if self.phase == Phase::Open {
            self.phase = Phase::Gone;
            self.drop_everything();
            self.events.push_back(Event::Lost(reason));
        }
    }

    /// The peer did what the protocol forbids: it is told, and so is the owner.
    pub(super) fn fault(&mut self) {
        if self.phase == Phase::Open {
            self.close(CloseReason::Fault);
            self.events.push_back(Event::Lost(LostReason::Fault));
        }
    }

    fn drop_everything(&mut self) {
        self.streams = Streams::default();
        self.buffers = Buffers::new(0, 0);
        (self.outgoing, self.incoming) = (Queue::default(), Queue::default());
        self.told.clear();
        self.events.clear();
    }

    pub(super) fn is_gone(&self) -> bool {
        self.phase == Phase::Gone && self.events.is_empty()
    }
}

/// As RFC 6298 has it.
fn smoothed(before: Option<u64>, sample: u64) -> u64 {
    before.map_or(sample, |before| (7 * before + sample) / 8)
}
