//! The birthday paradox: one side has many sockets behind a NAT that draws ports, the other guesses ports, and sooner than one
//! would think a guess is one of those.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::candidates::PORT_MIN;
use crate::proto::tunnel::random::Random;

/// Guesses of a round. With 256 sockets and all ports from 1024 on, 1,700 miss all of them in 1 of 1,000 rounds.
pub const GUESSES_MAX: usize = 1_700;

/// NATs of providers often give a customer a block of this many ports, aligned to it (RFC 6888 wants some limit; 512 to 2,048
/// are usual). Its ports come first; for a NAT without blocks they are as good as any others.
const BLOCK: u16 = 512;

/// Ports of one address, none twice.
#[derive(Debug)]
pub struct Guesses {
    target: SocketAddr,
    /// Of the blocks around what was observed, in the order in which they are still to be tried from the end.
    first: Vec<u16>,
    tried: BTreeSet<u16>,
    dice: Dice,
}

impl Guesses {
    /// `observed`: ports that the NAT has given for other destinations; the last one's address is the target.
    #[must_use]
    pub fn new(observed: &[SocketAddr], seed: [u8; 32]) -> Option<Self> {
        let target = *observed.last()?;
        let mut dice = Dice { random: Random::new(seed), drawn: Vec::new() };
        let blocks: BTreeSet<u16> = observed.iter().map(|address| address.port() / BLOCK).collect();
        let ports = blocks.into_iter().flat_map(|block| (0..BLOCK).map(move |port| block * BLOCK + port));
        let mut first: Vec<u16> = ports.filter(|port| *port >= PORT_MIN).collect();
        shuffle(&mut first, &mut dice);
        first.truncate(GUESSES_MAX);
        Some(Self { target, first, tried: BTreeSet::new(), dice })
    }

    #[must_use]
    pub fn has_more(&self) -> bool {
        self.tried.len() < GUESSES_MAX
    }

    fn draw(&mut self) -> u16 {
        loop {
            // At most GUESSES_MAX of 64,512 are taken, so a draw fails with 3 % at worst.
            let port = self.dice.roll();
            if port >= PORT_MIN && !self.tried.contains(&port) {
                return port;
            }
        }
    }
}

impl Iterator for Guesses {
    type Item = SocketAddr;

    fn next(&mut self) -> Option<SocketAddr> {
        if !self.has_more() {
            return None;
        }
        let port = self.first.pop().unwrap_or_else(|| self.draw());
        self.tried.insert(port);
        Some(SocketAddr::new(self.target.ip(), port))
    }
}

fn shuffle(ports: &mut [u16], dice: &mut Dice) {
    for end in (1..ports.len()).rev() {
        ports.swap(end, usize::from(dice.roll()) % (end + 1));
    }
}

/// Numbers of two bytes, many out of each draw.
#[derive(Debug)]
struct Dice {
    random: Random,
    drawn: Vec<u8>,
}

impl Dice {
    fn roll(&mut self) -> u16 {
        if self.drawn.is_empty() {
            self.drawn.resize(32, 0);
            self.random.fill(&mut self.drawn);
        }
        u16::from_be_bytes([0; 2].map(|_: u8| self.drawn.pop().expect("an even number, and not empty")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(ports: &[u16]) -> Vec<SocketAddr> {
        ports.iter().map(|port| SocketAddr::from(([198, 51, 100, 1], *port))).collect()
    }

    #[test]
    fn no_guess_repeats_and_none_is_a_port_of_services() {
        let guesses: Vec<u16> = Guesses::new(&observed(&[1030, 40_000]), [7; 32])
            .expect("there is a target")
            .map(|address| address.port())
            .collect();
        assert_eq!(guesses.len(), GUESSES_MAX);
        assert_eq!(guesses.iter().collect::<BTreeSet<_>>().len(), GUESSES_MAX);
        assert!(guesses.iter().all(|port| *port >= PORT_MIN));
    }

    #[test]
    fn the_block_around_an_observed_port_comes_first() {
        let guesses = Guesses::new(&observed(&[40_000, 40_010]), [1; 32]).expect("there is a target");
        let first: BTreeSet<u16> = guesses.take(usize::from(BLOCK)).map(|address| address.port()).collect();
        assert_eq!(first, (39_936..40_448).collect());
    }

    #[test]
    fn many_observed_ports_do_not_make_more_guesses() {
        let many: Vec<u16> = (2..120).map(|block| block * BLOCK).collect();
        assert_eq!(Guesses::new(&observed(&many), [1; 32]).expect("there is a target").count(), GUESSES_MAX);
    }

    #[test]
    fn without_an_observed_address_there_is_nothing_to_guess() {
        assert!(Guesses::new(&[], [1; 32]).is_none());
    }
}
