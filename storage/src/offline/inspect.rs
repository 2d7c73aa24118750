//! What a partition looks like, without reading all of it.

use std::io;
use std::path::PathBuf;

use super::names::PartitionNames;
use super::side::{SideFile, read_index, read_seal, read_snapshot};
use super::{DataDirectory, PartitionDirectory};
use crate::checkpoint::{self, Checkpoint, Slot};
use crate::fs::{Fs, OpenMode};
use crate::offset::{Offset, PartitionId};
use crate::partition::newest_evidence;
use crate::segment::{BatchWalk, FileKind, path_of};

/// A partition as its files tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionFacts {
    /// Which.
    pub id: PartitionId,
    /// Where, below the data directory.
    pub path: PathBuf,
    /// The first offset that can be read.
    pub log_start: Offset,
    /// Every record below was flushed.
    pub flushed: Offset,
    /// One after the last record that a start would accept.
    pub tail: Offset,
    /// Oldest first.
    pub segments: Vec<SegmentInfo>,
    /// Names that are not ours.
    pub alien: Vec<String>,
}

/// A segment as its files tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// First offset.
    pub base: Offset,
    /// One after the last offset.
    pub next: Offset,
    /// Length of the log file, reserved space included.
    pub len_bytes: u64,
    /// Whether it is the one that is appended to.
    pub is_active: bool,
    /// What its seal says.
    pub seal: FileState<SealInfo>,
    /// How many entries its index has.
    pub index: FileState<usize>,
    /// How many producers there were at its beginning.
    pub producers: FileState<usize>,
}

/// What a seal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealInfo {
    /// When the first batch was appended, ms since 1970, broker time.
    pub first_append_ms: i64,
    /// When the last batch was appended, likewise.
    pub last_append_ms: i64,
    /// The largest timestamp of a record, ms since 1970; −1 for none.
    pub max_timestamp_ms: i64,
}

/// One of the files beside a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileState<T> {
    /// It is there and reads back.
    Good(T),
    /// It is not there.
    Missing,
    /// It does not read back, or speaks of another segment.
    Damaged(String),
}

impl<T> FileState<T> {
    fn of<U>(file: SideFile<U>, tell: impl FnOnce(U) -> T) -> Self {
        match file {
            SideFile::Good(content) => Self::Good(tell(content)),
            SideFile::Missing => Self::Missing,
            SideFile::Unreadable(reason) | SideFile::Unread(reason) => Self::Damaged(reason),
        }
    }

    /// What it says, if it reads back.
    #[must_use]
    pub const fn value(&self) -> Option<&T> {
        match self {
            Self::Good(value) => Some(value),
            _ => None,
        }
    }
}

impl DataDirectory {
    /// What the files of a partition tell. Reads the small files and what was appended since the last flush.
    ///
    /// # Errors
    /// The disk does not answer.
    pub fn inspect(&self, partition: &PartitionDirectory) -> io::Result<PartitionFacts> {
        let fs = &*self.fs;
        let dir = self.root.join(&partition.path);
        let names = PartitionNames::list(fs, &dir)?;
        let noted = newest_evidence(fs, &dir, &names.bases, newest_slot(fs, &dir)?)?;
        let mut segments = Vec::new();
        for (at, &base) in names.bases.iter().enumerate() {
            let file = fs.open(&path_of(&dir, base, FileKind::Log), OpenMode::Read, 0)?;
            let len_bytes = file.len()?;
            let next = match names.bases.get(at + 1) {
                Some(&following) => following,
                None => tail_of(&*file, base, len_bytes, noted),
            };
            let seal = read_seal(fs, &dir, base);
            let is_active = at + 1 == names.bases.len() && seal.good().is_none_or(|seal| seal.base != base);
            segments.push(SegmentInfo {
                base,
                next,
                len_bytes,
                is_active,
                index: FileState::of(read_index(fs, &dir, base, len_bytes), |index| index.entries().len()),
                producers: FileState::of(read_snapshot(fs, &dir, base), |producers| producers.len()),
                seal: FileState::of(seal, |seal| SealInfo {
                    first_append_ms: seal.first_append_ms,
                    last_append_ms: seal.last_append_ms,
                    max_timestamp_ms: seal.max_timestamp_ms,
                }),
            });
        }
        let tail = segments.last().map_or(noted.flushed, |last| last.next).max(noted.flushed);
        let first = names.bases.first().copied().unwrap_or(noted.log_start);
        Ok(PartitionFacts {
            id: partition.id,
            path: partition.path.clone(),
            log_start: noted.log_start.max(first),
            flushed: noted.flushed,
            tail,
            segments,
            alien: names.alien,
        })
    }
}

fn newest_slot(fs: &dyn Fs, dir: &std::path::Path) -> io::Result<Option<Checkpoint>> {
    let file = match fs.open(&dir.join(checkpoint::FILE_NAME), OpenMode::Read, 0) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let good = checkpoint::read_slots(&*file)?.into_iter().filter_map(|(_, slot)| match slot {
        Slot::Good(sequence, checkpoint) => Some((sequence, checkpoint)),
        Slot::Blank | Slot::Damaged(_) => None,
    });
    Ok(good.max_by_key(|(sequence, _)| *sequence).map(|(_, checkpoint)| checkpoint))
}

/// The end of the last segment: what was flushed, and the batches behind that continue it.
fn tail_of(file: &dyn crate::fs::File, base: Offset, len_bytes: u64, noted: Checkpoint) -> Offset {
    if base < noted.segment {
        return noted.segment;
    }
    let (position, mut next) = if base == noted.segment { (noted.position, noted.flushed) } else { (0, base) };
    let mut walk = BatchWalk::new(file, position.min(len_bytes), len_bytes);
    while let Ok(Some(step)) = walk.next_verified() {
        if step.header.base_offset != next {
            break;
        }
        next = step.header.next_offset();
    }
    next
}
