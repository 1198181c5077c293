//! The rendezvous: `carrier -> endpoint -> registry -> endpoint -> carrier`.
//!
//! Peers have tunnels to here, by UDP or over TCP links. On a tunnel's first stream a peer says what it provides and whom it wants
//! to reach; datagrams in it are for the peer to which [`crate::proto::rendezvous::registry`] says that they lead, and go into
//! that one's tunnel. What is in them is sealed for the peers alone.
//!
//! [`Rendezvous::turn`] is the whole loop: connections that have come, what has arrived in the tunnels, what the peers say, what
//! they are told, and then everything that is to be sent. Each step has a budget; what is left waits for the next turn.
//!
//! All peers of a key are in one worker, so workers share nothing. Datagrams get there by their first byte, connections through
//! the `lobby`. A second socket, on the next port, is there only so that peers can learn whether their NAT gives them the same
//! address towards both, and whether it lets in what they did not ask for.
//!
//! It is also a hub (`desk`, `arenas`): players who have nothing but the game reach providers through it. TCP has a connection
//! for each player, which the provider opens to here and the gateway's plane relays; datagrams go in the provider's tunnel.
//!
//! Strangers hear nothing. A connection whose first packet is neither an offer nor for a tunnel that is here ends without a
//! word, by which a peer learns that this is not the process that it knew.
//!
//! Deliberately absent: anything that outlives the process.

mod arenas;
mod desk;
mod figures;
mod journal;
mod lobby;
mod members;
mod settings;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::carrier::Carrier;
use super::links::{self, Links};
use super::peers::Peers;
use crate::engine::{Engine, Event};
use crate::limits;
use crate::proto::rendezvous::SERVICE;
use crate::proto::rendezvous::meter::Meter;
use crate::proto::rendezvous::registry::{Limits, Registry};
use crate::proto::rendezvous::wire::{Flow, Notice};
use crate::proto::token::Keyring;
use crate::proto::tunnel::wire::Id;
use crate::proto::tunnel::{self, CloseReason, Endpoint, Key, ResetReason, Service, ServiceName, TunnelId, Way};
use crate::sys::clock;
use crate::tcp::accept::{self, Doors};
use crate::tcp::guest::Guest;
use crate::tcp::hub::{NoConnection, Want};
use arenas::Arenas;
use desk::Desk;
pub use figures::Figures;
use journal::Journal;
use lobby::{Lobby, Mail};
use members::{Listening, Member};
pub use settings::{Exposed, Settings};

/// Slots in tokens, beside those of the carrier.
const LOBBY: u32 = u32::MAX - 8;
const MAIL: u32 = u32::MAX - 9;
const DATA: u32 = u32::MAX - 10;

/// While it drains: how often peers are looked through for games, and the datagrams since then, and half of those before, by
/// which a game is told from peers that only keep their way open.
const LOOK_PAUSE: Duration = Duration::from_secs(5);
const GAME_DATAGRAMS: u32 = 32;

/// All peers of a worker.
#[derive(Debug)]
pub struct Rendezvous {
    engine: Engine,
    events: Vec<Event>,
    doors: Doors,
    /// Where there are other workers.
    lobby: Option<Lobby>,
    carrier: Carrier,
    peers: Peers,
    registry: Registry<TunnelId>,
    members: HashMap<TunnelId, Member>,
    /// Whose the links are.
    by_link: HashMap<u32, TunnelId>,
    /// Those whose requests have not all been heard.
    unheard: VecDeque<TunnelId>,
    /// Of keys, where they are limited.
    meters: HashMap<Id, Meter>,
    journal: Journal,
    desk: Desk,
    arenas: Arenas,
    /// Of the registry, that these know.
    changes_seen: u64,
    settings: Settings,
    keys: Vec<Arc<Key>>,
    /// Workers that are home to any key, a bit each.
    homes: u64,
    /// Players from other workers.
    guests: VecDeque<Guest>,
    datagram: Vec<u8>,
    /// Datagrams passed on in flows, and their bytes.
    relayed: (u64, u64),
    /// Something may have been left over by the last turn.
    crowded: bool,
    closing: bool,
    look_at: Instant,
    origin: Instant,
    now: Instant,
}

