//! Where a player stands: behind nothing, a firewall, a router, or a router behind a carrier's NAT.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::internet::{Cable, HostId, Internet, PUBLIC, Realm};
use super::nat::{Filtering, Kind, Mapping};
use super::{MS, SECOND};

/// One line between the Internet and a house has this delay.
pub const LINE_DELAY_US: u64 = 15 * MS;

/// Routers between a house and the middle of the Internet: two houses are ten hops apart, routers included.
const LINE_HOPS: u8 = 4;

#[derive(Clone, Debug)]
pub struct House {
    pub name: &'static str,
    /// From the inside to the outside. None: the host has a public address.
    pub nats: Vec<Kind>,
    /// For IPv6, which there is only then.
    pub firewall6: Option<Kind>,
}

impl House {
    pub fn public() -> Self {
        Self { name: "public", nats: Vec::new(), firewall6: None }
    }

    pub fn behind(name: &'static str, mapping: Mapping, filtering: Filtering) -> Self {
        Self { name, nats: vec![Kind::new(mapping, filtering)], firewall6: None }
    }

    /// By the names that the tables use.
    pub fn named(name: &'static str) -> Self {
        let endpoint = |filtering| Self::behind(name, Mapping::Endpoint, filtering);
        let port = || Kind::new(Mapping::Endpoint, Filtering::AddressAndPort);
        let symmetric = || Kind::new(Mapping::Random, Filtering::AddressAndPort);
        let tracked = |draws, takes_strangers| {
            let nat = Kind::new(Mapping::Tracked { draws, takes_strangers }, Filtering::AddressAndPort);
            Self { name, nats: vec![nat.living(30 * SECOND)], firewall6: None }
        };
        match name {
            "public" => Self::public(),
            "fw" => Self::behind(name, Mapping::None, Filtering::AddressAndPort),
            "full" => endpoint(Filtering::Endpoint),
            "restricted" => endpoint(Filtering::Address),
            "port" => endpoint(Filtering::AddressAndPort),
            "preserve" => Self::behind(name, Mapping::Preserving, Filtering::AddressAndPort),
            "adm" => Self::behind(name, Mapping::Address, Filtering::AddressAndPort),
            "symseq" => {
                Self::behind(name, Mapping::Steps { delta: 1, others_per_second: 0 }, Filtering::AddressAndPort)
            }
            "symseq2" => {
                Self::behind(name, Mapping::Steps { delta: 2, others_per_second: 0 }, Filtering::AddressAndPort)
            }
            "symseq home" => {
                Self::behind(name, Mapping::Steps { delta: 1, others_per_second: 3 }, Filtering::AddressAndPort)
            }
            "symseq busy" => {
                Self::behind(name, Mapping::Steps { delta: 1, others_per_second: 20 }, Filtering::AddressAndPort)
            }
            "symmetric" => Self { name, nats: vec![symmetric()], firewall6: None },
            "symfull" => Self::behind(name, Mapping::Random, Filtering::Endpoint),
            "port+cgn" => Self { name, nats: vec![port(), symmetric()], firewall6: None },
            "port+port" => Self { name, nats: vec![port(), port()], firewall6: None },
            "blocked" => Self { name, nats: vec![port().without_udp()], firewall6: None },
            "blocked symmetric" => Self { name, nats: vec![symmetric().without_udp()], firewall6: None },
            "linux" => tracked(false, false),
            "linux-open" => tracked(false, true),
            "linux-random" => tracked(true, false),
            _ => panic!("no house is called {name}"),
        }
    }

    /// UDP does not leave it.
    pub fn is_blocked(&self) -> bool {
        self.nats.iter().any(|nat| nat.drops_udp)
    }

    /// Puts a host into it. `side` makes its addresses other than the other side's.
    pub fn build<P: Ord>(&self, net: &mut Internet<P>, side: u8, loss: f64) -> Place {
        let line = Cable { delay_us: LINE_DELAY_US, loss, hops: LINE_HOPS };
        let external = Ipv4Addr::new(198, 51, 100, 1 + side);
        let Some((last, inner_nats)) = self.nats.split_last() else {
            let ip = Ipv4Addr::new(198, 51, 100, 10 + side);
            let host = net.add_host(PUBLIC, &[ip.into()], line);
            return Place { host, v4: ip, v6: None };
        };
        let is_firewall = last.mapping == Mapping::None;
        let v4 = if is_firewall { external } else { Ipv4Addr::new(192, 168, 1 + side, 10) };
        let v6 = self.firewall6.as_ref().map(|_| Ipv6Addr::new(0x2001, 0xdb8, u16::from(side), 0, 0, 0, 0, 0x10));
        let mut realm = net.add_realm();
        net.add_nat(last.clone(), external.into(), realm, PUBLIC, line);
        if let (Some(firewall), Some(ip)) = (&self.firewall6, v6) {
            net.add_nat(firewall.clone(), ip.into(), realm, PUBLIC, line);
        }
        for (level, nat) in inner_nats.iter().enumerate() {
            realm = add_inner(net, nat, realm, Ipv4Addr::new(100, 64, level as u8, 2 + side));
        }
        Place::in_realm(net, realm, v4, v6)
    }
}

/// A realm behind a NAT that is itself behind one.
pub fn add_inner<P: Ord>(net: &mut Internet<P>, nat: &Kind, outer: Realm, external: Ipv4Addr) -> Realm {
    let inner = net.add_realm();
    net.add_nat(nat.clone(), external.into(), inner, outer, Cable { delay_us: MS, loss: 0.0, hops: 1 });
    inner
}

/// Where a player's host is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub host: HostId,
    pub v4: Ipv4Addr,
    pub v6: Option<Ipv6Addr>,
}

impl Place {
    pub fn in_realm<P: Ord>(net: &mut Internet<P>, realm: Realm, v4: Ipv4Addr, v6: Option<Ipv6Addr>) -> Self {
        let addresses: Vec<IpAddr> = [IpAddr::from(v4)].into_iter().chain(v6.map(IpAddr::from)).collect();
        Self { host: net.add_host(realm, &addresses, Cable::LAN), v4, v6 }
    }
}
