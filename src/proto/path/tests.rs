//! A peer of which each way answers after a time of its own, or not at all.

use std::collections::BTreeMap;

use super::*;
use crate::proto::tunnel::Way;

const MS: u64 = 1_000;
const SECOND: u64 = 1_000_000;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn relay() -> SocketAddr {
    Way::Flow { via: 0, flow: 1 }.into()
}

fn link() -> SocketAddr {
    Way::Link(1).into()
}

fn direct() -> SocketAddr {
    at("203.0.113.7:4000")
}

fn lan() -> SocketAddr {
    at("192.168.1.7:4000")
}

struct World {
    paths: Paths,
    now: u64,
    /// Ways that answer, and after how long.
    answers: BTreeMap<SocketAddr, u64>,
    on_their_way: Vec<(u64, SocketAddr, u64)>,
    /// The peer sends something along the way in use, and so do we.
    is_busy: bool,
    /// What the peer sends arrives, answers or not.
    is_heard: bool,
    used: Vec<(u64, SocketAddr, Leaving)>,
    probes: Vec<(u64, SocketAddr)>,
    rounds: Vec<u64>,
    /// When silence was found to kill, and how much.
    forgot: Vec<(u64, u64)>,
    /// A NAT of the peer's shuts the direct way after so much silence, and the peer opens it by its own probe after this.
    shuts_after: Option<(u64, u64)>,
    used_at: u64,
    turns: u32,
}

impl World {
    fn with(mode: Mode, decides: bool) -> Self {
        Self {
            paths: Paths::new(0, mode, decides, relay(), 7),
            now: 0,
            answers: BTreeMap::from([(relay(), 120 * MS)]),
            on_their_way: Vec::new(),
            is_busy: true,
            is_heard: false,
            used: Vec::new(),
            probes: Vec::new(),
            rounds: Vec::new(),
            forgot: Vec::new(),
            shuts_after: None,
            used_at: 0,
            turns: 0,
        }
    }

    fn new() -> Self {
        Self::with(Mode::Auto, true)
    }

    /// One that uses the direct way since a minute.
    fn direct() -> Self {
        let mut world = Self::new();
        world.answers.insert(direct(), 60 * MS);
        world.run(MS);
        world.paths.found(world.now, direct());
        world.run(60 * SECOND);
        world.paths.round_over(world.now);
        assert_eq!(world.used(), [direct()]);
        world.used.clear();
        world.probes.clear();
        world.rounds.clear();
        world
    }

    fn run(&mut self, us: u64) {
        let end = self.now + us;
        while self.now < end {
            self.drain();
            let packet = if self.is_busy { self.now + 16 * MS } else { u64::MAX };
            let answer = self.on_their_way.iter().map(|(at, ..)| *at).min().unwrap_or(u64::MAX);
            let opens_at = self.shuts_after.map_or(u64::MAX, |(_, opens)| self.used_at + opens);
            let next = self.paths.next_timeout().min(packet).min(answer).min(opens_at).min(end);
            self.turns = if next <= self.now { self.turns + 1 } else { 0 };
            assert!(self.turns < 100, "it turns in a circle at {} us", self.now);
            self.now = self.now.max(next);
            let now = self.now;
            let (due, later): (Vec<_>, Vec<_>) = self.on_their_way.drain(..).partition(|(at, ..)| *at <= now);
            self.on_their_way = later;
            for (_, from, rtt_us) in due {
                self.paths.heard(now, from);
                self.paths.answered(now, from, rtt_us);
            }
            if now == opens_at {
                self.used_at = now;
                self.paths.heard(now, direct());
                self.paths.probed(now, direct());
            }
            if now == packet {
                self.paths.sent(now);
                let current = self.paths.status(now).remote;
                if self.is_heard || self.answers.contains_key(&current) {
                    self.paths.heard(now, current);
                }
            }
        }
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.paths.poll_output(self.now) {
            match output {
                Output::Probe { to } => {
                    self.probes.push((self.now, to));
                    let is_shut =
                        to == direct() && self.shuts_after.is_some_and(|(after, _)| self.now >= self.used_at + after);
                    let rtt_us = self.answers.get(&to).copied().filter(|_| !is_shut);
                    self.used_at = if to == direct() && !is_shut { self.now } else { self.used_at };
                    self.on_their_way.extend(rtt_us.map(|rtt_us| (self.now + rtt_us, to, rtt_us)));
                }
                Output::Use { to, leaving } => self.used.push((self.now, to, leaving)),
                Output::WantRound => self.rounds.push(self.now),
                Output::Forgot { silence_us } => self.forgot.push((self.now, silence_us)),
            }
        }
    }

