//! A disk that fills up: what is refused, what goes on, and how it ends.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::*;
use tripline_storage::batch::Batches;
use tripline_storage::error::{AppendError, OpenLogErrorKind};
use tripline_storage::fs::sim::{Call, Fault, Operation};
use tripline_storage::fs::{Fs, OpenMode, SimFs};
use tripline_storage::partition::RecoveryReport;
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
    disk.set_capacity(1 << 40);
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

/// A partition whose third segment is damaged above the flushed offset, as a kill leaves it, and which offset the
/// damage has.
fn damaged() -> (SimFs, Offset) {
    let disk = disk();
    let (_store, partition, _) = recover(&disk).unwrap();
    append_records(&partition, 0, 3);
    partition.flush().unwrap();
    append_records(&partition, 3, 300);
    let log = logs(&disk).swap_remove(2);
    disk.flip(&log, 70, 4).unwrap();
    let base: i64 = log.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    (disk, offset(base))
}

fn logs(disk: &SimFs) -> Vec<PathBuf> {
    let partition = format!("/data/topics/{TOPIC}/0");
    disk.paths()
        .into_iter()
        .filter(|path| path.starts_with(&partition) && path.extension().is_some_and(|extension| extension == "log"))
        .collect()
}

/// Whether `bytes`, but for zeros behind their end, are in quarantine.
fn keeps(disk: &SimFs, bytes: &[u8]) -> bool {
    let kept = disk.paths().into_iter().filter(|path| path.starts_with("/data/quarantine"));
    kept.filter_map(|path| disk.read_image(&path).ok()).any(|kept| without_zeros(&kept) == without_zeros(bytes))
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)]
}

/// `None` where not even the store opens.
fn recover(disk: &SimFs) -> Option<(Store, Arc<Partition>, RecoveryReport)> {
    let config =
        StoreConfig { reserve_bytes: 4 * MIB, flush_interval: Duration::from_secs(3600), ..StoreConfig::default() };
    let store = Store::open(Arc::new(disk.clone()), Path::new("/data"), config, Uuid::from_u128(1)).ok()?;
    let (partition, report) = open(&store, small_segments());
    Some((store, partition, report))
}

#[test]
fn a_recovery_that_meets_a_full_disk_anywhere_tells_what_it_cut_and_keeps_all_of_it() {
    let (disk, base) = damaged();
    let cut_off: Vec<_> = logs(&disk).split_off(2).iter().map(|log| disk.read_image(log).unwrap()).collect();
    let undisturbed = disk.kill();
    let (_, _, report) = recover(&undisturbed).unwrap();
    let cut_bytes = report.cut.unwrap().quarantined_bytes;
    assert!(cut_bytes >= cut_off.iter().map(|bytes| without_zeros(bytes).len() as u64).sum());

    let mut retried = 0;
    for number in 1..=undisturbed.operations() {
        let disk = disk.kill();
        disk.fail_nth(number, Fault::Enospc);
        let Some((store, partition, report)) = recover(&disk) else { continue };
        let cut = report.cut.unwrap_or_else(|| panic!("operation {number}: nothing is said of the cut"));
        assert_eq!((cut.offset, cut.quarantined_bytes), (base, cut_bytes), "operation {number}: {}", cut.reason);
        retried += u32::from(store.is_disk_full());
        assert_records(&partition, 0, base.get().unsigned_abs());
        drop((store, partition));
        let after = disk.crash(number);
        for (nth, bytes) in cut_off.iter().enumerate() {
            assert!(keeps(&after, bytes), "operation {number}: segment {nth} of those cut off is lost in a power cut");
        }
        let (_store, partition, report) = recover(&after).unwrap();
        assert!(report.cut.is_none(), "operation {number}: cut again after a power cut: {report:?}");
        assert_records(&partition, 0, base.get().unsigned_abs());
    }
    assert!(retried > 20, "only {retried} starts met a full disk");
}

