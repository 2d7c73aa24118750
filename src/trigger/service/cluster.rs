//! Triggers on a cluster: each is a member of its group, and drives a lane for each partition that the group gives it.
//!
//! Definitions, pauses and functions are this process's own; progress is the group's. Processes that run the same
//! trigger share its partitions, and each limits its own invocations.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tripline_storage::Offset;
use uuid::Uuid;

use super::apply::{Remembered, warnings};
use super::error::UnknownCluster;
use super::{Applied, ApplyTriggerError, Inner, Running, TriggerService, inline_spec};
use crate::broker;
use crate::broker::record::{JournalRecord, LaneId};
use crate::broker::state::{ClusterStart, ClusterStarts, LaneState, State};
use crate::config::planned::Planned;
use crate::input::cluster::{
    Client, ClusterAccess, ClusterError, ClusterInput, ClusterPartition, ClusterTopic, Committed, Committer,
    GroupEvent, Member, Selection, Start, Tenure,
};
use crate::input::{ClusterAddress, ClusterBrokers, EventInput};
use crate::topic::name::TopicName;
use crate::trigger::commit_metadata;
use crate::trigger::lane_status::LaneStatus;
use crate::trigger::poller::cluster::GroupPlace;
use crate::trigger::poller::{self, Message, NewLane, PollerHandle};
use crate::trigger::progress::Progress;
use crate::trigger::runner::Runner;
use crate::trigger::spec::{TopicSelection, TriggerSpec};
use crate::trigger::status::{ClusterTrouble, set};

mod looks;
mod reset;
mod run;
mod starts;

pub(super) use looks::{There, told_in_time};
use starts::{Begin, Starts, begins, forgotten, partitions_of, to_remember};

/// How long attempts may go on after the group took their partition away.
const REVOKED_GRACE: Duration = Duration::from_secs(5);
/// How long attempts that are cut off have to end.
const CUT_OFF_MAX: Duration = Duration::from_secs(5);
/// What the last commit and the farewell of a member have beyond that.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long is waited before a partition is opened again that could not be.
const RETRY: Duration = Duration::from_secs(1);
/// How often is looked whether a partition is of another topic now.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A trigger's place in its group.
#[derive(Debug)]
pub(super) struct Place {
    member: Member,
    driver: JoinHandle<()>,
    starts: Arc<Mutex<Starts>>,
}

impl Place {
    /// Gives everything back and leaves; what is in flight has `grace`.
    pub(super) async fn leave(self, grace: Duration) {
        let Self { member, mut driver, .. } = self;
        // Longer than what is in flight has: the last commit and the farewell come after it.
        member.leave(grace + REVOKED_GRACE + FAREWELL).await;
        if tokio::time::timeout(REVOKED_GRACE, &mut driver).await.is_err() {
            driver.abort();
            // Until it has let go of what it has.
            let _ = driver.await;
        }
    }

    /// Reads what this definition selects from now on.
    fn select(&self, spec: &TriggerSpec) {
        self.starts.lock().redefine(spec);
        self.member.select(selection(&spec.input.topics));
    }
}

