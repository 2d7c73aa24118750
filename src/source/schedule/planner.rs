//! Which ticks are due. Pure: definitions, positions and clock readings go in, ticks come out.
//!
//! One heap holds the next event of every schedule; whoever acts on it needs one timer. A tick is *due* when the wall
//! clock has come to it, and *missed* when the clock came past it while nobody looked: the broker was down, the machine
//! slept, or the clock was set forward. The planner sees the last two by comparing how far the wall clock and the
//! monotonic clock have gone since the last look. Ticks that come due while it looks are all done, however late a busy
//! machine looks.
//!
//! | the wall clock | what follows |
//! |---|---|
//! | runs, also a little fast or slow | every tick is done |
//! | goes forward by more than [`LATE_MAX_S`] at once | ticks in between are missed: see [`CatchUp`] |
//! | goes back | no tick that is done is done again; ticks that were left out as missed come when they come |

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use super::spec::{CatchUp, ScheduleSpec, Timing};
use super::tick::Tick;
use crate::broker::state::DoneTicks;

/// A tick that is at most so many seconds late is on time, and a wall clock that goes forward by at most so much ran.
pub const LATE_MAX_S: i64 = 10;
/// A wall clock that shows less, in seconds since 1970, was not set: it begins in 1970 where nothing keeps it.
const SET_FROM_S: i64 = 1_672_531_200;
/// The wall clock is looked at at least so often, ms: it may have been set.
pub const LOOK_MAX_MS: u64 = 60_000;
/// The first and the longest wait before a tick is tried again whose topic took no records, ms.
pub const RETRY_MIN_MS: i64 = 1_000;
/// See [`RETRY_MIN_MS`].
pub const RETRY_MAX_MS: i64 = 60_000;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The wall clock: ms since 1970. May jump.
    pub wall_ms: i64,
    /// A clock that only goes forward, and stands still while the machine sleeps: ms since some moment.
    pub monotonic_ms: i64,
}

/// How far a schedule has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Ticks up to here are not its own: it was made, changed or resumed then. Ms since 1970.
    pub since_ms: i64,
    /// The tick that was done last. Not the latest one, when the clock was ahead before.
    pub fired: Option<Tick>,
    /// All that are done.
    pub done: DoneTicks,
    /// A tick that was begun and is known not to be in its topic.
    pub pending: Option<Tick>,
}

impl Position {
    /// The end of what is settled when the wall clock shows `wall_ms`: ticks up to here are done, were left out, or
    /// were never its own. Seconds since 1970.
    #[must_use]
    pub fn settled_s(&self, wall_ms: i64) -> i64 {
        let since_s = self.since_s(wall_ms);
        self.done.end_at(wall_ms.div_euclid(1000)).map_or(since_s, |end_s| end_s.max(since_s))
    }

    /// Ticks up to here are not its own when the wall clock shows `wall_ms`; seconds since 1970. A clock that is well
    /// behind its beginning was set back since, nobody knows when: its own is what comes from now on, and what is on
    /// time. One that was never set has no ticks.
    fn since_s(&self, wall_ms: i64) -> i64 {
        let late_ms = LATE_MAX_S * 1000;
        let is_set_back = self.since_ms.saturating_sub(wall_ms) > late_ms;
        let since_ms = if is_set_back { wall_ms.saturating_sub(late_ms) } else { self.since_ms };
        since_ms.div_euclid(1000).max(SET_FROM_S)
    }

    /// The first tick after `after_s` that is not done.
    #[must_use]
    pub fn next_after(&self, timing: &Timing, after_s: i64) -> Option<Tick> {
        let mut tick = timing.next_after(after_s)?;
        while let Some(end_s) = self.done.end_of(tick.unix_s()) {
            tick = timing.next_after(end_s)?;
        }
        Some(tick)
    }
}

/// Ticks up to here are past; not one whose event is still delayed. Seconds since 1970.
#[must_use]
pub fn past_s(spec: &ScheduleSpec, wall_ms: i64) -> i64 {
    let wall_s = wall_ms.div_euclid(1000);
    let jitter_s = spec.timing.jitter.as_secs().cast_signed();
    let last = spec.timing.last_in(wall_s.saturating_sub(jitter_s + 1), wall_s);
    last.filter(|tick| spec.fire_ms(*tick) > wall_ms).map_or(wall_s, |tick| tick.unix_s() - 1)
}

