//! From bytes of a stranger to a batch that may be appended.

use bytes::{Bytes, BytesMut};

use super::codec::Decoder;
use super::header::{
    ATTRIBUTES_AT, BASE_OFFSET_AT, BASE_SEQUENCE_AT, BATCH_LENGTH_AT, CRC_AT, LEADER_EPOCH_AT, MAX_TIMESTAMP_AT,
    NO_TIMESTAMP_MS, PATCHED_BYTES, PRODUCER_EPOCH_AT, PRODUCER_ID_AT,
};
use super::record::{Input, ParsedRecord, RECORD_BYTES_MIN, RecordFault, SliceInput, StreamInput, parse_record};
use super::record_set::{left_over, record_timestamp_ms};
use super::skim::{Skimmed, skim};
use super::{BatchError, BatchHeader, BatchLimits, BatchProducer, BatchView, Compression, TimestampType, crc32c};
use crate::offset::{LeaderEpoch, Offset};

/// How deep a batch is looked into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Validation {
    /// Header, CRC and every record, compressed ones through a stream.
    #[default]
    Records,
    /// Header and CRC. A malformed record then shows only when it is read.
    Header,
}

/// One whole batch that may be appended: it has passed [`CheckedBatch::check`], or was built here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedBatch {
    header: BatchHeader,
    bytes: Bytes,
}

impl CheckedBatch {
    /// Checks that `bytes` are exactly one batch as a producer may send it.
    ///
    /// Fields that clients fill differently are taken as Kafka takes them: without a producer id, epoch and sequence
    /// mean nothing; a greatest timestamp that is not that of the records is corrected (with [`Validation::Records`]
    /// only), which costs one copy and one hash. Otherwise nothing is copied, and an uncompressed batch is checked
    /// without allocating.
    ///
    /// # Errors
    /// [`BatchError`], of which [`BatchError::TooLarge`], [`BatchError::UnsupportedMagic`] and [`BatchError::Crc`] have
    /// their own codes on the wire and the others mean a malformed batch.
    pub fn check(bytes: Bytes, limits: &BatchLimits, validation: Validation) -> Result<Self, BatchError> {
        check_size(bytes.len(), limits)?;
        let (view, rest) = BatchView::parse(&bytes)?;
        if !rest.is_empty() {
            return Err(BatchError::TrailingBytes { found_bytes: rest.len() });
        }
        check_header(&view, limits)?;
        view.verify_crc()?;
        let header = *view.header();
        let max_timestamp_ms = match validation {
            Validation::Records => walk(&view, limits)?,
            Validation::Header => header.max_timestamp_ms,
        };
        let checked = Self { header, bytes };
        if max_timestamp_ms == header.max_timestamp_ms {
            return Ok(checked);
        }
        Ok(checked.restamped(BatchHeader { max_timestamp_ms, ..header }))
    }

    /// A batch that was built here and is valid by construction.
    pub(super) fn of_built(header: BatchHeader, bytes: Bytes) -> Self {
        debug_assert_eq!(header.size_bytes(), bytes.len());
        Self { header, bytes }
    }

