//! Finds out how fresh sockets look from outside: asks the rendezvous from each, again and again, until all questions are answered.
//!
//! The two questions of a family leave one right after the other, in a fixed order, since a NAT that counts gives its ports in
//! that order. A lost answer must not make such a NAT look like an easy one, so nothing is concluded from the first answer before
//! patience ends.

use std::net::SocketAddr;

use super::candidates::{CANDIDATES_MAX, Candidate, HOSTS_MAX, Kind, Profile};
use super::class::Class;
use super::{Socket, Token};
use crate::proto::tunnel::random::Random;

/// Places that are asked; the rendezvous has two ports, on one or two addresses, for each family.
const OBSERVERS_MAX: usize = 8;

/// Between two questions to different places, in µs: enough for them not to overtake each other in a router.
const STAGGER_US: u64 = 1_000;

/// Until a question is repeated, in µs, where the round trip is not known: twice that to a rendezvous on the same continent.
/// Where it is known, one and a half of it, but no less than what sockets, timers and busy hosts need. With 5 % of loss on each
/// of four links four tries in a row fail in 1 of 900 cases, six in 1 of 20,000.
const REPEAT_US: u64 = 150_000;
const REPEAT_MIN_US: u64 = 50_000;

/// Until what was not answered counts as blocked, in µs.
const PATIENCE_US: u64 = 1_000_000;

/// The same when UDP was blocked the last time.
const PATIENCE_BLOCKED_US: u64 = 300_000;

/// Round trips to the rendezvous after which nothing at all has answered because nothing will, and the least time for it, in µs:
/// both questions have been asked three or four times by then. Both peers wait for this in turn when UDP is blocked.
const SILENCE_ROUND_TRIPS: u64 = 5;
const SILENCE_MIN_US: u64 = 300_000;

/// What IPv6 gets when IPv4 is complete, in µs: both have the same rendezvous at much the same distance, and networks that
/// have an IPv6 address but no IPv6 are common.
const GRACE_US: u64 = 30_000;

/// What the owner of the sockets knows before anybody was asked.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Where to ask, of the families for which there is a socket.
    pub observers: Vec<SocketAddr>,
    /// Addresses of the host, with the port of the main socket of their family; no loopback.
    pub hosts: Vec<SocketAddr>,
    /// What a router has mapped to a main socket.
    pub mapped: Option<SocketAddr>,
    /// As which the rendezvous sees the TCP connection to it.
    pub tcp_reflexive: Option<SocketAddr>,
    /// The last gathering on this network found the class to be [`Class::Blocked`].
    pub was_blocked: bool,
    /// Round trip to the rendezvous, as far as it is known.
    pub rtt_us: Option<u64>,
}

/// To be asked by `Tunnel::observe`, from this socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub from: Socket,
    pub to: SocketAddr,
    pub token: Token,
}

#[derive(Debug)]
pub struct Gather {
    setup: Setup,
    inquiries: Vec<Inquiry>,
    repeat_us: u64,
    ends_at: u64,
    /// The same as long as there was no answer.
    silent_at: u64,
}

#[derive(Debug)]
struct Inquiry {
    question: Question,
    /// When it is sent, or sent again.
    ask_at: u64,
    observed: Option<SocketAddr>,
}

impl Gather {
    #[must_use]
    pub fn new(now: u64, setup: Setup, random: &mut Random) -> Self {
        let mut inquiries: Vec<Inquiry> = Vec::new();
        for to in setup.observers.iter().take(OBSERVERS_MAX).copied() {
            let from = if to.is_ipv4() { Socket::Main4 } else { Socket::Main6 };
            let question = Question { from, to, token: random.draw() };
            inquiries.push(Inquiry { question, ask_at: now + inquiries.len() as u64 * STAGGER_US, observed: None });
        }
        let patience = if setup.was_blocked { PATIENCE_BLOCKED_US } else { PATIENCE_US };
        let silence = setup.rtt_us.map_or(PATIENCE_US, |rtt| rtt.saturating_mul(SILENCE_ROUND_TRIPS));
        let silent_at = now + silence.clamp(SILENCE_MIN_US, PATIENCE_US);
        let repeat_us = setup.rtt_us.map_or(REPEAT_US, |rtt| rtt.saturating_mul(3) / 2).clamp(REPEAT_MIN_US, REPEAT_US);
        Self { setup, inquiries, repeat_us, ends_at: now + patience, silent_at }
    }

    /// The next question that is due.
    pub fn poll(&mut self, now: u64) -> Option<Question> {
        if self.is_over(now) {
            return None;
        }
        let inquiry = self.inquiries.iter_mut().find(|inquiry| inquiry.observed.is_none() && inquiry.ask_at <= now)?;
        inquiry.ask_at = now + self.repeat_us;
        Some(inquiry.question)
    }

