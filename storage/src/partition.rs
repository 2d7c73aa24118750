//! A partition: one append-only log, its producers and its tail.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use event_listener::{Event, EventListener};
use parking_lot::{Mutex, RwLock};

use crate::batch::CheckedBatch;
use crate::batch::header::HEADER_BYTES;
use crate::checkpoint::{Checkpoint, CheckpointFile};
use crate::config::LogConfig;
use crate::error::{AppendError, FlushError, Stopped};
use crate::flush::Flusher;
use crate::fs::{self, File, Fs, Lock, OpenMode};
use crate::limits::{BATCH_BYTES_MAX, RESERVE_BYTES_MIN, SEALED_UNFLUSHED_MAX, SNAPSHOTS_UNFLUSHED_BYTES_MAX};
use crate::offset::{LeaderEpoch, Offset, PartitionId};
use crate::producer::{Producers, Verdict};
use crate::progress::{FlushProgress, Published};
use crate::reserve::Reserve;
use crate::retention::is_older;
use crate::segment::{ActiveSegment, FileKind, OpenSegments, Seal, SealedSegment, SegmentFacts, path_of};

mod compact;
mod durable;
mod maintain;
mod names;
mod read;
mod recover;
mod scrub;
mod space;

pub use compact::CompactionOutcome;
pub use read::{ColdRead, ReadOutcome, ReadStart};
pub use recover::{Cut, OffsetRange, RecoveryReport};
pub(crate) use recover::{Place, Recovered, newest_evidence, recover};
pub use scrub::{Scrub, ScrubSlice};
use space::Ahead;

/// What all partitions of a store share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) fs: Arc<dyn Fs>,
    pub(crate) epoch: LeaderEpoch,
    pub(crate) flusher: Arc<Flusher>,
    pub(crate) open_segments: OpenSegments,
    pub(crate) hot_bytes: u64,
    pub(crate) reserve: Arc<Reserve>,
    pub(crate) compaction_keys_bytes: usize,
    /// The data directory is ours as long as anybody may write to it.
    pub(crate) _lock: Box<dyn Lock>,
}

/// What an append may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    /// What is free on the disk.
    Free,
    /// The reserve too.
    Reserved,
}

/// Where a batch went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendOutcome {
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Offset of its last record.
    pub last_offset: Offset,
    /// First offset of the partition.
    pub log_start: Offset,
    /// Its greatest timestamp as appended, ms since 1970.
    pub timestamp_ms: i64,
    /// The batch had been appended before, by a try of the same idempotent producer; all of this is of that try.
    pub duplicate: bool,
}

/// One partition's log. Appends and flushes take turns; reads disturb neither.
#[derive(Debug)]
pub struct Partition {
    id: PartitionId,
    dir: PathBuf,
    config: RwLock<LogConfig>,
    shared: Arc<Shared>,
    /// What readers see. Changed only by a roll, by retention and by compaction.
    files: RwLock<LogFiles>,
    /// The compaction lock: one compaction at a time.
    cleaner: Mutex<compact::Cleaner>,
    /// The retention lock: one retention at a time. Segments below the log start whose files are still to be removed,
    /// oldest first.
    condemned: Mutex<Vec<Offset>>,
    /// The lock of syncs of the directory; nothing is waited for under it.
    names: Mutex<()>,
    /// The append lock.
    writer: Mutex<Writer>,
    /// The flush lock: one flush at a time.
    checkpoint: Mutex<CheckpointFile>,
    log_start: AtomicI64,
    tail: Published,
    tail_moved: Event,
    flushing: FlushProgress,
    /// How many flushes there were.
    flushes: AtomicU64,
    /// How many segments were sealed since the last flush, for whoever does not hold the append lock.
    sealed_unflushed: AtomicUsize,
    /// How many bytes were appended since the last flush began. Written under the append lock.
    unflushed_bytes: AtomicU64,
    stopped: OnceLock<Stopped>,
    /// Partitions that the next flush makes durable before this one: see [`Partition::flush_first`].
    flush_first: Mutex<HashMap<PartitionId, (Arc<Self>, Offset)>>,
}

