//! What became of packets: [`Arrivals`] counts those of the peer for the reports that we send, [`Losses`] makes samples of the
//! reports that come back.

use std::collections::VecDeque;

use super::frames::Report;
use super::seal::EPOCH_BITS;

/// Packets after which a report is due: of so many, one that carries it is a cost of 1.5 %.
const PACKETS_MAX: u32 = 64;

/// Time after which a report is due, in µs: a game then reports four times a second.
const REPORT_US: u64 = 250_000;

/// Of one session.
#[derive(Debug, Default)]
pub struct Arrivals {
    seen: Report,
    unreported: u32,
    /// When the next report is due. `None` until something worth telling arrives.
    due: Option<u64>,
}

impl Arrivals {
    /// The highest number so far.
    pub fn highest(&self) -> u64 {
        self.seen.highest
    }

    /// A packet has arrived. It is worth telling unless it only reports itself: reports would answer each other for ever.
    pub fn note(&mut self, now: u64, number: u64, is_worth_telling: bool) {
        self.seen.received += 1;
        if number > self.seen.highest {
            let is_next = number == self.seen.highest + 1 || epoch(number) != epoch(self.seen.highest);
            self.seen.gaps = self.seen.gaps.wrapping_add(u32::from(!is_next));
            self.seen.highest = number;
        }
        if is_worth_telling {
            self.unreported += 1;
            let due = *self.due.get_or_insert(now + REPORT_US);
            if self.unreported >= PACKETS_MAX {
                self.due = Some(now.min(due));
            }
        }
    }

    pub fn due(&self) -> Option<u64> {
        self.due
    }

    pub fn take(&mut self) -> Report {
        (self.unreported, self.due) = (0, None);
        self.seen
    }
}

/// What a report says of the packets since the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    pub packets: u64,
    pub lost: u64,
    /// Losses in a row counted once.
    pub gaps: u64,
}

/// Of one session.
#[derive(Debug, Default)]
pub struct Losses {
    last: Report,
    /// Taken for lost and then arrived: to be taken off the next losses.
    late: u64,
    /// Numbers of packets that are counted by nobody, as yet unreported. Of too many the oldest count as lost.
    uncounted: VecDeque<u64>,
    /// Packets with lower numbers went along another path.
    path_begins: u64,
}

/// A round of probes has 2,000.
const UNCOUNTED_MAX: usize = 4_096;

impl Losses {
    /// A packet that only probes is being sent. No report counts it.
    pub fn leave_out(&mut self, number: u64) {
        if self.uncounted.len() == UNCOUNTED_MAX {
            self.uncounted.pop_front();
        }
        self.uncounted.push_back(number);
    }

    /// Reports speak of this path when they speak of nothing sent before `number`.
    pub fn begin_path(&mut self, number: u64) {
        self.path_begins = number;
    }

    /// `None` for a report that came too late, for one of another path, and for one across a change of keys, where numbers are
    /// left out.
    pub fn on_report(&mut self, report: Report) -> Option<Sample> {
        if report.highest <= self.last.highest {
            return None;
        }
        let last = std::mem::replace(&mut self.last, report);
        let uncounted = self.uncounted.iter().take_while(|number| **number <= report.highest).count();
        self.uncounted.drain(..uncounted);
        if epoch(last.highest) != epoch(report.highest) || last.highest + 1 < self.path_begins {
            return None;
        }
        let packets = (report.highest - last.highest).saturating_sub(uncounted as u64);
        let received = report.received.saturating_sub(last.received);
        let missing = packets.saturating_sub(received);
        self.late += received.saturating_sub(packets);
        let lost = missing.saturating_sub(self.late);
        self.late = self.late.saturating_sub(missing);
        let gaps = u64::from(report.gaps.wrapping_sub(last.gaps)).min(lost);
        Some(Sample { packets, lost, gaps })
    }
}

