//! What stands in a datagram outside its frames: the header of every packet, and what the two messages of the handshake say.
//! Network order. Nothing here knows a key.
//!
//! ```text
//! packet    id 6 | number 6 | ciphertext | tag 16
//! offer     version u8 | flags u8 | id 6 | length of the name u8 | name of the service 64, filled up with zeros
//! answer    id 6 | flags u8 | tcp ports u8 | udp ports u8
//! ```

use serde::{Deserialize, Serialize};

/// Bytes that a packet adds to its frames: header and tag.
pub const OVERHEAD_BYTES: usize = Header::LEN + TAG_BYTES;

/// Both ciphers and the handshake have tags of this length.
pub const TAG_BYTES: usize = 16;

/// The last number that a packet can have: 48 bits.
pub const NUMBER_MAX: u64 = (1 << 48) - 1;

/// Number of both messages of the handshake; data begins at 1.
pub const HANDSHAKE_NUMBER: u64 = 0;

/// Longest name of a service, bytes: enough for a DNS label.
pub const SERVICE_BYTES_MAX: usize = 64;

/// The only version of the protocol so far.
pub const VERSION: u8 = 1;

const ID_BYTES: usize = 6;

/// What a packet is addressed to: a random number that its receiver has chosen for the session. The first message of a
/// handshake is addressed to a key instead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; ID_BYTES]);

/// `id 6 | number 6`, the head of every packet, readable for all and authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub id: Id,
    pub number: u64,
}

/// What the initiator says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Where the initiator wants its packets.
    pub id: Id,
    /// Its processor has instructions for AES; without them ChaCha20 is faster.
    pub has_aes: bool,
    pub service: ServiceName,
}

/// What the responder says to an offer that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where the responder wants its packets.
    pub id: Id,
    pub cipher: Cipher,
    /// The service wants to be told the addresses of its players.
    pub wants_addresses: bool,
    /// Ports that the service has.
    pub tcp_ports: u8,
    pub udp_ports: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    Aes256Gcm,
    ChaCha20Poly1305,
}

/// 1 to 64 letters, digits, `.`, `_` and `-`: safe to compare, to log and to show.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName {
    bytes: [u8; SERVICE_BYTES_MAX],
    length: u8,
}

/// Not a name of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadName;

/// The bytes have not this layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Header {
    pub const LEN: usize = 2 * ID_BYTES;

    /// Reads what a datagram begins with.
    ///
    /// # Errors
    /// When it is shorter than a header.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let (head, _) = datagram.split_first_chunk::<{ Self::LEN }>().ok_or(Malformed)?;
        let [a, b, c, d, e, f, number @ ..] = *head;
        let number = number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        Ok(Self { id: Id([a, b, c, d, e, f]), number })
    }

    /// The lower 48 bits of the number are written; there are no others.
    #[must_use]
    pub fn emit(&self) -> [u8; Self::LEN] {
        debug_assert!(self.number <= NUMBER_MAX);
        let mut bytes = [0; Self::LEN];
        bytes[..ID_BYTES].copy_from_slice(&self.id.0);
        bytes[ID_BYTES..].copy_from_slice(&self.number.to_be_bytes()[2..]);
        bytes
    }
}

impl Offer {
    /// The same for every name, which therefore cannot be told by its length.
    pub const LEN: usize = 3 + ID_BYTES + SERVICE_BYTES_MAX;

    const HAS_AES: u8 = 1;

    /// # Errors
    /// Another version, or a name that is none. Flags without a meaning yet are overlooked.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Self, Malformed> {
        let [version, flags, a, b, c, d, e, f, length, service @ ..] = *bytes;
        if version != VERSION {
            return Err(Malformed);
        }
        let service = ServiceName::parse(length, service)?;
        Ok(Self { id: Id([a, b, c, d, e, f]), has_aes: flags & Self::HAS_AES != 0, service })
    }

    #[must_use]
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = VERSION;
        bytes[1] = if self.has_aes { Self::HAS_AES } else { 0 };
        bytes[2..8].copy_from_slice(&self.id.0);
        bytes[8] = self.service.length;
        bytes[9..].copy_from_slice(&self.service.bytes);
        bytes
    }
}

impl Answer {
    pub const LEN: usize = ID_BYTES + 3;

    const WANTS_ADDRESSES: u8 = 1;
    const AES: u8 = 2;

    /// Every sequence of bytes is an answer. Flags without a meaning yet are overlooked.
    #[must_use]
    pub fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, flags, tcp_ports, udp_ports] = *bytes;
        Self {
            id: Id([a, b, c, d, e, f]),
            cipher: if flags & Self::AES != 0 { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 },
            wants_addresses: flags & Self::WANTS_ADDRESSES != 0,
            tcp_ports,
            udp_ports,
        }
    }

    #[must_use]
    pub fn emit(&self) -> [u8; Self::LEN] {
        let [a, b, c, d, e, f] = self.id.0;
        let wants_addresses = if self.wants_addresses { Self::WANTS_ADDRESSES } else { 0 };
        let aes = if self.cipher == Cipher::Aes256Gcm { Self::AES } else { 0 };
        [a, b, c, d, e, f, wants_addresses | aes, self.tcp_ports, self.udp_ports]
    }
}

