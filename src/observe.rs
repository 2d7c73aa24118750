//! What can be seen from outside while the broker runs.

pub mod metrics;
