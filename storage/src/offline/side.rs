//! The files beside a segment's log, read back and compared with it.

use std::io;
use std::path::Path;

use crate::fs::{self, Fs};
use crate::index::{Index, IndexEntry, TIMESTAMP_NONE};
use crate::limits::BATCH_BYTES_MAX;
use crate::offset::Offset;
use crate::producer::{ProducerLimits, Producers};
use crate::segment::{FileKind, SEAL_BYTES, Seal, Step, path_of};

/// Largest snapshot that is read.
const SNAPSHOT_BYTES_MAX: u64 = 64 << 20;

/// One of the files beside a log.
#[derive(Clone, Debug)]
pub(super) enum SideFile<T> {
    /// It reads back.
    Good(T),
    Missing,
    /// It does not read back, and why.
    Unreadable(String),
    /// The disk does not answer: what it holds is not known.
    Unread(String),
}

impl<T> SideFile<T> {
    pub(super) const fn good(&self) -> Option<&T> {
        match self {
            Self::Good(value) => Some(value),
            _ => None,
        }
    }

    fn read(fs: &dyn Fs, path: &Path, limit_bytes: u64, decode: impl FnOnce(&[u8]) -> Result<T, String>) -> Self {
        match fs::read_whole(fs, path, limit_bytes) {
            Ok(bytes) => decode(&bytes).map_or_else(Self::Unreadable, Self::Good),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Self::Missing,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Self::Unreadable(e.to_string()),
            Err(e) => Self::Unread(e.to_string()),
        }
    }
}

pub(super) fn read_seal(fs: &dyn Fs, dir: &Path, base: Offset) -> SideFile<Seal> {
    SideFile::read(fs, &path_of(dir, base, FileKind::Seal), SEAL_BYTES as u64, |bytes| {
        Seal::decode(bytes).map_err(|reason| reason.to_string())
    })
}

pub(super) fn read_index(fs: &dyn Fs, dir: &Path, base: Offset, segment_bytes: u64) -> SideFile<Index> {
    let limit_bytes = segment_bytes.max(BATCH_BYTES_MAX as u64);
    SideFile::read(fs, &path_of(dir, base, FileKind::Index), limit_bytes, |bytes| {
        Index::decode(bytes, base, segment_bytes).map_err(|reason| reason.to_string())
    })
}

pub(super) fn read_snapshot(fs: &dyn Fs, dir: &Path, base: Offset) -> SideFile<Producers> {
    SideFile::read(fs, &path_of(dir, base, FileKind::Snapshot), SNAPSHOT_BYTES_MAX, |bytes| {
        let snapshot = Producers::decode_snapshot(bytes, ProducerLimits::default()).map_err(|e| e.to_string())?;
        if snapshot.next_offset == base {
            return Ok(snapshot.producers);
        }
        Err(format!("it is of offset {}, its name says {base}", snapshot.next_offset))
    })
}

/// Compares an index with the batches that it points to, as they are met.
#[derive(Debug)]
pub(super) struct IndexAudit<'a> {
    entries: std::slice::Iter<'a, IndexEntry>,
    base: Offset,
    /// One after the last batch that was met.
    met_to: u64,
    max_timestamp_ms: i64,
    /// Something before was damaged: timestamps before an entry are not all known.
    passed_damage: bool,
    pub(super) wrong: Option<WrongEntry>,
}

/// The first entry of an index that does not fit the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WrongEntry {
    pub(super) field: &'static str,
    pub(super) expected: String,
    pub(super) found: String,
}

impl<'a> IndexAudit<'a> {
    pub(super) fn new(index: Option<&'a Index>, base: Offset) -> Self {
        let entries = index.map_or(&[][..], Index::entries).iter();
        Self { entries, base, met_to: 0, max_timestamp_ms: TIMESTAMP_NONE, passed_damage: false, wrong: None }
    }

    pub(super) fn damage(&mut self) {
        self.passed_damage = true;
    }

    pub(super) fn batch(&mut self, step: &Step) {
        while let Some(entry) =
            self.entries.as_slice().first().filter(|entry| u64::from(entry.position) <= step.position)
        {
            self.entries.next();
            let wrong = self.compare(entry, step);
            self.wrong = self.wrong.take().or(wrong);
        }
        self.met_to = step.end();
        self.max_timestamp_ms = self.max_timestamp_ms.max(step.header.max_timestamp_ms);
    }

    fn compare(&self, entry: &IndexEntry, step: &Step) -> Option<WrongEntry> {
        let position = u64::from(entry.position);
        let relative = step.header.base_offset.since(self.base);
        let wrong = |field, expected: String, found: String| Some(WrongEntry { field, expected, found });
        if position < step.position {
            // In the bytes of something damaged nothing can be told.
            let inside = position < self.met_to;
            return inside
                .then(|| wrong("an entry's position", "where a batch starts".into(), position.to_string()))?;
        }
        if u64::from(entry.relative_offset) != relative {
            return wrong("an entry's offset", relative.to_string(), entry.relative_offset.to_string());
        }
        let (expected, found) = (self.max_timestamp_ms, entry.max_timestamp_before);
        if expected != found && !self.passed_damage {
            return wrong("an entry's timestamp", expected.to_string(), found.to_string());
        }
        None
    }
}
