//! A member of a consumer group: comes, says that it lives, gives up what others are to have, and goes.
//!
//! A thin loop around the coordinator's answers. What it has is told to whoever reads it as events, in order:
//! partitions are *assigned*; they are *revoked*, and the member joins again only when told that nothing reads them any
//! more and their progress is committed; or they are *lost*, because the coordinator has given this member up: then
//! nothing may be done about them any more, and nothing can be committed.
//!
//! Which topics its selection means is looked up before it joins, and again every now and then: what was made meanwhile
//! makes it join anew; what was deleted is told, and lost. Signs of life go on meanwhile, and while a look fails, what
//! was known last stays.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::wire::StrBytes;
use super::wire::schema::{
    HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, SyncGroupRequest, join_group_request,
    leave_group_request, sync_group_request,
};
use futures_util::FutureExt;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::assign::{self, Owned, PROTOCOL, Said};
use super::client::{Client, ClusterError, code};
use super::commit::{self, Committer, Signals};
use super::place::{ClusterPartition, Selection, Tenure};
use super::topics::ClusterTopic;
use super::wire::{Link, PATIENCE, message};

const PROTOCOL_TYPE: &str = "consumer";
/// How long members have to come together again. None of ours takes long: what is in flight is given up after a grace.
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest time between two signs of life, and how many of them fit into a session.
const HEARTBEAT_MAX: Duration = Duration::from_secs(3);
const HEARTBEATS_PER_SESSION: u32 = 4;
/// How often a member looks whether topics came or went, and the leader whether one has more partitions. It is one
/// request; a topic that was just made waits so long for its first reader, at most.
const LOOK_AT_TOPICS_EVERY: Duration = Duration::from_secs(30);
/// The pause after something failed.
const PAUSE: Duration = Duration::from_millis(500);

/// What happens to a member.
#[derive(Debug)]
pub enum GroupEvent {
    /// These partitions are its own from now on, for this tenure.
    Assigned(BTreeSet<ClusterPartition>, Tenure),
    /// These are to be another's: commit what is done, read no more, then answer.
    Revoked(BTreeSet<ClusterPartition>, oneshot::Sender<()>),
    /// These may be another's already.
    Lost(BTreeSet<ClusterPartition>),
    /// These topics were deleted, or are others of the same name now.
    Deleted(BTreeSet<String>),
    /// It is not in the group for now, and why; it keeps trying.
    Trouble(String),
    /// It is in the group; these of the topics that it names are not there.
    Joined(BTreeSet<String>),
    /// It, or what commits for it, has ended by a bug of ours.
    BrokeDown,
}

/// Works for a member; whoever follows its events is told when that breaks down.
async fn tell_if_it_breaks_down(work: impl Future<Output = ()>, events: mpsc::WeakUnboundedSender<GroupEvent>) {
    let whole = AssertUnwindSafe(work).catch_unwind().await;
    if let (Err(_), Some(events)) = (whole, events.upgrade()) {
        // Who has let go of the member needs to know nothing.
        let _ = events.send(GroupEvent::BrokeDown);
    }
}

/// Who a member is at the moment, as far as commits must know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) member_id: String,
    /// Negative outside the group.
    pub(super) generation: i32,
    /// Whether it waits for a new generation.
    pub(super) joining: bool,
    pub(super) owned: BTreeMap<ClusterPartition, Tenure>,
}

