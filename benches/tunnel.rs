//! What do users of a tunnel get out of a path: how late are a game's messages when packets are lost, how late beside bulk, how
//! fast is bulk, how many bytes does that take, and how do two tunnels share?
//!
//! The network is the virtual one of `tests/sim`, so the figures are the same on every machine, but for CPU time: that of both
//! ends and of the simulation, encryption included. A seed makes a run; the seeds here were not looked at while anything was tuned.
//! Each case has bounds, and is judged by its worst seed. `scripts/bench-tunnel` runs it and keeps the raw results.
//!
//! ```text
//! cargo bench --bench tunnel -- [--seconds 600] [--seeds 5] [--only mix] [--bare] [--json FILE]
//! ```
//!
//! `--bare` runs conversations without a tunnel around them, only with its pacer: what differs is not the pacer's.

#[path = "../tests/sim/mod.rs"]
mod sim;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, thread};

use gateway::proto::tunnel::{self, pacer};
use serde_json::{Value, json};
use sim::bare::Bare;
use sim::busy::Busy;
use sim::link::{IP_UDP_BYTES, Loss, Settings};
use sim::traffic::{MESSAGE, Measured, Traffic};
use sim::{HostId, MS, Net, SECOND};

/// The first of the seeds.
const SEED: u64 = 90_001;

const MBIT: u64 = 1_000_000;

/// A tunnel is there for so long before another comes to share its path, in s; and before it is judged how they share.
const HEAD_START_S: u64 = 5;

struct Case {
    name: String,
    /// Alike in both directions.
    link: Settings,
    traffic: Traffic,
    tunnels: usize,
    bounds: Vec<Bound>,
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost(&'static str, f64),
    AtLeast(&'static str, f64),
}

use Bound::{AtLeast, AtMost};

/// Name and value of what was measured in a run.
type Figures = Vec<(&'static str, f64)>;

struct Options {
    seconds: u64,
    seeds: u64,
    only: String,
    bare: bool,
    json: Option<String>,
}

fn main() {
    let options = Options::from_args();
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.name.contains(&options.only)).collect();
    let results = run_all(&cases, &options);
    let mut missed = 0;
    let mut group = "";
    for (case, runs) in cases.iter().zip(&results) {
        if group != case.group() {
            group = case.group();
            println!("\n{group}");
        }
        missed += report(case, runs);
    }
    println!("\n{} s, {} seeds; {missed} bounds missed", options.seconds, options.seeds);
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&as_json(&cases, &results, &options)).expect("figures are numbers");
        fs::File::create(path).and_then(|mut file| writeln!(file, "{text}")).expect("results can be written");
    }
    std::process::exit(i32::from(missed > 0));
}

// The cases.

fn cases() -> Vec<Case> {
    [games(), mixtures(), sharings(), bulks()].into_iter().flatten().collect()
}

fn games() -> Vec<Case> {
    let losing = |rtt_ms: u64, loss| Settings::delayed_ms(rtt_ms / 2).losing(loss);
    let p99 = |ms| AtMost("p99_ms", ms);
    let mut cases = vec![
        game("RTT 50 ms, no loss", losing(50, Loss::None), vec![p99(26.0), AtMost("wire_per_payload", 3.6)]),
        game("RTT 50 ms, 1 %", losing(50, Loss::Iid(0.01)), vec![p99(45.0)]),
        game(
            "RTT 50 ms, 5 %",
            losing(50, Loss::Iid(0.05)),
            vec![p99(45.0), AtMost("p999_ms", 65.0), AtMost("wire_per_payload", 7.0)],
        ),
        game("RTT 50 ms, 10 %", losing(50, Loss::Iid(0.1)), vec![p99(60.0)]),
        game("RTT 50 ms, 20 %", losing(50, Loss::Iid(0.2)), vec![p99(85.0)]),
        game(
            "RTT 50 ms, 5 % in bursts of 3",
            losing(50, Loss::Bursts { loss: 0.05, mean_length: 3.0 }),
            vec![p99(65.0)],
        ),
        game("RTT 20 ms, 5 %", losing(20, Loss::Iid(0.05)), vec![]),
        game("RTT 150 ms, 5 %", losing(150, Loss::Iid(0.05)), vec![p99(95.0)]),
    ];
    for (name, jitter_reorders) in [("10 ms of jitter", false), ("10 ms of jitter that reorders", true)] {
        let link = Settings { jitter_us: 10 * MS, jitter_reorders, ..losing(50, Loss::Iid(0.05)) };
        cases.push(game(&format!("RTT 50 ms, 5 %, {name}"), link, vec![p99(60.0)]));
    }
    for loss in [0.0, 0.05] {
        let traffic = Traffic { game_by_datagrams: true, ..Traffic::game() };
        let name = format!("game: datagrams, RTT 50 ms, {} %", loss * 100.0);
        cases.push(Case { name, link: losing(50, Loss::Iid(loss)), traffic, tunnels: 1, bounds: vec![] });
    }
    cases
}

