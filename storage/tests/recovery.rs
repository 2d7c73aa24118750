//! What opening does to directories after kills, cuts and damage, on a real disk.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests play the user and the operating system")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use common::*;
use tripline_storage::batch::{BatchBuilder, BatchOptions, Batches, CheckedBatch, NewRecord};
use tripline_storage::error::{AppendError, OpenLogError, OpenLogErrorKind, ReadError};
use tripline_storage::fs::sim::Fault;
use tripline_storage::fs::{Fs as _, SimFs};
use tripline_storage::partition::{OffsetRange, ReadStart, RecoveryReport};
use tripline_storage::producer::SequenceError;
use tripline_storage::{LogConfig, Offset, Partition, Store};

/// Records 0..flushed are flushed, flushed..tail are not; then the process dies (no close).
fn killed(root: &Path, flushed: u64, tail: u64) {
    let store = open_store(root);
    let (partition, _) = open(&store, small_segments());
    append_records(&partition, 0, flushed);
    partition.flush().unwrap();
    append_records(&partition, flushed, tail);
}

fn reopen(root: &Path) -> (Store, Arc<Partition>, RecoveryReport) {
    let store = open_store(root);
    let (partition, report) = open(&store, small_segments());
    (store, partition, report)
}

fn partition_dir(root: &Path) -> PathBuf {
    root.join(format!("topics/{TOPIC}/0"))
}

fn logs(root: &Path) -> Vec<PathBuf> {
    let mut logs: Vec<_> = fs::read_dir(partition_dir(root))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort();
    logs
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_killed_process_loses_nothing_and_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    killed(dir.path(), 90, 201);
    let (_store, partition, report) = reopen(dir.path());
    assert!(report.rewritten_bytes > 0 && report.cut.is_none() && report.damaged.is_empty(), "{report:?}");
    assert_eq!(partition.flushed(), offset(201), "what recovery accepted is on disk before it is served");
    assert_records(&partition, 0, 201);
    append_records(&partition, 201, 240);
    assert_records(&partition, 0, 240);
}

#[test]
fn every_length_of_a_torn_tail_yields_the_batches_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("whole");
    {
        let store = open_store(&root);
        let (partition, _) = open(&store, LogConfig::default());
        append_records(&partition, 0, 3);
        partition.flush().unwrap();
        append_records(&partition, 3, 9);
        // Dropped without close: the reserved space stays, as after a kill.
    }
    let log = logs(&root).remove(0);
    let bytes = fs::read(&log).unwrap();
    let batch_ends: Vec<usize> = {
        let mut ends = vec![];
        let mut at = 0;
        while bytes[at + 16] == 2 {
            at += 12 + u32::from_be_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
            ends.push(at);
        }
        ends
    };
    assert_eq!(batch_ends.len(), 3);
    for len in batch_ends[0]..=batch_ends[2] {
        fs::write(&log, &bytes[..len]).unwrap();
        let (_store, partition, report) = {
            let store = open_store(&root);
            let (partition, report) = open(&store, LogConfig::default());
            (store, partition, report)
        };
        let whole = batch_ends.iter().filter(|&&end| end <= len).count() as u64;
        assert_eq!(partition.tail(), offset(whole as i64 * 3), "length {len}");
        let kept = batch_ends.iter().rfind(|&&end| end <= len).copied().unwrap_or(0);
        let torn = bytes[kept..len].iter().any(|&byte| byte != 0);
        assert_eq!(report.cut.is_some(), torn, "length {len}: {report:?}");
        assert_records(&partition, 0, whole * 3);
    }
}

#[test]
fn damage_above_the_flushed_offset_cuts_there_and_keeps_the_rest_in_quarantine() {
    let dir = tempfile::tempdir().unwrap();
    killed(dir.path(), 90, 150);
    let last = logs(dir.path()).pop().unwrap();
    let base: u64 = last.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    assert!(base > 90, "the last segment is above the flushed offset");
    flip(&last, 70);
    let (_store, partition, report) = reopen(dir.path());
    let cut = report.cut.unwrap();
    assert_eq!(cut.offset, offset(base as i64));
    assert!(cut.quarantined_bytes > 0 && cut.reason.contains("CRC"), "{cut:?}");
    assert_records(&partition, 0, base);
    let kept = fs::read_dir(dir.path().join("quarantine")).unwrap().next().unwrap().unwrap();
    assert_eq!(kept.metadata().unwrap().len(), cut.quarantined_bytes);
    append_records(&partition, base, base + 10);
    assert_records(&partition, 0, base + 10);
}

