//! Writing a group of segments again as one.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{RememberedBatches, walk};
use crate::batch::header::HEADER_BYTES;
use crate::batch::{BatchError, BatchHeader, BatchLimits, BatchView, emptied, fillers};
use crate::compaction::{Candidate, KeyMap, Rules};
use crate::error::CompactError;
use crate::fs::{self, File};
use crate::index::Index;
use crate::limits::BATCH_BYTES_MAX;
use crate::offset::{LeaderEpoch, Offset};
use crate::segment::{Met, Seal, SealedSegment, SegmentFacts, Step};

/// How much is collected before it is written.
const WRITE_BYTES: usize = 1 << 20;

/// What decides about every batch of a compaction.
pub(super) struct Rewriter<'a> {
    pub(super) keys: &'a KeyMap,
    /// Where the keys end.
    pub(super) to: Offset,
    pub(super) log_start: Offset,
    pub(super) producers: &'a RememberedBatches,
    /// `None`: the clock is not believed.
    pub(super) now_ms: Option<i64>,
    pub(super) tombstone_age: Duration,
    pub(super) index_interval_bytes: u32,
    /// Whether everything up to here was compacted. Behind something that was left as it was a tombstone gets no
    /// horizon: what it deletes may be in there.
    pub(super) is_whole: bool,
    pub(super) go_on: &'a dyn Fn() -> bool,
}

/// What was done, in numbers.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    pub(super) removed_bytes: u64,
    pub(super) removed_records: u64,
    pub(super) removed_segments: usize,
    /// When the next tombstone may go.
    pub(super) next_horizon_ms: i64,
}

impl Default for Tally {
    fn default() -> Self {
        Self { removed_bytes: 0, removed_records: 0, removed_segments: 0, next_horizon_ms: i64::MAX }
    }
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.removed_bytes += other.removed_bytes;
        self.removed_records += other.removed_records;
        self.removed_segments += other.removed_segments;
        self.next_horizon_ms = self.next_horizon_ms.min(other.next_horizon_ms);
    }
}

/// A group of segments, written again.
pub(super) struct Made {
    pub(super) seal: Seal,
    pub(super) index: Vec<u8>,
    pub(super) tally: Tally,
}

/// Why a segment is left as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    /// The bytes are no batch, or not the one that was written.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The disk does not give them. It may do so later.
    #[error("it cannot be read: {0}")]
    Unread(io::Error),
}

/// Why a group was not written again.
#[derive(Debug, thiserror::Error)]
pub(super) enum RewriteError {
    #[error("damage at position {position} of segment {index} of the group: {reason}")]
    Damaged { index: usize, position: u64, reason: Unfit },
    #[error(transparent)]
    Failed(#[from] CompactError),
}

impl From<io::Error> for RewriteError {
    fn from(cause: io::Error) -> Self {
        Self::Failed(cause.into())
    }
}

/// What becomes of a batch.
enum Fate {
    Stays,
    Becomes(Vec<u8>),
    /// Nothing of it is needed.
    Goes,
    /// It stands for batches that went before.
    IsFiller,
}

impl Rewriter<'_> {
    /// Goes over a segment without writing. `None` when something in it is to change.
    pub(super) fn unchanged(
        &mut self,
        segment: &SealedSegment,
        file: &dyn File,
    ) -> Result<Option<Tally>, RewriteError> {
        let mut tally = Tally::default();
        let was_whole = self.is_whole;
        let changed = self.for_each_batch(0, segment, file, |rewriter, view, _| {
            let fate = rewriter.fate(view, &mut tally)?;
            Ok(matches!(fate, Fate::Becomes(_) | Fate::Goes))
        })?;
        if changed {
            self.is_whole = was_whole;
        }
        Ok((!changed).then_some(tally))
    }

