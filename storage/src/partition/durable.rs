//! Making a partition durable.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use event_listener::EventListener;

use super::names::NamesError;
use super::{Partition, SidesDue, UnflushedSeal};
use crate::checkpoint::CheckpointFile;
use crate::error::{FlushError, Stopped};
use crate::fs;
use crate::limits::{
    DESCRIPTOR_WAIT, LATE_SEALS_A_FLUSH, SEALED_UNFLUSHED_WANTED, SEALS_DUE_MAX, UNFLUSHED_WANTED_BYTES,
};
use crate::offset::Offset;
use crate::segment::{ActiveSegment, FileKind, Seal, path_of};

/// What a flush has to make durable, taken under the append lock.
struct Pending {
    sealed: Vec<UnflushedSeal>,
    active: Arc<ActiveSegment>,
    position: u64,
    tail: Offset,
    names_dirty: bool,
}

impl Partition {
    /// Makes everything appended so far durable, on this thread, and answers the new flushed offset. If a flush is
    /// under way, waits for it and then flushes what came after it.
    ///
    /// # Errors
    /// [`FlushError::Stopped`]: nothing is known about what was appended since the last flush, and a retry would prove
    /// nothing (the kernel drops the dirty pages of a failed sync), so the partition stops.
    pub fn flush(&self) -> Result<Offset, FlushError> {
        self.flush_in_turn(&mut self.checkpoint.lock())
    }

    /// With the flush lock.
    fn flush_in_turn(&self, checkpoint: &mut CheckpointFile) -> Result<Offset, FlushError> {
        self.check_running()?;
        if self.flushed() == self.tail() {
            return Ok(self.flushed());
        }
        let pending = self.take_pending();
        // Behind the look at the tail: whoever appends a record names its sources before.
        self.flush_sources();
        self.sync(&pending)?;
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.flushing.reach(pending.tail.get().cast_unsigned());
        // Whoever waits need not wait for the rest. Only recovery reads the slots, and an older one is as true.
        let slot = self.checkpoint_at(pending.tail, &pending.active, pending.position);
        if let Err(cause) = checkpoint.write(slot) {
            tracing::warn!(partition = %self.id(), %cause, "flushed offset not noted");
        }
        self.write_side_files(&pending);
        Ok(pending.tail)
    }

    /// Asks the flush threads to flush soon. Together with [`Partition::listen_flush`] this is a flush to wait for
    /// without blocking.
    pub fn request_flush(self: &Arc<Self>) {
        if self.flushing.ask() {
            self.shared.flusher.flush_soon(self);
        }
    }

    /// Whether so much was appended, or so many segments were sealed, since the last flush that somebody should
    /// [ask](Partition::request_flush) for one. Bytes a start would have to write again; and behind four times as many
    /// segments, whoever appends flushes first.
    #[must_use]
    pub fn is_flush_due(&self) -> bool {
        self.unflushed_bytes.load(Ordering::Relaxed) >= UNFLUSHED_WANTED_BYTES
            || self.sealed_unflushed.load(Ordering::Relaxed) >= SEALED_UNFLUSHED_WANTED
    }

    /// Notified when a flush ended, well or badly. Listen first, look at [`Partition::flushed`] and
    /// [`Partition::stopped`] then, wait last.
    #[must_use]
    pub fn listen_flush(&self) -> EventListener {
        self.flushing.listen()
    }

    /// Waits, without blocking a thread, until every record below `offset` is durable.
    ///
    /// # Errors
    /// [`FlushError::Stopped`]: it will never be.
    pub async fn flushed_to(self: &Arc<Self>, offset: Offset) -> Result<(), FlushError> {
        let ask = || self.request_flush();
        let check = || self.check_running().map_err(FlushError::from);
        self.flushing.wait(offset.get().cast_unsigned(), ask, check).await
    }

    /// A flush thread's turn.
    pub(crate) fn flush_from_queue(&self) {
        let mut checkpoint = self.checkpoint.lock();
        // Not before it is its turn: whoever asks while another flush runs asks for this one, and takes no further
        // thread to wait here.
        self.flushing.begin();
        if let Err(error) = self.flush_in_turn(&mut checkpoint) {
            tracing::debug!(partition = %self.id(), %error, "flush refused");
        }
    }

    /// The flush interval of what was appended has passed.
    pub(crate) fn interval_over(self: &Arc<Self>, flush_soon: impl FnOnce(&Arc<Self>)) {
        if self.flushing.interval_over(|| self.tail.get()) {
            flush_soon(self);
        }
    }

