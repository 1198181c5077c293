//! What a rendezvous knows: who is there, what they provide, what they wish for, and which flows lead where.
//!
//! Its owner says who has come ([`Registry::join`]), what each says ([`Registry::hear`]) and who is lost ([`Registry::leave`]),
//! then passes on what there is to tell ([`Registry::poll_notice`]), and asks where each datagram goes ([`Registry::route`]).
//!
//! A name belongs to the key that registered it first, until it is withdrawn or its provider has been lost for a minute. Within
//! the key the last to register has it: a provider that lost its way and came back finds its place free. For everybody else
//! a name of another key is like one that nobody has.
//!
//! Everything is counted by key, and over a limit the newest is refused. One key's crowd takes nothing from another's.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;

use super::wire::{EndReason, FLOWS_OF_PROVIDERS, Flow, Notice, RefusalReason, Request};
use crate::proto::tunnel::ServiceName;
use crate::proto::tunnel::wire::Id;

/// What one key may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub services: usize,
    pub peers: usize,
    /// Flows of its visitors, those that wait included.
    pub flows: usize,
    /// Flows that wait for a provider.
    pub wishes: usize,
}

/// How long a name is kept for its key after its provider was lost, in µs: a provider comes back within half of it.
pub const KEPT_US: u64 = 60_000_000;

/// News that nobody has fetched. Over it the oldest are forgotten.
const NEWS_MAX: usize = 256;

/// `P` names a peer's tunnel.
#[derive(Debug)]
pub struct Registry<P> {
    limits: Limits,
    accounts: HashMap<Id, Account>,
    members: HashMap<P, Member<P>>,
    services: HashMap<ServiceName, Registration<P>>,
    /// Names without a provider, by when they are given up.
    abandoned: BTreeSet<(u64, ServiceName)>,
    wishes: BTreeMap<(Id, ServiceName), BTreeSet<(P, Flow)>>,
    /// Drained after each input, which makes a few for each flow of a key at most.
    notices: VecDeque<(P, Notice)>,
    news: VecDeque<News>,
    /// How often a service has got another provider, or lost it.
    changes: u64,
}

/// For those who keep the rendezvous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Also when another peer had it before.
    Registered { key: Id, name: ServiceName },
    /// Its provider has withdrawn it.
    Withdrawn { key: Id, name: ServiceName },
    /// Its provider is gone.
    Lost { key: Id, name: ServiceName },
    /// The first time that a key was refused something for having too many of it.
    TooMany { key: Id, what: Limited },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    Services,
    Peers,
    Flows,
    Wishes,
}

/// How many there are of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub peers: usize,
    /// Peers that have a service.
    pub providers: usize,
    /// Peers that have a flow of their own, one that waits included.
    pub visitors: usize,
    /// Services with a provider.
    pub services: usize,
    /// Flows of visitors, and those of them that wait for a provider.
    pub flows: usize,
    pub flows_waiting: usize,
}

/// The key has as many peers as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

/// What a key has.
#[derive(Debug, Default)]
struct Account {
    services: usize,
    peers: usize,
    flows: usize,
    wishes: usize,
    complaints: Vec<Limited>,
}

#[derive(Debug)]
struct Member<P> {
    key: Id,
    services: BTreeSet<ServiceName>,
    /// Its own as a visitor, and those to it as a provider, which the numbers tell apart.
    flows: BTreeMap<Flow, Lead<P>>,
    next_flow: u32,
}

/// Where a flow leads.
#[derive(Clone, Copy, Debug)]
struct Lead<P> {
    name: ServiceName,
    /// `None`: it waits.
    to: Option<(P, Flow)>,
}

