//! Connections whose owners have proved nothing yet. Whoever has waited too long goes, and when too many wait, the one that has
//! waited longest: but of a source that has many there, one of its own, so that it keeps nobody else out.
//!
//! Deliberately absent: the connections, and which of them have proved themselves since. Those only take a place until their time.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use crate::limits;
use crate::sys::socket;

#[derive(Debug)]
pub(super) struct Strangers {
    /// In the order in which they came.
    waiting: VecDeque<Stranger>,
    most: usize,
}

#[derive(Debug)]
struct Stranger {
    until: Instant,
    number: u32,
    source: Option<Source>,
}

/// What one host has to itself: an address, or of IPv6 the 64 bits of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    V4([u8; 4]),
    V6([u16; 4]),
}

impl Strangers {
    /// At most so many wait, and one in any case: everybody begins as a stranger.
    pub(super) fn new(most: usize) -> Self {
        Self { waiting: VecDeque::new(), most: most.max(1) }
    }

    /// Somebody has come. Hands out the number of whoever has to go for it.
    pub(super) fn add(&mut self, number: u32, connection: BorrowedFd<'_>, now: Instant) -> Option<u32> {
        self.add_from(number, socket::peer_address(connection).ok(), now)
    }

    fn add_from(&mut self, number: u32, from: Option<SocketAddr>, now: Instant) -> Option<u32> {
        let source = from.map(Source::of);
        self.waiting.push_back(Stranger { until: now + limits::HANDSHAKE_TIMEOUT, number, source });
        if self.waiting.len() <= self.most {
            return None;
        }
        let mut of_source = (0..).zip(&self.waiting).filter(|(_, waiting)| waiting.source == source);
        let oldest = of_source.next().map_or(0, |(place, _)| place);
        let is_greedy = of_source.count() >= (self.most / SHARES).max(1);
        self.waiting.remove(if is_greedy { oldest } else { 0 }).map(|stranger| stranger.number)
    }

    /// Of all that wait.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.waiting.iter().map(|stranger| stranger.number)
    }

    /// The one that has waited longest, which waits no more.
    pub(super) fn pop(&mut self) -> Option<u32> {
        self.waiting.pop_front().map(|stranger| stranger.number)
    }

    /// The next whose time is over.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<u32> {
        self.deadline().filter(|until| *until <= now).and_then(|_| self.pop())
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|stranger| stranger.until)
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

/// A source that has more than one of so many shares makes room for its own newcomers. A house full of peers behind one address
/// that come back at once, when there is nobody else, has all of them.
const SHARES: usize = 8;

impl Source {
    fn of(address: SocketAddr) -> Self {
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [network @ .., _, _, _, _] = ip.segments();
                Self::V6(network)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    const MOST: usize = 64;

    fn from(text: &str) -> Option<SocketAddr> {
        Some(text.parse().expect("an address"))
    }

    fn filled(source: &str) -> Strangers {
        let mut strangers = Strangers::new(MOST);
        for number in 0..MOST as u32 {
            assert_eq!(strangers.add_from(number, from(source), clock::now()), None);
        }
        strangers
    }

    #[test]
    fn where_there_is_room_for_one_peer_a_stranger_may_become_it() {
        let mut strangers = Strangers::new(0);
        assert_eq!(strangers.add_from(1, None, clock::now()), None);
        assert_eq!(strangers.add_from(2, None, clock::now()), Some(1));
    }

    #[test]
    fn of_too_many_the_one_that_has_waited_longest_goes() {
        let mut strangers = Strangers::new(MOST);
        for number in 0..1_000u32 {
            let gone = strangers.add_from(number, from(&format!("10.0.{}.1:9", number % 250)), clock::now());
            assert_eq!(gone, number.checked_sub(MOST as u32));
        }
    }

    #[test]
    fn a_source_that_has_taken_all_places_makes_room_for_others_and_then_for_itself() {
        for (greedy, again) in [("10.0.0.1:9", "10.0.0.1:10"), ("[2001:db8::1]:9", "[2001:db8::ffff:0:0:7]:9")] {
            let mut strangers = filled(greedy);
            assert_eq!(strangers.add_from(100, from("10.0.0.2:9"), clock::now()), Some(0));
            let gone: Vec<_> =
                (1_000..2_000).map(|number| strangers.add_from(number, from(again), clock::now())).collect();
            assert!(!gone.contains(&Some(100)) && gone.iter().all(Option::is_some), "{greedy}");
        }
    }

    #[test]
    fn a_house_full_of_peers_has_all_places_while_nobody_else_wants_one() {
        let mut strangers = filled("[::ffff:10.0.0.1]:9");
        assert_eq!(strangers.add_from(100, from("10.0.0.1:10"), clock::now()), Some(0));
    }

    #[test]
    fn whoever_has_waited_too_long_goes_in_the_order_of_coming() {
        let mut strangers = filled("10.0.0.1:9");
        assert_eq!(strangers.pop_expired(clock::now()), None);
        let later = clock::now() + limits::HANDSHAKE_TIMEOUT;
        let gone: Vec<_> = std::iter::from_fn(|| strangers.pop_expired(later)).collect();
        assert_eq!(gone, (0..MOST as u32).collect::<Vec<_>>());
    }
}
