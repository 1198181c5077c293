//! Which way to one peer. We begin on the relay, which works behind any NAT, and leave it as soon as a probe was answered over a
//! better way. Silence on the way in use, and nothing else, brings us back.
//!
//! The rule, in words:
//!
//! 1. A way is *alive* when a probe over it was answered: then it carries both directions.
//! 2. Of the living the best is used: [`Kind`] decides, first the local network, then UDP, then TCP, then the relay; round trips
//!    only break ties, and only when they differ clearly.
//! 3. While the tunnel has traffic, the way in use is probed seven times a second, and sooner when we send and hear nothing. An
//!    answer that is overdue gives *alarm*: all ways are probed every 50 ms. When the way in use has left several probes
//!    unanswered, has been silent for three round trips and 250 ms at least (or has brought no answer for four, and 500 ms), and
//!    another has answered since, that other one is used, and what was sent on the dead one is sent again. Nothing moves while
//!    nobody answers.
//! 4. A way that died is tried on for half a minute. It has to answer several times in a row before it is used again, more
//!    often each time it dies.
//! 5. While there is no direct way, rounds of punching are wanted: at once, then after 2, 8 and 30 s, then every few
//!    minutes; and at once when the network has changed.
//! 6. Without traffic every way but the relay is probed after 15 s of silence, so that NATs do not forget it, and sooner where they
//!    have ([`KeepAlive`]).
//!
//! Both ends of a tunnel have one of these; only the visitor's decides. The provider's probes as well, keeps ways alive and proves
//! them, so that its tunnel may follow at once; and when its own NAT has forgotten everything, the rendezvous and the visitor hear
//! from its probes where it is now.
//!
//! The owner tells what happens ([`Paths::heard`], [`Paths::answered`], [`Paths::sent`], ...), then takes [`Paths::poll_output`]
//! until there is no more, and comes back at [`Paths::next_timeout`]. Absent: sockets, tunnels, and how holes are punched.

mod keep_alive;
mod kind;
mod rounds;
mod route;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;

pub use keep_alive::{CALLS_GRACE_US, Calls, INTERVAL_US, KeepAlive, Network};
use keep_alive::{INTERVAL_MIN_US, Silences, Turns};
pub use kind::Kind;
use kind::Rank;
use rounds::Rounds;
use route::Route;

use crate::proto::tunnel::Leaving;

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The best way there is.
    #[default]
    Auto,
    /// Data over direct ways only. The relay is for finding them.
    Direct,
    /// Data over the relay only, and nothing else is looked for.
    Relay,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send what `Tunnel::probe` makes.
    Probe { to: SocketAddr },
    /// Call `Tunnel::use_path`.
    Use { to: SocketAddr, leaving: Leaving },
    /// Begin a round of punching, and tell [`Paths::round_over`] when it has ended.
    WantRound,
    /// Direct ways do not survive such a silence, as it seems: tell [`KeepAlive::forgot`], and us what follows from it.
    Forgot { silence_us: u64 },
}

/// A way at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub kind: Kind,
    pub remote: SocketAddr,
    /// Smoothed. `None` before the first answer.
    pub rtt_us: Option<u64>,
    pub why: Why,
}

/// Why the way in use is not a better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is none: it is direct.
    Direct,
    /// The user wants the relay.
    Wanted,
    /// One is being looked for.
    Searching,
    /// None was found. The round's verdict says more.
    NotFound,
    /// There was one, and it fell silent.
    Died,
}

/// Ways that are known at most. In place of one more, the worst that is not alive is forgotten, if any.
const ROUTES_MAX: usize = 16;

/// For so long after anything was sent the tunnel has traffic, in µs.
const BUSY_US: u64 = 500_000;

/// So soon after an answer was overdue the relay has to answer, if it is silence that a way has died of, in µs: a satellite's round
/// trips, and less than the other end waits before it probes, too.
const JUDGE_US: u64 = 1_800_000;

