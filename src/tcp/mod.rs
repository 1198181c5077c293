//! A connection's life: `accept -> handshake -> dial -> relay`, or `-> farewell` when it is refused.
//!
//! Two others go a part of that way. Where the rendezvous is, a line may name a service behind it, and ports may be exposed for
//! one, where no line is expected: such a player gets a connection that the provider has opened to here (`hub`) instead of one
//! that is dialled. At the provider's end, that connection waits for its player (`reserve`), then dials and relays.
//!
//! Connections are state machines in a table, driven by the engine's events and by one deadline each. `Tcp::advance` shows
//! the whole life. A state is told what has changed (`note`), does what it can (`step`) and says until when it may stay
//! (`deadline`). No state is without a deadline.

pub(crate) mod accept;
pub(crate) mod dial;
mod farewell;
pub(crate) mod guest;
mod handshake;
pub(crate) mod hub;
mod relay;
mod reserve;
mod side;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use slab::Slab;

use crate::engine::{Engine, Event, Readiness, Shared, Token};
use crate::limits;
use crate::names::{self, Found, Names};
use crate::proto::policy::Policy;
use crate::proto::rendezvous::data::{DataId, Outcome};
use crate::proto::status::{Refusal, Status};
use crate::proto::target::{Provided, Target};
use crate::proto::timers::Timers;
use crate::proto::token::Keyring;
use crate::sys;
use accept::Doors;
use dial::Dial;
use farewell::Farewell;
use guest::Guest;
use handshake::Handshake;
use hub::{Hub, NoConnection, Want};
pub use relay::LIVENESS;
use relay::Relay;
pub use reserve::Published;
use reserve::Reserve;
pub(crate) use side::Side;

/// Heavy connections that are served in a turn in which nobody else wanted anything; new events are looked for after them.
const HEAVY_PER_TURN: usize = 4;

/// Events of light connections, about 5 µs each, for each share of a heavy one, about 10 µs.
const LIGHT_PER_HEAVY: usize = 16;

/// What the operator decides about connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    pub handshake_timeout: Duration,
    /// For each attempt.
    pub dial_timeout: Duration,
    /// In all, the first one included.
    pub dial_attempts: u32,
    pub idle_timeout: Duration,
    pub half_closed_timeout: Duration,
    pub buffer_bytes: usize,
    pub connections_max: usize,
    pub policy: Policy,
    /// Where this gateway listens: never a backend, or a line could make it talk to itself for ever.
    pub own_addresses: Vec<SocketAddr>,
    /// Services for which the last of the listeners are, one each, and which need no line.
    pub exposed: Vec<Provided>,
    /// A rendezvous is in this worker: lines may name its services.
    pub has_rendezvous: bool,
    /// Where the services are for which this end of data connections stands.
    pub published: Vec<Published>,
}

/// All connections of a worker.
#[derive(Debug)]
pub struct Tcp {
    connections: Slab<Connection>,
    /// Connections that move much, each once: they wait until the light ones have been served.
    heavy: VecDeque<Key>,
    /// Moved in games that have ended, of players whose backend was a provider's connection.
    hub_bytes: u64,
    /// What light connections had to be told since a heavy one had its share.
    light_events: usize,
    doors: Doors,
    /// More may be waiting at the doors than one turn lets in.
    crowded: bool,
    events: Vec<Event>,
    context: Context,
}

/// What the states share.
#[derive(Debug)]
struct Context {
    engine: Engine,
    timers: Timers,
    names: Names<Key>,
    shared: Shared,
    keys: Keyring,
    settings: Settings,
    /// Players for whom the rendezvous has to find a connection.
    wants: VecDeque<Want>,
    /// Time of this turn.
    now: Instant,
    generations: u32,
}

/// Names a connection for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    slot: u32,
    generation: u32,
}

impl Key {
    fn token(self, role: u8) -> Token {
        Token::new(self.slot, self.generation, role)
    }
}

/// Role of a client in tokens. Backends have those from [`dial::FIRST_ROLE`] on.
const CLIENT: u8 = 0;

#[derive(Debug)]
struct Connection {
    key: Key,
    client: Side,
    /// Known when somebody will read it: asking for it costs a system call.
    source: Option<SocketAddr>,
    since: Instant,
    /// The deadline that is set in the table of timers.
    timer: Option<Instant>,
    /// Is in the queue of the heavy ones.
    queued: bool,
    /// Enough of a hash to tell targets apart in the log, when there is one.
    target: Option<String>,
    kind: Kind,
    /// The backend is a provider's connection, or is to be.
    is_at_hub: bool,
    state: State,
}

