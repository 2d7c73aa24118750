//! Triggers on a cluster: each is a member of its group, and drives a lane for each partition that the group gives it.
//!
//! Definitions, pauses and functions are this process's own; progress is the group's. Processes that run the same trigger share
//! its partitions, and each limits its own invocations.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tripline_storage::Offset;
use uuid::Uuid;

use super::apply::Remembered;
use super::{Applied, ApplyTriggerError, Inner, Running, TriggerService, inline_spec};
use crate::broker::record::LaneId;
use crate::broker::state::LaneState;
use crate::config::planned::Planned;
use crate::input::EventInput;
use crate::input::cluster::{Client, ClusterError, ClusterInput, ClusterTopic, Committed, GroupEvent, Member};
use crate::trigger::commit_metadata;
use crate::trigger::lane_status::LaneStatus;
use crate::trigger::poller::cluster::{GroupPlace, Kept};
use crate::trigger::poller::{self, Message, NewLane, PollerHandle};
use crate::trigger::progress::Progress;
use crate::trigger::runner::Runner;
use crate::trigger::spec::{StartPosition, TriggerSpec};
use crate::trigger::status::set;

/// How long attempts may go on after the group took their partition away.
const REVOKED_GRACE: Duration = Duration::from_secs(5);
/// How long attempts that are cut off have to end.
const CUT_OFF_MAX: Duration = Duration::from_secs(5);
/// How long is waited before a partition is opened again that could not be.
const RETRY: Duration = Duration::from_secs(1);

/// A trigger's place in its group.
#[derive(Debug)]
pub(super) struct Place {
    member: Member,
    driver: JoinHandle<()>,
}

impl Place {
    /// Gives everything back and leaves; what is in flight has `grace`.
    pub(super) async fn leave(self, grace: Duration) {
        let Self { member, mut driver } = self;
        // Longer than what is in flight has: the last commit and the farewell come after it.
        member.leave(grace + REVOKED_GRACE).await;
        if tokio::time::timeout(REVOKED_GRACE, &mut driver).await.is_err() {
            driver.abort();
        }
    }
}

impl TriggerService {
    pub(super) async fn apply_to_cluster(&self, spec: TriggerSpec) -> Result<Applied, ApplyTriggerError> {
        let refused = |error: ClusterError| ApplyTriggerError::Cluster(error.to_string());
        let client = client(&spec).ok_or_else(|| ApplyTriggerError::Lane("it is not on a cluster".to_owned()))?;
        // The cluster takes its time: nobody else waits for it.
        let name = topic_name(&spec);
        let topic = client.topic(&name).await.map_err(refused)?;
        make_outputs(&client, &spec, topic.partition_count()).await.map_err(refused)?;
        if self.runner(spec.name.as_str()).is_none() {
            commit_start(&client, &group(&spec), &spec, &topic).await.map_err(refused)?;
        }
        let changing = self.inner.changing.lock().await;
        changing.goes_on()?;
        let current = self.check_change(&spec, &Planned::default()).await?;
        let warnings = spec.warnings();
        let Some(runner) = current else {
            let remembered = self.inner.broker.journal().look(|state| state.trigger_named(spec.name.as_str()));
            let id = remembered.unwrap_or_else(Uuid::new_v4);
            self.remember(&[self.defined(id, &spec).into()], &[]).await?;
            self.deploy_inline(&spec).await?;
            self.run_on_cluster(id, spec, self.is_paused(id));
            return Ok(Applied { created: true, changed: true, warnings });
        };
        let changed = *runner.spec() != spec;
        let moved = runner.spec().input.cluster != spec.input.cluster;
        if changed {
            let paused = runner.holds(|holds| holds.paused);
            self.change(&runner, spec.clone(), Remembered::default()).await?;
            if moved {
                self.end_lanes(spec.name.as_str()).await;
                self.run_on_cluster(runner.id, spec, paused);
            }
        }
        Ok(Applied { created: false, changed, warnings })
    }

    /// Joins the group; partitions come when the group gives them.
    pub(super) fn run_on_cluster(&self, id: Uuid, spec: TriggerSpec, paused: bool) {
        let Some(client) = client(&spec) else { return };
        let (name, topic, group) = (spec.name.to_string(), topic_name(&spec), group(&spec));
        let (broker, functions) = (self.inner.broker.clone(), self.inner.functions.clone());
        let start = spec.input.start;
        let (clock, traces) = (self.inner.clock, self.inner.traces.clone());
        let runner = Arc::new(Runner::new(id, spec, broker, functions, clock, traces, paused));
        let (member, events, committer) = Member::join(Arc::clone(&client), &group, &topic);
        let driver = Driver {
            service: Arc::downgrade(&self.inner),
            tracker: self.inner.tracker.clone(),
            runner: Arc::clone(&runner),
            name: name.clone(),
            place: GroupPlace { client, committer },
            group,
            topic,
            start,
            lanes: HashMap::new(),
            waiting: BTreeSet::new(),
        };
        let place = Some(Place { member, driver: tokio::spawn(driver.run(events)) });
        self.inner.running.write().insert(name, Running { place, ..Running::new(runner) });
    }

