//! Connections of providers to the rendezvous that players wait for, or that wait for players.
//!
//! A player costs no extra round trip while one of his provider's connections is ready, so a few are asked for in advance: at
//! least [`READY_MIN`] of a provider that somebody wanted lately or whose service is exposed, and as many as players came in the
//! last seconds, up to [`READY_MAX`]. One that nobody needs is let go before a NAT on its way forgets it, and replaced if need be.
//!
//! The owner has the sockets, and says what happens: somebody wants a connection ([`Hub::want`]), one has come
//! ([`Hub::arrive`]) or ended ([`Hub::end`]), a provider is gone ([`Hub::leave`]). It asks for connections ([`Hub::poll_dial`]) and
//! lets them go ([`Hub::poll_expired`]).
//!
//! Deliberately absent: which provider has which service.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::data::DataId;
use crate::proto::tunnel::random::Random;

/// Connections of a provider that are kept ready: for two players at once at any time, and for a crowd's pace at a round trip of
/// a few hundred ms.
pub const READY_MIN: usize = 2;
pub const READY_MAX: usize = 32;

/// How long one is kept, in µs: NATs forget a silent connection after two minutes at the earliest.
pub const KEPT_US: u64 = 90_000_000;

/// How long a provider is given to open one it was asked for, and somebody waits for one, in µs.
pub const PATIENCE_US: u64 = 10_000_000;

/// How long a provider counts as wanted, in µs.
const WANTED_US: u64 = 60_000_000;

/// Players are counted in spans of this, in µs: the last, and the one that runs.
const SPAN_US: u64 = 1_000_000;

/// Pause, in µs, before a connection that has ended unused is replaced: a provider that cannot keep any is not asked in a loop.
const PAUSE_US: u64 = 1_000_000;

/// Of one provider: players that wait, over which more are refused, and connections that are on their way.
const WAITING_MAX: usize = 1024;
const ASKED_MAX: usize = 256;

/// `P` names a provider, `W` somebody who wants a connection.
#[derive(Debug)]
pub struct Hub<P, W> {
    pools: BTreeMap<P, Pool<W>>,
    asked: HashMap<DataId, P>,
    /// When each pool is to be looked at.
    looks: BTreeSet<(u64, P)>,
    dials: VecDeque<(P, DataId)>,
    expired: Vec<u32>,
    random: Random,
    /// Ids begin with bytes that are this one of so many, so that all workers know whose they are.
    home: (u8, u8),
}

/// Of one provider. All queues are in order of time.
#[derive(Debug)]
struct Pool<W> {
    ready: VecDeque<(u64, u32)>,
    asked: VecDeque<(u64, DataId)>,
    waiting: VecDeque<(u64, W)>,
    is_exposed: bool,
    wanted_until: u64,
    paused_until: u64,
    /// Players of the last span and of the one that began at a time.
    players: [usize; 2],
    span_from: u64,
    look_at: Option<u64>,
}

/// What becomes of a connection that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival<P, W> {
    /// Nobody has asked for it.
    Stranger,
    /// It waits for a player of this provider.
    Ready(P),
    For(W),
}

/// As many wait already as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

impl<P: Copy + Ord, W> Hub<P, W> {
    /// `seed` must be secret. `worker` is one of `workers`.
    #[must_use]
    pub fn new(seed: [u8; 32], worker: u8, workers: u8) -> Self {
        Self {
            pools: BTreeMap::new(),
            asked: HashMap::new(),
            looks: BTreeSet::new(),
            dials: VecDeque::new(),
            expired: Vec::new(),
            random: Random::new(seed),
            home: (worker, workers.max(1)),
        }
    }

    /// Whether a service of the provider is exposed, so that a player may come at any time.
    pub fn expose(&mut self, now: u64, provider: P, is_exposed: bool) {
        if is_exposed || self.pools.contains_key(&provider) {
            self.pool(now, provider).is_exposed = is_exposed;
            self.settle(now, provider);
        }
    }

    /// Somebody wants a connection: there is one, or he waits for it.
    ///
    /// # Errors
    /// At the bound.
    pub fn want(&mut self, now: u64, provider: P, who: W) -> Result<Option<u32>, TooMany> {
        let pool = self.pool(now, provider);
        pool.count_player(now);
        let ready = pool.ready.pop_back().map(|(_, number)| number); // the one heard of last
        let refused = ready.is_none() && pool.waiting.len() >= WAITING_MAX;
        if ready.is_none() && !refused {
            pool.waiting.push_back((now + PATIENCE_US, who));
        }
        self.settle(now, provider);
        if refused { Err(TooMany) } else { Ok(ready) }
    }