#[test]
fn without_descriptors_a_roll_is_refused_and_a_flush_waits_and_nothing_stops() {
    let disk = disk();
    let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
    let (partition, _) = open(&store, small_segments());
    let mut next = 0;
    for _ in 0..3 {
        disk.fail_from(disk.operations() + 1, Fault::Emfile);
        let error = loop {
            match partition.append(&batch(next, 3), NOW_MS) {
                Ok(_) => next += 3,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, AppendError::NoDescriptors(_)), "{error}");
        assert!(partition.append(&batch(next, 3), NOW_MS).is_err());
        disk.heal();
        append_records(&partition, next, next + 3);
        next += 3;
        // The name of the new segment is still to be made durable.
        disk.fail_from(disk.operations() + 1, Fault::Emfile);
        std::thread::scope(|scope| {
            let flushing = scope.spawn(|| partition.flush());
            std::thread::sleep(Duration::from_millis(50));
            assert!(partition.flushed() < partition.tail() && !flushing.is_finished());
            disk.heal();
            assert_eq!(flushing.join().unwrap().unwrap(), partition.tail());
        });
        assert!(partition.stopped().is_none());
    }
    drop((partition, store));
    let store = open_store_on(Arc::new(disk.crash(3)), Path::new("/data"));
    assert_records(&open(&store, small_segments()).0, 0, next);
}

#[test]
fn a_roll_that_finds_no_space_to_cut_leaves_no_segment_behind() {
    // The next batch rolls.
    let written = |disk: &SimFs| {
        let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
        let (partition, _) = open(&store, small_segments());
        let mut next = 0;
        while partition.len_bytes() + batch(next, 3).bytes().len() as u64 <= 2048 {
            append_records(&partition, next, next + 3);
            next += 3;
        }
        (store, partition, next)
    };
    let mut cuts = 0;
    for nth in 1.. {
        let disk = SimFs::new();
        let (store, partition, next) = written(&disk);
        let (before, segments) = (disk.operations(), logs(&disk));
        disk.fail_nth(before + nth, Fault::Enospc);
        let outcome = partition.append_reserved(&batch(next, 3), NOW_MS);
        if disk.operations() < before + nth {
            assert_eq!(logs(&disk).len(), segments.len() + 1, "it rolls");
            break;
        }
        let failed = disk.history().into_iter().find(|operation| operation.number == before + nth).unwrap();
        disk.heal();
        if failed.call != Call::Truncate {
            continue;
        }
        cuts += 1;
        assert!(is_full(outcome) && partition.stopped().is_none(), "{failed}");
        assert_eq!(logs(&disk), segments, "{failed}");
        // The log goes on where it was, over what would have been the next segment's first offset.
        partition.set_config(LogConfig::default());
        for n in (next..next + 60).step_by(3) {
            partition.append_reserved(&batch(n, 3), NOW_MS).unwrap();
        }
        assert_eq!(logs(&disk), segments);
        drop((partition, store));
        let store = open_store_on(Arc::new(disk.kill()), Path::new("/data"));
        let (partition, report) = open(&store, LogConfig::default());
        assert!(report.cut.is_none() && report.damaged.is_empty(), "{report:?}");
        assert_records(&partition, 0, next + 60);
    }
    assert_eq!(cuts, 1);
}

