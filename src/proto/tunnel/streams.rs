//! All streams of a tunnel, and whose turn it is: nobody looks through all of them to find those that have something to do.

use std::collections::{HashMap, VecDeque};

use slab::Slab;

use super::deadlines::Deadlines;
use super::stream::{Stream, StreamId};

/// Where a stream stands in the table. Used again when it is gone.
pub type Place = usize;

/// What a stream may wait for. There is a queue for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// To tell acknowledgements, due or not, and windows.
    News,
    /// A thin one: to send segments that are new or lost.
    Thin,
    /// A bulky one: the same.
    Bulk,
    /// A thin one: to send again what is in flight.
    Repeats,
    /// To tell its owner that there is room.
    Room,
}

const TURNS: [Turn; 5] = [Turn::News, Turn::Thin, Turn::Bulk, Turn::Repeats, Turn::Room];

#[derive(Debug, Default)]
pub struct Streams {
    table: Slab<Stream>,
    places: HashMap<StreamId, Place>,
    /// The last one that was looked for: packets and readers come in runs.
    last: Option<(StreamId, Place)>,
    /// Each stream is in each queue at most once, as it knows itself.
    queues: [VecDeque<Place>; TURNS.len()],
    deadlines: Deadlines,
    /// Payload of all streams.
    in_flight: usize,
    /// Bulky ones that have lost a segment by its time-out, and may send it though the window is full. At most as many as there
    /// are streams.
    timed_out: usize,
    /// Some have news that cannot wait for company.
    has_urgent_news: bool,
}

impl Streams {
    pub fn insert(&mut self, stream: Stream) -> Place {
        let id = stream.id;
        let place = self.table.insert(stream);
        self.places.insert(id, place);
        place
    }

    /// Takes it out of everything.
    pub fn remove(&mut self, place: Place) -> Stream {
        let stream = self.table.remove(place);
        self.places.remove(&stream.id);
        self.last = None;
        self.deadlines.set(place as u32, None);
        self.in_flight -= stream.conversation.in_flight();
        for turn in TURNS.into_iter().filter(|turn| stream.queued[*turn as usize]) {
            self.queues[turn as usize].retain(|queued| *queued != place);
        }
        stream
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn find(&mut self, id: StreamId) -> Option<Place> {
        let place = self.look(id)?;
        self.last = Some((id, place));
        Some(place)
    }

    pub fn get(&self, id: StreamId) -> Option<&Stream> {
        self.table.get(self.look(id)?)
    }

    fn look(&self, id: StreamId) -> Option<Place> {
        let last = self.last.filter(|(last, _)| *last == id);
        last.map(|(_, place)| place).or_else(|| self.places.get(&id).copied())
    }

    /// For a place that is taken.
    pub fn at(&self, place: Place) -> &Stream {
        &self.table[place]
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Does something with a stream, then puts it where it has to wait.
    pub fn with<R>(&mut self, place: Place, act: impl FnOnce(&mut Stream) -> R) -> R {
        let stream = &mut self.table[place];
        self.in_flight -= stream.conversation.in_flight();
        let result = act(stream);
        self.in_flight += stream.conversation.in_flight();
        for turn in TURNS {
            if stream.wants(turn) && !std::mem::replace(&mut stream.queued[turn as usize], true) {
                self.queues[turn as usize].push_back(place);
            }
        }
        self.has_urgent_news |= stream.conversation.has_acks() || stream.conversation.has_probe();
        self.deadlines.set(place as u32, stream.conversation.next_timeout());
        result
    }

    /// For all, which is seldom necessary. Nothing may come of it that a stream has to wait for.
    pub fn for_each(&mut self, mut act: impl FnMut(&mut Stream)) {
        self.table.iter_mut().for_each(|(_, stream)| act(stream));
    }

    /// [`Self::with`] for all.
    pub fn with_each(&mut self, mut act: impl FnMut(&mut Stream)) {
        let places: Vec<Place> = self.table.iter().map(|(place, _)| place).collect();
        places.into_iter().for_each(|place| self.with(place, &mut act));
    }

    /// How many wait for their turn.
    pub fn waiting(&self, turn: Turn) -> usize {
        self.queues[turn as usize].len()
    }

    /// The one that has waited longest, out of its queue: it comes back by [`Self::with`] if it still wants a turn.
    pub fn next(&mut self, turn: Turn) -> Option<Place> {
        let place = self.queues[turn as usize].pop_front()?;
        self.table[place].queued[turn as usize] = false;
        Some(place)
    }

    /// Whether a packet is to be made for news alone.
    pub fn has_urgent_news(&mut self) -> bool {
        self.has_urgent_news &= self.waiting(Turn::News) > 0;
        self.has_urgent_news
    }

    /// If it has just been put at the end of the queue, puts it at its front instead: it had no turn.
    pub fn give_back(&mut self, turn: Turn, place: Place) {
        let queue = &mut self.queues[turn as usize];
        if queue.back() == Some(&place) {
            queue.rotate_right(1);
        }
    }

    pub fn next_timeout(&self) -> Option<u64> {
        self.deadlines.first().map(|(at, _)| at)
    }

    pub fn handle_timeout(&mut self, now: u64) {
        while let Some(place) = self.deadlines.pop_due(now) {
            let has_lost = self.with(place as usize, |stream| {
                let before = stream.conversation.in_flight();
                stream.conversation.handle_timeout(now);
                stream.class.is_bulk() && stream.conversation.in_flight() < before
            });
            self.timed_out += usize::from(has_lost);
        }
        self.timed_out = self.timed_out.min(self.table.len());
    }

    /// Whether a bulky one has found a segment lost by its time-out, once for each.
    pub fn take_timed_out(&mut self) -> bool {
        let has_timed_out = self.timed_out > 0;
        self.timed_out = self.timed_out.saturating_sub(1);
        has_timed_out
    }
}

/// In which queues a stream is.
pub type Queued = [bool; TURNS.len()];
