//! What waits in one order lane: an open window, closed ones behind each other.

use std::collections::VecDeque;

use super::WindowId;
use crate::trigger::flow::Debounce;
use crate::trigger::unfinished::Place;
use crate::trigger::window::Window;

/// Which queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum QueueKey {
    /// The one of the whole partition.
    Whole,
    /// That of a key, by its hash.
    Key(u64),
    /// A window by itself.
    Alone(u64),
}

/// The windows of a queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// The window that is filling, and its records.
    pub(super) open: Option<Window>,
    pub(super) places: Vec<Place>,
    /// The open window's records are behind a marker.
    pub(super) open_spilled: bool,
    /// Closed, in offset order; only the first may be tried.
    pub(super) windows: VecDeque<WindowId>,
    /// Records in all of them.
    pub(super) records: usize,
    /// How many of those are behind a marker.
    pub(super) spilled_records: usize,
    /// Whether it stands among the queues whose open window may close at once.
    pub(super) noted_idle: bool,
    /// Its key has begun as many attempts as its throttle allows: when the next one may begin, ms since 1970.
    pub(super) turn_ms: Option<i64>,
    /// When a debounced window closes, and when the first of its records came.
    pub(super) debounce_until: Option<(i64, i64)>,
}

impl Queue {
    pub(super) fn is_open(&self) -> bool {
        !self.places.is_empty()
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.windows.is_empty() || self.is_open()
    }

    /// Whether its open window waits for nothing that this queue knows of but its own limits.
    pub(super) fn is_idle(&self) -> bool {
        self.is_open() && self.windows.is_empty() && self.turn_ms.is_none()
    }

    /// How many windows are closed and not finished.
    pub(super) fn closed(&self) -> usize {
        self.windows.len()
    }

    pub(super) const fn forget(&mut self, records: usize, spilled: bool) {
        self.records -= records;
        if spilled {
            self.spilled_records -= records;
        }
    }

    /// Its open window is gone with its records.
    pub(super) fn drop_open(&mut self) {
        self.open = None;
        self.places = Vec::new();
        self.open_spilled = false;
        self.debounce_until = None;
    }

    /// When the open window closes by itself, ms since 1970.
    pub(super) fn deadline_ms(&self) -> Option<i64> {
        if !self.is_open() {
            return None;
        }
        if let Some((until_ms, _)) = self.debounce_until {
            return Some(until_ms);
        }
        let deadline = self.open.as_ref()?.deadline()?;
        Some(i64::try_from(deadline.as_millis()).unwrap_or(i64::MAX))
    }

    /// A record came: the open window waits for the next one, but not for ever.
    pub(super) fn debounce(&mut self, debounce: Debounce, now_ms: i64) {
        let first_ms = self.debounce_until.map_or(now_ms, |(_, first_ms)| first_ms);
        let last_ms = first_ms.saturating_add(debounce.max_ms);
        self.debounce_until = Some((now_ms.saturating_add(debounce.period_ms).min(last_ms), first_ms));
    }
}
