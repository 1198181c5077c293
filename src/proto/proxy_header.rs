//! The header of the PROXY protocol, version 2, that tells a backend whom it talks to (haproxy.org, proxy-protocol.txt).
//!
//! `signature 12 | version and command u8 | family and protocol u8 | length u16 | source ip, destination ip, source port,
//! destination port`, network order. Deliberately absent: version 1, and reading either.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const PROXY: u8 = 0x21;
const LOCAL: u8 = 0x20;

/// The longest header: that of IPv6.
pub const HEADER_BYTES_MAX: usize = 16 + 36;

/// What carries the player's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Stream = 1,
    Datagram = 2,
}

/// Appends a header: `player` talks to `destination`. Without a player it says that the bytes are the sender's own. When the two
/// are of different families, the IPv4 address is written as an IPv6 one.
pub fn emit(transport: Transport, player: Option<SocketAddr>, destination: SocketAddr, out: &mut Vec<u8>) {
    out.extend_from_slice(SIGNATURE);
    let Some(player) = player else { return out.extend_from_slice(&[LOCAL, 0, 0, 0]) };
    match (player.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[PROXY, 0x10 | transport as u8, 0, 12]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            out.extend_from_slice(&[PROXY, 0x20 | transport as u8, 0, 36]);
            for ip in [from, to] {
                let ip = match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                out.extend_from_slice(&ip.octets());
            }
        }
    }
    out.extend_from_slice(&player.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(transport: Transport, player: Option<&str>, destination: &str) -> Vec<u8> {
        let address = |text: &str| text.parse().expect("an address");
        let mut out = Vec::new();
        emit(transport, player.map(address), address(destination), &mut out);
        assert!(out.starts_with(SIGNATURE) && out.len() <= HEADER_BYTES_MAX);
        out.split_off(SIGNATURE.len())
    }

    #[test]
    fn a_player_of_ipv4_has_28_bytes() {
        let expected = [0x21, 0x11, 0, 12, 192, 0, 2, 7, 127, 0, 0, 1, 0x30, 0x39, 0x1e, 0x61];
        assert_eq!(header(Transport::Stream, Some("192.0.2.7:12345"), "127.0.0.1:7777"), expected);
        assert_eq!(header(Transport::Datagram, Some("192.0.2.7:12345"), "127.0.0.1:7777")[1], 0x12);
    }

    #[test]
    fn families_that_differ_meet_in_ipv6() {
        let both = header(Transport::Stream, Some("[2001:db8::1]:1"), "[::1]:2");
        assert_eq!((both.len(), &both[..4]), (40, &[0x21, 0x21, 0, 36][..]));
        let mixed = header(Transport::Datagram, Some("192.0.2.7:1"), "[::1]:2");
        assert_eq!((mixed.len(), &mixed[..4]), (40, &[0x21, 0x22, 0, 36][..]));
        assert_eq!(mixed[4..20], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7]);
    }

    #[test]
    fn without_a_player_the_bytes_are_our_own() {
        assert_eq!(header(Transport::Stream, None, "127.0.0.1:7777"), [0x20, 0, 0, 0]);
    }
}
