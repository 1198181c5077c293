//! The way through a rendezvous, for ends of tunnels that nobody can reach by an address.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Error, SecretForm, host};
use crate::limits;
use crate::proto::target::Target;
use crate::proto::token::{Keyring, Secret};
use crate::udp::{Paths, Via};

/// What may be said of the rendezvous.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ViaForm {
    /// A rendezvous, where visitors and providers find each other whatever NATs stand between
    #[arg(long, value_name = "HOST:PORT", env = "GATEWAY_VIA", help_heading = "Rendezvous")]
    pub via: Option<Target>,

    /// Which paths between the peers may be used [default: auto]
    #[arg(long, value_enum, env = "GATEWAY_PATH", help_heading = "Rendezvous")]
    pub path: Option<Paths>,

    /// UDP port for direct paths, such as one that the router forwards to this host [default: a free one]
    #[arg(long, value_name = "PORT", env = "GATEWAY_UDP_PORT", help_heading = "Rendezvous")]
    pub udp_port: Option<u16>,

    /// Do not ask the router for a port (PCP, NAT-PMP, UPnP) that leads here [default: false]
    #[arg(long, env = "GATEWAY_NO_PORT_MAPPING", num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Rendezvous")]
    pub no_port_mapping: Option<bool>,

    /// The rendezvous' secret, if it is not to know the one that the peers share [default: the same]
    #[arg(long, value_name = "FILE", env = "GATEWAY_VIA_SECRET_FILE", help_heading = "Rendezvous")]
    pub via_secret_file: Option<PathBuf>,
}

impl ViaForm {
    pub(super) fn over(self, other: Self) -> Self {
        Self {
            via: self.via.or(other.via),
            path: self.path.or(other.path),
            udp_port: self.udp_port.or(other.udp_port),
            no_port_mapping: self.no_port_mapping.or(other.no_port_mapping),
            via_secret_file: self.via_secret_file.or(other.via_secret_file),
        }
    }

    /// `None` without a rendezvous.
    pub(super) fn resolve(&self) -> Result<Option<Via>, Error> {
        let flags = [
            ("path", self.path.is_some()),
            ("udp-port", self.udp_port.is_some()),
            ("no-port-mapping", self.no_port_mapping.is_some()),
            ("via-secret-file", self.via_secret_file.is_some()),
        ];
        let Some(via) = self.via.clone() else {
            return match flags.into_iter().find(|(_, given)| *given) {
                Some((flag, _)) => Err(Error::new(
                    format!("`{flag}` is given without a rendezvous"),
                    "say which one, with --via HOST:4000",
                )),
                None => Ok(None),
            };
        };
        let has_own_secret = self.via_secret_file.is_some();
        let host = host("via", via)?;
        let maps_ports = !self.no_port_mapping.unwrap_or(false);
        Ok(Some(Via { host, paths: self.path.unwrap_or_default(), maps_ports, has_own_secret }))
    }

    /// The secrets that the peers share, and behind them that of the rendezvous where it has its own. Whoever hears a first
    /// packet can try passphrases on it, and a rendezvous is where anybody can listen.
    pub(super) fn keyring(&self, shared: Keyring, warnings: &mut Vec<String>) -> Result<Keyring, Error> {
        let mut secrets = shared.into_secrets();
        if let Some(path) = &self.via_secret_file {
            let own = SecretForm::of_file(path.clone()).keyring(&SecretForm::default(), warnings)?;
            secrets.extend(own.into_secrets());
        }
        let is_weak = |secret: &Secret| secret.bytes().len() < limits::SECRET_BYTES_WEAK;
        if secrets.iter().any(is_weak) {
            let least = limits::SECRET_BYTES_WEAK;
            return Err(Error::new(
                format!("a secret has fewer than {least} bytes, which is too weak for a rendezvous"),
                "make a strong one with `(umask 077; gateway secret > secret)`, and give it to your friends",
            ));
        }
        Keyring::new(secrets).map_err(|_none| Error::new("no secret is given", "pass --secret-file secret"))
    }
}
