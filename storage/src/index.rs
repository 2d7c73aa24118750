//! The sparse index of a segment: where to start looking for an offset or a time.
//!
//! One entry for every [`LogConfig::index_interval_bytes`](crate::config::LogConfig) of log. The index of the active
//! segment lives in memory; the first flush after the roll writes it to `<base>.index` as a hint, unsynced. It is never
//! evidence about the log: one that is missing or fails its checksum is rebuilt from the batch headers.
//!
//! Offset and time share one file and one entry (Kafka has two of each), so that a sealed segment costs one descriptor
//! less and a look-up by time needs no second search. Layout, little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | magic `TLIX` |
//! | 4..6 | version, 1 |
//! | 6..14 | base offset i64 of the segment |
//! | 14..18 | number of entries u32 |
//! | 18.. | entries of 16 bytes: offset − base u32, position u32, largest timestamp before the position i64 |
//! | last 4 | CRC-32 over all before |

use crate::format::{FormatError, Reader, Writer};
use crate::offset::Offset;

const MAGIC: [u8; 4] = *b"TLIX";
const VERSION: u16 = 1;
const ENTRY_BYTES: usize = 16;
const FIXED_BYTES: usize = 22;

/// "No timestamp yet": smaller than any that Kafka allows.
pub(crate) const TIMESTAMP_NONE: i64 = -1;

/// One entry: a batch starts at `position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    /// The batch's base offset, counted from the segment's.
    pub(crate) relative_offset: u32,
    /// Byte position in the segment.
    pub(crate) position: u32,
    /// The largest timestamp of all batches before `position`, in ms; [`TIMESTAMP_NONE`] when there is none.
    pub(crate) max_timestamp_before: i64,
}

impl IndexEntry {
    /// Where every segment begins.
    pub(crate) const FIRST: Self = Self { relative_offset: 0, position: 0, max_timestamp_before: TIMESTAMP_NONE };
}

/// Entries in order of position (and so of offset and of timestamp).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    entries: Vec<IndexEntry>,
}

impl Index {
    pub(crate) fn push(&mut self, entry: IndexEntry) {
        debug_assert!(self.entries.last().is_none_or(|last| last.position < entry.position), "index goes forward");
        self.entries.push(entry);
    }

    /// Where a walk for `relative_offset` starts: at or before the batch that holds it.
    pub(crate) fn floor_by_offset(&self, relative_offset: u32) -> IndexEntry {
        floor(&self.entries, |entry| entry.relative_offset <= relative_offset)
    }

    /// The last indexed position not beyond `position`.
    pub(crate) fn floor_by_position(&self, position: u32) -> u32 {
        floor(&self.entries, |entry| entry.position <= position).position
    }

    /// Where a walk for the first record not older than `timestamp_ms` starts: all before is older.
    pub(crate) fn floor_by_time(&self, timestamp_ms: i64) -> IndexEntry {
        floor(&self.entries, |entry| entry.max_timestamp_before < timestamp_ms)
    }

    /// In order of position.
    pub(crate) fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    pub(crate) fn encode(&self, base: Offset) -> Vec<u8> {
        let mut writer = Writer::new(MAGIC, VERSION, FIXED_BYTES + self.entries.len() * ENTRY_BYTES);
        writer.i64(base.get());
        writer.u32(u32::try_from(self.entries.len()).expect("a segment below 4 GiB has fewer entries"));
        for entry in &self.entries {
            writer.u32(entry.relative_offset);
            writer.u32(entry.position);
            writer.i64(entry.max_timestamp_before);
        }
        writer.finish()
    }

    /// Reads back an index of the segment at `base` which is `segment_bytes` long.
    pub(crate) fn decode(bytes: &[u8], base: Offset, segment_bytes: u64) -> Result<Self, FormatError> {
        let mut reader = Reader::open(bytes, MAGIC, VERSION)?;
        if reader.i64()? != base.get() {
            return Err(FormatError::Field("base offset"));
        }
        let count = reader.u32()? as usize;
        if count.checked_mul(ENTRY_BYTES) != Some(reader.remaining()) {
            return Err(FormatError::Length { found: reader.remaining(), expected: count.saturating_mul(ENTRY_BYTES) });
        }
        let mut index = Self { entries: Vec::with_capacity(count) };
        for _ in 0..count {
            let entry = IndexEntry {
                relative_offset: reader.u32()?,
                position: reader.u32()?,
                max_timestamp_before: reader.i64()?,
            };
            let forward = index.entries.last().is_none_or(|last| {
                last.position < entry.position
                    && last.relative_offset < entry.relative_offset
                    && last.max_timestamp_before <= entry.max_timestamp_before
            });
            if !forward || u64::from(entry.position) >= segment_bytes {
                return Err(FormatError::Field("entry"));
            }
            index.entries.push(entry);
        }
        reader.finish()?;
        Ok(index)
    }
}

/// The last entry for which `below` holds; it holds for a prefix of the entries, and for the segment's beginning.
fn floor(entries: &[IndexEntry], below: impl Fn(&IndexEntry) -> bool) -> IndexEntry {
    entries.partition_point(below).checked_sub(1).map_or(IndexEntry::FIRST, |at| entries[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Index {
        let mut index = Index::default();
        for i in 1..4_u32 {
            index.push(IndexEntry {
                relative_offset: i * 10,
                position: i * 1000,
                max_timestamp_before: i64::from(i) * 5,
            });
        }
        index
    }

    fn base() -> Offset {
        Offset::new(500).unwrap()
    }

    #[test]
    fn the_bytes_of_an_index_never_change() {
        let mut index = Index::default();
        index.push(IndexEntry { relative_offset: 3, position: 258, max_timestamp_before: 9 });
        let expected: &[u8] = &[
            b'T', b'L', b'I', b'X', 1, 0, 244, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 2, 1, 0, 0, 9, 0, 0, 0, 0,
            0, 0, 0, 207, 140, 10, 71,
        ];
        assert_eq!(index.encode(base()), expected);
    }

    #[test]
    fn a_walk_starts_at_or_before_what_is_looked_for() {
        let index = sample();
        assert_eq!(
            [0, 9, 10, 19, 20, 99].map(|offset| index.floor_by_offset(offset).position),
            [0, 0, 1000, 1000, 2000, 3000]
        );
        assert_eq!([0, 999, 1000, 5000].map(|at| index.floor_by_position(at)), [0, 0, 1000, 3000]);
        assert_eq!(
            [0, 5, 6, 10, 11, 99].map(|time| index.floor_by_time(time).position),
            [0, 0, 1000, 1000, 2000, 3000]
        );
    }

    #[test]
    fn an_index_reads_back_and_any_damage_or_foreign_segment_is_refused() {
        let bytes = sample().encode(base());
        assert_eq!(Index::decode(&bytes, base(), 4000), Ok(sample()));
        assert!(Index::decode(&bytes, Offset::ZERO, 4000).is_err());
        assert_eq!(Index::decode(&bytes, base(), 3000), Err(FormatError::Field("entry")));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Index::decode(&damaged, base(), 4000).is_err(), "bit {bit}");
        }
        assert!(Index::decode(&vec![0; 4096], base(), 4000).is_err(), "a page of zeros is no index");
    }
}
