//! Records out of the log, and dead letters into it.

use std::ops::{ControlFlow, Range};

use tripline_storage::batch::{
    BatchBuilder, BatchError, BatchHeader, BatchLimits, BatchOptions, BatchProducer, BatchView, Batches, CheckedBatch,
    NewRecord, RecordView as StoredRecord,
};
use tripline_storage::error::ReadError;
use tripline_storage::partition::ReadOutcome;
use tripline_storage::producer::ProducerDescription;
use tripline_storage::{LeaderEpoch, Offset};

use super::attempt::AttemptState;
use super::dead_letter::DeadLetterFacts;
use super::window::Spot;
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
    #[error("nothing was answered at offset {at}, though the tail is {tail}")]
    Nothing { at: Offset, tail: Offset },
    #[error("the batch at offset {} does not unpack: {reason}", offsets.start)]
    Batch { offsets: Range<Offset>, reason: String },
    #[error("what was read is no record batch: {0}")]
    Frame(BatchError),
}

impl RecordsError {
    /// The records that cannot be read, now or later, unless somebody repairs them.
    pub(super) fn damaged(&self) -> Option<Range<Offset>> {
        match self {
            Self::Read(ReadError::Damaged { from, to }) => Some(*from..*to),
            Self::Batch { offsets, .. } => Some(offsets.clone()),
            Self::Read(_) | Self::Nothing { .. } | Self::Frame(_) => None,
        }
    }
}

/// What records of this batch say as their leader epoch.
pub(super) fn epoch_of(header: &BatchHeader) -> LeaderEpoch {
    header.leader_epoch.unwrap_or(LeaderEpoch::NONE)
}

fn in_batch(header: &BatchHeader) -> impl Fn(BatchError) -> RecordsError {
    let offsets = header.base_offset..header.last_offset().next();
    move |reason| RecordsError::Batch { offsets: offsets.clone(), reason: reason.to_string() }
}

/// The batches of these bytes that lie below an offset.
pub(super) fn below(bytes: &[u8], offset: Offset) -> &[u8] {
    let whole = Batches::of(bytes).map_while(Result::ok).take_while(|view| view.header().last_offset() < offset);
    &bytes[..whole.map(|view| view.bytes().len()).sum()]
}

/// Whole batches, those of transaction markers left out.
fn batches(bytes: &[u8]) -> impl Iterator<Item = Result<BatchView<'_>, RecordsError>> {
    let views = Batches::of(bytes).map(|view| view.map_err(RecordsError::Frame));
    views.filter(|view| view.as_ref().map_or(true, |view| !view.header().attributes.is_control()))
}

