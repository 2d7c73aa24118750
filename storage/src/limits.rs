//! Numbers that bound what the log does, and how they relate.

use std::time::Duration;

use crate::config::LogConfig;

/// The first reservation ahead of the tail; each following one doubles, up to [`RESERVE_BYTES_MAX`].
pub(crate) const RESERVE_BYTES_MIN: u64 = 64 << 10;
/// The largest reservation ahead of the tail. More would hold disk space that other partitions need.
pub(crate) const RESERVE_BYTES_MAX: u64 = 16 << 20;
/// Space ahead of the tail is filled with zeros when flushes since the last reservation covered so little on average or
/// less.
pub(crate) const ZERO_AHEAD_FLUSH_BYTES_MAX: u64 = 64 << 10;
/// How much is filled with zeros at a time at most. It is written under the append lock.
pub(crate) const ZERO_AHEAD_BYTES_MAX: u64 = 1 << 20;
/// Behind so many segments that were sealed since the last flush, whoever appends flushes first: each keeps its file
/// and its map open.
pub(crate) const SEALED_UNFLUSHED_MAX: usize = 64;
/// Behind so many a flush is asked for, so that it need not come to that.
pub(crate) const SEALED_UNFLUSHED_WANTED: usize = 16;
/// Behind so many bytes that were appended since the last flush another one is asked for, before the interval is over:
/// a start writes and syncs them again.
pub(crate) const UNFLUSHED_WANTED_BYTES: u64 = 32 << 20;
/// How long a flush waits for the descriptor that it needs to sync a directory before it gives up, which stops the
/// partition: other flushes may wait for it.
pub(crate) const DESCRIPTOR_WAIT: Duration = Duration::from_secs(2);
/// How often it looks.
pub(crate) const DESCRIPTOR_RETRY: Duration = Duration::from_millis(10);
/// So many seals wait for descriptors; without the oldest ones beyond that, the log itself has to tell.
pub(crate) const SEALS_DUE_MAX: usize = 1024;
/// So many of them are written at a flush.
pub(crate) const LATE_SEALS_A_FLUSH: usize = 8;
/// One compaction makes no more segments into one: their files are all open then.
pub(crate) const MERGED_SEGMENTS_MAX: usize = 128;
/// Encoded producers that wait for a flush; beyond this only the newest are kept. Recovery wants no others.
pub(crate) const SNAPSHOTS_UNFLUSHED_BYTES_MAX: usize = 1 << 20;
/// One batch may not exceed this, whatever the topic allows: reads and recovery hold one in memory.
pub const BATCH_BYTES_MAX: usize = 64 << 20;
/// A read returns at most this many bytes, but always one whole batch.
pub const READ_BYTES_MAX: usize = 64 << 20;
/// How much is read at a time where only headers are looked at: a page of a large batch, and many small ones.
pub(crate) const HEADER_SCAN_BYTES: u64 = 64 << 10;
/// How much recovery and verification read at a time when no batch is larger.
pub(crate) const SCAN_BYTES: u64 = 4 << 20;

// Positions within a segment are u32: a full segment plus one largest batch must fit.
const _: () = assert!(LogConfig::SEGMENT_BYTES_MAX as u64 + (BATCH_BYTES_MAX as u64) < u32::MAX as u64);
const _: () = assert!(RESERVE_BYTES_MIN <= ZERO_AHEAD_BYTES_MAX && ZERO_AHEAD_BYTES_MAX <= RESERVE_BYTES_MAX);
