//! What `progress.rs` is made of.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) use event_listener::{Event, EventListener};