    /// Writes what is left of `group`, from its first offset to its last, to `output`.
    pub(super) fn rewrite(
        &mut self,
        group: &[(&SealedSegment, Arc<dyn File>)],
        output: &dyn File,
    ) -> Result<Made, RewriteError> {
        let base = group[0].0.base;
        let next = group[group.len() - 1].0.next;
        let mut tally = Tally::default();
        let was_whole = self.is_whole;
        let mut output = Output::new(output, base, self.index_interval_bytes);
        for (index, (segment, file)) in group.iter().enumerate() {
            let written = self.for_each_batch(index, segment, &**file, |rewriter, view, bytes| {
                let header = view.header();
                match rewriter.fate(view, &mut tally)? {
                    Fate::Stays => output.put(bytes)?,
                    Fate::Becomes(bytes) => output.put(&bytes)?,
                    Fate::Goes | Fate::IsFiller => output.leave_out(header),
                }
                Ok(false)
            });
            if written.is_err() {
                self.is_whole = was_whole;
            }
            written?;
        }
        let old_bytes: u64 = group.iter().map(|(segment, _)| segment.len_bytes).sum();
        let (facts, index, len_bytes) = output.finish()?;
        tally.removed_bytes = old_bytes.saturating_sub(len_bytes);
        tally.removed_segments = group.len() - 1;
        let seal = Seal { first_append_ms: i64::MAX, last_append_ms: i64::MIN, ..facts.seal(base, next, len_bytes) };
        Ok(Made { seal, index: index.encode(base), tally })
    }

    /// Verified, batch by batch, until `visit` answers true; answers whether it did. Anything that is not as it was
    /// written ends it.
    fn for_each_batch(
        &mut self,
        index: usize,
        segment: &SealedSegment,
        file: &dyn File,
        mut visit: impl FnMut(&mut Self, &BatchView<'_>, &Bytes) -> Result<bool, VisitError>,
    ) -> Result<bool, RewriteError> {
        let mut walk = walk(file, segment);
        let unread = |position, cause| match fs::is_unreadable(&cause) {
            true => RewriteError::Damaged { index, position, reason: Unfit::Unread(cause) },
            false => cause.into(),
        };
        while let Some(met) = walk.next().map_err(|cause| unread(0, cause))? {
            if !(self.go_on)() {
                return Err(CompactError::Interrupted.into());
            }
            let step = match met {
                Met::Batch(step) => step,
                Met::Damage { position, reason, .. } => {
                    return Err(RewriteError::Damaged { index, position, reason: reason.into() });
                }
            };
            let bytes = walk.bytes(&step).map_err(|cause| unread(step.position, cause))?;
            let visited = BatchView::parse(&bytes).map_err(VisitError::Batch).and_then(|(view, _)| {
                view.verify_crc()?;
                visit(self, &view, &bytes)
            });
            match visited {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(VisitError::Io(cause)) => return Err(cause.into()),
                Err(VisitError::Batch(reason)) => {
                    return Err(RewriteError::Damaged { index, position: step.position, reason: reason.into() });
                }
            }
        }
        Ok(false)
    }

    fn fate(&mut self, view: &BatchView<'_>, tally: &mut Tally) -> Result<Fate, VisitError> {
        let header = view.header();
        let attributes = header.attributes;
        if attributes.is_control() || attributes.is_transactional() {
            // Whether its records count is not known here.
            self.is_whole = false;
            return Ok(Fate::Stays);
        }
        if header.record_count == 0 && header.producer().is_none() {
            return Ok(Fate::IsFiller);
        }
        let is_remembered = self.producers.contains(&(header.producer_id, header.base_offset));
        if header.record_count == 0 {
            return Ok(if is_remembered { Fate::Stays } else { Fate::Goes });
        }
        let horizon_ms = attributes.has_delete_horizon().then_some(header.base_timestamp_ms);
        let passed = horizon_ms.zip(self.now_ms).is_some_and(|(horizon_ms, now_ms)| horizon_ms <= now_ms);
        let rules = Rules { keys: self.keys, log_start: self.log_start, tombstones_go: passed };
        let retention = view.retain(&BatchLimits::default(), |record| {
            let is_tombstone = record.value().is_none();
            rules.keeps(&Candidate { offset: record.offset(), key: record.key(), is_tombstone })
        })?;
        tally.removed_records += u64::from(retention.removed);
        if retention.kept == 0 {
            return Ok(if is_remembered { Fate::Becomes(emptied(header)) } else { Fate::Goes });
        }
        let new_horizon_ms = self.new_horizon_ms(header, retention.kept_tombstones, horizon_ms);
        if let Some(new_horizon_ms) = new_horizon_ms
            && let Some(bytes) = retention.rebuild(Some(new_horizon_ms)).map_err(BatchError::from)?
            && bytes.len() <= BATCH_BYTES_MAX
        {
            tally.next_horizon_ms = tally.next_horizon_ms.min(new_horizon_ms);
            return Ok(Fate::Becomes(bytes));
        }
        if let Some(horizon_ms) = horizon_ms.filter(|_| retention.kept_tombstones > 0) {
            tally.next_horizon_ms = tally.next_horizon_ms.min(horizon_ms);
        }
        if retention.removed == 0 {
            return Ok(Fate::Stays);
        }
        let rebuilt = retention.rebuild(None).map_err(BatchError::from)?;
        Ok(Fate::Becomes(rebuilt.expect("without a new horizon no time is out of reach")))
    }

    /// The horizon that a batch gets now: it has tombstones and none yet, and all that they delete is gone.
    fn new_horizon_ms(&self, header: &BatchHeader, tombstones: u32, horizon_ms: Option<i64>) -> Option<i64> {
        let is_due = tombstones > 0 && horizon_ms.is_none() && self.is_whole && header.next_offset() <= self.to;
        let age_ms = i64::try_from(self.tombstone_age.as_millis()).unwrap_or(i64::MAX);
        self.now_ms.filter(|_| is_due).map(|now_ms| now_ms.saturating_add(age_ms))
    }
}

/// Why a batch could not be dealt with.
enum VisitError {
    Io(io::Error),
    Batch(BatchError),
}

impl From<io::Error> for VisitError {
    fn from(cause: io::Error) -> Self {
        Self::Io(cause)
    }
}

impl From<BatchError> for VisitError {
    fn from(reason: BatchError) -> Self {
        Self::Batch(reason)
    }
}

/// The new log file, with what its seal and its index will say.
struct Output<'a> {
    file: &'a dyn File,
    base: Offset,
    interval_bytes: u32,
    /// Where the next batch goes; what is collected is counted.
    position: u64,
    collected: Vec<u8>,
    /// Offsets left out since the last batch, for which an empty one will stand.
    left_out: Option<(Range<Offset>, Option<LeaderEpoch>)>,
    facts: SegmentFacts,
    index: Index,
}

