//! The one door to the disk.
//!
//! Everything in this crate reaches files through [`Fs`] and [`File`], so that tests can put a disk underneath that
//! loses what was not synced, tears pages and fails on demand. `clippy.toml` bans the `std::fs` functions elsewhere.

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use rustix::io::Errno;

#[cfg(test)]
mod contract;
mod os;
pub mod sim;

pub use os::OsFs;
pub use sim::SimFs;

/// How [`Fs::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Read only; the file must exist.
    Read,
    /// Read and write; the file must exist.
    Write,
    /// Read and write; the file must not exist yet.
    CreateNew,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The last component. Names that are not UTF-8 are shown with replacement characters: none of ours are.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// A file system, as far as a log needs one.
///
/// # Contract
/// - Written bytes are visible to every reader of this process at once.
/// - They survive the death of the process; they survive a power cut only after [`File::sync_data`].
/// - A new, renamed or removed name survives a power cut only after [`Fs::sync_dir`] of its directory.
/// - After a failed sync nothing is known about the file's unsynced bytes, and a later sync proves nothing about them.
/// - All methods may block. None panics on what the disk does.
pub trait Fs: Send + Sync + fmt::Debug + 'static {
    /// Opens `path`. `capacity_bytes` is a hint how far the file will be mapped for reading; reads beyond it are
    /// copies.
    ///
    /// # Errors
    /// As the operating system answers; `NotFound` and `AlreadyExists` are told apart.
    fn open(&self, path: &Path, mode: OpenMode, capacity_bytes: u64) -> io::Result<Arc<dyn File>>;
    /// Makes `path` and its missing parents; existing ones are fine.
    ///
    /// # Errors
    /// As the operating system answers.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in `path` durable.
    ///
    /// # Errors
    /// As the operating system answers.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in `path`, in no order.
    ///
    /// # Errors
    /// As the operating system answers; `NotFound` when it is missing.
    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>>;
    /// Gives `from` the name `to`, replacing a file that has it.
    ///
    /// # Errors
    /// As the operating system answers.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// As the operating system answers.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory and all below it.
    ///
    /// # Errors
    /// As the operating system answers.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Takes the exclusive lock that `path` stands for, creating the file; held until the answer is dropped.
    ///
    /// # Errors
    /// `WouldBlock` when somebody else holds it; otherwise as the operating system answers.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>>;
    /// Takes the lock that `path` stands for together with others who only look: nobody can take it with [`Fs::lock`]
    /// until the answer is dropped. Changes nothing on the disk.
    ///
    /// # Errors
    /// `WouldBlock` when somebody holds it for himself; `NotFound` when the file is missing, so that nobody does;
    /// otherwise as the operating system answers.
    fn lock_shared(&self, path: &Path) -> io::Result<Box<dyn Lock>>;
    /// Bytes free for us on the file system that holds `path`.
    ///
    /// # Errors
    /// As the operating system answers.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// A held lock; released when dropped.
pub trait Lock: Send + Sync + fmt::Debug {}

/// An open file. All methods take positions; there is no cursor.
pub trait File: Send + Sync + fmt::Debug {
    /// Length in bytes, reserved space included.
    ///
    /// # Errors
    /// As the operating system answers.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// As the operating system answers.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// When the content last changed, by the broker machine's clock.
    ///
    /// # Errors
    /// As the operating system answers.
    fn modified(&self) -> io::Result<SystemTime>;
    /// Says that the content last changed then.
    ///
    /// # Errors
    /// As the operating system answers.
    fn set_modified(&self, at: SystemTime) -> io::Result<()>;
    /// Writes all of `parts` one behind the other at `offset`, in one call to the system where it takes them so.
    ///
    /// # Errors
    /// As the operating system answers; some of the bytes may have been written then. `StorageFull` tells a full disk.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before; otherwise as the operating system answers.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// The bytes of `range` without a copy where possible. The caller promises that nobody changes them any more: for a
    /// log, that the range lies below its published length.
    ///
    /// # Errors
    /// As [`File::read_exact_at`].
    fn slice(&self, range: Range<u64>) -> io::Result<Bytes>;
    /// [`File::slice`], where that neither waits for the disk nor copies; `None` where it might, or nobody can tell.
    fn resident(&self, _range: Range<u64>) -> Option<Bytes> {
        None
    }
    /// Reserves disk space so that the file is at least `len_bytes` long; new bytes read as zero.
    ///
    /// # Errors
    /// `StorageFull` when the disk has no room; otherwise as the operating system answers. The file may have become
    /// longer all the same, by zeros, as some file systems reserve piece by piece.
    fn reserve(&self, len_bytes: u64) -> io::Result<()>;
    /// Cuts the file to `len_bytes`.
    ///
    /// # Errors
    /// As the operating system answers.
    fn truncate(&self, len_bytes: u64) -> io::Result<()>;
    /// Makes the content and the length durable.
    ///
    /// # Errors
    /// As the operating system answers; see the contract of [`Fs`] for what that means.
    fn sync_data(&self) -> io::Result<()>;
}

