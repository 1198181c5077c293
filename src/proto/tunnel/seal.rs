//! A session: what two ends share after a handshake. Seals the packets of one direction, opens those of the other, both in
//! place and without allocation.
//!
//! * Sealing: [`Session::begin_packet`] appends the header's room to a batch, the caller appends frames, and
//!   [`Session::finish_packet`] numbers, encrypts and tags them. Several packets lie one after the other in the batch.
//! * Opening: id, epoch, replay window, tag, and only then is anything changed; see [`Session::open`].
//! * Keys change with the epoch, which is the number without its lower 22 bits. A sender comes to the next one by counting, or
//!   goes on at its first number when 10 minutes have passed. A receiver opens its own epoch, the one before it, which it
//!   forgets after three minutes, and the one after it, to which it moves with the first packet that is authentic.
//! * After the last number nothing is sealed any more.
//!
//! The tunnel must end a session whose peer is silent for so long that it may have missed a whole epoch. Absent: addresses, and
//! the question whether the peer has spoken under these keys yet: it has when something opens.

use super::keys::Ratchet;
use super::packet_key::{Forged, PacketKey};
use super::replay::ReplayWindow;
use super::wire::{HANDSHAKE_NUMBER, Header, Id, NUMBER_MAX, TAG_BYTES};

/// Packets under one key: 4.2 million, or 6 GB of full ones. RFC 9001 (section 6.6) allows AES-GCM twice as many.
pub const EPOCH_BITS: u32 = 22;

/// Age at which a sender leaves a key, µs.
pub const REKEY_US: u64 = 600_000_000;

/// Time for which packets of the epoch before are taken, µs. Far longer than any packet is under way.
pub const OLD_EPOCH_US: u64 = 180_000_000;

/// A receiver follows when it gets one packet of each epoch, so an epoch must last longer than a dead peer is waited for.
const _: () = assert!(REKEY_US > OLD_EPOCH_US);

#[derive(Debug)]
pub struct Session {
    /// Where we want our packets, and where the peer wants its.
    id: Id,
    peer_id: Id,
    sealer: Sealer,
    opener: Opener,
}

/// A packet that is authentic and new.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    pub number: u64,
    /// No packet with a higher number was opened before.
    pub is_highest: bool,
    /// What the peer has appended between header and tag.
    pub plaintext: &'a mut [u8],
}

/// Why a packet was not opened. Nobody but our own counters hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Shorter than header and tag, or addressed to another session.
    NotOurs,
    /// Its epoch is neither this one nor a neighbour that we (still) know.
    OtherEpoch,
    /// Seen before, or too old to tell.
    Replayed,
    Forged,
}

/// All numbers are used up. The packet has been taken back out of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Session {
    /// `ratchets` are for what we send and for what we receive; both ids are of this session.
    pub(super) fn new(now: u64, [id, peer_id]: [Id; 2], [sending, receiving]: [Ratchet; 2]) -> Self {
        Self { id, peer_id, sealer: Sealer::new(now, sending), opener: Opener::new(receiving) }
    }

    /// What datagrams for this session begin with.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    /// Appends the room of a header and returns where the packet starts. Frames come behind it. A packet that is not wanted
    /// after all is cut off by `out.truncate(start)`.
    #[must_use]
    pub fn begin_packet(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.extend_from_slice(&[0; Header::LEN]);
        start
    }

    /// Encrypts what was appended since `begin_packet` returned `start`, completes the packet and returns its number.
    ///
    /// # Errors
    /// When there are no numbers left.
    pub fn finish_packet(&mut self, out: &mut Vec<u8>, start: usize) -> Result<u64, Exhausted> {
        let sealed = self.sealer.seal(self.peer_id, &mut out[start..]);
        let Ok((number, tag)) = sealed else {
            out.truncate(start); // It is not encrypted.
            return Err(Exhausted);
        };
        out.extend_from_slice(&tag);
        Ok(number)
    }

    /// Opens a packet. A datagram that is rejected may have been altered, and is of no use for another session.
    ///
    /// # Errors
    /// For everything that is not an authentic packet of this session, for the first time.
    pub fn open<'a>(&mut self, now: u64, datagram: &'a mut [u8]) -> Result<Opened<'a>, Rejected> {
        if datagram.len() < Header::LEN + TAG_BYTES {
            return Err(Rejected::NotOurs);
        }
        let (head, body) = datagram.split_first_chunk_mut::<{ Header::LEN }>().ok_or(Rejected::NotOurs)?;
        match Header::parse(head) {
            Ok(Header { id, number }) if id == self.id => self.opener.open(now, number, head, body),
            _ => Err(Rejected::NotOurs),
        }
    }

    /// Changes the sender's key when it is old, and forgets the receiver's old one when its time has come. To be called before
    /// each batch, or at [`Session::next_timeout`].
    pub fn handle_timeout(&mut self, now: u64) {
        self.sealer.handle_timeout(now);
        self.opener.handle_timeout(now);
    }

    #[must_use]
    pub fn next_timeout(&self) -> u64 {
        self.sealer.rekey_at.min(self.opener.previous.as_ref().map_or(u64::MAX, |previous| previous.until))
    }
}

