//! Walking a segment batch by batch.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::batch::header::HEADER_BYTES;
use crate::batch::{BatchError, BatchHeader, BatchView};
use crate::fs::{self, File};
use crate::limits::{BATCH_BYTES_MAX, SCAN_BYTES};
use crate::offset::Offset;

/// A batch met on the walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Where it starts.
    pub(crate) position: u64,
    pub(crate) header: BatchHeader,
}

impl Step {
    pub(crate) const fn end(&self) -> u64 {
        self.position + self.header.size_bytes() as u64
    }
}

/// Why a walk cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WalkError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What stands at `position` is not a batch.
    #[error("no batch at position {position}: {reason}")]
    NoBatch {
        /// Where the batch should start.
        position: u64,
        reason: BatchError,
    },
}

/// Steps over the batch headers of `file` up to `end`, reading through a window so that small batches cost no call
/// each.
pub(crate) struct BatchWalk<'a> {
    file: &'a dyn File,
    position: u64,
    end: u64,
    window: Bytes,
    window_at: u64,
    window_bytes: u64,
    /// Whether the disk is waited for; otherwise what is not in memory is `WouldBlock`.
    may_wait: bool,
    /// Size of the batch that was met last.
    last_bytes: u64,
}

/// Enough for a header, wherever it lies.
const PAGE_BYTES: u64 = 4096;

impl<'a> BatchWalk<'a> {
    /// A walk over `file[position..end]`, which must be published bytes (or the whole file before anyone appends).
    pub(crate) fn new(file: &'a dyn File, position: u64, end: u64) -> Self {
        Self {
            file,
            position,
            end,
            window: Bytes::new(),
            window_at: position,
            window_bytes: SCAN_BYTES,
            may_wait: true,
            last_bytes: 0,
        }
    }

    /// Sets how much is read at a time.
    pub(crate) fn with_window(mut self, window_bytes: u64) -> Self {
        self.window_bytes = window_bytes.max(HEADER_BYTES as u64);
        self
    }

    /// Says whether the disk is waited for.
    pub(crate) const fn waiting(mut self, may_wait: bool) -> Self {
        self.may_wait = may_wait;
        self
    }

    /// Says what stands at the position, so that it is not read again.
    pub(crate) fn holding(mut self, bytes: Bytes) -> Self {
        (self.window, self.window_at) = (bytes, self.position);
        self
    }

    pub(crate) const fn position(&self) -> u64 {
        self.position
    }

    /// Goes on at `position`, which must be the start of a batch not before the current one.
    pub(crate) fn skip_to(&mut self, position: u64) {
        debug_assert!(position >= self.position, "walks go forward");
        self.position = position;
    }

    /// Begins anew at `position`, the start of a batch, up to `end`; what was read of the file stays.
    pub(crate) fn begin_again(&mut self, position: u64, end: u64) {
        (self.position, self.end, self.last_bytes) = (position, end, 0);
    }

