//! What people and metrics see of triggers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tripline_storage::Offset;
use uuid::Uuid;

use super::{Running, TriggerService};
use crate::broker::journal::Journal;
use crate::broker::record::LaneId;
use crate::broker::{Topic, TriedAgain};
use crate::trigger::progress::Progress;
use crate::trigger::spec::TriggerSpec;

/// What a trigger is doing, with the words that people see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TriggerState {
    /// It was defined and has not read yet.
    Starting,
    /// It reads and invokes.
    Running,
    /// A person paused it.
    Paused,
    /// A window fails and errors are not tolerated, or the log is damaged: it waits for success or for a person.
    Blocked,
    /// The target cannot be reached: one invocation at a time probes it.
    Outage,
    /// The code cannot run: it waits for new code or for a person.
    Failed,
    /// The broker stops.
    Stopped,
}

impl TriggerState {
    /// All states.
    pub const ALL: [Self; 7] =
        [Self::Starting, Self::Running, Self::Paused, Self::Blocked, Self::Outage, Self::Failed, Self::Stopped];

    /// The word used in the API and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Paused => "Paused",
            Self::Blocked => "Blocked",
            Self::Outage => "Outage",
            Self::Failed => "Failed",
            Self::Stopped => "Stopped",
        }
    }
}

/// What happened to the records of a trigger since the broker started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TriggerCounts {
    /// Records whose invocation succeeded.
    pub delivered: u64,
    /// Records that the filter turned away.
    pub filtered: u64,
    /// Records in the dead-letter topic.
    pub dead_lettered: u64,
    /// Records that were given up without a dead-letter topic.
    pub dropped: u64,
    /// Records that retention removed before they were read.
    pub expired: u64,
    /// Records that a newer one of their key replaced.
    pub debounced: u64,
    /// Records that came while their key was busy, of a trigger that takes one at a time.
    pub skipped: u64,
    /// Attempts that succeeded.
    pub attempts_succeeded: u64,
    /// Attempts that did not.
    pub attempts_failed: u64,
}

/// One partition of a trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneReport {
    /// Its topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Everything below is finished.
    pub committed: Offset,
    /// One after the last record of the partition.
    pub tail: Offset,
    /// Records handed to the function or waiting for its next attempt.
    pub in_flight_records: u32,
    /// Attempts spent on the window in hand.
    pub attempts: u32,
    /// When its next attempt begins, ms since 1970.
    pub next_attempt_ms: Option<i64>,
    /// The last error of the window in hand.
    pub last_error: Option<String>,
    /// Keys whose further records wait in the log, because the key fails or floods.
    pub blocked_keys: usize,
    /// It reads or begins nothing more until some of what is unfinished is finished: more could not be written down.
    pub full: bool,
}

impl LaneReport {
    /// Records that are not finished.
    #[must_use]
    pub const fn lag(&self) -> u64 {
        self.tail.since(self.committed)
    }
}

/// A trigger as `describe` shows it.
#[derive(Clone, Debug)]
pub struct TriggerReport {
    /// Its id.
    pub id: Uuid,
    /// Its definition.
    pub spec: TriggerSpec,
    /// What it is doing.
    pub state: TriggerState,
    /// Why, in a sentence; empty while it runs.
    pub reason: String,
    /// Since when, ms since 1970.
    pub since_ms: i64,
    /// What would end that state, in a sentence; empty while it runs.
    pub ends_when: &'static str,
    /// Its partitions, by the names of their topics and their numbers.
    pub lanes: Vec<LaneReport>,
    /// Partitions that it reads and that are offline, as `topic/number`: what it has done there is kept.
    pub offline: Vec<String>,
    /// Since the broker started.
    pub counts: TriggerCounts,
}

impl TriggerService {
    /// One trigger.
    #[must_use]
    pub fn describe(&self, name: &str) -> Option<TriggerReport> {
        self.inner.running.read().get(name).map(report)
    }

    /// Whether there is a trigger with this name that reads topics of this broker.
    #[must_use]
    pub fn is_here(&self, name: &str) -> bool {
        self.runner(name).is_some_and(|runner| runner.spec().input.cluster.is_none())
    }

    /// Where a trigger on topics of this broker stands: topic, partition, and what is finished there.
    #[must_use]
    pub fn committed(&self, name: &str) -> Vec<(Uuid, u32, Offset)> {
        let running = self.inner.running.read();
        let here = running.get(name).filter(|running| running.runner.spec().input.cluster.is_none());
        let Some(here) = here else { return Vec::new() };
        let lanes = here.lanes.iter().map(|lane| (lane.origin().topic_id, lane.number(), lane.committed()));
        lanes.chain(here.without_lane(self.inner.broker.journal())).collect()
    }

