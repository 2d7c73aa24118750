//! Read-only maps of log files: the one place with `unsafe`.
//!
//! A [`Map`] covers a file's whole capacity from the start, so that growing the file needs no new map. Pages beyond
//! the end of the file may be mapped but not touched: a load there raises SIGBUS. Two rules keep every load inside:
//!
//! 1. [`Map::slice`] and [`Map::resident`] are only asked for ranges below the published length of an append-only file.
//!    Those bytes never change and the file is never cut below them while the map lives (invariants S1 and S6).
//! 2. The range is in memory, as `mincore` tells, or is faulted in by `MADV_POPULATE_READ` first, which answers an
//!    error where a load would raise SIGBUS (a bad sector, a file cut by somebody else). Populating what is mapped
//!    already goes over each page, 150 us for 4 MiB; to ask takes 2 us.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::process::geteuid;

/// A shared read-only map of one file.
#[derive(Debug)]
pub(crate) struct Map {
    raw: MmapRaw,
    /// Whether the kernel tells the truth: about files of others that we may not write, it says that all of them is
    /// there.
    tells_residence: bool,
}

impl Map {
    /// Maps the first `capacity_bytes` of `file`, also where the file is shorter today.
    pub(crate) fn new(file: &File, capacity_bytes: usize) -> io::Result<Self> {
        let raw = MmapOptions::new().len(capacity_bytes).map_raw_read_only(file)?;
        let tells_residence = file.metadata().is_ok_and(|metadata| metadata.uid() == geteuid().as_raw());
        Ok(Self { raw, tells_residence })
    }

    /// The bytes of `range`, as [`Map::slice`], if all of them are in memory now.
    pub(crate) fn resident(self: &Arc<Self>, range: Range<usize>) -> Option<Bytes> {
        self.is_resident(range.clone()).then(|| self.bytes(range))
    }

    /// Whether every page of `range` is in memory now, so that no load in it waits for the disk.
    fn is_resident(&self, range: Range<usize>) -> bool {
        let inside = range.start < range.end && range.end <= self.capacity_bytes();
        self.tells_residence && inside && residence::is_whole(&self.raw, range)
    }

    /// How many bytes are mapped.
    pub(crate) fn capacity_bytes(&self) -> usize {
        self.raw.len()
    }

    /// The bytes of `range`, which the caller knows to be below the published length, faulted in.
    ///
    /// # Errors
    /// The kernel could not bring the pages in (EIO, EFAULT, ENOMEM), or is too old to be asked (EINVAL, before Linux
    /// 5.14): the caller reads with `pread` instead.
    pub(crate) fn slice(self: &Arc<Self>, range: Range<usize>) -> io::Result<Bytes> {
        if range.start > range.end || range.end > self.capacity_bytes() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = range.end - range.start;
        if len == 0 {
            return Ok(Bytes::new());
        }
        if !self.is_resident(range.clone()) {
            populate(&self.raw, range.start, len)?;
        }
        Ok(self.bytes(range))
    }

    /// `range` lies inside of the map and was looked at.
    fn bytes(self: &Arc<Self>, range: Range<usize>) -> Bytes {
        Bytes::from_owner(MapSlice { map: Arc::clone(self), start: range.start, len: range.end - range.start })
    }
}

#[cfg(target_os = "linux")]
fn populate(raw: &MmapRaw, start: usize, len: usize) -> io::Result<()> {
    raw.advise_range(Advice::PopulateRead, start, len)
}

