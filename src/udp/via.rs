//! The tunnel to the rendezvous, by which peers that know no address of each other meet.
//!
//! It begins over a link, which also tells by its end that the rendezvous is gone, and moves to UDP as soon as that is seen to
//! work; when UDP falls silent it goes back. Where TCP does not get through, UDP alone will do.
//!
//! On its one stream [`Client`] says what this daemon wants. Its datagrams are packets of other tunnels, each under the number of
//! its flow: [`Via::deliver`] hands them in as if they had come from an address.
//!
//! Deliberately absent: what flows are for. The visitor hears of them by [`Event`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::carrier::Carrier;
use super::links;
use super::peers::{PeerId, StreamId};
use super::pulse::Pulse;
use super::settings;
use super::{Asker, Context};
use crate::limits;
use crate::names::alternate;
use crate::proto::rendezvous::SERVICE;
use crate::proto::rendezvous::client::{Client, Event, Haste};
use crate::proto::rendezvous::wire::{Flow, Inbox, Message, Notice, Transport};
use crate::proto::target::Target;
use crate::proto::tunnel::{CloseReason, Leaving, ServiceName, Way};

/// A daemon meets its peers at one rendezvous.
const NUMBER: u16 = 0;

/// UDP is tried so often in a row, with so long between, and anew after this.
const PROBES: u32 = 5;
const PROBE_PAUSE: Duration = Duration::from_millis(250);
const PROBE_AGAIN: Duration = Duration::from_secs(30);

/// Words for the rendezvous, in bytes, that wait for room in the stream before no more are taken.
const OUTBOX_BYTES: usize = 4096;

#[derive(Debug)]
pub(super) struct Via {
    host: Target,
    client: Client,
    attempt: Option<Attempt>,
    up: Option<Up>,
    /// Counts attempts, so that late answers of name servers find nobody.
    attempts: u32,
    down_since: Instant,
    /// What is wrong was logged.
    told: bool,
}

#[derive(Debug)]
struct Attempt {
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
struct Racer {
    tunnel: PeerId,
    link: Option<u32>,
    address: SocketAddr,
}

#[derive(Debug)]
enum Fault {
    NoAddress,
    /// Nobody takes the connection, and what is known of that.
    Unreachable(Option<std::io::ErrorKind>),
    /// Somebody takes it and says nothing.
    Silent,
}

#[derive(Debug)]
struct Up {
    tunnel: PeerId,
    stream: StreamId,
    link: Option<u32>,
    /// One that is tried because there is none, and when the next is.
    joining: Option<u32>,
    join_at: Instant,
    /// Where it listens, for both protocols.
    address: SocketAddr,
    /// That, and one of the other family, if it has one.
    addresses: Vec<SocketAddr>,
    /// As it sees the link.
    reflexive: Option<SocketAddr>,
    pulse: Pulse,
    inbox: Inbox,
    outbox: Vec<u8>,
    probed: u32,
    probe_at: Instant,
}

impl Via {
    pub(super) fn new(via: &settings::Via, seed: [u8; 32], now: Instant) -> Self {
        Self {
            host: via.host.clone(),
            client: Client::new(seed),
            attempt: None,
            up: None,
            attempts: 0,
            down_since: now,
            told: false,
        }
    }

    /// Where packets of a flow come from and go to.
    pub(super) fn address_of(flow: Flow) -> SocketAddr {
        Way::Flow { via: NUMBER, flow: flow.0 }.into()
    }

    pub(super) fn publish(&mut self, name: ServiceName) {
        self.client.publish(name);
    }

    pub(super) fn withdraw(&mut self, name: ServiceName) {
        self.client.withdraw(name);
    }

    pub(super) fn connect(&mut self, name: ServiceName) -> Option<Flow> {
        self.client.connect(name)
    }

    pub(super) fn is(&self, tunnel: PeerId) -> bool {
        let is_racer = |attempt: &Attempt| attempt.racers.iter().any(|racer| racer.tunnel == tunnel);
        self.up.as_ref().is_some_and(|up| up.tunnel == tunnel) || self.attempt.as_ref().is_some_and(is_racer)
    }

    /// When there is something to do, if nothing else happens before.
    pub(super) fn deadline(&self, context: &Context) -> Option<Instant> {
        let of_client = self.client.next_timeout().map(|at| context.origin + Duration::from_micros(at));
        let of_attempt = self.attempt.as_ref().map(|attempt| match &attempt.untried {
            Some(untried) if !untried.is_empty() => attempt.ends.min(attempt.next_try),
            _ => attempt.ends,
        });
        let of_up = self.up.as_ref().map(|up| {
            let suspect_at = up.pulse.asked_at().map(|at| at + limits::VIA_SUSPECT);
            let join_at = if up.wants_link() { Some(up.join_at) } else { None };
            [suspect_at, join_at].into_iter().flatten().fold(up.probe_at, Instant::min)
        });
        [of_client, of_attempt, of_up].into_iter().flatten().min()
    }

