//! Where a peer may be reached, as it says itself, and which of that is worth a probe.
//!
//! A peer that knows the secret may be careless or malicious. What it names is probed only if it could be a peer: no loopback,
//! multicast or link-local address, none that stands for a virtual way, no port below 1024 (where name servers and clocks are
//! that answer anybody), and not ourselves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::class::Class;

/// Candidates of a side. Further ones are left out by the one who gathers and refused by the one who reads.
pub const CANDIDATES_MAX: usize = 24;

/// Of them, addresses that the host has itself: more interfaces than that are those of containers.
pub const HOSTS_MAX: usize = 14;

/// Below it are the ports of services which answer strangers. No NAT gives them to an ordinary socket (RFC 4787, REQ-3).
pub const PORT_MIN: u16 = 1024;

/// How a side knows the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The host has it.
    Host,
    /// The router was asked to let it in.
    Mapped,
    /// The rendezvous has seen it. Several are in the order in which they were made.
    Reflexive,
    /// As which the rendezvous sees the TCP connection.
    TcpReflexive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    pub kind: Kind,
    pub address: SocketAddr,
}

/// What a side tells about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    pub class: Class,
    /// At most [`CANDIDATES_MAX`].
    pub candidates: Vec<Candidate>,
}

impl Profile {
    pub fn of_kind(&self, kind: Kind) -> impl DoubleEndedIterator<Item = SocketAddr> + '_ {
        self.candidates.iter().filter(move |candidate| candidate.kind == kind).map(|candidate| candidate.address)
    }

    /// Its NAT gives a socket the port that it has, as Linux does.
    #[must_use]
    pub fn keeps_ports(&self) -> bool {
        let ports = |kind| self.of_kind(kind).filter(SocketAddr::is_ipv4).map(|address| address.port());
        self.class == Class::Same && ports(Kind::Host).any(|port| ports(Kind::Reflexive).any(|other| other == port))
    }

    fn has(&self, address: SocketAddr) -> bool {
        self.candidates.iter().any(|candidate| candidate.address == address)
    }

    /// The reflexive address of IPv4 that was made last: where predictions begin.
    #[must_use]
    pub fn latest(&self) -> Option<SocketAddr> {
        self.of_kind(Kind::Reflexive).rfind(SocketAddr::is_ipv4)
    }

    /// What is left of a peer's when all is taken out that `self` will not probe.
    #[must_use]
    pub fn worthy(&self, theirs: &Self) -> Self {
        let mut candidates: Vec<Candidate> = Vec::new();
        for candidate in theirs.candidates.iter().take(CANDIDATES_MAX) {
            if may_be_a_peer(candidate.address) && !self.has(candidate.address) && !candidates.contains(candidate) {
                candidates.push(*candidate);
            }
        }
        Self { class: theirs.class, candidates }
    }

    /// One of our own addresses is in the same network (/24, /64), so packets to it need no NAT.
    #[must_use]
    pub fn is_near(&self, address: SocketAddr) -> bool {
        self.of_kind(Kind::Host).any(|host| network(host.ip()) == network(address.ip()))
    }
}

/// Not a statement about who is there: only that it is no address which can never be a peer's.
#[must_use]
pub fn may_be_a_peer(address: SocketAddr) -> bool {
    let is_possible = match address.ip() {
        IpAddr::V4(ip) => is_possible_v4(ip),
        IpAddr::V6(ip) => is_possible_v6(ip),
    };
    is_possible && address.port() >= PORT_MIN
}

fn is_possible_v4(ip: Ipv4Addr) -> bool {
    let reserved = ip.octets()[0] == 0 || ip.octets()[0] >= 240;
    !(reserved || ip.is_loopback() || ip.is_link_local() || ip.is_multicast())
}

/// IPv4 in the clothes of IPv6 would get around the rules above, and link-local addresses need an interface to go with them.
fn is_possible_v6(ip: Ipv6Addr) -> bool {
    let virtual_way = ip.segments()[..4] == [0x100, 0, 0, 0];
    let embeds_v4 = ip.segments()[..5] == [0; 5];
    !(virtual_way || embeds_v4 || ip.is_multicast() || ip.is_unicast_link_local())
}

fn network(ip: IpAddr) -> [u8; 9] {
    let mut network = [0; 9];
    match ip {
        IpAddr::V4(ip) => network[..3].copy_from_slice(&ip.octets()[..3]),
        IpAddr::V6(ip) => {
            network[0] = 6;
            network[1..].copy_from_slice(&ip.octets()[..8]);
        }
    }
    network
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str) -> Candidate {
        Candidate { kind: Kind::Host, address: address.parse().expect("an address") }
    }

    fn profile(addresses: &[&str]) -> Profile {
        Profile { class: Class::Same, candidates: addresses.iter().map(|address| host(address)).collect() }
    }

    #[test]
    fn what_can_never_be_a_peer_is_not_probed() {
        let nonsense = [
            "127.0.0.1:5000",
            "0.0.0.0:5000",
            "224.0.0.251:5353",
            "255.255.255.255:5000",
            "240.1.2.3:5000",
            "169.254.169.254:5000",
            "198.51.100.7:53",
            "198.51.100.7:0",
            "[::1]:5000",
            "[::]:5000",
            "[ff02::1]:5000",
            "[fe80::1]:5000",
            "[100::5]:5000",
            "[::ffff:127.0.0.1]:5000",
            "[::127.0.0.1]:5000",
        ];
        assert_eq!(profile(&[]).worthy(&profile(&nonsense)).candidates, []);
    }

    #[test]
    fn a_candidate_counts_once_and_never_when_it_is_ourselves() {
        let ours = profile(&["192.168.1.10:5000"]);
        let theirs = profile(&["192.168.1.10:5000", "192.168.1.11:5000", "192.168.1.11:5000", "192.168.1.10:5001"]);
        assert_eq!(ours.worthy(&theirs).candidates, [host("192.168.1.11:5000"), host("192.168.1.10:5001")]);
    }

    #[test]
    fn no_more_than_the_bound_are_probed() {
        let many: Vec<String> = (0..100).map(|port| format!("198.51.100.7:{}", 5000 + port)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(profile(&[]).worthy(&profile(&many)).candidates.len(), CANDIDATES_MAX);
    }

    #[test]
    fn an_address_in_a_network_of_ours_is_near() {
        let ours = profile(&["192.168.1.10:5000", "[2001:db8::1]:5000"]);
        let near = |address: &str| ours.is_near(address.parse().expect("an address"));
        assert!(near("192.168.1.77:9000") && near("[2001:db8::2]:9000"));
        assert!(!near("192.168.2.10:5000") && !near("[2001:db8:0:1::1]:5000"));
    }
}
