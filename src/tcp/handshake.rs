//! Reading the line. What is decided lies in [`Line`]; here it gets its bytes and its time.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Instant;

use super::{Context, Ending, Next, Settings, Side};
use crate::proto::line::{Line, Progress};
use crate::proto::target::Target;
use crate::sys::{clock, socket};

#[derive(Debug)]
pub(super) struct Handshake {
    line: Line,
    wait_until: Instant,
}

impl Handshake {
    pub(super) fn new(deadline: Instant) -> Self {
        Self { line: Line::new(deadline), wait_until: deadline }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.wait_until
    }

    pub(super) fn step(&mut self, client: &mut Side, context: &mut Context) -> Next {
        // What has arrived is looked at before the clock: a wrapped token may be complete by now.
        let mut progress = Progress::WaitUntil(self.wait_until);
        while client.ready.readable && matches!(progress, Progress::WaitUntil(_)) {
            let room = self.line.room().min(context.shared.buffer.len());
            if room == 0 {
                break; // a wrong line with much behind it: the verdict waits for its time
            }
            progress = match socket::receive(client.socket.as_fd(), &mut context.shared.buffer[..room]) {
                Ok(0) => {
                    client.ready.readable = false;
                    self.line.handle_end(context.now)
                }
                Ok(n) => {
                    // Not the time of the turn: the line may have been complete only after that.
                    let now = clock::now();
                    client.ready.readable = n == room || client.ready.ended || client.ready.urgent;
                    let (keys, settings) = (&context.keys, &context.settings);
                    let open = |token: &[u8]| keys.open(token).ok().filter(|target| settings.permit(target));
                    self.line.handle_bytes(now, &context.shared.buffer[..n], open)
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    client.ready.readable = false;
                    break;
                }
                Err(_reset) => return Next::Close(Ending::ClientGone),
            };
        }
        if matches!(progress, Progress::WaitUntil(_)) {
            progress = self.line.handle_timeout(context.now);
        }
        match progress {
            Progress::WaitUntil(_) if client.ready.failed && !client.ready.readable => Next::Close(Ending::ClientGone),
            Progress::WaitUntil(at) => {
                self.wait_until = at;
                Next::Wait
            }
            Progress::Opened { target: Target::Provider(provided), early, .. } => Next::Fetch { provided, early },
            Progress::Opened { target, early, completed } => Next::Dial { target, early, completed },
            Progress::Refused(refusal) => Next::Refuse { refusal, not_before: context.now },
        }
    }
}

impl Settings {
    /// Whether policy lets a line lead there. A name is judged when its addresses are known.
    fn permit(&self, target: &Target) -> bool {
        match target {
            Target::Address(address) => self.permit_address(*address),
            Target::Name { .. } => true,
            Target::Provider(provided) => self.has_rendezvous && self.policy.permits_service(provided.service),
        }
    }

    pub(super) fn permit_address(&self, address: SocketAddr) -> bool {
        self.policy.permits(connected(address)) && !self.own_addresses.iter().any(|own| leads_to(address, *own))
    }
}

/// The address that is really connected to: the unspecified one leads to this host.
fn connected(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port()),
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    }
}

/// Whether connecting to `address` would reach a socket that listens on `own`, which may be a wildcard.
fn leads_to(address: SocketAddr, own: SocketAddr) -> bool {
    let address = connected(address);
    address.port() == own.port()
        && address.is_ipv4() == own.is_ipv4()
        && (address.ip() == own.ip() || (own.ip().is_unspecified() && socket::is_local(address.ip())))
}
