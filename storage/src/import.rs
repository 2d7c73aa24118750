//! A partition that Kafka wrote, taken over with its offsets.
//!
//! Kafka's segment files hold the same batches as ours, so what is taken over is what stands there: offsets,
//! timestamps, headers, codecs and producers, byte for byte, but for the leader epoch, which becomes that of this start
//! (it lies outside the checksum). Differences are where Kafka keeps things that this log does not:
//!
//! - Offsets that Kafka's compaction left out get an empty batch, so that batches stay dense.
//! - Records of committed transactions become ordinary ones; control batches and aborted records become empty batches.
//!   A transaction that is open at the end is refused: only its coordinator knows how it ends.
//! - Producers are forgotten: their ids were given by Kafka, and ours will be given again.
//!
//! Everything is read and checked before anything is written. The source is never changed.

use std::io;
use std::path::{Path, PathBuf};

use crate::batch::BatchError;
use crate::fs::{File, Fs, OpenMode};
use crate::offset::{Offset, PartitionId};
use crate::segment::{BatchWalk, FileKind, Step, WalkError, parse_name};
use crate::store::Store;

use self::transactions::{Fate, Transactions};

mod transactions;
mod write;

/// A folder that Kafka wrote for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportSource {
    /// Where its segment files are.
    pub dir: PathBuf,
    /// The first offset that Kafka served, when that is known; what stands before it is left out as far as whole
    /// segments go, and not served.
    pub log_start: Option<Offset>,
}

/// Most offsets that may be missing between batches: 2^40. Each 2^31 of them take an empty batch, each 2^32 a segment.
const MISSING_MAX: u64 = 1 << 40;

/// Why a partition was not taken over. Nothing of it was made then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The disk does not answer.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// How.
        cause: io::Error,
    },
    /// No segment is there.
    #[error("{}: holds no segment (a file <20 digits>.log)", path.display())]
    NoSegments {
        /// The folder.
        path: PathBuf,
    },
    /// Kafka was at work on the folder when it ended.
    #[error("{}: {found:?} is there, so Kafka did not finish its work on it; start Kafka and stop it cleanly", path.display())]
    Unfinished {
        /// The folder.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// Written before Kafka 0.11, or by a topic that kept that format.
    #[error("{}, byte {position}: message format v{magic}, allowed is v2; copy the topic with a Kafka client of today", path.display())]
    OldFormat {
        /// The file.
        path: PathBuf,
        /// Where in it.
        position: u64,
        /// The format that was found.
        magic: i8,
    },
    /// What stands there is not a batch, or not an intact one.
    #[error("{}, byte {position}, offset {offset}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        position: u64,
        /// The offset that comes next there.
        offset: Offset,
        /// What is wrong.
        reason: BatchError,
    },
    /// The offsets go back.
    #[error("{}, byte {position}: offset {found} after {expected} was reached", path.display())]
    Backwards {
        /// The file.
        path: PathBuf,
        /// Where in it.
        position: u64,
        /// What should come next, or more.
        expected: Offset,
        /// What stands there.
        found: Offset,
    },
    /// Offsets are missing, more than compaction takes out of a log that was ever written.
    #[error("{}: {missing} offsets are missing between its batches, allowed are {MISSING_MAX}", path.display())]
    TooManyMissing {
        /// The folder.
        path: PathBuf,
        /// How many.
        missing: u64,
    },
    /// A transaction neither committed nor aborted.
    #[error("{}: the transaction of producer {producer_id} that begins at offset {offset} has no end; let its client end it, or Kafka time it out", path.display())]
    OpenTransaction {
        /// The folder.
        path: PathBuf,
        /// Whose.
        producer_id: i64,
        /// Its first offset.
        offset: Offset,
    },
}

/// A source that was read and checked whole, and may be taken over.
#[derive(Debug)]
pub struct CheckedSource {
    log_start: Offset,
    segments: Vec<SourceSegment>,
    transactions: Transactions,
    facts: ImportFacts,
}

