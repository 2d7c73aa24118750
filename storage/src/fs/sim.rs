//! [`Fs`] on the heap, with the habits of a disk that loses power.
//!
//! Like the real one it shows every write at once and keeps it for sure only after a sync. What is not synced is
//! tracked: bytes in pages of 4,096, lengths, and names in a journal. [`SimFs::crash`] makes one of the images that a
//! power cut could leave: each unsynced page new, old, or torn between two sectors of 512 bytes; a length old, new, or
//! on its way, with zeros where the data did not follow; of the changes to a directory those before some moment.
//! A seed names the image, so that a test can repeat it. [`SimFs::fail_nth`] makes any operation fail.
//!
//! What it is harsher in than common file systems, because the contract of [`Fs`] promises no more: syncing a file does
//! not save its name, and syncing a directory does not save the directory's own name in its parent.

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use self::content::FileNode;
use self::disk::{Disk, Entry, Locked, NodeId};
pub use self::fault::{Call, Fault, Lie, Operation};
use super::{DirEntry, File, Fs, Lock, OpenMode};

mod content;
mod disk;
mod fault;
mod random;
#[cfg(test)]
mod tests;

/// A simulated disk. Clones are handles to the same one. Paths start at its root; `..` is not understood.
#[derive(Clone)]
pub struct SimFs {
    disk: Arc<Mutex<Disk>>,
}

impl Default for SimFs {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SimFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFs").field("operations", &self.operations()).finish_non_exhaustive()
    }
}

impl SimFs {
    /// An empty disk of 1 TiB; its clock stands at the Unix epoch.
    #[must_use]
    pub fn new() -> Self {
        Self::on(Disk::new())
    }

    fn on(disk: Disk) -> Self {
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// Cuts the power: returns the disk as it may be found then, as `seed` decides. This one and its files fail from
    /// now on; it can be asked again for the images of other seeds.
    #[must_use]
    pub fn crash(&self, seed: u64) -> Self {
        let mut disk = self.disk.lock();
        disk.faults.cut_power();
        Self::on(disk.after_power_cut(seed))
    }

    /// Kills the process: returns the disk as the next one finds it. All that was written is there, still unsynced
    /// where it was, and no lock is held. This one and its files fail from now on.
    #[must_use]
    pub fn kill(&self) -> Self {
        let mut disk = self.disk.lock();
        disk.faults.cut_power();
        Self::on(disk.after_kill())
    }

    /// Lets the operation numbered `number` fail; see [`SimFs::operations`]. Replaces what was planned before.
    pub fn fail_nth(&self, number: u64, fault: Fault) {
        self.disk.lock().faults.plan(number, false, fault);
    }

    /// Lets the operation numbered `number` and all after it fail. Replaces what was planned before.
    pub fn fail_from(&self, number: u64, fault: Fault) {
        self.disk.lock().faults.plan(number, true, fault);
    }

    /// Takes back what [`SimFs::fail_nth`] or [`SimFs::fail_from`] planned. Lost pages stay lost, cut power stays cut.
    pub fn heal(&self) {
        self.disk.lock().faults.heal();
    }

    /// From here on this disk and its images only claim to do the syncs of this kind.
    pub fn tell(&self, lie: Lie) {
        self.disk.lock().lie = Some(lie);
    }

    /// How many operations that can fail were asked of this disk; the next one has this number plus one. Removing a
    /// directory counts once for each name in it. Images start at 0.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.disk.lock().faults.count()
    }

    /// The last 64 operations, oldest first, for reports.
    #[must_use]
    pub fn history(&self) -> Vec<Operation> {
        self.disk.lock().faults.history()
    }

    /// Limits the disk to `bytes`. A file takes whole pages, holes included, as long as it has a name or a handle.
    pub fn set_capacity(&self, bytes: u64) {
        self.disk.lock().capacity_bytes = bytes;
    }

    /// Sets the clock that [`File::modified`] tells of; it does not run by itself.
    pub fn set_now(&self, now: SystemTime) {
        self.disk.lock().now = now;
    }

