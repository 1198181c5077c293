//! Finds a direct way between two peers that both stand behind NATs: one round of punching.
//!
//! The two can already talk, through the relay or over an older path, so a round is arranged end to end and the relay learns
//! neither addresses nor times. An [`Attempt`] is one round from the first question to the verdict:
//!
//! 1. Each side opens fresh sockets and asks the rendezvous, from them, how they look from outside ([`Gather`]). Two answers from
//!    two ports tell how the NAT maps ([`Class`]).
//! 2. The visitor sends [`Message::Call`] with its [`Profile`], the provider gathers too and sends [`Message::Answer`]. The visitor
//!    begins when the answer arrives, the provider one way's delay after it was sent: both at the same instant.
//! 3. A [`Round`] says who shoots from which socket at which address and when: `plan` chooses the method for the two classes,
//!    `aims` and `schedule` what and when, `birthday` and `predictions` the ports that nobody could tell.
//!    A provider to whom a port leads since the last round says [`Message::Again`], and is called once more.
//! 4. The first answered probe ends it ([`Verdict`]), and the visitor says so ([`Message::Punched`]).
//!
//! Whoever knows the secret could name the addresses of others as its own. So `candidates` refuses what cannot be a peer, a
//! round has a bound and a rate ([`SHOTS_MAX`], [`SHOT_SPACING_US`]), and rounds are rationed, by peer
//! ([`Allowance`]) and by the hosts that they go to ([`Hosts`]).
//!
//! Deliberately absent: sockets and clocks; what a probe looks like (the tunnel seals it); which of several paths is used, and
//! when the next round is due (`path` decides both).

mod aims;
mod allowance;
mod attempt;
mod birthday;
mod candidates;
mod class;
mod gather;
mod lease;
mod plan;
mod predictions;
mod round;
mod schedule;
mod verdict;
mod wire;

use std::net::SocketAddr;

pub use allowance::{Allowance, Hosts};
pub use attempt::{Action, Attempt};
pub use candidates::{CANDIDATES_MAX, Candidate, Kind, Profile};
pub use class::Class;
pub use gather::{Gather, Question, Setup};
pub use lease::Lease;
pub use plan::{Method, Side};
pub use round::{Round, SHOT_SPACING_US, SHOTS_MAX};
pub use verdict::{Verdict, Why};
pub use wire::{MESSAGE_BYTES_MAX, Malformed, Message};

/// As in the tunnel's frames: tells which question an answer belongs to.
pub type Token = [u8; 8];

/// The sockets of a round. They belong to the owner of the round, who opens them new for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Socket {
    /// The one of each family from which the rendezvous was asked.
    Main4,
    Main6,
    /// One of [`SPARES`] more (IPv4), opened when the first shot from it is due. Those that were not probed when the round is
    /// over are closed.
    Spare(u16),
    /// TCP, from the local address and port of the connection to the rendezvous (`SO_REUSEADDR` and `SO_REUSEPORT`).
    Link,
}

/// Spare sockets of a side whose NAT chooses ports at random. 256 against one probe a millisecond meet within 750 ms in 95 of
/// 100 cases when the NAT has 64,512 ports to choose from.
pub const SPARES: u16 = 256;

/// What is to be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shot {
    pub from: Socket,
    pub to: SocketAddr,
    /// Of this packet. `None`: as the system has it.
    pub ttl: Option<u8>,
    pub kind: ShotKind,
    /// Of the probe. All to one address have the same.
    pub token: Token,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShotKind {
    /// A probe in one datagram.
    Udp,
    /// `connect()`. Nothing is to be done while an earlier one to this address is still trying, or when there is a connection.
    Tcp,
}