    /// The decoded header. Base offset and leader epoch are the producer's until the batch is appended.
    #[must_use]
    pub const fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The batch as it came (but for a corrected timestamp).
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The size of the batch in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// A view for reading the records.
    #[must_use]
    pub fn view(&self) -> BatchView<'_> {
        BatchView::of_parsed(self.header, &self.bytes)
    }

    /// The batch in two parts to be written one behind the other: the first bytes with the offset and epoch it is
    /// given, and the rest as it is. The CRC does not cover the first part and stays true.
    #[must_use]
    pub fn write_parts(&self, base_offset: Offset, leader_epoch: LeaderEpoch) -> ([u8; PATCHED_BYTES], &[u8]) {
        let mut front = [0; PATCHED_BYTES];
        front[BASE_OFFSET_AT..BATCH_LENGTH_AT].copy_from_slice(&base_offset.get().to_be_bytes());
        front[BATCH_LENGTH_AT..LEADER_EPOCH_AT].copy_from_slice(&self.header.batch_length.to_be_bytes());
        front[LEADER_EPOCH_AT..].copy_from_slice(&leader_epoch.get().to_be_bytes());
        (front, &self.bytes[PATCHED_BYTES..])
    }

    /// The batch as it will stand in the log, in one copy.
    #[must_use]
    pub fn appended_bytes(&self, base_offset: Offset, leader_epoch: LeaderEpoch) -> Bytes {
        let (front, rest) = self.write_parts(base_offset, leader_epoch);
        [&front, rest].concat().into()
    }

    /// The same batch with the broker's time on every record: copied and hashed anew, because the CRC covers both
    /// fields.
    #[must_use]
    pub fn with_append_time(&self, now_ms: i64) -> Self {
        let attributes = self.header.attributes.with_append_time();
        self.restamped(BatchHeader { attributes, max_timestamp_ms: now_ms, ..self.header })
    }

    /// The same batch as one of an idempotent producer, copied and hashed anew.
    #[must_use]
    pub fn produced_by(&self, producer: BatchProducer) -> Self {
        debug_assert!(producer.base_sequence >= 0, "records count up from a sequence of 0 or more");
        let BatchProducer { id: producer_id, epoch: producer_epoch, base_sequence } = producer;
        self.restamped(BatchHeader { producer_id, producer_epoch, base_sequence, ..self.header })
    }

    /// Puts attributes, greatest timestamp and producer of `header` into a copy.
    fn restamped(&self, mut header: BatchHeader) -> Self {
        let mut bytes = BytesMut::from(&self.bytes[..]);
        patch(&mut bytes, ATTRIBUTES_AT, &header.attributes.bits().to_be_bytes());
        patch(&mut bytes, MAX_TIMESTAMP_AT, &header.max_timestamp_ms.to_be_bytes());
        patch(&mut bytes, PRODUCER_ID_AT, &header.producer_id.to_be_bytes());
        patch(&mut bytes, PRODUCER_EPOCH_AT, &header.producer_epoch.to_be_bytes());
        patch(&mut bytes, BASE_SEQUENCE_AT, &header.base_sequence.to_be_bytes());
        header.crc = crc32c(&bytes[ATTRIBUTES_AT..]);
        patch(&mut bytes, CRC_AT, &header.crc.to_be_bytes());
        Self { header, bytes: bytes.freeze() }
    }
}

