//! What a peer and the rendezvous say to each other, on stream 0 of port 0 of the tunnel between them. Network order. Nothing
//! here knows who is registered.
//!
//! ```text
//! message        length u16, of what follows | kind u8 | body
//!
//! from a peer
//!  1 register    name
//!  2 withdraw    name
//!  3 connect     flow u32 | name
//!  4 hang up     flow u32
//!
//! from the rendezvous
//! 64 registered  name
//! 65 taken       name
//! 66 displaced   name
//! 67 connected   flow u32
//! 68 waiting     flow u32
//! 69 ended       flow u32 | reason u8
//! 70 refused     reason u8 | name
//! 71 address     transport u8 | 4 | IPv4 4 | port u16,  or  transport u8 | 6 | IPv6 16 | port u16
//! 72 dial        id 16
//! 73 channel     channel u8 | port u8 | name
//! ```
//!
//! Flows that a visitor numbers are below 2^31, those that the rendezvous numbers for a provider are above: a peer may be both.
//! A message of an unknown kind is passed over, so that later versions may say more.

use std::net::SocketAddr;

use super::data::DataId;
use crate::proto::tunnel::ServiceName;
use crate::proto::tunnel::wire::{Malformed, SERVICE_BYTES_MAX};
use crate::proto::tunnel::{emit_address, parse_optional_address};

/// Longest message, its length not counted: four times the longest that there is, for those to come.
pub const MESSAGE_BYTES_MAX: usize = 4 * (1 + 4 + SERVICE_BYTES_MAX);

/// From here on the rendezvous numbers flows, below it visitors do.
pub const FLOWS_OF_PROVIDERS: u32 = 1 << 31;

/// What stands before a message.
const LENGTH_BYTES: usize = 2;

/// Relayed datagrams between the same two peers, as one of these peers numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow(pub u32);

/// From a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// I provide this service.
    Register(ServiceName),
    /// No more. Flows that there are go on.
    Withdraw(ServiceName),
    /// Relay this flow to the provider of that service, as soon as there is one. It begins anew if it was there already.
    Connect(Flow, ServiceName),
    /// This flow is over.
    HangUp(Flow),
}

/// From the rendezvous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    Registered(ServiceName),
    /// A key that is not yours owns this name.
    Taken(ServiceName),
    /// Another peer with your key has registered it: your place was taken.
    Displaced(ServiceName),
    /// The flow leads to a provider, and after [`Self::Waiting`] to another than before.
    Connected(Flow),
    /// The flow leads nowhere now: for your key there is no such service. Once there is, it is connected.
    Waiting(Flow),
    Ended(Flow, EndReason),
    Refused(RefusalReason, ServiceName),
    /// This is how your packets arrive.
    Address(Transport, SocketAddr),
    /// Open a connection for one player, with this id ([`super::data`]).
    Dial(DataId),
    /// Datagrams of this port of the tunnel, each session a player, are for that UDP port of the service.
    Channel(Channel),
}

/// A port of the tunnel that stands for a UDP port of a service, both counted from 0. Port 0 of the tunnel is for flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    pub number: u8,
    pub service: ServiceName,
    pub port: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The peer at the other end has hung up, or is gone.
    HungUp,
    /// The key has as many flows, or as many that wait, as it may have.
    TooMany,
    /// Another of a later version.
    Other(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The key has as many services as it may have.
    TooMany,
    /// Another of a later version.
    Other(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What can stand behind a length.
pub trait Message: Sized {
    fn emit_body(&self, out: &mut Vec<u8>);

    /// `None`: a kind that this version does not know.
    ///
    /// # Errors
    /// When the body has not the layout of its kind.
    fn parse(kind: u8, body: &[u8]) -> Result<Option<Self>, Malformed>;

    /// Appends the message.
    fn emit(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; LENGTH_BYTES]);
        self.emit_body(out);
        let length = out.len() - start - LENGTH_BYTES;
        debug_assert!(length <= MESSAGE_BYTES_MAX);
        out[start..][..LENGTH_BYTES].copy_from_slice(&(length as u16).to_be_bytes());
    }
}

/// Puts messages together of the pieces in which they arrive.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    /// How many of them were read.
    read: usize,
}

