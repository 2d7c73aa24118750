//! Commits of a member: whatever waits goes out together, and is answered when the group has it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::wire::StrBytes;
use super::wire::schema::OffsetCommitRequest;
use super::wire::schema::offset_commit_response::OffsetCommitResponseTopic;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use tripline_storage::Offset;

use super::client::{Client, ClusterError, code, committing};
use super::member::Identity;
use super::place::{ClusterPartition, Tenure};
use super::wire::{Link, PATIENCE, message};

/// Commits that go out together at most.
const TOGETHER_MAX: usize = 1000;
/// How long a commit waits for a new generation, or for another coordinator, before it is looked at again.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a commit is tried before whoever waits is told that it fails.
const TRIES: u32 = 50;

/// Why progress was not committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The partition is not this member's any more, or is again: another goes on, or went on, with it, from what was
    /// committed before.
    #[error("the partition belongs to another member of the group")]
    Fenced,
    /// The cluster does not take it for now.
    #[error("progress is not committed: {0}")]
    Failed(String),
}

/// Commits for one member. Clones are handles to the same one; it ends with the last.
#[derive(Clone, Debug)]
pub struct Committer {
    pending: mpsc::UnboundedSender<Pending>,
}

#[derive(Debug)]
struct Pending {
    partition: ClusterPartition,
    /// Whoever asks has read the partition in this one. What others commit after it must not be taken back.
    tenure: Tenure,
    offset: Offset,
    metadata: String,
    /// How often it was tried.
    tries: u32,
    done: oneshot::Sender<Result<(), CommitError>>,
}

impl Committer {
    /// Commits `offset` with `metadata` for a partition, as long as the member has it in this tenure. On return the
    /// group has it; dropped, it is not tried again. A caller has one commit of a partition under way at a time: what
    /// is queued is bounded by the partitions.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(
        &self,
        partition: ClusterPartition,
        tenure: Tenure,
        offset: Offset,
        metadata: String,
    ) -> Result<(), CommitError> {
        let (done, answer) = oneshot::channel();
        let _ = self.pending.send(Pending { partition, tenure, offset, metadata, tries: 0, done });
        // It ends before its handles by a bug of ours alone.
        answer.await.unwrap_or_else(|_| Err(CommitError::Failed("what commits has broken down".to_owned())))
    }
}

/// Whom commits tell that something is not as the member knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Signals {
    /// The last one whom the coordinator did not know any more: a member's id and its generation.
    fenced: Arc<watch::Sender<(String, i32)>>,
    /// A topic may have been deleted.
    pub(super) look_at_topics: Arc<Notify>,
}

impl Signals {
    /// Waits until commits find that the coordinator does not know this member any more. That it did not know a former
    /// one is nothing to whoever came back since.
    pub(super) async fn fenced_as(&self, member_id: &str, generation: i32) {
        let mut fenced = self.fenced.subscribe();
        let told = fenced.wait_for(|fenced| fenced.0 == member_id && fenced.1 == generation).await;
        told.expect("the sender is a part of this");
    }

    fn fence(&self, identity: &Identity) {
        self.fenced.send_replace((identity.member_id.clone(), identity.generation));
    }
}

/// Whoever commits, and the work behind it.
pub(super) fn new(
    client: Arc<Client>,
    group: &str,
    identity: watch::Receiver<Identity>,
    signals: Signals,
) -> (Committer, impl Future<Output = ()> + Send + 'static) {
    let (pending, inbox) = mpsc::unbounded_channel();
    let commits = Commits {
        client,
        group: group.to_owned(),
        identity,
        signals,
        link: Link::default(),
        coordinator: None,
        failed: String::new(),
    };
    (Committer { pending }, commits.run(inbox))
}

struct Commits {
    client: Arc<Client>,
    group: String,
    identity: watch::Receiver<Identity>,
    signals: Signals,
    link: Link,
    coordinator: Option<String>,
    /// Why the last one failed that did.
    failed: String,
}

