//! UDP sockets that move many datagrams a call: what arrives is joined by the kernel (UDP_GRO), what leaves is cut by it
//! (UDP_SEGMENT). That costs a tenth of one call a datagram. Every socket is non-blocking.
//!
//! A socket on a wildcard address is told where each datagram was sent to, so that the answer can leave from there: a peer
//! behind a NAT hears nobody else.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockRef, Socket, Type};

/// Room for the most that one [`receive`] brings: the longest datagram, or as many as the kernel joins.
pub const RECEIVE_BYTES: usize = 1 << 16;

/// Bounds of what leaves in one call. The kernel takes 64 segments (128 since Linux 6.9) and 65,507 bytes; with 45 datagrams of
/// an Ethernet frame the byte bound is reached first, and more in a call was not measurably cheaper.
pub const SEGMENTS_MAX: usize = 45;
pub const BATCH_BYTES_MAX: usize = 64_000;

/// What the socket of a tunnel may hold, each way: 4 MiB are 30 ms at 1 Gbit/s, longer than a worker is ever away. The kernel
/// cuts it to `net.core.rmem_max` and `wmem_max`, unless the process may do more.
pub const BUFFER_BYTES: usize = 4 << 20;

/// A bound socket, ready for [`receive`] and [`Outlet::send`].
///
/// # Errors
/// Those of `socket` and `bind`: `EADDRINUSE`, `EADDRNOTAVAIL`, `EACCES`, `EMFILE`.
pub fn bind(address: SocketAddr, share_port: bool) -> io::Result<OwnedFd> {
    let socket = open(address)?;
    if share_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    tell_destinations(&socket, address)?;
    Ok(socket.into())
}

/// A socket for one peer only, on a free port. That nobody is there is told by a later call, as `ECONNREFUSED`.
///
/// # Errors
/// Those of `socket` and `connect`: `ENETUNREACH`, `EMFILE`.
pub fn connect(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = open(address)?;
    socket.connect(&address.into())?;
    Ok(socket.into())
}

/// Gives a socket the buffers of a tunnel.
pub fn enlarge_buffers(socket: BorrowedFd<'_>) {
    let socket_ref = SockRef::from(&socket);
    // The first way needs CAP_NET_ADMIN, the second is cut to a bound; with the smaller buffer more is lost, and that is all.
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
        let _ = socket_ref.set_recv_buffer_size(BUFFER_BYTES);
    }
    if setsockopt(&socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
        let _ = socket_ref.set_send_buffer_size(BUFFER_BYTES);
    }
}

/// Lets the first byte of a datagram choose among the `sockets` that share an address: its remainder by their number is the place
/// in the order in which they were bound. An empty datagram goes to the first. Said of one of them, it holds for all.
///
/// The places are those of sockets that are open: when one is closed the last takes its place. So whoever relies on them keeps all
/// of them.
///
/// # Errors
/// `EINVAL` when the socket shares no address.
pub fn steer_by_first_byte(socket: BorrowedFd<'_>, sockets: u32) -> io::Result<()> {
    let step = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, sockets.max(1)),
        step(libc::BPF_RET | BPF_A, 0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the option is a sock_fprog, which outlives the call as does its program; the kernel copies both.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of_val(&filter) as u32,
        )
    };
    if set == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The answer of a program is what it has in its register.
const BPF_A: u32 = 0x10;

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true); // before Linux 5.0 datagrams come one at a time
    Ok(socket)
}

fn tell_destinations(socket: &Socket, bound: SocketAddr) -> io::Result<()> {
    match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        IpAddr::V6(ip) if ip.is_unspecified() => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    Ok(())
}

/// What one call has brought: datagrams from one address, all but the last of `segment_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub bytes: usize,
    pub segment_bytes: usize,
    pub from: SocketAddr,
    /// The address of ours they were sent to. `None` when the socket has one only.
    pub to: Option<IpAddr>,
}

impl Received {
    /// The datagrams, where they lie in the buffer they were received into. An empty datagram is none here, and told by
    /// `bytes`.
    pub fn datagrams<'a>(&self, buffer: &'a mut [u8]) -> impl Iterator<Item = &'a mut [u8]> {
        buffer[..self.bytes].chunks_mut(self.segment_bytes.max(1))
    }
}

