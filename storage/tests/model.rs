//! Random operations, faults and ends of a partition, compared with a plain list of what was appended.
//!
//! Each seed is a run of [`runs::OPERATIONS`] operations on a simulated disk. [`SEEDS`] of them run by default, new
//! ones every time; `TRIPLINE_SIM_SEED=7` repeats one. A run that fails prints its seed and what it did.
//! `tripline-battery simulate` runs many of the same.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/faults.rs"]
mod faults;
#[path = "common/runs.rs"]
mod runs;
#[path = "common/seeded.rs"]
mod seeded;
#[path = "common/world.rs"]
mod world;

use runs::run;
use tripline_storage::LogConfig;
use tripline_storage::fs::sim::{Fault, Lie};
use world::{Operation, World};

/// Runs by default.
const SEEDS: u64 = 400;

#[test]
fn whatever_happens_the_log_keeps_its_promises() {
    if let Some(seed) = number("TRIPLINE_SIM_SEED") {
        run_seed(seed);
        return;
    }
    (0..SEEDS).for_each(|_| run_seed(fastrand::u64(..)));
}

fn run_seed(seed: u64) {
    run(seed, None).unwrap_or_else(|failure| panic!("{failure}\nagain: TRIPLINE_SIM_SEED={seed}"));
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
    for lie in [Lie::FileSyncs("log"), Lie::DirSyncs, Lie::FileSyncs("tmp"), Lie::FileSyncs("flushed")] {
        let noticed = (0..1_000).find(|&seed| run(seed, Some(lie)).is_err());
        assert!(noticed.is_some(), "{lie:?} went unnoticed");
    }
}

/// A log start whose sync failed is not taken; another start that serves what lies below settles that it never will be.
#[test]
fn a_log_start_that_was_not_taken_does_not_come_with_a_later_power_cut() {
    let config = LogConfig { segment_bytes: 1024, retention_age: None, ..LogConfig::default() };
    let append = Operation::Append { records: 3, value_bytes: 100, producer: None };
    // The start is written, and then its sync fails.
    let fail_sync = Operation::FailNth { after: 1, fault: Fault::Eio };
    let retention = Operation::Retention { keep_bytes: 1, by_age: false, held: None };
    for seed in 0..600 {
        let mut world = World::new(config, None).unwrap();
        let before = [append; 9].into_iter().chain([Operation::Flush, fail_sync, retention]);
        for operation in before.chain([append, Operation::Reopen, Operation::PowerCut { seed }]) {
            world.apply(operation).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, allowed is a number")))
}