impl Inbox {
    /// Takes a piece. Whoever pops until there are no more keeps less than a message.
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.read));
        self.bytes.extend_from_slice(piece);
    }

    /// The next message, if all of it has come.
    ///
    /// # Errors
    /// When this is no message, or a longer one than there are. Nothing can follow.
    pub fn pop<M: Message>(&mut self) -> Result<Option<M>, Malformed> {
        while let Some((length, rest)) = self.bytes[self.read..].split_first_chunk::<LENGTH_BYTES>() {
            let length = usize::from(u16::from_be_bytes(*length));
            if length > MESSAGE_BYTES_MAX {
                return Err(Malformed);
            }
            let Some(message) = rest.get(..length) else { break };
            let (kind, body) = message.split_first().ok_or(Malformed)?;
            self.read += LENGTH_BYTES + length;
            if let Some(message) = M::parse(*kind, body)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }
}

const REGISTER: u8 = 1;
const WITHDRAW: u8 = 2;
const CONNECT: u8 = 3;
const HANG_UP: u8 = 4;
const REGISTERED: u8 = 64;
const TAKEN: u8 = 65;
const DISPLACED: u8 = 66;
const CONNECTED: u8 = 67;
const WAITING: u8 = 68;
const ENDED: u8 = 69;
const REFUSED: u8 = 70;
const ADDRESS: u8 = 71;
const DIAL: u8 = 72;
const CHANNEL: u8 = 73;

impl Message for Request {
    fn emit_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Register(name) => emit_named(REGISTER, *name, out),
            Self::Withdraw(name) => emit_named(WITHDRAW, *name, out),
            Self::Connect(flow, name) => {
                emit_flow(CONNECT, *flow, out);
                out.extend_from_slice(name.as_str().as_bytes());
            }
            Self::HangUp(flow) => emit_flow(HANG_UP, *flow, out),
        }
    }

    fn parse(kind: u8, body: &[u8]) -> Result<Option<Self>, Malformed> {
        Ok(Some(match kind {
            REGISTER => Self::Register(parse_name(body)?),
            WITHDRAW => Self::Withdraw(parse_name(body)?),
            CONNECT => {
                let (flow, name) = parse_flow(body)?;
                let name = parse_name(name)?;
                if flow.is_of_provider() { Err(Malformed) } else { Ok(Self::Connect(flow, name)) }?
            }
            HANG_UP => Self::HangUp(only_flow(body)?),
            _ => return Ok(None),
        }))
    }
}

impl Message for Notice {
    fn emit_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Registered(name) => emit_named(REGISTERED, *name, out),
            Self::Taken(name) => emit_named(TAKEN, *name, out),
            Self::Displaced(name) => emit_named(DISPLACED, *name, out),
            Self::Connected(flow) => emit_flow(CONNECTED, *flow, out),
            Self::Waiting(flow) => emit_flow(WAITING, *flow, out),
            Self::Ended(flow, reason) => {
                emit_flow(ENDED, *flow, out);
                out.push(reason.to_byte());
            }
            Self::Refused(reason, name) => {
                out.extend_from_slice(&[REFUSED, reason.to_byte()]);
                out.extend_from_slice(name.as_str().as_bytes());
            }
            Self::Address(transport, address) => {
                out.extend_from_slice(&[ADDRESS, transport.to_byte()]);
                emit_address(*address, out);
            }
            Self::Dial(id) => {
                out.push(DIAL);
                out.extend_from_slice(&id.0);
            }
            Self::Channel(channel) => {
                out.extend_from_slice(&[CHANNEL, channel.number, channel.port]);
                out.extend_from_slice(channel.service.as_str().as_bytes());
            }
        }
    }

    fn parse(kind: u8, body: &[u8]) -> Result<Option<Self>, Malformed> {
        Ok(Some(match kind {
            REGISTERED => Self::Registered(parse_name(body)?),
            TAKEN => Self::Taken(parse_name(body)?),
            DISPLACED => Self::Displaced(parse_name(body)?),
            CONNECTED => Self::Connected(only_flow(body)?),
            WAITING => Self::Waiting(only_flow(body)?),
            ENDED => match parse_flow(body)? {
                (flow, [reason]) => Self::Ended(flow, EndReason::from_byte(*reason)),
                _ => return Err(Malformed),
            },
            REFUSED => {
                let (reason, name) = body.split_first().ok_or(Malformed)?;
                Self::Refused(RefusalReason::from_byte(*reason), parse_name(name)?)
            }
            ADDRESS => {
                let (transport, mut rest) = body.split_first().ok_or(Malformed)?;
                let address = parse_optional_address(&mut rest)?.filter(|_| rest.is_empty()).ok_or(Malformed)?;
                Self::Address(Transport::from_byte(*transport)?, address)
            }
            DIAL => Self::Dial(DataId(body.try_into().map_err(|_length| Malformed)?)),
            CHANNEL => match body {
                [number, port, name @ ..] if *number != 0 => {
                    Self::Channel(Channel { number: *number, service: parse_name(name)?, port: *port })
                }
                _ => return Err(Malformed),
            },
            _ => return Ok(None),
        }))
    }
}

