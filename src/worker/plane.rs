//! What a worker does: one of the data planes, with the addresses that its runtime finds for it.

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
use crate::tcp::{self, Tcp};
use crate::udp::{self, Udp};

/// What a worker is told to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Settings {
    Gateway(tcp::Settings),
    Tunnel(udp::Settings),
}

#[derive(Debug)]
pub(super) struct Plane {
    engine: Engine,
    table: Table,
    draining: bool,
}

#[derive(Debug)]
enum Table {
    Gateway(Box<Tcp>, UnboundedReceiver<Found<tcp::Key>>),
    Tunnel(Box<Udp>, UnboundedReceiver<Found<udp::Asker>>),
}

impl Plane {
    /// # Errors
    /// When the engine cannot be made, or the sockets cannot be watched.
    pub(super) fn new(
        engine: Kind,
        runtime: OwnedFd,
        sockets: Vec<OwnedFd>,
        keys: Keyring,
        settings: Settings,
    ) -> io::Result<Self> {
        let watched = match &settings {
            Settings::Gateway(settings) => 2 * settings.connections_max,
            Settings::Tunnel(settings) => settings.connections_max,
        };
        let engine = Engine::new(engine, watched, runtime)?;
        let table = match settings {
            Settings::Gateway(settings) => {
                let (names, found) = Names::new();
                Table::Gateway(Box::new(Tcp::new(engine.clone(), sockets, names, keys, settings)?), found)
            }
            Settings::Tunnel(settings) => {
                let (names, found) = Names::new();
                Table::Tunnel(Box::new(Udp::new(engine.clone(), sockets, names, keys, settings)?), found)
            }
        };
        Ok(Self { engine, table, draining: false })
    }

    /// One turn: waits for something to happen, at most for `patience`, and deals with it. True when the runtime has something
    /// to do.
    ///
    /// # Errors
    /// When the engine fails; the worker cannot go on.
    pub(super) fn turn(&mut self, patience: Duration) -> io::Result<bool> {
        let patience = match &self.table {
            Table::Gateway(tcp, _) => tcp.patience(patience),
            Table::Tunnel(udp, _) => udp.patience(patience),
        };
        let runtime = self.engine.wait_for_all(patience)?;
        let asks = match &mut self.table {
            Table::Gateway(tcp, _) => tcp.turn(),
            Table::Tunnel(udp, _) => udp.turn(),
        };
        Ok(runtime || asks)
    }

    /// Games under way, and what is to become one.
    pub(super) fn connections(&self) -> usize {
        match &self.table {
            Table::Gateway(tcp, _) => tcp.connections(),
            Table::Tunnel(udp, _) => udp.connections(),
        }
    }

    pub(super) fn status(&mut self) -> Status {
        let connections = self.connections();
        let mut peers = match &mut self.table {
            Table::Gateway(..) => Vec::new(),
            Table::Tunnel(udp, _) => udp.peers(),
        };
        let peers_left_out = peers.len().saturating_sub(limits::PEERS_SHOWN_MAX);
        peers.truncate(limits::PEERS_SHOWN_MAX);
        Status { connections, peers, peers_left_out }
    }

    /// True when it drains, and nobody is left.
    pub(super) fn has_drained(&self) -> bool {
        self.draining && self.connections() == 0
    }

    /// Lets in nobody any more.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        match &mut self.table {
            Table::Gateway(tcp, _) => tcp.drain(),
            Table::Tunnel(udp, _) => udp.drain(),
        }
    }

    /// Ends all games now.
    pub(super) fn stop(&mut self) {
        match &mut self.table {
            Table::Gateway(tcp, _) => tcp.stop(),
            Table::Tunnel(udp, _) => udp.stop(),
        }
    }

    /// The last words of a worker that ends.
    pub(super) fn leave(&mut self) {
        match &mut self.table {
            Table::Gateway(..) => {}
            Table::Tunnel(udp, _) => udp.leave(),
        }
    }

    /// Puts new secrets and settings in force. A worker stays what it is.
    pub(super) fn reload(&mut self, keys: Keyring, settings: Settings) {
        match (&mut self.table, settings) {
            (Table::Gateway(tcp, _), Settings::Gateway(settings)) => tcp.reload(keys, settings),
            (Table::Tunnel(udp, _), Settings::Tunnel(settings)) => udp.reload(keys, settings),
            (Table::Gateway(..) | Table::Tunnel(..), _) => {}
        }
    }

    /// Waits for an address that somebody asked for, and hands it over. Nothing is lost when this is cancelled.
    pub(super) async fn hear_names(&mut self) {
        match &mut self.table {
            Table::Gateway(tcp, found) => tcp.handle_found(next(found).await),
            Table::Tunnel(udp, found) => udp.handle_found(next(found).await),
        }
    }
}

/// Waits for ever where nobody asks.
async fn next<T>(channel: &mut UnboundedReceiver<T>) -> T {
    match channel.recv().await {
        Some(received) => received,
        None => std::future::pending().await,
    }
}
