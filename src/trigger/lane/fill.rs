//! Records come in: into the open window of their queue, or behind a marker.

use std::collections::BTreeSet;
use std::time::Duration;

use tripline_storage::Offset;

use super::fit::More;
use super::queue::{Queue, QueueKey};
use super::{Held, Lane, LaneLimits, Marker, Phase, Timer, WindowId, at};
use crate::trigger::attempt::AttemptState;
use crate::trigger::flow::{Singleton, Throttle};
use crate::trigger::spec::Order;
use crate::trigger::unfinished::{Place, UNNUMBERED, groups};
use crate::trigger::window::{ClosedWindow, Push, RecordFacts, Window, WindowSpec};

/// So many keys have room beside each other.
const KEYS_WITH_ROOM_MIN: usize = 16;

/// What a queue holds that was not tried.
#[derive(Debug)]
pub(super) struct Untried {
    windows: Vec<WindowId>,
    /// The open window is one of them.
    is_open: bool,
    /// Records of all of them, ascending, at least one.
    pub(super) places: Vec<Place>,
}

impl Lane {
    /// Everything from [`Lane::position`] up to `next` was read; these records, in offset order, match. Where no more
    /// of them may be held, or could be written down, it stops in the middle: [`Lane::position`] says where.
    pub fn take(&mut self, records: &[RecordFacts], next: Offset, now_ms: i64) {
        let at = self.at;
        self.survey();
        self.relieve();
        for record in records.iter().filter(|record| record.offset >= at) {
            if self.is_read_again(record.offset, now_ms) {
                self.take_again(*record, now_ms);
            } else if self.is_full() || self.is_filled(0, 0) || (self.keeps_turns() && !self.has_space()) {
                return self.pass(record.offset, now_ms);
            } else {
                self.take_new(*record, now_ms);
            }
        }
        self.pass(next, now_ms);
    }

    /// Everything up to `next` was read and nothing in it matched, or it is not there any more.
    pub fn pass(&mut self, next: Offset, now_ms: i64) {
        if next <= self.at {
            return;
        }
        self.at = next;
        if self.restoring.is_some() {
            self.restored_to(next, now_ms);
        }
    }

    /// Where to read again for the keys that were spilled and have room now.
    #[must_use]
    pub fn catch_up_at(&self) -> Option<Offset> {
        if self.restoring.is_some() || self.is_filled(0, 0) {
            return None;
        }
        let wanted = self.markers.iter().filter(|(key, marker)| marker.at < self.at && self.has_room(**key));
        wanted.map(|(_, marker)| marker.at).min()
    }

    /// These matching records, all there are in `from..next`, were read again for [`Lane::catch_up_at`].
    pub fn take_spilled(&mut self, records: &[RecordFacts], from: Offset, next: Offset, now_ms: i64) {
        let next = next.min(self.at);
        let mut stopped: BTreeSet<u64> = BTreeSet::new();
        for record in records.iter().filter(|record| record.offset < next) {
            let marker = self.markers.get(&record.key).copied();
            let wanted = marker.is_some_and(|marker| marker.at >= from && marker.at <= record.offset);
            if !wanted || stopped.contains(&record.key) {
                continue;
            }
            let mut at = record.offset;
            if self.has_room(record.key) && !self.is_filled(0, 0) {
                self.push(*record, QueueKey::Key(record.key), true, now_ms);
                at = at.next();
            } else {
                // The first that is not kept: what follows of its key waits behind it.
                stopped.insert(record.key);
            }
            self.markers.insert(record.key, Marker { at });
        }
        let room: Vec<u64> = self.markers.keys().copied().filter(|key| !stopped.contains(key)).collect();
        for key in room {
            let marker = self.markers.get_mut(&key).expect("it was there a moment ago");
            if marker.at >= from && marker.at < next {
                marker.at = next;
            }
            self.lift_marker(key);
        }
    }

