//! Appending, reading, rolling, indexes and retention on a real disk.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests play the user and the operating system")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use tripline_storage::LogConfig;
use tripline_storage::error::{AppendError, OpenStoreError, ReadError};
use tripline_storage::fs::sim::Fault;
use tripline_storage::fs::{OsFs, SimFs};
use tripline_storage::partition::ReadStart;
use tripline_storage::producer::{ProducerLimits, SequenceError};
use tripline_storage::{Partition, Store, StoreConfig};
use uuid::Uuid;

#[test]
fn what_is_appended_is_read_back_over_many_segments_from_every_offset() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, report) = open(&store, small_segments());
    assert!(report.is_clean());
    append_records(&partition, 0, 400);
    assert_records(&partition, 0, 400);
    for from in 0..400 {
        assert_records(&partition, from, 400);
    }
    let segments = std::fs::read_dir(dir.path().join(format!("topics/{TOPIC}/0"))).unwrap();
    let logs = segments.filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|x| x == "log")).count();
    assert!(logs > 5, "{logs} segments");
}

#[test]
fn a_read_in_the_middle_of_a_batch_answers_the_whole_batch() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, _) = open(&store, small_segments());
    append_records(&partition, 0, 9);
    let outcome = partition.read_blocking(offset(4), 1).unwrap();
    assert_eq!(numbers(&outcome.bytes), [(3, 3), (4, 4), (5, 5)]);
    assert_eq!(outcome.next, offset(6));
}

#[test]
fn max_bytes_bounds_a_read_unless_one_batch_is_larger() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, _) = open(&store, LogConfig::default());
    append_records(&partition, 0, 300);
    for max_bytes in [1, 200, 1_000, 5_000] {
        let outcome = partition.read_blocking(offset(30), max_bytes).unwrap();
        let batches = numbers(&outcome.bytes).len() / 3;
        assert!(outcome.bytes.len() <= max_bytes || batches == 1, "{} bytes for {max_bytes}", outcome.bytes.len());
        assert!(batches >= 1);
    }
}

#[test]
fn reads_at_the_tail_are_empty_and_outside_the_log_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, _) = open(&store, small_segments());
    assert!(partition.read_blocking(offset(0), 100).unwrap().bytes.is_empty());
    append_records(&partition, 0, 3);
    assert!(partition.read_blocking(offset(3), 100).unwrap().bytes.is_empty());
    let refused = partition.read_blocking(offset(4), 100).unwrap_err();
    assert!(matches!(refused, ReadError::OutOfRange { tail, .. } if tail == offset(3)), "{refused}");
}

#[test]
fn fresh_bytes_are_hot_and_those_of_an_earlier_process_are_cold() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open_store(dir.path());
        let (partition, _) = open(&store, LogConfig::default());
        append_records(&partition, 0, 30);
        assert!(matches!(partition.read(offset(0), 100).unwrap(), ReadStart::Ready(_)));
        store.close();
    }
    let store = open_store(dir.path());
    let (partition, report) = open(&store, LogConfig::default());
    assert!(report.is_clean(), "{report:?}");
    match partition.read(offset(0), 1 << 20).unwrap() {
        ReadStart::Cold(cold) => assert_eq!(numbers(&cold.run().unwrap().bytes).len(), 30),
        ReadStart::Ready(_) => panic!("bytes of an earlier process must be verified first"),
    }
    append_records(&partition, 30, 33);
    assert_records(&partition, 0, 33);
}

