//! The bytes of one simulated file: what the process sees, and what a power cut would leave of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use super::random::Random;

/// What the disk keeps or loses as one piece, in bytes.
pub(super) const PAGE_BYTES: u64 = 4096;
const PAGE_LEN: usize = PAGE_BYTES as usize;
/// What the disk never tears, in bytes.
const SECTOR_LEN: usize = 512;

type Page = [u8; PAGE_LEN];
static ZEROS: Page = [0; PAGE_LEN];

/// Bytes in pages. A page that is not there reads as zero; equal pages are shared between the images of a disk.
///
/// Bytes of a page at or beyond `len` are zero, so that growing shows zeros.
#[derive(Clone, Debug, Default)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Arc<Page>>,
}

impl Content {
    fn page(&self, number: u64) -> &Page {
        self.pages.get(&number).map_or(&ZEROS, |page| page)
    }

    fn page_mut(&mut self, number: u64) -> &mut Page {
        Arc::make_mut(self.pages.entry(number).or_insert_with(|| Arc::new(ZEROS)))
    }

    fn take_page(&mut self, number: u64, from: &Self) {
        match from.pages.get(&number) {
            Some(page) => self.pages.insert(number, Arc::clone(page)),
            None => self.pages.remove(&number),
        };
    }

    fn write(&mut self, bytes: &[u8], offset: u64) {
        for (number, within, part) in pieces(offset, bytes.len()) {
            self.page_mut(number)[within].copy_from_slice(&bytes[part]);
        }
        if !bytes.is_empty() {
            self.len = self.len.max(offset + bytes.len() as u64);
        }
    }

    fn read(&self, buf: &mut [u8], offset: u64) {
        for (number, within, part) in pieces(offset, buf.len()) {
            buf[part].copy_from_slice(&self.page(number)[within]);
        }
    }

    fn set_len(&mut self, len: u64) {
        self.pages.split_off(&len.div_ceil(PAGE_BYTES));
        let kept = (len % PAGE_BYTES) as usize;
        if kept > 0 && self.pages.contains_key(&(len / PAGE_BYTES)) {
            self.page_mut(len / PAGE_BYTES)[kept..].fill(0);
        }
        self.len = len;
    }

    fn flip(&mut self, byte: u64, bit: u32) {
        if byte < self.len {
            self.page_mut(byte / PAGE_BYTES)[(byte % PAGE_BYTES) as usize] ^= 1 << (bit % 8);
        }
    }
}

/// The pages that `len` bytes at `offset` touch: number, range in the page, range in the bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let position = offset + done as u64;
        let start = (position % PAGE_BYTES) as usize;
        let count = (PAGE_LEN - start).min(len - done);
        let piece = (position / PAGE_BYTES, start..start + count, done..done + count);
        done += count;
        (count > 0).then_some(piece)
    })
}

/// A file: live and durable content, and what differs between them.
#[derive(Clone, Debug)]
pub(super) struct FileNode {
    live: Content,
    durable: Content,
    /// Pages written since the last sync. After a failed sync none: Linux marks them clean, though the disk lacks them.
    unsynced: BTreeSet<u64>,
    /// The lowest length below the durable one that the file was cut to since the last sync.
    cut_to: Option<u64>,
    /// When the content last changed.
    pub(super) modified: SystemTime,
    /// Open handles; a file without a name lives as long as it has some.
    pub(super) handles: u32,
    /// Whether the file has a name that the process sees.
    pub(super) linked: bool,
    /// Bytes that the disk does not give.
    pub(super) unreadable: Option<Range<u64>>,
}

