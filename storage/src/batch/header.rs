//! The 61 bytes at the front of every record batch, version 2, big-endian as on the wire.
//!
//! Base offset, batch length, leader epoch and magic lie outside the CRC: assigning an offset is a patch of 12 bytes
//! without a new hash. Everything from the attributes to the end of the batch lies inside it.

use std::fmt;

use super::{BatchError, Compression};
use crate::offset::{LeaderEpoch, Offset};

/// Where the base offset stands: i64.
pub const BASE_OFFSET_AT: usize = 0;
/// Where the batch length stands: i32, the bytes after this field.
pub const BATCH_LENGTH_AT: usize = BASE_OFFSET_AT + size_of::<i64>();
/// Where the leader epoch stands: i32.
pub const LEADER_EPOCH_AT: usize = BATCH_LENGTH_AT + size_of::<i32>();
/// Where the magic stands: i8, always 2.
pub const MAGIC_AT: usize = LEADER_EPOCH_AT + size_of::<i32>();
/// Where the CRC-32C stands: u32 over everything from the attributes on.
pub const CRC_AT: usize = MAGIC_AT + size_of::<i8>();
/// Where the attributes stand: i16.
pub const ATTRIBUTES_AT: usize = CRC_AT + size_of::<u32>();
/// Where the last offset delta stands: i32.
pub const LAST_OFFSET_DELTA_AT: usize = ATTRIBUTES_AT + size_of::<i16>();
/// Where the base timestamp stands: i64, milliseconds since 1970.
pub const BASE_TIMESTAMP_AT: usize = LAST_OFFSET_DELTA_AT + size_of::<i32>();
/// Where the greatest timestamp stands: i64, milliseconds since 1970.
pub const MAX_TIMESTAMP_AT: usize = BASE_TIMESTAMP_AT + size_of::<i64>();
/// Where the producer id stands: i64, −1 for none.
pub const PRODUCER_ID_AT: usize = MAX_TIMESTAMP_AT + size_of::<i64>();
/// Where the producer epoch stands: i16.
pub const PRODUCER_EPOCH_AT: usize = PRODUCER_ID_AT + size_of::<i64>();
/// Where the base sequence stands: i32.
pub const BASE_SEQUENCE_AT: usize = PRODUCER_EPOCH_AT + size_of::<i16>();
/// Where the record count stands: i32.
pub const RECORD_COUNT_AT: usize = BASE_SEQUENCE_AT + size_of::<i32>();
/// The size of the header: the records start here.
pub const HEADER_BYTES: usize = RECORD_COUNT_AT + size_of::<i32>();

/// The bytes that the batch length does not count: base offset and the length itself.
pub const LENGTH_PREFIX_BYTES: usize = LEADER_EPOCH_AT;
/// The smallest batch length: a header without a record.
pub const BATCH_LENGTH_MIN: i32 = (HEADER_BYTES - LENGTH_PREFIX_BYTES) as i32;
/// The bytes that an append rewrites: base offset, length (unchanged) and leader epoch.
pub const PATCHED_BYTES: usize = MAGIC_AT;
/// The one magic that is stored.
pub const MAGIC: i8 = 2;
/// "No timestamp", the smallest one allowed.
pub const NO_TIMESTAMP_MS: i64 = -1;

const _: () = assert!(HEADER_BYTES == 61);
const _: () = assert!(CRC_AT == 17);
const _: () = assert!(BATCH_LENGTH_MIN == 49);

/// Who gave a record its timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer; each record has its own.
    CreateTime,
    /// The broker, when it appended; every record has the batch's greatest timestamp.
    LogAppendTime,
}

/// The attribute bits of a batch. Bits 0–2 name the compression, so a value of this type always names a known one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Attributes(i16);

impl Attributes {
    const COMPRESSION_MASK: i16 = 0b111;
    const APPEND_TIME: i16 = 1 << 3;
    const TRANSACTIONAL: i16 = 1 << 4;
    const CONTROL: i16 = 1 << 5;
    const DELETE_HORIZON: i16 = 1 << 6;
    const RESERVED_MASK: i16 = !0b111_1111;