#[test]
fn half_a_batch_that_cannot_be_cut_off_at_once_is_before_the_next_is_written() {
    let disk = SimFs::new();
    let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
    let (partition, _) = open(&store, LogConfig::default());
    append_records(&partition, 0, 30);
    let log = logs(&disk).pop().unwrap();
    // The write, and then everything that takes space.
    disk.fail_from(disk.operations() + 1, Fault::ShortWriteThenFull);
    assert!(is_full(partition.append_reserved(&batch(30, 20), NOW_MS)));
    assert!(disk.history().iter().any(|operation| operation.call == Call::Truncate), "{:?}", disk.history());
    assert!(is_full(partition.append_reserved(&batch(30, 1), NOW_MS)));
    disk.heal();
    partition.append_reserved(&batch(30, 1), NOW_MS).unwrap();
    let bytes = disk.read_image(&log).unwrap();
    let end: usize = Batches::of(&bytes).map_while(Result::ok).map(|view| view.bytes().len()).sum();
    assert!(bytes[end..].iter().all(|&byte| byte == 0), "nothing of the longer one stands behind the shorter one");
    assert!(partition.stopped().is_none());
    assert_records(&partition, 0, 31);
}

/// What needs no new segment is acknowledged, and at once, whatever names of other files are still to be made durable.
fn flush_without_descriptors(partition: &Arc<Partition>, records: std::ops::Range<u64>) {
    let config = partition.config();
    partition.set_config(LogConfig { segment_bytes: LogConfig::default().segment_bytes, ..config });
    for n in records.step_by(3) {
        append_records(partition, n, n + 3);
        let begun = std::time::Instant::now();
        assert_eq!(partition.flush().unwrap(), partition.tail());
        assert!(begun.elapsed() < Duration::from_millis(1_500), "it does not wait for descriptors");
        assert!(partition.stopped().is_none());
    }
}

#[test]
fn without_descriptors_retention_goes_on_and_what_it_removed_stays_away() {
    let disk = SimFs::new();
    let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
    let (partition, _) = open(&store, small_segments());
    append_records(&partition, 0, 150);
    partition.flush().unwrap();
    let before = logs(&disk);
    partition.set_config(LogConfig { retention_bytes: Some(4096), ..small_segments() });
    disk.fail_from(disk.operations() + 1, Fault::Emfile);
    partition.enforce_retention(Some(NOW_MS), None).unwrap_err();
    assert!(partition.stopped().is_none());
    let (left, log_start) = (logs(&disk), partition.log_start());
    assert!(left.len() < before.len() && log_start > Offset::ZERO, "{log_start}");
    flush_without_descriptors(&partition, 150..156);
    disk.heal();
    append_records(&partition, 156, 159);
    partition.flush().unwrap();
    for seed in 0..50 {
        let disk = disk.crash(seed);
        assert_eq!(logs(&disk), left, "the flush has made it durable; seed {seed}");
        let store = open_store_on(Arc::new(disk), Path::new("/data"));
        let (partition, _) = open(&store, small_segments());
        assert_eq!(partition.log_start(), log_start);
        assert_records(&partition, log_start.get() as u64, 159);
    }
}

#[test]
fn without_descriptors_the_names_of_what_a_log_can_do_without_are_no_reason_to_stop() {
    let written = || {
        let disk = SimFs::new();
        let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, 60);
        (disk, store, partition)
    };
    let (disk, _store, partition) = written();
    let before = disk.operations();
    partition.flush().unwrap();
    let calls = disk.operations() - before;
    assert_eq!(disk.history().pop().unwrap().call, Call::SyncDir);
    let (disk, store, partition) = written();
    // The last one: seals, indexes and producers are written.
    disk.fail_from(disk.operations() + calls, Fault::Emfile);
    assert_eq!(partition.flush().unwrap(), partition.tail());
    assert!(partition.stopped().is_none());
    flush_without_descriptors(&partition, 60..66);
    disk.heal();
    append_records(&partition, 66, 69);
    partition.flush().unwrap();
    drop((partition, store));
    let seals =
        |disk: &SimFs| disk.paths().iter().filter(|path| path.extension().is_some_and(|it| it == "seal")).count();
    let there = seals(&disk);
    assert!(there > 0 && (0..50).all(|seed| seals(&disk.crash(seed)) == there), "the next flush has made them durable");
}