impl Flow {
    /// Whether it was numbered by the rendezvous, for a provider.
    #[must_use]
    pub fn is_of_provider(self) -> bool {
        self.0 >= FLOWS_OF_PROVIDERS
    }
}

impl EndReason {
    fn to_byte(self) -> u8 {
        match self {
            Self::HungUp => 0,
            Self::TooMany => 1,
            Self::Other(byte) => byte,
        }
    }

    fn from_byte(byte: u8) -> Self {
        let known = [Self::HungUp, Self::TooMany];
        known.into_iter().find(|known| known.to_byte() == byte).unwrap_or(Self::Other(byte))
    }
}

impl RefusalReason {
    fn to_byte(self) -> u8 {
        match self {
            Self::TooMany => 0,
            Self::Other(byte) => byte,
        }
    }

    fn from_byte(byte: u8) -> Self {
        if byte == Self::TooMany.to_byte() { Self::TooMany } else { Self::Other(byte) }
    }
}

impl Transport {
    fn to_byte(self) -> u8 {
        match self {
            Self::Udp => 0,
            Self::Tcp => 1,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, Malformed> {
        [Self::Udp, Self::Tcp].into_iter().find(|transport| transport.to_byte() == byte).ok_or(Malformed)
    }
}

fn emit_named(kind: u8, name: ServiceName, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(name.as_str().as_bytes());
}

fn emit_flow(kind: u8, flow: Flow, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(&flow.0.to_be_bytes());
}

/// Names that begin with a dot are for what a rendezvous itself provides.
fn parse_name(bytes: &[u8]) -> Result<ServiceName, Malformed> {
    let name = std::str::from_utf8(bytes).map_err(|_not_text| Malformed)?;
    if name.starts_with('.') { Err(Malformed) } else { ServiceName::new(name) }
}

fn parse_flow(bytes: &[u8]) -> Result<(Flow, &[u8]), Malformed> {
    let (flow, rest) = bytes.split_first_chunk().ok_or(Malformed)?;
    Ok((Flow(u32::from_be_bytes(*flow)), rest))
}

fn only_flow(bytes: &[u8]) -> Result<Flow, Malformed> {
    match parse_flow(bytes)? {
        (flow, []) => Ok(flow),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).expect("a name")
    }

    fn bytes_of(message: &impl Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.emit(&mut bytes);
        bytes
    }

    #[test]
    fn messages_stand_as_told() {
        let flow = Flow(0x0102_0304);
        assert_eq!(bytes_of(&Request::Register(name("game"))), *b"\0\x05\x01game");
        assert_eq!(bytes_of(&Request::Withdraw(name("game"))), *b"\0\x05\x02game");
        assert_eq!(bytes_of(&Request::Connect(flow, name("game"))), *b"\0\x09\x03\x01\x02\x03\x04game");
        assert_eq!(bytes_of(&Request::HangUp(flow)), *b"\0\x05\x04\x01\x02\x03\x04");
        assert_eq!(bytes_of(&Notice::Ended(flow, EndReason::TooMany)), *b"\0\x06\x45\x01\x02\x03\x04\x01");
        assert_eq!(bytes_of(&Notice::Refused(RefusalReason::TooMany, name("g"))), *b"\0\x03\x46\0g");
        let address = Notice::Address(Transport::Tcp, "1.2.3.4:513".parse().expect("an address"));
        assert_eq!(bytes_of(&address), *b"\0\x09\x47\x01\x04\x01\x02\x03\x04\x02\x01");
    }

    #[test]
    fn an_unknown_kind_is_passed_over() {
        let mut inbox = Inbox::default();
        inbox.push(b"\0\x01\x3f\0\x03\x99..");
        inbox.push(&bytes_of(&Request::HangUp(Flow(7))));
        assert_eq!(inbox.pop(), Ok(Some(Request::HangUp(Flow(7)))));
        assert_eq!(inbox.pop::<Request>(), Ok(None));
    }

    #[test]
    fn what_has_another_layout_is_no_message() {
        let too_long = [&((MESSAGE_BYTES_MAX + 1) as u16).to_be_bytes()[..], b"\x09"].concat();
        for bytes in [
            &b"\0\0"[..],
            &too_long,
            b"\0\x01\x01",
            b"\0\x02\x01/",
            b"\0\x02\x01.",
            b"\0\x04\x04\0\0\0",
            b"\0\x06\x04\0\0\0\0\0",
            b"\0\x05\x03\0\0\0\0",
            b"\0\x06\x03\x80\0\0\0g",
            &[&b"\0\x42\x01"[..], &[b'x'; 65]].concat(),
        ] {
            let mut inbox = Inbox::default();
            inbox.push(bytes);
            assert_eq!(inbox.pop::<Request>(), Err(Malformed), "{bytes:?}");
        }
        for bytes in [
            &b"\0\x05\x45\0\0\0\0"[..],
            b"\0\x01\x46",
            b"\0\x02\x46\0",
            b"\0\x01\x47",
            b"\0\x02\x47\0",
            b"\0\x03\x47\0\0",
            b"\0\x09\x47\x02\x04\0\0\0\0\0\0",
            b"\0\x0a\x47\0\x04\0\0\0\0\0\0\0",
            b"\0\x10\x48\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\0\x04\x49\0\0g",
            b"\0\x03\x49\x01\0",
        ] {
            let mut inbox = Inbox::default();
            inbox.push(bytes);
            assert_eq!(inbox.pop::<Notice>(), Err(Malformed), "{bytes:?}");
        }
    }

    fn request() -> impl Strategy<Value = Request> {
        ("[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", any::<u32>(), 0..4).prop_map(|(text, flow, kind)| match kind {
            0 => Request::Register(name(&text)),
            1 => Request::Withdraw(name(&text)),
            2 => Request::Connect(Flow(flow % FLOWS_OF_PROVIDERS), name(&text)),
            _ => Request::HangUp(Flow(flow)),
        })
    }

    fn notice() -> impl Strategy<Value = Notice> {
        let address = any::<(std::net::IpAddr, u16)>();
        ("[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", any::<(u32, u8)>(), address, 0..10).prop_map(
            |(text, (flow, byte), address, kind)| match kind {
                0 => Notice::Registered(name(&text)),
                1 => Notice::Taken(name(&text)),
                2 => Notice::Displaced(name(&text)),
                3 => Notice::Connected(Flow(flow)),
                4 => Notice::Waiting(Flow(flow)),
                5 => Notice::Ended(Flow(flow), EndReason::from_byte(byte)),
                8 => Notice::Dial(DataId([byte; DataId::BYTES])),
                9 => Notice::Channel(Channel { number: byte.max(1), service: name(&text), port: byte }),
                6 => Notice::Refused(RefusalReason::from_byte(byte), name(&text)),
                _ => Notice::Address(if byte % 2 == 0 { Transport::Udp } else { Transport::Tcp }, address.into()),
            },
        )
    }

    fn in_pieces<M: Message>(bytes: &[u8], piece_bytes: usize) -> Vec<M> {
        let (mut inbox, mut messages) = (Inbox::default(), Vec::new());
        for piece in bytes.chunks(piece_bytes) {
            inbox.push(piece);
            while let Some(message) = inbox.pop().expect("it was written by us") {
                messages.push(message);
            }
        }
        assert_eq!(inbox.read, inbox.bytes.len(), "nothing is left over");
        messages
    }

    proptest! {
        #[test]
        fn reading_undoes_writing_whatever_the_pieces(
            requests in prop::collection::vec(request(), 0..20),
            notices in prop::collection::vec(notice(), 0..20),
            piece_bytes in 1..300usize,
        ) {
            let bytes: Vec<u8> = requests.iter().flat_map(bytes_of).collect();
            prop_assert_eq!(in_pieces::<Request>(&bytes, piece_bytes), requests);
            let bytes: Vec<u8> = notices.iter().flat_map(bytes_of).collect();
            prop_assert_eq!(in_pieces::<Notice>(&bytes, piece_bytes), notices);
        }

        #[test]
        fn no_bytes_make_reading_panic_or_spin(pieces: Vec<Vec<u8>>, kind: u8, body in prop::collection::vec(any::<u8>(), 0..90)) {
            let mut inbox = Inbox::default();
            for piece in &pieces {
                inbox.push(piece);
                while let Ok(Some(_)) = inbox.pop::<Request>() {}
            }
            let _ = (Request::parse(kind, &body), Notice::parse(kind, &body), Notice::parse(64 + kind % 8, &body));
        }
    }
}
