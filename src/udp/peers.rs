//! The peers behind one set of sockets: our own tunnels, or sessions of kcptun. The rest of this module deals with both alike;
//! what kcptun lacks is written down here, where it is made up for.
//!
//! * It has no handshake: a session is there as soon as it is wanted, and whether anybody answers turns out later.
//! * It has no half-close and no reset: a stream that has ended at one end takes nothing more there, and a reset is an end.
//! * It has no datagrams, no ports and no names of services: there is one service with one TCP port.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use super::status::PeerStatus;
use crate::proto::tunnel::{self, CloseReason, DatagramInfo, LostReason, ResetReason, ServiceName};
use crate::proto::{kcptun, tunnel::Transmit};

#[derive(Debug)]
pub(super) enum Peers {
    Tunnels(Box<tunnel::Endpoint>),
    Kcptun(Box<Kcptun>),
}

#[derive(Debug)]
pub(super) struct Kcptun {
    endpoint: kcptun::Endpoint,
    /// Sessions that were begun and not told yet.
    begun: VecDeque<kcptun::SessionId>,
}

/// One peer. Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PeerId {
    Tunnel(tunnel::TunnelId),
    Kcptun(kcptun::SessionId),
}

/// One stream of a peer. Never given twice there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum StreamId {
    Tunnel(tunnel::StreamId),
    Kcptun(kcptun::StreamId),
}

#[derive(Debug)]
pub(super) enum Peer<'a> {
    Tunnel(&'a mut tunnel::Tunnel),
    Kcptun(&'a mut kcptun::Session, SocketAddr),
}

/// What has happened to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Streams and datagrams may begin. The peer has proved that it knows the secret; one of kcptun has not.
    Established,
    /// One of kcptun is there, after all.
    Confirmed,
    Lost(Loss),
    Opened {
        stream: StreamId,
        port: u8,
        player: Option<SocketAddr>,
    },
    Readable(StreamId),
    Writable(StreamId),
    /// The peer has finished its half, and all of it can be read. `deaf`: it hears nothing more, either.
    Ended {
        stream: StreamId,
        deaf: bool,
    },
    Reset(StreamId, ResetReason),
    Datagrams,
    /// The peer's owner has told something.
    Told,
    /// The peer looks for other ways, from there.
    Probed {
        from: SocketAddr,
    },
    /// Another way to the peer works.
    Answered {
        from: SocketAddr,
        rtt_us: u64,
    },
    /// How the rendezvous sees us.
    Observed {
        token: tunnel::Token,
        address: SocketAddr,
    },
    /// The peer has moved, and what is for it goes after it.
    Moved {
        to: SocketAddr,
    },
}

/// Why a peer is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    Tunnel(LostReason),
    Kcptun(kcptun::LostReason),
}

/// For the log of an operator, who does not know our types.
impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tunnel(LostReason::Unanswered) => "it has not answered",
            Self::Tunnel(LostReason::Silent) => "it has fallen silent",
            Self::Tunnel(LostReason::Closed(CloseReason::Done)) => "it needs this tunnel no more",
            Self::Tunnel(LostReason::Closed(CloseReason::Leaving)) => "it was stopped",
            Self::Tunnel(LostReason::Closed(CloseReason::Fault)) => "it found a fault in what it was sent",
            Self::Tunnel(LostReason::Closed(CloseReason::Full)) => "it has as many peers as it bears",
            Self::Tunnel(LostReason::Closed(CloseReason::Other(_))) => "it has closed the tunnel",
            Self::Tunnel(LostReason::Fault) => "it did what the protocol forbids",
            Self::Kcptun(kcptun::LostReason::Silent) => "it is silent: is it there, with this key and this crypt?",
            Self::Kcptun(kcptun::LostReason::Garbled) => "it makes no sense: has it the same nocomp and smuxver?",
            Self::Kcptun(kcptun::LostReason::Replaced) => "it has begun anew",
        })
    }
}

impl Peers {
    pub(super) fn tunnels(settings: tunnel::Settings, seed: [u8; 32]) -> Self {
        Self::Tunnels(Box::new(tunnel::Endpoint::new(settings, seed)))
    }

