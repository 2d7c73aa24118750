//! Writing a log anew without its damaged places, with empty batches for the offsets that are lost.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::Path;

use super::super::quarantine::keep;
use super::DataDirectory;
use crate::batch::header::{HEADER_BYTES, LEADER_EPOCH_AT};
use crate::batch::{BatchHeader, fillers};
use crate::checkpoint::Checkpoint;
use crate::fs::{File, OpenMode};
use crate::index::Index;
use crate::limits::SCAN_BYTES;
use crate::offset::{LeaderEpoch, Offset};
use crate::segment::{
    Audit, AuditPlace, AuditScope, Audited, BatchWalk, Fault, FileKind, HealedHeader, Seal, SegmentFacts, Step,
    WalkError, Wrong, fault_reason, heal_alone, path_of, unix_ms,
};

/// An index entry for so many bytes: the default of the settings.
const INDEX_INTERVAL_BYTES: u32 = 16 << 10;

/// How a log is written anew.
#[derive(Clone, Debug)]
pub(super) struct Isolation {
    pub(super) base: Offset,
    pub(super) holes: Holes,
    /// Where the batches end, and the offset that follows them, holes counted in.
    pub(super) end: u64,
    pub(super) next: Offset,
    pub(super) then: Then,
}

/// The damaged places of a log.
#[derive(Clone, Debug)]
pub(super) enum Holes {
    /// These, by position.
    Listed(Vec<Hole>),
    /// More than are kept one by one: they are looked for again while the log is written anew, and headers that are
    /// known are put right on the way.
    Sought {
        scope: AuditScope,
        /// What is missing behind the last batch.
        behind: Option<Hole>,
    },
}

/// A damaged place: bytes that go, offsets that are lost.
#[derive(Clone, Debug)]
pub(super) struct Hole {
    pub(super) bytes: Range<u64>,
    pub(super) offsets: Range<Offset>,
}

/// What becomes of the segment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Then {
    /// It is sealed, with these times of its first and last append, or the file's own.
    Sealed(Option<(i64, i64)>),
    /// As before, and the log goes on behind it: its last segment is gone.
    SealedLast { times: Option<(i64, i64)>, log_start: Offset },
    /// It is appended to.
    Active { log_start: Offset },
}

impl DataDirectory {
    pub(super) fn isolate(&self, file: &Path, isolation: &Isolation) -> io::Result<()> {
        let path = self.root.join(file);
        let dir = path.parent().unwrap_or(&self.root);
        let base = isolation.base;
        keep(&*self.fs, &self.root, file, None)?;
        let modified_ms = self.modified_ms(&path)?;
        let temporary = path.with_extension("tmp");
        let written_to = self.write_around(&path, &temporary, isolation)?;
        self.verify_new(&temporary, isolation, written_to)?;
        if let Then::Active { log_start } = isolation.then {
            // The note that is there tells a place in the old file, which in the new one is not where a batch begins.
            // This one is true of both: all batches of either lie below, whatever of the rename comes through.
            let (_, _, (_, next)) = self.read_facts(&temporary, base)?;
            let position = isolation.end.max(written_to);
            self.note(dir, Checkpoint { flushed: next, segment: base, position, log_start })?;
        }
        // The new file takes the name of the old one when it is durable and was found good.
        self.fs.rename(&temporary, &path)?;
        self.fs.sync_dir(dir)?;
        match isolation.then {
            Then::Sealed(times) => self.reseal(file, base, times.or(Some((modified_ms, modified_ms)))).map(|_| ()),
            Then::SealedLast { times, log_start } => {
                let next = self.reseal(file, base, times.or(Some((modified_ms, modified_ms))))?;
                self.note(dir, Checkpoint { flushed: next, segment: next, position: 0, log_start })
            }
            Then::Active { log_start } => {
                let (_, _, (position, next)) = self.read_facts(&path, base)?;
                self.note(dir, Checkpoint { flushed: next, segment: base, position, log_start })
            }
        }
    }

    /// Writes seal and index of a log in which every batch is good. Answers where it ends.
    pub(super) fn reseal(&self, file: &Path, base: Offset, times: Option<(i64, i64)>) -> io::Result<Offset> {
        let path = self.root.join(file);
        let (facts, index, (end, next)) = self.read_facts(&path, base)?;
        let (first_append_ms, last_append_ms) = match times {
            Some(times) => times,
            None => {
                let modified_ms = self.modified_ms(&path)?;
                (modified_ms, modified_ms)
            }
        };
        let seal = Seal { first_append_ms, last_append_ms, ..facts.seal(base, next, end) };
        let dir = file.parent().unwrap_or(file);
        self.replace(&path_of(dir, base, FileKind::Index), &index.encode(base))?;
        self.replace(&path_of(dir, base, FileKind::Seal), &seal.encode())?;
        Ok(next)
    }

    fn modified_ms(&self, path: &Path) -> io::Result<i64> {
        Ok(unix_ms(self.fs.open(path, OpenMode::Read, 0)?.modified()?))
    }

