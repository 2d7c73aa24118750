//! The producers of a partition as a file, little-endian, written at each roll.
//!
//! ```text
//!  0  magic          8 bytes  "TLPRODUC"
//!  8  version        u32      1
//! 12  producer count u32
//! 16  next offset    i64      the log up to here is contained
//! 24  producers, by rising id, each:
//!       0  producer id      i64
//!       8  last used        i64  milliseconds since 1970
//!      16  known sequences  u32  0 although there are batches: others may have followed the last one
//!      20  epoch            i16
//!      22  batch count      u8   0 to 5
//!      23  zero             u8
//!      24  batches, oldest first, each:
//!            0  first sequence  i32
//!            4  last sequence   i32
//!            8  base offset     i64
//!           16  last offset     i64
//!           24  timestamp       i64  milliseconds since 1970
//!     CRC-32 (IEEE) of everything before  u32
//! ```
//!
//! A snapshot saves reading old segments, it is no evidence: a damaged one is thrown away and the log read instead.

use smallvec::SmallVec;

use super::{Producer, ProducerLimits, Producers, SEQUENCE_HALF, WINDOW_BATCHES, WindowBatch};
use crate::offset::Offset;

/// The first bytes of every snapshot.
pub const SNAPSHOT_MAGIC: [u8; 8] = *b"TLPRODUC";
/// The version that is written, and the only one there is.
pub const SNAPSHOT_VERSION: u32 = 1;

const HEADER_BYTES: usize = 24;
const PRODUCER_BYTES: usize = 24;
const BATCH_BYTES: usize = 32;
const CRC_BYTES: usize = 4;

/// Producers as of an offset.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The log up to here, this offset not included, is contained.
    pub next_offset: Offset,
    /// The producers.
    pub producers: Producers,
}

/// Why bytes are not a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Another kind of file.
    #[error("the file does not start with the magic of a producer snapshot")]
    Magic,
    /// Written by a later release.
    #[error("version is {found}, allowed is {SNAPSHOT_VERSION}")]
    Version {
        /// The version that was found.
        found: u32,
    },
    /// Not the length that its counts give.
    #[error("the file ends inside its {field}")]
    EndsEarly {
        /// Where it ends.
        field: &'static str,
    },
    /// Bytes follow the last producer.
    #[error("{found_bytes} bytes are left over before the checksum")]
    LeftOver {
        /// How many.
        found_bytes: usize,
    },
    /// The bytes are not those that were written.
    #[error("CRC-32 is {computed:#010x}, the file says {stored:#010x}")]
    Crc {
        /// What the file says.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// A field has a value that is never written.
    #[error("{field} is {found}, allowed is {allowed}")]
    Field {
        /// The field.
        field: &'static str,
        /// The value.
        found: i64,
        /// What is allowed.
        allowed: &'static str,
    },
}

impl Producers {
    /// These producers as a file. `next_offset` is where the log ends that they are the producers of.
    #[must_use]
    pub fn encode_snapshot(&self, next_offset: Offset) -> Vec<u8> {
        let mut sorted: Vec<_> = self.by_id.iter().collect();
        sorted.sort_unstable_by_key(|(id, _)| **id);
        let mut out = Vec::with_capacity(self.snapshot_size_bytes());
        out.extend_from_slice(&SNAPSHOT_MAGIC);
        out.extend_from_slice(&SNAPSHOT_VERSION.to_le_bytes());
        out.extend_from_slice(&u32::try_from(sorted.len()).expect("far fewer than 2^32 producers").to_le_bytes());
        out.extend_from_slice(&next_offset.get().to_le_bytes());
        for (id, producer) in sorted {
            put_producer(&mut out, *id, producer);
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        debug_assert_eq!(out.len(), self.snapshot_size_bytes());
        out
    }

    /// Reads a file back. When it holds more producers than `limits` allow, those whose last batch stands first in the
    /// log are left out.
    ///
    /// # Errors
    /// [`SnapshotError`] for anything that [`Producers::encode_snapshot`] does not write.
    pub fn decode_snapshot(bytes: &[u8], limits: ProducerLimits) -> Result<Snapshot, SnapshotError> {
        let mut reader = Reader { rest: checked_body(bytes)? };
        let count = reader.u32("producer count")?;
        let next_offset = reader.offset("next offset")?;
        let mut producers = Self::new(limits);
        let mut previous_id = -1;
        for _ in 0..count {
            let id = reader.i64("producer id")?;
            require(id > previous_id, "producer id", id, "0 or more and above the one before")?;
            previous_id = id;
            producers.restore(id, reader.producer(next_offset)?);
        }
        match reader.rest.len() {
            0 => Ok(Snapshot { next_offset, producers }),
            found_bytes => Err(SnapshotError::LeftOver { found_bytes }),
        }
    }

    fn restore(&mut self, id: i64, producer: Producer) {
        self.by_use.insert((producer.last_used_at, id));
        self.by_id.insert(id, producer);
        self.evict();
    }

    fn snapshot_size_bytes(&self) -> usize {
        let batches: usize = self.by_id.values().map(|producer| producer.window.len()).sum();
        HEADER_BYTES + self.len() * PRODUCER_BYTES + batches * BATCH_BYTES + CRC_BYTES
    }
}

fn put_producer(out: &mut Vec<u8>, id: i64, producer: &Producer) {
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&producer.last_used_ms.to_le_bytes());
    out.extend_from_slice(&producer.known_sequences.to_le_bytes());
    out.extend_from_slice(&producer.epoch.to_le_bytes());
    out.push(u8::try_from(producer.window.len()).expect("the window holds five batches"));
    out.push(0);
    for batch in &producer.window {
        out.extend_from_slice(&batch.first_sequence.to_le_bytes());
        out.extend_from_slice(&batch.last_sequence.to_le_bytes());
        out.extend_from_slice(&batch.base_offset.get().to_le_bytes());
        out.extend_from_slice(&batch.last_offset.get().to_le_bytes());
        out.extend_from_slice(&batch.timestamp_ms.to_le_bytes());
    }
}

