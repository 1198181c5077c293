//! Other ways to the peer: how they are looked for, and what changes when the path becomes another.
//!
//! Which way is the best is for the owner to say, by [`Tunnel::use_path`]. Once he has said so the tunnel follows nobody: then it is
//! the peer's tunnel that follows, at once where the new address is proved, as by an answer to a probe, otherwise after a
//! challenge. So exactly one of the two owners should decide. While neither does, both ends follow.
//!
//! Of what the tunnel has learnt nothing holds on the new path: size of datagrams, round trips, rate and losses begin anew. Streams
//! go on. What is on its way along a path that lives is not taken for lost by what overtakes it on the new one; what was sent
//! on one that is dead is sent again.

use std::net::SocketAddr;

use super::control::{Message, TELL_BYTES_MAX};
use super::events::Event;
use super::frames::{Frame, Token};
use super::peer::{Phase, Tunnel};
use super::repeats::Redundancy;
use super::way::is_virtual;

/// What the way to a peer is when it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It carries what is on it: there is a better one.
    Alive,
    /// What was sent on it lately has to be sent again.
    Dead,
}

/// What a datagram through a rendezvous has around it on the wire, at most, in bytes: the packet of the tunnel to the rendezvous,
/// the frame of a datagram, and some.
const THROUGH_BYTES: usize = 64;

/// Messages that wait for the owner to read them; the oldest is dropped. And those that may wait for room before no more are taken.
const TOLD_MAX: usize = 32;
const TELLING_MAX: usize = 32;

/// Events that wait for the owner and may be dropped, as probes say them again.
const PROBED_MAX: usize = 256;

impl Tunnel {
    /// Appends a datagram that asks the peer whether it can be reached at `to`. It may be sent from any socket. [`Event::Answered`]
    /// tells when the answer comes, from there.
    pub fn probe(&mut self, now: u64, to: SocketAddr, out: &mut Vec<u8>) {
        let token = self.probe_tokens.make(now, to);
        self.seal_aside(now, to != self.path.remote(), &[Frame::Probe(token)], out);
    }

    /// Appends a datagram that asks the peer, a rendezvous, from which address it came. It may be sent from any socket.
    /// [`Event::Observed`] tells the answer.
    pub fn observe(&mut self, now: u64, token: Token, out: &mut Vec<u8>) {
        self.seal_aside(now, true, &[Frame::Observe(token)], out);
    }

    /// The same, to be answered twice: by the socket that was asked, to `here`, and by another, to `elsewhere`. Whoever hears the
    /// former knows that the latter was sent, too, since a rendezvous that knows of no such thing answers neither.
    pub fn observe_elsewhere(&mut self, now: u64, elsewhere: Token, here: Token, out: &mut Vec<u8>) {
        self.seal_aside(now, true, &[Frame::ObserveElsewhere(elsewhere), Frame::Observe(here)], out);
    }

    /// Appends the answer to [`Event::AskedElsewhere`], which has brought `token` from `from`.
    pub fn answer_elsewhere(&mut self, now: u64, token: Token, from: SocketAddr, out: &mut Vec<u8>) {
        self.seal_aside(now, true, &[Frame::Observed(token, canonical(from))], out);
    }

