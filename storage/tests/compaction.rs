//! Compaction: what it keeps, what it may lose, and that nothing which ends it early loses more.
//!
//! [`SEEDS`] random runs by default, new ones every time; `TRIPLINE_SIM_SEED=7` repeats one. `tripline-battery compact`
//! runs many of the same.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/faults.rs"]
mod faults;
#[path = "common/keyed_runs.rs"]
mod keyed_runs;
#[path = "common/keyed_world.rs"]
mod keyed_world;
#[path = "common/seeded.rs"]
mod seeded;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use keyed_world::{Keyed, Operation, TOMBSTONE_MS, Violation, config};
use tripline_storage::batch::{BatchBuilder, BatchLimits, BatchOptions, BatchView, NewRecord};
use tripline_storage::error::{AppendError, CompactError, ReadError};
use tripline_storage::fs::sim::{self, Call, Fault, Lie};
use tripline_storage::fs::{Fs as _, OsFs};
use tripline_storage::producer::SequenceError;
use tripline_storage::{LogConfig, Offset, Partition, PartitionId, Store, StoreConfig};
use uuid::Uuid;

/// Runs by default.
const SEEDS: u64 = 300;

const fn append(keys: [u8; 4], producer: Option<u8>) -> Operation {
    Operation::Append { keys, tombstones: 0, producer, codec: 0 }
}

const fn delete(keys: [u8; 4]) -> Operation {
    Operation::Append { keys, tombstones: 0b0110, producer: None, codec: 3 }
}

const COMPACT: Operation = Operation::Compact { after_ms: 1 };

fn run(world: &mut Keyed, script: &[Operation]) -> Result<(), Violation> {
    script.iter().try_for_each(|&operation| world.apply(operation))
}

/// Compacts one segment and several into one, something new behind it, tombstones that stay and tombstones that go,
/// emptied batches of a producer, and a log that was trimmed.
const SCRIPT: [Operation; 25] = [
    append([1, 2, 3, 4], Some(0)),
    append([1, 2, 3, 5], Some(1)),
    append([1, 2, 3, 6], Some(0)),
    append([1, 2, 3, 7], None),
    append([1, 2, 3, 8], Some(0)),
    delete([8, 1, 5, 9]),
    append([1, 2, 3, 10], None),
    append([11, 12, 13, 14], None),
    Operation::Flush,
    COMPACT,
    Operation::Retry { producer: 1, back: 0 },
    append([1, 2, 3, 4], None),
    append([4, 4, 4, 4], Some(1)),
    delete([12, 13, 1, 14]),
    append([1, 2, 15, 15], None),
    append([1, 2, 15, 15], None),
    Operation::Flush,
    COMPACT,
    Operation::Trim { permille: 300 },
    append([1, 2, 15, 15], None),
    append([16, 16, 16, 16], None),
    Operation::Flush,
    Operation::Compact { after_ms: TOMBSTONE_MS as u16 },
    Operation::Reopen,
    Operation::Retry { producer: 0, back: 0 },
];

fn operations_of_the_script() -> std::ops::Range<u64> {
    let mut world = Keyed::new(config(), 16 << 10, None).unwrap();
    let opened = world.disk.operations();
    run(&mut world, &SCRIPT).unwrap_or_else(|violation| panic!("{}", violation.0));
    opened..world.disk.operations()
}

#[test]
fn any_disk_operation_may_fail_in_any_way_and_no_key_loses_its_newest_record() {
    let operations = operations_of_the_script();
    for number in operations.start + 1..=operations.end {
        for fault in [Fault::Eio, Fault::ShortWriteThenFull] {
            let end = if number % 2 == 0 { Operation::Kill } else { Operation::PowerCut { seed: number } };
            let mut world = Keyed::new(config(), 16 << 10, None).unwrap();
            world.fail_at(number, fault);
            let result = run(&mut world, &SCRIPT).and_then(|()| run(&mut world, &[Operation::Heal, COMPACT, end]));
            let result = result.and_then(|()| run(&mut world, &SCRIPT[..10]));
            result.unwrap_or_else(|violation| panic!("operation {number}, {fault:?}, {end:?}: {}", violation.0));
        }
    }
}

#[test]
fn the_process_or_the_power_may_end_at_any_disk_operation_of_a_compaction() {
    let operations = operations_of_the_script();
    for number in 1..=operations.end {
        for seed in [None, Some(1), Some(2)] {
            let result = Keyed::until_the_end(config(), number, seed, &SCRIPT);
            result.unwrap_or_else(|violation| panic!("ended at operation {number}, seed {seed:?}: {}", violation.0));
        }
    }
}