#[derive(Debug)]
struct Registration<P> {
    key: Id,
    holder: Holder<P>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder<P> {
    Present(P),
    LostUntil(u64),
}

impl<P: Copy + Ord + Hash + Debug> Registry<P> {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            accounts: HashMap::new(),
            members: HashMap::new(),
            services: HashMap::new(),
            abandoned: BTreeSet::new(),
            wishes: BTreeMap::new(),
            notices: VecDeque::new(),
            news: VecDeque::new(),
            changes: 0,
        }
    }

    /// A peer that knows `key` is there.
    ///
    /// # Errors
    /// When the key has as many as it may have.
    pub fn join(&mut self, peer: P, key: Id) -> Result<(), TooMany> {
        if self.accounts.entry(key).or_default().peers >= self.limits.peers {
            self.complain(key, Limited::Peers);
            return Err(TooMany);
        }
        let member = Member { key, services: BTreeSet::new(), flows: BTreeMap::new(), next_flow: FLOWS_OF_PROVIDERS };
        if self.members.insert(peer, member).is_none() {
            self.account(key).peers += 1;
        }
        Ok(())
    }

    /// What a peer says. Nothing, if it has not joined.
    pub fn hear(&mut self, peer: P, request: Request) {
        let Some(key) = self.members.get(&peer).map(|member| member.key) else { return };
        match request {
            Request::Register(name) => self.register(peer, key, name),
            Request::Withdraw(name) => self.withdraw(peer, key, name),
            Request::Connect(flow, name) => self.connect(peer, key, flow, name),
            Request::HangUp(flow) => self.hang_up(peer, flow),
        }
    }

    /// A peer is lost: its services are kept for its key for a while, its flows end, and those to it wait.
    pub fn leave(&mut self, now: u64, peer: P) {
        let Some(Member { key, services, flows, .. }) = self.members.remove(&peer) else { return };
        for name in services {
            let until = now + KEPT_US;
            self.services.insert(name, Registration { key, holder: Holder::LostUntil(until) });
            self.abandoned.insert((until, name));
            self.report(News::Lost { key, name });
        }
        for (flow, lead) in flows {
            self.let_go(peer, key, flow, lead);
        }
        self.account(key).peers -= 1;
        self.close_account(key);
    }

    /// Who gets what this peer sends under this number, and under which. `None`: nobody.
    #[must_use]
    pub fn route(&self, from: P, flow: Flow) -> Option<(P, Flow)> {
        self.members.get(&from)?.flows.get(&flow)?.to
    }

    /// Another number than before when a service may have another provider than before.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Who provides a service, whatever its key.
    #[must_use]
    pub fn provider(&self, name: ServiceName) -> Option<P> {
        match self.services.get(&name)?.holder {
            Holder::Present(provider) => Some(provider),
            Holder::LostUntil(_) => None,
        }
    }

    #[must_use]
    pub fn key_of(&self, peer: P) -> Option<Id> {
        self.members.get(&peer).map(|member| member.key)
    }

    /// Looks through all members: for whoever asks now and then.
    #[must_use]
    pub fn census(&self) -> Census {
        let is_visitor = |member: &&Member<P>| member.flows.keys().any(|flow| !flow.is_of_provider());
        let is_present = |service: &&Registration<P>| matches!(service.holder, Holder::Present(_));
        Census {
            peers: self.members.len(),
            providers: self.members.values().filter(|member| !member.services.is_empty()).count(),
            visitors: self.members.values().filter(is_visitor).count(),
            services: self.services.values().filter(is_present).count(),
            flows: self.accounts.values().map(|account| account.flows).sum(),
            flows_waiting: self.accounts.values().map(|account| account.wishes).sum(),
        }
    }

    /// The next that is to be told, and whom.
    pub fn poll_notice(&mut self) -> Option<(P, Notice)> {
        self.notices.pop_front()
    }

    pub fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        self.abandoned.first().map(|(until, _)| *until)
    }

    /// Gives up names whose providers have not come back.
    pub fn handle_timeout(&mut self, now: u64) {
        while let Some((until, name)) = self.abandoned.first().copied().filter(|(until, _)| *until <= now) {
            self.abandoned.remove(&(until, name));
            self.release(name);
        }
    }

    // Services.

    fn register(&mut self, peer: P, key: Id, name: ServiceName) {
        match self.services.get(&name).map(|service| (service.key, service.holder)) {
            Some((owner, _)) if owner != key => return self.tell(peer, Notice::Taken(name)),
            Some((_, Holder::Present(holder))) if holder == peer => return self.tell(peer, Notice::Registered(name)),
            Some((_, Holder::Present(holder))) => self.displace(holder, name),
            Some((_, Holder::LostUntil(until))) => _ = self.abandoned.remove(&(until, name)),
            None if self.account(key).services >= self.limits.services => {
                self.complain(key, Limited::Services);
                return self.tell(peer, Notice::Refused(RefusalReason::TooMany, name));
            }
            None => self.account(key).services += 1,
        }
        self.services.insert(name, Registration { key, holder: Holder::Present(peer) });
        if let Some(member) = self.members.get_mut(&peer) {
            member.services.insert(name);
        }
        self.tell(peer, Notice::Registered(name));
        self.report(News::Registered { key, name });
        for (visitor, flow) in self.wishes.remove(&(key, name)).unwrap_or_default() {
            self.account(key).wishes -= 1;
            self.pair(visitor, flow, peer, name);
        }
    }

    /// The flows to the service wait for who takes its place.
    fn displace(&mut self, holder: P, name: ServiceName) {
        let Some(member) = self.members.get_mut(&holder) else { return };
        member.services.remove(&name);
        let key = member.key;
        let to_service = |(flow, lead): &(Flow, Lead<P>)| flow.is_of_provider() && lead.name == name;
        let flows: Vec<_> = member.flows.iter().map(|(flow, lead)| (*flow, *lead)).filter(to_service).collect();
        self.tell(holder, Notice::Displaced(name));
        for (flow, lead) in flows {
            self.forget_flow(holder, flow);
            self.tell(holder, Notice::Ended(flow, EndReason::HungUp));
            self.let_go(holder, key, flow, lead);
        }
    }

    fn withdraw(&mut self, peer: P, key: Id, name: ServiceName) {
        let is_held = self.members.get_mut(&peer).is_some_and(|member| member.services.remove(&name));
        if is_held {
            self.release(name);
            self.report(News::Withdrawn { key, name });
        }
    }

    fn release(&mut self, name: ServiceName) {
        if let Some(Registration { key, .. }) = self.services.remove(&name) {
            self.account(key).services -= 1;
            self.close_account(key);
        }
    }

    // Flows.

    /// Leads a flow to whoever has the service now. One that is there already is led anew when somebody else has it; while nobody
    /// has, it stays where it is: games of a provider that lets in nobody new go on through it.
    fn connect(&mut self, visitor: P, key: Id, flow: Flow, name: ServiceName) {
        let lead = self.members.get(&visitor).and_then(|member| member.flows.get(&flow)).copied();
        if let Some(Lead { to: Some((provider, _)), .. }) = lead.filter(|lead| lead.name == name) {
            match self.services.get(&name) {
                Some(Registration { key: owner, holder: Holder::Present(holder) })
                    if *owner == key && *holder != provider => {}
                _ => return self.tell(visitor, Notice::Connected(flow)),
            }
        }
        self.hang_up(visitor, flow);
        if self.account(key).flows >= self.limits.flows {
            self.complain(key, Limited::Flows);
            return self.tell(visitor, Notice::Ended(flow, EndReason::TooMany));
        }
        self.account(key).flows += 1;
        match self.services.get(&name) {
            Some(Registration { key: owner, holder: Holder::Present(provider) }) if *owner == key => {
                self.pair(visitor, flow, *provider, name);
            }
            _ => self.wait(visitor, key, flow, name),
        }
    }

    fn pair(&mut self, visitor: P, flow: Flow, provider: P, name: ServiceName) {
        let Some(member) = self.members.get_mut(&provider) else { return };
        let theirs = member.new_flow();
        member.flows.insert(theirs, Lead { name, to: Some((visitor, flow)) });
        self.lead(visitor, flow, Lead { name, to: Some((provider, theirs)) });
        self.tell(visitor, Notice::Connected(flow));
    }

    /// A visitor's flow, which is counted already, has nowhere to lead.
    fn wait(&mut self, visitor: P, key: Id, flow: Flow, name: ServiceName) {
        if self.account(key).wishes >= self.limits.wishes {
            self.complain(key, Limited::Wishes);
            self.forget_flow(visitor, flow);
            self.account(key).flows -= 1;
            return self.tell(visitor, Notice::Ended(flow, EndReason::TooMany));
        }
        self.account(key).wishes += 1;
        self.wishes.entry((key, name)).or_default().insert((visitor, flow));
        self.lead(visitor, flow, Lead { name, to: None });
        self.tell(visitor, Notice::Waiting(flow));
    }

    fn hang_up(&mut self, peer: P, flow: Flow) {
        let Some(member) = self.members.get_mut(&peer) else { return };
        let key = member.key;
        let Some(lead) = member.flows.remove(&flow) else { return };
        match lead.to {
            // It was the provider's wish, not a loss: the visitor shall not wait.
            Some((visitor, theirs)) if flow.is_of_provider() => {
                self.forget_flow(visitor, theirs);
                self.account(key).flows -= 1;
                self.tell(visitor, Notice::Ended(theirs, EndReason::HungUp));
            }
            _ => self.let_go(peer, key, flow, lead),
        }
    }

    /// One end of a flow is gone: it ends for the provider, and waits for the visitor.
    fn let_go(&mut self, peer: P, key: Id, flow: Flow, lead: Lead<P>) {
        match lead.to {
            Some((visitor, theirs)) if flow.is_of_provider() => {
                if self.members.contains_key(&visitor) {
                    self.follow(peer, visitor, key, theirs, lead.name);
                }
            }
            Some((provider, theirs)) => {
                self.account(key).flows -= 1;
                if self.forget_flow(provider, theirs) {
                    self.tell(provider, Notice::Ended(theirs, EndReason::HungUp));
                }
            }
            None => {
                self.account(key).flows -= 1;
                self.forget_wish(key, lead.name, (peer, flow));
            }
        }
    }

    /// A visitor's flow has lost its provider: it goes to the successor, if there is one already, and else waits.
    fn follow(&mut self, from: P, visitor: P, key: Id, flow: Flow, name: ServiceName) {
        match self.services.get(&name) {
            Some(&Registration { key: owner, holder: Holder::Present(holder) }) if owner == key && holder != from => {
                self.tell(visitor, Notice::Waiting(flow)); // whoever is there now is another
                self.pair(visitor, flow, holder, name);
            }
            _ => self.wait(visitor, key, flow, name),
        }
    }

    fn forget_wish(&mut self, key: Id, name: ServiceName, wish: (P, Flow)) {
        let Some(wishes) = self.wishes.get_mut(&(key, name)) else { return };
        let was_there = wishes.remove(&wish);
        if wishes.is_empty() {
            self.wishes.remove(&(key, name));
        }
        self.account(key).wishes -= usize::from(was_there);
    }

    fn lead(&mut self, visitor: P, flow: Flow, lead: Lead<P>) {
        if let Some(member) = self.members.get_mut(&visitor) {
            member.flows.insert(flow, lead);
        }
    }

    fn forget_flow(&mut self, peer: P, flow: Flow) -> bool {
        self.members.get_mut(&peer).is_some_and(|member| member.flows.remove(&flow).is_some())
    }

    // Words.

    fn tell(&mut self, peer: P, notice: Notice) {
        if self.members.contains_key(&peer) {
            self.notices.push_back((peer, notice));
        }
    }

    fn report(&mut self, news: News) {
        self.changes += u64::from(!matches!(news, News::TooMany { .. }));
        self.news.push_back(news);
        if self.news.len() > NEWS_MAX {
            self.news.pop_front();
        }
    }

    fn complain(&mut self, key: Id, what: Limited) {
        let complaints = &mut self.account(key).complaints;
        if !complaints.contains(&what) {
            complaints.push(what);
            self.report(News::TooMany { key, what });
        }
    }

    fn account(&mut self, key: Id) -> &mut Account {
        self.accounts.entry(key).or_default()
    }

    fn close_account(&mut self, key: Id) {
        if self.accounts.get(&key).is_some_and(|account| account.peers + account.services == 0) {
            self.accounts.remove(&key);
        }
    }
}

