//! Triggers at work: the service that runs them and the handle that everybody else has.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tripline_storage::{Offset, Partition};
use uuid::Uuid;

use super::lane_status::LaneStatus;
use super::poller::{Message, PollerHandle};
use super::runner::{Clock, Runner};
use super::spec::TriggerSpec;
use super::status::set;
use super::trace::TraceLog;
use crate::broker::journal::JournalError;
use crate::broker::record::{JournalRecord, RunState};
use crate::broker::state::{RunEntry, TriggerEntry};
use crate::broker::{Broker, Topic};
use crate::function::FunctionService;
#[cfg(feature = "cluster")]
use crate::input::cluster::Clusters;
use crate::topic::name::TopicName;

mod apply;
mod check;
#[cfg(feature = "cluster")]
mod cluster;
mod error;
mod lanes;
mod late;
mod letters;
mod report;
mod run_report;
mod run_topic;
mod runs;
#[cfg(test)]
mod tests;
mod topics;
mod traces;
mod verbs;

pub use apply::Applied;
pub use error::{ApplyTriggerError, ChoiceError, ResetTriggerError, RestoreTriggerError, TriggerError};
pub use letters::{Discarded, RedrivePreview};
pub use report::{LaneReport, TriggerCounts, TriggerReport, TriggerState};
pub use run_report::{RunLaneReport, RunPhase, RunReport};
pub use runs::RunError;
pub use topics::LaneChoice;

use apply::inline_spec;
use runs::ActiveRun;

/// All triggers at work. Clones are handles to the same ones. Needs a tokio runtime.
#[derive(Clone, Debug)]
pub struct TriggerService {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    broker: Broker,
    functions: FunctionService,
    /// Clusters that definitions may name.
    #[cfg(feature = "cluster")]
    clusters: Clusters,
    clock: Clock,
    running: RwLock<BTreeMap<String, Running>>,
    /// Runs over a range that go on, by id.
    runs: RwLock<BTreeMap<Uuid, ActiveRun>>,
    /// By topic and partition.
    pollers: Mutex<HashMap<(Uuid, u32), Poller>>,
    /// What the pollers began.
    tracker: TaskTracker,
    traces: TraceLog,
    /// Writes history down, until the shutdown.
    trace_writer: Mutex<Option<JoinHandle<()>>>,
    /// Follows topics that come and go, until the shutdown.
    follower: Mutex<Option<JoinHandle<()>>>,
    /// One definition changes at a time.
    changing: Arc<tokio::sync::Mutex<Changes>>,
}

/// Whether definitions still change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changes {
    GoOn,
    /// The service has shut down, or is about to: what is not there is not to be made anew.
    HaveEnded,
}

impl Changes {
    fn goes_on(self) -> Result<(), ApplyTriggerError> {
        if self == Self::GoOn { Ok(()) } else { Err(ApplyTriggerError::Stopping) }
    }
}

/// No trigger changes while this lives.
#[derive(Debug)]
pub struct NoChanges {
    _changing: tokio::sync::OwnedMutexGuard<Changes>,
}

/// The task that drives a partition's lanes.
type Poller = (PollerHandle, JoinHandle<()>);

#[derive(Debug)]
struct Running {
    runner: Arc<Runner>,
    /// What it reads, by name; none of a cluster.
    topics: Vec<Arc<Topic>>,
    /// By the name of their topic, then by partition.
    lanes: Vec<Arc<LaneStatus>>,
    /// Who drives each of them.
    pollers: Vec<PollerHandle>,
    /// In its group, on a cluster.
    #[cfg(feature = "cluster")]
    place: Option<cluster::Place>,
}

impl Inner {
    fn new(broker: Broker, functions: FunctionService) -> Self {
        let (traces, trace_writer) = TraceLog::start(broker.clone());
        Self {
            broker,
            functions,
            #[cfg(feature = "cluster")]
            clusters: Clusters::default(),
            clock: Clock::start(),
            running: RwLock::default(),
            runs: RwLock::default(),
            pollers: Mutex::default(),
            tracker: TaskTracker::new(),
            traces,
            trace_writer: Mutex::new(Some(trace_writer)),
            follower: Mutex::default(),
            changing: Arc::new(tokio::sync::Mutex::new(Changes::GoOn)),
        }
    }
}

impl TriggerService {
    /// Starts the triggers that the journal remembers, each where it was. Functions must have been restored before. A
    /// trigger that cannot be started is in the answer; the others run.
    #[must_use]
    pub fn start(broker: Broker, functions: FunctionService) -> (Self, Vec<RestoreTriggerError>) {
        Self::started(Inner::new(broker, functions))
    }

    /// As [`TriggerService::start`], with clusters that definitions may name.
    #[cfg(feature = "cluster")]
    #[must_use]
    pub fn start_with_clusters(
        broker: Broker,
        functions: FunctionService,
        clusters: Clusters,
    ) -> (Self, Vec<RestoreTriggerError>) {
        Self::started(Inner { clusters, ..Inner::new(broker, functions) })
    }

    fn started(inner: Inner) -> (Self, Vec<RestoreTriggerError>) {
        let service = Self { inner: Arc::new(inner) };
        let failed = service.restore_all();
        (service, failed)
    }