    /// Says that a record about to be appended here speaks of what `source` holds below `offset`: the flush that makes
    /// the record durable makes that durable before (invariant S8). Call it before the append. `source` must not wait
    /// for this partition in turn.
    pub fn flush_first(&self, source: &Arc<Self>, offset: Offset) {
        debug_assert!(source.id() != self.id(), "a partition does not wait for itself");
        if source.flushed() >= offset {
            return;
        }
        let mut sources = self.flush_first.lock();
        let (_, reached) = sources.entry(source.id()).or_insert_with(|| (Arc::clone(source), offset));
        *reached = offset.max(*reached);
    }

    /// A source that has stopped will not become durable any more. What is said of it then is set back at the next
    /// start, when its tail is known; everything else that is appended here must not suffer.
    fn flush_sources(&self) {
        let sources = std::mem::take(&mut *self.flush_first.lock());
        for (source, offset) in sources.into_values() {
            if source.flushed() >= offset {
                continue;
            }
            if let Err(error) = source.flush() {
                tracing::error!(partition = %self.id(), %error, "record appended about data that did not become durable");
            }
        }
    }

    pub(super) fn check_running(&self) -> Result<(), Stopped> {
        self.stopped().map_or(Ok(()), |stopped| Err(stopped.clone()))
    }

    fn take_pending(&self) -> Pending {
        let mut writer = self.writer.lock();
        self.sealed_unflushed.store(0, Ordering::Relaxed);
        self.unflushed_bytes.store(0, Ordering::Relaxed);
        Pending {
            sealed: std::mem::take(&mut writer.unflushed),
            active: Arc::clone(&writer.active),
            position: writer.active.published(),
            tail: writer.next,
            names_dirty: std::mem::take(&mut writer.names_dirty),
        }
    }

    /// Oldest bytes first: at no moment is a later byte durable as the only one. One failure and nothing of it counts
    /// as flushed; nothing is tried again.
    fn sync(&self, pending: &Pending) -> Result<(), Stopped> {
        const DURING: &str = "flushing";
        let sync_data = |segment: &ActiveSegment| segment.file.sync_data().map_err(|cause| self.stop(DURING, cause));
        for sealed in &pending.sealed {
            sync_data(&sealed.active)?;
        }
        if pending.names_dirty {
            self.sync_names(DURING, DESCRIPTOR_WAIT).map_err(|error| match error {
                NamesError::NoDescriptors(cause) => self.stop(DURING, cause),
                NamesError::Stopped(stopped) => stopped,
            })?;
        }
        sync_data(&pending.active)
    }

    /// Seal, index and producers of each segment that was sealed since the last flush. After the log itself: a sync of
    /// the directory that failed for their sake must not be followed by one that vouches for the names of segments.
    fn write_side_files(&self, pending: &Pending) {
        self.write_sides_due();
        if self.stopped().is_some() {
            // A sync that failed is not tried again.
            return;
        }
        // Retention may have removed some meanwhile.
        let log_start = self.log_start();
        let kept: Vec<_> = pending.sealed.iter().filter(|sealed| sealed.seal.next > log_start).collect();
        let mut due = SidesDue { names: !kept.is_empty(), ..SidesDue::default() };
        for UnflushedSeal { active, seal, snapshot } in kept {
            if !self.write_aside(seal.base, FileKind::Seal, &seal.encode(), true) {
                due.seals.push_back(*seal);
            }
            if !snapshot.is_empty() && !self.write_aside(seal.next, FileKind::Snapshot, snapshot, true) {
                due.snapshot = Some((seal.next, snapshot.clone()));
            }
            let index = active.with_index(|index| index.encode(seal.base));
            // Without one it is made in memory, each time that the segment is opened.
            self.write_aside(seal.base, FileKind::Index, &index, false);
        }
        self.sync_side_names(due);
    }

    /// What earlier flushes had no descriptors for. The caller has the checkpoint's lock, as a flush has: no two write
    /// the same file.
    fn write_sides_due(&self) {
        // Compaction and retention put other files in the place of these, or none: not at the same time. They wait
        // for the checkpoint, so they are not waited for here.
        if let Some(_condemned) = self.condemned.try_lock() {
            // A few at a time: somebody waits for the log.
            self.write_late(LATE_SEALS_A_FLUSH);
        } else {
            let due = std::mem::take(&mut self.writer.lock().sides_due);
            self.sync_side_names(due);
        }
    }

