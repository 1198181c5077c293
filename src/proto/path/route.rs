//! One way to the peer: what probes have shown of it, and when the next is due.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::keep_alive::Turns;
use super::kind::{Kind, Rank};

/// Probes of a way of which nothing is known; and of one that only a datagram speaks for: with its answer that makes three times what
/// it brought, as RFC 9000 allows (section 8.1).
pub const TRIES: u32 = 5;
pub const TRIES_UNPROVED: u32 = 2;

/// Time between them, in µs, doubled each time.
const TRY_US: u64 = 100_000;

/// A way that died is tried so often in quick succession, which takes so long, and then once a second for half a minute.
const QUICK: u32 = 5;
const QUICK_EVERY_US: u64 = 100_000;
pub const QUICK_US: u64 = QUICK as u64 * QUICK_EVERY_US;
const SLOW_EVERY_US: u64 = 1_000_000;
const FAILING_US: u64 = 30_000_000;

/// With traffic, in µs: how often the way in use is probed, and the silence after which that is done sooner.
const WATCH_US: u64 = 150_000;
const SILENCE_US: u64 = 80_000;

/// Between probes while an answer is overdue, in µs, and after many of them.
const ALARM_US: u64 = 50_000;
const ALARM_LATER_US: u64 = 250_000;
const ALARM_MANY: u32 = 20;

/// An answer is overdue after the round trip and half of it, or this more, in µs; over TCP, which sends again what is lost, later.
const OVERDUE_US: u64 = 40_000;
const OVERDUE_TCP_US: u64 = 400_000;

/// A way is dead when nothing was heard for three round trips, or this, in µs; or when it brings something but no answers for four,
/// or this. A queue that fills behind our own bulk delays answers nearly as much.
const SILENT_US: u64 = 250_000;
const UNANSWERED_US: u64 = 500_000;
const DEAD_TCP_US: u64 = 1_500_000;

/// And so many probes were not answered, by the share of all that are not: one in a thousand ways is given up by mistake, or fewer.
const UNANSWERED_BY_LOSS: [(f32, u32); 3] = [(0.35, 12), (0.15, 7), (0.0, 4)];
const LOSS_WEIGHT: f32 = 1.0 / 16.0;

/// Answers in a row before a way that died is used again; doubled with each death, up to the most. A way that stood for a minute
/// has no past.
const COME_BACK: u32 = 3;
const COME_BACK_MAX: u32 = 24;
const PAST_US: u64 = 60_000_000;

/// What a round trip is taken for before the first, in µs.
const RTT_FIRST_US: u64 = 150_000;

/// Probes in flight whose times are kept. Of more only their number counts.
const KEPT_MAX: usize = 32;

#[derive(Debug)]
pub struct Route {
    pub to: SocketAddr,
    kind: Kind,
    state: State,
    /// When the next probe is due, or the verdict.
    probe_at: u64,
    probed_at: Option<u64>,
    heard_at: u64,
    answered_at: Option<u64>,
    /// When probes were sent that are not answered, and how many they are.
    open: VecDeque<u64>,
    unanswered: u32,
    rtt: Option<u64>,
    variation: u64,
    loss: f32,
    /// Answers that it still owes before it is used again.
    owes: u32,
    deaths: u32,
    died_at: u64,
    /// The silence after which it is probed.
    turns: Turns,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Trying {
        left: u32,
        after: u64,
    },
    Alive,
    Failing {
        quick: u32,
        until: u64,
    },
    /// Unless something is heard from there.
    GivenUp,
    /// For certain, unless its owner finds it again.
    Gone,
}

impl Route {
    pub fn new(now: u64, to: SocketAddr, tries: u32, turns: Turns) -> Self {
        Self {
            to,
            kind: Kind::of(to),
            state: State::Trying { left: tries, after: TRY_US },
            probe_at: now,
            probed_at: None,
            heard_at: now,
            answered_at: None,
            open: VecDeque::new(),
            unanswered: 0,
            rtt: None,
            variation: 0,
            loss: 0.0,
            owes: 0,
            deaths: 0,
            died_at: 0,
            turns,
        }
    }

    // What is known.

