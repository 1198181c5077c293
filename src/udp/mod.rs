//! A packet's life: `carrier -> endpoint -> events -> stream or session -> endpoint -> carrier`.
//!
//! Two daemons stand at the two ends of tunnels. The *visitor* is where players are: it has sockets for them, and carries what
//! they say through a tunnel to the *provider*, which stands beside the service and connects to it for each of them. What is in
//! a tunnel's datagrams, [`crate::proto::tunnel`] decides; here are the sockets, the names and the time.
//!
//! [`Udp::turn`] is the whole loop: what has arrived in the tunnels, what the tunnels say, what players and services say, who is
//! new, and then everything that is to be sent, so that one turn's acknowledgements and data leave together. Each step has a
//! budget; what is left waits for the next turn.
//!
//! Where neither end has an address that the other could know, both have a tunnel to a rendezvous (`via`), and their own tunnel
//! begins as a flow in it. The carrier knows the difference, and tunnels do not.

mod carrier;
mod links;
pub mod mapping;
mod meeting;
mod peers;
mod provider;
mod pulse;
mod punching;
mod reach;
pub mod rendezvous;
mod sessions;
mod settings;
mod status;
mod strangers;
mod stream;
mod streams;
mod via;
mod visitor;
mod ways;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{Engine, Event, Token};
use crate::names::{self, Found, Names};
use crate::proto::path::KeepAlive;
use crate::proto::rendezvous::client::Haste;
use crate::proto::rendezvous::data::DataId;
use crate::proto::timers::Timers;
use crate::proto::token::{Keyring, Secret};
use crate::proto::tunnel;
use crate::sys::{clock, udp};
use crate::tcp::accept;
use carrier::Carrier;
use meeting::Meeting;
use peers::{PeerId, Peers};
use provider::Provider;
pub use settings::{Kcptun, Mode, Paths, Protocol, Provided, Role, Settings, Via, Visited};
pub use status::PeerStatus;
use stream::{Ending, Joint};
use streams::Streams;
use visitor::Visitor;

/// All tunnels of a worker, and what they carry.
#[derive(Debug)]
pub struct Udp {
    end: End,
    /// Where the peers meet, if they do not know each other's addresses.
    meeting: Option<Box<Meeting>>,
    streams: Streams,
    carrier: Carrier,
    /// Something may have been left over by the last turn.
    crowded: bool,
    events: Vec<Event>,
    heard: Vec<(PeerId, SocketAddr)>,
    context: Context,
}

#[derive(Debug)]
enum End {
    Provider(Box<Provider>),
    Visitor(Box<Visitor>),
}

/// What all parts share.
#[derive(Debug)]
struct Context {
    engine: Engine,
    peers: Peers,
    names: Names<Asker>,
    timers: Timers,
    /// The first is the visitor's; a provider serves under all of them.
    keys: Vec<Arc<tunnel::Key>>,
    /// That of the rendezvous.
    via_key: Option<Arc<tunnel::Key>>,
    settings: Settings,
    /// How often ways through NATs are to be used.
    keep_alive: KeepAlive,
    /// For bytes on their way within a call.
    scratch: Box<[u8]>,
    /// For a datagram on its way to a player or a service.
    datagram: Vec<u8>,
    origin: Instant,
    /// Time of this turn.
    now: Instant,
}

/// Names a stream's connection for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    slot: u32,
    generation: u32,
}

/// Who asks for an address: a service's attempt to reach its provider, or without a service the attempt to reach the rendezvous.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    service: Option<usize>,
    attempt: u32,
}

/// Slots in tokens that no stream has; the generation is the socket's number. Listeners have [`accept::SLOT`].
const WIRES: u32 = u32::MAX - 1;
const ARENAS: u32 = u32::MAX - 2;
const LINKS: u32 = u32::MAX - 3;
const NETWORK: u32 = u32::MAX - 4;
const PUNCHING: u32 = u32::MAX - 5;
const MAPPING: u32 = u32::MAX - 6;

/// Roles in tokens. The slot of a game is its number, which tells its generation too.
const STREAM: u8 = 0;
const GAME: u8 = 1;

impl Context {
    /// The time of this turn as tunnels know it.
    fn now_us(&self) -> u64 {
        micros(self.now - self.origin)
    }

    /// A time of tunnels as the clock has it.
    fn time_of(&self, us: u64) -> Instant {
        self.origin + Duration::from_micros(us.min(FAR_US))
    }

