//! One UDP socket's worth of tunnels: tells them apart by the ids that packets begin with, answers handshakes and begins them.
//!
//! A tunnel that something was done with is *ready* until it has no more to send, and only then its deadline is looked at. So
//! nobody looks through all of them.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use slab::Slab;

use super::deadlines::Deadlines;
use super::events::{Event, LostReason};
use super::greeter::{Greeter, Greeting, Pending, Stranger};
use super::handshake::{ANSWER_BYTES, Initiator, OFFER_BYTES};
use super::keys::Key;
use super::peer::{Beginning, Role, Tunnel};
use super::random::Random;
use super::sessions::Origin;
use super::wire::{HANDSHAKE_NUMBER, Header, Id, Offer, ServiceName};
use super::{Service, Settings, Transmit, TunnelId};

/// Time after which an offer is repeated, in µs; doubled each time, up to this.
const REPEAT_FIRST_US: u64 = 250_000;
const REPEAT_MAX_US: u64 = 5_000_000;

/// Answers to handshakes that wait to be sent. Over it the oldest is dropped: it is asked for again.
const ANSWERS_MAX: usize = 128;

#[derive(Debug)]
pub struct Endpoint {
    settings: Settings,
    random: Random,
    greeter: Greeter,
    /// Who gets the packets to an id.
    ids: HashMap<Id, Receiver>,
    slots: Slab<Slot>,
    serial: u64,
    deadlines: Deadlines,
    /// Places of those that may have something to send, and of those that may have events.
    ready: VecDeque<u32>,
    news: VecDeque<u32>,
    answers: VecDeque<(SocketAddr, [u8; ANSWER_BYTES])>,
    /// Of tunnels that never began.
    events: VecDeque<(TunnelId, Event)>,
}

#[derive(Clone, Copy, Debug)]
enum Receiver {
    /// An answer of ours that nobody has used yet.
    Greeter,
    Slot(u32),
}

#[derive(Debug)]
struct Slot {
    id: TunnelId,
    is_ready: bool,
    has_news: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Connecting(Box<Connecting>),
    Tunnel(Box<Tunnel>),
}

/// An offer that was not answered yet.
#[derive(Debug)]
struct Connecting {
    remote: SocketAddr,
    key: Arc<Key>,
    name: ServiceName,
    initiator: Initiator,
    id: Id,
    offer: [u8; OFFER_BYTES],
    send_at: u64,
    repeat_after: u64,
    give_up_at: u64,
    /// When it was sent, while that was only once.
    sent_once: Option<u64>,
    was_sent: bool,
}

