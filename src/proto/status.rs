//! The five answers, and the facts that lead to them.

use std::io;

/// What a client is told: three bytes, no newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Connected,
    BadRequest,
    Unauthorized,
    BadGateway,
    GatewayTimeout,
}

impl Status {
    #[must_use]
    pub fn bytes(self) -> &'static [u8; 3] {
        match self {
            Self::Connected => b"200",
            Self::BadRequest => b"400",
            Self::Unauthorized => b"401",
            Self::BadGateway => b"502",
            Self::GatewayTimeout => b"504",
        }
    }
}

/// Why a client was refused.
#[derive(Debug)]
pub enum Refusal {
    /// The client ended before a line was complete.
    LineCutShort,
    /// No newline where the longest line has one.
    LineTooLong,
    /// No complete line by the handshake deadline.
    LineLate,
    /// Everything that can be wrong with a complete line, policy included: one verdict, so that nobody learns more.
    LineWrong,
    /// The name of the backend has no address.
    Unresolved,
    /// Every address of the backend failed; the last error.
    Unreachable(io::Error),
    /// Every attempt ran into the time-out.
    Silent,
}

impl Refusal {
    /// The one place where a refusal becomes an answer.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::LineCutShort | Self::LineTooLong | Self::LineLate => Status::BadRequest,
            Self::LineWrong => Status::Unauthorized,
            Self::Unresolved | Self::Unreachable(_) => Status::BadGateway,
            Self::Silent => Status::GatewayTimeout,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LineCutShort => f.write_str("the client ended before its line was complete"),
            Self::LineTooLong => f.write_str("line too long"),
            Self::LineLate => f.write_str("no complete line in time"),
            Self::LineWrong => f.write_str("line not accepted"),
            Self::Unresolved => f.write_str("no address for the backend's name"),
            Self::Unreachable(error) => write!(f, "backend not reachable: {error}"),
            Self::Silent => f.write_str("backend silent"),
        }
    }
}
