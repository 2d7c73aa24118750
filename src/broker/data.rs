//! Appending and reading.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tripline_storage::batch::{BatchLimits, CheckedBatch, Validation};
use tripline_storage::error::{AppendError, FlushError, ReadError};
use tripline_storage::partition::{AppendOutcome, ReadOutcome, ReadStart};
use tripline_storage::{Offset, Partition};

use super::error::{DeleteRecordsError, ProduceError};
use super::journal::JournalError;
use super::record::ProducerIds;
use super::{Broker, Topic, now_ms};
use crate::topic::spec::TimestampType;

/// When a produce is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// Not at all.
    None,
    /// When the record is in the page cache: it survives the death of the process.
    Leader,
    /// When the record is on stable storage.
    #[default]
    All,
}

/// An appended batch that may not be durable yet.
#[derive(Debug)]
pub struct Appended {
    /// Where it went.
    pub outcome: AppendOutcome,
    /// The timestamp that the broker gave, on a topic with `LogAppendTime`; ms since 1970.
    pub append_time_ms: Option<i64>,
    partition: Arc<Partition>,
}

impl Appended {
    /// Waits for what `acks` promises.
    ///
    /// # Errors
    /// [`FlushError`]: it will never be durable.
    pub async fn acknowledged(&self, acks: Acks) -> Result<(), FlushError> {
        match acks {
            Acks::None | Acks::Leader => Ok(()),
            Acks::All => self.partition.flushed_to(self.outcome.last_offset.next()).await,
        }
    }
}

/// Producer ids journalled at a time: one journal record serves so many producers.
const PRODUCER_ID_BLOCK: i64 = 1_000;

impl Broker {
    /// Checks and appends one batch that a client sent. In the page cache on return.
    ///
    /// # Errors
    /// See [`ProduceError`].
    pub fn append_client_batch(&self, topic: &Topic, partition: u32, bytes: Bytes) -> Result<Appended, ProduceError> {
        if topic.is_internal() {
            return Err(ProduceError::Internal(topic.name().to_string()));
        }
        let batch_bytes_max = topic.with_config(|config| config.max_message_bytes as usize);
        let limits = BatchLimits { batch_bytes_max, ..BatchLimits::default() };
        let batch = CheckedBatch::check(bytes, &limits, Validation::Records)?;
        self.append(topic, partition, batch)
    }

    /// Appends a batch that was built here or checked before. In the page cache on return.
    ///
    /// # Errors
    /// See [`ProduceError`].
    pub fn append(&self, topic: &Topic, partition: u32, batch: CheckedBatch) -> Result<Appended, ProduceError> {
        check_keys(topic, &batch)?;
        self.append_by(topic, partition, batch, Partition::append)
    }

    /// As [`Broker::append`], for what the state journal is about to speak of: no record that it takes from now on is
    /// durable before this batch (invariant S8).
    ///
    /// # Errors
    /// See [`ProduceError`].
    pub fn append_ahead(&self, topic: &Topic, partition: u32, batch: CheckedBatch) -> Result<Appended, ProduceError> {
        let appended = self.append(topic, partition, batch)?;
        self.inner.journal.flush_first(&appended.partition, appended.outcome.last_offset.next());
        Ok(appended)
    }

    /// As [`Broker::append`], and on a full disk from the reserve: for dead letters, without which their triggers stand
    /// still. For the same reason a compacted topic takes them also without a key; compaction leaves them alone.
    ///
    /// # Errors
    /// See [`ProduceError`].
    pub fn append_reserved(
        &self,
        topic: &Topic,
        partition: u32,
        batch: CheckedBatch,
    ) -> Result<Appended, ProduceError> {
        self.append_by(topic, partition, batch, Partition::append_reserved)
    }

