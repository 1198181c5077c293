//! Where the peer is. It may move: an authentic packet, newer than all others, that does not only probe, from another address makes
//! that address a candidate. It is asked to send back a token, from there, and then it is the path. Meanwhile everything else
//! still goes to the old address, and the candidate gets at most three times the bytes that came from it: whoever forges the
//! sender of a recorded packet, or catches one on its way, gains nothing.
//!
//! An address that is proved is the path at once: one from which a probe was answered lately, and one that is none of UDP, behind
//! which a connection or a rendezvous has proved itself.
//!
//! The owner may choose the path himself. It is announced to the peer, again and again until the peer answers, and no packet moves
//! it any more.

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::frames::{Frame, Token};
use super::moves::Leaving;
use super::way::is_virtual;

/// How often a candidate is asked, and how long between, in µs.
const ASK_MAX: u32 = 10;
const ASK_US: u64 = 200_000;

/// Bytes sent to a candidate for each byte that came from it (RFC 9000, section 8.1).
const AMPLIFICATION_MAX: usize = 3;

/// Answers that wait to be sent. Of too many the oldest is dropped, as on its way it may be.
const ANSWERS_MAX: usize = 64;

/// Addresses that were proved, and for how long each counts, in µs: two keep-alives of the owner.
const PROVED_MAX: usize = 8;
const PROVED_US: u64 = 30_000_000;

/// An announcement is repeated after half a round trip, but no sooner and no later than this, in µs; and so often.
const ANNOUNCE_MIN_US: u64 = 25_000;
const ANNOUNCE_MAX_US: u64 = 100_000;
const ANNOUNCE_MAX: u32 = 40;

#[derive(Debug)]
pub struct Path {
    remote: SocketAddr,
    /// When that began, if it was not the first.
    since: Option<u64>,
    candidate: Option<Candidate>,
    /// The owner has chosen.
    is_chosen: bool,
    announcement: Option<Announcement>,
    proved: VecDeque<Proved>,
    /// What is to be sent to where a question came from.
    answers: VecDeque<(SocketAddr, Frame<'static>)>,
}

#[derive(Debug)]
struct Candidate {
    address: SocketAddr,
    token: Token,
    received: usize,
    sent: usize,
    asked: u32,
    ask_at: u64,
}

#[derive(Debug)]
struct Announcement {
    leaving: Leaving,
    /// The last one, when it was sent, and how many there were.
    token: Option<(Token, u64)>,
    said: u32,
    say_at: u64,
}

#[derive(Debug)]
struct Proved {
    address: SocketAddr,
    at: u64,
    rtt_us: u64,
}

impl Path {
    pub fn new(remote: SocketAddr) -> Self {
        Self {
            remote,
            since: None,
            candidate: None,
            is_chosen: false,
            announcement: None,
            proved: VecDeque::new(),
            answers: VecDeque::new(),
        }
    }

    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// When it last became another one.
    pub fn since(&self) -> Option<u64> {
        self.since
    }

    fn move_to(&mut self, now: u64, address: SocketAddr) {
        (self.remote, self.since, self.candidate) = (address, Some(now), None);
    }

    // The owner's choice.

    /// Whether that is another path than before.
    pub fn choose(&mut self, now: u64, address: SocketAddr, leaving: Leaving) -> bool {
        self.is_chosen = true;
        self.candidate = None;
        if address == self.remote {
            return false;
        }
        self.move_to(now, address);
        self.announcement = Some(Announcement { leaving, token: None, said: 0, say_at: now });
        true
    }

    /// Announces the path once more, although it is the same.
    pub fn announce(&mut self, now: u64) {
        self.announcement.get_or_insert(Announcement { leaving: Leaving::Alive, token: None, said: 0, say_at: now });
    }

    /// A token to be sent along the path, and what became of the path before.
    pub fn take_announcement(
        &mut self,
        now: u64,
        rtt_us: Option<u64>,
        token: impl FnOnce() -> Token,
    ) -> Option<(Token, Leaving)> {
        let announcement = self.announcement.as_mut().filter(|announcement| announcement.say_at <= now)?;
        if announcement.said == ANNOUNCE_MAX {
            self.announcement = None;
            return None;
        }
        let token = token();
        announcement.token = Some((token, now));
        announcement.said += 1;
        let after = rtt_us.map_or(ANNOUNCE_MAX_US, |rtt| (rtt / 2).clamp(ANNOUNCE_MIN_US, ANNOUNCE_MAX_US));
        announcement.say_at = now + after;
        Some((token, announcement.leaving))
    }

    /// The round trip, if the token shows that the peer knows of the path.
    pub fn on_announced(&mut self, now: u64, from: SocketAddr, token: Token) -> Option<u64> {
        let last = self.announcement.as_ref().and_then(|announcement| announcement.token);
        let (_, said_at) = last.filter(|(said, _)| *said == token && from == self.remote)?;
        self.announcement = None;
        Some(now.saturating_sub(said_at).max(1))
    }

    // What is proved.

