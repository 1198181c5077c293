//! The default gateway, asked to lead one of its UDP ports to this host: by PCP, else by NAT-PMP, else by UPnP. Blocks.
//!
//! Nobody else is talked to, but for the search of UPnP, which its neighbours hear. All has a bound: a silent router costs 2.5 s for
//! PCP and NAT-PMP together and 1.5 s for the search; one that is slow on purpose 3 s for each of at most 37 questions of UPnP, which
//! holds up nobody but this. PCP and NAT-PMP are a library's, on sockets that hear the gateway alone; UPnP is [`crate::proto::upnp`].

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp};
use tokio::runtime::{Builder, Runtime};

use super::upnp;
use crate::sys::network;

/// For how long a port is asked for: long enough to be renewed in peace, short enough for one that a crash has left behind.
const LEASE_SECONDS: u32 = 3_600;

/// For PCP and NAT-PMP each: three tries, 1.25 s together.
const PATIENCE: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(250),
    max_retries: 2,
    max_retry_timeout: Some(Duration::from_millis(500)),
};

/// To give a port back, one try: whoever does it is about to end.
const LAST_PATIENCE: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 0, max_retry_timeout: None };

/// The protocols, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Pcp,
    NatPmp,
    Upnp,
}

/// Why there is no mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody answers.
    Silent,
    /// The answer is no, or cannot be understood.
    Refused,
}

/// What the router has granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    pub protocol: Protocol,
    /// As the router names it, which may itself stand behind another one.
    pub external: SocketAddrV4,
    pub lease: Duration,
}

/// What came of asking. `None`: not asked for, since one before has granted it.
pub type Outcomes = [(Protocol, Option<Result<Granted, Fault>>); 3];

#[derive(Debug)]
pub struct Router {
    gateway: Ipv4Addr,
    internal: SocketAddrV4,
    runtime: Runtime,
    mapping: Option<Mapping>,
}

#[derive(Debug)]
enum Mapping {
    Crab(PortMapping),
    Upnp(upnp::Mapped),
}

impl Protocol {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidData | ErrorKind::InvalidInput => Self::Refused,
            _ => Self::Silent,
        }
    }
}

impl From<pcp::Failure> for Fault {
    fn from(failure: pcp::Failure) -> Self {
        match failure {
            // It speaks another version, which is asked for next.
            pcp::Failure::Socket(_) | pcp::Failure::Timeout | pcp::Failure::UnsupportedVersion(_) => Self::Silent,
            _ => Self::Refused,
        }
    }
}

impl From<natpmp::Failure> for Fault {
    fn from(failure: natpmp::Failure) -> Self {
        match failure {
            natpmp::Failure::Socket(_) | natpmp::Failure::Timeout | natpmp::Failure::UnsupportedVersion(_) => {
                Self::Silent
            }
            _ => Self::Refused,
        }
    }
}

impl Router {
    /// `None` where there is none, or no need for one: this host has a public address.
    #[must_use]
    pub fn of_this_host(port: u16) -> Option<Self> {
        let gateway = network::default_gateway()?;
        let IpAddr::V4(local) = network::source_for(SocketAddr::from((gateway, crab_nat::GATEWAY_PORT))).ok()? else {
            return None;
        };
        let runtime = Builder::new_current_thread().enable_all().build().ok()?;
        let internal = SocketAddrV4::new(local, port);
        (is_behind_nat(local) && port != 0).then_some(Self { gateway, internal, runtime, mapping: None })
    }

