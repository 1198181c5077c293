//! The keys of a tunnel over its life: every two hours a new handshake, inside the tunnel, gives it a new session, and what was
//! said before can no longer be decrypted by whoever gets hold of the keys. Streams do not notice.
//!
//! ```text
//! visitor: Renew{offer} --> provider: has the next session, goes on sending in the current one
//! visitor: sends in the new session <-- Renewed{answer}
//!          first packet of the new session --> provider: sends in the new session, too
//! ```
//!
//! Both forget the old one a little later. A visitor that was not answered, or could make nothing of the answer, offers again;
//! thereby the provider knows that what it answered before will not be used.

use super::handshake::{self, ANSWER_BYTES, Initiator, OFFER_BYTES};
use super::keys::Key;
use super::random::Random;
use super::seal::{Opened, Rejected, Session};
use super::wire::{Answer, Header, Id, Offer};

/// Age at which the visitor begins a handshake, in µs.
const RENEW_US: u64 = 2 * 3_600_000_000;

/// Least time between handshakes that the provider looks at, in µs: each costs a Diffie-Hellman.
const RENEW_MIN_US: u64 = 60_000_000;

/// Time after which the visitor gives up an offer and makes another, in µs. Offer and answer are repeated until they arrive, and a
/// tunnel that hears nothing for so long is gone: a peer that is still there has passed the offer over.
const OFFER_US: u64 = 120_000_000;
const _: () = assert!(OFFER_US > RENEW_MIN_US, "or the provider would pass over each");

/// Time for which packets of the session before are taken, in µs. Far longer than any is under way.
const OLD_US: u64 = 10_000_000;

#[derive(Debug)]
pub struct Sessions {
    current: Session,
    /// Answered by us, not yet used by the peer. No time ends it: a peer that uses it may have been silent for as long as a tunnel
    /// lives, and knows no other. Another offer does, which a peer makes only when it cannot use this.
    next: Option<Session>,
    previous: Option<(Session, u64)>,
    began_at: u64,
    count: u32,
    /// And until when an answer is waited for.
    offered: Option<(Initiator, u64)>,
    /// When the provider looks at an offer again.
    renewable_at: u64,
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
            renewable_at: now + RENEW_MIN_US,
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
        self.renewable_at = now + RENEW_MIN_US;
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

    /// Whether the visitor has to begin a handshake.
    pub fn is_renewal_due(&self, now: u64) -> bool {
        self.renewal_at() <= now
    }

    /// Begins a handshake, in the place of one that was not answered.
    pub fn offer(&mut self, now: u64, key: &Key, offer: &Offer, random: &mut Random) -> [u8; OFFER_BYTES] {
        let (initiator, message) = Initiator::new(key, offer, random);
        let before = self.offered.replace((initiator, now + OFFER_US));
        self.retired.extend(before.map(|(initiator, _)| initiator.id()));
        message
    }

    /// Whether the answer belongs to our offer. Then all packets are sent in the new session. One that does not may be that to an
    /// offer before it.
    pub fn on_answer(&mut self, now: u64, message: &[u8; ANSWER_BYTES]) -> bool {
        let Some((initiator, _)) = &mut self.offered else { return false };
        let Ok((_, session)) = initiator.finish(now, message) else { return false };
        self.offered = None;
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
        if now < self.renewable_at {
            return None;
        }
        self.renewable_at = now + RENEW_MIN_US;
        let (offer, responder) = handshake::respond(key, message, random).ok()?;
        let (answer, session) = responder.answer(now, &answer(&offer));
        let before = self.next.replace(session);
        self.retired.extend(before.map(|session| session.id()));
        Some(answer)
    }

    /// An id at which nothing is expected any more.
    pub fn pop_retired(&mut self) -> Option<Id> {
        self.retired.pop()
    }

