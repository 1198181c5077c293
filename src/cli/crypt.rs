//! `gateway encrypt` and `gateway decrypt`: tokens, as `openssl enc` makes and reads them.

use super::failure::{Code, Failure};
use crate::config::SecretForm;
use crate::proto::line::{LINE_BYTES_MAX, WRAP_COLUMNS};
use crate::proto::target::Target;
use crate::proto::token::{BadToken, Digest, Keyring};

#[derive(clap::Args)]
pub(super) struct Encrypt {
    /// Backend: `IPv4:port`, `[IPv6]:port` or `name:port`
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
    /// The token; without it, tokens are read from standard input, wrapped or not
    token: Option<String>,
    #[command(flatten)]
    secrets: SecretForm,
}

impl Encrypt {
    pub(super) fn run(self) -> Result<(), Failure> {
        let keys = keyring(self.secrets)?;
        super::print(seal(&keys, &self.target, self.digest)?)
    }
}

/// A token with a new salt.
pub(super) fn seal(keys: &Keyring, target: &Target, digest: Digest) -> Result<String, Failure> {
    let mut salt = [0; 8];
    getrandom::fill(&mut salt).map_err(std::io::Error::from)?;
    Ok(keys.seal(target.to_string().as_bytes(), salt, digest))
}

impl Decrypt {
    pub(super) fn run(self) -> Result<(), Failure> {
        let keys = keyring(self.secrets)?;
        if let Some(token) = &self.token {
            return super::print(keys.open(token.as_bytes()).map_err(unopened)?);
        }
        let mut token = String::new();
        for line in std::io::stdin().lines() {
            token.push_str(line?.trim_end());
            match keys.open(token.as_bytes()) {
                Ok(target) => {
                    super::print(target)?;
                    token.clear();
                }
                Err(_) if token.len().is_multiple_of(WRAP_COLUMNS) && token.len() < LINE_BYTES_MAX => {} // may go on in the next line
                Err(error) => return Err(unopened(error)),
            }
        }
        if token.is_empty() { Ok(()) } else { Err(unopened(BadToken)) }
    }
}

fn unopened(error: BadToken) -> Failure {
    Failure::new(Code::RunTime, error.to_string(), "is it whole, and is this the secret it was made with?")
}

fn keyring(mut form: SecretForm) -> Result<Keyring, Failure> {
    let mut warnings = Vec::new();
    form.take_from_process()?;
    let keys = form.keyring(&SecretForm::default(), &mut warnings)?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    Ok(keys)
}