    /// Answers how long the new file is. Both are durable then.
    fn write_around(&self, path: &Path, temporary: &Path, isolation: &Isolation) -> io::Result<u64> {
        let fs = &*self.fs;
        match fs.remove_file(temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let old = fs.open(path, OpenMode::Read, 0)?;
        let new = fs.open(temporary, OpenMode::CreateNew, 0)?;
        let mut copy = MendedCopy::new(&*old, &*new, isolation.end);
        match &isolation.holes {
            Holes::Listed(holes) => holes.iter().try_for_each(|hole| copy.leave_out(hole))?,
            Holes::Sought { scope, behind } => {
                copy.seek(*scope)?;
                behind.iter().try_for_each(|hole| copy.leave_out(hole))?;
            }
        }
        let len_bytes = copy.finish()?;
        new.sync_data()?;
        old.sync_data()?;
        Ok(len_bytes)
    }

    /// Whether the new log is whole and holds all offsets that it should. Its first epoch is not measured by that of
    /// the segment before, which may be the wrong one of the two.
    fn verify_new(&self, path: &Path, isolation: &Isolation, end: u64) -> io::Result<()> {
        let file = self.fs.open(path, OpenMode::Read, 0)?;
        let start = AuditPlace::beginning(isolation.base, LeaderEpoch::NONE);
        let mut audit = Audit::new(&*file, AuditScope { start, end, flushed_to: end, flushed_next: None });
        while let Some(met) = audit.next()? {
            if let Audited::Wrong(Wrong { bytes, fault, .. }) = met {
                let reason = fault_reason(&fault);
                return Err(not_mended(format!("at byte {} of the new log: {reason}", bytes.start)));
            }
        }
        if audit.expected() != isolation.next {
            let (found, next) = (audit.expected(), isolation.next);
            return Err(not_mended(format!("the new log ends at offset {found} in place of {next}")));
        }
        Ok(())
    }

    /// Facts and index of a log in which every batch is good, and where it ends.
    fn read_facts(&self, path: &Path, base: Offset) -> io::Result<(SegmentFacts, Index, (u64, Offset))> {
        let file = self.fs.open(path, OpenMode::Read, 0)?;
        let (mut facts, mut index, mut next) = (SegmentFacts::new(), Index::default(), base);
        let mut walk = BatchWalk::new(&*file, 0, file.len()?);
        while let Some(step) = walk.next_verified().map_err(io::Error::other)? {
            let header = walk.bytes(step.position, step.position + HEADER_BYTES as u64)?;
            if let Some(entry) = facts.note_step(&header, &step, base, INDEX_INTERVAL_BYTES) {
                index.push(entry);
            }
            next = step.header.next_offset();
        }
        Ok((facts, index, (walk.position(), next)))
    }
}

/// A log that is copied around what is damaged.
struct MendedCopy<'a> {
    old: &'a dyn File,
    writer: Writer<'a>,
    /// Where what was not copied yet begins, and where it ends.
    from: u64,
    end: u64,
    /// Of the last batch that was copied.
    epoch: Option<LeaderEpoch>,
    /// The last batch that was met and good as far as was known then: where it is in the old log and in the new one.
    accepted: Option<(Step, u64)>,
    /// From there on the new log has headers whose epochs what follows may tell to be wrong.
    unsettled: Option<u64>,
    /// The epoch below which none of those may be.
    least: LeaderEpoch,
}

impl<'a> MendedCopy<'a> {
    fn new(old: &'a dyn File, new: &'a dyn File, end: u64) -> Self {
        let writer = Writer { new, at: 0 };
        let least = LeaderEpoch::NONE;
        Self { old, writer, from: 0, end, epoch: None, accepted: None, unsettled: None, least }
    }

    /// Does with each wrong place in `scope` what can be done, the moment it is found.
    fn seek(&mut self, scope: AuditScope) -> io::Result<()> {
        let old = self.old;
        // What stood behind the end may have been cut since.
        let mut audit = Audit::new(old, AuditScope { end: scope.end.min(old.len()?), ..scope });
        while let Some(met) = audit.next()? {
            match met {
                Audited::Batch(step) => self.accept(step)?,
                // Too many bytes at the end are not copied anyway.
                Audited::Wrong(wrong) if wrong.bytes.start >= self.end && wrong.offsets.is_empty() => {}
                Audited::Wrong(wrong) => self.mend(wrong)?,
                Audited::End { .. } => {}
            }
        }
        self.settle_epochs(None)
    }

    fn accept(&mut self, step: Step) -> io::Result<()> {
        self.settle_epochs(step.header.leader_epoch)?;
        let ahead_bytes = step.position.checked_sub(self.from).ok_or_else(went_back)?;
        self.accepted = Some((step, self.writer.at + ahead_bytes));
        self.least = step.header.leader_epoch.unwrap_or(self.least);
        Ok(())
    }

