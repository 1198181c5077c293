//! After how much silence a way is kept alive, learnt for each network.
//!
//! NATs and firewalls forget a UDP mapping that nobody uses: after two minutes, as RFC 4787 asks, after 30 s at many carriers, some
//! after 20 s or even 10. Who asks too seldom finds the way shut when he needs it; who asks too often empties batteries.
//!
//! 1. Every network begins with 15 s: that keeps what is forgotten after 20 s, with room for an answer that gets lost.
//! 2. A direct way that fell silent counts as forgotten when several probes after a silence were in vain, the relay answered
//!    meanwhile, and a direct way answers again within a minute. Whatever silences both, as a peer that is gone or a cable that was
//!    pulled, says nothing; nor does a way that was in use. [`Silences`] knows it.
//!    Both ends ask in turns and never at the same time, so that each direction is tried before a packet of the other end opens
//!    it ([`Turns`]).
//! 3. Once may be chance, as a router that was restarted. At the second time within five minutes the interval becomes half of
//!    that silence, 5 s at least. Nobody can tell whose NAT it was: when it was the other's, we ask more often than we would have to.
//! 4. The rendezvous has no NAT before it and asks after 15 s of its own accord, unless it was heard. We wait a little longer: when
//!    its questions stay away and ours are answered at once, it is our NAT that has forgotten. [`Calls`] counts.
//! 5. The interval never grows. To try a longer one on a way in use is at the expense of whoever plays there, and a mapping made
//!    for trying teaches nothing behind the most frequent routers, which give the same port to the next one: only somebody who
//!    calls in unasked would see the difference, and a rendezvous that calls where it is told to is a weapon. There is little to be
//!    gained, too: 15 s are two small packets, 130 a second for a rendezvous with a thousand peers.
//!
//! A network is known by our own address and by the one that the rendezvous sees. Who comes back to one finds its figure again.
//! Absent: what is asked, and when; and any memory of it on disk.

use std::collections::VecDeque;
use std::net::IpAddr;

/// Silence before a way is probed where nothing is known, and at least, in µs. No NAT is known that needs less than the latter.
pub const INTERVAL_US: u64 = 15_000_000;
pub const INTERVAL_MIN_US: u64 = 5_000_000;

/// Networks that are remembered: home, work, a telephone's and some more. Of more, the one that was left first is forgotten.
const KNOWN_MAX: usize = 8;

/// A way that died of silence is back within this, in µs: as long as it is tried, and two rounds of punching.
const RETURN_US: u64 = 60_000_000;

/// Two such deaths are no chance when there is no more time between them, in µs.
const AGAIN_US: u64 = 300_000_000;

/// How much longer than the rendezvous we wait before we ask, in µs: it asks twice in that time. And a prompt answer, in µs.
pub const CALLS_GRACE_US: u64 = 3_000_000;
const PROMPT_US: u64 = 1_500_000;

/// Such silences in a row. Where a tenth of its questions get lost on their way, chance makes them once in two days.
const MISSED_MAX: u32 = 2;

/// Where we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub local: IpAddr,
    pub reflexive: IpAddr,
}

#[derive(Debug)]
pub struct KeepAlive {
    /// `None` before the rendezvous has told.
    here: Option<Network>,
    interval_us: u64,
    /// Those where we were, with what was learnt there. The one we were in last is at the end.
    known: VecDeque<(Network, u64)>,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self { here: None, interval_us: INTERVAL_US, known: VecDeque::new() }
    }
}

impl KeepAlive {
    /// The silence after which ways are to be probed.
    #[must_use]
    pub fn interval_us(&self) -> u64 {
        self.interval_us
    }

    /// This is where we are. What was learnt before anybody knew is of here, too.
    pub fn enter(&mut self, network: Network) {
        if self.here == Some(network) {
            return;
        }
        let known = self.known.iter().find(|(other, _)| *other == network).map_or(INTERVAL_US, |(_, known)| *known);
        self.interval_us = if self.here.is_none() { known.min(self.interval_us) } else { known };
        self.here = Some(network);
        self.remember();
    }

    /// We are elsewhere, wherever that is.
    pub fn leave(&mut self) {
        (self.here, self.interval_us) = (None, INTERVAL_US);
    }

    /// What lay silent for so long was forgotten. Whether that is news.
    pub fn forgot(&mut self, silence_us: u64) -> bool {
        let before = self.interval_us;
        self.interval_us = before.min((silence_us / 2).max(INTERVAL_MIN_US));
        self.remember();
        self.interval_us < before
    }

    fn remember(&mut self) {
        let Some(here) = self.here else { return };
        self.known.retain(|(other, _)| *other != here);
        if self.known.len() == KNOWN_MAX {
            self.known.pop_front();
        }
        self.known.push_back((here, self.interval_us));
    }
}

/// When it is our turn to ask, in µs of silence. Who was asked last asks first the next time; of two who both were, or both
/// asked, the provider.
#[derive(Clone, Copy, Debug)]
pub struct Turns {
    /// After we have asked.
    pub asking_us: u64,
    /// After we were asked, or told anything.
    pub asked_us: u64,
}

impl Turns {
    pub fn new(interval_us: u64, is_visitor: bool) -> Self {
        let [asking, asked] = if is_visitor { [16, 14] } else { [15, 13] };
        Self { asking_us: interval_us / 16 * asking, asked_us: interval_us / 16 * asked }
    }
}

/// Whether the direct ways to a peer die of silence.
#[derive(Debug, Default)]
pub struct Silences {
    /// The last death, unless it was judged, and the one before.
    last: Option<Death>,
    before: Option<Death>,
}

#[derive(Clone, Copy, Debug)]
struct Death {
    at: u64,
    silence_us: u64,
}

