//! Mending a data directory, step by step, each told before it is done.
//!
//! Nothing is destroyed: whatever is replaced or cut is copied into `quarantine/` before. Each step leaves a directory that
//! opens; a repair that was interrupted is done by doing it again, and one that was done finds nothing to do.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::check::{PartitionCheck, SegmentCheck, check_partition};
use super::heal::HealedHeader;
use super::quarantine::keep;
use super::side::{SideFile, read_snapshot};
use super::{DataDirectory, PartitionDirectory, SmallFile, Survey};
use crate::checkpoint::{self, Checkpoint, CheckpointFile, Slot};
use crate::config::LogConfig;
use crate::format::FormatError;
use crate::fs::{self, Fs, OpenMode};
use crate::index::Index;
use crate::offset::{LeaderEpoch, Offset, PartitionId};
use crate::partition::{self, OffsetRange, Place};
use crate::producer::{ProducerLimits, Producers};
use crate::segment::{BatchWalk, FileKind, Seal, path_of, unix_ms};
use crate::store::{FORMAT_VERSION, SMALL_FILE_BYTES, epoch_text, format_text, mend_text, parse_epoch, parse_format};

/// How far above the newest epoch of a batch a lost EPOCH is set: starts that left no batch had epochs too.
const EPOCH_MARGIN: i32 = 1_000;

/// One step of a repair.
#[derive(Clone, Debug)]
pub struct RepairStep {
    /// Which partition; `None` for files of the whole data directory.
    pub partition: Option<PartitionId>,
    /// The file that changes, below the data directory.
    pub file: PathBuf,
    /// What is done, in words.
    pub what: String,
    action: Action,
}

/// What cannot be undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Which partition.
    pub partition: PartitionId,
    /// The offsets.
    pub offsets: OffsetRange,
}

/// What a repair would do.
#[derive(Clone, Debug, Default)]
pub struct RepairPlan {
    /// In the order in which they are done.
    pub steps: Vec<RepairStep>,
    /// Records that are lost in any case. The rest is served around them.
    pub lost: Vec<Lost>,
    /// Why something is left as it is.
    pub refused: Vec<String>,
}

#[derive(Clone, Debug)]
enum Action {
    WriteFormat(Uuid),
    WriteEpoch(LeaderEpoch),
    Heal(HealedHeader),
    /// Cuts the file there.
    Cut(u64),
    /// Replaces a small file.
    Write(Vec<u8>),
    /// Takes away a file that says nothing.
    SetAside,
    /// Makes the producers as of this offset anew from the log.
    Snapshot(Offset),
    Checkpoint(Checkpoint),
    /// Lets recovery end the log.
    Recover,
}

impl DataDirectory {
    /// What [`DataDirectory::repair`] would do; `walked` is told of the bytes of logs that were read. Changes nothing.
    /// `new_cluster_id` is used when the old one cannot be known.
    ///
    /// # Errors
    /// The names in a directory cannot be read.
    pub fn plan_repair(&self, new_cluster_id: Uuid, walked: &mut dyn FnMut(u64)) -> io::Result<RepairPlan> {
        let survey = self.survey()?;
        let mut plan = RepairPlan::default();
        let mut newest_epoch = None;
        let mut is_newer = false;
        for partition in &survey.partitions {
            let checked = check_partition(&*self.fs, &self.root.join(&partition.path), walked)?;
            is_newer |= checked.slots.iter().any(|(_, slot)| matches!(slot, Slot::Damaged(FormatError::Version { .. })));
            newest_epoch = newest_epoch.max(believed_epoch(&checked));
            let mut planning = Planning { fs: &*self.fs, root: &self.root, partition, plan: &mut plan };
            planning.partition(&checked)?;
        }
        if is_newer {
            plan.refused.push("a file has the version of a newer release: FORMAT and EPOCH are left alone".to_owned());
        } else {
            self.plan_small_files(&survey, newest_epoch, new_cluster_id, &mut plan)?;
        }
        Ok(plan)
    }

    /// Does what [`DataDirectory::plan_repair`] said, telling each step before it is done. Needs [`DataDirectory::change`].
    ///
    /// # Errors
    /// The disk does not answer. What was done before stays done; repairing again does the rest.
    pub fn repair(&self, plan: &RepairPlan, before: &mut dyn FnMut(&RepairStep)) -> io::Result<()> {
        for step in &plan.steps {
            before(step);
            self.act(step)?;
        }
        Ok(())
    }

