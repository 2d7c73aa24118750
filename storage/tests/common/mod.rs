//! A store in a temporary directory, small segments, and batches to put in.
#![allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "each test binary uses its part; tests play the user and the operating system"
)]

use std::path::Path;
use std::sync::Arc;

use tripline_storage::batch::{
    BatchBuilder, BatchLimits, BatchOptions, BatchProducer, Batches, CheckedBatch, NewRecord,
};
use tripline_storage::fs::sim::Fault;
use tripline_storage::fs::{Fs, OsFs, SimFs};
use tripline_storage::partition::RecoveryReport;
use tripline_storage::{LogConfig, Offset, Partition, PartitionId, Store, StoreConfig};
use uuid::Uuid;

pub(crate) const TOPIC: Uuid = Uuid::from_u128(0x7471);
pub(crate) const ID: PartitionId = PartitionId { topic: TOPIC, partition: 0 };
/// Before the files of any test were written, so that no segment seems old.
pub(crate) const NOW_MS: i64 = 1_700_000_000_000;

/// Segments of 2 KiB, so that a few batches roll one, and an index entry for nearly every batch.
pub(crate) fn small_segments() -> LogConfig {
    LogConfig { segment_bytes: 2048, index_interval_bytes: 256, ..LogConfig::default() }
}

pub(crate) fn open_store(root: &Path) -> Store {
    open_store_on(Arc::new(OsFs), root)
}

/// A flush interval of an hour: what is flushed is what the test flushes.
pub(crate) fn open_store_on(fs: Arc<dyn Fs>, root: &Path) -> Store {
    let config = StoreConfig {
        flush_interval: std::time::Duration::from_secs(3600),
        reserve_bytes: 0,
        ..StoreConfig::default()
    };
    Store::open(fs, root, config, Uuid::from_u128(1)).unwrap()
}

pub(crate) fn open(store: &Store, config: LogConfig) -> (Arc<Partition>, RecoveryReport) {
    store.open_partition(ID, config).unwrap()
}

pub(crate) fn offset(n: i64) -> Offset {
    Offset::new(n).unwrap()
}

/// A batch whose records say `text`, `text`+1 … and have timestamps from `time_ms` on.
pub(crate) fn batch_at(first: u64, count: u64, time_ms: i64) -> CheckedBatch {
    build(first, count, time_ms, BatchOptions::default())
}

pub(crate) fn batch(first: u64, count: u64) -> CheckedBatch {
    batch_at(first, count, NOW_MS)
}

pub(crate) fn producer_batch(first: u64, count: u64, producer_id: i64, sequence: i32) -> CheckedBatch {
    let producer = Some(BatchProducer { id: producer_id, epoch: 0, base_sequence: sequence });
    build(first, count, NOW_MS, BatchOptions { producer, ..BatchOptions::default() })
}

fn build(first: u64, count: u64, time_ms: i64, options: BatchOptions) -> CheckedBatch {
    let mut builder = BatchBuilder::new(options);
    for n in first..first + count {
        let value = format!("value-{n:06}-{}", "x".repeat((n % 40) as usize));
        let timestamp_ms = time_ms + (n - first) as i64;
        builder.push(&NewRecord { timestamp_ms, value: Some(value.as_bytes()), ..NewRecord::default() }).unwrap();
    }
    builder.finish().unwrap()
}

/// Appends records `from..to`, three to a batch; record n gets offset n.
pub(crate) fn append_records(partition: &Arc<Partition>, from: u64, to: u64) {
    let mut n = from;
    while n < to {
        let count = 3.min(to - n);
        let outcome = partition.append(&batch(n, count), NOW_MS).unwrap();
        assert_eq!(outcome.base_offset, offset(n as i64));
        n += count;
    }
}

/// All records from `from` on, as (offset, number in the value).
pub(crate) fn read_all(partition: &Partition, from: i64, max_bytes: usize) -> Vec<(i64, u64)> {
    let mut found = Vec::new();
    let mut at = offset(from);
    while at < partition.tail() {
        let outcome = partition.read_blocking(at, max_bytes).unwrap();
        assert!(outcome.next > at, "a read below the tail goes forward");
        for (record_offset, number) in numbers(&outcome.bytes) {
            if record_offset >= at.get() {
                found.push((record_offset, number));
            }
        }
        at = outcome.next;
    }
    found
}

pub(crate) fn numbers(bytes: &[u8]) -> Vec<(i64, u64)> {
    let mut found = Vec::new();
    for view in Batches::of(bytes) {
        let view = view.unwrap();
        view.verify_crc().unwrap();
        for record in &view.records(&BatchLimits::default()).unwrap() {
            let record = record.unwrap();
            let text = std::str::from_utf8(record.value().unwrap()).unwrap().to_owned();
            found.push((record.offset().get(), text[6..12].parse().unwrap()));
        }
    }
    found
}

/// Asserts that records `from..to` are there, each once, in order, at their offsets.
pub(crate) fn assert_records(partition: &Partition, from: u64, to: u64) {
    let expected: Vec<_> = (from..to).map(|n| (n as i64, n)).collect();
    for max_bytes in [1, 700, 1 << 20] {
        assert_eq!(read_all(partition, from as i64, max_bytes), expected, "max_bytes {max_bytes}");
    }
}

/// Opens the partition on `disk` again and again, each time with another operation that fails, and once more where that
/// was refused. Answers how often it was.
pub(crate) fn open_with_each_failure(
    disk: &SimFs,
    config: LogConfig,
    check: impl Fn(u64, &Arc<Partition>, &RecoveryReport),
) -> u64 {
    let mut refused = 0;
    for nth in 1.. {
        let disk = disk.kill();
        let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
        let before = disk.operations();
        disk.fail_nth(before + nth, Fault::Eio);
        let opened = store.open_partition(ID, config);
        if opened.is_ok() && disk.operations() - before < nth {
            break;
        }
        disk.heal();
        refused += u64::from(opened.is_err());
        let (partition, report) = opened.or_else(|_| store.open_partition(ID, config)).unwrap();
        check(nth, &partition, &report);
    }
    refused
}
