//! What fits: a bound on the bytes that progress may take, whatever comes of the attempts that are being made.
//!
//! What is unfinished is written as ranges or, from an offset on, as a bit for each offset, whatever takes less; so the
//! bound is the smaller one of two. *Sparse*: every range, and every one that an outcome may cut, takes two distances.
//! *Dense*: so do those below an offset ([`Unfinished::dense_from`](crate::trigger::unfinished::Unfinished)), and from
//! there to the reading point an eighth of a byte for each offset stands for whatever is or will be cut there. That
//! offset is looked for anew when ranges have changed: far behind it a failing window keeps a few ranges, while
//! neighbours finish in any order behind each other at the head of the log.

use std::borrow::Cow;

use tripline_storage::Offset;

use super::queue::{Queue, QueueKey};
use super::restore::Restoring;
use super::{Held, Lane, Phase, WindowId};
use crate::trigger::progress::{LETTERS_BYTES, varint_bytes};
use crate::trigger::spec::Order;
use crate::trigger::unfinished::{Place, Ranges, groups};

/// Version, committed offset, distance of the reading point, three counts of ranges and bits, two of windows and keys,
/// the filter, the earliest time, and what a map that begins and ends within a byte takes more.
const HEAD_BYTES: usize = 1 + 9 + 9 + 3 * 3 + 2 * 3 + 4 + 6 + 8;
/// Of a tried window: how many records it has, flags, fingerprint, attempts, interruptions, five times and the reason;
/// where it lies and its key come on top.
const ATTEMPTS_BYTES: usize = 2 + 1 + 2 + 3 + 2 + 5 * 6 + 1;
/// Where a tried window lies takes so many distances at most: first offset and length.
const TRIED_DISTANCES: usize = 2;
const KEY_BYTES: usize = 8;
/// Ranges that came, went or changed, and offsets that were read, before it is looked again where bits should begin.
const CHANGES_MIN: usize = 64;
const OFFSETS_MIN: u64 = 1024;

/// Whose turn it is, and how many records of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// A closed window, by its place among those that are ready; or else the first open one.
    pub(super) ready: Option<usize>,
    /// Where among the open ones, if it is one.
    pub(super) open: usize,
    pub(super) records_max: usize,
}

/// What windows that are being tried reserve, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reserved {
    /// Ranges that their outcomes may cut.
    cuts: usize,
    /// Those of windows that begin below where bits begin.
    cuts_below: usize,
    /// Windows with a key.
    keyed: usize,
    /// Windows whose dead letters are begun.
    letters: usize,
}

/// What is more to be written down: a bound has room for it or not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct More {
    /// Windows.
    pub(super) windows: usize,
    /// Ranges that are cut, the first of them at this offset or behind it.
    pub(super) cuts: usize,
    pub(super) from: Offset,
}

impl Lane {
    /// What one distance between offsets takes at most.
    fn distance_bytes(&self) -> usize {
        varint_bytes(self.reading_point().since(self.low))
    }

    /// What one more tried window takes at most.
    fn tried_bytes(&self) -> usize {
        let key_bytes = if self.spec.order == Order::Key { KEY_BYTES } else { 0 };
        ATTEMPTS_BYTES + key_bytes + TRIED_DISTANCES * self.distance_bytes()
    }

    /// What so many markers take at most.
    pub(super) fn markers_bytes(&self, markers: usize) -> usize {
        markers * (KEY_BYTES + self.distance_bytes())
    }

    /// A bound on written progress, now and after any outcome of what is in flight, with something more.
    fn bytes_with(&self, more: More) -> usize {
        let distance_bytes = self.distance_bytes();
        let building = self.restoring.as_ref().map_or(0, |restoring| restoring.counts().1);
        let letters = self.reserved.letters + self.restoring.as_ref().map_or(0, Restoring::letters);
        HEAD_BYTES
            + self.tried.len() * (ATTEMPTS_BYTES + TRIED_DISTANCES * distance_bytes)
            + self.reserved.keyed * KEY_BYTES
            + letters * LETTERS_BYTES
            + building * (ATTEMPTS_BYTES + KEY_BYTES + TRIED_DISTANCES * distance_bytes)
            + more.windows * self.tried_bytes()
            + self.markers_bytes(self.markers.len())
            + self.ranges_bytes(more)
    }

    /// A bound on what says which records are unfinished.
    fn ranges_bytes(&self, more: More) -> usize {
        let distance_bytes = self.distance_bytes();
        let holes = self.restoring.as_ref().map_or(0, |restoring| restoring.counts().0);
        let ranges = |ranges: Ranges, cuts: usize| ranges.written_bytes(distance_bytes) + cuts * 2 * distance_bytes;
        let sparse = ranges(self.unfinished.all(), holes + self.reserved.cuts + more.cuts);
        let from = self.unfinished.dense_from();
        let cuts_below = if more.from < from { more.cuts } else { 0 };
        let below = ranges(self.unfinished.below(), self.reserved.cuts_below + cuts_below);
        sparse.min(below.saturating_add(self.bits_bytes(from)))
    }