impl<P> Member<P> {
    /// A number that no flow of this provider has. It has far fewer than there are numbers.
    fn new_flow(&mut self) -> Flow {
        loop {
            let flow = Flow(self.next_flow);
            self.next_flow = self.next_flow.wrapping_add(1).max(FLOWS_OF_PROVIDERS);
            if !self.flows.contains_key(&flow) {
                return flow;
            }
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { services: 64, peers: 4096, flows: 4096, wishes: 1024 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Id = Id([1; 6]);
    const TWO: Id = Id([2; 6]);
    const S: u64 = 1_000_000;

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).expect("a name")
    }

    fn game() -> ServiceName {
        name("game")
    }

    /// What is to be told, in order.
    fn told(registry: &mut Registry<u32>) -> Vec<(u32, Notice)> {
        std::iter::from_fn(|| registry.poll_notice()).collect()
    }

    fn news(registry: &mut Registry<u32>) -> Vec<News> {
        std::iter::from_fn(|| registry.poll_news()).collect()
    }

    /// Peers 10 to 19 have key one, 20 to 29 key two.
    fn registry(limits: Limits) -> Registry<u32> {
        let mut registry = Registry::new(limits);
        for peer in 10..20 {
            registry.join(peer, ONE).expect("below the limit");
            registry.join(peer + 10, TWO).expect("below the limit");
        }
        registry
    }

    fn theirs(number: u32) -> Flow {
        Flow(FLOWS_OF_PROVIDERS + number)
    }

    /// Peer 10 provides the game, peer 11 has flow 5 to it.
    fn paired() -> Registry<u32> {
        let mut registry = registry(Limits::default());
        registry.hear(10, Request::Register(game()));
        registry.hear(11, Request::Connect(Flow(5), game()));
        assert_eq!(told(&mut registry), [(10, Notice::Registered(game())), (11, Notice::Connected(Flow(5)))]);
        registry
    }

    /// Nobody is left behind when everybody has left.
    fn assert_nothing_is_left(registry: &mut Registry<u32>) {
        for peer in registry.members.keys().copied().collect::<Vec<_>>() {
            registry.leave(0, peer);
        }
        registry.handle_timeout(u64::MAX);
        told(registry);
        assert!(registry.accounts.is_empty(), "{registry:?}");
        assert!(registry.services.is_empty() && registry.wishes.is_empty() && registry.abandoned.is_empty());
    }

    #[test]
    fn a_flow_leads_both_ways_under_a_number_of_each_end() {
        let mut registry = paired();
        assert_eq!(registry.route(11, Flow(5)), Some((10, theirs(0))));
        assert_eq!(registry.route(10, theirs(0)), Some((11, Flow(5))));
        for (peer, flow) in [(11, Flow(6)), (10, Flow(5)), (12, Flow(5)), (20, Flow(5)), (99, Flow(5))] {
            assert_eq!(registry.route(peer, flow), None);
        }
        registry.hear(12, Request::Connect(Flow(5), game()));
        assert_eq!(registry.route(12, Flow(5)), Some((10, theirs(1))));
        assert_nothing_is_left(&mut registry);
    }

    #[test]
    fn the_same_key_takes_the_place_at_once_and_flows_follow() {
        let mut registry = paired();
        registry.hear(12, Request::Register(game()));
        assert_eq!(
            told(&mut registry),
            [
                (10, Notice::Displaced(game())),
                (10, Notice::Ended(theirs(0), EndReason::HungUp)),
                (11, Notice::Waiting(Flow(5))),
                (12, Notice::Registered(game())),
                (11, Notice::Connected(Flow(5))),
            ]
        );
        assert_eq!(registry.route(11, Flow(5)), Some((12, theirs(0))));
        assert_eq!(registry.route(10, theirs(0)), None);
        registry.leave(0, 10);
        assert_eq!(told(&mut registry), [], "the old one's loss means nothing any more");
        assert_eq!(registry.route(11, Flow(5)), Some((12, theirs(0))));
        assert_nothing_is_left(&mut registry);
    }

    #[test]
    fn a_flow_that_is_asked_for_again_leads_to_the_successor_and_stays_while_there_is_none() {
        let mut registry = paired();
        registry.hear(11, Request::Connect(Flow(5), game()));
        assert_eq!(told(&mut registry), [(11, Notice::Connected(Flow(5)))]);
        assert_eq!(registry.route(11, Flow(5)), Some((10, theirs(0))), "it leads where it did");
        registry.hear(10, Request::Withdraw(game()));
        registry.hear(11, Request::Connect(Flow(5), game()));
        assert_eq!(registry.route(11, Flow(5)), Some((10, theirs(0))), "games of a provider that drains go on");
        registry.hear(20, Request::Register(game()));
        registry.hear(11, Request::Connect(Flow(5), game()));
        assert_eq!(registry.route(11, Flow(5)), Some((10, theirs(0))), "another key's service is none");
        registry.hear(20, Request::Withdraw(game()));
        registry.hear(12, Request::Register(game()));
        assert_eq!(registry.route(11, Flow(5)), Some((10, theirs(0))), "nobody has asked");
        registry.hear(11, Request::Connect(Flow(5), game()));
        assert_eq!(registry.route(11, Flow(5)), Some((12, theirs(0))));
        assert_eq!(registry.route(10, theirs(0)), None);
        assert_nothing_is_left(&mut registry);
    }

    #[test]
    fn a_flow_of_a_provider_that_ends_after_it_has_withdrawn_goes_to_its_successor() {
        let mut registry = paired();
        registry.hear(10, Request::Withdraw(game()));
        registry.hear(12, Request::Register(game()));
        assert_eq!(told(&mut registry), [(12, Notice::Registered(game()))]);
        registry.leave(0, 10);
        assert_eq!(told(&mut registry), [(11, Notice::Waiting(Flow(5))), (11, Notice::Connected(Flow(5)))]);
        assert_eq!(registry.route(11, Flow(5)), Some((12, theirs(0))));
        assert_nothing_is_left(&mut registry);
    }

    #[test]
    fn a_flow_to_another_service_of_a_displaced_provider_stays() {
        let mut registry = paired();
        registry.hear(10, Request::Register(name("other")));
        registry.hear(11, Request::Connect(Flow(6), name("other")));
        registry.hear(12, Request::Register(game()));
        assert_eq!(registry.route(11, Flow(6)), Some((10, theirs(1))));
        assert_nothing_is_left(&mut registry);
    }

    #[test]
    fn another_key_can_neither_displace_nor_reach_and_hears_what_it_hears_of_unknown_names() {
        let mut registry = paired();
        registry.hear(20, Request::Register(game()));
        registry.hear(20, Request::Withdraw(game()));
        registry.hear(20, Request::Connect(Flow(5), game()));
        registry.hear(20, Request::Connect(Flow(6), name("unknown")));
        assert_eq!(
            told(&mut registry),
            [(20, Notice::Taken(game())), (20, Notice::Waiting(Flow(5))), (20, Notice::Waiting(Flow(6))),]
        );
        assert_eq!(registry.route(20, Flow(5)), None);
        assert_eq!(registry.route(11, Flow(5)), Some((10, theirs(0))), "nothing has changed for the owner");
        // Nor does the wish come true when the owner registers anew.
        registry.hear(12, Request::Register(game()));
        assert!(told(&mut registry).iter().all(|(peer, _)| *peer != 20));
        assert_nothing_is_left(&mut registry);
    }

    #[test]
    fn a_wish_comes_true_when_the_provider_comes() {
        let mut registry = registry(Limits::default());
        registry.hear(11, Request::Connect(Flow(1), game()));
        registry.hear(12, Request::Connect(Flow(1), game()));
        assert_eq!(told(&mut registry), [(11, Notice::Waiting(Flow(1))), (12, Notice::Waiting(Flow(1)))]);
        registry.hear(12, Request::HangUp(Flow(1)));
        registry.hear(10, Request::Register(game()));
        assert_eq!(told(&mut registry), [(10, Notice::Registered(game())), (11, Notice::Connected(Flow(1)))]);
        assert_nothing_is_left(&mut registry);
    }

    #[test]
    fn who_loses_a_provider_waits_for_the_next_and_the_name_is_kept_for_the_key_for_a_minute() {
        let mut registry = paired();
        registry.leave(S, 10);
        assert_eq!(told(&mut registry), [(11, Notice::Waiting(Flow(5)))]);
        assert_eq!(registry.next_timeout(), Some(S + KEPT_US));
        registry.handle_timeout(S + KEPT_US - 1);
        registry.hear(20, Request::Register(game()));
        assert_eq!(told(&mut registry), [(20, Notice::Taken(game()))]);
        registry.handle_timeout(S + KEPT_US);
        registry.hear(20, Request::Register(game()));
        assert_eq!(told(&mut registry), [(20, Notice::Registered(game()))], "the wish is not this key's");
        registry.leave(S + KEPT_US, 20);
        registry.hear(21, Request::Register(game()));
        assert_eq!(told(&mut registry), [(21, Notice::Registered(game()))]);
        registry.handle_timeout(u64::MAX);
        assert_eq!(registry.next_timeout(), None);
        assert!(registry.services.contains_key(&game()), "who came back in time is not given up");
        assert_nothing_is_left(&mut registry);
    }

    #[test]
    fn a_provider_hears_of_a_visitor_that_is_gone_or_hangs_up_and_the_other_way_round() {
        let mut registry = paired();
        registry.hear(12, Request::Connect(Flow(7), game()));
        registry.hear(13, Request::Connect(Flow(8), game()));
        told(&mut registry);
        registry.leave(0, 11);
        registry.hear(12, Request::HangUp(Flow(7)));
        registry.hear(10, Request::HangUp(theirs(2)));
        assert_eq!(
            told(&mut registry),
            [
                (10, Notice::Ended(theirs(0), EndReason::HungUp)),
                (10, Notice::Ended(theirs(1), EndReason::HungUp)),
                (13, Notice::Ended(Flow(8), EndReason::HungUp)),
            ]
        );
        assert_nothing_is_left(&mut registry);
    }

    #[test]
    fn flows_of_a_withdrawn_service_go_on_and_new_ones_wait() {
        let mut registry = paired();
        registry.hear(10, Request::Withdraw(game()));
        registry.hear(11, Request::Connect(Flow(6), game()));
        assert_eq!(told(&mut registry), [(11, Notice::Waiting(Flow(6)))]);
        assert_eq!(registry.route(11, Flow(5)), Some((10, theirs(0))));
        registry.hear(20, Request::Register(game()));
        assert_eq!(told(&mut registry), [(20, Notice::Registered(game()))], "the name is free at once");
        assert_nothing_is_left(&mut registry);
    }

    #[test]
    fn a_flow_that_is_there_begins_anew() {
        let mut registry = paired();
        registry.hear(10, Request::Register(name("other")));
        registry.hear(11, Request::Connect(Flow(5), name("other")));
        assert_eq!(registry.route(11, Flow(5)), Some((10, theirs(1))));
        assert_eq!(registry.route(10, theirs(0)), None);
        assert_nothing_is_left(&mut registry);
    }

    #[test]
    fn who_connects_to_itself_leaves_nothing_behind() {
        let mut registry = paired();
        registry.hear(10, Request::Connect(Flow(5), game()));
        assert_eq!(registry.route(10, Flow(5)), Some((10, theirs(1))));
        assert_eq!(registry.route(10, theirs(1)), Some((10, Flow(5))));
        registry.hear(12, Request::Register(game()));
        registry.hear(10, Request::Register(game()));
        assert_nothing_is_left(&mut registry);
    }

    #[test]
    fn each_limit_is_the_key_s_own_and_the_keeper_hears_of_it_once() {
        let mut registry = registry(Limits { services: 2, peers: 10, flows: 3, wishes: 2 });
        assert_eq!(registry.join(30, ONE), Err(TooMany));
        for text in ["a", "b", "c", "d"] {
            registry.hear(10, Request::Register(name(text)));
        }
        registry.hear(20, Request::Register(name("c")));
        let too_many = |text| Notice::Refused(RefusalReason::TooMany, name(text));
        assert_eq!(
            told(&mut registry)[2..],
            [(10, too_many("c")), (10, too_many("d")), (20, Notice::Registered(name("c")))]
        );
        for flow in 1..=3 {
            registry.hear(11, Request::Connect(Flow(flow), name("nobody")));
        }
        assert_eq!(told(&mut registry)[2..], [(11, Notice::Ended(Flow(3), EndReason::TooMany))]);
        registry.hear(11, Request::Connect(Flow(3), name("a")));
        registry.hear(11, Request::Connect(Flow(4), name("a")));
        registry.hear(21, Request::Connect(Flow(4), name("c")));
        assert_eq!(
            told(&mut registry),
            [
                (11, Notice::Connected(Flow(3))),
                (11, Notice::Ended(Flow(4), EndReason::TooMany)),
                (21, Notice::Connected(Flow(4))),
            ]
        );
        // A provider's loss makes one wish too many.
        registry.leave(0, 10);
        assert_eq!(told(&mut registry), [(11, Notice::Ended(Flow(3), EndReason::TooMany))]);
        let complaints: Vec<_> = news(&mut registry)
            .into_iter()
            .filter_map(|news| if let News::TooMany { key, what } = news { Some((key, what)) } else { None })
            .collect();
        let all = [Limited::Peers, Limited::Services, Limited::Wishes, Limited::Flows];
        assert_eq!(complaints, all.map(|what| (ONE, what)));
        assert_nothing_is_left(&mut registry);
    }

    #[test]
    fn whatever_peers_do_counts_stay_right_and_routes_lead_back() {
        for seed in 0..200u32 {
            let mut random = crate::proto::tunnel::random::Random::new([seed as u8; 32]);
            let mut registry = registry(Limits { services: 3, peers: 10, flows: 6, wishes: 3 });
            for step in 0..300u64 {
                let [peer, what, which, flow] = random.draw::<4>();
                let peer = 10 + u32::from(peer % 20);
                let name = name(["a", "b", "c", "d"][usize::from(which % 4)]);
                let request = match what % 16 {
                    0..3 => Some(Request::Register(name)),
                    3 => Some(Request::Withdraw(name)),
                    4..10 => Some(Request::Connect(Flow(u32::from(flow % 4)), name)),
                    10..12 => Some(Request::HangUp(Flow(u32::from(flow % 4)))),
                    12 => Some(Request::HangUp(theirs(u32::from(flow % 4)))),
                    _ => None,
                };
                match request {
                    Some(request) => registry.hear(peer, request),
                    None if what % 16 == 13 => registry.handle_timeout(step * S),
                    None => {
                        registry.leave(step * S, peer);
                        let _ = registry.join(peer, if peer < 20 { ONE } else { TWO });
                    }
                }
                told(&mut registry);
                check(&registry, seed);
            }
            assert_nothing_is_left(&mut registry);
        }
    }

    fn check(registry: &Registry<u32>, seed: u32) {
        for (key, account) in &registry.accounts {
            let members = || registry.members.values().filter(|member| member.key == *key);
            let of_visitors = || members().flat_map(|member| member.flows.range(..theirs(0)));
            let waiting = of_visitors().filter(|(_, lead)| lead.to.is_none()).count();
            let wishes: usize =
                registry.wishes.iter().filter(|((of, _), _)| of == key).map(|(_, wishes)| wishes.len()).sum();
            let services = registry.services.values().filter(|service| service.key == *key).count();
            let counted = (account.peers, account.services, account.flows, account.wishes);
            let there = (members().count(), services, of_visitors().count(), waiting);
            assert_eq!((counted, wishes), (there, waiting), "seed {seed}");
        }
        for (peer, member) in &registry.members {
            for (flow, lead) in &member.flows {
                let Some((other, theirs)) = lead.to else { continue };
                assert_eq!(registry.route(other, theirs), Some((*peer, *flow)), "seed {seed}");
                assert_eq!(registry.key_of(other), Some(member.key), "seed {seed}");
            }
        }
    }
}