    /// The next batch by its header; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Step>, WalkError> {
        if self.position >= self.end {
            return Ok(None);
        }
        let position = self.position;
        let wanted = HEADER_BYTES.min(self.left());
        let header = BatchHeader::parse(self.front(wanted)?).and_then(|header| self.fits(header));
        let header = header.map_err(|reason| WalkError::NoBatch { position, reason })?;
        self.last_bytes = header.size_bytes() as u64;
        self.position += self.last_bytes;
        Ok(Some(Step { position, header }))
    }

    /// The next batch with its checksum verified.
    pub(crate) fn next_verified(&mut self) -> Result<Option<Step>, WalkError> {
        let Some(step) = self.next()? else { return Ok(None) };
        self.position = step.position;
        let size_bytes = step.header.size_bytes();
        let verified = BatchView::parse(self.front(size_bytes)?).and_then(|(view, _)| view.verify_crc());
        verified.map_err(|reason| WalkError::NoBatch { position: step.position, reason })?;
        self.position = step.end();
        Ok(Some(step))
    }

    /// The bytes from `start` to `end`: a slice of the window where that holds them.
    pub(crate) fn bytes(&self, start: u64, end: u64) -> io::Result<Bytes> {
        let window_end = self.window_at + self.window.len() as u64;
        if start >= self.window_at && end <= window_end {
            let (from, to) = ((start - self.window_at) as usize, (end - self.window_at) as usize);
            return Ok(self.window.slice(from..to));
        }
        self.slice(start..end)
    }

    fn slice(&self, range: Range<u64>) -> io::Result<Bytes> {
        if self.may_wait {
            return fs::asked_twice(|| self.file.slice(range.clone()));
        }
        self.file.resident(range).ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    fn left(&self) -> usize {
        usize::try_from(self.end - self.position).unwrap_or(usize::MAX)
    }

    fn fits(&self, header: BatchHeader) -> Result<BatchHeader, BatchError> {
        let needed_bytes = header.size_bytes();
        if needed_bytes > BATCH_BYTES_MAX {
            return Err(BatchError::TooLarge { size_bytes: needed_bytes, limit_bytes: BATCH_BYTES_MAX });
        }
        if needed_bytes > self.left() {
            return Err(BatchError::Truncated { needed_bytes, found_bytes: self.left() });
        }
        Ok(header)
    }

    /// The first `wanted` bytes at the position; the caller knows that so many are left.
    fn front(&mut self, wanted: usize) -> io::Result<&[u8]> {
        let inside = self.position.checked_sub(self.window_at).and_then(|from| usize::try_from(from).ok());
        let held = inside.filter(|&from| from + wanted <= self.window.len());
        let from = match held {
            Some(from) => from,
            None => {
                // Behind a batch that was larger than the window, another one is likely: of that only the header is
                // wanted, and a page brought in for nothing costs as much as one that is needed.
                let small = self.last_bytes < self.window_bytes;
                let ahead_bytes = if small { self.window_bytes } else { PAGE_BYTES };
                let window_end = self.end.min(self.position + ahead_bytes.max(wanted as u64));
                self.window = self.slice(self.position..window_end)?;
                self.window_at = self.position;
                0
            }
        };
        Ok(&self.window[from..from + wanted])
    }
}

/// What a dense walk meets.
#[derive(Debug)]
pub(crate) enum Met {
    /// The batch that was expected.
    Batch(Step),
    /// Something else; the walk goes on at `behind`, or ends when no batch follows.
    Damage { from: Offset, position: u64, reason: BatchError, behind: Option<Step> },
}

/// Walks batches whose offsets must be dense: each begins where the one before ended (invariant S2). A batch's checksum
/// does not cover its base offset and length; that the neighbours fit is what tells that they are right.
pub(crate) struct DenseWalk<'a> {
    walk: BatchWalk<'a>,
    expected: Offset,
    limit: Offset,
    previous: Option<Step>,
}

impl<'a> DenseWalk<'a> {
    /// Goes over `walk`, where `expected` comes first, up to but without `limit`.
    pub(crate) const fn new(walk: BatchWalk<'a>, expected: Offset, limit: Offset) -> Self {
        Self { walk, expected, limit, previous: None }
    }

