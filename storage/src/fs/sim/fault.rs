//! Which operation of a simulated disk fails, and how.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// How an operation of a [`SimFs`](super::SimFs) fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An I/O error; nothing was changed. A sync that fails so loses the file's unsynced pages for good, as on Linux:
    /// the next sync succeeds without them.
    Eio,
    /// As [`Fault::Eio`]; and in all but the first of the pages that a failed sync loses, the process sees what the
    /// disk has from then on: they count as clean, and the memory was needed for others.
    EioThenEvicted,
    /// `StorageFull`; as [`Fault::Eio`] otherwise. Operations that take no space on any file system go through; to cut
    /// a file takes some where nothing is written over in place.
    Enospc,
    /// There are too many open files. Operations that open none go through.
    Emfile,
    /// A write leaves the first half of its bytes and answers an I/O error; other operations fail as [`Fault::Eio`].
    ShortWriteThenEio,
    /// A write leaves the first half of its bytes and answers `StorageFull`; other operations fail as
    /// [`Fault::Enospc`].
    ShortWriteThenFull,
    /// `Interrupted`; nothing was changed or lost.
    Interrupted,
    /// From here on every operation answers an I/O error and changes nothing: the moment before
    /// [`SimFs::crash`](super::SimFs::crash) or [`SimFs::kill`](super::SimFs::kill).
    PowerCut,
}

impl Fault {
    const fn is_met_by(self, call: Call) -> bool {
        match self {
            Self::Enospc | Self::ShortWriteThenFull => call.takes_space(),
            Self::Emfile => call.takes_descriptor(),
            _ => true,
        }
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Enospc | Fault::ShortWriteThenFull => Errno::NOSPC.into(),
            Fault::Emfile => Errno::MFILE.into(),
            Fault::Interrupted => Errno::INTR.into(),
            Fault::Eio | Fault::EioThenEvicted | Fault::ShortWriteThenEio | Fault::PowerCut => Errno::IO.into(),
        }
    }
}

/// A sync that a broken log might forget, or a broken disk might fake: it answers that it succeeded and saves nothing.
/// Tests use it to show that they would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// [`File::sync_data`](crate::fs::File::sync_data) of every file with this extension, or of this name.
    FileSyncs(&'static str),
    /// Every [`Fs::sync_dir`](crate::fs::Fs::sync_dir).
    DirSyncs,
}

impl Lie {
    /// Whether the lie is told about a sync of `path`.
    pub(super) fn is_about(self, call: Call, path: &Path) -> bool {
        match self {
            Self::FileSyncs(extension) => {
                let parts = [path.extension(), path.file_name()];
                call == Call::SyncData && parts.into_iter().flatten().any(|found| found == extension)
            }
            Self::DirSyncs => call == Call::SyncDir,
        }
    }
}

/// What was asked of a [`SimFs`](super::SimFs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named like the methods of Fs and File")]
pub enum Call {
    Open,
    CreateNew,
    CreateDirAll,
    SyncDir,
    List,
    Rename,
    RemoveFile,
    RemoveDir,
    Lock,
    FreeBytes,
    Len,
    Modified,
    SetModified,
    WriteAt,
    ReadExactAt,
    Slice,
    Reserve,
    Truncate,
    SyncData,
}

impl Call {
    const fn takes_descriptor(self) -> bool {
        matches!(self, Self::Open | Self::CreateNew | Self::SyncDir | Self::List | Self::Lock)
    }

    const fn takes_space(self) -> bool {
        matches!(
            self,
            Self::CreateNew
                | Self::CreateDirAll
                | Self::Rename
                | Self::Lock
                | Self::WriteAt
                | Self::Reserve
                | Self::Truncate
                | Self::SyncData
        )
    }
}

/// One operation that could have failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its number, from 1.
    pub number: u64,
    /// What was asked.
    pub call: Call,
    /// Of which file or directory.
    pub path: PathBuf,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {}", self.number, self.call, self.path.display())
    }
}

/// How many operations [`SimFs::history`](super::SimFs::history) remembers.
const HISTORY_COUNT_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Plan {
    number: u64,
    and_later: bool,
    fault: Fault,
}

/// Counts operations and lets the planned ones fail.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    count: u64,
    plan: Option<Plan>,
    power_is_cut: bool,
    history: VecDeque<Operation>,
}

impl Faults {
    pub(super) const fn plan(&mut self, number: u64, and_later: bool, fault: Fault) {
        self.plan = Some(Plan { number, and_later, fault });
    }

    pub(super) const fn heal(&mut self) {
        self.plan = None;
    }

    pub(super) const fn cut_power(&mut self) {
        self.power_is_cut = true;
    }

    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn history(&self) -> Vec<Operation> {
        self.history.iter().cloned().collect()
    }

    /// Counts an operation and says whether it fails.
    pub(super) fn check(&mut self, call: Call, path: &Path) -> Result<(), Fault> {
        self.count += 1;
        self.remember(call, path);
        if self.power_is_cut {
            return Err(Fault::PowerCut);
        }
        let fault = self.planned().filter(|&fault| fault.is_met_by(call));
        self.power_is_cut = fault == Some(Fault::PowerCut);
        fault.map_or(Ok(()), Err)
    }

    fn planned(&self) -> Option<Fault> {
        let plan = self.plan?;
        let due = plan.number == self.count || (plan.and_later && plan.number < self.count);
        due.then_some(plan.fault)
    }

    fn remember(&mut self, call: Call, path: &Path) {
        if self.history.len() == HISTORY_COUNT_MAX {
            self.history.pop_front();
        }
        self.history.push_back(Operation { number: self.count, call, path: path.to_owned() });
    }
}
