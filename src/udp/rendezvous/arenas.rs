//! Players of exposed services by UDP. Each player is a session of the tunnel to the provider, and each socket here a port of it
//! ([`Channel`]): his datagrams go in that tunnel as those of flows do, and are open to whoever keeps the rendezvous, as they are on
//! their way to it.
//!
//! A socket is heard while its service has a provider here. All workers share it, and only one has the provider.
//!
//! Anybody may be a player, and a datagram is enough; so of the places that there are one host gets a part.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::super::ARENAS;
use super::super::sessions::Sessions;
use super::settings::Settings;
use crate::engine::{Engine, Token};
use crate::limits;
use crate::proto::rendezvous::wire::Channel;
use crate::proto::target::Provided;
use crate::proto::tunnel::{DatagramInfo, Endpoint, ServiceName, TunnelId};
use crate::sys::udp::{self, Batch, Outlet};

/// Batches taken from one socket before others have their turn.
const BATCHES_PER_TURN: usize = 16;

/// Batches that have waited for a provider, and are old: more than a socket's buffer holds of games' datagrams.
const STALE_BATCHES_MAX: usize = 8192;

#[derive(Debug)]
pub(super) struct Arenas {
    arenas: Vec<Arena>,
    players: Sessions<(usize, SocketAddr), Player>,
    hosts: Hosts,
    buffer: Box<[u8]>,
    /// Moved between players and providers.
    pub(super) moved_bytes: u64,
}

#[derive(Debug)]
struct Arena {
    socket: OwnedFd,
    token: Token,
    /// The port of tunnels that it is.
    channel: Channel,
    /// Who has the service.
    provider: Option<TunnelId>,
    is_readable: bool,
    outlet: Outlet,
}

/// How many players there are at each host.
#[derive(Debug, Default)]
struct Hosts {
    of: HashMap<u64, usize>,
}

/// To which of our addresses a player talks.
#[derive(Clone, Copy, Debug)]
struct Player {
    to: Option<IpAddr>,
}

impl Arenas {
    pub(super) fn new(sockets: Vec<OwnedFd>, settings: &Settings) -> Self {
        let arena = |(number, (socket, provided)): (u8, (OwnedFd, &Provided))| Arena {
            socket,
            token: Token::new(ARENAS, number.into(), 0),
            channel: Channel { number: number + 1, service: provided.service, port: provided.port },
            provider: None,
            is_readable: false,
            outlet: Outlet::default(),
        };
        let arenas: Vec<_> = (0..).zip(sockets.into_iter().zip(&settings.exposed.datagrams)).map(arena).collect();
        let buffer = vec![0; if arenas.is_empty() { 0 } else { udp::RECEIVE_BYTES }].into();
        Self { arenas, players: Sessions::new(), hosts: Hosts::default(), buffer, moved_bytes: 0 }
    }

    pub(super) fn players(&self) -> usize {
        self.players.len()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.players.deadline()
    }

    /// Services may have other providers than before. Hands out what new ones have to know.
    pub(super) fn note_providers(
        &mut self,
        provider: impl Fn(ServiceName) -> Option<TunnelId>,
        engine: &mut Engine,
    ) -> Vec<(TunnelId, Channel)> {
        let mut channels = Vec::new();
        for arena in &mut self.arenas {
            let provider = provider(arena.channel.service);
            let before = std::mem::replace(&mut arena.provider, provider);
            channels.extend(provider.filter(|_| before != provider).map(|provider| (provider, arena.channel)));
            match (before, provider) {
                (None, Some(_)) => arena.open(&mut self.buffer, engine),
                (Some(_), None) => arena.close(engine),
                (None, None) | (Some(_), Some(_)) => {}
            }
        }
        channels
    }

    pub(super) fn note_arrival(&mut self, token: Token) {
        if let Some(arena) = self.arenas.get_mut(token.generation as usize) {
            arena.is_readable = arena.provider.is_some();
        }
    }

    pub(super) fn watch_again(&mut self, token: Token, engine: &mut Engine) -> io::Result<()> {
        self.note_arrival(token);
        match self.arenas.get(token.generation as usize) {
            Some(arena) if arena.provider.is_some() => engine.watch_arrivals(arena.socket.as_fd(), arena.token),
            _ => Ok(()),
        }
    }