/// Hands the records of whole batches to `visit`, with the header of their batch, those of transaction markers left
/// out, until it breaks off.
pub(super) fn for_each_record(
    bytes: &[u8],
    mut visit: impl FnMut(&StoredRecord<'_>, &BatchHeader) -> ControlFlow<()>,
) -> Result<(), RecordsError> {
    for view in batches(bytes) {
        let view = view?;
        let header = view.header();
        let records = view.records(&BatchLimits::default()).map_err(in_batch(header))?;
        for record in &records {
            if visit(&record.map_err(in_batch(header))?, header).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Reads the records at `offsets` (ascending) again and hands them to `visit`. What retention has removed meanwhile is
/// left out. `spots` says where each was found, as far as that is known: those before it in its batch are not walked
/// over then. A window is small next to the log: little is read first, more when it does not hold the rest.
pub(super) async fn read_offsets(
    input: &EventInput,
    offsets: &[Offset],
    spots: &[Spot],
    mut visit: impl FnMut(&StoredRecord<'_>, LeaderEpoch) + Send,
) -> Result<(), RecordsError> {
    let spots = spots.iter().copied().chain(std::iter::repeat(Spot::UNKNOWN));
    let wanted: Vec<(Offset, Spot)> = offsets.iter().copied().zip(spots).collect();
    let mut wanted = &wanted[..];
    let mut read_bytes = READ_BYTES_FIRST;
    while let Some(&(at, _)) = wanted.first() {
        if at < input.log_start() {
            wanted = &wanted[1..];
            continue;
        }
        let outcome = input.read(at, read_bytes).await?;
        read_bytes = (read_bytes * 4).min(READ_BYTES);
        if brought_nothing(&outcome, at)? {
            break;
        }
        // Offsets without a record (removed by compaction) are passed over.
        let (here, rest) = wanted.split_at(wanted.partition_point(|(offset, _)| *offset < outcome.next));
        wanted = rest;
        visit_wanted(&outcome.bytes, here, &mut visit)?;
    }
    Ok(())
}

/// Whether a read from `at` on says that there is nothing any more.
///
/// # Errors
/// There should be something: a cluster's broker may answer without records for reasons of its own, which says nothing
/// about them.
fn brought_nothing(outcome: &ReadOutcome, at: Offset) -> Result<bool, RecordsError> {
    // What was passed over and left out is not there.
    if !outcome.bytes.is_empty() || outcome.next > at {
        return Ok(false);
    }
    if at < outcome.tail {
        return Err(RecordsError::Nothing { at, tail: outcome.tail });
    }
    Ok(true)
}

/// Hands those of `wanted` that are in these batches to `visit`.
fn visit_wanted(
    bytes: &[u8],
    mut wanted: &[(Offset, Spot)],
    visit: &mut impl FnMut(&StoredRecord<'_>, LeaderEpoch),
) -> Result<(), RecordsError> {
    for view in batches(bytes) {
        let view = view?;
        let header = view.header();
        let (here, rest) = wanted.split_at(wanted.partition_point(|(offset, _)| *offset <= header.last_offset()));
        wanted = rest;
        let here = &here[here.partition_point(|(offset, _)| *offset < header.base_offset)..];
        if here.is_empty() {
            if wanted.is_empty() {
                break;
            }
            continue;
        }
        let epoch = epoch_of(header);
        let records = view.records(&BatchLimits::default()).map_err(in_batch(header))?;
        let mut walk = records.iter().peekable();
        for &(offset, spot) in here {
            let found = spot.position_in(header.crc).and_then(|position| records.record_at(position).ok());
            if let Some(record) = found.filter(|record| record.offset() == offset) {
                visit(&record, epoch);
                continue;
            }
            while walk.next_if(|record| record.as_ref().is_ok_and(|record| record.offset() < offset)).is_some() {}
            match walk.peek() {
                Some(Ok(record)) if record.offset() == offset => visit(record, epoch),
                Some(Err(reason)) => return Err(in_batch(header)(reason.clone())),
                _ => {}
            }
        }
    }
    Ok(())
}

/// How many records of a verdict, from its first on, have their letters or need none: this is what the partition
/// remembers of the producer of its letters.
pub(super) fn letters_there(producer: &ProducerDescription) -> usize {
    letters_to(producer.epoch.into(), producer.last_sequence)
}

/// The same, by the epoch of the producer and the sequence of its last record in it.
pub(super) fn letters_to(epoch: i32, last_sequence: Option<i32>) -> usize {
    let in_batch = last_sequence.map_or(0, |last| last.saturating_add(1));
    usize::try_from(epoch.saturating_add(in_batch)).unwrap_or(0)
}

fn finished(builder: BatchBuilder) -> Option<CheckedBatch> {
    (!builder.is_empty()).then(|| builder.finish().expect("what has records and is not compressed can be finished"))
}

/// More than is said about a record in its letter, in bytes: names of at most 250, a URL of a few thousand, a message
/// of 1 KiB.
const ABOUT_BYTES_MAX: usize = 64 << 10;

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
    /// The batches for these records of a verdict, each with its number in there, ascending. What is not there any more
    /// is left out.
    ///
    /// A batch's producer epoch is the number of its first record, its sequences count from 0: so its place in the
    /// verdict is said by itself, whatever is missing before it, and what comes next may always follow. See
    /// [`letters_there`].
    pub(super) async fn batches(
        &self,
        input: &EventInput,
        numbered: &[(i16, Offset)],
        producer_id: i64,
    ) -> Result<Vec<CheckedBatch>, RecordsError> {
        let mut batches = Vec::new();
        let options = |epoch| BatchOptions {
            producer: Some(BatchProducer { id: producer_id, epoch, base_sequence: 0 }),
            // A record may be as large as what can be read, and goes on with our headers.
            room_bytes: ABOUT_BYTES_MAX,
            ..BatchOptions::default()
        };
        let offsets: Vec<Offset> = numbered.iter().map(|(_, offset)| *offset).collect();
        let mut builder = BatchBuilder::new(options(0));
        let mut next = 0;
        let mut failed = None;
        read_offsets(input, &offsets, &[], |record, epoch| {
            let index = offsets.binary_search(&record.offset()).expect("only what was asked for is visited");
            let number = numbered[index].0;
            let (names, values) = self.headers(record, epoch);
            let headers: Vec<_> = names.iter().map(Vec::as_slice).zip(values.iter().map(Option::as_deref)).collect();
            let letter =
                NewRecord { timestamp_ms: self.now_ms, key: record.key(), value: record.value(), headers: &headers };
            let begins = builder.is_empty() || number != next;
            if begins || builder.size_bytes_with(&letter) > self.batch_bytes {
                let full = std::mem::replace(&mut builder, BatchBuilder::new(options(number)));
                batches.extend(finished(full));
            }
            next = number + 1;
            if let Err(reason) = builder.push(&letter) {
                let offsets = record.offset()..record.offset().next();
                failed = Some(RecordsError::Batch { offsets, reason: reason.to_string() });
            }
        })
        .await?;
        if let Some(error) = failed {
            return Err(error);
        }
        batches.extend(finished(builder));
        Ok(batches)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Five records from this offset on.
    fn batch(base: u64) -> Vec<u8> {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for number in 0..5 {
            let value = format!("{{\"number\":{}}}", base + number);
            let record = NewRecord {
                timestamp_ms: 1_700_000_000_000,
                key: Some(b"k"),
                value: Some(value.as_bytes()),
                headers: &[],
            };
            builder.push(&record).unwrap();
        }
        let mut bytes = builder.finish().unwrap().bytes().to_vec();
        bytes[..8].copy_from_slice(&base.to_be_bytes());
        bytes
    }

    fn offset(at: i64) -> Offset {
        Offset::new(at).unwrap()
    }

    /// What is found at these offsets, as texts.
    fn found(bytes: &[u8], wanted: &[(Offset, Spot)]) -> Vec<(i64, String)> {
        let mut found = Vec::new();
        visit_wanted(bytes, wanted, &mut |record: &StoredRecord<'_>, _| {
            found.push((record.offset().get(), String::from_utf8(record.value().unwrap().to_vec()).unwrap()));
        })
        .unwrap();
        found
    }

    #[test]
    fn a_record_is_found_whatever_is_known_of_its_place() {
        let bytes = [batch(10), batch(20), batch(30)].concat();
        let mut spots = Vec::new();
        for_each_record(&bytes, |record, header| {
            spots.push((record.offset(), Spot::new(header.crc, record.position())));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(spots.len(), 15);
        let crc_of = |at: usize| Batches::of(&bytes).nth(at).unwrap().unwrap().header().crc;
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..2_000 {
            let mut wanted = Vec::new();
            for &(offset, spot) in &spots {
                let stale = Spot::new(crc_of(0) ^ 1, 0);
                let beside = Spot::new(crc_of((offset.get() / 10 - 1) as usize), random.usize(..200));
                let spot = [spot, Spot::UNKNOWN, stale, beside][random.usize(..4)];
                if random.bool() {
                    wanted.push((offset, spot));
                }
            }
            let expected: Vec<(i64, String)> =
                wanted.iter().map(|(offset, _)| (offset.get(), format!("{{\"number\":{offset}}}"))).collect();
            assert_eq!(found(&bytes, &wanted), expected);
        }
    }

    #[test]
    fn an_empty_answer_is_the_end_only_at_the_tail() {
        let read = |bytes: &'static [u8], next, tail| ReadOutcome {
            bytes: bytes.into(),
            next: offset(next),
            tail: offset(tail),
            log_start: Offset::ZERO,
        };
        assert!(matches!(brought_nothing(&read(b"", 5, 9), offset(5)), Err(RecordsError::Nothing { .. })));
        assert!(brought_nothing(&read(b"", 9, 9), offset(9)).unwrap());
        // Records of an aborted transaction are left out.
        assert!(!brought_nothing(&read(b"", 9, 9), offset(5)).unwrap());
        assert!(!brought_nothing(&read(b"batch", 7, 9), offset(5)).unwrap());
    }

    #[test]
    fn where_no_record_is_nothing_is_found() {
        let bytes = [batch(10), batch(20)].concat();
        let wanted = [5, 15, 17, 22, 40].map(|at| (offset(at), Spot::UNKNOWN));
        assert_eq!(found(&bytes, &wanted), [(22, "{\"number\":22}".to_owned())]);
    }
}
