//! Going through a segment with every check there is: checksums, offsets, epochs.
//!
//! Recovery and readers look at what they need. An audit looks at everything, goes on behind what is wrong, and says of
//! each wrong place where it is, what was expected there and what was found.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::walk::{BatchWalk, Step, WalkError, next_intact};
use crate::batch::BatchError;
use crate::batch::header::HEADER_BYTES;
use crate::fs::File;
use crate::offset::{LeaderEpoch, Offset};

/// Where an audit stands, to go on from there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AuditPlace {
    /// Where the next batch starts.
    pub(crate) position: u64,
    /// Its offset.
    pub(crate) expected: Offset,
    /// The epoch below which it may not be.
    epoch: LeaderEpoch,
    /// The batch before, and the epoch before that one.
    previous: Option<(Step, LeaderEpoch)>,
}

impl AuditPlace {
    /// The beginning of a segment. `epoch` is that of the batch before it.
    pub(crate) const fn beginning(base: Offset, epoch: LeaderEpoch) -> Self {
        Self { position: 0, expected: base, epoch, previous: None }
    }
}

/// What an audit is told about the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AuditScope {
    /// Where it begins.
    pub(crate) start: AuditPlace,
    /// One after the last byte of the file.
    pub(crate) end: u64,
    /// Bytes below were on stable storage: what is wrong there is damage, and the audit goes on behind it. What is
    /// wrong from here on ends the log.
    pub(crate) flushed_to: u64,
    /// One after the last offset that the bytes below `flushed_to` hold, when it is known.
    pub(crate) flushed_next: Option<Offset>,
}

/// What an audit meets.
#[derive(Debug)]
pub(crate) enum Audited {
    /// A batch that is as it was written, as far as its checksum and its neighbours tell.
    Batch(Step),
    /// Something else.
    Wrong(Wrong),
    /// Behind the flushed bytes: what stands at `position` is no batch of this log.
    End {
        /// Where.
        position: u64,
        /// Why not.
        reason: BatchError,
    },
}

/// A wrong place in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// The bytes, from where the batch should start to where the audit went on.
    pub(crate) bytes: Range<u64>,
    /// The offsets that cannot be read, or not be believed.
    pub(crate) offsets: Range<Offset>,
    pub(crate) fault: Fault,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The bytes are no batch, or not the one that was written.
    Batch(BatchError),
    /// The batch is whole, but its offset is not the one between its neighbours'.
    BaseOffset { found: Offset },
    /// The batch is whole, but its epoch does not lie between those of its neighbours.
    Epoch { found: Option<LeaderEpoch>, least: LeaderEpoch },
    /// Batches are not there.
    Missing,
}

/// Goes over a file batch by batch. Every batch's checksum is verified; its records are not looked at.
pub(crate) struct Audit<'a> {
    file: &'a dyn File,
    walk: BatchWalk<'a>,
    scope: AuditScope,
    expected: Offset,
    epoch: LeaderEpoch,
    /// The batch before, and the epoch before that one.
    previous: Option<(Step, LeaderEpoch)>,
    /// A batch that was read ahead, behind something wrong.
    pending: Option<Step>,
    ended: bool,
}

impl<'a> Audit<'a> {
    pub(crate) fn new(file: &'a dyn File, scope: AuditScope) -> Self {
        let AuditPlace { position, expected, epoch, previous } = scope.start;
        let walk = BatchWalk::new(file, position, scope.end);
        Self { file, walk, scope, expected, epoch, previous, pending: None, ended: false }
    }

    /// One after the last offset that was met.
    pub(crate) const fn expected(&self) -> Offset {
        self.expected
    }

    /// Where the next batch starts.
    pub(crate) const fn position(&self) -> u64 {
        self.walk.position()
    }

    /// Where it stands; `None` while a batch that was read ahead comes next.
    pub(crate) const fn place(&self) -> Option<AuditPlace> {
        if self.pending.is_some() {
            return None;
        }
        let (expected, epoch, previous) = (self.expected, self.epoch, self.previous);
        Some(AuditPlace { position: self.walk.position(), expected, epoch, previous })
    }

    /// The bytes of a batch that was met.
    pub(crate) fn bytes(&self, step: &Step) -> io::Result<Bytes> {
        self.walk.bytes(step.position, step.end())
    }

    /// The header of a batch that was met.
    pub(crate) fn header_bytes(&self, step: &Step) -> io::Result<Bytes> {
        self.walk.bytes(step.position, step.position + HEADER_BYTES as u64)
    }

    /// What comes next; `None` at the end of the file.
    pub(crate) fn next(&mut self) -> io::Result<Option<Audited>> {
        if self.ended {
            return Ok(None);
        }
        if let Some(step) = self.pending.take() {
            return Ok(Some(self.in_place(step)));
        }
        let position = self.walk.position();
        let met = match self.walk.next_verified() {
            Ok(Some(step)) if step.header.base_offset == self.expected => self.in_place(step),
            Ok(Some(step)) => self.out_of_place(step)?,
            Ok(None) => return Ok(self.at_end(position)),
            Err(WalkError::NoBatch { reason, .. }) => self.no_batch(position, reason)?,
            Err(WalkError::Io(e)) => return Err(e),
        };
        Ok(Some(met))
    }

