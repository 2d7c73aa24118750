//! The record batch, version 2: the unit that producers send, the log stores and consumers fetch, byte for byte the
//! same.
//!
//! Three types stand for three amounts of trust. A [`BatchView`] has the shape of a batch and nothing more. A
//! [`CheckedBatch`] has passed everything that a broker asks of a producer, or was built here by a [`BatchBuilder`];
//! only it can be appended. A [`RecordSet`] gives its records back.
//!
//! Everything is pure: bytes in, values out. Numbers found in a batch never decide how much memory is used:
//! [`BatchLimits`] does.

mod builder;
mod check;
mod codec;
pub mod header;
mod record;
mod record_set;
mod retain;
mod skim;
mod varint;
mod view;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

pub use builder::{BatchBuilder, BatchOptions, BuildError, NewRecord, TransactionResult};
pub use check::{CheckedBatch, Validation};
pub use codec::{CodecError, Compression};
pub use header::{Attributes, BatchHeader, BatchProducer, TimestampType};
pub use record::{HeaderView, Headers, RecordFault, RecordView};
pub use record_set::{RecordSet, Records};
pub use retain::{Retention, emptied, fillers};
pub use view::{BatchView, Batches};

/// Bounds on what one batch may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// The largest batch as it stands on the wire, in bytes. Default 1,048,588: Kafka's `message.max.bytes`, so a
    /// producer's default limit of 1 MiB fits.
    pub batch_bytes_max: usize,
    /// The most bytes that a compressed batch may unpack to. Default 32 MiB: 32 times the largest batch, which text
    /// reaches rarely and a bomb exceeds a thousandfold. It bounds time when a batch is checked and memory when it is
    /// read.
    pub decompressed_bytes_max: usize,
    /// The largest zstd window, as a power of two. Default 23 (8 MiB): what the format asks every decoder to support;
    /// levels 1 to 19 stay within it.
    pub zstd_window_log_max: u32,
}

impl BatchLimits {
    /// See [`BatchLimits::batch_bytes_max`].
    pub const BATCH_BYTES_MAX: usize = 1_048_588;
    /// See [`BatchLimits::decompressed_bytes_max`].
    pub const DECOMPRESSED_BYTES_MAX: usize = 32 << 20;
    /// See [`BatchLimits::zstd_window_log_max`].
    pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self {
            batch_bytes_max: Self::BATCH_BYTES_MAX,
            decompressed_bytes_max: Self::DECOMPRESSED_BYTES_MAX,
            zstd_window_log_max: Self::ZSTD_WINDOW_LOG_MAX,
        }
    }
}

/// Why bytes are not the batch that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end before the batch does. Nothing that is there was found wrong: at the end of a log this is a torn
    /// write.
    #[error("the batch needs {needed_bytes} bytes, {found_bytes} are there")]
    Truncated {
        /// How many bytes the header, or the whole batch when its length is known, takes.
        needed_bytes: usize,
        /// How many bytes there are.
        found_bytes: usize,
    },
    /// A produce request carries exactly one batch per partition.
    #[error("{found_bytes} bytes follow the batch, allowed is exactly one batch")]
    TrailingBytes {
        /// How many bytes follow.
        found_bytes: usize,
    },
    /// The message sets of clients before Kafka 0.11, or no batch at all.
    #[error("magic is {found}, allowed is 2: a client of Kafka 0.11 or later")]
    UnsupportedMagic {
        /// The magic that was found.
        found: i8,
    },
    /// The batch is larger than the topic allows.
    #[error("the batch has {size_bytes} bytes, allowed are {limit_bytes}")]
    TooLarge {
        /// The size of the batch.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A header field has a value that it may not have.
    #[error("{field} is {found}, allowed is {allowed}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// The value that was found.
        found: i64,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The bytes are not those that the producer hashed.
    #[error("CRC-32C is {computed:#010x}, the batch says {stored:#010x}")]
    Crc {
        /// What the header says.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// A record inside the batch is malformed.
    #[error("record {index}: {fault}")]
    Record {
        /// The record's place in the batch, from 0.
        index: u32,
        /// What is wrong with it.
        fault: RecordFault,
    },
    /// The compressed records cannot be unpacked, or not within the limits.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// CRC-32C (Castagnoli), the checksum of record batches. Our own files use CRC-32/IEEE instead.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}
