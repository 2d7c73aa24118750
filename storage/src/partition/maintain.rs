//! Retention and closing.

use std::io;
use std::sync::atomic::Ordering;

use super::Partition;
use super::names::NamesError;
use crate::config::LogConfig;
use crate::error::{AppendError, FlushError, TrimError};
use crate::fs;
use crate::limits::DESCRIPTOR_WAIT;
use crate::offset::Offset;
use crate::producer::ProducerDescription;
use crate::retention::{self, SegmentAge};
use crate::segment::{FileKind, SealedSegment, path_of, remove_segment};

impl Partition {
    /// Removes the oldest segments that size and age let go, and those that lie wholly below the first offset. Where all
    /// others go and the newest record is too old, the active segment goes with them, behind a new one. Answers the new
    /// first offset. `now_ms` is `None` while the clock is not believed: then only size counts. Nothing at or above
    /// `hold` goes.
    ///
    /// # Errors
    /// The disk does not answer. The first offset may have moved nevertheless; files that could not be removed are
    /// tried again the next time. A failed sync of the directory stops the partition, as in a flush.
    pub fn enforce_retention(&self, now_ms: Option<i64>, hold: Option<Offset>) -> io::Result<Offset> {
        // One retention at a time: another one's choice was made from what this one removes.
        let mut condemned = self.condemned.lock();
        let mut config = self.config();
        if now_ms.is_none() {
            (config.retention_age, config.hold_max) = (None, None);
        }
        let (sealed, active_bytes) = {
            let files = self.files.read();
            (files.sealed.clone(), files.active.published())
        };
        let mut ages = Vec::with_capacity(sealed.len());
        for segment in &sealed {
            let needs_age = config.retention_age.is_some() || (hold.is_some() && config.hold_max.is_some());
            let last_append_ms = if needs_age { self.last_append_of(segment) } else { 0 };
            ages.push(SegmentAge { next: segment.next, len_bytes: segment.len_bytes, last_append_ms });
        }
        let trimmed = sealed.partition_point(|segment| segment.next <= self.log_start());
        let mut count = retention::removable(&ages, active_bytes, &config, now_ms.unwrap_or(0), hold).max(trimmed);
        if count == sealed.len() && self.roll_expired(now_ms, &config, hold)? {
            count += 1;
        }
        if count > 0 {
            self.condemn_oldest(count, &mut condemned)?;
        }
        self.remove_condemned(&mut condemned)?;
        self.write_producers_due();
        Ok(self.log_start())
    }

    /// Seals the active segment where all of it is too old. Answers whether it did; not so without room for the next
    /// one, as there may be some later.
    fn roll_expired(&self, now_ms: Option<i64>, config: &LogConfig, hold: Option<Offset>) -> io::Result<bool> {
        let Some(now_ms) = now_ms else { return Ok(false) };
        // Size leaves the active one alone.
        let by_age = LogConfig { retention_bytes: None, ..*config };
        let mut writer = self.writer.lock();
        writer.facts.ended(now_ms);
        let len_bytes = writer.active.published();
        let active = SegmentAge { next: writer.next, len_bytes, last_append_ms: writer.facts.last_append_ms };
        let is_old = len_bytes > 0 && retention::removable(&[active], 0, &by_age, now_ms, hold) > 0;
        if !is_old || self.stopped().is_some() {
            return Ok(false);
        }
        match self.roll(&mut writer, config, now_ms) {
            Ok(()) => Ok(true),
            Err(cause @ AppendError::Stopped(_)) => Err(io::Error::other(cause)),
            Err(cause) => {
                tracing::debug!(partition = %self.id(), %cause, "the active segment is kept beyond its age");
                Ok(false)
            }
        }
    }

    /// Moves the first offset to `to`, durably, and removes the segments that lie wholly below. Answers the first
    /// offset, which is `to` unless it was there already. What remains of a segment that holds `to` is not served any
    /// more, and goes with its last record, or when it is compacted.
    ///
    /// # Errors
    /// [`TrimError::OutOfRange`] beyond the tail, and [`TrimError::Flush`]: nothing was done. [`TrimError::Io`]: the
    /// first offset may have moved nevertheless.
    pub fn trim(&self, to: Offset) -> Result<Offset, TrimError> {
        let tail = self.tail();
        if to > tail {
            return Err(TrimError::OutOfRange { offset: to, tail });
        }
        // A power cut must not end the log before its start, in the middle of a batch.
        if to > self.flushed() {
            self.flush()?;
        }
        let mut condemned = self.condemned.lock();
        if to > self.log_start() {
            let count = self.files.read().sealed.partition_point(|segment| segment.next <= to);
            self.move_start(to, count, &mut condemned)?;
        }
        self.remove_condemned(&mut condemned)?;
        Ok(self.log_start())
    }

    /// When the newest record was appended, ms since 1970, broker time; `None` when there is none, or the disk does not
    /// tell. Blocks on the disk right after a roll.
    #[must_use]
    pub fn last_append_ms(&self) -> Option<i64> {
        let of_active = {
            let writer = self.writer.lock();
            writer.facts.first_append_ms.map(|_| writer.facts.last_append_ms)
        };
        of_active.or_else(|| {
            let newest = self.files.read().sealed.last().cloned()?;
            newest.seal(&*self.shared.fs, &self.dir).ok().map(|seal| seal.last_append_ms)
        })
    }

    /// A segment that does not tell its age is kept by age, and does not keep size from removing others.
    fn last_append_of(&self, segment: &SealedSegment) -> i64 {
        match segment.seal(&*self.shared.fs, &self.dir) {
            Ok(seal) => seal.last_append_ms,
            Err(cause) => {
                tracing::warn!(partition = %self.id(), base = %segment.base, %cause, "age unknown");
                i64::MAX
            }
        }
    }

