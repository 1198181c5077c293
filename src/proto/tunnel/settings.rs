//! What a tunnel may cost, and what it carries.

/// One for all tunnels of an endpoint.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The processor has instructions for AES; without, ChaCha20 is asked for. Only the caller can know. Default true.
    pub has_aes: bool,
    /// Bulk never leaves faster, in bytes a second. `None`: as fast as the path bears. Default `None`.
    pub rate_max: Option<u64>,
    /// How thin streams are made safe against loss. Default adaptive.
    pub repeats: Repeats,
    /// Streams of a tunnel that are not forgotten; further ones are reset. Default 4,096.
    pub streams_max: usize,
    /// Tunnels, those whose handshake is not complete included; further handshakes are not answered. Default 1,024.
    pub tunnels_max: usize,
    /// What a tunnel keeps at most of all its streams' bytes, here: written and not acknowledged, arrived and not read.
    /// Default 32 MiB.
    pub buffer_bytes_max: usize,
    /// Silence before the peer is asked whether it lives, in µs: three answers missing and 10 s more end the tunnel. Default
    /// 15 s: NATs often forget a UDP mapping after 30 s.
    pub keep_alive_us: u64,
    /// Time in which somebody must answer a handshake, in µs. Default 30 s.
    pub handshake_us: u64,
    /// Handshakes that are answered in a second; twice as many at once. Each costs about 200 µs. Default 50: 1 % of a processor.
    pub handshakes_per_second: u64,
    /// The longest datagram to try, in bytes of UDP payload, from 1,200. Default 1,452: Ethernet with IPv6.
    pub mtu_max: usize,
    /// The first byte of all ids that packets to us begin with: a socket's filter can tell by it to which of several processes a
    /// packet goes. `None`: any. Default `None`.
    pub ids_begin_with: Option<u8>,
    /// Peers that ask are told the address from which their question came. Default false: only a rendezvous is asked.
    pub answers_observe: bool,
}

/// How often the segments of a thin stream are sent again in the datagrams that follow, before anybody misses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// As often as the measured loss demands.
    Adaptive,
    Fixed(u32),
}

/// What a service is like, behind its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its ports, counted from 0 for each protocol.
    pub tcp_ports: u8,
    pub udp_ports: u8,
    /// It wants to be told the players' addresses.
    pub wants_addresses: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            has_aes: true,
            rate_max: None,
            repeats: Repeats::Adaptive,
            streams_max: 4096,
            tunnels_max: 1024,
            buffer_bytes_max: 32 << 20,
            keep_alive_us: 15_000_000,
            handshake_us: 30_000_000,
            handshakes_per_second: 50,
            mtu_max: 1452,
            ids_begin_with: None,
            answers_observe: false,
        }
    }
}
