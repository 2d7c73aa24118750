//! Reading a partition by offset and by time.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::Partition;
use crate::batch::{BatchError, BatchLimits, RecordView};
use crate::error::ReadError;
use crate::fs::File;
use crate::index::Index;
use crate::limits::READ_BYTES_MAX;
use crate::offset::Offset;
use crate::segment::{ActiveSegment, BatchWalk, OpenSegment, SealedSegment, Step, Trust, WalkError, next_intact};

/// What a read found.
#[derive(Clone, Debug)]
pub struct ReadOutcome {
    /// Whole batches of one segment, one behind the other. The first one holds the offset that was asked for, so it may
    /// begin before it. Empty at the tail.
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
    Active(Arc<ActiveSegment>),
    Sealed(Arc<SealedSegment>),
    /// Offsets lost to damage that took the end of a segment: nothing is there before the next segment.
    Lost {
        to: Offset,
    },
}

/// One segment as a reader sees it.
struct View<'a> {
    base: Offset,
    next: Offset,
    file: &'a dyn File,
    end: u64,
    trust: &'a Trust,
}

impl Partition {
    /// Reads whole batches from `from` on: at most `max_bytes`, but at least one batch.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(self: &Arc<Self>, from: Offset, max_bytes: usize) -> Result<ReadStart, ReadError> {
        match self.place(from)? {
            None => Ok(ReadStart::Ready(self.outcome(Bytes::new(), from))),
            Some(Place::Active(active)) => match self.read_hot(&active, from, max_bytes)? {
                Some(outcome) => Ok(ReadStart::Ready(outcome)),
                None => Ok(self.cold(from, max_bytes)),
            },
            Some(_) => Ok(self.cold(from, max_bytes)),
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
        let max_bytes = max_bytes.min(READ_BYTES_MAX);
        match self.place(from)? {
            None => Ok(self.outcome(Bytes::new(), from)),
            Some(Place::Lost { to }) => Err(ReadError::Damaged { from, to }),
            Some(Place::Active(active)) => {
                let view = self.view_active(&active);
                self.read_view(&view, |look| active.with_index(look), from, max_bytes)
            }
            Some(Place::Sealed(sealed)) => {
                let open = self.open_sealed(&sealed)?;
                let view = view_sealed(&sealed, &open);
                self.read_view(&view, |look| look(&open.index), from, max_bytes)
            }
        }
    }

