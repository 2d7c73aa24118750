//! Compactions that a crash interrupted: undone before they were decided, finished after.
//!
//! A compaction is decided when its [`FileKind::Swap`] is durable; what that promises, the new log file, was durable
//! before. From then on the old segments may be gone at any moment, each by itself, and only the new file is whole.

use std::io;
use std::path::Path;

use super::{Listing, Place};
use crate::batch::header::HEADER_BYTES;
use crate::fs::{self, OpenMode};
use crate::offset::Offset;
use crate::segment::{BatchWalk, FileKind, SEAL_BYTES, Seal, WalkError, path_of, remove_segment};

/// Leaves old or new segments, never both. `listing` is then of what is left.
pub(super) fn settle_swaps(place: Place<'_>, listing: &mut Listing) -> io::Result<()> {
    for base in listing.take(FileKind::Swap) {
        match decided(place, base)? {
            Some((seal, kind)) => finish(place, &seal, kind, listing)?,
            None => {
                tracing::warn!(partition = %place.id, %base, "no compaction to finish");
                place.fs.remove_file(&path_of(place.dir, base, FileKind::Swap))?;
            }
        }
    }
    for base in listing.take(FileKind::Clean) {
        remove_if_there(place, base, FileKind::Clean)?;
    }
    Ok(())
}

/// What the swap file says, if the log that it speaks of is there, under its own name or still under the other.
fn decided(place: Place<'_>, base: Offset) -> io::Result<Option<(Seal, FileKind)>> {
    let path = path_of(place.dir, base, FileKind::Swap);
    let swap = fs::read_whole(place.fs, &path, SEAL_BYTES as u64);
    let seal = fs::if_there(&path, swap)?.and_then(|bytes| Seal::decode(&bytes).ok()).filter(|seal| seal.base == base);
    let Some(seal) = seal else { return Ok(None) };
    for kind in [FileKind::Clean, FileKind::Log] {
        let path = path_of(place.dir, base, kind);
        let is_there = match is_log_of(place, &path, &seal) {
            Err(WalkError::NoBatch { .. }) => false,
            Err(WalkError::Io(e)) => fs::if_there(&path, Err(e))?.unwrap_or(false),
            Ok(is_there) => is_there,
        };
        if is_there {
            return Ok(Some((seal, kind)));
        }
    }
    Ok(None)
}

/// Whether the file is the one that was sealed, by its length and its batch headers.
fn is_log_of(place: Place<'_>, path: &Path, seal: &Seal) -> Result<bool, WalkError> {
    let file = place.fs.open(path, OpenMode::Read, seal.len_bytes)?;
    if file.len()? != seal.len_bytes {
        return Ok(false);
    }
    let mut walk = BatchWalk::new(&*file, 0, seal.len_bytes);
    let mut headers_crc = crc32fast::Hasher::new();
    while let Some(step) = walk.next()? {
        headers_crc.update(&walk.bytes(step.position, step.position + HEADER_BYTES as u64)?);
    }
    Ok(headers_crc.finalize() == seal.headers_crc)
}

fn finish(place: Place<'_>, seal: &Seal, found_as: FileKind, listing: &mut Listing) -> io::Result<()> {
    let path = |kind| path_of(place.dir, seal.base, kind);
    // It tells places in the old file.
    remove_if_there(place, seal.base, FileKind::Index)?;
    if found_as == FileKind::Clean {
        place.fs.rename(&path(FileKind::Clean), &path(FileKind::Log))?;
    }
    let swallowed = |base: Offset| seal.base < base && base < seal.next;
    for &base in listing.bases.iter().filter(|&&base| swallowed(base)) {
        remove_segment(place.fs, place.dir, base)?;
    }
    listing.bases.retain(|&base| !swallowed(base));
    listing.side_files.retain(|&(base, kind)| !swallowed(base) && (base, kind) != (seal.base, FileKind::Index));
    if !listing.bases.contains(&seal.base) {
        listing.bases.push(seal.base);
        listing.bases.sort_unstable();
    }
    // The swap file is what tells of those that are to go, so it goes after them.
    place.fs.sync_dir(place.dir)?;
    place.fs.rename(&path(FileKind::Swap), &path(FileKind::Seal))?;
    place.fs.sync_dir(place.dir)?;
    tracing::info!(partition = %place.id, base = %seal.base, next = %seal.next, "compaction finished");
    Ok(())
}

fn remove_if_there(place: Place<'_>, base: Offset, kind: FileKind) -> io::Result<()> {
    match place.fs.remove_file(&path_of(place.dir, base, kind)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