#[test]
fn side_files_that_there_is_no_descriptor_for_are_written_later() {
    let written = || {
        let disk = SimFs::new();
        let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
        let (partition, _) = open(&store, small_segments());
        partition.append(&producer_batch(0, 3, 7, 0), NOW_MS).unwrap();
        append_records(&partition, 3, 150);
        (disk, store, partition)
    };
    let sides = |disk: &SimFs| -> Vec<(PathBuf, Vec<u8>)> {
        let is_side = |path: &Path| path.extension().is_some_and(|it| it == "seal");
        let paths = disk.paths();
        let newest = paths.iter().rfind(|path| path.extension().is_some_and(|it| it == "snapshot"));
        let kept = paths.iter().filter(|path| is_side(path)).chain(newest);
        kept.map(|path| (path.clone(), disk.read_image(path).unwrap())).collect()
    };
    let (disk, _store, partition) = written();
    let before = disk.operations();
    partition.flush().unwrap();
    let expected = sides(&disk);
    assert!(expected.len() > 3, "{} files", expected.len());
    let first = disk
        .history()
        .into_iter()
        .find(|operation| operation.number > before && operation.path.extension().is_some_and(|it| it == "tmp"));
    let first = first.unwrap().number - before;
    for (goes_on, nth) in [(true, first), (false, first), (true, first + 7), (false, first + 7)] {
        let (disk, store, partition) = written();
        disk.fail_from(disk.operations() + nth, Fault::Emfile);
        assert_eq!(partition.flush().unwrap(), partition.tail());
        assert!(sides(&disk).len() < expected.len());
        flush_without_descriptors(&partition, 150..156);
        disk.heal();
        if goes_on {
            append_records(&partition, 156, 159);
            partition.flush().unwrap();
        } else {
            store.close();
        }
        assert_eq!(sides(&disk), expected, "goes on: {goes_on}, from {nth}");
        assert!((0..50).all(|seed| sides(&disk.crash(seed)) == expected), "and durable");
    }
}

#[test]
fn a_close_leaves_no_seal_for_later() {
    let written = |records| {
        let disk = SimFs::new();
        let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, records);
        (disk, store, partition)
    };
    let seals =
        |disk: &SimFs| disk.paths().iter().filter(|path| path.extension().is_some_and(|it| it == "seal")).count();
    // Operations of a flush before its first seal, but for the sync of each segment.
    let (disk, _store, partition) = written(100);
    let before = disk.operations();
    partition.flush().unwrap();
    let (segments, history) = (seals(&disk) as u64 + 1, disk.history());
    let is_aside = |path: &Path| path.extension().is_some_and(|it| it == "tmp");
    let first = history.iter().find(|operation| operation.number > before && is_aside(&operation.path)).unwrap();
    let others = first.number - before - segments;

    let (disk, _store, partition) = written(600);
    let before = disk.operations();
    partition.flush().unwrap();
    let expected = seals(&disk);
    let (disk, store, partition) = written(600);
    disk.fail_from(before + expected as u64 + 1 + others, Fault::Emfile);
    assert_eq!(partition.flush().unwrap(), partition.tail());
    let due = expected - seals(&disk);
    assert!(due > 8, "{due} seals of {expected} are due: more than a flush writes late");
    disk.heal();
    store.close();
    assert_eq!(seals(&disk), expected);
}

#[test]
fn a_seal_that_there_is_no_descriptor_for_is_not_taken_for_lost() {
    let disk = SimFs::new();
    {
        let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, 150);
        store.close();
    }
    let by_age = LogConfig { retention_age: Some(Duration::from_secs(3600)), ..small_segments() };
    for nth in 1.. {
        // Its clock says 1970, and so does each file.
        let disk = disk.kill();
        let store = open_store_on(Arc::new(disk.clone()), Path::new("/data"));
        let (partition, _) = open(&store, by_age);
        let before = disk.operations();
        disk.fail_nth(before + nth, Fault::Emfile);
        assert_eq!(partition.enforce_retention(Some(NOW_MS), None).unwrap(), Offset::ZERO, "operation {nth}");
        if disk.operations() < before + nth {
            break;
        }
        disk.heal();
        assert_eq!(partition.enforce_retention(Some(NOW_MS), None).unwrap(), Offset::ZERO, "operation {nth}, later");
        assert_records(&partition, 0, 150);
    }
}

