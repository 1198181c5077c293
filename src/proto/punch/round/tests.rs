use std::collections::BTreeSet;

use super::*;
use crate::proto::punch::aims::{GUESS_PAUSE_US, HEARD_MAX, TCP_BEFORE_END_US, TCP_TRIES_US};
use crate::proto::punch::candidates::{CANDIDATES_MAX, Candidate, Kind};

const SECOND: u64 = 1_000_000;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn profile(class: Class, candidates: &[(Kind, &str)]) -> Profile {
    let candidates = candidates.iter().map(|(kind, address)| Candidate { kind: *kind, address: at(address) });
    Profile { class, candidates: candidates.collect() }
}

fn ours(class: Class) -> Profile {
    let candidates = [
        (Kind::Host, "192.168.1.10:5000"),
        (Kind::Reflexive, "198.51.100.1:40000"),
        (Kind::TcpReflexive, "198.51.100.1:6000"),
    ];
    profile(class, &candidates)
}

fn theirs(class: Class) -> Profile {
    let candidates = [
        (Kind::Host, "192.168.2.20:5000"),
        (Kind::Reflexive, "192.0.2.1:50000"),
        (Kind::TcpReflexive, "192.0.2.1:7000"),
    ];
    profile(class, &candidates)
}

fn round(ours: &Profile, theirs: &Profile) -> Round {
    Round::new(Side::Visitor, 0, ours, theirs, SECOND, [9; 32])
}

/// All shots, by an owner who wakes up exactly when he is told to.
fn shots(round: &mut Round, until: u64) -> Vec<(u64, Shot)> {
    let (mut shots, mut now) = (Vec::new(), 0);
    while let Some(next) = round.next_timeout(now).filter(|next| *next <= until) {
        now = now.max(next);
        let before = shots.len();
        shots.extend(std::iter::from_fn(|| round.poll(now)).map(|shot| (now, shot)));
        assert!(shots.len() > before || round.is_over(now), "woken up for nothing at {now}");
    }
    shots
}

#[test]
fn nothing_is_shot_before_the_beginning_and_nothing_after_the_end() {
    let mut round = round(&ours(Class::Same), &theirs(Class::Same));
    let shots = shots(&mut round, u64::MAX);
    assert_eq!(shots[0].0, SECOND);
    assert!(shots.iter().all(|(now, _)| *now < SECOND + ROUND_US));
    assert_eq!(round.verdict(10 * SECOND), Verdict::Relay(Why::Silence));
}

#[test]
fn an_opener_precedes_the_probes_to_what_is_behind_a_nat_and_to_nothing_else() {
    let mut candidates = theirs(Class::Same);
    candidates.candidates.push(Candidate { kind: Kind::Host, address: at("192.168.1.20:5000") });
    candidates.candidates.push(Candidate { kind: Kind::Reflexive, address: at("[2001:db8::1]:5000") });
    let first = |to: &str| {
        let shots = shots(&mut round(&ours(Class::Same), &candidates), 2 * SECOND);
        shots.into_iter().find(|(_, shot)| shot.to == at(to)).map(|(_, shot)| shot.ttl)
    };
    assert_eq!(first("192.0.2.1:50000"), Some(Some(6)));
    for to in ["192.168.1.20:5000", "192.168.2.20:5000", "[2001:db8::1]:5000"] {
        assert_eq!(first(to), Some(None), "{to}");
    }
}

#[test]
fn neighbours_come_first() {
    let mut candidates = theirs(Class::Same);
    candidates.candidates.push(Candidate { kind: Kind::Host, address: at("192.168.1.20:5000") });
    let shots = shots(&mut round(&ours(Class::Same), &candidates), 2 * SECOND);
    assert_eq!(shots[0].1.to, at("192.168.1.20:5000"));
}

#[test]
fn whatever_a_peer_names_and_sends_the_round_stays_below_its_bounds() {
    let hosts: Vec<String> = (0..24).map(|host| format!("203.0.113.{host}:5000")).collect();
    let many: Vec<(Kind, &str)> = hosts.iter().map(|host| (Kind::Reflexive, host.as_str())).collect();
    for class in [Class::Open, Class::Same, Class::Steps(1), Class::Random, Class::Blocked, Class::Unclear] {
        for own in [Class::Same, Class::Steps(3), Class::Random] {
            let mut round = round(&ours(own), &profile(class, &many));
            for port in 1_024..2_048 {
                round.on_probed(SECOND, Socket::Main4, SocketAddr::from(([192, 0, 2, 9], port)));
            }
            let shots = shots(&mut round, u64::MAX);
            assert!(shots.len() <= SHOTS_MAX as usize, "{own:?} {class:?}: {}", shots.len());
            let is_slow = shots.windows(211).all(|shots| shots[210].0 - shots[0].0 > SECOND / 10);
            assert!(is_slow, "{own:?} {class:?}: more than two in a millisecond");
            let places: BTreeSet<_> = shots.iter().map(|(_, shot)| shot.to.ip()).collect();
            assert!(places.len() <= CANDIDATES_MAX + HEARD_MAX);
        }
    }
}

#[test]
fn an_owner_who_comes_late_does_not_make_up_for_it_by_a_burst() {
    let mut round = round(&ours(Class::Random), &theirs(Class::Same));
    let late = SECOND + 400_000;
    let burst = std::iter::from_fn(|| round.poll(late)).count() as u64;
    assert!(burst <= CATCH_UP_US / SHOT_SPACING_US + 1, "{burst} shots at once");
}

