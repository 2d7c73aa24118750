//! Records for topics of a cluster, acknowledged by all in-sync replicas.
//!
//! What triggers leave behind is appended by [`Client::append`]: each partition that is written to has a connection and
//! an idempotent producer of its own, so that none waits for another, and a batch whose answer was lost is there once
//! when it is sent again. A batch keeps the producer and the sequence that it was sent with first; a producer whose
//! batch was not answered sends no other: the cluster would take that for the same, and drop it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tripline_storage::batch::{BatchProducer, CheckedBatch};

use super::client::{Client, ClusterError, PAUSE, TRIES, code};
use super::wire::schema::{
    DescribeConfigsRequest, DescribeProducersRequest, DescribeProducersResponse, ProduceRequest,
    describe_configs_request, describe_configs_response, describe_producers_request, produce_request,
};
use super::wire::{CallError, Links, PATIENCE, StrBytes, message};

/// How long a broker may take to have what it acknowledges on all in-sync replicas.
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(30);
/// After so long a topic that is written to is looked at again: it may have more partitions.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Kafka's number for topics among what has settings.
const TOPIC_RESOURCE: i8 = 2;
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";
const CLEANUP_POLICY: &str = "cleanup.policy";
/// Kafka's default, where the cluster does not tell.
const MAX_MESSAGE_BYTES_DEFAULT: usize = (1 << 20) + 12;

/// What a topic takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    /// How many partitions it has, at least 1.
    pub partition_count: u32,
    /// Its `max.message.bytes`: the largest batch.
    pub max_message_bytes: usize,
    /// It is compacted: each record needs a key. `false` where the cluster does not tell.
    pub needs_keys: bool,
}

/// What a client writes to.
#[derive(Debug, Default)]
pub(super) struct Writers {
    /// Connections for dead letters, and for what has a producer already.
    letters: AsyncMutex<Writer>,
    topics: Mutex<HashMap<String, (Takes, Instant)>>,
    /// As many as the partitions of the topics that the trigger names.
    partitions: Mutex<HashMap<(String, u32), SharedWriter>>,
}

type SharedWriter = Arc<AsyncMutex<Writer>>;

/// The way to a partition.
#[derive(Debug, Default)]
struct Writer {
    links: Links,
    leader: Option<(String, u32, String)>,
    producer: Option<BatchProducer>,
}

/// What became of a batch that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is there. So says Kafka also of one of the last five batches of its producer that was there already.
    Appended,
    /// It was there already.
    Known,
    /// It does not follow what the cluster remembers of its producer.
    DoesNotFollow,
}

/// What a partition of a cluster remembers of an idempotent producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remembered {
    /// The cluster does not tell: it is older than Kafka 2.8, or we may not ask.
    Untold,
    /// Nothing.
    Nothing,
    /// Its newest batch.
    Last {
        /// Its epoch.
        epoch: i32,
        /// The sequence of its last record; `None` before the first of its epoch.
        sequence: Option<i32>,
    },
}

