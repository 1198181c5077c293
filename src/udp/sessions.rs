//! Who plays by datagrams: at the visitor each player has a number, at the provider each number has a socket of its own, so
//! that the service tells players apart as if they were there.
//!
//! Nobody says goodbye by datagrams: a session that is silent is forgotten after a while, sooner while there are too many, or
//! while nobody new may come. At the bound newcomers are not heard.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::limits;

/// Sessions are looked through so often for silent ones.
const SWEEP: Duration = Duration::from_secs(1);

/// Sessions by what tells players apart here (`K`), each with what is known of it (`T`).
#[derive(Debug)]
pub(super) struct Sessions<K, T> {
    table: Slab<Session<K, T>>,
    of: HashMap<K, usize>,
    generations: u16,
    next_sweep: Option<Instant>,
}

#[derive(Debug)]
struct Session<K, T> {
    key: K,
    number: u32,
    active: Instant,
    content: T,
}

impl<K: Copy + Eq + Hash, T> Sessions<K, T> {
    pub(super) fn new() -> Self {
        Self { table: Slab::new(), of: HashMap::new(), generations: 0, next_sweep: None }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// The session of a key, which is heard of at this moment; a new one is made by `content` from its number. The number is not
    /// used again soon: it is the place in the table, below a generation.
    pub(super) fn get_or_insert(
        &mut self,
        key: K,
        now: Instant,
        content: impl FnOnce(u32) -> Option<T>,
    ) -> Option<(u32, &mut T)> {
        let at = match self.of.get(&key) {
            Some(&at) => at,
            None if self.table.len() >= limits::SESSIONS_MAX => return None,
            None => {
                let entry = self.table.vacant_entry();
                let at = entry.key();
                self.generations = self.generations.wrapping_add(1);
                let number = u32::from(self.generations) << 16 | at as u32;
                entry.insert(Session { key, number, active: now, content: content(number)? });
                self.of.insert(key, at);
                self.next_sweep.get_or_insert(now + SWEEP);
                at
            }
        };
        let session = &mut self.table[at];
        session.active = now;
        Some((session.number, &mut session.content))
    }

    /// The session with a number, which is heard of at this moment.
    pub(super) fn by_number(&mut self, number: u32, now: Instant) -> Option<(K, &mut T)> {
        let session = self.table.get_mut(number as usize & 0xffff).filter(|session| session.number == number)?;
        session.active = now;
        Some((session.key, &mut session.content))
    }

    /// As [`Self::by_number`], without a sign of life.
    pub(super) fn peek_number(&mut self, number: u32) -> Option<(K, &mut T)> {
        let session = self.table.get_mut(number as usize & 0xffff).filter(|session| session.number == number)?;
        Some((session.key, &mut session.content))
    }

    pub(super) fn knows(&self, key: &K) -> bool {
        self.of.contains_key(key)
    }

    /// When to sweep next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next_sweep
    }

    /// Forgets those that were silent for too long; hands out what was known of them.
    pub(super) fn sweep(&mut self, now: Instant, closing: bool, mut forgotten: impl FnMut(K, T)) {
        if self.next_sweep.is_none_or(|at| now < at) {
            return;
        }
        let short = closing || self.table.len() >= limits::SESSIONS_MAX;
        let idle = if short { limits::SESSION_IDLE_SHORT } else { limits::SESSION_IDLE };
        self.remove_where(|_, active| active + idle <= now, &mut forgotten);
        self.next_sweep = (!self.table.is_empty()).then(|| now + SWEEP);
    }

    pub(super) fn remove_where(&mut self, gone: impl Fn(&K, Instant) -> bool, mut forgotten: impl FnMut(K, T)) {
        let places: Vec<_> =
            self.table.iter().filter(|(_, session)| gone(&session.key, session.active)).map(|(at, _)| at).collect();
        for at in places {
            let session = self.table.remove(at);
            self.of.remove(&session.key);
            forgotten(session.key, session.content);
        }
    }
}

const _: () = assert!(limits::SESSIONS_MAX <= 1 << 16, "places fit below the generation");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    #[test]
    fn a_silent_session_is_forgotten_and_its_number_leads_to_nobody() {
        let (mut sessions, start) = (Sessions::new(), clock::now());
        let (silent, _) = sessions.get_or_insert("silent", start, |_| Some(1)).expect("there is room");
        let (talking, _) = sessions.get_or_insert("talking", start, |_| Some(2)).expect("there is room");
        let late = start + limits::SESSION_IDLE;
        assert_eq!(sessions.by_number(talking, late), Some(("talking", &mut 2)));
        let mut gone = Vec::new();
        sessions.sweep(late, false, |key, content| gone.push((key, content)));
        assert_eq!(gone, [("silent", 1)]);
        let (newcomer, _) = sessions.get_or_insert("newcomer", late, |_| Some(3)).expect("there is room");
        assert_ne!(newcomer, silent);
        assert_eq!(sessions.by_number(silent, late), None);
        assert_eq!(sessions.by_number(newcomer, late), Some(("newcomer", &mut 3)));
    }

    #[test]
    fn when_there_are_too_many_newcomers_wait_until_somebody_has_been_silent_for_a_moment() {
        let (mut sessions, start) = (Sessions::new(), clock::now());
        for player in 0..limits::SESSIONS_MAX {
            assert!(sessions.get_or_insert(player, start, |_| Some(())).is_some());
        }
        assert!(sessions.get_or_insert(usize::MAX, start, |_| Some(())).is_none());
        let (later, _) = (start + limits::SESSION_IDLE_SHORT, sessions.get_or_insert(7, start + SWEEP, |_| None));
        sessions.sweep(later, false, |_, ()| {});
        assert_eq!(sessions.len(), 1, "the one who talked is still there");
        assert!(sessions.get_or_insert(usize::MAX, later, |_| Some(())).is_some());
    }

    #[test]
    fn nothing_is_to_be_swept_where_nobody_plays() {
        let (mut sessions, start) = (Sessions::<u8, ()>::new(), clock::now());
        assert_eq!(sessions.deadline(), None);
        sessions.get_or_insert(1, start, |_| Some(()));
        assert_eq!(sessions.deadline(), Some(start + SWEEP));
        sessions.sweep(start + limits::SESSION_IDLE, false, |_, ()| {});
        assert_eq!((sessions.len(), sessions.deadline()), (0, None));
    }
}
