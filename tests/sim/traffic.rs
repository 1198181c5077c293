//! What users of a tunnel do in measurements: a game that sends messages at a steady rate, and bulk without end.

use super::Node;

/// Bytes of a game's message.
pub const MESSAGE: usize = 64;

/// 60 messages a second.
pub const GAME_EVERY_US: u64 = 16_667;

/// What travels from one end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Between two messages. `None`: no game.
    pub game_every_us: Option<u64>,
    /// Its messages are datagrams and not a stream.
    pub game_by_datagrams: bool,
    pub bulk: bool,
    /// `None`: as many as there is room for.
    pub bulk_bytes_per_second: Option<u64>,
    /// How often the game's segments are repeated. `None`: as losses demand.
    pub repeats: Option<u32>,
}

/// An end that can be told what to send, and keeps count of what arrives.
pub trait Measured: Node {
    /// From now on this is what it sends.
    fn start(&mut self, traffic: Traffic);
    /// One way, of the messages that arrived, in µs.
    fn delays(&self) -> &[u32];
    /// Of bulk.
    fn delivered_bytes(&self) -> u64;
}

impl Traffic {
    pub fn game() -> Self {
        Self { game_every_us: Some(GAME_EVERY_US), ..Self::default() }
    }

    pub fn bulk() -> Self {
        Self { bulk: true, ..Self::default() }
    }

    pub fn game_and_bulk() -> Self {
        Self { bulk: true, ..Self::game() }
    }

    /// What the other end sends meanwhile: its half of the game.
    pub fn answer(&self) -> Self {
        Self { bulk: false, bulk_bytes_per_second: None, ..*self }
    }
}

/// The sending half of a game.
#[derive(Debug, Default)]
pub struct Game {
    every_us: Option<u64>,
    next: u64,
}

impl Game {
    pub fn start(&mut self, now: u64, every_us: Option<u64>) {
        (self.every_us, self.next) = (every_us, now);
    }

    pub fn next_timeout(&self) -> Option<u64> {
        self.every_us.map(|_| self.next)
    }

    /// The message that is due, which tells when it was written.
    pub fn message(&mut self, now: u64) -> Option<[u8; MESSAGE]> {
        let every_us = self.every_us.filter(|_| self.next <= now)?;
        self.next = now + every_us;
        let mut message = [0; MESSAGE];
        message[..8].copy_from_slice(&now.to_le_bytes());
        Some(message)
    }
}

/// The receiving half.
#[derive(Debug, Default)]
pub struct Listener {
    /// The beginning of a message.
    begun: Vec<u8>,
    pub delays: Vec<u32>,
}

impl Listener {
    pub fn take(&mut self, now: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(bytes.len().min(MESSAGE - self.begun.len()));
            self.begun.extend_from_slice(piece);
            bytes = rest;
            if self.begun.len() == MESSAGE {
                let written = u64::from_le_bytes(self.begun[..8].try_into().expect("8 bytes"));
                self.delays.push((now - written) as u32);
                self.begun.clear();
            }
        }
    }
}
