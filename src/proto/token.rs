//! The encrypted line, as `openssl enc -aes-256-cbc -salt -a` makes it:
//! `base64("Salted__" | salt 8 | AES-256-CBC(key, iv, target))`, key and IV by [`super::evp_bytes_to_key`].
//!
//! Opening does the same work for every well-formed token: all secrets under both digests, and the grammar over whatever came
//! out. One error says that it did not open, and nothing says why.

use aes::Aes256;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq, ConstantTimeLess};
use zeroize::Zeroizing;

use super::evp_bytes_to_key::{self, KEY_BYTES, KeyAndIv, SALT_BYTES};
use super::target::Target;

const MAGIC: &[u8; 8] = b"Salted__";
const BLOCK_BYTES: usize = 16;

/// The hash of the key derivation. OpenSSL before 1.1 and the ancestors use MD5, later ones SHA-256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Digest {
    #[default]
    Sha256,
    Md5,
}

/// A passphrase. Wiped when dropped, and never shown.
pub struct Secret(Zeroizing<Vec<u8>>);

/// The secrets in force: the first encrypts, all decrypt, so that they can be changed while players hold old tokens.
#[derive(Debug)]
pub struct Keyring(Vec<Secret>);

/// An empty passphrase, or none at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSecret;

/// The token does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadToken;

impl Secret {
    /// # Errors
    /// When it is empty.
    pub fn new(bytes: Vec<u8>) -> Result<Self, NoSecret> {
        let bytes = Zeroizing::new(bytes);
        if bytes.is_empty() { Err(NoSecret) } else { Ok(Self(bytes)) }
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn derive(&self, digest: Digest, salt: &[u8; SALT_BYTES]) -> KeyAndIv {
        match digest {
            Digest::Md5 => evp_bytes_to_key::derive::<md5::Md5>(&self.0, salt),
            Digest::Sha256 => evp_bytes_to_key::derive::<sha2::Sha256>(&self.0, salt),
        }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Keyring {
    /// Opens nothing: for those who are sent no tokens.
    #[must_use]
    pub fn empty() -> Self {
        Self(Vec::new())
    }

    /// # Errors
    /// When there is no secret.
    pub fn new(secrets: Vec<Secret>) -> Result<Self, NoSecret> {
        if secrets.is_empty() { Err(NoSecret) } else { Ok(Self(secrets)) }
    }

    #[must_use]
    pub fn secrets(&self) -> &[Secret] {
        &self.0
    }

    #[must_use]
    pub fn into_secrets(self) -> Vec<Secret> {
        self.0
    }

    /// Reads the target out of a token, which is one line without its newline.
    ///
    /// # Errors
    /// One for everything: not canonical base64, wrong length, wrong magic, wrong padding, not a target.
    pub fn open(&self, token: &[u8]) -> Result<Target, BadToken> {
        let sealed = STANDARD.decode(token).map_err(|_not_base64| BadToken)?;
        let (head, ciphertext) = sealed.split_at_checked(MAGIC.len() + SALT_BYTES).ok_or(BadToken)?;
        let (magic, salt) = head.split_first_chunk::<8>().ok_or(BadToken)?;
        let salt: &[u8; SALT_BYTES] = salt.try_into().map_err(|_too_short| BadToken)?;
        if magic != MAGIC || ciphertext.is_empty() || !ciphertext.len().is_multiple_of(BLOCK_BYTES) {
            return Err(BadToken);
        }
        let mut opened = Err(BadToken);
        for secret in &self.0 {
            for digest in [Digest::Sha256, Digest::Md5] {
                let plaintext = decrypt(&secret.derive(digest, salt), ciphertext);
                let (padded, bytes) = unpad(&plaintext);
                let target = Target::parse(&plaintext[..bytes]);
                if let (true, Ok(target)) = (bool::from(padded), target) {
                    opened = Ok(target);
                }
            }
        }
        opened
    }

    /// Makes a token for `target` with the first secret. `salt` must be new for each token.
    #[must_use]
    pub fn seal(&self, target: &[u8], salt: [u8; SALT_BYTES], digest: Digest) -> String {
        let derived = self.0[0].derive(digest, &salt); // a keyring is never empty
        let (key, iv) = key_and_iv(&derived);
        let ciphertext = cbc::Encryptor::<Aes256>::new(key, iv).encrypt_padded_vec::<Pkcs7>(target);
        STANDARD.encode([&MAGIC[..], &salt, &ciphertext].concat())
    }
}

type Key = cbc::cipher::Key<cbc::Decryptor<Aes256>>;
type Iv = cbc::cipher::Iv<cbc::Decryptor<Aes256>>;

fn key_and_iv(derived: &KeyAndIv) -> (&Key, &Iv) {
    let (key, iv) = derived.split_at(KEY_BYTES);
    (key.try_into().expect("32 bytes are a key"), iv.try_into().expect("16 bytes are an IV"))
}

fn decrypt(derived: &KeyAndIv, ciphertext: &[u8]) -> Zeroizing<Vec<u8>> {
    let (key, iv) = key_and_iv(derived);
    let mut plaintext = Zeroizing::new(ciphertext.to_vec());
    let (blocks, _no_rest) = cbc::cipher::Block::<cbc::Decryptor<Aes256>>::slice_as_chunks_mut(&mut plaintext);
    cbc::Decryptor::<Aes256>::new(key, iv).decrypt_blocks(blocks);
    plaintext
}

/// Whether the PKCS#7 padding (RFC 5652, section 6.3) is right, and how many bytes stand before it, found without a branch on
/// the plaintext. With wrong padding all bytes count.
fn unpad(plaintext: &[u8]) -> (Choice, usize) {
    let last = *plaintext.last().unwrap_or(&0);
    let mut padded = last.ct_lt(&(BLOCK_BYTES as u8 + 1)) & !last.ct_eq(&0);
    for (distance, byte) in plaintext.iter().rev().take(BLOCK_BYTES).enumerate() {
        let outside = !(distance as u8).ct_lt(&last);
        padded &= outside | byte.ct_eq(&last);
    }
    let cut = u64::conditional_select(&0, &u64::from(last), padded);
    (padded, plaintext.len().saturating_sub(cut as usize))
}

impl std::fmt::Display for NoSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the secret is empty")
    }
}

impl std::error::Error for NoSecret {}

impl std::fmt::Display for BadToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the token does not open")
    }
}

