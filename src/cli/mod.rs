//! What was typed: one file a verb. Results go to stdout; an error is one line on stderr that says what, where and why, and a
//! hint that says what to do.

mod check;
mod crypt;
mod demo;
mod failure;
mod netcheck;
mod provide;
mod run;
mod secret;
mod status;
mod visit;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Form, ProvideForm, VisitForm};
use crate::worker;
use failure::Failure;

/// One port in front of all your game servers: a client sends one encrypted line that names a backend, gets 200, and plays.
#[derive(Parser)]
#[command(name = "gateway", version, args_conflicts_with_subcommands = true, max_term_width = 120)]
#[command(after_help = "Try it: `gateway demo` needs no set-up. Without a verb, `gateway` runs the daemon.")]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    run: Form,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the gateway (the default)
    Run(Form),
    /// Publish local services to visitors, through encrypted tunnels over UDP
    Provide(ProvideForm),
    /// Bring a provider's services here: players connect to this host
    Visit(VisitForm),
    /// Tell what this network is like for tunnels between homes, and with whom they will be direct
    Netcheck(netcheck::Netcheck),
    /// Make a token that leads to a backend
    Encrypt(crypt::Encrypt),
    /// Read where a token leads
    Decrypt(crypt::Decrypt),
    /// Make a strong new secret
    Secret,
    /// Show how a running daemon is doing: each peer's path, and why it is no better
    Status(status::Show),
    /// Check a configuration and show it; opens nothing
    Check(Form),
    /// Show everything on loopback: a line, its answer, an echo, live figures
    Demo(demo::Demo),
    /// What the supervisor starts
    #[command(hide = true)]
    Worker,
}

/// Prints a line of results. A full disk or a reader who has gone is an error, not a panic.
fn print(line: impl std::fmt::Display) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            let _ = error.print(); // --help and --version
            return ExitCode::SUCCESS;
        }
        Err(error) => return Failure::from(error).report(),
    };
    let done = match cli.verb {
        None => run::run(cli.run),
        Some(Verb::Run(form)) => run::run(form),
        Some(Verb::Provide(form)) => provide::run(form),
        Some(Verb::Visit(form)) => visit::run(form),
        Some(Verb::Netcheck(typed)) => typed.run(),
        Some(Verb::Encrypt(typed)) => typed.run(),
        Some(Verb::Decrypt(typed)) => typed.run(),
        Some(Verb::Secret) => secret::run(),
        Some(Verb::Status(typed)) => typed.run(),
        Some(Verb::Check(form)) => check::run(form),
        Some(Verb::Demo(typed)) => typed.run(),
        Some(Verb::Worker) => return worker::main(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
