//! OpenSSL's `EVP_BytesToKey` with one iteration: the way `openssl enc` makes key and IV from a passphrase.
//!
//! `D(1) = H(passphrase | salt)`, `D(n) = H(D(n-1) | passphrase | salt)`; key and IV are cut from `D(1) | D(2) | ...`.
//! Source: EVP_BytesToKey(3), "KEY DERIVATION ALGORITHM". No crate of that name exists.

use md5::digest::{Digest, Output};
use zeroize::{Zeroize, Zeroizing};

pub const KEY_BYTES: usize = 32;
pub const IV_BYTES: usize = 16;
pub const SALT_BYTES: usize = 8;

/// Key and IV of AES-256-CBC, wiped when dropped.
pub type KeyAndIv = Zeroizing<[u8; KEY_BYTES + IV_BYTES]>;

#[must_use]
pub fn derive<H: Digest>(passphrase: &[u8], salt: &[u8; SALT_BYTES]) -> KeyAndIv {
    let mut derived = KeyAndIv::new([0; KEY_BYTES + IV_BYTES]);
    let mut block = Output::<H>::default();
    let mut first = true;
    for part in derived.chunks_mut(<H as Digest>::output_size()) {
        let mut hash = H::new();
        if !first {
            hash.update(&block);
        }
        hash.update(passphrase);
        hash.update(salt);
        hash.finalize_into(&mut block);
        part.copy_from_slice(&block[..part.len()]);
        first = false;
    }
    block.as_mut_slice().zeroize();
    derived
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl enc -aes-256-cbc -P -pass pass:test -S 0102030405060708 -md md5`, and the same with sha256.
    #[test]
    fn openssl_derives_the_same() {
        let salt = [1, 2, 3, 4, 5, 6, 7, 8];
        let md5 = "D5E2AD1215FCA1925CA04478222A1851925ADB7B9BC2DC7B1E887EE1D41AFB38424171E215213187B1D979AE24E2AB83";
        let sha256 = "E66F4D594AFE894039E14D59521A8A7FA3D5821AF0DC16B7209603A1706E3E6AC61A274269CCFAA27F4B8E18F172A9DF";
        assert_eq!(hex(&*derive::<md5::Md5>(b"test", &salt)), md5);
        assert_eq!(hex(&*derive::<sha2::Sha256>(b"test", &salt)), sha256);
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02X}")).collect()
    }
}