    pub(super) fn kcptun(endpoint: kcptun::Endpoint) -> Self {
        Self::Kcptun(Box::new(Kcptun { endpoint, begun: VecDeque::new() }))
    }

    pub(super) fn endpoint(&mut self) -> Option<&mut tunnel::Endpoint> {
        match self {
            Self::Tunnels(endpoint) => Some(endpoint),
            Self::Kcptun(_) => None,
        }
    }

    pub(super) fn serve(&mut self, key: Arc<tunnel::Key>, name: ServiceName, service: tunnel::Service) {
        if let Self::Tunnels(endpoint) = self {
            endpoint.serve(key, name, service);
        }
    }

    pub(super) fn withdraw(&mut self, name: &ServiceName) {
        if let Self::Tunnels(endpoint) = self {
            endpoint.withdraw(name);
        }
    }

    pub(super) fn connect(
        &mut self,
        now: u64,
        peer: SocketAddr,
        key: Option<&Arc<tunnel::Key>>,
        service: ServiceName,
    ) -> Option<PeerId> {
        match self {
            Self::Tunnels(endpoint) => endpoint.connect(now, peer, key?.clone(), service).map(PeerId::Tunnel),
            Self::Kcptun(kcptun) => {
                let id = kcptun.endpoint.connect(now, peer)?;
                kcptun.begun.push_back(id);
                Some(PeerId::Kcptun(id))
            }
        }
    }

    /// Ends what there is with a peer, which is told if it can be told.
    pub(super) fn close(&mut self, id: PeerId, reason: CloseReason) {
        match (self, id) {
            (Self::Tunnels(endpoint), PeerId::Tunnel(id)) => match endpoint.tunnel(id) {
                Some(tunnel) => tunnel.close(reason),
                None => endpoint.forget(id),
            },
            (Self::Kcptun(kcptun), PeerId::Kcptun(id)) => kcptun.endpoint.close(id),
            (Self::Tunnels(_) | Self::Kcptun(_), _) => {}
        }
    }

    /// `None` before it is established, and once it is gone.
    pub(super) fn get(&mut self, id: PeerId) -> Option<Peer<'_>> {
        match (self, id) {
            (Self::Tunnels(endpoint), PeerId::Tunnel(id)) => endpoint.tunnel(id).map(Peer::Tunnel),
            (Self::Kcptun(kcptun), PeerId::Kcptun(id)) => {
                let remote = kcptun.endpoint.peer(id)?;
                kcptun.endpoint.session(id).map(|session| Peer::Kcptun(session, remote))
            }
            (Self::Tunnels(_) | Self::Kcptun(_), _) => None,
        }
    }

    /// Streams of all peers, which live until the other end has read them.
    pub(super) fn streams(&self) -> usize {
        match self {
            Self::Tunnels(endpoint) => endpoint.streams(),
            Self::Kcptun(kcptun) => kcptun.endpoint.streams(),
        }
    }

    /// One of our own kind.
    pub(super) fn tunnel(&mut self, id: PeerId) -> Option<&mut tunnel::Tunnel> {
        match self.get(id)? {
            Peer::Tunnel(tunnel) => Some(tunnel),
            Peer::Kcptun(..) => None,
        }
    }

    pub(super) fn handle_datagram(&mut self, now: u64, from: SocketAddr, datagram: &mut [u8]) -> Option<PeerId> {
        match self {
            Self::Tunnels(endpoint) => endpoint.handle_datagram(now, from, datagram).map(PeerId::Tunnel),
            Self::Kcptun(kcptun) => kcptun.endpoint.handle_datagram(now, from, datagram).map(PeerId::Kcptun),
        }
    }

    pub(super) fn poll_event(&mut self) -> Option<(PeerId, Event)> {
        match self {
            Self::Tunnels(endpoint) => loop {
                let (id, event) = endpoint.poll_event()?;
                if let Some(event) = of_tunnel(event) {
                    return Some((PeerId::Tunnel(id), event));
                }
            },
            Self::Kcptun(kcptun) => {
                if let Some(id) = kcptun.begun.pop_front() {
                    return Some((PeerId::Kcptun(id), Event::Established));
                }
                loop {
                    let (id, event) = kcptun.endpoint.poll_event()?;
                    if let Some(event) = of_kcptun(event) {
                        return Some((PeerId::Kcptun(id), event));
                    }
                }
            }
        }
    }

    pub(super) fn poll_transmit(&mut self, now: u64, out: &mut Vec<u8>) -> Option<Transmit> {
        match self {
            Self::Tunnels(endpoint) => endpoint.poll_transmit(now, out),
            Self::Kcptun(kcptun) => kcptun.endpoint.poll_transmit(now, out).map(|transmit| Transmit {
                to: transmit.to,
                segment_bytes: transmit.segment_bytes,
                is_mtu_probe: false,
            }),
        }
    }

    pub(super) fn next_timeout(&self) -> Option<u64> {
        match self {
            Self::Tunnels(endpoint) => endpoint.next_timeout(),
            Self::Kcptun(kcptun) if !kcptun.begun.is_empty() => Some(0),
            Self::Kcptun(kcptun) => kcptun.endpoint.next_timeout(),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: u64) {
        match self {
            Self::Tunnels(endpoint) => endpoint.handle_timeout(now),
            Self::Kcptun(kcptun) => kcptun.endpoint.handle_timeout(now),
        }
    }
}

