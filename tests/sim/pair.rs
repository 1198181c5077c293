//! Two ends and a cable between them, with which most tests of the tunnel begin.

use std::net::SocketAddr;

use gateway::proto::tunnel::{Service, Settings};

use super::link;
use super::side::{Accepts, Side};
use super::{HostId, Net, SECOND};

/// Of a host with this number.
pub fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 4000))
}

/// A tunnel, visitor and provider.
pub struct Pair {
    pub net: Net<Side>,
    pub visitor: HostId,
    pub provider: HostId,
    /// There and back.
    pub links: [super::LinkId; 2],
}

impl Pair {
    /// A tunnel that is established.
    pub fn new(seed: u64, link: &link::Settings) -> Self {
        Self::with(seed, link, &Settings::default())
    }

    pub fn with(seed: u64, link: &link::Settings, settings: &Settings) -> Self {
        let mut pair = Self::strangers(seed, link, settings);
        pair.connect();
        let provider = pair.provider;
        let is_up = pair.net.run_while(30 * SECOND, |net| net.node(provider).tunnel.is_none());
        assert!(is_up, "seed {seed}: no tunnel is established");
        pair
    }

    /// Both are there, and know nothing of each other.
    pub fn strangers(seed: u64, link: &link::Settings, settings: &Settings) -> Self {
        let mut net = Net::seeded(seed);
        let [visitor, provider] = [1, 2].map(|host| {
            let side = Side::new(settings.clone(), net.rng().seed());
            net.add_host(address(host), side)
        });
        let links = net.connect(visitor, provider, link);
        let service = Service { tcp_ports: 2, udp_ports: 1, wants_addresses: true };
        net.node_mut(provider).serve(Accepts::Echo, service);
        Self { net, visitor, provider, links }
    }

    pub fn connect(&mut self) {
        let now = self.net.now();
        self.net.node_mut(self.visitor).connect(now, address(2));
    }

    pub fn visitor(&mut self) -> &mut Side {
        self.net.node_mut(self.visitor)
    }

    pub fn provider(&mut self) -> &mut Side {
        self.net.node_mut(self.provider)
    }

    pub fn run_for(&mut self, us: u64) {
        self.net.run_for(us);
    }
}
