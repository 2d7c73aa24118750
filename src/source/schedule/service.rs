//! Schedules at work: the handle that everybody has, and the loop that does what the planner says is due.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::clock::Clock;
use super::owed::Owed;
use super::planner::{LATE_MAX_S, Planner, Position, Reading, past_s};
use super::recover;
use super::spec::ScheduleSpec;
use super::tick::Tick;
use super::{DEFINITIONS_BYTES_MAX, SCHEDULES_MAX};
use crate::broker::journal::JournalError;
use crate::broker::record::{
    JournalRecord, ScheduleDefined, ScheduleFired, ScheduleFiring, ScheduleRemoved, ScheduleSwitched, ScheduleTicksDone,
};
use crate::broker::state::ScheduleEntry;
use crate::broker::{Broker, CreateTopicError, NoPartition, Topic};
use crate::config::planned::Planned;
use crate::topic::partitioner::partition_of_key;

mod fire;
mod report;

pub use report::{ScheduleCounts, ScheduleReport, ScheduleState};

/// The most ticks that [`ScheduleService::next_ticks`] lists.
pub const NEXT_TICKS_MAX: u32 = 100;

/// What applying a definition did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedSchedule {
    /// There was none with this name.
    pub created: bool,
    /// It differs from what was there.
    pub changed: bool,
    /// What its owner should know, one sentence each.
    pub warnings: Vec<String>,
}

