//! `gateway check`: a configuration as it would be in force. Opens nothing.

use super::Failure;
use crate::config::{Config, Form};
use crate::worker;

pub(super) fn run(mut form: Form) -> Result<(), Failure> {
    form.secrets.take_from_process()?;
    let Config { daemon, warnings } = Config::resolve(&form)?;
    let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let time = |time| humantime::format_duration(time).to_string();
    let (worker::Settings::Gateway(tcp) | worker::Settings::Rendezvous { gateway: Some(tcp), .. }) = &daemon.worker
    else {
        return Ok(());
    };
    let policy = &tcp.policy;
    let connections = match tcp.connections_max {
        usize::MAX => "what the limit of open files allows".to_owned(),
        most => most.to_string(),
    };
    let allow = if policy.allow.is_empty() {
        "all".to_owned()
    } else {
        list(policy.allow.iter().map(ToString::to_string).collect())
    };
    let rows = [
        ("addr", list(daemon.doors.iter().map(|door| door.address().to_string()).collect())),
        ("reuse", daemon.reuse.to_string()),
        ("workers", daemon.workers.to_string()),
        ("engine", format!("{:?}", daemon.engine).to_lowercase()),
        ("pid-file", daemon.pid_file.as_ref().map_or("none".into(), |path| path.display().to_string())),
        ("admin", daemon.admin.as_ref().map_or("none".into(), ToString::to_string)),
        ("drain", daemon.drain.map_or("until games end".into(), time)),
        ("secrets", daemon.keys.secrets().len().to_string()),
        ("retry", tcp.dial_attempts.to_string()),
        ("timeout", time(tcp.dial_timeout)),
        ("allow", allow),
        ("deny", list(policy.deny.iter().map(ToString::to_string).collect())),
        ("handshake-timeout", time(tcp.handshake_timeout)),
        ("idle-timeout", time(tcp.idle_timeout)),
        ("half-closed-timeout", time(tcp.half_closed_timeout)),
        ("max-connections", connections),
        ("buffer", tcp.buffer_bytes.to_string()),
        ("log-level", format!("{:?}", daemon.log.level).to_lowercase()),
        ("log-format", format!("{:?}", daemon.log.format).to_lowercase()),
    ];
    for (key, value) in rows {
        super::print(format_args!("{key} = {value}"))?;
    }
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    Ok(())
}
