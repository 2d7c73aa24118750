//! What came of an attempt, and what follows from it.

use tripline_storage::Offset;

use super::queue::QueueKey;
use super::restore::UNNUMBERED;
use super::{Held, Lane, Phase, Timer, WindowId};
use crate::function::{ErrorClass, InvocationError};
use crate::trigger::attempt::{ExhaustedReason, Step};
use crate::trigger::unfinished::Place;

/// What came of an attempt: every record of its window that is not named here is finished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// These go on, ascending.
    pub failed: Vec<Offset>,
    /// Why they failed; what follows is decided by its class.
    pub error: Option<InvocationError>,
    /// These are refused for good, each by itself.
    pub rejected: Vec<(Offset, InvocationError)>,
}

impl Outcome {
    /// Every record is finished.
    #[must_use]
    pub fn done() -> Self {
        Self::default()
    }

    /// The records at `failed`, ascending, go on.
    #[must_use]
    pub const fn failed(failed: Vec<Offset>, error: InvocationError) -> Self {
        Self { failed, error: Some(error), rejected: Vec::new() }
    }
}

impl Lane {
    /// Ends an attempt.
    ///
    /// # Panics
    /// When the window is not in flight.
    pub fn end(&mut self, id: WindowId, outcome: Outcome, now_ms: i64, random: u64) -> Step {
        assert_eq!(self.windows[&id].phase, Phase::InFlight, "T2: an attempt ends once");
        let held = self.windows.get_mut(&id).expect("a window in hand");
        held.state.running = false;
        let Outcome { failed, error, rejected } = outcome;
        let is_failed = |place: &Place| failed.binary_search(&place.offset).is_ok();
        let is_rejected = |place: &Place| rejected.iter().any(|(offset, _)| *offset == place.offset);
        let (open, done): (Vec<Place>, Vec<Place>) =
            std::mem::take(&mut held.places).into_iter().partition(|place| is_failed(place) || is_rejected(place));
        let (refused, left): (Vec<Place>, Vec<Place>) = open.into_iter().partition(is_rejected);
        held.places = left;
        let shell = held.clone_empty();
        self.finish(&shell, &done);
        for place in refused.into_iter().rev() {
            let reason = rejected.iter().find(|(offset, _)| *offset == place.offset).map(|(_, error)| error);
            self.reject(id, place, reason, now_ms, random);
        }
        if self.windows[&id].places.is_empty() {
            let held = self.remove(id);
            self.left(&held, id, now_ms);
            return Step::Done;
        }
        let whole = done.is_empty();
        let error = error.unwrap_or_else(|| InvocationError::new(ErrorClass::Failed, "", "no reason was given"));
        self.fail(id, &error, whole, now_ms, random)
    }

    /// One record of a window is refused for good: it goes its own way.
    pub(super) fn reject(
        &mut self,
        id: WindowId,
        place: Place,
        error: Option<&InvocationError>,
        now_ms: i64,
        random: u64,
    ) {
        let held = &self.windows[&id];
        let mut alone = Held { places: vec![place], name: place.offset, ..held.clone_empty() };
        let unknown = InvocationError::new(ErrorClass::Rejected, "", "");
        let step = alone.state.end(Err(error.unwrap_or(&unknown)), &self.spec.policies, now_ms, random);
        // Where errors are not tolerated it waits for its turn, and then for success.
        alone.phase = Phase::Queued;
        let other = self.insert_behind(id, alone);
        if let Step::Exhausted { reason } = step {
            self.give_up(other, reason);
        }
    }