fn of_tunnel(event: tunnel::Event) -> Option<Event> {
    Some(match event {
        tunnel::Event::Established => Event::Established,
        tunnel::Event::Lost(reason) => Event::Lost(Loss::Tunnel(reason)),
        tunnel::Event::Opened { stream, port, player } => {
            Event::Opened { stream: StreamId::Tunnel(stream), port, player }
        }
        tunnel::Event::Readable(stream) => Event::Readable(StreamId::Tunnel(stream)),
        tunnel::Event::Writable(stream) => Event::Writable(StreamId::Tunnel(stream)),
        tunnel::Event::Ended(stream) => Event::Ended { stream: StreamId::Tunnel(stream), deaf: false },
        tunnel::Event::Reset(stream, reason) => Event::Reset(StreamId::Tunnel(stream), reason),
        // Nobody asks us but a rendezvous' peers.
        tunnel::Event::Forgotten(_) | tunnel::Event::AskedElsewhere { .. } => return None,
        tunnel::Event::Datagrams => Event::Datagrams,
        tunnel::Event::Told => Event::Told,
        tunnel::Event::Probed { from } => Event::Probed { from },
        tunnel::Event::Answered { from, rtt_us } => Event::Answered { from, rtt_us },
        tunnel::Event::Observed { token, address } => Event::Observed { token, address },
        tunnel::Event::Moved { to } => Event::Moved { to },
    })
}

fn of_kcptun(event: kcptun::Event) -> Option<Event> {
    Some(match event {
        kcptun::Event::Established => Event::Confirmed,
        kcptun::Event::Lost(reason) => Event::Lost(Loss::Kcptun(reason)),
        kcptun::Event::Opened(stream) => Event::Opened { stream: StreamId::Kcptun(stream), port: 0, player: None },
        kcptun::Event::Readable(stream) => Event::Readable(StreamId::Kcptun(stream)),
        kcptun::Event::Writable(stream) => Event::Writable(StreamId::Kcptun(stream)),
        kcptun::Event::Ended(stream) => Event::Ended { stream: StreamId::Kcptun(stream), deaf: true },
        kcptun::Event::Reset(stream) => Event::Reset(StreamId::Kcptun(stream), ResetReason::Fault),
        kcptun::Event::Forgotten(_) => return None,
    })
}

