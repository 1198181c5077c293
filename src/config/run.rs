//! What `gateway run` needs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::expose::{self, Expose};
use super::values::one_or_many;
use super::{DaemonForm, Error, Fill, LogForm, Rate, SecretForm, Span, Workers, many, read, within};
use crate::proto::policy::{Policy, Rule};
use crate::proto::token::Keyring;
use crate::supervisor::{self, Door};
use crate::udp::rendezvous;
use crate::{limits, tcp, worker};

/// What may be said to `gateway run`.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Form {
    /// Address to listen on; repeat it for more [default: 0.0.0.0:0, a free port; with --rendezvous: no gateway]
    #[arg(long, value_name = "IP:PORT", env = "GATEWAY_ADDR", value_delimiter = ',', help_heading = "Listening")]
    #[serde(deserialize_with = "one_or_many")]
    pub addr: Vec<SocketAddr>,

    /// Share the port with other gateways of the same user [default: false]
    #[arg(long, env = "GATEWAY_REUSE", num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Listening")]
    pub reuse: Option<bool>,

    /// Worker processes, or `auto` for one per core [default: 1]
    #[arg(long, value_name = "N|auto", env = "GATEWAY_WORKERS", help_heading = "Processes")]
    pub workers: Option<Workers>,

    /// Be a rendezvous, through which providers and visitors find each other: TCP and UDP on this port, and UDP on the next;
    /// repeat it for more addresses. A gateway is beside it when --addr is given [default: none]
    #[arg(
        long,
        value_name = "IP:PORT",
        env = "GATEWAY_RENDEZVOUS",
        value_delimiter = ',',
        help_heading = "Rendezvous"
    )]
    #[serde(deserialize_with = "one_or_many")]
    pub rendezvous: Vec<SocketAddr>,

    /// Bits a second that the peers of one secret may send each other through the rendezvous, such as 20M [default: all it can]
    #[arg(long, value_name = "BITS", env = "GATEWAY_RELAY_RATE", help_heading = "Rendezvous")]
    pub relay_rate: Option<Rate>,

    /// Let players who have nothing but the game reach a provider's service: its first TCP port, or the one behind a colon, or a
    /// range of ports one by one; `udp://` before it for UDP; repeatable [default: none]
    #[arg(
        long,
        value_name = "[udp://]IP:PORT[-PORT]=NAME[:N]",
        env = "GATEWAY_EXPOSE",
        value_delimiter = ',',
        help_heading = "Rendezvous"
    )]
    #[serde(deserialize_with = "one_or_many")]
    pub expose: Vec<Expose>,

    #[command(flatten)]
    #[serde(flatten)]
    pub daemon: DaemonForm,

    #[command(flatten)]
    #[serde(flatten)]
    pub secrets: SecretForm,

    /// Attempts to reach a backend, in all; only a time-out is tried again [default: 1]
    #[arg(long, value_name = "N", env = "GATEWAY_RETRY", help_heading = "Backends")]
    pub retry: Option<u32>,

    /// Time for each attempt; a plain number is seconds [default: 3s]
    #[arg(long, value_name = "TIME", env = "GATEWAY_TIMEOUT", help_heading = "Backends")]
    pub timeout: Option<Span>,

    /// Backends that lines may lead to, and no others, or `provider:NAME`; repeatable [default: all]
    #[arg(long, value_name = "CIDR[:PORTS]", env = "GATEWAY_ALLOW", value_delimiter = ',', help_heading = "Backends")]
    #[serde(deserialize_with = "one_or_many")]
    pub allow: Vec<Rule>,

    /// Backends that no line may lead to; repeatable, beats --allow [default: none]
    #[arg(long, value_name = "CIDR[:PORTS]", env = "GATEWAY_DENY", value_delimiter = ',', help_heading = "Backends")]
    #[serde(deserialize_with = "one_or_many")]
    pub deny: Vec<Rule>,

    /// Time a client has for its whole line [default: 10s]
    #[arg(long, value_name = "TIME", env = "GATEWAY_HANDSHAKE_TIMEOUT", help_heading = "Limits")]
    pub handshake_timeout: Option<Span>,

    /// Most bytes of one read on the copy path [default: 16384]
    #[arg(long, value_name = "BYTES", env = "GATEWAY_BUFFER", help_heading = "Limits")]
    pub buffer: Option<usize>,

    #[command(flatten)]
    #[serde(flatten)]
    pub log: LogForm,

    /// Read settings from a TOML file; keys are the names of these flags
    #[arg(long, value_name = "FILE", env = "GATEWAY_CONFIG", help_heading = "Configuration")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    pub daemon: supervisor::Settings,
    /// What is allowed and unwise, for the log.
    pub warnings: Vec<String>,
}

