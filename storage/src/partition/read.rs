//! Reading a partition by offset and by time.

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::Partition;
use crate::batch::{BatchError, BatchLimits, BatchView, Batches, RecordView};
use crate::error::{ReadError, Stopped};
use crate::fs::{self, File};
use crate::index::{Index, IndexEntry};
use crate::limits::{READ_BYTES_MAX, SCAN_BYTES};
use crate::offset::Offset;
use crate::segment::{
    ActiveSegment, BatchWalk, DenseWalk, Met, OpenSegment, SealedSegment, Step, Trust, WalkError, next_intact,
};

/// What a read found.
#[derive(Clone, Debug)]
pub struct ReadOutcome {
    /// Whole batches of one segment, one behind the other. The first one holds the offset that was asked for, so it may
    /// begin before it; where compaction left nothing there, they begin behind it. Empty at the tail.
    pub bytes: Bytes,
    /// Where to read on.
    pub next: Offset,
    /// One after the last offset, at the moment of the read.
    pub tail: Offset,
    /// The first offset there is, at the moment of the read.
    pub log_start: Offset,
}

/// How a read goes on.
#[derive(Debug)]
pub enum ReadStart {
    /// It is done.
    Ready(ReadOutcome),
    /// It may wait for the disk or has to verify checksums: run it where blocking is fine.
    Cold(ColdRead),
}

/// A read that may block.
#[derive(Debug)]
pub struct ColdRead {
    partition: Arc<Partition>,
    from: Offset,
    max_bytes: usize,
}

impl ColdRead {
    /// Does the read on this thread.
    ///
    /// # Errors
    /// As [`Partition::read`].
    pub fn run(self) -> Result<ReadOutcome, ReadError> {
        self.partition.read_blocking(self.from, self.max_bytes)
    }
}

/// The segment that holds an offset.
enum Place {
    Active {
        segment: Arc<ActiveSegment>,
        /// The tail when it was the active one.
        tail: Offset,
    },
    Sealed(Arc<SealedSegment>),
    /// Offsets lost to damage that took the end of a segment: nothing is there before the next segment.
    Lost {
        to: Offset,
    },
}

/// What a look for a time in a sealed segment found.
enum Searched {
    Found(Offset, i64),
    Absent,
    /// Compaction replaced the segment meanwhile.
    Replaced,
}

/// One segment as a reader sees it.
struct View<'a> {
    base: Offset,
    /// One after the last offset to be seen. In the active segment the tail, which moves after the published length:
    /// what is published beyond belongs to an append that has not ended, and its offset may not be given to anybody
    /// yet.
    next: Offset,
    file: &'a dyn File,
    /// Whether to wait for the disk, and to verify; otherwise what needs that is `WouldBlock`.
    may_wait: bool,
    end: u64,
    trust: &'a Trust,
    /// The partition's: see [`View::trusts`].
    stopped: &'a OnceLock<Stopped>,
    index: IndexOf<'a>,
}

enum IndexOf<'a> {
    Active(&'a ActiveSegment),
    Sealed(&'a Index),
}

impl View<'_> {
    fn with_index<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        match self.index {
            IndexOf::Active(segment) => segment.with_index(look),
            IndexOf::Sealed(index) => look(index),
        }
    }

    /// Whether these bytes are served without a look at their checksums. None are once the partition has stopped: a
    /// failed sync leaves clean pages that the disk never got, and when the kernel needs their memory, what stood there
    /// before is read in their place.
    fn trusts(&self, range: &Range<u64>) -> bool {
        !self.is_stopped() && self.trust.covers(range)
    }

    fn is_stopped(&self) -> bool {
        self.stopped.get().is_some()
    }

    /// A walk from `entry` on, or from the beginning when that is not where the index says.
    fn walk_from(&self, entry: IndexEntry, window_bytes: u64) -> std::io::Result<DenseWalk<'_>> {
        let walk = |entry: IndexEntry| {
            let walk = BatchWalk::new(self.file, entry.position.into(), self.end);
            let walk = walk.with_window(window_bytes).waiting(self.may_wait);
            let expected = self.base.checked_add(entry.relative_offset.into()).unwrap_or(self.next);
            DenseWalk::new(walk, expected, self.next)
        };
        let mut indexed = walk(entry);
        if entry == IndexEntry::FIRST || indexed.begins_well()? { Ok(indexed) } else { Ok(walk(IndexEntry::FIRST)) }
    }

    /// Whether a batch that was not appended by this process is as it was written, as far as that can be told.
    fn is_intact(&self, walk: &DenseWalk<'_>, step: &Step) -> std::io::Result<bool> {
        if self.trusts(&(step.position..step.end())) {
            return Ok(true);
        }
        Ok(BatchView::parse(&walk.bytes(step)?).is_ok_and(|(view, _)| view.verify_crc().is_ok()))
    }
}

