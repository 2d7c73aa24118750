//! The local log as an input.

use std::collections::HashMap;
use std::sync::Arc;

use event_listener::EventListener;
use tripline_storage::error::ReadError;
use tripline_storage::partition::ReadOutcome;
use tripline_storage::{Offset, Partition};
use uuid::Uuid;

use super::Origin;
use crate::broker::{Broker, NoPartition, Topic};

/// A partition of the local log.
#[derive(Clone, Debug)]
pub struct LogInput {
    log: Arc<Partition>,
    origin: Arc<Origin>,
}

impl LogInput {
    /// Partition `number` of a topic.
    ///
    /// # Errors
    /// See [`NoPartition`].
    pub fn new(broker: &Broker, topic: &Topic, number: u32) -> Result<Self, NoPartition> {
        let origin = Origin {
            topic: topic.name().to_string(),
            topic_id: topic.id(),
            cluster_id: broker.cluster_id().to_string(),
            partition: number,
            letters: None,
        };
        Ok(Self { log: Arc::clone(topic.partition(number)?), origin: Arc::new(origin) })
    }

    pub(super) fn with_letters_of(self, topics: HashMap<String, Uuid>) -> Self {
        Self { origin: Arc::new(self.origin.of_letters(topics)), ..self }
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
