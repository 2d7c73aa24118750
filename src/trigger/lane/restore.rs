//! Going on from written progress: after a restart, and when a definition changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tripline_storage::Offset;

use super::queue::QueueKey;
use super::{Held, Lane, LaneSpec, Marker, Phase, TAKEN_MAX, WindowId};
use crate::function::{ErrorClass, InvocationError};
use crate::trigger::attempt::{AttemptState, ExhaustedReason, Step};
use crate::trigger::progress::{Letters, Progress, Span, TriedWindow, fingerprint};
use crate::trigger::spec::Order;
use crate::trigger::unfinished::{Place, UNNUMBERED, groups};
use crate::trigger::window::{RecordFacts, Spot, WINDOW_COUNT_MAX};

/// A window that a lane takes over as it is.
#[derive(Clone, Debug)]
pub struct Carried {
    id: Option<WindowId>,
    held: Held,
}

impl Carried {
    /// A window whose verdict was written down before a restart: its records, ascending and at least one, are not
    /// invoked again. `name`: what its invocations were called. [`Lane::next_given_up`] gives it out.
    #[must_use]
    pub fn verdict(name: Offset, offsets: &[Offset], state: AttemptState, reason: ExhaustedReason) -> Self {
        let places = offsets.iter().map(|&offset| Place { offset, number: UNNUMBERED, spot: Spot::UNKNOWN }).collect();
        let held = Held {
            places,
            done: Vec::new(),
            cuts: 0,
            size_bytes: 0,
            queue: QueueKey::Whole,
            key: None,
            state,
            phase: Phase::GivenUp(reason),
            name,
            letters: None,
            foreign: false,
            decided: true,
            spilled: false,
            is_rest: false,
            blocked: false,
        };
        Self { id: None, held }
    }
}

/// What is still to be read again.
#[derive(Debug)]
pub(super) struct Restoring {
    /// Where reading for the first time begins.
    pub(super) until: Offset,
    /// What was unfinished, ascending; what was read again is cut off.
    holes: Vec<Span>,
    /// Windows that are made again, by first offset.
    building: Vec<Building>,
    /// Records of windows that were carried over, until reading comes by.
    carried: BTreeMap<Offset, WindowId>,
    /// Queues that records came into since their open windows were closed.
    filled: BTreeSet<QueueKey>,
}

/// A window that was tried and is made again.
#[derive(Debug)]
struct Building {
    tried: TriedWindow,
    /// What was found of it, with its numbers.
    found: Vec<(RecordFacts, u64)>,
    /// What has a verdict in its range, perhaps on some of its own records: that goes on in another window, or has ended.
    decided: BTreeSet<Offset>,
    /// What is found from now on is taken as what was never tried: it is not this window's.
    dissolved: bool,
}

/// Where a record that is read again belongs.
enum Belongs {
    /// To the window that is built at this index.
    Building(usize),
    /// To its key's marker: it is read once more later.
    Marker,
    /// To no window yet.
    Fresh,
    /// Nowhere: it is finished.
    Finished,
}

impl Building {
    /// Whether what is found of it is given up, whatever it is: somebody has begun to write its dead letters, and all that
    /// may be among it besides had succeeded.
    fn is_for_letters(&self) -> bool {
        self.tried.letters().is_some() && !self.tried.is_foreign
    }

    /// Whether more was found than it can be.
    fn is_beyond(&self) -> bool {
        // Of what had succeeded there may be any number.
        let more = if self.is_for_letters() { TAKEN_MAX } else { 0 };
        self.found.len() > (self.tried.records as usize + more).min(WINDOW_COUNT_MAX as usize)
    }

    /// Whether what was found, with these, is just what it had.
    fn is_whole_with(&self, decided: &BTreeSet<Offset>) -> bool {
        let found = self.found.iter().map(|(record, _)| record.offset);
        self.found.len() + decided.len() == self.tried.records as usize
            && fingerprint(found.chain(decided.iter().copied())) == self.tried.fingerprint
    }

    fn is_whole(&self) -> bool {
        self.is_whole_with(&BTreeSet::new())
    }