impl FileNode {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            live: Content::default(),
            durable: Content::default(),
            unsynced: BTreeSet::new(),
            cut_to: None,
            modified: now,
            handles: 0,
            linked: false,
            unreadable: None,
        }
    }

    /// Whether the disk gives the `len` bytes at `offset`.
    pub(super) fn is_readable(&self, offset: u64, len: u64) -> bool {
        self.unreadable.as_ref().is_none_or(|bytes| offset + len <= bytes.start || bytes.end <= offset)
    }

    pub(super) fn len(&self) -> u64 {
        self.live.len
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.live.len.next_multiple_of(PAGE_BYTES)
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) {
        self.live.read(buf, offset);
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        self.live.write(bytes, offset);
        self.unsynced.extend(pieces(offset, bytes.len()).map(|(number, ..)| number));
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.durable.len {
            self.cut_to = Some(self.cut_to.map_or(len, |lowest| lowest.min(len)));
        }
        if len < self.live.len {
            // The end of the last page is written over with zeros.
            self.unsynced.extend((!len.is_multiple_of(PAGE_BYTES)).then_some(len / PAGE_BYTES));
        }
        self.live.set_len(len);
    }

    pub(super) fn sync(&mut self) {
        if let Some(len) = self.cut_to.take() {
            self.durable.set_len(len);
        }
        for number in std::mem::take(&mut self.unsynced) {
            self.durable.take_page(number, &self.live);
        }
        self.durable.set_len(self.live.len);
    }

    /// What a failed sync does: the pages count as clean from now on, and only writing them again saves them.
    pub(super) fn fail_sync(&mut self) {
        self.unsynced.clear();
    }

    /// As [`FileNode::fail_sync`], and all but the first of the pages leave the memory: what is read there next comes
    /// from the disk.
    pub(super) fn fail_sync_and_evict(&mut self) {
        for number in std::mem::take(&mut self.unsynced).into_iter().skip(1) {
            self.live.take_page(number, &self.durable);
        }
        self.live.set_len(self.live.len);
    }

    /// Replaces the content on the disk and in memory.
    pub(super) fn set_image(&mut self, bytes: &[u8]) {
        self.live = Content::default();
        self.live.write(bytes, 0);
        self.settle_on(self.live.clone());
    }

    pub(super) fn flip(&mut self, byte: u64, bit: u32) {
        self.live.flip(byte, bit);
        self.durable.flip(byte, bit);
    }

    /// Becomes what a power cut leaves.
    pub(super) fn lose_power(&mut self, random: &mut Random) {
        let image = self.image_after_power_cut(random);
        self.settle_on(image);
    }

    fn settle_on(&mut self, image: Content) {
        self.live = image.clone();
        self.durable = image;
        self.unsynced.clear();
        self.cut_to = None;
    }

    fn image_after_power_cut(&self, random: &mut Random) -> Content {
        let mut image = self.durable.clone();
        let lost_cut = self.cut_to.filter(|_| random.below(2) == 0);
        if let (Some(len), None) = (self.cut_to, lost_cut) {
            image.set_len(len);
        }
        for &number in &self.unsynced {
            // The disk blocks that a lost cut would have freed are not those that were written since.
            if lost_cut.is_none_or(|len| number * PAGE_BYTES < len) {
                keep_lose_or_tear(&mut image, &self.live, number, random);
            }
        }
        let len = if lost_cut.is_some() { image.len } else { length_between(image.len, self.live.len, random) };
        image.set_len(len);
        image
    }
}

fn keep_lose_or_tear(image: &mut Content, live: &Content, number: u64, random: &mut Random) {
    match random.below(3) {
        0 => image.take_page(number, live),
        1 => {}
        _ => {
            let at = (1 + random.below((PAGE_LEN / SECTOR_LEN) as u64 - 1) as usize) * SECTOR_LEN;
            let new = if random.below(2) == 0 { 0..at } else { at..PAGE_LEN };
            image.page_mut(number)[new.clone()].copy_from_slice(&live.page(number)[new]);
        }
    }
}

/// The growth from `old` to `new` was lost, kept, or had come as far as the end of some page.
fn length_between(old: u64, new: u64, random: &mut Random) -> u64 {
    match random.below(3) {
        0 => old,
        1 => new,
        _ => {
            let pages = (new / PAGE_BYTES).saturating_sub(old / PAGE_BYTES);
            ((old / PAGE_BYTES + random.below(pages + 1)) * PAGE_BYTES).max(old)
        }
    }
}
