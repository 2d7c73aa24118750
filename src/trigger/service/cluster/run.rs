//! Runs of a trigger on a cluster.
//!
//! The process that was asked reads the range by itself, beside the group: its journal keeps how far it came, so that
//! the live lanes of all processes are untouched. The partitions are opened behind the start: a cluster that does not
//! answer holds up no start of the broker.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::super::runs::ActiveRun;
use super::super::{Inner, TriggerService};
use super::looks::{There, ids_of_topics};
use super::{Client, ClusterError, RETRY, Running, set_back};
use crate::broker::record::{LaneId, RunState};
use crate::broker::state::{LaneState, RunEntry};
use crate::input::EventInput;
use crate::trigger::poller::{self, Message, RunLane};
use crate::trigger::progress::Progress;
use crate::trigger::run::{Completion, Gate, RunDefinition, RunKind, RunRange};
use crate::trigger::runner::Runner;
use crate::trigger::spec::TriggerSpec;
use crate::trigger::status::{ClusterTrouble, set};

/// How long is waited before it is looked again whether a topic has become the one that it was.
const HOPELESS_RETRY: Duration = Duration::from_secs(30);

impl TriggerService {
    /// Starts a run, whose partitions are opened as soon as its cluster answers.
    pub(in crate::trigger::service) fn start_run_there(
        &self,
        entry: &RunEntry,
        owner: &Runner,
        definition: RunDefinition,
    ) -> Result<(), String> {
        let spec = owner.spec();
        let client = self.inner.client(&spec).map_err(|error| error.to_string())?;
        let gate = self.gate_of_run(owner, entry, &definition)?;
        let runner = self.runner_of_run(entry.defined.id, &spec, &definition);
        let completion = Arc::new(Completion::of(definition.ranges.len()));
        let opening = Opening {
            service: Arc::downgrade(&self.inner),
            client,
            runner: Arc::clone(&runner),
            spec,
            topic: entry.defined.topic,
            definition: definition.clone(),
            gate,
            completion: Arc::clone(&completion),
        };
        // It finds the run in its place.
        let mut runs = self.inner.runs.write();
        let watcher = Arc::clone(&runner);
        let opening = tokio::spawn(async move {
            watcher.watch(opening.open()).await;
        });
        let opening = Some(AbortOnDropHandle::new(opening));
        let mut active = self.active_run(entry, definition, Running::new(runner), completion);
        active.own.opening = opening;
        runs.insert(entry.defined.id, active);
        Ok(())
    }

    /// As [`TriggerService::set_back`], where the records are a cluster's.
    pub(in crate::trigger::service) fn set_back_there(
        &self,
        (progress, remembered): (Progress, LaneState),
        input: &EventInput,
        lane: LaneId,
    ) -> Result<(Progress, LaneState), String> {
        let is_there = matches!(input, EventInput::Cluster(_));
        if !is_there || progress.reading_point() <= input.tail() {
            return Ok((progress, remembered));
        }
        let progress = set_back(progress, input);
        let restarted = self.restart(lane, progress.committed());
        let written = self.inner.broker.journal().append(&[restarted], crate::broker::now_ms());
        written.map_err(|error| error.to_string())?;
        Ok((progress, LaneState::default()))
    }

    /// Ends what works for the runs of a trigger, so that they can go on elsewhere; what is in flight is made again.
    pub(in crate::trigger::service) async fn halt_runs(&self, trigger: Uuid) {
        let runs: Vec<Uuid> = {
            let runs = self.inner.runs.read();
            runs.iter().filter(|(_, active)| active.trigger == trigger).map(|(id, _)| *id).collect()
        };
        for id in runs {
            let Some(counts) = self.end_run(id).await else { continue };
            if let Err(error) = self.switch_run(id, RunState::Running, counts).await {
                tracing::warn!(run = %id, %error, "what a run has counted so far is not remembered");
            }
        }
    }
}

/// Opens the partitions of a run.
struct Opening {
    service: Weak<Inner>,
    client: Arc<Client>,
    runner: Arc<Runner>,
    /// Of its trigger.
    spec: Arc<TriggerSpec>,
    /// The id of the topic when the run was made.
    topic: Uuid,
    definition: RunDefinition,
    gate: Option<Arc<Gate>>,
    completion: Arc<Completion>,
}

