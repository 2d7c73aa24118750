//! Telling what a check of everything found.

use std::io;
use std::path::{Path, PathBuf};

use super::check::{PartitionCheck, SegmentCheck, Unlisted, check_partition};
use super::finding::{Finding, Problem, Severity};
use super::side::SideFile;
use super::{DataDirectory, PartitionDirectory, SmallFile, Survey};
use crate::checkpoint::{self, Slot};
use crate::cleaned;
use crate::fs::OpenMode;
use crate::offset::{LeaderEpoch, Offset, PartitionId};
use crate::partition::OffsetRange;
use crate::segment::{Fault, FileKind, Wrong, parse_name, path_of};
use crate::store::REPAIRING;

/// Is told what a verification finds, the moment it finds it.
pub trait Observer {
    /// Something was found.
    fn found(&mut self, finding: Finding);
    /// So many bytes of the logs have been read, of so many.
    fn progress(&mut self, _done_bytes: u64, _total_bytes: u64) {}
}

/// What was looked at, and how often something was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifySummary {
    /// Partitions, the state journal among them.
    pub partitions: u64,
    /// Log files.
    pub segments: u64,
    /// Batches that are as they were written.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of log files.
    pub log_bytes: u64,
    /// The newest epoch in a batch.
    pub newest_epoch: Option<LeaderEpoch>,
    /// Findings of [`Severity::Damage`].
    pub damage: u64,
    /// Findings of [`Severity::Defect`].
    pub defects: u64,
    /// Findings of [`Severity::Notice`].
    pub notices: u64,
}

impl VerifySummary {
    /// Whether nothing needs to be mended.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.damage == 0 && self.defects == 0
    }
}

impl DataDirectory {
    /// Reads every byte that has a checksum or a meaning, and tells `observer` what is not as it should be. Changes
    /// nothing.
    ///
    /// Each batch's CRC-32C and records, compressed ones unpacked; offsets and epochs from batch to batch and from
    /// segment to segment; seals, indexes and producer snapshots, and what they say of the log; the slots of the
    /// flushed offset; FORMAT and EPOCH; names that are not ours. Of a sealed segment also what no batch's checksum
    /// covers: base offsets and epochs.
    ///
    /// # Errors
    /// The names in the directory itself or in `topics/` cannot be read, or its small files. Anything else that cannot
    /// be read is a finding.
    pub fn verify(&self, observer: &mut dyn Observer) -> io::Result<VerifySummary> {
        let survey = self.survey()?;
        let sizes: Vec<_> = survey.partitions.iter().map(|partition| self.log_bytes(partition)).collect();
        let total_bytes = sizes.iter().flatten().sum();
        let mut telling = Telling { observer, summary: VerifySummary::default() };
        telling.small_files(&survey);
        telling.interrupted(&survey);
        let mut done_bytes = 0;
        for (partition, size) in survey.partitions.iter().zip(sizes) {
            let mut walked = |bytes| {
                done_bytes += bytes;
                telling.observer.progress(done_bytes, total_bytes);
            };
            let dir = self.root.join(&partition.path);
            match size.and_then(|_| check_partition(&*self.fs, &dir, &mut walked)) {
                Ok(checked) => telling.partition(partition, &checked),
                Err(cause) => telling.unread(partition, &cause),
            }
        }
        telling.epoch(&survey);
        telling.rest(&survey);
        telling.summary.log_bytes = total_bytes;
        Ok(telling.summary)
    }

    fn log_bytes(&self, partition: &PartitionDirectory) -> io::Result<u64> {
        let dir = self.root.join(&partition.path);
        let logs = self
            .fs
            .list(&dir)?
            .into_iter()
            .filter(|entry| !entry.is_dir && matches!(parse_name(&entry.name), Some((_, FileKind::Log))));
        logs.map(|entry| self.fs.open(&dir.join(&entry.name), OpenMode::Read, 0)?.len()).sum()
    }
}

struct Telling<'a> {
    observer: &'a mut dyn Observer,
    summary: VerifySummary,
}

