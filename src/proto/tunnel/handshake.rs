//! The handshake that makes a session of a key: `Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s`, one message each way.
//!
//! ```text
//! initiator                                                     responder
//!   Initiator::new --- id of the key | 0 | e, {offer} tag --->  respond: right key? then
//!   Initiator::finish <-- initiator's id | 0 | e, {answer} tag -- Responder::answer: a session that has to wait
//!                    --- first packet of the session -------->  it opens: now the peer is known to be alive
//! ```
//!
//! The first message can be a recorded one. It gains nothing: the session that follows has keys which only the holder of the
//! ephemeral key can use, so nothing ever opens in it. But an answer costs two Diffie-Hellman, so the caller limits their rate, and
//! sends the same answer again to an exact repeat. [`respond`] alone, which everybody can ask for who has seen the id of the
//! key, costs a tenth of it. A first message is longer than its answer.
//!
//! Ephemeral keys come from the caller's [`Random`]. `snow` does not wipe what it holds, ephemeral keys and the psk: they lie in
//! freed memory until it is used again. Absent: time, repeats, limits, and which services there are.

use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver, FallbackResolver};
use snow::{Builder, HandshakeState};
use zeroize::{Zeroize, Zeroizing};

use super::keys::{Key, Ratchet};
use super::random::Random;
use super::seal::Session;
use super::wire::{Answer, Cipher, HANDSHAKE_NUMBER, Header, Id, Offer, TAG_BYTES};

/// Bytes of the first message, of any handshake.
pub const OFFER_BYTES: usize = message_bytes(Offer::LEN);

/// Bytes of the second message, of any handshake.
pub const ANSWER_BYTES: usize = message_bytes(Answer::LEN);

/// Whoever forges the sender's address of an offer must not gain by it.
const _: () = assert!(ANSWER_BYTES <= OFFER_BYTES);

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"gateway tunnel 1";
const EPHEMERAL_BYTES: usize = 32;

const fn message_bytes(payload: usize) -> usize {
    Header::LEN + EPHEMERAL_BYTES + payload + TAG_BYTES
}

/// Has sent an offer and waits for the answer.
pub struct Initiator {
    noise: HandshakeState,
    id: Id,
}

/// Has an offer that the right key made, and can answer it.
pub struct Responder {
    noise: HandshakeState,
    peer_id: Id,
}

/// Not a message of this handshake: another key, another version, altered, cut or lengthened. To be passed over in silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAuthentic;

impl Initiator {
    /// The offer's id must be new. Returns the datagram to be sent, as often as necessary.
    #[must_use]
    pub fn new(key: &Key, offer: &Offer, random: &mut Random) -> (Self, [u8; OFFER_BYTES]) {
        let mut noise = noise(key, random, |builder| builder.build_initiator());
        let message = write(&mut noise, key.id(), &offer.emit());
        (Self { noise, id: offer.id }, message)
    }

    /// That of the offer.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Takes the answer. After an error it can be called again with the next datagram, after a success no more.
    ///
    /// # Errors
    /// When it is not the answer to our offer.
    pub fn finish(&mut self, now: u64, datagram: &[u8]) -> Result<(Answer, Session), NotAuthentic> {
        let answer = Answer::parse(&read(&mut self.noise, self.id, datagram)?);
        let [sending, receiving] = ratchets(&mut self.noise, answer.cipher);
        Ok((answer, Session::new(now, [self.id, answer.id], [sending, receiving])))
    }
}

/// Takes an offer, if `key` made it. Costs no Diffie-Hellman.
///
/// # Errors
/// When it is not an offer under this key.
pub fn respond(key: &Key, datagram: &[u8], random: &mut Random) -> Result<(Offer, Responder), NotAuthentic> {
    let mut noise = noise(key, random, |builder| builder.build_responder());
    let offer = Offer::parse(&read(&mut noise, key.id(), datagram)?).map_err(|_malformed| NotAuthentic)?;
    Ok((offer, Responder { noise, peer_id: offer.id }))
}

