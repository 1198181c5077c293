//! What this daemon wants at the rendezvous: to provide its services there, or a flow to the provider of each that it visits.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::carrier::Carrier;
use super::mapping::Mapping;
use super::peers::{self, PeerId};
use super::settings::Role;
use super::via::Via;
use super::ways::Ways;
use super::{Asker, Context};
use crate::engine::{Event, Token};
use crate::limits;
use crate::names::Found;
use crate::proto::punch::Side;
use crate::proto::rendezvous::client::{self, Haste};
use crate::proto::rendezvous::wire::Flow;
use crate::proto::tunnel::ServiceName;
use crate::sys::network;

#[derive(Debug)]
pub(super) struct Meeting {
    pub(super) via: Via,
    pub(super) ways: Ways,
    pub(super) mapping: Mapping,
    /// Where the kernel tells of other addresses and routes, and whether it has.
    network: Option<Network>,
    /// Of a visitor, for each of its services.
    flows: Vec<Wish>,
    /// Of a provider.
    services: Vec<ServiceName>,
}

#[derive(Debug)]
struct Network {
    socket: OwnedFd,
    token: Token,
    /// What others know this host by.
    before: (Vec<IpAddr>, Option<IpAddr>),
    /// When it is to be looked at again: changes come in crowds.
    look_at: Option<Instant>,
}

/// A flow to the provider of a service.
#[derive(Debug)]
struct Wish {
    service: ServiceName,
    flow: Option<Flow>,
    /// When a flow that was refused is asked for again.
    again_at: Option<Instant>,
    /// That there is no provider was logged.
    told: bool,
}

impl Meeting {
    /// `None` without a rendezvous.
    pub(super) fn new(context: &mut Context) -> io::Result<Option<Self>> {
        let Some(settings) = context.settings.via.clone() else { return Ok(None) };
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        let mut via = Via::new(&settings, seed, context.now);
        let (mut flows, mut services) = (Vec::new(), Vec::new());
        match &context.settings.role {
            Role::Provide(provided) => services.extend(provided.iter().map(|provided| provided.name)),
            Role::Visit(visited) => {
                let wish = |service| Wish { service, flow: None, again_at: Some(context.now), told: false };
                flows.extend(visited.iter().map(|visited| wish(visited.name)));
            }
        }
        services.iter().for_each(|service| via.publish(*service));
        let side = if context.settings.role.is_provider() { Side::Provider } else { Side::Visitor };
        let (ways, mapping) = (Ways::new(side, &settings), Mapping::new(&settings));
        let network = Network::watch(context).inspect_err(|error| {
            tracing::warn!(%error, "changes of this host's addresses are not seen, and noticed late");
        });
        Ok(Some(Self { via, ways, mapping, network: network.ok(), flows, services }))
    }

    pub(super) fn deadline(&self, context: &Context) -> Option<Instant> {
        let again = self.flows.iter().filter_map(|wish| wish.again_at);
        let of_network = self.network.as_ref().and_then(|network| network.look_at);
        again.chain(self.via.deadline(context)).chain(self.ways.deadline()).chain(of_network).min()
    }

    pub(super) fn handle_found(&mut self, found: Found<Asker>) {
        self.via.note_found(found.asker, found.addresses);
    }

    /// One turn: what has happened to links, and what is to be done.
    pub(super) fn turn(&mut self, haste: Haste, carrier: &mut Carrier, context: &mut Context) {
        carrier.links.expire(context.now);
        while let Some(news) = carrier.links.poll_news(&mut context.engine) {
            self.via.note_link(&news, haste, carrier, context);
            self.ways.note_link(&news, context);
        }
        if self.network.as_mut().is_some_and(|network| network.has_changed(&self.via, context)) {
            tracing::info!("this host has other addresses or routes than before");
            self.via.note_moved(carrier, context);
            self.ways.note_network_changed(context);
            self.mapping.note_network_changed();
        }
        if self.mapping.turn(&self.via, carrier, context) {
            self.ways.note_chance(context);
        }
        for wish in &mut self.flows {
            if wish.again_at.take_if(|at| *at <= context.now).is_some() {
                wish.flow = self.via.connect(wish.service);
                wish.again_at = if wish.flow.is_none() { Some(context.now + limits::FLOW_PAUSE) } else { None };
            }
        }
        self.via.step(haste, carrier, context);
        self.ways.turn(&self.via, carrier, context);
    }

