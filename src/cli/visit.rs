//! `gateway visit`: brings services here that a provider publishes.

use super::Failure;
use super::run::{daemon, say};
use crate::config::VisitForm;
use crate::supervisor::Door;
use crate::udp::Role;
use crate::worker;

pub(super) fn run(mut form: VisitForm) -> Result<(), Failure> {
    form.tunnel.take_from_process()?;
    daemon(|| form.resolve(), announce)
}

fn announce(worker: &worker::Settings, doors: &[Door]) {
    if let worker::Settings::Tunnel(udp) = worker
        && let Role::Visit(services) = &udp.role
    {
        // The doors stand in the order of the services.
        let names = services.iter().flat_map(|visited| std::iter::repeat_n(visited.name, visited.tcp + visited.udp));
        say(doors.iter().zip(names).map(|(door, name)| format!("listening on {door} for {name}")));
    }
}