#[cfg(not(target_os = "linux"))]
fn populate(_raw: &MmapRaw, _start: usize, _len: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
mod residence {
    use std::ops::Range;

    use memmap2::MmapRaw;

    /// The smallest page there is.
    const PAGE_BYTES: usize = 4096;
    /// A multiple of every page size of the machine: the kernel takes addresses of whole pages only.
    const ALIGN_BYTES: usize = if cfg!(target_arch = "x86_64") { PAGE_BYTES } else { 64 << 10 };
    /// Asked for at a time: 4 MiB.
    const PAGES_MAX: usize = 1024;

    /// Whether all pages of `range`, which is not empty and lies inside of the map, are in memory.
    pub(super) fn is_whole(raw: &MmapRaw, range: Range<usize>) -> bool {
        let mut at = range.start / ALIGN_BYTES * ALIGN_BYTES;
        while at < range.end {
            let len = (range.end - at).min(PAGES_MAX * PAGE_BYTES);
            if !is_there(raw, at, len) {
                return false;
            }
            at += len;
        }
        true
    }

    fn is_there(raw: &MmapRaw, at: usize, len: usize) -> bool {
        // What is not written stays: larger pages are fewer.
        let mut pages = [1_u8; PAGES_MAX];
        let count = len.div_ceil(PAGE_BYTES);
        debug_assert!(count <= PAGES_MAX && at + len <= raw.len(), "asked for what is mapped, and no more than fits");
        // SAFETY: `at` is a multiple of the page size and `at + len` lies inside of the live mapping `raw`, so the
        // address is page-aligned and mapped. The kernel writes one byte for each page that begins in `len`, at most
        // `count` of them, which is no more than `pages` has. It reads and writes nothing else of ours.
        #[expect(unsafe_code, reason = "no crate has a safe call for it; argued above")]
        let answer = unsafe { libc::mincore(raw.as_mut_ptr().add(at).cast(), len, pages.as_mut_ptr()) };
        answer == 0 && pages[..count].iter().all(|page| page & 1 == 1)
    }
}

#[cfg(not(target_os = "linux"))]
mod residence {
    pub(super) const fn is_whole(_raw: &memmap2::MmapRaw, _range: std::ops::Range<usize>) -> bool {
        false
    }
}

/// Bytes of a map, which keep it alive (invariant S7).
struct MapSlice {
    map: Arc<Map>,
    start: usize,
    len: usize,
}

impl AsRef<[u8]> for MapSlice {
    fn as_ref(&self) -> &[u8] {
        let base = self.map.raw.as_ptr();
        // SAFETY: `Map::slice`, and `Map::resident` by `Map::is_resident`, checked start + len <= capacity, so the
        // range lies in one live mapping, which `self.map` keeps. `MmapRaw` never hands out a mutable view of a
        // read-only map. The bytes are initialised file content; they do not change and stay within the file for the
        // life of the slice, because callers ask only for ranges below the published length of a file that is only
        // appended to (module rule 1), and they were in memory or faulted in once (rule 2). u8 has no alignment.
        #[expect(unsafe_code, reason = "the only view into mapped memory; argued above")]
        unsafe {
            std::slice::from_raw_parts(base.add(self.start), self.len)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file_of(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn a_slice_shows_exactly_the_bytes_of_its_range() {
        let content: Vec<u8> = (0..20_000_u32).map(|i| (i % 251) as u8).collect();
        let map = Arc::new(Map::new(&file_of(&content), 1 << 20).unwrap());
        assert_eq!(map.slice(4_000..9_001).unwrap(), &content[4_000..9_001]);
        assert_eq!(map.slice(0..0).unwrap().len(), 0);
    }

    #[test]
    fn bytes_appended_after_mapping_are_seen_through_the_same_map() {
        let file = file_of(b"first");
        let map = Arc::new(Map::new(&file, 1 << 20).unwrap());
        let before = map.slice(0..5).unwrap();
        file.write_all_at(b" second", 5).unwrap();
        assert_eq!(map.slice(0..12).unwrap(), &b"first second"[..]);
        assert_eq!(before, &b"first"[..]);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test plays the operating system")]
    fn a_slice_outlives_the_map_handle_and_the_file_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"kept").unwrap();
        let map = Arc::new(Map::new(&File::open(&path).unwrap(), 4096).unwrap());
        let slice = map.slice(0..4).unwrap();
        drop(map);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(slice, &b"kept"[..]);
    }

    #[test]
    fn what_is_in_memory_is_told_page_by_page() {
        const PAGE: usize = 4096;
        let dir = tempfile::tempdir().unwrap();
        let file = File::options().read(true).write(true).create_new(true).open(dir.path().join("x")).unwrap();
        // More than is asked for at a time, and a part of a page.
        let len = 1500 * PAGE + 5;
        file.write_all_at(&vec![7; len], 0).unwrap();
        let map = Arc::new(Map::new(&file, 16 << 20).unwrap());
        assert!(map.is_resident(0..len) && map.is_resident(PAGE - 1..PAGE + 1));
        assert!(!map.is_resident(0..0) && !map.is_resident(0..(16 << 20) + 1));
        assert!(!map.is_resident(len - 1..len + PAGE), "a page beyond the end");
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        if map.is_resident(0..len) {
            println!("SKIP: what is not in memory: this file system is memory");
            return;
        }
        assert_eq!(map.slice(1400 * PAGE..1400 * PAGE + 9).unwrap(), &[7; 9][..]);
        assert!(map.is_resident(1400 * PAGE..1400 * PAGE + 9), "brought in by the slice");
    }

    #[test]
    fn a_range_beyond_the_file_is_an_error_and_no_signal() {
        let map = Arc::new(Map::new(&file_of(b"short"), 1 << 20).unwrap());
        assert!(map.slice(64 * 1024..64 * 1024 + 1).is_err());
        assert!(map.slice(0..(1 << 20) + 1).is_err());
    }
}
