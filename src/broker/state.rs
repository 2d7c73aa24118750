//! The tables that the state journal describes. Pure: records in, tables changed.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tripline_storage::Offset;
use tripline_storage::retention::SeenClock;
use uuid::Uuid;

use super::record::{
    ClockSeen, FunctionDeployed, JournalRecord, LaneId, OffsetCommitted, ProducerIds, RunState, ScheduleDefined,
    ScheduleFired, ScheduleFiring, ScheduleRemoved, ScheduleSwitched, ScheduleTicksDone, TopicCreated, TriggerDefined,
    TriggerProgress, TriggerStart, TriggerSwitched, TriggerVerdict,
};

mod done;
mod runs;

pub use done::DoneTicks;
pub use runs::RunEntry;

/// A group's committed offset in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The next offset that the group reads.
    pub offset: Offset,
    /// The leader epoch of the record before it, −1 when the client did not say.
    pub leader_epoch: i32,
    /// Whatever the client keeps there.
    pub metadata: String,
    /// When, ms since 1970.
    pub commit_ms: i64,
}

/// Where a trigger stands in one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneState {
    /// The last progress, encoded; `None` before the first.
    pub progress: Option<Vec<u8>>,
    /// Verdicts whose dead letters may not all be written, by the first offset of the range that their window spans.
    pub verdicts: BTreeMap<i64, TriggerVerdict>,
}

/// A trigger's definition and what a person did to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriggerEntry {
    /// Its definition.
    pub defined: TriggerDefined,
    /// Set while a person has it paused.
    pub paused_since_ms: Option<i64>,
    /// Where it starts in partitions of a cluster, by topic and partition, as far as its group may not know.
    pub starts: ClusterStarts,
}

/// Starts on a cluster, by the name of their topic and their partition.
pub type ClusterStarts = BTreeMap<(String, u32), ClusterStart>;

/// Where a trigger starts in a partition of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterStart {
    /// The id that the cluster gives the topic; nil where it gives none.
    pub topic: Uuid,
    /// The first offset that it reads.
    pub offset: Offset,
}

/// A schedule's definition, what a person did to it, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleEntry {
    /// Its definition.
    pub defined: ScheduleDefined,
    /// Whether a person has it paused.
    pub paused: bool,
    /// Ticks up to here are not its own, ms since 1970; while it is paused, since when.
    pub since_ms: i64,
    /// A tick that was begun and may be in its topic or not.
    pub firing: Option<ScheduleFiring>,
    /// The tick that was done last, seconds since 1970.
    pub fired_s: Option<i64>,
    /// All that are done.
    pub done: DoneTicks,
}

/// Everything that the journal remembers.
#[derive(Debug, Default)]
pub struct State {
    /// By id.
    pub topics: HashMap<Uuid, TopicCreated>,
    /// Deleted since the journal was last rewritten: their directories may still be there.
    pub deleted_topics: Vec<Uuid>,
    /// By name.
    pub functions: BTreeMap<String, FunctionDeployed>,
    /// By id.
    pub triggers: HashMap<Uuid, TriggerEntry>,
    /// Runs of triggers over a range, by id.
    pub runs: HashMap<Uuid, RunEntry>,
    /// By lane; those of a run stand under its own id.
    pub lanes: HashMap<LaneId, LaneState>,
    /// Dead letters below are not wanted any more, by trigger, dead-letter topic and partition.
    pub discarded: HashMap<(Uuid, Uuid, u32), Offset>,
    /// By group, then topic and partition.
    pub offsets: BTreeMap<String, BTreeMap<(Uuid, u32), Committed>>,
    /// What these take in memory, about.
    offset_bytes: usize,
    /// Producer ids below may have been handed out.
    pub next_producer_id: i64,
    /// What was seen of the clock that deletes by age.
    pub clock: Option<SeenClock>,
    /// By id.
    pub schedules: HashMap<Uuid, ScheduleEntry>,
    /// Their ids by name: to apply ten thousand of them must not look through all for each.
    schedule_ids: HashMap<String, Uuid>,
}

