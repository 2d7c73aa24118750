//! What a log is told: sizes, ages and flush rhythm. All values are checked by whoever builds them (the broker).

use std::time::Duration;

/// Settings of one partition's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A segment is rolled before it would grow beyond this many bytes, unless one batch alone is larger. Bytes,
    /// 1 KiB–1 GiB (positions are 32 bits wide). Default 256 MiB: recovery walks the headers of one segment, and
    /// retention removes whole ones.
    pub segment_bytes: u32,
    /// A non-empty active segment is rolled when its first record was appended so long ago (broker time). Default 7 days.
    pub segment_age: Duration,
    /// One index entry for so many bytes of log. Default 16 KiB: a read walks at most that far, and the index of a
    /// full default segment has 256 KiB.
    pub index_interval_bytes: u32,
    /// Oldest segments go while the log is larger than this. Bytes; `None` keeps all. Default `None`.
    pub retention_bytes: Option<u64>,
    /// Segments go when their last record was appended so long ago (broker time); `None` keeps all. Default 7 days.
    pub retention_age: Option<Duration>,
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
        }
    }
}

/// Settings of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// What was appended without waiting for the disk is flushed so long after at the latest. 1 ms–1 h, default 100 ms.
    pub flush_interval: Duration,
    /// Partitions are flushed in parallel up to this number; threads are started as they are needed. 1–64, default 16: what
    /// many dirty partitions gain from more parallel syncs is in `docs/disk.md`.
    pub flush_threads: usize,
    /// How many sealed segments are held open (descriptor, map, index) over all partitions; the least recently read
    /// is closed. 1–65,536, default 128.
    pub open_segments_max: usize,
    /// Reads of bytes that this process appended at most so far behind the tail are answered on the caller's thread;
    /// the rest may wait for the disk. Bytes, default 64 MiB.
    pub hot_bytes: u64,
    /// Disk space kept back, for the state journal and dead letters on a disk that is full otherwise. At most an eighth of
    /// what is free is taken. Bytes, default 64 MiB; 0 keeps nothing back.
    pub reserve_bytes: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            flush_interval: Duration::from_millis(100),
            flush_threads: 16,
            open_segments_max: 128,
            hot_bytes: 64 << 20,
            reserve_bytes: 64 << 20,
        }
    }
}