#[test]
fn whatever_happens_a_compacted_log_keeps_the_newest_record_of_each_key() {
    if let Some(seed) = number("TRIPLINE_SIM_SEED") {
        run_seed(seed);
        return;
    }
    (0..SEEDS).for_each(|_| run_seed(fastrand::u64(..)));
}

fn run_seed(seed: u64) {
    keyed_runs::run(seed, None).unwrap_or_else(|failure| panic!("{failure}\nagain: TRIPLINE_SIM_SEED={seed}"));
}

/// The comparison is worth something: a compaction that forgot a sync is found out.
#[test]
fn a_forgotten_sync_of_a_compaction_is_noticed_within_a_few_seeds() {
    for lie in [Lie::FileSyncs("clean"), Lie::DirSyncs] {
        let noticed = (0..300).find(|&seed| keyed_runs::run(seed, Some(lie)).is_err());
        assert!(noticed.is_some(), "{lie:?} went unnoticed");
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, allowed is a number")))
}

// ---- one thing at a time -------------------------------------------------------------------------------------------

fn logs(world: &Keyed) -> Vec<PathBuf> {
    let is_log =
        |path: &PathBuf| path.starts_with(Keyed::dir()) && path.extension().is_some_and(|found| found == "log");
    world.disk.paths().into_iter().filter(is_log).collect()
}

/// A log of some sealed segments in which nearly everything was replaced.
fn replaced(rounds: u8) -> Keyed {
    let mut world = Keyed::new(config(), 16 << 10, None).unwrap();
    world.looks = true;
    for round in 0..rounds {
        let last = if round % 6 == 0 { 100 + round } else { 4 };
        run(&mut world, &[append([1, 2, 3, last], None)]).unwrap();
    }
    run(&mut world, &[Operation::Flush]).unwrap();
    world
}

/// Where names reach the disk in another order than they were changed, nothing but these syncs keeps the old segments
/// until the new one is there. The simulated disk keeps the order, so it is looked at what is asked of it.
#[test]
fn what_decides_a_compaction_is_on_disk_before_anything_is_replaced() {
    let world = replaced(6);
    let outcome = world.partition().compact(Some(0), None, &|| true).unwrap().unwrap();
    assert!(outcome.removed_records > 0, "{outcome:?}");
    let asked = world.disk.history();
    let at = |from: usize, call: Call, what: &str| {
        let is_it = |asked: &sim::Operation| asked.call == call && asked.path.to_string_lossy().ends_with(what);
        let found = asked[from..].iter().position(is_it).map(|found| from + found);
        found.unwrap_or_else(|| panic!("no {call:?} of {what} behind {from}: {asked:#?}"))
    };
    let partition = Keyed::dir().to_string_lossy().into_owned();
    let new_log = at(0, Call::SyncData, ".clean");
    let new_name = at(new_log, Call::SyncDir, &partition);
    let decided = at(new_name, Call::WriteAt, ".swap");
    let decided = at(decided, Call::SyncData, ".swap");
    let decided = at(decided, Call::SyncDir, &partition);
    let replaced = at(0, Call::Rename, ".clean");
    assert!(replaced > decided, "{asked:#?}");
    let removed = at(replaced, Call::SyncDir, &partition);
    assert!(at(0, Call::Rename, ".swap") > removed, "{asked:#?}");
}

#[test]
fn nothing_is_replaced_after_a_failed_sync_of_the_names() {
    let world = replaced(6);
    let (partition, disk) = (world.partition(), &world.disk);
    let failed = AtomicBool::new(false);
    let outcome = partition.compact(Some(0), None, &|| {
        if !failed.swap(true, Ordering::Relaxed) {
            partition.set_config(LogConfig { segment_age: Duration::ZERO, ..partition.config() });
            let mut one = BatchBuilder::new(BatchOptions::default());
            one.push(&NewRecord { key: Some(b"k"), ..NewRecord::default() }).unwrap();
            partition.append(&one.finish().unwrap(), i64::MAX / 2).unwrap();
            // The sealed segment first, its directory then.
            disk.fail_nth(disk.operations() + 2, Fault::Eio);
            partition.flush().unwrap_err();
        }
        true
    });
    assert!(matches!(outcome, Err(CompactError::Stopped(_))), "{outcome:?}");
    let asked = disk.history();
    let syncs = asked.iter().rposition(|asked| asked.call == Call::SyncDir).expect("the one that failed");
    let behind = &asked[syncs + 1..];
    let is_of_log = |asked: &sim::Operation| asked.path.to_string_lossy().ends_with(".log");
    let replaces =
        |asked: &sim::Operation| asked.call == Call::Rename || asked.call == Call::RemoveFile && is_of_log(asked);
    assert!(!behind.iter().any(replaces), "{behind:#?}");
    assert!(behind.iter().any(|asked| asked.path.to_string_lossy().ends_with(".clean")), "the compaction went on");
}

#[test]
fn what_is_left_of_many_segments_becomes_few() {
    let mut world = replaced(60);
    let before = logs(&world).len();
    // They are merged by what they have, so it takes some rounds until they have little.
    for _ in 0..4 {
        run(&mut world, &[append([1, 1, 1, 1], None), Operation::Flush, COMPACT]).unwrap();
        for _ in 0..4 {
            run(&mut world, &[append([1, 1, 1, 1], None)]).unwrap();
        }
    }
    let after = logs(&world).len();
    assert!(before > 15 && after < before / 2, "{before} segments, then {after}");
    run(&mut world, &[Operation::Kill]).unwrap();
    assert_eq!(logs(&world).len(), after);
}

#[test]
fn a_read_goes_on_to_the_next_record_there_is() {
    let mut world = replaced(40);
    run(&mut world, &[append([1, 2, 3, 4], Some(0)); 4]).unwrap();
    run(&mut world, &[Operation::Flush, COMPACT]).unwrap();
    let found: Vec<i64> = world.check_all().unwrap().into_keys().collect();
    assert!(found[0] < 20 && found.windows(2).any(|pair| pair[1] - pair[0] > 20), "long gaps: {found:?}");
    for from in 0..world.tail() {
        for max_bytes in [1, 1 << 20] {
            let outcome = world.partition().read_blocking(Offset::new(from).unwrap(), max_bytes).unwrap();
            let (view, _) = BatchView::parse(&outcome.bytes).unwrap();
            let expected = *found.iter().find(|&&offset| offset >= from).unwrap();
            let served = view.header().base_offset.get()..outcome.next.get();
            // In a batch of which this record is gone others may be left before it.
            let in_batch = served.contains(&from);
            assert!(served.contains(&expected) || in_batch, "{from}: {served:?} and not {expected}");
            assert!(max_bytes > 1 || view.header().record_count > 0, "an empty batch at {from}");
        }
    }
}

#[test]
fn nothing_is_done_twice_and_nothing_without_being_asked_for() {
    let mut world = replaced(20);
    assert!(world.compact().unwrap().is_some());
    assert_eq!(world.compact().unwrap(), None, "nothing is dirty");
    run(&mut world, &[Operation::Reopen]).unwrap();
    assert_eq!(world.compact().unwrap(), None, "and that is known after a start");
    let now_ms = Some(i64::MAX / 2);
    run(&mut world, &[append([1, 2, 3, 4], None); 8]).unwrap();
    let partition = world.partition();
    assert!(partition.compact(now_ms, None, &|| true).unwrap().is_none(), "what is not flushed takes no part");
    partition.flush().unwrap();
    partition.set_config(LogConfig { compaction: None, ..config() });
    assert!(partition.compact(now_ms, None, &|| true).unwrap().is_none());
    partition.set_config(config());
    assert!(partition.compact(now_ms, Some(Offset::ZERO), &|| true).unwrap().is_none(), "held");
    assert!(matches!(partition.compact(now_ms, None, &|| false), Err(CompactError::Interrupted)));
    let found = world.check_all().unwrap();
    assert!(world.partition().compact(now_ms, None, &|| true).unwrap().is_some());
    assert!(world.check_all().unwrap().len() < found.len());
}

#[test]
fn more_keys_than_fit_take_several_rounds() {
    // Room for 14 keys, and 60 different ones.
    let mut world = Keyed::new(config(), 400, None).unwrap();
    world.looks = true;
    for n in 0..30 {
        let key = n % 15 * 4;
        run(&mut world, &[append([key, key + 1, key + 2, key + 3], None)]).unwrap();
    }
    run(&mut world, &[Operation::Flush]).unwrap();
    let mut reached = 0;
    let mut rounds = 0;
    while let Some(outcome) = world.compact().unwrap() {
        assert!(outcome.to.get() > reached, "round {rounds} came to {}", outcome.to);
        (reached, rounds) = (outcome.to.get(), rounds + 1);
    }
    assert!(rounds > 3 && reached > 100, "{rounds} rounds to {reached}");
}

#[test]
fn a_tombstone_goes_after_its_time_and_never_by_a_clock_that_nobody_believes() {
    let mut world = Keyed::new(config(), 16 << 10, None).unwrap();
    world.looks = true;
    run(&mut world, &[append([1, 2, 3, 4], None), delete([5, 1, 2, 6])]).unwrap();
    run(&mut world, &[append([10, 11, 12, 13], None); 4]).unwrap();
    run(&mut world, &[Operation::Flush]).unwrap();
    world.compact().unwrap().unwrap();
    let tombstones = |world: &Keyed| {
        let found = world.check_all().unwrap();
        found.into_iter().filter(|(_, record)| record.value.is_none()).map(|(at, _)| at).collect::<Vec<_>>()
    };
    assert_eq!(tombstones(&world), [5, 6], "they stay, and what they delete is gone");
    // Gone over again at half of it, because there is something new.
    run(&mut world, &[append([10, 11, 12, 13], None); 4]).unwrap();
    run(&mut world, &[Operation::Flush]).unwrap();
    let before_bytes = world.partition().len_bytes();
    run(&mut world, &[Operation::Compact { after_ms: TOMBSTONE_MS as u16 / 2 }]).unwrap();
    assert!(world.partition().len_bytes() < before_bytes, "it was compacted");
    assert_eq!(tombstones(&world), [5, 6]);
    assert!(world.partition().compact(None, None, &|| true).unwrap().is_none());
    run(&mut world, &[Operation::Compact { after_ms: TOMBSTONE_MS as u16 / 2 }]).unwrap();
    assert_eq!(tombstones(&world), [0; 0], "without anything new");
    assert_eq!(world.compact().unwrap(), None);
}

#[test]
fn a_damaged_segment_is_left_as_it_is_and_the_others_are_compacted() {
    let config = LogConfig { segment_bytes: 4096, ..config() };
    let mut world = Keyed::new(config, 16 << 10, None).unwrap();
    for _ in 0..60 {
        run(&mut world, &[append([1, 2, 3, 4], None), delete([5, 6, 7, 8])]).unwrap();
    }
    run(&mut world, &[Operation::Flush]).unwrap();
    let paths = logs(&world);
    assert!(paths.len() >= 5, "{paths:?}");
    // In the middle of the second segment, in a record.
    world.disk.flip(&paths[1], 2_000, 3).unwrap();
    let damaged = world.disk.read_image(&paths[1]).unwrap();
    let (before_bytes, base) = (world.partition().len_bytes(), paths[1].file_stem().unwrap().to_str().unwrap());
    let base = Offset::new(base.parse().unwrap()).unwrap();
    let outcome = world.partition().compact(Some(0), None, &|| true).unwrap().unwrap();
    assert_eq!(outcome.damaged, [base]);
    assert!(outcome.removed_bytes > before_bytes / 3, "{outcome:?} of {before_bytes}");
    assert_eq!(world.disk.read_image(&paths[1]).unwrap(), damaged, "not a byte of it was touched");
    let sizes: Vec<_> = [0, 2].map(|at| world.disk.read_image(&paths[at]).unwrap().len()).into();
    assert!(sizes.iter().all(|&len_bytes| len_bytes < 2_000), "its neighbours: {sizes:?}");
    let damage = world.partition().read_blocking(base, 1 << 20).map(|_| ());
    let next = world.partition().read_blocking(Offset::new(base.get() + 60).unwrap(), 1 << 20).map(|_| ());
    assert!(matches!(damage, Ok(())) || matches!(damage, Err(ReadError::Damaged { .. })), "{damage:?}");
    assert!(next.is_ok() || matches!(next, Err(ReadError::Damaged { .. })), "{next:?}");
    // The tombstones behind it must stay: what they delete may be in there.
    let late = world.partition().compact(Some(i64::MAX / 2), None, &|| true);
    assert!(matches!(late, Ok(None)), "{late:?}");
}

#[test]
fn a_segment_that_cannot_be_read_is_left_as_it_is_and_the_others_are_compacted() {
    let config = LogConfig { segment_bytes: 16 << 10, ..config() };
    let mut world = Keyed::new(config, 16 << 10, None).unwrap();
    for _ in 0..200 {
        run(&mut world, &[append([1, 2, 3, 4], None), delete([5, 6, 7, 8])]).unwrap();
    }
    run(&mut world, &[Operation::Flush]).unwrap();
    let paths = logs(&world);
    assert!(paths.len() >= 4, "{paths:?}");
    world.disk.set_unreadable(&paths[1], Some(4096..8192)).unwrap();
    let (before, before_bytes) = (world.disk.read_image(&paths[1]).unwrap(), world.partition().len_bytes());
    let outcome = world.partition().compact(Some(0), None, &|| true).unwrap().unwrap();
    assert_eq!(outcome.damaged, [base_of(&paths[1])]);
    assert!(outcome.removed_bytes > before_bytes / 3, "{outcome:?} of {before_bytes}");
    assert_eq!(world.disk.read_image(&paths[1]).unwrap(), before, "not a byte of it was touched");
    let sizes: Vec<_> = [0, 2].map(|at| world.disk.read_image(&paths[at]).unwrap().len()).into();
    assert!(sizes.iter().all(|&len_bytes| len_bytes < 2_000), "its neighbours: {sizes:?}");
    assert!(world.partition().stopped().is_none());
    world.disk.set_unreadable(&paths[1], None).unwrap();
    world.check_all().unwrap();
}

#[test]
fn a_tombstone_waits_for_what_could_not_be_read_and_may_be_what_it_deletes() {
    let mut world = Keyed::new(config(), 16 << 10, None).unwrap();
    run(&mut world, &[append([9, 10, 11, 12], None); 4]).unwrap();
    run(&mut world, &[delete([1, 9, 10, 2])]).unwrap();
    let more = |world: &mut Keyed| {
        run(world, &[append([20, 21, 22, 23], None); 8]).unwrap();
        run(world, &[Operation::Flush]).unwrap();
    };
    more(&mut world);
    let first = logs(&world).remove(0);
    let len_bytes = world.disk.read_image(&first).unwrap().len() as u64;
    world.disk.set_unreadable(&first, Some(0..len_bytes)).unwrap();
    let outcome = world.partition().compact(Some(0), None, &|| true).unwrap().unwrap();
    assert_eq!(outcome.damaged, [base_of(&first)]);
    world.disk.set_unreadable(&first, None).unwrap();
    // Whatever is compacted, and whenever.
    for round in 1..4 {
        more(&mut world);
        let now_ms = round * 2 * TOMBSTONE_MS;
        let outcome = world.partition().compact(Some(now_ms), None, &|| true).unwrap().unwrap();
        assert_eq!(outcome.damaged, []);
        world.check_all().unwrap();
    }
    // The next process goes over it again from where that one could read all.
    world.looks = true;
    run(&mut world, &[Operation::Reopen]).unwrap();
    more(&mut world);
    let found = |world: &Keyed| world.check_all().unwrap();
    world.compact().unwrap().unwrap();
    assert!(!found(&world).contains_key(&0), "deleted, and it was read again");
    more(&mut world);
    run(&mut world, &[Operation::Compact { after_ms: 2 * TOMBSTONE_MS as u16 }]).unwrap();
    assert!(found(&world).values().all(|record| record.value.is_some()), "and then the tombstones are gone");
}

fn base_of(log: &std::path::Path) -> Offset {
    Offset::new(log.file_stem().unwrap().to_str().unwrap().parse().unwrap()).unwrap()
}

#[test]
fn a_seal_that_is_written_late_is_not_that_of_a_segment_which_was_compacted_meanwhile() {
    let written = || {
        let mut world = Keyed::new(config(), 16 << 10, None).unwrap();
        for round in 0..40 {
            run(&mut world, &[append([1, 2, 3, if round % 6 == 0 { 100 + round } else { 4 }], None)]).unwrap();
        }
        world
    };
    let first = {
        let world = written();
        let before = world.disk.operations();
        world.partition().flush().unwrap();
        let mut history = world.disk.history().into_iter();
        let is_aside = |path: &std::path::Path| path.extension().is_some_and(|found| found == "tmp");
        history.find(|it| it.number > before && is_aside(&it.path)).unwrap().number - before
    };
    let mut world = written();
    world.disk.fail_from(world.disk.operations() + first, Fault::Emfile);
    world.partition().flush().unwrap();
    world.disk.heal();
    let outcome = world.partition().compact(Some(0), None, &|| true).unwrap().unwrap();
    assert!(outcome.removed_records > 0 && outcome.damaged.is_empty(), "{outcome:?}");
    run(&mut world, &[append([1, 2, 3, 4], None), Operation::Flush]).unwrap();
    let (mut seals, paths) = (0, world.disk.paths());
    for log in logs(&world) {
        let seal = log.with_extension("seal");
        if paths.contains(&seal) {
            // What it says of the length, behind magic, version, base and next offset.
            let told = world.disk.read_image(&seal).unwrap()[SEAL_LENGTH_AT..][..8].try_into().unwrap();
            assert_eq!(
                u64::from_le_bytes(told),
                world.disk.read_image(&log).unwrap().len() as u64,
                "{}",
                seal.display()
            );
            seals += 1;
        }
    }
    assert_eq!(seals, logs(&world).len() - 1, "each sealed segment has one");
    world.check_all().unwrap();
}

/// Where a seal has the length of its log.
const SEAL_LENGTH_AT: usize = 22;

#[test]
fn a_full_disk_ends_a_compaction_and_the_log_goes_on() {
    let mut world = replaced(20);
    run(&mut world, &[Operation::FillDisk]).unwrap();
    let failed = world.partition().compact(Some(i64::MAX / 2), None, &|| true);
    assert!(matches!(&failed, Err(CompactError::Io(cause)) if cause.kind() == std::io::ErrorKind::StorageFull));
    assert!(world.partition().stopped().is_none());
    let left = world.disk.paths().into_iter().filter(|path| path.extension().is_some_and(|found| found == "clean"));
    assert_eq!(left.count(), 0, "what it had written makes room again");
    run(&mut world, &[Operation::Heal, append([1, 2, 3, 4], None), Operation::Flush]).unwrap();
    assert!(world.compact().unwrap().is_some());
}

#[test]
fn without_descriptors_a_compaction_is_tried_again_later_and_nothing_stops() {
    // One in which a segment is made anew, and several become one.
    let due = || {
        let mut world = replaced(12);
        run(&mut world, &[COMPACT, append([1, 1, 1, 1], None), Operation::Flush, COMPACT]).unwrap();
        run(&mut world, &[append([1, 1, 1, 1], None); 8]).unwrap();
        run(&mut world, &[Operation::Flush]).unwrap();
        world
    };
    let world = due();
    let before = world.disk.operations();
    let outcome = world.partition().compact(Some(0), None, &|| true).unwrap().unwrap();
    assert!(outcome.removed_segments > 0, "{outcome:?}");
    let calls = world.disk.operations() - before;
    let ends = [
        &[COMPACT, Operation::Kill][..],
        &[Operation::Kill],
        &[Operation::PowerCut { seed: 1 }],
        &[Operation::PowerCut { seed: 2 }],
    ];
    let run_one = |nth: u64, ends: &[Operation]| {
        let mut world = due();
        // Files can be read and written from here on, and none can be opened.
        world.disk.fail_from(world.disk.operations() + nth, Fault::Emfile);
        let failed = world.partition().compact(Some(0), None, &|| true);
        world.disk.heal();
        let is_out = |cause: &std::io::Error| cause.raw_os_error() == Some(24);
        let later = matches!(&failed, Ok(Some(_))) || matches!(&failed, Err(CompactError::Io(cause)) if is_out(cause));
        assert!(later, "operation {nth}: {failed:?}");
        assert!(world.partition().stopped().is_none(), "operation {nth}: {:?}", world.partition().stopped());
        let rest = [append([1, 2, 3, 4], Some(0)), Operation::Flush];
        run(&mut world, &rest).and_then(|()| run(&mut world, ends)).and_then(|()| run(&mut world, &[COMPACT])).unwrap();
        world.check_all().unwrap();
        failed.is_err()
    };
    // Each waits for a descriptor for some time, at the same time.
    let failed = std::thread::scope(|scope| {
        let runs = (1..=calls).flat_map(|nth| ends.map(|ends| (nth, ends)));
        let threads: Vec<_> = runs.map(|(nth, ends)| scope.spawn(move || run_one(nth, ends))).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap().then_some(())).count()
    });
    assert!(failed > 40, "{failed}");
}

