//! What `gateway run` needs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::values::one_or_many;
use super::{DaemonForm, Error, Fill, LogForm, SecretForm, Span, Workers, many, read, within};
use crate::proto::policy::{Policy, Rule};
use crate::supervisor::{self, Door};
use crate::{limits, tcp, worker};

/// What may be said to `gateway run`.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Form {
    /// Address to listen on; repeat it for more [default: 0.0.0.0:0, a free port]
    #[arg(long, value_name = "IP:PORT", env = "GATEWAY_ADDR", value_delimiter = ',', help_heading = "Listening")]
    #[serde(deserialize_with = "one_or_many")]
    pub addr: Vec<SocketAddr>,

    /// Share the port with other gateways of the same user [default: false]
    #[arg(long, env = "GATEWAY_REUSE", num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Listening")]
    pub reuse: Option<bool>,

    /// Worker processes, or `auto` for one per core [default: 1]
    #[arg(long, value_name = "N|auto", env = "GATEWAY_WORKERS", help_heading = "Processes")]
    pub workers: Option<Workers>,

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

    /// Backends that lines may lead to, and no others; repeatable [default: all]
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
        let addresses = many(form.addr, vec![SocketAddr::from(([0, 0, 0, 0], 0))]);
        let daemon = supervisor::Settings {
            doors: addresses.into_iter().map(Door::Tcp).collect(),
            reuse: form.reuse.unwrap_or(false),
            workers: form.workers.unwrap_or(Workers(1)).0,
            engine: form.daemon.engine.unwrap_or_default(),
            pid_file: Some(form.daemon.pid_file()),
            admin: form.daemon.admin.clone(),
            drain: form.daemon.drain.map(|span| span.0),
            log: form.log.settings(),
            keys,
            worker: worker::Settings::Gateway(tcp::Settings {
                handshake_timeout: span(form.handshake_timeout, limits::HANDSHAKE_TIMEOUT),
                dial_timeout: span(form.timeout, limits::DIAL_TIMEOUT),
                dial_attempts: attempts,
                idle_timeout: span(form.daemon.idle_timeout, limits::IDLE_TIMEOUT),
                half_closed_timeout: span(form.daemon.half_closed_timeout, limits::HALF_CLOSED_TIMEOUT),
                buffer_bytes,
                connections_max: form.daemon.max_connections.map_or(usize::MAX, usize::from),
                policy,
                own_addresses: Vec::new(),
            }),
        };
        Ok(Self { daemon, warnings })
    }
}

impl Fill for Form {
    fn over(self, other: Self) -> Self {
        Self {
            addr: many(self.addr, other.addr),
            reuse: self.reuse.or(other.reuse),
            workers: self.workers.or(other.workers),
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