#[derive(Debug)]
struct LogFiles {
    /// Oldest first, without gaps between one's `next` and the following one's `base`, unless offsets were lost to
    /// damage.
    sealed: Vec<Arc<SealedSegment>>,
    active: Arc<ActiveSegment>,
}

/// What the appender knows; guarded by the append lock.
#[derive(Debug)]
struct Writer {
    active: Arc<ActiveSegment>,
    facts: SegmentFacts,
    next: Offset,
    reserved_bytes: u64,
    reserve_step_bytes: u64,
    /// What was done ahead of the tail the last time; the published length and the number of flushes then.
    ahead: Ahead,
    published_at_reserve: u64,
    flushes_at_reserve: u64,
    producers: Producers,
    /// Sealed since the last flush, oldest first.
    unflushed: Vec<UnflushedSeal>,
    /// A segment file was made since the last flush: its name is not durable yet, and nothing in it is acknowledged
    /// before it is.
    names_dirty: bool,
    /// What a flush tries once more, and nobody waits for.
    sides_due: SidesDue,
    /// Half a batch stands behind the published length and is to be cut off before anything is written there.
    cut_due: bool,
}

/// What a flush writes for a segment that was rolled since the last one.
#[derive(Debug)]
struct UnflushedSeal {
    active: Arc<ActiveSegment>,
    seal: Seal,
    /// The producers at the roll, encoded; belongs to the segment that follows. Empty when newer ones took its place.
    snapshot: Vec<u8>,
}

/// What a want of descriptors has left to do beside the log.
#[derive(Debug, Default)]
struct SidesDue {
    /// Names were made or removed that are not durable yet, none of them that of a new segment.
    names: bool,
    /// Of flushed segments, oldest first.
    seals: VecDeque<Seal>,
    /// The newest producers, encoded, and the segment that they belong to.
    snapshot: Option<(Offset, Vec<u8>)>,
}

impl LogFiles {
    /// Whether a segment begins there.
    fn begins_at(&self, base: Offset) -> bool {
        self.active.base == base || self.sealed.binary_search_by_key(&base, |segment| segment.base).is_ok()
    }

    /// Whether what `segment` held is in another file now.
    fn was_replaced(&self, segment: &Arc<SealedSegment>) -> bool {
        let at = self.sealed.partition_point(|other| other.next <= segment.base);
        self.sealed.get(at).is_some_and(|found| found.base <= segment.base && !Arc::ptr_eq(found, segment))
    }
}

impl Partition {
    /// Takes over what recovery found.
    pub(crate) fn new(id: PartitionId, dir: PathBuf, config: LogConfig, shared: Arc<Shared>, found: Recovered) -> Self {
        let Recovered { sealed, active, facts, next, flushed, log_start, condemned, producers, checkpoint } = found;
        let active = Arc::new(active);
        let writer = Writer {
            active: Arc::clone(&active),
            facts,
            next,
            reserved_bytes: active.published(),
            reserve_step_bytes: RESERVE_BYTES_MIN,
            ahead: Ahead::Reserve,
            published_at_reserve: active.published(),
            flushes_at_reserve: 0,
            producers,
            unflushed: Vec::new(),
            names_dirty: false,
            sides_due: SidesDue::default(),
            cut_due: false,
        };
        Self {
            id,
            dir,
            config: RwLock::new(config),
            shared,
            files: RwLock::new(LogFiles { sealed, active }),
            cleaner: Mutex::default(),
            condemned: Mutex::new(condemned),
            names: Mutex::default(),
            writer: Mutex::new(writer),
            checkpoint: Mutex::new(checkpoint),
            log_start: AtomicI64::new(log_start.get()),
            tail: Published::new(next.get().cast_unsigned()),
            tail_moved: Event::new(),
            flushing: FlushProgress::new(flushed.get().cast_unsigned()),
            flushes: AtomicU64::new(0),
            sealed_unflushed: AtomicUsize::new(0),
            unflushed_bytes: AtomicU64::new(0),
            stopped: OnceLock::new(),
            flush_first: Mutex::default(),
        }
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> PartitionId {
        self.id
    }

    /// The epoch under which this process appends.
    #[must_use]
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.shared.epoch
    }

