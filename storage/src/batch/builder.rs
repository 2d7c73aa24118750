//! Builds batches: for records that arrive over HTTP, results of functions, dead letters and control records.

use bytes::Bytes;

use super::header::{ATTRIBUTES_AT, BATCH_LENGTH_MIN, CRC_AT, HEADER_BYTES, NO_TIMESTAMP_MS};
use super::{
    Attributes, BatchHeader, BatchLimits, BatchProducer, CheckedBatch, CodecError, Compression, codec, crc32c, varint,
};
use crate::offset::Offset;

/// A record to be put into a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewRecord<'a> {
    /// Milliseconds since 1970, or −1 for none.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Names and values, kept in order; names may repeat.
    pub headers: &'a [(&'a [u8], Option<&'a [u8]>)],
}

/// What holds for a whole batch. The default is an uncompressed batch without a producer id.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchOptions {
    /// How the records are compressed.
    pub compression: Compression,
    /// The idempotent producer and the sequence of the first record.
    pub producer: Option<BatchProducer>,
    /// Whether the batch belongs to a transaction.
    pub transactional: bool,
    /// Room for records beyond [`BatchBuilder::RECORD_BYTES_MAX`], in bytes: for a record that was read and goes on
    /// with more headers. What is compressed could not be read back then.
    pub room_bytes: usize,
    /// Whether the records are control records. Such a batch is for the log only: a producer's would be refused.
    pub control: bool,
}

/// Why a batch cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A batch holds at least one record.
    #[error("the batch has no records, allowed is 1 or more")]
    Empty,
    /// The record does not fit into a batch that can still be read back.
    #[error("the records would take {size_bytes} bytes, allowed are {limit_bytes}")]
    TooLarge {
        /// The size with this record, not compressed.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A timestamp below −1, or too far from the first record's.
    #[error("timestamp is {found_ms} ms, allowed is -1 (none) or milliseconds since 1970")]
    Timestamp {
        /// The timestamp.
        found_ms: i64,
    },
    /// The compressor failed.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// How a transaction ended: the content of its control record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionResult {
    /// Its records are void.
    Abort = 0,
    /// Its records count.
    Commit = 1,
}

/// Collects records and makes one valid batch of them.
#[derive(Debug)]
pub struct BatchBuilder {
    options: BatchOptions,
    /// Room for the header, then the records, not compressed.
    bytes: Vec<u8>,
    record_count: i32,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
}

impl BatchBuilder {
    /// The most bytes of records, not compressed: what the default limits allow to be unpacked again.
    pub const RECORD_BYTES_MAX: usize = BatchLimits::DECOMPRESSED_BYTES_MAX;

    /// A builder without records.
    #[must_use]
    pub fn new(options: BatchOptions) -> Self {
        let sequence_fits = options.producer.is_none_or(|producer| (producer.base_sequence >= 0) != options.control);
        debug_assert!(options.room_bytes == 0 || options.compression == Compression::None, "it can be read back");
        debug_assert!(sequence_fits, "records count up from a sequence of 0 or more, control records have none");
        Self {
            options,
            bytes: vec![0; HEADER_BYTES],
            record_count: 0,
            base_timestamp_ms: NO_TIMESTAMP_MS,
            max_timestamp_ms: NO_TIMESTAMP_MS,
        }
    }

    /// How many records were pushed.
    #[must_use]
    pub const fn record_count(&self) -> u32 {
        self.record_count.unsigned_abs()
    }

    /// Whether no record was pushed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// The size of the batch as it is now, not compressed.
    #[must_use]
    pub const fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The size that the batch would have with `record`, not compressed: what to compare with a limit before pushing.
    /// Exact for a record that can be pushed.
    #[must_use]
    pub fn size_bytes_with(&self, record: &NewRecord<'_>) -> usize {
        let delta_ms = record.timestamp_ms.saturating_sub(self.base_timestamp_ms_with(record));
        let length = record_length(record, delta_ms, self.record_count);
        self.size_bytes().saturating_add(varint::size_bytes(size_i64(length))).saturating_add(length)
    }

    /// Adds a record behind the others. After an error the builder is as before.
    ///
    /// # Errors
    /// [`BuildError::Timestamp`] and [`BuildError::TooLarge`].
    pub fn push(&mut self, record: &NewRecord<'_>) -> Result<(), BuildError> {
        let base_timestamp_ms = self.base_timestamp_ms_with(record);
        let delta_ms = record
            .timestamp_ms
            .checked_sub(base_timestamp_ms)
            .filter(|_| record.timestamp_ms >= NO_TIMESTAMP_MS)
            .ok_or(BuildError::Timestamp { found_ms: record.timestamp_ms })?;
        let size_bytes = self.size_bytes_with(record) - HEADER_BYTES;
        let limit_bytes = Self::RECORD_BYTES_MAX + self.options.room_bytes;
        if size_bytes > limit_bytes {
            return Err(BuildError::TooLarge { size_bytes, limit_bytes });
        }
        self.base_timestamp_ms = base_timestamp_ms;
        self.max_timestamp_ms = self.max_timestamp_ms.max(record.timestamp_ms);
        put_record(&mut self.bytes, record, delta_ms, self.record_count);
        self.record_count += 1;
        debug_assert_eq!(self.bytes.len() - HEADER_BYTES, size_bytes);
        Ok(())
    }

