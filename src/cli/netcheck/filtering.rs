//! What the router lets in: a socket that has only ever sent to one port of the rendezvous asks to be answered from the other one.
//!
//! Each question is answered twice, by the port that was asked and by the other. The former shows that the latter was sent, so
//! that its absence speaks of the router: three times, since datagrams get lost.
//!
//! Deliberately absent: whether the router lets in everybody, or any port of those that were written to. It takes a second address
//! of the rendezvous to tell.

use crate::proto::tunnel::Token;
use crate::proto::tunnel::random::Random;

/// As RFC 4787 has it, section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filtering {
    /// Endpoint-independent, or address-dependent.
    OpenOrAddress,
    /// Address- and port-dependent.
    Port,
}

/// Between two questions, in µs: what the other port has sent is here by then, if what the first one has sent is.
const ASK_PAUSE_US: u64 = 250_000;

/// Questions that must be known to have been answered before silence counts, and those that are asked at most for that.
const ANSWERED_MIN: usize = 3;
const ASKED_MAX: usize = 8;

#[derive(Debug)]
pub(super) struct Inquiry {
    asked: Vec<Asked>,
    ask_at: u64,
    /// The other port was heard.
    is_let_in: bool,
}

#[derive(Debug)]
struct Asked {
    question: Question,
    is_answered: bool,
}

/// To be asked by `Tunnel::observe_elsewhere`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub elsewhere: Token,
    pub here: Token,
}

impl Inquiry {
    pub fn new(now: u64) -> Self {
        Self { asked: Vec::new(), ask_at: now, is_let_in: false }
    }

    /// The next question, if it is due.
    pub fn poll(&mut self, now: u64, random: &mut Random) -> Option<Question> {
        if now < self.ask_at || self.is_over(now) {
            return None;
        }
        self.ask_at = now + ASK_PAUSE_US;
        let question = Question { elsewhere: random.draw(), here: random.draw() };
        self.asked.push(Asked { question, is_answered: false });
        Some(question)
    }

    /// An answer. Those to questions of others change nothing.
    pub fn on_observed(&mut self, token: Token) {
        for asked in &mut self.asked {
            asked.is_answered |= asked.question.here == token;
            self.is_let_in |= asked.question.elsewhere == token;
        }
    }

    pub fn is_over(&self, now: u64) -> bool {
        let has_asked_enough = self.answered() >= ANSWERED_MIN || self.asked.len() == ASKED_MAX;
        self.is_let_in || has_asked_enough && now >= self.ask_at
    }

    pub fn next_timeout(&self) -> u64 {
        self.ask_at
    }

    /// `None`: too little was answered, or the rendezvous knows no such question.
    pub fn filtering(&self) -> Option<Filtering> {
        match self.is_let_in {
            true => Some(Filtering::OpenOrAddress),
            false => (self.answered() >= ANSWERED_MIN).then_some(Filtering::Port),
        }
    }

    fn answered(&self) -> usize {
        self.asked.iter().filter(|asked| asked.is_answered).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks until it is over, and answers what `answers` says of each question: here, elsewhere.
    fn outcome(answers: impl Fn(usize) -> [bool; 2]) -> (Option<Filtering>, usize, u64) {
        let (mut inquiry, mut random, mut now, mut asked) = (Inquiry::new(0), Random::new([1; 32]), 0, 0);
        while !inquiry.is_over(now) {
            if let Some(question) = inquiry.poll(now, &mut random) {
                let tokens = [question.here, question.elsewhere];
                let heard = tokens.into_iter().zip(answers(asked)).filter(|(_, heard)| *heard);
                heard.for_each(|(token, _)| inquiry.on_observed(token));
                asked += 1;
            }
            now = inquiry.next_timeout();
        }
        (inquiry.filtering(), asked, now)
    }

    #[test]
    fn a_router_is_called_open_as_soon_as_the_other_port_is_heard() {
        assert_eq!(outcome(|_| [true, true]).0, Some(Filtering::OpenOrAddress));
        assert_eq!(outcome(|asked| [false, asked == 0]), (Some(Filtering::OpenOrAddress), 1, ASK_PAUSE_US));
        assert_eq!(outcome(|asked| [true, asked == 2]).0, Some(Filtering::OpenOrAddress), "two were lost");
    }

    #[test]
    fn a_router_is_called_closed_after_three_questions_that_the_asked_port_alone_has_answered() {
        assert_eq!(outcome(|_| [true, false]), (Some(Filtering::Port), 3, 3 * ASK_PAUSE_US));
        assert_eq!(
            outcome(|asked| [asked % 2 == 1, false]),
            (Some(Filtering::Port), 6, 6 * ASK_PAUSE_US),
            "of lost ones"
        );
    }

    #[test]
    fn of_a_rendezvous_that_answers_too_seldom_or_not_at_all_nothing_follows() {
        assert_eq!(outcome(|_| [false; 2]), (None, ASKED_MAX, ASKED_MAX as u64 * ASK_PAUSE_US));
        assert_eq!(outcome(|asked| [asked < 2, false]).0, None);
    }

    #[test]
    fn answers_to_the_questions_of_others_change_nothing() {
        let mut inquiry = Inquiry::new(0);
        assert!(inquiry.poll(0, &mut Random::new([1; 32])).is_some());
        inquiry.on_observed([9; 8]);
        assert_eq!((inquiry.filtering(), inquiry.answered()), (None, 0));
    }
}