#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("topic {0} is not the one that the run was made for")]
    OtherTopic(String),
    #[error("the cluster tells no id of topic {0}")]
    NoId(String),
    #[error("{0}")]
    Lane(String),
}

impl OpenError {
    const fn ends_when(&self) -> &'static str {
        match self {
            Self::Cluster(_) => "the cluster answers, and has the partitions of the run",
            Self::OtherTopic(_) => "someone cancels the run",
            Self::NoId(_) => "the cluster tells the id of the topic",
            Self::Lane(_) => "the journal can be read and written, or someone cancels the run",
        }
    }

    /// How long is waited before it is tried again.
    const fn retry(&self) -> Duration {
        match self {
            Self::Cluster(_) | Self::NoId(_) | Self::Lane(_) => RETRY,
            Self::OtherTopic(_) => HOPELESS_RETRY,
        }
    }
}

impl Opening {
    async fn open(self) {
        let mut left = self.definition.ranges.clone();
        let mut shown = None;
        while let Err(error) = self.open_left(&mut left).await {
            let trouble = ClusterTrouble { reason: error.to_string(), ends_when: error.ends_when() };
            if shown.as_ref() != Some(&trouble) {
                tracing::warn!(run = %self.runner.id, %error, "partitions of the cluster cannot be opened yet");
                self.shows(Some(trouble.clone()));
                shown = Some(trouble);
            }
            tokio::time::sleep(error.retry()).await;
        }
        self.shows(None);
    }

    fn shows(&self, trouble: Option<ClusterTrouble>) {
        self.runner.change(|holds| set(&mut holds.cluster, trouble));
    }

    /// Each as far as it goes: one that cannot be opened holds up no other.
    async fn open_left(&self, left: &mut Vec<RunRange>) -> Result<(), OpenError> {
        let name = self.definition.topic.as_str();
        let topic = There::find(Arc::clone(&self.client), name).await?;
        if topic.id().is_nil() {
            return Err(OpenError::NoId(name.to_owned()));
        }
        if topic.id() != self.topic {
            return Err(OpenError::OtherTopic(name.to_owned()));
        }
        let letters_of = match self.definition.kind {
            RunKind::Replay => None,
            RunKind::Redrive => Some(ids_of_topics(&self.client, &self.spec).await?),
        };
        let mut failed = None;
        let mut ranges = std::mem::take(left).into_iter();
        while let Some(range) = ranges.next() {
            let Err(error) = self.open_one(&topic, range, letters_of.clone()).await else { continue };
            left.push(range);
            // A broker that cannot be reached is not asked for each.
            if matches!(error, OpenError::Cluster(ClusterError::Call(_))) {
                left.extend(ranges);
                return Err(error);
            }
            failed = failed.or(Some(error));
        }
        failed.map_or(Ok(()), Err)
    }

    async fn open_one(
        &self,
        topic: &There,
        range: RunRange,
        letters_of: Option<HashMap<String, Uuid>>,
    ) -> Result<(), OpenError> {
        let (id, partition) = (self.runner.id, range.partition);
        let input = topic.input(partition, range.first()).await?;
        let Some(inner) = self.service.upgrade() else { return Ok(()) };
        let service = TriggerService { inner };
        let lane = LaneId { trigger: id, topic: self.topic, partition };
        let run = RunLane {
            until: range.next(),
            gate: self.gate.clone(),
            input: letters_of.map_or_else(|| input.clone(), |topics| input.clone().with_letters_of(topics)),
            completion: Arc::clone(&self.completion),
        };
        let lane = service.new_lane(&self.runner, input.clone(), lane, Some(run)).map_err(OpenError::Lane)?;
        let mut runs = service.inner.runs.write();
        // It may have been cancelled in this moment, and have been resumed.
        let is_this = |active: &&mut ActiveRun| Arc::ptr_eq(&active.running.runner, &self.runner);
        if let Some(active) = runs.get_mut(&id).filter(is_this) {
            let (poller, task) = poller::spawn(input, service.inner.tracker.clone());
            active.running.insert(Arc::clone(&lane.status), poller.clone());
            poller.send(Message::Add(Box::new(lane)));
            active.own.pollers.push((poller, task));
        }
        Ok(())
    }
}