#[test]
fn producers_are_known_from_a_compacted_log_alone() {
    let mut world = Keyed::new(config(), 16 << 10, None).unwrap();
    for n in 0..12 {
        run(&mut world, &[append([1, 2, 3, 4], Some(n % 2)), append([1, 2, 3, 4], None)]).unwrap();
    }
    run(&mut world, &[append([1, 2, 3, 4], None); 4]).unwrap();
    run(&mut world, &[Operation::Flush, COMPACT]).unwrap();
    assert!(has_snapshots(&world));
    run(&mut world, &[Operation::LoseSnapshots, Operation::Kill]).unwrap();
    retry_all(&mut world).unwrap();
}

/// A power cut that takes the newest batches of a producer makes older ones its last five.
#[test]
fn producers_are_known_after_a_compaction_whatever_a_power_cut_leaves() {
    for seed in 0..20 {
        let mut world = Keyed::new(config(), 16 << 10, None).unwrap();
        for n in 0..12 {
            run(&mut world, &[append([1, 2, 3, 4], Some(n % 2)), append([1, 2, 3, 4], None)]).unwrap();
        }
        run(&mut world, &[append([1, 2, 3, 4], None); 4]).unwrap();
        run(&mut world, &[Operation::Flush]).unwrap();
        run(&mut world, &[append([1, 2, 3, 4], Some(0)), append([1, 2, 3, 4], Some(1)), COMPACT]).unwrap();
        assert!(has_snapshots(&world));
        let cut = [Operation::PowerCut { seed }, Operation::LoseSnapshots, Operation::Kill];
        let result = run(&mut world, &cut).and_then(|()| retry_all(&mut world));
        result.unwrap_or_else(|violation| panic!("seed {seed}: {}", violation.0));
    }
}

