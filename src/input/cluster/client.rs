//! What a cluster is asked besides records: which offsets there are, who coordinates a group, what that has committed.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::wire::StrBytes;
use super::wire::schema::{
    DescribeGroupsRequest, FindCoordinatorRequest, InitProducerIdRequest, ListOffsetsRequest, ListOffsetsResponse,
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, list_offsets_request,
    offset_commit_request, offset_fetch_request,
};
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;
use tripline_storage::Offset;

use super::access::ClusterAccess;
use super::dial::Dialer;
use super::place::{ClusterPartition, by_topic};
use super::produce::Writers;
use super::wire::{CallError, Links, PATIENCE, message};

/// Kafka's words for the two ends of a partition.
pub(super) const EARLIEST: i64 = -2;
pub(super) const LATEST: i64 = -1;
/// Readers see what is decided: records of open and aborted transactions are not theirs.
pub(super) const READ_COMMITTED: i8 = 1;
/// How often something is tried again that a broker says will pass, and how long is waited in between.
pub(super) const TRIES: u32 = 30;
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// Kafka's error codes that mean something to a client.
pub(super) mod code {
    pub(crate) const NONE: i16 = 0;
    pub(crate) const OFFSET_OUT_OF_RANGE: i16 = 1;
    pub(crate) const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
    pub(crate) const MESSAGE_TOO_LARGE: i16 = 10;
    pub(crate) const OFFSET_METADATA_TOO_LARGE: i16 = 12;
    pub(crate) const COORDINATOR_LOAD_IN_PROGRESS: i16 = 14;
    pub(crate) const COORDINATOR_NOT_AVAILABLE: i16 = 15;
    pub(crate) const NOT_COORDINATOR: i16 = 16;
    pub(crate) const RECORD_LIST_TOO_LARGE: i16 = 18;
    pub(crate) const ILLEGAL_GENERATION: i16 = 22;
    pub(crate) const UNKNOWN_MEMBER_ID: i16 = 25;
    pub(crate) const REBALANCE_IN_PROGRESS: i16 = 27;
    pub(crate) const TOPIC_AUTHORIZATION_FAILED: i16 = 29;
    pub(crate) const CLUSTER_AUTHORIZATION_FAILED: i16 = 31;
    pub(crate) const TOPIC_ALREADY_EXISTS: i16 = 36;
    pub(crate) const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
    pub(crate) const DUPLICATE_SEQUENCE_NUMBER: i16 = 46;
    pub(crate) const INVALID_PRODUCER_EPOCH: i16 = 47;
    pub(crate) const UNKNOWN_PRODUCER_ID: i16 = 59;
    pub(crate) const MEMBER_ID_REQUIRED: i16 = 79;
    pub(crate) const FENCED_INSTANCE_ID: i16 = 82;

    /// Somebody else leads the partition now, or nobody for a moment.
    pub(crate) const fn moves(code: i16) -> bool {
        matches!(code, 3 | 5 | 6 | 7 | 9 | 13 | 74 | 75 | 78 | 89 | 100)
    }

    /// Somebody else coordinates the group now, or nobody for a moment.
    pub(crate) const fn coordinator_moves(code: i16) -> bool {
        matches!(code, COORDINATOR_LOAD_IN_PROGRESS | COORDINATOR_NOT_AVAILABLE | NOT_COORDINATOR)
    }
}

/// Why the cluster did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// A broker cannot be reached or understood.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A broker refused.
    #[error("the cluster refuses {what}: Kafka's error {code}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Kafka's number of the reason.
        code: i16,
    },
    /// There is no such topic there.
    #[error("topic {0} does not exist in the cluster")]
    NoTopic(String),
    /// There is another topic of that name now.
    #[error("topic {0} of the cluster was made again: it is another one")]
    OtherTopic(String),
    /// Records do not fit into the topic.
    #[error("topic {topic} takes no batch of {size_bytes} bytes")]
    TooLarge {
        /// The topic.
        topic: String,
        /// How large the batch is.
        size_bytes: usize,
    },
    /// Nobody leads the partition.
    #[error("partition {partition} of topic {topic} has no leader at the moment")]
    NoLeader {
        /// The topic.
        topic: String,
        /// Its partition.
        partition: u32,
    },
}

