//! What a schedule looks like from outside.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::{Inner, LATE_MAX_S, Position, Reading, Schedule, ScheduleSpec, Tick, past_s};

/// What a schedule is doing, with the words that people see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScheduleState {
    /// It waits for its next tick.
    Running,
    /// A person paused it, or its definition disables it.
    Paused,
    /// Its topic does not take a tick, which is tried again, or could not be read at the start.
    Blocked,
    /// Nothing is due any more.
    Finished,
}

impl ScheduleState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Running, Self::Paused, Self::Blocked, Self::Finished];

    /// The word used in the API and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Paused => "Paused",
            Self::Blocked => "Blocked",
            Self::Finished => "Finished",
        }
    }
}

/// What happened to the ticks of a schedule since the broker started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScheduleCounts {
    /// Ticks that are done.
    pub fired: u64,
    /// How often missed ticks were left out.
    pub skipped: u64,
    /// Tries that a topic did not take.
    pub failed: u64,
    /// How late the last tick was done, after its jitter, ms.
    pub last_late_ms: u64,
}

/// A schedule as `describe` shows it.
#[derive(Clone, Debug)]
pub struct ScheduleReport {
    /// Its id.
    pub id: Uuid,
    /// Its definition.
    pub spec: Arc<ScheduleSpec>,
    /// When it was made, ms since 1970.
    pub created_ms: i64,
    /// What it is doing.
    pub state: ScheduleState,
    /// Why, in a sentence; empty while it runs.
    pub reason: String,
    /// The partition that its events go to.
    pub partition: u32,
    /// The tick that was done last.
    pub last: Option<Tick>,
    /// The next one, and when its event comes, ms since 1970; `None` while it is paused, while it could not be started,
    /// and when it is over.
    pub next: Option<(Tick, i64)>,
    /// Since the broker started.
    pub counts: ScheduleCounts,
}

/// Ticks up to here are done, never its own, or past. Seconds since 1970.
pub(super) fn ahead_of_s(schedule: &Schedule, position: &Position, now: Reading) -> i64 {
    position.settled_s(now.wall_ms).max(past_s(&schedule.spec, now.wall_ms))
}

pub(super) fn report(inner: &Inner, schedule: &Schedule) -> ScheduleReport {
    let now = inner.clock.read();
    let status = schedule.status.lock().clone();
    let (position, now_s) = (&status.position, now.wall_ms.div_euclid(1000));
    let next = position.next_after(&schedule.spec.timing, ahead_of_s(schedule, position, now));
    let behind_s = position.done.end_at(now_s).map_or(0, |end_s| end_s.saturating_sub(now_s));
    let (state, reason) = if !schedule.spec.enabled {
        (ScheduleState::Paused, "its definition says `enabled: false`".to_owned())
    } else if status.paused {
        (ScheduleState::Paused, "a person paused it".to_owned())
    } else if inner.broke_down.load(Ordering::Acquire) {
        (ScheduleState::Blocked, "schedules broke down; restart the broker, and report this".to_owned())
    } else if let Some(reason) = &schedule.not_started {
        (ScheduleState::Blocked, reason.clone())
    } else if let Some((reason, _)) = status.blocked {
        (ScheduleState::Blocked, reason)
    } else if next.is_none() {
        (ScheduleState::Finished, "its last tick is past".to_owned())
    } else if behind_s > LATE_MAX_S {
        (ScheduleState::Running, format!("the clock is {behind_s} s behind its last tick: nothing is due before"))
    } else {
        (ScheduleState::Running, String::new())
    };
    let comes = state != ScheduleState::Paused && schedule.not_started.is_none();
    ScheduleReport {
        id: schedule.id,
        spec: Arc::clone(&schedule.spec),
        created_ms: schedule.created_ms,
        next: next.filter(|_| comes).map(|tick| (tick, schedule.spec.fire_ms(tick))),
        state,
        reason,
        partition: schedule.partition,
        last: status.position.fired,
        counts: status.counts,
    }
}