/// A compaction leaves the batches of a forgotten producer that hold the newest record of a key, be they old, and takes
/// newer ones. What is left does not tell where the producer is, and a start that reads it must not think so.
#[test]
fn a_producer_that_was_forgotten_goes_on_whatever_a_compaction_left_of_it() {
    for further_start in [false, true] {
        let mut world = Keyed::new(config(), 16 << 10, None).unwrap();
        run(&mut world, &[append([20, 21, 22, 23], Some(0)), append([24, 25, 26, 27], Some(1))]).unwrap();
        run(&mut world, &[append([1, 2, 3, 4], Some(0)); 3]).unwrap();
        run(&mut world, &[append([1, 2, 3, 4], None); 9]).unwrap();
        run(&mut world, &[Operation::Flush, Operation::Forget, COMPACT]).unwrap();
        run(&mut world, &[Operation::LoseSnapshots, Operation::Kill]).unwrap();
        if further_start {
            // What was concluded from the log is in the snapshot that this one reads.
            run(&mut world, &[append([1, 2, 3, 4], None); 9]).unwrap();
            run(&mut world, &[Operation::Flush, Operation::Kill]).unwrap();
            assert!(has_snapshots(&world));
        }
        goes_on(&mut world, 0);
        goes_on(&mut world, 1);
    }
}

