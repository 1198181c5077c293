//! What this daemon wants at the rendezvous: to provide its services there, or a flow to the provider of each that it visits.

use std::io;
use std::time::Instant;

use super::carrier::Carrier;
use super::links;
use super::settings::Role;
use super::via::Via;
use super::{Asker, Context};
use crate::limits;
use crate::names::Found;
use crate::proto::rendezvous::client::{Event, Haste};
use crate::proto::rendezvous::wire::Flow;
use crate::proto::tunnel::ServiceName;

#[derive(Debug)]
pub(super) struct Meeting {
    pub(super) via: Via,
    /// Of a visitor, for each of its services.
    flows: Vec<Wish>,
    /// Of a provider.
    services: Vec<ServiceName>,
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
    pub(super) fn new(context: &Context) -> io::Result<Option<Self>> {
        let Some(settings) = &context.settings.via else { return Ok(None) };
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        let mut via = Via::new(settings, seed, context.now);
        let (mut flows, mut services) = (Vec::new(), Vec::new());
        match &context.settings.role {
            Role::Provide(provided) => services.extend(provided.iter().map(|provided| provided.name)),
            Role::Visit(visited) => {
                let wish = |service| Wish { service, flow: None, again_at: Some(context.now), told: false };
                flows.extend(visited.iter().map(|visited| wish(visited.name)));
            }
        }
        services.iter().for_each(|service| via.publish(*service));
        Ok(Some(Self { via, flows, services }))
    }

    pub(super) fn deadline(&self, context: &Context) -> Option<Instant> {
        let again = self.flows.iter().filter_map(|wish| wish.again_at);
        again.chain(self.via.deadline(context)).min()
    }

    pub(super) fn handle_found(&mut self, found: Found<Asker>) {
        self.via.note_found(found.asker, found.addresses);
    }

    /// One turn: what has happened to links, and what is to be done.
    pub(super) fn turn(&mut self, haste: Haste, carrier: &mut Carrier, context: &mut Context) {
        carrier.links.expire(context.now);
        while let Some(news) = carrier.links.poll_news(&mut context.engine) {
            self.note_link(&news, haste, carrier, context);
        }
        for wish in &mut self.flows {
            if wish.again_at.take_if(|at| *at <= context.now).is_some() {
                wish.flow = self.via.connect(wish.service);
                wish.again_at = if wish.flow.is_none() { Some(context.now + limits::FLOW_PAUSE) } else { None };
            }
        }
        self.via.step(haste, carrier, context);
    }

    fn note_link(&mut self, news: &links::News, haste: Haste, carrier: &mut Carrier, context: &mut Context) {
        self.via.note_link(news, haste, carrier, context);
    }

    /// The next service whose provider has been found, with the address that stands for it, or lost.
    pub(super) fn poll_flow(&mut self, context: &Context) -> Option<(usize, Option<std::net::SocketAddr>)> {
        loop {
            let (flow, is_connected) = match self.via.poll_event()? {
                Event::Connected(flow) => (flow, true),
                Event::Waiting(flow) => (flow, false),
                Event::Ended(flow, _) => {
                    self.ask_again(flow, context);
                    continue;
                }
                Event::Address(..)
                | Event::Registered(_)
                | Event::Taken(_)
                | Event::Displaced(_)
                | Event::Refused(..) => continue,
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

    fn ask_again(&mut self, flow: Flow, context: &Context) {
        if let Some(wish) = self.flows.iter_mut().find(|wish| wish.flow == Some(flow)) {
            (wish.flow, wish.again_at) = (None, Some(context.now + limits::FLOW_PAUSE));
        }
    }

    /// Nobody new shall come.
    pub(super) fn drain(&mut self) {
        self.services.drain(..).for_each(|service| self.via.withdraw(service));
    }
}
