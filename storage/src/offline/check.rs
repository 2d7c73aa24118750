//! Everything that can be known of a partition by reading all of it.

use std::io;
use std::ops::Range;
use std::path::Path;

use super::names::PartitionNames;
use super::side::{IndexAudit, SideFile, WrongEntry, read_index, read_seal, read_snapshot};
use crate::batch::{BatchError, BatchLimits, BatchView};
use crate::checkpoint::{self, Checkpoint, Slot};
use crate::cleaned::Cleaned;
use crate::fs::{File, Fs, OpenMode};
use crate::index::Index;
use crate::limits::{BATCH_BYTES_MAX, SCAN_BYTES};
use crate::offset::{LeaderEpoch, Offset};
use crate::partition::newest_evidence;
use crate::producer::Producers;
use crate::segment::{
    Audit, AuditPlace, AuditScope, Audited, Fault, FileKind, HealedHeader, Seal, SegmentFacts, Step, Wrong,
    fault_reason, heal, heal_alone, path_of,
};

/// Wrong places of one segment that are kept one by one, and as many batches whose records do not read back: there may
/// be millions. What comes behind is counted.
const WRONGS_MAX: usize = 1_000;
/// An index entry for so many bytes, in an index that is made anew: the default of the settings.
const INDEX_INTERVAL_BYTES: u32 = 16 << 10;

/// A partition, read whole.
#[derive(Debug)]
pub(super) struct PartitionCheck {
    pub(super) names: PartitionNames,
    /// The slots of the flushed offset; none when the file is missing.
    pub(super) slots: Vec<(u64, Slot)>,
    /// What is known to be flushed, from all that says so.
    pub(super) noted: Checkpoint,
    /// Oldest first, without those that retention had decided to remove.
    pub(super) segments: Vec<SegmentCheck>,
    /// Segments below the log start.
    pub(super) condemned: Vec<Offset>,
    /// Why the note of how far it was compacted says nothing, where it is there.
    pub(super) wrong_cleaned: Option<String>,
}

/// A segment, read whole.
#[derive(Debug)]
pub(super) struct SegmentCheck {
    pub(super) base: Offset,
    /// Bytes below were flushed.
    pub(super) flushed_to: u64,
    /// Whether a segment follows, or followed.
    pub(super) is_sealed: bool,
    /// One after the last byte of the last batch.
    pub(super) end: u64,
    /// One after the last offset.
    pub(super) next: Offset,
    pub(super) batches: u64,
    pub(super) records: u64,
    pub(super) newest_epoch: Option<LeaderEpoch>,
    pub(super) wrongs: Vec<Wrong>,
    /// Wrong places behind those.
    pub(super) wrongs_unlisted: Option<Unlisted>,
    /// Those of them that cannot be put right.
    pub(super) lost_unlisted: Option<Unlisted>,
    /// What was gone over, to do that again. `None` where nothing could be.
    pub(super) scope: Option<AuditScope>,
    /// Whole batches whose records do not read back.
    pub(super) malformed: Vec<(Step, BatchError)>,
    pub(super) malformed_unlisted: Option<Unlisted>,
    /// Set when bytes follow the log's end: their number, and why they are no batch.
    pub(super) behind: Option<(u64, BatchError)>,
    /// The disk did not answer there.
    pub(super) unread: Option<(u64, String)>,
    /// Headers that were changed, with what they were.
    pub(super) healed: Vec<HealedHeader>,
    pub(super) seal: SideFile<Seal>,
    pub(super) index: SideFile<Index>,
    pub(super) wrong_entry: Option<WrongEntry>,
    pub(super) snapshot: SideFile<Producers>,
    /// What a seal made now would say, but for the times of appends.
    pub(super) facts: Seal,
    /// What an index made now would say.
    pub(super) rebuilt: Index,
}

/// Places that are not kept one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unlisted {
    /// Where the first of them is.
    pub(super) position: u64,
    pub(super) places: u64,
    /// How many offsets they have.
    pub(super) offsets: u64,
}

