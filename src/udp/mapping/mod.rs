//! A port of the home's router that leads here, so that peers behind any NAT reach this daemon: asked for once the rendezvous is
//! reached, kept as long as the daemon lives.
//!
//! It is for one socket, which rounds of punching use from then on in place of a fresh one: that of `--udp-port`, or one that is
//! opened for it. Nobody waits for the router. Where it grants nothing, nothing changes.
//!
//! Absent: who is told of it. A round's profile names the address ([`crate::proto::punch::Setup`]).

mod clerk;
mod router;
mod upnp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use super::Context;
use super::carrier::Carrier;
use super::settings::{self, Paths};
use super::via::Via;
use crate::engine::{Event, Token};
use crate::sys::{socket, udp};
use clerk::Clerk;
pub use router::{Fault, Granted, Outcomes, Protocol, Router};

const ANY4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

fn bell() -> Token {
    Token::new(super::MAPPING, 0, 0)
}

#[derive(Debug)]
pub(super) struct Mapping {
    is_wanted: bool,
    clerk: Option<Clerk>,
    /// The one that the port is for, until the carrier has it.
    socket: Option<OwnedFd>,
}

impl Mapping {
    pub(super) fn new(via: &settings::Via) -> Self {
        Self { is_wanted: via.maps_ports && via.paths != Paths::Relay, clerk: None, socket: None }
    }

    /// Does what is due. True when a port leads here that did not before.
    pub(super) fn turn(&mut self, via: &Via, carrier: &mut Carrier, context: &mut Context) -> bool {
        if self.is_wanted && is_far(via) {
            self.is_wanted = false;
            if let Err(error) = self.begin(carrier, context) {
                tracing::debug!(%error, "the router is not asked for a port");
            }
        }
        let news = self.clerk.as_ref().map(|clerk| std::iter::from_fn(|| clerk.poll()).collect::<Vec<_>>());
        news.into_iter().flatten().fold(false, |_, granted| self.note(granted, via, carrier, context))
    }

    fn begin(&mut self, carrier: &Carrier, context: &mut Context) -> io::Result<()> {
        let port = match carrier.chosen_wire(ANY4).and_then(|wire| carrier.port(wire)) {
            Some(port) => port,
            None => {
                let socket = udp::bind(SocketAddr::new(ANY4, 0), false)?;
                udp::enlarge_buffers(socket.as_fd());
                let port = socket::local_address(socket.as_fd())?.port();
                self.socket = Some(socket);
                port
            }
        };
        let clerk = Clerk::hire(port)?;
        context.engine.watch_arrivals(clerk.bell.as_fd(), bell())?;
        self.clerk = Some(clerk);
        Ok(())
    }

    fn note(&mut self, granted: Option<Granted>, via: &Via, carrier: &mut Carrier, context: &mut Context) -> bool {
        let Some(granted) = granted else {
            tracing::debug!("no port of the router leads here");
            carrier.set_mapped(None);
            return false;
        };
        if let Some(socket) = self.socket.take() {
            match carrier.add(socket, &mut context.engine) {
                Ok(number) => carrier.keep(number),
                Err(error) => {
                    tracing::warn!(%error, "the socket for the router's port cannot be watched");
                    return false;
                }
            }
        }
        let (external, by) = (granted.external, granted.protocol.as_str());
        match via.tcp_reflexive().map(|address| address.ip()).filter(|ip| ip.is_ipv4() && *ip != *external.ip()) {
            None => tracing::info!(%external, by, "a port of the router leads here"),
            Some(seen_as) => {
                tracing::info!(%external, by, %seen_as, "a port of the router leads here, but another NAT is in front of it")
            }
        }
        carrier.set_mapped(Some(external.into()));
        true
    }

    /// The thread has news, for the next turn.
    pub(super) fn note_bell(&self, event: Event, context: &mut Context) {
        let Some(clerk) = &self.clerk else { return };
        clerk.bell.clear();
        if matches!(event, Event::Disarmed(_))
            && let Err(error) = context.engine.watch_arrivals(clerk.bell.as_fd(), bell())
        {
            tracing::error!(%error, "news of the router's port are heard late");
        }
    }

    /// There may be another router.
    pub(super) fn note_network_changed(&self) {
        self.clerk.iter().for_each(Clerk::ask_again);
    }

    /// Gives the port back.
    pub(super) fn leave(&mut self, context: &mut Context) {
        self.is_wanted = false;
        if let Some(clerk) = self.clerk.take() {
            context.engine.forget(clerk.dismiss(), bell());
        }
    }
}

/// The rendezvous is reached, and is not on this host.
fn is_far(via: &Via) -> bool {
    via.observers().first().is_some_and(|at| !at.ip().is_loopback())
}
