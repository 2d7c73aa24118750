//! What triggers read.
//!
//! The trigger engine reads through [`EventInput`] and knows no log besides it: offsets ascend, a read answers whole
//! record batches from an offset on, and somebody tells when there is more. An enum, not a trait object: a partition of
//! the local log is read in the caller's own future, and its position is a load.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use event_listener::EventListener;
use tripline_storage::batch::RecordView as StoredRecord;
use tripline_storage::error::ReadError;
use tripline_storage::partition::ReadOutcome;
use tripline_storage::{LeaderEpoch, Offset, Partition};
use uuid::Uuid;

use crate::event::{EventView, Header, RecordView};
use crate::topic::name::ClusterName;

#[cfg(feature = "cluster")]
pub mod cluster;
mod log;
mod provenance;

pub use log::LogInput;
pub use provenance::{LETTER_HEADER_PREFIX, Provenance, is_letter_header, redrives, text as letter_text};

use provenance::Letters;

/// Which existing Kafka-compatible cluster is meant, and how to be a member of a group there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterAddress {
    /// Where it is.
    pub brokers: ClusterBrokers,
    /// After so long without a sign of life, the group gives this process's partitions to others. 6 s–30 min, default
    /// 10 s.
    pub session_timeout: Duration,
}

impl ClusterAddress {
    /// See [`ClusterAddress::session_timeout`].
    pub const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
}

/// Where a cluster's brokers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterBrokers {
    /// Those to ask first, as `host:port`; 1–16. Over plain TCP, and nobody says who he is: whoever writes definitions
    /// has no business with the secrets of the machine.
    Listed(Vec<String>),
    /// Those of the cluster that the settings of this process give this name, with what protects the connections.
    Named(ClusterName),
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
    /// Set where its records are dead letters that are seen as what they were.
    letters: Option<Letters>,
}

impl Origin {
    /// Partition 0 of a topic `in`.
    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        Self {
            topic: "in".to_owned(),
            topic_id: Uuid::nil(),
            cluster_id: "test".to_owned(),
            partition: 0,
            letters: None,
        }
    }

    /// The same, of records that are seen as what they were before they became dead letters of a trigger on `topics`:
    /// their ids, by name.
    fn of_letters(&self, topics: HashMap<String, Uuid>) -> Self {
        Self { letters: Some(Letters { topics }), ..self.clone() }
    }

    /// Where a record comes from: for a dead letter that is seen as what it was, from where that stood.
    #[must_use]
    pub fn provenance(&self, record: &StoredRecord<'_>, leader_epoch: LeaderEpoch) -> Provenance {
        match &self.letters {
            None => Provenance::of_record(self, record, leader_epoch),
            Some(letters) => Provenance::of_letter(letters, self, record, leader_epoch),
        }
    }

    /// Whether its events may name another topic than it: those of dead letters that are seen as what they were.
    #[must_use]
    pub const fn shows_letters(&self) -> bool {
        self.letters.is_some()
    }

    /// Shows a stored record as an event to `look`.
    pub fn with_event<T>(
        &self,
        record: &StoredRecord<'_>,
        leader_epoch: LeaderEpoch,
        look: impl FnOnce(&EventView<'_>) -> T,
    ) -> T {
        if self.letters.is_some() {
            return self.with_letter(record, leader_epoch, false, look);
        }
        let place = (self.topic.as_str(), self.topic_id, leader_epoch, self.partition);
        self.with_place(record, place, (record.offset(), record.timestamp_ms()), true, look)
    }

    /// Shows a dead letter as the event that it was to `look`, with the headers that tell why it was given up.
    pub fn with_reason<T>(
        &self,
        record: &StoredRecord<'_>,
        leader_epoch: LeaderEpoch,
        look: impl FnOnce(&EventView<'_>) -> T,
    ) -> T {
        self.with_letter(record, leader_epoch, true, look)
    }

    fn with_letter<T>(
        &self,
        record: &StoredRecord<'_>,
        leader_epoch: LeaderEpoch,
        with_reason: bool,
        look: impl FnOnce(&EventView<'_>) -> T,
    ) -> T {
        let was = self.provenance(record, leader_epoch);
        let place = (was.topic.as_str(), was.topic_id, was.leader_epoch, was.partition);
        self.with_place(record, place, (was.offset, was.timestamp_ms), with_reason, look)
    }

    fn with_place<T>(
        &self,
        record: &StoredRecord<'_>,
        (topic, topic_id, leader_epoch, partition): (&str, Uuid, LeaderEpoch, u32),
        (offset, timestamp_ms): (Offset, i64),
        all_headers: bool,
        look: impl FnOnce(&EventView<'_>) -> T,
    ) -> T {
        // Names that are not UTF-8 cannot be written down in an event; the rest of the record can.
        let headers: Vec<Header<'_>> = record
            .headers()
            .into_iter()
            .filter(|header| all_headers || !is_letter_header(header.name))
            .filter_map(|header| Some(Header { name: std::str::from_utf8(header.name).ok()?, value: header.value }))
            .collect();
        look(&EventView::new(RecordView {
            topic,
            cluster_id: &self.cluster_id,
            topic_id,
            leader_epoch,
            partition,
            offset,
            timestamp_ms,
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

    /// The same, its records seen as what they were before they became dead letters of a trigger on `topics`: their
    /// ids, by name.
    #[must_use]
    pub fn with_letters_of(self, topics: HashMap<String, Uuid>) -> Self {
        match self {
            Self::Log(log) => Self::Log(log.with_letters_of(topics)),
            #[cfg(feature = "cluster")]
            Self::Cluster(partition) => Self::Cluster(partition.with_letters_of(topics)),
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

    /// One after the last offset there is, asked for where the records are kept.
    ///
    /// # Errors
    /// When a cluster does not answer.
    pub async fn ask_tail(&self) -> Result<Offset, ReadError> {
        match self {
            Self::Log(log) => Ok(log.tail()),
            #[cfg(feature = "cluster")]
            // Boxed: it is rare, and would make every trace larger.
            Self::Cluster(partition) => Box::pin(partition.ask_tail()).await,
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

    /// Whether nobody is notified any more, by a bug of ours.
    #[cfg(feature = "cluster")]
    pub(crate) fn broke_down(&self) -> bool {
        matches!(self, Self::Cluster(partition) if partition.broke_down())
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