    fn plan_small_files(
        &self,
        survey: &Survey,
        newest_epoch: Option<LeaderEpoch>,
        new_cluster_id: Uuid,
        plan: &mut RepairPlan,
    ) -> io::Result<()> {
        let mut step = |file: &str, what: String, action| {
            plan.steps.push(RepairStep { partition: None, file: PathBuf::from(file), what, action });
        };
        if !matches!(survey.format, SmallFile::Good(_)) {
            let (cluster, how) = self.cluster_id_of(&survey.format, new_cluster_id)?;
            let what = format!("write format version {FORMAT_VERSION} with cluster id {cluster}, {how}");
            step("FORMAT", what, Action::WriteFormat(cluster));
        }
        let newest = newest_epoch.unwrap_or(LeaderEpoch::NONE);
        let noted = survey.epoch.value();
        if noted.is_none_or(|noted| noted < newest) {
            let (epoch, how) = match self.mended_epoch(&survey.epoch).filter(|&mended| mended >= newest) {
                Some(mended) => (mended, "known from the file: one bit was flipped".to_owned()),
                None => {
                    let epoch = LeaderEpoch::new(newest.get().saturating_add(EPOCH_MARGIN)).unwrap_or(newest);
                    (epoch, format!("the newest of a batch is {newest}, and starts that wrote none had one too"))
                }
            };
            step("EPOCH", format!("write epoch {epoch}: {how}"), Action::WriteEpoch(epoch));
        }
        Ok(())
    }

    fn mended_epoch(&self, epoch: &SmallFile<LeaderEpoch>) -> Option<LeaderEpoch> {
        if !matches!(epoch, SmallFile::Damaged(_)) {
            return None;
        }
        let bytes = fs::read_whole(&*self.fs, &self.root.join("EPOCH"), SMALL_FILE_BYTES).ok()?;
        parse_epoch(mend_text(&bytes)?.as_bytes())
    }

    /// The cluster id, and from where it is known.
    fn cluster_id_of(&self, format: &SmallFile<Uuid>, new: Uuid) -> io::Result<(Uuid, &'static str)> {
        if matches!(format, SmallFile::Missing) {
            return Ok((new, "a new one: nothing else holds it"));
        }
        let Ok(bytes) = fs::read_whole(&*self.fs, &self.root.join("FORMAT"), SMALL_FILE_BYTES) else {
            return Ok((new, "a new one: the file is too long to be ours"));
        };
        if let Some(mended) = mend_text(&bytes) {
            return Ok((parse_format(&self.root, mended.as_bytes()).unwrap_or(new), "known from the file: one bit was flipped"));
        }
        let text = String::from_utf8_lossy(&bytes);
        let line = text.lines().find_map(|line| Uuid::try_parse(line.strip_prefix("cluster ")?).ok());
        Ok(line.map_or((new, "a new one: the file does not tell"), |id| (id, "as far as the damaged file tells")))
    }

    fn act(&self, step: &RepairStep) -> io::Result<()> {
        let fs = &*self.fs;
        let path = self.root.join(&step.file);
        let dir = path.parent().unwrap_or(&self.root);
        match &step.action {
            Action::WriteFormat(cluster) => self.replace(&step.file, format_text(*cluster).as_bytes()),
            Action::WriteEpoch(epoch) => self.replace(&step.file, epoch_text(*epoch).as_bytes()),
            Action::Write(bytes) => self.replace(&step.file, bytes),
            Action::Heal(healed) => self.heal(&step.file, healed),
            Action::Cut(end) => self.cut(&step.file, *end),
            Action::SetAside => {
                keep(fs, &self.root, &step.file, None)?;
                fs.remove_file(&path)?;
                fs.sync_dir(dir)
            }
            Action::Snapshot(at) => {
                let producers = self.producers_at(dir, *at)?;
                self.replace(&step.file, &producers.encode_snapshot(*at))
            }
            Action::Checkpoint(noted) => {
                self.keep_if_there(&step.file)?;
                let (mut file, _) = CheckpointFile::open(fs, dir)?;
                // Both slots: the one that is damaged must not be damaged any more.
                file.write_durably(*noted)?;
                file.write_durably(*noted)?;
                fs.sync_dir(dir)
            }
            Action::Recover => {
                let id = step.partition.expect("only partitions are recovered");
                let quarantine = self.root.join("quarantine");
                let config = LogConfig::default();
                partition::recover(Place { fs, id, dir: &path, quarantine: &quarantine, config: &config }).map(|_| ())
            }
        }
    }