#[test]
fn a_read_waits_for_nothing_where_all_of_it_is_in_memory_and_is_cold_where_a_part_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { hot_bytes: 0, reserve_bytes: 0, ..StoreConfig::default() };
    let store = Store::open(Arc::new(OsFs), dir.path(), config, Uuid::from_u128(1)).unwrap();
    let (partition, _) = open(&store, LogConfig::default());
    // Larger than what a read of a few bytes looks at.
    let large = batch(0, 20_000);
    partition.append(&large, NOW_MS).unwrap();
    append_records(&partition, 20_000, 20_030);
    let ready = |from: i64| match partition.read(offset(from), 100).unwrap() {
        ReadStart::Ready(outcome) => Ok(outcome.bytes),
        ReadStart::Cold(cold) => Err(cold),
    };
    // Its pages are not touched: what is mapped would stay in memory.
    assert!(ready(7).is_ok_and(|bytes| bytes.len() == large.size_bytes()));
    assert!(ready(20_001).is_ok_and(|bytes| numbers(&bytes).len() == 3));
    partition.flush().unwrap();
    let log = dir.path().join(format!("topics/{TOPIC}/0/00000000000000000000.log"));
    rustix::fs::fadvise(std::fs::File::open(log).unwrap(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
    match ready(7) {
        Ok(_) => println!("SKIP: what is not in memory: this file system is memory"),
        Err(cold) => assert_eq!(numbers(&cold.run().unwrap().bytes).len(), 20_000),
    }
    assert!(ready(7).is_ok_and(|bytes| numbers(&bytes).len() == 20_000), "brought in by then");
}

#[test]
fn a_look_up_by_time_finds_the_first_record_not_older() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, _) = open(&store, small_segments());
    for n in 0..100 {
        // Batches of 2 records at times n*10 and n*10+1.
        partition.append(&batch_at(n * 2, 2, NOW_MS + n as i64 * 10), NOW_MS).unwrap();
    }
    for reopened in [false, true] {
        assert_eq!(partition.offset_for_time(0).unwrap(), Some((offset(0), NOW_MS)), "reopened {reopened}");
        assert_eq!(partition.offset_for_time(NOW_MS + 501).unwrap(), Some((offset(101), NOW_MS + 501)));
        assert_eq!(partition.offset_for_time(NOW_MS + 502).unwrap(), Some((offset(102), NOW_MS + 510)));
        assert_eq!(partition.offset_for_time(NOW_MS + 992).unwrap(), None);
    }
}

#[test]
fn retention_by_size_and_age_removes_whole_segments_and_moves_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let config = LogConfig { retention_bytes: Some(6_000), retention_age: None, ..small_segments() };
    let (partition, _) = open(&store, config);
    append_records(&partition, 0, 600);
    partition.flush().unwrap();
    let held = partition.enforce_retention(Some(NOW_MS), Some(offset(0))).unwrap();
    assert_eq!(held, offset(0), "a hold at 0 keeps all");
    let start = partition.enforce_retention(Some(NOW_MS), None).unwrap();
    assert!(start > offset(0));
    assert!((6_000..6_000 + 2 * 2048).contains(&partition.len_bytes()), "{} bytes", partition.len_bytes());
    let refused = partition.read_blocking(offset(0), 100).unwrap_err();
    assert!(matches!(refused, ReadError::OutOfRange { log_start, .. } if log_start == start));
    assert_records(&partition, start.get() as u64, 600);

    partition.set_config(LogConfig { retention_bytes: None, retention_age: Some(Duration::from_secs(60)), ..config });
    assert_eq!(partition.enforce_retention(Some(NOW_MS + 59_999), None).unwrap(), start);
    assert_eq!(partition.enforce_retention(None, None).unwrap(), start, "a clock that is not believed removes nothing");
    let start = partition.enforce_retention(Some(NOW_MS + 60_000), None).unwrap();
    assert_records(&partition, start.get() as u64, 600);
    store.close();
    drop((partition, store));
    let (partition, report) = open(&open_store(dir.path()), small_segments());
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(partition.log_start(), start);
}