#[test]
fn later_segments_go_to_quarantine_when_an_earlier_one_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    killed(dir.path(), 3, 300);
    let all = logs(dir.path());
    flip(&all[2], 70);
    let base: u64 = all[2].file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let (_store, partition, report) = reopen(dir.path());
    assert_eq!(report.cut.unwrap().offset, offset(base as i64));
    assert_records(&partition, 0, base);
    assert_eq!(logs(dir.path()).len(), 3);
    assert_eq!(fs::read_dir(dir.path().join("quarantine")).unwrap().count(), all.len() - 2);
}

#[test]
fn a_ghost_batch_with_a_wrong_base_offset_or_an_old_epoch_is_not_accepted() {
    for ghost in ["base offset", "epoch"] {
        let dir = tempfile::tempdir().unwrap();
        killed(dir.path(), 3, 3);
        drop(reopen(dir.path()));
        {
            // The second start appends under epoch 2 or higher.
            let (_store, partition, _) = reopen(dir.path());
            append_records(&partition, 3, 6);
        }
        let log = logs(dir.path()).remove(0);
        let mut bytes = fs::read(&log).unwrap();
        let first_len = 12 + u32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize;
        let second_len = 12 + u32::from_be_bytes(bytes[first_len + 8..first_len + 12].try_into().unwrap()) as usize;
        let end = first_len + second_len;
        // A whole, intact batch behind the tail, as a file's earlier life could leave it.
        let mut copy = bytes[first_len..end].to_vec();
        let base_offset: i64 = if ghost == "epoch" { 6 } else { 7 };
        copy[..8].copy_from_slice(&base_offset.to_be_bytes());
        if ghost == "epoch" {
            copy[12..16].copy_from_slice(&1_i32.to_be_bytes());
        }
        bytes.truncate(end);
        bytes.extend_from_slice(&copy);
        fs::write(&log, bytes).unwrap();
        let (_store, partition, report) = reopen(dir.path());
        assert_eq!(partition.tail(), offset(6), "{ghost}: {report:?}");
        // Zeros at the end are not told from reserved space.
        assert!(report.cut.unwrap().quarantined_bytes >= copy.len() as u64 - 1, "{ghost}");
    }
}

#[test]
fn damage_below_the_flushed_offset_is_reported_by_range_and_served_around() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open_store(dir.path());
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, 300);
        store.close();
    }
    let all = logs(dir.path());
    flip(&all[1], 70);
    let base: i64 = all[1].file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let before = fs::read(&all[1]).unwrap();
    let (_store, partition, report) = reopen(dir.path());
    assert!(report.cut.is_none());
    assert_eq!(partition.tail(), offset(300));
    let error = partition.read_blocking(offset(base), 1 << 20).unwrap_err();
    let ReadError::Damaged { from, to } = error else { panic!("{error}") };
    assert_eq!((from, to), (offset(base), offset(base + 3)), "one batch of three records");
    assert_eq!(fs::read(&all[1]).unwrap(), before, "damaged files are kept");
    assert_records(&partition, to.get() as u64, 300);
    assert_eq!(read_all(&partition, 0, 700).len() as i64, base);
}

/// `read_all` that stops at damage.
fn read_all(partition: &Partition, from: i64, max_bytes: usize) -> Vec<(i64, u64)> {
    let mut found = Vec::new();
    let mut at = offset(from);
    while at < partition.tail() {
        let Ok(outcome) = partition.read_blocking(at, max_bytes) else { break };
        found.extend(numbers(&outcome.bytes));
        at = outcome.next;
    }
    found
}

/// A batch of records with this value.
fn batch_holding(value: &[u8], count: usize) -> CheckedBatch {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    for _ in 0..count {
        builder.push(&NewRecord { timestamp_ms: NOW_MS, value: Some(value), ..NewRecord::default() }).unwrap();
    }
    builder.finish().unwrap()
}

