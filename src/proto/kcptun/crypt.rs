//! The outermost layer of a packet: a random nonce, a checksum, and a cipher over both and all that follows.
//! Source: `crypt.go` and `sess.go` of xtaci/kcp-go.
//!
//! ```text
//! nonce 16 | CRC-32 (IEEE) of what follows u32, little-endian | payload
//! ```
//!
//! The nonce is enciphered as the first block, under an initial vector that never changes. Whoever knows the key can forge
//! everything; who does not can still change bits where he likes, as the checksum is no proof, and repeat what was sent.
//!
//! `none` has nonce and checksum and no cipher; `null`, which is younger, has none of the three.

use std::sync::Arc;

use aes::cipher::consts::U16;
use aes::cipher::{BlockCipherEncrypt, InnerIvInit, KeyInit, KeyIvInit, StreamCipher};
use aes::{Aes128Enc, Aes192Enc, Aes256Enc, Block};
use salsa20::Salsa20;
use sha1::Sha1;
use zeroize::Zeroizing;

const NONCE_BYTES: usize = 16;
const HEADER_BYTES: usize = NONCE_BYTES + 4;

/// The longest packet, in bytes: what the peer has room for, and as far as the table of `xor` reaches.
pub const PACKET_BYTES_MAX: usize = 1500;

/// How the key comes from the password: PBKDF2 with HMAC-SHA-1.
const KEY_SALT: &[u8] = b"kcp-go";
const KEY_ROUNDS: u32 = 4096;
const KEY_BYTES: usize = 32;

/// How the table of `xor` comes from the key.
const XOR_SALT: &[u8] = b"sH3CIVoF#rWLtJo6";
const XOR_ROUNDS: u32 = 32;

const INITIAL_VECTOR: [u8; 16] = [167, 115, 79, 156, 18, 172, 27, 1, 164, 21, 242, 193, 252, 120, 230, 107];

/// What `--crypt` of kcptun can say, as far as we follow. Without, it says `aes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    Aes,
    Aes128,
    Aes192,
    Salsa20,
    Xor,
    None,
    Null,
}

const NAMES: [(Cipher, &str); 7] = [
    (Cipher::Aes, "aes"),
    (Cipher::Aes128, "aes-128"),
    (Cipher::Aes192, "aes-192"),
    (Cipher::Salsa20, "salsa20"),
    (Cipher::Xor, "xor"),
    (Cipher::None, "none"),
    (Cipher::Null, "null"),
];

impl Cipher {
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(cipher, _)| *cipher)
    }

    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(_, name)| *name)
    }
}

/// A cipher with a key made of a password. Clones share it.
#[derive(Clone)]
pub struct Key(Arc<Keyed>);

enum Keyed {
    Aes(Aes256Enc),
    Aes128(Aes128Enc),
    Aes192(Aes192Enc),
    Salsa20(Zeroizing<[u8; KEY_BYTES]>),
    Xor(Zeroizing<Box<[u8]>>),
    None,
    Null,
}

impl Key {
    /// Takes some milliseconds, for making a key of the password.
    #[must_use]
    pub fn new(cipher: Cipher, password: &[u8]) -> Self {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        pbkdf2::pbkdf2_hmac::<Sha1>(password, KEY_SALT, KEY_ROUNDS, &mut *key);
        Self(Arc::new(match cipher {
            Cipher::Aes => Keyed::Aes(Aes256Enc::new((&*key).into())),
            Cipher::Aes128 => Keyed::Aes128(Aes128Enc::new_from_slice(&key[..16]).expect("16 bytes")),
            Cipher::Aes192 => Keyed::Aes192(Aes192Enc::new_from_slice(&key[..24]).expect("24 bytes")),
            Cipher::Salsa20 => Keyed::Salsa20(key),
            Cipher::Xor => {
                let mut table = Zeroizing::new(vec![0; PACKET_BYTES_MAX].into_boxed_slice());
                pbkdf2::pbkdf2_hmac::<Sha1>(&*key, XOR_SALT, XOR_ROUNDS, &mut table);
                Keyed::Xor(table)
            }
            Cipher::None => Keyed::None,
            Cipher::Null => Keyed::Null,
        }))
    }

    /// Bytes that a packet needs in front of its payload.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        if matches!(*self.0, Keyed::Null) { 0 } else { HEADER_BYTES }
    }

    /// Seals a packet whose payload begins behind the room for the header.
    pub fn seal(&self, nonce: [u8; NONCE_BYTES], packet: &mut [u8]) {
        if matches!(*self.0, Keyed::Null) {
            return;
        }
        let (header, payload) = packet.split_at_mut(HEADER_BYTES);
        header[..NONCE_BYTES].copy_from_slice(&nonce);
        header[NONCE_BYTES..].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
        self.encrypt(packet);
    }

    /// The payload. `None` when the packet is too short, too long, or its checksum wrong.
    pub fn open<'a>(&self, packet: &'a mut [u8]) -> Option<&'a mut [u8]> {
        if packet.len() > PACKET_BYTES_MAX {
            return None;
        }
        if matches!(*self.0, Keyed::Null) {
            return Some(packet);
        }
        self.decrypt(packet);
        let (header, payload) = packet.split_at_mut_checked(HEADER_BYTES)?;
        (header[NONCE_BYTES..] == crc32fast::hash(payload).to_le_bytes()).then_some(payload)
    }

    fn encrypt(&self, packet: &mut [u8]) {
        match &*self.0 {
            Keyed::Aes(aes) => encrypt_by_blocks(aes, packet),
            Keyed::Aes128(aes) => encrypt_by_blocks(aes, packet),
            Keyed::Aes192(aes) => encrypt_by_blocks(aes, packet),
            Keyed::Salsa20(key) => salsa20(key, packet),
            Keyed::Xor(table) => xor(table, packet),
            Keyed::None | Keyed::Null => {}
        }
    }

    fn decrypt(&self, packet: &mut [u8]) {
        match &*self.0 {
            Keyed::Aes(aes) => decrypt_by_blocks(aes, packet),
            Keyed::Aes128(aes) => decrypt_by_blocks(aes, packet),
            Keyed::Aes192(aes) => decrypt_by_blocks(aes, packet),
            Keyed::Salsa20(key) => salsa20(key, packet),
            Keyed::Xor(table) => xor(table, packet),
            Keyed::None | Keyed::Null => {}
        }
    }
}

