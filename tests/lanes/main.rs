//! Lanes under random streams, outcomes and crashes, in simulated time, compared with a plain list of what must become
//! of each record. `TRIPLINE_LANE_SEED=7` repeats one; `tripline-battery lanes` runs many of the same.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "sim.rs"]
mod sim;

use sim::runs;

/// Runs by default.
const SEEDS: u64 = 2_000;

#[test]
fn whatever_happens_each_record_is_finished_once_and_in_order() {
    if let Ok(seed) = std::env::var("TRIPLINE_LANE_SEED") {
        print!("{}", runs::tell(seed.parse().unwrap()));
        runs::run(seed.parse().unwrap()).unwrap_or_else(|failure| panic!("{failure}"));
        return;
    }
    for _ in 0..SEEDS {
        runs::run(fastrand::u64(..1 << 53)).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

/// For as long as the actions of a seed stay what they are.
#[test]
fn histories_that_once_went_wrong_go_well() {
    for seed in [
        1_250_530_022_195_843,
        4_411_330_562_241_512,
        4_654_734_712_975_221,
        6_931_985_545_663_318,
        7_793_851_063_106_454,
        8_074_628_343_886_892,
        8_902_489_682_419_073,
        8_930_741_589_070_591,
    ] {
        runs::run(seed).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[test]
fn a_seed_names_one_history() {
    for seed in 0..20 {
        assert_eq!(runs::run(seed), runs::run(seed), "seed {seed}");
    }
}