/// A partition with ten flushed records and so much behind them that is no batch.
fn torn(torn_bytes: usize) -> SimFs {
    let disk = disk();
    let (store, partition, _) = start(&disk, Duration::from_secs(3600));
    append_records(&partition, 0, 10);
    store.close();
    drop((store, partition));
    let disk = disk.kill();
    let log = logs(&disk).swap_remove(0);
    let whole = disk.read_image(&log).unwrap();
    disk.write_image(&log, &[&whole[..], &vec![1; torn_bytes]].concat()).unwrap();
    disk
}

fn start_store(disk: &SimFs) -> Store {
    let config =
        StoreConfig { reserve_bytes: 4 * MIB, flush_interval: Duration::from_secs(3600), ..StoreConfig::default() };
    let store = Store::open(Arc::new(disk.clone()), Path::new("/data"), config, Uuid::from_u128(1)).unwrap();
    store.open_state(LogConfig::default()).unwrap();
    store
}

#[test]
fn a_partition_without_room_is_opened_late_and_takes_nothing_from_the_reserve() {
    let disk = torn(8 << 20);
    fill(&disk, MIB);
    let store = start_store(&disk);
    let refused = store.open_partition(ID, LogConfig::default()).unwrap_err();
    assert_eq!(refused.kind(), OpenLogErrorKind::NoRoom, "{refused}");
    assert_eq!((store.is_disk_full(), store.reserve_held_bytes()), (true, 0));
    // Enough for the others to go on, with the reserve not enough for this one.
    fill(&disk, 6 * MIB);
    store.look_for_room();
    assert_eq!((store.is_disk_full(), store.reserve_held_bytes()), (false, 4 * MIB));
    let free = || disk.free_bytes(Path::new("/data")).unwrap();
    let (before, operations) = (free(), disk.operations());
    let refused = store.open_late(ID, LogConfig::default()).unwrap_err();
    assert_eq!(refused.kind(), OpenLogErrorKind::NoRoom, "{refused}");
    assert_eq!((store.is_disk_full(), store.reserve_held_bytes(), free()), (false, 4 * MIB, before));
    let begun = disk.history().into_iter().find(|done| done.number > operations && done.call == Call::WriteAt);
    assert!(begun.is_none(), "half a copy would have taken the room of others: {begun:?}");
    fill(&disk, 9 * MIB);
    let (partition, report) = store.open_late(ID, LogConfig::default()).unwrap();
    assert_eq!(report.cut.unwrap().quarantined_bytes, 8 << 20);
    assert_eq!((store.is_disk_full(), store.reserve_held_bytes()), (false, 4 * MIB));
    assert_records(&partition, 0, 10);
    append_records(&partition, 10, 20);
}

#[test]
fn one_that_is_opened_late_leaves_the_others_room_beside_its_copy() {
    let disk = torn(8 << 20);
    fill(&disk, MIB);
    let store = start_store(&disk);
    store.open_partition(ID, LogConfig::default()).unwrap_err();
    fill(&disk, 20 * MIB);
    store.look_for_room();
    fill(&disk, 9 * MIB - 4096);
    let refused = store.open_late(ID, LogConfig::default()).unwrap_err();
    assert_eq!(refused.kind(), OpenLogErrorKind::NoRoom, "a quarter of the reserve has to stay: {refused}");
    fill(&disk, 9 * MIB);
    store.open_late(ID, LogConfig::default()).unwrap();
}