    /// What a bit for each offset from here to the reading point takes; more than there is where that lies behind it.
    fn bits_bytes(&self, from: Offset) -> usize {
        // What is still to be read again lies in between, too.
        if from > self.at {
            return usize::MAX;
        }
        usize::try_from(self.reading_point().since(from) / 8).unwrap_or(usize::MAX)
    }

    /// A bound on written progress, now and after any outcome of what is in flight.
    pub(super) fn bytes_bound(&self) -> usize {
        self.bytes_with(More::default())
    }

    /// What is kept free for the oldest record, and the dead letters of one window, when nothing else fits any more.
    fn reserve_bytes(&self) -> usize {
        2 * self.tried_bytes() + LETTERS_BYTES
    }

    /// Why nothing more is read although there is room for records: what is unfinished is too scattered to be written
    /// down. A third of the bytes is left to windows: records that are read and cannot be tried are of no use.
    #[must_use]
    pub fn is_full(&self) -> bool {
        // One more record may cut one more hole, or set a marker.
        let next_bytes = KEY_BYTES + 4 * self.distance_bytes();
        let bytes_max = self.spec.limits.progress_bytes;
        self.bytes_bound() + self.reserve_bytes() + next_bytes > bytes_max
            || self.ranges_bytes(More::default()) > bytes_max / 3 * 2
    }

    /// Whether so many more tried windows can be written down, cut out of so many ranges.
    pub(super) fn fits(&self, more: More) -> bool {
        self.bytes_with(more) + self.reserve_bytes() <= self.spec.limits.progress_bytes
    }

    /// Whether the dead letters of one more window can be written down as begun.
    pub(super) fn fits_letters(&self) -> bool {
        let is_first = self.reserved.letters == 0 && self.restoring.as_ref().is_none_or(|left| left.letters() == 0);
        is_first || self.bytes_bound() + LETTERS_BYTES + self.reserve_bytes() <= self.spec.limits.progress_bytes
    }

    /// The dead letters of so many more windows are written down as begun.
    pub(super) const fn reserve_letters(&mut self, windows: usize) {
        self.reserved.letters += windows;
    }

    /// Looks where bits should begin, if it matters and enough has changed since it was looked the last time.
    pub(super) fn survey(&mut self) {
        let changed = self.unfinished.changes() >= CHANGES_MIN + self.unfinished.len() / 4;
        let read = self.reading_point().since(self.surveyed) >= OFFSETS_MIN;
        if (changed || read) && self.bytes_bound() > self.spec.limits.progress_bytes / 2 {
            self.place_bits();
        }
    }

    /// Lets bits begin where progress takes the least: at the first offset of a range, or behind all.
    fn place_bits(&mut self) {
        let distance_bytes = self.distance_bytes();
        let spans = self.unfinished.spans();
        self.forget_cuts();
        let reserving = self.windows.values().filter(|held| held.cuts > 0);
        let mut cuts: Vec<(Offset, usize)> = reserving.map(|held| (held.name, held.cuts)).collect();
        cuts.sort_unstable();
        let mut cuts = cuts.into_iter().peekable();
        let (mut below, mut cuts_below) = (Ranges::default(), 0);
        let mut best: Option<(usize, Offset, Ranges, usize)> = None;
        let firsts = spans.iter().map(|span| (span.first, Some(*span))).chain([(self.at, None)]);
        for (from, span) in firsts {
            while let Some((_, more)) = cuts.next_if(|(name, _)| *name < from) {
                cuts_below += more;
            }
            let bytes = below.written_bytes(distance_bytes) + cuts_below * 2 * distance_bytes;
            let bytes = bytes.saturating_add(self.bits_bytes(from));
            if best.is_none_or(|(least, ..)| bytes < least) {
                best = Some((bytes, from, below, cuts_below));
            }
            span.into_iter().for_each(|span| below.add(span));
        }
        if let Some((_, from, below, cuts_below)) = best {
            self.unfinished.set_dense_from(from, below);
            self.reserved.cuts_below = cuts_below;
        }
        self.surveyed = self.reading_point();
    }

    /// Whose records stand alone by now cuts nothing any more.
    fn forget_cuts(&mut self) {
        for id in &self.tried {
            let held = self.windows.get_mut(id).expect("what was tried is in hand");
            let places = if held.done.is_empty() { Cow::Borrowed(&held.places) } else { Cow::Owned(held.all_places()) };
            let cuts = held.cuts.min(self.unfinished.cuts_of(&places));
            self.reserved.cuts -= held.cuts - cuts;
            held.cuts = cuts;
        }
    }

    /// A window is tried from now on.
    pub(super) fn note_tried(&mut self, id: WindowId) {
        let keyed = self.windows[&id].key.is_some();
        if self.tried.insert(id) {
            self.reserved.keyed += usize::from(keyed);
            self.reserved.letters += usize::from(self.windows[&id].letters.is_some());
        }
    }