    /// Attributes with nothing set but the compression.
    #[must_use]
    pub const fn new(compression: Compression) -> Self {
        Self(compression as i16)
    }

    /// Attributes as found in a batch; `None` when bits 0–2 name no compression that exists.
    #[must_use]
    pub const fn from_bits(bits: i16) -> Option<Self> {
        match Compression::from_id(bits & Self::COMPRESSION_MASK) {
            Some(_) => Some(Self(bits)),
            None => None,
        }
    }

    /// The same without the transactional bit.
    #[must_use]
    pub const fn without_transactional(self) -> Self {
        Self(self.0 & !Self::TRANSACTIONAL)
    }

    /// The bits as they stand in the batch.
    #[must_use]
    pub const fn bits(self) -> i16 {
        self.0
    }

    /// How the records are compressed.
    #[must_use]
    pub const fn compression(self) -> Compression {
        match Compression::from_id(self.0 & Self::COMPRESSION_MASK) {
            Some(compression) => compression,
            None => unreachable!(),
        }
    }

    /// Who gave the records their timestamps.
    #[must_use]
    pub const fn timestamp_type(self) -> TimestampType {
        if self.0 & Self::APPEND_TIME == 0 { TimestampType::CreateTime } else { TimestampType::LogAppendTime }
    }

    /// Whether the batch belongs to a transaction.
    #[must_use]
    pub const fn is_transactional(self) -> bool {
        self.0 & Self::TRANSACTIONAL != 0
    }

    /// Whether the batch holds control records, which no consumer is shown.
    #[must_use]
    pub const fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }

    /// Whether the base timestamp says when compaction may drop the batch's tombstones.
    #[must_use]
    pub const fn has_delete_horizon(self) -> bool {
        self.0 & Self::DELETE_HORIZON != 0
    }

    /// The bits 7–15 that have no meaning yet; 0 in a valid batch of a client.
    #[must_use]
    pub const fn reserved_bits(self) -> i16 {
        self.0 & Self::RESERVED_MASK
    }

    /// The same attributes, stamped by the broker.
    #[must_use]
    pub const fn with_append_time(self) -> Self {
        Self(self.0 | Self::APPEND_TIME)
    }

    /// The same attributes for a batch of a transaction.
    #[must_use]
    pub const fn with_transactional(self) -> Self {
        Self(self.0 | Self::TRANSACTIONAL)
    }

    /// The same attributes for control records.
    #[must_use]
    pub const fn with_control(self) -> Self {
        Self(self.0 | Self::CONTROL)
    }

    /// The same attributes with a base timestamp that says when compaction may drop the batch's tombstones.
    #[must_use]
    pub const fn with_delete_horizon(self) -> Self {
        Self(self.0 | Self::DELETE_HORIZON)
    }

    /// The same attributes for a batch that lost all its records: nothing is compressed, no tombstone waits.
    #[must_use]
    pub const fn without_records(self) -> Self {
        Self(self.0 & !(Self::COMPRESSION_MASK | Self::DELETE_HORIZON))
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attributes({:#06x}, {:?}, {:?}", self.0, self.compression(), self.timestamp_type())?;
        for (set, name) in [
            (self.is_transactional(), ", transactional"),
            (self.is_control(), ", control"),
            (self.has_delete_horizon(), ", delete horizon"),
        ] {
            if set {
                f.write_str(name)?;
            }
        }
        f.write_str(")")
    }
}

/// The idempotent producer that a batch names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchProducer {
    /// The producer's id, 0 or more.
    pub id: i64,
    /// The producer's epoch.
    pub epoch: i16,
    /// The sequence of the first record; −1 in control batches.
    pub base_sequence: i32,
}

