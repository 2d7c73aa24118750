//! Runs: starting, cancelling, resuming and ending them. What they are is told in [`crate::trigger::run`].

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;
use tripline_storage::Offset;
use uuid::Uuid;

use super::lanes::start_at;
use super::run_topic::{LookedUp, RunTopic};
use super::{ChoiceError, Running, TriggerService, stop};
use crate::broker::codec;
use crate::broker::journal::JournalError;
use crate::broker::record::{JournalRecord, LaneId, RunDefined, RunForgotten, RunState, RunSwitched, TriggerProgress};
use crate::broker::state::{RunEntry, State};
use crate::broker::{NoPartition, Topic};
use crate::input::EventInput;
use crate::trigger::dry_run::{DryRun, DryRunReport, DryRunRequest};
use crate::trigger::filter::PatternError;
use crate::trigger::flow::PerKey;
use crate::trigger::lane_status::LaneStatus;
use crate::trigger::poller::{Message, NewLane, PollerHandle, RunLane};
use crate::trigger::progress::Progress;
use crate::trigger::run::{
    Completion, Gate, Left, REMEMBERED_MAX, RUNNING_MAX, ReplayRequest, RunCounts, RunDefinition, RunKind, RunRange,
    ScanError,
};
use crate::trigger::runner::{DISK_RETRY, Runner};
use crate::trigger::spec::TriggerSpec;

/// Why a run was not started, cancelled or resumed. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// There is no trigger with this name.
    #[error("trigger {0} does not exist")]
    UnknownTrigger(String),
    /// The trigger has no such run.
    #[error("trigger {trigger} has no run {run}")]
    UnknownRun {
        /// The trigger.
        trigger: String,
        /// The run.
        run: Uuid,
    },
    /// The trigger keeps no dead letters, or their topic is gone.
    #[error("trigger {0} has no dead-letter topic: name one as `dead_letter` in its definition")]
    NoDeadLetters(String),
    /// It is not clear which of its topics is meant.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// The topic has no such partition, or it is named twice.
    #[error("topic {topic} has partitions 0 to {last}, each of which can be named once; found {found}")]
    Partition {
        /// The topic.
        topic: String,
        /// Its last partition.
        last: u32,
        /// What was asked for.
        found: u32,
    },
    /// A partition is offline.
    #[error(transparent)]
    Offline(#[from] NoPartition),
    /// Offsets were named, and none of the partitions has a record there.
    #[error("from, to: topic {topic} has no record there: `from` must be below `to`, and below the tail")]
    Empty {
        /// The topic.
        topic: String,
    },
    /// The run is not in a state in which this is possible.
    #[error("{0}")]
    State(String),
    /// The cluster did not do what was asked.
    #[error("trigger.input.cluster: {0}")]
    Cluster(String),
    /// The range could not be looked through.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// It could not be remembered.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is remembered of it does not read back.
    #[error("{0}")]
    Lane(String),
}

impl From<PatternError> for RunError {
    fn from(error: PatternError) -> Self {
        Self::Lane(format!("a pattern in the state journal: {error}"))
    }
}

/// What works for one run alone: nothing, where it shares the pollers of its topic.
#[derive(Debug, Default)]
pub(super) struct OwnWork {
    /// Opens its partitions; ends with the run.
    pub(super) opening: Option<AbortOnDropHandle<()>>,
    pub(super) pollers: Vec<(PollerHandle, JoinHandle<()>)>,
}

impl OwnWork {
    /// Nothing more begins; what is in flight may end. Answers who does it.
    pub(super) async fn stop(&mut self) -> Vec<JoinHandle<()>> {
        if let Some(opening) = self.opening.take() {
            opening.abort();
            // Until it has let go of the broker.
            let _ = opening.await;
        }
        let pollers = std::mem::take(&mut self.pollers).into_iter();
        let stopped = pollers.map(|(poller, task)| {
            poller.send(Message::Stop);
            task
        });
        stopped.collect()
    }
}

