//! How things are with a peer, for the page of figures and `gateway status`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::proto::tunnel::{ServiceName, Status};

/// One peer, or a service that nobody provides now. These names are part of what users rely on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    pub service: String,
    /// `lan`, `direct`, `relay` or `none`.
    pub path: String,
    /// Where datagrams go. `None` on the relay, and when there is no peer.
    pub remote: Option<SocketAddr>,
    /// Smoothed round trip. `None` before the first.
    pub rtt_ms: Option<f64>,
    /// Share of our datagrams that did not arrive lately, 0 to 1.
    pub loss: f64,
    /// After so much silence something is sent, lest a NAT forgets the path, in seconds. `None` where there is no
    /// peer, or one of kcptun.
    pub keep_alive_s: Option<f64>,
    /// Why the path is not a better one. Empty when there is none.
    pub why: String,
}

impl PeerStatus {
    pub(super) fn nobody(service: ServiceName, why: &str) -> Self {
        let (path, why) = ("none".to_owned(), why.to_owned());
        Self { service: service.to_string(), path, remote: None, rtt_ms: None, loss: 0.0, keep_alive_s: None, why }
    }

    pub(super) fn of_tunnel(service: ServiceName, status: &Status) -> Self {
        Self {
            remote: Some(status.remote),
            path: "direct".to_owned(),
            rtt_ms: status.rtt_us.map(|us| us as f64 / 1000.0),
            loss: f64::from(status.loss),
            keep_alive_s: Some(status.ask_after_us as f64 / 1e6),
            ..Self::nobody(service, "")
        }
    }

    /// It tells neither its round trip nor its loss.
    pub(super) fn of_kcptun(service: ServiceName, remote: SocketAddr) -> Self {
        Self { path: "direct".to_owned(), remote: Some(remote), ..Self::nobody(service, "") }
    }
}
