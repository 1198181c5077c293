//! What a daemon needs, checked. Flags, environment and `gateway.toml` fill the same form, in this order of precedence;
//! [`Config::resolve`] and its like make typed values of it, or an error that names what is wrong.

mod expose;
mod kcptun;
mod run;
mod secrets;
mod tunnel;
mod values;
mod via;

use std::fs;
use std::path::Path;

use clap::Args;
use serde::de::DeserializeOwned;

use crate::proto::target::Target;
pub use kcptun::KcptunForm;
pub use run::{Config, Form};
pub use secrets::SecretForm;
pub use tunnel::{ProvideForm, ProvideTable, TunnelForm, VisitForm, VisitTable};
pub use values::{DaemonForm, LogForm, Rate, Span, Typed, Workers};
pub use via::ViaForm;

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

fn within(name: &str, value: usize, least: usize, most: usize) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::new(format!("`{name}` is {value}"), format!("it must be from {least} to {most}")))
}

/// Ends of tunnels are hosts: what stands in a line may be more.
fn host(name: &str, target: Target) -> Result<Target, Error> {
    match target {
        Target::Address(_) | Target::Name { .. } => Ok(target),
        Target::Provider(_) => Err(Error::new(format!("`{name}` is {target}"), "it must be HOST:PORT")),
    }
}

/// A form. A field's name is its flag, its key in the file and, behind `GATEWAY_`, its name in the environment.
trait Fill: Args + DeserializeOwned + Default {
    /// The key of a list of tables that only the file has.
    const TABLES: Option<&str> = None;

    /// This form, its gaps filled from `other`.
    fn over(self, other: Self) -> Self;
}

/// Reads a form from a file. Without one it is empty.
fn read<F: Fill>(path: Option<&Path>) -> Result<F, Error> {
    let mut form = F::default();
    let Some(path) = path else { return Ok(form) };
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| Error::new(format!("cannot read {shown}: {error}"), "name a readable file with --config"))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        Error::new(format!("{shown}: {}", error.message()), place(&text, error.span()))
    })?;
    let keys = keys::<F>();
    for (key, value) in table {
        let name = key.replace('_', "-");
        if !keys.contains(&name) {
            return Err(Error::new(format!("{shown}: unknown key `{key}`"), nearest(&name, &keys)));
        }
        // One key at a time, so that an error can name it.
        let one = toml::Value::Table(toml::Table::from_iter([(name.clone(), value)]));
        let one: F = one.try_into().map_err(|error: toml::de::Error| {
            Error::new(format!("{shown}: `{key}`: {}", error.message().trim()), example(&name))
        })?;
        form = form.over(one);
    }
    Ok(form)
}

/// The first that has something.
fn many<T>(mine: Vec<T>, other: Vec<T>) -> Vec<T> {
    if mine.is_empty() { other } else { mine }
}

/// The keys a file may have: the long names of the flags, what has no flag by its place, and tables.
fn keys<F: Fill>() -> Vec<String> {
    let command = F::augment_args(clap::Command::new("form"));
    let names = command.get_arguments().map(|argument| argument.get_long().unwrap_or(argument.get_id().as_str()));
    let names = names.filter(|name| *name != "config" && *name != "help");
    names.chain(F::TABLES).map(str::to_owned).collect()
}

/// How a value of `name` may look.
#[must_use]
pub fn example(name: &str) -> String {
    let value = match name {
        "addr" => "0.0.0.0:9000",
        "tcp" | "udp" => "127.0.0.1:7777",
        "listen-udp" => "0.0.0.0:29900",
        "kcptun" => "0.0.0.0:29900",
        "admin" => "127.0.0.1:9001, or unix:gateway.sock",
        "peer" | "kcptun-peer" => "game.example.com:29900",
        "via" => "meet.example.com:4000",
        "path" => "relay",
        "udp-port" => "29900",
        "crypt" => "aes",
        "smuxver" => "2",
        "sndwnd" | "rcvwnd" => "1024",
        "datashard" => "10",
        "parityshard" => "3",
        "mtu" => "1350",
        "rate" | "relay-rate" => "20M",
        "rendezvous" => "0.0.0.0:4000",
        "mode" => "game",
        "allow" | "deny" => "10.0.0.0/8:1024-65535",
        "workers" => "auto",
        "drain" | "timeout" | "idle-timeout" | "handshake-timeout" | "half-closed-timeout" => "30s",
        "buffer" => "16384",
        "max-connections" => "10000",
        "retry" => "2",
        "reuse" => "true",
        _ => return "see `gateway VERB --help`".to_owned(),
    };
    format!("for example {value}")
}

/// The known key that looks most like `name`.
fn nearest(name: &str, keys: &[String]) -> String {
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
