//! Punching through every pair of NATs, on a virtual network and a virtual clock: 15 ms on the line of each house and of the
//! rendezvous, so 60 ms there and back between any two.
//!
//! Times count from the visitor's call until both sides had a probe answered; signalling and the provider's questions to the
//! rendezvous are in them. A test that fails prints a line for each pair, with the seeds.

mod sim;

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use gateway::proto::punch::{SHOTS_MAX, ShotKind, Socket, Verdict, Why};
use sim::house::{House, LINE_DELAY_US, Place, add_inner};
use sim::internet::{Cable, Internet, PUBLIC};
use sim::nat::{Filtering, Kind, Mapping};
use sim::punchers::{Outcome, World};
use sim::{MS, SECOND};

/// Rounds after which a daemon waits for minutes; both turns of guessing are among them.
const ROUNDS: u32 = 3;

/// What a pair can come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// Direct within 350 ms.
    AtOnce,
    /// Direct within the first round, when a guess has met or an answer has taken a detour.
    InTheFirstRound,
    /// Direct in a later round, since nobody could know that there was something to guess.
    Later,
    /// Direct only by luck.
    Luck,
    /// There is no way.
    Relay,
}

// Every mapping with every filtering.

#[test]
fn a_visitor_who_lets_everybody_in_gets_what_theory_promises_with_every_nat() {
    every_pair_of(Filtering::Endpoint);
}

#[test]
fn a_visitor_who_lets_in_by_address_gets_what_theory_promises_with_every_nat() {
    every_pair_of(Filtering::Address);
}

#[test]
fn a_visitor_who_lets_in_by_address_and_port_gets_what_theory_promises_with_every_nat() {
    every_pair_of(Filtering::AddressAndPort);
}

const MAPPINGS: [(&str, Mapping); 5] = [
    ("endpoint", Mapping::Endpoint),
    ("preserving", Mapping::Preserving),
    ("address", Mapping::Address),
    ("steps", Mapping::Steps { delta: 2, others_per_second: 0 }),
    ("random", Mapping::Random),
];

const FILTERINGS: [Filtering; 3] = [Filtering::Endpoint, Filtering::Address, Filtering::AddressAndPort];

fn every_pair_of(filtering: Filtering) {
    let mut table = Table::default();
    for (name_a, mapping_a) in MAPPINGS {
        for (name_b, mapping_b) in MAPPINGS {
            for filtering_b in FILTERINGS {
                let houses =
                    [House::behind(name_a, mapping_a, filtering), House::behind(name_b, mapping_b, filtering_b)];
                let promise = theory((mapping_a, filtering), (mapping_b, filtering_b));
                let pair = format!("{name_a}/{filtering:?} {name_b}/{filtering_b:?}");
                let runs = (0..3).map(|seed| run(seed, &houses, 0.0, ROUNDS)).collect();
                table.add(pair, promise, 0, runs);
            }
        }
    }
    table.judge();
}

/// Why a pair of NATs can or cannot be punched. A way is one pair of addresses, which serves both directions.
fn theory(a: (Mapping, Filtering), b: (Mapping, Filtering)) -> Promise {
    use Filtering::{Address as ByAddress, AddressAndPort as ByPort, Endpoint as Everybody};
    let ((mapping_a, filter_a), (mapping_b, filter_b)) = if order(a.0) <= order(b.0) { (a, b) } else { (b, a) };
    match (order(mapping_a), order(mapping_b)) {
        // Both know where the other is.
        (0, 0) => Promise::AtOnce,
        // Whoever has a fixed address answers to where the other's packet came from, if it is let in. If not, that place has to be
        // known beforehand: guessed, or, when the NAT counts, predicted.
        (0, 2) => Promise::AtOnce,
        (0, 1) if filter_a == ByPort => Promise::Later, // Looks like two fixed addresses at first.
        (0, 1) => Promise::InTheFirstRound,             // The provider may wait for a probe that cannot come.
        (0, 3) if filter_a == ByPort => Promise::InTheFirstRound,
        (0, _) => Promise::AtOnce,
        // One port for each address: neither knows the other's. Whoever lets in the other can answer to it; else one side guesses,
        // from the port that it has for the other, which must be let in there.
        (1, 1) => match (filter_a, filter_b) {
            (Everybody, Everybody | ByAddress) | (ByAddress, Everybody) => Promise::AtOnce,
            (ByPort, ByPort) => Promise::Relay,
            _ => Promise::Later,
        },
        // All predictions come from one port that the other has not been told of.
        (1, 2) if filter_b == ByPort => Promise::Relay,
        (1, 2) => Promise::AtOnce,
        (1, 3) => match (filter_a, filter_b) {
            (_, ByPort) => Promise::Relay,
            (ByPort, _) => Promise::Luck, // The answer comes from a new port, which is guessed now and then.
            _ => Promise::InTheFirstRound,
        },
        // In step.
        (2, 2) => Promise::AtOnce,
        // Each packet to a new place leaves by a new port that the other cannot know.
        _ => Promise::Relay,
    }
}