    /// Flips bit `bit` (0 to 7, more counts anew) of byte `byte` of a file, in memory and on the disk.
    ///
    /// # Errors
    /// As [`SimFs::read_image`]; `UnexpectedEof` when the file has no such byte.
    pub fn flip(&self, path: &Path, byte: u64, bit: u32) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let id = disk.find_file(path)?;
        let file = disk.file(id);
        check_range(file.len(), byte, 1)?;
        file.flip(byte, bit);
        Ok(())
    }

    /// From here on reads of any of these bytes of a file answer an I/O error, as those of a bad sector do; the others
    /// go through. Replaces what was said of the file before. The images of the disk have it, too.
    ///
    /// # Errors
    /// As [`SimFs::read_image`].
    pub fn set_unreadable(&self, path: &Path, bytes: Option<Range<u64>>) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let id = disk.find_file(path)?;
        disk.file(id).unreadable = bytes;
        Ok(())
    }

    /// The bytes of a file as the process sees them. No operation in the sense of [`SimFs::operations`].
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory` or `IsADirectory`, as the path deserves.
    pub fn read_image(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut disk = self.disk.lock();
        let id = disk.find_file(path)?;
        let file = disk.file(id);
        let mut bytes = vec![0; usize::try_from(file.len()).map_err(io::Error::other)?];
        file.read(&mut bytes, 0);
        Ok(bytes)
    }

    /// Puts `bytes` on the disk as the durable content of `path`, making it and its parents where they are missing.
    /// No operation in the sense of [`SimFs::operations`].
    ///
    /// # Errors
    /// `NotADirectory` or `IsADirectory`, as the path deserves.
    pub fn write_image(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.disk.lock().write_image(path, bytes)
    }

    /// The paths of all files, sorted.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.disk.lock().paths()
    }

    fn begin(&self, call: Call, path: &Path) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.disk.lock();
        disk.faults.check(call, path)?;
        Ok(disk)
    }

    fn opened(&self, disk: &mut Disk, id: NodeId, path: &Path, writable: bool) -> Arc<dyn File> {
        disk.file(id).handles += 1;
        Arc::new(SimFile { fs: self.clone(), id, path: path.to_owned(), writable })
    }
}

impl Fs for SimFs {
    fn open(&self, path: &Path, mode: OpenMode, _capacity_bytes: u64) -> io::Result<Arc<dyn File>> {
        let create = mode == OpenMode::CreateNew;
        let mut disk = self.begin(if create { Call::CreateNew } else { Call::Open }, path)?;
        let id = if create { disk.create_file(path)? } else { disk.find_file(path)? };
        Ok(self.opened(&mut disk, id, path, mode != OpenMode::Read))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.begin(Call::CreateDirAll, path)?.create_dirs(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.begin(Call::SyncDir, path)?;
        match disk.lie {
            Some(lie) if lie.is_about(Call::SyncDir, path) => Ok(()),
            _ => disk.sync_dir(path),
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let disk = self.begin(Call::List, path)?;
        let entry =
            |(name, entry): (&String, &Entry)| DirEntry { name: name.clone(), is_dir: matches!(entry, Entry::Dir(_)) };
        Ok(disk.names(path)?.iter().map(entry).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.begin(Call::Rename, from)?.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.begin(Call::RemoveFile, path)?.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        for entry in self.list(path)? {
            let child = path.join(entry.name);
            if entry.is_dir { self.remove_dir_all(&child)? } else { self.remove_file(&child)? }
        }
        self.begin(Call::RemoveDir, path)?.remove_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let mut disk = self.begin(Call::Lock, path)?;
        let id = match disk.find_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => disk.create_file(path)?,
            found => found?,
        };
        if disk.locks.contains_key(&id) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        disk.locks.insert(id, Locked::Exclusive);
        Ok(Box::new(SimLock { _file: self.opened(&mut disk, id, path, true), fs: self.clone(), id }))
    }

    fn lock_shared(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let mut disk = self.begin(Call::Lock, path)?;
        let id = disk.find_file(path)?;
        match disk.locks.entry(id).or_insert(Locked::Shared(0)) {
            Locked::Exclusive => return Err(io::ErrorKind::WouldBlock.into()),
            Locked::Shared(holders) => *holders += 1,
        }
        Ok(Box::new(SimLock { _file: self.opened(&mut disk, id, path, false), fs: self.clone(), id }))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let disk = self.begin(Call::FreeBytes, path)?;
        disk.find(path)?;
        Ok(disk.free_bytes())
    }
}

/// Keeps its file open, so that the name of the locked node is never given to another.
#[derive(Debug)]
struct SimLock {
    _file: Arc<dyn File>,
    fs: SimFs,
    id: NodeId,
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut disk = self.fs.disk.lock();
        match disk.locks.get_mut(&self.id) {
            Some(Locked::Shared(holders)) if *holders > 1 => *holders -= 1,
            _ => drop(disk.locks.remove(&self.id)),
        }
    }
}

#[derive(Debug)]
struct SimFile {
    fs: SimFs,
    id: NodeId,
    /// The name at opening, for reports.
    path: PathBuf,
    writable: bool,
}

impl SimFile {
    fn begin(&self, call: Call) -> io::Result<MutexGuard<'_, Disk>> {
        self.fs.begin(call, &self.path)
    }

    fn begin_change(&self, call: Call) -> io::Result<MutexGuard<'_, Disk>> {
        if !self.writable {
            return Err(Errno::BADF.into());
        }
        self.begin(call)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.fs.disk.lock().close(self.id);
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.begin(Call::Len)?.file(self.id).len())
    }

    fn modified(&self) -> io::Result<SystemTime> {
        Ok(self.begin(Call::Modified)?.file(self.id).modified)
    }

    fn set_modified(&self, at: SystemTime) -> io::Result<()> {
        self.begin_change(Call::SetModified)?.file(self.id).modified = at;
        Ok(())
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        if !self.writable {
            return Err(Errno::BADF.into());
        }
        let bytes = parts.iter().map(|part| &**part).collect::<Vec<_>>().concat();
        let mut disk = self.fs.disk.lock();
        match disk.faults.check(Call::WriteAt, &self.path) {
            Ok(()) => disk.write(self.id, &bytes, offset),
            Err(fault @ (Fault::ShortWriteThenEio | Fault::ShortWriteThenFull)) => {
                disk.write(self.id, &bytes[..bytes.len() / 2], offset)?;
                Err(fault.into())
            }
            Err(fault) => Err(fault.into()),
        }
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut disk = self.begin(Call::ReadExactAt)?;
        let file = disk.file(self.id);
        check_range(file.len(), offset, buf.len() as u64)?;
        check_readable(file, offset, buf.len() as u64)?;
        file.read(buf, offset);
        Ok(())
    }

    fn slice(&self, range: Range<u64>) -> io::Result<Bytes> {
        let mut disk = self.begin(Call::Slice)?;
        let file = disk.file(self.id);
        let len = range.end.saturating_sub(range.start);
        check_range(file.len(), range.start, len)?;
        check_readable(file, range.start, len)?;
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        file.read(&mut bytes, range.start);
        Ok(bytes.into())
    }

    fn reserve(&self, len_bytes: u64) -> io::Result<()> {
        self.begin_change(Call::Reserve)?.reserve(self.id, len_bytes)
    }

    fn truncate(&self, len_bytes: u64) -> io::Result<()> {
        self.begin_change(Call::Truncate)?.set_len(self.id, len_bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.fs.disk.lock();
        let checked = disk.faults.check(Call::SyncData, &self.path);
        if checked.is_ok() && disk.lie.is_some_and(|lie| lie.is_about(Call::SyncData, &self.path)) {
            return Ok(());
        }
        let file = disk.file(self.id);
        match checked {
            Ok(()) => file.sync(),
            Err(Fault::Interrupted | Fault::PowerCut) => {}
            Err(Fault::EioThenEvicted) => file.fail_sync_and_evict(),
            Err(_) => file.fail_sync(),
        }
        Ok(checked?)
    }
}

fn check_readable(file: &FileNode, offset: u64, len: u64) -> io::Result<()> {
    if file.is_readable(offset, len) { Ok(()) } else { Err(Errno::IO.into()) }
}

fn check_range(file_len: u64, offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if len == 0 || end <= file_len => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