    /// A connection has come and shown its id. Its owner calls it by `number`.
    pub fn arrive(&mut self, now: u64, id: DataId, number: u32) -> Arrival<P, W> {
        let Some(provider) = self.asked.remove(&id) else { return Arrival::Stranger };
        let pool = self.pool(now, provider);
        pool.asked.retain(|(_, asked)| *asked != id);
        let arrival = match pool.waiting.pop_front() {
            Some((_, who)) => Arrival::For(who),
            None => {
                pool.ready.push_back((now + KEPT_US, number));
                Arrival::Ready(provider)
            }
        };
        self.settle(now, provider);
        arrival
    }

    /// A connection that was ready has ended.
    pub fn end(&mut self, now: u64, provider: P, number: u32) {
        if let Some(pool) = self.pools.get_mut(&provider) {
            pool.ready.retain(|(_, ready)| *ready != number);
            pool.paused_until = now + PAUSE_US;
            self.settle(now, provider);
        }
    }

    /// A provider is gone. Those who wait for it are handed out; its connections expire.
    pub fn leave(&mut self, provider: P) -> impl Iterator<Item = W> + use<P, W> {
        let pool = self.pools.remove(&provider);
        for (_, id) in pool.iter().flat_map(|pool| &pool.asked) {
            self.asked.remove(id);
        }
        if let Some(at) = pool.as_ref().and_then(|pool| pool.look_at) {
            self.looks.remove(&(at, provider));
        }
        let (ready, waiting) = pool.map(|pool| (pool.ready, pool.waiting)).unwrap_or_default();
        self.expired.extend(ready.into_iter().map(|(_, number)| number));
        waiting.into_iter().map(|(_, who)| who)
    }

    /// The next connection to be asked for, and whom.
    pub fn poll_dial(&mut self) -> Option<(P, DataId)> {
        self.dials.pop_front()
    }

    /// The next connection to be let go.
    pub fn poll_expired(&mut self) -> Option<u32> {
        self.expired.pop()
    }

    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        self.looks.first().map(|(at, _)| *at)
    }

    /// Those who have waited too long are forgotten: their owner knows the time, too.
    pub fn handle_timeout(&mut self, now: u64) {
        while let Some((_, provider)) = self.looks.first().copied().filter(|(at, _)| *at <= now) {
            let Some(pool) = self.pools.get_mut(&provider) else { return };
            while let Some(number) = pop_expired(&mut pool.ready, now) {
                self.expired.push(number);
            }
            while let Some(id) = pop_expired(&mut pool.asked, now) {
                self.asked.remove(&id);
            }
            while pop_expired(&mut pool.waiting, now).is_some() {}
            self.settle(now, provider);
        }
    }

    fn pool(&mut self, now: u64, provider: P) -> &mut Pool<W> {
        self.pools.entry(provider).or_insert_with(|| Pool::new(now))
    }

    /// Asks for what is missing, and sets the time of the next look.
    fn settle(&mut self, now: u64, provider: P) {
        let Some(pool) = self.pools.get_mut(&provider) else { return };
        for _ in 0..pool.missing(now) {
            let id = new_id(&mut self.random, self.home);
            pool.asked.push_back((now + PATIENCE_US, id));
            self.asked.insert(id, provider);
            self.dials.push_back((provider, id));
        }
        let look_at = pool.next_look(now);
        let before = std::mem::replace(&mut pool.look_at, look_at);
        if before != look_at {
            before.map(|at| self.looks.remove(&(at, provider)));
            look_at.map(|at| self.looks.insert((at, provider)));
        }
        if look_at.is_none() {
            self.pools.remove(&provider);
        }
    }
}

impl<W> Pool<W> {
    fn new(now: u64) -> Self {
        Self {
            ready: VecDeque::new(),
            asked: VecDeque::new(),
            waiting: VecDeque::new(),
            is_exposed: false,
            wanted_until: 0,
            paused_until: 0,
            players: [0; 2],
            span_from: now,
            look_at: None,
        }
    }

