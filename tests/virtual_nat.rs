//! The virtual NAT itself: what is found out with it is worth as much as this.

mod sim;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use sim::SECOND;
use sim::internet::{Cable, Internet, PUBLIC, Packet};
use sim::nat::{Filtering, Kind, Mapping, Nat, Protocol};
use sim::rng::Rng;

const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn inside() -> SocketAddr {
    at("192.168.1.10:5000")
}

/// Two ports of one stranger, and another stranger.
fn strangers() -> [SocketAddr; 3] {
    [at("203.0.113.1:1111"), at("203.0.113.1:2222"), at("203.0.113.2:1111")]
}

fn nat(mapping: Mapping, filtering: Filtering) -> Nat {
    Nat::new(Kind::new(mapping, filtering), EXTERNAL.into(), Rng::seeded(4))
}

/// External ports of one socket towards the strangers.
fn ports(nat: &mut Nat) -> [u16; 3] {
    strangers().map(|to| nat.outbound(0, Protocol::Udp, inside(), to).expect("it leaves").port())
}

#[test]
fn each_mapping_gives_the_ports_that_its_name_says() {
    let all = |mapping| ports(&mut nat(mapping, Filtering::Endpoint));
    assert_eq!(all(Mapping::None), [5000; 3]);
    assert_eq!(all(Mapping::Preserving), [5000; 3]);
    assert_eq!(all(Mapping::Tracked { draws: false, takes_strangers: true }), [5000; 3]);
    let [a, b, c] = all(Mapping::Endpoint);
    assert!(a == b && b == c && a != 5000);
    let [a, b, c] = all(Mapping::Address);
    assert!(a == b && b != c);
    let [a, b, c] = all(Mapping::Steps { delta: 3, others_per_second: 0 });
    assert!(b == a + 3 && c == b + 3);
    for mapping in [Mapping::Random, Mapping::Tracked { draws: true, takes_strangers: false }] {
        let [a, b, c] = all(mapping);
        assert!(a != b && b != c && a != c, "{mapping:?}");
    }
}

#[test]
fn other_hosts_take_ports_of_a_nat_that_counts() {
    let mut nat = nat(Mapping::Steps { delta: 1, others_per_second: 20 }, Filtering::Endpoint);
    let mut port = |now, to| nat.outbound(now, Protocol::Udp, inside(), to).expect("it leaves").port();
    let [first, second, _] = strangers();
    let before = port(SECOND, first);
    assert!((200..=202).contains(&(port(11 * SECOND, second) - before)));
}

#[test]
fn each_filtering_lets_in_whom_its_name_says() {
    let lets_in = |filtering| {
        let mut nat = nat(Mapping::Endpoint, filtering);
        let external = nat.outbound(0, Protocol::Udp, inside(), strangers()[0]).expect("it leaves");
        strangers().map(|from| nat.inbound(1, Protocol::Udp, from, external) == Some(inside()))
    };
    assert_eq!(lets_in(Filtering::Endpoint), [true, true, true]);
    assert_eq!(lets_in(Filtering::Address), [true, true, false]);
    assert_eq!(lets_in(Filtering::AddressAndPort), [true, false, false]);
}

#[test]
fn a_mapping_lives_as_long_as_it_is_used() {
    let kind = Kind::new(Mapping::Endpoint, Filtering::Endpoint).living(20 * SECOND);
    let mut nat = Nat::new(kind, EXTERNAL.into(), Rng::seeded(1));
    let [stranger, ..] = strangers();
    let external = nat.outbound(0, Protocol::Udp, inside(), stranger).expect("it leaves");
    assert_eq!(nat.inbound(19 * SECOND, Protocol::Udp, stranger, external), Some(inside()));
    assert_eq!(nat.inbound(38 * SECOND, Protocol::Udp, stranger, external), Some(inside()));
    assert_eq!(nat.inbound(58 * SECOND, Protocol::Udp, stranger, external), None);
    let external = nat.outbound(59 * SECOND, Protocol::Udp, inside(), stranger).expect("it leaves");
    nat.flush();
    assert_eq!((nat.inbound(59 * SECOND, Protocol::Udp, stranger, external), nat.mappings()), (None, 0));
}

