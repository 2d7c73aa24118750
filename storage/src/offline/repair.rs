//! Mending a data directory, step by step, each told before it is done.
//!
//! Nothing is destroyed: whatever is replaced or cut is copied into `quarantine/` before. A repair that was interrupted
//! is done by doing it again, and until then no broker starts: the file `REPAIRING` says so. One that was done finds
//! nothing to do.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use self::isolate::Isolation;
use self::plan::{Planning, believed_epoch};
use super::check::check_partition;
use super::names::PartitionNames;
use super::quarantine::keep;
use super::side::{SideFile, read_snapshot};
use super::{DataDirectory, SmallFile, Survey};
use crate::checkpoint::{Checkpoint, CheckpointFile, Slot};
use crate::config::LogConfig;
use crate::format::FormatError;
use crate::fs::{self, OpenMode};
use crate::offset::{LeaderEpoch, Offset, PartitionId};
use crate::partition::{self, OffsetRange, Place};
use crate::producer::{ProducerLimits, Producers, Replay};
use crate::segment::{BatchWalk, FileKind, HealedHeader, WalkError, path_of, unix_ms};
use crate::store::{
    FORMAT_VERSION, REPAIRING, SMALL_FILE_BYTES, epoch_text, format_text, mend_text, parse_epoch, parse_format,
};

mod isolate;
mod plan;

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

/// Places that are lost and not listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LostUnlisted {
    /// How many.
    pub places: u64,
    /// How many offsets they have.
    pub offsets: u64,
}

/// What a repair would do.
#[derive(Clone, Debug, Default)]
pub struct RepairPlan {
    /// In the order in which they are done.
    pub steps: Vec<RepairStep>,
    /// Records that are lost in any case. The rest is served around them. At most 1,000 places of a segment are listed.
    pub lost: Vec<Lost>,
    /// What is lost beyond that.
    pub lost_unlisted: LostUnlisted,
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
    /// Writes a log anew without its damaged places.
    Isolate(Isolation),
    /// Writes seal and index of a log, with these times of its first and last append, or the file's own.
    Reseal {
        base: Offset,
        times: Option<(i64, i64)>,
    },
    /// Replaces a small file.
    Write(Vec<u8>),
    /// Takes away a file that says nothing.
    SetAside,
    /// Makes the producers as of this offset anew from the log.
    Snapshot(Offset),
    Checkpoint(Checkpoint),
    /// Lets recovery end the log.
    Recover,
    /// Says that an interrupted repair is done.
    Finish,
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
        if survey.is_repairing {
            let (file, what) = (PathBuf::from(REPAIRING), "end the repair that was interrupted".to_owned());
            plan.steps.push(RepairStep { partition: None, file, what, action: Action::Finish });
        }
        let mut newest_epoch = None;
        let mut is_newer = false;
        for partition in &survey.partitions {
            let checked = check_partition(&*self.fs, &self.root.join(&partition.path), walked)?;
            is_newer |=
                checked.slots.iter().any(|(_, slot)| matches!(slot, Slot::Damaged(FormatError::Version { .. })));
            newest_epoch = newest_epoch.max(believed_epoch(&checked));
            Planning { fs: &*self.fs, root: &self.root, partition, plan: &mut plan }.partition(&checked);
        }
        if is_newer {
            plan.refused.push("a file has the version of a newer release: FORMAT and EPOCH are left alone".to_owned());
        } else {
            self.plan_small_files(&survey, newest_epoch, new_cluster_id, &mut plan)?;
        }
        Ok(plan)
    }

    /// Does what [`DataDirectory::plan_repair`] said, telling each step before it is done. Needs
    /// [`DataDirectory::change`].
    ///
    /// # Errors
    /// The disk does not answer. What was done before stays done; repairing again does the rest.
    pub fn repair(&self, plan: &RepairPlan, before: &mut dyn FnMut(&RepairStep)) -> io::Result<()> {
        if plan.steps.is_empty() {
            return Ok(());
        }
        fs::replace_file(&*self.fs, &self.root.join(REPAIRING), b"run `tripline repair` again\n")?;
        for step in &plan.steps {
            before(step);
            self.act(step)?;
        }
        self.fs.remove_file(&self.root.join(REPAIRING))?;
        self.fs.sync_dir(&self.root)
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
            return Ok((
                parse_format(&self.root, mended.as_bytes()).unwrap_or(new),
                "known from the file: one bit was flipped",
            ));
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
            Action::Isolate(isolation) => self.isolate(&step.file, isolation),
            Action::Reseal { base, times } => self.reseal(&step.file, *base, *times).map(|_| ()),
            // Done with the last step.
            Action::Finish => Ok(()),
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
                self.note(dir, *noted)
            }
            Action::Recover => {
                let id = step.partition.expect("only partitions are recovered");
                let quarantine = self.root.join("quarantine");
                let config = LogConfig::default();
                let place =
                    Place { fs, id, dir: &path, quarantine: &quarantine, config: &config, leaves_free_bytes: None };
                partition::recover(place, &mut None).map(|_| ())
            }
        }
    }

    /// In both slots: the one that is damaged must not be damaged any more.
    fn note(&self, dir: &Path, noted: Checkpoint) -> io::Result<()> {
        let (mut file, _) = CheckpointFile::open(&*self.fs, dir)?;
        file.write_durably(noted)?;
        file.write_durably(noted)?;
        self.fs.sync_dir(dir)
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
        let names = PartitionNames::list(fs, dir)?;
        let before: Vec<Offset> = names.bases.iter().copied().filter(|&base| base < at).collect();
        let newest = before.iter().enumerate().rev().find_map(|(index, &base)| match read_snapshot(fs, dir, base) {
            SideFile::Good(found) => Some((found, index, base)),
            _ => None,
        });
        let none = || (Producers::new(ProducerLimits::default()), 0, Offset::ZERO);
        let (producers, from, known_to) = newest.unwrap_or_else(none);
        let mut replay = Replay::new(producers, known_to);
        for (index, &base) in before.iter().enumerate().skip(from) {
            let path = path_of(dir, base, FileKind::Log);
            let file = fs.open(&path, OpenMode::Read, 0)?;
            let now_ms = unix_ms(file.modified()?);
            let end = before.get(index + 1).copied().unwrap_or(at);
            let (mut walk, mut next) = (BatchWalk::new(&*file, 0, file.len()?), base);
            // What cannot be read now must not be left out: producers that send it again would append again. What is
            // damaged, as segments that only wait for their removal may be, is not there any more.
            while next < end {
                let step = match walk.next() {
                    Ok(Some(step)) => step,
                    Err(WalkError::Io(cause)) => {
                        return Err(io::Error::new(cause.kind(), format!("{}: {cause}", path.display())));
                    }
                    Ok(None) | Err(_) => break,
                };
                replay.record(&step.header, now_ms);
                next = step.header.next_offset();
            }
        }
        Ok(replay.finish(at))
    }
}
