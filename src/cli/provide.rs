//! `gateway provide`: publishes services to whoever knows the secret.

use super::Failure;
use super::run::{daemon, say};
use crate::config::ProvideForm;
use crate::supervisor::Door;
use crate::udp::{Provided, Role};
use crate::worker;

pub(super) fn run(mut form: ProvideForm) -> Result<(), Failure> {
    form.tunnel.take_from_process()?;
    daemon(|| form.resolve(), announce)
}

fn announce(worker: &worker::Settings, doors: &[Door]) {
    say(doors.iter().map(|door| format!("listening on {door}")));
    if let worker::Settings::Tunnel(udp) = worker
        && let Role::Provide(services) = &udp.role
    {
        let via = udp.via.as_ref().map(|via| format!(" via {}", via.host)).unwrap_or_default();
        say(services.iter().map(|provided| format!("providing {}{via}: {}", provided.name, ports(provided))));
    }
}

fn ports(provided: &Provided) -> String {
    let tcp = provided.tcp.iter().map(|address| format!("tcp {address}"));
    let udp = provided.udp.iter().map(|address| format!("udp {address}"));
    tcp.chain(udp).collect::<Vec<_>>().join(", ")
}