    /// `haste`: what would wait for the rendezvous if it were lost.
    pub(super) fn step(&mut self, haste: Haste, carrier: &mut Carrier, context: &mut Context) {
        let now = context.now_us();
        self.client.handle_timeout(now);
        if haste == Haste::AtOnce {
            self.client.hurry(now, haste); // as often as the client thinks right
        }
        if self.client.poll_attempt(now) {
            self.begin(context);
        }
        self.try_addresses(carrier, context);
        let is_over = |attempt: &Attempt| attempt.ends <= context.now;
        if self.attempt.as_ref().is_some_and(is_over) {
            self.fail(carrier, context);
        }
        self.watch(haste, carrier, context);
        self.speak(context);
    }

    // Attempts.

    fn begin(&mut self, context: &Context) {
        self.attempts = self.attempts.wrapping_add(1);
        let untried = match &self.host {
            Target::Address(address) => Some(routes([*address])),
            Target::Name { host, .. } => {
                let asker = Asker { service: None, attempt: self.attempts };
                context.names.ask(asker, host, limits::REACH_TIMEOUT);
                None
            }
        };
        let (ends, next_try) = (context.now + limits::REACH_TIMEOUT, context.now);
        let (racers, addresses) = (Vec::new(), Vec::new());
        self.attempt = Some(Attempt { ends, untried, next_try, racers, addresses, fault: Fault::NoAddress });
    }

    pub(super) fn note_found(&mut self, asker: Asker, addresses: Vec<std::net::IpAddr>) {
        let Target::Name { port, .. } = self.host else { return };
        let Some(attempt) = self.attempt.as_mut().filter(|_| asker.attempt == self.attempts) else { return };
        attempt.addresses = alternate(addresses).map(|ip| SocketAddr::new(ip, port)).collect();
        attempt.untried = Some(routes(attempt.addresses.iter().copied()));
    }

    fn try_addresses(&mut self, carrier: &mut Carrier, context: &mut Context) {
        let Some(attempt) = &mut self.attempt else { return };
        let Some(untried) = &mut attempt.untried else { return };
        while attempt.next_try <= context.now || attempt.racers.is_empty() {
            let Some((address, kind)) = untried.pop_front() else { break };
            if matches!(attempt.fault, Fault::NoAddress) {
                attempt.fault = Fault::Unreachable(None);
            }
            match Racer::start(address, kind, carrier, context) {
                Some(racer) => {
                    attempt.racers.push(racer);
                    attempt.next_try = context.now + limits::DIAL_STAGGER;
                }
                None => tracing::debug!(%address, ?kind, "an address cannot be tried"),
            }
        }
        if attempt.racers.is_empty() {
            attempt.ends = context.now; // nobody to wait for
        }
    }

    /// An attempt has come to its end.
    fn fail(&mut self, carrier: &mut Carrier, context: &mut Context) {
        let Some(attempt) = self.attempt.take() else { return };
        for racer in attempt.racers {
            racer.stop(carrier, context);
        }
        self.client.note_lost(context.now_us(), Haste::Calm);
        if !std::mem::replace(&mut self.told, true) {
            let why = match attempt.fault {
                Fault::NoAddress => "its name has no address".to_owned(),
                Fault::Unreachable(None) => "nobody answers there".to_owned(),
                Fault::Unreachable(Some(why)) => why.to_string(),
                Fault::Silent => "it takes the connection and says nothing: has it this secret?".to_owned(),
            };
            tracing::warn!(via = %self.host, "rendezvous unreachable: {why}; trying on");
        }
    }