    fn keep_if_there(&self, file: &Path) -> io::Result<()> {
        match keep(&*self.fs, &self.root, file, None) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            kept => kept.map(|_| ()),
        }
    }

    fn replace(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        self.keep_if_there(file)?;
        fs::replace_file(&*self.fs, &self.root.join(file), bytes)
    }

    fn heal(&self, file: &Path, healed: &HealedHeader) -> io::Result<()> {
        let position = healed.position;
        keep(&*self.fs, &self.root, file, Some(position..position + healed.found.len() as u64))?;
        let log = self.fs.open(&self.root.join(file), OpenMode::Write, 0)?;
        log.write_at(&[IoSlice::new(&healed.right)], position)?;
        log.sync_data()
    }

    fn cut(&self, file: &Path, end: u64) -> io::Result<()> {
        let log = self.fs.open(&self.root.join(file), OpenMode::Write, 0)?;
        keep(&*self.fs, &self.root, file, Some(end..log.len()?))?;
        log.truncate(end)?;
        log.sync_data()
    }

    /// The producers as of `at`, from the newest snapshot before and the batches since.
    fn producers_at(&self, dir: &Path, at: Offset) -> io::Result<Producers> {
        let fs = &*self.fs;
        let names = super::names::PartitionNames::list(fs, dir)?;
        let before: Vec<Offset> = names.bases.iter().copied().filter(|&base| base < at).collect();
        let mut producers = Producers::new(ProducerLimits::default());
        let mut from = 0;
        for (index, &base) in before.iter().enumerate().rev() {
            if let SideFile::Good(found) = read_snapshot(fs, dir, base) {
                (producers, from) = (found, index);
                break;
            }
        }
        for &base in &before[from..] {
            let file = fs.open(&path_of(dir, base, FileKind::Log), OpenMode::Read, 0)?;
            let now_ms = unix_ms(file.modified()?);
            let mut walk = BatchWalk::new(&*file, 0, file.len()?);
            // The log up to `at` is whole: that is what the plan demands.
            while let Ok(Some(step)) = walk.next() {
                producers.record(&step.header, step.header.base_offset, now_ms);
            }
        }
        Ok(producers)
    }
}

/// The newest epoch of a batch whose header is not known to be wrong.
fn believed_epoch(checked: &PartitionCheck) -> Option<LeaderEpoch> {
    let segments = checked.segments.iter().filter(|segment| segment.healed.is_empty());
    segments.filter_map(|segment| segment.newest_epoch).max()
}

/// One partition that is planned for.
struct Planning<'a> {
    fs: &'a dyn Fs,
    root: &'a Path,
    partition: &'a PartitionDirectory,
    plan: &'a mut RepairPlan,
}

