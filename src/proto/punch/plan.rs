//! Which method suits two classes of NAT. Both sides know both classes, so they come to matching methods without a word.
//!
//! | ours, theirs | open, same, unclear | steps | random | blocked |
//! |---|---|---|---|---|
//! | open, same, unclear | plain; `guess` and `spread` by turns after a failed round | predict | guess | TCP |
//! | steps | plain | lock step | plain | TCP |
//! | random | spread | predict | plain | TCP |
//! | blocked | TCP | TCP | TCP | TCP |
//!
//! Random with random, and random with steps, succeed by plain probes only if a NAT lets strangers in, which nobody could observe.
//!
//! A NAT whose mapping depends on the address alone, and not on the port, looks like `same` to a rendezvous with one address. So
//! when two of `same` have missed each other, one of them may be of that kind, and in later rounds each is taken for it in turn.

use super::class::Class;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Visitor,
    Provider,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// All candidates.
    Plain,
    /// And the next ports of a peer whose NAT counts.
    Predict,
    /// Our i-th new destination is their i-th next port, and the other way round.
    LockStep,
    /// Openers from many sockets, one of which the peer guesses.
    Spread,
    /// Guess a port of a peer that spreads.
    Guess,
    /// No UDP but to neighbours and over IPv6.
    Tcp,
}

impl Method {
    #[must_use]
    pub fn of(side: Side, round: u32, ours: Class, theirs: Class) -> Self {
        match (ours, theirs) {
            (Class::Blocked, _) | (_, Class::Blocked) => Self::Tcp,
            (Class::Steps(_), Class::Steps(_)) => Self::LockStep,
            (_, Class::Steps(_)) => Self::Predict,
            (Class::Steps(_), _) | (Class::Random, Class::Random) => Self::Plain,
            (Class::Random, _) => Self::Spread,
            (_, Class::Random) => Self::Guess,
            (Class::Open, Class::Open) => Self::Plain,
            (Class::Open | Class::Same | Class::Unclear, Class::Open | Class::Same | Class::Unclear) => {
                Self::by_turns(side, round)
            }
        }
    }

    fn by_turns(side: Side, round: u32) -> Self {
        let spreads = if round % 2 == 1 { Side::Visitor } else { Side::Provider };
        match round {
            0 => Self::Plain,
            _ if side == spreads => Self::Spread,
            _ => Self::Guess,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: [Class; 6] =
        [Class::Open, Class::Same, Class::Steps(1), Class::Random, Class::Blocked, Class::Unclear];

    #[test]
    fn both_sides_come_to_methods_that_match() {
        for (ours, theirs) in CLASSES.into_iter().flat_map(|ours| CLASSES.map(|theirs| (ours, theirs))) {
            for round in 0..4 {
                let visitor = Method::of(Side::Visitor, round, ours, theirs);
                let provider = Method::of(Side::Provider, round, theirs, ours);
                let matches = match visitor {
                    Method::Plain => matches!(provider, Method::Plain | Method::Predict),
                    Method::Predict => provider == Method::Plain,
                    Method::Spread => provider == Method::Guess,
                    Method::Guess => provider == Method::Spread,
                    Method::LockStep | Method::Tcp => provider == visitor,
                };
                assert!(matches, "{ours:?} {visitor:?}, {theirs:?} {provider:?}, round {round}");
            }
        }
    }

    #[test]
    fn two_fixed_mappings_that_missed_each_other_take_turns_in_guessing() {
        let methods = |side| (0..3).map(|round| Method::of(side, round, Class::Same, Class::Same)).collect::<Vec<_>>();
        assert_eq!(methods(Side::Visitor), [Method::Plain, Method::Spread, Method::Guess]);
        assert_eq!(methods(Side::Provider), [Method::Plain, Method::Guess, Method::Spread]);
    }
}
