//! How things are at a worker of the rendezvous, in numbers: nobody's name, nobody's address.

use std::iter::Sum;

use serde::{Deserialize, Serialize};

/// These names are part of what users rely on. Counters begin with the worker's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Peers with a tunnel to here; those of them that provide something, and those that visit. One may do both, or neither yet.
    pub peers: u64,
    pub providers: u64,
    pub visitors: u64,
    /// Services that somebody provides now.
    pub services: u64,
    /// Flows of visitors, and those of them that wait for a provider.
    pub flows: u64,
    pub flows_waiting: u64,
    /// Passed on in flows.
    pub relayed_datagrams: u64,
    pub relayed_bytes: u64,
    /// TCP connections of peers, and those that have proved nothing yet.
    pub links: u64,
    pub strangers: u64,
    /// Providers' connections that wait for players.
    pub hub_ready: u64,
    /// Players who have nothing but the game, by TCP and UDP, and what was moved for them, both ways.
    pub hub_players_tcp: u64,
    pub hub_players_udp: u64,
    pub hub_bytes: u64,
}

impl Sum for Figures {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            peers: a.peers + b.peers,
            providers: a.providers + b.providers,
            visitors: a.visitors + b.visitors,
            services: a.services + b.services,
            flows: a.flows + b.flows,
            flows_waiting: a.flows_waiting + b.flows_waiting,
            relayed_datagrams: a.relayed_datagrams + b.relayed_datagrams,
            relayed_bytes: a.relayed_bytes + b.relayed_bytes,
            links: a.links + b.links,
            strangers: a.strangers + b.strangers,
            hub_ready: a.hub_ready + b.hub_ready,
            hub_players_tcp: a.hub_players_tcp + b.hub_players_tcp,
            hub_players_udp: a.hub_players_udp + b.hub_players_udp,
            hub_bytes: a.hub_bytes + b.hub_bytes,
        })
    }
}
