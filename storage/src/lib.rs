//! The log that is the queue.

pub mod offset;

pub use offset::{LeaderEpoch, Offset, PartitionId};
