//! Triggers: what calls a function when records arrive.
//!
//! ```text
//!            lane, one per trigger and partition
//! log ─▶ read ─▶ filter ─▶ window ─▶ attempt ─▶ function ─┬─▶ done ──────────────▶ progress
//!                                      ▲                  ├─▶ retry, throttled, outage, broken code: wait
//!                                      └──────────────────┘
//!                                                         └─▶ given up: verdict ─▶ dead letters ─▶ progress
//! ```
//! [`filter`], [`window`], [`attempt`], [`retry`], [`progress`] and [`dead_letter`] decide and never act: events and the
//! time go in, decisions come out; none of them knows a runtime, a clock or a disk. A lane acts on them, one window at a
//! time; [`service`] makes, changes and ends triggers.
//!
//! Invariants: T1 A record's offset is committed only after its invocation succeeded, was dead-lettered, dropped by policy
//! or filtered out. T2 In a lane, attempts start in offset order and never overlap. T3 A waiting window is a list of
//! offsets, whatever the backlog. T4 Attempts are in the journal before they are made: a restart resets no counter. T5 A
//! trigger does not read its own dead-letter topic.

pub mod attempt;
pub mod dead_letter;
mod deliver;
pub mod filter;
mod lane;
pub mod progress;
pub mod retry;
mod runner;
pub mod service;
pub mod spec;
mod status;
pub mod window;