    /// The first record, and its timestamp in ms since 1970, whose timestamp is at least `timestamp_ms`; `None` when all
    /// are older. Blocks on the disk.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn offset_for_time(&self, timestamp_ms: i64) -> Result<Option<(Offset, i64)>, ReadError> {
        let (sealed, active) = {
            let files = self.files.read();
            (files.sealed.clone(), Arc::clone(&files.active))
        };
        for segment in sealed {
            if segment.seal(&*self.shared.fs, &self.dir)?.max_timestamp_ms < timestamp_ms {
                continue;
            }
            let open = self.open_sealed(&segment)?;
            let from = open.index.floor_by_time(timestamp_ms);
            if let Some(found) = self.search_time(&view_sealed(&segment, &open), from, timestamp_ms)? {
                return Ok(Some(found));
            }
        }
        let from = active.with_index(|index| index.floor_by_time(timestamp_ms));
        self.search_time(&self.view_active(&active), from, timestamp_ms)
    }

    fn search_time(&self, view: &View<'_>, from: u32, timestamp_ms: i64) -> Result<Option<(Offset, i64)>, ReadError> {
        let mut walk = BatchWalk::new(view.file, u64::from(from), view.end);
        loop {
            let step = match walk.next() {
                Ok(Some(step)) => step,
                Ok(None) => return Ok(None),
                Err(error) => return Err(self.damaged(view, view.base, error)),
            };
            if step.header.max_timestamp_ms < timestamp_ms || step.header.last_offset() < self.log_start() {
                continue;
            }
            let bytes = walk.bytes(step.position, step.end())?;
            if let Some(found) = first_in_batch(&bytes, timestamp_ms, self.log_start()) {
                return Ok(Some(found));
            }
        }
    }

    fn outcome(&self, bytes: Bytes, next: Offset) -> ReadOutcome {
        ReadOutcome { bytes, next, tail: self.tail(), log_start: self.log_start() }
    }

    /// `None` at the tail.
    fn place(&self, from: Offset) -> Result<Option<Place>, ReadError> {
        let (log_start, tail) = (self.log_start(), self.tail());
        if from == tail {
            return Ok(None);
        }
        if from < log_start || from > tail {
            return Err(ReadError::OutOfRange { offset: from, log_start, tail });
        }
        let files = self.files.read();
        if from >= files.active.base {
            return Ok(Some(Place::Active(Arc::clone(&files.active))));
        }
        let at = files.sealed.partition_point(|segment| segment.next <= from);
        Ok(Some(match files.sealed.get(at) {
            Some(segment) if segment.base <= from => Place::Sealed(Arc::clone(segment)),
            Some(segment) => Place::Lost { to: segment.base },
            None => Place::Lost { to: files.active.base },
        }))
    }

    fn view_active<'a>(&self, active: &'a ActiveSegment) -> View<'a> {
        // Published after the tail was read would be fine as well: more bytes, all of them whole batches.
        View {
            base: active.base,
            next: self.tail(),
            file: &*active.file,
            end: active.published(),
            trust: &active.trust,
        }
    }

    fn open_sealed(&self, segment: &SealedSegment) -> Result<Arc<OpenSegment>, ReadError> {
        let key = (self.id(), segment.base);
        if let Some(open) = self.shared.open_segments.get(&key) {
            return Ok(open);
        }
        let interval_bytes = self.config().index_interval_bytes;
        let open = Arc::new(OpenSegment::open(&*self.shared.fs, &self.dir, segment, interval_bytes)?);
        self.shared.open_segments.insert(key, Arc::clone(&open));
        Ok(open)
    }

    /// A read of bytes that were appended by this process not far behind the tail: they are in the page cache.
    fn read_hot(
        &self,
        active: &ActiveSegment,
        from: Offset,
        max_bytes: usize,
    ) -> Result<Option<ReadOutcome>, ReadError> {
        let view = self.view_active(active);
        let start = active.with_index(|index| index.floor_by_offset(relative(from, view.base)));
        let range = u64::from(start)..view.end;
        if !view.trust.is_appended(&range) || range.end - range.start > self.shared.hot_bytes {
            return Ok(None);
        }
        let max_bytes = max_bytes.min(READ_BYTES_MAX);
        self.read_view(&view, |look| active.with_index(look), from, max_bytes).map(Some)
    }

    fn read_view(
        &self,
        view: &View<'_>,
        with_index: impl Fn(&mut dyn FnMut(&Index) -> u32) -> u32,
        from: Offset,
        max_bytes: usize,
    ) -> Result<ReadOutcome, ReadError> {
        let start = u64::from(with_index(&mut |index| index.floor_by_offset(relative(from, view.base))));
        let interval_bytes = u64::from(self.config().index_interval_bytes);
        let window_bytes = max_bytes as u64 + 2 * interval_bytes;
        let mut walk = BatchWalk::new(view.file, start, view.end).with_window(window_bytes);
        let Some(first) = self.find(view, &mut walk, from)? else {
            // The offsets at the segment's end are missing: read on behind it.
            return Ok(self.outcome(Bytes::new(), from.max(view.next)));
        };
        if first.header.base_offset > from {
            tracing::debug!(partition = %self.id(), %from, next = %first.header.base_offset, "offsets are missing");
        }
        let limit = first.position + max_bytes as u64;
        let indexed =
            u32::try_from(limit.min(view.end)).map_or(0, |at| with_index(&mut |index| index.floor_by_position(at)));
        let last = self.last_within(view, &mut walk, first, u64::from(indexed), limit)?;
        let bytes = walk.bytes(first.position, last.end())?;
        let (bytes, last) = self.verified(view, first, last, bytes)?;
        Ok(self.outcome(bytes, last.header.next_offset()))
    }

    /// Walks to the batch that holds `from`, or the first one behind it; over damage that ends before `from`.
    fn find(&self, view: &View<'_>, walk: &mut BatchWalk<'_>, from: Offset) -> Result<Option<Step>, ReadError> {
        let mut seen = view.base;
        loop {
            match walk.next() {
                Ok(Some(step)) if step.header.last_offset() >= from => return Ok(Some(step)),
                Ok(Some(step)) => seen = step.header.next_offset(),
                Ok(None) => return Ok(None),
                Err(WalkError::Io(e)) => return Err(e.into()),
                Err(WalkError::NoBatch { position, reason }) => {
                    let behind = next_intact(view.file, position + 1, view.end, seen.next()..view.next)?;
                    match behind {
                        Some(step) if step.header.base_offset <= from => walk.skip_to(step.position),
                        _ => {
                            self.report(view, position, &reason);
                            let to = behind.map_or(view.next, |step| step.header.base_offset);
                            return Err(ReadError::Damaged { from, to });
                        }
                    }
                }
            }
        }
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
        // Headers passed over by the jump are looked at when the bytes are not trusted anyway.
        if indexed > walk.position() && view.trust.covers(&(first.position..indexed)) {
            walk.skip_to(indexed);
        }
        loop {
            match walk.next() {
                Ok(Some(step)) if step.end() <= limit => last = step,
                // The jump landed on a batch that does not fit: the one before it must be found by walking.
                Ok(Some(step))
                    if step.position == indexed && last.position == first.position && indexed > first.end() =>
                {
                    return self.walk_to(view, first, indexed);
                }
                Ok(_) => return Ok(last),
                // What was found before is good: the damage shows at the next read.
                Err(WalkError::NoBatch { .. }) => return Ok(last),
                Err(WalkError::Io(e)) => return Err(e.into()),
            }
        }
    }

    /// The batch that ends at `end`.
    fn walk_to(&self, view: &View<'_>, first: Step, end: u64) -> Result<Step, ReadError> {
        let mut walk = BatchWalk::new(view.file, first.position, end);
        let mut last = first;
        loop {
            match walk.next() {
                Ok(Some(step)) => last = step,
                Ok(None) => return Ok(last),
                Err(error) => return Err(self.damaged(view, last.header.next_offset(), error)),
            }
        }
    }

    /// Bytes that this process did not write are checked once before they are first served. Cuts before damage.
    fn verified(&self, view: &View<'_>, first: Step, last: Step, bytes: Bytes) -> Result<(Bytes, Step), ReadError> {
        let range = first.position..last.end();
        if view.trust.covers(&range) {
            return Ok((bytes, last));
        }
        let mut walk = BatchWalk::new(view.file, range.start, range.end);
        let mut expected = first.header.base_offset;
        let mut good: Option<Step> = None;
        while let Some(step) = match walk.next_verified() {
            Ok(step) => step,
            Err(WalkError::NoBatch { .. }) if good.is_some() => None,
            Err(error) => return Err(self.damaged(view, expected, error)),
        } {
            let out_of_place = step.header.base_offset < expected || step.header.last_offset() >= view.next;
            match good {
                _ if !out_of_place => {}
                Some(_) => break,
                None => return Err(self.damaged_at(view, expected, step.position)?),
            }
            expected = step.header.next_offset();
            good = Some(step);
        }
        let last = good.expect("the range holds at least one batch");
        view.trust.add(range.start..last.end());
        Ok((bytes.slice(..(last.end() - range.start) as usize), last))
    }

    fn damaged(&self, view: &View<'_>, from: Offset, error: WalkError) -> ReadError {
        match error {
            WalkError::Io(e) => e.into(),
            WalkError::NoBatch { position, reason } => {
                self.report(view, position, &reason);
                self.damaged_at(view, from, position).unwrap_or_else(ReadError::Io)
            }
        }
    }

    fn report(&self, view: &View<'_>, position: u64, reason: &BatchError) {
        tracing::error!(partition = %self.id(), segment = %view.base, position, %reason, "damaged batch");
    }

    /// The range of offsets that damage at `position` takes: up to the next intact batch.
    fn damaged_at(&self, view: &View<'_>, from: Offset, position: u64) -> std::io::Result<ReadError> {
        let offsets: Range<Offset> = from.next()..view.next;
        let behind = next_intact(view.file, position + 1, view.end, offsets)?;
        let to = behind.map_or(view.next, |step| step.header.base_offset);
        Ok(ReadError::Damaged { from, to })
    }
}

fn view_sealed<'a>(segment: &'a SealedSegment, open: &'a OpenSegment) -> View<'a> {
    View { base: segment.base, next: segment.next, file: &*open.file, end: segment.len_bytes, trust: &segment.trust }
}

fn relative(offset: Offset, base: Offset) -> u32 {
    u32::try_from(offset.since(base)).unwrap_or(u32::MAX)
}

fn first_in_batch(bytes: &[u8], timestamp_ms: i64, log_start: Offset) -> Option<(Offset, i64)> {
    let (view, _) = crate::batch::BatchView::parse(bytes).ok()?;
    let records = view.records(&BatchLimits::default()).ok()?;
    let matches = |record: &RecordView<'_>| record.timestamp_ms() >= timestamp_ms && record.offset() >= log_start;
    let found = records.iter().map_while(Result::ok).find(matches);
    found.map(|record| (record.offset(), record.timestamp_ms()))
}