    /// Passes on what players say. True when there may be more.
    pub(super) fn hear(&mut self, now: Instant, endpoint: &mut Endpoint) -> bool {
        self.players.sweep(now, false, |(_, player), _| self.hosts.remove(player.ip()));
        for (number, arena) in self.arenas.iter_mut().enumerate() {
            for _ in 0..BATCHES_PER_TURN {
                if !arena.is_readable {
                    break;
                }
                let received = match udp::receive(arena.socket.as_fd(), &mut self.buffer) {
                    Ok(received) => received,
                    Err(error) => {
                        arena.is_readable = error.kind() != io::ErrorKind::WouldBlock;
                        continue;
                    }
                };
                let (key, player) = ((number, received.from), Player { to: received.to });
                let is_new = !self.players.knows(&key);
                if is_new && self.hosts.is_full(received.from.ip()) {
                    continue;
                }
                let Some((session, known)) = self.players.get_or_insert(key, now, |_| Some(player)) else { continue };
                if is_new {
                    self.hosts.add(received.from.ip());
                }
                *known = player;
                let Some(tunnel) = arena.provider.and_then(|provider| endpoint.tunnel(provider)) else { continue };
                let (channel, from) = (arena.channel.number, Some(received.from));
                if received.bytes == 0 {
                    tunnel.send_datagram(session, channel, from, &[]);
                }
                for datagram in received.datagrams(&mut self.buffer) {
                    tunnel.send_datagram(session, channel, from, datagram);
                    self.moved_bytes += datagram.len() as u64;
                }
            }
        }
        self.arenas.iter().any(|arena| arena.is_readable)
    }

    /// Hands a datagram of a provider to the player it is for.
    pub(super) fn deliver(&mut self, provider: TunnelId, info: &DatagramInfo, bytes: &[u8], now: Instant) {
        let Some(((number, to), player)) = self.players.peek_number(info.session) else { return };
        let arena = &mut self.arenas[number];
        if arena.channel.number == info.port && arena.provider == Some(provider) {
            let batch = Batch { bytes, segment_bytes: bytes.len(), to, from: player.to, whole: false };
            let _ = arena.outlet.send(arena.socket.as_fd(), &batch); // lost, as on any bad network
            self.moved_bytes += bytes.len() as u64;
            self.players.by_number(info.session, now);
        }
    }

    pub(super) fn close(&mut self, engine: &mut Engine) {
        for arena in self.arenas.drain(..) {
            engine.forget(arena.socket, arena.token);
        }
    }
}

impl Hosts {
    fn is_full(&self, host: IpAddr) -> bool {
        self.of.get(&network(host)).is_some_and(|players| *players >= limits::PLAYERS_OF_HOST_MAX)
    }

    fn add(&mut self, host: IpAddr) {
        *self.of.entry(network(host)).or_default() += 1;
    }

    fn remove(&mut self, host: IpAddr) {
        let host = network(host);
        if let Some(players) = self.of.get_mut(&host) {
            *players -= 1;
            if *players == 0 {
                self.of.remove(&host);
            }
        }
    }
}

/// Who has one address of IPv6 has all of its /64.
fn network(host: IpAddr) -> u64 {
    match host.to_canonical() {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
    }
}

impl Arena {
    /// Hears players from now on.
    fn open(&mut self, buffer: &mut [u8], engine: &mut Engine) {
        for _ in 0..STALE_BATCHES_MAX {
            if udp::receive(self.socket.as_fd(), buffer).is_err() {
                break;
            }
        }
        if let Err(error) = engine.watch_arrivals(self.socket.as_fd(), self.token) {
            tracing::error!(%error, service = %self.channel.service, "players of an exposed service are not heard");
        }
    }

    fn close(&mut self, engine: &mut Engine) {
        self.is_readable = false;
        engine.release(self.socket.as_fd(), self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_gets_a_part_of_the_places_for_players_and_the_others_have_theirs() {
        let mut hosts = Hosts::default();
        let host = |text: &str| text.parse::<IpAddr>().expect("an address");
        for count in 0..limits::PLAYERS_OF_HOST_MAX {
            assert!(!hosts.is_full(host("192.0.2.1")), "{count}");
            hosts.add(host("192.0.2.1"));
            hosts.add(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, count as u16]));
        }
        assert!(hosts.is_full(host("192.0.2.1")) && hosts.is_full(host("::ffff:192.0.2.1")));
        assert!(hosts.is_full(host("2001:db8::1")) && !hosts.is_full(host("2001:db8:0:1::1")));
        assert!(!hosts.is_full(host("192.0.2.2")));
        hosts.remove(host("192.0.2.1"));
        assert!(!hosts.is_full(host("192.0.2.1")));
        (1..limits::PLAYERS_OF_HOST_MAX).for_each(|_| hosts.remove(host("192.0.2.1")));
        assert_eq!(hosts.of.len(), 1, "nothing is kept of a host without players");
    }
}
