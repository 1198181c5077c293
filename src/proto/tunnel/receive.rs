//! What a packet brings.

use std::net::SocketAddr;

use super::control::Message;
use super::datagrams::DatagramInfo;
use super::events::{CloseReason, Event, LostReason};
use super::frames::{Datagram, Frame, Frames, Piece, Report, is_probing};
use super::handshake::ANSWER_BYTES;
use super::liveness::Liveness;
use super::peer::{Phase, Role, Tunnel};
use super::random::Random;
use super::reports::{Arrivals, Losses};
use super::schedule::{SEGMENT_OVERHEAD, segment_bytes};
use super::seal::Opened;
use super::sessions::Origin;
use super::settings::Service;
use super::stream::StreamId;
use super::wire::{Answer, Cipher, Id, Offer};
use crate::proto::kcp::Acked;
use crate::proto::kcp::segment::{Command, Header};

/// A silence that is none, in µs: sparse messages, a time-out or two.
const SILENCE_US: u64 = 300_000;

impl Tunnel {
    /// Whether the datagram is authentic. What is not has changed nothing but a counter.
    pub(super) fn handle_datagram(&mut self, now: u64, from: SocketAddr, datagram: &mut [u8]) -> bool {
        let bytes = datagram.len();
        let Ok((opened, origin)) = self.sessions.open(now, datagram) else {
            self.refused += 1;
            return false;
        };
        self.handle_opened(now, from, bytes, opened, origin);
        true
    }

    /// The packet was a datagram of `bytes`.
    pub(super) fn handle_opened(
        &mut self,
        now: u64,
        from: SocketAddr,
        bytes: usize,
        opened: Opened<'_>,
        origin: Origin,
    ) {
        self.now = now;
        self.received.count(bytes);
        if self.phase != Phase::Open {
            return self.handle_closed(opened.plaintext);
        }
        if origin == Origin::First {
            self.begin_session();
        }
        self.liveness.on_heard(now);
        let is_probing = is_probing(opened.plaintext);
        let is_newest = !is_probing && origin != Origin::Previous && opened.number > self.arrivals.highest();
        let before = self.path.remote();
        if self.path.on_packet(now, from, bytes, is_newest, || self.random.draw()) {
            self.follow(now, before);
        }
        let is_worth_telling = self.handle_frames(now, from, opened.plaintext);
        if !is_probing {
            self.end_silence(now);
        }
        if is_worth_telling && self.wants_rtt(now) {
            self.liveness.ask_once(now);
        }
        if origin != Origin::Previous && !is_probing {
            self.arrivals.note(now, opened.number, is_worth_telling);
        }
        self.tell_writers();
    }

    /// After a time in which nothing came, what was sent before is lost, too, unless this packet has acknowledged it. Nobody else
    /// finds that out soon: what is in flight fills the window of bulk, so that nothing is sent that could overtake it.
    fn end_silence(&mut self, now: u64) {
        let rtt_us = self.rtt_us.unwrap_or(SILENCE_US);
        let before = std::mem::replace(&mut self.spoke_at, now);
        if now > before + SILENCE_US.max(4 * rtt_us) {
            self.resend_before(now.saturating_sub(2 * rtt_us));
        }
    }

    /// The peer still speaks: it is told again that this is over, unless it says the same.
    fn handle_closed(&mut self, packet: &[u8]) {
        let Phase::Closing { is_to_be_told, .. } = &mut self.phase else { return };
        *is_to_be_told = true;
        if Frames::of(packet).any(|frame| matches!(frame, Ok(Frame::Close(_)))) {
            self.phase = Phase::Gone;
        }
    }

    /// Whether they hold something that is worth a report.
    fn handle_frames(&mut self, now: u64, from: SocketAddr, packet: &[u8]) -> bool {
        let mut is_worth_telling = false;
        for frame in Frames::of(packet) {
            // What is malformed ends the packet: it may be of a later version.
            let Ok(frame) = frame else { break };
            is_worth_telling |= matches!(frame, Frame::Segments(_) | Frame::Datagram(_) | Frame::Piece(_));
            self.handle_frame(now, from, frame);
        }
        is_worth_telling
    }

