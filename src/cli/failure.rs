//! What went wrong, as the user reads it: a line, a hint, and an exit code. The only place where errors become numbers.

use std::io;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::{config, supervisor};

/// Exit codes. 0 is success, also after a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    RunTime = 1,
    Usage = 2,
    Configuration = 3,
    CannotBind = 4,
    HostLacks = 6,
}

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) hint: String,
}

impl Failure {
    pub(super) fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into() }
    }

    pub(super) fn report(&self) -> ExitCode {
        eprintln!("error: {}\nhint: {}", self.message, self.hint);
        ExitCode::from(self.code as u8)
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        Self::new(Code::Configuration, error.message, error.hint)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(Code::RunTime, error.to_string(), "the system has refused something that a running gateway needs")
    }
}

impl From<supervisor::Error> for Failure {
    fn from(error: supervisor::Error) -> Self {
        use supervisor::Error;
        match error {
            Error::Bind { door, error } => {
                let hint = match error.kind() {
                    io::ErrorKind::AddrInUse => {
                        let port = door.address().port();
                        match door {
                            supervisor::Door::Tcp(_) => format!(
                                "`ss -ltnp sport = :{port}` shows who has it; `gateway run` shares it with others of its user when all have --reuse"
                            ),
                            supervisor::Door::Udp(_) => format!(
                                "`ss -lunp sport = :{port}` shows who has it; a provider that was told to stop keeps it until \
                                 its last game has ended, or a second TERM"
                            ),
                            supervisor::Door::Exposed(supervisor::Transport::Tcp, ..) => {
                                format!("`ss -ltnp sport = :{port}` shows who has it")
                            }
                            supervisor::Door::Exposed(supervisor::Transport::Udp, ..) => {
                                format!("`ss -lunp sport = :{port}` shows who has it")
                            }
                            supervisor::Door::Rendezvous(_) => format!(
                                "a rendezvous needs TCP and UDP on port {port}, and UDP on the next: `ss -ltunp` shows who has them"
                            ),
                        }
                    }
                    io::ErrorKind::AddrNotAvailable => {
                        "`ip address` shows this host's addresses; 0.0.0.0 means all of them".into()
                    }
                    io::ErrorKind::PermissionDenied => {
                        "ports below 1024 need root, CAP_NET_BIND_SERVICE or systemd/gateway.socket".into()
                    }
                    _ => "choose another address".into(),
                };
                Self::new(Code::CannotBind, format!("cannot listen on {}: {error}", door.address()), hint)
            }
            Error::Admin { admin, error } => Self::new(
                Code::CannotBind,
                format!("cannot answer at {admin}: {error}"),
                "name another place with --admin: IP:PORT, or unix:PATH in a directory that may be written to",
            ),
            Error::PidFile { path, problem } => Self::new(
                Code::Configuration,
                format!("cannot use the pid file {}: {problem}", path.display()),
                "name a file of its own with --pid-file, in a directory that may be written to",
            ),
            Error::Engine(error) => Self::new(
                Code::HostLacks,
                format!("this host refuses io_uring (io_uring_setup: {error})"),
                "look at `sysctl kernel.io_uring_disabled` and at the seccomp profile of the container, or use --engine epoll; \
                 Linux 5.19 or later is needed",
            ),
            Error::WorkerStart(status) => {
                Self::new(Code::RunTime, format!("a worker ended at its start ({status})"), "the log above says why")
            }
            Error::WorkerLate => Self::new(
                Code::RunTime,
                "the workers did not start in time",
                "is this host overloaded? `--log-level debug` tells more",
            ),
            Error::Io(error) => error.into(),
        }
    }
}

impl From<clap::Error> for Failure {
    /// One line and a hint out of what clap found, without its page of usage.
    fn from(error: clap::Error) -> Self {
        let text = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.clone()),
            Some(ContextValue::Strings(texts)) => texts.last().cloned(),
            _ => None,
        };
        let some = |kind| text(kind).filter(|text| !text.is_empty());
        let reason = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        let first_line =
            || error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let argument = some(ContextKind::InvalidArg);
        let message = match (error.kind(), &argument, some(ContextKind::InvalidValue)) {
            (ErrorKind::UnknownArgument, Some(argument), _) => format!("unknown argument '{argument}'"),
            (ErrorKind::InvalidSubcommand, ..) => match some(ContextKind::InvalidSubcommand) {
                Some(verb) => format!("unknown verb '{verb}'"),
                None => first_line(),
            },
            (ErrorKind::InvalidValue, Some(argument), None) => format!("'{argument}' needs a value"),
            (ErrorKind::InvalidValue | ErrorKind::ValueValidation, Some(argument), Some(value)) => {
                format!("'{value}' will not do for '{argument}'{reason}")
            }
            _ => first_line(),
        };
        let suggestions = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue];
        let suggestion = suggestions.into_iter().find_map(some).map(|nearest| format!("did you mean '{nearest}'?"));
        let valid = match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(values)) if !values.is_empty() => {
                Some(format!("possible values: {}", values.join(", ")))
            }
            _ => None,
        };
        let flag = argument.as_deref().and_then(|argument| argument.strip_prefix("--"));
        let example = flag.map(|flag| config::example(flag.split([' ', '=', '[']).next().unwrap_or(flag)));
        let is_unknown = error.kind() == ErrorKind::UnknownArgument;
        let stranger = argument.as_deref().filter(|_| is_unknown).and_then(verbs_with);
        let hint = suggestion.or(valid).or(stranger).or(example.filter(|_| !is_unknown));
        Self::new(Code::Usage, message, hint.unwrap_or_else(|| "see `gateway --help`, or `gateway VERB --help`".into()))
    }
}

/// Tells a flag of other verbs from one that nobody knows.
fn verbs_with(flag: &str) -> Option<String> {
    let flag = flag.strip_prefix("--")?;
    let command = super::Cli::command();
    let knows = |verb: &&clap::Command| verb.get_arguments().any(|argument| argument.get_long() == Some(flag));
    let verbs: Vec<_> = command.get_subcommands().filter(knows).map(|verb| format!("`{}`", verb.get_name())).collect();
    (!verbs.is_empty())
        .then(|| format!("--{flag} belongs to {}; `gateway VERB --help` shows what a verb takes", verbs.join(", ")))
}
