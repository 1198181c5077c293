//! One end of tunnels in a [`super::Net`], with an owner who does with streams and datagrams what he was told: writes what there
//! is to be written, reads everything unless he has stopped, and keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use gateway::proto::tunnel::{
    DatagramInfo, Endpoint, Event, Key, LostReason, ResetReason, Service, ServiceName, Settings, StreamId, Tunnel,
    TunnelId,
};

use super::Node;

pub struct Side {
    pub endpoint: Endpoint,
    pub accepts: Accepts,
    /// The last one that was established.
    pub tunnel: Option<TunnelId>,
    pub lost: Vec<LostReason>,
    pub streams: BTreeMap<(TunnelId, StreamId), Held>,
    /// When each datagram came, and what it was.
    pub datagrams: Vec<(u64, DatagramInfo, Vec<u8>)>,
    /// Nothing is read of them.
    pub stopped: BTreeSet<StreamId>,
    pub established: usize,
    /// What was heard of ways to the peer, and when.
    pub ways: Vec<(u64, Event)>,
}

/// What a provider does with a stream that a visitor has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// Reads it.
    Sink,
    /// Sends back what it reads, and finishes when the visitor has.
    Echo,
    /// Resets it.
    Refuse(ResetReason),
}

/// What the owner holds of a stream.
#[derive(Debug, Default)]
pub struct Held {
    pub opened: Option<(u8, Option<SocketAddr>)>,
    pub to_write: Vec<u8>,
    pub written: usize,
    /// To be finished once all is written.
    pub finishes: bool,
    pub read: Vec<u8>,
    pub has_ended: bool,
    pub reset: Option<ResetReason>,
    pub is_forgotten: bool,
}

pub fn key(secret: &str) -> Arc<Key> {
    Arc::new(Key::from_secret(secret.as_bytes()))
}

pub fn name(service: &str) -> ServiceName {
    ServiceName::new(service).expect("a proper name")
}

/// What tests agree on.
pub const SECRET: &str = "p0S8rX680*48";
pub const SERVICE: &str = "game";

impl Side {
    pub fn new(settings: Settings, seed: [u8; 32]) -> Self {
        Self {
            endpoint: Endpoint::new(settings, seed),
            accepts: Accepts::Sink,
            tunnel: None,
            lost: Vec::new(),
            streams: BTreeMap::new(),
            datagrams: Vec::new(),
            stopped: BTreeSet::new(),
            established: 0,
            ways: Vec::new(),
        }
    }

    pub fn serve(&mut self, accepts: Accepts, service: Service) {
        self.accepts = accepts;
        self.endpoint.serve(key(SECRET), name(SERVICE), service);
    }

    pub fn connect(&mut self, now: u64, peer: SocketAddr) -> TunnelId {
        self.endpoint.connect(now, peer, key(SECRET), name(SERVICE)).expect("there is room for a tunnel")
    }

    /// The last one that was established.
    pub fn tunnel(&mut self) -> &mut Tunnel {
        let id = self.tunnel.expect("a tunnel is established");
        self.endpoint.tunnel(id).expect("it lives")
    }

    pub fn held(&self, stream: StreamId) -> &Held {
        &self.streams[&(self.tunnel.expect("a tunnel is established"), stream)]
    }

    /// Opens a stream on which these bytes are to be sent, and then nothing more if it `finishes`.
    pub fn send(&mut self, bytes: Vec<u8>, finishes: bool) -> StreamId {
        let stream = self.tunnel().open(0, None).expect("there is room for a stream");
        let id = (self.tunnel.expect("a tunnel is established"), stream);
        self.streams.insert(id, Held { to_write: bytes, finishes, ..Held::default() });
        self.write(id);
        stream
    }

    /// Appends to what is to be sent.
    pub fn send_more(&mut self, stream: StreamId, bytes: &[u8]) {
        let id = (self.tunnel.expect("a tunnel is established"), stream);
        self.streams.entry(id).or_default().to_write.extend_from_slice(bytes);
        self.write(id);
    }

    pub fn finish(&mut self, stream: StreamId) {
        let id = (self.tunnel.expect("a tunnel is established"), stream);
        self.streams.entry(id).or_default().finishes = true;
        self.write(id);
    }