    fn append_by(
        &self,
        topic: &Topic,
        partition: u32,
        batch: CheckedBatch,
        append: impl FnOnce(&Arc<Partition>, &CheckedBatch, i64) -> Result<AppendOutcome, AppendError>,
    ) -> Result<Appended, ProduceError> {
        let log = topic.partition(partition)?;
        let now_ms = now_ms();
        let append_time = topic.with_config(|config| config.message_timestamp_type) == TimestampType::LogAppendTime;
        let batch = if append_time { batch.with_append_time(now_ms) } else { batch };
        let outcome = append(log, &batch, now_ms)?;
        if log.is_flush_due() {
            // Before it comes to a flush on this thread, which others wait for.
            log.request_flush();
        }
        if !outcome.duplicate {
            self.inner.appended_records.fetch_add(i64::from(batch.header().record_count), Ordering::Relaxed);
            self.inner.appended_bytes.fetch_add(batch.size_bytes().cast_signed() as i64, Ordering::Relaxed);
        }
        let append_time_ms = append_time.then_some(outcome.timestamp_ms);
        Ok(Appended { outcome, append_time_ms, partition: Arc::clone(log) })
    }

    /// Reads whole batches from `from` on, at most `max_bytes` but at least one; empty at the tail. Waits for the disk
    /// on a thread that may block.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read(partition: &Arc<Partition>, from: Offset, max_bytes: usize) -> Result<ReadOutcome, ReadError> {
        match partition.read(from, max_bytes)? {
            ReadStart::Ready(outcome) => Ok(outcome),
            ReadStart::Cold(cold) => blocking(move || cold.run()).await,
        }
    }

    /// The first record whose timestamp is at least `timestamp_ms`, with its timestamp; `None` when all are older.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn offset_for_time(
        partition: &Arc<Partition>,
        timestamp_ms: i64,
    ) -> Result<Option<(Offset, i64)>, ReadError> {
        let partition = Arc::clone(partition);
        blocking(move || partition.offset_for_time(timestamp_ms)).await
    }

    /// Deletes the records of a partition below `before`, or all that there are. Answers the first offset that is left,
    /// durably.
    ///
    /// # Errors
    /// See [`DeleteRecordsError`].
    pub async fn delete_records(
        &self,
        topic: &Topic,
        partition: u32,
        before: Option<Offset>,
    ) -> Result<Offset, DeleteRecordsError> {
        let name = topic.name().to_string();
        if topic.is_internal() {
            return Err(DeleteRecordsError::Internal(name));
        }
        if !topic.with_config(|config| config.cleanup_policy.deletes()) {
            return Err(DeleteRecordsError::Compacted(name));
        }
        let log = Arc::clone(topic.partition(partition)?);
        Ok(blocking(move || log.trim(before.unwrap_or_else(|| log.tail()))).await?)
    }

    /// A producer id that nobody has or had.
    ///
    /// # Errors
    /// [`JournalError`]: no new block could be remembered.
    pub async fn next_producer_id(&self) -> Result<i64, JournalError> {
        loop {
            let wanted = {
                let mut ids = self.inner.producer_ids.lock();
                if ids.0 < ids.1 {
                    ids.0 += 1;
                    return Ok(ids.0 - 1);
                }
                ids.1
            };
            let end = wanted + PRODUCER_ID_BLOCK;
            let next = self.inner.journal.append(&[ProducerIds { next: end }.into()], now_ms())?;
            self.inner.journal.durable(next).await?;
            let mut ids = self.inner.producer_ids.lock();
            // Whoever else asked at the same time journalled the same block or a later one.
            if ids.1 < end {
                *ids = (wanted, end);
            }
        }
    }
}

/// Every record of a compacted topic needs a key.
fn check_keys(topic: &Topic, batch: &CheckedBatch) -> Result<(), ProduceError> {
    if !topic.with_config(|config| config.cleanup_policy.compacts()) {
        return Ok(());
    }
    match batch.first_without_key(&BatchLimits::default())? {
        Some(index) => Err(ProduceError::WithoutKey { topic: topic.name().to_string(), index }),
        None => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