/// A member at work; it leaves when told to. Dropped, it is gone without a word, and the group finds out by itself.
#[derive(Debug)]
pub struct Member {
    stop: CancellationToken,
    selection: watch::Sender<Selection>,
    task: JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Member {
    /// Joins `group` for the partitions of these topics, and keeps trying until told to leave. Needs a tokio runtime.
    #[must_use]
    pub fn join(
        client: Arc<Client>,
        group: &str,
        selection: Selection,
    ) -> (Self, mpsc::UnboundedReceiver<GroupEvent>, Committer) {
        let (events, receiver) = mpsc::unbounded_channel();
        let (identity, seen) = watch::channel(Identity { generation: -1, ..Identity::default() });
        let signals = Signals::default();
        let (committer, commits) = commit::new(Arc::clone(&client), group, seen, signals.clone());
        // Weak: whoever follows the events has the committer, whose end ends this; the events must not wait for it.
        tokio::spawn(tell_if_it_breaks_down(commits, events.downgrade()));
        let stop = CancellationToken::new();
        let session = client.session_timeout;
        let (selection, selected) = watch::channel(selection);
        let membership = Membership {
            client,
            group: group.to_owned(),
            selection: selected,
            topics: Topics::new(),
            wanted: BTreeSet::new(),
            knows_topics: false,
            session,
            link: Link::default(),
            coordinator: String::new(),
            member_id: String::new(),
            generation: -1,
            owned: BTreeMap::new(),
            owned_generation: -1,
            tenure: Tenure::default(),
            leads: None,
            heard: Instant::now(),
            identity,
            events,
            signals,
            stop: stop.clone(),
        };
        let task = tokio::spawn(async move {
            // The work has the events, too, and may take them with it.
            let kept = membership.events.clone();
            tell_if_it_breaks_down(membership.run(), kept.downgrade()).await;
        });
        (Self { stop, selection, task }, receiver, committer)
    }

    /// Cancelled, it gives everything back and leaves the group.
    #[must_use]
    pub fn leaves(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Reads these topics from now on.
    pub fn select(&self, selection: Selection) {
        self.selection.send_replace(selection);
    }

    /// Gives everything back and leaves the group, within `grace`.
    pub async fn leave(mut self, grace: Duration) {
        self.stop.cancel();
        let _ = tokio::time::timeout(grace, &mut self.task).await;
    }
}

struct Membership {
    client: Arc<Client>,
    group: String,
    selection: watch::Receiver<Selection>,
    /// The topics that it reads, as they were when it last looked, with their ids.
    topics: Topics,
    /// The topics that it says it wants: also those that it names and that are not there.
    wanted: BTreeSet<String>,
    /// Whether those are the topics of its selection.
    knows_topics: bool,
    session: Duration,
    link: Link,
    coordinator: String,
    member_id: String,
    generation: i32,
    owned: BTreeMap<ClusterPartition, Tenure>,
    /// The generation of the assignment that gave it; -1 for none.
    owned_generation: i32,
    /// The latest.
    tenure: Tenure,
    /// Of how many partitions of which topics it gave out the assignment, if it leads.
    leads: Option<Counts>,
    /// When the coordinator last took it for a member.
    heard: Instant,
    identity: watch::Sender<Identity>,
    events: mpsc::UnboundedSender<GroupEvent>,
    signals: Signals,
    stop: CancellationToken,
}

/// Topics that there are, and their ids.
type Topics = BTreeMap<String, Uuid>;

/// How many partitions each topic has that members want; 0 for those that are not there.
type Counts = BTreeMap<String, u32>;

/// How a generation ends.
enum Next {
    /// Join again.
    Join,
    /// Leave.
    Leave,
}

impl Membership {
    async fn run(mut self) {
        loop {
            let stop = self.stop.clone();
            let ended = self.generations().await;
            let Err(error) = ended else { break };
            if self.stop.is_cancelled() {
                break;
            }
            tracing::warn!(group = self.group, %error, "not a member of the group for now");
            self.tell(GroupEvent::Trouble(error.to_string()));
            self.link.close();
            self.lose_what_has_expired();
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = stop.cancelled() => break,
            }
        }
        self.leave().await;
    }

    /// One generation after the other, until told to leave.
    async fn generations(&mut self) -> Result<(), ClusterError> {
        self.coordinator = self.client.coordinator(&self.group).await?;
        loop {
            self.publish(true);
            self.look_up().await?;
            let stop = self.stop.clone();
            let joined = tokio::select! {
                joined = self.join_and_sync() => joined?,
                () = stop.cancelled() => {
                    // The answer that is on its way is nobody's.
                    self.link.close();
                    return Ok(());
                }
            };
            let Some(assigned) = joined else { continue };
            self.heard = Instant::now();
            let missing = self.wanted.iter().filter(|topic| !self.topics.contains_key(*topic)).cloned();
            self.tell(GroupEvent::Joined(missing.collect()));
            let revoked = self.owned_where(|partition| !assigned.contains(partition));
            let added: BTreeSet<_> =
                assigned.into_iter().filter(|partition| !self.owned.contains_key(partition)).collect();
            self.owned_generation = self.generation;
            let joins_again = !revoked.is_empty();
            self.publish(false);
            if joins_again {
                self.release(revoked).await;
            }
            if !added.is_empty() {
                self.tenure.0 += 1;
                self.owned.extend(added.iter().map(|partition| (partition.clone(), self.tenure)));
                self.publish(false);
                self.tell(GroupEvent::Assigned(added, self.tenure));
            }
            if joins_again {
                continue;
            }
            match self.stay().await? {
                Next::Join => {}
                Next::Leave => return Ok(()),
            }
        }
    }

    /// Finds out which topics its selection means now. What it does not read any more is given up before others may
    /// have it.
    async fn look_up(&mut self) -> Result<(), ClusterError> {
        self.knows_topics &= !self.selection.has_changed().unwrap_or(false);
        let selection = self.selection.borrow_and_update().clone();
        let look = look_twice(Arc::clone(&self.client), selection.clone(), self.topics.clone());
        let topics = match self.alive_during(look).await {
            Ok(topics) => topics,
            // One topic that cannot be described does not take away the others.
            Err(error) if self.knows_topics => {
                tracing::warn!(group = self.group, %error, "which topics there are is not known at the moment");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.knows_topics = true;
        let is_deleted = |(name, id): &(&String, &Uuid)| {
            // One that a new selection leaves out was not deleted.
            selection.selects(name) && topics.get(*name).is_none_or(|now| now != *id)
        };
        let deleted: BTreeSet<String> = self.topics.iter().filter(is_deleted).map(|(name, _)| name.clone()).collect();
        self.wanted = match selection {
            Selection::Named(names) => names,
            Selection::Matching(_) => topics.keys().cloned().collect(),
        };
        self.topics = topics;
        if !deleted.is_empty() {
            tracing::warn!(group = self.group, topics = ?deleted, "topics of the cluster were deleted");
            self.owned.retain(|partition, _| !deleted.contains(partition.topic()));
            self.publish(true);
            self.tell(GroupEvent::Deleted(deleted));
        }
        let left = self.owned_where(|partition| !self.wanted.contains(partition.topic()));
        if !left.is_empty() {
            self.release(left).await;
        }
        Ok(())
    }

    /// `None`: once more.
    async fn join_and_sync(&mut self) -> Result<Option<BTreeSet<ClusterPartition>>, ClusterError> {
        let owned = Owned { generation: self.owned_generation, partitions: self.owned_where(|_| true) };
        let said = Said { topics: self.wanted.clone(), owned };
        let protocol = message!(join_group_request::JoinGroupRequestProtocol {
            name: StrBytes::from(PROTOCOL),
            metadata: assign::subscription(&said),
        });
        let request = message!(JoinGroupRequest {
            group_id: StrBytes::from(self.group.clone()),
            session_timeout_ms: milliseconds(self.session),
            rebalance_timeout_ms: milliseconds(REBALANCE_TIMEOUT),
            member_id: StrBytes::from(self.member_id.clone()),
            protocol_type: StrBytes::from(PROTOCOL_TYPE),
            protocols: vec![protocol],
        });
        let at = (self.coordinator.as_str(), &self.client.dialer);
        let joined = self.link.call(at, 2..=9, &request, REBALANCE_TIMEOUT + PATIENCE).await?;
        match joined.error_code {
            code::NONE => {}
            code::MEMBER_ID_REQUIRED => {
                joined.member_id.as_str().clone_into(&mut self.member_id);
                return Ok(None);
            }
            code::UNKNOWN_MEMBER_ID | code::ILLEGAL_GENERATION | code::FENCED_INSTANCE_ID => {
                self.forget_membership();
                return Ok(None);
            }
            code::REBALANCE_IN_PROGRESS => return Ok(None),
            refused => {
                return Err(ClusterError::refused(format!("to let a member into group {}", self.group), refused));
            }
        }
        joined.member_id.as_str().clone_into(&mut self.member_id);
        self.generation = joined.generation_id;
        let assignments = self.assignments(&joined).await?;
        self.sync(&joined, assignments).await
    }

    async fn sync(
        &mut self,
        joined: &JoinGroupResponse,
        assignments: Vec<sync_group_request::SyncGroupRequestAssignment>,
    ) -> Result<Option<BTreeSet<ClusterPartition>>, ClusterError> {
        let request = message!(SyncGroupRequest {
            group_id: StrBytes::from(self.group.clone()),
            generation_id: joined.generation_id,
            member_id: StrBytes::from(self.member_id.clone()),
            protocol_type: Some(StrBytes::from(PROTOCOL_TYPE)),
            protocol_name: Some(StrBytes::from(PROTOCOL)),
            assignments: assignments,
        });
        let at = (self.coordinator.as_str(), &self.client.dialer);
        let synced = self.link.call(at, 1..=5, &request, REBALANCE_TIMEOUT + PATIENCE).await?;
        match synced.error_code {
            code::NONE => Ok(Some(assign::assigned(synced.assignment))),
            code::REBALANCE_IN_PROGRESS | code::ILLEGAL_GENERATION => Ok(None),
            code::UNKNOWN_MEMBER_ID | code::FENCED_INSTANCE_ID => {
                self.forget_membership();
                Ok(None)
            }
            refused => Err(ClusterError::refused(format!("an assignment in group {}", self.group), refused)),
        }
    }

    /// What everybody gets, if this member leads.
    async fn assignments(
        &mut self,
        joined: &JoinGroupResponse,
    ) -> Result<Vec<sync_group_request::SyncGroupRequestAssignment>, ClusterError> {
        let given = self.leads.take();
        if joined.leader.as_str() != self.member_id || joined.skip_assignment {
            return Ok(Vec::new());
        }
        let members = joined.members.iter();
        let said: BTreeMap<String, Said> =
            members.map(|member| (member.member_id.to_string(), assign::said(member.metadata.clone()))).collect();
        let wanted: BTreeSet<&str> = said.values().flat_map(|said| &said.topics).map(String::as_str).collect();
        let counts = match (counts(&self.client, &wanted).await, given) {
            (Ok(counts), _) => counts,
            (Err(error), Some(given)) if wanted.iter().all(|topic| given.contains_key(*topic)) => {
                tracing::warn!(group = self.group, %error, "topics are shared as they were before");
                given.into_iter().filter(|(topic, _)| wanted.contains(topic.as_str())).collect()
            }
            (Err(error), _) => return Err(error),
        };
        let shares = assign::share(&counts, &said).into_iter();
        self.leads = Some(counts);
        let assignment = |(member, share): (String, BTreeSet<ClusterPartition>)| {
            message!(sync_group_request::SyncGroupRequestAssignment {
                member_id: StrBytes::from(member),
                assignment: assign::assignment(&share),
            })
        };
        Ok(shares.map(assignment).collect())
    }

    /// Says that it lives until the group comes together anew.
    async fn stay(&mut self) -> Result<Next, ClusterError> {
        let (stop, signals) = (self.stop.clone(), self.signals.clone());
        let (member_id, generation) = (self.member_id.clone(), self.generation);
        let mut selection = self.selection.clone();
        let look = Look {
            client: Arc::clone(&self.client),
            group: self.group.clone(),
            selection: self.selection.borrow().clone(),
            topics: self.topics.clone(),
            leads: self.leads.clone(),
        };
        let mut news = pin!(look.until_topics_change(&signals.look_at_topics));
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.heartbeat_every()) => {}
                () = &mut news => return Ok(Next::Join),
                Ok(()) = selection.changed() => return Ok(Next::Join),
                () = signals.fenced_as(&member_id, generation) => {
                    self.forget_membership();
                    return Ok(Next::Join);
                }
                () = stop.cancelled() => return Ok(Next::Leave),
            }
            match self.heartbeat().await? {
                code::NONE => self.heard = Instant::now(),
                code::REBALANCE_IN_PROGRESS => return Ok(Next::Join),
                code::UNKNOWN_MEMBER_ID | code::ILLEGAL_GENERATION | code::FENCED_INSTANCE_ID => {
                    self.forget_membership();
                    return Ok(Next::Join);
                }
                refused => {
                    return Err(ClusterError::refused(
                        format!("a member's sign of life in group {}", self.group),
                        refused,
                    ));
                }
            }
        }
    }