    /// The first offset that can be read, or the tail when there is none.
    #[must_use]
    pub fn log_start(&self) -> Offset {
        offset_of(self.log_start.load(Ordering::Acquire))
    }

    /// One after the last offset: what the next record gets.
    #[must_use]
    pub fn tail(&self) -> Offset {
        offset_of(self.tail.get().cast_signed())
    }

    /// Every record below is on stable storage.
    #[must_use]
    pub fn flushed(&self) -> Offset {
        offset_of(self.flushing.flushed().cast_signed())
    }

    /// Notified at each append. Listen first, look at [`Partition::tail`] then, wait last.
    #[must_use]
    pub fn listen_tail(&self) -> EventListener {
        self.tail_moved.listen()
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> LogConfig {
        *self.config.read()
    }

    /// Changes the settings; they apply from the next append, roll or retention on.
    pub fn set_config(&self, config: LogConfig) {
        *self.config.write() = config;
    }

    /// Why the partition takes no writes, if it takes none.
    #[must_use]
    pub fn stopped(&self) -> Option<&Stopped> {
        self.stopped.get()
    }

    /// Appends `batch` behind the tail and publishes it. On return it is in the page cache: it survives the death of
    /// the process. [`Partition::flush`] or [`Partition::request_flush`] makes it durable; otherwise the flush interval
    /// does.
    ///
    /// `now_ms` is the broker's clock, ms since 1970.
    ///
    /// # Errors
    /// Nothing was appended: see [`AppendError`].
    pub fn append(self: &Arc<Self>, batch: &CheckedBatch, now_ms: i64) -> Result<AppendOutcome, AppendError> {
        let outcome = self.append_within(batch, now_ms, Space::Free);
        if matches!(outcome, Err(AppendError::DiskFull)) {
            self.shared.reserve.met_full_disk();
        }
        outcome
    }

    /// As [`Partition::append`], for what must go on when the disk is full: takes what it needs from the reserve
    /// ([`StoreConfig::reserve_bytes`](crate::StoreConfig::reserve_bytes)). For little, and seldom.
    ///
    /// # Errors
    /// As [`Partition::append`]; [`AppendError::DiskFull`] when the reserve is spent too.
    pub fn append_reserved(self: &Arc<Self>, batch: &CheckedBatch, now_ms: i64) -> Result<AppendOutcome, AppendError> {
        loop {
            match self.append_within(batch, now_ms, Space::Reserved) {
                Err(AppendError::DiskFull) if self.shared.reserve.draw() => {}
                other => return other,
            }
        }
    }

    fn append_within(
        self: &Arc<Self>,
        batch: &CheckedBatch,
        now_ms: i64,
        space: Space,
    ) -> Result<AppendOutcome, AppendError> {
        let size_bytes = batch.bytes().len();
        if size_bytes > BATCH_BYTES_MAX {
            return Err(AppendError::TooLarge { size_bytes, limit_bytes: BATCH_BYTES_MAX });
        }
        if self.sealed_unflushed.load(Ordering::Relaxed) >= SEALED_UNFLUSHED_MAX {
            // Before the append lock, which a flush takes.
            self.flush().map_err(|FlushError::Stopped(stopped)| stopped)?;
        }
        let config = self.config();
        let mut writer = self.writer.lock();
        if let Some(stopped) = self.stopped() {
            return Err(stopped.clone().into());
        }
        if let Verdict::Duplicate { base_offset, last_offset, timestamp_ms } = writer.producers.check(batch.header())? {
            let log_start = self.log_start();
            return Ok(AppendOutcome { base_offset, last_offset, log_start, timestamp_ms, duplicate: true });
        }
        if space == Space::Free && self.shared.reserve.is_full() {
            return Err(AppendError::DiskFull);
        }
        if next_offset(writer.next, batch).is_none() {
            return Err(AppendError::OutOfOffsets);
        }
        if self.must_roll(&writer, batch, &config, now_ms) {
            self.roll(&mut writer, &config, now_ms)?;
        }
        let base_offset = writer.next;
        self.write(&mut writer, batch)?;
        self.publish(&mut writer, batch, &config, now_ms);
        let next = writer.next;
        drop(writer);
        self.tail_moved.notify(usize::MAX);
        if self.flushing.ask_interval() {
            self.shared.flusher.flush_later(self);
        }
        let last_offset = Offset::new(next.get() - 1).expect("S2: a batch has at least one record");
        let timestamp_ms = batch.header().max_timestamp_ms;
        Ok(AppendOutcome { base_offset, last_offset, log_start: self.log_start(), timestamp_ms, duplicate: false })
    }

    fn must_roll(&self, writer: &Writer, batch: &CheckedBatch, config: &LogConfig, now_ms: i64) -> bool {
        let last_delta =
            writer.next.since(writer.active.base) + u64::from(batch.header().last_offset_delta.unsigned_abs());
        if last_delta > u64::from(u32::MAX) {
            // Also of an empty one: what it had may have been lost.
            return true;
        }
        let published = writer.active.published();
        if published == 0 {
            return false;
        }
        let full = published + batch.bytes().len() as u64 > u64::from(config.segment_bytes);
        let old = writer.facts.first_append_ms.is_some_and(|first| is_older(first, now_ms, config.segment_age));
        full || old
    }

    /// Seals the active segment and starts the next one. Syncs and side files are left to the next flush.
    fn roll(&self, writer: &mut Writer, config: &LogConfig, now_ms: i64) -> Result<(), AppendError> {
        let published = writer.active.published();
        let base = writer.next;
        let capacity_bytes = u64::from(config.segment_bytes);
        // A cut of a file that is mapped, as in `take_back` and `close`: no reader goes beyond the published length. First,
        // so that a roll that fails leaves no segment behind into whose offsets the log may go on here.
        writer.reserved_bytes = published;
        writer.active.file.truncate(published).map_err(|cause| self.write_failed("sealing a segment", cause))?;
        writer.cut_due = false;
        let file = create_segment(&*self.shared.fs, &self.dir, base, capacity_bytes).map_err(|cause| {
            // Nothing was begun.
            if fs::is_out_of_descriptors(&cause) {
                return AppendError::NoDescriptors(Arc::new(cause));
            }
            self.write_failed("starting a segment", cause)
        })?;
        writer.facts.ended(now_ms);
        let seal = writer.facts.seal(writer.active.base, base, published);
        let sealed = Arc::new(SealedSegment::sealed(&writer.active, seal));
        let snapshot = writer.producers.encode_snapshot(base);
        let sealed_active = std::mem::replace(
            &mut writer.active,
            Arc::new(ActiveSegment::new(base, file, crate::index::Index::default(), 0)),
        );
        let held_bytes: usize = writer.unflushed.iter().map(|sealed| sealed.snapshot.len()).sum();
        if held_bytes + snapshot.len() > SNAPSHOTS_UNFLUSHED_BYTES_MAX {
            writer.unflushed.iter_mut().for_each(|sealed| sealed.snapshot = Vec::new());
        }
        writer.unflushed.push(UnflushedSeal { active: sealed_active, seal, snapshot });
        self.sealed_unflushed.store(writer.unflushed.len(), Ordering::Relaxed);
        writer.names_dirty = true;
        writer.facts = SegmentFacts::new();
        (writer.reserved_bytes, writer.published_at_reserve) = (0, 0);
        writer.reserve_step_bytes = RESERVE_BYTES_MIN;
        let mut files = self.files.write();
        files.sealed.push(sealed);
        files.active = Arc::clone(&writer.active);
        Ok(())
    }

    fn write(&self, writer: &mut Writer, batch: &CheckedBatch) -> Result<(), AppendError> {
        if writer.cut_due {
            self.cut_back(writer)?;
        }
        let position = writer.active.published();
        let end = position + batch.bytes().len() as u64;
        if end > writer.reserved_bytes {
            self.reserve(writer, end)?;
        }
        let (head, rest) = batch.write_parts(writer.next, self.shared.epoch);
        let parts = [IoSlice::new(&head), IoSlice::new(rest)];
        match writer.active.file.write_at(&parts, position) {
            Err(cause) if cause.kind() == io::ErrorKind::StorageFull => self.take_back(writer),
            other => other.map_err(|cause| self.write_failed("appending", cause)),
        }
    }

    fn publish(&self, writer: &mut Writer, batch: &CheckedBatch, config: &LogConfig, now_ms: i64) {
        let position = writer.active.published();
        let header = batch.header();
        let base = writer.next;
        let relative_offset =
            u32::try_from(base.since(writer.active.base)).expect("must_roll keeps offsets in 32 bits");
        let position_u32 = u32::try_from(position).expect("limits keep positions in 32 bits");
        let (head, rest) = batch.write_parts(base, self.shared.epoch);
        let mut stored_header = [0; HEADER_BYTES];
        stored_header[..head.len()].copy_from_slice(&head);
        stored_header[head.len()..].copy_from_slice(&rest[..HEADER_BYTES - head.len()]);
        let interval_bytes = config.index_interval_bytes;
        let entry =
            writer.facts.note(&stored_header, relative_offset, position_u32, header.max_timestamp_ms, interval_bytes);
        if let Some(entry) = entry {
            writer.active.push_index(entry);
        }
        writer.facts.appended(now_ms);
        writer.producers.record(header, base, now_ms);
        let next = next_offset(base, batch).expect("it was looked before the write");
        assert!(next > writer.next, "S2: offsets only grow");
        writer.next = next;
        let size_bytes = batch.bytes().len() as u64;
        writer.active.publish(position + size_bytes);
        let unflushed_bytes = self.unflushed_bytes.load(Ordering::Relaxed);
        self.unflushed_bytes.store(unflushed_bytes + size_bytes, Ordering::Relaxed);
        self.tail.move_to(next.get().cast_unsigned());
    }

    /// A full disk passes; anything else stops the partition, since nobody knows what reached the file.
    fn write_failed(&self, during: &'static str, cause: io::Error) -> AppendError {
        if cause.kind() == io::ErrorKind::StorageFull {
            return AppendError::DiskFull;
        }
        AppendError::Stopped(self.stop(during, cause))
    }

    /// Takes no more writes until the process has recovered the log anew.
    fn stop(&self, during: &'static str, cause: io::Error) -> Stopped {
        let stopped = self.stopped.get_or_init(|| Stopped { partition: self.id, during, cause: Arc::new(cause) });
        tracing::error!(partition = %self.id, error = %stopped, "partition stopped");
        self.flushing.notify();
        stopped.clone()
    }

    fn checkpoint_at(&self, flushed: Offset, active: &ActiveSegment, position: u64) -> Checkpoint {
        Checkpoint { flushed, segment: active.base, position, log_start: self.log_start() }
    }
}

/// One after the last offset of a batch that is appended at `base`; `None` beyond 2^63 - 1.
fn next_offset(base: Offset, batch: &CheckedBatch) -> Option<Offset> {
    base.checked_add(u64::from(batch.header().last_offset_delta.unsigned_abs()) + 1)
}

fn offset_of(value: i64) -> Offset {
    Offset::new(value).expect("offsets of a log are not negative")
}

/// Opens the file of a new, empty active segment. One that is there was left by a roll that failed half-way, or by a
/// recovery that took its records for lost, and holds nothing; what holds something is nobody's to write over.
fn create_segment(fs: &dyn Fs, dir: &Path, base: Offset, capacity_bytes: u64) -> io::Result<Arc<dyn File>> {
    let path = path_of(dir, base, FileKind::Log);
    match fs.open(&path, OpenMode::CreateNew, capacity_bytes) {
        Err(found) if found.kind() == io::ErrorKind::AlreadyExists => {
            let file = fs.open(&path, OpenMode::Write, capacity_bytes)?;
            if file.is_empty()? { Ok(file) } else { Err(found) }
        }
        other => other,
    }
}