impl TriggerService {
    pub(super) async fn apply_to_cluster(&self, spec: TriggerSpec) -> Result<Applied, ApplyTriggerError> {
        let refused = |error: ClusterError| ApplyTriggerError::Cluster(error.to_string());
        let client = self.inner.client(&spec)?;
        // The cluster takes its time: nobody else waits for it.
        let topics = client.selected(&selection(&spec.input.topics)).await.map_err(refused)?;
        if let Some(missing) = spec.input.topics.named().iter().find(|name| !topics.contains_key(name.as_str())) {
            return Err(refused(ClusterError::NoTopic(missing.to_string())));
        }
        let widest = topics.values().map(ClusterTopic::partition_count).max().unwrap_or(1);
        make_outputs(&client, &spec, widest).await.map_err(refused)?;
        let running = self.runner(spec.name.as_str()).map(|runner| runner.spec());
        // In another cluster it is in another group.
        let running = running.filter(|running| running.input.cluster == spec.input.cluster);
        let decided = self.starts_remembered(spec.name.as_str());
        let mut begins = begins(&client, &spec, &topics, running.as_deref(), &decided).await.map_err(refused)?;
        let changing = self.inner.changing.lock().await;
        changing.goes_on()?;
        let current = self.check_change(&spec, &Planned::default()).await?;
        let warnings = warnings(&spec, topics.is_empty());
        let Some(runner) = current else {
            let remembered = self.inner.broker.journal().look(|state| state.trigger_named(spec.name.as_str()));
            let id = remembered.unwrap_or_else(Uuid::new_v4);
            let decided = self.starts_remembered(spec.name.as_str());
            let mut records = vec![self.defined(id, &spec).into()];
            records.extend(to_remember(id, &spec, &decided, false, &begins));
            self.remember(&records, &[]).await?;
            self.deploy_inline(&spec).await?;
            let name = spec.name.to_string();
            self.run_on_cluster(id, spec, client);
            self.go_on_with_runs(id, name);
            return Ok(Applied { created: true, changed: true, warnings });
        };
        let changed = *runner.spec() != spec;
        let moved = runner.spec().input.cluster != spec.input.cluster;
        if changed {
            if moved {
                self.halt_runs(runner.id).await;
            } else {
                // What another change has begun to read meanwhile is decided.
                let current = runner.spec();
                begins.retain(|(topic, _), _| !current.input.topics.selects(topic));
            }
            let decided = self.starts_remembered(spec.name.as_str());
            let starts = Remembered::of(to_remember(runner.id, &spec, &decided, moved, &begins));
            if let Err(error) = self.change(&runner, spec.clone(), starts).await {
                self.go_on_with_runs(runner.id, spec.name.to_string());
                return Err(error);
            }
            if moved {
                self.end_lanes(spec.name.as_str()).await;
                let name = spec.name.to_string();
                self.run_on_cluster(runner.id, spec, client);
                self.go_on_with_runs(runner.id, name);
            } else if let Some(place) = self.inner.running.read().get(spec.name.as_str()).and_then(Running::place) {
                place.select(&spec);
            }
        }
        Ok(Applied { created: false, changed, warnings })
    }

    /// Where a trigger starts in partitions of which its group may not know.
    fn starts_remembered(&self, name: &str) -> ClusterStarts {
        let remembered = |state: &State| Some(state.triggers[&state.trigger_named(name)?].starts.clone());
        self.inner.broker.journal().look(remembered).unwrap_or_default()
    }

    /// Joins the group; partitions come when the group gives them.
    fn run_on_cluster(&self, id: Uuid, spec: TriggerSpec, client: Arc<Client>) {
        let name = spec.name.to_string();
        let (broker, functions) = (self.inner.broker.clone(), self.inner.functions.clone());
        let starts = Arc::new(Mutex::new(Starts::new(&spec)));
        let (clock, traces) = (self.inner.clock, self.inner.traces.clone());
        let paused_since_ms = self.paused_since_ms(id);
        let runner = Arc::new(Runner::new(id, spec, broker, functions, clock, traces, paused_since_ms));
        let place = Some(self.join_group(&runner, client, starts));
        self.inner.running.write().insert(name, Running { place, ..Running::new(runner) });
    }

    /// Takes the place of a trigger in its group.
    fn join_group(&self, runner: &Arc<Runner>, client: Arc<Client>, starts: Arc<Mutex<Starts>>) -> Place {
        let spec = runner.spec();
        let group = group(&spec);
        let (member, events, committer) = Member::join(Arc::clone(&client), &group, selection(&spec.input.topics));
        let driver = Driver {
            service: Arc::downgrade(&self.inner),
            tracker: self.inner.tracker.clone(),
            runner: Arc::clone(runner),
            name: spec.name.to_string(),
            client,
            committer,
            group,
            starts: Arc::clone(&starts),
            missing: None,
            lanes: HashMap::new(),
            waiting: BTreeMap::new(),
        };
        let driver = tokio::spawn(driver.drive(events, member.leaves()));
        Place { member, driver, starts }
    }

    pub(super) fn restore_on_cluster(&self, id: Uuid, spec: TriggerSpec) -> Result<(), String> {
        let client = self.inner.client(&spec).map_err(|error| error.to_string())?;
        if let Some(function) = inline_spec(&spec) {
            self.inner.functions.restore(function, 0).map_err(|error| error.to_string())?;
        }
        self.run_on_cluster(id, spec, client);
        Ok(())
    }
}