    async fn heartbeat(&mut self) -> Result<i16, ClusterError> {
        let request = message!(HeartbeatRequest {
            group_id: StrBytes::from(self.group.clone()),
            generation_id: self.generation,
            member_id: StrBytes::from(self.member_id.clone()),
        });
        let at = (self.coordinator.as_str(), &self.client.dialer);
        Ok(self.link.call(at, 0..=4, &request, PATIENCE).await?.error_code)
    }

    fn heartbeat_every(&self) -> Duration {
        (self.session / HEARTBEATS_PER_SESSION).min(HEARTBEAT_MAX)
    }

    /// Has partitions given up, and says meanwhile that it lives.
    async fn release(&mut self, partitions: BTreeSet<ClusterPartition>) {
        let (done, released) = oneshot::channel();
        self.tell(GroupEvent::Revoked(partitions.clone(), done));
        let _ = self.alive_during(released).await;
        self.owned.retain(|partition, _| !partitions.contains(partition));
        let joining = self.identity.borrow().joining;
        self.publish(joining);
    }

    /// Says that it lives for as long as something takes.
    async fn alive_during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(self.heartbeat_every()), if !self.member_id.is_empty() => {
                    match self.heartbeat().await {
                        Ok(code::NONE | code::REBALANCE_IN_PROGRESS) => self.heard = Instant::now(),
                        // What comes of it shows when it joins again.
                        Ok(code) => tracing::debug!(group = self.group, code, "not known between generations"),
                        Err(error) => tracing::debug!(group = self.group, %error, "no sign of life between generations"),
                    }
                }
            }
        }
    }

    async fn leave(&mut self) {
        if !self.owned.is_empty() {
            self.release(self.owned_where(|_| true)).await;
        }
        if self.member_id.is_empty() {
            return;
        }
        let member =
            message!(leave_group_request::MemberIdentity { member_id: StrBytes::from(self.member_id.clone()) });
        let request =
            message!(LeaveGroupRequest { group_id: StrBytes::from(self.group.clone()), members: vec![member] });
        let at = (self.coordinator.as_str(), &self.client.dialer);
        if let Err(error) = self.link.call(at, 3..=5, &request, PATIENCE).await {
            tracing::debug!(group = self.group, %error, "the group finds out by itself that a member left");
        }
        self.generation = -1;
        self.publish(false);
    }

    /// The coordinator does not know it any more, so others may have what it had.
    fn forget_membership(&mut self) {
        self.member_id.clear();
        self.lose_everything();
    }

    fn lose_what_has_expired(&mut self) {
        if self.heard.elapsed() > self.session {
            self.lose_everything();
        }
    }

    fn lose_everything(&mut self) {
        (self.generation, self.owned_generation) = (-1, -1);
        let lost: BTreeSet<_> = std::mem::take(&mut self.owned).into_keys().collect();
        self.publish(true);
        if !lost.is_empty() {
            tracing::warn!(group = self.group, partitions = ?lost, "lost to the group");
            self.tell(GroupEvent::Lost(lost));
        }
    }

    fn owned_where(&self, is_meant: impl Fn(&ClusterPartition) -> bool) -> BTreeSet<ClusterPartition> {
        self.owned.keys().filter(|partition| is_meant(partition)).cloned().collect()
    }

    fn publish(&self, joining: bool) {
        self.identity.send_replace(Identity {
            member_id: self.member_id.clone(),
            generation: self.generation,
            joining,
            owned: self.owned.clone(),
        });
    }

    /// Nobody listens to one who is leaving.
    fn tell(&self, event: GroupEvent) {
        let _ = self.events.send(event);
    }
}