    /// Whether what was found are records that it had. Under the filter that it was made with it may be fewer: the log
    /// removes some. Under another one it must be all.
    fn is_same(&self) -> bool {
        if self.is_for_letters() {
            return true;
        }
        let records = self.tried.records as usize;
        // Where a verdict may be its own, nothing but what has it was given up.
        if self.tried.given_up.is_some() && self.found.len() < records && !self.decided.is_empty() {
            return false;
        }
        let is_less = !self.tried.is_foreign && self.found.len() < records;
        is_less || self.is_whole() || self.is_whole_with(&self.decided)
    }
}

impl Restoring {
    /// Under the filter with this number.
    pub(super) fn new(progress: &Progress, filter: u32) -> (Option<Self>, HashMap<u64, Marker>) {
        let markers = progress.blocked_keys().iter().map(|key| (key.hash, Marker { at: key.first })).collect();
        // Of what lies in no hole the verdict was carried out before the restart: nothing of it is read again.
        let is_left = |tried: &&TriedWindow| {
            let holes = progress.holes();
            let at = holes.partition_point(|hole| hole.next <= tried.span.first);
            holes.get(at).is_some_and(|hole| hole.first < tried.span.next)
        };
        let is_another = progress.filter() != filter;
        let building = progress.windows().iter().filter(is_left).map(|&tried| Building {
            tried: TriedWindow { is_foreign: tried.is_foreign || is_another, ..tried },
            found: Vec::new(),
            decided: BTreeSet::new(),
            dissolved: false,
        });
        let building: Vec<Building> = building.collect();
        let restoring = (!progress.holes().is_empty()).then(|| Self {
            until: progress.reading_point(),
            holes: progress.holes().to_vec(),
            building,
            carried: BTreeMap::new(),
            filled: BTreeSet::new(),
        });
        (restoring, markers)
    }

    /// Whether an unfinished record is still to be read again; `at` is where reading is.
    pub(super) fn awaits(&self, offset: Offset, key: u64, at: Offset) -> bool {
        let built = |building: &Building| {
            let tried = &building.tried;
            let is_key = tried.key.is_none_or(|other| other == key);
            !building.dissolved && tried.span.contains(offset) && is_key && (offset < at || self.in_hole(offset))
        };
        (offset >= at && self.in_hole(offset)) || self.building.iter().any(built)
    }

    /// What of the progress that is restored still stands beyond `at`.
    pub(super) fn add_rest(
        &self,
        at: Offset,
        committed: Offset,
        holes: &mut Vec<Span>,
        windows: &mut Vec<TriedWindow>,
    ) {
        holes.extend(self.holes.iter().filter_map(|hole| Span::new(hole.first.max(at), hole.next)));
        windows.extend(self.building.iter().filter(|building| !building.dissolved).filter_map(|building| {
            let span = Span::new(building.tried.span.first.max(committed), building.tried.span.next)?;
            Some(TriedWindow { span, ..building.tried })
        }));
    }

    /// The first offset from `at` on that is unfinished.
    pub(super) fn first_hole(&self, at: Offset) -> Option<Offset> {
        self.holes.iter().find(|hole| hole.next > at).map(|hole| hole.first.max(at))
    }

    fn in_hole(&self, offset: Offset) -> bool {
        let index = self.holes.partition_point(|hole| hole.next <= offset);
        self.holes.get(index).is_some_and(|hole| hole.contains(offset))
    }

    fn belongs(&self, record: &RecordFacts, marker: Option<&Marker>) -> Belongs {
        if self.in_hole(record.offset)
            && let Some(index) = self.innermost(record.offset, record.key)
            && !self.building[index].dissolved
        {
            return Belongs::Building(index);
        }
        if marker.is_some_and(|marker| marker.at <= record.offset) {
            return Belongs::Marker;
        }
        if self.in_hole(record.offset) { Belongs::Fresh } else { Belongs::Finished }
    }

    /// The tried window that a record belongs to: the innermost of its key, or else the innermost without one.
    fn innermost(&self, offset: Offset, key: u64) -> Option<usize> {
        let innermost = |key: Option<u64>| {
            let of_window = |building: &Building| building.tried.key == key && building.tried.span.contains(offset);
            self.building.iter().rposition(of_window)
        };
        innermost(Some(key)).or_else(|| innermost(None))
    }

    /// The next offset from `at` on that must be read again.
    pub(super) fn next_from(&self, at: Offset) -> Offset {
        let hole = self.holes.iter().find(|hole| hole.next > at).map(|hole| hole.first.max(at));
        hole.unwrap_or(self.until).min(self.until.max(at))
    }

