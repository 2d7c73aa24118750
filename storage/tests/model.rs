//! Random operations, faults and ends of a partition, compared with a plain list of what was appended.
//!
//! Each seed is a run of [`OPERATIONS`] operations on a simulated disk. [`SEEDS`] of them run by default, new ones every
//! time; `TRIPLINE_SIM_SEEDS=100000` runs more, `TRIPLINE_SIM_SEED=7` repeats one. A run that fails prints its seed and
//! what it did.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use tripline_storage::LogConfig;
use tripline_storage::fs::sim::{Fault, Lie};
use world::{Operation, Violation, World};

/// Runs by default.
const SEEDS: u64 = 400;
/// Operations in a run.
const OPERATIONS: usize = 60;

#[test]
fn whatever_happens_the_log_keeps_its_promises() {
    if let Some(seed) = number("TRIPLINE_SIM_SEED") {
        run(seed, None).unwrap_or_else(|failure| panic!("{failure}"));
        return;
    }
    for _ in 0..number("TRIPLINE_SIM_SEEDS").unwrap_or(SEEDS) {
        run(fastrand::u64(..), None).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[test]
fn a_seed_names_one_run_down_to_the_bytes_on_the_disk() {
    for seed in 0..5 {
        assert!(run(seed, None).unwrap() == run(seed, None).unwrap(), "seed {seed} left different images");
    }
}

/// The comparison is worth something: a log that forgot a sync, or trusted a disk that fakes one, is found out.
#[test]
fn a_forgotten_sync_is_noticed_within_a_few_seeds() {
    for lie in [Lie::FileSyncs("log"), Lie::DirSyncs, Lie::FileSyncs("tmp")] {
        let noticed = (0..100).find(|&seed| run(seed, Some(lie)).is_err());
        assert!(noticed.is_some(), "{lie:?} went unnoticed");
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, allowed is a number")))
}

type Image = Vec<(std::path::PathBuf, Vec<u8>)>;

/// One run; the image that it leaves, or what went wrong and how to repeat it.
fn run(seed: u64, lie: Option<Lie>) -> Result<Image, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut done = Vec::new();
    let result = catch_unwind(AssertUnwindSafe(|| run_operations(&mut random, lie, &mut done)));
    let failure = match result {
        Ok(Ok(image)) => return Ok(image),
        Ok(Err(Violation(facts))) => facts,
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panicked".to_owned()),
    };
    let operations: Vec<_> = done.iter().map(|operation| format!("  {operation:?}")).collect();
    Err(format!("TRIPLINE_SIM_SEED={seed}: {failure}\nafter {} operations:\n{}", done.len(), operations.join("\n")))
}

fn run_operations(random: &mut fastrand::Rng, lie: Option<Lie>, done: &mut Vec<Operation>) -> Result<Image, Violation> {
    let config = LogConfig {
        segment_bytes: *random.choice(&[1024, 2048, 16 << 10]).unwrap(),
        index_interval_bytes: *random.choice(&[1, 400, 4096]).unwrap(),
        retention_age: None,
        ..LogConfig::default()
    };
    let mut world = World::new(config, lie)?;
    for _ in 0..OPERATIONS {
        let operation = any_operation(random);
        done.push(operation);
        world.apply(operation)?;
    }
    for last in [Operation::Heal, Operation::Kill, Operation::PowerCut { seed: random.u64(..) }, Operation::Flush] {
        done.push(last);
        world.apply(last)?;
    }
    Ok(world.image())
}

fn any_operation(random: &mut fastrand::Rng) -> Operation {
    match random.u32(0..100) {
        0..45 => any_append(random),
        45..50 => Operation::Retry { producer: random.u8(0..2), back: random.u8(0..5) },
        50..62 => Operation::Flush,
        62..66 => Operation::Retention {
            keep_bytes: random.u16(0..12_000),
            by_age: random.u8(0..4) == 0,
            held: random.bool().then(|| random.u8(..)),
        },
        66..74 => Operation::Read { permille: random.u16(0..=1_000), max_bytes: random.u16(..) },
        74..77 => Operation::TimeLookup { permille: random.u16(0..=1_000) },
        77..81 => Operation::Reopen,
        81..86 => Operation::Kill,
        86..92 => Operation::PowerCut { seed: random.u64(..) },
        92..96 => Operation::FailNth { after: random.u8(0..12), fault: any_fault(random) },
        96..98 => Operation::FillDisk { room_bytes: random.u32(0..100_000) },
        _ => Operation::Heal,
    }
}

fn any_append(random: &mut fastrand::Rng) -> Operation {
    let value_bytes = match random.u8(0..10) {
        0 => random.u16(1_000..6_000),
        _ => random.u16(0..200),
    };
    let producer = random.bool().then(|| random.u8(0..2));
    Operation::Append { records: random.u8(1..6), value_bytes, producer }
}

fn any_fault(random: &mut fastrand::Rng) -> Fault {
    *random
        .choice(&[Fault::Eio, Fault::Enospc, Fault::ShortWriteThenEio, Fault::ShortWriteThenFull, Fault::Interrupted])
        .unwrap()
}
