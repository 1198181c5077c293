//! What a worker does: one of the data planes, or a gateway and a rendezvous on one engine, with the addresses that its runtime
//! finds for them.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedReceiver;

use super::Status;
use crate::engine::{Engine, Kind};
use crate::limits;
use crate::names::{Found, Names};
use crate::proto::token::Keyring;
use crate::tcp::hub::NoConnection;
use crate::tcp::{self, Tcp};
use crate::udp::{
    self, Udp,
    rendezvous::{self, Figures, Rendezvous},
};

/// What a worker is told to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Settings {
    Gateway(tcp::Settings),
    Tunnel(udp::Settings),
    /// Its sockets come last.
    Rendezvous {
        gateway: Option<tcp::Settings>,
        rendezvous: rendezvous::Settings,
    },
}

impl Settings {
    /// As one of the workers has them.
    #[must_use]
    pub fn of_worker(&self, number: usize) -> Self {
        let mut settings = self.clone();
        if let Self::Rendezvous { rendezvous, .. } = &mut settings {
            rendezvous.worker = number;
        }
        settings
    }

    /// Sockets that are watched, about.
    fn watched(&self) -> usize {
        match self {
            Self::Gateway(tcp) => 2 * tcp.connections_max,
            Self::Tunnel(udp) if udp.of_players().is_some() => udp.connections_max.saturating_mul(3),
            Self::Tunnel(udp) => udp.connections_max,
            Self::Rendezvous { gateway, rendezvous } => {
                rendezvous.peers_max + gateway.as_ref().map_or(0, |tcp| 2 * tcp.connections_max)
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Plane {
    engine: Engine,
    tables: Tables,
    draining: bool,
}

/// What there is in this worker; those that are both there share the engine.
#[derive(Debug, Default)]
struct Tables {
    gateway: Option<(Box<Tcp>, UnboundedReceiver<Found<tcp::Key>>)>,
    tunnel: Option<(Box<Udp>, UnboundedReceiver<Found<udp::Asker>>)>,
    rendezvous: Option<Box<Rendezvous>>,
}

impl Plane {
    /// # Errors
    /// When the engine cannot be made, or the sockets cannot be watched.
    pub(super) fn new(
        engine: Kind,
        runtime: OwnedFd,
        mut sockets: Vec<OwnedFd>,
        keys: Keyring,
        settings: Settings,
    ) -> io::Result<Self> {
        let engine = Engine::new(engine, settings.watched(), runtime)?;
        let mut tables = Tables::default();
        match settings {
            Settings::Gateway(settings) => tables.gateway = Some(gateway(&engine, sockets, keys, settings)?),
            Settings::Tunnel(settings) => {
                if let Some(of_players) = settings.of_players() {
                    let second = engine.of_second_plane();
                    tables.gateway = Some(gateway(&second, Vec::new(), Keyring::empty(), of_players)?);
                }
                let (names, found) = Names::new();
                tables.tunnel = Some((Box::new(Udp::new(engine.clone(), sockets, names, keys, settings)?), found));
            }
            Settings::Rendezvous { gateway: tcp, rendezvous } => {
                let own = sockets.split_off(sockets.len().saturating_sub(rendezvous.sockets()));
                tables.rendezvous = Some(Box::new(Rendezvous::new(engine.of_second_plane(), own, &keys, rendezvous)?));
                tables.gateway = tcp.map(|settings| gateway(&engine, sockets, keys, settings)).transpose()?;
            }
        }
        Ok(Self { engine, tables, draining: false })
    }

    /// One turn: waits for something to happen, at most for `patience`, and deals with it. True when the runtime has something
    /// to do.
    ///
    /// # Errors
    /// When the engine fails; the worker cannot go on.
    pub(super) fn turn(&mut self, mut patience: Duration) -> io::Result<bool> {
        let Tables { gateway, tunnel, rendezvous } = &mut self.tables;
        if let Some((tcp, _)) = gateway {
            patience = tcp.patience(patience);
        }
        if let Some((udp, _)) = tunnel {
            patience = udp.patience(patience);
        }
        if let Some(rendezvous) = rendezvous {
            patience = rendezvous.patience(patience);
        }
        let mut runtime = self.engine.wait_for_all(patience)?;
        if let Some((tcp, _)) = gateway {
            runtime |= tcp.turn();
        }
        if let Some((udp, _)) = tunnel {
            runtime |= udp.turn();
        }
        if let (Some((tcp, _)), Some(rendezvous)) = (&mut *gateway, &mut *rendezvous) {
            while let Some(want) = tcp.poll_want() {
                rendezvous.want(&want);
            }
        }
        if let Some(rendezvous) = rendezvous {
            rendezvous.turn();
        }
        self.match_players();
        Ok(runtime)
    }

    /// Brings players and their connections together: at a rendezvous those that were found, at a provider those to be opened.
    fn match_players(&mut self) {
        let Tables { gateway: Some((tcp, _)), tunnel, rendezvous } = &mut self.tables else { return };
        if let Some(rendezvous) = rendezvous {
            while let Some((asker, found)) = rendezvous.poll_found() {
                match found {
                    Err(NoConnection::Elsewhere(worker)) => {
                        if let Some(guest) = tcp.send_off(asker) {
                            rendezvous.hand_over(guest, worker);
                        }
                    }
                    found => tcp.handle_found_connection(asker, found),
                }
            }
            while let Some(guest) = rendezvous.poll_guest() {
                tcp.welcome(guest);
            }
        }
        while let Some((address, id)) = tunnel.as_mut().and_then(|(udp, _)| udp.poll_dial()) {
            if !self.draining {
                tcp.reserve(address, id);
            }
        }
    }

    /// Games under way, and what is to become one.
    pub(super) fn connections(&self) -> usize {
        let Tables { gateway, tunnel, rendezvous } = &self.tables;
        gateway.as_ref().map_or(0, |(tcp, _)| tcp.connections())
            + tunnel.as_ref().map_or(0, |(udp, _)| udp.connections())
            + rendezvous.as_ref().map_or(0, |rendezvous| rendezvous.connections())
    }

    pub(super) fn status(&mut self) -> Status {
        let connections = self.connections();
        let mut peers = self.tables.tunnel.as_mut().map(|(udp, _)| udp.peers()).unwrap_or_default();
        let peers_left_out = peers.len().saturating_sub(limits::PEERS_SHOWN_MAX);
        peers.truncate(limits::PEERS_SHOWN_MAX);
        Status { connections, peers, peers_left_out, rendezvous: self.figures() }
    }

    fn figures(&self) -> Option<Figures> {
        let figures = self.tables.rendezvous.as_ref()?.figures();
        let (players, bytes) = self.tables.gateway.as_ref().map_or((0, 0), |(tcp, _)| tcp.at_hub());
        Some(Figures { hub_players_tcp: players as u64, hub_bytes: figures.hub_bytes + bytes, ..figures })
    }

    /// True when it drains, and nobody is left.
    pub(super) fn has_drained(&self) -> bool {
        self.draining && self.connections() == 0
    }

    /// Lets in nobody any more.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        let Tables { gateway, tunnel, rendezvous } = &mut self.tables;
        if let Some((tcp, _)) = gateway {
            tcp.drain();
        }
        if let Some((udp, _)) = tunnel {
            udp.drain();
        }
        if let Some(rendezvous) = rendezvous {
            rendezvous.drain();
        }
    }

    /// Ends all games now.
    pub(super) fn stop(&mut self) {
        if let Some((tcp, _)) = &mut self.tables.gateway {
            tcp.stop();
        }
        if let Some((udp, _)) = &mut self.tables.tunnel {
            udp.stop();
        }
    }

    /// The last words of a worker that ends.
    pub(super) fn leave(&mut self) {
        if let Some((udp, _)) = &mut self.tables.tunnel {
            udp.leave();
        }
        if let Some(rendezvous) = &mut self.tables.rendezvous {
            rendezvous.leave();
        }
    }

    /// Puts new secrets and settings in force. A worker stays what it is.
    pub(super) fn reload(&mut self, keys: Keyring, settings: Settings) {
        let Tables { gateway, tunnel, rendezvous } = &mut self.tables;
        let (new_gateway, new_tunnel, new_rendezvous) = match settings {
            Settings::Gateway(tcp) => (Some(tcp), None, None),
            Settings::Tunnel(udp) => (None, Some(udp), None),
            Settings::Rendezvous { gateway, rendezvous } => (gateway, None, Some(rendezvous)),
        };
        if let (Some(rendezvous), Some(settings)) = (rendezvous, new_rendezvous) {
            rendezvous.reload(&keys, settings);
        }
        if let (Some((udp, _)), Some(settings)) = (tunnel, new_tunnel) {
            if let (Some((tcp, _)), Some(of_players)) = (gateway, settings.of_players()) {
                tcp.reload(Keyring::empty(), of_players);
            }
            udp.reload(keys, settings);
        } else if let (Some((tcp, _)), Some(settings)) = (gateway, new_gateway) {
            tcp.reload(keys, settings);
        }
    }

    /// Waits for an address that somebody asked for, and hands it over. Nothing is lost when this is cancelled.
    pub(super) async fn hear_names(&mut self) {
        match &mut self.tables {
            Tables { tunnel: Some((udp, found)), .. } => udp.handle_found(next(found).await), // its TCP has addresses
            Tables { gateway: Some((tcp, found)), .. } => tcp.handle_found(next(found).await),
            Tables { .. } => std::future::pending().await,
        }
    }
}

fn gateway(
    engine: &Engine,
    listeners: Vec<OwnedFd>,
    keys: Keyring,
    settings: tcp::Settings,
) -> io::Result<(Box<Tcp>, UnboundedReceiver<Found<tcp::Key>>)> {
    let (names, found) = Names::new();
    Ok((Box::new(Tcp::new(engine.clone(), listeners, names, keys, settings)?), found))
}

/// Waits for ever where nobody asks.
async fn next<T>(channel: &mut UnboundedReceiver<T>) -> T {
    match channel.recv().await {
        Some(received) => received,
        None => std::future::pending().await,
    }
}
