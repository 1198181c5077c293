//! `gateway netcheck`: what this network is like for tunnels between homes, as a rendezvous sees it. Needs no daemon here.

mod filtering;
mod lending;
mod link;
mod survey;
mod surveyor;
mod verdict;

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::failure::{Code, Failure};
use crate::config::SecretForm;
use crate::limits;
use crate::names::{Names, alternate};
use crate::proto::punch::{Class, Kind};
use crate::proto::target::Target;
use crate::proto::tunnel::Key;
use survey::{Delays, Survey, Unmet, Wish};
use verdict::{class_word, delays, filtering, filtering_word, hairpin, ipv6, mapping, spread_ms, verdict};

#[derive(clap::Args)]
pub(super) struct Netcheck {
    /// The rendezvous that is asked
    #[arg(long, value_name = "HOST:PORT", env = "GATEWAY_VIA")]
    via: Target,

    #[command(flatten)]
    secrets: SecretForm,

    /// Local UDP port to look at, such as one that the router forwards to this host [default: a free one]
    #[arg(long, value_name = "PORT", env = "GATEWAY_UDP_PORT")]
    udp_port: Option<u16>,

    /// Do not ask the router for a port (PCP, NAT-PMP, UPnP)
    #[arg(long, env = "GATEWAY_NO_PORT_MAPPING", num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = clap::builder::BoolishValueParser::new())]
    no_port_mapping: Option<bool>,

    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

impl Netcheck {
    pub(super) fn run(mut self) -> Result<(), Failure> {
        self.secrets.take_from_process()?;
        let mut warnings = Vec::new();
        let keys = self.secrets.keyring(&SecretForm::default(), &mut warnings)?;
        warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
        let secrets = keys.into_secrets();
        let key = Arc::new(Key::from_secret(secrets[0].bytes()));
        let addresses = addresses(&self.via)?;
        let wish = Wish { port: self.udp_port.unwrap_or(0), asks_router: !self.no_port_mapping.unwrap_or(false) };
        let survey = Survey::take(&addresses, wish, &key).map_err(|unmet| self.failure(unmet))?;
        if self.json { super::print(as_json(&survey)) } else { print(&survey) }
    }

    fn failure(&self, unmet: Unmet) -> Failure {
        let via = &self.via;
        match unmet {
            Unmet::Unreachable(why) => {
                let why = why.map_or_else(|| "nobody answers there".to_owned(), |why| why.to_string());
                let hint = "is it running, as `gateway run --rendezvous`, and is its port open for TCP, and that and the next for UDP?";
                Failure::new(Code::RunTime, format!("rendezvous {via} unreachable: {why}"), hint)
            }
            Unmet::Silent => Failure::new(
                Code::RunTime,
                format!("rendezvous {via} takes the connection and says nothing"),
                "it answers only those who know its secret: compare yours with that of the rendezvous",
            ),
            Unmet::Host(error) if error.kind() == std::io::ErrorKind::AddrInUse => Failure::new(
                Code::CannotBind,
                format!("cannot use UDP port {}: {error}", self.udp_port.unwrap_or(0)),
                "something on this host has it; name another with --udp-port, or end that for a while",
            ),
            Unmet::Host(error) => error.into(),
        }
    }
}

fn addresses(host: &Target) -> Result<Vec<SocketAddr>, Failure> {
    let (host, port) = match host {
        Target::Address(address) => return Ok(vec![*address]),
        Target::Name { host, port } => (host, *port),
        Target::Provider(_) => {
            let (message, hint) = (format!("`via` is {host}"), "it must be HOST:PORT");
            return Err(Failure::new(Code::Configuration, message, hint));
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(async {
        let (names, mut answers) = Names::new();
        names.ask((), host, limits::REACH_TIMEOUT);
        tokio::time::timeout(limits::REACH_TIMEOUT, answers.recv()).await
    });
    let found = found.ok().flatten().map(|found| found.addresses).unwrap_or_default();
    if found.is_empty() {
        let hint = "is the name right, and does this host have a way to its name server?";
        return Err(Failure::new(Code::RunTime, format!("the name {host} has no address"), hint));
    }
    Ok(alternate(found).map(|ip| SocketAddr::new(ip, port)).collect())
}

fn print(survey: &Survey) -> Result<(), Failure> {
    let verdict = verdict(survey.class, survey.filtering, has_ipv6(survey), &survey.lending);
    let advice = if verdict.advice.is_empty() { "nothing" } else { verdict.advice };
    let rows = [
        ("rendezvous", survey.rendezvous.to_string()),
        ("UDP", delays(survey.udp.as_ref(), None)),
        ("TCP", delays(survey.tcp.as_ref(), survey.tcp_fault)),
        ("seen as", seen_as(survey)),
        ("mapping", mapping(survey)),
        ("filtering", filtering(survey).to_owned()),
        ("router port", survey.lending.words()),
        ("hairpin", hairpin(survey).to_owned()),
        ("IPv6", ipv6(survey)),
        ("verdict", verdict.direct.to_owned()),
        ("to do", advice.to_owned()),
    ];
    rows.into_iter().try_for_each(|(name, said)| super::print(format_args!("{name:<11} {said}")))
}

fn seen_as(survey: &Survey) -> String {
    let udp = survey.profile.of_kind(Kind::Reflexive).map(|address| format!("{address} (UDP)"));
    let tcp = survey.seen_by_tcp.map(|address| format!("{address} (TCP)"));
    let seen = udp.chain(tcp).collect::<Vec<_>>();
    if seen.is_empty() { "unknown".to_owned() } else { seen.join(", ") }
}

fn has_ipv6(survey: &Survey) -> bool {
    survey.profile.of_kind(Kind::Reflexive).any(|address| address.is_ipv6())
}

fn as_json(survey: &Survey) -> Value {
    let verdict = verdict(survey.class, survey.filtering, has_ipv6(survey), &survey.lending);
    let step = if let Some(Class::Steps(step)) = survey.class { Some(step) } else { None };
    json!({
        "rendezvous": survey.rendezvous,
        "udp": protocol(survey.udp.as_ref(), &survey.profile.of_kind(Kind::Reflexive).collect::<Vec<_>>()),
        "tcp": protocol(survey.tcp.as_ref(), survey.seen_by_tcp.as_slice()),
        "mapping": class_word(survey.class),
        "step": step,
        "keeps_ports": survey.profile.keeps_ports(),
        "filtering": filtering_word(survey.filtering),
        "port_mapping": survey.lending.as_json(),
        "hairpin": survey.hairpin,
        "ipv6": { "address": survey.ipv6, "works": has_ipv6(survey) },
        "verdict": verdict.direct,
        "advice": verdict.advice,
    })
}

fn protocol(delays: Option<&Delays>, seen_as: &[SocketAddr]) -> Value {
    let spread = delays.and_then(|delays| spread_ms(&delays.rtts));
    let rtt = spread.map(|[least, median, most]| json!({ "least": least, "median": median, "most": most }));
    let loss = delays.filter(|delays| delays.sent > 0);
    let loss = loss.map(|delays| 1.0 - delays.rtts.len() as f64 / f64::from(delays.sent));
    json!({ "works": delays.is_some(), "seen_as": seen_as, "rtt_ms": rtt, "loss": loss })
}
