//! What two peers tell each other about a round, inside their tunnel. Network order, nothing behind the end.
//!
//! ```text
//! call       1 | round u32 | profile: let us punch, this is me
//! answer     2 | round u32 | profile: yes, and this is me
//! punched    3 | round u32: a probe was answered, stop
//! declined   4 | round u32: no, the relay is all that is wanted here
//! again      5 | 0 u32: things are better here than in the last round, call again
//!
//! profile    class u8 | step u16 | count u8 (at most 24) | candidate ...
//!            classes: 0 open, 1 same, 2 steps, 3 random, 4 blocked, 5 unclear; the step is 1 to 16 for steps, and else 0
//! candidate  kind u8 | address
//!            kinds: 0 host, 1 mapped, 2 reflexive, 3 TCP-reflexive
//! address    4 | IPv4 4 | port u16,  or  6 | IPv6 16 | port u16
//! ```

use super::candidates::{CANDIDATES_MAX, Candidate, Kind, Profile};
use super::class::{Class, STEP_MAX};
use crate::proto::tunnel::{emit_address, parse_address};

/// The longest message.
pub const MESSAGE_BYTES_MAX: usize = 1 + 4 + 4 + CANDIDATES_MAX * (1 + 1 + 16 + 2);

/// The tunnel tells no more than this at once.
const _: () = assert!(MESSAGE_BYTES_MAX <= 1024);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Call { round: u32, profile: Profile },
    Answer { round: u32, profile: Profile },
    Punched { round: u32 },
    Declined { round: u32 },
    Again,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

const CALL: u8 = 1;
const ANSWER: u8 = 2;
const PUNCHED: u8 = 3;
const DECLINED: u8 = 4;
const AGAIN: u8 = 5;

/// In the order of their numbers.
const KINDS: [Kind; 4] = [Kind::Host, Kind::Mapped, Kind::Reflexive, Kind::TcpReflexive];

impl Message {
    pub fn parse(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        let [kind] = array(rest)?;
        let round = u32::from_be_bytes(array(rest)?);
        let message = match kind {
            CALL => Self::Call { round, profile: parse_profile(rest)? },
            ANSWER => Self::Answer { round, profile: parse_profile(rest)? },
            PUNCHED => Self::Punched { round },
            DECLINED => Self::Declined { round },
            AGAIN if round == 0 => Self::Again,
            _ => return Err(Malformed),
        };
        if rest.is_empty() { Ok(message) } else { Err(Malformed) }
    }

    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Call { round, profile } => emit_with_profile(CALL, *round, profile, out),
            Self::Answer { round, profile } => emit_with_profile(ANSWER, *round, profile, out),
            Self::Punched { round } => head(PUNCHED, *round, out),
            Self::Declined { round } => head(DECLINED, *round, out),
            Self::Again => head(AGAIN, 0, out),
        }
    }
}

fn head(kind: u8, round: u32, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(&round.to_be_bytes());
}

fn emit_with_profile(kind: u8, round: u32, profile: &Profile, out: &mut Vec<u8>) {
    head(kind, round, out);
    let (class, step) = match profile.class {
        Class::Open => (0, 0),
        Class::Same => (1, 0),
        Class::Steps(step) => (2, step),
        Class::Random => (3, 0),
        Class::Blocked => (4, 0),
        Class::Unclear => (5, 0),
    };
    out.push(class);
    out.extend_from_slice(&step.to_be_bytes());
    let count = profile.candidates.len().min(CANDIDATES_MAX);
    out.push(count as u8);
    for candidate in &profile.candidates[..count] {
        out.push(KINDS.iter().position(|kind| *kind == candidate.kind).expect("the table has all kinds") as u8);
        emit_address(candidate.address, out);
    }
}

