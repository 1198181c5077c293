//! Logs: to stderr, for people or as JSON. Only our own events: those of libraries may show what must not be shown.
//!
//! A thread of its own writes them: a reader of stderr who has stopped must not stop a game. What it cannot take is dropped.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub level: Level,
    pub format: Format,
    pub colour: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// Whether colour suits the reader of stderr: a terminal, and nobody has set `NO_COLOR` (no-color.org).
#[must_use]
pub fn colour_wanted() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Lines that wait for a slow reader of stderr; further ones are dropped.
const LINES_MAX: usize = 4096;

/// Writes what is left when it is dropped.
#[derive(Debug)]
pub struct Logs {
    _writer: WorkerGuard,
}

/// Starts logging. Once per process; later calls change nothing.
#[must_use]
pub fn start(settings: Settings) -> Logs {
    let level = match settings.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let (writer, guard) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).finish(std::io::stderr());
    let registry = tracing_subscriber::registry().with(Targets::new().with_target("gateway", level));
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(settings.colour);
    let _ = match settings.format {
        Format::Text => registry.with(layer).try_init(),
        Format::Json => registry.with(layer.json().with_ansi(false)).try_init(),
    };
    Logs { _writer: guard }
}