/// A way of the same kind is used in place of another when its round trip is shorter by so much: a fifth, and in µs.
const SHORTER_PART: u64 = 5;
const SHORTER_US: u64 = 10_000;

#[derive(Debug)]
pub struct Paths {
    mode: Mode,
    decides: bool,
    routes: Vec<Route>,
    /// Where datagrams go.
    current: SocketAddr,
    /// When traffic was last sent.
    sent_at: Option<u64>,
    /// Since when an answer is overdue on the way in use.
    alarm: Option<u64>,
    rounds: Rounds,
    has_died: bool,
    /// The silence after which ways are probed, and whether they survive it.
    turns: Turns,
    silences: Silences,
    outputs: VecDeque<Output>,
}

impl Paths {
    /// Of a tunnel whose datagrams go to `current`. The visitor's `decides`.
    #[must_use]
    pub fn new(now: u64, mode: Mode, decides: bool, current: SocketAddr, seed: u64) -> Self {
        let mut paths = Self {
            mode,
            decides,
            routes: Vec::new(),
            current,
            sent_at: None,
            alarm: None,
            rounds: Rounds::new(now, decides && mode != Mode::Relay, seed),
            has_died: false,
            turns: Turns::new(INTERVAL_US, decides),
            silences: Silences::default(),
            outputs: VecDeque::new(),
        };
        paths.learn(now, current, route::TRIES);
        paths
    }

    // What happens.

    /// There may be a way, as a round, a connection or the local network has shown.
    pub fn found(&mut self, now: u64, to: SocketAddr) {
        if self.mode != Mode::Relay || Kind::of(to) == Kind::Relay {
            self.learn(now, to, route::TRIES);
        }
    }

    /// A probe of the peer came from there. As long as nothing has proved the address, it gets no more for it than is fair.
    pub fn probed(&mut self, now: u64, from: SocketAddr) {
        if self.mode != Mode::Relay || Kind::of(from) == Kind::Relay {
            self.learn(now, from, route::TRIES_UNPROVED);
        }
    }

    /// A way is gone: a connection has ended, the rendezvous has lost the flow.
    pub fn lost(&mut self, now: u64, to: SocketAddr) {
        let Some(at) = self.find(to) else { return };
        if to != self.current {
            self.routes.remove(at);
            return;
        }
        self.routes[at].be_gone();
        self.alarm = self.alarm.or(self.decides.then_some(now));
        self.look(now);
    }

    /// An authentic packet of the peer came from there, as it does from a new address after its NAT has forgotten it.
    pub fn heard(&mut self, now: u64, from: SocketAddr) {
        match self.find(from) {
            Some(at) => self.routes[at].heard(now),
            None => self.probed(now, from),
        }
    }

    /// A probe was answered from there.
    pub fn answered(&mut self, now: u64, from: SocketAddr, rtt_us: u64) {
        if let Some(at) = self.find(from) {
            self.routes[at].answered(now, rtt_us);
            if from == self.current && self.routes[at].is_alive() {
                self.alarm = None;
            }
            if Kind::of(from) <= Kind::Direct
                && let Some(silence_us) = self.silences.returned(now)
            {
                self.outputs.push_back(Output::Forgot { silence_us });
            }
            self.look(now);
        }
    }

    /// The tunnel has sent traffic at that time: not probes, but what wants to arrive.
    pub fn sent(&mut self, at: u64) {
        self.sent_at = self.sent_at.max(Some(at));
    }

    /// The tunnel sends there now, without us: it has followed the peer.
    pub fn moved(&mut self, now: u64, to: SocketAddr) {
        (self.current, self.alarm) = (to, None);
        self.learn(now, to, route::TRIES);
    }

    /// A round has ended, whatever it has found.
    pub fn round_over(&mut self, now: u64) {
        let is_direct = |route: &Route| route.is_usable() && route.rank().kind <= Kind::Direct;
        self.rounds.over(now, self.routes.iter().any(is_direct));
    }