#[test]
fn a_batch_in_the_records_of_a_damaged_one_is_not_what_follows_it() {
    for damaged_too in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let store = open_store(dir.path());
        let (partition, _) = open(&store, LogConfig::default());
        append_records(&partition, 0, 3);
        // As it would stand in a log at the second offset of the batch around it.
        let mut inner = batch_holding(b"forged", 1).bytes().to_vec();
        inner[..8].copy_from_slice(&4_i64.to_be_bytes());
        inner[12..16].copy_from_slice(&1_i32.to_be_bytes());
        partition.append(&batch_holding(&inner, 2), NOW_MS).unwrap();
        if damaged_too {
            partition.append(&batch_holding(b"behind it", 1), NOW_MS).unwrap();
        }
        let next = partition.tail();
        store.close();
        drop((partition, store));
        let log = logs(dir.path()).remove(0);
        let image = fs::read(&log).unwrap();
        let starts: Vec<usize> = Batches::of(&image)
            .scan(0, |at, view| {
                let start = *at;
                *at += view.unwrap().bytes().len();
                Some(start)
            })
            .collect();
        // The timestamp in the header, which the checksum covers.
        starts[1..].iter().for_each(|start| flip(&log, start + 30));
        let (_store, partition, _) = reopen(dir.path());
        let error = partition.read_blocking(offset(3), 1 << 20).unwrap_err();
        let ReadError::Damaged { from, to } = error else { panic!("{error}") };
        assert_eq!((from, to), (offset(3), next), "{damaged_too}");
    }
}

#[test]
fn a_damaged_header_in_the_active_segment_is_reported_when_opening() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open_store(dir.path());
        let (partition, _) = open(&store, LogConfig::default());
        append_records(&partition, 0, 30);
        store.close();
    }
    let log = logs(dir.path()).remove(0);
    let bytes = fs::read(&log).unwrap();
    let first_len = 12 + u32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize;
    // The length of the second batch: nothing behind it can be found by walking.
    flip(&log, first_len + 8);
    let store = open_store(dir.path());
    let (partition, report) = open(&store, LogConfig::default());
    assert_eq!(report.damaged, [OffsetRange { from: offset(3), to: offset(6) }]);
    assert_eq!(partition.tail(), offset(30));
    let error = partition.read_blocking(offset(3), 100).unwrap_err();
    assert!(matches!(error, ReadError::Damaged { to, .. } if to == offset(6)), "{error}");
    assert_records(&partition, 6, 30);
}

#[test]
fn a_flushed_segment_that_lost_its_end_or_its_file_never_gives_its_offsets_away() {
    for lost_file in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = open_store(dir.path());
            let (partition, _) = open(&store, small_segments());
            append_records(&partition, 0, 300);
            store.close();
        }
        let last = logs(dir.path()).pop().unwrap();
        let base: i64 = last.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        if lost_file {
            fs::remove_file(&last).unwrap();
        } else {
            fs::OpenOptions::new().write(true).open(&last).unwrap().set_len(200).unwrap();
        }
        let (_store, partition, report) = reopen(dir.path());
        assert_eq!(partition.tail(), offset(300), "lost_file {lost_file}");
        let damaged = report.damaged[0];
        assert_eq!(damaged.to, offset(300));
        assert!(damaged.from >= offset(base));
        let error = partition.read_blocking(damaged.from, 100).unwrap_err();
        assert!(matches!(error, ReadError::Damaged { to, .. } if to == offset(300)), "{error}");
        append_records(&partition, 300, 330);
        assert_records(&partition, 300, 330);
    }
}

/// What is left tells where it was long ago, which is no reason to refuse it.
#[test]
fn a_producer_goes_on_behind_damage_that_took_its_newest_batch() {
    for damage in ["header", "end", "file"] {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = open_store(dir.path());
            let (partition, _) = open(&store, small_segments());
            partition.append(&producer_batch(0, 1, 7, 0), NOW_MS).unwrap();
            partition.append(&producer_batch(1, 1, 8, 0), NOW_MS).unwrap();
            append_records(&partition, 2, 302);
            partition.append(&producer_batch(302, 1, 7, 1), NOW_MS).unwrap();
            partition.append(&producer_batch(303, 1, 9, 0), NOW_MS).unwrap();
            store.close();
        }
        let last = logs(dir.path()).pop().unwrap();
        let bytes = fs::read(&last).unwrap();
        let at = bytes.windows(8).position(|window| window == 302_i64.to_be_bytes()).unwrap();
        match damage {
            "header" => flip(&last, at + 8),
            "end" => fs::OpenOptions::new().write(true).open(&last).unwrap().set_len(at as u64).unwrap(),
            _ => fs::remove_file(&last).unwrap(),
        }
        let (_store, partition, report) = reopen(dir.path());
        assert!(!report.damaged.is_empty() && partition.tail() == offset(304), "{damage}: {report:?}");
        let again = partition.append(&producer_batch(1, 1, 8, 0), NOW_MS).unwrap();
        assert!(again.duplicate && again.base_offset == offset(1), "{damage}: {again:?}");
        if damage == "header" {
            // It stands behind the damage.
            let refused = partition.append(&producer_batch(304, 1, 9, 2), NOW_MS).unwrap_err();
            assert!(matches!(refused, AppendError::Sequence(SequenceError::OutOfOrder { .. })), "{refused}");
        }
        let next = partition.append(&producer_batch(304, 1, 7, 2), NOW_MS).map(|outcome| outcome.base_offset);
        assert!(matches!(&next, Ok(base) if *base == offset(304)), "{damage}: {next:?}");
        let refused = partition.append(&producer_batch(305, 1, 7, 4), NOW_MS).unwrap_err();
        assert!(matches!(refused, AppendError::Sequence(SequenceError::OutOfOrder { .. })), "{refused}");
    }
}