    /// All triggers, by name.
    #[must_use]
    pub fn list(&self) -> Vec<TriggerReport> {
        self.inner.running.read().values().map(report).collect()
    }

    /// From where on somebody still needs records, by topic and partition: what an enabled trigger has not finished.
    #[must_use]
    pub fn holds(&self) -> HashMap<(Uuid, u32), Offset> {
        let mut holds: HashMap<(Uuid, u32), Offset> = HashMap::new();
        for running in self.inner.running.read().values() {
            if running.runner.state() != TriggerState::Paused {
                running.hold(self.inner.broker.journal(), &mut holds);
            }
        }
        let journal = self.inner.broker.journal();
        self.inner.runs.read().values().for_each(|active| active.running.hold(journal, &mut holds));
        holds
    }

    /// The name of a trigger whose definition names this topic, as one that it reads or writes to.
    #[must_use]
    pub fn using_topic(&self, topic: &str) -> Option<String> {
        let running = self.inner.running.read();
        let uses = |spec: &TriggerSpec| {
            let outputs = spec.dead_letter.iter().chain(spec.destinations.topics().map(|(_, name)| name));
            let mut names = spec.input.topics.named().iter().chain(outputs);
            spec.input.cluster.is_none() && names.any(|name| name.as_str() == topic)
        };
        running.iter().find(|(_, running)| uses(&running.runner.spec())).map(|(name, _)| name.clone())
    }

    /// The name of a trigger that invokes this function.
    pub(super) fn using_function(&self, function: &str) -> Option<String> {
        let running = self.inner.running.read();
        let mut users = running.iter().filter(|(_, running)| running.runner.spec().invokes(function));
        users.next().map(|(name, _)| name.clone())
    }
}

impl Running {
    /// What its lanes have not finished is still needed, and so is what they will find in partitions that are offline:
    /// retention may come to one of these before its lane does.
    fn hold(&self, journal: &Journal, holds: &mut HashMap<(Uuid, u32), Offset>) {
        // What a cluster keeps is the cluster's.
        let here = self.lanes.iter().filter(|_| !self.topics.is_empty());
        let lanes = here.map(|lane| (lane.origin().topic_id, lane.number(), lane.committed()));
        for (topic, partition, committed) in lanes.chain(self.without_lane(journal)) {
            let hold = holds.entry((topic, partition)).or_insert(committed);
            *hold = committed.min(*hold);
        }
    }

    /// Where the journal says that it stands in partitions of its topics in which it has no lane: they are offline, or
    /// were a moment ago.
    fn without_lane(&self, journal: &Journal) -> Vec<(Uuid, u32, Offset)> {
        let all = self.topics.iter().flat_map(|topic| (0..topic.partition_count()).map(|number| (topic.id(), number)));
        let has_lane: HashSet<_> = self.lanes.iter().map(|lane| (lane.origin().topic_id, lane.number())).collect();
        let remembered = |(topic, partition)| {
            let lane = LaneId { trigger: self.runner.id, topic, partition };
            let progress = journal.look(|state| state.lanes.get(&lane)?.progress.clone())?;
            Some((topic, partition, Progress::decode(&progress).ok()?.committed()))
        };
        all.filter(|place| !has_lane.contains(place)).filter_map(remembered).collect()
    }

    /// Partitions of its topics that are offline: their numbers, when they are tried again, and as `topic/number`.
    pub(super) fn offline(&self) -> impl Iterator<Item = (u32, TriedAgain, String)> {
        let in_topic = |topic: &Arc<Topic>| {
            let place = |(number, again)| (number, again, format!("{}/{number}", topic.name()));
            topic.offline().map(place).collect::<Vec<_>>()
        };
        self.topics.iter().flat_map(in_topic)
    }
}

fn report(running: &Running) -> TriggerReport {
    let (shown, since_ms) = running.runner.shown();
    TriggerReport {
        id: running.runner.id,
        spec: (*running.runner.spec()).clone(),
        state: shown.state,
        reason: shown.reason,
        since_ms,
        ends_when: shown.ends_when,
        lanes: running.lanes.iter().map(|lane| lane.report()).collect(),
        offline: running.offline().map(|(_, _, place)| place).collect(),
        counts: running.runner.counters.snapshot(),
    }
}
