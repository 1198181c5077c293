//! The tunnel to the rendezvous, once it is there, and the ways it goes.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::attempt::{Racer, connect};
use crate::limits;
use crate::proto::path::{CALLS_GRACE_US, Calls, INTERVAL_US, Network};
use crate::proto::rendezvous::wire::Inbox;
use crate::proto::tunnel::{Leaving, Way};
use crate::sys::network;
use crate::udp::carrier::Carrier;
use crate::udp::peers::{PeerId, StreamId};
use crate::udp::pulse::Pulse;
use crate::udp::{Context, micros};

/// UDP is tried so often in a row, with so long between, and anew after this.
const PROBES: u32 = 5;
const PROBE_PAUSE: Duration = Duration::from_millis(250);
const PROBE_AGAIN: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Up {
    pub tunnel: PeerId,
    pub stream: StreamId,
    pub link: Option<u32>,
    /// One that is tried because there is none, and when the next is.
    pub joining: Option<u32>,
    join_at: Instant,
    /// Where it listens, for both protocols.
    pub address: SocketAddr,
    /// That, and one of the other family, if it has one.
    pub addresses: Vec<SocketAddr>,
    /// As it sees the link.
    pub reflexive: Option<SocketAddr>,
    /// An address of ours, as it sees it, that is news.
    pub seen_as: Option<IpAddr>,
    pub pulse: Pulse,
    /// Whether its questions come in, and that they do not.
    calls: Calls,
    is_forgotten: bool,
    /// The rendezvous is to hear something over the link: whatever came by it until now may have been overtaken by UDP.
    shows_link: bool,
    pub inbox: Inbox,
    pub outbox: Vec<u8>,
    probed: u32,
    probe_at: Instant,
}

impl Up {
    /// `addresses`: all that the rendezvous has.
    pub(super) fn new(tunnel: PeerId, racer: &Racer, addresses: &[SocketAddr], context: &mut Context) -> Option<Self> {
        let is_other = |address: &&SocketAddr| address.is_ipv4() != racer.address.is_ipv4();
        let other = addresses.iter().find(is_other).copied();
        let stream = context.peers.get(tunnel)?.open(0, None)?;
        Some(Self {
            tunnel,
            stream,
            link: racer.link,
            joining: None,
            join_at: context.now,
            address: racer.address,
            addresses: [racer.address].into_iter().chain(other).collect(),
            reflexive: None,
            seen_as: None,
            pulse: Pulse::new(tunnel, context),
            calls: Calls::default(),
            is_forgotten: false,
            shows_link: false,
            inbox: Inbox::default(),
            outbox: Vec::new(),
            probed: 0,
            probe_at: context.now,
        })
    }

    pub(super) fn deadline(&self) -> Instant {
        let suspect_at = self.pulse.asked_at().map(|at| at + limits::VIA_SUSPECT);
        let join_at = if self.wants_link() { Some(self.join_at) } else { None };
        [suspect_at, join_at].into_iter().flatten().fold(self.probe_at, Instant::min)
    }

    pub(super) fn note_heard(&mut self, from: SocketAddr, context: &Context) {
        if matches!(Way::of(from), Way::Udp(_)) {
            self.is_forgotten |= self.calls.heard(micros(self.pulse.silence(context)));
        }
        self.pulse.note_heard(context);
    }

    /// Has the rendezvous ask first, as long as its questions come in, and asks more often when they do not.
    pub(super) fn keep_alive(&mut self, context: &mut Context) {
        if let Some(reflexive) = self.seen_as.take()
            && let Ok(local) = network::source_for(self.address)
        {
            context.keep_alive.enter(Network { local, reflexive });
        }
        if std::mem::take(&mut self.is_forgotten) && context.keep_alive.forgot(INTERVAL_US) {
            let every = Duration::from_micros(context.keep_alive.interval_us());
            tracing::info!(?every, "a NAT forgets that the rendezvous may call; it and peers are asked more often");
        }
        let learnt_us = context.keep_alive.interval_us();
        let ask_after_us = if learnt_us < INTERVAL_US { learnt_us } else { INTERVAL_US + CALLS_GRACE_US };
        if let Some(tunnel) = context.peers.tunnel(self.tunnel) {
            tunnel.ask_after(ask_after_us);
        }
    }

    /// It owes an answer for too long.
    pub(super) fn is_suspect(&self, context: &Context) -> bool {
        self.pulse.asked_at().is_some_and(|at| at + limits::VIA_SUSPECT <= context.now)
    }

    /// UDP was tried often enough.
    pub(super) fn is_udp_blocked(&self) -> bool {
        self.link.is_some() && self.probed >= PROBES
    }

    pub(super) fn is_on_udp(&self, context: &mut Context) -> bool {
        let remote = context.peers.get(self.tunnel).map(|tunnel| tunnel.remote());
        remote.is_some_and(|remote| matches!(Way::of(remote), Way::Udp(_)))
    }

    pub(super) fn return_to(&mut self, link: u32, context: &mut Context) {
        let now = context.now_us();
        if let Some(tunnel) = context.peers.tunnel(self.tunnel) {
            tunnel.use_path(now, Way::Link(link).into(), Leaving::Dead);
        }
        self.pulse = Pulse::new(self.tunnel, context);
        (self.probed, self.probe_at) = (0, context.now + PROBE_AGAIN);
        tracing::debug!("UDP to the rendezvous is silent");
    }

    /// Tries UDP, and a link where there is none, as often as it makes sense.
    pub(super) fn look_for_ways(&mut self, carrier: &mut Carrier, context: &mut Context) {
        if self.probe_at <= context.now {
            self.probe(carrier, context);
        }
        if let Some(link) = self.link.filter(|_| std::mem::take(&mut self.shows_link)) {
            self.ask(Way::Link(link).into(), carrier, context);
        }
        if self.wants_link() && self.join_at <= context.now {
            self.join_at = context.now + PROBE_AGAIN;
            self.joining = connect(self.address, carrier, context);
        }
    }

    /// A way to the rendezvous works.
    pub(super) fn note_answered(&mut self, from: SocketAddr, context: &mut Context) {
        if let Some(link) = self.joining.take_if(|link| from == Way::Link(*link).into()) {
            self.link = Some(link);
        }
        if from != self.address {
            return;
        }
        let now = context.now_us();
        (self.probed, self.probe_at) = (0, context.now + PROBE_AGAIN);
        if let Some(tunnel) = context.peers.tunnel(self.tunnel).filter(|tunnel| tunnel.status().remote != from) {
            tunnel.use_path(now, from, Leaving::Alive);
            self.shows_link = self.link.is_some();
            tracing::debug!(address = %from, "the rendezvous is reached by UDP, too");
        }
    }

    pub(super) fn stop(self, carrier: &mut Carrier, context: &mut Context) {
        self.joining.into_iter().for_each(|link| carrier.links.close(link, &mut context.engine));
        Racer { tunnel: Some(self.tunnel), link: self.link, address: self.address }.stop(carrier, context);
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
    pub(super) fn ask(&self, to: SocketAddr, carrier: &mut Carrier, context: &mut Context) {
        let now = context.now_us();
        let Some(tunnel) = context.peers.tunnel(self.tunnel) else { return };
        context.datagram.clear();
        tunnel.probe(now, to, &mut context.datagram);
        carrier.send_aside(to, &context.datagram, &mut context.peers);
    }
}
