//! A round from its beginning to its end: gather, call or answer, shoot.
//!
//! ```text
//! visitor    gather --call--> wait --answer--> shoot --> punched
//! provider   (call) gather --answer--> shoot
//! ```

use std::net::SocketAddr;

use super::candidates::Profile;
use super::gather::{Gather, Question, Setup};
use super::plan::Side;
use super::round::Round;
use super::verdict::{Verdict, Why};
use super::wire::Message;
use super::{Shot, Socket, Token};
use crate::proto::tunnel::random::Random;

/// For the peer's answer, in µs: it gathers for a second at most, the rest is for what is lost on the way.
const ANSWER_TIMEOUT_US: u64 = 5_000_000;

/// Probes that are remembered until the round begins; further ones come again.
const EARLY_MAX: usize = 8;

/// What the owner is to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Observe(Question),
    /// Through the tunnel to the peer.
    Tell(Message),
    Shoot(Shot),
}

#[derive(Debug)]
pub struct Attempt {
    side: Side,
    number: u32,
    random: Random,
    state: State,
    /// At most one waits to be told.
    tell: Option<Message>,
    /// The peer knows of a way, or has been told.
    is_told: bool,
    /// Probes that came before the peer's answer did: it shoots, and may stop when it has been heard. At most [`EARLY_MAX`].
    early: Vec<(Socket, SocketAddr)>,
}

#[derive(Debug)]
enum State {
    /// The provider knows the visitor's profile already, and the delay of one way to it.
    Gathering {
        gather: Gather,
        caller: Option<(Profile, u64)>,
    },
    Waiting {
        ours: Profile,
        until: u64,
    },
    Shooting(Box<Round>),
    Over(Verdict),
}

impl Attempt {
    /// As the visitor. Rounds with one peer are numbered from 0.
    #[must_use]
    pub fn call(now: u64, number: u32, setup: Setup, seed: [u8; 32]) -> Self {
        Self::new(now, Side::Visitor, number, None, setup, seed)
    }

    /// As the provider, who was called. `one_way_us`: how long the answer will take, half the tunnel's round trip.
    #[must_use]
    pub fn answer(now: u64, number: u32, caller: Profile, one_way_us: u64, setup: Setup, seed: [u8; 32]) -> Self {
        Self::new(now, Side::Provider, number, Some((caller, one_way_us)), setup, seed)
    }

    fn new(now: u64, side: Side, number: u32, caller: Option<(Profile, u64)>, setup: Setup, seed: [u8; 32]) -> Self {
        let mut random = Random::new(seed);
        let gather = Gather::new(now, setup, &mut random);
        let state = State::Gathering { gather, caller };
        Self { side, number, random, state, tell: None, is_told: false, early: Vec::new() }
    }

    /// What is to be done next; to be asked until there is nothing.
    pub fn poll(&mut self, now: u64) -> Option<Action> {
        self.proceed(now);
        if let Some(message) = self.tell.take() {
            return Some(Action::Tell(message));
        }
        match &mut self.state {
            State::Gathering { gather, .. } => gather.poll(now).map(Action::Observe),
            State::Shooting(round) => round.poll(now).map(Action::Shoot),
            State::Waiting { .. } | State::Over(_) => None,
        }
    }

    /// When to ask again. `None` when it is over.
    #[must_use]
    pub fn next_timeout(&self, now: u64) -> Option<u64> {
        match &self.state {
            _ if self.tell.is_some() => Some(now),
            State::Gathering { gather, .. } => Some(gather.next_timeout()),
            State::Waiting { until, .. } => Some(*until),
            State::Shooting(round) => Some(round.next_timeout(now).unwrap_or(now)),
            State::Over(_) => None,
        }
    }

    /// How long one way to the caller takes is known better by now.
    pub fn note_one_way(&mut self, one_way_us: u64) {
        if let State::Gathering { caller: Some((_, delay)), .. } = &mut self.state {
            *delay = one_way_us;
        }
    }

