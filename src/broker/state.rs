//! The tables that the state journal describes. Pure: records in, tables changed.

use std::collections::{BTreeMap, HashMap};

use tripline_storage::Offset;
use uuid::Uuid;

use super::record::{
    FunctionDeployed, JournalRecord, LaneId, OffsetCommitted, ProducerIds, TopicCreated, TriggerAttempt,
    TriggerDefined, TriggerProgress, TriggerSwitched, TriggerVerdict,
};

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
    /// The window that is being tried, if one is.
    pub attempt: Option<TriggerAttempt>,
    /// The verdict whose dead letters may not all be written, if there is one.
    pub verdict: Option<TriggerVerdict>,
    /// The producer id of the lane's dead letters and the sequence of the next one.
    pub dead_letter_producer: Option<(i64, i32)>,
}

/// A trigger's definition and what a person did to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriggerEntry {
    /// Its definition.
    pub defined: TriggerDefined,
    /// Set while a person has it paused.
    pub paused_since_ms: Option<i64>,
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
    /// By lane.
    pub lanes: HashMap<LaneId, LaneState>,
    /// By group, then topic and partition.
    pub offsets: BTreeMap<String, BTreeMap<(Uuid, u32), Committed>>,
    /// Producer ids below may have been handed out.
    pub next_producer_id: i64,
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
                let paused_since_ms = self.triggers.get(&defined.id).and_then(|entry| entry.paused_since_ms);
                self.triggers.insert(defined.id, TriggerEntry { defined: defined.clone(), paused_since_ms });
            }
            JournalRecord::TriggerRemoved(removed) => {
                self.triggers.remove(&removed.id);
                self.lanes.retain(|lane, _| lane.trigger != removed.id);
            }
            JournalRecord::TriggerSwitched(switched) => {
                if let Some(entry) = self.triggers.get_mut(&switched.id) {
                    entry.paused_since_ms = switched.paused.then_some(switched.since_ms);
                }
            }
            JournalRecord::TriggerProgress(progress) => self.lane(progress.lane).progressed(progress),
            JournalRecord::TriggerAttempt(attempt) => self.lane(attempt.lane).attempt = Some(attempt.clone()),
            JournalRecord::TriggerVerdict(verdict) => self.lane(verdict.lane).judged(verdict),
            JournalRecord::OffsetCommitted(commit) => self.commit(commit),
            JournalRecord::GroupForgotten(forgotten) => {
                self.offsets.remove(&forgotten.group);
            }
            JournalRecord::ProducerIds(ids) => self.next_producer_id = self.next_producer_id.max(ids.next),
        }
    }

    /// The name of a trigger that reads this topic.
    #[must_use]
    pub fn trigger_on(&self, topic: Uuid) -> Option<&str> {
        let lane = self.lanes.keys().find(|lane| lane.topic == topic)?;
        self.triggers.get(&lane.trigger).map(|entry| entry.defined.name.as_str())
    }

    fn lane(&mut self, lane: LaneId) -> &mut LaneState {
        self.lanes.entry(lane).or_default()
    }

    fn forget_topic(&mut self, id: Uuid) {
        self.topics.remove(&id);
        self.deleted_topics.push(id);
        self.lanes.retain(|lane, _| lane.topic != id);
        for offsets in self.offsets.values_mut() {
            offsets.retain(|(topic, _), _| *topic != id);
        }
        self.offsets.retain(|_, offsets| !offsets.is_empty());
    }

    fn commit(&mut self, commit: &OffsetCommitted) {
        let group = self.offsets.entry(commit.group.clone()).or_default();
        let key = (commit.topic, commit.partition);
        match commit.offset.and_then(Offset::new) {
            Some(offset) => {
                let (leader_epoch, commit_ms) = (commit.leader_epoch, commit.commit_ms);
                group.insert(key, Committed { offset, leader_epoch, metadata: commit.metadata.clone(), commit_ms });
            }
            None => {
                group.remove(&key);
            }
        }
        if group.is_empty() {
            self.offsets.remove(&commit.group);
        }
    }

    /// Records that describe these tables from nothing: what the journal's beginning is replaced by.
    pub fn records(&self) -> impl Iterator<Item = JournalRecord> + '_ {
        let topics = self.topics.values().cloned().map(JournalRecord::from);
        let functions = self.functions.values().cloned().map(JournalRecord::from);
        let triggers = self.triggers.values().flat_map(|entry| {
            let switched = entry
                .paused_since_ms
                .map(|since_ms| JournalRecord::from(TriggerSwitched { id: entry.defined.id, paused: true, since_ms }));
            std::iter::once(JournalRecord::from(entry.defined.clone())).chain(switched)
        });
        let lanes = self.lanes.iter().flat_map(|(&lane, state)| state.records(lane));
        let offsets = self.offsets.iter().flat_map(|(group, offsets)| {
            offsets.iter().map(|(&(topic, partition), committed)| {
                JournalRecord::from(OffsetCommitted {
                    group: group.clone(),
                    topic,
                    partition,
                    offset: Some(committed.offset.get()),
                    leader_epoch: committed.leader_epoch,
                    metadata: committed.metadata.clone(),
                    commit_ms: committed.commit_ms,
                })
            })
        });
        let ids = std::iter::once(JournalRecord::from(ProducerIds { next: self.next_producer_id }));
        topics.chain(functions).chain(triggers).chain(lanes).chain(offsets).chain(ids)
    }
}

impl LaneState {
    /// Progress settles the window before it: a verdict or attempts below the committed offset are history.
    fn progressed(&mut self, progress: &TriggerProgress) {
        self.progress = Some(progress.progress.clone());
        self.attempt = None;
        self.verdict = None;
    }

    fn judged(&mut self, verdict: &TriggerVerdict) {
        if let Some(target) = verdict.dead_letters {
            let next = sequence_after(target.base_sequence, verdict.offsets.len());
            self.dead_letter_producer = Some((target.producer_id, next));
        }
        self.verdict = Some(verdict.clone());
    }

    /// The order matters: a record clears what those before it have set. The verdict of a settled window comes first,
    /// for its producer id.
    fn records(&self, lane: LaneId) -> Vec<JournalRecord> {
        let mut records = Vec::new();
        if let (Some((producer_id, next)), None) = (self.dead_letter_producer, &self.verdict) {
            records.push(JournalRecord::from(settled_verdict(lane, producer_id, next)));
        }
        if let Some(progress) = &self.progress {
            records.push(TriggerProgress { lane, progress: progress.clone() }.into());
        }
        records.extend(self.attempt.clone().map(JournalRecord::from));
        records.extend(self.verdict.clone().map(JournalRecord::from));
        records
    }
}

/// A verdict about no records, which only says where the lane's dead-letter sequence stands.
fn settled_verdict(lane: LaneId, producer_id: i64, next: i32) -> TriggerVerdict {
    TriggerVerdict {
        lane,
        first: 0,
        next: 0,
        offsets: Vec::new(),
        reason: String::new(),
        attempts: Vec::new(),
        dead_letters: Some(super::record::DeadLetterTarget {
            topic: Uuid::nil(),
            partition: 0,
            producer_id,
            base_sequence: next,
        }),
    }
}

/// The sequence `count` records later; sequences run from 0 to 2^31 − 1 and start over.
#[must_use]
pub fn sequence_after(sequence: i32, count: usize) -> i32 {
    const SEQUENCES: u64 = 1 << 31;
    let sum = (u64::from(sequence.unsigned_abs()) + count as u64) % SEQUENCES;
    i32::try_from(sum).expect("below 2^31")
}
