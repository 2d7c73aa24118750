//! What triggers read.
//!
//! The trigger engine reads through [`EventInput`] and knows no log besides it: offsets ascend, a read answers whole record
//! batches from an offset on, and somebody tells when there is more. An enum, not a trait object: a partition of the local
//! log is read in the caller's own future, and its position is a load.

use std::sync::Arc;
use std::time::Duration;

use event_listener::EventListener;
use tripline_storage::batch::RecordView as StoredRecord;
use tripline_storage::error::ReadError;
use tripline_storage::partition::ReadOutcome;
use tripline_storage::{LeaderEpoch, Offset, Partition};
use uuid::Uuid;

use crate::event::{EventView, Header, RecordView};

#[cfg(feature = "cluster")]
pub mod cluster;
mod log;

pub use log::LogInput;

/// Where an existing Kafka-compatible cluster is, and how to be a member of a group there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterAddress {
    /// Brokers to ask first, as `host:port`; 1–16.
    pub bootstrap_servers: Vec<String>,
    /// After so long without a sign of life, the group gives this process's partitions to others. 6 s–30 min, default 10 s.
    pub session_timeout: Duration,
}

impl ClusterAddress {
    /// See [`ClusterAddress::session_timeout`].
    pub const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
}

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

/// A partition that triggers read.
#[derive(Clone, Debug)]
pub enum EventInput {
    /// Of the local log.
    Log(LogInput),
    /// Of an existing cluster.
    #[cfg(feature = "cluster")]
    Cluster(cluster::ClusterInput),
}

impl EventInput {
    /// Where its records come from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        match self {
            Self::Log(log) => log.origin(),
            #[cfg(feature = "cluster")]
            Self::Cluster(partition) => partition.origin(),
        }
    }

    /// What must be durable before anything that is written down about its records below `next`: nothing, where another
    /// machine keeps the records.
    #[must_use]
    pub fn sources(&self, next: Offset) -> Vec<(Arc<Partition>, Offset)> {
        match self {
            Self::Log(log) => vec![(Arc::clone(log.log()), next)],
            #[cfg(feature = "cluster")]
            Self::Cluster(_) => Vec::new(),
        }
    }

    /// The first offset there is.
    #[must_use]
    pub fn log_start(&self) -> Offset {
        match self {
            Self::Log(log) => log.log_start(),
            #[cfg(feature = "cluster")]
            Self::Cluster(partition) => partition.log_start(),
        }
    }

    /// One after the last offset there is, as far as is known here.
    #[must_use]
    pub fn tail(&self) -> Offset {
        match self {
            Self::Log(log) => log.tail(),
            #[cfg(feature = "cluster")]
            Self::Cluster(partition) => partition.tail(),
        }
    }

    /// Notified when there is more. Listen first, look at the tail then, wait last.
    #[must_use]
    pub fn listen(&self) -> EventListener {
        match self {
            Self::Log(log) => log.listen(),
            #[cfg(feature = "cluster")]
            Self::Cluster(partition) => partition.listen(),
        }
    }

    /// Whole batches from `from` on, at most `max_bytes` but at least one; empty at the tail.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read(&self, from: Offset, max_bytes: usize) -> Result<ReadOutcome, ReadError> {
        match self {
            Self::Log(log) => log.read(from, max_bytes).await,
            #[cfg(feature = "cluster")]
            Self::Cluster(partition) => partition.read(from, max_bytes).await,
        }
    }
}