    /// A probe was answered from there.
    pub fn prove(&mut self, now: u64, address: SocketAddr, rtt_us: u64) {
        self.proved.retain(|proved| proved.address != address);
        if self.proved.len() == PROVED_MAX {
            self.proved.pop_front();
        }
        self.proved.push_back(Proved { address, at: now, rtt_us });
    }

    fn is_proved(&self, now: u64, address: SocketAddr) -> bool {
        let is_proof = |proved: &Proved| proved.address == address && now <= proved.at + PROVED_US;
        is_virtual(address) || self.proved.iter().any(is_proof)
    }

    /// Of the path, as the last probe on it has shown.
    pub fn proved_rtt_us(&self) -> Option<u64> {
        self.proved.iter().find(|proved| proved.address == self.remote).map(|proved| proved.rtt_us)
    }

    // The peer's moves.

    /// An authentic datagram of `bytes` has come. `is_newest`: it does not only probe, and none like it was newer. `token` is made
    /// for a new candidate. Whether the peer has moved there.
    pub fn on_packet(
        &mut self,
        now: u64,
        from: SocketAddr,
        bytes: usize,
        is_newest: bool,
        token: impl FnOnce() -> Token,
    ) -> bool {
        if from == self.remote || self.is_chosen {
            return false;
        }
        if is_newest && self.is_proved(now, from) {
            self.move_to(now, from);
            return true;
        }
        if let Some(candidate) = self.candidate.as_mut().filter(|candidate| candidate.address == from) {
            candidate.received += bytes;
        } else if is_newest {
            let token = token();
            self.candidate = Some(Candidate { address: from, token, received: bytes, sent: 0, asked: 0, ask_at: now });
        }
        false
    }

    /// Whether the token shows that the candidate is the path now.
    pub fn on_response(&mut self, now: u64, from: SocketAddr, token: Token) -> bool {
        let is_proof = |candidate: &mut Candidate| candidate.address == from && candidate.token == token;
        let is_proven = self.candidate.take_if(is_proof).is_some();
        if is_proven {
            self.move_to(now, from);
        }
        is_proven
    }

    // What is sent for it.

    /// Something is to be sent to where a question came from.
    pub fn answer(&mut self, to: SocketAddr, frame: Frame<'static>) {
        if self.answers.len() == ANSWERS_MAX {
            self.answers.pop_front();
        }
        self.answers.push_back((to, frame));
    }

    /// A token to be sent back along the path.
    pub fn take_response(&mut self) -> Option<Token> {
        let remote = self.remote;
        let at = self.answers.iter().position(|(to, frame)| *to == remote && matches!(frame, Frame::Response(_)))?;
        match self.answers.remove(at)? {
            (_, Frame::Response(token)) => Some(token),
            _ => None,
        }
    }