    /// An answer. Those to questions of others change nothing.
    pub fn on_observed(&mut self, now: u64, token: Token, address: SocketAddr) {
        let Some(inquiry) = self.inquiries.iter_mut().find(|inquiry| inquiry.question.token == token) else { return };
        if inquiry.observed.is_some() || inquiry.question.to.is_ipv4() != address.is_ipv4() {
            return;
        }
        inquiry.observed = Some(address);
        self.silent_at = u64::MAX;
        let v4 = self.inquiries.iter().filter(|inquiry| inquiry.question.to.is_ipv4());
        if self.inquiries.iter().all(|inquiry| inquiry.observed.is_some()) {
            self.ends_at = now;
        } else if address.is_ipv4() && v4.clone().all(|inquiry| inquiry.observed.is_some()) {
            self.ends_at = self.ends_at.min(now + GRACE_US);
        }
    }

    #[must_use]
    pub fn is_over(&self, now: u64) -> bool {
        now >= self.ends_at.min(self.silent_at) || self.inquiries.is_empty()
    }

    #[must_use]
    pub fn next_timeout(&self) -> u64 {
        let open = self.inquiries.iter().filter(|inquiry| inquiry.observed.is_none());
        open.map(|inquiry| inquiry.ask_at).fold(self.ends_at.min(self.silent_at), u64::min)
    }

    /// What is known by now.
    #[must_use]
    pub fn profile(&self) -> Profile {
        let observed: Vec<SocketAddr> = self.inquiries.iter().filter_map(|inquiry| inquiry.observed).collect();
        let (mut v4, v6): (Vec<_>, Vec<_>) = observed.into_iter().partition(SocketAddr::is_ipv4);
        let class = Class::of(&self.setup.hosts, &v4);
        if matches!(class, Class::Steps(_)) {
            v4.sort_unstable_by_key(SocketAddr::port); // The latest is the last, whatever was lost and repeated.
        }
        let mut candidates = Vec::new();
        let mut add = |kind, addresses: &[SocketAddr]| {
            for address in addresses.iter().copied() {
                if !candidates
                    .iter()
                    .any(|candidate: &Candidate| candidate.kind == kind && candidate.address == address)
                {
                    candidates.push(Candidate { kind, address });
                }
            }
        };
        let hosts = &self.setup.hosts;
        add(Kind::Host, &hosts[..hosts.len().min(HOSTS_MAX)]);
        add(Kind::Mapped, self.setup.mapped.as_slice());
        add(Kind::Reflexive, &v6);
        add(Kind::Reflexive, &v4);
        add(Kind::TcpReflexive, self.setup.tcp_reflexive.as_slice());
        Profile { class, candidates }
    }
}