    fn seal_aside(&mut self, now: u64, is_aside: bool, frames: &[Frame<'_>], out: &mut Vec<u8>) {
        self.now = now;
        self.sent_aside += u64::from(is_aside && self.phase == Phase::Open);
        if self.phase == Phase::Open {
            self.packet(self.mtu.size(), out, |_, _, out| frames.iter().for_each(|frame| frame.emit(out)));
        }
    }

    /// Tells the peer's owner something, in order with all else that is told. False, and it is not, when it is longer than 1,024
    /// bytes or when too much waits already.
    pub fn tell(&mut self, bytes: &[u8]) -> bool {
        let fits = bytes.len() <= TELL_BYTES_MAX && self.control.waiting() < TELLING_MAX && self.phase == Phase::Open;
        if fits {
            self.control.push(Message::Tell(bytes.into()));
        }
        fits
    }

    /// What the peer's owner has told. `None` when there is nothing left: [`Event::Told`] says when there is again.
    pub fn read_told(&mut self) -> Option<Box<[u8]>> {
        let told = self.told.pop_front();
        self.knows_told &= told.is_some();
        told
    }

    pub(super) fn on_told(&mut self, bytes: Box<[u8]>) {
        self.told.push_back(bytes);
        if self.told.len() > TOLD_MAX {
            self.told.pop_front();
        }
        if !std::mem::replace(&mut self.knows_told, true) {
            self.events.push_back(Event::Told);
        }
    }

    /// Everything goes to `to` from now on, and the peer learns of it. From now on nothing but this moves the path.
    pub fn use_path(&mut self, now: u64, to: SocketAddr, leaving: Leaving) {
        self.now = now;
        if self.phase != Phase::Open || !self.path.choose(now, to, leaving) {
            return;
        }
        self.begin_path(now);
        if leaving == Leaving::Dead {
            self.resend_before(now);
        }
    }

    /// Tells the peer once more where its packets are to go: it may have lost the way.
    pub fn announce_path(&mut self, now: u64) {
        self.now = now;
        if self.phase == Phase::Open {
            self.path.announce(now);
        }
    }

    /// The peer is asked whether it lives after such a silence, in µs, for an owner who keeps the way alive otherwise, or knows how
    /// often that has to be. A peer that says nothing is given up when it was before.
    pub fn ask_after(&mut self, silence_us: u64) {
        self.liveness.ask_after(silence_us);
    }

    pub(super) fn on_probed(&mut self, from: SocketAddr, token: Token) {
        self.path.answer(from, Frame::Response(token));
        self.push_probed(Event::Probed { from });
    }

    pub(super) fn on_observe(&mut self, from: SocketAddr, token: Token) {
        if self.settings.answers_observe && !is_virtual(from) {
            self.path.answer(from, Frame::Observed(token, canonical(from)));
        }
    }

    pub(super) fn on_observe_elsewhere(&mut self, from: SocketAddr, token: Token) {
        if self.settings.answers_observe && !is_virtual(from) {
            self.push_probed(Event::AskedElsewhere { token, from });
        }
    }

    /// Whether the token answers a probe.
    pub(super) fn on_answered(&mut self, now: u64, from: SocketAddr, token: Token) -> bool {
        let Some(rtt_us) = self.probe_tokens.rtt_us(now, from, token) else { return false };
        self.path.prove(now, from, rtt_us);
        self.push_probed(Event::Answered { from, rtt_us });
        true
    }

    pub(super) fn push_probed(&mut self, event: Event) {
        if self.events.len() < PROBED_MAX {
            self.events.push_back(event);
        }
    }

    /// The peer has moved, and its packets go after it.
    pub(super) fn follow(&mut self, now: u64, before: SocketAddr) {
        let to = self.path.remote();
        self.events.push_back(Event::Moved { to });
        let is_same_host = before.ip() == to.ip() && !is_virtual(to);
        if is_same_host {
            // Another port, as of a NAT that forgot: the path is the same (RFC 9000, section 9.4).
            self.begin_mtu(now);
        } else {
            self.begin_path(now);
        }
    }

    /// The peer says that the path before this one was dead.
    pub(super) fn on_abandoned(&mut self, from: SocketAddr) {
        if from == self.path.remote()
            && let Some(since) = self.path.since()
        {
            self.resend_before(since);
        }
    }

    fn begin_path(&mut self, now: u64) {
        self.begin_mtu(now);
        let in_flight = self.in_flight();
        self.rtt_us = self.path.proved_rtt_us();
        self.rtt_at = now;
        self.pacer.begin_path(now, self.rtt_us, in_flight);
        self.grant = Default::default();
        self.redundancy = Redundancy::new(self.settings.repeats);
        self.losses.begin_path(self.sessions.current().next_number());
        self.liveness.forget_question();
        let rto_first_us = self.rto_first_us();
        self.control.conversation.begin_path(now, rto_first_us);
        self.streams.with_each(|stream| stream.conversation.begin_path(now, rto_first_us));
    }

    pub(super) fn begin_mtu(&mut self, now: u64) {
        let less = if is_virtual(self.path.remote()) { THROUGH_BYTES } else { 0 };
        self.mtu.begin(now, self.settings.mtu_max - less);
        self.adapt_segments();
    }

    pub(super) fn resend_before(&mut self, time: u64) {
        self.control.conversation.resend_before(time);
        self.streams.with_each(|stream| stream.conversation.resend_before(time));
    }
}

/// As the peer knows it, whose IPv4 address a socket for both families calls otherwise.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