/// Who is at the client's end, and what is said to him.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A player with a line: a status.
    Line,
    /// A player who knows nothing of a gateway.
    Exposed,
    /// The rendezvous, for a player.
    Data,
}

#[derive(Debug)]
enum State {
    Handshake(Handshake),
    Hub(Box<Hub>),
    Reserve(Box<Reserve>),
    Dial(Box<Dial>),
    Relay(Box<Relay>),
    Farewell(Farewell),
}

/// What follows a step.
#[derive(Debug)]
enum Next {
    /// Nothing before an event or the deadline.
    Wait,
    /// There is more to do; it is the others' turn.
    Again,
    Dial {
        target: Target,
        early: Vec<u8>,
        completed: Instant,
    },
    /// The backend is a service behind the rendezvous.
    Fetch {
        provided: Provided,
        early: Vec<u8>,
    },
    Relay {
        backend: Side,
        early: Vec<u8>,
    },
    Refuse {
        refusal: Refusal,
        not_before: Instant,
    },
    Close(Ending),
}

/// How a connection ended, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Both sides have ended, and each has every byte of the other.
    Complete,
    Reset,
    IdleTooLong,
    Refused,
    ClientGone,
    /// A data connection that nobody needs.
    Unused,
}

impl Tcp {
    /// # Errors
    /// When the listeners cannot be watched.
    pub fn new(
        engine: Engine,
        listeners: Vec<OwnedFd>,
        names: Names<Key>,
        keys: Keyring,
        settings: Settings,
    ) -> io::Result<Self> {
        let now = sys::clock::now();
        let shared = Shared::new(settings.buffer_bytes);
        let (timers, wants) = (Timers::new(now), VecDeque::new());
        let context = Context { engine, timers, names, shared, keys, settings, wants, now, generations: 0 };
        let mut tcp = Self {
            connections: Slab::new(),
            heavy: VecDeque::new(),
            hub_bytes: 0,
            light_events: 0,
            doors: Doors::new(listeners),
            crowded: false,
            events: Vec::new(),
            context,
        };
        tcp.doors.open(&mut tcp.context.engine)?;
        Ok(tcp)
    }

