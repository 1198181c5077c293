//! `gateway encrypt` and `gateway decrypt`: tokens, as `openssl enc` makes and reads them.

use std::io::Read;

use super::failure::{Code, Failure};
use crate::config::SecretForm;
use crate::proto::line::LINE_BYTES_MAX;
use crate::proto::target::Target;
use crate::proto::token::{Digest, Keyring};

#[derive(clap::Args)]
pub(super) struct Encrypt {
    /// Backend: IPv4:port, [IPv6]:port or name:port
    #[arg(value_name = "HOST:PORT")]
    target: Target,
    #[command(flatten)]
    secrets: SecretForm,
    /// Hash of the key derivation: sha256 as OpenSSL since 1.1, md5 as before
    #[arg(long, value_enum, default_value_t)]
    digest: Digest,
}

#[derive(clap::Args)]
pub(super) struct Decrypt {
    /// The token; without it, read from standard input, wrapped or not
    token: Option<String>,
    #[command(flatten)]
    secrets: SecretForm,
}

impl Encrypt {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let keys = keyring(&self.secrets)?;
        println!("{}", seal(&keys, &self.target, self.digest)?);
        Ok(())
    }
}

/// A token with a new salt.
pub(super) fn seal(keys: &Keyring, target: &Target, digest: Digest) -> Result<String, Failure> {
    let mut salt = [0; 8];
    getrandom::fill(&mut salt).map_err(std::io::Error::from)?;
    Ok(keys.seal(target.to_string().as_bytes(), salt, digest))
}

impl Decrypt {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let keys = keyring(&self.secrets)?;
        let token = match &self.token {
            Some(token) => token.clone(),
            None => {
                let mut text = String::new();
                std::io::stdin().take(2 * LINE_BYTES_MAX as u64).read_to_string(&mut text)?;
                text
            }
        };
        let token: String = token.split_whitespace().collect();
        let target = keys.open(token.as_bytes()).map_err(|error| {
            let hint = "is it whole, and is this the secret it was made with?";
            Failure::new(Code::RunTime, error.to_string(), hint)
        })?;
        println!("{target}");
        Ok(())
    }
}

fn keyring(form: &SecretForm) -> Result<Keyring, Failure> {
    let mut warnings = Vec::new();
    let keys = form.keyring(&mut warnings)?;
    form.wipe()?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    Ok(keys)
}
