//! Bounds what it costs to look at offers that turn out not to be authentic.
//!
//! Whoever has seen the id of a key can make offers that have to be decrypted before they can be refused, at 10 µs each; and a
//! genuine one is known only by the same work. One limit for all would bound the work, and hand everybody's handshakes to whoever
//! uses it up, with 3 Mbit/s. So each address has its own, and addresses share a fixed number of them by a secret hash: a flood
//! from one address silences that address and 1 in 256 of the others. A flood under forged addresses can still use up all of them,
//! but has to send more than 5,000 offers a second for it; then a visitor, who asks about ten times, gets through as often as its
//! offers happen to be among those that are looked at. Tunnels that are established notice nothing.
//!
//! Offers that are authentic cost nothing here: visitors behind one address do not take each other's turns.

use std::hash::{DefaultHasher, Hasher};
use std::net::{IpAddr, SocketAddr};

use zeroize::Zeroizing;

use super::keys::expand;
use super::way::{LINK_BITS, Way, is_virtual};

/// Limits that all addresses share. With [`PER_SECOND`] 5,120 failures a second, 5 % of a processor.
const CELLS: usize = 256;

/// Failures of one address in a second. A visitor with a wrong secret asks 10 times in 30 s, so 50 of them may stand behind the
/// address of a genuine one.
const PER_SECOND: u64 = 20;

pub struct Tries {
    cells: [Allowance; CELLS],
    /// So that nobody can choose whose limit his addresses share.
    salt: Zeroizing<[u8; 16]>,
}

impl Tries {
    /// `seed` may be used for other things, too.
    pub fn new(seed: &[u8; 32]) -> Self {
        let mut salt = Zeroizing::new([0; 16]);
        expand(seed, "tries", &mut *salt);
        Self { cells: [const { Allowance::new(PER_SECOND) }; CELLS], salt }
    }

    /// Of whoever speaks from that address.
    pub fn of(&mut self, from: SocketAddr) -> &mut Allowance {
        let mut hasher = DefaultHasher::new();
        hasher.write(&*self.salt);
        hasher.write_u64(network(from));
        &mut self.cells[hasher.finish() as usize % CELLS]
    }
}

/// What one party is likely to have only one of: an address of IPv4, a /64 of IPv6, a flow. Connections count by their hosts.
fn network(address: SocketAddr) -> u64 {
    match address.ip().to_canonical() {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(ip) if is_virtual(address) => match Way::of(address) {
            Way::Link(_) => (ip.to_bits() >> LINK_BITS) as u64,
            Way::Flow { .. } | Way::Udp(_) => ip.to_bits() as u64,
        },
        IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
    }
}

/// How often something may be done: so many times in a second, and twice as many at once.
#[derive(Debug)]
pub struct Allowance {
    per_second: u64,
    /// In parts of a million.
    left: u64,
    at: u64,
}

impl Allowance {
    pub const fn new(per_second: u64) -> Self {
        Self { per_second, left: 2 * per_second * 1_000_000, at: 0 }
    }

    pub fn is_left(&mut self, now: u64) -> bool {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        self.left =
            self.left.saturating_add(passed.saturating_mul(self.per_second)).min(2 * self.per_second * 1_000_000);
        self.left >= 1_000_000
    }

    /// It was done, and was allowed.
    pub fn take(&mut self) {
        self.left = self.left.saturating_sub(1_000_000);
    }
}

impl std::fmt::Debug for Tries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tries(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_used_up_and_comes_back() {
        let mut allowance = Allowance::new(50);
        let mut count = |now| {
            let mut count = 0;
            while allowance.is_left(now) {
                allowance.take();
                count += 1;
            }
            count
        };
        assert_eq!([0, 0, 19_999, 20_000, 1_020_000, u64::MAX].map(&mut count), [100, 0, 0, 1, 50, 100]);
        assert_eq!(count(5), 0, "time that goes back brings nothing");
    }

    #[test]
    fn addresses_of_one_party_share_a_limit_and_others_seldom_do() {
        let mut tries = Tries::new(&[1; 32]);
        let mut cell = |address: String| {
            let address: IpAddr = address.parse().expect("an address");
            std::ptr::from_ref(tries.of(SocketAddr::new(address, 0))).addr()
        };
        assert_eq!(cell("192.0.2.1".into()), cell("::ffff:192.0.2.1".into()));
        assert_eq!(cell("2001:db8::1".into()), cell("2001:db8::ffff:1:2:3".into()));
        let link = |number: u32| SocketAddr::from(Way::Link(number)).ip().to_string();
        assert!((0..1 << LINK_BITS).all(|number| cell(link(7 << LINK_BITS | number)) == cell(link(7 << LINK_BITS))));
        let hosts = (0..256).filter(|host| cell(link(host << LINK_BITS)) == cell(link(7 << LINK_BITS))).count();
        assert!(hosts < 6, "{hosts} of 256");
        let one = cell("192.0.2.1".into());
        let alike = (2..255).filter(|host| cell(format!("192.0.2.{host}")) == one).count();
        assert!(alike < 6, "{alike} of 253");
    }
}
