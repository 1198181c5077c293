//! An attempt to reach the rendezvous: its name is looked up, its addresses are tried, over a link and a little later by UDP, and
//! the first that answers wins.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::up::Up;
use crate::limits;
use crate::names::alternate;
use crate::proto::rendezvous::SERVICE;
use crate::proto::target::Target;
use crate::proto::tunnel::{CloseReason, ServiceName, Way};
use crate::udp::carrier::Carrier;
use crate::udp::links;
use crate::udp::peers::PeerId;
use crate::udp::{Asker, Context};

#[derive(Debug)]
pub(super) struct Attempt {
    ends: Instant,
    /// `None` while the name is looked up.
    untried: Option<VecDeque<(SocketAddr, Kind)>>,
    next_try: Instant,
    racers: Vec<Racer>,
    addresses: Vec<SocketAddr>,
    /// What went wrong last.
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Link,
    Udp,
}

#[derive(Debug)]
pub(super) struct Racer {
    /// Over a link it begins when that is connected: what waits for a connection would count as time on the way.
    pub tunnel: Option<PeerId>,
    pub link: Option<u32>,
    pub address: SocketAddr,
}

#[derive(Debug)]
enum Fault {
    NoAddress,
    /// Nobody takes the connection, and what is known of that.
    Unreachable(Option<io::ErrorKind>),
    /// Somebody takes it and says nothing.
    Silent,
}

impl Attempt {
    /// The `number`th.
    pub(super) fn new(host: &Target, number: u32, context: &Context) -> Self {
        let untried = match host {
            Target::Address(address) => Some(routes([*address])),
            Target::Provider(_) => Some(routes([])), // the configuration knows better
            Target::Name { host, .. } => {
                let asker = Asker { service: None, attempt: number };
                context.names.ask(asker, host, limits::REACH_TIMEOUT);
                None
            }
        };
        let (ends, next_try) = (context.now + limits::REACH_TIMEOUT, context.now);
        Self { ends, untried, next_try, racers: Vec::new(), addresses: Vec::new(), fault: Fault::NoAddress }
    }

    pub(super) fn note_found(&mut self, addresses: Vec<IpAddr>, port: u16) {
        self.addresses = alternate(addresses).map(|ip| SocketAddr::new(ip, port)).collect();
        self.untried = Some(routes(self.addresses.iter().copied()));
    }

    pub(super) fn has(&self, tunnel: PeerId) -> bool {
        self.racers.iter().any(|racer| racer.tunnel == Some(tunnel))
    }

    pub(super) fn deadline(&self) -> Instant {
        match &self.untried {
            Some(untried) if !untried.is_empty() => self.ends.min(self.next_try),
            _ => self.ends,
        }
    }

    pub(super) fn is_over(&self, context: &Context) -> bool {
        self.ends <= context.now
    }

    /// Tries addresses whose time has come.
    pub(super) fn step(&mut self, carrier: &mut Carrier, context: &mut Context) {
        let Some(untried) = &mut self.untried else { return };
        while self.next_try <= context.now || self.racers.is_empty() {
            let Some((address, kind)) = untried.pop_front() else { break };
            if matches!(self.fault, Fault::NoAddress) {
                self.fault = Fault::Unreachable(None);
            }
            match Racer::start(address, kind, carrier, context) {
                Some(racer) => {
                    self.racers.push(racer);
                    self.next_try = context.now + limits::DIAL_STAGGER;
                }
                None => tracing::debug!(%address, ?kind, "an address cannot be tried"),
            }
        }
        if self.racers.is_empty() {
            self.ends = context.now; // nobody to wait for
        }
    }

    /// What has happened to a link, which need not be one of ours.
    pub(super) fn note_link(&mut self, news: &links::News, carrier: &mut Carrier, context: &mut Context) {
        let (&links::News::Up(number) | &links::News::Down(number, _)) = news;
        let Some(place) = self.racers.iter().position(|racer| racer.link == Some(number)) else { return };
        match news {
            links::News::Up(_) => {
                self.fault = Fault::Silent;
                self.racers[place].tunnel = begin(Way::Link(number).into(), context);
            }
            links::News::Down(_, why) => {
                if let Fault::Unreachable(known) = &mut self.fault {
                    *known = known.or(why.as_ref().map(io::Error::kind));
                }
                self.racers.swap_remove(place).stop(carrier, context);
                self.next_try = context.now;
            }
        }
    }

    pub(super) fn note_lost(&mut self, tunnel: PeerId, carrier: &mut Carrier, context: &mut Context) {
        if let Some(place) = self.racers.iter().position(|racer| racer.tunnel == Some(tunnel)) {
            self.racers.swap_remove(place).stop(carrier, context);
        }
    }

    /// The first tunnel that is there is the one; the others end.
    pub(super) fn win(self, tunnel: PeerId, carrier: &mut Carrier, context: &mut Context) -> Option<Up> {
        let mut up = None;
        for racer in self.racers {
            if racer.tunnel == Some(tunnel) {
                up = Up::new(tunnel, &racer, &self.addresses, context);
            } else {
                racer.stop(carrier, context);
            }
        }
        up
    }

    pub(super) fn stop(self, carrier: &mut Carrier, context: &mut Context) {
        self.racers.into_iter().for_each(|racer| racer.stop(carrier, context));
    }

    /// What went wrong, in words.
    pub(super) fn fault(&self) -> String {
        match self.fault {
            Fault::NoAddress => "its name has no address".to_owned(),
            Fault::Unreachable(None) => "nobody answers there".to_owned(),
            Fault::Unreachable(Some(why)) => why.to_string(),
            Fault::Silent => "it takes the connection and says nothing: has it this secret?".to_owned(),
        }
    }
}

impl Racer {
    fn start(address: SocketAddr, kind: Kind, carrier: &mut Carrier, context: &mut Context) -> Option<Self> {
        match kind {
            Kind::Link => Some(Self { tunnel: None, link: Some(connect(address, carrier, context)?), address }),
            Kind::Udp => {
                carrier.reach(address, &mut context.engine).ok()?;
                Some(Self { tunnel: Some(begin(address, context)?), link: None, address })
            }
        }
    }

    pub(super) fn stop(self, carrier: &mut Carrier, context: &mut Context) {
        if let Some(tunnel) = self.tunnel {
            context.peers.close(tunnel, CloseReason::Done);
        }
        if let Some(link) = self.link {
            carrier.links.close(link, &mut context.engine);
        }
    }
}

fn begin(remote: SocketAddr, context: &mut Context) -> Option<PeerId> {
    let service = ServiceName::new(SERVICE).expect("it is a name");
    context.peers.connect(context.now_us(), remote, context.via_key.as_ref(), service)
}

/// Links before datagrams: they tell more.
fn routes(addresses: impl IntoIterator<Item = SocketAddr>) -> VecDeque<(SocketAddr, Kind)> {
    let addresses: Vec<_> = addresses.into_iter().collect();
    let all = |kind| addresses.iter().map(move |address| (*address, kind));
    all(Kind::Link).chain(all(Kind::Udp)).collect()
}

/// From a port that other sockets may share: peers may be reached from it, too.
pub(super) fn connect(address: SocketAddr, carrier: &mut Carrier, context: &mut Context) -> Option<u32> {
    let any = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    carrier.links.connect(address, Some(SocketAddr::new(any, 0)), &mut context.engine).ok()
}
