//! One TCP connection joined to a stream of a tunnel: a player's at the visitor, a service's at the provider.
//!
//! *In* is the way from the socket into the tunnel: what is read is written at once, and no more is read than the tunnel has
//! room for. *Out* is the other way. The end of one half is passed on behind its last byte; a reset, or a tunnel that is lost,
//! is passed on as a reset.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Instant;

use super::peers::{Peer, PeerId, StreamId};
use super::{Context, Key};
use crate::proto::tunnel::ResetReason;
use crate::sys::socket;
use crate::tcp::{Side, dial};

/// Bytes a stream may move each way before others have their turn: two buffers full, about 50 µs.
const TURN_BYTES: usize = 128 * 1024;

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) key: Key,
    pub(super) side: Side,
    /// Number of the listener it came to, at a visitor.
    pub(super) door: usize,
    pub(super) player: Option<SocketAddr>,
    pub(super) since: Instant,
    /// The deadline that is set in the table of timers.
    pub(super) timer: Option<Instant>,
    /// Is in the queue of those that have more to do.
    pub(super) queued: bool,
    pub(super) state: State,
}

#[derive(Debug)]
pub(super) enum State {
    /// A visitor's: the tunnel is not there yet.
    Waiting {
        until: Instant,
    },
    /// A provider's: the service is being connected to.
    Dialing {
        joint: Joint,
        target: SocketAddr,
        until: Instant,
        header: Vec<u8>,
        peer_ended: Option<PeerEnded>,
    },
    Joined(Joined),
}

/// A stream of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Joint {
    pub(super) peer: PeerId,
    pub(super) stream: StreamId,
}

#[derive(Debug)]
pub(super) struct Joined {
    pub(super) joint: Joint,
    inward: Inward,
    outward: Outward,
    active: Instant,
    /// When to look whether anything has moved.
    look: Instant,
}

#[derive(Debug, Default)]
struct Inward {
    /// What the tunnel had no room for, at most a buffer full. While there is some, the socket is not read.
    kept: Vec<u8>,
    source_ended: bool,
    /// The tunnel knows of the end.
    ended: bool,
    /// The last wake-up brought nothing: perhaps it spoke of urgent data, and came before it.
    doubtful: bool,
    moved: u64,
}

#[derive(Debug, Default)]
struct Outward {
    /// What the socket has refused, at most a buffer full. The PROXY header, at first.
    kept: Vec<u8>,
    peer_ended: Option<PeerEnded>,
    /// And the tunnel has nothing more of it.
    all_read: bool,
    ended: bool,
    moved: u64,
}

/// The peer has finished its half.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerEnded {
    /// And hears nothing more.
    pub(super) deaf: bool,
}

/// What follows a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    /// There is more to do; it is the others' turn.
    Again,
    Close(Ending),
}

/// How a stream ended, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Both sides have ended, and each has every byte of the other.
    Complete,
    /// The connection here was reset.
    Reset,
    /// The connection at the other end of the tunnel was reset, or refused.
    PeerReset(ResetReason),
    TunnelLost,
    /// There was no tunnel in time.
    NoTunnel,
    /// The service cannot be connected to, there.
    Refused(SocketAddr),
    IdleTooLong,
}

/// How far one direction came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flown {
    Blocked,
    BudgetSpent,
    Failed,
}

impl Stream {
    /// Joins it to a stream of a tunnel. `first` is for the socket, before anything else.
    pub(super) fn join(&mut self, joint: Joint, first: Vec<u8>, context: &Context) {
        let outward = Outward { kept: first, ..Outward::default() };
        let look = context.now + context.settings.idle_timeout;
        self.state = State::Joined(Joined { joint, inward: Inward::default(), outward, active: context.now, look });
    }

