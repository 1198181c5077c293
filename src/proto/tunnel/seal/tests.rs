//! What epochs, windows and the end of the numbers do; what an adversary can do is in `tests/tunnel_session.rs`.

use super::super::wire::{Cipher, HANDSHAKE_NUMBER, NUMBER_MAX};
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
