//! The connection to the rendezvous: packets of a tunnel, each behind its length, and nobody is waited for.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::survey::Unmet;
use crate::sys::socket;

/// With what has arrived of a frame, and what waits for room.
pub(super) struct Link {
    stream: TcpStream,
    pub is_connected: bool,
    /// It is no more, or never was.
    pub fault: Option<ErrorKind>,
    arrived: Vec<u8>,
    waiting: Vec<u8>,
}

/// Of what waits for room, in bytes. Beyond it packets are lost, as on any way.
const WAITING_BYTES_MAX: usize = 64 << 10;

impl Link {
    pub fn connect(to: SocketAddr, epoll: &Epoll) -> Result<Self, Unmet> {
        let stream = TcpStream::from(socket::connect(to).map_err(|error| Unmet::Unreachable(Some(error.kind())))?);
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(stream.as_fd(), EpollEvent::new(both, 0)).map_err(io::Error::from)?;
        Ok(Self { stream, is_connected: false, fault: None, arrived: Vec::new(), waiting: Vec::new() })
    }

    /// Whether there may be more.
    pub fn receive(&mut self, buffer: &mut [u8]) -> bool {
        if self.fault.is_some() {
            return false;
        }
        if !self.is_connected {
            self.is_connected = self.stream.peer_addr().is_ok();
            self.fault = self.stream.take_error().ok().flatten().map(|error| error.kind());
            if !self.is_connected || self.fault.is_some() {
                return false;
            }
            let _ = self.stream.set_nodelay(true); // or delays look longer
        }
        match self.stream.read(buffer) {
            Ok(0) => self.fault = Some(ErrorKind::UnexpectedEof),
            Ok(n) => {
                self.arrived.extend_from_slice(&buffer[..n]);
                return true;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => self.fault = Some(error.kind()),
        }
        false
    }

    /// The next packet, if all of it has come. Layout: length u16 | packet.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        let (length, rest) = self.arrived.split_first_chunk::<2>()?;
        let packet = rest.get(..usize::from(u16::from_be_bytes(*length)))?.to_vec();
        self.arrived.drain(..2 + packet.len());
        Some(packet)
    }

    pub fn push(&mut self, packet: &[u8]) {
        if let Ok(length) = u16::try_from(packet.len())
            && self.waiting.len() + packet.len() <= WAITING_BYTES_MAX
        {
            self.waiting.extend_from_slice(&length.to_be_bytes());
            self.waiting.extend_from_slice(packet);
        }
    }

    pub fn flush(&mut self) {
        while self.is_connected && self.fault.is_none() && !self.waiting.is_empty() {
            match self.stream.write(&self.waiting) {
                Ok(n) => _ = self.waiting.drain(..n),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => self.fault = Some(error.kind()),
            }
        }
    }
}