    pub(super) fn joint(&self) -> Option<Joint> {
        match &self.state {
            State::Waiting { .. } => None,
            State::Dialing { joint, .. } => Some(*joint),
            State::Joined(joined) => Some(joined.joint),
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        match &self.state {
            State::Waiting { until } | State::Dialing { until, .. } => *until,
            State::Joined(joined) => joined.look,
        }
    }

    /// Bytes moved into the tunnel, and out of it.
    pub(super) fn moved(&self) -> (u64, u64) {
        match &self.state {
            State::Joined(joined) => (joined.inward.moved, joined.outward.moved),
            State::Waiting { .. } | State::Dialing { .. } => (0, 0),
        }
    }

    pub(super) fn note_peer_ended(&mut self, deaf: bool) {
        let ended = Some(PeerEnded { deaf });
        match &mut self.state {
            State::Waiting { .. } => {}
            State::Dialing { peer_ended, .. } => *peer_ended = ended,
            State::Joined(joined) => joined.outward.peer_ended = ended,
        }
    }

    pub(super) fn step(&mut self, context: &mut Context) -> Next {
        match &mut self.state {
            State::Waiting { until } if *until <= context.now => Next::Close(Ending::NoTunnel),
            State::Waiting { .. } if self.side.ready.failed => Next::Close(Ending::Reset),
            State::Waiting { .. } => Next::Wait,
            State::Dialing { .. } => self.dial(context),
            State::Joined(joined) => joined.step(&mut self.side, context),
        }
    }

    /// The service has answered, or has not.
    fn dial(&mut self, context: &mut Context) -> Next {
        let State::Dialing { joint, target, until, header, peer_ended } = &mut self.state else { return Next::Wait };
        let (joint, target, ended) = (*joint, *target, *peer_ended);
        let refused = |context: &mut Context, reason| {
            if let Some(mut tunnel) = context.peers.get(joint.peer) {
                tunnel.reset(joint.stream, reason);
            }
            Next::Close(Ending::Refused(target))
        };
        if *until <= context.now {
            return refused(context, ResetReason::TimedOut);
        }
        if !self.side.ready.writable && !self.side.ready.ended {
            return Next::Wait;
        }
        let port = socket::peer_address(self.side.socket.as_fd()).map_or(0, |address| address.port());
        if let Err(error) = dial::connected(&self.side, port) {
            let timed_out = error.kind() == ErrorKind::TimedOut;
            return refused(context, if timed_out { ResetReason::TimedOut } else { ResetReason::Refused });
        }
        let header = std::mem::take(header);
        self.join(joint, header, context);
        if let Some(PeerEnded { deaf }) = ended {
            self.note_peer_ended(deaf);
        }
        self.step(context)
    }
}

impl Joined {
    fn step(&mut self, side: &mut Side, context: &mut Context) -> Next {
        let Some(mut tunnel) = context.peers.get(self.joint.peer) else {
            return self.outlive(side, context.now);
        };
        let before = (self.inward.moved, self.outward.moved);
        let inward = self.inward.run(side, &mut tunnel, self.joint.stream, &mut context.scratch);
        let outward = self.outward.run(side, &mut tunnel, self.joint.stream, &mut context.scratch);
        if inward == Flown::Failed || outward == Flown::Failed {
            tunnel.reset(self.joint.stream, ResetReason::Reset);
            return Next::Close(Ending::Reset);
        }
        let deaf = self.outward.peer_ended.is_some_and(|ended| ended.deaf);
        if self.outward.ended && deaf && !self.inward.ended {
            tunnel.finish(self.joint.stream);
            self.inward.ended = true;
        }
        if self.inward.ended && self.outward.ended {
            return Next::Close(Ending::Complete);
        }
        if (self.inward.moved, self.outward.moved) != before {
            self.active = context.now;
        }
        let half_closed = self.inward.ended || self.outward.ended;
        let settings = &context.settings;
        let timeout = if half_closed { settings.half_closed_timeout } else { settings.idle_timeout };
        let idle_until = self.active + timeout;
        if self.look <= context.now || idle_until < self.look {
            self.look = idle_until;
        }
        if self.look <= context.now {
            tunnel.reset(self.joint.stream, ResetReason::TimedOut);
            return Next::Close(Ending::IdleTooLong);
        }
        if inward == Flown::BudgetSpent || outward == Flown::BudgetSpent { Next::Again } else { Next::Wait }
    }
}

impl Joined {
    /// The tunnel is gone. What is left of a stream that has ended both ways is still for the socket.
    fn outlive(&mut self, side: &mut Side, now: Instant) -> Next {
        if !self.inward.ended || !self.outward.all_read || self.look <= now {
            return Next::Close(Ending::TunnelLost);
        }
        match self.outward.send_kept(side) {
            Flown::Failed => Next::Close(Ending::Reset),
            Flown::Blocked | Flown::BudgetSpent if !self.outward.kept.is_empty() => Next::Wait,
            Flown::Blocked | Flown::BudgetSpent => Next::Close(Ending::Complete),
        }
    }
}

impl Inward {
    fn run(&mut self, side: &mut Side, tunnel: &mut Peer<'_>, stream: StreamId, scratch: &mut [u8]) -> Flown {
        if self.ended {
            // Nothing is read any more: that the connection failed later is seen only here.
            return if side.ready.failed { Flown::Failed } else { Flown::Blocked };
        }
        let (before, woken) = (self.moved, side.ready.readable);
        // A short read means that the socket is empty, unless an end or an urgent mark stands behind it.
        let more = side.ready.ended || side.ready.urgent || self.doubtful;
        let outcome = loop {
            if let Some(outcome) = self.copy(side, tunnel, stream, more, scratch) {
                break outcome;
            }
            if self.moved - before >= TURN_BYTES as u64 {
                break Flown::BudgetSpent;
            }
        };
        if woken {
            self.doubtful = self.moved == before && !side.ready.readable;
        }
        outcome
    }