/// A run that goes on.
#[derive(Debug)]
pub(super) struct ActiveRun {
    pub(super) trigger: Uuid,
    pub(super) definition: RunDefinition,
    /// What was counted before the broker started, or before it was resumed.
    pub(super) counted: RunCounts,
    pub(super) running: Running,
    /// Waits for its end.
    ending: JoinHandle<()>,
    completion: Arc<Completion>,
    /// What nobody shares with it, on a cluster.
    pub(super) own: OwnWork,
}

impl ActiveRun {
    pub(super) fn counts(&self) -> RunCounts {
        let counters = &self.running.runner.counters;
        let passed_over = counters.passed_over.load(std::sync::atomic::Ordering::Relaxed);
        self.counted.with(&counters.snapshot(), passed_over)
    }
}

/// What a run was told to be.
pub(super) fn definition(entry: &RunEntry) -> Result<RunDefinition, RunError> {
    serde_json::from_str(&entry.defined.definition)
        .map_err(|error| RunError::Lane(format!("run {} in the state journal: {error}", entry.defined.id)))
}

pub(super) fn counted(entry: &RunEntry) -> RunCounts {
    if entry.counts.is_empty() {
        return RunCounts::default();
    }
    codec::decode_part(&entry.counts).unwrap_or_else(|reason| {
        tracing::error!(run = %entry.defined.id, reason, "counts in the journal do not decode");
        RunCounts::default()
    })
}

/// How far a run is in a partition, as the journal says; `None` before it has begun there.
pub(super) fn run_progress(state: &State, entry: &RunEntry, partition: u32) -> Option<Progress> {
    let lane = LaneId { trigger: entry.defined.id, topic: entry.defined.topic, partition };
    let bytes = state.lanes.get(&lane).and_then(|lane| lane.progress.as_deref())?;
    Progress::decode(bytes).ok()
}

/// Below it everything in one of its ranges is finished.
pub(super) fn noted(state: &State, entry: &RunEntry, range: &RunRange) -> Offset {
    let progress = run_progress(state, entry, range.partition);
    progress.map_or_else(|| range.first(), |progress| progress.committed()).clamp(range.first(), range.next())
}

/// The trigger's definition as its run follows it: what became a dead letter was let through by a filter already, and
/// what drops records of a busy key would lose it, as it then counts as redriven. What only delays them stays. No
/// window has more records than may begin in a second, since a window begins as a whole.
fn run_spec(spec: &TriggerSpec, definition: &RunDefinition) -> TriggerSpec {
    let mut spec = spec.clone();
    if definition.kind == RunKind::Redrive {
        spec.filter = None;
        spec.per_key = PerKey { debounce: None, singleton: None, ..spec.per_key };
    }
    spec.window.count = spec.window.count.min(definition.rate.unwrap_or(u32::MAX));
    spec
}

