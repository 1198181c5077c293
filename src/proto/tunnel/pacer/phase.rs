//! The turns in which a path is asked what it bears, and how fast and how much is sent in each.
//!
//! ```text
//! Startup > Drain > Cruise > Up > Down > Cruise > ...        and at times Dip, after which Cruise
//! ```
//!
//! * `Startup` doubles the rate in each round trip until that brings no more, or a queue begins to grow. `Drain` empties it.
//! * `Up` asks whether there is more, `Down` takes back what it queued. After an `Up` that did bring more comes a longer one, soon.
//! * `Cruise` is a little slower than the path, and slower still while a queue stands: it is another tunnel's, or due to an
//!   estimate that noise has made too high.
//! * `Dip` sends little, so that others' queues empty too and the shortest round trip shows: when it was not seen for long, or
//!   cannot be right.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Startup,
    Drain,
    Up,
    Down,
    Cruise {
        until: u64,
    },
    /// `until` is known once little is in flight.
    Dip {
        until: Option<u64>,
    },
}

/// Rates, in percent of the path's.
const STARTUP_GAIN: u64 = 277;
const DRAIN_GAIN: u64 = 36;
pub const UP_MORE: u64 = 25;
const UP_GAIN: u64 = 100 + UP_MORE;
const DOWN_GAIN: u64 = 75;
/// Below 100, so that a queue of unknown origin goes away.
const CRUISE_GAIN: u64 = 98;
/// A standing queue slows a cruise down so that it would be gone after three round trips, but no more than this.
const CRUISE_SLOWER_MAX: u64 = 10;

/// Windows, in percent of what is on its way at the path's rate. That of a startup is lower than its rate, or it would leave a
/// queue of almost two round trips.
const STARTUP_WINDOW: u64 = 200;
const WINDOW: u64 = 175;
const DIP_WINDOW: u64 = 50;

impl Phase {
    /// Of the rate, while a queue stands that is so many percent of the shortest round trip.
    pub fn gain(self, standing_percent: u64) -> u64 {
        match self {
            Self::Startup => STARTUP_GAIN,
            Self::Drain => DRAIN_GAIN,
            Self::Up => UP_GAIN,
            Self::Down => DOWN_GAIN,
            Self::Cruise { .. } => CRUISE_GAIN - (standing_percent / 3).min(CRUISE_SLOWER_MAX),
            Self::Dip { .. } => CRUISE_GAIN,
        }
    }

    /// Of what is on its way when the path is full and no queue is.
    pub fn window(self) -> u64 {
        match self {
            Self::Startup => STARTUP_WINDOW,
            Self::Drain | Self::Up | Self::Down | Self::Cruise { .. } => WINDOW,
            Self::Dip { .. } => DIP_WINDOW,
        }
    }
}