impl Unlisted {
    fn count(unlisted: &mut Option<Self>, position: u64, offsets: &Range<Offset>) {
        let unlisted = unlisted.get_or_insert(Self { position, places: 0, offsets: 0 });
        unlisted.places += 1;
        unlisted.offsets += offsets.end.since(offsets.start);
    }
}

impl SegmentCheck {
    /// Takes over what was read.
    fn take(&mut self, reading: Reading<'_>) {
        let Reading { facts, rebuilt, index, batches, records, newest_epoch, wrongs, malformed, .. } = reading;
        (self.wrongs_unlisted, self.lost_unlisted) = (reading.wrongs_unlisted, reading.lost_unlisted);
        self.malformed_unlisted = reading.malformed_unlisted;
        self.facts = facts.seal(self.base, self.next, self.end);
        self.wrong_entry = index.wrong;
        (self.rebuilt, self.batches, self.records) = (rebuilt, batches, records);
        (self.newest_epoch, self.wrongs, self.malformed) = (newest_epoch, wrongs, malformed);
    }

    /// What follows the last batch: of a sealed file all of it is too much, else reserved space is zeros.
    fn bytes_behind(
        &self,
        file: &dyn File,
        len_bytes: u64,
        reason: Option<BatchError>,
    ) -> io::Result<Option<(u64, BatchError)>> {
        let is_whole = self.is_sealed && self.seal.good().is_some_and(|seal| seal.len_bytes == self.end);
        if is_whole {
            return Ok((len_bytes > self.end).then(|| (len_bytes - self.end, longer_than_sealed(len_bytes))));
        }
        behind(file, self.end, len_bytes, reason)
    }

    /// Looks for the right headers of what is wrong. Where the disk does not answer to that, nothing is settled: what
    /// could be put right is not to be given up.
    fn heal(&mut self, file: &dyn File) {
        let sealed = self.seal.good().filter(|seal| seal.next == self.next && seal.base == self.base);
        let is_other = sealed.is_some_and(|seal| seal.headers_crc != self.facts.headers_crc);
        if self.unread.is_none() && (is_other || !self.wrongs.is_empty()) {
            match heal(file, sealed, &self.wrongs, self.end) {
                Ok(healed) => self.healed = healed,
                Err(cause) => {
                    let position = self.wrongs.first().map_or(0, |wrong| wrong.bytes.start);
                    self.unread = Some((position, cause.to_string()));
                }
            }
        }
    }

    /// Whether every batch of the segment is as it was written, as far as the audit saw.
    pub(super) const fn is_whole(&self) -> bool {
        self.wrongs.is_empty() && self.unread.is_none()
    }

    /// The right header of what is wrong at `position`, where that is known.
    pub(super) fn healed_at(&self, position: u64) -> Option<&HealedHeader> {
        self.healed.iter().find(|healed| healed.position == position)
    }

    /// What is wrong and cannot be put right.
    pub(super) fn unhealed(&self) -> impl Iterator<Item = &Wrong> {
        self.wrongs.iter().filter(|wrong| self.healed_at(wrong.bytes.start).is_none())
    }
}

/// Where a check stands, for a progress bar.
pub(super) type Progress<'a> = dyn FnMut(u64) + 'a;

