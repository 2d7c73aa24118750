//! The slow second look at sealed segments: what it finds, and what it leaves alone.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests play the user and the operating system")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::*;
use tripline_storage::fs::SimFs;
use tripline_storage::fs::sim::Fault;
use tripline_storage::import::{CheckedSource, ImportError, ImportSource};
use tripline_storage::partition::{OffsetRange, Scrub, ScrubSlice};
use tripline_storage::{Partition, Store};

const RECORDS: u64 = 150;

/// A closed partition on a disk of the heap, and the paths of its sealed logs.
fn disk() -> (SimFs, Vec<PathBuf>) {
    let disk = SimFs::new();
    let store = open_store_on(Arc::new(disk.clone()), root());
    let (partition, _) = open(&store, small_segments());
    append_records(&partition, 0, RECORDS);
    store.close();
    drop((partition, store));
    let disk = disk.kill();
    let mut logs = disk.paths();
    logs.retain(|path| path.starts_with("/data/topics") && path.extension().is_some_and(|found| found == "log"));
    logs.pop();
    (disk, logs)
}

fn root() -> &'static Path {
    Path::new("/data")
}

fn base_of(path: &Path) -> i64 {
    path.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

/// One whole pass in slices of so many bytes: what was damaged, and how many bytes were read.
fn pass(partition: &Partition, slice_bytes: u64) -> (Vec<OffsetRange>, u64) {
    let mut scrub = Scrub::default();
    let (mut damaged, mut read_bytes) = (Vec::new(), 0);
    for _ in 0..10_000 {
        let slice = partition.scrub(&mut scrub, slice_bytes);
        damaged.extend(slice.damaged);
        read_bytes += slice.read_bytes;
        if slice.is_done {
            return (damaged, read_bytes);
        }
    }
    panic!("a pass ends");
}

fn reopened(disk: &SimFs) -> (Store, Arc<Partition>) {
    let store = open_store_on(Arc::new(disk.clone()), root());
    let (partition, _) = open(&store, small_segments());
    (store, partition)
}

#[test]
fn a_pass_reads_every_sealed_byte_once_whatever_its_slices() {
    let (disk, logs) = disk();
    let expected: u64 = logs.iter().map(|log| disk.read_image(log).unwrap().len() as u64).sum();
    let (_store, partition) = reopened(&disk);
    for slice_bytes in [1, 100, 1000, 1 << 20] {
        assert_eq!(pass(&partition, slice_bytes), (Vec::new(), expected), "{slice_bytes}");
    }
}

#[test]
fn every_flipped_byte_of_a_sealed_log_is_found_in_its_batch() {
    let (disk, logs) = disk();
    let log = &logs[1];
    let (from, to) = (base_of(log), base_of(&logs[2]));
    let len_bytes = disk.read_image(log).unwrap().len() as u64;
    let (_store, partition) = reopened(&disk);
    for byte in 0..len_bytes {
        disk.flip(log, byte, (byte % 8) as u32).unwrap();
        for slice_bytes in [1, 1 << 20] {
            let (damaged, _) = pass(&partition, slice_bytes);
            assert_eq!(damaged.len(), 1, "byte {byte}, slices of {slice_bytes}: {damaged:?}");
            let OffsetRange { from: first, to: next } = damaged[0];
            assert!(first >= offset(from) && next <= offset(to) && next.since(first) == 3, "byte {byte}: {damaged:?}");
        }
        disk.flip(log, byte, (byte % 8) as u32).unwrap();
    }
    assert!(pass(&partition, 1).0.is_empty());
    assert!(partition.stopped().is_none());
}

#[test]
fn a_disk_that_does_not_answer_is_damage_of_that_segment_and_ends_nothing() {
    let (disk, logs) = disk();
    let (_store, partition) = reopened(&disk);
    let clean = pass(&partition, 1 << 20);
    let before = disk.operations();
    pass(&partition, 1 << 20);
    let calls = disk.operations() - before;
    let mut found = 0;
    for nth in 1..=calls {
        disk.fail_nth(disk.operations() + nth, Fault::Eio);
        let (damaged, _) = pass(&partition, 1 << 20);
        disk.heal();
        assert!(damaged.len() <= 1 && partition.stopped().is_none());
        found += damaged.len();
    }
    assert!(found >= logs.len(), "{found} of {calls}");
    assert_eq!(pass(&partition, 1 << 20), clean);
}

#[test]
fn without_descriptors_a_pass_waits_where_it_is_and_takes_nothing_for_damage() {
    let (disk, logs) = disk();
    let (_store, partition) = reopened(&disk);
    let mut scrub = Scrub::default();
    let mut read_bytes = 0;
    for log in &logs {
        disk.fail_from(disk.operations() + 1, Fault::Emfile);
        for _ in 0..3 {
            // As if it had read: whoever reads so much a second looks again when it would go on.
            let waits = ScrubSlice { read_bytes: 1000, ..ScrubSlice::default() };
            assert_eq!(partition.scrub(&mut scrub, 1000), waits, "{}", log.display());
        }
        disk.heal();
        let slice = partition.scrub(&mut scrub, 1 << 20);
        assert!(slice.damaged.is_empty() && !slice.is_done, "{slice:?}");
        read_bytes += slice.read_bytes;
    }
    assert!(partition.scrub(&mut scrub, 1 << 20).is_done);
    let all: u64 = logs.iter().map(|log| disk.read_image(log).unwrap().len() as u64).sum();
    assert_eq!((read_bytes, partition.stopped().is_none()), (all, true), "nothing was passed over");
}

#[test]
fn segments_that_go_during_a_pass_are_no_damage() {
    let (disk, logs) = disk();
    let (_store, partition) = reopened(&disk);
    let mut scrub = Scrub::default();
    let first = partition.scrub(&mut scrub, 1);
    assert!(first.read_bytes > 0 && !first.is_done);
    partition.trim(offset(base_of(&logs[2]))).unwrap();
    let mut damaged = Vec::new();
    loop {
        let slice = partition.scrub(&mut scrub, 100);
        damaged.extend(slice.damaged);
        if slice.is_done {
            break;
        }
    }
    assert!(damaged.is_empty(), "{damaged:?}");
}

#[test]
fn what_is_appended_and_rolled_during_a_pass_is_read_too() {
    let (disk, _) = disk();
    let (_store, partition) = reopened(&disk);
    let (_, before) = pass(&partition, 1 << 20);
    append_records(&partition, RECORDS, RECORDS + 60);
    let (damaged, after) = pass(&partition, 500);
    assert!(damaged.is_empty() && after > before, "{damaged:?} {before} {after}");
}

#[test]
fn an_imported_log_with_a_gap_beyond_any_index_is_looked_up_by_time_and_whole() {
    const FAR: i64 = 6_000_000_000;
    let disk = SimFs::new();
    let kafka = Path::new("/kafka/t-0");
    disk.write_image(&kafka.join(format!("{:020}.log", 0)), &[]).unwrap();
    let mut bytes = batch(0, 3).bytes().to_vec();
    bytes[..8].copy_from_slice(&FAR.to_be_bytes());
    bytes[12..16].copy_from_slice(&0_i32.to_be_bytes());
    disk.write_image(&kafka.join(format!("{FAR:020}.log")), &bytes).unwrap();
    let source = ImportSource { dir: kafka.to_owned(), log_start: None };
    let store = open_store_on(Arc::new(disk.clone()), root());
    let checked = CheckedSource::check(&disk, &source, &mut |_| {}).unwrap();
    store.import_partition(ID, &checked, NOW_MS, &mut |_| {}).unwrap();
    let (partition, report) = open(&store, small_segments());
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((partition.log_start(), partition.tail()), (offset(0), offset(FAR + 3)));
    assert_eq!(partition.offset_for_time(0).unwrap(), Some((offset(FAR), NOW_MS)));
    assert_eq!(partition.offset_for_time(NOW_MS + 2).unwrap(), Some((offset(FAR + 2), NOW_MS + 2)));
    assert_eq!(pass(&partition, 1 << 20).0, []);
    // Kafka's own index could not tell of such a batch either.
    let within = Path::new("/kafka/u-0");
    disk.write_image(&within.join(format!("{:020}.log", 0)), &bytes).unwrap();
    let source = ImportSource { dir: within.to_owned(), log_start: None };
    let refused = CheckedSource::check(&disk, &source, &mut |_| {}).unwrap_err();
    assert!(matches!(refused, ImportError::Damaged { .. }), "{refused}");
}
