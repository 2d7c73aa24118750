//! The log that is the queue.
#![deny(unsafe_code)]

pub mod batch;
mod checkpoint;
pub mod config;
pub mod error;
mod flush;
mod format;
pub mod fs;
mod index;
pub mod limits;
mod map;
pub mod offset;
pub mod partition;
pub mod producer;
pub mod retention;
mod segment;
pub mod store;

pub use config::{LogConfig, StoreConfig};
pub use offset::{LeaderEpoch, Offset, PartitionId};
pub use partition::Partition;
pub use store::Store;