impl Responder {
    /// Makes the answer, whose id must be new, and the session. Costs two Diffie-Hellman.
    #[must_use]
    pub fn answer(mut self, now: u64, answer: &Answer) -> ([u8; ANSWER_BYTES], Session) {
        let message = write(&mut self.noise, self.peer_id, &answer.emit());
        let [receiving, sending] = ratchets(&mut self.noise, answer.cipher);
        (message, Session::new(now, [answer.id, self.peer_id], [sending, receiving]))
    }
}

fn noise(
    key: &Key,
    random: &mut Random,
    build: impl FnOnce(Builder<'_>) -> Result<HandshakeState, snow::Error>,
) -> HandshakeState {
    let params: NoiseParams = PATTERN.parse().expect("snow knows the pattern");
    let resolver = FallbackResolver::new(Box::new(Seeded::new(random)), Box::new(DefaultResolver));
    Builder::with_resolver(params, Box::new(resolver))
        .prologue(PROLOGUE)
        .and_then(|builder| builder.psk(0, key.psk()))
        .and_then(build)
        .expect("each is set once, and the features of snow are those of the pattern")
}

/// Header, then what Noise makes of the payload.
fn write<const LEN: usize>(noise: &mut HandshakeState, to: Id, payload: &[u8]) -> [u8; LEN] {
    let mut datagram = [0; LEN];
    let (head, message) = datagram.split_at_mut(Header::LEN);
    head.copy_from_slice(&Header { id: to, number: HANDSHAKE_NUMBER }.emit());
    let written = noise.write_message(payload, message).expect("it is our turn and there is room");
    assert_eq!(written, message.len(), "a message has one length");
    datagram
}

/// The payload of a datagram that has the right length and is for `id`.
fn read<const LEN: usize>(noise: &mut HandshakeState, id: Id, datagram: &[u8]) -> Result<[u8; LEN], NotAuthentic> {
    let header = Header::parse(datagram).map_err(|_too_short| NotAuthentic)?;
    if header != (Header { id, number: HANDSHAKE_NUMBER }) || datagram.len() != message_bytes(LEN) {
        return Err(NotAuthentic);
    }
    let mut payload = [0; LEN];
    noise.read_message(&datagram[Header::LEN..], &mut payload).map_err(|_error| NotAuthentic)?;
    Ok(payload)
}

/// From the initiator to the responder, and back.
fn ratchets(noise: &mut HandshakeState, cipher: Cipher) -> [Ratchet; 2] {
    let (mut forth, mut back) = noise.dangerously_get_raw_split();
    let transcript = noise.get_handshake_hash();
    let ratchets = [Ratchet::new(cipher, transcript, &forth), Ratchet::new(cipher, transcript, &back)];
    forth.zeroize();
    back.zeroize();
    ratchets
}

/// Gives one handshake its randomness, and nothing else.
struct Seeded(Zeroizing<[u8; 32]>);

impl Seeded {
    fn new(random: &mut Random) -> Self {
        Self(Zeroizing::new(random.draw()))
    }
}

impl CryptoResolver for Seeded {
    /// `snow` asks once for each handshake.
    fn resolve_rng(&self) -> Option<Box<dyn snow::types::Random>> {
        Some(Box::new(Random::new(*self.0)))
    }

    fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn snow::types::Dh>> {
        None
    }

    fn resolve_hash(&self, _: &HashChoice) -> Option<Box<dyn snow::types::Hash>> {
        None
    }

    fn resolve_cipher(&self, _: &CipherChoice) -> Option<Box<dyn snow::types::Cipher>> {
        None
    }
}

impl snow::types::Random for Random {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), snow::Error> {
        self.fill(out);
        Ok(())
    }
}

impl std::fmt::Debug for Initiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Initiator").field("id", &self.id).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Responder").field("peer_id", &self.peer_id).finish_non_exhaustive()
    }
}

