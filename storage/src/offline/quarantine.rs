//! Keeping what a repair replaces or cuts.

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::fs::{Fs, OpenMode};
use crate::limits::SCAN_BYTES;

/// Copies `range` of the file `path` (all of it without one) into `quarantine/` below `root`, durably, and answers the
/// new name. Nothing there is ever overwritten.
pub(super) fn keep(fs: &dyn Fs, root: &Path, path: &Path, range: Option<Range<u64>>) -> io::Result<String> {
    let file = fs.open(&root.join(path), OpenMode::Read, 0)?;
    let name = free_name(fs, root, &stem(path, range.as_ref()))?;
    let quarantine = root.join("quarantine");
    let copy = fs.open(&quarantine.join(&name), OpenMode::CreateNew, 0)?;
    let Range { start, end } = range.unwrap_or(0..file.len()?);
    let mut at = start;
    while at < end {
        let to = end.min(at + SCAN_BYTES);
        // A copy: the bytes of a map are not handed to a write.
        let chunk = file.slice(at..to)?.to_vec();
        copy.write_at(&[IoSlice::new(&chunk)], at - start)?;
        at = to;
    }
    copy.sync_data()?;
    fs.sync_dir(&quarantine)?;
    Ok(name)
}

/// The path with its folders, so that one sees where it was: `topics/<id>/0/<base>.seal` becomes `<id>-0-<base>.seal`.
fn stem(path: &Path, range: Option<&Range<u64>>) -> PathBuf {
    let parts: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).skip_while(|part| *part == "topics").collect();
    let mut name = parts.join("-");
    if let Some(range) = range {
        name = format!("{name}-{}.bytes", range.start);
    }
    PathBuf::from(name)
}

fn free_name(fs: &dyn Fs, root: &Path, wanted: &Path) -> io::Result<String> {
    let quarantine = root.join("quarantine");
    fs.create_dir_all(&quarantine)?;
    fs.sync_dir(root)?;
    let taken: HashSet<_> = fs.list(&quarantine)?.into_iter().map(|entry| entry.name).collect();
    let wanted = wanted.to_string_lossy().into_owned();
    let numbered = (2..).map(|number| format!("{wanted}-{number}"));
    let mut names = std::iter::once(wanted.clone()).chain(numbered);
    Ok(names.find(|name| !taken.contains(name)).expect("there are more numbers than names"))
}