#[test]
fn a_clock_that_was_put_right_or_fell_back_makes_no_segment_seem_old() {
    const HOUR_MS: i64 = 3_600_000;
    let store = open_store_on(Arc::new(SimFs::new()), std::path::Path::new("/data"));
    let config = LogConfig { retention_age: Some(Duration::from_secs(3600)), ..small_segments() };
    let (partition, _) = open(&store, config);
    // A machine that starts in 1970, until it hears from others.
    partition.append(&batch(0, 3), 1_000).unwrap();
    append_records(&partition, 3, 6);
    assert_eq!(partition.read_blocking(offset(0), 1 << 20).unwrap().next, offset(3), "rolled");
    assert_eq!(partition.enforce_retention(Some(NOW_MS + HOUR_MS - 1), None).unwrap(), offset(0));
    // What is still written to is held.
    let held = Some(offset(3));
    assert_eq!(partition.enforce_retention(Some(NOW_MS + HOUR_MS), held).unwrap(), offset(3));
    // And one whose clock falls back.
    while partition.read_blocking(offset(3), 1 << 20).unwrap().next == partition.tail() {
        let next = partition.tail().get() as u64;
        partition.append(&batch(next, 3), NOW_MS - 2 * HOUR_MS).unwrap();
    }
    assert_eq!(partition.enforce_retention(Some(NOW_MS + HOUR_MS - 1), None).unwrap(), offset(3));
    assert!(partition.enforce_retention(Some(NOW_MS + HOUR_MS), None).unwrap() > offset(3));
}

#[test]
fn a_clock_that_stood_far_ahead_keeps_nothing_for_ever_and_an_idle_log_is_as_old_as_its_last_append() {
    const DAY_MS: i64 = 24 * 3_600_000;
    let store = open_store_on(Arc::new(SimFs::new()), std::path::Path::new("/data"));
    let config = LogConfig {
        retention_age: Some(Duration::from_secs(3600)),
        segment_age: Duration::from_secs(24 * 3600),
        ..LogConfig::default()
    };
    let (partition, _) = open(&store, config);
    partition.append(&batch(0, 3), NOW_MS).unwrap();
    // For a moment; the log is old then, and rolls.
    partition.append(&batch(3, 3), NOW_MS + 30_000 * DAY_MS).unwrap();
    partition.append(&batch(6, 3), NOW_MS + 1).unwrap();
    assert_eq!(partition.last_append_ms(), Some(NOW_MS + 1));
    assert_eq!(partition.enforce_retention(Some(NOW_MS + DAY_MS), Some(offset(3))).unwrap(), offset(3));
    // Nobody wrote for a month.
    partition.append(&batch(9, 3), NOW_MS + 30 * DAY_MS).unwrap();
    assert_eq!(partition.enforce_retention(Some(NOW_MS + 30 * DAY_MS), None).unwrap(), offset(9));
}

#[test]
fn the_newest_append_is_known_while_the_active_segment_is_empty() {
    let disk = SimFs::new();
    let root = std::path::Path::new("/data");
    {
        let store = open_store_on(Arc::new(disk.clone()), root);
        let (partition, _) = open(&store, LogConfig::default());
        assert_eq!(partition.last_append_ms(), None);
        append_records(&partition, 0, 3);
        partition.set_config(LogConfig { segment_age: Duration::ZERO, ..LogConfig::default() });
        // The disk is full when the next segment was made.
        disk.fail_from(disk.operations() + 3, Fault::Enospc);
        let refused = partition.append(&batch(3, 3), NOW_MS + 5).unwrap_err();
        assert!(matches!(refused, AppendError::DiskFull), "{refused}");
        disk.heal();
        assert_eq!(partition.last_append_ms(), Some(NOW_MS));
        store.close();
    }
    let store = open_store_on(Arc::new(disk.kill()), root);
    assert!(open(&store, LogConfig::default()).0.last_append_ms().is_some());
}

