//! Encrypts and authenticates packets of one direction and one epoch, in place.
//!
//! The nonce is the IV with the packet's number added by XOR, as in TLS 1.3 (RFC 8446, section 5.3); what is authenticated
//! beside the ciphertext is the header. That no number is used twice is the caller's care.

use std::hint::black_box;

use ring::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroize;

use super::wire::{Cipher, Header, TAG_BYTES};

const _: () = assert!(TAG_BYTES == ring::aead::MAX_TAG_LEN);

pub(super) struct PacketKey {
    aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
}

/// The tag says that nobody who has the key made this.
pub(super) struct Forged;

impl PacketKey {
    pub fn new(cipher: Cipher, key: &[u8; 32], iv: [u8; NONCE_LEN]) -> Self {
        let algorithm = match cipher {
            Cipher::Aes256Gcm => &AES_256_GCM,
            Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        Self { aead: aead(algorithm, key), iv }
    }

    /// Encrypts `body` and returns its tag.
    pub fn seal(&self, number: u64, header: &[u8; Header::LEN], body: &mut [u8]) -> [u8; TAG_BYTES] {
        let sealed = self.aead.seal_in_place_separate_tag(self.nonce(number), Aad::from(header), body);
        let tag = sealed.expect("a packet is shorter than 64 GiB");
        tag.as_ref().try_into().expect("both ciphers have tags of 16 bytes")
    }

    /// Decrypts `body`, ciphertext and tag. What is forged is no longer what it was afterwards.
    pub fn open<'a>(
        &self,
        number: u64,
        header: &[u8; Header::LEN],
        body: &'a mut [u8],
    ) -> Result<&'a mut [u8], Forged> {
        self.aead.open_in_place(self.nonce(number), Aad::from(header), body).map_err(|_unspecified| Forged)
    }

    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

fn aead(algorithm: &'static Algorithm, key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(algorithm, key).expect("both ciphers have keys of 32 bytes"))
}

/// `ring` wipes nothing; so a key without meaning is written over the other. The box keeps it from having been moved.
impl Drop for PacketKey {
    fn drop(&mut self) {
        self.aead = aead(self.aead.algorithm(), &[0; 32]);
        black_box(&self.aead);
        self.iv.zeroize();
    }
}

impl std::fmt::Debug for PacketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PacketKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_iv_number_and_header_open_what_was_sealed() {
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            let key = PacketKey::new(cipher, &[1; 32], [2; 12]);
            let mut body = b"frames".to_vec();
            let tag = key.seal(3, &[4; 12], &mut body);
            body.extend_from_slice(&tag);
            let opens = |key: &PacketKey, number, header| {
                key.open(number, header, &mut body.clone()).is_ok_and(|plaintext| plaintext == b"frames")
            };
            assert!(opens(&key, 3, &[4; 12]));
            assert!(!opens(&key, 2, &[4; 12]));
            assert!(!opens(&key, 3, &[5; 12]));
            assert!(!opens(&PacketKey::new(cipher, &[0; 32], [2; 12]), 3, &[4; 12]));
            assert!(!opens(&PacketKey::new(cipher, &[1; 32], [0; 12]), 3, &[4; 12]));
        }
    }

    #[test]
    fn every_number_has_a_nonce_of_its_own() {
        let key = PacketKey::new(Cipher::Aes256Gcm, &[0; 32], [0xff; 12]);
        let nonce = |number| *key.nonce(number).as_ref();
        assert_eq!(nonce(0), [0xff; 12]);
        assert_eq!(nonce(0x0102_0304_0506), *b"\xff\xff\xff\xff\xff\xff\xfe\xfd\xfc\xfb\xfa\xf9");
    }
}
