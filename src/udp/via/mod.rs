//! The tunnel to the rendezvous, by which peers that know no address of each other meet.
//!
//! It begins over a link, which also tells by its end that the rendezvous is gone, and moves to UDP as soon as that is seen to
//! work; when UDP falls silent it goes back. Where TCP does not get through, UDP alone will do.
//!
//! On its one stream [`Client`] says what this daemon wants. Its datagrams are packets of other tunnels, each under the number of
//! its flow: [`Via::deliver`] hands them in as if they had come from an address.
//!
//! Deliberately absent: what flows are for. The visitor hears of them by [`Event`].

mod attempt;
mod up;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::carrier::Carrier;
use super::peers::PeerId;
use super::{Asker, Context, links, settings};
use crate::limits;
use crate::proto::proxy_header::HEADER_BYTES_MAX;
use crate::proto::rendezvous::client::{Client, Event, Haste};
use crate::proto::rendezvous::data::DataId;
use crate::proto::rendezvous::wire::{Channel, Flow, Message, Notice, Transport};
use crate::proto::target::Target;
use crate::proto::tunnel::{CloseReason, DatagramInfo, ServiceName, Way};
use attempt::Attempt;
use up::Up;

/// A daemon meets its peers at one rendezvous.
const NUMBER: u16 = 0;

