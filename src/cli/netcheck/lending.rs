//! Whether the router leads a port to this host when it is asked to. It is asked as a daemon would, beside all else, and what it
//! grants is given back.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::proto::punch::{Kind, Profile};
use crate::udp::mapping::{Fault, Granted, Outcomes, Router};

/// How long the answer is waited for when all else is known: a router that says nothing needs 4 s, one that writes flash more.
const PATIENCE: Duration = Duration::from_secs(8);

/// A question under way.
pub(super) struct Asking(Receiver<Option<Outcomes>>);

#[derive(Debug)]
pub(super) enum Lending {
    /// It is not wanted, or there is nobody to ask.
    NotAsked(&'static str),
    Asked {
        outcomes: Outcomes,
        /// That router is not the last one before the Internet.
        is_behind: bool,
    },
}

impl Asking {
    /// For a port of its own: what the router lends must not change how it treats the others.
    pub fn begin() -> Self {
        let (tell, told) = mpsc::sync_channel(1);
        let ask = move || {
            let socket =
                UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| Ok((socket.local_addr()?, socket)));
            let mut router = socket.as_ref().ok().and_then(|(local, _)| Router::of_this_host(local.port()));
            let outcomes = router.as_mut().map(Router::ask);
            router.iter_mut().for_each(Router::release);
            let _ = tell.send(outcomes); // or nobody waits any more
        };
        // Without a thread nobody tells, which is what is told.
        let _ = thread::Builder::new().spawn(ask);
        Self(told)
    }

    /// `profile`: as the rendezvous sees this host.
    pub fn outcome(self, profile: &Profile) -> Lending {
        match self.0.recv_timeout(PATIENCE) {
            Err(_too_slow) => Lending::NotAsked("unknown: the router takes too long to answer"),
            Ok(None) => Lending::NotAsked("not asked for: this host has a public address, or no router"),
            Ok(Some(outcomes)) => {
                let seen_as = profile.of_kind(Kind::Reflexive).map(|address| address.ip()).find(IpAddr::is_ipv4);
                let external = granted(&outcomes).map(|granted| IpAddr::from(*granted.external.ip()));
                Lending::Asked { outcomes, is_behind: seen_as.is_some() && external.is_some() && seen_as != external }
            }
        }
    }
}

impl Lending {
    /// Peers will reach this host by it.
    pub fn is_of_use(&self) -> bool {
        matches!(self, Self::Asked { outcomes, is_behind: false } if granted(outcomes).is_some())
    }

    /// A router was asked, and has granted nothing.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Asked { outcomes, .. } if granted(outcomes).is_none())
    }

    pub fn words(&self) -> String {
        let (outcomes, is_behind) = match self {
            Self::NotAsked(why) => return (*why).to_owned(),
            Self::Asked { outcomes, is_behind } => (outcomes, is_behind),
        };
        let words = outcomes.iter().filter_map(|(protocol, outcome)| {
            let outcome = match outcome.as_ref()? {
                Ok(granted) => format!("granted, {}", granted.external),
                Err(fault) => word(*fault).to_owned(),
            };
            Some(format!("{}: {outcome}", protocol.as_str()))
        });
        let words = words.collect::<Vec<_>>().join("; ");
        if *is_behind { format!("{words}, but another NAT is in front of that router") } else { words }
    }

    pub fn as_json(&self) -> Value {
        let Self::Asked { outcomes, is_behind } = self else { return Value::Null };
        let outcome = |of: usize| match outcomes[of].1 {
            None => Value::Null,
            Some(Ok(_)) => "granted".into(),
            Some(Err(fault)) => word(fault).into(),
        };
        let external = granted(outcomes).map(|granted| SocketAddr::from(granted.external));
        let [pcp, nat_pmp, upnp] = [0, 1, 2].map(outcome);
        json!({ "pcp": pcp, "nat_pmp": nat_pmp, "upnp": upnp, "external": external, "behind_another_nat": is_behind })
    }
}

fn granted(outcomes: &Outcomes) -> Option<Granted> {
    outcomes.iter().find_map(|(_, outcome)| outcome.as_ref()?.ok())
}

fn word(fault: Fault) -> &'static str {
    match fault {
        Fault::Silent => "none",
        Fault::Refused => "refused",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::udp::mapping::Protocol;

    fn asked(nat_pmp: Result<&str, Fault>, is_behind: bool) -> Lending {
        let granted = nat_pmp.map(|external| Granted {
            protocol: Protocol::NatPmp,
            external: external.parse().expect("an address"),
            lease: Duration::from_secs(60),
        });
        let upnp = granted.is_err().then_some(Err(Fault::Refused));
        let outcomes =
            [(Protocol::Pcp, Some(Err(Fault::Silent))), (Protocol::NatPmp, Some(granted)), (Protocol::Upnp, upnp)];
        Lending::Asked { outcomes, is_behind }
    }

    #[test]
    fn every_protocol_that_was_asked_tells_what_came_of_it() {
        assert_eq!(asked(Err(Fault::Silent), false).words(), "PCP: none; NAT-PMP: none; UPnP: refused");
        assert_eq!(asked(Ok("203.0.113.5:4000"), false).words(), "PCP: none; NAT-PMP: granted, 203.0.113.5:4000");
        let json = asked(Ok("203.0.113.5:4000"), false).as_json();
        assert_eq!((&json["external"], &json["upnp"]), (&"203.0.113.5:4000".into(), &Value::Null));
    }

    #[test]
    fn a_port_of_a_router_behind_another_one_is_told_and_counts_for_nothing() {
        let lending = asked(Ok("10.0.0.5:4000"), true);
        assert!(lending.words().ends_with("but another NAT is in front of that router"), "{}", lending.words());
        assert!(!lending.is_of_use() && !lending.is_missing());
        assert!(asked(Ok("203.0.113.5:4000"), false).is_of_use() && asked(Err(Fault::Silent), false).is_missing());
    }
}