    /// Addresses or routes of this machine have changed: everything is to be tried at once.
    pub fn network_changed(&mut self, now: u64) {
        self.routes.iter_mut().for_each(|route| route.suspect(now));
        if self.mode != Mode::Relay {
            self.rounds.begin_anew(now);
        }
    }

    /// A round may find now what others before it did not.
    pub fn chance_improved(&mut self, now: u64) {
        if self.decides && self.mode != Mode::Relay && Kind::of(self.current) > Kind::Direct {
            self.rounds.begin_anew(now);
        }
    }

    /// After such a silence ways are to be probed from now on.
    pub fn keep_alive(&mut self, after_us: u64) {
        self.turns = Turns::new(after_us, self.decides);
        self.routes.iter_mut().for_each(|route| route.keep_alive(self.turns));
    }

    // What follows.

    /// What is to be done now. `None`: nothing, until [`Self::next_timeout`].
    pub fn poll_output(&mut self, now: u64) -> Option<Output> {
        if self.outputs.is_empty() {
            self.look(now);
            self.probe(now);
            if self.rounds.take(now) {
                self.outputs.push_back(Output::WantRound);
            }
        }
        self.outputs.pop_front()
    }

    /// When [`Self::poll_output`] has to be asked, if nothing happens before.
    #[must_use]
    pub fn next_timeout(&self) -> u64 {
        if !self.outputs.is_empty() {
            return 0;
        }
        let probes = self.routes.iter().map(Route::due_at).min().unwrap_or(u64::MAX);
        probes.min(self.watch_at()).min(self.rounds.next_timeout())
    }

    #[must_use]
    pub fn status(&self, now: u64) -> Status {
        let kind = Kind::of(self.current);
        let why = match self.mode {
            Mode::Relay => Why::Wanted,
            _ if kind <= Kind::Direct => Why::Direct,
            _ if self.rounds.is_searching(now) => Why::Searching,
            _ if self.has_died => Why::Died,
            _ => Why::NotFound,
        };
        let rtt_us = self.find(self.current).and_then(|at| self.routes[at].rtt_us());
        Status { kind, remote: self.current, rtt_us, why }
    }

    /// Whether a way other than the relay would be taken.
    #[must_use]
    pub fn wants_rounds(&self) -> bool {
        self.mode != Mode::Relay
    }

    /// Whether streams and datagrams may go along the way in use.
    #[must_use]
    pub fn carries_data(&self) -> bool {
        let is_relay = Kind::of(self.current) == Kind::Relay;
        match self.mode {
            Mode::Auto => true,
            Mode::Direct => !is_relay,
            Mode::Relay => is_relay,
        }
    }

    // Ways.

    fn find(&self, to: SocketAddr) -> Option<usize> {
        self.routes.iter().position(|route| route.to == to)
    }

    fn learn(&mut self, now: u64, to: SocketAddr, tries: u32) {
        if let Some(at) = self.find(to) {
            return self.routes[at].try_again(now, tries);
        }
        if self.routes.len() == ROUTES_MAX {
            let is_spare = |route: &&Route| route.to != self.current && !route.is_alive();
            let worst = self.routes.iter().filter(is_spare).max_by_key(|route| route.rank()).map(|route| route.to);
            match worst {
                Some(worst) => self.routes.retain(|route| route.to != worst),
                None => return,
            }
        }
        self.routes.push(Route::new(now, to, tries, self.turns));
    }

    // Decisions.

    fn look(&mut self, now: u64) {
        let current = self.current;
        self.routes.retain(|route| route.to == current || !route.is_given_up());
        let Some(at) = self.find(current) else { return };
        if self.routes[at].overdue_at() <= now {
            self.alarm.get_or_insert(now);
        }
        self.judge(now, at);
        match self.alarm {
            _ if !self.decides => {}
            Some(since) if self.routes[at].is_dead(now) => self.flee(now, since),
            _ => self.improve(now),
        }
    }

