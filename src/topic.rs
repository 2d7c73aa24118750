//! Topics: their names and settings.

pub mod name;
pub mod partitioner;
pub mod spec;
