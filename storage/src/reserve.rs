//! Disk space kept back for a full disk: what must go on then (the state journal, dead letters) takes it piece by
//! piece.
//!
//! The file `reserve` holds nothing; its blocks are the point. Once an append has met a full disk, ordinary appends are
//! refused without asking the disk again, so that nobody else takes what the reserve gives back. When there is room for
//! the whole reserve and some more, it is filled up first, and service returns.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::fs::{File, Fs, OpenMode};

/// The name of its file in the data directory.
pub(crate) const FILE_NAME: &str = "reserve";
/// Given back at a time.
const DRAW_BYTES: u64 = 1 << 20;
/// The reserve takes at most one part in so many of what is free: a small disk is there for records first.
const SHARE_OF_FREE: u64 = 8;
/// Service returns when one part in so many of the reserve is free beyond it: a disk at its brim would refuse the next
/// append again.
const MARGIN_SHARE: u64 = 4;

/// The disk space kept back. Its state follows the disk: see [`Reserve::met_full_disk`], [`Reserve::refill`].
#[derive(Debug)]
pub(crate) struct Reserve {
    fs: Arc<dyn Fs>,
    root: PathBuf,
    /// What the settings ask for.
    wanted_bytes: u64,
    /// Guards the length of the file. `None`: nothing is kept back.
    file: Mutex<Option<Arc<dyn File>>>,
    held_bytes: AtomicU64,
    /// How large it shall be; only grows.
    target_bytes: AtomicU64,
    full: AtomicBool,
    /// Holds one token when the disk has become full and nobody has taken notice yet.
    filled_up: (Sender<()>, Receiver<()>),
}

impl Reserve {
    /// Opens the reserve of the data directory `root` as it is, without filling it up. `wanted_bytes` of 0 keeps
    /// nothing back.
    ///
    /// # Errors
    /// The disk does not answer. A full one is fine.
    pub(crate) fn open(fs: Arc<dyn Fs>, root: &Path, wanted_bytes: u64) -> io::Result<Self> {
        let file = if wanted_bytes > 0 { open_file(&*fs, &root.join(FILE_NAME))? } else { None };
        let held_bytes = AtomicU64::new(file.as_ref().map_or(Ok(0), |file| file.len())?);
        Ok(Self {
            fs,
            root: root.to_owned(),
            wanted_bytes,
            file: Mutex::new(file),
            target_bytes: AtomicU64::new(held_bytes.load(Ordering::Relaxed)),
            held_bytes,
            full: AtomicBool::new(false),
            filled_up: bounded(1),
        })
    }

    /// Whether an append has met a full disk and service has not returned since.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Tells whoever looks again for room that the disk has become full.
    pub(crate) fn filled_up(&self) -> &Receiver<()> {
        &self.filled_up.1
    }

    /// Bytes kept back at the moment.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Acquire)
    }

    /// An append found no room: from now on there is room only for those that may draw.
    pub(crate) fn met_full_disk(&self) {
        if !self.full.swap(true, Ordering::AcqRel) {
            // Only fails when a token is there already.
            let _ = self.filled_up.0.try_send(());
            tracing::error!(
                root = %self.root.display(), reserve_bytes = self.held_bytes(),
                "the disk is full: appends are refused until there is room; the state journal and dead letters go on from the reserve"
            );
        }
    }

    /// Gives a piece back to the disk, for somebody who must go on. `false` when nothing is left.
    pub(crate) fn draw(&self) -> bool {
        let file = self.file.lock();
        let held = self.held_bytes();
        let Some(file) = file.as_ref().filter(|_| held > 0) else { return false };
        // First, so that no ordinary append takes what is given back.
        self.met_full_disk();
        let left = held.saturating_sub(DRAW_BYTES);
        if let Err(cause) = file.truncate(left) {
            tracing::error!(%cause, "nothing drawn from the reserve");
            return false;
        }
        self.held_bytes.store(left, Ordering::Release);
        tracing::warn!(left_bytes = left, "drawn from the reserve of a full disk");
        true
    }

    /// Runs `work`, which may be run again after any failure, as long as the disk is full and the reserve has something
    /// to give.
    pub(crate) fn with_room<T>(&self, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match work() {
                Err(e) if e.kind() == io::ErrorKind::StorageFull && self.draw() => {}
                other => return other,
            }
        }
    }

    /// What has to be free beyond the reserve for service to return.
    pub(crate) fn margin_bytes(&self) -> u64 {
        self.target_bytes.load(Ordering::Relaxed).max(self.held_bytes()) / MARGIN_SHARE
    }

    /// Fills the reserve up, and lets ordinary appends go on if that and some more is there.
    pub(crate) fn refill(&self) {
        let mut file = self.file.lock();
        if file.is_none() && self.wanted_bytes > 0 {
            match open_file(&*self.fs, &self.root.join(FILE_NAME)) {
                Ok(opened) => *file = opened,
                Err(cause) => tracing::warn!(%cause, "no file for the reserve"),
            }
        }
        let held = self.held_bytes();
        let free = match self.fs.free_bytes(&self.root) {
            Ok(free) => free,
            Err(cause) => return tracing::warn!(%cause, "free space unknown; the reserve stays as it is"),
        };
        if file.is_some() {
            // Only grows: a disk that is full now had room for more, or will have.
            self.target_bytes.fetch_max(target_bytes(self.wanted_bytes, held, free), Ordering::Relaxed);
        }
        let target = self.target_bytes.load(Ordering::Relaxed).max(held);
        if free < (target - held) + self.margin_bytes() {
            return;
        }
        if let Some(file) = &*file {
            let reserved = file.reserve(target);
            // Well or badly: some file systems keep what they found before they met the end.
            self.held_bytes.store(file.len().unwrap_or(held), Ordering::Release);
            if let Err(cause) = reserved {
                return tracing::debug!(%cause, "reserve not filled up");
            }
        }
        if self.full.swap(false, Ordering::AcqRel) {
            tracing::info!(free_bytes = free, "the disk has room again: appends go on");
        }
    }
}