#[test]
fn an_idle_log_goes_to_its_last_record_when_that_is_too_old() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig {
        retention_age: Some(Duration::from_secs(20)),
        retention_bytes: Some(1),
        hold_max: None,
        ..LogConfig::default()
    };
    let logs = || {
        let names = std::fs::read_dir(dir.path().join(format!("topics/{TOPIC}/0"))).unwrap();
        names.filter(|name| name.as_ref().unwrap().path().extension().is_some_and(|is| is == "log")).count()
    };
    {
        let store = open_store(dir.path());
        let (partition, _) = open(&store, config);
        append_records(&partition, 0, 3);
        partition.append(&producer_batch(3, 3, 7, 0), NOW_MS + 10_000).unwrap();
        for (now_ms, hold) in [(Some(NOW_MS + 29_999), None), (None, None), (Some(NOW_MS + 30_000), Some(offset(5)))] {
            assert_eq!(partition.enforce_retention(now_ms, hold).unwrap(), offset(0));
        }
        assert_eq!(partition.enforce_retention(Some(NOW_MS + 30_000), Some(offset(6))).unwrap(), offset(6));
        assert_eq!((partition.tail(), partition.len_bytes(), logs()), (offset(6), 0, 1));
        // An empty one is no older than it was.
        assert_eq!(partition.enforce_retention(Some(NOW_MS + 90_000), None).unwrap(), offset(6));
        assert_eq!(logs(), 1);
    }
    let store = open_store(dir.path());
    let (partition, report) = open(&store, config);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((partition.log_start(), partition.tail()), (offset(6), offset(6)));
    let again = partition.append(&producer_batch(3, 3, 7, 0), NOW_MS + 100_000).unwrap();
    assert_eq!((again.duplicate, again.base_offset), (true, offset(3)), "its producer is remembered");
    assert_eq!(partition.append(&batch(6, 3), NOW_MS + 100_000).unwrap().base_offset, offset(6));
}

/// Whatever ends it: a fault at each operation and a kill or a power cut then, and a full disk.
#[test]
fn the_producers_of_a_log_that_goes_for_its_age_are_known_after_any_end() {
    let config = LogConfig { retention_age: Some(Duration::from_secs(20)), ..LogConfig::default() };
    let root = std::path::Path::new("/data");
    let expired = Some(NOW_MS + 60_000);
    let mut done = false;
    for nth in 1..200 {
        let disk = SimFs::new();
        let store = open_store_on(Arc::new(disk.clone()), root);
        let (partition, _) = open(&store, config);
        partition.append(&producer_batch(0, 3, 7, 0), NOW_MS).unwrap();
        partition.flush().unwrap();
        disk.fail_from(disk.operations() + nth, Fault::Eio);
        done = partition.enforce_retention(expired, None).is_ok_and(|start| start == offset(3));
        disk.heal();
        for (how, after) in [("kill", disk.kill()), ("power cut", disk.crash(nth))] {
            let store = open_store_on(Arc::new(after), root);
            let (partition, _) = open(&store, config);
            let again = partition.append(&producer_batch(0, 3, 7, 0), NOW_MS + 60_000).unwrap();
            assert!(again.duplicate, "{how} after operation {nth}");
        }
        if done {
            break;
        }
    }
    assert!(done, "it never came to its end");
}

#[test]
fn a_clean_end_makes_no_log_younger() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, _) = open(&store, LogConfig::default());
    append_records(&partition, 0, 3);
    let log = dir.path().join(format!("topics/{TOPIC}/0/{:020}.log", 0));
    let appended = std::time::UNIX_EPOCH + Duration::from_millis(NOW_MS.cast_unsigned());
    std::fs::File::options().write(true).open(&log).unwrap().set_modified(appended).unwrap();
    partition.close().unwrap();
    assert_eq!(std::fs::metadata(&log).unwrap().modified().unwrap(), appended);
    drop((partition, store));
    let store = open_store(dir.path());
    assert_eq!(open(&store, LogConfig::default()).0.last_append_ms(), Some(NOW_MS));
}