    /// Reads on.
    pub fn resume(&mut self, stream: StreamId) {
        self.stopped.remove(&stream);
        self.read((self.tunnel.expect("a tunnel is established"), stream));
    }

    fn write(&mut self, id: (TunnelId, StreamId)) {
        let Some(tunnel) = self.endpoint.tunnel(id.0) else { return };
        let Some(held) = self.streams.get_mut(&id) else { return };
        held.written += tunnel.write(id.1, &held.to_write[held.written..]);
        if held.written == held.to_write.len() && held.finishes {
            tunnel.finish(id.1);
        }
    }

    fn read(&mut self, id: (TunnelId, StreamId)) {
        if self.stopped.contains(&id.1) {
            return;
        }
        let Some(tunnel) = self.endpoint.tunnel(id.0) else { return };
        let held = self.streams.entry(id).or_default();
        let before = held.read.len();
        loop {
            let piece = tunnel.peek(id.1);
            let bytes = piece.len();
            if bytes == 0 {
                break;
            }
            held.read.extend_from_slice(piece);
            tunnel.consume(id.1, bytes);
        }
        if self.accepts == Accepts::Echo && held.opened.is_some() {
            let read = held.read[before..].to_vec();
            held.to_write.extend(read);
            self.write(id);
        }
    }

    pub fn hear(&mut self, now: u64) {
        while let Some((tunnel, event)) = self.endpoint.poll_event() {
            self.hear_one(now, tunnel, event);
        }
    }

    fn hear_one(&mut self, now: u64, tunnel: TunnelId, event: Event) {
        match event {
            Event::Established => {
                self.tunnel = Some(tunnel);
                self.established += 1;
            }
            Event::Lost(reason) => {
                self.lost.push(reason);
                self.tunnel.take_if(|current| *current == tunnel);
            }
            Event::Opened { stream, port, player } => {
                self.streams.entry((tunnel, stream)).or_default().opened = Some((port, player));
                if let Accepts::Refuse(reason) = self.accepts {
                    self.endpoint.tunnel(tunnel).expect("it lives").reset(stream, reason);
                }
            }
            Event::Readable(stream) => self.read((tunnel, stream)),
            Event::Writable(stream) => self.write((tunnel, stream)),
            Event::Ended(stream) => {
                let held = self.streams.entry((tunnel, stream)).or_default();
                assert!(!std::mem::replace(&mut held.has_ended, true), "{stream:?} ends twice");
                held.finishes |= self.accepts == Accepts::Echo && held.opened.is_some();
                self.write((tunnel, stream));
            }
            Event::Reset(stream, reason) => {
                self.streams.entry((tunnel, stream)).or_default().reset = Some(reason);
            }
            Event::Forgotten(stream) => {
                let held = self.streams.entry((tunnel, stream)).or_default();
                assert!(!std::mem::replace(&mut held.is_forgotten, true), "{stream:?} is forgotten twice");
            }
            Event::Told
            | Event::Probed { .. }
            | Event::Answered { .. }
            | Event::Observed { .. }
            | Event::AskedElsewhere { .. }
            | Event::Moved { .. } => {
                self.ways.push((now, event));
            }
            Event::Datagrams => {
                let Some(tunnel) = self.endpoint.tunnel(tunnel) else { return };
                let mut bytes = Vec::new();
                while let Some(info) = tunnel.read_datagram(&mut bytes) {
                    self.datagrams.push((now, info, std::mem::take(&mut bytes)));
                }
            }
        }
    }
}

impl Node for Side {
    fn handle_datagram(&mut self, now: u64, from: SocketAddr, datagram: &mut [u8]) {
        self.endpoint.handle_datagram(now, from, datagram);
        self.hear(now);
    }

    fn poll_transmit(&mut self, now: u64, out: &mut Vec<u8>) -> Option<(SocketAddr, usize)> {
        self.hear(now);
        let transmit = self.endpoint.poll_transmit(now, out)?;
        Some((transmit.to, transmit.segment_bytes))
    }

    fn next_timeout(&self) -> Option<u64> {
        self.endpoint.next_timeout()
    }

    fn handle_timeout(&mut self, now: u64) {
        self.endpoint.handle_timeout(now);
        self.hear(now);
    }
}
