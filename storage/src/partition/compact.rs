//! Compaction: sealed segments are written again with fewer records, beside the old ones, which then make room.
//!
//! Nobody waits for it: appends, flushes and reads go on, but for the moment of one rename. It begins with a flush:
//! what decides about the records, such as which batches of producers stay, must not be taken back. How the files
//! change, so that at each step a crash leaves the old segments or the new one, never both nor none:
//!
//! 1. `<base>.clean`, the new log, is written and synced, and then its name.
//! 2. `<base>.swap`, the new seal, likewise. From here on it is decided: recovery finishes what follows. The index of
//!    the old file went before: its places mean nothing in the new one.
//! 3. `<base>.clean` becomes `<base>.log`, at the same moment for readers.
//! 4. The other segments of the group are removed, which is synced, since only the swap file tells that they must not
//!    be there.
//! 5. `<base>.swap` becomes `<base>.seal`.
//!
//! An empty batch stands where batches are gone, so that also in a compacted segment each batch begins where the one
//! before ended (invariant S2): a wrong base offset, which no checksum of a batch covers, is noticed there as anywhere
//! else, and no reader has to tell a gap from damage. It costs 61 bytes for each place where something is missing.

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::sync::Arc;

use self::rewrite::{Made, RewriteError, Rewriter, Tally, Unfit};
use super::names::NamesError;
use super::{LogFiles, Partition};
use crate::batch::{BatchLimits, BatchView};
use crate::cleaned::Cleaned;
use crate::compaction::{self, Due, KeyMap, SegmentFill};
use crate::config::CompactionConfig;
use crate::error::CompactError;
use crate::fs::{self, File, OpenMode};
use crate::limits::DESCRIPTOR_WAIT;
use crate::offset::Offset;
use crate::segment::{BatchWalk, DenseWalk, FileKind, Met, SealedSegment, path_of, remove_segment};

mod rewrite;

/// What a compaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactionOutcome {
    /// Why it ran.
    pub due: Due,
    /// Below, of each key only the newest record is left.
    pub to: Offset,
    /// Bytes of the segments that it went over.
    pub read_bytes: u64,
    /// By how much they shrank.
    pub removed_bytes: u64,
    /// Records that are gone.
    pub removed_records: u64,
    /// How many segments there are less.
    pub removed_segments: usize,
    /// Base offsets of segments that are damaged, or cannot be read: they were left as they are.
    pub damaged: Vec<Offset>,
}

/// What compactions of this partition know of each other; guarded by the compaction lock.
#[derive(Debug, Default)]
pub(super) struct Cleaner {
    /// Read from its file when it is first needed.
    cleaned: Option<Cleaned>,
    /// What they could not read since the start.
    passed_over: Option<PassedOver>,
    unfinished: Option<Unfinished>,
}

/// Segments that the disk did not give, or not all of them. It may do so again: then they hold records that newer ones
/// were to replace, and newer ones of keys that are not known. So the note of how far the log was compacted stays where
/// it was, for the next start to go over all of it again, and no tombstone behind them gets a horizon before.
#[derive(Clone, Copy, Debug)]
struct PassedOver {
    /// From where on keys are to be read again.
    keys_from: Offset,
    /// Where the first of the segments begins, and where the last one ends.
    base: Offset,
    next: Offset,
}

impl PassedOver {
    fn add(passed_over: &mut Option<Self>, keys_from: Offset, segment: &SealedSegment) {
        let SealedSegment { base, next, .. } = *segment;
        let earlier = passed_over.unwrap_or(Self { keys_from, base, next });
        *passed_over = Some(Self {
            keys_from: earlier.keys_from.min(keys_from),
            base: earlier.base.min(base),
            next: earlier.next.max(next),
        });
    }
}

/// A swap that was decided and met an error.
#[derive(Debug)]
enum Unfinished {
    /// The old log is still there, and nothing was lost yet: to be taken back.
    Decided { base: Offset },
    /// The new log is there: to be finished.
    Replaced { segment: Arc<SealedSegment>, swallowed: Vec<Offset>, index: Vec<u8> },
}

/// The segments that take part, and why.
struct Plan {
    due: Due,
    config: CompactionConfig,
    segment_bytes: u64,
    segments: Vec<Arc<SealedSegment>>,
    fills: Vec<SegmentFill>,
}