#[test]
fn a_batch_that_is_sent_again_is_answered_with_the_time_at_which_it_was_appended() {
    let store = open_store_on(Arc::new(SimFs::new()), std::path::Path::new("/data"));
    let (partition, _) = open(&store, LogConfig::default());
    let sent = producer_batch(0, 3, 7, 0);
    let times = [1_000, 2_000].map(|now_ms| {
        let outcome = partition.append(&sent.with_append_time(now_ms), now_ms).unwrap();
        (outcome.timestamp_ms, outcome.duplicate)
    });
    assert_eq!(times, [(1_000, false), (1_000, true)]);
    let own = partition.append(&batch(3, 3), 3_000).unwrap();
    assert_eq!(own.timestamp_ms, NOW_MS + 2, "the newest of its records");
}

#[test]
fn what_was_trimmed_inside_of_the_active_segment_goes_once_that_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, _) = open(&store, LogConfig::default());
    append_records(&partition, 0, 6);
    partition.trim(offset(6)).unwrap();
    assert_eq!(partition.enforce_retention(Some(NOW_MS), None).unwrap(), offset(6));
    partition.set_config(LogConfig { segment_age: Duration::ZERO, ..LogConfig::default() });
    partition.append(&batch(6, 3), NOW_MS).unwrap();
    let held_bytes = partition.len_bytes();
    assert_eq!(partition.enforce_retention(Some(NOW_MS), Some(offset(0))).unwrap(), offset(6));
    assert!(partition.len_bytes() < held_bytes, "{held_bytes} bytes");
    assert_eq!(partition.read_blocking(offset(6), 1 << 20).unwrap().next, offset(9));
}

#[test]
fn an_old_active_segment_is_rolled_by_the_next_append() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let config = LogConfig {
        segment_age: Duration::from_secs(10),
        retention_age: Some(Duration::from_secs(20)),
        ..LogConfig::default()
    };
    let (partition, _) = open(&store, config);
    append_records(&partition, 0, 3);
    partition.append(&batch(3, 3), NOW_MS + 10_000).unwrap();
    assert_eq!(partition.enforce_retention(Some(NOW_MS + 20_000), None).unwrap(), offset(3));
}

#[test]
fn a_slice_outlives_the_segment_that_retention_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, _) = open(&store, LogConfig { retention_bytes: Some(0), ..small_segments() });
    append_records(&partition, 0, 200);
    let slice = partition.read_blocking(offset(0), 1_000).unwrap().bytes;
    let before = numbers(&slice);
    partition.enforce_retention(None, None).unwrap();
    assert_eq!(numbers(&slice), before);
}

#[test]
fn idempotent_producers_are_remembered_over_rolls_restarts_and_kills() {
    let dir = tempfile::tempdir().unwrap();
    for kill in [false, true] {
        let path = dir.path().join(kill.to_string());
        let store = open_store(&path);
        let (partition, _) = open(&store, small_segments());
        for n in 0..100 {
            partition.append(&producer_batch(n, 1, 7, n as i32), NOW_MS).unwrap();
        }
        let again = partition.append(&producer_batch(99, 1, 7, 99), NOW_MS).unwrap();
        assert!(again.duplicate && again.base_offset == offset(99));
        partition.flush().unwrap();
        if !kill {
            store.close();
        }
        drop((partition, store));
        let store = open_store(&path);
        let (partition, _) = open(&store, small_segments());
        let again = partition.append(&producer_batch(97, 1, 7, 97), NOW_MS).unwrap();
        assert!(again.duplicate && again.base_offset == offset(97), "kill {kill}: {again:?}");
        let refused = partition.append(&producer_batch(105, 1, 7, 105), NOW_MS).unwrap_err();
        assert!(matches!(refused, AppendError::Sequence(SequenceError::OutOfOrder { .. })), "{refused}");
        assert_eq!(partition.append(&producer_batch(100, 1, 7, 100), NOW_MS).unwrap().base_offset, offset(100));
    }
}

