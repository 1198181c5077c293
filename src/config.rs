//! What the daemon needs, checked. Flags, environment and `gateway.toml` fill the same form, in this order of precedence;
//! [`Config::resolve`] makes typed values of it, or an error that names what is wrong.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::CommandFactory;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroize;

use crate::engine::Choice;
use crate::proto::policy::{Policy, Rule};
use crate::proto::token::{Keyring, Secret};
use crate::{limits, log, supervisor, sys, tcp};

/// The form. A field's name is its flag, its key in the file and, behind `GATEWAY_`, its name in the environment.
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

    /// Data plane: io_uring, its epoll twin, or the best this host allows [default: auto]
    #[arg(long, value_enum, env = "GATEWAY_ENGINE", help_heading = "Processes")]
    pub engine: Option<Choice>,

    /// File with the process ids of all gateways of a directory [default: gateway.pid]
    #[arg(long, value_name = "FILE", env = "GATEWAY_PID_FILE", help_heading = "Processes")]
    pub pid_file: Option<PathBuf>,

    /// Cut games that still run so long after TERM [default: let them end]
    #[arg(long, value_name = "TIME", env = "GATEWAY_DRAIN", help_heading = "Processes")]
    pub drain: Option<Span>,

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

    /// End games without a byte for so long [default: 2h]
    #[arg(long, value_name = "TIME", env = "GATEWAY_IDLE_TIMEOUT", help_heading = "Limits")]
    pub idle_timeout: Option<Span>,

    /// The same when one side has ended its half [default: 5m]
    #[arg(long, value_name = "TIME", env = "GATEWAY_HALF_CLOSED_TIMEOUT", help_heading = "Limits")]
    pub half_closed_timeout: Option<Span>,

    /// Connections of each worker [default: what the limit of open files allows]
    #[arg(long, value_name = "N", env = "GATEWAY_MAX_CONNECTIONS", help_heading = "Limits")]
    pub max_connections: Option<NonZeroUsize>,

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

/// Where secrets come from, in this order: `--secret-file`, `$CREDENTIALS_DIRECTORY/secret`, `GATEWAY_SECRET`, `--secret`.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct SecretForm {
    /// File whose first line is a secret; repeatable: the first encrypts, all decrypt
    #[arg(long, value_name = "FILE", env = "GATEWAY_SECRET_FILE", value_delimiter = ',', help_heading = "Secrets")]
    #[serde(deserialize_with = "one_or_many")]
    pub secret_file: Vec<PathBuf>,

    /// The secret itself; GATEWAY_SECRET does the same. `ps` may show it: prefer a file
    #[arg(long, value_name = "SECRET", help_heading = "Secrets")]
    pub secret: Option<Typed>,

    /// `GATEWAY_SECRET`, taken over by [`SecretForm::take_from_process`].
    #[arg(skip)]
    #[serde(skip)]
    environment: Option<Typed>,
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

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    pub daemon: supervisor::Settings,
    /// What is allowed and unwise, for the log.
    pub warnings: Vec<String>,
}

/// What is wrong with a configuration, and what to do about it.
#[derive(Debug)]
pub struct Error {
    pub message: String,
    pub hint: String,
}

impl Error {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

impl Config {
    /// # Errors
    /// A file that cannot be read or understood, a value out of its range, a missing or empty secret.
    pub fn resolve(typed: &Form) -> Result<Self, Error> {
        let file = typed.config.as_deref().map(Form::read).transpose()?.unwrap_or_default();
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
        let daemon = supervisor::Settings {
            addresses: if form.addr.is_empty() { vec![SocketAddr::from(([0, 0, 0, 0], 0))] } else { form.addr },
            reuse: form.reuse.unwrap_or(false),
            workers: form.workers.unwrap_or(Workers(1)).0,
            engine: form.engine.unwrap_or_default(),
            pid_file: Some(form.pid_file.unwrap_or_else(|| PathBuf::from("gateway.pid"))),
            drain: form.drain.map(|span| span.0),
            log: form.log.settings(),
            keys,
            tcp: tcp::Settings {
                handshake_timeout: span(form.handshake_timeout, limits::HANDSHAKE_TIMEOUT),
                dial_timeout: span(form.timeout, limits::DIAL_TIMEOUT),
                dial_attempts: attempts,
                idle_timeout: span(form.idle_timeout, limits::IDLE_TIMEOUT),
                half_closed_timeout: span(form.half_closed_timeout, limits::HALF_CLOSED_TIMEOUT),
                buffer_bytes,
                connections_max: form.max_connections.map_or(usize::MAX, usize::from),
                policy,
                own_addresses: Vec::new(),
            },
        };
        Ok(Self { daemon, warnings })
    }
}

fn within(name: &str, value: usize, least: usize, most: usize) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::new(format!("`{name}` is {value}"), format!("it must be from {least} to {most}")))
}

