//! What is logged of a rendezvous: who provides what, by the name of the service and the id of the key, which is no secret. Peers
//! can make much happen, so only so many lines are written in a second; how many were not, the next one tells.

use crate::proto::rendezvous::registry::News;

/// Lines in a second. After a restart everybody registers anew within a quarter of a minute: of a hundred all are shown.
const LINES_PER_SECOND: u32 = 20;

const SECOND_US: u64 = 1_000_000;

#[derive(Debug, Default)]
pub(super) struct Journal {
    second: u64,
    written: u32,
    withheld: u64,
}

impl Journal {
    pub(super) fn write(&mut self, now: u64, news: News) {
        if !self.may_write(now) {
            return;
        }
        match news {
            News::Registered { key, name } => tracing::info!(service = %name, ?key, "service registered"),
            News::Withdrawn { key, name } => tracing::info!(service = %name, ?key, "service withdrawn"),
            News::Lost { key, name } => tracing::info!(service = %name, ?key, "the provider of a service is lost"),
            News::TooMany { key, what } => {
                tracing::warn!(?key, ?what, "a key has as many as it may have; more are refused")
            }
        }
    }

    fn may_write(&mut self, now: u64) -> bool {
        if now / SECOND_US != self.second {
            (self.second, self.written) = (now / SECOND_US, 0);
            let lines = std::mem::take(&mut self.withheld);
            if lines > 0 {
                tracing::info!(lines, "so much happened that not all was written");
            }
        }
        let may = self.written < LINES_PER_SECOND;
        self.written += u32::from(may);
        self.withheld += u64::from(!may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_lines_are_written_in_a_second() {
        let mut journal = Journal::default();
        let written =
            |journal: &mut Journal, from: u64| (from..from + 1_000).filter(|at| journal.may_write(*at)).count();
        assert_eq!(written(&mut journal, 0), LINES_PER_SECOND as usize);
        assert_eq!(journal.withheld, 1_000 - u64::from(LINES_PER_SECOND));
        assert_eq!(written(&mut journal, SECOND_US), LINES_PER_SECOND as usize);
        assert_eq!(journal.withheld, 1_000 - u64::from(LINES_PER_SECOND));
    }
}