fn epoch(number: u64) -> u64 {
    number >> EPOCH_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(arrivals: &mut Arrivals, numbers: impl IntoIterator<Item = u64>) {
        numbers.into_iter().for_each(|number| arrivals.note(0, number, true));
    }

    #[test]
    fn losses_and_their_bursts_follow_from_two_reports() {
        let (mut arrivals, mut losses) = (Arrivals::default(), Losses::default());
        arrive(&mut arrivals, [1, 2, 3, 5, 9, 10]);
        assert_eq!(losses.on_report(arrivals.take()), Some(Sample { packets: 10, lost: 4, gaps: 2 }));
        arrive(&mut arrivals, 11..=20);
        assert_eq!(losses.on_report(arrivals.take()), Some(Sample { packets: 10, lost: 0, gaps: 0 }));
    }

    #[test]
    fn what_arrives_late_is_no_loss_in_the_long_run() {
        let (mut arrivals, mut losses) = (Arrivals::default(), Losses::default());
        arrive(&mut arrivals, [1, 2, 5]);
        let mut lost = losses.on_report(arrivals.take()).map_or(0, |sample| sample.lost);
        arrive(&mut arrivals, [4, 3, 6, 7, 8, 11]);
        lost += losses.on_report(arrivals.take()).map_or(0, |sample| sample.lost);
        assert_eq!(lost, 2, "9 and 10");
    }

    #[test]
    fn old_reports_and_lies_are_survived() {
        let mut losses = Losses::default();
        let report = |highest, received, gaps| Report { highest, received, gaps };
        assert_eq!(losses.on_report(report(10, 1000, 5)), Some(Sample { packets: 10, lost: 0, gaps: 0 }));
        assert_eq!(losses.on_report(report(10, 2000, 5)), None);
        assert_eq!(losses.on_report(report(9, 9, 0)), None);
        assert!(losses.on_report(report(u64::MAX >> 16, 0, 0)).is_none());
    }

    #[test]
    fn numbers_left_out_at_a_change_of_keys_are_not_lost() {
        let (mut arrivals, mut losses) = (Arrivals::default(), Losses::default());
        arrive(&mut arrivals, 1..=10);
        losses.on_report(arrivals.take());
        arrive(&mut arrivals, (1 << EPOCH_BITS)..(1 << EPOCH_BITS) + 5);
        assert_eq!(losses.on_report(arrivals.take()), None);
        arrive(&mut arrivals, [(1 << EPOCH_BITS) + 5]);
        assert_eq!(losses.on_report(arrivals.take()), Some(Sample { packets: 1, lost: 0, gaps: 0 }));
    }

    #[test]
    fn packets_that_nobody_counts_are_no_loss_and_the_others_are() {
        let (mut arrivals, mut losses) = (Arrivals::default(), Losses::default());
        [2, 3, 5, 9].into_iter().for_each(|number| losses.leave_out(number));
        arrive(&mut arrivals, [1, 4, 6, 8]);
        assert_eq!(
            losses.on_report(arrivals.take()),
            Some(Sample { packets: 5, lost: 1, gaps: 1 }),
            "7 of 1, 4, 6, 7, 8"
        );
        arrive(&mut arrivals, [10]);
        assert_eq!(losses.on_report(arrivals.take()), Some(Sample { packets: 1, lost: 0, gaps: 0 }));
        (0..2 * UNCOUNTED_MAX as u64).for_each(|number| losses.leave_out(11 + number));
        assert_eq!(losses.uncounted.len(), UNCOUNTED_MAX);
    }

    #[test]
    fn a_report_that_speaks_of_the_path_before_is_left_out() {
        let (mut arrivals, mut losses) = (Arrivals::default(), Losses::default());
        arrive(&mut arrivals, 1..=10);
        assert!(losses.on_report(arrivals.take()).is_some());
        losses.begin_path(31);
        arrive(&mut arrivals, 31..=40);
        assert_eq!(losses.on_report(arrivals.take()), None, "11 to 30 died with the other path");
        arrive(&mut arrivals, 41..=50);
        assert_eq!(losses.on_report(arrivals.take()), Some(Sample { packets: 10, lost: 0, gaps: 0 }));
    }

    #[test]
    fn a_report_is_due_a_quarter_of_a_second_or_64_packets_after_the_first_and_not_for_reports_alone() {
        let mut arrivals = Arrivals::default();
        arrivals.note(5, 1, false);
        assert_eq!(arrivals.due(), None);
        arrivals.note(7, 2, true);
        arrivals.note(8, 3, true);
        assert_eq!(arrivals.due(), Some(7 + REPORT_US));
        for number in 4..=65 {
            assert_eq!(arrivals.due(), Some(7 + REPORT_US));
            arrivals.note(9, number, true);
        }
        assert_eq!(arrivals.due(), Some(9));
        arrivals.take();
        assert_eq!(arrivals.due(), None);
    }
}
