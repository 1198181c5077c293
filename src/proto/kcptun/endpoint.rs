//! One UDP socket's worth of sessions: finds the one that a packet is for, and makes a new one when a client begins.
//!
//! A session is known by the address of its peer, as in kcp-go: packets of parity do not say whose they are. A client that
//! begins again from the same address replaces its session.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use super::crypt::{Key, Random};
use super::fec::{self, Content};
use super::session::Session;
use super::{Event, LostReason, Settings};
use crate::proto::kcp::segment::{Command, Header};

/// One session of an endpoint. Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

/// Datagrams to be sent, as they stand at the end of the buffer: all but the last have `segment_bytes`, the last has as many
/// or fewer. Ready for `UDP_SEGMENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    pub to: SocketAddr,
    pub segment_bytes: usize,
}

#[derive(Debug)]
pub struct Endpoint {
    settings: Settings,
    key: Key,
    random: Random,
    serves: bool,
    /// The last that was given.
    id: u64,
    sessions: BTreeMap<SessionId, Entry>,
    by_peer: BTreeMap<SocketAddr, SessionId>,
    /// Sessions that may have something to tell, and something to send. Each at most once in either.
    to_hear: VecDeque<SessionId>,
    to_send: VecDeque<SessionId>,
    deadlines: BTreeSet<(u64, SessionId)>,
    checksum_errors: u64,
}

#[derive(Debug)]
struct Entry {
    peer: SocketAddr,
    session: Session,
    is_to_hear: bool,
    is_to_send: bool,
    deadline: Option<u64>,
}

impl Endpoint {
    /// Reaches servers.
    ///
    /// # Panics
    /// When the settings do not pass [`Settings::check`].
    #[must_use]
    pub fn client(settings: Settings, key: Key, seed: [u8; 32]) -> Self {
        Self::new(settings, key, seed, false)
    }

    /// Lets clients begin sessions.
    ///
    /// # Panics
    /// When the settings do not pass [`Settings::check`].
    #[must_use]
    pub fn server(settings: Settings, key: Key, seed: [u8; 32]) -> Self {
        Self::new(settings, key, seed, true)
    }

    fn new(settings: Settings, key: Key, seed: [u8; 32], serves: bool) -> Self {
        settings.check().expect("settings that were checked");
        Self {
            settings,
            key,
            random: Random::new(seed),
            serves,
            id: 0,
            sessions: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            to_hear: VecDeque::new(),
            to_send: VecDeque::new(),
            deadlines: BTreeSet::new(),
            checksum_errors: 0,
        }
    }

    /// Begins a session with a server. `None` while there is one: of two from one socket it would know the later only.
    pub fn connect(&mut self, now: u64, server: SocketAddr) -> Option<SessionId> {
        if self.by_peer.contains_key(&server) {
            return None;
        }
        let session = Session::client(&self.settings, self.key.clone(), self.random.seed(), now);
        Some(self.insert(server, session))
    }

    fn insert(&mut self, peer: SocketAddr, session: Session) -> SessionId {
        self.id += 1;
        let id = SessionId(self.id);
        self.by_peer.insert(peer, id);
        self.sessions.insert(id, Entry { peer, session, is_to_hear: false, is_to_send: false, deadline: None });
        self.touch(id);
        id
    }

    /// Takes a packet, which it deciphers where it lies. Tells whose it was; that session may have something to tell.
    pub fn handle_datagram(&mut self, now: u64, from: SocketAddr, datagram: &mut [u8]) -> Option<SessionId> {
        let bytes = datagram.len();
        let Some(payload) = self.key.open(datagram) else {
            self.checksum_errors += 1;
            return None;
        };
        let id = self.session_for(now, from, payload)?;
        self.touch(id).session.handle_payload(now, payload, bytes);
        Some(id)
    }

    /// The session that a packet is for, made if the packet begins one.
    fn session_for(&mut self, now: u64, from: SocketAddr, payload: &[u8]) -> Option<SessionId> {
        let known = self.by_peer.get(&from).copied();
        let beginning = self.beginning(payload);
        if let Some(id) = known {
            let is_new = beginning.is_some_and(|header| {
                header.number == 0 && header.conversation != self.sessions[&id].session.conversation()
            });
            if !is_new {
                return Some(id);
            }
            self.lose(id, LostReason::Replaced);
        }
        let conversation = beginning?.conversation;
        if self.sessions.len() >= self.settings.sessions_max {
            return None;
        }
        let session = Session::server(&self.settings, self.key.clone(), self.random.seed(), now, conversation);
        Some(self.insert(from, session))
    }

    /// The header of a segment that a session may begin with: one of the first that a client sends.
    fn beginning(&self, payload: &[u8]) -> Option<Header> {
        let segments = match fec::content(payload) {
            Content::Plain(segments) | Content::Data(segments) => segments,
            Content::Parity => return None,
        };
        let (header, _, _) = Header::decode(segments)?;
        let is_early = header.command == Command::Push && header.number < u32::from(self.settings.receive_window);
        (self.serves && is_early).then_some(header)
    }