/// Opens the file or makes it; `None` when there is no room even for its name.
fn open_file(fs: &dyn Fs, path: &Path) -> io::Result<Option<Arc<dyn File>>> {
    let opened = match fs.open(path, OpenMode::Write, 0) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => fs.open(path, OpenMode::CreateNew, 0),
        other => other,
    };
    match opened {
        Err(e) if e.kind() == io::ErrorKind::StorageFull => Ok(None),
        other => other.map(Some),
    }
}

/// How large the reserve shall be: what is wanted, but on a small disk only its share; what is held already stays.
fn target_bytes(wanted: u64, held: u64, free: u64) -> u64 {
    let share = free.saturating_add(held) / SHARE_OF_FREE;
    wanted.min(share).max(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::SimFs;

    const MIB: u64 = 1 << 20;

    fn opened(capacity_bytes: u64, wanted_bytes: u64) -> (SimFs, Reserve) {
        let disk = SimFs::new();
        disk.set_capacity(capacity_bytes);
        disk.create_dir_all(Path::new("/d")).unwrap();
        let reserve = Reserve::open(Arc::new(disk.clone()), Path::new("/d"), wanted_bytes).unwrap();
        (disk, reserve)
    }

    #[test]
    fn it_takes_what_is_wanted_but_a_small_disk_keeps_most_of_itself() {
        for (wanted, held, free, target) in [
            (64, 0, 10_000, 64),
            (64, 0, 80, 10),
            (64, 64, 0, 64),
            (64, 10, 0, 10),
            (0, 0, 10_000, 0),
            (64, 0, u64::MAX, 64),
        ] {
            assert_eq!(target_bytes(wanted, held, free), target, "{wanted} {held} {free}");
        }
    }

    #[test]
    fn it_gives_back_piece_by_piece_and_ends() {
        let (disk, reserve) = opened(100 * MIB, 3 * MIB + 1);
        reserve.refill();
        assert_eq!((reserve.held_bytes(), reserve.is_full()), (3 * MIB + 1, false));
        let free = disk.free_bytes(Path::new("/d")).unwrap();
        for drawn in 1..=3 {
            assert!(reserve.draw());
            assert!(reserve.is_full());
            assert_eq!(disk.free_bytes(Path::new("/d")).unwrap(), free + drawn * MIB);
        }
        assert!(reserve.draw(), "the last byte too");
        assert!(!reserve.draw());
    }

    #[test]
    fn service_returns_only_with_the_whole_reserve_and_a_margin() {
        let (disk, reserve) = opened(100 * MIB, 4 * MIB);
        reserve.refill();
        assert!(reserve.draw());
        for (free, full) in [(0, true), (MIB, true), (2 * MIB - 4096, true), (2 * MIB, false)] {
            disk.set_capacity(3 * MIB + free);
            reserve.refill();
            assert_eq!(reserve.is_full(), full, "{free} bytes free");
        }
        assert_eq!(reserve.held_bytes(), 4 * MIB);
    }

    #[test]
    fn work_is_run_again_while_the_reserve_gives() {
        let (_, reserve) = opened(100 * MIB, 2 * MIB);
        reserve.refill();
        let mut tries = 0;
        let result: io::Result<()> = reserve.with_room(|| {
            tries += 1;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!((result.unwrap_err().kind(), tries), (io::ErrorKind::StorageFull, 3));
        let result: io::Result<()> = reserve.with_room(|| Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
