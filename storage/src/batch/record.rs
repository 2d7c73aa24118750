//! One record inside a batch: the walk that checks it, and the view that reads it.
//!
//! ```text
//! length varint · attributes i8 · timestamp delta varlong · offset delta varint
//! key length varint (−1: none) · key · value length varint (−1: none) · value
//! header count varint · per header: name length varint · name · value length varint (−1: none) · value
//! ```
//!
//! The same walk runs over bytes in memory, where it hands out slices, and over a decompressing stream, where it only
//! skips: a compressed batch is checked without ever being whole in memory.

use super::codec::{CodecError, Decoder};
use super::varint::{self, VarintFault};
use crate::offset::Offset;

/// The smallest record: one byte for each of the six fields after the length.
const RECORD_LENGTH_MIN: usize = 6;
/// The smallest record with its length.
pub(super) const RECORD_BYTES_MIN: usize = RECORD_LENGTH_MIN + 1;
/// The smallest header: two lengths.
const HEADER_BYTES_MIN: usize = 2;

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// The record, or the batch, ends inside a field.
    #[error("ends inside its {field}")]
    EndsEarly {
        /// The field.
        field: &'static str,
    },
    /// A field has a value that it may not have.
    #[error("{field} is {found}, allowed is {allowed}")]
    Field {
        /// The field.
        field: &'static str,
        /// The value that was found.
        found: i64,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A variable-length integer has more bits than its type.
    #[error("{field} is longer than an integer of its type")]
    Varint {
        /// The field.
        field: &'static str,
    },
    /// The record's length covers more than its fields.
    #[error("{found_bytes} bytes are left over inside its length")]
    LeftOver {
        /// How many bytes.
        found_bytes: usize,
    },
}

impl RecordFault {
    fn varint(fault: VarintFault, field: &'static str) -> Self {
        match fault {
            VarintFault::EndsEarly => Self::EndsEarly { field },
            VarintFault::TooLong => Self::Varint { field },
        }
    }

    fn negative(field: &'static str, found: i32, allowed: &'static str) -> Self {
        Self::Field { field, found: i64::from(found), allowed }
    }
}

/// Where records are read from. `None` means that the bytes ended.
pub(super) trait Input {
    /// What is handed out for a key or a value.
    type Piece;
    fn byte(&mut self) -> Option<u8>;
    fn take(&mut self, len: usize) -> Option<Self::Piece>;
    /// How many bytes were consumed.
    fn position(&self) -> usize;
}

/// Records in memory.
pub(super) struct SliceInput<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> SliceInput<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// From here on; nothing is left where that is behind the end.
    pub(super) fn at(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position: position.min(bytes.len()) }
    }

    pub(super) const fn left_bytes(&self) -> usize {
        self.bytes.len() - self.position
    }
}

impl<'a> Input for SliceInput<'a> {
    type Piece = &'a [u8];

    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.position)?;
        self.position += 1;
        Some(byte)
    }

    #[inline]
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let piece = self.bytes[self.position..].get(..len)?;
        self.position += len;
        Some(piece)
    }

    #[inline]
    fn position(&self) -> usize {
        self.position
    }
}

const STREAM_BUFFER_BYTES: usize = 8 << 10;

/// Records that are unpacked while they are walked. Once unpacking has failed every read answers `None`, and
/// [`StreamInput::finish`] tells why.
pub(super) struct StreamInput<'a> {
    decoder: Decoder<'a>,
    buffer: [u8; STREAM_BUFFER_BYTES],
    read_bytes: usize,
    filled_bytes: usize,
    /// The bytes of all buffers before this one.
    position_base: usize,
    ended: Option<Result<(), CodecError>>,
}

impl<'a> StreamInput<'a> {
    pub(super) const fn new(decoder: Decoder<'a>) -> Self {
        let buffer = [0; STREAM_BUFFER_BYTES];
        Self { decoder, buffer, read_bytes: 0, filled_bytes: 0, position_base: 0, ended: None }
    }

    /// Whether another byte is there. Unpacks more when the buffer is used up.
    #[inline]
    fn fill(&mut self) -> bool {
        self.read_bytes < self.filled_bytes || self.refill()
    }

