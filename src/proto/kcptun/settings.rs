//! What kcptun can be told by its flags, under the names we give it, beside cipher and password, of which a
//! [`Key`](super::Key) is made. These two, compression and the version of smux must be the same at both ends.

use super::crypt::PACKET_BYTES_MAX;
use super::fec::Shape;
use super::smux::frame::Version;
use crate::proto::kcp::{self, Mode};

#[derive(Clone, Debug)]
pub struct Settings {
    /// `datashard` and `parityshard`. Default 10 and 3; `None` sends no parity. What the peer does is found out, and a server
    /// then does the same.
    pub fec: Option<Shape>,
    /// `mode`. Default fast.
    pub mode: Mode,
    /// `mtu`: the longest datagram, in bytes of UDP payload, up to 1,500. Default 1,350.
    pub mtu: usize,
    /// `sndwnd`: segments on their way. Default 128 for a client and 1,024 for a server.
    pub send_window: u16,
    /// `rcvwnd`: segments that have arrived and wait for their turn. Default 512 for a client and 1,024 for a server.
    pub receive_window: u16,
    /// `smuxver`. Default 1.
    pub version: Version,
    /// Not `nocomp`. Default true.
    pub compresses: bool,
    /// `smuxbuf`: bytes unread of all streams of a session. Default 4 MiB.
    pub unread_bytes: usize,
    /// `streambuf`: bytes unread of one stream, in version 2. Default 2 MiB.
    pub stream_unread_bytes: u32,
    /// `keepalive`, in µs: how often we show that we live. Default 10 s.
    pub keep_alive_us: u64,
    /// Silence after which a session is given up, in µs. Default 30 s, as in kcptun, which has no flag for it.
    pub silence_us: u64,
    /// Streams of a session; further ones are closed at once. Default 4,096.
    pub streams_max: usize,
    /// Sessions of a server; further ones are not answered. Default 1,024.
    pub sessions_max: usize,
}

/// A setting that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Must be from 576 to 1,500.
    Mtu(usize),
    /// Must have 1 of each, and 256 together at most.
    Fec(Shape),
    /// Must be from 16 to 32,768, both.
    Window(u16),
    /// Must be from 64 KiB, and that of a stream no more than that of a session.
    UnreadBytes(usize),
    /// Silence must be longer than the interval, and that above 0.
    KeepAlive,
}

const MTU_MIN: usize = 576;
const WINDOW_MIN: u16 = 16;
const WINDOW_MAX: u16 = 1 << 15;
const UNREAD_BYTES_MIN: usize = 64 << 10;

impl Settings {
    #[must_use]
    pub fn client() -> Self {
        Self {
            fec: Some(Shape { data: 10, parity: 3 }),
            mode: Mode::Fast,
            mtu: 1350,
            send_window: 128,
            receive_window: 512,
            version: Version::V1,
            compresses: true,
            unread_bytes: 4 << 20,
            stream_unread_bytes: 2 << 20,
            keep_alive_us: 10_000_000,
            silence_us: 30_000_000,
            streams_max: 4096,
            sessions_max: 1024,
        }
    }

    #[must_use]
    pub fn server() -> Self {
        Self { send_window: 1024, receive_window: 1024, ..Self::client() }
    }

    /// # Errors
    /// With the first setting that makes no sense.
    pub fn check(&self) -> Result<(), Unfit> {
        let is_window = |window: u16| (WINDOW_MIN..=WINDOW_MAX).contains(&window);
        let stream_unread_bytes = self.stream_unread_bytes as usize;
        if !(MTU_MIN..=PACKET_BYTES_MAX).contains(&self.mtu) {
            Err(Unfit::Mtu(self.mtu))
        } else if let Some(shape) = self.fec.filter(|shape| !shape.is_possible()) {
            Err(Unfit::Fec(shape))
        } else if let Some(window) = [self.send_window, self.receive_window].into_iter().find(|it| !is_window(*it)) {
            Err(Unfit::Window(window))
        } else if !(UNREAD_BYTES_MIN..=self.unread_bytes).contains(&stream_unread_bytes) {
            Err(Unfit::UnreadBytes(stream_unread_bytes))
        } else if self.keep_alive_us == 0 || self.silence_us <= self.keep_alive_us {
            Err(Unfit::KeepAlive)
        } else {
            Ok(())
        }
    }

    /// `overhead` is what stands before the segments of a packet.
    pub(super) fn kcp(&self, overhead: usize) -> kcp::Settings {
        let segment_bytes = self.mtu - overhead - kcp::segment::HEADER_BYTES;
        kcp::Settings {
            segment_bytes,
            send_window: self.send_window,
            receive_window: self.receive_window,
            send_bytes: usize::from(self.send_window) * segment_bytes,
            ..kcp::Settings::kcptun(self.mode)
        }
    }

    /// For both windows, with what [`kcp::Buffers`] reserves.
    pub(super) fn buffers(&self) -> kcp::Buffers {
        let windows = usize::from(self.send_window) + usize::from(self.receive_window);
        kcp::Buffers::new(PACKET_BYTES_MAX - kcp::segment::HEADER_BYTES, windows + windows / 3 + 2)
    }
}

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mtu(mtu) => write!(f, "an mtu of {mtu} is not from {MTU_MIN} to {PACKET_BYTES_MAX}"),
            Self::Fec(Shape { data, parity }) => {
                write!(f, "{data} shards of data and {parity} of parity: 1 of each is needed, 256 are too many")
            }
            Self::Window(window) => write!(f, "a window of {window} is not from {WINDOW_MIN} to {WINDOW_MAX}"),
            Self::UnreadBytes(bytes) => {
                write!(f, "{bytes} bytes unread for a stream are not from {UNREAD_BYTES_MIN} to those of all streams")
            }
            Self::KeepAlive => f.write_str("the silence that ends a session must be longer than the keep-alive"),
        }
    }
}

impl std::error::Error for Unfit {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kcptun_does_without_flags_passes_and_what_makes_no_sense_does_not() {
        let good = Settings::client();
        assert_eq!((good.check(), Settings::server().check()), (Ok(()), Ok(())));
        let shape = Shape { data: 200, parity: 57 };
        for (settings, unfit) in [
            (Settings { mtu: 1501, ..good.clone() }, Unfit::Mtu(1501)),
            (Settings { fec: Some(shape), ..good.clone() }, Unfit::Fec(shape)),
            (Settings { receive_window: 0, ..good.clone() }, Unfit::Window(0)),
            (Settings { unread_bytes: 1 << 20, ..good.clone() }, Unfit::UnreadBytes(2 << 20)),
            (Settings { silence_us: 10_000_000, ..good.clone() }, Unfit::KeepAlive),
        ] {
            assert_eq!(settings.check(), Err(unfit));
        }
    }
}