#[test]
fn nothing_is_sent_to_an_address_that_cannot_be_a_peer() {
    let nonsense = profile(
        Class::Random,
        &[(Kind::Host, "127.0.0.1:5000"), (Kind::Reflexive, "224.0.0.1:5000"), (Kind::TcpReflexive, "127.0.0.1:80")],
    );
    let mut round = round(&ours(Class::Same), &nonsense);
    assert_eq!(shots(&mut round, u64::MAX).first(), None);
    assert_eq!(round.verdict(10 * SECOND), Verdict::Relay(Why::NoCandidates));
}

#[test]
fn nothing_is_guessed_or_predicted_from_such_an_address_either() {
    for class in [Class::Steps(1), Class::Random, Class::Same] {
        for own in [Class::Same, Class::Steps(1), Class::Random] {
            let nonsense = profile(class, &[(Kind::Reflexive, "224.0.0.1:5000")]);
            assert_eq!(shots(&mut round(&ours(own), &nonsense), u64::MAX).first(), None, "{own:?} {class:?}");
        }
    }
}

#[test]
fn an_answer_counts_only_from_where_its_probe_went() {
    let mut round = round(&ours(Class::Same), &theirs(Class::Random));
    let shot = shots(&mut round, SECOND + 40_000).last().expect("it has begun").1;
    let (now, elsewhere) = (SECOND + 100_000, at("192.0.2.1:50001"));
    round.on_answered(now, shot.token, shot.from, elsewhere);
    assert_eq!(round.verdict(now), Verdict::Underway);
    let next = std::iter::from_fn(|| round.poll(now)).find(|shot| shot.to == elsewhere).expect("it is probed");
    round.on_answered(now, next.token, next.from, elsewhere);
    assert_eq!(round.verdict(now), Verdict::Direct { socket: Socket::Main4, remote: elsewhere });
}

#[test]
fn a_source_that_was_heard_is_probed_at_once_from_the_socket_that_heard_it() {
    let mut round = round(&ours(Class::Random), &theirs(Class::Same));
    let _ = shots(&mut round, SECOND + 200_000);
    let now = SECOND + 201_000;
    round.on_probed(now, Socket::Spare(17), at("192.0.2.1:50000"));
    let answer =
        std::iter::from_fn(|| round.poll(now)).find(|shot| shot.from == Socket::Spare(17) && shot.ttl.is_none());
    assert!(answer.is_some_and(|shot| shot.to == at("192.0.2.1:50000")));
}

#[test]
fn after_an_answer_only_hosts_own_addresses_are_probed_and_only_for_a_moment() {
    let mut round = round(&ours(Class::Same), &theirs(Class::Random));
    let shot = shots(&mut round, SECOND + 40_000).pop().expect("it has begun").1;
    let reflexive = at("192.0.2.1:50000");
    round.on_answered(SECOND + 60_000, round.token(reflexive), shot.from, reflexive);
    let rest = shots(&mut round, u64::MAX);
    assert!(rest.iter().all(|(now, shot)| shot.to == at("192.168.2.20:5000") && *now <= SECOND + 60_000 + GRACE_US));
    assert!(round.is_over(SECOND + 60_000 + GRACE_US));
}

#[test]
fn a_peer_that_has_got_an_answer_ends_the_round_by_the_way_we_heard_last() {
    let mut round = round(&ours(Class::Same), &theirs(Class::Same));
    let _ = shots(&mut round, SECOND);
    round.on_probed(SECOND, Socket::Main4, at("192.0.2.1:50000"));
    round.on_punched();
    assert!(round.is_over(SECOND));
    assert_eq!(round.verdict(SECOND), Verdict::Direct { socket: Socket::Main4, remote: at("192.0.2.1:50000") });
}

#[test]
fn guesses_pause_while_a_way_that_was_heard_is_tried() {
    let mut round = round(&ours(Class::Same), &theirs(Class::Random));
    let _ = shots(&mut round, SECOND + 300_000);
    round.on_probed(SECOND + 300_000, Socket::Main4, at("192.0.2.1:1234"));
    let shots = shots(&mut round, SECOND + 300_000 + GUESS_PAUSE_US - 1);
    let places: BTreeSet<_> = shots.iter().map(|(_, shot)| shot.to).collect();
    assert!(places.len() <= 3, "{places:?}");
}

#[test]
fn tcp_comes_at_once_where_udp_is_blocked_and_last_elsewhere() {
    let first = |class| {
        let shots = shots(&mut round(&ours(Class::Same), &theirs(class)), u64::MAX);
        let tcp: Vec<_> = shots.into_iter().filter(|(_, shot)| shot.kind == ShotKind::Tcp).collect();
        assert!(tcp.len() <= TCP_TRIES_US.len() && tcp.iter().all(|(_, shot)| shot.to == at("192.0.2.1:7000")));
        tcp[0].0 - SECOND
    };
    assert_eq!(first(Class::Blocked), 0);
    assert_eq!(first(Class::Same), ROUND_US - TCP_BEFORE_END_US);
}

#[test]
fn later_openers_live_shorter() {
    let (ours, theirs) = (ours(Class::Same), theirs(Class::Same));
    let mut round = Round::new(Side::Visitor, 1, &ours, &theirs, SECOND, [9; 32]);
    let openers: BTreeSet<_> = shots(&mut round, 2 * SECOND).iter().filter_map(|(_, shot)| shot.ttl).collect();
    assert_eq!(openers, BTreeSet::from([4]));
}