/// Reads a partition whole. `walked` is told of each batch's bytes. Fails only where
/// neither the names nor what was flushed can be read.
pub(super) fn check_partition(fs: &dyn Fs, dir: &Path, walked: &mut Progress<'_>) -> io::Result<PartitionCheck> {
    let names = PartitionNames::list(fs, dir)?;
    let slots = read_slots(fs, dir)?;
    let newest = slots.iter().filter_map(|(_, slot)| match slot {
        Slot::Good(sequence, checkpoint) => Some((*sequence, *checkpoint)),
        _ => None,
    });
    let slot = newest.max_by_key(|(sequence, _)| *sequence).map(|(_, checkpoint)| checkpoint);
    let noted = newest_evidence(fs, dir, &names.bases, slot)?;
    let wrong_cleaned = names.has_cleaned.then(|| Cleaned::fault(fs, dir)).flatten();
    if !names.swaps.is_empty() {
        // Old and new segments are there side by side, until a start has ended the compaction.
        let (segments, condemned) = (Vec::new(), Vec::new());
        return Ok(PartitionCheck { slots, noted, segments, condemned, wrong_cleaned, names });
    }
    let below = names.bases.iter().skip(1).take_while(|&&next| next <= noted.log_start).count();
    let (condemned, bases) = names.bases.split_at(below);
    let mut segments = Vec::new();
    let mut epoch = LeaderEpoch::NONE;
    for (at, &base) in bases.iter().enumerate() {
        let following = bases.get(at + 1).copied();
        let around = Around { fs, dir, noted, base, following, epoch };
        let checked = check_segment(around, walked).unwrap_or_else(|cause| unread_segment(around, &cause));
        // A header that is known to be wrong says nothing of those that follow.
        let believed = checked.newest_epoch.filter(|_| checked.healed.is_empty());
        epoch = believed.unwrap_or(epoch).max(epoch);
        segments.push(checked);
    }
    Ok(PartitionCheck { slots, noted, segments, condemned: condemned.to_vec(), wrong_cleaned, names })
}

fn read_slots(fs: &dyn Fs, dir: &Path) -> io::Result<Vec<(u64, Slot)>> {
    let path = dir.join(checkpoint::FILE_NAME);
    let slots = fs.open(&path, OpenMode::Read, 0).and_then(|file| checkpoint::read_slots(&*file));
    Ok(crate::fs::if_there(&path, slots)?.map_or_else(Vec::new, Vec::from))
}

/// What a segment is checked against.
#[derive(Clone, Copy)]
struct Around<'a> {
    fs: &'a dyn Fs,
    dir: &'a Path,
    noted: Checkpoint,
    base: Offset,
    following: Option<Offset>,
    epoch: LeaderEpoch,
}

impl Around<'_> {
    /// The bytes that were flushed, and the offset at which they end.
    fn flushed(&self, len_bytes: u64, seal: Option<&Seal>) -> (u64, Option<Offset>) {
        let Self { noted, base, following, .. } = *self;
        if base < noted.segment {
            let sealed_next = seal.filter(|seal| seal.base == base).map(|seal| seal.next);
            let next = following.or(sealed_next).unwrap_or(noted.segment).min(noted.segment);
            let sealed_bytes = seal.filter(|seal| seal.base == base && seal.next == next).map(|seal| seal.len_bytes);
            return (sealed_bytes.unwrap_or(len_bytes).min(len_bytes), Some(next));
        }
        if base == noted.segment { (noted.position, Some(noted.flushed)) } else { (0, None) }
    }
}

fn check_segment(around: Around<'_>, walked: &mut Progress<'_>) -> io::Result<SegmentCheck> {
    let Around { fs, dir, base, .. } = around;
    let mut check = unknown_segment(around);
    let file = fs.open(&path_of(dir, base, FileKind::Log), OpenMode::Read, 0)?;
    let len_bytes = file.len()?;
    let (flushed_to, flushed_next) = around.flushed(len_bytes, check.seal.good());
    check.flushed_to = flushed_to;
    let indexed_bytes = check.seal.good().map_or(len_bytes, |seal| seal.len_bytes.max(len_bytes));
    let index = read_index(fs, dir, base, indexed_bytes);
    // Behind a sealed length there is nothing to look for.
    let end = if base < around.noted.segment { flushed_to } else { len_bytes };
    let start = AuditPlace::beginning(base, around.epoch);
    let mut reading = Reading::new(base, index.good());
    let scope = AuditScope { start, end, flushed_to: flushed_to.min(end), flushed_next };
    check.scope = Some(scope);
    match reading.run(&*file, scope, walked) {
        Ok((position, next)) => {
            (check.end, check.next) = (position, next);
            reading.without_surplus(&mut check);
            check.behind = check.bytes_behind(&*file, len_bytes, reading.end.take())?;
        }
        Err((position, cause)) => check.unread = Some((position, cause.to_string())),
    }
    reading.settle_newest(&*file);
    check.take(reading);
    check.index = index;
    check.heal(&*file);
    Ok(check)
}

