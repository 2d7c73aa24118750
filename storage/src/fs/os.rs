//! [`Fs`] on the operating system.
#![expect(clippy::disallowed_methods, reason = "this file is the door that the ban protects")]

use std::fs;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;

use super::{DirEntry, File, Fs, Lock, OpenMode};
use crate::map::Map;

/// The operating system's file system: `pwritev` to write, a read-only map to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsFs;

impl Fs for OsFs {
    fn open(&self, path: &Path, mode: OpenMode, capacity_bytes: u64) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(mode != OpenMode::Read).create_new(mode == OpenMode::CreateNew);
        let file = options.open(path).map_err(as_full)?;
        Ok(Arc::new(OsFile { file, capacity_bytes, map: OnceLock::new() }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path).map_err(as_full)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        fs::read_dir(path)?
            .map(|entry| {
                let entry = entry?;
                Ok(DirEntry {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    is_dir: entry.file_type()?.is_dir(),
                })
            })
            .collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to).map_err(as_full)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let taken = file.try_lock();
        locked(file, taken)
    }

    fn lock_shared(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let file = fs::File::open(path)?;
        let taken = file.try_lock_shared();
        locked(file, taken)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

fn locked(file: fs::File, taken: Result<(), fs::TryLockError>) -> io::Result<Box<dyn Lock>> {
    match taken {
        Ok(()) => Ok(Box::new(OsLock { file })),
        Err(fs::TryLockError::WouldBlock) => {
            let holder = file.metadata().ok().and_then(|meta| lock_holder(meta.ino()));
            Err(io::Error::new(io::ErrorKind::WouldBlock, holder.unwrap_or_else(|| "another process".to_owned())))
        }
        Err(fs::TryLockError::Error(e)) => Err(e),
    }
}

/// The process that holds a lock on the file with this inode, where this system shows it. For a message: two files of
/// two file systems may have one inode.
fn lock_holder(inode: u64) -> Option<String> {
    let table = fs::read_to_string("/proc/locks").ok()?;
    // number: FLOCK ADVISORY WRITE pid major:minor:inode start end
    let pid = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields.as_slice() {
            [_, "FLOCK", _, _, pid, place, ..] if place.rsplit(':').next()? == inode.to_string() => {
                pid.parse::<u32>().ok().filter(|&pid| pid > 0)
            }
            _ => None,
        }
    })?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("process {pid} ({})", name.trim()))
}

/// The lock goes when it is dropped, and with the process. Closing alone would not do: the lock is the open file's, and
/// between the fork and the exec of a process that is being started, the child has that file open too.
#[derive(Debug)]
struct OsLock {
    file: fs::File,
}

impl Lock for OsLock {}

impl Drop for OsLock {
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "a directory's lock goes with its last descriptor only");
        }
    }
}

#[derive(Debug)]
struct OsFile {
    file: fs::File,
    capacity_bytes: u64,
    /// Made at the first read. `None` inside: the map was refused, reads copy.
    map: OnceLock<Option<Arc<Map>>>,
}

impl OsFile {
    fn map(&self) -> Option<&Arc<Map>> {
        self.map
            .get_or_init(|| {
                let capacity_bytes = usize::try_from(self.capacity_bytes).ok().filter(|&bytes| bytes > 0)?;
                Map::new(&self.file, capacity_bytes).map(Arc::new).ok()
            })
            .as_ref()
    }

    fn mapped(&self, range: &Range<u64>) -> Option<Bytes> {
        self.map()?.slice(Self::places(range)?).ok()
    }

    /// The places of `range` in the map.
    fn places(range: &Range<u64>) -> Option<Range<usize>> {
        Some(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
    }

    fn copied(&self, range: &Range<u64>) -> io::Result<Bytes> {
        let len = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // Never more than the file holds, whatever was asked for.
        if range.end > self.file.metadata()?.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.into())
    }
}

