//! What a probe carries: nobody has to remember a thousand probes to know an answer, its round trip, and that it comes from
//! where the probe went.
//!
//! ```text
//! token = time in µs, lower 32 bits | first 32 bits of HMAC-SHA-256 over time and address, under a key of this tunnel
//! ```
//!
//! The peer, who alone can answer at all, gains nothing by a forgery. Whoever catches its answer and brings it from another
//! address does not make that address one of its.

use std::net::{IpAddr, SocketAddr};

use ring::hmac;

use super::frames::Token;

/// Answers that took longer are none, in µs.
const ANSWER_US: u32 = 30_000_000;

#[derive(Debug)]
pub struct ProbeTokens {
    key: hmac::Key,
}

impl ProbeTokens {
    pub fn new(seed: [u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &seed) }
    }

    pub fn make(&self, now: u64, to: SocketAddr) -> Token {
        let time = (now as u32).to_be_bytes();
        let mut token = [0; 8];
        token[..4].copy_from_slice(&time);
        token[4..].copy_from_slice(&self.mark(time, to));
        token
    }

    /// The round trip, if the token is one that was made for that address.
    pub fn rtt_us(&self, now: u64, from: SocketAddr, token: Token) -> Option<u64> {
        let [a, b, c, d, mark @ ..] = token;
        let time = [a, b, c, d];
        let rtt_us = (now as u32).wrapping_sub(u32::from_be_bytes(time));
        (rtt_us <= ANSWER_US && self.mark(time, from) == mark).then(|| u64::from(rtt_us).max(1))
    }

    fn mark(&self, time: [u8; 4], address: SocketAddr) -> [u8; 4] {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let mut said = [0; 4 + 16 + 2];
        said[..4].copy_from_slice(&time);
        said[4..20].copy_from_slice(&ip);
        said[20..].copy_from_slice(&address.port().to_be_bytes());
        let tag = hmac::sign(&self.key, &said);
        *tag.as_ref().first_chunk().expect("32 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_answer_from_where_the_probe_went_tells_the_round_trip_also_across_the_end_of_the_count() {
        let (tokens, to) = (ProbeTokens::new([1; 32]), address("192.0.2.1:4000"));
        for sent in [0, 7, u64::from(u32::MAX) - 5, 1 << 40] {
            assert_eq!(tokens.rtt_us(sent + 60_000, to, tokens.make(sent, to)), Some(60_000));
            assert_eq!(tokens.rtt_us(sent, to, tokens.make(sent, to)), Some(1));
            assert_eq!(tokens.rtt_us(sent + 30_000_001, to, tokens.make(sent, to)), None);
        }
    }

    #[test]
    fn an_answer_from_elsewhere_or_of_another_time_or_tunnel_is_none() {
        let (tokens, to) = (ProbeTokens::new([1; 32]), address("192.0.2.1:4000"));
        let token = tokens.make(5, to);
        for other in ["192.0.2.1:4001", "192.0.2.2:4000", "[2001:db8::1]:4000"] {
            assert_eq!(tokens.rtt_us(9, address(other), token), None, "{other}");
        }
        let mut sooner = token;
        sooner[3] ^= 1;
        assert_eq!(tokens.rtt_us(9, to, sooner), None);
        assert_eq!(ProbeTokens::new([2; 32]).rtt_us(9, to, token), None);
    }

    #[test]
    fn the_key_is_not_shown() {
        assert!(!format!("{:?}", ProbeTokens::new([77; 32])).contains("77"));
    }
}