fn game(name: &str, link: Settings, mut bounds: Vec<Bound>) -> Case {
    bounds.push(AtMost("packets_per_s", 130.0));
    Case { name: format!("game: {name}"), link, traffic: Traffic::game(), tunnels: 1, bounds }
}

fn mixtures() -> Vec<Case> {
    let mix = |mbit: u64, buffer_ms: u64, rtt_ms: u64, percent: f64, bounds| {
        let link = Settings::delayed_ms(rtt_ms / 2).losing(Loss::Iid(percent / 100.0)).limited(mbit * MBIT, buffer_ms);
        let name = format!("mix: {mbit} Mbit/s, RTT {rtt_ms} ms, {percent} %");
        Case { name, link, traffic: Traffic::game_and_bulk(), tunnels: 1, bounds }
    };
    let (p99, bulk) = (|ms| AtMost("p99_ms", ms), |mbit| AtLeast("bulk_mbit", mbit));
    vec![
        mix(20, 200, 50, 0.0, vec![p99(36.0), bulk(17.0)]),
        mix(20, 200, 50, 1.0, vec![]),
        mix(20, 200, 50, 5.0, vec![p99(55.0), bulk(16.5)]),
        mix(20, 200, 50, 10.0, vec![p99(65.0), bulk(16.0)]),
        mix(20, 200, 20, 0.0, vec![]),
        mix(20, 200, 20, 5.0, vec![]),
        mix(20, 200, 150, 0.0, vec![]),
        mix(20, 200, 150, 5.0, vec![]),
        mix(5, 300, 50, 0.0, vec![p99(40.0)]),
        mix(5, 300, 50, 2.0, vec![]),
        mix(100, 50, 50, 0.0, vec![]),
    ]
}

fn sharings() -> Vec<Case> {
    let two = |rtt_ms: u64, percent: f64| {
        let link = Settings::delayed_ms(rtt_ms / 2).losing(Loss::Iid(percent / 100.0)).limited(20 * MBIT, 200);
        let name = format!("two tunnels: 20 Mbit/s, RTT {rtt_ms} ms, {percent} %");
        let bounds = vec![AtLeast("share_percent", 35.0), AtMost("share_percent", 65.0)];
        Case { name, link, traffic: Traffic::game_and_bulk(), tunnels: 2, bounds }
    };
    vec![two(20, 0.0), two(50, 0.0), two(50, 5.0), two(150, 0.0)]
}

fn bulks() -> Vec<Case> {
    let bulk = |rtt_ms: u64, percent: f64, bounds| {
        let link = Settings::delayed_ms(rtt_ms / 2).losing(Loss::Iid(percent / 100.0)).limited(100 * MBIT, 100);
        let name = format!("bulk: 100 Mbit/s, RTT {rtt_ms} ms, {percent} %");
        Case { name, link, traffic: Traffic::bulk(), tunnels: 1, bounds }
    };
    let mut cases = Vec::new();
    for (percent, mbit, wire) in
        [(0.0, 89.0, 1.07), (1.0, 88.0, 1.08), (5.0, 84.0, 1.13), (10.0, 79.0, 1.20), (20.0, 69.0, 1.40)]
    {
        let bounds = vec![AtLeast("bulk_mbit", mbit), AtMost("ip_bytes_per_payload", wire), AtMost("queue_ms", 10.0)];
        cases.push(bulk(50, percent, bounds));
    }
    for rtt_ms in [20, 150] {
        for percent in [0.0, 5.0, 20.0] {
            cases.push(bulk(rtt_ms, percent, vec![AtMost("queue_ms", 10.0)]));
        }
    }
    cases
}

