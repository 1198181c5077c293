//! Keeps the packets of the last groups, and brings back the data that is missing as soon as enough has arrived.
//!
//! Nothing is brought back before groups that came whole have proved the shape by their parity. A wrong one would make wrong
//! packets that look right: where all packets have the same byte, as in the number of the conversation, whatever is made of
//! them has it too.

use std::collections::VecDeque;

use reed_solomon_erasure::galois_8::ReedSolomon;

use super::shape::Learner;
use super::{Packet, SIZE_BYTES, Shape};

/// Groups that are kept; for one more, the one that began first is forgotten. By arrival and not by number, so that a packet
/// with a wrong number costs one group and not all that follow.
const GROUPS_MAX: usize = 3;

/// Groups that prove a shape, if nothing comes between them that has no place in it. One is not enough: the first group of 10
/// and 3 packets looks like one of 10 and 2.
const PROOFS: u32 = 2;

#[derive(Debug)]
pub struct Decoder {
    learner: Learner,
    /// What the peer is believed to use.
    code: Option<(Shape, ReedSolomon)>,
    /// Groups that have proved it.
    proofs: u32,
    groups: VecDeque<Group>,
    /// Buffers of shards that are done with, at most those of all groups.
    spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Group {
    /// Number of its first packet.
    first: u32,
    /// With whether it has arrived; empty once nothing is missing any more.
    shards: Vec<(Vec<u8>, bool)>,
}

impl Decoder {
    /// `shape` is what the peer is believed to use; what it does use is learned.
    #[must_use]
    pub fn new(shape: Option<Shape>) -> Self {
        let learner = Learner::default();
        let mut decoder = Self { learner, code: None, proofs: 0, groups: VecDeque::new(), spare: Vec::new() };
        shape.into_iter().for_each(|shape| decoder.adopt(shape));
        decoder
    }

    /// Takes a packet and tells the payloads that it brought back. What is no packet of FEC is ignored.
    pub fn take(&mut self, bytes: &[u8], mut recovered: impl FnMut(&[u8])) {
        let Some(packet) = Packet::decode(bytes) else { return };
        if let Some(learned) = self.learner.watch(packet.number, packet.kind)
            && self.shape() != Some(learned)
        {
            self.adopt(learned);
        }
        let Some(shape) = self.shape() else { return };
        if shape.kind(packet.number) != packet.kind {
            self.proofs = 0;
            return;
        }
        let at = packet.number % shape.packets();
        let group = self.group(packet.number - at, shape);
        self.put(group, at as usize, packet.shard);
        self.use_group(group, usize::from(shape.data), &mut recovered);
    }

    /// What the peer uses for certain.
    pub fn proven_shape(&self) -> Option<Shape> {
        self.shape().filter(|_| self.proofs >= PROOFS)
    }

    fn shape(&self) -> Option<Shape> {
        self.code.as_ref().map(|(shape, _)| *shape)
    }

    fn adopt(&mut self, shape: Shape) {
        self.groups.clear();
        self.spare.clear();
        self.proofs = 0;
        self.code = ReedSolomon::new(shape.data.into(), shape.parity.into()).ok().map(|code| (shape, code));
    }

    /// Where the group is that begins with that number; made when it is new.
    fn group(&mut self, first: u32, shape: Shape) -> usize {
        if let Some(at) = self.groups.iter().position(|group| group.first == first) {
            return at;
        }
        if self.groups.len() == GROUPS_MAX {
            self.finish(0);
            self.groups.pop_front();
        }
        let shards = (0..shape.packets()).map(|_| (self.spare.pop().unwrap_or_default(), false)).collect();
        self.groups.push_back(Group { first, shards });
        self.groups.len() - 1
    }

    fn put(&mut self, group: usize, at: usize, shard: &[u8]) {
        if let Some((buffer, arrived)) = self.groups[group].shards.get_mut(at)
            && !*arrived
        {
            buffer.clear();
            buffer.extend_from_slice(shard);
            *arrived = true;
        }
    }

    /// Brings back what is missing of a group, or lets it prove the shape. As soon as it has `data` shards it can do no more.
    fn use_group(&mut self, group: usize, data: usize, recovered: &mut impl FnMut(&[u8])) {
        let shards = &mut self.groups[group].shards;
        let Some((_, code)) = self.code.as_ref().filter(|_| count(shards) >= data) else { return };
        let missing: Vec<usize> = (0..data).filter(|at| !shards[*at].1).collect();
        if self.proofs >= PROOFS {
            if !missing.is_empty() && reconstruct(code, shards) {
                missing.iter().filter_map(|at| payload(&shards[*at].0)).for_each(recovered);
            }
            self.finish(group);
        } else if missing.is_empty() && count(shards) > data {
            self.proofs = if is_proof(code, shards, data) { self.proofs + 1 } else { 0 };
            self.finish(group);
        }
    }

