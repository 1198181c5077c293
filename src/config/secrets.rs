//! Where secrets come from, and how they are kept from being seen.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use zeroize::Zeroize;

use super::values::one_or_many;
use super::{Error, Typed, within};
use crate::proto::token::{Keyring, Secret};
use crate::{limits, sys};

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

impl SecretForm {
    pub(super) fn over(self, other: Self) -> Self {
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
                "a secret has fewer than {least} bytes: whoever has a token or hears a tunnel begin can guess it; `gateway secret` makes a strong one"
            ));
        }
        let hint =
            "pass --secret-file FILE: that of the other end, or a new one, by `(umask 077; gateway secret > FILE)`";
        Keyring::new(secrets).map_err(|_none| Error::new("no secret is given", hint))
    }

    /// The first place that has something. Files named by `file` come before the credential, as if they had been typed, but
    /// the environment and what was typed go before the file.
    fn secrets(&self, file: &Self, warnings: &mut Vec<String>) -> Result<Vec<Secret>, Error> {
        let mut files = &self.secret_file;
        if files.is_empty() && self.environment.is_none() && self.secret.is_none() {
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
    if bytes[..line].ends_with(b"\r") {
        warnings.push(format!(
            "the first line of {shown} ends in a carriage return, which belongs to the secret, as for openssl: \
             `sed -i 's/\\r$//' {shown}`, unless the other end has it too"
        ));
    }
    let secret = bytes[..line].to_vec();
    bytes.zeroize();
    check_secret(&format!("the first line of {shown}"), secret)
}

pub(super) fn check_secret(of: &str, mut bytes: Vec<u8>) -> Result<Secret, Error> {
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