impl Case {
    fn group(&self) -> &str {
        self.name.split(':').next().unwrap_or_default()
    }
}

impl Bound {
    fn figure(&self) -> &'static str {
        match self {
            AtMost(figure, _) | AtLeast(figure, _) => figure,
        }
    }

    fn holds(&self, value: f64) -> bool {
        match self {
            AtMost(_, most) => value <= *most,
            AtLeast(_, least) => value >= *least,
        }
    }
}

// The runs.

/// Of each case those of each seed, as many at a time as there are cores.
fn run_all(cases: &[Case], options: &Options) -> Vec<Vec<Figures>> {
    let runs: Vec<(usize, u64)> =
        (0..cases.len()).flat_map(|case| (0..options.seeds).map(move |seed| (case, SEED + seed))).collect();
    let results: Vec<Mutex<Figures>> = runs.iter().map(|_| Mutex::default()).collect();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, Into::into) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some((case, seed)) = runs.get(at) else { break };
                    let run = if options.bare { run::<Bare> } else { run::<Busy> };
                    *results[at].lock().expect("nobody panics with it") = run(&cases[*case], *seed, options.seconds);
                    eprint!("\r{} of {} runs ", at + 1, runs.len());
                }
            });
        }
    });
    let results: Vec<Figures> = results.into_iter().map(|it| it.into_inner().expect("nobody panics with it")).collect();
    results.chunks(options.seeds.max(1) as usize).map(<[Figures]>::to_vec).collect()
}

/// Ends of a tunnel.
trait Ends: Measured + Sized {
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

fn run<N: Ends>(case: &Case, seed: u64, seconds: u64) -> Figures {
    let mut net: Net<N> = Net::seeded(seed);
    let cpu_before = cpu_seconds();
    let links = [net.add_link(case.link.clone()), net.add_link(case.link.clone())];
    let mut ends = Vec::new();
    for number in 0..case.tunnels {
        if number > 0 {
            net.run_for(HEAD_START_S * SECOND);
        }
        let pair = N::add(&mut net, [1, 2].map(|side| SocketAddr::from(([10, 0, number as u8, side], 4000))));
        for (from, to, link) in [(0, 1, links[0]), (1, 0, links[1])] {
            net.set_route(pair[from], pair[to], &[link]);
        }
        net.node_mut(pair[0]).start(case.traffic);
        net.node_mut(pair[1]).start(case.traffic.answer());
        ends.push(pair);
    }
    let begun = net.now();
    let delivered =
        |net: &Net<N>| ends.iter().map(|pair| net.node(pair[1]).delivered_bytes() as f64).collect::<Vec<_>>();
    let before = delivered(&net);
    net.run_for(seconds * SECOND);
    let cpu = cpu_seconds() - cpu_before;
    let mut delays = net.node(ends[0][1]).delays().to_vec();
    let messages = ends.iter().flatten().map(|end| net.node(*end).delays().len()).sum::<usize>();
    if !case.traffic.bulk {
        delays.extend_from_slice(net.node(ends[0][0]).delays());
    }
    delays.sort_unstable();
    let (there, back) = (net.link(links[0]).stats, net.link(links[1]).stats);
    let elapsed = net.now() as f64 / 1e6;
    let mut figures = Vec::new();
    if case.traffic.game_every_us.is_some() {
        let percentile = |part: f64| {
            let at = (delays.len() as f64 * part) as usize;
            delays.get(at.min(delays.len().saturating_sub(1))).map_or(f64::NAN, |us| f64::from(*us) / 1e3)
        };
        figures.extend([("p50_ms", percentile(0.5)), ("p99_ms", percentile(0.99)), ("p999_ms", percentile(0.999))]);
    }
    if case.traffic.bulk {
        let after = delivered(&net);
        let gained: Vec<f64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
        let (gained_all, all) = (gained.iter().sum::<f64>(), after.iter().sum::<f64>());
        let ip_bytes = there.bytes + there.packets * IP_UDP_BYTES as u64;
        figures.extend([
            ("bulk_mbit", gained_all * 8.0 / (net.now() - begun) as f64),
            ("wire_per_payload", there.bytes as f64 / all),
            ("ip_bytes_per_payload", ip_bytes as f64 / all),
            ("both_ways_per_payload", (there.bytes + back.bytes) as f64 / all),
            ("acks_per_packet", back.packets as f64 / there.packets as f64),
            ("queue_ms", there.mean_queue_us() as f64 / 1e3),
            ("queue_max_ms", there.queued_most_us as f64 / 1e3),
            ("cpu_s_per_gb", cpu / all * 1e9),
        ]);
        if ends.len() > 1 {
            figures.push(("share_percent", 100.0 * gained[0] / gained_all));
        }
    } else {
        figures.extend([
            ("wire_per_payload", (there.bytes + back.bytes) as f64 / (messages * MESSAGE) as f64),
            ("packets_per_s", there.packets.max(back.packets) as f64 / elapsed),
            (
                "lost_percent",
                100.0 * (1.0 - messages as f64 / (2.0 * elapsed * 1e6 / sim::traffic::GAME_EVERY_US as f64)),
            ),
        ]);
    }
    figures
}

/// Of this thread, as the scheduler has counted it.
fn cpu_seconds() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).map_or(f64::NAN, |ns| ns / 1e9)
}

