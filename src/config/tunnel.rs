//! What `gateway provide` and `gateway visit` need. One service is told by flags; several stand in the file, one table each.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::kcptun::KcptunForm;
use super::values::{Rate, one_or_many};
use super::{Config, DaemonForm, Error, Fill, LogForm, SecretForm, Span, ViaForm, host, many, read, within};
use crate::proto::target::Target;
use crate::proto::tunnel::ServiceName;
use crate::supervisor::{self, Admin, Door};
use crate::udp::{self, Mode, Protocol, Provided, Role, Visited};
use crate::{limits, worker};

/// Where a provider listens unless it is told: the port that kcptun servers have.
const LISTEN_UDP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 29_900);

/// What may be said to `gateway provide`.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ProvideForm {
    /// Name of the service; visitors ask for it
    #[arg(value_name = "NAME", env = "GATEWAY_NAME")]
    pub name: Option<ServiceName>,

    /// The service's TCP port; repeat it for more: visitors count them from the first
    #[arg(long, value_name = "IP:PORT", env = "GATEWAY_TCP", value_delimiter = ',', help_heading = "Service")]
    #[serde(deserialize_with = "one_or_many")]
    pub tcp: Vec<SocketAddr>,

    /// The service's UDP port; repeat it for more
    #[arg(long, value_name = "IP:PORT", env = "GATEWAY_UDP", value_delimiter = ',', help_heading = "Service")]
    #[serde(deserialize_with = "one_or_many")]
    pub udp: Vec<SocketAddr>,

    /// Tell the service the players' addresses, by PROXY protocol version 2 [default: false]
    #[arg(long, env = "GATEWAY_PROXY_PROTOCOL", num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Service")]
    pub proxy_protocol: Option<bool>,

    /// Address for visitors' tunnels; repeat it for more [default: 0.0.0.0:29900]
    #[arg(long, value_name = "IP:PORT", env = "GATEWAY_LISTEN_UDP", value_delimiter = ',', help_heading = "Tunnel")]
    #[serde(deserialize_with = "one_or_many")]
    pub listen_udp: Vec<SocketAddr>,

    /// Listen there for clients of kcptun, and for nothing else
    #[arg(long, value_name = "IP:PORT", env = "GATEWAY_KCPTUN", help_heading = "kcptun")]
    pub kcptun: Option<SocketAddr>,

    #[command(flatten)]
    #[serde(flatten)]
    pub tunnel: TunnelForm,

    /// Services of the file, which a name on the command line replaces.
    #[arg(skip)]
    pub provide: Vec<ProvideTable>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct ProvideTable {
    pub name: Option<ServiceName>,
    #[serde(deserialize_with = "one_or_many")]
    pub tcp: Vec<SocketAddr>,
    #[serde(deserialize_with = "one_or_many")]
    pub udp: Vec<SocketAddr>,
    /// That of the file or the command line, when it is missing here.
    pub proxy_protocol: Option<bool>,
}

/// What may be said to `gateway visit`.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct VisitForm {
    /// Name of the service, as its provider has it
    #[arg(value_name = "NAME", env = "GATEWAY_NAME")]
    pub name: Option<ServiceName>,

    /// Address for players' TCP, which leads to the service's first TCP port; repeat it for the others
    #[arg(long, value_name = "IP:PORT", env = "GATEWAY_TCP", value_delimiter = ',', help_heading = "Service")]
    #[serde(deserialize_with = "one_or_many")]
    pub tcp: Vec<SocketAddr>,

    /// The same for UDP
    #[arg(long, value_name = "IP:PORT", env = "GATEWAY_UDP", value_delimiter = ',', help_heading = "Service")]
    #[serde(deserialize_with = "one_or_many")]
    pub udp: Vec<SocketAddr>,

    /// Where the provider listens: an address, or a name that is looked up again when the tunnel is lost
    #[arg(long, value_name = "HOST:PORT", env = "GATEWAY_PEER", help_heading = "Tunnel")]
    pub peer: Option<Target>,

    /// Reach a server of kcptun instead
    #[arg(long, value_name = "HOST:PORT", env = "GATEWAY_KCPTUN_PEER", help_heading = "kcptun")]
    pub kcptun_peer: Option<Target>,

    #[command(flatten)]
    #[serde(flatten)]
    pub tunnel: TunnelForm,

    /// Services of the file, which a name on the command line replaces.
    #[arg(skip)]
    pub visit: Vec<VisitTable>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct VisitTable {
    pub name: Option<ServiceName>,
    #[serde(deserialize_with = "one_or_many")]
    pub tcp: Vec<SocketAddr>,
    #[serde(deserialize_with = "one_or_many")]
    pub udp: Vec<SocketAddr>,
    /// That of the file or the command line, when it is missing here.
    pub peer: Option<Target>,
}

