//! Triggers: what calls a function when records arrive.
//!
//! The rooms below decide and never act: events and the time go in, decisions come out. None of them knows a runtime, a clock or a disk.

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