impl std::error::Error for BadToken {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_ancestors_tokens_open() {
        let keys = keyring(&["p0S8rX680*48"]);
        let token = b"U2FsdGVkX19KIJ9OQJKT/yHGMrS+5SsBAAjetomptQ0=";
        assert_eq!(keys.open(token).map(|target| target.to_string()).as_deref(), Ok("127.0.0.1:62863"));
        let token = b"U2FsdGVkX1+JXKDI/2wFpglXX2zzASqnKhqAiM6GvoI=";
        assert_eq!(keys.open(token).map(|target| target.to_string()).as_deref(), Ok("127.0.0.1:10010"));
    }

    #[test]
    fn every_secret_decrypts_and_the_first_encrypts() {
        let (old, new, both) = (keyring(&["old"]), keyring(&["new"]), keyring(&["new", "old"]));
        for digest in [Digest::Md5, Digest::Sha256] {
            let token = old.seal(b"10.0.0.1:80", [1; 8], digest);
            assert!(both.open(token.as_bytes()).is_ok());
            assert!(new.open(token.as_bytes()).is_err());
            assert!(new.open(both.seal(b"10.0.0.1:80", [2; 8], digest).as_bytes()).is_ok());
        }
    }

    #[test]
    fn a_token_has_one_spelling() {
        let keys = keyring(&["secret"]);
        let token = keys.seal(b"10.0.0.1:80", [3; 8], Digest::Sha256);
        assert!(keys.open(token.as_bytes()).is_ok());
        let unpadded = token.trim_end_matches('=').to_owned();
        let spaced = format!(" {token}");
        let url_safe =
            keys.seal(b"10.0.0.1:80", *b"\xff\xfe\xfb\xff\xfe\xfb\xff\xfe", Digest::Sha256).replace('/', "_");
        for other in [unpadded, spaced, url_safe, format!("{token}="), format!("{token}\r"), String::new()] {
            assert_eq!(keys.open(other.as_bytes()), Err(BadToken), "{other:?}");
        }
    }

    #[test]
    fn only_pkcs7_padding_is_padding() {
        for (tail, padded) in [
            (&[1][..], true),
            (&[2, 2], true),
            (&[1, 2], false),
            (&[0], false),
            (&[17], false),
            (&[16; 16], true),
            (&[16; 15], false),
            (&[255], false),
        ] {
            let mut plaintext = vec![0x41; 32 - tail.len()];
            plaintext.extend_from_slice(tail);
            let (found, bytes) = unpad(&plaintext);
            assert_eq!(bool::from(found), padded, "{tail:?}");
            assert_eq!(bytes, if padded { 32 - usize::from(tail[tail.len() - 1]) } else { 32 }, "{tail:?}");
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        assert!(!format!("{:?}", keyring(&["hunter2"])).contains("hunter2"));
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(salt: [u8; 8], ip: [u8; 4], port: u16, md5: bool) {
            let keys = keyring(&["secret"]);
            let target = format!("{}:{port}", std::net::Ipv4Addr::from(ip));
            let token = keys.seal(target.as_bytes(), salt, if md5 { Digest::Md5 } else { Digest::Sha256 });
            prop_assert_eq!(keys.open(token.as_bytes()).map(|target| target.to_string()), Ok(target));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            prop_assert_eq!(keyring(&["secret"]).open(&bytes), Err(BadToken));
            let sealed = STANDARD.encode([&MAGIC[..], &bytes].concat());
            prop_assert_eq!(keyring(&["secret"]).open(sealed.as_bytes()), Err(BadToken));
        }
    }

    fn keyring(secrets: &[&str]) -> Keyring {
        let secret = |text: &&str| Secret::new(text.as_bytes().to_vec()).expect("not empty");
        Keyring::new(secrets.iter().map(secret).collect()).expect("not empty")
    }
}