impl Client {
    /// What a topic takes, as it was within the last half minute.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn takes(&self, topic: &str) -> Result<Takes, ClusterError> {
        let known = self.writers.topics.lock().get(topic).copied();
        if let Some((takes, _)) = known.filter(|(_, asked)| asked.elapsed() < LOOK_AGAIN_AFTER) {
            return Ok(takes);
        }
        let partition_count = self.topic(topic).await?.partition_count().max(1);
        let settings = self.settings(topic).await?;
        let told = |name: &str| {
            let config = settings.iter().find(|config| &*config.name == name)?;
            config.value.as_deref()
        };
        let max_message_bytes = told(MAX_MESSAGE_BYTES).and_then(|value| value.parse().ok());
        let needs_keys =
            told(CLEANUP_POLICY).is_some_and(|policies| policies.split(',').any(|one| one.trim() == "compact"));
        let max_message_bytes = max_message_bytes.unwrap_or(MAX_MESSAGE_BYTES_DEFAULT);
        let takes = Takes { partition_count, max_message_bytes, needs_keys };
        self.writers.topics.lock().insert(topic.to_owned(), (takes, Instant::now()));
        Ok(takes)
    }

    /// Settings of a topic that matter here. None where the cluster does not tell: it may speak of settings to few, or
    /// not at all.
    async fn settings(
        &self,
        topic: &str,
    ) -> Result<Vec<describe_configs_response::DescribeConfigsResourceResult>, ClusterError> {
        let asked = message!(describe_configs_request::DescribeConfigsResource {
            resource_type: TOPIC_RESOURCE,
            resource_name: StrBytes::from(topic.to_owned()),
            configuration_keys: Some([MAX_MESSAGE_BYTES, CLEANUP_POLICY].map(StrBytes::from).to_vec()),
        });
        match self.ask(1..=4, &message!(DescribeConfigsRequest { resources: vec![asked] })).await {
            Ok(answer) => Ok(answer.results.into_iter().next().map_or_else(Vec::new, |told| told.configs)),
            Err(ClusterError::Call(CallError::Versions { .. })) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Appends a batch, once: after an error, try again with what `batch` is by then.
    ///
    /// # Errors
    /// [`ClusterError::TooLarge`]: that does not change by itself. Anything else may.
    pub async fn append(&self, topic: &str, partition: u32, batch: &mut CheckedBatch) -> Result<(), ClusterError> {
        let writer = Arc::clone(self.writers.partitions.lock().entry((topic.to_owned(), partition)).or_default());
        let mut writer = writer.lock().await;
        let appended = self.append_through(&mut writer, (topic, partition), batch).await;
        if appended.is_err() {
            // Whatever it is: it may have been deleted, or have other settings now.
            self.writers.topics.lock().remove(topic);
        }
        appended
    }

    async fn append_through(
        &self,
        writer: &mut Writer,
        to: (&str, u32),
        batch: &mut CheckedBatch,
    ) -> Result<(), ClusterError> {
        let mut follows = None;
        if batch.header().producer().is_none() {
            follows = Some(self.stamp(writer.producer.take(), batch).await?);
        }
        for _ in 0..2 {
            match self.send(writer, to, batch).await? {
                Sent::Appended | Sent::Known => {
                    writer.producer = follows.or_else(|| writer.producer.take());
                    return Ok(());
                }
                // The cluster has forgotten the producer, or lost what it sent before: rather twice than not at all.
                Sent::DoesNotFollow => follows = Some(self.stamp(None, batch).await?),
            }
        }
        Err(ClusterError::refused(what(to), code::OUT_OF_ORDER_SEQUENCE_NUMBER))
    }

    /// Gives a batch the next sequences of a producer, or a new producer. Answers how that goes on.
    async fn stamp(
        &self,
        producer: Option<BatchProducer>,
        batch: &mut CheckedBatch,
    ) -> Result<BatchProducer, ClusterError> {
        let count = batch.header().record_count;
        let fits = |producer: &BatchProducer| producer.base_sequence.checked_add(count).is_some();
        let producer = match producer.filter(fits) {
            Some(producer) => producer,
            None => BatchProducer { id: self.producer_id().await?, epoch: 0, base_sequence: 0 },
        };
        *batch = batch.produced_by(producer);
        Ok(BatchProducer { base_sequence: producer.base_sequence + count, ..producer })
    }

    /// Appends a batch as it is, acknowledged by all in-sync replicas.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn produce(&self, topic: &str, partition: u32, batch: &CheckedBatch) -> Result<Sent, ClusterError> {
        let mut writer = self.writers.letters.lock().await;
        self.send(&mut writer, (topic, partition), batch).await
    }

    /// What a partition remembers of an idempotent producer.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn remembered(&self, topic: &str, partition: u32, producer: i64) -> Result<Remembered, ClusterError> {
        let asked = message!(describe_producers_request::TopicRequest {
            name: StrBytes::from(topic.to_owned()),
            partition_indexes: vec![partition.cast_signed()],
        });
        let request = message!(DescribeProducersRequest { topics: vec![asked] });
        let told = |answer: &DescribeProducersResponse| {
            let told = answer.topics.first().and_then(|topic| topic.partitions.first());
            told.map_or(code::UNKNOWN_TOPIC_OR_PARTITION, |partition| partition.error_code)
        };
        let mut answer = match self.ask_leader(topic, partition, 0..=0, &request, told).await {
            Ok(answer) => answer,
            Err(ClusterError::Call(CallError::Versions { .. })) => return Ok(Remembered::Untold),
            Err(error) => return Err(error),
        };
        let partition = answer.topics.swap_remove(0).partitions.swap_remove(0);
        match partition.error_code {
            code::NONE => {}
            code::TOPIC_AUTHORIZATION_FAILED | code::CLUSTER_AUTHORIZATION_FAILED => return Ok(Remembered::Untold),
            code => {
                return Err(ClusterError::refused(
                    format!("producers of {}", what((topic, partition.partition_index.cast_unsigned()))),
                    code,
                ));
            }
        }
        let found = partition.active_producers.iter().find(|found| found.producer_id == producer);
        Ok(found.map_or(Remembered::Nothing, |found| Remembered::Last {
            epoch: found.producer_epoch,
            sequence: (found.last_sequence >= 0).then_some(found.last_sequence),
        }))
    }

    /// Sends a batch until it is answered for good, and follows the partition to its leader. A connection that breaks
    /// is made anew once, at once.
    async fn send(&self, writer: &mut Writer, to: (&str, u32), batch: &CheckedBatch) -> Result<Sent, ClusterError> {
        let (topic, partition) = to;
        let request = request(to, batch);
        let mut was_lost = false;
        for _ in 0..TRIES {
            let known = writer.leader.take().filter(|known| (known.0.as_str(), known.1) == to);
            let leader = match known {
                Some((_, _, leader)) => leader,
                None => self.leader(topic, partition).await?,
            };
            let at = (leader.as_str(), &self.dialer);
            let answer = writer.links.to(&leader).call(at, 3..=9, &request, PRODUCE_TIMEOUT + PATIENCE).await;
            let answer = match answer {
                // The batch is there once, however often it is sent.
                Err(CallError::Io { .. } | CallError::Timeout { .. }) if !was_lost => {
                    was_lost = true;
                    continue;
                }
                answer => answer?,
            };
            let answer = answer.responses.first().and_then(|topic| topic.partition_responses.first());
            let sent = match answer.map_or(code::UNKNOWN_TOPIC_OR_PARTITION, |partition| partition.error_code) {
                code::NONE => Sent::Appended,
                code::DUPLICATE_SEQUENCE_NUMBER => Sent::Known,
                code::OUT_OF_ORDER_SEQUENCE_NUMBER | code::INVALID_PRODUCER_EPOCH | code::UNKNOWN_PRODUCER_ID => {
                    Sent::DoesNotFollow
                }
                code::MESSAGE_TOO_LARGE | code::RECORD_LIST_TOO_LARGE => {
                    return Err(ClusterError::TooLarge { topic: topic.to_owned(), size_bytes: batch.size_bytes() });
                }
                code if code::moves(code) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                code => return Err(ClusterError::refused(what(to), code)),
            };
            writer.leader = Some((topic.to_owned(), partition, leader));
            return Ok(sent);
        }
        Err(ClusterError::NoLeader { topic: topic.to_owned(), partition })
    }
}

fn what((topic, partition): (&str, u32)) -> String {
    format!("records for partition {partition} of topic {topic}")
}

fn request((topic, partition): (&str, u32), batch: &CheckedBatch) -> ProduceRequest {
    let data = message!(produce_request::PartitionProduceData {
        index: partition.cast_signed(),
        records: Some(batch.bytes().clone()),
    });
    let data = message!(produce_request::TopicProduceData {
        name: StrBytes::from(topic.to_owned()),
        partition_data: vec![data],
    });
    let timeout_ms = i32::try_from(PRODUCE_TIMEOUT.as_millis()).unwrap_or(i32::MAX);
    message!(ProduceRequest { acks: -1, timeout_ms: timeout_ms, topic_data: vec![data] })
}