/// Whether ticks were left out between this one and the last one before it that is done.
#[must_use]
pub fn was_left_out_before(done: &DoneTicks, timing: &Timing, tick: Tick) -> bool {
    let end_s = done.end_at(tick.unix_s());
    end_s.and_then(|end_s| timing.next_after(end_s)).is_some_and(|next| next < tick)
}

/// A tick to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The schedule.
    pub id: Uuid,
    /// The tick.
    pub tick: Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It comes when its time comes.
    Ahead,
    /// It was missed and is made up for.
    Missed,
    /// It was begun before.
    Begun,
}

#[derive(Clone, Copy, Debug)]
struct Next {
    tick: Tick,
    fire_ms: i64,
    kind: Kind,
    /// Which entry of the heap speaks of it.
    entry: u64,
}

#[derive(Debug)]
struct Plan {
    spec: Arc<ScheduleSpec>,
    position: Position,
    /// Ticks up to here are done, were left out, or were never its own. Seconds since 1970.
    settled_s: i64,
    /// Ticks up to here were missed if they are not done; ms since 1970.
    missed_to_ms: i64,
    /// `None` while a tick is in hand, and after the last one.
    next: Option<Next>,
    /// Tries of the pending tick that failed.
    failures: u32,
}

/// All schedules that run.
#[derive(Debug)]
pub struct Planner {
    plans: HashMap<Uuid, Plan>,
    heap: BinaryHeap<Reverse<(i64, u64, Uuid)>>,
    entries: u64,
    last: Reading,
    /// Since when the clock runs without a jump, ms since 1970: what was due before and is not done was missed.
    runs_since_ms: i64,
    /// The latest wall clock time that plans depend on, ms since 1970: when the clock goes back behind it, they are
    /// made anew.
    newest_mark_ms: i64,
    skipped: Vec<Uuid>,
}

impl Planner {
    /// Begins to look at `now`: all that was due before and is not done was missed.
    #[must_use]
    pub fn start(now: Reading) -> Self {
        Self {
            plans: HashMap::new(),
            heap: BinaryHeap::new(),
            entries: 0,
            last: now,
            runs_since_ms: now.wall_ms,
            newest_mark_ms: now.wall_ms,
            skipped: Vec::new(),
        }
    }

    /// Plans a schedule, in place of what was planned for it. What was left out stays so, and a tick that waited for
    /// its topic has waited.
    pub fn put(&mut self, id: Uuid, spec: Arc<ScheduleSpec>, position: Position, now: Reading) {
        self.put_with(id, spec, position, now, i64::MIN);
    }

    /// As [`Planner::put`], of a schedule that stood still until now, as its topic was not there: it has missed what
    /// was due and is not done.
    pub fn put_late(&mut self, id: Uuid, spec: Arc<ScheduleSpec>, position: Position, now: Reading) {
        self.put_with(id, spec, position, now, now.wall_ms);
    }

    fn put_with(&mut self, id: Uuid, spec: Arc<ScheduleSpec>, position: Position, now: Reading, missed_to_ms: i64) {
        self.observe(now);
        self.newest_mark_ms = self.newest_mark_ms.max(now.wall_ms);
        let was = self.plans.get(&id);
        let missed_to_ms = was.map_or(missed_to_ms, |was| was.missed_to_ms);
        let settled_s = was.map_or(i64::MIN, |was| was.settled_s).max(position.settled_s(now.wall_ms));
        let failures = was.filter(|was| was.position.pending == position.pending).map_or(0, |was| was.failures);
        let plan = Plan { spec, position, settled_s, missed_to_ms, next: None, failures };
        self.plans.insert(id, plan);
        self.plan(id);
    }

    /// Forgets a schedule.
    pub fn remove(&mut self, id: Uuid) {
        self.plans.remove(&id);
    }

    /// How far a schedule has come.
    #[must_use]
    pub fn position(&self, id: Uuid) -> Option<Position> {
        self.plans.get(&id).map(|plan| plan.position.clone())
    }

