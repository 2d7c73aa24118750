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
//! | goes back | no tick at or before the last one is done again; ticks that were left out as missed come when they come |

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use super::spec::{CatchUp, ScheduleSpec};
use super::tick::Tick;

/// A tick that is at most so many seconds late is on time, and a wall clock that goes forward by at most so much ran.
pub const LATE_MAX_S: i64 = 10;
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Ticks up to here are not its own: it was made, changed or resumed then. Ms since 1970.
    pub since_ms: i64,
    /// The last tick that is done.
    pub fired: Option<Tick>,
    /// A tick that was begun and is known not to be in its topic.
    pub pending: Option<Tick>,
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
    pub fn put(&mut self, id: Uuid, spec: Arc<ScheduleSpec>, position: Position) {
        let was = self.plans.get(&id);
        let missed_to_ms = was.map_or(i64::MIN, |was| was.missed_to_ms);
        let failures = was.filter(|was| was.position.pending == position.pending).map_or(0, |was| was.failures);
        let plan = Plan { spec, position, missed_to_ms, next: None, failures };
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
        self.plans.get(&id).map(|plan| plan.position)
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

    /// A tick in hand is done.
    pub fn fired(&mut self, due: Due) {
        let wall_ms = self.last.wall_ms;
        let Some(plan) = self.plans.get_mut(&due.id) else { return };
        debug_assert!(plan.position.fired < Some(due.tick), "ticks go forward");
        plan.position.fired = Some(due.tick);
        plan.position.pending = None;
        if std::mem::take(&mut plan.failures) > 0 {
            // A topic that takes no records is no better than a broker that is down.
            plan.missed_to_ms = wall_ms;
            self.newest_mark_ms = self.newest_mark_ms.max(wall_ms);
        }
        self.plan(due.id);
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

    /// How long nobody needs to look, ms; `None` while nothing is planned.
    #[must_use]
    pub fn wait_ms(&mut self, now: Reading) -> Option<u64> {
        while let Some(Reverse((fire_ms, entry, id))) = self.heap.peek() {
            if self.is_current(*id, *entry) {
                let wait_ms = fire_ms.saturating_sub(now.wall_ms).max(0).unsigned_abs();
                return Some(wait_ms.min(LOOK_MAX_MS));
            }
            self.heap.pop();
        }
        None
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
        } else if now.wall_ms < self.newest_mark_ms {
            self.go_back(now.wall_ms);
        }
    }

    /// What was planned by a clock that has since gone back is planned anew.
    fn go_back(&mut self, wall_ms: i64) {
        self.runs_since_ms = self.runs_since_ms.min(wall_ms);
        self.newest_mark_ms = wall_ms;
        let ids: Vec<Uuid> = self.plans.keys().copied().collect();
        for id in ids {
            let Some(plan) = self.plans.get_mut(&id) else { continue };
            plan.missed_to_ms = plan.missed_to_ms.min(wall_ms);
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
        let (missed, skipped) = plan.missed(missed_to_ms);
        let next = match missed {
            Some(tick) => Some((tick, Kind::Missed)),
            None => plan.spec.timing.next_after(plan.ahead_of_s(missed_to_ms)).map(|tick| (tick, Kind::Ahead)),
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
    /// The end of what is settled: ticks up to here are done, or were never its own. Seconds since 1970.
    fn settled_s(&self) -> i64 {
        let fired_s = self.position.fired.map_or(i64::MIN, Tick::unix_s);
        fired_s.max(self.position.since_ms.div_euclid(1000))
    }

    fn ahead_of_s(&self, missed_to_ms: i64) -> i64 {
        // A tick that is missed by its own time may still be ahead by its jitter: `missed` has dealt with it.
        self.settled_s().max(missed_to_ms.div_euclid(1000))
    }

    /// The missed tick that is made up for, if there is one, and whether others are left out.
    fn missed(&self, missed_to_ms: i64) -> (Option<Tick>, bool) {
        let (settled_s, missed_to_s) = (self.settled_s(), missed_to_ms.div_euclid(1000));
        let timing = &self.spec.timing;
        let Some(first) = timing.next_after(settled_s).filter(|tick| tick.unix_s() <= missed_to_s) else {
            return (None, false);
        };
        // Jitter delays an event to just before the next tick at most: only the last can be on time.
        let last = timing.last_in(settled_s, missed_to_s).unwrap_or(first);
        let on_time_ms = missed_to_ms.saturating_sub(LATE_MAX_S * 1000);
        let is_made_up = self.spec.catch_up == CatchUp::Once || self.spec.fire_ms(last) >= on_time_ms;
        (is_made_up.then_some(last), first != last || !is_made_up)
    }
}

#[cfg(test)]
mod tests;