    fn accept(&mut self, step: Step) -> Audited {
        self.previous = Some((step, self.epoch));
        self.expected = step.header.next_offset();
        self.epoch = step.header.leader_epoch.unwrap_or(self.epoch);
        Audited::Batch(step)
    }

    /// Has the offset that it should have.
    fn in_place(&mut self, step: Step) -> Audited {
        let found = step.header.leader_epoch;
        if found.is_some_and(|epoch| epoch >= self.epoch) {
            return self.accept(step);
        }
        let fault = Fault::Epoch { found, least: self.epoch };
        if step.position >= self.scope.flushed_to {
            return self.end(step.position, fault_reason(&fault));
        }
        let wrong = |step: Step, fault| {
            let offsets = step.header.base_offset..step.header.next_offset();
            Audited::Wrong(Wrong { bytes: step.position..step.end(), offsets, fault })
        };
        match (self.previous, found) {
            // Without the batch before, the epochs would rise: that one is wrong.
            (Some((previous, least)), Some(found)) if found >= least => {
                self.epoch = least;
                self.pending = Some(step);
                wrong(previous, Fault::Epoch { found: previous.header.leader_epoch, least })
            }
            (previous, _) => {
                // The first of a file may be right, and what came before it wrong: this is told once.
                self.epoch = found.filter(|_| previous.is_none()).unwrap_or(self.epoch);
                self.expected = step.header.next_offset();
                wrong(step, fault)
            }
        }
    }

    /// A whole batch with another offset: its offset was changed, or batches before it are gone.
    fn out_of_place(&mut self, step: Step) -> io::Result<Audited> {
        let found = step.header.base_offset;
        if step.position >= self.scope.flushed_to {
            return Ok(self.end(step.position, fault_reason(&Fault::BaseOffset { found })));
        }
        let count = u64::from(step.header.last_offset_delta.unsigned_abs()) + 1;
        let next = self.expected.checked_add(count).unwrap_or(self.expected);
        let follower = self.peek()?;
        let fits_neighbours = match follower {
            Some(follower) => follower.header.base_offset == next && found.checked_add(count) != Some(next),
            None => self.scope.flushed_next == Some(next) || found < self.expected,
        };
        if !fits_neighbours && found > self.expected {
            self.pending = Some(step);
            let offsets = self.expected..found;
            return Ok(Audited::Wrong(Wrong { bytes: step.position..step.position, offsets, fault: Fault::Missing }));
        }
        let offsets = self.expected..next;
        self.expected = next;
        Ok(Audited::Wrong(Wrong { bytes: step.position..step.end(), offsets, fault: Fault::BaseOffset { found } }))
    }

    /// The batch at the position, if a whole one is there.
    fn peek(&self) -> io::Result<Option<Step>> {
        let mut walk = BatchWalk::new(self.file, self.walk.position(), self.scope.end).with_window(HEADER_BYTES as u64);
        match walk.next_verified() {
            Ok(step) => Ok(step),
            Err(WalkError::NoBatch { .. }) => Ok(None),
            Err(WalkError::Io(e)) => Err(e),
        }
    }

    fn no_batch(&mut self, position: u64, reason: BatchError) -> io::Result<Audited> {
        if position >= self.scope.flushed_to {
            return Ok(self.end(position, reason));
        }
        let limit = self.scope.flushed_next.filter(|&next| next > self.expected);
        let offsets = self.expected..limit.unwrap_or_else(last_offset);
        let behind = next_intact(self.file, position, self.scope.end, offsets)?;
        let end = behind.map_or_else(|| self.scope.flushed_to.min(self.scope.end), |step| step.position);
        let to = behind.map(|step| step.header.base_offset).or(limit).unwrap_or(self.expected);
        let offsets = self.expected..to;
        self.expected = to;
        self.walk.skip_to(end.max(position));
        Ok(Audited::Wrong(Wrong { bytes: position..end, offsets, fault: Fault::Batch(reason) }))
    }

    fn end(&mut self, position: u64, reason: BatchError) -> Audited {
        self.ended = true;
        Audited::End { position, reason }
    }

    /// The file ends; what was flushed may not have ended yet.
    fn at_end(&mut self, position: u64) -> Option<Audited> {
        self.ended = true;
        let to = self.scope.flushed_next.filter(|&next| next > self.expected)?;
        let offsets = std::mem::replace(&mut self.expected, to)..to;
        Some(Audited::Wrong(Wrong { bytes: position..position, offsets, fault: Fault::Missing }))
    }
}

fn last_offset() -> Offset {
    Offset::new(i64::MAX).expect("positive")
}

/// A fault as what recovery would say of it.
pub(crate) fn fault_reason(fault: &Fault) -> BatchError {
    let (field, found, allowed) = match fault {
        Fault::Batch(reason) => return reason.clone(),
        Fault::BaseOffset { found } => ("base_offset", found.get(), "the offset after the batch before it"),
        Fault::Epoch { found, .. } => {
            let found = found.map_or(-1, |epoch| i64::from(epoch.get()));
            ("leader_epoch", found, "the epoch of the batch before it, or higher")
        }
        Fault::Missing => return BatchError::Truncated { needed_bytes: HEADER_BYTES, found_bytes: 0 },
    };
    BatchError::Field { field, found, allowed }
}
