//! Tripline: a single-node event broker with built-in function triggers.
//!
//! An append-only segmented log *is* the queue (crate `tripline-storage`). Kafka clients and HTTP clients append to it
//! and read from it; triggers read it inside the broker and invoke functions on windows of its records.
//!
//! # Follow one event
//! ```text
//!  Kafka client ──TCP──▶ kafka ─┐                                   ┌──▶ kafka, http ──▶ any consumer
//!  HTTP client ──HTTP──▶ http ──┼─▶ broker ──▶ partition log ───────┤
//!  schedules ───────────▶ source┘  (check, offset, append, publish)  └──▶ trigger poller: filter ─▶ lane: window
//!                                                                                                     │
//!                    dead-letter topic ◀── attempts spent ◀── function ◀── attempt: transform ◀───────┘
//! ```
//! One way through: bytes arrive once, are checked once and written once, and every reader sees the same mapped bytes.
//!
//! # Rooms, from the ground up
//! | room | what it is | knows nothing of |
//! |---|---|---|
//! | `tripline-storage` | the log: segments, index, flush, recovery | tokio, requests, topics' names |
//! | [`config`], [`topic`] | what people write, checked; names and settings | the broker |
//! | [`event`] | a record seen as a CloudEvent | where records come from |
//! | [`broker`] | the one door to the log: topics, appends, reads, the state journal | protocols, functions |
//! | [`group`] | consumer groups: a pure state machine and its service | Kafka's bytes |
//! | [`function`] | code, instances, one attempt to invoke | triggers |
//! | [`input`] | what triggers read: the local log, or partitions of a Kafka-compatible cluster (feature `cluster`) | triggers |
//! | [`trigger`] | filter, transform, window, invoke, retry, dead-letter, remember | protocols |
//! | [`source`] | what appends to topics by itself: schedules | triggers, protocols |
//! | [`kafka`], [`http`] | the two doors for clients; never each other | |
//! | [`server`], [`cli`] | assembly and the command line | |
//!
//! Rooms import downwards only; `tests/layers.rs` holds that. Values of the storage crate (offsets, batches) pass
//! through all rooms; only the broker opens logs.
//!
//! # What is decided where
//! Pure rooms (filter, transform, lane, retry, attempt, progress, group state, pool state, frames) take events and
//! `now` and answer decisions; thin loops around them act. The state journal ([`broker::journal`]) remembers
//! definitions, committed offsets, progress, attempts and verdicts; a record about data is never durable before that
//! data (invariant S8).
//!
//! # Where this leaves the drawing board
//! - Facts of sealed segments (broker times, length, header checksum) lie beside the segment, not in the journal: the
//!   storage crate stands alone, and opening reads no sealed segment.
//! - The journal has no snapshot files: the live state appended anew says the same, and what lies before it is removed.
//! - Offset and time index share one file.
//! - Kafka connections have single-threaded runtimes of their own, as many as there are cores ([`kafka`]); timers of
//!   groups and HTTP, its health checks included, share the process's other runtime, where no append of a Kafka client
//!   runs.
//! - The client of clusters is our own, over the schemas of the Kafka listener: it gives out record batches as they are
//!   and reads any offset again with one request, where librdkafka gives out records and needs a C compiler.
//! - Segment files are not recycled: space ahead of the tail that was filled with zeros syncs as fast as a used file
//!   where that matters, and needs nothing to have expired before. The figures are in `storage/docs/disk.md`.

pub mod broker;
pub mod cli;
pub mod config;
pub mod event;
pub mod function;
pub mod group;
pub mod http;
pub mod input;
pub mod kafka;
pub mod server;
pub mod source;
pub mod topic;
pub mod trigger;
