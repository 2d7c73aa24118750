//! What triggers read: the partitions of the local log.
//!
//! The trigger engine reads through [`LogInput`] and knows no log besides it: offsets ascend, a read answers whole record
//! batches from an offset on, and somebody tells when there is more.

use std::sync::Arc;

use event_listener::EventListener;
use tripline_storage::batch::RecordView as StoredRecord;
use tripline_storage::error::ReadError;
use tripline_storage::partition::ReadOutcome;
use tripline_storage::{LeaderEpoch, Offset, Partition};
use uuid::Uuid;

use crate::broker::{Broker, Topic};
use crate::event::{EventView, Header, RecordView};

/// Where records come from, as events say it.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The topic's name.
    pub topic: String,
    /// Its id.
    pub topic_id: Uuid,
    /// The id of the cluster.
    pub cluster_id: String,
    /// The partition.
    pub partition: u32,
}

impl Origin {
    /// Shows a stored record as an event to `look`.
    pub fn with_event<T>(
        &self,
        record: &StoredRecord<'_>,
        leader_epoch: LeaderEpoch,
        look: impl FnOnce(&EventView<'_>) -> T,
    ) -> T {
        // Names that are not UTF-8 cannot be written down in an event; the rest of the record can.
        let headers: Vec<Header<'_>> = record
            .headers()
            .filter_map(|header| Some(Header { name: std::str::from_utf8(header.name).ok()?, value: header.value }))
            .collect();
        look(&EventView::new(RecordView {
            topic: &self.topic,
            cluster_id: &self.cluster_id,
            topic_id: self.topic_id,
            leader_epoch,
            partition: self.partition,
            offset: record.offset(),
            timestamp_ms: record.timestamp_ms(),
            key: record.key(),
            value: record.value(),
            headers: &headers,
        }))
    }
}

/// A partition of the local log.
#[derive(Clone, Debug)]
pub struct LogInput {
    log: Arc<Partition>,
    origin: Arc<Origin>,
}

impl LogInput {
    /// Partition `number` of a topic; `None` when there is none.
    #[must_use]
    pub fn new(broker: &Broker, topic: &Topic, number: u32) -> Option<Self> {
        let origin = Origin {
            topic: topic.name().to_string(),
            topic_id: topic.id(),
            cluster_id: broker.cluster_id().to_string(),
            partition: number,
        };
        Some(Self { log: Arc::clone(topic.partition(number)?), origin: Arc::new(origin) })
    }

    /// Where its records come from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The log itself: what is written down about its records must not be durable before them.
    #[must_use]
    pub const fn log(&self) -> &Arc<Partition> {
        &self.log
    }

    /// The first offset there is.
    #[must_use]
    pub fn log_start(&self) -> Offset {
        self.log.log_start()
    }

    /// One after the last offset there is.
    #[must_use]
    pub fn tail(&self) -> Offset {
        self.log.tail()
    }

    /// Notified when there is more. Listen first, look at the tail then, wait last.
    #[must_use]
    pub fn listen(&self) -> EventListener {
        self.log.listen_tail()
    }

    /// Whole batches from `from` on, at most `max_bytes` but at least one; empty at the tail.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read(&self, from: Offset, max_bytes: usize) -> Result<ReadOutcome, ReadError> {
        Broker::read(&self.log, from, max_bytes).await
    }
}