/// The header of a batch, decoded. Field meanings are Kafka's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The offset of the first record; in a client's batch whatever the client wrote, most write 0.
    pub base_offset: Offset,
    /// The bytes of the batch after this field, at least [`BATCH_LENGTH_MIN`].
    pub batch_length: i32,
    /// The epoch under which the batch was appended; `None` (negative on the wire) before that.
    pub leader_epoch: Option<LeaderEpoch>,
    /// CRC-32C of everything from the attributes on, as stored.
    pub crc: u32,
    /// Compression, timestamp type and flags.
    pub attributes: Attributes,
    /// The last record's offset minus the base offset, 0 or more.
    pub last_offset_delta: i32,
    /// What the records' timestamp deltas count from, in milliseconds since 1970.
    pub base_timestamp_ms: i64,
    /// The greatest timestamp of the batch, in milliseconds since 1970.
    pub max_timestamp_ms: i64,
    /// The producer's id; −1 when the producer is not idempotent.
    pub producer_id: i64,
    /// The producer's epoch; meaningless without a producer id.
    pub producer_epoch: i16,
    /// The first record's sequence; meaningless without a producer id.
    pub base_sequence: i32,
    /// How many records the batch says it holds; compaction may leave fewer than the offsets it spans.
    pub record_count: i32,
}

impl BatchHeader {
    /// Decodes the header at the front of `bytes` and checks each field by itself.
    ///
    /// # Errors
    /// [`BatchError::Truncated`] when fewer than [`HEADER_BYTES`] are there; [`BatchError::UnsupportedMagic`] for the
    /// message sets of old clients; [`BatchError::Field`] for a length, offset, count or codec that cannot be.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        if let Some(prefix) = bytes.first_chunk::<CRC_AT>() {
            check_length_and_magic(prefix)?;
        }
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(BatchError::Truncated { needed_bytes: HEADER_BYTES, found_bytes: bytes.len() });
        };
        Self::decode(header)
    }

    fn decode(header: &[u8; HEADER_BYTES]) -> Result<Self, BatchError> {
        let batch_length = read_i32(header, BATCH_LENGTH_AT);
        let last_offset_delta = read_i32(header, LAST_OFFSET_DELTA_AT);
        let record_count = read_i32(header, RECORD_COUNT_AT);
        at_least(batch_length, BATCH_LENGTH_MIN, "batch_length", BATCH_LENGTH_ALLOWED)?;
        at_least(last_offset_delta, 0, "last_offset_delta", "0 to 2147483647")?;
        at_least(record_count, 0, "record_count", "0 to 2147483647")?;
        Ok(Self {
            base_offset: base_offset(read_i64(header, BASE_OFFSET_AT), last_offset_delta)?,
            batch_length,
            leader_epoch: LeaderEpoch::new(read_i32(header, LEADER_EPOCH_AT)),
            crc: read_i32(header, CRC_AT).cast_unsigned(),
            attributes: attributes(read_i16(header, ATTRIBUTES_AT))?,
            last_offset_delta,
            base_timestamp_ms: read_i64(header, BASE_TIMESTAMP_AT),
            max_timestamp_ms: read_i64(header, MAX_TIMESTAMP_AT),
            producer_id: read_i64(header, PRODUCER_ID_AT),
            producer_epoch: read_i16(header, PRODUCER_EPOCH_AT),
            base_sequence: read_i32(header, BASE_SEQUENCE_AT),
            record_count,
        })
    }

    /// The header as it stands in front of the records.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let epoch = self.leader_epoch.map_or(-1, LeaderEpoch::get);
        put(&mut header, BASE_OFFSET_AT, &self.base_offset.get().to_be_bytes());
        put(&mut header, BATCH_LENGTH_AT, &self.batch_length.to_be_bytes());
        put(&mut header, LEADER_EPOCH_AT, &epoch.to_be_bytes());
        put(&mut header, MAGIC_AT, &MAGIC.to_be_bytes());
        put(&mut header, CRC_AT, &self.crc.to_be_bytes());
        put(&mut header, ATTRIBUTES_AT, &self.attributes.bits().to_be_bytes());
        put(&mut header, LAST_OFFSET_DELTA_AT, &self.last_offset_delta.to_be_bytes());
        put(&mut header, BASE_TIMESTAMP_AT, &self.base_timestamp_ms.to_be_bytes());
        put(&mut header, MAX_TIMESTAMP_AT, &self.max_timestamp_ms.to_be_bytes());
        put(&mut header, PRODUCER_ID_AT, &self.producer_id.to_be_bytes());
        put(&mut header, PRODUCER_EPOCH_AT, &self.producer_epoch.to_be_bytes());
        put(&mut header, BASE_SEQUENCE_AT, &self.base_sequence.to_be_bytes());
        put(&mut header, RECORD_COUNT_AT, &self.record_count.to_be_bytes());
        header
    }

    /// The size of the whole batch in bytes: what the batch length counts and the 12 bytes up to and with it.
    #[must_use]
    pub const fn size_bytes(&self) -> usize {
        debug_assert!(self.batch_length >= BATCH_LENGTH_MIN);
        LENGTH_PREFIX_BYTES + self.batch_length.unsigned_abs() as usize
    }

    /// The offset of the last record.
    #[must_use]
    pub const fn last_offset(&self) -> Offset {
        match self.base_offset.checked_add(self.last_offset_delta.unsigned_abs() as u64) {
            Some(last) => last,
            None => panic!("parsing refuses a last offset beyond 2^63 - 1"),
        }
    }

    /// The offset that follows the batch.
    #[must_use]
    pub const fn next_offset(&self) -> Offset {
        self.last_offset().next()
    }

    /// The idempotent producer, if the batch names one.
    #[must_use]
    pub const fn producer(&self) -> Option<BatchProducer> {
        if self.producer_id < 0 {
            return None;
        }
        Some(BatchProducer { id: self.producer_id, epoch: self.producer_epoch, base_sequence: self.base_sequence })
    }
}