#[derive(Debug)]
struct Sealer {
    key: Box<PacketKey>,
    ratchet: Ratchet,
    /// Of `key`.
    epoch: u64,
    /// Of the next packet. It may be in the epoch after `epoch`, never further.
    next: u64,
    /// When we leave `timed_epoch`.
    rekey_at: u64,
    timed_epoch: u64,
}

impl Sealer {
    fn new(now: u64, mut ratchet: Ratchet) -> Self {
        Self {
            key: ratchet.advance(),
            ratchet,
            epoch: 0,
            next: HANDSHAKE_NUMBER + 1,
            rekey_at: now + REKEY_US,
            timed_epoch: 0,
        }
    }

    /// Fills in the header, encrypts what follows it.
    fn seal(&mut self, to: Id, packet: &mut [u8]) -> Result<(u64, [u8; TAG_BYTES]), Exhausted> {
        let number = self.next;
        if number > NUMBER_MAX {
            return Err(Exhausted);
        }
        if epoch(number) != self.epoch {
            self.key = self.ratchet.advance();
            self.epoch += 1;
        }
        self.next += 1;
        let (head, body) = packet.split_at_mut(Header::LEN);
        let header = Header { id: to, number }.emit();
        head.copy_from_slice(&header);
        Ok((number, self.key.seal(number, &header, body)))
    }

    /// An epoch that we count to but have not used yet is not skipped: the receiver could not follow.
    fn handle_timeout(&mut self, now: u64) {
        let is_current = self.timed_epoch == self.epoch;
        if is_current && now < self.rekey_at {
            return;
        }
        if is_current && epoch(self.next) == self.epoch {
            self.next = (self.epoch + 1) << EPOCH_BITS;
        }
        self.timed_epoch = self.epoch;
        self.rekey_at = now + REKEY_US;
    }
}

#[derive(Debug)]
struct Opener {
    ratchet: Ratchet,
    epoch: u64,
    current: Epoch,
    /// Made when the first packet claims to be of the next epoch, then kept: a forger makes us derive it once.
    next: Option<Box<PacketKey>>,
    previous: Option<Previous>,
}

#[derive(Debug)]
struct Epoch {
    key: Box<PacketKey>,
    window: ReplayWindow,
}

#[derive(Debug)]
struct Previous {
    epoch: Epoch,
    until: u64,
}

impl Opener {
    fn new(mut ratchet: Ratchet) -> Self {
        let mut current = Epoch { key: ratchet.advance(), window: ReplayWindow::new(HANDSHAKE_NUMBER) };
        current.window.mark(HANDSHAKE_NUMBER);
        Self { ratchet, epoch: 0, current, next: None, previous: None }
    }

    fn open<'a>(
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

    fn handle_timeout(&mut self, now: u64) {
        self.previous.take_if(|previous| previous.until <= now);
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

fn epoch(number: u64) -> u64 {
    number >> EPOCH_BITS
}

impl From<Forged> for Rejected {
    fn from(_: Forged) -> Self {
        Self::Forged
    }
}

impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotOurs => "not addressed to this session",
            Self::OtherEpoch => "of an epoch without a key",
            Self::Replayed => "seen before, or too old to tell",
            Self::Forged => "not authentic",
        })
    }
}

impl std::error::Error for Rejected {}

impl std::fmt::Display for Exhausted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("all numbers of the session are used up")
    }
}

impl std::error::Error for Exhausted {}

#[cfg(test)]
mod tests {
    use super::super::wire::Cipher;
    use super::*;

    /// Numbers of an epoch.
    const EPOCH: u64 = 1 << EPOCH_BITS;