    /// What has happened to a link, which need not be one of ours.
    pub(super) fn note_link(&mut self, news: &links::News, haste: Haste, carrier: &mut Carrier, context: &mut Context) {
        let (&links::News::Up(number) | &links::News::Down(number, _)) = news;
        if let Some(attempt) = &mut self.attempt
            && let Some(place) = attempt.racers.iter().position(|racer| racer.link == Some(number))
        {
            match news {
                links::News::Up(_) => attempt.fault = Fault::Silent,
                links::News::Down(_, why) => {
                    if let Fault::Unreachable(known) = &mut attempt.fault {
                        *known = known.or(why.as_ref().map(std::io::Error::kind));
                    }
                    attempt.racers.swap_remove(place).stop(carrier, context);
                    attempt.next_try = context.now;
                }
            }
        }
        let Some(up) = &mut self.up else { return };
        match news {
            links::News::Up(_) if up.joining == Some(number) => up.ask(Way::Link(number).into(), carrier, context),
            links::News::Down(..) if up.joining == Some(number) => up.joining = None,
            links::News::Down(..) if up.link == Some(number) => {
                self.lose("it has ended the connection", haste, carrier, context);
            }
            links::News::Up(_) | links::News::Down(..) => {}
        }
    }

    // The tunnel.

    pub(super) fn note_established(&mut self, tunnel: PeerId, carrier: &mut Carrier, context: &mut Context) {
        let Some(attempt) = self.attempt.take() else { return };
        for racer in attempt.racers {
            if racer.tunnel == tunnel {
                self.up = Up::new(&racer, context);
            } else {
                racer.stop(carrier, context);
            }
        }
        let Some(up) = &mut self.up else { return };
        let is_other = |address: &&SocketAddr| address.is_ipv4() != up.address.is_ipv4();
        up.addresses.extend(attempt.addresses.iter().find(is_other));
        carrier.via = Some(tunnel);
        carrier.set_home(Some(up.address));
        self.client.note_established();
        self.told = false;
        let transport = if up.link.is_some() { "tcp" } else { "udp" };
        let after = context.now - self.down_since;
        tracing::info!(via = %self.host, address = %up.address, transport, ?after, "rendezvous reached");
    }

    pub(super) fn note_lost(&mut self, tunnel: PeerId, haste: Haste, carrier: &mut Carrier, context: &mut Context) {
        if let Some(attempt) = &mut self.attempt
            && let Some(place) = attempt.racers.iter().position(|racer| racer.tunnel == tunnel)
        {
            attempt.racers.swap_remove(place).stop(carrier, context);
        }
        if self.up.as_ref().is_some_and(|up| up.tunnel == tunnel) {
            self.lose("it has ended the tunnel", haste, carrier, context);
        }
    }

    fn lose(&mut self, why: &str, haste: Haste, carrier: &mut Carrier, context: &mut Context) {
        let Some(up) = self.up.take() else { return };
        up.joining.into_iter().for_each(|link| carrier.links.close(link, &mut context.engine));
        tracing::info!(via = %self.host, why, "the rendezvous is lost; trying to get it back");
        Racer { tunnel: up.tunnel, link: up.link, address: up.address }.stop(carrier, context);
        carrier.via = None;
        self.client.note_lost(context.now_us(), haste);
        (self.down_since, self.told) = (context.now, false);
    }

    /// This host has other addresses than before.
    pub(super) fn note_moved(&mut self, carrier: &mut Carrier, context: &mut Context) {
        self.lose("this host has moved", Haste::AtOnce, carrier, context);
        self.client.hurry(context.now_us(), Haste::AtOnce);
    }

    pub(super) fn note_heard(&mut self, tunnel: PeerId, context: &Context) {
        if let Some(up) = self.up.as_mut().filter(|up| up.tunnel == tunnel) {
            up.pulse.note_heard(context);
        }
    }

    /// Sees to it that the tunnel goes by UDP where it can, and that a rendezvous that says nothing is not waited for.
    fn watch(&mut self, haste: Haste, carrier: &mut Carrier, context: &mut Context) {
        let Some(up) = &mut self.up else { return };
        up.pulse.look(context);
        let is_suspect = up.pulse.asked_at().is_some_and(|at| at + limits::VIA_SUSPECT <= context.now);
        if is_suspect {
            match up.link.filter(|_| up.is_on_udp(context)) {
                Some(link) => up.return_to(link, context),
                None => return self.lose("it does not answer", haste, carrier, context),
            }
        }
        if up.probe_at <= context.now {
            up.probe(carrier, context);
        }
        if up.wants_link() && up.join_at <= context.now {
            up.join_at = context.now + PROBE_AGAIN;
            up.joining = connect(up.address, carrier, context);
        }
    }

    /// A way to the rendezvous works.
    pub(super) fn note_answered(&mut self, tunnel: PeerId, from: SocketAddr, context: &mut Context) {
        let Some(up) = self.up.as_mut().filter(|up| up.tunnel == tunnel) else { return };
        if let Some(link) = up.joining.take_if(|link| from == Way::Link(*link).into()) {
            up.link = Some(link);
        }
        if from != up.address {
            return;
        }
        let now = context.now_us();
        (up.probed, up.probe_at) = (0, context.now + PROBE_AGAIN);
        if let Some(tunnel) = context.peers.tunnel(up.tunnel).filter(|tunnel| tunnel.status().remote != from) {
            tunnel.use_path(now, from, Leaving::Alive);
            tracing::debug!(address = %from, "the rendezvous is reached by UDP, too");
        }
    }

