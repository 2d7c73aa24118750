//! Writing a partition from checked segments of Kafka.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CheckedSource, Fate, ImportError, SourceSegment};
use crate::batch::header::{ATTRIBUTES_AT, CRC_AT, HEADER_BYTES, LEADER_EPOCH_AT};
use crate::batch::{BatchHeader, crc32c, fillers};
use crate::checkpoint::{Checkpoint, CheckpointFile};
use crate::fs::{self, File, OpenMode};
use crate::index::Index;
use crate::offset::{LeaderEpoch, Offset, PartitionId};
use crate::producer::{ProducerLimits, Producers};
use crate::segment::{BatchWalk, FileKind, SegmentFacts, Step, path_of};
use crate::store::{Store, create_durably};

/// An index entry for so many bytes: the default of the settings.
const INDEX_INTERVAL_BYTES: u32 = 16 << 10;
/// How many bytes are written at a time.
const WRITE_BYTES: usize = 1 << 20;

pub(super) struct Writing<'a> {
    pub(super) store: &'a Store,
    pub(super) id: PartitionId,
    pub(super) source: &'a CheckedSource,
    pub(super) now_ms: i64,
}

impl Writing<'_> {
    pub(super) fn run(&self, walked: &mut dyn FnMut(u64)) -> Result<(), ImportError> {
        let dir = self.store.partition_dir(self.id);
        let at = |path: &Path| {
            let path = path.to_owned();
            move |cause| ImportError::Io { path, cause }
        };
        let fs = self.store.fs();
        create_durably(fs, self.store.root(), &dir).map_err(at(&dir))?;
        let segments = &self.source.segments;
        let mut next = segments.first().map_or(Offset::ZERO, |segment| segment.base);
        let mut is_first = true;
        for (number, segment) in segments.iter().enumerate() {
            if segment.end == 0 {
                continue;
            }
            // Kafka names a segment by the first offset that it could hold.
            let base = if is_first { next } else { next.max(segment.base) };
            let later = &segments[number + 1..];
            let until = later.iter().find(|later| later.end > 0).or_else(|| later.last()).map(|later| later.base);
            if !is_first {
                self.forget_producers(&dir, base).map_err(at(&dir))?;
            }
            next = self.segment(&dir, segment, base, until, walked)?;
            is_first = false;
        }
        debug_assert!(is_first || next == self.source.facts.tail, "what was checked is what is written");
        self.end(&dir, self.source.facts.tail, is_first).map_err(at(&dir))
    }

    /// An empty segment to append to, and the note that everything before is on stable storage.
    fn end(&self, dir: &Path, tail: Offset, is_empty: bool) -> io::Result<()> {
        let fs = self.store.fs();
        if !is_empty {
            self.forget_producers(dir, tail)?;
        }
        fs.open(&path_of(dir, tail, FileKind::Log), OpenMode::CreateNew, 0)?.sync_data()?;
        let (mut checkpoint, _) = CheckpointFile::open(fs, dir)?;
        let log_start = self.source.log_start.min(tail);
        checkpoint.write_durably(Checkpoint { flushed: tail, segment: tail, position: 0, log_start })?;
        fs.sync_dir(dir)
    }

    /// A snapshot without producers: a start reads no batch before it for them.
    fn forget_producers(&self, dir: &Path, at: Offset) -> io::Result<()> {
        let none = Producers::new(ProducerLimits::default()).encode_snapshot(at);
        fs::replace_content(self.store.fs(), &path_of(dir, at, FileKind::Snapshot), &none, true)
    }

    /// Answers one after the last offset: that of the next segment, where there is one.
    fn segment(
        &self,
        dir: &Path,
        segment: &SourceSegment,
        base: Offset,
        until: Option<Offset>,
        walked: &mut dyn FnMut(u64),
    ) -> Result<Offset, ImportError> {
        let from = |cause| ImportError::Io { path: segment.path.clone(), cause };
        let path = path_of(dir, base, FileKind::Log);
        let to = |cause| ImportError::Io { path: path.clone(), cause };
        let fs = self.store.fs();
        let source = fs.open(&segment.path, OpenMode::Read, 0).map_err(from)?;
        let mut log = LogWriter::create(fs, path.clone(), base, self.store.leader_epoch()).map_err(to)?;
        let mut walk = BatchWalk::new(&*source, 0, segment.end);
        while let Some(step) = walk.next().map_err(io::Error::other).map_err(from)? {
            let bytes = walk.bytes(step.position, step.end()).map_err(from)?;
            self.fill_to(dir, &mut log, step.header.base_offset).map_err(to)?;
            match self.source.transactions.fate(&step.header) {
                fate @ (Fate::Kept | Fate::Committed) => {
                    let ours = log.ours(&step, &bytes, matches!(fate, Fate::Committed));
                    self.append(dir, &mut log, ours).map_err(to)?;
                }
                // Filled with what follows.
                Fate::Dropped => {}
            }
            walked(bytes.len() as u64);
            log.seen_to = step.header.next_offset();
        }
        let next = until.unwrap_or(log.seen_to);
        self.fill_to(dir, &mut log, next).map_err(to)?;
        self.seal(dir, log).map_err(to)?;
        Ok(next)
    }

    /// Empty batches up to `offset`.
    fn fill_to(&self, dir: &Path, log: &mut LogWriter, offset: Offset) -> io::Result<()> {
        for filler in fillers(log.next..offset, Some(log.epoch)) {
            self.append(dir, log, filler)?;
        }
        Ok(())
    }

    /// Goes on in another segment where the index of this one could not tell of the batch any more.
    fn append(&self, dir: &Path, log: &mut LogWriter, bytes: Vec<u8>) -> io::Result<()> {
        let header = BatchHeader::parse(&bytes).map_err(io::Error::other)?;
        if header.last_offset().since(log.base) > u64::from(u32::MAX) {
            let base = header.base_offset;
            let path = path_of(dir, base, FileKind::Log);
            let following =
                LogWriter { seen_to: log.seen_to, ..LogWriter::create(self.store.fs(), path, base, log.epoch)? };
            self.seal(dir, std::mem::replace(log, following))?;
            self.forget_producers(dir, base)?;
        }
        log.append(header, &bytes)
    }

    fn seal(&self, dir: &Path, mut log: LogWriter) -> io::Result<()> {
        log.drain()?;
        log.file.sync_data()?;
        log.facts.appended(self.now_ms);
        let seal = log.facts.seal(log.base, log.next, log.at);
        let fs = self.store.fs();
        fs::replace_content(fs, &path_of(dir, log.base, FileKind::Seal), &seal.encode(), true)?;
        fs::replace_content(fs, &path_of(dir, log.base, FileKind::Index), &log.index.encode(log.base), true)
    }
}

