//! The state journal: one partition of records, and the tables that they describe.
//!
//! A record is applied to the tables in the moment it is appended, under one lock, so that both always agree. From
//! time to time the live state is appended anew and what lies before it is removed: the journal stays as small as
//! what it describes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::RwLock;
use tripline_storage::batch::{BatchBuilder, BatchLimits, BatchOptions, BatchView, BuildError, NewRecord};
use tripline_storage::error::{AppendError, FlushError, ReadError};
use tripline_storage::{Offset, Partition};

use super::codec::DecodeError;
use super::record::JournalRecord;
use super::state::State;

/// The journal is rewritten when it has grown by so much since the last time.
pub const REWRITE_BYTES: u64 = 16 << 20;
/// How much of the journal is read at a time.
const READ_BYTES: usize = 1 << 20;

/// Why something could not be remembered. The tables have not changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The record could not be appended.
    #[error("the state journal takes no records: {0}")]
    Append(#[from] AppendError),
    /// The record was appended but is not known to be durable.
    #[error("the state journal is not durable: {0}")]
    Flush(#[from] FlushError),
    /// A batch of records could not be built.
    #[error("the state journal's batch: {0}")]
    Build(#[from] BuildError),
}

/// Why the journal could not be read back. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The disk does not answer, or the journal is damaged.
    #[error("the state journal cannot be read: {0}")]
    Read(#[from] ReadError),
    /// A batch does not unpack.
    #[error("the state journal holds a damaged batch at offset {offset}: {reason}")]
    Batch {
        /// Where.
        offset: Offset,
        /// What is wrong.
        reason: String,
    },
    /// A record does not decode.
    #[error("the state journal's record at offset {offset}: {cause}")]
    Record {
        /// Where.
        offset: Offset,
        /// What is wrong.
        cause: DecodeError,
    },
}

/// The journal and its tables.
#[derive(Debug)]
pub struct Journal {
    partition: Arc<Partition>,
    state: RwLock<State>,
    /// Where the last rewrite began, in bytes of the partition.
    rewritten_bytes: AtomicI64,
}

impl Journal {
    /// Reads the journal back.
    ///
    /// # Errors
    /// See [`ReplayError`].
    pub fn replay(partition: Arc<Partition>) -> Result<Self, ReplayError> {
        let mut state = State::default();
        let mut at = partition.log_start();
        while at < partition.tail() {
            let outcome = partition.read_blocking(at, READ_BYTES)?;
            replay_batches(&outcome.bytes, &mut state)?;
            at = outcome.next;
        }
        let rewritten_bytes = AtomicI64::new(i64::try_from(partition.len_bytes()).unwrap_or(i64::MAX));
        Ok(Self { partition, state: RwLock::new(state), rewritten_bytes })
    }

    /// Looks at the tables. Short: appends wait meanwhile.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read())
    }

    /// Remembers `records` in the page cache: they survive the death of the process at once, and a power cut after
    /// [`Journal::durable`] or the flush interval. Answers what to wait for.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn append(&self, records: &[JournalRecord], now_ms: i64) -> Result<Offset, JournalError> {
        let mut state = self.state.write();
        self.append_locked(&mut state, records.iter(), now_ms)
    }

    /// As [`Journal::append`], for records that depend on the tables: `decide` sees them as they are when its records are
    /// appended, and nobody changes them in between.
    ///
    /// # Errors
    /// What `decide` answers; see [`JournalError`] otherwise.
    pub fn append_if<T, E: From<JournalError>>(
        &self,
        now_ms: i64,
        decide: impl FnOnce(&State) -> Result<(Vec<JournalRecord>, T), E>,
    ) -> Result<(Offset, T), E> {
        let mut state = self.state.write();
        let (records, answer) = decide(&state)?;
        let next = self.append_locked(&mut state, records.iter(), now_ms)?;
        Ok((next, answer))
    }

    /// Waits until everything below `next` is on stable storage.
    ///
    /// # Errors
    /// [`JournalError::Flush`].
    pub async fn durable(&self, next: Offset) -> Result<(), JournalError> {
        Ok(self.partition.flushed_to(next).await?)
    }

    /// Remembers records that speak of other partitions' data: the flush that makes them durable flushes each of `sources`
    /// to its offset before, so that no durable record is ahead of its durable data (invariant S8). In the page cache on
    /// return.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn append_after(
        &self,
        records: &[JournalRecord],
        sources: &[(Arc<Partition>, Offset)],
        now_ms: i64,
    ) -> Result<Offset, JournalError> {
        for (source, offset) in sources {
            self.partition.flush_first(source, *offset);
        }
        self.append(records, now_ms)
    }

    /// As [`Journal::append_after`], durable on return.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub async fn commit(
        &self,
        records: &[JournalRecord],
        sources: &[(Arc<Partition>, Offset)],
        now_ms: i64,
    ) -> Result<(), JournalError> {
        let next = self.append_after(records, sources, now_ms)?;
        self.durable(next).await
    }

    /// Appends the live state anew and removes what lies before it, if the journal has grown enough. Blocks on the disk.
    ///
    /// # Errors
    /// See [`JournalError`]; the journal is whole in any case.
    pub fn rewrite_if_grown(&self, now_ms: i64) -> Result<bool, JournalError> {
        let len_bytes = i64::try_from(self.partition.len_bytes()).unwrap_or(i64::MAX);
        if len_bytes - self.rewritten_bytes.load(Ordering::Relaxed) < REWRITE_BYTES.cast_signed() {
            return Ok(false);
        }
        self.rewrite(now_ms)?;
        Ok(true)
    }

    fn rewrite(&self, now_ms: i64) -> Result<(), JournalError> {
        let begin = {
            let mut state = self.state.write();
            state.deleted_topics.clear();
            let begin = self.partition.tail();
            let records: Vec<_> = state.records().collect();
            // The records say what the tables say: applying them changes nothing.
            self.append_batches(records.iter(), now_ms)?;
            begin
        };
        self.partition.flush()?;
        if let Err(cause) = self.partition.trim(begin) {
            tracing::warn!(%cause, "old state not removed; it is tried again at the next rewrite");
        }
        let len_bytes = i64::try_from(self.partition.len_bytes()).unwrap_or(i64::MAX);
        self.rewritten_bytes.store(len_bytes, Ordering::Relaxed);
        Ok(())
    }

    fn append_locked<'r>(
        &self,
        state: &mut State,
        records: impl Iterator<Item = &'r JournalRecord> + Clone,
        now_ms: i64,
    ) -> Result<Offset, JournalError> {
        self.append_batches(records.clone(), now_ms)?;
        records.for_each(|record| state.apply(record));
        Ok(self.partition.tail())
    }

    /// Usually one batch; a rewrite takes as many as it needs.
    fn append_batches<'r>(
        &self,
        records: impl Iterator<Item = &'r JournalRecord>,
        now_ms: i64,
    ) -> Result<(), JournalError> {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for record in records {
            let bytes = record.encode();
            let record = NewRecord { timestamp_ms: now_ms, value: Some(&bytes), ..NewRecord::default() };
            if !builder.is_empty() && builder.size_bytes_with(&record) > READ_BYTES {
                let full = std::mem::replace(&mut builder, BatchBuilder::new(BatchOptions::default()));
                self.partition.append(&full.finish()?, now_ms)?;
            }
            builder.push(&record)?;
        }
        if !builder.is_empty() {
            self.partition.append(&builder.finish()?, now_ms)?;
        }
        Ok(())
    }
}

fn replay_batches(mut bytes: &[u8], state: &mut State) -> Result<(), ReplayError> {
    while !bytes.is_empty() {
        let damaged = |offset, reason: &dyn ToString| ReplayError::Batch { offset, reason: reason.to_string() };
        let (view, rest) = BatchView::parse(bytes).map_err(|reason| damaged(Offset::ZERO, &reason))?;
        let base = view.header().base_offset;
        let records = view.records(&BatchLimits::default()).map_err(|reason| damaged(base, &reason))?;
        for record in &records {
            let record = record.map_err(|reason| damaged(base, &reason))?;
            let decoded = JournalRecord::decode(record.value().unwrap_or_default());
            state.apply(&decoded.map_err(|cause| ReplayError::Record { offset: record.offset(), cause })?);
        }
        bytes = rest;
    }
    Ok(())
}