    // What is said.

    /// Says what the client wants to, as far as there is room.
    fn speak(&mut self, context: &mut Context) {
        let Some(up) = &mut self.up else { return };
        loop {
            while up.outbox.len() < OUTBOX_BYTES
                && let Some(request) = self.client.poll_request()
            {
                request.emit(&mut up.outbox);
            }
            if up.outbox.is_empty() {
                return;
            }
            let Some(mut tunnel) = context.peers.get(up.tunnel) else { return };
            let written = tunnel.write(up.stream, &up.outbox);
            up.outbox.drain(..written);
            if !up.outbox.is_empty() {
                return; // the tunnel tells when there is room
            }
        }
    }

    /// Hears what the rendezvous says.
    pub(super) fn hear(&mut self, haste: Haste, carrier: &mut Carrier, context: &mut Context) {
        let Some(up) = &mut self.up else { return };
        let now = context.now_us();
        let Some(mut tunnel) = context.peers.get(up.tunnel) else { return };
        loop {
            let piece = tunnel.peek(up.stream);
            let bytes = piece.len();
            if bytes == 0 {
                return;
            }
            up.inbox.push(piece);
            tunnel.consume(up.stream, bytes);
            loop {
                match up.inbox.pop::<Notice>() {
                    Ok(Some(notice)) => self.client.hear(now, notice),
                    Ok(None) => break,
                    Err(_malformed) => return self.lose("it says what nobody understands", haste, carrier, context),
                }
            }
        }
    }

    /// What has become of flows. The fate of services is for the log alone.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        loop {
            match self.client.poll_event()? {
                Event::Registered(service) => tracing::info!(%service, "visitors can come"),
                Event::Taken(service) => {
                    tracing::warn!(%service, "the name is taken by another secret; asking again until it is free");
                }
                Event::Displaced(service) => {
                    tracing::warn!(%service, "another provider with this secret has taken its place");
                }
                Event::Refused(service, _) => {
                    tracing::warn!(%service, "the rendezvous has as many services of this secret as it takes; asking again");
                }
                Event::Address(Transport::Tcp, address) => {
                    if let Some(up) = &mut self.up {
                        up.reflexive = Some(address);
                    }
                }
                Event::Address(Transport::Udp, _) => {} // a round has sockets of its own, and asks for each
                event @ (Event::Connected(_) | Event::Waiting(_) | Event::Ended(..)) => return Some(event),
            }
        }
    }

    /// Hands in the packets of other tunnels that have come through this one.
    pub(super) fn deliver(&mut self, context: &mut Context, mut heard: impl FnMut(PeerId, SocketAddr)) {
        let Some(up) = &self.up else { return };
        let now = context.now_us();
        loop {
            context.datagram.clear();
            let Some(mut tunnel) = context.peers.get(up.tunnel) else { return };
            let Some(info) = tunnel.read_datagram(&mut context.datagram) else { return };
            let from = Self::address_of(Flow(info.session));
            if let Some(peer) = context.peers.handle_datagram(now, from, &mut context.datagram) {
                heard(peer, from);
            }
        }
    }

    // For those who look for ways to their peers.

    pub(super) fn tunnel(&self) -> Option<PeerId> {
        self.up.as_ref().map(|up| up.tunnel)
    }

    pub(super) fn rtt_us(&self, context: &mut Context) -> Option<u64> {
        context.peers.tunnel(self.tunnel()?)?.status().rtt_us
    }

    /// Where sockets can ask how they look: two ports of the rendezvous, since NATs may tell them apart.
    pub(super) fn observers(&self) -> Vec<SocketAddr> {
        let addresses = self.up.iter().flat_map(|up| &up.addresses);
        let ports = |address: &SocketAddr| [0, 1].map(|more| SocketAddr::new(address.ip(), address.port() + more));
        addresses.flat_map(ports).collect()
    }

    /// Of the link, from which others may be connected to.
    pub(super) fn local_address(&self, carrier: &Carrier) -> Option<SocketAddr> {
        carrier.links.local_address(self.up.as_ref()?.link?)
    }

    /// As the rendezvous sees the link.
    pub(super) fn tcp_reflexive(&self) -> Option<SocketAddr> {
        self.up.as_ref()?.reflexive
    }

    /// It was tried often enough.
    pub(super) fn is_udp_blocked(&self) -> bool {
        self.up.as_ref().is_some_and(|up| up.link.is_some() && up.probed >= PROBES)
    }

    /// Says goodbye.
    pub(super) fn leave(&mut self, context: &mut Context) {
        if let Some(up) = self.up.take() {
            context.peers.close(up.tunnel, CloseReason::Leaving);
        }
    }
}

