//! The flags of kcptun, under its own names, and what stands for its defaults.

use serde::Deserialize;

use super::{Error, SecretForm, Typed};
use crate::proto::kcptun::{Cipher, WARNING};
use crate::proto::token::Keyring;
use crate::sys;
use crate::udp::{Kcptun, Mode, Protocol, Role};

/// What both ends have. They must agree on `key`, `crypt`, `datashard`, `parityshard`, `nocomp` and `smuxver`.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct KcptunForm {
    /// Password of kcptun; GATEWAY_KCPTUN_KEY does the same [default: the secret]
    #[arg(long, value_name = "KEY", help_heading = "kcptun")]
    pub key: Option<Typed>,

    /// Cipher: aes, aes-128, aes-192, salsa20, xor, none or null [default: aes]
    #[arg(long, value_name = "NAME", env = "GATEWAY_CRYPT", help_heading = "kcptun")]
    pub crypt: Option<String>,

    /// Packets of data in a group that has parity; 0 for none [default: 10]
    #[arg(long, value_name = "N", env = "GATEWAY_DATASHARD", help_heading = "kcptun")]
    pub datashard: Option<u8>,

    /// Packets of parity in it; 0 for none [default: 3]
    #[arg(long, value_name = "N", env = "GATEWAY_PARITYSHARD", help_heading = "kcptun")]
    pub parityshard: Option<u8>,

    /// Do not compress [default: false]
    #[arg(long, env = "GATEWAY_NOCOMP", num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = clap::builder::BoolishValueParser::new(), help_heading = "kcptun")]
    pub nocomp: Option<bool>,

    /// Version of smux, 1 or 2 [default: 1]
    #[arg(long, value_name = "N", env = "GATEWAY_SMUXVER", help_heading = "kcptun")]
    pub smuxver: Option<u8>,

    /// Segments on their way [default: 128 to visit, 1024 to provide]
    #[arg(long, value_name = "N", env = "GATEWAY_SNDWND", help_heading = "kcptun")]
    pub sndwnd: Option<u16>,

    /// Segments that have arrived and wait [default: 512 to visit, 1024 to provide]
    #[arg(long, value_name = "N", env = "GATEWAY_RCVWND", help_heading = "kcptun")]
    pub rcvwnd: Option<u16>,

    /// Longest datagram, bytes [default: 1350]
    #[arg(long, value_name = "BYTES", env = "GATEWAY_MTU", help_heading = "kcptun")]
    pub mtu: Option<usize>,

    /// `GATEWAY_KCPTUN_KEY`, taken over by [`KcptunForm::take_from_process`].
    #[arg(skip)]
    #[serde(skip)]
    environment: Option<Typed>,
}

const ENVIRONMENT: &str = "GATEWAY_KCPTUN_KEY";

impl KcptunForm {
    /// As [`SecretForm::take_from_process`], for the key.
    ///
    /// # Errors
    /// When this process cannot be examined.
    pub fn take_from_process(&mut self) -> std::io::Result<()> {
        if let Some(key) = std::env::var(ENVIRONMENT).ok().filter(|key| !key.is_empty()) {
            sys::process::wipe_variable(ENVIRONMENT)?;
            self.environment = Some(Typed(key));
        }
        if let Some(Typed(key)) = &self.key {
            sys::process::wipe_argument("--key", key)?;
        }
        Ok(())
    }

    /// The password, or the secrets where there is none: the command line, the environment, the file.
    pub(super) fn keyring(
        &self,
        file: &Self,
        secrets: (&SecretForm, &SecretForm),
        warnings: &mut Vec<String>,
    ) -> Result<Keyring, Error> {
        if self.key.is_some() {
            warnings.push(format!("--key can be seen in `ps` until it is wiped; prefer {ENVIRONMENT}"));
        }
        let key = self.key.as_ref().or(self.environment.as_ref()).or(file.key.as_ref());
        match key {
            Some(Typed(key)) => super::secrets::check_secret("the key", key.clone().into_bytes()).and_then(|key| {
                Keyring::new(vec![key]).map_err(|_none| Error::new("no key is given", "give one with --key"))
            }),
            None => secrets.0.keyring(secrets.1, warnings),
        }
    }

    /// What it comes to. `mode` is checked too: ours have no meaning there.
    pub(super) fn resolve(
        &self,
        role: &Role,
        mode: Option<Mode>,
        warnings: &mut Vec<String>,
    ) -> Result<Protocol, Error> {
        let shards = (self.datashard.unwrap_or(10), self.parityshard.unwrap_or(3));
        let kcptun = Kcptun {
            crypt: self.crypt.clone().unwrap_or_else(|| "aes".to_owned()),
            shards: (shards.0 > 0 && shards.1 > 0).then_some(shards),
            compress: !self.nocomp.unwrap_or(false),
            version: self.smuxver.unwrap_or(1),
            send_window: self.sndwnd,
            receive_window: self.rcvwnd,
            mtu: self.mtu.unwrap_or(1350),
        };
        if Cipher::by_name(&kcptun.crypt).is_none() {
            let names: Vec<_> = Cipher::names().collect();
            return Err(Error::new(format!("`crypt` is {}", kcptun.crypt), format!("known: {}", names.join(", "))));
        }
        if !matches!(kcptun.version, 1 | 2) {
            return Err(Error::new(format!("`smuxver` is {}", kcptun.version), "it is 1 or 2"));
        }
        if let Some(Mode::Game | Mode::Bulk) = mode {
            return Err(Error::new("kcptun has no such mode", "it has normal, fast, fast2 and fast3"));
        }
        let mode = mode.unwrap_or(Mode::Fast);
        if let Err(unfit) = kcptun.settings(role.is_provider(), mode).check() {
            return Err(Error::new(unfit.to_string(), "see `gateway VERB --help`, under kcptun"));
        }
        one_tcp_port(role)?;
        warnings.push(WARNING.to_owned());
        Ok(Protocol::Kcptun(kcptun))
    }

    pub(super) fn over(self, other: Self) -> Self {
        Self {
            key: self.key, // that of the file comes after the environment
            crypt: self.crypt.or(other.crypt),
            datashard: self.datashard.or(other.datashard),
            parityshard: self.parityshard.or(other.parityshard),
            nocomp: self.nocomp.or(other.nocomp),
            smuxver: self.smuxver.or(other.smuxver),
            sndwnd: self.sndwnd.or(other.sndwnd),
            rcvwnd: self.rcvwnd.or(other.rcvwnd),
            mtu: self.mtu.or(other.mtu),
            environment: self.environment,
        }
    }
}

/// The protocol carries nothing else, and no address of a player.
fn one_tcp_port(role: &Role) -> Result<(), Error> {
    let fits = match role {
        Role::Provide(services) => {
            matches!(&services[..], [of] if of.tcp.len() == 1 && of.udp.is_empty() && !of.proxy_header)
        }
        Role::Visit(services) => matches!(&services[..], [of] if of.tcp == 1 && of.udp == 0),
    };
    let hint = "give one service with one --tcp, without --udp and --proxy-protocol";
    if fits { Ok(()) } else { Err(Error::new("kcptun carries one TCP port", hint)) }
}
