//! `gateway secret`: a passphrase nobody guesses.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::Failure;

/// 192 bits: whoever holds a token can try passphrases as fast as he can hash.
const SECRET_BYTES: usize = 24;

pub(super) fn run() -> Result<(), Failure> {
    super::print(random_secret()?)
}

/// Letters, digits, `-` and `_`: safe in shells, files and environments.
pub(super) fn random_secret() -> Result<String, Failure> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(std::io::Error::from)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