    /// Whether a key's queue would take records that are read again: not while its first window waits to be tried
    /// again, nor while the key rests. Where there is no space to read for, a key whose turn it is has room for that
    /// turn all the same.
    pub(super) fn has_room(&self, key: u64) -> bool {
        if self.resting.contains(&key) {
            return false;
        }
        let records_max = if self.has_space() { self.key_records_max().div_ceil(2) } else { self.turn_records() };
        let Some(queue) = self.queues.get(&QueueKey::Key(key)) else { return records_max > 0 };
        queue.records < records_max && !self.is_waiting(queue) && (self.has_space() || queue.turn_ms.is_none())
    }

    /// What a throttled key may begin at once, in records.
    fn turn_records(&self) -> usize {
        let turn = |throttle: Throttle| (throttle.limit as usize).saturating_mul(self.spec.window.count as usize);
        self.spec.per_key.throttle.map_or(0, turn).min(self.key_records_max().div_ceil(2))
    }

    /// Whether keys that were set aside may come for their turn: what is read for the first time leaves them space.
    fn keeps_turns(&self) -> bool {
        self.spec.per_key.throttle.is_some() && self.restoring.is_none() && !self.markers.is_empty()
    }

    /// No key takes all the room there is, whatever a window may hold.
    pub(super) fn key_records_max(&self) -> usize {
        let window_records = self.spec.window.count as usize;
        let share = (self.spec.limits.records / KEYS_WITH_ROOM_MIN).max(window_records);
        self.spec.limits.key_records.max(window_records * 2).min(share).max(1)
    }

    /// Whether the first window of a queue has failed and waits for its next attempt, or for the turn of its key to
    /// make it.
    fn is_waiting(&self, queue: &Queue) -> bool {
        let front = queue.windows.front().and_then(|id| self.windows.get(id));
        front.is_some_and(|held| {
            let waits =
                matches!(held.phase, Phase::Waiting(_)) || held.phase == Phase::Queued && queue.turn_ms.is_some();
            held.is_tried() && waits
        })
    }

    /// Makes room where nothing more could be read: keys that wait for an attempt give back what was not tried yet. It
    /// is read again when they go on; a marker stands for it.
    pub(super) fn relieve(&mut self) {
        // Where reading stops.
        let LaneLimits { records, .. } = self.spec.limits;
        let pressed = self.held_records + records / 8 >= records || self.is_full();
        if !pressed || self.spec.order != Order::Key || self.restoring.is_some() {
            return;
        }
        let tried = self.tried.iter().filter_map(|id| self.windows.get(id)).map(|held| held.queue);
        let keys: BTreeSet<QueueKey> = tried.filter(|key| matches!(key, QueueKey::Key(_))).collect();
        for key in keys {
            if self.queues.get(&key).is_some_and(|queue| self.is_waiting(queue)) {
                self.give_back(key);
            }
        }
    }

    /// The records of a queue that were not tried stand behind its key's marker from now on, where that can be written
    /// down, and none of them may be finished already.
    fn give_back(&mut self, key: QueueKey) {
        let Some(untried) = self.untried(key) else { return };
        let numbered: Vec<Place> = untried.places.iter().filter(|place| place.number != UNNUMBERED).copied().collect();
        let more = More { windows: 1, cuts: groups(&numbered), from: untried.places[0].offset };
        if !numbered.is_empty() && !self.fits(more) {
            return;
        }
        self.unfinished.finish(numbered);
        self.put_behind_marker(key, &untried);
    }

    /// What the queue of a key holds that was not tried, and of which nothing may be finished already; `None` where
    /// that is nothing.
    pub(super) fn untried(&self, key: QueueKey) -> Option<Untried> {
        let queue = self.queues.get(&key).filter(|_| matches!(key, QueueKey::Key(_)))?;
        let is_new = |places: &[Place]| places.first().is_some_and(|first| first.offset >= self.new_from);
        let is_untried = |id: &&WindowId| {
            let held = &self.windows[*id];
            is_new(&held.places) && !held.is_tried() && held.given_up().is_none()
        };
        let windows: Vec<WindowId> = queue.windows.iter().filter(is_untried).copied().collect();
        let closed = windows.iter().flat_map(|id| &self.windows[id].places);
        let open = Some(&queue.places).filter(|open| is_new(open));
        let places: Vec<Place> = closed.chain(open.into_iter().flatten()).copied().collect();
        (!places.is_empty()).then_some(Untried { is_open: open.is_some(), windows, places })
    }

