//! Whose turn it is: which window of a queue may start, and when.

use super::fit::{More, Turn};
use super::queue::{Queue, QueueKey};
use super::{Held, Lane, Phase, Timer, WindowId};
use crate::trigger::attempt::AttemptState;
use crate::trigger::unfinished::{Place, groups};

/// The window whose turn it is. Nothing changes in the lane until it is started, or let go of.
#[derive(Debug)]
pub struct Next<'lane> {
    lane: &'lane mut Lane,
    turn: Turn,
    size_bytes: u64,
}

impl Next<'_> {
    /// Bytes of its records; some of them may be cut off when it starts.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Starts an attempt on it, with at most `records_max` records; what is cut off waits behind it.
    pub fn start(self, records_max: usize, now_ms: i64) -> WindowId {
        self.lane.start(self.turn, records_max, now_ms)
    }
}

impl Lane {
    /// Puts a window behind those of its queue.
    pub(super) fn enqueue(&mut self, held: Held, now_ms: i64) -> WindowId {
        let id = WindowId(self.next_id);
        self.next_id += 1;
        let queue = held.queue;
        self.windows.insert(id, held);
        self.queues.entry(queue).or_default().windows.push_back(id);
        self.advance(queue, now_ms);
        id
    }

    /// The first window of a queue may come forward.
    pub(super) fn advance(&mut self, key: QueueKey, now_ms: i64) {
        let Some(queue) = self.queues.get(&key) else { return };
        if !queue.is_busy() {
            // Where it rests, its turn is awaited for what is behind its marker.
            let rests = matches!(key, QueueKey::Key(hash) if self.resting.contains(&hash));
            queue.turn_ms.filter(|_| !rests).map(|at_ms| self.timers.remove(&(at_ms, Timer::Turn(key))));
            self.queues.remove(&key);
            return;
        }
        let Some(&id) = queue.windows.front() else {
            self.waits_for_turn(key, now_ms);
            return self.note_idle(key);
        };
        if self.windows[&id].phase != Phase::Queued {
            return;
        }
        if self.waits_for_turn(key, now_ms) {
            return;
        }
        let held = self.windows.get_mut(&id).expect("a queue's windows are held");
        match held.state.next_attempt_ms.filter(|&at_ms| at_ms > now_ms) {
            Some(at_ms) => {
                held.phase = Phase::Waiting(at_ms);
                self.timers.insert((at_ms, Timer::Window(id)));
            }
            None => {
                held.phase = Phase::Ready;
                if held.is_rest && !held.is_tried() { self.ready.push_front(id) } else { self.ready.push_back(id) }
            }
        }
    }

    /// Whether a queue waits until an attempt of its key does not count any more: it is looked at again then.
    pub(super) fn waits_for_turn(&mut self, key: QueueKey, now_ms: i64) -> bool {
        let (QueueKey::Key(hash), Some(throttle)) = (key, self.spec.per_key.throttle) else { return false };
        let Some(queue) = self.queues.get_mut(&key) else { return false };
        if queue.turn_ms.is_none() {
            queue.turn_ms = self.starts.until_ms(hash, throttle, now_ms);
            queue.turn_ms.map(|at_ms| self.timers.insert((at_ms, Timer::Turn(key))));
        }
        queue.turn_ms.is_some()
    }

    /// Closes and readies what its time has come for.
    pub(super) fn expire(&mut self, now_ms: i64) {
        while let Some(&(at_ms, timer)) = self.timers.first()
            && at_ms <= now_ms
        {
            self.timers.pop_first();
            match timer {
                Timer::Window(id) => self.come_forward(id, now_ms),
                Timer::Open(key) => self.close_open(key, now_ms),
                Timer::Turn(key) => {
                    if let QueueKey::Key(hash) = key {
                        self.resting.remove(&hash);
                    }
                    if let Some(queue) = self.queues.get_mut(&key) {
                        queue.turn_ms = None;
                    }
                    self.advance(key, now_ms);
                }
            }
        }
    }