    /// Moves the start. It is durable before anything goes, so that a segment whose removal fails or is lost in a power
    /// cut does not come back; and visible before the files go, so that no reader is sent to one that is missing.
    /// Readers that hold slices keep their maps (invariant S7).
    fn condemn_oldest(&self, count: usize, condemned: &mut Vec<Offset>) -> io::Result<()> {
        let start = {
            let files = self.files.read();
            files.sealed.get(count).map_or(files.active.base, |segment| segment.base)
        };
        self.move_start(start.max(self.log_start()), count, condemned)
    }

    /// Moves the start to `start`, below which the `count` oldest segments lie.
    fn move_start(&self, start: Offset, count: usize, condemned: &mut Vec<Offset>) -> io::Result<()> {
        let mut checkpoint = self.checkpoint.lock();
        self.keep_producers(start)?;
        checkpoint.write_log_start(start)?;
        // There is nothing to flush of them any more, and an open file keeps its space.
        {
            let mut writer = self.writer.lock();
            writer.unflushed.retain(|sealed| sealed.seal.next > start);
            self.sealed_unflushed.store(writer.unflushed.len(), Ordering::Relaxed);
        }
        let mut files = self.files.write();
        self.log_start.fetch_max(start.get(), Ordering::AcqRel);
        condemned.extend(files.sealed.drain(..count).map(|segment| segment.base));
        Ok(())
    }

    /// What segments that go said of producers belongs to the one that begins at `start`. A flush has not written it yet
    /// where the last of them was sealed a moment ago; it is durable before they go. Only a full disk keeps none of them:
    /// there it is written behind them.
    fn keep_producers(&self, start: Offset) -> io::Result<()> {
        let writer = self.writer.lock();
        let last = writer.unflushed.iter().find(|sealed| sealed.seal.next == start);
        let Some(snapshot) = last.map(|last| last.snapshot.clone()).filter(|snapshot| !snapshot.is_empty()) else {
            return Ok(());
        };
        drop(writer);
        let path = path_of(&self.dir, start, FileKind::Snapshot);
        let written = fs::replace_content(&*self.shared.fs, &path, &snapshot, true);
        match written.and_then(|()| self.sync_removed_names()) {
            Err(cause) if cause.kind() == io::ErrorKind::StorageFull => {
                self.writer.lock().sides_due.snapshot = Some((start, snapshot));
                Ok(())
            }
            other => other,
        }
    }

    /// The caller has the retention lock.
    fn write_producers_due(&self) {
        if self.writer.lock().sides_due.snapshot.is_some() {
            let _checkpoint = self.checkpoint.lock();
            if self.stopped().is_none() {
                self.write_late(0);
            }
        }
    }

    fn remove_condemned(&self, condemned: &mut Vec<Offset>) -> io::Result<()> {
        if condemned.is_empty() {
            return Ok(());
        }
        while let Some(&base) = condemned.first() {
            self.shared.open_segments.remove(&(self.id(), base));
            remove_segment(&*self.shared.fs, &self.dir, base)?;
            tracing::info!(partition = %self.id(), %base, "segment removed");
            condemned.remove(0);
        }
        self.sync_removed_names()
    }

    fn sync_removed_names(&self) -> io::Result<()> {
        if self.stopped().is_some() {
            // No sync proves anything any more. What comes back lies below a start that is durable.
            return Ok(());
        }
        self.sync_names("removing segments", DESCRIPTOR_WAIT).map_err(|error| match error {
            NamesError::NoDescriptors(cause) => {
                // The next flush does it, behind what it is for.
                self.writer.lock().sides_due.names = true;
                cause
            }
            NamesError::Stopped(stopped) => io::Error::new(stopped.cause.kind(), stopped),
        })
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        let files = self.files.read();
        files.sealed.iter().map(|segment| segment.len_bytes).sum::<u64>() + files.active.published()
    }

    /// Makes everything durable and gives back the space reserved ahead of the tail.
    ///
    /// # Errors
    /// [`FlushError::Stopped`], as for a flush.
    pub fn close(&self) -> Result<Offset, FlushError> {
        let flushed = self.flush()?;
        self.write_last_sides();
        let mut writer = self.writer.lock();
        writer.reserved_bytes = writer.active.published();
        // The next start goes by it: giving back space is no append.
        let appended = writer.active.file.modified();
        if let Err(cause) = writer.active.file.truncate(writer.active.published()) {
            tracing::warn!(partition = %self.id(), %cause, "reserved space not given back");
        }
        if let Err(cause) = appended.and_then(|appended| writer.active.file.set_modified(appended)) {
            tracing::warn!(partition = %self.id(), %cause, "the time of the last append is not kept");
        }
        Ok(flushed)
    }

    /// What is remembered of an idempotent producer.
    #[must_use]
    pub fn producer(&self, id: i64) -> Option<ProducerDescription> {
        self.writer.lock().producers.get(id)
    }

    /// What is remembered of all idempotent producers, by rising id; at most
    /// [`ProducerLimits::producers_max`](crate::producer::ProducerLimits::producers_max).
    #[must_use]
    pub fn producers(&self) -> Vec<ProducerDescription> {
        self.writer.lock().producers.describe()
    }

    /// Forgets idempotent producers that have been silent for too long.
    pub fn expire_producers(&self, now_ms: i64) {
        let forgotten = self.writer.lock().producers.expire(now_ms);
        if forgotten > 0 {
            tracing::debug!(partition = %self.id(), forgotten, "idle producers forgotten");
        }
    }
}