/// Why a definition was not applied. Nothing has changed then, but a missing topic may have been made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyScheduleError {
    /// The topic does not exist, and topics are not made by themselves.
    #[error("schedule.topic: topic {0} does not exist; create it first")]
    UnknownTopic(String),
    /// The partition that its key goes to is offline.
    #[error("schedule.topic: {0}")]
    Partition(#[from] NoPartition),
    /// A compacted topic keeps records by their keys.
    #[error("schedule.key: found nothing, allowed: a key, because topic {0} is compacted")]
    KeyMissing(String),
    /// There are as many as there may be.
    #[error("there are {SCHEDULES_MAX} schedules, which is the limit; delete some first")]
    TooMany,
    /// The definitions of all schedules would be too large together.
    #[error(
        "the definitions of all schedules would have {found} bytes together, allowed are {DEFINITIONS_BYTES_MAX}; keep data elsewhere"
    )]
    TooLarge {
        /// With the new one.
        found: usize,
    },
    /// A tick that was begun may be in its topic or not.
    #[error(
        "schedule {name} has begun tick {tick}, and whether its event is in its topic cannot be read: {reason}; apply it again when that can be read, or delete the schedule first, which lets go of the tick"
    )]
    UnclearTick {
        /// The schedule.
        name: String,
        /// The time of the tick.
        tick: String,
        /// Why it is not known.
        reason: String,
    },
    /// The topic could not be made.
    #[error(transparent)]
    Topic(#[from] CreateTopicError),
    /// It could not be remembered.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Why a schedule was not paused or resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// There is none with this name.
    #[error("schedule {0} does not exist")]
    Unknown(String),
    /// Its owner has it disabled.
    #[error("schedule {0} is disabled by its definition; apply it with `enabled: true`")]
    Disabled(String),
    /// It could not be remembered.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Why a schedule of the journal could not be started.
#[derive(Debug, thiserror::Error)]
#[error("schedule {name} in the state journal: {reason}")]
pub struct RestoreScheduleError {
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub reason: String,
}

/// All schedules at work. Clones are handles to the same ones. Needs a tokio runtime.
#[derive(Clone, Debug)]
pub struct ScheduleService {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    broker: Broker,
    clock: Clock,
    schedules: RwLock<Schedules>,
    turn: tokio::sync::Mutex<Turn>,
    /// How often the loop was asked to look again.
    looks: AtomicU64,
    asked: Notify,
    /// Up to which of these it has found nothing due.
    idle: watch::Sender<u64>,
    /// The loop has panicked, which is a bug of ours: schedules show it instead of standing still in silence.
    broke_down: AtomicBool,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// Whoever has it does ticks or changes definitions, one at a time.
#[derive(Debug)]
struct Turn {
    planner: Planner,
    owed: Owed,
}

#[derive(Debug, Default)]
struct Schedules {
    by_name: BTreeMap<String, Arc<Schedule>>,
    by_id: HashMap<Uuid, Arc<Schedule>>,
    /// Of all definitions together.
    definition_bytes: usize,
}

impl Schedules {
    fn insert(&mut self, schedule: Arc<Schedule>) {
        self.remove(schedule.spec.name.as_str());
        self.definition_bytes += schedule.definition_bytes;
        self.by_name.insert(schedule.spec.name.to_string(), Arc::clone(&schedule));
        self.by_id.insert(schedule.id, schedule);
    }

    fn remove(&mut self, name: &str) {
        if let Some(schedule) = self.by_name.remove(name) {
            self.by_id.remove(&schedule.id);
            self.definition_bytes -= schedule.definition_bytes;
        }
    }
}

/// [`Planner::put`] or [`Planner::put_late`].
type Put = fn(&mut Planner, Uuid, Arc<ScheduleSpec>, Position, Reading);

#[derive(Debug)]
struct Schedule {
    id: Uuid,
    spec: Arc<ScheduleSpec>,
    topic: Arc<Topic>,
    partition: u32,
    created_ms: i64,
    definition_bytes: usize,
    /// Why it was not started: a partition is offline, or cannot be read. It is tried again at the next start, and when
    /// a partition is opened late.
    not_started: Option<String>,
    status: Mutex<Status>,
}

#[derive(Clone, Debug, Default)]
struct Status {
    paused: bool,
    position: Position,
    /// Why its topic does not take a tick, and since when, ms since 1970.
    blocked: Option<(String, i64)>,
    counts: ScheduleCounts,
}

impl Schedule {
    fn new(entry: &ScheduleDefined, spec: Arc<ScheduleSpec>, topic: Arc<Topic>, status: Status) -> Self {
        Self {
            id: entry.id,
            partition: partition_for(&spec, &topic),
            created_ms: entry.created_ms,
            definition_bytes: entry.definition.len(),
            not_started: None,
            spec,
            topic,
            status: Mutex::new(status),
        }
    }

    fn is_defined_so(&self, spec: &ScheduleSpec, topic: &Topic) -> bool {
        *self.spec == *spec && self.topic.id() == topic.id()
    }

    /// Puts it into the planner, or takes it out.
    fn plan(&self, planner: &mut Planner, now: Reading) {
        self.plan_with(Planner::put, planner, now);
    }

    fn plan_with(&self, put: Put, planner: &mut Planner, now: Reading) {
        let mut status = self.status.lock();
        if let Some(was) = planner.position(self.id) {
            status.position = Position { since_ms: status.position.since_ms, ..was };
        }
        if self.spec.enabled && !status.paused && self.not_started.is_none() {
            put(planner, self.id, Arc::clone(&self.spec), status.position.clone(), now);
        } else {
            planner.remove(self.id);
        }
    }
}

/// A compacted topic takes no record without one.
fn has_needed_key(spec: &ScheduleSpec, topic: &Topic) -> Result<(), ApplyScheduleError> {
    if spec.key.is_none() && topic.with_config(|config| config.cleanup_policy.compacts()) {
        return Err(ApplyScheduleError::KeyMissing(spec.topic.to_string()));
    }
    Ok(())
}

impl ScheduleService {
    /// Starts the schedules that the journal remembers: completes the ticks that were begun, then goes on as the
    /// definitions say. One that cannot be started is in the answer, and where that is for a partition which cannot be
    /// read, it is shown with the others, which run.
    pub async fn start(broker: Broker, clock: Clock) -> (Self, Vec<RestoreScheduleError>) {
        let now = clock.read();
        let mut turn = Turn { planner: Planner::start(now), owed: Owed::default() };
        let (schedules, failed) = restore(&broker, &mut turn, now).await;
        let inner = Inner {
            broker,
            clock,
            schedules: RwLock::new(schedules),
            turn: tokio::sync::Mutex::new(turn),
            looks: AtomicU64::new(0),
            asked: Notify::new(),
            idle: watch::Sender::new(0),
            broke_down: AtomicBool::new(false),
            stop: CancellationToken::new(),
            task: Mutex::new(None),
        };
        let service = Self { inner: Arc::new(inner) };
        let task = tokio::spawn(fire::guard(Arc::clone(&service.inner)));
        *service.inner.task.lock() = Some(task);
        (service, failed)
    }

    /// Starts those that were not started, as far as they can be by now: a partition was opened late.
    pub async fn start_waiting(&self) {
        let service = self.clone();
        self.inner.broker.to_the_end(async move { service.start_waiting_now().await }).await;
    }

    async fn start_waiting_now(&self) {
        let mut turn = self.inner.turn.lock().await;
        let waiting: HashSet<Uuid> = {
            let schedules = self.inner.schedules.read();
            let waiting = schedules.by_id.values().filter(|schedule| schedule.not_started.is_some());
            waiting.map(|schedule| schedule.id).collect()
        };
        if waiting.is_empty() {
            return;
        }
        let entries = self.inner.broker.journal().look(|state| {
            let entries = state.schedules.values().filter(|entry| waiting.contains(&entry.defined.id));
            entries.cloned().collect()
        });
        for (entry, restored) in restore_all(&self.inner.broker, entries, &mut turn.owed).await {
            match restored {
                Ok(schedule) => {
                    if schedule.not_started.is_none() {
                        tracing::info!(schedule = %schedule.spec.name, "started: its partition is there");
                    }
                    schedule.plan_with(Planner::put_late, &mut turn.planner, self.inner.clock.read());
                    self.inner.schedules.write().insert(Arc::new(schedule));
                }
                Err(reason) => tracing::error!(schedule = entry.defined.name, reason, "not started"),
            }
        }
        self.inner.look_again();
    }

    /// Makes a schedule as defined, or changes the one with its name; ticks that are done stay done. Durable on return.
    ///
    /// # Errors
    /// See [`ApplyScheduleError`].
    pub async fn apply(&self, spec: ScheduleSpec) -> Result<AppliedSchedule, ApplyScheduleError> {
        let service = self.clone();
        self.inner.broker.to_the_end(async move { service.apply_now(spec).await }).await
    }

    async fn apply_now(&self, spec: ScheduleSpec) -> Result<AppliedSchedule, ApplyScheduleError> {
        let topic = self.inner.broker.topic_or_create(&spec.topic).await?;
        let topic = topic.ok_or_else(|| ApplyScheduleError::UnknownTopic(spec.topic.to_string()))?;
        has_needed_key(&spec, &topic)?;
        let mut turn = self.inner.turn.lock().await;
        if let Some(unchanged) = self.where_offline(&spec, &topic)? {
            return Ok(unchanged);
        }
        let current = self.inner.find(spec.name.as_str());
        let running = current.as_deref().filter(|current| current.not_started.is_none());
        if running.is_some_and(|running| running.is_defined_so(&spec, &topic)) {
            let warnings = self.warnings(&spec);
            return Ok(AppliedSchedule { created: false, changed: false, warnings });
        }
        let remembered = self.remembered(&spec, running.is_some(), &mut turn.owed).await?;
        let before = spec_before(running, remembered.as_ref());
        let keeps_times = before.is_some_and(|before| before.timing == spec.timing);
        let defined = self.defined(&spec, &topic, remembered.as_ref(), running.filter(|_| keeps_times));
        self.check_limits(defined.definition.len(), current.as_deref())?;
        let remembered = self.remember_definition(&defined, &topic, keeps_times, &mut turn.owed).await?;
        let mut status = running.map_or_else(|| status_of(&remembered), |running| running.status.lock().clone());
        status.position.since_ms = defined.since_ms;
        if !keeps_times {
            turn.planner.remove(defined.id);
            (status.position.pending, status.blocked) = (None, None);
            status.position.done = remembered.done;
        }
        let warnings = self.warnings(&spec);
        let schedule = Arc::new(Schedule::new(&defined, Arc::new(spec), topic, status));
        schedule.plan(&mut turn.planner, self.inner.clock.read());
        self.inner.schedules.write().insert(schedule);
        self.inner.look_again();
        Ok(AppliedSchedule { created: current.is_none(), changed: true, warnings })
    }

    /// What the journal knows of a schedule with this name. A tick that was begun is known not to be in its topic then.
    async fn remembered(
        &self,
        spec: &ScheduleSpec,
        runs: bool,
        owed: &mut Owed,
    ) -> Result<Option<ScheduleEntry>, ApplyScheduleError> {
        let name = spec.name.as_str();
        let entry = self.inner.broker.journal().look(|state| state.schedule_named(name).cloned());
        let Some(mut entry) = entry else { return Ok(None) };
        // One that was not started: nobody knows yet what became of its tick.
        if !runs && let Some(firing) = entry.firing.clone() {
            let broken = recover::complete(&self.inner.broker, std::slice::from_mut(&mut entry), owed).await;
            if let Some(reason) = broken.into_values().next() {
                let tick = Tick::new(firing.tick_s).time_text();
                return Err(ApplyScheduleError::UnclearTick { name: name.to_owned(), tick, reason });
            }
        }
        Ok(Some(entry))
    }

    /// `keeps_times`: the one that runs, if its times stay as they are.
    fn defined(
        &self,
        spec: &ScheduleSpec,
        topic: &Topic,
        remembered: Option<&ScheduleEntry>,
        keeps_times: Option<&Schedule>,
    ) -> ScheduleDefined {
        let now_ms = self.inner.clock.read().wall_ms;
        let keeps_its_ticks = keeps_times.is_some_and(|current| current.spec.enabled || !spec.enabled);
        let kept_since_ms = remembered.filter(|_| keeps_its_ticks).map(|entry| entry.since_ms);
        ScheduleDefined {
            id: remembered.map_or_else(Uuid::new_v4, |entry| entry.defined.id),
            name: spec.name.to_string(),
            topic: topic.id(),
            definition: spec.to_json().to_string(),
            created_ms: remembered.map_or(now_ms, |entry| entry.defined.created_ms),
            since_ms: kept_since_ms.unwrap_or(now_ms),
        }
    }

    /// What [`ScheduleService::apply`] would answer, and refuse; nothing is done.
    ///
    /// # Errors
    /// See [`ApplyScheduleError`].
    pub fn check(&self, spec: &ScheduleSpec, planned: &Planned) -> Result<AppliedSchedule, ApplyScheduleError> {
        let topic = self.inner.broker.topic(spec.topic.as_str());
        match &topic {
            Some(topic) => {
                has_needed_key(spec, topic)?;
                if let Some(unchanged) = self.where_offline(spec, topic)? {
                    return Ok(unchanged);
                }
            }
            None if planned.has_topic(spec.topic.as_str()) => {}
            None if self.inner.broker.has_or_would_create(&spec.topic)? => {}
            None => return Err(ApplyScheduleError::UnknownTopic(spec.topic.to_string())),
        }
        let current = self.inner.find(spec.name.as_str());
        self.check_limits(spec.to_json().to_string().len(), current.as_deref())?;
        let is_same = |current: &Schedule| {
            let is_defined_so = topic.as_ref().is_some_and(|topic| current.is_defined_so(spec, topic));
            is_defined_so && current.not_started.is_none()
        };
        let changed = !current.as_deref().is_some_and(is_same);
        Ok(AppliedSchedule { created: current.is_none(), changed, warnings: self.warnings(spec) })
    }

    /// Where the partition of a schedule is offline, the one that is defined so already stays and waits; another one is
    /// refused. `None` where it is not.
    fn where_offline(&self, spec: &ScheduleSpec, topic: &Topic) -> Result<Option<AppliedSchedule>, NoPartition> {
        let Err(offline) = topic.partition(partition_for(spec, topic)) else { return Ok(None) };
        if self.inner.find(spec.name.as_str()).is_none_or(|current| !current.is_defined_so(spec, topic)) {
            return Err(offline);
        }
        let mut warnings = self.warnings(spec);
        warnings.push(format!("schedule {}: {offline}; its ticks wait for that", spec.name));
        Ok(Some(AppliedSchedule { created: false, changed: false, warnings }))
    }

    fn check_limits(&self, definition_bytes: usize, current: Option<&Schedule>) -> Result<(), ApplyScheduleError> {
        let schedules = self.inner.schedules.read();
        if current.is_none() && schedules.by_name.len() >= SCHEDULES_MAX {
            return Err(ApplyScheduleError::TooMany);
        }
        let found = schedules.definition_bytes.saturating_sub(current.map_or(0, |current| current.definition_bytes))
            + definition_bytes;
        if found > DEFINITIONS_BYTES_MAX { Err(ApplyScheduleError::TooLarge { found }) } else { Ok(()) }
    }

    /// Durable on return, unless somebody has deleted the topic meanwhile. New times have no use for a tick of the old
    /// ones that was begun; one that is done is remembered before.
    async fn remember_definition(
        &self,
        defined: &ScheduleDefined,
        topic: &Topic,
        keeps_times: bool,
        owed: &mut Owed,
    ) -> Result<ScheduleEntry, ApplyScheduleError> {
        let journal = self.inner.broker.journal();
        owed.pay(journal)?;
        let (next, ()) = journal.append_if(crate::broker::now_ms(), |state| {
            if !state.topics.contains_key(&topic.id()) {
                return Err(ApplyScheduleError::UnknownTopic(topic.name().to_string()));
            }
            let before = state.schedules.get(&defined.id).filter(|_| !keeps_times);
            let records = before.map_or_else(|| vec![defined.clone().into()], |entry| entry.with_new_times(defined));
            Ok((records, ()))
        })?;
        let entry = journal.look(|state| state.schedules.get(&defined.id).cloned());
        journal.durable(next).await?;
        Ok(entry.expect("it was defined under the lock that this service changes definitions under"))
    }

    fn warnings(&self, spec: &ScheduleSpec) -> Vec<String> {
        let now_s = self.inner.clock.read().wall_ms.div_euclid(1000);
        let is_over = spec.timing.next_after(now_s).is_none();
        let sentence = format!("schedule {}: all its ticks lie in the past; nothing is due any more", spec.name);
        if is_over { vec![sentence] } else { Vec::new() }
    }

    /// Ends a schedule. `false` when there is none with this name.
    ///
    /// # Errors
    /// [`JournalError`]: it could not be remembered.
    pub async fn remove(&self, name: &str) -> Result<bool, JournalError> {
        let (service, name) = (self.clone(), name.to_owned());
        self.inner.broker.to_the_end(async move { service.remove_now(&name).await }).await
    }

    async fn remove_now(&self, name: &str) -> Result<bool, JournalError> {
        let mut turn = self.inner.turn.lock().await;
        let journal = self.inner.broker.journal();
        let Some(id) = journal.look(|state| state.schedule_named(name).map(|entry| entry.defined.id)) else {
            return Ok(false);
        };
        self.remember(ScheduleRemoved { id }).await?;
        turn.planner.remove(id);
        self.inner.schedules.write().remove(name);
        self.inner.look_again();
        Ok(true)
    }

    /// Does no more ticks until somebody resumes. On return, none is under way.
    ///
    /// # Errors
    /// See [`ScheduleError`].
    pub async fn pause(&self, name: &str) -> Result<(), ScheduleError> {
        self.switch(name, true).await
    }

    /// Goes on with the next tick; those of the pause are not made up for.
    ///
    /// # Errors
    /// See [`ScheduleError`].
    pub async fn resume(&self, name: &str) -> Result<(), ScheduleError> {
        self.switch(name, false).await
    }

    async fn switch(&self, name: &str, paused: bool) -> Result<(), ScheduleError> {
        let (service, name) = (self.clone(), name.to_owned());
        self.inner.broker.to_the_end(async move { service.switch_now(&name, paused).await }).await
    }

    async fn switch_now(&self, name: &str, paused: bool) -> Result<(), ScheduleError> {
        let mut turn = self.inner.turn.lock().await;
        let schedule = self.inner.find(name).ok_or_else(|| ScheduleError::Unknown(name.to_owned()))?;
        if !paused && !schedule.spec.enabled {
            return Err(ScheduleError::Disabled(name.to_owned()));
        }
        if schedule.status.lock().paused != paused {
            let since_ms = self.inner.clock.read().wall_ms;
            self.remember(ScheduleSwitched { id: schedule.id, paused, since_ms }).await?;
            {
                let mut status = schedule.status.lock();
                (status.paused, status.position.since_ms) = (paused, since_ms);
            }
            schedule.plan(&mut turn.planner, self.inner.clock.read());
            self.inner.look_again();
        }
        Ok(())
    }

    async fn remember(&self, record: impl Into<JournalRecord>) -> Result<(), JournalError> {
        self.inner.broker.journal().commit(&[record.into()], &[], crate::broker::now_ms()).await
    }

    /// One schedule.
    #[must_use]
    pub fn describe(&self, name: &str) -> Option<ScheduleReport> {
        self.inner.find(name).map(|schedule| report::report(&self.inner, &schedule))
    }

    /// All schedules, by name.
    #[must_use]
    pub fn list(&self) -> Vec<ScheduleReport> {
        self.inner.schedules.read().by_name.values().map(|schedule| report::report(&self.inner, schedule)).collect()
    }

    /// The next ticks of a schedule and when their events come, ms since 1970; at most [`NEXT_TICKS_MAX`]. As if it
    /// ran, also while it is paused. `None` when there is none with this name.
    #[must_use]
    pub fn next_ticks(&self, name: &str, count: u32) -> Option<Vec<(Tick, i64)>> {
        let now = self.inner.clock.read();
        let schedule = self.inner.find(name)?;
        let position = schedule.status.lock().position.clone();
        let mut after_s = report::ahead_of_s(&schedule, &position, now);
        let mut ticks = Vec::new();
        while ticks.len() < count.min(NEXT_TICKS_MAX) as usize {
            let Some(tick) = position.next_after(&schedule.spec.timing, after_s) else { break };
            ticks.push((tick, schedule.spec.fire_ms(tick)));
            after_s = tick.unix_s();
        }
        Some(ticks)
    }

    /// Waits until all that is due by now is done, or waits for its topic.
    pub async fn settled(&self) {
        let wanted = self.inner.look_again();
        // The sender lives as long as this handle.
        let _ = self.inner.idle.subscribe().wait_for(|looks| *looks >= wanted).await;
    }

    /// Ends the loop; a tick under way is done first.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        let task = self.inner.task.lock().take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "schedules broke down");
        }
    }
}