    fn refill(&mut self) -> bool {
        if self.ended.is_some() {
            return false;
        }
        self.position_base += self.filled_bytes;
        self.read_bytes = 0;
        let filled = self.decoder.read(&mut self.buffer);
        self.filled_bytes = *filled.as_ref().unwrap_or(&0);
        if self.filled_bytes == 0 {
            self.ended = Some(filled.map(drop));
        }
        self.filled_bytes > 0
    }

    /// Whether the stream ended exactly here.
    ///
    /// # Errors
    /// What stopped the stream, if it did not end by itself.
    pub(super) fn finish(&mut self) -> Result<bool, CodecError> {
        if self.fill() {
            return Ok(false);
        }
        self.ended.clone().unwrap_or(Ok(())).map(|()| true)
    }

    /// What stopped the stream, if it did not end by itself.
    pub(super) fn error(&self) -> Option<CodecError> {
        self.ended.clone().and_then(Result::err)
    }
}

impl Input for StreamInput<'_> {
    type Piece = ();

    #[inline]
    fn byte(&mut self) -> Option<u8> {
        if !self.fill() {
            return None;
        }
        let byte = self.buffer[self.read_bytes];
        self.read_bytes += 1;
        Some(byte)
    }

    fn take(&mut self, mut len: usize) -> Option<()> {
        while len > 0 {
            if !self.fill() {
                return None;
            }
            let step = len.min(self.filled_bytes - self.read_bytes);
            self.read_bytes += step;
            len -= step;
        }
        Some(())
    }

    #[inline]
    fn position(&self) -> usize {
        self.position_base + self.read_bytes
    }
}

/// A record whose bounds and lengths hold.
pub(super) struct ParsedRecord<P> {
    pub(super) attributes: u8,
    /// Where the offset delta starts in the input: what stands before counts time.
    pub(super) offset_delta_at: usize,
    pub(super) timestamp_delta_ms: i64,
    pub(super) offset_delta: i32,
    pub(super) key: Option<P>,
    pub(super) value: Option<P>,
    pub(super) header_count: u32,
    /// Where the headers start in the input, and where they and the record end.
    pub(super) headers_at: usize,
    pub(super) end: usize,
}

/// Reads one record with all its headers.
#[inline]
pub(super) fn parse_record<I: Input>(input: &mut I) -> Result<ParsedRecord<I::Piece>, RecordFault> {
    let found = varint::read_i32(|| input.byte()).map_err(|fault| RecordFault::varint(fault, "length"))?;
    let length = usize::try_from(found)
        .ok()
        .filter(|length| *length >= RECORD_LENGTH_MIN)
        .ok_or_else(|| RecordFault::negative("length", found, "6 to 2147483647"))?;
    let mut body = Body { end: input.position() + length, input };
    // Kafka gives the attributes of a record no meaning and looks at no bit of them.
    let attributes = body.byte("attributes")?;
    let timestamp_delta_ms = body.varlong("timestamp_delta")?;
    let offset_delta_at = body.input.position();
    let offset_delta = body.varint("offset_delta")?;
    let key = body.optional_piece("key")?;
    let value = body.optional_piece("value")?;
    let header_count = body.header_count()?;
    let headers_at = body.input.position();
    body.skip_headers(header_count)?;
    let end = body.finish()?;
    Ok(ParsedRecord {
        attributes,
        offset_delta_at,
        timestamp_delta_ms,
        offset_delta,
        key,
        value,
        header_count,
        headers_at,
        end,
    })
}

/// The fields of one record: nothing is read beyond its end.
struct Body<'i, I> {
    input: &'i mut I,
    end: usize,
}

