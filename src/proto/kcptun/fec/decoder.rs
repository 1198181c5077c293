//! Keeps the packets of the last groups, and brings back the data that is missing as soon as enough has arrived.

use std::collections::VecDeque;

use reed_solomon_erasure::galois_8::ReedSolomon;

use super::shape::Learner;
use super::{Packet, SIZE_BYTES, Shape};

/// Groups that are kept; for one more, the one that began first is forgotten. By arrival and not by number, so that a packet
/// with a wrong number costs one group and not all that follow.
const GROUPS_MAX: usize = 3;

#[derive(Debug)]
pub struct Decoder {
    learner: Learner,
    /// `None` until the peer's shape is known.
    code: Option<(Shape, ReedSolomon)>,
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
        let mut decoder = Self { learner: Learner::default(), code: None, groups: VecDeque::new(), spare: Vec::new() };
        shape.into_iter().for_each(|shape| decoder.adopt(shape));
        decoder
    }

    /// Takes a packet and tells the payloads that it brought back. What is no packet of FEC is ignored.
    pub fn take(&mut self, bytes: &[u8], mut recovered: impl FnMut(&[u8])) {
        let Some(packet) = Packet::decode(bytes) else { return };
        if let Some(shape) = self.learner.watch(packet.number, packet.kind)
            && self.shape() != Some(shape)
        {
            self.adopt(shape);
        }
        let Some(shape) = self.shape().filter(|shape| shape.kind(packet.number) == packet.kind) else { return };
        let at = packet.number % shape.packets();
        let group = self.group(packet.number - at, shape);
        self.put(group, at as usize, packet.shard);
        self.recover(group, shape, &mut recovered);
    }

    fn shape(&self) -> Option<Shape> {
        self.code.as_ref().map(|(shape, _)| *shape)
    }

    fn adopt(&mut self, shape: Shape) {
        self.groups.clear();
        self.spare.clear();
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

    fn recover(&mut self, group: usize, shape: Shape, recovered: &mut impl FnMut(&[u8])) {
        let shards = &mut self.groups[group].shards;
        let data = usize::from(shape.data);
        if shards.iter().filter(|(_, arrived)| *arrived).count() < data {
            return;
        }
        let missing: Vec<usize> = (0..data).filter(|at| !shards[*at].1).collect();
        if !missing.is_empty() && self.code.as_ref().is_some_and(|(_, code)| reconstruct(code, shards)) {
            missing.iter().filter_map(|at| payload(&shards[*at].0)).for_each(recovered);
        }
        self.finish(group);
    }

    /// Of this group nothing is missing any more: what still comes of it finds no place.
    fn finish(&mut self, group: usize) {
        let shards = std::mem::take(&mut self.groups[group].shards);
        self.spare.extend(shards.into_iter().map(|(buffer, _)| buffer));
    }
}

/// Brings the data back that is missing. False when the shards do not fit together.
fn reconstruct(code: &ReedSolomon, shards: &mut [(Vec<u8>, bool)]) -> bool {
    let longest = shards.iter().filter(|(_, arrived)| *arrived).map(|(shard, _)| shard.len()).max().unwrap_or(0);
    shards.iter_mut().for_each(|(shard, arrived)| {
        if !*arrived {
            shard.clear();
        }
        shard.resize(longest, 0);
    });
    code.reconstruct_data(shards).is_ok()
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
            assert_eq!(recovered(&mut Decoder::new(Some(SHAPE)), arrived), missing, "{lost:?}");
        }
    }

    #[test]
    fn of_a_group_with_four_packets_lost_nothing_comes_back() {
        let packets = packets(&mut Encoder::new(SHAPE), 1);
        let arrived = packets.iter().skip(4);
        assert_eq!(recovered(&mut Decoder::new(Some(SHAPE)), arrived), [] as [Vec<u8>; 0]);
    }

    #[test]
    fn duplicates_bring_nothing_back_twice() {
        let packets = packets(&mut Encoder::new(SHAPE), 2);
        let arrived: Vec<_> = packets[1..].iter().flat_map(|packet| [packet, packet]).collect();
        let back = recovered(&mut Decoder::new(Some(SHAPE)), arrived.iter().copied().chain(arrived.iter().copied()));
        assert_eq!(back, [payload_of(&packets[0])]);
    }

    #[test]
    fn numbers_begin_again_after_the_last_whole_group() {
        let last = u32::MAX / 13 * 13 - 13;
        let packets = packets(&mut Encoder::new(SHAPE).starting_at(last), 2);
        let numbers: Vec<_> = packets.iter().map(|packet| Packet::decode(packet).expect("a packet").number).collect();
        assert_eq!(numbers, (last..last + 13).chain(0..13).collect::<Vec<_>>());
        let arrived = packets.iter().enumerate().filter(|(at, _)| ![2, 15].contains(at)).map(|(_, packet)| packet);
        let back = recovered(&mut Decoder::new(Some(SHAPE)), arrived);
        assert_eq!(back, [payload_of(&packets[2]), payload_of(&packets[15])]);
    }

    #[test]
    fn another_shape_of_the_peer_is_learned() {
        for believed in [None, Some(Shape { data: 20, parity: 4 })] {
            let packets = packets(&mut Encoder::new(SHAPE), 4);
            let arrived = packets.iter().enumerate().filter(|(at, _)| *at != 30).map(|(_, packet)| packet);
            let back = recovered(&mut Decoder::new(believed), arrived);
            assert_eq!(back, [payload_of(&packets[30])], "{believed:?}");
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