#[test]
fn indexes_seals_and_snapshots_are_hints_that_may_be_lost_or_damaged() {
    for damage in ["remove", "zero", "swap"] {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = open_store(dir.path());
            let (partition, _) = open(&store, small_segments());
            append_records(&partition, 0, 300);
            store.close();
        }
        let hints: Vec<_> = fs::read_dir(partition_dir(dir.path()))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "index" || e == "seal" || e == "snapshot"))
            .collect();
        assert!(hints.len() > 10);
        for pair in hints.chunks(2) {
            match (damage, pair) {
                ("remove", _) => pair.iter().for_each(|path| fs::remove_file(path).unwrap()),
                ("zero", _) => pair.iter().for_each(|path| fs::write(path, vec![0; 4096]).unwrap()),
                (_, [a, b]) => fs::write(a, fs::read(b).unwrap()).unwrap(),
                _ => {}
            }
        }
        let (_store, partition, report) = reopen(dir.path());
        assert!(report.cut.is_none() && report.damaged.is_empty(), "{damage}: {report:?}");
        assert_records(&partition, 0, 300);
        assert_eq!(partition.offset_for_time(NOW_MS).unwrap(), Some((offset(0), NOW_MS)));
    }
}

/// A slot of the checkpoint's file, as its format says it.
fn slot(flushed: i64, segment: i64, position: u64) -> Vec<u8> {
    let mut bytes = b"TLFL\x01\0".to_vec();
    for field in [1, flushed, segment, position.cast_signed(), 0] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn a_checkpoint_that_says_what_cannot_be_ends_no_append() {
    const FAR: i64 = 1 << 40;
    // With a segment that it speaks of, and without any.
    for (log, flushed, segment, position) in [
        (true, FAR, 0, 0),
        (true, FAR, 0, 61),
        (false, FAR, 0, 0),
        (true, i64::MAX, 0, 0),
        (false, i64::MAX, i64::MAX, 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        killed(dir.path(), 6, 6);
        let partition_dir = partition_dir(dir.path());
        if !log {
            for entry in fs::read_dir(&partition_dir).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
        fs::write(partition_dir.join("flushed"), slot(flushed, segment, position)).unwrap();
        let case = format!("log {log}, slot {flushed} {segment} {position}");
        let store = open_store(dir.path());
        let (partition, _) = store.open_partition(ID, LogConfig::default()).unwrap_or_else(|e| panic!("{case}: {e}"));
        let tail = partition.tail();
        match partition.append(&batch(0, 3), NOW_MS) {
            Ok(outcome) => {
                assert_eq!(outcome.base_offset, tail, "{case}");
                let read = partition.read_blocking(tail, 1 << 20).unwrap();
                assert_eq!(read.next.get(), tail.get() + 3, "{case}");
            }
            Err(AppendError::OutOfOffsets) => assert_eq!(tail.get(), i64::MAX, "{case}"),
            Err(other) => panic!("{case}: {other}"),
        }
    }
}

#[test]
fn without_a_checkpoint_the_seals_still_keep_recovery_from_cutting_flushed_segments() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open_store(dir.path());
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, 300);
        store.close();
    }
    fs::remove_file(partition_dir(dir.path()).join("flushed")).unwrap();
    flip(&logs(dir.path())[1], 70);
    let (_store, partition, report) = reopen(dir.path());
    assert!(report.cut.is_none(), "{report:?}");
    assert_eq!(partition.tail(), offset(300));
}