/// Channels that a rendezvous can have.
const CHANNELS_MAX: usize = u8::MAX as usize;

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
    /// Connections that the rendezvous wants for players, to be fetched in the same turn.
    dials: VecDeque<(SocketAddr, DataId)>,
    /// How the link looks from outside, which it did not know before. To be fetched in the same turn.
    has_learnt: bool,
    /// By which players of datagrams come, to be fetched in the same turn.
    channels: Vec<Channel>,
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
            dials: VecDeque::new(),
            has_learnt: false,
            channels: Vec::new(),
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

    /// The next connection to be opened for a player, and where to.
    pub(super) fn poll_dial(&mut self) -> Option<(SocketAddr, DataId)> {
        self.dials.pop_front()
    }

    /// Whether it has come to know how the link looks from outside.
    pub(super) fn take_learnt(&mut self) -> bool {
        std::mem::take(&mut self.has_learnt)
    }

    pub(super) fn poll_channel(&mut self) -> Option<Channel> {
        self.channels.pop()
    }

    pub(super) fn connect(&mut self, name: ServiceName) -> Option<Flow> {
        self.client.connect(name)
    }

    pub(super) fn connect_anew(&mut self, flow: Flow) {
        self.client.connect_anew(flow);
    }

    pub(super) fn is(&self, tunnel: PeerId) -> bool {
        self.up.as_ref().is_some_and(|up| up.tunnel == tunnel)
            || self.attempt.as_ref().is_some_and(|attempt| attempt.has(tunnel))
    }

    /// When there is something to do, if nothing else happens before.
    pub(super) fn deadline(&self, context: &Context) -> Option<Instant> {
        let of_client = self.client.next_timeout().map(|at| context.time_of(at));
        let of_attempt = self.attempt.as_ref().map(Attempt::deadline);
        let of_up = self.up.as_ref().map(Up::deadline);
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
            self.attempts = self.attempts.wrapping_add(1);
            self.attempt = Some(Attempt::new(&self.host, self.attempts, context));
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.step(carrier, context);
            if attempt.is_over(context) {
                self.fail(carrier, context);
            }
        }
        self.watch(haste, carrier, context);
        self.speak(context);
    }

    pub(super) fn note_found(&mut self, asker: Asker, addresses: Vec<IpAddr>) {
        let Target::Name { port, .. } = self.host else { return };
        if let Some(attempt) = self.attempt.as_mut().filter(|_| asker.attempt == self.attempts) {
            attempt.note_found(addresses, port);
        }
    }

    /// An attempt has come to its end.
    fn fail(&mut self, carrier: &mut Carrier, context: &mut Context) {
        let Some(attempt) = self.attempt.take() else { return };
        self.client.note_lost(context.now_us(), Haste::Calm);
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(via = %self.host, "rendezvous unreachable: {}; trying on", attempt.fault());
        }
        attempt.stop(carrier, context);
    }

    /// What has happened to a link, which need not be one of ours.
    pub(super) fn note_link(&mut self, news: &links::News, haste: Haste, carrier: &mut Carrier, context: &mut Context) {
        let (&links::News::Up(number) | &links::News::Down(number, _)) = news;
        if let Some(attempt) = &mut self.attempt {
            attempt.note_link(news, carrier, context);
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
        self.up = attempt.win(tunnel, carrier, context);
        let Some(up) = &self.up else { return self.client.note_lost(context.now_us(), Haste::Calm) };
        carrier.via = Some(tunnel);
        carrier.set_home(Some(up.address));
        self.client.note_established();
        self.told = false;
        let transport = if up.link.is_some() { "tcp" } else { "udp" };
        let after = context.now - self.down_since;
        tracing::info!(via = %self.host, address = %up.address, transport, ?after, "rendezvous reached");
    }

    pub(super) fn note_lost(&mut self, tunnel: PeerId, haste: Haste, carrier: &mut Carrier, context: &mut Context) {
        if let Some(attempt) = &mut self.attempt {
            attempt.note_lost(tunnel, carrier, context);
        }
        if self.up.as_ref().is_some_and(|up| up.tunnel == tunnel) {
            self.lose("it has ended the tunnel", haste, carrier, context);
        }
    }

    fn lose(&mut self, why: &str, haste: Haste, carrier: &mut Carrier, context: &mut Context) {
        let Some(up) = self.up.take() else { return };
        tracing::info!(via = %self.host, why, "the rendezvous is lost; trying to get it back");
        up.stop(carrier, context);
        carrier.via = None;
        self.dials.clear();
        self.channels.clear();
        self.client.note_lost(context.now_us(), haste);
        (self.down_since, self.told) = (context.now, false);
    }

    /// This host has other addresses than before.
    pub(super) fn note_moved(&mut self, carrier: &mut Carrier, context: &mut Context) {
        self.lose("this host has moved", Haste::AtOnce, carrier, context);
        context.keep_alive.leave();
        self.client.hurry(context.now_us(), Haste::AtOnce);
    }

    pub(super) fn note_heard(&mut self, tunnel: PeerId, from: SocketAddr, context: &Context) {
        if let Some(up) = self.up.as_mut().filter(|up| up.tunnel == tunnel) {
            up.note_heard(from, context);
        }
    }

    /// Sees to it that the tunnel goes by UDP where it can, and that a rendezvous that says nothing is not waited for.
    fn watch(&mut self, haste: Haste, carrier: &mut Carrier, context: &mut Context) {
        let Some(up) = &mut self.up else { return };
        up.keep_alive(context);
        up.pulse.look(context);
        if up.is_suspect(context) {
            match up.link.filter(|_| up.is_on_udp(context)) {
                Some(link) => up.return_to(link, context),
                None => return self.lose("it does not answer", haste, carrier, context),
            }
        }
        up.look_for_ways(carrier, context);
    }

    /// A way to the rendezvous works.
    pub(super) fn note_answered(&mut self, tunnel: PeerId, from: SocketAddr, context: &mut Context) {
        if let Some(up) = self.up.as_mut().filter(|up| up.tunnel == tunnel) {
            up.note_answered(from, context);
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
                        self.has_learnt |= up.reflexive.is_none();
                        up.reflexive = Some(address);
                        up.seen_as = Some(address.ip());
                    }
                }
                Event::Dial(id) => {
                    if let Some(up) = self.up.as_ref().filter(|_| self.dials.len() < limits::RESERVED_MAX) {
                        self.dials.push_back((up.address, id));
                    }
                }
                Event::Channel(channel) => {
                    if self.channels.len() < CHANNELS_MAX {
                        self.channels.push(channel);
                    }
                }
                Event::Address(Transport::Udp, address) => {
                    // A round has sockets of its own, and asks for each.
                    if let Some(up) = self.up.as_mut().filter(|up| up.reflexive.is_none()) {
                        up.seen_as = Some(address.ip());
                    }
                }
                event @ (Event::Connected(_) | Event::Waiting(_) | Event::Ended(..)) => return Some(event),
            }
        }
    }

    /// Hands in the packets of other tunnels that have come through this one, and hands out what players of the rendezvous say:
    /// behind room for a header.
    pub(super) fn deliver(
        &mut self,
        context: &mut Context,
        mut heard: impl FnMut(PeerId, SocketAddr),
        mut play: impl FnMut(PeerId, &DatagramInfo, &mut Context),
    ) {
        let Some(up) = &self.up else { return };
        let now = context.now_us();
        loop {
            context.datagram.clear();
            context.datagram.resize(HEADER_BYTES_MAX, 0);
            let Some(mut tunnel) = context.peers.get(up.tunnel) else { return };
            let Some(info) = tunnel.read_datagram(&mut context.datagram) else { return };
            if info.port != 0 {
                play(up.tunnel, &info, context);
                continue;
            }
            let from = Self::address_of(Flow(info.session));
            if let Some(peer) = context.peers.handle_datagram(now, from, &mut context.datagram[HEADER_BYTES_MAX..]) {
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
        self.up.as_ref().is_some_and(Up::is_udp_blocked)
    }

    /// Says goodbye.
    pub(super) fn leave(&mut self, context: &mut Context) {
        if let Some(up) = self.up.take() {
            context.peers.close(up.tunnel, CloseReason::Leaving);
        }
    }
}