    /// One read and one write.
    fn copy(
        &mut self,
        side: &mut Side,
        tunnel: &mut Peer<'_>,
        stream: StreamId,
        more: bool,
        scratch: &mut [u8],
    ) -> Option<Flown> {
        if !self.kept.is_empty() {
            let written = tunnel.write(stream, &self.kept);
            self.moved += written as u64;
            self.kept.drain(..written);
            if !self.kept.is_empty() {
                // That the connection has failed would be noticed only when there is room.
                return Some(if side.ready.failed { Flown::Failed } else { Flown::Blocked });
            }
            self.kept = Vec::new(); // gives the memory back
        }
        if self.source_ended {
            tunnel.finish(stream);
            self.ended = true;
        }
        if !side.ready.readable || self.ended {
            return Some(Flown::Blocked);
        }
        // A little is read for a tunnel without room, so that it knows that somebody waits.
        let most = tunnel.room(stream).clamp(READ_BYTES_MIN, scratch.len());
        let read = match socket::receive(side.socket.as_fd(), &mut scratch[..most]) {
            Ok(0) if side.broken => return Some(Flown::Failed),
            Ok(0) => {
                self.source_ended = true;
                return None;
            }
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                side.ready.readable = false;
                side.ready.urgent = false;
                return Some(Flown::Blocked);
            }
            Err(_reset) => {
                side.broken = true;
                return Some(Flown::Failed);
            }
        };
        side.ready.readable = read == most || more;
        let written = tunnel.write(stream, &scratch[..read]);
        self.moved += written as u64;
        self.kept.extend_from_slice(&scratch[written..read]);
        None
    }
}

/// What is read at once at least.
const READ_BYTES_MIN: usize = 4 * 1024;

impl Outward {
    fn run(&mut self, side: &mut Side, tunnel: &mut Peer<'_>, stream: StreamId, scratch: &mut [u8]) -> Flown {
        let outcome = self.move_on(side, tunnel, stream, scratch);
        self.all_read = self.peer_ended.is_some() && tunnel.peek(stream).is_empty();
        outcome
    }

    fn move_on(&mut self, side: &mut Side, tunnel: &mut Peer<'_>, stream: StreamId, scratch: &mut [u8]) -> Flown {
        let before = self.moved;
        while side.ready.writable && !self.ended {
            if !self.kept.is_empty() {
                match self.send_kept(side) {
                    Flown::Blocked => {}
                    other => return other,
                }
                continue;
            }
            let bytes = gather(tunnel, stream, scratch);
            if bytes == 0 {
                if self.peer_ended.is_some() {
                    self.ended = true;
                    // Fails only when the connection is gone, which reading finds out.
                    let _ = socket::end(side.socket.as_fd());
                }
                break;
            }
            let sent = match socket::send(side.socket.as_fd(), &scratch[..bytes]) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_gone) => return Flown::Failed,
            };
            self.moved += sent as u64;
            if sent < bytes {
                self.kept = scratch[sent..bytes].to_vec();
                side.ready.writable = false;
            }
            if self.moved - before >= TURN_BYTES as u64 {
                return Flown::BudgetSpent;
            }
        }
        // A connection that failed while it takes nothing would be noticed only when it does.
        if side.ready.failed && !side.ready.writable { Flown::Failed } else { Flown::Blocked }
    }

    fn send_kept(&mut self, side: &mut Side) -> Flown {
        match socket::send(side.socket.as_fd(), &self.kept) {
            Ok(sent) => {
                self.moved += sent as u64;
                self.kept.drain(..sent);
                side.ready.writable = self.kept.is_empty();
                if self.kept.is_empty() {
                    self.kept = Vec::new(); // gives the memory back
                }
                Flown::Blocked
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                side.ready.writable = false;
                Flown::Blocked
            }
            Err(_gone) => Flown::Failed,
        }
    }
}

/// Takes what can be read, as far as there is room: many segments for one call.
fn gather(tunnel: &mut Peer<'_>, stream: StreamId, into: &mut [u8]) -> usize {
    let mut gathered = 0;
    while gathered < into.len() {
        let piece = tunnel.peek(stream);
        let bytes = piece.len().min(into.len() - gathered);
        if bytes == 0 {
            break;
        }
        into[gathered..gathered + bytes].copy_from_slice(&piece[..bytes]);
        tunnel.consume(stream, bytes);
        gathered += bytes;
    }
    gathered
}
