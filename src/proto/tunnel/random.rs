//! Random bytes from a seed: the same seed gives the same bytes, which lets a simulation be repeated.
//!
//! What has been drawn cannot be found out from the generator afterwards, since each draw puts a new state in the place of the
//! old one. So a memory that is read later does not tell the ephemeral keys of handshakes gone by. The seed itself must come
//! from the system, be new for each process, and be wiped by whoever brought it.

use zeroize::Zeroizing;

use super::keys::expand;

/// Draws are keys, ids and challenges.
const DRAW_BYTES_MAX: usize = 32;

pub struct Random {
    state: Zeroizing<[u8; 32]>,
}

impl Random {
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self { state: Zeroizing::new(seed) }
    }

    #[must_use]
    pub fn draw<const N: usize>(&mut self) -> [u8; N] {
        const { assert!(N <= DRAW_BYTES_MAX) };
        let mut drawn = [0; N];
        self.fill(&mut drawn);
        drawn
    }

    /// Every 32 bytes take a draw of their own.
    pub fn fill(&mut self, out: &mut [u8]) {
        for piece in out.chunks_mut(DRAW_BYTES_MAX) {
            expand(&self.state, "draw", piece);
            self.state = {
                let mut next = Zeroizing::new([0; 32]);
                expand(&self.state, "next draw", &mut *next);
                next
            };
        }
    }
}

impl std::fmt::Debug for Random {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Random(..)")
    }
}
