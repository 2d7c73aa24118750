//! The log that is the queue.

pub mod batch;
pub mod offset;
pub mod producer;

pub use offset::{LeaderEpoch, Offset, PartitionId};
