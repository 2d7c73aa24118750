//! What `progress.rs` is made of. A name of its own, so that `tests/loom` can put the same file on loom's.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) use event_listener::{Event, EventListener};