    /// For what must not be guessed.
    fn seed(&self) -> [u8; 32] {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("it had randomness to give at the beginning");
        seed
    }
}

/// Later than any process lives, in µs.
const FAR_US: u64 = 1 << 50;

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

impl Udp {
    /// # Errors
    /// When sockets cannot be watched, or this host has no randomness to give.
    pub fn new(
        engine: Engine,
        sockets: Vec<OwnedFd>,
        names: Names<Asker>,
        keys: Keyring,
        settings: Settings,
    ) -> io::Result<Self> {
        let now = clock::now();
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        let (tunnel_keys, via_key) = tunnel_keys(&keys, settings.via.as_ref());
        let mut context = Context {
            engine,
            peers: settings.peers(&keys, seed),
            names,
            timers: Timers::new(now),
            keys: tunnel_keys,
            via_key,
            settings,
            keep_alive: KeepAlive::default(),
            scratch: vec![0; udp::RECEIVE_BYTES].into(),
            datagram: Vec::with_capacity(udp::RECEIVE_BYTES),
            origin: now,
            now,
        };
        let (end, carrier) = match context.settings.role.clone() {
            Role::Provide(services) => {
                let carrier = match context.settings.via {
                    None => Carrier::on(sockets, &mut context.engine)?,
                    Some(_) => Carrier::moving(sockets, &mut context.engine)?,
                };
                (End::Provider(Box::new(Provider::new(services, &mut context))), carrier)
            }
            Role::Visit(services) => {
                let mut sockets = sockets.into_iter();
                let visitor = Visitor::new(services, &mut sockets, &mut context)?;
                (End::Visitor(Box::new(visitor)), Carrier::moving(sockets.collect(), &mut context.engine)?)
            }
        };
        let meeting = Meeting::new(&mut context)?.map(Box::new);
        let streams = Streams::default();
        Ok(Self { end, meeting, streams, carrier, crowded: true, events: Vec::new(), heard: Vec::new(), context })
    }

    /// The next connection that the rendezvous wants for a player, and where to.
    pub(crate) fn poll_dial(&mut self) -> Option<(SocketAddr, DataId)> {
        self.meeting.as_mut()?.via.poll_dial()
    }

    /// Games under way, and connections that wait for a tunnel. A game whose connection here is closed is under way until the
    /// other end has read the last of it.
    #[must_use]
    pub fn connections(&self) -> usize {
        let sessions = match &self.end {
            End::Provider(provider) => provider.sessions(),
            End::Visitor(visitor) => visitor.sessions(),
        };
        // What is said to the rendezvous is no game.
        let own = usize::from(self.meeting.as_ref().is_some_and(|meeting| meeting.via.tunnel().is_some()));
        self.streams.len().max(self.context.peers.streams().saturating_sub(own)) + sessions
    }

    /// The peers that there are, and at a visitor's the services that nobody provides now.
    pub fn peers(&mut self) -> Vec<PeerStatus> {
        let Self { end, meeting, carrier, context, .. } = self;
        let mut peers = match end {
            End::Provider(provider) => provider.peers(context),
            End::Visitor(visitor) => visitor.peers(context),
        };
        if let Some(meeting) = meeting {
            for (service, (id, status)) in peers.iter_mut().enumerate() {
                match id {
                    Some(id) => meeting.ways.refine(*id, status, carrier, context),
                    None => status.why = meeting.why_nobody(service).to_owned(),
                }
            }
        }
        peers.into_iter().map(|(_, status)| status).collect()
    }

    /// Lets in nobody any more; games go on.
    pub fn drain(&mut self) {
        self.context.now = clock::now();
        match &mut self.end {
            End::Provider(provider) => provider.drain(&mut self.context),
            End::Visitor(visitor) => visitor.drain(&mut self.streams, &mut self.context),
        }
        if let Some(meeting) = &mut self.meeting {
            meeting.drain();
        }
    }

    /// Ends all games now.
    pub fn stop(&mut self) {
        self.streams.reset_all();
    }

    /// Tells the peers that this end is going.
    pub fn leave(&mut self) {
        self.context.now = clock::now();
        match &mut self.end {
            End::Provider(provider) => provider.leave(&mut self.context),
            End::Visitor(visitor) => visitor.leave(&mut self.context),
        }
        self.transmit(); // what goes through the rendezvous goes before the goodbye to it
        if let Some(meeting) = &mut self.meeting {
            meeting.leave(&mut self.context);
        }
        self.transmit();
        if let Some(meeting) = &mut self.meeting {
            meeting.mapping.leave(&mut self.context);
        }
        self.carrier.close(&mut self.context.engine);
        // A ring lets go of sockets in its own time: whoever starts after us must find the port free.
        let _ = self.context.engine.wait(Duration::ZERO, &mut self.events);
    }