impl Peer<'_> {
    pub(super) fn remote(&self) -> SocketAddr {
        match self {
            Self::Tunnel(tunnel) => tunnel.status().remote,
            Self::Kcptun(_, remote) => *remote,
        }
    }

    /// How things are with it, for whoever asks.
    pub(super) fn report(&self, service: ServiceName) -> PeerStatus {
        match self {
            Self::Tunnel(tunnel) => PeerStatus::of_tunnel(service, &tunnel.status()),
            Self::Kcptun(_, remote) => PeerStatus::of_kcptun(service, *remote),
        }
    }

    /// The service it is here for, where that has a name.
    pub(super) fn service(&self) -> Option<ServiceName> {
        match self {
            Self::Tunnel(tunnel) => Some(*tunnel.service().0),
            Self::Kcptun(..) => None,
        }
    }

    /// Its TCP and UDP ports, where they are told.
    pub(super) fn ports(&self) -> Option<(usize, usize)> {
        match self {
            Self::Tunnel(tunnel) => {
                let service = tunnel.service().1;
                Some((service.tcp_ports.into(), service.udp_ports.into()))
            }
            Self::Kcptun(..) => None,
        }
    }

    /// Datagrams sent so far to where the peer is, which answers soon whatever is not an answer.
    pub(super) fn sent(&self) -> Option<u64> {
        match self {
            Self::Tunnel(tunnel) => {
                let status = tunnel.status();
                Some(status.sent.datagrams - status.sent_aside)
            }
            Self::Kcptun(..) => None,
        }
    }

    pub(super) fn open(&mut self, port: u8, player: Option<SocketAddr>) -> Option<StreamId> {
        match self {
            Self::Tunnel(tunnel) => tunnel.open(port, player).map(StreamId::Tunnel),
            Self::Kcptun(session, _) => session.open().map(StreamId::Kcptun),
        }
    }

    /// Takes as many of `bytes` as there is room for. Took it less than all, [`Event::Writable`] tells when there is room.
    pub(super) fn write(&mut self, stream: StreamId, bytes: &[u8]) -> usize {
        match (self, stream) {
            (Self::Tunnel(tunnel), StreamId::Tunnel(stream)) => tunnel.write(stream, bytes),
            (Self::Kcptun(session, _), StreamId::Kcptun(stream)) => session.write(stream, bytes),
            (Self::Tunnel(_) | Self::Kcptun(..), _) => 0,
        }
    }

    pub(super) fn room(&self, stream: StreamId) -> usize {
        match (self, stream) {
            (Self::Tunnel(tunnel), StreamId::Tunnel(stream)) => tunnel.room(stream),
            (Self::Kcptun(session, _), StreamId::Kcptun(stream)) => session.room(stream),
            (Self::Tunnel(_) | Self::Kcptun(..), _) => 0,
        }
    }

    pub(super) fn peek(&self, stream: StreamId) -> &[u8] {
        match (self, stream) {
            (Self::Tunnel(tunnel), StreamId::Tunnel(stream)) => tunnel.peek(stream),
            (Self::Kcptun(session, _), StreamId::Kcptun(stream)) => session.peek(stream),
            (Self::Tunnel(_) | Self::Kcptun(..), _) => &[],
        }
    }

    pub(super) fn consume(&mut self, stream: StreamId, bytes: usize) {
        match (self, stream) {
            (Self::Tunnel(tunnel), StreamId::Tunnel(stream)) => tunnel.consume(stream, bytes),
            (Self::Kcptun(session, _), StreamId::Kcptun(stream)) => session.consume(stream, bytes),
            (Self::Tunnel(_) | Self::Kcptun(..), _) => {}
        }
    }

    pub(super) fn finish(&mut self, stream: StreamId) {
        match (self, stream) {
            (Self::Tunnel(tunnel), StreamId::Tunnel(stream)) => tunnel.finish(stream),
            (Self::Kcptun(session, _), StreamId::Kcptun(stream)) => session.finish(stream),
            (Self::Tunnel(_) | Self::Kcptun(..), _) => {}
        }
    }

    pub(super) fn reset(&mut self, stream: StreamId, reason: ResetReason) {
        match (self, stream) {
            (Self::Tunnel(tunnel), StreamId::Tunnel(stream)) => tunnel.reset(stream, reason),
            (Self::Kcptun(session, _), StreamId::Kcptun(stream)) => session.reset(stream),
            (Self::Tunnel(_) | Self::Kcptun(..), _) => {}
        }
    }

    pub(super) fn send_datagram(&mut self, session: u32, port: u8, player: Option<SocketAddr>, bytes: &[u8]) -> bool {
        match self {
            Self::Tunnel(tunnel) => tunnel.send_datagram(session, port, player, bytes),
            Self::Kcptun(..) => false,
        }
    }

    pub(super) fn read_datagram(&mut self, out: &mut Vec<u8>) -> Option<DatagramInfo> {
        match self {
            Self::Tunnel(tunnel) => tunnel.read_datagram(out),
            Self::Kcptun(..) => None,
        }
    }
}