/// What both ends have.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct TunnelForm {
    /// How much bandwidth goes into speed, of what this end sends [default: game]
    #[arg(long, value_enum, env = "GATEWAY_MODE", help_heading = "Tunnel")]
    pub mode: Option<Mode>,

    /// Bits a second of bulk that this end may send, such as 20M [default: what the path bears]
    #[arg(long, value_name = "BITS", env = "GATEWAY_RATE", help_heading = "Tunnel")]
    pub rate: Option<Rate>,

    #[command(flatten)]
    #[serde(flatten)]
    pub via: ViaForm,

    #[command(flatten)]
    #[serde(flatten)]
    pub kcptun: KcptunForm,

    #[command(flatten)]
    #[serde(flatten)]
    pub daemon: DaemonForm,

    #[command(flatten)]
    #[serde(flatten)]
    pub secrets: SecretForm,

    #[command(flatten)]
    #[serde(flatten)]
    pub log: LogForm,

    /// Read settings from a TOML file; keys are the names of these flags
    #[arg(long, value_name = "FILE", env = "GATEWAY_CONFIG", help_heading = "Configuration")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

impl ProvideForm {
    /// # Errors
    /// As [`Config::resolve`]; no service, or one without a port.
    pub fn resolve(&self) -> Result<Config, Error> {
        let file: Self = read(self.tunnel.config.as_deref())?;
        let typed = file.tunnel.clone();
        let form = self.clone().over(file);
        let flags = ProvideTable { name: form.name, tcp: form.tcp, udp: form.udp, proxy_protocol: form.proxy_protocol };
        let tables = with_flags(
            flags,
            |flags| flags.name.is_none() && flags.tcp.is_empty() && flags.udp.is_empty(),
            form.provide,
        );
        let services =
            tables.into_iter().map(|table| table.resolve(form.proxy_protocol)).collect::<Result<Vec<_>, _>>()?;
        check(
            services.iter().map(|of| (of.name, of.tcp.len(), of.udp.len())),
            "gateway provide NAME --tcp 127.0.0.1:7777",
        )?;
        let ways = [
            ("kcptun", form.kcptun.is_some()),
            ("listen-udp", !form.listen_udp.is_empty()),
            ("via", form.tunnel.via.via.is_some()),
        ];
        one_of(&ways)?;
        let doors = match form.kcptun {
            Some(kcptun) => vec![kcptun],
            None if form.tunnel.via.via.is_some() => Vec::new(),
            None => many(form.listen_udp, vec![LISTEN_UDP]),
        };
        let doors = doors.into_iter().map(Door::Udp).collect();
        form.tunnel.resolve(&typed, doors, Role::Provide(services), form.kcptun.is_some())
    }
}

impl ProvideTable {
    fn resolve(self, proxy_protocol: Option<bool>) -> Result<Provided, Error> {
        let name = self.name.ok_or_else(nameless)?;
        let proxy_header = self.proxy_protocol.or(proxy_protocol).unwrap_or(false);
        Ok(Provided { name, tcp: self.tcp, udp: self.udp, proxy_header })
    }
}

