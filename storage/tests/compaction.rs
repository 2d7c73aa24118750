//! Compaction: what it keeps, what it may lose, and that nothing which ends it early loses more.
//!
//! [`SEEDS`] random runs by default, new ones every time; `TRIPLINE_SIM_SEEDS=100000` runs more, `TRIPLINE_SIM_SEED=7` repeats
//! one.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/keyed.rs"]
mod keyed;

use std::panic::{AssertUnwindSafe, catch_unwind};

use keyed::{Keyed, Operation, TOMBSTONE_MS, Violation, config};
use tripline_storage::LogConfig;
use tripline_storage::fs::sim::{Fault, Lie};

/// Runs by default.
const SEEDS: u64 = 300;
/// Operations in a run.
const OPERATIONS: usize = 60;

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

/// Compacts one segment and several into one, something new behind it, tombstones that stay and tombstones that go, emptied
/// batches of a producer, and a log that was trimmed.
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
        random_run(seed, None).unwrap_or_else(|failure| panic!("{failure}"));
        return;
    }
    for _ in 0..number("TRIPLINE_SIM_SEEDS").unwrap_or(SEEDS) {
        random_run(fastrand::u64(..), None).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

/// The comparison is worth something: a compaction that forgot a sync is found out.
#[test]
fn a_forgotten_sync_of_a_compaction_is_noticed_within_a_few_seeds() {
    for lie in [Lie::FileSyncs("clean"), Lie::DirSyncs] {
        let noticed = (0..300).find(|&seed| random_run(seed, Some(lie)).is_err());
        assert!(noticed.is_some(), "{lie:?} went unnoticed");
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, allowed is a number")))
}

fn random_run(seed: u64, lie: Option<Lie>) -> Result<(), String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut done = Vec::new();
    let result = catch_unwind(AssertUnwindSafe(|| run_operations(&mut random, lie, &mut done)));
    let failure = match result {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(Violation(facts))) => facts,
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panicked".to_owned()),
    };
    let operations: Vec<_> = done.iter().map(|operation| format!("  {operation:?}")).collect();
    Err(format!("TRIPLINE_SIM_SEED={seed}: {failure}\nafter {} operations:\n{}", done.len(), operations.join("\n")))
}

fn run_operations(random: &mut fastrand::Rng, lie: Option<Lie>, done: &mut Vec<Operation>) -> Result<(), Violation> {
    let config = LogConfig {
        segment_bytes: *random.choice(&[1024, 2048, 8 << 10]).unwrap(),
        index_interval_bytes: *random.choice(&[1, 400, 4096]).unwrap(),
        ..config()
    };
    // Room for 14 keys or for all.
    let keys_bytes = *random.choice(&[400, 64 << 10]).unwrap();
    let mut world = Keyed::new(config, keys_bytes, lie)?;
    world.looks = true;
    for _ in 0..OPERATIONS {
        let operation = any_operation(random);
        done.push(operation);
        world.apply(operation)?;
    }
    for last in [Operation::Heal, COMPACT, Operation::Kill, Operation::PowerCut { seed: random.u64(..) }, COMPACT] {
        done.push(last);
        world.apply(last)?;
    }
    Ok(())
}

fn any_operation(random: &mut fastrand::Rng) -> Operation {
    match random.u32(0..100) {
        0..50 => Operation::Append {
            keys: [(); 4].map(|()| random.u8(0..20)),
            tombstones: if random.u8(0..3) == 0 { random.u8(0..16) } else { 0 },
            producer: random.bool().then(|| random.u8(0..2)),
            codec: random.u8(0..10).min(5),
        },
        50..55 => Operation::Retry { producer: random.u8(0..2), back: random.u8(0..5) },
        55..65 => Operation::Flush,
        65..80 => Operation::Compact { after_ms: *random.choice(&[0, 0, 3_000, TOMBSTONE_MS as u16]).unwrap() },
        80..82 => Operation::Trim { permille: random.u16(0..=600) },
        82..85 => Operation::Reopen,
        85..88 => Operation::Kill,
        88..92 => Operation::PowerCut { seed: random.u64(..) },
        92..96 => {
            let faults = [Fault::Eio, Fault::Enospc, Fault::ShortWriteThenEio, Fault::ShortWriteThenFull];
            Operation::FailNth { after: random.u8(0..30), fault: *random.choice(&faults).unwrap() }
        }
        96..98 => Operation::FillDisk,
        _ => Operation::Heal,
    }
}
