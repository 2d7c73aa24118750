//! The Kafka side of the broker, over TCP, with a raw client.
#![allow(clippy::unwrap_used, reason = "tests")]

mod client;
mod compaction;
mod fetch;
mod groups;
mod offline;
mod offsets;
mod produce;
mod requests;
mod support;
mod topics;
mod triggers;
mod versions;
