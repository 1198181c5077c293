//! How datagrams get to a peer: by UDP, over a connection of their own, or through the rendezvous. A tunnel knows addresses alone,
//! so each way that is no UDP address has a *virtual* one, which never leaves this machine: of the prefix that the Internet
//! discards (RFC 6666).
//!
//! ```text
//! 100:0:0:0 | kind u16 | via u16 | number u32     port 0
//! ```
//!
//! Whoever takes addresses from outside, as the source of a datagram or in a message, has to drop those that [`is_virtual`].

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    Udp(SocketAddr),
    /// A TCP connection of ours. Those with one host have the same upper bits, above [`LINK_BITS`].
    Link(u32),
    /// Through a rendezvous, as one of the flows of the tunnel to it.
    Flow {
        via: u16,
        flow: u32,
    },
}

/// 100::/64.
const PREFIX: [u16; 4] = [0x0100, 0, 0, 0];

/// By so many bits links with one host are told apart, so that what one host may do does not become more with each connection.
pub const LINK_BITS: u32 = 16;

const LINK: u16 = 1;
const FLOW: u16 = 2;

/// Whether no datagram can come from there, and none can go there.
#[must_use]
pub fn is_virtual(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(ip) if ip.segments()[..4] == PREFIX)
}

impl Way {
    /// What an address stands for. A virtual one that none of ours is, is an address as any other, and leads nowhere.
    #[must_use]
    pub fn of(address: SocketAddr) -> Self {
        let IpAddr::V6(ip) = address.ip() else { return Self::Udp(address) };
        let [.., kind, via, high, low] = ip.segments();
        let number = u32::from(high) << 16 | u32::from(low);
        let way = match kind {
            LINK => Self::Link(number),
            FLOW => Self::Flow { via, flow: number },
            _ => return Self::Udp(address),
        };
        if SocketAddr::from(way) == address { way } else { Self::Udp(address) }
    }
}

/// For people.
impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "{address}"),
            Self::Link(_) => f.write_str("a TCP connection"),
            Self::Flow { .. } => f.write_str("relay"),
        }
    }
}

impl From<Way> for SocketAddr {
    fn from(way: Way) -> Self {
        let (kind, via, number) = match way {
            Way::Udp(address) => return address,
            Way::Link(number) => (LINK, 0, number),
            Way::Flow { via, flow } => (FLOW, via, flow),
        };
        let [a, b, c, d] = PREFIX;
        let ip = Ipv6Addr::new(a, b, c, d, kind, via, (number >> 16) as u16, number as u16);
        Self::new(ip.into(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_way_becomes_an_address_and_the_same_way_again() {
        let virtual_ones = [
            (Way::Link(0), "[100::1:0:0:0]:0"),
            (Way::Link(u32::MAX), "[100::1:0:ffff:ffff]:0"),
            (Way::Flow { via: 0, flow: 0 }, "[100::2:0:0:0]:0"),
            (Way::Flow { via: 7, flow: 0x0102_0304 }, "[100::2:7:102:304]:0"),
        ];
        for (way, text) in virtual_ones {
            assert_eq!(SocketAddr::from(way), address(text));
            assert_eq!(Way::of(address(text)), way);
            assert!(is_virtual(address(text)));
        }
    }

    #[test]
    fn what_can_be_on_a_wire_is_an_address_of_udp() {
        for text in ["192.0.2.1:4000", "[2001:db8::1]:4000", "[100:0:0:1:2::]:0", "[::ffff:100.0.0.2]:1", "[::]:0"] {
            assert_eq!(Way::of(address(text)), Way::Udp(address(text)));
            assert_eq!(SocketAddr::from(Way::of(address(text))), address(text));
            assert!(!is_virtual(address(text)));
        }
    }

    #[test]
    fn an_address_of_the_prefix_that_is_not_ours_leads_nowhere_and_is_known_for_what_it_is() {
        for text in ["[100::]:0", "[100::3:0:0:0]:0", "[100::1:1:0:0]:0", "[100::1:0:0:0]:9", "[100::2:7:102:304]:1"] {
            assert_eq!(Way::of(address(text)), Way::Udp(address(text)));
            assert!(is_virtual(address(text)));
        }
    }
}
