//! The log that is the queue.

#![deny(unsafe_code)]

pub mod fs;
mod map;
pub mod offset;

pub use offset::{LeaderEpoch, Offset, PartitionId};
