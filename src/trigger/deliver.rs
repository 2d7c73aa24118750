//! Records out of the log, and dead letters into it.

use std::ops::ControlFlow;

use tripline_storage::batch::{
    BatchBuilder, BatchLimits, BatchOptions, BatchProducer, Batches, CheckedBatch, NewRecord,
    RecordView as StoredRecord,
};
use tripline_storage::error::ReadError;
use tripline_storage::{LeaderEpoch, Offset};

use super::attempt::AttemptState;
use super::dead_letter::DeadLetterFacts;
use crate::function::ErrorClass;
use crate::input::{EventInput, Origin, is_letter_header};

/// How much of the log is read at a time, and the first time.
const READ_BYTES: usize = 1 << 20;
const READ_BYTES_FIRST: usize = 64 << 10;

/// Why records cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordsError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the batch at offset {offset} does not unpack: {reason}")]
    Batch { offset: Offset, reason: String },
}

/// Hands the records of whole batches to `visit`, those of transaction markers left out, until it breaks off.
pub(super) fn for_each_record(
    bytes: &[u8],
    mut visit: impl FnMut(&StoredRecord<'_>, LeaderEpoch) -> ControlFlow<()>,
) -> Result<(), RecordsError> {
    let unpack = |offset, reason: &dyn ToString| RecordsError::Batch { offset, reason: reason.to_string() };
    for view in Batches::of(bytes) {
        let view = view.map_err(|reason| unpack(Offset::ZERO, &reason))?;
        let header = view.header();
        if !header.attributes.is_control() {
            let epoch = header.leader_epoch.unwrap_or(LeaderEpoch::NONE);
            let records =
                view.records(&BatchLimits::default()).map_err(|reason| unpack(header.base_offset, &reason))?;
            for record in &records {
                if visit(&record.map_err(|reason| unpack(header.base_offset, &reason))?, epoch).is_break() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Reads the records at `offsets` (ascending) again and hands them to `visit`. What retention has removed meanwhile is left
/// out. A window is small next to the log: little is read first, more when it does not hold the rest.
pub(super) async fn read_offsets(
    input: &EventInput,
    offsets: &[Offset],
    mut visit: impl FnMut(&StoredRecord<'_>, LeaderEpoch) + Send,
) -> Result<(), RecordsError> {
    let mut wanted = offsets.iter().copied().peekable();
    let mut read_bytes = READ_BYTES_FIRST;
    while let Some(&at) = wanted.peek() {
        if at < input.log_start() {
            wanted.next();
            continue;
        }
        let outcome = input.read(at, read_bytes).await?;
        read_bytes = (read_bytes * 4).min(READ_BYTES);
        if outcome.bytes.is_empty() {
            break;
        }
        for_each_record(&outcome.bytes, |record, epoch| {
            while wanted.next_if(|&offset| offset < record.offset()).is_some() {}
            if wanted.next_if_eq(&record.offset()).is_some() {
                visit(record, epoch);
            }
            if wanted.peek().is_none() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        // Offsets without a record (removed by compaction) are passed over.
        while wanted.next_if(|&offset| offset < outcome.next).is_some() {}
    }
    Ok(())
}

/// What dead letters say besides their record.
#[derive(Debug)]
pub(super) struct DeadLetters<'a> {
    pub(super) trigger: &'a str,
    pub(super) function: &'a str,
    pub(super) origin: &'a Origin,
    pub(super) state: &'a AttemptState,
    /// Bytes after which a batch is full.
    pub(super) batch_bytes: usize,
    pub(super) now_ms: i64,
}

impl DeadLetters<'_> {
    /// The batches for the records at `offsets`, with sequences from 0. The same records give the same batches again: what a
    /// crash interrupted is completed without doubles.
    pub(super) async fn batches(
        &self,
        input: &EventInput,
        offsets: &[Offset],
        producer_id: i64,
    ) -> Result<Vec<CheckedBatch>, RecordsError> {
        let mut batches = Vec::new();
        let mut sequence = 0;
        let options = |base_sequence| BatchOptions {
            producer: Some(BatchProducer { id: producer_id, epoch: 0, base_sequence }),
            ..BatchOptions::default()
        };
        let mut builder = BatchBuilder::new(options(sequence));
        let mut failed = None;
        read_offsets(input, offsets, |record, epoch| {
            let (names, values) = self.headers(record, epoch);
            let headers: Vec<_> = names.iter().map(Vec::as_slice).zip(values.iter().map(Option::as_deref)).collect();
            let letter =
                NewRecord { timestamp_ms: self.now_ms, key: record.key(), value: record.value(), headers: &headers };
            if !builder.is_empty() && builder.size_bytes_with(&letter) > self.batch_bytes {
                let count = builder.record_count();
                sequence += i32::try_from(count).expect("a window has at most 10,000 records");
                let full = std::mem::replace(&mut builder, BatchBuilder::new(options(sequence)));
                batches.push(full.finish());
            }
            if let Err(reason) = builder.push(&letter) {
                failed = Some(RecordsError::Batch { offset: record.offset(), reason: reason.to_string() });
            }
        })
        .await?;
        if let Some(error) = failed {
            return Err(error);
        }
        if !builder.is_empty() {
            batches.push(builder.finish());
        }
        batches
            .into_iter()
            .map(|batch| batch.map_err(|reason| RecordsError::Batch { offset: offsets[0], reason: reason.to_string() }))
            .collect()
    }

    /// The record's headers as they were, then ours; those of an earlier dead letter are replaced.
    pub(super) fn headers(
        &self,
        record: &StoredRecord<'_>,
        epoch: LeaderEpoch,
    ) -> (Vec<Vec<u8>>, Vec<Option<Vec<u8>>>) {
        let was = self.origin.provenance(record, epoch);
        let kept = record.headers().filter(|header| !is_letter_header(header.name));
        let kept = kept.map(|header| (header.name.to_vec(), header.value.map(<[u8]>::to_vec)));
        let error = self.state.last_error.as_ref();
        let facts = DeadLetterFacts {
            trigger: self.trigger,
            function: self.function,
            topic: &was.topic,
            partition: was.partition,
            offset: was.offset,
            timestamp_ms: was.timestamp_ms,
            error_class: error.map_or(ErrorClass::Failed, |error| error.class),
            error_code: error.map_or("", |error| error.code.as_str()),
            error_message: error.map_or("", |error| error.message.as_str()),
            attempts: self.state.attempts,
            first_attempt_ms: self.state.first_attempt_ms.unwrap_or(-1),
            last_attempt_ms: self.state.last_attempt_ms.unwrap_or(-1),
            redrives: was.redrives,
            leader_epoch: was.leader_epoch,
        };
        let ours = facts.headers().into_iter().map(|(name, value)| (name.as_bytes().to_vec(), Some(value)));
        kept.chain(ours).unzip()
    }
}
