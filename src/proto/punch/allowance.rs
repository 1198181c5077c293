//! How many rounds a peer may cause, and how many all peers together may point at one host. A peer decides where our probes go, so
//! whoever knows the secret could point them at somebody else; what we can do is to be no use for it. A peer that comes again is
//! a new one, hence the second bound.

use std::collections::HashMap;
use std::net::IpAddr;

use super::candidates::Profile;

/// Rounds that may follow each other at once: 0, 2 and 8 s after the beginning, and one after a change of network.
const BURST: u32 = 4;

/// Then one in so many µs, which is how far apart a visitor's own rounds are by then.
const EVERY_US: u64 = 30_000_000;

/// The same for a host, whoever names it: a house full of players may come at once.
const HOST_BURST: u32 = 8;
const HOST_EVERY_US: u64 = 15_000_000;

/// Hosts that were named lately. Over it no further ones are probed: 40 calls within two minutes that name nothing twice.
const HOSTS_MAX: usize = 1024;

/// Rounds that one peer may still cause. One of these stands beside each peer tunnel.
#[derive(Clone, Debug)]
pub struct Allowance {
    burst: u32,
    every_us: u64,
    rounds: u32,
    /// Since when the next round is saved up.
    since: u64,
}

/// Rounds that may still go to each of the hosts that peers have named. One for all peers.
#[derive(Debug, Default)]
pub struct Hosts {
    /// An address of IPv4, or a /64: who has one address of that has all of them.
    of: HashMap<IpAddr, Allowance>,
}

impl Hosts {
    /// A round begins: what may be probed of what the peer has named.
    #[must_use]
    pub fn ration(&mut self, now: u64, named: &Profile) -> Profile {
        let mut asked = HashMap::new();
        let mut may = |ip: IpAddr| *asked.entry(ip).or_insert_with_key(|ip| self.take(now, *ip));
        let candidates =
            named.candidates.iter().copied().filter(|candidate| may(network(candidate.address.ip()))).collect();
        Profile { class: named.class, candidates }
    }

    fn take(&mut self, now: u64, ip: IpAddr) -> bool {
        if self.of.len() >= HOSTS_MAX && !self.of.contains_key(&ip) {
            self.of.retain(|_, allowance| !allowance.is_whole(now));
            if self.of.len() >= HOSTS_MAX {
                return false;
            }
        }
        self.of.entry(ip).or_insert_with(|| Allowance::of_host(now)).take(now)
    }
}

fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

impl Allowance {
    #[must_use]
    pub fn new(now: u64) -> Self {
        Self { burst: BURST, every_us: EVERY_US, rounds: BURST, since: now }
    }

    fn of_host(now: u64) -> Self {
        Self { burst: HOST_BURST, every_us: HOST_EVERY_US, rounds: HOST_BURST, since: now }
    }

    /// As if it were new.
    fn is_whole(&mut self, now: u64) -> bool {
        self.save_up(now);
        self.rounds == self.burst
    }

    fn save_up(&mut self, now: u64) {
        let saved = now.saturating_sub(self.since) / self.every_us;
        self.since += saved * self.every_us;
        self.rounds = (u64::from(self.rounds) + saved).min(u64::from(self.burst)) as u32;
    }

    /// Whether a round may begin now; if so, it counts. A call that comes too early gets no answer.
    pub fn take(&mut self, now: u64) -> bool {
        self.save_up(now);
        let may = self.rounds > 0;
        self.rounds -= u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::punch::{Candidate, Class, Kind};

    #[test]
    fn a_peer_that_calls_without_end_causes_one_round_in_thirty_seconds() {
        let mut allowance = Allowance::new(0);
        let hour = 3_600_000_000;
        let rounds = (0..hour).step_by(100_000).filter(|now| allowance.take(*now)).count();
        assert_eq!(rounds as u64, u64::from(BURST) + hour / EVERY_US - 1);
    }

    fn naming(addresses: impl IntoIterator<Item = [u8; 4]>) -> Profile {
        let of = |(port, ip): (u16, [u8; 4])| Candidate { kind: Kind::Reflexive, address: (ip, port).into() };
        Profile { class: Class::Random, candidates: (5_000..).zip(addresses).map(of).collect() }
    }

    #[test]
    fn a_host_that_is_named_by_peers_who_come_again_and_again_gets_one_round_in_fifteen_seconds() {
        let (mut hosts, victim, own) = (Hosts::default(), [192, 0, 2, 1], [198, 51, 100, 7]);
        let hour = 3_600_000_000;
        let mut rounds = 0;
        for now in (0..hour).step_by(100_000) {
            let left = hosts.ration(now, &naming([victim, victim, victim]));
            assert!(
                left.candidates.is_empty() || left.candidates.len() == 3,
                "a round takes one, whatever it names twice"
            );
            rounds += u64::from(!left.candidates.is_empty());
        }
        assert_eq!(rounds, u64::from(HOST_BURST) + hour / HOST_EVERY_US - 1);
        assert_eq!(hosts.ration(hour - 1, &naming([own, victim])), naming([own]), "others are probed as before");
    }

    #[test]
    fn all_addresses_of_a_network_of_ipv6_are_one_host() {
        let mut hosts = Hosts::default();
        let mut probed = |address: u64| {
            let ip = IpAddr::from(((0x2001_0db8_u128 << 96) | u128::from(address)).to_be_bytes());
            let candidates = vec![Candidate { kind: Kind::Host, address: (ip, 5_000).into() }];
            !hosts.ration(0, &Profile { class: Class::Open, candidates }).candidates.is_empty()
        };
        let rounds = (0..1_000).filter(|address| probed(*address)).count();
        assert_eq!(rounds, HOST_BURST as usize);
    }

    #[test]
    fn hosts_without_end_are_not_remembered_and_none_of_them_is_probed_at_the_bound() {
        let mut hosts = Hosts::default();
        let many = |number: u32| naming((0..20).map(|more| (number * 20 + more).to_be_bytes()));
        let probed: usize = (1..1_000).map(|number| hosts.ration(0, &many(number)).candidates.len()).sum();
        assert_eq!((probed, hosts.of.len()), (HOSTS_MAX, HOSTS_MAX));
        assert_eq!(hosts.ration(HOST_EVERY_US, &many(2_000)).candidates.len(), 20, "when the others are forgotten");
    }

    #[test]
    fn a_quiet_peer_saves_up_no_more_than_the_burst() {
        let mut allowance = Allowance::new(0);
        let later = 1_000 * EVERY_US;
        assert_eq!((0..100).filter(|_| allowance.take(later)).count(), BURST as usize);
    }
}
