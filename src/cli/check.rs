//! `gateway check`: a configuration as it would be in force. Opens nothing.

use std::time::Duration;

use super::Failure;
use crate::config::{Config, Form};
use crate::supervisor::{self, Door, Transport};
use crate::{tcp, worker};

pub(super) fn run(mut form: Form) -> Result<(), Failure> {
    form.secrets.take_from_process()?;
    let Config { daemon, warnings } = Config::resolve(&form)?;
    let (gateway, relay_rate) = match &daemon.worker {
        worker::Settings::Gateway(tcp) => (Some(tcp), None),
        worker::Settings::Rendezvous { gateway, rendezvous, .. } => (gateway.as_ref(), rendezvous.relay_rate),
        _ => (None, None),
    };
    for (key, value) in of_daemon(&daemon, relay_rate).into_iter().chain(gateway.into_iter().flat_map(of_gateway)) {
        super::print(format_args!("{key} = {value}"))?;
    }
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

fn of_daemon(daemon: &supervisor::Settings, relay_rate: Option<u64>) -> Vec<(&'static str, String)> {
    let addresses = |is_one: fn(&Door) -> bool| {
        list(daemon.doors.iter().filter(|door| is_one(door)).map(|door| door.address().to_string()))
    };
    let exposed = daemon.doors.iter().filter_map(|door| match door {
        Door::Exposed(Transport::Tcp, address, service) => Some(format!("{address}={service}")),
        Door::Exposed(Transport::Udp, address, service) => Some(format!("udp://{address}={service}")),
        _ => None,
    });
    vec![
        ("addr", addresses(|door| matches!(door, Door::Tcp(_)))),
        ("rendezvous", addresses(|door| matches!(door, Door::Rendezvous(_)))),
        ("relay-rate", relay_rate.map_or("no limit".into(), |rate| (rate * 8).to_string())),
        ("expose", list(exposed)),
        ("reuse", daemon.reuse.to_string()),
        ("workers", daemon.workers.to_string()),
        ("engine", format!("{:?}", daemon.engine).to_lowercase()),
        ("pid-file", daemon.pid_file.as_ref().map_or("none".into(), |path| path.display().to_string())),
        ("admin", daemon.admin.as_ref().map_or("none".into(), ToString::to_string)),
        ("drain", daemon.drain.map_or("until games end".into(), time)),
        ("secrets", daemon.keys.secrets().len().to_string()),
        ("log-level", format!("{:?}", daemon.log.level).to_lowercase()),
        ("log-format", format!("{:?}", daemon.log.format).to_lowercase()),
    ]
}

fn of_gateway(tcp: &tcp::Settings) -> Vec<(&'static str, String)> {
    let policy = &tcp.policy;
    let connections = match tcp.connections_max {
        usize::MAX => "what the limit of open files allows".to_owned(),
        most => most.to_string(),
    };
    let allow =
        if policy.allow.is_empty() { "all".to_owned() } else { list(policy.allow.iter().map(ToString::to_string)) };
    vec![
        ("retry", tcp.dial_attempts.to_string()),
        ("timeout", time(tcp.dial_timeout)),
        ("allow", allow),
        ("deny", list(policy.deny.iter().map(ToString::to_string))),
        ("handshake-timeout", time(tcp.handshake_timeout)),
        ("idle-timeout", time(tcp.idle_timeout)),
        ("half-closed-timeout", time(tcp.half_closed_timeout)),
        ("max-connections", connections),
        ("buffer", tcp.buffer_bytes.to_string()),
    ]
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

fn time(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}
