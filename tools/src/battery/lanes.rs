//! Lanes of triggers under random streams, outcomes and crashes: the runs of `tests/lanes`, many of them.

use crate::lane_sim::runs;
use crate::seeds::Seeds;
use crate::{Failure, Verdict};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first seed; chosen by chance and printed when it is not given
    #[arg(long)]
    from: Option<u64>,
    /// Run this seed alone and tell what it does
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Threads; the number of cores when it is not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: Option<u32>,
}

pub(crate) fn run(args: &Args) -> Result<Verdict, Failure> {
    // An assertion of a lane is one way to find out; it is told with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(seed) = args.seed {
        print!("{}", runs::tell(seed));
        return Ok(match runs::run(seed) {
            Ok(ran) => Verdict::Held(format!(
                "seed {seed}: {} records, {} attempts, {} writes, {} crashes",
                ran.records, ran.starts, ran.writes, ran.crashes
            )),
            Err(failure) => Verdict::Broken(failure),
        });
    }
    let seeds = Seeds { count: args.seeds, from: args.from, threads: args.threads };
    let again = |seed| format!("tripline-battery lanes --seed {seed}");
    let verdict = seeds.run(&format!("{} actions each", runs::ACTIONS), again, |seed| Ok(runs::run(seed)?.digest));
    let _ = std::panic::take_hook();
    verdict
}