/// What a source holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportFacts {
    /// The first offset that will be served.
    pub log_start: Offset,
    /// One after the last offset.
    pub tail: Offset,
    /// Batches, control batches among them.
    pub batches: u64,
    /// Records, without those of control batches and of aborted transactions.
    pub records: u64,
    /// Bytes of segment files.
    pub log_bytes: u64,
    /// Offsets before the tail that no batch spans: compaction left them out.
    pub missing_offsets: u64,
    /// Transactions that were committed.
    pub committed_transactions: u64,
    /// Transactions that were aborted.
    pub aborted_transactions: u64,
    /// The largest id of a producer.
    pub newest_producer_id: Option<i64>,
}

#[derive(Clone, Debug)]
struct SourceSegment {
    path: PathBuf,
    base: Offset,
    /// One after the last byte of the last batch.
    end: u64,
}

impl CheckedSource {
    /// Reads and checks all of `source`: every checksum, every record, that offsets rise, and how each transaction
    /// ended. `walked` is told of the bytes.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn check(fs: &dyn Fs, source: &ImportSource, walked: &mut dyn FnMut(u64)) -> Result<Self, ImportError> {
        let segments = list(fs, source)?;
        let none = || ImportError::NoSegments { path: source.dir.clone() };
        let first = segments.first().ok_or_else(none)?.base;
        let log_start = source.log_start.unwrap_or(first).max(first);
        let mut checking =
            Checking { next: first, spanned: 0, facts: ImportFacts::default(), transactions: Transactions::default() };
        let mut checked = Vec::new();
        for mut segment in segments {
            segment.end = checking.segment(fs, &segment, walked)?;
            checked.push(segment);
        }
        let Checking { next, spanned, mut facts, transactions } = checking;
        if let Some((producer_id, offset)) = transactions.open() {
            return Err(ImportError::OpenTransaction { path: source.dir.clone(), producer_id, offset });
        }
        facts.records -= transactions.aborted_records();
        facts.missing_offsets = next.since(first) - spanned;
        if facts.missing_offsets > MISSING_MAX {
            return Err(ImportError::TooManyMissing { path: source.dir.clone(), missing: facts.missing_offsets });
        }
        (facts.log_start, facts.tail) = (log_start.min(next), next);
        facts.log_bytes = checked.iter().map(|segment| segment.end).sum();
        (facts.committed_transactions, facts.aborted_transactions) = transactions.ended();
        Ok(Self { log_start: facts.log_start, segments: checked, transactions, facts })
    }

    /// What it holds.
    #[must_use]
    pub const fn facts(&self) -> &ImportFacts {
        &self.facts
    }
}

impl Store {
    /// Makes the partition `id` from `source`, durably. It must not exist; [`Store::open_partition`] then opens it.
    /// `now_ms` is when its records count as appended, ms since 1970.
    ///
    /// # Errors
    /// [`ImportError::Io`]. What was made of it lies in the topic's directory, for [`Store::delete_topic`].
    pub fn import_partition(
        &self,
        id: PartitionId,
        source: &CheckedSource,
        now_ms: i64,
        walked: &mut dyn FnMut(u64),
    ) -> Result<(), ImportError> {
        write::Writing { store: self, id, source, now_ms }.run(walked)
    }
}

/// The segments from the one on that holds the log start.
fn list(fs: &dyn Fs, source: &ImportSource) -> Result<Vec<SourceSegment>, ImportError> {
    let dir = &source.dir;
    let entries = fs.list(dir).map_err(|cause| ImportError::Io { path: dir.clone(), cause })?;
    let unfinished = entries.iter().find(|entry| entry.name.ends_with(".swap") || entry.name.ends_with(".cleaned"));
    if let Some(entry) = unfinished {
        return Err(ImportError::Unfinished { path: dir.clone(), found: entry.name.clone() });
    }
    let logs = entries.iter().filter(|entry| !entry.is_dir).filter_map(|entry| match parse_name(&entry.name) {
        Some((base, FileKind::Log)) => Some(SourceSegment { path: dir.join(&entry.name), base, end: 0 }),
        _ => None,
    });
    let mut segments: Vec<_> = logs.collect();
    segments.sort_by_key(|segment| segment.base);
    let log_start = source.log_start.unwrap_or(Offset::ZERO);
    let below = segments.iter().skip(1).take_while(|segment| segment.base <= log_start).count();
    Ok(segments.split_off(below))
}