    /// Reading has come to `upto`. Answers whether it has left a hole, and not for what is read for the first time.
    fn leave_holes(&mut self, upto: Offset) -> bool {
        let left = self.holes.partition_point(|hole| hole.next <= upto);
        let is_cut = self.holes[..left].first().is_some_and(|hole| hole.next < self.until);
        self.holes.drain(..left);
        is_cut
    }

    /// What was known of windows beside their progress, which was written from `committed` on, holds on.
    fn remember(&mut self, before: Vec<Building>, committed: Offset) {
        for Building { tried, decided, .. } in before {
            let span = Span::new(tried.span.first.max(committed), tried.span.next);
            let is_it = |other: &&mut Building| Some(other.tried.span) == span && other.tried.key == tried.key;
            let Some(building) = self.building.iter_mut().find(is_it) else { continue };
            building.decided.extend(decided.into_iter().filter(|offset| building.tried.span.contains(*offset)));
        }
    }

    /// How many holes and windows are still to be read again.
    pub(super) const fn counts(&self) -> (usize, usize) {
        (self.holes.len(), self.building.len())
    }

    /// Of how many of these windows letters are begun.
    pub(super) fn letters(&self) -> usize {
        self.building.iter().filter(|building| building.tried.letters().is_some()).count()
    }

    /// The next record below `upto` of a window that was carried over.
    fn next_carried(&mut self, upto: Offset) -> Option<(Offset, WindowId)> {
        let entry = self.carried.first_entry().filter(|entry| *entry.key() < upto)?;
        Some(entry.remove_entry())
    }

    fn finish_offset(&mut self, offset: Offset) {
        self.carried.remove(&offset);
        let index = self.holes.partition_point(|hole| hole.next <= offset);
        let Some(hole) = self.holes.get(index).copied().filter(|hole| hole.contains(offset)) else { return };
        let parts = [Span::new(hole.first, offset), Span::new(offset.next(), hole.next)];
        self.holes.splice(index..=index, parts.into_iter().flatten());
    }
}

impl Lane {
    /// The same lane under a new definition: windows that were tried are carried over, everything else that is
    /// unfinished is read again.
    #[must_use]
    pub fn redefine(mut self, spec: LaneSpec, now_ms: i64) -> Self {
        let progress = self.progress();
        let is_filter_same = spec.filter == self.spec.filter;
        let new_from = (is_filter_same && spec.order == self.spec.order).then_some(self.new_from);
        self.windows.values_mut().for_each(|held| held.foreign |= !is_filter_same);
        let mut queues: Vec<(Offset, Vec<WindowId>)> = Vec::new();
        for queue in self.queues.values() {
            let goes_on = |held: &Held| held.is_tried() || held.given_up().is_some();
            let tried = queue.windows.iter().copied().filter(|id| goes_on(&self.windows[id]));
            let tried: Vec<WindowId> = tried.collect();
            if let Some(first) = tried.first() {
                queues.push((self.windows[first].places[0].offset, tried));
            }
        }
        queues.sort_unstable_by_key(|(first, _)| *first);
        let ids = queues.into_iter().flat_map(|(_, ids)| ids);
        let carried = ids.map(|id| {
            let held = self.windows.remove(&id).expect("a window in hand");
            Carried { id: Some(id), held }
        });
        let before = self.restoring.take().map_or_else(Vec::new, |restoring| restoring.building);
        let mut lane = Self::restore_numbered(spec, &progress, carried.collect(), self.next_id);
        if let Some(restoring) = &mut lane.restoring {
            restoring.remember(before, progress.committed());
        }
        (lane.withheld, lane.suspended, lane.starts) = (self.withheld, self.suspended, self.starts);
        lane.new_from = new_from.unwrap_or(lane.new_from);
        let mut keys: Vec<QueueKey> = lane.queues.keys().copied().collect();
        keys.sort_unstable();
        keys.into_iter().for_each(|key| lane.advance(key, now_ms));
        lane
    }