    /// What a queue held stands behind its key's marker; it is in no range any more.
    pub(super) fn put_behind_marker(&mut self, key: QueueKey, untried: &Untried) {
        let (QueueKey::Key(hash), Some(queue)) = (key, self.queues.get_mut(&key)) else { return };
        let Untried { windows, is_open, places } = untried;
        for id in windows {
            self.windows.remove(id);
        }
        queue.windows.retain(|id| !windows.contains(id));
        if *is_open {
            if let Some(at_ms) = queue.deadline_ms() {
                self.timers.remove(&(at_ms, Timer::Open(key)));
            }
            queue.drop_open();
        }
        queue.records -= places.len();
        queue.spilled_records -= places.iter().filter(|place| place.number == UNNUMBERED).count();
        self.held_records -= places.len();
        let first = places[0].offset;
        let marker = self.markers.entry(hash).or_insert(Marker { at: first });
        marker.at = marker.at.min(first);
    }

    /// A marker that nothing is behind any more is gone.
    pub(super) fn lift_marker(&mut self, key: u64) {
        let Some(marker) = self.markers.get(&key) else { return };
        let holds = self.queues.get(&QueueKey::Key(key)).is_some_and(|queue| queue.spilled_records > 0);
        if marker.at >= self.at && !holds && self.restoring.is_none() {
            self.markers.remove(&key);
        }
    }

    pub(super) fn take_new(&mut self, record: RecordFacts, now_ms: i64) {
        // Also in another order: the marker stands for all records of its key that were read.
        if !self.markers.is_empty() && self.markers.contains_key(&record.key) {
            return self.unfinished.cut();
        }
        if self.spec.order != Order::Key {
            return self.push(record, QueueKey::Whole, false, now_ms);
        }
        let queue = QueueKey::Key(record.key);
        let Some(found) = self.queues.get(&queue) else { return self.push(record, queue, false, now_ms) };
        // A window that waits for its key to be quiet is no work yet: what comes takes the place of what it holds.
        let is_busy = if self.spec.per_key.debounce.is_some() { found.closed() > 0 } else { found.is_busy() };
        if self.spec.per_key.singleton == Some(Singleton::Skip) && is_busy {
            self.withheld.skipped += 1;
            return self.unfinished.cut();
        }
        if found.records >= self.key_records_max() {
            self.markers.insert(record.key, Marker { at: record.offset });
            return self.unfinished.cut();
        }
        self.push(record, queue, false, now_ms);
    }

    /// Gives a record its number and puts it into the open window of a queue.
    pub(super) fn push(&mut self, record: RecordFacts, key: QueueKey, spilled: bool, now_ms: i64) {
        let number = if spilled { UNNUMBERED } else { self.unfinished.push(record.offset) };
        let place = Place { offset: record.offset, number, spot: record.spot };
        self.put(record, place, key, spilled, now_ms);
    }