impl Silences {
    /// A way is dead after such a silence, and another one lives.
    pub fn died(&mut self, now: u64, silence_us: u64) {
        if silence_us >= INTERVAL_MIN_US {
            self.last = Some(Death { at: now, silence_us });
        }
    }

    /// A direct way answers. The silence that ways do not survive, when that is no chance any more.
    pub fn returned(&mut self, now: u64) -> Option<u64> {
        let last = self.last.take().filter(|last| now <= last.at + RETURN_US)?;
        match self.before.take() {
            Some(before) if last.at <= before.at + AGAIN_US => Some(last.silence_us.max(before.silence_us)),
            _ => {
                self.before = Some(last);
                None
            }
        }
    }
}

/// Whether the questions of a rendezvous come in.
#[derive(Debug, Default)]
pub struct Calls {
    missed: u32,
}

impl Calls {
    /// It was heard by UDP after such a silence, in which nobody but itself was to ask for [`INTERVAL_US`], and we after
    /// [`CALLS_GRACE_US`] more. Whether it is certain that its questions do not arrive.
    pub fn heard(&mut self, silence_us: u64) -> bool {
        let ours_us = INTERVAL_US + CALLS_GRACE_US;
        if silence_us < INTERVAL_US - PROMPT_US || silence_us > ours_us + PROMPT_US {
            return false; // somebody had something to say, or nobody was there
        }
        self.missed = if silence_us < ours_us { 0 } else { self.missed + 1 };
        self.missed >= MISSED_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn network(number: u8) -> Network {
        Network { local: [192, 168, 1, 10].into(), reflexive: [198, 51, 100, number].into() }
    }

    #[test]
    fn what_is_forgotten_after_a_silence_is_kept_with_half_of_it_and_never_less_often_again() {
        let mut keep = KeepAlive::default();
        let mut learnt = Vec::new();
        for silence in [15, 14, 40, 12, 7, 5, 15] {
            keep.forgot(silence * SECOND);
            learnt.push(keep.interval_us() / 500_000);
        }
        assert_eq!(learnt, [15, 14, 14, 12, 10, 10, 10], "half seconds");
        assert!(!keep.forgot(SECOND), "that is no news");
    }

    #[test]
    fn each_network_has_its_own_figure_and_who_comes_back_finds_it() {
        let mut keep = KeepAlive::default();
        keep.enter(network(1));
        assert!(keep.forgot(15 * SECOND));
        keep.enter(network(2));
        assert_eq!(keep.interval_us(), INTERVAL_US);
        keep.leave();
        assert_eq!(keep.interval_us(), INTERVAL_US);
        keep.enter(network(1));
        assert_eq!(keep.interval_us(), 7_500_000);
        keep.leave();
        keep.enter(Network { local: [10, 0, 0, 1].into(), ..network(1) });
        assert_eq!(keep.interval_us(), INTERVAL_US, "another host's address behind the same router is another network");
    }

    #[test]
    fn what_was_learnt_before_the_network_had_a_name_is_its() {
        let mut keep = KeepAlive::default();
        keep.forgot(15 * SECOND);
        keep.enter(network(1));
        assert_eq!(keep.interval_us(), 7_500_000);
        keep.enter(network(2));
        keep.enter(network(1));
        assert_eq!(keep.interval_us(), 7_500_000);
    }

    #[test]
    fn of_too_many_networks_the_one_left_first_is_forgotten() {
        let mut keep = KeepAlive::default();
        for number in 0..100 {
            keep.enter(network(number));
            keep.forgot(15 * SECOND);
        }
        assert_eq!(keep.known.len(), KNOWN_MAX);
        keep.enter(network(99 - KNOWN_MAX as u8));
        assert_eq!(keep.interval_us(), INTERVAL_US);
        keep.enter(network(99));
        assert_eq!(keep.interval_us(), 7_500_000);
    }

    #[test]
    fn one_death_is_chance_and_two_within_minutes_are_not() {
        let mut silences = Silences::default();
        let mut dies = |at: u64, silence: u64| {
            silences.died(at * SECOND, silence * SECOND);
            silences.returned((at + 2) * SECOND)
        };
        assert_eq!(dies(0, 15), None);
        assert_eq!(dies(301, 15), None, "too long ago");
        assert_eq!(dies(331, 13), Some(15 * SECOND));
        assert_eq!(dies(361, 7), None, "those before were counted");
        assert_eq!(dies(391, 7), Some(7 * SECOND));
    }

    #[test]
    fn a_way_that_was_in_use_or_does_not_come_back_teaches_nothing() {
        let mut silences = Silences::default();
        for at in 0..100 {
            silences.died(at * SECOND, SECOND);
            assert_eq!(silences.returned((at + 1) * SECOND), None);
        }
        for at in [0, 100, 200, 300] {
            silences.died(at * SECOND, 15 * SECOND);
            assert_eq!(silences.returned((at + 61) * SECOND), None);
        }
    }

    #[test]
    fn a_rendezvous_whose_questions_stay_away_and_which_answers_ours_has_been_forgotten() {
        let heard = |silences_ms: &[u64]| {
            let mut calls = Calls::default();
            silences_ms.iter().filter(|silence| calls.heard(**silence * 1_000)).count()
        };
        assert_eq!(heard(&[18_060, 18_060]), 1);
        assert_eq!(heard(&[18_060, 15_060, 18_060, 17_560, 18_060]), 0, "one came in");
        assert_eq!(heard(&[18_060, 3_000, 0, 18_060]), 1, "what else was said counts neither way");
        assert_eq!(heard(&[20_000; 10]), 0, "it did not answer");
    }
}
