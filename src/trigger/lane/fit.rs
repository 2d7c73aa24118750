//! What fits: a bound on the bytes that progress may take, whatever comes of the attempts that are being made.

use super::{Held, Lane, Phase, WindowId};
use crate::trigger::progress::varint_bytes;
use crate::trigger::unfinished::{Place, groups};

/// Version, committed offset, three counts and the earliest time.
const HEAD_BYTES: usize = 1 + 9 + 3 * 3 + 6;
/// Of a tried window: flags, attempts, interruptions, four times and the reason; spans and key come on top.
const ATTEMPTS_BYTES: usize = 1 + 3 + 2 + 4 * 5 + 1;
const KEY_BYTES: usize = 8;

/// Whose turn it is, and how many records of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// A closed window, by its place among those that are ready; or else the first open one.
    pub(super) ready: Option<usize>,
    /// Where among the open ones, if it is one.
    pub(super) open: usize,
    pub(super) records_max: usize,
}

impl Lane {
    /// What one distance between offsets takes at most.
    fn distance_bytes(&self) -> usize {
        varint_bytes(self.reading_point().since(self.low))
    }

    /// What one tried window takes at most.
    fn tried_bytes(&self) -> usize {
        ATTEMPTS_BYTES + KEY_BYTES + 2 * self.distance_bytes()
    }

    /// A bound on written progress, now and after any outcome of what is in flight.
    pub(super) fn bytes_bound(&self) -> usize {
        let distance_bytes = self.distance_bytes();
        let (holes, building) = self.restoring.as_ref().map_or((0, 0), |restoring| restoring.counts());
        HEAD_BYTES
            + distance_bytes
            + self.unfinished.written_bytes(distance_bytes)
            + (holes + self.cuts) * 2 * distance_bytes
            + (self.tried.len() + building) * self.tried_bytes()
            + self.markers.len() * (KEY_BYTES + distance_bytes)
    }

    /// What is kept free for the oldest record when nothing else fits any more.
    fn reserve_bytes(&self) -> usize {
        2 * self.tried_bytes()
    }

    /// Why nothing more is read although there is room for records: what is unfinished is too scattered to be written down.
    #[must_use]
    pub fn is_full(&self) -> bool {
        // One more record may cut one more hole, or set a marker.
        let next_bytes = KEY_BYTES + 4 * self.distance_bytes();
        self.bytes_bound() + self.reserve_bytes() + next_bytes > self.spec.limits.progress_bytes
    }

    /// Whether so many more tried windows can be written down, cut out of so many ranges.
    pub(super) fn fits(&self, windows: usize, cuts: usize) -> bool {
        let more_bytes = windows * self.tried_bytes() + cuts * 2 * self.distance_bytes();
        self.bytes_bound() + more_bytes + self.reserve_bytes() <= self.spec.limits.progress_bytes
    }

    /// How many of these records may start together.
    fn fitting(&self, places: &[Place]) -> usize {
        if self.fits(1, places.len()) || self.fits(1, groups(places)) {
            return places.len();
        }
        // Near the limit only.
        (1..places.len()).rev().find(|&count| self.fits(1, groups(&places[..count]))).unwrap_or(0)
    }

    /// Whose turn it is. `more`: there is something to read; an open window waits for it.
    pub(super) fn next_turn(&self, more: bool) -> Option<Turn> {
        if let Some(id) = self.ready.front() {
            let held = &self.windows[id];
            if held.is_tried() {
                return Some(Turn { ready: Some(0), open: 0, records_max: usize::MAX });
            }
            if let records_max @ 1.. = self.fitting(&held.places) {
                return Some(Turn { ready: Some(0), open: 0, records_max });
            }
            return self.tight_turn(more);
        }
        if more {
            return None;
        }
        let queue = self.open_idle.front().and_then(|key| self.queues.get(key))?;
        match self.fitting(&queue.places) {
            0 => self.tight_turn(more),
            records_max => Some(Turn { ready: None, open: 0, records_max }),
        }
    }

    /// Nothing more fits: what was tried goes on; when there is none, the oldest record, whose end only frees bytes, and
    /// records that come from behind a marker.
    fn tight_turn(&self, more: bool) -> Option<Turn> {
        let is = |id: &WindowId, test: &dyn Fn(&Held) -> bool| {
            self.windows.get(id).is_some_and(|held| held.phase == Phase::Ready && test(held))
        };
        if let Some(index) = self.ready.iter().position(|id| is(id, &Held::is_tried)) {
            return Some(Turn { ready: Some(index), open: 0, records_max: usize::MAX });
        }
        if !self.tried.is_empty() {
            return None;
        }
        let first_of = |places: &[Place]| places.first().is_some_and(|place| self.unfinished.is_first(place));
        let is_first = |held: &Held| held.spilled || first_of(&held.places);
        if let Some(index) = self.ready.iter().position(|id| is(id, &is_first)) {
            return Some(Turn { ready: Some(index), open: 0, records_max: 1 });
        }
        if more {
            return None;
        }
        let open = self.open_idle.iter().position(|key| {
            self.queues.get(key).is_some_and(|queue| {
                queue.is_idle(self.spec.per_key.throttle) && (queue.open_spilled || first_of(&queue.places))
            })
        })?;
        Some(Turn { ready: None, open, records_max: 1 })
    }

    /// A window's outcome may be cut out of so many ranges.
    pub(super) fn reserve_cuts(&mut self, id: WindowId, cuts: usize) {
        let held = self.windows.get_mut(&id).expect("a window in hand");
        self.cuts = self.cuts + cuts - held.cuts;
        held.cuts = cuts;
    }
}
