//! The order of preference.

use std::net::{IpAddr, SocketAddr};

use crate::proto::tunnel::Way;

/// The lesser is the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// By UDP in a local network, or on this machine.
    Lan,
    /// By UDP, through whatever routers.
    Direct,
    /// By a TCP connection of our own: what is lost holds up what comes behind it.
    Tcp,
    /// Through the rendezvous.
    Relay,
}

/// Kind decides, the round trip only breaks ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    pub kind: Kind,
    pub rtt_us: u64,
}

impl Kind {
    #[must_use]
    pub fn of(address: SocketAddr) -> Self {
        match Way::of(address) {
            Way::Flow { .. } => Self::Relay,
            Way::Link(_) => Self::Tcp,
            Way::Udp(address) if is_local(address.ip().to_canonical()) => Self::Lan,
            Way::Udp(_) => Self::Direct,
        }
    }

    /// As it is shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Direct => "direct",
            Self::Tcp => "direct (tcp)",
            Self::Relay => "relay",
        }
    }
}

/// Addresses that no provider routes. Those of carriers (100.64.0.0/10) are none of them: there a router stands between.
fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_tells_its_kind() {
        let of = |text: &str| Kind::of(text.parse().expect("an address"));
        for lan in ["192.168.1.10:1", "10.0.0.1:1", "172.16.0.1:1", "169.254.1.1:1", "127.0.0.1:1", "[::1]:1"] {
            assert_eq!(of(lan), Kind::Lan, "{lan}");
        }
        for lan in ["[fd00::1]:1", "[fe80::1]:1", "[::ffff:192.168.1.10]:1"] {
            assert_eq!(of(lan), Kind::Lan, "{lan}");
        }
        for direct in ["203.0.113.7:1", "100.64.0.1:1", "[2001:db8::1]:1", "[::ffff:203.0.113.7]:1"] {
            assert_eq!(of(direct), Kind::Direct, "{direct}");
        }
        assert_eq!(Kind::of(Way::Link(1).into()), Kind::Tcp);
        assert_eq!(Kind::of(Way::Flow { via: 0, flow: 1 }.into()), Kind::Relay);
    }

    #[test]
    fn kind_comes_before_the_round_trip() {
        let rank = |kind, rtt_us| Rank { kind, rtt_us };
        let order = [
            rank(Kind::Lan, 900_000),
            rank(Kind::Direct, 60_000),
            rank(Kind::Direct, 90_000),
            rank(Kind::Tcp, 10_000),
            rank(Kind::Relay, 1),
        ];
        assert!(order.is_sorted());
    }
}
