//! The records of a batch, read back.

use super::codec::Decoder;
use super::record::{Headers, Input as _, ParsedRecord, RecordFault, RecordView, SliceInput, parse_record};
use super::{BatchError, BatchHeader, BatchLimits, CodecError, Compression, TimestampType};

/// The records of one batch, unpacked if they were compressed. Holds at most `decompressed_bytes_max` bytes of its own.
#[derive(Clone, Debug)]
pub struct RecordSet<'a> {
    header: BatchHeader,
    bytes: RecordBytes<'a>,
}

#[derive(Clone, Debug)]
enum RecordBytes<'a> {
    Borrowed(&'a [u8]),
    Unpacked(Vec<u8>),
}

impl<'a> RecordSet<'a> {
    pub(super) fn unpack(header: &BatchHeader, payload: &'a [u8], limits: &BatchLimits) -> Result<Self, BatchError> {
        let bytes = match header.attributes.compression() {
            Compression::None => RecordBytes::Borrowed(payload),
            compression => RecordBytes::Unpacked(unpack(compression, payload, limits)?),
        };
        Ok(Self { header: *header, bytes })
    }

    /// The header of the batch.
    #[must_use]
    pub const fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The bytes of the records, not compressed.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            RecordBytes::Borrowed(bytes) => bytes,
            RecordBytes::Unpacked(bytes) => bytes,
        }
    }

    /// The record that begins at a [position](RecordView::position) which was learned from these very bytes: a batch
    /// with the same checksum. Costs nothing for the records before it.
    ///
    /// # Errors
    /// A [`RecordFault`] when no record of this batch begins there. Other bytes may by chance look like one.
    pub fn record_at(&self, position: usize) -> Result<RecordView<'_>, RecordFault> {
        let mut input = SliceInput::at(self.bytes(), position);
        let parsed = parse_record(&mut input)?;
        check_delta(&self.header, &parsed, 0)?;
        view(&self.header, self.bytes(), &parsed, position)
    }

    /// Iterates over the records, as many as the header says. Ends behind the first error.
    #[must_use]
    pub fn iter(&self) -> Records<'_> {
        Records {
            header: &self.header,
            bytes: self.bytes(),
            input: SliceInput::new(self.bytes()),
            index: 0,
            next_delta: 0,
            failed: false,
        }
    }
}

impl<'s> IntoIterator for &'s RecordSet<'_> {
    type Item = Result<RecordView<'s>, BatchError>;
    type IntoIter = Records<'s>;

    fn into_iter(self) -> Records<'s> {
        self.iter()
    }
}

fn unpack(compression: Compression, payload: &[u8], limits: &BatchLimits) -> Result<Vec<u8>, CodecError> {
    Decoder::new(compression, payload, limits)?.read_to_end()
}

/// See [`RecordSet::iter`].
pub struct Records<'s> {
    header: &'s BatchHeader,
    bytes: &'s [u8],
    input: SliceInput<'s>,
    index: u32,
    /// The smallest offset delta that the next record may have: compaction leaves gaps, but never goes back.
    next_delta: i64,
    failed: bool,
}

impl<'s> Records<'s> {
    /// Where the next record starts in [`RecordSet::bytes`].
    pub(super) fn position(&self) -> usize {
        self.input.position()
    }

    fn read(&mut self) -> Result<RecordView<'s>, RecordFault> {
        let position = self.input.position();
        let parsed = parse_record(&mut self.input)?;
        self.next_delta = check_delta(self.header, &parsed, self.next_delta)? + 1;
        view(self.header, self.bytes, &parsed, position)
    }

    fn check_end(&mut self) -> Option<Result<RecordView<'s>, BatchError>> {
        let found_bytes = self.input.left_bytes();
        if found_bytes == 0 {
            return None;
        }
        self.failed = true;
        Some(Err(left_over(found_bytes)))
    }
}

/// The record's offset delta, if it is in bounds.
#[inline]
fn check_delta(header: &BatchHeader, parsed: &ParsedRecord<&[u8]>, delta_min: i64) -> Result<i64, RecordFault> {
    let delta = i64::from(parsed.offset_delta);
    if delta < delta_min || delta > i64::from(header.last_offset_delta) {
        let allowed = "above the one before and at most the batch's last";
        return Err(RecordFault::Field { field: "offset_delta", found: delta, allowed });
    }
    Ok(delta)
}

/// A record whose offset delta is in bounds.
#[inline]
fn view<'s>(
    header: &BatchHeader,
    bytes: &'s [u8],
    parsed: &ParsedRecord<&'s [u8]>,
    position: usize,
) -> Result<RecordView<'s>, RecordFault> {
    let headers = &bytes[parsed.headers_at..parsed.end];
    let offset = header.base_offset.checked_add(u64::from(parsed.offset_delta.unsigned_abs()));
    Ok(RecordView {
        position,
        offset: offset.expect("at most the last offset, which parsing has checked"),
        timestamp_ms: record_timestamp_ms(header, parsed.timestamp_delta_ms)?,
        key: parsed.key,
        value: parsed.value,
        headers: Headers::of_walked(headers, parsed.header_count),
    })
}

impl<'s> Iterator for Records<'s> {
    type Item = Result<RecordView<'s>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        if self.index == self.header.record_count.unsigned_abs() {
            return self.check_end();
        }
        let index = self.index;
        self.index += 1;
        let record = self.read().map_err(|fault| BatchError::Record { index, fault });
        self.failed = record.is_err();
        Some(record)
    }
}

/// The error for bytes behind the last record.
pub(super) fn left_over(found_bytes: usize) -> BatchError {
    let found = i64::try_from(found_bytes).unwrap_or(i64::MAX);
    BatchError::Field { field: "bytes after the last record", found, allowed: "0" }
}

/// A record's absolute timestamp.
pub(super) fn record_timestamp_ms(header: &BatchHeader, delta_ms: i64) -> Result<i64, RecordFault> {
    if header.attributes.timestamp_type() == TimestampType::LogAppendTime {
        return Ok(header.max_timestamp_ms);
    }
    header.base_timestamp_ms.checked_add(delta_ms).ok_or(RecordFault::Field {
        field: "timestamp_delta",
        found: delta_ms,
        allowed: "what keeps the timestamp within 64 bits",
    })
}