impl std::fmt::Display for NotAuthentic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not a message of this handshake")
    }
}

impl std::error::Error for NotAuthentic {}

#[cfg(test)]
mod tests {
    use super::super::wire::ServiceName;
    use super::*;

    #[test]
    fn both_ends_learn_what_the_other_says_and_can_talk() {
        for (has_aes, cipher) in [(true, Cipher::Aes256Gcm), (false, Cipher::ChaCha20Poly1305)] {
            let key = Key::from_secret(b"secret");
            let offer = offer(has_aes);
            let (mut initiator, message) = Initiator::new(&key, &offer, &mut Random::new([1; 32]));
            let (heard, responder) = respond(&key, &message, &mut Random::new([2; 32])).expect("the same key");
            assert_eq!(heard, offer);
            let answer = answer(Cipher::for_both(heard.has_aes, true));
            let (message, mut theirs) = responder.answer(0, &answer);
            let (heard, mut ours) = initiator.finish(0, &message).expect("it is the answer");
            assert_eq!((heard, heard.cipher), (answer, cipher));
            carry(&mut ours, &mut theirs, b"there");
            carry(&mut theirs, &mut ours, b"and back");
        }
    }

    #[test]
    fn a_wrong_answer_does_not_spoil_the_right_one() {
        let key = Key::from_secret(b"secret");
        let (mut initiator, message) = Initiator::new(&key, &offer(true), &mut Random::new([1; 32]));
        let (_, responder) = respond(&key, &message, &mut Random::new([2; 32])).expect("the same key");
        let (message, mut theirs) = responder.answer(0, &answer(Cipher::Aes256Gcm));
        for at in 0..ANSWER_BYTES {
            let mut wrong = message;
            wrong[at] ^= 0x80;
            assert!(initiator.finish(0, &wrong).is_err(), "byte {at}");
        }
        let (_, mut ours) = initiator.finish(0, &message).expect("it is the answer");
        carry(&mut ours, &mut theirs, b"there");
        assert!(initiator.finish(0, &message).is_err(), "once only");
    }

    #[test]
    fn the_same_random_bytes_make_the_same_handshake() {
        let key = Key::from_secret(b"secret");
        let first = |seed| Initiator::new(&key, &offer(true), &mut Random::new([seed; 32])).1;
        assert_eq!(first(1), first(1));
        assert_ne!(first(1)[Header::LEN..][..EPHEMERAL_BYTES], first(2)[Header::LEN..][..EPHEMERAL_BYTES]);
    }

    #[test]
    fn two_handshakes_of_one_generator_have_different_ephemeral_keys() {
        let (key, mut random) = (Key::from_secret(b"secret"), Random::new([1; 32]));
        let first = Initiator::new(&key, &offer(true), &mut random).1;
        let second = Initiator::new(&key, &offer(true), &mut random).1;
        assert_ne!(first[Header::LEN..][..EPHEMERAL_BYTES], second[Header::LEN..][..EPHEMERAL_BYTES]);
    }

    fn carry(from: &mut Session, to: &mut Session, words: &[u8]) {
        let mut out = Vec::new();
        let start = from.begin_packet(&mut out);
        out.extend_from_slice(words);
        assert_eq!(from.finish_packet(&mut out, start), Ok(1));
        assert!(!out.windows(words.len()).any(|bytes| bytes == words), "encrypted");
        let opened = to.open(0, &mut out).expect("authentic");
        assert_eq!((opened.number, opened.is_highest, &*opened.plaintext), (1, true, words));
    }

    fn offer(has_aes: bool) -> Offer {
        Offer { id: Id([1; 6]), has_aes, service: ServiceName::new("game").expect("a name") }
    }

    fn answer(cipher: Cipher) -> Answer {
        Answer { id: Id([2; 6]), cipher, wants_addresses: true, tcp_ports: 2, udp_ports: 1 }
    }
}