impl Partition {
    /// Compacts the log on this thread when it is due; answers `None` when it is not, is not to be compacted at all, or
    /// is being compacted, and while the disk is full. `now_ms` is `None` while the clock is not believed: then no
    /// tombstone goes. Nothing at or above `hold` is looked at. Ends early, with nothing lost, when `go_on` says no.
    ///
    /// # Errors
    /// See [`CompactError`]. The log goes on with what was compacted and what was not.
    pub fn compact(
        &self,
        now_ms: Option<i64>,
        hold: Option<Offset>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<CompactionOutcome>, CompactError> {
        let Some(mut cleaner) = self.cleaner.try_lock() else { return Ok(None) };
        if let Some(stopped) = self.stopped() {
            return Err(stopped.clone().into());
        }
        if self.shared.reserve.is_full() {
            // What is given back to the disk now is for those who must go on.
            return Ok(None);
        }
        self.settle_unfinished(&mut cleaner)?;
        let cleaned = match cleaner.cleaned {
            Some(cleaned) => cleaned,
            None => *cleaner.cleaned.insert(Cleaned::read(&*self.shared.fs, &self.dir)?),
        };
        let Some(plan) = self.plan(&cleaned, now_ms, hold)? else { return Ok(None) };
        self.run(&mut cleaner, cleaned, plan, now_ms, go_on).map(Some)
    }

    /// Only what is durable takes part, up to the segment in which the flushed bytes end, and what nobody holds.
    fn plan(&self, cleaned: &Cleaned, now_ms: Option<i64>, hold: Option<Offset>) -> io::Result<Option<Plan>> {
        let config = self.config();
        let Some(compaction) = config.compaction else { return Ok(None) };
        let flushed_to = self.checkpoint.lock().segment();
        let limit = hold.map_or(flushed_to, |hold| hold.min(flushed_to));
        let mut segments = self.files.read().sealed.clone();
        segments.truncate(segments.partition_point(|segment| segment.next <= limit));
        let mut fills = Vec::with_capacity(segments.len());
        for segment in &segments {
            let seal = segment.seal(&*self.shared.fs, &self.dir)?;
            fills.push(SegmentFill {
                base: segment.base,
                next: segment.next,
                len_bytes: segment.len_bytes,
                first_append_ms: seal.first_append_ms,
                last_append_ms: seal.last_append_ms,
            });
        }
        fills.truncate(compaction::settled(&fills, &compaction, now_ms));
        segments.truncate(fills.len());
        let due = compaction::due(&fills, cleaned, &compaction, now_ms);
        let segment_bytes = u64::from(config.segment_bytes);
        Ok(due.map(|due| Plan { due, config: compaction, segment_bytes, segments, fills }))
    }

    fn run(
        &self,
        cleaner: &mut Cleaner,
        cleaned: Cleaned,
        plan: Plan,
        now_ms: Option<i64>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<CompactionOutcome, CompactError> {
        let producers = self.durably_remembered_batches()?;
        // A position in a segment that is replaced must not be where a checkpoint says that the flushed bytes end: not
        // in an older one either, to which a power cut would fall back.
        self.checkpoint.lock().write_again_durably()?;
        let first = plan.segments.first().map(|segment| segment.base);
        cleaner.passed_over.take_if(|passed_over| first.is_some_and(|first| passed_over.next <= first));
        let (keys, to) = self.read_keys(&plan, cleaned.to, &mut cleaner.passed_over, go_on)?;
        let count = plan.segments.partition_point(|segment| segment.base < to);
        let mut rewriter = Rewriter {
            keys: &keys,
            to,
            log_start: self.log_start(),
            producers: &producers,
            now_ms,
            tombstone_age: plan.config.tombstone_age,
            index_interval_bytes: self.config().index_interval_bytes,
            is_whole: true,
            go_on,
        };
        let mut tally = Tally::default();
        let mut damaged = Vec::new();
        let mut at = 0;
        while at < count {
            let mut group = compaction::merged(&plan.fills[at..count], plan.segment_bytes);
            at += loop {
                let segments = &plan.segments[at..at + group];
                let reached = segments[group - 1].next;
                rewriter.is_whole &= cleaner.passed_over.is_none_or(|passed_over| reached <= passed_over.base);
                match self.compact_group(cleaner, segments, &mut rewriter, &mut tally) {
                    Ok(()) => break group,
                    Err(RewriteError::Failed(error)) => return Err(error),
                    // As far as the damage, and then from there.
                    Err(RewriteError::Damaged { index, .. }) if index > 0 => group = index,
                    Err(RewriteError::Damaged { position, reason, .. }) => {
                        let base = segments[0].base;
                        tracing::error!(partition = %self.id(), segment = %base, position, %reason, "damaged; not compacted");
                        damaged.push(base);
                        rewriter.is_whole = false;
                        if matches!(reason, Unfit::Unread(_)) {
                            PassedOver::add(&mut cleaner.passed_over, cleaned.to, &segments[0]);
                        }
                        break 1;
                    }
                }
            };
        }
        let done = Cleaned { to, next_horizon_ms: tally.next_horizon_ms };
        cleaner.cleaned = Some(done);
        let noted = Cleaned { to: cleaner.passed_over.map_or(to, |passed_over| passed_over.keys_from), ..done };
        if let Err(cause) = noted.write(&*self.shared.fs, &self.dir) {
            tracing::warn!(partition = %self.id(), %cause, "progress of compaction not noted");
        }
        Ok(CompactionOutcome {
            due: plan.due,
            to,
            read_bytes: plan.segments[..count].iter().map(|segment| segment.len_bytes).sum(),
            removed_bytes: tally.removed_bytes,
            removed_records: tally.removed_records,
            removed_segments: tally.removed_segments,
            damaged,
        })
    }

    /// The batches that producers may send again, whatever a power cut leaves of the log: behind one that lost the
    /// newest of a producer, older ones would count among its last five again, and their headers would be gone.
    fn durably_remembered_batches(&self) -> Result<RememberedBatches, CompactError> {
        let remembered = self.writer.lock().producers.remembered_batches();
        self.flush()?;
        Ok(remembered)
    }

    /// The keys of what was never compacted, as many as there is room for, and where they end.
    fn read_keys(
        &self,
        plan: &Plan,
        from: Offset,
        passed_over: &mut Option<PassedOver>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(KeyMap, Offset), CompactError> {
        let end = plan.segments.last().map_or(from, |segment| segment.next).max(from);
        let mut keys = KeyMap::new(self.shared.compaction_keys_bytes, end.since(from));
        for segment in plan.segments.iter().filter(|segment| segment.next > from) {
            match self.read_keys_of(segment, &mut keys, from, go_on) {
                Ok(None) => {}
                Ok(Some(full_at)) => return Ok((keys, full_at)),
                // What the rest of it would replace stays: the next start goes on from here.
                Err(CompactError::Io(cause)) if fs::is_unreadable(&cause) => {
                    PassedOver::add(passed_over, from, segment);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((keys, end))
    }

    /// Answers the offset for whose key there is no room.
    fn read_keys_of(
        &self,
        segment: &SealedSegment,
        keys: &mut KeyMap,
        from: Offset,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Offset>, CompactError> {
        let file = self.open_old(segment)?;
        let mut walk = walk(&*file, segment);
        while let Some(met) = walk.next()? {
            if !go_on() {
                return Err(CompactError::Interrupted);
            }
            let Met::Batch(step) = met else { continue };
            if step.header.last_offset() >= from
                && let Some(full_at) = note_keys(keys, &walk.bytes(&step)?, from)
            {
                return Ok(Some(full_at));
            }
        }
        Ok(None)
    }

    fn compact_group(
        &self,
        cleaner: &mut Cleaner,
        group: &[Arc<SealedSegment>],
        rewriter: &mut Rewriter<'_>,
        tally: &mut Tally,
    ) -> Result<(), RewriteError> {
        let mut files = Vec::with_capacity(group.len());
        for segment in group {
            let file = self.open_old(segment).map_err(|cause| match fs::is_unreadable(&cause) {
                true => RewriteError::Damaged { index: files.len(), position: 0, reason: Unfit::Unread(cause) },
                false => cause.into(),
            })?;
            files.push((&**segment, file));
        }
        if let [(segment, file)] = &files[..]
            && let Some(unchanged) = rewriter.unchanged(segment, &**file)?
        {
            tally.add(&unchanged);
            return Ok(());
        }
        self.find_room(group)?;
        let made = self.make(&files, rewriter).inspect_err(|_| self.discard(group[0].base))?;
        tally.add(&made.tally);
        self.swap(cleaner, group, made)?;
        Ok(())
    }

    /// Others must not meet a full disk because of a file that is given up then.
    fn find_room(&self, group: &[Arc<SealedSegment>]) -> Result<(), CompactError> {
        let needed_bytes: u64 = group.iter().map(|segment| segment.len_bytes).sum();
        if self.shared.reserve.is_full() || self.shared.fs.free_bytes(&self.dir)? < needed_bytes {
            return Err(io::Error::from(io::ErrorKind::StorageFull).into());
        }
        Ok(())
    }

    fn make(
        &self,
        files: &[(&SealedSegment, Arc<dyn File>)],
        rewriter: &mut Rewriter<'_>,
    ) -> Result<Made, RewriteError> {
        let base = files[0].0.base;
        let output = self.create(base, FileKind::Clean).map_err(CompactError::from)?;
        let mut made = rewriter.rewrite(files, &*output)?;
        for (segment, _) in files {
            let seal = segment.seal(&*self.shared.fs, &self.dir).map_err(CompactError::from)?;
            made.seal.first_append_ms = made.seal.first_append_ms.min(seal.first_append_ms);
            made.seal.last_append_ms = made.seal.last_append_ms.max(seal.last_append_ms);
        }
        output.sync_data().map_err(CompactError::from)?;
        Ok(made)
    }

    /// Puts the new log in the place of the old ones.
    fn swap(&self, cleaner: &mut Cleaner, group: &[Arc<SealedSegment>], made: Made) -> Result<(), CompactError> {
        let base = group[0].base;
        self.sync_own_names()?;
        // Retention waits: what is swapped does not go at the same time.
        let _condemned = self.condemned.lock();
        if self.files.read().position_of(group).is_none() {
            self.discard(base);
            return Err(CompactError::Interrupted);
        }
        let edition = 1 + group.iter().map(|segment| segment.edition).max().unwrap_or(0);
        let segment = Arc::new(SealedSegment::compacted(made.seal, edition));
        // Set before, so that an error at any step finds it.
        cleaner.unfinished = Some(Unfinished::Decided { base });
        if let Err(error) = self.decide(&made).and_then(|()| Ok(self.replace(group, &segment)?)) {
            self.undo(base)?;
            cleaner.unfinished = None;
            return Err(error);
        }
        let swallowed: Vec<_> = group[1..].iter().map(|segment| segment.base).collect();
        self.finish(&segment, &swallowed, &made.index).inspect_err(|_| {
            cleaner.unfinished = Some(Unfinished::Replaced { segment, swallowed, index: made.index });
        })?;
        cleaner.unfinished = None;
        tracing::debug!(partition = %self.id(), %base, segments = group.len(), "compacted");
        Ok(())
    }

    fn decide(&self, made: &Made) -> Result<(), CompactError> {
        self.remove_if_there(made.seal.base, FileKind::Index)?;
        let file = self.create(made.seal.base, FileKind::Swap)?;
        file.write_at(&[IoSlice::new(&made.seal.encode())], 0)?;
        file.sync_data()?;
        self.sync_own_names()
    }

    /// One moment for the file and for what stands for it: whoever opened it looks afterwards which one it was.
    fn replace(&self, group: &[Arc<SealedSegment>], segment: &Arc<SealedSegment>) -> io::Result<()> {
        let (clean, log) = (self.path(segment.base, FileKind::Clean), self.path(segment.base, FileKind::Log));
        let mut files = self.files.write();
        let at = files.position_of(group).expect("retention waits, and nothing else removes segments");
        self.shared.fs.rename(&clean, &log)?;
        files.sealed.splice(at..at + group.len(), [Arc::clone(segment)]);
        drop(files);
        for old in group {
            self.shared.open_segments.remove(&(self.id(), old.base));
        }
        Ok(())
    }

    fn finish(&self, segment: &SealedSegment, swallowed: &[Offset], index: &[u8]) -> Result<(), CompactError> {
        for &base in swallowed {
            remove_segment(&*self.shared.fs, &self.dir, base)?;
        }
        self.sync_own_names()?;
        let (swap, seal) = (self.path(segment.base, FileKind::Swap), self.path(segment.base, FileKind::Seal));
        match self.shared.fs.rename(&swap, &seal) {
            // Tried before, or retention was faster.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        let path = self.path(segment.base, FileKind::Index);
        if let Err(cause) = fs::replace_content(&*self.shared.fs, &path, index, false) {
            tracing::warn!(path = %path.display(), %cause, "not written; it is rebuilt when needed");
        }
        self.sync_own_names()
    }

    /// What a decided swap needs that could not be done. Durably, and in this order: a swap file that comes back
    /// without its log would speak of the old one.
    fn undo(&self, base: Offset) -> Result<(), CompactError> {
        if let Some(stopped) = self.stopped() {
            // No sync of these names proves anything any more: the next start decides.
            return Err(stopped.clone().into());
        }
        self.remove_if_there(base, FileKind::Swap)?;
        self.sync_own_names()?;
        self.discard(base);
        Ok(())
    }

    fn settle_unfinished(&self, cleaner: &mut Cleaner) -> Result<(), CompactError> {
        let _condemned = self.condemned.lock();
        match &cleaner.unfinished {
            None => return Ok(()),
            Some(Unfinished::Decided { base }) => self.undo(*base)?,
            Some(Unfinished::Replaced { segment, swallowed, index }) => self.finish(segment, swallowed, index)?,
        }
        cleaner.unfinished = None;
        Ok(())
    }

    /// Nobody knows of it yet; a failure leaves it for the next compaction or start to remove.
    fn discard(&self, base: Offset) {
        if let Err(cause) = self.remove_if_there(base, FileKind::Clean) {
            tracing::warn!(partition = %self.id(), %base, %cause, "half a compaction not removed");
        }
    }

    fn open_old(&self, segment: &SealedSegment) -> io::Result<Arc<dyn File>> {
        let path = self.path(segment.base, FileKind::Log);
        fs::asked_twice(|| self.shared.fs.open(&path, OpenMode::Read, segment.len_bytes))
    }

    /// An empty file, whatever was left under its name.
    fn create(&self, base: Offset, kind: FileKind) -> io::Result<Arc<dyn File>> {
        self.remove_if_there(base, kind)?;
        self.shared.fs.open(&self.path(base, kind), OpenMode::CreateNew, 0)
    }

    fn remove_if_there(&self, base: Offset, kind: FileKind) -> io::Result<()> {
        match self.shared.fs.remove_file(&self.path(base, kind)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn path(&self, base: Offset, kind: FileKind) -> std::path::PathBuf {
        path_of(&self.dir, base, kind)
    }

    /// Without a descriptor it goes on later: whatever the compaction has come to, a crash leaves the old segments or
    /// the new one, and the next compaction goes on from there.
    fn sync_own_names(&self) -> Result<(), CompactError> {
        self.sync_names("compacting", DESCRIPTOR_WAIT).map_err(|error| match error {
            NamesError::NoDescriptors(cause) => CompactError::Io(cause),
            NamesError::Stopped(stopped) => CompactError::Stopped(stopped),
        })
    }
}

impl LogFiles {
    /// Where these segments stand, if all of them still do.
    fn position_of(&self, group: &[Arc<SealedSegment>]) -> Option<usize> {
        let at = self.sealed.iter().position(|segment| Arc::ptr_eq(segment, &group[0]))?;
        let found = self.sealed.get(at..at + group.len())?;
        found.iter().zip(group).all(|(found, segment)| Arc::ptr_eq(found, segment)).then_some(at)
    }
}

/// Batches that an idempotent producer may send again, by producer and base offset.
type RememberedBatches = HashSet<(i64, Offset)>;

fn walk<'a>(file: &'a dyn File, segment: &SealedSegment) -> DenseWalk<'a> {
    DenseWalk::new(BatchWalk::new(file, 0, segment.len_bytes), segment.base, segment.next)
}

/// Notes the keys of a batch from `from` on. Answers the offset for whose key there is no room. A batch that nobody can
/// read replaces nothing.
fn note_keys(keys: &mut KeyMap, bytes: &[u8], from: Offset) -> Option<Offset> {
    let (view, _) = BatchView::parse(bytes).ok()?;
    if view.verify_crc().is_err()
        || view.header().attributes.is_transactional()
        || view.header().attributes.is_control()
    {
        return None;
    }
    let records = view.records(&BatchLimits::default()).ok()?;
    if records.iter().any(|record| record.is_err()) {
        return None;
    }
    let mut noted = records.iter().flatten().filter(|record| record.offset() >= from);
    noted.find(|record| record.key().is_some_and(|key| !keys.note(key, record.offset()))).map(|record| record.offset())
}