fn order(mapping: Mapping) -> u8 {
    match mapping {
        Mapping::None | Mapping::Endpoint | Mapping::Preserving => 0,
        Mapping::Tracked { draws: false, .. } => 0,
        Mapping::Address => 1,
        Mapping::Steps { .. } => 2,
        Mapping::Random | Mapping::Tracked { draws: true, .. } => 3,
    }
}

// What people have at home, by name.

const EASY: [&str; 9] = ["public", "fw", "full", "restricted", "port", "port+port", "symseq", "linux", "linux-open"];
const SYMMETRIC: [&str; 3] = ["symmetric", "port+cgn", "linux-random"];
const CLOSED: [&str; 5] = ["fw", "port", "port+port", "linux", "linux-open"];

#[test]
fn common_homes_reach_each_other_within_350_ms() {
    let mut table = Table::default();
    for (a, b) in pairs(&EASY, &EASY) {
        table.run([a, b], Promise::AtOnce, 5, 0.0);
    }
    for (a, b) in both_ways(&SYMMETRIC, &["public", "full", "restricted"]) {
        table.run([a, b], Promise::AtOnce, 5, 0.0);
    }
    table.judge();
}

#[test]
fn a_symmetric_nat_and_one_that_lets_in_by_port_meet_within_a_second_and_a_half_in_19_of_20_cases() {
    let mut table = Table::default();
    for (a, b) in both_ways(&SYMMETRIC, &CLOSED) {
        let runs = table.run([a, b], Promise::Luck, 40, 0.0);
        let in_time = runs.iter().filter(|run| run.direct_us.is_some_and(|us| us <= 1_500 * MS)).count();
        table.demand(in_time * 20 >= runs.len() * 19, format!("{a} {b}: {in_time} of {} in time", runs.len()));
    }
    table.judge();
}

#[test]
fn with_five_percent_of_loss_on_every_line_19_of_20_are_direct_within_three_seconds() {
    let mut table = Table::default();
    let easy = pairs(&EASY, &EASY).into_iter().chain(both_ways(&SYMMETRIC, &["full", "restricted", "public"]));
    let all: Vec<_> =
        easy.map(|pair| (pair, 5)).chain(both_ways(&SYMMETRIC, &CLOSED).into_iter().map(|pair| (pair, 15))).collect();
    let (mut runs, mut in_time) = (0, 0);
    for ((a, b), seeds) in all {
        let of_pair = table.run([a, b], Promise::Luck, seeds, 0.05);
        runs += of_pair.len();
        let of_pair_in_time = of_pair.iter().filter(|run| run.direct_us.is_some_and(|us| us <= 3 * SECOND)).count();
        in_time += of_pair_in_time;
        table.demand(of_pair_in_time * 10 >= of_pair.len() * 8, format!("{a} {b}: {of_pair_in_time} in time"));
    }
    table.demand(in_time * 20 >= runs * 19, format!("{in_time} of {runs} in time"));
    table.judge();
}