    /// What remains of a window has failed.
    pub(super) fn fail(
        &mut self,
        id: WindowId,
        error: &InvocationError,
        whole: bool,
        now_ms: i64,
        random: u64,
    ) -> Step {
        let halve = match error.class {
            // Which record killed the instance is not known while there are several.
            ErrorClass::Crashed => true,
            ErrorClass::Failed => self.spec.bisect && whole,
            _ => false,
        };
        let policies = self.spec.policies;
        let held = self.windows.get_mut(&id).expect("a window in hand");
        if halve && held.places.len() > 1 {
            held.state.note(error);
            let rest = held.places.split_off(held.places.len() / 2);
            let (name, kept) = (rest[0].offset, held.clone_empty());
            held.phase = Phase::Ready;
            self.ready.push_back(id);
            // Its turn comes when it is the first of its queue, or now, in order `none`.
            let behind = self.insert_behind(id, Held { places: rest, name, phase: Phase::Queued, ..kept });
            if matches!(self.windows[&behind].queue, QueueKey::Alone(_)) {
                self.on_its_own(behind, now_ms);
            }
            let attempt = self.windows[&id].state.attempt_number();
            return Step::RetryAt { at_ms: now_ms, attempt };
        }
        let step = held.state.end(Err(error), &policies, now_ms, random);
        if self.suspended {
            held.state.suspend(now_ms);
        }
        self.follow(id, step);
        step
    }

    /// A part of a window that stood in no queue stands in none either.
    pub(super) fn on_its_own(&mut self, id: WindowId, now_ms: i64) {
        let Some(held) = self.windows.get_mut(&id) else { return };
        let (before, records) = (held.queue, held.places.len());
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

    pub(super) fn follow(&mut self, id: WindowId, step: Step) {
        let held = self.windows.get_mut(&id).expect("a window in hand");
        let until_ms = match step {
            Step::Done => return,
            Step::RetryAt { at_ms, .. } | Step::Blocked { at_ms, .. } => at_ms,
            Step::Throttled { until_ms } => until_ms,
            Step::Outage { probe_at_ms } => probe_at_ms,
            Step::BrokenCode => {
                held.phase = Phase::Ready;
                return self.ready.push_front(id);
            }
            Step::Exhausted { reason } => return self.give_up(id, reason),
        };
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
        held.phase = Phase::Waiting(at_ms);
        self.timers.insert((at_ms, Timer::Window(id)));
    }

    /// The next window whose attempts are spent: give it up, then [`Lane::settle`] it.
    pub fn next_given_up(&mut self) -> Option<(WindowId, ExhaustedReason)> {
        while let Some(id) = self.given_up.pop_front() {
            let Some(held) = self.windows.get_mut(&id) else { continue };
            if let Phase::GivenUp(reason) = held.phase {
                held.phase = Phase::Settling;
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
        assert_eq!(self.windows[&id].phase, Phase::Settling, "T1: only what was given up is settled");
        let held = self.remove(id);
        self.finish(&held, &held.places);
        self.left(&held, id, now_ms);
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
        let waiting = self.windows.iter().filter_map(|(&id, held)| match held.phase {
            Phase::Waiting(at_ms) if held.state.first_attempt_ms.is_some() => Some((id, at_ms)),
            _ => None,
        });
        let mut waiting: Vec<(WindowId, i64)> = waiting.collect();
        waiting.sort_unstable();
        let mut skipped = 0;
        for (id, _) in waiting {
            skipped += self.windows[&id].places.len();
            self.give_up(id, ExhaustedReason::Skipped);
        }
        skipped
    }

    /// Takes a window out of the lane; its queue keeps its place until [`Lane::left`].
    pub(super) fn remove(&mut self, id: WindowId) -> Held {
        let held = self.windows.remove(&id).expect("a window in hand");
        self.tried -= usize::from(held.state.first_attempt_ms.is_some());
        held
    }

    /// The records at `places`, of `held`, are finished.
    pub(super) fn finish(&mut self, held: &Held, places: &[Place]) {
        self.held_records -= places.len();
        self.release(held.queue, places.len(), held.spilled);
        if held.spilled {
            return;
        }
        let (waiting, numbered): (Vec<Place>, Vec<Place>) = places.iter().partition(|place| place.number == UNNUMBERED);
        self.unfinished.finish(numbered);
        self.finish_unnumbered(&waiting);
    }

    pub(super) fn release(&mut self, key: QueueKey, records: usize, spilled: bool) {
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.forget(records, spilled);
        }
    }

    /// A window is gone from its queue: the next one comes forward.
    pub(super) fn left(&mut self, held: &Held, id: WindowId, now_ms: i64) {
        if let Some(queue) = self.queues.get_mut(&held.queue) {
            queue.windows.retain(|other| *other != id);
        }
        self.advance(held.queue, now_ms);
        if let Some(key) = held.key {
            self.lift_marker(key);
        }
    }
}