/// As above, but an older snapshot is left: it knows the producer, and not where it is.
#[test]
fn an_older_snapshot_does_not_hold_up_a_producer_of_which_a_compaction_took_the_newest_batches() {
    let mut world = Keyed::new(config(), 16 << 10, None).unwrap();
    run(&mut world, &[append([1, 2, 3, 4], Some(0))]).unwrap();
    run(&mut world, &[append([5, 6, 7, 8], None); 9]).unwrap();
    run(&mut world, &[Operation::Flush]).unwrap();
    let kept = snapshots(&world);
    assert!(!kept.is_empty());
    run(&mut world, &[append([1, 2, 3, 4], Some(0)); 3]).unwrap();
    run(&mut world, &[append([1, 2, 3, 4], None); 9]).unwrap();
    run(&mut world, &[Operation::Flush, Operation::Forget, COMPACT]).unwrap();
    for newer in snapshots(&world).iter().filter(|path| !kept.contains(path)) {
        world.disk.remove_file(newer).unwrap();
    }
    assert!(has_snapshots(&world));
    run(&mut world, &[Operation::Kill]).unwrap();
    assert!(world.partition().producer(900).is_some(), "the older snapshot is read");
    goes_on(&mut world, 0);
}

/// Takes the next batch of a producer, and knows it again from there on.
fn goes_on(world: &mut Keyed, producer: u8) {
    let next = [append([1, 2, 3, 4], Some(producer)), Operation::Retry { producer, back: 0 }];
    run(world, &next).unwrap_or_else(|violation| panic!("{}", violation.0));
    let skipping = world.skipping(producer);
    let refused = world.partition().append(&skipping, i64::MAX / 2).unwrap_err();
    assert!(matches!(refused, AppendError::Sequence(SequenceError::OutOfOrder { .. })), "{refused}");
}

