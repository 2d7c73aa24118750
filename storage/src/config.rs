//! What a log is told: sizes, ages and flush rhythm. All values are checked by whoever builds them (the broker).

use std::time::Duration;

/// Settings of one partition's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A segment is rolled before it would grow beyond this many bytes, unless one batch alone is larger. Bytes,
    /// 1 KiB–1 GiB (positions are 32 bits wide). Default 256 MiB: recovery walks the headers of one segment, and
    /// retention removes whole ones.
    pub segment_bytes: u32,
    /// A non-empty active segment is rolled when its first record was appended so long ago (broker time). Default 7
    /// days.
    pub segment_age: Duration,
    /// One index entry for so many bytes of log. Default 16 KiB: a read walks at most that far, and the index of a
    /// full default segment has 256 KiB.
    pub index_interval_bytes: u32,
    /// Oldest segments go while the log is larger than this. Bytes; `None` keeps all. Default `None`.
    pub retention_bytes: Option<u64>,
    /// Segments go when their last record was appended so long ago (broker time); `None` keeps all. Default 7 days.
    pub retention_age: Option<Duration>,
    /// How long a segment stays, because somebody still needs it, beyond the age at which it would go, or after its
    /// last append when the log is too large (broker time); `None` is without a limit. Default 7 days.
    pub hold_max: Option<Duration>,
    /// Whether only the newest record of each key is kept, and how; `None` keeps all. Default `None`.
    pub compaction: Option<CompactionConfig>,
}

/// How a log is compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionConfig {
    /// What was appended less than so long ago (broker time) is left as it is. Default 0.
    pub lag_min: Duration,
    /// What was appended so long ago (broker time) and was never compacted makes the log due, however little it is.
    /// Default none.
    pub lag_max: Option<Duration>,
    /// The log is due when so many millionths of its bytes were never compacted. 0–1,000,000, default 500,000.
    pub dirty_millionths_min: u32,
    /// How long a tombstone stays after it was first compacted, for readers that have seen what it deletes. Default 24
    /// h.
    pub tombstone_age: Duration,
}

impl CompactionConfig {
    /// The largest [`CompactionConfig::dirty_millionths_min`]: all of the log.
    pub const MILLIONTHS: u32 = 1_000_000;
}

impl Default for CompactionConfig {
    fn default() -> Self {
        Self {
            lag_min: Duration::ZERO,
            lag_max: None,
            dirty_millionths_min: Self::MILLIONTHS / 2,
            tombstone_age: Duration::from_secs(24 * 60 * 60),
        }
    }
}

impl LogConfig {
    /// The smallest allowed [`LogConfig::segment_bytes`].
    pub const SEGMENT_BYTES_MIN: u32 = 1024;
    /// The largest allowed [`LogConfig::segment_bytes`].
    pub const SEGMENT_BYTES_MAX: u32 = 1 << 30;
}

impl Default for LogConfig {
    fn default() -> Self {
        const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);
        Self {
            segment_bytes: 256 << 20,
            segment_age: WEEK,
            index_interval_bytes: 16 << 10,
            retention_bytes: None,
            retention_age: Some(WEEK),
            hold_max: Some(WEEK),
            compaction: None,
        }
    }
}

/// Settings of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// What was appended without waiting for the disk is flushed so long after at the latest. 1 ms–1 h, default 100 ms.
    pub flush_interval: Duration,
    /// Partitions are flushed in parallel up to this number; threads are started as they are needed. 1–64, default 16:
    /// what many dirty partitions gain from more parallel syncs is in `docs/disk.md`.
    pub flush_threads: usize,
    /// How many sealed segments are held open (descriptor, map, index) over all partitions; the least recently read
    /// is closed. 1–65,536, default 128.
    pub open_segments_max: usize,
    /// Reads of bytes that this process appended at most so far behind the tail are answered on the caller's thread;
    /// the rest may wait for the disk. Bytes, default 64 MiB.
    pub hot_bytes: u64,
    /// Disk space kept back, for the state journal and dead letters on a disk that is full otherwise. At most an eighth
    /// of what is free is taken. Bytes, default 64 MiB; 0 keeps nothing back.
    pub reserve_bytes: u64,
    /// The memory in which one compaction remembers keys; with more keys than fit it takes several rounds. Bytes, 4
    /// KiB–4 GiB, default 16 MiB: about 450,000 keys.
    pub compaction_keys_bytes: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            flush_interval: Duration::from_millis(100),
            flush_threads: 16,
            open_segments_max: 128,
            hot_bytes: 64 << 20,
            reserve_bytes: 64 << 20,
            compaction_keys_bytes: 16 << 20,
        }
    }
}