impl Inner {
    fn find(&self, name: &str) -> Option<Arc<Schedule>> {
        self.schedules.read().by_name.get(name).cloned()
    }

    /// What is planned has changed: the loop's timer may be wrong. Answers the number of this look.
    fn look_again(&self) -> u64 {
        let look = self.looks.fetch_add(1, Ordering::AcqRel) + 1;
        self.asked.notify_one();
        look
    }
}

fn status_of(entry: &ScheduleEntry) -> Status {
    let position = Position {
        since_ms: entry.since_ms,
        fired: entry.fired_s.map(Tick::new),
        done: entry.done.clone(),
        pending: entry.firing.as_ref().map(|firing| Tick::new(firing.tick_s)),
    };
    Status { paused: entry.paused, position, ..Status::default() }
}

/// Where the events of a schedule go.
fn partition_for(spec: &ScheduleSpec, topic: &Topic) -> u32 {
    let key = spec.key.as_deref().unwrap_or(spec.name.as_str());
    partition_of_key(key.as_bytes(), topic.partition_count())
}

/// What the definition was; `None` when there was none that can be read.
fn spec_before(current: Option<&Schedule>, remembered: Option<&ScheduleEntry>) -> Option<Arc<ScheduleSpec>> {
    let read = |entry: &ScheduleEntry| spec_of(entry).ok().map(Arc::new);
    current.map_or_else(|| remembered.and_then(read), |current| Some(Arc::clone(&current.spec)))
}