/// The table of producers has an end. Who is in it after a start that reads the log, where all batches of a file have
/// one time, is who was in it before.
#[test]
fn of_more_producers_than_are_remembered_a_restart_remembers_the_same() {
    let most = ProducerLimits::default().producers_max as u64;
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, _) = open(&store, LogConfig::default());
    // The first two to come that do not come again give way.
    let used = (0..most).chain([0, most, most + 1]);
    let sent: Vec<_> = used.zip(0..).map(|(id, n)| producer_batch(n, 1, id as i64, i32::from(n == most))).collect();
    for (batch, now_ms) in sent.iter().zip(NOW_MS..) {
        partition.append(batch, now_ms).unwrap();
    }
    let known = |partition: &Partition| -> Vec<i64> {
        (0..most as i64 + 2).filter(|&id| partition.producer(id).is_some()).collect()
    };
    let before = known(&partition);
    assert_eq!(before, [0].into_iter().chain(3..most as i64 + 2).collect::<Vec<_>>());
    drop((partition, store));
    let store = open_store(dir.path());
    let (partition, _) = open(&store, LogConfig::default());
    assert!(known(&partition) == before, "other producers are remembered than before");
    for (batch, at) in sent.iter().zip(0..).skip(3) {
        let again = partition.append(batch, NOW_MS).unwrap();
        assert!(again.duplicate && again.base_offset == offset(at), "{at}: {again:?}");
    }
}

#[test]
fn flushed_follows_the_tail_and_waiters_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, _) = open(&store, small_segments());
    append_records(&partition, 0, 100);
    assert_eq!(partition.flushed(), offset(0));
    std::thread::scope(|scope| {
        for n in [1, 50, 100] {
            let partition = &partition;
            scope.spawn(move || {
                while partition.flushed() < offset(n) {
                    let listener = partition.listen_flush();
                    partition.request_flush();
                    if partition.flushed() >= offset(n) {
                        break;
                    }
                    event_listener::Listener::wait(listener);
                }
            });
        }
    });
    assert_eq!(partition.flushed(), offset(100));
}

#[test]
fn the_flush_interval_flushes_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { flush_interval: Duration::from_millis(1), ..StoreConfig::default() };
    let store = Store::open(std::sync::Arc::new(OsFs), dir.path(), config, Uuid::from_u128(1)).unwrap();
    let (partition, _) = open(&store, small_segments());
    for round in 1..=3 {
        let listener = partition.listen_flush();
        append_records(&partition, (round - 1) * 3, round * 3);
        event_listener::Listener::wait(listener);
        assert_eq!(partition.flushed(), offset(round as i64 * 3));
    }
}

#[test]
fn a_directory_in_use_a_newer_one_and_a_foreign_one_are_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("data");
    let reopen = |path: &std::path::Path| {
        Store::open(std::sync::Arc::new(OsFs), path, StoreConfig::default(), Uuid::from_u128(2))
    };
    let store = open_store(&root);
    assert!(matches!(reopen(&root).unwrap_err(), OpenStoreError::InUse { .. }));
    let epoch = store.leader_epoch();
    drop(store);
    let store = reopen(&root).unwrap();
    assert_eq!(store.cluster_id(), Uuid::from_u128(1), "the id stays that of the first start");
    assert_eq!(Some(store.leader_epoch()), epoch.next());
    drop(store);
    let format = std::fs::read_to_string(root.join("FORMAT")).unwrap();
    assert_eq!(
        format,
        "tripline data directory\nversion 1\ncluster 00000000-0000-0000-0000-000000000001\ncrc32 4d19be4b\n"
    );
    std::fs::write(root.join("FORMAT"), format.replace("version 1", "version 2")).unwrap();
    assert!(matches!(reopen(&root).unwrap_err(), OpenStoreError::Newer { found: 2, .. }));
    std::fs::write(root.join("FORMAT"), "something else").unwrap();
    assert!(matches!(reopen(&root).unwrap_err(), OpenStoreError::Foreign { .. }));
    std::fs::write(root.join("FORMAT"), format.replace("0001", "0002")).unwrap();
    assert!(matches!(reopen(&root).unwrap_err(), OpenStoreError::Foreign { .. }), "another cluster");
    std::fs::write(root.join("FORMAT"), &format).unwrap();
    std::fs::remove_file(root.join("EPOCH")).unwrap();
    assert!(matches!(reopen(&root).unwrap_err(), OpenStoreError::Foreign { .. }), "epochs would be given again");
    let photos = dir.path().join("photos");
    std::fs::create_dir(&photos).unwrap();
    std::fs::write(photos.join("cat.jpg"), "meow").unwrap();
    assert!(matches!(reopen(&photos).unwrap_err(), OpenStoreError::Foreign { .. }));
    assert_eq!(std::fs::read_to_string(photos.join("cat.jpg")).unwrap(), "meow");
    assert!(!photos.join("topics").exists());
}