#[test]
fn alien_names_are_reported_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    killed(dir.path(), 3, 3);
    let path = |name: &str| partition_dir(dir.path()).join(name);
    let aliens = ["notes.tmp", "notes.txt"];
    aliens.iter().for_each(|alien| fs::write(path(alien), "mine").unwrap());
    fs::create_dir(path("00000000000000000099.log")).unwrap();
    fs::write(path("00000000000000000003.tmp"), "of a flush that was interrupted").unwrap();
    let (_store, _partition, report) = reopen(dir.path());
    assert_eq!(report.alien, ["00000000000000000099.log", "notes.tmp", "notes.txt"]);
    assert!(aliens.iter().all(|alien| fs::read_to_string(path(alien)).unwrap() == "mine"));
    assert!(!path("00000000000000000003.tmp").exists());
}

#[test]
fn half_a_batch_that_a_full_disk_left_is_taken_back() {
    let disk = SimFs::new();
    let root = Path::new("/data");
    let store = open_store_on(Arc::new(disk.clone()), root);
    let (partition, _) = open(&store, LogConfig::default());
    append_records(&partition, 0, 3);
    let log = Path::new("/data").join(format!("topics/{TOPIC}/0/{:020}.log", 0));
    let used = |disk: &SimFs| disk.read_image(&log).unwrap().iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let before = used(&disk);
    // The write fails in its middle, as on file systems that reserve nothing.
    disk.fail_nth(disk.operations() + 1, Fault::ShortWriteThenFull);
    let refused = partition.append(&batch(3, 30), NOW_MS).unwrap_err();
    assert!(matches!(refused, AppendError::DiskFull), "{refused}");
    assert_eq!(used(&disk), before, "nothing of it is left");
    store.look_for_room();
    append_records(&partition, 3, 6);
    drop((partition, store));
    let store = open_store_on(Arc::new(disk.kill()), root);
    let (partition, report) = open(&store, LogConfig::default());
    assert!(report.cut.is_none(), "{report:?}");
    assert_records(&partition, 0, 6);
}

#[test]
fn what_a_failed_sync_lost_is_damage_to_readers_and_never_other_bytes() {
    let disk = SimFs::new();
    let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
    let (partition, _) = open(&store, LogConfig::default());
    append_records(&partition, 0, 3);
    partition.flush().unwrap();
    // The header stays in memory, the records behind it do not.
    partition.append(&batch(3, 600), NOW_MS).unwrap();
    partition.append(&batch(603, 3), NOW_MS).unwrap();
    assert!(matches!(partition.read(offset(3), 1 << 20).unwrap(), ReadStart::Ready(_)));
    disk.fail_nth(disk.operations() + 1, Fault::EioThenEvicted);
    partition.flush().unwrap_err();
    assert!(partition.stopped().is_some());
    for from in [3, 300, 603] {
        let ReadStart::Cold(read) = partition.read(offset(from), 1 << 20).unwrap() else {
            panic!("offset {from} is served without a look at it");
        };
        let error = read.run().unwrap_err();
        assert!(matches!(error, ReadError::Damaged { .. }), "offset {from}: {error}");
    }
    let before = partition.read_blocking(Offset::ZERO, 1 << 20).unwrap();
    assert_eq!(numbers(&before.bytes), [(0, 0), (1, 1), (2, 2)]);
}

#[test]
fn what_is_still_in_memory_is_served_after_a_failed_sync_and_verified_each_time() {
    let disk = SimFs::new();
    let root = Path::new("/data");
    let store = open_store_on(Arc::new(disk.clone()), root);
    let (partition, _) = open(&store, LogConfig::default());
    append_records(&partition, 0, 9);
    disk.fail_nth(disk.operations() + 1, Fault::Eio);
    partition.flush().unwrap_err();
    for _ in 0..2 {
        assert_records(&partition, 0, 9);
    }
    // The pages go after they were verified.
    disk.flip(&root.join(format!("topics/{TOPIC}/0/{:020}.log", 0)), 100, 1).unwrap();
    let error = partition.read_blocking(Offset::ZERO, 1 << 20).unwrap_err();
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
}

#[test]
fn a_flushed_offset_that_the_disk_does_not_show_is_no_reason_to_cut() {
    let disk = SimFs::new();
    {
        let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
        let (partition, _) = open(&store, LogConfig::default());
        append_records(&partition, 0, 9);
        partition.trim(offset(4)).unwrap();
        append_records(&partition, 9, 15);
        partition.flush().unwrap();
    }
    // Above what the older slot vouches for.
    let log = Path::new("/data").join(format!("topics/{TOPIC}/0/{:020}.log", 0));
    let at = disk.read_image(&log).unwrap().iter().rposition(|&byte| byte != 0).unwrap() as u64;
    disk.flip(&log, at - 5, 1).unwrap();
    let opened = open_with_each_failure(&disk, LogConfig::default(), |nth, partition, report| {
        assert!(report.cut.is_none(), "operation {nth}: {report:?}");
        assert_eq!((partition.log_start(), partition.tail()), (offset(4), offset(15)), "operation {nth}");
    });
    assert!(opened > 10, "{opened}");
}

