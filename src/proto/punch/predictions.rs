//! The next ports of a NAT that counts.
//!
//! When the peer's NAT counts and ours does not, our one port shoots at as many of its next ones as other hosts may have taken in
//! between. When both count, each shot moves our own port on, so both sides must walk *in step*: our i-th new destination is their
//! port q + i, while theirs is our port p + i.
//!
//! Others may have taken `a` ports of ours and `b` of theirs since they were observed. Walking with a lead, our i-th shot goes
//! to q + i + s and their j-th to p + j + t; the two meet where i + s = j + b and j + t = i + a, thus if s + t = a + b, whatever the
//! two are one by one, as long as `j - i = s - b` keeps inside the walk. So several short walks follow each other, in which s + t
//! is 0, 1, 2, ...

use std::net::SocketAddr;

use super::plan::Side;

/// The most predictions of a round.
pub const PREDICTIONS_MAX: usize = 80;

/// Ports ahead that are tried in the first round, and in later ones, when other hosts behind that NAT seem to be busy.
const AHEAD_FIRST: usize = 20;
const AHEAD_LATER: usize = 48;

/// Walks, and steps of each. Up to nine ports taken by others, on both sides together, are made up for: what a household takes
/// within the fifth of a second from question to shot. Each step costs both NATs an entry.
const WALKS: u16 = 10;
const STEPS: u16 = 8;

const _: () = assert!((WALKS * STEPS) as usize <= PREDICTIONS_MAX && AHEAD_LATER <= PREDICTIONS_MAX);

/// Where our one port should shoot.
#[must_use]
pub fn ahead(latest: SocketAddr, step: u16, round: u32) -> Vec<SocketAddr> {
    let count = if round == 0 { AHEAD_FIRST } else { AHEAD_LATER };
    (1..).map_while(|i| later(latest, step, i)).take(count).collect()
}

/// The destinations of our shots, in order.
#[must_use]
pub fn lock_steps(side: Side, latest: SocketAddr, step: u16) -> Vec<SocketAddr> {
    let lead = |walk: u16| match side {
        Side::Visitor => walk / 2,
        Side::Provider => walk.div_ceil(2),
    };
    let places = (0..WALKS * STEPS).map(|i| 1 + i + lead(i / STEPS));
    places.map_while(|place| later(latest, step, place)).collect()
}

/// `None` behind the last port: where a NAT goes on from there is not known.
fn later(latest: SocketAddr, step: u16, count: u16) -> Option<SocketAddr> {
    let port = latest.port().checked_add(step.checked_mul(count)?)?;
    Some(SocketAddr::new(latest.ip(), port))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn from(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn predictions_follow_the_step_and_end_at_the_last_port() {
        let ports =
            |from_port, step| ahead(from(from_port), step, 0).iter().map(SocketAddr::port).take(3).collect::<Vec<_>>();
        assert_eq!(ports(4000, 2), [4002, 4004, 4006]);
        assert_eq!(ports(65534, 1), [65535]);
        assert_eq!(ports(65535, 1), [0; 0]);
        assert_eq!(ahead(from(1), 16, 9).len(), AHEAD_LATER);
    }

    /// Walks two NATs that count, of which others have taken some ports before.
    fn pairs_that_meet(taken: [u16; 2]) -> usize {
        let (p, q) = (10_000, 20_000);
        let way = |side, taken_of_ours, ours: u16, theirs: u16, step| {
            let shots = lock_steps(side, from(theirs), step).into_iter().map(|to| to.port());
            (1..).zip(shots).map(move |(i, to)| (ours + 3 * (i + taken_of_ours), to)).collect::<Vec<_>>()
        };
        let visitor: BTreeSet<(u16, u16)> = way(Side::Visitor, taken[0], p, q, 3).into_iter().collect();
        let provider = way(Side::Provider, taken[1], q, p, 3);
        provider.into_iter().filter(|(port, to)| visitor.contains(&(*to, *port))).count()
    }

    #[test]
    fn two_nats_that_count_meet_although_others_have_taken_some_of_their_ports() {
        for (ours, theirs) in (0..10u16).flat_map(|ours| (0..10 - ours).map(move |theirs| (ours, theirs))) {
            let imbalance = ours.abs_diff(theirs) / 2;
            assert!(imbalance >= STEPS || pairs_that_meet([ours, theirs]) > 0, "{ours} and {theirs} were taken");
        }
        assert!(pairs_that_meet([0, 0]) >= usize::from(STEPS), "nobody has taken any");
        assert_eq!(pairs_that_meet([40, 40]), 0);
    }
}
