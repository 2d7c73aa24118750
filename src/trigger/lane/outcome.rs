//! What came of an attempt, and what follows from it.

use std::collections::{BTreeMap, BTreeSet};

use tripline_storage::Offset;

use super::fit::More;
use super::queue::QueueKey;
use super::{Held, Lane, Phase, Timer, WindowId, in_order};
use crate::function::{ErrorClass, InvocationError};
use crate::trigger::attempt::{ExhaustedReason, Step};
use crate::trigger::unfinished::{Place, UNNUMBERED, groups};

/// What came of an attempt: every record of its window that is not named here is finished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// These go on.
    pub failed: BTreeSet<Offset>,
    /// Why they failed; what follows is decided by its class.
    pub error: Option<InvocationError>,
    /// These are refused for good, each for its own reason. Neighbours with one reason go together.
    pub rejected: BTreeMap<Offset, InvocationError>,
}

impl Outcome {
    /// Every record is finished.
    #[must_use]
    pub fn done() -> Self {
        Self::default()
    }

    /// The records at `failed` go on.
    #[must_use]
    pub fn failed(failed: impl IntoIterator<Item = Offset>, error: InvocationError) -> Self {
        Self { failed: failed.into_iter().collect(), error: Some(error), rejected: BTreeMap::new() }
    }
}

/// Records of a window that were refused for one reason.
struct Refused {
    places: Vec<Place>,
    size_bytes: u64,
    error: InvocationError,
}

impl Lane {
    /// Ends an attempt.
    ///
    /// # Panics
    /// When the window is not in flight, or the outcome names a record that is not in it, or one twice.
    pub fn end(&mut self, id: WindowId, outcome: Outcome, now_ms: i64, random: u64) -> Step {
        let held = self.windows.get_mut(&id).expect("a window in hand");
        assert_eq!(held.phase, Phase::InFlight, "T2: an attempt ends once");
        held.state.running = false;
        let Outcome { failed, mut error, rejected } = outcome;
        if failed.is_empty() && rejected.is_empty() {
            return self.finished(id, now_ms);
        }
        // What each record takes is not held: all take the same.
        let (all_bytes, all) = (held.size_bytes, held.places.len() as u64);
        let share_bytes = |records: usize| (all_bytes * records as u64).div_ceil(all);
        let mut done = Vec::new();
        let mut left = Vec::new();
        let mut refused: Vec<Refused> = Vec::new();
        let mut is_next = false;
        for place in std::mem::take(&mut held.places) {
            if failed.contains(&place.offset) {
                left.push(place);
                is_next = false;
            } else if let Some(error) = rejected.get(&place.offset) {
                match refused.last_mut().filter(|last| is_next && last.error == *error) {
                    Some(last) => last.places.push(place),
                    None => refused.push(Refused { places: vec![place], size_bytes: 0, error: error.clone() }),
                }
                is_next = true;
            } else {
                done.push(place);
                is_next = false;
            }
        }
        let met = left.len() + refused.iter().map(|refused| refused.places.len()).sum::<usize>();
        assert_eq!(met, failed.len() + rejected.len(), "T1: an outcome speaks of the records of its window");
        let whole = done.is_empty();
        held.size_bytes = share_bytes(left.len());
        held.places = left;
        refused.iter_mut().for_each(|refused| refused.size_bytes = share_bytes(refused.places.len()));
        self.finish_part(id, done, &refused);
        let refused = self.refuse(id, refused, &mut error, now_ms, random);
        if self.windows[&id].places.is_empty() {
            let step = self.finished(id, now_ms);
            debug_assert!(refused || step == Step::Done);
            return step;
        }
        let error = error.unwrap_or_else(|| InvocationError::new(ErrorClass::Failed, "", "no reason was given"));
        self.fail(id, &error, whole, now_ms, random)
    }

    /// A window has no unfinished records any more.
    fn finished(&mut self, id: WindowId, now_ms: i64) -> Step {
        let held = self.remove(id);
        self.finish(&held, &held.places);
        self.left(&held, id, now_ms);
        Step::Done
    }

    /// Some records of a window are finished, the others not: where the ranges that this cuts can be written down they
    /// are cut out, else all are finished together at the end.
    fn finish_part(&mut self, id: WindowId, done: Vec<Place>, refused: &[Refused]) {
        if done.is_empty() {
            return;
        }
        let held = &self.windows[&id];
        let later = groups(&held.places) + refused.iter().map(|refused| groups(&refused.places)).sum::<usize>();
        let cuts = groups(&done);
        if held.done.is_empty()
            && (cuts + later <= held.cuts || self.fits(More { windows: 0, cuts: cuts + later, from: held.name }))
        {
            let shell = held.part_of_none();
            self.finish(&shell, &done);
            self.reserve_cuts(id, later);
        } else {
            let held = self.windows.get_mut(&id).expect("a window in hand");
            held.done.extend(done);
        }
    }