impl Rendezvous {
    /// `sockets` as [`Settings::sockets`] has them.
    ///
    /// # Errors
    /// When sockets cannot be watched, or this host has no randomness to give.
    pub fn new(mut engine: Engine, sockets: Vec<OwnedFd>, keys: &Keyring, settings: Settings) -> io::Result<Self> {
        let now = clock::now();
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        let Sockets { datagrams, listeners, mail, arenas } = Sockets::sort(sockets, &settings)?;
        let mut carrier = Carrier::on(datagrams, &mut engine)?;
        carrier.links = Links::new(settings.peers_max);
        carrier.links.takes_data = true;
        let doors = Doors::new(listeners);
        doors.open(&mut engine)?;
        let strangers = limits::STRANGERS_MAX.min(settings.peers_max / 2);
        let lobby = mail.map(|(inbox, outboxes)| Lobby::new(inbox, outboxes, strangers, &mut engine)).transpose()?;
        let mut rendezvous = Self {
            engine,
            events: Vec::new(),
            doors,
            lobby,
            carrier,
            peers: Peers::tunnels(settings.of_tunnels(), seed),
            registry: Registry::new(Limits::default()),
            members: HashMap::new(),
            by_link: HashMap::new(),
            unheard: VecDeque::new(),
            meters: HashMap::new(),
            journal: Journal::default(),
            desk: Desk::new(&settings, seed),
            arenas: Arenas::new(arenas, &settings),
            changes_seen: 0,
            settings,
            keys: Vec::new(),
            homes: 0,
            guests: VecDeque::new(),
            datagram: Vec::new(),
            relayed: (0, 0),
            crowded: true,
            closing: false,
            look_at: now + LOOK_PAUSE,
            origin: now,
            now,
        };
        rendezvous.serve(keys);
        Ok(rendezvous)
    }

    fn serve(&mut self, keys: &Keyring) {
        let of = |secret: &crate::proto::token::Secret| Arc::new(Key::from_secret(secret.bytes()));
        let mut keys: Vec<_> = keys.secrets().iter().map(of).collect();
        self.homes = keys.iter().fold(0, |homes, key| homes | 1 << self.settings.home_of(key));
        keys.retain(|key| self.settings.home_of(key) == self.settings.worker);
        self.keys = keys;
        self.peers.withdraw(&service());
        if !self.closing {
            // With players' datagrams go their addresses.
            let of_datagrams = Service { wants_addresses: true, ..Service::default() };
            self.keys.iter().for_each(|key| self.peers.serve(key.clone(), service(), of_datagrams));
        }
    }

    /// Peers; while it drains, those that play through here.
    #[must_use]
    pub fn connections(&self) -> usize {
        let plays = |member: &&Member| member.relayed >= GAME_DATAGRAMS;
        if self.closing { self.members.values().filter(plays).count() } else { self.members.len() }
    }