    /// What a window waited for is over.
    pub(super) fn come_forward(&mut self, id: WindowId, now_ms: i64) {
        let Some(held) = self.windows.get_mut(&id) else { return };
        held.phase = Phase::Queued;
        let queue = held.queue;
        self.advance(queue, now_ms);
    }

    /// Whether a window could start now. `more`: there is something to read that the lane would take; an open window
    /// whose interval is 0 waits for it.
    pub fn is_startable(&mut self, more: bool, now_ms: i64) -> bool {
        self.make_room(now_ms);
        self.next_turn(more).is_some()
    }

    /// Sees what time has brought, and makes room.
    fn make_room(&mut self, now_ms: i64) {
        self.expire(now_ms);
        self.survey();
        self.relieve();
        self.drop_stale();
        self.send_to_rest();
    }

    /// Whether an open window whose interval is 0 may be waiting for what there is to read.
    #[must_use]
    pub fn waits_for_more(&self) -> bool {
        !self.open_idle.is_empty()
    }

    fn drop_stale(&mut self) {
        while let Some(key) = self.open_idle.front() {
            if self.queues.get(key).is_some_and(Queue::is_idle) {
                break;
            }
            if let Some(queue) = self.queues.get_mut(key) {
                queue.noted_idle = false;
            }
            self.open_idle.pop_front();
        }
        let is_ready = |held: &Held| held.phase == Phase::Ready;
        while self.ready.front().is_some_and(|id| !self.windows.get(id).is_some_and(is_ready)) {
            self.ready.pop_front();
        }
    }

