//! `--expose`: ports of this daemon that lead to a provider's service.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::Deserialize;

use super::{Error, within};
use crate::limits;
use crate::proto::target::Provided;
use crate::supervisor::{Door, Transport};
use crate::udp::rendezvous;

/// `[tcp://|udp://]IP:PORT[-PORT]=NAME[:N]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Expose {
    transport: Transport,
    /// With the first of the ports.
    address: SocketAddr,
    ports: RangeInclusive<u16>,
    /// With the first of its ports.
    provided: Provided,
}

/// Each port for itself.
pub(super) struct Ports(Vec<(Transport, SocketAddr, Provided)>);

const FORM: &str =
    "expected IP:PORT=NAME, such as 0.0.0.0:7777=game, udp://0.0.0.0:7777=game or 0.0.0.0:7000-7010=game:2";

impl FromStr for Expose {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text).ok_or(FORM)
    }
}

impl TryFrom<String> for Expose {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl Expose {
    fn parse(text: &str) -> Option<Self> {
        let (transport, rest) = match text.split_once("://") {
            None | Some(("tcp", _)) => (Transport::Tcp, text.strip_prefix("tcp://").unwrap_or(text)),
            Some(("udp", rest)) => (Transport::Udp, rest),
            Some(_) => return None,
        };
        let (address, service) = rest.split_once('=')?;
        let (host, ports) = address.rsplit_once(':')?;
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let address: SocketAddr = format!("{host}:{first}").parse().ok()?;
        let ports = address.port()..=last.parse().ok()?;
        let provided = Provided::parse(service).ok()?;
        (!ports.is_empty()).then_some(Self { transport, address, ports, provided })
    }

    fn ports(&self) -> impl Iterator<Item = (Transport, SocketAddr, Option<Provided>)> + '_ {
        self.ports.clone().enumerate().map(|(place, port)| {
            let of_service = u8::try_from(place).ok().and_then(|place| self.provided.port.checked_add(place));
            let provided = of_service.map(|port| Provided { port, ..self.provided });
            (self.transport, SocketAddr::new(self.address.ip(), port), provided)
        })
    }
}

/// All of them, port by port.
pub(super) fn resolve(exposed: &[Expose], has_rendezvous: bool) -> Result<Ports, Error> {
    if !exposed.is_empty() && !has_rendezvous {
        return Err(Error::new(
            "`expose` is given without a rendezvous",
            "say where providers find this daemon, with --rendezvous 0.0.0.0:4000",
        ));
    }
    let count = exposed.iter().map(|expose| expose.ports.len()).sum();
    within("expose", count, 0, limits::EXPOSED_MAX)?;
    let (mut ports, mut taken) = (Vec::new(), BTreeSet::new());
    for (transport, address, provided) in exposed.iter().flat_map(Expose::ports) {
        let Some(provided) = provided.filter(|provided| usize::from(provided.port) < limits::SERVICE_PORTS_MAX) else {
            let most = limits::SERVICE_PORTS_MAX;
            return Err(Error::new(format!("{address} leads to a port that no service has"), format!("it has {most}")));
        };
        if address.port() != 0 && !taken.insert((transport == Transport::Udp, address)) {
            return Err(Error::new(format!("{address} is exposed twice"), "a port leads to one service"));
        }
        ports.push((transport, address, provided));
    }
    Ok(Ports(ports))
}

impl Ports {
    /// Those for TCP, in the order of their doors.
    pub(super) fn connections(&self) -> impl Iterator<Item = Provided> + '_ {
        self.of(Transport::Tcp).map(|(_, _, provided)| *provided)
    }

    pub(super) fn services(&self) -> rendezvous::Exposed {
        rendezvous::Exposed {
            connections: self.connections().map(|provided| provided.service).collect(),
            datagrams: self.of(Transport::Udp).map(|(_, _, provided)| *provided).collect(),
        }
    }

    /// Those for TCP first.
    pub(super) fn doors(&self) -> impl Iterator<Item = Door> + '_ {
        let door = |(transport, address, provided): &_| Door::Exposed(*transport, *address, *provided);
        self.of(Transport::Tcp).chain(self.of(Transport::Udp)).map(door)
    }

    fn of(&self, transport: Transport) -> impl Iterator<Item = &(Transport, SocketAddr, Provided)> + '_ {
        self.0.iter().filter(move |(of, _, _)| *of == transport)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Vec<String> {
        let expose: Expose = text.parse().expect("it is well formed");
        let shown = |(transport, address, provided): &(Transport, SocketAddr, Provided)| {
            format!("{transport:?} {address} {provided}")
        };
        resolve(&[expose], true).expect("there is a rendezvous").0.iter().map(shown).collect()
    }

    #[test]
    fn a_port_leads_to_a_port_and_a_range_to_as_many() {
        assert_eq!(ports("0.0.0.0:7777=game"), ["Tcp 0.0.0.0:7777 game"]);
        assert_eq!(ports("tcp://[::]:7777=game:2"), ["Tcp [::]:7777 game:2"]);
        assert_eq!(
            ports("udp://127.0.0.1:7000-7002=game:3"),
            ["Udp 127.0.0.1:7000 game:3", "Udp 127.0.0.1:7001 game:4", "Udp 127.0.0.1:7002 game:5"]
        );
    }

    #[test]
    fn everything_else_is_an_error() {
        for text in [
            "",
            "7777=game",
            "0.0.0.0=game",
            "0.0.0.0:7777",
            "0.0.0.0:7777=",
            "0.0.0.0:7777=a b",
            "0.0.0.0:7777=game:0",
            "0.0.0.0:7777=.rendezvous",
            "0.0.0.0:7010-7000=game",
            "0.0.0.0:7000-=game",
            "0.0.0.0:7000-65536=game",
            "host:7777=game",
            "sctp://0.0.0.0:7777=game",
        ] {
            assert!(text.parse::<Expose>().is_err(), "{text:?}");
        }
        let resolve = |texts: &[&str], has_rendezvous| {
            let exposed: Vec<Expose> = texts.iter().map(|text| text.parse().expect("well formed")).collect();
            resolve(&exposed, has_rendezvous).map(|ports| ports.0.len())
        };
        assert!(resolve(&["0.0.0.0:7777=game"], false).is_err());
        assert!(resolve(&["0.0.0.0:7000-7064=game"], true).is_err(), "too many");
        assert!(resolve(&["0.0.0.0:7000-7001=game:64"], true).is_err(), "no such port");
        assert!(resolve(&["0.0.0.0:7000=game", "0.0.0.0:7000=other"], true).is_err(), "twice");
        assert_eq!(resolve(&["0.0.0.0:7000=game", "udp://0.0.0.0:7000=game"], true).ok(), Some(2));
    }
}
