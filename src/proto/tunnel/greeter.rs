//! Answers handshakes. A tunnel begins only when a packet has come under the keys that an answer led to: whoever repeats what
//! others have said gets answers, a few, and nothing else.
//!
//! An offer under a wrong key or for an unknown service is passed over in silence. Each that is not costs a Diffie-Hellman, so
//! there is a limit to their rate. The same offer again, since the answer was lost, gets the same answer; but not once its tunnel
//! has begun or it was forgotten.

use std::collections::VecDeque;
use std::sync::Arc;

use super::handshake::{self, ANSWER_BYTES, OFFER_BYTES};
use super::keys::Key;
use super::random::Random;
use super::seal::Session;
use super::wire::{Answer, Cipher, Id};
use super::{Service, ServiceName};

/// Answers that wait for a first packet, and for how long, in µs: as long as visitors ask. Over it the oldest is forgotten.
const PENDING_MAX: usize = 256;
const PENDING_US: u64 = 30_000_000;

/// Offers that are known and not answered again. Over it the oldest is forgotten.
const KNOWN_MAX: usize = 1024;

/// Handshakes in a second, and at once. At 200 µs each that is 1 % of a processor.
const PER_SECOND: u64 = 50;
const AT_ONCE: u64 = 100;

#[derive(Debug, Default)]
pub struct Greeter {
    services: Vec<Served>,
    pending: VecDeque<Pending>,
    known: VecDeque<Fingerprint>,
    /// Handshakes that may be answered now, in parts of a million.
    allowance: u64,
    allowed_at: Option<u64>,
}

#[derive(Debug)]
struct Served {
    key: Arc<Key>,
    name: ServiceName,
    service: Service,
}

/// Answered; waits for the first packet.
#[derive(Debug)]
pub struct Pending {
    pub session: Session,
    pub key: Arc<Key>,
    pub name: ServiceName,
    pub service: Service,
    /// The whole datagram: of a repeat nothing else has been authenticated.
    offer: [u8; OFFER_BYTES],
    answer: [u8; ANSWER_BYTES],
    until: u64,
}

/// Of an offer: half of its ephemeral key, which is random.
type Fingerprint = [u8; 16];

/// What is to be done about an offer.
pub enum Greeting {
    /// Send this. With it a session has begun to wait for its first packet, and perhaps others have ceased to.
    New([u8; ANSWER_BYTES]),
    /// Send this again.
    Again([u8; ANSWER_BYTES]),
    Silence,
}

impl Greeter {
    /// The same name and key again replace what they offered.
    pub fn serve(&mut self, key: Arc<Key>, name: ServiceName, service: Service) {
        self.services.retain(|served| served.name != name || served.key.id() != key.id());
        self.services.push(Served { key, name, service });
    }

    pub fn withdraw(&mut self, name: &ServiceName) {
        self.services.retain(|served| served.name != *name);
    }

    pub fn knows(&self, id: Id) -> bool {
        self.services.iter().any(|served| served.key.id() == id)
    }

    pub fn greet(
        &mut self,
        now: u64,
        to: Id,
        offer: &[u8],
        has_aes: bool,
        new_id: Id,
        random: &mut Random,
    ) -> Greeting {
        let Ok(datagram) = <[u8; OFFER_BYTES]>::try_from(offer) else { return Greeting::Silence };
        if let Some(pending) = self.pending.iter().find(|pending| pending.offer == datagram) {
            return Greeting::Again(pending.answer);
        }
        if self.known.contains(&fingerprint(&datagram)) || !self.has_allowance(now) {
            return Greeting::Silence;
        }
        let Some(served) = self.services.iter().find(|served| served.key.id() == to) else { return Greeting::Silence };
        let Ok((offer, responder)) = handshake::respond(&served.key, offer, random) else { return Greeting::Silence };
        let is_asked_for = |served: &&Served| served.key.id() == to && served.name == offer.service;
        let Some(served) = self.services.iter().find(is_asked_for) else { return Greeting::Silence };
        let cipher = Cipher::for_both(has_aes, offer.has_aes);
        let (answer, session) = responder.answer(now, &served.answer(new_id, cipher));
        let (key, name, service) = (served.key.clone(), served.name, served.service);
        let until = now + PENDING_US;
        self.allowance -= 1_000_000;
        self.remember(Pending { session, key, name, service, offer: datagram, answer, until });
        Greeting::New(answer)
    }

    fn remember(&mut self, pending: Pending) {
        self.known.push_back(fingerprint(&pending.offer));
        if self.known.len() > KNOWN_MAX {
            self.known.pop_front();
        }
        self.pending.push_back(pending);
    }

    fn has_allowance(&mut self, now: u64) -> bool {
        let passed = self.allowed_at.map_or(u64::MAX, |at| now.saturating_sub(at));
        self.allowed_at = Some(now.max(self.allowed_at.unwrap_or(0)));
        self.allowance = self.allowance.saturating_add(passed.saturating_mul(PER_SECOND)).min(AT_ONCE * 1_000_000);
        self.allowance >= 1_000_000
    }

    /// The session that waits for packets to `id`.
    pub fn pending(&mut self, id: Id) -> Option<&mut Pending> {
        self.pending.iter_mut().find(|pending| pending.session.id() == id)
    }

    /// Its first packet has come.
    pub fn take(&mut self, id: Id) -> Option<Pending> {
        let place = self.pending.iter().position(|pending| pending.session.id() == id)?;
        self.pending.remove(place)
    }

    /// The id of a session that has waited too long, or that is one too many.
    pub fn pop_stale(&mut self, now: u64) -> Option<Id> {
        let is_stale = self.pending.front()?.until <= now || self.pending.len() > PENDING_MAX;
        if is_stale { self.pending.pop_front().map(|pending| pending.session.id()) } else { None }
    }

    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    pub fn next_timeout(&self) -> Option<u64> {
        self.pending.front().map(|pending| pending.until)
    }
}

impl Served {
    fn answer(&self, id: Id, cipher: Cipher) -> Answer {
        let Service { tcp_ports, udp_ports, wants_addresses } = self.service;
        Answer { id, cipher, wants_addresses, tcp_ports, udp_ports }
    }
}

fn fingerprint(offer: &[u8; OFFER_BYTES]) -> Fingerprint {
    *offer[super::wire::Header::LEN..].first_chunk().expect("an offer is longer than that")
}
