//! Who is where: what a packet's addresses become on its way, and whom it reaches.
//!
//! The place for NATs: `outbound` is their mapping, `inbound` their filtering. So far there is but the simplest, which gives a
//! host an address of its own and lets everybody in.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::HostId;

#[derive(Debug, Default)]
pub struct Addresses {
    hosts: BTreeMap<SocketAddr, HostId>,
    of_hosts: BTreeMap<HostId, SocketAddr>,
}

impl Addresses {
    /// The host has this address from now on, and no other.
    pub fn attach(&mut self, host: HostId, address: SocketAddr) {
        if let Some(before) = self.of_hosts.insert(host, address) {
            self.hosts.remove(&before);
        }
        let taken = self.hosts.insert(address, host);
        assert_eq!(taken, None, "two hosts at {address}");
    }

    /// The address from which others see what `host` sends to `to`.
    pub fn outbound(&mut self, host: HostId, _to: SocketAddr) -> SocketAddr {
        self.of_hosts[&host]
    }

    /// Whom a packet reaches.
    pub fn inbound(&mut self, _from: SocketAddr, to: SocketAddr) -> Option<HostId> {
        self.hosts.get(&to).copied()
    }
}