#[test]
fn two_nats_that_count_meet_although_other_hosts_take_some_of_their_ports() {
    let mut table = Table::default();
    for (a, b, of_20) in
        [("symseq2", "symseq", 20), ("symseq home", "symseq home", 19), ("symseq busy", "symseq busy", 14)]
    {
        let runs = table.run([a, b], Promise::Luck, 40, 0.0);
        let direct = runs.iter().filter(|run| run.rounds == 1 && run.direct_us.is_some()).count();
        table.demand(direct * 20 >= runs.len() * of_20, format!("{a} {b}: {direct} of {}", runs.len()));
    }
    table.run(["symseq busy", "linux-open"], Promise::AtOnce, 10, 0.0);
    table.judge();
}

#[test]
fn where_udp_is_blocked_tcp_is_direct_within_a_second() {
    let mut table = Table::default();
    let others = ["public", "fw", "full", "restricted", "port", "port+port", "linux", "linux-open", "blocked"];
    for (a, b) in both_ways(&["blocked"], &others).into_iter().chain([("public", "blocked symmetric")]) {
        let runs = table.run([a, b], Promise::InTheFirstRound, 5, 0.0);
        let in_time = runs.iter().filter(|run| run.direct_us.is_some_and(|us| us <= SECOND)).count();
        table.demand(in_time == runs.len(), format!("{a} {b}: {in_time} of {} in time", runs.len()));
        let by_tcp = runs.iter().all(|run| run.verdicts.iter().all(is_tcp));
        table.demand(by_tcp, format!("{a} {b}: not by TCP"));
    }
    table.judge();
}

#[test]
fn what_cannot_be_punched_stays_on_the_relay_and_the_reason_is_told() {
    let cases = [
        ("symmetric", "symmetric", Why::BothRandom),
        ("symmetric", "port+cgn", Why::BothRandom),
        ("linux-random", "linux-random", Why::BothRandom),
        ("symfull", "symmetric", Why::BothRandom),
        ("symseq", "symmetric", Why::RandomAndSteps),
        ("blocked", "symmetric", Why::Blocked),
        ("blocked", "symseq", Why::Blocked),
        ("adm", "adm", Why::Silence),
    ];
    let mut table = Table::default();
    for (a, b, why) in cases {
        for pair in [[a, b], [b, a]] {
            let runs = table.run(pair, Promise::Relay, 3, 0.0);
            let reasons: Vec<_> = runs.iter().flat_map(|run| run.verdicts).collect();
            let is_told = reasons.contains(&Verdict::Relay(why));
            table.demand(is_told, format!("{pair:?}: {reasons:?} instead of {why:?}"));
        }
    }
    table.judge();
}

// Neighbours.

#[test]
fn two_hosts_of_one_house_reach_each_other_by_their_own_addresses() {
    for seed in 0..5 {
        let mut world = same_house(seed, "symmetric", 0.0);
        let outcome = world.punch(1);
        let own = [Ipv4Addr::new(192, 168, 1, 11), Ipv4Addr::new(192, 168, 1, 10)];
        for (verdict, own) in outcome.verdicts.iter().zip(own) {
            assert!(
                matches!(verdict, Verdict::Direct { remote, .. } if remote.ip() == own),
                "seed {seed}: {outcome:?}"
            );
        }
        assert!(world.both_ways_work(), "seed {seed}");
    }
}

#[test]
fn two_homes_behind_one_carrier_reach_each_other_if_it_turns_packets_round() {
    for seed in 0..5 {
        let port = || Kind::new(Mapping::Endpoint, Filtering::AddressAndPort);
        let mut world = same_carrier(seed, port().with_hairpin());
        let outcome = world.punch(1);
        assert!(world.both_ways_work(), "seed {seed}: {outcome:?}");
        let mut world = same_carrier(seed, port());
        assert_eq!(world.punch(1).direct_us, None, "seed {seed}: no way without hairpin");
    }
}

#[test]
fn two_firewalls_of_ipv6_are_passed_although_ipv4_is_hopeless() {
    let firewall = Kind::new(Mapping::None, Filtering::AddressAndPort);
    let house = House { firewall6: Some(firewall), ..House::named("symmetric") };
    for seed in 0..5 {
        let mut world = World::between(seed, &house, &house, 0.0);
        let outcome = world.punch(1);
        for verdict in outcome.verdicts {
            assert!(matches!(verdict, Verdict::Direct { socket: Socket::Main6, .. }), "seed {seed}: {outcome:?}");
        }
        assert!(outcome.direct_us.is_some_and(|us| us <= 350 * MS), "seed {seed}: {outcome:?}");
        assert!(world.both_ways_work(), "seed {seed}");
    }
}