/// A segment of which nothing is known yet but what lies beside its log.
fn unknown_segment(around: Around<'_>) -> SegmentCheck {
    let Around { fs, dir, base, .. } = around;
    let (flushed_to, next) = around.flushed(0, None);
    let next = next.or(around.following).unwrap_or(base);
    SegmentCheck {
        base,
        flushed_to,
        is_sealed: around.following.is_some() || base < around.noted.segment,
        end: 0,
        next,
        batches: 0,
        records: 0,
        newest_epoch: None,
        wrongs: Vec::new(),
        wrongs_unlisted: None,
        lost_unlisted: None,
        scope: None,
        malformed: Vec::new(),
        malformed_unlisted: None,
        behind: None,
        unread: None,
        healed: Vec::new(),
        seal: read_seal(fs, dir, base),
        index: SideFile::Missing,
        wrong_entry: None,
        snapshot: read_snapshot(fs, dir, base),
        facts: SegmentFacts::new().seal(base, next, 0),
        rebuilt: Index::default(),
    }
}

/// A segment whose file cannot even be opened.
fn unread_segment(around: Around<'_>, cause: &io::Error) -> SegmentCheck {
    SegmentCheck { unread: Some((0, cause.to_string())), ..unknown_segment(around) }
}

/// What stands behind the end of the log in its last file: reserved space is zeros.
fn behind(
    file: &dyn File,
    from: u64,
    len_bytes: u64,
    reason: Option<BatchError>,
) -> io::Result<Option<(u64, BatchError)>> {
    let mut used_to = from;
    let mut at = from;
    while at < len_bytes {
        let to = len_bytes.min(at + SCAN_BYTES);
        if let Some(last) = file.slice(at..to)?.iter().rposition(|&byte| byte != 0) {
            used_to = at + last as u64 + 1;
        }
        at = to;
    }
    let reason = reason.unwrap_or_else(|| longer_than_sealed(len_bytes));
    Ok((used_to > from).then_some((used_to - from, reason)))
}

fn longer_than_sealed(len_bytes: u64) -> BatchError {
    let found = i64::try_from(len_bytes).unwrap_or(i64::MAX);
    BatchError::Field { field: "the file's length", found, allowed: "what the seal says" }
}

/// One reading of a segment.
struct Reading<'a> {
    base: Offset,
    facts: SegmentFacts,
    rebuilt: Index,
    index: IndexAudit<'a>,
    batches: u64,
    records: u64,
    newest_epoch: Option<LeaderEpoch>,
    /// As it was before the last batch.
    newest_epoch_before: Option<LeaderEpoch>,
    wrongs: Vec<Wrong>,
    wrongs_unlisted: Option<Unlisted>,
    lost_unlisted: Option<Unlisted>,
    /// The last wrong place that was met: at the end it may turn out to be none.
    newest_wrong: Option<Wrong>,
    malformed: Vec<(Step, BatchError)>,
    malformed_unlisted: Option<Unlisted>,
    /// Why the log ended before the file did.
    end: Option<BatchError>,
}

impl<'a> Reading<'a> {
    fn new(base: Offset, index: Option<&'a Index>) -> Self {
        Self {
            base,
            facts: SegmentFacts::new(),
            rebuilt: Index::default(),
            index: IndexAudit::new(index, base),
            batches: 0,
            records: 0,
            newest_epoch: None,
            newest_epoch_before: None,
            wrongs: Vec::new(),
            wrongs_unlisted: None,
            lost_unlisted: None,
            newest_wrong: None,
            malformed: Vec::new(),
            malformed_unlisted: None,
            end: None,
        }
    }