struct Checking {
    next: Offset,
    /// Offsets of batches.
    spanned: u64,
    facts: ImportFacts,
    transactions: Transactions,
}

impl Checking {
    /// Answers where the last batch ends.
    fn segment(
        &mut self,
        fs: &dyn Fs,
        segment: &SourceSegment,
        walked: &mut dyn FnMut(u64),
    ) -> Result<u64, ImportError> {
        let path = &segment.path;
        let io = |cause| ImportError::Io { path: path.clone(), cause };
        let file = fs.open(path, OpenMode::Read, 0).map_err(io)?;
        let len_bytes = file.len().map_err(io)?;
        if segment.base < self.next {
            let (expected, found) = (self.next, segment.base);
            return Err(ImportError::Backwards { path: path.clone(), position: 0, expected, found });
        }
        // Where nothing is left before it, compaction took that.
        self.next = segment.base;
        let mut walk = BatchWalk::new(&*file, 0, len_bytes);
        loop {
            let position = walk.position();
            let step = match walk.next_verified() {
                Ok(Some(step)) => step,
                Ok(None) => return Ok(position),
                Err(WalkError::Io(cause)) => return Err(io(cause)),
                Err(WalkError::NoBatch { reason, .. }) => {
                    // Space that Kafka preallocated, as it does with `log.preallocate`.
                    if is_zero(&*file, position, len_bytes).map_err(io)? {
                        return Ok(position);
                    }
                    return Err(self.no_batch(path, position, reason));
                }
            };
            let bytes = walk.bytes(step.position, step.end()).map_err(io)?;
            self.batch(segment, &step, &bytes)?;
            walked(step.header.size_bytes() as u64);
        }
    }

    fn no_batch(&self, path: &Path, position: u64, reason: BatchError) -> ImportError {
        let path = path.to_owned();
        match reason {
            BatchError::UnsupportedMagic { found: magic @ (0 | 1) } => ImportError::OldFormat { path, position, magic },
            reason => ImportError::Damaged { path, position, offset: self.next, reason },
        }
    }

    fn batch(&mut self, segment: &SourceSegment, step: &Step, bytes: &[u8]) -> Result<(), ImportError> {
        let (path, header) = (&segment.path, &step.header);
        let (position, expected, found) = (step.position, self.next, header.base_offset);
        if found < expected {
            return Err(ImportError::Backwards { path: path.to_owned(), position, expected, found });
        }
        // What Kafka's own index counts in, too.
        if header.last_offset().since(segment.base) > i32::MAX.unsigned_abs().into() {
            let allowed = "within 2^31 offsets of the file's name";
            let reason = BatchError::Field { field: "base_offset", found: found.get(), allowed };
            return Err(ImportError::Damaged { path: path.clone(), position, offset: expected, reason });
        }
        let read = self.transactions.note(header, bytes);
        read.map_err(|reason| ImportError::Damaged { path: path.to_owned(), position, offset: found, reason })?;
        self.spanned += header.next_offset().since(found);
        self.facts.batches += 1;
        if !header.attributes.is_control() {
            self.facts.records += u64::from(header.record_count.unsigned_abs());
        }
        let producer_id = header.producer().map(|producer| producer.id);
        self.facts.newest_producer_id = self.facts.newest_producer_id.max(producer_id);
        self.next = header.next_offset();
        Ok(())
    }
}

fn is_zero(file: &dyn File, from: u64, to: u64) -> io::Result<bool> {
    let mut at = from;
    while at < to {
        let end = to.min(at + crate::limits::SCAN_BYTES);
        if file.slice(at..end)?.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}
