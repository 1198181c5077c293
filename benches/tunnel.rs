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
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, thread};

use serde_json::{Value, json};
use sim::MS;
use sim::bare::Bare;
use sim::busy::Busy;
use sim::figures::Bound::{self, AtLeast, AtMost};
use sim::figures::{Case, Figures, run};
use sim::link::{Loss, Settings};
use sim::traffic::Traffic;

/// The first of the seeds.
const SEED: u64 = 90_001;

const MBIT: u64 = 1_000_000;

struct Options {
    seconds: u64,
    seeds: u64,
    only: String,
    bare: bool,
    json: Option<String>,
    /// Time and machine, for the raw results.
    about: String,
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
    // What is lost in bursts, or very often, takes packets of its own.
    let packets_per_s = match link.loss {
        Loss::Bursts { .. } => 200.0,
        Loss::Iid(loss) if loss > 0.1 => 140.0,
        Loss::Iid(_) | Loss::None => 130.0,
    };
    bounds.push(AtMost("packets_per_s", packets_per_s));
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
    json!({ "about": options.about, "seconds": options.seconds, "bare": options.bare, "cases": cases })
}

impl Options {
    fn from_args() -> Self {
        let mut options =
            Self { seconds: 600, seeds: 5, only: String::new(), bare: false, json: None, about: String::new() };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| refuse(&format!("{arg} needs a value")));
            let number = |text: String| text.parse().unwrap_or_else(|_| refuse(&format!("{text} is no number")));
            match arg.as_str() {
                "--seconds" => options.seconds = number(value()),
                "--seeds" => options.seeds = number(value()).max(1),
                "--only" => options.only = value(),
                "--json" => options.json = Some(value()),
                "--about" => options.about = value(),
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