    #[test]
    fn the_number_of_the_handshake_is_no_number_of_a_packet() {
        let (mut ours, mut theirs) = pair();
        ours.sealer.next = HANDSHAKE_NUMBER;
        assert_eq!(open(&mut theirs, 0, &seal(&mut ours)), Err(Rejected::Replayed));
        assert_eq!(open(&mut theirs, 0, &seal(&mut ours)), Ok((1, true)));
    }

    #[test]
    fn counting_into_the_next_epoch_changes_the_key_and_loses_nothing() {
        let (mut ours, mut theirs) = pair();
        ours.sealer.next = EPOCH - 2;
        let packets: Vec<_> = (0..4).map(|_| seal(&mut ours)).collect();
        for (packet, number) in packets.iter().zip(EPOCH - 2..) {
            assert_eq!(open(&mut theirs, 0, packet), Ok((number, true)));
        }
        assert_eq!((ours.sealer.epoch, theirs.opener.epoch), (1, 1));
    }

    #[test]
    fn after_ten_minutes_the_sender_goes_on_in_the_next_epoch() {
        let (mut ours, mut theirs) = pair();
        assert_eq!(ours.next_timeout(), REKEY_US);
        seal(&mut ours);
        ours.handle_timeout(REKEY_US - 1);
        assert_eq!(open(&mut theirs, 0, &seal(&mut ours)), Ok((2, true)));
        ours.handle_timeout(REKEY_US);
        assert_eq!(open(&mut theirs, 0, &seal(&mut ours)), Ok((EPOCH, true)));
        assert_eq!(ours.next_timeout(), 2 * REKEY_US);
    }

    #[test]
    fn an_epoch_begun_by_counting_lasts_ten_minutes_too() {
        let (mut ours, _) = pair();
        ours.sealer.next = EPOCH;
        seal(&mut ours);
        ours.handle_timeout(REKEY_US - 1); // Now it is seen that the epoch has changed.
        ours.handle_timeout(2 * REKEY_US - 2);
        assert_eq!(ours.sealer.next, EPOCH + 1);
        ours.handle_timeout(2 * REKEY_US - 1);
        assert_eq!(ours.sealer.next, 2 * EPOCH);
    }

    #[test]
    fn an_epoch_in_which_nothing_was_sent_is_not_skipped() {
        let (mut ours, mut theirs) = pair();
        (1..=10).for_each(|times| ours.handle_timeout(times * REKEY_US));
        assert_eq!(open(&mut theirs, 0, &seal(&mut ours)), Ok((EPOCH, true)));
    }

    #[test]
    fn stragglers_of_the_epoch_before_are_opened_once_and_for_three_minutes() {
        let (mut ours, mut theirs) = pair();
        let stragglers: Vec<_> = (0..3).map(|_| seal(&mut ours)).collect();
        let of_the_next = seal_in_next_epoch(&mut ours);
        assert_eq!(open(&mut theirs, 7, &of_the_next), Ok((EPOCH, true)));
        assert_eq!(theirs.next_timeout(), 7 + OLD_EPOCH_US);
        assert_eq!(open(&mut theirs, 7, &stragglers[1]), Ok((2, false)));
        assert_eq!(open(&mut theirs, 7, &stragglers[1]), Err(Rejected::Replayed));
        assert_eq!(open(&mut theirs, 6 + OLD_EPOCH_US, &stragglers[0]), Ok((1, false)));
        assert_eq!(open(&mut theirs, 7 + OLD_EPOCH_US, &stragglers[2]), Err(Rejected::OtherEpoch));
        assert_eq!(open(&mut theirs, 7 + OLD_EPOCH_US, &of_the_next), Err(Rejected::Replayed));
    }

    #[test]
    fn the_key_of_the_epoch_before_is_dropped_after_three_minutes() {
        let (mut ours, mut theirs) = pair();
        let of_the_next = seal_in_next_epoch(&mut ours);
        assert_eq!(open(&mut theirs, 7, &of_the_next), Ok((EPOCH, true)));
        theirs.handle_timeout(6 + OLD_EPOCH_US);
        assert!(theirs.opener.previous.is_some());
        theirs.handle_timeout(7 + OLD_EPOCH_US);
        assert!(theirs.opener.previous.is_none());
        assert_eq!(theirs.next_timeout(), REKEY_US);
    }