impl State {
    /// Applies one record.
    pub fn apply(&mut self, record: &JournalRecord) {
        match record {
            JournalRecord::TopicCreated(topic) => {
                self.topics.insert(topic.id, topic.clone());
            }
            JournalRecord::TopicDeleted(deleted) => self.forget_topic(deleted.id),
            JournalRecord::TopicConfigured(configured) => {
                if let Some(topic) = self.topics.get_mut(&configured.id) {
                    topic.config = configured.config.clone();
                }
            }
            JournalRecord::FunctionDeployed(function) => {
                self.functions.insert(function.name.clone(), function.clone());
            }
            JournalRecord::FunctionRemoved(removed) => {
                self.functions.remove(&removed.name);
            }
            JournalRecord::TriggerDefined(defined) => {
                let defined = defined.clone();
                match self.triggers.get_mut(&defined.id) {
                    Some(entry) => entry.defined = defined,
                    None => {
                        let fresh = TriggerEntry { defined, paused_since_ms: None, starts: ClusterStarts::new() };
                        self.triggers.insert(fresh.defined.id, fresh);
                    }
                }
            }
            JournalRecord::TriggerRemoved(removed) => {
                self.triggers.remove(&removed.id);
                self.runs.retain(|_, run| run.defined.trigger != removed.id);
                self.discarded.retain(|(trigger, ..), _| *trigger != removed.id);
                let (triggers, runs) = (&self.triggers, &self.runs);
                self.lanes.retain(|lane, _| runs::has_lanes(triggers, runs, lane.trigger));
            }
            JournalRecord::TriggerSwitched(switched) => {
                if let Some(entry) = self.triggers.get_mut(&switched.id) {
                    entry.paused_since_ms = switched.paused.then_some(switched.since_ms);
                }
            }
            JournalRecord::TriggerProgress(progress) => {
                self.on_lane(progress.lane, |lane| lane.progress = Some(progress.progress.clone()))
            }
            JournalRecord::TriggerVerdict(verdict) => self.on_lane(verdict.lane, |lane| {
                lane.verdicts.insert(verdict.first, verdict.clone());
            }),
            JournalRecord::TriggerSettled(settled) => self.on_lane(settled.lane, |lane| {
                lane.progress = Some(settled.progress.clone());
                lane.verdicts.retain(|first, _| !settled.verdicts.contains(first));
            }),
            JournalRecord::TriggerTopicForgotten(forgotten) => {
                self.lanes.retain(|lane, _| lane.trigger != forgotten.trigger || lane.topic != forgotten.topic);
            }
            JournalRecord::TriggerStart(start) => self.start(start),
            JournalRecord::OffsetCommitted(commit) => self.commit(commit),
            JournalRecord::GroupForgotten(forgotten) => {
                let gone = self.offsets.remove(&forgotten.group).into_iter().flatten();
                self.offset_bytes -= gone.map(|(_, gone)| gone.held_bytes(&forgotten.group)).sum::<usize>();
            }
            JournalRecord::RunDefined(defined) => self.define_run(defined),
            JournalRecord::RunSwitched(switched) => self.switch_run(switched),
            JournalRecord::RunForgotten(forgotten) => {
                self.runs.remove(&forgotten.id);
                self.lanes.retain(|lane, _| lane.trigger != forgotten.id);
            }
            JournalRecord::LettersDiscarded(discarded) => self.discard(discarded),
            JournalRecord::ClockSeen(seen) => self.clock = Some(seen.into()),
            JournalRecord::ProducerIds(ids) => self.next_producer_id = self.next_producer_id.max(ids.next),
            JournalRecord::ScheduleDefined(defined) => self.define_schedule(defined),
            JournalRecord::ScheduleRemoved(removed) => {
                if let Some(entry) = self.schedules.remove(&removed.id) {
                    self.schedule_ids.remove(&entry.defined.name);
                }
            }
            JournalRecord::ScheduleSwitched(switched) => self.on_schedule(switched.id, |entry| {
                (entry.paused, entry.since_ms) = (switched.paused, switched.since_ms);
            }),
            JournalRecord::ScheduleFiring(firing) => {
                self.on_schedule(firing.id, |entry| entry.firing = Some(firing.clone()))
            }
            JournalRecord::ScheduleFired(fired) => self.on_schedule(fired.id, |entry| {
                (entry.firing, entry.fired_s) = (None, Some(fired.tick_s));
                entry.done.extend_to(fired.tick_s);
            }),
            JournalRecord::ScheduleTicksDone(done) => {
                self.on_schedule(done.id, |entry| entry.done.add(done.first_s, done.last_s))
            }
        }
    }