fn patch(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

fn check_size(size_bytes: usize, limits: &BatchLimits) -> Result<(), BatchError> {
    let limit_bytes = limits.batch_bytes_max;
    if size_bytes > limit_bytes { Err(BatchError::TooLarge { size_bytes, limit_bytes }) } else { Ok(()) }
}

/// What a producer may put into a header, beyond what a batch of the log may have.
fn check_header(view: &BatchView<'_>, limits: &BatchLimits) -> Result<(), BatchError> {
    let header = view.header();
    check_attributes(header)?;
    check_counts(header, view.payload().len(), limits)?;
    check_producer(header)?;
    for (field, found) in [("base_timestamp", header.base_timestamp_ms), ("max_timestamp", header.max_timestamp_ms)] {
        require(found >= NO_TIMESTAMP_MS, field, found, "-1 (none) or milliseconds since 1970")?;
    }
    Ok(())
}

fn check_attributes(header: &BatchHeader) -> Result<(), BatchError> {
    let attributes = header.attributes;
    let found = i64::from(attributes.bits());
    require(!attributes.is_control(), "attributes", found, "no control bit (5) from a producer")?;
    require(attributes.reserved_bits() == 0, "attributes", found, "bits 7 to 15 are 0")?;
    require(!attributes.has_delete_horizon(), "attributes", found, "no delete horizon (bit 6) from a producer")?;
    let by_producer = attributes.timestamp_type() == TimestampType::CreateTime;
    require(by_producer, "attributes", found, "no LogAppendTime (bit 3) from a producer")?;
    let producer_known = !attributes.is_transactional() || header.producer().is_some();
    require(producer_known, "attributes", found, "transactional (bit 4) with a producer id only")
}

/// The count is compared with the room there is, so that it can be believed even when the records are not walked.
fn check_counts(header: &BatchHeader, payload_bytes: usize, limits: &BatchLimits) -> Result<(), BatchError> {
    let count = header.record_count;
    let room_bytes = match header.attributes.compression() {
        Compression::None => payload_bytes,
        _ => limits.decompressed_bytes_max,
    };
    let fits = count.unsigned_abs() as usize <= room_bytes / RECORD_BYTES_MIN;
    require(count >= 1 && fits, "record_count", i64::from(count), "1 to what the batch has room for")?;
    let delta = header.last_offset_delta;
    require(delta == count - 1, "last_offset_delta", i64::from(delta), "record_count - 1")
}

fn check_producer(header: &BatchHeader) -> Result<(), BatchError> {
    require(header.producer_id >= -1, "producer_id", header.producer_id, "-1 (none) or more")?;
    let Some(producer) = header.producer() else { return Ok(()) };
    require(producer.epoch >= 0, "producer_epoch", i64::from(producer.epoch), "0 to 32767 with a producer id")?;
    let sequence = producer.base_sequence;
    require(sequence >= 0, "base_sequence", i64::from(sequence), "0 to 2147483647 with a producer id")
}

fn require(holds: bool, field: &'static str, found: i64, allowed: &'static str) -> Result<(), BatchError> {
    if holds { Ok(()) } else { Err(BatchError::Field { field, found, allowed }) }
}

/// Goes through every record and returns the greatest timestamp.
fn walk(view: &BatchView<'_>, limits: &BatchLimits) -> Result<i64, BatchError> {
    match view.header().attributes.compression() {
        Compression::None => walk_slice(view),
        compression => walk_stream(view.header(), Decoder::new(compression, view.payload(), limits)?),
    }
}

fn walk_slice(view: &BatchView<'_>) -> Result<i64, BatchError> {
    let header = view.header();
    let mut bytes = view.payload();
    let mut max_timestamp_ms = NO_TIMESTAMP_MS;
    for index in 0..header.record_count {
        let walked = match skim(&mut bytes) {
            Some(skimmed) => accept(header, skimmed, index),
            None => {
                let mut input = SliceInput::new(bytes);
                let walked = walk_record(header, &mut input, index);
                bytes = &bytes[input.position()..];
                walked
            }
        };
        let timestamp_ms = walked.map_err(|fault| BatchError::Record { index: index.unsigned_abs(), fault })?;
        max_timestamp_ms = max_timestamp_ms.max(timestamp_ms);
    }
    match bytes.len() {
        0 => Ok(max_timestamp_ms),
        found_bytes => Err(left_over(found_bytes)),
    }
}

/// A fault that follows from the stream's end is reported as what ended the stream.
fn walk_stream(header: &BatchHeader, decoder: Decoder<'_>) -> Result<i64, BatchError> {
    let mut input = StreamInput::new(decoder);
    let walked = walk_records(header, &mut input);
    if let Some(error) = input.error() {
        return Err(error.into());
    }
    let max_timestamp_ms = walked?;
    if input.finish()? { Ok(max_timestamp_ms) } else { Err(left_over(1)) }
}

fn walk_records<I: Input>(header: &BatchHeader, input: &mut I) -> Result<i64, BatchError> {
    let mut max_timestamp_ms = NO_TIMESTAMP_MS;
    for index in 0..header.record_count {
        let timestamp_ms = walk_record(header, input, index)
            .map_err(|fault| BatchError::Record { index: index.unsigned_abs(), fault })?;
        max_timestamp_ms = max_timestamp_ms.max(timestamp_ms);
    }
    Ok(max_timestamp_ms)
}

#[inline]
fn walk_record<I: Input>(header: &BatchHeader, input: &mut I, index: i32) -> Result<i64, RecordFault> {
    let ParsedRecord { timestamp_delta_ms, offset_delta, .. } = parse_record(input)?;
    accept(header, Skimmed { timestamp_delta_ms, offset_delta }, index)
}

/// Checks what a well-formed record says against its batch and its place there; answers its timestamp.
#[inline]
fn accept(header: &BatchHeader, record: Skimmed, index: i32) -> Result<i64, RecordFault> {
    if record.offset_delta != index {
        let found = i64::from(record.offset_delta);
        return Err(RecordFault::Field { field: "offset_delta", found, allowed: "the record's place in the batch" });
    }
    let timestamp_ms = record_timestamp_ms(header, record.timestamp_delta_ms)?;
    if timestamp_ms < NO_TIMESTAMP_MS {
        let allowed = "-1 (none) or milliseconds since 1970";
        return Err(RecordFault::Field { field: "timestamp", found: timestamp_ms, allowed });
    }
    Ok(timestamp_ms)
}