/// Takes what has arrived from one address. What does not fit into `buffer` is lost: it should have [`RECEIVE_BYTES`].
///
/// # Errors
/// `EAGAIN` when nothing has arrived. `ECONNREFUSED` and other network errors speak of something sent before, once.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = Control::default();
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: an all-zero msghdr is valid: no address, no buffers, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut storage).cast();
    message.msg_namelen = storage.size_of();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes.as_mut_ptr().cast();
    message.msg_controllen = control.bytes.len() as _;
    // SAFETY: address, buffer and control data outlive the call, and the kernel writes no more than the given lengths.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let bytes = usize::try_from(n).map_err(|_negative| io::Error::last_os_error())?;
    control.used = message.msg_controllen as usize;
    // SAFETY: the kernel has filled in so many bytes of the address.
    let from = unsafe { SockAddr::new(storage, message.msg_namelen) };
    let from = from.as_socket().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
    let mut received = Received { bytes, segment_bytes: bytes, from, to: None };
    for (level, kind, data) in control.messages() {
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let segment = data.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
                received.segment_bytes = segment.and_then(|n| usize::try_from(n).ok()).unwrap_or(bytes);
            }
            // ipi_ifindex 4 | ipi_spec_dst 4 | ipi_addr 4: the second is the one to answer from.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                received.to = data.get(4..8).and_then(|ip| <[u8; 4]>::try_from(ip).ok()).map(IpAddr::from);
            }
            // ipi6_addr 16 | ipi6_ifindex 4
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                received.to = data.first_chunk::<16>().map(|ip| IpAddr::from(*ip));
            }
            _ => {}
        }
    }
    Ok(received)
}

/// Datagrams of one size (the last may be shorter) for one address.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    pub bytes: &'a [u8],
    pub segment_bytes: usize,
    pub to: SocketAddr,
    /// The address of ours to send from. `None` leaves it to the kernel.
    pub from: Option<IpAddr>,
    /// Routers, and this host, must not cut a datagram in pieces: it finds out what the path carries.
    pub whole: bool,
}

/// What is known of sending through one socket.
#[derive(Debug, Default)]
pub struct Outlet {
    /// Datagrams still to be sent one a call, because the kernel has refused to cut.
    plain: u32,
    /// What the socket has last been told about cutting datagrams in pieces.
    whole: Option<bool>,
}

/// Datagrams that are sent one a call after the kernel has refused to cut, before it is asked again. A device that cannot
/// compute checksums always refuses; a route whose MTU has shrunk does so until the peer's datagrams have shrunk too.
const PLAIN: u32 = 10_000;

impl Outlet {
    /// Sends a batch, and tells how many of its bytes have left: all, or whole datagrams until the socket was full.
    ///
    /// # Errors
    /// `EAGAIN` when none has left because the socket is full; whoever waits for room asks again a little later. (To watch for
    /// room is no good: an edge is told for each datagram that has left.) Any other error means that these datagrams are lost,
    /// as they might be on their way: no route, a datagram too long, a firewall of this host.
    pub fn send(&mut self, socket: BorrowedFd<'_>, batch: &Batch<'_>) -> io::Result<usize> {
        self.allow_pieces(socket, batch)?;
        if self.plain == 0 || batch.bytes.len() <= batch.segment_bytes {
            match send_message(socket, batch, batch.bytes) {
                Err(error) if batch.bytes.len() > batch.segment_bytes && is_refusal_to_cut(&error) => {
                    self.plain = PLAIN
                }
                sent => return sent,
            }
        }
        let mut sent = 0;
        for datagram in batch.bytes.chunks(batch.segment_bytes.max(1)) {
            match send_message(socket, batch, datagram) {
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && sent > 0 => break,
                Err(error) => return Err(error),
            }
            self.plain = self.plain.saturating_sub(1);
        }
        Ok(sent)
    }

