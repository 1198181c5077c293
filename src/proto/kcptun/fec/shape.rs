//! How many packets of data and of parity make a group, and how to find out what the peer took for that.

use super::Kind;

/// The longest group that is learned, in packets: the tables of a longer one would cost megabytes, for a peer's asking.
const LEARNED_MAX: u32 = 64;

/// Numbers of packets in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// From 1.
    pub data: u8,
    /// From 1; at most 256 with those of data.
    pub parity: u8,
}

impl Shape {
    #[must_use]
    pub fn is_possible(self) -> bool {
        self.data > 0 && self.parity > 0 && self.packets() <= 256
    }

    #[must_use]
    pub fn packets(self) -> u32 {
        u32::from(self.data) + u32::from(self.parity)
    }

    /// What the packet of that number is.
    pub(super) fn kind(self, number: u32) -> Kind {
        if number % self.packets() < u32::from(self.data) { Kind::Data } else { Kind::Parity }
    }
}

/// Watches packets that follow each other without a gap: from one change of type to the next it counts how long a run is.
#[derive(Debug, Default)]
pub struct Learner {
    last: Option<(u32, Kind)>,
    /// Length of the run that goes on, if its beginning was seen.
    run: Option<u32>,
    /// Length of the last whole run of data.
    data: Option<u32>,
}

impl Learner {
    /// The shape, when this packet is the first behind a whole group.
    pub fn watch(&mut self, number: u32, kind: Kind) -> Option<Shape> {
        let follows = self.last.is_some_and(|(last, _)| last.wrapping_add(1) == number);
        let before = self.last.replace((number, kind));
        let Some((_, kind_before)) = before.filter(|_| follows) else {
            (self.run, self.data) = (None, None);
            return None;
        };
        if kind_before == kind {
            self.run = self.run.map(|run| run + 1);
            return None;
        }
        match (kind, self.run.replace(1)) {
            (Kind::Parity, run) => {
                self.data = run;
                None
            }
            (Kind::Data, run) => shape(number, self.data?, run?),
        }
    }
}

fn shape(next: u32, data: u32, parity: u32) -> Option<Shape> {
    let fits = data + parity <= LEARNED_MAX && next.is_multiple_of(data + parity);
    fits.then_some(Shape { data: data as u8, parity: parity as u8 }) // No more than 64 each.
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { data: 4, parity: 2 };

    fn learn(numbers: impl Iterator<Item = u32>) -> Option<(u32, Shape)> {
        let mut learner = Learner::default();
        numbers.into_iter().find_map(|number| Some((number, learner.watch(number, SHAPE.kind(number))?)))
    }

    #[test]
    fn the_shape_is_known_after_the_first_group_that_came_whole() {
        assert_eq!(learn(0..100), Some((12, SHAPE)), "where the first begins was not seen");
        assert_eq!(learn(3..100), Some((12, SHAPE)));
        assert_eq!(learn((0..100).filter(|number| *number != 8)), Some((18, SHAPE)));
    }

    #[test]
    fn nothing_is_learned_of_groups_with_a_gap() {
        assert_eq!(learn((0..100).filter(|number| number % 6 != 3)), None);
    }
}