impl<'a> Output<'a> {
    fn new(file: &'a dyn File, base: Offset, interval_bytes: u32) -> Self {
        let (facts, index) = (SegmentFacts::new(), Index::default());
        Self { file, base, interval_bytes, position: 0, collected: Vec::new(), left_out: None, facts, index }
    }

    fn leave_out(&mut self, header: &BatchHeader) {
        let from = self.left_out.take().map_or(header.base_offset, |(range, _)| range.start);
        self.left_out = Some((from..header.next_offset(), header.leader_epoch));
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.fill()?;
        self.write(bytes)
    }

    fn fill(&mut self) -> io::Result<()> {
        let Some((range, epoch)) = self.left_out.take() else { return Ok(()) };
        fillers(range, epoch).try_for_each(|filler| self.write(&filler))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let header = BatchHeader::parse(bytes).expect("it was parsed, or built here");
        let step = Step { position: self.position, header };
        if u32::try_from(step.end()).is_err() {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a compacted segment would pass 4 GiB"));
        }
        if let Some(entry) = self.facts.note_step(&bytes[..HEADER_BYTES], &step, self.base, self.interval_bytes) {
            self.index.push(entry);
        }
        self.collected.extend_from_slice(bytes);
        self.position = step.end();
        if self.collected.len() >= WRITE_BYTES { self.write_collected() } else { Ok(()) }
    }

    fn write_collected(&mut self) -> io::Result<()> {
        let at = self.position - self.collected.len() as u64;
        self.file.write_at(&[IoSlice::new(&self.collected)], at)?;
        self.collected.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<(SegmentFacts, Index, u64)> {
        self.fill()?;
        self.write_collected()?;
        Ok((self.facts, self.index, self.position))
    }
}