    /// Sets what the last datagrams had otherwise, which is rare.
    fn allow_pieces(&mut self, socket: BorrowedFd<'_>, batch: &Batch<'_>) -> io::Result<()> {
        if self.whole == Some(batch.whole) {
            return Ok(());
        }
        let (level, name, value) = match (batch.to.is_ipv4(), batch.whole) {
            (true, true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
            (true, false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
            (false, true) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
            (false, false) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
        };
        // SAFETY: the option is an int, which outlives the call.
        let set = unsafe {
            libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size_of_val(&value) as u32)
        };
        if set == -1 {
            return Err(io::Error::last_os_error());
        }
        self.whole = Some(batch.whole);
        Ok(())
    }
}

/// Lets `send` send what goes `hops` hops at most, such as to the NAT behind which this host is, and not to that of the peer.
///
/// # Errors
/// Those of `setsockopt`, and what `send` says.
pub fn with_ttl<T>(
    socket: BorrowedFd<'_>,
    hops: u8,
    is_ipv4: bool,
    send: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> io::Result<T> {
    let socket_ref = SockRef::from(&socket);
    if !is_ipv4 {
        let usual = socket_ref.unicast_hops_v6()?;
        socket_ref.set_unicast_hops_v6(hops.into())?;
        let sent = send(socket);
        socket_ref.set_unicast_hops_v6(usual)?;
        return sent;
    }
    let usual = socket_ref.ttl_v4()?;
    socket_ref.set_ttl_v4(hops.into())?;
    let sent = send(socket);
    socket_ref.set_ttl_v4(usual)?;
    sent
}

/// EIO: no checksums from this device. EINVAL, or EMSGSIZE since Linux 6.9: segments too long for the route; also what kernels
/// before 4.18 say to the option.
fn is_refusal_to_cut(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::ENOPROTOOPT))
}

fn send_message(socket: BorrowedFd<'_>, batch: &Batch<'_>, bytes: &[u8]) -> io::Result<usize> {
    let mut control = Control::default();
    if bytes.len() > batch.segment_bytes {
        let segment = u16::try_from(batch.segment_bytes).map_err(|_too_long| io::ErrorKind::InvalidInput)?;
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }
    match batch.from {
        Some(IpAddr::V4(ip)) => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&ip.octets());
            control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        Some(IpAddr::V6(ip)) => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&ip.octets());
            control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
        None => {}
    }
    let to = SockAddr::from(batch.to);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero msghdr is valid: no address, no buffers, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if control.used > 0 {
        message.msg_control = control.bytes.as_mut_ptr().cast();
        message.msg_controllen = control.used as _;
    }
    // SAFETY: address, buffer and control data outlive the call, and the kernel only reads them.
    let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_negative| io::Error::last_os_error())
}

/// Control data of a message: `length usize | level i32 | type i32 | data`, each message aligned as a usize (cmsg(3)).
struct Control {
    bytes: [u8; Self::BYTES],
    used: usize,
}

impl Control {
    /// Segment size and the larger packet info, each with head and padding, are 64.
    const BYTES: usize = 128;
    const HEAD_BYTES: usize = size_of::<libc::cmsghdr>();
    const ALIGN: usize = size_of::<usize>();

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let length = Self::HEAD_BYTES + data.len();
        let head = &mut self.bytes[self.used..];
        head[..Self::ALIGN].copy_from_slice(&length.to_ne_bytes());
        head[Self::HEAD_BYTES - 8..][..4].copy_from_slice(&level.to_ne_bytes());
        head[Self::HEAD_BYTES - 4..][..4].copy_from_slice(&kind.to_ne_bytes());
        head[Self::HEAD_BYTES..length].copy_from_slice(data);
        self.used += length.next_multiple_of(Self::ALIGN);
    }

    fn messages(&self) -> impl Iterator<Item = (i32, i32, &[u8])> {
        let mut rest = &self.bytes[..self.used.min(Self::BYTES)];
        std::iter::from_fn(move || {
            let length = usize::from_ne_bytes(*rest.first_chunk()?);
            let (message, _) = rest.split_at_checked(length)?;
            let (head, data) = message.split_at_checked(Self::HEAD_BYTES)?;
            rest = rest.get(length.next_multiple_of(Self::ALIGN)..).unwrap_or_default();
            let number = |at: usize| head[at..].first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
            Some((number(Self::HEAD_BYTES - 8)?, number(Self::HEAD_BYTES - 4)?, data))
        })
    }
}

