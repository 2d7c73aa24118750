//! Memory for frames over all connections, in two parts, and for what requests are decoded to.
//!
//! A frame is granted its whole length before it is read: two that each held half of what they need would wait for
//! ever. So a few that announce the longest frame allowed, and then send nothing, hold all that there is for as long as
//! a frame may take. What producers send as a rule is much shorter, and never queues behind those.
//!
//! A Produce is decoded to slices of its frame. Other requests hold lists of names and numbers, and two bytes of one
//! may take seventy in memory, until the request is answered, or waits and has kept what it needs.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{budget, budget_units};
use crate::kafka::frame::FrameLimits;

/// Frames up to this size have a part of their own. Clients send batches of 1 MiB at most, unless told otherwise.
pub(in crate::kafka) const ORDINARY_FRAME_BYTES: usize = 4 * 1024 * 1024;

/// What a request of this length may be decoded to is not counted.
const DECODED_FREE_BYTES: usize = 4 * 1024;
/// What a byte of a list of small things may take: an empty name has two bytes and takes 72.
const DECODED_FACTOR: usize = 36;
/// Lists have 100,000 elements at most, so that no more bytes of a frame are so small things, unless lists hold lists.
const SMALL_THINGS_BYTES: usize = 256 * 1024;
/// What a byte takes beyond those.
const DECODED_FACTOR_LONG: usize = 8;

/// The memory, and who has how much of it.
pub(in crate::kafka) struct FrameBudget {
    ordinary: Part,
    long: Part,
    decoded: Part,
}

struct Part {
    size_bytes: usize,
    units: Arc<Semaphore>,
}

impl FrameBudget {
    /// Half of so many bytes for either part, and room for one frame in each.
    pub(in crate::kafka) fn new(total_bytes: usize, limits: FrameLimits) -> Self {
        let longest = limits.produce_bytes_max.max(limits.other_bytes_max);
        let for_long = if longest > ORDINARY_FRAME_BYTES { total_bytes / 2 } else { 0 };
        Self {
            ordinary: Part::new((total_bytes - for_long).max(longest.min(ORDINARY_FRAME_BYTES))),
            long: Part::new(for_long.max(longest)),
            decoded: Part::new(total_bytes),
        }
    }

    /// Where a request other than a Produce gets the memory for what it is decoded to, and how many units of it; `None`
    /// where it is so short that this is not counted.
    pub(super) fn decoded_for(&self, length: usize) -> Option<(&Arc<Semaphore>, u32)> {
        let small_bytes = length.min(SMALL_THINGS_BYTES) * DECODED_FACTOR;
        let bytes = small_bytes + length.saturating_sub(SMALL_THINGS_BYTES) * DECODED_FACTOR_LONG;
        let part = &self.decoded;
        (length > DECODED_FREE_BYTES).then(|| (&part.units, budget_units(bytes, part.size_bytes)))
    }

    /// Where a frame of this length gets its memory, and how many units of it.
    pub(super) fn part_for(&self, length: usize) -> (&Arc<Semaphore>, u32) {
        let part = if length <= ORDINARY_FRAME_BYTES { &self.ordinary } else { &self.long };
        (&part.units, budget_units(length, part.size_bytes))
    }
}

impl Part {
    fn new(size_bytes: usize) -> Self {
        Self { size_bytes, units: budget(size_bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn units(budget: &FrameBudget) -> [usize; 2] {
        [&budget.ordinary, &budget.long].map(|part| part.units.available_permits() / 1024)
    }

    #[test]
    fn the_parts_are_the_whole_and_each_has_room_for_its_longest_frame() {
        let limits = FrameLimits::default();
        assert_eq!(units(&FrameBudget::new(256 * MIB, limits)), [128, 128]);
        let least = FrameBudget::new(1, limits);
        assert_eq!(units(&least), [4, 64]);
        for length in [1, ORDINARY_FRAME_BYTES, ORDINARY_FRAME_BYTES + 1, 64 * MIB] {
            let (part, units) = least.part_for(length);
            assert!(part.available_permits() >= units as usize, "{length} bytes");
        }
        let decoded = |length| least.decoded_for(length).map(|(_, units)| units);
        assert_eq!([4 << 10, (4 << 10) + 1].map(decoded), [None, Some(1)], "all that there is, at most");
        let budget = FrameBudget::new(256 * MIB, limits);
        let decoded = |length| budget.decoded_for(length).map(|(_, units)| units / 1024);
        assert_eq!([64 << 10, 256 << 10, 8 * MIB].map(decoded), [Some(2), Some(9), Some(71)]);
        let short = FrameLimits { produce_bytes_max: MIB, other_bytes_max: 2 * MIB, ..limits };
        assert_eq!(units(&FrameBudget::new(256 * MIB, short))[0], 256, "no frame is long");
    }
}