impl Commits {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Pending>) {
        // Those that are tried again hold up nobody: a topic that was deleted takes no commits ever.
        let (mut again, mut again_at): (Vec<Pending>, _) = (Vec::new(), Instant::now());
        loop {
            let mut together = Vec::new();
            if again.is_empty() {
                let Some(first) = inbox.recv().await else { return };
                together.push(first);
            } else {
                tokio::select! {
                    () = tokio::time::sleep_until(again_at) => together = std::mem::take(&mut again),
                    // A new generation ends the wait.
                    Ok(()) = self.identity.changed() => together = std::mem::take(&mut again),
                    Some(more) = inbox.recv() => together.push(more),
                }
            }
            while together.len() < TOGETHER_MAX
                && let Ok(more) = inbox.try_recv()
            {
                together.push(more);
            }
            if again.is_empty() {
                again_at = Instant::now() + PAUSE;
            }
            again.extend(self.settle(together).await);
        }
    }

    /// Answers those of which it is known what became of them; the others are to be tried again.
    async fn settle(&mut self, mut waiting: Vec<Pending>) -> Vec<Pending> {
        // Whoever asked is cut off: another may have begun behind it.
        waiting.retain(|commit| !commit.done.is_closed());
        let identity = self.identity.borrow_and_update().clone();
        let (waiting, foreign): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|commit| identity.owned.get(&commit.partition) == Some(&commit.tenure));
        answer(foreign, &Err(CommitError::Fenced));
        if waiting.is_empty() {
            return waiting;
        }
        let mut again = Vec::new();
        match self.send(&identity, &waiting).await {
            Ok(codes) => {
                for mut commit in waiting {
                    let code = codes.get(&commit.partition).copied().unwrap_or(code::NOT_COORDINATOR);
                    match self.judge(code, &identity) {
                        Judged::Done(result) => answer(vec![commit], &result),
                        Judged::Again => again.push(commit),
                        Judged::Shorter => {
                            // The offset alone: records are delivered again, and attempts begin anew.
                            let (group, partition) = (&self.group, &commit.partition);
                            tracing::warn!(group, %partition, "the cluster takes no metadata of this length");
                            commit.metadata.clear();
                            again.push(commit);
                        }
                    }
                    if code != code::NONE {
                        self.failed = format!("Kafka's error {code}");
                    }
                }
            }
            Err(error) => {
                self.failed = error.to_string();
                (self.coordinator, self.link) = (None, Link::default());
                again = waiting;
            }
        }
        again.iter_mut().for_each(|commit| commit.tries += 1);
        let (again, spent): (Vec<_>, Vec<_>) = again.into_iter().partition(|commit| commit.tries < TRIES);
        answer(spent, &Err(CommitError::Failed(self.failed.clone())));
        again
    }

    fn judge(&mut self, code: i16, sent_as: &Identity) -> Judged {
        match code {
            code::NONE => Judged::Done(Ok(())),
            code::OFFSET_METADATA_TOO_LARGE => Judged::Shorter,
            code::ILLEGAL_GENERATION | code::UNKNOWN_MEMBER_ID | code::FENCED_INSTANCE_ID => {
                // While a generation ends the coordinator is ahead of us. Otherwise it has given us up.
                let current = self.identity.borrow().clone();
                if current != *sent_as || current.joining {
                    return Judged::Again;
                }
                self.signals.fence(sent_as);
                Judged::Done(Err(CommitError::Fenced))
            }
            code if code::coordinator_moves(code) => {
                self.coordinator = None;
                Judged::Again
            }
            code::REBALANCE_IN_PROGRESS => Judged::Again,
            code::UNKNOWN_TOPIC_OR_PARTITION => {
                self.signals.look_at_topics.notify_one();
                Judged::Again
            }
            code if code::moves(code) => Judged::Again,
            code => Judged::Done(Err(CommitError::Failed(format!("Kafka's error {code}")))),
        }
    }

    /// Kafka's answer for each partition.
    async fn send(
        &mut self,
        identity: &Identity,
        commits: &[Pending],
    ) -> Result<HashMap<ClusterPartition, i16>, ClusterError> {
        let commits = commits.iter().map(|commit| (&commit.partition, commit.offset, commit.metadata.as_str()));
        let request = message!(OffsetCommitRequest {
            group_id: StrBytes::from(self.group.clone()),
            generation_id_or_member_epoch: identity.generation,
            member_id: StrBytes::from(identity.member_id.clone()),
            topics: committing(commits),
        });
        let coordinator = match self.coordinator.take() {
            Some(coordinator) => coordinator,
            None => self.client.coordinator(&self.group).await?,
        };
        let at = (coordinator.as_str(), &self.client.dialer);
        let answer = self.link.call(at, 2..=8, &request, PATIENCE).await?;
        self.coordinator = Some(coordinator);
        let of_topic = |topic: &OffsetCommitResponseTopic| {
            let codes = topic.partitions.iter().filter_map(|at| {
                let number = u32::try_from(at.partition_index).ok()?;
                Some((ClusterPartition::new(&topic.name, number), at.error_code))
            });
            codes.collect::<Vec<_>>()
        };
        Ok(answer.topics.iter().flat_map(of_topic).collect())
    }
}

enum Judged {
    Done(Result<(), CommitError>),
    Again,
    Shorter,
}

