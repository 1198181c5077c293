//! Looks at the network from here, with the help of a rendezvous and of the router:
//!
//! 1. A tunnel over UDP and one over TCP: which of the two gets through.
//! 2. Fresh sockets ask how they look from outside, as before a round of punching; meanwhile probes in both tunnels are timed.
//!    The router is asked whether it leads a port here.
//! 3. One socket asks one port of the rendezvous and listens for both.
//! 4. Two sockets send to the addresses that they have outside: does the router lead that back?
//!
//! Deliberately absent: what a router lets in from addresses that were never asked. The rendezvous has one, so nobody here can
//! tell.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::filtering::{Filtering, Inquiry};
use super::lending::{Asking, Lending};
use super::link::Link;
use super::surveyor::{PROBE_PAUSE_US, PROBES, Place, Surveyor, TCP, UDP};
use crate::proto::punch::{Class, Gather, Kind, Profile, Setup};
use crate::proto::tunnel::{CloseReason, Key};
use crate::sys::network;

/// How long somebody may take to answer at all, in µs, and how long the other protocol may when one has been answered: four
/// handshakes fit into that.
const MEET_US: u64 = 5_000_000;
const MEET_OTHER_US: u64 = 2_000_000;

/// How long answers to probes may take, in µs.
const PROBE_PATIENCE_US: u64 = 1_000_000;

/// How much later the neighbour asks, in µs: more than packets are delayed by their neighbours.
const NEIGHBOUR_US: u64 = 20_000;

/// How much later what the router lets in is asked for, in µs: when all others have asked, for the same reason.
const FILTERING_US: u64 = 2 * NEIGHBOUR_US;

/// Attempts to come back through the router, each with this time, in µs.
const HAIRPINS: u32 = 3;
const HAIRPIN_US: u64 = 250_000;

/// What was found.
#[derive(Debug)]
pub(super) struct Survey {
    pub rendezvous: SocketAddr,
    /// `None`: nothing gets through.
    pub udp: Option<Delays>,
    pub tcp: Option<Delays>,
    /// What became of the connection, if it ended.
    pub tcp_fault: Option<ErrorKind>,
    pub seen_by_tcp: Option<SocketAddr>,
    /// Of IPv4. `None`: the rendezvous has no such address, or there is no way there.
    pub class: Option<Class>,
    pub profile: Profile,
    /// Of IPv4. `None`: that was not to be found out.
    pub filtering: Option<Filtering>,
    /// Whether the router leads a port here.
    pub lending: Lending,
    /// Whether a host behind the router reaches its neighbour by the public address. `None`: that was not to be found out.
    pub hairpin: Option<bool>,
    /// An address of this host that the whole Internet can have a way to.
    pub ipv6: Option<Ipv6Addr>,
    /// That of the rendezvous.
    pub rendezvous_has_ipv6: bool,
}

/// What the user wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// The local port to ask about over IPv4, or 0.
    pub port: u16,
    pub asks_router: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Delays {
    pub sent: u32,
    /// Of those that were answered, in µs.
    pub rtts: Vec<u64>,
}

/// Nobody answered.
#[derive(Debug)]
pub(super) enum Unmet {
    /// Nobody takes the connection either, and what is known of that.
    Unreachable(Option<ErrorKind>),
    /// Somebody takes it, and says nothing.
    Silent,
    /// This host lacks something.
    Host(io::Error),
}

impl From<io::Error> for Unmet {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl Survey {
    /// `addresses`: those of the rendezvous.
    pub(super) fn take(addresses: &[SocketAddr], wish: Wish, key: &Arc<Key>) -> Result<Self, Unmet> {
        let of_family = |is_v4| addresses.iter().copied().find(|address| address.is_ipv4() == is_v4);
        let [v4, v6] = [of_family(true), of_family(false)];
        let mut unmet = Unmet::Unreachable(None);
        // Where nobody is to be met by TCP either, silence says nothing about UDP: that family is not asked again.
        for (at, families) in [(v4, [v4, v6]), (v6, [None, v6])] {
            let Some(at) = at else { continue };
            match Surveyor::new(at, key).and_then(Surveyor::meet) {
                Ok(surveyor) => return Ok(surveyor.survey(families, wish)?),
                Err(why) => unmet = why,
            }
        }
        Err(unmet)
    }
}

impl Surveyor {
    fn meet(mut self) -> Result<Self, Unmet> {
        self.run(MEET_US, |of| {
            let now = of.now();
            let is_settled = of.up_since[UDP].is_some() && (of.up_since[TCP].is_some() || of.link.fault.is_some());
            is_settled || of.up_since.iter().flatten().any(|since| now >= since + MEET_OTHER_US)
        })?;
        match &self.link {
            _ if self.up_since.iter().any(Option::is_some) => Ok(self),
            Link { is_connected: true, .. } => Err(Unmet::Silent),
            Link { fault, .. } => Err(Unmet::Unreachable(*fault)),
        }
    }