fn snapshots(world: &Keyed) -> Vec<PathBuf> {
    let mut paths = world.disk.paths();
    paths.retain(|path| path.extension().is_some_and(|found| found == "snapshot"));
    paths
}

fn has_snapshots(world: &Keyed) -> bool {
    !snapshots(world).is_empty()
}

fn retry_all(world: &mut Keyed) -> Result<(), Violation> {
    keyed_runs::each_retry().try_for_each(|retry| world.apply(retry))
}

// ---- all at once ---------------------------------------------------------------------------------------------------

const BATCHES: i64 = 1_200;
const RECORDS: i64 = 3;
const KEYS: i64 = 40;
const ID: PartitionId = PartitionId { topic: Uuid::from_u128(1), partition: 0 };
const TIME_MS: i64 = 1_700_000_000_000;

/// Record n has key n % KEYS, says n, and has the time n. Waits now and then for a compaction to have ended meanwhile.
fn append_numbers(partition: &Arc<Partition>, compacted: &Receiver<()>) {
    for batch in 0..BATCHES {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        for n in batch * RECORDS..(batch + 1) * RECORDS {
            let (key, value) = ((n % KEYS).to_string(), n.to_string());
            let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
            builder.push(&NewRecord { timestamp_ms: TIME_MS + n, key, value, headers: &[] }).unwrap();
        }
        let outcome = partition.append(&builder.finish().unwrap(), TIME_MS).unwrap();
        assert_eq!(outcome.base_offset.get(), batch * RECORDS);
        if batch % 60 == 59 {
            partition.flush().unwrap();
            compacted.recv().unwrap();
        }
    }
}