    /// Takes what is due, the longest due first, at most one tick of a schedule and `max` in all. Each is in hand until
    /// [`Planner::fired`] or [`Planner::failed`] says what became of it.
    pub fn look(&mut self, now: Reading, max: usize) -> Vec<Due> {
        self.observe(now);
        let mut due = Vec::new();
        while due.len() < max
            && let Some(Reverse((fire_ms, entry, id))) = self.heap.peek().copied()
            && fire_ms <= now.wall_ms
        {
            self.heap.pop();
            let missed_to_ms = self.missed_to_ms(id);
            let Some(plan) = self.plans.get_mut(&id) else { continue };
            let Some(next) = plan.next.filter(|next| next.entry == entry) else { continue };
            if next.kind == Kind::Ahead && next.fire_ms <= missed_to_ms {
                // Nobody looked when its time came.
                self.plan(id);
                continue;
            }
            plan.next = None;
            plan.position.pending = Some(next.tick);
            due.push(Due { id, tick: next.tick });
        }
        due
    }

    /// A tick in hand is done. Answers whether ticks before it were left out.
    pub fn fired(&mut self, due: Due) -> bool {
        let wall_ms = self.last.wall_ms;
        let Some(plan) = self.plans.get_mut(&due.id) else { return false };
        let (position, tick_s) = (&mut plan.position, due.tick.unix_s());
        let left_out = was_left_out_before(&position.done, &plan.spec.timing, due.tick);
        if left_out {
            position.done.add(tick_s, tick_s);
        } else {
            position.done.extend_to(tick_s);
        }
        (position.fired, position.pending) = (Some(due.tick), None);
        if std::mem::take(&mut plan.failures) > 0 {
            // A topic that takes no records is no better than a broker that is down.
            plan.missed_to_ms = wall_ms;
            self.newest_mark_ms = self.newest_mark_ms.max(wall_ms);
        }
        self.plan(due.id);
        left_out
    }

    /// A tick in hand could not be done, and is known not to be: it comes again after a while.
    pub fn failed(&mut self, due: Due) {
        let now_ms = self.last.wall_ms;
        let Some(plan) = self.plans.get_mut(&due.id) else { return };
        let wait_ms = RETRY_MAX_MS.min(RETRY_MIN_MS << plan.failures.min(16));
        plan.failures = plan.failures.saturating_add(1);
        self.newest_mark_ms = self.newest_mark_ms.max(now_ms);
        self.set_next(due.id, due.tick, now_ms.saturating_add(wait_ms), Kind::Begun);
    }

    /// How long nobody needs to look, ms; `None` without schedules. One that is over may come when the clock is set
    /// back: its last tick was left out by a clock that was ahead.
    #[must_use]
    pub fn wait_ms(&mut self, now: Reading) -> Option<u64> {
        while let Some(Reverse((fire_ms, entry, id))) = self.heap.peek() {
            if self.is_current(*id, *entry) {
                let wait_ms = fire_ms.saturating_sub(now.wall_ms).max(0).unsigned_abs();
                return Some(wait_ms.min(LOOK_MAX_MS));
            }
            self.heap.pop();
        }
        (!self.plans.is_empty()).then_some(LOOK_MAX_MS)
    }

    /// Schedules that have left out missed ticks since this was asked last, once for every time.
    pub fn take_skipped(&mut self) -> Vec<Uuid> {
        std::mem::take(&mut self.skipped)
    }

    /// The tick that a schedule does next, and when, ms since 1970; `None` while one is in hand, and after the last.
    #[must_use]
    pub fn next(&self, id: Uuid) -> Option<(Tick, i64)> {
        self.plans.get(&id)?.next.map(|next| (next.tick, next.fire_ms))
    }

    /// How many schedules are planned.
    #[must_use]
    pub fn len(&self) -> usize {
        self.plans.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.plans.is_empty()
    }

    /// Compares the clocks with the last look.
    fn observe(&mut self, now: Reading) {
        let went_ms = now.wall_ms.saturating_sub(self.last.wall_ms);
        let lived_ms = now.monotonic_ms.saturating_sub(self.last.monotonic_ms).max(0);
        self.last = now;
        if went_ms.saturating_sub(lived_ms) > LATE_MAX_S * 1000 {
            self.runs_since_ms = now.wall_ms;
            self.newest_mark_ms = self.newest_mark_ms.max(now.wall_ms);
        }
        if now.wall_ms < self.newest_mark_ms {
            // It was set back since the last look: what came after that comes late.
            self.go_back(now.wall_ms, lived_ms.min(LOOK_MAX_MS.cast_signed()));
        }
    }