    /// How things are. Players by TCP are the gateway's to count.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let census = self.registry.census();
        Figures {
            peers: census.peers as u64,
            providers: census.providers as u64,
            visitors: census.visitors as u64,
            services: census.services as u64,
            flows: census.flows as u64,
            flows_waiting: census.flows_waiting as u64,
            relayed_datagrams: self.relayed.0,
            relayed_bytes: self.relayed.1,
            links: (self.carrier.links.len() - self.carrier.links.strangers()) as u64,
            strangers: self.strangers() as u64,
            hub_ready: self.desk.ready() as u64,
            hub_players_tcp: 0,
            hub_players_udp: self.arenas.players() as u64,
            hub_bytes: self.arenas.moved_bytes,
        }
    }

    /// Lets in nobody any more; games go on.
    pub fn drain(&mut self) {
        self.closing = true;
        self.peers.withdraw(&service());
        self.doors.close(&mut self.engine); // who waited there is let go, and finds the next one
        if let Some(lobby) = &mut self.lobby {
            lobby.close(&mut self.engine);
        }
    }

    /// Tells the peers that this end is going.
    pub fn leave(&mut self) {
        self.now = clock::now();
        let members: Vec<_> = self.members.keys().copied().collect();
        if let Some(endpoint) = self.peers.endpoint() {
            for member in members {
                if let Some(tunnel) = endpoint.tunnel(member) {
                    tunnel.close(CloseReason::Leaving);
                }
            }
        }
        while self.transmit() {}
        self.desk.close(&mut self.engine);
        self.arenas.close(&mut self.engine);
        self.carrier.close(&mut self.engine);
        self.doors.close(&mut self.engine);
        // A ring lets go of sockets in its own time: whoever starts after us must find the port free.
        let _ = self.engine.wait(Duration::ZERO, &mut self.events);
    }

    /// Puts new secrets and settings in force. Peers whose secret is no more are let go.
    pub fn reload(&mut self, keys: &Keyring, settings: Settings) {
        let Settings { relay_rate, peers_max, .. } = settings;
        self.settings = Settings { relay_rate, peers_max, ..self.settings.clone() };
        self.meters.clear();
        self.serve(keys);
        let is_known = |key: Option<Id>| self.keys.iter().any(|known| Some(known.id()) == key);
        let strangers: Vec<_> =
            self.members.keys().copied().filter(|member| !is_known(self.registry.key_of(*member))).collect();
        strangers.into_iter().for_each(|member| self.let_go(member, CloseReason::Done));
    }

    /// How long nothing needs to be done unless something happens, at most `patience`.
    #[must_use]
    pub fn patience(&self, patience: Duration) -> Duration {
        if self.crowded {
            return Duration::ZERO;
        }
        let time = |at: u64| self.origin + Duration::from_micros(at);
        // What has to be sent has to wait for a socket that is full.
        let paused_until = self.carrier.paused_until();
        let of_endpoint = self.peers.next_timeout().map(time).map(|at| paused_until.map_or(at, |until| at.max(until)));
        let deadlines = [
            of_endpoint,
            paused_until,
            self.registry.next_timeout().map(time),
            self.desk.next_timeout().map(time),
            self.arenas.deadline(),
            self.carrier.links.deadline(),
            self.lobby.as_ref().and_then(Lobby::deadline),
            self.doors.deadline(),
            self.closing.then_some(self.look_at),
        ];
        let earliest = deadlines.into_iter().flatten().min();
        earliest.map_or(patience, |at| at.saturating_duration_since(clock::now()).min(patience))
    }

    /// One turn: deals with what has happened.
    pub fn turn(&mut self) {
        self.now = clock::now();
        self.handle_events();
        let more_visitors = self.admit();
        let more = self.receive();
        self.hear_tunnels();
        self.hear_requests();
        let more_players = self.hear_players();
        self.registry.handle_timeout(self.now_us());
        self.pass_on();
        self.ask_for_connections();
        self.look_for_games();
        let more_to_send = self.transmit();
        self.crowded = more_visitors | more | more_players | more_to_send | !self.unheard.is_empty();
    }

    // Players who have nothing but the game.

    /// Somebody wants a connection to the provider of a service. In its turn the answer may be there.
    pub(crate) fn want(&mut self, want: &Want) {
        match self.registry.provider(want.service) {
            Some(provider) => self.desk.want(self.now_us(), want.asker, provider, &mut self.engine),
            None => self.desk.refuse(want.asker, self.elsewhere(want.tried)),
        }
    }

    /// Whether another worker may have a provider that is not here.
    fn elsewhere(&self, tried: u64) -> NoConnection {
        let untried = self.homes & !(tried | 1 << self.settings.worker);
        if untried == 0 { NoConnection::NoProvider } else { NoConnection::Elsewhere(untried.trailing_zeros() as usize) }
    }

    /// Hands a player to another worker. He need not come back here; but does when he finds no room there.
    pub(crate) fn hand_over(&mut self, mut guest: Guest, worker: usize) {
        guest.tried |= 1 << self.settings.worker;
        if !self.lobby.as_ref().is_some_and(|lobby| lobby.hand_over(&guest, worker)) {
            guest.tried |= 1 << worker;
            self.guests.push_back(guest);
        }
    }

    /// The next player from another worker.
    pub(crate) fn poll_guest(&mut self) -> Option<Guest> {
        self.guests.pop_front()
    }

    /// The next connection that somebody wanted, or why there is none.
    pub(crate) fn poll_found(&mut self) -> Option<(crate::tcp::Key, Result<OwnedFd, NoConnection>)> {
        self.desk.poll_found()
    }

    fn ask_for_connections(&mut self) {
        let now = self.now_us();
        self.desk.handle_timeout(now, &mut self.engine);
        while let Some((provider, id)) = self.desk.poll_dial() {
            self.tell(provider, Notice::Dial(id));
        }
    }

    /// True when there may be more.
    fn hear_players(&mut self) -> bool {
        self.peers.endpoint().is_some_and(|endpoint| self.arenas.hear(self.now, endpoint))
    }

    /// Services may have other providers than before.
    fn note_providers(&mut self) {
        let (now, registry) = (super::micros(self.now - self.origin), &self.registry);
        self.desk.note_providers(now, |service| registry.provider(service));
        for (provider, channel) in self.arenas.note_providers(|service| registry.provider(service), &mut self.engine) {
            self.tell(provider, Notice::Channel(channel));
        }
    }

    fn now_us(&self) -> u64 {
        super::micros(self.now - self.origin)
    }

    // Connections.

    fn handle_events(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.engine.take(&mut events);
        for event in events.drain(..) {
            self.handle_event(event);
        }
        self.events = events;
    }

    fn handle_event(&mut self, event: Event) {
        let (Event::Ready(token, _) | Event::Disarmed(token)) = event else { return };
        let Self { carrier, lobby, engine, .. } = self;
        let mut watched = Ok(());
        match (token.slot, event, lobby) {
            (accept::SLOT, ..) => self.doors.note(event, token, engine),
            (super::WIRES, Event::Disarmed(_), _) => watched = carrier.watch_again(token, engine),
            (super::WIRES, ..) => carrier.note_arrival(token),
            (super::LINKS, Event::Ready(_, news), _) => carrier.links.note(token, news),
            (super::LINKS, ..) => carrier.links.watch_again(token, engine),
            (super::ARENAS, Event::Disarmed(_), _) => watched = self.arenas.watch_again(token, engine),
            (super::ARENAS, ..) => self.arenas.note_arrival(token),
            // Whatever it is: such a connection says nothing until it is used.
            (DATA, ..) => self.desk.end(super::micros(self.now - self.origin), token.generation, engine),
            (MAIL, Event::Disarmed(_), Some(lobby)) => watched = lobby.watch_mail_again(engine),
            (MAIL, _, Some(lobby)) => lobby.note_mail(),
            (LOBBY, Event::Disarmed(_), Some(lobby)) => lobby.watch_again(token.generation, engine),
            (LOBBY, _, Some(lobby)) => {
                let at_home = lobby.note(token.generation, &self.settings, engine);
                at_home.into_iter().for_each(|connection| self.link(connection));
            }
            _ => {}
        }
        if let Err(error) = watched {
            tracing::error!(%error, "a socket of the rendezvous is not watched any more");
        }
    }

    /// Lets in who waits, as far as there is room. True when more may be waiting.
    fn admit(&mut self) -> bool {
        let more_mail = self.take_mail();
        for _ in 0..accept::PER_TURN {
            let is_full = self.is_full();
            let room = !is_full || self.has_strangers();
            let Some((_, connection)) = self.doors.admit(room, self.now) else { return more_mail };
            if is_full {
                self.make_room();
            }
            match &mut self.lobby {
                None => self.link(connection),
                Some(lobby) => {
                    if let Err(error) = lobby.add(connection, self.now, &mut self.engine) {
                        tracing::warn!(%error, "a connection cannot be watched and is let go");
                    }
                }
            }
        }
        true
    }

    /// As many connections as there are to be peers.
    fn is_full(&self) -> bool {
        let waiting = self.lobby.as_ref().map_or(0, Lobby::len);
        self.carrier.links.len() + waiting >= self.settings.peers_max
    }

    /// Connections that have proved nothing yet.
    fn strangers(&self) -> usize {
        self.carrier.links.strangers() + self.lobby.as_ref().map_or(0, Lobby::len)
    }

    fn has_strangers(&self) -> bool {
        self.carrier.links.has_strangers() || self.lobby.as_ref().is_some_and(|lobby| lobby.len() > 0)
    }

    /// Lets one of those go for somebody new, first one that has said nothing at all.
    fn make_room(&mut self) {
        let Self { carrier, lobby, engine, .. } = self;
        if !lobby.as_mut().is_some_and(|lobby| lobby.drop_first(engine)) {
            carrier.links.drop_stranger(engine);
        }
    }

    fn take_mail(&mut self) -> bool {
        let Some(mut lobby) = self.lobby.take() else { return false };
        let more = lobby.take_mail(|mail| match mail {
            Mail::Peer(connection) => self.link(connection),
            Mail::Guest(guest) => self.guests.push_back(guest),
        });
        lobby.expire(self.now, &mut self.engine);
        self.lobby = Some(lobby);
        more
    }

    /// A connection that is at home here. It proves that it is a peer's by its first packets.
    fn link(&mut self, connection: OwnedFd) {
        if self.closing {
            return;
        }
        if let Err(error) = self.carrier.links.accept(connection, self.now, &mut self.engine) {
            tracing::debug!(%error, "a connection cannot be taken");
        }
    }

    // Tunnels.

    /// What has arrived in the tunnels. True when there may be more.
    fn receive(&mut self) -> bool {
        let now = self.now_us();
        let more = self.carrier.receive(now, &mut self.peers, |_, _| {});
        self.carrier.links.expire(self.now);
        while let Some((id, connection)) = self.carrier.links.poll_data(&mut self.engine) {
            self.desk.take(now, id, connection, &mut self.engine);
        }
        while let Some(news) = self.carrier.links.poll_news(&mut self.engine) {
            if let links::News::Down(link, _) = news {
                self.note_link_down(link);
            }
        }
        if self.peers.next_timeout().is_some_and(|at| at <= now) {
            self.peers.handle_timeout(now);
        }
        more
    }

    /// A peer's process has ended, or soon begins anew: it, too, takes the end of its link for the end of its tunnel.
    fn note_link_down(&mut self, link: u32) {
        let peer = self.by_link.remove(&link);
        if let Some(peer) = peer.filter(|peer| self.members.get(peer).is_some_and(|member| member.link == Some(link))) {
            self.let_go(peer, CloseReason::Done);
        }
    }

    fn hear_tunnels(&mut self) {
        while let Some((peer, event)) = self.peers.endpoint().and_then(Endpoint::poll_event) {
            match event {
                tunnel::Event::Established => self.note_established(peer),
                tunnel::Event::Lost(_) => self.note_lost(peer),
                tunnel::Event::Opened { stream, port, .. } => self.note_opened(peer, stream, port),
                tunnel::Event::Readable(_) | tunnel::Event::Writable(_) => self.unheard.push_back(peer),
                tunnel::Event::Ended(stream) | tunnel::Event::Reset(stream, _) | tunnel::Event::Forgotten(stream) => {
                    if self.members.get(&peer).is_some_and(|member| member.stream == Some(stream)) {
                        self.let_go(peer, CloseReason::Done);
                    }
                }
                tunnel::Event::Datagrams => self.relay(peer),
                tunnel::Event::Moved { to } => self.tell_address(peer, Way::of(to)),
                tunnel::Event::Probed { from } => {
                    if let Way::Link(_) = Way::of(from) {
                        self.tell_address(peer, Way::of(from)); // beside UDP
                    }
                }
                tunnel::Event::AskedElsewhere { token, from } => self.answer_elsewhere(peer, token, from),
                tunnel::Event::Told | tunnel::Event::Answered { .. } | tunnel::Event::Observed { .. } => {}
            }
        }
    }

    fn note_established(&mut self, peer: TunnelId) {
        let Some(tunnel) = self.peers.endpoint().and_then(|endpoint| endpoint.tunnel(peer)) else { return };
        let (key, remote) = (tunnel.key_id(), tunnel.status().remote);
        if self.registry.join(peer, key).is_err() {
            tunnel.close(CloseReason::Full);
            return;
        }
        self.members.insert(peer, Member::default());
        self.tell_address(peer, Way::of(remote));
    }

    fn note_opened(&mut self, peer: TunnelId, stream: tunnel::StreamId, port: u8) {
        let Some(member) = self.members.get_mut(&peer) else { return };
        if member.stream.is_none() && port == 0 {
            member.stream = Some(stream);
            self.unheard.push_back(peer);
        } else if let Some(tunnel) = self.peers.endpoint().and_then(|endpoint| endpoint.tunnel(peer)) {
            tunnel.reset(stream, ResetReason::NoSuchPort);
        }
    }

    fn note_lost(&mut self, peer: TunnelId) {
        let link = self.members.remove(&peer).and_then(|member| member.link);
        link.and_then(|link| self.by_link.remove(&link));
        self.registry.leave(self.now_us(), peer);
        self.desk.leave(peer);
    }

    fn let_go(&mut self, peer: TunnelId, reason: CloseReason) {
        if let Some(tunnel) = self.peers.endpoint().and_then(|endpoint| endpoint.tunnel(peer)) {
            tunnel.close(reason);
        }
        self.note_lost(peer);
    }

    /// A peer wants to know whether its NAT lets in what comes from our other port.
    fn answer_elsewhere(&mut self, peer: TunnelId, token: tunnel::Token, from: SocketAddr) {
        let now = self.now_us();
        let Some(tunnel) = self.peers.endpoint().and_then(|endpoint| endpoint.tunnel(peer)) else { return };
        self.datagram.clear();
        tunnel.answer_elsewhere(now, token, from, &mut self.datagram);
        if !self.datagram.is_empty() {
            self.carrier.send_from_neighbour(from, &self.datagram);
        }
    }

    /// Passes a peer's datagrams on.
    fn relay(&mut self, from: TunnelId) {
        let now = self.now_us();
        let Some(endpoint) = self.peers.endpoint() else { return };
        let Some(member) = self.members.get_mut(&from) else { return };
        let key = self.registry.key_of(from);
        let mut meter = match (self.settings.relay_rate, key) {
            (Some(rate), Some(key)) => Some(self.meters.entry(key).or_insert_with(|| Meter::new(now, rate))),
            _ => None,
        };
        loop {
            self.datagram.clear();
            let Some(tunnel) = endpoint.tunnel(from) else { return };
            let Some(info) = tunnel.read_datagram(&mut self.datagram) else { return };
            if info.port != 0 {
                self.arenas.deliver(from, &info, &self.datagram, self.now);
                continue;
            }
            let Some((to, flow)) = self.registry.route(from, Flow(info.session)) else { continue };
            if meter.as_mut().is_some_and(|meter| !meter.admit(now, self.datagram.len())) {
                continue;
            }
            if let Some(tunnel) = endpoint.tunnel(to) {
                tunnel.send_datagram(flow.0, 0, None, &self.datagram);
                self.relayed = (self.relayed.0 + 1, self.relayed.1 + self.datagram.len() as u64);
                member.relayed = member.relayed.saturating_add(1);
            }
        }
    }

    /// While it drains, peers without a game are not waited for.
    fn look_for_games(&mut self) {
        if self.look_at <= self.now {
            self.look_at = self.now + LOOK_PAUSE;
            self.members.values_mut().for_each(|member| member.relayed /= 2);
        }
    }

    // Words.

    fn hear_requests(&mut self) {
        for _ in 0..self.unheard.len() {
            let Some(peer) = self.unheard.pop_front() else { return };
            let Some(member) = self.members.get_mut(&peer) else { continue };
            let Some(tunnel) = self.peers.endpoint().and_then(|endpoint| endpoint.tunnel(peer)) else { continue };
            match member.hear(tunnel, |request| self.registry.hear(peer, request)) {
                Listening::Done => {}
                Listening::More => self.unheard.push_back(peer),
                Listening::Fault => self.let_go(peer, CloseReason::Fault),
            }
            // One request can cause a few notices for each flow of a key: those of one peer are passed on before more pile up.
            self.pass_on();
        }
    }

    /// Tells the peers what there is to tell, and the operator what has changed.
    fn pass_on(&mut self) {
        while let Some((peer, notice)) = self.registry.poll_notice() {
            self.tell(peer, notice);
        }
        while let Some(news) = self.registry.poll_news() {
            self.journal.write(self.now_us(), news);
        }
        if std::mem::replace(&mut self.changes_seen, self.registry.changes()) != self.registry.changes() {
            self.note_providers();
        }
    }

    fn tell(&mut self, peer: TunnelId, notice: Notice) {
        let Some(member) = self.members.get_mut(&peer) else { return };
        let Some(tunnel) = self.peers.endpoint().and_then(|endpoint| endpoint.tunnel(peer)) else { return };
        if !member.tell(notice, tunnel) {
            self.let_go(peer, CloseReason::Fault);
        }
    }

    fn tell_address(&mut self, peer: TunnelId, way: Way) {
        let (transport, address) = match way {
            Way::Udp(address) => (crate::proto::rendezvous::wire::Transport::Udp, Some(address)),
            Way::Link(number) => {
                (crate::proto::rendezvous::wire::Transport::Tcp, self.carrier.links.remote_address(number))
            }
            Way::Flow { .. } => return,
        };
        let Some(address) = address else { return };
        let Some(member) = self.members.get_mut(&peer) else { return };
        if let Way::Link(number) = way {
            let before = member.link.replace(number);
            before.and_then(|before| self.by_link.remove(&before));
            self.by_link.insert(number, peer);
        }
        let Some(tunnel) = self.peers.endpoint().and_then(|endpoint| endpoint.tunnel(peer)) else { return };
        if !member.tell_address(transport, address, tunnel) {
            self.let_go(peer, CloseReason::Fault);
        }
    }

    /// Sends what is to be sent. True when there may be more.
    fn transmit(&mut self) -> bool {
        let now = (self.now, self.now_us());
        self.carrier.transmit(now, &mut self.peers)
    }
}

fn service() -> ServiceName {
    ServiceName::new(SERVICE).expect("it is short and plain")
}

/// A worker's sockets, by what they are for.
struct Sockets {
    datagrams: Vec<OwnedFd>,
    listeners: Vec<OwnedFd>,
    mail: Option<(OwnedFd, Vec<OwnedFd>)>,
    arenas: Vec<OwnedFd>,
}

impl Sockets {
    fn sort(sockets: Vec<OwnedFd>, settings: &Settings) -> io::Result<Self> {
        let mut sockets = sockets.into_iter();
        let arenas: Vec<_> = sockets.by_ref().take(settings.exposed.datagrams.len()).collect();
        let mut next = || sockets.next().ok_or(io::ErrorKind::UnexpectedEof);
        let (mut datagrams, mut listeners) = (Vec::new(), Vec::new());
        for _ in 0..settings.addresses {
            datagrams.extend([next()?, next()?]);
            listeners.push(next()?);
        }
        let mail = if settings.workers > 1 { Some((next()?, sockets.collect())) } else { None };
        Ok(Self { datagrams, listeners, mail, arenas })
    }
}
