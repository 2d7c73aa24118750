//! Tools for a data directory that no broker works in: look at it, check every byte of it, mend it.
//!
//! Looking takes the directory's lock together with others who look, so that no broker starts meanwhile, and changes
//! nothing on the disk. Mending takes the lock alone. While a broker runs in the directory both are refused: it checks
//! what it reads, and its scrubber the rest.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::error::OpenStoreError;
use crate::fs::{self, Fs, Lock};
use crate::offset::{LeaderEpoch, PartitionId};
use crate::store::{REPAIRING, SMALL_FILE_BYTES, STATE_PARTITION, parse_epoch, parse_format};

mod check;
mod dump;
mod finding;
mod inspect;
mod names;
mod quarantine;
mod repair;
mod side;
mod verify;

pub use dump::{LogPiece, SmallFileDump, dump_log, dump_small_file, is_log_name};
pub use finding::{Finding, Problem, Severity};
pub use inspect::{FileState, PartitionFacts, SealInfo, SegmentInfo};
pub use repair::{Lost, LostUnlisted, RepairPlan, RepairStep};
pub use verify::{Observer, VerifySummary};

/// A data directory that no broker has open as long as this lives.
#[derive(Debug)]
pub struct DataDirectory {
    fs: Arc<dyn Fs>,
    root: PathBuf,
    /// `None` where no process ever locked it.
    _lock: Option<Box<dyn Lock>>,
}

/// One of the two small texts of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SmallFile<T> {
    /// It reads back.
    Good(T),
    /// It is not there.
    Missing,
    /// It does not read back.
    Damaged(String),
}

impl<T: Copy> SmallFile<T> {
    /// What it says, if it reads back.
    #[must_use]
    pub const fn value(&self) -> Option<T> {
        match self {
            Self::Good(value) => Some(*value),
            _ => None,
        }
    }
}

/// A partition's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionDirectory {
    /// Which. [`STATE_PARTITION`] is the state journal.
    pub id: PartitionId,
    /// Where, below the data directory.
    pub path: PathBuf,
}

/// What a data directory holds, by its names and its two small texts alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The cluster id in FORMAT.
    pub format: SmallFile<Uuid>,
    /// The epoch of the last start, in EPOCH.
    pub epoch: SmallFile<LeaderEpoch>,
    /// The state journal first, then by topic id and number.
    pub partitions: Vec<PartitionDirectory>,
    /// Names in `quarantine/` and their bytes.
    pub quarantine: Vec<(String, u64)>,
    /// Names in `trash/`.
    pub trash: Vec<String>,
    /// Names that are not ours, below the data directory.
    pub alien: Vec<PathBuf>,
    /// Whether a repair was interrupted.
    pub is_repairing: bool,
}

/// What the broker keeps in the data directory besides what this crate does.
const OTHERS: [&str; 3] = ["functions", "reserve", "lost+found"];

impl DataDirectory {
    /// Opens `root` to look at it. Nothing on the disk changes.
    ///
    /// # Errors
    /// [`OpenStoreError::InUse`] while a broker runs in it; [`OpenStoreError::Foreign`] when it is no data directory;
    /// [`OpenStoreError::Newer`] when a newer release wrote it. A damaged FORMAT is no error: it is what to look for.
    pub fn look(fs: Arc<dyn Fs>, root: &Path) -> Result<Self, OpenStoreError> {
        refuse_other(&*fs, root)?;
        let lock = match fs.lock_shared(&root.join("LOCK")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            other => Some(other.map_err(|cause| not_locked(root, cause))?),
        };
        Ok(Self { fs, root: root.to_owned(), _lock: lock })
    }