    fn handle_frame(&mut self, now: u64, from: SocketAddr, frame: Frame<'_>) {
        match frame {
            Frame::Segments(segments) => self.handle_segments(now, segments),
            Frame::Datagram(datagram) => self.handle_player_datagram(&datagram),
            Frame::Piece(piece) => self.handle_piece(now, from, &piece),
            Frame::Challenge(token) => self.path.answer(from, Frame::Response(token)),
            Frame::Response(token) => self.handle_response(now, from, token),
            Frame::Report(report) => self.handle_report(report),
            Frame::MtuProbe(size) => self.mtu_arrived = Some(size),
            Frame::MtuArrived(size) => {
                self.mtu.on_arrived(now, usize::from(size));
                self.adapt_segments();
            }
            Frame::Close(reason) => self.lose(LostReason::Closed(CloseReason::from_byte(reason))),
            Frame::Probe(token) => self.on_probed(from, token),
            Frame::Observe(token) => self.on_observe(from, token),
            Frame::Observed(token, address) => self.push_probed(Event::Observed { token, address }),
            Frame::Abandoned => self.on_abandoned(from),
            Frame::ObserveElsewhere(token) => self.on_observe_elsewhere(from, token),
        }
    }

    fn handle_segments(&mut self, now: u64, mut segments: &[u8]) {
        while let Some((header, _, after)) = Header::decode(segments) {
            let taken = if header.conversation == 0 {
                self.control_input(now, segments)
            } else {
                self.stream_input(now, &header, segments)
            };
            // A stream that is gone, or may not be: the next segment can be of another.
            segments = taken.map_or(after, |taken| &segments[taken..]);
            if self.phase != Phase::Open {
                return;
            }
        }
    }

    /// How many bytes it took.
    fn control_input(&mut self, now: u64, segments: &[u8]) -> Option<usize> {
        let mut acked = Heard::new(self.in_flight());
        let Self { control, pacer, .. } = self;
        let taken = control.input(now, segments, |one| acked.note(now, &one, pacer));
        self.after_acked(now, &acked);
        loop {
            match self.control.pop() {
                Ok(Some(message)) => self.on_message(message),
                Ok(None) => break,
                Err(_malformed) => {
                    self.fault();
                    break;
                }
            }
        }
        taken.ok()
    }

    fn stream_input(&mut self, now: u64, header: &Header, segments: &[u8]) -> Option<usize> {
        let id = StreamId(header.conversation);
        let place = if header.command == Command::Push { self.find_or_admit(id) } else { self.streams.find(id) }?;
        let mut acked = Heard::new(self.in_flight());
        let Self { streams, buffers, pacer, .. } = self;
        let taken = streams.with(place, |stream| {
            let taken = stream.conversation.input(now, segments, buffers, |one| acked.note(now, &one, pacer));
            stream.adapt_window(now, buffers);
            taken
        });
        self.after_acked(now, &acked);
        self.after_input(place);
        taken.ok()
    }

    fn after_acked(&mut self, now: u64, acked: &Heard) {
        if let Some(rtt_us) = acked.rtt_us {
            self.on_rtt(now, rtt_us);
        }
        if acked.longest > 0 {
            self.mtu.on_acknowledged(now, acked.longest + SEGMENT_OVERHEAD);
        }
    }