impl ClusterError {
    pub(super) fn refused(what: impl Into<String>, code: i16) -> Self {
        Self::Refused { what: what.into(), code }
    }
}

/// Where reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the first record.
    Earliest,
    /// At the tail.
    Latest,
    /// At this offset, or the nearest one there is.
    Offset(Offset),
    /// At the first record that is not older, ms since 1970.
    Time(i64),
}

/// What was committed for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The next offset.
    pub offset: Offset,
    /// What stands beside it.
    pub metadata: String,
}

/// A client of one cluster. Calls may overlap; each kind of call waits for the one before.
#[derive(Debug)]
pub struct Client {
    bootstrap_servers: Vec<String>,
    pub(super) session_timeout: Duration,
    pub(super) dialer: Dialer,
    /// The connections over which the cluster is asked, and brokers that were heard of there.
    ask: AsyncMutex<Links>,
    /// What is written to.
    pub(super) writers: Writers,
    pub(super) heard_of: Mutex<Vec<String>>,
}

impl Client {
    /// A client that connects when it is asked something. `session_timeout` as
    /// [`ClusterAddress::session_timeout`](crate::input::ClusterAddress::session_timeout).
    #[must_use]
    pub fn new(access: ClusterAccess, session_timeout: Duration, client_id: &str) -> Self {
        let ClusterAccess { bootstrap_servers, security } = access;
        Self {
            bootstrap_servers,
            session_timeout,
            dialer: Dialer { client_id: client_id.to_owned(), security },
            ask: AsyncMutex::default(),
            writers: Writers::default(),
            heard_of: Mutex::default(),
        }
    }