    fn survey(mut self, families: [Option<SocketAddr>; 2], wish: Wish) -> io::Result<Survey> {
        let ipv6 = network::addresses()?.into_iter().find_map(|ip| match ip {
            IpAddr::V6(ip) if ip.segments()[0] & 0xe000 == 0x2000 => Some(ip), // 2000::/3: not those of one site
            _ => None,
        });
        self.gather(families, wish.port)?;
        let asking = wish.asks_router.then(|| self.ask_router());
        self.probe_at = Some(self.now());
        let patience = u64::from(PROBES) * PROBE_PAUSE_US + PROBE_PATIENCE_US;
        self.run(patience, Self::has_answers)?;
        let [profile, neighbour] = [0, 1].map(|of: usize| self.gathers[of].1.profile());
        let class = self.sockets.contains_key(&Place::Main4).then_some(profile.class);
        let filtering = self.filtering.as_ref().and_then(|(_, inquiry)| inquiry.filtering());
        let hairpin = self.hairpin(&profile, &neighbour)?;
        self.leave();
        let [udp, tcp] = [UDP, TCP].map(|of| self.up_since[of].map(|_| self.delays[of].clone()));
        let (rendezvous, seen_by_tcp, rendezvous_has_ipv6) = (self.at, self.seen_by_tcp, families[1].is_some());
        let tcp_fault = self.link.fault;
        let lending = match asking {
            None => Lending::NotAsked("not asked for: it is not wanted"),
            Some(None) => {
                Lending::NotAsked("not asked for: the rendezvous is on this host, or was not reached over IPv4")
            }
            Some(Some(asking)) => asking.outcome(&profile),
        };
        Ok(Survey {
            rendezvous,
            udp,
            tcp,
            tcp_fault,
            seen_by_tcp,
            class,
            profile,
            filtering,
            lending,
            hairpin,
            ipv6,
            rendezvous_has_ipv6,
        })
    }

    /// The router is of interest where it stands between here and the rendezvous.
    fn ask_router(&self) -> Option<Asking> {
        let is_between = self.sockets.contains_key(&Place::Main4) && !self.at.ip().is_loopback();
        is_between.then(Asking::begin)
    }

    /// Has Main4 and Main6 ask both ports, and their neighbours one.
    fn gather(&mut self, [v4, v6]: [Option<SocketAddr>; 2], port: u16) -> io::Result<()> {
        let mut main = Setup::default();
        let mut neighbour = Setup::default();
        let mut ips = network::addresses()?;
        for (place, at, port) in [(Place::Main4, v4, port), (Place::Main6, v6, 0)] {
            let Some(at) = at else { continue };
            // To ask where there is no way leads nowhere.
            let Ok(source) = network::source_for(at) else { continue };
            let local = self.open(place, at.is_ipv4(), port)?;
            ips.extend((!ips.contains(&source)).then_some(source));
            let hosts = ips.iter().filter(|ip| ip.is_ipv4() == at.is_ipv4());
            main.hosts.extend(hosts.map(|ip| SocketAddr::new(*ip, local.port())));
            main.observers.push(at);
            main.observers.extend(at.port().checked_add(1).map(|next| SocketAddr::new(at.ip(), next)));
        }
        if let Some(at) = v4 {
            self.open(Place::Neighbour, true, 0)?;
            neighbour.observers.push(at);
        }
        let now = self.now();
        if let (Some(at), Some(_)) = (v4, self.up_since[UDP]) {
            self.open(Place::Filtered, true, 0)?;
            self.filtering = Some((at, Inquiry::new(now + FILTERING_US)));
        }
        // The neighbour asks later: a router that counts would give it the port between the two of Main4.
        for (place, setup, at) in [(Place::Main4, main, now), (Place::Neighbour, neighbour, now + NEIGHBOUR_US)] {
            self.gathers.push((place, Gather::new(at, setup, &mut self.random)));
        }
        Ok(())
    }

    /// Each of two sends to where the other is seen, since a router may let in only whom it has sent to.
    fn hairpin(&mut self, main: &Profile, neighbour: &Profile) -> io::Result<Option<bool>> {
        let reflexive = |of: &Profile| of.of_kind(Kind::Reflexive).find(SocketAddr::is_ipv4);
        let (Some(first), Some(second), false) = (reflexive(main), reflexive(neighbour), main.class == Class::Open)
        else {
            return Ok(None);
        };
        for _ in 0..HAIRPINS {
            for (from, to) in [(Place::Neighbour, first), (Place::Main4, second)] {
                let _ = self.sockets[&from].send_to(&self.hairpin, to); // or it is lost
            }
            self.run(HAIRPIN_US, |of| of.came_back)?;
        }
        Ok(Some(self.came_back))
    }

    fn leave(&mut self) {
        for tunnel in self.tunnels {
            if let Some(tunnel) = self.endpoint.tunnel(tunnel) {
                tunnel.close(CloseReason::Done);
            }
        }
        self.transmit(self.now());
    }

    fn has_answers(&self) -> bool {
        let now = self.now();
        let has_gathered = self.gathers.iter().all(|(_, gather)| gather.is_over(now));
        self.has_sampled() && has_gathered && self.filtering.iter().all(|(_, inquiry)| inquiry.is_over(now))
    }

    fn has_sampled(&self) -> bool {
        [UDP, TCP].into_iter().all(|of| {
            self.up_since[of].is_none()
                || self.delays[of].sent == PROBES && self.delays[of].rtts.len() == PROBES as usize
        })
    }
}