fn parse_profile(rest: &mut &[u8]) -> Result<Profile, Malformed> {
    let [class] = array(rest)?;
    let step = u16::from_be_bytes(array(rest)?);
    let class = match (class, step) {
        (0, 0) => Class::Open,
        (1, 0) => Class::Same,
        (2, 1..=STEP_MAX) => Class::Steps(step),
        (3, 0) => Class::Random,
        (4, 0) => Class::Blocked,
        (5, 0) => Class::Unclear,
        _ => return Err(Malformed),
    };
    let count = usize::from(array::<1>(rest)?[0]);
    if count > CANDIDATES_MAX {
        return Err(Malformed);
    }
    let candidates = (0..count).map(|_| parse_candidate(rest)).collect::<Result<_, _>>()?;
    Ok(Profile { class, candidates })
}

fn parse_candidate(rest: &mut &[u8]) -> Result<Candidate, Malformed> {
    let [kind] = array(rest)?;
    let kind = *KINDS.get(usize::from(kind)).ok_or(Malformed)?;
    let address = parse_address(rest).map_err(|_malformed| Malformed)?;
    Ok(Candidate { kind, address })
}

fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (array, after) = rest.split_first_chunk().ok_or(Malformed)?;
    *rest = after;
    Ok(*array)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::net::SocketAddr;

    use super::*;

    fn bytes(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.emit(&mut bytes);
        bytes
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let class = prop_oneof![
            Just(Class::Open),
            Just(Class::Same),
            (1..=STEP_MAX).prop_map(Class::Steps),
            Just(Class::Random),
            Just(Class::Blocked),
            Just(Class::Unclear),
        ];
        let address = any::<(std::net::IpAddr, u16)>().prop_map(SocketAddr::from);
        let candidate = (0..KINDS.len(), address).prop_map(|(kind, address)| Candidate { kind: KINDS[kind], address });
        let profile = (class, prop::collection::vec(candidate, 0..=CANDIDATES_MAX))
            .prop_map(|(class, candidates)| Profile { class, candidates });
        (0..5, any::<u32>(), profile).prop_map(|(kind, round, profile)| match kind {
            0 => Message::Call { round, profile },
            1 => Message::Answer { round, profile },
            2 => Message::Punched { round },
            3 => Message::Declined { round },
            _ => Message::Again,
        })
    }

    proptest! {
        #[test]
        fn parse_undoes_emit_and_nothing_is_missing_or_left_over(message in any_message()) {
            let bytes = bytes(&message);
            prop_assert!(bytes.len() <= MESSAGE_BYTES_MAX);
            prop_assert_eq!(Message::parse(&bytes), Ok(message));
            prop_assert_eq!(Message::parse(&[&bytes[..], &[0]].concat()), Err(Malformed));
            prop_assert_eq!(Message::parse(&bytes[..bytes.len() - 1]), Err(Malformed));
        }

        #[test]
        fn any_bytes_are_a_message_in_one_way_or_malformed(noise in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(message) = Message::parse(&noise) {
                prop_assert_eq!(bytes(&message), noise);
            }
        }
    }

    #[test]
    fn a_call_with_too_many_candidates_is_malformed() {
        let candidate = Candidate { kind: Kind::Host, address: SocketAddr::from(([10, 0, 0, 1], 5000)) };
        let full = Profile { class: Class::Same, candidates: vec![candidate; CANDIDATES_MAX] };
        let mut bytes = bytes(&Message::Call { round: 1, profile: full });
        assert!(Message::parse(&bytes).is_ok());
        bytes[8] += 1;
        bytes.extend_from_within(bytes.len() - 8..);
        assert_eq!(Message::parse(&bytes), Err(Malformed));
    }

    #[test]
    fn a_step_belongs_to_a_counting_nat_and_to_no_other() {
        let call = |class: u8, step: u16| {
            let [high, low] = step.to_be_bytes();
            Message::parse(&[CALL, 0, 0, 0, 1, class, high, low, 0])
        };
        assert!(call(2, 1).is_ok() && call(2, STEP_MAX).is_ok() && call(1, 0).is_ok());
        assert!(call(2, 0).is_err() && call(2, STEP_MAX + 1).is_err() && call(1, 1).is_err() && call(6, 0).is_err());
    }
}