impl<I: Input> Body<'_, I> {
    #[inline]
    fn left_bytes(&self) -> usize {
        self.end - self.input.position()
    }

    #[inline]
    fn next(&mut self) -> Option<u8> {
        if self.input.position() == self.end { None } else { self.input.byte() }
    }

    #[inline]
    fn byte(&mut self, field: &'static str) -> Result<u8, RecordFault> {
        self.next().ok_or(RecordFault::EndsEarly { field })
    }

    #[inline]
    fn varint(&mut self, field: &'static str) -> Result<i32, RecordFault> {
        varint::read_i32(|| self.next()).map_err(|fault| RecordFault::varint(fault, field))
    }

    #[inline]
    fn varlong(&mut self, field: &'static str) -> Result<i64, RecordFault> {
        varint::read_i64(|| self.next()).map_err(|fault| RecordFault::varint(fault, field))
    }

    #[inline]
    fn piece(&mut self, field: &'static str, len: usize) -> Result<I::Piece, RecordFault> {
        if len > self.left_bytes() {
            return Err(RecordFault::EndsEarly { field });
        }
        self.input.take(len).ok_or(RecordFault::EndsEarly { field })
    }

    #[inline]
    fn optional_piece(&mut self, field: &'static str) -> Result<Option<I::Piece>, RecordFault> {
        match self.varint(field)? {
            -1 => Ok(None),
            found => match usize::try_from(found) {
                Ok(len) => self.piece(field, len).map(Some),
                Err(_) => Err(RecordFault::negative(field, found, "a length of -1 (none) or more")),
            },
        }
    }

    #[inline]
    fn header_count(&mut self) -> Result<u32, RecordFault> {
        let found = self.varint("header_count")?;
        u32::try_from(found)
            .ok()
            .filter(|count| *count as usize <= self.left_bytes() / HEADER_BYTES_MIN)
            .ok_or_else(|| RecordFault::negative("header_count", found, "0 to what the record has room for"))
    }

    #[inline]
    fn skip_headers(&mut self, count: u32) -> Result<(), RecordFault> {
        for _ in 0..count {
            let found = self.varint("header_name")?;
            let len = usize::try_from(found)
                .map_err(|_| RecordFault::negative("header_name", found, "a length of 0 or more"))?;
            self.piece("header_name", len)?;
            self.optional_piece("header_value")?;
        }
        Ok(())
    }

    #[inline]
    fn finish(self) -> Result<usize, RecordFault> {
        match self.left_bytes() {
            0 => Ok(self.end),
            found_bytes => Err(RecordFault::LeftOver { found_bytes }),
        }
    }
}

/// A record as its readers see it; keys, values and headers are borrowed from the batch.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    pub(super) position: usize,
    pub(super) offset: Offset,
    pub(super) timestamp_ms: i64,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: Headers<'a>,
}

impl<'a> RecordView<'a> {
    /// Where it begins in [`RecordSet::bytes`](super::RecordSet::bytes).
    #[must_use]
    pub const fn position(&self) -> usize {
        self.position
    }

    /// The record's place in its partition.
    #[must_use]
    pub const fn offset(&self) -> Offset {
        self.offset
    }

    /// Milliseconds since 1970, by producer or broker as the batch's timestamp type says; −1 when the producer gave
    /// none.
    #[must_use]
    pub const fn timestamp_ms(&self) -> i64 {
        self.timestamp_ms
    }

    /// The key; `None` and empty are different.
    #[must_use]
    pub const fn key(&self) -> Option<&'a [u8]> {
        self.key
    }

    /// The value; `None` is a tombstone in a compacted topic.
    #[must_use]
    pub const fn value(&self) -> Option<&'a [u8]> {
        self.value
    }

    /// The headers in their order, names may repeat.
    #[must_use]
    pub const fn headers(&self) -> Headers<'a> {
        self.headers
    }
}

/// A header of a record. Names are UTF-8 by Kafka's custom, which nothing enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderView<'a> {
    /// The name, maybe empty.
    pub name: &'a [u8],
    /// The value.
    pub value: Option<&'a [u8]>,
}

/// Iterates over the headers of a record.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a> {
    /// Bytes that the walk has been through, so that reading them again cannot fail.
    bytes: &'a [u8],
    left: u32,
}

impl<'a> Headers<'a> {
    pub(super) const fn of_walked(bytes: &'a [u8], count: u32) -> Self {
        Self { bytes, left: count }
    }

    fn piece(&mut self) -> Option<&'a [u8]> {
        let mut input = SliceInput::new(self.bytes);
        let length = varint::read_i32(|| input.byte()).expect("the walk has read this length");
        let piece =
            usize::try_from(length).ok().map(|length| input.take(length).expect("the walk has found this many bytes"));
        self.bytes = &self.bytes[input.position()..];
        piece
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = HeaderView<'a>;

    fn next(&mut self) -> Option<HeaderView<'a>> {
        self.left = self.left.checked_sub(1)?;
        let name = self.piece().expect("the walk refuses a negative length of a name");
        Some(HeaderView { name, value: self.piece() })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for Headers<'_> {}
