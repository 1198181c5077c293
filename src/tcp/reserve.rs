//! A provider's connection that waits at the rendezvous for a player. It says which one it is; when a player has come the
//! rendezvous says whom he wants, and the service is dialled for him.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Context, Ending, Next, Settings, Side, dial};
use crate::limits;
use crate::proto::proxy_header::{self, Transport};
use crate::proto::rendezvous::data::{DataId, HELLO_BYTES, Start};
use crate::proto::status::Refusal;
use crate::proto::target::Target;
use crate::proto::tunnel::ServiceName;
use crate::sys::socket;

/// A service, and where its TCP ports really are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Published {
    pub name: ServiceName,
    pub addresses: Vec<SocketAddr>,
    /// Tell it the players' addresses, by the PROXY protocol.
    pub proxy_header: bool,
}

#[derive(Debug)]
pub(super) struct Reserve {
    /// Where the rendezvous listens.
    port: u16,
    /// `None`: it was said.
    hello: Option<[u8; HELLO_BYTES]>,
    /// What the rendezvous has said so far.
    start: Vec<u8>,
    until: Instant,
}

impl Reserve {
    /// As the sockets of games are.
    pub(super) fn prepare(socket: BorrowedFd<'_>) -> io::Result<()> {
        socket::prepare(socket)?;
        socket::keep_alive(socket, super::LIVENESS)
    }

    pub(super) fn new(port: u16, id: DataId, context: &Context) -> Self {
        Self { port, hello: Some(id.hello()), start: Vec::new(), until: context.now + limits::RESERVED_TIMEOUT }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.until
    }

    pub(super) fn step(&mut self, rendezvous: &mut Side, context: &mut Context) -> Next {
        match self.listen(rendezvous) {
            Ok(Some(start)) => self.dial(&start, context),
            Ok(None) if context.now < self.until => Next::Wait,
            Ok(None) | Err(_) => Next::Close(Ending::Unused),
        }
    }

    /// Who has come, as soon as the rendezvous has said it.
    fn listen(&mut self, rendezvous: &mut Side) -> io::Result<Option<Start>> {
        if let Some(hello) = self.hello {
            if !rendezvous.ready.writable && !rendezvous.ready.ended {
                return Ok(None);
            }
            dial::connected(rendezvous, self.port)?;
            if socket::send(rendezvous.socket.as_fd(), &hello)? < hello.len() {
                return Err(ErrorKind::WriteZero.into());
            }
            self.hello = None;
            rendezvous.ready.readable = true;
        }
        while rendezvous.ready.readable {
            let (had, missing) = (self.start.len(), Start::missing(&self.start));
            self.start.resize(had + missing, 0);
            let heard = socket::receive(rendezvous.socket.as_fd(), &mut self.start[had..]);
            self.start.truncate(had + *heard.as_ref().unwrap_or(&0));
            match heard {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) if Start::missing(&self.start) == 0 => {
                    return Start::parse(&self.start).map(Some).map_err(|_malformed| ErrorKind::InvalidData.into());
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => rendezvous.ready.readable = false,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn dial(&self, start: &Start, context: &Context) -> Next {
        let Some((published, address)) = context.settings.find(start) else {
            let refusal = Refusal::Unreachable(ErrorKind::NotFound.into());
            return Next::Refuse { refusal, not_before: context.now };
        };
        let mut early = Vec::new();
        if published.proxy_header {
            proxy_header::emit(Transport::Stream, start.player, address, &mut early);
        }
        Next::Dial { target: Target::Address(address), early, completed: context.now }
    }
}

impl Settings {
    fn find(&self, start: &Start) -> Option<(&Published, SocketAddr)> {
        let published = self.published.iter().find(|published| published.name == start.service)?;
        Some((published, *published.addresses.get(usize::from(start.port))?))
    }
}
