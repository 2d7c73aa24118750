//! Space ahead of the tail: reserved, filled with zeros where that pays, taken back from a full disk.

use std::io::{self, IoSlice};
use std::sync::atomic::Ordering;

use super::{Partition, Writer};
use crate::error::AppendError;
use crate::limits::{RESERVE_BYTES_MAX, ZERO_AHEAD_BYTES_MAX, ZERO_AHEAD_FLUSH_BYTES_MAX};

/// What is done to the space ahead of the tail before it is written.
///
/// A write into space that is only reserved changes the file's map of extents, so that its sync waits for the file
/// system's journal too; one over bytes that were written before does not, and is synced in a quarter of the time
/// (`docs/disk.md`). Writing everything twice costs more than that where much is written between two syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    Reserve,
    Zero,
}

impl Ahead {
    /// After `written_bytes` with so many flushes. What says nothing changes nothing: the beginning of a segment.
    const fn next(self, written_bytes: u64, flushes: u64) -> Self {
        if written_bytes == 0 {
            self
        } else if flushes > 0 && written_bytes / flushes <= ZERO_AHEAD_FLUSH_BYTES_MAX {
            Self::Zero
        } else {
            Self::Reserve
        }
    }

    const fn step_bytes_max(self) -> u64 {
        match self {
            Self::Reserve => RESERVE_BYTES_MAX,
            Self::Zero => ZERO_AHEAD_BYTES_MAX,
        }
    }
}

/// Written ahead of the tail, piece by piece.
static ZEROS: [u8; 128 << 10] = [0; 128 << 10];

impl Partition {
    /// The disk filled up in the middle of a batch. What was written is cut off: a shorter batch over it would leave
    /// the end of this one, whose records may look like batches, for recovery to find.
    pub(super) fn take_back(&self, writer: &mut Writer) -> Result<(), AppendError> {
        writer.cut_due = true;
        self.cut_back(writer)?;
        Err(AppendError::DiskFull)
    }

    /// Some file systems need space to cut, too: then it is done before the next batch is written.
    pub(super) fn cut_back(&self, writer: &mut Writer) -> Result<(), AppendError> {
        let position = writer.active.published();
        writer.reserved_bytes = position;
        let cut = writer.active.file.truncate(position);
        cut.map_err(|cause| self.write_failed("taking back half a batch", cause))?;
        writer.cut_due = false;
        Ok(())
    }

    /// Reserves space ahead of the tail in growing steps; on a disk that is nearly full, just what is needed.
    pub(super) fn reserve(&self, writer: &mut Writer, end: u64) -> Result<(), AppendError> {
        let flushes = self.flushes.load(Ordering::Relaxed);
        let written_bytes = writer.active.published() - writer.published_at_reserve;
        writer.ahead = writer.ahead.next(written_bytes, flushes - writer.flushes_at_reserve);
        let step_bytes_max = writer.ahead.step_bytes_max();
        let ahead = end + writer.reserve_step_bytes.min(step_bytes_max);
        let (len_bytes, reserved) = match writer.active.file.reserve(ahead) {
            Err(e) if e.kind() == io::ErrorKind::StorageFull => (end, writer.active.file.reserve(end)),
            other => (ahead, other),
        };
        reserved.map_err(|cause| self.write_failed("reserving space", cause))?;
        if writer.ahead == Ahead::Zero {
            self.write_zeros(writer, len_bytes)?;
        }
        writer.reserved_bytes = len_bytes;
        writer.reserve_step_bytes = (writer.reserve_step_bytes * 2).min(step_bytes_max);
        (writer.published_at_reserve, writer.flushes_at_reserve) = (writer.active.published(), flushes);
        Ok(())
    }

    /// Fills what is reserved from the published length up to `to` with zeros. What is there anyway when it is full.
    fn write_zeros(&self, writer: &Writer, to: u64) -> Result<(), AppendError> {
        let mut position = writer.reserved_bytes.max(writer.active.published());
        while position < to {
            let len = (to - position).min(ZEROS.len() as u64);
            let zeros = ZEROS.get(..usize::try_from(len).unwrap_or(ZEROS.len())).unwrap_or(&ZEROS);
            match writer.active.file.write_at(&[IoSlice::new(zeros)], position) {
                Err(cause) if cause.kind() == io::ErrorKind::StorageFull => return Ok(()),
                other => other.map_err(|cause| self.write_failed("writing ahead of the tail", cause))?,
            }
            position += len;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_flushes_are_prepared_for_with_zeros_and_bulk_is_not() {
        for (before, written_bytes, flushes, after) in [
            (Ahead::Reserve, 1 << 20, 0, Ahead::Reserve),
            (Ahead::Reserve, 1 << 20, 15, Ahead::Reserve),
            (Ahead::Reserve, 1 << 20, 16, Ahead::Zero),
            (Ahead::Zero, 16 << 20, 20, Ahead::Reserve),
            (Ahead::Zero, 0, 0, Ahead::Zero),
            (Ahead::Zero, 0, 5, Ahead::Zero),
            (Ahead::Zero, 4096, 0, Ahead::Reserve),
        ] {
            assert_eq!(before.next(written_bytes, flushes), after, "{written_bytes} bytes in {flushes} flushes");
        }
    }
}
