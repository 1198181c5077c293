//! The streams of a tunnel.

/// One stream of a tunnel. Never given twice in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u32);