    /// All ids that are still ours.
    pub fn ids(&self) -> impl Iterator<Item = Id> {
        let others = self.next.as_ref().into_iter().chain(self.previous.as_ref().map(|(previous, _)| previous));
        let offered = self.offered.as_ref().map(|(initiator, _)| initiator.id());
        others.map(Session::id).chain(offered).chain([self.current.id()])
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
    pub fn renewal_at(&self) -> u64 {
        self.offered.as_ref().map_or(self.began_at + RENEW_US, |(_, until)| *until)
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Cipher, ServiceName};
    use super::*;

    #[test]
    fn a_visitor_that_vanished_in_the_midst_of_a_renewal_renews_later() {
        let mut pair = Pair::new();
        let lost = pair.offer(RENEW_US, 3);
        let unused = pair.answer(RENEW_US, &lost, 4).expect("an answer");
        assert_eq!(pair.packet_to_provider(RENEW_US + 1), Origin::Current);
        let again = RENEW_US + OFFER_US;
        assert!(!pair.visitor.is_renewal_due(again - 1) && pair.visitor.is_renewal_due(again));
        let offer = pair.offer(again, 5);
        let answer = pair.answer(again, &offer, 6).expect("an answer, though the one before was never used");
        assert!(!pair.visitor.on_answer(again, &unused), "that is of the offer before");
        assert!(pair.visitor.on_answer(again, &answer));
        assert_eq!(pair.packet_to_provider(again), Origin::First);
        assert_eq!([pair.visitor.pop_retired(), pair.provider.pop_retired()], [Some(Id([3; 6])), Some(Id([4; 6]))]);
        assert_eq!((pair.visitor.count(), pair.provider.count()), (2, 2));
    }

    #[test]
    fn a_session_that_was_answered_is_used_however_late_the_visitor_speaks_again() {
        let mut pair = Pair::new();
        let offer = pair.offer(RENEW_US, 3);
        let answer = pair.answer(RENEW_US, &offer, 4).expect("an answer");
        assert!(pair.visitor.on_answer(RENEW_US, &answer));
        let late = RENEW_US + 50_000_000;
        pair.visitor.handle_timeout(late);
        pair.provider.handle_timeout(late);
        assert_eq!(pair.packet_to_provider(late), Origin::First);
    }

    #[test]
    fn offers_without_end_are_looked_at_once_a_minute() {
        let mut pair = Pair::new();
        let answered = |second: &u64| {
            let now = second * 1_000_000;
            let offer = pair.offer(now, 3);
            pair.answer(now, &offer, 4).is_some()
        };
        assert_eq!((0..300).step_by(10).filter(answered).collect::<Vec<_>>(), [60, 120, 180, 240]);
    }

    #[test]
    fn an_id_that_was_offered_is_ours() {
        let mut pair = Pair::new();
        pair.offer(RENEW_US, 3);
        assert!(pair.visitor.ids().any(|id| id == Id([3; 6])));
    }

    struct Pair {
        key: Key,
        random: Random,
        visitor: Sessions,
        provider: Sessions,
    }

    impl Pair {
        fn new() -> Self {
            let (key, mut random) = (Key::from_secret(b"secret"), Random::new([1; 32]));
            let (mut initiator, message) = Initiator::new(&key, &offer(1), &mut random);
            let (_, responder) = handshake::respond(&key, &message, &mut random).expect("an offer");
            let (message, theirs) = responder.answer(0, &answer(2));
            let (_, ours) = initiator.finish(0, &message).expect("the answer");
            Self { key, random, visitor: Sessions::new(0, ours), provider: Sessions::new(0, theirs) }
        }

        fn offer(&mut self, now: u64, id: u8) -> [u8; OFFER_BYTES] {
            self.visitor.offer(now, &self.key, &offer(id), &mut self.random)
        }

        fn answer(&mut self, now: u64, message: &[u8; OFFER_BYTES], id: u8) -> Option<[u8; ANSWER_BYTES]> {
            self.provider.on_offer(now, &self.key, message, &mut self.random, |_| answer(id))
        }

        fn packet_to_provider(&mut self, now: u64) -> Origin {
            let mut packet = Vec::new();
            let start = self.visitor.current().begin_packet(&mut packet);
            packet.push(0);
            self.visitor.current().finish_packet(&mut packet, start).expect("numbers are left");
            self.provider.open(now, &mut packet).expect("it is authentic").1
        }
    }

    fn offer(id: u8) -> Offer {
        Offer { id: Id([id; 6]), has_aes: true, service: ServiceName::new("game").expect("a name") }
    }

    fn answer(id: u8) -> Answer {
        Answer { id: Id([id; 6]), cipher: Cipher::Aes256Gcm, wants_addresses: false, tcp_ports: 1, udp_ports: 0 }
    }
}