/// What lies between the version and the checksum, once both hold.
fn checked_body(bytes: &[u8]) -> Result<&[u8], SnapshotError> {
    let rest = bytes.strip_prefix(&SNAPSHOT_MAGIC).ok_or(SnapshotError::Magic)?;
    let mut reader = Reader { rest };
    match reader.u32("version")? {
        SNAPSHOT_VERSION => {}
        found => return Err(SnapshotError::Version { found }),
    }
    let (covered, crc) = bytes.split_last_chunk().ok_or(SnapshotError::EndsEarly { field: "checksum" })?;
    let (stored, computed) = (u32::from_le_bytes(*crc), crc32fast::hash(covered));
    if stored != computed {
        return Err(SnapshotError::Crc { stored, computed });
    }
    reader
        .rest
        .split_last_chunk::<CRC_BYTES>()
        .map(|(body, _)| body)
        .ok_or(SnapshotError::EndsEarly { field: "checksum" })
}

fn require(holds: bool, field: &'static str, found: i64, allowed: &'static str) -> Result<(), SnapshotError> {
    if holds { Ok(()) } else { Err(SnapshotError::Field { field, found, allowed }) }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], SnapshotError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(SnapshotError::EndsEarly { field })?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, SnapshotError> {
        self.take(field).map(u32::from_le_bytes)
    }

    fn i64(&mut self, field: &'static str) -> Result<i64, SnapshotError> {
        self.take(field).map(i64::from_le_bytes)
    }

    fn offset(&mut self, field: &'static str) -> Result<Offset, SnapshotError> {
        let found = self.i64(field)?;
        Offset::new(found).ok_or(SnapshotError::Field { field, found, allowed: "0 or more" })
    }

    fn sequence(&mut self, field: &'static str) -> Result<i32, SnapshotError> {
        let found = self.take(field).map(i32::from_le_bytes)?;
        require(found >= 0, field, i64::from(found), "0 to 2147483647").map(|()| found)
    }

    fn producer(&mut self, next_offset: Offset) -> Result<Producer, SnapshotError> {
        let last_used_ms = self.i64("last used")?;
        let known_sequences = self.u32("known sequences")?;
        require(known_sequences <= SEQUENCE_HALF, "known sequences", i64::from(known_sequences), "0 to 2^30")?;
        let epoch = self.take("epoch").map(i16::from_le_bytes)?;
        require(epoch >= 0, "epoch", i64::from(epoch), "0 to 32767")?;
        let [batch_count, zero] = self.take("batch count")?;
        require(usize::from(batch_count) <= WINDOW_BATCHES, "batch count", i64::from(batch_count), "0 to 5")?;
        require(zero == 0, "the byte after the batch count", i64::from(zero), "0")?;
        let mut window = SmallVec::<[WindowBatch; WINDOW_BATCHES]>::new();
        for _ in 0..batch_count {
            window.push(self.batch(next_offset)?);
        }
        let last_used_at = window.last().map_or(Offset::ZERO, |batch| batch.last_offset);
        Ok(Producer { epoch, last_used_ms, last_used_at, known_sequences, window })
    }

    fn batch(&mut self, next_offset: Offset) -> Result<WindowBatch, SnapshotError> {
        let batch = WindowBatch {
            first_sequence: self.sequence("first sequence")?,
            last_sequence: self.sequence("last sequence")?,
            base_offset: self.offset("base offset")?,
            last_offset: self.offset("last offset")?,
            timestamp_ms: self.i64("timestamp")?,
        };
        let ordered = batch.base_offset <= batch.last_offset && batch.last_offset < next_offset;
        require(ordered, "last offset", batch.last_offset.get(), "from the base offset to below the next offset")?;
        Ok(batch)
    }
}
