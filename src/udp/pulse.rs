//! Whether a peer still answers. What leaves just after it was heard may be no more than an acknowledgement; whatever is sent
//! later it must answer.

use std::time::{Duration, Instant};

use super::Context;
use super::peers::PeerId;
use crate::limits;

#[derive(Debug)]
pub(super) struct Pulse {
    tunnel: PeerId,
    heard_at: Instant,
    /// Datagrams sent so far.
    sent: u64,
    /// When something was first sent that the peer has had no reason to wait for.
    asked_at: Option<Instant>,
}

impl Pulse {
    /// Of a tunnel that has just been heard.
    pub(super) fn new(tunnel: PeerId, context: &mut Context) -> Self {
        let sent = sent(tunnel, context);
        Self { tunnel, heard_at: context.now, sent, asked_at: None }
    }

    pub(super) fn note_heard(&mut self, context: &Context) {
        (self.heard_at, self.asked_at) = (context.now, None);
    }

    /// For how long it has not been heard.
    pub(super) fn silence(&self, context: &Context) -> Duration {
        context.now.saturating_duration_since(self.heard_at)
    }

    /// Whether the peer has been asked something.
    pub(super) fn look(&mut self, context: &mut Context) {
        let sent = sent(self.tunnel, context);
        if sent > self.sent && self.heard_at + limits::PEER_GRACE <= context.now {
            self.asked_at.get_or_insert(context.now);
        }
        self.sent = sent;
    }

    /// It is asked something now, for which it must not take longer than for anything else.
    pub(super) fn ask(&mut self, context: &Context) {
        self.asked_at.get_or_insert(context.now);
    }

    /// Since when it owes an answer.
    pub(super) fn asked_at(&self) -> Option<Instant> {
        self.asked_at
    }
}

/// Datagrams sent so far.
fn sent(tunnel: PeerId, context: &mut Context) -> u64 {
    context.peers.get(tunnel).and_then(|tunnel| tunnel.sent()).unwrap_or(0)
}
