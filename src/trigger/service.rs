//! Triggers at work: the service that runs them and the handle that everybody else has.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::task::JoinHandle;
use tripline_storage::{Offset, Partition};
use uuid::Uuid;

use super::lane_status::LaneStatus;
use super::poller::{self, Message, NewLane, PollerHandle};
use super::progress::Progress;
use super::runner::{Clock, Runner, inline_function};
use super::spec::{FunctionRef, StartPosition, TriggerSpec};
use crate::broker::journal::JournalError;
use crate::broker::record::{
    JournalRecord, LaneId, TriggerDefined, TriggerProgress, TriggerRemoved, TriggerSettled, TriggerSwitched,
};
use crate::broker::state::{LaneState, TriggerEntry};
use crate::broker::{Broker, CreateTopicError, Topic};
use crate::function::{DeployError, FunctionService, FunctionSpec, Instances, Payload, Runtime};
use crate::input::{EventInput, LogInput};
use crate::topic::name::TopicName;
use crate::topic::spec::{TopicConfig, TopicSpec};

#[cfg(feature = "cluster")]
mod cluster;

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
    /// Its partitions.
    pub lanes: Vec<LaneReport>,
    /// Since the broker started.
    pub counts: TriggerCounts,
}

/// What applying a definition did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// There was none with this name.
    pub created: bool,
    /// It differs from what was there.
    pub changed: bool,
    /// What its owner should know, one sentence each.
    pub warnings: Vec<String>,
}