    pub(super) fn restore_on_cluster(&self, id: Uuid, spec: TriggerSpec, paused: bool) -> Result<(), String> {
        if let Some(function) = inline_spec(&spec) {
            self.inner.functions.restore(function, 0).map_err(|error| error.to_string())?;
        }
        self.run_on_cluster(id, spec, paused);
        Ok(())
    }
}

fn client(spec: &TriggerSpec) -> Option<Arc<Client>> {
    let address = spec.input.cluster.clone()?;
    Some(Arc::new(Client::new(address, &format!("tripline-{}", spec.name))))
}

/// The one topic that a trigger reads there.
fn topic_name(spec: &TriggerSpec) -> String {
    spec.input.topics.to_string()
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

/// Where a trigger starts is decided when it is made, by the first process that makes it.
async fn commit_start(
    client: &Client,
    group: &str,
    spec: &TriggerSpec,
    topic: &ClusterTopic,
) -> Result<(), ClusterError> {
    let name = &topic_name(spec);
    let partitions: Vec<u32> = (0..topic.partition_count()).collect();
    if !client.committed(group, name, &partitions).await?.is_empty() {
        return Ok(());
    }
    let mut starts = Vec::with_capacity(partitions.len());
    for partition in partitions {
        starts.push((partition, client.start_of(name, partition, at(spec.input.start)).await?));
    }
    // If others are in the group already, theirs count.
    client.commit_outside(group, name, &starts).await.map(|_| ())
}

fn at(start: StartPosition) -> crate::input::cluster::Start {
    use crate::input::cluster::Start;
    match start {
        StartPosition::Earliest => Start::Earliest,
        StartPosition::Latest => Start::Latest,
        StartPosition::Offset(offset) => Start::Offset(offset),
        StartPosition::Time(time) => Start::Time(time.as_millisecond()),
    }
}

/// Starts and ends the lanes of a trigger as its group says.
struct Driver {
    service: Weak<Inner>,
    /// Counts what its pollers begin.
    tracker: TaskTracker,
    runner: Arc<Runner>,
    name: String,
    place: GroupPlace,
    group: String,
    topic: String,
    start: StartPosition,
    lanes: HashMap<u32, (PollerHandle, JoinHandle<()>)>,
    /// Partitions that are ours and could not be opened yet.
    waiting: BTreeSet<u32>,
}

impl Driver {
    async fn run(mut self, mut events: mpsc::UnboundedReceiver<GroupEvent>) {
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.follow(event).await,
                    None => return,
                },
                () = tokio::time::sleep(RETRY), if !self.waiting.is_empty() => self.open().await,
            }
        }
    }

    async fn follow(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Joined => self.runner.change(|holds| set(&mut holds.cluster, None)),
            GroupEvent::Trouble(reason) => self.runner.change(|holds| set(&mut holds.cluster, Some(reason))),
            GroupEvent::Assigned(partitions) => {
                tracing::info!(trigger = self.name, ?partitions, "partitions assigned");
                self.waiting.extend(partitions);
                self.open().await;
            }
            GroupEvent::Revoked(partitions, done) => {
                tracing::info!(trigger = self.name, ?partitions, "partitions revoked");
                self.give_back(&partitions).await;
                // The member may be gone.
                let _ = done.send(());
            }
            GroupEvent::Lost(partitions) => {
                let lost = self.take(&partitions);
                join_all(lost.into_iter().map(|(poller, task)| cut_off(self.runner.id, poller, task))).await;
                self.forget(&partitions);
            }
        }
    }

    /// Opens what waits for it.
    async fn open(&mut self) {
        match self.open_waiting().await {
            Ok(()) => self.runner.change(|holds| set(&mut holds.cluster, None)),
            Err(error) => {
                tracing::warn!(trigger = self.name, %error, "partitions of the cluster cannot be opened yet");
                self.runner.change(|holds| set(&mut holds.cluster, Some(error.to_string())));
            }
        }
    }

    async fn open_waiting(&mut self) -> Result<(), ClusterError> {
        let topic = self.place.client.topic(&self.topic).await?;
        let all: Vec<u32> = (0..topic.partition_count()).collect();
        let committed = self.place.client.committed(&self.group, &self.topic, &all).await?;
        while let Some(partition) = self.waiting.first().copied() {
            self.open_one(&topic, partition, &committed).await?;
            self.waiting.remove(&partition);
        }
        Ok(())
    }

    async fn open_one(
        &mut self,
        topic: &ClusterTopic,
        partition: u32,
        committed: &HashMap<u32, Committed>,
    ) -> Result<(), ClusterError> {
        let client = &self.place.client;
        let (progress, verdicts) = match committed.get(&partition) {
            Some(committed) => goes_on(committed),
            None => {
                // One that was added later is read from its beginning.
                let start = if committed.is_empty() { self.start } else { StartPosition::Earliest };
                (
                    Progress::start(client.start_of(&self.topic, partition, at(start)).await?),
                    commit_metadata::Verdicts::new(),
                )
            }
        };
        let input =
            ClusterInput::open(Arc::clone(client), &self.topic, topic, partition, progress.reading_point()).await?;
        let input = EventInput::Cluster(input);
        let progress = set_back(progress, &input);
        let id = LaneId { trigger: self.runner.id, topic: topic.id, partition };
        let status = Arc::new(LaneStatus::new(input.clone(), progress.committed(), None));
        let lane = NewLane {
            runner: Arc::clone(&self.runner),
            id,
            progress,
            remembered: LaneState::default(),
            status: Arc::clone(&status),
            run: None,
            kept: Kept::carried(verdicts),
            group: Some(self.place.clone()),
        };
        let (poller, task) = poller::spawn(input, self.tracker.clone());
        poller.send(Message::Add(Box::new(lane)));
        self.show(status, poller.clone());
        self.lanes.insert(partition, (poller, task));
        Ok(())
    }

    /// Ends lanes: what is in flight may end, what is done is committed.
    async fn give_back(&mut self, partitions: &BTreeSet<u32>) {
        let ending = self.take(partitions);
        ending.iter().for_each(|(poller, _)| poller.send(Message::Stop));
        let deadline = Instant::now() + REVOKED_GRACE;
        let end = async |(poller, mut task): (PollerHandle, JoinHandle<()>)| {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                cut_off(self.runner.id, poller, task).await;
            }
        };
        join_all(ending.into_iter().map(end)).await;
        self.forget(partitions);
    }

    /// These partitions are not ours any more; answers who drives those that were open.
    fn take(&mut self, partitions: &BTreeSet<u32>) -> Vec<(PollerHandle, JoinHandle<()>)> {
        self.waiting.retain(|partition| !partitions.contains(partition));
        partitions.iter().filter_map(|partition| self.lanes.remove(partition)).collect()
    }

    fn show(&self, status: Arc<LaneStatus>, poller: PollerHandle) {
        let Some(service) = self.service.upgrade() else { return };
        if let Some(running) = service.running.write().get_mut(&self.name) {
            running.insert(status, poller);
        }
    }

    /// They are shown no more.
    fn forget(&self, partitions: &BTreeSet<u32>) {
        self.runner.change(|holds| holds.unblock(|(_, partition)| partitions.contains(partition)));
        let Some(service) = self.service.upgrade() else { return };
        if let Some(running) = service.running.write().get_mut(&self.name) {
            running.take(|lane| partitions.contains(&lane.number()));
        }
    }
}

