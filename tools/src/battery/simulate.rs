//! Seeded simulation: the runs of `storage/tests/model.rs`, many of them.

use clap::ValueEnum;
use tripline_storage::fs::sim::Lie;

use crate::runs;
use crate::seeds::{Seeds, digest};
use crate::{Failure, Verdict};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    seeds: Seeds,
    /// Plant a fault: syncs of these only claim to have been done
    #[arg(long)]
    lie: Option<PlantedLie>,
}

/// A sync that a broken log would forget.
#[derive(Clone, Copy, ValueEnum)]
enum PlantedLie {
    /// Those of segments
    Logs,
    /// Those of seals, snapshots, FORMAT and EPOCH
    SideFiles,
    /// Those of the log start
    Checkpoints,
    /// Those of directories
    Directories,
}

impl From<PlantedLie> for Lie {
    fn from(lie: PlantedLie) -> Self {
        match lie {
            PlantedLie::Logs => Self::FileSyncs("log"),
            PlantedLie::SideFiles => Self::FileSyncs("tmp"),
            PlantedLie::Checkpoints => Self::FileSyncs("flushed"),
            PlantedLie::Directories => Self::DirSyncs,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<Verdict, Failure> {
    let lie = args.lie.map(Lie::from);
    if let Some(seed) = args.seeds.seed {
        return Ok(Verdict::of_image(seed, runs::run(seed, lie)));
    }
    let name = args.lie.as_ref().and_then(ValueEnum::to_possible_value);
    let lie_option = name.map_or_else(String::new, |name| format!(" --lie {}", name.get_name()));
    let again = |seed| format!("tripline-battery simulate --seed {seed}{lie_option}");
    args.seeds.run(&format!("{} operations each", runs::OPERATIONS), again, |seed| Ok(digest(&runs::run(seed, lie)?)))
}