    /// The rendezvous has told how a socket looks.
    pub fn on_observed(&mut self, now: u64, token: Token, address: SocketAddr) {
        if let State::Gathering { gather, .. } = &mut self.state {
            gather.on_observed(now, token, address);
        }
    }

    /// This is the answer to our call, and a round begins with it.
    #[must_use]
    pub fn waits_for(&self, message: &Message) -> bool {
        matches!((message, &self.state), (Message::Answer { round, .. }, State::Waiting { .. }) if *round == self.number)
    }

    /// The peer has told something about a round. What does not belong to this one, or comes at another time, changes nothing.
    pub fn on_told(&mut self, now: u64, message: &Message) {
        match (message, &mut self.state) {
            (Message::Answer { round, profile }, State::Waiting { ours, .. }) if *round == self.number => {
                let ours = ours.clone();
                self.shoot(now, &ours, profile);
            }
            (Message::Declined { round }, State::Waiting { .. }) if *round == self.number => {
                self.state = State::Over(Verdict::Relay(Why::Declined));
            }
            (Message::Punched { round }, State::Shooting(shooting)) if *round == self.number => {
                self.is_told = true;
                shooting.on_punched();
            }
            _ => {}
        }
    }

    /// A probe of the peer came in on this socket.
    pub fn on_probed(&mut self, now: u64, socket: Socket, from: SocketAddr) {
        match &mut self.state {
            State::Shooting(round) => round.on_probed(now, socket, from),
            State::Waiting { .. } if self.early.len() < EARLY_MAX => self.early.push((socket, from)),
            State::Gathering { .. } | State::Waiting { .. } | State::Over(_) => {}
        }
    }

    /// An answer to a probe of ours, with the token of that, came in on this socket.
    pub fn on_answered(&mut self, now: u64, token: Token, socket: Socket, from: SocketAddr) {
        if let State::Shooting(round) = &mut self.state {
            round.on_answered(now, token, socket, from);
        }
    }

    /// A TCP connection has come about, whoever began it, and the peer has shown in it that it is the peer.
    pub fn on_connected(&mut self, now: u64, to: SocketAddr) {
        if let State::Shooting(round) = &mut self.state {
            round.on_connected(now, to);
        }
    }