    pub(super) fn carry(&mut self, carried: Carried) {
        let Carried { id, mut held } = carried;
        let id = id.unwrap_or_else(|| {
            self.next_id += 1;
            WindowId(self.next_id - 1)
        });
        let tried = held.tried(self.low);
        if let Some(restoring) = &mut self.restoring {
            let span = held.span(self.low);
            let first = held.places[0].offset;
            let is_this = |building: &Building| {
                Some(building.tried.span) == span && tried.is_none_or(|tried| id_known(&tried, &building.tried))
            };
            let same = restoring.building.iter().position(is_this);
            let around = || restoring.building.iter().rposition(|building| building.tried.span.contains(first));
            if let Some(index) = same.or_else(around) {
                held.key = held.key.or(restoring.building[index].tried.key);
            }
            // A verdict may be on a part of what was written: the rest of that goes on as it was.
            if let Some(index) = same {
                if held.decided {
                    // Where it was given up, that is all that was.
                    let building = &mut restoring.building[index];
                    building.dissolved |= building.tried.given_up.is_some();
                } else {
                    restoring.building.remove(index);
                }
            }
            for building in restoring.building.iter_mut().filter(|_| held.decided) {
                let offsets = held.places.iter().map(|place| place.offset);
                building.decided.extend(offsets.filter(|offset| building.tried.span.contains(*offset)));
            }
            for place in held.places.iter_mut().chain(&mut held.done) {
                place.number = UNNUMBERED;
                restoring.carried.insert(place.offset, id);
            }
        }
        held.blocked = held.state.is_blocked(&self.spec.policies);
        held.queue = self.queue_of(held.key);
        if let Phase::Waiting(_) | Phase::Ready = held.phase {
            held.phase = Phase::Queued;
        }
        let queue = self.queues.entry(held.queue).or_default();
        queue.windows.push_back(id);
        let records = held.places.len() + held.done.len();
        queue.records += records;
        self.held_records += records;
        held.cuts = 0;
        if let Phase::GivenUp(_) = held.phase {
            self.given_up.push_back(id);
        }
        let is_tried = held.is_tried();
        self.windows.insert(id, held);
        if is_tried {
            self.note_tried(id);
        }
        self.reserve_cuts(id, records);
    }

    fn queue_of(&mut self, key: Option<u64>) -> QueueKey {
        match (key, self.spec.order) {
            (Some(key), _) => QueueKey::Key(key),
            (None, Order::Partition) => QueueKey::Whole,
            (None, Order::Key | Order::None) => {
                self.next_id += 1;
                QueueKey::Alone(self.next_id - 1)
            }
        }
    }

    /// Whether the matching record at `offset`, the next, is read again. What ends before it is whole.
    pub(super) fn is_read_again(&mut self, offset: Offset, now_ms: i64) -> bool {
        self.complete_to(offset, now_ms);
        let until = self.restoring.as_ref().map(|restoring| restoring.until);
        if let Some(until) = until.filter(|until| offset >= *until) {
            self.at = self.at.max(until);
            self.cut_at_holes(until);
            self.end_restoring();
        }
        self.restoring.is_some()
    }

    /// A matching record is read again.
    pub(super) fn take_again(&mut self, record: RecordFacts, now_ms: i64) {
        self.cut_at_holes(record.offset);
        let Some(restoring) = &mut self.restoring else { return };
        if restoring.carried.contains_key(&record.offset) {
            // It gets its number when reading has passed it.
            return;
        }
        match restoring.belongs(&record, self.markers.get(&record.key)) {
            Belongs::Building(index) => {
                let key = restoring.building[index].tried.key;
                if key.is_none() {
                    self.close_filled(now_ms);
                }
                let Some(restoring) = &mut self.restoring else { return };
                let number = self.unfinished.push(record.offset);
                let building = &mut restoring.building[index];
                building.found.push((record, number));
                if building.is_beyond() {
                    // There may be any number of them.
                    building.dissolved = true;
                    let (key, found) = (building.tried.key, std::mem::take(&mut building.found));
                    self.begin_anew(key, found, now_ms);
                }
            }
            Belongs::Marker | Belongs::Finished => self.unfinished.cut(),
            Belongs::Fresh => {
                let queue = self.queue_again(&record);
                if self.spec.order != Order::Key && queue != QueueKey::Whole {
                    // No window without a key spans it.
                    self.close_filled(now_ms);
                }
                self.note_filled(queue);
                self.push(record, queue, false, now_ms);
            }
        }
    }

