//! What a tunnel promises in figures, on the virtual network: short runs with bounds that leave them some room. Long runs,
//! other seeds and the bounds themselves are `scripts/bench-tunnel`'s.

mod sim;

use sim::busy::Busy;
use sim::figures::Bound::{self, AtLeast, AtMost};
use sim::figures::{Case, run};
use sim::link::{Loss, Settings};
use sim::traffic::Traffic;

const MBIT: u64 = 1_000_000;

#[test]
fn a_game_is_late_by_less_than_a_round_trip_when_packets_get_lost() {
    for (percent, p99_ms, wire) in [(0.0, 26.0, 3.6), (5.0, 48.0, 7.0), (20.0, 90.0, 12.0)] {
        let link = Settings::delayed_ms(25).losing(Loss::Iid(percent / 100.0));
        let bounds = [AtMost("p99_ms", p99_ms), AtMost("wire_per_payload", wire), AtMost("packets_per_s", 140.0)];
        hold(&format!("{percent} %"), link, Traffic::game(), 1, 60, &bounds);
    }
}

#[test]
fn a_game_gets_through_losses_that_come_in_a_row() {
    let link = Settings::delayed_ms(25).losing(Loss::Bursts { loss: 0.05, mean_length: 3.0 });
    let bounds = [AtMost("p99_ms", 66.0), AtMost("wire_per_payload", 14.0), AtMost("packets_per_s", 210.0)];
    hold("bursts of 3", link, Traffic::game(), 1, 60, &bounds);
}

#[test]
fn a_game_beside_bulk_waits_for_little_and_bulk_fills_the_path() {
    for (mbit, percent, p99_ms, bulk_mbit) in [(20, 0.0, 45.0, 17.0), (20, 5.0, 55.0, 16.0), (5, 0.0, 55.0, 4.2)] {
        let link = Settings::delayed_ms(25).losing(Loss::Iid(percent / 100.0)).limited(mbit * MBIT, 200);
        let bounds = [AtMost("p99_ms", p99_ms), AtLeast("bulk_mbit", bulk_mbit), AtMost("queue_ms", 10.0)];
        hold(&format!("{mbit} Mbit/s, {percent} %"), link, Traffic::game_and_bulk(), 1, 20, &bounds);
    }
}

#[test]
fn bulk_fills_a_path_that_loses_and_sends_little_twice() {
    for (percent, mbit, wire) in [(0.0, 34.0, 1.08), (5.0, 31.5, 1.15), (20.0, 23.0, 1.42)] {
        let link = Settings::delayed_ms(25).losing(Loss::Iid(percent / 100.0)).limited(40 * MBIT, 100);
        let bounds = [AtLeast("bulk_mbit", mbit), AtMost("ip_bytes_per_payload", wire), AtMost("queue_ms", 10.0)];
        hold(&format!("{percent} %"), link, Traffic::bulk(), 1, 10, &bounds);
    }
}

#[test]
fn a_long_path_is_filled_though_nothing_is_sent_back_on_it() {
    let link = Settings::delayed_ms(75).limited(40 * MBIT, 100);
    let bounds = [AtLeast("bulk_mbit", 29.0), AtMost("acks_per_packet", 0.4)];
    hold("RTT 150 ms", link, Traffic::bulk(), 1, 10, &bounds);
}

#[test]
fn two_tunnels_share_a_path() {
    let link = Settings::delayed_ms(25).limited(20 * MBIT, 200);
    let bounds = [AtLeast("share_percent", 35.0), AtMost("share_percent", 65.0), AtLeast("bulk_mbit", 17.0)];
    hold("20 Mbit/s", link, Traffic::game_and_bulk(), 2, 30, &bounds);
}

fn hold(name: &str, link: Settings, traffic: Traffic, tunnels: usize, seconds: u64, bounds: &[Bound]) {
    let case = Case { name: name.to_owned(), link, traffic, tunnels, bounds: bounds.to_vec() };
    for seed in 1..=2 {
        let figures = run::<Busy>(&case, seed, seconds);
        for bound in bounds {
            let value = figures.iter().find(|(figure, _)| *figure == bound.figure()).map(|(_, value)| *value);
            assert!(value.is_some_and(|value| bound.holds(value)), "{name}, seed {seed}: {bound:?} of {figures:?}");
        }
    }
}
