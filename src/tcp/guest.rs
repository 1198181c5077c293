//! A player who is handed to another worker: his socket, and the message that goes with it.

use std::os::fd::OwnedFd;

use crate::proto::line::COLLECTED_BYTES_MAX;
use crate::proto::target::Provided;
use crate::proto::tunnel::ServiceName;
use crate::proto::tunnel::wire::SERVICE_BYTES_MAX;

#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) client: OwnedFd,
    pub(super) has_line: bool,
    pub(super) provided: Provided,
    pub(super) early: Vec<u8>,
    /// Workers that have no provider for him, a bit each.
    pub(crate) tried: u64,
}

/// The longest message of a guest, bytes: all that may come with a line.
pub(crate) const GUEST_BYTES_MAX: usize = 4096;
const _: () = assert!(GUEST_BYTES_MAX >= GUEST_HEAD_BYTES + SERVICE_BYTES_MAX + COLLECTED_BYTES_MAX);

/// `has a line u8 | tried u64 | port u8 | length of the service's name u8`, then the name and what was said so far.
const GUEST_HEAD_BYTES: usize = 11;

impl Guest {
    pub(crate) fn emit(&self, out: &mut Vec<u8>) {
        let service = self.provided.service.as_str();
        out.push(self.has_line.into());
        out.extend_from_slice(&self.tried.to_be_bytes());
        out.extend_from_slice(&[self.provided.port, service.len() as u8]);
        out.extend_from_slice(service.as_bytes());
        out.extend_from_slice(&self.early);
    }

    /// `None`: no worker of ours has sent this.
    pub(crate) fn parse(client: OwnedFd, message: &[u8]) -> Option<Self> {
        let (head, rest) = message.split_first_chunk::<GUEST_HEAD_BYTES>()?;
        let [has_line, tried @ .., port, length] = *head;
        let (service, early) = rest.split_at_checked(length.into())?;
        let service = ServiceName::new(std::str::from_utf8(service).ok()?).ok()?;
        let (has_line, tried) = (has_line != 0, u64::from_be_bytes(tried));
        Some(Self { client, has_line, provided: Provided { service, port }, early: early.to_vec(), tried })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> OwnedFd {
        std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").into()
    }

    #[test]
    fn a_guest_arrives_as_he_left() {
        let provided = Provided { service: ServiceName::new("game").expect("a name"), port: 3 };
        let early = b"early words".to_vec();
        let guest = Guest { client: descriptor(), has_line: true, provided, early, tried: 1 << 63 | 5 };
        let mut message = Vec::new();
        guest.emit(&mut message);
        let arrived = Guest::parse(descriptor(), &message).expect("it is whole");
        assert_eq!((arrived.has_line, arrived.provided, arrived.tried), (true, provided, guest.tried));
        assert_eq!(arrived.early, guest.early);
        assert!(Guest::parse(descriptor(), &message[..14]).is_none());
    }
}
