//! Going on from written progress: after a restart, and when a definition changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tripline_storage::Offset;

use super::queue::QueueKey;
use super::{Held, Lane, LaneSpec, Marker, Phase, WindowId};
use crate::function::{ErrorClass, InvocationError};
use crate::trigger::attempt::{AttemptState, ExhaustedReason, Step};
use crate::trigger::progress::{Progress, Span, TriedWindow};
use crate::trigger::spec::Order;
use crate::trigger::unfinished::{Place, UNNUMBERED, groups};
use crate::trigger::window::{RecordFacts, Spot};

/// A window that a lane takes over as it is.
#[derive(Clone, Debug)]
pub struct Carried {
    id: Option<WindowId>,
    held: Held,
}

impl Carried {
    /// A window whose verdict was written down before a restart: its records, ascending and at least one, are not
    /// invoked again. [`Lane::next_given_up`] gives it out.
    #[must_use]
    pub fn verdict(offsets: &[Offset], state: AttemptState, reason: ExhaustedReason) -> Self {
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
            name: offsets[0],
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
    /// Queues that records came into since the open windows of keys were closed.
    filled: BTreeSet<QueueKey>,
}

/// A window that was tried and is made again.
#[derive(Debug)]
struct Building {
    tried: TriedWindow,
    places: Vec<Place>,
    size_bytes: u64,
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

impl Restoring {
    pub(super) fn new(progress: &Progress) -> (Option<Self>, HashMap<u64, Marker>) {
        let markers = progress.blocked_keys().iter().map(|key| (key.hash, Marker { at: key.first })).collect();
        let building = progress.windows().iter().map(|&tried| Building { tried, places: Vec::new(), size_bytes: 0 });
        let building: Vec<Building> = building.collect();
        let nothing = progress.holes().is_empty() && building.is_empty();
        let restoring = (!nothing).then(|| Self {
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
            tried.span.contains(offset) && is_key && (offset < at || self.in_hole(offset))
        };
        (offset >= at && self.in_hole(offset)) || self.building.iter().any(built)
    }

    /// What of the progress that is restored still stands beyond `at`.
    pub(super) fn add_rest(&self, at: Offset, holes: &mut Vec<Span>, windows: &mut Vec<TriedWindow>) {
        holes.extend(self.holes.iter().filter_map(|hole| Span::new(hole.first.max(at), hole.next)));
        windows.extend(self.building.iter().map(|building| building.tried));
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

    /// How many holes and windows are still to be read again.
    pub(super) const fn counts(&self) -> (usize, usize) {
        (self.holes.len(), self.building.len())
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
        let mut queues: Vec<(Offset, Vec<WindowId>)> = Vec::new();
        for queue in self.queues.values() {
            let tried = queue.windows.iter().copied().filter(|id| self.windows[id].is_tried());
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
        let mut lane = Self::restore_numbered(spec, &progress, carried.collect(), self.next_id);
        (lane.withheld, lane.suspended, lane.starts) = (self.withheld, self.suspended, self.starts);
        lane.keyless_to = self.keyless_to;
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
        let tried = held.tried();
        if let Some(restoring) = &mut self.restoring {
            let span = held.span().expect("a window has records");
            let first = held.places[0].offset;
            let is_this = |building: &Building| {
                building.tried.span == span && tried.is_none_or(|tried| id_known(&tried, &building.tried))
            };
            let same = restoring.building.iter().position(is_this);
            let around = || restoring.building.iter().rposition(|building| building.tried.span.contains(first));
            if let Some(index) = same.or_else(around) {
                held.key = held.key.or(restoring.building[index].tried.key);
            }
            // A verdict may be on a part of what was written: the rest of that goes on as it was.
            if let Some(index) = same.filter(|_| !held.decided) {
                restoring.building.remove(index);
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
            self.end_restoring();
        }
        self.restoring.is_some()
    }

    /// A matching record is read again.
    pub(super) fn take_again(&mut self, record: RecordFacts, now_ms: i64) {
        let Some(restoring) = &mut self.restoring else { return };
        if restoring.carried.contains_key(&record.offset) {
            // It gets its number when reading has passed it.
            return;
        }
        match restoring.belongs(&record, self.markers.get(&record.key)) {
            Belongs::Building(index) => {
                let key = restoring.building[index].tried.key;
                self.close_before(key, now_ms);
                let Some(restoring) = &mut self.restoring else { return };
                let number = self.unfinished.push(record.offset);
                let building = &mut restoring.building[index];
                building.places.push(Place { offset: record.offset, number, spot: record.spot });
                building.size_bytes += record.size_bytes;
            }
            Belongs::Marker | Belongs::Finished => self.unfinished.cut(),
            Belongs::Fresh => {
                let queue = if self.spec.order == Order::Key { QueueKey::Key(record.key) } else { QueueKey::Whole };
                restoring.filled.insert(queue);
                self.push(record, queue, false, now_ms);
            }
        }
    }

    /// A record of a window without a key that was tried is read again: no new window of a key spans it. So written
    /// progress says for each record to which window it belongs, also after the order was changed.
    fn close_before(&mut self, tried_key: Option<u64>, now_ms: i64) {
        if self.spec.order != Order::Key || tried_key.is_some() {
            return;
        }
        let Some(restoring) = &mut self.restoring else { return };
        std::mem::take(&mut restoring.filled).into_iter().for_each(|key| self.close_open(key, now_ms));
    }

    /// Everything below `next` was read again.
    pub(super) fn restored_to(&mut self, next: Offset, now_ms: i64) {
        self.complete_to(next, now_ms);
        let Some(restoring) = &mut self.restoring else { return };
        restoring.holes.retain(|hole| hole.next > next);
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
            self.close_before(key, now_ms);
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
        let whole: Vec<Building> = whole.filter(|building| !building.places.is_empty()).collect();
        whole.into_iter().for_each(|building| self.make_again(building, now_ms));
    }

    /// A window that was tried before the restart is whole again.
    fn make_again(&mut self, building: Building, now_ms: i64) {
        let Building { tried, places, size_bytes } = building;
        let queue = self.queue_of(tried.key);
        let mut state = tried.attempts.to_state();
        state.take_up(&self.spec.policies.retry, now_ms);
        let mut blocked = state.is_blocked(&self.spec.policies);
        let mut given_up = tried.given_up;
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
            decided: false,
            spilled: false,
            is_rest: false,
            blocked,
        };
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
