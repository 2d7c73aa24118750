//! Definitions as written, turned into checked values.
//!
//! The same readers serve YAML files and JSON over HTTP: both arrive as a JSON value, and every wrong field is answered
//! with its path, what was found, what is allowed and, for a misspelt name, the nearest right one.

pub(crate) mod brokers;
pub mod changes;
pub mod fields;
pub mod manifest;
pub mod planned;
#[cfg(feature = "cluster")]
pub mod secret;
pub mod units;
