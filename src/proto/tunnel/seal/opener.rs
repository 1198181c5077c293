//! The half of a session that receives: which epoch, seen before, authentic?

use super::super::keys::Ratchet;
use super::super::packet_key::PacketKey;
use super::super::replay::ReplayWindow;
use super::super::wire::{HANDSHAKE_NUMBER, Header};
use super::{EPOCH_BITS, OLD_EPOCH_US, Opened, Rejected, epoch};

#[derive(Debug)]
pub(super) struct Opener {
    ratchet: Ratchet,
    pub(super) epoch: u64,
    current: Epoch,
    /// Made when the first packet claims to be of the next epoch, then kept: a forger makes us derive it once.
    next: Option<Box<PacketKey>>,
    pub(super) previous: Option<Previous>,
}

#[derive(Debug)]
struct Epoch {
    key: Box<PacketKey>,
    window: ReplayWindow,
}

#[derive(Debug)]
pub(super) struct Previous {
    epoch: Epoch,
    until: u64,
}

impl Opener {
    pub fn new(mut ratchet: Ratchet) -> Self {
        let mut current = Epoch { key: ratchet.advance(), window: ReplayWindow::new(HANDSHAKE_NUMBER) };
        current.window.mark(HANDSHAKE_NUMBER);
        Self { ratchet, epoch: 0, current, next: None, previous: None }
    }

    pub fn open<'a>(
        &mut self,
        now: u64,
        number: u64,
        head: &[u8; Header::LEN],
        body: &'a mut [u8],
    ) -> Result<Opened<'a>, Rejected> {
        let claimed = epoch(number);
        if claimed == self.epoch {
            self.current.open(number, head, body)
        } else if claimed == self.epoch + 1 {
            let ratchet = &mut self.ratchet;
            let plaintext = self.next.get_or_insert_with(|| ratchet.advance()).open(number, head, body)?;
            self.move_on(now, number);
            Ok(Opened { number, is_highest: true, plaintext })
        } else {
            let previous = self.previous.as_mut().filter(|previous| claimed + 1 == self.epoch && now < previous.until);
            let opened = previous.ok_or(Rejected::OtherEpoch)?.epoch.open(number, head, body)?;
            Ok(Opened { is_highest: false, ..opened })
        }
    }

    /// The first packet of the next epoch was authentic.
    fn move_on(&mut self, now: u64, number: u64) {
        let Some(key) = self.next.take() else { return };
        self.epoch += 1;
        let mut window = ReplayWindow::new(self.epoch << EPOCH_BITS);
        window.mark(number);
        let epoch = std::mem::replace(&mut self.current, Epoch { key, window });
        self.previous = Some(Previous { epoch, until: now + OLD_EPOCH_US });
    }

    pub fn handle_timeout(&mut self, now: u64) {
        self.previous.take_if(|previous| previous.until <= now);
    }

    pub fn next_timeout(&self) -> u64 {
        self.previous.as_ref().map_or(u64::MAX, |previous| previous.until)
    }
}

impl Epoch {
    fn open<'a>(&mut self, number: u64, head: &[u8; Header::LEN], body: &'a mut [u8]) -> Result<Opened<'a>, Rejected> {
        if !self.window.admits(number) {
            return Err(Rejected::Replayed);
        }
        let plaintext = self.key.open(number, head, body)?;
        let is_highest = self.window.is_highest(number);
        self.window.mark(number);
        Ok(Opened { number, is_highest, plaintext })
    }
}