/// Why a definition was not applied. Nothing has changed then, but a missing dead-letter topic may have been made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyTriggerError {
    /// The topic it reads does not exist, and topics are not made by themselves.
    #[error("trigger.input.topic: topic {0} does not exist; create it first")]
    UnknownTopic(String),
    /// The function does not exist.
    #[error("trigger.function: function {0} does not exist; apply it first")]
    UnknownFunction(String),
    /// A function that is a transform step does not exist.
    #[error("trigger.transform: function {0} does not exist; apply it first")]
    UnknownStep(String),
    /// The function cannot take what the trigger hands it.
    #[error("{0}")]
    Unfit(String),
    /// An existing trigger reads another topic: its progress would mean nothing there.
    #[error("trigger.input.topic: found {found}, the trigger reads {current}; delete it first, or choose another name")]
    OtherTopic {
        /// In the new definition.
        found: String,
        /// What it reads.
        current: String,
    },
    /// An existing trigger reads from somewhere else: its progress would mean nothing there.
    #[error(
        "trigger.input.cluster: an existing trigger does not move between this broker and a cluster; delete it first, or choose another name"
    )]
    OtherPlace,
    /// The cluster did not do what was asked.
    #[error("trigger.input.cluster: {0}")]
    Cluster(String),
    /// A topic could not be made.
    #[error(transparent)]
    Topic(#[from] CreateTopicError),
    /// The function behind a URL is refused.
    #[error("trigger.function.http.url: {0}")]
    Deploy(#[from] DeployError),
    /// The start position could not be looked up.
    #[error("trigger.input.start: {0}")]
    Start(#[from] tripline_storage::error::ReadError),
    /// It could not be remembered.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is remembered of it does not read back.
    #[error("{0}")]
    Lane(String),
}

/// Why a trigger was not paused or resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TriggerError {
    /// There is none with this name.
    #[error("trigger {0} does not exist")]
    Unknown(String),
    /// It could not be remembered.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Why a trigger was not set to other offsets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResetTriggerError {
    /// There is none with this name.
    #[error("trigger {0} does not exist")]
    Unknown(String),
    /// It runs: its next commit would overwrite the reset.
    #[error("trigger {0} is not paused; pause it first")]
    NotPaused(String),
    /// It has no such partition, or the partition no such offset.
    #[error("partition {partition} of trigger {name} has offsets {log_start} to {tail}, found {found}")]
    Offset {
        /// The trigger.
        name: String,
        /// The partition.
        partition: u32,
        /// What was asked for.
        found: Offset,
        /// The first offset that there is.
        log_start: Offset,
        /// One after the last.
        tail: Offset,
    },
    /// It could not be remembered.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is remembered of it does not read back.
    #[error("{0}")]
    Lane(String),
}

/// Why the triggers of the journal could not be started.
#[derive(Debug, thiserror::Error)]
#[error("trigger {name} in the state journal: {reason}")]
pub struct RestoreTriggerError {
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub reason: String,
}

/// All triggers at work. Clones are handles to the same ones. Needs a tokio runtime.
#[derive(Clone, Debug)]
pub struct TriggerService {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    broker: Broker,
    functions: FunctionService,
    clock: Clock,
    running: RwLock<BTreeMap<String, Running>>,
    /// By topic and partition.
    pollers: Mutex<HashMap<(Uuid, u32), Poller>>,
    /// One definition changes at a time.
    changing: tokio::sync::Mutex<()>,
}

/// The task that drives a partition's lanes.
type Poller = (PollerHandle, JoinHandle<()>);

#[derive(Debug)]
struct Running {
    runner: Arc<Runner>,
    lanes: Vec<Arc<LaneStatus>>,
    pollers: Vec<PollerHandle>,
    /// In its group, on a cluster.
    #[cfg(feature = "cluster")]
    place: Option<cluster::Place>,
}

impl TriggerService {
    /// Starts the triggers that the journal remembers, each where it was. Functions must have been restored before. A trigger
    /// that cannot be started is in the answer; the others run.
    #[must_use]
    pub fn start(broker: Broker, functions: FunctionService) -> (Self, Vec<RestoreTriggerError>) {
        let inner = Inner {
            broker,
            functions,
            clock: Clock::start(),
            running: RwLock::default(),
            pollers: Mutex::default(),
            changing: tokio::sync::Mutex::new(()),
        };
        let service = Self { inner: Arc::new(inner) };
        let entries: Vec<TriggerEntry> =
            service.inner.broker.journal().look(|state| state.triggers.values().cloned().collect());
        let failed = entries.into_iter().filter_map(|entry| {
            let name = entry.defined.name.clone();
            service.restore(&entry).err().map(|reason| RestoreTriggerError { name, reason })
        });
        let failed = failed.collect();
        (service, failed)
    }

    /// The time by which triggers act and which their reports quote, ms since 1970: the wall clock's when the service started,
    /// at monotonic rate since.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.inner.clock.now_ms()
    }

    fn restore(&self, entry: &TriggerEntry) -> Result<(), String> {
        let definition = serde_json::from_str(&entry.defined.definition).map_err(|error| error.to_string())?;
        let spec = TriggerSpec::from_json(&definition).map_err(|errors| errors.to_string())?;
        #[cfg(feature = "cluster")]
        if spec.input.cluster.is_some() {
            return self.restore_on_cluster(entry.defined.id, spec, entry.paused_since_ms.is_some());
        }
        let topic = self
            .inner
            .broker
            .topic(spec.input.topic.as_str())
            .ok_or_else(|| format!("topic {} does not exist", spec.input.topic))?;
        if let Some(function) = inline_spec(&spec) {
            self.inner.functions.restore(function, 0).map_err(|error| error.to_string())?;
        }
        self.run(entry.defined.id, spec, topic, entry.paused_since_ms.is_some())
    }

    /// Starts the lanes of a trigger where the journal says.
    fn run(&self, id: Uuid, spec: TriggerSpec, topic: Arc<Topic>, paused: bool) -> Result<(), String> {
        self.set_back(id, &topic).map_err(|error| error.to_string())?;
        let name = spec.name.to_string();
        let (broker, functions) = (self.inner.broker.clone(), self.inner.functions.clone());
        let runner =
            Arc::new(Runner::new(id, spec, Some(Arc::clone(&topic)), broker, functions, self.inner.clock, paused));
        let mut lanes = Vec::new();
        for partition in 0..topic.partition_count() {
            let lane = LaneId { trigger: id, topic: topic.id(), partition };
            lanes.push(self.new_lane(&runner, &topic, lane)?);
        }
        let statuses = lanes.iter().map(|lane| Arc::clone(&lane.status)).collect();
        let pollers = lanes.into_iter().map(|lane| {
            let poller = self.poller(&topic, lane.id.partition)?;
            poller.send(Message::Add(Box::new(lane)));
            Ok(poller)
        });
        let pollers = pollers.collect::<Result<_, String>>()?;
        let running = Running {
            runner,
            lanes: statuses,
            pollers,
            #[cfg(feature = "cluster")]
            place: None,
        };
        self.inner.running.write().insert(name, running);
        Ok(())
    }

    fn new_lane(&self, runner: &Arc<Runner>, topic: &Topic, id: LaneId) -> Result<NewLane, String> {
        let missing = || format!("partition {} is missing", id.partition);
        let input = LogInput::new(&self.inner.broker, topic, id.partition).ok_or_else(missing)?;
        let journal = self.inner.broker.journal();
        let remembered: LaneState = journal.look(|state| state.lanes.get(&id).cloned().unwrap_or_default());
        let progress = match &remembered.progress {
            Some(bytes) => Progress::decode(bytes).map_err(|error| format!("partition {}: {error}", id.partition))?,
            None => Progress::start(Offset::ZERO),
        };
        let status = Arc::new(LaneStatus::new(EventInput::Log(input), progress.committed()));
        Ok(NewLane {
            runner: Arc::clone(runner),
            id,
            progress,
            remembered,
            status,
            #[cfg(feature = "cluster")]
            kept: poller::cluster::Kept::default(),
            #[cfg(feature = "cluster")]
            group: None,
        })
    }

    /// The poller of a partition, started if there is none.
    fn poller(&self, topic: &Topic, partition: u32) -> Result<PollerHandle, String> {
        let mut pollers = self.inner.pollers.lock();
        if let Some((poller, _)) = pollers.get(&(topic.id(), partition)) {
            return Ok(poller.clone());
        }
        let input = LogInput::new(&self.inner.broker, topic, partition);
        let (poller, task) =
            poller::spawn(EventInput::Log(input.ok_or_else(|| format!("partition {partition} is missing"))?));
        pollers.insert((topic.id(), partition), (poller.clone(), task));
        Ok(poller)
    }

    /// What is remembered beyond the tail of a partition is set back, durably, before anything can be appended there.
    fn set_back(&self, id: Uuid, topic: &Topic) -> Result<(), JournalError> {
        let journal = self.inner.broker.journal();
        let mut records = Vec::new();
        for (partition, log) in (0..).zip(topic.partitions()) {
            let lane = LaneId { trigger: id, topic: topic.id(), partition };
            let back =
                journal.look(|state| state.lanes.get(&lane).and_then(|remembered| set_back(remembered, log.tail())));
            if let Some(to) = back {
                tracing::warn!(topic = %topic.name(), partition, %to, "trigger beyond the tail is set back");
                records.push(self.restart(lane, to));
            }
        }
        if !records.is_empty() {
            journal.append(&records, crate::broker::now_ms())?;
            journal.flush()?;
        }
        Ok(())
    }

    /// A lane begins anew at `at`: what it had in hand is forgotten.
    fn restart(&self, lane: LaneId, at: Offset) -> JournalRecord {
        let verdicts = |state: &crate::broker::state::State| {
            state.lanes.get(&lane).map(|remembered| remembered.verdicts.keys().copied().collect())
        };
        let verdicts: Vec<i64> = self.inner.broker.journal().look(verdicts).unwrap_or_default();
        TriggerSettled { lane, progress: start_at(at), verdicts }.into()
    }

    /// Makes a trigger as defined, or changes the one with its name; progress is kept. Durable on return, with its start
    /// position.
    ///
    /// # Errors
    /// See [`ApplyTriggerError`].
    pub async fn apply(&self, spec: TriggerSpec) -> Result<Applied, ApplyTriggerError> {
        let service = self.clone();
        self.inner.broker.to_the_end(async move { service.apply_now(spec).await }).await
    }

    async fn apply_now(&self, spec: TriggerSpec) -> Result<Applied, ApplyTriggerError> {
        let _changing = self.inner.changing.lock().await;
        let current = self.runner(spec.name.as_str());
        if let Some(old) = current.as_ref().map(|runner| runner.spec())
            && old.input.topic != spec.input.topic
        {
            let (found, current) = (spec.input.topic.to_string(), old.input.topic.to_string());
            return Err(ApplyTriggerError::OtherTopic { found, current });
        }
        if let Some(old) = current.as_ref().map(|runner| runner.spec())
            && old.input.cluster.is_some() != spec.input.cluster.is_some()
        {
            return Err(ApplyTriggerError::OtherPlace);
        }
        #[cfg(feature = "cluster")]
        if spec.input.cluster.is_some() {
            return self.apply_to_cluster(spec, current).await;
        }
        let topic = self.input_topic(&spec.input.topic).await?;
        self.check_function(&spec).await?;
        self.output_topics(&spec, &topic).await?;
        let warnings = spec.warnings();
        let Some(runner) = current else {
            self.create(spec, topic).await?;
            return Ok(Applied { created: true, changed: true, warnings });
        };
        let changed = *runner.spec() != spec;
        if changed {
            self.change(&runner, spec).await?;
        }
        Ok(Applied { created: false, changed, warnings })
    }

    async fn change(&self, runner: &Runner, spec: TriggerSpec) -> Result<(), ApplyTriggerError> {
        let old = runner.spec();
        let remembered = self.remember(&[self.defined(runner.id, &spec).into()], &[]).await;
        // The function behind a URL is that of the definition in force.
        let in_force = if remembered.is_ok() { &spec } else { &*old };
        match inline_spec(in_force) {
            Some(function) => {
                self.inner.functions.deploy(function, None).await?;
            }
            None => self.remove_inline(old.name.as_str()).await,
        }
        remembered?;
        runner.redefine(spec);
        Ok(())
    }

    async fn remove_inline(&self, trigger: &str) {
        if let Err(error) = self.inner.functions.remove(&inline_function(trigger), Duration::ZERO).await {
            tracing::warn!(trigger, %error, "function of a trigger not removed");
        }
    }

    async fn create(&self, spec: TriggerSpec, topic: Arc<Topic>) -> Result<(), ApplyTriggerError> {
        // One that could not be started is started with what it remembers.
        let remembered = self.inner.broker.journal().look(|state| state.trigger_named(spec.name.as_str()));
        let id = remembered.unwrap_or_else(Uuid::new_v4);
        let mut records: Vec<JournalRecord> = vec![self.defined(id, &spec).into()];
        let mut sources = Vec::new();
        for (number, log) in (0..).zip(topic.partitions()) {
            if remembered.is_some() {
                break;
            }
            let start = start_offset(log, spec.input.start).await?;
            sources.push((Arc::clone(log), start));
            let lane = LaneId { trigger: id, topic: topic.id(), partition: number };
            records.push(TriggerProgress { lane, progress: start_at(start) }.into());
        }
        self.remember(&records, &sources).await?;
        self.run(id, spec, topic, false).map_err(ApplyTriggerError::Lane)
    }

    fn defined(&self, id: Uuid, spec: &TriggerSpec) -> TriggerDefined {
        let definition = spec.to_json().to_string();
        TriggerDefined { id, name: spec.name.to_string(), definition, created_ms: self.inner.clock.now_ms() }
    }

    async fn input_topic(&self, name: &TopicName) -> Result<Arc<Topic>, ApplyTriggerError> {
        let topic = self.inner.broker.topic_or_create(name).await?;
        topic.ok_or_else(|| ApplyTriggerError::UnknownTopic(name.to_string()))
    }

    /// Topics that the trigger writes to are made where they are missing, with as many partitions as the input.
    async fn output_topics(&self, spec: &TriggerSpec, input: &Topic) -> Result<(), ApplyTriggerError> {
        let names = spec.dead_letter.iter().chain(spec.destinations.topics().map(|(_, topic)| topic));
        for name in names {
            if self.inner.broker.topic(name.as_str()).is_some() {
                continue;
            }
            let partitions = input.partition_count();
            let made = TopicSpec { name: name.clone(), partitions, config: TopicConfig::default() };
            match self.inner.broker.create_topic(made).await {
                Ok(_) | Err(CreateTopicError::Exists(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn check_function(&self, spec: &TriggerSpec) -> Result<(), ApplyTriggerError> {
        for step in spec.transform.functions() {
            let known = self.inner.functions.describe(step.as_str());
            known.ok_or_else(|| ApplyTriggerError::UnknownStep(step.to_string()))?;
        }
        if let Some(function) = inline_spec(spec) {
            // That of an existing trigger changes with its definition, not before.
            if self.runner(spec.name.as_str()).is_none() {
                self.inner.functions.deploy(function, None).await?;
            }
            return Ok(());
        }
        let name = spec.function.label();
        let function = self.inner.functions.describe(name);
        let function = function.ok_or_else(|| ApplyTriggerError::UnknownFunction(name.to_owned()))?;
        spec.check_function(&function.spec).map_err(|error| ApplyTriggerError::Unfit(error.to_string()))
    }

    /// Ends a trigger and forgets its progress. `false` when there is none with this name.
    ///
    /// # Errors
    /// [`JournalError`]: it could not be remembered.
    pub async fn remove(&self, name: &str) -> Result<bool, JournalError> {
        let (service, name) = (self.clone(), name.to_owned());
        self.inner.broker.to_the_end(async move { service.remove_now(&name).await }).await
    }

    async fn remove_now(&self, name: &str) -> Result<bool, JournalError> {
        let _changing = self.inner.changing.lock().await;
        // Also one that could not be started.
        let Some(id) = self.inner.broker.journal().look(|state| state.trigger_named(name)) else { return Ok(false) };
        // Remembered first: what the lanes still say of themselves then is nobody's.
        self.remember(&[TriggerRemoved { id }.into()], &[]).await?;
        self.end_lanes(name).await;
        self.remove_inline(name).await;
        Ok(true)
    }

    /// Stops reading and invoking until somebody resumes; an invocation under way ends first.
    ///
    /// # Errors
    /// See [`TriggerError`].
    pub async fn pause(&self, name: &str) -> Result<(), TriggerError> {
        self.switch(name, true).await
    }

    /// Goes on after a pause, a failure or in an outage, at once.
    ///
    /// # Errors
    /// See [`TriggerError`].
    pub async fn resume(&self, name: &str) -> Result<(), TriggerError> {
        self.switch(name, false).await?;
        let runner = self.runner(name).ok_or_else(|| TriggerError::Unknown(name.to_owned()))?;
        self.retry_function(&runner);
        Ok(())
    }

    async fn switch(&self, name: &str, paused: bool) -> Result<(), TriggerError> {
        let runner = self.runner(name).ok_or_else(|| TriggerError::Unknown(name.to_owned()))?;
        if runner.holds(|holds| holds.paused) != paused {
            let since_ms = self.inner.clock.now_ms();
            self.remember(&[TriggerSwitched { id: runner.id, paused, since_ms }.into()], &[]).await?;
            runner.change(|holds| holds.paused = paused);
        }
        Ok(())
    }

    /// Sets partitions of a paused trigger to other offsets; attempts there begin anew. Durable on return.
    ///
    /// # Errors
    /// See [`ResetTriggerError`]; nothing has changed then.
    pub async fn reset(&self, name: &str, offsets: &[(u32, Offset)]) -> Result<(), ResetTriggerError> {
        let (service, name, offsets) = (self.clone(), name.to_owned(), offsets.to_vec());
        self.inner.broker.to_the_end(async move { service.reset_now(&name, &offsets).await }).await
    }

    async fn reset_now(&self, name: &str, offsets: &[(u32, Offset)]) -> Result<(), ResetTriggerError> {
        let _changing = self.inner.changing.lock().await;
        let runner = self.runner(name).ok_or_else(|| ResetTriggerError::Unknown(name.to_owned()))?;
        if !runner.holds(|holds| holds.paused) {
            return Err(ResetTriggerError::NotPaused(name.to_owned()));
        }
        let topic = runner.topic.clone().ok_or_else(|| {
            let tools = "its progress is its group's: reset that with the cluster's tools while no process runs it";
            ResetTriggerError::Lane(tools.to_owned())
        })?;
        let mut records = Vec::with_capacity(offsets.len());
        let mut sources = Vec::with_capacity(offsets.len());
        for &(partition, found) in offsets {
            let log = topic.partition(partition);
            sources.extend(log.map(|log| (Arc::clone(log), found)));
            let (log_start, tail) = log.map_or((Offset::ZERO, Offset::ZERO), |log| (log.log_start(), log.tail()));
            if log.is_none() || found < log_start || found > tail {
                let name = name.to_owned();
                return Err(ResetTriggerError::Offset { name, partition, found, log_start, tail });
            }
            let lane = LaneId { trigger: runner.id, topic: topic.id(), partition };
            records.push(self.restart(lane, found));
        }
        // The lanes end first: what they remember at their end must not come behind the reset.
        self.end_lanes(name).await;
        let remembered = self.remember(&records, &sources).await;
        let spec = (*runner.spec()).clone();
        self.run(runner.id, spec, topic, true).map_err(ResetTriggerError::Lane)?;
        Ok(remembered?)
    }

    /// Gives up what a trigger waits to try again: its records become dead letters, or are dropped; and passes over damaged
    /// ranges. Answers how many records that were; those in the function's hands are not among them.
    ///
    /// # Errors
    /// [`TriggerError::Unknown`].
    pub async fn skip(&self, name: &str, partition: Option<u32>) -> Result<usize, TriggerError> {
        let pollers = {
            let running = self.inner.running.read();
            let running = running.get(name).ok_or_else(|| TriggerError::Unknown(name.to_owned()))?;
            let lanes = running.lanes.iter().zip(&running.pollers);
            let wanted = lanes.filter(|(lane, _)| partition.is_none_or(|wanted| wanted == lane.number()));
            wanted.map(|(_, poller)| (running.runner.id, poller.clone())).collect::<Vec<_>>()
        };
        let mut skipped = 0;
        for (trigger, poller) in pollers {
            skipped += poller.skip(trigger).await;
        }
        Ok(skipped)
    }

    /// The name of a trigger that reads this topic or writes its dead letters there.
    #[must_use]
    pub fn using_topic(&self, topic: &str) -> Option<String> {
        let running = self.inner.running.read();
        let uses = |spec: &TriggerSpec| {
            let outputs = spec.dead_letter.iter().chain(spec.destinations.topics().map(|(_, name)| name));
            spec.input.cluster.is_none()
                && (spec.input.topic.as_str() == topic || outputs.into_iter().any(|name| name.as_str() == topic))
        };
        running.iter().find(|(_, running)| uses(&running.runner.spec())).map(|(name, _)| name.clone())
    }

    /// A function has new code: the triggers that failed of the old one go on.
    pub fn function_deployed(&self, function: &str) {
        let runners: Vec<_> = self.inner.running.read().values().map(|running| Arc::clone(&running.runner)).collect();
        for runner in runners {
            if runner.spec().invokes(function) {
                self.retry_function(&runner);
            }
        }
    }

    /// The name of a trigger that invokes this function.
    #[must_use]
    pub fn using_function(&self, function: &str) -> Option<String> {
        let running = self.inner.running.read();
        let mut users = running.iter().filter(|(_, running)| running.runner.spec().invokes(function));
        users.next().map(|(name, _)| name.clone())
    }

    fn retry_function(&self, runner: &Runner) {
        let spec = runner.spec();
        let steps = spec.transform.functions().map(ToString::to_string);
        for name in steps.chain([runner.function_name(&spec)]) {
            if let Err(error) = self.inner.functions.resume(&name) {
                tracing::debug!(%error, "nothing to resume");
            }
        }
        runner.nudge();
    }

    /// One trigger.
    #[must_use]
    pub fn describe(&self, name: &str) -> Option<TriggerReport> {
        self.inner.running.read().get(name).map(report)
    }

    /// The id of the topic that a trigger reads, unless that is a cluster's.
    #[must_use]
    pub fn topic_of(&self, name: &str) -> Option<Uuid> {
        self.runner(name)?.topic.as_ref().map(|topic| topic.id())
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
            if running.runner.state() == TriggerState::Paused {
                continue;
            }
            let Some(topic) = &running.runner.topic else { continue };
            for lane in &running.lanes {
                let committed = lane.committed();
                let hold = holds.entry((topic.id(), lane.number())).or_insert(committed);
                *hold = committed.min(*hold);
            }
        }
        holds
    }

    /// Ends all lanes: those that wait at once, those that invoke when their invocation ends, or after `grace`. What was in
    /// hand is done again after the next start.
    pub async fn shutdown(&self, grace: Duration) {
        let _changing = self.inner.changing.lock().await;
        #[cfg_attr(not(feature = "cluster"), expect(unused_mut, reason = "only groups are left"))]
        let mut running = std::mem::take(&mut *self.inner.running.write());
        running.values().for_each(|running| stop(&running.runner));
        let pollers = std::mem::take(&mut *self.inner.pollers.lock());
        pollers.values().for_each(|(poller, _)| poller.send(Message::Stop));
        let deadline = tokio::time::Instant::now() + grace;
        #[cfg(feature = "cluster")]
        futures_util::future::join_all(
            running.values_mut().filter_map(|running| running.place.take()).map(|place| place.leave(grace)),
        )
        .await;
        for (_, mut task) in pollers.into_values() {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
                // Until it has let go of the broker.
                let _ = task.await;
            }
        }
        running.values().flat_map(|running| &running.lanes).for_each(|lane| lane.ended());
    }

    /// Ends a trigger's lanes at once: what they are doing has no one to report to any more.
    async fn end_lanes(&self, name: &str) {
        let ended = self.inner.running.write().remove(name);
        let Some(running) = ended else { return };
        stop(&running.runner);
        #[cfg(feature = "cluster")]
        if let Some(place) = running.place {
            place.leave(Duration::ZERO).await;
        }
        for poller in &running.pollers {
            poller.remove(running.runner.id).await;
        }
        if let Some(topic) = &running.runner.topic {
            self.end_pollers(topic.id());
        }
    }

    /// The pollers of a topic that no trigger reads any more hold on to nothing.
    fn end_pollers(&self, topic: Uuid) {
        if self
            .inner
            .running
            .read()
            .values()
            .any(|running| running.runner.topic.as_ref().is_some_and(|read| read.id() == topic))
        {
            return;
        }
        self.inner.pollers.lock().retain(|(id, _), (poller, _)| {
            if *id == topic {
                poller.send(Message::Stop);
            }
            *id != topic
        });
    }

    fn runner(&self, name: &str) -> Option<Arc<Runner>> {
        self.inner.running.read().get(name).map(|running| Arc::clone(&running.runner))
    }

    async fn remember(
        &self,
        records: &[JournalRecord],
        sources: &[(Arc<Partition>, Offset)],
    ) -> Result<(), JournalError> {
        self.inner.broker.journal().commit(records, sources, crate::broker::now_ms()).await
    }
}

fn stop(runner: &Runner) {
    runner.change(|holds| holds.stopped = true);
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
        counts: running.runner.counters.snapshot(),
    }
}

fn start_at(at: Offset) -> Vec<u8> {
    Progress::start(at).encode().expect("a start has no holes")
}

/// What is remembered of a lane beyond the tail speaks of records that a power cut took: it goes on at the tail, or where
/// the first unfinished record was. `None` when nothing is.
fn set_back(remembered: &LaneState, tail: Offset) -> Option<Offset> {
    let progress = remembered.progress.as_deref().and_then(|bytes| Progress::decode(bytes).ok());
    let ahead = progress.as_ref().is_some_and(|progress| progress.reading_point() > tail)
        || remembered.verdicts.values().any(|verdict| verdict.next > tail.get());
    ahead.then(|| progress.map_or(tail, |progress| progress.committed().min(tail)))
}

/// The function behind a trigger's URL.
fn inline_spec(spec: &TriggerSpec) -> Option<FunctionSpec> {
    let FunctionRef::Http { url } = &spec.function else { return None };
    Some(FunctionSpec {
        name: inline_function(spec.name.as_str()),
        runtime: Runtime::Http { url: url.clone() },
        instances: Instances {
            min: 0,
            max: spec.concurrency.clamp(1, 1_000),
            concurrency: 1,
            idle: Duration::from_secs(60),
        },
        timeout: Duration::from_secs(30),
        memory_bytes: 256 << 20,
        environment: BTreeMap::new(),
        payload: Payload::Events,
    })
}

async fn start_offset(
    log: &Arc<Partition>,
    start: StartPosition,
) -> Result<Offset, tripline_storage::error::ReadError> {
    Ok(match start {
        StartPosition::Earliest => log.log_start(),
        StartPosition::Latest => log.tail(),
        StartPosition::Offset(offset) => offset.clamp(log.log_start(), log.tail()),
        StartPosition::Time(time) => {
            let found = Broker::offset_for_time(log, time.as_millisecond()).await?;
            found.map_or_else(|| log.tail(), |(offset, _)| offset)
        }
    })
}
