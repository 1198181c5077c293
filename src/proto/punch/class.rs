//! How a NAT maps: which port of its own it gives to a socket, and whether that depends on whom the socket sends to.

use std::net::SocketAddr;

/// The largest difference between the ports of two mappings, made one right after the other, that is taken for counting. By
/// chance a NAT that draws them from 40,000 is as close in 1 of 1,000 cases.
pub const STEP_MAX: u16 = 16;

/// Of IPv4: IPv6 has firewalls and hardly any NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// No NAT: the outside sees the address that the host has. There may be a firewall.
    Open,
    /// One port for all destinations.
    Same,
    /// A new port for each destination, so many above the one before.
    Steps(u16),
    /// A new port for each destination, by chance.
    Random,
    /// No answer has come over UDP.
    Blocked,
    /// One answer only: there is an address, and nobody knows how it came to be.
    Unclear,
}

impl Class {
    /// `observed`: how one socket looked to several destinations, in the order in which they were asked. `hosts`: the addresses
    /// that the socket has itself.
    #[must_use]
    pub fn of(hosts: &[SocketAddr], observed: &[SocketAddr]) -> Self {
        let [first, rest @ ..] = observed else { return Self::Blocked };
        if rest.iter().any(|other| other.ip() != first.ip()) {
            return Self::Random; // A pool of addresses, and a new one for each destination.
        }
        match step(observed) {
            _ if hosts.contains(first) && rest.iter().all(|other| other == first) => Self::Open,
            None => Self::Unclear,
            Some(0) => Self::Same,
            Some(step) if step <= STEP_MAX => Self::Steps(step),
            Some(_) => Self::Random,
        }
    }

    /// One address serves all destinations, so it can be told to the peer.
    #[must_use]
    pub fn is_fixed(self) -> bool {
        match self {
            Self::Open | Self::Same | Self::Unclear => true,
            Self::Steps(_) | Self::Random | Self::Blocked => false,
        }
    }
}

/// The least difference between neighbours; 0 only if all are equal. `None` when there are no two. A question that was lost and
/// repeated makes the order wrong, so the sign says nothing.
fn step(observed: &[SocketAddr]) -> Option<u16> {
    let steps = observed.windows(2).map(|pair| pair[0].port().abs_diff(pair[1].port()));
    let is_same = steps.clone().max()? == 0;
    if is_same { Some(0) } else { steps.filter(|step| *step > 0).min() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(ports: &[u16]) -> Class {
        let observed: Vec<SocketAddr> = ports.iter().map(|port| SocketAddr::from(([198, 51, 100, 1], *port))).collect();
        Class::of(&[SocketAddr::from(([192, 168, 1, 10], 5000))], &observed)
    }

    #[test]
    fn two_observed_ports_tell_how_a_nat_maps() {
        assert_eq!(class(&[4000, 4000]), Class::Same);
        assert_eq!(class(&[4000, 4002]), Class::Steps(2));
        assert_eq!(class(&[4002, 4000]), Class::Steps(2), "a repeated question was answered last");
        assert_eq!(class(&[4000, 4017]), Class::Random);
        assert_eq!(class(&[4000]), Class::Unclear);
        assert_eq!(class(&[]), Class::Blocked);
    }

    #[test]
    fn a_host_that_is_seen_under_its_own_address_has_no_nat() {
        let own = SocketAddr::from(([203, 0, 113, 5], 5000));
        assert_eq!(Class::of(&[own], &[own, own]), Class::Open);
        assert_eq!(Class::of(&[own], &[own]), Class::Open);
    }

    #[test]
    fn a_pool_that_gives_each_destination_another_address_is_random() {
        let observed = [SocketAddr::from(([203, 0, 113, 5], 5000)), SocketAddr::from(([203, 0, 113, 6], 5000))];
        assert_eq!(Class::of(&[], &observed), Class::Random);
    }
}
