//! The names in a partition's directory.

use std::io;
use std::path::Path;

use crate::checkpoint;
use crate::cleaned;
use crate::fs::Fs;
use crate::offset::Offset;
use crate::segment::{FileKind, is_temporary, parse_name};

/// What a partition's directory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PartitionNames {
    /// Base offsets of the log files, ascending.
    pub(super) bases: Vec<Offset>,
    /// Seals, indexes and snapshots, by base.
    pub(super) side_files: Vec<(Offset, FileKind)>,
    pub(super) has_checkpoint: bool,
    /// Whether the note of how far it was compacted is there.
    pub(super) has_cleaned: bool,
    /// Compactions that were decided and did not end.
    pub(super) swaps: Vec<Offset>,
    /// Left by a replacement or a compaction that was interrupted.
    pub(super) temporary: Vec<String>,
    /// Not ours.
    pub(super) alien: Vec<String>,
}

impl PartitionNames {
    pub(super) fn list(fs: &dyn Fs, dir: &Path) -> io::Result<Self> {
        let mut names = Self::default();
        for entry in fs.list(dir)? {
            match parse_name(&entry.name) {
                _ if entry.is_dir => names.alien.push(entry.name),
                Some((base, FileKind::Log)) => names.bases.push(base),
                Some((base, FileKind::Swap)) => names.swaps.push(base),
                Some((_, FileKind::Clean)) => names.temporary.push(entry.name),
                Some(side_file) => names.side_files.push(side_file),
                None if entry.name == checkpoint::FILE_NAME => names.has_checkpoint = true,
                None if entry.name == cleaned::FILE_NAME => names.has_cleaned = true,
                None if is_temporary(&entry.name) => names.temporary.push(entry.name),
                None => names.alien.push(entry.name),
            }
        }
        names.bases.sort_unstable();
        names.side_files.sort_unstable_by_key(|(base, kind)| (*base, *kind as u8));
        names.temporary.sort_unstable();
        names.alien.sort_unstable();
        Ok(names)
    }

    /// Side files of segments that are not there.
    pub(super) fn orphans(&self) -> impl Iterator<Item = (Offset, FileKind)> {
        self.side_files.iter().copied().filter(|(base, _)| self.bases.binary_search(base).is_err())
    }
}
