//! Where the peer is. It may move: an authentic packet, newer than all others, from another address makes that address a
//! candidate. It is asked to send back a token, from there, and then it is the path. Meanwhile everything else still goes to the
//! old address, and the candidate gets at most three times the bytes that came from it: whoever forges the sender of a recorded
//! packet, or catches one on its way, gains nothing.

use std::net::SocketAddr;

use super::frames::{Frame, Token};

/// How often a candidate is asked, and how long between, in µs.
const ASK_MAX: u32 = 10;
const ASK_US: u64 = 200_000;

/// Bytes sent to a candidate for each byte that came from it (RFC 9000, section 8.1).
const AMPLIFICATION_MAX: usize = 3;

#[derive(Debug)]
pub struct Path {
    remote: SocketAddr,
    candidate: Option<Candidate>,
    /// A token to be sent back to where it came from. The last one that came.
    response: Option<(SocketAddr, Token)>,
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

impl Path {
    pub fn new(remote: SocketAddr) -> Self {
        Self { remote, candidate: None, response: None }
    }

    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// An authentic datagram of `bytes` has come. `token` is made for a new candidate.
    pub fn on_packet(
        &mut self,
        now: u64,
        from: SocketAddr,
        bytes: usize,
        is_highest: bool,
        token: impl FnOnce() -> Token,
    ) {
        if from == self.remote {
            return;
        }
        if let Some(candidate) = self.candidate.as_mut().filter(|candidate| candidate.address == from) {
            candidate.received += bytes;
        } else if is_highest {
            let token = token();
            self.candidate = Some(Candidate { address: from, token, received: bytes, sent: 0, asked: 0, ask_at: now });
        }
    }

    pub fn on_challenge(&mut self, from: SocketAddr, token: Token) {
        self.response = Some((from, token));
    }

    /// Whether the token shows that the candidate is the path now.
    pub fn on_response(&mut self, from: SocketAddr, token: Token) -> bool {
        let is_proof = |candidate: &mut Candidate| candidate.address == from && candidate.token == token;
        let is_proven = self.candidate.take_if(is_proof).is_some();
        if is_proven {
            self.remote = from;
        }
        is_proven
    }

    /// A token to be sent back along the path.
    pub fn take_response(&mut self) -> Option<Token> {
        self.response.take_if(|(to, _)| *to == self.remote).map(|(_, token)| token)
    }

    /// What is to be sent to another address than the path's, in a packet of `bytes`.
    pub fn take_aside(&mut self, now: u64, bytes: usize) -> Option<(SocketAddr, Frame<'static>)> {
        if let Some((to, token)) = self.response.take_if(|(to, _)| *to != self.remote) {
            return Some((to, Frame::Response(token))); // As long as what it answers.
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

    /// When [`Self::take_aside`] is to be asked.
    pub fn next_timeout(&self) -> Option<u64> {
        self.candidate.as_ref().map(|candidate| candidate.ask_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);
    const AWAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 2);
    const TOKEN: Token = [7; 8];
    const BYTES: usize = 37;

    fn moved() -> Path {
        let mut path = Path::new(HOME);
        path.on_packet(0, AWAY, 50, true, || TOKEN);
        path
    }

    #[test]
    fn a_peer_that_moves_is_followed_once_it_has_answered_from_there() {
        let mut path = moved();
        assert_eq!(path.take_aside(0, BYTES), Some((AWAY, Frame::Challenge(TOKEN))));
        assert_eq!((path.take_aside(0, BYTES), path.remote()), (None, HOME));
        assert!(!path.on_response(HOME, TOKEN), "from elsewhere");
        assert!(!path.on_response(AWAY, [8; 8]), "another token");
        assert!(path.on_response(AWAY, TOKEN));
        assert_eq!((path.remote(), path.next_timeout()), (AWAY, None));
        assert!(!path.on_response(AWAY, TOKEN), "again");
    }

    #[test]
    fn a_packet_that_others_have_overtaken_does_not_move_the_path() {
        let mut path = Path::new(HOME);
        path.on_packet(0, AWAY, 50, false, || TOKEN);
        path.on_packet(0, HOME, 50, true, || TOKEN);
        assert_eq!((path.take_aside(0, BYTES), path.next_timeout()), (None, None));
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
    fn a_token_is_sent_back_to_where_it_came_from() {
        let mut path = Path::new(HOME);
        path.on_challenge(HOME, TOKEN);
        assert_eq!((path.take_aside(0, BYTES), path.take_response()), (None, Some(TOKEN)));
        path.on_challenge(AWAY, TOKEN);
        assert_eq!(path.take_response(), None);
        assert_eq!(path.take_aside(0, BYTES), Some((AWAY, Frame::Response(TOKEN))));
        assert_eq!(path.take_aside(0, BYTES), None);
    }
}
