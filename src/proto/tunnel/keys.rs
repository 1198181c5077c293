//! The secret that two peers share.

use zeroize::Zeroizing;

/// What only the two ends of a tunnel know.
#[derive(Clone)]
pub struct Secret(#[expect(dead_code, reason = "the handshake is still to come")] Zeroizing<Vec<u8>>);

impl Secret {
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}
