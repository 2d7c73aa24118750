//! Going on from written progress: after a restart, and when a definition changes.

use std::collections::{BTreeMap, HashMap};

use tripline_storage::Offset;

use super::queue::QueueKey;
use super::{Held, Lane, LaneSpec, Marker, Phase, WindowId};
use crate::function::{ErrorClass, InvocationError};
use crate::trigger::attempt::{AttemptState, ExhaustedReason, Step};
use crate::trigger::progress::{Progress, Span, TriedWindow};
use crate::trigger::spec::Order;
use crate::trigger::unfinished::Place;
use crate::trigger::window::RecordFacts;

/// The number of a record that was not read again yet: what is left of the holes stands for it.
pub(super) const UNNUMBERED: u64 = u64::MAX;

/// A window that a lane takes over as it is.
#[derive(Clone, Debug)]
pub struct Carried {
    id: Option<WindowId>,
    held: Held,
}

impl Carried {
    /// A window whose verdict was written down before a restart: its records, ascending and at least one, are not invoked
    /// again. [`Lane::next_given_up`] gives it out.
    #[must_use]
    pub fn verdict(offsets: &[Offset], state: AttemptState, reason: ExhaustedReason) -> Self {
        let places = offsets.iter().map(|&offset| Place { offset, number: UNNUMBERED }).collect();
        let held = Held {
            places,
            size_bytes: 0,
            queue: QueueKey::Whole,
            key: None,
            state,
            phase: Phase::GivenUp(reason),
            name: offsets[0],
            spilled: false,
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
}

/// A window that was tried and is made again.
#[derive(Debug)]
struct Building {
    tried: TriedWindow,
    places: Vec<Place>,
    size_bytes: u64,
    spilled: bool,
}

/// Where a record that is read again belongs.
enum Belongs {
    /// To the window that is built at this index; spilled, it is behind the marker of its key.
    Building { index: usize, spilled: bool },
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
        let building = progress.windows().iter().map(|&tried| Building {
            tried,
            places: Vec::new(),
            size_bytes: 0,
            spilled: false,
        });
        let building: Vec<Building> = building.collect();
        let nothing = progress.holes().is_empty() && building.is_empty();
        let restoring = (!nothing).then(|| Self {
            until: progress.reading_point(),
            holes: progress.holes().to_vec(),
            building,
            carried: BTreeMap::new(),
        });
        (restoring, markers)
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
        let spilled = marker.is_some_and(|marker| marker.at <= record.offset);
        let in_hole = self.in_hole(record.offset);
        if !spilled && !in_hole {
            return Belongs::Finished;
        }
        let of_window = |building: &Building| {
            building.tried.span.contains(record.offset) && building.tried.key.is_none_or(|key| key == record.key)
        };
        match self.building.iter().position(of_window) {
            Some(index) => Belongs::Building { index, spilled },
            None if spilled => Belongs::Marker,
            None => Belongs::Fresh,
        }
    }

    /// The next offset from `at` on that must be read again.
    pub(super) fn next_from(&self, at: Offset) -> Offset {
        let hole = self.holes.iter().find(|hole| hole.next > at).map(|hole| hole.first.max(at));
        let window = self.building.iter().filter(|building| building.tried.span.next > at);
        let window = window.map(|building| building.tried.span.first.max(at)).min();
        hole.into_iter().chain(window).min().unwrap_or(self.until).min(self.until.max(at))
    }

    /// Records of a window that was carried over are in another one now.
    pub(super) fn moved(&mut self, places: &[Place], to: WindowId) {
        for place in places.iter().filter(|place| place.number == UNNUMBERED) {
            self.carried.entry(place.offset).and_modify(|id| *id = to);
        }
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
    /// The same lane under a new definition: windows in hand are carried over, everything else that is unfinished is read
    /// again, and what was tried is made again as it was.
    #[must_use]
    pub fn redefine(self, spec: LaneSpec) -> Self {
        let in_hand = |held: &Held| matches!(held.phase, Phase::InFlight | Phase::GivenUp(_) | Phase::Settling);
        let progress = self.progress();
        let mut carried: Vec<(WindowId, Held)> = self.windows.into_iter().filter(|(_, held)| in_hand(held)).collect();
        carried.sort_by_key(|(id, _)| *id);
        let carried = carried.into_iter().map(|(id, held)| Carried { id: Some(id), held }).collect();
        let mut lane = Self::restore_numbered(spec, &progress, carried, self.next_id);
        (lane.withheld, lane.suspended) = (self.withheld, self.suspended);
        lane
    }

    pub(super) fn carry(&mut self, carried: Carried) {
        let Carried { id, mut held } = carried;
        let id = id.unwrap_or_else(|| {
            self.next_id += 1;
            WindowId(self.next_id - 1)
        });
        let first = held.places[0].offset;
        if let Some(restoring) = &mut self.restoring {
            let made_again = |building: &Building| building.tried.span.first == first;
            if let Some(index) = restoring.building.iter().position(made_again) {
                let made = restoring.building.remove(index);
                held.key = held.key.or(made.tried.key);
            }
            held.spilled |= held.key.is_some() && !restoring.in_hole(first);
            if !held.spilled {
                for place in &mut held.places {
                    place.number = UNNUMBERED;
                    restoring.carried.insert(place.offset, id);
                }
            }
        }
        if let Some(marker) = held.key.filter(|_| held.spilled).and_then(|key| self.markers.get_mut(&key)) {
            let last = held.places.last().map_or(first, |place| place.offset);
            marker.at = marker.at.max(last.next());
        }
        held.queue = self.queue_of(held.key);
        let queue = self.queues.entry(held.queue).or_default();
        queue.windows.push_back(id);
        queue.records += held.places.len();
        queue.spilled_records += if held.spilled { held.places.len() } else { 0 };
        self.held_records += held.places.len();
        self.tried += usize::from(held.state.first_attempt_ms.is_some());
        if let Phase::GivenUp(_) = held.phase {
            self.given_up.push_back(id);
        }
        self.windows.insert(id, held);
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

    /// A matching record is read again.
    pub(super) fn take_again(&mut self, record: RecordFacts, now_ms: i64) {
        self.complete_to(record.offset, now_ms);
        if self.restoring.as_ref().is_some_and(|restoring| record.offset >= restoring.until) {
            self.end_restoring();
        }
        let Some(restoring) = &mut self.restoring else { return self.take_new(record, now_ms) };
        if restoring.carried.contains_key(&record.offset) {
            // It gets its number when reading has passed it.
            return;
        }
        match restoring.belongs(&record, self.markers.get(&record.key)) {
            Belongs::Building { index, spilled } => {
                let number = if spilled { UNNUMBERED } else { self.unfinished.push(record.offset) };
                let building = &mut restoring.building[index];
                building.spilled |= spilled;
                building.places.push(Place { offset: record.offset, number });
                building.size_bytes += record.size_bytes;
                if spilled {
                    self.unfinished.cut();
                }
            }
            Belongs::Marker | Belongs::Finished => self.unfinished.cut(),
            Belongs::Fresh => {
                let queue = if self.spec.order == Order::Key { QueueKey::Key(record.key) } else { QueueKey::Whole };
                self.push(record, queue, false, now_ms);
            }
        }
    }

    /// Everything below `next` was read again.
    pub(super) fn restored_to(&mut self, next: Offset, now_ms: i64) {
        self.complete_to(next, now_ms);
        let Some(restoring) = &mut self.restoring else { return };
        restoring.holes.retain(|hole| hole.next > next);
        self.at = restoring.next_from(next);
        if self.at >= restoring.until {
            self.end_restoring();
        } else if self.at > next {
            // What was passed over is finished.
            self.unfinished.cut();
        }
    }

    fn end_restoring(&mut self) {
        let ended = self.restoring.take();
        let whole = ended.is_none_or(|ended| ended.carried.is_empty() && ended.building.is_empty());
        assert!(whole, "T1: all that was unfinished is in hand before reading goes on");
    }

    /// Reading has come to `upto`: records below it get their numbers, windows that end below it are made.
    fn complete_to(&mut self, upto: Offset, now_ms: i64) {
        let Some(restoring) = &mut self.restoring else { return };
        while let Some(entry) = restoring.carried.first_entry().filter(|entry| *entry.key() < upto) {
            let (offset, id) = entry.remove_entry();
            let number = self.unfinished.push(offset);
            let held = self.windows.get_mut(&id).expect("what is carried over is in hand");
            let place = held.places.binary_search_by_key(&offset, |place| place.offset);
            held.places[place.expect("a window has its records")].number = number;
        }
        // Usually none does: nothing is allocated then.
        let whole = restoring.building.extract_if(.., |building| building.tried.span.next <= upto);
        let whole: Vec<Building> = whole.filter(|building| !building.places.is_empty()).collect();
        whole.into_iter().for_each(|building| self.make_again(building, now_ms));
    }

    /// A window that was tried before the restart is whole again.
    fn make_again(&mut self, building: Building, now_ms: i64) {
        let Building { tried, places, size_bytes, spilled } = building;
        let queue = self.queue_of(tried.key);
        let mut state = tried.attempts.to_state();
        if let Some(marker) = tried.key.filter(|_| spilled).and_then(|key| self.markers.get_mut(&key)) {
            marker.at = marker.at.max(tried.span.next);
        }
        let given_up = state.running.then(|| {
            let error =
                InvocationError::new(ErrorClass::Interrupted, "interrupted", "the broker stopped during the attempt");
            // Nobody else was interrupted at this moment: no need to spread what follows.
            state.end(Err(&error), &self.spec.policies, now_ms, 0)
        });
        let records = places.len();
        let (name, key) = (places[0].offset, tried.key);
        let held = Held { places, size_bytes, queue, key, state, phase: Phase::Queued, name, spilled };
        self.held_records += records;
        let found = self.queues.entry(queue).or_default();
        found.records += records;
        found.spilled_records += if spilled { records } else { 0 };
        self.tried += 1;
        let id = self.enqueue(held, now_ms);
        if let Some(Step::Exhausted { reason }) = given_up {
            self.give_up(id, reason);
        }
    }

    /// Records that were not read again yet are finished.
    pub(super) fn finish_unnumbered(&mut self, places: &[Place]) {
        let Some(restoring) = &mut self.restoring else { return };
        places.iter().for_each(|place| restoring.finish_offset(place.offset));
    }
}