impl Form {
    /// Reads a form from a file.
    fn read(path: &Path) -> Result<Self, Error> {
        let shown = path.display();
        let text = fs::read_to_string(path).map_err(|error| {
            Error::new(format!("cannot read {shown}: {error}"), "name a readable file with --config")
        })?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            Error::new(format!("{shown}: {}", error.message()), place(&text, error.span()))
        })?;
        let mut form = Self::default();
        for (key, value) in table {
            let name = key.replace('_', "-");
            if !keys().contains(&name) {
                return Err(Error::new(format!("{shown}: unknown key `{key}`"), nearest(&name)));
            }
            // One key at a time, so that an error can name it.
            let one = toml::Value::Table(toml::Table::from_iter([(name.clone(), value)]));
            let one: Self = one.try_into().map_err(|error: toml::de::Error| {
                Error::new(format!("{shown}: `{key}`: {}", error.message().trim()), example(&name))
            })?;
            form = form.over(one);
        }
        Ok(form)
    }

    /// This form, its gaps filled from `other`.
    fn over(self, other: Self) -> Self {
        let many = |mine: Vec<_>, other: Vec<_>| if mine.is_empty() { other } else { mine };
        Self {
            addr: if self.addr.is_empty() { other.addr } else { self.addr },
            reuse: self.reuse.or(other.reuse),
            workers: self.workers.or(other.workers),
            engine: self.engine.or(other.engine),
            pid_file: self.pid_file.or(other.pid_file),
            drain: self.drain.or(other.drain),
            secrets: self.secrets.over(other.secrets),
            retry: self.retry.or(other.retry),
            timeout: self.timeout.or(other.timeout),
            allow: many(self.allow, other.allow),
            deny: many(self.deny, other.deny),
            handshake_timeout: self.handshake_timeout.or(other.handshake_timeout),
            idle_timeout: self.idle_timeout.or(other.idle_timeout),
            half_closed_timeout: self.half_closed_timeout.or(other.half_closed_timeout),
            max_connections: self.max_connections.or(other.max_connections),
            buffer: self.buffer.or(other.buffer),
            log: LogForm {
                log_level: self.log.log_level.or(other.log.log_level),
                log_format: self.log.log_format.or(other.log.log_format),
            },
            config: self.config,
        }
    }
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
}

impl SecretForm {
    fn over(self, other: Self) -> Self {
        Self {
            secret_file: if self.secret_file.is_empty() { other.secret_file } else { self.secret_file },
            secret: self.secret.or(other.secret),
            environment: self.environment,
        }
    }

    /// A form that names one file.
    #[must_use]
    pub fn of_file(path: PathBuf) -> Self {
        Self { secret_file: vec![path], ..Self::default() }
    }

    /// Takes the secret out of the environment into this form, and wipes it and a typed one from where `ps` and `/proc` would
    /// show them. Only for a process that has one thread yet.
    ///
    /// # Errors
    /// When this process cannot be examined.
    pub fn take_from_process(&mut self) -> std::io::Result<()> {
        let from_environment = std::env::var(ENVIRONMENT).ok().filter(|secret| !secret.is_empty());
        if from_environment.is_some() {
            sys::process::wipe_variable(ENVIRONMENT)?;
            self.environment = from_environment.map(Typed);
        }
        if let Some(Typed(secret)) = &self.secret {
            sys::process::wipe_argument("--secret", secret)?;
        }
        Ok(())
    }

    /// The secrets in force, from this form or from that of the file.
    ///
    /// # Errors
    /// When there is none, or one that cannot be read, is empty, too long or not one line of text.
    pub fn keyring(&self, file: &Self, warnings: &mut Vec<String>) -> Result<Keyring, Error> {
        let secrets = self.secrets(file, warnings)?;
        within("secret-file", secrets.len(), 0, limits::SECRETS_MAX)?;
        if secrets.iter().any(|secret| secret.bytes().len() < limits::SECRET_BYTES_WEAK) {
            let least = limits::SECRET_BYTES_WEAK;
            warnings.push(format!(
                "a secret has fewer than {least} bytes: whoever holds a token can guess it; `gateway secret` makes a strong one"
            ));
        }
        let hint = "make one with `(umask 077; gateway secret > secret)`, then pass --secret-file secret";
        Keyring::new(secrets).map_err(|_none| Error::new("no secret is given", hint))
    }

