//! `gateway [run]`: the daemon.

use std::io::Write;
use std::net::SocketAddr;

use super::Failure;
use crate::config::{Config, Form};
use crate::{log, supervisor};

pub(super) fn run(mut form: Form) -> Result<(), Failure> {
    form.secrets.take_from_process()?;
    let config = Config::resolve(&form)?;
    let _logs = log::start(config.daemon.log);
    warn(&config);
    let reload = || {
        let config = Config::resolve(&form).map_err(|error| error.message)?;
        warn(&config);
        Ok(config.daemon)
    };
    Ok(supervisor::run(config.daemon, reload, announce)?)
}

fn warn(config: &Config) {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
}

/// Scripts wait for these lines. That nobody reads them is no reason to end.
fn announce(addresses: &[SocketAddr]) {
    let mut stdout = std::io::stdout();
    for address in addresses {
        let _ = writeln!(stdout, "listening on {address}");
    }
    let _ = stdout.flush();
}