    fn mend(&mut self, wrong: Wrong) -> io::Result<()> {
        let healed = heal_alone(self.old, &wrong)?;
        if let Fault::Epoch { least, .. } = wrong.fault {
            self.least = if wrong.bytes.start == 0 { LeaderEpoch::NONE } else { least };
        }
        if wrong.bytes.start < self.from {
            // What follows a wrong place may tell that the batch before that place is wrong, too: it stands in the new
            // log already.
            let written = self.accepted.take().filter(|(step, _)| step.position == wrong.bytes.start);
            let (Some((_, at)), Some(healed)) = (written, healed) else { return Err(went_back()) };
            self.unsettled = Some(at);
            return self.writer.rewrite(&healed.right, at);
        }
        // Up to there it is as it was accepted.
        let at = self.writer.at + (wrong.bytes.start - self.from);
        self.unsettled.get_or_insert(at);
        match healed {
            Some(healed) => self.put_right(&healed, wrong.bytes.end),
            None => self.leave_out(&Hole { bytes: wrong.bytes, offsets: wrong.offsets }),
        }
    }

    /// The epochs of what was written since the last good batch lie between that one's and `most`, that of the next
    /// one: what was written there of empty batches had to be guessed, and a header that was put right for another
    /// reason may be wrong in this, too.
    fn settle_epochs(&mut self, most: Option<LeaderEpoch>) -> io::Result<()> {
        let Some(mut at) = self.unsettled.take() else { return Ok(()) };
        let mut least = self.least;
        while at < self.writer.at {
            let mut bytes = [0; HEADER_BYTES];
            self.writer.new.read_exact_at(&mut bytes, at)?;
            let header = BatchHeader::parse(&bytes).map_err(io::Error::other)?;
            let found = header.leader_epoch.unwrap_or(least);
            let right = most.map_or(found, |most| found.min(most)).max(least);
            if header.leader_epoch != Some(right) {
                bytes[LEADER_EPOCH_AT..LEADER_EPOCH_AT + 4].copy_from_slice(&right.get().to_be_bytes());
                self.writer.rewrite(&bytes, at)?;
            }
            least = right;
            at += header.size_bytes() as u64;
        }
        (self.least, self.epoch) = (least, Some(least));
        Ok(())
    }

    fn copy_to(&mut self, position: u64) -> io::Result<()> {
        if position < self.from {
            return Err(went_back());
        }
        self.epoch = last_epoch(self.old, self.from..position)?.or(self.epoch);
        self.writer.copy(self.old, self.from..position)?;
        self.from = position;
        Ok(())
    }

    fn leave_out(&mut self, hole: &Hole) -> io::Result<()> {
        self.copy_to(hole.bytes.start)?;
        let known = match self.epoch {
            Some(epoch) => Some(epoch),
            None => first_epoch(self.old, hole.bytes.end..self.end)?,
        };
        for filler in fillers(hole.offsets.clone(), known.or(Some(LeaderEpoch::NONE))) {
            self.writer.write(&filler)?;
        }
        self.from = hole.bytes.end;
        Ok(())
    }

    /// The batch ends at `end`.
    fn put_right(&mut self, healed: &HealedHeader, end: u64) -> io::Result<()> {
        self.copy_to(healed.position)?;
        self.writer.write(&healed.right)?;
        self.writer.copy(self.old, healed.position + HEADER_BYTES as u64..end)?;
        self.epoch = BatchHeader::parse(&healed.right).ok().and_then(|header| header.leader_epoch).or(self.epoch);
        self.from = end;
        Ok(())
    }

    /// Answers how long the copy is.
    fn finish(mut self) -> io::Result<u64> {
        self.copy_to(self.end)?;
        Ok(self.writer.at)
    }
}

struct Writer<'a> {
    new: &'a dyn File,
    at: u64,
}

impl Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.new.write_at(&[IoSlice::new(bytes)], self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Over what was written.
    fn rewrite(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.new.write_at(&[IoSlice::new(bytes)], at).map(|_| ())
    }

    fn copy(&mut self, old: &dyn File, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let to = range.end.min(at + SCAN_BYTES);
            self.write(&old.slice(at..to)?)?;
            at = to;
        }
        Ok(())
    }
}

fn went_back() -> io::Error {
    not_mended("a place is wrong that was copied already".to_owned())
}

fn not_mended(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not mended, the old log was left as it is: {reason}"))
}

/// Of batches that are good.
fn last_epoch(file: &dyn File, range: Range<u64>) -> io::Result<Option<LeaderEpoch>> {
    let mut walk = BatchWalk::new(file, range.start, range.end);
    let mut last = None;
    while let Some(step) = walk.next().map_err(io::Error::other)? {
        last = step.header.leader_epoch.or(last);
    }
    Ok(last)
}

/// `None` when the next place is damaged, too.
fn first_epoch(file: &dyn File, range: Range<u64>) -> io::Result<Option<LeaderEpoch>> {
    match BatchWalk::new(file, range.start, range.end).next() {
        Ok(step) => Ok(step.and_then(|step| step.header.leader_epoch)),
        Err(WalkError::NoBatch { .. }) => Ok(None),
        Err(WalkError::Io(cause)) => Err(cause),
    }
}
