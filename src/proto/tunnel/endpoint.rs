//! One UDP socket's worth of tunnels: tells them apart, answers handshakes and begins them.

use std::net::SocketAddr;

use super::{Event, Secret, Service, Settings, Transmit, Tunnel, TunnelId};

#[derive(Debug)]
pub struct Endpoint {
    _settings: Settings,
}

impl Endpoint {
    /// `seed` must be random and secret: ids and keys come from it.
    #[must_use]
    pub fn new(settings: Settings, _seed: [u8; 32]) -> Self {
        Self { _settings: settings }
    }

    /// Answers visitors who know `secret` and ask for that service.
    pub fn serve(&mut self, _secret: &Secret, _service: Service) {}

    /// Answers no more visitors of the service; its tunnels go on.
    pub fn withdraw(&mut self, _service: &str) {}

    /// Begins a tunnel to the provider of a service. `None` while there are as many tunnels as there may be.
    pub fn connect(&mut self, _now: u64, _peer: SocketAddr, _secret: &Secret, _service: &str) -> Option<TunnelId> {
        None
    }

    /// Takes a datagram, which it decrypts where it stands, and tells whose it was. Whatever is not authentic changes nothing.
    pub fn handle_datagram(&mut self, _now: u64, _from: SocketAddr, _datagram: &mut [u8]) -> Option<TunnelId> {
        None
    }

    /// `None` once it is gone.
    pub fn tunnel(&mut self, _id: TunnelId) -> Option<&mut Tunnel> {
        None
    }

    /// Appends datagrams of one size for one address to `out`. `None` when there is nothing to send now.
    pub fn poll_transmit(&mut self, _now: u64, _out: &mut Vec<u8>) -> Option<Transmit> {
        None
    }

    pub fn poll_event(&mut self) -> Option<(TunnelId, Event)> {
        None
    }

    /// When to come back, if nothing else happens before: at once (a time that has passed) while anything is to be sent.
    /// `None` when there is nothing to wait for.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        None
    }

    /// Does what is due. Then events are to be heard and datagrams to be sent.
    pub fn handle_timeout(&mut self, _now: u64) {}
}
