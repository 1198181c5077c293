//! All connections of a worker that are joined to streams of tunnels, or wait for it.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use slab::Slab;

use super::peers::PeerId;
use super::stream::{Ending, Joint, Next, State, Stream};
use super::{Context, Key};
use crate::engine::{Readiness, Token};
use crate::limits;
use crate::sys::socket;
use crate::tcp::Side;

/// Streams with more to do that are served in a turn, about 50 µs each.
const AGAIN_PER_TURN: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Streams {
    table: Slab<Stream>,
    of: HashMap<Joint, u32>,
    /// Those that have more to do, each once.
    again: VecDeque<Key>,
    generations: u32,
    /// When it was last logged that a service cannot be connected to.
    refusal_told: Option<Instant>,
}

impl Streams {
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// True when some have more to do.
    pub(super) fn are_busy(&self) -> bool {
        !self.again.is_empty()
    }

    /// Watches a connection from now on. Its first step is the caller's.
    pub(super) fn add(&mut self, socket: OwnedFd, state: State, context: &mut Context) -> std::io::Result<Key> {
        let entry = self.table.vacant_entry();
        let slot = u32::try_from(entry.key()).expect("there are fewer descriptors than slots");
        self.generations = self.generations.wrapping_add(1);
        let key = Key { slot, generation: Token::new(slot, self.generations, 0).generation };
        let token = Token::new(key.slot, key.generation, super::STREAM);
        context.engine.watch(socket.as_fd(), token)?;
        let joint = match &state {
            State::Dialing { joint, .. } => Some(*joint),
            State::Waiting { .. } | State::Joined(_) => None,
        };
        entry.insert(Stream {
            key,
            side: Side::new(socket, token),
            door: 0,
            player: None,
            since: context.now,
            timer: None,
            queued: false,
            state,
        });
        if let Some(joint) = joint {
            self.of.insert(joint, slot);
        }
        Ok(key)
    }

    pub(super) fn get(&mut self, key: Key) -> Option<&mut Stream> {
        self.table.get_mut(key.slot as usize).filter(|stream| stream.key == key)
    }

    /// Joins a connection that has waited to a stream.
    pub(super) fn join(&mut self, key: Key, joint: Joint, context: &mut Context) {
        let Some(stream) = self.get(key) else { return };
        stream.side.ready.writable = true; // an accepted connection has room
        stream.join(joint, Vec::new(), context);
        self.of.insert(joint, key.slot);
        self.advance(key.slot, context);
    }

    pub(super) fn note(&mut self, token: Token, news: Readiness, context: &mut Context) {
        let key = Key { slot: token.slot, generation: token.generation };
        let Some(stream) = self.get(key) else { return };
        stream.side.note(news);
        if !stream.queued {
            self.advance(token.slot, context);
        }
    }

    pub(super) fn watch_again(&mut self, token: Token, context: &mut Context) {
        let key = Key { slot: token.slot, generation: token.generation };
        if let Some(stream) = self.get(key)
            && let Err(error) = context.engine.watch(stream.side.socket.as_fd(), token)
        {
            tracing::error!(%error, "a socket is not watched any more; its deadline ends it");
        }
    }

    /// The tunnel has news of a stream.
    pub(super) fn hear(&mut self, joint: Joint, news: impl FnOnce(&mut Stream), context: &mut Context) {
        let Some(&slot) = self.of.get(&joint) else { return };
        let stream = &mut self.table[slot as usize];
        news(stream);
        if !stream.queued {
            self.advance(slot, context);
        }
    }

    /// Ends a stream because of what has happened at the other end of the tunnel.
    pub(super) fn cut(&mut self, joint: Joint, ending: Ending, context: &mut Context) {
        if let Some(&slot) = self.of.get(&joint) {
            self.close(slot, ending, context);
        }
    }

    /// Ends all streams of a tunnel that is gone.
    pub(super) fn cut_all(&mut self, peer: PeerId, context: &mut Context) {
        let of_tunnel = |stream: &Stream| stream.joint().is_some_and(|joint| joint.peer == peer);
        let slots: Vec<_> = self.table.iter().filter(|(_, stream)| of_tunnel(stream)).map(|(slot, _)| slot).collect();
        for slot in slots {
            self.close(slot as u32, Ending::TunnelLost, context);
        }
    }

    /// Passes on, in this moment, that all games are over.
    pub(super) fn reset_all(&mut self) {
        for (_, stream) in &self.table {
            socket::reset(stream.side.socket.as_fd());
        }
    }

    pub(super) fn expire(&mut self, context: &mut Context) {
        while let Some(slot) = context.timers.pop_expired(context.now) {
            if let Some(stream) = self.table.get_mut(slot as usize) {
                stream.timer = None;
                self.advance(slot, context);
            }
        }
    }

    /// Gives those with more to do their share.
    pub(super) fn serve(&mut self, context: &mut Context) {
        for _ in 0..AGAIN_PER_TURN.min(self.again.len()) {
            let Some(key) = self.again.pop_front() else { return };
            if let Some(stream) = self.get(key) {
                stream.queued = false;
                self.advance(key.slot, context);
            }
        }
    }

    pub(super) fn advance(&mut self, slot: u32, context: &mut Context) {
        let Some(stream) = self.table.get_mut(slot as usize) else { return };
        match stream.step(context) {
            Next::Wait => {}
            Next::Again => {
                if !std::mem::replace(&mut stream.queued, true) {
                    self.again.push_back(stream.key);
                }
            }
            Next::Close(ending) => return self.close(slot, ending, context),
        }
        let deadline = stream.deadline();
        if stream.timer.replace(deadline) != Some(deadline) {
            context.timers.set(slot, deadline);
        }
    }

    pub(super) fn close(&mut self, slot: u32, ending: Ending, context: &mut Context) {
        let stream = self.table.remove(slot as usize);
        context.timers.cancel(slot);
        if let Some(joint) = stream.joint() {
            self.of.remove(&joint);
        }
        if ending != Ending::Complete {
            socket::reset(stream.side.socket.as_fd());
        }
        let (bytes_in, bytes_out) = stream.moved();
        tracing::debug!(
            player = stream.player.map(tracing::field::display),
            bytes_in,
            bytes_out,
            ms = u64::try_from((context.now - stream.since).as_millis()).unwrap_or(u64::MAX),
            ?ending,
            "stream closed"
        );
        context.engine.forget(stream.side.socket, stream.side.token);
        if let Ending::Refused(service) = ending {
            self.warn_of_refusal(service, context.now);
        }
    }

    /// Players see no more than a reset: this log is where the operator learns why. Not for each of them.
    fn warn_of_refusal(&mut self, service: SocketAddr, now: Instant) {
        if self.refusal_told.is_none_or(|told| told + limits::REFUSAL_TOLD_PAUSE <= now) {
            self.refusal_told = Some(now);
            tracing::warn!(%service, "the service cannot be connected to, and its players are turned away: does it run, and listen there?");
        }
    }
}