    /// Records of a window are refused for good: they go their own way, behind it. What cannot be written down by
    /// itself stays with the window and is refused another time; answers whether all was refused.
    fn refuse(
        &mut self,
        id: WindowId,
        refused: Vec<Refused>,
        error: &mut Option<InvocationError>,
        now_ms: i64,
        random: u64,
    ) -> bool {
        let mut all = true;
        for one in refused.into_iter().rev() {
            if self.fits(More { windows: 1, cuts: groups(&one.places), from: one.places[0].offset }) {
                self.reject(id, one, now_ms, random);
                continue;
            }
            all = false;
            let Refused { places, size_bytes, error: reason } = one;
            let held = self.windows.get_mut(&id).expect("a window in hand");
            held.size_bytes += size_bytes;
            held.places.extend(places);
            held.places.sort_unstable_by_key(|place| place.offset);
            error.get_or_insert_with(|| InvocationError { class: ErrorClass::Failed, ..reason });
        }
        all
    }

    fn reject(&mut self, id: WindowId, refused: Refused, now_ms: i64, random: u64) {
        let Refused { places, size_bytes, error } = refused;
        let mut alone = Held { size_bytes, ..self.windows[&id].part(places) };
        let step = alone.state.end(Err(&error), &self.spec.policies, now_ms, random);
        if self.suspended {
            alone.state.suspend(now_ms);
        }
        // Where errors are not tolerated it waits for its turn, and then for success.
        alone.phase = Phase::Queued;
        alone.blocked |= step.blocks();
        let cuts = groups(&alone.places);
        let other = self.insert_behind(id, alone);
        self.reserve_cuts(other, cuts);
        if let Step::Exhausted { reason } = step {
            self.give_up(other, reason);
        }
        if matches!(self.windows[&other].queue, QueueKey::Alone(_)) {
            self.on_its_own(other, now_ms);
        }
    }

    /// What remains of a window has failed.
    fn fail(&mut self, id: WindowId, error: &InvocationError, whole: bool, now_ms: i64, random: u64) -> Step {
        let halve = match error.class {
            // Which record killed the instance is not known while there are several.
            ErrorClass::Crashed => true,
            ErrorClass::Failed => error.is_payload_too_large() || self.spec.bisect && whole,
            _ => false,
        };
        let policies = self.spec.policies;
        if halve && self.halve(id, error, now_ms) {
            let attempt = self.windows[&id].state.attempt_number();
            return Step::RetryAt { at_ms: now_ms, attempt };
        }
        let held = self.windows.get_mut(&id).expect("a window in hand");
        let step = held.state.end(Err(error), &policies, now_ms, random);
        held.blocked |= step.blocks();
        if self.suspended {
            held.state.suspend(now_ms);
        }
        self.follow(id, step, now_ms);
        step
    }

    /// Makes two windows of one, which spends no attempt. Answers whether there are two records, and bytes to write
    /// them down.
    fn halve(&mut self, id: WindowId, error: &InvocationError, now_ms: i64) -> bool {
        let held = &self.windows[&id];
        let middle = held.places.len() / 2;
        if middle == 0 || !self.fits(More { windows: 1, cuts: groups(&held.all_places()), from: held.name }) {
            return false;
        }
        let held = self.windows.get_mut(&id).expect("a window in hand");
        held.state.note(error);
        if self.suspended {
            held.state.suspend(now_ms);
        }
        let rest = held.places.split_off(middle);
        let mut rest = Held { phase: Phase::Queued, ..held.part(rest) };
        held.size_bytes -= rest.size_bytes;
        held.pass_done(&mut rest);
        let cuts = groups(&rest.all_places());
        let behind = self.insert_behind(id, rest);
        self.reserve_cuts(behind, cuts);
        self.come_forward(id, now_ms);
        // Its turn comes when it is the first of its queue, or now, in order `none`.
        if matches!(self.windows[&behind].queue, QueueKey::Alone(_)) {
            self.on_its_own(behind, now_ms);
        }
        true
    }

    /// A part of a window that stood in no queue stands in none either.
    pub(super) fn on_its_own(&mut self, id: WindowId, now_ms: i64) {
        let Some(held) = self.windows.get_mut(&id) else { return };
        let (before, records) = (held.queue, held.places.len() + held.done.len());
        held.queue = QueueKey::Alone(id.0);
        let queue = held.queue;
        if let Some(old) = self.queues.get_mut(&before) {
            old.windows.retain(|other| *other != id);
            old.forget(records, false);
        }
        let new = self.queues.entry(queue).or_default();
        new.records += records;
        new.windows.push_back(id);
        self.advance(queue, now_ms);
    }

