//! When a port that a router has lent us is to be asked for again: at half of its time, and while the router says nothing at half
//! of what is left, as DHCP does it.

/// Routers that lend for a moment are not asked more often, in µs; those that lend for years may be replaced by another one
/// meanwhile, which knows nothing.
const LENT_MIN_US: u64 = 20_000_000;
const LENT_MAX_US: u64 = 7_200_000_000;

/// Between two attempts while the router says nothing, in µs.
const RETRY_MIN_US: u64 = 10_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    renew_at: u64,
    ends_at: u64,
}

impl Lease {
    /// As the router has granted it now.
    #[must_use]
    pub fn new(now: u64, lent_us: u64) -> Self {
        let lent = lent_us.clamp(LENT_MIN_US, LENT_MAX_US);
        Self { renew_at: now + lent / 2, ends_at: now + lent }
    }

    /// When to ask the router again.
    #[must_use]
    pub fn renew_at(&self) -> u64 {
        self.renew_at
    }

    /// The router did not renew it. What is left of it, or `None` when it has ended.
    #[must_use]
    pub fn after_failure(self, now: u64) -> Option<Self> {
        let left = self.ends_at.checked_sub(now).filter(|left| *left > 0)?;
        Some(Self { renew_at: now + (left / 2).max(RETRY_MIN_US).min(left), ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_lease_is_renewed_at_half_of_its_time() {
        assert_eq!(Lease::new(5 * SECOND, 3_600 * SECOND).renew_at(), 1_805 * SECOND);
    }

    #[test]
    fn no_router_makes_us_ask_without_end_or_never() {
        assert_eq!(Lease::new(0, 0).renew_at(), LENT_MIN_US / 2);
        assert_eq!(Lease::new(0, u64::MAX).renew_at(), LENT_MAX_US / 2);
    }

    #[test]
    fn a_router_that_is_silent_is_asked_ever_more_often_and_the_lease_ends() {
        let mut lease = Lease::new(0, 160 * SECOND);
        let mut asked = Vec::new();
        let ended = loop {
            let now = lease.renew_at();
            asked.push(now / SECOND);
            match lease.after_failure(now) {
                Some(left) => lease = left,
                None => break now,
            }
        };
        assert_eq!((asked, ended), (vec![80, 120, 140, 150, 160], 160 * SECOND));
    }

    #[test]
    fn a_lease_that_was_not_looked_at_in_time_has_ended() {
        assert_eq!(Lease::new(0, 60 * SECOND).after_failure(61 * SECOND), None);
    }
}
