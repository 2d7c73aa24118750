//! What waits in one order lane: an open window, closed ones behind each other.

use std::collections::VecDeque;

use super::WindowId;
use crate::trigger::flow::{Debounce, Throttle};
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
    /// When the last attempts began, as far as a throttle needs to know.
    pub(super) starts: VecDeque<i64>,
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

    /// Closed windows, and the open one where it is full of waiting.
    pub(super) fn closed(&self) -> usize {
        self.windows.len()
    }

    pub(super) const fn forget(&mut self, records: usize, spilled: bool) {
        self.records -= records;
        if spilled {
            self.spilled_records -= records;
        }
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

    /// When the next attempt may begin, if not now.
    pub(super) fn may_start_at(&self, throttle: Throttle, now_ms: i64) -> Option<i64> {
        let starts = self.starts.len();
        if starts < throttle.limit as usize {
            return None;
        }
        let earliest = self.starts[starts - throttle.limit as usize].saturating_add(throttle.period_ms);
        (earliest > now_ms).then_some(earliest)
    }

    /// An attempt begins; answers when its starts were to be forgotten before.
    pub(super) fn started(&mut self, throttle: Throttle, now_ms: i64) -> Option<i64> {
        let before_ms = self.forget_at_ms(throttle);
        self.starts.push_back(now_ms);
        if self.starts.len() > throttle.limit as usize {
            self.starts.pop_front();
        }
        before_ms
    }

    /// When its starts do not hold anything back any more.
    pub(super) fn forget_at_ms(&self, throttle: Throttle) -> Option<i64> {
        self.starts.back().map(|start_ms| start_ms.saturating_add(throttle.period_ms))
    }

    pub(super) fn forget_starts(&mut self) {
        self.starts.clear();
    }
}