/// Reads from the first offset to the tail. Offsets and numbers are those that were appended, batches are whole
/// and dense, and no key's newest record is missing.
fn read_numbers(partition: &Arc<Partition>, max_bytes: usize) -> usize {
    let mut at = Offset::ZERO;
    let mut newest = vec![-1; KEYS as usize];
    let mut seen = 0;
    while at < partition.tail() {
        let outcome = partition.read_blocking(at, max_bytes).unwrap();
        let mut bytes = &outcome.bytes[..];
        while !bytes.is_empty() {
            let (view, rest) = BatchView::parse(bytes).unwrap();
            view.verify_crc().unwrap();
            let is_first = rest.len() + view.bytes().len() == outcome.bytes.len();
            assert!(at < view.header().next_offset(), "back at {at}");
            assert!(is_first || view.header().base_offset == at, "a gap at {at}");
            for record in &view.records(&BatchLimits::default()).unwrap() {
                let record = record.unwrap();
                let n: i64 = std::str::from_utf8(record.value().unwrap()).unwrap().parse().unwrap();
                assert_eq!((record.offset().get(), record.timestamp_ms()), (n, TIME_MS + n));
                newest[(n % KEYS) as usize] = n;
                seen += 1;
            }
            at = view.header().next_offset();
            bytes = rest;
        }
        assert_eq!(at, outcome.next);
    }
    for n in (at.get() - KEYS).max(0)..at.get() {
        assert!(newest[(n % KEYS) as usize] >= n, "the newest record of key {} is missing", n % KEYS);
    }
    seen
}

