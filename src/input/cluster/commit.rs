//! Commits of a member: whatever waits goes out together, and is answered when the group has it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::wire::StrBytes;
use super::wire::schema::{OffsetCommitRequest, offset_commit_request};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tripline_storage::Offset;

use super::client::{Client, ClusterError, code};
use super::member::Identity;
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
    /// The partition is not this member's any more: another goes on with it, from what was committed before.
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
    partition: u32,
    offset: Offset,
    metadata: String,
    done: oneshot::Sender<Result<(), CommitError>>,
}

impl Committer {
    /// Commits `offset` with `metadata` for a partition. On return the group has it. A caller has one commit of a partition
    /// under way at a time: what is queued is bounded by the partitions.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, partition: u32, offset: Offset, metadata: String) -> Result<(), CommitError> {
        let (done, answer) = oneshot::channel();
        let _ = self.pending.send(Pending { partition, offset, metadata, done });
        answer.await.unwrap_or(Err(CommitError::Fenced))
    }
}

pub(super) fn spawn(
    client: Arc<Client>,
    group: &str,
    topic: &str,
    identity: watch::Receiver<Identity>,
    fenced: Arc<Notify>,
) -> Committer {
    let (pending, inbox) = mpsc::unbounded_channel();
    let commits = Commits {
        client,
        group: group.to_owned(),
        topic: topic.to_owned(),
        identity,
        fenced,
        link: Link::default(),
        coordinator: None,
    };
    tokio::spawn(commits.run(inbox));
    Committer { pending }
}

struct Commits {
    client: Arc<Client>,
    group: String,
    topic: String,
    identity: watch::Receiver<Identity>,
    fenced: Arc<Notify>,
    link: Link,
    coordinator: Option<String>,
}

impl Commits {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Pending>) {
        while let Some(first) = inbox.recv().await {
            let mut together = vec![first];
            while together.len() < TOGETHER_MAX
                && let Ok(more) = inbox.try_recv()
            {
                together.push(more);
            }
            self.settle(together).await;
        }
    }

    /// Answers each of them.
    async fn settle(&mut self, mut waiting: Vec<Pending>) {
        let mut failed = String::new();
        for _ in 0..TRIES {
            let identity = self.identity.borrow_and_update().clone();
            let (owned, foreign): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|commit| identity.owned.contains(&commit.partition));
            answer(foreign, &Err(CommitError::Fenced));
            waiting = owned;
            if waiting.is_empty() {
                return;
            }
            match self.send(&identity, &waiting).await {
                Ok(codes) => {
                    let mut again = Vec::new();
                    for mut commit in waiting {
                        let code = codes.get(&commit.partition).copied().unwrap_or(code::NOT_COORDINATOR);
                        match self.judge(code, &identity) {
                            Judged::Done(result) => answer(vec![commit], &result),
                            Judged::Again => again.push(commit),
                            Judged::Shorter => {
                                // The offset alone: records are delivered again, and attempts begin anew.
                                tracing::warn!(
                                    group = self.group,
                                    partition = commit.partition,
                                    "the cluster takes no metadata of this length"
                                );
                                commit.metadata.clear();
                                again.push(commit);
                            }
                        }
                        failed = format!("Kafka's error {code}");
                    }
                    waiting = again;
                    if waiting.is_empty() {
                        return;
                    }
                }
                Err(error) => {
                    failed = error.to_string();
                    (self.coordinator, self.link) = (None, Link::default());
                }
            }
            // A new generation ends the wait.
            let _ = tokio::time::timeout(PAUSE, self.identity.changed()).await;
        }
        answer(waiting, &Err(CommitError::Failed(failed)));
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
                self.fenced.notify_one();
                Judged::Done(Err(CommitError::Fenced))
            }
            code if code::coordinator_moves(code) => {
                self.coordinator = None;
                Judged::Again
            }
            code::REBALANCE_IN_PROGRESS => Judged::Again,
            code if code::moves(code) => Judged::Again,
            code => Judged::Done(Err(CommitError::Failed(format!("Kafka's error {code}")))),
        }
    }

    /// Kafka's answer for each partition.
    async fn send(&mut self, identity: &Identity, commits: &[Pending]) -> Result<HashMap<u32, i16>, ClusterError> {
        let partitions = commits.iter().map(|commit| {
            message!(offset_commit_request::OffsetCommitRequestPartition {
                partition_index: commit.partition.cast_signed(),
                committed_offset: commit.offset.get(),
                committed_metadata: Some(StrBytes::from(commit.metadata.clone())),
            })
        });
        let topic = message!(offset_commit_request::OffsetCommitRequestTopic {
            name: StrBytes::from(self.topic.clone()),
            partitions: partitions.collect(),
        });
        let request = message!(OffsetCommitRequest {
            group_id: StrBytes::from(self.group.clone()),
            generation_id_or_member_epoch: identity.generation,
            member_id: StrBytes::from(identity.member_id.clone()),
            topics: vec![topic],
        });
        let coordinator = match self.coordinator.take() {
            Some(coordinator) => coordinator,
            None => self.client.coordinator(&self.group).await?,
        };
        let at = (coordinator.as_str(), self.client.client_id.as_str());
        let answer = self.link.call(at, 2..=8, &request, PATIENCE).await?;
        self.coordinator = Some(coordinator);
        let codes = answer.topics.iter().flat_map(|topic| &topic.partitions);
        Ok(codes.filter_map(|at| Some((u32::try_from(at.partition_index).ok()?, at.error_code))).collect())
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