impl Endpoint {
    /// `seed` must be random and secret: ids and keys come from it.
    #[must_use]
    pub fn new(settings: Settings, seed: [u8; 32]) -> Self {
        Self {
            greeter: Greeter::new(settings.handshakes_per_second, &seed),
            settings,
            random: Random::new(seed),
            ids: HashMap::new(),
            slots: Slab::new(),
            serial: 0,
            deadlines: Deadlines::default(),
            ready: VecDeque::new(),
            news: VecDeque::new(),
            answers: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Answers visitors who know `key` and ask for that service. Once more for the same name replaces it.
    pub fn serve(&mut self, key: Arc<Key>, name: ServiceName, service: Service) {
        self.greeter.serve(key, name, service);
    }

    /// Answers no more visitors of the service; its tunnels go on.
    pub fn withdraw(&mut self, name: &ServiceName) {
        self.greeter.withdraw(name);
    }

    /// Begins a tunnel to the provider of a service: [`Event::Established`] or [`Event::Lost`] tells what became of it. `None`
    /// while there are as many tunnels as there may be.
    pub fn connect(&mut self, now: u64, peer: SocketAddr, key: Arc<Key>, service: ServiceName) -> Option<TunnelId> {
        if self.slots.len() >= self.settings.tunnels_max {
            return None;
        }
        let id = self.new_id();
        let offer = Offer { id, has_aes: self.settings.has_aes, service };
        let (initiator, offer) = Initiator::new(&key, &offer, &mut self.random);
        let place = self.insert(State::Connecting(Box::new(Connecting {
            remote: peer,
            key,
            name: service,
            initiator,
            id,
            offer,
            send_at: now,
            repeat_after: REPEAT_FIRST_US,
            give_up_at: now + self.settings.handshake_us,
            sent_once: None,
            was_sent: false,
        })));
        self.ids.insert(id, Receiver::Slot(place));
        Some(self.slots[place as usize].id)
    }

    /// Forgets a tunnel at once, whatever its state. Nobody is told.
    pub fn forget(&mut self, id: TunnelId) {
        if let Some(place) = self.place(id) {
            self.remove(place);
        }
    }

    /// Takes a datagram, which it decrypts where it stands, and tells whose it was. Whatever is not authentic changes nothing.
    pub fn handle_datagram(&mut self, now: u64, from: SocketAddr, datagram: &mut [u8]) -> Option<TunnelId> {
        let Header { id, number } = Header::parse(datagram).ok()?;
        let place = match self.ids.get(&id) {
            Some(Receiver::Slot(place)) => {
                let place = *place;
                self.handle_for_slot(now, from, place, datagram).then_some(place)
            }
            Some(Receiver::Greeter) => self.begin_tunnel(now, from, id, datagram),
            None if number == HANDSHAKE_NUMBER && self.greeter.knows(id) => {
                self.greet(now, from, id, datagram);
                None
            }
            None => None,
        }?;
        self.tend(now, place);
        self.touch(place);
        Some(self.slots[place as usize].id)
    }

    /// A tunnel that is established. `None` before that, and once it is gone.
    pub fn tunnel(&mut self, id: TunnelId) -> Option<&mut Tunnel> {
        let place = self.place(id)?;
        self.touch(place);
        match &mut self.slots[place as usize].state {
            State::Tunnel(tunnel) => Some(tunnel),
            State::Connecting(_) => None,
        }
    }

    /// Appends datagrams of one size (the last may be shorter) for one address to `out`. `None` when there is nothing to send
    /// now. Several tunnels take turns.
    pub fn poll_transmit(&mut self, now: u64, out: &mut Vec<u8>) -> Option<Transmit> {
        if let Some((to, answer)) = self.answers.pop_front() {
            out.extend_from_slice(&answer);
            return Some(Transmit { to, segment_bytes: answer.len(), is_mtu_probe: false });
        }
        while let Some(place) = self.ready.pop_front() {
            let slot = &mut self.slots[place as usize];
            if let Some(transmit) = slot.state.poll_transmit(now, out) {
                self.ready.push_back(place);
                return Some(transmit);
            }
            slot.is_ready = false;
            let timeout = slot.state.next_timeout();
            self.deadlines.set(place, (timeout < u64::MAX).then_some(timeout));
            self.tend(now, place);
        }
        None
    }

    pub fn poll_event(&mut self) -> Option<(TunnelId, Event)> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        while let Some(place) = self.news.front().copied() {
            let slot = &mut self.slots[place as usize];
            if let State::Tunnel(tunnel) = &mut slot.state {
                if let Some(event) = tunnel.events.pop_front() {
                    return Some((slot.id, event));
                }
                if tunnel.is_gone() {
                    self.remove(place);
                    continue;
                }
            }
            slot.has_news = false;
            self.news.pop_front();
        }
        None
    }

    /// When to come back, if nothing else happens before: at once (a time that has passed) while something may be to be sent.
    /// `None` when there is nothing to wait for.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        if !self.ready.is_empty() || !self.answers.is_empty() {
            return Some(0);
        }
        let first = self.deadlines.first().map(|(at, _)| at);
        first.into_iter().chain(self.greeter.next_timeout()).min()
    }

    /// Does what is due. Then events are to be heard and datagrams to be sent.
    pub fn handle_timeout(&mut self, now: u64) {
        self.forget_stale_answers(now);
        while let Some(place) = self.deadlines.pop_due(now) {
            let slot = &mut self.slots[place as usize];
            match &mut slot.state {
                State::Connecting(connecting) if connecting.give_up_at <= now => {
                    self.events.push_back((slot.id, Event::Lost(LostReason::Unanswered)));
                    self.remove(place);
                    continue;
                }
                State::Connecting(_) => {}
                State::Tunnel(tunnel) => tunnel.handle_timeout(now),
            }
            self.tend(now, place);
            self.touch(place);
        }
    }

    /// Handshakes that were answered and wait for a first packet.
    #[must_use]
    pub fn waiting_handshakes(&self) -> usize {
        self.greeter.waiting()
    }

    /// Streams of all tunnels that are not forgotten: the peer may not have read what was written to them.
    #[must_use]
    pub fn streams(&self) -> usize {
        let of = |slot: &Slot| match &slot.state {
            State::Connecting(_) => 0,
            State::Tunnel(tunnel) => tunnel.streams.len(),
        };
        self.slots.iter().map(|(_, slot)| of(slot)).sum()
    }

    // Handshakes.

    fn greet(&mut self, now: u64, from: SocketAddr, to: Id, datagram: &[u8]) {
        let new_id = self.new_id();
        let has_aes = self.settings.has_aes;
        let answer = match self.greeter.greet(now, Stranger { from, to, datagram }, has_aes, new_id, &mut self.random) {
            Greeting::New(answer) => {
                self.ids.insert(new_id, Receiver::Greeter);
                self.forget_stale_answers(now);
                answer
            }
            Greeting::Again(answer) => answer,
            Greeting::Silence => return,
        };
        self.answers.push_back((from, answer));
        if self.answers.len() > ANSWERS_MAX {
            self.answers.pop_front();
        }
    }

    fn forget_stale_answers(&mut self, now: u64) {
        while let Some(id) = self.greeter.pop_stale(now) {
            self.ids.remove(&id);
        }
    }

    /// Provider: an answer was heard, if this is the first packet.
    fn begin_tunnel(&mut self, now: u64, from: SocketAddr, id: Id, datagram: &mut [u8]) -> Option<u32> {
        let bytes = datagram.len();
        let opened = self.greeter.pending(id)?.session.open(now, datagram).ok()?;
        if self.slots.len() >= self.settings.tunnels_max {
            return None; // It may come again.
        }
        let Pending { session, key, name, service, .. } = self.greeter.take(id)?;
        let (role, seed) = (Role::Provider, self.random.draw());
        let beginning = Beginning { role, remote: from, name, service, key, session, seed, rtt_us: None };
        let mut tunnel = Tunnel::new(now, &self.settings, beginning);
        tunnel.handle_opened(now, from, bytes, opened, Origin::Current);
        let place = self.insert(State::Tunnel(Box::new(tunnel)));
        self.ids.insert(id, Receiver::Slot(place));
        Some(place)
    }

    /// Whether the datagram was authentic.
    fn handle_for_slot(&mut self, now: u64, from: SocketAddr, place: u32, datagram: &mut [u8]) -> bool {
        match &mut self.slots[place as usize].state {
            State::Tunnel(tunnel) => tunnel.handle_datagram(now, from, datagram),
            State::Connecting(connecting) => {
                let seed = self.random.draw();
                let Some(tunnel) = connecting.finish(now, from, datagram, &self.settings, seed) else { return false };
                self.slots[place as usize].state = State::Tunnel(Box::new(tunnel));
                true
            }
        }
    }

    /// Sees to new sessions of a tunnel, and to ids that it no longer has.
    fn tend(&mut self, now: u64, place: u32) {
        let State::Tunnel(tunnel) = &mut self.slots[place as usize].state else { return };
        while let Some(id) = tunnel.sessions.pop_retired() {
            self.ids.remove(&id);
        }
        if !tunnel.wants_new_id(now) {
            return;
        }
        let id = self.new_id();
        let State::Tunnel(tunnel) = &mut self.slots[place as usize].state else { return };
        if tunnel.renew(now, id, &mut self.random) {
            self.ids.insert(id, Receiver::Slot(place));
        }
    }

    /// Random, and nobody else's.
    fn new_id(&mut self) -> Id {
        loop {
            let mut id = Id(self.random.draw());
            if let Some(first) = self.settings.ids_begin_with {
                id.0[0] = first;
            }
            if !self.ids.contains_key(&id) && !self.greeter.knows(id) {
                return id;
            }
        }
    }

    // Slots.

    fn insert(&mut self, state: State) -> u32 {
        self.serial += 1;
        let entry = self.slots.vacant_entry();
        let place = entry.key() as u32;
        entry.insert(Slot { id: TunnelId { place, serial: self.serial }, is_ready: false, has_news: false, state });
        self.touch(place);
        place
    }

    fn place(&self, id: TunnelId) -> Option<u32> {
        self.slots.get(id.place as usize).filter(|slot| slot.id == id).map(|slot| slot.id.place)
    }

    /// Something was done with it: it may have something to send, or to tell.
    fn touch(&mut self, place: u32) {
        let slot = &mut self.slots[place as usize];
        if !std::mem::replace(&mut slot.is_ready, true) {
            self.ready.push_back(place);
        }
        if !std::mem::replace(&mut slot.has_news, true) {
            self.news.push_back(place);
        }
    }

    fn remove(&mut self, place: u32) {
        let slot = self.slots.remove(place as usize);
        self.deadlines.set(place, None);
        self.ready.retain(|other| *other != place);
        self.news.retain(|other| *other != place);
        match slot.state {
            State::Connecting(connecting) => _ = self.ids.remove(&connecting.id),
            State::Tunnel(mut tunnel) => {
                while let Some(id) = tunnel.sessions.pop_retired() {
                    self.ids.remove(&id);
                }
                tunnel.sessions.ids().for_each(|id| _ = self.ids.remove(&id));
            }
        }
    }
}