    /// Opens `root` to change it.
    ///
    /// # Errors
    /// As [`DataDirectory::look`], also while somebody looks at it.
    pub fn change(fs: Arc<dyn Fs>, root: &Path) -> Result<Self, OpenStoreError> {
        refuse_other(&*fs, root)?;
        let lock = fs.lock(&root.join("LOCK")).map_err(|cause| not_locked(root, cause))?;
        Ok(Self { fs, root: root.to_owned(), _lock: Some(lock) })
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is there.
    ///
    /// # Errors
    /// The disk does not answer.
    pub fn survey(&self) -> io::Result<Survey> {
        let mut survey = Survey {
            format: self.small_file("FORMAT", |bytes| {
                parse_format(&self.root, bytes).map_err(|error| match error {
                    OpenStoreError::Foreign { reason, .. } => reason,
                    other => other.to_string(),
                })
            })?,
            epoch: self.small_file("EPOCH", |bytes| {
                parse_epoch(bytes).ok_or_else(|| "it holds no number or fails its checksum".to_owned())
            })?,
            partitions: Vec::new(),
            quarantine: Vec::new(),
            trash: Vec::new(),
            alien: Vec::new(),
            is_repairing: false,
        };
        for entry in sorted(self.fs.list(&self.root)?) {
            let path = PathBuf::from(&entry.name);
            match (entry.name.as_str(), entry.is_dir) {
                ("state", true) => survey.partitions.insert(0, PartitionDirectory { id: STATE_PARTITION, path }),
                ("topics", true) => self.survey_topics(&path, &mut survey)?,
                ("quarantine", true) => survey.quarantine = self.sizes(&path)?,
                ("trash", true) => {
                    let entries = sorted(self.fs.list(&self.root.join(&path))?);
                    survey.trash = entries.into_iter().map(|entry| entry.name).collect();
                }
                (REPAIRING, false) => survey.is_repairing = true,
                ("FORMAT" | "EPOCH" | "LOCK" | "FORMAT.tmp" | "EPOCH.tmp" | "REPAIRING.tmp", false) => {}
                (name, _) if OTHERS.contains(&name) => {}
                _ => survey.alien.push(path),
            }
        }
        Ok(survey)
    }

    fn small_file<T>(&self, name: &str, parse: impl FnOnce(&[u8]) -> Result<T, String>) -> io::Result<SmallFile<T>> {
        match fs::read_whole(&*self.fs, &self.root.join(name), SMALL_FILE_BYTES) {
            Ok(bytes) => Ok(parse(&bytes).map_or_else(SmallFile::Damaged, SmallFile::Good)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(SmallFile::Missing),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(SmallFile::Damaged(e.to_string())),
            Err(e) => Err(e),
        }
    }

    fn survey_topics(&self, topics: &Path, survey: &mut Survey) -> io::Result<()> {
        for entry in sorted(self.fs.list(&self.root.join(topics))?) {
            let path = topics.join(&entry.name);
            // As it is written: other spellings of an id are not ours.
            let topic = Uuid::try_parse(&entry.name).ok().filter(|id| entry.is_dir && id.to_string() == entry.name);
            match topic {
                Some(topic) => self.survey_topic(topic, &path, survey)?,
                None => survey.alien.push(path),
            }
        }
        Ok(())
    }

    fn survey_topic(&self, topic: Uuid, dir: &Path, survey: &mut Survey) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in sorted(self.fs.list(&self.root.join(dir))?) {
            let path = dir.join(&entry.name);
            let number = entry.name.parse::<u32>().ok();
            match number.filter(|number| entry.is_dir && number.to_string() == entry.name) {
                Some(partition) => found.push(PartitionDirectory { id: PartitionId { topic, partition }, path }),
                None => survey.alien.push(path),
            }
        }
        found.sort_by_key(|partition| partition.id);
        survey.partitions.append(&mut found);
        Ok(())
    }

    fn sizes(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        let size = |name: String| {
            let file = self.fs.open(&self.root.join(dir).join(&name), fs::OpenMode::Read, 0)?;
            Ok((name, file.len()?))
        };
        let files = sorted(self.fs.list(&self.root.join(dir))?).into_iter().filter(|entry| !entry.is_dir);
        files.map(|entry| size(entry.name)).collect()
    }
}

fn sorted(mut entries: Vec<fs::DirEntry>) -> Vec<fs::DirEntry> {
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

fn not_locked(root: &Path, cause: io::Error) -> OpenStoreError {
    match cause.kind() {
        io::ErrorKind::WouldBlock => OpenStoreError::InUse { path: root.to_owned(), holder: cause.to_string() },
        _ => OpenStoreError::Io { path: root.join("LOCK"), cause },
    }
}

/// A directory that was named by mistake, or that a newer release wrote, is left alone.
fn refuse_other(fs: &dyn Fs, root: &Path) -> Result<(), OpenStoreError> {
    let io = |path: PathBuf| move |cause| OpenStoreError::Io { path, cause };
    let entries = fs.list(root).map_err(io(root.to_owned()))?;
    let has = |name: &str| entries.iter().any(|entry| entry.name == name);
    let looks_ours = has("FORMAT") || (has("topics") && has("state"));
    if !looks_ours {
        let reason = "it has no FORMAT file, and not both of topics/ and state/".to_owned();
        return Err(OpenStoreError::Foreign { path: root.to_owned(), reason });
    }
    match fs::read_whole(fs, &root.join("FORMAT"), SMALL_FILE_BYTES) {
        Ok(bytes) => match parse_format(root, &bytes) {
            Err(newer @ OpenStoreError::Newer { .. }) => Err(newer),
            _ => Ok(()),
        },
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(()),
        Err(cause) => Err(io(root.join("FORMAT"))(cause)),
    }
}