impl Default for Control {
    fn default() -> Self {
        Self { bytes: [0; Self::BYTES], used: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::socket::local_address;

    const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

    #[test]
    fn a_batch_arrives_with_its_borders() {
        for ip in LOOPBACKS {
            let (ours, theirs) = (bound(ip), bound(ip));
            let to = local_address(theirs.as_fd()).expect("it is bound");
            let sent: Vec<u8> = (0..44 * 1_400 + 77u32).map(|at| (at / 1_400) as u8).collect();
            let batch = Batch { bytes: &sent, segment_bytes: 1_400, to, from: None, whole: true };
            assert_eq!(Outlet::default().send(ours.as_fd(), &batch).expect("it is sent"), sent.len());
            let datagrams = receive_all(&theirs, 45);
            assert_eq!(datagrams.concat(), sent);
            assert!(datagrams[..44].iter().all(|datagram| datagram.len() == 1_400));
            assert_eq!(datagrams[44].len(), 77);
        }
    }

    #[test]
    fn a_kernel_that_refuses_to_cut_gets_one_datagram_a_call_and_is_asked_again_much_later() {
        let (ours, theirs) = (bound(LOOPBACKS[0]), bound(LOOPBACKS[0]));
        let to = local_address(theirs.as_fd()).expect("it is bound");
        let sent = [7; 3_000];
        let mut outlet = Outlet { plain: PLAIN, whole: None };
        let batch = Batch { bytes: &sent, segment_bytes: 1_000, to, from: None, whole: false };
        assert_eq!(outlet.send(ours.as_fd(), &batch).expect("it is sent"), 3_000);
        assert_eq!(outlet.plain, PLAIN - 3);
        assert_eq!(receive_all(&theirs, 3), vec![vec![7; 1_000]; 3]);
        // More datagrams than any kernel cuts in one call.
        let mut outlet = Outlet::default();
        let batch = Batch { bytes: &sent, segment_bytes: 20, ..batch };
        assert_eq!(outlet.send(ours.as_fd(), &batch).expect("it is sent"), 3_000);
        assert_eq!(outlet.plain, PLAIN - 150);
        assert_eq!(receive_all(&theirs, 150), vec![vec![7; 20]; 150]);
    }

    #[test]
    fn the_first_byte_of_a_datagram_chooses_the_socket_wherever_it_comes_from() {
        for ip in LOOPBACKS {
            let first = bind(SocketAddr::new(ip, 0), true).expect("a free port");
            let to = local_address(first.as_fd()).expect("it is bound");
            let others = [0; 2].map(|_| bind(to, true).expect("the port is shared"));
            let sockets: Vec<_> = [first].into_iter().chain(others).collect();
            steer_by_first_byte(sockets[0].as_fd(), 3).expect("they share the port");
            for first_byte in (0..=255).rev() {
                let peer = bound(ip);
                let batch = Batch { bytes: &[first_byte, 99], segment_bytes: 2, to, from: None, whole: false };
                Outlet::default().send(peer.as_fd(), &batch).expect("it is sent");
                let received = receive_all(&sockets[usize::from(first_byte) % 3], 1);
                assert_eq!(received, [[first_byte, 99]]);
            }
        }
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        for (wildcard, asked) in [("0.0.0.0:0", "127.0.0.77"), ("[::]:0", "::1")] {
            let ours = bind(wildcard.parse().expect("an address"), false).expect("a free port");
            let port = local_address(ours.as_fd()).expect("it is bound").port();
            let asked: IpAddr = asked.parse().expect("an IP");
            let peer = UdpSocket::bind((LOOPBACKS[usize::from(asked.is_ipv6())], 0)).expect("a free port");
            peer.send_to(b"question", (asked, port)).expect("it is sent");
            let mut buffer = vec![0; RECEIVE_BYTES];
            let received = wait_for(&ours, &mut buffer);
            assert_eq!((received.bytes, received.from), (8, peer.local_addr().expect("it is bound")));
            assert_eq!(received.to, Some(asked));
            let batch =
                Batch { bytes: b"answer", segment_bytes: 6, to: received.from, from: received.to, whole: false };
            Outlet::default().send(ours.as_fd(), &batch).expect("it is sent");
            let (bytes, from) = peer.recv_from(&mut buffer).expect("it arrives");
            assert_eq!((&buffer[..bytes], from), (&b"answer"[..], SocketAddr::new(asked, port)));
        }
    }

    #[test]
    fn a_socket_with_one_address_is_not_told_which() {
        let (ours, theirs) = (bound(LOOPBACKS[0]), bound(LOOPBACKS[0]));
        let to = local_address(theirs.as_fd()).expect("it is bound");
        let batch = Batch { bytes: b"x", segment_bytes: 1, to, from: None, whole: false };
        Outlet::default().send(ours.as_fd(), &batch).expect("it is sent");
        assert_eq!(wait_for(&theirs, &mut [0; 10]).to, None);
    }

    #[test]
    fn an_empty_datagram_arrives_and_an_empty_socket_would_block() {
        let (ours, theirs) = (bound(LOOPBACKS[0]), bound(LOOPBACKS[0]));
        let mut buffer = [0; 10];
        let error = receive(theirs.as_fd(), &mut buffer).expect_err("nothing has arrived");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let to = local_address(theirs.as_fd()).expect("it is bound");
        let batch = Batch { bytes: b"", segment_bytes: 0, to, from: None, whole: false };
        assert_eq!(send_message(ours.as_fd(), &batch, b"").expect("it is sent"), 0);
        let received = wait_for(&theirs, &mut buffer);
        assert_eq!(received.bytes, 0);
        assert_eq!(received.datagrams(&mut buffer).count(), 0);
    }

    #[test]
    fn the_longest_datagram_arrives_whether_it_may_be_cut_in_pieces_or_not() {
        let (ours, theirs) = (bound(LOOPBACKS[0]), bound(LOOPBACKS[0]));
        let to = local_address(theirs.as_fd()).expect("it is bound");
        let (mut outlet, long) = (Outlet::default(), [1; 65_507]); // loopback has an MTU of 65,536, and headers have 28
        for whole in [true, false, true] {
            let batch = Batch { bytes: &long, segment_bytes: long.len(), to, from: None, whole };
            assert_eq!(outlet.send(ours.as_fd(), &batch).expect("it just fits"), long.len());
            assert_eq!(outlet.whole, Some(whole));
            assert_eq!(receive_all(&theirs, 1), [long]);
        }
    }

    #[test]
    fn a_refused_peer_is_told_once_and_costs_nothing() {
        let gone = bound(LOOPBACKS[0]);
        let to = local_address(gone.as_fd()).expect("it is bound");
        let ours = connect(to).expect("it has an address");
        drop(gone);
        super::super::socket::send(ours.as_fd(), b"x").expect("the first one leaves");
        let refused = receive(ours.as_fd(), &mut [0; 10]).expect_err("nobody is there");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let error = receive(ours.as_fd(), &mut [0; 10]).expect_err("nothing has arrived");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    fn bound(ip: IpAddr) -> OwnedFd {
        bind(SocketAddr::new(ip, 0), false).expect("a free port")
    }

    fn wait_for(socket: &OwnedFd, buffer: &mut [u8]) -> Received {
        let mut poll = [nix::poll::PollFd::new(socket.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, 60_000u16).expect("it can be polled");
        receive(socket.as_fd(), buffer).expect("something has arrived")
    }

    fn receive_all(socket: &OwnedFd, count: usize) -> Vec<Vec<u8>> {
        let (mut buffer, mut datagrams) = (vec![0; RECEIVE_BYTES], Vec::new());
        while datagrams.len() < count {
            let received = wait_for(socket, &mut buffer);
            datagrams.extend(received.datagrams(&mut buffer).map(|datagram| datagram.to_vec()));
        }
        datagrams
    }
}
