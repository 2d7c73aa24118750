//! Memory for frames over all connections, in two parts.
//!
//! A frame is granted its whole length before it is read: two that each held half of what they need would wait for
//! ever. So a few that announce the longest frame allowed, and then send nothing, hold all that there is for as long as
//! a frame may take. What producers send as a rule is much shorter, and never queues behind those.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{budget, budget_units};
use crate::kafka::frame::FrameLimits;

/// Frames up to this size have a part of their own. Clients send batches of 1 MiB at most, unless told otherwise.
pub(in crate::kafka) const ORDINARY_FRAME_BYTES: usize = 4 * 1024 * 1024;

/// The memory, and who has how much of it.
pub(in crate::kafka) struct FrameBudget {
    ordinary: Part,
    long: Part,
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
        }
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
        let short = FrameLimits { produce_bytes_max: MIB, other_bytes_max: 2 * MIB, ..limits };
        assert_eq!(units(&FrameBudget::new(256 * MIB, short))[0], 256, "no frame is long");
    }
}
