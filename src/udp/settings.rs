//! What the operator decides about tunnels.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::peers::Peers;
use crate::proto::kcp;
use crate::proto::kcptun::{self, Cipher, Shape, Version};
use crate::proto::policy::Policy;
use crate::proto::target::Target;
use crate::proto::token::Keyring;
use crate::proto::tunnel::{self, Repeats, Service, ServiceName};
use crate::tcp::{self, Published};
use crate::{limits, sys};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    pub role: Role,
    /// Where the peers meet. `None`: a visitor knows where the provider is.
    pub via: Option<Via>,
    pub protocol: Protocol,
    pub mode: Mode,
    /// Bytes a second that bulk may take. `None`: as many as the path bears.
    pub rate_max: Option<u64>,
    /// Time a provider has to connect to a service.
    pub dial_timeout: Duration,
    pub idle_timeout: Duration,
    pub half_closed_timeout: Duration,
    pub connections_max: usize,
}

/// What the peers speak.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Protocol {
    Tunnel,
    /// One service, with one TCP port. The first secret is its password.
    Kcptun(Kcptun),
}

/// What kcptun's flags say, checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kcptun {
    /// A name that [`Cipher::by_name`] knows.
    pub crypt: String,
    /// Packets of data and of parity in a group. `None` sends no parity.
    pub shards: Option<(u8, u8)>,
    pub compress: bool,
    /// Of smux: 1 or 2.
    pub version: u8,
    pub send_window: Option<u16>,
    pub receive_window: Option<u16>,
    pub mtu: usize,
}

/// A rendezvous.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Via {
    pub host: Target,
    pub paths: Paths,
    /// Ask the router for a port that leads here.
    pub maps_ports: bool,
    /// The last of the secrets is for it alone; else it has the first.
    pub has_own_secret: bool,
}

/// Which paths between two peers may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Paths {
    /// Through the rendezvous at once, and directly as soon as that works
    #[default]
    Auto,
    /// Directly or not at all
    Direct,
    /// Through the rendezvous alone: peers do not learn each other's addresses
    Relay,
}

/// Which end of the tunnels this is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Role {
    /// All sockets of the worker carry tunnels.
    Provide(Vec<Provided>),
    /// The sockets of the worker are for players: for each service in turn, first those for TCP, then those for UDP.
    /// Further ones carry tunnels.
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
    /// `None`: it is met at the rendezvous.
    pub peer: Option<Target>,
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
    /// What a running worker cannot change, in words that differ when it does.
    #[must_use]
    pub fn outline(&self) -> String {
        let service = |name: &ServiceName, tcp: usize, udp: usize| format!("{name} {tcp} {udp}");
        let services: Vec<_> = match &self.role {
            Role::Provide(services) => {
                services.iter().map(|of| service(&of.name, of.tcp.len(), of.udp.len())).collect()
            }
            Role::Visit(services) => services.iter().map(|of| service(&of.name, of.tcp, of.udp)).collect(),
        };
        format!("{:?} {:?}: {}", self.protocol, self.via, services.join(", "))
    }

    pub(super) fn peers(&self, keys: &Keyring, seed: [u8; 32]) -> Peers {
        match &self.protocol {
            Protocol::Tunnel => Peers::tunnels(self.of_tunnels(), seed),
            Protocol::Kcptun(kcptun) => {
                let cipher = Cipher::by_name(&kcptun.crypt).expect("a name that was checked");
                let key = kcptun::Key::new(cipher, keys.secrets()[0].bytes());
                let settings = kcptun.settings(self.role.is_provider(), self.mode);
                Peers::kcptun(match self.role {
                    Role::Provide(_) => kcptun::Endpoint::server(settings, key, seed),
                    Role::Visit(_) => kcptun::Endpoint::client(settings, key, seed),
                })
            }
        }
    }

    fn of_tunnels(&self) -> tunnel::Settings {
        tunnel::Settings {
            has_aes: sys::process::has_aes(),
            rate_max: self.rate_max,
            repeats: self.mode.repeats(),
            ..tunnel::Settings::default()
        }
    }
}

impl Settings {
    /// What a provider's plane of TCP has to know, where players come through the rendezvous with nothing but the game. One that
    /// has not the peers' secret finds no service.
    #[must_use]
    pub fn of_players(&self) -> Option<tcp::Settings> {
        let Role::Provide(services) = &self.role else { return None };
        let via = self.via.as_ref()?;
        let published = |provided: &Provided| Published {
            name: provided.name,
            addresses: provided.tcp.clone(),
            proxy_header: provided.proxy_header,
        };
        let is_trusted = !via.has_own_secret;
        Some(tcp::Settings {
            handshake_timeout: limits::HANDSHAKE_TIMEOUT,
            dial_timeout: self.dial_timeout,
            dial_attempts: 1,
            idle_timeout: self.idle_timeout,
            half_closed_timeout: self.half_closed_timeout,
            buffer_bytes: limits::BUFFER_BYTES,
            connections_max: self.connections_max,
            policy: Policy::default(),
            own_addresses: Vec::new(),
            exposed: Vec::new(),
            has_rendezvous: false,
            published: services.iter().filter(|_| is_trusted).map(published).collect(),
        })
    }
}

impl Kcptun {
    /// As [`crate::proto::kcptun`] wants them, to be checked there.
    #[must_use]
    pub fn settings(&self, is_server: bool, mode: Mode) -> kcptun::Settings {
        let usual = if is_server { kcptun::Settings::server() } else { kcptun::Settings::client() };
        kcptun::Settings {
            fec: self.shards.map(|(data, parity)| Shape { data, parity }),
            mode: match mode {
                Mode::Normal | Mode::Bulk => kcp::Mode::Normal,
                Mode::Fast | Mode::Game => kcp::Mode::Fast,
                Mode::Fast2 => kcp::Mode::Fast2,
                Mode::Fast3 => kcp::Mode::Fast3,
            },
            mtu: self.mtu,
            send_window: self.send_window.unwrap_or(usual.send_window),
            receive_window: self.receive_window.unwrap_or(usual.receive_window),
            version: if self.version == 2 { Version::V2 } else { Version::V1 },
            compresses: self.compress,
            ..usual
        }
    }
}

impl Role {
    #[must_use]
    pub fn is_provider(&self) -> bool {
        matches!(self, Self::Provide(_))
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