    /// Whether a TCP listener is of use, at the local address and port of the connection to the rendezvous
    /// (`SO_REUSEADDR`, `SO_REUSEPORT`): it takes a peer that comes from another port than anybody could know.
    #[must_use]
    pub fn listens(&self, now: u64) -> bool {
        matches!(&self.state, State::Shooting(round) if round.listens(now))
    }

    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over(_))
    }

    #[must_use]
    pub fn verdict(&self, now: u64) -> Verdict {
        match &self.state {
            State::Gathering { .. } | State::Waiting { .. } => Verdict::Underway,
            State::Shooting(round) => round.verdict(now),
            State::Over(verdict) => *verdict,
        }
    }

    /// From one state to the next, when it is time.
    fn proceed(&mut self, now: u64) {
        self.boast(now);
        match &mut self.state {
            State::Gathering { gather, caller } if gather.is_over(now) => {
                let ours = gather.profile();
                let caller = caller.take();
                self.introduce(now, ours, caller);
            }
            State::Waiting { until, .. } if now >= *until => {
                self.state = State::Over(Verdict::Relay(Why::NoAnswer));
            }
            State::Shooting(round) if round.is_over(now) => {
                self.state = State::Over(round.verdict(now));
            }
            State::Gathering { .. } | State::Waiting { .. } | State::Shooting(_) | State::Over(_) => {}
        }
    }

    /// The visitor has got an answer: tell the peer, once.
    fn boast(&mut self, now: u64) {
        let State::Shooting(round) = &self.state else { return };
        let is_direct = matches!(round.verdict(now), Verdict::Direct { .. });
        if self.side == Side::Visitor && is_direct && !self.is_told {
            self.is_told = true;
            self.tell = Some(Message::Punched { round: self.number });
        }
    }

    /// All is gathered: tell the peer.
    fn introduce(&mut self, now: u64, ours: Profile, caller: Option<(Profile, u64)>) {
        let round = self.number;
        match caller {
            None => {
                self.tell = Some(Message::Call { round, profile: ours.clone() });
                self.state = State::Waiting { ours, until: now + ANSWER_TIMEOUT_US };
            }
            Some((theirs, one_way_us)) => {
                self.tell = Some(Message::Answer { round, profile: ours.clone() });
                self.shoot(now + one_way_us, &ours, &theirs);
            }
        }
    }

    fn shoot(&mut self, begins_at: u64, ours: &Profile, theirs: &Profile) {
        let mut round = Round::new(self.side, self.number, ours, theirs, begins_at, self.random.draw());
        for (socket, from) in self.early.drain(..) {
            round.on_probed(begins_at, socket, from);
        }
        self.state = State::Shooting(Box::new(round));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::punch::{Candidate, Class, Kind};

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn profile() -> Profile {
        let candidates = vec![Candidate { kind: Kind::Reflexive, address: at("192.0.2.1:50000") }];
        Profile { class: Class::Same, candidates }
    }

    fn setup() -> Setup {
        let (observers, hosts) = (vec![at("203.0.113.10:4000")], vec![at("198.51.100.1:5000")]);
        Setup { observers, hosts, ..Setup::default() }
    }

    /// The rendezvous sees it under its own address, at once.
    fn gathered(mut attempt: Attempt) -> Attempt {
        let Some(Action::Observe(question)) = attempt.poll(0) else { panic!("nothing is asked") };
        attempt.on_observed(0, question.token, at("198.51.100.1:5000"));
        attempt
    }

    fn all(attempt: &mut Attempt, now: u64) -> Vec<Action> {
        std::iter::from_fn(|| attempt.poll(now)).collect()
    }

    #[test]
    fn the_visitor_calls_when_it_has_gathered_and_shoots_when_the_answer_is_there() {
        let mut visitor = gathered(Attempt::call(0, 3, setup(), [1; 32]));
        let called = all(&mut visitor, 0);
        assert!(matches!(&called[..], [Action::Tell(Message::Call { round: 3, .. })]), "{called:?}");
        visitor.on_told(100, &Message::Answer { round: 2, profile: profile() });
        assert_eq!(all(&mut visitor, 100), [], "the answer to another call");
        visitor.on_told(100, &Message::Answer { round: 3, profile: profile() });
        assert!(matches!(all(&mut visitor, 100)[..], [Action::Shoot(_), ..]));
    }

    #[test]
    fn the_provider_answers_and_shoots_when_the_answer_has_arrived() {
        let mut provider = gathered(Attempt::answer(0, 0, profile(), 60_000, setup(), [1; 32]));
        let answered = all(&mut provider, 0);
        assert!(matches!(&answered[..], [Action::Tell(Message::Answer { round: 0, .. })]), "{answered:?}");
        assert_eq!(provider.next_timeout(0), Some(60_000));
        assert!(matches!(all(&mut provider, 60_000)[..], [Action::Shoot(_), ..]));
    }

    #[test]
    fn the_visitor_alone_says_that_it_is_punched_and_says_it_once() {
        for is_visitor in [true, false] {
            let mut attempt = gathered(match is_visitor {
                true => Attempt::call(0, 0, setup(), [1; 32]),
                false => Attempt::answer(0, 0, profile(), 0, setup(), [1; 32]),
            });
            let mut begun = all(&mut attempt, 0);
            attempt.on_told(0, &Message::Answer { round: 0, profile: profile() });
            begun.extend(all(&mut attempt, 0));
            let Some(Action::Shoot(shot)) = begun.pop() else { panic!("nothing is shot") };
            let mut done = Vec::new();
            for now in [1_000, 2_000, 2_000_000] {
                attempt.on_answered(now, shot.token, shot.from, shot.to);
                done.extend(all(&mut attempt, now));
            }
            let said = done.iter().filter(|action| **action == Action::Tell(Message::Punched { round: 0 })).count();
            assert_eq!(said, usize::from(is_visitor));
            assert!(attempt.is_over() && attempt.next_timeout(2_000_000).is_none());
            assert_eq!(attempt.verdict(2_000_000), Verdict::Direct { socket: shot.from, remote: shot.to });
        }
    }

    #[test]
    fn a_probe_that_overtakes_the_answer_is_not_forgotten() {
        let mut visitor = gathered(Attempt::call(0, 0, setup(), [1; 32]));
        let _ = all(&mut visitor, 0);
        let early = at("192.0.2.1:60001");
        visitor.on_probed(100, Socket::Main4, early);
        assert_eq!(all(&mut visitor, 100), []);
        visitor.on_told(200, &Message::Answer { round: 0, profile: profile() });
        let is_shot = |action: &Action| matches!(action, Action::Shoot(shot) if shot.to == early);
        assert!(all(&mut visitor, 1_200).iter().any(is_shot));
    }

    #[test]
    fn a_call_that_nobody_answers_ends() {
        let mut visitor = gathered(Attempt::call(0, 0, setup(), [1; 32]));
        let _ = all(&mut visitor, 0);
        assert_eq!(visitor.next_timeout(0), Some(ANSWER_TIMEOUT_US));
        assert_eq!(all(&mut visitor, ANSWER_TIMEOUT_US), []);
        assert_eq!(visitor.verdict(ANSWER_TIMEOUT_US), Verdict::Relay(Why::NoAnswer));
        visitor.on_told(ANSWER_TIMEOUT_US, &Message::Answer { round: 0, profile: profile() });
        assert!(visitor.is_over(), "an answer that comes too late");
    }

    #[test]
    fn a_round_with_nothing_to_shoot_at_is_soon_over() {
        let mut visitor = gathered(Attempt::call(0, 0, setup(), [1; 32]));
        let _ = all(&mut visitor, 0);
        let blocked = Profile { class: Class::Blocked, candidates: Vec::new() };
        visitor.on_told(0, &Message::Answer { round: 0, profile: blocked });
        assert_eq!((all(&mut visitor, 499_999), visitor.is_over()), (Vec::new(), false));
        assert_eq!((all(&mut visitor, 500_000), visitor.is_over()), (Vec::new(), true));
        assert_eq!(visitor.verdict(500_000), Verdict::Relay(Why::NoCandidates));
    }

    #[test]
    fn a_call_that_is_declined_ends_at_once() {
        let mut visitor = gathered(Attempt::call(0, 3, setup(), [1; 32]));
        let _ = all(&mut visitor, 0);
        visitor.on_told(1, &Message::Declined { round: 2 });
        assert!(!visitor.is_over(), "another call");
        visitor.on_told(1, &Message::Declined { round: 3 });
        assert_eq!((visitor.is_over(), visitor.verdict(1)), (true, Verdict::Relay(Why::Declined)));
    }

    #[test]
    fn messages_and_probes_at_the_wrong_time_change_nothing() {
        let mut visitor = Attempt::call(0, 0, setup(), [1; 32]);
        visitor.on_told(0, &Message::Answer { round: 0, profile: profile() });
        visitor.on_told(0, &Message::Punched { round: 0 });
        visitor.on_probed(0, Socket::Main4, at("192.0.2.1:50000"));
        visitor.on_answered(0, [0; 8], Socket::Main4, at("192.0.2.1:50000"));
        visitor.on_connected(0, at("192.0.2.1:50000"));
        assert!(matches!(all(&mut visitor, 0)[..], [Action::Observe(_)]), "it still gathers");
        assert!(!visitor.listens(0));
    }
}
