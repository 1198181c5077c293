//! `gateway status`: how a running daemon is doing, peer by peer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::failure::{Code, Failure};
use crate::limits;
use crate::supervisor::Admin;
use crate::worker::{Figures, PeerStatus};

#[derive(clap::Args)]
pub(super) struct Show {
    /// Where the daemon answers, as its own --admin says
    #[arg(long, value_name = "IP:PORT|unix:PATH", env = "GATEWAY_ADMIN", default_value_t = Admin::beside(Path::new("gateway.pid")))]
    admin: Admin,

    /// Print the answer as it is
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let answer = ask(&self.admin).map_err(|error| {
            Failure::new(
                Code::RunTime,
                format!("nobody answers at {}: {error}", self.admin),
                "start the daemon with --admin, and say the same here; without it, call from the directory of its gateway.pid",
            )
        })?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let status: Value = serde_json::from_str(body).map_err(|_other| {
            Failure::new(Code::RunTime, format!("{} is not a gateway's", self.admin), "name the daemon's own --admin")
        })?;
        if self.json {
            return super::print(body);
        }
        self.print(&status)
    }

    fn print(&self, status: &Value) -> Result<(), Failure> {
        let number = |key: &str| status[key].as_u64().unwrap_or(0);
        let (pid, workers, silent) = (number("pid"), number("workers"), number("workers_silent"));
        let silent = if silent == 0 { String::new() } else { format!(", {silent} silent") };
        let (workers, connections) = (counted(workers, "worker"), counted(number("connections"), "connection"));
        super::print(format_args!("gateway {pid}: {workers}{silent}, {connections}"))?;
        if let Ok(figures) = Figures::deserialize(&status["rendezvous"]) {
            print_rendezvous(&figures)?;
        }
        let peers = Vec::<PeerStatus>::deserialize(&status["peers"]).unwrap_or_default();
        if peers.is_empty() {
            return Ok(());
        }
        super::print(format_args!(
            "{:<20} {:<7} {:<24} {:>9} {:>6} {:>10}  why",
            "service", "path", "remote", "rtt", "loss", "keep-alive"
        ))?;
        for peer in peers {
            let remote = peer.remote.map_or_else(|| "-".to_owned(), |remote| remote.to_string());
            let rtt = peer.rtt_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
            let loss = format!("{:.1}%", 100.0 * peer.loss);
            let alive = peer.keep_alive_s.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1} s"));
            let (service, path, why) = (peer.service, peer.path, peer.why);
            let line = format!("{service:<20} {path:<7} {remote:<24} {rtt:>9} {loss:>6} {alive:>10}  {why}");
            super::print(line.trim_end())?;
        }
        match number("peers_left_out") {
            0 => Ok(()),
            more => super::print(format_args!("and {more} more")),
        }
    }
}

fn counted(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn print_rendezvous(of: &Figures) -> Result<(), Failure> {
    let Figures { peers, providers, visitors, services, flows, flows_waiting, links, .. } = of;
    super::print(format_args!(
        "rendezvous: {peers} peers ({providers} provide, {visitors} visit), {links} TCP connections; {services} services; {flows} \
         flows, {flows_waiting} waiting; {} relayed",
        bytes(of.relayed_bytes)
    ))?;
    let Figures { hub_players_tcp, hub_players_udp, hub_ready, .. } = of;
    super::print(format_args!(
        "hub: players {hub_players_tcp} by TCP, {hub_players_udp} by UDP; {hub_ready} connections ready; {} relayed",
        bytes(of.hub_bytes)
    ))
}

/// With three digits or more.
fn bytes(count: u64) -> String {
    let units = ["bytes", "kB", "MB", "GB", "TB"];
    let mut unit = 0;
    let mut shown = count as f64;
    while shown >= 1000.0 && unit + 1 < units.len() {
        (shown, unit) = (shown / 1000.0, unit + 1);
    }
    if unit == 0 { format!("{count} bytes") } else { format!("{shown:.1} {}", units[unit]) }
}

fn ask(admin: &Admin) -> std::io::Result<String> {
    match admin {
        Admin::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, limits::ADMIN_TIMEOUT)?;
            stream.set_read_timeout(Some(limits::ADMIN_TIMEOUT))?;
            question(stream)
        }
        Admin::Unix(path) | Admin::Beside(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(limits::ADMIN_TIMEOUT))?;
            question(stream)
        }
    }
}

fn question(mut stream: impl Read + Write) -> std::io::Result<String> {
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Far more than all workers that there may be can tell.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