    /// Goes to the end; answers where that is. An error of the disk tells where it was met.
    fn run(
        &mut self,
        file: &dyn File,
        scope: AuditScope,
        walked: &mut Progress<'_>,
    ) -> Result<(u64, Offset), (u64, io::Error)> {
        let mut audit = Audit::new(file, scope);
        loop {
            let position = audit.position();
            let at = |cause| (position, cause);
            let Some(met) = audit.next().map_err(at)? else { break };
            match met {
                Audited::Batch(step) => self.batch(&audit, &step).map_err(at)?,
                Audited::Wrong(wrong) => self.wrong(file, wrong),
                Audited::End { position, reason } => {
                    self.end = Some(reason);
                    return Ok((position, audit.expected()));
                }
            }
            walked(audit.position().saturating_sub(position));
        }
        Ok((audit.position(), audit.expected()))
    }

    fn batch(&mut self, audit: &Audit<'_>, step: &Step) -> io::Result<()> {
        let bytes = audit.bytes(step)?;
        self.index.batch(step);
        let header = audit.header_bytes(step)?;
        if let Some(entry) = self.facts.note_step(&header, step, self.base, INDEX_INTERVAL_BYTES) {
            self.rebuilt.push(entry);
        }
        self.batches += 1;
        self.records += u64::from(step.header.record_count.unsigned_abs());
        self.newest_epoch_before = self.newest_epoch;
        self.newest_epoch = self.newest_epoch.max(step.header.leader_epoch);
        match read_records(&bytes) {
            Ok(()) => {}
            Err(reason) if self.malformed.len() < WRONGS_MAX => self.malformed.push((*step, reason)),
            Err(_) => {
                let offsets = step.header.base_offset..step.header.next_offset();
                Unlisted::count(&mut self.malformed_unlisted, step.position, &offsets);
            }
        }
        Ok(())
    }

    /// Bytes at the end in whose place no offset is missing are no damage, but too many.
    fn without_surplus(&mut self, check: &mut SegmentCheck) {
        let is_surplus = |last: &mut Wrong| last.offsets.is_empty() && last.bytes.end == check.end;
        if let Some(surplus) = self.newest_wrong.take_if(is_surplus) {
            check.end = surplus.bytes.start;
            self.end = Some(fault_reason(&surplus.fault));
        }
    }

    fn wrong(&mut self, file: &dyn File, wrong: Wrong) {
        self.index.damage();
        if matches!(wrong.fault, Fault::Epoch { .. }) {
            self.newest_epoch = self.newest_epoch_before;
        }
        self.settle_newest(file);
        self.newest_wrong = Some(wrong);
    }

    /// The newest wrong place is one.
    fn settle_newest(&mut self, file: &dyn File) {
        let Some(wrong) = self.newest_wrong.take() else { return };
        if self.wrongs.len() < WRONGS_MAX {
            self.wrongs.push(wrong);
            return;
        }
        Unlisted::count(&mut self.wrongs_unlisted, wrong.bytes.start, &wrong.offsets);
        // So many are not put right together, so that each by itself tells. One that the disk does not show counts as
        // lost here; a repair ends there.
        if !matches!(heal_alone(file, &wrong), Ok(Some(_))) {
            Unlisted::count(&mut self.lost_unlisted, wrong.bytes.start, &wrong.offsets);
        }
    }
}

/// Unpacks a batch and reads every record.
fn read_records(bytes: &[u8]) -> Result<(), BatchError> {
    let limits = BatchLimits { batch_bytes_max: BATCH_BYTES_MAX, ..BatchLimits::default() };
    let (view, _) = BatchView::parse(bytes)?;
    let records = view.records(&limits)?;
    records.iter().try_for_each(|record| record.map(|_| ()))
}
