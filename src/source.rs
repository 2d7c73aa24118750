//! Sources: what appends to topics by itself. The first is the clock.
//!
//! ```text
//!  clock ──▶ schedule::planner ──▶ schedule::service ──▶ broker ──▶ topic ──▶ triggers, consumers
//!            (which ticks are due)  (intent, append, done)
//! ```
//! A source knows topics, never triggers: whatever it appends is an ordinary record that everybody may read.

pub mod schedule;