impl Cipher {
    /// AES-256-GCM where both ends have instructions for it, otherwise ChaCha20-Poly1305, which both always know.
    #[must_use]
    pub fn for_both(one_has_aes: bool, other_has_aes: bool) -> Self {
        if one_has_aes && other_has_aes { Self::Aes256Gcm } else { Self::ChaCha20Poly1305 }
    }
}

impl ServiceName {
    /// # Errors
    /// When it is empty, too long, or has other characters.
    pub fn new(name: &str) -> Result<Self, Malformed> {
        let mut bytes = [0; SERVICE_BYTES_MAX];
        bytes.get_mut(..name.len()).ok_or(Malformed)?.copy_from_slice(name.as_bytes());
        Self::parse(name.len() as u8, bytes)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).expect("checked to be ASCII when it was made")
    }

    fn parse(length: u8, bytes: [u8; SERVICE_BYTES_MAX]) -> Result<Self, Malformed> {
        let (name, rest) = bytes.split_at_checked(usize::from(length)).ok_or(Malformed)?;
        let is_named =
            !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
        if is_named && rest.iter().all(|byte| *byte == 0) { Ok(Self { bytes, length }) } else { Err(Malformed) }
    }
}

impl std::str::FromStr for ServiceName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        Self::new(text).map_err(|_malformed| BadName)
    }
}

impl TryFrom<String> for ServiceName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.as_str().to_owned()
    }
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Display for BadName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a name has 1 to 64 letters, digits, `.`, `_` and `-`")
    }
}

impl std::error::Error for BadName {}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the bytes have another layout")
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_stands_in_network_order() {
        let header = Header { id: Id(*b"abcdef"), number: 0x0102_0304_0506 };
        assert_eq!(header.emit(), *b"abcdef\x01\x02\x03\x04\x05\x06");
        assert_eq!(Header::parse(b"abcdef\x01\x02\x03\x04\x05\x06..."), Ok(header));
        assert_eq!(Header::parse(b"abcdef\x01\x02\x03\x04\x05"), Err(Malformed));
    }

    #[test]
    fn an_offer_has_one_length_whatever_the_name() {
        let offer = Offer { id: Id(*b"abcdef"), has_aes: true, service: ServiceName::new("game").expect("a name") };
        let bytes = [&b"\x01\x01abcdef\x04game"[..], &[0; 60]].concat();
        assert_eq!(offer.emit()[..], bytes[..]);
        assert_eq!(bytes.len(), Offer::LEN);
    }

    #[test]
    fn an_answer_stands_as_told() {
        let answer =
            Answer { id: Id(*b"abcdef"), cipher: Cipher::Aes256Gcm, wants_addresses: true, tcp_ports: 4, udp_ports: 5 };
        assert_eq!(answer.emit(), *b"abcdef\x03\x04\x05");
    }

    #[test]
    fn a_service_has_a_short_and_plain_name() {
        let longest = "x".repeat(SERVICE_BYTES_MAX);
        for name in ["a", "Game-2_b.example", &longest] {
            assert_eq!(ServiceName::new(name).expect(name).as_str(), name);
        }
        for name in ["", " ", "a b", "a/b", "é", "a\n", &format!("{longest}x"), &"x".repeat(256 + 1)] {
            assert_eq!(ServiceName::new(name), Err(Malformed), "{name:?}");
        }
    }

    #[test]
    fn an_offer_of_another_version_or_with_bytes_after_the_name_is_none() {
        let good = Offer { id: Id([1; 6]), has_aes: false, service: ServiceName::new("game").expect("a name") }.emit();
        assert!(Offer::parse(&good).is_ok());
        for (at, byte) in [(0, 0), (0, 2), (8, 0), (8, 3), (8, 5), (8, 65), (8, 255), (9, b'/'), (13, b'x'), (72, 1)] {
            let mut bytes = good;
            bytes[at] = byte;
            assert_eq!(Offer::parse(&bytes), Err(Malformed), "byte {at} is {byte}");
        }
    }

    proptest! {
        #[test]
        fn parsing_undoes_emitting(
            (id, number) in (any::<[u8; 6]>(), 0..=NUMBER_MAX),
            name in "[A-Za-z0-9._-]{1,64}",
            (flags, tcp_ports, udp_ports) in (any::<[bool; 2]>(), any::<u8>(), any::<u8>()),
        ) {
            let id = Id(id);
            let header = Header { id, number };
            prop_assert_eq!(Header::parse(&header.emit()), Ok(header));
            let offer = Offer { id, has_aes: flags[0], service: ServiceName::new(&name).expect("a name") };
            prop_assert_eq!(Offer::parse(&offer.emit()), Ok(offer));
            let cipher = Cipher::for_both(flags[0], true);
            let answer = Answer { id, cipher, wants_addresses: flags[1], tcp_ports, udp_ports };
            prop_assert_eq!(Answer::parse(&answer.emit()), answer);
        }

        #[test]
        fn no_bytes_make_parsing_panic(bytes: Vec<u8>, offer: [[u8; Offer::LEN]; 1], answer: [u8; Answer::LEN]) {
            let _ = (Header::parse(&bytes), Answer::parse(&answer));
            let [mut offer] = offer;
            for (version, length) in [(offer[0], offer[8]), (VERSION, offer[8]), (VERSION, offer[8] % 70)] {
                (offer[0], offer[8]) = (version, length);
                let _ = Offer::parse(&offer).map(|offer| offer.service.as_str().len());
            }
        }
    }
}