#[test]
fn a_try_that_fails_does_not_hide_when_a_log_was_last_appended_to() {
    let disk = disk();
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    disk.set_now(at(1_000));
    let (store, partition, _) = start(&disk, Duration::from_secs(3600));
    append_records(&partition, 0, 10);
    drop((store, partition));
    // Not flushed: a recovery writes it again, before it meets what it has no room for.
    let disk = disk.kill();
    let log = logs(&disk).swap_remove(0);
    let torn = [without_zeros(&disk.read_image(&log).unwrap()), &vec![1; 8 << 20]].concat();
    disk.write_image(&log, &torn).unwrap();
    disk.open(&log, OpenMode::Write, 0).unwrap().set_modified(at(1_000)).unwrap();
    fill(&disk, MIB);
    disk.set_now(at(5_000));
    let before = disk.operations();
    start_store(&disk).open_partition(ID, LogConfig::default()).unwrap_err();
    let is_rewritten = |done: &Operation| done.number > before && done.call == Call::WriteAt && done.path == log;
    assert!(disk.history().iter().any(is_rewritten));
    assert_eq!(disk.open(&log, OpenMode::Read, 0).unwrap().modified().unwrap(), at(1_000));
}

#[test]
fn a_recovery_that_dies_anywhere_leaves_no_half_copy() {
    let whole = torn(3 << 20);
    let copies = |disk: &SimFs| {
        let kept = disk.paths().into_iter().filter(|path| path.starts_with("/data/quarantine"));
        kept.map(|path| disk.read_image(&path).unwrap()).collect::<Vec<_>>()
    };
    let (mut number, mut half) = (0, 0);
    loop {
        number += 1;
        let disk = whole.kill();
        let store = start_store(&disk);
        disk.fail_from(disk.operations() + number, Fault::Eio);
        let is_over = store.open_partition(ID, LogConfig::default()).is_ok();
        drop(store);
        let disk = disk.kill();
        half += u32::from(copies(&disk).iter().any(|copy| copy.len() < 3 << 20));
        let store = start_store(&disk);
        let (partition, _) = store.open_partition(ID, LogConfig::default()).unwrap();
        assert_records(&partition, 0, 10);
        // A death between the copy and the cut has it copied again.
        let copies = copies(&disk);
        assert!((1..=2).contains(&copies.len()), "operation {number}: {} copies", copies.len());
        assert!(copies.iter().all(|copy| *copy == vec![1; 3 << 20]), "operation {number}: half a copy");
        if is_over {
            break;
        }
    }
    assert!(half > 1, "{half}");
}

/// Whatever it had moved away before it met a full disk is told by the try that succeeds, and on stable storage then.
#[test]
fn what_a_late_try_that_failed_had_cut_is_told_by_the_next() {
    let (disk, base) = damaged();
    let undisturbed = disk.kill();
    let store = start_store(&undisturbed);
    let before = undisturbed.operations();
    let (_, report) = store.open_late(ID, small_segments()).unwrap();
    let cut_bytes = report.cut.unwrap().quarantined_bytes;
    let mut failed = 0;
    for number in 1..=undisturbed.operations() - before {
        let disk = disk.kill();
        let store = start_store(&disk);
        disk.fail_nth(disk.operations() + number, Fault::Enospc);
        let (partition, report) = store.open_late(ID, small_segments()).unwrap_or_else(|_| {
            failed += 1;
            store.open_late(ID, small_segments()).unwrap()
        });
        let cut = report.cut.unwrap_or_else(|| panic!("operation {number}: nothing is said of the cut"));
        assert_eq!((cut.offset, cut.quarantined_bytes), (base, cut_bytes), "operation {number}: {}", cut.reason);
        drop((store, partition));
        let after = disk.crash(number);
        let (_store, partition, report) = recover(&after).unwrap();
        assert!(report.cut.is_none(), "operation {number}: cut again after a power cut: {report:?}");
        assert_records(&partition, 0, base.get().unsigned_abs());
    }
    assert!(failed > 10, "only {failed} tries met a full disk");
}