    /// All of it, as there is no flush any more.
    pub(super) fn write_last_sides(&self) {
        let _condemned = self.condemned.lock();
        let _checkpoint = self.checkpoint.lock();
        // A sync that failed is not tried again.
        if self.stopped().is_none() {
            self.write_late(usize::MAX);
        }
    }

    /// At most so many of the seals that are due, and the snapshot. The caller has both locks.
    pub(super) fn write_late(&self, seals_max: usize) {
        let SidesDue { names, seals, snapshot } = std::mem::take(&mut self.writer.lock().sides_due);
        let writes = !seals.is_empty() || snapshot.is_some();
        let mut due = SidesDue { names: names || writes, ..SidesDue::default() };
        let mut seals = seals.into_iter();
        for seal in seals.by_ref().take(seals_max) {
            if self.is_sealed_as(&seal) && !self.write_aside(seal.base, FileKind::Seal, &seal.encode(), true) {
                due.seals.push_back(seal);
                break;
            }
        }
        due.seals.extend(seals);
        let snapshot = snapshot.filter(|(at, _)| self.files.read().begins_at(*at));
        due.snapshot = snapshot.filter(|(at, bytes)| !self.write_aside(*at, FileKind::Snapshot, bytes, true));
        self.sync_side_names(due);
    }

    /// Whether the segment is there, and is the one that this seal was made for.
    fn is_sealed_as(&self, seal: &Seal) -> bool {
        let files = self.files.read();
        let found = files.sealed.binary_search_by_key(&seal.base, |segment| segment.base);
        let segment = found.ok().and_then(|at| files.sealed.get(at));
        segment.is_some_and(|it| (it.edition, it.next, it.len_bytes) == (0, seal.next, seal.len_bytes))
    }

    /// Makes names durable where that is due, and puts off what could not be done. Nobody waits for these names, so
    /// neither is there a wait for a descriptor.
    fn sync_side_names(&self, mut due: SidesDue) {
        if due.names {
            match self.sync_names("writing side files", Duration::ZERO) {
                Ok(()) => due.names = false,
                Err(NamesError::NoDescriptors(_)) => {}
                Err(NamesError::Stopped(_)) => return,
            }
        }
        self.put_off(due);
    }

    /// Leaves it to the next flush.
    fn put_off(&self, due: SidesDue) {
        let mut writer = self.writer.lock();
        let sides_due = &mut writer.sides_due;
        sides_due.names |= due.names;
        sides_due.seals.extend(due.seals);
        let surplus = sides_due.seals.len().saturating_sub(SEALS_DUE_MAX);
        sides_due.seals.drain(..surplus);
        // Recovery wants the newest.
        sides_due.snapshot = due.snapshot.or_else(|| sides_due.snapshot.take());
    }

