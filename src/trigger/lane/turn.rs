//! Whose turn it is: which window of a queue may start, and when.

use super::queue::{Queue, QueueKey};
use super::{Held, Lane, Phase, TRIED_BYTES, Timer, WindowId};
use crate::trigger::attempt::AttemptState;
use crate::trigger::progress::ENCODED_BYTES_MAX;

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
        let Some(queue) = self.queues.get_mut(&key) else { return };
        let Some(&id) = queue.windows.front() else {
            if !queue.is_open() && queue.starts.is_empty() {
                self.queues.remove(&key);
            } else {
                self.note_idle(key);
            }
            return;
        };
        let held = self.windows.get_mut(&id).expect("a queue's windows are held");
        if held.phase != Phase::Queued {
            return;
        }
        let throttled = self.spec.per_key.throttle.and_then(|throttle| queue.may_start_at(throttle, now_ms));
        let at_ms = held.state.next_attempt_ms.max(throttled).filter(|&at_ms| at_ms > now_ms);
        match at_ms {
            Some(at_ms) => {
                held.phase = Phase::Waiting(at_ms);
                self.timers.insert((at_ms, Timer::Window(id)));
            }
            None => {
                held.phase = Phase::Ready;
                self.ready.push_back(id);
            }
        }
    }

    /// Closes and readies what its time has come for.
    pub(super) fn expire(&mut self, now_ms: i64) {
        while let Some(&(at_ms, timer)) = self.timers.first()
            && at_ms <= now_ms
        {
            self.timers.pop_first();
            match timer {
                Timer::Window(id) => {
                    if let Some(held) = self.windows.get_mut(&id) {
                        held.phase = Phase::Ready;
                        self.ready.push_back(id);
                    }
                }
                Timer::Open(key) => self.close_open(key, now_ms),
                Timer::Forget(key) => {
                    if let Some(queue) = self.queues.get_mut(&key) {
                        queue.forget_starts();
                        self.advance(key, now_ms);
                    }
                }
            }
        }
    }

    /// Whether a window could start now. `more`: there is something to read that the lane would take; an open window whose
    /// interval is 0 waits for it.
    pub fn is_startable(&mut self, more: bool, now_ms: i64) -> bool {
        self.expire(now_ms);
        self.drop_stale();
        self.fits_one_more() && (!self.ready.is_empty() || (!more && !self.open_idle.is_empty()))
    }

    pub(super) fn drop_stale(&mut self) {
        let is_idle = |queue: &Queue| queue.is_open() && queue.windows.is_empty();
        while let Some(key) = self.open_idle.front() {
            if self.queues.get(key).is_some_and(is_idle) {
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

    /// Whether one more window that is being tried can be written down.
    pub(super) fn fits_one_more(&self) -> bool {
        self.encoded_bytes + TRIED_BYTES <= ENCODED_BYTES_MAX || self.tried == 0
    }

    /// How large the window is that would start next, in bytes of its records; `None` when [`Lane::is_startable`] is false.
    pub fn next_size_bytes(&mut self, more: bool, now_ms: i64) -> Option<u64> {
        if !self.is_startable(more, now_ms) {
            return None;
        }
        if let Some(id) = self.ready.front() {
            return Some(self.windows[id].size_bytes);
        }
        let queue = self.open_idle.front().and_then(|key| self.queues.get(key))?;
        queue.open.as_ref().map(|window| window.held().1)
    }

    /// Starts an attempt on the window whose turn it is, with at most `records_max` records; what is cut off waits behind it.
    pub fn start(&mut self, more: bool, records_max: usize, now_ms: i64) -> Option<WindowId> {
        if !self.is_startable(more, now_ms) {
            return None;
        }
        if self.ready.is_empty() {
            let key = self.open_idle.pop_front()?;
            self.queues.get_mut(&key)?.noted_idle = false;
            self.close_open(key, now_ms);
        }
        let id = self.ready.pop_front()?;
        self.cut(id, records_max);
        let throttle = self.spec.per_key.throttle;
        let held = self.windows.get_mut(&id)?;
        self.tried += usize::from(held.state.first_attempt_ms.is_none());
        self.encoded_bytes += if held.state.first_attempt_ms.is_none() { TRIED_BYTES / 2 } else { 0 };
        held.state.begin(now_ms);
        held.phase = Phase::InFlight;
        if let Some(throttle) = throttle.filter(|_| held.key.is_some()) {
            let key = held.queue;
            let queue = self.queues.get_mut(&key)?;
            if let Some(before_ms) = queue.started(throttle, now_ms) {
                self.timers.remove(&(before_ms, Timer::Forget(key)));
            }
            queue.forget_at_ms(throttle).map(|at_ms| self.timers.insert((at_ms, Timer::Forget(key))));
        }
        Some(id)
    }

    /// Keeps the first records of a window and puts the rest behind it, untried.
    pub(super) fn cut(&mut self, id: WindowId, records_max: usize) {
        let Some(held) = self.windows.get_mut(&id).filter(|held| held.places.len() > records_max.max(1)) else {
            return;
        };
        let rest = held.places.split_off(records_max.max(1));
        let name = rest[0].offset;
        let state = AttemptState::default();
        let rest = Held { places: rest, state, phase: Phase::Queued, name, ..held.clone_empty() };
        self.insert_behind(id, rest);
    }

    /// Puts a window directly behind another one of its queue.
    pub(super) fn insert_behind(&mut self, before: WindowId, held: Held) -> WindowId {
        let id = WindowId(self.next_id);
        self.next_id += 1;
        let queue = self.queues.entry(held.queue).or_default();
        let index = queue.windows.iter().position(|other| *other == before).map_or(0, |index| index + 1);
        queue.windows.insert(index, id);
        self.tried += usize::from(held.state.first_attempt_ms.is_some());
        if let Some(restoring) = &mut self.restoring {
            restoring.moved(&held.places, id);
        }
        self.windows.insert(id, held);
        id
    }

    /// What windows wait for has lost its reason: whatever waits may start now. With `unavailable_only`, what waits for an
    /// outage to end.
    pub fn wake(&mut self, unavailable_only: bool) {
        let waiting = self.windows.iter().filter_map(|(&id, held)| match held.phase {
            Phase::Waiting(at_ms) if !unavailable_only || held.waits_for_outage() => Some((id, at_ms)),
            _ => None,
        });
        let mut waiting: Vec<(WindowId, i64)> = waiting.collect();
        waiting.sort_unstable();
        for (id, at_ms) in waiting {
            self.timers.remove(&(at_ms, Timer::Window(id)));
            if let Some(held) = self.windows.get_mut(&id) {
                held.phase = Phase::Ready;
                self.ready.push_back(id);
            }
        }
    }

    /// Time does not count towards the age of windows from now on, or counts again.
    pub fn suspend(&mut self, suspended: bool, now_ms: i64) {
        if self.suspended == suspended {
            return;
        }
        self.suspended = suspended;
        for held in self.windows.values_mut().filter(|held| held.phase != Phase::InFlight) {
            if suspended { held.state.suspend(now_ms) } else { held.state.count_again(now_ms) }
        }
    }

    /// The next moment at which something may happen by itself, ms since 1970.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<i64> {
        self.timers.first().map(|(at_ms, _)| *at_ms)
    }
}
