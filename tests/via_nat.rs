//! A provider and a visitor at home behind routers of Linux: real daemons in namespaces of the network, with the kernel's own NAT.
//!
//! ```text
//! a --LAN-- ra --+            +-- rb --LAN-- b
//!               the Internet, r, with the rendezvous
//! ```
//!
//! The Internet lets nothing through that has few hops left, as if there were many routers in it. Needs root, `ip` and `nft`; says
//! so where it is skipped.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use common::tunnel::{Daemon, SECRET};
use common::{Random, connect, echo_backend, echoes, program_under, skip, wait_until};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

const RENDEZVOUS: &str = "203.0.113.10:4000";

/// What a router does with what leaves, and with strangers' packets from outside.
#[derive(Clone, Copy, Debug)]
enum Router {
    /// Keeps ports where it can, drops strangers.
    Usual,
    /// Draws a port for each connection, drops strangers.
    Random,
    /// Keeps ports where it can, and answers strangers itself.
    Open,
    /// Keeps ports, and lets strangers' datagrams in.
    FullCone,
    /// As `Random`, but leads a port to a host that asks for it, by these protocols.
    Lends(Lends),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lends {
    Pcp,
    NatPmp,
    Upnp,
}

#[test]
fn two_homes_behind_usual_routers_find_a_direct_path_and_keep_it_without_the_rendezvous() {
    let Some(mut world) = World::new([Router::Usual, Router::Usual], &[]) else { return };
    let mut player = world.play();
    assert!(echoes(&mut player), "through the rendezvous at first");
    world.wait_for_path("direct");
    world.rendezvous.kill();
    assert!(echoes(&mut player) && echoes(&mut world.play()));
}

#[test]
fn a_router_that_draws_its_ports_is_met_by_guessing() {
    for routers in [[Router::Usual, Router::Random], [Router::Random, Router::Open]] {
        let Some(world) = World::new(routers, &[]) else { return };
        world.wait_for_path("direct");
        assert!(echoes(&mut world.play()));
    }
}

#[test]
fn routers_that_let_strangers_packets_in_do_not_spoil_it() {
    let Some(world) = World::new([Router::Open, Router::Open], &[]) else { return };
    world.wait_for_path("direct");
    assert!(echoes(&mut world.play()));
}

#[test]
fn two_routers_that_draw_their_ports_leave_the_relay_and_games_go_on_there() {
    let Some(world) = World::new([Router::Random, Router::Random], &[]) else { return };
    world.visitor.wait_for_log("Relay(BothRandom)");
    assert!(echoes(&mut world.play()));
}

#[test]
fn netcheck_tells_how_a_router_maps_and_what_it_lets_in() {
    let (same, random) = (("same", "port_restricted"), ("random", "port_restricted"));
    let full_cone = ("same", "open_or_address_restricted");
    for (routers, expected) in
        [([Router::Usual, Router::FullCone], [same, full_cone]), ([Router::Open, Router::Random], [same, random])]
    {
        let Some(net) = Net::new(routers) else { return };
        let _rendezvous = net.start("r", &["run", "--rendezvous", "0.0.0.0:4000"]);
        for (node, expected) in ["a", "b"].into_iter().zip(expected) {
            let found = net.netcheck(node);
            let word = |name: &str| found[name].as_str().unwrap_or_default();
            assert_eq!((word("mapping"), word("filtering")), expected, "{routers:?} {node}: {found}");
        }
    }
}

#[test]
fn a_port_that_the_router_lends_by_pcp_leads_to_a_provider_whom_nobody_could_guess() {
    meet_by_lent_port(Lends::Pcp, "PCP");
}

#[test]
fn a_router_that_speaks_nat_pmp_only_lends_a_port_too() {
    meet_by_lent_port(Lends::NatPmp, "NAT-PMP");
}

#[test]
fn a_router_that_speaks_upnp_only_lends_a_port_too() {
    meet_by_lent_port(Lends::Upnp, "UPnP");
}

fn meet_by_lent_port(lends: Lends, by: &str) {
    let Some(world) = World::new([Router::Random, Router::Lends(lends)], &[]) else { return };
    world.provider.wait_for_log(&format!("by=\"{by}\""));
    world.wait_for_path("direct");
    assert!(echoes(&mut world.play()));
    assert!(world.has_lent("rb"));
    world.provider.signal("TERM");
    wait_until(|| !world.has_lent("rb"), || "the port is not given back".to_owned());
}

#[test]
fn a_visitors_router_that_lends_a_port_is_as_good_as_a_providers() {
    let Some(world) = World::new([Router::Lends(Lends::Pcp), Router::Random], &[]) else { return };
    world.wait_for_path("direct");
    assert!(echoes(&mut world.play()));
}

#[test]
fn netcheck_tells_what_the_router_lends_and_gives_it_back() {
    for (lends, word) in [(Some(Lends::Pcp), "granted"), (None, "none")] {
        let Some(net) = Net::new([Router::Usual, lends.map_or(Router::Random, Router::Lends)]) else { return };
        let rendezvous = net.start("r", &["run", "--rendezvous", "0.0.0.0:4000"]);
        let secret = rendezvous.directory.path().join("secret");
        let mut netcheck = program_under(&["ip", "netns", "exec", &net.namespace("b")]);
        let found = netcheck.args(["netcheck", "--via", RENDEZVOUS, "--json", "--secret-file"]).arg(secret).output();
        let found: serde_json::Value = serde_json::from_slice(&found.expect("it ends").stdout).expect("it is JSON");
        assert_eq!((&found["mapping"], &found["port_mapping"]["pcp"]), (&"random".into(), &word.into()), "{found}");
        assert_eq!(found["advice"] == "", lends.is_some(), "{found}");
        assert!(!net.has_lent("rb"));
    }
}

#[test]
fn without_port_mapping_the_router_is_asked_for_nothing() {
    let routers = [Router::Lends(Lends::Pcp), Router::Random];
    let Some(world) = World::new(routers, &["--no-port-mapping"]) else { return };
    world.visitor.wait_for_log("Relay(BothRandom)");
    assert!(!world.has_lent("ra"));
}

#[test]
fn with_path_direct_a_player_waits_for_the_direct_path() {
    let Some(world) = World::new([Router::Usual, Router::Usual], &["--path", "direct"]) else { return };
    assert!(echoes(&mut world.play()));
    assert!(world.visitor.log().contains("path=\"direct\""));
}

#[test]
fn a_provider_that_wants_the_relay_only_gives_its_address_to_no_visitor() {
    let relay = ["--path", "relay"];
    let Some(world) = World::with([Router::Open, Router::Usual], &relay, &[], |_| {}) else { return };
    world.visitor.wait_for_log("Relay(Declined)");
    assert!(echoes(&mut world.play()));
    assert!(!world.visitor.log().contains("another path"), "{}", world.visitor.log());
}

#[test]
fn where_udp_is_blocked_there_is_a_direct_path_over_tcp() {
    let Some(world) = World::with([Router::Usual, Router::Usual], &[], &[], |world| {
        world.nft("ra", "add rule ip filter forward meta l4proto udp drop");
    }) else {
        return;
    };
    world.wait_for_path("direct (tcp)");
    assert!(echoes(&mut world.play()));
}

#[test]
fn a_transfer_goes_on_when_this_host_gets_another_address() {
    let Some(world) = World::new([Router::Usual, Router::Usual], &[]) else { return };
    world.wait_for_path("direct");
    let player = world.play();
    let bytes = Random::seeded("a_transfer_goes_on_when_this_host_gets_another_address").bytes(1 << 20);
    let (mut writer, sent) = (player.try_clone().expect("it can be cloned"), bytes.clone());
    let (half, told) = std::sync::mpsc::channel();
    let sender = thread::spawn(move || {
        let (before, after) = sent.split_at(sent.len() / 2);
        writer.write_all(before).expect("it is sent");
        half.send(()).expect("the test listens");
        writer.write_all(after).expect("it is sent");
    });
    told.recv().expect("the first half has left");
    world.ip("a", "addr del 192.168.1.10/24 dev lan");
    world.ip("a", "addr add 192.168.1.77/24 dev lan");
    world.ip("a", "route add default via 192.168.1.1");
    world.visitor.wait_for_log("this host has other addresses");
    let mut back = vec![0; bytes.len()];
    (&player).read_exact(&mut back).expect("all of it comes back");
    sender.join().expect("all is sent");
    assert!(back == bytes, "what came back differs");
}

#[test]
fn a_router_that_forgets_udp_after_ten_seconds_is_found_out_and_shown() {
    let Some(world) = World::with([Router::Usual, Router::Usual], &[], &[], |world| {
        for name in ["udp_timeout", "udp_timeout_stream"] {
            world.run("rb", "sysctl", &["-qw", &format!("net.netfilter.nf_conntrack_{name}=10")]);
        }
    }) else {
        return;
    };
    world.wait_for_path("direct");
    let daemons = [&world.visitor, &world.provider];
    assert_eq!(daemons.map(keep_alive_s), [15.0; 2]);
    let logs = || daemons.map(Daemon::log).concat();
    // Two silences in which it is forgotten, each of which may take half a minute.
    wait_until(|| logs().contains("a NAT forgets") || logs().contains("path=\"relay\""), logs);
    wait_until(|| logs().contains("a NAT forgets"), logs);
    let shortest = daemons.map(keep_alive_s).into_iter().fold(f64::MAX, f64::min);
    assert!((5.0..=7.5).contains(&shortest), "{shortest} s");
    assert!(echoes(&mut world.play()));
}

/// As the daemon tells it of its only peer.
fn keep_alive_s(daemon: &Daemon) -> f64 {
    let mut question = common::program();
    let asked = question.args(["status", "--json"]).current_dir(daemon.directory.path()).output().expect("it runs");
    let status: serde_json::Value = serde_json::from_slice(&asked.stdout).expect("it is JSON");
    status["peers"][0]["keep_alive_s"].as_f64().unwrap_or_else(|| panic!("no keep_alive_s: {status}"))
}

/// Two homes, and the daemons in them. Daemons end before their namespaces do.
struct World {
    visitor: Daemon,
    provider: Daemon,
    rendezvous: Daemon,
    net: Net,
}

impl World {
    fn new(routers: [Router; 2], visit: &[&str]) -> Option<Self> {
        Self::with(routers, &[], visit, |_| {})
    }