    /// What is said of a trigger that was removed is nobody's.
    fn start(&mut self, start: &TriggerStart) {
        let Some(entry) = self.triggers.get_mut(&start.trigger) else { return };
        let key = (start.topic.clone(), start.partition);
        match start.offset.and_then(Offset::new) {
            Some(offset) => entry.starts.insert(key, ClusterStart { topic: start.topic_id, offset }),
            None => entry.starts.remove(&key),
        };
    }

    /// The name of a schedule that appends to this topic.
    #[must_use]
    pub fn schedule_on(&self, topic: Uuid) -> Option<&str> {
        let user = self.schedules.values().find(|entry| entry.defined.topic == topic)?;
        Some(user.defined.name.as_str())
    }

    /// The schedule with this name.
    #[must_use]
    pub fn schedule_named(&self, name: &str) -> Option<&ScheduleEntry> {
        self.schedules.get(self.schedule_ids.get(name)?)
    }

    fn define_schedule(&mut self, defined: &ScheduleDefined) {
        let (defined, since_ms) = (defined.clone(), defined.since_ms);
        self.schedule_ids.insert(defined.name.clone(), defined.id);
        match self.schedules.get_mut(&defined.id) {
            Some(entry) => (entry.defined, entry.since_ms) = (defined, since_ms),
            None => {
                let done = none_done(&defined);
                let fresh = ScheduleEntry { defined, paused: false, since_ms, firing: None, fired_s: None, done };
                self.schedules.insert(fresh.defined.id, fresh);
            }
        }
    }

    /// What is said of a schedule that was removed is nobody's.
    fn on_schedule(&mut self, id: Uuid, change: impl FnOnce(&mut ScheduleEntry)) {
        if let Some(entry) = self.schedules.get_mut(&id) {
            change(entry);
        }
    }

    /// The name of a trigger that reads this topic, itself or in a run that goes on; the live lanes of the triggers
    /// `but` do not count. A cancelled run reads nothing, and goes with its topic.
    #[must_use]
    pub fn trigger_on(&self, topic: Uuid, but: &[Uuid]) -> Option<&str> {
        let goes_on = |id| self.runs.get(&id).is_none_or(|run| run.state == RunState::Running);
        let reads = |lane: &&LaneId| lane.topic == topic && !but.contains(&lane.trigger) && goes_on(lane.trigger);
        let lane = self.lanes.keys().find(reads)?;
        let trigger = self.runs.get(&lane.trigger).map_or(lane.trigger, |run| run.defined.trigger);
        self.triggers.get(&trigger).map(|entry| entry.defined.name.as_str())
    }

    /// What a lane remembers after its trigger was removed, or its run ended, is nobody's.
    fn on_lane(&mut self, lane: LaneId, change: impl FnOnce(&mut LaneState)) {
        if runs::has_lanes(&self.triggers, &self.runs, lane.trigger) {
            change(self.lanes.entry(lane).or_default());
        }
    }

    /// The id of the trigger with this name.
    #[must_use]
    pub fn trigger_named(&self, name: &str) -> Option<Uuid> {
        self.triggers.values().find(|entry| entry.defined.name == name).map(|entry| entry.defined.id)
    }

    fn forget_topic(&mut self, id: Uuid) {
        self.topics.remove(&id);
        self.deleted_topics.push(id);
        self.lanes.retain(|lane, _| lane.topic != id);
        self.forget_runs_on(id);
        for (group, offsets) in &mut self.offsets {
            offsets.retain(|(topic, _), committed| {
                let stays = *topic != id;
                self.offset_bytes -= if stays { 0 } else { committed.held_bytes(group) };
                stays
            });
        }
        self.offsets.retain(|_, offsets| !offsets.is_empty());
    }

    /// When a group last committed something that is still there, ms since 1970.
    #[must_use]
    pub fn newest_commit_ms(&self, group: &str) -> Option<i64> {
        self.offsets.get(group)?.values().map(|committed| committed.commit_ms).max()
    }

    /// What all committed offsets take in memory, about, in bytes.
    #[must_use]
    pub const fn offset_bytes(&self) -> usize {
        self.offset_bytes
    }

    /// By how much that grows with this commit.
    #[must_use]
    pub fn offset_growth_bytes(&self, commit: &OffsetCommitted) -> usize {
        let before = self.offsets.get(&commit.group).and_then(|group| group.get(&(commit.topic, commit.partition)));
        let before_bytes = before.map_or(0, |before| before.held_bytes(&commit.group));
        Committed::from_record(commit).map_or(0, |it| it.held_bytes(&commit.group)).saturating_sub(before_bytes)
    }