    /// Where a record goes that is read again and was not tried. Between those of a window of its key it waits for that
    /// one, whatever the order is now: else progress could not say to which of the two it belongs.
    fn queue_again(&self, record: &RecordFacts) -> QueueKey {
        let of_key = QueueKey::Key(record.key);
        let spans = |id: &WindowId| {
            let held = &self.windows[id];
            held.is_tried() && held.span(Offset::ZERO).is_some_and(|span| span.contains(record.offset))
        };
        let is_inside = || self.queues.get(&of_key).is_some_and(|queue| queue.windows.iter().any(spans));
        if self.spec.order == Order::Key || is_inside() { of_key } else { QueueKey::Whole }
    }

    fn note_filled(&mut self, queue: QueueKey) {
        if let Some(restoring) = &mut self.restoring {
            restoring.filled.insert(queue);
        }
    }

    /// What lies between two holes is finished, also where the filter lets nothing of it in any more: no range spans it.
    fn cut_at_holes(&mut self, upto: Offset) {
        if self.restoring.as_mut().is_some_and(|restoring| restoring.leave_holes(upto)) {
            self.unfinished.cut();
        }
    }

    /// A record of a window without a key that was tried is read again: no new window spans it. So written progress
    /// says for each record to which window it belongs, also after the order or the filter was changed.
    fn close_filled(&mut self, now_ms: i64) {
        let Some(restoring) = &mut self.restoring else { return };
        std::mem::take(&mut restoring.filled).into_iter().for_each(|key| self.close_open(key, now_ms));
    }

    /// Everything below `next` was read again.
    pub(super) fn restored_to(&mut self, next: Offset, now_ms: i64) {
        self.complete_to(next, now_ms);
        self.cut_at_holes(next);
        let Some(restoring) = &mut self.restoring else { return };
        self.at = restoring.next_from(next);
        let is_whole = self.at >= restoring.until;
        if self.at > next {
            // What was passed over is finished.
            self.unfinished.cut();
            self.complete_to(self.at, now_ms);
            self.unfinished.cut();
        }
        if is_whole {
            self.end_restoring();
        }
    }

    fn end_restoring(&mut self) {
        let ended = self.restoring.take();
        let whole = ended.is_none_or(|ended| ended.carried.is_empty() && ended.building.is_empty());
        assert!(whole, "T1: all that was unfinished is in hand before reading goes on");
        let keys: Vec<u64> = self.markers.keys().copied().collect();
        keys.into_iter().for_each(|key| self.lift_marker(key));
    }

    /// Reading has come to `upto`: records below it get their numbers, windows that end below it are made.
    fn complete_to(&mut self, upto: Offset, now_ms: i64) {
        while let Some((offset, id)) = self.restoring.as_mut().and_then(|restoring| restoring.next_carried(upto)) {
            let key = self.windows[&id].key;
            if key.is_none() {
                self.close_filled(now_ms);
            }
            self.cut_at_holes(offset);
            let number = self.unfinished.push(offset);
            let held = self.windows.get_mut(&id).expect("what is carried over is in hand");
            let Held { places, done, .. } = held;
            let place = match places.binary_search_by_key(&offset, |place| place.offset) {
                Ok(index) => &mut places[index],
                Err(_) => done.iter_mut().find(|place| place.offset == offset).expect("it is one of its window"),
            };
            place.number = number;
        }
        let Some(restoring) = &mut self.restoring else { return };
        // Usually none does: nothing is allocated then.
        let whole = restoring.building.extract_if(.., |building| building.tried.span.next <= upto);
        let whole: Vec<Building> = whole.filter(|building| !building.found.is_empty()).collect();
        for building in whole {
            if building.is_same() {
                self.make_again(building, now_ms);
            } else {
                self.begin_anew(building.tried.key, building.found, now_ms);
            }
        }
    }