    /// Puts new secrets and settings in force, for tunnels that have not begun. Services and their ports stay what they were.
    pub fn reload(&mut self, keys: Keyring, settings: Settings) {
        let is_same = settings.outline() == self.context.settings.outline();
        let role = if is_same { settings.role.clone() } else { self.context.settings.role.clone() };
        (self.context.keys, self.context.via_key) = tunnel_keys(&keys, settings.via.as_ref());
        let protocol = self.context.settings.protocol.clone();
        self.context.settings = Settings { role: role.clone(), protocol, ..settings };
        match (&mut self.end, role) {
            (End::Provider(provider), Role::Provide(services)) => provider.reload(services, &mut self.context),
            (End::Visitor(visitor), Role::Visit(services)) => visitor.reload(services),
            (End::Provider(_) | End::Visitor(_), _) => {}
        }
    }

    /// The answer to a question for an address.
    pub fn handle_found(&mut self, found: Found<Asker>) {
        self.context.names.note_answer();
        match (found.asker.service, &mut self.end) {
            (None, _) => {
                if let Some(meeting) = &mut self.meeting {
                    meeting.handle_found(found);
                }
            }
            (Some(service), End::Visitor(visitor)) => visitor.handle_found(service, found),
            (Some(_), End::Provider(_)) => {}
        }
        self.crowded = true; // the next turn tries it
    }