    /// Payload of all segments in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.streams.in_flight() + self.control.conversation.in_flight()
    }

    fn handle_player_datagram(&mut self, datagram: &Datagram<'_>) {
        let Datagram { session, port, player, bytes } = *datagram;
        self.incoming.push(DatagramInfo { session, port, player }, bytes);
        if !std::mem::replace(&mut self.knows_datagrams, true) {
            self.events.push_back(Event::Datagrams);
        }
    }

    /// A frame that came in pieces is one of those that may: none of them comes in pieces itself.
    fn handle_piece(&mut self, now: u64, from: SocketAddr, piece: &Piece<'_>) {
        let mut frame = std::mem::take(&mut self.scratch);
        frame.clear();
        if self.reassembly.take(now, piece, &mut frame)
            && let Some(Ok(whole @ (Frame::Segments(_) | Frame::Datagram(_)))) = Frames::of(&frame).next()
        {
            self.handle_frame(now, from, whole);
        }
        self.scratch = frame;
    }

    fn handle_response(&mut self, now: u64, from: SocketAddr, token: [u8; 8]) {
        if let Some(rtt_us) = self.liveness.on_response(now, token) {
            self.on_rtt(now, rtt_us);
            self.pacer.on_rtt(now, rtt_us);
        }
        if self.on_answered(now, from, token) {
            return;
        }
        if let Some(rtt_us) = self.path.on_announced(now, from, token) {
            self.on_rtt(now, rtt_us);
            self.pacer.on_rtt(now, rtt_us);
        }
        let before = self.path.remote();
        if self.path.on_response(now, from, token) {
            self.follow(now, before);
        }
    }

    fn handle_report(&mut self, report: Report) {
        if let Some(sample) = self.losses.on_report(report) {
            self.redundancy.on_sample(sample);
            self.pacer.on_loss_report(sample.packets, sample.lost);
        }
    }

    /// Cuts segments as long as the path carries from now on.
    pub(super) fn adapt_segments(&mut self) {
        let bytes = segment_bytes(self.mtu.size());
        self.streams.for_each(|stream| stream.conversation.set_segment_bytes(bytes));
    }

    // A new session.

    fn begin_session(&mut self) {
        (self.arrivals, self.losses) = (Arrivals::default(), Losses::default());
    }

    /// Whether a handshake is to be begun or to be answered.
    pub(super) fn wants_new_id(&self, now: u64) -> bool {
        let begins = self.role == Role::Visitor && self.sessions.is_renewal_due(now);
        self.phase == Phase::Open && (begins || self.offer.is_some())
    }

    pub(super) fn renewal_at(&self) -> Option<u64> {
        (self.role == Role::Visitor).then(|| self.sessions.renewal_at())
    }

    /// Begins or answers a handshake for a session in which packets come to `id`. Whether it did.
    pub(super) fn renew(&mut self, now: u64, id: Id, random: &mut Random) -> bool {
        let has_aes = self.settings.has_aes;
        let Some(message) = self.offer.take() else {
            let offer = Offer { id, has_aes, service: self.name };
            let message = self.sessions.offer(now, &self.key, &offer, random);
            self.control.push(Message::Renew(Box::new(message)));
            return true;
        };
        let Service { tcp_ports, udp_ports, wants_addresses } = self.service;
        let answer = |offer: &Offer| {
            let cipher = Cipher::for_both(has_aes, offer.has_aes);
            Answer { id, cipher, wants_addresses, tcp_ports, udp_ports }
        };
        let answer = self.sessions.on_offer(now, &self.key, &message, random, answer);
        let is_answered = answer.is_some();
        answer.into_iter().for_each(|answer| self.control.push(Message::Renewed(Box::new(answer))));
        is_answered
    }

    pub(super) fn on_renewed(&mut self, answer: &[u8; ANSWER_BYTES]) {
        let now = self.now;
        if self.role == Role::Visitor && self.sessions.on_answer(now, answer) {
            self.begin_session();
            // The provider begins to use it when it has heard of us in it.
            let ask_after_us = self.liveness.ask_after_us();
            self.liveness = Liveness::new(now, self.settings.keep_alive_us, true);
            self.liveness.ask_after(ask_after_us);
        }
    }
}

/// What was acknowledged by one input.
struct Heard {
    in_flight: usize,
    rtt_us: Option<u64>,
    longest: usize,
}

impl Heard {
    fn new(in_flight: usize) -> Self {
        Self { in_flight, rtt_us: None, longest: 0 }
    }

    fn note(&mut self, now: u64, acked: &Acked, pacer: &mut super::pacer::Pacer) {
        self.in_flight = self.in_flight.saturating_sub(acked.length);
        self.rtt_us = acked.rtt_us.or(self.rtt_us);
        self.longest = self.longest.max(acked.length);
        pacer.on_acked(now, acked, self.in_flight);
    }
}