impl TriggerService {
    /// Has a range of a trigger's input go through it again, beside its live lanes. Durable on return, with its range.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn replay(&self, name: &str, request: ReplayRequest) -> Result<Uuid, RunError> {
        let (service, name) = (self.clone(), name.to_owned());
        self.inner.broker.to_the_end(async move { service.replay_now(&name, request).await }).await
    }

    async fn replay_now(&self, name: &str, request: ReplayRequest) -> Result<Uuid, RunError> {
        // To look for a time takes a while: nobody waits for that.
        let mut looked_up = self.input_of(name, request.topic.as_deref()).await?;
        self.ask_what_to_forget(&mut looked_up).await?;
        let ranges = looked_up.topic.ranges(&request.ranges).await?;
        let definition = RunDefinition {
            kind: RunKind::Replay,
            topic: looked_up.topic.name().to_owned(),
            ranges,
            filter: None,
            rate: request.rate,
            redrives_max: None,
            again: false,
            left: Left::default(),
        };
        let _changing = self.inner.changing.lock().await;
        self.still_holds(name, &looked_up)?;
        self.begin_run(&looked_up, definition, Vec::new()).await
    }

    /// What a filter would do with a range of a trigger's input; nothing is invoked.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn dry_run(&self, name: &str, request: &DryRunRequest) -> Result<DryRunReport, RunError> {
        let LookedUp { spec, topic, .. } = self.input_of(name, request.topic.as_deref()).await?;
        let ranges = topic.ranges(&request.ranges).await?;
        let filter = request.filter.as_ref().or(spec.filter.as_ref());
        let mut run = DryRun::new((filter, &spec.transform), request);
        for range in &ranges {
            if run.leaves(range) {
                continue;
            }
            // Let go before the next is opened: on a cluster each has connections of its own, and what it has fetched.
            let input = topic.input(&self.inner.broker, range.partition).await?;
            run.look_through(&input, range).await.map_err(|error| topic.scan_failed(error))?;
        }
        Ok(run.finish())
    }

    /// A partition of the cluster that a trigger reads, to look at: of this topic, or of the only one that it reads.
    /// `None`: it reads topics of this broker.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn input_on_cluster(
        &self,
        name: &str,
        topic: Option<&str>,
        partition: u32,
    ) -> Result<Option<EventInput>, RunError> {
        let runner = self.trigger(name)?;
        match &runner.spec().input.cluster {
            #[cfg(feature = "cluster")]
            Some(_) => Ok(Some(self.partition_there(&runner, topic, partition).await?)),
            _ => {
                let _ = (topic, partition);
                Ok(None)
            }
        }
    }

    /// Stops a run; what it has finished stays finished, and [`TriggerService::resume_run`] goes on from there.
    /// Invocations under way are given up, and made again then.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn cancel_run(&self, name: &str, run: Uuid) -> Result<(), RunError> {
        let (service, name) = (self.clone(), name.to_owned());
        self.inner
            .broker
            .to_the_end(async move {
                let _changing = service.inner.changing.lock().await;
                let entry = service.run_entry(&name, run)?;
                match entry.state {
                    RunState::Cancelled => Ok(()),
                    RunState::Done | RunState::Replaced => Err(RunError::State(format!("run {run} has ended"))),
                    RunState::Running => {
                        let counts = service.end_run(run).await.unwrap_or_else(|| counted(&entry));
                        Ok(service.switch_run(run, RunState::Cancelled, counts).await?)
                    }
                }
            })
            .await
    }

    /// Goes on with a cancelled run; one that waits, because of an outage or code that does not run, tries again at
    /// once.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn resume_run(&self, name: &str, run: Uuid) -> Result<(), RunError> {
        let (service, name) = (self.clone(), name.to_owned());
        self.inner
            .broker
            .to_the_end(async move {
                let _changing = service.inner.changing.lock().await;
                let entry = service.run_entry(&name, run)?;
                match entry.state {
                    RunState::Done | RunState::Replaced => {
                        return Err(RunError::State(format!("run {run} has ended; start another one")));
                    }
                    RunState::Cancelled => {
                        service.allow_one_more(entry.defined.trigger)?;
                        service.switch_run(run, RunState::Running, counted(&entry)).await?;
                    }
                    RunState::Running => {}
                }
                let active = service.inner.runs.read().get(&run).map(|active| Arc::clone(&active.running.runner));
                match active {
                    Some(runner) => service.retry_function(&runner),
                    None => service.start_run(&service.run_entry(&name, run)?).map_err(RunError::Lane)?,
                }
                Ok(())
            })
            .await
    }

    /// Gives up what a run waits to try again, as [`TriggerService::skip`] does for the live lanes. Answers how many
    /// records that were.
    ///
    /// # Errors
    /// [`RunError::UnknownTrigger`] and [`RunError::UnknownRun`].
    pub async fn skip_in_run(&self, name: &str, run: Uuid) -> Result<usize, RunError> {
        self.run_entry(name, run)?;
        let pollers = self.inner.runs.read().get(&run).map(|active| active.running.pollers.clone());
        let mut skipped = 0;
        for poller in pollers.unwrap_or_default() {
            skipped += poller.skip(run).await;
        }
        Ok(skipped)
    }

    pub(super) fn trigger(&self, name: &str) -> Result<Arc<Runner>, RunError> {
        self.runner(name).ok_or_else(|| RunError::UnknownTrigger(name.to_owned()))
    }

    pub(super) fn run_entry(&self, name: &str, run: Uuid) -> Result<RunEntry, RunError> {
        let trigger = self.trigger(name)?.id;
        let entry = self.inner.broker.journal().look(|state| state.runs.get(&run).cloned());
        entry
            .filter(|entry| entry.defined.trigger == trigger)
            .ok_or_else(|| RunError::UnknownRun { trigger: name.to_owned(), run })
    }

    /// Remembers a run, with its start, and starts it. `with`: what is remembered in the same moment.
    pub(super) async fn begin_run(
        &self,
        looked_up: &LookedUp,
        definition: RunDefinition,
        with: Vec<JournalRecord>,
    ) -> Result<Uuid, RunError> {
        let LookedUp { runner, spec, topic } = looked_up;
        topic.has_id()?;
        self.allow_one_more(runner.id)?;
        let mut records = with;
        records.extend(self.forget_ended(runner, topic)?);
        let id = Uuid::new_v4();
        let text = serde_json::to_string(&definition).expect("a definition is JSON");
        let created_ms = self.inner.clock.now_ms();
        records.push(RunDefined { id, trigger: runner.id, topic: topic.id(), definition: text, created_ms }.into());
        for range in &definition.ranges {
            let lane = LaneId { trigger: id, topic: topic.id(), partition: range.partition };
            records.push(TriggerProgress { lane, progress: start_at(range.first()) }.into());
        }
        // The ranges lie on stable storage before the run does: what is in them stays in them.
        self.remember(&records, &topic.sources(&definition.ranges)).await?;
        let entry = self.inner.broker.journal().look(|state| state.runs.get(&id).cloned());
        let entry = entry.ok_or_else(|| RunError::UnknownTrigger(spec.name.to_string()))?;
        self.start_run(&entry).map_err(RunError::Lane)?;
        Ok(id)
    }

    fn allow_one_more(&self, trigger: Uuid) -> Result<(), RunError> {
        let running = self.inner.runs.read().values().filter(|active| active.trigger == trigger).count();
        if running < RUNNING_MAX {
            return Ok(());
        }
        Err(RunError::State(format!("{running} runs of this trigger go on, which is the most: wait, or cancel one")))
    }

    /// What is to be known before some run is forgotten, where so many are remembered that one must be.
    pub(super) async fn ask_what_to_forget(&self, looked_up: &mut LookedUp) -> Result<(), RunError> {
        let remembered = self.inner.broker.journal().look(|state| state.runs_of(looked_up.runner.id).len());
        if remembered >= REMEMBERED_MAX { looked_up.topic.ask_log_starts().await } else { Ok(()) }
    }

    /// Makes room for one more run: those that have ended and tell nothing any more are forgotten, then cancelled
    /// replays, which nobody has resumed for so many runs. A cancelled redrive tells which letters it took.
    pub(super) fn forget_ended(&self, trigger: &Runner, topic: &RunTopic) -> Result<Vec<JournalRecord>, RunError> {
        let entries: Vec<RunEntry> =
            self.inner.broker.journal().look(|state| state.runs_of(trigger.id).into_iter().cloned().collect());
        let discarded = self.discarded_below(trigger, topic.id());
        // What lies before is gone, or not wanted any more.
        let log_start = |partition| {
            let starts = topic.log_start(partition).into_iter().chain(discarded.get(&partition).copied());
            starts.max().unwrap_or(Offset::ZERO)
        };
        // A cluster has one topic of a name.
        let has_gone = |id, definition: &RunDefinition| match topic.local() {
            Some(_) => self.inner.broker.topic_by_id(id).is_none(),
            None => definition.topic == topic.name(),
        };
        let redrives: Vec<(Uuid, RunDefinition)> = entries
            .iter()
            .filter(|entry| entry.state.has_ended() && entry.defined.topic == topic.id())
            .filter_map(|entry| Some((entry.defined.id, definition(entry).ok()?)))
            .filter(|(_, definition)| definition.kind == RunKind::Redrive)
            .collect();
        // The newer one stays of two that cover each other.
        let is_covered = |id: Uuid, definition: &RunDefinition| {
            let place = redrives.iter().position(|(other, _)| *other == id).unwrap_or(usize::MAX);
            redrives.iter().enumerate().any(|(index, (other, wider))| {
                *other != id
                    && definition.is_covered_by(wider, log_start)
                    && (index > place || !wider.is_covered_by(definition, log_start))
            })
        };
        let tells_nothing = |entry: &&RunEntry| {
            let Ok(definition) = definition(entry) else { return true };
            let is_gone = definition.ranges.iter().all(|range| range.next() <= log_start(range.partition));
            definition.kind == RunKind::Replay
                || entry.defined.topic != topic.id() && has_gone(entry.defined.topic, &definition)
                || entry.defined.topic == topic.id() && (is_gone || is_covered(entry.defined.id, &definition))
        };
        let surplus = (entries.len() + 1).saturating_sub(REMEMBERED_MAX);
        let ended = entries.iter().filter(|entry| entry.state.has_ended()).filter(tells_nothing);
        let is_replay = |entry: &RunEntry| definition(entry).is_ok_and(|definition| definition.kind == RunKind::Replay);
        let cancelled = entries.iter().filter(|entry| entry.state == RunState::Cancelled && is_replay(entry));
        let forgotten: Vec<JournalRecord> =
            ended.chain(cancelled).take(surplus).map(|entry| RunForgotten { id: entry.defined.id }.into()).collect();
        if forgotten.len() < surplus {
            let most = format!(
                "{} runs of this trigger are remembered, which is the most: discard dead letters that were redriven, or redrive without a filter",
                entries.len()
            );
            return Err(RunError::State(most));
        }
        Ok(forgotten)
    }

    /// Starts the lanes of a run where the journal says.
    pub(super) fn start_run(&self, entry: &RunEntry) -> Result<(), String> {
        debug_assert!(self.is_changing(), "runs start within a change");
        let (id, trigger) = (entry.defined.id, entry.defined.trigger);
        let definition = definition(entry).map_err(|error| error.to_string())?;
        let owner = self.runner_of(trigger);
        let owner = owner.ok_or_else(|| format!("the trigger of run {id} does not run"))?;
        #[cfg(feature = "cluster")]
        if owner.spec().input.cluster.is_some() {
            return self.start_run_there(entry, &owner, definition);
        }
        let topic = self.inner.broker.topic_by_id(entry.defined.topic);
        let topic = topic.ok_or_else(|| format!("topic {} of run {id} does not exist", definition.topic))?;
        self.set_back(id, &topic).map_err(|error| error.to_string())?;
        let gate = self.gate_of_run(&owner, entry, &definition)?;
        let runner = self.runner_of_run(id, &owner.spec(), &definition);
        let completion = Arc::new(Completion::of(definition.ranges.len()));
        let mut lanes = Vec::new();
        for range in &definition.ranges {
            // The others go on; the run does not end before this one is there.
            if !matches!(topic.partition(range.partition), Err(NoPartition::Offline { .. })) {
                lanes.push(self.lane_of_run(&owner, &runner, (&topic, range), gate.as_ref(), &completion)?);
            }
        }
        let mut running = Running::new(runner);
        self.drive(&mut running, &topic, lanes)?;
        let active = self.active_run(entry, definition, running, completion);
        self.inner.runs.write().insert(id, active);
        Ok(())
    }

    /// The lane of a run in a partition of this broker, where the journal says.
    fn lane_of_run(
        &self,
        owner: &Runner,
        runner: &Arc<Runner>,
        (topic, range): (&Topic, &RunRange),
        gate: Option<&Arc<Gate>>,
        completion: &Arc<Completion>,
    ) -> Result<NewLane, String> {
        let lane = LaneId { trigger: runner.id, topic: topic.id(), partition: range.partition };
        let log = self.log_input(topic, range.partition)?;
        let input = match gate {
            Some(_) => log.clone().with_letters_of(self.ids_of_topics(owner.spec().name.as_str())),
            None => log.clone(),
        };
        let run = RunLane { until: range.next(), gate: gate.cloned(), input, completion: Arc::clone(completion) };
        self.new_lane(runner, log, lane, Some(run))
    }

    /// Goes on with a run in a partition that was offline.
    pub(super) fn go_on_in(&self, id: Uuid, owner: &Runner, topic: &Topic, partition: u32) -> Result<(), String> {
        debug_assert!(self.is_changing(), "lanes of a run start within a change");
        let entry = self.inner.broker.journal().look(|state| state.runs.get(&id).cloned());
        let entry = entry.ok_or("it is not remembered")?;
        let definition = definition(&entry).map_err(|error| error.to_string())?;
        let gate = self.gate_of_run(owner, &entry, &definition)?;
        let gone = "it does not go on any more";
        let (runner, completion) = {
            let runs = self.inner.runs.read();
            let active = runs.get(&id).ok_or(gone)?;
            (Arc::clone(&active.running.runner), Arc::clone(&active.completion))
        };
        let ranges = definition.ranges.iter().filter(|range| range.partition == partition);
        let lane = |range| self.lane_of_run(owner, &runner, (topic, range), gate.as_ref(), &completion);
        let mut lanes = ranges.map(lane).collect::<Result<Vec<_>, _>>()?.into_iter();
        let mut runs = self.inner.runs.write();
        let active = runs.get_mut(&id).ok_or(gone)?;
        lanes.try_for_each(|lane| self.drive_one(&mut active.running, topic, lane))
    }

    /// Which letters it takes; `None` for a replay, which leaves that to the trigger's filter.
    pub(super) fn gate_of_run(
        &self,
        owner: &Runner,
        entry: &RunEntry,
        definition: &RunDefinition,
    ) -> Result<Option<Arc<Gate>>, String> {
        if definition.kind == RunKind::Replay {
            return Ok(None);
        }
        let gate = self.gate(owner, entry.defined.topic, definition, Some(entry.defined.id));
        Ok(Some(Arc::new(gate.map_err(|error| error.to_string())?)))
    }

    pub(super) fn runner_of_run(&self, id: Uuid, owner: &TriggerSpec, definition: &RunDefinition) -> Arc<Runner> {
        let (broker, functions) = (self.inner.broker.clone(), self.inner.functions.clone());
        let (clock, traces) = (self.inner.clock, self.inner.traces.clone());
        let runner = Runner::new(id, run_spec(owner, definition), broker, functions, clock, traces, None);
        Arc::new(runner.of_run(definition.rate))
    }

    /// A run that goes on from here, and ends when its lanes have.
    pub(super) fn active_run(
        &self,
        entry: &RunEntry,
        definition: RunDefinition,
        running: Running,
        completion: Arc<Completion>,
    ) -> ActiveRun {
        ActiveRun {
            trigger: entry.defined.trigger,
            definition,
            counted: counted(entry),
            running,
            ending: self.end_when_done(entry.defined.id, Arc::clone(&completion)),
            completion,
            own: OwnWork::default(),
        }
    }

    fn end_when_done(&self, id: Uuid, completion: Arc<Completion>) -> JoinHandle<()> {
        let inner = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            completion.wait().await;
            loop {
                let Some(inner) = inner.upgrade() else { return };
                match (Self { inner }).finish_run(id).await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(run = %id, %error, "the end of a run is not remembered yet"),
                }
                tokio::time::sleep(DISK_RETRY).await;
            }
        })
    }

    async fn finish_run(&self, id: Uuid) -> Result<(), JournalError> {
        let _changing = self.inner.changing.lock().await;
        let Some(counts) = self.inner.runs.read().get(&id).map(ActiveRun::counts) else { return Ok(()) };
        self.switch_run(id, RunState::Done, counts).await?;
        tracing::info!(run = %id, ?counts, "run done");
        // This is called by the task that would be ended with it.
        let ended = self.inner.runs.write().remove(&id);
        if let Some(mut active) = ended {
            self.end_run_lanes(id, &mut active).await;
        }
        Ok(())
    }

    pub(super) async fn switch_run(&self, id: Uuid, state: RunState, counts: RunCounts) -> Result<(), JournalError> {
        let since_ms = self.inner.clock.now_ms();
        let switched = RunSwitched { id, state, since_ms, counts: codec::encode_part(&counts) };
        self.remember(&[switched.into()], &[]).await
    }

    /// Ends the lanes of a run at once; what is in flight is cut off. Answers what it counted; `None` when it does not
    /// go on.
    pub(super) async fn end_run(&self, id: Uuid) -> Option<RunCounts> {
        let mut active = self.inner.runs.write().remove(&id)?;
        active.ending.abort();
        self.end_run_lanes(id, &mut active).await;
        // Not before: an attempt may have ended meanwhile, and is in the progress then.
        Some(active.counts())
    }

    async fn end_run_lanes(&self, id: Uuid, active: &mut ActiveRun) {
        stop(&active.running.runner);
        PollerHandle::remove_from_all(&active.running.pollers, id).await;
        active.own.stop().await;
        active.running.topics.iter().for_each(|topic| self.end_pollers(topic.id()));
    }

    /// Ends all runs of a trigger that is no more.
    pub(super) async fn end_runs(&self, trigger: Uuid) {
        let ids: Vec<Uuid> = {
            let runs = self.inner.runs.read();
            runs.iter().filter(|(_, active)| active.trigger == trigger).map(|(id, _)| *id).collect()
        };
        for id in ids {
            self.end_run(id).await;
        }
    }

    /// The broker stops: nobody waits for the end of a run any more. Answers what was running, and who ends what is in
    /// flight for runs alone.
    pub(super) async fn stop_runs(&self) -> (Vec<(Uuid, ActiveRun)>, Vec<JoinHandle<()>>) {
        let mut runs: Vec<(Uuid, ActiveRun)> = std::mem::take(&mut *self.inner.runs.write()).into_iter().collect();
        let mut own = Vec::new();
        for (_, active) in &mut runs {
            active.ending.abort();
            // Until it has let go of the broker.
            let _ = (&mut active.ending).await;
            stop(&active.running.runner);
            own.extend(active.own.stop().await);
        }
        (runs, own)
    }

    /// The lanes of these runs have ended with the broker: what they counted is remembered for the next start.
    pub(super) fn remember_counts(&self, stopped: &[(Uuid, ActiveRun)]) {
        let journal = self.inner.broker.journal();
        let switched = stopped.iter().filter_map(|(id, active)| {
            let since_ms = journal.look(|state| state.runs.get(id).map(|entry| entry.since_ms))?;
            let counts = codec::encode_part(&active.counts());
            Some(RunSwitched { id: *id, state: RunState::Running, since_ms, counts }.into())
        });
        let records: Vec<JournalRecord> = switched.collect();
        if let Err(error) = journal.append(&records, crate::broker::now_ms()) {
            tracing::warn!(%error, "the counts of runs are not remembered");
        }
    }

    /// Runs follow the definition of their trigger.
    pub(super) fn redefine_runs(&self, trigger: Uuid, spec: &TriggerSpec) {
        for active in self.inner.runs.read().values().filter(|active| active.trigger == trigger) {
            active.running.runner.redefine(run_spec(spec, &active.definition));
        }
    }

    /// Where a run stands in the partitions of its range, whether it goes on or not.
    pub(super) fn run_positions(&self, entry: &RunEntry, definition: &RunDefinition) -> Vec<(RunRange, Offset)> {
        let active: Option<Vec<Arc<LaneStatus>>> =
            self.inner.runs.read().get(&entry.defined.id).map(|active| active.running.lanes.clone());
        let at = |range: &RunRange| {
            if entry.state.has_ended() {
                return range.next();
            }
            if let Some(lane) = active.iter().flatten().find(|lane| lane.number() == range.partition) {
                return lane.committed();
            }
            self.inner.broker.journal().look(|state| noted(state, entry, range))
        };
        definition.ranges.iter().map(|range| (*range, at(range).clamp(range.first(), range.next()))).collect()
    }
}
