//! Tunnels in a virtual network: how they begin, and how they end.

mod sim;

use std::net::SocketAddr;

use gateway::proto::tunnel::{CloseReason, LostReason, Service, Settings};
use sim::link;
use sim::side::{Accepts, Side};
use sim::{HostId, MS, Net, SECOND};

pub fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 4000))
}

/// A visitor and a provider, 50 ms apart there and back, and a tunnel between them.
fn pair(seed: u64, link: &link::Settings) -> (Net<Side>, HostId, HostId) {
    let (mut net, visitor, provider) = strangers(seed, link);
    net.node_mut(visitor).connect(0, address(2));
    net.run_for(SECOND);
    assert!(net.node(provider).tunnel.is_some(), "a tunnel is established");
    (net, visitor, provider)
}

fn strangers(seed: u64, link: &link::Settings) -> (Net<Side>, HostId, HostId) {
    let mut net = Net::seeded(seed);
    let mut side = |host| {
        let side = Side::new(Settings::default(), net.rng().seed());
        net.add_host(address(host), side)
    };
    let (visitor, provider) = (side(1), side(2));
    net.connect(visitor, provider, link);
    let service = Service { tcp_ports: 2, udp_ports: 1, wants_addresses: true };
    net.node_mut(provider).serve(Accepts::Echo, service);
    (net, visitor, provider)
}

#[test]
fn a_tunnel_is_established_in_a_round_trip_and_carries_a_stream() {
    let (mut net, visitor, provider) = strangers(1, &link::Settings::delayed_ms(25));
    net.node_mut(visitor).connect(0, address(2));
    net.run_for(50 * MS);
    assert!(net.node(visitor).tunnel.is_some());
    let bytes = net.rng().bytes(100_000);
    let stream = net.node_mut(visitor).send(bytes.clone(), true);
    net.run_for(25 * MS);
    assert!(net.node(provider).tunnel.is_some(), "the first packet brought it up");
    net.run_for(2 * SECOND);
    for side in [visitor, provider] {
        let held = net.node(side).held(stream);
        assert_eq!(held.read.len(), bytes.len());
        assert!(held.read == bytes && held.has_ended && held.is_forgotten);
    }
}

#[test]
fn closing_is_told() {
    let (mut net, visitor, provider) = pair(1, &link::Settings::delayed_ms(25));
    net.node_mut(visitor).tunnel().close(CloseReason::Leaving);
    net.run_for(25 * MS);
    assert_eq!(net.node(provider).lost, [LostReason::Closed(CloseReason::Leaving)]);
    net.run_for(10 * SECOND);
    assert_eq!([visitor, provider].map(|side| sim::Node::next_timeout(net.node(side))), [None, None]);
}
