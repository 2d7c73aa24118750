//! Sealed segments that are open for reading, a bounded number over the whole store.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;

use super::{BatchWalk, DenseWalk, FileKind, Met, SealedSegment, SegmentFacts, SegmentKey, path_of};
use crate::fs::{self, File, Fs, OpenMode};
use crate::index::Index;
use crate::limits::{BATCH_BYTES_MAX, HEADER_SCAN_BYTES};

/// A sealed segment's file and index.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) file: Arc<dyn File>,
    pub(crate) index: Index,
    edition: u32,
}

impl OpenSegment {
    /// Opens the segment's file and its index; a missing or damaged index is rebuilt in memory.
    pub(crate) fn open(fs: &dyn Fs, dir: &Path, segment: &SealedSegment, interval_bytes: u32) -> io::Result<Self> {
        let path = path_of(dir, segment.base, FileKind::Log);
        let file = fs.open(&path, OpenMode::Read, segment.len_bytes)?;
        let index = match read_index(fs, dir, segment) {
            Some(index) => index,
            None => rebuild_index(&*file, segment, interval_bytes)?,
        };
        Ok(Self { file, index, edition: segment.edition })
    }
}

fn read_index(fs: &dyn Fs, dir: &Path, segment: &SealedSegment) -> Option<Index> {
    // An entry per batch at the most, 16 bytes for 61 and more.
    let limit_bytes = segment.len_bytes.max(BATCH_BYTES_MAX as u64);
    let bytes = fs::read_whole(fs, &path_of(dir, segment.base, FileKind::Index), limit_bytes).ok()?;
    Index::decode(&bytes, segment.base, segment.len_bytes).ok()
}

/// Walks the headers, over damage where there is some.
fn rebuild_index(file: &dyn File, segment: &SealedSegment, interval_bytes: u32) -> io::Result<Index> {
    let mut index = Index::default();
    let mut facts = SegmentFacts::new();
    let headers = BatchWalk::new(file, 0, segment.len_bytes).with_window(HEADER_SCAN_BYTES);
    let mut walk = DenseWalk::new(headers, segment.base, segment.next);
    while let Some(met) = walk.next()? {
        let Met::Batch(step) = met else { continue };
        if let Some(entry) = facts.note_step(&[], &step, segment.base, interval_bytes) {
            index.push(entry);
        }
    }
    Ok(index)
}

/// The open sealed segments of a store, the least recently used closed first.
#[derive(Debug)]
pub(crate) struct OpenSegments {
    capacity: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    open: HashMap<SegmentKey, (Arc<OpenSegment>, u64)>,
    clock: u64,
}

impl OpenSegments {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, inner: Mutex::new(Inner::default()) }
    }

    /// The open segment, if it is open in this edition.
    pub(crate) fn get(&self, key: &SegmentKey, edition: u32) -> Option<Arc<OpenSegment>> {
        let mut inner = self.inner.lock();
        inner.clock += 1;
        let clock = inner.clock;
        inner.open.get_mut(key).filter(|(segment, _)| segment.edition == edition).map(|(segment, used)| {
            *used = clock;
            Arc::clone(segment)
        })
    }

    /// Keeps an opened segment, closing the least recently used one beyond the capacity.
    pub(crate) fn insert(&self, key: SegmentKey, segment: Arc<OpenSegment>) {
        let mut inner = self.inner.lock();
        inner.clock += 1;
        let clock = inner.clock;
        inner.open.insert(key, (segment, clock));
        if inner.open.len() > self.capacity {
            let oldest = inner.open.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            oldest.map(|key| inner.open.remove(&key));
        }
    }

    /// Forgets the segments of a topic that was removed.
    pub(crate) fn remove_topic(&self, topic: Uuid) {
        self.inner.lock().open.retain(|(partition, _), _| partition.topic != topic);
    }

    /// Forgets a segment that was removed from the log.
    pub(crate) fn remove(&self, key: &SegmentKey) {
        self.inner.lock().open.remove(key);
    }
}