    pub fn rank(&self) -> Rank {
        Rank { kind: self.kind, rtt_us: self.rtt.unwrap_or(u64::MAX) }
    }

    pub fn rtt_us(&self) -> Option<u64> {
        self.rtt
    }

    pub fn is_alive(&self) -> bool {
        self.state == State::Alive
    }

    /// It lives, and may be used.
    pub fn is_usable(&self) -> bool {
        self.is_alive() && self.owes == 0
    }

    pub fn has_answered_since(&self, time: u64) -> bool {
        self.answered_at.is_some_and(|at| at >= time)
    }

    /// Nothing is to be hoped of it. A relay may always come back.
    pub fn is_given_up(&self) -> bool {
        self.is_out() && self.kind != Kind::Relay
    }

    fn is_out(&self) -> bool {
        matches!(self.state, State::GivenUp | State::Gone)
    }

    fn rtt(&self) -> u64 {
        self.rtt.unwrap_or(RTT_FIRST_US)
    }

    /// When an answer is overdue.
    pub fn overdue_at(&self) -> u64 {
        self.open.front().map_or(u64::MAX, |sent| sent + self.patience_us())
    }

    fn patience_us(&self) -> u64 {
        let more = if self.kind == Kind::Tcp { OVERDUE_TCP_US } else { OVERDUE_US };
        self.rtt() + more.max(self.rtt() / 2).max(4 * self.variation)
    }

    /// How long nothing had been heard when the first of the probes was sent that are not answered.
    pub fn silence_us(&self) -> u64 {
        self.open.front().map_or(0, |since| since.saturating_sub(self.heard_at))
    }

    pub fn is_dead(&self, now: u64) -> bool {
        let Some(since) = self.open.front() else { return self.is_out() };
        let least = if self.kind == Kind::Tcp { DEAD_TCP_US } else { 0 };
        let (silent, unanswered) = (SILENT_US.max(3 * self.rtt()), UNANSWERED_US.max(4 * self.rtt()));
        let is_silent = now >= self.heard_at.max(*since) + silent.max(least);
        let is_deaf = now >= since + unanswered.max(least);
        self.is_out() || self.unanswered >= self.enough() && (is_silent || is_deaf)
    }

    fn enough(&self) -> u32 {
        let of = UNANSWERED_BY_LOSS.iter().find(|(loss, _)| self.loss >= *loss);
        of.map_or(UNANSWERED_BY_LOSS[0].1, |(_, enough)| *enough)
    }

    // What happens.

    pub fn heard(&mut self, now: u64) {
        self.heard_at = now;
        match self.state {
            State::Alive if self.owes == 0 => self.probe_at = self.keep_alive_at(now, self.turns.asked_us),
            State::GivenUp => self.try_again(now, TRIES_UNPROVED),
            _ => {}
        }
    }

    /// The probe that left a round trip ago.
    pub fn answered(&mut self, now: u64, rtt_us: u64) {
        if self.state == State::Gone {
            return;
        }
        let sent = now.saturating_sub(rtt_us);
        let lost = self.open.iter().filter(|open| **open < sent).count();
        self.open.retain(|open| *open > sent);
        self.unanswered = self.open.len() as u32;
        (0..lost.min(64)).for_each(|_| self.loss += LOSS_WEIGHT * (1.0 - self.loss));
        self.loss -= LOSS_WEIGHT * self.loss;
        self.variation = self.rtt.map_or(rtt_us / 4, |rtt| (3 * self.variation + rtt.abs_diff(rtt_us)) / 4);
        self.rtt = Some(self.rtt.map_or(rtt_us, |rtt| (7 * rtt + rtt_us) / 8));
        (self.heard_at, self.answered_at, self.state) = (now, Some(now), State::Alive);
        self.owes = if lost > 0 { self.owes } else { self.owes.saturating_sub(1) };
        self.probe_at =
            if self.owes > 0 { now + QUICK_EVERY_US } else { self.keep_alive_at(now, self.turns.asking_us) };
    }

    /// The tunnel to the rendezvous keeps the relay alive.
    fn keep_alive_at(&self, now: u64, after_us: u64) -> u64 {
        if self.kind == Kind::Relay { u64::MAX } else { now + after_us }
    }

