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
    let copy = match used_bytes {
        Some(used_to) => Some(copy_out(place, file, base, end.position..used_to)?),
        None => None,
    };
    if len_bytes > end.position
        && let Err(cause) = file.truncate(end.position)
    {
        // The next try copies it again.
        let _ = copy.map(|path| place.fs.remove_file(&path));
        return Err(cause);
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

/// Copies `range` into the quarantine directory, durably, and answers under which name.
fn copy_out(place: Place<'_>, file: &dyn File, base: Offset, range: Range<u64>) -> io::Result<PathBuf> {
    let path = quarantine_path(place, base, &format!("-{}", range.start), "bytes")?;
    // What does not fit is not begun: others would be refused their room for as long as half a copy has it.
    if let Some(left_bytes) = place.leaves_free_bytes
        && place.fs.free_bytes(place.quarantine)? < (range.end - range.start).saturating_add(left_bytes)
    {
        return Err(io::ErrorKind::StorageFull.into());
    }
    // What is named as a copy is whole. Where this ends in the middle, the next try begins with the same name.
    let aside = place.quarantine.join(format!("{}-{}.part", place.id.topic, place.id.partition));
    place.fs.remove_file(&aside).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
    let copied = copy_into(place, file, range, &aside).and_then(|()| place.fs.rename(&aside, &path));
    if let Err(cause) = copied {
        // Half a copy would keep the space that the next try needs.
        let _ = place.fs.remove_file(&aside);
        return Err(cause);
    }
    place.fs.sync_dir(place.quarantine)?;
    Ok(path)
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
    copy.sync_data()
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
