//! The addresses of this host, and how it is told when they change.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrLike, SockaddrStorage,
};

/// Addresses at which others may reach this host: of interfaces that are up, without loopback and what holds on one cable only.
///
/// # Errors
/// `EMFILE`, `ENOMEM`.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let is_up =
        |flags: InterfaceFlags| flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK);
    let interfaces = getifaddrs()?.filter(|interface| is_up(interface.flags));
    let mut addresses: Vec<_> =
        interfaces.filter_map(|interface| ip_of(&interface.address?)).filter(reaches_far).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    match address.family()? {
        AddressFamily::Inet => address.as_sockaddr_in().map(|address| address.ip().into()),
        AddressFamily::Inet6 => address.as_sockaddr_in6().map(|address| address.ip().into()),
        _ => None,
    }
}

fn reaches_far(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
    }
}

/// The address of ours from which packets to `peer` leave. Nothing is sent.
///
/// # Errors
/// `ENETUNREACH` when there is no route.
pub fn source_for(peer: SocketAddr) -> io::Result<IpAddr> {
    let socket = super::udp::connect(peer)?;
    super::socket::local_address(std::os::fd::AsFd::as_fd(&socket)).map(|address| address.ip())
}

/// A socket that turns readable when interfaces, addresses or routes may have changed.
///
/// # Errors
/// Where netlink is not allowed.
pub fn watch() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = nix::sys::socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    let groups = libc::RTMGRP_LINK
        | libc::RTMGRP_IPV4_IFADDR
        | libc::RTMGRP_IPV4_ROUTE
        | libc::RTMGRP_IPV6_IFADDR
        | libc::RTMGRP_IPV6_ROUTE;
    nix::sys::socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))?;
    Ok(socket)
}

/// Throws away what a socket of [`watch`] has been told: that something was told is enough.
pub fn clear(socket: BorrowedFd<'_>) {
    let mut buffer = [0; 4096];
    loop {
        match nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(_) | Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EINTR) => {} // ENOBUFS: more was told than fits
            Err(_empty) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_holds_on_this_host_or_one_cable_only_is_no_address_for_others() {
        for ip in ["127.0.0.1", "169.254.1.2", "::1", "fe80::1", "0.0.0.0", "::"] {
            assert!(!reaches_far(&ip.parse().expect("an IP")), "{ip}");
        }
        for ip in ["192.168.1.10", "203.0.113.5", "2001:db8::1", "fd00::1"] {
            assert!(reaches_far(&ip.parse().expect("an IP")), "{ip}");
        }
        assert!(addresses().expect("it can be asked").iter().all(reaches_far));
    }

    #[test]
    fn packets_to_this_host_leave_from_this_host() {
        let loopback: IpAddr = [127, 0, 0, 1].into();
        assert_eq!(source_for(SocketAddr::new(loopback, 9)).expect("it has a route"), loopback);
    }

    #[test]
    fn a_watch_that_was_told_nothing_has_nothing_to_clear() {
        clear(watch().expect("netlink is allowed").as_fd());
    }
}