#[test]
fn blocked_udp_neither_leaves_nor_enters_and_tcp_does() {
    let kind = Kind::new(Mapping::Endpoint, Filtering::Endpoint).without_udp();
    let mut nat = Nat::new(kind, EXTERNAL.into(), Rng::seeded(1));
    let [stranger, ..] = strangers();
    assert_eq!(nat.outbound(0, Protocol::Udp, inside(), stranger), None);
    let external = nat.outbound(0, Protocol::Tcp, inside(), stranger).expect("it leaves");
    assert_eq!(nat.inbound(0, Protocol::Tcp, stranger, external), Some(inside()));
    assert_eq!(nat.inbound(0, Protocol::Udp, stranger, external), None);
}

#[test]
fn a_stranger_who_comes_first_changes_our_port_at_a_router_that_takes_strangers_and_at_no_other() {
    for (takes_strangers, is_changed) in [(true, true), (false, false)] {
        let mut nat = nat(Mapping::Tracked { draws: false, takes_strangers }, Filtering::AddressAndPort);
        let [peer, _, other] = strangers();
        let external = SocketAddr::new(EXTERNAL.into(), 5000);
        let mut port = |now, to| nat.outbound(now, Protocol::Udp, inside(), to).expect("it leaves").port();
        assert_eq!(port(0, other), 5000);
        assert_eq!(nat.inbound(1, Protocol::Udp, peer, external), None);
        let mut port = |now, to| nat.outbound(now, Protocol::Udp, inside(), to).expect("it leaves").port();
        assert_eq!(port(2, peer) != 5000, is_changed, "takes strangers: {takes_strangers}");
        assert_eq!(port(3, other), 5000, "only towards the one who came");
    }
}

#[test]
fn our_packet_that_is_first_keeps_its_port() {
    let mut nat = nat(Mapping::Tracked { draws: false, takes_strangers: true }, Filtering::AddressAndPort);
    let [peer, ..] = strangers();
    let external = nat.outbound(0, Protocol::Udp, inside(), peer).expect("it leaves");
    assert_eq!((external.port(), nat.inbound(1, Protocol::Udp, peer, external)), (5000, Some(inside())));
}

/// Two houses and a packet from the first to the address of the second's NAT.
fn arrives(ttl: u8, carrier: bool) -> (bool, usize) {
    let mut net = Internet::seeded(1);
    let line = Cable { delay_us: 15_000, loss: 0.0, hops: 4 };
    let port = || Kind::new(Mapping::Endpoint, Filtering::Endpoint);
    let mut realm = net.add_realm();
    let mut nat = net.add_nat(port(), EXTERNAL.into(), realm, PUBLIC, line);
    if carrier {
        let inner = net.add_realm();
        nat = net.add_nat(port(), Ipv4Addr::new(100, 64, 0, 2).into(), inner, realm, Cable { hops: 1, ..line });
        realm = inner;
    }
    let host = net.add_host(realm, &[inside().ip()], Cable::LAN);
    let there: IpAddr = strangers()[0].ip();
    net.add_host(PUBLIC, &[there], line);
    net.send(0, host, Packet { protocol: Protocol::Udp, from: inside(), to: strangers()[0], ttl, payload: () });
    let arrived = net.poll(SECOND).is_some();
    (arrived, net.nat(nat).mappings())
}

#[test]
fn a_packet_with_few_hops_to_live_opens_our_nats_and_does_not_arrive() {
    for carrier in [false, true] {
        for ttl in [4, 6] {
            assert_eq!(arrives(ttl, carrier), (false, 1), "TTL {ttl}, carrier {carrier}");
        }
        assert_eq!(arrives(64, carrier), (true, 1));
    }
}