impl Running {
    const fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }
}

impl Inner {
    /// A client of the trigger's own.
    fn client(&self, spec: &TriggerSpec) -> Result<Arc<Client>, ApplyTriggerError> {
        let address = spec.input.cluster.as_ref();
        let address = address.ok_or_else(|| ApplyTriggerError::Lane("it is not on a cluster".to_owned()))?;
        let access = self.access(address).map_err(ApplyTriggerError::UnknownCluster)?;
        Ok(Arc::new(Client::new(access, address.session_timeout, &format!("tripline-{}", spec.name))))
    }

    /// How to get to a cluster.
    pub(super) fn access(&self, address: &ClusterAddress) -> Result<ClusterAccess, UnknownCluster> {
        self.clusters.access(address).ok_or_else(|| UnknownCluster {
            name: match &address.brokers {
                ClusterBrokers::Named(name) => name.to_string(),
                ClusterBrokers::Listed(brokers) => brokers.join(","),
            },
            known: self.clusters.names().map(ToString::to_string).collect(),
        })
    }
}

fn selection(topics: &TopicSelection) -> Selection {
    match topics {
        TopicSelection::Pattern(pattern) => {
            let pattern = pattern.clone();
            Selection::Matching(Arc::new(move |name| pattern.matches(name)))
        }
        named => Selection::named(named.named().iter().map(TopicName::as_str)),
    }
}