impl Telling<'_> {
    fn tell(&mut self, finding: Finding) {
        match finding.severity {
            Severity::Damage => self.summary.damage += 1,
            Severity::Defect => self.summary.defects += 1,
            Severity::Notice => self.summary.notices += 1,
        }
        self.observer.found(finding);
    }

    fn of_directory(&mut self, severity: Severity, file: impl Into<PathBuf>, problem: Problem) {
        let file = file.into();
        self.tell(Finding { severity, partition: None, file, position: None, offsets: None, problem });
    }

    /// A start refuses a directory without either.
    fn small_files(&mut self, survey: &Survey) {
        let format = small_file_problem(&survey.format);
        let epoch = small_file_problem(&survey.epoch);
        for (name, problem) in [("FORMAT", format), ("EPOCH", epoch)] {
            if let Some(problem) = problem {
                self.of_directory(Severity::Damage, name, problem);
            }
        }
    }

    fn interrupted(&mut self, survey: &Survey) {
        if survey.is_repairing {
            let reason = "a repair was interrupted; repairing again ends it".to_owned();
            self.of_directory(Severity::Defect, REPAIRING, Problem::Unreadable(reason));
        }
    }

    /// A batch from beyond the last start: EPOCH is that of an older copy.
    fn epoch(&mut self, survey: &Survey) {
        let (Some(noted), Some(newest)) = (survey.epoch.value(), self.summary.newest_epoch) else { return };
        if newest > noted {
            let (expected, found) = (format!("{newest} or more, the newest epoch of a batch"), noted.to_string());
            self.of_directory(Severity::Damage, "EPOCH", Problem::Differs { field: "the epoch", expected, found });
        }
    }

    fn rest(&mut self, survey: &Survey) {
        for path in &survey.alien {
            self.of_directory(Severity::Notice, path, Problem::Alien);
        }
    }

    /// Of a partition whose names, or what was flushed of it, cannot be read, nothing more can be told.
    fn unread(&mut self, partition: &PartitionDirectory, cause: &io::Error) {
        self.summary.partitions += 1;
        self.tell(Finding {
            severity: Severity::Damage,
            partition: Some(partition.id),
            file: partition.path.clone(),
            position: None,
            offsets: None,
            problem: Problem::Io(cause.to_string()),
        });
    }

    fn partition(&mut self, partition: &PartitionDirectory, checked: &PartitionCheck) {
        self.summary.partitions += 1;
        let mut place = Place { telling: self, id: partition.id, dir: &partition.path };
        place.names(checked);
        place.slots(checked);
        place.cleaned(checked);
        if checked.names.swaps.is_empty() {
            place.chain(checked);
        }
        for (at, segment) in checked.segments.iter().enumerate() {
            place.segment(segment, at > 0);
        }
    }
}

fn small_file_problem<T>(file: &SmallFile<T>) -> Option<Problem> {
    match file {
        SmallFile::Good(_) => None,
        SmallFile::Missing => Some(Problem::FileMissing),
        SmallFile::Damaged(reason) => Some(Problem::Unreadable(reason.clone())),
    }
}

/// One partition that is told of.
struct Place<'a, 'b> {
    telling: &'a mut Telling<'b>,
    id: PartitionId,
    dir: &'a Path,
}

impl Place<'_, '_> {
    fn tell(
        &mut self,
        severity: Severity,
        file: PathBuf,
        position: Option<u64>,
        offsets: Option<(Offset, Offset)>,
        problem: Problem,
    ) {
        let offsets = offsets.filter(|(from, to)| from < to).map(|(from, to)| OffsetRange { from, to });
        self.telling.tell(Finding { severity, partition: Some(self.id), file, position, offsets, problem });
    }

    fn of_file(&mut self, severity: Severity, name: &str, problem: Problem) {
        self.tell(severity, self.dir.join(name), None, None, problem);
    }

    fn names(&mut self, checked: &PartitionCheck) {
        for name in &checked.names.alien {
            self.of_file(Severity::Notice, name, Problem::Alien);
        }
        for name in &checked.names.temporary {
            self.of_file(Severity::Notice, name, Problem::Orphan);
        }
        for (base, kind) in checked.names.orphans() {
            self.tell(Severity::Notice, path_of(self.dir, base, kind), None, None, Problem::Orphan);
        }
        for &base in &checked.condemned {
            self.tell(Severity::Notice, path_of(self.dir, base, FileKind::Log), None, None, Problem::Orphan);
        }
    }

    fn slots(&mut self, checked: &PartitionCheck) {
        if !checked.names.has_checkpoint && !checked.names.bases.is_empty() {
            self.of_file(Severity::Defect, checkpoint::FILE_NAME, Problem::FileMissing);
        }
        for (at, slot) in &checked.slots {
            if let Slot::Damaged(reason) = slot {
                let file = self.dir.join(checkpoint::FILE_NAME);
                let problem = Problem::Unreadable(format!("the slot {reason}"));
                self.tell(Severity::Defect, file, Some(*at), None, problem);
            }
        }
    }

