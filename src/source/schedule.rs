//! Schedules: an event in a topic at every tick of a cron expression, of a rate, or at one moment.
//!
//! [`cron`], [`spec`], [`tick`] and [`planner`] decide and never act: definitions, positions and the time go in, due
//! ticks come out. [`service`] appends them; [`clock`] is where the time comes from.
//!
//! # Once per tick
//! A tick is named `<schedule>/<its time>`, and is done in three steps:
//!
//! 1. `ScheduleFiring` in the state journal, durable: this tick goes to this partition, at or after this offset;
//! 2. its event is appended there;
//! 3. `ScheduleFired` in the journal, never durable before the event (invariant S8).
//!
//! A broker that dies before 1 has not begun: the tick is missed, or still to come. One that dies between 1 and 3 looks
//! after its next start at what the partition has from that offset on: the event is there, or it is appended now.
//! Where the journal refuses 3, no schedule begins another tick before it has taken that: the intent of the next would
//! take the place of the one that finds the event. Neither needs to remember producers: a partition forgets those after a day, which a weekly schedule would outlive.
//!
//! What is done is remembered as ranges of time (`DoneTicks`), ordinarily as one: whatever the wall clock does, a tick
//! in one of them is never done again. What lies between two was left out, and comes when the clock goes back and comes
//! to it: so a clock that was ahead for a while, and did some ticks there, keeps back no others.

pub mod clock;
pub mod cron;
mod owed;
pub mod planner;
mod recover;
pub mod service;
pub mod spec;
pub mod tick;

/// The most schedules.
pub const SCHEDULES_MAX: usize = 10_000;
/// The most bytes of definitions that all schedules have together.
pub const DEFINITIONS_BYTES_MAX: usize = 64 << 20;
