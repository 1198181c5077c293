//! What the operator decides about a rendezvous, and what a worker of it has to know of the others.

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::proto::target::Provided;
use crate::proto::tunnel::{self, Key, ServiceName};
use crate::sys;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Addresses it is found at; for each of them a worker has a socket for tunnels, one for questions, and a listener.
    pub addresses: usize,
    /// Workers that share them, and which of them this is.
    pub workers: usize,
    pub worker: usize,
    /// Bytes a second that the peers of one key may send each other through a worker. `None`: as many as they like.
    pub relay_rate: Option<u64>,
    /// Peers of a worker.
    pub peers_max: usize,
    pub exposed: Exposed,
}

/// Services that players reach through here with nothing but the game.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Exposed {
    /// By TCP, through the gateway's plane: their providers are asked for connections in advance.
    pub connections: Vec<ServiceName>,
    /// By UDP: a socket for each, which all workers share.
    pub datagrams: Vec<Provided>,
}

/// Sockets of one address.
const SOCKETS_OF_ADDRESS: usize = 3;

impl Settings {
    /// Sockets of a worker: those of exposed services, those of the addresses, and when there are other workers, that by which it
    /// gets connections from them, and then for each worker that by which it gets connections from here.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.exposed.datagrams.len()
            + SOCKETS_OF_ADDRESS * self.addresses
            + if self.workers > 1 { 1 + self.workers } else { 0 }
    }

    /// The worker where all peers of a key, or all packets for an id, are at home, by the first byte of either.
    pub(super) fn home(&self, first_byte: u8) -> usize {
        usize::from(first_byte) % self.workers
    }

    pub(super) fn home_of(&self, key: &Key) -> usize {
        self.home(key.id().0[0])
    }

    pub(super) fn of_tunnels(&self) -> tunnel::Settings {
        tunnel::Settings {
            has_aes: sys::process::has_aes(),
            streams_max: limits::RENDEZVOUS_STREAMS_MAX,
            tunnels_max: self.peers_max,
            buffer_bytes_max: limits::RENDEZVOUS_BUFFER_BYTES,
            handshakes_per_second: limits::RENDEZVOUS_HANDSHAKES,
            ids_begin_with: u8::try_from(self.worker).ok().filter(|_| self.workers > 1),
            answers_observe: true,
            ..tunnel::Settings::default()
        }
    }
}
