//! What the operator decides about tunnels.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::proto::target::Target;
use crate::proto::tunnel::{self, Repeats, Service, ServiceName};
use crate::sys;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    pub role: Role,
    pub mode: Mode,
    /// Bytes a second that bulk may take. `None`: as many as the path bears.
    pub rate_max: Option<u64>,
    /// Time a provider has to connect to a service.
    pub dial_timeout: Duration,
    pub idle_timeout: Duration,
    pub half_closed_timeout: Duration,
    pub connections_max: usize,
}

/// Which end of the tunnels this is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Role {
    /// All sockets of the worker carry tunnels.
    Provide(Vec<Provided>),
    /// The sockets of the worker are for players: for each service in turn, first those for TCP, then those for UDP.
    Visit(Vec<Visited>),
}

/// A service, and where it really is. What a visitor reaches is chosen here, by the number of a port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Provided {
    pub name: ServiceName,
    pub tcp: Vec<SocketAddr>,
    pub udp: Vec<SocketAddr>,
    /// Tell it the players' addresses, by the PROXY protocol.
    pub proxy_header: bool,
}

/// A service to be reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Visited {
    pub name: ServiceName,
    pub peer: Target,
    /// Number of sockets for players.
    pub tcp: usize,
    pub udp: usize,
}

/// How much a tunnel does for speed, at the cost of bandwidth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Little messages are sent once, and again when they are missed
    Normal,
    /// Little messages are sent twice
    Fast,
    /// Little messages are sent three times
    Fast2,
    /// Little messages are sent five times
    Fast3,
    /// Little messages are sent as often as the measured loss demands
    #[default]
    Game,
    /// For files: as normal
    Bulk,
}

impl Mode {
    fn repeats(self) -> Repeats {
        match self {
            Self::Normal | Self::Bulk => Repeats::Fixed(0),
            Self::Fast => Repeats::Fixed(1),
            Self::Fast2 => Repeats::Fixed(2),
            Self::Fast3 => Repeats::Fixed(4),
            Self::Game => Repeats::Adaptive,
        }
    }
}

impl Settings {
    pub(super) fn of_endpoint(&self) -> tunnel::Settings {
        tunnel::Settings {
            has_aes: sys::process::has_aes(),
            rate_max: self.rate_max,
            repeats: self.mode.repeats(),
            ..tunnel::Settings::default()
        }
    }
}

impl Role {
    /// What a running worker cannot change, in words that differ when it does.
    #[must_use]
    pub fn outline(&self) -> String {
        let service = |name: &ServiceName, tcp: usize, udp: usize| format!("{name} {tcp} {udp}");
        let services: Vec<_> = match self {
            Self::Provide(services) => {
                services.iter().map(|of| service(&of.name, of.tcp.len(), of.udp.len())).collect()
            }
            Self::Visit(services) => services.iter().map(|of| service(&of.name, of.tcp, of.udp)).collect(),
        };
        services.join(", ")
    }
}

impl Provided {
    pub(super) fn service(&self) -> Service {
        Service {
            tcp_ports: self.tcp.len().try_into().unwrap_or(u8::MAX),
            udp_ports: self.udp.len().try_into().unwrap_or(u8::MAX),
            wants_addresses: self.proxy_header,
        }
    }
}