impl VisitForm {
    /// # Errors
    /// As [`Config::resolve`]; no service, one without a port, or one without a peer.
    pub fn resolve(&self) -> Result<Config, Error> {
        let file: Self = read(self.tunnel.config.as_deref())?;
        let typed = file.tunnel.clone();
        let form = self.clone().over(file);
        let flags = VisitTable { name: form.name, tcp: form.tcp, udp: form.udp, peer: form.peer.clone() };
        let tables =
            with_flags(flags, |flags| flags.name.is_none() && flags.tcp.is_empty() && flags.udp.is_empty(), form.visit);
        let ways = [
            ("kcptun-peer", form.kcptun_peer.is_some()),
            ("peer", form.peer.is_some() || tables.iter().any(|table| table.peer.is_some())),
            ("via", form.tunnel.via.via.is_some()),
        ];
        one_of(&ways)?;
        let peer = form.kcptun_peer.as_ref().or(form.peer.as_ref());
        let has_via = form.tunnel.via.via.is_some();
        let services = tables.iter().map(|table| table.resolve(peer, has_via)).collect::<Result<Vec<_>, _>>()?;
        check(
            services.iter().map(|of| (of.name, of.tcp, of.udp)),
            "gateway visit NAME --tcp 127.0.0.1:9998 --peer HOST:29900",
        )?;
        let doors =
            |table: VisitTable| table.tcp.into_iter().map(Door::Tcp).chain(table.udp.into_iter().map(Door::Udp));
        let doors = tables.into_iter().flat_map(doors).collect();
        form.tunnel.resolve(&typed, doors, Role::Visit(services), form.kcptun_peer.is_some())
    }
}

impl VisitTable {
    fn resolve(&self, peer: Option<&Target>, has_via: bool) -> Result<Visited, Error> {
        let name = self.name.ok_or_else(nameless)?;
        let peer = self.peer.as_ref().or(peer).cloned().map(|peer| host("peer", peer)).transpose()?;
        if peer.is_none() && !has_via {
            let hint = "say where the provider is, with --peer HOST:29900, or where to meet it, with --via HOST:4000";
            return Err(Error::new(format!("no peer is named for {name}"), hint));
        }
        Ok(Visited { name, peer, tcp: self.tcp.len(), udp: self.udp.len() })
    }
}

impl TunnelForm {
    /// Takes what is secret out of this process' arguments and environment, as [`SecretForm::take_from_process`].
    ///
    /// # Errors
    /// When this process cannot be examined.
    pub fn take_from_process(&mut self) -> std::io::Result<()> {
        self.secrets.take_from_process()?;
        self.kcptun.take_from_process()
    }

