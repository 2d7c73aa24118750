//! What is to be done for one partition.

use std::path::{Path, PathBuf};

use super::super::PartitionDirectory;
use super::super::check::{PartitionCheck, SegmentCheck, Unlisted};
use super::super::side::SideFile;
use super::isolate::{Hole, Holes, Isolation, Then};
use super::{Action, Lost, RepairPlan, RepairStep};
use crate::checkpoint::{self, Slot};
use crate::cleaned;
use crate::fs::{Fs, OpenMode};
use crate::offset::{LeaderEpoch, Offset};
use crate::partition::OffsetRange;
use crate::segment::{FileKind, Seal, path_of, unix_ms};

/// The newest epoch of a batch whose header is not known to be wrong.
pub(super) fn believed_epoch(checked: &PartitionCheck) -> Option<LeaderEpoch> {
    let segments = checked.segments.iter().filter(|segment| segment.healed.is_empty());
    segments.filter_map(|segment| segment.newest_epoch).max()
}

/// One partition that is planned for.
pub(super) struct Planning<'a> {
    pub(super) fs: &'a dyn Fs,
    pub(super) root: &'a Path,
    pub(super) partition: &'a PartitionDirectory,
    pub(super) plan: &'a mut RepairPlan,
}

impl Planning<'_> {
    pub(super) fn partition(&mut self, checked: &PartitionCheck) {
        if checked.wrong_cleaned.is_some() {
            let file = self.partition.path.join(cleaned::FILE_NAME);
            self.step(file, "set it aside: the next compaction goes over more than it has to", Action::SetAside);
        } else if checked.names.has_cleaned && checked.segments.iter().any(|segment| !segment.wrongs.is_empty()) {
            // Compactions passed over what they could not read. Before it can be read again: a repair that ends between
            // the two finds no reason to do this any more.
            let file = self.partition.path.join(cleaned::FILE_NAME);
            self.step(file, "set it aside: what is mended was never compacted, as far as it says", Action::SetAside);
        }
        if !checked.names.swaps.is_empty() {
            self.step(self.partition.path.clone(), "end the compaction that was interrupted", Action::Recover);
            self.refuse(format!("{}: repair again to look at its logs", self.partition.path.display()));
            return;
        }
        if let Some(unread) = checked.segments.iter().find(|segment| segment.unread.is_some()) {
            let file = self.path(unread.base, FileKind::Log);
            self.refuse(format!(
                "{}: the disk does not answer; copy the directory to a good one first",
                file.display()
            ));
            return;
        }
        let overlap = checked.segments.windows(2).find(|pair| pair[0].next > pair[1].base);
        if let Some([before, behind]) = overlap {
            let (base, next) = (self.path(behind.base, FileKind::Log), before.next);
            self.refuse(format!("{}: the segment before it goes on to offset {next}: which is right?", base.display()));
            return;
        }
        self.ends(checked);
        let mut isolated_last = false;
        for (at, segment) in checked.segments.iter().enumerate() {
            let is_last = at + 1 == checked.segments.len();
            self.log(segment);
            if self.isolate(checked, segment, is_last) {
                isolated_last |= is_last;
                continue;
            }
            if !self.reseal(segment) {
                self.seal(segment);
                self.index(segment);
            }
        }
        for (at, segment) in checked.segments.iter().enumerate() {
            self.snapshot(&checked.segments[..at], segment);
        }
        if !isolated_last {
            self.checkpoint(checked);
        }
    }

    fn step(&mut self, file: PathBuf, what: impl Into<String>, action: Action) {
        self.plan.steps.push(RepairStep { partition: Some(self.partition.id), file, what: what.into(), action });
    }

    fn refuse(&mut self, reason: String) {
        self.plan.refused.push(reason);
    }

    fn lost(&mut self, from: Offset, to: Offset) {
        if from < to {
            let offsets = OffsetRange { from, to };
            self.plan.lost.push(Lost { partition: self.partition.id, offsets });
        }
    }

    fn path(&self, base: Offset, kind: FileKind) -> PathBuf {
        path_of(&self.partition.path, base, kind)
    }

    /// What recovery would do at the next start: end the log where it ends, move its start where it starts.
    fn ends(&mut self, checked: &PartitionCheck) {
        let (segments, noted) = (&checked.segments, checked.noted);
        let first = segments.first().map_or(noted.flushed, |segment| segment.base);
        let torn = segments.iter().find(|segment| !segment.is_sealed && segment.behind.is_some());
        let broken = segments.windows(2).find(|pair| pair[0].next != pair[1].base && pair[1].base > noted.flushed);
        let what = if let Some(segment) = torn {
            let size_bytes = segment.behind.as_ref().map_or(0, |(size_bytes, _)| *size_bytes);
            format!("end the log at offset {}: move the {size_bytes} bytes behind it to quarantine", segment.next)
        } else if let Some([before, behind]) = broken {
            let (next, base) = (before.next, behind.base);
            format!("end the log at offset {next}: move the segments from {base} on to quarantine")
        } else if first > noted.log_start {
            self.lost(noted.log_start, first);
            format!("let the log start at offset {first}: the segments before are missing")
        } else {
            return;
        };
        self.step(self.partition.path.clone(), what, Action::Recover);
    }

    fn log(&mut self, segment: &SegmentCheck) {
        let file = self.path(segment.base, FileKind::Log);
        // Of more places than are kept one by one, all is done while the log is written anew, from the file as it is.
        let is_sought = segment.wrongs_unlisted.is_some();
        for healed in segment.healed.iter().filter(|_| !is_sought) {
            let (field, right, found) = healed.difference();
            let what = format!(
                "at byte {}, put {field} {right} back in place of {found}: checksums and neighbours say so",
                healed.position
            );
            self.step(file.clone(), what, Action::Heal(healed.clone()));
        }
        if let Some((size_bytes, _)) = segment.behind.as_ref().filter(|_| segment.is_sealed && !is_sought) {
            let end = segment.end;
            let what = format!("cut at byte {end}: move the {size_bytes} bytes behind the last batch to quarantine");
            self.step(file.clone(), what, Action::Cut(end));
        }
        for (step, reason) in &segment.malformed {
            let (from, position) = (step.header.base_offset, step.position);
            let file = file.display();
            self.refuse(format!("{file}: the batch at byte {position}, offset {from}, was stored as it is: {reason}"));
        }
        if let Some(Unlisted { places, offsets, .. }) = segment.malformed_unlisted {
            let file = file.display();
            self.refuse(format!("{file}: {places} more batches, of {offsets} offsets, were stored as they are, too"));
        }
    }

    /// Records that cannot be put right. Answers whether the log is written anew.
    fn isolate(&mut self, checked: &PartitionCheck, segment: &SegmentCheck, is_last: bool) -> bool {
        let mut holes: Vec<Hole> = segment
            .unhealed()
            .map(|wrong| Hole { bytes: wrong.bytes.clone(), offsets: wrong.offsets.clone() })
            .collect();
        let noted = checked.noted;
        let behind = (is_last && segment.next < noted.flushed)
            .then_some(Hole { bytes: segment.end..segment.end, offsets: segment.next..noted.flushed });
        holes.extend(behind.clone());
        if holes.is_empty() && segment.wrongs_unlisted.is_none() {
            return false;
        }
        for hole in &holes {
            self.lost(hole.offsets.start, hole.offsets.end);
        }
        if let Some(Unlisted { places, offsets, .. }) = segment.lost_unlisted {
            self.plan.lost_unlisted.places += places;
            self.plan.lost_unlisted.offsets += offsets;
        }
        let next = behind.as_ref().map_or(segment.next, |behind| behind.offsets.end);
        let what = words_of(&holes, segment);
        let holes = match segment.scope {
            Some(scope) if segment.wrongs_unlisted.is_some() => Holes::Sought { scope, behind },
            _ => Holes::Listed(holes),
        };
        let times = segment.seal.good().map(|seal| (seal.first_append_ms, seal.last_append_ms));
        let log_start = noted.log_start;
        let then = match (segment.is_sealed, is_last) {
            (true, false) => Then::Sealed(times),
            (true, true) => Then::SealedLast { times, log_start },
            (false, _) => Then::Active { log_start },
        };
        let isolation = Isolation { base: segment.base, holes, end: segment.end, next, then };
        self.step(self.path(segment.base, FileKind::Log), what, Action::Isolate(isolation));
        true
    }

    /// Seal and index of a log whose headers are put right first. Answers whether there is nothing more to do for them.
    fn reseal(&mut self, segment: &SegmentCheck) -> bool {
        let is_index_good = segment.index.good().is_some() && segment.wrong_entry.is_none();
        let (has_seal, is_due) = (segment.seal.good().is_some(), segment.is_sealed && !segment.wrongs.is_empty());
        if !is_due || (has_seal && is_index_good) {
            return is_due;
        }
        let times = segment.seal.good().map(|seal| (seal.first_append_ms, seal.last_append_ms));
        let action = Action::Reseal { base: segment.base, times };
        self.step(self.path(segment.base, FileKind::Log), "write its seal and its index from the log", action);
        true
    }

    /// Only of what was flushed: a seal is evidence of that.
    fn seal(&mut self, segment: &SegmentCheck) {
        if !segment.is_sealed || segment.flushed_to < segment.end {
            return;
        }
        let right = |times: (i64, i64)| Seal { first_append_ms: times.0, last_append_ms: times.1, ..segment.facts };
        let file = self.path(segment.base, FileKind::Seal);
        let (what, seal) = match &segment.seal {
            SideFile::Unread(_) => return,
            _ if !segment.is_whole() => return,
            SideFile::Good(seal) => {
                let anew = right((seal.first_append_ms, seal.last_append_ms));
                if (Seal { headers_crc: anew.headers_crc, ..*seal }) == anew {
                    return;
                }
                ("write it anew from the log", anew)
            }
            lost => {
                let Some(modified_ms) = self.modified_ms(segment.base) else { return };
                let what = match lost {
                    SideFile::Missing => "write it from the log; the times of appends are estimated",
                    _ => "write it anew from the log; the times of appends are estimated",
                };
                (what, right((modified_ms, modified_ms)))
            }
        };
        self.step(file, what, Action::Write(seal.encode()));
    }

    fn modified_ms(&self, base: Offset) -> Option<i64> {
        let log = self.fs.open(&self.root.join(self.path(base, FileKind::Log)), OpenMode::Read, 0);
        log.and_then(|log| log.modified()).ok().map(unix_ms)
    }

    fn index(&mut self, segment: &SegmentCheck) {
        let is_good = segment.index.good().is_some() && segment.wrong_entry.is_none();
        if is_good || matches!(segment.index, SideFile::Unread(_)) {
            return;
        }
        let file = self.path(segment.base, FileKind::Index);
        let is_due = segment.is_sealed && segment.flushed_to >= segment.end;
        match (&segment.index, is_due) {
            (_, true) if segment.is_whole() => {
                self.step(file, "write it from the log", Action::Write(segment.rebuilt.encode(segment.base)));
            }
            (SideFile::Missing, _) => {}
            _ => self.step(file, "set it aside: it is made in memory when needed", Action::SetAside),
        }
    }

    fn snapshot(&mut self, before: &[SegmentCheck], segment: &SegmentCheck) {
        let file = self.path(segment.base, FileKind::Snapshot);
        let is_flushed = before.last().is_some_and(|last| last.is_sealed && last.flushed_to >= last.end);
        match &segment.snapshot {
            SideFile::Good(_) | SideFile::Unread(_) => {}
            SideFile::Missing if !is_flushed => {}
            SideFile::Missing => self.step(file, "write it from the log", Action::Snapshot(segment.base)),
            SideFile::Unreadable(_) if before.is_empty() => {
                self.step(file, "set it aside: what it was made from is not there any more", Action::SetAside);
            }
            SideFile::Unreadable(_) => {
                self.step(file, "write it anew from the log", Action::Snapshot(segment.base));
            }
        }
    }

    fn checkpoint(&mut self, checked: &PartitionCheck) {
        let is_damaged = checked.slots.iter().any(|(_, slot)| matches!(slot, Slot::Damaged(_)));
        let is_lost = !checked.names.has_checkpoint && !checked.segments.is_empty();
        let mut noted = checked.noted;
        // Left by a repair that was interrupted when it had written the last log anew.
        let is_beyond = checked.segments.last().is_some_and(|last| {
            let is_beyond = last.base == noted.segment && last.next == noted.flushed && last.end < noted.position;
            noted.position = if is_beyond { last.end } else { noted.position };
            is_beyond
        });
        if !is_damaged && !is_lost && !is_beyond {
            return;
        }
        let what = format!("note in both slots that the records below offset {} were flushed", noted.flushed);
        self.step(self.partition.path.join(checkpoint::FILE_NAME), what, Action::Checkpoint(noted));
    }
}

/// What writing a log anew does, in words.
fn words_of(holes: &[Hole], segment: &SegmentCheck) -> String {
    let mut lost: Vec<_> = holes.iter().map(|hole| format!("{}..{}", hole.offsets.start, hole.offsets.end)).collect();
    lost.extend(segment.lost_unlisted.map(|more| format!("{} more in {} places", more.offsets, more.places)));
    let healed = if segment.wrongs_unlisted.is_some() { ", with the headers put right that are known" } else { "" };
    if lost.is_empty() {
        return format!("write it anew{healed}; the old file goes to quarantine");
    }
    format!(
        "write it anew without what is damaged{healed}: offsets {} are lost and stay empty; the old file goes to \
         quarantine",
        lost.join(", ")
    )
}