    /// What compaction leaves.
    fn cleaned(&mut self, checked: &PartitionCheck) {
        if let Some(reason) = &checked.wrong_cleaned {
            self.of_file(Severity::Defect, cleaned::FILE_NAME, Problem::Unreadable(reason.clone()));
        }
        for &base in &checked.names.swaps {
            let reason = "a compaction was interrupted; a start or a repair ends it, then the logs can be checked";
            let file = path_of(self.dir, base, FileKind::Swap);
            self.tell(Severity::Defect, file, None, None, Problem::Unreadable(reason.to_owned()));
        }
    }

    /// Offsets before the first segment, between segments and behind the last.
    fn chain(&mut self, checked: &PartitionCheck) {
        let noted = checked.noted;
        let Some(first) = checked.segments.first() else {
            if noted.log_start < noted.flushed {
                self.missing(noted.log_start, noted.flushed, None);
            }
            return;
        };
        if first.base > noted.log_start {
            self.missing(noted.log_start, first.base, None);
        }
        for pair in checked.segments.windows(2) {
            let [before, behind] = pair else { continue };
            self.joint(before, behind, noted.flushed);
        }
        let last = checked.segments.last().expect("there is a first");
        if last.next < noted.flushed {
            self.missing(last.next, noted.flushed, Some(last));
        }
    }

    fn missing(&mut self, from: Offset, to: Offset, behind: Option<&SegmentCheck>) {
        let file = behind.map_or_else(|| self.dir.to_owned(), |segment| path_of(self.dir, segment.base, FileKind::Log));
        let position = behind.map(|segment| segment.end);
        self.tell(Severity::Damage, file, position, Some((from, to)), Problem::RecordsMissing);
    }

    fn joint(&mut self, before: &SegmentCheck, behind: &SegmentCheck, flushed: Offset) {
        if before.next == behind.base {
            return;
        }
        if before.next > behind.base || behind.base > flushed {
            let severity = if behind.base < flushed { Severity::Damage } else { Severity::Defect };
            let (expected, found) = (before.next.to_string(), behind.base.to_string());
            let problem = Problem::Differs { field: "the segment's base offset", expected, found };
            let file = path_of(self.dir, behind.base, FileKind::Log);
            self.tell(severity, file, None, None, problem);
        } else {
            self.missing(before.next, behind.base, Some(before));
        }
    }

    fn segment(&mut self, segment: &SegmentCheck, has_predecessor: bool) {
        let summary = &mut self.telling.summary;
        summary.segments += 1;
        summary.batches += segment.batches;
        summary.records += segment.records;
        let lone = segment.wrongs.is_empty().then(|| segment.healed.first()).flatten();
        // An epoch that is known to be wrong says nothing.
        if lone.is_none() {
            summary.newest_epoch = summary.newest_epoch.max(segment.newest_epoch);
        }
        self.log(segment);
        self.seal(segment);
        self.index(segment);
        self.snapshot(segment, has_predecessor);
    }

    fn log(&mut self, segment: &SegmentCheck) {
        let file = path_of(self.dir, segment.base, FileKind::Log);
        for wrong in &segment.wrongs {
            let problem = match segment.healed_at(wrong.bytes.start) {
                Some(healed) => {
                    let (field, expected, found) = healed.difference();
                    Problem::Differs { field, expected, found }
                }
                None => problem_of(wrong),
            };
            let offsets = Some((wrong.offsets.start, wrong.offsets.end));
            self.tell(Severity::Damage, file.clone(), Some(wrong.bytes.start), offsets, problem);
        }
        if segment.wrongs.is_empty() {
            for healed in &segment.healed {
                let (field, expected, found) = healed.difference();
                let offsets = Some((healed.offsets.start, healed.offsets.end));
                let problem = Problem::Differs { field, expected, found };
                self.tell(Severity::Damage, file.clone(), Some(healed.position), offsets, problem);
            }
        }
        for (step, reason) in &segment.malformed {
            let offsets = Some((step.header.base_offset, step.header.next_offset()));
            let problem = Problem::Batch(reason.clone());
            self.tell(Severity::Damage, file.clone(), Some(step.position), offsets, problem);
        }
        for unlisted in [segment.wrongs_unlisted, segment.malformed_unlisted].into_iter().flatten() {
            let Unlisted { position, places, offsets } = unlisted;
            let problem = Problem::Unlisted { places, offsets };
            self.tell(Severity::Damage, file.clone(), Some(position), None, problem);
        }
        if let Some((position, reason)) = &segment.unread {
            let offsets = Some((segment.base, segment.next));
            self.tell(Severity::Damage, file.clone(), Some(*position), offsets, Problem::Io(reason.clone()));
        }
        if let Some((size_bytes, reason)) = &segment.behind {
            let (size_bytes, reason) = (*size_bytes, reason.clone());
            let problem = if segment.end < segment.flushed_to || segment.is_sealed {
                Problem::Behind { size_bytes }
            } else {
                Problem::LogEnds { size_bytes, reason }
            };
            self.tell(Severity::Defect, file, Some(segment.end), None, problem);
        }
    }