    /// Journals of earlier versions hold commits that came after the end of their topic: they are nobody's.
    fn commit(&mut self, commit: &OffsetCommitted) {
        if !self.topics.contains_key(&commit.topic) {
            return;
        }
        let group = self.offsets.entry(commit.group.clone()).or_default();
        let key = (commit.topic, commit.partition);
        let before = match Committed::from_record(commit) {
            Some(committed) => {
                self.offset_bytes += committed.held_bytes(&commit.group);
                group.insert(key, committed)
            }
            None => group.remove(&key),
        };
        self.offset_bytes -= before.map_or(0, |before| before.held_bytes(&commit.group));
        if group.is_empty() {
            self.offsets.remove(&commit.group);
        }
    }

    /// Records that describe these tables from nothing, what belongs together in one group: what the journal's
    /// beginning is replaced by.
    #[must_use]
    pub fn record_groups(&self) -> Vec<Vec<JournalRecord>> {
        let topics = self.topics.values().cloned().map(|topic| vec![topic.into()]);
        let functions = self.functions.values().cloned().map(|function| vec![function.into()]);
        let triggers = self.triggers.values().map(|entry| {
            let id = entry.defined.id;
            let switched = entry.paused_since_ms.map(|since_ms| TriggerSwitched { id, paused: true, since_ms }.into());
            std::iter::once(entry.defined.clone().into()).chain(switched).collect()
        });
        let starts = self.triggers.values().flat_map(|entry| {
            let record = |(key, start): (&_, &ClusterStart)| vec![start.record(entry.defined.id, key).into()];
            entry.starts.iter().map(record)
        });
        let lanes = self.lanes.iter().map(|(&lane, state)| state.records(lane));
        let offsets = self.offsets.iter().flat_map(|(group, offsets)| {
            offsets.iter().map(|(&(topic, partition), committed)| vec![committed.record(group, topic, partition)])
        });
        let ids = std::iter::once(vec![ProducerIds { next: self.next_producer_id }.into()]);
        let clock = self.clock.map(|seen| vec![ClockSeen::from(seen).into()]);
        let schedules = self.schedules.values().map(ScheduleEntry::records);
        let triggers = triggers.chain(starts).chain(self.run_groups()).chain(lanes);
        topics.chain(functions).chain(triggers).chain(offsets).chain(ids).chain(clock).chain(schedules).collect()
    }
}

impl From<&ClockSeen> for SeenClock {
    fn from(seen: &ClockSeen) -> Self {
        let distrusted = seen.distrusted.map(|(shown_ms, ran_ms)| (shown_ms, Duration::from_millis(ran_ms)));
        Self { believed_ms: seen.believed_ms, distrusted }
    }
}

impl From<SeenClock> for ClockSeen {
    fn from(seen: SeenClock) -> Self {
        let ms = |ran: Duration| u64::try_from(ran.as_millis()).unwrap_or(u64::MAX);
        let distrusted = seen.distrusted.map(|(shown_ms, ran)| (shown_ms, ms(ran)));
        Self { believed_ms: seen.believed_ms, distrusted }
    }
}

impl ClusterStart {
    /// The record that says so of a partition.
    #[must_use]
    pub fn record(&self, trigger: Uuid, (topic, partition): &(String, u32)) -> TriggerStart {
        let (topic, partition, offset) = (topic.clone(), *partition, Some(self.offset.get()));
        TriggerStart { trigger, topic, topic_id: self.topic, partition, offset }
    }
}

impl ScheduleEntry {
    /// Records that change its definition to one with other times: a tick that was begun is not its own any more. What
    /// is known not to be begun has no record of its own, so it is described from nothing.
    #[must_use]
    pub fn with_new_times(&self, defined: &ScheduleDefined) -> Vec<JournalRecord> {
        let (defined, since_ms) = (defined.clone(), defined.since_ms);
        let id = self.defined.id;
        let fired_s = self.fired_s;
        let done = self.done.with_new_times(since_ms.div_euclid(1000), fired_s);
        let changed = Self { defined, paused: self.paused, since_ms, firing: None, fired_s, done };
        std::iter::once(ScheduleRemoved { id }.into()).chain(changed.records()).collect()
    }

