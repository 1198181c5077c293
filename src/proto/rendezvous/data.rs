//! Data connections: TCP from a provider to the rendezvous, one for each player who has nothing but the game. Network order.
//!
//! ```text
//! provider     0 u16 | id 16                              no frame of a link has length 0
//! rendezvous   length u8, of what follows | port u8 | address kind u8 | [ip, port] | service's name
//! provider     status u8                                  0 connected, 1 refused, 2 timed out
//! ```
//!
//! The rendezvous has told the provider the id in the tunnel between them, so whoever knows it is that provider; it is good for
//! one connection. The connection waits until there is a player. From the status on it carries the game's bytes as they are.

use std::net::SocketAddr;

use crate::proto::tunnel::wire::Malformed;
use crate::proto::tunnel::{ServiceName, emit_address, parse_optional_address};

/// Names a data connection that is to come, and is not to be guessed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DataId(pub [u8; Self::BYTES]);

/// What the provider says first.
pub const HELLO_BYTES: usize = 2 + DataId::BYTES;

/// What tells it from a link, whose frames begin with their length.
pub const HELLO_HEAD: [u8; 2] = [0; 2];

/// The longest that the rendezvous says.
pub const START_BYTES_MAX: usize = 1 + u8::MAX as usize;

/// There is a player.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    pub service: ServiceName,
    /// Of its TCP ports, counted from 0.
    pub port: u8,
    pub player: Option<SocketAddr>,
}

/// What has become of the connection to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Connected,
    Refused,
    TimedOut,
}

impl DataId {
    pub const BYTES: usize = 16;

    #[must_use]
    pub fn hello(self) -> [u8; HELLO_BYTES] {
        let mut hello = [0; HELLO_BYTES];
        hello[HELLO_HEAD.len()..].copy_from_slice(&self.0);
        hello
    }

    /// `None`: these bytes are no hello.
    #[must_use]
    pub fn of_hello(bytes: &[u8]) -> Option<Self> {
        bytes.strip_prefix(&HELLO_HEAD)?.try_into().map(Self).ok()
    }
}

/// Whoever knows it may be taken for the provider.
impl std::fmt::Debug for DataId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataId(..)")
    }
}

impl Start {
    pub fn emit(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0, self.port]);
        match self.player {
            Some(player) => emit_address(player, out),
            None => out.push(0),
        }
        out.extend_from_slice(self.service.as_str().as_bytes());
        out[start] = (out.len() - start - 1) as u8; // at most 1 + 19 + 64
    }

    /// How many bytes are missing of the one that `bytes` begins.
    #[must_use]
    pub fn missing(bytes: &[u8]) -> usize {
        bytes.first().map_or(1, |length| (1 + usize::from(*length)).saturating_sub(bytes.len()))
    }

    /// # Errors
    /// When this is not all of one, and nothing else.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (length, rest) = bytes.split_first().ok_or(Malformed)?;
        let (port, mut rest) = rest.split_first().filter(|_| rest.len() == usize::from(*length)).ok_or(Malformed)?;
        let player = parse_optional_address(&mut rest)?;
        let name = std::str::from_utf8(rest).map_err(|_not_text| Malformed)?;
        Ok(Self { service: ServiceName::new(name)?, port: *port, player })
    }
}

impl Outcome {
    #[must_use]
    pub fn byte(self) -> &'static [u8; 1] {
        match self {
            Self::Connected => &[0],
            Self::Refused => &[1],
            Self::TimedOut => &[2],
        }
    }

    /// # Errors
    /// Other bytes have no meaning.
    pub fn parse(byte: u8) -> Result<Self, Malformed> {
        [Self::Connected, Self::Refused, Self::TimedOut]
            .into_iter()
            .find(|outcome| outcome.byte() == &[byte])
            .ok_or(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).expect("a name")
    }

    #[test]
    fn what_is_said_stands_as_told() {
        let mut bytes = Vec::new();
        let player = "192.0.2.7:12345".parse().ok();
        Start { service: name("game"), port: 2, player }.emit(&mut bytes);
        assert_eq!(bytes, *b"\x0c\x02\x04\xc0\0\x02\x07\x30\x39game");
        let hello = DataId([7; 16]).hello();
        assert_eq!((&hello[..3], hello.len()), (&[0, 0, 7][..], 18));
        assert_eq!(Outcome::parse(3), Err(Malformed));
    }

    #[test]
    fn a_start_is_read_to_its_last_byte_and_no_further() {
        let mut bytes = Vec::new();
        Start { service: name("game"), port: 0, player: None }.emit(&mut bytes);
        assert_eq!((Start::missing(&[]), Start::missing(&bytes[..1])), (1, bytes.len() - 1));
        assert_eq!(Start::missing(&bytes), 0);
        for end in 0..bytes.len() {
            assert_eq!(Start::parse(&bytes[..end]), Err(Malformed));
        }
        bytes.push(b'x');
        assert_eq!(Start::parse(&bytes), Err(Malformed));
    }

    proptest! {
        #[test]
        fn what_was_said_is_heard(text in "[A-Za-z0-9._-]{1,64}", port: u8, player: Option<(std::net::IpAddr, u16)>) {
            let start = Start { service: name(&text), port, player: player.map(SocketAddr::from) };
            let mut bytes = Vec::new();
            start.emit(&mut bytes);
            prop_assert!(bytes.len() <= START_BYTES_MAX && Start::missing(&bytes) == 0);
            prop_assert_eq!(Start::parse(&bytes), Ok(start));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = (Start::parse(&bytes), Start::missing(&bytes), DataId::of_hello(&bytes));
        }

        #[test]
        fn a_hello_says_its_id(id: [u8; 16]) {
            prop_assert_eq!(DataId::of_hello(&DataId(id).hello()), Some(DataId(id)));
            prop_assert_eq!(DataId::of_hello(&id), None);
        }
    }
}