const BATCH_LENGTH_ALLOWED: &str = "49 to 2147483647";

/// A length of zero or less comes first: unwritten bytes are zeros, and naming the magic would hide that.
fn check_length_and_magic(prefix: &[u8; CRC_AT]) -> Result<(), BatchError> {
    at_least(read_i32(prefix, BATCH_LENGTH_AT), 1, "batch_length", BATCH_LENGTH_ALLOWED)?;
    let [magic] = read(prefix, MAGIC_AT);
    let found = magic.cast_signed();
    if found == MAGIC { Ok(()) } else { Err(BatchError::UnsupportedMagic { found }) }
}

/// The last offset is checked with the first, so that computing it later cannot fail.
fn base_offset(found: i64, last_offset_delta: i32) -> Result<Offset, BatchError> {
    Offset::new(found).filter(|_| found.checked_add(i64::from(last_offset_delta)).is_some()).ok_or(BatchError::Field {
        field: "base_offset",
        found,
        allowed: "0 to 2^63 - 1, the last offset included",
    })
}

fn attributes(bits: i16) -> Result<Attributes, BatchError> {
    Attributes::from_bits(bits).ok_or_else(|| BatchError::Field {
        field: "attributes",
        found: i64::from(bits),
        allowed: "compression (bits 0 to 2) 0 to 4",
    })
}

fn at_least(found: i32, min: i32, field: &'static str, allowed: &'static str) -> Result<(), BatchError> {
    if found < min { Err(BatchError::Field { field, found: i64::from(found), allowed }) } else { Ok(()) }
}

fn read<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("every field lies inside the header")
}

fn read_i16(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes(read(bytes, at))
}

fn read_i32(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(read(bytes, at))
}

fn read_i64(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(read(bytes, at))
}