/// Looks at topics while a member says that it lives.
struct Look {
    client: Arc<Client>,
    group: String,
    selection: Selection,
    /// As they were before.
    topics: Topics,
    leads: Option<Counts>,
}

impl Look {
    /// Ends when there is something new, so that it is time to join anew. Looks early when told that it may be.
    async fn until_topics_change(self, early: &Notify) {
        loop {
            let looked = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(LOOK_AT_TOPICS_EVERY) => {}
                () = early.notified() => tokio::time::sleep_until(looked + PAUSE).await,
            }
            match self.topics_have_changed().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    let group = &self.group;
                    tracing::warn!(group, %error, "which topics there are is not known at the moment");
                }
            }
        }
    }

    async fn topics_have_changed(&self) -> Result<bool, ClusterError> {
        if selected(&self.client, &self.selection).await? != self.topics {
            return Ok(true);
        }
        let Some(given) = &self.leads else { return Ok(false) };
        let topics = given.keys().map(String::as_str).collect();
        Ok(counts(&self.client, &topics).await? != *given)
    }
}

async fn selected(client: &Client, selection: &Selection) -> Result<Topics, ClusterError> {
    let topics = client.selected(selection).await?;
    Ok(topics.into_iter().map(|(name, topic)| (name, topic.id)).collect())
}