#[test]
fn what_a_start_writes_and_cuts_is_not_taken_for_an_append() {
    let then = UNIX_EPOCH + Duration::from_millis(NOW_MS.unsigned_abs());
    let disk = SimFs::new();
    disk.set_now(then);
    {
        let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, 40);
    }
    let disk = disk.kill();
    // Retention asks the newest append whether to believe such a clock.
    disk.set_now(then + Duration::from_secs(30 * 24 * 3600));
    for _ in 0..2 {
        let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
        let (partition, report) = open(&store, small_segments());
        assert!(report.damaged.is_empty(), "{report:?}");
        assert_eq!((partition.tail(), partition.last_append_ms()), (offset(40), Some(NOW_MS)));
    }
}

#[test]
fn a_seal_that_the_disk_does_not_show_is_no_reason_to_cut() {
    let disk = SimFs::new();
    {
        let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, 150);
        store.close();
    }
    let disk = disk.kill();
    let dir = Path::new("/data").join(format!("topics/{TOPIC}/0"));
    disk.remove_file(&dir.join("flushed")).unwrap();
    let logs: Vec<_> = disk.paths().into_iter().filter(|path| path.extension().is_some_and(|it| it == "log")).collect();
    disk.flip(&logs[logs.len() - 2], 70, 1).unwrap();
    let opened = open_with_each_failure(&disk, small_segments(), |nth, partition, report| {
        assert!(report.cut.is_none(), "operation {nth}: {report:?}");
        assert_eq!(partition.tail(), offset(150), "operation {nth}");
    });
    assert!(opened > 10, "{opened}");
}

const PAGE: u64 = 4096;
/// The record that is newer than all others, and when.
const NEWEST: (u64, i64) = (300, NOW_MS + 1_000_000);

/// The first record of the one batch of a producer.
const PRODUCED: u64 = 297;

/// The bytes of a batch, and its records.
type Place = (Range<u64>, Range<u64>);

/// A disk whose process died, with records 0..600 flushed and 600..630 not, in one segment; its log, and the batches in
/// there.
fn killed_disk() -> (SimFs, PathBuf, Vec<Place>) {
    let disk = SimFs::new();
    let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
    let (partition, _) = open(&store, one_segment());
    for n in (0..600).step_by(3) {
        let time_ms = if n == NEWEST.0 { NEWEST.1 } else { NOW_MS };
        let batch = if n == PRODUCED { producer_batch(n, 3, 7, 0) } else { batch_at(n, 3, time_ms) };
        partition.append(&batch, NOW_MS).unwrap();
    }
    partition.flush().unwrap();
    append_records(&partition, 600, 630);
    let log = Path::new("/data").join(format!("topics/{TOPIC}/0/{:020}.log", 0));
    let (mut batches, mut at) = (Vec::new(), 0);
    for view in Batches::of(&disk.read_image(&log).unwrap()).map_while(Result::ok) {
        let (end, base) = (at + view.bytes().len() as u64, view.header().base_offset.get() as u64);
        batches.push((at..end, base..view.header().next_offset().get() as u64));
        at = end;
    }
    assert_eq!(batches.len(), 210);
    (disk.kill(), log, batches)
}

fn one_segment() -> LogConfig {
    LogConfig { index_interval_bytes: 256, ..LogConfig::default() }
}