    /// Writes a file that recovery can do without: its loss costs time, not data. Answers whether that is settled; not
    /// so when there was no descriptor, as there may be later.
    fn write_aside(&self, base: Offset, kind: FileKind, bytes: &[u8], sync: bool) -> bool {
        let path = path_of(&self.dir, base, kind);
        let Err(cause) = fs::replace_content(&*self.shared.fs, &path, bytes, sync) else { return true };
        tracing::warn!(path = %path.display(), %cause, "not written; what it says is rebuilt when needed");
        !fs::is_out_of_descriptors(&cause)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;
    use std::time::Instant;

    use uuid::Uuid;

    use super::*;
    use crate::batch::{BatchBuilder, BatchOptions, BatchProducer, CheckedBatch, NewRecord};
    use crate::fs::SimFs;
    use crate::limits::{SEALED_UNFLUSHED_MAX, SNAPSHOTS_UNFLUSHED_BYTES_MAX};
    use crate::{LogConfig, PartitionId, Store, StoreConfig};

    const ID: PartitionId = PartitionId { topic: Uuid::from_u128(7), partition: 0 };
    const PRODUCERS: i64 = 10_000;

    fn batch_of(producer_id: i64, base_sequence: i32, value: &[u8]) -> CheckedBatch {
        let producer = Some(BatchProducer { id: producer_id, epoch: 0, base_sequence });
        let mut builder = BatchBuilder::new(BatchOptions { producer, ..BatchOptions::default() });
        builder.push(&NewRecord { timestamp_ms: 1, value: Some(value), ..NewRecord::default() }).unwrap();
        builder.finish().unwrap()
    }

    #[test]
    fn a_flush_is_due_after_some_rolls_and_not_after_a_flush() {
        let disk = SimFs::new();
        let config = StoreConfig { flush_interval: Duration::from_secs(3600), ..StoreConfig::default() };
        let store = Store::open(Arc::new(disk), Path::new("/data"), config, Uuid::nil()).unwrap();
        let config = LogConfig { segment_bytes: 1024, ..LogConfig::default() };
        let (partition, _) = store.open_partition(ID, config).unwrap();
        // One a segment.
        let append = |id| partition.append(&batch_of(id, 0, &[0; 1000]), 1).unwrap();
        append(0);
        for round in 1..3 {
            for n in 0..SEALED_UNFLUSHED_WANTED {
                assert!(!partition.is_flush_due(), "round {round}, after {n}");
                append(round * 100 + n as i64);
            }
            assert!(partition.is_flush_due());
            partition.flush().unwrap();
        }
    }

    #[test]
    fn whoever_asks_while_a_flush_waits_for_another_takes_no_further_thread() {
        let store =
            Store::open(Arc::new(SimFs::new()), Path::new("/data"), StoreConfig::default(), Uuid::nil()).unwrap();
        let (partition, _) = store.open_partition(ID, LogConfig::default()).unwrap();
        let under_way = partition.checkpoint.lock();
        assert!(partition.flushing.ask(), "the first takes a thread");
        let (is_there, there) = mpsc::channel();
        std::thread::scope(|scope| {
            let turn = scope.spawn(|| {
                is_there.send(()).unwrap();
                partition.flush_from_queue();
            });
            there.recv().unwrap();
            let until = Instant::now() + Duration::from_millis(50);
            while Instant::now() < until {
                assert!(!partition.flushing.ask(), "the one that waits flushes for this one too");
                std::thread::yield_now();
            }
            drop(under_way);
            turn.join().unwrap();
        });
        assert!(partition.flushing.ask(), "it has begun: this one comes after it");
    }

    #[test]
    fn a_flush_is_due_after_many_bytes() {
        let config = StoreConfig { flush_interval: Duration::from_secs(3600), ..StoreConfig::default() };
        let store = Store::open(Arc::new(SimFs::new()), Path::new("/data"), config, Uuid::nil()).unwrap();
        let (partition, _) = store.open_partition(ID, LogConfig::default()).unwrap();
        let value = vec![0; 4 << 20];
        for round in 0..2 {
            for n in 0..UNFLUSHED_WANTED_BYTES / value.len() as u64 {
                assert!(!partition.is_flush_due(), "round {round}, after {n}");
                partition.append(&batch_of(round * 100 + n.cast_signed(), 0, &value), 1).unwrap();
            }
            assert!(partition.is_flush_due());
            partition.flush().unwrap();
        }
    }

    #[test]
    fn what_rolls_leave_for_a_flush_is_bounded_and_recovery_wants_no_more() {
        let disk = SimFs::new();
        let open = |disk: &SimFs| {
            let config = StoreConfig { flush_interval: Duration::from_secs(3600), ..StoreConfig::default() };
            Store::open(Arc::new(disk.clone()), Path::new("/data"), config, Uuid::nil()).unwrap()
        };
        let store = open(&disk);
        let (partition, _) = store.open_partition(ID, LogConfig::default()).unwrap();
        for id in 0..PRODUCERS {
            partition.append(&batch_of(id, 0, b"x"), 1).unwrap();
        }
        partition.flush().unwrap();
        partition.set_config(LogConfig { segment_bytes: 1024, ..LogConfig::default() });
        let one_bytes = partition.writer.lock().producers.encode_snapshot(Offset::ZERO).len();
        for n in 0..300 {
            partition.append(&batch_of(n, 1, &[0; 1000]), 1).unwrap();
            let writer = partition.writer.lock();
            let held_bytes: usize = writer.unflushed.iter().map(|sealed| sealed.snapshot.len()).sum();
            assert!(held_bytes <= SNAPSHOTS_UNFLUSHED_BYTES_MAX.max(one_bytes) && held_bytes < 4 << 20, "{held_bytes}");
            assert!(writer.unflushed.len() <= SEALED_UNFLUSHED_MAX, "{}", writer.unflushed.len());
        }
        partition.flush().unwrap();
        drop((partition, store));
        let store = open(&disk.kill());
        let (partition, report) = store.open_partition(ID, LogConfig::default()).unwrap();
        assert!(report.is_clean(), "{report:?}");
        for n in [0, 150, 299] {
            assert!(partition.append(&batch_of(n, 1, &[0; 1000]), 1).unwrap().duplicate, "producer {n}");
        }
        assert!(partition.append(&batch_of(PRODUCERS - 1, 0, b"x"), 1).unwrap().duplicate);
    }
}
