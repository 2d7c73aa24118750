//! The log that is the queue: partitions of record batches in a data directory, appended to by one process, read
//! through memory maps, recovered after anything.
//!
//! Synchronous. Knows neither tokio, nor the network, nor the clock (`now_ms` is passed in), nor topics' names, groups,
//! functions and triggers, nor Kafka's requests: of Kafka it knows the record batch alone.
//!
//! # Promises
//! What [`Partition::append`] answered is in the page cache: it survives any death of the process. What
//! [`Partition::flush`] answered survives a power cut. Of the rest a power cut takes only from the end; the flush
//! interval ([`StoreConfig::flush_interval`]) bounds how much. What is found after a start is a prefix of what was
//! appended, each record once, at its offset, unchanged. A retry of an idempotent producer is answered and not
//! appended, also after a restart. A failed sync is never tried again: the partition stops ([`error::Stopped`]), what
//! it serves from then on is verified each time, and the next start writes what it accepts anew. A full disk refuses
//! appends and passes; [`Partition::append_reserved`] goes on from a reserve meanwhile. A want of descriptors refuses
//! what needs a new segment, lets flushes wait for a moment, puts off retention and compaction, and passes. Damage to
//! what was flushed is reported by offset range ([`error::ReadError::Damaged`]) and served around; nothing behind it is
//! lost. What the disk does not give back may come back: reads of it answer [`error::ReadError::Io`], compaction goes
//! around its segment, and a partition that needs it to be opened, as it needs all of its active segment, is not
//! opened, nor is one that has no room to be recovered ([`error::OpenLogErrorKind`]), until there is some
//! ([`Store::open_late`]); nothing is thrown away because of it. What cannot belong to the log any more is kept in
//! `quarantine/`.
//!
//! # A data directory
//!
//! | name | what it is | layout by byte | lost or damaged |
//! |---|---|---|---|
//! | `FORMAT` | version of the format, cluster id; text with a checksum | `store.rs` | refused untouched |
//! | `EPOCH` | leader epoch of the last start; text with a checksum | `store.rs` | refused untouched |
//! | `LOCK` | locked by the process that has the directory; empty | | made anew |
//! | `reserve` | blocks kept back for a full disk; says nothing | `reserve.rs` | made anew |
//! | `topics/<topic id>/<partition>/` | a partition | below | |
//! | `state/` | the partition of the state journal | below | |
//! | `quarantine/` | what recovery or a repair cut off or replaced, named after partition, file and position; nothing reads it | | |
//! | `REPAIRING` | a repair was begun and did not end; text | | refused until it is repaired again |
//! | `trash/` | removed topics on their way out; emptied at each start | | |
//!
//! A partition's directory; `<base>` is the base offset of a segment in 20 digits:
//!
//! | name | what it is | layout by byte | lost or damaged |
//! |---|---|---|---|
//! | `<base>.log` | record batches as Kafka stores them, then zeros up to the reserved length | [`batch::header`] | see the promises |
//! | `<base>.seal` | what is known of a sealed segment; evidence that it was flushed | `segment/seal.rs` | times are estimated |
//! | `<base>.index` | where to look for an offset or a time | `index.rs` | rebuilt in memory |
//! | `<base>.snapshot` | the idempotent producers as of `<base>` | [`producer`], `snapshot.rs` | rebuilt from an older one or the log |
//! | `flushed` | flushed offset and log start, in two slots | `checkpoint.rs` | more is verified and written again; a start inside a segment goes back to its base |
//! | `<base>.tmp` | one of the above being written | | removed |
//! | `<base>.clean` | a log file that compaction is writing | [`batch::header`] | removed, unless there is the next one |
//! | `<base>.swap` | the seal of a finished one: from here on it replaces what it was made from | `segment/seal.rs` | the old segments stay |
//! | `compacted` | how far compaction came | `cleaned.rs` | more is gone over again |
//!
//! Our own files are little-endian, start with a magic and a version, and end with a CRC-32; `format.rs` holds what
//! they share, and golden bytes beside each hold the layouts. Files that we did not make are reported and left alone.
//!
//! # Invariants
//! Each with where it is kept or asserted, and the tests that would notice. `model` stands for `tests/model.rs`,
//! `exhaustive` for `tests/exhaustive.rs`, and so on.
//!
//! - **S1** Bytes below the published length never change while the segment lives. Asserted in `Published::move_to`
//!   (the length only grows); `Partition::write` writes behind it only; what cuts a file (roll, close, taking back half
//!   a batch) cuts there. Tested by `loom`, `concurrency` and by slices held in `log`.
//! - **S2** Offsets only grow, and batches are dense: each begins where the one before ended. In a batch as it was
//!   appended records are dense, too; compaction takes some out, so that offsets are missing inside of batches of
//!   sealed segments, and nowhere else: where whole batches go, or import and repair leave something out, an empty one
//!   stands for their offsets. So no reader takes damage for a gap. Asserted in `Partition::publish`; `DenseWalk`
//!   demands it of everything read back. Tested by `model`, by `compaction` and by flipped base offsets in
//!   `exhaustive`.
//! - **S3** What was answered as flushed is on disk. `Partition::sync` syncs contents before the flushed offset moves,
//!   and names before they are needed; recovery syncs both before it answers. Tested by `model` (also with disks that
//!   fake syncs) and by the power cuts of `exhaustive`.
//! - **S4** Recovery yields a prefix: every batch before the cut, none after. `scan_chain` and `scan`. Tested by
//!   `model`, `recovery` and flipped bytes above the flushed offset in `exhaustive`.
//! - **S5** Recovery never drops a byte below the flushed offset. `newest_evidence` takes the best of slots and seals;
//!   `scan` starts there. Compaction drops only what a newer record or time has made void: `Rules::keeps`. Tested by
//!   flipped bytes in `exhaustive`, by lost ends and files in `recovery`, and by `compaction`.
//! - **S6** A sealed segment is immutable. `SealedSegment` has nothing that writes; compaction makes another one, with
//!   another file, in its place. Tested with S1.
//! - **S7** A reader holding a slice keeps its map alive, also when the segment was removed. `MapSlice` in `map.rs`.
//!   Tested there and in `log`.
//! - **S8** No durable commit is ahead of its durable data. [`Partition::flush_first`] flushes the data before the
//!   commit is; the broker says which. A commit that the kernel wrote back by itself before either may survive a power
//!   cut without its data: the broker sets it back to the tail before it serves the partition. Tested by the broker.
//!
//! # Why the disk is treated so
//! What was measured, chosen and rejected, on ext4 and xfs, is in `docs/disk.md` of this crate.
//!
//! # Locks
//! Of a partition, in the order in which they may be taken: compaction (`cleaner`), retention (`condemned`), flush
//! (`checkpoint`), append (`writer`), `files`. Besides these only leaves, held for a look or an assignment: settings,
//! the list of sources to flush first, a segment's index and its verified range, the store's open segments, and what
//! tries to open a partition had cut. A flush takes the flush locks of its sources while it holds its own: sources
//! never wait for whom they are sources of. Readers take `files` and leaves only, and no lock is held while a reader
//! waits for the disk. `Store::opening` is taken before `Store::partitions`.
//!
//! # Files
//! - `offset.rs`: offsets, epochs and partition names; `limits.rs`, `config.rs`, `error.rs`: numbers, settings,
//!   failures.
//! - `batch.rs`, `batch/`: the record batch: checked views, builder, record walker, codecs. Pure.
//! - `producer.rs`, `producer/snapshot.rs`: sequence checks of idempotent producers, and their snapshot. Pure.
//! - `retention.rs`: which segments may go, and the clock that is believed for that. Pure.
//! - `compaction.rs`: when a log is due, which records stay, the map of keys. Pure. `batch/retain.rs`: a batch with
//!   fewer records. `cleaned.rs`: how far compaction came.
//! - `fs.rs`: the door to the disk and its contract; `fs/os.rs`: the operating system; `fs/sim.rs`, `fs/sim/`: a disk
//!   on the heap that loses power.
//! - `map.rs`: read-only maps, the only unsafe code.
//! - `format.rs`: fields of our own small files; `index.rs`, `checkpoint.rs`, `segment/seal.rs`: three of them.
//! - `segment.rs`: active and sealed segments; `segment/walk.rs`: batch by batch; `segment/open.rs`: open sealed
//!   segments; `segment/audit.rs`: with every check there is; `segment/heal.rs`: headers whose right bytes are known.
//! - `progress.rs`: published length, tail, flushed offset, and whose turn it is to flush, without a lock; `sync.rs`:
//!   what it is made of.
//! - `flush.rs`: threads that flush; `reserve.rs`: space kept back for a full disk.
//! - `partition.rs`: append, roll, stop; `partition/space.rs`: space ahead of the tail; `partition/durable.rs`: flush;
//!   `partition/read.rs`: read by offset and time; `partition/maintain.rs`: retention, trim, close;
//!   `partition/compact.rs`, `partition/compact/rewrite.rs`: compaction.
//! - `partition/recover.rs`: opening after anything; `partition/recover/settle.rs`: the cut and the quarantine;
//!   `partition/recover/rebuild.rs`: index, facts and producers from the log; `partition/recover/swap.rs`: compactions
//!   that were interrupted.
//! - `partition/scrub.rs`: reading sealed segments again, in slices.
//! - `store.rs`: the data directory: format, lock, epoch, partitions, trash.
//! - `import.rs`, `import/`: partitions that Kafka wrote, taken over; `import/transactions.rs` is pure.
//! - `offline.rs`, `offline/`: tools for a directory that no broker works in: `inspect.rs` and `dump.rs` show,
//!   `check.rs` reads all of it and `verify.rs` tells what is wrong, `repair.rs` and `repair/` mend.
#![deny(unsafe_code)]

pub mod batch;
mod checkpoint;
mod cleaned;
pub mod compaction;
pub mod config;
pub mod error;
mod flush;
mod format;
pub mod fs;
pub mod import;
mod index;
pub mod limits;
mod map;
pub mod offline;
pub mod offset;
pub mod partition;
pub mod producer;
mod progress;
mod reserve;
pub mod retention;
mod segment;
pub mod store;
mod sync;

pub use config::{CompactionConfig, LogConfig, StoreConfig};
pub use offset::{LeaderEpoch, Offset, PartitionId};
pub use partition::Partition;
pub use store::Store;
