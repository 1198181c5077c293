//! Answers handshakes. A tunnel begins only when a packet has come under the keys that an answer led to: whoever repeats what
//! others have said gets answers, a few, and nothing else.
//!
//! An offer under a wrong key or for an unknown service is passed over in silence; `tries` bounds what that costs. Each that is
//! not costs a Diffie-Hellman, so there is a limit to their rate, which those others cannot use up. The same offer again, since the
//! answer was lost, gets the same answer; but not at another host, which can only have recorded it, and not once its tunnel has
//! begun or it was forgotten.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::handshake::{self, ANSWER_BYTES, OFFER_BYTES, Responder};
use super::keys::Key;
use super::random::Random;
use super::seal::Session;
use super::tries::{Allowance, Tries};
use super::wire::{Answer, Cipher, Id, Offer};
use super::{Service, ServiceName};

/// Answers that wait for a first packet, at least, and for how long, in µs: as long as visitors ask. All that are given at once find
/// a place. Over it the oldest is forgotten.
const PENDING_MIN: usize = 256;
const PENDING_US: u64 = 30_000_000;

/// Offers that are known and not answered again, for each answer that may wait. Over it the oldest is forgotten.
const KNOWN_FACTOR: usize = 4;

#[derive(Debug)]
pub struct Greeter {
    pending_max: usize,
    services: Vec<Served>,
    pending: VecDeque<Pending>,
    known: VecDeque<Fingerprint>,
    allowance: Allowance,
    tries: Tries,
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
    /// Whose it is. The port may change: a NAT may have forgotten it.
    host: IpAddr,
    until: u64,
}

/// Of an offer: half of its ephemeral key, which is random.
type Fingerprint = [u8; 16];

/// Who says what, to the id of a key.
#[derive(Clone, Copy, Debug)]
pub struct Stranger<'a> {
    pub from: SocketAddr,
    pub to: Id,
    pub datagram: &'a [u8],
}

/// What is to be done about an offer.
pub enum Greeting {
    /// Send this. With it a session has begun to wait for its first packet, and perhaps others have ceased to.
    New([u8; ANSWER_BYTES]),
    /// Send this again.
    Again([u8; ANSWER_BYTES]),
    Silence,
}

impl Greeter {
    /// `per_second`: handshakes that are answered, in the long run; each costs 200 µs. `seed` may be used for other things, too.
    pub fn new(per_second: u64, seed: &[u8; 32]) -> Self {
        Self {
            pending_max: usize::try_from(2 * per_second).unwrap_or(PENDING_MIN).max(PENDING_MIN),
            services: Vec::new(),
            pending: VecDeque::new(),
            known: VecDeque::new(),
            allowance: Allowance::new(per_second),
            tries: Tries::new(seed),
        }
    }

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
        Stranger { from, to, datagram }: Stranger<'_>,
        has_aes: bool,
        new_id: Id,
        random: &mut Random,
    ) -> Greeting {
        let Ok(datagram) = <[u8; OFFER_BYTES]>::try_from(datagram) else { return Greeting::Silence };
        if let Some(pending) = self.pending.iter().find(|pending| pending.offer == datagram) {
            return if pending.host == from.ip() { Greeting::Again(pending.answer) } else { Greeting::Silence };
        }
        let tries = self.tries.of(from);
        if self.known.contains(&fingerprint(&datagram)) || !self.allowance.is_left(now) || !tries.is_left(now) {
            return Greeting::Silence;
        }
        let Some((offer, responder, served)) = try_offer(&self.services, to, &datagram, random) else {
            tries.take();
            return Greeting::Silence;
        };
        let cipher = Cipher::for_both(has_aes, offer.has_aes);
        let (answer, session) = responder.answer(now, &served.answer(new_id, cipher));
        let (key, name, service) = (served.key.clone(), served.name, served.service);
        let until = now + PENDING_US;
        self.allowance.take();
        self.remember(Pending { session, key, name, service, offer: datagram, answer, host: from.ip(), until });
        Greeting::New(answer)
    }

    fn remember(&mut self, pending: Pending) {
        self.known.push_back(fingerprint(&pending.offer));
        if self.known.len() > KNOWN_FACTOR * self.pending_max {
            self.known.pop_front();
        }
        self.pending.push_back(pending);
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
        let is_stale = self.pending.front()?.until <= now || self.pending.len() > self.pending_max;
        if is_stale { self.pending.pop_front().map(|pending| pending.session.id()) } else { None }
    }

    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    pub fn next_timeout(&self) -> Option<u64> {
        self.pending.front().map(|pending| pending.until)
    }
}

/// What has to be done to know whether the offer is authentic and for a service of ours.
fn try_offer<'a>(
    services: &'a [Served],
    to: Id,
    datagram: &[u8; OFFER_BYTES],
    random: &mut Random,
) -> Option<(Offer, Responder, &'a Served)> {
    let of_key = |served: &&Served| served.key.id() == to;
    let key = &services.iter().find(of_key)?.key;
    let (offer, responder) = handshake::respond(key, datagram, random).ok()?;
    let served = services.iter().filter(of_key).find(|served| served.name == offer.service)?;
    Some((offer, responder, served))
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