    fn count_player(&mut self, now: u64) {
        self.turn_span(now);
        self.players[1] += 1;
        self.wanted_until = now + WANTED_US;
    }

    fn turn_span(&mut self, now: u64) {
        let spans = now.saturating_sub(self.span_from) / SPAN_US;
        self.players = match spans {
            0 => return,
            1 => [self.players[1], 0],
            _ => [0; 2],
        };
        self.span_from += spans * SPAN_US;
    }

    /// Connections that should be ready.
    fn wanted(&mut self, now: u64) -> usize {
        self.turn_span(now);
        if (!self.is_exposed && self.wanted_until <= now) || now < self.paused_until {
            return 0;
        }
        self.players.iter().sum::<usize>().clamp(READY_MIN, READY_MAX)
    }

    /// Connections that are to be asked for.
    fn missing(&mut self, now: u64) -> usize {
        let wanted = self.waiting.len() + self.wanted(now).saturating_sub(self.ready.len());
        wanted.min(ASKED_MAX).saturating_sub(self.asked.len())
    }

    /// `None`: nothing will happen by itself, ever.
    fn next_look(&self, now: u64) -> Option<u64> {
        let fronts = [
            self.ready.front().map(|(until, _)| *until),
            self.asked.front().map(|(until, _)| *until),
            self.waiting.front().map(|(until, _)| *until),
            Some(self.paused_until).filter(|until| now < *until),
        ];
        fronts.into_iter().flatten().min()
    }
}

/// The first of a queue, if its time is over.
fn pop_expired<T>(queue: &mut VecDeque<(u64, T)>, now: u64) -> Option<T> {
    let is_over = queue.front().is_some_and(|(until, _)| *until <= now);
    if is_over { queue.pop_front().map(|(_, of)| of) } else { None }
}