    /// The session, to deal with its streams. `None` when it is gone.
    pub fn session(&mut self, id: SessionId) -> Option<&mut Session> {
        self.sessions.contains_key(&id).then(|| &mut self.touch(id).session)
    }

    #[must_use]
    pub fn peer(&self, id: SessionId) -> Option<SocketAddr> {
        self.sessions.get(&id).map(|entry| entry.peer)
    }

    /// Forgets a session. The protocol has no word for that: the peer will notice the silence.
    pub fn close(&mut self, id: SessionId) {
        self.remove(id);
    }

    /// Streams of all sessions that are not forgotten, or whose last bytes the peer may not have.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.sessions.values().map(|entry| entry.session.unfinished()).sum()
    }

    /// Packets that were not sealed with our key, or damaged.
    #[must_use]
    pub fn checksum_errors(&self) -> u64 {
        self.checksum_errors
    }

    /// What has happened. A session is gone with [`Event::Lost`].
    pub fn poll_event(&mut self) -> Option<(SessionId, Event)> {
        while let Some(id) = self.to_hear.pop_front() {
            let Some(entry) = self.sessions.get_mut(&id) else { continue };
            entry.is_to_hear = false;
            let Some(event) = entry.session.poll_event() else { continue };
            match event {
                Event::Lost(_) => self.remove(id),
                _ => _ = self.touch(id),
            }
            return Some((id, event));
        }
        None
    }

    /// Appends datagrams for one address. `None` when there is nothing to send now.
    pub fn poll_transmit(&mut self, now: u64, out: &mut Vec<u8>) -> Option<Transmit> {
        while let Some(id) = self.to_send.pop_front() {
            let Some(entry) = self.sessions.get_mut(&id) else { continue };
            let size = entry.session.poll_transmit(now, out);
            entry.is_to_send = size.is_some();
            let to = entry.peer;
            if let Some(segment_bytes) = size {
                self.to_send.push_back(id); // After the others.
                return Some(Transmit { to, segment_bytes });
            }
            self.settle(id);
        }
        self.forget_the_quiet();
        None
    }

    /// When [`Self::handle_timeout`] has something to do, if nothing else happens before; 0 as long as something waits to be
    /// sent or told. `None` without sessions.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        if !self.to_hear.is_empty() || !self.to_send.is_empty() {
            return Some(0);
        }
        self.deadlines.first().map(|(at, _)| *at)
    }

    pub fn handle_timeout(&mut self, now: u64) {
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now
        {
            self.touch(id).session.handle_timeout(now);
        }
    }

    /// The session may have something to tell and to send from now on, and no deadline until it was asked.
    ///
    /// # Panics
    /// When there is no such session.
    fn touch(&mut self, id: SessionId) -> &mut Entry {
        let entry = self.sessions.get_mut(&id).expect("a session that is there");
        if let Some(deadline) = entry.deadline.take() {
            self.deadlines.remove(&(deadline, id));
        }
        if !std::mem::replace(&mut entry.is_to_hear, true) {
            self.to_hear.push_back(id);
        }
        if !std::mem::replace(&mut entry.is_to_send, true) {
            self.to_send.push_back(id);
        }
        entry
    }

    /// It has sent what it had, and waits for its deadline; or has something to tell.
    fn settle(&mut self, id: SessionId) {
        let Some(entry) = self.sessions.get_mut(&id) else { return };
        if !std::mem::replace(&mut entry.is_to_hear, true) {
            self.to_hear.push_back(id);
        }
        if let Some(old) = std::mem::replace(&mut entry.deadline, entry.session.next_timeout()) {
            self.deadlines.remove(&(old, id));
        }
        self.deadlines.extend(entry.deadline.map(|deadline| (deadline, id)));
    }

    /// Of all that might have something to tell, those stay that do.
    fn forget_the_quiet(&mut self) {
        let Self { sessions, to_hear, .. } = self;
        to_hear.retain(|id| {
            sessions.get_mut(id).is_some_and(|entry| {
                entry.is_to_hear = entry.session.has_event();
                entry.is_to_hear
            })
        });
    }

    fn lose(&mut self, id: SessionId, reason: LostReason) {
        let entry = self.touch(id);
        entry.session.lose(reason);
        let peer = entry.peer;
        self.by_peer.remove(&peer);
    }

    fn remove(&mut self, id: SessionId) {
        let Some(entry) = self.sessions.remove(&id) else { return };
        if self.by_peer.get(&entry.peer) == Some(&id) {
            self.by_peer.remove(&entry.peer);
        }
        entry.deadline.into_iter().for_each(|deadline| {
            self.deadlines.remove(&(deadline, id));
        });
        self.to_hear.retain(|waiting| *waiting != id);
        self.to_send.retain(|waiting| *waiting != id);
    }
}