#[test]
fn what_cannot_be_read_of_what_was_flushed_refuses_the_start_as_long_as_it_cannot_and_changes_nothing() {
    let (disk, log, batches) = killed_disk();
    let flushed_to = batches[199].0.end / PAGE * PAGE;
    let end = batches[209].0.end as usize;
    let newest = batches[NEWEST.0 as usize / 3].0.start / PAGE * PAGE;
    for bad in [0..PAGE, newest..newest + PAGE, PAGE..3 * PAGE, flushed_to - PAGE..flushed_to] {
        let disk = disk.kill();
        let written = disk.read_image(&log).unwrap();
        disk.set_unreadable(&log, Some(bad.clone())).unwrap();
        let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
        for _ in 0..2 {
            let refused = store.open_partition(ID, one_segment()).unwrap_err();
            assert!(matches!(refused, OpenLogError::Io { .. }), "{refused}");
            let told = refused.to_string();
            for part in [&*log.to_string_lossy(), "with offset ", "os error 5", "nothing that was flushed", "repair`"] {
                assert!(told.contains(part), "{part} in {told}");
            }
            assert!(disk.read_image(&log).unwrap()[..end] == written[..end], "nothing was changed");
        }
        disk.set_unreadable(&log, None).unwrap();
        let (partition, report) = open(&store, one_segment());
        assert!(report.cut.is_none() && report.damaged.is_empty(), "{report:?}");
        assert_records(&partition, 0, 630);
        // What is known of producers is whole: one that sends again is answered with where it was.
        let again = partition.append(&producer_batch(PRODUCED, 3, 7, 0), NOW_MS).unwrap();
        assert_eq!((again.duplicate, again.base_offset), (true, offset(PRODUCED as i64)), "{bad:?}");
    }
}