impl Partition {
    /// Reads whole batches from `from` on: at most `max_bytes`, but at least one batch.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(self: &Arc<Self>, from: Offset, max_bytes: usize) -> Result<ReadStart, ReadError> {
        match self.place(from)? {
            None => Ok(ReadStart::Ready(self.outcome(Bytes::new(), from))),
            Some(Place::Active { segment, tail }) => match self.read_hot(&segment, tail, from, max_bytes)? {
                Some(outcome) => Ok(ReadStart::Ready(outcome)),
                None => Ok(self.cold(from, max_bytes)),
            },
            Some(Place::Sealed(sealed)) => match self.read_resident(&sealed, from, max_bytes)? {
                Some(outcome) => Ok(ReadStart::Ready(outcome)),
                None => Ok(self.cold(from, max_bytes)),
            },
            Some(Place::Lost { .. }) => Ok(self.cold(from, max_bytes)),
        }
    }

    fn cold(self: &Arc<Self>, from: Offset, max_bytes: usize) -> ReadStart {
        ReadStart::Cold(ColdRead { partition: Arc::clone(self), from, max_bytes })
    }

    /// As [`Partition::read`], waiting for the disk where that is needed.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_blocking(&self, from: Offset, max_bytes: usize) -> Result<ReadOutcome, ReadError> {
        let first = self.read_at(from, max_bytes.min(READ_BYTES_MAX))?;
        if first.bytes.is_empty() || holds_records(&first.bytes) {
            return Ok(first);
        }
        Ok(self.pass_empty(&first, max_bytes).unwrap_or(first))
    }

    /// The read goes on behind batches that compaction has emptied: there are clients that do not get on from an answer
    /// without a record. `None` when nothing follows, or nothing that can be read: then the empty ones lead there.
    fn pass_empty(&self, first: &ReadOutcome, max_bytes: usize) -> Option<ReadOutcome> {
        let mut at = first.next;
        loop {
            let outcome =
                self.read_at(at, max_bytes.min(READ_BYTES_MAX)).ok().filter(|found| !found.bytes.is_empty())?;
            if holds_records(&outcome.bytes) {
                return Some(outcome);
            }
            at = outcome.next;
        }
    }

    fn read_at(&self, from: Offset, max_bytes: usize) -> Result<ReadOutcome, ReadError> {
        self.read_placed(from, max_bytes).map_err(|error| match error {
            ReadError::Io(cause) if fs::is_unreadable(&cause) => {
                let reason = format!("records from offset {from} on cannot be read from the disk: {cause}");
                ReadError::Io(std::io::Error::new(cause.kind(), reason))
            }
            other => other,
        })
    }

    fn read_placed(&self, from: Offset, max_bytes: usize) -> Result<ReadOutcome, ReadError> {
        match self.place(from)? {
            None => Ok(self.outcome(Bytes::new(), from)),
            Some(Place::Lost { to }) => Err(ReadError::Damaged { from, to }),
            Some(Place::Active { segment, tail }) => self.read_view(&self.view_active(&segment, tail), from, max_bytes),
            Some(Place::Sealed(sealed)) => match self.open_sealed(&sealed) {
                Ok(Some(open)) => self.read_view(&self.view_sealed(&sealed, &open), from, max_bytes),
                // Compacted between the look and the opening.
                Ok(None) => self.read_placed(from, max_bytes),
                // Removed in between.
                Err(_) if from < self.log_start() => Err(self.out_of_range(from)),
                Err(cause) => Err(cause.into()),
            },
        }
    }

    /// The first record, and its timestamp in ms since 1970, whose timestamp is at least `timestamp_ms`; `None` when
    /// all are older. Blocks on the disk.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn offset_for_time(&self, timestamp_ms: i64) -> Result<Option<(Offset, i64)>, ReadError> {
        // The tail first: it lies in what is the active segment then, or before it.
        let tail = self.tail();
        let (sealed, active) = {
            let files = self.files.read();
            (files.sealed.clone(), Arc::clone(&files.active))
        };
        for segment in sealed {
            match self.search_sealed(&segment, timestamp_ms) {
                Err(ReadError::Io(_)) if segment.next <= self.log_start() => {}
                Ok(Searched::Absent) => {}
                Ok(Searched::Found(offset, timestamp_ms)) => return Ok(Some((offset, timestamp_ms))),
                Ok(Searched::Replaced) => return self.offset_for_time(timestamp_ms),
                Err(error) => return Err(error),
            }
        }
        self.search_time(&self.view_active(&active, tail), timestamp_ms)
    }

    fn search_sealed(&self, segment: &Arc<SealedSegment>, timestamp_ms: i64) -> Result<Searched, ReadError> {
        let seal = match segment.seal(&*self.shared.fs, &self.dir) {
            Err(_) if self.files.read().was_replaced(segment) => return Ok(Searched::Replaced),
            other => other?,
        };
        if seal.max_timestamp_ms < timestamp_ms {
            return Ok(Searched::Absent);
        }
        let Some(open) = self.open_sealed(segment)? else { return Ok(Searched::Replaced) };
        let found = self.search_time(&self.view_sealed(segment, &open), timestamp_ms)?;
        Ok(found.map_or(Searched::Absent, |(offset, timestamp_ms)| Searched::Found(offset, timestamp_ms)))
    }

    fn search_time(&self, view: &View<'_>, timestamp_ms: i64) -> Result<Option<(Offset, i64)>, ReadError> {
        let entry = view.with_index(|index| index.floor_by_time(timestamp_ms));
        let mut walk = view.walk_from(entry, SCAN_BYTES)?;
        while let Some(met) = walk.next()? {
            let step = match met {
                Met::Batch(step) if !view.is_intact(&walk, &step)? => {
                    return Err(self.damaged_at(view, step.header.base_offset, step.position)?);
                }
                Met::Batch(step) => step,
                Met::Damage { from, position, reason, behind } => {
                    self.report(view, position, &reason);
                    return Err(damaged(view, from, behind));
                }
            };
            if step.header.max_timestamp_ms < timestamp_ms || step.header.last_offset() < self.log_start() {
                continue;
            }
            if let Some(found) = first_in_batch(&walk.bytes(&step)?, timestamp_ms, self.log_start()) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn outcome(&self, bytes: Bytes, next: Offset) -> ReadOutcome {
        ReadOutcome { bytes, next, tail: self.tail(), log_start: self.log_start() }
    }

    /// `None` at the tail.
    fn place(&self, from: Offset) -> Result<Option<Place>, ReadError> {
        let tail = self.tail();
        if from == tail {
            return Ok(None);
        }
        let files = self.files.read();
        // With the files: it moves together with what is removed below it.
        let log_start = self.log_start();
        if from < log_start || from > tail {
            return Err(ReadError::OutOfRange { offset: from, log_start, tail });
        }
        if from >= files.active.base {
            return Ok(Some(Place::Active { segment: Arc::clone(&files.active), tail }));
        }
        let at = files.sealed.partition_point(|segment| segment.next <= from);
        Ok(Some(match files.sealed.get(at) {
            Some(segment) if segment.base <= from => Place::Sealed(Arc::clone(segment)),
            Some(segment) => Place::Lost { to: segment.base },
            None => Place::Lost { to: files.active.base },
        }))
    }

    fn out_of_range(&self, offset: Offset) -> ReadError {
        ReadError::OutOfRange { offset, log_start: self.log_start(), tail: self.tail() }
    }

    /// `None` when compaction replaced the segment meanwhile: what was opened may be the file of either.
    fn open_sealed(&self, segment: &Arc<SealedSegment>) -> std::io::Result<Option<Arc<OpenSegment>>> {
        let key = (self.id(), segment.base);
        if let Some(open) = self.shared.open_segments.get(&key, segment.edition) {
            return Ok(Some(open));
        }
        let interval_bytes = self.config().index_interval_bytes;
        let opened = OpenSegment::open(&*self.shared.fs, &self.dir, segment, interval_bytes);
        // Behind the opening: files are replaced together with what stands for them here.
        if self.files.read().was_replaced(segment) {
            return Ok(None);
        }
        let open = Arc::new(opened?);
        self.shared.open_segments.insert(key, Arc::clone(&open));
        if segment.next <= self.log_start() || self.files.read().was_replaced(segment) {
            // Retention or compaction was here in between: nobody would close it for long.
            self.shared.open_segments.remove(&key);
        }
        Ok(Some(open))
    }

    /// A read of bytes that were appended by this process not far behind the tail: they are in the page cache.
    fn read_hot(
        &self,
        active: &ActiveSegment,
        tail: Offset,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Option<ReadOutcome>, ReadError> {
        let view = self.view_active(active, tail);
        let start = view.with_index(|index| index.floor_by_offset(relative(from, view.base))).position;
        let range = u64::from(start)..view.end;
        if view.is_stopped() || !view.trust.is_appended(&range) {
            return Ok(None);
        }
        if range.end - range.start <= self.shared.hot_bytes {
            return self.read_view(&view, from, max_bytes.min(READ_BYTES_MAX)).map(Some);
        }
        self.read_now(view, from, max_bytes)
    }

    /// A read of an open sealed segment that has nothing to wait for.
    fn read_resident(
        &self,
        sealed: &SealedSegment,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Option<ReadOutcome>, ReadError> {
        let Some(open) = self.shared.open_segments.get(&(self.id(), sealed.base), sealed.edition) else {
            return Ok(None);
        };
        let read = self.read_now(self.view_sealed(sealed, &open), from, max_bytes)?;
        // Behind batches that compaction has emptied the read goes on, who knows how far.
        Ok(read.filter(|read| holds_records(&read.bytes)))
    }

    /// A read that waits for nothing; `None` when something that it looks at was not verified, or is not in memory.
    fn read_now(&self, view: View<'_>, from: Offset, max_bytes: usize) -> Result<Option<ReadOutcome>, ReadError> {
        let max_bytes = max_bytes.min(READ_BYTES_MAX);
        let start = u64::from(view.with_index(|index| index.floor_by_offset(relative(from, view.base))).position);
        if !view.trusts(&(start..view.end.min(start + self.window_bytes(max_bytes)))) {
            return Ok(None);
        }
        match self.read_view(&View { may_wait: false, ..view }, from, max_bytes) {
            Err(ReadError::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            read => read.map(Some),
        }
    }

    /// How much a read looks at, but for batches that are larger.
    fn window_bytes(&self, max_bytes: usize) -> u64 {
        max_bytes as u64 + 2 * u64::from(self.config().index_interval_bytes)
    }

    fn read_view(&self, view: &View<'_>, from: Offset, max_bytes: usize) -> Result<ReadOutcome, ReadError> {
        let entry = view.with_index(|index| index.floor_by_offset(relative(from, view.base)));
        let mut walk = view.walk_from(entry, self.window_bytes(max_bytes))?;
        let first = self.find(view, &mut walk, from)?;
        let mut walk = walk.into_walk();
        let limit = first.position + max_bytes as u64;
        // An entry at the limit itself, or at the end for a batch that is being appended, is of no use.
        let below = u32::try_from(limit.min(view.end).saturating_sub(1)).unwrap_or(0);
        let indexed = view.with_index(|index| index.floor_by_position(below));
        let last = self.last_within(view, &mut walk, first, u64::from(indexed), limit)?;
        let bytes = walk.bytes(first.position, last.end())?;
        let (bytes, last) = self.verified(view, first, last, bytes)?;
        Ok(self.outcome(bytes, last.header.next_offset()))
    }

    /// Walks to the batch that holds `from`, over damage that ends before.
    fn find(&self, view: &View<'_>, walk: &mut DenseWalk<'_>, from: Offset) -> Result<Step, ReadError> {
        while let Some(met) = walk.next()? {
            match met {
                Met::Batch(step) if step.header.last_offset() >= from => return Ok(step),
                Met::Batch(_) => {}
                Met::Damage { behind: Some(step), .. } if step.header.base_offset <= from => {}
                Met::Damage { position, reason, behind, .. } => {
                    self.report(view, position, &reason);
                    return Err(damaged(view, from, behind));
                }
            }
        }
        // Not met: `from` lies below the walk's limit, so a batch or damage came before.
        Err(ReadError::Damaged { from, to: view.next })
    }

    /// The last batch that ends within `limit`, from `first` on; jumps to the index entry before the limit.
    fn last_within(
        &self,
        view: &View<'_>,
        walk: &mut BatchWalk<'_>,
        first: Step,
        indexed: u64,
        limit: u64,
    ) -> Result<Step, ReadError> {
        let mut last = first;
        if first.end() >= limit {
            return Ok(last);
        }
        // Headers passed over by the jump are looked at when the bytes are not trusted anyway.
        if indexed > walk.position() && view.trusts(&(first.position..indexed)) {
            walk.skip_to(indexed);
        }
        loop {
            match walk.next() {
                Ok(Some(step)) if step.end() <= limit && step.header.next_offset() <= view.next => last = step,
                // The jump landed on a batch that does not fit: the one before it must be found by walking.
                Ok(Some(step))
                    if step.position == indexed && last.position == first.position && indexed > first.end() =>
                {
                    walk.begin_again(first.position, indexed);
                    return walk_to(view, walk, first);
                }
                Ok(_) => return Ok(last),
                // What was found before is good: the damage shows at the next read.
                Err(WalkError::NoBatch { .. }) => return Ok(last),
                Err(WalkError::Io(e)) => return Err(e.into()),
            }
        }
    }

    /// Bytes that this process did not write are checked once before they are first served. Cuts before damage.
    fn verified(&self, view: &View<'_>, first: Step, last: Step, bytes: Bytes) -> Result<(Bytes, Step), ReadError> {
        let range = first.position..last.end();
        if view.trusts(&range) {
            return Ok((bytes, last));
        }
        if !view.may_wait {
            return Err(std::io::Error::from(ErrorKind::WouldBlock).into());
        }
        // A copy where the pages may go at any moment: what is served is what was verified.
        let bytes = if view.is_stopped() { Bytes::copy_from_slice(&bytes) } else { bytes };
        let mut walk = BatchWalk::new(view.file, range.start, range.end).holding(bytes.clone());
        let mut good: Option<Step> = None;
        loop {
            let expected = good.map_or(first.header.base_offset, |step| step.header.next_offset());
            let reason = match walk.next_verified() {
                Ok(Some(step)) if self.is_plausible(view, &step, expected) => {
                    good = Some(step);
                    continue;
                }
                Ok(None) | Err(WalkError::NoBatch { .. }) | Ok(Some(_)) if good.is_some() => break,
                Err(WalkError::Io(e)) => return Err(e.into()),
                Err(WalkError::NoBatch { reason, .. }) => Some(reason),
                Ok(_) => None,
            };
            tracing::error!(partition = %self.id(), segment = %view.base, position = range.start, ?reason, "damaged batch");
            return Err(self.damaged_at(view, expected, range.start)?);
        }
        let last = good.expect("the loop ends with a batch or an error");
        if !view.is_stopped() {
            view.trust.add(range.start..last.end());
        }
        Ok((bytes.slice(..(last.end() - range.start) as usize), last))
    }

    /// What a batch's checksum does not cover. Its epoch may still be another one of this log: only the headers'
    /// checksum in the seal tells.
    fn is_plausible(&self, view: &View<'_>, step: &Step, expected: Offset) -> bool {
        let header = &step.header;
        let in_place = header.base_offset == expected && header.next_offset() <= view.next;
        in_place && header.leader_epoch.is_some_and(|epoch| epoch <= self.shared.epoch)
    }

    /// The end is looked up here, after the tail: all batches below the tail lie before it.
    fn view_active<'a>(&'a self, segment: &'a ActiveSegment, tail: Offset) -> View<'a> {
        let end = segment.published();
        View {
            base: segment.base,
            next: tail,
            file: &*segment.file,
            may_wait: true,
            end,
            trust: &segment.trust,
            stopped: &self.stopped,
            index: IndexOf::Active(segment),
        }
    }

    fn view_sealed<'a>(&'a self, segment: &'a SealedSegment, open: &'a OpenSegment) -> View<'a> {
        View {
            base: segment.base,
            next: segment.next,
            file: &*open.file,
            may_wait: true,
            end: segment.len_bytes,
            trust: &segment.trust,
            stopped: &self.stopped,
            index: IndexOf::Sealed(&open.index),
        }
    }

    fn report(&self, view: &View<'_>, position: u64, reason: &BatchError) {
        tracing::error!(partition = %self.id(), segment = %view.base, position, %reason, "damaged batch");
    }

    /// The batch at `position` is damaged; what follows it can be read.
    fn damaged_at(&self, view: &View<'_>, from: Offset, position: u64) -> std::io::Result<ReadError> {
        let behind = next_intact(view.file, position, view.end, from.next()..view.next)?;
        Ok(damaged(view, from, behind))
    }
}

/// The last batch of `walk`, which begins with `first`.
fn walk_to(view: &View<'_>, walk: &mut BatchWalk<'_>, first: Step) -> Result<Step, ReadError> {
    let mut last = first;
    loop {
        match walk.next() {
            Ok(Some(step)) if step.header.next_offset() <= view.next => last = step,
            Ok(_) | Err(WalkError::NoBatch { .. }) => return Ok(last),
            Err(WalkError::Io(e)) => return Err(e.into()),
        }
    }
}

/// Whether any of these batches has a record; nearly always the first has.
fn holds_records(bytes: &[u8]) -> bool {
    Batches::of(bytes).map_while(Result::ok).any(|view| view.header().record_count > 0)
}

fn damaged(view: &View<'_>, from: Offset, behind: Option<Step>) -> ReadError {
    ReadError::Damaged { from, to: behind.map_or(view.next, |step| step.header.base_offset) }
}

fn relative(offset: Offset, base: Offset) -> u32 {
    u32::try_from(offset.since(base)).unwrap_or(u32::MAX)
}

fn first_in_batch(bytes: &[u8], timestamp_ms: i64, log_start: Offset) -> Option<(Offset, i64)> {
    let (view, _) = BatchView::parse(bytes).ok()?;
    let records = view.records(&BatchLimits::default()).ok()?;
    let matches = |record: &RecordView<'_>| record.timestamp_ms() >= timestamp_ms && record.offset() >= log_start;
    let found = records.iter().map_while(Result::ok).find(matches);
    found.map(|record| (record.offset(), record.timestamp_ms()))
}