    /// The first place that has something. Files named by `file` come before the credential, as if they had been typed, but
    /// the environment goes before the file.
    fn secrets(&self, file: &Self, warnings: &mut Vec<String>) -> Result<Vec<Secret>, Error> {
        let mut files = &self.secret_file;
        if files.is_empty() && self.environment.is_none() {
            files = &file.secret_file;
        }
        if !files.is_empty() {
            return files.iter().map(|path| read_secret(path, warnings)).collect();
        }
        if let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") {
            let path = Path::new(&directory).join("secret");
            if path.exists() {
                return Ok(vec![read_secret(&path, warnings)?]);
            }
        }
        if let Some(Typed(secret)) = &self.environment {
            return Ok(vec![check_secret(ENVIRONMENT, secret.clone().into_bytes())?]);
        }
        if let Some(Typed(secret)) = &self.secret {
            warnings.push("--secret can be seen in `ps` until it is wiped; prefer --secret-file".to_owned());
            return Ok(vec![check_secret("--secret", secret.clone().into_bytes())?]);
        }
        file.secret.iter().map(|Typed(secret)| check_secret("`secret`", secret.clone().into_bytes())).collect()
    }
}

const ENVIRONMENT: &str = "GATEWAY_SECRET";

/// The first line of a file, as `openssl -pass file:` reads it.
fn read_secret(path: &Path, warnings: &mut Vec<String>) -> Result<Secret, Error> {
    let shown = path.display();
    let mut bytes = fs::read(path).map_err(|error| {
        Error::new(format!("cannot read the secret file {shown}: {error}"), "name a readable file with --secret-file")
    })?;
    if fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o007 != 0) {
        warnings.push(format!("everybody on this host can use the secret file {shown}: chmod 600 {shown}"));
    }
    let line = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let secret = bytes[..line].to_vec();
    bytes.zeroize();
    check_secret(&format!("the first line of {shown}"), secret)
}

fn check_secret(of: &str, mut bytes: Vec<u8>) -> Result<Secret, Error> {
    let most = limits::SECRET_BYTES_MAX;
    if bytes.len() > most || bytes.contains(&0) {
        bytes.zeroize();
        return Err(Error::new(
            format!("{of} is no secret"),
            format!("a secret has at most {most} bytes and no NUL, as for openssl"),
        ));
    }
    Secret::new(bytes).map_err(|_empty| Error::new(format!("{of} is empty"), "make a secret with `gateway secret`"))
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

from_text_or_number!(Workers, Span);

/// A list, or its only element.
fn one_or_many<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let values = match toml::Value::deserialize(deserializer)? {
        toml::Value::Array(values) => values,
        value => vec![value],
    };
    values.into_iter().map(|value| value.try_into().map_err(|error: toml::de::Error| custom(error.message()))).collect()
}

fn custom<E: serde::de::Error>(message: &str) -> E {
    E::custom(message)
}

/// The keys a file may have: the long names of the flags.
fn keys() -> Vec<String> {
    #[derive(clap::Parser)]
    struct All {
        #[command(flatten)]
        _form: Form,
    }
    let command = All::command();
    let names = command.get_arguments().filter_map(|argument| argument.get_long().map(str::to_owned));
    names.filter(|name| name != "config" && name != "help").collect()
}

/// How a value of `name` may look.
#[must_use]
pub fn example(name: &str) -> String {
    let value = match name {
        "addr" => "0.0.0.0:9000",
        "allow" | "deny" => "10.0.0.0/8:1024-65535",
        "workers" => "auto",
        "drain" | "timeout" | "idle-timeout" | "handshake-timeout" | "half-closed-timeout" => "30s",
        "buffer" => "16384",
        "max-connections" => "10000",
        "retry" => "2",
        "reuse" => "true",
        _ => return "see `gateway run --help`".to_owned(),
    };
    format!("for example {value}")
}

/// The known key that looks most like `name`.
fn nearest(name: &str) -> String {
    let keys = keys();
    let likeness = |key: &String| (strsim::jaro_winkler(key, name) * 1000.0) as u32;
    match keys.iter().max_by_key(|key| likeness(key)).filter(|key| likeness(key) > 700) {
        Some(key) => format!("did you mean `{key}`?"),
        None => format!("known keys: {}", keys.join(", ")),
    }
}

fn place(text: &str, span: Option<std::ops::Range<usize>>) -> String {
    let line = span.map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    format!("look at line {line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_number_is_seconds() {
        for (text, milliseconds) in [("3", 3_000), ("300ms", 300), ("2h", 7_200_000), ("1m 30s", 90_000)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(milliseconds))));
        }
        for text in ["", "0", "-1", "soon", "0ms", "999999999999"] {
            assert!(text.parse::<Span>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_flag_is_a_key_of_the_file() {
        for key in keys() {
            assert_eq!(nearest(&format!("{key}x")), format!("did you mean `{key}`?"));
        }
        let text = r#"
            addr = "127.0.0.1:9000"
            reuse = true
            workers = "auto"
            engine = "epoll"
            pid-file = "/run/gateway.pid"
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
            keys().iter().map(String::as_str).collect()
        );
        let form: Form = toml::from_str(text).expect("every key is understood");
        assert_eq!((form.retry, form.timeout), (Some(2), Some(Span(Duration::from_secs(3)))));
        assert_eq!((form.secrets.secret_file.len(), form.log.log_level), (2, Some(log::Level::Debug)));
    }
}