    /// Whether the same router leads to the same address of this host.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.gateway, self.internal) == (other.gateway, other.internal)
    }

    /// Asks for the port, by one protocol after the other.
    pub fn ask(&mut self) -> Outcomes {
        let mut is_granted = false;
        [Protocol::Pcp, Protocol::NatPmp, Protocol::Upnp].map(|protocol| {
            let outcome = (!is_granted).then(|| self.ask_by(protocol));
            is_granted |= matches!(outcome, Some(Ok(_)));
            (protocol, outcome)
        })
    }

    fn ask_by(&mut self, protocol: Protocol) -> Result<Granted, Fault> {
        let mapping = match protocol {
            Protocol::Pcp => Mapping::Crab(self.runtime.block_on(by_pcp(self.gateway, self.internal))?),
            Protocol::NatPmp => Mapping::Crab(self.runtime.block_on(by_nat_pmp(self.gateway, self.internal))?),
            Protocol::Upnp => Mapping::Upnp(upnp::Mapped::new(self.gateway, self.internal, LEASE_SECONDS)?),
        };
        self.mapping = Some(mapping);
        self.granted().inspect_err(|_of_no_use| self.release())
    }

    /// What there is, anew.
    pub fn renew(&mut self) -> Result<Granted, Fault> {
        match &mut self.mapping {
            None => return Err(Fault::Refused),
            Some(Mapping::Crab(mapping)) => {
                self.runtime.block_on(mapping.renew()).map_err(|failure| match failure {
                    crab_nat::MappingFailure::Pcp(failure) => Fault::from(failure),
                    crab_nat::MappingFailure::NatPmp(failure) => Fault::from(failure),
                })?
            }
            Some(Mapping::Upnp(mapped)) => mapped.renew(LEASE_SECONDS)?,
        }
        self.granted()
    }

    fn granted(&self) -> Result<Granted, Fault> {
        let (protocol, external, seconds) = match self.mapping.as_ref().ok_or(Fault::Refused)? {
            Mapping::Upnp(mapped) => (Protocol::Upnp, mapped.external, LEASE_SECONDS),
            Mapping::Crab(mapping) => {
                let (protocol, ip) = match mapping.mapping_type() {
                    PortMappingType::Pcp { external_ip, .. } => (Protocol::Pcp, external_ip.to_canonical()),
                    PortMappingType::NatPmp => {
                        let ip = natpmp::external_address(self.gateway.into(), Some(PATIENCE));
                        (Protocol::NatPmp, self.runtime.block_on(ip)?.into())
                    }
                };
                let IpAddr::V4(ip) = ip else { return Err(Fault::Refused) };
                (protocol, SocketAddrV4::new(ip, mapping.external_port().get()), mapping.lifetime())
            }
        };
        let is_of_use = !external.ip().is_unspecified();
        let granted = Granted { protocol, external, lease: Duration::from_secs(seconds.into()) };
        is_of_use.then_some(granted).ok_or(Fault::Refused)
    }

    /// Gives the port back, if there is one. A router that does not hear it forgets it in time.
    pub fn release(&mut self) {
        match self.mapping.take() {
            None => {}
            Some(Mapping::Upnp(mapped)) => mapped.release(),
            Some(Mapping::Crab(mut mapping)) => {
                mapping.timeout_config = LAST_PATIENCE;
                let _ = self.runtime.block_on(mapping.try_drop());
            }
        }
    }
}

async fn by_pcp(gateway: Ipv4Addr, internal: SocketAddrV4) -> Result<PortMapping, Fault> {
    let port = NonZeroU16::new(internal.port()).ok_or(Fault::Refused)?;
    let client = IpAddr::V4(*internal.ip());
    let base = pcp::BaseMapRequest::new(gateway.into(), client, InternetProtocol::Udp, port);
    Ok(pcp::port_mapping(base, None, None, options(port)).await?)
}

async fn by_nat_pmp(gateway: Ipv4Addr, internal: SocketAddrV4) -> Result<PortMapping, Fault> {
    let port = NonZeroU16::new(internal.port()).ok_or(Fault::Refused)?;
    Ok(natpmp::port_mapping(gateway.into(), InternetProtocol::Udp, port, options(port)).await?)
}

/// The same port outside, if it is free.
fn options(port: NonZeroU16) -> PortMappingOptions {
    PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: Some(LEASE_SECONDS),
        timeout_config: Some(PATIENCE),
    }
}

/// The address means nothing to the whole Internet: of a home, a company, or of a provider's own NAT (RFC 6598).
fn is_behind_nat(ip: Ipv4Addr) -> bool {
    let is_shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
    ip.is_private() || is_shared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_a_public_address_needs_no_router_to_lead_to_it() {
        for (ip, is_behind) in [
            ("192.168.1.10", true),
            ("10.0.0.1", true),
            ("172.31.0.1", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("203.0.113.5", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(is_behind_nat(ip.parse().expect("an IP")), is_behind, "{ip}");
        }
    }
}