    /// What was planned by a clock that has since gone back is planned anew.
    fn go_back(&mut self, now_ms: i64, lived_ms: i64) {
        let wall_ms = now_ms.saturating_sub(lived_ms);
        self.runs_since_ms = self.runs_since_ms.min(wall_ms);
        self.newest_mark_ms = wall_ms;
        let ids: Vec<Uuid> = self.plans.keys().copied().collect();
        for id in ids {
            let Some(plan) = self.plans.get_mut(&id) else { continue };
            plan.missed_to_ms = plan.missed_to_ms.min(wall_ms);
            plan.settled_s = plan.settled_s.min(past_s(&plan.spec, wall_ms)).max(plan.position.since_s(now_ms));
            let is_in_hand = plan.next.is_none() && plan.position.pending.is_some();
            // It is planned when it is back.
            if !is_in_hand {
                self.plan(id);
            }
        }
    }

    fn missed_to_ms(&self, id: Uuid) -> i64 {
        self.plans.get(&id).map_or(i64::MIN, |plan| plan.missed_to_ms.max(self.runs_since_ms))
    }

    /// Finds what a schedule does next.
    fn plan(&mut self, id: Uuid) {
        let missed_to_ms = self.missed_to_ms(id);
        let now_ms = self.last.wall_ms;
        let Some(plan) = self.plans.get_mut(&id) else { return };
        plan.next = None;
        if let Some(tick) = plan.position.pending {
            self.set_next(id, tick, now_ms, Kind::Begun);
            return;
        }
        let (made_up, skipped) = plan.settle(missed_to_ms);
        let next = match made_up {
            // One whose event is still delayed is missed only if nobody looks when that comes.
            Some(tick) if plan.spec.fire_ms(tick) > now_ms => Some((tick, Kind::Ahead)),
            Some(tick) => Some((tick, Kind::Missed)),
            None => plan.position.next_after(&plan.spec.timing, plan.settled_s).map(|tick| (tick, Kind::Ahead)),
        };
        let spec = Arc::clone(&plan.spec);
        if skipped {
            self.skipped.push(id);
        }
        if let Some((tick, kind)) = next {
            self.set_next(id, tick, spec.fire_ms(tick), kind);
        }
    }

    fn set_next(&mut self, id: Uuid, tick: Tick, fire_ms: i64, kind: Kind) {
        self.entries += 1;
        let entry = self.entries;
        let Some(plan) = self.plans.get_mut(&id) else { return };
        plan.next = Some(Next { tick, fire_ms, kind, entry });
        self.heap.push(Reverse((fire_ms, entry, id)));
        if self.heap.len() > 2 * self.plans.len() + 64 {
            let heap = std::mem::take(&mut self.heap);
            self.heap = heap.into_iter().filter(|Reverse((_, entry, id))| self.is_current(*id, *entry)).collect();
        }
    }

    fn is_current(&self, id: Uuid, entry: u64) -> bool {
        self.plans.get(&id).and_then(|plan| plan.next).is_some_and(|next| next.entry == entry)
    }
}

impl Plan {
    /// Decides about what was missed. Answers the tick that is made up for, if there is one, and whether others are
    /// left out; neither again when it is asked again.
    fn settle(&mut self, missed_to_ms: i64) -> (Option<Tick>, bool) {
        let (timing, missed_to_s) = (&self.spec.timing, missed_to_ms.div_euclid(1000));
        let settled_s = self.settled_s.max(self.position.since_s(missed_to_ms));
        // A tick that is missed by its own time may still be ahead by its jitter: here it is dealt with.
        self.settled_s = settled_s.max(missed_to_s);
        let is_missed = |tick: &Tick| tick.unix_s() <= missed_to_s;
        let Some(first) = self.position.next_after(timing, settled_s).filter(is_missed) else {
            return (None, false);
        };
        // Jitter delays an event to just before the next tick at most: only the last can be on time.
        let last = timing.last_in(settled_s, missed_to_s).unwrap_or(first);
        let on_time_ms = missed_to_ms.saturating_sub(LATE_MAX_S * 1000);
        let is_on_time = self.spec.fire_ms(last) >= on_time_ms;
        let is_done = self.position.done.end_of(last.unix_s()).is_some();
        if !is_done && (self.spec.catch_up == CatchUp::Once || is_on_time) {
            // Until it is done, it is missed.
            self.settled_s = last.unix_s() - 1;
            (Some(last), first != last)
        } else {
            (None, true)
        }
    }
}

#[cfg(test)]
mod tests;
