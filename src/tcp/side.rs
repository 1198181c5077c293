//! One socket of a connection, and what is known of it.

use std::os::fd::OwnedFd;

use crate::engine::{Readiness, Token};

/// Readiness is told once and remembered here until the socket blocks.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) socket: OwnedFd,
    pub(crate) token: Token,
    pub(crate) ready: Readiness,
    /// A call has told that the connection has failed.
    pub(crate) broken: bool,
}

impl Side {
    pub(crate) fn new(socket: OwnedFd, token: Token) -> Self {
        Self { socket, token, ready: Readiness::default(), broken: false }
    }

    pub(crate) fn note(&mut self, news: Readiness) {
        self.ready.urgent |= news.urgent || (news.perhaps_urgent && !self.ready.writable);
        self.ready.readable |= news.readable;
        self.ready.writable |= news.writable;
        self.ready.ended |= news.ended;
        self.ready.failed |= news.failed;
    }
}
