//! A peer's side of the rendezvous: what it wants there, when it tries to be there, and what it says when it is.
//!
//! Its owner brings the tunnel: it begins one when told to ([`Client::poll_attempt`]), says how that went
//! ([`Client::note_established`], [`Client::note_lost`]), passes messages on in both directions ([`Client::poll_request`],
//! [`Client::hear`]), and hears what came of it ([`Client::poll_event`]). Wants outlive tunnels: all are said anew in each.
//!
//! When a rendezvous is restarted, all its peers are lost in the same instant. Those whom nobody misses come back one by one, at
//! a time drawn from the next 15 s, and repeat a failed attempt 15 s later, so that they stay spread however long it is away.
//! Those who carry games or have a player waiting come sooner, and repeat sooner, more and more slowly.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::data::DataId;
use super::wire::{Channel, EndReason, FLOWS_OF_PROVIDERS, Flow, Notice, RefusalReason, Request, Transport};
use crate::proto::tunnel::ServiceName;
use crate::proto::tunnel::random::Random;

/// The longest time from the loss of the rendezvous to the first attempt, in µs, by what depends on it.
const RETURN_CALM_US: u64 = 15_000_000;
const RETURN_STREAMING_US: u64 = 250_000;

/// Pause after a failed attempt, in µs, from the first to the last, which is the only one of those without haste. It doubles after so
/// many attempts: a process that is restarted is away for less than a second, and whoever plays through it stands still meanwhile.
const PAUSE_MIN_US: u64 = 250_000;
const PAUSE_MAX_US: u64 = RETURN_CALM_US;
const ATTEMPTS_A_PAUSE: u32 = 4;

/// Pauses are longer or shorter by up to a fifth: those who have met once part again.
const JITTER: u64 = 5;

/// However many players come, two attempts have so much time between them, in µs.
const ATTEMPT_PAUSE_US: u64 = 250_000;

/// A name that was taken, or one too many, is asked for again after this, in µs.
const ASK_AGAIN_US: u64 = 30_000_000;

/// Flows at once, as many as a rendezvous grants; and messages that wait for the tunnel. Over either no flow begins.
const FLOWS_MAX: usize = 4096;
const REQUESTS_MAX: usize = 4 * FLOWS_MAX;

#[derive(Debug)]
pub struct Client {
    random: Random,
    state: State,
    haste: Haste,
    /// Attempts that failed since there was a tunnel.
    failures: u32,
    attempted_at: Option<u64>,
    services: BTreeMap<ServiceName, Standing>,
    /// Those to be asked for again, by when.
    again: BTreeSet<(u64, ServiceName)>,
    flows: BTreeMap<Flow, ServiceName>,
    next_flow: u32,
    requests: VecDeque<Request>,
    events: VecDeque<Event>,
}

/// How soon the rendezvous is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Haste {
    /// Nothing depends on it now.
    Calm,
    /// Games go through it.
    Streaming,
    /// A player waits.
    AtOnce,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Visitors can come.
    Registered(ServiceName),
    /// Another key has the name. It is asked for again in a while.
    Taken(ServiceName),
    /// Another peer with this key provides the service now. It is not asked for again.
    Displaced(ServiceName),
    /// It is asked for again in a while.
    Refused(ServiceName, RefusalReason),
    /// The flow leads to a provider, perhaps to another than before.
    Connected(Flow),
    /// The flow leads nowhere until there is a provider.
    Waiting(Flow),
    /// The flow is forgotten.
    Ended(Flow, EndReason),
    /// This peer, as the rendezvous sees it.
    Address(Transport, std::net::SocketAddr),
    /// The rendezvous wants a connection for a player.
    Dial(DataId),
    /// Players of datagrams may come that way.
    Channel(Channel),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Away { try_at: u64 },
    Trying,
    There,
}

/// Of a service that this peer provides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// To be said, or said.
    Asked,
    Registered,
    AgainAt(u64),
    Displaced,
}

impl Client {
    /// Tries at once. `seed` need not be secret, and must be another for each peer.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            random: Random::new(seed),
            state: State::Away { try_at: 0 },
            haste: Haste::AtOnce,
            failures: 0,
            attempted_at: None,
            services: BTreeMap::new(),
            again: BTreeSet::new(),
            flows: BTreeMap::new(),
            next_flow: 1,
            requests: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    // What it wants.

    /// Provides a service from now on.
    pub fn publish(&mut self, name: ServiceName) {
        self.stand(name, Standing::Asked);
        self.say(Request::Register(name));
    }