    fn follow(&mut self, id: WindowId, step: Step, now_ms: i64) {
        let until_ms = match step {
            Step::Done => return,
            Step::RetryAt { at_ms, .. } | Step::Blocked { at_ms, .. } => at_ms,
            Step::Throttled { until_ms } => until_ms,
            Step::Outage { probe_at_ms } => probe_at_ms,
            Step::BrokenCode => return self.come_forward(id, now_ms),
            Step::Exhausted { reason } => return self.give_up(id, reason),
        };
        self.wait(id, until_ms);
    }

    fn wait(&mut self, id: WindowId, until_ms: i64) {
        let held = self.windows.get_mut(&id).expect("a window in hand");
        held.phase = Phase::Waiting(until_ms);
        self.timers.insert((until_ms, Timer::Window(id)));
    }

    /// An attempt was not made after all: its window may start again at `at_ms`. Nothing is spent.
    ///
    /// # Panics
    /// When the window is not in flight.
    pub fn postpone(&mut self, id: WindowId, at_ms: i64) {
        let held = self.windows.get_mut(&id).expect("a window in hand");
        assert_eq!(held.phase, Phase::InFlight, "T2: an attempt ends once");
        held.state.running = false;
        if self.suspended {
            held.state.suspend(at_ms);
        }
        if let (QueueKey::Key(hash), Some(_)) = (held.queue, self.spec.per_key.throttle) {
            self.starts.take_back(hash);
        }
        self.wait(id, at_ms);
    }

    /// The next window whose attempts are spent: give it up, then [`Lane::settle`] it.
    pub fn next_given_up(&mut self) -> Option<(WindowId, ExhaustedReason)> {
        while let Some(id) = self.given_up.pop_front() {
            let Some(held) = self.windows.get_mut(&id) else { continue };
            if let Phase::GivenUp(reason) = held.phase {
                held.phase = Phase::Settling(reason);
                return Some((id, reason));
            }
        }
        None
    }

    /// A window that was given up is finished: its records are dead letters or dropped.
    ///
    /// # Panics
    /// When it was not given up.
    pub fn settle(&mut self, id: WindowId, now_ms: i64) {
        let is_settling = matches!(self.windows[&id].phase, Phase::Settling(_));
        assert!(is_settling, "T1: only what was given up is settled");
        self.finished(id, now_ms);
    }

    pub(super) fn give_up(&mut self, id: WindowId, reason: ExhaustedReason) {
        let Some(held) = self.windows.get_mut(&id) else { return };
        if let Phase::Waiting(at_ms) = held.phase {
            self.timers.remove(&(at_ms, Timer::Window(id)));
        }
        held.phase = Phase::GivenUp(reason);
        self.given_up.push_back(id);
    }

    /// Gives up whatever was tried and waits for its next attempt. Answers how many records that were.
    pub fn skip(&mut self) -> usize {
        let waits = |held: &Held| matches!(held.phase, Phase::Waiting(_) | Phase::Ready | Phase::Queued);
        let waiting: Vec<WindowId> = self.tried.iter().copied().filter(|id| waits(&self.windows[id])).collect();
        let mut skipped = 0;
        for id in waiting {
            skipped += self.windows[&id].places.len();
            self.give_up(id, ExhaustedReason::Skipped);
        }
        skipped
    }

    /// Takes a window out of the lane; its queue keeps its place until [`Lane::left`].
    fn remove(&mut self, id: WindowId) -> Held {
        let held = self.windows.remove(&id).expect("a window in hand");
        self.release_reserved(id, &held);
        held
    }

    /// The records at `places`, of `held`, are finished, with those that were finished before and wait for them.
    fn finish(&mut self, held: &Held, places: &[Place]) {
        if held.done.is_empty() {
            return self.finish_places(held, places);
        }
        self.finish_places(held, &in_order([places, &held.done].concat()));
    }

    fn finish_places(&mut self, held: &Held, places: &[Place]) {
        assert!(!held.spilled, "T1: what is behind a marker is not tried");
        self.held_records -= places.len();
        self.release(held.queue, places.len());
        if places.iter().all(|place| place.number != UNNUMBERED) {
            return self.unfinished.finish(places.iter().copied());
        }
        let (waiting, numbered): (Vec<Place>, Vec<Place>) = places.iter().partition(|place| place.number == UNNUMBERED);
        self.unfinished.finish(numbered);
        self.finish_unnumbered(&waiting);
    }

    pub(super) fn release(&mut self, key: QueueKey, records: usize) {
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.forget(records, false);
        }
    }

    /// A window is gone from its queue: the next one comes forward.
    pub(super) fn left(&mut self, held: &Held, id: WindowId, now_ms: i64) {
        if let Some(queue) = self.queues.get_mut(&held.queue) {
            // Usually the first one, of many.
            if queue.windows.front() == Some(&id) {
                queue.windows.pop_front();
            } else {
                queue.windows.retain(|other| *other != id);
            }
        }
        self.advance(held.queue, now_ms);
        if let Some(key) = held.key {
            self.lift_marker(key);
        }
    }
}
