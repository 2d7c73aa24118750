//! Seeded simulation of a compacted log: the runs of `storage/tests/compaction.rs`, many of them.

use crate::keyed_runs;
use crate::seeds::{Seeds, digest};
use crate::{Failure, Verdict};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    seeds: Seeds,
}

pub(crate) fn run(args: &Args) -> Result<Verdict, Failure> {
    let run = |seed| keyed_runs::run(seed, None);
    if let Some(seed) = args.seeds.seed {
        return Ok(Verdict::of_image(seed, run(seed)));
    }
    let again = |seed| format!("tripline-battery compact --seed {seed}");
    args.seeds.run(&format!("{} operations each", keyed_runs::OPERATIONS), again, |seed| Ok(digest(&run(seed)?)))
}
