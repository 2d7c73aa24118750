//! What people see of runs.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::runs::{counted, definition, noted};
use super::topics::shortened;
use super::{LaneReport, Running, TriggerService, TriggerState};
use crate::broker::TriedAgain;
use crate::broker::record::RunState;
use crate::broker::state::RunEntry;
use crate::topic::name::TriggerName;
use crate::trigger::run::{RunCounts, RunDefinition, RunKind, RunRange};

/// What ends that a partition is offline.
const fn ends_when(again: TriedAgain) -> &'static str {
    match again {
        TriedAgain::AtStart => "the broker starts again and can read what a start needs",
        TriedAgain::Soon => "what kept it from being opened has passed; it is tried within minutes",
        TriedAgain::WithRoom => "the disk has room for what has to be kept before a log goes on",
    }
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunPhase {
    /// It goes on, in one of the states that a trigger can be in.
    Active(TriggerState),
    /// A person cancelled it; it can be resumed.
    Cancelled,
    /// It has come to the end of its range.
    Done,
    /// It was cancelled, and a later one took over what it had left.
    Replaced,
}

impl RunPhase {
    /// The word used in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active(state) => state.as_str(),
            Self::Cancelled => "Cancelled",
            Self::Done => "Done",
            Self::Replaced => "Replaced",
        }
    }
}

/// One partition of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunLaneReport {
    /// What it reads.
    pub range: RunRange,
    /// Where it stands: `tail` is the end of the range, so that lag is what is left.
    pub lane: LaneReport,
}

/// A run as `runs` shows it.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// Its id.
    pub id: Uuid,
    /// What it was told to be.
    pub definition: RunDefinition,
    /// What it is doing.
    pub phase: RunPhase,
    /// Why, in a sentence; empty while it runs and none of its partitions is offline.
    pub reason: String,
    /// What would end that, in a sentence; empty where no reason is.
    pub ends_when: &'static str,
    /// When it was made, ms since 1970.
    pub created_ms: i64,
    /// Since when it is in this state, ms since 1970.
    pub since_ms: i64,
    /// Its partitions.
    pub lanes: Vec<RunLaneReport>,
    /// What became of its records. What was counted before the broker was killed is not in it; progress is.
    pub counts: RunCounts,
}

impl RunReport {
    /// Records that are not finished.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.lane.lag()).sum()
    }

    /// Offsets of its ranges together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.range.next().since(lane.range.first())).sum()
    }
}

impl TriggerService {
    /// The runs of a trigger that are remembered, the oldest first; `None` when there is no such trigger.
    #[must_use]
    pub fn runs(&self, name: &str) -> Option<Vec<RunReport>> {
        let trigger = self.runner(name)?.id;
        let entries: Vec<RunEntry> =
            self.inner.broker.journal().look(|state| state.runs_of(trigger).into_iter().cloned().collect());
        Some(entries.iter().filter_map(|entry| self.run_report(entry)).collect())
    }

    /// One run of a trigger.
    #[must_use]
    pub fn describe_run(&self, name: &str, run: Uuid) -> Option<RunReport> {
        self.run_report(&self.run_entry(name, run).ok()?)
    }

    /// How many runs of each trigger and kind go on, and how many records they have before them together; where there
    /// are none, nothing is said.
    #[must_use]
    pub fn runs_going_on(&self) -> BTreeMap<(TriggerName, RunKind), (usize, u64)> {
        let mut going_on = BTreeMap::new();
        // What a cluster has not shown yet; the journal says how far those are.
        let mut closed = Vec::new();
        for (id, run) in &*self.inner.runs.read() {
            let key = (run.running.runner.spec().name.clone(), run.definition.kind);
            let (count, lag) = going_on.entry(key.clone()).or_insert((0, 0));
            *count += 1;
            *lag += run.running.lanes.iter().map(|lane| lane.report().lag()).sum::<u64>();
            let is_open = |range: &RunRange| run.running.lanes.iter().any(|lane| lane.number() == range.partition);
            let left = run.definition.ranges.iter().filter(|range| !is_open(range));
            closed.extend(left.map(|range| (key.clone(), *id, *range)));
        }
        self.inner.broker.journal().look(|state| {
            for (key, id, range) in closed {
                let (Some(entry), Some((_, lag))) = (state.runs.get(&id), going_on.get_mut(&key)) else { continue };
                *lag += range.next().since(noted(state, entry, &range));
            }
        });
        going_on
    }

    fn run_report(&self, entry: &RunEntry) -> Option<RunReport> {
        let definition = definition(entry).ok()?;
        let positions = self.run_positions(entry, &definition);
        let runs = self.inner.runs.read();
        let active = runs.get(&entry.defined.id);
        let shown = active.map(|active| active.running.runner.shown());
        let phase = match (entry.state, &shown) {
            (RunState::Cancelled, _) => RunPhase::Cancelled,
            (RunState::Done, _) => RunPhase::Done,
            (RunState::Replaced, _) => RunPhase::Replaced,
            (RunState::Running, Some((shown, _))) => RunPhase::Active(shown.state),
            (RunState::Running, None) => RunPhase::Active(TriggerState::Stopped),
        };
        let lane = |range: RunRange, committed| {
            let live = active.and_then(|active| {
                active.running.lanes.iter().find(|lane| lane.number() == range.partition).map(|lane| lane.report())
            });
            let still = LaneReport {
                topic: definition.topic.clone(),
                partition: range.partition,
                committed,
                tail: range.next(),
                in_flight_records: 0,
                attempts: 0,
                next_attempt_ms: None,
                last_error: None,
                blocked_keys: 0,
                full: false,
            };
            RunLaneReport { range, lane: LaneReport { committed, ..live.unwrap_or(still) } }
        };
        let lanes = positions.into_iter().map(|(range, committed)| lane(range, committed)).collect();
        let counts = active.map_or_else(|| counted(entry), super::runs::ActiveRun::counts);
        let (reason, ends_when, since_ms) = match (phase, shown) {
            (RunPhase::Cancelled, _) => ("cancelled by a person".to_owned(), "someone resumes it", entry.since_ms),
            (RunPhase::Active(_), Some((shown, since_ms))) => {
                let offline = active.and_then(|active| offline(&active.running, &definition));
                let offline = offline.filter(|_| shown.reason.is_empty());
                let (reason, ends_when) = offline.unwrap_or((shown.reason, shown.ends_when));
                (reason, ends_when, since_ms)
            }
            _ => (String::new(), "", entry.since_ms),
        };
        let (id, created_ms) = (entry.defined.id, entry.defined.created_ms);
        Some(RunReport { id, definition, phase, reason, ends_when, created_ms, since_ms, lanes, counts })
    }
}

/// Which of its partitions are offline, in a sentence, and what ends that: without them it does not end. `None` when
/// none is.
fn offline(running: &Running, definition: &RunDefinition) -> Option<(String, &'static str)> {
    let numbers: BTreeSet<u32> = definition.ranges.iter().map(|range| range.partition).collect();
    let offline: Vec<_> = running.offline().filter(|(number, ..)| numbers.contains(number)).collect();
    let places: Vec<&str> = offline.iter().map(|(_, _, place)| place.as_str()).collect();
    let reason = match places.as_slice() {
        [] => return None,
        [place] => format!("partition {place} is offline"),
        several => format!("partitions {} are offline", shortened(several)),
    };
    // It needs all of them.
    let last = offline.iter().map(|(_, again, _)| *again).max()?;
    Some((reason, ends_when(last)))
}