    /// One turn: deals with what has happened. True when the runtime has something to do.
    pub fn turn(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.events);
        self.context.engine.take(&mut events);
        self.context.now = clock::now();
        for event in events.drain(..) {
            match event {
                Event::Ready(token, _) | Event::Disarmed(token) => self.handle_event(event, token),
                Event::Runtime => {}
            }
        }
        self.events = events;
        let more = self.receive();
        self.hear_peers();
        self.streams.expire(&mut self.context);
        self.streams.serve(&mut self.context);
        let busy = match &mut self.end {
            End::Provider(provider) => {
                provider.turn(&mut self.context);
                provider.is_busy()
            }
            End::Visitor(visitor) => {
                visitor.turn(&mut self.streams, &mut self.carrier, &mut self.context);
                visitor.is_busy()
            }
        };
        self.meet();
        let more_to_send = self.transmit();
        self.crowded = more | self.streams.are_busy() | busy | more_to_send;
        self.asks_names()
    }

    /// How long nothing needs to be done unless something happens, at most `patience`.
    #[must_use]
    pub fn patience(&self, patience: Duration) -> Duration {
        if self.crowded {
            return Duration::ZERO;
        }
        let now = clock::now();
        let of_end = match &self.end {
            End::Provider(provider) => provider.deadline(),
            End::Visitor(visitor) => visitor.deadline(),
        };
        let of_endpoint = self.context.peers.next_timeout().map(|at| self.context.origin + Duration::from_micros(at));
        // What has to be sent has to wait for a socket that is full.
        let of_endpoint = of_endpoint.map(|at| self.carrier.paused_until().map_or(at, |until| at.max(until)));
        let of_meeting = self.meeting.as_ref().and_then(|meeting| meeting.deadline(&self.context));
        let of_links = self.carrier.links.deadline();
        let of_timers = self.context.timers.next_deadline();
        let earliest = [of_end, of_endpoint, of_timers, self.carrier.paused_until(), of_meeting, of_links];
        let earliest = earliest.into_iter().flatten().min();
        let patience = if self.asks_names() { patience.min(names::RUNTIME_PAUSE) } else { patience };
        earliest.map_or(patience, |at| at.saturating_duration_since(now).min(patience))
    }

    fn asks_names(&self) -> bool {
        self.context.names.asking()
    }

    fn handle_event(&mut self, event: Event, token: Token) {
        let context = &mut self.context;
        let disarmed = matches!(event, Event::Disarmed(_));
        match (token.slot, &mut self.end) {
            (accept::SLOT, End::Visitor(visitor)) => visitor.note_door(event, token, context),
            (accept::SLOT, End::Provider(_)) => {}
            (WIRES, _) if disarmed => {
                if let Err(error) = self.carrier.watch_again(token, &mut context.engine) {
                    tracing::error!(%error, "a socket of tunnels is not watched any more");
                }
            }
            (WIRES, _) => self.carrier.note_arrival(token),
            (LINKS, _) => match event {
                Event::Ready(_, news) => self.carrier.links.note(token, news),
                Event::Disarmed(_) => self.carrier.links.watch_again(token, &mut context.engine),
                Event::Runtime => {}
            },
            (PUNCHING, _) => {
                if let Some(meeting) = &mut self.meeting {
                    meeting.ways.note_connection(context);
                }
            }
            (NETWORK, _) => {
                if let Some(meeting) = &mut self.meeting {
                    meeting.note_network(event, context);
                }
            }
            (MAPPING, _) => {
                if let Some(meeting) = &mut self.meeting {
                    meeting.mapping.note_bell(event, context);
                }
            }
            (ARENAS, End::Visitor(visitor)) if disarmed => visitor.watch_again(token, context),
            (ARENAS, End::Visitor(visitor)) => visitor.note_arrival(token),
            (_, End::Provider(provider)) if token.role == GAME && disarmed => provider.watch_again(token, context),
            (_, End::Provider(provider)) if token.role == GAME => provider.note_arrival(token),
            (_, _) => match event {
                Event::Ready(_, news) => self.streams.note(token, news, context),
                Event::Disarmed(_) => self.streams.watch_again(token, context),
                Event::Runtime => {}
            },
        }
    }

    /// What has arrived in the tunnels. True when there may be more.
    fn receive(&mut self) -> bool {
        let now = self.context.now_us();
        let heard = &mut self.heard;
        let more = self.carrier.receive(now, &mut self.context.peers, |tunnel, from| {
            if heard.last() != Some(&(tunnel, from)) {
                heard.push((tunnel, from));
            }
        });
        self.note_heard();
        if self.context.peers.next_timeout().is_some_and(|at| at <= now) {
            self.context.peers.handle_timeout(now);
        }
        more
    }

    fn note_heard(&mut self) {
        for (tunnel, from) in self.heard.drain(..) {
            if let Some(meeting) = &mut self.meeting {
                meeting.ways.note_heard(tunnel, from, &self.context);
            }
            match (&mut self.meeting, &mut self.end) {
                (Some(meeting), _) if meeting.via.is(tunnel) => meeting.via.note_heard(tunnel, from, &self.context),
                (_, End::Visitor(visitor)) => visitor.note_heard(tunnel, &self.context),
                (_, End::Provider(_)) => {}
            }
        }
    }

    /// What is to be done at the rendezvous.
    fn meet(&mut self) {
        let Self { end, meeting: Some(meeting), streams, carrier, context, .. } = self else { return };
        if let End::Visitor(visitor) = end {
            visitor.doubted().for_each(|service| meeting.find_anew(service));
        }
        meeting.turn(haste(end, streams), carrier, context);
        while let Some((service, flow)) = meeting.poll_flow(context) {
            if let End::Visitor(visitor) = end {
                visitor.note_flow(service, flow, context);
            }
        }
        if meeting.via.take_learnt() {
            meeting.ways.note_chance(context);
        }
        match end {
            End::Visitor(visitor) => visitor.release(|tunnel| meeting.ways.carries_data(tunnel), streams, context),
            End::Provider(provider) => {
                provider.note_rendezvous(meeting.via.tunnel(), context);
                while let Some(channel) = meeting.via.poll_channel() {
                    provider.note_channel(&channel, context);
                }
            }
        }
    }

    /// What the peers say.
    fn hear_peers(&mut self) {
        while let Some((peer, event)) = self.context.peers.poll_event() {
            self.hear_peer(peer, event);
        }
    }

    fn hear_peer(&mut self, peer: PeerId, event: peers::Event) {
        if self.meeting.as_ref().is_some_and(|meeting| meeting.via.is(peer)) {
            return self.hear_rendezvous(peer, event);
        }
        let Self { end, meeting, streams, carrier, context, .. } = self;
        if let Some(meeting) = meeting {
            meeting.hear_peer(peer, event, carrier, context);
        }
        let joint = |stream| Joint { peer, stream };
        match (event, end) {
            (peers::Event::Established, End::Provider(provider)) => provider.note_established(peer, context),
            (peers::Event::Established, End::Visitor(visitor)) => visitor.note_established(peer, streams, context),
            (peers::Event::Confirmed, End::Provider(provider)) => provider.note_established(peer, context),
            (peers::Event::Confirmed, End::Visitor(_)) => tracing::info!("peer reached"),
            (peers::Event::Lost(reason), End::Provider(provider)) => provider.note_lost(peer, reason, streams, context),
            (peers::Event::Lost(reason), End::Visitor(visitor)) => visitor.note_lost(peer, reason, streams, context),
            (peers::Event::Opened { stream, port, player }, End::Provider(provider)) => {
                provider.note_opened(joint(stream), port, player, streams, context);
            }
            (peers::Event::Opened { .. }, End::Visitor(_)) => {}
            (peers::Event::Readable(stream) | peers::Event::Writable(stream), _) => {
                streams.hear(joint(stream), |_| {}, context);
            }
            (peers::Event::Ended { stream, deaf }, _) => {
                streams.hear(joint(stream), |stream| stream.note_peer_ended(deaf), context);
            }
            (peers::Event::Reset(stream, reason), _) => {
                streams.cut(joint(stream), Ending::PeerReset(reason), context);
            }
            (peers::Event::Datagrams, End::Provider(provider)) => provider.deliver(peer, streams, context),
            (peers::Event::Datagrams, End::Visitor(visitor)) => visitor.deliver(peer, context),
            (
                peers::Event::Told
                | peers::Event::Probed { .. }
                | peers::Event::Answered { .. }
                | peers::Event::Observed { .. }
                | peers::Event::Moved { .. },
                _,
            ) => {}
        }
    }

    fn hear_rendezvous(&mut self, peer: PeerId, event: peers::Event) {
        let Self { end, meeting: Some(meeting), streams, carrier, context, heard, .. } = self else { return };
        let (haste, via) = (haste(end, streams), &mut meeting.via);
        match event {
            peers::Event::Established => via.note_established(peer, carrier, context),
            peers::Event::Lost(_) => via.note_lost(peer, haste, carrier, context),
            peers::Event::Readable(_) => via.hear(haste, carrier, context),
            peers::Event::Ended { .. } | peers::Event::Reset(..) => via.note_lost(peer, haste, carrier, context),
            peers::Event::Datagrams => {
                let note_heard = |peer, from| {
                    if heard.last() != Some(&(peer, from)) {
                        heard.push((peer, from));
                    }
                };
                via.deliver(context, note_heard, |rendezvous, info, context| {
                    if let End::Provider(provider) = end {
                        provider.deliver_play(rendezvous, info, streams, context);
                    }
                });
                self.note_heard();
            }
            peers::Event::Answered { from, .. } => via.note_answered(peer, from, context),
            peers::Event::Observed { token, address } => meeting.ways.note_observed(token, address, context),
            // It speaks in every turn.
            peers::Event::Writable(_) => {}
            peers::Event::Confirmed
            | peers::Event::Opened { .. }
            | peers::Event::Told
            | peers::Event::Probed { .. }
            | peers::Event::Moved { .. } => {}
        }
    }

    /// Sends what is to be sent. True when there may be more.
    fn transmit(&mut self) -> bool {
        let now = (self.context.now, self.context.now_us());
        self.carrier.transmit(now, &mut self.context.peers)
    }
}

/// What tunnels make of the secrets: the keys that the peers share, and the one of the rendezvous.
fn tunnel_keys(keys: &Keyring, via: Option<&Via>) -> (Vec<Arc<tunnel::Key>>, Option<Arc<tunnel::Key>>) {
    let key = |secret: &Secret| Arc::new(tunnel::Key::from_secret(secret.bytes()));
    let mut keys: Vec<_> = keys.secrets().iter().map(key).collect();
    match via {
        None => (keys, None),
        Some(via) if via.has_own_secret => {
            let own = keys.pop();
            (keys, own)
        }
        Some(_) => {
            let shared = keys.first().cloned();
            (keys, shared)
        }
    }
}

/// How soon the rendezvous would be missed.
fn haste(end: &End, streams: &mut Streams) -> Haste {
    match end {
        End::Visitor(visitor) if visitor.is_waited_for(streams) => Haste::AtOnce,
        End::Visitor(visitor) if streams.len() + visitor.sessions() > 0 => Haste::Streaming,
        End::Provider(provider) if streams.len() + provider.sessions() > 0 => Haste::Streaming,
        End::Visitor(_) | End::Provider(_) => Haste::Calm,
    }
}