fn put(header: &mut [u8], at: usize, bytes: &[u8]) {
    header[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BatchHeader {
        BatchHeader {
            base_offset: Offset::new(0x0102_0304_0506_0708).unwrap(),
            batch_length: 0x1112_1314,
            leader_epoch: LeaderEpoch::new(0x2122_2324),
            crc: 0xf1f2_f3f4,
            attributes: Attributes::new(Compression::Zstd).with_transactional(),
            last_offset_delta: 0x3132_3334,
            base_timestamp_ms: 0x4142_4344_4546_4748,
            max_timestamp_ms: -2,
            producer_id: 0x5152_5354_5556_5758,
            producer_epoch: 0x6162,
            base_sequence: 0x7172_7374,
            record_count: 0x0a0b_0c0d,
        }
    }

    #[test]
    fn a_header_is_laid_out_by_byte() {
        #[rustfmt::skip]
        let expected = [
            1, 2, 3, 4, 5, 6, 7, 8,
            0x11, 0x12, 0x13, 0x14,
            0x21, 0x22, 0x23, 0x24,
            2,
            0xf1, 0xf2, 0xf3, 0xf4,
            0x00, 0x14,
            0x31, 0x32, 0x33, 0x34,
            0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48,
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe,
            0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
            0x61, 0x62,
            0x71, 0x72, 0x73, 0x74,
            0x0a, 0x0b, 0x0c, 0x0d,
        ];
        assert_eq!(header().encode(), expected);
        assert_eq!(BatchHeader::parse(&expected), Ok(header()));
    }

    #[test]
    fn sizes_and_offsets_follow_from_the_fields() {
        let header = BatchHeader { base_offset: Offset::new(40).unwrap(), last_offset_delta: 2, ..header() };
        assert_eq!(header.size_bytes(), 0x1112_1314 + 12);
        assert_eq!(header.last_offset().get(), 42);
        assert_eq!(header.next_offset().get(), 43);
    }

    #[test]
    fn a_short_header_is_truncated_at_every_length() {
        let bytes = header().encode();
        for len in 0..bytes.len() {
            let expected = BatchError::Truncated { needed_bytes: HEADER_BYTES, found_bytes: len };
            assert_eq!(BatchHeader::parse(&bytes[..len]), Err(expected));
        }
    }

    #[test]
    fn an_old_message_set_is_named_by_its_magic_even_when_it_is_short() {
        let mut bytes = [0u8; 34];
        bytes[BATCH_LENGTH_AT + 3] = 22;
        for magic in [0u8, 1, 3, 255] {
            bytes[MAGIC_AT] = magic;
            let expected = BatchError::UnsupportedMagic { found: magic.cast_signed() };
            assert_eq!(BatchHeader::parse(&bytes), Err(expected));
        }
    }

    #[test]
    fn unwritten_bytes_are_refused_by_their_length_and_not_by_their_magic() {
        let error = BatchHeader::parse(&[0; 4096]).unwrap_err();
        assert!(matches!(error, BatchError::Field { field: "batch_length", found: 0, .. }), "{error}");
    }

    #[test]
    fn fields_that_cannot_be_are_refused_by_name() {
        let cases: [(usize, &[u8], &str); 7] = [
            (BASE_OFFSET_AT, &[0x80], "base_offset"),
            (BASE_OFFSET_AT, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "base_offset"),
            (BATCH_LENGTH_AT, &[0xff], "batch_length"),
            (BATCH_LENGTH_AT, &[0, 0, 0, 48], "batch_length"),
            (LAST_OFFSET_DELTA_AT, &[0x80], "last_offset_delta"),
            (RECORD_COUNT_AT, &[0x80], "record_count"),
            (ATTRIBUTES_AT, &[0, 5], "attributes"),
        ];
        for (at, patch, name) in cases {
            let mut bytes = header().encode();
            put(&mut bytes, at, patch);
            let error = BatchHeader::parse(&bytes).unwrap_err();
            assert!(matches!(error, BatchError::Field { field, .. } if field == name), "{name}: {error}");
        }
    }

    #[test]
    fn attributes_know_their_bits() {
        let attributes = Attributes::from_bits(0b0111_1011).unwrap();
        assert_eq!(attributes.compression(), Compression::Lz4);
        assert_eq!(attributes.timestamp_type(), TimestampType::LogAppendTime);
        assert!(attributes.is_transactional());
        assert!(attributes.is_control());
        assert!(attributes.has_delete_horizon());
        assert_eq!(attributes.reserved_bits(), 0);
        assert_eq!(Attributes::from_bits(1 << 7).unwrap().reserved_bits(), 1 << 7);
        for unknown in 5..8 {
            assert_eq!(Attributes::from_bits(unknown), None);
        }
    }
}