    /// Which of these records were tried nobody knows: none of them was.
    fn begin_anew(&mut self, tried_key: Option<u64>, found: Vec<(RecordFacts, u64)>, now_ms: i64) {
        self.close_filled(now_ms);
        let others = self.tried_among(&found);
        let mut last = None;
        for (record, number) in found {
            let place = Place { offset: record.offset, number, spot: record.spot };
            if self.markers.get(&record.key).is_some_and(|marker| marker.at <= record.offset) {
                // It is read once more for its key.
                self.unfinished.finish([place]);
                continue;
            }
            if last.is_some_and(|last| others.range(last..record.offset).next().is_some()) {
                // Nor does a window that is made of them span any other that was tried.
                self.close_filled(now_ms);
            }
            last = Some(record.offset);
            // Records of a key stay beside what else was read again: by their key they were told from it.
            let queue = tried_key.map_or_else(|| self.queue_again(&record), QueueKey::Key);
            self.note_filled(queue);
            self.put(record, place, queue, false, now_ms);
        }
        self.close_filled(now_ms);
    }

    /// Records of windows that were tried, between the first and the last of these.
    fn tried_among(&self, found: &[(RecordFacts, u64)]) -> BTreeSet<Offset> {
        let (Some((first, _)), Some((last, _))) = (found.first(), found.last()) else { return BTreeSet::new() };
        let in_hand = self.tried.iter().flat_map(|id| self.windows[id].own(Offset::ZERO));
        let building = self.restoring.iter().flat_map(|restoring| &restoring.building);
        let to_be = building.filter(|building| !building.dissolved).flat_map(|building| &building.found);
        let all = in_hand.chain(to_be.map(|(record, _)| record.offset));
        all.filter(|offset| (first.offset..last.offset).contains(offset)).collect()
    }

    /// A window that was tried before the restart is whole again.
    fn make_again(&mut self, building: Building, now_ms: i64) {
        let is_whole = building.is_whole();
        let Building { tried, found, .. } = building;
        let size_bytes = found.iter().map(|(record, _)| record.size_bytes).sum();
        let place = |&(record, number): &(RecordFacts, u64)| Place { offset: record.offset, number, spot: record.spot };
        let places: Vec<Place> = found.iter().map(place).collect();
        let queue = self.queue_of(tried.key);
        let mut state = tried.attempts.to_state();
        state.take_up(&self.spec.policies.retry, now_ms);
        let mut blocked = state.is_blocked(&self.spec.policies);
        let mut given_up = tried.given_up.map(|given_up| given_up.reason);
        let letters = tried.letters().map(|letters| Letters { is_whole: letters.is_whole && is_whole, ..letters });
        if state.running {
            let error =
                InvocationError::new(ErrorClass::Interrupted, "interrupted", "the broker stopped during the attempt");
            // Nobody else was interrupted at this moment: no need to spread what follows.
            match state.end(Err(&error), &self.spec.policies, now_ms, 0) {
                Step::Exhausted { reason } => given_up = Some(reason),
                step => blocked |= step.blocks(),
            }
        }
        if self.suspended {
            state.suspend(now_ms)
        } else {
            state.count_again(now_ms)
        }
        let (records, cuts) = (places.len(), groups(&places));
        let (name, key, phase) = (places[0].offset, tried.key, Phase::Queued);
        let held = Held {
            places,
            done: Vec::new(),
            cuts: 0,
            size_bytes,
            queue,
            key,
            state,
            phase,
            name,
            letters,
            // What the filter in force lets in is what it has.
            foreign: false,
            decided: false,
            spilled: false,
            is_rest: false,
            blocked,
        };
        // What was read before it and was not tried goes before it.
        self.close_open(queue, now_ms);
        self.held_records += records;
        self.queues.entry(queue).or_default().records += records;
        let id = self.enqueue(held, now_ms);
        self.note_tried(id);
        self.reserve_cuts(id, cuts);
        if let Some(reason) = given_up {
            self.give_up(id, reason);
        }
    }

    /// Records that were not read again yet are in this window from now on.
    pub(super) fn moved(&mut self, id: WindowId, places: &[Place]) {
        let Some(restoring) = &mut self.restoring else { return };
        for place in places.iter().filter(|place| place.number == UNNUMBERED) {
            restoring.carried.insert(place.offset, id);
        }
    }

    /// Records that were not read again yet are finished.
    pub(super) fn finish_unnumbered(&mut self, places: &[Place]) {
        let Some(restoring) = &mut self.restoring else { return };
        places.iter().for_each(|place| restoring.finish_offset(place.offset));
    }
}

/// Whether a window that is carried over is what this one was written as.
fn id_known(carried: &TriedWindow, written: &TriedWindow) -> bool {
    carried.key.is_none_or(|key| written.key == Some(key))
}
