//! Cases of traffic over a path, what is measured of them, and bounds for that: for benches, and for tests that hold their figures.

use std::fs;
use std::net::SocketAddr;

use gateway::proto::tunnel::{self, pacer};

use super::bare::Bare;
use super::busy::Busy;
use super::link::{IP_UDP_BYTES, Settings};
use super::traffic::{GAME_EVERY_US, MESSAGE, Measured, Traffic};
use super::{HostId, LinkId, Net, SECOND};

/// A tunnel is there for so long before another comes to share its path, in s.
const HEAD_START_S: u64 = 5;

pub struct Case {
    /// Group and what is special in it, with a colon between them.
    pub name: String,
    /// Alike in both directions.
    pub link: Settings,
    pub traffic: Traffic,
    pub tunnels: usize,
    pub bounds: Vec<Bound>,
}

#[derive(Clone, Copy, Debug)]
pub enum Bound {
    AtMost(&'static str, f64),
    AtLeast(&'static str, f64),
}

/// Name and value of what was measured in a run.
pub type Figures = Vec<(&'static str, f64)>;

impl Case {
    pub fn group(&self) -> &str {
        self.name.split(':').next().unwrap_or_default()
    }
}

impl Bound {
    pub fn figure(&self) -> &'static str {
        match self {
            Self::AtMost(figure, _) | Self::AtLeast(figure, _) => figure,
        }
    }

    pub fn holds(&self, value: f64) -> bool {
        match self {
            Self::AtMost(_, most) => value <= *most,
            Self::AtLeast(_, least) => value >= *least,
        }
    }
}

/// Ends of a tunnel.
pub trait Ends: Measured + Sized {
    fn add(net: &mut Net<Self>, addresses: [SocketAddr; 2]) -> [HostId; 2];
}

impl Ends for Busy {
    fn add(net: &mut Net<Self>, [left, right]: [SocketAddr; 2]) -> [HostId; 2] {
        let settings = tunnel::Settings::default();
        let [here, there] = [net.rng().seed(), net.rng().seed()];
        let visitor = Busy::visitor(net.now(), right, settings.clone(), here);
        [net.add_host(left, visitor), net.add_host(right, Busy::provider(settings, there))]
    }
}

impl Ends for Bare {
    fn add(net: &mut Net<Self>, [left, right]: [SocketAddr; 2]) -> [HostId; 2] {
        [(left, right), (right, left)].map(|(here, there)| {
            let pacer = pacer::Settings { seed: net.rng().next(), ..pacer::Settings::default() };
            net.add_host(here, Bare::new(there, Traffic::default(), pacer))
        })
    }
}

/// What is measured of the case in so many seconds. Those in which a tunnel looks for its rate count.
pub fn run<N: Ends>(case: &Case, seed: u64, seconds: u64) -> Figures {
    let cpu_before = cpu_seconds();
    let mut net: Net<N> = Net::seeded(seed);
    let links = [net.add_link(case.link.clone()), net.add_link(case.link.clone())];
    let ends: Vec<[HostId; 2]> = (0..case.tunnels).map(|number| begin(&mut net, number, links, case.traffic)).collect();
    let (begun, before) = (net.now(), delivered(&net, &ends));
    net.run_for(seconds * SECOND);
    let mut figures = Figures::new();
    if case.traffic.game_every_us.is_some() {
        figures.extend(delays(&net, &ends, case.traffic.bulk));
    }
    if case.traffic.bulk {
        let after = delivered(&net, &ends);
        let all: f64 = after.iter().sum();
        figures.extend(rates(&before, &after, net.now() - begun));
        figures.extend(amounts(&mut net, links, all));
        figures.push(("cpu_s_per_gb", (cpu_seconds() - cpu_before) / all * 1e9));
    } else {
        let messages = ends.iter().flatten().map(|end| net.node(*end).delays().len()).sum();
        figures.extend(overhead(&mut net, links, messages));
    }
    figures
}

fn begin<N: Ends>(net: &mut Net<N>, number: usize, links: [LinkId; 2], traffic: Traffic) -> [HostId; 2] {
    if number > 0 {
        net.run_for(HEAD_START_S * SECOND);
    }
    let pair = N::add(net, [1, 2].map(|side| SocketAddr::from(([10, 0, number as u8, side], 4000))));
    net.set_route(pair[0], pair[1], &[links[0]]);
    net.set_route(pair[1], pair[0], &[links[1]]);
    net.node_mut(pair[0]).start(traffic);
    net.node_mut(pair[1]).start(traffic.answer());
    pair
}

/// Of bulk, by each tunnel.
fn delivered<N: Ends>(net: &Net<N>, ends: &[[HostId; 2]]) -> Vec<f64> {
    ends.iter().map(|pair| net.node(pair[1]).delivered_bytes() as f64).collect()
}

/// Of the first tunnel's game, in both directions; beside bulk only of those that went its way.
fn delays<N: Ends>(net: &Net<N>, ends: &[[HostId; 2]], is_one_way: bool) -> Figures {
    let mut delays = net.node(ends[0][1]).delays().to_vec();
    if !is_one_way {
        delays.extend_from_slice(net.node(ends[0][0]).delays());
    }
    delays.sort_unstable();
    let percentile = |part: f64| {
        let at = (delays.len() as f64 * part) as usize;
        delays.get(at.min(delays.len().saturating_sub(1))).map_or(f64::NAN, |us| f64::from(*us) / 1e3)
    };
    vec![("p50_ms", percentile(0.5)), ("p99_ms", percentile(0.99)), ("p999_ms", percentile(0.999))]
}

/// Bytes and packets for so much bulk. `wire` is without the headers of IP and UDP, `ip` with them.
fn amounts<N: Ends>(net: &mut Net<N>, links: [LinkId; 2], payload: f64) -> Figures {
    let [there, back] = links.map(|link| net.link(link).stats);
    let ip_bytes = there.bytes + there.packets * IP_UDP_BYTES as u64;
    vec![
        ("wire_per_payload", there.bytes as f64 / payload),
        ("ip_bytes_per_payload", ip_bytes as f64 / payload),
        ("both_ways_per_payload", (there.bytes + back.bytes) as f64 / payload),
        ("acks_per_packet", back.packets as f64 / there.packets as f64),
        ("queue_ms", there.mean_queue_us() as f64 / 1e3),
        ("queue_max_ms", there.queued_most_us as f64 / 1e3),
    ]
}

/// Since the last tunnel began.
fn rates(before: &[f64], after: &[f64], us: u64) -> Figures {
    let gained: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    let all: f64 = gained.iter().sum();
    let mut rates = vec![("bulk_mbit", all * 8.0 / us as f64)];
    if gained.len() > 1 {
        rates.push(("share_percent", 100.0 * gained[0] / all));
    }
    rates
}

/// What a game costs, both directions together.
fn overhead<N: Ends>(net: &mut Net<N>, links: [LinkId; 2], messages: usize) -> Figures {
    let [there, back] = links.map(|link| net.link(link).stats);
    let elapsed_s = net.now() as f64 / 1e6;
    let written = 2.0 * net.now() as f64 / GAME_EVERY_US as f64;
    vec![
        ("wire_per_payload", (there.bytes + back.bytes) as f64 / (messages * MESSAGE) as f64),
        ("packets_per_s", there.packets.max(back.packets) as f64 / elapsed_s),
        ("lost_percent", 100.0 * (1.0 - messages as f64 / written)),
    ]
}

/// Of this thread, as the scheduler has counted it.
fn cpu_seconds() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).map_or(f64::NAN, |ns| ns / 1e9)
}