    fn used(&self) -> Vec<SocketAddr> {
        self.used.iter().map(|(_, to, _)| *to).collect()
    }

    fn probes_of(&self, to: SocketAddr) -> Vec<u64> {
        self.probes.iter().filter(|(_, probed)| *probed == to).map(|(at, _)| *at).collect()
    }
}

#[test]
fn a_better_way_is_used_once_a_probe_over_it_was_answered() {
    let mut world = World::new();
    world.answers.extend([(direct(), 60 * MS), (lan(), 2 * MS), (link(), 61 * MS)]);
    world.run(500 * MS);
    assert_eq!((world.used(), world.rounds.len()), (vec![], 1));
    for (way, after) in [(link(), 61 * MS), (direct(), 60 * MS), (lan(), 2 * MS)] {
        let found_at = world.now;
        world.paths.found(found_at, way);
        world.run(SECOND);
        assert_eq!(world.used.pop(), Some((found_at + after, way, Leaving::Alive)));
    }
    let status = world.paths.status(world.now);
    assert_eq!((status.kind, status.remote, status.rtt_us, status.why), (Kind::Lan, lan(), Some(2 * MS), Why::Direct));
    world.run(100 * SECOND);
    assert_eq!(world.used(), [], "and it stays");
}

#[test]
fn a_way_that_nobody_answers_is_tried_five_times_and_forgotten() {
    let mut world = World::new();
    world.run(SECOND);
    let found_at = world.now;
    world.paths.found(found_at, direct());
    world.run(100 * SECOND);
    let probes: Vec<u64> = world.probes_of(direct()).iter().map(|at| (at - found_at) / MS).collect();
    assert_eq!(probes, [0, 100, 300, 700, 1_500]);
    assert_eq!(world.paths.routes.len(), 1);
}

#[test]
fn an_address_for_which_only_a_datagram_speaks_gets_two_probes_for_it() {
    let mut world = World::new();
    world.paths.probed(0, direct());
    world.run(100 * SECOND);
    assert_eq!(world.probes_of(direct()).len(), 2);
}

#[test]
fn a_peer_whose_address_changes_is_found_at_the_new_one() {
    let mut world = World::direct();
    let moved = at("203.0.113.7:5000");
    world.answers = BTreeMap::from([(relay(), 120 * MS), (moved, 60 * MS)]);
    let moved_at = world.now;
    for _ in 0..60 {
        world.paths.heard(world.now, moved);
        world.run(16 * MS);
    }
    assert_eq!(world.used(), [moved]);
    assert!(world.used[0].0 - moved_at < 500 * MS);
}

#[test]
fn a_way_that_falls_silent_is_left_for_one_that_answers_within_half_a_second() {
    for offset in 0..20 {
        let mut world = World::direct();
        world.run(offset * 13 * MS);
        world.answers.remove(&direct());
        let died_at = world.now;
        world.run(SECOND);
        let (at, to, leaving) = world.used[0];
        assert_eq!((to, leaving), (relay(), Leaving::Dead));
        assert!((250 * MS..450 * MS).contains(&(at - died_at)), "after {} us", at - died_at);
    }
}

#[test]
fn a_way_that_brings_something_but_no_answers_is_dead_too() {
    for offset in 0..20 {
        let mut world = World::direct();
        world.run(offset * 13 * MS);
        world.answers.remove(&direct());
        world.is_heard = true;
        let died_at = world.now;
        world.run(SECOND);
        assert!((450 * MS..700 * MS).contains(&(world.used[0].0 - died_at)), "after {} us", world.used[0].0 - died_at);
    }
}

#[test]
fn nothing_moves_while_nobody_answers() {
    let mut world = World::direct();
    let answers = std::mem::take(&mut world.answers);
    world.run(3 * SECOND);
    assert_eq!(world.used(), []);
    let probes = world.probes.len();
    world.run(20 * SECOND);
    assert!(world.probes.len() - probes < 2 * 20 * 10, "{} probes", world.probes.len() - probes);
    world.answers = answers;
    world.run(2 * SECOND);
    assert!(world.used().iter().all(|to| *to == relay()) && world.used.len() <= 1, "{:?}", world.used);
}