    /// `None` where this host cannot do it.
    fn with(routers: [Router; 2], provide: &[&str], visit: &[&str], prepare: impl FnOnce(&Net)) -> Option<Self> {
        let net = Net::new(routers)?;
        prepare(&net);
        let start = |node: &str, flags: &[&str]| net.start(node, flags);
        let rendezvous = start("r", &["run", "--rendezvous", "0.0.0.0:4000"]);
        let service = net.inside("b", echo_backend).to_string();
        let flags = ["provide", "game", "--tcp", &service, "--via", RENDEZVOUS];
        let provider = start("b", &[&flags, provide].concat());
        provider.wait_for_log("visitors can come");
        let flags = ["visit", "game", "--tcp", "127.0.0.1:0", "--via", RENDEZVOUS];
        let visitor = start("a", &[&flags, visit].concat());
        Some(Self { visitor, provider, rendezvous, net })
    }

    fn play(&self) -> TcpStream {
        let at: SocketAddr = self.visitor.tcp();
        self.net.inside("a", move || connect(at))
    }

    /// Both ends must use such a path; a round may have to be repeated.
    fn wait_for_path(&self, kind: &str) {
        for daemon in [&self.visitor, &self.provider] {
            daemon.wait_for_log(&format!("path=\"{kind}\""));
        }
    }
}

impl std::ops::Deref for World {
    type Target = Net;