    /// Of this group nothing is missing any more: what still comes of it finds no place.
    fn finish(&mut self, group: usize) {
        let shards = std::mem::take(&mut self.groups[group].shards);
        self.spare.extend(shards.into_iter().map(|(buffer, _)| buffer));
    }
}

fn count(shards: &[(Vec<u8>, bool)]) -> usize {
    shards.iter().filter(|(_, arrived)| *arrived).count()
}

/// Brings the data back that is missing. False when the shards do not fit together.
fn reconstruct(code: &ReedSolomon, shards: &mut [(Vec<u8>, bool)]) -> bool {
    fill_up(shards);
    code.reconstruct_data(shards).is_ok()
}

/// Whether the parity that has arrived is that of the data, all of which has.
fn is_proof(code: &ReedSolomon, shards: &mut [(Vec<u8>, bool)], data: usize) -> bool {
    fill_up(shards);
    let (data, parity) = shards.split_at(data);
    let data: Vec<&[u8]> = data.iter().map(|(shard, _)| &shard[..]).collect();
    let mut right: Vec<Vec<u8>> = parity.iter().map(|(shard, _)| shard.clone()).collect();
    code.encode_sep(&data, &mut right).is_ok()
        && parity.iter().zip(right).all(|((shard, arrived), right)| !arrived || *shard == right)
}

/// Makes all shards as long as the longest that has arrived.
fn fill_up(shards: &mut [(Vec<u8>, bool)]) {
    let longest = shards.iter().filter(|(_, arrived)| *arrived).map(|(shard, _)| shard.len()).max().unwrap_or(0);
    shards.iter_mut().for_each(|(shard, arrived)| {
        if !*arrived {
            shard.clear();
        }
        shard.resize(longest, 0);
    });
}

/// What a shard of data carries; its size says where the filling begins.
fn payload(shard: &[u8]) -> Option<&[u8]> {
    let (size, _) = shard.split_first_chunk::<SIZE_BYTES>()?;
    shard.get(SIZE_BYTES..usize::from(u16::from_le_bytes(*size)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Content, DATA_HEADER_BYTES, Encoder, Kind, content};
    use super::*;

    const SHAPE: Shape = Shape { data: 10, parity: 3 };

    /// Packets of whole groups, each payload of another length.
    fn packets(encoder: &mut Encoder, groups: usize) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for at in 0..10 * groups {
            let mut packet = vec![0; DATA_HEADER_BYTES];
            packet.extend((0..=at * 7 % 50).map(|byte| (byte * 31 + at) as u8));
            encoder.mark(&mut packet);
            packets.push(packet);
            let mut parity = Vec::new();
            while encoder.write_parity(&mut parity) {
                packets.push(std::mem::take(&mut parity));
            }
        }
        packets
    }

    /// Knows the shape, as it does after the first whole group.
    fn decoder() -> Decoder {
        Decoder { proofs: PROOFS, ..Decoder::new(Some(SHAPE)) }
    }

    fn recovered<'a>(decoder: &mut Decoder, packets: impl Iterator<Item = &'a Vec<u8>>) -> Vec<Vec<u8>> {
        let mut recovered = Vec::new();
        packets.for_each(|packet| decoder.take(packet, |payload| recovered.push(payload.to_vec())));
        recovered
    }

    fn payload_of(packet: &[u8]) -> &[u8] {
        match content(packet) {
            Content::Data(payload) => payload,
            _ => panic!("no packet of data"),
        }
    }

    #[test]
    fn any_three_packets_of_a_group_may_be_lost() {
        let packets = packets(&mut Encoder::new(SHAPE), 1);
        assert_eq!(packets.len(), 13);
        for lost in (0..13).flat_map(|a| (0..13).flat_map(move |b| (0..13).map(move |c| [a, b, c]))) {
            let arrived = (0..13).filter(|at| !lost.contains(at)).map(|at| &packets[at]);
            let mut missing = lost.to_vec();
            missing.sort_unstable();
            missing.dedup();
            missing.retain(|at| *at < 10);
            let missing: Vec<_> = missing.into_iter().map(|at| payload_of(&packets[at])).collect();
            assert_eq!(recovered(&mut decoder(), arrived), missing, "{lost:?}");
        }
    }