    /// Games and handshakes under way.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len() - self.reserved()
    }

    /// Players whose backend is a provider's connection, or is to be, and bytes that were moved for such, both ways.
    pub(crate) fn at_hub(&self) -> (usize, u64) {
        let at_hub = || self.connections.iter().map(|(_, connection)| connection).filter(|of| of.is_at_hub);
        (at_hub().count(), self.hub_bytes + at_hub().map(Connection::moved_bytes).sum::<u64>())
    }

    /// Connections that wait for players. They are a provider's, who lets nobody in himself.
    fn reserved(&self) -> usize {
        let is_reserved = |(_, connection): &(usize, &Connection)| matches!(connection.state, State::Reserve(_));
        if self.doors.len() == 0 { self.connections.iter().filter(is_reserved).count() } else { 0 }
    }

    /// Accepts whoever has been waiting, and nobody after that.
    pub fn drain(&mut self) {
        for (door, client) in self.doors.close(&mut self.context.engine) {
            self.begin(door, client);
        }
        let is_unused = |connection: &Connection| matches!(connection.state, State::Reserve(_));
        let unused: Vec<_> = self.connections.iter().filter(|(_, of)| is_unused(of)).map(|(slot, _)| slot).collect();
        unused.into_iter().for_each(|slot| self.close(slot as u32, Ending::Unused));
    }

    /// Ends all games now.
    pub fn stop(&mut self) {
        for (_, connection) in &self.connections {
            if let State::Relay(relay) = &connection.state {
                relay.cut_short(&connection.client);
            }
        }
    }

    /// Puts new secrets and settings in force, for lines that are not complete yet and games that have not begun.
    pub fn reload(&mut self, keys: Keyring, settings: Settings) {
        self.context.keys = keys;
        self.context.shared.resize(settings.buffer_bytes);
        self.context.settings = settings;
    }

    /// One turn: deals with what has happened, with deadlines and with heavy connections. True when the runtime has something
    /// to do.
    pub fn turn(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.events);
        self.context.engine.take(&mut events);
        self.context.now = sys::clock::now();
        let light_before = self.light_events;
        for event in events.drain(..) {
            match event {
                Event::Ready(token, _) | Event::Disarmed(token) => self.handle_event(event, token),
                Event::Runtime => {}
            }
        }
        self.events = events;
        while let Some(slot) = self.context.timers.pop_expired(self.context.now) {
            if let Some(connection) = self.connections.get_mut(slot as usize) {
                connection.timer = None;
                self.advance(slot);
            }
        }
        self.serve_heavy(self.light_events == light_before);
        self.crowded = self.admit();
        self.context.names.asking()
    }

    /// Gives heavy connections their share: all time that nobody else wants, and a little of the rest, so that a download delays
    /// no game by more than a moment and still goes on.
    fn serve_heavy(&mut self, quiet: bool) {
        let shares = if quiet { HEAVY_PER_TURN } else { self.light_events / LIGHT_PER_HEAVY };
        self.light_events = if quiet { 0 } else { self.light_events % LIGHT_PER_HEAVY };
        for _ in 0..shares.min(self.heavy.len()) {
            let Some(key) = self.heavy.pop_front() else { return };
            if self.knows(key) {
                self.connections[key.slot as usize].queued = false;
                self.advance(key.slot);
            }
        }
    }

    /// How long nothing needs to be done unless something happens, at most `patience`.
    #[must_use]
    pub fn patience(&self, patience: Duration) -> Duration {
        if !self.heavy.is_empty() || self.crowded || !self.context.wants.is_empty() {
            return Duration::ZERO;
        }
        let earliest = self.context.timers.next_deadline().into_iter().chain(self.doors.deadline()).min();
        let patience = if self.context.names.asking() { patience.min(names::RUNTIME_PAUSE) } else { patience };
        earliest.map_or(patience, |at| at.saturating_duration_since(sys::clock::now()).min(patience))
    }

    /// The answer to a question for an address.
    pub fn handle_found(&mut self, found: Found<Key>) {
        self.context.names.note_answer();
        if self.knows(found.asker)
            && let State::Dial(dial) = &mut self.connections[found.asker.slot as usize].state
        {
            dial.note_found(found.addresses);
            self.advance(found.asker.slot);
        }
    }

    /// The next player for whom the rendezvous has to find a connection, which it says with [`Self::handle_found_connection`].
    pub(crate) fn poll_want(&mut self) -> Option<Want> {
        self.context.wants.pop_front()
    }

    pub(crate) fn handle_found_connection(&mut self, asker: Key, found: Result<OwnedFd, NoConnection>) {
        if self.knows(asker)
            && let State::Hub(hub) = &mut self.connections[asker.slot as usize].state
        {
            hub.note_found(found);
            self.advance(asker.slot);
        }
    }

    /// Lets a player go to another worker.
    pub(crate) fn send_off(&mut self, asker: Key) -> Option<Guest> {
        let slot = asker.slot as usize;
        if !self.knows(asker) || !matches!(self.connections[slot].state, State::Hub(_)) {
            return None;
        }
        let Connection { client, kind, state, .. } = self.connections.remove(slot);
        self.context.timers.cancel(asker.slot);
        self.context.engine.release(client.socket.as_fd(), client.token);
        let State::Hub(hub) = state else { return None };
        Some(hub.leave(client.socket, kind == Kind::Line))
    }

    /// Takes a player from another worker, if there is room.
    pub(crate) fn welcome(&mut self, mut guest: Guest) {
        if self.connections.len() >= self.context.settings.connections_max {
            return sys::socket::reset(guest.client.as_fd());
        }
        let hub = Hub::of_guest(&mut guest, &self.context);
        let kind = if guest.has_line { Kind::Line } else { Kind::Exposed };
        if let Some(slot) = self.add(guest.client, kind, State::Hub(Box::new(hub))) {
            self.advance(slot);
        }
    }

    /// Opens a connection for a player to the rendezvous.
    pub(crate) fn reserve(&mut self, rendezvous: SocketAddr, id: DataId) {
        if self.reserved() >= limits::RESERVED_MAX || self.connections.len() >= self.context.settings.connections_max {
            return tracing::debug!("no more connections for players are opened");
        }
        match sys::socket::connect(rendezvous).and_then(|socket| Reserve::prepare(socket.as_fd()).map(|()| socket)) {
            Ok(socket) => {
                let reserve = Reserve::new(rendezvous.port(), id, &self.context);
                self.add(socket, Kind::Data, State::Reserve(Box::new(reserve)));
            }
            Err(error) => tracing::debug!(%error, "no connection for a player can be opened"),
        }
    }

    fn handle_event(&mut self, event: Event, token: Token) {
        if token.slot == accept::SLOT {
            return self.doors.note(event, token, &mut self.context.engine);
        }
        let Some(connection) = self.connections.get_mut(token.slot as usize) else { return };
        match event {
            Event::Ready(_, news) => {
                if !connection.note(token, news) || connection.queued {
                    return;
                }
                if connection.is_heavy() {
                    connection.queued = true;
                    self.heavy.push_back(connection.key);
                } else {
                    self.light_events += 1;
                    self.advance(token.slot);
                }
            }
            Event::Disarmed(_) => connection.watch_again(token, &mut self.context.engine),
            Event::Runtime => {}
        }
    }

    /// Lets in who waits, as far as there is room. True when more may be waiting.
    fn admit(&mut self) -> bool {
        for _ in 0..accept::PER_TURN {
            let room = self.connections.len() < self.context.settings.connections_max;
            match self.doors.admit(room, self.context.now) {
                Some((door, client)) => self.begin(door, client),
                None => return false,
            }
        }
        true
    }

    fn begin(&mut self, door: usize, client: OwnedFd) {
        let exposed = door.checked_sub(self.doors.len() - self.context.settings.exposed.len());
        match exposed.and_then(|place| self.context.settings.exposed.get(place).copied()) {
            None => {
                let handshake = Handshake::new(self.context.now + self.context.settings.handshake_timeout);
                self.add(client, Kind::Line, State::Handshake(handshake));
            }
            Some(provided) => {
                let hub = Hub::new(provided, Vec::new(), &self.context);
                if let Some(slot) = self.add(client, Kind::Exposed, State::Hub(Box::new(hub))) {
                    self.advance(slot);
                }
            }
        }
    }

    fn add(&mut self, client: OwnedFd, kind: Kind, state: State) -> Option<u32> {
        let entry = self.connections.vacant_entry();
        let context = &mut self.context;
        context.generations = context.generations.wrapping_add(1);
        let slot = u32::try_from(entry.key()).expect("there are fewer descriptors than slots");
        let key = Key { slot, generation: Token::new(slot, context.generations, 0).generation };
        let token = key.token(CLIENT);
        if let Err(error) = context.engine.watch(client.as_fd(), token) {
            tracing::warn!(%error, "a client cannot be watched and is let go");
            return None;
        }
        let source = tracing::enabled!(tracing::Level::DEBUG).then(|| sys::socket::peer_address(client.as_fd()).ok());
        let timer = Some(state.deadline());
        context.timers.set(slot, state.deadline());
        entry.insert(Connection {
            key,
            client: Side::new(client, token),
            source: source.flatten(),
            since: context.now,
            timer,
            queued: false,
            target: None,
            kind,
            is_at_hub: matches!(state, State::Hub(_)),
            state,
        });
        Some(slot)
    }

    fn knows(&self, key: Key) -> bool {
        self.connections.get(key.slot as usize).is_some_and(|connection| connection.key == key)
    }

    /// The life of a connection, from here as far as it goes now.
    fn advance(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot as usize) else { return };
        let (client, kind, context) = (&mut connection.client, connection.kind, &mut self.context);
        loop {
            let next = match &mut connection.state {
                State::Handshake(handshake) => handshake.step(client, context), // 400, 401
                State::Hub(hub) => hub.step(connection.key, kind, client, context), // 502, 504
                State::Reserve(reserve) => reserve.step(client, context),
                State::Dial(dial) => dial.step(kind, client, context), // 502, 504; 401 for a name that policy forbids
                State::Relay(relay) => relay.step(client, context),    // 200 is said before its first step
                State::Farewell(farewell) => farewell.step(client, context),
            };
            let old = match next {
                Next::Wait => {
                    let deadline = connection.state.deadline();
                    if connection.timer.replace(deadline) != Some(deadline) {
                        context.timers.set(slot, deadline);
                    }
                    return;
                }
                Next::Again => {
                    if !std::mem::replace(&mut connection.queued, true) {
                        self.heavy.push_back(connection.key);
                    }
                    return;
                }
                Next::Dial { target, early, completed } => {
                    connection.target = tracing::enabled!(tracing::Level::DEBUG).then(|| target.hash());
                    let dial = Dial::new(connection.key, target, early, completed, context);
                    std::mem::replace(&mut connection.state, State::Dial(Box::new(dial)))
                }
                Next::Fetch { provided, early } => {
                    connection.target =
                        tracing::enabled!(tracing::Level::DEBUG).then(|| Target::Provider(provided).hash());
                    let hub = Hub::new(provided, early, context);
                    connection.is_at_hub = true;
                    std::mem::replace(&mut connection.state, State::Hub(Box::new(hub)))
                }
                Next::Relay { backend, early } => {
                    let relay = Relay::new(client, backend, early, context);
                    std::mem::replace(&mut connection.state, State::Relay(Box::new(relay)))
                }
                Next::Refuse { refusal, .. } if kind != Kind::Line => {
                    kind.refuse(&refusal, client);
                    return self.close(slot, Ending::Refused);
                }
                Next::Refuse { refusal, not_before } => {
                    let farewell = Farewell::new(refusal, not_before);
                    std::mem::replace(&mut connection.state, State::Farewell(farewell))
                }
                Next::Close(ending) => return self.close(slot, ending),
            };
            old.let_go(context);
        }
    }

    fn close(&mut self, slot: u32, ending: Ending) {
        let connection = self.connections.remove(slot as usize);
        self.context.timers.cancel(slot);
        if connection.is_at_hub {
            self.hub_bytes += connection.moved_bytes();
        }
        connection.log(ending, self.context.now);
        connection.state.let_go(&mut self.context);
        self.context.engine.forget(connection.client.socket, connection.client.token);
    }
}