/// Nothing that was gathered is left out.
const _: () = assert!(HOSTS_MAX + OBSERVERS_MAX + 2 <= CANDIDATES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn setup(observers: &[&str]) -> Setup {
        let observers = observers.iter().map(|observer| at(observer)).collect();
        Setup { observers, hosts: vec![at("192.168.1.10:5000")], ..Setup::default() }
    }

    fn gather(setup: Setup) -> Gather {
        Gather::new(0, setup, &mut Random::new([5; 32]))
    }

    const V4: [&str; 2] = ["203.0.113.10:4000", "203.0.113.10:4001"];
    const BOTH: [&str; 4] = [V4[0], V4[1], "[2001:db8::53]:4000", "[2001:db8::53]:4001"];

    /// Asks everything that is due up to `until`.
    fn questions(gather: &mut Gather, until: u64) -> Vec<(u64, Question)> {
        let mut questions = Vec::new();
        for now in (0..until).step_by(500) {
            questions.extend(std::iter::from_fn(|| gather.poll(now)).map(|question| (now, question)));
        }
        questions
    }

    #[test]
    fn both_ports_are_asked_in_order_and_again_until_both_have_answered() {
        let mut gather = gather(setup(&V4));
        let asked = questions(&mut gather, 2 * PATIENCE_US);
        assert_eq!(
            asked[..3].iter().map(|(at, asked)| (*at, asked.to.port())).collect::<Vec<_>>(),
            [(0, 4000), (STAGGER_US, 4001), (REPEAT_US, 4000)]
        );
        assert_eq!(asked.len(), 14, "seven each, then it is over");
        assert_eq!(gather.profile().class, Class::Blocked);
    }

    #[test]
    fn a_question_is_repeated_after_one_and_a_half_round_trips() {
        for (rtt_us, repeat_us) in
            [(Some(4_000), REPEAT_MIN_US), (Some(60_000), 90_000), (Some(400_000), REPEAT_US), (None, REPEAT_US)]
        {
            let mut gather = gather(Setup { rtt_us, ..setup(&V4[..1]) });
            let times: Vec<_> = questions(&mut gather, 2 * REPEAT_US).into_iter().map(|(at, _)| at).collect();
            assert_eq!(times[..2], [0, repeat_us], "{rtt_us:?}");
        }
    }

    #[test]
    fn a_lost_answer_does_not_make_a_random_nat_look_easy() {
        let mut gather = gather(setup(&V4));
        let asked = questions(&mut gather, 2 * STAGGER_US);
        gather.on_observed(60_000, asked[0].1.token, at("198.51.100.1:30000"));
        assert!(!gather.is_over(60_000), "one answer is not enough");
        let (when, again) = questions(&mut gather, 2 * REPEAT_US)[0];
        assert_eq!(again, asked[1].1, "only what was not answered is asked again");
        gather.on_observed(when + 60_000, again.token, at("198.51.100.1:41234"));
        assert!(gather.is_over(when + 60_000));
        assert_eq!(gather.profile().class, Class::Random);
    }

    #[test]
    fn one_answer_of_two_is_unclear_when_patience_ends() {
        let mut gather = gather(setup(&V4));
        let asked = questions(&mut gather, 1_000);
        gather.on_observed(60_000, asked[0].1.token, at("198.51.100.1:30000"));
        assert!(gather.is_over(PATIENCE_US) && !gather.is_over(PATIENCE_US - 1));
        assert_eq!(gather.profile().class, Class::Unclear);
    }

    #[test]
    fn answers_that_nobody_asked_for_or_of_the_other_family_change_nothing() {
        let mut gather = gather(setup(&V4));
        let asked = questions(&mut gather, 2 * STAGGER_US);
        gather.on_observed(1, [0; 8], at("198.51.100.1:30000"));
        gather.on_observed(1, asked[0].1.token, at("[2001:db8::1]:30000"));
        gather.on_observed(2, asked[0].1.token, at("198.51.100.1:30000"));
        gather.on_observed(3, asked[0].1.token, at("198.51.100.1:30001"));
        assert_eq!(gather.profile().of_kind(Kind::Reflexive).collect::<Vec<_>>(), [at("198.51.100.1:30000")]);
    }

    #[test]
    fn ipv6_that_does_not_answer_holds_nothing_up() {
        let mut gather = gather(setup(&BOTH));
        for (_, question) in questions(&mut gather, 2 * STAGGER_US) {
            gather.on_observed(60_000, question.token, at("198.51.100.1:30000"));
        }
        assert!(gather.is_over(60_000 + GRACE_US) && !gather.is_over(60_000));
        assert_eq!(gather.profile().class, Class::Same);
    }

    #[test]
    fn silence_of_several_round_trips_is_no_slowness_and_one_answer_brings_patience_back() {
        for (rtt_us, silent_at) in
            [(20_000, SILENCE_MIN_US), (60_000, 300_000), (150_000, 750_000), (400_000, PATIENCE_US)]
        {
            let mut gather = gather(Setup { rtt_us: Some(rtt_us), ..setup(&V4) });
            assert!(gather.is_over(silent_at) && !gather.is_over(silent_at - 1));
            let asked = questions(&mut gather, 1_000);
            gather.on_observed(silent_at - 1, asked[0].1.token, at("198.51.100.1:30000"));
            assert!(gather.is_over(PATIENCE_US) && !gather.is_over(PATIENCE_US - 1));
        }
    }

    #[test]
    fn where_udp_was_blocked_before_patience_is_short() {
        let gather = gather(Setup { was_blocked: true, ..setup(&V4) });
        assert!(gather.is_over(PATIENCE_BLOCKED_US));
    }

    #[test]
    fn the_latest_port_of_a_counting_nat_is_the_last_although_an_answer_was_late() {
        let mut gather = gather(setup(&V4));
        let asked = questions(&mut gather, 2 * STAGGER_US);
        gather.on_observed(1, asked[0].1.token, at("198.51.100.1:30002"));
        gather.on_observed(2, asked[1].1.token, at("198.51.100.1:30001"));
        let profile = gather.profile();
        assert_eq!((profile.class, profile.latest()), (Class::Steps(1), Some(at("198.51.100.1:30002"))));
    }

    #[test]
    fn a_host_of_many_interfaces_names_no_more_than_the_bound_and_leaves_nothing_else_out() {
        let hosts = (0..100).map(|host| SocketAddr::from(([10, 0, 0, host], 5000))).collect();
        let tcp_reflexive = Some(at("198.51.100.1:6000"));
        let gather = gather(Setup { hosts, mapped: Some(at("198.51.100.1:5000")), tcp_reflexive, ..setup(&[]) });
        let profile = gather.profile();
        assert_eq!(profile.candidates.len(), HOSTS_MAX + 2);
        assert_eq!(profile.of_kind(Kind::TcpReflexive).next(), tcp_reflexive);
    }

    #[test]
    fn with_nobody_to_ask_it_is_over_at_once() {
        assert!(gather(setup(&[])).is_over(0));
    }
}