#[test]
fn a_way_that_died_is_used_again_after_some_answers_and_after_more_each_time() {
    let mut world = World::direct();
    let mut after = Vec::new();
    for _ in 0..5 {
        world.answers.remove(&direct());
        world.run(5 * SECOND);
        assert_eq!(world.paths.status(world.now).kind, Kind::Relay);
        world.answers.insert(direct(), 60 * MS);
        let back_at = world.now;
        world.run(10 * SECOND);
        let (at, to, leaving) = *world.used.last().expect("it is used");
        assert_eq!((to, leaving), (direct(), Leaving::Alive));
        after.push((at - back_at) / SECOND);
    }
    assert!(after.is_sorted() && after[0] <= 1 && after[4] >= 2, "{after:?} s");
}

#[test]
fn a_way_that_died_is_tried_for_half_a_minute_and_a_round_is_wanted() {
    let mut world = World::direct();
    world.answers.remove(&direct());
    let died_at = world.now;
    world.run(SECOND);
    let left_at = world.used[0].0;
    assert_eq!(world.rounds, [left_at + 500 * MS], "after the first five");
    assert_eq!(world.paths.status(world.now).why, Why::Searching);
    world.paths.round_over(world.now);
    world.probes.clear();
    world.run(100 * SECOND);
    let probes = world.probes_of(direct());
    assert!((28..35).contains(&probes.len()) && probes[probes.len() - 1] < died_at + 32 * SECOND, "{probes:?}");
    world.paths.round_over(world.now);
    assert_eq!((world.rounds.len(), world.paths.status(world.now).why), (2, Why::Died));
}

#[test]
fn a_relay_that_dies_is_left_for_a_way_that_answers_even_if_that_died_before() {
    let mut world = World::direct();
    world.answers.remove(&direct());
    world.run(2 * SECOND);
    assert_eq!(world.used(), [relay()]);
    world.answers = BTreeMap::from([(direct(), 60 * MS)]);
    world.run(2 * SECOND);
    assert_eq!(world.used(), [relay(), direct()]);
}

#[test]
fn a_connection_that_ends_is_left_at_once_for_what_answers() {
    let mut world = World::new();
    world.answers.insert(link(), 60 * MS);
    world.run(MS);
    world.paths.found(world.now, link());
    world.run(5 * SECOND);
    assert_eq!(world.used.pop().map(|(_, to, _)| to), Some(link()));
    world.answers.remove(&link());
    let lost_at = world.now;
    world.paths.lost(lost_at, link());
    world.run(SECOND);
    assert_eq!(world.used, [(lost_at + 120 * MS, relay(), Leaving::Dead)]);
    assert!(world.paths.routes.iter().all(|route| route.to != link()), "it never comes back");
}

#[test]
fn of_two_ways_of_a_kind_the_clearly_shorter_is_used() {
    for (rtt_ms, is_used) in [(20, true), (47, true), (49, false), (70, false)] {
        let mut world = World::direct();
        let other = at("203.0.113.8:4000");
        world.answers.insert(other, rtt_ms * MS);
        world.paths.found(world.now, other);
        world.run(30 * SECOND);
        assert_eq!(world.used.len(), usize::from(is_used), "{rtt_ms} ms instead of 60");
    }
}

#[test]
fn without_traffic_a_way_is_kept_alive_every_fifteen_seconds_and_the_relay_keeps_itself() {
    let mut world = World::direct();
    world.is_busy = false;
    world.run(10 * SECOND);
    world.probes.clear();
    world.run(300 * SECOND);
    let probes = world.probes_of(direct());
    assert!((19..=20).contains(&probes.len()), "{probes:?}");
    assert_eq!(world.probes_of(relay()).len(), 0);
}

/// Idle, with a NAT before the peer that forgets, and the peer's own keep-alive a little later than ours.
fn behind_a_nat(decides: bool, forgets_s: u64) -> World {
    let mut world = World::with(Mode::Auto, decides);
    world.answers.insert(direct(), 60 * MS);
    world.run(MS);
    world.paths.found(world.now, direct());
    world.run(SECOND);
    if !decides {
        world.paths.moved(world.now, direct());
    }
    world.is_busy = false;
    world.paths.round_over(world.now);
    (world.shuts_after, world.used_at) = (Some((forgets_s * SECOND, 17 * SECOND)), world.now);
    world.used.clear();
    world
}

