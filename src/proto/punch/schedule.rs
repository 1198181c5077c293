//! When a target is shot at: an opener that dies on its way, then probes with growing gaps.
//!
//! Why openers: a Linux router whose outer side does not drop strangers' packets makes an entry for the peer's packet if that
//! comes first. Our own packet then gets another port than the one the peer has been told, and each repetition keeps it so. A
//! packet with few hops to live makes our entry and cannot make one at the peer.

use std::net::SocketAddr;

use super::Socket;

/// Hops that an opener lives, in the first round and in later ones. It must leave our own NATs, two or three hops away, and
/// should die before the peer's; between homes there are ten and more, within a town sometimes only six.
const OPENER_TTL_FIRST: u8 = 6;
const OPENER_TTL_LATER: u8 = 4;

/// From openers to probes, in µs. So much later than the peer we may begin, and a one-way delay more, without its probes
/// coming first.
pub const OPENING_US: u64 = 30_000;

/// The first gap between two probes, in µs, and the longest.
const GAP_FIRST_US: u64 = 20_000;
const GAP_MAX_US: u64 = 500_000;

/// The most probes to one target: what fits into the longest round.
pub const PROBES_MAX: u32 = 15;

#[must_use]
pub fn opener_ttl(round: u32) -> u8 {
    if round == 0 { OPENER_TTL_FIRST } else { OPENER_TTL_LATER }
}

/// One address, shot at from one socket.
#[derive(Clone, Debug)]
pub struct Target {
    pub from: Socket,
    pub to: SocketAddr,
    /// A host's own address: what is found there is the best there can be.
    pub is_host: bool,
    needs_opener: bool,
    hold_us: u64,
    due: u64,
    gap_us: u64,
    probes: u32,
}

impl Target {
    /// Behind a NAT: first the opener.
    #[must_use]
    pub fn opened(from: Socket, to: SocketAddr, due: u64) -> Self {
        Self { needs_opener: true, ..Self::plain(from, to, due) }
    }

    #[must_use]
    pub fn plain(from: Socket, to: SocketAddr, due: u64) -> Self {
        Self { from, to, is_host: false, needs_opener: false, hold_us: 0, due, gap_us: GAP_FIRST_US, probes: 0 }
    }

    /// `None` when it was shot at often enough.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        (self.probes < PROBES_MAX).then_some(self.due)
    }

    /// The first probe comes later than usual.
    pub fn hold(&mut self, hold_us: u64) {
        if self.needs_opener {
            self.hold_us = hold_us;
        }
    }

    /// There is nothing to wait for any more.
    pub fn release(&mut self, now: u64) {
        self.hold_us = 0;
        if !self.needs_opener && self.probes == 0 {
            self.due = self.due.min(now);
        }
    }

    /// A probe has come from there: ours may leave at once, and no opener is needed any more.
    pub fn hurry(&mut self, now: u64) {
        self.needs_opener = false;
        self.due = self.due.min(now);
    }

    /// Goes on to the next time. Tells whether this one is an opener.
    pub fn shoot(&mut self, now: u64) -> bool {
        if self.needs_opener {
            self.needs_opener = false;
            self.due += OPENING_US + self.hold_us;
            return true;
        }
        self.probes += 1;
        self.due = now + self.gap_us;
        self.gap_us = (self.gap_us * 8 / 5).min(GAP_MAX_US);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(mut target: Target, until: u64) -> Vec<(u64, bool)> {
        let mut times = Vec::new();
        while let Some(due) = target.due().filter(|due| *due < until) {
            times.push((due / 1_000, target.shoot(due)));
        }
        times
    }

    fn there() -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], 5000))
    }

    #[test]
    fn an_opener_comes_thirty_milliseconds_before_the_first_probe_and_gaps_grow_to_half_a_second() {
        let times = times(Target::opened(Socket::Main4, there(), 0), 2_500_000);
        assert_eq!(times[..5], [(0, true), (30, false), (50, false), (82, false), (133, false)]);
        let last = times[times.len() - 2..].iter().map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(last[1] - last[0], 500);
        assert_eq!(times.len(), 12);
    }

    #[test]
    fn a_target_that_was_heard_is_probed_at_once_and_without_an_opener() {
        let mut target = Target::opened(Socket::Main4, there(), 60_000);
        target.hurry(10_000);
        assert_eq!((target.due(), target.shoot(10_000)), (Some(10_000), false));
    }

    #[test]
    fn a_target_is_given_up_after_so_many_probes() {
        assert_eq!(times(Target::plain(Socket::Main4, there(), 0), u64::MAX).len(), PROBES_MAX as usize);
    }
}
