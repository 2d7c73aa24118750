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

mod provenance;

pub use provenance::{LETTER_HEADER_PREFIX, Provenance, is_letter_header, redrives, text as letter_text};

use provenance::Letters;

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
    /// Where a record comes from: for a dead letter that is seen as what it was, from where that stood.
    #[must_use]
    pub fn provenance(&self, record: &StoredRecord<'_>, leader_epoch: LeaderEpoch) -> Provenance {
        match &self.letters {
            None => Provenance::of_record(self, record, leader_epoch),
            Some(letters) => Provenance::of_letter(letters, self, record, leader_epoch),
        }
    }

    /// The topic that its events name.
    #[must_use]
    pub fn events_topic(&self) -> &str {
        self.letters.as_ref().map_or(&self.topic, |letters| &letters.topic)
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
            letters: None,
        };
        Some(Self { log: Arc::clone(topic.partition(number)?), origin: Arc::new(origin) })
    }

    /// The same, its records seen as what they were before they became dead letters of a trigger on `topic`.
    #[must_use]
    pub fn as_letters_of(&self, topic: &Topic) -> Self {
        let letters = Letters { topic: topic.name().to_string(), topic_id: topic.id() };
        let origin = Origin { letters: Some(letters), ..(*self.origin).clone() };
        Self { log: Arc::clone(&self.log), origin: Arc::new(origin) }
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
