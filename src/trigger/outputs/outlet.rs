//! The one way of outputs to their topics: of this broker, or of the cluster that the trigger reads.

use tripline_storage::batch::CheckedBatch;

use crate::broker::{Broker, ProduceError, Topic};
use crate::input::EventInput;
#[cfg(feature = "cluster")]
use crate::input::cluster::{Client, ClusterError};
use crate::topic::name::TopicName;

/// The codes of attempts whose results a topic does not take.
const TOO_LARGE: &str = "result-too-large";
const WITHOUT_KEY: &str = "result-without-key";

/// Why outputs are not in their topics.
#[derive(Debug, thiserror::Error)]
pub(in crate::trigger) enum OutputError {
    /// The topic was deleted.
    #[error("the topic {0} of the trigger's destinations does not exist")]
    NoTopic(TopicName),
    /// A result does not fit into a record of the topic: trying again would not change that, invoking again may.
    #[error("a result has {size_bytes} bytes, topic {topic} takes {allowed}")]
    TooLarge {
        /// The topic.
        topic: TopicName,
        /// How large it is.
        size_bytes: usize,
        /// Its `max.message.bytes`.
        allowed: usize,
    },
    /// A result has no key, and its topic could never let go of it: trying again would not change that, invoking again
    /// may.
    #[error(
        "result {place} has no key (the `partitionkey` of a CloudEvent); topic {topic} is compacted and needs one in each"
    )]
    WithoutKey {
        /// The topic.
        topic: TopicName,
        /// Which of the results, from 1.
        place: usize,
    },
    /// They could not be appended.
    #[error(transparent)]
    Produce(#[from] ProduceError),
    /// The cluster does not take them.
    #[cfg(feature = "cluster")]
    #[error("outputs: {0}")]
    Cluster(ClusterError),
}

impl OutputError {
    /// The code that the attempt fails with, where trying again to append would not change it.
    pub(in crate::trigger) const fn fails_attempt(&self) -> Option<&'static str> {
        match self {
            Self::TooLarge { .. } => Some(TOO_LARGE),
            Self::WithoutKey { .. } => Some(WITHOUT_KEY),
            // Where that is a missing key, the topic became compacted since it was asked: the next look at it says so.
            Self::NoTopic(_) | Self::Produce(_) => None,
            // What was known of the topic is out of date; the next invocation knows more.
            #[cfg(feature = "cluster")]
            Self::Cluster(ClusterError::TooLarge { .. }) => Some(TOO_LARGE),
            #[cfg(feature = "cluster")]
            Self::Cluster(_) => None,
        }
    }
}

/// What a topic takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Takes {
    /// At least 1.
    pub(super) partition_count: u32,
    /// Its `max.message.bytes`.
    pub(super) max_message_bytes: usize,
    /// It is compacted: each record needs a key.
    pub(super) needs_keys: bool,
}

/// Where the topics are that outputs go to.
#[derive(Clone, Copy, Debug)]
pub(in crate::trigger) enum Outlet<'a> {
    /// Here.
    Broker(&'a Broker),
    /// On the cluster of this client.
    #[cfg(feature = "cluster")]
    Cluster(&'a Client),
}

impl<'a> Outlet<'a> {
    /// Where a trigger that reads `input` writes to.
    pub(in crate::trigger) fn of(broker: &'a Broker, input: &'a EventInput) -> Self {
        match input {
            EventInput::Log(_) => Self::Broker(broker),
            #[cfg(feature = "cluster")]
            EventInput::Cluster(partition) => Self::Cluster(partition.client()),
        }
    }

    #[cfg_attr(not(feature = "cluster"), expect(clippy::unused_async, reason = "a cluster is asked"))]
    pub(super) async fn takes(&self, name: &TopicName) -> Result<Takes, OutputError> {
        match self {
            Self::Broker(broker) => {
                let topic = topic(broker, name)?;
                let (max_message_bytes, needs_keys) =
                    topic.with_config(|config| (config.max_message_bytes as usize, config.cleanup_policy.compacts()));
                Ok(Takes { partition_count: topic.partition_count(), max_message_bytes, needs_keys })
            }
            #[cfg(feature = "cluster")]
            Self::Cluster(client) => {
                let takes = client.takes(name.as_str()).await.map_err(OutputError::Cluster)?;
                let crate::input::cluster::Takes { partition_count, max_message_bytes, needs_keys } = takes;
                Ok(Takes { partition_count, max_message_bytes, needs_keys })
            }
        }
    }

    /// Appends a batch. On return it is there: acknowledged by a cluster; ahead of the journal, on this broker.
    #[cfg_attr(not(feature = "cluster"), expect(clippy::unused_async, reason = "a cluster is asked"))]
    pub(super) async fn append(
        &self,
        name: &TopicName,
        partition: u32,
        batch: &mut CheckedBatch,
    ) -> Result<(), OutputError> {
        match self {
            Self::Broker(broker) => {
                broker.append_ahead(&*topic(broker, name)?, partition, batch.clone())?;
                Ok(())
            }
            #[cfg(feature = "cluster")]
            Self::Cluster(client) => client.append(name.as_str(), partition, batch).await.map_err(OutputError::Cluster),
        }
    }
}

fn topic(broker: &Broker, name: &TopicName) -> Result<std::sync::Arc<Topic>, OutputError> {
    broker.topic(name.as_str()).ok_or_else(|| OutputError::NoTopic(name.clone()))
}
