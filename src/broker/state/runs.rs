//! The tables of runs over a range, and of letters that are not wanted any more.

use std::collections::HashMap;

use tripline_storage::Offset;
use uuid::Uuid;

use super::{State, TriggerEntry};
use crate::broker::record::{JournalRecord, LettersDiscarded, RunDefined, RunState, RunSwitched};

/// A run of a trigger over a range, and what became of it so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunEntry {
    /// Its definition.
    pub defined: RunDefined,
    /// Whether it goes on.
    pub state: RunState,
    /// Since when, ms since 1970.
    pub since_ms: i64,
    /// What became of its records until then, in the encoding of the trigger room; empty for nothing.
    pub counts: Vec<u8>,
}

impl State {
    /// The runs of a trigger, the oldest first.
    #[must_use]
    pub fn runs_of(&self, trigger: Uuid) -> Vec<&RunEntry> {
        let mut runs: Vec<&RunEntry> = self.runs.values().filter(|run| run.defined.trigger == trigger).collect();
        runs.sort_by_key(|run| (run.defined.created_ms, run.defined.id));
        runs
    }

    /// A definition that changes keeps what became of the run. What is said of a run after its trigger was removed is
    /// nobody's.
    pub(super) fn define_run(&mut self, defined: &RunDefined) {
        if !self.triggers.contains_key(&defined.trigger) {
            return;
        }
        let new = || RunEntry {
            defined: defined.clone(),
            state: RunState::Running,
            since_ms: defined.created_ms,
            counts: Vec::new(),
        };
        self.runs.entry(defined.id).or_insert_with(new).defined = defined.clone();
    }

    pub(super) fn switch_run(&mut self, switched: &RunSwitched) {
        let Some(run) = self.runs.get_mut(&switched.id) else { return };
        (run.state, run.since_ms) = (switched.state, switched.since_ms);
        run.counts = switched.counts.clone();
        if switched.state.has_ended() {
            self.lanes.retain(|lane, _| lane.trigger != switched.id);
        }
    }

    pub(super) fn discard(&mut self, discarded: &LettersDiscarded) {
        let Some(below) = Offset::new(discarded.below) else { return };
        if self.triggers.contains_key(&discarded.trigger) {
            let key = (discarded.trigger, discarded.topic, discarded.partition);
            let kept = self.discarded.entry(key).or_insert(below);
            *kept = below.max(*kept);
        }
    }

    /// Runs that read a topic which is no more, and what was discarded there.
    pub(super) fn forget_runs_on(&mut self, id: Uuid) {
        self.runs.retain(|_, run| run.defined.topic != id);
        self.discarded.retain(|(_, topic, _), _| *topic != id);
    }

    /// Records that describe these tables from nothing; the triggers come before, the lanes behind.
    pub(super) fn run_groups(&self) -> impl Iterator<Item = Vec<JournalRecord>> + '_ {
        let discarded = self.discarded.iter().map(|(&(trigger, topic, partition), below)| {
            vec![LettersDiscarded { trigger, topic, partition, below: below.get() }.into()]
        });
        self.runs.values().map(RunEntry::records).chain(discarded)
    }
}

/// Whether something with this id, a trigger or a run that can go on, has lanes.
pub(super) fn has_lanes(triggers: &HashMap<Uuid, TriggerEntry>, runs: &HashMap<Uuid, RunEntry>, id: Uuid) -> bool {
    triggers.contains_key(&id) || runs.get(&id).is_some_and(|run| !run.state.has_ended())
}

