//! The only place that asks what time it is.

use std::time::{Instant, SystemTime};

#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Wall clock, for people and for scripts only.
#[must_use]
pub fn wall() -> SystemTime {
    SystemTime::now()
}