fn encrypt_by_blocks(aes: &impl BlockCipherEncrypt<BlockSize = U16>, packet: &mut [u8]) {
    cfb_mode::Encryptor::inner_iv_init(aes, &INITIAL_VECTOR.into()).encrypt(packet);
}

fn decrypt_by_blocks(aes: &impl BlockCipherEncrypt<BlockSize = U16>, packet: &mut [u8]) {
    cfb_mode::Decryptor::inner_iv_init(aes, &INITIAL_VECTOR.into()).decrypt(packet);
}

/// The first 8 bytes stay as they are and are the cipher's nonce.
fn salsa20(key: &[u8; KEY_BYTES], packet: &mut [u8]) {
    if let Some((nonce, rest)) = packet.split_first_chunk_mut::<8>() {
        Salsa20::new(key.into(), (&*nonce).into()).apply_keystream(rest);
    }
}

fn xor(table: &[u8], packet: &mut [u8]) {
    packet.iter_mut().zip(table).for_each(|(byte, mask)| *byte ^= mask);
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Random bytes from a seed: AES in counter mode. The same seed gives the same bytes.
pub struct Random {
    aes: Aes256Enc,
    count: u128,
}

impl Random {
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self { aes: Aes256Enc::new(&seed.into()), count: 0 }
    }

    pub fn nonce(&mut self) -> [u8; NONCE_BYTES] {
        let mut block = Block::from(self.count.to_le_bytes());
        self.count += 1;
        self.aes.encrypt_block(&mut block);
        block.into()
    }

    pub fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        seed[..16].copy_from_slice(&self.nonce());
        seed[16..].copy_from_slice(&self.nonce());
        seed
    }

    pub fn word(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.nonce();
        u32::from_le_bytes([a, b, c, d])
    }
}

impl std::fmt::Debug for Random {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Random(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    fn sealed(key: &Key, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; key.header_bytes()];
        packet.extend_from_slice(payload);
        key.seal(Random::new([7; 32]).nonce(), &mut packet);
        packet
    }

    #[test]
    fn what_is_sealed_opens_again_with_every_cipher_and_every_length() {
        for (cipher, name) in NAMES {
            let key = Key::new(cipher, b"it's a secrect");
            for length in (0..70).chain([PACKET_BYTES_MAX - HEADER_BYTES]) {
                let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
                let mut packet = sealed(&key, &payload);
                let shows = length > 0 && packet.ends_with(&payload);
                assert_eq!(shows, length > 0 && matches!(cipher, Cipher::None | Cipher::Null), "{name} {length}");
                assert_eq!(key.open(&mut packet), Some(&mut payload.clone()[..]), "{name} {length}");
            }
        }
    }

    #[test]
    fn a_changed_bit_or_another_password_is_found_out() {
        for (cipher, name) in NAMES.into_iter().filter(|(cipher, _)| *cipher != Cipher::Null) {
            let key = Key::new(cipher, b"it's a secrect");
            let packet = sealed(&key, &[1; 40]);
            for bit in 8 * NONCE_BYTES..8 * packet.len() {
                let mut changed = packet.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(key.open(&mut changed), None, "{name} {bit}");
            }
            let opened = Key::new(cipher, b"another").open(&mut packet.clone()).is_some();
            assert_eq!(opened, cipher == Cipher::None, "{name}");
        }
    }

    #[test]
    fn nonces_differ_and_come_from_the_seed_alone() {
        let [mut one, mut same, mut other] = [[1; 32], [1; 32], [2; 32]].map(Random::new);
        let (first, second) = (one.nonce(), one.nonce());
        assert_ne!(first, second);
        assert_eq!([same.nonce(), same.nonce()], [first, second]);
        assert_ne!(other.nonce(), first);
    }

    #[test]
    fn ciphers_are_found_by_the_names_of_kcptun() {
        assert_eq!(Cipher::by_name("aes-192"), Some(Cipher::Aes192));
        assert_eq!(Cipher::by_name("tea"), None);
        assert!(Cipher::names().all(|name| Cipher::by_name(name).is_some()));
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), cipher in 0..NAMES.len()) {
            static KEYS: LazyLock<Vec<Key>> =
                LazyLock::new(|| NAMES.iter().map(|(cipher, _)| Key::new(*cipher, b"")).collect());
            if let Some(payload) = KEYS[cipher].open(&mut bytes.clone()) {
                prop_assert!(payload.len() + KEYS[cipher].header_bytes() == bytes.len());
            }
        }
    }
}
