//! Appenders, readers, flush threads and retention on one partition at once, on the real disk.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests play the user and the operating system")]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{ID, NOW_MS, offset};
use event_listener::Listener;
use tripline_storage::batch::{BatchBuilder, BatchLimits, BatchOptions, BatchProducer, Batches, NewRecord};
use tripline_storage::error::ReadError;
use tripline_storage::fs::OsFs;
use tripline_storage::partition::{ReadOutcome, ReadStart};
use tripline_storage::{LogConfig, Offset, Partition, Store, StoreConfig};
use uuid::Uuid;

const APPENDERS: u64 = 4;
const BATCHES: u64 = 300;
const RECORDS: u64 = 3;
const TOTAL: i64 = (APPENDERS * BATCHES * RECORDS) as i64;

fn open(root: &std::path::Path, config: LogConfig) -> (Store, Arc<Partition>) {
    let store_config = StoreConfig {
        flush_interval: Duration::from_millis(1),
        flush_threads: 2,
        open_segments_max: 2,
        reserve_bytes: 0,
        ..StoreConfig::default()
    };
    let store = Store::open(Arc::new(OsFs), root, store_config, Uuid::from_u128(1)).unwrap();
    let (partition, _) = store.open_partition(ID, config).unwrap();
    (store, partition)
}

fn config() -> LogConfig {
    LogConfig { segment_bytes: 4096, index_interval_bytes: 512, retention_age: None, ..LogConfig::default() }
}

/// Appends batches whose records say who wrote them and which of his they are. Each third batch waits until it is
/// durable, and each tenth is sent twice.
fn append_all(partition: &Arc<Partition>, appender: u64) {
    for batch in 0..BATCHES {
        let base_sequence = i32::try_from(batch * RECORDS).unwrap();
        let producer = Some(BatchProducer { id: appender as i64, epoch: 0, base_sequence });
        let mut builder = BatchBuilder::new(BatchOptions { producer, ..BatchOptions::default() });
        for record in 0..RECORDS {
            let value = format!("{appender} {}", batch * RECORDS + record);
            let record = NewRecord { timestamp_ms: NOW_MS, value: Some(value.as_bytes()), ..NewRecord::default() };
            builder.push(&record).unwrap();
        }
        let checked = builder.finish().unwrap();
        let outcome = partition.append(&checked, NOW_MS).unwrap();
        assert_eq!(outcome.last_offset.get() - outcome.base_offset.get(), RECORDS as i64 - 1);
        if batch % 10 == 0 {
            let again = partition.append(&checked, NOW_MS).unwrap();
            assert!(again.duplicate && again.base_offset == outcome.base_offset, "{again:?}");
        }
        if batch % 3 == 0 {
            wait_until_durable(partition, outcome.last_offset.next());
        }
    }
}

fn wait_until_durable(partition: &Arc<Partition>, until: Offset) {
    loop {
        let listener = partition.listen_flush();
        partition.request_flush();
        if partition.flushed() >= until {
            return;
        }
        listener.wait();
    }
}

/// Follows the log to its end and demands that offsets are dense and each appender's records in order.
fn follow(partition: &Arc<Partition>, max_bytes: usize) -> i64 {
    let mut at = offset(0);
    let mut seen = 0;
    let mut next_of: HashMap<u64, u64> = HashMap::new();
    while at < offset(TOTAL) {
        let listener = partition.listen_tail();
        if partition.tail() == at {
            listener.wait();
            continue;
        }
        let outcome = match read(partition, at, max_bytes) {
            Ok(outcome) => outcome,
            Err(ReadError::OutOfRange { log_start, .. }) if log_start > at => {
                at = log_start;
                next_of.clear();
                continue;
            }
            Err(other) => panic!("read at {at}: {other}"),
        };
        assert!(outcome.next > at && outcome.next <= outcome.tail, "{at} to {} of {}", outcome.next, outcome.tail);
        for (record_offset, appender, number) in records(&outcome.bytes) {
            assert_eq!(record_offset, at.get(), "offsets are dense");
            let expected = next_of.entry(appender).or_insert(number);
            assert_eq!(number, *expected, "records of appender {appender}");
            *expected = number + 1;
            at = at.next();
            seen += 1;
        }
        assert_eq!(at, outcome.next);
    }
    seen
}

fn read(partition: &Arc<Partition>, at: Offset, max_bytes: usize) -> Result<ReadOutcome, ReadError> {
    match partition.read(at, max_bytes)? {
        ReadStart::Ready(outcome) => Ok(outcome),
        ReadStart::Cold(cold) => cold.run(),
    }
}

fn records(bytes: &[u8]) -> Vec<(i64, u64, u64)> {
    let mut found = Vec::new();
    for view in Batches::of(bytes) {
        let view = view.unwrap();
        view.verify_crc().unwrap();
        for record in &view.records(&BatchLimits::default()).unwrap() {
            let record = record.unwrap();
            let text = std::str::from_utf8(record.value().unwrap()).unwrap();
            let (appender, number) = text.split_once(' ').unwrap();
            found.push((record.offset().get(), appender.parse().unwrap(), number.parse().unwrap()));
        }
    }
    found
}

#[test]
fn appenders_readers_and_flushes_at_once_keep_every_record_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (store, partition) = open(dir.path(), config());
    std::thread::scope(|scope| {
        for appender in 0..APPENDERS {
            let partition = &partition;
            scope.spawn(move || append_all(partition, appender));
        }
        for max_bytes in [1, 2_000, 1 << 20] {
            let partition = &partition;
            scope.spawn(move || assert_eq!(follow(partition, max_bytes), TOTAL));
        }
    });
    assert_eq!(partition.tail(), offset(TOTAL));
    store.close();
    drop((partition, store));
    let (_store, partition) = open(dir.path(), config());
    assert_eq!(follow(&partition, 5_000), TOTAL, "and after a restart");
}

#[test]
fn readers_that_retention_overtakes_are_told_and_read_on_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (store, partition) = open(dir.path(), LogConfig { retention_bytes: Some(20_000), ..config() });
    let appending = AtomicUsize::new(APPENDERS as usize);
    std::thread::scope(|scope| {
        let (partition, appending) = (&partition, &appending);
        for appender in 0..APPENDERS {
            scope.spawn(move || {
                append_all(partition, appender);
                appending.fetch_sub(1, Ordering::Release);
            });
        }
        scope.spawn(move || {
            while appending.load(Ordering::Acquire) > 0 {
                partition.enforce_retention(Some(NOW_MS), None).unwrap();
                // `None` before the first append, and when all but an empty active segment went.
                let found = partition.offset_for_time(NOW_MS).unwrap();
                assert!(found.is_none_or(|(at, _)| at < partition.tail()), "{found:?}");
            }
        });
        for max_bytes in [1, 2_000] {
            scope.spawn(move || follow(partition, max_bytes));
        }
    });
    assert!(partition.log_start() > offset(0));
    let start = partition.log_start();
    store.close();
    drop((partition, store));
    let (_store, partition) = open(dir.path(), config());
    assert_eq!(partition.log_start(), start);
    assert_eq!(follow(&partition, 5_000), TOTAL - start.get());
}