#[test]
fn homes_with_the_same_private_addresses_do_not_mistake_themselves_for_the_other() {
    for seed in 0..5 {
        let mut net = Internet::seeded(seed);
        let places = [1, 2].map(|home| {
            let realm = net.add_realm();
            let nat = Kind::new(Mapping::Endpoint, Filtering::AddressAndPort);
            net.add_nat(nat, Ipv4Addr::new(198, 51, 100, home).into(), realm, PUBLIC, line(0.0));
            Place::in_realm(&mut net, realm, Ipv4Addr::new(192, 168, 1, 10), None)
        });
        let mut world = World::new(seed, net, places, 0.0);
        let outcome = world.punch(1);
        assert!(outcome.direct_us.is_some_and(|us| us <= 350 * MS), "seed {seed}: {outcome:?}");
        assert!(world.both_ways_work(), "seed {seed}");
    }
}

// Traps.

#[test]
fn a_router_that_remembers_strangers_is_passed_although_one_side_begins_50_ms_too_early_or_too_late() {
    for (a, b) in pairs(&["linux-open", "port", "symseq"], &["linux-open"]) {
        for (seed, skew_us) in [-50_000, -20_000, 20_000, 50_000].into_iter().enumerate() {
            let houses = [House::named(a), House::named(b)];
            let mut world = World::between(seed as u64, &houses[0], &houses[1], 0.0);
            world.skew_us = skew_us;
            let outcome = world.punch(1);
            assert!(outcome.direct_us.is_some(), "{a} {b}, seed {seed}, skew {skew_us} µs: {outcome:?}");
        }
    }
}

#[test]
fn a_later_round_begins_anew_with_sockets_that_no_router_remembers() {
    let house = House::named("linux-open");
    let mut world = World::between(7, &house, &house, 0.0);
    world.skew_us = 2_000_000; // The visitor's probes come long before the provider's openers leave.
    assert_eq!(world.punch(1).direct_us, None, "the trap");
    world.skew_us = 0;
    assert!(world.punch(1).direct_us.is_some(), "the same routers, a moment later");
}

#[test]
fn no_round_has_more_shots_than_it_may_have_and_openers_die_on_their_way() {
    for (a, b) in [("port", "symmetric"), ("symmetric", "port"), ("symseq", "symseq"), ("adm", "symmetric")] {
        let mut world = World::between(3, &House::named(a), &House::named(b), 0.0);
        let outcome = world.punch(1);
        assert!(outcome.shots.iter().all(|shots| *shots <= SHOTS_MAX as usize), "{a} {b}: {outcome:?}");
        for peer in &world.peers {
            let sent_from_spares = peer.shots.iter().filter(|(_, shot)| matches!(shot.from, Socket::Spare(_)));
            let first_of_each: std::collections::BTreeMap<_, _> =
                sent_from_spares.rev().map(|(_, shot)| (shot.from, shot.ttl)).collect();
            assert!(first_of_each.values().all(Option::is_some), "{a} {b}: the first shot of a spare is an opener");
            let tcp = peer.shots.iter().filter(|(_, shot)| shot.kind == ShotKind::Tcp).count();
            assert!(tcp <= 3, "{a} {b}: {tcp} tries of TCP");
        }
    }
}

fn run(seed: u64, houses: &[House; 2], loss: f64, rounds: u32) -> Outcome {
    let mut world = World::between(seed, &houses[0], &houses[1], loss);
    let outcome = world.punch(rounds);
    let works = outcome.direct_us.is_none() || world.both_ways_work();
    assert!(works, "{} {}, seed {seed}: a way that does not work: {outcome:?}", houses[0].name, houses[1].name);
    outcome
}

