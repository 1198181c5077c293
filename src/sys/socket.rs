//! TCP sockets. Every socket is non-blocking: a splice on a blocking one would stop the whole loop.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::SockFlag;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

/// What all relayed sockets have in common. Accepted sockets inherit it from their listener.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    pub keepalive_idle: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_probes: u32,
    pub user_timeout: Duration,
}

/// A bound, listening socket.
///
/// # Errors
/// Those of `socket`, `bind` and `listen`: `EADDRINUSE`, `EADDRNOTAVAIL`, `EACCES`, `EMFILE`.
pub fn listen(address: SocketAddr, share_port: bool, backlog: i32) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if share_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// Whether an address could be bound by one socket alone. It is free again at once, and nobody can have connected.
///
/// # Errors
/// As [`listen`].
pub fn try_bind(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())
}

/// Makes a socket non-blocking that came from elsewhere.
///
/// # Errors
/// None known.
pub fn set_nonblocking(socket: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&socket).set_nonblocking(true)
}

/// Prepares a socket for its first byte: no delay for small messages, and urgent bytes are bytes of the stream.
///
/// # Errors
/// When `socket` is not a TCP socket.
pub fn prepare(socket: BorrowedFd<'_>) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)
}

/// Puts an end to dead peers.
///
/// # Errors
/// When `socket` is not a TCP socket.
pub fn keep_alive(socket: BorrowedFd<'_>, liveness: Liveness) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    let keepalive = TcpKeepalive::new()
        .with_time(liveness.keepalive_idle)
        .with_interval(liveness.keepalive_interval)
        .with_retries(liveness.keepalive_probes);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(liveness.user_timeout))
}

/// True when an IPv6 socket takes IPv4 connections too.
#[must_use]
pub fn takes_ipv4(socket: BorrowedFd<'_>) -> bool {
    SockRef::from(&socket).only_v6().is_ok_and(|only| !only)
}

/// The address a socket is bound to.
///
/// # Errors
/// When `socket` is not an IP socket.
pub fn local_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    SockRef::from(&socket).local_addr()?.as_socket().ok_or_else(not_ip)
}

/// The address a socket is connected to.
///
/// # Errors
/// `ENOTCONN`, also when the peer has reset the connection.
pub fn peer_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    SockRef::from(&socket).peer_addr()?.as_socket().ok_or_else(not_ip)
}

fn not_ip() -> io::Error {
    io::Error::from_raw_os_error(libc::EAFNOSUPPORT)
}

/// True when `ip` belongs to this host. The kernel is asked, since interfaces come and go: it binds to no other address.
#[must_use]
pub fn is_local(ip: IpAddr) -> bool {
    let address = SockAddr::from(SocketAddr::new(ip, 0));
    Socket::new(Domain::for_address(SocketAddr::new(ip, 0)), Type::DGRAM, None)
        .is_ok_and(|socket| socket.bind(&address).is_ok())
}

/// Takes one waiting connection, non-blocking.
///
/// # Errors
/// `EAGAIN` when none waits; `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM` leave the connection in the queue; `ECONNABORTED` and
/// network errors speak of that one connection only.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = nix::sys::socket::accept4(listener.as_raw_fd(), flags)?;
    Ok(super::process::own(fd))
}

/// Errors of accept that say nothing about the next connection. Linux passes network errors of the new socket on, too
/// (accept(2)).
#[must_use]
pub fn speaks_of_one_connection(error: &io::Error) -> bool {
    let one = [
        libc::ECONNABORTED,
        libc::EPERM,
        libc::EPROTO,
        libc::ENOPROTOOPT,
        libc::ENETDOWN,
        libc::EHOSTDOWN,
        libc::ENONET,
        libc::EHOSTUNREACH,
        libc::EOPNOTSUPP,
        libc::ENETUNREACH,
        libc::EINTR,
    ];
    error.raw_os_error().is_some_and(|code| one.contains(&code))
}