impl State {
    fn poll_transmit(&mut self, now: u64, out: &mut Vec<u8>) -> Option<Transmit> {
        match self {
            Self::Connecting(connecting) => connecting.poll_transmit(now, out),
            Self::Tunnel(tunnel) => tunnel.poll_transmit(now, out),
        }
    }

    fn next_timeout(&self) -> u64 {
        match self {
            Self::Connecting(connecting) => connecting.send_at.min(connecting.give_up_at),
            Self::Tunnel(tunnel) => tunnel.next_timeout(),
        }
    }
}

impl Connecting {
    fn poll_transmit(&mut self, now: u64, out: &mut Vec<u8>) -> Option<Transmit> {
        if self.send_at > now {
            return None;
        }
        self.sent_once = if self.was_sent { None } else { Some(now) };
        self.was_sent = true;
        self.send_at = now + self.repeat_after;
        self.repeat_after = (2 * self.repeat_after).min(REPEAT_MAX_US);
        out.extend_from_slice(&self.offer);
        Some(Transmit { to: self.remote, segment_bytes: self.offer.len(), is_mtu_probe: false })
    }

    /// The tunnel, if this is the answer. It goes to where the answer came from.
    fn finish(
        &mut self,
        now: u64,
        from: SocketAddr,
        datagram: &[u8],
        settings: &Settings,
        seed: [u8; 32],
    ) -> Option<Tunnel> {
        let (answer, session) = self.initiator.finish(now, datagram).ok()?;
        let service = Service {
            tcp_ports: answer.tcp_ports,
            udp_ports: answer.udp_ports,
            wants_addresses: answer.wants_addresses,
        };
        let rtt_us = self.sent_once.map(|sent| now.saturating_sub(sent).max(1));
        let (role, key) = (Role::Visitor, self.key.clone());
        Some(Tunnel::new(
            now,
            settings,
            Beginning { role, remote: from, name: self.name, service, key, session, seed, rtt_us },
        ))
    }
}
