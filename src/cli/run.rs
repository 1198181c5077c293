//! `gateway [run]`: the daemon.

use std::io::Write;

use super::Failure;
use crate::config::{self, Config, Form};
use crate::supervisor::{self, Door};
use crate::{log, worker};

pub(super) fn run(mut form: Form) -> Result<(), Failure> {
    form.secrets.take_from_process()?;
    daemon(|| Config::resolve(&form), announce)
}

/// Runs the daemon that `resolve` describes, now and after each HUP.
pub(super) fn daemon(
    resolve: impl Fn() -> Result<Config, config::Error>,
    announce: impl FnOnce(&worker::Settings, &[Door]),
) -> Result<(), Failure> {
    let config = resolve()?;
    let _logs = log::start(config.daemon.log);
    warn(&config);
    let reload = || {
        let config = resolve().map_err(|error| error.message)?;
        warn(&config);
        Ok(config.daemon)
    };
    let worker = config.daemon.worker.clone();
    Ok(supervisor::run(config.daemon, reload, |doors| announce(&worker, doors))?)
}

fn warn(config: &Config) {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
}

fn announce(_: &worker::Settings, doors: &[Door]) {
    say(doors.iter().map(|door| match door {
        Door::Rendezvous(address) => format!("rendezvous on {address}"),
        Door::Tcp(address) | Door::Udp(address) => format!("listening on {address}"),
        Door::Exposed(_, _, provided) => format!("exposing {provided} on {door}"),
    }));
}

/// Scripts wait for these lines. That nobody reads them is no reason to end.
pub(super) fn say(lines: impl Iterator<Item = String>) {
    let mut stdout = std::io::stdout();
    for line in lines {
        let _ = writeln!(stdout, "{line}");
    }
    let _ = stdout.flush();
}
