//! Ending the log where it has to end, and keeping what stands behind.

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Place, RecoveryReport, ScanEnd, rewrite};
use crate::fs::{File, OpenMode};
use crate::limits::SCAN_BYTES;
use crate::offset::Offset;
use crate::segment::{FileKind, path_of};

/// Moves what stands behind the end away and cuts there.
pub(super) fn settle_tail(
    place: Place<'_>,
    file: &dyn File,
    base: Offset,
    end: &ScanEnd,
    report: &mut RecoveryReport,
) -> io::Result<()> {
    let len_bytes = file.len()?;
    let used_bytes = last_used(file, end.position, len_bytes)?;
    if let Some(used_to) = used_bytes {
        let path = quarantine_path(place, base, &format!("-{}", end.position), "bytes")?;
        copy_out(place, file, end.position..used_to, &path)?;
    }
    if len_bytes > end.position {
        file.truncate(end.position)?;
    }
    if let Some(used_to) = used_bytes {
        let reason = end.reason.as_ref().map_or_else(|| "bytes behind the end".to_owned(), ToString::to_string);
        report.add_cut(end.next, &reason, used_to - end.position);
    }
    // What an earlier try cut may not have come to its sync.
    if len_bytes > end.position || report.cut.is_some() {
        file.sync_data()?;
    }
    Ok(())
}

/// One after the last byte that is not zero in `from..to`; reserved space is zeros.
fn last_used(file: &dyn File, from: u64, to: u64) -> io::Result<Option<u64>> {
    let mut used = None;
    let mut at = from;
    while at < to {
        let end = to.min(at + SCAN_BYTES);
        let chunk = file.slice(at..end)?;
        if let Some(last) = chunk.iter().rposition(|&byte| byte != 0) {
            used = Some(at + last as u64 + 1);
        }
        at = end;
    }
    Ok(used)
}

/// A name in the quarantine directory that nothing has: what an earlier start put there stays. Makes the directory.
fn quarantine_path(place: Place<'_>, base: Offset, place_in_file: &str, extension: &str) -> io::Result<PathBuf> {
    place.fs.create_dir_all(place.quarantine)?;
    if let Some(root) = place.quarantine.parent() {
        place.fs.sync_dir(root)?;
    }
    let taken: HashSet<_> = place.fs.list(place.quarantine)?.into_iter().map(|entry| entry.name).collect();
    let stem = format!("{}-{}-{:020}{place_in_file}", place.id.topic, place.id.partition, base.get());
    let numbered = (2..).map(|number| format!("{stem}-{number}.{extension}"));
    let mut names = std::iter::once(format!("{stem}.{extension}")).chain(numbered);
    let free = names.find(|name| !taken.contains(name)).expect("there are more numbers than names");
    Ok(place.quarantine.join(free))
}

fn copy_out(place: Place<'_>, file: &dyn File, range: Range<u64>, path: &Path) -> io::Result<()> {
    // What does not fit is not begun: others would be refused their room for as long as half a copy has it.
    if place.fs.free_bytes(place.quarantine).is_ok_and(|free_bytes| free_bytes < range.end - range.start) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let copied = copy_into(place, file, range, path);
    if copied.is_err() {
        // Half a copy would keep the space that the next try needs.
        let _ = place.fs.remove_file(path);
    }
    copied
}

fn copy_into(place: Place<'_>, file: &dyn File, range: Range<u64>, path: &Path) -> io::Result<()> {
    let copy = place.fs.open(path, OpenMode::CreateNew, 0)?;
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at + SCAN_BYTES);
        let chunk = file.slice(at..end)?.to_vec();
        copy.write_at(&[IoSlice::new(&chunk)], at - range.start)?;
        at = end;
    }
    copy.sync_data()?;
    place.fs.sync_dir(place.quarantine)
}

/// Moves whole segments that cannot belong to the log any more.
pub(super) fn quarantine_from(
    place: Place<'_>,
    bases: &[Offset],
    offset: Offset,
    reason: &str,
    report: &mut RecoveryReport,
) -> io::Result<()> {
    for &base in bases {
        let path = path_of(place.dir, base, FileKind::Log);
        let file = place.fs.open(&path, OpenMode::Write, 0)?;
        let len_bytes = file.len()?;
        // Nobody flushes it later. Written again, as what is accepted: its sync may have failed in an earlier try.
        if let Some(used_to) = last_used(&*file, 0, len_bytes)? {
            rewrite(&*file, 0, used_to)?;
        }
        place.fs.rename(&path, &quarantine_path(place, base, "", "log")?)?;
        report.add_cut(offset, reason, len_bytes);
    }
    Ok(())
}

/// Makes durable where everything went that this recovery, or a try before it, has moved away.
pub(super) fn settle_names(place: Place<'_>, report: &RecoveryReport) -> io::Result<()> {
    if report.cut.is_some() {
        place.fs.sync_dir(place.quarantine)?;
        place.fs.sync_dir(place.dir)?;
    }
    Ok(())
}