/// Topics of the cluster that the trigger writes to are made where they are missing.
async fn make_outputs(client: &Client, spec: &TriggerSpec, partitions: u32) -> Result<(), ClusterError> {
    let names: BTreeSet<_> =
        spec.dead_letter.iter().chain(spec.destinations.topics().map(|(_, topic)| topic)).collect();
    for name in names {
        match client.topic(name.as_str()).await {
            Ok(_) => {}
            Err(ClusterError::NoTopic(_)) => client.create_topic(name.as_str(), partitions).await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The group under which Kafka's tools see the trigger.
fn group(spec: &TriggerSpec) -> String {
    format!("trigger.{}", spec.name)
}

/// Starts and ends the lanes of a trigger as its group says.
struct Driver {
    service: Weak<Inner>,
    /// Counts what its pollers begin.
    tracker: TaskTracker,
    runner: Arc<Runner>,
    name: String,
    client: Arc<Client>,
    committer: Committer,
    group: String,
    starts: Arc<Mutex<Starts>>,
    /// Topics that are named and not there, in a sentence.
    missing: Option<String>,
    lanes: HashMap<ClusterPartition, DrivenLane>,
    /// Partitions that are ours and could not be opened yet.
    waiting: BTreeMap<ClusterPartition, Tenure>,
}

/// Who drives a lane, and the id of its topic.
struct DrivenLane {
    tenure: Tenure,
    topic: Uuid,
    input: ClusterInput,
    poller: PollerHandle,
    /// Ends with whoever drives it, and what it has begun ends with it.
    task: AbortOnDropHandle<()>,
}

impl Driver {
    /// Until the member has left, or something that works for the trigger has broken down. However it ends, nobody
    /// reads here any more then: others of the group may.
    async fn drive(mut self, mut events: mpsc::UnboundedReceiver<GroupEvent>, leaves: CancellationToken) {
        let runner = Arc::clone(&self.runner);
        runner.watch(self.run(&mut events)).await;
        let left = self.lanes.keys().cloned().collect();
        self.cut_off(&left).await;
        leaves.cancel();
    }

    async fn run(&mut self, events: &mut mpsc::UnboundedReceiver<GroupEvent>) {
        let mut opens_at = Instant::now();
        let mut looks_at = Instant::now() + LOOK_EVERY;
        loop {
            let changed = self.runner.listen();
            if self.runner.holds(|holds| holds.broken) {
                return;
            }
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.follow(event).await,
                    None => return,
                },
                () = tokio::time::sleep_until(opens_at), if !self.waiting.is_empty() => self.open().await,
                () = tokio::time::sleep_until(looks_at), if !self.lanes.is_empty() => {
                    looks_at = Instant::now() + LOOK_EVERY;
                    self.let_go_of_others().await;
                }
                () = changed => continue,
            }
            opens_at = Instant::now() + RETRY;
        }
    }

    async fn follow(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Joined(missing) => {
                self.missing = missing.first().map(|topic| ClusterError::NoTopic(topic.clone()).to_string());
                self.forget_starts(|partition, start| start.topic.is_nil() && missing.contains(partition.topic()));
                self.starts.lock().are_gone(missing);
                self.shows(self.missing.clone());
            }
            GroupEvent::Trouble(reason) => self.shows(Some(reason)),
            GroupEvent::BrokeDown => self.runner.broke_down(),
            GroupEvent::Assigned(partitions, tenure) => {
                tracing::info!(trigger = self.name, ?partitions, "partitions assigned");
                self.waiting.extend(partitions.into_iter().map(|partition| (partition, tenure)));
                self.open().await;
            }
            GroupEvent::Revoked(partitions, done) => {
                tracing::info!(trigger = self.name, ?partitions, "partitions revoked");
                self.give_back(&partitions).await;
                // The member may be gone.
                let _ = done.send(());
            }
            GroupEvent::Lost(partitions) => self.cut_off(&partitions).await,
            GroupEvent::Deleted(topics) => {
                let known = self.lanes.keys().chain(self.waiting.keys());
                let gone = known.filter(|partition| topics.contains(partition.topic())).cloned().collect();
                self.forget_starts(|partition, start| start.topic.is_nil() && topics.contains(partition.topic()));
                self.starts.lock().are_gone(topics);
                self.cut_off(&gone).await;
            }
        }
    }

    fn shows(&self, trouble: Option<String>) {
        let ends_when = "the cluster answers, its topics are there, and the group takes this process in";
        let trouble = trouble.map(|reason| ClusterTrouble { reason, ends_when });
        self.runner.change(|holds| set(&mut holds.cluster, trouble));
    }

    /// Lanes that were opened for a topic which is another one now, as a broker still knew the old one then, are opened
    /// anew.
    async fn let_go_of_others(&mut self) {
        let is_other = |lane: &&DrivenLane| lane.input.is_another_now();
        let others = self.lanes.iter().filter(|(_, lane)| is_other(lane));
        let others: BTreeMap<_, _> = others.map(|(partition, lane)| (partition.clone(), lane.tenure)).collect();
        self.cut_off(&others.keys().cloned().collect()).await;
        self.waiting.extend(others);
    }

    /// Opens what waits for it.
    async fn open(&mut self) {
        match self.open_waiting().await {
            Ok(()) => self.shows(self.missing.clone()),
            Err(error) => {
                tracing::warn!(trigger = self.name, %error, "partitions of the cluster cannot be opened yet");
                self.shows(Some(error.to_string()));
            }
        }
    }

    /// Each as far as it goes: one whose topic is not there holds up no other.
    async fn open_waiting(&mut self) -> Result<(), ClusterError> {
        let client = Arc::clone(&self.client);
        let names: BTreeSet<String> = self.waiting.keys().map(|partition| partition.topic().to_owned()).collect();
        let waited = client.selected(&Selection::Named(names)).await?;
        // Also of those that are not waited for: what the group knows of the others says where these begin.
        let read = client.selected(&selection(&self.runner.spec().input.topics)).await?;
        let topics: BTreeMap<_, _> = read.into_iter().chain(waited.clone()).collect();
        let committed = client.committed_of(&self.group, &partitions_of(&topics)).await?;
        let is_of = |start: &ClusterStart, name: &str| topics.get(name).is_some_and(|topic| topic.id == start.topic);
        self.forget_starts(|partition, start| committed.contains_key(partition) && is_of(start, partition.topic()));
        let mut failed = None;
        for (partition, tenure) in self.waiting.clone() {
            match self.open_one(waited.get(partition.topic()).cloned(), (&partition, tenure), &committed).await {
                Ok(()) => {
                    self.waiting.remove(&partition);
                }
                Err(error @ ClusterError::Call(_)) => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn open_one(
        &mut self,
        topic: Option<ClusterTopic>,
        (partition, tenure): (&ClusterPartition, Tenure),
        committed: &HashMap<ClusterPartition, Committed>,
    ) -> Result<(), ClusterError> {
        let topic = topic.ok_or_else(|| ClusterError::NoTopic(partition.topic().to_owned()))?;
        let (name, number) = (partition.topic(), partition.number());
        let known = committed.get(partition);
        let progress = match known.and_then(|known| goes_on(known, topic.id)) {
            Some(goes_on) => goes_on,
            None => {
                let begin = match known {
                    // It was another topic. None of the records of this one is to be missed.
                    Some(_) => Begin::From(Start::Earliest),
                    None => {
                        let decided = self.starts_remembered().remove(&(name.to_owned(), number));
                        self.starts.lock().of((partition, topic.id), decided, committed)
                    }
                };
                self.begin((partition, tenure), topic.id, begin).await?
            }
        };
        let client = Arc::clone(&self.client);
        let place = GroupPlace { client: Arc::clone(&client), committer: self.committer.clone(), tenure };
        let input = ClusterInput::open(client, name, &topic, number, progress.reading_point()).await?;
        let partition_input = input.clone();
        let input = EventInput::Cluster(input);
        let progress = set_back(progress, &input);
        let id = LaneId { trigger: self.runner.id, topic: topic.id, partition: number };
        let status = Arc::new(LaneStatus::new(input.clone(), progress.committed(), None));
        let lane = NewLane {
            runner: Arc::clone(&self.runner),
            id,
            progress,
            remembered: LaneState::default(),
            status: Arc::clone(&status),
            run: None,
            group: Some(place),
        };
        let (poller, task) = poller::spawn(input, self.tracker.clone());
        poller.send(Message::Add(Box::new(lane)));
        self.show(status, poller.clone());
        let task = AbortOnDropHandle::new(task);
        self.lanes
            .insert(partition.clone(), DrivenLane { tenure, topic: topic.id, input: partition_input, poller, task });
        Ok(())
    }

    /// Begins a partition of which the group knows nothing: from now on it knows.
    async fn begin(
        &self,
        (partition, tenure): (&ClusterPartition, Tenure),
        topic: Uuid,
        begin: Begin,
    ) -> Result<Progress, ClusterError> {
        let at = match begin {
            Begin::At(offset) => offset,
            Begin::From(start) => self.client.start_of(partition.topic(), partition.number(), start).await?,
        };
        // What cannot be committed now is committed with the first progress, which begins there too.
        let metadata = commit_metadata::of_start(topic, at);
        match self.committer.commit(partition.clone(), tenure, at, metadata).await {
            Ok(()) => self.forget_starts(|begun, start| begun == partition && start.topic == topic),
            Err(error) => tracing::warn!(trigger = self.name, %partition, %error, "the start is not committed yet"),
        }
        Ok(Progress::start(at))
    }

    fn starts_remembered(&self) -> ClusterStarts {
        let journal = self.runner.broker.journal();
        journal.look(|state| state.triggers.get(&self.runner.id).map(|entry| entry.starts.clone())).unwrap_or_default()
    }

    /// Starts that are of no use any more: the group knows of these partitions, or they are gone. With its id, the
    /// start of a topic that is gone tells one that is made again from it, and stays. Should that itself be forgotten,
    /// the group is asked first in any case. A trigger that moves has those of the cluster where it goes before this
    /// has ended: what this group knows is nothing to them.
    fn forget_starts(&self, is_meant: impl Fn(&ClusterPartition, &ClusterStart) -> bool) {
        let trigger = self.runner.id;
        let remembered = self.starts_remembered();
        let meant = remembered
            .iter()
            .filter(|((topic, number), start)| is_meant(&ClusterPartition::new(topic, *number), start));
        let records: Vec<JournalRecord> = meant.map(|(key, start)| forgotten(trigger, key, start)).collect();
        if let Err(error) = self.runner.broker.journal().append(&records, broker::now_ms()) {
            tracing::warn!(trigger = self.name, %error, "starts that the group knows are still remembered");
        }
    }

    /// Ends lanes: what is in flight may end, what is done is committed.
    async fn give_back(&mut self, partitions: &BTreeSet<ClusterPartition>) {
        let ending = self.take(partitions);
        ending.iter().for_each(|lane| lane.poller.send(Message::Stop));
        let topics: BTreeSet<Uuid> = ending.iter().map(|lane| lane.topic).collect();
        let deadline = Instant::now() + REVOKED_GRACE;
        let end = async |mut lane: DrivenLane| {
            if tokio::time::timeout_at(deadline, &mut lane.task).await.is_err() {
                cut_off(self.runner.id, lane).await;
            }
        };
        join_all(ending.into_iter().map(end)).await;
        self.forget(partitions, &topics);
    }

    /// Ends lanes at once.
    async fn cut_off(&mut self, partitions: &BTreeSet<ClusterPartition>) {
        let lost = self.take(partitions);
        let topics: BTreeSet<Uuid> = lost.iter().map(|lane| lane.topic).collect();
        join_all(lost.into_iter().map(|lane| cut_off(self.runner.id, lane))).await;
        self.forget(partitions, &topics);
    }

    /// These partitions are not ours any more; answers who drives those that were open.
    fn take(&mut self, partitions: &BTreeSet<ClusterPartition>) -> Vec<DrivenLane> {
        self.waiting.retain(|partition, _| !partitions.contains(partition));
        partitions.iter().filter_map(|partition| self.lanes.remove(partition)).collect()
    }

    /// They are shown no more.
    fn forget(&self, partitions: &BTreeSet<ClusterPartition>, topics: &BTreeSet<Uuid>) {
        let numbers: BTreeSet<u32> = partitions.iter().map(ClusterPartition::number).collect();
        self.runner.change(|holds| holds.unblock(|(topic, number)| topics.contains(topic) && numbers.contains(number)));
        let Some(service) = self.service.upgrade() else { return };
        if let Some(running) = service.running.write().get_mut(&self.name) {
            running.take(|lane| partitions.contains(&ClusterPartition::new(&lane.origin().topic, lane.number())));
        }
    }

    fn show(&self, status: Arc<LaneStatus>, poller: PollerHandle) {
        let Some(service) = self.service.upgrade() else { return };
        if let Some(running) = service.running.write().get_mut(&self.name) {
            running.insert(status, poller);
        }
    }
}

/// Ends a partition's lane at once: whoever goes on finds that its attempts were interrupted. The group does not wait
/// for long.
async fn cut_off(trigger: Uuid, lane: DrivenLane) {
    let DrivenLane { poller, mut task, .. } = lane;
    let ends = async {
        poller.remove(trigger).await;
        poller.send(Message::Stop);
        // One that broke down has ended too.
        let _ = (&mut task).await;
    };
    if tokio::time::timeout(CUT_OFF_MAX, ends).await.is_err() {
        tracing::warn!(%trigger, "a partition's worker did not end in time");
        task.abort();
    }
}

/// Where a partition goes on, by what was committed; `None`: that was for another topic of its name. An offset that
/// somebody else committed (a reset by Kafka's tools) counts; what stands beside it then is not ours.
fn goes_on(committed: &Committed, topic: Uuid) -> Option<Progress> {
    let ours = commit_metadata::decode(&committed.metadata);
    match ours.filter(|ours| ours.progress.committed() == committed.offset) {
        Some(ours) if ours.is_of(topic) => Some(ours.progress),
        Some(_) => None,
        None => Some(Progress::start(committed.offset)),
    }
}

/// What was committed beyond the tail speaks of records that the cluster has lost.
fn set_back(progress: Progress, input: &EventInput) -> Progress {
    let tail: Offset = input.tail();
    if progress.reading_point() <= tail {
        return progress;
    }
    let origin = input.origin();
    tracing::warn!(topic = origin.topic, partition = origin.partition, %tail, "trigger beyond the tail is set back");
    Progress::start(progress.committed().min(tail))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;
    use crate::input::cluster::Security;
    use crate::trigger::progress::Span;

    const SOON: Duration = Duration::from_secs(5);

    /// A driver with a lane, its events and what its member is told, at a cluster that does not answer.
    async fn driver_of_a_lane() -> (Driver, TcpListener) {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let cluster = json!({"bootstrap_servers": address.to_string()});
        let input = json!({"topic": "in", "cluster": cluster});
        let runner = Runner::for_test(&json!({"trigger": "t", "input": input, "function": "f"}));
        let spec = runner.spec();
        let access = ClusterAccess { bootstrap_servers: vec![address.to_string()], security: Security::default() };
        let client = Arc::new(Client::new(access, ClusterAddress::SESSION_TIMEOUT, "test"));
        let (_, _, committer) = Member::join(Arc::clone(&client), "g", selection(&spec.input.topics));
        let tracker = TaskTracker::new();
        let input = ClusterInput::with_leader_for_test(address);
        let (poller, task) = poller::spawn(EventInput::Cluster(input.clone()), tracker.clone());
        let (tenure, topic, task) = (Tenure::default(), Uuid::nil(), AbortOnDropHandle::new(task));
        let lane = DrivenLane { tenure, topic, input, poller, task };
        let driver = Driver {
            service: Weak::new(),
            tracker,
            runner,
            name: "t".to_owned(),
            client,
            committer,
            group: "g".to_owned(),
            starts: Arc::new(Mutex::new(Starts::new(&spec))),
            missing: None,
            lanes: [(ClusterPartition::new("in", 0), lane)].into(),
            waiting: BTreeMap::new(),
        };
        (driver, silent)
    }

    #[tokio::test]
    async fn whatever_breaks_down_ends_the_lanes_and_leaves_the_group() {
        for is_told in [true, false] {
            let (driver, _silent) = driver_of_a_lane().await;
            let (runner, poller) =
                (Arc::clone(&driver.runner), driver.lanes[&ClusterPartition::new("in", 0)].poller.clone());
            let (member, events) = mpsc::unbounded_channel();
            let leaves = CancellationToken::new();
            let driving = tokio::spawn(driver.drive(events, leaves.clone()));
            assert!(!poller.has_ended() && !leaves.is_cancelled());
            // By the member, or by a poller.
            if is_told {
                member.send(GroupEvent::BrokeDown).unwrap()
            } else {
                runner.broke_down()
            }
            timeout(SOON, leaves.cancelled()).await.expect("it leaves");
            timeout(SOON, driving).await.expect("it ends").unwrap();
            assert!(poller.has_ended() && runner.holds(|holds| holds.broken));
        }
    }

    #[tokio::test]
    async fn a_lane_of_a_topic_that_is_another_one_now_is_opened_anew() {
        let (mut driver, _silent) = driver_of_a_lane().await;
        let partition = ClusterPartition::new("in", 0);
        driver.let_go_of_others().await;
        assert!(driver.lanes.contains_key(&partition) && driver.waiting.is_empty());
        let poller = driver.lanes[&partition].poller.clone();
        driver.lanes[&partition].input.be_another_for_test();
        driver.let_go_of_others().await;
        assert!(driver.lanes.is_empty() && poller.has_ended());
        assert_eq!(driver.waiting, BTreeMap::from([(partition, Tenure::default())]));
    }

    #[tokio::test]
    async fn a_member_that_is_gone_ends_its_driver_without_a_word() {
        let (driver, _silent) = driver_of_a_lane().await;
        let runner = Arc::clone(&driver.runner);
        let (member, events) = mpsc::unbounded_channel();
        drop(member);
        timeout(SOON, driver.drive(events, CancellationToken::new())).await.expect("it ends");
        assert!(!runner.holds(|holds| holds.broken));
    }

    #[test]
    fn a_partition_goes_on_from_our_metadata_and_from_the_offset_where_that_is_anothers() {
        let offset = |value| Offset::new(value).unwrap();
        let hole = Span::new(offset(5), offset(7)).unwrap();
        let progress = Progress::new(offset(9), vec![hole], Vec::new(), Vec::new());
        let (topic, another) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let metadata = commit_metadata::encode(topic, &progress.encode().unwrap());
        let of = |topic, at, metadata: &str| {
            goes_on(&Committed { offset: offset(at), metadata: metadata.to_owned() }, topic)
        };
        assert_eq!(of(topic, 5, &metadata), Some(progress));
        assert_eq!(of(another, 5, &metadata), None, "a topic that was made again");
        for (at, metadata) in [(3, metadata.as_str()), (5, ""), (5, "by hand")] {
            assert_eq!(of(another, at, metadata), Some(Progress::start(offset(at))), "{metadata}");
        }
    }
}
