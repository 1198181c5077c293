//! The keys of a tunnel over its life: every two hours a new handshake, inside the tunnel, gives it a new session, and what was
//! said before can no longer be decrypted by whoever gets hold of the keys. Streams do not notice.
//!
//! ```text
//! visitor: Renew{offer} --> provider: has the next session, goes on sending in the current one
//! visitor: sends in the new session <-- Renewed{answer}
//!          first packet of the new session --> provider: sends in the new session, too
//! ```
//!
//! Both forget the old one a little later.

use super::handshake::{self, ANSWER_BYTES, Initiator, OFFER_BYTES};
use super::keys::Key;
use super::random::Random;
use super::seal::{Opened, Rejected, Session};
use super::wire::{Answer, Header, Id, Offer};

/// Age at which the visitor begins a handshake, in µs.
const RENEW_US: u64 = 2 * 3_600_000_000;

/// Least time between handshakes that the provider answers, in µs: each costs a Diffie-Hellman.
const RENEW_MIN_US: u64 = 60_000_000;

/// Time for which packets of the session before are taken, in µs. Far longer than any is under way.
const OLD_US: u64 = 10_000_000;

#[derive(Debug)]
pub struct Sessions {
    current: Session,
    /// Offered by us, not yet used by the peer.
    next: Option<Session>,
    previous: Option<(Session, u64)>,
    began_at: u64,
    count: u32,
    offered: Option<Initiator>,
    /// Ids that are no longer ours.
    retired: Vec<Id>,
}

/// In which session a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Current,
    /// It is the first of a new one, which is now the current one.
    First,
    Previous,
}

impl Sessions {
    pub fn new(now: u64, session: Session) -> Self {
        Self {
            current: session,
            next: None,
            previous: None,
            began_at: now,
            count: 1,
            offered: None,
            retired: Vec::new(),
        }
    }

    /// The one to send in.
    pub fn current(&mut self) -> &mut Session {
        &mut self.current
    }

    pub fn open<'a>(&mut self, now: u64, datagram: &'a mut [u8]) -> Result<(Opened<'a>, Origin), Rejected> {
        let id = Header::parse(datagram).map_err(|_too_short| Rejected::NotOurs)?.id;
        if let Some((previous, _)) = self.previous.as_mut().filter(|(previous, _)| previous.id() == id) {
            return Ok((previous.open(now, datagram)?, Origin::Previous));
        }
        if let Some(mut next) = self.next.take_if(|next| next.id() == id) {
            let opened = next.open(now, datagram);
            match opened {
                Ok(_) => self.replace(now, next),
                Err(_) => self.next = Some(next),
            }
            return Ok((opened?, Origin::First));
        }
        Ok((self.current.open(now, datagram)?, Origin::Current))
    }

    fn replace(&mut self, now: u64, session: Session) {
        let before = std::mem::replace(&mut self.current, session);
        self.retire_previous(now, true);
        self.previous = Some((before, now + OLD_US));
        self.began_at = now;
        self.count += 1;
    }

    /// How many there were.
    pub fn count(&self) -> u32 {
        self.count
    }

    fn retire_previous(&mut self, now: u64, at_once: bool) {
        if let Some((previous, _)) = self.previous.take_if(|(_, until)| at_once || *until <= now) {
            self.retired.push(previous.id());
        }
    }

    /// Begins a handshake, when it is time.
    pub fn is_renewal_due(&self, now: u64) -> bool {
        self.offered.is_none() && self.began_at + RENEW_US <= now
    }

    pub fn offer(&mut self, key: &Key, offer: &Offer, random: &mut Random) -> [u8; OFFER_BYTES] {
        let (initiator, message) = Initiator::new(key, offer, random);
        self.offered = Some(initiator);
        message
    }

    /// Whether the answer belongs to our offer. Then all packets are sent in the new session.
    pub fn on_answer(&mut self, now: u64, message: &[u8; ANSWER_BYTES]) -> bool {
        let Some(Ok((_, session))) = self.offered.take().map(|mut initiator| initiator.finish(now, message)) else {
            return false;
        };
        self.replace(now, session);
        true
    }

    /// Answers an offer, with `answer` for an offer that is authentic. `None`: it is not, or it comes too soon.
    pub fn on_offer(
        &mut self,
        now: u64,
        key: &Key,
        message: &[u8; OFFER_BYTES],
        random: &mut Random,
        answer: impl FnOnce(&Offer) -> Answer,
    ) -> Option<[u8; ANSWER_BYTES]> {
        if now < self.began_at + RENEW_MIN_US || self.next.is_some() {
            return None;
        }
        let (offer, responder) = handshake::respond(key, message, random).ok()?;
        let (answer, session) = responder.answer(now, &answer(&offer));
        self.next = Some(session);
        Some(answer)
    }

    /// An id at which nothing is expected any more.
    pub fn pop_retired(&mut self) -> Option<Id> {
        self.retired.pop()
    }

    /// All ids that are still ours.
    pub fn ids(&self) -> impl Iterator<Item = Id> {
        let others = self.next.as_ref().into_iter().chain(self.previous.as_ref().map(|(previous, _)| previous));
        others.map(Session::id).chain([self.current.id()])
    }

    pub fn handle_timeout(&mut self, now: u64) {
        self.current.handle_timeout(now);
        self.retire_previous(now, false);
    }

    pub fn next_timeout(&self) -> u64 {
        let forget = self.previous.as_ref().map_or(u64::MAX, |(_, until)| *until);
        self.current.next_timeout().min(forget)
    }

    /// When the visitor has to think of a handshake.
    pub fn renewal_at(&self) -> Option<u64> {
        self.offered.is_none().then(|| self.began_at + RENEW_US)
    }
}
