//! Values as they are typed, and the parts that several forms have.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroize;

use crate::engine::Choice;
use crate::supervisor::Admin;
use crate::{limits, log, sys};

/// What all daemons have.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct DaemonForm {
    /// Data plane: io_uring, its epoll twin, or the best this host allows [default: auto]
    #[arg(long, value_enum, env = "GATEWAY_ENGINE", help_heading = "Processes")]
    pub engine: Option<Choice>,

    /// File with the process ids of all gateways of a directory [default: gateway.pid]
    #[arg(long, value_name = "FILE", env = "GATEWAY_PID_FILE", help_heading = "Processes")]
    pub pid_file: Option<PathBuf>,

    /// Where `gateway status` and `GET /status` are answered, to everybody who reaches it [default: nowhere, or beside the pid
    /// file for provide and visit]
    #[arg(long, value_name = "IP:PORT|unix:PATH", env = "GATEWAY_ADMIN", help_heading = "Processes")]
    pub admin: Option<Admin>,

    /// Cut games that still run so long after TERM [default: let them end]
    #[arg(long, value_name = "TIME", env = "GATEWAY_DRAIN", help_heading = "Processes")]
    pub drain: Option<Span>,

    /// End games without a byte for so long [default: 2h]
    #[arg(long, value_name = "TIME", env = "GATEWAY_IDLE_TIMEOUT", help_heading = "Limits")]
    pub idle_timeout: Option<Span>,

    /// The same when one side has ended its half [default: 5m]
    #[arg(long, value_name = "TIME", env = "GATEWAY_HALF_CLOSED_TIMEOUT", help_heading = "Limits")]
    pub half_closed_timeout: Option<Span>,

    /// Connections of each worker [default: what the limit of open files allows]
    #[arg(long, value_name = "N", env = "GATEWAY_MAX_CONNECTIONS", help_heading = "Limits")]
    pub max_connections: Option<NonZeroUsize>,
}

impl DaemonForm {
    pub(super) fn pid_file(&self) -> PathBuf {
        self.pid_file.clone().unwrap_or_else(|| PathBuf::from("gateway.pid"))
    }

    pub(super) fn over(self, other: Self) -> Self {
        Self {
            engine: self.engine.or(other.engine),
            pid_file: self.pid_file.or(other.pid_file),
            admin: self.admin.or(other.admin),
            drain: self.drain.or(other.drain),
            idle_timeout: self.idle_timeout.or(other.idle_timeout),
            half_closed_timeout: self.half_closed_timeout.or(other.half_closed_timeout),
            max_connections: self.max_connections.or(other.max_connections),
        }
    }
}

#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct LogForm {
    /// How much to log [default: info]
    #[arg(long, value_enum, env = "GATEWAY_LOG_LEVEL", help_heading = "Logs")]
    pub log_level: Option<log::Level>,

    /// Logs for people or for programs [default: text]
    #[arg(long, value_enum, env = "GATEWAY_LOG_FORMAT", help_heading = "Logs")]
    pub log_format: Option<log::Format>,
}

impl LogForm {
    #[must_use]
    pub fn settings(&self) -> log::Settings {
        log::Settings {
            level: self.log_level.unwrap_or_default(),
            format: self.log_format.unwrap_or_default(),
            colour: log::colour_wanted(),
        }
    }

    pub(super) fn over(self, other: Self) -> Self {
        Self { log_level: self.log_level.or(other.log_level), log_format: self.log_format.or(other.log_format) }
    }
}

/// A secret as typed; wiped when dropped, and never shown.
#[derive(Clone)]
pub struct Typed(pub String);

impl<'de> Deserialize<'de> for Typed {
    /// Says what is wrong without saying the value.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer) {
            Ok(toml::Value::String(secret)) => Ok(Self(secret)),
            _ => Err(serde::de::Error::custom("`secret` must be text in quotes")),
        }
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl FromStr for Typed {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Debug for Typed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Typed(..)")
    }
}

/// Number of workers; `auto` is one for each processor this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workers(pub usize);

impl FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let most = limits::WORKERS_MAX;
        let workers = if text == "auto" { Some(sys::process::processors().min(most)) } else { text.parse().ok() };
        let workers = workers.filter(|workers| (1..=most).contains(workers));
        workers.map(Self).ok_or_else(|| format!("expected `auto` or a number from 1 to {most}"))
    }
}

/// A time: `300ms`, `3s`, `2h`; a plain number is seconds, as for the ancestor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

/// The longest time that may be asked for; longer ones are slips of the finger.
const SPAN_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span = match text.parse() {
            Ok(seconds) => Ok(Duration::from_secs(seconds)),
            Err(_no_plain_number) => humantime::parse_duration(text),
        };
        let span = span.ok().filter(|span| *span >= Duration::from_millis(1) && *span <= SPAN_MAX);
        span.map(Self).ok_or_else(|| "expected a time from 1ms to 366d, like 300ms, 3s or 2h".to_owned())
    }
}

/// A rate in bits a second: `20M`, `500k`, `1G`, or a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(u64);

/// Less would not carry acknowledgements, and more no machine does.
const RATE_BITS: std::ops::RangeInclusive<u64> = 64_000..=1_000_000_000_000;

impl Rate {
    /// Bytes a second.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0 / 8
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = match text.bytes().last().map(|last| last.to_ascii_lowercase()) {
            Some(b'k') => (&text[..text.len() - 1], 1_000),
            Some(b'm') => (&text[..text.len() - 1], 1_000_000),
            Some(b'g') => (&text[..text.len() - 1], 1_000_000_000),
            _ => (text, 1),
        };
        let bits = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        let bits = bits.filter(|bits| RATE_BITS.contains(bits));
        bits.map(Self).ok_or_else(|| "expected bits a second from 64k to 1000G, like 500k, 20M or 1G".to_owned())
    }
}

/// Values that a file may give as text or as a number.
macro_rules! from_text_or_number {
    ($($type:ty),*) => {$(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(untagged, expecting = "expected text or a number")]
                enum Either { Number(u64), Text(String) }
                let text = match Either::deserialize(deserializer)? {
                    Either::Number(number) => number.to_string(),
                    Either::Text(text) => text,
                };
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

from_text_or_number!(Workers, Span, Rate);

/// A list, or its only element.
pub(super) fn one_or_many<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let values = match toml::Value::deserialize(deserializer)? {
        toml::Value::Array(values) => values,
        value => vec![value],
    };
    values.into_iter().map(|value| value.try_into().map_err(|error: toml::de::Error| custom(error.message()))).collect()
}

fn custom<E: serde::de::Error>(message: &str) -> E {
    E::custom(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_a_unit_or_none() {
        for (text, bits) in [("64000", 64_000), ("500k", 500_000), ("20M", 20_000_000), ("1g", 1_000_000_000)] {
            assert_eq!(text.parse(), Ok(Rate(bits)));
        }
        for text in ["", "M", "0", "63k", "1.5M", "-1M", "2000G", "20Mb", "99999999999999999999"] {
            assert!(text.parse::<Rate>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_plain_number_is_seconds() {
        for (text, milliseconds) in [("3", 3_000), ("300ms", 300), ("2h", 7_200_000), ("1m 30s", 90_000)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(milliseconds))));
        }
        for text in ["", "0", "-1", "soon", "0ms", "999999999999"] {
            assert!(text.parse::<Span>().is_err(), "{text:?}");
        }
    }
}