/// A log file that is being written.
struct LogWriter {
    file: Arc<dyn File>,
    base: Offset,
    epoch: LeaderEpoch,
    facts: SegmentFacts,
    index: Index,
    next: Offset,
    /// One after the last offset of the source.
    seen_to: Offset,
    pending: Vec<u8>,
    /// Length with what is pending.
    at: u64,
}

impl LogWriter {
    fn create(fs: &dyn fs::Fs, path: PathBuf, base: Offset, epoch: LeaderEpoch) -> io::Result<Self> {
        let file = fs.open(&path, OpenMode::CreateNew, 0)?;
        let (facts, index, pending) = (SegmentFacts::new(), Index::default(), Vec::new());
        Ok(Self { file, base, epoch, facts, index, next: base, seen_to: base, pending, at: 0 })
    }

    /// A batch of Kafka as it stands in our log.
    fn ours(&self, step: &Step, bytes: &[u8], is_committed: bool) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(LEADER_EPOCH_AT, &self.epoch.get().to_be_bytes());
        if is_committed {
            let attributes = step.header.attributes.without_transactional();
            put(ATTRIBUTES_AT, &attributes.bits().to_be_bytes());
            let crc = crc32c(&bytes[ATTRIBUTES_AT..]);
            bytes[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&crc.to_be_bytes());
        }
        bytes
    }

    fn append(&mut self, header: BatchHeader, bytes: &[u8]) -> io::Result<()> {
        let step = Step { position: self.at, header };
        if let Some(entry) = self.facts.note_step(&bytes[..HEADER_BYTES], &step, self.base, INDEX_INTERVAL_BYTES) {
            self.index.push(entry);
        }
        self.next = header.next_offset();
        self.at += bytes.len() as u64;
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= WRITE_BYTES { self.drain() } else { Ok(()) }
    }

    fn drain(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.file.write_at(&[IoSlice::new(&pending)], self.at - pending.len() as u64)
    }
}