    /// The batch, with base offset 0 and no leader epoch.
    ///
    /// # Errors
    /// [`BuildError::Empty`] without a record; [`BuildError::Codec`] when the compressor fails.
    pub fn finish(mut self) -> Result<CheckedBatch, BuildError> {
        if self.is_empty() {
            return Err(BuildError::Empty);
        }
        if self.options.compression != Compression::None {
            let records = self.bytes.split_off(HEADER_BYTES);
            codec::compress(self.options.compression, &records, &mut self.bytes)?;
        }
        let mut header = self.header();
        self.bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        header.crc = crc32c(&self.bytes[ATTRIBUTES_AT..]);
        self.bytes[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&header.crc.to_be_bytes());
        Ok(CheckedBatch::of_built(header, Bytes::from(self.bytes)))
    }

    /// The control batch that ends a transaction: one record, key = version and type, value = version and the epoch of
    /// the coordinator.
    #[must_use]
    pub fn transaction_end(
        producer_id: i64,
        producer_epoch: i16,
        result: TransactionResult,
        coordinator_epoch: i32,
        timestamp_ms: i64,
    ) -> CheckedBatch {
        let producer = BatchProducer { id: producer_id, epoch: producer_epoch, base_sequence: -1 };
        let mut builder = Self::new(BatchOptions {
            producer: Some(producer),
            transactional: true,
            control: true,
            ..BatchOptions::default()
        });
        let [_, result] = (result as i16).to_be_bytes();
        let [a, b, c, d] = coordinator_epoch.to_be_bytes();
        let record = NewRecord {
            timestamp_ms: timestamp_ms.max(NO_TIMESTAMP_MS),
            key: Some(&[0, 0, 0, result]),
            value: Some(&[0, 0, a, b, c, d]),
            headers: &[],
        };
        builder.push(&record).expect("the record is small and its timestamp allowed");
        builder.finish().expect("one record that is not compressed")
    }

    /// Timestamps count from the first record's.
    const fn base_timestamp_ms_with(&self, record: &NewRecord<'_>) -> i64 {
        if self.is_empty() { record.timestamp_ms } else { self.base_timestamp_ms }
    }

    fn header(&self) -> BatchHeader {
        let payload_bytes =
            i32::try_from(self.bytes.len() - HEADER_BYTES).expect("records stay below 32 MiB, packed too");
        let producer = self.options.producer.unwrap_or(BatchProducer { id: -1, epoch: -1, base_sequence: -1 });
        BatchHeader {
            base_offset: Offset::ZERO,
            batch_length: BATCH_LENGTH_MIN + payload_bytes,
            leader_epoch: None,
            crc: 0,
            attributes: self.attributes(),
            last_offset_delta: self.record_count - 1,
            base_timestamp_ms: self.base_timestamp_ms,
            max_timestamp_ms: self.max_timestamp_ms,
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            base_sequence: producer.base_sequence,
            record_count: self.record_count,
        }
    }

    const fn attributes(&self) -> Attributes {
        let mut attributes = Attributes::new(self.options.compression);
        if self.options.transactional {
            attributes = attributes.with_transactional();
        }
        if self.options.control {
            attributes = attributes.with_control();
        }
        attributes
    }
}

/// What the record's length says: everything behind the length.
fn record_length(record: &NewRecord<'_>, delta_ms: i64, offset_delta: i32) -> usize {
    let headers = record.headers.iter().map(|(name, value)| piece_bytes(Some(name)) + piece_bytes(*value));
    1 + varint::size_bytes(delta_ms)
        + varint::size_bytes(i64::from(offset_delta))
        + piece_bytes(record.key)
        + piece_bytes(record.value)
        + varint::size_bytes(size_i64(record.headers.len()))
        + headers.sum::<usize>()
}

fn piece_bytes(piece: Option<&[u8]>) -> usize {
    piece.map_or(1, |piece| varint::size_bytes(size_i64(piece.len())) + piece.len())
}

fn put_record(out: &mut Vec<u8>, record: &NewRecord<'_>, delta_ms: i64, offset_delta: i32) {
    let length = record_length(record, delta_ms, offset_delta);
    out.reserve(length + varint::VARINT_BYTES_MAX);
    varint::put_i64(out, size_i64(length));
    out.push(0);
    varint::put_i64(out, delta_ms);
    varint::put_i64(out, i64::from(offset_delta));
    put_piece(out, record.key);
    put_piece(out, record.value);
    varint::put_i64(out, size_i64(record.headers.len()));
    for (name, value) in record.headers {
        put_piece(out, Some(name));
        put_piece(out, *value);
    }
}

fn put_piece(out: &mut Vec<u8>, piece: Option<&[u8]>) {
    let Some(piece) = piece else { return varint::put_i64(out, -1) };
    varint::put_i64(out, size_i64(piece.len()));
    out.extend_from_slice(piece);
}

fn size_i64(size: usize) -> i64 {
    i64::try_from(size).expect("no object in memory reaches 2^63 bytes")
}