impl Config {
    /// # Errors
    /// A file that cannot be read or understood, a value out of its range, a missing or empty secret.
    pub fn resolve(typed: &Form) -> Result<Self, Error> {
        let file: Form = read(typed.config.as_deref())?;
        let mut warnings = Vec::new();
        let keys = typed.secrets.keyring(&file.secrets, &mut warnings)?;
        let form = typed.clone().over(file);
        within("addr", form.addr.len(), 0, limits::ADDRESSES_MAX)?;
        let policy = Policy { allow: form.allow, deny: form.deny };
        within("allow", policy.allow.len(), 0, limits::RULES_MAX)?;
        within("deny", policy.deny.len(), 0, limits::RULES_MAX)?;
        let attempts = form.retry.unwrap_or(limits::DIAL_ATTEMPTS);
        within("retry", attempts as usize, 1, limits::DIAL_ATTEMPTS_MAX as usize)?;
        let buffer_bytes = form.buffer.unwrap_or(limits::BUFFER_BYTES);
        within("buffer", buffer_bytes, limits::BUFFER_BYTES_MIN, limits::BUFFER_BYTES_MAX)?;
        let span = |given: Option<Span>, default: Duration| given.map_or(default, |span| span.0);
        let (reuse, workers) = (form.reuse.unwrap_or(false), form.workers.unwrap_or(Workers(1)).0);
        let connections_max = form.daemon.max_connections.map_or(usize::MAX, usize::from);
        let rendezvous = Meeting { addresses: &form.rendezvous, relay_rate: form.relay_rate, reuse, workers };
        let rendezvous = rendezvous.resolve(&keys, connections_max)?;
        let has_lines = rendezvous.is_none() || !form.addr.is_empty();
        let exposed = expose::resolve(&form.expose, rendezvous.is_some())?;
        let addresses = if has_lines { many(form.addr, vec![SocketAddr::from(([0, 0, 0, 0], 0))]) } else { Vec::new() };
        let gateway = tcp::Settings {
            handshake_timeout: span(form.handshake_timeout, limits::HANDSHAKE_TIMEOUT),
            dial_timeout: span(form.timeout, limits::DIAL_TIMEOUT),
            dial_attempts: attempts,
            idle_timeout: span(form.daemon.idle_timeout, limits::IDLE_TIMEOUT),
            half_closed_timeout: span(form.daemon.half_closed_timeout, limits::HALF_CLOSED_TIMEOUT),
            buffer_bytes,
            connections_max,
            policy,
            own_addresses: Vec::new(),
            exposed: exposed.connections().collect(),
            has_rendezvous: rendezvous.is_some(),
            published: Vec::new(),
        };
        let has_gateway = has_lines || !gateway.exposed.is_empty();
        let rendezvous =
            rendezvous.map(|rendezvous| rendezvous::Settings { exposed: exposed.services(), ..rendezvous });
        let daemon = supervisor::Settings {
            doors: addresses
                .into_iter()
                .map(Door::Tcp)
                .chain(exposed.doors())
                .chain(form.rendezvous.iter().copied().map(Door::Rendezvous))
                .collect(),
            reuse,
            workers,
            engine: form.daemon.engine.unwrap_or_default(),
            pid_file: Some(form.daemon.pid_file()),
            admin: form.daemon.admin.clone(),
            drain: form.daemon.drain.map(|span| span.0),
            log: form.log.settings(),
            keys,
            worker: match rendezvous {
                None => worker::Settings::Gateway(gateway),
                Some(rendezvous) => {
                    worker::Settings::Rendezvous { gateway: has_gateway.then_some(gateway), rendezvous }
                }
            },
        };
        Ok(Self { daemon, warnings })
    }
}