fn answer(commits: Vec<Pending>, result: &Result<(), CommitError>) {
    for commit in commits {
        // Who asked may be gone.
        let _ = commit.done.send(result.clone());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::task::JoinHandle;

    use super::super::fake::{AskedCommit, FakeCluster};
    use super::*;

    /// Who commits for a group, as a member of whom the test says who it is, and the coordinator.
    struct World {
        cluster: FakeCluster,
        identity: watch::Sender<Identity>,
        committer: Committer,
    }

    impl World {
        async fn start(identity: Identity) -> Self {
            let cluster = FakeCluster::start(&[]).await;
            let client = Arc::new(Client::new(cluster.access(), PATIENCE, "test"));
            let (identity, seen) = watch::channel(identity);
            let (committer, commits) = new(client, "g", seen, Signals::default());
            tokio::spawn(commits);
            Self { cluster, identity, committer }
        }

        fn commit(&self, tenure: u64, offset: i64) -> JoinHandle<Result<(), CommitError>> {
            let (committer, offset) = (self.committer.clone(), Offset::new(offset).unwrap());
            tokio::spawn(async move { committer.commit(partition(), Tenure(tenure), offset, String::new()).await })
        }

        /// The next commit that the coordinator is asked for, of the partition once, with its offset.
        async fn asked(&mut self) -> (AskedCommit, i64) {
            let asked = self.cluster.commits.recv().await.unwrap();
            let [(_, offset)] = asked.offsets[..] else { panic!("{:?}", asked.offsets) };
            (asked, offset)
        }
    }

    fn partition() -> ClusterPartition {
        ClusterPartition::new("t", 0)
    }

    /// A member that has the partition in this tenure, or nothing.
    fn member(member_id: &str, generation: i32, tenure: Option<u64>) -> Identity {
        let owned = tenure.map(|tenure| (partition(), Tenure(tenure))).into_iter().collect();
        Identity { member_id: member_id.to_owned(), generation, joining: false, owned }
    }

    #[tokio::test]
    async fn a_commit_of_a_tenure_that_has_ended_is_not_sent_in_the_next() {
        let mut world = World::start(member("m1", 5, Some(1))).await;
        let before = world.commit(1, 10);
        let (held, at) = world.asked().await;
        assert_eq!((held.member_id.as_str(), held.generation, at), ("m1", 5, 10));
        // Another has the partition and gives it back, before anybody looks.
        world.identity.send_replace(member("", -1, None));
        world.identity.send_replace(member("m2", 7, Some(2)));
        held.answer.send(code::ILLEGAL_GENERATION).unwrap();
        tokio::select! {
            answer = before => assert_eq!(answer.unwrap(), Err(CommitError::Fenced)),
            (again, at) = world.asked() => panic!("the group goes back to {at}: {again:?}"),
        }
        // One who has not heard of it yet is no better off.
        assert_eq!(world.commit(1, 11).await.unwrap(), Err(CommitError::Fenced));
        let since = world.commit(2, 20);
        let (asked, at) = world.asked().await;
        assert_eq!((asked.member_id.as_str(), asked.generation, at), ("m2", 7, 20));
        asked.answer.send(code::NONE).unwrap();
        assert_eq!(since.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_commit_that_nobody_waits_for_is_not_tried_again_behind_the_next() {
        let mut world = World::start(member("m", 5, Some(1))).await;
        let before = world.commit(1, 10);
        let (held, _) = world.asked().await;
        // A lane that is opened anew, in the same tenure.
        before.abort();
        assert!(before.await.unwrap_err().is_cancelled());
        let _since = world.commit(1, 20);
        held.answer.send(code::REBALANCE_IN_PROGRESS).unwrap();
        for _ in 0..2 {
            let (asked, at) = world.asked().await;
            assert_eq!(at, 20);
            asked.answer.send(code::REBALANCE_IN_PROGRESS).unwrap();
        }
    }

    #[tokio::test]
    async fn a_commit_that_nobody_answers_is_no_other_members_claim() {
        let (pending, inbox) = mpsc::unbounded_channel();
        drop(inbox);
        let committer = Committer { pending };
        let partition = ClusterPartition::new("in", 0);
        let answer = committer.commit(partition, Tenure::default(), Offset::ZERO, String::new()).await;
        assert!(matches!(answer, Err(CommitError::Failed(_))), "{answer:?}");
    }

    #[test]
    fn only_the_member_that_it_is_about_hears_that_it_is_fenced() {
        let identity = |member_id: &str, generation| Identity {
            member_id: member_id.to_owned(),
            generation,
            ..Identity::default()
        };
        let signals = Signals::default();
        signals.fence(&identity("before", 3));
        for (member_id, generation) in [("after", 5), ("after", 3), ("before", 5)] {
            assert_eq!(signals.fenced_as(member_id, generation).now_or_never(), None, "{member_id} {generation}");
        }
        assert_eq!(signals.fenced_as("before", 3).now_or_never(), Some(()));
        let waits = signals.fenced_as("after", 5);
        signals.fence(&identity("after", 5));
        assert_eq!(waits.now_or_never(), Some(()));
    }
}