    /// From now on it is probed after such a silence.
    pub fn keep_alive(&mut self, turns: Turns) {
        self.turns = turns;
        if self.is_usable() && self.unanswered == 0 {
            self.probe_at = self.probe_at.min(self.keep_alive_at(self.heard_at, turns.asked_us));
        }
    }

    /// Somebody speaks for it.
    pub fn try_again(&mut self, now: u64, tries: u32) {
        match &mut self.state {
            State::Trying { left, .. } => *left = tries.max(*left),
            State::Alive => {}
            State::Failing { .. } => self.probe_at = self.probe_at.min(self.alarm_at().max(now)),
            State::GivenUp | State::Gone => {
                self.state = State::Trying { left: tries, after: TRY_US };
                self.probe_at = now;
            }
        }
    }

    /// It may be gone.
    pub fn suspect(&mut self, now: u64) {
        if self.state != State::Gone {
            self.state = State::Failing { quick: QUICK, until: now + FAILING_US };
            self.probe_at = now;
        }
    }

    /// It was in use, and is dead.
    pub fn die(&mut self, now: u64) {
        if self.is_out() {
            return;
        }
        self.deaths = if now > self.died_at + PAST_US { 1 } else { self.deaths + 1 };
        self.died_at = now;
        if self.kind != Kind::Relay {
            self.owes = (COME_BACK << (self.deaths - 1).min(8)).min(COME_BACK_MAX);
        }
        self.suspect(now);
    }

    pub fn be_gone(&mut self) {
        (self.state, self.probe_at) = (State::Gone, u64::MAX);
    }

    // Probes.

    /// When [`Self::take_probe`] is to be asked.
    pub fn due_at(&self) -> u64 {
        self.probe_at
    }

    /// While an answer is overdue on the way in use, all ways are asked that have ever answered, or may yet.
    pub fn alarm_at(&self) -> u64 {
        let every = if self.unanswered > ALARM_MANY { ALARM_LATER_US } else { ALARM_US };
        match self.state {
            State::Gone => u64::MAX,
            State::GivenUp if self.kind != Kind::Relay => u64::MAX,
            _ => self.probed_at.map_or(0, |probed_at| probed_at + every),
        }
    }

    /// With traffic, of which something was last sent at `sent_at`.
    pub fn watch_at(&self, sent_at: u64) -> u64 {
        let Some(probed_at) = self.probed_at else { return 0 };
        let is_silent = sent_at > self.heard_at && probed_at <= self.heard_at;
        let sooner = if is_silent { self.heard_at + SILENCE_US } else { u64::MAX };
        sooner.min(probed_at + WATCH_US)
    }

    /// What is due: whether a probe, or only the verdict that there will be none.
    pub fn take_probe(&mut self, now: u64) -> bool {
        let is_tried_again = self.is_usable() && self.unanswered > 0 || self.owes > 0 && self.unanswered >= QUICK;
        if self.is_alive() && is_tried_again {
            self.suspect(now);
        }
        let next = match &mut self.state {
            State::Trying { left: 0, .. } | State::GivenUp | State::Gone => None,
            State::Trying { left, after } => {
                *left -= 1;
                *after *= 2;
                Some(now + *after / 2)
            }
            State::Alive if self.owes > 0 => Some(now + QUICK_EVERY_US),
            State::Alive => Some(now + self.patience_us()),
            State::Failing { until, .. } if *until <= now => None,
            State::Failing { quick: 0, .. } => Some(now + SLOW_EVERY_US),
            State::Failing { quick, .. } => {
                *quick -= 1;
                Some(now + QUICK_EVERY_US)
            }
        };
        match next {
            Some(at) => {
                self.probe_at = at;
                self.note_probe(now);
            }
            None => (self.state, self.probe_at) = (State::GivenUp, u64::MAX),
        }
        next.is_some()
    }

    pub fn note_probe(&mut self, now: u64) {
        self.probed_at = Some(now);
        self.unanswered += 1;
        if self.open.len() < KEPT_MAX {
            self.open.push_back(now);
        }
    }
}