    fn seal(&mut self, segment: &SegmentCheck) {
        let file = path_of(self.dir, segment.base, FileKind::Seal);
        match &segment.seal {
            SideFile::Missing if segment.is_sealed => {
                self.tell(Severity::Notice, file, None, None, Problem::FileMissing);
            }
            SideFile::Missing => {}
            SideFile::Unreadable(reason) => {
                self.tell(Severity::Defect, file, None, None, Problem::Unreadable(reason.clone()));
            }
            SideFile::Unread(reason) => self.tell(Severity::Defect, file, None, None, Problem::Io(reason.clone())),
            SideFile::Good(seal) => {
                let facts = segment.facts;
                if !segment.is_whole() {
                    return;
                }
                let differs = |field, expected: String, found: String| Problem::Differs { field, expected, found };
                let numbers = [
                    ("base offset", facts.base.get(), seal.base.get()),
                    ("next offset", facts.next.get(), seal.next.get()),
                    ("length", facts.len_bytes.cast_signed(), seal.len_bytes.cast_signed()),
                    ("largest timestamp", facts.max_timestamp_ms, seal.max_timestamp_ms),
                ];
                let wrong = numbers.into_iter().find(|(_, expected, found)| expected != found);
                if let Some((field, expected, found)) = wrong {
                    let problem = differs(field, expected.to_string(), found.to_string());
                    self.tell(Severity::Defect, file, None, None, problem);
                } else if seal.headers_crc != facts.headers_crc && segment.healed.is_empty() {
                    // All checksums hold, and yet a base offset or an epoch is not what was sealed.
                    let (expected, found) =
                        (format!("{:#010x}", seal.headers_crc), format!("{:#010x}", facts.headers_crc));
                    let offsets = Some((segment.base, segment.next));
                    let log = path_of(self.dir, segment.base, FileKind::Log);
                    let field = "the checksum over the batch headers (leader epochs)";
                    self.tell(Severity::Damage, log, None, offsets, differs(field, expected, found));
                }
            }
        }
    }

    fn index(&mut self, segment: &SegmentCheck) {
        let file = path_of(self.dir, segment.base, FileKind::Index);
        let problem = match (&segment.index, &segment.wrong_entry) {
            (SideFile::Unread(reason), _) => Problem::Io(reason.clone()),
            (SideFile::Missing, _) if segment.is_sealed => {
                self.tell(Severity::Notice, file, None, None, Problem::FileMissing);
                return;
            }
            (SideFile::Missing, _) => return,
            (SideFile::Unreadable(reason), _) => Problem::Unreadable(reason.clone()),
            (SideFile::Good(_), None) => return,
            (SideFile::Good(_), Some(wrong)) => {
                let (expected, found) = (wrong.expected.clone(), wrong.found.clone());
                Problem::Differs { field: wrong.field, expected, found }
            }
        };
        self.tell(Severity::Defect, file, None, None, problem);
    }

    fn snapshot(&mut self, segment: &SegmentCheck, has_predecessor: bool) {
        let file = path_of(self.dir, segment.base, FileKind::Snapshot);
        match &segment.snapshot {
            SideFile::Missing if has_predecessor => {
                self.tell(Severity::Notice, file, None, None, Problem::FileMissing);
            }
            SideFile::Unreadable(reason) => {
                self.tell(Severity::Defect, file, None, None, Problem::Unreadable(reason.clone()));
            }
            SideFile::Unread(reason) => self.tell(Severity::Defect, file, None, None, Problem::Io(reason.clone())),
            SideFile::Missing | SideFile::Good(_) => {}
        }
    }
}

fn problem_of(wrong: &Wrong) -> Problem {
    match &wrong.fault {
        Fault::Batch(reason) => Problem::Batch(reason.clone()),
        Fault::Missing => Problem::RecordsMissing,
        Fault::BaseOffset { found } => Problem::Differs {
            field: "base_offset",
            expected: wrong.offsets.start.to_string(),
            found: found.to_string(),
        },
        Fault::Epoch { found, least } => Problem::Differs {
            field: "leader_epoch",
            expected: format!("{least} or more"),
            found: found.map_or_else(|| "-1".to_owned(), |epoch| epoch.to_string()),
        },
    }
}
