//! Whether the peer is there. After 15 s without a word it is asked, and every 2.5 s again, since a path may lose a quarter of
//! what it gets; when three times 15 s and 10 s more have passed, it is taken for dead. While packets arrive nobody is asked:
//! what comes in has answers, and those keep NATs open, too. The owner may have it asked sooner or later than after 15 s.

use super::frames::Token;

/// Times of silence after which it is dead, and what is added to them, in µs: a machine that slept, a Wi-Fi that changed.
const SILENCES_MAX: u64 = 3;
const GRACE_US: u64 = 10_000_000;

/// Time between questions, in µs.
const AGAIN_US: u64 = 2_500_000;

/// The peer that answered a handshake is silent until it hears from us: it is asked at once, then after this, doubled each time.
const AGAIN_FIRST_US: u64 = 250_000;

#[derive(Debug)]
pub struct Liveness {
    keep_alive_us: u64,
    /// Silence before the first question.
    ask_after_us: u64,
    heard_at: u64,
    /// When to ask next, and how long after that again.
    ask_at: u64,
    then_after_us: u64,
    /// The last question and when it was sent.
    asked: Option<(Token, u64)>,
}

impl Liveness {
    /// `must_speak` when the peer waits for a first packet.
    pub fn new(now: u64, keep_alive_us: u64, must_speak: bool) -> Self {
        let (ask_at, then_after_us) = if must_speak { (now, AGAIN_FIRST_US) } else { (now + keep_alive_us, AGAIN_US) };
        Self { keep_alive_us, ask_after_us: keep_alive_us, heard_at: now, ask_at, then_after_us, asked: None }
    }

    pub fn on_heard(&mut self, now: u64) {
        self.heard_at = now;
        (self.ask_at, self.then_after_us) = (now + self.ask_after_us, AGAIN_US);
    }

    /// The first question comes after such a silence from now on. When the peer is dead stays what it was.
    pub fn ask_after(&mut self, silence_us: u64) {
        if self.ask_at == self.heard_at + self.ask_after_us {
            self.ask_at = self.heard_at + silence_us;
        }
        self.ask_after_us = silence_us;
    }

    pub fn ask_after_us(&self) -> u64 {
        self.ask_after_us
    }

    pub fn heard_at(&self) -> u64 {
        self.heard_at
    }

    /// The round trip, if `token` answers the last question.
    pub fn on_response(&mut self, now: u64, token: Token) -> Option<u64> {
        let (_, asked_at) = self.asked.take_if(|(asked, _)| *asked == token)?;
        Some(now.saturating_sub(asked_at))
    }

    pub fn is_ask_due(&self, now: u64) -> bool {
        self.ask_at <= now
    }

    /// It is to be asked now, for a reason of its own.
    pub fn ask_soon(&mut self, now: u64) {
        self.ask_at = self.ask_at.min(now);
    }

    /// It is to be asked now, unless it was lately: the answer tells the round trip.
    pub fn ask_once(&mut self, now: u64) {
        if self.asked.is_none_or(|(_, at)| now > at + AGAIN_US) {
            self.ask_at = now;
        }
    }

    /// The path is another one: the last question says nothing about it.
    pub fn forget_question(&mut self) {
        self.asked = None;
    }

    /// `token` is being sent.
    pub fn ask(&mut self, now: u64, token: Token) {
        self.asked = Some((token, now));
        self.ask_at = now + self.then_after_us;
        self.then_after_us = (2 * self.then_after_us).min(AGAIN_US);
    }

    pub fn is_dead(&self, now: u64) -> bool {
        self.dead_at() <= now
    }

    fn dead_at(&self) -> u64 {
        self.heard_at + SILENCES_MAX * self.keep_alive_us + GRACE_US
    }

    pub fn next_timeout(&self) -> u64 {
        self.ask_at.min(self.dead_at())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn asks(mut liveness: Liveness) -> (Vec<u64>, u64) {
        let mut asks = Vec::new();
        loop {
            let now = liveness.next_timeout();
            if liveness.is_dead(now) {
                return (asks, now);
            }
            assert!(liveness.is_ask_due(now));
            liveness.ask(now, [0; 8]);
            asks.push(now);
        }
    }

    #[test]
    fn a_silent_peer_is_asked_again_and_again_and_then_given_up() {
        let (asks, dead_at) = asks(Liveness::new(0, 15 * SECOND, false));
        assert_eq!((asks.len(), &asks[..2]), (16, &[15 * SECOND, 17_500_000][..]));
        assert_eq!(dead_at, 55 * SECOND);
    }

    #[test]
    fn a_peer_that_waits_for_a_first_word_is_told_until_it_speaks() {
        let (asks, dead_at) = asks(Liveness::new(0, 15 * SECOND, true));
        assert_eq!(&asks[..4], [0, SECOND / 4, 3 * SECOND / 4, 7 * SECOND / 4]);
        assert_eq!(dead_at, 55 * SECOND);
        let mut liveness = Liveness::new(0, 15 * SECOND, true);
        liveness.ask(0, [1; 8]);
        liveness.on_heard(SECOND / 10);
        assert_eq!(liveness.next_timeout(), SECOND / 10 + 15 * SECOND);
    }

    #[test]
    fn who_is_to_ask_sooner_or_later_does_so_at_once_and_gives_nobody_up_for_it() {
        for after in [5, 18] {
            let mut liveness = Liveness::new(0, 15 * SECOND, false);
            liveness.on_heard(SECOND);
            liveness.ask_after(after * SECOND);
            assert_eq!(liveness.next_timeout(), (1 + after) * SECOND);
            let (asks, dead_at) = asks(liveness);
            assert_eq!((asks[1] - asks[0], dead_at), (AGAIN_US, 56 * SECOND));
        }
        let mut liveness = Liveness::new(0, 15 * SECOND, true);
        liveness.ask_after(18 * SECOND);
        assert_eq!(liveness.next_timeout(), 0, "who must speak does not wait");
    }

    #[test]
    fn an_answer_tells_the_round_trip_once() {
        let mut liveness = Liveness::new(0, 15 * SECOND, true);
        liveness.ask(5, [1; 8]);
        assert_eq!(liveness.on_response(9, [2; 8]), None);
        assert_eq!(liveness.on_response(55, [1; 8]), Some(50));
        assert_eq!(liveness.on_response(56, [1; 8]), None);
    }

    #[test]
    fn whose_round_trip_is_not_known_is_asked_once_and_again_when_the_answer_got_lost() {
        let mut liveness = Liveness::new(0, 15 * SECOND, false);
        let mut asked = Vec::new();
        for now in (0..4 * SECOND).step_by(1_000) {
            liveness.on_heard(now);
            liveness.ask_once(now);
            if liveness.is_ask_due(now) {
                liveness.ask(now, [0; 8]);
                asked.push(now);
            }
        }
        assert_eq!(asked, [0, AGAIN_US + 1_000]);
    }
}