    /// What is to be sent in a packet of its own, and where to. A challenge makes one of `bytes`.
    pub fn take_aside(&mut self, now: u64, bytes: usize) -> Option<(SocketAddr, Frame<'static>)> {
        let goes_along =
            |(to, frame): &(SocketAddr, Frame<'_>)| *to == self.remote && matches!(frame, Frame::Response(_));
        if let Some(at) = self.answers.iter().position(|answer| !goes_along(answer)) {
            return self.answers.remove(at); // No longer than what it answers.
        }
        let candidate = self.candidate.as_mut().filter(|candidate| candidate.ask_at <= now)?;
        candidate.ask_at = now + ASK_US;
        if candidate.asked == ASK_MAX {
            self.candidate = None;
            return None;
        }
        candidate.asked += 1;
        if candidate.sent + bytes > AMPLIFICATION_MAX * candidate.received {
            return None;
        }
        candidate.sent += bytes;
        Some((candidate.address, Frame::Challenge(candidate.token)))
    }

    /// When [`Self::take_aside`] or [`Self::take_announcement`] is to be asked.
    pub fn next_timeout(&self) -> Option<u64> {
        let ask_at = self.candidate.as_ref().map(|candidate| candidate.ask_at);
        let say_at = self.announcement.as_ref().map(|announcement| announcement.say_at);
        ask_at.into_iter().chain(say_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::super::way::Way;
    use super::*;

    const HOME: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);
    const AWAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 2);
    const TOKEN: Token = [7; 8];
    const BYTES: usize = 37;
    const SECOND: u64 = 1_000_000;

    fn moved() -> Path {
        let mut path = Path::new(HOME);
        assert!(!path.on_packet(0, AWAY, 50, true, || TOKEN));
        path
    }

    #[test]
    fn a_peer_that_moves_is_followed_once_it_has_answered_from_there() {
        let mut path = moved();
        assert_eq!(path.take_aside(0, BYTES), Some((AWAY, Frame::Challenge(TOKEN))));
        assert_eq!((path.take_aside(0, BYTES), path.remote()), (None, HOME));
        assert!(!path.on_response(1, HOME, TOKEN), "from elsewhere");
        assert!(!path.on_response(1, AWAY, [8; 8]), "another token");
        assert!(path.on_response(1, AWAY, TOKEN));
        assert_eq!((path.remote(), path.since(), path.next_timeout()), (AWAY, Some(1), None));
        assert!(!path.on_response(2, AWAY, TOKEN), "again");
    }

    #[test]
    fn a_packet_that_others_have_overtaken_or_that_only_probes_does_not_move_the_path() {
        let mut path = Path::new(HOME);
        let flow = SocketAddr::from(Way::Flow { via: 0, flow: 1 });
        path.prove(0, AWAY, 5);
        for from in [AWAY, flow] {
            assert!(!path.on_packet(0, from, 50, false, || TOKEN));
        }
        assert!(!path.on_packet(0, HOME, 50, true, || TOKEN));
        assert_eq!((path.take_aside(0, BYTES), path.next_timeout()), (None, None));
    }

    #[test]
    fn a_peer_that_moves_to_an_address_that_is_proved_is_followed_at_once() {
        for virtual_one in [Way::Link(3), Way::Flow { via: 0, flow: 1 }].map(SocketAddr::from) {
            assert!(Path::new(HOME).on_packet(0, virtual_one, 50, true, || TOKEN));
        }
        for (later, is_followed) in [(0, true), (30 * SECOND, true), (30 * SECOND + 1, false)] {
            let mut path = Path::new(HOME);
            path.prove(7, AWAY, 5_000);
            assert_eq!(path.on_packet(7 + later, AWAY, 50, true, || TOKEN), is_followed);
            assert_eq!(path.proved_rtt_us(), is_followed.then_some(5_000));
        }
    }

    #[test]
    fn of_too_many_proofs_the_oldest_is_forgotten() {
        let mut path = Path::new(HOME);
        (1..=10).for_each(|port| path.prove(0, SocketAddr::new(AWAY.ip(), port), 5));
        assert_eq!((path.proved.len(), path.is_proved(0, AWAY)), (PROVED_MAX, false));
    }

    #[test]
    fn a_candidate_that_is_silent_gets_three_times_what_it_sent_and_is_given_up() {
        let mut path = moved();
        let (mut sent, mut looks) = (0, 0);
        while let Some(now) = path.next_timeout() {
            sent += path.take_aside(now, BYTES).map_or(0, |_| BYTES);
            looks += 1;
        }
        assert!(sent <= 150 && sent > 100 && looks < 100, "{sent} bytes, {looks} looks");
    }

    #[test]
    fn a_path_that_was_chosen_is_announced_until_the_peer_knows_it_and_follows_nobody() {
        let mut path = moved();
        assert!(!path.choose(5, HOME, Leaving::Alive), "the same");
        assert_eq!((path.next_timeout(), path.on_packet(5, AWAY, 50, true, || TOKEN)), (None, false));
        assert_eq!(path.next_timeout(), None);
        assert!(path.choose(5, AWAY, Leaving::Dead));
        assert_eq!((path.remote(), path.next_timeout()), (AWAY, Some(5)));
        assert_eq!(path.take_announcement(5, Some(80_000), || [1; 8]), Some(([1; 8], Leaving::Dead)));
        assert_eq!(path.take_announcement(40_004, Some(80_000), || [2; 8]), None);
        assert_eq!(path.take_announcement(40_005, Some(80_000), || [2; 8]), Some(([2; 8], Leaving::Dead)));
        assert_eq!(path.on_announced(50_000, AWAY, [1; 8]), None, "an old one: the round trip would be wrong");
        assert_eq!(path.on_announced(50_000, HOME, [2; 8]), None, "from elsewhere");
        assert_eq!(path.on_announced(100_005, AWAY, [2; 8]), Some(60_000));
        assert_eq!(path.next_timeout(), None);
    }

    #[test]
    fn an_announcement_that_nobody_answers_ends() {
        let mut path = Path::new(HOME);
        assert!(path.choose(5, AWAY, Leaving::Alive));
        let mut said = 0;
        while let Some(now) = path.next_timeout() {
            said += u32::from(path.take_announcement(now, None, || TOKEN).is_some());
        }
        assert_eq!(said, ANNOUNCE_MAX);
    }

    #[test]
    fn a_token_is_sent_back_to_where_it_came_from() {
        let mut path = Path::new(HOME);
        path.answer(HOME, Frame::Response(TOKEN));
        assert_eq!((path.take_aside(0, BYTES), path.take_response()), (None, Some(TOKEN)));
        path.answer(AWAY, Frame::Response(TOKEN));
        assert_eq!(path.take_response(), None);
        assert_eq!(path.take_aside(0, BYTES), Some((AWAY, Frame::Response(TOKEN))));
        assert_eq!(path.take_aside(0, BYTES), None);
    }

    #[test]
    fn of_too_many_answers_the_oldest_are_dropped_and_the_others_keep_their_order() {
        let mut path = Path::new(HOME);
        (0..100).for_each(|count| path.answer(AWAY, Frame::Response([count; 8])));
        let answers = std::iter::from_fn(|| path.take_aside(0, BYTES)).map(|(_, frame)| frame);
        assert!(answers.eq((36..100).map(|count| Frame::Response([count; 8]))));
    }
}