    /// `file` is what stands there alone: secrets have an order of their own.
    fn resolve(self, file: &Self, mut doors: Vec<Door>, role: Role, kcptun: bool) -> Result<Config, Error> {
        let mut warnings = Vec::new();
        if kcptun && self.rate.is_some() {
            return Err(Error::new("kcptun knows no `rate`", "leave it out; `sndwnd` bounds what is on its way"));
        }
        let via = self.via.resolve()?;
        let (protocol, keys) = if kcptun {
            let secrets = (&self.secrets, &file.secrets);
            let keys = self.kcptun.keyring(&file.kcptun, secrets, &mut warnings)?;
            (self.kcptun.resolve(&role, self.mode, &mut warnings)?, keys)
        } else {
            (Protocol::Tunnel, self.secrets.keyring(&file.secrets, &mut warnings)?)
        };
        let keys = if via.is_some() { self.via.keyring(keys, &mut warnings)? } else { keys };
        if let Some(port) = self.via.udp_port {
            doors.push(Door::Udp((std::net::Ipv4Addr::UNSPECIFIED, port).into()));
        }
        within("addresses", doors.len(), usize::from(via.is_none()), limits::ADDRESSES_MAX)?;
        let span = |given: Option<Span>, default: Duration| given.map_or(default, |span| span.0);
        let daemon = supervisor::Settings {
            doors,
            reuse: false,
            workers: 1,
            engine: self.daemon.engine.unwrap_or_default(),
            pid_file: Some(self.daemon.pid_file()),
            admin: Some(self.daemon.admin.clone().unwrap_or_else(|| Admin::beside(&self.daemon.pid_file()))),
            drain: self.daemon.drain.map(|span| span.0),
            log: self.log.settings(),
            keys,
            worker: worker::Settings::Tunnel(udp::Settings {
                role,
                via,
                protocol,
                mode: self.mode.unwrap_or_default(),
                rate_max: self.rate.map(Rate::bytes),
                dial_timeout: limits::DIAL_TIMEOUT,
                idle_timeout: span(self.daemon.idle_timeout, limits::IDLE_TIMEOUT),
                half_closed_timeout: span(self.daemon.half_closed_timeout, limits::HALF_CLOSED_TIMEOUT),
                connections_max: self.daemon.max_connections.map_or(usize::MAX, usize::from),
            }),
        };
        Ok(Config { daemon, warnings })
    }
}

/// The service of the flags, if they speak of one, before those of the tables.
fn with_flags<T>(flags: T, is_empty: impl Fn(&T) -> bool, tables: Vec<T>) -> Vec<T> {
    let flags = (!is_empty(&flags)).then_some(flags);
    flags.into_iter().chain(tables).collect()
}

/// Of ways to the peer only one can be meant.
fn one_of(ways: &[(&str, bool)]) -> Result<(), Error> {
    let mut given = ways.iter().filter(|(_, given)| *given).map(|(name, _)| *name);
    match (given.next(), given.next()) {
        (Some(one), Some(other)) => Err(Error::new(
            format!("`{one}` and `{other}` are both given"),
            "a daemon goes one of these ways: start another for the other",
        )),
        _ => Ok(()),
    }
}

fn nameless() -> Error {
    Error::new("a service has no name", "give it one, right after the verb: letters, digits, `.`, `_` and `-`")
}

/// Services by name, with the numbers of their TCP and UDP ports.
fn check(services: impl Iterator<Item = (ServiceName, usize, usize)>, example: &str) -> Result<(), Error> {
    let mut names = BTreeSet::new();
    for (name, tcp, udp) in services {
        if name.as_str().starts_with('.') {
            return Err(Error::new(format!("{name} begins with a dot"), "such names are the rendezvous' own"));
        }
        if tcp + udp == 0 {
            return Err(Error::new(format!("{name} has no port"), format!("for example `{example}`")));
        }
        within("tcp", tcp, 0, limits::SERVICE_PORTS_MAX)?;
        within("udp", udp, 0, limits::SERVICE_PORTS_MAX)?;
        if !names.insert(name) {
            return Err(Error::new(format!("{name} is there twice"), "a name stands for one service"));
        }
    }
    if names.is_empty() {
        return Err(Error::new("no service is named", format!("for example `{example}`")));
    }
    within("services", names.len(), 1, limits::SERVICES_MAX)
}

impl Fill for ProvideForm {
    const TABLES: Option<&str> = Some("provide");

    fn over(self, other: Self) -> Self {
        Self {
            provide: if self.name.is_some() { Vec::new() } else { many(self.provide, other.provide) },
            name: self.name.or(other.name),
            tcp: many(self.tcp, other.tcp),
            udp: many(self.udp, other.udp),
            proxy_protocol: self.proxy_protocol.or(other.proxy_protocol),
            listen_udp: many(self.listen_udp, other.listen_udp),
            kcptun: self.kcptun.or(other.kcptun),
            tunnel: self.tunnel.over(other.tunnel),
        }
    }
}