#[test]
fn a_deleted_topic_is_gone_and_its_id_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, _) = open(&store, small_segments());
    append_records(&partition, 0, 30);
    store.delete_topic(TOPIC).unwrap();
    assert!(store.partition(ID).is_none());
    assert!(store.topics_on_disk().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(dir.path().join("trash")).unwrap().count(), 0);
}

#[test]
fn the_directory_is_in_use_until_the_last_partition_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, _) = open(&store, small_segments());
    drop(store);
    let config = StoreConfig::default();
    let refused = Store::open(std::sync::Arc::new(OsFs), dir.path(), config, Uuid::from_u128(2)).unwrap_err();
    assert!(matches!(refused, OpenStoreError::InUse { .. }), "{refused}");
    append_records(&partition, 0, 3);
    drop(partition);
    let (partition, _) = open(&open_store(dir.path()), small_segments());
    assert_records(&partition, 0, 3);
}

#[test]
fn a_flush_that_is_asked_for_after_the_end_keeps_no_directory_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let (partition, _) = open(&store, small_segments());
    append_records(&partition, 0, 3);
    store.stop_flushing();
    partition.request_flush();
    drop((partition, store));
    assert_records(&open(&open_store(dir.path()), small_segments()).0, 0, 3);
}

#[test]
fn a_store_dropped_with_flushes_under_way_ends_its_threads() {
    for round in 0..50 {
        let dir = tempfile::tempdir().unwrap();
        let store = open_store(dir.path());
        let (partition, _) = open(&store, small_segments());
        append_records(&partition, 0, 3);
        partition.request_flush();
        // The thread that flushes may be the last to hold the partition, and with it the store.
        drop((partition, store));
        let config = StoreConfig::default();
        while Store::open(std::sync::Arc::new(OsFs), dir.path(), config, Uuid::from_u128(2)).is_err() {
            std::thread::yield_now();
        }
        assert!(dir.path().exists(), "round {round}");
    }
}

#[test]
fn of_many_who_open_a_partition_at_once_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let opened = std::thread::scope(|scope| {
        let open = || store.open_partition(ID, small_segments()).is_ok();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|&opened| opened).count()
    });
    assert_eq!(opened, 1);
}

#[test]
fn retentions_at_once_remove_no_more_than_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let config = LogConfig { retention_bytes: Some(30_000), retention_age: None, ..small_segments() };
    let (partition, _) = open(&store, config);
    append_records(&partition, 0, 2_000);
    let before = partition.len_bytes();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| partition.enforce_retention(None, None).unwrap());
        }
    });
    assert!(before > 60_000 && partition.len_bytes() >= 30_000, "{before} to {} bytes", partition.len_bytes());
    assert_records(&partition, partition.log_start().get() as u64, 2_000);
}