// The report.

/// One line; how many bounds are missed.
fn report(case: &Case, runs: &[Figures]) -> usize {
    let name = case.name.split_once(": ").map_or(case.name.as_str(), |(_, name)| name);
    print!("  {name:44}");
    for (at, (figure, _)) in runs[0].iter().enumerate() {
        let mut values: Vec<f64> = runs.iter().map(|run| run[at].1).collect();
        values.sort_by(f64::total_cmp);
        print!(" {figure} {}", short(values[values.len() / 2]));
        if let [least, .., most] = values[..]
            && short(least) != short(most)
        {
            print!(" ({}-{})", short(least), short(most));
        }
    }
    println!();
    let missed: Vec<&Bound> = case
        .bounds
        .iter()
        .filter(|bound| runs.iter().flatten().any(|(figure, value)| *figure == bound.figure() && !bound.holds(*value)))
        .collect();
    for bound in &missed {
        match bound {
            AtMost(figure, most) => println!("    MISSED: {figure} at most {most}"),
            AtLeast(figure, least) => println!("    MISSED: {figure} at least {least}"),
        }
    }
    missed.len()
}

/// Three digits are enough.
fn short(value: f64) -> String {
    match value {
        _ if value >= 99.95 => format!("{value:.0}"),
        _ if value >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn as_json(cases: &[Case], results: &[Vec<Figures>], options: &Options) -> Value {
    let runs = |runs: &[Figures]| -> Vec<Value> {
        let as_map = |run: &Figures| run.iter().map(|(figure, value)| ((*figure).to_owned(), json!(value))).collect();
        (SEED..).zip(runs).map(|(seed, run)| json!({ "seed": seed, "figures": Value::Object(as_map(run)) })).collect()
    };
    let bounds = |case: &Case| -> Vec<Value> {
        let as_json = |bound: &Bound| match bound {
            AtMost(figure, most) => json!({ "figure": figure, "at_most": most }),
            AtLeast(figure, least) => json!({ "figure": figure, "at_least": least }),
        };
        case.bounds.iter().map(as_json).collect()
    };
    let cases: Vec<Value> = cases
        .iter()
        .zip(results)
        .map(|(case, results)| json!({ "case": case.name, "bounds": bounds(case), "runs": runs(results) }))
        .collect();
    json!({ "seconds": options.seconds, "bare": options.bare, "cases": cases })
}

impl Options {
    fn from_args() -> Self {
        let mut options = Self { seconds: 600, seeds: 5, only: String::new(), bare: false, json: None };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| refuse(&format!("{arg} needs a value")));
            let number = |text: String| text.parse().unwrap_or_else(|_| refuse(&format!("{text} is no number")));
            match arg.as_str() {
                "--seconds" => options.seconds = number(value()),
                "--seeds" => options.seeds = number(value()).max(1),
                "--only" => options.only = value(),
                "--json" => options.json = Some(value()),
                "--bare" => options.bare = true,
                "--bench" => {} // What cargo adds.
                _ => refuse(&format!("unknown: {arg}")),
            }
        }
        options
    }
}

fn refuse(why: &str) -> ! {
    eprintln!("{why}");
    std::process::exit(2);
}