    /// The window that may start now; `None` when [`Lane::is_startable`] is false.
    pub fn next(&mut self, more: bool, now_ms: i64) -> Option<Next<'_>> {
        self.make_room(now_ms);
        let turn = self.next_turn(more)?;
        let size_bytes = match turn.ready {
            Some(index) => self.windows[&self.ready[index]].size_bytes,
            None => {
                let queue = self.open_idle.get(turn.open).and_then(|key| self.queues.get(key))?;
                queue.open.as_ref().map(|window| window.held().1)?
            }
        };
        Some(Next { lane: self, turn, size_bytes })
    }

    fn start(&mut self, turn: Turn, records_max: usize, now_ms: i64) -> WindowId {
        const IS_THERE: &str = "a turn is what was just found";
        let id = match turn.ready {
            Some(index) => self.ready.remove(index).expect(IS_THERE),
            None => {
                let key = self.open_idle.remove(turn.open).expect(IS_THERE);
                self.queues.get_mut(&key).expect(IS_THERE).noted_idle = false;
                self.close_open(key, now_ms);
                self.ready.pop_back().expect("a window that may start is ready when it is closed")
            }
        };
        // What is tried again stays as it is.
        let count = if self.windows[&id].is_tried() { usize::MAX } else { self.count as usize };
        self.cut(id, records_max.min(turn.records_max).min(count), now_ms);
        self.note_start(id, now_ms);
        id
    }

    /// Starts what is next, whatever its size.
    #[cfg(test)]
    pub(in crate::trigger) fn start_next(&mut self, more: bool, records_max: usize, now_ms: i64) -> Option<WindowId> {
        Some(self.next(more, now_ms)?.start(records_max, now_ms))
    }

    /// A window is tried: from now on it stands in progress with its attempts.
    fn note_start(&mut self, id: WindowId, now_ms: i64) {
        let held = self.windows.get_mut(&id).expect("a window in hand");
        assert_eq!(held.phase, Phase::Ready, "T2: only the first window of a queue is tried");
        let is_first = !held.is_tried();
        held.state.begin(now_ms);
        held.phase = Phase::InFlight;
        let (key, spilled, records) = (held.queue, std::mem::take(&mut held.spilled), held.places.len());
        if spilled {
            self.unfinished.scatter(&mut held.places);
        }
        let (cuts, hash) = (groups(&held.places), held.key);
        let queue = self.queues.get_mut(&key).expect("a window has a queue");
        assert_eq!(queue.windows.front(), Some(&id), "T2: only the first window of a queue is tried");
        if let (QueueKey::Key(hash), Some(throttle)) = (key, self.spec.per_key.throttle) {
            self.starts.push(hash, throttle, now_ms);
        }
        if spilled {
            queue.spilled_records -= records;
        }
        if is_first {
            self.note_tried(id);
            self.reserve_cuts(id, if spilled { 0 } else { cuts });
        }
        if let Some(hash) = hash.filter(|_| spilled) {
            self.lift_marker(hash);
        }
    }

    /// Keeps the first records of a window and puts the rest behind it, untried.
    fn cut(&mut self, id: WindowId, records_max: usize, now_ms: i64) {
        let Some(held) = self.windows.get_mut(&id).filter(|held| held.places.len() > records_max.max(1)) else {
            return;
        };
        let rest: Vec<Place> = held.places.split_off(records_max.max(1));
        let mut rest = Held { phase: Phase::Queued, is_rest: true, ..held.part(rest) };
        held.size_bytes -= rest.size_bytes;
        held.pass_done(&mut rest);
        let cuts = groups(&rest.all_places());
        if rest.is_tried() && !self.fits(More { windows: 1, cuts, from: rest.name }) {
            // A function that takes one record at a time gets one; what cannot be written down begins anew.
            (rest.state, rest.blocked) = (AttemptState::default(), false);
            let held = self.windows.get_mut(&id).expect("a window in hand");
            held.done.append(&mut rest.done);
        }
        let behind = self.insert_behind(id, rest);
        if self.windows[&behind].is_tried() {
            self.reserve_cuts(behind, cuts);
        }
        if matches!(self.windows[&behind].queue, QueueKey::Alone(_)) {
            self.on_its_own(behind, now_ms);
        }
    }

    /// Puts a window directly behind another one of its queue.
    pub(super) fn insert_behind(&mut self, before: WindowId, held: Held) -> WindowId {
        let id = WindowId(self.next_id);
        self.next_id += 1;
        let queue = self.queues.entry(held.queue).or_default();
        let index = queue.windows.iter().position(|other| *other == before).map_or(0, |index| index + 1);
        queue.windows.insert(index, id);
        let is_tried = held.is_tried();
        // Also where it is not tried any more: what it was part of was carried over.
        self.moved(id, &held.places);
        self.moved(id, &held.done);
        self.windows.insert(id, held);
        if is_tried {
            self.note_tried(id);
        }
        id
    }

    /// What windows wait for has lost its reason: whatever waits may start now. With `unavailable_only`, what waits for
    /// an outage to end.
    pub fn wake(&mut self, unavailable_only: bool, now_ms: i64) {
        let waiting = self.windows.iter().filter_map(|(&id, held)| match held.phase {
            Phase::Waiting(at_ms) if !unavailable_only || held.waits_for_outage() => Some((id, at_ms)),
            _ => None,
        });
        let mut waiting: Vec<(WindowId, i64)> = waiting.collect();
        waiting.sort_unstable();
        for (id, at_ms) in waiting {
            self.timers.remove(&(at_ms, Timer::Window(id)));
            let held = self.windows.get_mut(&id).expect("it was there a moment ago");
            held.state.next_attempt_ms = None;
            self.come_forward(id, now_ms);
        }
    }

    /// Time does not count towards the age of windows from now on, or counts again. Answers whether progress has to say
    /// so: whether there is one with an age.
    pub fn suspend(&mut self, suspended: bool, now_ms: i64) -> bool {
        if self.suspended == suspended {
            return false;
        }
        self.suspended = suspended;
        let mut is_told = false;
        for held in self.windows.values_mut().filter(|held| held.phase != Phase::InFlight) {
            is_told |= held.is_tried();
            if suspended { held.state.suspend(now_ms) } else { held.state.count_again(now_ms) }
        }
        is_told
    }

    /// The next moment at which something may happen by itself, ms since 1970.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<i64> {
        self.timers.first().map(|(at_ms, _)| *at_ms)
    }
}