    /// Starts what the journal remembers. What happens from the first moment on (a topic that comes, a run that ends)
    /// waits until everything is there.
    fn restore_all(&self) -> Vec<RestoreTriggerError> {
        let _changing = self.inner.changing.try_lock().expect("nobody else has the service yet");
        *self.inner.follower.lock() = Some(Self::follow(&self.inner));
        let entries: Vec<TriggerEntry> =
            self.inner.broker.journal().look(|state| state.triggers.values().cloned().collect());
        let failed = entries.into_iter().filter_map(|entry| {
            let name = entry.defined.name.clone();
            self.restore(&entry).err().map(|reason| RestoreTriggerError { name, reason })
        });
        let mut failed: Vec<RestoreTriggerError> = failed.collect();
        let started: HashMap<Uuid, String> =
            self.inner.running.read().iter().map(|(name, running)| (running.runner.id, name.clone())).collect();
        failed.extend(self.restore_runs(&started));
        failed
    }

    /// Triggers and runs start and end one at a time.
    fn is_changing(&self) -> bool {
        self.inner.changing.try_lock().is_err()
    }

    /// The time by which triggers act and which their reports quote, ms since 1970: the wall clock's when the service
    /// started, at monotonic rate since.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.inner.clock.now_ms()
    }

    fn restore(&self, entry: &TriggerEntry) -> Result<(), String> {
        let definition = serde_json::from_str(&entry.defined.definition).map_err(|error| error.to_string())?;
        let spec = TriggerSpec::from_json(&definition).map_err(|errors| errors.to_string())?;
        #[cfg(feature = "cluster")]
        if spec.input.cluster.is_some() {
            return self.restore_on_cluster(entry.defined.id, spec);
        }
        let topics = topics::selected(&self.inner.broker, &spec.input.topics);
        let is_missing = |name: &&TopicName| !topics.iter().any(|topic| topic.name() == *name);
        if let Some(missing) = spec.input.topics.named().iter().find(is_missing) {
            return Err(format!("topic {missing} does not exist"));
        }
        if let Some(function) = inline_spec(&spec) {
            self.inner.functions.restore(function, 0).map_err(|error| error.to_string())?;
        }
        self.run(entry.defined.id, spec, topics)
    }

    /// Ends all lanes: those that wait at once, those that invoke when their invocation ends, or after `grace`. What
    /// was in hand is done again after the next start.
    pub async fn shutdown(&self, grace: Duration) {
        let mut changing = self.inner.changing.lock().await;
        *changing = Changes::HaveEnded;
        let follower = self.inner.follower.lock().take();
        if let Some(follower) = follower {
            follower.abort();
            // Until it has let go of the broker.
            let _ = follower.await;
        }
        #[cfg_attr(not(feature = "cluster"), expect(unused_mut, reason = "only groups are left"))]
        let mut running = std::mem::take(&mut *self.inner.running.write());
        running.values().for_each(|running| stop(&running.runner));
        let (runs, of_runs) = self.stop_runs().await;
        let pollers = std::mem::take(&mut *self.inner.pollers.lock()).into_values();
        let mut pollers: Vec<JoinHandle<()>> = pollers
            .map(|(poller, task)| {
                poller.send(Message::Stop);
                task
            })
            .collect();
        pollers.extend(of_runs);
        let ended = end_by(tokio::time::Instant::now() + grace, pollers);
        #[cfg(feature = "cluster")]
        let ended = {
            let places = running.values_mut().filter_map(|running| running.place.take());
            // A cluster that does not answer takes none of their time.
            futures_util::future::join(ended, futures_util::future::join_all(places.map(|place| place.leave(grace))))
        };
        ended.await;
        // Those that were cut off end at once; what they hold is let go when they have.
        self.inner.tracker.close();
        self.inner.tracker.wait().await;
        self.remember_counts(&runs);
        let runs = runs.iter().map(|(_, active)| &active.running);
        running.values().chain(runs).flat_map(|running| &running.lanes).for_each(|lane| lane.ended());
        self.end_history().await;
    }

    /// Goes on with the runs of these triggers, by id, which were started.
    fn restore_runs(&self, started: &HashMap<Uuid, String>) -> Vec<RestoreTriggerError> {
        let entries: Vec<RunEntry> = self.inner.broker.journal().look(|state| {
            let running = state.runs.values().filter(|run| run.state == RunState::Running);
            let running = running.filter(|run| !self.inner.runs.read().contains_key(&run.defined.id));
            running.filter(|run| started.contains_key(&run.defined.trigger)).cloned().collect()
        });
        let failed = entries.iter().filter_map(|entry| {
            let reason = self.start_run(entry).err()?;
            Some(RestoreTriggerError { name: started[&entry.defined.trigger].clone(), reason })
        });
        failed.collect()
    }

    fn runner(&self, name: &str) -> Option<Arc<Runner>> {
        self.inner.running.read().get(name).map(|running| Arc::clone(&running.runner))
    }

    /// As [`TriggerService::runner`], of the trigger with this id.
    fn runner_of(&self, id: Uuid) -> Option<Arc<Runner>> {
        let running = self.inner.running.read();
        running.values().find(|running| running.runner.id == id).map(|running| Arc::clone(&running.runner))
    }

    async fn remember(
        &self,
        records: &[JournalRecord],
        sources: &[(Arc<Partition>, Offset)],
    ) -> Result<(), JournalError> {
        self.inner.broker.journal().commit(records, sources, crate::broker::now_ms()).await
    }
}

/// Waits for these tasks, and cuts them off at the deadline.
async fn end_by(deadline: tokio::time::Instant, tasks: Vec<JoinHandle<()>>) {
    for mut task in tasks {
        if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
            task.abort();
            // Until it has let go of the broker.
            let _ = task.await;
        }
    }
}

fn stop(runner: &Runner) {
    runner.change(|holds| set(&mut holds.stopped, true));
}
