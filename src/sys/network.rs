//! The addresses of this host, and how it is told when they change.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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

/// The router by which packets leave to where no other route leads. `None` without one, or where it is not to be found out.
#[must_use]
pub fn default_gateway() -> Option<Ipv4Addr> {
    gateway_in(&std::fs::read_to_string("/proc/self/net/route").ok()?)
}

/// In a table as the kernel prints it, addresses as they lie in memory: `device destination gateway flags . . metric mask ...`
fn gateway_in(table: &str) -> Option<Ipv4Addr> {
    let flags_wanted = u32::from(libc::RTF_UP | libc::RTF_GATEWAY);
    let default = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let hex = |column: usize| u32::from_str_radix(columns.get(column)?, 16).ok();
        let is_default = hex(1)? == 0 && hex(7)? == 0 && hex(3)? & flags_wanted == flags_wanted;
        let metric: u32 = columns.get(6)?.parse().ok()?;
        is_default.then_some((metric, Ipv4Addr::from(hex(2)?.to_ne_bytes())))
    };
    table.lines().skip(1).filter_map(default).min_by_key(|(metric, _)| *metric).map(|(_, gateway)| gateway)
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
    fn the_default_gateway_is_that_of_the_best_default_route() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let hex = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let line = |to, via, flags, metric, mask| {
            format!("eth0\t{}\t{}\t{flags}\t0\t0\t{metric}\t{}\t0\t0\t0\n", hex(to), hex(via), hex(mask))
        };
        let none = [0; 4];
        let far = line(none, [10, 0, 0, 1], "0003", 600, none);
        let near = line(none, [192, 168, 1, 1], "0003", 100, none);
        let lan = line([192, 168, 1, 0], none, "0001", 0, [255, 255, 255, 0]);
        let cable = line(none, none, "0001", 0, none);
        let down = line(none, [172, 16, 0, 1], "0002", 0, none);
        let table = [head, &far, &lan, &near, &cable, &down, "garbage\n"].concat();
        assert_eq!(gateway_in(&table), Some([192, 168, 1, 1].into()));
        assert_eq!(gateway_in(&[head, &lan, &cable].concat()), None);
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