/// Starts a connection. It is made or has failed when the socket turns writable: see [`take_error`].
///
/// # Errors
/// Those of `socket` and `connect`, except `EINPROGRESS`, which is success.
pub fn connect(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// As [`connect`], from an address that several sockets of ours may have: a NAT makes one port of it for all, and two hosts that
/// connect to each other from such ports meet in the middle.
///
/// # Errors
/// Those of `socket`, `bind` and `connect`, except `EINPROGRESS`, which is success.
pub fn connect_from(from: SocketAddr, to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&from.into())?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// What has gone wrong on a socket since it was last asked.
///
/// # Errors
/// When `socket` is not a socket.
pub fn take_error(socket: BorrowedFd<'_>) -> io::Result<Option<io::Error>> {
    SockRef::from(&socket).take_error()
}

/// Reads what has arrived. `Ok(0)` is the end of the stream.
///
/// # Errors
/// `EAGAIN` when nothing has arrived; bytes that arrived before a reset are read before `ECONNRESET` is told.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (fd, no_address) = (socket.as_raw_fd(), std::ptr::null::<libc::sockaddr>());
    // SAFETY: the kernel writes at most `len` bytes to `buffer`, and no address.
    let n = unsafe {
        libc::syscall(
            libc::SYS_recvfrom,
            fd,
            buffer.as_mut_ptr(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            no_address,
            no_address,
        )
    };
    count(n)
}

/// As [`receive`], and leaves it to be received.
///
/// # Errors
/// `EAGAIN` when nothing has arrived.
pub fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(nix::sys::socket::recv(socket.as_raw_fd(), buffer, nix::sys::socket::MsgFlags::MSG_PEEK)?)
}

/// Sends what the socket takes.
///
/// # Errors
/// `EAGAIN` when it takes nothing now; `EPIPE` and `ECONNRESET` when it never will. No signal is raised.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let (fd, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    let no_address = std::ptr::null::<libc::sockaddr>();
    // SAFETY: the kernel reads at most `len` bytes of `bytes`, and no address.
    let n = unsafe { libc::syscall(libc::SYS_sendto, fd, bytes.as_ptr(), bytes.len(), flags, no_address, 0) };
    count(n)
}

/// What a system call has moved. [`receive`] and [`send`] make theirs without libc's functions, which are cancellation points
/// and lock the bus twice a call for that as soon as a process has a second thread.
fn count(returned: libc::c_long) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_negative| io::Error::last_os_error())
}

/// Throws up to `bytes` arrived bytes away. `Ok(0)` is the end of the stream.
///
/// # Errors
/// As [`receive`].
pub fn discard(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    // SAFETY: with MSG_TRUNC a TCP socket copies nothing (tcp(7)), so no buffer is needed and none is named.
    let n =
        unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), bytes, libc::MSG_TRUNC | libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_negative| io::Error::last_os_error())
}

/// Whether the next byte of the stream is an urgent one.
#[must_use]
pub fn is_at_mark(socket: BorrowedFd<'_>) -> bool {
    let mut at_mark: libc::c_int = 0;
    // SAFETY: SIOCATMARK writes one int, which outlives the call.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCATMARK, &raw mut at_mark) };
    asked == 0 && at_mark != 0
}

/// Not in libc; asm-generic/sockios.h.
const SIOCATMARK: libc::Ioctl = 0x8905;

/// Ends our half of the connection: the peer reads the end of the stream after the bytes before it.
///
/// # Errors
/// `ENOTCONN` when the connection is gone.
pub fn end(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Write)?)
}

/// Resets the connection: the peer gets RST at once, whoever else still holds the socket. (Linger 0 would wait for the last
/// holder, and a shutdown before it would send FIN, which the peer would take for a clean end.)
pub fn reset(socket: BorrowedFd<'_>) {
    // SAFETY: an all-zero sockaddr is valid, and AF_UNSPEC is zero.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    let length = libc::socklen_t::try_from(size_of_val(&nowhere)).unwrap_or(0);
    // SAFETY: `nowhere` outlives the call and `length` is its size. An error means there is nothing left to reset.
    unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
}
