//! Triggers: what calls a function when records arrive.
//!
//! The rooms below decide and never act: events and the time go in, decisions come out. None of them knows a runtime, a clock or a disk.

pub mod attempt;
pub mod dead_letter;
pub mod filter;
pub mod progress;
pub mod retry;
pub mod spec;
pub mod window;
