//! The state journal: one partition of records, and the tables that they describe.
//!
//! A record is applied to the tables in the moment it is appended, under one lock, so that both always agree. From time
//! to time the live state is appended anew and what lies before it is removed: the journal stays as small as what it
//! describes. On a full disk it goes on from the reserve: commits and progress are what lets a full disk be emptied.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::RwLock;
use tripline_storage::batch::{BatchBuilder, BatchLimits, BatchOptions, Batches, BuildError, NewRecord};
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
    /// Length of the partition after the last rewrite by this process.
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
        Ok(Self { partition, state: RwLock::new(state), rewritten_bytes: AtomicI64::new(0) })
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
        self.append_locked(&mut state, records, now_ms)
    }

    /// As [`Journal::append`], for records that depend on the tables: `decide` sees them as they are when its records
    /// are appended, and nobody changes them in between.
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
        let next = self.append_locked(&mut state, &records, now_ms)?;
        Ok((next, answer))
    }

    /// Waits until everything below `next` is on stable storage.
    ///
    /// # Errors
    /// [`JournalError::Flush`].
    pub async fn durable(&self, next: Offset) -> Result<(), JournalError> {
        Ok(self.partition.flushed_to(next).await?)
    }

    /// Makes everything appended so far durable, on this thread.
    ///
    /// # Errors
    /// [`JournalError::Flush`].
    pub fn flush(&self) -> Result<(), JournalError> {
        self.partition.flush()?;
        Ok(())
    }

    /// Nothing that is appended here from now on is durable before what `source` holds below `offset`.
    pub(super) fn flush_first(&self, source: &Arc<Partition>, offset: Offset) {
        self.partition.flush_first(source, offset);
    }

    /// Remembers records that speak of other partitions' data: the flush that makes them durable flushes each of
    /// `sources` to its offset before, so that no durable record is ahead of its durable data (invariant S8). In the
    /// page cache on return.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn append_after(
        &self,
        records: &[JournalRecord],
        sources: &[(Arc<Partition>, Offset)],
        now_ms: i64,
    ) -> Result<Offset, JournalError> {
        sources.iter().for_each(|(source, offset)| self.flush_first(source, *offset));
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

    /// Appends the live state anew and removes what lies before it, if the journal has grown enough. Blocks on the
    /// disk.
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
            // The records say what the tables say: applying them changes nothing.
            self.append_groups(&state.record_groups(), now_ms)?;
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

    fn append_locked(&self, state: &mut State, records: &[JournalRecord], now_ms: i64) -> Result<Offset, JournalError> {
        if records.is_empty() {
            return Ok(self.partition.tail());
        }
        self.append_groups(&[records], now_ms)?;
        records.iter().for_each(|record| state.apply(record));
        Ok(self.partition.tail())
    }

    /// Appends the records of a group in one batch, so that a crash leaves all of them or none; usually that is all. A
    /// rewrite takes as many batches as it needs.
    fn append_groups<G: AsRef<[JournalRecord]>>(&self, groups: &[G], now_ms: i64) -> Result<(), JournalError> {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for group in groups {
            let encoded: Vec<Vec<u8>> = group.as_ref().iter().map(JournalRecord::encode).collect();
            let size_bytes: usize = encoded.iter().map(Vec::len).sum();
            if !builder.is_empty() && builder.size_bytes() + size_bytes > READ_BYTES {
                let full = std::mem::replace(&mut builder, BatchBuilder::new(BatchOptions::default()));
                self.partition.append_reserved(&full.finish()?, now_ms)?;
            }
            for bytes in &encoded {
                builder.push(&NewRecord { timestamp_ms: now_ms, value: Some(bytes), ..NewRecord::default() })?;
            }
        }
        if !builder.is_empty() {
            self.partition.append_reserved(&builder.finish()?, now_ms)?;
        }
        Ok(())
    }
}

fn replay_batches(bytes: &[u8], state: &mut State) -> Result<(), ReplayError> {
    let damaged = |offset, reason: &dyn ToString| ReplayError::Batch { offset, reason: reason.to_string() };
    for view in Batches::of(bytes) {
        let view = view.map_err(|reason| damaged(Offset::ZERO, &reason))?;
        let base = view.header().base_offset;
        let records = view.records(&BatchLimits::default()).map_err(|reason| damaged(base, &reason))?;
        for record in &records {
            let record = record.map_err(|reason| damaged(base, &reason))?;
            let decoded = JournalRecord::decode(record.value().unwrap_or_default());
            state.apply(&decoded.map_err(|cause| ReplayError::Record { offset: record.offset(), cause })?);
        }
    }
    Ok(())
}
