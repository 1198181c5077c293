//! A frame of smux: 8 bytes of header, little-endian, and what it announces. Source: `frame.go` of xtaci/smux.
//!
//! ```text
//! version u8 | command u8 | length u16 | stream u32
//! update (version 2): consumed u32 | window u32
//! ```

/// Before the payload.
pub const HEADER_BYTES: usize = 8;
/// Payload of an update.
pub const UPDATE_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Version {
    /// All streams share one buffer: one reader that stops stops them all, once it is full.
    V1 = 1,
    /// Each stream has a window of its own as well.
    V2 = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    Open = 0,
    Finish = 1,
    Push = 2,
    /// To show that one lives.
    Nothing = 3,
    /// How much has been read of a stream; version 2 only.
    Update = 4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: Version,
    pub command: Command,
    /// Bytes of payload.
    pub length: u16,
    pub stream: u32,
}

impl Header {
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.version as u8;
        bytes[1] = self.command as u8;
        bytes[2..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..].copy_from_slice(&self.stream.to_le_bytes());
        bytes
    }

    /// `None` for what is no header, and for one whose payload has no business there.
    #[must_use]
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Option<Self> {
        let [version, command, low, high, stream @ ..] = bytes;
        let version = [Version::V1, Version::V2].into_iter().find(|known| *known as u8 == version)?;
        let command = Command::from_byte(command)?;
        let length = u16::from_le_bytes([low, high]);
        let fits = match command {
            Command::Push => true,
            Command::Update => version == Version::V2 && usize::from(length) == UPDATE_BYTES,
            Command::Open | Command::Finish | Command::Nothing => length == 0,
        };
        fits.then(|| Self { version, command, length, stream: u32::from_le_bytes(stream) })
    }
}

impl Command {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Open, Self::Finish, Self::Push, Self::Nothing, Self::Update]
            .into_iter()
            .find(|command| *command as u8 == byte)
    }
}

/// What the peer has read of a stream since its beginning, modulo 2^32, and how many bytes it keeps unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    pub consumed: u32,
    pub window: u32,
}

impl Update {
    #[must_use]
    pub fn encode(&self) -> [u8; UPDATE_BYTES] {
        let mut bytes = [0; UPDATE_BYTES];
        bytes[..4].copy_from_slice(&self.consumed.to_le_bytes());
        bytes[4..].copy_from_slice(&self.window.to_le_bytes());
        bytes
    }

    #[must_use]
    pub fn decode([a, b, c, d, window @ ..]: [u8; UPDATE_BYTES]) -> Self {
        Self { consumed: u32::from_le_bytes([a, b, c, d]), window: u32::from_le_bytes(window) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_stands_as_smux_writes_it() {
        let header = Header { version: Version::V2, command: Command::Push, length: 0x0201, stream: 0x0605_0403 };
        assert_eq!(header.encode(), [2, 2, 1, 2, 3, 4, 5, 6]);
        let update = Update { consumed: 0x0403_0201, window: 0x0807_0605 };
        assert_eq!(update.encode(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Update::decode(update.encode()), update);
    }

    #[test]
    fn an_update_belongs_to_version_2_and_has_8_bytes() {
        assert_eq!(Header::decode([1, 4, 8, 0, 3, 0, 0, 0]), None);
        assert_eq!(Header::decode([2, 4, 7, 0, 3, 0, 0, 0]), None);
        assert!(Header::decode([2, 4, 8, 0, 3, 0, 0, 0]).is_some());
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same(bytes: [u8; 8], version in 0..4u8, command in 0..6u8) {
            let [_, _, rest @ ..] = bytes;
            let bytes = [&[version, command][..], &rest].concat().try_into().expect("8 bytes");
            if let Some(header) = Header::decode(bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