    pub fn withdraw(&mut self, name: ServiceName) {
        if let Some(Standing::AgainAt(at)) = self.services.remove(&name) {
            self.again.remove(&(at, name));
        }
        self.say(Request::Withdraw(name));
    }

    /// Wants a flow to the provider of a service: [`Event::Connected`] tells that there is one. `None` at a limit.
    pub fn connect(&mut self, name: ServiceName) -> Option<Flow> {
        if self.flows.len() >= FLOWS_MAX || self.requests.len() >= REQUESTS_MAX {
            return None;
        }
        let flow = self.new_flow();
        self.flows.insert(flow, name);
        self.say(Request::Connect(flow, name));
        Some(flow)
    }

    /// A flow leads to somebody who does not answer: it is to lead to whoever provides the service now.
    pub fn connect_anew(&mut self, flow: Flow) {
        if let Some(name) = self.flows.get(&flow).filter(|_| self.requests.len() < REQUESTS_MAX) {
            self.say(Request::Connect(flow, *name));
        }
    }

    /// Ends a flow, also one of a visitor. At the limit of messages the rendezvous is not told, and keeps it for the tunnel's life.
    pub fn hang_up(&mut self, flow: Flow) {
        self.flows.remove(&flow);
        if self.requests.len() < REQUESTS_MAX {
            self.say(Request::HangUp(flow));
        }
    }

    // The tunnel.

    #[must_use]
    pub fn is_there(&self) -> bool {
        self.state == State::There
    }

    /// True when a tunnel is to be begun now.
    pub fn poll_attempt(&mut self, now: u64) -> bool {
        let is_due = matches!(self.state, State::Away { try_at } if try_at <= now);
        if is_due {
            (self.state, self.attempted_at) = (State::Trying, Some(now));
        }
        is_due
    }

    /// There is a tunnel: all wants are said.
    pub fn note_established(&mut self) {
        (self.state, self.failures, self.haste) = (State::There, 0, Haste::Calm);
        self.requests.clear();
        self.again.clear();
        for (name, standing) in &mut self.services {
            if *standing != Standing::Displaced {
                *standing = Standing::Asked;
                self.requests.push_back(Request::Register(*name));
            }
        }
        self.requests.extend(self.flows.iter().map(|(flow, name)| Request::Connect(*flow, *name)));
    }

    /// The tunnel is lost, or the attempt has failed. `haste`: what depends on it now.
    pub fn note_lost(&mut self, now: u64, haste: Haste) {
        let was_there = self.state == State::There;
        self.haste = if was_there { haste } else { self.haste.max(haste) };
        self.requests.clear();
        self.again.clear();
        let wait = if was_there {
            match self.haste {
                Haste::Calm => self.random_below(RETURN_CALM_US),
                Haste::Streaming => self.random_below(RETURN_STREAMING_US),
                Haste::AtOnce => 0,
            }
        } else {
            self.failures += 1;
            self.pause()
        };
        self.state = State::Away { try_at: self.not_too_often(now + wait) };
    }

    /// Something came to depend on it. An attempt that waits comes sooner.
    pub fn hurry(&mut self, now: u64, haste: Haste) {
        let wait = match haste {
            Haste::Calm => return,
            Haste::Streaming => self.random_below(RETURN_STREAMING_US),
            Haste::AtOnce => 0,
        };
        let sooner = self.not_too_often(now + wait);
        if let State::Away { try_at } = &mut self.state {
            *try_at = sooner.min(*try_at);
        }
        self.haste = self.haste.max(haste);
    }