impl File for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn modified(&self) -> io::Result<SystemTime> {
        self.file.metadata()?.modified()
    }

    fn set_modified(&self, at: SystemTime) -> io::Result<()> {
        self.file.set_modified(at)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let written = retry_interrupted(|| Ok(rustix::io::pwritev(&self.file, parts, offset)?)).map_err(as_full)?;
        if written == total {
            return Ok(());
        }
        write_rest(&self.file, parts, offset, written).map_err(as_full)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn slice(&self, range: Range<u64>) -> io::Result<Bytes> {
        match self.mapped(&range) {
            Some(bytes) => Ok(bytes),
            None => self.copied(&range),
        }
    }

    fn resident(&self, range: Range<u64>) -> Option<Bytes> {
        self.map()?.resident(Self::places(&range)?)
    }

    fn reserve(&self, len_bytes: u64) -> io::Result<()> {
        let len = self.len()?;
        if len >= len_bytes {
            return Ok(());
        }
        let reserved = retry_interrupted(|| {
            Ok(rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), len, len_bytes - len)?)
        });
        match reserved {
            // A file system without fallocate: the write itself will find the room, or say that there is none.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other.map_err(as_full),
        }
    }

    fn truncate(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes).map_err(as_full)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// A quota that is used up is told as a full disk: it passes as that does.
fn as_full(cause: io::Error) -> io::Error {
    if cause.kind() == io::ErrorKind::QuotaExceeded { io::ErrorKind::StorageFull.into() } else { cause }
}

/// Writes what a short `pwritev` left, part by part.
fn write_rest(file: &fs::File, parts: &[IoSlice<'_>], offset: u64, mut skip: usize) -> io::Result<()> {
    let mut position = offset;
    for part in parts {
        let done = skip.min(part.len());
        file.write_all_at(&part[done..], position + done as u64)?;
        skip -= done;
        position += part.len() as u64;
    }
    Ok(())
}

fn retry_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_parts_is_read_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = OsFs.open(&dir.path().join("f"), OpenMode::CreateNew, 1 << 20).unwrap();
        file.reserve(4096).unwrap();
        file.write_at(&[IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")], 7).unwrap();
        assert_eq!(file.slice(7..12).unwrap(), &b"abcde"[..]);
        assert_eq!(file.len().unwrap(), 4096);
        file.truncate(12).unwrap();
        assert_eq!(file.slice(5..12).unwrap(), &b"\0\0abcde"[..]);
    }

    #[test]
    fn a_short_write_goes_on_where_it_stopped() {
        let file = tempfile::tempfile().unwrap();
        let parts = [IoSlice::new(b"abc"), IoSlice::new(b"defg")];
        for written in 0..=7 {
            write_rest(&file, &parts, 0, written).unwrap();
            let mut rest = vec![0; 7 - written];
            file.read_exact_at(&mut rest, written as u64).unwrap();
            assert_eq!(rest, &b"abcdefg"[written..]);
            file.set_len(0).unwrap();
        }
    }

    #[test]
    fn a_quota_that_is_used_up_is_a_full_disk_and_nothing_else_is() {
        use rustix::io::Errno;
        assert_eq!(as_full(Errno::DQUOT.into()).kind(), io::ErrorKind::StorageFull);
        assert_eq!(as_full(Errno::MFILE.into()).raw_os_error(), Some(Errno::MFILE.raw_os_error()));
    }

    #[test]
    fn reads_beyond_the_end_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let file = OsFs.open(&dir.path().join("f"), OpenMode::CreateNew, 1 << 20).unwrap();
        file.write_at(&[IoSlice::new(b"abc")], 0).unwrap();
        assert!(file.slice(100_000..100_004).is_err());
        assert!(file.read_exact_at(&mut [0; 4], 0).is_err());
    }

    #[test]
    fn a_second_lock_on_the_same_file_is_refused_until_the_first_is_dropped_and_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LOCK");
        let held = OsFs.lock(&path).unwrap();
        let refused = OsFs.lock(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert!(refused.to_string().contains(&format!("process {} (", std::process::id())), "{refused}");
        drop(held);
        OsFs.lock(&path).unwrap();
    }

    #[test]
    fn a_lock_that_is_dropped_is_free_though_a_child_still_has_its_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LOCK");
        let file = fs::File::create(&path).unwrap();
        let of_a_child = file.try_clone().unwrap();
        let taken = file.try_lock();
        let held = locked(file, taken).unwrap();
        assert_eq!(OsFs.lock(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        OsFs.lock(&path).unwrap();
        drop(of_a_child);
    }
}