#[test]
fn a_nat_that_forgets_after_ten_seconds_is_found_out_at_the_second_time_at_both_ends() {
    for decides in [true, false] {
        let mut world = behind_a_nat(decides, 10);
        world.run(300 * SECOND);
        let silences: Vec<u64> = world.forgot.iter().map(|(_, silence)| silence / SECOND).collect();
        assert_eq!(silences[0], if decides { 15 } else { 14 }, "decides: {decides}");
        assert!(world.forgot[0].0 < 45 * SECOND, "{:?}", world.forgot);
    }
}

#[test]
fn who_asks_often_enough_finds_nothing_forgotten_any_more() {
    for decides in [true, false] {
        let mut world = behind_a_nat(decides, 10);
        world.paths.keep_alive(7_500_000);
        world.run(SECOND); // of what was sent before
        world.probes.clear();
        world.run(300 * SECOND);
        assert_eq!((world.used(), world.forgot.len()), (vec![], 0), "decides: {decides}");
        let probes = world.probes_of(direct()).len();
        assert!((38..=43).contains(&probes), "{probes} probes");
    }
}

#[test]
fn a_nat_that_forgets_after_twenty_seconds_never_does() {
    for decides in [true, false] {
        let mut world = behind_a_nat(decides, 20);
        world.run(3600 * SECOND);
        assert_eq!((world.used(), world.forgot.len()), (vec![], 0), "decides: {decides}");
    }
}

#[test]
fn what_silences_everybody_is_not_taken_for_a_nat_that_forgets() {
    for decides in [true, false] {
        let mut world = behind_a_nat(decides, 3600);
        let answers = world.answers.clone();
        for blackout in 0..20 {
            world.run(50 * SECOND + blackout * 700 * MS);
            world.answers.clear();
            world.run(20 * SECOND);
            world.answers = answers.clone();
        }
        assert_eq!((world.forgot.len(), world.used()), (0, vec![]), "a blackout, decides: {decides}");
        world.answers.remove(&relay());
        for _ in 0..20 {
            world.run(50 * SECOND);
            world.answers.remove(&direct());
            world.run(20 * SECOND);
            world.answers.insert(direct(), 60 * MS);
        }
        assert_eq!(world.forgot.len(), 0, "without a rendezvous, decides: {decides}");
    }
}

#[test]
fn who_is_probed_in_turns_is_probed_sooner_by_who_was_asked_last() {
    let mut world = World::direct();
    world.is_busy = false;
    world.run(SECOND);
    world.probes.clear();
    let heard_at = world.now;
    world.paths.heard(heard_at, direct());
    world.run(14 * SECOND);
    assert_eq!(world.probes_of(direct()), [heard_at + 13_125 * MS]);
    world.run(15 * SECOND);
    assert_eq!(world.probes_of(direct())[1..], [heard_at + 28_185 * MS], "15 s after the answer");
}

#[test]
fn with_traffic_the_way_in_use_is_probed_seven_times_a_second_and_no_other() {
    let mut world = World::direct();
    world.run(100 * SECOND);
    let probes = world.probes.len();
    assert!((600..=700).contains(&probes), "{probes} probes in 100 s");
    assert_eq!(world.probes_of(relay()).len(), 0);
}

#[test]
fn a_way_that_dies_while_nothing_is_sent_is_noticed_by_the_next_keep_alive() {
    let mut world = World::direct();
    world.is_busy = false;
    world.run(SECOND);
    world.answers.remove(&direct());
    world.run(16 * SECOND);
    assert_eq!(world.used(), [relay()]);
}

#[test]
fn who_wants_the_relay_gets_nothing_else() {
    let mut world = World::with(Mode::Relay, true);
    world.answers.extend([(direct(), 60 * MS), (lan(), 2 * MS)]);
    world.paths.found(0, direct());
    world.paths.probed(0, lan());
    world.paths.network_changed(0);
    world.run(100 * SECOND);
    assert_eq!((world.used(), world.rounds.len()), (vec![], 0));
    assert!(world.paths.carries_data());
    assert_eq!(world.paths.status(world.now).why, Why::Wanted);
}

#[test]
fn who_wants_direct_ways_sends_no_data_through_the_relay() {
    let mut world = World::with(Mode::Direct, true);
    world.answers.insert(direct(), 60 * MS);
    world.run(SECOND);
    assert!(!world.paths.carries_data());
    world.paths.found(world.now, direct());
    world.run(SECOND);
    assert!(world.paths.carries_data());
}