    /// Whether the way in use has died of silence: it alone, and after one.
    fn judge(&mut self, now: u64, at: usize) {
        let (Some(since), route) = (self.alarm, &self.routes[at]) else { return };
        let is_alone = || self.routes.iter().any(|other| other.to != route.to && other.has_answered_since(since));
        if Kind::of(route.to) <= Kind::Direct && now <= since + JUDGE_US && route.is_dead(now) && is_alone() {
            let silence_us = route.silence_us();
            self.silences.died(now, silence_us);
        }
    }

    /// To the best of those that have answered since.
    fn flee(&mut self, now: u64, since: u64) {
        let has_answered = |route: &&Route| route.to != self.current && route.has_answered_since(since);
        let Some(refuge) = self.routes.iter().filter(has_answered).min_by_key(|route| route.rank()) else { return };
        let to = refuge.to;
        if let Some(at) = self.find(self.current) {
            self.routes[at].die(now);
        }
        if Kind::of(self.current) != Kind::Relay {
            self.rounds.died(now, route::QUICK_US);
            self.has_died = true;
        }
        self.go(now, to, Leaving::Dead);
    }

    fn improve(&mut self, now: u64) {
        let Some(at) = self.find(self.current) else { return };
        let used = self.routes[at].rank();
        let is_better = |route: &&Route| route.is_usable() && is_better(route.rank(), used);
        let Some(better) = self.routes.iter().filter(is_better).min_by_key(|route| route.rank()) else { return };
        self.go(now, better.to, Leaving::Alive);
    }

    fn go(&mut self, now: u64, to: SocketAddr, leaving: Leaving) {
        (self.current, self.alarm) = (to, None);
        if Kind::of(to) <= Kind::Direct {
            self.rounds.found(now);
        }
        self.outputs.push_back(Output::Use { to, leaving });
    }

    // Probes.

    fn probe(&mut self, now: u64) {
        let is_alarmed = self.alarm.is_some();
        let is_watched = self.watch_at() <= now;
        let calls_until = self.calls_until();
        for route in &mut self.routes {
            let is_watched = is_watched && !is_alarmed && route.to == self.current;
            let is_asked = is_watched || is_alarmed && route.alarm_at() <= now.min(calls_until);
            if is_asked {
                route.note_probe(now);
            }
            if is_asked || route.due_at() <= now && route.take_probe(now) {
                self.outputs.push_back(Output::Probe { to: route.to });
            }
        }
    }

    /// Until when an alarm makes probes. A provider calls for a visitor who is gone no longer than it has something for him, or
    /// has to know whether silence was the reason.
    fn calls_until(&self) -> u64 {
        if self.decides {
            return u64::MAX;
        }
        let is_silence = |at: usize| self.routes[at].silence_us() >= INTERVAL_MIN_US;
        let judged_at = self.alarm.filter(|_| self.find(self.current).is_some_and(is_silence));
        self.sent_at.map_or(0, |at| at + BUSY_US).max(judged_at.map_or(0, |since| since + JUDGE_US))
    }

    /// When the way in use is to be probed because of traffic, or its silence to be judged.
    fn watch_at(&self) -> u64 {
        let Some(at) = self.find(self.current) else { return u64::MAX };
        if self.alarm.is_some() {
            let alarm_at = self.routes.iter().map(Route::alarm_at).min();
            return alarm_at.filter(|at| *at <= self.calls_until()).unwrap_or(u64::MAX);
        }
        let current = &self.routes[at];
        let watched = self.sent_at.map(|sent_at| (current.watch_at(sent_at), sent_at + BUSY_US));
        let watch_at = watched.filter(|(at, until)| at <= until).map_or(u64::MAX, |(at, _)| at);
        watch_at.min(current.overdue_at())
    }
}

fn is_better(one: Rank, used: Rank) -> bool {
    let is_shorter = one.rtt_us + (used.rtt_us / SHORTER_PART).max(SHORTER_US) < used.rtt_us;
    one.kind < used.kind || one.kind == used.kind && is_shorter
}