    /// The order matters: a fired tick extends the range before it, and clears the one that was begun.
    fn records(&self) -> Vec<JournalRecord> {
        let id = self.defined.id;
        let switched = ScheduleSwitched { id, paused: self.paused, since_ms: self.since_ms }.into();
        let mut said = none_done(&self.defined);
        self.fired_s.into_iter().for_each(|tick_s| said.extend_to(tick_s));
        // Where none was left out, the last tick says it all.
        let ranges = self.done.ranges().filter(|_| said != self.done);
        let done = ranges.map(|(first_s, last_s)| ScheduleTicksDone { id, first_s, last_s }.into());
        let fired = self.fired_s.map(|tick_s| ScheduleFired { id, tick_s }.into());
        let firing = self.firing.clone().map(JournalRecord::from);
        [self.defined.clone().into(), switched].into_iter().chain(done).chain(fired).chain(firing).collect()
    }
}

/// No tick of before a schedule was made is done.
fn none_done(defined: &ScheduleDefined) -> DoneTicks {
    DoneTicks::since(defined.created_ms.div_euclid(1000))
}

/// What a committed offset takes in memory besides its strings: its places in the tables, and its record in a rewrite
/// of the journal.
const COMMITTED_BYTES: usize = 256;

impl Committed {
    /// What a record says; `None` where it forgets.
    fn from_record(commit: &OffsetCommitted) -> Option<Self> {
        let offset = commit.offset.and_then(Offset::new)?;
        let (leader_epoch, commit_ms) = (commit.leader_epoch, commit.commit_ms);
        Some(Self { offset, leader_epoch, metadata: commit.metadata.clone(), commit_ms })
    }

    fn held_bytes(&self, group: &str) -> usize {
        COMMITTED_BYTES + group.len() + self.metadata.len()
    }

    fn record(&self, group: &str, topic: Uuid, partition: u32) -> JournalRecord {
        OffsetCommitted {
            group: group.to_owned(),
            topic,
            partition,
            offset: Some(self.offset.get()),
            leader_epoch: self.leader_epoch,
            metadata: self.metadata.clone(),
            commit_ms: self.commit_ms,
        }
        .into()
    }
}

impl LaneState {
    fn records(&self, lane: LaneId) -> Vec<JournalRecord> {
        let progress = self.progress.clone().map(|progress| JournalRecord::from(TriggerProgress { lane, progress }));
        progress.into_iter().chain(self.verdicts.values().cloned().map(JournalRecord::from)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::record::TriggerRemoved;

    const TRIGGER: Uuid = Uuid::from_bytes([1; 16]);

    fn state(records: impl IntoIterator<Item = JournalRecord>) -> State {
        let mut state = State::default();
        records.into_iter().for_each(|record| state.apply(&record));
        state
    }

    #[test]
    fn a_rewritten_journal_says_the_same_of_the_clock() {
        let seen = ClockSeen { believed_ms: 5, distrusted: Some((700, 30)) };
        let before = state([ClockSeen { believed_ms: 3, distrusted: None }.into(), seen.clone().into()]);
        assert_eq!(before.clock.map(ClockSeen::from), Some(seen));
        assert_eq!(state(before.record_groups().into_iter().flatten()).clock, before.clock);
    }

    #[test]
    fn starts_on_a_cluster_are_kept_until_they_are_forgotten_or_their_trigger_goes() {
        let defined = || -> JournalRecord {
            let (name, definition) = ("x".to_owned(), "{}".to_owned());
            TriggerDefined { id: TRIGGER, name, definition, created_ms: 1 }.into()
        };
        let start = |partition, offset| -> JournalRecord {
            let (topic, topic_id) = ("b".to_owned(), Uuid::from_bytes([2; 16]));
            TriggerStart { trigger: TRIGGER, topic, topic_id, partition, offset }.into()
        };
        let begun = || [defined(), start(0, Some(500)), start(1, Some(7)), defined()];
        let before = state(begun().into_iter().chain([start(1, None)]));
        let expected = ClusterStart { topic: Uuid::from_bytes([2; 16]), offset: Offset::new(500).unwrap() };
        assert_eq!(before.triggers[&TRIGGER].starts, ClusterStarts::from([(("b".to_owned(), 0), expected)]));
        let after = state(before.record_groups().into_iter().flatten());
        assert_eq!(after.triggers, before.triggers, "a rewritten journal says the same");
        let removed = TriggerRemoved { id: TRIGGER }.into();
        let again = state(begun().into_iter().chain([removed, start(0, Some(1)), defined()]));
        assert!(again.triggers[&TRIGGER].starts.is_empty());
    }
}