#[test]
fn a_provider_whose_nat_has_forgotten_everything_makes_itself_heard_at_the_relay_at_once() {
    let mut world = World::with(Mode::Auto, false);
    world.answers.insert(direct(), 60 * MS);
    world.run(MS);
    world.paths.moved(world.now, direct());
    world.run(10 * SECOND);
    world.probes.clear();
    world.answers.clear();
    let silent_since = world.now;
    world.run(SECOND);
    let heard_at = world.probes.iter().find(|(_, to)| *to == relay()).map(|(at, _)| at - silent_since);
    assert!(heard_at.is_some_and(|after| after < 350 * MS), "{heard_at:?}");
    assert!(world.used.is_empty(), "it does not choose");
}

#[test]
fn the_providers_end_proves_ways_and_keeps_them_alive_but_never_chooses() {
    let mut world = World::with(Mode::Auto, false);
    world.answers.insert(direct(), 60 * MS);
    world.paths.probed(0, direct());
    world.run(SECOND);
    assert!(world.paths.routes.iter().any(|route| route.to == direct() && route.is_alive()));
    world.paths.moved(world.now, direct());
    world.is_busy = false;
    world.run(SECOND); // of what was sent before
    world.probes.clear();
    world.run(100 * SECOND);
    assert!((6..=8).contains(&world.probes_of(direct()).len()));
    world.answers.remove(&direct());
    world.run(100 * SECOND);
    assert_eq!((world.used(), world.rounds.len()), (vec![], 0));
    assert_eq!(world.paths.status(world.now).remote, direct());
}

#[test]
fn a_change_of_the_network_has_everything_tried_at_once() {
    let mut world = World::direct();
    world.is_busy = false;
    world.run(SECOND);
    world.probes.clear();
    let changed_at = world.now;
    world.paths.network_changed(changed_at);
    world.run(SECOND);
    assert_eq!(world.rounds, [changed_at]);
    for way in [relay(), direct()] {
        assert_eq!(world.probes_of(way).first(), Some(&changed_at), "{way}");
    }
    assert_eq!(world.used(), [], "what still works stays");
}

#[test]
fn a_better_chance_is_taken_at_once_on_the_relay_and_left_on_a_direct_way() {
    let mut world = World::new();
    world.run(MS);
    world.paths.round_over(world.now);
    world.rounds.clear();
    let improved_at = world.now;
    world.paths.chance_improved(improved_at);
    world.run(MS);
    assert_eq!(world.rounds, [improved_at]);
    for mut calm in [World::direct(), World::with(Mode::Relay, true), World::with(Mode::Auto, false)] {
        calm.rounds.clear();
        calm.paths.chance_improved(calm.now);
        calm.run(SECOND);
        assert!(calm.rounds.is_empty());
    }
}

#[test]
fn strangers_do_not_drive_out_the_ways_that_work() {
    let mut world = World::direct();
    for host in 0..200u8 {
        world.paths.probed(world.now, SocketAddr::from(([198, 51, 100, host], 4000)));
    }
    assert_eq!(world.paths.routes.len(), ROUTES_MAX);
    world.run(SECOND);
    for way in [relay(), direct()] {
        assert!(world.paths.routes.iter().any(|route| route.to == way && route.is_alive()), "{way}");
    }
    world.answers.insert(lan(), 2 * MS);
    world.paths.found(world.now, lan());
    world.run(SECOND);
    assert_eq!(world.used(), [lan()], "there is room for what the owner has found");
}

#[test]
fn whatever_happens_it_neither_panics_nor_turns_in_a_circle() {
    let mut random = 1u64;
    let mut any = |below: u64| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (random >> 33) % below
    };
    let ways = [relay(), link(), direct(), lan(), at("203.0.113.8:1"), at("[2001:db8::1]:1")];
    for _ in 0..100 {
        let mode = [Mode::Auto, Mode::Direct, Mode::Relay][any(3) as usize];
        let mut world = World::with(mode, any(2) == 0);
        for _ in 0..100 {
            let (now, way) = (world.now, ways[any(6) as usize]);
            match any(11) {
                0 => world.paths.found(now, way),
                1 => world.paths.probed(now, way),
                2 => world.paths.lost(now, way),
                3 => world.paths.answered(now, way, any(1_000_000)),
                4 => world.paths.moved(now, way),
                5 => world.paths.network_changed(now),
                6 => world.paths.round_over(now),
                7 => _ = world.answers.insert(way, any(300_000)),
                8 => _ = world.answers.remove(&way),
                9 => world.is_busy ^= true,
                _ => world.is_heard ^= true,
            }
            world.run(any(2_000_000));
        }
    }
}
