//! One end of a tunnel whose users never rest: a game that sends messages, on a stream or as datagrams, and bulk.

use std::net::SocketAddr;

use gateway::proto::tunnel::{Endpoint, Event, Service, Settings, Status, StreamId, Tunnel, TunnelId};

use super::Node;
use super::side::{SECRET, SERVICE, key, name};
use super::traffic::{Game, Listener, Measured, Traffic};

/// Ports of the service, by which the provider knows what a stream is for.
const GAME: u8 = 0;
const BULK: u8 = 1;

pub struct Busy {
    endpoint: Endpoint,
    tunnel: Option<TunnelId>,
    /// Streams are opened here.
    is_visitor: bool,
    traffic: Traffic,
    /// Traffic changed, and nothing has happened since.
    is_to_start: bool,
    game: Option<StreamId>,
    bulk: Option<StreamId>,
    player: Game,
    listener: Listener,
    delivered_bytes: u64,
    scratch: Vec<u8>,
}

impl Busy {
    /// To whom a [`Self::visitor`] comes.
    pub fn provider(settings: Settings, seed: [u8; 32]) -> Self {
        let mut busy = Self::new(settings, seed, false);
        let service = Service { tcp_ports: 2, udp_ports: 1, wants_addresses: false };
        busy.endpoint.serve(key(SECRET), name(SERVICE), service);
        busy
    }

    pub fn visitor(now: u64, provider: SocketAddr, settings: Settings, seed: [u8; 32]) -> Self {
        let mut busy = Self::new(settings, seed, true);
        busy.endpoint.connect(now, provider, key(SECRET), name(SERVICE)).expect("there is room for a tunnel");
        busy
    }

    fn new(settings: Settings, seed: [u8; 32], is_visitor: bool) -> Self {
        Self {
            endpoint: Endpoint::new(settings, seed),
            tunnel: None,
            is_visitor,
            traffic: Traffic::default(),
            is_to_start: false,
            game: None,
            bulk: None,
            player: Game::default(),
            listener: Listener::default(),
            delivered_bytes: 0,
            scratch: vec![7; 1 << 16],
        }
    }

    pub fn status(&mut self) -> Option<Status> {
        Some(self.tunnel()?.status())
    }

    fn tunnel(&mut self) -> Option<&mut Tunnel> {
        self.endpoint.tunnel(self.tunnel?)
    }

    fn hear(&mut self, now: u64) {
        while let Some((tunnel, event)) = self.endpoint.poll_event() {
            match event {
                Event::Established => {
                    self.tunnel = Some(tunnel);
                    self.is_to_start = true;
                }
                Event::Opened { stream, port: GAME, .. } => self.game = Some(stream),
                Event::Opened { stream, .. } => self.bulk = Some(stream),
                Event::Readable(stream) => self.read(now, stream),
                Event::Writable(_) => self.write_bulk(),
                Event::Datagrams => self.read_datagrams(now),
                Event::Lost(reason) => panic!("a tunnel is lost: {reason:?}"),
                Event::Reset(_, reason) => panic!("a stream is reset: {reason:?}"),
                Event::Ended(_) | Event::Forgotten(_) => panic!("a stream ends that nobody ended"),
                Event::Told | Event::Moved { .. } => panic!("nobody moves or tells anything"),
                Event::Probed { .. } | Event::Answered { .. } | Event::Observed { .. } => panic!("nobody probes"),
                Event::AskedElsewhere { .. } => panic!("nobody probes"),
            }
        }
    }

    /// Opens the streams that the traffic needs. Those that the visitor opens the provider uses too.
    fn open(&mut self) {
        if !self.is_visitor {
            return;
        }
        let (wants_game, wants_bulk) = (self.traffic.game_every_us.is_some(), self.traffic.bulk);
        let (game, bulk) = (self.game, self.bulk);
        let Some(tunnel) = self.tunnel() else { return };
        let game = if wants_game { game.or_else(|| tunnel.open(GAME, None)) } else { game };
        let bulk = if wants_bulk { bulk.or_else(|| tunnel.open(BULK, None)) } else { bulk };
        (self.game, self.bulk) = (game, bulk);
    }

    fn write(&mut self, now: u64) {
        if self.tunnel.is_some() && std::mem::take(&mut self.is_to_start) {
            self.open();
            self.player.start(now, self.traffic.game_every_us);
        }
        while let Some(message) = self.player.message(now) {
            let (game, by_datagrams) = (self.game, self.traffic.game_by_datagrams);
            let Some(tunnel) = self.tunnel() else { continue };
            if by_datagrams {
                assert!(tunnel.send_datagram(1, 0, None, &message), "it is short enough");
            } else if let Some(game) = game {
                assert_eq!(tunnel.write(game, &message), message.len(), "a game never fills its stream");
            }
        }
        self.write_bulk();
    }

    fn write_bulk(&mut self) {
        let (true, Some(bulk)) = (self.traffic.bulk, self.bulk) else { return };
        let Some(tunnel) = self.tunnel.and_then(|id| self.endpoint.tunnel(id)) else { return };
        while tunnel.write(bulk, &self.scratch) > 0 {}
    }

    fn read(&mut self, now: u64, stream: StreamId) {
        let Some(tunnel) = self.tunnel.and_then(|id| self.endpoint.tunnel(id)) else { return };
        loop {
            let piece = tunnel.peek(stream);
            let bytes = piece.len();
            if bytes == 0 {
                break;
            }
            if self.game == Some(stream) {
                self.listener.take(now, piece);
            } else {
                self.delivered_bytes += bytes as u64;
            }
            tunnel.consume(stream, bytes);
        }
    }

    fn read_datagrams(&mut self, now: u64) {
        let mut message = Vec::new();
        while let Some(tunnel) = self.tunnel.and_then(|id| self.endpoint.tunnel(id))
            && tunnel.read_datagram(&mut message).is_some()
        {
            self.listener.take(now, &message);
            message.clear();
        }
    }
}

impl Node for Busy {
    fn handle_datagram(&mut self, now: u64, from: SocketAddr, datagram: &mut [u8]) {
        self.endpoint.handle_datagram(now, from, datagram);
        self.hear(now);
        self.write(now);
    }

    fn poll_transmit(&mut self, now: u64, out: &mut Vec<u8>) -> Option<(SocketAddr, usize)> {
        self.hear(now);
        self.write(now);
        let transmit = self.endpoint.poll_transmit(now, out)?;
        Some((transmit.to, transmit.segment_bytes))
    }

    fn next_timeout(&self) -> Option<u64> {
        let message = self.tunnel.and_then(|_| self.player.next_timeout());
        self.endpoint.next_timeout().into_iter().chain(message).min()
    }

    fn handle_timeout(&mut self, now: u64) {
        self.endpoint.handle_timeout(now);
        self.hear(now);
        self.write(now);
    }
}

impl Measured for Busy {
    fn start(&mut self, traffic: Traffic) {
        self.traffic = traffic;
        self.is_to_start = true;
    }

    fn delays(&self) -> &[u32] {
        &self.listener.delays
    }

    fn delivered_bytes(&self) -> u64 {
        self.delivered_bytes
    }
}