pub(super) fn spec_of(entry: &ScheduleEntry) -> Result<ScheduleSpec, String> {
    let definition = serde_json::from_str(&entry.defined.definition).map_err(|error| error.to_string())?;
    ScheduleSpec::from_json(&definition).map_err(|errors| errors.to_string())
}

async fn restore(broker: &Broker, turn: &mut Turn, now: Reading) -> (Schedules, Vec<RestoreScheduleError>) {
    let (mut schedules, mut failed) = (Schedules::default(), Vec::new());
    let entries = broker.journal().look(|state| state.schedules.values().cloned().collect());
    for (entry, restored) in restore_all(broker, entries, &mut turn.owed).await {
        let name = entry.defined.name;
        match restored {
            Ok(schedule) => {
                failed.extend(schedule.not_started.clone().map(|reason| RestoreScheduleError { name, reason }));
                schedule.plan(&mut turn.planner, now);
                schedules.insert(Arc::new(schedule));
            }
            Err(reason) => failed.push(RestoreScheduleError { name, reason }),
        }
    }
    (schedules, failed)
}

/// Each as the journal says, with its begun tick completed where that is possible.
async fn restore_all(
    broker: &Broker,
    mut entries: Vec<ScheduleEntry>,
    owed: &mut Owed,
) -> Vec<(ScheduleEntry, Result<Schedule, String>)> {
    let mut broken = recover::complete(broker, &mut entries, owed).await;
    let restored = entries.into_iter().map(|entry| {
        let restored = restore_one(broker, &entry, broken.remove(&entry.defined.id));
        (entry, restored)
    });
    restored.collect()
}

/// `broken`: why it is not known whether its tick is done. Neither losing nor repeating that is right.
fn restore_one(broker: &Broker, entry: &ScheduleEntry, broken: Option<String>) -> Result<Schedule, String> {
    let spec = spec_of(entry)?;
    let topic = broker.topic_by_id(entry.defined.topic);
    let topic = topic.ok_or_else(|| format!("topic {} does not exist", spec.topic))?;
    let mut schedule = Schedule::new(&entry.defined, Arc::new(spec), topic, status_of(entry));
    let offline = schedule.topic.partition(schedule.partition).err();
    schedule.not_started = broken.or_else(|| offline.map(|error| error.to_string()));
    Ok(schedule)
}

#[cfg(test)]
mod tests;