    /// Asks any broker that answers.
    pub(super) async fn ask<R: super::wire::schema::RequestResponsePair>(
        &self,
        versions: std::ops::RangeInclusive<i16>,
        request: &R,
    ) -> Result<R::Response, ClusterError> {
        let mut links = self.ask.lock().await;
        // Those that are open first: a connection costs TLS and a password where there are any.
        let mut brokers: Vec<String> = links.open().map(str::to_owned).collect();
        for broker in self.heard_of.lock().iter().chain(&self.bootstrap_servers) {
            if !brokers.contains(broker) {
                brokers.push(broker.clone());
            }
        }
        let mut failed = None;
        for broker in brokers {
            match links.to(&broker).call((&broker, &self.dialer), versions.clone(), request, PATIENCE).await {
                Ok(answer) => return Ok(answer),
                // The others have the same passwords.
                Err(error @ CallError::Unauthenticated { .. }) => return Err(error.into()),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.expect("there is at least one bootstrap server").into())
    }

    async fn ask_at<R: super::wire::schema::RequestResponsePair>(
        &self,
        broker: &str,
        versions: std::ops::RangeInclusive<i16>,
        request: &R,
    ) -> Result<R::Response, ClusterError> {
        let mut links = self.ask.lock().await;
        Ok(links.to(broker).call((broker, &self.dialer), versions, request, PATIENCE).await?)
    }

    /// Asks who leads a partition, until it is answered there; `code_of` an answer says whether it was.
    pub(super) async fn ask_leader<R: super::wire::schema::RequestResponsePair>(
        &self,
        topic: &str,
        partition: u32,
        versions: std::ops::RangeInclusive<i16>,
        request: &R,
        code_of: impl Fn(&R::Response) -> i16,
    ) -> Result<R::Response, ClusterError> {
        for _ in 0..TRIES {
            let leader = self.leader(topic, partition).await?;
            let answer = self.ask_at(&leader, versions.clone(), request).await?;
            if !code::moves(code_of(&answer)) {
                return Ok(answer);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(ClusterError::NoLeader { topic: topic.to_owned(), partition })
    }

    /// Who coordinates a group.
    pub(super) async fn coordinator(&self, group: &str) -> Result<String, ClusterError> {
        let request = message!(FindCoordinatorRequest { key: StrBytes::from(group.to_owned()) });
        let answer = self.ask(0..=3, &request).await?;
        match answer.error_code {
            code::NONE => Ok(host_and_port(&answer.host, answer.port)),
            code => Err(ClusterError::refused(format!("a coordinator for group {group}"), code)),
        }
    }

    /// The offset at a time (ms since 1970), or at an end of the partition. `None`: no record is that new.
    pub(super) async fn offset_at(
        &self,
        topic: &str,
        partition: u32,
        time: i64,
    ) -> Result<Option<Offset>, ClusterError> {
        let asked = message!(list_offsets_request::ListOffsetsPartition {
            partition_index: partition.cast_signed(),
            current_leader_epoch: -1,
            timestamp: time,
        });
        let asked = message!(list_offsets_request::ListOffsetsTopic {
            name: StrBytes::from(topic.to_owned()),
            partitions: vec![asked],
        });
        let isolation_level = READ_COMMITTED;
        let request =
            message!(ListOffsetsRequest { replica_id: -1, isolation_level: isolation_level, topics: vec![asked] });
        let found = |answer: &ListOffsetsResponse| {
            let found = answer.topics.first().and_then(|topic| topic.partitions.first());
            found.map_or((code::UNKNOWN_TOPIC_OR_PARTITION, -1), |found| (found.error_code, found.offset))
        };
        let answer = self.ask_leader(topic, partition, 1..=7, &request, |answer| found(answer).0).await?;
        match found(&answer) {
            (code::NONE, offset) => Ok(Offset::new(offset)),
            (code, _) => Err(ClusterError::refused(format!("offsets of partition {partition} of topic {topic}"), code)),
        }
    }

    /// The offset of a start.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn start_of(&self, topic: &str, partition: u32, start: Start) -> Result<Offset, ClusterError> {
        let end = async |time| self.offset_at(topic, partition, time).await.map(|at| at.unwrap_or(Offset::ZERO));
        match start {
            Start::Earliest => end(EARLIEST).await,
            Start::Latest => end(LATEST).await,
            Start::Offset(offset) => {
                let (first, tail) = (end(EARLIEST).await?, end(LATEST).await?);
                Ok(offset.clamp(first, tail.max(first)))
            }
            Start::Time(time) => match self.offset_at(topic, partition, time.max(0)).await? {
                Some(offset) => Ok(offset),
                None => end(LATEST).await,
            },
        }
    }

    /// What a group has committed for partitions of a topic.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn committed(
        &self,
        group: &str,
        topic: &str,
        partitions: &[u32],
    ) -> Result<HashMap<u32, Committed>, ClusterError> {
        let asked: Vec<_> = partitions.iter().map(|number| ClusterPartition::new(topic, *number)).collect();
        let committed = self.committed_of(group, &asked).await?;
        Ok(committed.into_iter().map(|(partition, committed)| (partition.number(), committed)).collect())
    }

    /// What a group has committed, by partition.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn committed_of(
        &self,
        group: &str,
        partitions: &[ClusterPartition],
    ) -> Result<HashMap<ClusterPartition, Committed>, ClusterError> {
        // None named would mean all.
        if partitions.is_empty() {
            return Ok(HashMap::new());
        }
        let asked = by_topic(partitions).into_iter().map(|(topic, partition_indexes)| {
            message!(offset_fetch_request::OffsetFetchRequestTopic {
                name: StrBytes::from(topic.to_owned()),
                partition_indexes: partition_indexes,
            })
        });
        let request =
            message!(OffsetFetchRequest { group_id: StrBytes::from(group.to_owned()), topics: Some(asked.collect()) });
        let mut refused = code::NONE;
        for _ in 0..TRIES {
            let coordinator = match self.coordinator(group).await {
                Err(ClusterError::Refused { code, .. }) if code::coordinator_moves(code) => {
                    refused = code;
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                coordinator => coordinator?,
            };
            let answer = self.ask_at(&coordinator, 1..=7, &request).await?;
            match committed_in(&answer) {
                Ok(committed) => return Ok(committed),
                Err(code) => refused = code,
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(ClusterError::refused(format!("committed offsets of group {group}"), refused))
    }

    /// Commits for a group that has no members. `false`: it has some, and what they commit is what counts.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn commit_outside(
        &self,
        group: &str,
        offsets: &BTreeMap<ClusterPartition, Committed>,
    ) -> Result<bool, ClusterError> {
        let commits = offsets.iter().map(|(partition, commit)| (partition, commit.offset, commit.metadata.as_str()));
        let topics = committing(commits);
        let request = message!(OffsetCommitRequest {
            group_id: StrBytes::from(group.to_owned()),
            generation_id_or_member_epoch: -1,
            topics: topics,
        });
        let mut refused = code::COORDINATOR_NOT_AVAILABLE;
        for _ in 0..TRIES {
            match self.coordinator(group).await {
                Ok(coordinator) => {
                    let answer = self.ask_at(&coordinator, 2..=8, &request).await?;
                    refused = refusal_in(&answer, offsets.keys());
                    match refused {
                        code::NONE => return Ok(true),
                        code::UNKNOWN_MEMBER_ID | code::ILLEGAL_GENERATION | code::REBALANCE_IN_PROGRESS => {
                            return Ok(false);
                        }
                        _ => {}
                    }
                }
                // It comes to no coordinator by being asked again.
                Err(error @ ClusterError::Call(_)) => return Err(error),
                Err(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(ClusterError::refused(format!("offsets of group {group}"), refused))
    }

    /// How many members a group has.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn member_count(&self, group: &str) -> Result<usize, ClusterError> {
        let request = message!(DescribeGroupsRequest { groups: vec![StrBytes::from(group.to_owned())] });
        let coordinator = self.coordinator(group).await?;
        let answer = self.ask_at(&coordinator, 0..=5, &request).await?;
        match answer.groups.first() {
            Some(found) if found.error_code == code::NONE => Ok(found.members.len()),
            found => {
                let code = found.map_or(code::COORDINATOR_NOT_AVAILABLE, |found| found.error_code);
                Err(ClusterError::refused(format!("a description of group {group}"), code))
            }
        }
    }

    /// A producer id that nobody else has.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn producer_id(&self) -> Result<i64, ClusterError> {
        let request = message!(InitProducerIdRequest {
            transactional_id: None,
            transaction_timeout_ms: 60_000,
            producer_id: -1,
            producer_epoch: -1
        });
        let mut refused = code::NONE;
        for _ in 0..TRIES {
            let answer = self.ask(0..=4, &request).await?;
            refused = match answer.error_code {
                code::NONE if answer.producer_id >= 0 => return Ok(answer.producer_id),
                // None was given after all.
                code::NONE => code::UNKNOWN_PRODUCER_ID,
                other => other,
            };
            tokio::time::sleep(PAUSE).await;
        }
        Err(ClusterError::refused("a producer id", refused))
    }
}

/// What was committed, by an answer; or Kafka's error code in it.
fn committed_in(answer: &OffsetFetchResponse) -> Result<HashMap<ClusterPartition, Committed>, i16> {
    let mut committed = HashMap::new();
    if answer.error_code != code::NONE {
        return Err(answer.error_code);
    }
    for topic in &answer.topics {
        for partition in &topic.partitions {
            match partition.error_code {
                // Of a topic that was deleted a moment ago.
                code::NONE | code::UNKNOWN_TOPIC_OR_PARTITION => {}
                refused => return Err(refused),
            }
            let number = u32::try_from(partition.partition_index).ok();
            if let (Some(number), Some(offset)) = (number, Offset::new(partition.committed_offset)) {
                let metadata = partition.metadata.as_deref().unwrap_or_default().to_owned();
                committed.insert(ClusterPartition::new(&topic.name, number), Committed { offset, metadata });
            }
        }
    }
    Ok(committed)
}

/// Kafka's error code of the first of these partitions that was not committed; of one that the answer leaves out, it is
/// not known whether it was.
fn refusal_in<'a>(answer: &OffsetCommitResponse, sent: impl Iterator<Item = &'a ClusterPartition>) -> i16 {
    let told: HashMap<_, _> = answer
        .topics
        .iter()
        .flat_map(|topic| topic.partitions.iter().map(|at| ((&*topic.name, at.partition_index), at.error_code)))
        .collect();
    let code_of = |partition: &ClusterPartition| {
        let told = told.get(&(partition.topic(), partition.number().cast_signed()));
        told.copied().unwrap_or(code::COORDINATOR_NOT_AVAILABLE)
    };
    sent.map(code_of).find(|code| *code != code::NONE).unwrap_or(code::NONE)
}

/// What to commit, as requests have it.
pub(super) fn committing<'a>(
    commits: impl Iterator<Item = (&'a ClusterPartition, Offset, &'a str)>,
) -> Vec<offset_commit_request::OffsetCommitRequestTopic> {
    let mut topics: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for (partition, offset, metadata) in commits {
        let commit = message!(offset_commit_request::OffsetCommitRequestPartition {
            partition_index: partition.number().cast_signed(),
            committed_offset: offset.get(),
            committed_metadata: Some(StrBytes::from(metadata.to_owned())),
        });
        topics.entry(partition.topic()).or_default().push(commit);
    }
    let of_topic = |(name, partitions): (&str, Vec<_>)| {
        message!(offset_commit_request::OffsetCommitRequestTopic {
            name: StrBytes::from(name.to_owned()),
            partitions: partitions,
        })
    };
    topics.into_iter().map(of_topic).collect()
}

pub(super) fn host_and_port(host: &str, port: i32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::super::wire::schema::offset_commit_response;
    use super::*;

    #[test]
    fn a_commit_is_there_when_every_partition_that_was_sent_is_answered_so() {
        let answer = |codes: &[(i32, i16)]| {
            let partition = |&(partition_index, error_code): &(i32, i16)| {
                message!(offset_commit_response::OffsetCommitResponsePartition {
                    partition_index: partition_index,
                    error_code: error_code,
                })
            };
            let topic = message!(offset_commit_response::OffsetCommitResponseTopic {
                name: StrBytes::from("in"),
                partitions: codes.iter().map(partition).collect(),
            });
            message!(OffsetCommitResponse { topics: vec![topic] })
        };
        let sent = [ClusterPartition::new("in", 0), ClusterPartition::new("in", 1)];
        let refusal = |codes: &[(i32, i16)]| refusal_in(&answer(codes), sent.iter());
        assert_eq!(refusal(&[(0, 0), (1, 0)]), code::NONE);
        assert_eq!(refusal(&[(1, 0), (0, -1)]), -1, "an unknown error of the broker");
        assert_eq!(refusal(&[(0, 0), (1, code::UNKNOWN_MEMBER_ID)]), code::UNKNOWN_MEMBER_ID);
        assert_eq!(refusal(&[(0, -1), (1, code::UNKNOWN_MEMBER_ID)]), -1, "the first that tells");
        assert_eq!(refusal(&[(0, 0)]), code::COORDINATOR_NOT_AVAILABLE, "half an answer");
        assert_eq!(refusal(&[(0, 0), (2, 0)]), code::COORDINATOR_NOT_AVAILABLE, "an answer about others");
        assert_eq!(refusal_in(&OffsetCommitResponse::default(), sent.iter()), code::COORDINATOR_NOT_AVAILABLE);
    }
}
