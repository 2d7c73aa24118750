//! Seeded simulation: the runs of `storage/tests/model.rs`, many of them.

use clap::ValueEnum;
use tripline_storage::fs::sim::Lie;

use crate::runs::{self, Image};
use crate::seeds::Seeds;
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
    if let Some(seed) = args.seeds.seed {
        return Ok(match runs::run(seed, args.lie.map(Lie::from)) {
            Ok(image) => {
                Verdict::Held(format!("seed {seed} leaves {} files, digest {:016x}", image.len(), digest(&image)))
            }
            Err(failure) => Verdict::Broken(failure),
        });
    }
    let lie = args.lie.map(Lie::from);
    let name = args.lie.as_ref().and_then(ValueEnum::to_possible_value);
    let lie_option = name.map_or_else(String::new, |name| format!(" --lie {}", name.get_name()));
    let again = |seed| format!("tripline-battery simulate --seed {seed}{lie_option}");
    args.seeds.run(&format!("{} operations each", runs::OPERATIONS), again, |seed| Ok(digest(&runs::run(seed, lie)?)))
}

/// CRC-32 over names and bytes, spread over 64 bits so that a sum of many says something.
fn digest(image: &Image) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    for (path, bytes) in image {
        hasher.update(path.as_os_str().as_encoded_bytes());
        hasher.update(bytes);
    }
    u64::from(hasher.finalize()).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
