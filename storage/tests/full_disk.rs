//! A disk that fills up: what is refused, what goes on, and how it ends.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use tripline_storage::error::AppendError;
use tripline_storage::fs::{Fs, SimFs};
use tripline_storage::{LogConfig, Offset, Partition, Store, StoreConfig};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

fn start(disk: &SimFs, flush_interval: Duration) -> (Store, Arc<Partition>, Arc<Partition>) {
    let config = StoreConfig { flush_interval, reserve_bytes: 4 * MIB, ..StoreConfig::default() };
    let fs: Arc<dyn Fs> = Arc::new(disk.clone());
    let store = Store::open(fs, Path::new("/data"), config, Uuid::from_u128(1)).unwrap();
    let (journal, _) = store.open_state(LogConfig::default()).unwrap();
    let (partition, _) = open(&store, LogConfig::default());
    (store, partition, journal)
}

/// Leaves `free_bytes` on the disk.
fn fill(disk: &SimFs, free_bytes: u64) {
    let used = (1 << 40) - disk.free_bytes(Path::new("/data")).unwrap();
    disk.set_capacity(used + free_bytes);
}

fn disk() -> SimFs {
    let disk = SimFs::new();
    disk.set_capacity(1 << 40);
    disk
}

fn is_full(outcome: Result<tripline_storage::partition::AppendOutcome, AppendError>) -> bool {
    matches!(outcome, Err(AppendError::DiskFull))
}

#[test]
fn appends_are_refused_reads_and_reserved_appends_go_on_until_the_reserve_is_spent() {
    let disk = disk();
    let (store, partition, journal) = start(&disk, Duration::from_secs(3600));
    assert_eq!(store.reserve_held_bytes(), 4 * MIB);
    append_records(&partition, 0, 10);
    partition.flush().unwrap();
    fill(&disk, 0);
    // What was reserved ahead of the tail is still there.
    while !is_full(partition.append(&batch(0, 20), NOW_MS)) {}
    assert!(store.is_disk_full());
    partition.read_blocking(Offset::ZERO, 1 << 20).unwrap();
    partition.flush().unwrap();
    let mut reserved = 0;
    while !is_full(journal.append_reserved(&batch(0, 20), NOW_MS)) {
        reserved += 1;
        assert!(is_full(partition.append(&batch(0, 1), NOW_MS)), "nobody else takes what the reserve gives");
        journal.flush().unwrap();
    }
    assert!(reserved > 1_000, "{reserved} batches from the reserve");
    assert_eq!(store.reserve_held_bytes(), 0);
    assert!(partition.stopped().is_none() && journal.stopped().is_none(), "a full disk passes");
}

#[test]
fn a_retry_of_a_producer_is_answered_on_a_full_disk_too() {
    let disk = disk();
    let (_store, partition, _) = start(&disk, Duration::from_secs(3600));
    let sent = producer_batch(0, 3, 7, 0);
    let first = partition.append(&sent, NOW_MS).unwrap();
    fill(&disk, 0);
    while !is_full(partition.append(&batch(0, 20), NOW_MS)) {}
    let again = partition.append(&sent, NOW_MS).unwrap();
    assert!(again.duplicate && again.base_offset == first.base_offset);
}

#[test]
fn service_returns_by_itself_when_there_is_room_and_the_reserve_is_whole_again_first() {
    let disk = disk();
    let (store, partition, journal) = start(&disk, Duration::from_millis(1));
    fill(&disk, 0);
    while !is_full(partition.append(&batch(0, 20), NOW_MS)) {}
    while store.reserve_held_bytes() == 4 * MIB {
        journal.append_reserved(&batch(0, 20), NOW_MS).unwrap();
    }
    disk.set_capacity(1 << 40);
    let mut refused = 0;
    while is_full(partition.append(&batch(0, 1), NOW_MS)) {
        refused += 1;
        // Nothing tells of it but an append: it is looked at every second.
        std::thread::sleep(Duration::from_millis(20));
        assert!(refused < 3_000, "service did not return");
    }
    assert_eq!((store.reserve_held_bytes(), store.is_disk_full()), (4 * MIB, false));
}

#[test]
fn a_start_on_a_full_disk_draws_from_the_reserve_what_the_epoch_needs() {
    let disk = disk();
    let (store, partition, _) = start(&disk, Duration::from_secs(3600));
    append_records(&partition, 0, 10);
    store.close();
    drop((store, partition));
    fill(&disk, 0);
    let (store, partition, _) = start(&disk, Duration::from_secs(3600));
    assert!(store.is_disk_full() && store.reserve_held_bytes() < 4 * MIB);
    assert!(is_full(partition.append(&batch(0, 20), NOW_MS)));
    assert_records(&partition, 0, 10);
    disk.set_capacity(1 << 40);
    store.look_for_room();
    append_records(&partition, 10, 20);
}
