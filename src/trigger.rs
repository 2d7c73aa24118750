//! Triggers: what calls a function when records arrive.
//!
//! ```text
//!       poller, one task per partition          lane, one per trigger and partition
//! log ─▶ read once ─▶ match for all triggers ─▶ window ─▶ attempt ─▶ function ─┬─▶ done ───────────▶ progress
//!                                                 ▲                            ├─▶ retry, throttled, outage: wait
//!                                                 └────────────────────────────┘
//!                                                                              └─▶ given up: verdict ─▶ dead letters ─▶ progress
//! ```
//! A trigger reads one topic, several, or all that match a pattern: it has a lane in each partition of each of them,
//! and what is not of one lane (definition, concurrency, outage, state) is of the trigger as a whole.
//!
//! [`filter`], [`transform`], [`window`], [`flow`], [`attempt`], [`retry`], [`progress`], [`lane`] and [`dead_letter`]
//! decide and never act: events and the time go in, decisions come out; none of them knows a runtime, a clock or a
//! disk. The poller acts on the decisions of all lanes of its partition; [`service`] makes, changes and ends triggers.
//!
//! Invariants: T1 A record's offset is committed only after its invocation succeeded, was dead-lettered, dropped by
//! policy or filtered out. T2 In an order lane, attempts start in offset order and never overlap. T3 A waiting window
//! is a list of offsets, and how many are held is bounded, whatever the backlog. T4 Attempts are in the journal before
//! they are made: a restart resets no counter. T5 A trigger does not read its own dead-letter topic.

pub mod attempt;
#[cfg(feature = "cluster")]
mod commit_metadata;
pub mod dead_letter;
mod deliver;
pub mod dry_run;
pub mod filter;
pub mod flow;
mod give_up;
mod invoke;
mod key;
pub mod lane;
mod lane_status;
pub mod outputs;
mod parcel;
mod poller;
pub mod progress;
pub mod retry;
pub mod run;
mod runner;
pub mod service;
mod share;
mod slots;
pub mod spec;
mod status;
pub mod trace;
pub mod transform;
mod unfinished;
pub mod window;

pub use key::key_hash;
