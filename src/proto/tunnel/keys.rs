//! Where keys come from: all by HKDF-SHA-256 (RFC 5869), each with a label of its own.
//!
//! ```text
//! secret -> psk, id of the key                              [`Key`], once
//! split of the handshake -> secret of epoch 0               [`Ratchet`], one for each direction
//! secret of epoch n -> key and IV of epoch n; secret of epoch n + 1
//! ```
//!
//! A ratchet holds the secret of the epoch to come and no other, so the keys of the past cannot be derived again.
//! Absent: a slow hash against guessing. A secret must be strong, as `gateway secret` makes it: whoever has recorded a
//! handshake can try secrets at leisure.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::packet_key::PacketKey;
use super::wire::{Cipher, Id};

/// Comes before every label, so that the same secret serves other protocols without a key in common.
const PROTOCOL: &str = "gateway tunnel 1: ";

/// What both ends know before they speak. Wiped when dropped, and never shown.
pub struct Key {
    id: Id,
    psk: Zeroizing<[u8; 32]>,
}

/// The keys of one direction, one epoch after the other.
pub(super) struct Ratchet {
    cipher: Cipher,
    /// Of the epoch that begins next.
    secret: Zeroizing<[u8; 32]>,
}

impl Key {
    #[must_use]
    pub fn from_secret(secret: &[u8]) -> Self {
        let extracted = extract(PROTOCOL.as_bytes(), secret);
        let (mut id, mut psk) = (Id([0; 6]), Zeroizing::new([0; 32]));
        expand(&extracted, "id of the key", &mut id.0);
        expand(&extracted, "psk", &mut *psk);
        Self { id, psk }
    }

    /// Tells this key from others on the wire, and nothing about it.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    pub(super) fn psk(&self) -> &[u8; 32] {
        &self.psk
    }
}

impl Ratchet {
    /// `split` is the direction's key from the handshake whose hash is `transcript`.
    pub fn new(cipher: Cipher, transcript: &[u8], split: &[u8; 32]) -> Self {
        Self { cipher, secret: extract(transcript, split) }
    }

    /// The key of the epoch that begins. What it came from is gone.
    pub fn advance(&mut self) -> Box<PacketKey> {
        let label = match self.cipher {
            Cipher::Aes256Gcm => "key for AES-256-GCM",
            Cipher::ChaCha20Poly1305 => "key for ChaCha20-Poly1305",
        };
        let (mut key, mut iv, mut next) = (Zeroizing::new([0; 32]), [0; 12], Zeroizing::new([0; 32]));
        expand(&self.secret, label, &mut *key);
        expand(&self.secret, "iv", &mut iv);
        expand(&self.secret, "next epoch", &mut *next);
        self.secret = next;
        Box::new(PacketKey::new(self.cipher, &key, iv))
    }
}

fn extract(salt: &[u8], material: &[u8]) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(Hkdf::<Sha256>::extract(Some(salt), material).0.into())
}

/// Fills `out`, which has at most 32 bytes here, with what follows from a secret for this purpose.
pub(super) fn expand(secret: &[u8; 32], label: &str, out: &mut [u8]) {
    let hkdf = Hkdf::<Sha256>::from_prk(secret).expect("32 bytes are as long as the hash");
    hkdf.expand_multi_info(&[PROTOCOL.as_bytes(), label.as_bytes()], out).expect("far below 255 blocks");
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl std::fmt::Debug for Ratchet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ratchet(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_one_key_and_its_id_tells_it_from_others() {
        let key = |secret: &[u8]| Key::from_secret(secret);
        assert_eq!((key(b"one").id(), key(b"one").psk()), (key(b"one").id(), key(b"one").psk()));
        for other in [&b"two"[..], b"one ", b"one\0", b"on", b""] {
            assert_ne!(key(b"one").id(), key(other).id(), "{other:?}");
            assert_ne!(key(b"one").psk(), key(other).psk(), "{other:?}");
        }
    }

    #[test]
    fn neither_keys_nor_ratchets_show_what_they_hold() {
        let ratchet = Ratchet::new(Cipher::Aes256Gcm, &[1], &[2; 32]);
        assert_eq!(format!("{:?} {ratchet:?}", Key::from_secret(b"one")), "Key(..) Ratchet(..)");
    }

    #[test]
    fn every_epoch_every_direction_and_every_handshake_has_a_key_of_its_own() {
        let mut tags = std::collections::BTreeSet::new();
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            for (transcript, split) in [([1], [1; 32]), ([1], [2; 32]), ([2], [1; 32])] {
                let mut ratchet = Ratchet::new(cipher, &transcript, &split);
                (0..100).for_each(|_| assert!(tags.insert(ratchet.advance().seal(0, &[0; 12], &mut [0; 32]))));
            }
        }
    }
}