impl Planning<'_> {
    fn step(&mut self, file: PathBuf, what: impl Into<String>, action: Action) {
        self.plan.steps.push(RepairStep { partition: Some(self.partition.id), file, what: what.into(), action });
    }

    fn path(&self, base: Offset, kind: FileKind) -> PathBuf {
        path_of(&self.partition.path, base, kind)
    }

    fn partition(&mut self, checked: &PartitionCheck) -> io::Result<()> {
        for segment in &checked.segments {
            self.log(segment);
        }
        for (at, segment) in checked.segments.iter().enumerate() {
            self.seal(segment)?;
            self.index(segment);
            self.snapshot(&checked.segments[..at], segment);
        }
        self.checkpoint(checked);
        self.ends(checked);
        self.losses(checked);
        Ok(())
    }

    fn log(&mut self, segment: &SegmentCheck) {
        let file = self.path(segment.base, FileKind::Log);
        for healed in &segment.healed {
            let (field, right, found) = healed.difference();
            let what = format!(
                "at byte {}, put {field} {right} back for {found}: the seal's checksum says so",
                healed.position
            );
            self.step(file.clone(), what, Action::Heal(healed.clone()));
        }
        if let Some((size_bytes, _)) = segment.behind.as_ref().filter(|_| segment.is_sealed) {
            let what = format!("move {size_bytes} bytes behind the last batch to quarantine and cut at byte {}", segment.end);
            self.step(file, what, Action::Cut(segment.end));
        }
    }

    /// Only of what was flushed: a seal is evidence of that.
    fn seal(&mut self, segment: &SegmentCheck) -> io::Result<()> {
        let file = self.path(segment.base, FileKind::Seal);
        let is_flushed = segment.is_sealed && segment.flushed_to >= segment.end;
        if !is_flushed || !(segment.is_whole()) {
            return Ok(());
        }
        let facts = segment.facts;
        let (what, times) = match &segment.seal {
            SideFile::Unread(_) => return Ok(()),
            SideFile::Missing => ("write it from the log; the times of appends are estimated", None),
            SideFile::Unreadable(_) => ("write it anew from the log; the times of appends are estimated", None),
            SideFile::Good(seal) => {
                let times = (seal.first_append_ms, seal.last_append_ms);
                let right = Seal { first_append_ms: times.0, last_append_ms: times.1, ..facts };
                let is_right = Seal { headers_crc: right.headers_crc, ..*seal } == right;
                if is_right {
                    return Ok(());
                }
                ("write it anew from the log", Some(times))
            }
        };
        let modified_ms = || -> io::Result<i64> {
            let log = self.fs.open(&self.root.join(self.path(segment.base, FileKind::Log)), OpenMode::Read, 0)?;
            Ok(unix_ms(log.modified()?))
        };
        let (first_append_ms, last_append_ms) = match times {
            Some(times) => times,
            None => {
                let modified_ms = modified_ms()?;
                (modified_ms, modified_ms)
            }
        };
        let seal = Seal { first_append_ms, last_append_ms, ..facts };
        self.step(file, what, Action::Write(seal.encode()));
        Ok(())
    }

    fn index(&mut self, segment: &SegmentCheck) {
        let is_good = matches!(segment.index, SideFile::Good(_)) && segment.wrong_entry.is_none();
        let is_needed = segment.is_sealed && segment.flushed_to >= segment.end;
        let file = self.path(segment.base, FileKind::Index);
        let is_there = !matches!(segment.index, SideFile::Missing);
        let is_unread = segment.unread.is_some() || matches!(segment.index, SideFile::Unread(_));
        if is_unread || is_good || !(is_needed || is_there) {
            return;
        }
        if !is_needed {
            self.step(file, "set it aside: the segment that is appended to has none", Action::SetAside);
            return;
        }
        let index: &Index = &segment.rebuilt;
        self.step(file, "write it from the log", Action::Write(index.encode(segment.base)));
    }

    fn snapshot(&mut self, before: &[SegmentCheck], segment: &SegmentCheck) {
        let file = self.path(segment.base, FileKind::Snapshot);
        let from = before.iter().rposition(|segment| segment.snapshot.good().is_some()).unwrap_or(0);
        // Damaged batches say nothing of their producers; what a snapshot says must be what they all say.
        let is_known = !before.is_empty() && before[from..].iter().all(SegmentCheck::is_whole);
        let is_flushed = before.last().is_some_and(|last| last.is_sealed && last.flushed_to >= last.end);
        match &segment.snapshot {
            SideFile::Good(_) | SideFile::Unread(_) => {}
            SideFile::Missing if is_known && is_flushed => {
                self.step(file, "write it from the log", Action::Snapshot(segment.base));
            }
            SideFile::Missing => {}
            SideFile::Unreadable(_) if is_known => {
                self.step(file, "write it anew from the log", Action::Snapshot(segment.base));
            }
            SideFile::Unreadable(_) => {
                self.step(file, "set it aside: a start reads the log instead", Action::SetAside);
            }
        }
    }

    fn checkpoint(&mut self, checked: &PartitionCheck) {
        let is_damaged = checked.slots.iter().any(|(_, slot)| matches!(slot, Slot::Damaged(_)));
        let is_lost = !checked.names.has_checkpoint && !checked.segments.is_empty();
        if !is_damaged && !is_lost {
            return;
        }
        let noted = checked.noted;
        let what = format!("note that records below offset {} were flushed, in both slots", noted.flushed);
        self.step(self.partition.path.join(checkpoint::FILE_NAME), what, Action::Checkpoint(noted));
    }

    /// What recovery would do at the next start.
    fn ends(&mut self, checked: &PartitionCheck) {
        let torn = checked.segments.iter().find(|segment| !segment.is_sealed && segment.behind.is_some());
        let broken = checked.segments.windows(2).find(|pair| {
            pair[0].next != pair[1].base && pair[1].base > checked.noted.flushed
        });
        let what = match (torn, broken) {
            (Some(segment), _) => {
                let size_bytes = segment.behind.as_ref().map_or(0, |(size_bytes, _)| *size_bytes);
                format!("end the log at offset {}: move the {size_bytes} bytes behind it to quarantine", segment.next)
            }
            (None, Some(pair)) => {
                format!("end the log at offset {}: move the segments from {} on to quarantine", pair[0].next, pair[1].base)
            }
            (None, None) => return,
        };
        self.step(self.partition.path.clone(), what, Action::Recover);
    }

    fn losses(&mut self, checked: &PartitionCheck) {
        let mut lost = Vec::new();
        let noted = checked.noted;
        let mut expected = noted.log_start;
        for segment in &checked.segments {
            if segment.base > expected && expected < noted.flushed {
                lost.push((expected, segment.base));
            }
            let wrongs = segment.wrongs.iter().filter(|_| segment.healed.is_empty());
            lost.extend(wrongs.map(|wrong| (wrong.offsets.start, wrong.offsets.end)));
            expected = segment.next;
        }
        if expected < noted.flushed {
            lost.push((expected, noted.flushed));
        }
        let partition = self.partition.id;
        let ranges = lost.into_iter().filter(|(from, to)| from < to);
        self.plan.lost.extend(ranges.map(|(from, to)| Lost { partition, offsets: OffsetRange { from, to } }));
    }
}