fn pairs(ones: &[&'static str], others: &[&'static str]) -> Vec<(&'static str, &'static str)> {
    ones.iter().flat_map(|one| others.iter().map(|other| (*one, *other))).collect()
}

fn both_ways(ones: &[&'static str], others: &[&'static str]) -> Vec<(&'static str, &'static str)> {
    pairs(ones, others).into_iter().chain(pairs(others, ones)).collect()
}

fn is_tcp(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Direct { socket: Socket::Link, .. })
}

fn line(loss: f64) -> Cable {
    Cable { delay_us: LINE_DELAY_US, loss, hops: 4 }
}

fn same_house(seed: u64, name: &'static str, loss: f64) -> World {
    let mut net = Internet::seeded(seed);
    let realm = net.add_realm();
    let nat = House::named(name).nats.remove(0);
    net.add_nat(nat, Ipv4Addr::new(198, 51, 100, 1).into(), realm, PUBLIC, line(loss));
    let places = [10, 11].map(|host| Place::in_realm(&mut net, realm, Ipv4Addr::new(192, 168, 1, host), None));
    World::new(seed, net, places, loss)
}

fn same_carrier(seed: u64, carrier: Kind) -> World {
    let mut net = Internet::seeded(seed);
    let realm = net.add_realm();
    net.add_nat(carrier, Ipv4Addr::new(203, 0, 113, 129).into(), realm, PUBLIC, line(0.0));
    let places = [1, 2].map(|home| {
        let nat = Kind::new(Mapping::Endpoint, Filtering::AddressAndPort);
        let home_realm = add_inner(&mut net, &nat, realm, Ipv4Addr::new(100, 64, 0, home));
        Place::in_realm(&mut net, home_realm, Ipv4Addr::new(192, 168, home, 10), None)
    });
    World::new(seed, net, places, 0.0)
}

/// One line for each pair; shown when a line breaks its promise.
#[derive(Default)]
struct Table {
    lines: String,
    complaints: Vec<String>,
}

impl Table {
    /// Runs a pair, and gives back what came of it.
    fn run(&mut self, [a, b]: [&'static str; 2], promise: Promise, count: u64, loss: f64) -> Vec<Outcome> {
        let houses = [House::named(a), House::named(b)];
        let rounds = if promise == Promise::Relay { ROUNDS } else { 1 };
        // Other seeds for each pair, so that one unlucky draw does not spoil all of them.
        let seeds = self.lines.lines().count() as u64 * 100;
        let runs: Vec<Outcome> = (seeds..seeds + count).map(|seed| run(seed, &houses, loss, rounds)).collect();
        self.add(format!("{a} {b}"), promise, seeds, runs.clone());
        runs
    }

    fn add(&mut self, pair: String, promise: Promise, seeds: u64, runs: Vec<Outcome>) {
        let mut line = format!("{pair:<44} {promise:?}:");
        for (seed, run) in (seeds..).zip(&runs) {
            let time = run.direct_ms().map_or("relay".to_owned(), |ms| format!("{ms} ms"));
            let _ = write!(line, " {seed}: {time} in round {}, {:?} shots;", run.rounds, run.shots);
            if !promise.is_kept_by(run) {
                self.complaints.push(format!("{pair}, seed {seed}: {promise:?} was promised, {run:?}"));
            }
        }
        let _ = writeln!(self.lines, "{line}");
    }

    fn demand(&mut self, is_met: bool, complaint: String) {
        if !is_met {
            self.complaints.push(complaint);
        }
    }

    fn judge(self) {
        println!("{}", self.lines); // Shown by a failure, or by `--nocapture`.
        assert!(self.complaints.is_empty(), "\n{}", self.complaints.join("\n"));
    }
}

impl Promise {
    fn is_kept_by(self, run: &Outcome) -> bool {
        match self {
            Self::AtOnce => run.direct_us.is_some_and(|us| us <= 350 * MS),
            Self::InTheFirstRound => run.direct_us.is_some() && run.rounds == 1,
            Self::Later => run.direct_us.is_some() && run.rounds > 1,
            Self::Luck => true,
            Self::Relay => run.direct_us.is_none(),
        }
    }
}
