//! Segments: the files of a partition's log.
//!
//! `<20 digits of the base offset>.log` holds record batches one behind the other, exactly as Kafka stores them. One
//! segment is active: it is appended to, and readers see its bytes up to the published length. All others are sealed:
//! immutable, with a [`Seal`] beside them.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::UNIX_EPOCH;
use std::{fmt, io};

use parking_lot::{Mutex, RwLock};

use crate::fs::{self, File, Fs, OpenMode};
use crate::index::{Index, IndexEntry, TIMESTAMP_NONE};
use crate::offset::{Offset, PartitionId};
use crate::progress::Published;
use crate::retention::{BELIEVABLE_FROM_MS, JUMP_MAX_MS};

mod audit;
mod heal;
mod open;
mod seal;
mod walk;

pub(crate) use audit::{Audit, AuditPlace, AuditScope, Audited, Fault, Wrong, fault_reason};
pub(crate) use heal::{HealedHeader, heal, heal_alone};
pub(crate) use open::{OpenSegment, OpenSegments};
pub(crate) use seal::SEAL_BYTES;
pub(crate) use seal::Seal;
pub(crate) use walk::{BatchWalk, DenseWalk, Met, Step, WalkError, next_intact};

/// The kinds of file that belong to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Log,
    Index,
    Seal,
    Snapshot,
    /// A log file that compaction is writing.
    Clean,
    /// The seal of a finished one: from when it is durable, that log takes the place of those that it was made from.
    Swap,
}

impl FileKind {
    /// The log first: when a segment is removed from the last on, as long as it is there the others are not orphans.
    pub(crate) const ALL: [Self; 6] = [Self::Log, Self::Index, Self::Seal, Self::Snapshot, Self::Clean, Self::Swap];

    pub(crate) const fn extension(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Index => "index",
            Self::Seal => "seal",
            Self::Snapshot => "snapshot",
            Self::Clean => "clean",
            Self::Swap => "swap",
        }
    }
}

/// `<dir>/<20 digits>.<extension>`.
pub(crate) fn path_of(dir: &Path, base: Offset, kind: FileKind) -> PathBuf {
    dir.join(format!("{:020}.{}", base.get(), kind.extension()))
}

/// The inverse of [`path_of`] for one name; `None` for a name that is not ours.
pub(crate) fn parse_name(name: &str) -> Option<(Offset, FileKind)> {
    let (digits, extension) = name.split_once('.')?;
    let kind = FileKind::ALL.into_iter().find(|kind| kind.extension() == extension)?;
    let base = if is_base(digits) { Offset::new(digits.parse().ok()?)? } else { return None };
    Some((base, kind))
}

/// Whether the name is one under which a side file is written before it gets its own.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.strip_suffix(".tmp").is_some_and(is_base)
}

fn is_base(digits: &str) -> bool {
    digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether the name is that of a segment's log file.
pub(crate) fn is_segment(name: &str) -> bool {
    matches!(parse_name(name), Some((_, FileKind::Log)))
}

/// Removes the files of a segment, the log last: as long as it is there, the others are not orphans.
pub(crate) fn remove_segment(fs: &dyn Fs, dir: &Path, base: Offset) -> io::Result<()> {
    for kind in FileKind::ALL.into_iter().rev() {
        match fs.remove_file(&path_of(dir, base, kind)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Which bytes of a segment are known to be right without looking again: those that this process appended, and those
/// whose checksums it has verified since it started.
pub(crate) struct Trust {
    /// Everything from here on was appended (or verified and rewritten by recovery) in this process.
    appended_from: u64,
    verified: Mutex<Range<u64>>,
}

impl Trust {
    pub(crate) const fn appended_from(position: u64) -> Self {
        Self { appended_from: position, verified: Mutex::new(0..0) }
    }

    pub(crate) const fn none() -> Self {
        Self::appended_from(u64::MAX)
    }

    pub(crate) fn is_appended(&self, range: &Range<u64>) -> bool {
        range.start >= self.appended_from
    }

    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        let verified = self.verified.lock();
        self.is_appended(range)
            || (verified.start <= range.start && range.end <= verified.end)
            || (verified.start <= range.start && verified.end >= self.appended_from)
    }

    /// Remembers a verified range: joined to the known one when they touch, else in its place. Sequential readers, the
    /// common case, so never verify twice.
    pub(crate) fn add(&self, range: Range<u64>) {
        let mut verified = self.verified.lock();
        let touches = range.start <= verified.end && verified.start <= range.end;
        *verified = if touches { verified.start.min(range.start)..verified.end.max(range.end) } else { range };
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "appended from {}, verified {:?}", self.appended_from, *self.verified.lock())
    }
}

/// The segment that is appended to. Readers share it; only the holder of the partition's append lock publishes.
#[derive(Debug)]
pub(crate) struct ActiveSegment {
    pub(crate) base: Offset,
    pub(crate) file: Arc<dyn File>,
    pub(crate) trust: Trust,
    index: RwLock<Index>,
    /// Bytes below never change (invariant S1).
    published: Published,
}

impl ActiveSegment {
    pub(crate) fn new(base: Offset, file: Arc<dyn File>, index: Index, published: u64) -> Self {
        let trust = Trust::appended_from(published);
        Self { base, file, trust, index: RwLock::new(index), published: Published::new(published) }
    }

    pub(crate) fn published(&self) -> u64 {
        self.published.get()
    }

    pub(crate) fn publish(&self, len_bytes: u64) {
        self.published.move_to(len_bytes);
    }

    pub(crate) fn with_index<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.index.read())
    }

    pub(crate) fn push_index(&self, entry: IndexEntry) {
        self.index.write().push(entry);
    }
}