    /// Puts a record that has its number into the open window of a queue.
    pub(super) fn put(&mut self, record: RecordFacts, place: Place, key: QueueKey, spilled: bool, now_ms: i64) {
        let now = at(now_ms);
        let debounce = self.spec.per_key.debounce.filter(|_| matches!(key, QueueKey::Key(_)));
        let mut timer = self.queues.get(&key).and_then(Queue::deadline_ms);
        if debounce.is_some() {
            // Only the newest record counts.
            self.replace_open(key);
        } else if self.queues.get(&key).is_some_and(|queue| queue.is_open() && queue.open_spilled != spilled) {
            self.close_open(key, now_ms);
            timer = None;
        }
        let window_spec = match debounce {
            None => WindowSpec { count: self.count, ..self.spec.window },
            // It holds one record, until the key has been quiet.
            Some(_) => WindowSpec { count: u32::MAX, bytes: u64::MAX, interval: Duration::ZERO, max_wait: None },
        };
        let queue = self.queues.entry(key).or_default();
        queue.records += 1;
        queue.spilled_records += usize::from(spilled);
        self.held_records += 1;
        let mut closed = Vec::new();
        loop {
            if queue.places.is_empty() {
                // The count that applies may have changed since the last one began.
                queue.open = Some(Window::new(window_spec));
            }
            let window = queue.open.get_or_insert_with(|| Window::new(window_spec));
            match window.push(record, now) {
                Push::Taken => queue.places.push(place),
                Push::TakenAndClosed(window) => {
                    queue.places.push(place);
                    closed.push((window, std::mem::take(&mut queue.places)));
                }
                Push::ClosedBefore(window) => {
                    closed.push((window, std::mem::take(&mut queue.places)));
                    continue;
                }
            }
            queue.open_spilled = spilled;
            if let Some(debounce) = debounce {
                queue.debounce(debounce, now_ms);
            }
            let deadline = queue.deadline_ms();
            if timer != deadline {
                timer.map(|at_ms| self.timers.remove(&(at_ms, Timer::Open(key))));
                deadline.map(|at_ms| self.timers.insert((at_ms, Timer::Open(key))));
            }
            break;
        }
        for (window, places) in closed {
            self.closed(key, &window, places, spilled, now_ms);
        }
        self.waits_for_turn(key, now_ms);
        self.note_idle(key);
    }

    /// A newer record of a debounced key replaces the one that waits, which is finished.
    fn replace_open(&mut self, key: QueueKey) {
        let Some(queue) = self.queues.get_mut(&key) else { return };
        let replaced = std::mem::take(&mut queue.places);
        queue.forget(replaced.len(), queue.open_spilled);
        self.held_records -= replaced.len();
        self.withheld.debounced += replaced.len();
        if !queue.open_spilled {
            self.unfinished.finish(replaced);
        }
    }

    /// An open window that waits for nothing but a free invocation is noted.
    pub(super) fn note_idle(&mut self, key: QueueKey) {
        let Some(queue) = self.queues.get_mut(&key) else { return };
        let debounced = self.spec.per_key.debounce.is_some() && matches!(key, QueueKey::Key(_));
        if self.spec.window.interval.is_zero() && !debounced && queue.is_idle() && !queue.noted_idle {
            queue.noted_idle = true;
            self.open_idle.push_back(key);
        }
    }

    /// Closes a queue's open window as it is.
    pub(super) fn close_open(&mut self, key: QueueKey, now_ms: i64) {
        let Some(queue) = self.queues.get_mut(&key) else { return };
        let timer = queue.deadline_ms();
        let Some(window) = queue.open.as_mut().and_then(Window::flush) else { return };
        queue.debounce_until = None;
        timer.map(|at_ms| self.timers.remove(&(at_ms, Timer::Open(key))));
        let (places, spilled) = (std::mem::take(&mut queue.places), queue.open_spilled);
        self.closed(key, &window, places, spilled, now_ms);
    }

    pub(super) fn closed(
        &mut self,
        key: QueueKey,
        window: &ClosedWindow,
        places: Vec<Place>,
        spilled: bool,
        now_ms: i64,
    ) {
        let name = places[0].offset;
        let queue = match self.spec.order {
            Order::None if key == QueueKey::Whole => QueueKey::Alone(self.next_id),
            _ => key,
        };
        if queue != key {
            let moved = places.len();
            self.queues.entry(queue).or_default().records += moved;
            self.release(key, moved);
            if self.queues.get(&key).is_some_and(|queue| !queue.is_busy()) {
                self.queues.remove(&key);
            }
        }
        let held = Held {
            size_bytes: window.size_bytes,
            queue,
            key: if let QueueKey::Key(hash) = key { Some(hash) } else { None },
            state: AttemptState::default(),
            phase: Phase::Queued,
            name,
            letters: None,
            foreign: false,
            decided: false,
            spilled,
            is_rest: false,
            blocked: false,
            places,
            done: Vec::new(),
            cuts: 0,
        };
        self.enqueue(held, now_ms);
    }
}
