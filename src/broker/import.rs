//! A topic that Kafka wrote, taken over.

use std::sync::Arc;

use tripline_storage::Partition;
use tripline_storage::error::OpenLogError;
use tripline_storage::import::{CheckedSource, ImportError};
use uuid::Uuid;

use super::error::CreateTopicError;
use super::record::ProducerIds;
use super::topics::log_config;
use super::{Broker, Topic, now_ms, partition_id};
use crate::topic::spec::TopicSpec;

/// Why a topic was not taken over. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportTopicError {
    /// The topic cannot be made.
    #[error(transparent)]
    Create(#[from] CreateTopicError),
    /// A partition could not be read or written.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// What was written does not open.
    #[error(transparent)]
    Open(#[from] OpenLogError),
    /// What was written has another end than its source: it is not trusted.
    #[error("partition {partition} was written up to offset {found}, its source ends at {expected}")]
    Differs {
        /// Its number.
        partition: u32,
        /// Where the source ends.
        expected: i64,
        /// Where it ends.
        found: i64,
    },
}

impl Broker {
    /// Makes the topic `spec` from checked partitions of Kafka, one for each of its partitions. Durable on return.
    /// Producer ids that are handed out later are none of those in the records. Blocks on the disk: for start-up and
    /// command line.
    ///
    /// # Errors
    /// See [`ImportTopicError`].
    ///
    /// # Panics
    /// When the numbers of partitions and sources differ.
    pub async fn import_topic(
        &self,
        spec: TopicSpec,
        sources: &[CheckedSource],
        walked: &mut dyn FnMut(u64),
    ) -> Result<Arc<Topic>, ImportTopicError> {
        assert_eq!(spec.partitions as usize, sources.len(), "one source for each partition");
        let _changing = self.inner.changing_topics.lock().await;
        self.check_new_topic(&spec)?;
        let id = Uuid::new_v4();
        let made = match self.write_partitions(id, &spec, sources, walked) {
            Ok(partitions) => self.remember(id, spec, sources, partitions).await,
            Err(error) => Err(error),
        };
        // One that may be remembered keeps its files.
        let is_forgotten = match &made {
            Ok(_) => false,
            Err(ImportTopicError::Create(error)) => !error.may_be_remembered(),
            Err(_) => true,
        };
        if is_forgotten && let Err(cause) = self.inner.store.delete_topic(id) {
            tracing::warn!(topic = %id, %cause, "what was written of a topic is not removed");
        }
        made
    }

    fn write_partitions(
        &self,
        id: Uuid,
        spec: &TopicSpec,
        sources: &[CheckedSource],
        walked: &mut dyn FnMut(u64),
    ) -> Result<Vec<Arc<Partition>>, ImportTopicError> {
        let mut partitions = Vec::new();
        for (number, source) in (0..).zip(sources) {
            self.inner.store.import_partition(partition_id(id, number), source, now_ms(), walked)?;
            let (partition, _) = self.inner.store.open_partition(partition_id(id, number), log_config(&spec.config))?;
            let (expected, found) = (source.facts().tail, partition.tail());
            if expected != found {
                let (expected, found) = (expected.get(), found.get());
                return Err(ImportTopicError::Differs { partition: number, expected, found });
            }
            partitions.push(partition);
        }
        Ok(partitions)
    }

    async fn remember(
        &self,
        id: Uuid,
        spec: TopicSpec,
        sources: &[CheckedSource],
        partitions: Vec<Arc<Partition>>,
    ) -> Result<Arc<Topic>, ImportTopicError> {
        let newest = sources.iter().filter_map(|source| source.facts().newest_producer_id).max();
        let mut more = Vec::new();
        if let Some(newest) = newest {
            let mut ids = self.inner.producer_ids.lock();
            if ids.1 <= newest {
                let next = newest.saturating_add(1);
                *ids = (next, next);
                more.push(ProducerIds { next }.into());
            }
        }
        Ok(self.add_topic(id, spec, partitions, more).await?)
    }
}