    /// When to come back, to [`Self::poll_attempt`] and [`Self::handle_timeout`].
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        match self.state {
            State::Away { try_at } => Some(try_at),
            State::Trying => None,
            State::There => self.again.first().map(|(at, _)| *at),
        }
    }

    /// Asks again for names that were not to be had.
    pub fn handle_timeout(&mut self, now: u64) {
        while let Some((_, name)) = self.again.first().copied().filter(|(at, _)| *at <= now) {
            self.publish(name);
        }
    }

    // What is said.

    /// The next message to the rendezvous, while there is a tunnel.
    pub fn poll_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// What the rendezvous says.
    pub fn hear(&mut self, now: u64, notice: Notice) {
        match notice {
            Notice::Registered(name) => self.learn(name, Standing::Registered, Event::Registered(name)),
            Notice::Displaced(name) => self.learn(name, Standing::Displaced, Event::Displaced(name)),
            Notice::Taken(name) => {
                let at = now + self.jittered(ASK_AGAIN_US);
                self.learn(name, Standing::AgainAt(at), Event::Taken(name));
            }
            Notice::Refused(reason, name) => {
                let at = now + self.jittered(ASK_AGAIN_US);
                self.learn(name, Standing::AgainAt(at), Event::Refused(name, reason));
            }
            Notice::Connected(flow) if self.flows.contains_key(&flow) => self.events.push_back(Event::Connected(flow)),
            Notice::Waiting(flow) if self.flows.contains_key(&flow) => self.events.push_back(Event::Waiting(flow)),
            Notice::Ended(flow, reason) if flow.is_of_provider() || self.flows.remove(&flow).is_some() => {
                self.events.push_back(Event::Ended(flow, reason));
            }
            Notice::Connected(_) | Notice::Waiting(_) | Notice::Ended(..) => {} // it was hung up meanwhile
            Notice::Address(transport, address) => self.events.push_back(Event::Address(transport, address)),
            Notice::Dial(id) => self.events.push_back(Event::Dial(id)),
            Notice::Channel(channel) => self.events.push_back(Event::Channel(channel)),
        }
    }

    /// To be drained after each message.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn say(&mut self, request: Request) {
        if self.is_there() {
            self.requests.push_back(request);
        }
    }

    /// Unless the service was withdrawn meanwhile.
    fn learn(&mut self, name: ServiceName, standing: Standing, event: Event) {
        if self.services.contains_key(&name) {
            self.stand(name, standing);
            self.events.push_back(event);
        }
    }

    fn stand(&mut self, name: ServiceName, standing: Standing) {
        if let Some(Standing::AgainAt(at)) = self.services.insert(name, standing) {
            self.again.remove(&(at, name));
        }
        if let Standing::AgainAt(at) = standing {
            self.again.insert((at, name));
        }
    }

    /// A number that no flow of ours has. There are far fewer than numbers.
    fn new_flow(&mut self) -> Flow {
        loop {
            let flow = Flow(self.next_flow);
            self.next_flow = (self.next_flow + 1) % FLOWS_OF_PROVIDERS;
            if !self.flows.contains_key(&flow) {
                return flow;
            }
        }
    }

    // Times.

    /// After so many failures.
    fn pause(&mut self) -> u64 {
        let pause = match self.haste {
            Haste::Calm => PAUSE_MAX_US,
            Haste::Streaming | Haste::AtOnce => PAUSE_MIN_US << ((self.failures - 1) / ATTEMPTS_A_PAUSE).min(10),
        };
        self.jittered(pause.min(PAUSE_MAX_US))
    }

    fn not_too_often(&self, at: u64) -> u64 {
        self.attempted_at.map_or(at, |attempted| at.max(attempted + ATTEMPT_PAUSE_US))
    }

    fn jittered(&mut self, span: u64) -> u64 {
        span - span / JITTER + self.random_below(2 * span / JITTER)
    }

    fn random_below(&mut self, bound: u64) -> u64 {
        u64::from_ne_bytes(self.random.draw()) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).expect("a name")
    }

    fn requests(client: &mut Client) -> Vec<Request> {
        std::iter::from_fn(|| client.poll_request()).collect()
    }

    fn events(client: &mut Client) -> Vec<Event> {
        std::iter::from_fn(|| client.poll_event()).collect()
    }

    fn there(client: &mut Client, now: u64) {
        assert!(client.poll_attempt(now), "an attempt is due");
        client.note_established();
    }

    #[test]
    fn wants_are_said_in_each_tunnel_anew() {
        let mut client = Client::new([1; 32]);
        client.publish(name("game"));
        let flow = client.connect(name("other")).expect("far from the limit");
        assert_eq!(requests(&mut client), [], "nobody is there to hear");
        let wants = [Request::Register(name("game")), Request::Connect(flow, name("other"))];
        there(&mut client, 0);
        assert_eq!(requests(&mut client), wants);
        client.note_lost(0, Haste::Calm);
        there(&mut client, RETURN_CALM_US);
        assert_eq!(requests(&mut client), wants);
        client.withdraw(name("game"));
        client.hang_up(flow);
        assert_eq!(requests(&mut client), [Request::Withdraw(name("game")), Request::HangUp(flow)]);
        client.note_lost(20 * S, Haste::AtOnce);
        there(&mut client, 20 * S);
        assert_eq!(requests(&mut client), []);
    }

    #[test]
    fn a_taken_name_is_asked_for_again_and_a_lost_place_is_not() {
        let mut client = Client::new([2; 32]);
        client.publish(name("game"));
        client.publish(name("lost"));
        there(&mut client, 0);
        requests(&mut client);
        client.hear(0, Notice::Taken(name("game")));
        client.hear(0, Notice::Displaced(name("lost")));
        client.hear(0, Notice::Taken(name("another")));
        assert_eq!(events(&mut client), [Event::Taken(name("game")), Event::Displaced(name("lost"))]);
        client.handle_timeout(ASK_AGAIN_US / 2);
        assert_eq!(requests(&mut client), []);
        let at = client.next_timeout().expect("it will ask again");
        client.handle_timeout(at);
        assert_eq!(requests(&mut client), [Request::Register(name("game"))]);
        assert_eq!(client.next_timeout(), None);
        client.hear(at, Notice::Registered(name("game")));
        client.note_lost(at, Haste::AtOnce);
        there(&mut client, at);
        assert_eq!(requests(&mut client), [Request::Register(name("game"))], "who has the place now keeps it");
    }

    #[test]
    fn of_a_flow_that_was_hung_up_nothing_is_heard() {
        let mut client = Client::new([3; 32]);
        there(&mut client, 0);
        let flow = client.connect(name("game")).expect("far from the limit");
        client.hear(0, Notice::Waiting(flow));
        client.hear(0, Notice::Connected(flow));
        client.hang_up(flow);
        client.hear(0, Notice::Waiting(flow));
        client.hear(0, Notice::Ended(flow, EndReason::HungUp));
        assert_eq!(events(&mut client), [Event::Waiting(flow), Event::Connected(flow)]);
        let visitors = Flow(FLOWS_OF_PROVIDERS + 7);
        client.hear(0, Notice::Ended(visitors, EndReason::HungUp));
        assert_eq!(events(&mut client), [Event::Ended(visitors, EndReason::HungUp)]);
    }

    #[test]
    fn a_player_who_waits_brings_the_attempt_forward_but_not_without_end() {
        let mut client = Client::new([4; 32]);
        there(&mut client, 0);
        client.note_lost(S, Haste::Calm);
        client.hurry(S, Haste::AtOnce);
        assert!(client.poll_attempt(S));
        client.note_lost(S, Haste::Calm);
        client.hurry(S, Haste::AtOnce);
        assert!(!client.poll_attempt(S + ATTEMPT_PAUSE_US - 1));
        assert!(client.poll_attempt(S + ATTEMPT_PAUSE_US));
    }

    #[test]
    fn pauses_of_who_is_in_haste_grow_to_the_longest() {
        let mut client = Client::new([5; 32]);
        let mut now = 0;
        let mut pauses = Vec::new();
        for _ in 0..100 {
            assert!(client.poll_attempt(now));
            client.note_lost(now, Haste::Calm);
            let next = client.next_timeout().expect("it tries again");
            pauses.push(next - now);
            now = next;
        }
        for (place, pause) in pauses.iter().enumerate() {
            let middle = (PAUSE_MIN_US << (place / 4).min(6)).min(PAUSE_MAX_US);
            assert!((middle * 4 / 5..=middle * 6 / 5).contains(pause), "pause {place} is {pause} µs");
        }
    }

    #[test]
    fn at_a_limit_no_flow_begins() {
        let mut client = Client::new([6; 32]);
        let flows: Vec<_> = (0..FLOWS_MAX).map(|_| client.connect(name("game")).expect("below the limit")).collect();
        assert_eq!(client.connect(name("game")), None);
        client.hang_up(flows[0]);
        assert!(client.connect(name("game")).is_some());
        there(&mut client, 0);
        (0..REQUESTS_MAX).for_each(|place| client.hang_up(flows[place % FLOWS_MAX]));
        assert_eq!((client.connect(name("game")), client.requests.len()), (None, REQUESTS_MAX));
    }

    /// The rendezvous is away for a time, then answers everybody.
    #[test]
    fn a_thousand_peers_come_back_within_half_a_minute_and_never_a_tenth_of_them_in_a_second() {
        for outage_ms in [0_u64, 800, 5_000, 20_000, 60_000, 301_000] {
            let outage = outage_ms * 1_000;
            let mut by_second = [0; 30];
            for peer in 0..1_000u32 {
                let mut seed = [0; 32];
                seed[..4].copy_from_slice(&peer.to_be_bytes());
                seed[4..12].copy_from_slice(&outage.to_be_bytes());
                let mut client = Client::new(seed);
                there(&mut client, 0);
                client.note_lost(0, Haste::Calm);
                let mut at = client.next_timeout().expect("it tries");
                while at < outage {
                    assert!(client.poll_attempt(at));
                    client.note_lost(at, Haste::Calm);
                    at = client.next_timeout().expect("it tries again");
                }
                by_second[((at - outage) / S) as usize] += 1; // out of bounds: too late
            }
            assert!(by_second.iter().all(|peers| *peers <= 100), "away for {outage_ms} ms: {by_second:?}");
        }
    }
}