    fn deref(&self) -> &Net {
        &self.net
    }
}

/// The namespaces.
struct Net {
    prefix: String,
    /// In routers.
    lenders: Mutex<Vec<Lender>>,
}

const NODES: [&str; 5] = ["a", "ra", "r", "rb", "b"];

impl Net {
    fn new(routers: [Router; 2]) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("gateway-{}-{number}-", std::process::id());
        let net = Self { prefix, lenders: Mutex::default() };
        if !net.is_possible() {
            eprintln!("skipped: needs root, `ip` and `nft` with NAT");
            return None;
        }
        let lends = |router: &Router| matches!(router, Router::Lends(_));
        if routers.iter().any(lends) && !succeeds("sh", &["-c", "command -v miniupnpd"]) {
            skip("a router that lends ports", "needs `miniupnpd` (package miniupnpd-nftables)");
            return None;
        }
        for node in NODES {
            net.ip(node, "link set lo up");
        }
        net.ip("r", "addr add 203.0.113.10/32 dev lo");
        // Outside no addresses for documentation: routers that lend ports take those for private ones.
        for (side, router, lan, wan) in [("a", "ra", "192.168.1", "203.0.114"), ("b", "rb", "192.168.2", "203.0.115")] {
            net.cable((side, "lan", &format!("{lan}.10/24")), (router, "lan", &format!("{lan}.1/24")));
            net.cable((router, "wan", &format!("{wan}.1/24")), ("r", router, &format!("{wan}.254/24")));
            net.ip(side, &format!("route add default via {lan}.1"));
            net.ip(router, &format!("route add default via {wan}.254"));
        }
        for node in ["ra", "r", "rb"] {
            net.run(node, "sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        }
        net.nft("r", "add table ip filter");
        net.nft("r", "add chain ip filter forward { type filter hook forward priority 0; }");
        net.nft("r", "add rule ip filter forward ip ttl < 10 drop");
        for (router, kind) in ["ra", "rb"].into_iter().zip(routers) {
            net.set_up(router, kind);
            if let Router::Lends(lends) = kind {
                net.lend(router, lends);
            }
        }
        Some(net)
    }

    /// Makes the namespaces.
    fn is_possible(&self) -> bool {
        if !nix::unistd::geteuid().is_root()
            || !NODES.iter().all(|node| succeeds("ip", &["netns", "add", &self.namespace(node)]))
        {
            return false;
        }
        let nat = "add table ip nat; add chain ip nat out { type nat hook postrouting priority 100; }; add rule ip nat out masquerade; delete table ip nat";
        succeeds("ip", &["netns", "exec", &self.namespace("ra"), "nft", nat])
    }

    fn set_up(&self, router: &str, kind: Router) {
        let masquerade = match kind {
            Router::Usual | Router::Open | Router::FullCone => "masquerade",
            Router::Random | Router::Lends(_) => "masquerade fully-random",
        };
        self.nft(router, "add table ip nat");
        self.nft(router, "add chain ip nat out { type nat hook postrouting priority 100; }");
        self.nft(router, &format!("add rule ip nat out oifname wan {masquerade}"));
        self.nft(router, "add table ip filter");
        for hook in ["input", "forward"] {
            self.nft(router, &format!("add chain ip filter {hook} {{ type filter hook {hook} priority 0; }}"));
            if matches!(kind, Router::Lends(_)) {
                self.nft(router, &format!("add rule ip filter {hook} ct status dnat accept"));
            }
            if !matches!(kind, Router::Open | Router::FullCone) {
                self.nft(router, &format!("add rule ip filter {hook} iifname wan ct state new,invalid drop"));
            }
        }
        if matches!(kind, Router::FullCone) {
            let host = if router == "ra" { "192.168.1.10" } else { "192.168.2.10" };
            self.nft(router, "add chain ip nat in { type nat hook prerouting priority -100; }");
            self.nft(router, &format!("add rule ip nat in iifname wan meta l4proto udp dnat to {host}"));
        }
    }

    fn lend(&self, router: &str, lends: Lends) {
        self.nft(router, "add table inet lent");
        for (chain, hook) in [("forward", "filter"), ("prerouting", "nat"), ("postrouting", "nat")] {
            self.nft(router, &format!("add chain inet lent {chain} {{ type {hook} hook {chain} priority 1; }}"));
        }
        if lends == Lends::NatPmp {
            // PCP is version 2 of what both say to this port.
            self.nft(router, "insert rule ip filter input udp dport 5351 @th,64,8 2 drop");
        }
        let lender = Lender::start(&self.namespace(router), lends);
        self.lenders.lock().expect("not poisoned").push(lender);
    }

    /// Whether the router leads a port to a host.
    fn has_lent(&self, router: &str) -> bool {
        let namespace = self.namespace(router);
        let rules = ["netns", "exec", &namespace, "nft", "list", "chain", "inet", "lent", "prerouting"];
        let rules = Command::new("ip").args(rules).output().expect("`ip` can be started");
        String::from_utf8_lossy(&rules.stdout).contains("dnat")
    }

    fn cable(&self, one: (&str, &str, &str), other: (&str, &str, &str)) {
        self.ip(
            one.0,
            &format!("link add {} type veth peer name {} netns {}", one.1, other.1, self.namespace(other.0)),
        );
        for (node, device, address) in [one, other] {
            self.ip(node, &format!("addr add {address} dev {device}"));
            self.ip(node, &format!("link set {device} up"));
        }
    }

    fn namespace(&self, node: &str) -> String {
        format!("{}{node}", self.prefix)
    }

    fn ip(&self, node: &str, words: &str) {
        self.run(node, "ip", &words.split(' ').collect::<Vec<_>>());
    }

    fn nft(&self, node: &str, rule: &str) {
        self.run(node, "nft", &[rule]);
    }

    fn run(&self, node: &str, program: &str, args: &[&str]) {
        let namespace = self.namespace(node);
        let all = [&["netns", "exec", &namespace, program], args].concat();
        assert!(succeeds("ip", &all), "{all:?}");
    }

    fn start(&self, node: &str, flags: &[&str]) -> Daemon {
        Daemon::start(self.program(node), flags)
    }

    /// What it finds out there, for programs.
    fn netcheck(&self, node: &str) -> Value {
        let mut command = self.program(node);
        command.args(["netcheck", "--via", RENDEZVOUS, "--json"]).env("GATEWAY_SECRET", SECRET).stdin(Stdio::null());
        let output = command.output().expect("the program starts");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    fn program(&self, node: &str) -> Command {
        program_under(&["ip", "netns", "exec", &self.namespace(node)])
    }

    /// Does something with sockets there.
    fn inside<T: Send + 'static>(&self, node: &str, action: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.namespace(node))).expect("it is there");
        let there = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may go there");
            action()
        };
        thread::spawn(there).join().expect("it is done")
    }
}

/// miniupnpd, as it runs in many a home.
struct Lender {
    process: Child,
    _directory: tempfile::TempDir,
}

impl Lender {
    fn start(namespace: &str, lends: Lends) -> Self {
        let is = |yes| if yes { "yes" } else { "no" };
        let [nat_pmp, upnp] = [lends != Lends::Upnp, lends == Lends::Upnp].map(is);
        let settings = format!(
            "ext_ifname=wan\nlistening_ip=lan\nenable_natpmp={nat_pmp}\nenable_upnp={upnp}\nsecure_mode=yes\n\
             uuid=00000000-0000-0000-0000-000000000000\nupnp_table_name=lent\nupnp_nat_table_name=lent\n\
             upnp_forward_chain=forward\nupnp_nat_chain=prerouting\nupnp_nat_postrouting_chain=postrouting\n\
             allow 1024-65535 192.168.0.0/16 1024-65535\n"
        );
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
        let (file, pid_file) = (path("settings"), path("pid"));
        std::fs::write(&file, settings).expect("the settings are written");
        let program = ["netns", "exec", namespace, "miniupnpd", "-d", "-f", &file, "-P", &pid_file];
        let mut command = Command::new("ip");
        command.args(program).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("`ip` can be started");
        let listens = || {
            let sockets = Command::new("ip").args(["netns", "exec", namespace, "ss", "-Hlun"]).output();
            let sockets = sockets.expect("`ip` can be started").stdout;
            let port = if lends == Lends::Upnp { ":1900 " } else { ":5351 " };
            String::from_utf8_lossy(&sockets).contains(port)
        };
        wait_until(listens, || format!("miniupnpd does not listen: {process:?}"));
        Self { process, _directory: directory }
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.lenders.lock().map(|mut lenders| lenders.clear()).unwrap_or_default();
        for node in NODES {
            succeeds("ip", &["netns", "del", &self.namespace(node)]);
        }
    }
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    let quiet =
        Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}

#[test]
fn namespaces_are_gone_when_a_test_is_over() {
    let Some(net) = Net::new([Router::Usual, Router::Usual]) else { return };
    let path = format!("/run/netns/{}", net.namespace("ra"));
    assert!(std::path::Path::new(&path).exists());
    drop(net);
    wait_until(|| !std::path::Path::new(&path).exists(), || path.clone());
}