fn new_id(random: &mut Random, (worker, workers): (u8, u8)) -> DataId {
    let mut id: [u8; DataId::BYTES] = random.draw();
    let whole = u8::MAX / workers; // so often all of them fit into a byte
    id[0] = id[0] % whole * workers + worker;
    DataId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn hub() -> Hub<u8, &'static str> {
        Hub::new([1; 32], 0, 1)
    }

    fn dials(hub: &mut Hub<u8, &'static str>) -> Vec<DataId> {
        std::iter::from_fn(|| hub.poll_dial()).map(|(_, id)| id).collect()
    }

    fn expired(hub: &mut Hub<u8, &'static str>) -> Vec<u32> {
        std::iter::from_fn(|| hub.poll_expired()).collect()
    }

    #[test]
    fn of_an_exposed_provider_two_connections_are_ready_and_replaced_when_taken() {
        let mut hub = hub();
        hub.expose(0, 7, true);
        let ids = dials(&mut hub);
        assert_eq!(ids.len(), READY_MIN);
        assert_eq!(hub.arrive(1, ids[0], 10), Arrival::Ready(7));
        assert_eq!(hub.arrive(2, ids[1], 11), Arrival::Ready(7));
        assert_eq!(dials(&mut hub), []);
        assert_eq!(hub.want(3, 7, "player"), Ok(Some(11)));
        assert_eq!(dials(&mut hub).len(), 1);
    }

    #[test]
    fn of_a_provider_that_nobody_wants_none_is_kept() {
        let mut hub = hub();
        assert_eq!(hub.want(0, 7, "player"), Ok(None));
        let ids = dials(&mut hub);
        assert_eq!(ids.len(), 1 + READY_MIN);
        assert_eq!(hub.arrive(S, ids[0], 10), Arrival::For("player"));
        assert_eq!(hub.arrive(S, ids[1], 11), Arrival::Ready(7));
        assert_eq!(hub.arrive(S, ids[2], 12), Arrival::Ready(7));
        let at = hub.next_timeout().expect("they expire");
        assert_eq!(at, S + KEPT_US);
        hub.handle_timeout(at);
        assert_eq!((expired(&mut hub).len(), dials(&mut hub).len()), (2, 0));
        assert_eq!((hub.next_timeout(), hub.pools.len(), hub.asked.len()), (None, 0, 0), "nothing is left");
    }

    #[test]
    fn an_id_is_good_once_and_for_a_while() {
        let mut hub = hub();
        hub.expose(0, 7, true);
        let ids = dials(&mut hub);
        assert_eq!(hub.arrive(0, DataId([9; 16]), 1), Arrival::Stranger);
        assert_eq!(hub.arrive(0, ids[0], 2), Arrival::Ready(7));
        assert_eq!(hub.arrive(0, ids[0], 3), Arrival::Stranger);
        hub.handle_timeout(PATIENCE_US);
        assert_eq!(hub.arrive(PATIENCE_US, ids[1], 4), Arrival::Stranger);
        assert_eq!(dials(&mut hub).len(), 1, "another one is asked for");
    }

    #[test]
    fn those_who_wait_get_connections_in_their_order_and_the_bound_refuses_more() {
        let mut hub = hub();
        assert_eq!(hub.want(0, 7, "first"), Ok(None));
        let ids = dials(&mut hub);
        assert_eq!(hub.want(0, 7, "second"), Ok(None));
        assert_eq!(hub.arrive(0, ids[0], 1), Arrival::For("first"));
        assert_eq!(hub.arrive(0, ids[1], 2), Arrival::For("second"));
        let mut refused = 0;
        for _ in 0..2 * WAITING_MAX {
            refused += usize::from(hub.want(0, 7, "crowd").is_err());
        }
        assert_eq!(refused, WAITING_MAX);
        assert!(hub.asked.len() <= ASKED_MAX);
        hub.handle_timeout(PATIENCE_US);
        assert_eq!(hub.pools[&7].waiting.len(), 0, "nobody waits for ever");
    }

    #[test]
    fn a_crowd_finds_more_ready_than_a_single_player_and_they_go_when_it_has_gone() {
        let mut hub = hub();
        let mut number = 0;
        let mut open_all = |hub: &mut Hub<u8, &'static str>, now| {
            for id in dials(hub) {
                number += 1;
                hub.arrive(now, id, number);
            }
        };
        hub.expose(0, 7, true);
        for at in 0..100 {
            open_all(&mut hub, at);
            hub.want(at, 7, "player").expect("there is room");
        }
        open_all(&mut hub, 100);
        assert_eq!(hub.pools[&7].ready.len(), READY_MAX);
        hub.handle_timeout(100 + KEPT_US);
        open_all(&mut hub, 100 + KEPT_US);
        assert_eq!(hub.pools[&7].ready.len(), READY_MIN);
    }

    #[test]
    fn when_a_provider_goes_those_who_wait_are_told_and_nothing_is_left() {
        let mut hub = hub();
        hub.expose(0, 7, true);
        let ids = dials(&mut hub);
        hub.arrive(0, ids[0], 1);
        assert_eq!(hub.want(0, 7, "served"), Ok(Some(1)));
        assert_eq!(hub.want(0, 7, "waits"), Ok(None));
        assert_eq!(hub.leave(7).collect::<Vec<_>>(), ["waits"]);
        assert_eq!(hub.arrive(0, ids[1], 2), Arrival::Stranger);
        assert_eq!((hub.pools.len(), hub.asked.len(), hub.looks.len()), (0, 0, 0));
    }

    #[test]
    fn a_provider_that_keeps_no_connection_is_asked_once_a_second() {
        let mut hub = hub();
        hub.expose(0, 7, true);
        let (mut now, mut asked) = (0, 0);
        while now < 10 * S {
            for id in dials(&mut hub) {
                asked += 1;
                if hub.arrive(now, id, asked) == Arrival::Ready(7) {
                    hub.end(now, 7, asked);
                }
            }
            now = hub.next_timeout().expect("it asks again");
            hub.handle_timeout(now);
        }
        assert!((10..=30).contains(&asked), "{asked}");
        assert_eq!(hub.want(now, 7, "player"), Ok(None));
        assert_eq!(dials(&mut hub).len(), 1 + usize::from(now >= hub.pools[&7].paused_until) * READY_MIN);
    }

    #[test]
    fn ids_begin_with_bytes_of_their_worker() {
        for (worker, workers) in [(0, 1), (0, 2), (1, 2), (6, 7), (63, 64)] {
            let mut random = Random::new([3; 32]);
            let of_worker = |_| new_id(&mut random, (worker, workers)).0[0] % workers == worker;
            assert!((0..1000).all(of_worker), "{worker} of {workers}");
        }
    }
}
