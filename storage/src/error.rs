//! What can go wrong, one enum per operation.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::fs::is_unreadable;
use crate::offset::{Offset, PartitionId};
use crate::producer::SequenceError;

/// A partition refuses work since this happened; only a restart, with its recovery, makes it serve writes again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("partition {partition} stopped while {during}: {cause}")]
pub struct Stopped {
    /// Which.
    pub partition: PartitionId,
    /// What failed.
    pub during: &'static str,
    /// How.
    pub cause: Arc<io::Error>,
}

/// Why a batch was not appended. Nothing of it is visible then.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The partition takes no writes until a restart.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The disk is full. Appends work again by themselves once there is room.
    #[error("the disk is full")]
    DiskFull,
    /// The next segment could not be opened: the process or the machine is out of descriptors. Appends work again by
    /// themselves once there are some.
    #[error("no file for the next segment: {0}")]
    NoDescriptors(Arc<io::Error>),
    /// The producer's sequence does not continue what it appended before.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// One batch larger than the log can hold.
    #[error("the batch has {size_bytes} bytes, allowed are {limit_bytes}")]
    TooLarge {
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The log is at 2^63 - 1, the greatest offset there is. None gets there by appends; its files may say so.
    #[error("the partition has no offsets left")]
    OutOfOffsets,
}

/// Why a read has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Nothing is, or no longer is, or not yet is, at that offset.
    #[error("offset {offset} is outside {log_start}..{tail}")]
    OutOfRange {
        /// What was asked for.
        offset: Offset,
        /// First offset there is.
        log_start: Offset,
        /// One after the last offset there is.
        tail: Offset,
    },
    /// The bytes on disk are not what was written. What follows at `to` can be read.
    #[error("offsets {from}..{to} are damaged on disk")]
    Damaged {
        /// First damaged offset.
        from: Offset,
        /// First offset behind the damage.
        to: Offset,
    },
    /// The disk does not answer.
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
}

/// Why the first offset was not moved.
#[derive(Debug, thiserror::Error)]
pub enum TrimError {
    /// There is nothing yet to keep from there on.
    #[error("offset {offset} is beyond the tail {tail}")]
    OutOfRange {
        /// What was asked for.
        offset: Offset,
        /// One after the last offset there is.
        tail: Offset,
    },
    /// What lies below could not be made durable first.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// The disk does not answer.
    #[error("trimming failed: {0}")]
    Io(#[from] io::Error),
}

/// Why a compaction ended early. What it had done stays done, and the log goes on.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// The partition stopped, with this compaction or before.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The disk does not answer, or is full, or there are no descriptors for the moment.
    #[error("compaction failed: {0}")]
    Io(#[from] io::Error),
    /// Whoever asked for it wants no more of it.
    #[error("compaction was interrupted")]
    Interrupted,
}

impl From<FlushError> for CompactError {
    fn from(error: FlushError) -> Self {
        let FlushError::Stopped(stopped) = error;
        Self::Stopped(stopped)
    }
}

/// Why a flush did not happen.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// The partition stopped, with this flush or before.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Why a partition's log could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenLogError {
    /// The partition is open already.
    #[error("partition {0} is open already")]
    AlreadyOpen(PartitionId),
    /// The disk does not answer.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The partition's directory.
        path: PathBuf,
        /// How.
        cause: io::Error,
    },
}

impl OpenLogError {
    /// What kept the log from being opened.
    #[must_use]
    pub fn kind(&self) -> OpenLogErrorKind {
        match self {
            Self::Io { cause, .. } if is_unreadable(cause) => OpenLogErrorKind::Unreadable,
            Self::Io { cause, .. } if cause.kind() == io::ErrorKind::StorageFull => OpenLogErrorKind::NoRoom,
            Self::Io { .. } | Self::AlreadyOpen(_) => OpenLogErrorKind::Other,
        }
    }
}

/// What keeps a log from being opened, for whoever decides what follows. Nothing is lost by any of it, and it may be
/// tried again: each try begins with what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenLogErrorKind {
    /// The disk answers an I/O error, for now or for good, to what this partition has. Others may be opened.
    Unreadable,
    /// The disk has no room for what has to be kept before the log goes on. Others, which need less, may be opened, and
    /// this one when there is room: [`crate::Store::open_late`].
    NoRoom,
    /// Whatever else it is, want of descriptors for one, others may meet it, too.
    Other,
}

/// Why a data directory could not be opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenStoreError {
    /// Another process works in it.
    #[error("{} is in use by {holder}, which holds the lock on its LOCK file; stop that first, or name another directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who, as far as this system tells: for people.
        holder: String,
    },
    /// Written by a newer release.
    #[error("{} has format version {found}; this release reads versions up to {known}", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// In its FORMAT file.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Not a data directory, or its FORMAT or EPOCH file was damaged.
    #[error("{} is not a data directory that can be opened: {reason}", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The disk does not answer.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// How.
        cause: io::Error,
    },
}