/// What is said of the rendezvous.
struct Meeting<'a> {
    addresses: &'a [SocketAddr],
    relay_rate: Option<Rate>,
    reuse: bool,
    workers: usize,
}

impl Meeting<'_> {
    fn resolve(&self, keys: &Keyring, connections_max: usize) -> Result<Option<rendezvous::Settings>, Error> {
        if self.addresses.is_empty() {
            return match self.relay_rate {
                Some(_) => Err(Error::new(
                    "`relay-rate` is given without a rendezvous",
                    "say where, with --rendezvous IP:PORT",
                )),
                None => Ok(None),
            };
        }
        within("rendezvous", self.addresses.len(), 1, limits::RENDEZVOUS_ADDRESSES_MAX)?;
        within("workers", self.workers, 1, limits::RENDEZVOUS_WORKERS_MAX)?;
        if self.reuse {
            return Err(Error::new(
                "`reuse` and `rendezvous` are both given",
                "the peers of a secret must meet in one daemon: use --workers instead",
            ));
        }
        if keys.secrets().iter().any(|secret| secret.bytes().len() < limits::SECRET_BYTES_WEAK) {
            // Whoever records the beginning of a peer's tunnel can try passphrases on it.
            let least = limits::SECRET_BYTES_WEAK;
            return Err(Error::new(
                format!("a secret of a rendezvous has fewer than {least} bytes and can be guessed"),
                "make a strong one with `(umask 077; gateway secret > secret)`, and give it to the peers",
            ));
        }
        Ok(Some(rendezvous::Settings {
            addresses: self.addresses.len(),
            workers: self.workers,
            worker: 0,
            relay_rate: self.relay_rate.map(Rate::bytes),
            peers_max: connections_max.min(limits::RENDEZVOUS_PEERS_MAX),
            exposed: rendezvous::Exposed::default(),
        }))
    }
}

impl Fill for Form {
    fn over(self, other: Self) -> Self {
        Self {
            addr: many(self.addr, other.addr),
            reuse: self.reuse.or(other.reuse),
            workers: self.workers.or(other.workers),
            rendezvous: many(self.rendezvous, other.rendezvous),
            relay_rate: self.relay_rate.or(other.relay_rate),
            expose: many(self.expose, other.expose),
            daemon: self.daemon.over(other.daemon),
            secrets: self.secrets.over(other.secrets),
            retry: self.retry.or(other.retry),
            timeout: self.timeout.or(other.timeout),
            allow: many(self.allow, other.allow),
            deny: many(self.deny, other.deny),
            handshake_timeout: self.handshake_timeout.or(other.handshake_timeout),
            buffer: self.buffer.or(other.buffer),
            log: self.log.over(other.log),
            config: self.config,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{keys, nearest};
    use super::*;
    use crate::log;

    #[test]
    fn every_flag_is_a_key_of_the_file() {
        let keys = keys::<Form>();
        for key in &keys {
            assert_eq!(nearest(&format!("{key}x"), &keys), format!("did you mean `{key}`?"));
        }
        let text = r#"
            addr = "127.0.0.1:9000"
            reuse = true
            workers = "auto"
            rendezvous = "0.0.0.0:4000"
            relay-rate = "20M"
            expose = ["0.0.0.0:7777=game", "udp://0.0.0.0:7000-7010=game:2"]
            engine = "epoll"
            pid-file = "/run/gateway.pid"
            admin = "127.0.0.1:9001"
            drain = "30s"
            secret-file = ["new", "old"]
            secret = "x"
            retry = 2
            timeout = 3
            allow = ["10.0.0.0/8:1024-65535"]
            deny = "10.0.0.1"
            handshake-timeout = "5s"
            idle-timeout = "1h"
            half-closed-timeout = 60
            max-connections = 1000
            buffer = 65536
            log-level = "debug"
            log-format = "json"
        "#;
        let table: toml::Table = text.parse().expect("it is TOML");
        assert_eq!(
            table.keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>(),
            keys.iter().map(String::as_str).collect()
        );
        let form: Form = toml::from_str(text).expect("every key is understood");
        assert_eq!((form.retry, form.timeout), (Some(2), Some(Span(Duration::from_secs(3)))));
        assert_eq!((form.secrets.secret_file.len(), form.log.log_level), (2, Some(log::Level::Debug)));
    }
}