impl State {
    fn deadline(&self) -> Instant {
        match self {
            Self::Handshake(handshake) => handshake.deadline(),
            Self::Hub(hub) => hub.deadline(),
            Self::Reserve(reserve) => reserve.deadline(),
            Self::Dial(dial) => dial.deadline(),
            Self::Relay(relay) => relay.deadline(),
            Self::Farewell(farewell) => farewell.deadline(),
        }
    }

    /// Gives back what the state holds beside the client.
    fn let_go(self, context: &mut Context) {
        match self {
            Self::Handshake(_) | Self::Reserve(_) | Self::Farewell(_) => {}
            Self::Hub(hub) => hub.let_go(context),
            Self::Dial(dial) => dial.let_go(context),
            Self::Relay(relay) => relay.let_go(context),
        }
    }
}

impl Kind {
    /// What is said when the backend is connected.
    fn welcome(self) -> &'static [u8] {
        match self {
            Self::Line => Status::Connected.bytes(),
            Self::Exposed => &[],
            Self::Data => Outcome::Connected.byte(),
        }
    }

    /// Refuses somebody who has no line to answer.
    fn refuse(self, refusal: &Refusal, client: &Side) {
        if self == Self::Data {
            let outcome = if refusal.status() == Status::GatewayTimeout { Outcome::TimedOut } else { Outcome::Refused };
            // One that is gone needs no answer.
            let _ = sys::socket::send(client.socket.as_fd(), outcome.byte());
        } else {
            sys::socket::reset(client.socket.as_fd());
        }
    }
}