    #[test]
    fn of_a_group_with_four_packets_lost_nothing_comes_back() {
        let packets = packets(&mut Encoder::new(SHAPE), 1);
        let arrived = packets.iter().skip(4);
        assert_eq!(recovered(&mut decoder(), arrived), [] as [Vec<u8>; 0]);
    }

    #[test]
    fn duplicates_bring_nothing_back_twice() {
        let packets = packets(&mut Encoder::new(SHAPE), 2);
        let arrived: Vec<_> = packets[1..].iter().flat_map(|packet| [packet, packet]).collect();
        let back = recovered(&mut decoder(), arrived.iter().copied().chain(arrived.iter().copied()));
        assert_eq!(back, [payload_of(&packets[0])]);
    }

    #[test]
    fn numbers_begin_again_after_the_last_whole_group() {
        let last = u32::MAX / 13 * 13 - 13;
        let packets = packets(&mut Encoder::new(SHAPE).starting_at(last), 2);
        let numbers: Vec<_> = packets.iter().map(|packet| Packet::decode(packet).expect("a packet").number).collect();
        assert_eq!(numbers, (last..last + 13).chain(0..13).collect::<Vec<_>>());
        let arrived = packets.iter().enumerate().filter(|(at, _)| ![2, 15].contains(at)).map(|(_, packet)| packet);
        let back = recovered(&mut decoder(), arrived);
        assert_eq!(back, [payload_of(&packets[2]), payload_of(&packets[15])]);
    }

    #[test]
    fn a_wrong_belief_about_the_shape_brings_nothing_back_that_was_not_sent() {
        for seed in 0..2000_u32 {
            let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
            let mut lost = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state >> 24 < 70
            };
            let packets = packets(&mut Encoder::new(SHAPE), 12);
            let sent: Vec<_> = packets.iter().filter(|it| matches!(content(it), Content::Data(_))).collect();
            let believed = Shape { data: 9 + (seed % 3) as u8, parity: 2 + (seed / 3 % 3) as u8 };
            let arrived = packets.iter().filter(|_| !lost());
            for back in recovered(&mut Decoder::new(Some(believed)), arrived) {
                assert!(sent.iter().any(|packet| payload_of(packet) == back), "seed {seed}, {believed:?}");
            }
        }
    }

    #[test]
    fn two_whole_groups_prove_the_shape_in_whatever_order_they_come() {
        let packets = packets(&mut Encoder::new(SHAPE), 4);
        let order = (0..13).rev().chain(13..26).chain((26..39).rev()).chain(39..52);
        for (lost, back) in [([0, 45], vec![45]), ([20, 45], vec![45]), ([7, 20], vec![]), ([4, 30], vec![])] {
            let arrived = order.clone().filter(|at| !lost.contains(at)).map(|at| &packets[at]);
            let back: Vec<_> = back.into_iter().map(|at: usize| payload_of(&packets[at])).collect();
            assert_eq!(recovered(&mut Decoder::new(Some(SHAPE)), arrived), back, "without {lost:?}");
        }
    }

    #[test]
    fn another_shape_of_the_peer_is_learned() {
        for believed in [None, Some(Shape { data: 20, parity: 4 })] {
            let packets = packets(&mut Encoder::new(SHAPE), 5);
            let arrived = packets.iter().enumerate().filter(|(at, _)| *at != 55).map(|(_, packet)| packet);
            let back = recovered(&mut Decoder::new(believed), arrived);
            assert_eq!(back, [payload_of(&packets[55])], "{believed:?}");
        }
    }

    proptest! {
        #[test]
        fn no_packets_make_it_panic_or_keep_more_than_three_groups(
            bodies in prop::collection::vec((0..60u32, any::<bool>(), prop::collection::vec(any::<u8>(), 0..12)), 0..200),
            base in prop::sample::select(vec![0, u32::MAX - 30]),
        ) {
            let mut decoder = Decoder::new(Some(Shape { data: 2, parity: 2 }));
            for (number, is_data, body) in bodies {
                let kind = if is_data { Kind::Data } else { Kind::Parity };
                let bytes = [&super::super::header(base.wrapping_add(number), kind)[..], &body].concat();
                decoder.take(&bytes, |payload| assert!(payload.len() <= 10));
                prop_assert!(decoder.groups.len() <= GROUPS_MAX);
                prop_assert!(decoder.spare.len() <= (GROUPS_MAX + 1) * 64);
            }
        }
    }
}