/// Ends a partition's lane at once: whoever goes on finds that its attempts were interrupted. The group does not wait for long.
async fn cut_off(trigger: Uuid, poller: PollerHandle, mut task: JoinHandle<()>) {
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

/// Where a partition goes on, by what was committed. An offset that somebody else committed (a reset by Kafka's tools) counts;
/// what stands beside it then is not ours.
fn goes_on(committed: &Committed) -> (Progress, commit_metadata::Verdicts) {
    let ours = commit_metadata::decode(&committed.metadata).filter(|(at, _)| at.committed() == committed.offset);
    ours.unwrap_or_else(|| (Progress::start(committed.offset), commit_metadata::Verdicts::new()))
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
    use super::*;
    use crate::trigger::progress::Span;

    #[test]
    fn a_partition_goes_on_from_our_metadata_and_from_the_offset_where_that_is_anothers() {
        let offset = |value| Offset::new(value).unwrap();
        let hole = Span::new(offset(5), offset(7)).unwrap();
        let progress = Progress::new(offset(9), vec![hole], Vec::new(), Vec::new());
        let (metadata, _) = commit_metadata::encode(&progress.encode().unwrap(), [(5, 70)].into_iter());
        let of = |at, metadata: &str| goes_on(&Committed { offset: offset(at), metadata: metadata.to_owned() });
        assert_eq!(of(5, &metadata), (progress, [(5, 70)].into()));
        for (at, metadata) in [(3, metadata.as_str()), (5, ""), (5, "by hand")] {
            assert_eq!(of(at, metadata), (Progress::start(offset(at)), commit_metadata::Verdicts::new()), "{metadata}");
        }
    }
}