/// So that whoever opens many partitions knows that the others are not concerned.
#[test]
fn whatever_file_the_disk_does_not_give_back_is_told_as_unreadable() {
    let disk = SimFs::new();
    let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
    let (partition, _) = open(&store, small_segments());
    append_records(&partition, 0, 150);
    partition.flush().unwrap();
    append_records(&partition, 150, 153);
    drop((partition, store));
    let with_checkpoint = disk.kill();
    let without = disk.kill();
    let checkpoint = without.paths().into_iter().find(|path| path.ends_with("flushed")).unwrap();
    without.write_image(&checkpoint, b"").unwrap();
    for (disk, expected) in [(with_checkpoint, vec!["flushed", "log"]), (without, vec!["log", "seal"])] {
        let mut told = BTreeSet::new();
        for path in disk.paths() {
            let name = path.extension().or_else(|| path.file_name()).and_then(|name| name.to_str());
            let len_bytes = disk.read_image(&path).map_or(0, |bytes| bytes.len() as u64);
            let Some(name) = name.filter(|_| len_bytes > 0 && path.starts_with("/data/topics")) else { continue };
            let disk = disk.kill();
            disk.set_unreadable(&path, Some(0..len_bytes)).unwrap();
            let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
            // Others are hints.
            let Err(refused) = store.open_partition(ID, small_segments()) else { continue };
            assert_eq!(refused.kind(), OpenLogErrorKind::Unreadable, "{}: {refused}", path.display());
            assert!(refused.to_string().contains(path.to_str().unwrap()), "{refused}");
            told.insert(name.to_owned());
            disk.set_unreadable(&path, None).unwrap();
            let (partition, report) = open(&store, small_segments());
            assert!(report.cut.is_none() && report.damaged.is_empty(), "{report:?}");
            assert_records(&partition, 0, 153);
        }
        assert_eq!(told.into_iter().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn producers_are_known_from_the_log_where_their_snapshot_cannot_be_read() {
    let disk = SimFs::new();
    let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
    let (partition, _) = open(&store, small_segments());
    partition.append(&producer_batch(0, 3, 7, 0), NOW_MS).unwrap();
    append_records(&partition, 3, 300);
    store.close();
    drop((partition, store));
    let paths = disk.paths();
    let snapshots: Vec<_> = paths.iter().filter(|path| path.extension().is_some_and(|it| it == "snapshot")).collect();
    assert!(!snapshots.is_empty());
    for path in snapshots {
        let len_bytes = disk.read_image(path).unwrap().len() as u64;
        disk.set_unreadable(path, Some(0..len_bytes)).unwrap();
    }
    let store = open_store_on(Arc::new(disk), Path::new("/data"));
    let (partition, report) = open(&store, small_segments());
    assert!(report.cut.is_none() && report.damaged.is_empty(), "{report:?}");
    let again = partition.append(&producer_batch(0, 3, 7, 0), NOW_MS).unwrap();
    assert_eq!((again.duplicate, again.base_offset), (true, Offset::ZERO));
}

#[test]
fn what_cannot_be_read_above_the_flushed_offset_is_waited_for_and_never_given_up() {
    let (disk, log, batches) = killed_disk();
    let page = batches[205].0.start / PAGE * PAGE;
    let written = disk.read_image(&log).unwrap();
    disk.set_unreadable(&log, Some(page..page + PAGE)).unwrap();
    let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
    for _ in 0..2 {
        let refused = store.open_partition(ID, one_segment()).unwrap_err();
        assert!(matches!(refused, OpenLogError::Io { .. }), "{refused}");
        assert!(disk.read_image(&log).unwrap() == written, "nothing was changed");
    }
    disk.set_unreadable(&log, None).unwrap();
    let (partition, report) = open(&store, one_segment());
    assert!(report.cut.is_none() && report.damaged.is_empty(), "{report:?}");
    assert_records(&partition, 0, 630);
}

#[test]
fn a_bad_place_of_a_sealed_segment_is_an_error_of_its_readers_and_of_no_start() {
    let (disk, log, batches) = killed_disk();
    {
        let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 630, 700);
        store.close();
    }
    let disk = disk.kill();
    let bad = 2 * PAGE..3 * PAGE;
    disk.set_unreadable(&log, Some(bad.clone())).unwrap();
    let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
    let (partition, _) = open(&store, small_segments());
    for n in 0..700 {
        let is_bad = batches
            .iter()
            .any(|(bytes, records)| records.contains(&(n as u64)) && bytes.start < bad.end && bad.start < bytes.end);
        match partition.read_blocking(offset(n), 1) {
            Ok(outcome) => assert!(!is_bad && numbers(&outcome.bytes).contains(&(n, n as u64)), "record {n}"),
            // What lies near may be an error, too.
            Err(ReadError::Io(cause)) => {
                let told = cause.to_string();
                assert!(n < 630 && told.contains(&format!("offset {n} ")) && told.contains("os error 5"), "{told}");
            }
            Err(other) => panic!("record {n}: {other}"),
        }
    }
    disk.set_unreadable(&log, None).unwrap();
    assert_records(&partition, 0, 700);
    assert_eq!(partition.offset_for_time(NEWEST.1).unwrap(), Some((offset(NEWEST.0 as i64), NEWEST.1)));
}

#[test]
fn retention_gives_back_the_space_of_segments_that_were_never_flushed() {
    let store = open_store_on(Arc::new(SimFs::new()), Path::new("/data"));
    let (partition, _) = open(&store, LogConfig { retention_bytes: Some(0), ..small_segments() });
    append_records(&partition, 0, 300);
    let before = store.free_bytes().unwrap();
    partition.enforce_retention(None, None).unwrap();
    let freed = store.free_bytes().unwrap() - before;
    assert!(freed >= 8 * 4096, "{freed} bytes of eight and more segments");
    partition.flush().unwrap();
    assert!(partition.stopped().is_none());
}

#[test]
fn what_is_cut_twice_at_one_place_is_kept_twice() {
    let dir = tempfile::tempdir().unwrap();
    killed(dir.path(), 3, 6);
    for round in 1..=3 {
        let log = logs(dir.path()).pop().unwrap();
        let bytes = fs::read(&log).unwrap();
        let first_len = 12 + u32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize;
        flip(&log, first_len + 70);
        let (_store, partition, report) = reopen(dir.path());
        assert_eq!(report.cut.unwrap().offset, offset(3), "round {round}");
        assert_eq!(fs::read_dir(dir.path().join("quarantine")).unwrap().count(), round);
        append_records(&partition, 3, 6);
    }
}

#[test]
fn side_files_without_a_segment_are_removed_and_others_kept() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open_store(dir.path());
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, 100);
        store.close();
    }
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(partition_dir(dir.path())).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    for extension in ["seal", "snapshot", "index"] {
        fs::write(partition_dir(dir.path()).join(format!("00000000000000000777.{extension}")), "of a cut log").unwrap();
    }
    drop(reopen(dir.path()));
    assert_eq!(names(), before);
}

#[test]
fn a_segment_that_is_made_anew_inherits_no_seal() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open_store(dir.path());
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, 100);
        store.close();
    }
    // All but the first segment are lost, and so are the slots; what is known of the second one is left.
    let logs = logs(dir.path());
    logs[1..].iter().for_each(|log| fs::remove_file(log).unwrap());
    logs[2..].iter().for_each(|log| drop(fs::remove_file(log.with_extension("seal"))));
    fs::remove_file(partition_dir(dir.path()).join("flushed")).unwrap();
    let tail = {
        let (_store, partition, _) = reopen(dir.path());
        partition.tail().get().unsigned_abs()
    };
    let (_store, partition, report) = reopen(dir.path());
    assert_eq!(partition.tail().get().unsigned_abs(), tail);
    assert!(report.is_clean(), "{report:?}");
    append_records(&partition, tail, tail + 9);
    assert_records(&partition, 0, tail + 9);
}