/// Whether a file could not be opened because there are too many already. Nothing was changed then. A want of memory
/// does not count: a sync may answer that as well, and is not to be tried again.
pub(crate) fn is_out_of_descriptors(cause: &io::Error) -> bool {
    let wanting = [Errno::MFILE, Errno::NFILE];
    Errno::from_io_error(cause).is_some_and(|errno| wanting.contains(&errno))
}

/// Whether what is there cannot be read: a bad sector, or a disk that is away for the moment.
pub(crate) fn is_unreadable(cause: &io::Error) -> bool {
    let cause = cause.get_ref().and_then(|told| told.downcast_ref::<Told>()).map_or(cause, |told| &told.cause);
    Errno::from_io_error(cause) == Some(Errno::IO)
}

/// An error with more to say than the operating system.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Told {
    text: String,
    #[source]
    cause: io::Error,
}

/// The same error, with this to say.
pub(crate) fn told(cause: io::Error, text: String) -> io::Error {
    io::Error::new(cause.kind(), Told { text, cause })
}

/// Asks a second time for what cannot be read: an error that passes is not to be taken for a bad sector.
///
/// # Errors
/// As the last answer.
pub(crate) fn asked_twice<T>(mut ask: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match ask() {
        Err(cause) if is_unreadable(&cause) => ask(),
        other => other,
    }
}

/// Reads a whole file of at most `limit_bytes`.
///
/// # Errors
/// `InvalidData` when it is longer; otherwise as the file system answers.
pub(crate) fn read_whole(fs: &dyn Fs, path: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let file = fs.open(path, OpenMode::Read, 0)?;
    let len = file.len()?;
    if len > limit_bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} has {len} bytes, at most {limit_bytes} are allowed", path.display()),
        ));
    }
    let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// What was read from `path`, or `None` when there is nothing to read, or too little, or something else: then it says
/// nothing, and will not say more.
///
/// # Errors
/// The disk does not answer, which names the file: what it holds is not known, and a person may move it away.
pub(crate) fn if_there<T>(path: &Path, read: io::Result<T>) -> io::Result<Option<T>> {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    match read {
        Err(e) if matches!(e.kind(), NotFound | UnexpectedEof | InvalidData) => Ok(None),
        Err(e) => {
            let text = format!("{} cannot be read: {e}", path.display());
            Err(told(e, text))
        }
        Ok(read) => Ok(Some(read)),
    }
}

/// Replaces `path` by `bytes` so that a crash leaves the old or the new content, never a mixture, and makes the new
/// name durable.
///
/// # Errors
/// As the file system answers. Before the directory is synced, the old file is untouched.
pub(crate) fn replace_file(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_content(fs, path, bytes, true)?;
    path.parent().map_or(Ok(()), |parent| fs.sync_dir(parent))
}

/// As [`replace_file`], with the name left to a sync of the directory by the caller. Without `sync` the content too is
/// a hint that a power cut may leave torn.
///
/// # Errors
/// As the file system answers; the old file is then untouched.
pub(crate) fn replace_content(fs: &dyn Fs, path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    match fs.remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = fs.open(&temporary, OpenMode::CreateNew, 0)?;
    file.write_at(&[IoSlice::new(bytes)], 0)?;
    if sync {
        file.sync_data()?;
    }
    fs.rename(&temporary, path)
}