    /// A window that is gone reserves nothing any more.
    pub(super) fn release_reserved(&mut self, id: WindowId, held: &Held) {
        if self.tried.remove(&id) {
            self.reserved.keyed -= usize::from(held.key.is_some());
            self.reserved.letters -= usize::from(held.letters.is_some());
        }
        self.reserved.cuts -= held.cuts;
        if held.name < self.unfinished.dense_from() {
            self.reserved.cuts_below -= held.cuts;
        }
    }

    /// How many of these records may start together.
    fn fitting(&self, places: &[Place]) -> usize {
        let Some(from) = places.first().map(|place| place.offset) else { return 0 };
        let fits = |cuts| self.fits(More { windows: 1, cuts, from });
        if fits(places.len()) || fits(groups(places)) {
            return places.len();
        }
        // Near the limit only. More records are never cut out of fewer ranges.
        let mut count = 0;
        let mut cuts = 0;
        for (index, place) in places.iter().enumerate() {
            cuts += usize::from(index == 0 || !places[index - 1].is_before(place));
            if !fits(cuts) {
                break;
            }
            count = index + 1;
        }
        count
    }

    /// Whose turn it is. `more`: there is something to read; an open window waits for it.
    pub(super) fn next_turn(&self, more: bool) -> Option<Turn> {
        if let Some(id) = self.ready.front() {
            let held = &self.windows[id];
            if held.is_tried() {
                return Some(Turn { ready: Some(0), open: 0, records_max: usize::MAX });
            }
            // A turn that has begun is ended first: that frees bytes. To begin another while they are few leaves ever
            // smaller windows.
            if !more
                && !held.is_rest
                && let Some(turn) = self.older_open(held.name)
            {
                return Some(turn);
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

    /// The first open window, where its records are older than a closed one: keys with many records do not keep those
    /// with few from their turn.
    fn older_open(&self, closed: Offset) -> Option<Turn> {
        let queue = self.open_idle.front().and_then(|key| self.queues.get(key)).filter(|queue| queue.is_idle())?;
        let older = queue.places.first().is_some_and(|place| place.offset < closed);
        let records_max = if older { self.fitting(&queue.places) } else { 0 };
        (records_max > 0).then_some(Turn { ready: None, open: 0, records_max })
    }

    /// Nothing more fits: what was tried goes on; when there is none, the oldest record, whose end only frees bytes,
    /// and records that come from behind a marker.
    fn tight_turn(&self, more: bool) -> Option<Turn> {
        let is = |id: &WindowId, test: &dyn Fn(&Held) -> bool| {
            self.windows.get(id).is_some_and(|held| held.phase == Phase::Ready && test(held))
        };
        if let Some(index) = self.ready.iter().position(|id| is(id, &Held::is_tried)) {
            return Some(Turn { ready: Some(index), open: 0, records_max: usize::MAX });
        }
        // One that stands behind another of its queue, as a restart may put it, goes on when that has gone. The first of
        // its queue goes on, also where it waits for a turn of its key.
        let is_first = |id: &WindowId, held: &Held| {
            self.queues.get(&held.queue).is_some_and(|queue| queue.windows.front() == Some(id))
        };
        let goes_on =
            |id: &WindowId| self.windows.get(id).is_some_and(|held| held.phase != Phase::Queued || is_first(id, held));
        if self.tried.iter().any(goes_on) {
            return None;
        }
        let first_of = |places: &[Place]| places.first().is_some_and(|place| self.unfinished.is_first(place));
        let ready = |test: &dyn Fn(&Held) -> bool| {
            let index = self.ready.iter().position(|id| is(id, test))?;
            Some(Turn { ready: Some(index), open: 0, records_max: 1 })
        };
        let open = |test: &dyn Fn(&Queue) -> bool| {
            let is_one = |key: &QueueKey| {
                let queue = self.queues.get(key).filter(|queue| queue.is_idle());
                queue.is_some_and(test)
            };
            let open = self.open_idle.iter().position(is_one).filter(|_| !more)?;
            Some(Turn { ready: None, open, records_max: 1 })
        };
        // What comes from behind a marker goes last: its end frees nothing.
        ready(&|held| !held.spilled && first_of(&held.places))
            .or_else(|| open(&|queue| !queue.open_spilled && first_of(&queue.places)))
            .or_else(|| ready(&|held| held.spilled))
            .or_else(|| open(&|queue| queue.open_spilled))
    }

    /// A window's outcome may be cut out of so many ranges.
    pub(super) fn reserve_cuts(&mut self, id: WindowId, cuts: usize) {
        let held = self.windows.get_mut(&id).expect("a window in hand");
        let before = std::mem::replace(&mut held.cuts, cuts);
        self.reserved.cuts = self.reserved.cuts + cuts - before;
        if held.name < self.unfinished.dense_from() {
            self.reserved.cuts_below = self.reserved.cuts_below + cuts - before;
        }
    }
}