fn look_up_times(partition: &Arc<Partition>, random: &mut fastrand::Rng) {
    let tail = partition.tail().get();
    let wanted = random.i64(0..tail.max(1));
    if let Some((found, time_ms)) = partition.offset_for_time(TIME_MS + wanted).unwrap() {
        assert!(found.get() >= wanted && time_ms == TIME_MS + found.get(), "{wanted}: {found} at {time_ms}");
    } else {
        assert_eq!(tail, 0, "the newest record of a key never goes");
    }
}

#[test]
fn a_log_is_compacted_while_it_is_appended_to_and_read() {
    let dir = tempfile::tempdir().unwrap();
    // Two open segments for all readers: nearly every read opens one, in the middle of swaps too.
    let store_config = StoreConfig { open_segments_max: 2, reserve_bytes: 0, ..StoreConfig::default() };
    let store = Store::open(Arc::new(OsFs), dir.path(), store_config, Uuid::from_u128(1)).unwrap();
    let config = LogConfig { segment_bytes: 2048, index_interval_bytes: 256, ..config() };
    let (partition, _) = store.open_partition(ID, config).unwrap();
    let done = AtomicBool::new(false);
    let (ended, compacted) = mpsc::sync_channel(1);
    std::thread::scope(|scope| {
        let readers = [1, 3_000].map(|max_bytes| {
            let (partition, done) = (&partition, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    read_numbers(partition, max_bytes);
                }
            })
        });
        let times = scope.spawn(|| {
            let mut random = fastrand::Rng::with_seed(7);
            while !done.load(Ordering::Relaxed) {
                look_up_times(&partition, &mut random);
            }
        });
        let compactor = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if partition.compact(Some(TIME_MS), None, &|| true).unwrap().is_some() {
                    let _ = ended.try_send(());
                }
            }
        });
        append_numbers(&partition, &compacted);
        done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        times.join().unwrap();
        compactor.join().unwrap();
    });
    partition.flush().unwrap();
    partition.compact(Some(TIME_MS), None, &|| true).unwrap();
    let left = read_numbers(&partition, 1 << 20);
    assert!(left < 500, "{left} records left");
}