impl RunEntry {
    fn records(&self) -> Vec<JournalRecord> {
        let switched = RunSwitched {
            id: self.defined.id,
            state: self.state,
            since_ms: self.since_ms,
            counts: self.counts.clone(),
        };
        vec![self.defined.clone().into(), switched.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::record::{
        LaneId, RunForgotten, TopicDeleted, TriggerDefined, TriggerProgress, TriggerRemoved, TriggerTopicForgotten,
    };

    const TRIGGER: Uuid = Uuid::from_bytes([1; 16]);
    const TOPIC: Uuid = Uuid::from_bytes([2; 16]);
    const RUN: Uuid = Uuid::from_bytes([3; 16]);
    const LANE: LaneId = LaneId { trigger: RUN, topic: TOPIC, partition: 0 };

    fn state(records: impl IntoIterator<Item = JournalRecord>) -> State {
        let mut state = State::default();
        records.into_iter().for_each(|record| state.apply(&record));
        state
    }

    fn switched(to: RunState) -> JournalRecord {
        RunSwitched { id: RUN, state: to, since_ms: 9, counts: vec![4] }.into()
    }

    /// A trigger with a run that has progress, and letters that were discarded.
    fn running() -> Vec<JournalRecord> {
        let definition = "{}".to_owned();
        vec![
            TriggerDefined { id: TRIGGER, name: "x".to_owned(), definition: definition.clone(), created_ms: 1 }.into(),
            RunDefined { id: RUN, trigger: TRIGGER, topic: TOPIC, definition, created_ms: 5 }.into(),
            TriggerProgress { lane: LANE, progress: vec![7] }.into(),
            LettersDiscarded { trigger: TRIGGER, topic: TOPIC, partition: 0, below: 8 }.into(),
            LettersDiscarded { trigger: TRIGGER, topic: TOPIC, partition: 0, below: 6 }.into(),
        ]
    }

    fn with(more: impl IntoIterator<Item = JournalRecord>) -> State {
        state(running().into_iter().chain(more))
    }

    #[test]
    fn a_rewritten_journal_says_the_same_of_runs() {
        for to in [RunState::Running, RunState::Cancelled, RunState::Done, RunState::Replaced] {
            let before = with([switched(to)]);
            let after = state(before.record_groups().into_iter().flatten());
            assert_eq!((&after.runs, &after.lanes, &after.discarded), (&before.runs, &before.lanes, &before.discarded));
            assert_eq!(after.lanes.is_empty(), to.has_ended(), "{to:?}");
        }
    }

    #[test]
    fn progress_of_a_run_is_kept_until_it_ends_and_its_definition_longer() {
        let late = || TriggerProgress { lane: LANE, progress: vec![9] }.into();
        assert_eq!(with([late()]).lanes[&LANE].progress, Some(vec![9]));
        assert_eq!(with([late()]).trigger_on(TOPIC, &[]), Some("x"));
        let cancelled = with([switched(RunState::Cancelled), late()]);
        assert_eq!(
            (cancelled.lanes.len(), cancelled.trigger_on(TOPIC, &[])),
            (1, None),
            "it can go on, and reads nothing"
        );
        let resumed = with([switched(RunState::Cancelled), switched(RunState::Running)]);
        assert_eq!(resumed.trigger_on(TOPIC, &[]), Some("x"));
        let done = with([switched(RunState::Done), late()]);
        assert_eq!((done.lanes.len(), done.trigger_on(TOPIC, &[])), (0, None));
        assert_eq!(done.runs_of(TRIGGER)[0].counts, [4]);
        let forgotten = with([RunForgotten { id: RUN }.into(), late()]);
        assert!(forgotten.runs.is_empty() && forgotten.lanes.is_empty());
    }

    #[test]
    fn a_topic_that_a_trigger_reads_no_more_takes_its_progress_along_but_not_that_of_runs() {
        let live = |topic| LaneId { trigger: TRIGGER, topic, partition: 0 };
        let other = Uuid::from_bytes([4; 16]);
        let progress = [TOPIC, other].map(|topic| TriggerProgress { lane: live(topic), progress: vec![1] }.into());
        let before = with(progress.clone());
        assert_eq!(before.trigger_on(other, &[]), Some("x"));
        assert_eq!(before.trigger_on(other, &[TRIGGER]), None);
        assert_eq!(before.trigger_on(TOPIC, &[TRIGGER]), Some("x"), "its run reads it");
        let forgotten = |topic| TriggerTopicForgotten { trigger: TRIGGER, topic }.into();
        let after = with(progress.into_iter().chain([forgotten(TOPIC)]));
        assert!(!after.lanes.contains_key(&live(TOPIC)));
        assert!(after.lanes.contains_key(&live(other)) && after.lanes.contains_key(&LANE));
        let rewritten = state(after.record_groups().into_iter().flatten());
        assert_eq!(rewritten.lanes, after.lanes);
    }

    #[test]
    fn what_is_discarded_stays_so() {
        assert_eq!(with([]).discarded[&(TRIGGER, TOPIC, 0)].get(), 8);
    }

    #[test]
    fn runs_go_with_their_trigger_and_with_their_topic() {
        for gone in [TriggerRemoved { id: TRIGGER }.into(), TopicDeleted { id: TOPIC }.into()] {
            let left = with([gone]);
            assert!(left.runs.is_empty() && left.lanes.is_empty() && left.discarded.is_empty());
        }
        let redefined =
            RunDefined { id: RUN, trigger: TRIGGER, topic: TOPIC, definition: "{\"a\":1}".to_owned(), created_ms: 5 };
        let removed =
            with([TriggerRemoved { id: TRIGGER }.into(), redefined.clone().into(), switched(RunState::Running)]);
        assert!(removed.runs.is_empty());
        let cut = with([switched(RunState::Cancelled), redefined.into()]);
        assert_eq!(
            (cut.runs[&RUN].state, cut.runs[&RUN].defined.definition.as_str()),
            (RunState::Cancelled, "{\"a\":1}")
        );
    }
}