impl Connection {
    /// Moves so much that others go first.
    fn is_heavy(&self) -> bool {
        matches!(&self.state, State::Relay(relay) if relay.is_heavy(&self.client))
    }

    fn moved_bytes(&self) -> u64 {
        match &self.state {
            State::Relay(relay) => relay.moved().0 + relay.moved().1,
            _ => 0,
        }
    }

    /// Remembers what has changed. False when it concerns nobody here any more.
    fn note(&mut self, token: Token, news: Readiness) -> bool {
        if token == self.client.token {
            self.client.note(news);
            return true;
        }
        match &mut self.state {
            State::Hub(hub) => hub.note(token, news),
            State::Dial(dial) => dial.note(token, news),
            State::Relay(relay) => relay.note(token, news),
            State::Handshake(_) | State::Reserve(_) | State::Farewell(_) => false,
        }
    }

    fn watch_again(&self, token: Token, engine: &mut Engine) {
        let socket = match &self.state {
            _ if token == self.client.token => Some(self.client.socket.as_fd()),
            State::Hub(hub) => hub.socket(token),
            State::Dial(dial) => dial.socket(token),
            State::Relay(relay) => relay.socket(token),
            State::Handshake(_) | State::Reserve(_) | State::Farewell(_) => None,
        };
        if let Some(Err(error)) = socket.map(|socket| engine.watch(socket, token)) {
            tracing::error!(%error, "a socket is not watched any more; its deadline ends it");
        }
    }

    fn log(&self, ending: Ending, now: Instant) {
        let (up, down) = match &self.state {
            State::Relay(relay) => relay.moved(),
            _ => (0, 0),
        };
        let refusal = match &self.state {
            State::Farewell(farewell) => Some(&farewell.refusal),
            _ => None,
        };
        tracing::debug!(
            source = self.source.map(tracing::field::display),
            target = self.target,
            bytes_up = up,
            bytes_down = down,
            ms = u64::try_from((now - self.since).as_millis()).unwrap_or(u64::MAX),
            ?ending,
            refusal = refusal.map(tracing::field::display),
            "connection closed"
        );
    }
}