/// The topics of a selection; one that was there before is believed to be gone when that is said twice.
async fn look_twice(client: Arc<Client>, selection: Selection, before: Topics) -> Result<Topics, ClusterError> {
    let topics = selected(&client, &selection).await?;
    if before.keys().any(|name| selection.selects(name) && !topics.contains_key(name)) {
        // It may be a broker that hears of things late.
        tokio::time::sleep(PAUSE).await;
        return selected(&client, &selection).await;
    }
    Ok(topics)
}

async fn counts(client: &Client, topics: &BTreeSet<&str>) -> Result<Counts, ClusterError> {
    let found = client.topics_named(topics.iter().copied()).await?;
    let count = |topic: &str| found.get(topic).map_or(0, ClusterTopic::partition_count);
    Ok(topics.iter().map(|topic| ((*topic).to_owned(), count(topic))).collect())
}

fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_breaks_down_is_told_and_work_that_ends_is_not() {
        let (events, mut told) = mpsc::unbounded_channel();
        tell_if_it_breaks_down(async {}, events.downgrade()).await;
        assert!(told.is_empty());
        tell_if_it_breaks_down(async { panic!("as a bug would") }, events.downgrade()).await;
        assert!(matches!(told.recv().await, Some(GroupEvent::BrokeDown)));
        // And it keeps nobody's events open.
        drop(events);
        assert!(told.recv().await.is_none());
    }
}