/// Links before datagrams: they tell more.
fn routes(addresses: impl IntoIterator<Item = SocketAddr>) -> VecDeque<(SocketAddr, Kind)> {
    let addresses: Vec<_> = addresses.into_iter().collect();
    let all = |kind| addresses.iter().map(move |address| (*address, kind));
    all(Kind::Link).chain(all(Kind::Udp)).collect()
}

/// From a port that other sockets may share: peers may be reached from it, too.
fn connect(address: SocketAddr, carrier: &mut Carrier, context: &mut Context) -> Option<u32> {
    let any = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    carrier.links.connect(address, Some(SocketAddr::new(any, 0)), &mut context.engine).ok()
}

impl Racer {
    fn start(address: SocketAddr, kind: Kind, carrier: &mut Carrier, context: &mut Context) -> Option<Self> {
        let (link, remote) = match kind {
            Kind::Link => {
                let link = connect(address, carrier, context)?;
                (Some(link), Way::Link(link).into())
            }
            Kind::Udp => {
                carrier.reach(address, &mut context.engine).ok()?;
                (None, address)
            }
        };
        let service = ServiceName::new(SERVICE).expect("it is a name");
        match context.peers.connect(context.now_us(), remote, context.via_key.as_ref(), service) {
            Some(tunnel) => Some(Self { tunnel, link, address }),
            None => {
                link.into_iter().for_each(|link| carrier.links.close(link, &mut context.engine));
                None
            }
        }
    }

    fn stop(self, carrier: &mut Carrier, context: &mut Context) {
        context.peers.close(self.tunnel, CloseReason::Done);
        if let Some(link) = self.link {
            carrier.links.close(link, &mut context.engine);
        }
    }
}

impl Up {
    fn new(racer: &Racer, context: &mut Context) -> Option<Self> {
        let stream = context.peers.get(racer.tunnel)?.open(0, None)?;
        Some(Self {
            tunnel: racer.tunnel,
            stream,
            link: racer.link,
            joining: None,
            join_at: context.now,
            address: racer.address,
            addresses: vec![racer.address],
            reflexive: None,
            pulse: Pulse::new(racer.tunnel, context),
            inbox: Inbox::default(),
            outbox: Vec::new(),
            probed: 0,
            probe_at: context.now,
        })
    }

    fn is_on_udp(&self, context: &mut Context) -> bool {
        let remote = context.peers.get(self.tunnel).map(|tunnel| tunnel.remote());
        remote.is_some_and(|remote| matches!(Way::of(remote), Way::Udp(_)))
    }

    fn return_to(&mut self, link: u32, context: &mut Context) {
        let now = context.now_us();
        if let Some(tunnel) = context.peers.tunnel(self.tunnel) {
            tunnel.use_path(now, Way::Link(link).into(), Leaving::Dead);
        }
        self.pulse = Pulse::new(self.tunnel, context);
        (self.probed, self.probe_at) = (0, context.now + PROBE_AGAIN);
        tracing::debug!("UDP to the rendezvous is silent");
    }

    fn wants_link(&self) -> bool {
        self.link.is_none() && self.joining.is_none()
    }

    /// Asks whether UDP works.
    fn probe(&mut self, carrier: &mut Carrier, context: &mut Context) {
        if self.is_on_udp(context) {
            self.probe_at = context.now + PROBE_AGAIN;
            return;
        }
        self.probed += 1;
        let is_last = self.probed.is_multiple_of(PROBES);
        self.probe_at = context.now + if is_last { PROBE_AGAIN } else { PROBE_PAUSE };
        if carrier.reach(self.address, &mut context.engine).is_ok() {
            self.ask(self.address, carrier, context);
        }
    }

    /// Asks whether this way works.
    fn ask(&self, to: SocketAddr, carrier: &mut Carrier, context: &mut Context) {
        let now = context.now_us();
        let Some(tunnel) = context.peers.tunnel(self.tunnel) else { return };
        context.datagram.clear();
        tunnel.probe(now, to, &mut context.datagram);
        carrier.send_aside(to, &context.datagram, &mut context.peers);
    }
}
