//! Borrowed batches whose shape is known to be right and nothing else.

use std::iter::FusedIterator;

use super::header::{ATTRIBUTES_AT, HEADER_BYTES};
use super::{BatchError, BatchHeader, BatchLimits, RecordSet, crc32c};

/// One batch in borrowed bytes: the header fields are possible ones and the length fits. The CRC and the records were
/// not looked at.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    header: BatchHeader,
    bytes: &'a [u8],
}

impl<'a> BatchView<'a> {
    /// Splits the first batch off `bytes` and returns it with what follows.
    ///
    /// # Errors
    /// [`BatchError::Truncated`] when the bytes end before the batch does, which also holds for no bytes at all; the
    /// errors of [`BatchHeader::parse`] otherwise.
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), BatchError> {
        let header = BatchHeader::parse(bytes)?;
        let Some((batch, rest)) = bytes.split_at_checked(header.size_bytes()) else {
            return Err(BatchError::Truncated { needed_bytes: header.size_bytes(), found_bytes: bytes.len() });
        };
        Ok((Self { header, bytes: batch }, rest))
    }

    /// A view of bytes that were parsed before.
    pub(super) const fn of_parsed(header: BatchHeader, bytes: &'a [u8]) -> Self {
        Self { header, bytes }
    }

    /// The decoded header.
    #[must_use]
    pub const fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Exactly the batch, header and records.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The bytes after the header: the records, compressed if the attributes say so.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// Hashes the batch and compares.
    ///
    /// # Errors
    /// [`BatchError::Crc`] with both values.
    pub fn verify_crc(&self) -> Result<(), BatchError> {
        let computed = crc32c(&self.bytes[ATTRIBUTES_AT..]);
        let stored = self.header.crc;
        if computed == stored { Ok(()) } else { Err(BatchError::Crc { stored, computed }) }
    }

    /// The records: borrowed when they are not compressed, else unpacked into one buffer of at most
    /// `decompressed_bytes_max` bytes.
    ///
    /// # Errors
    /// [`BatchError::Codec`] when the records cannot be unpacked within `limits`. Malformed records show while
    /// iterating.
    pub fn records(&self, limits: &BatchLimits) -> Result<RecordSet<'a>, BatchError> {
        RecordSet::unpack(&self.header, self.payload(), limits)
    }
}

/// The batches that stand one behind the other in borrowed bytes, as a read or a fetch gives them out. Ends with the
/// bytes, or with the error of the first that is no whole batch.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    rest: &'a [u8],
}

impl<'a> Batches<'a> {
    /// Those of `bytes`.
    #[must_use]
    pub const fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<BatchView<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let parsed = BatchView::parse(self.rest);
        self.rest = parsed.as_ref().map_or(&[], |(_, rest)| rest);
        Some(parsed.map(|(view, _)| view))
    }
}

impl FusedIterator for Batches<'_> {}