/// A segment that is no longer appended to (invariant S6). Costs a few words until it is read.
#[derive(Debug)]
pub(crate) struct SealedSegment {
    pub(crate) base: Offset,
    /// One after its last offset.
    pub(crate) next: Offset,
    pub(crate) len_bytes: u64,
    pub(crate) trust: Trust,
    /// How often the file was replaced by compaction since the start.
    pub(crate) edition: u32,
    seal: OnceLock<Seal>,
}

impl SealedSegment {
    /// A segment found on disk.
    pub(crate) const fn found(base: Offset, next: Offset, len_bytes: u64) -> Self {
        Self { base, next, len_bytes, trust: Trust::none(), edition: 0, seal: OnceLock::new() }
    }

    /// The active segment, sealed by this process.
    pub(crate) fn sealed(active: &ActiveSegment, seal: Seal) -> Self {
        let trust = Trust::appended_from(active.trust.appended_from);
        trust.add(active.trust.verified.lock().clone());
        Self { trust, ..Self::compacted(seal, 0) }
    }

    /// What compaction made of one or several segments.
    pub(crate) fn compacted(seal: Seal, edition: u32) -> Self {
        let Seal { base, next, len_bytes, .. } = seal;
        Self { base, next, len_bytes, trust: Trust::none(), edition, seal: OnceLock::from(seal) }
    }

    /// What was written down when it was sealed. Without that, for a segment whose seal was lost in a crash, the file's
    /// own times stand in: they too are the broker's clock.
    pub(crate) fn seal(&self, fs: &dyn Fs, dir: &Path) -> io::Result<&Seal> {
        if let Some(seal) = self.seal.get() {
            return Ok(seal);
        }
        let seal = match self.read_seal(fs, dir)? {
            Some(seal) => seal,
            None => self.estimated_seal(fs, dir)?,
        };
        Ok(self.seal.get_or_init(|| seal))
    }

    /// What was written down, if it reads back and fits.
    ///
    /// # Errors
    /// There are no descriptors for the moment: an estimate would stay, and retention would go by it.
    pub(crate) fn read_seal(&self, fs: &dyn Fs, dir: &Path) -> io::Result<Option<Seal>> {
        let bytes = match fs::read_whole(fs, &path_of(dir, self.base, FileKind::Seal), SEAL_BYTES as u64) {
            Err(cause) if fs::is_out_of_descriptors(&cause) => return Err(cause),
            bytes => bytes.ok(),
        };
        let Some(seal) = bytes.and_then(|bytes| Seal::decode(&bytes).ok()) else { return Ok(None) };
        let fits = seal.base == self.base && seal.next == self.next && seal.len_bytes == self.len_bytes;
        if !fits {
            tracing::warn!(dir = %dir.display(), base = %self.base, ?seal, "seal does not fit its segment");
        }
        Ok(fits.then_some(seal))
    }

    fn estimated_seal(&self, fs: &dyn Fs, dir: &Path) -> io::Result<Seal> {
        let file = fs.open(&path_of(dir, self.base, FileKind::Log), OpenMode::Read, 0)?;
        let modified_ms = unix_ms(file.modified()?);
        Ok(Seal {
            base: self.base,
            next: self.next,
            len_bytes: self.len_bytes,
            first_append_ms: modified_ms,
            last_append_ms: modified_ms,
            // Unknown: large enough that no look-up by time passes the segment over.
            max_timestamp_ms: i64::MAX,
            headers_crc: 0,
        })
    }
}

