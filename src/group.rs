//! Consumer groups: who is a member, in which generation, with which assignment.
//!
//! ```text
//!            first join                 all joined, or time is up            the leader's sync
//!   Empty ───────────────▶ Preparing ───────────────────────▶ Completing ───────────────────────▶ Stable
//!     ▲                     │   ▲                                  │                                 │
//!     └── nobody joined ────┘   └── join, leave, death ────────────┴─────────────────────────────────┘
//! ```
//! [`state`] decides: pure, events and `now` in, answers and deadlines out. [`service`] acts: it holds the groups,
//! keeps the answers that wait, and lets time pass. Neither knows the wire; assignments and subscriptions are bytes to
//! both, since the members' leader assigns. [`expiry`] forgets the offsets of groups that nobody is in any more.
//!
//! # Invariants
//! - G1 A partition has one owner per generation: the assignment of a generation is set once, by its leader, and each
//!   member is told its own part of that one assignment.
//! - G2 A commit from an old generation is refused: [`service::GroupService::commit`] runs the commit while it holds
//!   the group, so that no generation begins between the check and the commit.
//! - Generations only grow. Joins wait only while a group prepares, syncs only while it completes; each is answered, or
//!   its client has gone.
//!
//! Groups named `trigger.<name>` belong to triggers and take no members from outside.

pub mod config;
pub mod error;
pub mod expiry;
pub mod id;
pub mod member;
pub mod service;
pub mod state;
