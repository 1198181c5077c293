//! What came of a round, and in words for users why it was nothing.

use std::fmt;
use std::net::SocketAddr;

use super::Socket;
use super::class::Class;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Underway,
    /// A probe was answered: both directions work between this socket and that address.
    Direct {
        socket: Socket,
        remote: SocketAddr,
    },
    /// The relay remains.
    Relay(Why),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The peer did not answer our call.
    NoAnswer,
    /// The peer wants no other way than the relay.
    Declined,
    /// One has named no address that may be tried.
    NoCandidates,
    BothRandom,
    RandomAndSteps,
    BothSteps,
    /// Neither guess nor prediction has met the other NAT's port.
    NotMet,
    /// UDP is blocked on one side, and no TCP connection came about either.
    Blocked,
    /// The peer's probes came, and ours were not answered.
    OneWay,
    Silence,
}

impl Why {
    /// Of a round in which no probe was answered.
    pub(super) fn of(ours: Class, theirs: Class, heard: bool) -> Self {
        match (ours, theirs) {
            (Class::Blocked, _) | (_, Class::Blocked) => Self::Blocked,
            (Class::Random, Class::Random) => Self::BothRandom,
            (Class::Random, Class::Steps(_)) | (Class::Steps(_), Class::Random) => Self::RandomAndSteps,
            (Class::Steps(_), Class::Steps(_)) => Self::BothSteps,
            (Class::Random | Class::Steps(_), _) | (_, Class::Random | Class::Steps(_)) => Self::NotMet,
            (Class::Open | Class::Same | Class::Unclear, Class::Open | Class::Same | Class::Unclear) => {
                if heard {
                    Self::OneWay
                } else {
                    Self::Silence
                }
            }
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAnswer => "the other side has not answered our wish for a direct connection",
            Self::Declined => "the other side wants to be reached through the rendezvous only (--path relay)",
            Self::NoCandidates => "one side knows no address at which it could be reached directly",
            Self::BothRandom => {
                "both routers choose a new port at random for every destination (symmetric NAT), which cannot be guessed on \
                 both sides at once; a port mapping (UPnP, NAT-PMP) or IPv6 on one side would help"
            }
            Self::RandomAndSteps => {
                "one router chooses ports at random and the other counts them up (both symmetric NAT), which cannot be \
                 guessed at once; a port mapping (UPnP, NAT-PMP) or IPv6 on one side would help"
            }
            Self::BothSteps => {
                "both routers count up a new port for every destination (symmetric NAT), and other traffic came in between"
            }
            Self::NotMet => "one router chooses a new port for every destination (symmetric NAT), and it was not guessed in time",
            Self::Blocked => "UDP is blocked on one side, and no direct TCP connection was let through either",
            Self::OneWay => "datagrams arrive from the other side, but none of ours arrives there",
            Self::Silence => "no datagram came through from the other side: a firewall drops them",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_follows_from_the_two_classes_in_either_order() {
        let pairs = [
            (Class::Random, Class::Random, Why::BothRandom),
            (Class::Steps(1), Class::Random, Why::RandomAndSteps),
            (Class::Steps(1), Class::Steps(2), Why::BothSteps),
            (Class::Same, Class::Random, Why::NotMet),
            (Class::Open, Class::Blocked, Why::Blocked),
            (Class::Same, Class::Open, Why::Silence),
        ];
        for (one, other, why) in pairs {
            assert_eq!((Why::of(one, other, false), Why::of(other, one, false)), (why, why));
        }
        assert_eq!(Why::of(Class::Same, Class::Open, true), Why::OneWay);
    }
}