    #[test]
    fn the_next_change_forgets_the_epoch_before_at_once() {
        let (mut ours, mut theirs) = pair();
        let straggler = seal(&mut ours);
        for epoch in 1..3 {
            let packet = seal_in_next_epoch(&mut ours);
            assert_eq!(open(&mut theirs, 0, &packet), Ok((epoch * EPOCH, true)));
        }
        assert_eq!(open(&mut theirs, 0, &straggler), Err(Rejected::OtherEpoch));
    }

    #[test]
    fn an_epoch_further_on_than_the_next_is_rejected_although_authentic() {
        let (mut ours, mut theirs) = pair();
        let next = seal_in_next_epoch(&mut ours);
        let after_next = seal_in_next_epoch(&mut ours);
        assert_eq!(open(&mut theirs, 0, &after_next), Err(Rejected::OtherEpoch));
        assert_eq!(open(&mut theirs, 0, &next), Ok((EPOCH, true)));
        assert_eq!(open(&mut theirs, 0, &after_next), Ok((2 * EPOCH, true)));
    }

    #[test]
    fn a_forged_packet_of_the_next_epoch_moves_nobody() {
        let (mut ours, mut theirs) = pair();
        let of_this = seal(&mut ours);
        let of_the_next = seal_in_next_epoch(&mut ours);
        for at in Header::LEN..of_the_next.len() {
            let mut forged = of_the_next.clone();
            forged[at] ^= 1;
            assert_eq!(open(&mut theirs, 0, &forged), Err(Rejected::Forged));
        }
        assert_eq!(theirs.opener.epoch, 0);
        assert_eq!(open(&mut theirs, 0, &of_this), Ok((1, true)));
        assert_eq!(open(&mut theirs, 0, &of_the_next), Ok((EPOCH, true)));
    }

    #[test]
    fn after_the_last_number_nothing_is_sealed_and_nothing_stays_in_the_batch() {
        let (mut ours, _) = pair();
        (ours.sealer.next, ours.sealer.epoch) = (NUMBER_MAX, epoch(NUMBER_MAX));
        let mut batch = seal(&mut ours);
        assert_eq!(Header::parse(&batch).map(|header| header.number), Ok(NUMBER_MAX));
        let before = batch.clone();
        for _ in 0..2 {
            let start = ours.begin_packet(&mut batch);
            batch.extend_from_slice(b"not encrypted");
            assert_eq!(ours.finish_packet(&mut batch, start), Err(Exhausted));
            assert_eq!(batch, before);
            ours.handle_timeout(ours.next_timeout());
        }
    }

    #[test]
    fn a_receiver_in_the_last_epoch_rejects_what_does_not_authenticate() {
        let (_, mut theirs) = pair();
        theirs.opener.epoch = epoch(NUMBER_MAX);
        let mut packet = Header { id: theirs.id, number: NUMBER_MAX }.emit().to_vec();
        packet.extend_from_slice(&[0; 16]);
        assert_eq!(open(&mut theirs, 0, &packet), Err(Rejected::Forged));
        packet[6..12].copy_from_slice(&[0, 0, 0, 0, 0, 1]);
        assert_eq!(open(&mut theirs, 0, &packet), Err(Rejected::OtherEpoch));
    }

    /// What one sends the other opens.
    fn pair() -> (Session, Session) {
        let ratchet = |direction| Ratchet::new(Cipher::Aes256Gcm, b"transcript", &[direction; 32]);
        let session = |ids, [sending, receiving]: [u8; 2]| Session::new(0, ids, [ratchet(sending), ratchet(receiving)]);
        let [one, other] = [Id([1; 6]), Id([2; 6])];
        (session([one, other], [1, 2]), session([other, one], [2, 1]))
    }

    fn seal(session: &mut Session) -> Vec<u8> {
        let mut packet = Vec::new();
        let start = session.begin_packet(&mut packet);
        packet.extend_from_slice(b"frames");
        session.finish_packet(&mut packet, start).expect("numbers are left");
        packet
    }

    fn seal_in_next_epoch(session: &mut Session) -> Vec<u8> {
        session.sealer.next = (session.sealer.epoch + 1) * EPOCH;
        seal(session)
    }

    /// Number, and whether it is the highest.
    fn open(session: &mut Session, now: u64, packet: &[u8]) -> Result<(u64, bool), Rejected> {
        let mut packet = packet.to_vec();
        let opened = session.open(now, &mut packet)?;
        assert_eq!(opened.plaintext, b"frames");
        Ok((opened.number, opened.is_highest))
    }
}
