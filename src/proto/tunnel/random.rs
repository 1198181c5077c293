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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_bytes_again_and_another_seed_others() {
        let bytes = |seed| Random::new([seed; 32]).draw::<32>();
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
    }

    #[test]
    fn no_draw_repeats_an_earlier_one_or_tells_the_state() {
        let mut random = Random::new([7; 32]);
        let mut seen = std::collections::BTreeSet::from([[7; 32]]);
        for _ in 0..1_000 {
            assert!(seen.insert(random.draw()), "a draw repeats");
            assert!(seen.insert(*random.state), "a state was drawn");
        }
    }

    #[test]
    fn more_than_a_draw_is_filled_with_several() {
        let mut all = [0; 70];
        Random::new([3; 32]).fill(&mut all);
        let mut random = Random::new([3; 32]);
        assert_eq!((&all[..32], &all[32..64]), (&random.draw::<32>()[..], &random.draw::<32>()[..]));
        assert_eq!(all[64..], random.draw::<6>());
    }
}