    /// The walk, to go on without checks.
    pub(crate) fn into_walk(self) -> BatchWalk<'a> {
        self.walk
    }

    /// Where the next batch begins, and its offset.
    pub(crate) const fn place(&self) -> (u64, Offset) {
        (self.walk.position, self.expected)
    }

    /// The bytes of a batch that was met.
    pub(crate) fn bytes(&self, step: &Step) -> io::Result<Bytes> {
        self.walk.bytes(step.position, step.end())
    }

    /// The header of a batch that was met.
    pub(crate) fn header_bytes(&self, step: &Step) -> io::Result<Bytes> {
        self.walk.bytes(step.position, step.position + HEADER_BYTES as u64)
    }

    /// Whether the first batch is the expected one. Not so where an index that does not belong to the file has led.
    pub(crate) fn begins_well(&mut self) -> io::Result<bool> {
        let position = self.walk.position;
        let first = self.walk.next();
        self.walk.position = position;
        match first {
            Ok(first) => Ok(first.is_some_and(|step| self.fits(&step))),
            Err(WalkError::NoBatch { .. }) => Ok(false),
            Err(WalkError::Io(e)) => Err(e),
        }
    }

    /// The next batch, or the damage in its place; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Met>> {
        if self.expected >= self.limit {
            return Ok(None);
        }
        let position = self.walk.position;
        let reason = match self.walk.next() {
            Ok(Some(step)) if self.fits(&step) => {
                self.expected = step.header.next_offset();
                self.previous = Some(step);
                return Ok(Some(Met::Batch(step)));
            }
            Ok(Some(step)) => BatchError::Field {
                field: "base_offset",
                found: step.header.base_offset.get(),
                allowed: "the offset after the batch before it",
            },
            Ok(None) => BatchError::Truncated { needed_bytes: HEADER_BYTES, found_bytes: 0 },
            Err(WalkError::NoBatch { reason, .. }) => reason,
            Err(WalkError::Io(e)) => return Err(e),
        };
        if !self.walk.may_wait {
            // What follows is looked for, and told, by a walk that may wait.
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let from = self.expected;
        let behind = next_intact(self.walk.file, self.suspect(position)?, self.walk.end, from..self.limit)?;
        self.walk.position = behind.map_or(self.walk.end, |step| step.position);
        self.expected = behind.map_or(self.limit, |step| step.header.base_offset);
        self.previous = None;
        Ok(Some(Met::Damage { from, position, reason, behind }))
    }

    fn fits(&self, step: &Step) -> bool {
        step.header.base_offset == self.expected && step.header.next_offset() <= self.limit
    }

    /// Where the damage is: here, or in the length of the batch before, when its checksum fails too.
    fn suspect(&self, position: u64) -> io::Result<u64> {
        let Some(previous) = self.previous else { return Ok(position) };
        match BatchWalk::new(self.walk.file, previous.position, self.walk.end).next_verified() {
            Ok(_) => Ok(position),
            Err(WalkError::NoBatch { .. }) => Ok(previous.position),
            Err(WalkError::Io(e)) => Err(e),
        }
    }
}

/// Looks behind damage at `suspect`: the first intact batch of `file[suspect + 1..end]` whose offsets lie in `offsets`.
///
/// First where the damaged batch says that it ends: the records of a batch may hold what looks like other batches.
/// Its length is believed when the last of `offsets` is its own and it ends where the file does: then nothing is
/// behind; and when a header stands there that goes on with its offsets, of a batch that is damaged too, then.
/// Otherwise byte by byte, since a damaged length says nothing.
pub(crate) fn next_intact(file: &dyn File, suspect: u64, end: u64, offsets: Range<Offset>) -> io::Result<Option<Step>> {
    let mut suspect = suspect;
    while let Some(damaged) = header_at(file, suspect, end)? {
        let (behind, next) = (damaged.end(), damaged.header.next_offset());
        if behind == end && next == offsets.end {
            return Ok(None);
        }
        if let Some(step) = intact_at(file, behind, end, &offsets)? {
            return Ok(Some(step));
        }
        if header_at(file, behind, end)?.is_none_or(|follower| follower.header.base_offset != next) {
            break;
        }
        suspect = behind;
    }
    let mut chunk_at = suspect + 1;
    while chunk_at < end {
        let chunk_end = end.min(chunk_at + SCAN_BYTES);
        // Headers that begin in this chunk may end in the next one.
        let chunk = file.slice(chunk_at..end.min(chunk_end + HEADER_BYTES as u64))?;
        for at in 0..(chunk_end - chunk_at) {
            let header = BatchHeader::parse(&chunk[at as usize..]);
            if !header.is_ok_and(|header| offsets.contains(&header.base_offset)) {
                continue;
            }
            if let Some(step) = intact_at(file, chunk_at + at, end, &offsets)? {
                return Ok(Some(step));
            }
        }
        chunk_at = chunk_end;
    }
    Ok(None)
}

fn header_at(file: &dyn File, position: u64, end: u64) -> io::Result<Option<Step>> {
    match BatchWalk::new(file, position, end).with_window(HEADER_BYTES as u64).next() {
        Ok(step) => Ok(step),
        Err(WalkError::NoBatch { .. }) => Ok(None),
        Err(WalkError::Io(e)) => Err(e),
    }
}

fn intact_at(file: &dyn File, position: u64, end: u64, offsets: &Range<Offset>) -> io::Result<Option<Step>> {
    let mut walk = BatchWalk::new(file, position, end).with_window(HEADER_BYTES as u64);
    match walk.next_verified() {
        Ok(step) => {
            Ok(step
                .filter(|step| offsets.contains(&step.header.base_offset) && step.header.next_offset() <= offsets.end))
        }
        Err(WalkError::NoBatch { .. }) => Ok(None),
        Err(WalkError::Io(e)) => Err(e),
    }
}