    /// What a peer says that has to do with ways to it.
    pub(super) fn hear_peer(
        &mut self,
        peer: PeerId,
        event: peers::Event,
        carrier: &mut Carrier,
        context: &mut Context,
    ) {
        match event {
            peers::Event::Established => self.ways.note_established(peer, carrier, context),
            _ => self.ways.hear(peer, event, &self.via, carrier, context),
        }
    }

    /// The kernel tells of a change.
    pub(super) fn note_network(&mut self, event: Event, context: &mut Context) {
        let Some(network) = &mut self.network else { return };
        network::clear(network.socket.as_fd());
        network.look_at.get_or_insert(context.now + limits::NETWORK_PAUSE);
        if matches!(event, Event::Disarmed(_))
            && let Err(error) = context.engine.watch_arrivals(network.socket.as_fd(), network.token)
        {
            tracing::error!(%error, "changes of this host's addresses are not seen any more");
        }
    }

    /// The next service whose provider has been found, with the address that stands for it, or lost.
    pub(super) fn poll_flow(&mut self, context: &Context) -> Option<(usize, Option<SocketAddr>)> {
        loop {
            let (flow, is_connected) = match self.via.poll_event()? {
                client::Event::Connected(flow) => (flow, true),
                client::Event::Waiting(flow) => (flow, false),
                client::Event::Ended(flow, _) => {
                    self.ask_again(flow, context);
                    continue;
                }
                _ => continue,
            };
            let Some(service) = self.flows.iter().position(|wish| wish.flow == Some(flow)) else { continue };
            let wish = &mut self.flows[service];
            if is_connected {
                wish.told = false;
            } else if !std::mem::replace(&mut wish.told, true) {
                tracing::warn!(service = %wish.service, "nobody provides it with this secret now; waiting");
            }
            return Some((service, is_connected.then(|| Via::address_of(flow))));
        }
    }

    /// The provider of a service does not answer, and may be another by now.
    pub(super) fn find_anew(&mut self, service: usize) {
        if let Some(flow) = self.flows.get(service).and_then(|wish| wish.flow) {
            self.via.connect_anew(flow);
        }
    }

    /// Why a visitor's service has no peer.
    pub(super) fn why_nobody(&self, service: usize) -> &'static str {
        match self.flows.get(service) {
            _ if self.via.tunnel().is_none() => "the rendezvous is not reached",
            Some(wish) if wish.told => "nobody provides it with this secret now",
            _ => "the provider has not answered yet",
        }
    }

    fn ask_again(&mut self, flow: Flow, context: &Context) {
        if let Some(wish) = self.flows.iter_mut().find(|wish| wish.flow == Some(flow)) {
            (wish.flow, wish.again_at) = (None, Some(context.now + limits::FLOW_PAUSE));
        }
    }

    pub(super) fn leave(&mut self, context: &mut Context) {
        self.via.leave(context);
        if let Some(network) = self.network.take() {
            context.engine.forget(network.socket, network.token);
        }
    }

    /// Nobody new shall come.
    pub(super) fn drain(&mut self) {
        self.services.drain(..).for_each(|service| self.via.withdraw(service));
    }
}

impl Network {
    fn watch(context: &mut Context) -> io::Result<Self> {
        let (socket, token) = (network::watch()?, Token::new(super::NETWORK, 0, 0));
        context.engine.watch_arrivals(socket.as_fd(), token)?;
        Ok(Self { socket, token, before: (network::addresses()?, None), look_at: None })
    }

    /// Whether others know this host by something else than before.
    fn has_changed(&mut self, via: &Via, context: &Context) -> bool {
        let source = || via.observers().first().and_then(|to| network::source_for(*to).ok());
        if self.before.1.is_none() && via.tunnel().is_some() {
            self.before.1 = source();
        }
        if self.look_at.take_if(|at| *at <= context.now).is_none() {
            return false;
        }
        let after = (network::addresses().unwrap_or_default(), source().or(self.before.1));
        std::mem::replace(&mut self.before, after.clone()) != after
    }
}
