//! Walking a segment batch by batch.

use std::io;

use bytes::Bytes;

use crate::batch::header::HEADER_BYTES;
use crate::batch::{BatchError, BatchHeader, BatchView};
use crate::fs::File;
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

/// Steps over the batch headers of `file` up to `end`, reading through a window so that small batches cost no call each.
pub(crate) struct BatchWalk<'a> {
    file: &'a dyn File,
    position: u64,
    end: u64,
    window: Bytes,
    window_at: u64,
    window_bytes: u64,
}

impl<'a> BatchWalk<'a> {
    /// A walk over `file[position..end]`, which must be published bytes (or the whole file before anyone appends).
    pub(crate) fn new(file: &'a dyn File, position: u64, end: u64) -> Self {
        Self { file, position, end, window: Bytes::new(), window_at: position, window_bytes: SCAN_BYTES }
    }

    /// Sets how much is read at a time.
    pub(crate) fn with_window(mut self, window_bytes: u64) -> Self {
        self.window_bytes = window_bytes.max(HEADER_BYTES as u64);
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

    /// The next batch by its header; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Step>, WalkError> {
        if self.position >= self.end {
            return Ok(None);
        }
        let position = self.position;
        let wanted = HEADER_BYTES.min(self.left());
        let header = BatchHeader::parse(self.front(wanted)?).and_then(|header| self.fits(header));
        let header = header.map_err(|reason| WalkError::NoBatch { position, reason })?;
        self.position += header.size_bytes() as u64;
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
        self.file.slice(start..end)
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
                let window_end = self.end.min(self.position + self.window_bytes.max(wanted as u64));
                self.window = self.file.slice(self.position..window_end)?;
                self.window_at = self.position;
                0
            }
        };
        Ok(&self.window[from..from + wanted])
    }
}

/// Looks behind damage: the position and header of the first intact batch of `file[from..end]` whose base offset lies
/// in `offsets`. Byte by byte, since a damaged length says nothing about where the next batch starts.
pub(crate) fn next_intact(
    file: &dyn File,
    from: u64,
    end: u64,
    offsets: std::ops::Range<Offset>,
) -> io::Result<Option<Step>> {
    let mut chunk_at = from;
    while chunk_at < end {
        let chunk_end = end.min(chunk_at + SCAN_BYTES);
        // Headers that begin in this chunk may end in the next one.
        let chunk = file.slice(chunk_at..end.min(chunk_end + HEADER_BYTES as u64))?;
        for at in 0..(chunk_end - chunk_at) {
            let rest = &chunk[at as usize..];
            let Ok(header) = BatchHeader::parse(rest) else { continue };
            if !offsets.contains(&header.base_offset) {
                continue;
            }
            let mut walk = BatchWalk::new(file, chunk_at + at, end);
            match walk.next_verified() {
                Ok(Some(step)) => return Ok(Some(step)),
                Ok(None) | Err(WalkError::NoBatch { .. }) => {}
                Err(WalkError::Io(e)) => return Err(e),
            }
        }
        chunk_at = chunk_end;
    }
    Ok(None)
}
