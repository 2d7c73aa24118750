//! Lanes of triggers under random streams, outcomes and crashes: the runs of `tests/lanes`, many of them.

use crate::lane_sim::runs;
use crate::seeds::Seeds;
use crate::{Failure, Verdict};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    seeds: Seeds,
}

pub(crate) fn run(args: &Args) -> Result<Verdict, Failure> {
    // An assertion of a lane is one way to find out; it is told with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(seed) = args.seeds.seed {
        print!("{}", runs::tell(seed));
        return Ok(match runs::run(seed) {
            Ok(ran) => Verdict::Held(format!(
                "seed {seed}: {} records, {} attempts, {} writes, {} crashes",
                ran.records, ran.starts, ran.writes, ran.crashes
            )),
            Err(failure) => Verdict::Broken(failure),
        });
    }
    let again = |seed| format!("tripline-battery lanes --seed {seed}");
    let verdict = args.seeds.run(&format!("{} actions each", runs::ACTIONS), again, |seed| Ok(runs::run(seed)?.digest));
    let _ = std::panic::take_hook();
    verdict
}