impl Fill for VisitForm {
    const TABLES: Option<&str> = Some("visit");

    fn over(self, other: Self) -> Self {
        Self {
            visit: if self.name.is_some() { Vec::new() } else { many(self.visit, other.visit) },
            name: self.name.or(other.name),
            tcp: many(self.tcp, other.tcp),
            udp: many(self.udp, other.udp),
            peer: self.peer.or(other.peer),
            kcptun_peer: self.kcptun_peer.or(other.kcptun_peer),
            tunnel: self.tunnel.over(other.tunnel),
        }
    }
}

impl TunnelForm {
    fn over(self, other: Self) -> Self {
        Self {
            mode: self.mode.or(other.mode),
            rate: self.rate.or(other.rate),
            via: self.via.over(other.via),
            kcptun: self.kcptun.over(other.kcptun),
            daemon: self.daemon.over(other.daemon),
            secrets: self.secrets, // they have an order of their own
            log: self.log.over(other.log),
            config: self.config,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys;
    use super::*;

    #[test]
    fn every_flag_is_a_key_of_the_file_and_so_is_the_name() {
        let common = r#"
            name = "game"
            tcp = "127.0.0.1:7777"
            udp = ["127.0.0.1:7777", "127.0.0.1:7778"]
            mode = "fast2"
            rate = "20M"
            via = "meet.example.com:4000"
            path = "relay"
            udp-port = 29900
            no-port-mapping = true
            via-secret-file = "other"
            key = "x"
            crypt = "aes"
            datashard = 10
            parityshard = 3
            nocomp = true
            smuxver = 2
            sndwnd = 1024
            rcvwnd = 1024
            mtu = 1350
            engine = "epoll"
            pid-file = "x.pid"
            admin = "unix:x.sock"
            drain = "30s"
            idle-timeout = "1h"
            half-closed-timeout = 60
            max-connections = 1000
            secret-file = "secret"
            secret = "x"
            log-level = "debug"
            log-format = "json"
        "#;
        let provide = format!(
            "{common}\nlisten-udp = \"[::]:29900\"\nkcptun = \"0.0.0.0:1\"\nproxy-protocol = true\n[[provide]]\nname = \"other\""
        );
        let visit = format!(
            "{common}\npeer = \"game.example.com:29900\"\nkcptun-peer = \"game.example.com:1\"\n[[visit]]\nname = \"other\""
        );
        let names =
            |text: &str| text.parse::<toml::Table>().expect("it is TOML").keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&provide), keys::<ProvideForm>().into_iter().collect());
        assert_eq!(names(&visit), keys::<VisitForm>().into_iter().collect());
        let provide: ProvideForm = toml::from_str(&provide).expect("every key is understood");
        let visit: VisitForm = toml::from_str(&visit).expect("every key is understood");
        assert_eq!((provide.udp.len(), provide.provide.len(), visit.visit.len()), (2, 1, 1));
        assert_eq!(visit.tunnel.rate.map(Rate::bytes), Some(2_500_000));
    }

    #[test]
    fn one_way_to_the_peer_can_be_meant() {
        assert!(one_of(&[("peer", true), ("via", false)]).is_ok() && one_of(&[]).is_ok());
        let error = one_of(&[("kcptun", false), ("peer", true), ("via", true)]).expect_err("both are given");
        assert_eq!(error.message, "`peer` and `via` are both given");
    }

    #[test]
    fn a_name_on_the_command_line_replaces_the_services_of_the_file() {
        let file: ProvideForm =
            toml::from_str("[[provide]]\nname = \"one\"\n[[provide]]\nname = \"two\"").expect("TOML");
        let typed = ProvideForm { name: "three".parse().ok(), ..ProvideForm::default() };
        assert_eq!(typed.over(file.clone()).provide.len(), 0);
        assert_eq!(ProvideForm::default().over(file).provide.len(), 2);
    }
}
