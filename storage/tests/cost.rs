//! What the hot paths cost in allocations and calls to the disk, counted: no timing, so no noise.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::Arc;

use allocation_counter::measure;
use common::*;
use tripline_storage::batch::{BatchLimits, CheckedBatch, Compression, Validation};
use tripline_storage::fs::{OsFs, SimFs};
use tripline_storage::partition::ReadStart;
use tripline_storage::{LogConfig, Partition};

/// 16 records in a batch; what is reserved ahead of the tail holds many of them.
const RECORDS: u64 = 16;
const BATCHES: u64 = 1_000;

fn append_all(partition: &Arc<Partition>, sent: &CheckedBatch, count: u64) {
    for _ in 0..count {
        partition.append(sent, NOW_MS).unwrap();
    }
}

#[test]
fn checking_an_uncompressed_batch_allocates_nothing() {
    let sent = batch(0, RECORDS).bytes().clone();
    let limits = BatchLimits::default();
    let check = || {
        let checked = CheckedBatch::check(sent.clone(), &limits, Validation::Records).unwrap();
        assert_eq!(checked.header().attributes.compression(), Compression::None);
    };
    check();
    assert_eq!(measure(check).count_total, 0);
}

#[test]
fn an_append_is_one_call_to_the_disk_and_no_allocation_but_for_reservations_and_the_index() {
    let disk = SimFs::new();
    let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
    let (partition, _) = open(&store, LogConfig::default());
    let sent = batch(0, RECORDS);
    // Reservations double up to 16 MiB: behind this, one is good for more than what follows.
    let size_bytes = sent.size_bytes() as u64;
    append_all(&partition, &sent, (48 << 20) / size_bytes);
    let before = disk.operations();
    append_all(&partition, &sent, BATCHES);
    let reservations = BATCHES * size_bytes / (16 << 20) + 1;
    let calls = disk.operations() - before;
    assert!((BATCHES..=BATCHES + reservations).contains(&calls), "{calls} calls for {BATCHES} appends");

    let dir = tempfile::tempdir().unwrap();
    let store = open_store_on(Arc::new(OsFs), dir.path());
    let (partition, _) = open(&store, LogConfig::default());
    append_all(&partition, &sent, BATCHES);
    let allocations = measure(|| append_all(&partition, &sent, BATCHES)).count_total;
    // The index has an entry for every 16 KiB, and its vector doubles: a handful for any number of appends.
    assert!(allocations <= 3, "{allocations} allocations in {BATCHES} appends");
}

#[test]
fn a_hot_read_allocates_its_handle_and_nothing_by_batch() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store_on(Arc::new(OsFs), dir.path());
    let (partition, _) = open(&store, LogConfig::default());
    let sent = batch(0, RECORDS);
    append_all(&partition, &sent, BATCHES);
    let read = |max_bytes: usize| {
        let read = || match partition.read(offset(32), max_bytes).unwrap() {
            ReadStart::Ready(outcome) => assert!(!outcome.bytes.is_empty()),
            ReadStart::Cold(_) => panic!("it was appended by this process"),
        };
        read();
        measure(read).count_total
    };
    let (one_batch, many) = (read(1), read(1 << 20));
    assert!(one_batch <= 2, "{one_batch} allocations for one batch");
    assert_eq!(many, one_batch, "hundreds of batches");
}