/// Milliseconds since 1970; 0 for times before.
pub(crate) fn unix_ms(time: std::time::SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Accumulates what the appender knows of the active segment, for its index and its seal.
#[derive(Clone, Debug)]
pub(crate) struct SegmentFacts {
    pub(crate) first_append_ms: Option<i64>,
    pub(crate) last_append_ms: i64,
    pub(crate) max_timestamp_ms: i64,
    headers_crc: crc32fast::Hasher,
    indexed_to: u64,
}

impl SegmentFacts {
    pub(crate) fn new() -> Self {
        Self {
            first_append_ms: None,
            last_append_ms: 0,
            max_timestamp_ms: TIMESTAMP_NONE,
            headers_crc: crc32fast::Hasher::new(),
            indexed_to: 0,
        }
    }

    /// Notes a batch at `position`, `relative_offset` after the segment's base. Answers the index entry to add, if one
    /// is due.
    pub(crate) fn note(
        &mut self,
        header: &[u8],
        relative_offset: u32,
        position: u32,
        max_timestamp_ms: i64,
        interval_bytes: u32,
    ) -> Option<IndexEntry> {
        let due = u64::from(position) >= self.indexed_to + u64::from(interval_bytes);
        let entry = IndexEntry { relative_offset, position, max_timestamp_before: self.max_timestamp_ms };
        if due {
            self.indexed_to = u64::from(position);
        }
        self.count(header, max_timestamp_ms);
        due.then_some(entry)
    }

    fn count(&mut self, header: &[u8], max_timestamp_ms: i64) {
        self.headers_crc.update(header);
        self.max_timestamp_ms = self.max_timestamp_ms.max(max_timestamp_ms);
    }

    /// As [`SegmentFacts::note`] for a batch that stands in a segment of base `base`. One beyond the reach of 32 bits,
    /// which no segment of ours has, is left out of the index alone.
    pub(crate) fn note_step(
        &mut self,
        header: &[u8],
        step: &Step,
        base: Offset,
        interval_bytes: u32,
    ) -> Option<IndexEntry> {
        let max_timestamp_ms = step.header.max_timestamp_ms;
        let relative_offset = u32::try_from(step.header.base_offset.since(base));
        match (relative_offset, u32::try_from(step.position)) {
            (Ok(relative_offset), Ok(position)) => {
                self.note(header, relative_offset, position, max_timestamp_ms, interval_bytes)
            }
            _ => {
                self.count(header, max_timestamp_ms);
                None
            }
        }
    }

    /// A clock that falls back makes nothing older than it was. One that stood far ahead for a moment is forgotten, or
    /// the segment would never be old.
    pub(crate) fn appended(&mut self, now_ms: i64) {
        let was_ahead = now_ms >= BELIEVABLE_FROM_MS && self.last_append_ms.saturating_sub(now_ms) > JUMP_MAX_MS;
        if was_ahead || self.first_append_ms.is_none() {
            (self.first_append_ms, self.last_append_ms) = (Some(now_ms), now_ms);
        }
        self.last_append_ms = self.last_append_ms.max(now_ms);
    }

    /// The segment ends at `now_ms`. Where its last append was under a clock that had not been set, what was written a
    /// moment ago must not seem to be due.
    pub(crate) const fn ended(&mut self, now_ms: i64) {
        if self.last_append_ms < BELIEVABLE_FROM_MS && now_ms >= BELIEVABLE_FROM_MS {
            self.last_append_ms = now_ms;
        }
    }

    pub(crate) fn seal(&self, base: Offset, next: Offset, len_bytes: u64) -> Seal {
        Seal {
            base,
            next,
            len_bytes,
            first_append_ms: self.first_append_ms.unwrap_or(self.last_append_ms),
            last_append_ms: self.last_append_ms,
            max_timestamp_ms: self.max_timestamp_ms,
            headers_crc: self.headers_crc.clone().finalize(),
        }
    }
}

/// The key under which an opened sealed segment is kept.
pub(crate) type SegmentKey = (PartitionId, Offset);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_names_have_twenty_digits_and_read_back() {
        let base = Offset::new(42).unwrap();
        let path = path_of(Path::new("/d"), base, FileKind::Log);
        assert_eq!(path, Path::new("/d/00000000000000000042.log"));
        for kind in FileKind::ALL {
            let name = path_of(Path::new(""), base, kind);
            assert_eq!(parse_name(name.to_str().unwrap()), Some((base, kind)));
        }
        for alien in
            ["42.log", "00000000000000000042.txt", "0000000000000000004x.log", "flushed", "99999999999999999999.log"]
        {
            assert_eq!(parse_name(alien), None, "{alien}");
        }
    }

    #[test]
    fn trust_grows_over_touching_ranges_and_meets_the_appended_part() {
        let trust = Trust::appended_from(1_000);
        assert!(trust.covers(&(1_000..2_000)) && !trust.covers(&(0..10)));
        trust.add(0..100);
        trust.add(100..300);
        assert!(trust.covers(&(50..250)) && !trust.covers(&(250..310)));
        trust.add(300..1_000);
        assert!(trust.covers(&(200..5_000)), "verified and appended ranges meet");
        trust.add(2_000..2_100);
        assert!(!trust.covers(&(0..100)), "one range is kept");
    }
}
